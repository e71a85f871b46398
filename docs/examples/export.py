import json

from flask import Flask, Response
from flask_serversession import ServerSession, SessionLostError, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
app.config["SESSION_TRACK"] = ("user_agent", "remote_addr")
server_session = ServerSession(app)

SECRETS = {"csrf_token", "_csrf"}  # what opens something


def export_sessions(user):
    for info in server_session.sessions_of(user):
        try:
            with server_session.open(info.handle) as data:
                content = {key: data[key] for key in data if key not in SECRETS}
        except SessionLostError:
            continue  # it has ended meanwhile
        yield {
            "began": info.created_at,
            "last_seen": info.last_seen_at,
            "ends": info.expires_at,
            "about": dict(info.meta),
            "content": content,
        }


@app.get("/my-data")
def my_data():
    if session.user is None:
        return "Log in first.", 401
    sessions = list(export_sessions(session.user))
    text = json.dumps({"sessions": sessions}, indent=2, default=str)
    return Response(text, mimetype="application/json")


@app.post("/delete-account")
def delete_account():
    if session.user is None:
        return "Log in first.", 401
    # … and what else is kept, in your database
    server_session.revoke_user(session.user)
    return "Nothing is kept of you any more."
