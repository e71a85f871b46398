"""What a visitor prefers: several keys that are set at once."""

from __future__ import annotations

from flask import Blueprint
from flask import abort
from flask import flash
from flask import redirect
from flask import render_template
from flask import request
from flask import url_for
from flask.typing import ResponseReturnValue

from flask_serversession import session

blueprint = Blueprint("preferences", __name__)

#: What can be chosen, and how it is called. The first one is the default.
CHOICES = {
    "theme": {"auto": "As my device", "light": "Light", "dark": "Dark"},
    "text": {"normal": "Normal", "large": "Large"},
}


def current() -> dict[str, str]:
    """Give what is chosen, defaults included."""
    return {key: session.get(key, next(iter(CHOICES[key]))) for key in CHOICES}


@blueprint.get("/preferences")
def show() -> ResponseReturnValue:
    """Show the form."""
    return render_template("preferences.html", choices=CHOICES)


@blueprint.post("/preferences")
def save() -> ResponseReturnValue:
    """Set several keys at once."""
    chosen = {key: request.form.get(key, "") for key in CHOICES}

    if any(value not in CHOICES[key] for key, value in chosen.items()):
        abort(400)

    session.update(chosen)
    flash("Your preferences are saved.", "success")
    return redirect(url_for(".show"))


@blueprint.post("/preferences/reset")
def reset() -> ResponseReturnValue:
    """Delete them all."""
    for key in CHOICES:
        session.pop(key, None)

    flash("Your preferences are as they were at the beginning.", "info")
    return redirect(url_for(".show"))
