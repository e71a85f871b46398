"""The extensions, which ``create_app`` gives the application to."""

from __future__ import annotations

from flask_wtf import CSRFProtect

from flask_serversession import ServerSession

csrf = CSRFProtect()
server_session = ServerSession()
