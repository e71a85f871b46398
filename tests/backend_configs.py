"""Configurations, one for each backend and each server the tests know.

:data:`BACKEND_CONFIGS` is the table; the fixtures ``backend_config`` (every row,
one after the other) and ``make_backend_config`` (a row by its name) read it. A new
row is a function like the others here: a context manager that gets a
:class:`Place` and gives the part of ``app.config`` that selects the backend. What
it gives must be empty and must share nothing with other tests; afterwards it
removes what the test left on the server.
"""

from __future__ import annotations

import contextlib
import sys
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from .servers import MariaDBServer
from .servers import MemcachedServer
from .servers import PostgresServer
from .servers import RedisServer
from .servers import Server
from .servers import ValkeyServer

S = t.TypeVar("S", bound=Server)

#: What belongs into ``app.config``.
Config: t.TypeAlias = dict[str, t.Any]


class ServerGetter(t.Protocol):
    """Gives the running server of a class, the same one during a test run."""

    def __call__(self, server: type[S], /) -> S: ...


@dataclass(frozen=True)
class Place:
    """Where a test may keep things.

    :param name: Unique; a letter, then letters and digits, short enough for a
        table's name.
    :param directory: Empty, removed some time after the test.
    """

    name: str
    directory: Path
    get_server: ServerGetter


def memory(place: Place) -> Iterator[Config]:
    yield {"SESSION_BACKEND": "memory"}


def filesystem(place: Place) -> Iterator[Config]:
    path = place.directory / "sessions"
    yield {"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": str(path)}


def valkey(place: Place) -> Iterator[Config]:
    yield from _redis(place, place.get_server(ValkeyServer))


def redis(place: Place) -> Iterator[Config]:
    yield from _redis(place, place.get_server(RedisServer))


def sqlite(place: Place) -> Iterator[Config]:
    # The file goes with its directory. An absolute path makes four slashes.
    yield _sqlalchemy(place, f"sqlite:///{place.directory.resolve() / 'sessions.db'}")


def postgresql(place: Place) -> Iterator[Config]:
    server = place.get_server(PostgresServer)

    try:
        yield _sqlalchemy(place, server.url)
    finally:
        _drop_tables(server.url, place.name)


def mariadb(place: Place) -> Iterator[Config]:
    server = place.get_server(MariaDBServer)

    try:
        yield _sqlalchemy(place, server.url)
    finally:
        _drop_tables(server.url, place.name)


def cachelib_simple(place: Place) -> Iterator[Config]:
    from cachelib import SimpleCache

    yield _cachelib(SimpleCache(threshold=sys.maxsize))


def cachelib_filesystem(place: Place) -> Iterator[Config]:
    from cachelib import FileSystemCache

    yield _cachelib(FileSystemCache(str(place.directory / "cache"), threshold=0))


def cachelib_memcached(place: Place) -> Iterator[Config]:
    import memcache
    from cachelib import MemcachedCache

    server = place.get_server(MemcachedServer)
    client = memcache.Client([server.address])

    try:
        yield {**_cachelib(MemcachedCache(client)), "SESSION_KEY_PREFIX": place.name}
    finally:
        client.disconnect_all()
        # memcached lists its keys only for its operator, and here the whole server
        # is ours.
        server.flush()


def _redis(place: Place, server: ValkeyServer) -> Iterator[Config]:
    from redis import Redis

    prefix = f"{place.name}:"

    try:
        yield {
            "SESSION_BACKEND": "redis",
            "SESSION_REDIS_URL": server.url,
            "SESSION_KEY_PREFIX": prefix,
        }
    finally:
        with Redis.from_url(server.url) as client:
            # In any place of the name: a key on a Cluster begins with its slot.
            for key in client.scan_iter(match=f"*{prefix}*", count=1_000):
                client.delete(key)


def _sqlalchemy(place: Place, url: str) -> Config:
    return {
        "SESSION_BACKEND": "sqlalchemy",
        "SESSION_SQLALCHEMY_URL": url,
        "SESSION_SQLALCHEMY_TABLE": place.name,
    }


def _cachelib(cache: t.Any) -> Config:
    return {"SESSION_BACKEND": "cachelib", "SESSION_CACHELIB": cache}


def _drop_tables(url: str, prefix: str) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(url, poolclass=sa.NullPool)

    with engine.begin() as connection:
        for table in sa.inspect(connection).get_table_names():
            if table.startswith(prefix):
                sa.Table(table, sa.MetaData()).drop(connection)


#: The table: a name for tests to ask for, and what makes the configuration.
BACKEND_CONFIGS: dict[str, Callable[[Place], AbstractContextManager[Config]]] = {
    name: contextlib.contextmanager(function)
    for name, function in {
        "memory": memory,
        "filesystem": filesystem,
        "valkey": valkey,
        "redis": redis,
        "sqlite": sqlite,
        "postgresql": postgresql,
        "mariadb": mariadb,
        "cachelib-simple": cachelib_simple,
        "cachelib-filesystem": cachelib_filesystem,
        "cachelib-memcached": cachelib_memcached,
    }.items()
}
