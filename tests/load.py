"""A load of requests whose every answer is checked, and a model to compare with.

Workers append entries to lists that sessions hold, and read them back, while a test
does something to the servers. Each entry is unique, so that each single write can be
accounted for: whether it was confirmed, whether it must have survived, whether it is
there twice. :func:`create_app` is the application, also for servers that load it by
its name.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import random
import threading
import time
import traceback
import typing as t
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import flask

from flask_serversession import ServerSession
from flask_serversession import session

#: Seconds. Nothing waits that long unless it is broken.
WAIT = 120.0

#: The environment variable in which servers find the configuration, as JSON.
CONFIG_VARIABLE = "LOAD_APP_CONFIG"


# -- the application


def create_app(
    config: t.Mapping[str, t.Any] | None = None,
    extension: Callable[[flask.Flask], t.Any] = ServerSession,
) -> flask.Flask:
    """Make the application: every session has an owner and a list."""
    is_served = config is None
    if config is None:
        config = json.loads(os.environ[CONFIG_VARIABLE])
    app = flask.Flask(__name__, instance_path="/nonexistent/instance")
    app.config.update(SECRET_KEY="a secret")
    app.config.update(config)
    app.extensions["extension"] = extension(app)

    @app.post("/start/<owner>/<user>")
    def start(owner: str, user: str) -> str:
        session.update(owner=owner, _user_id=user, log=[])
        return ""

    @app.post("/append/<entry>")
    def append(entry: str) -> str:
        """Change something inside of a value, which is merged and saved afterwards."""
        session["log"].append(entry)
        return ""

    @app.post("/atomic/<entry>")
    def atomic(entry: str) -> str:
        session.atomic(lambda own: own["log"].append(entry))
        return ""

    @app.get("/read")
    def read() -> dict[str, t.Any]:
        return {"owner": session.get("owner"), "log": session.get("log")}

    if is_served:
        # Before the server forks: with open connections, which its workers inherit.
        status, text, _ = client_of(app)("POST", "/start/parent/parent", None)
        assert status == 200, text
    return app


# -- those who ask it


class Client(t.Protocol):
    """Whatever sends a request with a cookie, and gives what comes back."""

    def __call__(
        self, method: str, path: str, cookie: str | None, /
    ) -> tuple[int, str, str | None]:
        """Give the status, the text, and the new cookie, if there is one."""
        ...


def client_of(app: flask.Flask) -> Client:
    """Give a client that calls an application in this process."""

    def ask(method: str, path: str, cookie: str | None) -> tuple[int, str, str | None]:
        headers = {} if cookie is None else {"Cookie": f"session={cookie}"}
        client = app.test_client(use_cookies=False)
        response = client.open(path, method=method, headers=headers)
        return (
            response.status_code,
            response.text,
            find_cookie(response.headers.getlist("Set-Cookie")),
        )

    return ask


def client_at(host: str, port: int) -> Client:
    """Give a client that sends each request over a connection of its own."""

    def ask(method: str, path: str, cookie: str | None) -> tuple[int, str, str | None]:
        headers = {} if cookie is None else {"Cookie": f"session={cookie}"}
        with contextlib.closing(
            http.client.HTTPConnection(host, port, timeout=WAIT)
        ) as connection:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            text = response.read().decode()
            cookies = response.headers.get_all("Set-Cookie", [])
        return response.status, text, find_cookie(cookies)

    return ask


def find_cookie(headers: Iterable[str]) -> str | None:
    """Give the value of the session cookie in the headers of a response."""
    for header in headers:
        name, _, rest = header.partition("=")
        if name == "session":
            return rest.partition(";")[0]
    return None


# -- the model


@dataclasses.dataclass
class Entry:
    """One write.

    :param began: The phase in which its request was sent.
    :param confirmed: The phase in which its success was seen; ``None`` for one that
        failed, which may have been carried out all the same.
    """

    began: int
    confirmed: int | None = None


class Visitor:
    """A session, and what its browser was told about it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cookie: str | None = None
        self.entries: dict[str, Entry] = {}

    @property
    def handle(self) -> str:
        """What the session is called in the store."""
        from flask_serversession.record import key_of

        assert self.cookie is not None
        return key_of(self.cookie.rsplit(".", 2)[0], "")


#: The phases of :class:`Load`.
BEFORE, MARKED, AFTER = range(3)


class Load:
    """Workers, each a thread with a client of its own.

    :param clients: The client of each worker.
    :param sessions: How many sessions each worker has for itself. One more is common
        to all of them.
    """

    def __init__(self, clients: Sequence[Client], sessions: int = 3) -> None:
        self._clients = clients
        self._lock = threading.Condition()
        self._phase = BEFORE
        self._is_over = threading.Event()
        self._problems: list[str] = []
        self._turns = [0] * len(clients)
        self._since = 0.0
        #: Whether a session's confirmed writes may be lost between mark() and
        #: after(); of others none may.
        self.is_exposed: Callable[[Visitor], bool] = lambda _: True
        self.common = Visitor("common")
        self.own = [
            [Visitor(f"w{worker}s{number}") for number in range(sessions)]
            for worker in range(len(clients))
        ]
        #: When requests failed, in seconds since after() or, before that, mark().
        self.failures: list[float] = []
        #: The longest request, in seconds.
        self.longest = 0.0
        #: How many confirmed writes are not there, as check() found.
        self.lost = 0
        #: How many requests succeeded.
        self.successes = 0
        #: Seconds from after() until the first success of an exposed session.
        self.recovered_after: float | None = None

    @property
    def visitors(self) -> list[Visitor]:
        """All sessions."""
        return [self.common, *itertools.chain.from_iterable(self.own)]

    def owner_of(self, visitor: Visitor) -> str:
        """Give the user that a session belongs to: one for each worker."""
        return visitor.name.partition("s")[0]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Make the sessions, and let the workers work for a ``with`` statement."""
        for visitor in self.visitors:
            path = f"/start/{visitor.name}/{self.owner_of(visitor)}"
            status, text, visitor.cookie = self._clients[0]("POST", path, None)
            assert status == 200, text
        threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True)
            for number in range(len(self._clients))
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join(WAIT)
        assert not any(thread.is_alive() for thread in threads), "a worker hangs"
        assert not self._problems, "\n".join(self._problems)

    def wait_for_turns(self, number: int = 1) -> None:
        """Wait until each worker has written and read each of its sessions again.

        :param number: How many times, without a failure in any of them.
        """
        with self._lock:
            # The turn that is under way may have begun before.
            goals = [turns + number + 1 for turns in self._turns]
            done = self._lock.wait_for(
                lambda: (
                    self._problems
                    or all(a >= b for a, b in zip(self._turns, goals, strict=True))
                ),
                WAIT,
            )
            assert not self._problems, "\n".join(self._problems)
            assert done, f"no progress: {self._turns} instead of {goals}"

    def mark(self) -> None:
        """Say that what is confirmed from now on may be lost, if it is exposed."""
        self._enter(MARKED)

    def after(self) -> None:
        """Say that what is asked from now on has to be kept again."""
        self._enter(AFTER)

    def check(self, read: Client) -> str:
        """Compare all sessions with the model.

        :return: What was counted, for people.
        """
        self.lost = confirmed = 0
        for visitor in self.visitors:
            status, text, _ = read("GET", "/read", visitor.cookie)
            assert status == 200, text
            log = self._check_content(visitor, text, self._must_have(visitor))
            for name, entry in visitor.entries.items():
                if entry.confirmed is not None:
                    confirmed += 1
                    self.lost += name not in log
        text = (
            f"{self.successes:,} requests succeeded, {len(self.failures)} failed;"
            f" {confirmed:,} writes confirmed, {self.lost} of them lost;"
            f" the longest request took {self.longest:.1f} s"
        )
        if self.recovered_after is not None:
            text += f"; the first success came after {self.recovered_after:.1f} s"
        return text

    # -- inside of a worker

    def _enter(self, phase: int) -> None:
        with self._lock:
            self._phase = phase
            self._since = time.monotonic()

    def _must_have(
        self, visitor: Visitor, prefix: str = "", *, is_settled: bool = True
    ) -> set[str]:
        """Give the entries that have to be in the store."""
        is_exposed = self.is_exposed(visitor)
        return {
            name
            for name, entry in visitor.entries.items()
            if name.startswith(prefix)
            and entry.confirmed is not None
            and (
                not is_settled
                or not is_exposed
                or entry.confirmed == BEFORE
                or entry.began == AFTER
            )
        }

    def _work(self, worker: int) -> None:
        # Not the shared generator: others seed it.
        choose = random.Random(worker)
        numbers = itertools.count()
        try:
            while not self._is_over.is_set():
                visitors = [self.common, *self.own[worker]]
                choose.shuffle(visitors)
                is_clean = True
                for visitor in visitors:
                    is_clean &= self._write(worker, visitor, next(numbers))
                    is_clean &= self._read(worker, visitor)
                if is_clean:
                    with self._lock:
                        self._turns[worker] += 1
                        self._lock.notify_all()
                else:
                    self._is_over.wait(0.05)
        except BaseException:  # noqa: BLE001 - told in the thread of the test
            with self._lock:
                self._problems.append(traceback.format_exc())
                self._lock.notify_all()

    def _write(self, worker: int, visitor: Visitor, number: int) -> bool:
        name = f"w{worker}-{number}"
        with self._lock:
            entry = visitor.entries[name] = Entry(self._phase)
        how = "append" if number % 2 else "atomic"
        is_done, _ = self._ask(worker, visitor, "POST", f"/{how}/{name}")
        if is_done:
            with self._lock:
                entry.confirmed = self._phase
        return is_done

    def _read(self, worker: int, visitor: Visitor) -> bool:
        with self._lock:
            began = self._phase
            # What this worker wrote. Of the others', who knows what comes first.
            prefix = f"w{worker}-"
            settled = self._must_have(visitor, prefix)
            all_of_it = self._must_have(visitor, prefix, is_settled=False)
        is_done, text = self._ask(worker, visitor, "GET", "/read")
        if is_done:
            with self._lock:
                has_all = began == self._phase == BEFORE
            self._check_content(visitor, text, all_of_it if has_all else settled)
        return is_done

    def _check_content(
        self, visitor: Visitor, text: str, must_have: set[str]
    ) -> list[str]:
        content = json.loads(text)
        assert content["owner"] == visitor.name, "another's session, or none"
        log: list[str] = content["log"]
        twice = [name for name, n in collections.Counter(log).items() if n > 1]
        assert not twice, f"written twice: {twice}"
        with self._lock:
            unknown = set(log) - visitor.entries.keys()
        assert not unknown, f"written by nobody: {unknown}"
        missing = must_have - set(log)
        assert not missing, f"lost from {visitor.name}: {missing}"
        for worker in range(len(self._clients)):
            numbers = [
                int(name.partition("-")[2])
                for name in log
                if name.startswith(f"w{worker}-")
            ]
            assert numbers == sorted(numbers), f"out of order: {numbers}"
        return log

    def _ask(
        self, worker: int, visitor: Visitor, method: str, path: str
    ) -> tuple[bool, str]:
        with self._lock:
            began = self._phase
        started = time.monotonic()
        status, text, cookie = self._clients[worker](method, path, visitor.cookie)
        ended = time.monotonic()
        # A cookie that is renewed has the same id.
        assert cookie is None or cookie == visitor.cookie, "a new session"
        assert status in (200, 503), f"{status}: {text}"
        with self._lock:
            self.longest = max(self.longest, ended - started)
            if status == 503:
                self.failures.append(ended - self._since)
                return False, text
            self.successes += 1
            if (
                began == AFTER
                and self.recovered_after is None
                and self.is_exposed(visitor)
            ):
                self.recovered_after = ended - self._since
        return True, text
