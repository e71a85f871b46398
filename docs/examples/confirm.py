from datetime import timedelta

from flask import abort, request
from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.post("/payments")
def pay():
    if not session.is_fresh(timedelta(minutes=5)):
        abort(403, "Confirm your password first.")
    return "Paid."


@app.post("/confirm")
def confirm():
    if session.user is None or request.form["password"] != "countess":
        abort(403)
    session.mark_authenticated()
    return "Thank you."
