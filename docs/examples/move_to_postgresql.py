from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config.update(
    SECRET_KEY="change me",
    SESSION_BACKEND="sqlalchemy",
    SESSION_SQLALCHEMY_URL="postgresql+psycopg://shop:secret@localhost/shop",
    SESSION_MIGRATE_FROM={
        "SESSION_BACKEND": "redis",
        "SESSION_REDIS_URL": "redis://localhost:6379/0",
    },
    SESSION_MIGRATE_UNTIL="2099-12-31",
)
ServerSession(app)


@app.get("/")
def index():
    return f"Hello, {session.user}."
