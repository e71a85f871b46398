"""What one call of settle() begins with, and carries on."""

from __future__ import annotations

import types
import typing as t

from flask_serversession.attempts import Attempts
from flask_serversession.attempts import Outcome


def test_it_begins_with_nothing() -> None:
    attempts = Attempts(None)
    assert attempts.resolve is None
    assert attempts.rotation is None
    assert attempts.conflicts == 0
    assert attempts.reason == ""
    assert attempts.encoded is None
    assert attempts.is_rotation_pending is False
    assert Attempts(print).resolve is print


def test_a_change_of_the_id_is_pending_until_somebody_is_told() -> None:
    attempts = Attempts(None)
    for pending in (object(), None):
        attempts.rotation = t.cast("t.Any", types.SimpleNamespace(pending=pending))
        assert attempts.is_rotation_pending is (pending is not None)


def test_the_outcomes_are_three() -> None:
    assert [outcome.name for outcome in Outcome] == ["DONE", "AGAIN", "LOST"]
