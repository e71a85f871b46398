"""Stops asking a backend that does not answer, so that an outage costs few waits."""

from __future__ import annotations

import collections.abc as cabc
import logging
import os
import time
import typing as t

from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import RecordError
from .forks import ThreadLocks

P = t.ParamSpec("P")
T = t.TypeVar("T")

logger = logging.getLogger("flask_serversession")

#: After so many failures in a row a process stops asking …
FAILURES = 5
#: … for so many seconds at a time.
PAUSE = 2.0


class NotAskedError(BackendUnavailableError):
    """The backend was not asked, because it did not answer others."""


class Breaker:
    """Asks a backend, or says at once that it does not answer. Thread-safe.

    What a backend *refuses*, because it is full or read-only, is an answer: reading and
    logging out may go on. Each process finds out for itself.

    :param clock: The application's clock. A pause ends by this or by the real time,
        whichever is first: a test may set the one, and may have stopped it.
    :param tell: Called when the backend answers again after it was given up.
    """

    def __init__(
        self, clock: cabc.Callable[[], float], tell: cabc.Callable[[], object]
    ) -> None:
        self._clock = clock
        self._tell = tell
        self._locks = ThreadLocks()
        # Both are read without the lock, so that a backend that works costs nothing.
        self._failures = 0
        self._pause: _Pause | None = None

    def ask(
        self, function: cabc.Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Ask the backend.

        :raises NotAskedError: if it has failed, and others have to try first.
        """
        pause = self._pause
        if pause is not None and not pause.lets_through():
            raise pause.error()
        try:
            result = function(*args, **kwargs)
        except BackendUnavailableError as error:
            if error.refused:
                self._succeed()
            else:
                self._fail(error, pause)
            raise
        except (BackendError, RecordError):
            self._succeed()
            raise
        except BaseException:
            # Interrupted, or a bug: nobody knows. So the next one may try.
            if pause is not None:
                pause.end()
            raise
        if self._failures:
            self._succeed()
        return result

    def _fail(self, error: BackendUnavailableError, tried: _Pause | None) -> None:
        with self._locks.get():
            before = self._pause
            if before is not None and before.pid != os.getpid():
                before = self._pause = None
                self._failures = 0
            self._failures += 1
            if before is None and self._failures >= FAILURES:
                logger.error(
                    "The session backend has failed %d times in a row. Until it answers"
                    " again, it is asked once in %g seconds.",
                    self._failures,
                    PAUSE,
                )
            elif before is None or before is not tried:
                return
            self._pause = _Pause(self._clock, error)

    def _succeed(self) -> None:
        with self._locks.get():
            before, self._pause, self._failures = self._pause, None, 0
        if before is not None and before.pid == os.getpid():
            logger.warning("The session backend answers again.")
            self._tell()


class _Pause:
    """The time in which nobody asks; and after it, one that does."""

    def __init__(
        self, clock: cabc.Callable[[], float], error: BackendUnavailableError
    ) -> None:
        self.pid = os.getpid()
        self._locks = ThreadLocks()
        self._clock = clock
        self._began = time.monotonic(), clock()
        self._error = error
        self._is_over = False

    def lets_through(self) -> bool:
        """Return whether to ask: whoever comes first after the pause does."""
        if self.pid != os.getpid():
            return True
        now = time.monotonic(), self._clock()
        with self._locks.get():
            passed = max(now[0] - self._began[0], now[1] - self._began[1])
            if passed < PAUSE and not self._is_over:
                return False
            # Should this one hang, another one tries after the next pause.
            self._began, self._is_over = now, False
        return True

    def end(self) -> None:
        """Let the next one through."""
        self._is_over = True

    def error(self) -> NotAskedError:
        """Return the error for who may not ask."""
        failed = self._error
        return NotAskedError(
            f"The session backend does not answer, and is asked once in {PAUSE:g}"
            f" seconds. The last failure: {failed}",
            backend=failed.backend,
            operation=failed.operation,
        )
