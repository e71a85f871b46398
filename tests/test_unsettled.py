"""A change of the id that fails or is interrupted at any step leaves one session.

Whether the step was done is never known: it is forced both ways.
"""

from __future__ import annotations

import collections
import contextlib
import typing as t
from collections.abc import Callable
from collections.abc import Generator

import pytest
from flask import session
from werkzeug.test import TestResponse

from flask_serversession import BackendUnavailableError
from flask_serversession import session as typed_session
from flask_serversession.leftovers import Leftovers
from flask_serversession.operator import sessions_of
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .site import Browser
from .site import Site

OPERATIONS = ("load", "create", "replace", "delete", "touch", "keys_of_user")
USER = {"_user_id": "ada", "n": 1}


class InterruptedForTest(BaseException):
    """As KeyboardInterrupt, and the time-out of gevent, it is no ``Exception``."""


def failure() -> BackendUnavailableError:
    return BackendUnavailableError("lost", backend="memory", operation="a step")


@pytest.fixture(params=["memory", "filesystem", "valkey", "sqlite"])
def site(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> Site:
    return Site(make_backend_config(request.param), SESSION_RENEWAL_INTERVAL=3600)


@contextlib.contextmanager
def stopping(
    backend: CountingBackend, number: int, when: str, error: Callable[[], BaseException]
) -> Generator[list[str], None, None]:
    """Raise at the step of that number; give what was stopped."""
    steps = collections.Counter[str]()
    stopped: list[str] = []

    def step_of(operation: str) -> Callable[[], None]:
        def step() -> None:
            steps["all"] += 1
            if steps["all"] == number:
                stopped.append(operation)
                raise error()

        return step

    hooks: dict[str, t.Any] = getattr(backend, when)
    hooks.update({operation: step_of(operation) for operation in OPERATIONS})
    try:
        yield stopped
    finally:
        hooks.clear()


def regenerate_and_save() -> None:
    typed_session.regenerate()
    typed_session.save()


def say_goodbye() -> None:
    session.clear()
    session["goodbye"] = True


def confirm() -> None:
    session["n"] = 2
    typed_session.mark_authenticated()


ACTIONS: dict[str, Callable[[], object]] = {
    "regenerate": lambda: typed_session.regenerate(),
    "regenerate and save": regenerate_and_save,
    "confirm": confirm,
    "renew": lambda: session.get("n"),
    "change": lambda: session.update(n=2),
    "log in": lambda: session.update(USER),
    "log out": lambda: typed_session.destroy(),
    "clear": lambda: session.clear(),
    "say goodbye": say_goodbye,
    "become another": lambda: session.update(_user_id="eve"),
}
ERRORS: dict[str, Callable[[], BaseException]] = {
    "failed": failure,
    "interrupted": InterruptedForTest,
}


def try_to(browser: Browser, action: Callable[[], object]) -> TestResponse | None:
    with contextlib.suppress(InterruptedForTest):
        return browser.visit(action)
    return None


def live(site: Site) -> int:
    return sum(1 for _ in site.backend.backend.iterate())


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ACTIONS)
def test_whatever_stops_at_any_step_leaves_one_session_and_loses_none(
    site: Site, name: str, when: str, error: str
) -> None:
    for number in range(1, 20):
        browser = site.browser()
        browser.set(**({"n": 1} if name == "log in" else USER))
        old = browser.twin()
        if name == "renew":
            t.cast(FakeClock, site.clock).advance(4000)
        with stopping(site.backend, number, when, ERRORS[error]) as stopped:
            response = try_to(browser, ACTIONS[name])
        if not stopped:
            assert number > 1
            break
        if response is not None:
            is_read_only = stopped[0] == "touch"
            assert response.status_code == (200 if is_read_only else 503)
        found = browser.read()
        if name in ("regenerate", "regenerate and save", "confirm", "renew", "change"):
            assert found.get("_user_id") == "ada"
        elif name == "log in":
            assert found.get("n") == 1
        assert live(site) == bool(found)
        if browser.cookie is not None and browser.id != old.id:
            # An id that was renewed leads to the session, as long as there is one.
            assert old.read() == (found if name == "renew" else {})
        browser.visit(lambda: typed_session.destroy())
        assert browser.read() == old.read() == {}
        assert live(site) == 0


@pytest.mark.parametrize("error", ERRORS)
def test_a_log_out_after_a_change_of_the_id_that_failed_ends_both(
    site: Site, error: str
) -> None:
    browser = site.browser()
    browser.set(**USER)
    old = browser.twin()
    with stopping(site.backend, 3, "before", ERRORS[error]) as stopped:
        try_to(browser, lambda: typed_session.regenerate())
    assert stopped == ["replace"]
    assert len(sessions_of_ada(site)) == 1
    # Without a look at it.
    assert browser.visit(lambda: session.clear()).status_code == 200
    assert old.read() == browser.read() == {}
    assert live(site) == 0


def sessions_of_ada(site: Site) -> list[t.Any]:
    with site.app.app_context():
        return sessions_of(site.state, "ada")


def test_the_cookie_tells_until_what_is_left_has_gone(site: Site) -> None:
    browser = site.browser()
    browser.set(**USER)
    old = browser.twin()
    with stopping(site.backend, 3, "before", failure):
        browser.visit(lambda: typed_session.regenerate())
    assert browser.ignore().status_code == 200
    with site.backend.counting() as calls:
        assert browser.read() == USER
    assert calls == {"load": 2, "replace": 1}
    assert old.read() == {}
    with site.backend.counting() as calls:
        assert browser.read() == USER
    assert calls == {"load": 1}


def test_while_the_backend_is_down_the_log_out_of_both_is_no_success(
    site: Site,
) -> None:
    browser = site.browser()
    browser.set(**USER)
    with stopping(site.backend, 3, "before", failure):
        browser.visit(lambda: typed_session.regenerate())
    with site.backend.failing("replace"):
        response = browser.visit(lambda: typed_session.destroy())
    assert response.status_code == 503
    assert browser.read() == USER


def test_who_moved_on_by_the_old_id_is_ended(site: Site) -> None:
    browser = site.browser()
    browser.set(**USER)
    thief = browser.twin()
    with stopping(site.backend, 3, "before", failure):
        browser.visit(lambda: typed_session.regenerate())
    thief.visit(lambda: typed_session.regenerate())
    assert browser.read() == USER
    assert thief.read() == {}


def test_an_id_that_is_ended_while_its_change_is_undone_stays_ended(
    site: Site,
) -> None:
    browser = site.browser()
    browser.set(**USER)

    def revoke() -> None:
        del site.backend.after["replace"]
        site.extension.revoke_user("ada")
        raise InterruptedForTest

    site.backend.after["replace"] = revoke
    assert try_to(browser, lambda: typed_session.regenerate()) is None
    assert live(site) == 0
    assert browser.read() == {}


def test_a_view_that_catches_the_interruption_goes_on(site: Site) -> None:
    browser = site.browser()
    browser.set(**USER)
    old = browser.twin()

    def view() -> None:
        session["n"] = 2
        typed_session.regenerate()
        with (
            stopping(site.backend, 2, "after", InterruptedForTest),
            pytest.raises(InterruptedForTest),
        ):
            typed_session.save()

    assert browser.visit(view).status_code == 200
    assert browser.read() == {**USER, "n": 2}
    assert live(site) == 1
    assert old.read() == {}


def test_what_is_left_over_is_deleted_once_the_engine_answers(site: Site) -> None:
    leftovers = Leftovers(site.backend)
    browser = site.browser()
    browser.set(**USER)
    (key, _), *_ = site.backend.iterate()
    leftovers.add(key)
    with site.backend.failing("delete"):
        leftovers.remove()
    assert leftovers.keys
    leftovers.remove()
    assert not leftovers.keys
    assert live(site) == 0
