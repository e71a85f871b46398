"""Processes are killed while they write, hundreds of times, and nothing is torn.

The processes that die are forked from a warm one, which has opened no backend, so that
a death costs a few milliseconds: see :func:`breed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import random
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_serversession.backends import Backend
from flask_serversession.backends import Replaced
from flask_serversession.payload import Sealer
from flask_serversession.record import Record
from flask_serversession.record import key_of
from flask_serversession.serializers import serializer_for

from .figures import Report

if sys.platform == "win32":
    pytest.skip("Windows has neither SIGKILL nor fork.", allow_module_level=True)

pytestmark = pytest.mark.slow

#: How often a writer is killed in each test.
KILLS = 300
#: The longest time that a writer is left to write, in seconds.
LONGEST_LIFE = 0.012
#: The largest payload, in bytes.
LARGEST = 200_000
#: How long what a dead writer held may block others, in seconds: less than the five
#: that a lock is waited for.
PATIENCE = 4.0
PREFIX = "crash:"
FAR = 4_000_000_000.0


# -- what is written, which proves itself


def make_data(number: int) -> bytes:
    """Give a payload of a size of its own that says which one it is."""
    size = random.Random(number).choice((10, 1_000, 10_000, 50_000, LARGEST))
    body = struct.pack(">Q", number) + random.Random(number).randbytes(size)
    return hashlib.sha256(body).digest() + body


def number_of(data: bytes) -> int:
    """Check a payload, and give its number."""
    body = data[32:]
    assert hashlib.sha256(body).digest() == data[:32], "The record is torn."
    number: int = struct.unpack_from(">Q", body)[0]
    assert data == make_data(number), "The record is mixed from several."
    return number


def make_record(number: int) -> Record:
    return Record(
        data=make_data(number),
        version=1,
        created_at=1.0,
        touched_at=float(number),
        expires_at=FAR,
        user=f"user {number}",
        meta={"number": str(number)},
    )


# -- the writer's own account of what it was doing, which outlives it


class Diary:
    """Numbers in memory that the writer shares with the test.

    Each is stored by one instruction: :func:`struct.pack_into` clears the place
    first, and a writer killed right then would have noted a 0.
    """

    _TEXT = 64

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 4096)
        self._numbers = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        self._numbers.release()
        self._memory.close()

    @property
    def begun(self) -> int:
        """The last number that it began to write."""
        return self._numbers[0]

    @property
    def done(self) -> int:
        """The last number that it knows to be written."""
        return self._numbers[1]

    def begin(self, number: int) -> None:
        self._numbers[0] = number

    def finish(self, number: int) -> None:
        self._numbers[1] = number

    @property
    def text(self) -> str:
        """What else it noted: the cookie that it got."""
        length, half = divmod(self._numbers[2], 2)
        start = self._TEXT + 1024 * half
        return self._memory[start : start + length].decode()

    @text.setter
    def text(self, value: str) -> None:
        # Into the half that is not read, so that no kill leaves half a text.
        half = 1 - self._numbers[2] % 2
        encoded = value.encode()
        start = self._TEXT + 1024 * half
        self._memory[start : start + len(encoded)] = encoded
        self._numbers[2] = 2 * len(encoded) + half


# -- the writers


@dataclasses.dataclass(frozen=True)
class Task:
    """What a writer is told to do."""

    store: str
    path: str
    kind: str
    number: int
    cookie: str = ""


def open_backend(store: str, path: str) -> Backend:
    if store == "filesystem":
        from flask_serversession.backends.filesystem import FilesystemBackend

        return FilesystemBackend(Path(path) / "sessions", prefix=PREFIX)
    from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend

    return SQLAlchemyBackend.from_url(
        f"sqlite:///{Path(path) / 'sessions.db'}", prefix=PREFIX
    )


KEYS = [key_of("first", PREFIX)]
# Another one, which the file system backend keeps behind the same lock.
KEYS.append(KEYS[0][:-4] + "0000")


def write_on(task: Task, diary: Diary) -> t.NoReturn:
    """Replace, remove, create and touch a record until killed."""
    backend = open_backend(task.store, task.path)
    key = KEYS[0]
    record = backend.load(key)
    version = 0 if record is None else record.version
    number = task.number
    while True:
        number += 1
        diary.begin(number)
        record = make_record(number)
        if number % 7 == 0 and version:
            backend.delete(key)
            version = 0
        if version:
            result = backend.replace(key, record, version)
            assert isinstance(result, Replaced)
            version = result.version
        else:
            assert backend.create(key, record)
            version = 1
        diary.finish(number)
        assert backend.touch(key, float(number), FAR)


def make_app(store: str, path: str) -> t.Any:
    import flask

    from flask_serversession import ServerSession
    from flask_serversession import session as typed_session

    app = flask.Flask("crash", instance_path=path)
    app.config.update(
        SECRET_KEY="a secret",
        TESTING=True,
        SESSION_BACKEND=open_backend(store, path),
        SESSION_KEY_PREFIX=PREFIX,
        SESSION_ROTATION_GRACE=3600,
    )
    ServerSession(app)

    @app.get("/rotate/<int:number>")
    def rotate(number: int) -> str:
        flask.session["data"] = make_data(number)
        typed_session.regenerate()
        return "rotated"

    @app.get("/count/<int:number>")
    def count(number: int) -> str:
        def add(session: t.Any) -> None:
            session["count"] = session.get("count", 0) + 1
            session["data"] = make_data(session["count"])

        typed_session.atomic(add)
        return "counted"

    @app.get("/read")
    def read() -> dict[str, t.Any]:
        data = flask.session.get("data")
        return {
            "data": None if data is None else number_of(data),
            "count": flask.session.get("count"),
        }

    return app


def visit_on(task: Task, diary: Diary) -> t.NoReturn:
    """Be a server and the only visitor of it until killed."""
    app = make_app(task.store, task.path)
    client = app.test_client()
    if task.cookie:
        client.set_cookie("session", task.cookie)
    number = task.number
    while True:
        number += 1
        diary.begin(number)
        response = client.get(f"/{task.kind}/{number}")
        assert response.status_code == 200
        cookie = client.get_cookie("session")
        assert cookie is not None
        diary.text = cookie.value
        diary.finish(number)


def breed() -> None:
    """Fork a writer for each task that is read, and kill it when its time has come.

    Runs in a process of its own: ``python -m tests.test_crash``.
    """
    import flask.testing  # noqa: F401 - what writers need is imported once, here

    import flask_serversession.backends.filesystem
    import flask_serversession.backends.sqlalchemy  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        diary_path, life = Path(order.pop("diary")), order.pop("life")
        task = Task(**order)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.close(reading)
                diary = Diary(diary_path)
                os.write(writing, b"!")
                (write_on if task.kind == "write" else visit_on)(task, diary)
            os._exit(status)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        # Wait for its first write, then for the moment that chance has chosen.
        diary = Diary(diary_path)
        deadline = time.monotonic() + 10
        while diary.done <= task.number and time.monotonic() < deadline:
            select.select([], [], [], 0.0005)
            if os.waitpid(pid, os.WNOHANG)[0]:
                sys.stdout.write("the writer failed\n")
                sys.stdout.flush()
                return
        select.select([], [], [], life)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        diary.close()
        sys.stdout.write("killed\n")
        sys.stdout.flush()


class Breeder:
    """The other end of :func:`breed`."""

    def __init__(self, path: Path) -> None:
        self.diary = Diary(path / "diary")
        self._path = path / "diary"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.test_crash"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_one(self, task: Task, life: float) -> None:
        """Let a writer live for a while."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = dataclasses.asdict(task) | {"diary": str(self._path), "life": life}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)
        self.diary.close()


@pytest.fixture
def breeder(tmp_path: Path) -> Iterator[Breeder]:
    breeder = Breeder(tmp_path)
    yield breeder
    breeder.close()


# -- the tests

STORES = ["filesystem", "sqlite"]


def leftovers_of(path: Path) -> list[str]:
    """Give the temporary and the damaged files of the file system backend."""
    return [
        file.name
        for file in path.rglob("*")
        if file.name.startswith(".tmp-") or file.name.endswith(".damaged")
    ]


def check_afterwards(store: str, path: Path) -> int:
    """Check that what is left over is swept; give how many files that were."""
    if store == "sqlite":
        with contextlib.closing(sqlite3.connect(path / "sessions.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return 0
    leftovers = leftovers_of(path)
    assert not [name for name in leftovers if name.endswith(".damaged")]

    from flask_serversession.backends.filesystem import FilesystemBackend

    # Not before their age: they could be somebody's who is just writing.
    for later, expected in ((60, len(leftovers)), (2 * 3600, 0)):
        sweeper = FilesystemBackend(
            path / "sessions", prefix=PREFIX, clock=lambda s=later: time.time() + s
        )
        sweeper.prune(10_000)
        assert len(leftovers_of(path)) == expected
    return len(leftovers)


@pytest.mark.parametrize("store", STORES)
def test_a_record_whose_writer_is_killed_is_the_old_or_the_new_one(
    store: str, tmp_path: Path, breeder: Breeder, report: Report
) -> None:
    backend = open_backend(store, str(tmp_path))
    neighbour = make_record(1)
    assert backend.create(KEYS[1], neighbour)
    version, number, slowest = 1, 0, 0.0
    counts = dict.fromkeys(("old", "new", "removed", "between writes"), 0)
    for _ in range(KILLS):
        task = Task(store, str(tmp_path), "write", number)
        breeder.kill_one(task, random.uniform(0, LONGEST_LIFE))
        begun, done = breeder.diary.begun, breeder.diary.done
        assert done > number
        record = backend.load(KEYS[0])
        if record is None:
            # Removed on purpose, in front of a create.
            assert begun == done + 1
            assert begun % 7 == 0
            counts["removed"] += 1
        else:
            found = number_of(record.data)
            assert found in (done, begun)
            assert (record.user, record.meta) == (
                f"user {found}",
                {"number": str(found)},
            )
            assert record.touched_at == float(found)
            if begun == done:
                counts["between writes"] += 1
            else:
                counts["old" if found == done else "new"] += 1
        # Nobody has to wait for what the dead one held.
        number = begun + 1
        started = time.monotonic()
        result = backend.replace(KEYS[1], neighbour, version)
        assert result == Replaced(version + 1)
        version += 1
        if record is None:
            assert backend.create(KEYS[0], make_record(number))
        else:
            result = backend.replace(KEYS[0], make_record(number), record.version)
            assert result == Replaced(record.version + 1)
        slowest = max(slowest, time.monotonic() - started)
        assert slowest < PATIENCE
    assert backend.load(KEYS[1]) == dataclasses.replace(neighbour, version=version)
    backend.close()
    left_over = check_afterwards(store, tmp_path)
    assert counts["old"] + counts["new"] > KILLS / 4
    report(
        kills=KILLS,
        torn=0,
        lost=0,
        **counts,
        temporary_files_swept=left_over,
        slowest_write_after_a_kill=f"{slowest:.3f} s",
    )


@pytest.mark.parametrize("store", STORES)
def test_a_session_whose_server_is_killed_while_it_counts_counts_right(
    store: str, tmp_path: Path, breeder: Breeder, report: Report
) -> None:
    client = make_app(store, str(tmp_path)).test_client()
    assert client.get("/count/1").status_code == 200
    cookie = client.get_cookie("session").value
    count, slowest = 1, 0.0
    counts = dict.fromkeys(("old", "new", "between requests"), 0)
    for _ in range(KILLS):
        task = Task(store, str(tmp_path), "count", count, cookie)
        breeder.kill_one(task, random.uniform(0, LONGEST_LIFE))
        begun, done = breeder.diary.begun, breeder.diary.done
        started = time.monotonic()
        found = client.get("/read").json
        assert client.get("/count/0").status_code == 200
        slowest = max(slowest, time.monotonic() - started)
        assert slowest < PATIENCE
        assert found["count"] in (done, begun)
        assert found["data"] == found["count"]
        if begun == done:
            counts["between requests"] += 1
        else:
            counts["old" if found["count"] == done else "new"] += 1
        count = found["count"] + 1
    left_over = check_afterwards(store, tmp_path)
    report(
        kills=KILLS,
        miscounted=0,
        **counts,
        temporary_files_swept=left_over,
        slowest_visit_after_a_kill=f"{slowest:.3f} s",
    )


@pytest.mark.parametrize("store", STORES)
def test_a_session_whose_server_is_killed_while_it_renews_the_id_is_whole(
    store: str, tmp_path: Path, breeder: Breeder, report: Report
) -> None:
    app = make_app(store, str(tmp_path))
    backend = app.extensions["serversession"].backend
    number, slowest = 0, 0.0
    cookie = ""
    counts = dict.fromkeys(("old id", "id that nobody was told", "spare copies"), 0)
    for _ in range(KILLS):
        task = Task(store, str(tmp_path), "rotate", number, cookie)
        breeder.kill_one(task, random.uniform(0, LONGEST_LIFE))
        begun, done = breeder.diary.begun, breeder.diary.done
        cookie = breeder.diary.text
        client = app.test_client()
        client.set_cookie("session", cookie)
        started = time.monotonic()
        found = client.get("/read").json["data"]
        # Whatever is there is whole, and there is never nothing.
        contents = []
        for key, record in backend.iterate():
            contents.append(read_session(key, record)["data"])
            assert number_of(contents[-1]) in (done, begun)
        assert contents
        if found is None:
            # Killed after the old id had ended, and before anybody got the new one.
            assert len(contents) == 1
            assert number_of(contents[0]) == begun
            counts["id that nobody was told"] += 1
        else:
            # The cookie is noted before the number.
            assert found in (done, begun)
            assert len(contents) <= 2
            counts["old id"] += 1
            counts["spare copies"] += len(contents) - 1
        # A log-in is possible at once, with this cookie or with none.
        response = client.get(f"/rotate/{begun + 1}")
        assert response.status_code == 200
        client = app.test_client()
        assert client.get(f"/rotate/{begun + 2}").status_code == 200
        slowest = max(slowest, time.monotonic() - started)
        assert slowest < PATIENCE
        number = begun + 3
        cookie = ""
        for key, _ in list(backend.iterate()):
            assert backend.delete(key)
    left_over = check_afterwards(store, tmp_path)
    report(
        kills=KILLS,
        torn=0,
        lost=0,
        **counts,
        temporary_files_swept=left_over,
        slowest_visits_after_a_kill=f"{slowest:.3f} s",
    )


def read_session(key: str, record: Record) -> dict[str, t.Any]:
    payload = Sealer().open(record.data, key).payload
    content: dict[str, t.Any] = serializer_for("msgpack").loads(payload)
    return content


if __name__ == "__main__":
    breed()
