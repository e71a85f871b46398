"""Every order of the backend operations of two requests: see ``orders.py``."""

from __future__ import annotations

import typing as t

import pytest

from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Replaced
from flask_serversession.record import Record

from . import orders
from .figures import add_counts
from .orders import KINDS
from .orders import Case
from .orders import Counts
from .orders import Turns
from .orders import explore
from .orders import pairs

#: In so many parts, which several workers can run at once.
PARTS = 6


def check(request: pytest.FixtureRequest, cases: t.Sequence[Case]) -> Counts:
    counts = explore(cases)
    add_counts(
        request.node,
        "orders",
        {"of requests": counts.orders, "with a fault": counts.faults},
    )
    assert not counts.violations, "\n".join(map(str, counts.violations[:20]))
    return counts


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_order_two_requests_come_in_users_get_what_they_are_promised(
    request: pytest.FixtureRequest, part: int
) -> None:
    counts = check(request, pairs()[part::PARTS])
    assert counts.cases >= 1300 // PARTS
    assert counts.orders > 2500


def changes_id(case: Case) -> bool:
    """Whether an id may change, which takes two steps that can be cut off."""
    kinds = [KINDS[name] for name in case.kinds]
    return case.is_renewal_due or any(
        kind.rotates or kind.begins or kind.logs_in for kind in kinds
    )


@pytest.mark.parametrize("is_changing", [False, True])
def test_whatever_fails_at_whatever_step_users_get_what_they_are_promised(
    request: pytest.FixtureRequest, is_changing: bool
) -> None:
    cases = [
        case._replace(faults=True)
        for case in pairs()
        if changes_id(case) is is_changing
    ]
    counts = check(request, cases[:: 97 if is_changing else 9])
    assert counts.faults > 3000


# The tool itself


def test_there_are_as_many_kinds_as_that_and_each_pair_once() -> None:
    assert len(KINDS) >= 24
    cases = pairs()
    assert len({*cases}) == len(cases) == len(KINDS) * (len(KINDS) + 1) // 2 * 4


def test_two_requests_of_two_operations_have_six_orders() -> None:
    case = Case(("write", "write"), workers=2)
    world = orders.World()
    found = [outcome.order for outcome in orders.orders_of(world, case)]
    assert len(found) == len({order.turns for order in found})
    # Who comes second has to ask once more.
    assert {order.turns[:3] for order in found} >= {(0, 0, 1), (0, 1, 0), (1, 1, 0)}
    assert len(found) >= 6
    assert str(found[0]) == "0:load 0:replace 1:load 1:replace"


def broken(monkeypatch: pytest.MonkeyPatch, cases: t.Sequence[Case]) -> set[str]:
    counts = explore(cases)
    monkeypatch.undo()
    return {violation.text for violation in counts.violations}


def test_a_library_that_loses_changes_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overwrite(base: t.Any, mine: t.Any, *_: t.Any) -> t.Any:
        return mine

    monkeypatch.setattr("flask_serversession.conflicts.merge", overwrite)
    monkeypatch.setattr("flask_serversession.conflicts._merge", overwrite)
    texts = broken(monkeypatch, [Case(("write", "append"))])
    assert any("has lost what it" in text for text in texts)


def test_a_backend_that_revives_what_was_ended_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def replace(self: Turns, key: str, record: Record, expected: int) -> t.Any:
        ask = t.cast(t.Any, self)._ask
        result = ask("replace", self.inner.replace, key, record, expected)
        if isinstance(result, (Replaced, Conflict)):
            return result
        self.inner.create(key, record)
        return Replaced(record.version)

    monkeypatch.setattr(Turns, "replace", replace)
    texts = broken(monkeypatch, [Case(("write", "destroy"), workers=2)])
    assert "somebody who has logged out is logged in" in texts
    assert "what was ended is there again" in texts


def test_two_live_ids_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "flask_serversession.rotation.Rotation.take_back", lambda self: None
    )
    texts = broken(monkeypatch, [Case(("regenerate", "regenerate"), workers=2)])
    assert "2 records are live" in texts
