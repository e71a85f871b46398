"""The store fails: it is killed, hangs, is full, read-only, locked or damaged.

Whoever does not use the session notices nothing, everybody else waits once and is told
so, no failed write looks like a success, and all are back when the store is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import logging
import os
import pickle
import pwd
import random
import resource
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import flask
import pytest
from flask import session
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from flask_serversession import BackendUnavailableError
from flask_serversession import session as typed_session
from flask_serversession import signals
from flask_serversession.breaker import PAUSE
from flask_serversession.record import FORMAT
from flask_serversession.record import HEADER_SIZE
from flask_serversession.record import MAGIC
from flask_serversession.record import key_of
from flask_serversession.testing import FakeClock

from .conftest import _run
from .figures import Report
from .servers import MariaDBServer
from .servers import MemcachedServer
from .servers import PostgresServer
from .servers import RedisServer
from .servers import Server
from .servers import ValkeyServer
from .servers import find_free_port
from .site import Action
from .site import Browser
from .site import Site
from .site import cookie_of

#: What one time-out of two seconds may take, and two of them cannot.
ONCE = 3.5
#: More than the touch interval.
LATER = 61.0

MakeConfig = Callable[[str], dict[str, t.Any]]


def in_turn(*actions: Action) -> Action:
    def act() -> str:
        for action in actions:
            action()
        return "done"

    return act


def read() -> None:
    session.get("n")


def write() -> None:
    session["n"] = 2


def swallow(action: Action) -> Action:
    def act() -> str:
        with contextlib.suppress(BackendUnavailableError):
            action()
        return "done"

    return act


#: Every way to use a session, of a visitor who has one.
ACTIONS: dict[str, Action] = {
    "read": read,
    "write": write,
    "nested change": lambda: session["cart"].append(2),
    "clear": lambda: session.clear(),
    "read, clear": in_turn(read, lambda: session.clear()),
    "clear, flash": in_turn(lambda: session.clear(), lambda: flask.flash("bye")),
    "remove all keys": lambda: [session.pop(key) for key in list(session)],
    "destroy": lambda: typed_session.destroy(),
    "read, destroy": in_turn(read, lambda: typed_session.destroy()),
    "destroy, flash": in_turn(
        lambda: typed_session.destroy(), lambda: flask.flash("bye")
    ),
    "log out": lambda: session.pop("_user_id"),
    "change user": lambda: session.update(_user_id="grace"),
    "regenerate": lambda: typed_session.regenerate(),
    "start over": lambda: typed_session.regenerate(keep_data=False),
    "start over, write": in_turn(
        lambda: typed_session.regenerate(keep_data=False), write
    ),
    "atomic": lambda: typed_session.atomic(lambda own: own.update(n=2)),
    "atomic, write": in_turn(
        lambda: typed_session.atomic(lambda own: own.update(n=2)), write
    ),
    "reload": in_turn(read, lambda: typed_session.reload()),
    "save": in_turn(write, lambda: typed_session.save()),
    "save, write": in_turn(write, lambda: typed_session.save(), write),
}
#: Those that end it.
ENDINGS = {name for name in ACTIONS if "clear" in name or "destroy" in name} | {
    "remove all keys",
    "start over",
}
#: Those that give it another id.
RENEWALS = {"regenerate", "change user"}
#: Those that do, because whoever was logged in is not any more.
FAREWELLS = {"clear, flash", "log out", "change user", "start over, write"}
#: Those that must not look as if they had worked where the session cannot be read.
NEVER_KEPT = (ENDINGS - {"remove all keys"}) | {"start over, write"}


def start(site: Site, *, is_permanent: bool = False) -> Browser:
    """Give a browser that has a session, and whose user is logged in."""
    browser = site.browser()
    browser.set(n=1, cart=[1], _user_id="ada", _permanent=is_permanent)
    return browser


def assert_unavailable(
    response: TestResponse, site: Site, *, cookie: str = "none"
) -> None:
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["Vary"] == "Cookie"
    assert cookie_of(response, site) == cookie
    # Werkzeug's own text: neither what the view gave nor what the engine said.
    assert "temporarily unable" in response.text


def end_pause(site: Site) -> None:
    """Let so much time pass that a backend which was given up is asked again."""
    t.cast(FakeClock, site.clock).advance(PAUSE)


def timed(browser: Browser, action: Action) -> tuple[TestResponse, float]:
    started = time.monotonic()
    response = browser.visit(action)
    return response, time.monotonic() - started


def own_log(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [
        record
        for record in caplog.records
        if record.name.startswith("flask_serversession")
        and record.levelno > logging.INFO
    ]


@contextlib.contextmanager
def failures_of(site: Site) -> Iterator[list[str]]:
    """Collect the operations that ``backend_failed`` tells about."""
    failed: list[str] = []

    def receive(app: flask.Flask, **values: t.Any) -> None:
        assert isinstance(values["error"], BackendUnavailableError)
        failed.append(values["operation"])

    with signals.backend_failed.connected_to(receive, site.app):
        yield failed


# -- one request, in which any operation of the backend may be the last that works


class Outage:
    """Lets the backend of a site die before, or right after, its n-th operation."""

    def __init__(self, site: Site, number: int, when: str) -> None:
        self.failed: list[str] = []
        self._count = 0
        self._number = number
        self._hooks = getattr(site.backend, when)
        for operation in (
            *("load", "create", "replace", "delete", "touch"),
            "keys_of_user",
        ):
            self._hooks[operation] = lambda operation=operation: self._fail(operation)

    def _fail(self, operation: str) -> None:
        self._count += 1
        if self._count >= self._number:
            self.failed.append(operation)
            raise BackendUnavailableError("It is down.", operation=operation)

    def end(self) -> None:
        self._hooks.clear()


def show_session(error: Exception) -> tuple[str, int, dict[str, str]]:
    """An error page that greets its visitor."""
    user = session.get("_user_id", "visitor")
    return f"Sorry, {user}, we are temporarily unable to.", 503, {"Retry-After": "7"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", list(ACTIONS))
def test_a_request_asks_a_backend_that_fails_only_once(name: str, when: str) -> None:
    for is_permanent in (False, True):
        for later in (0.0, LATER):
            for has_page in (False, True):
                number = 0
                while check_outage(
                    name, when, is_permanent, later, has_page, number := number + 1
                ):
                    pass
                assert number > 1


def check_outage(
    name: str,
    when: str,
    is_permanent: bool,
    later: float,
    has_page: bool,
    number: int,
) -> bool:
    """Let one request fail; say whether it had so many operations at all."""
    site = Site({"SESSION_BACKEND": "memory"})
    if has_page:
        site.app.register_error_handler(503, show_session)
    browser = start(site, is_permanent=is_permanent)
    t.cast(FakeClock, site.clock).advance(later)
    cookie = browser.cookie
    outage = Outage(site, number, when)
    response = browser.visit(ACTIONS[name])
    outage.end()
    if not outage.failed:
        return False
    assert len(outage.failed) == 1
    if outage.failed == ["touch"]:
        assert response.status_code == 200
        assert browser.cookie == cookie
    elif outage.failed == ["replace"] and name in RENEWALS:
        # The old id is dead now, or not; the new one, which is stored, lives for sure.
        assert_unavailable(response, site, cookie="set")
    else:
        assert_unavailable(response, site)
        assert browser.cookie == cookie
    # Afterwards it holds what it held, or what this request wanted, whole.
    found = browser.read()
    is_farewell = name in FAREWELLS - RENEWALS
    if outage.failed == ["replace"] and is_farewell and when == "after":
        # The old id is dead, as was wanted. Had it stayed alive, the browser must not
        # have been given another one: a session believed to be ended would go on.
        assert found == {}
    elif name in ENDINGS:
        assert found.get("n") in (1, None)
    else:
        assert found.get("n", 1) in (1, 2)
        if "start over" not in name:
            assert found["cart"] in ([1], [1, 2])
        assert found
    return True


@pytest.mark.parametrize("policy", ["raise", "ignore"])
@pytest.mark.parametrize(
    "operation",
    [
        lambda: typed_session.destroy(),
        lambda: typed_session.save(),
        lambda: typed_session.atomic(lambda own: own.update(n=2)),
    ],
    ids=["destroy", "save", "atomic"],
)
def test_a_write_whose_failure_the_view_swallows_is_no_success(
    operation: Action, policy: str
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR=policy)
    browser = start(site)
    action = in_turn(write, swallow(operation), swallow(operation))
    with site.backend.failing("replace", "delete"), failures_of(site) as failed:
        assert_unavailable(browser.visit(action), site)
    assert len(failed) == 1
    assert browser.read()["n"] == 1


@pytest.mark.parametrize("name", ["write", "clear", "destroy", "save", "atomic"])
def test_a_write_after_a_swallowed_failure_is_no_success(name: str) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = start(site)
    action = in_turn(swallow(read), ACTIONS[name])
    with site.backend.failing(), failures_of(site) as failed:
        assert_unavailable(browser.visit(action), site)
    assert failed == ["load"]
    assert browser.read()["n"] == 1


def test_who_only_reads_may_swallow_the_failure() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = start(site)
    with site.backend.failing():
        response = browser.visit(swallow(read))
    assert response.status_code == 200
    assert cookie_of(response, site) == "none"


def test_a_reload_that_fails_forgets_nothing_that_is_stored() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = start(site)

    def reload_in_vain() -> None:
        session.get("n")
        # Fails once only: whatever is asked next would work again.
        with site.backend.failing("load"):
            typed_session.reload()

    assert_unavailable(browser.visit(reload_in_vain), site)
    assert browser.read()["cart"] == [1]


def test_an_id_that_was_renewed_before_the_failure_reaches_the_browser() -> None:
    site = make_live_site()
    for swallows in (False, True):
        browser = start(site)

        def renew_and_go_on(swallows: bool = swallows) -> None:
            typed_session.regenerate()
            typed_session.save()
            session["n"] = 2
            if swallows:
                swallow(lambda: typed_session.save())()

        outage = Outage(site, 4, "before")
        response = browser.visit(renew_and_go_on)
        outage.end()
        assert outage.failed == ["replace"]
        # The old id is dead, so the session would be lost without this cookie.
        assert response.status_code == 503
        assert cookie_of(response, site) == "set"
        assert browser.read()["n"] == 1
        assert browser.read()["cart"] == [1]


@pytest.mark.parametrize(("number", "operation"), [(4, "keys_of_user"), (5, "delete")])
def test_a_log_in_is_not_lost_where_older_sessions_cannot_be_ended(
    number: int, operation: str
) -> None:
    site = make_live_site(SESSION_MAX_PER_USER=1)
    start(site)
    # The older one is older: of two at one moment, either may end the other.
    t.cast(FakeClock, site.clock).advance(1)
    browser = site.browser()
    browser.set(cart=[1])
    outage = Outage(site, number, "before")
    response = browser.visit(lambda: session.update(_user_id="ada"))
    outage.end()
    assert outage.failed == [operation]
    assert response.status_code == 503
    assert cookie_of(response, site) == "set"
    assert browser.read() == {"cart": [1], "_user_id": "ada"}


def test_a_stream_may_try_again_when_the_backend_is_back() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = start(site)

    def stream() -> flask.Response:
        def generate() -> Iterator[str]:
            session["n"] = 2
            with site.backend.failing():
                for _ in range(2):
                    try:
                        typed_session.save()
                    except BackendUnavailableError:
                        yield "failed "
            typed_session.save()
            yield "saved"

        session.get("n")
        return flask.Response(flask.stream_with_context(generate()))

    assert browser.visit(stream).text == "failed failed saved"
    assert browser.read()["n"] == 2


# -- what the visitor is told


def make_live_site(**settings: t.Any) -> Site:
    """Give a site that answers its errors as it would in production."""
    return Site({"SESSION_BACKEND": "memory"}, TESTING=False, **settings)


HANDLED = [503, BackendUnavailableError, HTTPException, Exception]


@pytest.mark.parametrize("handled", HANDLED, ids=str)
@pytest.mark.parametrize("operation", ["load", "replace"])
def test_the_applications_own_error_page_is_shown(
    operation: str, handled: type[Exception] | int
) -> None:
    site = make_live_site()

    @site.app.errorhandler(handled)
    def show(error: Exception) -> flask.Response:
        assert isinstance(error, BackendUnavailableError)
        assert error.operation == operation
        response = flask.Response("closed for today", 503, {"X-Page": "yes"})
        response.set_cookie("page", "seen")
        return response

    browser = start(site)
    with site.backend.failing(operation):
        response = browser.visit(write)
    assert response.status_code == 503
    assert response.text == "closed for today"
    assert response.headers["X-Page"] == "yes"
    assert response.headers.getlist("Set-Cookie") == ["page=seen; Path=/"]


def test_an_error_page_of_a_blueprint_is_shown() -> None:
    site = make_live_site()
    blueprint = flask.Blueprint("shop", __name__)
    blueprint.add_url_rule(
        "/shop", view_func=lambda: session.update(n=2) or "sold", endpoint="shop"
    )
    blueprint.register_error_handler(BackendUnavailableError, lambda error: "shut")
    site.app.register_blueprint(blueprint)
    browser = start(site)
    with site.backend.failing("replace"):
        response = browser.client.get("/shop")
    # A page that says 200 is its author's choice.
    assert (response.status_code, response.text) == (200, "shut")


def test_an_asynchronous_error_page_is_shown() -> None:
    site = make_live_site()

    @site.app.errorhandler(503)
    async def show(error: Exception) -> tuple[str, int]:
        return "later", 503

    browser = start(site)
    with site.backend.failing("replace"):
        assert browser.visit(write).text == "later"


def test_an_error_page_that_fails_itself_is_an_ordinary_error() -> None:
    site = make_live_site()

    @site.app.errorhandler(503)
    def show(error: Exception) -> str:
        raise ZeroDivisionError

    browser = start(site)
    with site.backend.failing("replace"):
        response = browser.visit(write)
    assert response.status_code == 500
    assert browser.read()["n"] == 1


def looks_at_session(response: flask.Response) -> flask.Response:
    # As Flask-Login does after each request.
    response.headers["X-Remembered"] = str("_remember" in session)
    return response


@pytest.mark.parametrize("operation", ["load", "replace"])
def test_a_failure_that_an_after_request_function_meets_is_a_503_too(
    operation: str,
) -> None:
    site = make_live_site()
    site.app.after_request(looks_at_session)
    browser = start(site)
    failures: list[int] = []
    for action in (lambda: "ignored", write):
        with site.backend.failing(operation), failures_of(site) as failed:
            response = browser.visit(action)
        failures.append(len(failed))
        if failed:
            assert_unavailable(response, site)
        else:
            assert response.text == "ignored"
    # Who only looks replaces nothing.
    assert failures == [1 if operation == "load" else 0, 1]
    assert browser.read()["n"] == 1


def test_a_failure_that_another_error_page_meets_is_a_503_too() -> None:
    site = make_live_site()

    @site.app.errorhandler(404)
    def show(error: Exception) -> tuple[str, int]:
        return f"not here, {session['_user_id']}", 404

    browser = start(site)
    assert browser.client.get("/nowhere").text == "not here, ada"
    with site.backend.failing():
        assert_unavailable(browser.client.get("/nowhere"), site)


def test_an_error_of_the_application_stays_a_500() -> None:
    site = make_live_site()
    browser = start(site)

    def fail() -> None:
        with contextlib.suppress(BackendUnavailableError):
            session.get("n")
        raise ZeroDivisionError

    with site.backend.failing():
        assert browser.visit(fail).status_code == 500


class Watched:
    """A body that knows whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"the view's body"

    def close(self) -> None:
        self.is_closed = True


def test_nothing_of_the_views_answer_is_in_the_error() -> None:
    site = make_live_site()
    browser = start(site)
    body = Watched()
    closed: list[str] = []

    def answer() -> flask.Response:
        session["n"] = 2
        response = flask.Response(body, mimetype="text/csv")
        response.headers["X-View"] = "yes"
        response.headers["Content-Length"] = "15"
        response.cache_control.public = True
        response.set_etag("view")
        response.set_cookie("view", "yes")
        response.call_on_close(lambda: closed.append("callback"))
        return response

    with site.backend.failing("replace"):
        response = browser.visit(answer)
    assert_unavailable(response, site)
    assert response.headers.getlist("Set-Cookie") == []
    assert set(response.headers.keys()) == {
        "Content-Type",
        "Content-Length",
        "Retry-After",
        "Vary",
    }
    assert response.content_type == "text/html; charset=utf-8"
    assert int(response.headers["Content-Length"]) == len(response.get_data())
    assert body.is_closed
    response.close()
    assert closed == ["callback"]


def test_a_stream_is_closed_that_is_not_sent() -> None:
    site = make_live_site()
    browser = start(site)
    steps: list[str] = []

    def answer() -> flask.Response:
        def generate() -> Iterator[str]:
            try:
                yield "the view's body"
            finally:
                steps.append("closed")

        stream = generate()
        next(stream)
        session["n"] = 2
        return flask.Response(stream)

    with site.backend.failing("replace"):
        assert_unavailable(browser.visit(answer), site)
    assert steps == ["closed"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_file_is_closed_that_is_not_sent(tmp_path: Path, is_streamed: bool) -> None:
    site = make_live_site()
    browser = start(site)
    path = tmp_path / "file.txt"
    path.write_text("the view's body")
    opened: list[io.BufferedReader] = []

    def answer() -> flask.Response:
        session["n"] = 2
        opened.append(path.open("rb"))
        return flask.send_file(
            opened[0] if is_streamed else path, mimetype="text/plain", etag=False
        )

    with site.backend.failing("replace"):
        response = browser.visit(answer)
    assert_unavailable(response, site)
    assert "Content-Disposition" not in response.headers
    assert opened[0].closed is is_streamed
    opened[0].close()
    # A file that was left open would be warned of when it is collected.


def test_a_head_request_and_a_conditional_one_are_answered_too() -> None:
    site = make_live_site()
    browser = start(site)

    def answer() -> flask.Response:
        session["n"] = 2
        response = flask.Response("the view's body")
        response.set_etag("same")
        return response.make_conditional(flask.request)

    with site.backend.failing("replace"):
        response = browser.client.head(site.add(answer))
        assert response.status_code == 503
        assert response.get_data() == b""
        assert_unavailable(
            browser.visit(answer, headers={"If-None-Match": '"same"'}), site
        )


def test_in_testing_it_is_a_503_like_any_http_exception() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, PROPAGATE_EXCEPTIONS=True)
    browser = start(site)
    for operation in ("load", "replace"):
        with site.backend.failing(operation):
            assert_unavailable(browser.visit(write), site)


@pytest.mark.parametrize("operation", ["load", "replace", "create"])
def test_a_trapped_http_exception_propagates_in_testing(operation: str) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, TRAP_HTTP_EXCEPTIONS=True)
    browser = site.browser() if operation == "create" else start(site)
    with (
        site.backend.failing(operation),
        pytest.raises(BackendUnavailableError) as info,
    ):
        browser.visit(write)
    assert info.value.operation == operation


@pytest.mark.parametrize("on_error", ["raise", "ignore"])
@pytest.mark.parametrize("operation", ["load", "create", "replace", "delete"])
def test_a_session_transaction_raises_when_its_store_fails(
    operation: str, on_error: str
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR=on_error)
    site.app.register_error_handler(503, lambda error: pytest.fail("No visitor."))
    browser = site.browser() if operation == "create" else start(site)
    with (
        pytest.raises(BackendUnavailableError) as info,
        site.backend.failing(operation),
        browser.client.session_transaction() as content,
    ):
        content.clear() if operation == "delete" else content.update(n=2)
    assert info.value.operation == operation
    assert browser.read().get("n") == (None if operation == "create" else 1)


def test_a_session_transaction_raises_what_was_swallowed_in_it() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = start(site)
    with (
        site.backend.failing("load"),
        pytest.raises(BackendUnavailableError),
        browser.client.session_transaction() as content,
        contextlib.suppress(BackendUnavailableError),
    ):
        content["n"] = 2


def test_a_session_transaction_does_not_mind_a_touch_that_fails() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = start(site)
    t.cast(FakeClock, site.clock).advance(LATER)
    with (
        site.backend.failing("touch"),
        browser.client.session_transaction() as content,
    ):
        assert content["n"] == 1


# -- "ignore"


def test_ignored_the_visitor_has_an_empty_session_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR="ignore")
    browser = start(site, is_permanent=True)
    t.cast(FakeClock, site.clock).advance(LATER)
    cookie = browser.cookie

    def use() -> str:
        assert dict(session) == {}
        assert not session.new
        session.permanent = True
        typed_session.touch()
        return str(session.get("n"))

    with site.backend.failing(), failures_of(site) as failed:
        response = browser.visit(use)
    assert response.status_code == 200
    assert response.text == "None"
    assert cookie_of(response, site) == "none"
    assert browser.cookie == cookie
    assert failed == ["load"]
    assert [record.levelname for record in own_log(caplog)] == ["ERROR"]
    assert browser.read()["n"] == 1


@pytest.mark.parametrize("name", ["clear", "destroy"])
def test_ignored_logging_out_is_still_no_success(name: str) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR="ignore")
    for action in (ACTIONS[name], in_turn(read, ACTIONS[name])):
        browser = start(site)
        with site.backend.failing(), failures_of(site) as failed:
            assert_unavailable(browser.visit(action), site)
        assert len(failed) == 1
        assert browser.read()["n"] == 1


@pytest.mark.parametrize("name", ["write", "change user", "save", "atomic"])
def test_ignored_what_cannot_be_stored_is_still_no_success(name: str) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR="ignore")
    for browser in (start(site), site.browser()):
        with site.backend.failing():
            assert_unavailable(browser.visit(ACTIONS[name]), site)
    assert site.backend.count() == 1


def test_ignored_save_and_atomic_say_that_they_have_failed() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR="ignore")
    browser = start(site)

    def use() -> str:
        with pytest.raises(BackendUnavailableError):
            typed_session.atomic(lambda own: own.update(n=2))
        assert dict(session) == {}  # the function was not run
        with pytest.raises(BackendUnavailableError):
            typed_session.save()
        return "read on"

    with site.backend.failing():
        assert browser.visit(use).text == "read on"
    assert browser.read()["n"] == 1


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_ignored_a_failed_write_is_still_no_success(operation: str) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR="ignore")
    browser = site.browser() if operation == "create" else start(site)
    with site.backend.failing(operation):
        assert_unavailable(browser.visit(write), site)


def test_each_failure_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    for name, action in ACTIONS.items():
        for number in (1, 2, 3):
            browser = start(site)
            caplog.clear()
            outage = Outage(site, number, "before")
            browser.visit(action)
            outage.end()
            assert len(own_log(caplog)) == len(outage.failed), name


# -- Redis and Valkey


class OwnValkeyServer(ValkeyServer):
    def __init__(self, *args: str) -> None:
        super().__init__(*args, persistent=True)


class OwnRedisServer(RedisServer):
    def __init__(self, *args: str) -> None:
        super().__init__(*args, persistent=True)


REDISES = [OwnValkeyServer, OwnRedisServer]


@pytest.fixture(scope="module", params=REDISES, ids=["valkey", "redis"])
def module_redis(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    with _run(request.param) as server:
        yield server


@pytest.fixture
def own_redis(module_redis: ValkeyServer) -> ValkeyServer:
    if not module_redis.is_running:
        module_redis.start()
    return module_redis


def redis_config(server: ValkeyServer) -> dict[str, t.Any]:
    return {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": server.url}


def test_a_killed_redis_is_noticed_by_those_who_use_the_session(
    own_redis: ValkeyServer,
) -> None:
    site = Site(redis_config(own_redis))
    site.app.after_request(lambda response: response)
    browser = start(site)
    cookie = browser.cookie
    own_redis.kill()
    assert browser.ignore().status_code == 200
    assert site.browser().visit(read).status_code == 200  # who has no cookie
    for name, action in ACTIONS.items():
        end_pause(site)
        response, seconds = timed(browser, action)
        assert_unavailable(response, site)
        assert seconds < ONCE, name
    assert_unavailable(site.browser().visit(write), site)
    assert browser.cookie == cookie
    own_redis.start()
    end_pause(site)
    assert browser.read() == {"n": 1, "cart": [1], "_user_id": "ada", **permanent()}
    assert browser.set(n=2).status_code == 200
    assert browser.read()["n"] == 2


def permanent() -> dict[str, bool]:
    return {"_permanent": False}


@pytest.mark.parametrize("name", ["write", "nested change", "log out", "destroy"])
def test_a_redis_killed_between_load_and_save_is_no_success(
    own_redis: ValkeyServer, name: str
) -> None:
    site = Site(redis_config(own_redis))
    browser = start(site)
    action = in_turn(read, own_redis.kill, ACTIONS[name])
    response, seconds = timed(browser, action)
    assert_unavailable(response, site)
    assert seconds < ONCE
    own_redis.start()
    assert browser.read()["n"] == 1
    assert browser.read()["_user_id"] == "ada"


def test_the_first_value_is_no_success_when_redis_is_killed_before_it_is_saved(
    own_redis: ValkeyServer,
) -> None:
    site = Site(redis_config(own_redis))
    browser = site.browser()
    action = in_turn(lambda: session.update(n=1), own_redis.kill)
    assert_unavailable(browser.visit(action), site)
    assert browser.cookie is None


def test_nobody_waits_twice_for_a_redis_that_hangs(own_redis: ValkeyServer) -> None:
    plain, greeting = Site(redis_config(own_redis)), Site(redis_config(own_redis))
    greeting.app.register_error_handler(503, show_session)
    visits: list[tuple[str, Site, Browser, Action]] = []
    for name, action in ACTIONS.items():
        for site in (plain, greeting):
            browser = start(site, is_permanent=True)
            visits.append((name, site, browser, action))
    for site in (plain, greeting):
        visits.append(("first value", site, site.browser(), write))
        # Renewing the id takes three round trips.
        visits.append(("log in", site, site.browser(), ACTIONS["change user"]))
        t.cast(FakeClock, site.clock).advance(LATER)
    unseen, unconcerned = plain.browser(), plain.browser()
    unseen.set(n=1)
    with (
        concurrent.futures.ThreadPoolExecutor(len(visits)) as pool,
        own_redis.paused(),
    ):
        pending = [
            (name, site, pool.submit(timed, browser, action))
            for name, site, browser, action in visits
        ]
        assert timed(unseen, lambda: "ignored")[1] < 1
        assert timed(unconcerned, read)[1] < 1
        results = [(name, site, future.result()) for name, site, future in pending]
    for name, site, (response, seconds) in results:
        assert_unavailable(response, site)
        assert seconds < ONCE, (name, seconds)
    # What was only slow may have been carried out; nobody was told that it was.
    for _, site, browser, _ in visits[:2]:
        end_pause(site)
        assert browser.read()["n"] == 1


def test_nobody_waits_twice_for_a_redis_that_hangs_from_the_load_on(
    own_redis: ValkeyServer,
) -> None:
    site = Site(redis_config(own_redis))
    site.app.register_error_handler(503, show_session)
    browser = start(site)
    action = in_turn(read, own_redis.pause, write)
    try:
        response, seconds = timed(browser, action)
    finally:
        own_redis.resume()
    assert_unavailable(response, site)
    assert 1.5 < seconds < ONCE
    # The server may carry out now what it was asked then.
    assert browser.read()["n"] in (1, 2)
    assert browser.set(n=3).status_code == 200
    assert browser.read()["n"] == 3


def test_ignored_a_hanging_redis_costs_one_wait(
    own_redis: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(redis_config(own_redis), SESSION_ON_BACKEND_ERROR="ignore")
    browser = start(site)
    cookie = browser.cookie
    with own_redis.paused(), failures_of(site) as failed:
        response, seconds = timed(
            browser, in_turn(lambda: dict(session) == {} or 1 / 0, write)
        )
    assert response.status_code == 503  # what was written is not stored
    assert seconds < ONCE
    assert failed == ["load"]
    assert len(own_log(caplog)) == 1
    assert cookie_of(response, site) == "none"
    assert browser.cookie == cookie
    assert browser.read()["n"] == 1


def test_connections_that_went_stale_in_the_pool_are_not_noticed(
    own_redis: ValkeyServer,
) -> None:
    site = Site(redis_config(own_redis))
    browsers = [start(site) for _ in range(8)]

    def visit(browser: Browser) -> list[int]:
        actions = (read, write, ACTIONS["change user"], read)
        return [browser.visit(action).status_code for action in actions]

    with concurrent.futures.ThreadPoolExecutor(len(browsers)) as pool:
        for _ in range(2):
            assert list(pool.map(visit, browsers)) == [[200] * 4] * len(browsers)
            own_redis.restart()
        own_redis.kill()
        own_redis.start()
        for browser in browsers:
            assert browser.visit(read).status_code == 200
            assert browser.visit(write).status_code == 200


#: Ways to leave that keep something.
LEAVING: dict[str, Action] = {
    **{name: ACTIONS[name] for name in ("log out", "clear, flash", "destroy, flash")},
    "name nobody": lambda: session.update(_user_id=None),
    "start over, flash": in_turn(
        lambda: typed_session.regenerate(keep_data=False), lambda: flask.flash("bye")
    ),
    "clear, flash, save": in_turn(
        ACTIONS["clear, flash"], lambda: typed_session.save()
    ),
    "log out, save": in_turn(ACTIONS["log out"], lambda: typed_session.save()),
    "atomic log out": lambda: typed_session.atomic(lambda own: own.pop("_user_id")),
}


def test_a_full_redis_can_be_read_and_logged_out_of(
    own_redis: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    from redis import Redis

    site = Site(redis_config(own_redis))
    clock = t.cast(FakeClock, site.clock)
    browsers = {name: start(site) for name in ("read", "clear", "destroy", "empty")}
    leaving = {name: start(site) for name in LEAVING}
    twins = {name: browser.twin() for name, browser in leaving.items()}
    with Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        try:
            clock.advance(LATER)
            browser = browsers["read"]
            with failures_of(site) as failed:
                assert browser.read()["n"] == 1
            # A script that has freed something may write although nothing is left.
            assert failed in ([], ["touch"])
            for name in ("write", "nested change", "change user"):
                assert_unavailable(browser.visit(ACTIONS[name]), site)
            assert_unavailable(site.browser().visit(write), site)
            for name, other in leaving.items():
                caplog.clear()
                response = other.visit(LEAVING[name])
                assert response.status_code == 200, name
                assert cookie_of(response, site) == "deleted"
                assert [record.levelname for record in own_log(caplog)] == [
                    "ERROR",
                    "WARNING",
                ]
            for name, action in {
                "clear": ACTIONS["clear"],
                "destroy": ACTIONS["destroy"],
                "empty": ACTIONS["remove all keys"],
            }.items():
                with failures_of(site) as failed:
                    response = browsers[name].visit(action)
                assert response.status_code == 200, name
                assert cookie_of(response, site) == "deleted"
                assert failed == []
        finally:
            client.config_set("maxmemory", "0")
    for name, twin in twins.items():
        assert twin.read() == {}, name
    assert browsers["read"].set(n=2).status_code == 200
    assert browsers["read"].read()["cart"] == [1]


def test_a_read_only_replica_can_be_read(
    own_redis: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    from redis import Redis

    primary = Site(redis_config(own_redis))
    origin = start(primary)
    with Redis.from_url(own_redis.url) as client:
        # By default it waits five seconds for further replicas.
        client.config_set("repl-diskless-sync-delay", 0)
    options = ("--replicaof", f"{own_redis.host} {own_redis.port}")
    with type(own_redis)(*options) as replica:
        site = Site(redis_config(replica))
        browser = site.browser()
        browser.cookie = origin.cookie
        deadline = time.monotonic() + 20
        while browser.visit(lambda: session.get("n")).text != "1":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        t.cast(FakeClock, site.clock).advance(LATER)
        caplog.clear()
        with failures_of(site) as failed:
            assert browser.read()["n"] == 1
        assert failed == ["touch"]
        assert "read-only" in own_log(caplog)[0].getMessage()
        for name in ("write", "log out", "destroy", "clear"):
            assert_unavailable(browser.visit(ACTIONS[name]), site)
        # The replica becomes the primary, as after a fail-over.
        with Redis.from_url(replica.url) as client:
            client.replicaof("NO", "ONE")
        assert browser.set(n=2).status_code == 200
        assert browser.read()["n"] == 2


def assert_only_touches_fail(
    site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """Check that a due touch is refused, that it is logged and that reading goes on."""
    t.cast(FakeClock, site.clock).advance(LATER)
    caplog.clear()
    failed: list[str] = []

    def receive(app: flask.Flask, **values: t.Any) -> None:
        # The engine can be reached, so this is none that says it cannot.
        assert values["error"].refused
        failed.append(values["operation"])

    with signals.backend_failed.connected_to(receive, site.app):
        assert browser.read()["n"] == 1
        response = browser.visit(lambda: typed_session.touch())
        assert response.status_code == 200
    assert failed == ["touch", "touch"]
    assert len(own_log(caplog)) == 2


def test_a_redis_that_knows_no_scripts_can_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ValkeyServer("--rename-command", "EVALSHA", "") as server:
        site = Site(redis_config(server))
        assert_only_touches_fail(site, start(site), caplog)


def test_a_wrong_password_is_unavailable_and_shown_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ValkeyServer("--requirepass", "right-secret") as server:
        right = Site(
            {
                "SESSION_BACKEND": "redis",
                "SESSION_REDIS_URL": f"redis://:right-secret@{server.address}",
            }
        )
        browser = start(right)
        wrong = Site(
            {
                "SESSION_BACKEND": "redis",
                "SESSION_REDIS_URL": f"redis://:wrong-secret@{server.address}",
            }
        )
        other = wrong.browser()
        other.cookie = browser.cookie
        response = other.visit(read)
        assert_unavailable(response, wrong)
        assert "secret" not in response.text
        assert other.ignore().status_code == 200
        assert browser.read()["n"] == 1
    [line] = own_log(caplog)
    assert "password" in line.getMessage()
    assert "secret" not in line.getMessage()
    assert "secret" not in repr(line.args)


# -- PostgreSQL and MariaDB


@pytest.fixture(
    scope="module",
    params=[PostgresServer, MariaDBServer],
    ids=["postgresql", "mariadb"],
)
def database(request: pytest.FixtureRequest) -> Iterator[Server]:
    with _run(request.param) as server:
        yield server


def test_a_database_may_be_restarted_killed_and_stopped(database: Server) -> None:
    site = Site(
        {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": database.url}
    )
    browsers = [start(site) for _ in range(4)]

    def visit(browser: Browser) -> list[int]:
        return [browser.visit(action).status_code for action in (read, write)]

    with concurrent.futures.ThreadPoolExecutor(len(browsers)) as pool:
        list(pool.map(visit, browsers))
        # Each next request succeeds, whichever stale connection it gets.
        database.restart()
        for action in (read, write, ACTIONS["change user"], ACTIONS["destroy"]):
            assert browsers[0].visit(action).status_code == 200
        assert list(pool.map(visit, browsers[1:])) == [[200, 200]] * 3

    # Killed between load and save.
    browser = browsers[1]
    assert browser.visit(lambda: session.update(n=1)).status_code == 200
    response, seconds = timed(browser, in_turn(read, database.kill, write))
    assert_unavailable(response, site)
    assert seconds < ONCE
    for name, action in ACTIONS.items():
        end_pause(site)
        response, seconds = timed(browser, action)
        assert_unavailable(response, site)
        assert seconds < ONCE, name
    assert browser.ignore().status_code == 200
    assert site.browser().visit(read).status_code == 200
    database.start()
    end_pause(site)
    assert browser.read()["n"] == 1
    assert browser.set(n=5).status_code == 200
    assert browser.read()["n"] == 5

    # Stopped.
    database.stop()
    assert_unavailable(browser.visit(write), site)
    database.start()
    assert browser.read()["n"] == 5
    site.backend.close()


def test_a_database_can_be_read_by_who_may_only_read(
    database: Server, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlalchemy as sa

    config = {
        "SESSION_BACKEND": "sqlalchemy",
        "SESSION_SQLALCHEMY_URL": database.url,
        "SESSION_SQLALCHEMY_TABLE": "only_read",
    }
    owner = Site(config)
    origin = start(owner)
    is_mariadb = isinstance(database, MariaDBServer)
    reader = f"reader@'{database.host}'" if is_mariadb else "reader"
    engine = sa.create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            f"CREATE USER {reader}" if is_mariadb else f"CREATE ROLE {reader} LOGIN"
        )
        connection.exec_driver_sql(f"GRANT SELECT ON only_read TO {reader}")
    url = engine.url.set(username="reader")
    engine.dispose()
    site = Site({**config, "SESSION_SQLALCHEMY_URL": url}, clock=owner.clock)
    browser = site.browser()
    browser.cookie = origin.cookie
    assert_only_touches_fail(site, browser, caplog)
    owner.backend.close()
    site.backend.close()


# -- SQLite


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold SQLite's write lock, as a long transaction does."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def sqlite_site(sqlite_path: Path) -> Site:
    return Site(
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": f"sqlite:///{sqlite_path}?timeout=0.15",
        }
    )


def test_a_write_that_meets_another_writer_for_too_long_is_no_success(
    sqlite_site: Site, sqlite_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    browser = start(sqlite_site)
    cookie = browser.cookie
    rows = dump_sqlite(sqlite_path)
    with locked(sqlite_path):
        for name, action in ACTIONS.items():
            if name in ("read", "reload"):
                continue
            caplog.clear()
            response, seconds = timed(browser, action)
            assert_unavailable(response, sqlite_site)
            assert seconds < 2, name  # the busy time-out is 0.15 s
            [line] = own_log(caplog)
            assert "another writer held the lock" in line.getMessage()
        assert_unavailable(sqlite_site.browser().visit(write), sqlite_site)
        # Readers wait for nobody.
        assert browser.visit(lambda: session["n"]).text == "1"
    assert dump_sqlite(sqlite_path) == rows
    assert browser.cookie == cookie
    assert browser.set(n=2).status_code == 200
    assert browser.read()["n"] == 2


def dump_sqlite(path: Path) -> list[t.Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM server_sessions").fetchall()


def test_a_due_touch_gives_up_at_once_where_another_writer_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sessions.db"
    # With the default, which waits for five seconds where it matters.
    site = Site(
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": f"sqlite:///{path}",
        }
    )
    browser, unseen = start(site), start(site, is_permanent=True)
    t.cast(FakeClock, site.clock).advance(LATER)
    with locked(path):
        for visitor, action in ((browser, read), (unseen, lambda: "ignored")):
            with failures_of(site) as failed:
                response, seconds = timed(visitor, action)
            assert response.status_code == 200
            assert failed == ["touch"]
            assert seconds < 1.5
    with site.backend.counting() as calls:
        browser.visit(read)
    assert calls == {"load": 1, "touch": 1}


def test_a_view_that_locks_itself_out_is_told(
    sqlite_site: Site, sqlite_path: Path
) -> None:
    browser = start(sqlite_site)

    def transact() -> None:
        with locked(sqlite_path):
            session["n"] = 2
            typed_session.save()

    assert_unavailable(browser.visit(transact), sqlite_site)
    assert browser.read()["n"] == 1


# -- the file system


def filesystem_config(path: Path) -> dict[str, t.Any]:
    return {"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": str(path)}


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a file system in memory; skip where that is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode != 0
    ):
        pytest.skip("A file system can only be mounted by root, outside of a sandbox.")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def files_below(path: Path) -> dict[str, bytes]:
    """Give all files, locks and the markers of users left out."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and file.name != ".lock"
        and file.relative_to(path).parts[0] != "users"
    }


def assert_nothing_can_be_written(browser: Browser, path: Path, reason: str) -> None:
    site = browser.site
    before = files_below(path)
    assert len(before) >= 1
    caplog = Log()
    with caplog.attached():
        for name in ("write", "nested change", "change user", "save", "atomic"):
            blob = "x" * 100_000
            action = in_turn(lambda blob=blob: session.update(blob=blob), ACTIONS[name])
            assert_unavailable(browser.visit(action), site)
        blob = "x" * 100_000
        assert_unavailable(site.browser().set(blob=blob), site)
        assert files_below(path) == before
        assert browser.read()["n"] == 1
    assert caplog.lines
    assert all(reason in line for line in caplog.lines)


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        logger = logging.getLogger("flask_serversession")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)


def test_a_full_disk_is_no_success_and_harms_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k"):
        path = tmp_path / "disk" / "sessions"
        site = Site(filesystem_config(path))
        browser, other = start(site), start(site)
        fill(tmp_path / "disk" / "ballast")
        assert_nothing_can_be_written(browser, path, "No space left on device")
        # Who wants to log out needs no space.
        response = other.visit(ACTIONS["destroy"])
        assert response.status_code == 200
        assert cookie_of(response, site) == "deleted"
        (tmp_path / "disk" / "ballast").unlink()
        assert browser.set(n=2).status_code == 200
        assert browser.read()["n"] == 2


def test_a_file_that_may_not_grow_is_no_success_and_harms_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sessions"
    site = Site(filesystem_config(path))
    browser = start(site)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert_nothing_can_be_written(browser, path, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert browser.set(n=2).status_code == 200
    assert browser.read()["n"] == 2


def test_a_read_only_disk_can_be_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "4m"):
        path = disk / "sessions"
        site = Site(filesystem_config(path))
        browser = start(site)
        damaged = start(site)
        file = path_of(path, damaged)
        file.write_bytes(b"not one of ours")
        remount = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(remount, check=True)
        t.cast(FakeClock, site.clock).advance(LATER)
        with failures_of(site) as failed:
            assert browser.read()["n"] == 1
        assert failed == ["touch"]
        with failures_of(site) as failed:
            assert damaged.read() == {}
        assert failed == []
        assert file.exists()
        assert_nothing_can_be_written(browser, path, "Read-only file system")
        assert_unavailable(browser.visit(ACTIONS["destroy"]), site)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert browser.set(n=2).status_code == 200


def path_of(path: Path, browser: Browser) -> Path:
    digest = key_of(browser.id, "")
    [file] = path.glob(f"{digest[:2]}/*{digest}")
    return file


@contextlib.contextmanager
def without_privileges() -> Iterator[int]:
    """Run as nobody if we are root, whom no permission stops. Gives the user's id."""
    if os.geteuid() != 0:
        yield os.geteuid()
        return
    nobody = pwd.getpwnam("nobody").pw_uid
    os.seteuid(nobody)
    try:
        yield nobody
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_no_success() -> None:
    # Not below tmp_path, which is root's alone.
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        path = root / "sessions"
        path.mkdir()
        with without_privileges() as user:
            pass
        os.chown(path, user, -1)
        with without_privileges():
            site = Site(filesystem_config(path))
            browser = start(site)
            folder = path_of(path, browser).parent
            folder.chmod(0o500)
            path.chmod(0o500)
            assert_nothing_can_be_written(browser, path, "Permission denied")
            path_of(path, browser).chmod(0)
            assert_unavailable(browser.visit(read), site)
            path_of(path, browser).chmod(0o600)
            folder.chmod(0o700)
            path.chmod(0o700)
            assert browser.set(n=2).status_code == 200
            assert browser.read()["n"] == 2
    finally:
        shutil.rmtree(root)


def test_a_folder_that_is_gone_comes_back(tmp_path: Path) -> None:
    site = Site(filesystem_config(tmp_path / "sessions"))
    browser = start(site)
    shutil.rmtree(tmp_path / "sessions")
    assert browser.read() == {}
    assert browser.set(n=2).status_code == 200
    assert browser.read() == {"n": 2}


# -- memcached


# The client forgets to close sockets that were refused.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_stopped_memcached_is_told_from_an_empty_one() -> None:
    import memcache
    from cachelib import MemcachedCache

    with _run(MemcachedServer) as server:
        # By default the client itself avoids a dead server for half a minute.
        client = memcache.Client([server.address], dead_retry=0, socket_timeout=1)
        site = Site(
            {
                "SESSION_BACKEND": "cachelib",
                "SESSION_CACHELIB": MemcachedCache(client),
            }
        )
        browser = start(site)
        cookie = browser.cookie
        server.kill()
        assert browser.ignore().status_code == 200
        for name, action in ACTIONS.items():
            end_pause(site)
            response, seconds = timed(browser, action)
            assert_unavailable(response, site)
            assert seconds < ONCE, name
        assert_unavailable(site.browser().visit(write), site)
        assert browser.cookie == cookie
        server.start()
        end_pause(site)
        # It has forgotten everything, which it says is so.
        assert browser.read() == {}
        assert browser.set(n=2).status_code == 200
        assert browser.cookie != cookie
        assert browser.read() == {"n": 2}
        client.disconnect_all()


# -- records that were damaged, or written by a later version


class Raw(t.Protocol):
    """Reads and writes what an engine itself holds for a key."""

    def get(self, key: str) -> bytes: ...

    def set(self, key: str, value: bytes) -> None: ...


class RawFiles:
    def __init__(self, config: dict[str, t.Any]) -> None:
        self._path = Path(config["SESSION_FILESYSTEM_PATH"])

    def _file(self, key: str) -> Path:
        digest = key.rpartition(":")[2]
        return self._path / digest[:2] / key.replace(":", "%3a")

    def get(self, key: str) -> bytes:
        return self._file(key).read_bytes()

    def set(self, key: str, value: bytes) -> None:
        self._file(key).write_bytes(value)


class RawRedis:
    def __init__(self, config: dict[str, t.Any]) -> None:
        from redis import Redis

        self._client = Redis.from_url(config["SESSION_REDIS_URL"])

    def get(self, key: str) -> bytes:
        value = self._client.get(key)
        assert isinstance(value, bytes)
        return value

    def set(self, key: str, value: bytes) -> None:
        self._client.set(key, value, keepttl=True)

    def close(self) -> None:
        self._client.close()


class RawTable:
    """By the driver alone: SQLAlchemy would refuse some values."""

    def __init__(self, config: dict[str, t.Any]) -> None:
        import sqlalchemy as sa

        self._engine = sa.create_engine(config["SESSION_SQLALCHEMY_URL"])
        self._table = self._engine.dialect.identifier_preparer.quote(
            config["SESSION_SQLALCHEMY_TABLE"]
        )
        self._quote = self._engine.dialect.identifier_preparer.quote
        self._mark = "?" if self._engine.dialect.name == "sqlite" else "%s"

    def _execute(self, statement: str, *values: t.Any) -> t.Any:
        with self._engine.connect() as connection:
            result = connection.exec_driver_sql(
                statement.replace("?", self._mark), values
            )
            value = result.scalar_one() if result.returns_rows else None
            connection.commit()
            return value

    def close(self) -> None:
        self._engine.dispose()

    def get(self, key: str) -> bytes:
        name = self._quote("key")
        value = self._execute(f"SELECT data FROM {self._table} WHERE {name} = ?", key)
        return bytes(value)

    def set(self, key: str, value: bytes) -> None:
        self.set_column(key, "data", value)

    def set_column(self, key: str, column: str, value: t.Any) -> None:
        column, name = self._quote(column), self._quote("key")
        self._execute(
            f"UPDATE {self._table} SET {column} = ? WHERE {name} = ?", value, key
        )


class RawCache:
    def __init__(self, config: dict[str, t.Any]) -> None:
        self._cache = config["SESSION_CACHELIB"]

    def get(self, key: str) -> bytes:
        value = self._cache.get(key)
        assert isinstance(value, bytes)
        return value

    def set(self, key: str, value: bytes) -> None:
        assert self._cache.set(key, value, 600)


RAW: dict[str, Callable[[dict[str, t.Any]], Raw]] = {
    "filesystem": RawFiles,
    "valkey": RawRedis,
    "redis": RawRedis,
    "sqlite": RawTable,
    "postgresql": RawTable,
    "mariadb": RawTable,
    "cachelib-simple": RawCache,
    "cachelib-filesystem": RawCache,
    "cachelib-memcached": RawCache,
}


@dataclasses.dataclass
class Store:
    """A site, and the back door to its store."""

    name: str
    site: Site
    raw: Raw

    def key(self, browser: Browser) -> str:
        prefix = self.site.app.config.get("SESSION_KEY_PREFIX", "session:")
        return key_of(browser.id, prefix)

    def start(self) -> tuple[Browser, bytes]:
        browser = start(self.site)
        return browser, self.raw.get(self.key(browser))

    def spoil(self, browser: Browser, value: bytes) -> None:
        self.raw.set(self.key(browser), value)


@pytest.fixture(params=list(RAW))
def store(
    request: pytest.FixtureRequest, make_backend_config: MakeConfig
) -> Iterator[Store]:
    config = make_backend_config(request.param)
    raw = RAW[request.param](config)
    yield Store(request.param, Site(config), raw)
    if isinstance(raw, (RawRedis, RawTable)):
        raw.close()


def damages(original: bytes) -> Iterator[bytes]:
    """Give what may be left of a record."""
    size = len(original)
    lengths = {0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 35, 36, size // 2}
    lengths |= {HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, HEADER_SIZE + 28}
    lengths |= {size - 16, size - 9, size - 8, size - 1}
    for length in lengths:
        yield original[:length]
    yield original + b"\0"
    # The head, byte by byte, and some of the rest.
    places = [*range(HEADER_SIZE), *random.Random(1).sample(range(size), 20)]
    for place in places:
        if place < size:
            yield flip(original, place)
    yield from (b"\0" * size, b"\xff" * size, original[::-1], original[1:], b"\xfe")
    yield from (b"{}", b"not one of ours", pickle.dumps({"n": 1}), "ÿ".encode() * 99)
    yield random.Random(2).randbytes(size)


def flip(value: bytes, place: int) -> bytes:
    return value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]


def test_a_damaged_record_is_no_session_and_never_an_error(
    store: Store, report: Report
) -> None:
    tried = unnoticed = 0
    _, example = store.start()
    original = {"n": 1, "cart": [1], "_user_id": "ada", "_permanent": False}
    numbers: t.Sequence[int] = range(len(list(damages(example))))
    if store.name not in ("filesystem", "sqlite"):
        numbers = random.Random(3).sample(numbers, 25)
    for number in numbers:
        browser, value = store.start()
        if (damage := list(damages(value))[number]) == value:
            continue
        tried += 1
        id, cookie = browser.id, browser.cookie
        store.spoil(browser, damage)
        response = browser.visit(lambda: repr(dict(session)))
        assert response.status_code == 200
        assert cookie_of(response, store.site) == "none"
        if response.text == repr(original):
            # A byte that means nothing, or none that is the record's.
            unnoticed += 1
            continue
        assert response.text == "{}"
        assert browser.read() == {}
        if damage[:2] == bytes((MAGIC, FORMAT + 1)):
            continue  # a later version may have written it, so it is left alone
        browser.cookie = cookie
        assert browser.set(n=2).status_code == 200
        assert browser.id != id
        assert browser.read() == {"n": 2}
    assert tried >= 20
    # Two spare bytes and the nonce of a write.
    assert unnoticed <= 20
    report(damaged_records_tried=tried, of_them_harmless=unnoticed)


def test_damage_is_logged_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    browser, value = store.start()
    other = store.site.browser()
    other.cookie = browser.cookie
    store.spoil(browser, flip(value, len(value) // 2))
    for _ in range(3):
        assert browser.read() == {}
        assert other.read() == {}
    [line] = own_log(caplog)
    assert line.levelno == logging.ERROR
    assert store.key(browser).rpartition(":")[2][-64:] in line.getMessage()
    assert browser.id not in line.getMessage()


def test_no_use_of_a_damaged_record_is_an_error(store: Store) -> None:
    for name, action in ACTIONS.items():
        browser, value = store.start()
        store.spoil(browser, flip(value, len(value) // 2))
        t.cast(FakeClock, store.site.clock).advance(LATER)
        if name in ("nested change", "log out"):
            continue  # of what is not there
        response = browser.visit(action)
        assert response.status_code == 200, name
        assert "cart" not in browser.read()


def test_no_use_of_a_record_that_is_damaged_meanwhile_is_an_error(
    store: Store,
) -> None:
    for name, action in ACTIONS.items():
        browser, value = store.start()
        key, damage = store.key(browser), flip(value, len(value) // 2)
        t.cast(FakeClock, store.site.clock).advance(LATER)
        spoil = in_turn(read, lambda k=key, d=damage: store.raw.set(k, d))
        if name == "reload":
            spoil = in_turn(read, lambda k=key, d=damage: store.raw.set(k, d), write)
        response = browser.visit(in_turn(spoil, action))
        assert response.status_code == 200, name
        assert browser.visit(read).status_code == 200, name


def make_newer(value: bytes) -> bytes:
    return value[:1] + bytes([value[1] + 1]) + value[2:]


def test_a_newer_record_is_never_touched(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for name, action in ACTIONS.items():
        if name in ("nested change", "log out"):
            continue  # of what is not there
        browser, value = store.start()
        cookie, key = browser.cookie, store.key(browser)
        store.spoil(browser, newer := make_newer(value))
        t.cast(FakeClock, store.site.clock).advance(LATER)
        caplog.clear()
        for visited in (action, in_turn(read, action)):
            response = browser.visit(visited)
            assert response.status_code == (503 if name in NEVER_KEPT else 200), name
            assert cookie_of(response, store.site) == "none", name
            assert browser.visit(lambda: repr(dict(session))).text == "{}"
            assert store.raw.get(key) == newer, name
        assert browser.cookie == cookie
        assert len(own_log(caplog)) == 1, name
        # The newer version, which is deployed by now, finds it as it was.
        store.spoil(browser, value)
        assert browser.read()["cart"] == [1]


def test_a_record_that_becomes_newer_meanwhile_is_never_touched(
    store: Store,
) -> None:
    for name, action in ACTIONS.items():
        browser, value = store.start()
        key, newer = store.key(browser), make_newer(value)
        response = browser.visit(
            in_turn(read, lambda k=key, n=newer: store.raw.set(k, n), action)
        )
        ends = name in ENDINGS | FAREWELLS
        assert response.status_code == (503 if ends else 200), name
        assert cookie_of(response, store.site) == "none", name
        assert store.raw.get(key) == newer, name


def make_newer_inside(store: Store, browser: Browser) -> bytes:
    """Give a record whose envelope a later version has written."""
    backend, key = store.site.backend.backend, store.key(browser)
    record = backend.load(key)
    assert record is not None
    data = bytes([record.data[0] + 1]) + record.data[1:]
    backend.replace(key, dataclasses.replace(record, data=data), record.version)
    return store.raw.get(key)


def test_a_newer_envelope_is_never_touched(store: Store) -> None:
    for name, action in ACTIONS.items():
        if name in ("nested change", "log out"):
            continue  # of what is not there
        browser, _ = store.start()
        cookie, key = browser.cookie, store.key(browser)
        newer = make_newer_inside(store, browser)
        response = browser.visit(in_turn(read, action))
        assert response.status_code == (503 if name in NEVER_KEPT else 200), name
        assert cookie_of(response, store.site) == "none", name
        assert browser.visit(lambda: repr(dict(session))).text == "{}"
        assert store.raw.get(key) == newer, name
        assert browser.cookie == cookie


# -- columns, which no checksum covers


@pytest.mark.parametrize("value", ["text", b"\xff\xfe", -1e308, 1e308, float("inf")])
@pytest.mark.parametrize(
    "column", ["version", "created_at", "touched_at", "expires_at", "user", "meta"]
)
def test_nonsense_in_a_column_of_sqlite_is_never_an_error(
    make_backend_config: MakeConfig, column: str, value: t.Any
) -> None:
    config = make_backend_config("sqlite")
    raw = RawTable(config)
    check_column(Store("sqlite", Site(config), raw), column, value)
    raw.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e308, 1e308])
@pytest.mark.parametrize("column", ["created_at", "touched_at", "expires_at"])
def test_nonsense_in_a_column_of_postgresql_is_never_an_error(
    make_backend_config: MakeConfig, column: str, value: float
) -> None:
    config = make_backend_config("postgresql")
    raw = RawTable(config)
    check_column(Store("postgresql", Site(config), raw), column, value)
    raw.close()


def check_column(store: Store, column: str, value: t.Any) -> None:
    assert isinstance(store.raw, RawTable)
    for name, action in ACTIONS.items():
        if name in ("nested change", "log out"):
            continue  # of what may not be there
        browser = start(store.site, is_permanent=True)
        cookie = browser.cookie
        store.raw.set_column(store.key(browser), column, value)
        for visited in (read, action):
            browser.cookie = cookie
            assert browser.visit(visited).status_code == 200, (name, column, value)


# -- servers that answer nonsense


def test_a_server_that_is_none_is_unavailable() -> None:
    # Something else listens there, and hangs up.
    with socket.create_server(("127.0.0.1", find_free_port())) as listener:
        port = listener.getsockname()[1]
        site = Site(
            {
                "SESSION_BACKEND": "redis",
                "SESSION_REDIS_URL": f"redis://127.0.0.1:{port}",
            }
        )
        signed = start(Site({"SESSION_BACKEND": "memory"}))
        browser = site.browser()
        browser.cookie = signed.cookie
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answering = pool.submit(answer_nonsense, listener)
            assert_unavailable(browser.visit(read), site)
            listener.shutdown(socket.SHUT_RDWR)
            answering.result()


def answer_nonsense(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
