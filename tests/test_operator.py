"""Seeing and ending sessions from code, limits, tracking and cleanup."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import os
import threading
import types
import typing as t
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask import current_app
from flask import session

from flask_serversession import BackendUnavailableError
from flask_serversession import Capability
from flask_serversession import ConfigurationError
from flask_serversession import NotSupportedError
from flask_serversession import RecordError
from flask_serversession import ServerSession
from flask_serversession import ServerSessionError
from flask_serversession import SessionInfo
from flask_serversession import session as typed_session
from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.cleanup import Cleanup
from flask_serversession.config import SessionConfig
from flask_serversession.signals import session_destroyed
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock
from flask_serversession.users import stored_name_of

from .backend_configs import BACKEND_CONFIGS
from .backend_configs import Config
from .benchmarks.cleanup import simulate
from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of
from .site import handle_of
from .site import once

MakeSite = Callable[..., Site]
T = t.TypeVar("T")


#: Those that keep an index of users, and those that need to be cleaned up.
INDEXED = [name for name in BACKEND_CONFIGS if not name.startswith("cachelib")]
CLEANED = ["filesystem", "sqlite", "postgresql", "mariadb"]
OTHERS = [name for name in BACKEND_CONFIGS if name not in CLEANED]
UNINDEXED = [name for name in BACKEND_CONFIGS if name not in INDEXED]


@pytest.fixture
def make_any(backend_config: Config) -> MakeSite:
    """Make a site on each backend in turn."""

    def make(**settings: t.Any) -> Site:
        return Site(backend_config, **settings)

    return make


@pytest.fixture(params=INDEXED)
def make_site(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> MakeSite:
    """Make a site on each backend in turn that keeps an index of users."""
    config = make_backend_config(request.param)

    def make(**settings: t.Any) -> Site:
        return Site(config, **settings)

    return make


@pytest.fixture(params=CLEANED)
def make_cleaned(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> MakeSite:
    """Make a site on each backend in turn that does not expire by itself."""
    config = make_backend_config(request.param)

    def make(**settings: t.Any) -> Site:
        settings = {
            "SESSION_IDLE_TIMEOUT": 600,
            "SESSION_CLEANUP_BATCH": 2,
            **settings,
        }
        return Site(config, **settings)

    return make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


def has(site: Site, capability: Capability) -> bool:
    return capability in site.backend.capabilities


@pytest.mark.parametrize("name", BACKEND_CONFIGS)
def test_the_tests_run_on_the_backends_that_they_are_for(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    site = Site(make_backend_config(name))
    assert has(site, Capability.USER_INDEX) is (name in INDEXED)
    assert has(site, Capability.EXPIRES) is (name not in CLEANED)
    assert has(site, Capability.PRUNE) is (name in [*CLEANED, "memory"])


def asked(site: Site, function: Callable[[ServerSession], T]) -> T:
    """Ask as a script does, which has an application but no request."""
    with site.app.app_context():
        return function(site.extension)


def sessions_of(site: Site, user: object) -> list[SessionInfo]:
    return asked(site, lambda operator: operator.sessions_of(user))


def handles_of(site: Site, user: object) -> list[str]:
    return [info.handle for info in sessions_of(site, user)]


def log_in(site: Site, user: object = "ada", **options: t.Any) -> Browser:
    """Give a browser that has a session of its own and then logs in."""
    browser = site.browser()
    browser.set(n=1)
    browser.visit(lambda: session.update(_user_id=user), **options)
    return browser


def is_live(browser: Browser) -> bool:
    return browser.read().get("n") == 1


@contextlib.contextmanager
def destroyed_by(site: Site) -> Iterator[list[tuple[str | None, str | None]]]:
    """Collect the handle and the user that ``session_destroyed`` sends."""
    sent: list[tuple[str | None, str | None]] = []

    def receive(
        sender: object, handle: str | None, user: str | None, reason: str
    ) -> None:
        sent.append((handle, user))

    with session_destroyed.connected_to(receive, site.app):
        yield sent


# What a backend without the index says


@pytest.mark.parametrize("name", UNINDEXED)
@pytest.mark.parametrize(
    "call",
    [
        lambda operator: operator.sessions_of("ada"),
        lambda operator: operator.sessions_of(None),
        lambda operator: operator.revoke_user("ada"),
    ],
)
def test_a_backend_without_an_index_of_users_says_so(
    make_backend_config: Callable[[str], Config],
    name: str,
    call: Callable[[ServerSession], t.Any],
) -> None:
    site = Site(make_backend_config(name))
    with pytest.raises(NotSupportedError) as caught:
        asked(site, call)
    assert str(caught.value) == (
        f"The {site.backend.name!r} backend cannot list the sessions of a user"
        " ('keys_of_user'). Choose another 'SESSION_BACKEND' if you need it."
    )
    assert caught.value.backend == site.backend.name
    assert caught.value.operation == "keys_of_user"


@pytest.mark.parametrize(
    ("capability", "operation", "call"),
    [
        (Capability.COUNT, "count", lambda operator: operator.count()),
        (Capability.ITERATE, "iterate", lambda operator: list(operator.sessions())),
    ],
)
def test_what_else_a_backend_lacks_is_named_too(
    make_any: MakeSite,
    capability: Capability,
    operation: str,
    call: Callable[[ServerSession], t.Any],
) -> None:
    site = make_any()
    if capability in site.backend.capabilities:
        asked(site, call)
        return
    with pytest.raises(NotSupportedError, match=rf"\('{operation}'\)"):
        asked(site, call)


def test_a_single_session_can_be_found_and_revoked_on_every_backend(
    make_any: MakeSite,
) -> None:
    site = make_any()
    browser = log_in(site)
    handle = handle_of(browser)
    info = asked(site, lambda operator: operator.find(handle))
    assert info is not None
    assert (info.handle, info.user, info.current) == (handle, "ada", False)
    assert asked(site, lambda operator: operator.revoke(handle)) is True
    assert asked(site, lambda operator: operator.find(handle)) is None
    assert asked(site, lambda operator: operator.revoke(handle)) is False
    assert not is_live(browser)


def test_without_an_application_there_is_no_answer() -> None:
    with pytest.raises(RuntimeError, match="application context"):
        ServerSession().count()
    with Flask("other").app_context():
        with pytest.raises(ServerSessionError) as caught:
            ServerSession().count()
        assert str(caught.value) == (
            "ServerSession is not initialized for the application 'other'. Call"
            " init_app(app) first."
        )


# The index follows what happens to sessions


def test_logging_in_adds_the_session(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    assert sessions_of(site, "ada") == []
    browser.visit(lambda: session.update(_user_id="ada"))
    assert handles_of(site, "ada") == [handle_of(browser)]


def test_logging_in_without_a_session_adds_the_new_one(site: Site) -> None:
    browser = site.browser()
    browser.set(_user_id="ada")
    assert handles_of(site, "ada") == [handle_of(browser)]


def test_logging_in_without_a_new_id_adds_the_session(make_site: MakeSite) -> None:
    site = make_site(SESSION_REGENERATE_ON_LOGIN=False)
    browser = site.browser()
    browser.set(n=1)
    before = browser.id
    browser.set(_user_id="ada")
    assert browser.id == before
    assert handles_of(site, "ada") == [handle_of(browser)]


def test_a_new_id_moves_the_session(site: Site) -> None:
    browser = log_in(site)
    before = handle_of(browser)
    browser.visit(lambda: typed_session.regenerate())
    assert handle_of(browser) != before
    assert handles_of(site, "ada") == [handle_of(browser)]


def test_another_user_moves_the_session(site: Site) -> None:
    browser = log_in(site)
    browser.set(_user_id="bob")
    assert sessions_of(site, "ada") == []
    assert handles_of(site, "bob") == [handle_of(browser)]


def leave_anonymous() -> None:
    session.pop("_user_id")


def clear_and_destroy() -> None:
    session.clear()
    typed_session.destroy()


def empty() -> None:
    for key in list(session):
        session.pop(key)


@pytest.mark.parametrize(
    "log_out",
    [leave_anonymous, clear_and_destroy, lambda: session.clear(), empty],
    ids=["user removed", "destroyed", "cleared", "emptied"],
)
def test_logging_out_removes_the_session(
    site: Site, log_out: Callable[[], t.Any]
) -> None:
    browser, other = log_in(site), log_in(site)
    browser.visit(log_out)
    assert handles_of(site, "ada") == [handle_of(other)]


def test_expiry_removes_the_session(make_site: MakeSite) -> None:
    site = make_site(SESSION_IDLE_TIMEOUT=600)
    log_in(site)
    advance(site, 300)
    other = log_in(site)
    advance(site, 300)
    assert handles_of(site, "ada") == [handle_of(other)]
    advance(site, 300)
    assert sessions_of(site, "ada") == []


def test_pruning_removes_the_session_and_no_other(make_site: MakeSite) -> None:
    site = make_site(SESSION_IDLE_TIMEOUT=600)
    log_in(site)
    advance(site, 300)
    other = log_in(site)
    advance(site, 300)
    asked(site, lambda operator: operator.prune())
    assert handles_of(site, "ada") == [handle_of(other)]
    assert is_live(other)


def test_a_session_in_use_stays(make_site: MakeSite) -> None:
    site = make_site(SESSION_IDLE_TIMEOUT=600)
    browser = log_in(site)
    for _ in range(5):
        advance(site, 400)
        assert is_live(browser)
    assert handles_of(site, "ada") == [handle_of(browser)]


# What is listed


def test_sessions_are_listed_oldest_first_with_all_fields(site: Site) -> None:
    start = dt.datetime.fromtimestamp(site.clock(), dt.timezone.utc)
    minute = dt.timedelta(minutes=1)
    lifetime = dt.timedelta(days=31)
    oldest, middle, newest = site.browser(), site.browser(), site.browser()
    oldest.set(n=1)
    advance(site, 60)
    middle.set(n=1)
    advance(site, 60)
    newest.set(n=1)
    # Those who log in at one moment are in the order of their beginnings.
    for browser in (newest, oldest, middle):
        browser.set(_user_id="ada")
    advance(site, 60)
    assert is_live(middle)
    expected = [
        SessionInfo(
            handle=handle_of(browser),
            user="ada",
            created_at=start + number * minute,
            authenticated_at=start + 2 * minute,
            last_seen_at=start + seen * minute,
            expires_at=start + seen * minute + lifetime,
            meta={},
            current=False,
        )
        for number, (browser, seen) in enumerate(
            [(oldest, 2), (middle, 3), (newest, 2)]
        )
    ]
    assert sessions_of(site, "ada") == expected
    assert {info.created_at.tzinfo for info in sessions_of(site, "ada")} == {
        dt.timezone.utc
    }


def test_all_sessions_are_listed_whoever_has_them(site: Site) -> None:
    browsers = [log_in(site, "ada"), log_in(site, "bob"), site.browser()]
    browsers[2].set(n=1)
    found = asked(site, lambda operator: list(operator.sessions()))
    assert {(info.handle, info.user) for info in found} == {
        (handle_of(browser), user)
        for browser, user in zip(browsers, ["ada", "bob", None], strict=True)
    }


def test_the_current_session_is_marked(site: Site) -> None:
    browser, other = log_in(site), log_in(site)

    def view() -> str:
        listed = site.extension.sessions_of("ada")
        return " ".join(info.handle for info in listed if info.current)

    assert browser.visit(view).text == handle_of(browser)
    assert other.visit(view).text == handle_of(other)
    assert site.browser().visit(view).text == ""
    forged = site.browser()
    forged.cookie = "forged"
    assert forged.visit(view).text == ""
    assert not any(info.current for info in sessions_of(site, "ada"))


def test_the_current_session_is_marked_by_find_and_sessions_too(site: Site) -> None:
    browser, other = log_in(site), log_in(site)

    def view() -> None:
        operator = site.extension
        mine, theirs = (
            operator.find(handle_of(browser)),
            operator.find(handle_of(other)),
        )
        assert mine is not None
        assert mine.current
        assert theirs is not None
        assert not theirs.current
        current = [info.handle for info in operator.sessions() if info.current]
        assert current == [handle_of(browser)]

    assert browser.visit(view).status_code == 200


def test_the_current_session_is_marked_under_its_newest_id(site: Site) -> None:
    browser = log_in(site)

    def view() -> str:
        typed_session.regenerate()
        typed_session.save()
        return " ".join(
            info.handle for info in site.extension.sessions_of("ada") if info.current
        )

    assert browser.visit(view).text == handle_of(browser)


def test_a_renewed_session_that_nobody_looked_at_is_the_current_one() -> None:
    clock = FakeClock()
    site = Site({"SESSION_BACKEND": "memory"}, clock, SESSION_RENEWAL_INTERVAL=60)
    browser = site.browser()
    browser.set(_user_id="ada")
    clock.advance(70)
    late = browser.twin()
    browser.read()
    handle = handle_of(browser)
    operator = site.extension

    def look(find: Callable[[], t.Any]) -> list[str]:
        found: list[str] = []
        late.visit(lambda: found.extend(i.handle for i in find() if i.current))
        return found

    assert handle != handle_of(late)
    assert look(lambda: operator.sessions_of("ada")) == [handle]
    assert look(lambda: [operator.find(handle)]) == [handle]
    assert look(lambda: operator.sessions()) == [handle]


def test_listing_does_not_load_the_current_session(site: Site) -> None:
    browser = log_in(site)
    stranger = site.browser()
    stranger.set(n=2)

    def view() -> str:
        count = len(site.extension.sessions_of("ada"))
        return f"{count} {typed_session!r}"

    with site.backend.counting() as calls:
        response = stranger.visit(view)
    assert response.text == "1 <ServerSideSession (not loaded)>"
    # One of them loads ada's.
    assert calls == {"keys_of_user": 1, "load_many": 1}
    # Which one is marked depends on the cookie.
    assert response.headers["Vary"] == "Cookie"
    with site.backend.counting() as calls:
        browser.visit(lambda: len(site.extension.sessions_of("bob")))
    assert calls == {"keys_of_user": 1, "load_many": 1}


def test_the_request_of_another_application_has_no_current_session(
    make_any: MakeSite,
) -> None:
    site, other = make_any(), make_any(SESSION_KEY_PREFIX="other:")
    browser = log_in(site)
    handle = handle_of(browser)

    def view() -> str:
        with other.app.app_context():
            assert other.extension.find(handle) is None
        # And it was not looked at through the other one's eyes.
        return str(session["n"])

    assert browser.visit(view).text == "1"


def test_find_takes_nothing_but_a_handle(make_any: MakeSite) -> None:
    site = make_any()
    browser = log_in(site)
    handle = handle_of(browser)
    for wrong in (
        "",
        "x",
        handle[:7],
        handle.upper(),
        f"session:{handle}",
        browser.id,
    ):
        assert asked(site, lambda operator, wrong=wrong: operator.find(wrong)) is None
        assert (
            asked(site, lambda operator, wrong=wrong: operator.revoke(wrong)) is False
        )
    assert is_live(browser)


USERS: list[object] = [
    "",
    "ada",
    "Ada",
    "ada ",
    " ada",
    "ada%",
    "%",
    "_",
    "a_a",
    "*",
    "ad?",
    "[a]da",
    "ada'; DROP TABLE sessions; --",
    'a"da',
    "a\\da",
    "a\nda",
    "a\0da",
    "a\x1b[2Jda",
    "ada:",
    "user:ada:sessions",
    "session:ada",
    "7:session:ada",
    "/",
    "..",
    "../ada",
    "ada/..",
    "ada%0a",
    "{ada}",
    "ádà",
    "a\u0301da",
    "李小龍",
    "🙂",
    "\u202eada",
    "x" * 255,
    "é" * 255,
    # What stands for another one in SQL.
    "sha256:" + hashlib.sha256(b"a\0da").hexdigest(),
    7,
    70,
    uuid.UUID(int=7),
]


def test_users_of_all_kinds_are_told_apart(site: Site) -> None:
    browsers = [log_in(site, user) for user in USERS]
    for user, browser in zip(USERS, browsers, strict=True):
        (info,) = sessions_of(site, user)
        assert info.handle == handle_of(browser)
        assert info.user == stored_name_of(user)
    for user, browser in zip(USERS[::2], browsers[::2], strict=True):
        assert asked(site, lambda operator, user=user: operator.revoke_user(user)) == 1
        assert not is_live(browser)
    assert all(is_live(browser) for browser in browsers[1::2])


@pytest.mark.parametrize("user", ["x" * 10_000, "é" * 40_000, "x" * 100_000])
def test_a_user_of_any_length_is_found_and_ended(site: Site, user: str) -> None:
    browser, other = log_in(site, user[:255]), log_in(site, user)
    assert handles_of(site, user) == [handle_of(other)]
    assert asked(site, lambda operator: operator.revoke_user(user)) == 1
    assert is_live(browser)
    assert not is_live(other)


def test_a_number_and_its_digits_are_one_user(site: Site) -> None:
    number, text = log_in(site, 7), log_in(site, "7")
    assert set(handles_of(site, 7)) == {handle_of(number), handle_of(text)}
    assert handles_of(site, "7") == handles_of(site, 7)


def test_nobody_has_no_sessions(site: Site) -> None:
    anonymous, none = site.browser(), log_in(site, "None")
    anonymous.set(n=1)
    for ask in (site.extension.sessions_of, site.extension.revoke_user):
        with pytest.raises(ValueError, match="not by NoneType"):
            asked(site, lambda _, ask=ask: t.cast("object", ask(None)))
    assert is_live(anonymous)
    assert is_live(none)


def test_applications_that_share_a_store_do_not_see_each_other() -> None:
    backend = MemoryBackend(FakeClock())
    one = Site({"SESSION_BACKEND": backend}, SESSION_KEY_PREFIX="one:")
    two = Site({"SESSION_BACKEND": backend}, SESSION_KEY_PREFIX="two:")
    mine, theirs = log_in(one), log_in(two)
    assert handles_of(one, "ada") == [handle_of(mine)]
    listed = asked(one, lambda operator: list(operator.sessions()))
    assert [info.handle for info in listed] == [handle_of(mine)]
    assert asked(one, lambda operator: operator.revoke(handle_of(theirs))) is False
    assert asked(one, lambda operator: operator.revoke_user("ada")) == 1
    assert is_live(theirs)
    assert not is_live(mine)


#: Each but the first begins with another one.
PREFIXES = ["app:", "app:admin:", "app:admin:é", "app:user:", "app:" + "0" * 64]


def be_there_shortly() -> None:
    session["n"] = 1
    typed_session.lifetime = dt.timedelta(seconds=9)


@pytest.mark.parametrize("name", INDEXED)
def test_applications_whose_prefixes_nest_do_not_see_each_other(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    config, clock = make_backend_config(name), FakeClock()
    if name == "memory":
        config = {"SESSION_BACKEND": MemoryBackend(clock)}
    outer = config.get("SESSION_KEY_PREFIX", "")
    sites = {
        prefix: Site(config | {"SESSION_KEY_PREFIX": outer + prefix}, clock)
        for prefix in PREFIXES
    }
    browsers: dict[str, list[Browser]] = {}
    for number, (prefix, site) in enumerate(sites.items(), 1):
        browsers[prefix] = [log_in(site) for _ in range(number)]
        site.browser().set(n=1)
        site.browser().visit(be_there_shortly)
    advance(site, 10)
    for number, (prefix, site) in enumerate(sites.items(), 1):
        assert asked(site, ServerSession.count) == number + 1
        listed = asked(site, lambda operator: list(operator.sessions()))
        assert len(listed) == number + 1
        assert set(handles_of(site, "ada")) == set(map(handle_of, browsers[prefix]))
    if name == "filesystem":
        # The one that was there shortly, and what logging in left of the old ids.
        pruned = [asked(site, ServerSession.prune) for site in sites.values()]
        assert pruned == [2, 3, 4, 5, 6]
    assert asked(sites["app:"], lambda operator: operator.revoke_user("ada")) == 1
    for number, (prefix, site) in enumerate(sites.items(), 1):
        is_over = prefix == "app:"
        assert asked(site, ServerSession.count) == number + 1 - is_over
        assert all(is_live(browser) is not is_over for browser in browsers[prefix])


class Unsorted(MemoryBackend):
    """Of a third party: it counts, and that is all."""

    capabilities = Capability.COMPARE_AND_SWAP | Capability.COUNT


def test_what_cannot_be_told_apart_is_counted_together() -> None:
    backend = Unsorted(FakeClock())
    one = Site({"SESSION_BACKEND": backend, "SESSION_KEY_PREFIX": "one:"})
    two = Site({"SESSION_BACKEND": backend, "SESSION_KEY_PREFIX": "two:"})
    for site in (one, two):
        site.browser().set(n=1)
    assert asked(one, ServerSession.count) == 2


# Ending one session


def test_a_revoked_session_is_over_and_the_others_are_not(site: Site) -> None:
    browser, other = log_in(site), log_in(site)
    with destroyed_by(site) as sent:
        assert asked(site, lambda operator: operator.revoke(handle_of(browser)))
    assert sent == [(handle_of(browser), "ada")]
    assert handles_of(site, "ada") == [handle_of(other)]
    assert not is_live(browser)
    assert is_live(other)


RUNNING: dict[str, Callable[[], t.Any]] = {
    "reads": lambda: session["n"],
    "changes a key": lambda: session.update(n=2),
    "changes a value": lambda: session["cart"].append("apple"),
    "changes the user": lambda: session.update(_user_id="bob"),
    "logs out": lambda: session.pop("_user_id"),
    "takes a new id": lambda: typed_session.regenerate(),
    "starts over": lambda: typed_session.regenerate(keep_data=False),
    "saves": lambda: (session.update(n=2), typed_session.save()),
    "counts": lambda: typed_session.atomic(lambda own: own.update(n=2)),
    "reloads": lambda: (typed_session.reload(), session.update(n=2)),
    "touches": lambda: typed_session.touch(),
    "becomes permanent": lambda: setattr(session, "permanent", True),
    "lives longer": lambda: setattr(typed_session, "lifetime", 1_000_000),
    "clears": lambda: session.clear(),
    "destroys": lambda: typed_session.destroy(),
}


@pytest.mark.parametrize("name", RUNNING)
def test_a_session_that_is_revoked_while_a_request_runs_never_comes_back(
    make_any: MakeSite, name: str
) -> None:
    revoke_while_running(make_any(), name)


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize(
    ("settings", "later"),
    [({}, 120), ({"SESSION_RESAVE": True}, 0), ({"SESSION_RENEWAL_INTERVAL": 60}, 120)],
    ids=["touch is due", "resave", "renewal is due"],
)
def test_no_setting_brings_a_revoked_session_back(
    settings: dict[str, t.Any], later: float, name: str
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, **settings)
    revoke_while_running(site, name, later)


def revoke_while_running(site: Site, name: str, later: float = 0) -> None:
    browser = site.browser()
    browser.set(n=1, cart=[], _user_id="ada")
    advance(site, later)
    cookie = browser.cookie

    def view() -> None:
        assert session["n"] == 1
        assert site.extension.revoke(handle_of(browser))
        RUNNING[name]()

    assert browser.visit(view).status_code == 200
    if Capability.COUNT in site.backend.capabilities:
        assert asked(site, lambda operator: operator.count()) == 0
    for value in {cookie, browser.cookie} - {None}:
        browser.cookie = value
        assert browser.read() == {}


@pytest.mark.parametrize("looks", [False, True], ids=["", "looks"])
def test_a_message_after_the_end_of_a_session_is_in_another_one(
    make_any: MakeSite, looks: bool
) -> None:
    site = make_any()
    browser = log_in(site)
    before = browser.cookie

    def view() -> None:
        assert not looks or session["n"] == 1
        assert site.extension.revoke(handle_of(browser))
        typed_session.destroy()
        session["goodbye"] = True

    browser.visit(view)
    assert browser.cookie != before
    assert browser.read() == {"goodbye": True}
    browser.cookie = before
    assert browser.read() == {}


@pytest.mark.parametrize("operation", ["load", "replace", "touch"])
def test_revoking_wins_before_every_operation_of_a_running_request(
    make_any: MakeSite, operation: str
) -> None:
    site = make_any()
    browser = log_in(site)
    handle = handle_of(browser)
    once(
        site,
        "before",
        operation,
        lambda: asked(site, lambda operator: operator.revoke(handle)),
    )
    if operation == "touch":
        advance(site, 120)
        browser.read()
    else:
        browser.visit(lambda: session.update(m=2))
    assert operation not in site.backend.before
    assert asked(site, lambda operator: operator.find(handle)) is None
    browser.cookie = browser.cookie
    assert "n" not in browser.read()


@pytest.mark.parametrize(
    ("when", "operation"), [("before", "create"), ("after", "create")]
)
def test_revoking_wins_in_the_middle_of_a_rotation(
    site: Site, when: str, operation: str
) -> None:
    browser = log_in(site)
    handle = handle_of(browser)
    once(
        site,
        when,
        operation,
        lambda: asked(site, lambda operator: operator.revoke(handle)),
    )
    browser.visit(lambda: typed_session.regenerate())
    assert sessions_of(site, "ada") == []
    assert browser.read() == {}


def test_revoking_the_new_handle_in_the_middle_of_a_rotation_ends_the_session(
    site: Site,
) -> None:
    """The rotation fails then, and its old id must not go on."""
    browser = log_in(site)
    twin, other = browser.twin(), browser.twin()
    before = handle_of(browser)

    def revoke_the_new_one() -> None:
        # One session is listed, and it is the old one.
        assert handles_of(site, "ada") == [before]
        keys = site.backend.keys_of_user("ada")
        (new,) = {key[-64:] for key in keys} - {before}
        other.set(n=1)  # so that the rotation meets a conflict
        assert asked(site, lambda operator: operator.revoke(new))

    once(site, "after", "create", revoke_the_new_one)
    twin.visit(lambda: typed_session.regenerate())
    assert not is_live(browser)
    assert not is_live(twin)
    assert handles_of(site, "ada") == []


def test_revoking_follows_a_rotation_within_the_grace(site: Site) -> None:
    browser = log_in(site)
    first = handle_of(browser)
    browser.visit(lambda: typed_session.regenerate())
    second = handle_of(browser)
    browser.visit(lambda: typed_session.regenerate())
    with destroyed_by(site) as sent:
        assert asked(site, lambda operator: operator.revoke(first))
    assert sent == [(handle_of(browser), "ada")]
    assert not asked(site, lambda operator: operator.revoke(second))
    assert sessions_of(site, "ada") == []
    assert browser.read() == {}


def test_revoking_follows_a_rotation_at_that_very_moment(site: Site) -> None:
    browser = log_in(site)
    handle = handle_of(browser)
    once(
        site,
        "before",
        "delete",
        lambda: browser.visit(lambda: typed_session.regenerate()),
    )
    assert asked(site, lambda operator: operator.revoke(handle))
    assert sessions_of(site, "ada") == []
    assert browser.read() == {}


def test_revoking_a_handle_whose_grace_is_over_ends_nothing(site: Site) -> None:
    browser = log_in(site)
    handle = handle_of(browser)
    browser.visit(lambda: typed_session.regenerate())
    advance(site, 10)
    assert not asked(site, lambda operator: operator.revoke(handle))
    assert is_live(browser)


def test_revoking_a_session_that_ended_meanwhile_ends_nothing(site: Site) -> None:
    browser = log_in(site)
    once(site, "before", "delete", lambda: browser.visit(clear_and_destroy))
    assert not asked(site, lambda operator: operator.revoke(handle_of(browser)))


def test_a_view_can_revoke_its_own_session(site: Site) -> None:
    browser, other = log_in(site), log_in(site)

    def view() -> None:
        (mine,) = [info for info in site.extension.sessions_of("ada") if info.current]
        assert site.extension.revoke(mine.handle)

    browser.visit(view)
    assert browser.read() == {}
    assert handles_of(site, "ada") == [handle_of(other)]


def test_a_damaged_session_can_be_revoked(tmp_path: Path) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = log_in(site)

    def refuse(key: str) -> t.Any:
        raise RecordError("It is damaged.", "damaged")

    with (
        pytest.MonkeyPatch.context() as patch,
        destroyed_by(site) as sent,
    ):
        patch.setattr(site.backend, "load", refuse)
        assert asked(site, lambda operator: operator.revoke(handle_of(browser)))
    assert sent == [(handle_of(browser), None)]
    assert browser.read() == {}


def test_a_session_of_a_newer_version_is_neither_ended_nor_taken_for_absent() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browsers = [log_in(site) for _ in range(3)]
    newer = handle_of(browsers[1])
    delete = site.backend.delete

    def refuse(key: str) -> t.Any:
        if key.endswith(newer):
            raise RecordError("It is newer.", "newer")
        return delete(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.backend, "delete", refuse)
        with pytest.raises(RecordError, match="newer"):
            asked(site, lambda operator: operator.revoke(newer))
        with destroyed_by(site) as sent, pytest.raises(RecordError, match="newer"):
            asked(site, lambda operator: operator.revoke_user("ada"))
    assert {handle for handle, _ in sent} == {
        handle_of(browsers[0]),
        handle_of(browsers[2]),
    }
    assert [is_live(browser) for browser in browsers] == [False, True, False]


# Ending all sessions of a user


def test_all_sessions_of_a_user_are_ended_and_no_others(site: Site) -> None:
    browsers = [log_in(site) for _ in range(3)]
    others = [log_in(site, "bob"), log_in(site, "Ada"), log_in(site, "ada2")]
    with destroyed_by(site) as sent:
        assert asked(site, lambda operator: operator.revoke_user("ada")) == 3
    assert sorted(sent) == sorted((handle_of(browser), "ada") for browser in browsers)
    assert not any(is_live(browser) for browser in browsers)
    assert all(is_live(browser) for browser in others)
    assert asked(site, lambda operator: operator.revoke_user("ada")) == 0


def test_the_current_session_can_be_spared(site: Site) -> None:
    browsers = [log_in(site) for _ in range(3)]

    def view() -> str:
        return str(site.extension.revoke_user("ada", except_current=True))

    assert browsers[1].visit(view).text == "2"
    assert [is_live(browser) for browser in browsers] == [False, True, False]


def test_outside_of_a_request_there_is_nothing_to_spare(site: Site) -> None:
    browser = log_in(site)
    with site.app.app_context():
        assert site.extension.revoke_user("ada", except_current=True) == 1
    assert not is_live(browser)


def test_an_administrator_is_not_affected_by_ending_others(site: Site) -> None:
    admin, browser = log_in(site, "admin"), log_in(site)

    def view() -> str:
        return str(site.extension.revoke_user("ada", except_current=True))

    assert admin.visit(view).text == "1"
    assert is_live(admin)
    assert not is_live(browser)


def test_a_new_id_in_the_same_request_does_not_end_the_current_session(
    site: Site,
) -> None:
    """As after a change of the password: new id here, everything else ends."""
    browser, other = log_in(site), log_in(site)
    before = browser.id

    def view() -> str:
        typed_session.regenerate()
        return str(site.extension.revoke_user("ada", except_current=True))

    assert browser.visit(view).text == "1"
    assert browser.id != before
    assert is_live(browser)
    assert not is_live(other)


def test_logging_in_can_end_everything_else(site: Site) -> None:
    other = log_in(site)
    browser = site.browser()
    browser.set(n=1)

    def view() -> str:
        session["_user_id"] = "ada"
        return str(site.extension.revoke_user("ada", except_current=True))

    assert browser.visit(view).text == "1"
    assert is_live(browser)
    assert not is_live(other)


@pytest.mark.parametrize("when", ["after keys_of_user", "before delete"])
@pytest.mark.parametrize("except_current", [False, True])
def test_a_session_that_gets_a_new_id_meanwhile_is_ended_too(
    site: Site, when: str, except_current: bool
) -> None:
    browser, other = log_in(site), log_in(site)
    hook, operation = when.split()

    def view() -> str:
        once(
            site,
            hook,
            operation,
            lambda: other.visit(lambda: typed_session.regenerate()),
        )
        return str(site.extension.revoke_user("ada", except_current=except_current))

    assert browser.visit(view).text == ("1" if except_current else "2")
    assert is_live(browser) is except_current
    assert not is_live(other)


def test_a_session_is_ended_in_the_middle_of_its_rotation(site: Site) -> None:
    browser = log_in(site)
    once(
        site,
        "after",
        "create",
        lambda: asked(site, lambda operator: operator.revoke_user("ada")),
    )
    browser.visit(lambda: typed_session.regenerate())
    assert sessions_of(site, "ada") == []
    assert browser.read() == {}


@pytest.mark.parametrize("when", ["before keys_of_user", "after keys_of_user"])
def test_the_current_session_is_spared_though_another_request_gives_it_a_new_id(
    site: Site, when: str
) -> None:
    browser, other = log_in(site), log_in(site)
    twin = browser.twin()
    hook, operation = when.split()

    def regenerate_twice() -> None:
        twin.visit(lambda: typed_session.regenerate())
        twin.visit(lambda: typed_session.regenerate())

    def view() -> str:
        once(site, hook, operation, regenerate_twice)
        return str(site.extension.revoke_user("ada", except_current=True))

    assert browser.visit(view).text == "1"
    assert is_live(twin)
    assert not is_live(other)


@pytest.mark.parametrize(
    "when", ["before create", "after create", "before replace", "after replace"]
)
def test_the_current_session_is_spared_in_the_middle_of_its_rotation(
    site: Site, when: str
) -> None:
    browser, other = log_in(site), log_in(site)
    twin = browser.twin()
    hook, operation = when.split()
    answers: list[str] = []

    def view() -> str:
        return str(site.extension.revoke_user("ada", except_current=True))

    def end_others() -> None:
        answers.append(browser.visit(view).text)

    once(site, hook, operation, end_others)
    twin.visit(lambda: typed_session.regenerate())
    assert answers == ["1"]
    assert is_live(twin)
    assert not is_live(other)
    (info,) = sessions_of(site, "ada")
    assert info.handle == handle_of(twin)
    assert info.meta == {}


@pytest.mark.parametrize("when", ["after create", "before replace", "after replace"])
def test_a_session_counts_once_in_the_middle_of_its_rotation(
    make_site: MakeSite, when: str
) -> None:
    site = make_site(SESSION_MAX_PER_USER=2)
    browser, later = log_in(site), site.browser()
    later.set(n=1)
    hook, operation = when.split()
    once(site, hook, operation, lambda: later.set(_user_id="ada"))
    browser.visit(lambda: typed_session.regenerate())
    assert is_live(browser)
    assert is_live(later)


@pytest.mark.parametrize("when", ["after keys_of_user", "before delete"])
def test_a_session_that_gets_a_new_id_while_it_is_counted_is_ended_too(
    make_site: MakeSite, when: str
) -> None:
    site = make_site(SESSION_MAX_PER_USER=1)
    oldest, latest = log_in(site), site.browser()
    advance(site, 1)
    hook, operation = when.split()

    def regenerate() -> None:
        oldest.visit(lambda: typed_session.regenerate())

    once(site, hook, operation, regenerate)
    latest.set(_user_id="ada")
    assert handles_of(site, "ada") == [handle_of(latest)]
    assert not is_live(oldest)


def test_a_listing_that_misses_a_session_in_rotation_is_not_believed() -> None:
    """Engines that list in several steps can miss the old and the new id at once."""
    site = Site({"SESSION_BACKEND": "memory"})
    browser = log_in(site)
    keys_of_user = site.backend.keys_of_user
    answers = iter([[]])

    def list_late(user: str) -> list[str]:
        return next(answers, None) or keys_of_user(user)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.backend, "keys_of_user", list_late)
        assert asked(site, lambda operator: operator.revoke_user("ada")) == 1
    assert not is_live(browser)


def test_receivers_that_raise_leave_no_session_behind(site: Site) -> None:
    browsers = [log_in(site) for _ in range(3)]

    def fail(sender: object, **values: t.Any) -> None:
        raise ZeroDivisionError

    with (
        session_destroyed.connected_to(fail, site.app),
        pytest.raises(ZeroDivisionError),
    ):
        asked(site, lambda operator: operator.revoke_user("ada"))
    assert not any(is_live(browser) for browser in browsers)


def test_sessions_that_were_ended_before_the_engine_failed_are_told_of() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    for _ in range(3):
        log_in(site)
    deleted: list[None] = []

    def count() -> None:
        deleted.append(None)
        if len(deleted) == 2:
            raise ZeroDivisionError

    site.backend.before["delete"] = count
    with destroyed_by(site) as sent, pytest.raises(ZeroDivisionError):
        asked(site, lambda operator: operator.revoke_user("ada"))
    assert len(sent) == 1


# A limit for each user


def test_the_oldest_sessions_beyond_the_limit_are_ended(make_site: MakeSite) -> None:
    site = make_site(SESSION_MAX_PER_USER=2)
    browsers = []
    for _ in range(4):
        advance(site, 1)
        browsers.append(log_in(site))
    assert [is_live(browser) for browser in browsers] == [False, False, True, True]
    assert handles_of(site, "ada") == [handle_of(browser) for browser in browsers[2:]]


def test_what_the_limit_ends_is_told(make_site: MakeSite) -> None:
    site = make_site(SESSION_MAX_PER_USER=1)
    first = log_in(site)
    advance(site, 1)
    with destroyed_by(site) as sent:
        log_in(site)
    assert sent == [(handle_of(first), "ada")]


def test_the_limit_counts_each_user_by_itself(make_site: MakeSite) -> None:
    site = make_site(SESSION_MAX_PER_USER=1)
    browsers = [
        log_in(site, "ada"),
        log_in(site, "bob"),
        site.browser(),
        site.browser(),
    ]
    for browser in browsers[2:]:
        browser.set(n=1)
    assert all(is_live(browser) for browser in browsers)


def test_the_current_session_is_never_the_one_to_end(make_site: MakeSite) -> None:
    """It may have begun long before it logs in."""
    site = make_site(SESSION_MAX_PER_USER=1)
    browser = site.browser()
    browser.set(n=1)
    advance(site, 3600)
    other = log_in(site)
    advance(site, 3600)
    browser.set(_user_id="ada")
    assert is_live(browser)
    assert not is_live(other)


def test_a_lower_limit_ends_several_at_the_next_log_in(make_site: MakeSite) -> None:
    site = make_site()
    browsers = []
    for _ in range(4):
        advance(site, 1)
        browsers.append(log_in(site))
    limited = Site(
        {
            "SESSION_BACKEND": site.backend,
            "SESSION_KEY_PREFIX": site.state.config.key_prefix,
        },
        site.clock,
        SESSION_MAX_PER_USER=2,
    )
    advance(site, 1)
    browsers.append(log_in(limited))
    assert [is_live(browser) for browser in browsers] == [False] * 3 + [True] * 2


def test_only_logging_in_costs_the_limit_anything(make_site: MakeSite) -> None:
    site = make_site(SESSION_MAX_PER_USER=3)
    browser = log_in(site)
    assert browser.costs(lambda: session.update(n=2))[0] == {"load": 1, "replace": 1}
    assert browser.costs(lambda: typed_session.regenerate())[0] == {
        "load": 1,
        "create": 1,
        "replace": 1,
    }
    anonymous = site.browser()
    assert anonymous.costs(lambda: session.update(n=1))[0] == {"create": 1}
    assert anonymous.costs(lambda: session.update(_user_id="ada"))[0] == {
        "load": 1,
        "create": 1,
        "replace": 1,
        "keys_of_user": 1,
    }


def let_meet(site: Site, number: int, when: str, operation: str) -> None:
    """Let threads wait for each other when they first get to an operation."""
    barrier = threading.Barrier(number)
    have_met = threading.local()

    def meet() -> None:
        if not hasattr(have_met, "flag"):
            have_met.flag = True
            barrier.wait(30)

    getattr(site.backend, when)[operation] = meet


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "rotated"])
@pytest.mark.parametrize("limit", [1, 2])
def test_two_who_log_in_at_once_do_not_end_each_other(
    make_site: MakeSite, is_new: bool, limit: int
) -> None:
    site = make_site(SESSION_MAX_PER_USER=limit)
    earlier = [log_in(site) for _ in range(limit)]
    advance(site, 1)
    browsers = [site.browser(), site.browser()]
    if not is_new:
        for browser in browsers:
            browser.set(n=1)
    # Both have written before either lists, and listed before either ends anything.
    let_meet(site, 2, "before", "keys_of_user")
    let_meet(site, 2, "after", "load_many")
    log_in_at_once(site, browsers)
    live = sum(is_live(browser) for browser in [*earlier, *browsers])
    assert live == len(sessions_of(site, "ada")) == limit
    assert sum(is_live(browser) for browser in browsers) == limit


def log_in_at_once(
    site: Site, browsers: list[Browser], when_one_is_in: Callable[[], t.Any] = int
) -> None:
    errors: list[BaseException] = []

    def run(browser: Browser) -> None:
        try:
            browser.set(n=1, _user_id="ada")
            when_one_is_in()
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(browser,)) for browser in browsers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    site.backend.before.clear()
    site.backend.after.clear()


def test_eight_who_log_in_at_once_leave_as_many_as_the_limit_allows(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(SESSION_MAX_PER_USER=3)
    browsers = [site.browser() for _ in range(8)]
    # The order in which they began is not that in which they log in.
    for browser in browsers:
        browser.set(n=1)
        advance(site, 1)
    # All have written before any lists, and listed before any ends another. Who leaves
    # the rest to somebody else goes on when that one is through.
    let_meet(site, 8, "before", "keys_of_user")
    let_meet(site, 8, "after", "load_many")
    has_ended = threading.Event()
    waiting = types.SimpleNamespace(sleep=lambda _: has_ended.wait(30))
    monkeypatch.setattr("flask_serversession.user_limit.time", waiting)
    before = {browser.id for browser in browsers}
    log_in_at_once(site, browsers, has_ended.set)
    live = [browser for browser in browsers if is_live(browser)]
    assert len(live) == len(sessions_of(site, "ada")) == 3
    # All have stored at the same moment; which of them did so last is then told by
    # the keys, and that one is never ended. A browser whose session was ended at once
    # is not told of its new id.
    told = [browser for browser in browsers if browser.id not in before]
    assert max(told, key=handle_of) in live
    advance(site, 1)
    assert is_live(log_in(site))
    assert len(sessions_of(site, "ada")) == 3


@pytest.mark.parametrize("name", UNINDEXED)
def test_a_limit_needs_an_index(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Site(make_backend_config(name), SESSION_MAX_PER_USER=3)
    assert "'SESSION_MAX_PER_USER' is 3" in str(caught.value)
    assert "cannot list the sessions of a user" in str(caught.value)


# Tracking


AGENT = {"User-Agent": "Mozilla/5.0 " + "x" * 400}
ADDRESS = {"REMOTE_ADDR": "192.0.2.7"}


@pytest.mark.parametrize(
    ("track", "expected"),
    [
        ((), {}),
        (("user_agent",), {"user_agent": AGENT["User-Agent"][:256]}),
        (("remote_addr",), {"remote_addr": "192.0.2.7"}),
        (
            ("user_agent", "remote_addr"),
            {"user_agent": AGENT["User-Agent"][:256], "remote_addr": "192.0.2.7"},
        ),
    ],
)
def test_only_what_is_asked_for_is_tracked(
    make_any: MakeSite, track: tuple[str, ...], expected: dict[str, str]
) -> None:
    site = make_any(SESSION_TRACK=track)
    browser = log_in(site, headers=AGENT, environ_base=ADDRESS)
    info = asked(site, lambda operator: operator.find(handle_of(browser)))
    assert info is not None
    assert info.meta == expected


def test_what_a_browser_does_not_say_is_not_tracked(make_any: MakeSite) -> None:
    site = make_any(SESSION_TRACK=("user_agent",))
    browser = log_in(site, headers={"User-Agent": ""})
    info = asked(site, lambda operator: operator.find(handle_of(browser)))
    assert info is not None
    assert info.meta == {}


def seen_with(browser: Browser) -> dict[str, str]:
    info = asked(browser.site, lambda operator: operator.find(handle_of(browser)))
    assert info is not None
    return dict(info.meta)


def agent(name: str) -> dict[str, dict[str, str]]:
    return {"headers": {"User-Agent": name}}


#: Requests that count as a visit, and what one costs that comes from elsewhere.
VISITS: dict[str, tuple[Callable[[], object], dict[str, int]]] = {
    "reads": (lambda: session["n"], {"load": 1, "replace": 1}),
    "writes": (lambda: session.update(n=1), {"load": 1, "replace": 1}),
    "does not look": (lambda: None, {"load": 1, "replace": 1}),
    "touches": (lambda: typed_session.touch(), {"load": 1, "replace": 1}),
}


@pytest.mark.parametrize("visit", VISITS)
def test_address_and_browser_are_those_of_the_last_visit(
    make_any: MakeSite, visit: str
) -> None:
    site = make_any(SESSION_TRACK=("user_agent", "remote_addr"), SESSION_PERMANENT=True)
    action, expected = VISITS[visit]
    browser = log_in(site, headers=AGENT, environ_base=ADDRESS)
    for name in ("Phone/2 \x1b[1m", "Tablet/3"):
        advance(site, 61)
        before = site.backend.load(
            f"{site.state.config.key_prefix}{handle_of(browser)}"
        )
        costs, cookie = browser.costs(action, **agent(name))
        assert (costs, cookie) == (expected, "set")
        assert seen_with(browser) == {"user_agent": name, "remote_addr": "127.0.0.1"}
        info = asked(site, lambda operator: operator.find(handle_of(browser)))
        assert info is not None
        assert info.last_seen_at.timestamp() == site.clock()
        assert before is not None
        assert info.expires_at.timestamp() == before.expires_at + 61
    assert browser.read() == {"_user_id": "ada", "_permanent": True, "n": 1}


def test_where_a_session_is_seen_costs_nothing_between_two_touches(
    make_any: MakeSite,
) -> None:
    site = make_any(SESSION_TRACK=("user_agent",), SESSION_PERMANENT=True)
    browser = log_in(site, **agent("old"))
    advance(site, 30)
    costs = browser.costs(lambda: session["n"], **agent("new"))
    assert costs == ({"load": 1}, "set")
    assert browser.costs(lambda: None, **agent("new")) == ({}, "set")
    assert seen_with(browser) == {"user_agent": "old"}
    # The same place needs no more than a touch.
    advance(site, 31)
    costs = browser.costs(lambda: session["n"], **agent("old"))
    assert costs == ({"load": 1, "touch": 1}, "set")
    advance(site, 61)
    assert browser.costs(lambda: None, **agent("old")) == (
        {"load": 1, "touch": 1},
        "set",
    )
    assert browser.costs(lambda: None, **agent("new")) == ({}, "set")


def test_without_the_setting_no_visit_costs_more() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_PERMANENT=True)
    browser = log_in(site, **agent("old"))
    advance(site, 61)
    assert browser.costs(lambda: None, **agent("new")) == ({"touch": 1}, "set")
    advance(site, 61)
    costs = browser.costs(lambda: session["n"], **agent("new"))
    assert costs == ({"load": 1, "touch": 1}, "set")


def test_what_is_no_longer_asked_for_goes_at_the_next_visit(site: Site) -> None:
    prefix = site.state.config.key_prefix
    given = {"SESSION_BACKEND": site.backend, "SESSION_KEY_PREFIX": prefix}
    both = Site(given, site.clock, SESSION_TRACK=("user_agent", "remote_addr"))
    one = Site(given, site.clock, SESSION_TRACK=("remote_addr",))
    browser = log_in(both, headers=AGENT, environ_base=ADDRESS)
    other = one.browser()
    other.cookie = browser.cookie
    advance(site, 61)
    other.visit(lambda: session["n"], headers=AGENT, environ_base=ADDRESS)
    assert seen_with(other) == {"remote_addr": "192.0.2.7"}


def test_reading_does_not_depend_on_recording_where(make_any: MakeSite) -> None:
    """A Redis may be full, or a fail-over have left a replica only."""
    site = make_any(SESSION_TRACK=("user_agent",), SESSION_PERMANENT=True)
    browser = log_in(site, **agent("old"))
    for action, operation in (
        (lambda: session["n"], "replace"),
        (lambda: None, "load"),
        (lambda: None, "replace"),
    ):
        advance(site, 61)
        with site.backend.failing(operation):
            response = browser.visit(action, **agent("new"))
        assert response.status_code == 200
        # As with a touch that fails: one of a session that was not looked at tells
        # nobody whether it is there.
        expected = "none" if operation == "load" else "set"
        assert cookie_of(response, site) == expected
        assert seen_with(browser) == {"user_agent": "old"}
    assert is_live(browser)


def test_a_backend_that_has_failed_the_request_is_not_asked_for_it(site: Site) -> None:
    prefix = site.state.config.key_prefix
    given = {"SESSION_BACKEND": site.backend, "SESSION_KEY_PREFIX": prefix}
    tracking = Site(given, site.clock, SESSION_TRACK=("user_agent",))
    browser = log_in(tracking, **agent("old"))
    advance(site, 61)

    def view() -> None:
        assert session["n"] == 1
        with tracking.backend.failing("load"), pytest.raises(BackendUnavailableError):
            typed_session.reload()

    costs, _ = browser.costs(view, **agent("new"))
    assert "replace" not in costs


@pytest.mark.parametrize("is_first", [False, True])
def test_of_several_cookies_that_in_use_is_tracked(
    make_any: MakeSite, is_first: bool
) -> None:
    site = make_any(SESSION_TRACK=("user_agent",), SESSION_PERMANENT=True)
    browser, gone = log_in(site, **agent("old")), log_in(site)
    cookies = [browser.cookie, gone.cookie]
    gone.visit(clear_and_destroy)
    advance(site, 61)
    header = "; ".join(
        f"{site.cookie_name()}={value}"
        for value in (cookies if is_first else cookies[::-1])
    )
    path = site.add(lambda: None)
    client = site.app.test_client(use_cookies=False)
    client.get(path, headers={"Cookie": header, "User-Agent": "new"})
    assert seen_with(browser) == {"user_agent": "new"}


@pytest.mark.parametrize("way", ["absolute", "own"])
def test_a_session_that_has_timed_out_is_not_prolonged_by_where_it_is_seen(
    site: Site, way: str
) -> None:
    prefix = site.state.config.key_prefix
    given = {"SESSION_BACKEND": site.backend, "SESSION_KEY_PREFIX": prefix}
    settings: dict[str, t.Any] = {
        **{"SESSION_TRACK": ("user_agent",), "SESSION_PERMANENT": True}
    }
    tracking = Site(given, site.clock, **settings)
    limited = Site(given, site.clock, SESSION_ABSOLUTE_TIMEOUT=100, **settings)
    browser, other = log_in(tracking, **agent("old")), limited.browser()
    handle = handle_of(browser)
    other.cookie = browser.cookie
    if way == "own":
        twin = browser.twin()
        twin.visit(lambda: setattr(typed_session, "lifetime", 90), **agent("old"))
        # Another request did not know of it yet.
        now = site.clock()
        assert site.backend.touch(f"{prefix}{handle}", now, now + 1000)
    advance(site, 101)
    (browser if way == "own" else other).visit(lambda: None, **agent("new"))
    info = asked(site, lambda operator: operator.find(handle))
    assert info is None or info.meta == {"user_agent": "old"}


def test_a_change_at_the_same_moment_is_not_lost_for_it(site: Site) -> None:
    prefix = site.state.config.key_prefix
    given = {"SESSION_BACKEND": site.backend, "SESSION_KEY_PREFIX": prefix}
    tracking = Site(given, site.clock, SESSION_TRACK=("user_agent",))
    browser = log_in(tracking, **agent("old"))
    twin = browser.twin()
    advance(site, 61)
    once(
        tracking,
        "before",
        "replace",
        lambda: twin.visit(lambda: session.update(m=2), **agent("newer")),
    )
    browser.visit(lambda: session["n"], **agent("new"))
    assert browser.read() == {"_user_id": "ada", "n": 1, "m": 2}
    assert seen_with(browser) == {"user_agent": "newer"}


@pytest.mark.parametrize("way", ["log out", "regenerate"])
@pytest.mark.parametrize("operation", ["load", "replace"])
def test_recording_where_brings_no_session_back(
    make_any: MakeSite, way: str, operation: str
) -> None:
    site = make_any(SESSION_TRACK=("user_agent",), SESSION_PERMANENT=True)
    if not has(site, Capability.COMPARE_AND_SWAP):
        pytest.skip("cannot compare and swap")
    browser = log_in(site, **agent("old"))
    twin = browser.twin()
    advance(site, 61)

    def end() -> None:
        if way == "log out":
            twin.visit(clear_and_destroy)
        else:
            twin.visit(lambda: typed_session.regenerate())

    once(site, "before", operation, end)
    costs, cookie = browser.costs(lambda: None, **agent("new"))
    assert "touch" not in costs
    assert cookie == "none"
    assert browser.read() == {}
    assert is_live(twin) is (way == "regenerate")


def test_a_session_that_nobody_can_read_is_not_tracked(site: Site) -> None:
    prefix = site.state.config.key_prefix
    given = {"SESSION_BACKEND": site.backend, "SESSION_KEY_PREFIX": prefix}
    settings = {"SESSION_TRACK": ("user_agent",), "SESSION_PERMANENT": True}
    plain = Site(given, site.clock, **settings)
    encrypted = Site(given, site.clock, SESSION_ENCRYPTION_KEY=bytes(32), **settings)
    browser = log_in(plain, **agent("old"))
    other = encrypted.browser()
    other.cookie = browser.cookie
    advance(site, 61)
    assert other.costs(lambda: None, **agent("new")) == ({"load": 1}, "none")
    assert seen_with(browser) == {"user_agent": "old"}


def test_what_a_former_serializer_wrote_is_tracked_as_well(site: Site) -> None:
    prefix = site.state.config.key_prefix
    given = {"SESSION_BACKEND": site.backend, "SESSION_KEY_PREFIX": prefix}
    settings = {"SESSION_TRACK": ("user_agent",), "SESSION_PERMANENT": True}
    former = Site(given, site.clock, SESSION_SERIALIZER="json", **settings)
    now = Site(given, site.clock, **settings)
    browser = log_in(former, **agent("old"))
    other = now.browser()
    other.cookie = browser.cookie
    advance(site, 61)
    other.visit(lambda: None, **agent("new"))
    assert other.read() == {"_user_id": "ada", "_permanent": True, "n": 1}
    assert seen_with(other) == {"user_agent": "new"}


# Handles by their first digits


def test_a_handle_is_found_by_its_first_eight_digits_or_more(
    make_any: MakeSite,
) -> None:
    site = make_any()
    browser = log_in(site)
    log_in(site, "bob")
    handle = handle_of(browser)
    if not has(site, Capability.ITERATE):
        with pytest.raises(NotSupportedError, match="'iterate'"):
            asked(site, lambda operator: operator.find(handle[:63]))
        with pytest.raises(NotSupportedError, match="'iterate'"):
            asked(site, lambda operator: operator.revoke(handle[:8]))
        assert is_live(browser)
        return
    for digits in (8, 9, 63, 64):
        found = asked(site, lambda operator, n=digits: operator.find(handle[:n]))
        assert found is not None
        assert (found.handle, found.user) == (handle, "ada")
    for wrong in (handle[:7], handle.upper(), f" {handle[:8]}", "", "é" * 8):
        assert asked(site, lambda operator, w=wrong: operator.find(w)) is None
        assert asked(site, lambda operator, w=wrong: operator.revoke(w)) is False
    unknown = f"{int(handle[:8], 16) ^ 1:08x}"
    assert asked(site, lambda operator: operator.find(unknown)) is None
    assert asked(site, lambda operator: operator.revoke(handle[:8])) is True
    assert not is_live(browser)
    assert len(sessions_of(site, "bob")) == 1


def test_digits_that_stand_for_several_sessions_are_refused(site: Site) -> None:
    browser = log_in(site)
    prefix = site.state.config.key_prefix
    record = site.backend.load(f"{prefix}{handle_of(browser)}")
    assert record is not None
    handles = [f"0123456789{number:054x}" for number in range(2)]
    for handle in handles:
        site.backend.create(f"{prefix}{handle}", record)
    shown = "2 sessions begin with 01234567, such as 012345678900, 012345678900. Give"
    calls: list[Callable[[ServerSession, str], object]] = [
        lambda operator, handle: operator.find(handle),
        lambda operator, handle: operator.revoke(handle),
    ]
    for call in calls:
        with pytest.raises(LookupError, match=shown):
            asked(site, lambda operator, call=call: call(operator, "01234567"))
    assert site.backend.count() == 3
    assert asked(site, lambda operator: operator.revoke(handles[1][:64]))
    assert asked(site, lambda operator: operator.revoke("01234567"))
    assert is_live(browser)


def test_a_whole_handle_is_not_looked_for(site: Site) -> None:
    browser = log_in(site)
    with site.backend.counting() as calls:
        asked(site, lambda operator: operator.revoke(handle_of(browser)))
    # The second for the id that it had before its user logged in.
    assert calls == {"load": 1, "delete": 2}


# Ending all


@pytest.fixture(params=[name for name in BACKEND_CONFIGS if name in INDEXED])
def make_iterated(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> MakeSite:
    """Make a site on each backend in turn that can go through its sessions."""
    config = make_backend_config(request.param)
    return lambda **settings: Site(config, **settings)


def test_all_sessions_are_ended_and_told_of(make_iterated: MakeSite) -> None:
    site = make_iterated()
    browsers = [log_in(site), log_in(site), log_in(site, "bob"), site.browser()]
    browsers[-1].set(n=1)
    expected = {(handle_of(browser), "ada") for browser in browsers[:2]}
    expected |= {(handle_of(browsers[2]), "bob"), (handle_of(browsers[3]), None)}
    with destroyed_by(site) as sent:
        assert asked(site, lambda operator: operator.revoke_all()) == 4
    assert {*sent} == expected
    assert len(sent) == 4
    assert not any(is_live(browser) for browser in browsers)
    assert asked(site, lambda operator: operator.revoke_all()) == 0


def test_the_session_that_asks_for_all_to_be_ended_can_be_spared(
    make_iterated: MakeSite,
) -> None:
    site = make_iterated()
    browser, other = log_in(site), log_in(site, "bob")
    handle = handle_of(browser)

    def view() -> None:
        typed_session.regenerate()
        typed_session.save()
        assert site.extension.revoke_all(except_current=True) == 1

    browser.visit(view)
    assert is_live(browser)
    assert handle_of(browser) != handle
    assert not is_live(other)

    def view_that_spares_nobody() -> None:
        assert site.extension.revoke_all() == 1

    browser.visit(view_that_spares_nobody)
    assert not is_live(browser)


def test_the_session_that_is_spared_is_so_in_the_middle_of_its_rotation(
    site: Site,
) -> None:
    """Both of its records are there then: that of its cookie, and its successor."""
    browser, other = log_in(site), log_in(site, "bob")
    twin = browser.twin()
    ended: list[int] = []

    def end_all() -> None:
        twin.visit(lambda: ended.append(site.extension.revoke_all(True)))

    once(site, "after", "create", end_all)
    browser.visit(lambda: typed_session.regenerate())
    assert ended == [1]
    assert is_live(browser)
    assert not is_live(other)


def test_a_session_that_gets_a_new_id_while_all_are_ended_is_ended_too(
    site: Site,
) -> None:
    browser = log_in(site)
    once(
        site,
        "before",
        "delete",
        lambda: browser.visit(lambda: typed_session.regenerate()),
    )
    assert asked(site, lambda operator: operator.revoke_all()) == 1
    assert not is_live(browser)


def test_sessions_of_other_applications_are_not_ended() -> None:
    backend = MemoryBackend(FakeClock())
    ours = Site({"SESSION_BACKEND": backend}, SESSION_KEY_PREFIX="a:")
    nested = Site({"SESSION_BACKEND": backend}, SESSION_KEY_PREFIX="a:b:")
    browser, other = log_in(ours), log_in(nested)
    assert asked(ours, lambda operator: operator.revoke_all()) == 1
    assert not is_live(browser)
    assert is_live(other)


@pytest.mark.parametrize("name", UNINDEXED)
def test_a_backend_that_cannot_list_its_sessions_cannot_end_all(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    site = Site(make_backend_config(name))
    browser = log_in(site)
    with pytest.raises(NotSupportedError, match="'iterate'"):
        asked(site, lambda operator: operator.revoke_all())
    assert is_live(browser)


def test_how_many_were_ended_is_told_on_the_way(site: Site) -> None:
    prefix = site.state.config.key_prefix
    record = site.backend.load(f"{prefix}{handle_of(log_in(site))}")
    assert record is not None
    for number in range(250):
        site.backend.create(f"{prefix}{number:064x}", record)
    told: list[int] = []
    ended = asked(site, lambda operator: operator.revoke_all(progress=told.append))
    assert ended == 251
    assert told == [100, 100]


# Counting and pruning


def test_only_live_sessions_count(make_site: MakeSite) -> None:
    site = make_site(SESSION_IDLE_TIMEOUT=600)

    def count() -> int:
        return asked(site, lambda operator: operator.count())

    assert count() == 0
    browser = log_in(site)  # which leaves a tombstone
    log_in(site, "bob").visit(clear_and_destroy)
    assert count() == 1
    advance(site, 300)
    site.browser().set(n=1)
    assert count() == 2
    advance(site, 300)
    assert count() == 1
    assert not is_live(browser)


def test_pruning_works_in_batches(make_any: MakeSite) -> None:
    site = make_any(SESSION_IDLE_TIMEOUT=600, SESSION_CLEANUP_BATCH=3)
    for _ in range(5):
        site.browser().set(n=1)
    advance(site, 300)
    browser = site.browser()
    browser.set(n=1)
    advance(site, 300)
    batches: list[int] = []
    deleted = asked(site, lambda operator: operator.prune(2, batches.append))
    if Capability.PRUNE in site.backend.capabilities:
        assert (deleted, batches) == (5, [2, 2, 1])
    else:
        assert Capability.EXPIRES in site.backend.capabilities
        assert (deleted, batches) == (0, [])
    assert asked(site, lambda operator: operator.prune()) == 0
    assert is_live(browser)


def test_the_batch_is_the_configured_one_by_default(make_cleaned: MakeSite) -> None:
    site = make_cleaned(SESSION_CLEANUP_BATCH=3)
    for _ in range(4):
        site.browser().set(n=1)
    advance(site, 600)
    with site.backend.counting() as calls:
        assert asked(site, lambda operator: operator.prune()) == 4
    assert calls == {"prune": 2}


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_nothing_is_refused(make_any: MakeSite, batch: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        asked(make_any(), lambda operator: operator.prune(batch))


def test_a_backend_that_can_neither_prune_nor_expire_says_so() -> None:
    backend = MemoryBackend(FakeClock())
    backend.capabilities = Capability.COMPARE_AND_SWAP  # type: ignore[misc]
    site = Site({"SESSION_BACKEND": backend})
    with pytest.raises(NotSupportedError, match="expired sessions on demand"):
        asked(site, lambda operator: operator.prune())


def test_pruning_leaves_nothing_behind_in_a_folder_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of the backend looks at a part of a large folder only."""
    module = "flask_serversession.backends.filesystem.pruning"
    monkeypatch.setattr(f"{module}._LEAST_LOOKS", 10)
    monkeypatch.setattr(f"{module}._LOOKS_PER_DELETION", 1)
    clock = FakeClock()
    backend = FilesystemBackend(tmp_path, prefix="session:", clock=clock)
    site = Site({"SESSION_BACKEND": backend}, clock, SESSION_IDLE_TIMEOUT=600)
    for _ in range(5):
        site.browser().set(n=1)
    advance(site, 300)
    for _ in range(50):
        site.browser().set(n=1)
    advance(site, 300)
    assert asked(site, lambda operator: operator.prune(5)) == 5


# Automatic cleanup


class Monotonic:
    """Takes the place of the module ``time`` for the extension."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        raise AssertionError("The site's clock was not asked.")


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    fake = Monotonic()
    monkeypatch.setattr("flask_serversession.cleanup.time", fake)
    return fake


def sweeps(site: Site, action: Callable[[], t.Any], browser: Browser | None) -> int:
    with site.backend.counting() as calls:
        (browser or site.browser()).visit(action)
    assert not calls["prune"]
    return calls["sweep"]


def write() -> None:
    session["n"] = 1


def test_a_request_that_creates_a_session_deletes_one_batch_when_that_is_due(
    make_cleaned: MakeSite, monotonic: Monotonic
) -> None:
    site = make_cleaned()
    old = [site.browser() for _ in range(5)]
    for browser in old:
        browser.visit(write)
    advance(site, 600)
    # At some moment of the first interval.
    monotonic.now += 300
    assert sweeps(site, write, None) == 1
    # A batch is two, so three are left: the next new session goes on.
    assert sweeps(site, write, None) == 1
    assert sweeps(site, write, None) == 1
    # The batch was not full, so all are gone: not before another interval.
    assert asked(site, lambda operator: operator.prune()) == 0
    monotonic.now += 299
    assert sweeps(site, write, None) == 0
    monotonic.now += 2
    assert sweeps(site, write, None) == 1


QUIET: dict[str, Callable[[], t.Any]] = {
    "does not look": lambda: None,
    "reads": lambda: session.get("n"),
    "changes": lambda: session.update(n=2),
    "logs in": lambda: session.update(_user_id="ada"),
    "takes a new id": lambda: typed_session.regenerate(),
    "ends": lambda: session.clear(),
}


@pytest.mark.parametrize("name", QUIET)
def test_no_other_request_cleans_up(
    make_cleaned: MakeSite, monotonic: Monotonic, name: str
) -> None:
    site = make_cleaned()
    browser = site.browser()
    browser.visit(write)
    monotonic.now += 10_000
    assert sweeps(site, QUIET[name], browser) == 0
    assert sweeps(site, QUIET["reads"], None) == 0
    assert sweeps(site, write, None) == 1


def test_a_session_that_was_saved_early_cleans_up_once_too(
    make_cleaned: MakeSite, monotonic: Monotonic
) -> None:
    site = make_cleaned()
    monotonic.now += 10_000

    def view() -> None:
        write()
        typed_session.save()
        session["m"] = 2

    assert sweeps(site, view, None) == 1


def test_cleanup_can_be_turned_off(
    make_cleaned: MakeSite, monotonic: Monotonic
) -> None:
    site = make_cleaned(SESSION_CLEANUP_INTERVAL=0)
    monotonic.now += 1_000_000
    assert sweeps(site, write, None) == 0


@pytest.mark.parametrize("name", OTHERS)
def test_engines_that_expire_by_themselves_are_left_alone(
    make_backend_config: Callable[[str], Config], monotonic: Monotonic, name: str
) -> None:
    site = Site(make_backend_config(name))
    monotonic.now += 1_000_000
    assert sweeps(site, write, None) == 0


def test_a_cleanup_that_fails_is_logged_and_fails_no_request(
    make_cleaned: MakeSite, monotonic: Monotonic, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_cleaned()
    monotonic.now += 10_000
    browser = site.browser()
    with site.backend.failing("sweep"):
        assert browser.visit(write).status_code == 200
    assert is_live(browser)
    (record,) = caplog.records
    assert record.name == "flask_serversession"
    assert record.levelno == logging.WARNING
    assert record.message.startswith("Expired sessions could not be deleted: ")
    # It is not tried again at each request.
    assert sweeps(site, write, None) == 0


@pytest.mark.random_cleanup
def test_processes_do_not_clean_up_in_step(monotonic: Monotonic) -> None:
    backend = CountingBackend(MemoryBackend())
    backend.capabilities = Capability.PRUNE
    cleanups = [Cleanup(SessionConfig(), backend) for _ in range(100)]
    done: list[int] = []
    for _ in range(10):
        monotonic.now += 30
        before = backend.calls["sweep"]
        for cleanup in cleanups:
            cleanup()
        done.append(backend.calls["sweep"] - before)
    # The interval is 300 seconds, through which they come one by one.
    assert sum(done) == 100
    assert all(number < 50 for number in done)


@pytest.mark.random_cleanup
def test_expired_records_stay_few_with_workers_that_live_for_a_minute() -> None:
    two_hours = 7_200
    found = simulate(two_hours, rate=10, workers=4, restart_after=60)
    assert found.made == 72_000
    # A sixth of what has expired in that time at the worst moment, and few at the end.
    assert 0 < found.most < 12_000
    # More workers clean up more often, and those that live on at least once in 300 s.
    assert simulate(two_hours, workers=16).most < 3_000
    assert simulate(two_hours, restart_after=two_hours).most <= 3_000
    # However fast sessions begin: a batch for each new one outruns them.
    assert simulate(60 * 30, rate=500, restart_after=two_hours).most <= 150_000
    # Where it is turned off, they pile up.
    assert simulate(1_200, cleanup_interval=0).left == 10 * (1_200 - 600)


@pytest.mark.random_cleanup
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_neither_do_workers_that_were_forked_from_one(monotonic: Monotonic) -> None:
    backend = CountingBackend(MemoryBackend())
    backend.capabilities = Capability.PRUNE
    cleanup = Cleanup(SessionConfig(), backend)
    seconds: set[bytes] = set()
    for _ in range(8):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            while not backend.calls["sweep"]:
                monotonic.now += 1
                cleanup()
            os.write(writing, str(monotonic.now).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        seconds.add(os.read(reading, 100))
        os.close(reading)
        os.close(writing)
    # By chance once in 300**7 runs.
    assert len(seconds) > 1


def test_the_operators_calls_are_made_on_the_current_application() -> None:
    extension = ServerSession(clock=FakeClock())
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        app.config.update(SECRET_KEY=app.name, SESSION_BACKEND="memory", TESTING=True)
        extension.init_app(app)
    with apps[0].test_client().session_transaction() as content:
        content["_user_id"] = "ada"
    counts = {}
    for app in apps:
        with app.app_context():
            assert extension.backend is current_app.extensions["serversession"].backend
            counts[app.name] = extension.count()
    assert counts == {"one": 1, "two": 0}
