from __future__ import annotations

import contextlib
import typing as t
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc

from flask_serversession.backends.base import Backend
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend
from flask_serversession.record import Record
from flask_serversession.testing import BackendContract
from flask_serversession.testing import FakeClock
from flask_serversession.testing import Spoil

from ..servers import MariaDBServer
from ..servers import PostgresServer
from ..servers import Server
from ..servers import find_free_port

KEY = "s:" + "0123456789abcdef" * 4
Make = Callable[..., SQLAlchemyBackend]


def record(clock: Callable[[], float], data: bytes = b"data", **fields: t.Any) -> Record:
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
    fixture = "postgres_server" if name == "postgresql" else "mariadb_server"
    return t.cast(Server, request.getfixturevalue(fixture)).url


@pytest.fixture
def make(clock: FakeClock) -> Iterator[Make]:
    """Make backends on tables that nobody else uses, dropped afterwards."""
    table = f"t{uuid.uuid4().hex[:12]}"

    with contextlib.ExitStack() as stack:

        def make(
            database: str | sa.Engine, **options: t.Any
        ) -> SQLAlchemyBackend:
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
    connection.execute("PRAGMA journal_mode=WAL")


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
    database: t.ClassVar[str]

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest) -> str:
        return get_url(request, self.database)

    @pytest.fixture
    def backend(self, clock: FakeClock, url: str, make: Make) -> Backend:
        return make(url)

    @pytest.fixture
    def second_backend(self, backend: Backend, url: str, make: Make) -> Backend | None:
        return make(url)

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


class TestMemory(Contract):
    database = "memory"

    @pytest.fixture
    def second_backend(self) -> Backend | None:
        return None  # each has a database of its own

    @pytest.fixture
    def dead_backend(self) -> Backend | None:
        return None


class TestPostgreSQL(Contract):
    database = "postgresql"


class TestMariaDB(Contract):
    database = "mariadb"


class TestGivenEngine(Contract):
    database = "sqlite"

    @pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
    def url(self, request: pytest.FixtureRequest) -> str:
        return get_url(request, request.param)

    @pytest.fixture
    def backend(
        self, url: str, make: Make, make_engine: Callable[..., sa.Engine]
    ) -> Backend:
        return make(make_engine(url))

    @pytest.fixture
    def second_backend(
        self, url: str, make: Make, make_engine: Callable[..., sa.Engine]
    ) -> Backend | None:
        return make(make_engine(url))

    @pytest.fixture
    def dead_backend(self) -> Backend | None:
        return None
