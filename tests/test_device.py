"""Sessions that are bound to a key of the browser's device."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import struct
import typing as t
from pathlib import Path

import pytest
from flask import Flask
from flask import Response
from flask import request
from flask import session
from werkzeug.test import EnvironBuilder
from werkzeug.test import TestResponse
from werkzeug.test import run_wsgi_app

from flask_serversession import BackendUnavailableError
from flask_serversession import ServerSession
from flask_serversession import ServerSessionInterface
from flask_serversession import session as our_session
from flask_serversession import session_rejected
from flask_serversession.operator import AppState
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock

from .dbsc import DeviceBrowser
from .dbsc import Key
from .figures import add_counts

#: How long a proof is good, and how long the browser keeps it, in seconds.
LIFETIME = 600
KEPT = 540
PATH = "/_session/device"


class Shop:
    """A small site with a log-in, over any backend, and a clock to set."""

    def __init__(self, config: dict[str, t.Any], **settings: t.Any) -> None:
        self.clock = FakeClock()
        #: By how much the clock of the server differs from that of the browser.
        self.shift = 0.0
        inner = Flask("shop", static_folder=None)
        inner.config.update(SECRET_KEY="a secret", TESTING=True, **config)
        ServerSession(inner, clock=self.clock)
        self.backend = CountingBackend(inner.extensions["serversession"].backend)
        self.settings = {
            "SECRET_KEY": "a secret",
            "SESSION_DEVICE_BOUND": True,
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_SAMESITE": "Lax",
            "SESSION_KEY_PREFIX": config.get("SESSION_KEY_PREFIX", "session:"),
            **settings,
        }
        self.app = self.make_app()

    def make_app(self, **settings: t.Any) -> Flask:
        """Make the application: another worker, or the same one after a restart."""
        app = Flask("shop")
        app.config.update({**self.settings, "SESSION_BACKEND": self.backend})
        app.config.update(settings)
        self.extension = ServerSession(app, clock=self.server_clock)
        add_views(app)
        return app

    def server_clock(self) -> float:
        return self.clock() + self.shift

    @property
    def state(self) -> AppState:
        return t.cast(AppState, self.app.extensions["serversession"])

    def browser(self, can_bind: bool = True) -> DeviceBrowser:
        return DeviceBrowser(self.app, self.clock, can_bind)

    def logged_in(self, user: str = "ann", can_bind: bool = True) -> DeviceBrowser:
        """Give a browser in which somebody has logged in and seen a page."""
        browser = self.browser(can_bind)
        assert browser.fetch(f"/log-in/{user}", "POST").status_code == 200
        assert self.user_of(browser.fetch("/page")) == user
        return browser

    @staticmethod
    def user_of(response: TestResponse) -> str | None:
        assert response.status_code in (200, 401), response.text
        return None if response.status_code == 401 else response.text

    def infos(self, user: str = "ann") -> list[t.Any]:
        with self.app.app_context():
            return self.extension.sessions_of(user)


def add_views(app: Flask) -> None:
    @app.post("/log-in/<user>")
    def log_in(user: str) -> str:
        session["user_id"] = user
        return user

    @app.post("/log-out")
    def log_out() -> str:
        session.clear()
        our_session.destroy()
        return ""

    @app.post("/log-out-with-a-message")
    def log_out_with_a_message() -> str:
        session.pop("user_id", None)
        session["message"] = "Bye."
        return ""

    @app.get("/page")
    def page() -> tuple[str, int]:
        if "user_id" not in session:
            return "nobody", 401
        return session["user_id"], 200

    @app.post("/count")
    def count() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    @app.get("/ignore")
    def ignore() -> str:
        return "ignored"

    @app.post("/renew")
    def renew() -> str:
        our_session.regenerate()
        return ""

    @app.post("/prove")
    def prove() -> str:
        our_session.mark_authenticated()
        return ""

    @app.post("/empty")
    def empty() -> str:
        """Empty the session, but for the user."""
        user = session["user_id"]
        session.clear()
        session["user_id"] = user
        return ""


@pytest.fixture
def shop() -> Shop:
    return Shop({"SESSION_BACKEND": "memory"})


@pytest.fixture
def any_shop(backend_config: dict[str, t.Any]) -> t.Iterator[Shop]:
    shop = Shop(backend_config)
    yield shop
    shop.backend.close()


# A life, on every backend


def test_a_stolen_cookie_is_of_no_use_after_minutes(any_shop: Shop) -> None:
    browser, thief = any_shop.logged_in(), any_shop.browser(can_bind=False)
    assert browser.events == ["registered", "refreshed"]
    browser.copy_cookies_to(thief)
    thief.cookies["session_proof"].ends_at = None
    assert any_shop.user_of(thief.fetch("/page")) == "ann"

    any_shop.clock.advance(LIFETIME + 61)
    assert any_shop.user_of(thief.fetch("/page")) is None
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.events[2:] == ["refreshed"]
    # Nor is what the browser gets now of use for the thief.
    assert any_shop.user_of(thief.fetch("/page")) is None
    assert "Set-Cookie" not in thief.fetch("/page").headers


def test_a_browser_that_cannot_do_it_works_as_before(any_shop: Shop) -> None:
    browser = any_shop.logged_in(can_bind=False)
    for _ in range(3):
        any_shop.clock.advance(LIFETIME * 2)
        assert any_shop.user_of(browser.fetch("/page")) == "ann"
    assert [*browser.cookies] == ["session"]
    assert len(browser.offers) == 1


def test_a_proof_costs_what_is_promised(any_shop: Shop) -> None:
    browser = any_shop.browser()
    browser.registers = False
    with any_shop.backend.counting() as calls:
        browser.fetch("/log-in/ann", "POST")
    assert calls == {"create": 1}
    with any_shop.backend.counting() as calls:
        assert browser.register(browser.offers[0])
    assert calls == {"load": 1, "replace": 1}
    (device,) = browser.sessions.values()
    with any_shop.backend.counting() as calls:
        assert browser.refresh(device) is None
    assert calls == {"load": 1, "replace": 1}  # bound
    with any_shop.backend.counting() as calls:
        browser.fetch("/page")
    assert calls == {"load": 1}
    any_shop.clock.advance(KEPT + 1)
    with any_shop.backend.counting() as calls:
        assert browser.refresh(device) is None
    assert calls == {"load": 1}
    with any_shop.backend.counting() as calls:
        browser.fetch("/ignore")
    assert calls == {}


def test_a_new_id_keeps_the_key(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    for path in ("/renew", "/prove", "/empty", "/count"):
        before = browser.id
        assert browser.fetch(path, "POST").status_code == 200
        assert (browser.id != before) is (path != "/count")
        any_shop.clock.advance(LIFETIME * 2)
        thief = any_shop.browser(can_bind=False)
        browser.copy_cookies_to(thief)
        assert any_shop.user_of(thief.fetch("/page")) is None
        assert any_shop.user_of(browser.fetch("/page")) == "ann"
    assert "ended" not in browser.events
    assert len(browser.offers) == 1


def test_a_log_out_deletes_both_cookies_and_the_browser_stops(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    browser.fetch("/log-out", "POST")
    assert browser.live_cookies() == {}
    assert any_shop.user_of(browser.fetch("/page")) is None
    assert browser.events[2:] == ["ended"]
    assert any_shop.user_of(browser.fetch("/page")) is None
    assert browser.sessions == {}


def test_another_user_gets_another_key(any_shop: Shop) -> None:
    browser = any_shop.logged_in("ann")
    (first,) = browser.sessions
    browser.fetch("/log-in/bob", "POST")
    assert any_shop.user_of(browser.fetch("/page")) == "bob"
    assert first not in browser.sessions
    assert browser.events[2:] == ["registered", "ended", "refreshed"]
    any_shop.clock.advance(LIFETIME * 2)
    assert any_shop.user_of(browser.fetch("/page")) == "bob"


# Nobody is locked out by a failure, on any backend


def test_nobody_is_locked_out_by_a_store_that_is_down(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    any_shop.clock.advance(KEPT + 1)
    with any_shop.backend.failing():
        assert browser.fetch("/page").status_code == 503
    assert browser.events[2:] == ["refreshed"]  # which needs nobody
    assert any_shop.user_of(browser.fetch("/page")) == "ann"


@pytest.mark.parametrize("operation", ["load", "replace"])
def test_nobody_is_locked_out_by_a_store_that_fails_while_a_key_is_bound(
    any_shop: Shop, operation: str
) -> None:
    browser = any_shop.browser()
    browser.fetch("/log-in/ann", "POST")
    (device,) = browser.sessions.values()
    with any_shop.backend.failing(operation):
        assert browser.refresh(device) is None
    assert browser.events == ["registered", "refreshed"]
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    any_shop.clock.advance(KEPT + 1)
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    any_shop.clock.advance(LIFETIME * 2)
    assert any_shop.user_of(browser.send("/page")) is None  # bound by now


@pytest.mark.parametrize("status", [503, 500, 0])
def test_nobody_is_locked_out_by_a_route_that_fails(
    any_shop: Shop, status: int
) -> None:
    browser = any_shop.logged_in()
    any_shop.clock.advance(LIFETIME * 2)
    browser.proxy = lambda: status
    before = browser.cookies["session"].value
    response = browser.fetch("/page")
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert "Set-Cookie" not in response.headers
    assert browser.fetch("/count", "POST").status_code == 503
    assert browser.cookies["session"].value == before
    browser.proxy = lambda: None
    assert any_shop.user_of(browser.fetch("/page")) == "ann"


@pytest.mark.parametrize("status", [503, 404, 0])
def test_nobody_is_locked_out_by_a_registration_that_fails(
    any_shop: Shop, status: int
) -> None:
    browser = any_shop.browser()
    browser.proxy = lambda: status
    browser.fetch("/log-in/ann", "POST")
    assert browser.events == ["registration failed"]
    any_shop.clock.advance(LIFETIME * 2)
    assert any_shop.user_of(browser.fetch("/page")) == "ann"


def test_nobody_is_locked_out_by_a_registration_that_the_browser_refuses(
    any_shop: Shop,
) -> None:
    browser = any_shop.browser()
    browser.fetch("/log-in/ann", "POST")
    browser.sessions.clear()  # it got the answer, and did not like it
    any_shop.clock.advance(LIFETIME * 2)
    assert any_shop.user_of(browser.fetch("/page")) == "ann"


def test_nobody_is_locked_out_by_a_restart_of_the_browser(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    browser.restart()
    any_shop.clock.advance(LIFETIME * 2)
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.events[2:] == ["challenged", "refreshed"]


def test_nobody_is_locked_out_by_a_restart_of_the_server(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    browser.app = any_shop.make_app()
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    any_shop.clock.advance(LIFETIME * 2)
    browser.app = any_shop.make_app()
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    assert "ended" not in browser.events


def test_nobody_is_locked_out_by_another_secret(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    secrets = {"SECRET_KEY": "newer", "SECRET_KEY_FALLBACKS": ["a secret"]}
    browser.app = any_shop.make_app(**secrets)
    assert any_shop.user_of(browser.fetch("/page")) == "ann"  # by the old proof
    any_shop.clock.advance(KEPT + 1)
    assert any_shop.user_of(browser.fetch("/page")) == "ann"  # by the old challenge
    assert browser.events[2:] == ["refreshed"]
    browser.fetch("/count", "POST")
    browser.app = any_shop.make_app(SECRET_KEY="newer")
    assert any_shop.user_of(browser.fetch("/page")) == "ann"


def test_nobody_is_locked_out_by_ten_requests_without_a_proof(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    any_shop.clock.advance(KEPT + 1)
    counts = [browser.fetch("/count", "POST").text for _ in range(10)]
    assert counts == [str(number) for number in range(1, 11)]
    assert browser.events[2:] == ["refreshed"]


def test_nobody_is_locked_out_by_requests_that_were_on_their_way(
    any_shop: Shop,
) -> None:
    browser = any_shop.browser()
    browser.fetch("/log-in/ann", "POST")
    early = any_shop.browser(can_bind=False)
    browser.copy_cookies_to(early)
    browser.fetch("/page")
    any_shop.clock.advance(29)
    assert any_shop.user_of(early.fetch("/page")) == "ann"


# Several requests at once


def test_a_key_is_registered_while_others_write(any_shop: Shop) -> None:
    browser = any_shop.browser()
    browser.registers = False
    browser.fetch("/log-in/ann", "POST")

    def others() -> None:
        del any_shop.backend.before["replace"]
        assert browser.send("/count", "POST").text == "1"

    any_shop.backend.before["replace"] = others
    assert browser.register(browser.offers[0])
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.fetch("/count", "POST").text == "2"
    any_shop.clock.advance(LIFETIME * 2)
    assert any_shop.user_of(browser.send("/page")) is None


@pytest.mark.parametrize("conflict", ["merge", "overwrite"])
def test_another_request_does_not_undo_the_binding(shop: Shop, conflict: str) -> None:
    shop = Shop({"SESSION_BACKEND": "memory"}, SESSION_CONFLICT=conflict)
    browser = shop.browser()
    browser.fetch("/log-in/ann", "POST")
    (device,) = browser.sessions.values()

    def bind() -> None:
        del shop.backend.before["replace"]
        assert browser.refresh(device) is None

    shop.backend.before["replace"] = bind
    assert browser.send("/count", "POST").text == "1"
    assert browser.send("/count", "POST").text == "2"
    shop.clock.advance(LIFETIME * 2)
    assert shop.user_of(browser.send("/page")) is None


def test_the_id_may_change_while_a_proof_is_on_its_way(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    (device,) = browser.sessions.values()

    def renew() -> None:
        del any_shop.backend.before["load"]
        browser.send("/renew", "POST")

    any_shop.backend.before["load"] = renew
    assert browser.refresh(device) is None
    any_shop.clock.advance(LIFETIME * 2)
    assert any_shop.user_of(browser.fetch("/page")) == "ann"
    assert "ended" not in browser.events


def test_a_session_that_was_revoked_ends_on_the_device(any_shop: Shop) -> None:
    browser = any_shop.logged_in()
    core = any_shop.state.interface.core
    with any_shop.app.app_context():
        handle = core.handle_of(core.identify(browser.id).key)
        assert any_shop.extension.revoke(handle)
    any_shop.clock.advance(KEPT + 1)
    assert any_shop.user_of(browser.fetch("/page")) is None
    assert browser.events[2:] == ["ended"]


# What is offered, and when


def test_only_a_log_in_offers_it(shop: Shop) -> None:
    browser = shop.browser(can_bind=False)
    browser.fetch("/page")
    browser.fetch("/count", "POST")
    assert browser.offers == []
    browser.fetch("/log-in/ann", "POST")
    assert len(browser.offers) == 1
    for path in ("/count", "/renew", "/empty", "/log-in/ann"):
        browser.fetch(path, "POST")
        browser.fetch("/page")
        browser.fetch("/ignore")
    shop.clock.advance(3600)
    browser.fetch("/page")
    assert len(browser.offers) == 1
    browser.fetch("/log-out-with-a-message", "POST")
    assert len(browser.offers) == 1


def test_whoever_proves_who_they_are_is_offered_it_again(shop: Shop) -> None:
    browser = shop.browser()
    browser.registers = False
    browser.fetch("/log-in/ann", "POST")
    browser.registers = True
    browser.fetch("/prove", "POST")
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.events == ["registered", "refreshed"]
    browser.fetch("/prove", "POST")
    assert len(browser.offers) == 2  # it is bound


def test_a_log_in_out_and_in_again_within_one_request_is_offered_once(
    shop: Shop,
) -> None:
    @shop.app.post("/in-and-out")
    def in_and_out() -> str:
        session["user_id"] = "ann"
        our_session.save()
        session.clear()
        session["message"] = "Never mind."
        return ""

    browser = shop.browser()
    browser.fetch("/in-and-out", "POST")
    assert browser.offers == []


def test_plain_http_is_offered_nothing(shop: Shop) -> None:
    app = shop.make_app(SESSION_COOKIE_SECURE="auto")
    client = app.test_client()
    response = client.post("/log-in/ann", base_url="http://shop.test")
    assert "Secure-Session-Registration" not in response.headers
    response = client.post("/log-in/bob", base_url="https://shop.test")
    assert "Secure-Session-Registration" in response.headers


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        ("get_cookie_domain", "shop.test"),
        ("get_cookie_secure", False),
        ("get_cookie_partitioned", True),
    ],
)
def test_a_getter_that_makes_it_impossible_is_respected(
    shop: Shop, getter: str, value: object
) -> None:
    class Interface(ServerSessionInterface):
        pass

    setattr(Interface, getter, lambda *_: value)

    class Extension(ServerSession):
        interface_class = Interface

    app = Flask("shop")
    app.config.update(shop.settings, SESSION_BACKEND="memory", TESTING=True)
    Extension(app)
    add_views(app)
    response = app.test_client().post("/log-in/ann", base_url="https://shop.test")
    assert "Secure-Session-Registration" not in response.headers


def test_a_user_who_is_found_by_other_settings_is_offered_nothing(shop: Shop) -> None:
    browser = shop.browser(can_bind=False)
    browser.app = shop.make_app(SESSION_USER_KEY="somebody")
    browser.fetch("/log-in/ann", "POST")
    browser.app = shop.make_app()
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.offers == []


def test_a_session_that_is_taken_over_is_offered_nothing(shop: Shop) -> None:
    former = Flask("shop")
    former.secret_key = "a secret"
    add_views(former)
    browser = shop.browser(can_bind=False)
    browser.app = former
    browser.fetch("/log-in/ann", "POST")
    browser.app = shop.make_app(
        SESSION_MIGRATE_FROM="cookie", SESSION_MIGRATE_UNTIL="2200-01-01"
    )
    shop.clock.advance(1)
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.offers == []


def test_what_is_told_is_what_is_set(shop: Shop) -> None:
    browser = shop.browser()
    response = browser.fetch("/log-in/ann", "POST")
    assert response.headers["Secure-Session-Registration"].startswith(
        f'(ES256);path="{PATH}";challenge="'
    )
    (device,) = browser.sessions.values()
    assert device.refresh_url == PATH
    assert device.cookie == "session_proof"
    assert {*device.attributes.split("; ")} == {
        *("Path=/", "Secure", "HttpOnly", "SameSite=Lax")
    }
    assert device.excluded == ["/static"]
    assert device.initiators == []
    assert browser.refresh(device) is None
    proof = browser.cookies["session_proof"]
    assert proof.ends_at == shop.clock() + KEPT
    assert len(proof.value) == 52


def test_other_sites_may_cause_a_proof(shop: Shop) -> None:
    browser = shop.browser()
    browser.app = shop.make_app(
        SESSION_COOKIE_SAMESITE="None", SESSION_DEVICE_BOUND_INITIATORS=("*",)
    )
    browser.fetch("/log-in/ann", "POST")
    (device,) = browser.sessions.values()
    assert device.initiators == ["*"]
    shop.clock.advance(LIFETIME * 2)
    response = browser.fetch("/page", site="cross-site", mode="cors")
    assert shop.user_of(response) == "ann"


def test_the_names_and_the_path_follow_the_settings(shop: Shop) -> None:
    browser = shop.browser()
    browser.app = shop.make_app(
        SESSION_COOKIE_NAME="__Host-session", SESSION_DEVICE_BOUND_PATH="/a/b"
    )
    browser.fetch("/log-in/ann", "POST")
    assert shop.user_of(browser.fetch("/page")) == "ann"
    (device,) = browser.sessions.values()
    assert (device.refresh_url, device.cookie) == ("/a/b", "__Host-session_proof")


# What happens without a proof


@pytest.fixture
def rejected(shop: Shop) -> t.Iterator[list[str]]:
    reasons: list[str] = []

    def hear(app: Flask, reason: str, **_: t.Any) -> None:
        reasons.append(reason)

    with session_rejected.connected_to(hear):
        yield reasons


def test_an_unproven_session_is_as_unknown(shop: Shop, rejected: list[str]) -> None:
    found: list[t.Any] = []

    @shop.app.get("/look")
    def look() -> str:
        found.append((dict(session), our_session.new, our_session.ended_because))
        return ""

    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    with shop.backend.counting() as calls:
        response = browser.send("/look")
    assert found == [({}, True, "unproven")]
    assert calls == {"load": 1}
    assert "Set-Cookie" not in response.headers
    assert rejected == ["unproven"]
    # Logging in works, and leaves the other one alone.
    browser.send("/log-in/ann", "POST")
    assert shop.user_of(browser.send("/page")) == "ann"
    assert len(shop.infos()) == 2


def test_a_link_from_another_site_is_followed_again(
    shop: Shop, rejected: list[str]
) -> None:
    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    response = browser.fetch("/page?a=1&b=2", site="cross-site")
    assert response.status_code == 200
    assert "location.reload()" in response.text
    assert response.headers["Refresh"] == "1; url=?a=1&b=2"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Vary"] == "Cookie"
    assert "Set-Cookie" not in response.headers
    assert rejected == []
    assert shop.user_of(browser.follow("/page")) == "ann"
    assert browser.events[2:] == ["reloaded", "challenged", "refreshed"]


def test_a_link_is_followed_again_once(shop: Shop, rejected: list[str]) -> None:
    browser = shop.logged_in()
    browser.sessions.clear()
    shop.clock.advance(LIFETIME * 2)
    assert shop.user_of(browser.follow("/page")) is None
    assert browser.events[2:] == ["reloaded"]
    assert rejected == ["unproven"]


@pytest.mark.parametrize(
    ("path", "method", "site", "mode"),
    [
        ("/count", "POST", "cross-site", "navigate"),
        ("/page", "GET", "cross-site", "cors"),
        ("/page", "GET", "none", "navigate"),
        ("/page", "GET", "same-origin", "navigate"),
    ],
)
def test_nothing_else_is_asked_for_again(
    shop: Shop, path: str, method: str, site: str, mode: str
) -> None:
    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    response = browser.send(path, method, headers)
    assert "location.reload()" not in response.text
    assert response.text in ("1", "nobody")


@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_a_view_that_hides_the_failure_stores_nothing(shop: Shop, policy: str) -> None:
    browser = shop.logged_in()
    browser.app = shop.make_app(SESSION_ON_BACKEND_ERROR=policy)

    @browser.app.post("/hide")
    def hide() -> str:
        try:
            session["n"] = 1
        except BackendUnavailableError:
            return "hidden"
        return "stored"

    shop.clock.advance(LIFETIME * 2)
    browser.proxy = lambda: 503
    response = browser.fetch("/hide", "POST")
    assert (response.status_code, response.text) == (200, "hidden")
    assert "Set-Cookie" not in response.headers
    browser.proxy = lambda: None
    assert shop.user_of(browser.fetch("/page")) == "ann"


def test_a_request_that_does_not_look_is_not_asked(shop: Shop) -> None:
    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    assert browser.send("/ignore").text == "ignored"
    # And whoever has the cookie may end the session.
    browser.send("/log-out", "POST")
    assert shop.infos() == []


def test_a_log_out_needs_no_proof_after_a_failure_either(shop: Shop) -> None:
    """Where the session has to be loaded to be ended, under both of its ids."""
    browser = shop.logged_in()
    with shop.backend.failing("replace"):
        assert browser.fetch("/renew", "POST").status_code == 503
    assert len(shop.infos()) == 1
    shop.clock.advance(LIFETIME * 2)
    browser.send("/log-out", "POST")
    assert shop.infos() == []


def test_reading_again_needs_the_proof_too(shop: Shop) -> None:
    @shop.app.get("/again")
    def again() -> str:
        session.clear()
        our_session.reload()
        return str(dict(session))

    browser = shop.logged_in()
    assert browser.fetch("/again").text == "{'user_id': 'ann'}"
    shop.clock.advance(LIFETIME * 2)
    assert browser.send("/again").text == "{}"


def test_a_thief_is_not_recorded_as_the_visitor(shop: Shop) -> None:
    shop.settings |= {"SESSION_TRACK": ("user_agent",), "SESSION_PERMANENT": True}
    shop.app = shop.make_app()
    browser = shop.logged_in()
    (before,) = shop.infos()
    shop.clock.advance(LIFETIME * 2)
    response = browser.send("/ignore", headers={"User-Agent": "a thief's"})
    assert "Set-Cookie" not in response.headers
    assert shop.infos() == [before]


def test_a_picture_does_not_take_the_session_away(shop: Shop) -> None:
    """Browsers ask for no proof before static files; applications may look anyway."""

    @shop.app.before_request
    def count() -> None:
        session["n"] = session.get("n", 0) + 1

    browser = shop.logged_in()
    before = browser.id
    shop.clock.advance(LIFETIME * 2)
    response = browser.fetch("/static/logo.png", mode="no-cors")
    assert response.status_code == 404
    assert "Set-Cookie" not in response.headers
    assert browser.events[2:] == []
    assert browser.id == before
    assert shop.user_of(browser.fetch("/page")) == "ann"


def test_a_page_whose_path_only_begins_like_that_of_files_needs_a_proof(
    shop: Shop,
) -> None:
    @shop.app.get("/statics")
    def statics() -> str:
        session["n"] = 1
        return str(session.get("user_id"))

    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    # Another browser has the cookie alone: what it writes is in a session of its own.
    response = browser.send("/statics")
    assert response.text == "None"
    assert "Set-Cookie" in response.headers


def test_a_view_may_look_late(shop: Shop) -> None:
    @shop.app.get("/slow")
    def slow() -> str:
        shop.clock.advance(LIFETIME * 2)
        return t.cast(str, session["user_id"])

    browser = shop.logged_in()
    assert browser.fetch("/slow").text == "ann"


# Clocks


@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_the_clocks_of_servers_may_differ_by_a_minute(shop: Shop, shift: float) -> None:
    """Each request goes to the server whose clock differs from the last one's."""
    browser = shop.browser()
    browser.fetch("/log-in/ann", "POST")
    (device,) = browser.sessions.values()
    for seconds in (0.0, 29.0, KEPT - 30, 0.9, 0.2, KEPT - 1, 2.0):
        shop.clock.advance(seconds)
        shop.shift = 0.0
        early = browser.send("/page") if seconds == 29.0 else browser.fetch("/page")
        assert shop.user_of(early) == "ann"
        shop.shift = shift
        assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.sessions == {device.id: device}


@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_a_key_is_registered_whatever_the_clock(shop: Shop, shift: float) -> None:
    browser = shop.browser()
    browser.registers = False
    browser.fetch("/log-in/ann", "POST")
    shop.shift = shift
    assert browser.register(browser.offers[0])
    shop.shift = 0.0
    early = shop.browser(can_bind=False)
    browser.copy_cookies_to(early)
    shop.shift = shift
    (device,) = browser.sessions.values()
    assert browser.refresh(device) is None
    shop.shift = 0.0
    shop.clock.advance(29)
    assert shop.user_of(early.fetch("/page")) == "ann"


def test_a_proof_ends_after_its_time_and_no_later(shop: Shop) -> None:
    browser = shop.logged_in()
    shop.clock.advance(LIFETIME + 60)
    assert shop.user_of(browser.send("/page", headers=proof_of(browser))) == "ann"
    shop.clock.advance(1)
    assert shop.user_of(browser.send("/page", headers=proof_of(browser))) is None


def proof_of(browser: DeviceBrowser) -> dict[str, str]:
    """Keep the cookies that a browser would have dropped."""
    for cookie in browser.cookies.values():
        cookie.ends_at = None
    return {}


# What an application does


def test_an_application_can_neither_forge_nor_drop_the_key(shop: Shop) -> None:
    @shop.app.post("/forge")
    def forge() -> str:
        key = Key()
        session["_device"] = f"{key.identifier}.1"
        session["device"] = None
        for name in [*session]:
            if name != "user_id":
                session.pop(name)
        session.update(_device=None)
        return ",".join(session)

    browser, thief = shop.logged_in(), shop.browser(can_bind=False)
    assert browser.fetch("/forge", "POST").text == "user_id,_device"
    browser.fetch("/empty", "POST")
    browser.copy_cookies_to(thief)
    shop.clock.advance(LIFETIME * 2)
    assert shop.user_of(thief.fetch("/page")) is None
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert len(browser.offers) == 1


def test_nothing_of_the_key_is_in_the_content(shop: Shop) -> None:
    @shop.app.get("/keys")
    def keys() -> str:
        return ",".join(session)

    browser = shop.logged_in()
    assert browser.fetch("/keys").text == "user_id"


def test_a_change_from_outside_keeps_the_key(shop: Shop) -> None:
    browser = shop.logged_in()
    (info,) = shop.infos()
    with shop.app.app_context():
        with shop.extension.open(info.handle) as data:
            data["role"] = "editor"
        assert shop.extension.update_user("ann", lambda data: data.update(n=1)) == 1
    shop.clock.advance(LIFETIME * 2)
    assert shop.user_of(browser.send("/page")) is None
    assert shop.user_of(browser.fetch("/page")) == "ann"


def test_a_renewed_id_keeps_the_key(shop: Shop) -> None:
    browser = shop.browser()
    browser.app = shop.make_app(SESSION_RENEWAL_INTERVAL=60)
    browser.fetch("/log-in/ann", "POST")
    browser.fetch("/page")
    thief = shop.browser(can_bind=False)
    thief.app = browser.app
    for _ in range(3):
        before = browser.id
        shop.clock.advance(KEPT + 1)
        browser.copy_cookies_to(thief)
        assert shop.user_of(browser.fetch("/page")) == "ann"
        assert browser.id != before
        thief.cookies.pop("session_proof", None)
        assert shop.user_of(thief.fetch("/page")) is None  # by the old id
        assert shop.user_of(browser.fetch("/page")) == "ann"
    assert "ended" not in browser.events


def test_an_id_that_is_renewed_before_the_key_is_registered_leaves_it_unbound(
    shop: Shop,
) -> None:
    browser = shop.browser()
    browser.registers = False
    browser.fetch("/log-in/ann", "POST")
    browser.fetch("/renew", "POST")
    assert not browser.register(browser.offers[0])
    shop.clock.advance(LIFETIME * 2)
    assert shop.user_of(browser.fetch("/page")) == "ann"


def test_a_proof_is_no_activity(shop: Shop) -> None:
    shop.settings["SESSION_IDLE_TIMEOUT"] = 1000
    shop.app = shop.make_app()
    browser = shop.logged_in()
    (device,) = browser.sessions.values()
    before = shop.infos()[0].expires_at
    shop.clock.advance(500)
    assert browser.refresh(device) is None
    assert shop.infos()[0].expires_at == before
    shop.clock.advance(501)
    assert browser.refresh(device) is None
    assert browser.sessions == {}  # it has timed out


def test_a_session_that_is_moved_keeps_the_key(tmp_path: Path) -> None:
    shop = Shop({"SESSION_BACKEND": "memory"})
    plain = {
        "SESSION_BACKEND": "filesystem",
        "SESSION_FILESYSTEM_PATH": str(tmp_path),
    }
    shop.app = shop.make_app(**plain)
    browser = shop.logged_in()
    browser.app = shop.make_app(
        **plain,
        SESSION_KEY_PREFIX="new:",
        SESSION_ENCRYPTION_KEY=bytes(32),
        SESSION_MIGRATE_FROM={
            "SESSION_KEY_PREFIX": "session:",
            "SESSION_ENCRYPTION_KEY": None,
        },
        SESSION_MIGRATE_UNTIL="2200-01-01",
    )
    shop.clock.advance(LIFETIME * 2)
    assert shop.user_of(browser.send("/page")) is None
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert "ended" not in browser.events


def test_a_log_out_with_a_message_unbinds(shop: Shop) -> None:
    browser = shop.logged_in()
    browser.fetch("/log-out-with-a-message", "POST")
    assert "session_proof" not in browser.live_cookies()
    assert shop.user_of(browser.fetch("/page")) is None
    assert browser.sessions == {}
    browser.fetch("/log-in/ann", "POST")
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.events[2:] == ["ended", "registered", "refreshed"]


def test_it_can_be_turned_off_again(shop: Shop) -> None:
    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    browser.app = shop.make_app(SESSION_DEVICE_BOUND=False)
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.sessions == {}
    assert browser.fetch(PATH, "POST").status_code == 404
    browser.fetch("/log-in/bob", "POST")
    assert len(browser.offers) == 1
    (info,) = shop.infos("bob")
    assert not info.is_device_bound


def test_off_it_leaves_nothing_behind(shop: Shop) -> None:
    app = shop.make_app(SESSION_DEVICE_BOUND=False)
    assert app.before_request_funcs == {}
    assert app.extensions["serversession"].interface.core.devices is None


def test_an_operator_sees_which_sessions_are_bound(shop: Shop) -> None:
    bound, unbound = shop.logged_in("ann"), shop.logged_in("bob", can_bind=False)
    registered = shop.browser()
    registered.fetch("/log-in/carol", "POST")
    assert unbound.events == []
    assert bound.events == ["registered", "refreshed"]
    for user, is_bound in (("ann", True), ("bob", False), ("carol", False)):
        (info,) = shop.infos(user)
        assert info.is_device_bound is is_bound
    runner = shop.app.test_cli_runner()
    listed = runner.invoke(args=["sessions", "list"]).output
    assert "DEVICE" in listed.splitlines()[0]
    assert sorted(line.split()[-1] for line in listed.splitlines()[1:]) == [
        *("-", "-", "bound")
    ]
    (info,) = shop.infos("ann")
    shown = runner.invoke(args=["sessions", "show", info.handle]).output
    assert "Device     bound" in shown
    document = runner.invoke(args=["sessions", "show", info.handle, "--json"]).output
    assert json.loads(document)["is_device_bound"] is True


# What is before the application


def test_the_route_comes_before_the_application(shop: Shop) -> None:
    browser = shop.browser()
    app = browser.app

    @app.before_request
    def refuse() -> Response | None:
        return Response("no", 401) if request.path == PATH else None

    browser.fetch("/log-in/ann", "POST")
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.send(PATH).status_code == 401  # what is no POST is not for it
    response = browser.send(PATH, "POST")
    assert response.status_code == 403
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_what_runs_after_the_route_sees_what_was_proven_and_nothing_else(
    shop: Shop,
) -> None:
    """The application's functions that run after each request may look, and write."""
    seen: list[str | None] = []

    @shop.app.after_request
    def look(response: Response) -> Response:
        if request.path == PATH:
            seen.append(session.get("user_id"))
            session["last"] = len(seen)
        return response

    browser, thief, key = shop.browser(), shop.browser(), Key()
    browser.fetch("/log-in/ann", "POST")
    browser.fetch("/page")
    assert seen == ["ann", "ann"]  # registered, and bound
    browser.copy_cookies_to(thief)
    shop.clock.advance(LIFETIME * 2)
    seen.clear()
    asked = thief.send(PATH, "POST", {"Sec-Secure-Session-Id": key.identifier})
    challenge = challenge_of(asked.headers, "Challenge")
    for headers in (
        {},
        registration(challenge, key),
        refresh(challenge, key, key.identifier),
    ):
        response = thief.send(PATH, "POST", headers)
        assert "Set-Cookie" not in response.headers
    assert seen == [None] * 4
    seen.clear()
    browser.restart()
    before = browser.id
    assert shop.user_of(browser.fetch("/page")) == "ann"
    assert browser.events[2:] == ["challenged", "refreshed"]
    assert seen == [None, "ann"]
    assert browser.id == before
    shop.clock.advance(KEPT + 1)
    with shop.backend.failing():
        assert browser.fetch("/page").status_code == 503
    assert shop.user_of(browser.fetch("/page")) == "ann"


def test_a_log_out_is_final_whatever_runs_after_the_route(shop: Shop) -> None:
    shop.settings["SESSION_SAVE_UNINITIALIZED"] = True
    shop.app = shop.make_app()
    browser = shop.logged_in()
    browser.fetch("/log-out", "POST")
    (device,) = browser.sessions.values()
    assert browser.refresh(device) is None
    assert browser.sessions == {}
    assert "session" not in browser.live_cookies()


def test_without_a_secret_there_is_no_route() -> None:
    app = Flask("shop")
    app.config.update(SESSION_DEVICE_BOUND=True, SESSION_COOKIE_SECURE=True)
    app.config.update(SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app)
    assert app.test_client().post(PATH).status_code == 404


def test_a_remember_cookie_is_warned_of_once(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    @shop.app.after_request
    def remember(response: Response) -> Response:
        if request.path == "/log-in/bob":
            response.set_cookie("remember_token", "bob")
        return response

    shop.browser().fetch("/log-in/ann", "POST")
    assert "remember" not in caplog.text
    for _ in range(2):
        shop.browser().fetch("/log-in/bob", "POST")
    (record,) = (r for r in caplog.records if "remember_token" in r.getMessage())
    assert record.levelno == logging.WARNING
    assert "which logs in on any device" in record.getMessage()


# Attacks: what does not come off, and what none of it costs


def registration(challenge: str, key: Key) -> dict[str, str]:
    return {"Secure-Session-Response": key.token(challenge, is_registration=True)}


def refresh(challenge: str, key: Key, id: str) -> dict[str, str]:
    return {
        "Secure-Session-Response": key.token(challenge),
        "Sec-Secure-Session-Id": id,
    }


def challenge_of(headers: t.Mapping[str, str], name: str = "Registration") -> str:
    return (
        headers[f"Secure-Session-{name}"].partition("challenge=")[2].strip('"')
        or (headers[f"Secure-Session-{name}"].split('"')[1])
    )


@pytest.fixture
def robbed(shop: Shop) -> tuple[DeviceBrowser, DeviceBrowser]:
    """Give the browser of somebody, and that of a thief who has copied the cookies."""
    owner, thief = shop.logged_in(), shop.browser()
    shop.clock.advance(LIFETIME * 2)
    owner.fetch("/page")
    owner.copy_cookies_to(thief)
    del thief.cookies["session_proof"]
    return owner, thief


def test_a_thief_cannot_bind_a_key_of_their_own(
    shop: Shop,
    robbed: tuple[DeviceBrowser, DeviceBrowser],
    request: pytest.FixtureRequest,
) -> None:
    owner, thief = robbed
    key = Key()
    (device,) = owner.sessions.values()
    elsewhere = shop.browser(can_bind=False)
    offer = elsewhere.fetch("/log-in/thief", "POST").headers
    asked = thief.send(PATH, "POST", {"Sec-Secure-Session-Id": key.identifier})
    own = challenge_of(asked.headers, "Challenge")
    asked = thief.send(PATH, "POST", {"Sec-Secure-Session-Id": device.id})
    owners = challenge_of(asked.headers, "Challenge")
    attempts = {
        "no challenge": registration("", key),
        "a made-up challenge": registration("6b0e1c85.pii2FZdobQRf." + "A" * 43, key),
        "that of a log-in elsewhere": registration(challenge_of(offer), key),
        "that of the first log-in": registration(challenge_of_offer(owner), key),
        "that of a proof": registration(own, key),
        "that of the owner's proof": registration(owners, key),
        "another key for the owner's name": refresh(owners, key, device.id),
        "their challenge for the owner's name": refresh(own, key, device.id),
        "the owner's challenge for their name": refresh(owners, key, key.identifier),
    }
    with shop.backend.counting() as calls:
        for name, headers in attempts.items():
            assert thief.send(PATH, "POST", headers).status_code == 403, name
    assert calls == {}
    count_attacks(request, {"keys of a thief": len(attempts), "backend asked": 0})
    assert "session_proof" not in thief.cookies
    # A proof of their own key is given to nobody whose session has another one.
    response = thief.send(PATH, "POST", refresh(own, key, key.identifier))
    assert json.loads(response.text) == {
        "session_identifier": key.identifier,
        "continue": False,
    }
    assert "Set-Cookie" not in response.headers
    assert shop.user_of(thief.fetch("/page")) is None
    assert shop.user_of(owner.fetch("/page")) == "ann"
    assert owner.sessions == {device.id: device}


def count_attacks(request: pytest.FixtureRequest, counts: dict[str, int]) -> None:
    add_counts(request.node, "attacks on device-bound sessions", counts)


def challenge_of_offer(browser: DeviceBrowser) -> str:
    return challenge_of({"Secure-Session-Registration": browser.offers[0]})


def test_a_thief_in_time_cannot_bind_a_key_of_their_own(shop: Shop) -> None:
    """While the copied proof is good, they can do all but prove who they are."""
    owner, thief = shop.logged_in(), shop.browser()
    owner.copy_cookies_to(thief)
    for path in ("/count", "/renew", "/empty", "/log-in/ann"):
        assert thief.fetch(path, "POST").status_code == 200
    assert thief.offers == []
    shop.clock.advance(LIFETIME * 2)
    assert shop.user_of(thief.fetch("/page")) is None


def test_a_registration_cannot_be_repeated_with_another_key(shop: Shop) -> None:
    """Not even with the challenge of the log-in, once the session is bound."""
    owner = shop.logged_in()
    response = owner.send(PATH, "POST", registration(challenge_of_offer(owner), Key()))
    assert response.status_code == 403
    shop.clock.advance(KEPT + 1)
    assert shop.user_of(owner.fetch("/page")) == "ann"


def test_a_registration_can_be_repeated_with_the_same_key(shop: Shop) -> None:
    owner = shop.logged_in()
    (device,) = owner.sessions.values()
    headers = registration(challenge_of_offer(owner), device.key)
    with shop.backend.counting() as calls:
        assert owner.send(PATH, "POST", headers).status_code == 200
    assert calls == {"load": 1}


def test_an_offer_is_good_for_some_minutes(shop: Shop) -> None:
    browser = shop.browser()
    browser.registers = False
    browser.fetch("/log-in/ann", "POST")
    shop.clock.advance(361)
    with shop.backend.counting() as calls:
        assert not browser.register(browser.offers[0])
    assert calls == {}


def test_another_users_proof_opens_nothing(shop: Shop) -> None:
    ann, bob = shop.logged_in("ann"), shop.logged_in("bob")
    shop.clock.advance(LIFETIME * 2)
    bob.fetch("/page")
    ann.live_cookies()
    ann.cookies["session_proof"] = bob.cookies["session_proof"]
    assert shop.user_of(ann.send("/page")) is None
    (device,) = bob.sessions.values()
    asked = ann.send(PATH, "POST", {"Sec-Secure-Session-Id": device.id})
    challenge = challenge_of(asked.headers, "Challenge")
    headers = refresh(challenge, device.key, device.id)
    assert json.loads(ann.send(PATH, "POST", headers).text)["continue"] is False


def test_an_old_proof_cannot_be_repeated(shop: Shop) -> None:
    owner, thief = shop.logged_in(), shop.browser()
    (device,) = owner.sessions.values()
    assert device.challenge is not None
    heard = refresh(device.challenge, device.key, device.id)
    owner.copy_cookies_to(thief)
    assert thief.send(PATH, "POST", heard).status_code == 200
    shop.clock.advance(LIFETIME + 300 + 61)
    with shop.backend.counting() as calls:
        response = thief.send(PATH, "POST", heard)
    assert response.status_code == 403
    assert "Set-Cookie" not in response.headers
    assert calls == {}


def test_planted_proofs_do_not_hide_the_right_one(shop: Shop) -> None:
    browser = shop.logged_in()
    shop.clock.advance(100)
    cookies = browser.live_cookies()
    planted = "; ".join(f"session_proof={value}" for value in ("", "x", "f" * 5_000))
    header = f"{planted}; session={cookies['session']}; session_proof="
    client = shop.app.test_client(use_cookies=False)
    sent = {"Cookie": header + cookies["session_proof"]}
    assert client.get("/page", headers=sent).text == "ann"
    sent = {"Cookie": header + cookies["session_proof"][:-1] + "!"}
    assert client.get("/page", headers=sent).status_code == 401


HOSTILE = [
    *("", "A", '"', '""', "a.b.c", "." * 2_000, "A" * 100_000, "é", "\0", "a, b"),
    *("../..", "{}", "null", "?0", ":AAAA:", "A" * 44, "A" * 44 + ";x=1"),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_makes_no_sense_is_refused_and_asks_nobody(
    shop: Shop, text: str, request: pytest.FixtureRequest
) -> None:
    owner = shop.logged_in()
    (device,) = owner.sessions.values()
    with shop.backend.counting() as calls:
        for headers in (
            {"Secure-Session-Response": text},
            {"Secure-Session-Response": text, "Sec-Secure-Session-Id": device.id},
            {"Sec-Secure-Session-Id": text},
            {"Secure-Session-Response": text, "Sec-Secure-Session-Id": text},
        ):
            response = owner.send(PATH, "POST", headers)
            assert response.status_code == 403
            assert "Set-Cookie" not in response.headers
            assert text not in response.text or len(text) < 3
    assert calls == {}
    count_attacks(request, {"hostile headers": 4, "backend asked": sum(calls.values())})


@pytest.mark.parametrize(
    "root",
    [
        '/a";challenge="x',
        "/a\r\nSet-Cookie: x=y",
        "//evil.test",
        "/a b/\u00e9",
        '/";path="//evil.test',
        "/a\\b",
        "/a;b=c,d",
    ],
)
def test_a_root_from_a_header_cannot_say_more_than_a_path(
    shop: Shop, root: str
) -> None:
    client = shop.app.test_client()
    # As X-Forwarded-Prefix would, through ProxyFix.
    response = client.post(
        "/log-in/ann",
        base_url="https://shop.test",
        environ_overrides={"SCRIPT_NAME": root.encode().decode("latin-1")},
    )
    header = response.headers["Secure-Session-Registration"]
    match = re.fullmatch(r'\(ES256\);path="(/[^/][^"]*)";challenge="[\w.-]+"', header)
    assert match is not None, header
    assert re.fullmatch(r"[\w%/~.-]+", match[1], re.ASCII)
    assert match[1].endswith("/_session/device")


@pytest.mark.parametrize(
    ("path", "query", "url"),
    [
        ("//evil.test/page", "", "?"),
        ("/page", "a=1;url=//evil.test", "?a=1;url=//evil.test"),
        ("/page", "\r\nSet-Cookie: a=b", "?%0D%0ASet-Cookie:%20a=b"),
        ("/page", '"><script>', "?%22%3E%3Cscript%3E"),
        ("/page", "a=\xe9", "?a=%E9"),
        ("/page", "a=%20b", "?a=%20b"),
    ],
)
def test_a_link_cannot_lead_elsewhere(
    shop: Shop, path: str, query: str, url: str
) -> None:
    @shop.app.get("/<path:any>")
    def any_page(any: str) -> str:
        return str(dict(session))

    shop.app.url_map.merge_slashes = False
    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    cookies = "; ".join(f"{k}={v}" for k, v in browser.live_cookies().items())
    environ = EnvironBuilder(
        base_url="https://shop.test",
        headers={
            "Cookie": cookies,
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
        },
    ).get_environ()
    environ |= {"PATH_INFO": path, "QUERY_STRING": query}
    response = run_wsgi_app(shop.app, environ)
    headers = dict(response[2])
    assert headers["Refresh"] == f"1; url={url}"
    assert "location.reload()" in b"".join(response[0]).decode()


def test_no_id_and_no_secret_leaves_in_what_a_browser_signs(shop: Shop) -> None:
    browser = shop.browser()
    browser.fetch("/log-in/ann", "POST")
    (device,) = browser.sessions.values()
    handle = shop.state.interface.core.identify(browser.id).key
    for text in (browser.offers[0], str(device)):
        assert browser.id not in text
        assert handle[-64:] not in text
        assert "ann" not in text


def test_a_flood_costs_no_signatures(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no challenge, or no session, is not worth the cost of a signature."""
    owner, stranger = shop.logged_in(), shop.browser()
    (device,) = owner.sessions.values()
    verified: list[object] = []
    monkeypatch.setattr(
        "flask_serversession.device.tokens.Token.is_signed_by",
        lambda *args: verified.append(args) or True,
    )
    for challenge in ("", "x", "6b0e1c85.pii2FZdobQRf." + "A" * 43):
        headers = refresh(challenge, Key(), device.id)
        assert owner.send(PATH, "POST", headers).status_code == 403
    assert device.challenge is not None
    headers = refresh(device.challenge, device.key, device.id)
    assert json.loads(stranger.send(PATH, "POST", headers).text)["continue"] is False
    assert verified == []


def test_encryption_protects_the_key_of_a_record(shop: Shop) -> None:
    shop.settings["SESSION_ENCRYPTION_KEY"] = bytes(32)
    shop.app = shop.make_app()
    browser = shop.logged_in()
    shop.clock.advance(LIFETIME * 2)
    key = shop.state.interface.core.identify(browser.id).key
    record = shop.backend.load(key)
    assert record is not None
    # Who can write to the store takes the key out, or puts their own in.
    data = bytearray(record.data)
    data[2] &= ~2
    for changed in (
        bytes(data[:36] + data[36 + 41 :]),
        record.data[:36] + b"\3" + bytes(32) + record.data[69:],
        record.data[:69] + struct.pack(">d", math.nan) + record.data[77:],
    ):
        current = shop.backend.load(key)
        assert current is not None
        forged = dataclasses.replace(current, data=changed, version=current.version + 1)
        shop.backend.replace(key, forged, current.version)
        assert shop.user_of(browser.send("/page")) is None
