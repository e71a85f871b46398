from flask import Flask, redirect, render_template_string, request
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
app.config["SESSION_TRACK"] = ("user_agent", "remote_addr")
server_session = ServerSession(app)

PAGE = """
<h1>Your devices</h1>
<form method="post" action="/devices/end">
  <ul>
    {% for info in sessions %}
    <li>
      {{ info.meta.user_agent or "Unknown browser" }} at {{ info.meta.remote_addr }},
      last seen {{ info.last_seen_at.strftime("%d %b %Y, %H:%M") }} UTC
      {% if info.current %}
      <strong>(this device)</strong>
      {% else %}
      <button name="handle" value="{{ info.handle }}">End</button>
      {% endif %}
    </li>
    {% endfor %}
  </ul>
</form>
<form method="post" action="/devices/end-others">
  <button>Log out everywhere else</button>
</form>
"""


@app.before_request
def require_user():
    if request.path.startswith("/devices") and session.user is None:
        return "Log in first.", 401


@app.get("/devices")
def devices():
    return render_template_string(
        PAGE, sessions=server_session.sessions_of(session.user)
    )


@app.post("/devices/end")
def end():
    handle = request.form["handle"]
    # A handle is no secret: without this check, everybody could end every session.
    if handle not in {info.handle for info in server_session.sessions_of(session.user)}:
        return "There is no such session of yours.", 404
    server_session.revoke(handle)
    return redirect("/devices")


@app.post("/devices/end-others")
def end_others():
    server_session.revoke_user(session.user, except_current=True)
    return redirect("/devices")
