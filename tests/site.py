"""A small site whose views are written in the tests that visit them."""

from __future__ import annotations

import collections
import itertools
import typing as t
from collections.abc import Callable
from pathlib import Path

import flask
from werkzeug.test import TestResponse

from flask_serversession import ServerSession
from flask_serversession.ids import key_of
from flask_serversession.operator import AppState
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Presented

Action = Callable[[], t.Any]


def present(values: t.Sequence[str], seen_at: float) -> Presented:
    """Give the cookies of a request that came with these."""
    header = "; ".join(f"session={value}" for value in values)
    return Presented(header, "session", seen_at)


class Site:
    """An application, its backend wrapped in a counter, and a clock to set."""

    def __init__(
        self,
        config: t.Mapping[str, t.Any],
        clock: Callable[[], float] | None = None,
        **settings: t.Any,
    ) -> None:
        self.clock = clock or FakeClock()
        first = flask.Flask("site", instance_path=str(Path("/nonexistent/instance")))
        first.config.update(SECRET_KEY="a secret", TESTING=True, **config)
        ServerSession(first, clock=self.clock)
        inner = first.extensions["serversession"].backend
        self.backend = CountingBackend(inner)
        self.app = flask.Flask("site", instance_path="/nonexistent/instance")
        self.app.config.update(SECRET_KEY="a secret", TESTING=True)
        self.app.config.update(
            {
                key: value
                for key, value in config.items()
                if key in ("SESSION_KEY_PREFIX",)
            }
        )
        self.app.config.update(SESSION_BACKEND=self.backend)
        self.app.config.update(settings)
        self.extension = ServerSession(self.app, clock=self.clock)
        self._actions: dict[str, Action] = {}
        self._numbers = itertools.count()
        self.app.add_url_rule(
            "/run/<token>", view_func=self._run, methods=["GET", "POST"]
        )

    def _run(self, token: str) -> flask.Response:
        result = self._actions.pop(token)()
        if isinstance(result, flask.Response):
            return result
        return flask.make_response("" if result is None else str(result))

    @property
    def state(self) -> AppState:
        return t.cast(AppState, self.app.extensions["serversession"])

    def browser(self) -> Browser:
        return Browser(self)

    def add(self, action: Action) -> str:
        token = str(next(self._numbers))
        self._actions[token] = action
        return f"/run/{token}"

    def has_run(self, path: str) -> bool:
        return path.rpartition("/")[2] not in self._actions

    def cookie_name(self) -> str:
        return t.cast(str, self.app.config["SESSION_COOKIE_NAME"])


class Browser:
    """A client with a cookie jar."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.client = site.app.test_client()

    def twin(self) -> Browser:
        """Give another browser that has the same cookie."""
        twin = self.site.browser()
        twin.cookie = self.cookie
        return twin

    def visit(self, action: Action, **options: t.Any) -> TestResponse:
        """Run a function as the view of a request of this browser."""
        path = self.site.add(action)
        client = self.client
        if "Cookie" in options.get("headers", ()):
            # The client would send what is in its jar instead.
            client = self.site.app.test_client(use_cookies=False)
        response = client.get(path, **options)
        # Else whatever it asserts would never be noticed.
        assert self.site.has_run(path)
        return response

    def ignore(self, **options: t.Any) -> TestResponse:
        """Make a request that does not look at the session."""
        return self.visit(lambda: "ignored", **options)

    def set(self, **values: t.Any) -> TestResponse:
        return self.visit(lambda: flask.session.update(values))

    def read(self) -> dict[str, t.Any]:
        """Give what the session holds, as a later request sees it."""
        found: dict[str, t.Any] = {}
        self.visit(lambda: found.update(flask.session))
        return found

    @property
    def cookie(self) -> str | None:
        """The value of the session cookie, as a browser keeps it."""
        cookie = self.client.get_cookie(self.site.cookie_name())
        return None if cookie is None else cookie.value

    @cookie.setter
    def cookie(self, value: str | None) -> None:
        if value is None:
            self.client.delete_cookie(self.site.cookie_name())
        else:
            self.client.set_cookie(self.site.cookie_name(), value)

    @property
    def id(self) -> str:
        assert self.cookie is not None
        return self.cookie.rsplit(".", 2)[0]

    def costs(self, action: Action, **options: t.Any) -> tuple[dict[str, int], str]:
        """Visit, and give the backend operations and what became of the cookie."""
        with self.site.backend.counting() as calls:
            response = self.visit(action, **options)
        assert response.status_code == 200, response.get_data(as_text=True)
        return dict(collections.Counter(calls)), cookie_of(response, self.site)


def cookie_of(response: TestResponse, site: Site) -> str:
    """Say what a response does to the session cookie: "none", "set" or "deleted"."""
    headers = [
        header
        for header in response.headers.getlist("Set-Cookie")
        if header.startswith(f"{site.cookie_name()}=")
    ]
    assert len(headers) <= 1
    if not headers:
        return "none"
    return "deleted" if headers[0].startswith(f"{site.cookie_name()}=;") else "set"


def start(site: Site, **values: t.Any) -> Browser:
    """Give a browser that has a session."""
    browser = site.browser()
    browser.set(**values)
    return browser


def key(browser: Browser) -> str:
    """Give the key of a browser's session."""
    return key_of(browser.id, browser.site.state.config.key_prefix)


def handle_of(browser: Browser) -> str:
    """Give the handle of a browser's session."""
    return key_of(browser.id, "")


def advance(site: Site, seconds: float) -> None:
    """Let time pass."""
    t.cast(FakeClock, site.clock).advance(seconds)


def once(site: Site, when: str, operation: str, action: Action) -> None:
    """Let something happen before or after the next operation of that name."""
    hooks = getattr(site.backend, when)

    def hook() -> None:
        del hooks[operation]
        action()

    hooks[operation] = hook
