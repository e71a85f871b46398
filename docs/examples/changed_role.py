from flask import Flask, abort, request
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)

ROLES = {"ada": "author", "root": "administrator"}  # your database


@app.post("/log-in/<name>")
def log_in(name):
    session["_user_id"] = name
    session["role"] = ROLES[name]
    return ""


@app.post("/users/<name>/role")
def change_role(name):
    if session.get("role") != "administrator":
        abort(403)
    role = ROLES[name] = request.form["role"]

    def change(data):
        data["role"] = role

    number = server_session.update_user(name, change)
    return f"{number} sessions have the new role."


@app.get("/")
def index():
    return session.get("role", "nobody")
