"""Registration, log-in and log-out, through Flask-Login, and the change of a password.

A shop on the internet would also limit how often somebody may try.
"""

from __future__ import annotations

import re

from flask import Blueprint
from flask import current_app
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from flask_login import login_required
from flask_login import login_user
from flask_login import logout_user

from flask_serversession import Capability
from flask_serversession import session

from .extensions import login_manager
from .extensions import server_session
from .users import DEMO_NAME
from .users import DEMO_PASSWORD
from .users import NameTakenError
from .users import User
from .users import users

blueprint = Blueprint("auth", __name__)

MIN_PASSWORD = 8
MAX_PASSWORD = 200
PASSWORD_RULE = f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters."


#: Why somebody is logged out, in words. Of other reasons, such as a cookie that nobody
#: here has made, there is nothing to say.
REASONS = {
    "expired": "Your session ended, because you have not been here for a while.",
    "revoked": "Your session was ended from another device, or by an administrator.",
    "limit": "Your session ended, because you have logged in on many other devices.",
    "logged out": "You have logged out here before.",
    "unproven": (
        "Your session ended, because this browser could not prove that it began here."
    ),
    "replaced": "Your session ended, because somebody else has logged in here since.",
    "unknown": "Your session has ended.",
}


@login_manager.user_loader
def load_user(user_id: str) -> User | None:
    """Find who is logged in, once a request: ``current_user`` from then on."""
    return users().get(user_id)


@login_manager.unauthorized_handler
def ask_to_log_in() -> ResponseReturnValue:
    """Lead from a page that needs a user to the log-in, and back."""
    # Now or never: a message begins a new session, with which the browser comes next.
    reason = REASONS.get(session.ended_because or "", "")
    flash(f"{reason} Log in to see that page.".lstrip(), "info")
    # A form is not sent again; the address that it was sent to may show nothing.
    target = request.full_path.removesuffix("?") if request.method == "GET" else None
    return redirect(url_for("auth.log_in", next=target))


@blueprint.get("/log-in")
def log_in() -> ResponseReturnValue:
    """Show the form."""
    return _log_in_page()


@blueprint.post("/log-in")
def log_in_post() -> ResponseReturnValue:
    """Check the password."""
    user = users().authenticate(
        request.form.get("name", ""), request.form.get("password", "")[:MAX_PASSWORD]
    )

    if user is None:
        return _log_in_page("The name or the password is wrong."), 422

    _start(user, is_remembered="remember" in request.form)
    flash(f"Welcome, {user.name}.", "success")
    return redirect(_next_page())


@blueprint.get("/register")
def register() -> ResponseReturnValue:
    """Show the form."""
    return _register_page()


@blueprint.post("/register")
def register_post() -> ResponseReturnValue:
    """Add a user, and log that one in."""
    name = request.form.get("name", "").strip()
    password = request.form.get("password", "")

    if not re.fullmatch(r"\w[\w.-]{1,29}", name):
        message = "A name has 2 to 30 letters, digits, dots, dashes or underscores."
        return _register_page(name_error=message), 422

    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        return _register_page(password_error=PASSWORD_RULE), 422

    try:
        user = users().add(name, password)
    except NameTakenError:
        message = "This name is taken. Choose another one."
        return _register_page(name_error=message), 422

    _start(user, is_remembered=False)
    flash(f"Welcome, {user.name}. You are registered and logged in.", "success")
    return redirect(_next_page())


@blueprint.post("/log-out")
def log_out() -> ResponseReturnValue:
    """End the session: the old id is dead, and so is every copy of the cookie."""
    logout_user()
    session.clear()
    session.destroy()
    # Goes into a new session, with a new id.
    flash("You are logged out.", "info")
    return redirect(url_for("shop.home"))


@blueprint.get("/password")
@login_required
def change_password() -> ResponseReturnValue:
    """Show the form."""
    return _password_page()


@blueprint.post("/password")
@login_required
def change_password_post() -> ResponseReturnValue:
    """Set another password, and log out everywhere else: who knew the old one too.

    The old one is asked for unless the log-in was a moment ago: whoever finds a browser
    that was left alone must not be able to take the account over.
    """
    old = request.form.get("old", "")[:MAX_PASSWORD]
    new = request.form.get("new", "")

    if not _is_fresh():
        if users().authenticate(current_user.name, old) is None:
            return _password_page(old_error="This is not your password."), 422
        session.mark_authenticated()

    if not MIN_PASSWORD <= len(new) <= MAX_PASSWORD:
        return _password_page(new_error=PASSWORD_RULE), 422

    # First, so that a backend that is down leaves everything as it was; then again,
    # for who has logged in with the old password in between.
    ended = _end_others()
    users().set_password(current_user, new)
    ended += _end_others()
    session.mark_authenticated()

    if Capability.USER_INDEX in server_session.backend.capabilities:
        flash(
            "Your password is changed, and you are logged out everywhere else;"
            f" sessions ended: {ended}.",
            "success",
        )
    else:
        flash(
            f"Your password is changed. The {server_session.backend.name} backend keeps"
            " no index of users, so your other sessions go on: log out there.",
            "warning",
        )

    return redirect(url_for("devices.show"))


def _is_fresh() -> bool:
    return session.is_fresh(current_app.config["LOG_IN_IS_FRESH_FOR"])


def _end_others() -> int:
    if Capability.USER_INDEX not in server_session.backend.capabilities:
        return 0

    return server_session.revoke_user(current_user.id, except_current=True)


def _start(user: User, is_remembered: bool) -> None:
    """Make the session the user's. It gets a new id, because its user changes.

    ``login_user(user, remember=True)`` would give another cookie, which logs in again
    also where the session was ended on purpose; a permanent session does not.
    """
    if session.user not in (None, str(user.id)):
        # Nothing of one user's session is for the next one.
        session.regenerate(keep_data=False)

    login_user(user)
    session.permanent = is_remembered


def _next_page() -> str:
    """Give where to go after the log-in: a page of this site, whatever was asked."""
    target = request.values.get("next", "")
    # Browsers read "//host", "/\host" and, since they leave out control characters,
    # "/<tab>/host" as other sites.
    is_ours = (
        target.startswith("/")
        and not target.startswith("//")
        and "\\" not in target
        and target.isprintable()
    )
    return target if is_ours else url_for("shop.home")


def _log_in_page(error: str | None = None) -> str:
    return render_template(
        "log_in.html",
        error=error,
        ended_because=REASONS.get(session.ended_because or ""),
        name=request.form.get("name", ""),
        next=request.values.get("next", ""),
        demo_name=DEMO_NAME,
        demo_password=DEMO_PASSWORD,
    )


def _register_page(
    name_error: str | None = None, password_error: str | None = None
) -> str:
    return render_template(
        "register.html",
        name_error=name_error,
        password_error=password_error,
        name=request.form.get("name", ""),
        next=request.values.get("next", ""),
        min_password=MIN_PASSWORD,
        max_password=MAX_PASSWORD,
    )


def _password_page(old_error: str | None = None, new_error: str | None = None) -> str:
    return render_template(
        "password.html",
        is_fresh=_is_fresh(),
        old_error=old_error,
        new_error=new_error,
        min_password=MIN_PASSWORD,
        max_password=MAX_PASSWORD,
    )
