"""Measures whether requests and cleanup cost more as more sessions are stored.

Requests that meet a random one of the stored sessions, with stores of several sizes
taking turns; then cleanup of 500 expired ones out of each::

    python -m tests.benchmarks.growth redis 1000 100000 1000000
    python -m tests.benchmarks.growth sqlite 1000 100000 1000000
    python -m tests.benchmarks.growth postgresql 1000 100000 1000000
    python -m tests.benchmarks.growth files 1000 100000
    python -m tests.benchmarks.growth memory 1000 100000
"""

from __future__ import annotations

import dataclasses
import random
import secrets
import statistics
import sys
import time
import typing as t
from contextlib import ExitStack

import redis
import sqlalchemy as sa

from flask_serversession import Backend
from flask_serversession import Record
from flask_serversession.backends.redis import RedisBackend
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend

from .apps import Browser
from .apps import Environ
from .apps import make_app
from .apps import make_environ
from .apps import use_ours
from .engines import ENGINES
from .engines import Places
from .measure import Subject
from .measure import measure

PREFIX = "session:"
#: How many of the stored sessions are visited.
VISITED = 200
EXPIRED = 500
CLEANUPS = 7
BLOCKS = 21
CALLS = 100
_BATCH = 10_000


class Store:
    """An engine of its own with so many sessions in it."""

    def __init__(self, stack: ExitStack, name: str, count: int) -> None:
        self.count = count
        engine = stack.enter_context(ENGINES[name](Places(stack)))
        app = make_app(use_ours(engine.ours))
        self._config = engine.ours
        self.backend: Backend = app.extensions["serversession"].backend
        self._browser = Browser(app)
        self._cookies = [self._browser.log_in("100B") for _ in range(VISITED)]
        _, record = next(iter(self.backend.iterate()))
        self._record = dataclasses.replace(record, user=None)
        self.fill(count - VISITED, self._record)

    def subject(self, kind: str) -> Subject:
        """Give requests for random ones of the visited sessions."""

        def prepare(count: int) -> list[Environ]:
            cookies = random.choices(self._cookies, k=count)
            return [make_environ(f"/{kind}", cookie) for cookie in cookies]

        return Subject(f"{self.count:,}", prepare, self._browser.call)

    def fill(self, count: int, record: Record) -> None:
        """Store so many copies of a record."""
        for start in range(0, count, _BATCH):
            keys = [
                PREFIX + secrets.token_hex(32)
                for _ in range(min(_BATCH, count - start))
            ]
            assert self.backend.create(keys[0], record)
            if isinstance(self.backend, SQLAlchemyBackend):
                self._copy_row(self.backend.table, keys)
            elif isinstance(self.backend, RedisBackend):
                self._copy_value(keys)
            else:
                for key in keys[1:]:
                    assert self.backend.create(key, record)

    def _copy_row(self, table: sa.Table, keys: list[str]) -> None:
        engine = sa.create_engine(self._config["SESSION_SQLALCHEMY_URL"])
        with engine.begin() as connection:
            row = connection.execute(table.select().where(table.c.key == keys[0])).one()
            copies = [{**row._asdict(), "key": key} for key in keys[1:]]
            if copies:
                connection.execute(table.insert(), copies)
        engine.dispose()

    def _copy_value(self, keys: list[str]) -> None:
        with redis.Redis.from_url(self._config["SESSION_REDIS_URL"]) as client:
            value: t.Any = client.get(keys[0])
            expiry: t.Any = client.pexpiretime(keys[0])
            with client.pipeline(transaction=False) as pipeline:
                for key in keys[1:]:
                    pipeline.set(key, value, pxat=expiry)
                pipeline.execute()

    def clean_up(self) -> float:
        """Delete some expired records; give the milliseconds."""
        until = time.time() + 1
        self.fill(EXPIRED, dataclasses.replace(self._record, expires_at=until))
        time.sleep(max(0.0, until - time.time()) + 0.01)
        started = time.perf_counter()
        deleted = self.backend.prune(EXPIRED)
        took = time.perf_counter() - started
        assert deleted == EXPIRED, deleted
        return took * 1_000


def main(name: str, counts: t.Sequence[int]) -> None:
    with ExitStack() as stack:
        stores = [Store(stack, name, count) for count in counts]
        for kind in ("read", "change"):
            subjects = [store.subject(kind) for store in stores]
            results = measure(subjects, blocks=BLOCKS, calls=CALLS)
            smallest = results[subjects[0].name]
            for subject in subjects:
                result = results[subject.name]
                _print(
                    f"{name}: {kind} with {subject.name} stored:"
                    f" CPU {result.median():.0f} µs"
                    f" ({result.ratio(smallest):.2f} times),"
                    f" wall {result.median('wall'):.0f} µs"
                    f" ({result.ratio(smallest, 'wall'):.2f} times)"
                )
        if isinstance(stores[0].backend, RedisBackend):
            return  # where it is the server's
        times: dict[int, list[float]] = {store.count: [] for store in stores}
        for _ in range(CLEANUPS):
            for store in stores:
                times[store.count].append(store.clean_up())
        for count, each in times.items():
            _print(
                f"{name}: {EXPIRED} expired out of {count:,} cleaned up in"
                f" {statistics.median(each):.1f} ms"
            )


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], [int(count) for count in sys.argv[2:]])
