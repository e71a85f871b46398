"""``session.atomic()`` alone: what a function is run on, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import SessionLostError
from flask_serversession import session
from flask_serversession import session_lost
from flask_serversession.atomic import run
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.rotation import SAME_USER
from flask_serversession.rotation import SUCCESSOR
from flask_serversession.serializers import serializer_for
from flask_serversession.signals import backend_failed
from flask_serversession.unit import Known
from flask_serversession.unit import Phase
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .prepared import IDENTITY
from .prepared import Prepared
from .site import Site


class Turn(Prepared):
    """A session that was loaded, and what a function that is run on it sees."""

    def __init__(self, data: dict[str, t.Any] | None = None, **settings: t.Any) -> None:
        super().__init__({"n": 1} if data is None else data, **settings)
        self.loader = self.site.state.interface.lifecycle.loader
        #: What was written, and what the function saw each time.
        self.written: list[dict[str, t.Any]] = []
        self.seen: list[dict[str, t.Any]] = []
        #: What other requests store before a write comes off.
        self.others: list[Record] = []
        self.error: Exception | None = None

    def store(self, data: dict[str, t.Any], lifetime: float | None = None) -> None:
        """Store what another request has written."""
        self.site.backend.delete(IDENTITY.key)
        self.site.backend.create(IDENTITY.key, self.write(data, lifetime))

    def run(self, function: t.Callable[[], t.Any] | None = None) -> t.Any:
        def see() -> t.Any:
            self.seen.append(dict(self.unit.data))
            return function() if function else self.count()

        return run(self.loader, self.unit, see, self.save)

    def count(self) -> int:
        self.unit.data["n"] = self.unit.data.get("n", 0) + 1
        return int(self.unit.data["n"])

    def save(self, unit: Unit, resolve: t.Any) -> None:
        assert unit is self.unit
        assert unit.is_atomic is True
        for other in self.others:
            resolve(other)
        if self.error is not None:
            raise self.error
        self.written.append(dict(unit.data))


def test_a_function_runs_on_what_is_stored_now() -> None:
    turn = Turn()
    turn.unit.data["mine"] = 1
    turn.store({"n": 5, "theirs": 1})
    with turn.site.backend.counting() as calls:
        assert turn.run() == 6
    assert calls == {"load": 1}
    assert turn.seen == [{"n": 5, "theirs": 1, "mine": 1}]
    assert turn.written == [{"n": 6, "theirs": 1, "mine": 1}]
    assert turn.unit.wish is Wish.SAVE
    assert turn.unit.is_atomic is False


def test_it_runs_again_from_the_start_when_others_are_faster() -> None:
    turn = Turn()
    turn.unit.data["mine"] = 1
    turn.others = [turn.write({"n": 7}), turn.write({"n": 9})]
    assert turn.run() == 10
    assert turn.seen == [{"n": number, "mine": 1} for number in (1, 7, 9)]
    assert turn.written == [{"n": 10, "mine": 1}]


@pytest.mark.parametrize("mine", [None, 5.0])
@pytest.mark.parametrize("theirs", [None, 9.0])
def test_a_lifetime_that_was_set_before_is_kept(
    mine: float | None, theirs: float | None
) -> None:
    turn = Turn()
    turn.unit.lifetime = mine
    turn.store({"n": 1}, theirs)

    def look() -> float | None:
        found = turn.unit.lifetime
        turn.unit.lifetime = 77.0  # and again from the start
        return found

    expected = theirs if mine is None else mine
    turn.others = [turn.write({"n": 1}, theirs)]
    assert turn.run(look) == expected
    assert len(turn.seen) == 2


def test_who_started_over_keeps_the_lifetime_of_none() -> None:
    turn = Turn()
    turn.unit.want(Wish.RESTART)
    turn.unit.data = {}
    turn.store({"n": 1}, 9.0)
    assert turn.run(lambda: turn.unit.lifetime) is None
    assert turn.unit.wish is Wish.RESTART


def test_what_was_told_before_is_told_again() -> None:
    turn = Turn()
    turn.unit.change_meta({"device": "phone"})

    def tell() -> None:
        assert turn.unit.own_meta == {"device": "phone"}
        turn.unit.change_meta({"device": "another"})

    turn.others = [turn.write({"n": 1})]
    turn.run(tell)
    assert len(turn.seen) == 2


# One inside of another, and outside of a stored session


def test_one_inside_of_another_is_a_part_of_it() -> None:
    turn = Turn()

    def outer() -> str:
        with turn.site.backend.counting() as calls:
            result = run(turn.loader, turn.unit, lambda: "inner", turn.save)
        assert calls == {}
        assert turn.written == []
        assert turn.unit.is_atomic is True
        return str(result)

    assert turn.run(outer) == "inner"
    assert len(turn.written) == 1


@pytest.mark.parametrize("known", [Known.NEW, Known.GONE])
def test_what_is_not_stored_is_changed_and_saved_once(known: Known) -> None:
    turn = Turn()
    turn.unit.begin() if known is Known.NEW else turn.unit.lose()
    turn.unit.data = {"n": 3}
    with turn.site.backend.counting() as calls:
        assert turn.run() == 4
    assert calls == {}
    assert turn.written == [{"n": 4}]
    assert turn.unit.is_atomic is False


def test_what_cannot_be_told_is_not_even_tried() -> None:
    turn = Turn()
    error = BackendUnavailableError("It failed.")
    turn.unit.fail(error)
    with pytest.raises(BackendUnavailableError) as caught:
        turn.run()
    assert caught.value is error
    assert turn.seen == []
    # A newer version's session is empty, and not saved.
    turn = Turn()
    turn.unit.fail(None)
    turn.unit.data = {}
    assert turn.run() == 1
    # A failure that is over is none.
    turn = Turn()
    turn.unit.failure, turn.unit.phase = error, Phase.CLOSED
    assert turn.run() == 2


@pytest.mark.parametrize("known", [Known.NEW, Known.GONE])
def test_what_failed_outside_of_a_stored_session_is_undone(known: Known) -> None:
    turn = Turn()
    unit = turn.unit
    unit.begin() if known is Known.NEW else unit.lose()
    unit.data, unit.lifetime = {"n": 1, "items": []}, 5.0

    def fail() -> None:
        unit.data["items"].append(1)
        unit.lifetime = 6.0
        unit.want(Wish.SAVE)
        raise LookupError

    with pytest.raises(LookupError):
        turn.run(fail)
    assert unit.data == {"n": 1, "items": []}
    assert unit.lifetime == 5.0
    assert unit.wish is Wish.NOTHING
    assert unit.is_modified is False
    assert unit.is_atomic is False
    assert turn.written == []


@pytest.mark.parametrize("how", ["begun", "failed"])
def test_what_became_another_session_meanwhile_is_left_as_it_is(how: str) -> None:
    turn = Turn()
    unit = turn.unit
    unit.lose()
    unit.data = {"n": 1}

    def fail() -> None:
        if how == "begun":
            unit.begin()
        else:
            unit.failure = BackendUnavailableError("It failed.")
        unit.data = {"n": 2}
        raise LookupError

    with pytest.raises(LookupError):
        turn.run(fail)
    assert unit.data == {"n": 2}


# What is gone, or cannot be read


def test_of_what_has_gone_the_function_sees_nothing() -> None:
    for is_buried in (True, False):
        turn = Turn()
        turn.site.backend.delete(IDENTITY.key)
        if is_buried:
            record = dataclasses.replace(turn.write({"n": 1}), data=TOMBSTONE_DATA)
            turn.site.backend.create(IDENTITY.key, record)
        turn.unit.data["mine"] = 1
        assert turn.run(lambda: "done") == "done"
        assert turn.seen == [{}]
        assert turn.unit.known is Known.GONE
        assert turn.unit.wish is Wish.SAVE  # so that the loss is told of
        assert turn.written == [{}]


@pytest.mark.parametrize("policy", ["drop", "raise"])
def test_that_a_session_has_gone_is_told_at_once(policy: str) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_LOST=policy)
    browser = site.browser()
    browser.set(n=1)
    other, heard = browser.twin(), list[object]()

    def hear(sender: object, **_: object) -> None:
        heard.append(sender)

    def count() -> None:
        session["n"]
        other.visit(lambda: session.destroy())
        if policy == "raise":
            with pytest.raises(SessionLostError):
                session.atomic(lambda own: own.update(n=2))
        else:
            session.atomic(lambda own: own.update(n=2))
        assert len(heard) == 1
        session.reload()
        assert session == {}

    with session_lost.connected_to(hear, site.app):
        assert browser.visit(count).status_code == 200
    assert len(heard) == 1


@pytest.mark.parametrize("is_log_out", [True, False])
def test_who_had_logged_out_before_means_the_session_as_it_is_called_now(
    is_log_out: bool,
) -> None:
    turn = Turn({"_user_id": "ada"})
    successor = turn.core.identify("x" * 20)
    turn.site.backend.create(successor.key, turn.write({"_user_id": "ada"}))
    meta = {SUCCESSOR: turn.core.handle_of(successor.key), SAME_USER: "yes"}
    turn.site.backend.delete(IDENTITY.key)
    record = turn.write({})
    record = dataclasses.replace(record, data=TOMBSTONE_DATA, meta=meta)
    turn.site.backend.create(IDENTITY.key, record)
    if is_log_out:
        del turn.unit.data["_user_id"]
    turn.run(lambda: None)
    assert (turn.site.backend.load(successor.key) is None) is is_log_out


@pytest.mark.parametrize("is_log_out", [True, False])
@pytest.mark.parametrize("reason", ["damaged", "newer"])
def test_what_cannot_be_read_is_gone_but_no_log_out_is(
    reason: t.Any, is_log_out: bool
) -> None:
    turn = Turn({"_user_id": "ada", "n": 1})
    error = RecordError("It is broken.", reason)
    if is_log_out:
        del turn.unit.data["_user_id"]
    with turn.site.backend.failing("load", error=error):
        if is_log_out and reason == "newer":
            with pytest.raises(BackendUnavailableError, match="newer") as caught:
                turn.run()
            assert caught.value.__cause__ is error
            assert turn.unit.known is Known.BROKEN
            return
        turn.run(lambda: None)
    assert turn.seen == [{}]
    assert turn.unit.known is Known.GONE


def test_an_engine_that_fails_is_told_of_and_nothing_is_run() -> None:
    turn = Turn()
    heard: list[str] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append(values["operation"])

    with (
        turn.site.backend.failing("load"),
        backend_failed.connected_to(hear, turn.site.app),
        pytest.raises(BackendUnavailableError),
    ):
        turn.run()
    assert heard == ["load"]
    assert turn.seen == []
    assert turn.unit.is_atomic is False


# What a function leaves behind that fails


@pytest.mark.parametrize(
    ("change", "wish"),
    [
        (lambda unit: None, Wish.NOTHING),
        (lambda unit: unit.data.update(mine=1), Wish.SAVE),
        (lambda unit: unit.want(Wish.SAVE), Wish.SAVE),
        (lambda unit: unit.want(Wish.NEW_ID), Wish.NEW_ID),
        (lambda unit: unit.want(Wish.TOUCH), Wish.TOUCH),
    ],
    ids=["nothing", "content", "save", "new id", "touch"],
)
@pytest.mark.parametrize("where", ["in the function", "while it is saved"])
def test_only_what_was_changed_before_is_left(
    change: t.Callable[[Unit], object], wish: Wish, where: str
) -> None:
    turn = Turn()
    change(turn.unit)
    before, is_modified = dict(turn.unit.data), turn.unit.is_modified
    turn.store({"n": 5})

    def fail() -> None:
        turn.count()
        turn.unit.want(Wish.SAVE)
        if where == "in the function":
            raise LookupError

    turn.error = LookupError()
    with pytest.raises(LookupError):
        turn.run(fail)
    assert turn.unit.data == {**before, "n": 5}
    assert turn.unit.wish is wish
    assert turn.unit.is_modified is is_modified
    assert turn.unit.is_atomic is False


def test_what_another_serializer_has_stored_counts_as_changed() -> None:
    turn = Turn()
    unit, json = turn.unit, serializer_for("json")
    assert unit.stored is not None
    envelope = dataclasses.replace(unit.stored.envelope, payload=json.dumps({"n": 1}))
    unit.stored = dataclasses.replace(unit.stored, serializer=json, envelope=envelope)

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        turn.run(fail)
    assert unit.wish is Wish.SAVE


def test_a_write_that_has_failed_is_to_be_tried_again() -> None:
    turn = Turn()

    def fail() -> None:
        turn.unit.failure = BackendUnavailableError("It failed.")
        raise turn.unit.failure

    with pytest.raises(BackendUnavailableError):
        turn.run(fail)
    assert turn.unit.data == {"n": 1}
    assert turn.unit.wish is Wish.SAVE


def test_a_function_that_ends_the_session_saves_nothing() -> None:
    turn = Turn()
    turn.run(lambda: turn.unit.begin())
    assert turn.written == []
    assert turn.unit.known is Known.NEW
    assert turn.unit.wish is Wish.NOTHING
