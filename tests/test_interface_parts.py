"""What the interface tells Flask and the browser, piece by piece."""

from __future__ import annotations

import datetime as dt
import typing as t

import flask
import pytest
from flask import Response
from flask import session
from flask.sessions import NullSession
from flask.sessions import SecureCookieSession

from flask_serversession import BackendUnavailableError
from flask_serversession import ServerSideSession
from flask_serversession import session as typed_session
from flask_serversession.cookie import CookieState
from flask_serversession.interface import ServerSessionInterface
from flask_serversession.sessions import unit_of

from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of
from .site import key
from .site import start


def make_site(**settings: t.Any) -> Site:
    return Site({"SESSION_BACKEND": "memory"}, **settings)


def interface_of(site: Site) -> ServerSessionInterface:
    return t.cast(ServerSessionInterface, site.state.interface)


def state_of(browser: Browser) -> CookieState:
    """Give what the browser's cookie says."""
    signer = interface_of(browser.site).get_signer(browser.site.app)
    assert signer is not None
    state = signer.verify(browser.cookie or "")
    assert state is not None
    return state


# What Flask asks


def test_a_session_of_ours_is_none_only_without_a_secret() -> None:
    site = make_site()
    interface = interface_of(site)
    with site.app.test_request_context():
        own = t.cast(t.Any, session)._get_current_object()
        assert interface.is_null_session(own) is False
        assert interface.is_null_session(NullSession()) is True
        assert interface.is_null_session(SecureCookieSession()) is False
        site.app.secret_key = None
        null = interface.open_session(site.app, flask.request)
        assert null is None
        made = interface.make_null_session(site.app)
        assert interface.is_null_session(made) is True


@pytest.mark.parametrize("is_secure", [True, False])
def test_auto_follows_the_request(is_secure: bool) -> None:
    site = make_site(SESSION_COOKIE_SECURE="auto", SESSION_COOKIE_SAMESITE="Auto")
    interface = interface_of(site)
    base_url = "https://example.test" if is_secure else "http://example.test"
    with site.app.test_request_context(base_url=base_url):
        assert interface.get_cookie_secure(site.app) is is_secure
        expected = "None" if is_secure else "Lax"
        assert interface.get_cookie_samesite(site.app) == expected
        site.app.config["SESSION_COOKIE_SECURE"] = not is_secure
        site.app.config["SESSION_COOKIE_SAMESITE"] = "Strict"
        assert interface.get_cookie_secure(site.app) is not is_secure
        assert interface.get_cookie_samesite(site.app) == "Strict"
        site.app.config["SESSION_COOKIE_SAMESITE"] = None
        assert interface.get_cookie_samesite(site.app) is None


def test_the_cookie_of_a_permanent_session_lives_as_long_as_it() -> None:
    site = make_site(PERMANENT_SESSION_LIFETIME=1000)
    interface = interface_of(site)
    now = dt.datetime.fromtimestamp(site.clock(), dt.timezone.utc)
    with site.app.test_request_context():
        own = t.cast(t.Any, session)._get_current_object()
        assert interface.get_expiration_time(site.app, own) is None
        session.permanent = True
        expires = interface.get_expiration_time(site.app, own)
        assert expires == now + dt.timedelta(seconds=1000)
        assert expires.tzinfo is dt.timezone.utc
        typed_session.lifetime = 60
        expires = interface.get_expiration_time(site.app, own)
        assert expires == now + dt.timedelta(seconds=60)
        others = SecureCookieSession({"_permanent": True})
        expires = interface.get_expiration_time(site.app, others)
        assert expires == now + dt.timedelta(seconds=1000)


def test_the_keys_are_derived_again_only_if_the_secrets_change() -> None:
    site = make_site(SECRET_KEY_FALLBACKS=["old"])
    interface = interface_of(site)
    signer = interface.get_signer(site.app)
    assert signer is not None
    assert interface.get_signer(site.app) is signer
    site.app.config["SECRET_KEY_FALLBACKS"] = None
    other = interface.get_signer(site.app)
    assert other is not None
    assert other is not signer
    state = CookieState("the id", False, 1, 1)
    assert signer.verify(other.sign(state)) == state
    site.app.secret_key = "another"
    changed = interface.get_signer(site.app)
    assert changed is not None
    assert changed.verify(other.sign(state)) is None
    site.app.secret_key = None
    assert interface.get_signer(site.app) is None


def test_a_fallback_verifies_and_does_not_sign() -> None:
    before = make_site(SECRET_KEY="old")
    browser = start(before, n=1)
    after = Site(
        {"SESSION_BACKEND": before.backend},
        before.clock,
        SECRET_KEY="new",
        SECRET_KEY_FALLBACKS=["old"],
    )
    own = after.browser()
    own.cookie = browser.cookie
    assert own.read() == {"n": 1}
    # It was signed anew.
    assert own.cookie != browser.cookie
    assert state_of(own).is_stale is False


def test_the_secret_of_sessions_comes_before_that_of_the_application() -> None:
    site = make_site(SESSION_SECRET=["new", "old"])
    signer = interface_of(site).get_signer(site.app)
    assert signer is not None
    site.app.secret_key = "another"
    assert interface_of(site).get_signer(site.app) is signer
    site.app.secret_key = None
    assert interface_of(site).get_signer(site.app) is signer


# What is recorded about the browser


def test_what_is_recorded_is_cut_off_and_left_out_where_it_is_not_known() -> None:
    site = make_site(SESSION_TRACK=("user_agent", "remote_addr"))
    browser = site.browser()
    browser.visit(
        lambda: session.update(n=1),
        headers={"User-Agent": "x" * 300},
        environ_base={"REMOTE_ADDR": "192.0.2.7"},
    )
    record = site.backend.load(key(browser))
    assert record is not None
    assert record.meta == {"user_agent": "x" * 256, "remote_addr": "192.0.2.7"}
    browser.visit(
        lambda: session.update(n=2),
        headers={"User-Agent": ""},
        environ_base={"REMOTE_ADDR": ""},
    )
    record = site.backend.load(key(browser))
    assert record is not None
    assert record.meta == {}


# The cookie


def test_a_secure_cookie_on_plain_http_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make_site(SESSION_COOKIE_SECURE=True)
    caplog.clear()
    start(site, n=1)
    start(site, n=1)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("flask_serversession", "WARNING")
    assert record.getMessage() == (
        "The session cookie is Secure, but a request came over plain HTTP, from which"
        " browsers ignore it. Behind a proxy that speaks HTTPS, use"
        " werkzeug.middleware.proxy_fix.ProxyFix."
    )


def test_nobody_is_warned_where_the_cookie_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    start(make_site(), n=1)
    site = make_site(SESSION_COOKIE_SECURE=True)
    site.browser().visit(lambda: session.update(n=1), base_url="https://example.test")
    assert not caplog.records


def test_a_cookie_that_says_the_same_is_not_signed_again() -> None:
    site = make_site(SESSION_TOUCH_INTERVAL=60)
    browser = start(site, n=1)
    first = browser.cookie
    advance(site, 59)
    browser.set(n=2)
    # That of a browser session may be behind by less than an interval.
    assert browser.cookie == first
    advance(site, 1)
    browser.set(n=3)
    assert browser.cookie != first
    assert state_of(browser).touched_at == site.clock()


def test_a_short_lifetime_is_told_sooner() -> None:
    site = make_site(SESSION_TOUCH_INTERVAL=60)
    browser = site.browser()

    def begin() -> None:
        session["n"] = 1
        typed_session.lifetime = 100

    browser.visit(begin)
    first = browser.cookie
    advance(site, 4)
    browser.set(n=2)
    assert browser.cookie == first
    advance(site, 1)
    browser.set(n=3)
    assert browser.cookie != first
    assert state_of(browser).lifetime == 100


def test_a_permanent_cookie_always_says_when_it_was_used() -> None:
    browser = start(make_site(), n=1, _permanent=True)
    advance(browser.site, 1)
    browser.set(n=2)
    state = state_of(browser)
    assert state.is_permanent
    assert state.touched_at == browser.site.clock()
    assert state.counts_from == browser.site.clock() - 1


def test_a_new_id_is_signed_whatever_came() -> None:
    browser = start(make_site(), n=1)
    former = browser.id
    browser.visit(lambda: typed_session.regenerate())
    assert state_of(browser).id == browser.id != former


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("public", "private"),
        ("public, max-age=60", "max-age=60, private"),
        ("Public , S-MaxAge = 5, private, no-transform", "no-transform, private"),
        ('public, private="a, b", x="1, 2"', 'x="1, 2", private'),
        ("s-maxage=5,, max-age=60", "max-age=60, private"),
    ],
)
def test_a_response_that_must_not_be_kept_keeps_its_other_directives(
    given: str, kept: str
) -> None:
    browser = make_site().browser()

    def view() -> Response:
        session["n"] = 1
        response = Response(headers={"Cache-Control": given})
        response.headers["CDN-Cache-Control"] = "max-age=60"
        response.headers["X-Other"] = "kept"
        return response

    response = browser.visit(view)
    assert cookie_of(response, browser.site) == "set"
    assert response.headers.getlist("Cache-Control") == [kept]
    assert "CDN-Cache-Control" not in response.headers
    assert response.headers["X-Other"] == "kept"


def test_a_public_response_with_a_cookie_is_warned_of_by_name_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make_site()
    caplog.clear()
    for _ in range(2):
        site.browser().visit(
            lambda: session.update(n=1) or Response(headers={"Cache-Control": "public"})
        )
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "The response of the endpoint '_run' carries a session cookie that must be"
        " sent, but its Cache-Control lets any cache keep it for everybody, or a header"
        " like it lets a CDN. It was made private. Do not change the session there, or"
        " leave out 'public', 's-maxage' and that header."
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["Cookie"]),
        ({"Vary": "Accept"}, ["Accept, Cookie"]),
        ({"vary": "cookie"}, ["cookie"]),
    ],
)
def test_a_response_varies_with_the_cookie_once(
    given: dict[str, str], expected: list[str]
) -> None:
    browser = start(make_site(), n=1)

    def view() -> Response:
        assert session["n"] == 1
        return Response(headers=given)

    assert browser.visit(view).headers.getlist("Vary") == expected


def test_a_session_of_another_kind_is_left_alone() -> None:
    site = make_site()
    interface = interface_of(site)
    with site.app.test_request_context():
        for accessed in (True, False):
            other = SecureCookieSession()
            other["n"] = 1
            other.accessed = accessed
            response = Response()
            interface.save_session(site.app, other, response)
            assert ("Vary" in response.headers) is accessed
            assert "Set-Cookie" not in response.headers


def test_what_was_handed_out_is_looked_at_after_a_stream_only() -> None:
    site = make_site()
    browser = start(site, items=[])
    units: list[t.Any] = []

    def look(response: Response) -> Response:
        assert session["items"] == []
        units.append(unit_of(t.cast(t.Any, session)._get_current_object()))
        return response

    browser.visit(lambda: look(Response("text")))
    assert units[0].is_exposed is False
    browser.visit(lambda: look(Response(part for part in ["text"])))
    assert units[1].is_exposed is True


def test_who_cleans_up_is_called_for_new_sessions_only() -> None:
    site = make_site()
    calls: list[int] = []
    interface_of(site)._cleanup = lambda: calls.append(1)
    browser = start(site, n=1)
    assert calls == [1]
    browser.set(n=2)
    browser.read()
    site.browser().read()
    assert calls == [1]


def test_flask_sessions_way_to_a_new_id_works() -> None:
    site = make_site()
    browser = start(site, n=1)
    former = browser.id
    browser.visit(lambda: site.app.session_interface.regenerate(session))  # type: ignore[attr-defined]
    assert browser.id != former
    assert browser.read() == {"n": 1}


def test_a_new_id_that_was_stored_is_sent_with_the_error_page() -> None:
    site = make_site()
    browser = start(site, n=1)
    former = browser.id

    def fail() -> None:
        raise BackendUnavailableError("It failed.")

    def view() -> None:
        session["_user_id"] = "ada"
        typed_session.save()
        session["n"] = 2
        site.backend.before["replace"] = fail

    response = browser.visit(view)
    site.backend.before.clear()
    assert response.status_code == 503
    assert cookie_of(response, site) == "set"
    assert response.headers.getlist("Vary") == ["Cookie"]
    assert browser.id != former
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_a_page_of_its_own_for_a_failure_is_the_applications_answer() -> None:
    site = make_site()
    browser = start(site, n=1)

    def view() -> Response:
        with pytest.raises(BackendUnavailableError):
            session["n"] = 2
        session["n"] = 2  # which nobody can store
        return Response("sorry", status=500)

    with site.backend.failing("load"):
        response = browser.visit(view)
    assert (response.status_code, response.text) == (500, "sorry")


def test_a_short_idle_timeout_is_told_sooner() -> None:
    browser = start(make_site(SESSION_IDLE_TIMEOUT=100), n=1)
    first = browser.cookie
    advance(browser.site, 5)
    browser.set(n=2)
    assert browser.cookie != first


def test_a_session_of_ours_is_saved_whatever_the_class_is_now() -> None:
    site = make_site()

    class Another(ServerSideSession):
        pass

    def view() -> None:
        session["n"] = 1
        interface_of(site).session_class = Another

    browser = site.browser()
    browser.visit(view)
    assert browser.read() == {"n": 1}


def test_what_was_handed_out_to_a_stream_and_changes_there_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    browser = start(make_site(), items=[])

    def view() -> Response:
        items = session["items"]

        @flask.stream_with_context
        def body() -> t.Iterator[str]:
            yield "begun"
            items.append(1)

        return Response(body())

    caplog.clear()
    assert browser.visit(view).text == "begun"
    (record,) = caplog.records
    assert "was changed after the response was begun" in record.getMessage()


def test_a_log_out_is_told_to_the_browser_with_another_error() -> None:
    site = make_site(PROPAGATE_EXCEPTIONS=False)
    browser = start(site, n=1)

    def view() -> None:
        typed_session.destroy()
        session["bad"] = object()

    response = browser.visit(view)
    assert response.status_code == 500
    assert cookie_of(response, site) == "deleted"


def test_what_an_error_page_must_not_save_is_not_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = make_site(SESSION_SAVE_ON_ERROR=False)
    browser = start(site, n=1)
    site.state.interface.lifecycle.unsaved.watch()
    caplog.clear()
    browser.visit(lambda: session.update(n=2) or Response(status=500))
    assert not caplog.records
