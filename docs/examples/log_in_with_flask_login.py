import flask_login
from flask import Flask, redirect, request
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)
login_manager = flask_login.LoginManager(app)


class User(flask_login.UserMixin):
    def __init__(self, id):
        self.id = id


@login_manager.user_loader
def load_user(user_id):
    return User(user_id)  # an application asks its database


def check_password(name, password):
    return User(name) if (name, password) == ("ada", "countess") else None


@app.post("/log-in")
def log_in():
    user = check_password(request.form["name"], request.form["password"])
    if user is None:
        return "The name or the password is wrong.", 422
    flask_login.login_user(user)
    session.permanent = "remember" in request.form
    return redirect("/account")


@app.post("/log-out")
def log_out():
    flask_login.logout_user()
    session.destroy()
    return redirect("/account")


@app.get("/account")
@flask_login.login_required
def account():
    return f"The account of {flask_login.current_user.id}."
