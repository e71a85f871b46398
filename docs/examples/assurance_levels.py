from datetime import timedelta

from flask import Flask
from flask_serversession import ServerSession

ALWAYS = {
    "SESSION_COOKIE_NAME": "__Host-session",  # this host only, on every path
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_HTTPONLY": True,  # the default
    "SESSION_COOKIE_SAMESITE": "Lax",
    "SESSION_PERMANENT": False,  # the default: the cookie ends with the browser
}
LEVELS = {
    1: {
        "SESSION_ABSOLUTE_TIMEOUT": timedelta(days=30),
        "SESSION_IDLE_TIMEOUT": timedelta(days=7),
    },
    2: {
        "SESSION_ABSOLUTE_TIMEOUT": timedelta(hours=24),
        "SESSION_IDLE_TIMEOUT": timedelta(hours=1),
        "SESSION_RENEWAL_INTERVAL": timedelta(hours=1),
        "SESSION_MAX_PER_USER": 5,
    },
    3: {
        "SESSION_ABSOLUTE_TIMEOUT": timedelta(hours=12),
        "SESSION_IDLE_TIMEOUT": timedelta(minutes=15),
        "SESSION_RENEWAL_INTERVAL": timedelta(minutes=30),
        "SESSION_MAX_PER_USER": 1,
    },
}


def create_app(level, **options):
    app = Flask(__name__)
    app.config.update(SECRET_KEY="change me", **ALWAYS, **LEVELS[level])
    ServerSession(app, **options)
    return app
