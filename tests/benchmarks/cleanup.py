"""Simulates a day of automatic cleanup, and counts the expired records.

Sessions begin at a steady rate at workers that are restarted again and again. The clock
is simulated, the records are numbers in memory, and the rhythm is the library's own::

    python -m tests.benchmarks.cleanup
"""

from __future__ import annotations

import collections
import dataclasses
import random
import sys
import typing as t
from unittest import mock

from flask_serversession import Backend
from flask_serversession import Record
from flask_serversession import cleanup
from flask_serversession.backends.base import Capability
from flask_serversession.backends.base import Gone
from flask_serversession.config import SessionConfig

HOUR, DAY = 3_600, 86_400
LIFETIME = 600.0


class Clock:
    """Takes the place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Queue(Backend):
    """Records that expire in the order in which they were made; only their times."""

    name = "queue"
    capabilities = Capability.PRUNE

    def __init__(self, clock: Clock) -> None:
        self.expiries: collections.deque[float] = collections.deque()
        self._clock = clock

    def add(self) -> None:
        self.expiries.append(self._clock.now + LIFETIME)

    def load(self, key: str) -> Record | None:
        return None

    def create(self, key: str, record: Record) -> bool:
        return False

    def replace(self, key: str, record: Record, expected: int) -> Gone:
        return Gone()

    def delete(self, key: str) -> bool:
        return False

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        return False

    def prune(self, limit: int) -> int:
        deleted = 0
        while deleted < limit and self._is_first_expired():
            self.expiries.popleft()
            deleted += 1
        return deleted

    def _is_first_expired(self) -> bool:
        return bool(self.expiries) and self.expiries[0] <= self._clock.now


@dataclasses.dataclass(frozen=True)
class Result:
    """What a simulation has found."""

    made: int
    left: int  #: expired, at the end
    most: int  #: expired, at the worst moment


def simulate(
    duration: float,
    *,
    rate: float = 10,
    workers: int = 4,
    restart_after: float = 60,
    seed: int = 19,
    **settings: t.Any,
) -> Result:
    """Let sessions begin, one after the other, at workers that take turns.

    :param rate: How many begin in a second.
    :param restart_after: After how many seconds a worker is replaced.
    """
    clock, config = Clock(), SessionConfig(**settings)
    generator = random.Random(seed)
    backend = Queue(clock)
    expired, most, step = 0, 0, 1 / rate
    with (
        mock.patch.object(cleanup, "time", clock),
        mock.patch.object(cleanup.random, "SystemRandom", return_value=generator),
    ):
        # Not restarted all at once.
        births = [-restart_after * number / workers for number in range(workers)]
        running = [cleanup.Cleanup(config, backend) for _ in range(workers)]
        gone = made = 0
        for made in range(1, round(duration * rate) + 1):
            clock.now += step
            number = made % workers
            if clock.now - births[number] >= restart_after:
                births[number] = clock.now
                running[number] = cleanup.Cleanup(config, backend)
            backend.add()
            # One lifetime later as many have expired as had begun.
            expired = max(0, made - round(LIFETIME * rate)) - gone
            most = max(most, expired)
            before = len(backend.expiries)
            running[number]()
            gone += before - len(backend.expiries)
    return Result(made, expired, most)


def main() -> None:
    """Print a table of days."""
    row = "{:>7}  {:>15}  {:>7}  {:>12}\n".format
    sys.stdout.write(row("workers", "restarted after", "begun", "most expired"))
    for workers, restart_after in ((1, 60), (2, 60), (4, 60), (4, DAY), (16, 60)):
        found = simulate(DAY, workers=workers, restart_after=restart_after)
        after = f"{restart_after} s"
        sys.stdout.write(row(workers, after, found.made, found.most))


if __name__ == "__main__":
    main()
