"""Counts what passes between a process and an engine.

Servers are asked through a proxy, which sees what every driver really sends; SQLite
tells its statements; Python tells which files it opens, renames and removes.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import sqlite3
import sys
import threading
import typing as t
from collections.abc import Iterator

_RESP = re.compile(rb"\*\d+\r\n\$")
_SSL_REQUEST = 80877103
_FILE_EVENTS = frozenset({"open", "os.rename", "os.remove"})


class Counts:
    """What was counted since the last :meth:`reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        self.round_trips = 0
        self.commands = 0
        self.sent = 0
        self.received = 0

    def per(self, requests: int) -> dict[str, float]:
        """Give the counts for each of so many requests."""
        return {name: value / requests for name, value in vars(self).items()}


class _PostgresParser:
    """Counts the statements in what a client of PostgreSQL sends."""

    def __init__(self) -> None:
        self._buffer = b""
        self._has_started = False

    def __call__(self, data: bytes) -> int:
        self._buffer += data
        statements = 0
        while True:
            offset = 1 if self._has_started else 0
            if len(self._buffer) < offset + 4:
                return statements
            size = offset + int.from_bytes(self._buffer[offset : offset + 4], "big")
            if len(self._buffer) < size:
                return statements
            message, self._buffer = self._buffer[:size], self._buffer[size:]
            if self._has_started:
                # Query, and Execute of what was prepared.
                statements += message[:1] in (b"Q", b"E")
            elif int.from_bytes(message[4:8], "big") != _SSL_REQUEST:
                self._has_started = True


def _count_resp(data: bytes) -> int:
    return len(_RESP.findall(data))


class CountingProxy:
    """Hands on what it gets, and counts it.

    :param kind: ``"redis"`` or ``"postgresql"``.
    """

    def __init__(self, host: str, port: int, kind: str, counts: Counts) -> None:
        self._target = (host, port)
        self._kind = kind
        self._counts = counts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pump, args=(client,), daemon=True).start()

    def _pump(self, client: socket.socket) -> None:
        counts = self._counts
        parse = _PostgresParser() if self._kind == "postgresql" else _count_resp
        is_asking = False
        with (
            client,
            socket.create_connection(self._target) as server,
            selectors.DefaultSelector() as selector,
        ):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    try:
                        data = t.cast(socket.socket, key.fileobj).recv(65_536)
                    except OSError:
                        return
                    if not data:
                        return
                    # Before it is handed on: the answer is counted by then.
                    if key.fileobj is client:
                        counts.round_trips += not is_asking
                        counts.commands += parse(data)
                        counts.sent += len(data)
                        is_asking = True
                        server.sendall(data)
                    else:
                        counts.received += len(data)
                        is_asking = False
                        client.sendall(data)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


@contextlib.contextmanager
def counted_sqlite(counts: Counts) -> Iterator[None]:
    """Count the statements of all connections to SQLite that are opened meanwhile."""
    import sqlalchemy as sa

    def count(_: str) -> None:
        counts.commands += 1

    def trace(connection: t.Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(count)

    sa.event.listen(sa.Engine, "connect", trace)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "connect", trace)


_file_counts: list[Counts] = []


@contextlib.contextmanager
def counted_files(counts: Counts) -> Iterator[None]:
    """Count the files that are opened, renamed and removed meanwhile."""
    if not _file_counts:
        # Nothing can remove it again, so this comes after all that is timed.
        sys.addaudithook(_hear)
    _file_counts[:] = [counts]
    try:
        yield
    finally:
        _file_counts[:] = [Counts()]


def _hear(event: str, _: object) -> None:
    if event in _FILE_EVENTS:
        _file_counts[0].commands += 1
