from datetime import timedelta

from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.post("/log-in")
def log_in():
    session["_user_id"] = "ada"
    session.lifetime = timedelta(minutes=15)  # a public computer
    return ""
