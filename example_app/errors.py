"""Error pages, and the headers that every answer has.

They look as the visitor has chosen, and show the cart and the log-out, as other pages
do. Where the session cannot be read, they are as they would be for a stranger.
"""

from __future__ import annotations

from flask import Flask
from flask import Response
from flask import render_template
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from flask_serversession import BackendUnavailableError

from . import preferences

HEADERS = {
    # No scripts and styles but the files in static.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self';"
        " img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # Over HTTPS, Flask-WTF compares the referrer with the host.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

TEXTS = {
    403: (
        "This page is not for everybody",
        "It is for administrators. Log in as one to see it.",
    ),
    404: (
        "There is no such page",
        "It may have moved, or the address has a typing mistake.",
    ),
    405: (
        "That is not how this page works",
        "It answers to one of the forms only. Go back and use that.",
    ),
    413: ("That is too much", "Send less at once."),
    500: ("Something went wrong", "It is our fault, not yours. Try again."),
}


def init_app(app: Flask) -> None:
    """Register the handlers."""
    app.register_error_handler(HTTPException, show_error)
    app.register_error_handler(CSRFError, show_csrf_error)
    app.register_error_handler(BackendUnavailableError, show_unavailable)
    app.after_request(add_headers)


def add_headers(response: Response) -> Response:
    """Restrict what a browser does with an answer."""
    response.headers.update(HEADERS)

    if "Cache-Control" not in response.headers:  # static files bring their own
        response.headers["Cache-Control"] = "no-store"

    return response


def show_error(error: HTTPException) -> Response:
    """Show any error that has no page of its own."""
    default = (error.name, error.description or "")
    return _page(error, *TEXTS.get(error.code or 500, default))


def show_csrf_error(error: CSRFError) -> Response:
    """Show why a form was not accepted."""
    return _page(
        error,
        "This form was not accepted",
        "It was sent from another site, or from a page that has become too old: your"
        " session may have ended in between. Nothing was changed. Go back, reload the"
        " page and send it again.",
    )


def show_unavailable(error: BackendUnavailableError) -> Response:
    """Show that sessions cannot be read or stored; the header says when to retry."""
    return _page(
        error,
        "We will be back in a moment",
        "We cannot get at your session right now. It is not lost: your cart, your notes"
        " and your log-in are there again as soon as we are. What you just sent was"
        " not saved; try again in a few seconds.",
    )


def _page(error: HTTPException, title: str, text: str) -> Response:
    code = error.code or 500

    try:
        chosen = preferences.current()
        has_session = code < 500
    except BackendUnavailableError:
        chosen, has_session = {}, False

    # The error's own response has the right status and headers.
    page = render_template(
        "error.html",
        code=code,
        title=title,
        text=text,
        chosen=chosen,
        has_session=has_session,
    )
    response = Response(page, code)
    response.headers.extend(
        header for header in error.get_headers() if header[0] != "Content-Type"
    )
    # Not only after_request: when the backend fails as the session is stored, at the
    # very end of a request, this page takes the place of one that was finished.
    return add_headers(response)
