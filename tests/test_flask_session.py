"""What README.rst and the documentation say of Flask-Session 0.8, tried on it."""

from __future__ import annotations

import collections
import sys
import typing as t
from collections.abc import Callable

import pytest
from cachelib import SimpleCache
from flask import Flask
from flask import session
from flask_session import Session
from flask_session.base import MsgSpecSerializer
from werkzeug.test import Client

View = Callable[[], t.Any]


class CountingCache(SimpleCache):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(threshold=sys.maxsize)
        self.calls: collections.Counter[str] = collections.Counter()

    def get(self, key: str) -> t.Any:
        self.calls["get"] += 1
        return super().get(key)

    def set(self, *args: t.Any, **kwargs: t.Any) -> bool:
        self.calls["set"] += 1
        return super().set(*args, **kwargs)


class Site:
    """An application with Flask-Session's sessions, and one visitor."""

    def __init__(self, **settings: t.Any) -> None:
        self.cache = CountingCache()
        self.app = Flask("site")
        self.app.config.update(
            SECRET_KEY="a secret",
            SESSION_TYPE="cachelib",
            SESSION_CACHELIB=self.cache,
            **settings,
        )
        Session(self.app)

    def visit(self, view: View, cookie: str = "") -> str:
        """Run a function as a view, and give the cookie that the visitor has then."""
        path = f"/{len(self.app.view_functions)}"
        self.app._got_first_request = False

        def run() -> str:
            return str(view() or "")

        self.app.add_url_rule(path, endpoint=path, view_func=run)
        client = Client(self.app)
        if cookie:
            client.set_cookie("session", cookie)
        assert client.get(path).status_code == 200
        found = client.get_cookie("session")
        return "" if found is None else found.value

    def content(self, cookie: str) -> dict[str, t.Any]:
        found: dict[str, t.Any] = {}
        self.visit(lambda: found.update(session), cookie)
        found.pop("_permanent", None)
        return found


def ignore() -> None:
    pass


def test_the_last_request_to_finish_wins() -> None:
    site = Site()
    cookie = site.visit(lambda: session.update(n=1))

    def change_while_another_request_does() -> None:
        session["mine"] = True
        site.visit(lambda: session.update(theirs=True), cookie)

    site.visit(change_while_another_request_does, cookie)
    assert site.content(cookie) == {"n": 1, "mine": True}


def test_a_running_request_brings_back_what_was_logged_out() -> None:
    site = Site()
    cookie = site.visit(lambda: session.update(_user_id="ada"))

    def change_while_the_visitor_logs_out() -> None:
        session["n"] = 1
        site.visit(lambda: session.clear(), cookie)
        assert site.content(cookie) == {}

    site.visit(change_while_the_visitor_logs_out, cookie)
    assert site.content(cookie) == {"_user_id": "ada", "n": 1}


@pytest.mark.parametrize(("is_refreshed", "writes"), [(True, 1), (False, 0)])
def test_a_session_that_is_not_looked_at_is_read_and_by_default_written(
    is_refreshed: bool, writes: int
) -> None:
    site = Site(SESSION_REFRESH_EACH_REQUEST=is_refreshed)
    cookie = site.visit(lambda: session.update(n=1))
    site.cache.calls.clear()
    site.visit(ignore, cookie)
    assert (site.cache.calls["get"], site.cache.calls["set"]) == (1, writes)


def test_the_store_has_the_id_and_a_log_in_does_not_change_it() -> None:
    site = Site()
    cookie = site.visit(lambda: session.update(cart=["pen"]))
    assert site.visit(lambda: session.update(_user_id="ada"), cookie) == cookie
    assert f"session:{cookie}" in site.cache._cache
    assert site.content(cookie) == {"cart": ["pen"], "_user_id": "ada"}


def test_a_tuple_comes_back_as_a_list() -> None:
    serializer = MsgSpecSerializer(Flask("site"), "msgpack")
    assert serializer.decode(serializer.encode({"a": (1, 2)})) == {"a": [1, 2]}
