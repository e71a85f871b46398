"""That a session was used is recorded, and nothing else."""

from __future__ import annotations

import logging
import typing as t

import pytest

from flask_serversession import BackendUnavailableError
from flask_serversession.activity import touch_stored
from flask_serversession.activity import touch_unseen
from flask_serversession.cookie import CookieState
from flask_serversession.signals import backend_failed
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Phase
from flask_serversession.unit import Unit

from .site import Browser
from .site import Site
from .site import present

LIFETIME = 1000.0


class Used:
    """A site with a session that is used."""

    def __init__(self, **settings: t.Any) -> None:
        settings = {"SESSION_IDLE_TIMEOUT": LIFETIME, **settings}
        self.site = Site({"SESSION_BACKEND": "memory"}, **settings)
        self.core = self.site.state.interface.core
        self.loader = self.site.state.interface.lifecycle.loader
        self.browser = self.site.browser()
        self.browser.set(n=1)
        self.began_at = self.site.clock()

    def unit(self, *browsers: Browser, loaded: bool = False) -> Unit:
        """Give a unit with the cookies of browsers, verified or loaded."""
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        unit = Unit(signer)
        values = [browser.cookie or "" for browser in browsers or (self.browser,)]
        unit.presented = present(values, self.site.clock())
        (self.loader.load if loaded else self.loader.verify)(unit)
        return unit

    def advance(self, seconds: float) -> float:
        t.cast(FakeClock, self.site.clock).advance(seconds)
        return self.site.clock()

    def times(self, browser: Browser | None = None) -> tuple[float, float]:
        """Give what the store says: when it was used, and when it expires."""
        key = self.core.identify((browser or self.browser).id).key
        record = self.site.backend.load(key)
        assert record is not None
        return record.touched_at, record.expires_at


def test_a_loaded_session_is_prolonged_by_use() -> None:
    used = Used()
    unit = used.unit(loaded=True)
    before = unit.record
    now = used.advance(100)
    assert touch_stored(used.core, unit, True) is True
    assert used.times() == (now, now + LIFETIME)
    # What the request goes on with says the same, and nothing else has changed.
    record = unit.record
    assert (record.touched_at, record.expires_at) == used.times()
    assert (record.data, record.version) == (before.data, before.version)


def test_its_own_lifetime_counts() -> None:
    used = Used()
    unit = used.unit(loaded=True)
    unit.lifetime = 5000.0
    now = used.advance(10)
    assert touch_stored(used.core, unit, True)
    assert used.times() == (now, now + 5000)


def test_to_ask_for_a_session_does_not_prolong_it() -> None:
    used = Used()
    unit = used.unit(loaded=True)
    expires_at = unit.record.expires_at
    now = used.advance(100)
    assert touch_stored(used.core, unit, False)
    assert used.times() == (now, expires_at)


def test_to_ask_for_a_session_does_not_end_it() -> None:
    """Another request may have prolonged it since it was loaded."""
    used = Used()
    unit, other = used.unit(loaded=True), used.unit(loaded=True)
    used.advance(LIFETIME - 1)
    assert touch_stored(used.core, other, True)
    now = used.advance(2)
    assert touch_stored(used.core, unit, False)
    assert unit.record.expires_at == now + 1
    assert used.times() == (now, other.record.expires_at)


def test_nothing_is_prolonged_beyond_the_absolute_time_out() -> None:
    used = Used(SESSION_ABSOLUTE_TIMEOUT=1200)
    unseen, stored = used.unit(), used.unit(loaded=True)
    used.advance(500)
    for touch in (
        lambda: touch_stored(used.core, stored, True),
        lambda: touch_unseen(used.core, used.loader, unseen),
    ):
        now = used.advance(1)
        assert touch()
        assert used.times() == (now, used.began_at + 1200)


def test_a_loaded_session_that_is_gone_is_told_of() -> None:
    used = Used()
    unit = used.unit(loaded=True)
    before = unit.record
    used.site.backend.delete(unit.key)
    used.advance(1)
    assert touch_stored(used.core, unit, True) is False
    assert unit.record is before


def test_a_session_that_nobody_looked_at_is_prolonged_by_what_its_cookie_says() -> None:
    used = Used(PERMANENT_SESSION_LIFETIME=3000)
    unit = used.unit()
    now = used.advance(100)
    assert touch_unseen(used.core, used.loader, unit) is True
    assert used.times() == (now, now + LIFETIME)
    assert unit.cookie is not None
    assert unit.cookie.touched_at == now
    for values, lifetime in (
        ({"is_permanent": True}, 3000),
        ({"is_permanent": True, "lifetime": 4000.0}, 4000),
    ):
        state: dict[str, t.Any] = {"is_permanent": False, **values}
        unit.presented.cookie = CookieState(
            id=used.browser.id, touched_at=now, counts_from=now, **state
        )
        assert touch_unseen(used.core, used.loader, unit)
        assert used.times() == (now, now + lifetime)


def test_of_several_cookies_that_in_use_is_prolonged() -> None:
    used = Used()
    others = [used.site.browser() for _ in range(2)]
    for browser in others:
        browser.set(n=2)
        if browser is others[0]:
            used.site.backend.delete(used.core.identify(browser.id).key)
    unit = used.unit(others[0], others[1], used.browser)
    now = used.advance(100)
    assert touch_unseen(used.core, used.loader, unit) is True
    assert used.times(others[1]) == (now, now + LIFETIME)
    assert used.times()[0] == used.began_at
    assert unit.cookie is not None
    assert (unit.cookie.id, unit.cookie.touched_at) == (others[1].id, now)


def test_where_none_is_in_use_nothing_is() -> None:
    used = Used()
    unit = used.unit()
    used.site.backend.delete(unit.key)
    assert touch_unseen(used.core, used.loader, unit) is False
    empty = used.site.browser()
    assert touch_unseen(used.core, used.loader, used.unit(empty)) is False


def test_a_touch_that_fails_is_told_of_and_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = Used()
    other = used.site.browser()
    other.set(n=2)
    heard: list[tuple[t.Any, t.Any]] = []

    def hear(sender: object, **values: t.Any) -> None:
        assert isinstance(values["error"], BackendUnavailableError)
        heard.append((values["operation"], values["handle"]))

    handle = used.core.handle_of(used.core.identify(used.browser.id).key)
    with (
        used.site.backend.failing("touch"),
        backend_failed.connected_to(hear, used.site.app),
        used.site.backend.counting() as calls,
    ):
        unit = used.unit(loaded=True)
        before = unit.record
        # Reading goes on, and it is not known to be gone.
        assert touch_stored(used.core, unit, True) is True
        assert unit.record is before
        # Another cookie is not tried: the engine has failed, and not said no.
        unit = used.unit(used.browser, other)
        assert touch_unseen(used.core, used.loader, unit) is False
    assert heard == [("touch", handle)] * 2
    assert calls["touch"] == 2


@pytest.mark.parametrize("phase", [Phase.OPEN, Phase.CLOSED])
def test_an_engine_that_has_failed_the_request_is_not_asked_again(
    phase: Phase,
) -> None:
    used = Used()
    unit = used.unit(loaded=True)
    unit.failure, unit.phase = BackendUnavailableError("It failed."), phase
    with used.site.backend.counting() as calls:
        assert touch_stored(used.core, unit, True) is True
    # After the response somebody may try again.
    assert calls["touch"] == (phase is Phase.CLOSED)


def test_what_became_of_a_touch_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = Used()
    unit = used.unit(loaded=True)
    handle = used.core.handle_of(unit.key)
    with caplog.at_level(logging.DEBUG, "flask_serversession"):
        caplog.clear()
        touch_stored(used.core, unit, True)
        used.site.backend.delete(unit.key)
        touch_stored(used.core, unit, True)
    assert [record.getMessage() for record in caplog.records] == [
        f"Session {handle} touched",
        f"Session {handle} is gone",
    ]
