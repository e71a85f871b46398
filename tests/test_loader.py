"""What a request finds out about its session, by the loader alone."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

import pytest

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession.core import Core
from flask_serversession.loading import Loader
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.signals import backend_failed
from flask_serversession.signals import session_rejected
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Known
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .site import Browser
from .site import Site
from .site import present

#: A cookie like ours, which somebody else has signed.
FORGED = "the-id.b0-0-0.signature"


class LogOuts:
    """Stands for what hears of log-outs."""

    watched = 0

    def watch(self) -> None:
        self.watched += 1


class Place:
    """A store, and a loader that finds out what is in it."""

    def __init__(self, takeover: t.Any = None, **settings: t.Any) -> None:
        self.site = Site({"SESSION_BACKEND": "memory"}, **settings)
        self.core: Core = self.site.state.interface.core
        self.log_outs = LogOuts()
        self.loader = Loader(self.core, takeover, t.cast("t.Any", self.log_outs))
        self.rejected: list[tuple[str | None, str]] = []
        session_rejected.connect(self._note, self.site.app)

    def _note(self, app: object, **values: t.Any) -> None:
        assert values["user"] is None
        self.rejected.append((values["handle"], values["reason"]))

    def start(self, **values: t.Any) -> Browser:
        browser = self.site.browser()
        browser.set(**values)
        return browser

    def key(self, browser: Browser) -> str:
        return self.core.identify(browser.id).key

    def handle(self, browser: Browser) -> str:
        return self.core.handle_of(self.key(browser))

    def unit(self, *cookies: str | Browser) -> Unit:
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        unit = Unit(signer)
        values = [c.cookie or "" if isinstance(c, Browser) else c for c in cookies]
        unit.presented = present(values, self.site.clock())
        return unit

    def load(self, *cookies: str | Browser) -> Unit:
        unit = self.unit(*cookies)
        self.loader.load(unit)
        return unit

    def change(self, browser: Browser, **values: t.Any) -> None:
        """Change what is stored, as another machine would have."""
        backend, key = self.site.backend.backend, self.key(browser)
        record = backend.load(key)
        assert record is not None
        backend.delete(key)
        backend.create(key, dataclasses.replace(record, **values))

    def advance(self, seconds: float) -> None:
        t.cast(FakeClock, self.site.clock).advance(seconds)


# Verifying


def test_a_cookie_that_verifies_names_the_session() -> None:
    place = Place()
    browser = place.start(n=1)
    unit = place.unit(FORGED, browser)
    with place.site.backend.counting() as calls:
        place.loader.verify(unit)
        place.loader.verify(unit)
    assert calls == {}
    assert unit.cookie is not None
    assert unit.cookie.id == browser.id
    assert unit.identity == place.core.identify(browser.id)
    assert unit.known is Known.UNSEEN
    assert place.rejected == []


def test_nothing_that_verifies_is_told_of_once() -> None:
    place = Place()
    for well_formed in ([], [FORGED]):
        place.rejected.clear()
        unit = place.unit("malformed", *well_formed)
        place.loader.verify(unit)
        place.loader.verify(unit)
        assert place.rejected == [(None, "forged" if well_formed else "malformed")]
    assert unit.identity is unit.cookie is None
    unit = place.unit()
    place.loader.verify(unit)
    assert len(place.rejected) == 1
    assert unit.presented.is_verified is True


def test_the_next_cookie_is_one_of_another_session() -> None:
    place = Place()
    first, second = place.start(n=1), place.start(n=2)
    unit = place.unit(first, first, second)
    assert place.loader.verify_next(unit) is True
    assert unit.key == place.key(first)
    assert place.loader.verify_next(unit) is True
    assert unit.key == place.key(second)
    assert unit.cookie is not None
    assert unit.cookie.id == second.id
    assert place.loader.verify_next(unit) is False
    assert unit.key == place.key(second)


# Loading


def test_what_is_stored_is_loaded_by_one_question() -> None:
    place = Place()
    browser = place.start(n=1)
    place.advance(5)
    unit = place.unit(browser)
    place.advance(5)
    with place.site.backend.counting() as calls:
        place.loader.load(unit)
    assert calls == {"load": 1}
    assert unit.known is Known.STORED
    assert unit.data == {"n": 1}
    assert unit.key == place.key(browser)
    assert unit.presented.seen_at == place.site.clock()
    assert place.rejected == []


@pytest.mark.parametrize("cookies", [(), (FORGED,)])
def test_without_a_cookie_that_verifies_a_session_begins(
    cookies: tuple[str, ...],
) -> None:
    place = Place()
    with place.site.backend.counting() as calls:
        unit = place.load(*cookies)
    assert calls == {}
    assert unit.known is Known.NEW
    assert place.rejected == [(None, "forged")] * len(cookies)


def test_an_id_that_names_nothing_is_not_adopted() -> None:
    place = Place()
    browser = place.start(n=1)
    place.site.backend.delete(place.key(browser))
    unit = place.load(browser)
    assert unit.known is Known.NEW
    assert unit.identity is None
    assert place.rejected == [(place.handle(browser), "unknown")]


@pytest.mark.parametrize(
    ("reason", "early_reason", "late_reason"),
    [("revoked", "ended", "ended"), ("rotated", "rotated", "reused")],
)
def test_what_ended_here_since_the_request_began_is_gone(
    reason: t.Any, early_reason: str, late_reason: str
) -> None:
    place = Place()
    browser = place.start(n=1)
    early = place.unit(browser)
    place.advance(1)
    place.site.backend.delete(place.key(browser))
    place.core.ended.add(place.key(browser), reason)
    place.loader.load(early)
    assert early.known is Known.GONE
    place.advance(1)
    late = place.load(browser)
    assert late.known is Known.NEW
    handle = place.handle(browser)
    assert place.rejected == [(handle, early_reason), (handle, late_reason)]
    if reason == "revoked":
        assert early.ended_because == late.ended_because == reason
    # What is there is there, whatever is remembered.
    other = place.start(n=2)
    unit = place.unit(other)
    place.advance(1)
    place.core.ended.add(place.key(other), reason)
    place.loader.load(unit)
    assert unit.known is Known.STORED


def test_a_tombstone_says_that_the_id_was_changed() -> None:
    place = Place()
    browser = place.start(n=1)
    place.change(browser, data=TOMBSTONE_DATA)
    unit = place.load(browser)
    assert unit.known is Known.GONE
    assert unit.data == {}
    assert place.rejected == [(place.handle(browser), "rotated")]


@pytest.mark.parametrize("is_buried", [True, False])
def test_behind_a_session_that_is_gone_is_looked_for_a_live_one(
    is_buried: bool,
) -> None:
    place = Place()
    gone, also_gone, live = place.start(n=1), place.start(n=2), place.start(n=3)
    for browser in (gone, also_gone):
        if is_buried:
            place.change(browser, data=TOMBSTONE_DATA)
        else:
            place.site.backend.delete(place.key(browser))
    with place.site.backend.counting() as calls:
        unit = place.load(gone, also_gone, live)
    assert calls == {"load": 3}
    assert unit.data == {"n": 3}
    assert unit.key == place.key(live)
    assert unit.cookie is not None
    assert unit.cookie.id == live.id
    assert place.rejected == []
    # Where there is none, the first one is what counts.
    unit = place.load(gone, also_gone)
    reason = "rotated" if is_buried else "unknown"
    assert unit.known is (Known.GONE if is_buried else Known.NEW)
    assert place.rejected == [(place.handle(gone), reason)]
    if is_buried:
        assert unit.key == place.key(gone)
        assert unit.cookie is not None
        assert unit.cookie.id == gone.id


def test_behind_a_live_session_nobody_looks() -> None:
    place = Place()
    live, other = place.start(n=1), place.start(n=2)
    with place.site.backend.counting() as calls:
        assert place.load(live, other).data == {"n": 1}
    assert calls == {"load": 1}


def test_one_that_was_asked_for_is_not_asked_for_again() -> None:
    place = Place()
    gone, live = place.start(n=1), place.start(n=2)
    place.site.backend.delete(place.key(gone))
    with place.site.backend.counting() as calls:
        assert place.load(gone, gone, live).data == {"n": 2}
    assert calls == {"load": 2}


@pytest.mark.parametrize(
    "error",
    [BackendUnavailableError("It failed."), RecordError("It is broken.", "newer")],
)
def test_one_that_may_be_there_is_what_counts(error: Exception) -> None:
    place = Place(SESSION_ON_BACKEND_ERROR="ignore")
    gone, other = place.start(n=1), place.start(n=2)
    key, inner = place.key(gone), place.site.backend.backend

    def load(name: str) -> None:
        if name != key:
            raise error

    unit = place.unit(gone, other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inner, "load", load)
        place.loader.load(unit)
    assert unit.known is Known.BROKEN
    assert unit.key == place.key(other)
    assert unit.cookie is not None
    assert unit.cookie.id == other.id


def test_what_was_loaded_is_cleared_for_who_has_logged_out() -> None:
    place = Place()
    browser = place.start(n=1)
    unit = place.unit(browser)
    unit.want(Wish.END)
    unit.lifetime = 5.0
    place.loader.load(unit)
    assert unit.known is Known.STORED
    assert unit.data == unit.own_meta == {}
    assert unit.lifetime is None


@pytest.mark.parametrize(
    "settings", [{"SESSION_ABSOLUTE_TIMEOUT": 100}, {"SESSION_IDLE_TIMEOUT": 100}]
)
def test_what_is_too_old_or_idle_is_not_served(settings: dict[str, t.Any]) -> None:
    place = Place(**settings)
    browser = place.start(n=1)
    place.change(browser, expires_at=place.site.clock() + 1000)
    place.advance(99)
    assert place.load(browser).data == {"n": 1}
    place.advance(1)
    unit = place.load(browser)
    assert unit.known is Known.NEW
    assert unit.data == {}
    assert place.rejected == [(place.handle(browser), "expired")]


# Several threads or greenlets of one request


FINDINGS: dict[str, t.Callable[[Place, Browser], object]] = {
    "a record": lambda place, browser: None,
    "nothing": lambda place, browser: place.site.backend.delete(place.key(browser)),
    "a tombstone": lambda place, browser: place.change(browser, data=TOMBSTONE_DATA),
}
ERRORS: dict[str, Exception] = {
    "a failure": BackendUnavailableError("It failed."),
    "a damage": RecordError("It is broken.", "damaged"),
}


@pytest.mark.parametrize("found", [*FINDINGS, *ERRORS])
def test_who_looks_second_changes_nothing_of_what_the_first_has_found(
    found: str,
) -> None:
    place = Place()
    browser = place.start(n=1)
    unit = place.unit(browser)

    def look_first() -> None:
        place.loader.load(unit)
        unit.data["mine"] = 1
        if found in FINDINGS:
            FINDINGS[found](place, browser)

    place.site.backend.before["load"] = look_first
    with contextlib.ExitStack() as stack:
        if found in ERRORS:
            inner = place.site.backend.backend

            def fail_second(key: str) -> t.Any:
                if unit.known is Known.UNSEEN:
                    return type(inner).load(t.cast(t.Any, inner), key)
                raise ERRORS[found]

            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(inner, "load", fail_second)
        place.loader.load(unit)
    assert unit.known is Known.STORED
    assert unit.data == {"n": 1, "mine": 1}
    assert unit.failure is None
    assert place.rejected == []


def test_who_reads_second_changes_nothing_of_what_the_first_has_read() -> None:
    place = Place()
    unit = place.unit(place.start(n=1))
    inner: t.Any = place.core.sealer
    turns = iter([True])

    class Slow:
        def open(self, *parts: t.Any, **more: t.Any) -> t.Any:
            if next(turns, False):
                place.loader.load(unit)
                unit.data["mine"] = 1
            return inner.open(*parts, **more)

    place.core.sealer = t.cast("t.Any", Slow())
    place.loader.load(unit)
    assert unit.data == {"n": 1, "mine": 1}


def test_log_outs_are_listened_for_where_nothing_can_be_seen_of_them() -> None:
    place = Place(SESSION_ON_BACKEND_ERROR="raise")
    browser, gone = place.start(n=1), place.start(n=2)
    place.change(gone, data=TOMBSTONE_DATA)
    place.load(browser)
    place.load()
    assert place.log_outs.watched == 0
    place.load(gone)
    assert place.log_outs.watched == 1
    with place.site.backend.failing("load"), pytest.raises(BackendUnavailableError):
        place.load(browser)
    assert place.log_outs.watched == 2


# Failing


@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_a_backend_that_fails_leaves_the_session_unknown(policy: str) -> None:
    place = Place(SESSION_ON_BACKEND_ERROR=policy)
    browser = place.start(n=1)
    heard: list[dict[str, t.Any]] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append(values)

    unit = place.unit(browser)
    with (
        place.site.backend.failing("load"),
        backend_failed.connected_to(hear, place.site.app),
    ):
        if policy == "raise":
            with pytest.raises(BackendUnavailableError) as caught:
                place.loader.load(unit)
            assert unit.failure is caught.value
        else:
            place.loader.load(unit)
    assert unit.known is Known.BROKEN
    assert unit.failure is not None
    (values,) = heard
    assert values["error"] is unit.failure
    assert (values["operation"], values["handle"]) == ("load", place.handle(browser))
    assert place.rejected == []


@pytest.mark.parametrize("where", ["in the record", "by the backend"])
@pytest.mark.parametrize("reason", ["damaged", "unreadable", "newer"])
def test_what_cannot_be_read_is_logged_once_and_is_no_session(
    reason: t.Any, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place()
    browser = place.start(n=1)
    for number in (1, 2):
        unit = place.unit(browser)
        error = RecordError("It is broken.", reason)
        if where == "by the backend":
            with place.site.backend.failing("load", error=error):
                place.loader.load(unit)
        else:
            with pytest.MonkeyPatch.context() as patch:

                def adopt(*_: object, error: RecordError = error, **__: object) -> None:
                    raise error

                patch.setattr(place.core, "adopt", adopt)
                place.loader.load(unit)
        assert unit.known is (Known.BROKEN if reason == "newer" else Known.NEW)
        assert unit.failure is None
        assert place.rejected == [(place.handle(browser), reason)] * number
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("flask_serversession", "ERROR")
    assert record.getMessage() == (
        f"Session {place.handle(browser)} cannot be read, and counts as no session:"
        " It is broken."
    )


def test_a_thousand_that_cannot_be_read_are_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place()
    error = RecordError("It is broken.", "damaged")

    def report(number: int) -> int:
        caplog.clear()
        unit = place.unit()
        unit.identity = place.core.identify(f"the id {number}")
        place.loader.take_unreadable(unit, error)
        return len(caplog.records)

    assert [report(number) for number in range(1000)] == [1] * 1000
    assert [report(number) for number in (0, 999)] == [0, 0]
    assert report(1000) == 1
    assert report(1) == 0
    assert report(0) == 1  # it was the oldest


# Taking over


class TakeOver:
    """Stands for what takes over the sessions of another kind."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.is_reported = True
        self.asked: list[t.Any] = []

    def recognize(self, values: t.Sequence[str]) -> object:
        self.asked.append(values)
        return "a claim" if "old" in values else None

    def take_over(self, unit: Unit, loader: Loader) -> None:
        self.asked.append(loader)
        if self.error is not None:
            raise self.error
        unit.begin()
        unit.data = {"old": 1}

    def is_to_be_reported(self, error: RecordError) -> bool:
        assert error is self.error
        return self.is_reported


def test_the_session_of_another_kind_is_taken_over() -> None:
    takeover = TakeOver()
    place = Place(takeover)
    unit = place.unit("old")
    place.advance(5)
    place.loader.verify(unit)
    assert unit.presented.claim == "a claim"
    place.loader.load(unit)
    assert takeover.asked == [["old"], place.loader]
    assert unit.data == {"old": 1}
    assert unit.presented.seen_at == place.site.clock()
    assert place.rejected == []


def test_what_nobody_recognizes_is_forged() -> None:
    place = Place(TakeOver())
    assert place.load(FORGED).known is Known.NEW
    assert place.rejected == [(None, "forged")]


def test_a_cookie_of_ours_is_not_taken_over() -> None:
    takeover = TakeOver()
    place = Place(takeover)
    assert place.load("old", place.start(n=1)).data == {"n": 1}
    assert takeover.asked == []


@pytest.mark.parametrize("is_reported", [True, False])
def test_what_cannot_be_taken_over_is_no_session(
    is_reported: bool, caplog: pytest.LogCaptureFixture
) -> None:
    takeover = TakeOver()
    place = Place(takeover)
    takeover.error = RecordError("It is broken.", "unreadable")
    takeover.is_reported = is_reported
    unit = place.load("old")
    assert unit.known is Known.NEW
    assert place.rejected == [(None, "unreadable")]
    assert len(caplog.records) == is_reported


@pytest.mark.parametrize("policy", ["raise", "ignore"])
@pytest.mark.parametrize("wish", [Wish.NOTHING, Wish.TOUCH, Wish.SAVE, Wish.END])
def test_when_an_old_store_fails_only_a_log_out_is_still_wanted(
    policy: str, wish: Wish
) -> None:
    takeover = TakeOver()
    place = Place(takeover, SESSION_ON_BACKEND_ERROR=policy)
    takeover.error = BackendUnavailableError("It failed.")
    unit = place.unit("old")
    unit.want(wish)
    unit.data = {"half": 1}
    if policy == "raise":
        with pytest.raises(BackendUnavailableError):
            place.loader.load(unit)
    else:
        place.loader.load(unit)
    assert unit.known is Known.BROKEN
    assert unit.failure is takeover.error
    assert unit.data == {}
    assert unit.wish is (Wish.TOUCH if wish is Wish.SAVE else wish)
