"""Sessions whose ids are changed all the time are ended, however often that is.

A stolen session is not kept by calling the view that changes the id in a loop.
"""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable

import pytest
from flask import session

from flask_serversession import BackendUnavailableError
from flask_serversession import rotation
from flask_serversession import session as typed_session
from flask_serversession.ids import generate_id
from flask_serversession.operator import AppState
from flask_serversession.operator import revoke
from flask_serversession.operator import revoke_all
from flask_serversession.operator import revoke_user
from flask_serversession.operator import sessions_of
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .site import Browser
from .site import Site
from .site import handle_of

INDEXED = ("memory", "filesystem", "valkey", "redis", "sqlite", "postgresql", "mariadb")
# More often than a grace period has seconds.
CHANGES = 25


@pytest.fixture(params=INDEXED)
def config(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> Config:
    return make_backend_config(request.param)


def regenerate(browser: Browser) -> None:
    browser.visit(lambda: typed_session.regenerate())


def log_in(site: Site) -> Browser:
    browser = site.browser()
    browser.set(_user_id="ada", n=1)
    return browser


def operate(site: Site, function: Callable[[AppState], t.Any]) -> t.Any:
    with site.app.app_context():
        return function(site.state)


def change_before(site: Site, browser: Browser, *operations: str) -> list[int]:
    """Have the id changed before each operation; give how often that is left."""
    left = [CHANGES]

    def hook() -> None:
        if left[0]:
            left[0] -= 1
            regenerate(browser)

    for operation in operations:
        site.backend.before[operation] = hook
    return left


ENDS: dict[str, Callable[[AppState, str], object]] = {
    "revoke_user": lambda state, handle: revoke_user(state, "ada", False),
    "revoke_all": lambda state, handle: revoke_all(state, False),
    "revoke": revoke,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("operation", ["load", "delete"])
def test_an_id_that_changes_before_every_step_is_followed_until_it_is_ended(
    config: Config, end: str, operation: str
) -> None:
    site = Site(config)
    browser = log_in(site)
    handle = handle_of(browser)
    left = change_before(site, browser, operation)
    assert operate(site, lambda state: ENDS[end](state, handle)) == 1
    site.backend.before.clear()
    assert left == [0] or operation == "load"
    assert browser.read() == {}
    assert operate(site, lambda state: sessions_of(state, "ada")) == []


def test_all_others_are_ended_and_the_own_is_spared_though_both_move(
    config: Config,
) -> None:
    site = Site(config)
    own, other = log_in(site), log_in(site)
    left = [CHANGES]

    def hook() -> None:
        if left[0]:
            left[0] -= 1
            regenerate(other)

    site.backend.before["delete"] = hook
    own.visit(lambda: site.extension.revoke_user("ada", except_current=True))
    site.backend.before.clear()
    assert left == [0]
    assert other.read() == {}
    assert own.read() == {"_user_id": "ada", "n": 1}


def test_a_log_out_by_an_old_id_ends_the_session_however_often_it_moves(
    config: Config,
) -> None:
    site = Site(config)
    browser = log_in(site)
    late = browser.twin()
    regenerate(browser)
    left = change_before(site, browser, "delete")
    late.visit(lambda: typed_session.destroy())
    assert left == [0]
    assert browser.read() == {}


def test_the_limit_ends_a_session_however_often_it_moves(config: Config) -> None:
    site = Site(config, SESSION_MAX_PER_USER=1)
    oldest, latest = log_in(site), site.browser()
    t.cast(FakeClock, site.clock).advance(1)
    left = change_before(site, oldest, "delete")
    latest.set(_user_id="ada")
    assert left == [0]
    assert oldest.read() == {}
    assert latest.read() == {"_user_id": "ada"}


@pytest.mark.parametrize("server", ["valkey", "redis"])
def test_an_id_that_changes_while_the_index_is_read_is_found(
    make_backend_config: Callable[[str], Config],
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(make_backend_config(server))
    browser = log_in(site)
    backend = t.cast(t.Any, site.backend.backend)
    ask_many = backend._server.ask_many
    left = [CHANGES]

    def ask_late(*args: t.Any) -> t.Any:
        if left[0]:
            left[0] -= 1
            regenerate(browser)
        return ask_many(*args)

    monkeypatch.setattr(backend._server, "ask_many", ask_late)
    assert len(backend.keys_of_user("ada")) == 1
    assert left == [0]


def test_an_id_that_changes_while_the_markers_are_read_is_found(
    make_backend_config: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(make_backend_config("filesystem"))
    browser = log_in(site)
    backend = t.cast(t.Any, site.backend.backend)
    find = backend._users.find
    left = [CHANGES]

    def find_early(user: str) -> list[str]:
        names: list[str] = find(user)
        if left[0]:
            left[0] -= 1
            regenerate(browser)
        return names

    monkeypatch.setattr(backend._users, "find", find_early)
    assert len(backend.keys_of_user("ada")) == 1
    assert left == [0]


@pytest.mark.parametrize("end", ENDS)
def test_a_client_that_does_nothing_but_change_its_id_is_ended(
    config: Config, end: str
) -> None:
    site = Site(config)
    browser = log_in(site)
    handle = handle_of(browser)
    is_over, changed = threading.Event(), threading.Event()
    if end == "revoke":
        regenerate(browser)

    def change() -> None:
        while not is_over.is_set():
            regenerate(browser)
            changed.set()

    thief = threading.Thread(target=change)
    thief.start()
    try:
        assert changed.wait(20)
        if end == "revoke":
            handle = handle_of(browser)
        operate(site, lambda state: ENDS[end](state, handle))
    finally:
        is_over.set()
        thief.join()
    assert browser.read() == {}


class Places:
    """Draws ids whose keys lie at the beginning or at the end of the store."""

    def __init__(self) -> None:
        self.digits = "7"

    def draw(self) -> str:
        while key_of(id := generate_id(), "")[0] not in self.digits:
            pass
        return id


@pytest.mark.parametrize("name", INDEXED)
def test_a_session_that_moves_to_where_the_listing_has_been_is_ended(
    name: str,
    make_backend_config: Callable[[str], Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flask_serversession.backends.sqlalchemy.backend.PAGE", 1)
    monkeypatch.setattr("flask_serversession.backends.sqlalchemy.statements.PAGE", 1)
    places = Places()
    site = Site(make_backend_config(name), SESSION_ID_GENERATOR=places.draw)
    own, thief = site.browser(), site.browser()
    own.set(n=1)
    places.digits = "ef"
    thief.set(n=2)
    backend = t.cast(t.Any, site.backend.backend)
    left = [CHANGES]

    def move(digits: str) -> None:
        if left[0]:
            left[0] -= 1
            places.digits = digits
            regenerate(thief)

    def listed(method: str) -> Callable[[], t.Any]:
        function = getattr(backend, method)

        def go() -> t.Any:
            move("ef")
            for item in function():
                yield item
                move("01")

        return go

    if name in ("valkey", "redis"):
        # Keys have no order there, but they are listed before they are read.
        ask_node = backend._server.ask_node

        def ask_late(*args: t.Any) -> t.Any:
            move("01")
            return ask_node(*args)

        monkeypatch.setattr(backend._server, "ask_node", ask_late)
    else:
        for method in ("iterate", "iterate_all"):
            monkeypatch.setattr(backend, method, listed(method))
    own.visit(lambda: site.extension.revoke_all(except_current=True))
    left[0] = 0
    assert thief.read() == {}
    assert own.read() == {"n": 1}


def test_new_visitors_do_not_keep_the_end_of_all_sessions_from_coming() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    log_in(site)

    def visit() -> None:
        t.cast(FakeClock, site.clock).advance(1)
        site.browser().set(n=1)

    site.backend.before["iterate"] = visit
    assert operate(site, lambda state: revoke_all(state, False)) <= 2


@pytest.mark.parametrize("end", ENDS)
def test_what_goes_on_moving_is_never_taken_for_ended(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "_MAX_STEPS", 20)
    site = Site({"SESSION_BACKEND": "memory"})
    browser = log_in(site)
    handle = handle_of(browser)
    change_before(site, browser, "delete")
    with pytest.raises(BackendUnavailableError, match="20 changes"):
        operate(site, lambda state: ENDS[end](state, handle))
    site.backend.before.clear()
    assert browser.visit(lambda: session["_user_id"]).text == "ada"
