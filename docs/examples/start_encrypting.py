import os
from base64 import urlsafe_b64encode

from flask import Flask
from flask_serversession import ServerSession, session

encryption_key = urlsafe_b64encode(os.urandom(32)).decode()  # yours, from a safe place

app = Flask(__name__)
app.config.update(
    SECRET_KEY="change me",
    SESSION_ENCRYPTION_KEY=encryption_key,
    SESSION_MIGRATE_FROM={"SESSION_ENCRYPTION_KEY": None},
    SESSION_MIGRATE_UNTIL="2099-12-31",
)
ServerSession(app)


@app.get("/")
def index():
    return f"Hello, {session.user}."
