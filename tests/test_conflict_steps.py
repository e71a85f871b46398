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
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.serializers import serializer_for
from flask_serversession.serializers.lazy import LazyMap
from flask_serversession.signals import backend_failed
from flask_serversession.unit import Stored
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .prepared import IDENTITY
from .prepared import Prepared


class Meeting(Prepared):
    """A request that has loaded a session, which another one has changed since."""

    def base(self, payload: bytes | None = None, **values: t.Any) -> Stored:
        """Give what changes are compared with."""
        stored = self.unit.stored
        assert stored is not None
        if payload is not None:
            values["envelope"] = dataclasses.replace(stored.envelope, payload=payload)
        return dataclasses.replace(stored, **values)


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


def test_what_is_found_after_the_pause_is_what_is_there(pauses: list[float]) -> None:
    meeting = Meeting({"n": 1})
    tombstone = dataclasses.replace(meeting.record, data=TOMBSTONE_DATA)
    meeting.site.backend.delete(IDENTITY.key)
    assert wait(meeting.core, meeting.unit, meeting.record, 2) is None
    meeting.site.backend.create(IDENTITY.key, tombstone)
    found = wait(meeting.core, meeting.unit, meeting.record, 2)
    assert found is not None
    assert found.is_tombstone
    error = RecordError("It is damaged.", "damaged")
    with (
        meeting.site.backend.failing("load", error=error),
        pytest.raises(RecordError),
    ):
        wait(meeting.core, meeting.unit, meeting.record, 2)


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
    unit.want(Wish.SAVE)
    current = meeting.write({"n": 1, "theirs": 1}, 9.0)
    resolve(meeting.core, unit, current)
    assert unit.data == {"n": 1, "mine": 1}
    assert unit.lifetime is None
    assert unit.record is current


def test_the_policy_may_be_to_raise() -> None:
    meeting = Meeting({"n": 1}, SESSION_CONFLICT="raise")
    meeting.unit.data["mine"] = 1
    meeting.unit.want(Wish.SAVE)
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
    base = meeting.base(serializer=json, payload=json.dumps({"n": 1, "gone": 1}))
    current = meeting.write({"n": 1, "gone": 1, "theirs": 1})
    rebase(meeting.core, unit, current, base, {"n": 2})
    assert unit.data == {"n": 2, "theirs": 1}


def test_what_is_put_on_top_of_what_it_came_from_stays_as_it_is() -> None:
    meeting = Meeting({"items": ["a"]})
    unit = meeting.unit
    mine = {"items": ["b"]}
    rebase(meeting.core, unit, meeting.record, meeting.base(), mine)
    assert unit.data is mine


def test_a_new_session_keeps_its_own_lifetime() -> None:
    meeting = Meeting({"n": 1})
    unit = meeting.new_unit()
    unit.lifetime = 5.0
    current = meeting.write({"n": 1}, 9.0)
    base = meeting.base(payload=meeting.core.serializer.dumps({}))
    rebase(meeting.core, unit, current, base, {"mine": 1})
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


# Large sessions, of which only what was touched is brought together

LARGE = {name: [name * 400] for name in "abcdefgh"}


def test_of_a_large_session_only_what_was_touched_is_merged() -> None:
    meeting = Meeting({**LARGE, "n": 1, "log": ["begun"], "gone": 1, "theirs": 1})
    unit = meeting.unit
    assert isinstance(unit.data, LazyMap)
    unit.data["a"].append("mine")
    unit.data["log"].append("mine")
    unit.data["new"] = "mine"
    unit.data["both"] = "mine"
    del unit.data["gone"]
    del unit.data["d"]
    del unit.data["e"]
    theirs = {**LARGE, "n": 2, "log": ["begun", "theirs"], "gone": 1, "both": "theirs"}
    theirs["b"] = ["b" * 400, "theirs"]
    del theirs["c"], theirs["e"]
    current = meeting.write(theirs)
    before = unit.data
    resolve(meeting.core, unit, current)
    expected = {**LARGE, "n": 2, "log": ["begun", "theirs", "mine"], "both": "mine"}
    expected |= {"a": ["a" * 400, "mine"], "b": ["b" * 400, "theirs"], "new": "mine"}
    del expected["c"], expected["d"], expected["e"]
    assert dict(unit.data) == expected
    assert unit.data is not before
    assert isinstance(unit.data, LazyMap)


def test_what_nobody_has_touched_of_a_large_session_is_not_even_read() -> None:
    meeting = Meeting({**LARGE, "n": 1})
    unit = meeting.unit
    unit.data["n"] = 2
    resolve(meeting.core, unit, meeting.write({**LARGE, "m": 1}))
    assert isinstance(unit.data, LazyMap)
    # They are copied as bytes when it is stored.
    assert all(unit.data.part(name) is not None for name in LARGE)
    assert unit.data.part("n") is None
    assert (unit.data["n"], unit.data["m"]) == (2, 1)


@pytest.mark.parametrize("is_mine_large", [True, False])
def test_a_large_and_a_small_version_are_merged_as_any(is_mine_large: bool) -> None:
    large, small = {**LARGE, "n": 1}, {"n": 1, "m": 1}
    meeting = Meeting(large if is_mine_large else small)
    unit = meeting.unit
    assert isinstance(unit.data, LazyMap) is is_mine_large
    unit.data["mine"] = 1
    resolve(meeting.core, unit, meeting.write(small if is_mine_large else large))
    expected = small if is_mine_large else large
    assert dict(unit.data) == {**expected, "mine": 1}


def test_what_python_holds_for_equal_is_told_apart_in_large_sessions_too() -> None:
    meeting = Meeting({**LARGE, "n": 1, "m": 1})
    meeting.unit.data.update(n=True, m=1)
    resolve(meeting.core, meeting.unit, meeting.write({**LARGE, "n": 1, "m": 2}))
    assert meeting.unit.data["n"] is True
    assert meeting.unit.data["m"] == 2


# What counts as a change


def test_who_has_written_nothing_is_in_conflict_with_nothing() -> None:
    for policy in ("raise", "overwrite", "merge"):
        meeting = Meeting({"n": 1}, SESSION_CONFLICT=policy)
        unit = meeting.unit
        for wish in (Wish.NOTHING, Wish.TOUCH, Wish.NEW_ID):
            unit.wish = wish
            resolve(meeting.core, unit, meeting.write({"n": 1, "theirs": 1}))
            assert unit.data == {"n": 1, "theirs": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda unit: unit.data.update(n=2),
        lambda unit: unit.data.update(n=object()),
        lambda unit: setattr(unit, "lifetime", 5.0),
    ],
    ids=["content", "what nobody can write", "lifetime"],
)
def test_who_wants_a_new_id_may_have_written_too(
    change: t.Callable[[Unit], object],
) -> None:
    meeting = Meeting({"n": 1}, SESSION_CONFLICT="raise")
    unit = meeting.unit
    unit.want(Wish.NEW_ID)
    change(unit)
    with pytest.raises(ConflictError):
        resolve(meeting.core, unit, meeting.write({"theirs": 1}))


@pytest.mark.parametrize("wish", [Wish.SAVE, Wish.RESTART, Wish.END])
def test_other_wishes_to_write_are_changes_by_themselves(wish: Wish) -> None:
    meeting = Meeting({"n": 1}, SESSION_CONFLICT="raise")
    meeting.unit.want(wish)
    with pytest.raises(ConflictError):
        resolve(meeting.core, meeting.unit, meeting.write({"theirs": 1}))


# What the application tells of the session


def test_what_two_requests_tell_is_brought_together() -> None:
    meeting = Meeting({"n": 1})
    unit = meeting.unit
    base = dataclasses.replace(meeting.record, meta={"a": "1", "b": "1", "c": "1"})
    meeting.core.adopt(unit, base)
    unit.change_meta({"a": "mine", "b": "1", "d": "mine"})  # and not c
    meta = {"a": "1", "b": "theirs", "c": "1", "e": "theirs", "user_agent": "a browser"}
    current = dataclasses.replace(meeting.write({"n": 1}), meta=meta)
    resolve(meeting.core, unit, current)
    assert unit.own_meta == {"a": "mine", "b": "theirs", "d": "mine", "e": "theirs"}


@pytest.mark.parametrize("policy", ["merge", "overwrite"])
def test_who_tells_nothing_leaves_what_another_tells(policy: str) -> None:
    meeting = Meeting({"n": 1}, SESSION_CONFLICT=policy)
    unit = meeting.unit
    unit.want(Wish.SAVE)
    current = dataclasses.replace(meeting.write({"n": 1}), meta={"a": "theirs"})
    resolve(meeting.core, unit, current)
    # Unless it is to be overwritten: then it is as this request has seen it.
    assert unit.own_meta == ({} if policy == "overwrite" else None)


def test_who_starts_over_tells_what_it_has_told_alone() -> None:
    meeting = Meeting({"n": 1})
    unit = meeting.unit
    unit.want(Wish.RESTART)
    unit.change_meta({"a": "mine"})
    current = dataclasses.replace(meeting.write({"n": 1}), meta={"b": "theirs"})
    resolve(meeting.core, unit, current)
    assert unit.own_meta == {"a": "mine"}
