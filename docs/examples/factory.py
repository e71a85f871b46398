from flask import Flask
from flask_serversession import ServerSession

server_session = ServerSession()


def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()  # FLASK_SECRET_KEY and so on
    server_session.init_app(app)
    return app
