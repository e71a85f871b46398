from flask import Flask, redirect, request
from flask_serversession import ServerSession, session
from werkzeug.security import check_password_hash, generate_password_hash

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)

USERS = {"ada": generate_password_hash("countess")}  # an application has a database
NOBODY = generate_password_hash("")


@app.get("/")
def home():
    return f"Hello, {session.user or 'stranger'}."


@app.post("/log-in")
def log_in():
    name = request.form["name"]
    # Takes as long for a name that there is not.
    is_right = check_password_hash(USERS.get(name, NOBODY), request.form["password"])
    if not is_right or name not in USERS:
        return "The name or the password is wrong.", 422
    if session.user not in (None, name):
        session.regenerate(keep_data=False)  # nothing of another user's is for this one
    session["_user_id"] = name
    session.permanent = "remember" in request.form
    return redirect("/")


@app.post("/log-out")
def log_out():
    session.destroy()
    return redirect("/")
