"""Events of Flask-SocketIO, to which no response belongs."""

from __future__ import annotations

from flask import Flask
from flask import Request


def is_socket_event(app: Flask, request: Request) -> bool:
    """Whether Flask-SocketIO handles an event.

    It opens the session anew for each event, with the request of the handshake. That
    one's path reaches Flask in no other way: Flask-SocketIO's middleware keeps it.
    """
    if "socketio" not in app.extensions:
        return False
    middleware = getattr(app.extensions["socketio"], "sockio_mw", None)
    path: str | None = getattr(middleware, "engineio_path", None)
    return path is not None and request.path.strip("/") == path.strip("/")
