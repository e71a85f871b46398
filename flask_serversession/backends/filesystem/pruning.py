"""Removes expired records, and what killed processes have left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import stat
import time
import typing as t

from ...errors import RecordError
from ...forks import PerProcess
from ...record import decode_times
from ...record import decode_user
from . import files
from .layout import Layout
from .locks import ShardLocks
from .user_index import UserIndex

_SHARD_COUNT = 256
# How long what nobody needs any more is kept, in seconds. No write takes an hour;
# a damaged file is for the operator to look at.
_TEMPORARY_AGE = 3_600.0
_DAMAGED_AGE = 7 * 86_400.0
# sweep() does not look at more files than this in one call, or than so many for
# each record that it may delete. At about 2 µs a file that is 0.1 s.
_LEAST_LOOKS = 50_000
_LOOKS_PER_DELETION = 100
# A shard's lock is let go after so many seconds. prune() then waits for as long as it
# held it, since requests that want the lock ask every few milliseconds; sweep() does
# not, because a visitor waits for it.
_LONGEST_HOLD = 0.002


@dataclasses.dataclass(frozen=True)
class Pruner:
    """Goes through the shards; each call goes on where the one before it stopped."""

    layout: Layout
    locks: ShardLocks
    users: UserIndex
    clock: t.Callable[[], float]
    # Different in each process, so that they do not all clean the same corner.
    _next_shard: PerProcess[int] = dataclasses.field(
        default_factory=lambda: PerProcess(lambda: secrets.randbelow(_SHARD_COUNT))
    )

    def prune(self, limit: int) -> int:
        """Delete at most ``limit`` expired records, and return how many."""
        return self._run(limit, None)

    def sweep(self, limit: int) -> int:
        """The same, but stop after having looked at very many files."""
        return self._run(limit, max(_LEAST_LOOKS, _LOOKS_PER_DELETION * limit))

    def _run(self, limit: int, looks: int | None) -> int:
        deleted = looked = 0
        # The position is a shard's number, not an index: shards come and go.
        start = self._next_shard.get()
        folders = self.layout.list_folders()
        folders.sort(key=lambda folder: (_number(folder) - start) % _SHARD_COUNT)
        for folder in folders:
            self._next_shard.set(_number(folder))
            if deleted >= limit or (looks is not None and looked >= looks):
                break
            number, due = self._find_due(folder)
            looked += number
            deleted += self._remove(due, folder, limit - deleted, looks is None)
        return deleted

    def _find_due(self, folder: str) -> tuple[int, list[tuple[str, bool]]]:
        """Return the number of files, and those to remove.

        :return: Each with whether it is a record; others, which do not count, are last.
        """
        now = self.clock()
        looked = 0
        leftovers: list[tuple[str, bool]] = []
        expired: list[tuple[str, bool]] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                looked += 1
                age = _age(entry, now)
                if age is None:
                    continue
                if self.layout.to_key(entry.name) is not None:
                    if age >= 0:
                        expired.append((entry.path, True))
                elif _is_leftover(entry.name, age):
                    leftovers.append((entry.path, False))
        return looked, expired + leftovers

    def _remove(
        self, due: list[tuple[str, bool]], folder: str, limit: int, is_patient: bool
    ) -> int:
        """Remove files from the last on, and return how many records were deleted."""
        deleted = 0
        while due and deleted < limit:
            with self.locks.hold(folder) as exists:
                if not exists:
                    break
                started, held = time.monotonic(), 0.0
                while due and deleted < limit and held < _LONGEST_HOLD:
                    file, is_record = due.pop()
                    if is_record:
                        deleted += self._remove_if_expired(file)
                    else:
                        files.unlink(file)
                    held = time.monotonic() - started
            if held >= _LONGEST_HOLD and is_patient:
                time.sleep(min(held, 5 * _LONGEST_HOLD))
        return deleted

    def _remove_if_expired(self, file: str) -> bool:
        # The modification time may be wrong: a process was killed between the two
        # halves of a touch, or somebody copied or restored the folder.
        try:
            start = files.read_start(file)
            if start is None:
                return False
            _, expires_at = decode_times(start)
            owner = decode_user(start)
        except RecordError as error:
            if error.reason == "damaged":
                files.set_aside(file, self.clock())
            return False
        if expires_at > self.clock():
            with contextlib.suppress(FileNotFoundError):
                files.renew_mtime(None, file, expires_at, self.layout.access)
            return False
        is_deleted = files.unlink(file)
        self.users.remove(owner, file)
        return is_deleted


def _number(folder: str) -> int:
    return int(folder[-2:], 16)


def _is_leftover(name: str, age: float) -> bool:
    if name.startswith(files.TEMPORARY_PREFIX):
        return age > _TEMPORARY_AGE
    return name.endswith(files.DAMAGED_SUFFIX) and age > _DAMAGED_AGE


def _age(entry: os.DirEntry[str], now: float) -> float | None:
    """Return the seconds since a file's time; ``None`` if it is not a file any more."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    if entry.name.startswith(files.TEMPORARY_PREFIX):
        # Its modification time may already be the record's expiry.
        return now - min(status.st_mtime, status.st_ctime)
    return now - status.st_mtime
