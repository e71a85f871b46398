from flask import Flask, redirect, request
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.post("/login")
def login():
    session.regenerate(keep_data=False)  # without the visitor's cart
    session["_user_id"] = request.form["user"]
    return redirect("/")


@app.post("/logout")
def logout():
    session.destroy()
    return redirect("/")
