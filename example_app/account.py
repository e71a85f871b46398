"""What the visitor's session holds, and what can be done with it."""

from __future__ import annotations

import json
from datetime import datetime
from datetime import timedelta
from datetime import timezone

from flask import Blueprint
from flask import abort
from flask import current_app
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue

from flask_serversession import NotSupportedError
from flask_serversession import SessionInfo
from flask_serversession import session

from .auth import current_user
from .extensions import server_session

blueprint = Blueprint("account", __name__)

#: What a page must not show, as whoever sees it could use it.
SECRET_KEYS = {"csrf_token"}


def backend_name() -> str:
    """Give the name of the backend in use."""
    name: str = current_app.extensions["serversession"].backend.name
    return name


@blueprint.get("/session")
def show() -> ResponseReturnValue:
    """Show the session: never its id, which is as good as a password."""
    now = datetime.now(timezone.utc)
    return render_template(
        "session.html",
        content={key: _shown(key, value) for key, value in session.items()},
        handle=session.handle,
        is_new=session.new,
        is_permanent=session.permanent,
        created_at=session.created_at,
        age=_in_words(now - session.created_at),
        expires_at=session.expires_at,
        time_left=_in_words(session.expires_at - now),
        is_touched="touched" in request.args,
        others=_other_sessions(),
    )


@blueprint.post("/session/regenerate")
def regenerate() -> ResponseReturnValue:
    """Change the id, and keep everything else."""
    session.regenerate()
    flash("Your session has a new id. The old one is dead.", "success")
    return redirect(url_for(".show"))


@blueprint.post("/session/permanent")
def make_permanent() -> ResponseReturnValue:
    """Let the session outlive the browser."""
    session.permanent = True
    flash("Your session is permanent: it stays when you close the browser.", "success")
    return redirect(url_for(".show"))


@blueprint.post("/session/temporary")
def make_temporary() -> ResponseReturnValue:
    """Let the session end with the browser."""
    session.permanent = False
    flash("Your session is temporary: it ends with the browser.", "success")
    return redirect(url_for(".show"))


@blueprint.post("/session/touch")
def touch() -> ResponseReturnValue:
    """Count as activity. A flash message would be a change, and more than that."""
    session.touch()
    return redirect(url_for(".show", touched=1))


@blueprint.post("/session/destroy")
def destroy() -> ResponseReturnValue:
    """Delete the session now."""
    session.destroy()
    flash("Your session is destroyed. This is a new one.", "info")
    return redirect(url_for(".show"))


@blueprint.post("/session/end")
def end_one() -> ResponseReturnValue:
    """End a session that the same user has elsewhere."""
    handle = request.form.get("handle", "")

    # A handle is no secret: whose session it names has to be checked.
    if handle not in {info.handle for info in _other_sessions() or ()}:
        abort(404)

    server_session.revoke(handle)
    flash("That session is ended.", "success")
    return redirect(url_for(".show"))


@blueprint.post("/session/end-others")
def end_others() -> ResponseReturnValue:
    """Log out everywhere else."""
    user = current_user()

    if user is None or _other_sessions() is None:
        abort(404)

    ended = server_session.revoke_user(user.id, except_current=True)
    flash(f"Logged out everywhere else; sessions ended: {ended}.", "success")
    return redirect(url_for(".show"))


def _other_sessions() -> list[SessionInfo] | None:
    """List what else the user has; ``None`` if the backend cannot tell."""
    user = current_user()

    if user is None:
        return []

    try:
        found = server_session.sessions_of(user.id)
    except NotSupportedError:  # it keeps no index of users
        return None

    return [info for info in found if not info.current]


def _shown(key: str, value: object) -> str:
    if key in SECRET_KEYS:
        return "••••••••"

    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _in_words(duration: timedelta) -> str:
    # To the minute: a second less than a day is a day to whoever has just set it.
    minutes = round(duration.total_seconds() / 60)

    for unit, size in (("day", 24 * 60), ("hour", 60), ("minute", 1)):
        if (number := minutes // size) > 0:
            return f"{number} {unit}{'s' if number > 1 else ''}"

    return "less than a minute"
