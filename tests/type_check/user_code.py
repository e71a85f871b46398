"""What applications write; read by the type checkers only, never run."""

from __future__ import annotations

import datetime as dt

from flask import Flask

from flask_serversession import ServerSession
from flask_serversession import ServerSideSession
from flask_serversession import session
from flask_serversession.testing import CountingBackend

server_session = ServerSession()


def create_app(backend: CountingBackend) -> Flask:
    app = Flask(__name__)
    app.config["SESSION_BACKEND"] = backend
    server_session.init_app(app)
    ServerSession(app)
    return app


def increment(own: ServerSideSession) -> int:
    own["n"] = own.get("n", 0) + 1
    return 1


def view() -> str:
    session["cart"] = {"n": 1}
    session.permanent = True
    session.lifetime = dt.timedelta(hours=1)
    session.lifetime = 3600
    session.lifetime = None
    lifetime: dt.timedelta | None = session.lifetime
    user: str | None = session.user
    is_new: bool = session.new
    count: int = session.atomic(increment)
    began: dt.datetime = session.created_at
    ends: dt.datetime = session.expires_at
    logged_in: dt.datetime | None = session.authenticated_at
    if not session.is_fresh(dt.timedelta(minutes=5)) or not session.is_fresh(300):
        session.mark_authenticated()
    session.regenerate()
    session.regenerate(keep_data=False)
    session.reload()
    session.save()
    session.touch()
    session.clear()
    session.destroy()
    times = f"{began} {ends} {logged_in}"
    return f"{session.handle} {lifetime} {user} {is_new} {count} {times}"
