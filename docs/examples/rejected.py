from flask import Flask
from flask_serversession import ServerSession, session_rejected

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)
rejected = {}


@session_rejected.connect_via(app)
def count_rejected(sender, handle, user, reason, **extra):
    rejected[reason] = rejected.get(reason, 0) + 1
