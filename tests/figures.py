"""Figures that tests count while they run, shown at the end of the run.

They travel with the tests' reports, so they arrive from any of pytest's workers.
"""

from __future__ import annotations

import collections
import typing as t
from collections.abc import Callable
from collections.abc import Mapping

import pytest

#: Has a line of figures shown: ``report(kills=300, torn=0)``, or ``report("a line")``.
Report = Callable[..., None]

_LINE = "line of figures"
_COUNTS = "counts"
_COST = "cost of a request"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Have figures of this test shown at the end, also when everything is well."""

    def show(*lines: str, **figures: object) -> None:
        parts = (f"{name.replace('_', ' ')}: {n}" for name, n in figures.items())
        text = ", ".join((*lines, *parts))
        request.node.user_properties.append((_LINE, text))

    return show


def add_counts(node: pytest.Item, name: str, counts: Mapping[str, int]) -> None:
    """Have numbers added to those of other tests, and their sums shown."""
    node.user_properties.append((_COUNTS, [name, dict(counts)]))


def add_cost(node: pytest.Item, kind: str, cost: str, backend: str) -> None:
    """Have what a kind of request costs on a backend shown in the table."""
    node.user_properties.append((_COST, [kind, cost, backend]))


def show(reporter: pytest.TerminalReporter) -> None:
    """Write everything that the tests of this run have counted."""
    lines: list[str] = []
    sums: dict[str, collections.Counter[str]] = {}
    table: dict[tuple[str, str], list[str]] = {}
    for test, name, value in _properties(reporter):
        if name == _LINE:
            lines.append(f"{test}: {value}")
        elif name == _COUNTS:
            sums.setdefault(value[0], collections.Counter()).update(value[1])
        elif name == _COST:
            table.setdefault((value[0], value[1]), []).append(value[2])
    if lines or sums:
        reporter.section("figures")
    for line in sorted(lines):
        reporter.write_line(line)
    for name, counter in sorted(sums.items()):
        numbers = ", ".join(f"{key} {n:,}" for key, n in sorted(counter.items()))
        reporter.write_line(f"{name}: {numbers}")
    if table:
        _show_costs(reporter, table)


def _properties(
    reporter: pytest.TerminalReporter,
) -> t.Iterator[tuple[str, str, t.Any]]:
    for reports in reporter.stats.values():
        for item in reports:
            # Each phase of a test repeats what the ones before it have.
            if getattr(item, "when", None) == "teardown":
                test = item.nodeid.rpartition("::")[2]
                for name, value in item.user_properties:
                    yield test, name, value


def _show_costs(
    reporter: pytest.TerminalReporter, table: Mapping[tuple[str, str], list[str]]
) -> None:
    reporter.section("backend operations of each kind of request")
    everywhere = len({name for backends in table.values() for name in backends})
    for (kind, cost), backends in table.items():
        where = f"all {everywhere} backends"
        if len(backends) < everywhere:
            where = ", ".join(sorted(backends))
        reporter.write_line(f"{kind:<34} {cost:<38} {where}")
