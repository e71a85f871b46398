"""What becomes of two versions of one session, under each ``SESSION_CONFLICT``."""

from __future__ import annotations

import itertools
import json
import typing as t

import pytest
from flask import session as flask_session

from flask_serversession import ConflictError
from flask_serversession import session
from flask_serversession import session_lost
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.testing import FakeClock

from .site import Site
from .site import advance
from .site import cookie_of
from .site import start

POLICIES = ("merge", "overwrite", "raise")


class Encrypting:
    """Writes other bytes each time, as a cipher does."""

    def __init__(self) -> None:
        self._nonces = itertools.count()

    def dumps(self, data: dict[str, t.Any]) -> bytes:
        return b"%d;%s" % (next(self._nonces), json.dumps(data).encode())

    def loads(self, data: bytes) -> dict[str, t.Any]:
        return t.cast("dict[str, t.Any]", json.loads(data.partition(b";")[2]))


def make_site(**settings: t.Any) -> Site:
    clock = FakeClock()
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


def look() -> None:
    assert flask_session["cart"] == ["pen"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_renewal_takes_along_what_another_request_has_stored(policy: str) -> None:
    site = make_site(SESSION_CONFLICT=policy, SESSION_RENEWAL_INTERVAL=60)
    browser = start(site, cart=["pen"])
    advance(site, 50)
    other = browser.twin()
    was = browser.cookie

    def read() -> None:
        look()
        other.set(ink=1)
        advance(site, 60)

    assert cookie_of(browser.visit(read), site) == "set"
    assert browser.cookie != was
    assert browser.read() == {"cart": ["pen"], "ink": 1}
    assert site.backend.count() == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resave_that_meets_another_write_writes_nothing(policy: str) -> None:
    site = make_site(SESSION_CONFLICT=policy, SESSION_RESAVE=True)
    browser = start(site, cart=["pen"])
    other = browser.twin()

    def read() -> None:
        look()
        other.set(ink=1)

    with site.backend.counting() as calls:
        assert cookie_of(browser.visit(read), site) == "none"
    assert calls["replace"] == 2  # the other's, and one that was refused
    assert browser.read() == {"cart": ["pen"], "ink": 1}


@pytest.mark.parametrize("policy", ["overwrite", "raise"])
def test_a_new_id_alone_is_in_conflict_with_nothing(policy: str) -> None:
    site = make_site(SESSION_CONFLICT=policy)
    browser = start(site, cart=["pen"])
    other = browser.twin()

    def regenerate() -> None:
        session.regenerate()
        other.set(ink=1)

    assert browser.visit(regenerate).status_code == 200
    assert browser.read() == {"cart": ["pen"], "ink": 1}


@pytest.mark.parametrize("policy", ["overwrite", "raise"])
def test_a_new_id_and_a_change_are_in_conflict(policy: str) -> None:
    site = make_site(SESSION_CONFLICT=policy)
    browser = start(site, cart=["pen"])
    other = browser.twin()

    def regenerate() -> None:
        session.regenerate()
        flask_session["cart"].append("ruler")
        other.set(ink=1)

    if policy == "raise":
        with pytest.raises(ConflictError):
            browser.visit(regenerate)
        assert browser.read() == {"cart": ["pen"], "ink": 1}
    else:
        browser.visit(regenerate)
        assert browser.read() == {"cart": ["pen", "ruler"]}
    assert site.backend.count() == 1


def test_a_renewal_that_is_always_overtaken_is_left_to_the_next_request() -> None:
    site = make_site(SESSION_RENEWAL_INTERVAL=60)
    browser = start(site, cart=["pen"])
    advance(site, 70)
    core = site.state.interface.core
    inner = site.backend.backend

    def overtake() -> None:
        key = core.identify(browser.id).key
        record = inner.load(key)
        assert record is not None
        inner.replace(key, record, record.version)

    site.backend.before["replace"] = overtake
    lost: list[object] = []
    with session_lost.connected_to(lambda *_, **__: lost.append(1), site.app):
        response = browser.visit(look)
    site.backend.before.clear()
    assert (response.status_code, cookie_of(response, site)) == (200, "none")
    assert not lost
    assert inner.count() == 1  # what was begun is taken back
    assert cookie_of(browser.visit(look), site) == "set"

    site.backend.before["replace"] = overtake
    with pytest.raises(ConflictError):
        browser.set(n=1)


@pytest.mark.parametrize("serializer", ["msgpack", "json", Encrypting()])
def test_changes_of_different_keys_survive_with_every_serializer(
    serializer: t.Any,
) -> None:
    site = make_site(SESSION_SERIALIZER=serializer)
    browser = start(site, a="old", b="old", flashes=[], one=1)
    other = browser.twin()

    def change() -> None:
        flask_session["a"] = "new"
        flask_session["flashes"].append("mine")
        other.visit(
            lambda: (
                flask_session.update(b="new", one=True),
                flask_session["flashes"].append("theirs"),
            )
        )

    browser.visit(change)
    found = browser.read()
    assert found == {"a": "new", "b": "new", "flashes": ["theirs", "mine"], "one": 1}
    assert found["one"] is True


def test_what_was_only_read_is_not_saved_with_any_serializer() -> None:
    site = make_site(SESSION_SERIALIZER=Encrypting())
    browser = start(site, cart=["pen"])
    assert browser.costs(look) == ({"load": 1}, "none")
    costs = browser.costs(lambda: flask_session["cart"].append("ink"))
    assert costs == ({"load": 1, "replace": 1}, "none")


def test_atomic_that_fails_saves_nothing_with_any_serializer() -> None:
    site = make_site(SESSION_SERIALIZER=Encrypting())
    browser = start(site, cart=["pen"])

    def fail(own: t.Any) -> None:
        own["cart"].append("ink")
        raise ValueError("on purpose")

    def act() -> None:
        with pytest.raises(ValueError, match="on purpose"):
            session.atomic(fail)

    assert browser.costs(act) == ({"load": 2}, "none")
    assert browser.read() == {"cart": ["pen"]}
