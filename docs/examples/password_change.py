from flask import Flask, request
from flask_serversession import ServerSession, session
from werkzeug.security import check_password_hash, generate_password_hash

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)

USERS = {"ada": generate_password_hash("countess")}  # an application has a database


@app.post("/log-in")
def log_in():
    name = request.form["name"]
    if name not in USERS or not check_password_hash(
        USERS[name], request.form["password"]
    ):
        return "The name or the password is wrong.", 422
    session["_user_id"] = name
    return f"Hello, {name}."


@app.post("/password")
def change_password():
    name = session.user
    if name is None:
        return "Log in first.", 401
    if not check_password_hash(USERS[name], request.form["old"]):
        return "This is not your password.", 422

    ended = server_session.revoke_user(name, except_current=True)
    USERS[name] = generate_password_hash(request.form["new"])
    ended += server_session.revoke_user(name, except_current=True)
    session.mark_authenticated()
    return f"Your password is changed. Other sessions ended: {ended}."


@app.post("/forgotten-password")
def reset_password():
    name = "ada"  # whom the token in the mail is for, which has to be checked here
    USERS[name] = generate_password_hash(request.form["new"])
    server_session.revoke_user(name)
    return "Your password is changed. Log in with it."
