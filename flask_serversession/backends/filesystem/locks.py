"""Locks across the threads and processes that write into the same folder."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
import typing as t

from filelock import lock_descriptor
from filelock import unlock_descriptor

from ...forks import PerProcess
from ...forks import ThreadLocks
from . import files

_FIRST_DELAY = 0.0002
_LONGEST_DELAY = 0.005


class ShardLocks:
    """A lock for each shard. Thread-safe.

    The lock file's lock is the system's, which releases it when a process dies.

    :param timeout: How long a lock is waited for, in seconds.
    :param access: Who may open the lock files.
    """

    def __init__(self, timeout: float, access: files.Access) -> None:
        self._timeout = timeout
        self._access = access
        self._thread_locks = ThreadLocks()
        # Open lock files. A lock lives as long as any descriptor of its open file: if
        # a forked child did not close it, it would outlive a parent that is killed.
        self._held = PerProcess(lambda: set[int](), drop=_close_all)

    @contextlib.contextmanager
    def hold(self, folder: str) -> t.Generator[bool, None, None]:
        """Hold the lock of a shard. Yields ``False`` if there is no such folder.

        :raises TimeoutError: if somebody else has held it for too long.
        """
        deadline = time.monotonic() + self._timeout
        # In front of the lock file, so that threads wait in line and do not poll.
        lock = self._thread_locks.get(int(folder[-2:], 16))
        held = self._held.get()
        try:
            if not lock.acquire(timeout=self._timeout):
                raise self._timed_out(folder, "thread")
            descriptor = self._lock_file(folder, held, deadline)
            if descriptor is None:
                yield False
                return
            try:
                yield True
            finally:
                try:
                    held.discard(descriptor)
                finally:
                    try:
                        # Closing would not be enough: a child that another thread has
                        # just forked has the same open file, and with it the lock.
                        unlock_descriptor(descriptor)
                    finally:
                        os.close(descriptor)
        finally:
            # A handler of a signal may raise before anything is noted. It is an error
            # to release what is not this thread's.
            try:  # noqa: SIM105 - takes no call before this one
                lock.release()
            except RuntimeError:
                pass

    def _lock_file(self, folder: str, held: set[int], deadline: float) -> int | None:
        delay = _FIRST_DELAY
        while True:
            descriptor = files.open_lock(folder, self._access)
            if descriptor is None:
                return None
            try:
                held.add(descriptor)
                while not lock_descriptor(descriptor, blocking=False):
                    if time.monotonic() >= deadline:
                        raise self._timed_out(folder, "process")
                    time.sleep(delay * (0.5 + random.random()))  # noqa: S311
                    delay = min(delay * 2, _LONGEST_DELAY)
                # Zero if somebody has removed the folder meanwhile: then this locks
                # nothing, and the next one to come locks another file.
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BaseException:
                held.discard(descriptor)
                os.close(descriptor)
                raise
            held.discard(descriptor)
            os.close(descriptor)

    def _timed_out(self, folder: str, who: str) -> TimeoutError:
        return TimeoutError(
            errno.ETIMEDOUT,
            f"another {who} has held the lock of {os.path.basename(folder)!r} for"
            f" {self._timeout:g} seconds",
        )


def _close_all(descriptors: set[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
