"""What this process has ended, for as long as another request may not know it yet."""

from __future__ import annotations

import collections.abc as cabc
import itertools
import math
import threading
import typing as t

from .config import SessionConfig

# How many ended keys one process remembers, and for how long it can say why, in
# seconds.
_MAX_ENDED = 10_000
_REASON_KEPT = 86_400.0
# For how long at least another request may not know it yet, in seconds: longer than a
# request runs.
_LEAST_REMEMBERED = 60.0

#: Why an id names no session any more.
Reason = t.Literal["logged out", "revoked", "limit", "replaced", "rotated"]


class _End(t.NamedTuple):
    at: float
    reason: Reason


class EndedSessions:
    """Keys of sessions that this process has ended, or given another id. Thread-safe.

    Remembered for as long as another request's cookie for one can look as if it
    needed no touch, which would tell. Why it was ended is remembered for longer, for
    who comes back later.
    """

    def __init__(self, config: SessionConfig, clock: cabc.Callable[[], float]) -> None:
        self._clock = clock
        self._remembered_for = max(
            config.rotation_grace, config.touch_interval, _LEAST_REMEMBERED
        )
        self._ends: dict[str, _End] = {}
        self._lock = threading.Lock()

    def add(self, key: str, reason: Reason) -> None:
        """Remember that a session was ended, or has another id now."""
        now = self._clock()
        with self._lock:
            self._ends.pop(key, None)
            self._ends[key] = _End(now, reason)
            # The oldest come first.
            for old, end in [*itertools.islice(self._ends.items(), 2)]:
                if end.at + _REASON_KEPT <= now or len(self._ends) > _MAX_ENDED:
                    del self._ends[old]

    def discard(self, key: str) -> None:
        """Forget a key that is in use again."""
        self._ends.pop(key, None)

    def has(self, key: str, since: float = -math.inf) -> bool:
        """Whether this process has just ended the session, or rotated its id away.

        :param since: After which moment, in seconds since the epoch.
        """
        end = self._ends.get(key)
        return (
            end is not None
            and end.at + self._remembered_for > self._clock()
            and end.at > since
        )

    def reason(self, key: str) -> Reason | None:
        """Return why the session is no more; ``None`` if nothing is known of it."""
        end = self._ends.get(key)
        return None if end is None else end.reason
