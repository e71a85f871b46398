"""The extensions, which ``create_app`` gives the application to."""

from __future__ import annotations

from flask import Flask
from flask_login import LoginManager
from flask_wtf import CSRFProtect

from flask_serversession import ServerSession


class Logins(LoginManager):
    """Flask-Login without its cookie of its own that remembers who was logged in.

    Whoever has that cookie is logged in again, also where the session was ended on
    purpose; a permanent session remembers as long, and can be ended. To see whether
    the cookie is due, Flask-Login would look at the session after every request: of
    a picture, and of an error page while the backend is down.
    """

    def init_app(self, app: Flask, add_context_processor: bool = False) -> None:
        """Let ``login_user``, ``current_user`` and the others find this object."""
        app.login_manager = self  # type: ignore[attr-defined]


csrf = CSRFProtect()
login_manager = Logins()
# It would mark a session whose browser or address has changed, as those of phones do,
# for views that ask for a fresh log-in. There are none here.
login_manager.session_protection = None
server_session = ServerSession()
