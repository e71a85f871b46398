"""``SESSION_MAX_PER_USER``: who is ended, when others log in or out meanwhile.

What a user sees of the limit, on every backend, is in ``test_operator.py``.
"""

from __future__ import annotations

import functools
import random
import types
import typing as t
from collections.abc import Sequence

import pytest
from flask import session

from flask_serversession import session as typed_session
from flask_serversession.record import key_of
from flask_serversession.signals import backend_failed
from flask_serversession.signals import session_created
from flask_serversession.signals import session_destroyed
from flask_serversession.signals import session_regenerated
from flask_serversession.testing import FakeClock

from .orders import Answer
from .orders import Order
from .orders import World
from .orders import interleave
from .orders import others_of
from .orders import without_pauses
from .site import Browser
from .site import Site
from .site import key
from .site import once

TRIES = 6


def make_site(limit: int, **settings: t.Any) -> Site:
    return Site({"SESSION_BACKEND": "memory"}, SESSION_MAX_PER_USER=limit, **settings)


def log_in(site: Site, user: str = "ada") -> Browser:
    """Give a browser that logs in a second after all before."""
    t.cast(FakeClock, site.clock).advance(1)
    browser = site.browser()
    browser.set(_user_id=user)
    return browser


def is_live(browser: Browser) -> bool:
    return browser.read() != {}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give for how long somebody has paused, which takes no time."""
    pauses: list[float] = []
    waiting = types.SimpleNamespace(sleep=pauses.append)
    monkeypatch.setattr("flask_serversession.user_limit.time", waiting)
    return pauses


def test_who_is_within_the_limit_costs_one_look(pauses: list[float]) -> None:
    site = make_site(2)
    for _ in range(2):
        browser = site.browser()
        calls, _ = browser.costs(lambda: session.update(_user_id="ada"))
        assert calls == {"create": 1, "keys_of_user": 1}
    assert pauses == []


def test_who_is_beyond_the_limit_costs_one_round(pauses: list[float]) -> None:
    site = make_site(1)
    log_in(site)
    t.cast(FakeClock, site.clock).advance(1)
    calls, _ = site.browser().costs(lambda: session.update(_user_id="ada"))
    assert calls == {"create": 1, "keys_of_user": 1, "load_many": 1, "delete": 1}
    assert pauses == []


def test_a_session_that_ends_while_it_is_counted_makes_room() -> None:
    site = make_site(2)
    first, second = log_in(site), log_in(site)
    once(site, "before", "load_many", lambda: site.backend.delete(key(first)))
    assert is_live(log_in(site))
    assert is_live(second)
    assert not is_live(first)


def test_who_logs_in_and_is_ended_meanwhile_ends_nobody() -> None:
    site = make_site(1)
    first, late = log_in(site), site.browser()

    def end() -> None:
        with site.app.app_context():
            for info in site.extension.sessions_of("ada"):
                if info.handle != key_of(first.id, ""):
                    site.extension.revoke(info.handle)

    once(site, "before", "keys_of_user", end)
    t.cast(FakeClock, site.clock).advance(1)
    late.set(_user_id="ada")
    assert is_live(first)


def test_keys_of_another_prefix_are_not_counted() -> None:
    site = make_site(1)
    first = log_in(site)
    listed = site.backend.keys_of_user
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            site.backend,
            "keys_of_user",
            lambda user: [
                f"other{found}" if found == key(first) else found
                for found in listed(user)
            ],
        )
        assert is_live(log_in(site))
    assert is_live(first)


def ahead_of(site: Site) -> Site:
    """Give a site on the same store, on a machine whose clock is ahead."""
    clock = FakeClock(site.clock() + 1000)
    return Site({"SESSION_BACKEND": site.backend}, clock)


def test_nobody_is_ended_for_a_session_of_a_clock_that_is_ahead_but_in_the_last_round(
    pauses: list[float],
) -> None:
    site = make_site(1)
    ahead = log_in(ahead_of(site))
    with site.backend.counting() as calls:
        latest = log_in(site)
    assert calls["keys_of_user"] == TRIES
    assert len(pauses) == TRIES - 1
    assert all(0.01 <= pause <= 0.03 for pause in pauses)
    assert is_live(latest)
    assert not is_live(ahead)


def test_what_is_too_much_for_sure_is_ended_at_once(pauses: list[float]) -> None:
    site = make_site(9)
    older, ahead = log_in(site), log_in(ahead_of(site))
    site = Site({"SESSION_BACKEND": site.backend}, site.clock, SESSION_MAX_PER_USER=1)
    ended_at: list[int] = []
    site.backend.before["delete"] = lambda: ended_at.append(len(pauses))
    latest = log_in(site)
    assert ended_at == [0, TRIES - 1]
    assert is_live(latest)
    assert not is_live(older)
    assert not is_live(ahead)


def test_who_logged_in_first_counts_and_not_whose_session_began_first() -> None:
    site = make_site(1)
    browser = site.browser()
    browser.set(n=1)
    first = log_in(site)
    t.cast(FakeClock, site.clock).advance(1)
    browser.set(_user_id="ada")
    assert is_live(browser)
    assert not is_live(first)


# Every order of the operations of several log-ins


def log_ins(
    world: World, number: int, limit: int, turns: Sequence[int], is_new: bool
) -> tuple[Order, list[tuple[int, ...]], str]:
    """Let users log in at once, and return what happened and what is wrong."""
    world.backend.start()
    world.clock.advance(100_000)
    cookies = []
    for _ in range(limit):  # who is there already has to go
        world.clock.advance(1)
        world.visit("earlier", lambda: session.update(_user_id="ada"), "")
    for _ in range(number):
        world.clock.advance(1)
        answer = world.visit("begin", lambda: session.update(n=1), "")
        cookies.append("" if is_new else answer.cookies[0])
    world.clock.advance(1)
    answers = [Answer() for _ in range(number)]

    def run(who: int) -> None:
        answers[who] = world.visit(
            f"log in {who}",
            lambda: session.update(_user_id="ada"),
            cookies[who],
            who % 2,
        )

    jobs = [functools.partial(run, who) for who in range(number)]
    order, choices, _ = interleave(world.backend, jobs, turns)
    stored = {
        key: record for key, record in world.backend.iterate() if record.user == "ada"
    }
    moments = {
        key: record.touched_at
        for key, record in world.backend.created.items()
        if record.user == "ada"
    }
    last = sorted(moments, key=lambda key: moments[key])[-limit:]
    wrong = "" if {*stored} == {*last} else f"{len(stored)} are left"
    if any(answer.status != 200 for answer in answers):
        wrong = "somebody was not answered"
    return order, choices, wrong


def orders_of_log_ins(
    number: int, limit: int, is_new: bool, most: int
) -> tuple[int, list[str]]:
    """Try all orders, or as many; they are tried in an order that jumps about."""
    world = World(SESSION_MAX_PER_USER=limit)
    pending: list[tuple[int, ...]] = [()]
    wrong: list[str] = []
    tried = 0
    chance = random.Random(number)  # always the same
    with without_pauses([world]):
        while pending and tried < most:
            turns = pending.pop(chance.randrange(len(pending)))
            order, choices, text = log_ins(world, number, limit, turns, is_new)
            tried += 1
            wrong += [f"{order}: {text}"] if text else []
            pending += others_of(order, choices, len(turns))
    return tried, wrong


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "rotated"])
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize(("number", "least"), [(2, 70), (3, 400), (4, 400)])
def test_in_whatever_order_they_log_in_exactly_the_last_ones_are_left(
    number: int, least: int, limit: int, is_new: bool
) -> None:
    tried, wrong = orders_of_log_ins(number, limit, is_new, most=400)
    assert wrong == []
    assert tried >= least


@pytest.mark.parametrize("operation", ["keys_of_user", "load_many", "delete"])
def test_an_engine_that_fails_while_sessions_are_counted_is_told_of(
    operation: str,
) -> None:
    site = make_site(1)
    log_in(site)
    heard: list[str] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append(values["operation"])

    t.cast(FakeClock, site.clock).advance(1)
    with (
        site.backend.failing(operation),
        backend_failed.connected_to(hear, site.app),
    ):
        response = site.browser().set(_user_id="ada")
    assert response.status_code == 503
    assert heard == [operation.replace("_many", "")]


def test_what_was_ended_is_known_whoever_raises() -> None:
    site = make_site(1)
    former = log_in(site)
    ended = site.state.interface.core.ended

    def fail(sender: object, **values: t.Any) -> None:
        assert ended.has(key(former))
        raise ZeroDivisionError

    t.cast(FakeClock, site.clock).advance(1)
    with (
        session_created.connected_to(fail, site.app),
        pytest.raises(ZeroDivisionError),
    ):
        site.browser().set(_user_id="ada")
    assert ended.has(key(former))


def test_the_signal_of_what_was_stored_comes_first_and_says_all() -> None:
    site = make_site(1)
    former, browser = log_in(site), site.browser()
    browser.set(n=1)
    previous = key_of(browser.id, "")
    heard: list[dict[str, t.Any]] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append({**values})

    t.cast(FakeClock, site.clock).advance(1)
    with (
        session_regenerated.connected_to(hear, site.app),
        session_destroyed.connected_to(hear, site.app),
    ):
        browser.set(_user_id="ada")
    assert [{**values, "_async_wrapper": None} for values in heard] == [
        {
            "handle": key_of(browser.id, ""),
            "user": "ada",
            "previous": previous,
            "_async_wrapper": None,
        },
        {
            "handle": key_of(former.id, ""),
            "user": "ada",
            "reason": "limit",
            "_async_wrapper": None,
        },
    ]


def test_only_who_logs_in_is_counted() -> None:
    site = make_site(1)
    browser = log_in(site)
    with site.backend.counting() as calls:
        browser.set(n=1)
        browser.visit(lambda: typed_session.regenerate())
        site.browser().set(n=1)
    assert calls["keys_of_user"] == 0


def test_a_session_that_gets_a_new_id_while_it_is_ended_is_counted_again(
    pauses: list[float],
) -> None:
    site = make_site(1)
    former = log_in(site)

    def regenerate() -> None:
        former.visit(lambda: typed_session.regenerate())

    once(site, "before", "delete", regenerate)
    with site.backend.counting() as calls:
        latest = log_in(site)
    assert calls["keys_of_user"] == 2
    assert is_live(latest)
    assert not is_live(former)
