from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config.update(
    SECRET_KEY="change me",  # the one that the cookies are signed with
    SESSION_MIGRATE_FROM="cookie",
    SESSION_MIGRATE_UNTIL="2099-12-31",  # the switch, and a PERMANENT_SESSION_LIFETIME
)
ServerSession(app)


@app.get("/")
def index():
    return f"Hello, {session.user}."


@app.post("/log-out")
def log_out():
    session.destroy()
    return "Good-bye."
