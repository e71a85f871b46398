from flask import Flask
from flask_session import Session
from redis import Redis

app = Flask(__name__)
app.config.update(
    SECRET_KEY="change me",
    SESSION_TYPE="redis",
    SESSION_REDIS=Redis.from_url("redis://localhost:6379/0"),
)
Session(app)
