import secrets

import flask_login
from flask import Flask, request
from flask_serversession import ServerSession
from werkzeug.security import check_password_hash, generate_password_hash

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)
login_manager = flask_login.LoginManager(app)


class User(flask_login.UserMixin):
    def __init__(self, name, password):
        self.name = name
        self.set_password(password)

    def set_password(self, password):
        self.password_hash = generate_password_hash(password)
        self.token = secrets.token_urlsafe()

    def get_id(self):
        return self.token


USERS = {"ada": User("ada", "countess")}  # an application has a database


@login_manager.user_loader
def load_user(token):
    return next((user for user in USERS.values() if user.token == token), None)


@app.post("/log-in")
def log_in():
    user = USERS.get(request.form["name"])
    if user is None or not check_password_hash(
        user.password_hash, request.form["password"]
    ):
        return "The name or the password is wrong.", 422
    flask_login.login_user(user, remember=True)
    return f"Hello, {user.name}."


@app.post("/password")
@flask_login.login_required
def change_password():
    user = USERS[flask_login.current_user.name]
    server_session.revoke_user(user.get_id(), except_current=True)
    user.set_password(request.form["new"])
    flask_login.login_user(
        user, remember=True
    )  # this browser goes on, with a new token
    return "Your password is changed."
