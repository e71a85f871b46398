from flask_socketio import SocketIO
from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.get("/")
def index():
    session["cart"] = {"pens": 1}
    return ""


socketio = SocketIO(app, manage_session=False, async_mode="threading")


@socketio.on("add")
def add(number):
    session["cart"]["pens"] += number
    session.save()  # for a change inside a value
