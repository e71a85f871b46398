"""Exceptions that come from nowhere, such as a signal handler's; forks; and gevent.

None may leave a lock held, nor what belongs together apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import typing as t
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.forks import PerProcess
from flask_serversession.record import Record
from flask_serversession.record import key_of
from flask_serversession.testing import FakeClock

KEY = key_of("one", "session:")
OTHER = key_of("two", "session:")


class InterruptedForTest(Exception):
    """What Celery's soft time limit raises in the handler of a signal."""


def make_record(clock: FakeClock, user: str | None = "ada") -> Record:
    now = clock()
    return Record(b"data", 1, now, now, now + 600, user)


OPERATIONS: dict[str, Callable[[Backend, FakeClock], object]] = {
    "create": lambda backend, clock: backend.create(OTHER, make_record(clock)),
    "replace": lambda backend, clock: backend.replace(
        KEY, make_record(clock, "grace"), 1
    ),
    "touch": lambda backend, clock: backend.touch(KEY, clock(), clock() + 900),
    "delete": lambda backend, clock: backend.delete(KEY),
}


def assert_is_usable(backend: Backend, clock: FakeClock) -> None:
    """Check, as another thread, that nothing is locked, and that users are right."""
    with ThreadPoolExecutor(1) as other:
        for key in (KEY, OTHER):
            record = backend.load(key)
            for user in ("ada", "grace"):
                is_listed = key in backend.keys_of_user(user)
                assert is_listed is (record is not None and record.user == user)
            other.submit(backend.delete, key).result()
            assert key not in backend.keys_of_user("ada")
            assert key not in backend.keys_of_user("grace")
            assert other.submit(backend.create, key, make_record(clock)).result()
            replaced = other.submit(backend.replace, key, make_record(clock), 1)
            assert replaced.result() == Replaced(2)
            assert backend.delete(key)


@pytest.mark.parametrize(
    "step", ["_add_to_index", "_schedule", "_remove_from_index", "_sweep", "_find"]
)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_what_belongs_together_in_memory_stays_so(
    monkeypatch: pytest.MonkeyPatch, step: str, is_done: bool
) -> None:
    interrupted: list[str] = []
    for name, operation in OPERATIONS.items():
        clock = FakeClock()
        backend = MemoryBackend(clock)
        backend.create(KEY, make_record(clock))
        do = getattr(backend, step)

        def interrupt(*args: t.Any, do: t.Any = do, **kwargs: t.Any) -> t.NoReturn:
            if is_done:
                do(*args, **kwargs)
            raise InterruptedForTest

        with monkeypatch.context() as patch:
            patch.setattr(backend, step, interrupt)
            try:
                operation(backend, clock)
            except InterruptedForTest:
                interrupted.append(name)
        assert_is_usable(backend, clock)
        clock.advance(1_000)
        backend.prune(1_000)
        assert backend._entries == {}
    assert interrupted, f"no operation comes to {step}()"


class InterruptedLock:
    """A lock whose owner is interrupted before it knows that it is one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, *args: t.Any, **kwargs: t.Any) -> t.NoReturn:
        self._lock.acquire(*args, **kwargs)
        raise InterruptedForTest

    def release(self) -> None:
        self._lock.release()


class InterruptedSet(set[int]):
    def discard(self, element: int) -> None:
        super().discard(element)
        raise InterruptedForTest


def test_no_lock_of_the_filesystem_stays_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    backend = FilesystemBackend(
        tmp_path, prefix="session:", lock_timeout=0.2, clock=clock
    )
    backend.create(KEY, make_record(clock))
    lock = InterruptedLock()
    with monkeypatch.context() as patch:
        patch.setattr(backend._locks._thread_locks, "get", lambda _: lock)
        with pytest.raises(InterruptedForTest):
            backend.touch(KEY, clock(), clock() + 900)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lock._lock.acquire, timeout=0).result()
    with monkeypatch.context() as patch:
        patch.setattr(backend._locks, "_held", PerProcess(InterruptedSet))
        with pytest.raises(InterruptedForTest):
            backend.touch(KEY, clock(), clock() + 900)
    assert_is_usable(backend, clock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["memory", "cachelib"])
def test_a_child_does_not_wait_for_threads_that_only_its_parent_has(name: str) -> None:
    script = f"""
import os, sys, threading, time
from cachelib import SimpleCache
from flask_serversession.backends import cachelib, memory
from flask_serversession.record import Record
holder = memory.MemoryBackend() if {name!r} == "memory" else (
    cachelib.CachelibBackend(SimpleCache()))
now = time.time()
record = Record(b"data", 1, now, now, now + 600)
is_held, is_over = threading.Event(), threading.Event()
lock = holder._lock.get() if {name!r} == "memory" else cachelib._lock_of("key")
def hold():
    with lock:
        is_held.set()
        is_over.wait()
thread = threading.Thread(target=hold)
thread.start()
is_held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if holder.create("key", record) else 1)
_, status = os.waitpid(child, 0)
is_over.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    subprocess.run(command, check=True, timeout=30)


@pytest.mark.parametrize("name", ["cachelib", "redis client", "filesystem"])
def test_a_greenlet_that_waits_does_not_stop_the_one_that_holds(
    name: str, tmp_path: Path
) -> None:
    """Where gevent patches only after the modules were imported, as in gunicorn."""
    script = f"""
import os, time
from pathlib import Path
from cachelib import SimpleCache
from flask_serversession.backends import cachelib, filesystem
from flask_serversession.backends.redis import server as redis_server
from flask_serversession.record import Record, key_of
now = time.time()
record = Record(b"data", 1, now, now, now + 600)
key = key_of("one", "session:")

class SlowCache(SimpleCache):
    def get(self, key):
        gevent.sleep(0.05)
        return super().get(key)

class Origin(redis_server.Origin):
    def __init__(self):
        pass
    def make(self):
        gevent.sleep(0.05)
        return object()

name = {name!r}
if name == "cachelib":
    backend = cachelib.CachelibBackend(SlowCache())
    backend.create(key, record)
elif name == "filesystem":
    backend = filesystem.FilesystemBackend({str(tmp_path)!r}, prefix="session:")
    pid = os.getpid
    os.getpid = lambda: 1  # as if a parent had used it, and forked as uWSGI does
    backend.create(key, record)
    os.getpid = pid
else:
    server = redis_server.Server(Origin())

import gevent
import gevent.monkey
gevent.monkey.patch_all()

def work():
    if name == "redis client":
        server.connect()
    elif name == "cachelib":
        backend.replace(key, record, 1)
    else:
        with backend._locks.hold(backend._layout.locate(key)[0]):
            gevent.sleep(0.05)

workers = [gevent.spawn(work) for _ in range(3)]
gevent.joinall(workers, timeout=20, raise_error=True)
assert all(worker.ready() for worker in workers)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    subprocess.run(command, check=True, timeout=60)
