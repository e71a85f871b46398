"""The tools for tests of applications."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import flask_login
import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_serversession import ServerSession
from flask_serversession import ServerSideSession
from flask_serversession import session
from flask_serversession import testing
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock

pytest_plugins = "flask_serversession.testing.fixtures"


def make_app(**settings: t.Any) -> Flask:
    app = Flask("shop")
    app.config.update(SECRET_KEY="k", TESTING=True, SESSION_BACKEND="memory")
    app.config.update(settings)
    ServerSession(app)

    @app.get("/")
    def welcome() -> str:
        return "Welcome."

    @app.get("/who")
    def who() -> str:
        return f"{session.user} {session.get('role')}"

    @app.post("/save")
    def save() -> str:
        session["n"] = 1
        return ""

    return app


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    return make_app(
        SESSION_BACKEND="filesystem",
        SESSION_FILESYSTEM_PATH=tmp_path,
        SESSION_IDLE_TIMEOUT=timedelta(hours=1),
    )


@pytest.mark.parametrize(
    "settings", [{}, {"SESSION_USER_KEY": "uid"}, {"SESSION_USER_KEY": ["a", "b"]}]
)
def test_a_user_is_logged_in_where_the_application_looks(
    settings: dict[str, t.Any],
) -> None:
    app = make_app(**settings)
    client = app.test_client()
    testing.log_in(client, 7, role="editor")
    assert client.get("/who").text == "7 editor"
    assert app.test_client().get("/who").text == "None None"
    with app.app_context():
        assert len(ServerSession().sessions_of(7)) == 1


def test_where_a_function_finds_the_user_nobody_can_be_logged_in() -> None:
    def user_of(session: ServerSideSession) -> t.Any:
        return session.get("claims", {}).get("sub")

    client = make_app(SESSION_USER_KEY=user_of).test_client()
    with pytest.raises(ValueError, match=r"Use client\.session_transaction\(\)"):
        testing.log_in(client, "ada")


@pytest.mark.parametrize("protection", ["basic", "strong", None])
def test_flask_login_lets_in_who_is_logged_in(protection: str | None) -> None:
    app = make_app()
    manager = flask_login.LoginManager(app)
    manager.session_protection = protection  # type: ignore[assignment]

    @manager.user_loader  # type: ignore[untyped-decorator,unused-ignore]
    def load(name: str) -> flask_login.UserMixin:
        user = flask_login.UserMixin()
        user.id = name  # type: ignore[attr-defined]
        return user

    @app.get("/account")
    @flask_login.fresh_login_required
    def account() -> str:
        return str(flask_login.current_user.get_id())

    client = app.test_client()
    assert client.get("/account").status_code == 401
    testing.log_in(client, "ada")
    assert client.get("/account").text == "ada"


@pytest.mark.parametrize("is_counting", [True, False])
def test_what_a_page_costs_is_counted_on_any_backend(is_counting: bool) -> None:
    backend = MemoryBackend()
    app = make_app(SESSION_BACKEND=CountingBackend(backend) if is_counting else backend)
    client = app.test_client()
    testing.log_in(client, "ada")
    with testing.counting(app) as calls:
        client.get("/")
        assert calls == {}
        with testing.counting(app) as inner:
            client.get("/who")
        client.post("/save")
    assert inner == {"load": 1}
    assert calls == {"load": 2, "replace": 1}
    client.get("/who")
    assert calls == {"load": 2, "replace": 1}
    assert vars(backend).keys() == vars(MemoryBackend()).keys()


def test_a_page_that_costs_a_round_trip_is_reported_with_what_it_asked_for() -> None:
    app = make_app()
    client = app.test_client()
    testing.log_in(client, "ada")
    with testing.no_round_trips(app):
        client.get("/")
    with (
        pytest.raises(AssertionError) as caught,
        testing.no_round_trips(app),
    ):
        client.post("/save")
    assert str(caught.value).startswith(
        "The store was asked for load (1), replace (1). A page costs a round trip if"
    )
    # What the test itself raises comes first.
    with pytest.raises(ZeroDivisionError), testing.no_round_trips(app):
        assert 1 / len(client.get("/who").headers.getlist("Set-Cookie"))


def test_an_application_that_was_made_before_goes_by_the_fake_clock() -> None:
    app = make_app(SESSION_IDLE_TIMEOUT=60)
    client = app.test_client()
    with testing.fake_clock() as clock:
        testing.log_in(client, "ada")
        clock.advance(59)
        assert client.get("/who").text == "ada None"
        clock.advance(61)
        assert client.get("/who").text == "None None"
    with testing.fake_clock(5) as clock:
        assert app.extensions["serversession"].interface.core.clock() == 5
        clock.advance(1)
        assert app.extensions["serversession"].interface.core.clock() == 6
    assert app.extensions["serversession"].interface.core.clock() > 1_000_000


def test_an_application_with_a_clock_of_its_own_keeps_it() -> None:
    app = Flask("shop")
    app.config.update(SECRET_KEY="k", SESSION_BACKEND="memory")
    ServerSession(app, clock=FakeClock(7))
    with testing.fake_clock(5):
        assert app.extensions["serversession"].interface.core.clock() == 7


def test_the_fixtures_work_on_the_fixture_app(
    log_in: Callable[..., FlaskClient],
    no_round_trips: Callable[[], AbstractContextManager[None]],
    session_clock: FakeClock,
) -> None:
    ada, bob = log_in("ada", role="editor"), log_in("bob")
    assert ada.get("/who").text == "ada editor"
    assert bob.get("/who").text == "bob None"
    with no_round_trips():
        ada.get("/")
    session_clock.advance(3600)
    assert ada.get("/who").text == "None None"
