"""Measure what a stored session takes; see docs/scaling.rst.

Stores many sessions, and divides by their number what the engine says it has grown by.
Then changes each of them twice, as they are in an engine that has been in use::

    python -m tests.benchmarks.sizes valkey 100000
    python -m tests.benchmarks.sizes sqlite 100000
    python -m tests.benchmarks.sizes postgresql 100000
    python -m tests.benchmarks.sizes filesystem 100000
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import sys
import tempfile
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import flask

from flask_serversession import Backend
from flask_serversession import Record
from flask_serversession import ServerSession
from flask_serversession.record import key_of

from ..servers import PostgresServer
from ..servers import ValkeyServer
from .apps import make_data

PREFIX = "session:"
#: About so many bytes of content.
CONTENTS = (100, 500, 2_000)
#: How often each session is changed.
CHANGES = 2


@contextlib.contextmanager
def filesystem() -> Iterator[tuple[dict[str, t.Any], Callable[[], int]]]:
    with tempfile.TemporaryDirectory() as folder:

        def measure() -> int:
            paths = Path(folder).rglob("*")
            return sum(path.lstat().st_blocks * 512 for path in paths)

        yield (
            {"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": folder},
            measure,
        )


@contextlib.contextmanager
def valkey() -> Iterator[tuple[dict[str, t.Any], Callable[[], int]]]:
    import redis

    with ValkeyServer() as server, redis.Redis.from_url(server.url) as client:

        def measure() -> int:
            info: t.Any = client.info("memory")
            return t.cast(int, info["used_memory"])

        yield {"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": server.url}, measure


@contextlib.contextmanager
def sqlite() -> Iterator[tuple[dict[str, t.Any], Callable[[], int]]]:
    import sqlite3

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/sessions.db"

        def measure() -> int:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return os.path.getsize(path)

        yield use_database(f"sqlite:///{path}"), measure


@contextlib.contextmanager
def postgresql() -> Iterator[tuple[dict[str, t.Any], Callable[[], int]]]:
    import psycopg

    with PostgresServer() as server:

        def measure() -> int:
            url = server.url.replace("+psycopg", "")
            with psycopg.connect(url, autocommit=True) as connection:
                # As autovacuum does it, and before it is measured.
                connection.execute("VACUUM sessions")
                row = connection.execute(
                    "SELECT pg_total_relation_size('server_sessions')"
                ).fetchone()
            assert row is not None
            return t.cast(int, row[0])

        yield use_database(server.url), measure


def use_database(url: str) -> dict[str, t.Any]:
    return {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": url}


ENGINES = {
    "filesystem": filesystem,
    "valkey": valkey,
    "sqlite": sqlite,
    "postgresql": postgresql,
}


def make_record(app: flask.Flask, content: int, *, has_user: bool) -> Record:
    """Give the record that a session of about so many bytes makes."""
    data = {**make_data(content)}
    if has_user:
        data["_user_id"] = "10000000"
    with app.test_client() as client:
        with client.session_transaction() as session:
            session.update(data)
        cookie = client.get_cookie("session")
    assert cookie is not None
    backend: Backend = app.extensions["serversession"].backend
    key = key_of(cookie.value.rsplit(".", 2)[0], PREFIX)
    record = backend.load(key)
    assert record is not None
    backend.delete(key)
    return record


def fill(name: str, count: int, content: int, *, has_user: bool) -> None:
    with ENGINES[name]() as (config, measure):
        app = flask.Flask(__name__, instance_path="/nonexistent/instance")
        app.config.update(SECRET_KEY="not a secret", **config)
        ServerSession(app)
        record = make_record(app, content, has_user=has_user)
        backend: Backend = app.extensions["serversession"].backend
        before = measure()
        keys = [PREFIX + secrets.token_hex(32) for _ in range(count)]
        users = [
            str(10_000_000 + number) if has_user else None for number in range(count)
        ]
        for key, user in zip(keys, users, strict=True):
            assert backend.create(key, dataclasses.replace(record, user=user))
        fresh = measure() - before
        for number in range(CHANGES):
            for key, user in zip(keys, users, strict=True):
                own = dataclasses.replace(record, user=user, version=number + 2)
                backend.replace(key, own, number + 1)
        used = measure() - before
        backend.close()
    who = "a user of its own" if has_user else "no user"
    print(  # noqa: T201
        f"{name}: {count:,} sessions with {who}, data of {len(record.data):,} bytes:"
        f" {fresh / count:,.0f} bytes each,"
        f" {used / count:,.0f} after {CHANGES} changes",
        flush=True,
    )


def main(name: str, count: int) -> None:
    for content in CONTENTS:
        for has_user in (False, True):
            fill(name, count, content, has_user=has_user)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
