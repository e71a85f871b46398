from flask import Flask
from flask_serversession import ServerSession
from flask_serversession.record import decode_record
from redis import Redis

app = Flask(__name__)
app.config.update(
    SECRET_KEY="change me",
    SESSION_BACKEND="redis",
    SESSION_REDIS_URL="redis://localhost:6379/0",
)
ServerSession(app)

with app.test_client().session_transaction() as session:
    session["_user_id"] = "ada"
    handle = session.handle

with Redis.from_url("redis://localhost:6379/0") as redis:
    value = redis.get(f"session:{handle}")
    sessions = redis.zrange("session:user:ada:sessions", 0, -1)
assert decode_record(value[:-16]).user == "ada"
assert sessions == [handle.encode()]
