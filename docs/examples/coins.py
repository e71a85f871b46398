from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.post("/play")
def play():
    def pay(session):
        if session.get("coins", 10) < 3:
            return False
        session["coins"] = session.get("coins", 10) - 3
        return True

    return "ok" if session.atomic(pay) else "You have no coins left."
