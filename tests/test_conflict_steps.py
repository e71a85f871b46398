"""What is waited for, and how two versions of one session are brought together."""

from __future__ import annotations

import dataclasses
import types
import typing as t

import pytest

from flask_serversession import BackendError
from flask_serversession import BackendUnavailableError
from flask_serversession import ConflictError
from flask_serversession import RecordError
from flask_serversession.conflicts import rebase
from flask_serversession.conflicts import resolve
from flask_serversession.conflicts import wait
from flask_serversession.core import Core
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.serializers import serializer_for
from flask_serversession.signals import backend_failed
from flask_serversession.unit import Identity
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .site import Site

IDENTITY = Identity("the id", "the key")


class Meeting:
    """A request that has loaded a session, which another one has changed since."""

    def __init__(self, base: dict[str, t.Any], **settings: t.Any) -> None:
        self.site = Site({"SESSION_BACKEND": "memory"}, **settings)
        self.core: Core = self.site.state.interface.core
        self.record = self.write(base)
        self.site.backend.create(IDENTITY.key, self.record)
        self.unit = self._new_unit()
        self.core.adopt(self.unit, self.record)

    def _new_unit(self) -> Unit:
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        unit = Unit(signer)
        unit.identity = IDENTITY
        return unit

    def write(self, data: dict[str, t.Any], lifetime: float | None = None) -> Record:
        """Give the record of a content."""
        unit, now = self._new_unit(), self.core.clock()
        unit.data, unit.lifetime = data, lifetime
        payload = self.core.dumps(unit)
        return self.core.make_record(unit, IDENTITY, payload, now, now, now)

    def store(self, record: Record) -> None:
        self.site.backend.delete(IDENTITY.key)
        self.site.backend.create(IDENTITY.key, record)


# Waiting


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give for how long somebody has paused, which takes no time."""
    pauses: list[float] = []
    waiting = types.SimpleNamespace(sleep=pauses.append)
    longest = types.SimpleNamespace(uniform=lambda least, most: (least, most))
    monkeypatch.setattr("flask_serversession.conflicts.time", waiting)
    monkeypatch.setattr("flask_serversession.conflicts.random", longest)
    return pauses


def test_the_first_conflict_is_resolved_at_once(pauses: list[float]) -> None:
    meeting = Meeting({"n": 1})
    current = meeting.write({"n": 2})
    with meeting.site.backend.counting() as calls:
        assert wait(meeting.core, meeting.unit, current, 1) is current
    assert calls == {}
    assert pauses == []


def test_later_ones_pause_longer_and_longer_and_look_again(
    pauses: list[t.Any],
) -> None:
    meeting = Meeting({"n": 1})
    current = meeting.write({"n": 2})
    for conflicts in range(2, 100):
        found = wait(meeting.core, meeting.unit, current, conflicts)
        assert found == meeting.site.backend.load(IDENTITY.key)
    assert pauses[:5] == [(0, 0.004), (0, 0.008), (0, 0.016), (0, 0.032), (0, 0.05)]
    assert set(pauses[5:]) == {(0, 0.05)}
    assert len(pauses) == 98


def test_after_a_hundred_it_is_an_error(pauses: list[float]) -> None:
    meeting = Meeting({"n": 1})
    for conflicts in (100, 101):
        with pytest.raises(ConflictError) as caught:
            wait(meeting.core, meeting.unit, meeting.record, conflicts)
        assert str(caught.value) == (
            f"The session was changed by other requests {conflicts} times in a row"
            " while this one tried to save it. Write less often to one session."
        )
    assert pauses == []


def test_what_is_gone_after_the_pause_is_not_merged(pauses: list[float]) -> None:
    meeting = Meeting({"n": 1})
    tombstone = dataclasses.replace(meeting.record, data=TOMBSTONE_DATA)
    meeting.store(tombstone)
    assert wait(meeting.core, meeting.unit, meeting.record, 2) is None
    meeting.site.backend.delete(IDENTITY.key)
    assert wait(meeting.core, meeting.unit, meeting.record, 2) is None
    error = RecordError("It is damaged.", "damaged")
    with meeting.site.backend.failing("load", error=error):
        assert wait(meeting.core, meeting.unit, meeting.record, 2) is None


def test_an_engine_that_fails_after_the_pause_is_told_of(pauses: list[float]) -> None:
    meeting = Meeting({"n": 1})
    heard: list[str] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append(values["operation"])

    with (
        meeting.site.backend.failing("load"),
        backend_failed.connected_to(hear, meeting.site.app),
        pytest.raises(BackendUnavailableError) as caught,
    ):
        wait(meeting.core, meeting.unit, meeting.record, 2)
    assert heard == ["load"]
    assert meeting.unit.failure is caught.value


# Bringing together


def test_both_changes_survive_and_the_later_record_is_gone_on_with() -> None:
    meeting = Meeting({"n": 1, "items": ["a"], "gone": 1})
    unit = meeting.unit
    unit.data.update(mine=1)
    unit.data["items"].append("b")
    current = meeting.write({"n": 1, "items": ["a", "c"], "theirs": 1})
    resolve(meeting.core, unit, current)
    assert unit.data == {"n": 1, "items": ["a", "c", "b"], "mine": 1, "theirs": 1}
    assert unit.record is current


def test_what_python_holds_for_equal_and_the_store_does_not_was_changed() -> None:
    meeting = Meeting({"n": 1})
    meeting.unit.data["n"] = True
    resolve(meeting.core, meeting.unit, meeting.write({"n": 1, "theirs": 1}))
    assert meeting.unit.data["n"] is True
    assert meeting.unit.data["theirs"] == 1


def test_a_key_that_only_the_other_has_changed_is_the_others() -> None:
    meeting = Meeting({"n": {"a": 1}})
    resolve(meeting.core, meeting.unit, meeting.write({"n": {"a": 2}}))
    assert meeting.unit.data == {"n": {"a": 2}}


@pytest.mark.parametrize("mine", [None, 5.0])
@pytest.mark.parametrize("theirs", [None, 9.0])
def test_a_lifetime_is_mine_if_i_have_changed_it(
    mine: float | None, theirs: float | None
) -> None:
    meeting = Meeting({"n": 1})
    meeting.unit.lifetime = mine
    resolve(meeting.core, meeting.unit, meeting.write({"n": 1}, theirs))
    assert meeting.unit.lifetime == (theirs if mine is None else mine)


def test_whoever_starts_over_takes_nothing_along() -> None:
    meeting = Meeting({"n": 1})
    unit = meeting.unit
    unit.want(Wish.RESTART)
    unit.data = {"mine": 1}
    resolve(meeting.core, unit, meeting.write({"n": 1, "theirs": 1}, 9.0))
    assert unit.data == {"mine": 1}
    assert unit.lifetime is None


def test_the_policy_may_be_to_overwrite() -> None:
    meeting = Meeting({"n": 1}, SESSION_CONFLICT="overwrite")
    unit = meeting.unit
    unit.data["mine"] = 1
    current = meeting.write({"n": 1, "theirs": 1}, 9.0)
    resolve(meeting.core, unit, current)
    assert unit.data == {"n": 1, "mine": 1}
    assert unit.lifetime is None
    assert unit.record is current


def test_the_policy_may_be_to_raise() -> None:
    meeting = Meeting({"n": 1}, SESSION_CONFLICT="raise")
    meeting.unit.data["mine"] = 1
    with pytest.raises(ConflictError) as caught:
        resolve(meeting.core, meeting.unit, meeting.write({"theirs": 1}))
    assert str(caught.value) == (
        "Another request changed the session while this one ran, and"
        " 'SESSION_CONFLICT' is 'raise'. The other request's version is kept."
    )
    assert meeting.unit.data == {"n": 1, "mine": 1}


def test_what_the_former_serializer_wrote_is_compared_with() -> None:
    meeting = Meeting({"n": 1})
    unit, json = meeting.unit, serializer_for("json")
    base = json.dumps({"n": 1, "gone": 1})
    current = meeting.write({"n": 1, "gone": 1, "theirs": 1})
    rebase(meeting.core, unit, current, base, json, {"n": 2})
    assert unit.data == {"n": 2, "theirs": 1}


def test_what_is_put_on_top_of_what_it_came_from_stays_as_it_is() -> None:
    meeting = Meeting({"items": ["a"]})
    unit = meeting.unit
    assert unit.stored is not None
    base, mine = unit.stored.payload, {"items": ["b"]}
    rebase(meeting.core, unit, meeting.record, base, meeting.core.serializer, mine)
    assert unit.data is mine


def test_a_new_session_keeps_its_own_lifetime() -> None:
    meeting = Meeting({"n": 1})
    unit = meeting._new_unit()
    unit.lifetime = 5.0
    serializer = meeting.core.serializer
    current = meeting.write({"n": 1}, 9.0)
    unit.stored = None
    base = serializer.dumps({})
    rebase(meeting.core, unit, current, base, serializer, {"mine": 1})
    assert unit.lifetime == 5
    assert unit.data == {"n": 1, "mine": 1}


def test_what_cannot_be_read_is_not_overwritten() -> None:
    meeting = Meeting({"n": 1})
    broken = dataclasses.replace(meeting.record, data=b"broken")
    with pytest.raises(BackendError) as caught:
        resolve(meeting.core, meeting.unit, broken)
    assert str(caught.value) == (
        "The session was overwritten meanwhile with something that cannot be read:"
        f" {caught.value.__cause__}"
    )
    assert isinstance(caught.value.__cause__, RecordError)
    assert caught.value.backend == meeting.site.backend.name
    assert caught.value.operation == "replace"
