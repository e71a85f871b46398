"""A session is ended step by step, under whatever id it has now."""

from __future__ import annotations

import logging
import types
import typing as t

import pytest

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import ending as ending_module
from flask_serversession.core import Core
from flask_serversession.ending import Ending
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.signals import backend_failed
from flask_serversession.signals import session_destroyed
from flask_serversession.unit import Cookie
from flask_serversession.unit import Known
from flask_serversession.unit import Phase
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .site import Site


class Turn:
    """A session that was loaded and is to be ended."""

    def __init__(self) -> None:
        self.site = Site({"SESSION_BACKEND": "memory"})
        self.core: Core = self.site.state.interface.core
        self.ending = Ending(self.core, self.site.state.interface.lifecycle.loader)
        browser = self.site.browser()
        browser.set(_user_id="ada", n=1)
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        self.unit = Unit(signer)
        self.unit.identity = self.core.identify(browser.id)
        self.key = self.unit.key
        record = self.site.backend.load(self.key)
        assert record is not None
        self.core.adopt(self.unit, record)
        self.heard: list[t.Any] = []
        session_destroyed.connect(self._note_end, self.site.app)
        backend_failed.connect(self._note_failure, self.site.app)

    def _note_end(self, app: object, **values: t.Any) -> None:
        self.heard.append((values["handle"], values["user"], values["reason"]))

    def _note_failure(self, app: object, **values: t.Any) -> None:
        self.heard.append(values["operation"])

    def bury(self) -> None:
        backend: t.Any = self.site.backend.backend
        now = self.site.clock()
        tombstone = Record(TOMBSTONE_DATA, 2, now, now, now + 10, None, {})
        backend.replace(self.key, tombstone, 1)


@pytest.fixture
def turn() -> Turn:
    return Turn()


def test_what_is_ended_is_deleted_and_told_of(
    turn: Turn, caplog: pytest.LogCaptureFixture
) -> None:
    content = turn.unit.data
    turn.unit.is_exposed = True
    turn.unit.want(Wish.SAVE)
    handle = turn.core.handle_of(turn.key)
    with (
        caplog.at_level(logging.DEBUG, "flask_serversession"),
        turn.site.backend.counting() as calls,
    ):
        turn.ending.destroy(turn.unit)
    assert calls == {"delete": 1}
    assert content == {}
    assert turn.unit.known is Known.NEW
    assert turn.unit.wish is Wish.NOTHING
    assert turn.unit.is_exposed is False
    assert turn.unit.owed is Cookie.NONE  # no cookie came
    assert turn.heard == [(handle, "ada", "logged out")]
    told = [record.getMessage() for record in caplog.records]
    assert f"Session {handle} ended" in told
    assert {record.name for record in caplog.records} == {"flask_serversession"}


@pytest.mark.parametrize("is_renewed", [False, True])
def test_the_cookie_that_came_is_deleted(turn: Turn, is_renewed: bool) -> None:
    came = types.SimpleNamespace(cookie=object(), claim=None, is_verified=True)
    turn.unit.presented = t.cast("t.Any", came)
    turn.unit.is_renewed = is_renewed
    turn.unit.is_exposed = True
    turn.ending.end(turn.unit)
    assert turn.unit.is_exposed is False
    assert turn.unit.owed is (Cookie.NONE if is_renewed else Cookie.DELETE)


def test_who_ends_it_from_outside_revokes_it(turn: Turn) -> None:
    turn.unit.phase = Phase.OUTSIDE
    assert turn.ending.delete_current(turn.unit) is True
    assert turn.heard == [(turn.core.handle_of(turn.key), "ada", "revoked")]


def test_from_outside_what_is_gone_is_gone(turn: Turn) -> None:
    turn.unit.phase = Phase.OUTSIDE
    turn.site.backend.delete(turn.key)
    assert turn.ending.delete_current(turn.unit) is False
    assert turn.unit.known is Known.GONE
    assert turn.heard == []


@pytest.mark.parametrize("operation", ["delete", "load"])
def test_a_failure_is_told_with_its_operation(turn: Turn, operation: str) -> None:
    turn.site.backend.delete(turn.key)
    with (
        turn.site.backend.failing(operation),
        pytest.raises(BackendUnavailableError),
    ):
        turn.ending.delete_current(turn.unit)
    assert turn.heard == [operation]


@pytest.mark.parametrize("reason", ["newer", "damaged"])
def test_what_cannot_be_read_is_refused_or_absent(
    turn: Turn, reason: t.Literal["newer", "damaged"]
) -> None:
    error = RecordError("words", reason)
    with turn.site.backend.failing("delete", error=t.cast("t.Any", error)):
        if reason == "newer":
            with pytest.raises(BackendUnavailableError, match="newer version"):
                turn.ending.delete_current(turn.unit)
            assert turn.unit.known is Known.BROKEN
        else:
            assert turn.ending.delete_current(turn.unit) is False
        turn.unit.phase = Phase.OUTSIDE
        with pytest.raises(RecordError, match="words"):
            turn.ending.delete_current(turn.unit)


@pytest.mark.parametrize("reason", ["newer", "damaged", None])
def test_a_tombstone_leads_to_the_session(
    turn: Turn, monkeypatch: pytest.MonkeyPatch, reason: t.Any
) -> None:
    turn.bury()
    followed: list[Record] = []

    def delete_successor(core: Core, unit: Unit, record: Record) -> None:
        assert (core, unit) == (turn.core, turn.unit)
        followed.append(record)
        if reason:
            raise RecordError("words", reason)

    monkeypatch.setattr(ending_module, "delete_successor", delete_successor)
    if reason == "newer":
        with pytest.raises(BackendUnavailableError, match="newer version"):
            turn.ending.delete_current(turn.unit)
        assert turn.unit.known is Known.BROKEN
    else:
        assert turn.ending.delete_current(turn.unit) is False
        assert turn.unit.known is Known.GONE
    assert [record.is_tombstone for record in followed] == [True]


def test_while_the_backend_is_down_no_end_is_a_success(turn: Turn) -> None:
    failure = BackendUnavailableError("down")
    turn.unit.failure = failure
    with pytest.raises(BackendUnavailableError) as caught:
        turn.ending.destroy(turn.unit)
    assert caught.value is failure
    assert turn.unit.wish is Wish.END


def test_what_interrupts_an_end_leaves_it_wanted(turn: Turn) -> None:
    with (
        turn.site.backend.failing("delete", error=t.cast("t.Any", KeyboardInterrupt())),
        pytest.raises(KeyboardInterrupt),
    ):
        turn.ending.destroy(turn.unit)
    assert turn.unit.wish is Wish.END


@pytest.mark.parametrize("has_id", [False, True])
def test_a_new_session_begins_again_and_nobody_is_asked(
    turn: Turn, has_id: bool
) -> None:
    unit = Unit(turn.unit.signer)
    unit.begin(turn.core.identify("an id") if has_id else None)
    unit.lifetime = 5.0
    unit.is_exposed = True
    unit.data["n"] = 1
    with turn.site.backend.counting() as calls:
        turn.ending.destroy(unit)
    assert calls == {}
    assert (unit.known, unit.data, unit.lifetime) == (Known.NEW, {}, None)
    assert unit.identity is None
    assert unit.is_exposed is False


def test_what_is_gone_stays_gone(turn: Turn) -> None:
    turn.unit.lose()
    turn.unit.is_exposed = True
    turn.site.backend.delete(turn.key)
    turn.unit.phase = Phase.OUTSIDE
    turn.ending.destroy(turn.unit)
    assert turn.unit.known is Known.GONE
    assert turn.unit.is_exposed is False


@pytest.mark.parametrize("why", ["claim", "unsettled", None])
def test_what_has_to_be_taken_over_first_is_loaded(turn: Turn, why: str | None) -> None:
    loaded: list[Wish] = []

    def load(unit: Unit) -> None:
        loaded.append(unit.wish)
        unit.known = Known.GONE

    loader = types.SimpleNamespace(verify=lambda unit: None, load=load)
    unit = Unit(turn.unit.signer)
    claim = object() if why == "claim" else None
    came = types.SimpleNamespace(cookie=None, claim=claim, is_verified=True)
    unit.presented = t.cast("t.Any", came)
    unit.is_unsettled = why == "unsettled"
    Ending(turn.core, t.cast("t.Any", loader)).destroy(unit)
    assert loaded == ([] if why is None else [Wish.END])
