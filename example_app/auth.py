"""Registration, log-in and log-out.

A shop on the internet would also limit how often somebody may try.
"""

from __future__ import annotations

import re

from flask import Blueprint
from flask import flash
from flask import g
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue

from flask_serversession import session

from .users import DEMO_NAME
from .users import DEMO_PASSWORD
from .users import NameTakenError
from .users import User
from .users import users

blueprint = Blueprint("auth", __name__)

# What SESSION_USER_KEY is by default: the extension and its tools read it as well.
USER_KEY = "_user_id"

MIN_PASSWORD = 8
MAX_PASSWORD = 200


def current_user() -> User | None:
    """Give who is logged in, asked for once a request."""
    if "user" not in g:
        user_id = session.get(USER_KEY)
        g.user = None if user_id is None else users().get(user_id)

    user: User | None = g.user
    return user


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
        message = f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters."
        return _register_page(password_error=message), 422

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
    session.clear()
    session.destroy()
    # Goes into a new session, with a new id.
    flash("You are logged out.", "info")
    return redirect(url_for("shop.home"))


def _start(user: User, is_remembered: bool) -> None:
    """Make the session the user's. It gets a new id, because its user changes."""
    if session.user not in (None, str(user.id)):
        # Nothing of one user's session is for the next one.
        session.regenerate(keep_data=False)

    session[USER_KEY] = str(user.id)
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
