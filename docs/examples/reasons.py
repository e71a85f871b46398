from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
app.config["SESSION_MAX_PER_USER"] = 1
server_session = ServerSession(app)


REASONS = {
    "expired": "you have been away for too long",
    "limit": "you have logged in somewhere else",
    "revoked": "you, or an administrator, ended the session from elsewhere",
}


@app.get("/")
def home():
    if session.user is None and session.ended_because in REASONS:
        return f"You were logged out because {REASONS[session.ended_because]}."
    return f"Hello {session.user}."
