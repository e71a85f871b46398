"""What applications and extensions may count on because Flask promises it to them."""

from __future__ import annotations

import datetime as dt
import logging
import typing as t

import flask
import pytest
from flask import Flask
from flask import Response
from flask import session
from flask.sessions import SecureCookieSession
from flask.sessions import SessionMixin
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_serversession import ServerSession
from flask_serversession import ServerSessionInterface
from flask_serversession import ServerSideSession
from flask_serversession import session as typed_session
from flask_serversession.testing import FakeClock

from .flask_version import HAS_ONE_CONTEXT
from .site import Browser
from .site import Site
from .site import cookie_of

MINUTE = 60.0


def make_app(
    interface: type[ServerSessionInterface] = ServerSessionInterface, **settings: t.Any
) -> Flask:
    class Extension(ServerSession):
        interface_class = interface

    app = Flask("hooks")
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory", TESTING=True)
    app.config.update(settings)
    Extension(app)

    @app.get("/write")
    def write() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    @app.get("/read")
    def read() -> str:
        return str(session.get("n"))

    @app.get("/ignore")
    def ignore() -> str:
        return ""

    return app


def stored(app: Flask) -> int:
    return t.cast(int, app.extensions["serversession"].backend.count())


def has_cookie(response: TestResponse) -> bool:
    return bool(response.headers.getlist("Set-Cookie"))


@pytest.fixture
def site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


@pytest.fixture
def every_site(backend_config: dict[str, t.Any]) -> Site:
    return Site(backend_config)


# should_set_cookie


def test_a_cookie_goes_out_with_each_change(site: Site) -> None:
    browser = site.browser()
    for n in range(3):
        assert cookie_of(browser.set(n=n), site) == "set"
    assert cookie_of(browser.visit(lambda: session["n"]), site) == "none"


def test_an_unchanged_cookie_is_not_signed_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = site.browser()
    browser.set(n=1)
    before = browser.cookie
    signer = site.state.interface.get_signer(site.app)
    assert signer is not None
    signed: list[object] = []
    monkeypatch.setattr(signer, "sign", signed.append)
    browser.set(n=2)
    assert not signed
    assert browser.cookie == before
    assert browser.read() == {"n": 2}


def test_a_cookie_that_would_have_a_touch_done_again_is_signed_anew(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    before = browser.cookie
    t.cast(FakeClock, site.clock).advance(MINUTE)
    browser.set(n=2)
    assert browser.cookie != before
    assert browser.costs(lambda: typed_session.touch()) == ({}, "none")


class NeverSends(ServerSessionInterface):
    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        return False


class AlwaysSends(ServerSessionInterface):
    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        return True


class SendsForAda(ServerSessionInterface):
    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        return session.get("name") == "ada"


def test_an_application_may_refuse_the_cookie_and_so_the_new_session() -> None:
    app = make_app(NeverSends)
    response = app.test_client().get("/write")
    assert response.text == "1"
    assert not has_cookie(response)
    assert stored(app) == 0


def test_what_a_stored_session_changes_is_kept_without_the_cookie() -> None:
    app = make_app(SESSION_PERMANENT=True)
    client = app.test_client()
    client.get("/write")
    app.session_interface.should_set_cookie = lambda *_: False  # type: ignore[method-assign]
    assert not has_cookie(client.get("/write"))
    assert not has_cookie(client.get("/ignore"))
    assert client.get("/read").text == "2"


@pytest.mark.parametrize("path", ["/read", "/ignore"])
def test_an_application_may_send_the_cookie_with_every_response(path: str) -> None:
    client = make_app(AlwaysSends).test_client()
    assert not has_cookie(client.get(path))  # there is nothing to send
    client.get("/write")
    assert has_cookie(client.get(path))


def test_should_set_cookie_may_look_at_the_session() -> None:
    app = make_app(SendsForAda)

    @app.get("/name/<name>")
    def name(name: str) -> str:
        session["name"] = name
        return ""

    client = app.test_client()
    assert has_cookie(client.get("/name/ada"))
    assert has_cookie(client.get("/ignore"))
    assert not has_cookie(client.get("/name/bob"))
    assert not has_cookie(client.get("/ignore"))


def test_a_new_id_and_a_deletion_reach_the_browser_all_the_same() -> None:
    app = make_app()
    app.add_url_rule(
        "/rotate", "rotate", view_func=lambda: typed_session.regenerate() or ""
    )
    app.add_url_rule("/clear", "clear", view_func=lambda: session.clear() or "")
    client = app.test_client()
    client.get("/write")
    app.session_interface.should_set_cookie = lambda *_: False  # type: ignore[method-assign]
    assert has_cookie(client.get("/rotate"))
    assert client.get("/read").text == "1"
    assert "Max-Age=0" in client.get("/clear").headers["Set-Cookie"]


class NotForFiles(ServerSessionInterface):
    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        is_file = flask.request.path == "/ignore"
        return super().should_set_cookie(app, session) and not is_file


def test_what_should_set_cookie_looks_at_is_not_looked_at_by_the_view() -> None:
    app = make_app(NotForFiles, SESSION_PERMANENT=True)
    accessed: list[bool] = []

    def note(sender: Flask, response: Response) -> None:
        name = "app_ctx" if HAS_ONE_CONTEXT else "request_ctx"
        accessed.append(getattr(flask.globals, name)._session.accessed)

    client = app.test_client()
    client.get("/write")
    with flask.request_finished.connected_to(note, app):
        response = client.get("/ignore")
        assert not has_cookie(response)
        assert "Vary" not in response.headers
        response = client.get("/read")
        assert has_cookie(response)
        assert response.headers["Vary"] == "Cookie"
    assert accessed == [False, True]


class AlwaysModified(ServerSideSession):
    modified = True


class AlwaysPermanent(ServerSideSession):
    permanent = True


@pytest.mark.parametrize("kind", [AlwaysModified, AlwaysPermanent])
def test_should_set_cookie_goes_by_what_a_session_class_says(
    kind: type[ServerSideSession],
) -> None:
    app = make_app()
    app.session_interface.session_class = kind  # type: ignore[attr-defined]
    client = app.test_client()
    for path in ("/ignore", "/read"):
        assert not has_cookie(client.get(path))  # there is nothing to send
    client.get("/write")
    for path in ("/ignore", "/read"):
        response = client.get(path)
        assert has_cookie(response)
        assert response.headers["Vary"] == "Cookie"
    assert stored(app) == 1


# modified and accessed


def test_modified_and_accessed_keep_their_values_after_the_response(site: Site) -> None:
    seen: list[tuple[bool, bool]] = []

    def after(action: t.Callable[[], t.Any]) -> tuple[bool, bool]:
        def view() -> None:
            found: list[t.Any] = [session._get_current_object()]  # type: ignore[attr-defined]
            found[0].accessed = False
            action()
            sessions.extend(found)

        sessions: list[t.Any] = []
        browser.visit(view)
        (found,) = sessions
        return found.modified, found.accessed

    browser = site.browser()
    seen.append(after(lambda: session.update(n=1)))
    seen.append(after(lambda: session["n"]))
    seen.append(after(lambda: session.update(n=2)))
    seen.append(after(lambda: session.pop("n")))
    assert seen == [(True, True), (False, True), (True, True), (True, True)]


def test_modified_is_true_after_a_save_in_the_middle(site: Site) -> None:
    def view() -> list[bool]:
        session["n"] = 1
        typed_session.save()
        return [session.modified]

    assert site.browser().visit(lambda: str(view())).text == "[True]"


def test_modified_is_false_after_a_reload(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)

    def view() -> str:
        session["n"] = 2
        typed_session.reload()
        return str(session.modified)

    assert browser.visit(view).text == "False"
    assert browser.read() == {"n": 1}


def test_setting_permanent_to_what_it_is_counts_as_modified_as_in_flask() -> None:
    app = make_app(SESSION_REFRESH_EACH_REQUEST=False)
    seen: list[bool] = []

    @app.get("/permanent/<int:value>")
    def permanent(value: int) -> str:
        session.permanent = bool(value)
        seen.append(session.modified)
        return ""

    client = app.test_client()
    client.get("/write")
    for path in ("/permanent/0", "/permanent/0", "/permanent/1", "/permanent/1"):
        assert has_cookie(client.get(path))
    assert seen == [True, True, True, True]


def test_setting_permanent_to_what_it_is_writes_nothing(every_site: Site) -> None:
    browser = every_site.browser()
    browser.set(n=1, _permanent=True)
    costs = browser.costs(lambda: setattr(session, "permanent", True))
    assert costs == ({"load": 1}, "set")


@pytest.mark.parametrize("looks_at", ["n", "list"])
def test_what_was_unmodified_by_hand_is_not_stored(site: Site, looks_at: str) -> None:
    browser = site.browser()
    browser.set(n=1, list=[1])

    def change_mind() -> None:
        session["n"] = 2
        session.get(looks_at)
        session.modified = False

    assert browser.costs(change_mind) == ({"load": 1}, "none")
    assert browser.read() == {"n": 1, "list": [1]}


# open_session, session_class


class Cart(ServerSideSession):
    @property
    def total(self) -> int:
        return sum(self.get("prices", ()))

    @property
    def user_name(self) -> str:
        return "set by the class"


class CartInterface(ServerSessionInterface):
    session_class = Cart


def test_templates_see_what_an_applications_session_class_adds() -> None:
    app = make_app(CartInterface)

    @app.get("/total")
    def total() -> str:
        session.update(prices=[1, 2], user_name="set by a key", total_key=4)
        return flask.render_template_string(
            "{{ session.total }} {{ session.user_name }} {{ session.total_key }}"
            "{{ session.id }}{{ session._state }}{{ session.destroy }}"
        )

    assert app.test_client().get("/total").text == "3 set by the class 4"


class Account(ServerSideSession):
    asked = 0

    @property
    def balance(self) -> int:
        Account.asked += 1
        return 7

    @property
    def user(self) -> str:
        return "Ada Lovelace"


class AccountInterface(ServerSessionInterface):
    session_class = Account


def test_templates_see_what_an_applications_session_class_overrides() -> None:
    app = make_app(AccountInterface)

    @app.get("/user")
    def user() -> str:
        session["user"] = "a key"
        return flask.render_template_string("{{ session.user }}")

    assert app.test_client().get("/user").text == "Ada Lovelace"


def test_a_template_asks_a_member_of_a_session_class_once() -> None:
    app = make_app(AccountInterface)
    app.add_url_rule(
        "/balance",
        "balance",
        view_func=lambda: flask.render_template_string("{{ session.balance }}"),
    )
    Account.asked = 0
    assert app.test_client().get("/balance").text == "7"
    assert Account.asked == 1


@pytest.mark.parametrize(
    "template", ["{% if session %}yes{% else %}no{% endif %}", "{{ session or 'no' }}"]
)
def test_a_template_without_a_request_finds_no_session(template: str) -> None:
    # A layout that pages and mails share.
    app = make_app()
    app.test_client().get("/ignore")
    with app.app_context():
        assert flask.render_template_string(template) == "no"


class Token(SecureCookieSession):
    id = 7
    user = "a client"

    def destroy(self) -> str:
        return "gone"


class Tokens(ServerSessionInterface):
    def open_session(self, app: Flask, request: flask.Request) -> t.Any:
        return Token()


def test_templates_see_all_members_of_another_kind_of_session() -> None:
    app = make_app(Tokens)

    @app.get("/token")
    def token() -> str:
        session.update(n=1, user="a key")
        return flask.render_template_string(
            "{{ session.id }} {{ session.user }} {{ session.n }}"
            " {{ session.destroy() }}"
        )

    assert app.test_client().get("/token").text == "7 a client 1 gone"


class Mixed(ServerSessionInterface):
    """Gives the API a session that nobody keeps."""

    def open_session(self, app: Flask, request: flask.Request) -> t.Any:
        if request.path.startswith("/api"):
            return SecureCookieSession()
        if request.path.startswith("/null"):
            return flask.sessions.NullSession()
        return super().open_session(app, request)


def test_open_session_may_give_another_kind_of_session_for_some_paths() -> None:
    app = make_app(Mixed)

    @app.get("/api")
    def api() -> str:
        session["n"] = 7
        return flask.render_template_string("{{ session.n }} {{ session.modified }}")

    app.add_url_rule("/null", "null", view_func=lambda: str(len(session)))
    client = app.test_client()
    client.get("/write")
    response = client.get("/api")
    assert response.text == "7 True"
    assert not has_cookie(response)
    assert response.headers["Vary"] == "Cookie"
    assert client.get("/null").text == "0"
    assert client.get("/read").text == "1"
    with app.test_request_context("/api"):
        extension = ServerSession()
        assert extension.revoke_user("ada", except_current=True) == 0


class Renamed(ServerSessionInterface):
    """Overrides each getter of the cookie's attributes."""

    def get_cookie_name(self, app: Flask) -> str:
        return "renamed"

    def get_cookie_domain(self, app: Flask) -> str:
        return "localhost"

    def get_cookie_path(self, app: Flask) -> str:
        return "/here"

    def get_cookie_httponly(self, app: Flask) -> bool:
        return False

    def get_cookie_secure(self, app: Flask) -> bool:
        return True

    def get_cookie_samesite(self, app: Flask) -> str:
        return "Strict"

    def get_cookie_partitioned(self, app: Flask) -> bool:
        return True


def test_the_cookie_is_set_and_deleted_with_the_attributes_of_the_getters() -> None:
    app = make_app(Renamed)
    app.add_url_rule("/here/log-in", "in", view_func=lambda: session.update(n=1) or "")
    app.add_url_rule("/here/log-out", "out", view_func=lambda: session.clear() or "")
    client = app.test_client()
    base_url = "https://localhost"
    for path in ("/here/log-in", "/here/log-out"):
        header = client.get(path, base_url=base_url).headers["Set-Cookie"]
        name, *attributes = header.split("; ")
        assert name.startswith("renamed=")
        assert {
            *("Domain=localhost", "Path=/here", "Secure"),
            *("SameSite=Strict", "Partitioned"),
        } <= {*attributes}
        assert "HttpOnly" not in attributes


# what Flask-Session's applications call


def test_regenerate_of_the_interface_gives_a_new_id(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    before = browser.id

    def log_in() -> str:
        session["user_id"] = 7
        interface: t.Any = flask.current_app.session_interface
        interface.regenerate(session)
        return str(session.sid)  # type: ignore[attr-defined]

    browser.visit(log_in)
    assert browser.id != before
    assert browser.read() == {"n": 1, "user_id": 7}


def test_sid_is_the_handle_and_never_the_id(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    shown = browser.visit(
        lambda: flask.render_template_string("{{ session.sid }}|{{ session.handle }}")
    ).text
    assert shown == "|".join([browser.visit(lambda: typed_session.sid).text] * 2)
    assert browser.visit(lambda: typed_session.handle).text in shown
    assert browser.id not in shown


# a session that nobody used


def visit_all(client: FlaskClient) -> list[TestResponse]:
    return [
        method("/ignore")
        for method in (client.get, client.head, client.options)
        for _ in range(3)
    ]


@pytest.mark.parametrize("is_permanent", [True, False])
def test_setting_permanent_before_each_request_stores_no_session(
    is_permanent: bool,
) -> None:
    app = make_app()
    app.before_request(lambda: setattr(session, "permanent", is_permanent))
    for _ in range(3):
        assert not any(map(has_cookie, visit_all(app.test_client())))
    assert stored(app) == 0
    # But it is one as soon as something else is in it.
    client = app.test_client()
    assert ("Expires" in client.get("/write").headers["Set-Cookie"]) is is_permanent
    assert stored(app) == 1


def test_a_session_in_which_only_permanent_is_left_ends(every_site: Site) -> None:
    site = every_site
    browser = site.browser()
    browser.set(n=1, _permanent=True)
    cookie = browser.cookie
    assert cookie_of(browser.visit(lambda: session.pop("n")), site) == "deleted"
    assert browser.read() == {}
    old = site.browser()
    old.cookie = cookie
    assert old.read() == {}


def test_a_session_that_was_cleared_and_made_permanent_ends(every_site: Site) -> None:
    site = every_site
    browser = site.browser()
    browser.set(n=1)

    def view() -> None:
        session.clear()
        session.permanent = True

    assert cookie_of(browser.visit(view), site) == "deleted"


def test_a_lost_session_that_is_only_made_permanent_loses_nothing() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_LOST="raise")
    browser = site.browser()
    browser.set(n=1)
    old = browser.twin()
    browser.visit(lambda: typed_session.regenerate())
    response = old.visit(lambda: setattr(session, "permanent", True))
    assert response.status_code == 200
    assert cookie_of(response, site) == "none"


# caches


CACHED = [
    "public, max-age=43200",
    "max-age=1, PUBLIC",
    "s-maxage=60",
    'no-cache="a, public", S-MaxAge=60',
]
UNCACHED = ["no-store", "private, max-age=60", "max-age=60", "republic", ""]


def answering(header: str, action: t.Callable[[], t.Any] = lambda: None) -> t.Any:
    def view() -> Response:
        action()
        response = Response("page")
        if header:
            response.headers["Cache-Control"] = header
        return response

    return view


def targeting(header: str, value: str, action: t.Callable[[], t.Any]) -> t.Any:
    """Make a view whose response has a header for one CDN, beside its own."""

    def view() -> Response:
        action()
        response = Response("page")
        response.headers["Cache-Control"] = "max-age=5"
        response.headers[header] = value
        return response

    return view


def start_permanent(site: Site) -> Browser:
    browser = site.browser()
    browser.set(n=1, _permanent=True)
    return browser


ACTIONS = {
    "not looked at": lambda: None,
    "read": lambda: session["n"],
    "changed": lambda: session.update(n=2),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize("header", CACHED)
def test_no_cookie_is_sent_again_on_a_response_that_any_cache_may_keep(
    site: Site, header: str, action: t.Callable[[], t.Any]
) -> None:
    browser = start_permanent(site)
    t.cast(FakeClock, site.clock).advance(2 * MINUTE)
    response = browser.visit(answering(header, action))
    assert cookie_of(response, site) == "none"
    assert response.headers["Cache-Control"] == header
    assert cookie_of(browser.visit(lambda: session["n"]), site) == "set"


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
@pytest.mark.parametrize("header", UNCACHED)
def test_the_cookie_is_sent_again_on_other_responses(
    site: Site, header: str, action: t.Callable[[], t.Any]
) -> None:
    browser = start_permanent(site)
    assert cookie_of(browser.visit(answering(header, action)), site) == "set"


def test_a_file_for_all_caches_costs_no_touch(site: Site) -> None:
    # Its cookie would not learn of the touch, so that each of them would touch again.
    browser = start_permanent(site)
    t.cast(FakeClock, site.clock).advance(2 * MINUTE)
    assert browser.costs(answering(CACHED[0])) == ({}, "none")
    assert browser.costs(lambda: "page") == ({"touch": 1}, "set")


MUST = {
    "new": (False, lambda: session.update(n=1), "set"),
    "rotated": (True, lambda: typed_session.regenerate(), "set"),
    "logged in": (True, lambda: session.update(_user_id="ada"), "set"),
    "cleared": (True, lambda: session.clear(), "deleted"),
    "destroyed": (True, lambda: typed_session.destroy(), "deleted"),
}


@pytest.mark.parametrize("case", MUST.values(), ids=MUST.keys())
@pytest.mark.parametrize(
    ("header", "private"),
    [
        ("public, max-age=43200", "max-age=43200, private"),
        ("s-maxage=60, must-revalidate", "must-revalidate, private"),
        ('no-cache="a, public", S-MaxAge=60', 'no-cache="a, public", private'),
        ("Public, private", "private"),
    ],
)
def test_a_response_whose_cookie_must_go_out_becomes_private_with_one_warning(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    case: tuple[bool, t.Callable[[], t.Any], str],
    header: str,
    private: str,
) -> None:
    has_session, action, cookie = case
    with caplog.at_level(logging.WARNING, "flask_serversession"):
        for _ in range(2):
            browser = start_permanent(site) if has_session else site.browser()
            response = browser.visit(answering(header, action))
            assert cookie_of(response, site) == cookie
            assert response.headers["Cache-Control"] == private
    (record,) = caplog.records
    assert "endpoint '_run'" in record.getMessage()


TARGETED = [
    *("CDN-Cache-Control", "cloudflare-cdn-cache-control", "Surrogate-Control"),
    "X-LiteSpeed-Cache-Control",
]


@pytest.mark.parametrize("header", TARGETED)
@pytest.mark.parametrize(
    "value", ["max-age=60", "public", "must-revalidate, S-MaxAge=9"]
)
def test_what_a_cdn_obeys_instead_of_cache_control_counts_too(
    site: Site, header: str, value: str
) -> None:
    browser = start_permanent(site)
    again = browser.visit(targeting(header, value, lambda: session.update(n=2)))
    assert cookie_of(again, site) == "none"
    assert again.headers[header] == value
    rotated = browser.visit(
        targeting(header, value, lambda: typed_session.regenerate())
    )
    assert cookie_of(rotated, site) == "set"
    assert header not in rotated.headers
    assert rotated.headers["Cache-Control"] == "max-age=5, private"


@pytest.mark.parametrize("header", [*TARGETED, "X-DNS-Prefetch-Control"])
@pytest.mark.parametrize(
    "value", ["no-store", "private, max-age=60", 'content="ESI/1.0"', "on"]
)
def test_what_lets_no_cdn_keep_a_response_changes_nothing(
    site: Site, header: str, value: str
) -> None:
    browser = start_permanent(site)
    response = browser.visit(targeting(header, value, lambda: session.update(n=2)))
    assert cookie_of(response, site) == "set"
    assert response.headers[header] == value


def test_nobody_is_logged_in_as_somebody_else_by_a_shared_cache() -> None:
    app = make_app(SESSION_PERMANENT=True, SEND_FILE_MAX_AGE_DEFAULT=43200)

    @app.get("/icon.svg")
    def icon() -> Response:
        return flask.send_file(__file__, mimetype="image/svg+xml")

    client = app.test_client()
    client.get("/write")
    kept = client.get("/icon.svg")
    assert "public" in kept.headers["Cache-Control"]
    assert not has_cookie(kept)
    assert "Vary" not in kept.headers
    kept.close()


# The lifetime


class PropertyOfItsOwn(Flask):
    @property
    def permanent_session_lifetime(self) -> dt.timedelta:  # type: ignore[override]
        return dt.timedelta(minutes=20)


class AttributeOfItsOwn(Flask):
    permanent_session_lifetime = dt.timedelta(minutes=20)  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [PropertyOfItsOwn, AttributeOfItsOwn])
def test_a_lifetime_of_the_applications_own_holds_for_cookie_and_record(
    kind: type[Flask],
) -> None:
    clock = FakeClock()
    app = kind("hooks")
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app, clock=clock)

    @app.get("/write")
    def write() -> str:
        session.permanent = True
        session["n"] = 1
        return ""

    @app.get("/read")
    def read() -> str:
        return str(session.get("n"))

    client = app.test_client(use_cookies=False)
    response = client.get("/write")
    assert "Max-Age=1200;" in response.headers["Set-Cookie"]
    cookie = {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}
    clock.advance(20 * MINUTE - 1)
    assert client.get("/read", headers=cookie).text == "1"
    clock.advance(20 * MINUTE)
    assert client.get("/read", headers=cookie).text == "None"
