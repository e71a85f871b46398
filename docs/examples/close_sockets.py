import collections

from flask import Flask, request
from flask_serversession import ServerSession, session, signals
from flask_socketio import SocketIO

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)
socketio = SocketIO(app, manage_session=False, async_mode="threading")

SOCKETS = collections.defaultdict(set)  # of this process, by the session's handle


@socketio.on("connect")
def connect():
    if session.user is None:
        return False  # refused
    SOCKETS[session.handle].add(request.sid)


@socketio.on("disconnect")
def disconnect(*reason):
    for handle in [handle for handle in SOCKETS if request.sid in SOCKETS[handle]]:
        SOCKETS[handle].discard(request.sid)
        if not SOCKETS[handle]:
            del SOCKETS[handle]


def close_sockets(handle):
    for sid in SOCKETS.pop(handle, ()):
        socketio.server.disconnect(sid, namespace="/")


@signals.session_destroyed.connect_via(app)
def on_destroyed(sender, handle, **event):
    close_sockets(handle)


@signals.session_regenerated.connect_via(app)
def on_regenerated(sender, handle, previous, **event):
    close_sockets(previous)  # it has the cookie of an id that is dead
