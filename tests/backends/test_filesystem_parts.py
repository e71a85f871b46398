"""The parts of the filesystem backend, one by one."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import typing as t
from pathlib import Path

import pytest

from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.backends.filesystem import backend as backend_module
from flask_serversession.backends.filesystem import files
from flask_serversession.backends.filesystem import locks
from flask_serversession.backends.filesystem import pruning
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import RecordError
from flask_serversession.testing import FakeClock

from .test_filesystem import KEY
from .test_filesystem import PREFIX
from .test_filesystem import find_file
from .test_filesystem import make_record
from .test_filesystem import posix_only


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(time.time())


@pytest.fixture
def backend(path: Path, clock: FakeClock) -> FilesystemBackend:
    return FilesystemBackend(path, prefix=PREFIX, clock=clock)


def key_in(shard: str, number: int = 0) -> str:
    return f"{PREFIX}{shard}{number:062x}"


# The backend


def test_it_knows_its_prefix_and_its_operations_their_names(
    backend: FilesystemBackend,
) -> None:
    assert backend.key_prefix == PREFIX
    for name in ("load", "create", "replace", "delete", "touch", "prune", "count"):
        operation = getattr(FilesystemBackend, name)
        assert operation.__name__ == name
        assert operation.__doc__


@posix_only
def test_what_the_system_does_not_permit_has_a_remedy(
    backend: FilesystemBackend, path: Path
) -> None:
    error = PermissionError(errno.EACCES, "Permission denied")
    failure = backend_module._unavailable(backend, "load", error)
    user = files.name_of(os.geteuid())
    assert str(failure) == (
        f"The filesystem backend cannot 'load' in {str(path)!r}: Permission denied. Let"
        f" the user {user}, who runs this, read and write there."
    )
    assert (failure.backend, failure.operation) == ("filesystem", "load")
    assert failure.refused is True
    assert not failure.full
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert backend_module._unavailable(backend, "create", OSError(number, "")).full
    other = backend_module._unavailable(backend, "load", OSError())
    assert str(other).endswith(": OSError.")


def test_a_file_that_goes_while_all_are_listed_is_left_out(
    backend: FilesystemBackend, clock: FakeClock
) -> None:
    keys = {key_in("ab", number) for number in range(3)}
    for key in keys:
        backend.create(key, make_record(clock))
    found = backend.iterate()
    first, _ = next(found)
    for key in keys - {first}:
        backend.delete(key)
    assert list(found) == []


def test_a_marker_whose_record_is_gone_is_removed(
    backend: FilesystemBackend, clock: FakeClock
) -> None:
    backend.create(KEY, make_record(clock, user="ada"))
    backend.create(key_in(KEY[len(PREFIX) :][:2]), make_record(clock, user="grace"))
    os.unlink(backend._layout.locate(KEY)[1])
    assert backend._users.find("ada") != []
    assert backend.keys_of_user("ada") == []
    assert backend._users.find("ada") == []


# Files


def test_what_is_not_there_is_neither_read_nor_removed(tmp_path: Path) -> None:
    assert files.unlink(str(tmp_path / "nothing")) is False
    assert files.read(str(tmp_path / "nothing")) is None
    (tmp_path / "file").touch()
    assert files.unlink(str(tmp_path / "file")) is True


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"^It is not a regular file\.$") as info:
        files.read(str(tmp_path))
    assert info.value.reason == "damaged"


@posix_only
def test_a_link_is_not_followed_where_the_system_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_NO_FOLLOW", 0)
    monkeypatch.setattr(files, "_FLAGS", 0)
    (tmp_path / "file").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(RecordError, match=r"^It is not a regular file\.$"):
        files.read(str(tmp_path / "link"))
    assert files.read(str(tmp_path / "file")) == b"secret"


def test_a_file_that_comes_in_pieces_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" * 3)
    read = os.read
    monkeypatch.setattr(files.os, "read", lambda fd, size: read(fd, min(size, 7)))
    assert files.read(str(tmp_path / "file")) == b"0123456789" * 3


@pytest.mark.parametrize("size", [3, 5_000])
def test_of_a_large_file_only_header_and_user_are_read(
    backend: FilesystemBackend, clock: FakeClock, size: int
) -> None:
    user = "u" * size
    backend.create(KEY, make_record(clock, user=user, data=b"d" * 20_000))
    start = files.read_start(backend._layout.locate(KEY)[1])
    assert start is not None
    least = len(start.partition(user.encode())[0]) + size
    assert len(start) == max(least, files.START_SIZE)


@posix_only
def test_what_is_moved_aside_gets_a_time_and_not_what_it_leads_to(
    tmp_path: Path,
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    os.utime(target, (5, 5))
    link.symlink_to(target)
    files.set_mtime(None, str(link), 500)
    assert (os.lstat(link).st_mtime, os.stat(link).st_mtime) == (500, 5)
    files.set_aside(str(link), 1_000)
    aside = tmp_path / "link.damaged"
    assert (os.lstat(aside).st_mtime, os.stat(aside).st_mtime) == (1_000, 5)


@posix_only
def test_a_folder_of_somebody_else_is_a_matter_of_permission(tmp_path: Path) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="has the mode 0777") as info:
        files.is_folder(str(folder), files.PRIVATE)
    assert info.value.errno == errno.EPERM


@pytest.mark.parametrize("platform", ["win32", "linux"])
def test_a_file_is_written_into_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    if platform == "linux" and sys.platform == "win32":
        pytest.skip("Windows lacks os.pwrite()")
    (tmp_path / "file").write_bytes(b"0123456789")
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    monkeypatch.setattr(files.sys, "platform", platform)
    try:
        os.read(descriptor, 5)
        files.write_at(descriptor, b"abc", 2)
    finally:
        os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"01abc56789"


@pytest.mark.parametrize(("platform", "tries"), [("win32", 50), ("linux", 0)])
def test_windows_waits_until_nobody_has_a_file_open(
    monkeypatch: pytest.MonkeyPatch, platform: str, tries: int
) -> None:
    monkeypatch.setattr(files.sys, "platform", platform)
    monkeypatch.setattr(files, "_OPEN_DELAY", 0)
    attempts: list[tuple[str, ...]] = []
    failures = 2

    def remove(*paths: str) -> None:
        attempts.append(paths)
        if len(attempts) <= failures:
            raise PermissionError

    with contextlib.nullcontext() if tries else pytest.raises(PermissionError):
        files.insist(remove, "a", "b")
    assert attempts == [("a", "b")] * (3 if tries else 1)
    attempts.clear()
    failures = 100
    with pytest.raises(PermissionError):
        files.insist(remove, "a")
    assert len(attempts) == tries + 1


# Locks


def test_a_lock_file_that_was_removed_is_closed(
    backend: FilesystemBackend,
    clock: FakeClock,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend.create(KEY, make_record(clock))
    shard = find_file(path).parent
    opened: list[int] = []
    open_lock = files.open_lock

    def open_removed(folder: str, access: files.Access) -> int | None:
        descriptor = open_lock(folder, access)
        assert descriptor is not None
        opened.append(os.dup(descriptor))  # so that no other file gets the number
        os.close(descriptor)
        if len(opened) == 1:
            (shard / ".lock").unlink()
        return opened[-1]

    monkeypatch.setattr(files, "open_lock", open_removed)
    assert backend.delete(KEY) is True
    assert len(opened) == 2
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_lock_is_asked_for_at_once_and_then_ever_less(
    backend: FilesystemBackend, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create(KEY, make_record(clock))
    delays: list[float] = []
    take = locks.lock_descriptor

    def take_late(descriptor: int, *, blocking: bool) -> bool:
        return len(delays) >= 10 and bool(take(descriptor, blocking=blocking))

    monkeypatch.setattr(locks, "lock_descriptor", take_late)
    monkeypatch.setattr(locks.random, "random", lambda: 0.5)
    monkeypatch.setattr(locks.time, "sleep", delays.append)
    assert backend.delete(KEY) is True
    growing = [0.0002, 0.0004, 0.0008, 0.0016, 0.0032]
    assert delays == pytest.approx([*growing, *[0.005] * 5])


def test_a_lock_that_was_waited_for_in_vain_is_closed(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX, lock_timeout=0, clock=clock)
    backend.create(KEY, make_record(clock))
    opened: list[int] = []
    open_lock = files.open_lock

    def open_noted(folder: str, access: files.Access) -> int | None:
        descriptor = open_lock(folder, access)
        assert descriptor is not None
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(files, "open_lock", open_noted)
    monkeypatch.setattr(locks, "lock_descriptor", lambda *_, **__: False)
    with pytest.raises(BackendUnavailableError, match="another process has held"):
        backend.delete(KEY)
    (descriptor,) = opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


# Cleaning


def test_the_folders_are_gone_through_in_turn(
    backend: FilesystemBackend, clock: FakeClock
) -> None:
    shards = ("00", "10", "20", "7f", "80", "81", "f0", "ff")
    for shard in shards:
        backend.create(key_in(shard), make_record(clock, lives=10))
    clock.advance(11)
    backend._pruner._next_shard.set(0x80)
    order: list[str] = []
    for _ in shards:
        assert backend.prune(1) == 1
        left = {folder for folder in shards if is_record_in(backend, folder)}
        order += {*shards} - left - {*order}
    assert order == ["80", "81", "f0", "ff", "00", "10", "20", "7f"]


def is_record_in(backend: FilesystemBackend, shard: str) -> bool:
    return Path(backend._layout.locate(key_in(shard))[1]).exists()


@posix_only
def test_all_that_is_in_a_folder_is_looked_at(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    for number in range(5):
        backend.create(key_in("ab", number), make_record(clock, lives=10))
    for number in range(20):
        (path / "ab" / f"folder {number}").mkdir()
    clock.advance(11)
    looked, due = backend._pruner._find_due(str(path / "ab"))
    assert looked == 5 + 20 + 1  # and the lock file
    assert {is_record for _, is_record in due} == {True}
    assert len(due) == 5


class SlowTime:
    """A clock on which each look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.mark.parametrize("operation", ["prune", "sweep"])
def test_who_cleans_lets_others_in_for_as_long_as_it_took(
    backend: FilesystemBackend,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    for number in range(6):
        backend.create(key_in("ab", number), make_record(clock, lives=10, user=None))
    clock.advance(11)
    slow = SlowTime()
    monkeypatch.setattr(pruning, "time", slow)
    monkeypatch.setattr(pruning, "_LONGEST_HOLD", 0.0015)
    assert getattr(backend, operation)(100) == 6
    # Two are removed at a time.
    assert slow.pauses == pytest.approx([0.002] * 3 if operation == "prune" else [])
    for number in range(2):
        backend.create(key_in("ab", number), make_record(clock, lives=10, user=None))
    clock.advance(11)
    slow.pauses.clear()
    monkeypatch.setattr(
        slow, "monotonic", t.cast("t.Any", iter([0.0, 0.001, 9.0])).__next__
    )
    getattr(backend, operation)(100)
    assert slow.pauses == pytest.approx([0.0075] if operation == "prune" else [])
