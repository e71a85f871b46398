"""What was begun under Flask's own sessions, or Flask-Session's, goes on here."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import decimal
import hashlib
import json
import logging
import os
import pickle
import secrets
import textwrap
import time
import types
import typing as t
import uuid
import warnings
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import cachelib.serializers
import flask
import flask_login
import flask_session
import flask_wtf.csrf
import msgspec
import pytest
import sqlalchemy as sa
from cachelib import FileSystemCache
from cachelib import MemcachedCache
from cachelib import SimpleCache
from cachelib.serializers import SimpleSerializer
from flask import Flask
from flask import session
from flask.sessions import SecureCookieSessionInterface
from flask_sqlalchemy import SQLAlchemy
from itsdangerous import BadSignature
from markupsafe import Markup

from flask_serversession import BackendUnavailableError
from flask_serversession import ConfigurationError
from flask_serversession import RecordError
from flask_serversession import ServerSession
from flask_serversession import session as typed_session
from flask_serversession import signals
from flask_serversession.record import encode_record
from flask_serversession.takeover.flask_session import decode
from flask_serversession.takeover.flask_session.pickled import read_plain
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .servers import PostgresServer
from .servers import ValkeyServer
from .site import Browser
from .site import Site
from .site import cookie_of
from .test_cli import run

UNTIL = "2099-12-31"
ONCE = {"load": 1, "create": 2}

# What Flask's own session keeps as it is.
CONTENT: dict[str, t.Any] = {
    "_user_id": "ada",
    "_fresh": True,
    "_id": "d41d8cd98f00b204e9800998ecf8427e",
    "csrf_token": "0123456789abcdef",
    "_flashes": [("message", "Welcome"), ("message", Markup("<b>back</b>"))],
    "tuple": (1, ("two", None)),
    "bytes": b"\x00\xff",
    "moment": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc),
    "uuid": uuid.UUID(int=7),
    "cart": {"items": [{"n": 1, "price": 9.5}], "note": "", " t": ["no tag"]},
}
#: The same without what Flask-Session 0.8 refuses to store with msgspec.
OTHERS_CONTENT = {**CONTENT, "_flashes": [("message", "Welcome")]}


def make_site(config: Config | None = None, **settings: t.Any) -> Site:
    settings.setdefault("SESSION_MIGRATE_FROM", "cookie")
    settings.setdefault("SESSION_MIGRATE_UNTIL", UNTIL)
    clock = settings.pop("clock", time.time)
    return Site(config or {"SESSION_BACKEND": "memory"}, clock, **settings)


def flask_cookie(
    content: dict[str, t.Any] | None = None,
    secret: str = "a secret",
    is_permanent: bool = False,
) -> str:
    """Give what Flask itself makes of a session."""
    app = Flask("before")
    app.secret_key = secret
    client = app.test_client()
    with client.session_transaction() as before:
        before.permanent = is_permanent
        before.update(CONTENT if content is None else content)
    cookie = client.get_cookie("session")
    assert cookie is not None
    return cookie.value


def coming_with(site: Site, cookie: str) -> Browser:
    browser = site.browser()
    browser.cookie = cookie
    return browser


def bare(site: Site) -> Browser:
    """Give a browser without a jar, which sends the header that it is told to send."""
    browser = site.browser()
    browser.client = site.app.test_client(use_cookies=False)
    return browser


def times(number: int, function: Callable[[], object]) -> Callable[[], object]:
    """Give a hook that does nothing but at its n-th call."""
    calls = iter(range(1, number + 1))

    def hook() -> None:
        if next(calls, 0) == number:
            function()

    return hook


# -- Flask's cookie


def test_whoever_has_a_cookie_of_flasks_goes_on(backend_config: Config) -> None:
    site = make_site(backend_config)
    browser = coming_with(site, flask_cookie())
    assert browser.read() == {**CONTENT, "_permanent": False}
    browser.set(more=1)
    assert browser.read() == {**CONTENT, "_permanent": False, "more": 1}


@pytest.mark.parametrize("is_permanent", [True, False])
def test_a_permanent_session_stays_permanent_and_no_other(is_permanent: bool) -> None:
    site = make_site(SESSION_PERMANENT=True)
    browser = coming_with(site, flask_cookie({"n": 1}, is_permanent=is_permanent))
    response = browser.visit(lambda: session.permanent)
    assert response.text == str(is_permanent)
    assert ("Expires" in response.headers["Set-Cookie"]) is is_permanent
    assert "Cookie" in response.headers["Vary"]


def test_the_first_look_takes_over_and_those_after_cost_as_always() -> None:
    site = make_site()
    old = flask_cookie()
    browser = coming_with(site, old)
    assert browser.costs(lambda: None) == ({}, "none")
    assert browser.cookie == old
    assert browser.costs(lambda: session["cart"]) == (ONCE, "set")
    assert browser.cookie != old
    assert browser.costs(lambda: session["cart"]) == ({"load": 1}, "none")


def test_a_write_at_the_first_look_is_one_replace_more() -> None:
    browser = coming_with(make_site(), flask_cookie())
    assert browser.costs(lambda: session.update(n=1)) == ({**ONCE, "replace": 1}, "set")
    assert browser.read()["n"] == 1


def test_without_an_old_cookie_nothing_costs_more() -> None:
    browser = make_site(SESSION_MIGRATE_FROM=["cookie"]).browser()
    assert browser.costs(lambda: session.get("n")) == ({}, "none")
    assert browser.costs(lambda: session.update(n=1)) == ({"create": 1}, "set")
    assert browser.costs(lambda: session.get("n")) == ({"load": 1}, "none")


def test_a_cookie_of_ours_wins_over_an_old_one() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(whose="ours")
    both = f"session={flask_cookie({'whose': 'old'})}; session={browser.cookie}"
    calls, cookie = bare(site).costs(
        lambda: session["whose"] == "ours" or flask.abort(400), headers={"Cookie": both}
    )
    assert calls == {"load": 1}
    assert cookie == "none"


def test_an_ended_session_of_ours_does_not_bring_back_an_old_one() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(whose="ours")
    both = f"session={flask_cookie({'whose': 'old'})}; session={browser.cookie}"
    browser.visit(lambda: session.destroy())
    response = bare(site).visit(
        lambda: str(session.get("whose")), headers={"Cookie": both}
    )
    assert response.text == "None"


def test_an_answer_that_was_lost_logs_nobody_out() -> None:
    site = make_site()
    first = coming_with(site, flask_cookie())
    again = first.twin()
    first.set(n=1)
    assert again.costs(lambda: session["n"]) == ({"load": 2}, "set")
    assert again.id == first.id


def test_an_old_cookie_that_nobody_looks_at_is_left_alone() -> None:
    site = make_site()
    old = flask_cookie({"n": 1}, is_permanent=True)
    browser = coming_with(site, old)
    assert browser.costs(lambda: None) == ({}, "none")
    assert browser.costs(lambda: session.touch()) == ({}, "none")
    assert browser.cookie == old
    assert browser.read()["n"] == 1


def test_older_secrets_verify_old_cookies_too() -> None:
    site = make_site(SECRET_KEY="a new secret", SECRET_KEY_FALLBACKS=["a secret"])
    assert coming_with(site, flask_cookie({"n": 1})).read()["n"] == 1
    site = make_site(SECRET_KEY="a new secret")
    assert coming_with(site, flask_cookie({"n": 1})).read() == {}


def test_the_secret_may_change_while_old_cookies_are_around() -> None:
    site = make_site()
    first = coming_with(site, flask_cookie())
    again = first.twin()
    first.set(n=1)
    site.app.config.update(SECRET_KEY="a new one", SECRET_KEY_FALLBACKS=["a secret"])
    assert again.read()["n"] == 1
    assert again.id == first.id


def test_our_own_secret_is_not_flasks() -> None:
    site = make_site(SESSION_SECRET="of ours alone")
    first = coming_with(site, flask_cookie({"n": 1}))
    again = first.twin()
    assert first.read()["n"] == again.read()["n"] == 1
    assert again.id == first.id


def test_a_cookie_that_flask_would_not_accept_any_more_is_not_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = make_site(PERMANENT_SESSION_LIFETIME=100)
    long_ago = int(time.time()) - 200
    with monkeypatch.context() as patched:
        patched.setattr(
            "itsdangerous.TimestampSigner.get_timestamp", lambda _: long_ago
        )
        old = flask_cookie()
    assert coming_with(site, old).costs(lambda: session.get("n")) == ({}, "none")


def test_logging_in_and_out_goes_on_as_before() -> None:
    site = make_site()
    manager = flask_login.LoginManager(site.app)

    class User(flask_login.UserMixin):
        id = "ada"

    manager.user_loader(lambda _: User())
    before = Flask("before")
    before.secret_key = "a secret"
    flask_login.LoginManager(before).user_loader(lambda _: User())
    before.add_url_rule("/", "in", lambda: str(flask_login.login_user(User())))
    client = before.test_client()
    client.get("/")
    cookie = client.get_cookie("session")
    assert cookie is not None
    browser = coming_with(site, cookie.value)
    content = browser.read()
    assert content.keys() == {"_user_id", "_fresh", "_id"}
    account = flask_login.login_required(lambda: flask_login.current_user.id)
    assert browser.visit(account).text == "ada"
    browser.visit(flask_login.logout_user)
    assert browser.visit(account).status_code == 401
    assert coming_with(site, cookie.value).visit(account).status_code == 401


def test_a_form_that_was_open_during_the_switch_can_be_sent() -> None:
    before = Flask("before")
    before.secret_key = "a secret"
    before.add_url_rule("/", "form", flask_wtf.csrf.generate_csrf)
    client = before.test_client()
    token = client.get("/").text
    cookie = client.get_cookie("session")
    assert cookie is not None
    site = make_site()
    flask_wtf.csrf.CSRFProtect(site.app)
    browser = coming_with(site, cookie.value)
    for given, status in ((token, 200), ("another", 400)):
        url = site.add(lambda: "sent")
        response = browser.client.post(url, data={"csrf_token": given})
        assert response.status_code == status


def test_who_is_logged_in_is_listed_and_can_be_revoked() -> None:
    site = make_site(clock=time.time)
    browser = coming_with(site, flask_cookie())
    with site.app.app_context():
        assert site.extension.sessions_of("ada") == []
    browser.read()
    with site.app.app_context():
        (info,) = site.extension.sessions_of("ada")
        assert abs(info.created_at.timestamp() - time.time()) < 3600
        assert site.extension.count() == 1
        assert site.extension.revoke_user("ada") == 1
    assert browser.read() == {}


def test_the_limit_of_sessions_holds_for_those_that_are_taken_over() -> None:
    site = make_site(SESSION_MAX_PER_USER=1)
    browsers = [
        coming_with(site, flask_cookie({"_user_id": "ada", "n": n})) for n in (1, 2)
    ]
    assert browsers[0].read()["n"] == 1
    assert browsers[1].read()["n"] == 2
    assert browsers[0].read() == {}


def test_what_is_taken_over_is_told_as_created(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make_site()
    told: list[t.Any] = []

    def receive(app: Flask, **values: t.Any) -> None:
        told.append(values)

    caplog.set_level(logging.DEBUG, "flask_serversession")
    old = flask_cookie()
    browser = coming_with(site, old)
    with (
        signals.session_created.connected_to(receive),
        signals.session_rejected.connected_to(receive),
    ):
        handle = browser.visit(lambda: session.handle).text
        browser.visit(lambda: session["cart"])
    assert told == [{"handle": handle, "user": "ada"}]
    assert f"Session {handle} taken over: it was one of 'cookie'" in caplog.messages
    for secret in (old, browser.id, old.rpartition(".")[2]):
        assert secret not in caplog.text


def test_a_receiver_that_fails_loses_nothing() -> None:
    site = make_site(PROPAGATE_EXCEPTIONS=False)
    browser = coming_with(site, flask_cookie())

    def fail(app: Flask, **values: t.Any) -> None:
        raise RuntimeError("a receiver")

    with signals.session_created.connected_to(fail):
        assert browser.visit(lambda: session["cart"]).status_code == 500
    assert browser.read()["_user_id"] == "ada"


# -- replaying it


def destroy() -> None:
    session.destroy()


def look_and_destroy() -> None:
    assert session["cart"]
    session.destroy()


def clear() -> None:
    session.clear()


def remove_all() -> None:
    for key in list(session):
        del session[key]


ENDS = [destroy, look_and_destroy, clear, remove_all]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("is_first", [True, False])
def test_an_old_cookie_brings_back_nothing_that_was_ended(
    end: Callable[[], None], is_first: bool
) -> None:
    site = make_site()
    old = flask_cookie()
    browser = coming_with(site, old)
    if not is_first:
        browser.read()
    assert cookie_of(browser.visit(end), site) == "deleted"
    thief = coming_with(site, old)
    assert thief.read() == {}
    assert thief.costs(lambda: session.get("n")) == ({"load": 2}, "none")
    thief.set(mine=1)
    assert thief.read() == {"mine": 1}
    assert coming_with(site, old).read() == {}


def test_nor_does_it_on_any_backend_however_long_ago_that_was(
    make_backend_config: Callable[[str], Config],
) -> None:
    for name in ("filesystem", "valkey", "sqlite", "cachelib-filesystem"):
        site = make_site(make_backend_config(name))
        old = flask_cookie()
        coming_with(site, old).visit(look_and_destroy)
        with site.app.app_context(), contextlib.suppress(Exception):
            site.extension.prune()
        assert coming_with(site, old).read() == {}, name


def test_a_marker_stays_as_long_as_an_old_cookie_could_be_accepted() -> None:
    now = time.time()
    clock = FakeClock(now)
    site = make_site(
        clock=clock,
        SESSION_MIGRATE_UNTIL=dt.datetime.fromtimestamp(
            now + 86400 * 200, dt.timezone.utc
        ),
    )
    old = flask_cookie()
    coming_with(site, old).visit(look_and_destroy)
    clock.advance(86400 * 199)
    assert coming_with(site, old).read() == {}
    (entry,) = site.backend.backend._entries.values()  # type: ignore[attr-defined]
    assert entry.record.expires_at == pytest.approx(now + 86400 * 231, abs=1)


def test_a_marker_is_small_and_no_session() -> None:
    site = make_site()
    coming_with(site, flask_cookie()).visit(look_and_destroy)
    (entry,) = site.backend.backend._entries.values()  # type: ignore[attr-defined]
    assert len(encode_record(entry.record)) == 194  # as the documentation says
    with site.app.app_context():
        assert site.extension.count() == 0
        assert list(site.extension.sessions()) == []


def test_an_earlier_cookie_of_flasks_is_a_session_of_its_own() -> None:
    # Flask's sessions have no id, so nothing can tell; the documentation says so.
    site = make_site()
    earlier, last = flask_cookie(), flask_cookie({**CONTENT, "n": 2})
    coming_with(site, last).visit(destroy)
    thief = coming_with(site, earlier)
    assert thief.read()["_user_id"] == "ada"
    with site.app.app_context():
        assert site.extension.revoke_user("ada") == 1
    assert thief.read() == {}
    assert coming_with(site, earlier).read() == {}


def test_what_was_not_taken_over_yet_is_on_no_list() -> None:
    site = make_site()
    old = flask_cookie()
    with site.app.app_context():
        assert site.extension.revoke_user("ada") == 0
    assert coming_with(site, old).read()["_user_id"] == "ada"


def test_without_the_setting_what_was_taken_over_stays() -> None:
    site = make_site()
    taken, other = (coming_with(site, flask_cookie({"n": n})) for n in (1, 2))
    assert taken.read()["n"] == 1
    cookies = taken.cookie, other.cookie
    after = make_site(
        {"SESSION_BACKEND": site.backend.backend}, SESSION_MIGRATE_FROM=None
    )
    found = [coming_with(after, t.cast(str, cookie)).read() for cookie in cookies]
    assert found == [{"n": 1, "_permanent": False}, {}]


def test_logging_out_is_no_way_back_either() -> None:
    site = make_site(SESSION_ROTATION_GRACE=0)
    old = flask_cookie()
    browser = coming_with(site, old)
    browser.visit(lambda: session.pop("_user_id"))
    assert browser.read()["cart"] == CONTENT["cart"]
    assert coming_with(site, old).read() == {}


def test_while_the_id_changes_an_old_cookie_does_no_harm() -> None:
    site = make_site()
    old = flask_cookie()
    browser = coming_with(site, old)
    browser.visit(lambda: session.regenerate())
    other = coming_with(site, old)
    assert other.costs(lambda: session.update(n=1)) == ({"load": 2}, "none")
    assert "n" not in browser.read()


def test_an_old_cookie_ends_what_has_got_a_new_id_meanwhile() -> None:
    site = make_site()
    old = flask_cookie()
    browser = coming_with(site, old)
    browser.visit(lambda: session.regenerate())
    coming_with(site, old).visit(destroy)
    assert browser.read() == {}


def test_another_spelling_of_the_signature_is_the_same_cookie() -> None:
    site = make_site()
    old = flask_cookie()
    coming_with(site, old).visit(look_and_destroy)
    start, last = old[:-1], old[-1]
    serializer = SecureCookieSessionInterface().get_signing_serializer(site.app)
    assert serializer is not None
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = []
    for spelling in [*(start + c for c in alphabet if c != last), start + "*" + last]:
        try:
            content = serializer.loads(spelling)
        except BadSignature:
            continue
        assert content == {**CONTENT, "_permanent": False}
        accepted.append(spelling)
        assert coming_with(site, spelling).read() == {}
    assert len(accepted) >= 3


def test_nothing_in_the_store_leads_to_the_id() -> None:
    site = make_site()
    old = flask_cookie()
    browser = coming_with(site, old)
    browser.read()
    records = site.backend.backend._entries  # type: ignore[attr-defined]
    assert len(records) == 2
    stored = "".join(
        f"{entry.record} {entry.record.data}" for entry in records.values()
    )
    for secret in (browser.id, old, *filter(None, old.split("."))):
        assert secret not in stored
    with site.app.test_request_context():
        known = session._get_current_object()._unit  # type: ignore[attr-defined]
        other = type(known.signer)(["another secret"])
        assert other.derive_ids(b"cookie") != known.signer.derive_ids(b"cookie")


# -- two requests at once


@pytest.mark.parametrize(
    ("operation", "number"), [("load", 1), ("create", 1), ("create", 2)]
)
def test_two_requests_at_the_switch_share_one_session(
    operation: str, number: int
) -> None:
    site = make_site()
    one = coming_with(site, flask_cookie())
    two = one.twin()
    hook = times(number, lambda: two.set(two=2))
    site.backend.before[operation] = hook
    one.set(one=1)
    site.backend.before.clear()
    assert one.id == two.id
    assert one.read() == {**CONTENT, "_permanent": False, "one": 1, "two": 2}
    with site.app.app_context():
        assert len(site.extension.sessions_of("ada")) == 1
    assert len(site.backend.backend._entries) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [1, 2])
def test_a_log_out_at_the_switch_is_not_undone(number: int) -> None:
    site = make_site()
    one = coming_with(site, flask_cookie())
    two = one.twin()
    site.backend.before["create"] = times(number, lambda: two.visit(destroy))
    one.set(one=1)
    site.backend.before.clear()
    with site.app.app_context():
        assert site.extension.sessions_of("ada") == []
    assert "_user_id" not in one.read()
    assert two.read() == {}


def test_an_answer_of_the_engine_that_was_lost_is_no_other_request() -> None:
    site = make_site()
    browser = coming_with(site, flask_cookie())
    backend = site.backend.backend
    create = backend.create

    def create_twice(key: str, record: t.Any) -> bool:
        is_created = create(key, record)
        return create(key, record) if record.is_tombstone else is_created

    backend.create = create_twice  # type: ignore[method-assign]
    assert browser.read()["_user_id"] == "ada"
    assert len(backend._entries) == 2  # type: ignore[attr-defined]


class Killed(BaseException):
    pass


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_process_that_dies_at_the_switch_loses_nothing(
    when: str, number: int
) -> None:
    site = make_site()
    browser = coming_with(site, flask_cookie())
    hooks = getattr(site.backend, when)
    hooks["create"] = times(number, kill)
    with pytest.raises(Killed):
        browser.visit(lambda: session["cart"])
    hooks.clear()
    assert browser.read() == {**CONTENT, "_permanent": False}
    browser.visit(destroy)
    assert browser.twin().read() == {}


@pytest.mark.parametrize("operation", ["load", "create"])
def test_a_backend_that_is_down_at_the_switch_loses_nothing(operation: str) -> None:
    site = make_site()
    old = flask_cookie()
    browser = coming_with(site, old)
    with site.backend.failing(operation):
        response = browser.visit(lambda: session["cart"])
    assert response.status_code == 503
    assert cookie_of(response, site) == "none"
    assert browser.read()["_user_id"] == "ada"


def test_where_failures_are_ignored_the_old_cookie_stays() -> None:
    site = make_site(SESSION_ON_BACKEND_ERROR="ignore")
    old = flask_cookie()
    browser = coming_with(site, old)
    for operation in ("load", "create"):
        with site.backend.failing(operation):
            response = browser.visit(lambda: session.get("n"))
            assert (response.status_code, response.text) == (200, "")
            response = browser.visit(lambda: session.setdefault("n", 1))
        assert response.status_code == 503
        assert browser.cookie == old
    assert "n" not in browser.read()


def test_a_log_out_that_the_backend_refuses_does_not_look_like_one() -> None:
    site = make_site()
    browser = coming_with(site, flask_cookie())
    for end in (destroy, clear):
        with site.backend.failing("create"):
            assert browser.visit(end).status_code == 503
    assert browser.read()["_user_id"] == "ada"


@pytest.mark.parametrize("operation", ["load", "create"])
@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_a_view_that_hides_a_log_out_that_failed_does_not_answer_success(
    operation: str, policy: str
) -> None:
    site = make_site(SESSION_ON_BACKEND_ERROR=policy)
    browser = coming_with(site, flask_cookie())

    def look_after_clear() -> None:
        session.clear()
        with contextlib.suppress(BackendUnavailableError):
            session.get("n")

    def hide_what_destroy_raises() -> None:
        with contextlib.suppress(BackendUnavailableError):
            destroy()

    for end in (clear, look_after_clear, hide_what_destroy_raises):
        with site.backend.failing(operation):
            assert browser.visit(end).status_code == 503
    assert browser.read()["_user_id"] == "ada"


def test_an_old_cookie_is_not_shown_as_an_id_while_the_backend_is_down() -> None:
    site = make_site(SESSION_ON_BACKEND_ERROR="ignore")
    browser = coming_with(site, flask_cookie())
    with site.backend.failing("load"):
        assert browser.visit(lambda: typed_session.id).text == ""


def test_an_error_page_brings_the_new_cookie_as_well() -> None:
    site = make_site(SESSION_SAVE_ON_ERROR=False)
    browser = coming_with(site, flask_cookie())

    def view() -> flask.Response:
        session["n"] = 1
        return flask.make_response("sorry", 500)

    assert cookie_of(browser.visit(view), site) == "set"
    assert browser.read() == {**CONTENT, "_permanent": False}


# -- cookies that nobody should send


def bomb(size: int) -> str:
    """Give a cookie with the right signature that unpacks to very much."""
    app = Flask("before")
    app.secret_key = "a secret"
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    packed = zlib.compress(b'{"a":"' + b"a" * size + b'"}', 9)
    payload = b"." + base64.urlsafe_b64encode(packed).rstrip(b"=")
    return serializer.make_signer(serializer.salt).sign(payload).decode()


def signed(payload: bytes) -> str:
    app = Flask("before")
    app.secret_key = "a secret"
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    return serializer.make_signer(serializer.salt).sign(payload).decode()


GENUINE = flask_cookie()


def name_of(cookie: str) -> str:
    # There is a time in it, and pytest's workers have to name tests alike.
    return "cookie"


@pytest.mark.parametrize(
    "cookie",
    [
        flask_cookie(secret="another secret"),
        GENUINE[:-6],
        GENUINE[10:],
        GENUINE.rpartition(".")[0],
        f"{GENUINE}{'A' * 100_000}",
        "." * 3000,
        "A" * 100_000,
        "é" * 100,
        "..",
        "-",
        "x.y.z",
    ],
    ids=name_of,
)
@pytest.mark.parametrize("source", ["cookie", ["cookie", "flask-session"]])
def test_a_forged_or_damaged_cookie_costs_nothing(
    cookie: str, source: t.Any, tmp_path: Path
) -> None:
    site = make_site(
        SESSION_MIGRATE_FROM=source,
        SESSION_MIGRATE_STORE=FileSystemCache(str(tmp_path), threshold=0),
    )
    browser = bare(site)
    headers = {"Cookie": f"session={cookie}"}
    assert browser.costs(lambda: session.get("n"), headers=headers) == ({}, "none")
    write = lambda: session.update(n=1)  # noqa: E731
    assert browser.costs(write, headers=headers) == ({"create": 1}, "set")


@pytest.mark.parametrize(
    "cookie",
    [
        bomb(2_000_000),
        signed(b".AAAA"),
        signed(b"."),
        signed(b"[]"),
        signed(base64.urlsafe_b64encode(b"[1]").rstrip(b"=")),
        signed(base64.urlsafe_b64encode(b'{"a":{" t":1}}').rstrip(b"=")),
        signed(base64.urlsafe_b64encode(b"[" * 2900)),
        signed(base64.urlsafe_b64encode(b"\xff\xfe")),
        flask_cookie({"_user_id": ["ada"]}),
    ],
    ids=name_of,
)
def test_a_signed_cookie_that_makes_no_sense_is_no_session(
    cookie: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()
    browser = coming_with(site, cookie)
    for _ in range(2):
        assert browser.visit(lambda: dict(session)).text == "{}"
    (message,) = caplog.messages
    assert "cannot be read" in message
    assert len(message) < 400
    browser.set(n=1)
    assert browser.read() == {"n": 1}


def test_what_is_too_large_for_a_session_is_not_unpacked() -> None:
    site = make_site(SESSION_MAX_SIZE=1000)
    assert coming_with(site, flask_cookie({"a": "a" * 2000})).read() == {}
    assert coming_with(site, flask_cookie({"a": "a" * 500})).read()["a"] == "a" * 500


def test_what_the_serializer_does_not_take_is_no_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Picky:
        def dumps(self, content: dict[str, t.Any]) -> bytes:
            if "cart" in content:
                raise TypeError("no carts")
            return json.dumps(content).encode()

        def loads(self, value: bytes) -> t.Any:
            return json.loads(value)

    browser = coming_with(make_site(SESSION_SERIALIZER=Picky()), flask_cookie())
    assert browser.visit(lambda: dict(session)).text == "{}"
    assert "It cannot be stored here." in caplog.text


# -- until when


def test_after_its_end_nothing_is_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    now = time.time()
    clock = FakeClock(now)
    end = dt.datetime.fromtimestamp(now + 100, dt.timezone.utc)
    site = make_site(clock=clock, SESSION_MIGRATE_UNTIL=end)
    before = coming_with(site, flask_cookie({"n": 1}))
    late, later = before.twin(), before.twin()
    assert before.read()["n"] == 1
    clock.advance(101)
    for browser in (late, later):
        assert browser.costs(lambda: session.get("n")) == ({}, "none")
    assert caplog.messages == [
        "No session is taken over any more: 'SESSION_MIGRATE_UNTIL' was"
        f" {end}. Remove 'SESSION_MIGRATE_FROM' and what goes with it."
    ]
    assert before.read()["n"] == 1


def test_an_end_that_has_passed_is_told_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Nor is the old store needed any more.
    site = make_site(
        SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_UNTIL="2020-02-29"
    )
    assert {m for m in caplog.messages if "taken over" in m} == {
        "No session is taken over any more: 'SESSION_MIGRATE_UNTIL' was"
        " 2020-03-01 00:00:00+00:00. Remove 'SESSION_MIGRATE_FROM' and what goes with"
        " it."
    }
    assert coming_with(site, flask_cookie()).read() == {}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2030-01-31", "2030-02-01T00:00:00+00:00"),
        (dt.date(2030, 1, 31), "2030-02-01T00:00:00+00:00"),
        ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00+00:00"),
        ("2030-01-31 12:00+02:00", "2030-01-31T10:00:00+00:00"),
        (
            dt.datetime(2030, 1, 31, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
            "2030-01-31T05:00:00+00:00",
        ),
    ],
)
def test_the_end_is_a_moment_or_a_whole_day(given: t.Any, meant: str) -> None:
    site = make_site(SESSION_MIGRATE_UNTIL=given)
    assert site.state.config.migrate_until == dt.datetime.fromisoformat(meant)


@pytest.mark.parametrize(
    "given",
    [
        dt.datetime(2030, 1, 31),  # noqa: DTZ001
        "2030-01-31T12:00:00",
        "tomorrow",
        "9999-12-31",
        "0001-01-01T00:00+14:00",
        1,
        True,
        "",
    ],
)
def test_an_end_that_is_no_moment_is_refused(given: t.Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_site(SESSION_MIGRATE_UNTIL=given)
    assert caught.value.option == "SESSION_MIGRATE_UNTIL"
    assert str(caught.value).startswith(f"'SESSION_MIGRATE_UNTIL' is {given!r}; ")


def test_an_end_has_to_be_given() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_site(SESSION_MIGRATE_UNTIL=None)
    assert str(caught.value) == (
        "'SESSION_MIGRATE_FROM' is 'cookie', which needs 'SESSION_MIGRATE_UNTIL': the"
        " day after which nobody needs the old sessions any more, such as '2030-01-31'."
    )


@pytest.mark.parametrize(
    "given", ["cookies", [], ["cookie", 1], 1, ("cookie", "redis")]
)
def test_a_source_that_is_none_is_refused(given: t.Any) -> None:
    with pytest.raises(ConfigurationError, match="'cookie' or 'flask-session'"):
        make_site(SESSION_MIGRATE_FROM=given)


# -- Flask-Session


class Before:
    """An application with the real Flask-Session, and how to find what it stored."""

    def __init__(self, config: Config, migration: Config) -> None:
        self.app = Flask("before")
        self.app.config.update(SECRET_KEY="a secret", TESTING=True, **config)
        if "SQLALCHEMY_DATABASE_URI" in config:
            self.db = SQLAlchemy(self.app)
            self.app.config["SESSION_SQLALCHEMY"] = self.db
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its signer
            flask_session.Session(self.app)
        self.interface: t.Any = self.app.session_interface
        prefix = self.app.config.get("SESSION_KEY_PREFIX", "session:")
        self.migration = {
            "SESSION_MIGRATE_FROM": "flask-session",
            "SESSION_KEY_PREFIX": prefix,
            "SESSION_USE_SIGNER": self.app.config.get("SESSION_USE_SIGNER", False),
            **migration,
        }

    def begin(self, content: dict[str, t.Any] | None = None) -> tuple[str, t.Any]:
        """Begin a session; give its cookie and what Flask-Session makes of it."""
        client = self.app.test_client()
        with client.session_transaction() as before:
            before.update(OTHERS_CONTENT if content is None else content)
        with client.session_transaction() as before:
            kept = dict(before)
        cookie = client.get_cookie("session")
        assert cookie is not None
        return cookie.value, kept

    def key(self, cookie: str) -> str:
        return f"{self.migration['SESSION_KEY_PREFIX']}{cookie.partition('.')[0]}"

    def find(self, cookie: str) -> t.Any:
        with self.app.app_context():
            return self.interface._retrieve_session_data(self.key(cookie))

    def put(self, cookie: str, value: bytes) -> None:
        """Replace what is stored, in Redis or in the table."""
        if hasattr(self.interface, "cache"):
            name = self.interface.cache._get_filename(self.key(cookie))
            Path(name).write_bytes(Path(name).read_bytes()[:4] + value)
        elif hasattr(self, "db"):
            model = self.interface.sql_session_model
            with self.app.app_context():
                model.query.filter_by(session_id=self.key(cookie)).one().data = value
                self.db.session.commit()
        else:
            self.interface.client.set(self.key(cookie), value, ex=3600)


MakeBefore = Callable[..., Before]


@pytest.fixture
def make_before(
    tmp_path: Path, get_server: t.Any, make_backend_config: Callable[[str], Config]
) -> Iterator[MakeBefore]:
    with contextlib.ExitStack() as stack:

        def make(store: str, **settings: t.Any) -> Before:
            if store == "files":
                cache = FileSystemCache(str(tmp_path / "old"), threshold=0)
                config = {"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": cache}
                return Before({**config, **settings}, {"SESSION_MIGRATE_STORE": cache})
            if store == "valkey":
                from redis import Redis

                prefix = make_backend_config("valkey")["SESSION_KEY_PREFIX"]
                client = stack.enter_context(
                    Redis.from_url(get_server(ValkeyServer).url)
                )
                config = {
                    "SESSION_TYPE": "redis",
                    "SESSION_REDIS": client,
                    "SESSION_KEY_PREFIX": prefix,
                }
                return Before({**config, **settings}, {"SESSION_MIGRATE_STORE": client})
            if store == "sqlite":
                url, table = f"sqlite:///{tmp_path / 'old.db'}", "sessions"
            else:
                table = make_backend_config("postgresql")["SESSION_SQLALCHEMY_TABLE"]
                url = get_server(PostgresServer).url
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            config = {
                "SESSION_TYPE": "sqlalchemy",
                "SQLALCHEMY_DATABASE_URI": url,
                "SESSION_SQLALCHEMY_TABLE": table,
                "SQLALCHEMY_ENGINE_OPTIONS": {"poolclass": sa.NullPool},
            }
            return Before(
                {**config, **settings},
                {"SESSION_MIGRATE_STORE": engine, "SESSION_MIGRATE_TABLE": table},
            )

        yield make


STORES = ["valkey", "sqlite", "postgresql", "files"]


@pytest.fixture(params=STORES)
def before(request: pytest.FixtureRequest, make_before: MakeBefore) -> Before:
    return make_before(request.param)


def test_whoever_has_a_session_of_flask_sessions_goes_on(before: Before) -> None:
    cookie, kept = before.begin()
    assert kept["_permanent"] is True
    assert kept["moment"] == CONTENT["moment"]
    site = make_site(**before.migration)
    browser = coming_with(site, cookie)
    assert browser.costs(lambda: session["cart"]) == (ONCE, "set")
    assert browser.costs(lambda: session["cart"])[0] == {"load": 1}
    assert browser.id != cookie
    assert browser.read() == kept
    assert before.find(cookie) is None
    browser.visit(lambda: session.update(more=1))
    browser.visit(lambda: session.destroy())
    assert coming_with(site, cookie).read() == {}


@pytest.mark.parametrize("store", ["valkey", "sqlite", "files"])
@pytest.mark.parametrize(
    "settings",
    [
        {"SESSION_SERIALIZATION_FORMAT": "json"},
        {"SESSION_USE_SIGNER": True},
        {"SESSION_PERMANENT": False},
    ],
)
def test_it_does_so_whatever_flask_sessions_settings_were(
    store: str, settings: Config, make_before: MakeBefore
) -> None:
    before = make_before(store, **settings)
    cookie, kept = before.begin()
    assert coming_with(make_site(**before.migration), cookie).read() == kept
    assert before.find(cookie) is None


@pytest.mark.parametrize("store", ["valkey", "files"])
def test_what_flask_session_keeps_comes_back_as_it_did(
    store: str, make_before: MakeBefore
) -> None:
    before = make_before(store)
    content = {
        "date": dt.date(2026, 1, 2),
        "time": dt.time(1, 2, 3, 4),
        "span": dt.timedelta(days=1, microseconds=5),
        "naive": dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
        "zone": dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        "decimal": decimal.Decimal("1.50"),
        "set": {1, 2},
        "frozen": frozenset({"a"}),
        "none": None,
        "numbers": [0, -1, 255, 70_000, -(2**31), 2**62, 1.5, True, False],
        "text": "a" * 300 + "é\U0001f600",
        "bytes": b"b" * 300,
        "empty": [[], {}, (), set()],
        "nested": {"a": {"b": [{"c": ("d",)}]}},
        1: "a number",
    }
    if store == "files":
        shared = ["the same list twice"]
        content["markup"] = Markup("<b>")
        content |= {"big": 2**80, "one": shared, "two": shared}
    cookie, kept = before.begin(t.cast("dict[str, t.Any]", content))
    site = make_site(**before.migration)
    assert coming_with(site, cookie).read() == kept


def test_a_signed_id_is_needed_where_ids_were_signed(make_before: MakeBefore) -> None:
    before = make_before("files", SESSION_USE_SIGNER=True)
    cookie, kept = before.begin({"n": 1})
    id = cookie.partition(".")[0]
    site = make_site(**before.migration)
    for forged in (id, cookie[:-1], f"{id}.{'A' * 27}"):
        assert coming_with(site, forged).costs(lambda: session.get("n"))[0] == {}
    changed = {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": ["a secret"]}
    assert coming_with(make_site(**before.migration, **changed), cookie).read() == kept


def test_unsigned_ids_are_not_signed_ones(make_before: MakeBefore) -> None:
    before = make_before("files")
    cookie, _ = before.begin({"n": 1})
    site = make_site(**{**before.migration, "SESSION_USE_SIGNER": True})
    assert coming_with(site, cookie).costs(lambda: session.get("n"))[0] == {}
    assert before.find(cookie) is not None


def test_cookies_of_both_kinds_are_taken_over(before: Before) -> None:
    site = make_site(
        **{**before.migration, "SESSION_MIGRATE_FROM": ["flask-session", "cookie"]}
    )
    cookie, kept = before.begin()
    assert coming_with(site, cookie).read() == kept
    assert coming_with(site, flask_cookie({"n": 1})).read()["n"] == 1


def test_the_files_of_flask_session_are_a_cache(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of this whole type
        before = Before(
            {"SESSION_TYPE": "filesystem", "SESSION_FILE_DIR": str(tmp_path / "old")},
            {"SESSION_MIGRATE_STORE": FileSystemCache(str(tmp_path / "old"))},
        )
    cookie, kept = before.begin()
    browser = coming_with(make_site(**before.migration), cookie)
    assert browser.read() == kept
    assert before.find(cookie) is None
    assert before.interface.cache._file_count == 0
    browser.visit(destroy)
    assert coming_with(browser.site, cookie).read() == {}


def test_files_may_have_the_names_that_cachelib_gave_them_before(
    tmp_path: Path,
) -> None:
    old = FileSystemCache(str(tmp_path), hash_method=hashlib.md5)
    cookie = secrets.token_urlsafe(32)
    old.set(f"session:{cookie}", {"n": 1})
    for hash_method, found in ((hashlib.sha256, {}), (hashlib.md5, {"n": 1})):
        cache = FileSystemCache(str(tmp_path), hash_method=hash_method)
        site = make_site(
            SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=cache
        )
        assert coming_with(site, cookie).read() == found
    assert not old.has(f"session:{cookie}")


def test_a_count_of_files_that_is_none_loses_no_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FileSystemCache(str(tmp_path / "old"))
    cache.set("session:" + "x" * 43, {"n": 1})
    assert cache._file_count == 1
    site = make_site(SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=cache)
    evil = tmp_path / "evil"
    count = Path(cache._get_filename(cache._fs_count_file))
    count.write_bytes(bytes(4) + pickle.dumps(Evil(evil)))
    browser = coming_with(site, "x" * 43)
    assert browser.read() == {"n": 1}
    assert not evil.exists()
    assert not cache.has("session:" + "x" * 43)
    (message,) = caplog.messages
    assert message.endswith("removed: The cache's count of its files is none.")


def test_an_unknown_id_costs_one_look_here_and_one_there(before: Before) -> None:
    site = make_site(**before.migration)
    browser = coming_with(site, secrets.token_urlsafe(32))
    assert browser.costs(lambda: session.get("n")) == ({"load": 1}, "none")
    browser.set(n=1)
    assert browser.read() == {"n": 1}


@pytest.mark.parametrize("operation", ["load", "create"])
@pytest.mark.parametrize("number", [1, 2])
def test_two_requests_with_an_id_of_flask_sessions_share_one_session(
    operation: str, number: int, make_before: MakeBefore
) -> None:
    before = make_before("files")
    cookie, kept = before.begin()
    site = make_site(**before.migration)
    one = coming_with(site, cookie)
    two = one.twin()
    site.backend.before[operation] = times(number, lambda: two.set(two=2))
    one.set(one=1)
    site.backend.before.clear()
    two.set(two=2)
    assert one.id == two.id
    assert one.read() == {**kept, "one": 1, "two": 2}
    assert before.find(cookie) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("valkey", "valkey"),
        ("sqlite", "sqlite"),
        ("postgresql", "postgresql"),
        ("files", "filesystem"),
        ("sqlite", "valkey"),
    ],
)
def test_workers_that_race_for_a_session_of_flask_sessions_take_it_over_once(
    old: str,
    new: str,
    make_before: MakeBefore,
    make_backend_config: Callable[[str], Config],
) -> None:
    # One that is removed from the server afterwards.
    prefix = make_backend_config("valkey")["SESSION_KEY_PREFIX"]
    before = make_before(old, SESSION_KEY_PREFIX=prefix)
    config = {**make_backend_config(new), "SESSION_KEY_PREFIX": prefix}
    one_worker, another_worker = (
        make_site(config, **before.migration) for _ in range(2)
    )
    # Wherever the other request comes in between, as a whole.
    places = [
        (one_worker.backend, "before", "load", 1),
        (one_worker.backend, "after", "load", 1),
        (one_worker.backend, "before", "create", 1),
        (one_worker.backend, "before", "create", 2),
        (one_worker.backend, "after", "create", 2),
    ]
    for number, (backend, when, operation, call) in enumerate(places):
        cookie, kept = before.begin({"_user_id": f"user {number}"})
        one = coming_with(one_worker, cookie)
        two = coming_with(another_worker, cookie)
        hooks = getattr(backend, when)
        hooks[operation] = times(call, lambda two=two: two.set(two=2))  # type: ignore[misc]
        one.set(one=1)
        hooks.clear()
        place = f"{when} {operation} {call}"
        assert one.id == two.id, place
        assert one.read() == two.read() == {**kept, "one": 1, "two": 2}, place
        assert before.find(cookie) is None
        with one_worker.app.app_context():
            found = one_worker.extension.sessions_of(f"user {number}")
            assert len(found) == 1, place


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("operation", ["read", "remove"])
def test_the_other_request_may_come_at_any_look_into_the_old_store(
    when: str, operation: str, before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie, kept = before.begin()
    site = make_site(**before.migration)
    one = coming_with(site, cookie)
    two = one.twin()
    store = t.cast(t.Any, site.state.takeover).store
    function = getattr(store, operation)

    def interrupted(key: str) -> t.Any:
        monkeypatch.undo()
        if when == "before":
            two.set(two=2)
        result = function(key)
        if when == "after":
            two.set(two=2)
        return result

    monkeypatch.setattr(store, operation, interrupted)
    one.set(one=1)
    assert one.id == two.id
    assert one.read() == {**kept, "one": 1, "two": 2}
    with site.app.app_context():
        assert len(site.extension.sessions_of("ada")) == 1


def test_what_an_old_worker_puts_back_is_not_taken_over_again(before: Before) -> None:
    cookie, _ = before.begin()
    site = make_site(**before.migration)

    def slow() -> str:
        flask.session["slow"] = 1
        # A new worker meanwhile.
        coming_with(site, cookie).visit(look_and_destroy)
        return ""

    before.app.add_url_rule("/slow", view_func=slow)
    client = before.app.test_client()
    client.set_cookie("session", cookie)
    client.get("/slow")
    assert before.find(cookie)["_user_id"] == "ada"
    assert coming_with(site, cookie).read() == {}
    assert before.find(cookie) is None


def test_what_could_not_be_removed_is_not_taken_over_again(
    before: Before, caplog: pytest.LogCaptureFixture
) -> None:
    cookie, kept = before.begin()
    site = make_site(**before.migration)
    store = t.cast(t.Any, site.state.takeover).store
    remove = store.remove

    def fail(key: str) -> None:
        raise BackendUnavailableError("The old store is down.")

    store.remove = fail
    browser = coming_with(site, cookie)
    again = browser.twin()
    browser.set(n=1)
    (message,) = caplog.messages
    assert message == (
        "A session was taken over, but the old one could not be removed: The old store"
        " is down."
    )
    assert before.find(cookie) is not None
    assert again.read() == {**kept, "n": 1}
    store.remove = remove
    browser.visit(destroy)
    assert coming_with(site, cookie).read() == {}
    assert before.find(cookie) is None


def test_an_old_store_that_is_down_loses_nothing(make_before: MakeBefore) -> None:
    with ValkeyServer() as server:
        from redis import Redis

        client = Redis.from_url(server.url, socket_timeout=5)
        before = Before(
            {"SESSION_TYPE": "redis", "SESSION_REDIS": client},
            {"SESSION_MIGRATE_STORE": client},
        )
        cookie, kept = before.begin()
        site = make_site(**before.migration)
        browser = coming_with(site, cookie)
        client.execute_command("CONFIG", "SET", "requirepass", "unknown")
        client.connection_pool.disconnect()
        response = browser.visit(lambda: session["cart"])
        assert response.status_code == 503
        assert cookie_of(response, site) == "none"
        with Redis.from_url(server.url, password="unknown") as operator:
            operator.config_set("requirepass", "")
        assert browser.read() == kept
        client.close()


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[t.Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_and_never_loaded(
    protocol: int,
    before: Before,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make_site(**before.migration)
    evil = tmp_path / "evil"
    cookies = [before.begin()[0] for _ in range(2)]
    for cookie in cookies:
        before.put(cookie, pickle.dumps({"a": Evil(evil)}, protocol))
        browser = coming_with(site, cookie)
        assert browser.visit(lambda: dict(session)).text == "{}"
    assert not evil.exists()
    if before.app.config["SESSION_TYPE"] == "cachelib":
        assert len(caplog.messages) == 2
        assert "It is a pickle with more than plain data in it" in caplog.text
    else:
        assert caplog.messages == [
            "A session of Flask-Session is not taken over, nor will others like it be:"
            " It is a pickle, as Flask-Session before 0.7 wrote them, and whoever can"
            " write to the store could run code with one. Nothing is unpickled. Their"
            " visitors have to log in again."
        ]
    for cookie in cookies:
        assert cookie not in caplog.text
    assert pickle.loads(pickle.dumps({"a": Evil(evil)}, protocol)) == {"a": None}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"{}x",
        b"[1]",
        b"\x80",
        b"\x81\xa1a",
        b"\x91\x01",
        b"\xc1",
        b"\xff",
        b"\x81" * 5000,
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",
        b"\x81\x90\x01",
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(5, b"x")}),
        b"\x81\xa1a\xd7\xff" + b"\xff" * 8,
    ],
)
def test_what_makes_no_sense_in_the_old_store_is_no_session(
    value: bytes, make_before: MakeBefore
) -> None:
    for store in ("valkey", "files"):
        before = make_before(store)
        cookie, _ = before.begin()
        before.put(cookie, value)
        browser = coming_with(make_site(**before.migration), cookie)
        response = browser.visit(lambda: len(session))
        assert response.status_code == 200
        browser.set(n=1)
        assert browser.read()["n"] == 1


def test_an_id_leads_to_nothing_but_flask_sessions_records(
    make_before: MakeBefore,
) -> None:
    before = make_before("valkey")
    client = before.app.config["SESSION_REDIS"]
    prefix = before.migration["SESSION_KEY_PREFIX"]
    config = {
        "SESSION_BACKEND": "redis",
        "SESSION_REDIS": client,
        "SESSION_KEY_PREFIX": prefix,
    }
    site = make_site(config, **before.migration)
    victim = site.browser()
    victim.set(_user_id="ada")
    handle = victim.visit(lambda: session.handle).text
    keys = {key.decode() for key in client.scan_iter(f"{prefix}*")}
    assert f"{prefix}{handle}" in keys
    assert len(keys) == 2  # and the index of the user
    client.set(f"{prefix}../secret", b"{}")
    for key in [*keys, f"{prefix}../secret", f"{prefix}*"]:
        thief = coming_with(site, key.removeprefix(prefix))
        assert thief.costs(lambda: session.get("_user_id"))[0] == {}
    assert victim.read() == {"_user_id": "ada"}


def test_a_session_that_has_expired_there_is_not_taken_over(
    make_before: MakeBefore,
) -> None:
    for store in ("sqlite", "postgresql", "files"):
        before = make_before(store)
        cookie, kept = before.begin()
        live, _ = before.begin()
        clock = FakeClock(time.time() + 86400 * 30)
        site = make_site(clock=clock, **before.migration)
        if store == "files":
            name = before.interface.cache._get_filename(before.key(cookie))
            content = Path(name).read_bytes()[4:]
            Path(name).write_bytes(b"\1\0\0\0" + content)
            assert coming_with(site, cookie).read() == {}
            continue
        assert coming_with(site, live).read() == kept
        clock.advance(86400 * 2)
        assert coming_with(site, cookie).read() == {}


# What a pickle may say, read without the module that obeys it.


@pytest.mark.parametrize("protocol", [4, 5])  # what caches have written since 2019
def test_plain_data_is_read_out_of_a_pickle(protocol: int) -> None:
    shared = ("a", 1)
    content = {"a": shared, "b": shared, "c": {1: [], 2: [1], 3: {4}, 5: (), 6: {}}}
    value = pickle.dumps({**content, **CONTENT}, protocol)
    assert read_plain(value) == {**content, **CONTENT}


def test_a_uuid_that_tells_how_it_was_made_is_read_out_of_a_pickle() -> None:
    value = uuid.uuid1()
    assert read_plain(pickle.dumps({"a": value})) == {"a": value}


def doubled() -> bytes:
    """Give a key in which one tuple is 2**40 times."""
    steps = (b"h" + bytes([number]) + b"\x86\x94" for number in range(40))
    return b"})\x94" + b"".join(steps) + b"Ns."


def looped() -> object:
    loop: list[t.Any] = []
    loop.append(loop)
    return {"a": loop}


def bulky() -> object:
    value: t.Any = ["a"] * 10
    for _ in range(20):
        value = [value] * 10
    return {"a": value}


@pytest.mark.parametrize(
    "value",
    [
        pickle.dumps(looped()),
        pickle.dumps(bulky()),
        pickle.dumps({"a": dict}),
        pickle.dumps({"a": uuid.UUID}),
        pickle.dumps({"a": Path("x")}),
        pickle.dumps({"a": os.system}),
        b"",
        b".",
        b"\x80\x04.",
        b"N",
        b"NN.",
        b"(.",
        b"]N\x93.",
        b"h\x07.",
        b"}(Nu.",
        b"}Ns.",
        b"}]Ns.",
        # Python would go down into these in C, until the stack ends, or for ever.
        b"}(" + b")" + b"\x85" * 200_000 + b"Nu.",
        b"\x8f(" + b")" + b"\x85" * 5_000 + b"\x90.",
        doubled(),
        # A hundred thousand times the same text.
        b"}\x8c\x01k](X"
        + (10_000).to_bytes(4, "little")
        + b"x" * 10_000
        + b"q\x01"
        + b"h\x01" * 100_000
        + b"es.",
        b"Na.",
        b"NR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x8c\x02os\x8c\x06system\x93.",
        b"\x8c\x08datetime\x8c\x08datetime\x93C\x0a0000000000\x85R.",
        b"\x8c\x04uuid\x8c\x04UUID\x93)\x81}\x8c\x03intNsb.",
        b"\x8c\x04uuid\x8c\x04UUID\x93)\x81}\x8c\x03hexNsb.",
        b"P1\n.",
        b"\x8a\xff.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x94.",
    ],
)
def test_a_pickle_of_anything_else_is_refused(value: bytes) -> None:
    with pytest.raises(RecordError, match="Nothing is unpickled"):
        read_plain(value)


def test_mutated_pickles_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    random.seed(6)
    source = pickle.dumps(CONTENT)
    refused = 0
    for _ in range(2000):
        value = bytearray(source)
        for _ in range(random.randint(1, 4)):
            value[random.randrange(len(value))] = random.randrange(256)
        try:
            read_plain(bytes(value))
        except RecordError:
            refused += 1
    assert 0 < refused < 2000


# -- where Flask-Session's sessions are


@pytest.mark.parametrize("store", ["valkey", "sqlite", "files"])
def test_the_backends_own_place_is_where_old_sessions_are_looked_for(
    store: str, make_before: MakeBefore, tmp_path: Path
) -> None:
    before = make_before(store)
    cookie, kept = before.begin()
    app = Flask("after")
    app.config.update(before.migration, SECRET_KEY="a secret", TESTING=True)
    app.config.update(SESSION_MIGRATE_UNTIL=UNTIL)
    given = app.config.pop("SESSION_MIGRATE_STORE")
    if store == "valkey":
        app.config.update(SESSION_BACKEND="redis", SESSION_REDIS=given)
    elif store == "files":
        app.config.update(SESSION_BACKEND="cachelib", SESSION_CACHELIB=given)
    else:
        app.config.update(
            SESSION_BACKEND="sqlalchemy",
            SESSION_SQLALCHEMY_URL=f"sqlite:///{tmp_path / 'old.db'}",
            SESSION_SQLALCHEMY_TABLE="server_sessions",
        )
    ServerSession(app)
    client = app.test_client()
    client.set_cookie("session", cookie)
    for _ in range(2):
        with client.session_transaction() as after:
            assert dict(after) == kept
    assert before.find(cookie) is None
    with client.session_transaction() as after:
        after.clear()
    client.set_cookie("session", cookie)
    with client.session_transaction() as after:
        assert dict(after) == {}
    app.extensions["serversession"].backend.close()


def test_a_flask_sqlalchemy_object_and_its_bind_are_a_place(
    make_before: MakeBefore, tmp_path: Path
) -> None:
    before = make_before("sqlite")
    cookie, kept = before.begin()
    app = Flask("after")
    app.config.update(
        SECRET_KEY="a secret",
        SQLALCHEMY_DATABASE_URI="sqlite://",
        SQLALCHEMY_BINDS={"old": f"sqlite:///{tmp_path / 'old.db'}"},
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": sa.NullPool},
        SESSION_BACKEND="memory",
        SESSION_SQLALCHEMY_BIND_KEY="old",
        SESSION_MIGRATE_FROM="flask-session",
        SESSION_MIGRATE_UNTIL=UNTIL,
        TESTING=True,
    )
    app.config["SESSION_MIGRATE_STORE"] = SQLAlchemy(app)
    ServerSession(app)
    client = app.test_client()
    client.set_cookie("session", cookie)
    with client.session_transaction() as after:
        assert dict(after) == kept


@pytest.mark.parametrize("store", [object(), "redis://localhost", FileSystemCache])
def test_a_store_that_is_none_is_refused(store: t.Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_site(SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=store)
    assert str(caught.value) == (
        f"'SESSION_MIGRATE_STORE' is an object of type {type(store).__name__}; expected"
        " what Flask-Session had: a Redis client, a SQLAlchemy engine or"
        " Flask-SQLAlchemy object, or a cachelib cache"
        " (cachelib.FileSystemCache(folder) for its 'filesystem')."
    )
    assert caught.value.option == "SESSION_MIGRATE_STORE"


def test_a_backend_without_such_a_place_needs_to_be_told() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_site(SESSION_MIGRATE_FROM="flask-session")
    assert str(caught.value).startswith(
        "'SESSION_MIGRATE_STORE' is not set, and the 'memory' backend keeps nothing"
        " where Flask-Session could have kept it; expected"
    )


def test_a_client_that_decodes_is_refused() -> None:
    from redis import Redis

    with Redis(decode_responses=True) as client, pytest.raises(ConfigurationError):
        make_site(SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=client)


def test_a_cache_that_would_unpickle_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_site(
            SESSION_MIGRATE_FROM="flask-session",
            SESSION_MIGRATE_STORE=MemcachedCache(["127.0.0.1:1"]),
        )
    assert str(caught.value) == (
        "'SESSION_MIGRATE_STORE': a MemcachedCache cannot be read without unpickling;"
        " let its sessions expire, or switch when few are logged in."
    )


def test_a_serializer_that_inherits_unpickling_unpickles_nothing(
    tmp_path: Path,
) -> None:
    class Own(SimpleSerializer):
        """Has something of its own, but nothing to read with."""

    cache = SimpleCache()
    cache.serializer = Own()
    site = make_site(SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=cache)
    evil = tmp_path / "evil"
    cache._cache["session:" + "x" * 43] = (0, pickle.dumps({"a": Evil(evil)}))
    cache._cache["session:" + "y" * 43] = (0, pickle.dumps({"a": 1}))
    assert coming_with(site, "x" * 43).read() == {}
    assert not evil.exists()
    assert coming_with(site, "y" * 43).read() == {"a": 1}


def test_a_serializer_that_is_made_of_pickles_functions_unpickles_nothing(
    tmp_path: Path,
) -> None:
    cache = SimpleCache()
    functions = types.SimpleNamespace(dumps=pickle.dumps, loads=pickle.loads)
    cache.serializer = t.cast(t.Any, functions)
    site = make_site(SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=cache)
    evil = tmp_path / "evil"
    cache.set("session:" + "x" * 43, {"a": Evil(evil)})
    cache.set("session:" + "y" * 43, {"a": 1})
    assert coming_with(site, "x" * 43).read() == {}
    assert not evil.exists()
    assert coming_with(site, "y" * 43).read() == {"a": 1}


class Json:
    def dumps(self, content: t.Any) -> bytes:
        return json.dumps(content).encode()

    def loads(self, value: bytes) -> t.Any:
        return json.loads(value)


@pytest.mark.parametrize("name", ["Json", "JSONSerializer"])
def test_a_cache_may_have_a_serializer_that_does_not_pickle(name: str) -> None:
    cache = SimpleCache()
    # Newer versions of cachelib have one of their own.
    cls = getattr(cachelib.serializers, name, Json)
    cache.serializer = t.cast(t.Any, cls())
    site = make_site(SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=cache)
    cache.set("session:" + "x" * 43, {"a": 1})
    assert coming_with(site, "x" * 43).read() == {"a": 1}


def test_a_cache_keeps_its_own_serializer_for_others() -> None:
    cache = SimpleCache()
    make_site(SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=cache)
    cache.set("a", {"n": dt.date(2026, 1, 2)})
    assert cache.get("a") == {"n": dt.date(2026, 1, 2)}


def test_the_old_table_cannot_be_the_new_one(tmp_path: Path) -> None:
    app = Flask("after")
    app.config.update(
        SECRET_KEY="a secret",
        SESSION_BACKEND="sqlalchemy",
        SESSION_SQLALCHEMY_URL=f"sqlite:///{tmp_path / 'app.db'}",
        SESSION_SQLALCHEMY_TABLE="sessions",
        SESSION_MIGRATE_FROM="flask-session",
        SESSION_MIGRATE_UNTIL=UNTIL,
    )
    with pytest.raises(ConfigurationError) as caught:
        ServerSession(app)
    assert str(caught.value) == (
        "'SESSION_SQLALCHEMY_TABLE' is 'sessions', which is Flask-Session's table"
        " ('SESSION_MIGRATE_TABLE') and has other columns. Choose another name for the"
        " new one, such as 'server_sessions'."
    )


def test_a_table_that_is_not_there_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'a.db'}", poolclass=sa.NullPool)
    site = make_site(
        SESSION_MIGRATE_FROM="flask-session",
        SESSION_MIGRATE_STORE=engine,
        SESSION_MIGRATE_TABLE="old_sessions",
    )
    browser = coming_with(site, secrets.token_urlsafe(32))
    with caplog.at_level("ERROR"):
        assert browser.visit(lambda: session.get("n")).status_code == 503
    assert caplog.messages == [
        "The session backend failed at 'load': Flask-Session's table 'old_sessions' is"
        " not there, or has other columns. 'SESSION_MIGRATE_TABLE' names it, and"
        " 'SESSION_SQLALCHEMY_SCHEMA' and 'SESSION_SQLALCHEMY_BIND_KEY' say where it"
        " is."
    ]


def test_flask_sessions_switch_for_signing_has_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_site(
            SESSION_MIGRATE_FROM="flask-session",
            SESSION_MIGRATE_STORE=FileSystemCache(str(tmp_path)),
            SESSION_USE_SIGNER="true",
        )
    assert str(caught.value) == (
        "'SESSION_USE_SIGNER' is 'true'; expected what Flask-Session had: True or"
        " False."
    )


def test_json_and_msgpack_are_told_apart() -> None:
    for content in ({}, {"a": 1}, {str(n): n for n in range(70_000)}):
        for format in (msgspec.msgpack, msgspec.json):
            assert decode(format.encode(content)) == content


# -- the dry run


def check(site: Site, *args: str) -> tuple[int, str, str]:
    result = run(site.app, "migrate", "--check", *args)
    return result.exit_code, result.stdout, result.stderr


def test_a_dry_run_counts_what_is_good_and_changes_nothing(before: Before) -> None:
    cookies = [before.begin()[0] for _ in range(5)]
    before.put(cookies[0], pickle.dumps({"a": Evil(Path("x"))}))
    before.put(cookies[1], b"nonsense")
    site = make_site(
        **{**before.migration, "SESSION_MIGRATE_FROM": ["cookie", "flask-session"]}
    )
    with site.backend.counting() as calls:
        code, out, err = check(site, "--json")
    assert calls == {}
    # In a file, everything is a pickle, and some hold more than plain data.
    is_file = before.app.config["SESSION_TYPE"] == "cachelib"
    assert json.loads(out) == {
        "on": True,
        "from": ["cookie", "flask-session"],
        "until": "2100-01-01T00:00:00+00:00",
        "store": {
            "read": 5,
            "good": 3,
            "expired": 0,
            "pickled": 0 if is_file else 1,
            "unreadable": 2 if is_file else 1,
        },
    }
    assert code == 1
    assert err == (
        "Error: 2 sessions of 5 cannot be taken over. Their visitors will have to log"
        " in again.\n"
    )
    assert json.loads(check(site, "--json", "--limit", "2")[1])["store"]["read"] == 2
    for cookie in cookies[2:]:
        assert before.find(cookie) is not None
        assert cookie not in out


def test_a_dry_run_says_what_the_settings_are(make_before: MakeBefore) -> None:
    before = make_before("files")
    before.begin()
    site = make_site(
        **{**before.migration, "SESSION_MIGRATE_FROM": ["cookie", "flask-session"]},
        SECRET_KEY_FALLBACKS=["an older one"],
    )
    code, out, err = check(site)
    assert (code, err) == (0, "")
    assert out == textwrap.dedent(
        """\
        From               cookie, flask-session
        Until              2100-01-01 00:00 UTC
        Cookie             session
        Flask's signature  SECRET_KEY and 1 fallback
        Flask's age        at most 31 days, 0:00:00
        Ids in cookies     not signed, as SESSION_USE_SIGNER says
        Keys begin with    'session:'
        Sessions read      1
        Good               1
        Expired            0
        Pickles            0
        Not readable       0
        """
    )


def test_a_dry_run_leaves_out_what_is_ours(make_before: MakeBefore) -> None:
    before = make_before("valkey")
    cookie, _ = before.begin()
    prefix = before.migration["SESSION_KEY_PREFIX"]
    client = before.app.config["SESSION_REDIS"]
    config = {"SESSION_BACKEND": "redis", "SESSION_REDIS": client}
    site = make_site({**config, "SESSION_KEY_PREFIX": prefix}, **before.migration)
    site.browser().set(_user_id="ada")
    coming_with(site, cookie).read()
    before.begin()
    assert json.loads(check(site, "--json")[1])["store"]["read"] == 1


def test_a_dry_run_counts_what_has_expired(make_before: MakeBefore) -> None:
    for store in ("sqlite", "files"):
        before = make_before(store)
        before.begin()
        site = make_site(clock=FakeClock(time.time() + 86400 * 32), **before.migration)
        code, out, _ = check(site, "--json")
        assert code == 0
        assert json.loads(out)["store"]["expired"] == 1


def test_a_dry_run_of_cookies_has_nothing_to_count() -> None:
    code, out, _ = check(make_site(), "--json")
    assert code == 0
    assert json.loads(out)["store"] is None


def test_a_dry_run_where_nothing_is_taken_over_fails() -> None:
    for settings, reason in (
        ({"SESSION_MIGRATE_UNTIL": "2020-01-31"}, "'SESSION_MIGRATE_UNTIL' was 2020"),
        ({"SESSION_MIGRATE_FROM": None}, "'SESSION_MIGRATE_FROM' is not set."),
    ):
        code, out, err = check(make_site(**settings))
        assert (code, out) == (1, "")
        assert err.startswith(f"Error: Nothing is taken over: {reason}")
        code, out, _ = check(make_site(**settings), "--json")
        assert (code, json.loads(out)["on"]) == (1, False)


def test_a_dry_run_fails_where_the_store_does_not_answer_or_cannot_list() -> None:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with Redis(port=1, retry=Retry(NoBackoff(), 0)) as client:
        site = make_site(
            SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=client
        )
        code, out, err = check(site)
    assert (code, out) == (4, "")
    assert "cannot be reached" in err
    site = make_site(
        SESSION_MIGRATE_FROM="flask-session", SESSION_MIGRATE_STORE=SimpleCache()
    )
    code, out, err = check(site)
    assert (code, out) == (3, "")
    assert "SimpleCache" in err


def test_there_is_nothing_to_run_but_the_dry_run() -> None:
    result = run(make_site().app, "migrate")
    assert result.exit_code == 2
    assert "--check" in result.stderr
