from flask import Flask
from flask_serversession import BackendUnavailableError, ServerSession, session
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.testing import CountingBackend

backend = CountingBackend(MemoryBackend())
app = Flask(__name__)
app.config.update(SECRET_KEY="change me", SESSION_BACKEND=backend)
ServerSession(app)
app.add_url_rule("/", view_func=lambda: f"Hello, {session.get('name')}.")
client = app.test_client()
with client.session_transaction() as content:
    content["name"] = "ada"


@app.errorhandler(BackendUnavailableError)
def unavailable(error):
    return "We are back in a minute.", 503, {"Retry-After": str(error.retry_after)}
