"""Measure the CPU time that an operation takes in the server; see docs/scaling.rst.

::

    python -m tests.benchmarks.server_cpu valkey
    python -m tests.benchmarks.server_cpu postgresql
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable

import psutil

from flask_serversession import Backend
from flask_serversession import Record
from flask_serversession.backends.redis import RedisBackend
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend

from ..servers import PostgresServer
from ..servers import Server
from ..servers import ValkeyServer

NUMBER = 20_000
SIZE = 500


def used_by(server: Server) -> float:
    """Give the CPU seconds of the server and of its processes for connections."""
    process = psutil.Process(server.pid)
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(used.user + used.system for used in times)


def main(name: str) -> None:
    with contextlib.ExitStack() as stack:
        server: Server
        if name == "valkey":
            server = stack.enter_context(ValkeyServer())
            backend: Backend = RedisBackend.from_url(server.url)
        else:
            server = stack.enter_context(PostgresServer())
            backend = SQLAlchemyBackend.from_url(server.url)
        stack.callback(backend.close)
        now = time.time()
        record = Record(os.urandom(SIZE), 1, now, now, now + 86_400)
        keys = [secrets.token_hex(32) for _ in range(NUMBER)]

        def replace(key: str) -> object:
            return backend.replace(key, record, 1)

        def touch(key: str) -> object:
            return backend.touch(key, now + 60, now + 86_460)

        operations: list[tuple[str, Callable[[str], object]]] = [
            ("create", lambda key: backend.create(key, record)),
            ("load", backend.load),
            ("replace", replace),
            ("touch", touch),
        ]
        for label, operation in operations:
            before = used_by(server)
            for key in keys:
                assert operation(key)
            took = (used_by(server) - before) / NUMBER
            print(f"{name}: {label}: {took * 1e6:.0f} µs of the server")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
