"""For administrators: how many sessions there are, and whose."""

from __future__ import annotations

import itertools
import typing as t
from datetime import datetime

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

from .devices import MAX_SHOWN
from .devices import can_list
from .devices import device_of
from .devices import sessions_of
from .extensions import server_session
from .users import User
from .users import users

blueprint = Blueprint("admin", __name__, url_prefix="/admin")

#: Who is logged in is found by going through all sessions, up to so many of them.
MAX_LOOKED_AT = 10_000


class Presence(t.NamedTuple):
    """A user who is logged in somewhere."""

    user: User
    sessions: int
    last_seen_at: datetime


class Overview(t.NamedTuple):
    """Who is logged in."""

    users: int
    anonymous: int
    #: Those who were seen last.
    latest: list[Presence]
    #: There are more sessions than were looked at.
    is_partial: bool


@blueprint.before_request
@login_required
def check() -> None:
    """Let nobody else in, whatever the page."""
    if not current_user.is_administrator:
        abort(403)


@blueprint.get("")
def show() -> ResponseReturnValue:
    """Show numbers, who is logged in, and the sessions of one user."""
    name = request.args.get("name", "").strip()
    user = users().find(name) if name else None
    found = None if user is None else sessions_of(user.id)
    can_count = Capability.COUNT in server_session.backend.capabilities
    return render_template(
        "admin.html",
        count=server_session.count() if can_count else None,
        registered=users().count(),
        overview=_overview(),
        name=name,
        user=user,
        sessions=None if found is None else found[:MAX_SHOWN],
        total=len(found or ()),
        can_list=can_list(),
    )


@blueprint.post("/end")
def end() -> ResponseReturnValue:
    """End any session but the administrator's own, which has a log-out."""
    handle = request.form.get("handle", "")
    info = server_session.find(handle)
    user = users().get(info.user) if info is not None and info.user else None

    if info is None or user is None or info.current:
        abort(404)

    server_session.revoke(handle)
    flash(f"The session of {user.name} on {device_of(info)} is ended.", "success")
    return redirect(url_for(".show", name=user.name))


@blueprint.post("/log-out")
def log_out() -> ResponseReturnValue:
    """End all sessions of a user, but not the one that asks for it."""
    user = users().find(request.form.get("name", ""))

    if user is None or not can_list():
        abort(404)

    ended = server_session.revoke_user(user.id, except_current=True)
    where = "everywhere else" if user == current_user else "everywhere"
    flash(f"{user.name} is logged out {where}; sessions ended: {ended}.", "success")
    return redirect(url_for(".show", name=user.name))


def _overview() -> Overview | None:
    """Go through the sessions; ``None`` if the backend cannot enumerate them."""
    if Capability.ITERATE not in server_session.backend.capabilities:
        return None

    sessions: dict[str, int] = {}
    last_seen: dict[str, datetime] = {}
    anonymous = looked_at = 0

    # One more shows that there are more.
    for info in itertools.islice(server_session.sessions(), MAX_LOOKED_AT + 1):
        looked_at += 1

        if info.user is None:
            anonymous += 1
        else:
            sessions[info.user] = sessions.get(info.user, 0) + 1
            last_seen[info.user] = max(
                info.last_seen_at, last_seen.get(info.user, info.last_seen_at)
            )

    latest = sorted(last_seen, key=last_seen.__getitem__, reverse=True)[:MAX_SHOWN]
    return Overview(
        users=len(sessions),
        anonymous=anonymous,
        latest=[
            Presence(user, sessions[user_id], last_seen[user_id])
            for user_id in latest
            if (user := users().get(user_id)) is not None
        ],
        is_partial=looked_at > MAX_LOOKED_AT,
    )
