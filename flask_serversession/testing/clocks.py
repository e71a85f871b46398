"""Clocks for tests: one to set, and the machine's."""

from __future__ import annotations

import threading
import time
import typing as t


class Clock(t.Protocol):
    """Tells the time and lets it pass, as :class:`.BackendContract` needs it."""

    def __call__(self) -> float:
        """Return the current time, in seconds since the epoch."""
        ...

    def advance(self, seconds: float) -> None:
        """Let time pass.

        :param seconds: How much.
        """
        ...


class FakeClock:
    """A clock that stands still until it is told to advance.

    Anything that takes a ``clock`` takes it::

        clock = FakeClock()
        backend = MemoryBackend(clock)
        clock.advance(3600)

    :param now: Where it starts, in seconds since the epoch; the first moment
        of 2100 by default, in UTC. It lies in the future because engines that expire
        records by a clock of their own, as Redis does, would remove at once what a
        test stores.
    """

    def __init__(self, now: float = 4_102_444_800.0) -> None:
        self._now = now
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the current time, in seconds since the epoch."""
        return self._now

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._now}>"

    def advance(self, seconds: float) -> None:
        """Move on, at once.

        :param seconds: How far; not negative.
        """
        if seconds < 0:
            raise ValueError("A clock does not go back.")
        with self._lock:
            self._now += seconds


class RealClock:
    """The clock of this machine; to advance is to sleep.

    For testing backends whose engine has its own clock.
    """

    def __call__(self) -> float:
        """Return the current time, in seconds since the epoch."""
        return time.time()

    def advance(self, seconds: float) -> None:
        """Sleep.

        :param seconds: How long.
        """
        # A little longer, for engines that cache the time.
        time.sleep(seconds + 0.02)
