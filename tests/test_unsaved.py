"""Who is warned that a change came too late to be saved."""

from __future__ import annotations

import typing as t

import pytest
from flask import request_tearing_down

from flask_serversession import BackendUnavailableError
from flask_serversession.payload import Envelope
from flask_serversession.record import Record
from flask_serversession.unit import Identity
from flask_serversession.unit import Known
from flask_serversession.unit import Phase
from flask_serversession.unit import Stored
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish
from flask_serversession.unsaved import UnsavedChanges

from .site import Site


class Request:
    """A request whose session is told here, and what is warned of at its end."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.site = Site({"SESSION_BACKEND": "memory"})
        self.core = self.site.state.interface.core
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        self.unit: Unit | None = Unit(signer)
        self.unit.phase = Phase.CLOSED
        self.unsaved = UnsavedChanges(self.core, lambda: self.unit)
        self._caplog = caplog

    @property
    def own(self) -> Unit:
        assert self.unit is not None
        return self.unit

    def store(self, **data: t.Any) -> None:
        record = Record(b"d", version=1, created_at=1, touched_at=1, expires_at=2)
        serializer = self.core.serializer
        payload = serializer.dumps(data)
        envelope = Envelope(payload, serializer.code, None, 1)
        self.own.adopt(Stored(record, envelope, serializer), data)
        prefix = self.site.state.config.key_prefix
        self.own.identity = Identity("id", f"{prefix}the handle")

    def end(self) -> list[str]:
        self._caplog.clear()
        request_tearing_down.send(self.site.app)
        for record in self._caplog.records:
            assert (record.name, record.levelname) == ("flask_serversession", "WARNING")
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def request_(caplog: pytest.LogCaptureFixture) -> Request:
    request = Request(caplog)
    request.unsaved.watch()
    return request


def message(name: str) -> str:
    return (
        f"Session {name} was changed after the response was begun, so the change is"
        " not saved. Call session.save() after such a change, or make it before the"
        " response."
    )


def test_a_change_after_the_response_is_warned_of_once(request_: Request) -> None:
    request_.store(n=1)
    assert request_.end() == []
    request_.own.want(Wish.TOUCH)
    assert request_.end() == []
    request_.own.want(Wish.SAVE)
    request_.unsaved.watch()
    assert request_.end() == [message("the handle")]


def test_nobody_is_warned_before_somebody_watches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = Request(caplog)
    request.store(n=1)
    request.own.want(Wish.SAVE)
    assert request.end() == []


def test_another_application_is_not_watched(request_: Request) -> None:
    request_.store(n=1)
    request_.own.want(Wish.SAVE)
    other = Site({"SESSION_BACKEND": "memory"})
    request_._caplog.clear()
    request_tearing_down.send(other.app)
    assert not request_._caplog.records


def test_a_request_without_a_session_is_no_reason_to_warn(request_: Request) -> None:
    request_.unit = None
    assert request_.end() == []


def test_a_change_inside_of_a_value_is_looked_for(request_: Request) -> None:
    request_.store(items=[1])
    request_.own.is_exposed = True
    assert request_.end() == []
    request_.own.data["items"].append(2)
    assert request_.end() == [message("the handle")]
    request_.own.data["items"].append(object())  # which nobody can store
    assert request_.end() == [message("the handle")]


def test_a_new_session_is_warned_of_if_something_is_in_it(request_: Request) -> None:
    request_.own.begin()
    request_.own.want(Wish.SAVE)
    assert request_.end() == []
    request_.own.data["n"] = 1
    assert request_.end() == [message("(new)")]
    request_.own.wish = Wish.TOUCH
    assert request_.end() == []


@pytest.mark.parametrize("known", [Known.UNSEEN, Known.GONE, Known.BROKEN])
def test_what_is_not_stored_is_not_warned_of(request_: Request, known: Known) -> None:
    request_.store(n=1)
    request_.own.want(Wish.SAVE)
    request_.own.known = known
    assert request_.end() == []


@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.ABANDONED])
def test_what_was_not_settled_is_not_warned_of(request_: Request, phase: Phase) -> None:
    request_.store(n=1)
    request_.own.want(Wish.SAVE)
    request_.own.phase = phase
    assert request_.end() == []


def test_a_failure_was_reported_already(request_: Request) -> None:
    request_.store(n=1)
    request_.own.want(Wish.SAVE)
    request_.own.failure = BackendUnavailableError("It failed.")
    assert request_.end() == []
