"""The engines: how each library is told to use one, and what it costs by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import sqlite3
import tempfile
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import ExitStack

from flask import Flask

from ..servers import PostgresServer
from ..servers import Server
from ..servers import ValkeyServer
from .apps import Config

S = t.TypeVar("S", bound=Server)


class Bare(t.Protocol):
    """An engine through its driver alone."""

    def store(self, key: str, data: bytes) -> None: ...
    def load(self, key: str) -> bytes: ...
    def change(self, key: str, data: bytes) -> None: ...
    def delete(self, key: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Engine:
    """One engine, ready to be used."""

    name: str
    #: The configuration for this library.
    ours: Config
    #: Sets Flask-Session up.
    peer: Callable[[Flask], object]
    #: ``None`` for memory: a dict is nothing to compare with.
    make_bare: Callable[[], Bare] | None

    @functools.cached_property
    def bare(self) -> Bare | None:
        """The engine through its driver alone."""
        return None if self.make_bare is None else self.make_bare()


def _use_peer(type: str, **settings: t.Any) -> Callable[[Flask], object]:
    def setup(app: Flask) -> None:
        from flask_session import Session  # type: ignore[import-untyped]

        app.config.update(SESSION_TYPE=type, **settings)
        Session(app)

    return setup


@contextlib.contextmanager
def memory(_: Places) -> Iterator[Engine]:
    from cachelib import SimpleCache

    cache = SimpleCache()
    peer = _use_peer("cachelib", SESSION_CACHELIB=cache)
    yield Engine("memory", {"SESSION_BACKEND": "memory"}, peer, None)


class _Files:
    def __init__(self, folder: str) -> None:
        os.mkdir(folder)
        self._folder = folder

    def store(self, key: str, data: bytes) -> None:
        temporary = f"{self._folder}/.{key}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, data)
        os.close(descriptor)
        os.replace(temporary, f"{self._folder}/{key}")

    change = store

    def load(self, key: str) -> bytes:
        descriptor = os.open(f"{self._folder}/{key}", os.O_RDONLY)
        data = os.read(descriptor, 1_000_000)
        os.close(descriptor)
        return data

    def delete(self, key: str) -> None:
        os.unlink(f"{self._folder}/{key}")


@contextlib.contextmanager
def files(places: Places) -> Iterator[Engine]:
    from cachelib import FileSystemCache

    folder = places.folder()
    cache = FileSystemCache(f"{folder}/peer")
    yield Engine(
        "files",
        {"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": f"{folder}/ours"},
        _use_peer("cachelib", SESSION_CACHELIB=cache),
        lambda: _Files(f"{folder}/bare"),
    )


class _Redis:
    def __init__(self, client: t.Any) -> None:
        self._client = client

    def store(self, key: str, data: bytes) -> None:
        self._client.set(key, data, px=3_600_000)

    change = store

    def load(self, key: str) -> bytes:
        value: bytes = self._client.get(key)
        return value

    def delete(self, key: str) -> None:
        self._client.delete(key)


@contextlib.contextmanager
def redis(places: Places) -> Iterator[Engine]:
    from redis import Redis

    url = places.url("redis")
    with Redis.from_url(url) as client:
        yield Engine(
            "redis",
            {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": url},
            _use_peer("redis", SESSION_REDIS=client, SESSION_KEY_PREFIX="peer:"),
            lambda: _Redis(client),
        )


class _Table:
    def __init__(self, url: str) -> None:
        import sqlalchemy as sa

        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        table = sa.Table(
            "bare",
            sa.MetaData(),
            sa.Column("key", sa.String(255), primary_key=True),
            sa.Column("data", sa.LargeBinary(), nullable=False),
        )
        with self._engine.connect() as connection:
            table.drop(connection, checkfirst=True)
            table.create(connection)
        is_this = table.c["key"] == sa.bindparam("k")
        self._select = sa.select(table.c["data"]).where(is_this)
        self._insert = table.insert().values(
            key=sa.bindparam("k"), data=sa.bindparam("d")
        )
        self._update = table.update().where(is_this).values(data=sa.bindparam("d"))
        self._delete = table.delete().where(is_this)

    def _run(self, statement: t.Any, **parameters: t.Any) -> t.Any:
        with self._engine.connect() as connection:
            result = connection.execute(statement, parameters)
            return result.all() if result.returns_rows else None

    def store(self, key: str, data: bytes) -> None:
        self._run(self._insert, k=key, d=data)

    def change(self, key: str, data: bytes) -> None:
        self._run(self._update, k=key, d=data)

    def load(self, key: str) -> bytes:
        return bytes(self._run(self._select, k=key)[0][0])

    def delete(self, key: str) -> None:
        self._run(self._delete, k=key)


@contextlib.contextmanager
def _sqlalchemy(name: str, url: str) -> Iterator[Engine]:
    def use_peer(app: Flask) -> None:
        from flask_sqlalchemy import SQLAlchemy

        app.config["SQLALCHEMY_DATABASE_URI"] = url
        database = SQLAlchemy(app)
        _use_peer(
            "sqlalchemy",
            SESSION_SQLALCHEMY=database,
            SESSION_SQLALCHEMY_TABLE="peer",
        )(app)

    ours = {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": url}
    yield Engine(name, ours, use_peer, lambda: _Table(url))


@contextlib.contextmanager
def sqlite(places: Places) -> Iterator[Engine]:
    import sqlalchemy as sa

    def prepare(connection: t.Any, _: object) -> None:
        # What this library sets by itself, for the others too.
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

    sa.event.listen(sa.Engine, "connect", prepare)
    try:
        with _sqlalchemy("sqlite", f"sqlite:///{places.folder()}/all.db") as engine:
            yield engine
    finally:
        sa.event.remove(sa.Engine, "connect", prepare)


@contextlib.contextmanager
def postgresql(places: Places) -> Iterator[Engine]:
    with _sqlalchemy("postgresql", places.url("postgresql")) as engine:
        yield engine


class Places:
    """Where engines keep things: folders, and servers that start when needed.

    :param through: Gives another URL for that of a server; to count what passes.
    """

    def __init__(
        self, stack: ExitStack, through: Callable[[str, str], str] | None = None
    ) -> None:
        self._stack = stack
        self._through = through
        self._servers: dict[str, Server] = {}

    def folder(self) -> str:
        return self._stack.enter_context(tempfile.TemporaryDirectory())

    def url(self, kind: str) -> str:
        if kind not in self._servers:
            server = PostgresServer() if kind == "postgresql" else ValkeyServer()
            self._servers[kind] = self._stack.enter_context(server)
        url = self._servers[kind].url
        return url if self._through is None else self._through(kind, url)


ENGINES: dict[str, Callable[[Places], AbstractContextManager[Engine]]] = {
    "memory": memory,
    "files": files,
    "sqlite": sqlite,
    "redis": redis,
    "postgresql": postgresql,
}


def make_bare_calls(
    bare: Bare, kind: str, data: bytes
) -> tuple[Callable[[int], list[str]], Callable[[str], object]] | None:
    """Give what prepares so many calls, and the call, that a kind of request needs.

    ``None`` for a kind that needs nothing of the engine.
    """
    own = secrets.token_hex(16)
    bare.store(own, data)

    def change(key: str) -> None:
        bare.load(key)
        bare.change(key, data)

    def fill(count: int) -> list[str]:
        keys = [secrets.token_hex(16) for _ in range(count)]
        for key in keys:
            bare.store(key, data)
        return keys

    if kind in ("read", "nested"):
        return lambda count: [own] * count, bare.load
    if kind in ("change", "inside"):
        return lambda count: [own] * count, change
    if kind == "login":
        return (
            lambda count: [secrets.token_hex(16) for _ in range(count)],
            lambda key: bare.store(key, data),
        )
    if kind == "destroy":
        return fill, bare.delete
    return None
