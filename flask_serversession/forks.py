"""What forking needs: values that belong to one process, and numbers that none shares.

A process is recognized by its id, whenever something is used. Python's hook after a
fork would not do: uWSGI forks in C and calls none.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import typing as t
import weakref

_T = t.TypeVar("_T")

_MASK = 2**64 - 1


class PerProcess(t.Generic[_T]):
    """A value that every process makes for itself, when it first asks for it.

    A forked child never sees its parent's: a lock may be held by a thread that only the
    parent has, a connection is the parent's. Nor is the value made on import: gevent
    replaces :class:`threading.Lock`, in gunicorn's workers only after a preloaded
    application was made, and an original one, waited for by a greenlet, stops the
    greenlet that holds it too. Thread-safe, without a lock of its own.

    :param make: Makes the value, which is not ``None``. Threads that ask at the same
        moment may call it once each, but all get the same value.
    :param drop: Called in a child with its parent's value: right after the fork where
        Python's hook is called, and otherwise at first use.
    """

    def __init__(
        self,
        make: t.Callable[[], _T],
        drop: t.Callable[[_T], object] | None = None,
    ) -> None:
        self._make = make
        self._drop = drop
        # By process id. Only setdefault() and pop() change it; each is one step.
        self._values: dict[int, _T] = {}
        if drop is not None:
            _dropping.add(self)

    def get(self) -> _T:
        """Return this process's value."""
        try:
            return self._values[os.getpid()]
        except KeyError:
            self.drop_inherited()
            return self._values.setdefault(os.getpid(), self._make())

    def set(self, value: _T) -> None:
        """Put another value in its place, for this process."""
        self._values[os.getpid()] = value

    def drop_inherited(self) -> None:
        """Forget the values of other processes. Each is dropped once."""
        own = os.getpid()
        for pid, value in [*self._values.items()]:
            # Whichever thread takes it out drops it.
            is_taken = pid != own and self._values.pop(pid, None) is not None
            if is_taken and self._drop is not None:
                self._drop(value)


class ThreadLocks:
    """Locks by number, between the threads of one process. Thread-safe."""

    def __init__(self) -> None:
        self._locks: PerProcess[dict[int, threading.RLock]] = PerProcess(dict)

    def get(self, number: int = 0) -> threading.RLock:
        """Return a lock. Only its owner can release it; it is not to be taken twice."""
        locks = self._locks.get()
        lock = locks.get(number)
        if lock is None:
            lock = locks.setdefault(number, threading.RLock())
        return lock


def unique_number() -> int:
    """Return a number of 64 bits that nobody else is given. Thread-safe.

    It is no secret.
    """
    return next(_numbers.get()) & _MASK


def _count() -> itertools.count[int]:
    # From where chance puts this process. Not the chance of the module random, whose
    # state an application may set to the same in all of its workers.
    return itertools.count(int.from_bytes(os.urandom(8), "big"))


_numbers = PerProcess(_count)
_dropping: weakref.WeakSet[PerProcess[t.Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for value in [*_dropping]:
        value.drop_inherited()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
