from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.get("/")
def index():
    session["visits"] = session.get("visits", 0) + 1
    return f"Visit {session['visits']}"
