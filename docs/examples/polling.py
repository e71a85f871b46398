from flask import Flask
from flask_serversession import ServerSession, passive, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
app.config["SESSION_IDLE_TIMEOUT"] = 600
ServerSession(app)


@app.get("/unread")
@passive
def unread():
    return {"user": session.user, "messages": 0}
