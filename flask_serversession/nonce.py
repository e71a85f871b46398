"""Numbers that tell one write from every other."""

from __future__ import annotations

import itertools
import os

_MASK = 2**64 - 1


def make_nonce() -> int:
    """Give a number of 64 bits that nobody else is given; it is no secret. Thread-safe.

    Counts from where chance has put this process: that asks nothing of the system, and
    does not depend on the state of :mod:`random`, which an application may set to the
    same in all of its workers.
    """
    return next(_numbers) & _MASK


def _begin() -> itertools.count[int]:
    return itertools.count(int.from_bytes(os.urandom(8), "big"))


def _begin_again() -> None:
    global _numbers
    _numbers = _begin()


_numbers = _begin()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_begin_again)
