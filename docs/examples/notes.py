from flask import Flask
from flask_serversession import ServerSession, SessionTooLargeError, session

app = Flask(__name__)
app.config.update(SECRET_KEY="change me", SESSION_MAX_SIZE=1000)
ServerSession(app)


@app.post("/notes/<text>")
def add_note(text):
    session.setdefault("notes", []).append(text)
    try:
        session.save()
    except SessionTooLargeError:
        session.reload()
        return "There is no room for more notes.", 413
    return "Noted."
