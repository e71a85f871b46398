from flask import Flask
from flask_serversession import ServerSession
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
server_session = ServerSession()


def create_app():
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="change me",
        SQLALCHEMY_DATABASE_URI="sqlite:///shop.db",
        SESSION_BACKEND="sqlalchemy",
        SESSION_SQLALCHEMY=db,
    )
    db.init_app(app)
    server_session.init_app(app)
    return app
