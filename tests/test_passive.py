"""What counts as activity: passive requests, and the time that is left."""

from __future__ import annotations

import datetime as dt
import typing as t

import flask
import pytest
from flask import Flask
from flask import session

from flask_serversession import ServerSession
from flask_serversession import passive
from flask_serversession import session as typed_session
from flask_serversession import session_regenerated
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.interface import ServerSessionInterface
from flask_serversession.testing import FakeClock

from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of

Config = dict[str, t.Any]
MINUTE = 60.0
LIFETIME = 600.0
#: Three ways to have sessions that live for ten minutes.
LIFETIMES: dict[str, Config] = {
    "permanent": {"SESSION_PERMANENT": True, "PERMANENT_SESSION_LIFETIME": LIFETIME},
    "browser": {"SESSION_IDLE_TIMEOUT": LIFETIME},
    "not refreshed": {
        "SESSION_PERMANENT": True,
        "PERMANENT_SESSION_LIFETIME": LIFETIME,
        "SESSION_REFRESH_EACH_REQUEST": False,
    },
}
#: What a page may ask for by itself.
POLLS: dict[str, t.Callable[[], t.Any]] = {
    "nothing": passive(lambda: ""),
    "time": lambda: typed_session.time_left,
    "time, passive": passive(lambda: typed_session.time_left),
    "user": passive(lambda: typed_session.user),
    "touched before": lambda: (typed_session.touch(), typed_session.passive()),
    "permanent": passive(lambda: setattr(session, "permanent", session.permanent)),
    "change": passive(lambda: session.update(polls=session.get("polls", 0) + 1)),
    "nested change": passive(lambda: session["list"].append(1)),
}


@pytest.fixture(params=LIFETIMES)
def site(request: pytest.FixtureRequest) -> Site:
    return make_site(**LIFETIMES[request.param])


def make_site(**settings: t.Any) -> Site:
    clock = FakeClock()
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


def log_in(site: Site) -> Browser:
    browser = site.browser()
    is_permanent = bool(site.app.config.get("SESSION_PERMANENT"))
    browser.set(_user_id="ada", list=[], _permanent=is_permanent)
    return browser


def user() -> str:
    return typed_session.user or "nobody"


def left() -> str:
    return str(typed_session.time_left.total_seconds())


# passive requests


@pytest.mark.parametrize("poll", POLLS)
def test_polling_does_not_keep_a_session_alive(site: Site, poll: str) -> None:
    browser = log_in(site)
    for _ in range(9):
        advance(site, MINUTE)
        assert cookie_of(browser.visit(POLLS[poll]), site) == "none"
    advance(site, MINUTE - 1)
    assert browser.twin().visit(passive(user)).text == "ada"
    advance(site, 1)
    assert browser.visit(user).text == "nobody"


@pytest.mark.parametrize("poll", POLLS)
@pytest.mark.parametrize("lifetime", ["permanent", "browser"])
def test_polling_does_not_hinder_clicking_from_keeping_it_alive(
    lifetime: str, poll: str
) -> None:
    site = make_site(**LIFETIMES[lifetime])
    browser = log_in(site)
    for _ in range(10):
        for _ in range(9):
            advance(site, MINUTE)
            browser.visit(POLLS[poll])
        assert browser.visit(user).text == "ada"
    advance(site, LIFETIME - 1)
    assert browser.visit(user).text == "ada"


@pytest.mark.parametrize("poll", POLLS)
def test_polling_costs_no_touch(site: Site, poll: str) -> None:
    browser = log_in(site)
    advance(site, 5 * MINUTE)
    costs = {"nothing": {}, "touched before": {}}.get(poll, {"load": 1})
    if "change" in poll:
        costs = {"load": 1, "replace": 1}
    assert browser.costs(POLLS[poll]) == (costs, "none")


def test_what_a_passive_request_changes_is_saved_and_told(site: Site) -> None:
    browser = log_in(site)
    browser.visit(POLLS["change"])
    browser.visit(POLLS["nested change"])
    content = browser.read()
    assert (content["polls"], content["list"]) == (1, [1])


def test_a_touch_while_a_passive_request_runs_is_not_undone_by_what_it_writes() -> None:
    site = make_site(**LIFETIMES["browser"])
    browser = log_in(site)
    other = browser.twin()
    advance(site, 9 * MINUTE)

    @passive
    def wait_for_news() -> None:
        assert session["list"] == []
        advance(site, 30)
        assert other.visit(user).text == "ada"
        advance(site, 1)
        session["news"] = True

    browser.visit(wait_for_news)
    advance(site, 9 * MINUTE)
    assert browser.visit(passive(lambda: session["news"])).text == "True"
    assert browser.visit(user).text == "ada"


@pytest.mark.parametrize("is_unseen", [True, False])
def test_of_touch_and_passive_the_last_call_counts(is_unseen: bool) -> None:
    site = make_site(**LIFETIMES["permanent"])
    browser = log_in(site)

    def act(*calls: t.Callable[[], None]) -> None:
        for call in calls:
            call()
        if not is_unseen:
            assert session["_user_id"] == "ada"

    touch, be_passive = (lambda: typed_session.touch()), lambda: typed_session.passive()
    load = {} if is_unseen else {"load": 1}
    for calls, touches, cookie in (
        ((touch, be_passive), {}, "none"),
        ((be_passive, touch), {"touch": 1}, "set"),
        ((be_passive, touch, be_passive), {}, "none"),
    ):
        advance(site, MINUTE)
        action = lambda calls=calls: act(*calls)  # noqa: E731
        assert browser.costs(action) == ({**load, **touches}, cookie)


def test_a_passive_view_that_does_not_look_leaves_no_trace(site: Site) -> None:
    site.app.add_url_rule("/poll", view_func=passive(lambda: "x"), endpoint="poll")
    browser = log_in(site)
    with site.backend.counting() as calls:
        response = browser.client.get("/poll")
    assert not calls
    assert response.headers.get("Vary") is None
    assert cookie_of(response, site) == "none"


def test_a_view_may_be_a_coroutine_function() -> None:
    site = make_site(**LIFETIMES["permanent"])

    @passive
    async def poll(name: str) -> str:
        """Tell who it is."""
        return f"{name} {typed_session.user}"

    assert (poll.__name__, poll.__doc__) == ("poll", "Tell who it is.")
    site.app.add_url_rule("/poll/<name>", view_func=poll)
    browser = log_in(site)
    advance(site, MINUTE)
    with site.backend.counting() as calls:
        response = browser.client.get("/poll/hi")
    assert response.text == "hi ada"
    assert list(calls) == ["load"]
    assert cookie_of(response, site) == "none"


def test_passive_requests_renew_no_id() -> None:
    """The browser would not be told of it by any other passive request."""
    site = make_site(SESSION_RENEWAL_INTERVAL=MINUTE)
    browser = log_in(site)
    advance(site, 2 * MINUTE)
    assert browser.costs(passive(user)) == ({"load": 1}, "none")
    former = browser.id
    browser.visit(user)
    assert browser.id != former


def test_who_logs_in_by_a_passive_request_has_the_whole_time(site: Site) -> None:
    browser = site.browser()
    browser.set(waiting=True)
    former = browser.id
    advance(site, 9 * MINUTE)
    response = browser.visit(passive(lambda: session.update(_user_id="ada")))
    assert cookie_of(response, site) == "set"
    assert browser.id != former
    advance(site, LIFETIME - 1)
    assert browser.visit(passive(user)).text == "ada"


def test_a_passive_request_may_begin_a_session_and_end_it(site: Site) -> None:
    browser = site.browser()
    begin = passive(lambda: session.update(n=1))
    assert browser.costs(begin) == ({"create": 1}, "set")
    advance(site, LIFETIME - 1)
    costs = browser.costs(passive(lambda: session.clear()))
    assert costs == ({"delete": 1}, "deleted")


def test_a_lifetime_that_a_passive_request_sets_reaches_the_browser() -> None:
    site = make_site(**LIFETIMES["permanent"])
    browser = log_in(site)

    @passive
    def prolong() -> None:
        typed_session.lifetime = dt.timedelta(hours=1)

    response = browser.visit(prolong)
    assert "Max-Age=3600" in response.headers["Set-Cookie"]


def test_an_old_secret_is_no_reason_for_a_passive_request_to_send_the_cookie() -> None:
    site = make_site(**LIFETIMES["browser"])
    browser = log_in(site)
    site.app.config.update(SECRET_KEY="a new one", SECRET_KEY_FALLBACKS=["a secret"])
    assert browser.costs(passive(user)) == ({"load": 1}, "none")
    assert browser.costs(user) == ({"load": 1}, "set")


def test_an_application_that_always_sends_the_cookie_does_not_for_a_passive_one() -> (
    None
):
    class Interface(ServerSessionInterface):
        def should_set_cookie(self, app: Flask, session: t.Any) -> bool:
            return session.permanent is False  # looks at it

    class Extension(ServerSession):
        interface_class = Interface

    app = Flask("site")
    app.config.update(SECRET_KEY="k", SESSION_BACKEND="memory", TESTING=True)
    Extension(app)
    app.add_url_rule("/", view_func=lambda: session.update(n=1) or "", endpoint="w")
    app.add_url_rule("/read", view_func=lambda: f"{session['n']}", endpoint="r")
    app.add_url_rule("/p", view_func=passive(lambda: f"{session['n']}"), endpoint="p")
    app.add_url_rule("/time", view_func=left, endpoint="t")
    client = app.test_client()
    for path, is_sent in (("/", 1), ("/read", 1), ("/p", 0), ("/time", 0)):
        assert ("Set-Cookie" in client.get(path).headers) == is_sent


# the time that is left


def test_the_time_that_is_left_is_that_until_it_ends_unless_it_is_used(
    site: Site,
) -> None:
    browser = log_in(site)
    assert browser.visit(left).text == "600.0"
    advance(site, 599.5)
    assert browser.visit(left).text == "0.5"
    advance(site, 0.5)
    assert browser.visit(left).text == "0.0"
    advance(site, LIFETIME)
    assert browser.visit(left).text == "0.0"


def test_the_response_depends_on_the_cookie(site: Site) -> None:
    browser = log_in(site)
    assert browser.visit(left).headers["Vary"] == "Cookie"


@pytest.mark.parametrize("lifetime", ["permanent", "browser"])
def test_what_is_looked_at_beside_the_time_counts_as_always(lifetime: str) -> None:
    site = make_site(**LIFETIMES[lifetime])
    cookie = "set" if lifetime == "permanent" else "none"
    browser = log_in(site)

    def show_page() -> str:
        # In this order the time is what was left before, which is never too much.
        before = left()
        return f"{before} {user()} {left()}"

    advance(site, 9 * MINUTE)
    with site.backend.counting() as calls:
        response = browser.visit(show_page)
    assert response.text == "60.0 ada 600.0"
    assert list(calls) == ["load", "touch"]
    assert cookie_of(response, site) == cookie
    advance(site, LIFETIME - 1)
    assert browser.visit(left).text == "1.0"


def test_what_is_touched_beside_the_time_counts(site: Site) -> None:
    browser = log_in(site)
    advance(site, 9 * MINUTE)
    assert browser.visit(lambda: (typed_session.touch(), left())[1]).text == "600.0"
    advance(site, 9 * MINUTE)
    assert browser.visit(lambda: (left(), typed_session.touch())[0]).text == "60.0"
    assert browser.visit(left).text == "600.0"


def test_the_time_is_what_this_request_makes_of_it(site: Site) -> None:
    browser = log_in(site)
    advance(site, 9 * MINUTE)

    def change() -> str:
        session["n"] = 1
        return left()

    def log_out() -> str:
        session.clear()
        return left()

    assert browser.visit(change).text == "600.0"
    assert browser.visit(log_out).text == "0.0"
    assert browser.visit(change).text == "600.0"


def test_without_a_refresh_reading_does_not_change_what_is_left() -> None:
    site = make_site(**LIFETIMES["not refreshed"])
    browser = log_in(site)
    advance(site, MINUTE)
    assert browser.visit(lambda: user() and left()).text == "540.0"


def test_an_absolute_timeout_is_the_end() -> None:
    site = make_site(SESSION_IDLE_TIMEOUT=LIFETIME, SESSION_ABSOLUTE_TIMEOUT=900)
    browser = log_in(site)
    advance(site, 500)
    assert browser.visit(lambda: user() and left()).text == "400.0"
    assert browser.visit(left).text == "400.0"


def test_who_has_no_session_has_no_time_left(site: Site) -> None:
    assert site.browser().costs(left) == ({}, "none")
    assert site.browser().visit(left).text == "0.0"
    browser = log_in(site)
    browser.cookie = "forged"
    assert browser.visit(left).text == "0.0"


def test_after_the_response_the_time_is_what_was_recorded(site: Site) -> None:
    browser = log_in(site)
    advance(site, MINUTE)

    @passive
    def stream() -> flask.Response:
        own = t.cast(t.Any, session)._get_current_object()
        return flask.Response(str(own.time_left.total_seconds()) for _ in "1")

    assert browser.visit(stream).text == "540.0"


def test_a_template_may_ask_for_the_time_without_looking(site: Site) -> None:
    browser = log_in(site)
    advance(site, MINUTE)
    page = "{{ session.time_left.total_seconds() }}"
    show = lambda: flask.render_template_string(page)  # noqa: E731
    assert browser.costs(show) == ({"load": 1}, "none")
    assert browser.visit(show).text == "540.0"
    browser.set(time_left="a key")
    page = "{{ session.time_left }}"
    assert browser.visit(lambda: flask.render_template_string(page)).text == "a key"


def test_without_a_secret_there_is_nothing_to_renew_and_no_time() -> None:
    app = Flask("site")
    app.config["SESSION_BACKEND"] = "memory"
    ServerSession(app)
    app.add_url_rule("/", view_func=passive(left), endpoint="left")
    app.add_url_rule("/p", view_func=lambda: str(typed_session.passive()), endpoint="p")
    assert app.test_client().get("/").text == "0.0"
    assert app.test_client().get("/p").text == "None"


def test_an_id_is_not_renewed_for_who_asks_for_the_time_only() -> None:
    site = make_site(SESSION_RENEWAL_INTERVAL=MINUTE)
    browser = log_in(site)
    told: list[str] = []

    def tell(sender: object, **event: t.Any) -> None:
        told.append(event["handle"])

    advance(site, 2 * MINUTE)
    with session_regenerated.connected_to(tell, sender=site.app):
        browser.visit(left)
        assert not told
        browser.visit(lambda: left() and user())
        assert len(told) == 1


@pytest.mark.parametrize("is_passive", [True, False])
def test_only_activity_moves_the_device(is_passive: bool) -> None:
    site = make_site(SESSION_TRACK=("user_agent", "remote_addr"))
    browser = site.browser()
    browser.visit(lambda: session.update(_user_id="ada"), headers={"User-Agent": "a"})
    advance(site, 5 * MINUTE)

    def change() -> None:
        if is_passive:
            typed_session.passive()
        session["n"] = 1

    browser.visit(change, headers={"User-Agent": "b"})
    with site.app.app_context():
        (info,) = site.extension.sessions_of("ada")
    assert info.meta["user_agent"] == ("a" if is_passive else "b")
    assert info.meta["remote_addr"] == "127.0.0.1"
    assert browser.read()["n"] == 1


def test_who_logs_in_by_a_passive_request_is_where_that_comes_from() -> None:
    site = make_site(SESSION_TRACK=("user_agent",))
    browser = site.browser()
    browser.visit(lambda: session.update(n=1), headers={"User-Agent": "a"})
    change = passive(lambda: session.update(_user_id="ada"))
    browser.visit(change, headers={"User-Agent": "b"})
    with site.app.app_context():
        (info,) = site.extension.sessions_of("ada")
    assert info.meta == {"user_agent": "b"}
