"""Sessions in PostgreSQL behind a pooler, and a primary that restarts under load."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from flask_serversession import BackendUnavailableError
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend

from .figures import Report
from .load import Load
from .load import client_of
from .load import create_app
from .servers import PgBouncer
from .servers import PostgresServer


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    # Of this module's own, to be restarted.
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def pooler(run_server: t.Any, postgres: PostgresServer) -> Iterator[PgBouncer]:
    with run_server(PgBouncer, postgres) as server:
        yield server


@pytest.fixture
def table(postgres: PostgresServer) -> Iterator[str]:
    yield "scale"
    engine = sa.create_engine(postgres.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS scale"))


def test_statements_are_prepared_but_not_behind_a_pooler(
    postgres: PostgresServer, pooler: PgBouncer, table: str
) -> None:
    for url, is_prepared in ((postgres.url, True), (pooler.url, False)):
        backend = SQLAlchemyBackend.from_url(url, table_name=table)
        use_in_turn([backend])
        pooled = backend._engine.raw_connection()
        connection: t.Any = pooled.driver_connection
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements")
            assert (cursor.fetchone()[0] > 0) is is_prepared
        assert connection.autocommit
        pooled.close()
        backend.close()


def test_a_given_engine_that_prepares_statements_is_told_not_to(
    pooler: PgBouncer, table: str
) -> None:
    with contextlib.ExitStack() as stack:

        def make(**connect_args: t.Any) -> SQLAlchemyBackend:
            engine = sa.create_engine(pooler.url, connect_args=connect_args)
            stack.callback(engine.dispose)
            return SQLAlchemyBackend(engine, table_name=table)

        # Two clients that prepare everything, and give it the same names.
        backends = [make(prepare_threshold=0) for _ in range(2)]
        with pytest.raises(BackendUnavailableError) as caught:
            use_in_turn(backends)
        assert caught.value.refused
        assert f"127.0.0.1:{pooler.port} lost a prepared statement" in str(caught.value)
        assert "connect_args={'prepare_threshold': None}" in str(caught.value)
        # What the message says to do helps.
        backends = [make(prepare_threshold=None) for _ in range(2)]
        use_in_turn(backends)


def use_in_turn(backends: list[SQLAlchemyBackend]) -> None:
    for number in range(100):
        for backend in backends:
            backend.load(f"key {number}")


@pytest.mark.slow
def test_a_primary_that_restarts_costs_503s_and_nothing_that_was_confirmed(
    postgres: PostgresServer,
    pooler: PgBouncer,
    table: str,
    report: Report,
) -> None:
    urls = [postgres.url, pooler.url] * 4
    apps = [
        create_app(
            {
                "SESSION_BACKEND": "sqlalchemy",
                "SESSION_SQLALCHEMY_URL": url,
                "SESSION_SQLALCHEMY_TABLE": table,
            }
        )
        for url in urls
    ]
    load = Load([client_of(app) for app in apps])
    with load.running():
        load.wait_for_turns(2)
        postgres.restart()
        load.wait_for_turns()
        postgres.kill()
        postgres.start()
        load.wait_for_turns()
    assert load.failures
    report(f"PostgreSQL restarted and killed: {load.check(client_of(apps[0]))}")
    assert load.lost == 0
    server_session = apps[1].extensions["extension"]
    with apps[1].app_context():
        assert server_session.count() == len(load.visitors)
        for worker, visitors in enumerate(load.own):
            found = {info.handle for info in server_session.sessions_of(f"w{worker}")}
            assert found == {visitor.handle for visitor in visitors}
        assert server_session.revoke_user("w0") == len(load.own[0])
    for app in apps:
        app.extensions["serversession"].backend.close()
