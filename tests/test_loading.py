"""Two threads of one request look at its session at once."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Callable

import pytest
from flask import copy_current_request_context
from flask import session as flask_session

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import session
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.testing import FakeClock

from .site import Action
from .site import Browser
from .site import Site
from .site import cookie_of

PATIENCE = 10
PEN = ["pen"]


def make_site(**settings: t.Any) -> Site:
    clock = FakeClock()
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


class Reader:
    """A thread beside the view that only reads, and whose load comes back late."""

    def __init__(self, site: Site, late: Callable[[], None] = lambda: None) -> None:
        self._site = site
        self._late = late
        self._is_asking = threading.Event()
        self._may_go_on = threading.Event()
        self.found: list[t.Any] = []

    def __enter__(self) -> Reader:
        @copy_current_request_context
        def read() -> None:
            try:
                self.found.append(dict(flask_session))
            except BackendUnavailableError:
                self.found.append("unavailable")

        self._thread = threading.Thread(target=read)
        name = self._thread.name

        def park() -> None:
            if threading.current_thread().name == name:
                self._is_asking.set()
                assert self._may_go_on.wait(PATIENCE)
                self._late()

        # It has its answer already, unless what comes late is another one.
        self._site.backend.after["load"] = park
        self._thread.start()
        assert self._is_asking.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._may_go_on.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._site.backend.after.clear()


def start(site: Site) -> Browser:
    browser = site.browser()
    browser.set(n=1, cart=["pen"])
    return browser


def fail() -> None:
    raise BackendUnavailableError("late", backend="memory", operation="load")


def be_newer() -> None:
    raise RecordError("late", "newer")


def be_damaged() -> None:
    raise RecordError("late", "damaged")


LATE = {"as it was": lambda: None, "fails": fail, "newer": be_newer, "bad": be_damaged}


def change() -> None:
    flask_session["n"] = 2
    flask_session["cart"].append("ink")


@pytest.mark.parametrize("late", LATE.values(), ids=[*LATE])
def test_whoever_looks_beside_the_view_undoes_nothing(late: Callable[[], None]) -> None:
    site = make_site()
    browser = start(site)

    def view() -> None:
        with Reader(site, late) as reader:
            change()
        assert reader.found == [{"n": 2, "cart": ["pen", "ink"]}]
        assert dict(flask_session) == reader.found[0]

    assert cookie_of(browser.visit(view), site) == "set"
    assert browser.read() == {"n": 2, "cart": ["pen", "ink"]}


@pytest.mark.parametrize(
    ("action", "content"),
    [
        (lambda: (change(), session.save()), {"n": 2, "cart": ["pen", "ink"]}),
        (
            lambda: session.atomic(lambda own: own.update(n=2)),
            {"n": 2, "cart": ["pen"]},
        ),
        (lambda: (change(), session.regenerate()), {"n": 2, "cart": ["pen", "ink"]}),
        (lambda: flask_session.update(_user_id="ada"), {"n": 1, "cart": ["pen"]}),
        (lambda: session.destroy(), {}),
        (lambda: (flask_session["n"], flask_session.clear()), {}),
        (lambda: flask_session.clear(), {}),
        (lambda: (session.destroy(), flask_session.update(m=1)), {"m": 1}),
        (lambda: (flask_session.clear(), flask_session.update(m=1)), {"m": 1}),
    ],
)
def test_nothing_that_the_view_does_meanwhile_is_undone(
    action: Action, content: dict[str, t.Any]
) -> None:
    site = make_site()
    browser = start(site)

    def view() -> None:
        with Reader(site):
            action()

    browser.visit(view)
    found = browser.read()
    found.pop("_user_id", None)
    assert found == content
    assert site.backend.count() == bool(content)


def test_of_several_cookies_both_find_the_same() -> None:
    site = make_site()
    gone, browser = start(site), start(site)
    old = gone.cookie
    gone.visit(lambda: session.destroy())
    name = site.cookie_name()
    header = f"{name}={old}; {name}={browser.cookie}"

    def view() -> None:
        with Reader(site) as reader:
            change()
        assert reader.found == [{"n": 2, "cart": ["pen", "ink"]}]

    site.app.test_client(use_cookies=False).get(
        site.add(view), headers={"Cookie": header}
    )
    assert browser.read() == {"n": 2, "cart": ["pen", "ink"]}


def test_a_new_session_is_begun_once() -> None:
    site = make_site()
    browser = site.browser()

    def view() -> None:
        @copy_current_request_context
        def read() -> None:
            for _ in range(1000):
                flask_session.get("n")

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1000):
            flask_session[str(number)] = number
        for thread in threads:
            thread.join(PATIENCE)

    browser.visit(view)
    assert len(browser.read()) == 1000
