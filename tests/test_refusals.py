"""What an engine refuses has one answer, whichever engine it is."""

from __future__ import annotations

import html
import logging
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import session

from flask_serversession import BackendUnavailableError
from flask_serversession import signals
from flask_serversession.breaker import FAILURES

from .servers import MariaDBServer
from .servers import PostgresServer
from .servers import ValkeyServer
from .site import Site
from .site import cookie_of

MakeConfig = Callable[[str], dict[str, t.Any]]
GetServer = Callable[[type[t.Any]], t.Any]


class Refusal(t.NamedTuple):
    config: dict[str, t.Any]
    #: What the message holds.
    words: str
    #: Whether a session that is there can be read.
    can_read: bool = False


Cause: t.TypeAlias = Iterator[Refusal]


def no_such_database(make_config: MakeConfig, get_server: GetServer) -> Cause:
    url = get_server(ValkeyServer).url.replace("/0", "/99")
    config = {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": url}
    yield Refusal(config, "DB index is out of range")


def wrong_password(make_config: MakeConfig, get_server: GetServer) -> Cause:
    url = get_server(ValkeyServer).url.replace("//", "//nobody:hunter2@")
    config = {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": url}
    yield Refusal(config, "invalid username-password pair or user is disabled")


def no_table(make_config: MakeConfig, name: str) -> Cause:
    config = {**make_config(name), "SESSION_SQLALCHEMY_CREATE_TABLE": False}
    yield Refusal(config, "does not exist")


def execute(config: dict[str, t.Any], *statements: str) -> None:
    engine = sa.create_engine(config["SESSION_SQLALCHEMY_URL"])
    try:
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def table_of_others(make_config: MakeConfig, name: str) -> Cause:
    config = make_config(name)
    table = config["SESSION_SQLALCHEMY_TABLE"]
    execute(config, f"CREATE TABLE {table} (id INTEGER, x INTEGER)")
    yield Refusal(config, "is not one of this library's")


def no_privilege(make_config: MakeConfig, name: str, allowed: str) -> Cause:
    config = make_config(name)
    Site(config).browser().set(n=1)  # makes the table
    user = "refused@'127.0.0.1'" if name == "mariadb" else "refused"
    make = "CREATE ROLE refused LOGIN"
    drop = ["DROP OWNED BY refused", "DROP ROLE refused"]
    if name == "mariadb":
        make, drop = f"CREATE USER {user} IDENTIFIED BY 'p'", [f"DROP USER {user}"]
    table = config["SESSION_SQLALCHEMY_TABLE"]
    execute(config, make, f"GRANT {allowed} ON {table} TO {user}")
    url = sa.make_url(config["SESSION_SQLALCHEMY_URL"])
    url = url.set(username="refused", password="p")
    text = url.render_as_string(hide_password=False)
    try:
        config_of_reader = {**config, "SESSION_SQLALCHEMY_URL": text}
        yield Refusal(config_of_reader, "denied", allowed == "SELECT")
    finally:
        execute(config, *drop)


CAUSES: dict[str, Callable[[MakeConfig, GetServer], Cause]] = {
    "no such database": no_such_database,
    "wrong password": wrong_password,
    **{
        f"{cause.__name__} {name}": lambda make, _, cause=cause, name=name: cause(
            make, name
        )
        for cause in (no_table, table_of_others)
        for name in ("sqlite", "postgresql", "mariadb")
    },
    **{
        f"only {allowed} {name}": lambda make, _, name=name, allowed=allowed: (
            no_privilege(make, name, allowed)
        )
        for name in ("postgresql", "mariadb")
        for allowed in ("SELECT", "DELETE")
    },
}


@pytest.fixture(params=list(CAUSES))
def refusal(
    request: pytest.FixtureRequest,
    make_backend_config: MakeConfig,
    get_server: GetServer,
) -> Cause:
    yield from CAUSES[request.param](make_backend_config, get_server)


def write() -> None:
    session["n"] = 2


def test_what_an_engine_refuses_is_a_503_that_names_the_cause(
    refusal: Refusal, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(refusal.config)
    errors: list[t.Any] = []
    actions = [write] if refusal.can_read else [lambda: session.get("n"), write]
    with signals.backend_failed.connected_to(
        lambda app, error, **_: errors.append(error), site.app
    ):
        # It answers at once, so it is asked each time.
        for _ in range(FAILURES):
            for action in actions:
                browser = site.browser()
                browser.cookie = cookie_of_another(site)
                response = browser.visit(action)
                assert response.status_code == 503
                assert response.headers["Retry-After"] == "5"
                assert cookie_of(response, site) == "none"
    assert len(errors) == FAILURES * len(actions)
    for error in errors:
        assert type(error) is BackendUnavailableError
        assert error.refused
        assert refusal.words in str(error)
    logged = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(logged) == len(errors)
    assert all(refusal.words in text and "hunter2" not in text for text in logged)
    site.app.debug = True
    page = html.unescape(browser.visit(write).get_data(as_text=True))
    assert refusal.words in page
    assert "Is it running" not in page
    assert "hunter2" not in page
    result = site.app.test_cli_runner().invoke(args=["sessions", "check"])
    assert result.exit_code == 4
    assert refusal.words in result.output
    assert "Is it running" not in result.output
    assert "hunter2" not in result.output


def test_ignored_what_an_engine_refuses_is_an_empty_session(refusal: Refusal) -> None:
    site = Site(refusal.config, SESSION_ON_BACKEND_ERROR="ignore")
    browser = site.browser()
    cookie = browser.cookie = cookie_of_another(site)
    assert browser.read() == {}
    response = browser.visit(write)
    assert response.status_code == 503  # no failed write is a success
    assert browser.cookie == cookie


def cookie_of_another(site: Site) -> str:
    """Give the cookie of a session that nobody has stored here."""
    other = Site({"SESSION_BACKEND": "memory"}, clock=site.clock).browser()
    other.set(n=1)
    assert other.cookie is not None
    return other.cookie


def test_a_file_of_somebody_elses_is_no_500(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"no database" * 1000)
    url = f"sqlite:///{tmp_path / 's.db'}"
    site = Site({"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": url})
    assert site.browser().visit(write).status_code == 503


@pytest.mark.parametrize(
    ("server", "change", "words"),
    [
        (PostgresServer, {"database": "nowhere"}, '"nowhere" does not exist'),
        (PostgresServer, {"username": "nobody"}, '"nobody" does not exist'),
        (MariaDBServer, {"database": "nowhere"}, "Unknown database 'nowhere'"),
        (
            MariaDBServer,
            {"username": "nobody", "password": "hunter2"},
            "Access denied for user 'nobody'",
        ),
    ],
)
def test_a_log_in_that_a_database_refuses_is_told_from_one_that_is_down(
    server: type[t.Any], change: dict[str, str], words: str, get_server: GetServer
) -> None:
    url = sa.make_url(get_server(server).url).set(**change)
    text = url.render_as_string(hide_password=False)
    site = Site({"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": text})
    for _ in range(FAILURES + 1):
        assert site.browser().visit(write).status_code == 503
    result = site.app.test_cli_runner().invoke(args=["sessions", "check"])
    assert result.exit_code == 4
    assert words in result.output
    assert "Is it running" not in result.output
    assert "hunter2" not in result.output
