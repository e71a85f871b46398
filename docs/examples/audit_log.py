import functools
import json
import logging

from flask import Flask, has_request_context, request
from flask_serversession import ServerSession, session, signals

audit = logging.getLogger("shop.audit")

EVENTS = [
    signals.session_created,
    signals.session_regenerated,
    signals.session_destroyed,
    signals.session_lost,
    signals.session_rejected,
    signals.backend_failed,
    signals.backend_recovered,
]


def write(event, sender, handle, user, **details):
    line = {"event": event, "session": handle, "user": user, **details}
    if has_request_context():  # `flask sessions revoke` has none
        line["address"] = request.remote_addr
        line["path"] = request.path
    audit.info(json.dumps(line, default=str))


def keep_audit_log(app):
    for signal in EVENTS:
        signal.connect(functools.partial(write, signal.name), app, weak=False)


app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)
keep_audit_log(app)


@app.post("/log-in")
def log_in():
    session["_user_id"] = "ada"
    return ""
