"""Measures calls against each other, so that the machine's moods cancel out."""

from __future__ import annotations

import dataclasses
import gc
import random
import statistics
import time
import typing as t
from collections.abc import Callable
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Subject:
    """Something whose calls are measured."""

    name: str
    #: Gives the arguments of so many calls; not measured.
    prepare: Callable[[int], Sequence[t.Any]]
    call: Callable[[t.Any], object]


@dataclasses.dataclass
class Result:
    """What one subject's calls took, in microseconds: a value for each block."""

    cpu: list[float] = dataclasses.field(default_factory=list[float])
    wall: list[float] = dataclasses.field(default_factory=list[float])

    def median(self, kind: str = "cpu") -> float:
        """Give the median of the blocks."""
        return statistics.median(getattr(self, kind))

    def ratio(self, other: Result, kind: str = "cpu") -> float:
        """Give how many times as long as another's it took.

        The median of the ratios within each round, in which both met the same machine.
        """
        pairs = zip(getattr(self, kind), getattr(other, kind), strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def measure(
    subjects: Sequence[Subject], *, blocks: int, calls: int
) -> dict[str, Result]:
    """Have the subjects take turns, a block of calls each, in another order each time.

    :param blocks: How many blocks each has.
    :param calls: How many calls a block has.
    """
    results = {subject.name: Result() for subject in subjects}
    order = list(subjects)
    for subject in order:  # warm
        _run(subject, max(2, calls // 4))
    for _ in range(blocks):
        random.shuffle(order)
        for subject in order:
            cpu, wall = _run(subject, calls)
            results[subject.name].cpu.append(cpu)
            results[subject.name].wall.append(wall)
    return results


def _run(subject: Subject, calls: int) -> tuple[float, float]:
    items = subject.prepare(calls)
    call = subject.call
    # What is here already is not looked at, neither now nor while it is measured; the
    # garbage that the calls make is.
    gc.collect()
    gc.freeze()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    for item in items:
        call(item)
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    return cpu / calls / 1_000, wall / calls / 1_000
