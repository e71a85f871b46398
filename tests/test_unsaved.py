"""Who is warned that a change came too late to be saved."""

from __future__ import annotations

import typing as t

import flask
import pytest
from flask import g
from flask import request_tearing_down
from flask import session
from flask import stream_with_context

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

from .site import Action
from .site import Site
from .site import present


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
    assert request_.end() == []
    request_.own.is_late_told = False
    request_.own.data["items"].append(object())  # which nobody can store
    assert request_.end() == [message("the handle")]


def test_a_new_session_is_warned_of_if_something_is_in_it(request_: Request) -> None:
    request_.own.begin()
    request_.own.want(Wish.SAVE)
    assert request_.end() == []
    request_.own.data["n"] = 1
    assert request_.end() == [message("(new)")]
    request_.own.is_late_told = False
    request_.own.wish = Wish.TOUCH
    assert request_.end() == []


def test_what_was_not_looked_at_is_warned_of_if_a_cookie_came(
    request_: Request,
) -> None:
    request_.own.want(Wish.END)
    assert request_.end() == []
    request_.own.presented = present(["x"], 1)
    request_.own.wish = Wish.TOUCH
    assert request_.end() == []
    for wish in (Wish.SAVE, Wish.END):
        request_.own.wish = wish
        request_.own.is_late_told = False
        assert request_.end() == [message("(unread)")]
    request_.own.is_late_told = False
    request_.own.presented.is_verified = True  # and there was nothing behind it
    assert request_.end() == []
    request_.own.presented.claim = object()
    assert request_.end() == [message("(unread)")]


def test_a_log_out_is_warned_of_where_the_session_is_gone(request_: Request) -> None:
    for known in (Known.GONE, Known.BROKEN):
        request_.store()
        request_.own.known = known
        request_.own.wish = Wish.SAVE
        assert request_.end() == []
        request_.own.wish = Wish.END
        assert request_.end() == [message("the handle")]
        request_.own.is_late_told = False


def test_a_change_is_warned_of_where_the_session_is_gone(request_: Request) -> None:
    request_.store(n=1)
    request_.own.want(Wish.SAVE)
    request_.own.known = Known.BROKEN  # which is said where it is documented
    assert request_.end() == []
    request_.own.known = Known.GONE
    assert request_.end() == [message("the handle")]


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


# -- in a request


def late(change: Action) -> dict[str, t.Callable[[], flask.Response]]:
    """Give the views that make a change after the response, by when they do."""

    def stream() -> t.Iterator[str]:
        yield "begun"
        change()

    def keep() -> flask.Response:
        g.late = change
        return flask.Response("")

    return {
        "stream": lambda: flask.Response(stream_with_context(stream())),
        "teardown": keep,
    }


@pytest.fixture
def site() -> Site:
    site = Site({"SESSION_BACKEND": "memory"})

    @site.app.teardown_request
    def tear_down(error: BaseException | None) -> None:
        g.pop("late", lambda: None)()

    return site


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "flask_serversession"
    ]


CHANGES: dict[str, Action] = {
    "clear": lambda: session.clear(),
    "pop": lambda: session.pop("user_id", None),
    "write": lambda: session.update(n=2),
    "modified": lambda: setattr(session, "modified", True),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("when", ["stream", "teardown"])
@pytest.mark.parametrize("looks", [False, True], ids=["", "looked at"])
def test_whatever_comes_too_late_is_warned_of_once(
    site: Site, caplog: pytest.LogCaptureFixture, name: str, when: str, looks: bool
) -> None:
    browser = site.browser()
    browser.set(user_id="ada", items=[1])

    def act() -> flask.Response:
        if looks:
            assert session["items"] == [1]
        return late(CHANGES[name])[when]()

    response = browser.visit(act)
    response.get_data()  # the test client asks for no more of it before
    response.close()
    (warned,) = warnings(caplog)
    assert "after the response was begun" in warned
    assert browser.read() == {"user_id": "ada", "items": [1]}


@pytest.mark.parametrize("is_changed", [True, False])
@pytest.mark.parametrize("when", ["stream", "teardown", "generator", "on close"])
def test_a_value_that_is_held_and_changed_later_is_warned_of(
    site: Site, caplog: pytest.LogCaptureFixture, when: str, is_changed: bool
) -> None:
    browser = site.browser()
    browser.set(items=[1])

    def act() -> flask.Response:
        items = session["items"]

        def change() -> None:
            if is_changed:
                items.append(2)

        def stream() -> t.Iterator[str]:
            yield "begun"
            change()

        if when == "generator":
            return flask.Response(stream())
        if when == "on close":
            response = flask.Response("")
            response.call_on_close(change)
            return response
        return late(change)[when]()

    response = browser.visit(act)
    response.get_data()
    response.close()
    assert len(warnings(caplog)) == is_changed
    assert browser.read() == {"items": [1]}


def test_nothing_is_looked_for_where_nothing_runs_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = site.browser()
    browser.set(items=[1])
    held: list[list[int]] = []
    response = browser.visit(lambda: held.append(session["items"]))
    held[0].append(2)
    response.close()
    assert warnings(caplog) == []
