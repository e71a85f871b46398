"""Where the settings come from."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import tempfile
import typing as t
from datetime import timedelta
from pathlib import Path

from flask import Flask

DEFAULTS: dict[str, t.Any] = {
    # Cookies: not for scripts (Flask's default), not for requests that other sites
    # make, and Secure as soon as the site is visited over HTTPS.
    "SESSION_COOKIE_SAMESITE": "Lax",
    "SESSION_COOKIE_SECURE": "auto",
    # Over HTTPS, a session belongs to the device on which it began, in browsers that
    # can do that: a stolen cookie is of no use.
    "SESSION_DEVICE_BOUND": importlib.util.find_spec("cryptography") is not None,
    # A session that ends with the browser is forgotten after a day without a visit;
    # one that was made permanent lives for PERMANENT_SESSION_LIFETIME.
    "SESSION_IDLE_TIMEOUT": timedelta(days=1),
    # Tells users which of their sessions is on which device, and where.
    "SESSION_TRACK": ("user_agent", "remote_addr"),
    # For so many seconds after a log-in nobody has to prove again who they are.
    "LOG_IN_IS_FRESH_FOR": 600,
    # A form may be sent for as long as the session lives.
    "WTF_CSRF_TIME_LIMIT": None,
    "MAX_CONTENT_LENGTH": 256 * 1024,
}


def configure(app: Flask, overrides: t.Mapping[str, t.Any]) -> None:
    """Fill ``app.config``: defaults, then file, then environment, then overrides."""
    app.config.update(DEFAULTS)

    if path := os.environ.get("EXAMPLE_CONFIG"):
        # Flask would look for a relative path in this package's folder.
        app.config.from_pyfile(os.path.abspath(path))

    app.config.from_prefixed_env()

    if secret := os.environ.get("FLASK_SECRET_KEY"):
        # Read as JSON like all others, one of digits only would become a number.
        app.config["SECRET_KEY"] = secret

    app.config.update(overrides)

    if not app.config["SECRET_KEY"]:
        app.config["SECRET_KEY"] = _kept_secret(Path(app.instance_path) / "secret_key")

    _complete_backend(app)


def _kept_secret(path: Path) -> str:
    """Give the secret in a file, made once, so that log-ins survive a restart."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()

    # mkstemp gives 0600. Linking instead of renaming makes the first one win when
    # several workers start at once, and nobody reads half a secret.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".secret_key")

    try:
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))

        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)

    return path.read_text()


def _complete_backend(app: Flask) -> None:
    """Let the backends that need no server work by their name alone."""
    config = app.config
    backend = config.get("SESSION_BACKEND")
    folder = Path(app.instance_path)

    if backend == "cachelib" and "SESSION_CACHELIB" not in config:
        from cachelib import FileSystemCache

        # Without a threshold: by default a cache throws away what is still in use.
        cache = FileSystemCache(str(folder / "cache"), threshold=0)
        config["SESSION_CACHELIB"] = cache

    if backend == "sqlalchemy" and not {
        "SESSION_SQLALCHEMY",
        "SESSION_SQLALCHEMY_URL",
    } & set(config):
        config["SESSION_SQLALCHEMY_URL"] = f"sqlite:///{folder / 'sessions.sqlite3'}"
