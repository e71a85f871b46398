"""What Flask promises of sessions, and what the session object adds to it."""

from __future__ import annotations

import copy
import datetime as dt
import logging
import typing as t
import warnings
from collections.abc import Callable

import flask
import pytest
from flask import Flask
from flask import Response
from flask import flash
from flask import session
from flask.sessions import SecureCookieSessionInterface
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.datastructures import MultiDict
from werkzeug.http import parse_date

from flask_serversession import BackendUnavailableError
from flask_serversession import SerializationError
from flask_serversession import ServerSession
from flask_serversession import ServerSessionError
from flask_serversession import ServerSideSession
from flask_serversession import session as typed_session
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.opened import opened_session
from flask_serversession.testing import FakeClock

from .flask_version import HAS_ONE_CONTEXT
from .site import Site
from .site import cookie_of


@pytest.fixture
def site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


def make_site(**settings: t.Any) -> Site:
    return Site({"SESSION_BACKEND": "memory"}, **settings)


# Set up


def test_the_extension_works_with_an_application_factory_and_several_apps() -> None:
    extension = ServerSession()
    apps = []
    for name in ("one", "two"):
        app = Flask(name)
        app.config.update(SECRET_KEY=name, SESSION_BACKEND="memory")
        extension.init_app(app)
        apps.append(app)
    one, two = (app.test_client() for app in apps)
    with one.session_transaction() as content:
        content["app"] = "one"
    with two.session_transaction() as content:
        assert "app" not in content
    with one.session_transaction() as content:
        assert content["app"] == "one"


def test_a_cookie_of_another_application_is_not_accepted() -> None:
    one, two = make_site(), make_site(SECRET_KEY="another secret")
    browser, stranger = one.browser(), two.browser()
    browser.set(n=1)
    stranger.cookie = browser.cookie
    assert stranger.costs(lambda: session.get("n"))[0] == {}


def test_without_a_secret_the_session_is_flasks_null_session() -> None:
    app = Flask("site")
    app.config.update(SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app)
    with app.test_request_context():
        assert session.get("n") is None
        with pytest.raises(RuntimeError, match="session is unavailable"):
            session["n"] = 1


def test_the_secret_may_be_set_after_the_extension() -> None:
    app = Flask("site")
    app.config.update(SESSION_BACKEND="memory")
    ServerSession(app)
    app.secret_key = "late"
    client = app.test_client()
    with client.session_transaction() as content:
        content["n"] = 1
    with client.session_transaction() as content:
        assert content["n"] == 1


def test_a_null_session_does_not_hide_the_session_secret() -> None:
    app = Flask("site")
    app.config.update(SESSION_BACKEND="memory", SESSION_SECRET="only ours")
    ServerSession(app)
    client = app.test_client()
    with client.session_transaction() as content:
        content["n"] = 1
    with client.session_transaction() as content:
        assert content["n"] == 1


# Secrets


def test_secrets_rotate_without_logging_anybody_out() -> None:
    site = make_site(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old"])
    site.app.config.update(SECRET_KEY="old", SECRET_KEY_FALLBACKS=None)
    browser = site.browser()
    browser.set(n=1)
    old = browser.cookie
    site.app.config.update(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old"])
    # Signed anew as soon as it is read, so that the old secret can be removed.
    assert browser.costs(lambda: session["n"]) == ({"load": 1}, "set")
    assert browser.cookie != old
    site.app.config.update(SECRET_KEY_FALLBACKS=None)
    assert browser.read() == {"n": 1}
    browser.cookie = old
    assert browser.read() == {}


def test_session_secret_takes_several_newest_first() -> None:
    backend = MemoryBackend(FakeClock())
    old = Site({"SESSION_BACKEND": backend}, SESSION_SECRET="old")
    new = Site({"SESSION_BACKEND": backend}, SESSION_SECRET=["new", "old"])
    browser, later = old.browser(), new.browser()
    browser.set(n=1)
    later.cookie = browser.cookie
    assert later.read() == {"n": 1}
    browser.cookie = later.cookie
    assert browser.read() == {}  # signed with the new one by now


# Flask's attributes


def test_permanent_sets_the_expiry_of_the_cookie(site: Site) -> None:
    def make_permanent() -> None:
        session.permanent = True
        session["n"] = 1

    response = site.browser().visit(make_permanent)
    (header,) = response.headers.getlist("Set-Cookie")
    expires = parse_date(header.split("Expires=")[1].split(";")[0])
    assert expires is not None
    lifetime = site.app.permanent_session_lifetime.total_seconds()
    assert expires.timestamp() == site.clock() + lifetime
    assert f"; Max-Age={lifetime:.0f};" in header


@pytest.mark.parametrize(("lifetime", "max_age"), [(0.5, 1), (90, 90), (90.001, 91)])
def test_max_age_is_rounded_up_and_never_deletes_the_cookie(
    site: Site, lifetime: float, max_age: int
) -> None:
    """A browser whose clock is wrong goes by it, and 0 would delete the cookie."""

    def begin() -> None:
        session.permanent = True
        session["n"] = 1
        typed_session.lifetime = lifetime  # type: ignore[assignment]

    header = site.browser().visit(begin).headers["Set-Cookie"]
    assert f"; Max-Age={max_age};" in header


def test_a_session_that_ends_with_the_browser_has_no_max_age(site: Site) -> None:
    header = site.browser().set(n=1).headers["Set-Cookie"]
    assert "Max-Age" not in header
    assert "Expires" not in header


def test_new_sessions_start_permanent_if_configured() -> None:
    browser = make_site(SESSION_PERMANENT=True).browser()
    assert browser.visit(lambda: session.permanent).text == "True"
    browser.set(n=1)
    assert browser.read() == {"n": 1, "_permanent": True}


def test_a_session_may_refuse_to_be_permanent() -> None:
    browser = make_site(SESSION_PERMANENT=True).browser()
    browser.set(n=1, _permanent=False)
    assert browser.visit(lambda: session.permanent).text == "False"


def test_new_and_modified_and_accessed_tell_the_truth(site: Site) -> None:
    browser = site.browser()

    def first() -> None:
        assert session.new
        assert not session.modified
        session["n"] = 1
        assert session.modified

    def later() -> None:
        assert not t.cast(t.Any, opened_session()).accessed
        assert "n" in session
        assert session.accessed
        assert not session.new
        assert not session.modified

    browser.visit(first)
    assert browser.visit(later).status_code == 200


@pytest.mark.parametrize(
    "look",
    [
        lambda: "n" in session,
        lambda: len(session),
        lambda: bool(session),
        lambda: list(session),
        lambda: session == {},
        lambda: session.get("n"),
        lambda: session.setdefault("n", 1),
        lambda: session.new,
        lambda: typed_session.handle,
        lambda: session.clear(),
    ],
)
def test_every_kind_of_access_varies_by_cookie(
    site: Site, look: Callable[[], t.Any]
) -> None:
    browser = site.browser()
    browser.set(n=1)
    assert browser.visit(look).headers["Vary"] == "Cookie"


def test_vary_is_added_to_what_is_there(site: Site) -> None:
    def view() -> Response:
        session["n"] = 1
        response = Response()
        response.vary.update(("Accept-Encoding", "Accept-Language"))
        return response

    response = site.browser().visit(view)
    assert response.headers.getlist("Vary") == [
        "Accept-Encoding, Accept-Language, Cookie"
    ]


def test_flashed_messages_arrive_once_and_in_order(site: Site) -> None:
    browser = site.browser()

    def flash() -> None:
        flask.flash("one")
        flask.flash("two", "error")

    browser.visit(flash)

    def show() -> str:
        return repr(flask.get_flashed_messages(with_categories=True))

    assert browser.visit(show).text == "[('message', 'one'), ('error', 'two')]"
    assert browser.visit(show).text == "[]"
    assert browser.cookie is None


def test_session_transaction_reads_and_writes(site: Site) -> None:
    client = site.app.test_client()
    with client.session_transaction() as content:
        assert len(content) == 0
        content["n"] = [1]
    with client.session_transaction() as content:
        content["n"].append(2)
    with client.session_transaction() as content:
        assert content["n"] == [1, 2]


def test_session_transaction_takes_another_path_and_scheme(site: Site) -> None:
    site.app.config["SESSION_COOKIE_SECURE"] = "auto"
    client = site.app.test_client()
    with client.session_transaction(base_url="https://localhost") as content:
        content["n"] = 1
    assert client.get_cookie("session") is not None


def test_the_session_is_the_same_in_nested_contexts(site: Site) -> None:
    def view() -> None:
        session["n"] = 1

        @flask.copy_current_request_context
        def inside() -> None:
            session["n"] += 1

        inside()
        # From Flask 3.2 on, this is a context without a request.
        with site.app.app_context():
            assert flask.has_request_context() is not HAS_ONE_CONTEXT
            assert HAS_ONE_CONTEXT or session["n"] == 2
        with site.app.test_request_context():
            assert "n" not in session
        assert session["n"] == 2

    browser = site.browser()
    browser.visit(view)
    assert browser.read() == {"n": 2}


def test_an_error_response_saves_the_session(site: Site) -> None:
    site.app.testing = False

    def fail() -> None:
        session["n"] = 1
        raise ZeroDivisionError

    browser = site.browser()
    assert browser.visit(fail).status_code == 500
    assert browser.read() == {"n": 1}


def test_a_change_in_after_request_is_saved(site: Site) -> None:
    @site.app.after_request
    def stamp(response: Response) -> Response:
        session["stamp"] = True
        return response

    browser = site.browser()
    browser.ignore()
    assert browser.read() == {"stamp": True}


def test_async_views_use_the_session(site: Site) -> None:
    @site.app.get("/async")
    async def view() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    client = site.app.test_client()
    assert [client.get("/async").text for _ in range(3)] == ["1", "2", "3"]


def test_flask_can_go_back_to_its_own_sessions(site: Site) -> None:
    site.app.session_interface = SecureCookieSessionInterface()
    assert site.browser().set(n=1).status_code == 200


# The cookie


ATTRIBUTES = {
    "SESSION_COOKIE_NAME": "__Secure-id",
    "SESSION_COOKIE_DOMAIN": "example.com",
    "SESSION_COOKIE_PATH": "/run",
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_PARTITIONED": True,
    "SESSION_COOKIE_SAMESITE": "Strict",
}


def attributes(header: str) -> list[str]:
    return sorted(
        part.strip()
        for part in header.split(";")[1:]
        if not part.strip().startswith(("Expires", "Max-Age"))
    )


@pytest.mark.parametrize("httponly", [True, False])
def test_the_cookie_is_deleted_with_the_attributes_it_was_set_with(
    httponly: bool,
) -> None:
    site = make_site(**ATTRIBUTES, SESSION_COOKIE_HTTPONLY=httponly)
    browser = site.browser()
    options = {"base_url": "https://www.example.com"}
    set_header = browser.visit(lambda: session.update(n=1), **options).headers[
        "Set-Cookie"
    ]
    deleted = browser.visit(lambda: session.clear(), **options).headers["Set-Cookie"]
    assert attributes(deleted) == attributes(set_header)
    assert ("HttpOnly" in attributes(set_header)) is httponly
    assert {"Secure", "Partitioned", "SameSite=Strict", "Path=/run"} <= set(
        attributes(set_header)
    )
    assert "Max-Age=0" in deleted


def test_auto_follows_the_scheme_of_the_request() -> None:
    site = make_site(SESSION_COOKIE_SECURE="auto", SESSION_COOKIE_SAMESITE="auto")
    http = site.browser().set(n=1).headers["Set-Cookie"]
    https = (
        site.browser()
        .visit(lambda: session.update(n=1), base_url="https://localhost")
        .headers["Set-Cookie"]
    )
    assert "Secure" not in http
    assert "SameSite=Lax" in http
    assert "Secure" in https
    assert "SameSite=None" in https


def test_a_secure_cookie_over_http_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make_site(SESSION_COOKIE_SECURE=True)
    for _ in range(2):
        site.browser().set(n=1)
    assert [record.message.count("ProxyFix") for record in caplog.records] == [1]


def test_a_planted_cookie_before_the_real_one_does_no_harm(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    real = browser.cookie
    planted = "; ".join(["session=planted.p1-1.x"] * 3)
    header = {"Cookie": f"{planted}; session={real}"}
    client = site.app.test_client(use_cookies=False)
    path = site.add(lambda: session.get("n"))
    assert client.get(path, headers=header).text == "1"
    planted = "; ".join(["session=planted.p1-1.x"] * 4)
    header = {"Cookie": f"{planted}; session={real}"}
    path = site.add(lambda: session.get("n"))
    assert client.get(path, headers=header).text == ""


ENDS: dict[str, Callable[[], t.Any]] = {
    "destroyed": lambda: typed_session.destroy(),
    "rotated": lambda: session.update(_user_id="ada"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_cookie_that_was_left_over_does_not_hide_the_one_that_is_in_use(
    site: Site, end: Callable[[], t.Any]
) -> None:
    former, browser = site.browser(), site.browser()
    former.set(n=1)
    leftover = former.cookie
    former.visit(end)
    browser.set(n=2)
    header = {
        "Cookie": f"session={leftover}; session={leftover}; session={browser.cookie}"
    }
    client = site.app.test_client(use_cookies=False)
    with site.backend.counting() as calls:
        answer = client.get(site.add(lambda: session.get("n")), headers=header)
    assert answer.text == "2"
    assert cookie_of(answer, site) == "none"
    assert calls == {"load": 2}
    client.get(site.add(lambda: session.update(n=3)), headers=header)
    assert browser.read() == {"n": 3}
    for log_out in (
        lambda: session.clear(),
        lambda: (session.get("n"), session.clear()),
        lambda: typed_session.destroy(),
        lambda: (session.get("n"), typed_session.destroy()),
    ):
        browser.set(n=4)
        header = {"Cookie": f"session={leftover}; session={browser.cookie}"}
        assert (
            cookie_of(client.get(site.add(log_out), headers=header), site) == "deleted"
        )
        assert browser.read() == {}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_cookie_that_was_left_over_does_not_keep_the_other_from_being_renewed(
    end: Callable[[], t.Any],
) -> None:
    site = make_site(SESSION_PERMANENT=True, PERMANENT_SESSION_LIFETIME=600)
    clock = t.cast(FakeClock, site.clock)
    former, browser = site.browser(), site.browser()
    former.set(n=1)
    leftover = former.cookie
    former.visit(end)
    browser.set(n=2)
    client = site.app.test_client(use_cookies=False)
    for _ in range(10):
        header = {"Cookie": f"session={leftover}; session={browser.cookie}"}
        answer = client.get(site.add(lambda: None), headers=header)
        (sent,) = answer.headers.getlist("Set-Cookie")
        browser.cookie = sent.partition("=")[2].partition(";")[0]
        clock.advance(100)
    assert browser.read()["n"] == 2


def test_a_cookie_that_was_left_over_is_not_taken_for_the_current_session() -> None:
    site = make_site()
    former, browser = site.browser(), site.browser()
    former.set(n=1)
    leftover = former.cookie
    former.visit(lambda: typed_session.destroy())
    browser.set(_user_id="ada")
    site.browser().set(_user_id="ada")
    header = {"Cookie": f"session={leftover}; session={browser.cookie}"}
    extension = site.extension
    path = site.add(lambda: str(extension.revoke_user("ada", except_current=True)))
    client = site.app.test_client(use_cookies=False)
    assert client.get(path, headers=header).text == "1"
    assert browser.read() == {"_user_id": "ada"}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_of_cookies_that_were_left_over_none_is_brought_back(
    site: Site, end: Callable[[], t.Any]
) -> None:
    leftovers = []
    for _ in range(2):
        former = site.browser()
        former.set(n=1)
        leftovers.append(former.cookie)
        former.visit(end)
    header = {"Cookie": "; ".join(f"session={value}" for value in leftovers)}
    client = site.app.test_client(use_cookies=False)
    answer = client.get(site.add(lambda: str(dict(session))), headers=header)
    assert answer.text == "{}"
    assert cookie_of(answer, site) == "none"


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_request_that_looks_late_does_not_replace_a_newer_session(
    site: Site, end: Callable[[], t.Any]
) -> None:
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()
    browser.set(n=1)
    late = browser.twin()
    old = browser.cookie

    def upload() -> None:
        clock.advance(1)
        browser.visit(end)  # in another tab
        clock.advance(20)  # longer than the grace of an id that was rotated
        session["uploaded"] = True

    assert cookie_of(late.visit(upload), site) == "none"
    # A request that comes later begins a session like any other.
    late.cookie = old
    assert cookie_of(late.set(n=2), site) == "set"


def test_ids_come_from_the_configured_generator() -> None:
    ids = iter(["first-id-0123456789", "second-id-012345678"])
    site = make_site(SESSION_ID_GENERATOR=lambda: next(ids))
    browser = site.browser()
    browser.set(n=1)
    assert browser.id == "first-id-0123456789"


def test_a_generator_that_repeats_itself_never_overwrites_a_session() -> None:
    site = make_site(SESSION_ID_GENERATOR=lambda: "always-the-same-id")
    first, second = site.browser(), site.browser()
    first.set(n=1)
    with pytest.raises(ServerSessionError, match="'SESSION_ID_GENERATOR'"):
        second.set(n=2)
    assert first.read() == {"n": 1}


def test_a_generator_that_returns_nonsense_is_refused() -> None:
    site = make_site(SESSION_ID_GENERATOR=lambda: "short; HttpOnly")
    with pytest.raises(ValueError, match="'SESSION_ID_GENERATOR' returned") as caught:
        site.browser().set(n=1)
    assert "short" not in str(caught.value)


# The session object


def test_the_members_tell_about_the_session(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1, _user_id=7)

    def view() -> None:
        assert typed_session.id == browser.id
        assert typed_session.handle not in browser.id
        assert len(typed_session.handle) == 64
        assert typed_session.user == "7"
        assert typed_session.created_at.timestamp() == site.clock()
        assert typed_session.created_at.tzinfo is dt.timezone.utc
        assert typed_session.expires_at - typed_session.created_at == dt.timedelta(31)
        assert typed_session.lifetime is None

    browser.visit(view)


def test_a_new_session_has_the_id_that_it_will_be_stored_under(site: Site) -> None:
    browser = site.browser()

    def view() -> str:
        session["n"] = 1
        return f"{typed_session.id} {typed_session.handle}"

    id, handle = browser.visit(view).text.split()
    assert browser.id == id
    assert browser.visit(lambda: typed_session.handle).text == handle


def test_the_repr_shows_handle_and_keys_but_no_value_and_no_id(site: Site) -> None:
    browser = site.browser()
    browser.set(pin="secret value")

    def view() -> None:
        own = opened_session()
        assert repr(own) == "<ServerSideSession (not loaded)>"
        assert session["pin"]
        assert typed_session.handle in repr(own)
        assert "'pin'" in repr(own)
        assert "secret value" not in repr(own)
        assert browser.id not in repr(own)

    assert browser.visit(view).status_code == 200


def test_the_session_behaves_like_a_dict(site: Site) -> None:
    def view() -> None:
        session.update(a=1, b=[2])
        assert session == {"a": 1, "b": [2]}
        assert dict(session) == {"a": 1, "b": [2]}
        assert {**session} == {"a": 1, "b": [2]}
        assert list(session.items()) == [("a", 1), ("b", [2])]
        assert session.pop("a") == 1
        assert session.pop("a", None) is None
        assert session.setdefault("c", 3) == 3
        with pytest.raises(KeyError):
            session["a"]
        assert session | {"d": 4} == {"b": [2], "c": 3, "d": 4}
        assert {"d": 4} | session == {"d": 4, "b": [2], "c": 3}
        own = t.cast(t.Any, session)._get_current_object()
        own |= {"d": 4}
        assert list(reversed(own)) == ["d", "c", "b"]
        assert session.popitem() == ("d", 4)
        duplicate = copy.deepcopy(own)
        duplicate["b"].append(3)
        assert session["b"] == [2]
        assert isinstance(
            t.cast(t.Any, session)._get_current_object(), ServerSideSession
        )

    assert site.browser().visit(view).status_code == 200


def test_lifetime_overrides_the_apps_and_is_kept(site: Site) -> None:
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()

    def shorten() -> None:
        session["n"] = 1
        typed_session.lifetime = dt.timedelta(minutes=10)

    browser.visit(shorten)
    clock.advance(599)
    assert browser.visit(lambda: typed_session.lifetime).text == "0:10:00"
    browser.visit(lambda: typed_session.regenerate())
    clock.advance(599)
    assert browser.read() == {"n": 1}
    clock.advance(600)
    assert browser.read() == {}


@pytest.mark.parametrize("lifetime", [0, -1, dt.timedelta(0), float("inf"), 1e13])
def test_a_lifetime_that_is_not_positive_is_refused(
    site: Site, lifetime: t.Any
) -> None:
    def view() -> None:
        with pytest.raises(ValueError, match="positive"):
            typed_session.lifetime = lifetime

    site.browser().visit(view)


def test_a_permanent_session_with_a_lifetime_is_renewed_unseen(site: Site) -> None:
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()

    def begin() -> None:
        session.permanent = True
        session["n"] = 1
        typed_session.lifetime = 600

    browser.visit(begin)
    for _ in range(5):
        clock.advance(400)
        browser.ignore()
    assert browser.read() == {"_permanent": True, "n": 1}


def test_idle_timeout_applies_to_browser_sessions() -> None:
    site = make_site(SESSION_IDLE_TIMEOUT=600)
    clock = t.cast(FakeClock, site.clock)
    browser, permanent = site.browser(), site.browser()
    browser.set(n=1)
    permanent.set(n=1, _permanent=True)
    clock.advance(600)
    assert browser.read() == {}
    assert permanent.read() == {"n": 1, "_permanent": True}


def test_absolute_timeout_ends_a_session_in_use_whatever_happens() -> None:
    site = make_site(SESSION_ABSOLUTE_TIMEOUT=dt.timedelta(hours=1))
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()
    browser.set(n=1, _permanent=True)
    for _ in range(5):
        clock.advance(600)
        browser.ignore()
        browser.visit(lambda: typed_session.regenerate())
    clock.advance(599)
    assert browser.read()["n"] == 1
    clock.advance(1)
    assert browser.read() == {}


def test_absolute_timeout_ends_sessions_stored_before_it_was_set() -> None:
    before = make_site(SESSION_TOUCH_INTERVAL=0)
    clock = t.cast(FakeClock, before.clock)
    after = Site(
        {"SESSION_BACKEND": before.backend.backend},
        clock=clock,
        SESSION_ABSOLUTE_TIMEOUT=3600,
    )
    browser, same = before.browser(), after.browser()
    browser.set(n=1, _permanent=True)
    same.cookie = browser.cookie

    def view() -> None:
        assert session["n"] == 1
        clock.advance(1)
        typed_session.reload()
        assert not session

    clock.advance(3599)
    same.visit(view)
    assert same.read() == {}
    assert browser.read()["n"] == 1


def test_renewal_interval_rotates_the_id_of_a_live_session() -> None:
    site = make_site(SESSION_RENEWAL_INTERVAL=3600)
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()
    browser.set(n=1)
    first = browser.id
    clock.advance(3599)
    browser.read()
    assert browser.id == first
    clock.advance(1)
    assert browser.costs(lambda: session["n"]) == (
        {"load": 1, "create": 1, "replace": 1},
        "set",
    )
    second = browser.id
    assert second != first
    clock.advance(3599)
    browser.read()
    assert browser.id == second


def test_regenerate_without_data_starts_over(site: Site) -> None:
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()
    browser.set(n=1)
    old, old_id = browser.cookie, browser.id
    clock.advance(100)

    def start_over() -> str:
        typed_session.regenerate(keep_data=False)
        assert session.new
        session["m"] = 2
        return typed_session.id

    new_id = browser.visit(start_over).text
    assert browser.id != old_id
    del new_id
    assert browser.read() == {"m": 2}
    assert browser.visit(lambda: typed_session.created_at.timestamp()).text == str(
        site.clock()
    )
    browser.cookie = old
    assert browser.read() == {}


def test_reload_forgets_changes_and_sees_those_of_others(site: Site) -> None:
    browser, other = site.browser(), site.browser()
    browser.set(n=1)
    other.cookie = browser.cookie

    def view() -> None:
        session["mine"] = 1
        other.set(theirs=1)
        typed_session.reload()
        assert session == {"n": 1, "theirs": 1}

    with site.backend.counting() as calls:
        browser.visit(view)
    assert calls == {"load": 3, "replace": 1}


def test_save_writes_at_once_and_only_what_changed(site: Site) -> None:
    browser, other = site.browser(), site.browser()
    browser.set(n=1)
    other.cookie = browser.cookie

    def view() -> None:
        session["n"] = 2
        typed_session.save()
        assert other.read() == {"n": 2}
        typed_session.save()

    with site.backend.counting() as calls:
        browser.visit(view)
    assert calls == {"load": 2, "replace": 1}


def test_save_of_a_new_session_still_sends_its_cookie(site: Site) -> None:
    browser = site.browser()

    def view() -> None:
        session["n"] = 1
        typed_session.save()

    assert browser.costs(view) == ({"create": 1}, "set")
    assert browser.read() == {"n": 1}


def test_a_nested_change_after_save_is_saved_too(site: Site) -> None:
    browser = site.browser()

    def view() -> None:
        cart = session["cart"] = {"n": 0}
        typed_session.save()
        cart["n"] = 1

    browser.visit(view)
    assert browser.read() == {"cart": {"n": 1}}


def test_atomic_runs_again_when_another_request_was_faster(site: Site) -> None:
    browser, other = site.browser(), site.browser()
    browser.set(n=1)
    other.cookie = browser.cookie
    runs = []

    def view() -> str:
        session["local"] = True

        def increment(own: ServerSideSession) -> int:
            runs.append(own["n"])
            if len(runs) == 1:
                other.set(n=10)
            own["n"] += 1
            return t.cast(int, own["n"])

        return str(typed_session.atomic(increment))

    assert browser.visit(view).text == "11"
    assert runs == [1, 10]
    assert browser.read() == {"n": 11, "local": True}


def test_atomic_that_fails_changes_nothing(site: Site) -> None:
    browser = site.browser()
    browser.set(cart={"n": 1})

    def view() -> None:
        def fail(own: ServerSideSession) -> None:
            own["cart"]["n"] = 2
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            typed_session.atomic(fail)
        assert session["cart"] == {"n": 1}

    browser.visit(view)
    assert browser.read() == {"cart": {"n": 1}}


def test_atomic_creates_a_session(site: Site) -> None:
    browser = site.browser()
    browser.visit(lambda: typed_session.atomic(lambda own: own.update(n=1)))
    assert browser.read() == {"n": 1}


# Templates


def test_in_a_template_a_key_comes_before_a_member_of_the_session(site: Site) -> None:
    browser = site.browser()
    browser.set(user="bob", id=7, items="method", cart={"n": 1})
    template = (
        "{{ session.user }} {{ session.id }} {{ session.cart.n }} {{ 'id' in session }}"
        " {{ session['items'] }} {{ session.get('id') }} {{ session.permanent }}"
    )
    page = browser.visit(lambda: flask.render_template_string(template))
    assert page.text == "bob 7 1 True method 7 False"
    assert page.headers["Vary"] == "Cookie"


def test_a_template_cannot_show_the_id(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    for template in (
        "[{{ session.id }}]{{ session.handle|length }}",
        "{% macro show() %}[{{ session.id }}]{{ session.handle|length }}{% endmacro %}"
        "{{ show() }}",
    ):

        def show(template: str = template) -> str:
            return flask.render_template_string(template)

        assert browser.visit(show).text == "[]64"


def test_a_template_without_the_session_costs_nothing(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    assert browser.costs(lambda: flask.render_template_string("hello")) == ({}, "none")
    page = browser.visit(lambda: flask.render_template_string("hello"))
    assert "Vary" not in page.headers


# What a request that fails leaves behind


def test_a_new_id_reaches_the_browser_also_when_the_request_fails(site: Site) -> None:
    site.app.testing = False
    browser = site.browser()
    browser.set(n=1)

    def log_in_and_fail() -> None:
        session["_user_id"] = "ada"
        typed_session.save()
        session["bad"] = object()

    assert browser.visit(log_in_and_fail).status_code == 500
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_a_new_id_reaches_the_browser_also_without_save_on_error() -> None:
    site = make_site(SESSION_SAVE_ON_ERROR=False)
    browser = site.browser()
    browser.set(n=1)

    def log_in_and_fail() -> Response:
        session["_user_id"] = "ada"
        typed_session.save()
        return Response(status=500)

    browser.visit(log_in_and_fail)
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_a_new_id_reaches_the_browser_also_when_its_burial_is_not_acknowledged(
    site: Site,
) -> None:
    browser = site.browser()
    browser.set(n=1)

    def lose_the_answer() -> None:
        del site.backend.after["replace"]
        raise BackendUnavailableError("lost", backend="memory", operation="replace")

    site.backend.after["replace"] = lose_the_answer
    assert browser.visit(lambda: session.update(_user_id="ada")).status_code == 503
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_a_failed_save_is_not_also_warned_of_as_a_late_change(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SerializationError):
        site.browser().visit(lambda: session.update(n=object()))
    assert not caplog.records


def test_a_late_change_that_cannot_be_stored_is_warned_of(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    browser = site.browser()
    browser.set(n=1, list=[])
    change = stream(lambda: session["list"].append(object()))
    assert browser.visit(change, buffered=True).text == "None"
    assert "session.save()" in caplog.text


# Two workers


def two_workers(**settings: t.Any) -> tuple[Site, Site]:
    """Give two sites that share a store and a clock, as two processes would."""
    clock = FakeClock()
    config = {"SESSION_BACKEND": MemoryBackend(clock)}
    return Site(config, clock, **settings), Site(config, clock, **settings)


@pytest.mark.parametrize("look", [lambda: session.get("n"), lambda: None])
def test_a_slow_request_does_not_bring_back_an_id_that_another_worker_rotated(
    look: Callable[[], t.Any],
) -> None:
    one, two = two_workers(SESSION_PERMANENT=True)
    browser, late = one.browser(), two.browser()
    browser.set(n=1)
    late.cookie = browser.cookie

    def slow() -> None:
        look()
        browser.set(_user_id="ada")
        t.cast(FakeClock, two.clock).advance(0.2)

    assert cookie_of(late.visit(slow), two) == "none"


@pytest.mark.parametrize(
    "settings",
    [
        {"SESSION_PERMANENT": False},
        {"SESSION_PERMANENT": True, "SESSION_REFRESH_EACH_REQUEST": False},
    ],
    ids=["browser", "not refreshed"],
)
@pytest.mark.parametrize("is_told", ["new secret", "lifetime"])
def test_a_slow_request_that_tells_news_does_not_bring_back_a_rotated_id(
    settings: dict[str, t.Any], is_told: str
) -> None:
    one, two = two_workers(**settings)
    browser, late = one.browser(), two.browser()
    browser.set(n=1)
    late.cookie = browser.cookie
    if is_told == "new secret":
        for site in (one, two):
            site.app.config["SECRET_KEY_FALLBACKS"] = [site.app.secret_key]
            site.app.secret_key = "a newer secret"

    def slow() -> None:
        if is_told == "lifetime":
            browser.visit(lambda: setattr(typed_session, "lifetime", 3600))
        session.get("n")
        browser.set(_user_id="ada")
        t.cast(FakeClock, two.clock).advance(0.2)

    assert cookie_of(late.visit(slow), two) == "none"


def test_asking_before_a_cookie_is_sent_again_makes_no_life_shorter() -> None:
    one, two = two_workers(
        SESSION_PERMANENT=True,
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=100,
    )
    browser, late = one.browser(), two.browser()
    browser.set(n=1)
    late.cookie = browser.cookie
    for site in (one, two):
        site.app.config["SECRET_KEY_FALLBACKS"] = [site.app.secret_key]
        site.app.secret_key = "a newer secret"

    def slow() -> None:
        session.get("n")
        t.cast(FakeClock, two.clock).advance(50)
        browser.set(n=2)
        t.cast(FakeClock, two.clock).advance(1)

    assert cookie_of(late.visit(slow), two) == "set"
    t.cast(FakeClock, two.clock).advance(60)
    assert browser.read()["n"] == 2


def test_asking_before_a_cookie_is_sent_again_makes_no_life_longer() -> None:
    site = make_site(SESSION_PERMANENT=True, SESSION_REFRESH_EACH_REQUEST=False)
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()
    browser.set(n=1)
    browser.visit(lambda: setattr(typed_session, "lifetime", 600))
    site.app.config["SECRET_KEY_FALLBACKS"] = [site.app.secret_key]
    site.app.secret_key = "a newer secret"
    clock.advance(500)

    def slow() -> None:
        session.get("n")
        clock.advance(0.2)

    assert browser.costs(slow)[1] == "set"
    clock.advance(99)
    assert browser.read()["n"] == 1
    clock.advance(1)
    assert browser.read() == {}


LOG_OUTS: dict[str, Callable[[], t.Any]] = {
    "clear": lambda: session.clear(),
    "clear and flash": lambda: (session.clear(), flash("bye")),
    "clear and atomic": lambda: (
        session.clear(),
        typed_session.atomic(lambda content: content.update(message="bye")),
    ),
    "start over": lambda: typed_session.regenerate(keep_data=False),
    "pop": lambda: session.pop("_user_id", None),
    "destroy": lambda: typed_session.destroy(),
}


@pytest.mark.parametrize("log_out", LOG_OUTS.values(), ids=LOG_OUTS)
@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "unseen"])
def test_who_logs_out_while_another_request_renews_the_id_is_logged_out(
    is_seen: bool, log_out: Callable[[], t.Any]
) -> None:
    site = make_site(SESSION_RENEWAL_INTERVAL=600)
    browser = site.browser()
    browser.set(_user_id="ada")
    other = browser.twin()
    t.cast(FakeClock, site.clock).advance(600)

    def renew() -> None:
        other.visit(lambda: session.get("_user_id"))

    def leave() -> None:
        if is_seen:
            session.get("_user_id")
            renew()
            log_out()
        else:
            log_out()
            renew()

    browser.visit(leave)
    assert other.cookie != browser.cookie
    assert other.read() == {}


def test_a_session_that_starts_over_takes_nothing_from_another_request(
    site: Site,
) -> None:
    browser = site.browser()
    browser.set(_user_id="old")
    other = browser.twin()

    def log_in() -> None:
        session.get("_user_id")
        other.set(secret="of the old one")
        typed_session.regenerate(keep_data=False)
        session["_user_id"] = "new"
        typed_session.atomic(lambda content: content.update(n=1))

    browser.visit(log_in)
    assert browser.read() == {"_user_id": "new", "n": 1}


def test_a_lifetime_is_told_to_the_browser(site: Site) -> None:
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()
    browser.set(n=1)

    def shorten() -> None:
        typed_session.lifetime = 600

    assert browser.costs(shorten)[1] == "set"
    clock.advance(61)
    browser.visit(lambda: typed_session.touch())
    clock.advance(600)
    assert browser.read() == {}


def test_a_heartbeat_keeps_a_short_session_alive(site: Site) -> None:
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()

    def begin() -> None:
        session["n"] = 1
        typed_session.lifetime = 50

    browser.visit(begin)
    for _ in range(20):
        clock.advance(10)
        browser.visit(lambda: typed_session.touch())
    assert browser.read() == {"n": 1}


def test_a_renewal_that_is_due_does_not_stop_a_stream_from_saving() -> None:
    site = make_site(SESSION_RENEWAL_INTERVAL=600)
    clock = t.cast(FakeClock, site.clock)
    browser = site.browser()
    browser.set(n=1)

    def change() -> None:
        clock.advance(600)
        session["n"] = 2
        typed_session.save()

    assert browser.visit(stream(change), buffered=True).text == "None"
    assert browser.read() == {"n": 2}


def test_a_session_stays_readable_when_the_serializer_changes() -> None:
    clock = FakeClock()
    config = {"SESSION_BACKEND": MemoryBackend(clock)}
    old, new = Site(config, clock), Site(config, clock, SESSION_SERIALIZER="json")
    browser, later = old.browser(), new.browser()
    browser.set(set={1}, list=[1])
    later.cookie = browser.cookie
    assert later.costs(lambda: session["list"]) == ({"load": 1}, "none")
    with pytest.raises(SerializationError, match="Keep a list"):
        later.set(n=1)

    def repair() -> None:
        session["set"] = sorted(session["set"])

    later.visit(repair)
    assert later.read() == {"set": [1], "list": [1]}
    assert browser.read() == {"set": [1], "list": [1]}


def test_regenerate_without_data_starts_permanent_if_configured() -> None:
    browser = make_site(SESSION_PERMANENT=True).browser()
    browser.set(n=1)

    def start_over() -> None:
        typed_session.regenerate(keep_data=False)
        session["m"] = 1

    assert "Expires" in browser.visit(start_over).headers["Set-Cookie"]
    assert browser.read() == {"m": 1, "_permanent": True}


def test_a_permanent_session_that_was_saved_early_sends_its_cookie() -> None:
    site = make_site(SESSION_REFRESH_EACH_REQUEST=False, SESSION_PERMANENT=True)
    browser = site.browser()
    browser.set(n=1)

    def change() -> None:
        session["n"] = 2
        typed_session.save()

    assert browser.costs(change)[1] == "set"


def test_a_list_held_over_a_save_that_met_a_conflict_is_still_the_sessions(
    site: Site,
) -> None:
    browser, other = site.browser(), site.browser()
    browser.set(list=[1])
    other.cookie = browser.cookie

    def view() -> None:
        held = session["list"]
        session["mine"] = 1
        other.set(theirs=1)
        typed_session.save()
        held.append(2)

    browser.visit(view)
    assert browser.read() == {"list": [1, 2], "theirs": 1, "mine": 1}


def test_a_session_that_was_unmodified_by_hand_is_not_stored(site: Site) -> None:
    def change_mind() -> None:
        session["n"] = 1
        session.modified = False

    assert site.browser().costs(change_mind) == ({}, "none")


def test_clearing_a_session_that_is_stored_empty_ends_it() -> None:
    browser = make_site(SESSION_SAVE_UNINITIALIZED=True).browser()
    browser.ignore()

    def clear() -> None:
        assert len(session) == 0
        session.clear()

    assert browser.costs(clear) == ({"load": 1, "delete": 1}, "deleted")


def test_a_form_comes_back_with_every_value_and_what_is_added_is_saved(
    site: Site,
) -> None:
    browser = site.browser()
    fields = {"tag": ["a", "b"]}
    browser.visit(
        lambda: session.update(form=flask.request.form), method="POST", data=fields
    )
    form = browser.read()["form"]
    assert type(form) is ImmutableMultiDict
    assert form.getlist("tag") == ["a", "b"]
    browser.visit(lambda: session.update(form=MultiDict(session["form"])))
    costs = browser.costs(lambda: session["form"].add("tag", "c"))
    assert costs == ({"load": 1, "replace": 1}, "none")
    assert browser.read()["form"].getlist("tag") == ["a", "b", "c"]


def test_the_log_says_why_a_session_was_saved(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "flask_serversession")
    browser = site.browser()
    browser.set(n=[])
    browser.set(m=1)
    browser.visit(lambda: session["n"].append(1))
    browser.set(_user_id="ada")
    handle = browser.visit(lambda: typed_session.handle).text
    messages = [record.message.split(" ", 2)[2] for record in caplog.records]
    assert messages == [
        "saved: new",
        "saved: key changed",
        "saved: nested change",
        f"rotated to {handle}: the user changed",
    ]


# After the response


def stream(*steps: Callable[[], t.Any]) -> Callable[[], Response]:
    def view() -> Response:
        @flask.stream_with_context
        def body() -> t.Iterator[str]:
            for step in steps:
                yield str(step())

        assert session.get("n") is not None
        return Response(body())

    return view


def test_a_stream_reads_the_session(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    assert browser.visit(stream(lambda: session["n"])).text == "1"


@pytest.mark.parametrize(
    "change",
    [lambda: session.update(n=2), lambda: session["list"].append(1)],
    ids=["key", "nested"],
)
def test_a_change_in_a_stream_is_warned_of(
    site: Site, change: Callable[[], t.Any], caplog: pytest.LogCaptureFixture
) -> None:
    browser = site.browser()
    browser.set(n=1, list=[])
    assert browser.visit(stream(change), buffered=True).text == "None"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "session.save()" in record.message
    assert browser.read() == {"n": 1, "list": []}


def test_save_in_a_stream_saves_and_is_not_warned_of(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    browser = site.browser()
    browser.set(n=1)

    def change() -> None:
        session["n"] = 2
        typed_session.save()

    assert browser.visit(stream(change), buffered=True).text == "None"
    assert not caplog.records
    assert browser.read() == {"n": 2}


def test_a_stream_cannot_start_a_session_or_change_its_id(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)

    def attempts() -> None:
        with pytest.raises(ServerSessionError, match="response was sent"):
            typed_session.regenerate()
        session["_user_id"] = "ada"
        with pytest.raises(ServerSessionError, match="needs a new id"):
            typed_session.save()
        typed_session.reload()

    assert browser.visit(stream(attempts), buffered=True).text == "None"


def test_reading_only_is_never_warned_of(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    browser = site.browser()
    browser.set(n=1, list=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        browser.visit(stream(lambda: session["list"]), buffered=True)
        browser.visit(lambda: session["list"])
    assert not caplog.records


def test_cookie_of_reads_headers(site: Site) -> None:
    assert cookie_of(site.browser().set(n=1), site) == "set"
