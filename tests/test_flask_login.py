"""Flask-Login, which knows nothing of this library, and gets what it promises."""

from __future__ import annotations

import datetime as dt
import typing as t

import flask
import flask_login
import pytest
from flask import session

from flask_serversession import Capability
from flask_serversession import session as typed_session
from flask_serversession.testing import FakeClock

from .site import Browser
from .site import Site
from .site import cookie_of

pytestmark = pytest.mark.filterwarnings(
    # Flask-Login's own, from Python 3.12 on.
    "ignore:datetime.datetime.utcnow:DeprecationWarning"
)

AGENT = {"User-Agent": "a browser"}
OTHER_AGENT = {"User-Agent": "a thief's browser"}


class User(flask_login.UserMixin):
    def __init__(self, id: str) -> None:
        self.id = id


def add_login(site: Site) -> Site:
    manager = flask_login.LoginManager(site.app)
    manager.user_loader(User)
    manager.unauthorized_handler(lambda: flask.Response("log in first", 401))
    return site


@pytest.fixture
def site(backend_config: dict[str, t.Any]) -> Site:
    """Give a site on each backend."""
    return add_login(Site(backend_config))


def make_site(**settings: t.Any) -> Site:
    return add_login(Site({"SESSION_BACKEND": "memory"}, **settings))


def advance(site: Site, seconds: float) -> None:
    t.cast(FakeClock, site.clock).advance(seconds)


def log_in(user: str = "ada", **options: t.Any) -> t.Callable[[], t.Any]:
    return lambda: flask_login.login_user(User(user), **options)


def by_function(data: t.Mapping[str, t.Any]) -> t.Any:
    return data.get("_user_id")


@flask_login.login_required
def show_account() -> str:
    return f"{flask_login.current_user.id}'s account"


def account(browser: Browser, **options: t.Any) -> str:
    return browser.visit(show_account, **options).text


def test_the_id_changes_at_log_in_change_of_user_and_log_out(site: Site) -> None:
    browser = site.browser()
    assert account(browser) == "log in first"
    browser.set(cart=[1])
    cookies = [browser.cookie]
    browser.visit(log_in("ada"))
    cookies.append(browser.cookie)
    assert account(browser) == "ada's account"
    assert browser.visit(lambda: typed_session.user).text == "ada"
    browser.visit(log_in("grace"))
    cookies.append(browser.cookie)
    assert account(browser) == "grace's account"
    browser.visit(flask_login.logout_user)
    cookies.append(browser.cookie)
    assert account(browser) == "log in first"
    assert browser.read()["cart"] == [1]
    assert len({cookie.partition(".")[0] for cookie in cookies if cookie}) == 4
    # None of the old ones opens anything, within the grace and after it.
    twin = site.browser()
    for _ in range(2):
        for cookie in cookies[:-1]:
            twin.cookie = cookie
            assert account(twin) == "log in first"
            assert twin.read() == {}
        t.cast(FakeClock, site.clock).advance(60)


def test_logging_in_again_as_the_same_user_keeps_the_id() -> None:
    site = make_site()
    browser = site.browser()
    browser.visit(log_in())
    id = browser.id
    browser.visit(log_in())
    assert browser.id == id


def test_a_planted_anonymous_session_opens_nothing_after_the_log_in(
    site: Site,
) -> None:
    attacker, victim = site.browser(), site.browser()
    attacker.set(planted=True)
    planted = attacker.cookie
    victim.cookie = planted
    victim.visit(log_in("victim"))
    assert account(victim) == "victim's account"
    # Within the grace, and after it.
    for _ in range(2):
        assert account(attacker) == "log in first"
        assert attacker.read() == {}
        attacker.cookie = planted
        t.cast(FakeClock, site.clock).advance(60)
    # Nor can the attacker put anything into it, or end it.
    attacker.set(planted="again")
    attacker.cookie = planted
    attacker.visit(lambda: typed_session.destroy())
    assert account(victim) == "victim's account"
    assert victim.read()["planted"] is True


def test_a_session_of_the_attackers_account_is_left_at_the_victims_log_in() -> None:
    site = make_site()
    attacker, victim = site.browser(), site.browser()
    attacker.visit(log_in("attacker"))
    victim.cookie = attacker.cookie
    assert account(victim) == "attacker's account"
    victim.visit(log_in("victim"))
    assert account(victim) == "victim's account"
    assert account(attacker) == "log in first"


def test_the_id_from_before_the_log_out_opens_nothing() -> None:
    site = make_site()
    browser, thief = site.browser(), site.browser()
    browser.visit(log_in())
    thief.cookie = browser.cookie
    assert account(thief) == "ada's account"
    browser.visit(flask_login.logout_user)
    assert account(thief) == "log in first"
    t.cast(FakeClock, site.clock).advance(60)
    assert account(thief) == "log in first"


def test_logging_out_by_destroy_ends_everything() -> None:
    site = make_site()
    browser = site.browser()
    browser.visit(log_in())

    def log_out() -> None:
        flask_login.logout_user()
        typed_session.destroy()

    assert cookie_of(browser.visit(log_out), site) == "deleted"
    assert browser.cookie is None
    assert account(browser) == "log in first"


def test_all_sessions_of_a_user_can_be_ended(site: Site) -> None:
    if Capability.USER_INDEX not in site.backend.capabilities:
        pytest.skip("This backend keeps no index of users.")
    browsers = [site.browser() for _ in range(3)]
    for browser in browsers:
        browser.visit(log_in())
    other = site.browser()
    other.visit(log_in("grace"))
    with site.app.app_context():
        assert len(site.extension.sessions_of("ada")) == 3
        assert site.extension.revoke_user("ada") == 3
    for browser in browsers:
        assert account(browser) == "log in first"
    assert account(other) == "grace's account"


# -- remember me


@pytest.fixture
def remembering() -> Browser:
    site = make_site(REMEMBER_COOKIE_NAME="remember")
    browser = site.browser()
    browser.visit(log_in(remember=True))
    return browser


def test_who_is_remembered_is_logged_in_with_a_new_session(
    remembering: Browser,
) -> None:
    id = remembering.id
    remembering.cookie = None
    assert remembering.client.get_cookie("remember") is not None
    assert account(remembering) == "ada's account"
    assert remembering.id != id
    # By a cookie, not by a password.
    assert remembering.visit(lambda: flask_login.login_fresh()).text == "False"


def test_who_is_remembered_gets_no_planted_session(remembering: Browser) -> None:
    attacker = remembering.site.browser()
    attacker.set(planted=True)
    remembering.cookie = attacker.cookie
    assert account(remembering) == "ada's account"
    assert remembering.cookie != attacker.cookie
    assert account(attacker) == "log in first"


def test_who_is_remembered_has_not_logged_in_lately(remembering: Browser) -> None:
    def is_fresh() -> str:
        assert flask_login.current_user.id == "ada"
        return str(typed_session.is_fresh(60))

    assert remembering.visit(is_fresh).text == "True"
    remembering.cookie = None
    for _ in range(2):
        assert remembering.visit(is_fresh).text == "False"
    remembering.visit(lambda: flask_login.confirm_login())
    assert remembering.visit(is_fresh).text == "True"
    remembering.cookie = None
    assert remembering.visit(is_fresh).text == "False"


def look_fresh() -> str:
    assert flask_login.current_user.id == "ada"
    return str((typed_session.is_fresh(60), flask_login.login_fresh()))


def mark() -> str:
    typed_session.mark_authenticated()
    return look_fresh()


def test_who_is_remembered_and_proves_it_is_fresh(site: Site) -> None:
    site.app.config["REMEMBER_COOKIE_NAME"] = "remember"
    browser = site.browser()
    browser.visit(log_in(remember=True))
    browser.cookie = None
    assert browser.visit(look_fresh).text == "(False, False)"
    id = browser.id
    assert browser.visit(mark).text == "(True, True)"
    assert browser.id != id
    for _ in range(2):
        assert browser.visit(look_fresh).text == "(True, True)"
    advance(site, 61)
    assert browser.visit(look_fresh).text == "(False, True)"


def test_who_has_another_address_and_proves_it_is_fresh() -> None:
    site = make_site(SESSION_PROTECTION="basic")
    browser = site.browser()
    browser.visit(log_in(), headers=AGENT)
    assert browser.visit(look_fresh, headers=OTHER_AGENT).text == "(False, False)"
    assert browser.visit(mark, headers=OTHER_AGENT).text == "(True, True)"
    assert browser.visit(look_fresh, headers=OTHER_AGENT).text == "(True, True)"


@pytest.mark.parametrize(
    "prove", [log_in(), lambda: flask_login.confirm_login()], ids=["log in", "confirm"]
)
@pytest.mark.parametrize("settings", [{}, {"SESSION_USER_KEY": by_function}])
def test_who_logs_in_again_or_confirms_it_has_proved_it_now(
    prove: t.Callable[[], t.Any], settings: dict[str, t.Any]
) -> None:
    site = make_site(**settings)
    browser = site.browser()
    browser.visit(log_in())
    advance(site, 61)
    assert browser.visit(look_fresh).text == "(False, True)"
    browser.visit(prove)
    assert browser.visit(look_fresh).text == "(True, True)"
    moments: list[t.Any] = []
    browser.visit(lambda: moments.append(typed_session.authenticated_at))
    assert moments[0].timestamp() == site.clock()


def test_a_proof_that_is_not_saved_is_none() -> None:
    site = make_site()
    browser = site.browser()
    browser.visit(log_in())
    advance(site, 61)

    def confirm() -> str:
        flask_login.confirm_login()
        session.modified = False
        return look_fresh()

    assert browser.visit(confirm).text == "(False, True)"
    assert browser.visit(look_fresh).text == "(False, True)"


def test_a_log_in_that_is_not_fresh_is_proved_without_flask_login() -> None:
    browser = Site({"SESSION_BACKEND": "memory"}).browser()
    browser.set(_user_id="ada", _fresh=False)
    fresh = lambda: typed_session.is_fresh(60)  # noqa: E731
    assert browser.visit(fresh).text == "False"
    browser.visit(lambda: typed_session.mark_authenticated())
    assert browser.visit(fresh).text == "True"


def test_who_logs_out_is_forgotten(remembering: Browser) -> None:
    remembering.visit(flask_login.logout_user)
    assert remembering.client.get_cookie("remember") is None
    assert account(remembering) == "log in first"
    assert "_remember" not in remembering.read()


# -- its own protection of sessions


def test_basic_protection_asks_for_the_password_again() -> None:
    site = make_site(SESSION_PROTECTION="basic")
    browser = site.browser()
    browser.visit(log_in(), headers=AGENT)
    assert account(browser, headers=AGENT) == "ada's account"
    fresh = lambda: flask_login.login_fresh()  # noqa: E731
    assert browser.visit(fresh, headers=AGENT).text == "True"
    assert account(browser, headers=OTHER_AGENT) == "ada's account"
    assert browser.visit(fresh, headers=OTHER_AGENT).text == "False"


def test_strong_protection_logs_a_thief_out() -> None:
    site = make_site(SESSION_PROTECTION="strong")
    browser, thief = site.browser(), site.browser()
    browser.visit(log_in(), headers=AGENT)
    assert account(browser, headers=AGENT) == "ada's account"
    thief.cookie = browser.cookie
    assert account(thief, headers=OTHER_AGENT) == "log in first"
    # The session had to go for both: whose it is cannot be told.
    assert account(thief, headers=AGENT) == "log in first"
    assert account(browser, headers=AGENT) == "log in first"


def test_strong_protection_of_permanent_sessions_is_what_flask_login_says() -> None:
    site = make_site(SESSION_PROTECTION="strong", SESSION_PERMANENT=True)
    browser = site.browser()
    browser.visit(log_in(), headers=AGENT)
    assert account(browser, headers=OTHER_AGENT) == "ada's account"
    assert (
        browser.visit(lambda: flask_login.login_fresh(), headers=OTHER_AGENT).text
        == "False"
    )


# -- what it costs, and when the store is down


def test_a_visitor_without_a_session_costs_nothing() -> None:
    site = make_site()
    assert site.browser().costs(lambda: "hello") == ({}, "none")


def test_a_user_costs_one_load(site: Site) -> None:
    browser = site.browser()
    browser.visit(log_in())
    assert browser.costs(show_account) == ({"load": 1}, "none")
    assert browser.costs(lambda: "hello") == ({"load": 1}, "none")


def test_a_log_in_costs_what_the_table_says() -> None:
    site = make_site()
    assert site.browser().costs(log_in()) == ({"create": 1}, "set")
    browser = site.browser()
    browser.set(n=1)
    costs = ({"load": 1, "create": 1, "replace": 1}, "set")
    assert browser.costs(log_in()) == costs
    assert browser.costs(flask_login.logout_user) == costs


def test_every_page_is_a_503_while_the_store_is_down() -> None:
    # Flask-Login looks at the session after each request.
    site = make_site(TESTING=False)
    browser = site.browser()
    browser.visit(log_in())
    with site.backend.failing():
        for action in (show_account, log_in("grace"), lambda: "hello"):
            with site.backend.counting() as calls:
                response = browser.visit(action)
            assert response.status_code == 503
            assert "Retry-After" in response.headers
            assert sum(calls.values()) == 1
        assert site.browser().visit(lambda: "hello").text == "hello"
    assert account(browser) == "ada's account"


def test_ignored_nobody_is_logged_in_while_the_store_is_down() -> None:
    site = make_site(SESSION_ON_BACKEND_ERROR="ignore")
    browser = site.browser()
    browser.visit(log_in(remember=True))
    cookie = browser.cookie
    with site.backend.failing():
        browser.client.delete_cookie("remember_token")
        assert account(browser) == "log in first"
        assert browser.visit(lambda: "hello").text == "hello"
    assert browser.cookie == cookie
    assert account(browser) == "ada's account"


def test_a_flashed_message_survives_logging_in_and_out() -> None:
    site = make_site()
    browser = site.browser()
    browser.visit(lambda: flask.flash("welcome"))

    def log_in_and_flash() -> None:
        flask_login.login_user(User("ada"))
        flask.flash("logged in")

    def log_out_and_flash() -> None:
        flask_login.logout_user()
        flask.flash("logged out")

    browser.visit(log_in_and_flash)
    browser.visit(log_out_and_flash)
    messages = browser.visit(lambda: ", ".join(flask.get_flashed_messages())).text
    assert messages == "welcome, logged in, logged out"
    assert "_flashes" not in browser.visit(lambda: list(session)).text


def test_who_logs_out_and_in_by_one_request_has_logged_in_anew() -> None:
    site = make_site()
    browser = site.browser()
    browser.visit(log_in())
    thief = browser.twin()
    began: list[t.Any] = []
    browser.visit(lambda: began.append(typed_session.authenticated_at))
    t.cast(FakeClock, site.clock).advance(50)

    def log_out_and_in() -> None:
        flask_login.logout_user()
        log_in()()
        began.append(typed_session.authenticated_at)

    browser.visit(log_out_and_in)
    browser.visit(lambda: began.append(typed_session.authenticated_at))
    assert [moment - began[0] for moment in began] == [
        dt.timedelta(seconds=seconds) for seconds in (0, 50, 50)
    ]
    assert account(browser) == "ada's account"
    assert browser.id != thief.id
    assert thief.read() == {}
