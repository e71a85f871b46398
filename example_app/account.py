"""What the visitor's session holds, and what can be done with it."""

from __future__ import annotations

import json
from datetime import datetime
from datetime import timezone

from flask import Blueprint
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue

from flask_serversession import passive
from flask_serversession import session

from .extensions import server_session
from .words import in_words

blueprint = Blueprint("account", __name__)

#: What a page must not show, as whoever sees it could use it.
SECRET_KEYS = {"csrf_token"}


def backend_name() -> str:
    """Give the name of the backend in use."""
    return server_session.backend.name


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
        age=in_words(now - session.created_at),
        expires_at=session.expires_at,
        time_left=in_words(session.expires_at - now),
        is_touched="touched" in request.args,
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


@blueprint.get("/session/left")
@passive
def left() -> ResponseReturnValue:
    """Say how long somebody stays logged in; to ask prolongs nothing."""
    return {"seconds": _seconds_left()}


@blueprint.post("/session/stay")
def stay() -> ResponseReturnValue:
    """Count as activity, for who is still logged in."""
    if session.user is not None:
        session.touch()

    return {"seconds": _seconds_left()}


@blueprint.post("/session/destroy")
def destroy() -> ResponseReturnValue:
    """Delete the session now."""
    session.destroy()
    flash("Your session is destroyed. This is a new one.", "info")
    return redirect(url_for(".show"))


def _seconds_left() -> float:
    # A visitor who is not logged in cannot be logged out.
    return 0 if session.user is None else session.time_left.total_seconds()


def _shown(key: str, value: object) -> str:
    if key in SECRET_KEYS:
        return "••••••••"

    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
