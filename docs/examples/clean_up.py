import logging

from flask import Flask
from flask_serversession import ServerSession

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)
logger = logging.getLogger("shop")


def clean_up():
    with app.app_context():
        deleted = server_session.prune(batch=2000)
    logger.info("%s expired sessions were deleted.", deleted)
    return deleted
