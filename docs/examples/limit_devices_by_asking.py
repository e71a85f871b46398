from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)


@app.post("/log-in")
def log_in():
    name = "ada"  # whose password was checked
    others = [info for info in server_session.sessions_of(name) if not info.current]
    if len(others) >= 2:
        return "You are logged in on two other devices. End one of them first.", 409
    session["_user_id"] = name
    return "Hello."
