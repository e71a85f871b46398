from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config.update(SECRET_KEY="change me", SESSION_MAX_PER_USER=2)
ServerSession(app)


@app.post("/log-in")
def log_in():
    session["_user_id"] = "ada"
    return ""


@app.get("/")
def index():
    return f"Hello, {session.user or 'stranger'}."


browsers = [app.test_client() for _ in range(3)]
for browser in browsers:
    browser.post("/log-in")

assert [browser.get("/").text for browser in browsers] == [
    "Hello, stranger.",
    "Hello, ada.",
    "Hello, ada.",
]
