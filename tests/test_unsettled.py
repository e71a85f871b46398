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


def fail_to_bury(browser: Browser, action: Callable[[], object]) -> Browser:
    """Let the last step of a change of the id fail; give who has the old one."""
    old = browser.twin()
    with stopping(browser.site.backend, 3, "before", failure) as stopped:
        assert browser.visit(action).status_code == 503
    assert stopped == ["replace"]
    assert browser.id != old.id
    return old


@pytest.mark.parametrize("name", ["regenerate", "renew", "become another"])
def test_what_was_changed_under_the_old_id_since_is_kept(site: Site, name: str) -> None:
    browser = site.browser()
    browser.set(**USER, list=["old"])
    if name == "renew":
        t.cast(FakeClock, site.clock).advance(4000)
    old = fail_to_bury(browser, ACTIONS[name])

    def change() -> None:
        typed_session.passive()
        session["list"].append("new")
        typed_session.meta["device"] = "phone"

    old.visit(change)
    assert browser.read() == {**USER, "list": ["old", "new"]}
    assert browser.visit(lambda: typed_session.meta["device"]).text == "phone"
    assert live(site) == 1
    assert browser.read() == {**USER, "list": ["old", "new"]}
    t.cast(FakeClock, site.clock).advance(11)
    assert old.read() == {}


def test_a_change_under_the_old_id_while_that_is_buried_is_kept(site: Site) -> None:
    browser = site.browser()
    browser.set(**USER)
    old = fail_to_bury(browser, ACTIONS["regenerate"])

    def change() -> None:
        del site.backend.before["replace"]
        old.set(n=2)

    site.backend.before["replace"] = change
    assert browser.read() == {**USER, "n": 2}
    assert live(site) == 1
    assert old.read() == {}


def test_two_requests_that_settle_a_change_at_once_lose_nothing(site: Site) -> None:
    browser = site.browser()
    browser.set(**USER)
    old = fail_to_bury(browser, ACTIONS["regenerate"])
    old.set(n=2)
    twin = browser.twin()

    def settle() -> None:
        del site.backend.before["replace"]
        twin.set(more=1)

    site.backend.before["replace"] = settle
    browser.set(another=1)
    assert browser.read() == {**USER, "n": 2, "more": 1, "another": 1}
    assert live(site) == 1


def test_who_has_logged_out_by_the_old_id_is_logged_out(site: Site) -> None:
    browser = site.browser()
    browser.set(**USER)
    old = fail_to_bury(browser, ACTIONS["regenerate"])
    old.visit(lambda: typed_session.destroy())
    assert browser.read() == {}
    assert live(site) == 0


@pytest.mark.parametrize("name", ["become another", "say goodbye"])
def test_who_is_another_under_the_old_id_is_not_the_former_under_the_new_one(
    site: Site, name: str
) -> None:
    browser = site.browser()
    browser.set(**USER)
    old = fail_to_bury(browser, ACTIONS["regenerate"])
    old.visit(ACTIONS[name])
    assert browser.read() == {}
    assert live(site) == 1
    assert old.read() != {}


def test_what_was_renewed_under_the_old_id_goes_on_under_the_new_one(
    site: Site,
) -> None:
    browser = site.browser()
    browser.set(**USER)
    t.cast(FakeClock, site.clock).advance(4000)
    old = fail_to_bury(browser, ACTIONS["renew"])
    old.set(n=2)  # renews it too
    assert browser.read() == {**USER, "n": 2}
    assert old.read() == {**USER, "n": 2}  # for as long as it is renewed
    assert live(site) == 1
    t.cast(FakeClock, site.clock).advance(11)
    assert old.read() == {}
    assert browser.read() == {**USER, "n": 2}


def test_a_tombstone_that_was_written_and_has_expired_ends_nothing(site: Site) -> None:
    browser = site.browser()
    browser.set(**USER)
    with stopping(site.backend, 3, "after", failure):
        browser.visit(ACTIONS["regenerate"])
    t.cast(FakeClock, site.clock).advance(60)
    assert browser.read() == USER


def test_the_new_user_goes_on_where_the_answer_to_the_last_step_was_lost(
    site: Site,
) -> None:
    browser = site.browser()
    browser.set(**USER)
    with stopping(site.backend, 3, "after", failure):
        assert browser.visit(ACTIONS["become another"]).status_code == 503
    assert browser.read() == {**USER, "_user_id": "eve"}
    assert live(site) == 1


def test_a_change_that_comes_while_an_interrupted_renewal_is_undone_is_kept(
    site: Site,
) -> None:
    browser = site.browser()
    browser.set(**USER)
    late = browser.twin()
    t.cast(FakeClock, site.clock).advance(4000)
    hooks = site.backend.after

    def interrupt() -> None:
        def change() -> None:
            del site.backend.before["replace"]
            late.set(n=2)

        del hooks["replace"]
        site.backend.before["replace"] = change
        late.set(more=1)
        raise InterruptedForTest

    hooks["replace"] = interrupt
    assert try_to(browser, ACTIONS["renew"]) is None
    t.cast(FakeClock, site.clock).advance(11)
    assert browser.read() == {**USER, "n": 2, "more": 1}
    assert live(site) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_saved_again_after_an_interruption_is_there_once(
    site: Site, when: str
) -> None:
    browser = site.browser()
    browser.set(list=["old"])

    def view() -> None:
        session["list"].append("new")
        with (
            stopping(site.backend, 1, when, InterruptedForTest),
            pytest.raises(InterruptedForTest),
        ):
            typed_session.save()
        session["list"].append("newer")

    browser.visit(view)
    assert browser.read() == {"list": ["old", "new", "newer"]}


def test_what_a_process_that_was_killed_has_left_is_no_second_log_in(
    make_backend_config: Callable[[str], Config],
) -> None:
    for name in ("memory", "filesystem", "valkey", "sqlite"):
        site = Site(make_backend_config(name), SESSION_MAX_PER_USER=2)
        browser = site.browser()
        browser.set(**USER)
        with contextlib.ExitStack() as stack:

            def kill(site: Site = site, stack: contextlib.ExitStack = stack) -> None:
                stack.enter_context(site.backend.failing())
                raise InterruptedForTest

            site.backend.before["replace"] = kill
            assert try_to(browser.twin(), ACTIONS["regenerate"]) is None
        site.backend.before.clear()
        core = site.state.interface.core
        core.leftovers = Leftovers(site.backend)  # which has died with it
        assert live(site) == 2
        assert len(sessions_of_ada(site)) == 1
        t.cast(FakeClock, site.clock).advance(1)
        second = site.browser()
        second.set(**USER)
        assert browser.read() == second.read() == USER
        assert len(sessions_of_ada(site)) == 2
        with site.app.app_context():
            site.extension.revoke_user("ada")
        assert live(site) == 0
        assert browser.read() == second.read() == {}


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
