"""The session of the current request is found without a look at it."""

from __future__ import annotations

import asyncio
import inspect
import typing as t

import pytest
from flask import session
from flask.sessions import SecureCookieSession

from flask_serversession.opened import accessed_unit
from flask_serversession.opened import is_visitors
from flask_serversession.opened import opened_session
from flask_serversession.opened import passive
from flask_serversession.sessions import unit_of

from .site import Site


@pytest.fixture
def site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


def test_what_is_known_is_known_of_who_has_looked() -> None:
    assert accessed_unit() is None
    assert opened_session() is None


def test_only_a_session_that_was_looked_at_is_accessed(site: Site) -> None:
    found: list[t.Any] = []

    def view() -> None:
        found.append(accessed_unit())
        session.get("n")
        opened = opened_session()
        assert opened is not None
        found.append(accessed_unit())
        assert found == [None, unit_of(opened)]

    site.browser().visit(view)
    assert len(found) == 2


def test_a_second_session_of_a_request_is_not_the_visitors(site: Site) -> None:
    with site.app.test_request_context():
        second = opened_session()
    assert second is not None
    # Outside of a request, there is no other.
    assert is_visitors(second)

    def view() -> None:
        first = opened_session()
        assert first is not None
        assert is_visitors(first)
        assert not is_visitors(second)

    assert site.browser().visit(view).status_code == 200


def test_beside_one_of_another_kind_it_is_the_visitors(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    interface = site.app.session_interface
    second = t.cast("t.Any", object())
    monkeypatch.setattr(
        interface, "open_session", lambda app, request: SecureCookieSession()
    )
    monkeypatch.setattr(interface, "save_session", lambda *_: None)
    with site.app.test_request_context():
        assert is_visitors(second)


def test_a_passive_view_gets_its_arguments_and_keeps_its_name(site: Site) -> None:
    was_passive: list[bool] = []

    def note() -> None:
        opened = opened_session()
        assert opened is not None
        was_passive.append(unit_of(opened).is_passive)

    @passive
    def view(a: int, b: int) -> int:
        """Add."""
        note()
        return a + b

    @passive
    async def wait(a: int, b: int) -> int:
        """Add later."""
        note()
        return a + b

    assert (view.__name__, view.__doc__) == ("view", "Add.")
    assert (wait.__name__, wait.__doc__) == ("wait", "Add later.")
    assert inspect.iscoroutinefunction(wait)
    assert site.browser().visit(lambda: view(1, b=2)).text == "3"
    assert site.browser().visit(lambda: asyncio.run(wait(1, b=2))).text == "3"
    assert was_passive == [True, True]


def test_without_a_secret_a_passive_view_has_nothing_to_do() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SECRET_KEY=None)
    assert site.browser().visit(passive(lambda: "fine")).text == "fine"
