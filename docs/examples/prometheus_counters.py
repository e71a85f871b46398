from prometheus_client import Counter

from flask import Flask
from flask_serversession import ServerSession, signals

EVENTS = Counter("sessions_events_total", "What happened to sessions.", ["event"])
REJECTED = Counter("sessions_rejected_total", "Cookies not accepted.", ["reason"])
FAILURES = Counter("sessions_failures_total", "The backend failed.", ["operation"])


def count_events(app):
    for name in ("created", "saved", "regenerated", "destroyed", "lost"):
        signal = getattr(signals, f"session_{name}")

        def receive(sender, _name=name, **more):
            EVENTS.labels(event=_name).inc()

        signal.connect(receive, app, weak=False)

    @signals.session_rejected.connect_via(app, weak=False)
    def receive_rejected(sender, reason, **more):
        REJECTED.labels(reason=reason).inc()

    @signals.backend_failed.connect_via(app, weak=False)
    def receive_failure(sender, operation, **more):
        FAILURES.labels(operation=operation).inc()


app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)
count_events(app)
