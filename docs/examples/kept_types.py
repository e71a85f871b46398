from datetime import datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from flask import Flask
from flask_serversession import ServerSession

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)

content = {
    "cart": {17: ("pen", Decimal("1.20"))},
    "seen": {3, 5, 8},
    "until": datetime(2030, 5, 17, 12, 30, 0, 1, tzinfo=ZoneInfo("Europe/Vienna")),
    "delay": timedelta(seconds=1.5),
}
client = app.test_client()
with client.session_transaction() as session:
    session.update(content)
with client.session_transaction() as session:
    assert session == content
    assert type(session["cart"][17]) is tuple
