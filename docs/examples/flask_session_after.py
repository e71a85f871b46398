from flask import Flask
from flask_serversession import ServerSession

app = Flask(__name__)
app.config.update(
    SECRET_KEY="change me",
    SESSION_BACKEND="redis",
    SESSION_REDIS_URL="redis://localhost:6379/0",
    SESSION_PERMANENT=True,  # as Flask-Session has it
    SESSION_MIGRATE_FROM="flask-session",
    SESSION_MIGRATE_UNTIL="2099-12-31",
)
ServerSession(app)
