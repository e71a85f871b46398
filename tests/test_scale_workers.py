"""Forked workers of gunicorn, of every kind, and of uWSGI, on every shared backend.

``SOAK_SECONDS`` makes each soak longer; the default is short.
"""

from __future__ import annotations

import json
import os
import time
import typing as t
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
import sqlalchemy as sa

from .backend_configs import Config
from .load import CONFIG_VARIABLE
from .load import Load
from .load import client_at
from .load import client_of
from .load import create_app
from .servers import UWSGI
from .servers import Gunicorn
from .servers import wait_until

SECONDS = float(os.environ.get("SOAK_SECONDS", "1"))
#: How many requests are sent at the same time.
CLIENTS = 8
#: As docs/scaling.rst tells users of gevent to begin.
PATCHES = str(Path(__file__).with_name("gunicorn_gevent.py"))
WORKERS = {
    "sync": ("--workers", "4"),
    "gthread": ("--workers", "2", "--threads", "4"),
    "gevent": ("--workers", "2", "--config", PATCHES, "--worker-class", "gevent"),
    # gunicorn does it by itself too, but after the application was made.
    "gevent, patched late": ("--workers", "2", "--worker-class", "gevent"),
    "uwsgi": ("--processes", "2", "--threads", "4"),
}
#: What connections of the application's are called at the server.
NAME = "soak"


def name_connections(config: Config) -> Config:
    """Have the connections say who they are."""
    config = dict(config)
    if "SESSION_REDIS_URL" in config:
        config["SESSION_REDIS_URL"] += f"?client_name={NAME}"
    url = config.get("SESSION_SQLALCHEMY_URL", "")
    if url.startswith("postgresql"):
        config["SESSION_SQLALCHEMY_URL"] = f"{url}?application_name={NAME}"
    return config


def see_connections(config: Config) -> dict[str, str]:
    """Give what the server says of each connection: who it is, and what it did."""
    if "SESSION_REDIS_URL" in config:
        with redis.Redis.from_url(config["SESSION_REDIS_URL"].split("?")[0]) as client:
            clients: list[dict[str, str]] = client.client_list()
        return {c["id"]: c["tot-cmds"] for c in clients if c["name"] == NAME}
    url = config.get("SESSION_SQLALCHEMY_URL", "").split("?")[0]
    if url.startswith("postgresql"):
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        statement = sa.text(
            "SELECT pid, state_change FROM pg_stat_activity"
            " WHERE application_name = :name"
        )
        with engine.connect() as connection:
            rows = connection.execute(statement, {"name": NAME})
            return {str(row.pid): str(row.state_change) for row in rows}
    return {}


class Usage(t.NamedTuple):
    """What the workers use, all of them together."""

    files: int
    megabytes: float

    @classmethod
    def of(cls, workers: list[psutil.Process]) -> Usage:
        memory = sum(worker.memory_info().rss for worker in workers)
        return cls(sum(worker.num_fds() for worker in workers), memory / 1e6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(WORKERS))
@pytest.mark.parametrize("name", ["filesystem", "sqlite", "valkey", "postgresql"])
def test_forked_workers_lose_nothing_and_leak_nothing(
    name: str,
    kind: str,
    make_backend_config: Callable[[str], Config],
    report: Callable[[str], None],
) -> None:
    config = name_connections(make_backend_config(name))
    environ = {CONFIG_VARIABLE: json.dumps(config)}
    app = "tests.load:create_app()"
    server_class = UWSGI if kind == "uwsgi" else Gunicorn
    with server_class(app, *WORKERS[kind], environ=environ) as server:
        # Nobody has asked for anything yet: these are those of before the fork.
        inherited = see_connections(config)
        assert bool(inherited) is (name in ("valkey", "postgresql"))
        load = Load([client_at(server.host, server.port) for _ in range(CLIENTS)])
        with load.running():
            # gunicorn pauses between two forks, and the first worker answers already.
            wait_until(lambda: len(server.workers) == int(WORKERS[kind][1]))
            load.wait_for_turns()
            workers = server.workers
            before = Usage.of(workers)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                load.wait_for_turns()
            after = Usage.of(workers)
        assert {w.pid for w in server.workers} == {w.pid for w in workers}, "one died"
        connections = see_connections(config)
        # They are still there, and nobody but the parent has used them.
        assert {key: connections[key] for key in inherited} == inherited
        result = load.check(client_at(server.host, server.port))
        assert load.lost == 0
        assert load.failures == []
        # A request at a time uses a connection or a file, and is one itself. A
        # connection of SQLite has three files.
        each = 4 if name == "sqlite" else 2
        assert after.files - before.files <= each * CLIENTS
        assert after.megabytes < 1.5 * before.megabytes
        assert len(connections) - len(inherited) <= CLIENTS * len(workers)
        own = create_app(config)
        with own.app_context():
            extension = own.extensions["extension"]
            assert extension.count() == len(load.visitors) + 1
            assert extension.revoke_user("w0") == len(load.own[0])
        assert client_of(own)("GET", "/read", load.own[0][0].cookie)[1] == (
            '{"log":null,"owner":null}\n'
        )
        own.extensions["serversession"].backend.close()
    report(
        f"{result}; files {before.files} → {after.files}, memory"
        f" {before.megabytes:.0f} → {after.megabytes:.0f} MB, connections"
        f" {len(inherited)} → {len(connections)}"
    )
