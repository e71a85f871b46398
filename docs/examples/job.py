from flask import Flask
from flask_serversession import ServerSession, SessionLostError, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)


@app.post("/import")
def start_import():
    session["imported"] = 0
    session.save()  # so that a new session can be found
    return session.handle  # or: import_everything.delay(session.handle)


# with Celery: @celery.task
def import_everything(handle):
    with app.app_context():
        try:
            with server_session.open(handle) as data:
                data["imported"] = 3
        except SessionLostError:
            pass  # the visitor has logged out
