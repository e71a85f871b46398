"""The same small application, once for each kind of session it is measured with."""

from __future__ import annotations

import functools
import itertools
import typing as t
import warnings
from collections.abc import Callable

import msgpack  # type: ignore[import-untyped]
from flask import Flask
from flask import session
from werkzeug.test import EnvironBuilder

from flask_serversession import ServerSession

#: What belongs into ``app.config``.
Config: t.TypeAlias = dict[str, t.Any]
Environ: t.TypeAlias = dict[str, t.Any]

#: The kinds of request, and what their views do with the session.
KINDS = {
    "unseen": "the session is not looked at",
    "read": "a value is read",
    "nested": "a value inside of a dict is read",
    "change": "a value is changed",
    "inside": "a value inside of a dict is changed",
    "login": "a session with a user is begun",
    "destroy": "the session is ended",
}
#: The sizes of the sessions: about so many bytes, as msgpack.
SIZES = {"100B": 100, "2KB": 2_000, "50KB": 50_000}
#: One more, for how the cost grows with what a session holds.
LARGEST = {"1MB": 1_000_000}

_users = itertools.count(10_000)


@functools.cache
def make_data(size: int) -> dict[str, t.Any]:
    """Give what a session of about so many bytes holds: a cart."""
    items: list[dict[str, t.Any]] = []
    data: dict[str, t.Any] = {"n": 0, "cart": {"total": 1990, "items": items}}
    packer = msgpack.Packer()
    length = len(packer.pack({**data, "_user_id": "user-10000"}))
    while True:
        item = {"sku": f"A-{len(items):04}", "price": 1990 + len(items), "count": 1}
        length += len(packer.pack(item))
        if items and length > size:
            return data
        items.append(item)


def make_app(setup: Callable[[Flask], object] | None = None) -> Flask:
    """Make the application.

    :param setup: Gives it its sessions. Without it there are none.
    """
    app = Flask(__name__)
    has_session = setup is not None
    if setup is not None:
        app.secret_key = "not a secret"
        setup(app)

    if not has_session:

        def view(size: str = "") -> str:
            return "ok"

        for kind in KINDS:
            rule = f"/{kind}/<size>" if kind == "login" else f"/{kind}"
            app.add_url_rule(rule, kind, view)
        return app

    sizes = {**SIZES, **LARGEST}

    @app.get("/unseen")
    def unseen() -> str:
        return "ok"

    @app.get("/read")
    def read() -> str:
        assert session["_user_id"]
        return "ok"

    @app.get("/nested")
    def nested() -> str:
        assert session["cart"]["total"]
        return "ok"

    @app.get("/change")
    def change() -> str:
        session["n"] += 1
        return "ok"

    @app.get("/inside")
    def inside() -> str:
        session["cart"]["total"] += 1
        if setup is use_cookie:
            session.modified = True  # it finds out in no other way
        return "ok"

    @app.get("/login/<size>")
    def login(size: str) -> str:
        session.update(make_data(sizes[size]))
        session["_user_id"] = f"user-{next(_users)}"
        return "ok"

    @app.get("/destroy")
    def destroy() -> str:
        session.clear()
        return "ok"

    return app


def use_cookie(app: Flask) -> None:
    """Leave it to Flask: the session is the cookie."""


def use_ours(config: Config) -> Callable[[Flask], object]:
    """Use this library."""

    def setup(app: Flask) -> None:
        app.config.update(config)
        # An application in production, but without the hint about its memory.
        app.testing = True
        ServerSession(app)
        app.testing = False

    return setup


def make_environ(path: str, cookie: str = "") -> Environ:
    headers = {"Cookie": cookie} if cookie else {}
    environ: Environ = EnvironBuilder(path=path, headers=headers).get_environ()
    return environ


class Browser:
    """Calls an application, with nothing in between."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.headers: list[tuple[str, str]] = []
        self.status = ""

    def start_response(
        self, status: str, headers: t.Any, exc_info: t.Any = None
    ) -> t.Any:
        self.status, self.headers = status, headers

    def call(self, environ: Environ) -> None:
        """Answer one request, as a WSGI server would."""
        body = self.app.wsgi_app(environ, self.start_response)
        for _ in body:
            pass
        body.close()  # type: ignore[attr-defined]
        if self.status != "200 OK":
            raise RuntimeError(f"{environ['PATH_INFO']} answered {self.status}")

    def log_in(self, size: str) -> str:
        """Begin a session.

        :return: The ``Cookie`` header for it.
        """
        with warnings.catch_warnings():
            # A cookie of 50 KB, which no browser takes.
            warnings.simplefilter("ignore")
            self.call(make_environ(f"/login/{size}"))
        cookies = [value for name, value in self.headers if name == "Set-Cookie"]
        return "; ".join(cookie.partition(";")[0] for cookie in cookies)

    def environs(self, kind: str, size: str, count: int, cookie: str) -> list[Environ]:
        """Give so many requests; each can be answered once."""
        if kind == "destroy":
            return [make_environ("/destroy", self.log_in(size)) for _ in range(count)]
        path = f"/login/{size}" if kind == "login" else f"/{kind}"
        environ = make_environ(path, "" if kind == "login" else cookie)
        return [environ.copy() for _ in range(count)]
