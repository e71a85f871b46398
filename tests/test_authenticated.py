"""When somebody logged in, and what counts from it."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import struct
import typing as t

import flask
import pytest
from flask import Flask
from flask import session
from flask.sessions import SecureCookieSessionInterface

from flask_serversession import SerializationError
from flask_serversession import ServerSession
from flask_serversession import ServerSessionError
from flask_serversession import session as typed_session
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.record import Record
from flask_serversession.record import key_of
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of

DAY = 86_400.0
KEY = base64.urlsafe_b64encode(bytes(32)).decode()


def make_site(**settings: t.Any) -> Site:
    clock = FakeClock()
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


def moment_of(browser: Browser) -> float | None:
    """Return what the session of a browser says, in seconds since the epoch."""
    found: list[dt.datetime | None] = []
    browser.visit(lambda: found.append(typed_session.authenticated_at))
    return None if found[0] is None else found[0].timestamp()


def is_fresh(browser: Browser, max_age: t.Any) -> bool:
    return browser.visit(lambda: typed_session.is_fresh(max_age)).text == "True"


def mark() -> None:
    typed_session.mark_authenticated()


def test_nobody_has_logged_in() -> None:
    browser = make_site().browser()
    assert moment_of(browser) is None
    browser.set(n=1)
    assert moment_of(browser) is None
    assert not is_fresh(browser, 10**9)


def test_it_is_known_at_once_and_changes_with_the_user() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(n=1)
    advance(site, 100)

    def log_in() -> None:
        session["user_id"] = "ada"
        now = typed_session.authenticated_at
        assert now is not None
        assert now.timestamp() == site.clock()
        assert now.tzinfo is dt.timezone.utc
        assert typed_session.is_fresh(0)

    start = site.clock()
    browser.visit(log_in)
    advance(site, 100)
    assert moment_of(browser) == start
    browser.set(user_id="bob")
    assert moment_of(browser) == start + 100
    browser.visit(lambda: session.pop("user_id"))
    assert moment_of(browser) is None


@pytest.mark.parametrize("encryption", [None, KEY])
def test_the_time_of_the_log_in_is_kept_through_everything(
    backend_config: Config, encryption: str | None
) -> None:
    site = Site(
        backend_config,
        SESSION_RENEWAL_INTERVAL=1000,
        SESSION_ENCRYPTION_KEY=encryption,
    )
    browser = site.browser()
    browser.set(user_id="ada", n=1)
    start = site.clock()
    slow, ids = browser.twin(), {browser.id}
    steps: list[t.Callable[[], t.Any]] = [
        lambda: session.update(n=2),
        lambda: typed_session.regenerate(),
        lambda: typed_session.atomic(lambda own: own.update(n=3)),
        lambda: typed_session.touch(),
        lambda: setattr(typed_session, "lifetime", DAY),
    ]
    for step in steps:
        advance(site, 61)
        browser.visit(step)
        ids.add(browser.id)
        assert moment_of(browser) == start
    slow.cookie = browser.cookie

    def meet() -> None:
        assert session["n"] == 3
        browser.set(m=1)
        session["n"] = 4

    slow.visit(meet)
    assert browser.read() == {"user_id": "ada", "n": 4, "m": 1}
    advance(site, 1001)
    browser.read()
    ids.add(browser.id)
    assert len(ids) == 3
    assert moment_of(browser) == start
    with site.app.app_context():
        info = site.extension.find(key_of(browser.id, ""))
    assert info is not None
    assert info.authenticated_at is not None
    assert info.authenticated_at.timestamp() == start


def test_who_proves_it_again_gets_a_new_id_and_all_time() -> None:
    site = make_site(SESSION_IDLE_TIMEOUT=600, SESSION_ABSOLUTE_TIMEOUT=DAY)
    browser = site.browser()
    browser.set(user_id="ada", n=1)
    advance(site, 500)
    former, old = browser.id, browser.twin()
    assert not is_fresh(browser, 499)
    assert is_fresh(browser, dt.timedelta(seconds=500))
    assert cookie_of(browser.visit(mark), site) == "set"
    assert browser.id != former
    assert moment_of(browser) == site.clock()
    assert old.read() == {}
    assert browser.read() == {"user_id": "ada", "n": 1}
    end = site.clock() + DAY
    while site.clock() + 500 < end:
        advance(site, 500)
        assert browser.read()["n"] == 1
    advance(site, end - site.clock())
    assert browser.read() == {}


def test_nobody_cannot_prove_it_again() -> None:
    browser = make_site().browser()
    for content in ({}, {"n": 1}):
        browser.set(**content)
        with pytest.raises(ServerSessionError, match="while nobody is logged in"):
            browser.visit(mark)


def test_it_cannot_be_proved_after_the_response() -> None:
    browser = make_site().browser()
    browser.set(user_id="ada")

    def stream() -> flask.Response:
        real = t.cast(t.Any, session)._get_current_object()
        real["user_id"]

        def generate() -> t.Iterator[str]:
            yield "begun"
            with pytest.raises(ServerSessionError, match="mark_authenticated"):
                real.mark_authenticated()

        return flask.Response(generate())

    assert browser.visit(stream).text == "begun"


@pytest.mark.parametrize("max_age", [True, -1, "60", None, float("nan"), [1]])
def test_an_age_that_is_none_is_refused(max_age: t.Any) -> None:
    with pytest.raises(ValueError, match=r"session\.is_fresh\(\) takes a timedelta"):
        make_site().browser().visit(lambda: typed_session.is_fresh(max_age))


def test_what_is_taken_back_was_not_proved() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(user_id="ada")
    start = site.clock()
    advance(site, 10)

    def change_and_fail(own: t.Any) -> None:
        own.mark_authenticated()
        raise LookupError

    def fail() -> None:
        with pytest.raises(LookupError):
            typed_session.atomic(change_and_fail)
        session["n"] = 1

    def reload() -> None:
        mark()
        typed_session.reload()
        session["n"] = 2

    for view in (fail, reload):
        browser.visit(view)
        assert moment_of(browser) == start


# What counts from it


@pytest.mark.parametrize("regenerates", [True, False])
def test_the_absolute_timeout_counts_from_the_log_in(
    backend_config: Config, regenerates: bool
) -> None:
    site = Site(
        backend_config,
        SESSION_ABSOLUTE_TIMEOUT=DAY,
        SESSION_REGENERATE_ON_LOGIN=regenerates,
    )
    browser = site.browser()
    browser.set(cart=1, _permanent=True)
    advance(site, DAY - 400)
    browser.set(user_id="ada")
    for seconds in (500, DAY - 501):
        advance(site, seconds)
        # Its cookie knows, which is all that a request has that does not look.
        browser.ignore()
        assert browser.read()["user_id"] == "ada"
    advance(site, 1)
    assert browser.read() == {}


def test_a_cookie_from_before_the_log_in_does_not_end_the_session() -> None:
    site = make_site(SESSION_ABSOLUTE_TIMEOUT=DAY, SESSION_REGENERATE_ON_LOGIN=False)
    browser = site.browser()
    browser.set(cart=1, _permanent=True)
    former = browser.twin()
    advance(site, DAY - 400)
    browser.set(user_id="ada")
    advance(site, 500)
    assert cookie_of(former.ignore(), site) == "none"
    assert browser.read()["user_id"] == "ada"


@pytest.mark.parametrize("regenerates", [True, False])
def test_what_a_log_out_leaves_is_not_too_old(regenerates: bool) -> None:
    site = make_site(
        SESSION_ABSOLUTE_TIMEOUT=DAY, SESSION_REGENERATE_ON_LOGIN=regenerates
    )
    browser = site.browser()
    browser.set(cart=1)
    advance(site, DAY - 10)
    browser.set(user_id="ada")
    advance(site, 20)

    def log_out() -> None:
        del session["user_id"]
        flask.flash("Good bye.")

    browser.visit(log_out)
    shown = browser.visit(lambda: ", ".join(flask.get_flashed_messages()))
    assert shown.text == "Good bye."
    advance(site, DAY)
    assert browser.read() == {}


def test_the_limit_ends_who_logged_in_first_and_lists_begin_with_him() -> None:
    site = make_site(SESSION_MAX_PER_USER=2)
    second, first, third = site.browser(), site.browser(), site.browser()
    second.set(cart=1)
    for browser in (first, second):
        advance(site, 10)
        browser.set(user_id="ada")
    with site.app.app_context():
        handles = [info.handle for info in site.extension.sessions_of("ada")]
    assert handles == [key_of(first.id, ""), key_of(second.id, "")]
    advance(site, 10)
    third.set(user_id="ada")
    assert first.read() == {}
    assert second.read()["user_id"] == third.read()["user_id"] == "ada"


# Where nobody knows


def of_version_0_1(site: Site, browser: Browser) -> None:
    """Store a session as version 0.1 did."""
    inner: t.Any = site.backend.backend
    key = key_of(browser.id, "session:")
    record: Record = inner.load(key)
    data = b"\1" + record.data[1:28] + record.data[36:]
    former = dataclasses.replace(record, data=data)
    assert inner.delete(key)
    assert inner.create(key, former)


def test_what_version_0_1_has_stored_is_never_fresh() -> None:
    site = make_site(SESSION_ABSOLUTE_TIMEOUT=DAY)
    browser = site.browser()
    browser.set(user_id="ada", n=1)
    start = site.clock()
    of_version_0_1(site, browser)
    for change in ({}, {"n": 2}):
        browser.set(**change)
        assert moment_of(browser) == start
        assert not is_fresh(browser, 10**6)
    with site.app.app_context():
        (info,) = site.extension.sessions_of("ada")
        assert info.authenticated_at == info.created_at
    advance(site, DAY - 1)
    assert browser.read()["n"] == 2
    browser.visit(mark)
    assert is_fresh(browser, 0)
    advance(site, DAY - 1)
    assert browser.read()["n"] == 2


def test_a_user_who_is_found_by_other_settings_has_not_just_logged_in() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock)
    before = Site({"SESSION_BACKEND": backend}, clock, SESSION_USER_KEY="account")
    after = Site({"SESSION_BACKEND": backend}, clock)
    browser = before.browser()
    browser.set(user_id="ada", n=1)
    cookie, browser = browser.cookie, after.browser()
    browser.cookie = cookie
    clock.advance(1000)
    assert not is_fresh(browser, 10**6)
    browser.set(n=2)
    assert not is_fresh(browser, 10**6)
    with after.app.app_context():
        assert len(after.extension.sessions_of("ada")) == 1


def test_who_is_taken_over_has_not_just_logged_in() -> None:
    app = Flask("app")
    app.config.update(
        SECRET_KEY="a secret",
        SESSION_BACKEND="memory",
        SESSION_MIGRATE_FROM="cookie",
        SESSION_MIGRATE_UNTIL="2100-01-01",
    )
    ServerSession(app)
    app.add_url_rule("/", view_func=lambda: f"{session['user_id']}")
    app.add_url_rule(
        "/fresh", view_func=lambda: str(typed_session.is_fresh(10**9)), endpoint="f"
    )
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    client = app.test_client()
    value = serializer.dumps({"user_id": "ada"})
    client.set_cookie("session", t.cast("str", value))
    assert client.get("/").text == "ada"
    assert client.get("/fresh").text == "False"


def test_a_time_that_was_changed_in_the_store_is_noticed() -> None:
    site = make_site(SESSION_ENCRYPTION_KEY=KEY)
    browser = site.browser()
    browser.set(user_id="ada")
    inner: t.Any = site.backend.backend
    key = key_of(browser.id, "session:")
    record: Record = inner.load(key)
    moment = struct.pack(">d", site.clock() + 1)
    data = record.data[:28] + moment + record.data[36:]
    inner.replace(key, dataclasses.replace(record, data=data), record.version)
    assert browser.read() == {}


# Other kinds of session


def test_without_a_secret_nobody_has_logged_in() -> None:
    app = Flask("app")
    app.config.update(SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app)
    with app.test_request_context():
        assert typed_session.authenticated_at is None
        assert not typed_session.is_fresh(60)
        with pytest.raises(RuntimeError, match="secret key"):
            typed_session.mark_authenticated()


def test_templates_may_ask_and_not_mark() -> None:
    browser = make_site().browser()
    template = (
        "{{ session.is_fresh(60) }} {{ session.authenticated_at.year }}"
        " {{ session.mark_authenticated }}"
    )

    def view() -> str:
        session["user_id"] = "ada"
        return flask.render_template_string(template)

    assert browser.visit(view).text == "True 2100 "


def test_a_user_who_cannot_be_told_is_refused() -> None:
    def view() -> None:
        session["user_id"] = {"sub": "ada"}
        for ask in (mark, lambda: typed_session.authenticated_at):
            with pytest.raises(SerializationError):
                ask()
        session.clear()

    assert make_site().browser().visit(view).status_code == 200


@pytest.mark.parametrize("regenerates", [True, False])
@pytest.mark.parametrize(
    "user_key", ["_user_id", lambda data: data["_user_id"]], ids=["key", "function"]
)
def test_a_user_who_was_taken_out_and_put_back_has_logged_in_anew(
    user_key: t.Any, regenerates: bool
) -> None:
    site = make_site(SESSION_USER_KEY=user_key, SESSION_REGENERATE_ON_LOGIN=regenerates)
    browser = site.browser()
    browser.set(_user_id="ada", n=1)
    id, began_at = browser.id, site.clock()
    advance(site, 20)

    def put_back() -> None:
        session.pop("_user_id")
        session["_user_id"] = "ada"

    browser.visit(put_back)
    assert moment_of(browser) == began_at + 20
    assert (browser.id != id) is regenerates
    advance(site, 20)
    id = browser.id
    browser.visit(lambda: (put_back(), typed_session.reload(), session.update(n=2)))
    browser.visit(lambda: session.update(_user_id="ada"))
    assert moment_of(browser) == began_at + 20
    assert browser.id == id
    assert browser.read() == {"_user_id": "ada", "n": 2}


def test_who_is_put_back_after_the_response_keeps_the_id() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(_user_id="ada")

    def stream() -> flask.Response:
        @flask.stream_with_context
        def body() -> t.Iterator[str]:
            yield "begun"
            del session["_user_id"]
            session["_user_id"] = "ada"
            session["n"] = 2
            typed_session.save()

        session.get("n")
        return flask.Response(body())

    assert browser.visit(stream).text == "begun"
    assert browser.read() == {"_user_id": "ada", "n": 2}
