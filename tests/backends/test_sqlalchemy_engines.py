"""How our own engines are made and their connections prepared; without any server."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import types
import typing as t
from collections.abc import Generator

import psycopg
import pymysql.cursors
import pytest
import sqlalchemy as sa
from psycopg.rows import tuple_row
from sqlalchemy.schema import CreateIndex
from sqlalchemy.schema import CreateTable

from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend
from flask_serversession.backends.sqlalchemy import engines
from flask_serversession.backends.sqlalchemy import rows
from flask_serversession.backends.sqlalchemy import runner as runner_module
from flask_serversession.backends.sqlalchemy.backend import _hint
from flask_serversession.backends.sqlalchemy.runner import DirectRunner
from flask_serversession.backends.sqlalchemy.runner import Runner
from flask_serversession.backends.sqlalchemy.table import define_table
from flask_serversession.errors import BackendError
from flask_serversession.errors import RecordError
from flask_serversession.errors import SessionTooLargeError
from flask_serversession.record import Record
from flask_serversession.testing import FakeClock


def engine_with(driver: str, **dialect: t.Any) -> t.Any:
    return types.SimpleNamespace(
        dialect=types.SimpleNamespace(driver=driver, **dialect),
        url=sa.make_url("postgresql://host/db"),
    )


@pytest.mark.parametrize(
    ("driver", "version", "is_warned"),
    [
        ("mariadbconnector", None, True),
        ("mysqlconnector", None, True),
        ("psycopg2", None, True),
        ("psycopg2cffi", None, True),
        ("psycopg", (3, 2, 10), True),
        ("psycopg", (3, 2, 11), False),
        ("psycopg", (3, 3), False),
        ("psycopg2", (3, 3), True),
        ("pymysql", None, False),
        ("pysqlite", None, False),
    ],
)
def test_a_driver_that_waits_without_limit_is_warned_about(
    driver: str, version: tuple[int, ...] | None, is_warned: bool
) -> None:
    engine = engine_with(driver)
    if version is not None:
        engine.dialect.psycopg_version = version
    expected = (
        f"The database driver {driver!r} waits for an answer without any limit: a"
        " server that hangs would hold every worker that asks it for a session. Use"
        " psycopg 3.2.11 or later ('postgresql+psycopg://') or PyMySQL"
        " ('mysql+pymysql://') instead."
    )
    assert engines.driver_warning(engine) == (expected if is_warned else None)
    engine.url = sa.make_url("postgresql://host/db?read_timeout=5")
    assert engines.driver_warning(engine) is None


@pytest.mark.parametrize(
    ("url", "is_memory"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file::memory:?cache=shared&uri=true", True),
        ("sqlite:///file:x?mode=memory&uri=true", True),
        ("sqlite:///file:x%3Fmode=memory", True),
        ("sqlite:///sessions.db", False),
        ("sqlite:///file:x?mode=rw&uri=true", False),
        ("postgresql://host", False),
        ("postgresql://host/:memory:", False),
    ],
)
def test_what_is_in_memory(url: str, is_memory: bool) -> None:
    assert engines.is_memory(sa.make_url(url)) is is_memory


def test_which_engines_have_a_lock_and_one_connection() -> None:
    own = engines.make_engine("sqlite:///sessions.db")
    assert engines.has_lock(own)
    assert not engines.has_lock(engines.make_engine("sqlite://"))
    assert not engines.has_lock(sa.create_engine("postgresql+psycopg://host/db"))
    assert not engines.has_one_connection(own)
    for pool, is_one in (
        (sa.StaticPool, True),
        (sa.SingletonThreadPool, True),
        (sa.NullPool, False),
    ):
        theirs = sa.create_engine("sqlite:///sessions.db", poolclass=pool)
        assert engines.has_one_connection(theirs) is is_one
        engines.own_engines.add(theirs)
        assert not engines.has_one_connection(theirs)
    server = "postgresql+psycopg://host/db"
    theirs = sa.create_engine(server, poolclass=sa.StaticPool)
    assert not engines.has_one_connection(theirs)


def limits_of(engine: sa.Engine) -> tuple[int, int, int]:
    pool: t.Any = engine.pool
    assert isinstance(pool, sa.QueuePool)
    return pool.size(), pool._max_overflow, pool._timeout


def test_a_pool_has_limits() -> None:
    engine = engines.make_engine("postgresql+psycopg://host/db")
    assert limits_of(engine) == (5, 10, 10)
    assert t.cast("t.Any", engine.pool)._pool.use_lifo is True
    assert engine.hide_parameters is True
    assert limits_of(engines.make_engine("sqlite://")) == (1, 0, 10)
    lender = sa.create_engine("postgresql+psycopg://host/db", pool_recycle=7)
    borrowed = engines.borrow_from(lender)
    assert limits_of(borrowed) == (5, 10, 10)
    assert t.cast("t.Any", borrowed.pool)._recycle == 7


def test_the_old_name_of_postgres_is_understood() -> None:
    engine = engines.make_engine("postgres+psycopg://host/db")
    assert engine.url.drivername == "postgresql+psycopg"


def test_a_borrowed_engine_connects_as_its_lender_does() -> None:
    def connect() -> t.NoReturn:
        raise LookupError("the lender's")

    lender = sa.create_engine("postgresql+psycopg://host/db", creator=connect)
    with pytest.raises(LookupError, match="the lender's"):
        engines.borrow_from(lender).raw_connection()


@pytest.mark.parametrize(
    ("url", "options", "is_taken"),
    [
        ("sqlite://", {}, True),
        ("postgresql+psycopg://host/db", {}, True),
        ("mysql+pymysql://host/db", {}, False),
        ("sqlite://", {"schema_translate_map": {None: "other"}}, False),
    ],
    ids=["sqlite", "psycopg", "pymysql", "translated"],
)
def test_which_drivers_are_asked_directly(
    url: str, options: dict[str, t.Any], is_taken: bool
) -> None:
    engine = sa.create_engine(url, execution_options=options)
    assert DirectRunner.takes(engine) is is_taken


@pytest.mark.parametrize(
    "event", ["before_cursor_execute", "do_execute", "handle_error"]
)
def test_what_is_listened_to_is_watched(event: str) -> None:
    engine = engines.make_engine("sqlite://")
    runner = DirectRunner(engine, is_kept=True)
    assert not runner.is_watched()
    sa.event.listen(engine, event, lambda *_: None)
    assert runner.is_watched()


def test_only_an_error_of_a_connection_that_was_lost_says_so() -> None:
    runner = DirectRunner(engines.make_engine("sqlite://"), is_kept=True)
    error = sqlite3.OperationalError("words")
    assert t.cast("t.Any", runner._wrapped(error)).connection_invalidated is False
    lost = t.cast("t.Any", runner._wrapped(error, "SELECT", True))
    assert (lost.connection_invalidated, lost.statement) == (True, "SELECT")


def test_where_there_can_be_no_wal_sqlite_goes_on() -> None:
    seen: list[str] = []

    def execute(statement: str) -> None:
        seen.append(statement)
        if "WAL" in statement:
            raise sqlite3.OperationalError("not here")

    cursor = types.SimpleNamespace(execute=execute, close=lambda: seen.append("closed"))
    engines._use_wal(types.SimpleNamespace(cursor=lambda: cursor), None)
    assert seen == [
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=NORMAL",
        "closed",
    ]


# Connections, by what each driver lets be set


def connection_of(module: str, **attributes: t.Any) -> t.Any:
    kind = type("Connection", (types.SimpleNamespace,), {"__module__": module})
    return kind(**attributes)


def test_rows_are_tuples_of_texts_with_every_driver() -> None:
    statements: list[str] = []
    for encoding, expected in (
        ("utf-8", []),
        ("ascii", ["SET client_encoding TO 'UTF8'"]),
    ):
        connection = connection_of(
            "psycopg.connection",
            row_factory=None,
            info=types.SimpleNamespace(encoding=encoding),
            execute=statements.append,
        )
        engines._prepare_rows(connection, None)
        assert connection.row_factory is tuple_row
        assert statements == expected
    connection = connection_of("sqlite3", row_factory=dict)
    engines._prepare_rows(connection, None)
    assert connection.row_factory is None
    assert connection.text_factory(b"a\xff") == "a\ufffd"
    connection = connection_of("psycopg2.extensions", cursor_factory=dict)
    engines._prepare_rows(connection, None)
    assert connection.cursor_factory is None
    connection = connection_of("MySQLdb.connections", default_cursor=tuple)
    engines._prepare_rows(connection, None)
    assert connection.cursorclass is tuple
    connection = connection_of("pymysql.connections")
    engines._prepare_rows(connection, None)
    assert connection.cursorclass is pymysql.cursors.Cursor
    connection = connection_of("another.driver")
    engines._prepare_rows(connection, None)
    assert vars(connection) == {}


def test_mysql_reads_nothing_that_is_not_committed() -> None:
    seen: list[str] = []
    cursor = types.SimpleNamespace(
        execute=seen.append, close=lambda: seen.append("closed")
    )
    engines._prepare_mysql(types.SimpleNamespace(cursor=lambda: cursor), None)
    assert seen == [
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "closed",
    ]


class PsycopgConnection:
    """As much of a connection of psycopg as is prepared."""

    def __init__(self, pid: int) -> None:
        self.info = types.SimpleNamespace(backend_pid=7)
        self.prepare_threshold: int | None = 5
        self.finished = 0
        self.pgconn = types.SimpleNamespace(finish=self._finish)
        self._pid = pid
        self.statement = ""

    def _finish(self) -> None:
        self.finished += 1

    def wait(self, generator: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        return generator, args, kwargs

    def cursor(self) -> PsycopgConnection:
        return self

    def __enter__(self) -> PsycopgConnection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str) -> PsycopgConnection:
        self.statement = statement
        return self

    def fetchone(self) -> tuple[int]:
        return (self._pid,)


@pytest.mark.parametrize(("pid", "threshold"), [(7, 5), (8, None)])
def test_behind_a_pooler_nothing_is_prepared(pid: int, threshold: int | None) -> None:
    connection = PsycopgConnection(pid)
    engines._prepare_psycopg(connection, None)
    assert connection.statement == "SELECT pg_backend_pid()"
    assert connection.prepare_threshold == threshold


def test_an_answer_is_waited_for_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    connection = PsycopgConnection(7)
    engines._prepare_psycopg(connection, None)
    received: list[object] = []

    def protocol() -> Generator[str, object, str]:
        for number in range(4):
            received.append((yield f"wait {number}"))
        return "answer"

    generator, args, kwargs = t.cast("t.Any", connection).wait(protocol(), 1, n=2)
    assert (args, kwargs) == ((1,), {"n": 2})
    assert next(generator) == "wait 0"
    assert generator.send("ready") == "wait 1"
    now = 110.0
    assert generator.send(None) == "wait 2"
    now = 110.5
    # What is ready is taken, however late.
    assert generator.send("ready") == "wait 3"
    with pytest.raises(
        psycopg.OperationalError, match=r"^waiting for the answer timed"
    ):
        generator.send(None)
    assert connection.finished == 1
    assert received == ["ready", None, "ready"]


def test_the_answer_is_what_psycopg_returns() -> None:
    connection = PsycopgConnection(7)
    engines._prepare_psycopg(connection, None)

    def protocol() -> Generator[str, object, str]:
        yield "wait"
        return "answer"

    generator, _, _ = t.cast("t.Any", connection).wait(protocol())
    next(generator)
    with pytest.raises(StopIteration) as info:
        generator.send("ready")
    assert info.value.value == "answer"


# What uses them


def test_the_backend_has_a_table_and_a_version_to_be_shown() -> None:
    backend = SQLAlchemyBackend.from_url("sqlite://", prefix="session:")
    assert backend.key_prefix == "session:"
    assert backend.table.fullname == "server_sessions"
    assert backend.server_version() == f"SQLite {sqlite3.sqlite_version}"


@pytest.mark.parametrize(
    ("info", "is_mariadb", "shown"),
    [
        ((10, 11, 6, "MariaDB"), True, "MariaDB 10.11.6"),
        ((8, 0, 36), False, "MySQL 8.0.36"),
        (None, False, "MySQL"),
    ],
)
def test_the_version_of_a_server_is_shown(
    monkeypatch: pytest.MonkeyPatch, info: t.Any, is_mariadb: bool, shown: str
) -> None:
    backend = SQLAlchemyBackend.from_url("sqlite://")
    dialect = types.SimpleNamespace(
        name="mysql", is_mariadb=is_mariadb, server_version_info=info
    )

    def connect() -> t.Any:
        return contextlib.nullcontext(types.SimpleNamespace(dialect=dialect))

    monkeypatch.setattr(backend._runner, "connect", connect)
    assert backend.server_version() == shown


def test_a_record_is_taken_for_ours_only_if_all_of_it_is() -> None:
    clock = FakeClock()
    backend = SQLAlchemyBackend.from_url("sqlite://", clock=clock)
    record = Record(b"data", 1, clock(), clock(), clock() + 600, "ada", {})
    assert backend.create("key", record)
    ours = {"key_": "key", "version_": 1, "data_": backend_data(backend, "key")}
    assert backend._is_stored("create", ours) is True
    for other in ({"key_": "other"}, {"version_": 2}, {"data_": b"other"}):
        assert backend._is_stored("create", ours | other) is False


def backend_data(backend: SQLAlchemyBackend, key: str) -> bytes:
    with backend._runner.connect() as connection:
        table = backend.table
        found = connection.execute(sa.select(table.c["data"]).where(table.c.key == key))
        return t.cast("bytes", found.scalar_one())


def runner_of(url: str) -> Runner:
    return Runner(sa.create_engine(url), define_table(sa.MetaData(), "s", None))


@pytest.mark.parametrize(
    ("url", "limit", "is_named"),
    [
        ("mysql+pymysql://host/db", 100_004, True),
        ("mysql+pymysql://host/db", 100_005, False),
        ("mysql+pymysql://host/db", 0, False),
        ("postgresql+psycopg://host/db", 100_004, False),
    ],
)
def test_what_mysql_was_sent_too_much_of_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, limit: int, is_named: bool
) -> None:
    runner = runner_of(url)
    monkeypatch.setattr(runner, "_read_limit", lambda: limit)
    driver = pymysql.OperationalError(1153, "packet")
    error = sa.exc.OperationalError("INSERT", {"data_": b"12345"}, driver)
    found = runner.explain(error, "create")
    assert isinstance(found, SessionTooLargeError) is is_named
    if isinstance(found, SessionTooLargeError):
        assert (found.size, found.limit) == (5, limit)
        assert "'max_allowed_packet'" in str(found)
    else:
        assert isinstance(found, BackendError)


def test_a_table_with_other_columns_is_asked_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runner_of("mysql+pymysql://host/db")
    columns = ["id"]
    monkeypatch.setattr(runner, "_read_columns", lambda: columns)
    error = sa.exc.OperationalError("S", {}, pymysql.OperationalError(1054, "column"))
    assert "it has the columns 'id'" in str(runner.explain(error, "load"))
    columns.clear()
    assert "does not accept the statement" in str(runner.explain(error, "load"))


@pytest.mark.parametrize("key", ["a", "a ", "a \x7f", "a\x7f", "\x7fa ", " "])
def test_mysql_keeps_a_space_at_the_end_of_a_key(key: str) -> None:
    backend = SQLAlchemyBackend.from_url("sqlite://")
    assert backend._to_column(key) == backend._from_column(key) == key
    backend._is_mysql = True
    column = backend._to_column(key)
    assert not column.endswith(" ")
    assert backend._from_column(column) == key


@pytest.mark.parametrize("place", range(6))
def test_a_row_that_makes_no_sense_is_damage(place: int) -> None:
    good = [b"data", 1, 100.0, 200.0, 300.0, "ada", ""]
    good[0] = backend_data_of(b"data")
    assert rows.to_record(t.cast("t.Any", good)).user == "ada"
    bad = [*good]
    bad[place] = [5]
    with pytest.raises(RecordError) as info:
        rows.to_record(t.cast("t.Any", bad))
    assert info.value.reason == "damaged"


def backend_data_of(data: bytes) -> bytes:
    columns = rows.to_columns(Record(data, 1, 0, 0, 0, None, {}))
    return t.cast("bytes", columns["data_"])


def test_who_gives_no_engine_is_told_what_to_give() -> None:
    engine = sa.create_engine("sqlite://")
    for given, hint in (
        (sa.Engine, " Make an instance of it."),
        ("sqlite://", " A URL belongs into 'SESSION_SQLALCHEMY_URL'."),
        (engine.url, " A URL belongs into 'SESSION_SQLALCHEMY_URL'."),
        (sa.MetaData(), " Pass the engine that it works with."),
        (5, ""),
    ):
        assert _hint(given) == hint
    asynchronous = type("AsyncEngine", (), {"__module__": "sqlalchemy.ext.asyncio.x"})
    assert _hint(asynchronous()) == " Make one without asyncio."


def test_a_table_that_is_there_is_looked_for_in_its_schema(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = define_table(sa.MetaData(), "s", "of_sessions")
    runner = Runner(engines.make_engine("sqlite://"), table)
    asked: list[tuple[str, str, str | None]] = []
    there = ["ix_of_sessions_s_user"]

    class Inspector:
        def has_table(self, name: str, schema: str | None) -> bool:
            asked.append(("table", name, schema))
            return bool(there)

        def get_indexes(self, name: str, schema: str | None) -> list[t.Any]:
            asked.append(("indexes", name, schema))
            return [{"name": name} for name in there]

    monkeypatch.setattr(runner_module.sa, "inspect", lambda _: Inspector())
    indexes = {str(index.name): CreateIndex(index) for index in table.indexes}
    assert runner._is_there(CreateTable(table))
    assert asked == [("table", "s", "of_sessions"), ("indexes", "s", "of_sessions")]
    assert runner._is_there(indexes["ix_of_sessions_s_user"])
    assert not runner._is_there(indexes["ix_of_sessions_s_expires_at"])
    there.clear()
    assert not runner._is_there(CreateTable(table))
