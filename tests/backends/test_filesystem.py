"""The filesystem backend: the contract, and what can happen to files."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask

from flask_serversession import ServerSession
from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Gone
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.backends.filesystem import files
from flask_serversession.backends.filesystem import pruning
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import ConfigurationError
from flask_serversession.errors import RecordError
from flask_serversession.record import HEADER_SIZE
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.record import encode_record
from flask_serversession.record import key_of
from flask_serversession.testing import BackendContract
from flask_serversession.testing import FakeClock
from flask_serversession.testing import Spoil

PREFIX = "session:"
KEY = key_of("an id", PREFIX)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows lacks it")


def find_file(path: Path) -> Path:
    """Give the only record's file."""
    (file,) = [file for file in path.glob("??/*") if "." not in file.name]
    return file


def find_leftovers(path: Path) -> list[str]:
    return [file.name for file in path.glob("*/.tmp-*")]


def find_markers(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("users/*/*/*"))


def make_record(
    clock: cabc.Callable[[], float],
    data: bytes = b"data",
    lives: float = 600,
    user: str | None = "user",
) -> Record:
    now = clock()
    return Record(data, 1, now, now, now + lives, user, {"address": "192.0.2.1"})


def spoil_file(file: Path, reason: str) -> None:
    content = bytearray(file.read_bytes())
    if reason == "newer":
        content[1] += 1
    else:
        content[-1] ^= 1
    file.write_bytes(content)


class TestFilesystemBackend(BackendContract):
    @pytest.fixture
    def backend(self, clock: FakeClock, tmp_path: Path) -> Backend:
        return FilesystemBackend(tmp_path / "sessions", clock=clock)

    @pytest.fixture
    def second_backend(self, clock: t.Any, tmp_path: Path) -> Backend:
        return FilesystemBackend(tmp_path / "sessions", clock=clock)

    @pytest.fixture
    def dead_backend(self, clock: t.Any, tmp_path: Path) -> Backend:
        (tmp_path / "file").write_bytes(b"in place of the folder")
        return FilesystemBackend(tmp_path / "file", clock=clock)

    @pytest.fixture
    def spoil(self, backend: t.Any) -> Spoil:
        def spoil(key: str, reason: str) -> None:
            spoil_file(Path(backend._layout.locate(key)[1]), reason)

        return spoil


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "instance" / "sessions"


@pytest.fixture
def clock() -> FakeClock:
    # Near the system's own time, which temporary files get.
    return FakeClock(time.time())


@pytest.fixture
def backend(path: Path, clock: FakeClock) -> FilesystemBackend:
    return FilesystemBackend(path, prefix=PREFIX, clock=clock)


# -- where things are


def test_nothing_is_created_before_the_first_record(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    record = make_record(clock)
    assert backend.load(KEY) is None
    assert backend.replace(KEY, record, 1) == Gone()
    assert backend.touch(KEY, 0, record.expires_at) is False
    assert backend.delete(KEY) is False
    assert list(backend.iterate()) == []
    assert backend.count() == backend.prune(10) == 0
    assert not path.parent.exists()
    assert backend.create(KEY, record) is True
    assert backend.load(KEY) == record


def test_a_record_lies_where_its_key_says(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    record = make_record(clock)
    backend.create(KEY, record)
    digest = KEY.removeprefix(PREFIX)
    file = find_file(path)
    assert file == path / digest[:2] / f"session%3a{digest}"
    assert file.read_bytes() == encode_record(record)
    assert file.stat().st_mtime == pytest.approx(record.expires_at, abs=0.001)


def test_the_folder_may_be_lost(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    path.rename(path.with_name("elsewhere"))
    assert backend.load(KEY) is None
    assert backend.create(KEY, make_record(clock)) is True
    assert backend.load(KEY) is not None


@pytest.mark.parametrize("key", ["", "../../passwd", PREFIX + "A" * 64, KEY + "\n"])
def test_what_is_no_key_leads_to_no_file(
    backend: FilesystemBackend, clock: FakeClock, path: Path, key: str
) -> None:
    with pytest.raises(ValueError, match=r"^A key is a prefix and 64 hexadecimal"):
        backend.create(key, make_record(clock))
    assert not path.exists()


def test_a_prefix_too_long_for_a_file_name_is_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError) as info:
        FilesystemBackend(path, prefix="p" * 175)
    assert info.value.option == "SESSION_KEY_PREFIX"
    assert str(info.value) == (
        "'SESSION_KEY_PREFIX' is too long for a file name: it takes 175 bytes there;"
        " the 'filesystem' backend allows 174."
    )
    backend = FilesystemBackend(path, prefix="p" * 174)
    assert backend.create(key_of("id", "p" * 174), make_record(time.time))
    assert backend.count() == 1


def test_applications_that_share_a_folder_see_only_their_own(
    path: Path, clock: FakeClock
) -> None:
    backends = {
        prefix: FilesystemBackend(path, prefix=prefix, clock=clock)
        for prefix in ("a:", "A:", "ab:")
    }
    for prefix, backend in backends.items():
        backend.create(key_of("id", prefix), make_record(clock, prefix.encode()))
    for prefix, backend in backends.items():
        [(key, record)] = backend.iterate()
        assert (key, record.data) == (key_of("id", prefix), prefix.encode())
        assert backend.count() == 1
    clock.advance(1000)
    assert backends["a:"].prune(10) == 1
    assert backends["A:"].prune(10) == 1


def test_other_files_are_left_alone(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    shard = find_file(path).parent
    digest = KEY.removeprefix(PREFIX)
    odd = (f"session%3A{digest}", f"a%ff{digest}", f"a.b{digest}", f"é{digest}")
    for name in ("README.txt", "session%3agarbage%FF", "session%3aé", *odd):
        (shard / name).write_bytes(b"foreign")
        os.utime(shard / name, (0, 0))
    (path / "zz").mkdir()
    (path / "zz" / "session%3a1").write_bytes(b"foreign")
    (shard / "session%3afolder").mkdir()
    before = {*path.rglob("*")}
    # Of one application's, and of all.
    for each in (backend, FilesystemBackend(path, clock=clock)):
        assert [key for key, _ in each.iterate()] == [KEY]
        assert each.count() == 1
        assert each.prune(10) == 0
        assert {*path.rglob("*")} == before


def test_thousands_of_sessions_are_all_there(path: Path, clock: FakeClock) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX, clock=clock)
    record = make_record(clock)
    keys = {key_of(str(number), PREFIX) for number in range(6_000)}
    for key in keys:
        assert backend.create(key, record)
    assert backend.count() == 6_000
    assert backend.prune(1_000) == 0
    found = dict(backend.iterate())
    assert found.keys() == keys
    assert all(value == record for value in found.values())
    assert len(list(path.iterdir())) == 256 + 1
    assert sorted(backend.keys_of_user("user")) == sorted(keys)


# -- modes


@posix_only
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_the_owner_can_read(path: Path, clock: FakeClock, umask: int) -> None:
    before = os.umask(umask)
    try:
        backend = FilesystemBackend(path, clock=clock)
        backend.create(KEY, make_record(clock))
        backend.replace(KEY, make_record(clock, b"new"), 1)
    finally:
        os.umask(before)
    modes = {
        entry.relative_to(path).name: stat.S_IMODE(entry.stat().st_mode)
        for entry in (path.parent, path, *path.rglob("*"))
        if entry != path.parent
    }
    folders = [path.parent, path, *(p for p in path.rglob("*") if p.is_dir())]
    files = [p for p in path.rglob("*") if p.is_file()]
    assert len(folders) == 3 + 3
    assert sorted(file.name == ".lock" for file in files) == [False, False, True]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} == {0o700}, modes
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}, modes


@posix_only
def test_a_folder_that_was_there_keeps_its_mode(path: Path, clock: FakeClock) -> None:
    path.mkdir(parents=True)
    path.chmod(0o750)
    FilesystemBackend(path, clock=clock).create(KEY, make_record(clock))
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


# -- folders of others

root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root"
)
NOBODY = 65534


def spoil(folder: Path, how: str) -> str:
    """Let others write to a folder; return what the messages say of it."""
    if how == "owner":
        os.chown(folder, NOBODY, -1)
        return "belongs to the user 'nobody'"
    mode = int(how, 8)
    folder.chmod(mode)
    return f"has the mode {mode:04o}"


@posix_only
@pytest.mark.parametrize("level", ["", "00", "users"])
@pytest.mark.parametrize(
    "how", [pytest.param("owner", marks=root_only), "777", "770", "722", "1777"]
)
def test_a_folder_that_others_may_write_to_is_refused(
    path: Path, how: str, level: str
) -> None:
    folder = path / level
    folder.mkdir(parents=True)
    expected = spoil(folder, how)
    with pytest.raises(ConfigurationError) as info:
        FilesystemBackend(path)
    assert info.value.option == "SESSION_FILESYSTEM_PATH"
    assert str(info.value) == (
        f"'SESSION_FILESYSTEM_PATH': {str(folder)!r} {expected}, so that others could"
        " read sessions and make some up. Run the application as its owner, or:"
        f" chown -R {os.geteuid()} {folder} && chmod go-w {folder}"
    )
    os.chown(folder, os.geteuid(), -1)
    folder.chmod(0o700)
    FilesystemBackend(path)


@posix_only
@pytest.mark.parametrize("level", ["", "00", "users"])
def test_a_folder_that_is_a_link_is_refused(
    path: Path, tmp_path: Path, level: str
) -> None:
    (tmp_path / "target").mkdir()
    link = path / level
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "target")
    with pytest.raises(ConfigurationError, match="is a symbolic link"):
        FilesystemBackend(path)


@posix_only
@pytest.mark.parametrize(
    ("mode", "is_refused"),
    [(0o777, True), (0o707, True), (0o1777, False), (0o775, False), (0o755, False)],
)
def test_a_folder_that_anybody_could_replace_is_refused(
    tmp_path: Path, mode: int, is_refused: bool
) -> None:
    # 0775 is what a umask of 002 makes of folders, where each user has a group.
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(mode)
    if not is_refused:
        FilesystemBackend(parent / "sessions")
        return
    with pytest.raises(ConfigurationError) as info:
        FilesystemBackend(parent / "sessions")
    assert str(info.value).endswith(f"Run: chmod o-w {parent}")


@posix_only
def test_a_umask_that_lets_the_group_write_is_no_hindrance(
    path: Path, clock: FakeClock
) -> None:
    before = os.umask(0o002)
    try:
        backend = FilesystemBackend(path, clock=clock)
        assert backend.create(KEY, make_record(clock, user="ada"))
        assert FilesystemBackend(path, clock=clock).load(KEY) is not None
    finally:
        os.umask(before)


@posix_only
@pytest.mark.parametrize("how", [pytest.param("owner", marks=root_only), "777"])
def test_a_folder_of_others_that_is_met_later_is_not_used(
    backend: FilesystemBackend, clock: FakeClock, path: Path, how: str
) -> None:
    backend.create(KEY, make_record(clock, user="ada"))
    shard = find_file(path).parent
    expected = spoil(shard, how)
    for operation in (
        lambda: backend.load(KEY),
        lambda: backend.create(KEY, make_record(clock)),
        lambda: backend.replace(KEY, make_record(clock), 1),
        lambda: backend.delete(KEY),
        lambda: backend.touch(KEY, clock(), clock() + 900),
        lambda: backend.keys_of_user("ada"),
    ):
        with pytest.raises(BackendUnavailableError) as info:
            operation()
        assert str(info.value).endswith(f"{shard.name!r} in it {expected}.")
    assert list(backend.iterate()) == []
    assert backend.count() == 0
    assert backend.prune(5) == 0


# -- files of a group, and of root

GROUP, STRANGERS = 65_501, 65_502
ADA, BEN, EVE = 65_511, 65_512, 65_513


def run_as(user: int, groups: list[int], function: t.Callable[[], object]) -> object:
    """Return what a function returns or raises in another user's process."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

    def run() -> None:
        os.setgroups(groups)
        os.setgid(groups[0])
        os.setuid(user)
        try:
            sender.send(function())
        except BackendUnavailableError as error:
            sender.send(error)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    return receiver.recv() if receiver.poll() else child.exitcode


@pytest.fixture
def shared(tmp_path: Path) -> cabc.Iterator[Path]:
    """Give a folder that a group may write to, below ones that all may go through."""
    opened = [tmp_path, *tmp_path.parents][:-1]
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in opened}
    for folder in opened:
        folder.chmod(modes[folder] | 0o011)
    parent = tmp_path / "shared"
    parent.mkdir()
    os.chown(parent, 0, GROUP)
    parent.chmod(0o2770)
    yield parent / "sessions"
    for folder, mode in modes.items():
        folder.chmod(mode)


@root_only
def test_a_group_shares_its_sessions(shared: Path) -> None:
    def make(now: float = 1_000.0) -> FilesystemBackend:
        clock = FakeClock(now)
        return FilesystemBackend(shared, group_access=True, clock=clock)

    record = make_record(FakeClock(1_000.0), user="ada")
    later = 1_000.0 + 10 * 86_400

    def use_as_ben() -> list[object]:
        backend = make()
        loaded = backend.load(KEY)
        assert loaded is not None
        return [
            backend.replace(KEY, dataclasses.replace(loaded, data=b"new"), 1),
            backend.touch(KEY, 1_001.0, later),
            backend.keys_of_user("ada"),
            backend.prune(5),
            backend.count(),
        ]

    def touch_as_ada() -> list[object]:
        backend = make()
        touched = backend.touch(KEY, 1_002.0, later + 1)
        return [touched, find_file(shared).stat().st_mtime, find_leftovers(shared)]

    assert run_as(ADA, [GROUP], lambda: make().create(KEY, record)) is True
    for entry in (shared, *shared.rglob("*")):
        status = entry.stat()
        expected = 0o2770 if entry.is_dir() else 0o660
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (expected, GROUP)
    assert run_as(BEN, [STRANGERS, GROUP], use_as_ben) == [
        Replaced(2),
        True,
        [KEY],
        0,
        1,
    ]
    assert run_as(ADA, [GROUP], touch_as_ada) == [True, later + 1, []]
    # As root, for commands; and a stranger is refused.
    assert make().count() == 1
    error = run_as(EVE, [STRANGERS], lambda: make().load(KEY))
    assert isinstance(error, BackendUnavailableError)
    assert run_as(BEN, [GROUP], lambda: make(later + 2).prune(5)) == 1


@root_only
def test_a_file_of_another_member_keeps_its_expiry(shared: Path) -> None:
    clock = FakeClock(1_000.0)
    record = make_record(clock)

    def make() -> FilesystemBackend:
        return FilesystemBackend(shared, group_access=True, clock=clock)

    assert run_as(ADA, [GROUP], lambda: make().create(KEY, record)) is True
    # A process was killed between the two halves of a touch.
    os.utime(find_file(shared), (0, 0))
    assert run_as(BEN, [GROUP], lambda: make().prune(5)) == 0
    assert find_file(shared).stat().st_mtime == record.expires_at


@posix_only
def test_a_group_may_write_only_where_that_is_configured(path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0o2770)
    with pytest.raises(ConfigurationError):
        FilesystemBackend(path)
    FilesystemBackend(path, group_access=True)
    path.chmod(0o2772)
    with pytest.raises(ConfigurationError, match=r"has the mode 2772.*chmod o-w"):
        FilesystemBackend(path, group_access=True)


@root_only
@pytest.mark.parametrize("group_access", [False, True])
def test_what_root_makes_belongs_to_the_owner_of_the_folder(
    tmp_path: Path, clock: FakeClock, group_access: bool
) -> None:
    parent = tmp_path / "instance"
    parent.mkdir()
    os.chown(parent, ADA, GROUP)
    for number in range(2):
        # The second time it is there, and belongs to another user than root.
        backend = FilesystemBackend(
            parent / "sessions", group_access=group_access, clock=clock
        )
        key = key_of(f"{number}", PREFIX)
        assert backend.create(key, make_record(clock, user="ada"))
        assert backend.load(key) is not None
    for entry in (parent / "sessions").rglob("*"):
        assert (entry.stat().st_uid, entry.stat().st_gid) == (ADA, GROUP)


@root_only
def test_root_uses_no_folder_that_somebody_has_put_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    folder = tmp_path / "sessions"
    folder.mkdir()
    os.chown(folder, EVE, STRANGERS)
    for group_access in (False, True):
        with pytest.raises(ConfigurationError, match="belongs to the user 65513"):
            FilesystemBackend(folder, group_access=group_access)


# -- what somebody may have put there


@posix_only
def test_a_planted_link_is_not_followed(
    backend: FilesystemBackend, clock: FakeClock, path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(encode_record(make_record(clock)))
    before = target.read_bytes()
    backend.create(KEY, make_record(clock))
    file = find_file(path)

    def plant() -> None:
        file.unlink(missing_ok=True)
        file.symlink_to(target)

    plant()
    with pytest.raises(RecordError) as info:
        backend.replace(KEY, make_record(clock), 1)
    assert info.value.reason == "damaged"
    assert backend.touch(KEY, clock(), clock() + 900) is False
    assert backend.create(KEY, make_record(clock)) is False
    assert list(backend.iterate()) == []
    assert backend.count() == 0
    with pytest.raises(RecordError):
        backend.load(KEY)
    assert not file.is_symlink()
    plant()
    assert backend.delete(KEY) is True
    assert not file.is_symlink()
    assert target.read_bytes() == before


@posix_only
def test_a_link_that_leads_nowhere_is_not_written_through(
    backend: FilesystemBackend, clock: FakeClock, path: Path, tmp_path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    assert backend.create(KEY, make_record(clock)) is False
    with pytest.raises(RecordError):
        backend.load(KEY)
    assert backend.create(KEY, make_record(clock)) is True
    assert not (tmp_path / "nowhere").exists()


@posix_only
@pytest.mark.parametrize("what", ["shard", "lock"])
def test_a_planted_link_to_a_folder_or_lock_is_an_error(
    backend: FilesystemBackend, clock: FakeClock, path: Path, tmp_path: Path, what: str
) -> None:
    backend.create(KEY, make_record(clock))
    shard = find_file(path).parent
    if what == "shard":
        shard.rename(tmp_path / "target")
        shard.symlink_to(tmp_path / "target")
        expected = f"'{shard.name}' in it is a symbolic link."
    else:
        (shard / ".lock").unlink()
        (shard / ".lock").symlink_to(tmp_path / "target")
        expected = f"{os.strerror(40)}."
    operations: list[cabc.Callable[[], object]] = [
        lambda: backend.create(KEY, make_record(clock)),
        lambda: backend.replace(KEY, make_record(clock), 1),
        lambda: backend.delete(KEY),
        lambda: backend.touch(KEY, clock(), clock() + 900),
    ]
    if what == "shard":
        operations.append(lambda: backend.load(KEY))
        assert list(backend.iterate()) == []
    for operation in operations:
        with pytest.raises(BackendUnavailableError) as info:
            operation()
        assert str(info.value).endswith(expected)
    if what == "lock":
        assert not (tmp_path / "target").exists()


@posix_only
@pytest.mark.parametrize("what", ["pipe", "folder", "socket"])
def test_something_else_than_a_file_is_damage(
    backend: FilesystemBackend,
    clock: FakeClock,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)

    def plant() -> None:
        file.unlink(missing_ok=True)
        if what == "pipe":
            os.mkfifo(file)
        elif what == "folder":
            (file / "inner").mkdir(parents=True)
        else:
            # The path of a socket has to be short.
            monkeypatch.chdir(file.parent)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(file.name)

    plant()
    for call in (
        lambda: backend.replace(KEY, make_record(clock), 1),
        lambda: backend.load(KEY),
    ):
        with pytest.raises(RecordError) as info:
            call()
        assert info.value.reason == "damaged"
    assert backend.load(KEY) is None
    plant()
    assert backend.touch(KEY, clock(), clock() + 900) is False
    assert backend.create(KEY, make_record(clock)) is False
    assert list(backend.iterate()) == []
    assert backend.count() == 0
    assert backend.prune(10) == 0
    assert backend.delete(KEY) is True
    assert backend.create(KEY, make_record(clock)) is True


# -- damage


@pytest.mark.parametrize("size", [0, 1, 2, 20, HEADER_SIZE - 1, HEADER_SIZE, -1])
def test_a_truncated_file_is_moved_aside(
    backend: FilesystemBackend, clock: FakeClock, path: Path, size: int
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)
    content = file.read_bytes()[:size]
    file.write_bytes(content)
    with pytest.raises(RecordError) as info:
        backend.load(KEY)
    assert info.value.reason == "damaged"
    assert backend.load(KEY) is None
    assert file.with_name(file.name + ".damaged").read_bytes() == content
    assert backend.create(KEY, make_record(clock)) is True
    assert backend.load(KEY) is not None
    assert backend.count() == len(list(backend.iterate())) == 1


def test_no_flipped_bit_goes_unnoticed(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)
    content = file.read_bytes()
    for position in range(len(content)):
        spoiled = bytearray(content)
        spoiled[position] ^= 1 << position % 8
        file.write_bytes(spoiled)
        with pytest.raises(RecordError):
            backend.load(KEY)
    file.write_bytes(content)
    assert backend.load(KEY) is not None


def test_a_damaged_file_goes_after_a_week(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock, lives=31 * 86_400))
    file = find_file(path)
    spoil_file(file, "damaged")
    with pytest.raises(RecordError):
        backend.load(KEY)
    aside = file.with_name(file.name + ".damaged")
    clock.advance(6 * 86_400)
    assert backend.prune(10) == 0
    assert aside.exists()
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    clock.advance(2 * 86_400)
    assert backend.prune(10) == 0
    assert not aside.exists()


def test_a_file_of_a_newer_format_is_never_removed(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)
    spoil_file(file, "newer")
    os.utime(file, (0, 0))
    content = file.read_bytes()
    clock.advance(10**6)
    assert backend.prune(10) == 0
    assert list(backend.iterate()) == []
    assert backend.count() == 0
    assert backend.touch(KEY, clock(), clock() + 900) is False
    assert file.read_bytes() == content


def test_a_load_that_meets_a_touch_halfway_is_no_damage(
    backend: FilesystemBackend,
    clock: FakeClock,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)
    whole = file.read_bytes()
    torn = bytearray(whole)
    torn[20] ^= 1
    answers = [bytes(torn), whole]
    monkeypatch.setattr(files, "read", lambda *_: answers.pop(0))
    assert backend.load(KEY) == make_record(clock)
    assert answers == []
    assert file.exists()


def test_loads_during_touches_find_a_whole_record(path: Path) -> None:
    backend = FilesystemBackend(path)
    now = time.time()
    backend.create(KEY, make_record(time.time))
    end = time.monotonic() + 0.5

    def touch() -> None:
        while time.monotonic() < end:
            assert backend.touch(KEY, now, now + random.uniform(600, 10**6))

    threads = [threading.Thread(target=touch) for _ in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        assert backend.load(KEY) is not None
    for thread in threads:
        thread.join()
    assert not list(path.glob("*/*.damaged"))


# -- expiry and pruning


def test_touch_reads_and_writes_no_data(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)
    inode = file.stat().st_ino
    # With damaged data it would fail if it looked at it.
    spoil_file(file, "damaged")
    assert backend.touch(KEY, clock(), clock() + 900) is True
    assert file.stat().st_ino == inode
    assert file.stat().st_mtime == pytest.approx(clock() + 900, abs=0.001)


def test_prune_never_deletes_a_live_record(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    record = make_record(clock)
    backend.create(KEY, record)
    file = find_file(path)
    os.utime(file, (0, 0))
    assert backend.prune(10) == 0
    assert backend.load(KEY) == record
    assert file.stat().st_mtime == pytest.approx(record.expires_at, abs=0.001)


def test_prune_moves_a_damaged_expired_file_aside(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    file = find_file(path)
    file.write_bytes(b"garbage")
    os.utime(file, (0, 0))
    assert backend.prune(10) == 0
    assert not file.exists()
    assert file.with_name(file.name + ".damaged").exists()


def test_prune_goes_on_where_it_stopped(
    backend: FilesystemBackend, clock: FakeClock
) -> None:
    keys = [key_of(str(number), PREFIX) for number in range(1_000)]
    for key in keys:
        backend.create(key, make_record(clock, lives=10))
    live = key_of("live", PREFIX)
    backend.create(live, make_record(clock))
    clock.advance(11)
    batches = [backend.prune(70)]
    while batches[-1] == 70:
        batches.append(backend.prune(70))
    assert sum(batches) == 1_000
    assert backend.prune(70) == 0
    assert backend.load(live) is not None


def test_sweep_is_bounded_on_a_large_folder(
    backend: FilesystemBackend, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        backend.create(key_of(str(number), PREFIX), make_record(clock))
    expired = key_of("expired", PREFIX)
    backend.create(expired, make_record(clock, lives=10))
    clock.advance(11)
    monkeypatch.setattr(pruning, "_LEAST_LOOKS", 30)
    monkeypatch.setattr(pruning, "_LOOKS_PER_DELETION", 1)
    looked = count_looks(monkeypatch)
    deleted = 0
    for _ in range(60):
        looked.append(0)
        deleted += backend.sweep(5)
    assert deleted == 1
    assert max(looked) < 60


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Add to the last number of the list how many files are looked at."""
    looked: list[int] = []
    age_of = pruning._age

    def look(entry: os.DirEntry[str], now: float) -> float | None:
        looked[-1] += 1
        return age_of(entry, now)

    monkeypatch.setattr(pruning, "_age", look)
    return looked


def test_prune_stops_early_only_when_nothing_is_left(
    backend: FilesystemBackend, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        lives = 10 if number % 10 == 0 else 600
        backend.create(
            key_of(str(number), PREFIX), make_record(clock, lives=lives, user=None)
        )
    clock.advance(11)
    monkeypatch.setattr(pruning, "_LEAST_LOOKS", 1)
    monkeypatch.setattr(pruning, "_LOOKS_PER_DELETION", 1)
    looked = count_looks(monkeypatch)
    batches = [7]
    while batches[-1] == 7:
        looked.append(0)
        batches.append(backend.prune(7))
    assert batches[1:] == [7, 7, 7, 7, 2]
    # Each goes on where the one before it stopped.
    assert sum(looked) < 2 * (300 + 2 * 256)


def test_prune_lets_others_write_in_between(
    backend: FilesystemBackend,
    clock: FakeClock,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All in one shard.
    keys = [f"{PREFIX}ab{number:062x}" for number in range(200)]
    for key in keys[1:]:
        backend.create(key, make_record(clock, lives=10))
    backend.create(keys[0], make_record(clock))
    clock.advance(11)
    begun = threading.Event()
    unlink = files.unlink

    def unlink_slowly(path: str) -> bool:
        begun.set()
        time.sleep(0.003)
        return unlink(path)

    monkeypatch.setattr(files, "unlink", unlink_slowly)
    # Another one, whose lock is not the same thread's.
    other = FilesystemBackend(path, prefix=PREFIX, clock=clock)
    with ThreadPoolExecutor(1) as executor:
        prune = executor.submit(other.prune, 1_000)
        begun.wait()
        for _ in range(5):
            assert backend.touch(keys[0], clock(), clock() + 700) is True
        assert not prune.done()
        assert prune.result() == 199


def test_what_killed_processes_left_behind_is_swept_after_an_hour(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    shard = find_file(path).parent
    for name in (".tmp-old", ".tmp-new", ".tmp-expiring"):
        (shard / name).write_bytes(b"half a rec")
    os.utime(shard / ".tmp-old", (clock() - 7_200,) * 2)
    os.utime(shard / ".tmp-expiring", (clock() + 86_400,) * 2)
    assert backend.prune(10) == 0
    assert sorted(find_leftovers(path)) == [".tmp-expiring", ".tmp-new"]
    assert backend.count() == 1
    clock.advance(4_000)
    backend.create(KEY, make_record(clock))
    assert backend.prune(10) == 0
    assert find_leftovers(path) == []
    assert backend.load(KEY) is not None


# -- users


def test_a_marker_lies_where_the_user_says(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock, user="zoë/.."))
    digest = hashlib.sha256("8:session:zoë/..".encode()).hexdigest()
    marker = path / "users" / digest[:2] / digest / find_file(path).name
    assert marker.stat().st_size == 0
    assert backend.keys_of_user("zoë/..") == [KEY]
    # It is no record, whatever its name is.
    assert [key for key, _ in backend.iterate()] == [KEY]
    assert backend.count() == 1
    assert backend.delete(KEY) is True
    assert list((path / "users" / digest[:2]).iterdir()) == []


@pytest.mark.parametrize("user", ["\0", "\udc80", "..", "/", "", "u" * 70, "☃" * 1_000])
def test_any_user_has_markers(
    backend: FilesystemBackend, clock: FakeClock, path: Path, user: str
) -> None:
    backend.create(KEY, make_record(clock, user=user))
    assert backend.keys_of_user(user) == [KEY]
    assert backend.delete(KEY) is True
    assert find_markers(path) == []


def test_nothing_is_marked_for_nobody(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock, user=None))
    backend.replace(KEY, make_record(clock, user=None), 1)
    assert not (path / "users").exists()
    assert backend.keys_of_user("user") == []


def test_markers_go_with_their_records(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    names = ("deleted", "expired", "tombstone", "other", "nobody", "live", "ended")
    keys = {name: key_of(name, PREFIX) for name in names}
    for name, key in keys.items():
        lives = 10 if name == "expired" else 600
        backend.create(key, make_record(clock, lives=lives))
    assert len(find_markers(path)) == 7
    backend.delete(keys["deleted"])
    backend.replace(keys["tombstone"], make_record(clock, TOMBSTONE_DATA, user=None), 1)
    backend.replace(keys["other"], make_record(clock, user="other"), 1)
    backend.replace(keys["nobody"], make_record(clock, user=None), 1)
    backend.replace(keys["ended"], make_record(clock, lives=-1), 1)
    clock.advance(11)
    assert backend.prune(10) == 1
    assert len(find_markers(path)) == 2
    assert backend.keys_of_user("user") == [keys["live"]]
    assert backend.keys_of_user("other") == [keys["other"]]
    clock.advance(600)
    assert backend.prune(10) == 4
    assert find_markers(path) == []
    assert list(path.glob("users/*/*")) == []


def test_applications_that_share_a_folder_share_no_users(
    path: Path, clock: FakeClock
) -> None:
    prefixes = ("", "a", "ab", "a1:")
    backends = {
        prefix: FilesystemBackend(path, prefix=prefix, clock=clock)
        for prefix in prefixes
    }
    for prefix, backend in backends.items():
        backend.create(key_of("id", prefix), make_record(clock))
        backend.create(key_of("id b", prefix), make_record(clock, user="b:user"))
    for prefix, backend in backends.items():
        assert backend.keys_of_user("user") == [key_of("id", prefix)]
        assert backend.keys_of_user("b:user") == [key_of("id b", prefix)]


def test_listing_a_user_reads_what_that_user_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX)
    users = [str(number % 1_000) for number in range(9_000)] + ["many"] * 1_000
    for number, user in enumerate(users):
        key = key_of(str(number), PREFIX)
        backend.create(key, make_record(time.time, b"x" * 10_000, user=user))
    opened: list[str] = []
    listed: list[str] = []
    reading, listing = files.read, os.listdir

    def read(path: str, size: int | None = None) -> bytes | None:
        opened.append("whole" if size is None else "start")
        assert size is None or size < 3_000
        return reading(path, size)

    def listdir(path: str) -> list[str]:
        listed.append(path)
        return listing(path)

    monkeypatch.setattr(files, "read", read)
    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.delattr(os, "scandir")
    assert len(backend.keys_of_user("7")) == 9
    assert (len(opened), len(listed)) == (9, 1)
    assert len(backend.keys_of_user("many")) == 1_000
    assert (len(opened), len(listed)) == (1_009, 2)
    assert backend.keys_of_user("nobody") == []
    assert (len(opened), len(listed)) == (1_009, 2)
    assert set(opened) == {"start"}
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="key", SESSION_BACKEND=backend, SESSION_KEY_PREFIX=PREFIX
    )
    operator = ServerSession(app)
    with app.app_context():
        for user, number in (("7", 9), ("many", 1_000), ("nobody", 0)):
            opened.clear()
            listed.clear()
            assert len(operator.sessions_of(user)) == number
            assert opened == ["start"] * number + ["whole"] * number
            assert len(listed) == bool(number)
            opened.clear()
            listed.clear()
            assert operator.revoke_user(user) == number
            # Once to list it, and once to see that it may be deleted.
            assert opened == ["start"] * 2 * number
            assert len(listed) == bool(number)


def kill_at(path: Path, patch: str, call: str) -> None:
    """Run a call in a process that is killed when it comes to what is patched."""
    script = f"""
        import os, signal, time
        from flask_serversession.backends.filesystem import FilesystemBackend
        from flask_serversession.record import Record
        backend = FilesystemBackend({str(path)!r}, prefix={PREFIX!r})
        now = time.time()
        {patch} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        {call}
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert process.returncode == -signal.SIGKILL


def test_a_crash_leaves_no_record_without_a_marker(path: Path) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX)
    backend.create(key_of("other", PREFIX), make_record(time.time, user=None))
    create = f"backend.create({KEY!r}, Record(b'x', 1, now, now, now + 600, 'user'))"
    kill_at(path, "os.replace", create)
    assert len(find_markers(path)) == 1
    assert backend.keys_of_user("user") == []
    assert find_markers(path) == []
    # The other half: the record has gone, and its marker not yet.
    backend.create(KEY, make_record(time.time))
    kill_at(path, "backend._users.remove", f"backend.delete({KEY!r})")
    assert backend.load(KEY) is None
    assert len(find_markers(path)) == 1
    assert backend.keys_of_user("user") == []
    assert find_markers(path) == []
    # And a user who changes.
    backend.create(KEY, make_record(time.time))
    change = f"backend.replace({KEY!r}, Record(b'x', 1, now, now, now + 600, 'b'), 1)"
    kill_at(path, "backend._users.remove", change)
    assert len(find_markers(path)) == 2
    assert backend.keys_of_user("b") == [KEY]
    assert backend.keys_of_user("user") == []
    assert len(find_markers(path)) == 1


def test_a_marker_that_is_just_being_made_is_not_removed(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    backend.delete(KEY)
    replace_file = files.replace_file
    found: list[list[str]] = []
    lister = threading.Thread(target=lambda: found.append(backend.keys_of_user("user")))

    def write_late(*args: t.Any) -> None:
        lister.start()
        lister.join(0.2)
        replace_file(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "replace_file", write_late)
        assert backend.create(KEY, make_record(clock)) is True
    lister.join()
    assert found == [[]]
    assert backend.keys_of_user("user") == [KEY]


def test_listing_goes_on_where_nothing_can_be_locked(path: Path) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX, lock_timeout=0.5)
    backend.create(KEY, make_record(time.time))
    shard = find_file(path).parent.name
    for number in range(3):
        key = f"{PREFIX}{shard}{number:062x}"
        backend._users.add("user", backend._layout.locate(key)[1])
    with lock_held_elsewhere(path):
        started = time.monotonic()
        assert backend.keys_of_user("user") == [KEY]
        assert time.monotonic() - started < 1.5  # and not three times half a second
    assert len(find_markers(path)) == 4
    assert backend.keys_of_user("user") == [KEY]
    assert len(find_markers(path)) == 1


def test_log_ins_and_log_outs_race_for_the_folder_of_a_user(path: Path) -> None:
    script = f"""
        import os, time
        from flask_serversession.backends.filesystem import FilesystemBackend
        from flask_serversession.record import Record, key_of
        backend = FilesystemBackend({str(path)!r}, prefix={PREFIX!r})
        now = time.time()
        for number in range(300):
            key = key_of(f"{{os.getpid()}} {{number}}", {PREFIX!r})
            assert backend.create(key, Record(b"x", 1, now, now, now + 600, "user"))
            assert key in backend.keys_of_user("user")
            assert backend.delete(key)
            assert key not in backend.keys_of_user("user")
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
        for _ in range(4)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert find_markers(path) == []


@posix_only
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_planted_link_to_users_is_not_followed(
    backend: FilesystemBackend, clock: FakeClock, path: Path, tmp_path: Path, level: int
) -> None:
    backend.create(KEY, make_record(clock))
    folder = next(path.glob("users/*/*"))
    folder = [folder.parents[1], folder.parent, folder][level]
    folder.rename(tmp_path / "target")
    folder.symlink_to(tmp_path / "target")
    before = sorted((tmp_path / "target").rglob("*"))
    other = key_of("other", PREFIX)
    for call in (
        lambda: backend.create(other, make_record(clock)),
        lambda: backend.keys_of_user("user"),
    ):
        with pytest.raises(BackendUnavailableError) as info:
            call()
        assert str(info.value).endswith(f"{folder.name!r} in it is a symbolic link.")
    assert backend.load(other) is None
    # Who wants to log out can.
    assert backend.delete(KEY) is True
    assert sorted((tmp_path / "target").rglob("*")) == before


@posix_only
def test_a_planted_marker_is_not_followed(
    backend: FilesystemBackend, clock: FakeClock, path: Path, tmp_path: Path
) -> None:
    backend.create(KEY, make_record(clock))
    marker = next(path.glob("users/*/*/*"))
    marker.unlink()
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    marker.symlink_to(target)
    (marker.parent / "README.txt").write_bytes(b"foreign")
    assert backend.keys_of_user("user") == [KEY]
    assert backend.delete(KEY) is True
    assert not marker.is_symlink()
    assert target.read_bytes() == b"kept"
    assert (marker.parent / "README.txt").exists()


# -- writes that fail


def test_a_crash_before_the_rename_leaves_the_old_record(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    record = make_record(clock)
    backend.create(KEY, record)
    script = f"""
        import os, signal
        from flask_serversession.backends.filesystem import FilesystemBackend
        from flask_serversession.record import Record
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        backend = FilesystemBackend({str(path)!r}, prefix={PREFIX!r})
        backend.replace({KEY!r}, Record(b"new", 1, 0, 0, 10**10), 1)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert process.returncode == -signal.SIGKILL
    assert len(find_leftovers(path)) == 1
    assert backend.load(KEY) == record
    # And its lock is gone with it.
    assert backend.replace(KEY, record, 1) == Replaced(2)


@posix_only
@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_write_that_fails_leaves_nothing_behind(
    backend: FilesystemBackend, path: Path, operation: str
) -> None:
    import resource

    backend.create(KEY, make_record(time.time))
    large = make_record(time.time, b"x" * 100_000)
    write: cabc.Callable[[], object] = {
        "create": lambda: backend.create(key_of("other", PREFIX), large),
        "replace": lambda: backend.replace(KEY, large, 1),
    }[operation]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(BackendUnavailableError) as info:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert info.value.operation == operation
    assert str(info.value) == (
        f"The filesystem backend cannot {operation!r} in {str(path)!r}: File too large."
    )
    assert isinstance(info.value.__cause__, OSError)
    assert find_leftovers(path) == []
    loaded = backend.load(KEY)
    assert loaded is not None
    assert loaded.data == b"data"
    assert backend.load(key_of("other", PREFIX)) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_rename_that_fails_leaves_nothing_behind(
    backend: FilesystemBackend,
    clock: FakeClock,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    record = make_record(clock)
    backend.create(KEY, record)

    def fail(*_: object) -> t.NoReturn:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises((BackendUnavailableError, KeyboardInterrupt)):
            backend.replace(KEY, record, 1)
    assert find_leftovers(path) == []
    assert backend.load(KEY) == record
    assert backend.replace(KEY, record, 1) == Replaced(2)


def test_a_folder_that_cannot_be_made_is_an_error(
    clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    backend = FilesystemBackend(tmp_path / "file" / "sessions", clock=clock)
    with pytest.raises(BackendUnavailableError) as info:
        backend.create(KEY, make_record(clock))
    assert info.value.operation == "create"


# -- locks


@contextlib.contextmanager
def lock_held_elsewhere(path: Path) -> cabc.Iterator[None]:
    """Let another process hold the lock of the only shard."""
    lock = find_file(path).parent / ".lock"
    script = f"""
        import os, sys
        from filelock import lock_descriptor
        lock_descriptor(os.open({str(lock)!r}, os.O_RDWR))
        print("locked", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"locked"
        try:
            yield
        finally:
            process.kill()


def test_a_lock_held_too_long_is_an_error(path: Path, clock: FakeClock) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX, lock_timeout=0.1, clock=clock)
    record = make_record(clock)
    backend.create(KEY, record)
    with lock_held_elsewhere(path):
        for operation, call in {
            "create": lambda: backend.create(KEY, record),
            "replace": lambda: backend.replace(KEY, record, 1),
            "delete": lambda: backend.delete(KEY),
            "touch": lambda: backend.touch(KEY, clock(), clock() + 900),
        }.items():
            started = time.monotonic()
            with pytest.raises(BackendUnavailableError) as info:
                call()
            assert 0.1 <= time.monotonic() - started < 4
            assert info.value.operation == operation
            shard = find_file(path).parent.name
            assert str(info.value) == (
                f"The filesystem backend cannot {operation!r} in {str(path)!r}: another"
                f" process has held the lock of {shard!r} for 0.1 seconds."
            )
        # Reading goes on.
        assert backend.load(KEY) == record
        assert backend.count() == 1
    assert backend.delete(KEY) is True


def test_a_lock_is_waited_for(backend: FilesystemBackend, path: Path) -> None:
    backend.create(KEY, make_record(time.time))
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_held_elsewhere(path))
        timer = threading.Timer(0.3, stack.close)
        timer.start()
        started = time.monotonic()
        assert backend.delete(KEY) is True
        assert time.monotonic() - started >= 0.25
        timer.join()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fchmod")
def test_a_file_that_cannot_be_made_private_is_not_left(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FilesystemBackend(path, clock=clock)
    backend.create(KEY, make_record(clock))
    before = {*path.rglob("*")}
    opened: list[int] = []

    def refuse(descriptor: int, mode: int) -> None:
        opened.append(descriptor)
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(BackendUnavailableError, match="not permitted"):
        backend.replace(KEY, make_record(clock), 1)
    assert {*path.rglob("*")} == before
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_thread_that_waits_too_long_gives_up(path: Path, clock: FakeClock) -> None:
    backend = FilesystemBackend(path, lock_timeout=0.1, clock=clock)
    backend.create(KEY, make_record(clock))
    shard = backend._layout.locate(KEY)[0]
    with (
        ThreadPoolExecutor(1) as other,
        backend._locks.hold(shard),
        pytest.raises(BackendUnavailableError, match="another thread has held"),
    ):
        other.submit(backend.delete, KEY).result()


def test_a_lock_file_that_was_removed_locks_nothing(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    # Somebody empties the folder between opening the lock file and locking it.
    backend.create(KEY, make_record(clock))
    lock = find_file(path).parent / ".lock"
    open_lock, opened = files.open_lock, []

    def open_and_remove(shard: str, access: files.Access) -> int | None:
        opened.append(shard)
        descriptor = open_lock(shard, access)
        if len(opened) == 1:
            lock.unlink()
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_lock", open_and_remove)
        assert backend.delete(KEY) is True
    assert len(opened) == 2
    assert lock.exists()


def count_up(path: str, times: int) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX)
    for _ in range(times):
        current = backend.load(KEY)
        while True:
            assert current is not None
            record = dataclasses.replace(current, data=b"%d" % (int(current.data) + 1))
            result = backend.replace(KEY, record, current.version)
            if isinstance(result, Replaced):
                break
            assert isinstance(result, Conflict)
            current = result.current
        backend.touch(KEY, time.time(), time.time() + 600)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_changes_of_several_processes_add_up(path: Path, method: t.Any) -> None:
    backend = FilesystemBackend(path, prefix=PREFIX)
    backend.create(KEY, make_record(time.time, b"0"))
    context = multiprocessing.get_context(method)
    processes = [
        context.Process(target=count_up, args=(str(path), 100)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    loaded = backend.load(KEY)
    assert loaded is not None
    assert (loaded.data, loaded.version) == (b"400", 401)
    assert find_leftovers(path) == []


def test_only_one_process_creates(path: Path) -> None:
    script = f"""
        import time
        from flask_serversession.backends.filesystem import FilesystemBackend
        from flask_serversession.record import Record, key_of
        backend = FilesystemBackend({str(path)!r})
        print(sum(
            backend.create(key_of(str(number), ""), Record(b"x", 1, 0, 0, 10**10))
            for number in range(200)
        ))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    counts = [int(process.communicate()[0]) for process in processes]
    assert sum(counts) == 200


@posix_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_while_another_thread_writes_inherits_no_lock(
    backend: FilesystemBackend, path: Path
) -> None:
    backend.create(KEY, make_record(time.time))
    shard = backend._layout.locate(KEY)[0]
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with backend._locks.hold(shard):
            locked.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    read, write = os.pipe()
    (held,) = backend._locks._held.get()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(held)
            # Waits for the parent's thread, and not for one that is not there.
            if backend.delete(KEY):
                status = 0
            os.write(write, b"x")
        finally:
            os._exit(status)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)
    assert backend.load(KEY) is None


@posix_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_prolong_the_parents_lock(
    backend: FilesystemBackend,
) -> None:
    backend.create(KEY, make_record(time.time))
    shard = backend._layout.locate(KEY)[0]
    read, write = os.pipe()
    with backend._locks.hold(shard):
        held = set(backend._locks._held.get())
        assert len(held) == 1
        child = os.fork()
        if child == 0:
            os.close(write)
            # As if the hook had been missed: keep the lock file open.
            os.read(read, 1)
            os._exit(0)
    assert backend.delete(KEY) is True
    os.close(write)
    os.close(read)
    os.waitpid(child, 0)


def test_no_descriptor_is_leaked(
    backend: FilesystemBackend, clock: FakeClock, path: Path
) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(5):
        key = key_of(str(turn), PREFIX)
        backend.create(key, make_record(clock))
        backend.replace(key, make_record(clock), 1)
        backend.replace(key, make_record(clock), 1)
        backend.touch(key, clock(), clock() + 900)
        backend.load(key)
        spoil_file(Path(backend._layout.locate(key)[1]), "damaged")
        with pytest.raises(RecordError):
            backend.load(key)
        backend.delete(key)
    list(backend.iterate())
    backend.prune(10)
    assert len(os.listdir("/proc/self/fd")) == before
    assert backend._locks._held.get() == set()


def test_messages_and_repr_name_the_folder(
    backend: FilesystemBackend, path: Path
) -> None:
    assert repr(backend) == f"<FilesystemBackend {str(path)!r}>"


@pytest.mark.parametrize("operation", ["touch", "replace"])
def test_a_marker_that_was_cleaned_away_is_there_again_at_the_next_use(
    tmp_path: Path, operation: str
) -> None:
    backend = FilesystemBackend(tmp_path / "sessions")
    key, now = key_of("id", "session:"), time.time()
    record = Record(b"data", 1, now, now, now + 600, "ada")
    assert backend.create(key, record)
    shutil.rmtree(tmp_path / "sessions" / "users")
    assert backend.keys_of_user("ada") == []
    if operation == "touch":
        assert backend.touch(key, now + 60, now + 660)
    else:
        assert backend.replace(key, record, 1) == Replaced(2)
    assert backend.keys_of_user("ada") == [key]
