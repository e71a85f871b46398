from flask import Flask, request
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)


@app.post("/log-in/<name>")
def log_in(name):
    session["_user_id"] = name
    session.meta["device"] = request.form["device"]
    return ""


app.test_client().post("/log-in/ada", data={"device": "kitchen tablet"})
with app.app_context():
    (info,) = server_session.sessions_of("ada")
    assert info.meta == {"device": "kitchen tablet"}
