from pathlib import Path

from flask import Flask
from flask_serversession import ServerSession
from flask_serversession.record import decode_record

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)

with app.test_client().session_transaction() as session:
    session["_user_id"] = "ada"
    handle = session.handle

path = Path(app.instance_path, "sessions", handle[:2], f"session%3a{handle}")
record = decode_record(path.read_bytes())
assert record.user == "ada"
assert record.expires_at == path.stat().st_mtime
