"""Numbers that tell one write from every other."""

from __future__ import annotations

import itertools
import os

_MASK = 2**64 - 1


def make_nonce() -> int:
    """Give a number of 64 bits that nobody else is given; it is no secret. Thread-safe.

    Counts from where chance has put this process: that does not depend on the state of
    :mod:`random`, which an application may set to the same in all of its workers.
    """
    if os.getpid() != _pid:
        _begin()
    return next(_numbers) & _MASK


def _begin() -> None:
    # Not in a hook of Python's that is called after a fork: uWSGI calls none.
    global _numbers, _pid
    _numbers = itertools.count(int.from_bytes(os.urandom(8), "big"))
    _pid = os.getpid()  # last, since other threads go by it


_pid = 0
_numbers = itertools.count()
