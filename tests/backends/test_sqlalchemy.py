from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import logging
import os
import re
import signal
import sqlite3
import threading
import time
import traceback
import typing as t
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import flask
import pytest
import sqlalchemy as sa
from flask import Flask
from psycopg.rows import dict_row
from pymysql.cursors import DictCursor
from sqlalchemy import event
from sqlalchemy import exc

from flask_serversession import ServerSession
from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Capability
from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Gone
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend
from flask_serversession.backends.sqlalchemy.runner import DirectRunner
from flask_serversession.errors import BackendError
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import RecordError
from flask_serversession.errors import SessionTooLargeError
from flask_serversession.record import FORMAT
from flask_serversession.record import MAGIC
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.record import frame
from flask_serversession.record import key_of
from flask_serversession.testing import BackendContract
from flask_serversession.testing import FakeClock
from flask_serversession.testing import Spoil

from ..servers import MariaDBServer
from ..servers import PostgresServer
from ..servers import Server
from ..servers import find_free_port

KEY = "s:" + "0123456789abcdef" * 4
Make = Callable[..., SQLAlchemyBackend]


def record(
    clock: Callable[[], float], data: bytes = b"data", **fields: t.Any
) -> Record:
    now = clock()
    lives = fields.pop("lives", 600)
    defaults = {
        "version": 1,
        "created_at": now,
        "touched_at": now,
        "expires_at": now + lives,
    }
    return Record(data=data, **{**defaults, **fields})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'sessions.db'}"


@pytest.fixture(params=["sqlite", "memory", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """Give the URL of each database in turn."""
    return get_url(request, request.param)


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Start a server that the test may stop and whose log it may read."""
    servers: dict[str, tuple[type[Server], Callable[[], Server]]] = {
        "postgresql": (PostgresServer, lambda: PostgresServer(log_statement="all")),
        "mariadb": (MariaDBServer, lambda: MariaDBServer(general_log=True)),
    }
    server, make = servers[request.param]
    # Starts or skips as configured.
    get_url(request, request.param)
    assert server.is_available()
    with make() as running:
        yield running


def get_url(request: pytest.FixtureRequest, name: str) -> str:
    if name == "memory":
        return "sqlite://"
    if name == "sqlite":
        return t.cast(str, request.getfixturevalue("sqlite_url"))
    fixtures = {
        "postgresql": "postgres_server",
        "pgbouncer": "pgbouncer_server",
        "mariadb": "mariadb_server",
    }
    return t.cast(Server, request.getfixturevalue(fixtures[name])).url


@pytest.fixture
def make(clock: FakeClock) -> Iterator[Make]:
    """Make backends on tables that nobody else uses, dropped afterwards."""
    table = f"t{uuid.uuid4().hex[:12]}"

    with contextlib.ExitStack() as stack:

        def make(database: str | sa.Engine, **options: t.Any) -> SQLAlchemyBackend:
            options = {"table_name": table, "clock": clock, **options}
            if isinstance(database, str):
                backend = SQLAlchemyBackend.from_url(database, **options)
            else:
                backend = SQLAlchemyBackend(database, **options)
            stack.callback(drop, backend)
            return backend

        yield make


@pytest.fixture
def make_engine() -> Iterator[Callable[..., sa.Engine]]:
    """Make engines as an application would."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: t.Any) -> sa.Engine:
            engine = sa.create_engine(url, **options)
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", use_wal)
            stack.callback(engine.dispose)
            return engine

        yield make


def use_wal(connection: t.Any, _: t.Any) -> None:
    # Otherwise each write waits for the disk, and touches do not wait for that.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def drop(backend: SQLAlchemyBackend) -> None:
    with contextlib.suppress(exc.SQLAlchemyError):
        backend.table.drop(engine_of(backend), checkfirst=True)
    engine_of(backend).dispose()


def engine_of(backend: SQLAlchemyBackend) -> sa.Engine:
    return backend._engine


def set_column(backend: SQLAlchemyBackend, key: str, **values: t.Any) -> None:
    """Write into the table behind the backend's back."""
    table = backend.table
    statement = sa.update(table).where(table.c["key"] == key).values(values)
    with engine_of(backend).connect() as connection:
        assert connection.execute(statement).rowcount == 1
        connection.commit()


def get_row(backend: SQLAlchemyBackend, key: str) -> sa.Row[t.Any]:
    statement = sa.select(backend.table).where(backend.table.c["key"] == key)
    with engine_of(backend).connect() as connection:
        return connection.execute(statement).one()


@contextlib.contextmanager
def recording(engine: sa.Engine) -> Iterator[list[str]]:
    """Collect the statements that SQLAlchemy executes."""
    statements: list[str] = []

    def before_cursor_execute(_1: t.Any, _2: t.Any, statement: str, *_: t.Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", before_cursor_execute)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", before_cursor_execute)


# -- the contract


class Contract(BackendContract):
    """Runs on an engine of the backend's own; the second backend is given one."""

    database: t.ClassVar[str]

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest) -> str:
        return get_url(request, self.database)

    @pytest.fixture
    def backend(self, clock: FakeClock, url: str, make: Make) -> Backend:
        return make(url)

    @pytest.fixture
    def second_backend(
        self,
        backend: Backend,
        url: str,
        make: Make,
        make_engine: Callable[..., sa.Engine],
    ) -> Backend | None:
        return make(make_engine(url))

    @pytest.fixture
    def dead_backend(self, url: str, make: Make) -> Backend | None:
        dead = sa.make_url(url).set(port=find_free_port())
        return make(dead.render_as_string(hide_password=False))

    @pytest.fixture
    def spoil(self, backend: SQLAlchemyBackend) -> Spoil:
        def spoil(key: str, reason: str) -> None:
            data = bytearray(get_row(backend, key).data)
            data[1 if reason == "newer" else 0] = 99
            set_column(backend, key, data=bytes(data))

        return spoil


class TestSQLite(Contract):
    database = "sqlite"

    @pytest.fixture
    def dead_backend(self, tmp_path: Path, make: Make) -> Backend | None:
        return make(f"sqlite:///{tmp_path / 'missing' / 'sessions.db'}")


class TestPostgreSQL(Contract):
    database = "postgresql"


class TestMariaDB(Contract):
    database = "mariadb"


@pytest.fixture(
    params=[
        "memory",
        "pgbouncer",
        "mariadb+pymysql",
        *("given sqlite", "given postgresql", "given mariadb"),
    ]
)
def other_backend(
    request: pytest.FixtureRequest, make: Make, make_engine: Callable[..., sa.Engine]
) -> SQLAlchemyBackend:
    """Make a backend in each way that the contract does not go."""
    given, _, name = request.param.rpartition(" ")
    # SQLAlchemy has a second name for nearly the same dialect.
    url = get_url(request, name.partition("+")[0])
    if "+" in name:
        url = url.replace("mysql+", "mariadb+")
    return make(make_engine(url) if given else url)


def test_every_operation_works_on_every_kind_of_engine(
    other_backend: SQLAlchemyBackend, clock: FakeClock
) -> None:
    backend, now = other_backend, clock()
    first = record(clock, b"\x00\xff", user="42", meta={"a": "\u044f"})
    assert backend.load(KEY) is None
    assert backend.create(KEY, first) is True
    assert backend.create(KEY, record(clock)) is False
    assert backend.load(KEY) == first
    assert backend.touch(KEY, now + 1, now + 900) is True
    touched = dataclasses.replace(first, touched_at=now + 1, expires_at=now + 900)
    assert backend.replace(KEY, first, 7) == Conflict(touched)
    assert backend.replace(KEY, record(clock, b"new", user="42"), 1) == Replaced(2)
    new = record(clock, b"new", user="42", version=2)
    assert backend.load_many([KEY, "absent"]) == {KEY: new}
    assert list(backend.iterate()) == [(KEY, new)]
    assert backend.keys_of_user("42") == [KEY]
    assert backend.create("a ", record(clock, lives=10)) is True
    assert backend.create("a", record(clock, TOMBSTONE_DATA)) is True
    assert backend.touch("a", now, now + 900) is False
    assert backend.delete("a") is False
    assert {key for key, _ in backend.iterate()} == {KEY, "a "}
    assert backend.count() == 2
    clock.advance(20)
    assert backend.count() == 1
    assert backend.prune(10) == 1
    assert backend.create("a", record(clock)) is False
    assert backend.delete(KEY) is True
    assert backend.replace(KEY, new, 2) == Gone()
    assert backend.touch(KEY, now, now + 900) is False


def test_one_of_many_replaces_wins_on_every_kind_of_engine(
    other_backend: SQLAlchemyBackend, clock: FakeClock
) -> None:
    other_backend.create(KEY, record(clock))
    for version in range(1, 11):
        results: list[object] = []

        def replace(number: int, version: int, results: list[object]) -> None:
            mine = record(clock, b"%d of %d" % (number, version))
            results.append(other_backend.replace(KEY, mine, version))

        run_threads([functools.partial(replace, n, version, results) for n in range(4)])
        loaded = other_backend.load(KEY)
        assert loaded is not None
        assert results.count(Replaced(version + 1)) == 1
        assert results.count(Conflict(loaded)) == 3


# -- one statement an operation


def operations(
    backend: SQLAlchemyBackend, clock: FakeClock
) -> dict[str, Callable[[], object]]:
    """Give each operation with arguments with which it finds what it looks for."""
    now = clock()
    return {
        "create": lambda: backend.create(KEY, record(clock, user="42")),
        "load": lambda: backend.load(KEY),
        "touch": lambda: backend.touch(KEY, now, now + 900),
        "replace": lambda: backend.replace(KEY, record(clock, b"new", user="42"), 1),
        "keys_of_user": lambda: backend.keys_of_user("42"),
        "load_many": lambda: backend.load_many([KEY, "absent", KEY]),
        "iterate": lambda: list(backend.iterate()),
        "count": lambda: backend.count(),
        "prune": lambda: backend.prune(10) == 0,
        "delete": lambda: backend.delete(KEY),
    }


@pytest.mark.parametrize("is_given", [False, True], ids=["url", "engine"])
def test_every_operation_is_one_statement(
    url: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_given: bool,
) -> None:
    engine = make_engine(url) if is_given else None
    backend = make(engine or url)
    backend.create_tables()
    # Also listeners of the application's engine see them, except those in memory,
    # which are executed by another one.
    listened = engine if engine and url != "sqlite://" else engine_of(backend)
    for name, operation in operations(backend, clock).items():
        with recording(listened) as statements:
            assert operation() not in (None, False, [], Gone()), name
        verbs = [statement.split()[0] for statement in statements]
        expected = {
            "create": ["INSERT"],
            "touch": ["UPDATE"],
            "replace": ["UPDATE"],
            "prune": ["WITH"] if "postgres" in url else ["DELETE"],
            "delete": ["DELETE"],
        }
        assert verbs == expected.get(name, ["SELECT"])


def test_loading_nothing_is_one_statement(url: str, make: Make) -> None:
    backend = make(url)
    backend.create_tables()
    with recording(engine_of(backend)) as statements:
        assert backend.load(KEY) is None
    assert len(statements) == 1


LOGGED = re.compile(r"(?:statement|execute [^:]*|Query\t|Execute\t):?\s*(\S.*)")


def read_log(server: Server) -> list[str]:
    path = server.log
    if isinstance(server, MariaDBServer):
        assert server.general_log is not None
        path = server.general_log
    time.sleep(0.2)  # the server writes when it likes
    lines = path.read_text(errors="replace").splitlines()
    found = (LOGGED.search(line) for line in lines)
    return [match[1] for match in found if match]


@pytest.mark.parametrize("is_given", [False, True], ids=["own", "given"])
def test_the_server_gets_these_statements_and_no_others(
    server: Server,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_given: bool,
) -> None:
    backend = make(make_engine(server.url) if is_given else server.url)
    backend.create_tables()
    todo = operations(backend, clock)
    before = len(read_log(server))
    for operation in todo.values():
        operation()
    statements = read_log(server)[before:]
    assert len(statements) == len(todo), statements
    log = " ".join(statements)
    assert not re.search(r"\b(BEGIN|COMMIT|ROLLBACK|SET autocommit)\b", log, re.I)


def test_an_operation_is_one_round_trip_on_postgresql(
    request: pytest.FixtureRequest, make: Make, tmp_path: Path
) -> None:
    backend = make(get_url(request, "postgresql"))
    backend.load(KEY)
    trace = tmp_path / "trace"
    with trace.open("wb") as file:
        connection = engine_of(backend).raw_connection()
        driver_connection = t.cast(t.Any, connection.driver_connection)
        driver_connection.pgconn.trace(file.fileno())
        connection.close()
        for _ in range(20):
            backend.load(KEY)
        driver_connection.pgconn.untrace()
    # One more prepares the statement, which psycopg does when it comes again.
    sent = re.findall(r"\tF\t\d+\t(?:Sync|Query)\b", trace.read_text())
    assert len(sent) in (20, 21)


# -- the table


@pytest.mark.parametrize("operation", ["create", "load"])
def test_the_table_is_created_on_first_use(
    url: str, make: Make, clock: FakeClock, operation: str
) -> None:
    backend = make(url)
    with recording(engine_of(backend)) as statements:
        operations(backend, clock)[operation]()
    assert len(statements) == 5  # tried, table, two indexes, tried again
    with recording(engine_of(backend)) as statements:
        backend.load(KEY)
    assert len(statements) == 1
    indexes = sa.inspect(engine_of(backend)).get_indexes(backend.table.name)
    assert {tuple(index["column_names"]) for index in indexes} == {
        ("expires_at",),
        ("user",),
    }


@pytest.mark.parametrize("turn", range(5))
def test_several_workers_may_create_the_table_at_the_same_time(
    url: str, clock: FakeClock, make: Make, turn: int
) -> None:
    if url == "sqlite://":
        pytest.skip("each has a database of its own")
    workers = [make(url) for _ in range(6)]
    barrier = threading.Barrier(len(workers))
    results: list[object] = []

    def work(worker: SQLAlchemyBackend, key: str) -> None:
        try:
            # Connecting takes much longer than the rest.
            engine_of(worker).connect().close()
            barrier.wait(10)
            results.append(worker.create(key, record(clock)))
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            results.append(error)

    run_threads(
        [functools.partial(work, worker, str(n)) for n, worker in enumerate(workers)]
    )
    assert results == [True] * len(workers)
    assert workers[0].count() == len(workers)
    indexes = sa.inspect(engine_of(workers[0])).get_indexes(workers[0].table.name)
    assert len(indexes) == 2


def run_threads(functions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_creating_the_table_twice_does_nothing(url: str, make: Make) -> None:
    backend = make(url)
    backend.create_tables()
    backend.create_tables()
    assert backend.count() == 0


def test_a_missing_table_is_explained_where_it_must_not_be_created(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url, create_table=False)
    for name, operation in operations(backend, clock).items():
        with pytest.raises(BackendUnavailableError) as info:
            operation()
        assert str(info.value) == (
            f"The table '{backend.table.name}' does not exist; run"
            ' "flask sessions init" or add it by a migration.'
        )
        assert (info.value.backend, info.value.operation) == ("sqlalchemy", name)
        assert info.value.refused
    backend.create_tables()
    assert backend.create(KEY, record(clock))


def test_a_table_that_was_dropped_is_created_again(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url)
    for _ in range(8):  # often enough for psycopg to prepare it
        backend.load(KEY)
    backend.table.drop(engine_of(backend))
    assert backend.create(KEY, record(clock))
    assert backend.load(KEY) is not None


def test_backends_share_the_table_of_one_metadata(make: Make, sqlite_url: str) -> None:
    metadata = sa.MetaData()
    one = make(sqlite_url, metadata=metadata, table_name="sessions")
    two = make(sqlite_url, metadata=metadata, table_name="sessions")
    other = make(sqlite_url, metadata=metadata, table_name="other")
    assert one.table is two.table is metadata.tables["sessions"]
    assert set(metadata.tables) == {"sessions", "other"}
    assert other.table.metadata is metadata


def test_the_schema_of_the_metadata_counts(make: Make, sqlite_url: str) -> None:
    metadata = sa.MetaData(schema="app")
    one = make(sqlite_url, metadata=metadata, table_name="sessions")
    two = make(sqlite_url, metadata=metadata, table_name="sessions", schema="app")
    assert one.table is two.table is metadata.tables["app.sessions"]


def test_a_metadata_that_was_reflected_is_left_alone(
    url: str, make: Make, make_engine: Callable[..., sa.Engine], clock: FakeClock
) -> None:
    if url == "sqlite://":
        pytest.skip("Nothing is left of it.")
    make(url).create_tables()
    first = make(url)
    first.load(KEY)
    metadata = sa.MetaData()
    engine = make_engine(url)
    metadata.reflect(engine, only=[first.table.name])
    before = metadata.tables[first.table.name]
    backend = make(engine, metadata=metadata)
    for operation in operations(backend, clock).values():
        operation()
    assert metadata.tables[first.table.name] is before


def test_rows_are_dynamic_whatever_the_servers_default_is(
    server: Server, make: Make, make_engine: Callable[..., sa.Engine]
) -> None:
    if not isinstance(server, MariaDBServer):
        pytest.skip("Only MariaDB and MySQL have it.")
    with make_engine(server.url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("SET GLOBAL innodb_default_row_format=compact")
    assert make(server.url).load(KEY) is None


def test_a_schema_that_needs_quotes_will_do(
    request: pytest.FixtureRequest,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
) -> None:
    url = get_url(request, "postgresql")
    with make_engine(url).begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA IF NOT EXISTS "my-%%app"')
    backend = make(url, schema="my-%app")
    for operation in operations(backend, clock).values():
        operation()
    assert backend.create(KEY, record(clock))
    assert backend.load(KEY) == record(clock)


def test_a_table_of_the_application_is_not_taken_over(
    make: Make, sqlite_url: str
) -> None:
    metadata = sa.MetaData()
    sa.Table("sessions", metadata, sa.Column("id", sa.Integer(), primary_key=True))
    with pytest.raises(ValueError, match="another table 'sessions'"):
        make(sqlite_url, metadata=metadata, table_name="sessions")


def test_the_metadata_of_an_application_makes_the_same_table(
    url: str, make: Make, clock: FakeClock
) -> None:
    metadata = sa.MetaData(
        naming_convention={"ix": "ix__%(table_name)s__%(column_0_name)s"}
    )
    backend = make(url, metadata=metadata, create_table=False)
    metadata.create_all(engine_of(backend))
    assert backend.create(KEY, record(clock, user="42"))
    assert backend.keys_of_user("42") == [KEY]
    backend.create_tables()


def test_the_table_can_live_in_a_schema(
    request: pytest.FixtureRequest, make: Make, clock: FakeClock
) -> None:
    backend = make(get_url(request, "postgresql"), schema="Web Sessions")
    with pytest.raises(BackendError, match="create_tables"):
        backend.load(KEY)
    with engine_of(backend).connect() as connection:
        connection.execute(sa.schema.CreateSchema("Web Sessions", if_not_exists=True))
    for operation in operations(backend, clock).values():
        assert operation() not in (None, False, [], Gone())


@pytest.mark.parametrize(
    "name", ["sessions-2", "Sessions", "order", "a b", "ü", "a:b", "a%b"]
)
def test_any_table_name_works(
    url: str, make: Make, clock: FakeClock, name: str
) -> None:
    backend = make(url, table_name=name)
    for operation in operations(backend, clock).values():
        assert operation() not in (None, False, [], Gone())


def explain(
    backend: SQLAlchemyBackend, statement: sa.Executable, **values: t.Any
) -> str:
    engine = engine_of(backend)
    word = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    plans: list[str] = []

    def before(*arguments: t.Any) -> tuple[str, t.Any]:
        return f"{word} {arguments[2]}", arguments[3]

    event.listen(engine, "before_cursor_execute", before, retval=True)
    try:
        with engine.connect() as connection:
            result = t.cast(
                "sa.CursorResult[t.Any]", connection.execute(statement, values)
            )
            cursor = result.context.cursor
            plans += [str(row) for row in cursor.fetchall()]
    finally:
        event.remove(engine, "before_cursor_execute", before)
    return "\n".join(plans)


def test_the_database_uses_the_indexes(url: str, make: Make, clock: FakeClock) -> None:
    backend = make(url)
    now = clock()
    backend.create_tables()
    rows = [
        {
            "key": f"{number:064x}",
            "data": frame(b"data" * 100),
            "version": 1,
            "created_at": now,
            "touched_at": now,
            # Few have expired, as everywhere where cleaning up works.
            "expires_at": now + number - 20,
            # Hardly anybody is logged in.
            "user": str(number % 2) if number < 40 else None,
            "meta": "",
        }
        for number in range(5000)
    ]
    with engine_of(backend).connect() as connection:
        connection.execute(sa.insert(backend.table), rows)
        name = backend.table.name
        analyze = f"ANALYZE {'TABLE ' if 'mysql' in url else ''}{name}"
        connection.exec_driver_sql(analyze)
    statements = backend._statements
    table = backend.table.name
    columns = {"key_": rows[99]["key"], "now": now}
    for statement in (statements.load, statements.delete):
        plan = explain(backend, statement, **columns)
        assert re.search(r"PRIMARY|_pkey|autoindex", plan), plan
    for number in (1, 20, 500):
        keys = [row["key"] for row in rows[100 : 100 + number]]
        plan = explain(backend, statements.load_many, keys=keys)
        assert re.search(r"PRIMARY|_pkey|autoindex", plan), plan
    plan = explain(backend, statements.keys_of_user, user_="0")
    assert f"ix_{table}_user" in plan
    plan = explain(backend, statements.prune, now=now, limit=10)
    assert f"ix_{table}_expires_at" in plan
    if "mysql" not in url:
        # MariaDB explains a DELETE by the keys it could use.
        assert re.search(r"PRIMARY|_pkey|autoindex", plan), plan
    plan = explain(backend, statements.page, after=rows[4000]["key"])
    assert re.search(r"PRIMARY|_pkey|autoindex", plan), plan
    assert not re.search(r"Sort|TEMP B-TREE|filesort", plan), plan


def test_listing_a_user_costs_what_that_user_has(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url, prefix="s:")
    backend.create_tables()
    now = clock()
    users = [str(number % 1_000) for number in range(9_000)] + ["many"] * 1_000
    rows = [
        {
            "key": key_of(str(number), "s:"),
            "data": frame(b"data" * 100),
            "version": 1,
            "created_at": now,
            "touched_at": now,
            "expires_at": now + 600,
            "user": user,
            "meta": "",
        }
        for number, user in enumerate(users)
    ]
    with engine_of(backend).connect() as connection:
        connection.execute(sa.insert(backend.table), rows)
        name = backend.table.name
        analyze = f"ANALYZE {'TABLE ' if 'mysql' in url else ''}{name}"
        connection.exec_driver_sql(analyze)
    for user in ("7", "many", "nobody"):
        plan = explain(backend, backend._statements.keys_of_user, user_=user)
        assert f"ix_{name}_user" in plan, plan
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="key", SESSION_BACKEND=backend, SESSION_KEY_PREFIX="s:"
    )
    operator = ServerSession(app, clock=clock)
    with app.app_context():
        for user, number, loads in (("7", 9, 1), ("many", 1_000, 2), ("nobody", 0, 0)):
            with recording(engine_of(backend)) as statements:
                assert len(operator.sessions_of(user)) == number
            assert [text.split()[0] for text in statements] == ["SELECT"] * (1 + loads)
            with recording(engine_of(backend)) as statements:
                assert operator.revoke_user(user) == number
            verbs = collections.Counter(text.split()[0] for text in statements)
            # Twice more, to see that nothing has come meanwhile.
            assert verbs["SELECT"] == (3 if number else 2)
            assert (verbs["DELETE"], len(verbs)) == (number, 2 if number else 1)
        assert operator.count() == 10_000 - 1_009


# -- what is stored


def test_the_row_is_what_the_documentation_says(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url)
    stored = record(clock, b"data", user="42", meta={"user_agent": "ü"}, version=3)
    backend.create(KEY, stored)
    row = get_row(backend, KEY)
    assert row._asdict() == {
        "key": KEY,
        "data": frame(b"data"),
        "version": 3,
        "created_at": stored.created_at,
        "touched_at": stored.touched_at,
        "expires_at": stored.expires_at,
        "user": "42",
        "meta": json.dumps({"user_agent": "ü"}),
    }
    assert row.meta.isascii()


@pytest.mark.parametrize(
    "user",
    [
        "u" * 255,
        "u" * 256,
        "u" * 100_000,
        "☃" * 255,
        "nul\0",
        "lone \ud800 surrogate",
        "space ",
        "line\n",
        "sha256:" + "0" * 64,
        "\N{ZERO WIDTH SPACE}",
    ],
    ids=lambda user: ascii(user[:20]),
)
def test_any_user_is_found_again(
    url: str, make: Make, clock: FakeClock, user: str
) -> None:
    backend = make(url)
    for meta in ({}, {"address": "192.0.2.1"}):
        stored = record(clock, user=user, meta=meta)
        assert backend.create(f"{len(meta)}", stored)
        assert backend.load(f"{len(meta)}") == stored
    assert sorted(backend.keys_of_user(user)) == ["0", "1"]
    assert backend.keys_of_user(user[:-1]) == []
    assert len(get_row(backend, "0").user) <= 255


def test_what_stands_for_a_user_is_the_same_with_every_python(
    make: Make, clock: FakeClock
) -> None:
    backend = make("sqlite://")
    # Printable since Unicode 3, 13 and 15; the last for Python 3.12 and newer alone.
    for number, user in enumerate(("ü", "\U0001fad6", "\U0001fae8")):
        backend.create(str(number), record(clock, user=user))
        digest = hashlib.sha256(user.encode()).hexdigest()
        assert get_row(backend, str(number)).user == f"sha256:{digest}"


def test_a_database_need_not_have_the_characters_of_a_user(
    request: pytest.FixtureRequest, make: Make, clock: FakeClock
) -> None:
    url = sa.make_url(get_url(request, "postgresql"))
    name = f"latin_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(
            f"CREATE DATABASE {name} ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'"
            " TEMPLATE template0"
        )
    backend = make(url.set(database=name).render_as_string(hide_password=False))
    for number, user in enumerate(("ada", "é", "żółć", "🦊")):
        stored = record(clock, user=user, meta={"user_agent": "☃"})
        assert backend.create(str(number), stored)
        assert backend.replace(str(number), stored, 1) == Replaced(2)
        assert backend.load(str(number)) == dataclasses.replace(stored, version=2)
        assert backend.keys_of_user(user) == [str(number)]


@pytest.mark.parametrize("is_watched", [False, True], ids=["direct", "watched"])
@pytest.mark.parametrize("is_given", [False, True], ids=["own", "given"])
def test_a_migration_of_the_table_is_not_noticed(
    request: pytest.FixtureRequest,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_watched: bool,
    is_given: bool,
) -> None:
    url = get_url(request, "postgresql")
    backend = make(make_engine(url) if is_given else url)
    if is_watched:
        event.listen(engine_of(backend), "after_execute", lambda *_: None)
    stored = record(clock)
    backend.create(KEY, stored)
    for _ in range(12):  # psycopg prepares what it has sent five times
        backend.load(KEY)
        assert len([*backend.iterate()]) == 1
        assert backend.replace(KEY, stored, 99) == Conflict(stored)
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(
            f'ALTER TABLE {backend.table.name} ALTER COLUMN "user" TYPE varchar(300)'
        )
    for _ in range(3):
        assert backend.load(KEY) == stored
        assert len([*backend.iterate()]) == 1
        assert backend.replace(KEY, stored, 99) == Conflict(stored)


def test_listing_and_counting_keep_to_the_prefix(
    url: str, make: Make, clock: FakeClock
) -> None:
    prefixes = ["app:", "a%p:", "APP:", "app", "äpp:", "app:ä", "app:0", ""]
    backends = {prefix: make(url, prefix=prefix) for prefix in prefixes}
    every = make(url)
    if url == "sqlite://":
        pytest.skip("each has a database of its own")
    keys = {prefix: key_of("id", prefix) for prefix in prefixes}
    for prefix, backend in backends.items():
        assert backend.create(keys[prefix], record(clock, user="42"))
    for prefix, backend in backends.items():
        assert backend.keys_of_user("42") == [keys[prefix]]
        assert [key for key, _ in backend.iterate()] == [keys[prefix]]
        assert backend.count() == 1
    assert sorted(every.keys_of_user("42")) == sorted(keys.values())
    assert sorted(key for key, _ in every.iterate()) == sorted(keys.values())
    assert every.count() == len(keys)


def test_a_prefix_that_leaves_no_room_is_refused(make: Make) -> None:
    make("sqlite://", prefix="p" * 191)
    with pytest.raises(ValueError, match="192 characters"):
        make("sqlite://", prefix="p" * 192)


def test_iterate_reads_page_by_page(url: str, make: Make, clock: FakeClock) -> None:
    backend = make(url)
    for number in range(250):
        lives = -1 if number % 3 == 0 else 600
        backend.create(f"{number:03}", record(clock, lives=lives))
    backend.create("999", record(clock, TOMBSTONE_DATA))
    with recording(engine_of(backend)) as statements:
        found = backend.iterate()
        assert next(found)[0] == "001"
        assert len(statements) == 1
        keys = ["001", *(key for key, _ in found)]
    assert keys == [f"{n:03}" for n in range(250) if n % 3]
    assert len(statements) == 3


def test_iterate_skips_what_cannot_be_read(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url)
    for name in ("damaged", "good", "newer"):
        backend.create(name, record(clock))
    set_column(backend, "damaged", data=b"nonsense")
    set_column(backend, "newer", data=bytes([MAGIC, FORMAT + 1]))
    assert [key for key, _ in backend.iterate()] == ["good"]


@pytest.mark.parametrize("limit", [3, 10, 20])
def test_prune_deletes_the_expired_only(
    url: str, make: Make, clock: FakeClock, limit: int
) -> None:
    backend = make(url)
    for number in range(20):
        lives = 10 if number % 2 else 600
        backend.create(f"{number:02}", record(clock, lives=lives))
    clock.advance(10)
    assert backend.prune(limit) == min(limit, 10)
    assert backend.prune(100) == 10 - min(limit, 10)
    assert backend.prune(100) == 0
    assert sorted(key for key, _ in backend.iterate()) == [
        f"{number:02}" for number in range(0, 20, 2)
    ]


def test_prune_does_not_wait_for_another_worker_on_postgresql(
    request: pytest.FixtureRequest, make: Make, clock: FakeClock
) -> None:
    backend = make(get_url(request, "postgresql"))
    for number in range(10):
        backend.create(str(number), record(clock, lives=number + 1))
    clock.advance(100)
    other = sa.create_engine(engine_of(backend).url, poolclass=sa.NullPool)
    with other.connect() as connection:
        statement = backend._statements.prune
        values = {"now": clock(), "limit": 4}
        assert connection.execute(statement, values).rowcount == 4
        assert backend.prune(100) == 6
        connection.rollback()
    assert backend.prune(100) == 4


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x", "damaged"),
        (bytes([MAGIC]), "damaged"),
        (bytes([MAGIC, FORMAT]), "damaged"),
        (bytes([MAGIC, 0]) + b"data" * 4, "damaged"),
        (frame(b"data")[:-1], "damaged"),
        (frame(b"data") + b"x", "damaged"),
        (b"\x80\x04\x95pickle", "damaged"),
        (bytes([255, 255]) + b"data" * 4, "damaged"),
        (bytes([MAGIC, FORMAT + 1]) + b"data" * 4, "newer"),
        (bytes([MAGIC, 255]), "newer"),
    ],
    ids=lambda value: value.hex()[:8] if isinstance(value, bytes) else value,
)
def test_data_that_is_not_ours_is_left_alone(
    url: str, make: Make, clock: FakeClock, data: bytes, reason: str
) -> None:
    backend = make(url)
    backend.create(KEY, record(clock, version=2))
    set_column(backend, KEY, data=data)
    with pytest.raises(RecordError) as info:
        backend.load(KEY)
    assert info.value.reason == reason
    with pytest.raises(RecordError) as info:
        backend.replace(KEY, record(clock, b"mine"), 1)
    assert info.value.reason == reason
    assert backend.create(KEY, record(clock)) is False
    if data[:2] != bytes([MAGIC, FORMAT]):
        with pytest.raises(RecordError) as info:
            backend.replace(KEY, record(clock, b"mine"), 2)
        assert info.value.reason == reason
        assert backend.touch(KEY, clock(), clock() + 900) is False
        assert get_row(backend, KEY).expires_at == clock() + 600
    assert get_row(backend, KEY).data == data
    if reason == "newer":
        with pytest.raises(RecordError) as info:
            backend.delete(KEY)
        assert info.value.reason == "newer"
        assert get_row(backend, KEY).data == data
    else:
        assert backend.delete(KEY) is True
        assert backend.load(KEY) is None


def test_text_in_the_data_column_is_damage(
    sqlite_url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(sqlite_url)
    backend.create(KEY, record(clock))
    with engine_of(backend).connect() as connection:
        name = backend.table.name
        connection.exec_driver_sql(f"UPDATE {name} SET data = 'nonsense'")
    with pytest.raises(RecordError) as info:
        backend.load(KEY)
    assert info.value.reason == "damaged"
    assert backend.touch(KEY, clock(), clock() + 900) is False
    assert backend.delete(KEY) is True


def test_nonsense_in_the_meta_column_is_damage(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url)
    backend.create(KEY, record(clock))
    for meta in ("{", "[]", "nonsense"):
        set_column(backend, KEY, meta=meta)
        with pytest.raises(RecordError) as info:
            backend.load(KEY)
        assert info.value.reason == "damaged"


def test_a_time_that_makes_no_sense_does_not_hide_a_users_other_sessions(
    make: Make, sqlite_url: str, clock: FakeClock
) -> None:
    backend = make(sqlite_url)
    for key in (KEY, "s:other"):
        backend.create(key, record(clock, user="42"))
    # Only SQLite takes it.
    text = sa.update(backend.table).where(backend.table.c["key"] == KEY)
    with engine_of(backend).connect() as connection:
        connection.execute(text.values(expires_at=sa.literal("soon", sa.Text())))
    assert sorted(backend.keys_of_user("42")) == [KEY, "s:other"]
    assert list(backend.load_many([KEY, "s:other"])) == ["s:other"]
    assert backend.delete(KEY) is True


# -- the application's transactions


@pytest.fixture(
    params=["sqlite", "one connection", "memory", "static", "postgresql", "mariadb"]
)
def application(
    request: pytest.FixtureRequest, make_engine: Callable[..., sa.Engine]
) -> sa.Engine:
    """Make an application's engine with a table of the application's."""
    name = request.param
    options: dict[str, t.Any] = {}
    if name in ("static", "one connection"):
        # As Flask-SQLAlchemy does it for databases in memory.
        options["poolclass"] = sa.StaticPool
        options["connect_args"] = {"check_same_thread": False}
        name = "memory" if name == "static" else "sqlite"
    engine = make_engine(get_url(request, name), **options)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS notes")
        connection.exec_driver_sql("CREATE TABLE notes (note INTEGER)")
    return engine


def count_notes(connection: sa.Connection) -> int:
    return connection.exec_driver_sql("SELECT count(*) FROM notes").scalar_one()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_of_the_application_stays_its_own(
    application: sa.Engine, make: Make, clock: FakeClock, end: str
) -> None:
    backend = make(application)
    backend.create_tables()
    in_file = "memory" not in str(application.url) and str(application.url).startswith(
        "sqlite:///"
    )
    with application.connect() as connection:
        if in_file:
            # The one writer is the application, once it has written.
            assert backend.create(KEY, record(clock))
        connection.exec_driver_sql("INSERT INTO notes VALUES (1)")
        if not in_file:
            for name, operation in operations(backend, clock).items():
                if name != "delete":
                    assert operation() not in (None, False, [], Gone())
        assert backend.load(KEY) is not None
        assert count_notes(connection) == 1
        getattr(connection, end)()
        assert count_notes(connection) == (1 if end == "commit" else 0)
    assert backend.load(KEY) is not None
    with application.connect() as connection:
        assert count_notes(connection) == (1 if end == "commit" else 0)


def test_an_engine_in_memory_is_left_alone(
    caplog: pytest.LogCaptureFixture, make: Make, make_engine: Callable[..., sa.Engine]
) -> None:
    engine = make_engine("sqlite://")
    with caplog.at_level("INFO"):
        backend = make(engine)
    assert "of their own" in caplog.text
    assert backend.load(KEY) is None
    assert not sa.inspect(engine).has_table(backend.table.name)


def test_writes_are_committed_where_the_application_begins_by_itself(
    sqlite_url: str, make: Make, make_engine: Callable[..., sa.Engine], clock: FakeClock
) -> None:
    # What SQLAlchemy's documentation of SQLite advises for savepoints.
    engine = make_engine(sqlite_url)
    event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))
    backend = make(engine)
    assert backend.create(KEY, record(clock))
    assert backend.replace(KEY, record(clock, b"new"), 1) == Replaced(2)
    other = make(sqlite_url)
    assert other.load(KEY) is not None
    assert backend.delete(KEY)
    assert other.load(KEY) is None


# -- what applications do to all engines, by listening on their class


@contextlib.contextmanager
def listening(target: t.Any, name: str, function: t.Any) -> Iterator[None]:
    event.listen(target, name, function)
    try:
        yield
    finally:
        event.remove(target, name, function)


def begin_by_statement(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def begin_and_set(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    else:
        begin_by_statement(connection)


def no_transactions_by_driver(dbapi_connection: t.Any, _: t.Any) -> None:
    # SQLAlchemy's recipe for SQLite, and what its users make of it for the others.
    if hasattr(dbapi_connection, "isolation_level"):
        dbapi_connection.isolation_level = None


def transactions_by_driver(dbapi_connection: t.Any, _: t.Any) -> None:
    if isinstance(dbapi_connection, sqlite3.Connection):
        dbapi_connection.isolation_level = "IMMEDIATE"
    elif callable(dbapi_connection.autocommit):
        dbapi_connection.autocommit(False)
    else:
        dbapi_connection.autocommit = False


def set_something(dbapi_connection: t.Any, *_: t.Any) -> None:
    """Set a parameter of the connection, and leave the transaction open."""
    is_sqlite = isinstance(dbapi_connection, sqlite3.Connection)
    is_mysql = type(dbapi_connection).__module__.startswith("pymysql")
    cursor = dbapi_connection.cursor()
    if is_sqlite:
        cursor.execute("PRAGMA foreign_keys=ON")
    elif is_mysql:
        cursor.execute("SET time_zone = '+00:00'")
    else:
        cursor.execute("SET timezone = 'UTC'")
    cursor.close()


def set_by_connection(connection: sa.Connection) -> None:
    # The recipe for a ping that Engine(pool_pre_ping=True) took the place of.
    connection.scalar(sa.select(1))


LISTENERS: dict[str, list[tuple[t.Any, str, t.Any]]] = {
    "the recipe": [
        (sa.Engine, "connect", no_transactions_by_driver),
        (sa.Engine, "begin", begin_by_statement),
    ],
    "begin": [(sa.Engine, "begin", begin_by_statement)],
    "begin, set": [(sa.Engine, "begin", begin_and_set)],
    "transactions": [(sa.Engine, "connect", transactions_by_driver)],
    "set at connect": [(sa.Engine, "connect", set_something)],
    "set at checkout": [(sa.Pool, "checkout", set_something)],
    "ping": [(sa.Engine, "engine_connect", set_by_connection)],
    "ping, the recipe": [
        (sa.Engine, "engine_connect", set_by_connection),
        (sa.Engine, "connect", no_transactions_by_driver),
        (sa.Engine, "begin", begin_by_statement),
    ],
}


@pytest.fixture(params=list(LISTENERS))
def listened(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Have something listen on the classes, and remove it after the test."""
    # What SQLAlchemy keeps after the last listener is gone.
    for owner in (sa.Engine, sa.Connection):
        monkeypatch.setattr(owner, "_has_events", owner._has_events)
    with contextlib.ExitStack() as stack:
        for listener in LISTENERS[request.param]:
            stack.enter_context(listening(*listener))
        yield request.param


@pytest.mark.parametrize("is_given", [False, True], ids=["own", "given"])
def test_each_operation_is_committed_whatever_listens_to_all_engines(
    url: str,
    listened: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_given: bool,
) -> None:
    if url == "sqlite://" and is_given:
        pytest.skip("It is not used.")
    backend = make(make_engine(url) if is_given else url)
    # By the pool's own way, which no listener on an engine disturbs.
    other = make(url) if url != "sqlite://" else backend
    assert backend.create(KEY, record(clock, user="ada"))
    assert other.load(KEY) is not None
    assert backend.touch(KEY, clock(), clock() + 900)
    assert backend.replace(KEY, record(clock, b"new", user="ada"), 1) == Replaced(2)
    assert isinstance(backend.replace(KEY, record(clock), 1), Conflict)
    assert other.load(KEY) == record(clock, b"new", version=2, user="ada")
    assert backend.keys_of_user("ada") == [KEY]
    assert backend.count() == len(list(backend.iterate())) == 1
    assert list(backend.load_many([KEY])) == [KEY]
    assert backend.create("other", record(clock, lives=-1))
    assert backend.prune(10) == 1
    assert other.prune(10) == 0
    assert backend.delete(KEY)
    assert other.load(KEY) is None
    backend.create_tables()


def test_sessions_are_not_in_transactions_whatever_listens_to_all_engines(
    server: Server, listened: str, make: Make, clock: FakeClock
) -> None:
    backend = make(server.url)
    backend.create_tables()
    todo = operations(backend, clock)
    before = len(read_log(server))
    for operation in todo.values():
        operation()
    statements = read_log(server)[before:]
    extra = sum(
        bool(re.match(r"SET time|SELECT 1$|SELECT 1 ", statement))
        for statement in statements
    )
    assert not re.search(r"BEGIN|COMMIT|ROLLBACK|ISOLATION", "\n".join(statements))
    assert len(statements) - extra == len(todo)


def test_tracing_of_all_engines_sees_each_statement(
    url: str, make: Make, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sa.Engine, "_has_events", sa.Engine._has_events)
    backend = make(url)
    backend.create_tables()
    seen: list[str] = []

    def trace(_1: t.Any, _2: t.Any, statement: str, *_: t.Any) -> None:
        seen.append(statement)

    with listening(sa.Engine, "before_cursor_execute", trace):
        todo = operations(backend, clock)
        for operation in todo.values():
            operation()
    assert len(seen) == len(todo)


@pytest.mark.parametrize("size", [1, 5])
def test_sessions_never_wait_for_a_connection_of_the_applications_pool(
    url: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    size: int,
) -> None:
    if url == "sqlite://":
        pytest.skip("It has a database of its own.")
    engine = make_engine(url, pool_size=size, max_overflow=0, pool_timeout=0.01)
    backend = make(engine)
    with contextlib.ExitStack() as stack:
        for _ in range(size):
            stack.enter_context(engine.connect())
        with pytest.raises(exc.TimeoutError):
            engine.connect()
        for operation in operations(backend, clock).values():
            operation()
    backend.close()
    assert backend.load(KEY) is None


def test_what_a_given_engine_connects_with_is_borrowed(
    server: Server, make: Make, make_engine: Callable[..., sa.Engine]
) -> None:
    asked: list[str] = []
    engine = make_engine(server.url)
    wrong = sa.make_url(server.url).set(port=find_free_port())

    def connect(
        _1: t.Any, _2: t.Any, _3: list[t.Any], options: dict[str, t.Any]
    ) -> None:
        # As who asks for a token, or finds the primary, for each connection.
        options["port"] = server.port
        asked.append("to connect")

    engine = make_engine(wrong.render_as_string(hide_password=False))
    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", lambda *_: asked.append("to prepare"))
    backend = make(engine)
    # Listeners may come later, too.
    event.listen(engine, "connect", lambda *_: asked.append("more"))
    assert backend.load(KEY) is None
    assert asked == ["to connect", "to prepare", "more"]


@pytest.mark.parametrize("comes_before", [False, True])
def test_what_listens_on_a_given_engine_sees_each_statement(
    url: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    comes_before: bool,
) -> None:
    if url == "sqlite://":
        pytest.skip("It has a database of its own.")
    engine = make_engine(url)
    seen: list[str] = []

    def trace(_1: t.Any, _2: t.Any, statement: str, *_: t.Any) -> None:
        seen.append(statement)

    if comes_before:
        event.listen(engine, "before_cursor_execute", trace)
    backend = make(engine)
    backend.create_tables()
    todo = operations(backend, clock)
    seen.clear()
    if not comes_before:
        event.listen(engine, "before_cursor_execute", trace)
    for operation in todo.values():
        operation()
    assert len(seen) == len(todo)
    event.remove(engine, "before_cursor_execute", trace)


def test_a_given_engine_that_keeps_no_connections_keeps_none_for_sessions(
    server: Server, make: Make, make_engine: Callable[..., sa.Engine]
) -> None:
    backend = make(make_engine(server.url, poolclass=sa.NullPool))
    opened: list[object] = []
    event.listen(engine_of(backend), "connect", lambda *args: opened.append(args))
    assert backend.load(KEY) is None
    before = len(opened)
    assert backend.load(KEY) is None
    assert len(opened) == before + 1


def test_a_given_engine_may_translate_schemas(
    request: pytest.FixtureRequest, make: Make, make_engine: Callable[..., sa.Engine]
) -> None:
    engine = make_engine(get_url(request, "postgresql"))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS tenant_1")
    backend = make(
        engine.execution_options(schema_translate_map={"tenant": "tenant_1"}),
        schema="tenant",
    )
    assert backend.load(KEY) is None
    assert sa.inspect(engine).has_table(backend.table.name, "tenant_1")


def test_nothing_is_read_that_is_not_committed_yet(
    request: pytest.FixtureRequest,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
) -> None:
    url = get_url(request, "mariadb")
    engine = make_engine(url, isolation_level="READ UNCOMMITTED")
    for backend in (
        make(engine),
        make(f"{url}&init_command=SET tx_isolation='READ-UNCOMMITTED'"),
    ):
        backend.create_tables()
        column = backend.table.c["key"]
        with engine.connect() as connection:
            values = {**dict.fromkeys(backend.table.c.keys(), 1), "key": KEY}
            values.update(data=b"", meta="", user=None, expires_at=clock() + 9)
            connection.execute(sa.insert(backend.table).values(values))
            assert connection.execute(sa.select(column)).all()
            assert backend.load(KEY) is None
            connection.rollback()


@pytest.mark.parametrize("is_given", [False, True], ids=["own", "given"])
def test_rows_are_read_whatever_the_application_wants_them_to_be(
    url: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_given: bool,
) -> None:
    def dictionaries(dbapi_connection: t.Any, _: t.Any) -> None:
        if isinstance(dbapi_connection, sqlite3.Connection):
            dbapi_connection.row_factory = lambda _, row: {"row": row}
        elif hasattr(dbapi_connection, "cursorclass"):
            dbapi_connection.cursorclass = DictCursor
        else:
            dbapi_connection.row_factory = dict_row

    if url == "sqlite://" and is_given:
        pytest.skip("It has a database of its own.")
    target: t.Any = make_engine(url) if is_given else sa.Engine
    with listening(target, "connect", dictionaries):
        backend = make(target if is_given else url)
        for operation in operations(backend, clock).values():
            operation()
        assert backend.create("another", record(clock))
        assert backend.load("another") == record(clock)


def test_a_database_without_an_encoding_will_do(
    server: Server,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
) -> None:
    if isinstance(server, MariaDBServer):
        pytest.skip("Only PostgreSQL has it.")
    with make_engine(server.url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE plain ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
            " TEMPLATE template0"
        )
    url = sa.make_url(server.url).set(database="plain").render_as_string(False)
    for backend in (make(url), make(make_engine(url))):
        backend.delete(KEY)
        assert backend.create(KEY, record(clock, user="\u044f", meta={"a": "\u044f"}))
        assert backend.load(KEY) == record(clock, user="\u044f", meta={"a": "\u044f"})


def test_a_given_engine_is_left_as_it_was(
    url: str, make: Make, make_engine: Callable[..., sa.Engine], clock: FakeClock
) -> None:
    engine = make_engine(url, isolation_level="SERIALIZABLE")
    backend = make(engine)
    for operation in operations(backend, clock).values():
        operation()
    assert engine.hide_parameters is False
    with engine.connect() as connection:
        assert connection.get_isolation_level() == "SERIALIZABLE"
    backend.close()
    if url != "sqlite://":
        assert backend.load(KEY) is None


# -- a primary that becomes a replica


class Demotion:
    """Lets a server refuse to write, except on connections that are made later."""

    def __init__(self, server: Server, engine: sa.Engine) -> None:
        self._admin = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
        self._is_mariadb = isinstance(server, MariaDBServer)
        self._has_successor = True
        self.connected = 0
        # Whoever connects finds the new primary.
        event.listen(engine, "do_connect", self._connect)

    def __call__(self, *, has_successor: bool = True) -> None:
        self._has_successor, self.connected = has_successor, 0
        self._set(read_only=True)

    def _connect(self, *_: t.Any) -> None:
        self.connected += 1
        if self._has_successor:
            self._set(read_only=False)

    def _set(self, read_only: bool) -> None:
        with self._admin.connect() as connection:
            if self._is_mariadb:
                connection.exec_driver_sql(f"SET GLOBAL read_only = {read_only:d}")
                return
            value = "on" if read_only else "off"
            connection.exec_driver_sql(
                f"ALTER SYSTEM SET default_transaction_read_only = {value}"
            )
            connection.exec_driver_sql("SELECT pg_reload_conf()")
            # It has reached a connection that says so.
            while True:
                with sa.create_engine(
                    self._admin.url, poolclass=sa.NullPool
                ).connect() as other:
                    shown = "SHOW default_transaction_read_only"
                    if other.exec_driver_sql(shown).scalar() == value:
                        return

    def close(self) -> None:
        self._set(read_only=False)
        self._admin.dispose()


@pytest.mark.parametrize("is_watched", [False, True], ids=["direct", "watched"])
@pytest.mark.parametrize("is_given", [False, True], ids=["own", "given"])
def test_a_switch_over_costs_nobody_a_request(
    server: Server,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_given: bool,
    is_watched: bool,
) -> None:
    url = server.url
    if isinstance(server, MariaDBServer):
        # Who may write to a read-only server is not told.
        with make_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
            for statement in (
                "CREATE USER shop@'127.0.0.1' IDENTIFIED BY 'p'",
                "GRANT ALL ON test.* TO shop@'127.0.0.1'",
            ):
                connection.exec_driver_sql(statement)
        full = sa.make_url(url).set(username="shop", password="p")
        url = full.render_as_string(hide_password=False)
    engine = make_engine(url) if is_given else None
    backend = make(engine or url)
    if is_watched:
        event.listen(engine or engine_of(backend), "after_execute", lambda *_: None)
    backend.create_tables()
    backend.create("old", record(clock))
    demote = Demotion(server, engine or engine_of(backend))
    # Several connections, all of which lead to the old primary.
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(engine_of(backend).connect())
    writes: dict[str, Callable[[], object]] = {
        "create": lambda: backend.create(KEY, record(clock)) is True,
        "replace": lambda: (
            backend.replace(KEY, record(clock, b"new"), 1) == Replaced(2)
        ),
        "touch": lambda: backend.touch(KEY, clock(), clock() + 900),
        "prune": lambda: backend.prune(10) == 0,
        "delete": lambda: backend.delete(KEY),
    }
    try:
        for write in writes.values():
            demote()
            assert write() is True
            assert demote.connected == 1
            # None that is left leads to the old one.
            demote()
            assert write() is not None
        demote(has_successor=False)
        with pytest.raises(BackendUnavailableError):
            backend.create(KEY, record(clock))
        assert backend.load("old") is not None
        with pytest.raises(BackendUnavailableError):
            backend.delete("old")
        demote()
        assert backend.delete("old") is True
    finally:
        demote.close()


def forbid_writing(connection: t.Any) -> None:
    """Have the server itself refuse to write, with 1792, on this connection."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION READ ONLY")


def in_read_only_mode(connection: t.Any) -> None:
    """Stand in for MySQL's read-only mode, 1836, which MariaDB does not have."""
    import pymysql

    query = connection.query

    def refuse(sql: t.Any, *args: t.Any, **options: t.Any) -> t.Any:
        text = sql.decode(errors="replace") if isinstance(sql, bytes) else sql
        if not text.lstrip().upper().startswith(("SELECT", "SET", "ROLLBACK")):
            raise pymysql.err.OperationalError(1836, "Running in read-only mode")
        return query(sql, *args, **options)

    connection.query = refuse


@pytest.mark.parametrize("refuse", [forbid_writing, in_read_only_mode])
@pytest.mark.parametrize("is_given", [False, True], ids=["own", "given"])
def test_whatever_a_mysql_that_was_demoted_says_it_costs_nobody_a_request(
    mariadb_server: MariaDBServer,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    refuse: Callable[[t.Any], None],
    is_given: bool,
) -> None:
    url = mariadb_server.url
    engine = make_engine(url) if is_given else None
    backend = make(engine or url)
    backend.create_tables()
    own = engine_of(backend)
    writes: list[Callable[[], object]] = [
        lambda: backend.create(KEY, record(clock)),
        lambda: backend.replace(KEY, record(clock, b"new"), 1) == Replaced(2),
        lambda: backend.touch(KEY, clock(), clock() + 900),
        lambda: backend.delete(KEY),
    ]
    made: list[object] = []
    event.listen(engine or own, "do_connect", lambda *_: made.append(1))
    for write in writes:
        # The connection that is next in the pool still leads to the old primary.
        with own.connect() as connection:
            pooled: t.Any = connection.connection.driver_connection
        refuse(pooled)
        made.clear()
        assert write() is True
        assert made == [1]


# -- engines that fail


@pytest.mark.parametrize("is_watched", [False, True], ids=["direct", "watched"])
def test_stale_connections_are_replaced_after_a_restart(
    server: Server,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_watched: bool,
) -> None:
    for backend in (make(server.url), make(make_engine(server.url))):
        engine = engine_of(backend)
        backend.delete(KEY)
        todo = operations(backend, clock)
        for name, operation in todo.items():
            # Several, so that the pool holds more than one stale connection.
            connections = [engine.connect() for _ in range(4)]
            for connection in connections:
                connection.close()
            if name in ("create", "load", "replace", "delete"):
                server.restart()
            if not is_watched:
                assert operation() not in (None, False, [], Gone()), name
                continue
            with recording(engine) as statements:
                assert operation() not in (None, False, [], Gone()), name
            assert len([s for s in statements if backend.table.name in s]) <= 2


def test_one_stale_connection_stands_for_all_of_the_pool(
    make: Make, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PostgresServer() as server:
        backend = make(server.url)
        backend.create(KEY, record(clock))
        engine = engine_of(backend)
        connections = [engine.raw_connection() for _ in range(3)]
        for connection in connections:
            connection.close()
        server.restart()
        assert backend.load(KEY) is not None
        tries: list[t.Any] = []
        run = DirectRunner.run

        def count(self: DirectRunner, *arguments: t.Any) -> t.Any:
            tries.append(arguments)
            return run(self, *arguments)

        monkeypatch.setattr(DirectRunner, "run", count)
        with contextlib.closing(engine.raw_connection()):  # the one that is new
            assert backend.load(KEY) is not None
        assert len(tries) == 1


def test_a_server_that_is_down_is_unavailable_and_then_there_again(
    server: Server, make: Make, clock: FakeClock
) -> None:
    backend = make(server.url)
    backend.create(KEY, record(clock))
    server.stop()
    for _ in range(2):
        with pytest.raises(BackendUnavailableError) as info:
            backend.load(KEY)
        assert info.value.operation == "load"
        assert isinstance(info.value.__cause__, exc.DBAPIError)
        assert f"{server.host}:{server.port}" in str(info.value)
    server.start()
    assert backend.load(KEY) is not None


def test_a_server_that_does_not_answer_is_unavailable(
    server: Server,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    clock: FakeClock,
) -> None:
    module = "flask_serversession.backends.sqlalchemy.engines."
    monkeypatch.setattr(module + "_ANSWER_TIMEOUT", 0.5)
    url = server.url
    if isinstance(server, MariaDBServer):
        url += "&read_timeout=1"
    backend = make(url)
    backend.create(KEY, record(clock))
    with server.paused():
        started = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="did not answer in time"):
            backend.load(KEY)
        assert time.monotonic() - started < 3
    assert backend.load(KEY) is not None


class Failures:
    """Let the driver fail at statements, before or after they were carried out."""

    def __init__(self, engine: sa.Engine) -> None:
        self.attempts = 0
        self.errors: list[BaseException] = []
        self._when = ""
        event.listen(engine, "do_connect", self._connect)
        engine.dispose()

    @contextlib.contextmanager
    def __call__(self, when: str, *errors: BaseException) -> Iterator[Failures]:
        self.attempts, self.errors, self._when = 0, list(errors), when
        try:
            yield self
        finally:
            self.errors.clear()
            self._when = ""

    def _connect(
        self, _1: t.Any, _2: t.Any, arguments: list[t.Any], options: dict[str, t.Any]
    ) -> sqlite3.Connection:
        failures = self

        class Cursor(sqlite3.Cursor):
            def execute(self, statement: str, *parameters: t.Any) -> sqlite3.Cursor:
                if not failures._when or statement.startswith("PRAGMA"):
                    return super().execute(statement, *parameters)
                failures.attempts += 1
                error = failures.errors.pop(0) if failures.errors else None
                if failures._when == "after":
                    super().execute(statement, *parameters)
                if error is not None:
                    raise error
                if failures._when != "after":
                    super().execute(statement, *parameters)
                return self

        class Connection(sqlite3.Connection):
            def cursor(self, *_: t.Any) -> sqlite3.Cursor:
                return super().cursor(Cursor)

        return sqlite3.connect(*arguments, **options, factory=Connection)


# What SQLAlchemy takes for a connection that has died.
DIED = sqlite3.ProgrammingError("Cannot operate on a closed database.")


@pytest.fixture
def backend(sqlite_url: str, make: Make) -> SQLAlchemyBackend:
    backend = make(sqlite_url)
    backend.create_tables()
    return backend


@pytest.fixture(params=["direct", "watched"])
def failures(request: pytest.FixtureRequest, backend: SQLAlchemyBackend) -> Failures:
    if request.param == "watched":
        event.listen(engine_of(backend), "after_execute", lambda *_: None)
    return Failures(engine_of(backend))


def test_a_statement_is_retried_exactly_once(
    backend: SQLAlchemyBackend, failures: Failures, clock: FakeClock
) -> None:
    backend.create(KEY, record(clock))
    for operation in (
        lambda: backend.load(KEY),
        lambda: backend.touch(KEY, clock(), clock() + 900),
    ):
        with failures("before", DIED):
            assert operation()
            assert failures.attempts == 2
    with failures("before", DIED, DIED, DIED):
        with pytest.raises(BackendUnavailableError):
            backend.load(KEY)
        assert failures.attempts == 2


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.DatabaseError("database disk image is malformed"),
        sqlite3.InterfaceError("bad"),
        sqlite3.OperationalError("no such column: touched"),
        sqlite3.OperationalError('near "FROM": syntax error'),
        sqlite3.ProgrammingError("wrong"),
        sqlite3.DataError("wrong"),
        sqlite3.IntegrityError("wrong"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_errors_are_not_retried(
    backend: SQLAlchemyBackend,
    failures: Failures,
    error: Exception,
) -> None:
    with (
        failures("before", error, error),
        pytest.raises(BackendUnavailableError) as info,
    ):
        backend.load(KEY)
    assert failures.attempts == 1
    assert t.cast(t.Any, info.value.__cause__).orig is error


def test_a_bug_is_passed_on(backend: SQLAlchemyBackend, failures: Failures) -> None:
    with failures("before", TypeError("bug")), pytest.raises(TypeError, match="bug"):
        backend.load(KEY)
    assert failures.attempts == 1


class UndoneError(sqlite3.OperationalError):
    """What PostgreSQL calls a deadlock, with SQLite's class."""

    sqlstate = "40P01"


def test_a_statement_that_the_database_undid_is_retried(
    backend: SQLAlchemyBackend, failures: Failures, clock: FakeClock
) -> None:
    with failures("before", UndoneError("deadlock")):
        assert backend.create(KEY, record(clock)) is True
    with (
        failures("before", UndoneError("deadlock"), UndoneError("deadlock")),
        pytest.raises(BackendUnavailableError, match="40P01"),
    ):
        backend.load(KEY)
    assert failures.attempts == 2


@pytest.mark.parametrize("data", [b"mine", TOMBSTONE_DATA], ids=["data", "tombstone"])
def test_a_lost_answer_is_recognized(
    backend: SQLAlchemyBackend, failures: Failures, clock: FakeClock, data: bytes
) -> None:
    mine = record(clock, data, lives=601)
    with failures("after", DIED):
        assert backend.create(KEY, mine) is True
    assert backend.load(KEY) == mine
    with failures("after", DIED):
        assert backend.replace(KEY, mine, 1) == Replaced(2)
    assert backend.load(KEY) == dataclasses.replace(mine, version=2)


def test_a_lost_answer_is_recognized_after_a_touch(
    backend: SQLAlchemyBackend, clock: FakeClock
) -> None:
    backend.create(KEY, record(clock))
    other = SQLAlchemyBackend(
        engine_of(backend), table_name=backend.table.name, clock=clock
    )
    touches = iter([True])

    def touch(*_: t.Any) -> None:
        if next(touches, False):
            other.touch(KEY, clock(), clock() + 900)
            raise DIED

    event.listen(engine_of(backend), "after_cursor_execute", touch)
    assert backend.replace(KEY, record(clock, b"mine"), 1) == Replaced(2)


@pytest.mark.parametrize("data", [b"theirs", TOMBSTONE_DATA], ids=["data", "tombstone"])
def test_somebody_elses_write_is_not_taken_for_a_lost_answer(
    backend: SQLAlchemyBackend, failures: Failures, clock: FakeClock, data: bytes
) -> None:
    mine = record(clock, b"mine" if data == b"theirs" else data, lives=601)
    theirs = record(clock, data)
    backend.create(KEY, theirs)
    with failures("before", DIED):
        assert backend.create(KEY, mine) is False
    assert backend.replace(KEY, theirs, 1) == Replaced(2)
    with failures("before", DIED):
        conflict = Conflict(dataclasses.replace(theirs, version=2))
        assert backend.replace(KEY, mine, 1) == conflict
    backend.replace(KEY, record(clock, lives=-1), 2)
    with failures("before", DIED):
        assert backend.replace(KEY, mine, 2) == Gone()


def test_a_text_that_sqlite_cannot_decode_is_damage_with_another_engine_too(
    sqlite_url: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
) -> None:
    backend = make(make_engine(sqlite_url))
    backend.create(KEY, record(clock))
    set_column(backend, KEY, meta=sa.text("CAST(X'C328' AS TEXT)"))
    with pytest.raises(RecordError):
        backend.load(KEY)
    with pytest.raises(RecordError):
        backend.replace(KEY, record(clock), 7)
    assert backend.delete(KEY) is True


class InterruptedByTest(BaseException):
    """What gevent's time-outs are: an exception that nobody catches by accident."""


class OverdueForTest(Exception):
    """What Celery's soft time limit raises in the handler of a signal."""


@pytest.mark.parametrize("interruption", [InterruptedByTest, OverdueForTest])
@pytest.mark.parametrize("is_watched", [False, True], ids=["direct", "watched"])
def test_an_answer_that_nobody_waited_for_is_not_taken_for_another(
    request: pytest.FixtureRequest,
    make: Make,
    clock: FakeClock,
    is_watched: bool,
    interruption: type[BaseException],
) -> None:
    backend = make(get_url(request, "postgresql"))
    if is_watched:
        event.listen(engine_of(backend), "after_execute", lambda *_: None)
    backend.create(KEY, record(clock))
    backend.create("other", record(clock, b"other"))

    def interrupt(*_: t.Any) -> None:
        raise interruption

    former = signal.signal(signal.SIGALRM, interrupt)
    # Python drops an exception that is raised while it removes garbage.
    gc.collect()
    gc.disable()
    try:
        with locked_row(backend, KEY):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(interruption):
                backend.replace(KEY, record(clock, b"new"), 1)
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    for _ in range(3):
        assert backend.load("other") == record(clock, b"other")


@pytest.mark.parametrize("interruption", [InterruptedByTest, OverdueForTest])
def test_an_in_memory_database_outlives_an_interruption(
    make: Make,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
) -> None:
    backend = make("sqlite://")
    backend.create(KEY, record(clock))

    def interrupt(*_: t.Any) -> t.NoReturn:
        raise interruption

    pooled = engine_of(backend).raw_connection()
    pooled.close()
    with monkeypatch.context() as patch:
        patch.setattr(type(pooled), "cursor", interrupt)
        with pytest.raises(interruption):
            backend.load(KEY)
    assert backend.load(KEY) == record(clock)


@contextlib.contextmanager
def locked_row(backend: SQLAlchemyBackend, key: str) -> Iterator[None]:
    """Hold the lock on one row of PostgreSQL's."""
    engine = sa.create_engine(engine_of(backend).url, poolclass=sa.NullPool)
    column = backend.table.c["key"]
    with engine.connect() as connection:
        connection.execute(sa.select(column).where(column == key).with_for_update())
        yield
        connection.rollback()


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def direct_url(request: pytest.FixtureRequest) -> str:
    """Give the URL of each database whose frequent statements go to its driver."""
    return get_url(request, request.param)


def test_what_requests_consist_of_does_without_most_of_sqlalchemy(
    direct_url: str,
    make: Make,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = make(direct_url)
    backend.create_tables()
    monkeypatch.setattr(sa.Engine, "connect", None)
    assert backend.create(KEY, record(clock)) is True
    assert backend.load(KEY) == record(clock)
    assert backend.replace(KEY, record(clock, b"new"), 1) == Replaced(2)
    assert backend.delete(KEY) is True
    monkeypatch.undo()


def test_sqlalchemys_log_shows_the_statements_of_sessions(
    direct_url: str, make: Make, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make(direct_url)
    backend.create_tables()
    caplog.set_level(logging.INFO, "sqlalchemy.engine")
    backend.create(KEY, record(clock))
    backend.load(KEY)
    verbs = [message.split()[0] for message in caplog.messages]
    assert [verb for verb in verbs if verb in ("INSERT", "SELECT")] == [
        "INSERT",
        "SELECT",
    ]


def test_a_second_create_of_the_same_record_is_refused(
    backend: SQLAlchemyBackend, clock: FakeClock
) -> None:
    assert backend.create(KEY, record(clock)) is True
    assert backend.create(KEY, record(clock)) is False


# What Flask-Session 0.8 keeps its sessions in.
FLASK_SESSION_COLUMNS = {
    "id": sa.Integer(),
    "session_id": sa.String(255),
    "data": sa.LargeBinary(),
    "expiry": sa.DateTime(),
}


@pytest.mark.parametrize("is_there_to_create", [True, False])
def test_a_table_with_other_columns_is_named_as_such(
    url: str, make: Make, clock: FakeClock, is_there_to_create: bool
) -> None:
    backend = make(url, create_table=is_there_to_create)
    name = backend.table.name
    with engine_of(backend).connect() as connection:
        columns = [sa.Column(*column) for column in FLASK_SESSION_COLUMNS.items()]
        sa.Table(name, sa.MetaData(), *columns).create(connection)
    operations: list[Callable[[], object]] = [
        lambda: backend.load(KEY),
        lambda: backend.create(KEY, record(clock)),
        lambda: backend.touch(KEY, clock(), clock()),
        backend.create_tables,
    ]
    for operation in operations:
        with pytest.raises(BackendUnavailableError) as info:
            operation()
        assert info.value.refused
        text = str(info.value)
        assert text.startswith(f"The table {name!r} in the {engine_of(backend).name} ")
        assert text.endswith(
            " is not one of this library's: it has the columns 'id', 'session_id',"
            " 'data', 'expiry'. Choose another name in 'SESSION_SQLALCHEMY_TABLE', or"
            " rename that table."
        )


def test_the_table_of_flask_session_in_the_same_database_does_no_harm(
    sqlite_url: str,
) -> None:
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as connection:
        columns = [sa.Column(*column) for column in FLASK_SESSION_COLUMNS.items()]
        sa.Table("sessions", sa.MetaData(), *columns).create(connection)
    app = Flask("shop")
    app.config.update(
        SECRET_KEY="k", SESSION_BACKEND="sqlalchemy", SESSION_SQLALCHEMY_URL=sqlite_url
    )
    ServerSession(app)
    app.add_url_rule("/", view_func=lambda: flask.session.update(n=1) or "")
    assert app.test_client().get("/").status_code == 200
    assert set(sa.inspect(engine).get_table_names()) == {"server_sessions", "sessions"}
    engine.dispose()


def test_an_exhausted_pool_is_unavailable(
    sqlite_url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make(sqlite_url)
    pool = engine_of(backend).pool
    monkeypatch.setattr(pool, "_timeout", 0.05)
    with contextlib.ExitStack() as stack:
        for _ in range(15):
            stack.enter_context(engine_of(backend).connect())
        with pytest.raises(BackendUnavailableError) as info:
            backend.load(KEY)
    assert "all of the pool of sessions are in use (Pool size: 5 " in str(info.value)
    assert backend.load(KEY) is None


# -- SQLite's lock


@contextlib.contextmanager
def write_lock(url: str) -> Iterator[None]:
    path = sa.make_url(url).database
    assert path is not None
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.parametrize("is_given", [False, True], ids=["url", "engine"])
def test_a_touch_that_meets_a_writer_gives_up(
    sqlite_url: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    is_given: bool,
) -> None:
    backend = make(make_engine(sqlite_url) if is_given else sqlite_url)
    backend.create(KEY, record(clock))
    with write_lock(sqlite_url):
        started = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="another writer"):
            backend.touch(KEY, clock(), clock() + 900)
        assert time.monotonic() - started < 4
        assert backend.load(KEY) is not None
    with engine_of(backend).connect() as connection:
        timeout = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    assert timeout == 5000


def test_a_write_waits_for_another_writer(
    sqlite_url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(sqlite_url)
    backend.create(KEY, record(clock))
    with sqlite3.connect(
        str(sa.make_url(sqlite_url).database),
        isolation_level=None,
        check_same_thread=False,
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        thread.start()
        assert backend.replace(KEY, record(clock, b"new"), 1) == Replaced(2)
        thread.join()
    other.close()


def test_a_write_that_waited_in_vain_says_why(
    sqlite_url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(sqlite_url + "?timeout=0.1")
    backend.create(KEY, record(clock))
    with write_lock(sqlite_url), pytest.raises(BackendUnavailableError) as info:
        backend.replace(KEY, record(clock, b"new"), 1)
    assert info.value.operation == "replace"
    assert "another writer held the lock" in str(info.value)
    assert backend.replace(KEY, record(clock, b"new"), 1) == Replaced(2)


def test_sqlite_runs_in_wal_mode(sqlite_url: str, make: Make) -> None:
    with engine_of(make(sqlite_url)).connect() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
    assert pragmas == ["wal", 1, 5000]


# -- nothing secret


def test_no_error_or_log_shows_a_value_or_a_password(
    url: str,
    make: Make,
    make_engine: Callable[..., sa.Engine],
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = record(clock, b"SECRET", user="SECRET", meta={"a": "SECRET"})
    full = sa.make_url(url)
    if full.host:
        full = full.set(password="SECRET")  # neither server asks for one
    url = full.render_as_string(hide_password=False)
    with caplog.at_level("DEBUG"):
        for backend in (
            make(url, create_table=False),
            make(make_engine(url, echo=True), create_table=False),
        ):
            for call in (
                lambda: backend.create("SECRET", secret),  # noqa: B023
                lambda: backend.replace("SECRET", secret, 1),  # noqa: B023
                lambda: backend.load("SECRET"),  # noqa: B023
            ):
                with pytest.raises(BackendError) as info:
                    call()
                assert "SECRET" not in str(info.value)
                assert "SECRET" not in repr(info.value)
                text = "".join(traceback.format_exception_only(info.value.__cause__))
                assert "SECRET" not in text
    assert "SECRET" not in caplog.text


def test_an_unreachable_server_does_not_show_the_password(make: Make) -> None:
    backend = make(
        f"mysql+pymysql://me:SECRET@127.0.0.1:{find_free_port()}/app?charset=utf8mb4"
    )
    with pytest.raises(BackendUnavailableError) as info:
        backend.load(KEY)
    assert "the mysql database 'app' at 127.0.0.1:" in str(info.value)
    assert "SECRET" not in "".join(traceback.format_exception(info.value))


# -- what is wrong, in the database's words


def complaint(backend: SQLAlchemyBackend, clock: FakeClock) -> str:
    with pytest.raises(BackendUnavailableError) as info:
        backend.create(KEY, record(clock, b"SECRET", user="SECRET"))
    assert "SECRET" not in str(info.value)
    return str(info.value)


def test_causes_are_told_apart_in_the_databases_words(
    server: Server, make: Make, clock: FakeClock
) -> None:
    url = sa.make_url(server.url).set(username="nobody", password="SECRET")
    dead = url.set(port=find_free_port())
    unknown = url.set(host="no-such-host.invalid")
    if isinstance(server, MariaDBServer):
        words = {
            url: "Access denied for user 'nobody'@'",
            url.set(username="root", database="nowhere"): "Access denied for user",
            sa.make_url(server.url).set(
                database="nowhere"
            ): "Unknown database 'nowhere'",
            dead: "Connection refused",
            unknown: "Can't connect to MySQL server on 'no-such-host.invalid'",
        }
    else:
        words = {
            url: 'role "nobody" does not exist',
            sa.make_url(server.url).set(
                database="nowhere"
            ): 'database "nowhere" does not exist',
            dead: "Connection refused",
            unknown: "no-such-host.invalid",
        }
    for wrong, expected in words.items():
        backend = make(wrong.render_as_string(hide_password=False))
        text = complaint(backend, clock)
        assert expected in text
        assert "cannot be reached or refused to work (OperationalError" in text


@pytest.fixture
def reader(
    server: Server, make_engine: Callable[..., sa.Engine], make: Make
) -> tuple[str, SQLAlchemyBackend]:
    """Give the URL of a role that may only read, and what made the table."""
    owner = make(server.url)
    owner.create_tables()
    engine = make_engine(server.url, isolation_level="AUTOCOMMIT")
    is_mariadb = isinstance(server, MariaDBServer)
    reader = "reader@'127.0.0.1'" if is_mariadb else "reader"
    with engine.connect() as connection:
        create = "CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'p'"
        connection.exec_driver_sql(create if is_mariadb else "CREATE ROLE reader LOGIN")
        table = owner.table.name
        connection.exec_driver_sql(f"GRANT SELECT ON {table} TO {reader}")
    url = sa.make_url(server.url).set(username="reader", password="p")
    return url.render_as_string(hide_password=False), owner


def test_what_a_role_may_not_do_is_told_in_the_databases_words(
    reader: tuple[str, SQLAlchemyBackend], make: Make, clock: FakeClock
) -> None:
    url, owner = reader
    backend = make(url)
    owner.create("old", record(clock))
    assert backend.load("old") == record(clock)
    text = complaint(backend, clock)
    assert "does not permit it (" in text
    assert "denied" in text
    assert owner.table.name in text
    with pytest.raises(BackendUnavailableError, match="denied") as info:
        backend.touch("old", clock(), clock() + 900)
    assert info.value.refused
    # It is there, so nobody needs the privilege to create it.
    backend.create_tables()
    other = make(url, table_name="another")
    text = complaint(other, clock)
    # MariaDB does not tell it that there is no such table.
    operation = "create_tables" if "postgresql" in url else "create"
    assert f"'{operation}': " in text
    assert "denied" in text


def test_a_schema_that_is_not_there_is_named(
    request: pytest.FixtureRequest, make: Make, clock: FakeClock
) -> None:
    backend = make(get_url(request, "postgresql"), schema="nowhere")
    assert 'schema "nowhere" does not exist' in complaint(backend, clock)


def test_a_session_that_is_too_large_for_the_server_is_named(
    server: Server, make: Make, make_engine: Callable[..., sa.Engine], clock: FakeClock
) -> None:
    if not isinstance(server, MariaDBServer):
        pytest.skip("Only MariaDB and MySQL have a limit.")
    with make_engine(server.url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("SET GLOBAL max_allowed_packet = 262144")
    backend = make(server.url)
    backend.create(KEY, record(clock))
    large = record(clock, b"x" * 400_000)
    for write in (
        lambda: backend.create("large", large),
        lambda: backend.replace(KEY, large, 1),
    ):
        with pytest.raises(SessionTooLargeError) as info:
            write()
        assert str(info.value) == (
            "The session is 400008 bytes when serialized; 'max_allowed_packet' allows"
            " 262144. Keep large data elsewhere and its key in the session, or raise"
            " 'max_allowed_packet'."
        )
    assert backend.load(KEY) == record(clock)


# -- engines of our own


@pytest.mark.parametrize(
    "url", ["nonsense SECRET", "mongodb://me:SECRET@host/db", "sqlite+x:///SECRET"]
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected something like") as info:
        SQLAlchemyBackend.from_url(url)
    assert "SECRET" not in str(info.value)


def test_an_asynchronous_driver_is_refused() -> None:
    with pytest.raises(ValueError, match="'asyncpg'; expected a synchronous one"):
        SQLAlchemyBackend.from_url("postgresql+asyncpg://me:SECRET@host/db")


def test_a_driver_that_is_not_installed_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="pyodbc"):
        SQLAlchemyBackend.from_url("mysql+pyodbc://me:SECRET@host/db")


def get_arguments(url: str) -> dict[str, t.Any]:
    engine = engine_of(SQLAlchemyBackend.from_url(url))
    seen: list[dict[str, t.Any]] = []

    def do_connect(
        _1: t.Any, _2: t.Any, _3: t.Any, arguments: dict[str, t.Any]
    ) -> None:
        seen.append(arguments)
        raise sqlite3.OperationalError

    event.listen(engine, "do_connect", do_connect)
    with pytest.raises(sqlite3.OperationalError):
        engine.raw_connection()
    return seen[0]


def test_connecting_takes_five_seconds_at_most_unless_the_url_says_otherwise() -> None:
    for url in ("postgresql+psycopg://host/db", "mysql+pymysql://host/db"):
        assert get_arguments(url)["connect_timeout"] == 5
        assert int(get_arguments(f"{url}?connect_timeout=7")["connect_timeout"]) == 7
    assert get_arguments("mysql+pymysql://host/db")["read_timeout"] == 10


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_in_memory_is_shared_by_threads_and_kept_by_close(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url)
    backend.create(KEY, record(clock))
    found: list[object] = []
    run_threads([lambda: found.append(backend.load(KEY)) for _ in range(4)])
    assert found == [record(clock)] * 4
    backend.close()
    assert backend.load(KEY) == record(clock)


def test_a_server_whose_url_names_no_database_is_not_taken_for_memory(
    request: pytest.FixtureRequest, make: Make
) -> None:
    backend = make(get_url(request, "postgresql").removesuffix("postgres"))
    assert engine_of(backend).url.database in (None, "")
    backend.load(KEY)
    pool = engine_of(backend).pool
    backend.close()
    assert engine_of(backend).pool is not pool


def test_close_leaves_a_given_engine_open(
    sqlite_url: str, make: Make, make_engine: Callable[..., sa.Engine]
) -> None:
    engine = make_engine(sqlite_url)
    given, own = make(engine), make(sqlite_url)
    given.load(KEY)
    own.load(KEY)
    pool, own_pool = engine.pool, engine_of(own).pool
    given.close()
    own.close()
    assert engine.pool is pool
    assert engine_of(own).pool is not own_pool


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_connections_of_its_own(
    url: str, make: Make, clock: FakeClock
) -> None:
    backend = make(url)
    backend.create(KEY, record(clock))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for number in range(20):
                loaded = backend.load(KEY)
                assert loaded == (None if url == "sqlite://" else record(clock))
                backend.create(f"child {number}", record(clock))
            backend.close()
            os.write(writing, b"good")
        except BaseException as error:  # noqa: BLE001
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    for number in range(20):
        assert backend.load(KEY) == record(clock)
        assert backend.create(f"parent {number}", record(clock))
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"good"
    assert backend.load(KEY) == record(clock)
    assert backend.count() == (21 if url == "sqlite://" else 41)


def test_its_capabilities() -> None:
    assert SQLAlchemyBackend.name == "sqlalchemy"
    assert Capability.EXPIRES not in SQLAlchemyBackend.capabilities
    assert ~SQLAlchemyBackend.capabilities == Capability.EXPIRES


def test_a_new_sqlite_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        backend = SQLAlchemyBackend.from_url(f"sqlite:///{tmp_path / 'sessions.db'}")
        backend.count()
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    backend.close()
    assert set(modes.values()) == {0o600}
    assert "sessions.db" in modes


def test_users_whom_the_collation_of_a_table_finds_equal_are_told_apart(
    request: pytest.FixtureRequest, make: Make, clock: FakeClock
) -> None:
    url = get_url(request, "mariadb")
    backend = make(url)
    backend.create_tables()
    name = backend.table.name
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        # As in a table that somebody has made, or converted, by hand.
        connection.execute(
            sa.text(
                f"ALTER TABLE {name} MODIFY `user` VARCHAR(255)"
                " CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"
            )
        )
    users = ["ada", "ADA", "Ada", "\xe4da", "ada "]
    for number, user in enumerate(users):
        assert backend.create(f"key {number}", record(clock, user=user))
    for number, user in enumerate(users):
        assert backend.keys_of_user(user) == [f"key {number}"]
