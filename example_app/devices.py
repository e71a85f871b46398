"""Where a user is logged in: every session, and a way to end each."""

from __future__ import annotations

from flask import Blueprint
from flask import abort
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from flask_login import login_required

from flask_serversession import Capability
from flask_serversession import SessionInfo
from flask_serversession import session

from .auth import log_out
from .extensions import server_session
from .words import device

blueprint = Blueprint("devices", __name__)

#: How many are shown on one page.
MAX_SHOWN = 100


@blueprint.get("/devices")
@login_required
def show() -> ResponseReturnValue:
    """List them."""
    return _page()


@blueprint.post("/devices/end")
@login_required
def end() -> ResponseReturnValue:
    """End one."""
    handle = request.form.get("handle", "")
    found = {info.handle: info for info in sessions_of(current_user.id) or ()}

    # A handle is no secret, so whose session it names has to be checked: what is not
    # among the user's own is answered as what does not exist.
    if (info := found.get(handle)) is None:
        return _page("There is no such session of yours. It may have ended."), 404

    if info.current:
        return log_out()

    server_session.revoke(handle)
    flash(f"The session on {device_of(info)} is ended.", "success")
    return redirect(url_for(".show"))


@blueprint.post("/devices/end-others")
@login_required
def end_others() -> ResponseReturnValue:
    """Log out everywhere else."""
    if not can_list():
        abort(404)

    ended = server_session.revoke_user(current_user.id, except_current=True)
    flash(f"Logged out everywhere else; sessions ended: {ended}.", "success")
    return redirect(url_for(".show"))


def can_list() -> bool:
    """Whether the backend can tell which sessions belong to a user."""
    return Capability.USER_INDEX in server_session.backend.capabilities


def sessions_of(user_id: int) -> list[SessionInfo] | None:
    """List a user's sessions, this one first; ``None`` if the backend cannot tell."""
    if not can_list():
        return None

    return sorted(
        server_session.sessions_of(user_id),
        key=lambda info: (info.current, info.last_seen_at),
        reverse=True,
    )


def device_of(info: SessionInfo) -> str:
    """Give a name to the browser that a session is used with."""
    return str(device(info.meta.get("user_agent", "")))


def _page(error: str | None = None) -> str:
    found = sessions_of(current_user.id)
    can_tell = found is not None

    if found is None:
        # Of this one alone every backend can tell.
        this = server_session.find(session.handle)
        found = [] if this is None else [this]

    return render_template(
        "devices.html",
        sessions=found[:MAX_SHOWN],
        total=len(found),
        can_tell=can_tell,
        error=error,
    )
