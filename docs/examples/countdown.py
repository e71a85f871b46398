from flask import Flask, render_template_string
from flask_serversession import ServerSession, passive, session

app = Flask(__name__)
app.config.update(SECRET_KEY="change me", SESSION_IDLE_TIMEOUT=600)
ServerSession(app)

PAGE = """
<dialog id="countdown" data-left="/session/left" data-stay="/session/stay">
  <p>You will be logged out in <span>0</span> seconds.</p>
  <button>Stay</button>
</dialog>
<script src="/static/countdown.js" defer></script>
"""


@app.get("/session/left")
@passive
def left():
    return {"seconds": session.time_left.total_seconds()}


@app.post("/session/stay")
def stay():
    if session.user is not None:
        session.touch()
    return {"seconds": session.time_left.total_seconds()}


@app.get("/")
def home():
    return render_template_string(PAGE) if session.user else "You are not logged in."
