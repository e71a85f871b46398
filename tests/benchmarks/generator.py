"""Drives an HTTP server, from a process of its own.

Each connection sends its next request as soon as it has the answer to the last one,
and stands for a visitor with a session of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import re
import selectors
import socket
import time
import typing as t
from collections.abc import Generator
from multiprocessing.connection import Connection

#: Seconds within which each answer must come.
TIMEOUT = 60.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_COOKIE = re.compile(rb"\r\nset-cookie: *([^;\r]*)", re.IGNORECASE)
# More than a server's workers can be unlucky with.
_ATTEMPTS = 1_000


@dataclasses.dataclass(frozen=True)
class Block:
    """What is to be driven."""

    host: str
    port: int
    #: The path that begins a session.
    login: str
    path: str
    #: Whether each request comes with a session: ``False`` begins one with each.
    has_session: bool
    #: Whether each request ends its session, and so needs one that is fresh.
    ends_session: bool
    seconds: float
    #: How many connections each of so many workers gets.
    connections: int
    workers: int


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a block took."""

    requests: int
    #: Requests per second.
    rate: float
    #: The 99th percentile of the time to an answer, in milliseconds.
    p99: float


class WrongAnswerError(Exception):
    """The server answered something else than it should have, or not at all."""


@contextlib.contextmanager
def generator() -> Generator[t.Callable[[Block], Figures]]:
    """Give what drives a block in another process, which ends with this one."""
    context = multiprocessing.get_context("spawn")
    own, others = context.Pipe()
    process = context.Process(target=_work, args=(others,), daemon=True)
    process.start()
    # So that either end learns of the other's death.
    others.close()

    def drive(block: Block) -> Figures:
        own.send(block)
        answer = own.recv()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Figures)
        return answer

    try:
        yield drive
    finally:
        own.close()
        process.terminate()
        process.join()


def _work(connection: Connection[t.Any, t.Any]) -> None:
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            block = connection.recv()
            try:
                connection.send(run(block))
            except (OSError, WrongAnswerError) as e:
                connection.send(e)


def run(block: Block) -> Figures:
    """Drive one block, in this process.

    :raises WrongAnswerError: for any answer that is not a 200.
    """
    with contextlib.ExitStack() as stack:
        visitors = _connect(stack, block)
        for visitor in visitors:
            visitor.ask(block.login)
        if not block.ends_session:
            return _drive(visitors, block.path, block.has_session, block.seconds)
        # As many as there is time for, one for each of the requests.
        for visitor in visitors:
            visitor.harvest = []
        _drive(visitors, block.login, False, block.seconds)
        return _drive(visitors, block.path, True, None)


def _drive(
    visitors: list[_Visitor], path: str, has_session: bool, seconds: float | None
) -> Figures:
    times: list[int] = []
    clock = time.perf_counter_ns
    with selectors.DefaultSelector() as selector:
        for visitor in visitors:
            selector.register(visitor.socket, selectors.EVENT_READ, visitor)
        started = clock()
        end = None if seconds is None else started + int(seconds * 1e9)
        waiting = 0
        for visitor in visitors:
            waiting += visitor.send(path, has_session, end is None)
        while waiting:
            events = selector.select(TIMEOUT)
            if not events:
                raise WrongAnswerError(f"{path} was not answered in {TIMEOUT} s.")
            for key, _ in events:
                visitor = key.data
                if not visitor.receive(path):
                    continue
                now = clock()
                times.append(now - visitor.sent_at)
                if (end is not None and now >= end) or not visitor.send(
                    path, has_session, end is None
                ):
                    waiting -= 1
        took = clock() - started
    times.sort()
    p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
    return Figures(len(times), len(times) / took * 1e9, p99 / 1e6)


def _connect(stack: contextlib.ExitStack, block: Block) -> list[_Visitor]:
    """Give each worker its share of the connections.

    Who accepts a connection is chance, and all of them with one worker would measure
    another server than half of them with each.
    """
    shares: dict[bytes, list[_Visitor]] = {}
    for _ in range(_ATTEMPTS):
        visitor = _Visitor(block.host, block.port)
        stack.callback(visitor.socket.close)
        worker = visitor.ask("/worker")
        share = shares.setdefault(worker, [])
        if len(share) < block.connections:
            share.append(visitor)
        else:
            visitor.socket.close()
        visitors = [visitor for share in shares.values() for visitor in share]
        if len(visitors) == block.connections * block.workers:
            return visitors
    raise WrongAnswerError("Some workers of the server take no connections.")


class _Visitor:
    """A connection, and the cookie of its session."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0
        #: The cookies of fresh sessions; ``None`` if the last one is all that counts.
        self.harvest: list[bytes] | None = None
        self._host = f"{host}:{port}"
        self._cookie = b""
        self._buffer = b""
        self._request = (b"", b"")
        self._path = ""

    def send(self, path: str, has_session: bool, from_harvest: bool) -> bool:
        """Send a request. ``False``: there is no session left to send it with."""
        if path != self._path:
            head = f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n"
            self._request = (head.encode() + b"Cookie: ", head.encode() + b"\r\n")
            self._path = path
        cookie = self._cookie if has_session else b""
        if from_harvest:
            if not self.harvest:
                return False
            cookie = self.harvest.pop()
        with_cookie, without = self._request
        data = with_cookie + cookie + b"\r\n\r\n" if cookie else without
        self.sent_at = time.perf_counter_ns()
        self.socket.sendall(data)
        return True

    def receive(self, path: str) -> bytes | None:
        """Take what has come: the answer's body, or ``None`` until all is there."""
        data = self.socket.recv(65_536)
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if separator and not head.startswith(b"HTTP/1.1 200 "):
            status = head.partition(b"\r\n")[0].decode(errors="replace")
            raise WrongAnswerError(f"{path} was answered with {status!r}.")
        if separator and length is None:
            raise WrongAnswerError(f"{path} was answered without a Content-Length.")
        if length is None or len(body) < int(length[1]):
            if not data:
                raise WrongAnswerError(f"The connection ended before {path}'s answer.")
            return None
        self._buffer = b""
        cookie = _COOKIE.search(head)
        if cookie is not None:
            self._cookie = cookie[1]
        if self.harvest is not None and path.startswith("/login"):
            self.harvest.append(self._cookie)
        return body

    def ask(self, path: str) -> bytes:
        """Send a request without a session, and wait for its answer."""
        self.send(path, has_session=False, from_harvest=False)
        while (body := self.receive(path)) is None:
            pass
        return body
