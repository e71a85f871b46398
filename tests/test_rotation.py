"""A new id, step by step: the successor, the tombstone, and what follows them."""

from __future__ import annotations

import dataclasses
import logging
import typing as t

import pytest

from flask_serversession import BackendError
from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import ServerSessionError
from flask_serversession.core import Core
from flask_serversession.meta import INTERNAL
from flask_serversession.meta import LEFT_AT
from flask_serversession.meta import MOVING
from flask_serversession.meta import PREDECESSOR
from flask_serversession.payload import Sealer
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.rotation import RENEWED
from flask_serversession.rotation import SAME_USER
from flask_serversession.rotation import SUCCESSOR
from flask_serversession.rotation import Rotation
from flask_serversession.rotation import create
from flask_serversession.rotation import delete_successor
from flask_serversession.rotation import follow
from flask_serversession.rotation import is_somebody_left
from flask_serversession.rotation import log_out_successor
from flask_serversession.rotation import make_tombstone
from flask_serversession.rotation import predecessor_of
from flask_serversession.rotation import successor_of
from flask_serversession.signals import backend_failed
from flask_serversession.signals import session_destroyed
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Cookie
from flask_serversession.unit import Known
from flask_serversession.unit import Phase
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .site import Action
from .site import Browser
from .site import Site

GRACE = 10.0


class Turn:
    """A session that was loaded and is to get a new id."""

    def __init__(self, data: dict[str, t.Any] | None = None, **settings: t.Any) -> None:
        settings.setdefault("SESSION_IDLE_TIMEOUT", 600)
        self.site = Site({"SESSION_BACKEND": "memory"}, **settings)
        self.core: Core = self.site.state.interface.core
        self.backend: CountingBackend = self.site.backend
        self.browser = self.site.browser()
        self.browser.set(**(data or {"_user_id": "ada", "n": 1}))
        self.old_key = self.core.identify(self.browser.id).key
        self.prefix = self.core.config.key_prefix
        #: What was told of, as the signal's operation or the handle and the user.
        self.heard: list[t.Any] = []
        backend_failed.connect(self._note_failure, self.site.app)
        session_destroyed.connect(self._note_end, self.site.app)
        self.unit = self.load(self.browser)
        self.began_at = self.site.clock()
        t.cast(FakeClock, self.site.clock).advance(5)
        self.now = self.site.clock()
        self.rotation = Rotation(self.core, self.unit)

    def _note_failure(self, app: object, **values: t.Any) -> None:
        self.heard.append(values["operation"])

    def _note_end(self, app: object, **values: t.Any) -> None:
        self.heard.append((values["handle"], values["user"]))

    def load(self, browser: Browser) -> Unit:
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        unit = Unit(signer)
        unit.identity = self.core.identify(browser.id)
        record = self.backend.load(unit.identity.key)
        assert record is not None
        self.core.adopt(unit, record)
        return unit

    def attempt(self, *, renews: bool = True, encoded: bytes | None = None) -> t.Any:
        return self.rotation.attempt("a reason", renews, encoded)

    def stored(self, key: str) -> Record:
        record = self.backend.load(key)
        assert record is not None
        return record

    @property
    def tombstone(self) -> Record:
        return self.stored(self.old_key)

    def once(self, when: str, operation: str, action: Action) -> None:
        hooks = getattr(self.backend, when)

        def hook() -> None:
            del hooks[operation]
            action()

        hooks[operation] = hook

    def change(self, key: str, **values: t.Any) -> Record:
        """Change what is stored, as another machine would have."""
        backend, record = self.backend.backend, self.stored(key)
        changed = dataclasses.replace(record, **values)
        backend.replace(key, changed, record.version)
        return self.stored(key)

    def bury(self, key: str, successor: str, *, same_user: bool = True) -> Record:
        meta = {SUCCESSOR: successor} | ({SAME_USER: "yes"} if same_user else {})
        return self.change(key, data=TOMBSTONE_DATA, meta=meta, user=None)


# From one id to the next


def test_a_new_id_has_the_session_and_the_old_one_a_tombstone() -> None:
    turn = Turn()
    unit, old = turn.unit, turn.unit.record
    unit.meta = {"user_agent": "a browser"}
    with turn.backend.counting() as calls:
        assert turn.attempt() is True
    assert calls == {"create": 1, "replace": 1}
    assert unit.key != turn.old_key
    assert unit.owed is Cookie.SET
    assert unit.known is Known.STORED
    handle = turn.core.handle_of(unit.key)
    assert turn.tombstone == Record(
        data=TOMBSTONE_DATA,
        version=old.version + 1,
        created_at=turn.now,
        touched_at=turn.now,
        expires_at=turn.now + GRACE,
        user=None,
        meta={SUCCESSOR: handle, SAME_USER: "yes"},
    )
    record = turn.stored(unit.key)
    assert record == unit.record
    assert record.user == "ada"
    assert record.created_at == turn.began_at
    assert (record.touched_at, record.expires_at) == (turn.now, turn.now + 600)
    assert predecessor_of(record, turn.prefix) == turn.old_key
    assert record.meta["user_agent"] == "a browser"
    assert unit.meta == {"user_agent": "a browser"}
    assert unit.stored is not None
    assert unit.stored.envelope.issued_at == turn.now
    assert unit.stored.envelope.payload == turn.core.serializer.dumps(unit.data)
    assert Sealer().open(record.data, unit.key).issued_at == turn.now
    assert turn.core.ended.has(turn.old_key)
    assert turn.rotation.pending is None
    assert turn.heard == []
    turn.rotation.take_back()
    assert turn.stored(unit.key)


def test_what_happened_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    turn = Turn()
    with caplog.at_level(logging.DEBUG, "flask_serversession"):
        caplog.clear()
        turn.attempt()
    handles = turn.core.handle_of(turn.old_key), turn.core.handle_of(turn.unit.key)
    assert [record.getMessage() for record in caplog.records] == [
        f"Session {handles[0]} rotated to {handles[1]}: a reason"
    ]


def test_a_session_of_nobody_says_where_it_came_from_too() -> None:
    turn = Turn({"n": 1})
    assert turn.attempt() is True
    assert turn.unit.record.meta.keys() == {PREDECESSOR, LEFT_AT}
    assert turn.tombstone.meta.keys() == {SUCCESSOR, SAME_USER}


@pytest.mark.parametrize("user", [None, "eve"])
def test_another_user_has_no_part_in_what_comes_after(user: str | None) -> None:
    turn = Turn()
    turn.unit.data["_user_id"] = user
    assert turn.attempt() is True
    assert turn.tombstone.meta.keys() == {SUCCESSOR}
    assert turn.unit.record.user == user


def test_who_starts_over_begins_another_session() -> None:
    turn = Turn(SESSION_PERMANENT=True)
    turn.unit.data = {"_user_id": "ada", "m": 1}
    turn.unit.want(Wish.RESTART)
    assert turn.attempt(encoded=b"what was written before") is True
    assert turn.tombstone.meta.keys() == {SUCCESSOR}
    assert turn.unit.record.created_at == turn.now
    expected = {"_user_id": "ada", "m": 1, "_permanent": True}
    assert turn.unit.data == expected
    assert turn.unit.stored is not None
    assert turn.core.serializer.loads(turn.unit.stored.envelope.payload) == expected


@pytest.mark.parametrize("is_restarted", [True, False])
def test_only_what_begins_is_permanent_by_itself(is_restarted: bool) -> None:
    turn = Turn(SESSION_PERMANENT=not is_restarted)
    turn.unit.data = {"m": 1}
    turn.unit.want(Wish.RESTART if is_restarted else Wish.NEW_ID)
    assert turn.attempt() is True
    assert turn.unit.data == {"m": 1}


def test_what_was_written_already_is_not_written_again() -> None:
    turn = Turn()
    encoded = turn.core.serializer.dumps({"written": 1})
    assert turn.attempt(encoded=encoded) is True
    assert turn.unit.stored is not None
    assert turn.unit.stored.envelope.payload == encoded


def test_what_was_not_used_is_not_prolonged_by_a_new_id() -> None:
    turn = Turn()
    before = turn.unit.record
    assert turn.attempt(renews=False) is True
    record = turn.unit.record
    assert (record.touched_at, record.expires_at) == (
        before.touched_at,
        before.expires_at,
    )


def test_after_the_response_no_id_is_changed() -> None:
    turn = Turn()
    turn.unit.phase = Phase.CLOSED
    with (
        turn.backend.counting() as calls,
        pytest.raises(ServerSessionError) as caught,
    ):
        turn.attempt()
    assert str(caught.value) == (
        "The session needs a new id (a reason), but the response was already sent and"
        " the browser cannot learn it. Log in and out in an ordinary request."
    )
    assert calls == {}


# With others in the way


def test_what_another_request_has_stored_comes_back_and_the_new_id_waits() -> None:
    turn = Turn()
    unit = turn.unit
    other = turn.change(turn.old_key, meta={"theirs": "1"})
    result = turn.attempt()
    assert result == other
    assert unit.key == turn.old_key
    pending = turn.rotation.pending
    assert pending is not None
    assert unit.owed is Cookie.NONE
    # The second attempt writes the same successor again.
    turn.core.adopt(unit, other)
    unit.data["merged"] = 1
    t.cast(FakeClock, turn.site.clock).advance(5)
    with turn.backend.counting() as calls:
        assert turn.attempt() is True
    assert calls == {"replace": 2}
    assert unit.identity == pending.identity
    assert unit.stored is not None
    assert unit.stored.envelope.issued_at == turn.now
    assert pending.stored.envelope.issued_at == turn.now
    assert unit.record == turn.stored(unit.key)
    assert unit.record.version == pending.stored.record.version + 1
    assert unit.record.touched_at == turn.now + 5
    assert unit.record.created_at == turn.began_at
    found = Sealer().open(unit.record.data, unit.key)
    assert found.issued_at == turn.now
    assert turn.core.serializer.loads(found.payload)["merged"] == 1
    assert predecessor_of(unit.record, turn.prefix) == turn.old_key


def test_a_second_attempt_does_not_prolong_what_was_not_used() -> None:
    turn = Turn()
    expires_at = turn.unit.record.expires_at
    turn.core.adopt(turn.unit, turn.unit.record)
    turn.change(turn.old_key, meta={"theirs": "1"})
    found = turn.attempt(renews=False)
    turn.core.adopt(turn.unit, found)
    assert turn.attempt(renews=False) is True
    assert turn.unit.record.expires_at == expires_at


def test_a_successor_that_is_not_needed_is_taken_back() -> None:
    turn = Turn()
    turn.rotation.take_back()
    turn.change(turn.old_key, meta={"theirs": "1"})
    turn.attempt()
    pending = turn.rotation.pending
    assert pending is not None
    assert "payload" not in repr(pending)
    with turn.backend.counting() as calls:
        turn.rotation.take_back()
        turn.rotation.take_back()
    assert calls == {"delete": 1}
    assert turn.rotation.pending is None
    assert turn.backend.load(pending.identity.key) is None


def test_a_session_that_has_ended_gets_no_new_id() -> None:
    turn = Turn()
    turn.backend.delete(turn.old_key)
    assert turn.attempt() is False
    assert turn.rotation.pending is not None
    assert turn.unit.key == turn.old_key


def test_what_cannot_be_read_in_its_place_is_told() -> None:
    turn = Turn()
    error = RecordError("It is broken.", "damaged")
    with turn.backend.failing("replace", error=error), pytest.raises(RecordError):
        turn.attempt()
    assert not turn.core.ended.has(turn.old_key)


def test_our_own_tombstone_is_known_if_its_acknowledgement_was_lost() -> None:
    turn = Turn()

    def replace(key: str, record: Record, expected: int) -> t.Any:
        turn.backend.backend.replace(key, record, expected)
        return turn.backend.backend.replace(key, record, expected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turn.backend, "replace", replace)
        assert turn.attempt() is True
    assert turn.unit.key != turn.old_key


@pytest.mark.parametrize("is_log_out", [True, False])
def test_another_requests_tombstone_means_that_the_session_has_gone(
    is_log_out: bool,
) -> None:
    turn = Turn()
    other = turn.site.browser()
    other.cookie = turn.browser.cookie
    other.visit(lambda: turn.site.app.session_interface.regenerate(session()))
    successor = turn.core.identify(other.id).key
    if is_log_out:
        del turn.unit.data["_user_id"]
    found = turn.attempt()
    assert isinstance(found, Record)
    assert successor_of(found, turn.core.config.key_prefix) == successor
    # A log-out means the session under whatever id it has.
    log_out_successor(turn.core, turn.unit, found)
    assert (turn.backend.load(successor) is None) is is_log_out
    assert turn.unit.key == turn.old_key


def session() -> t.Any:
    from flask import session

    return session


def test_who_was_revoked_in_the_middle_is_ended_under_the_old_id_too() -> None:
    turn = Turn()
    turn.change(turn.old_key, meta={"theirs": "1"})
    found = turn.attempt()
    assert turn.rotation.pending is not None
    turn.backend.delete(turn.rotation.pending.identity.key)
    turn.core.adopt(turn.unit, found)
    assert turn.attempt() is False
    assert turn.backend.load(turn.old_key) is None
    assert turn.heard == [(turn.core.handle_of(turn.old_key), "ada")]
    # Who comes after has nothing to end or to tell.
    assert turn.attempt() is False
    assert len(turn.heard) == 1


# With an engine that fails


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_the_operation_that_failed_is_told(operation: str) -> None:
    turn = Turn()
    with (
        turn.backend.failing(operation),
        pytest.raises(BackendUnavailableError),
    ):
        turn.attempt()
    assert turn.heard == [operation]


@pytest.mark.parametrize("is_second", [True, False])
def test_the_operations_of_a_second_attempt_are_told_too(is_second: bool) -> None:
    turn = Turn()
    turn.change(turn.old_key, meta={"theirs": "1"})
    found = turn.attempt()
    turn.core.adopt(turn.unit, found)
    pending = turn.rotation.pending
    assert pending is not None
    if not is_second:
        with turn.backend.failing("delete"), pytest.raises(BackendUnavailableError):
            turn.rotation.take_back()
        assert turn.heard == ["delete"]
        return
    with turn.backend.failing("replace"), pytest.raises(BackendUnavailableError):
        turn.attempt()
    assert turn.heard == ["replace"]
    # The meta of the session itself is as it was.
    assert PREDECESSOR not in turn.unit.meta


def test_an_operator_whose_answer_fails_is_told_of() -> None:
    turn = Turn()
    turn.change(turn.old_key, meta={"theirs": "1"})
    found = turn.attempt()
    turn.core.adopt(turn.unit, found)
    assert turn.rotation.pending is not None
    turn.backend.delete(turn.rotation.pending.identity.key)
    with turn.backend.failing("delete"), pytest.raises(BackendUnavailableError):
        turn.attempt()
    assert turn.heard == ["delete"]


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        ("ada", "ada", True),
        (None, "ada", True),
        (None, None, True),
        ("ada", None, False),
        ("ada", "eve", True),
    ],
)
def test_if_the_tombstone_is_in_doubt_only_a_log_out_stays_with_the_old_id(
    before: str | None, after: str | None, moves: bool
) -> None:
    turn = Turn({"n": 1, "_user_id": before} if before else {"n": 1})
    turn.unit.data["_user_id"] = after
    with (
        turn.backend.failing("replace"),
        pytest.raises(BackendUnavailableError),
    ):
        turn.attempt()
    assert (turn.unit.key != turn.old_key) is moves
    assert turn.unit.owed is (Cookie.SET if moves else Cookie.NONE)
    assert (turn.rotation.pending is None) is moves
    assert not turn.core.ended.has(turn.old_key)


# Ids that are taken


def test_an_id_that_is_taken_is_not_overwritten() -> None:
    turn = Turn()
    taken = turn.core.identify("x" * 20)
    turn.backend.create(taken.key, turn.unit.record)
    turn.core.ended.add(turn.old_key, "rotated")
    identity, stored = create(
        turn.core, turn.unit, taken, b"payload", turn.now, turn.now - 7
    )
    record = stored.record
    assert identity.id != taken.id
    assert turn.stored(identity.key) == record
    assert turn.stored(taken.key) == turn.unit.record
    assert record.version == 1
    assert (record.created_at, record.touched_at) == (turn.now - 7, turn.now)
    assert Sealer().open(record.data, identity.key).issued_at == turn.now


def test_a_key_that_is_in_use_again_has_not_ended() -> None:
    turn = Turn()
    identity = turn.core.identify("x" * 20)
    turn.core.ended.add(identity.key, "rotated")
    create(turn.core, turn.unit, identity, b"payload", turn.now, turn.now)
    assert not turn.core.ended.has(identity.key)


def test_a_generator_that_repeats_itself_is_an_error() -> None:
    turn = Turn(SESSION_ID_GENERATOR=lambda: "x" * 20)
    with (
        turn.backend.counting() as calls,
        pytest.raises(BackendError) as caught,
    ):
        turn.attempt()
    assert calls == {"create": 5}
    assert str(caught.value) == (
        "5 new ids in a row were taken already; check 'SESSION_ID_GENERATOR'."
    )
    assert caught.value.backend == "memory"
    assert caught.value.operation == "create"


# What follows


def test_a_tombstone_leads_to_the_next_key_and_nothing_else_does() -> None:
    handle = "a" * 64
    tombstone = make_tombstone(5, 9, {SUCCESSOR: handle})
    assert tombstone == Record(TOMBSTONE_DATA, 0, 5, 5, 9, meta={SUCCESSOR: handle})
    assert successor_of(tombstone, "p:") == f"p:{handle}"
    assert successor_of(None, "p:") is None
    assert successor_of(dataclasses.replace(tombstone, data=b"x"), "p:") is None
    assert successor_of(make_tombstone(5, 9, {}), "p:") is None
    record = dataclasses.replace(tombstone, data=b"x", meta={PREDECESSOR: handle})
    assert predecessor_of(record, "p:") == f"p:{handle}"
    assert predecessor_of(dataclasses.replace(record, meta={}), "p:") is None


def test_what_a_tombstone_says_keeps_its_names_between_versions() -> None:
    names = (SUCCESSOR, SAME_USER, RENEWED, PREDECESSOR, LEFT_AT, MOVING)
    assert names == (
        "successor",
        "same_user",
        "renewed",
        "predecessor",
        "left_at",
        "moving",
    )
    assert {*names} == INTERNAL


def test_all_ids_that_a_session_got_are_followed_in_turn() -> None:
    turn = Turn()
    keys = [turn.old_key]
    for _ in range(3):
        turn.attempt()
        keys.append(turn.unit.key)
    assert [*follow(turn.backend, keys[0], turn.prefix)] == keys[1:]
    assert [*follow(turn.backend, keys[-1], turn.prefix)] == []
    error = RecordError("It is broken.", "damaged")
    with turn.backend.failing("load", error=error):
        assert [*follow(turn.backend, keys[0], turn.prefix)] == []


def test_tombstones_in_a_circle_lead_to_no_session() -> None:
    turn = Turn()
    turn.bury(turn.old_key, turn.core.handle_of(turn.old_key))
    assert [*follow(turn.backend, turn.old_key, turn.prefix)] == []
    tombstone = turn.tombstone
    with turn.backend.counting() as calls:
        delete_successor(turn.core, turn.unit, tombstone)
        assert is_somebody_left(turn.core, turn.unit) is False
    assert calls == {"delete": 1, "load": 2}


@pytest.mark.parametrize("rotations", [1, 3])
def test_a_log_out_ends_the_session_under_the_id_that_it_has_now(
    rotations: int,
) -> None:
    turn = Turn()
    for _ in range(rotations):
        turn.attempt()
    last = turn.unit.key
    delete_successor(turn.core, turn.unit, turn.tombstone)
    assert turn.backend.load(last) is None
    assert turn.heard == [(turn.core.handle_of(last), None)]
    assert turn.core.ended.has(last)


def test_a_log_out_does_not_reach_another_users_session() -> None:
    turn = Turn()
    turn.attempt()
    turn.unit.data["_user_id"] = "eve"
    turn.attempt()
    delete_successor(turn.core, turn.unit, turn.tombstone)
    assert turn.stored(turn.unit.key)
    assert turn.heard == []


def test_where_the_successor_has_gone_nothing_is_ended_or_told() -> None:
    turn = Turn()
    turn.attempt()
    turn.backend.delete(turn.unit.key)
    with turn.backend.counting() as calls:
        delete_successor(turn.core, turn.unit, turn.tombstone)
    assert turn.heard == []
    assert calls["delete"] == 1


@pytest.mark.parametrize("operation", ["delete", "load"])
def test_an_engine_that_fails_while_ids_are_followed_is_told_of(operation: str) -> None:
    turn = Turn()
    for _ in range(2):
        turn.attempt()
    tombstone = turn.tombstone
    with turn.backend.failing(operation), pytest.raises(BackendUnavailableError):
        delete_successor(turn.core, turn.unit, tombstone)
    assert turn.heard == [operation]


@pytest.mark.parametrize(
    ("wish", "before", "after", "ends"),
    [
        (Wish.END, {"_user_id": "ada"}, {"_user_id": "ada"}, True),
        (Wish.END, {"n": 1}, {"n": 1}, True),
        (Wish.SAVE, {"_user_id": "ada"}, {"_user_id": "ada"}, False),
        (Wish.SAVE, {"_user_id": "ada"}, {"n": 1}, True),
        (Wish.SAVE, {"n": 1}, {"n": 2}, False),
        (Wish.RESTART, {"_user_id": "ada"}, {"_user_id": "ada"}, True),
        (Wish.RESTART, {"n": 1}, {"n": 2}, False),
    ],
)
def test_only_a_log_out_is_carried_to_the_successor(
    wish: Wish, before: dict[str, t.Any], after: dict[str, t.Any], ends: bool
) -> None:
    turn = Turn(before)
    late = turn.load(turn.browser)
    turn.attempt()
    late.want(wish)
    late.data = after
    log_out_successor(turn.core, late, turn.tombstone)
    assert (turn.backend.load(turn.unit.key) is None) is ends


def test_somebody_is_left_under_the_last_id_of_the_same_user() -> None:
    turn = Turn()
    late = turn.load(turn.browser)
    assert is_somebody_left(turn.core, late) is True
    for _ in range(3):
        turn.attempt()
    assert is_somebody_left(turn.core, late) is True
    with turn.backend.counting() as calls:
        is_somebody_left(turn.core, late)
    assert calls == {"load": 4}
    turn.backend.delete(turn.unit.key)
    assert is_somebody_left(turn.core, late) is False


def test_nobody_is_left_of_a_session_that_is_anothers_or_nobodys() -> None:
    turn = Turn()
    late = turn.load(turn.browser)
    turn.unit.data["_user_id"] = "eve"
    turn.attempt()
    assert is_somebody_left(turn.core, late) is False
    turn = Turn({"n": 1})
    late = turn.load(turn.browser)
    assert is_somebody_left(turn.core, late) is False
    turn.attempt()
    assert is_somebody_left(turn.core, late) is False


def test_who_may_be_left_is_taken_for_left() -> None:
    turn = Turn()
    late = turn.load(turn.browser)
    error = RecordError("It is broken.", "damaged")
    with turn.backend.failing("load", error=error):
        assert is_somebody_left(turn.core, late) is True
    with turn.backend.failing("load"), pytest.raises(BackendUnavailableError):
        is_somebody_left(turn.core, late)
    assert turn.heard == ["load"]
