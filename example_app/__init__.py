"""A small stationery shop with a cart, notes and log-in, all on server-side sessions.

Run it from the folder that holds ``example_app``::

    pip install ".[all,example]"
    flask --app example_app run

No set-up is needed: sessions are files in the instance folder, next to the users'
database and the secret key. Log in as ``ada`` with the password ``countess``, and see
"Your devices"; ``ada`` is the administrator, too.

Another backend is one setting, from the environment or from a Python file of
settings that ``EXAMPLE_CONFIG`` names::

    FLASK_SESSION_BACKEND=memory flask --app example_app run
    FLASK_SESSION_BACKEND=cachelib flask --app example_app run
    FLASK_SESSION_BACKEND=sqlalchemy flask --app example_app run
    FLASK_SESSION_BACKEND=sqlalchemy \\
        FLASK_SESSION_SQLALCHEMY_URL=postgresql+psycopg://user@localhost/shop \\
        flask --app example_app run
    FLASK_SESSION_BACKEND=redis FLASK_SESSION_REDIS_URL=redis://localhost:6379/0 \\
        flask --app example_app run
    EXAMPLE_CONFIG=settings.py flask --app example_app run

Over HTTPS, sessions are bound to the device on which they began; see ``https.py``.

Every other key works the same way: ``FLASK_SESSION_RESAVE=true`` sets
``SESSION_RESAVE``.
"""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

from flask import Flask
from flask_login import current_user

from . import account
from . import admin
from . import auth
from . import devices
from . import errors
from . import notes
from . import preferences
from . import shop
from . import words
from .config import configure
from .extensions import csrf
from .extensions import login_manager
from .extensions import server_session
from .users import Users


def create_app(
    config: t.Mapping[str, t.Any] | None = None,
    instance_path: str | os.PathLike[str] | None = None,
) -> Flask:
    """Make the application.

    :param config: Settings that win over the file's and the environment's.
    :param instance_path: An absolute path; what the application keeps goes there.
    """
    app = Flask(
        __name__,
        instance_path=None if instance_path is None else os.fspath(instance_path),
    )
    Path(app.instance_path).mkdir(mode=0o700, parents=True, exist_ok=True)
    configure(app, config or {})

    server_session.init_app(app)
    login_manager.init_app(app)
    csrf.init_app(app)
    errors.init_app(app)
    app.extensions["example_users"] = Users(Path(app.instance_path) / "users.sqlite3")

    for module in (shop, notes, preferences, account, auth, devices, admin, words):
        app.register_blueprint(module.blueprint)

    @app.context_processor
    def add_to_templates() -> dict[str, t.Any]:
        # Functions and a proxy: a page that uses none of them reads no session.
        return {
            "current_user": current_user,
            "cart_count": shop.cart_count,
            "preferences": preferences.current,
            "backend_name": account.backend_name,
        }

    return app
