"""Delete many expired sessions in batches while a writer works beside it.

Prints how long it took and how long the writer waited at the worst::

    python -m tests.benchmarks.prune postgresql 1000000
    python -m tests.benchmarks.prune sqlite 100000
    python -m tests.benchmarks.prune filesystem 100000
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import sys
import tempfile
import threading
import time
import typing as t
from collections.abc import Iterator

from flask_serversession import Backend
from flask_serversession import Record
from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend

from ..servers import PostgresServer

BATCH = 500
PREFIX = "session:"


def record(expires_at: float) -> Record:
    now = time.time()
    return Record(b"x" * 100, 1, now - 7200, now - 7200, expires_at)


def new_key() -> str:
    return PREFIX + secrets.token_hex(32)


@contextlib.contextmanager
def filled(name: str, count: int) -> Iterator[Backend]:
    """Give a backend that holds so many expired records."""
    past = time.time() - 60
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if name == "filesystem":
            # Stored while they live: what has expired already is not stored at all.
            now = 0.0
            backend: Backend = FilesystemBackend(
                folder, prefix=PREFIX, clock=lambda: now or time.time()
            )
            now = past - 3600
            for _ in range(count):
                backend.create(new_key(), record(past))
            now = 0.0
            yield backend
            return
        url = f"sqlite:///{folder}/sessions.db"
        if name == "postgresql":
            url = stack.enter_context(PostgresServer()).url
        database = SQLAlchemyBackend.from_url(url)
        stack.callback(database.close)
        database.create_tables()
        import sqlalchemy as sa

        engine = sa.create_engine(url)
        rows = [
            {
                "key": new_key(),
                "data": b"x" * 100,
                "version": 1,
                "created_at": past,
                "touched_at": past,
                "expires_at": past,
                "user": None,
                "meta": "",
            }
            for _ in range(count)
        ]
        with engine.begin() as connection:
            for start in range(0, count, 10_000):
                connection.execute(
                    database.table.insert(), rows[start : start + 10_000]
                )
        engine.dispose()
        yield database


def write(backend: Backend, is_over: threading.Event, waits: list[float]) -> None:
    """Create and replace records, one after the other, and note each wait."""
    while not is_over.is_set():
        key, live = new_key(), record(time.time() + 3600)
        for operation in (
            lambda: backend.create(key, live),  # noqa: B023 - called at once
            lambda: backend.replace(key, live, 1),  # noqa: B023
        ):
            started = time.perf_counter()
            operation()
            waits.append(time.perf_counter() - started)


def main(name: str, count: int) -> None:
    with filled(name, count) as backend:
        alone: list[float] = []
        beside: list[float] = []
        deleted = 0
        for waits, is_pruning in ((alone, False), (beside, True)):
            is_over = threading.Event()
            writer = threading.Thread(target=write, args=(backend, is_over, waits))
            writer.start()
            started = time.perf_counter()
            if is_pruning:
                while batch := backend.prune(BATCH):
                    deleted += batch
            else:
                time.sleep(3)
            took = time.perf_counter() - started
            is_over.set()
            writer.join()
    assert deleted == count, deleted
    for label, waits in (("alone", alone), ("beside prune", beside)):
        print(  # noqa: T201
            f"{name}: {count:,} expired; writer {label}: {len(waits):,} writes,"
            f" median {statistics.median(waits) * 1e3:.2f} ms,"
            f" longest {max(waits) * 1e3:.1f} ms"
        )
    print(f"{name}: pruned in {took:.1f} s, {BATCH} at a time")  # noqa: T201


if __name__ == "__main__":
    main(t.cast(t.Any, sys.argv[1]), int(sys.argv[2]))
