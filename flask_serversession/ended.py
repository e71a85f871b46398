"""What this process has ended, for as long as another request may not know it yet."""

from __future__ import annotations

import collections.abc as cabc
import itertools
import math
import threading

from .config import SessionConfig

# How many ended keys one process remembers, and for how long at least, in seconds:
# longer than a request runs.
_MAX_ENDED = 10_000
_LEAST_REMEMBERED = 60.0


class EndedSessions:
    """Keys of sessions that this process has ended, or given another id. Thread-safe.

    Remembered for as long as another request's cookie for one can look as if it
    needed no touch, which would tell.
    """

    def __init__(self, config: SessionConfig, clock: cabc.Callable[[], float]) -> None:
        self._clock = clock
        self._remembered_for = max(
            config.rotation_grace, config.touch_interval, _LEAST_REMEMBERED
        )
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, key: str) -> None:
        """Remember that a session was ended, or has another id now."""
        now = self._clock()
        with self._lock:
            self._until.pop(key, None)
            self._until[key] = now + self._remembered_for
            # The oldest come first.
            for old, until in [*itertools.islice(self._until.items(), 2)]:
                if until <= now or len(self._until) > _MAX_ENDED:
                    del self._until[old]

    def discard(self, key: str) -> None:
        """Forget a key that is in use again."""
        self._until.pop(key, None)

    def has(self, key: str, since: float = -math.inf) -> bool:
        """Whether this process has ended the session, or rotated its id away.

        :param since: After which moment, in seconds since the epoch.
        """
        until = self._until.get(key)
        return (
            until is not None
            and until > self._clock()
            and until - self._remembered_for > since
        )
