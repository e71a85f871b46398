from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)


@app.post("/log-in/<name>")
def log_in(name):
    session["_user_id"] = name
    return session.handle


browsers = [app.test_client() for _ in range(3)]
handles = [browser.post("/log-in/ada").text for browser in browsers]

with app.app_context():
    assert server_session.count() == 3
    assert {info.handle for info in server_session.sessions_of("ada")} == set(handles)
    info = server_session.find(handles[0])
    assert info.user == "ada"

    assert server_session.revoke(handles[0])
    assert not server_session.revoke(handles[0])  # it is gone already
    assert server_session.revoke_user("ada") == 2
    assert list(server_session.sessions()) == []
