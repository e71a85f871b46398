"""Locks between the threads of one process."""

from __future__ import annotations

import os
import threading


class ThreadLocks:
    """Locks by number, made when first needed, by the process that needs them.

    Not before: gevent replaces :class:`threading.Lock`, in gunicorn's workers only
    after a preloaded application was made, and an original one, waited for by a
    greenlet, stops the greenlet that holds it too. Nor is a lock of use that a thread
    held when another one forked: the child has no such thread. Thread-safe.
    """

    def __init__(self) -> None:
        self._locks: dict[tuple[int, int], threading.RLock] = {}

    def get(self, number: int = 0) -> threading.RLock:
        """Give a lock. Only its owner can release it, and should not take it twice."""
        name = os.getpid(), number
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks.setdefault(name, threading.RLock())
        return lock
