"""Why a session is no more: for who comes back to it, and for who is told."""

from __future__ import annotations

import typing as t

import flask
import pytest
from flask import Flask
from flask import session

from flask_serversession import ServerSession
from flask_serversession import session as typed_session
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.config import SessionConfig
from flask_serversession.ended import EndedSessions
from flask_serversession.ids import key_of
from flask_serversession.testing import FakeClock

from .site import Browser
from .site import Site
from .site import advance

Config = dict[str, t.Any]
MINUTE = 60.0
HOUR = 3600.0
DAY = 24 * HOUR


def make_site(**settings: t.Any) -> Site:
    clock = FakeClock()
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


def log_in(site: Site) -> Browser:
    browser = site.browser()
    browser.set(_user_id="ada")
    return browser


def why(browser: Browser) -> str:
    return browser.visit(lambda: str(typed_session.ended_because)).text


def revoke(site: Site, browser: Browser) -> None:
    with site.app.app_context():
        site.extension.revoke(key_of(browser.id, ""))


def revoke_all(site: Site, browser: Browser) -> None:
    with site.app.app_context():
        site.extension.revoke_user("ada")


def log_in_elsewhere(site: Site, browser: Browser) -> None:
    advance(site, 1)
    log_in(site)


def log_out(site: Site, browser: Browser) -> None:
    browser.twin().visit(lambda: typed_session.destroy())


def empty(site: Site, browser: Browser) -> None:
    browser.twin().visit(lambda: session.clear())


def start_over(site: Site, browser: Browser) -> None:
    browser.twin().visit(
        lambda: (typed_session.regenerate(keep_data=False), session.update(n=1))
    )
    advance(site, 11)


def renew(site: Site, browser: Browser) -> None:
    browser.twin().visit(lambda: typed_session.regenerate())
    advance(site, 11)


def leave(site: Site, browser: Browser) -> None:
    advance(site, 2 * HOUR)


def keep(site: Site, browser: Browser) -> None:
    pass


def tamper(site: Site, browser: Browser) -> None:
    assert browser.cookie is not None
    browser.cookie = browser.cookie[:-1]


def replace_cookie(site: Site, browser: Browser) -> None:
    browser.cookie = "eyJfdXNlcl9pZCI6ImFkYSJ9"


def forget(site: Site, browser: Browser) -> None:
    site.backend.delete(key_of(browser.id, site.state.config.key_prefix))


ENDS: dict[str, tuple[t.Callable[[Site, Browser], None], str]] = {
    "revoked": (revoke, "revoked"),
    "all revoked": (revoke_all, "revoked"),
    "limit": (log_in_elsewhere, "limit"),
    "logged out": (log_out, "logged out"),
    "emptied": (empty, "logged out"),
    "started over": (start_over, "replaced"),
    "renewed": (renew, "reused"),
    "unused": (leave, "expired"),
    "still there": (keep, "None"),
    "tampered with": (tamper, "forged"),
    "another cookie": (replace_cookie, "malformed"),
    "lost by the store": (forget, "unknown"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_view_can_say_why_a_session_is_no_more(
    end: str, backend_config: Config
) -> None:
    act, reason = ENDS[end]
    needs_index = end in ("limit", "all revoked")
    if needs_index and backend_config["SESSION_BACKEND"] == "cachelib":
        pytest.skip("The backend keeps no index of users.")
    site = Site(
        backend_config,
        SESSION_IDLE_TIMEOUT=HOUR,
        SESSION_MAX_PER_USER=1 if end == "limit" else None,
    )
    browser = log_in(site)
    act(site, browser)
    assert why(browser) == reason


@pytest.mark.parametrize("end", ["limit", "unused"])
def test_it_can_be_said_after_the_request_has_begun_another_session(end: str) -> None:
    site = make_site(SESSION_MAX_PER_USER=1, SESSION_IDLE_TIMEOUT=HOUR)
    browser = log_in(site)
    act, reason = ENDS[end]
    act(site, browser)

    def view() -> str:
        session["n"] = 1
        typed_session.save()
        return str(typed_session.ended_because)

    assert browser.visit(view).text == reason
    # From the next request on, the browser comes with the new one.
    assert why(browser) == "None"


def test_who_came_with_no_session_has_lost_none() -> None:
    assert why(make_site().browser()) == "None"


def test_an_absolute_timeout_is_an_expiry_too() -> None:
    site = make_site(SESSION_ABSOLUTE_TIMEOUT=HOUR)
    browser = log_in(site)
    for _ in range(3):
        advance(site, HOUR / 3)
        last = why(browser)
    assert last == "expired"


def test_a_record_that_is_there_for_longer_than_its_session_has_expired() -> None:
    """Another worker may have another timeout, or the session its own lifetime."""
    site = make_site(SESSION_ABSOLUTE_TIMEOUT=DAY)
    browser = log_in(site)
    config = {"SESSION_BACKEND": site.backend}
    shorter = Site(config, site.clock, SESSION_IDLE_TIMEOUT=MINUTE)
    other = shorter.browser()
    other.cookie = browser.cookie
    advance(site, HOUR)
    assert why(other) == "expired"


def test_of_several_cookies_the_reason_is_that_of_the_first_that_verifies() -> None:
    site = make_site()
    browser = log_in(site)
    revoke(site, browser)
    header = f"session=x.p1-1.y; session={browser.cookie}"
    response = browser.client.get(
        site.add(lambda: str(typed_session.ended_because)),
        headers={"Cookie": header},
    )
    assert response.text == "revoked"


def test_a_template_may_say_why() -> None:
    site = make_site()
    browser = log_in(site)
    revoke(site, browser)
    page = "{{ session.ended_because }}"
    assert browser.visit(lambda: flask.render_template_string(page)).text == "revoked"


def test_without_a_secret_nothing_has_ended() -> None:
    app = Flask("site")
    app.config["SESSION_BACKEND"] = "memory"
    ServerSession(app)
    with app.test_request_context():
        assert typed_session.ended_because is None


# What is remembered


def make_memory() -> tuple[EndedSessions, FakeClock]:
    clock = FakeClock()
    return EndedSessions(SessionConfig(), clock), clock


def test_that_something_ended_is_news_for_a_minute_and_why_is_known_for_a_day() -> None:
    ended, clock = make_memory()
    start = clock()
    ended.add("a", "revoked")
    assert ended.has("a")
    assert not ended.has("a", since=start)
    assert ended.has("a", since=start - 1)
    clock.advance(60)
    assert not ended.has("a")
    assert ended.reason("a") == "revoked"
    clock.advance(DAY - 60)
    ended.add("b", "limit")
    assert ended.reason("a") is None
    assert ended.reason("b") == "limit"


def test_the_last_end_counts_and_a_key_in_use_has_none() -> None:
    ended, _ = make_memory()
    ended.add("a", "rotated")
    ended.add("a", "logged out")
    assert ended.reason("a") == "logged out"
    ended.discard("a")
    assert ended.reason("a") is None
    assert not ended.has("a")


def test_the_oldest_of_very_many_are_forgotten() -> None:
    ended, _ = make_memory()
    for number in range(10_001):
        ended.add(str(number), "logged out")
    assert ended.reason("0") is None
    assert ended.reason("1") == "logged out"
