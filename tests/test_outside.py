"""Changing sessions from outside of their requests: open() and update_user()."""

from __future__ import annotations

import logging
import threading
import typing as t
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import session

from flask_serversession import BackendUnavailableError
from flask_serversession import ConflictError
from flask_serversession import NotSupportedError
from flask_serversession import RecordError
from flask_serversession import SerializationError
from flask_serversession import ServerSession
from flask_serversession import ServerSessionError
from flask_serversession import ServerSideSession
from flask_serversession import SessionInfo
from flask_serversession import SessionLostError
from flask_serversession import session as typed_session
from flask_serversession import signals
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.testing import FakeClock

from .backend_configs import BACKEND_CONFIGS
from .backend_configs import Config
from .site import Browser
from .site import Site
from .site import advance
from .site import handle_of
from .site import once

MakeSite = Callable[..., Site]
T = t.TypeVar("T")

INDEXED = [name for name in BACKEND_CONFIGS if not name.startswith("cachelib")]
UNINDEXED = [name for name in BACKEND_CONFIGS if name not in INDEXED]


@pytest.fixture
def make_any(backend_config: Config) -> MakeSite:
    """Make a site on each backend in turn."""
    return lambda **settings: Site(backend_config, **settings)


@pytest.fixture(params=INDEXED)
def make_site(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> MakeSite:
    """Make a site on each backend in turn that compares, swaps and lists."""
    config = make_backend_config(request.param)
    return lambda **settings: Site(config, **settings)


@pytest.fixture
def site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


def log_in(site: Site, user: str = "ada", **options: t.Any) -> Browser:
    browser = site.browser()
    browser.visit(lambda: session.update(_user_id=user, n=1), **options)
    return browser


def rotate(browser: Browser) -> None:
    browser.visit(lambda: typed_session.regenerate())


def asked(site: Site, function: Callable[[ServerSession], T]) -> T:
    """Ask as a script does, which has an application but no request."""
    with site.app.app_context():
        return function(site.extension)


def info_of(browser: Browser) -> SessionInfo:
    info = asked(browser.site, lambda operator: operator.find(handle_of(browser)))
    assert info is not None
    return info


def change(
    site: Site, handle: str, function: Callable[[ServerSideSession], object]
) -> None:
    """Change a session from outside."""

    def run(operator: ServerSession) -> None:
        with operator.open(handle) as data:
            function(data)

    asked(site, run)


# What is changed


def test_a_session_is_changed_from_outside(make_any: MakeSite) -> None:
    site = make_any()
    browser, other = log_in(site), log_in(site)
    browser.set(cart={"n": 1})

    def run(operator: ServerSession) -> None:
        with operator.open(handle_of(browser)) as data:
            assert isinstance(data, ServerSideSession)
            assert (data.user, data["n"], data.handle) == (
                *("ada", 1),
                handle_of(browser),
            )
            data["role"] = "editor"
            data["cart"]["n"] += 1
            data.meta["name"] = "laptop"
            del data["n"]

    asked(site, run)
    expected = {"_user_id": "ada", "role": "editor", "cart": {"n": 2}}
    assert browser.read() == expected
    assert info_of(browser).meta == {"name": "laptop"}
    assert other.read() == {"_user_id": "ada", "n": 1}


def test_the_first_digits_of_the_handle_are_enough(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site)
    change(site, handle_of(browser)[:8], lambda data: data.update(n=2))
    assert browser.read()["n"] == 2


def test_what_it_costs_is_a_load_and_a_replace(site: Site) -> None:
    browser = log_in(site)
    with site.backend.counting() as calls:
        change(site, handle_of(browser), lambda data: data.update(n=2))
    assert calls == {"load": 1, "replace": 1}
    with site.backend.counting() as calls:
        change(site, handle_of(browser), lambda data: data["n"])
    assert calls == {"load": 1}
    with site.backend.counting() as calls:
        asked(site, lambda operator: operator.update_user("ada", raise_role))
    assert (calls["load"], calls["replace"]) == (1, 1)


def test_a_block_that_raises_saves_nothing(make_any: MakeSite) -> None:
    site = make_any()
    browser = log_in(site)

    def fail(data: ServerSideSession) -> None:
        data["n"] = 2
        raise KeyError("no")

    with site.backend.counting() as calls, pytest.raises(KeyError):
        change(site, handle_of(browser), fail)
    assert calls == {"load": 1}
    assert browser.read()["n"] == 1


def test_what_cannot_be_written_is_not(site: Site) -> None:
    browser = log_in(site)
    with pytest.raises(SerializationError, match=r"session\['n'\]"):
        change(site, handle_of(browser), lambda data: data.update(n=threading))
    assert browser.read()["n"] == 1


@pytest.mark.parametrize("way", ["clear", "destroy"])
def test_what_is_cleared_is_ended(make_any: MakeSite, way: str) -> None:
    site = make_any()
    browser = log_in(site)
    ended: list[str | None] = []
    with signals.session_destroyed.connected_to(
        lambda sender, handle, **_: ended.append(handle), site.app
    ):
        change(site, handle_of(browser), lambda data: getattr(data, way)())
    assert ended == [handle_of(browser)]
    assert browser.read() == {}


def test_a_session_whose_keys_are_all_removed_is_ended(site: Site) -> None:
    browser = log_in(site)

    def remove(data: ServerSideSession) -> None:
        data.pop("n")
        data.pop("_user_id")

    other = site.browser()
    other.set(n=1)
    change(site, handle_of(other), lambda data: data.pop("n"))
    assert site.backend.count() == 1
    # There is nobody who would have to be told of a new id.
    change(site, handle_of(browser), remove)
    assert site.backend.count() == 0


def test_what_was_saved_in_the_block_stays(site: Site) -> None:
    browser = log_in(site)

    def save_and_fail(data: ServerSideSession) -> None:
        data["n"] = 2
        data.save()
        data["n"] = 3
        raise KeyError("no")

    with pytest.raises(KeyError):
        change(site, handle_of(browser), save_and_fail)
    assert browser.read()["n"] == 2


def test_a_change_is_signalled_and_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    browser = log_in(site)
    saved: list[tuple[str | None, str | None]] = []
    with (
        signals.session_saved.connected_to(
            lambda sender, handle, user: saved.append((handle, user)), site.app
        ),
        caplog.at_level(logging.DEBUG, "flask_serversession"),
    ):
        change(site, handle_of(browser), lambda data: data.update(n=2))
    assert saved == [(handle_of(browser), "ada")]
    assert f"Session {handle_of(browser)} saved: key changed" in caplog.text


def test_the_id_is_nobodys_business(site: Site) -> None:
    browser = log_in(site)
    shown: list[str] = []

    def look(data: ServerSideSession) -> None:
        shown.extend((data.id, repr(data)))

    change(site, handle_of(browser), look)
    assert shown[0] == ""
    assert browser.id not in shown[1]


# It is no activity


def test_to_change_a_session_from_outside_is_no_activity(make_any: MakeSite) -> None:
    site = make_any(SESSION_IDLE_TIMEOUT=600, SESSION_TRACK=("user_agent",))
    browser = log_in(site, headers={"User-Agent": "Desktop/1"})
    before = info_of(browser)
    advance(site, 300)
    change(site, handle_of(browser), lambda data: data.update(n=2))
    after = info_of(browser)
    assert (after.last_seen_at, after.expires_at) == (
        before.last_seen_at,
        before.expires_at,
    )
    assert after.meta == {"user_agent": "Desktop/1"}
    advance(site, 299)
    assert asked(site, lambda operator: operator.find(handle_of(browser)))
    advance(site, 1)
    assert browser.read() == {}


def test_it_keeps_where_the_session_was_seen_meanwhile(site: Site) -> None:
    tracking = Site(
        {"SESSION_BACKEND": site.backend}, site.clock, SESSION_TRACK=("user_agent",)
    )
    browser = log_in(tracking, headers={"User-Agent": "Desktop/1"})
    browser.site = tracking

    def slowly(data: ServerSideSession) -> None:
        data["m"] = 1
        browser.visit(lambda: session.update(n=2), headers={"User-Agent": "Phone/2"})

    change(tracking, handle_of(browser), slowly)
    assert info_of(browser).meta == {"user_agent": "Phone/2"}


def test_a_lifetime_that_is_set_counts_from_the_last_activity(site: Site) -> None:
    browser = log_in(site)
    begin = info_of(browser).last_seen_at.timestamp()
    advance(site, 100)
    change(site, handle_of(browser), lambda data: setattr(data, "lifetime", 300))
    assert info_of(browser).expires_at.timestamp() == begin + 300
    change(site, handle_of(browser), lambda data: setattr(data, "lifetime", 1000))
    assert info_of(browser).expires_at.timestamp() == begin + 1000
    change(site, handle_of(browser), lambda data: setattr(data, "lifetime", 99))
    assert browser.read() == {}


def test_an_id_that_is_to_be_renewed_waits_for_its_browser(site: Site) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_RENEWAL_INTERVAL=60)
    browser = log_in(site)
    handle = handle_of(browser)
    advance(site, 100)
    change(site, handle, lambda data: data.update(n=2))
    assert info_of(browser).handle == handle
    assert browser.read()["n"] == 2
    assert handle_of(browser) != handle


# The user and the id stay


@pytest.mark.parametrize("user", ["bob", None])
def test_the_user_cannot_be_changed_from_outside(
    make_any: MakeSite, user: str | None
) -> None:
    site = make_any()
    browser = log_in(site)

    def take_over(data: ServerSideSession) -> None:
        data["n"] = 2
        if user is None:
            del data["_user_id"]
        else:
            data["_user_id"] = user

    with pytest.raises(ServerSessionError, match=r"keeps its id and its user"):
        change(site, handle_of(browser), take_over)
    assert browser.read() == {"_user_id": "ada", "n": 1}


def write_after_the_end(data: ServerSideSession) -> None:
    data.destroy()
    data["n"] = 2


def test_a_new_id_cannot_be_given_from_outside(site: Site) -> None:
    browser = log_in(site)
    handle = handle_of(browser)
    for function in (
        lambda data: data.regenerate(),
        lambda data: data.regenerate(keep_data=False),
    ):
        with pytest.raises(ServerSessionError, match="keeps its id"):
            change(site, handle, t.cast("t.Any", function))
    assert browser.read() == {"_user_id": "ada", "n": 1}
    with pytest.raises(ServerSessionError, match="keeps its id"):
        change(site, handle, write_after_the_end)
    assert browser.read() == {}


def test_a_user_may_be_changed_where_no_id_goes_with_it(site: Site) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_REGENERATE_ON_LOGIN=False)
    browser = log_in(site)
    change(site, handle_of(browser), lambda data: data.update(_user_id="bob"))
    assert info_of(browser).user == "bob"


# There is no such session


@pytest.mark.parametrize("on_lost", ["drop", "raise"])
def test_a_session_that_is_not_there_cannot_be_opened(
    make_any: MakeSite, on_lost: str
) -> None:
    site = make_any(SESSION_ON_LOST=on_lost, SESSION_IDLE_TIMEOUT=600)
    browser = log_in(site)
    handle = handle_of(browser)
    unknown = "0" * 64
    for wrong in (handle[:7], browser.id, "", handle.upper()):
        with pytest.raises(SessionLostError) as caught:
            change(site, wrong, lambda data: data.update(n=2))
        assert str(caught.value) == (
            "This is not a handle: it has 64 hexadecimal digits, of which the first"
            " 8 or more are enough. session.handle and sessions_of() give it; the id"
            " in the cookie is something else."
        )
    with pytest.raises(SessionLostError) as caught:
        change(site, unknown, lambda data: data.update(n=2))
    assert str(caught.value) == (
        "There is no session '000000000000'. It may have ended, or have a new handle,"
        " as it gets when somebody logs in or out."
    )
    advance(site, 600)
    with pytest.raises(SessionLostError):
        change(site, handle, lambda data: data.update(n=2))
    assert browser.read() == {}


@pytest.mark.parametrize(
    "settings", [{"SESSION_ABSOLUTE_TIMEOUT": 50}, {"SECRET_KEY": None}]
)
def test_what_requests_would_not_accept_cannot_be_opened(
    site: Site, settings: dict[str, t.Any]
) -> None:
    browser = log_in(site)
    advance(site, 100)
    other = Site({"SESSION_BACKEND": site.backend}, site.clock, **settings)
    with pytest.raises(SessionLostError):
        change(other, handle_of(browser), lambda data: data.update(n=2))


def test_a_session_that_was_idle_for_longer_than_its_lifetime_is_none(
    site: Site,
) -> None:
    browser = log_in(site)
    key = f"session:{handle_of(browser)}"
    browser.visit(lambda: setattr(typed_session, "lifetime", 60))
    now = site.clock()
    assert site.backend.touch(key, now, now + 1000)
    advance(site, 61)
    with pytest.raises(SessionLostError):
        change(site, handle_of(browser), lambda data: data.update(n=2))


def test_a_damaged_session_says_so(site: Site) -> None:
    browser = log_in(site)
    encrypted = Site(
        {"SESSION_BACKEND": site.backend}, site.clock, SESSION_ENCRYPTION_KEY=bytes(32)
    )
    with pytest.raises(RecordError, match="is not encrypted"):
        change(encrypted, handle_of(browser), lambda data: data.update(n=2))


def test_several_sessions_that_begin_like_that_are_not_opened(site: Site) -> None:
    record = site.backend.load(f"session:{handle_of(log_in(site))}")
    assert record is not None
    for number in range(2):
        site.backend.create(f"session:0123456789{number:054x}", record)
    with pytest.raises(LookupError, match="2 sessions begin with 0123456789"):
        change(site, "0123456789", lambda data: data.update(n=2))


@pytest.mark.parametrize("name", UNINDEXED)
def test_a_backend_that_cannot_look_for_digits_says_so(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    site = Site(make_backend_config(name))
    browser = log_in(site)
    with pytest.raises(NotSupportedError, match="'iterate'"):
        change(site, handle_of(browser)[:12], lambda data: data.update(n=2))
    with pytest.raises(NotSupportedError, match="'keys_of_user'"):
        asked(site, lambda operator: operator.update_user("ada", raise_role))
    change(site, handle_of(browser), lambda data: data.update(n=2))
    assert browser.read()["n"] == 2


@pytest.mark.parametrize("policy", ["raise", "ignore"])
@pytest.mark.parametrize("operation", ["load", "replace"])
def test_a_backend_that_is_down_is_never_taken_for_a_success(
    site: Site, operation: str, policy: str
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR=policy)
    browser = log_in(site)
    failed: list[object] = []
    with (
        signals.backend_failed.connected_to(
            lambda sender, **event: failed.append(event), site.app
        ),
        site.backend.failing(operation),
        pytest.raises(BackendUnavailableError),
    ):
        change(site, handle_of(browser), lambda data: data.update(n=2))
    assert failed == []  # which is for requests
    assert browser.read()["n"] == 1


# Ended while it is open


@pytest.mark.parametrize("on_lost", ["drop", "raise"])
@pytest.mark.parametrize("way", ["revoke", "log out", "clear", "expire"])
def test_a_session_that_ends_while_it_is_open_never_comes_back(
    make_site: MakeSite, way: str, on_lost: str
) -> None:
    site = make_site(SESSION_ON_LOST=on_lost, SESSION_IDLE_TIMEOUT=600)
    browser = log_in(site)
    handle = handle_of(browser)
    twin = browser.twin()

    def end() -> None:
        if way == "revoke":
            assert asked(site, lambda operator: operator.revoke(handle))
        elif way == "expire":
            advance(site, 600)
        else:
            twin.visit(lambda: session.clear())

    once(site, "before", "replace", end)
    with pytest.raises(SessionLostError):
        change(site, handle, lambda data: data.update(n=2))
    assert "replace" not in site.backend.before
    assert asked(site, lambda operator: operator.find(handle)) is None
    assert browser.read() == {}
    if way != "expire":
        assert site.backend.count() == 0


def test_an_end_after_a_conflict_is_one_too(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site)
    handle = handle_of(browser)
    twin = browser.twin()
    numbers = iter(range(100))

    def be_in_the_way() -> None:
        number = next(numbers)
        if number < 3:
            site.backend.before.pop("replace", None)
            twin.set(m=number)
            site.backend.before["replace"] = be_in_the_way
        else:
            site.backend.before.pop("replace", None)
            assert asked(site, lambda operator: operator.revoke(handle))

    site.backend.before["replace"] = be_in_the_way
    with pytest.raises(SessionLostError):
        change(site, handle, lambda data: data.update(n=2))
    assert browser.read() == {}


def test_to_only_look_at_a_session_that_ends_is_no_failure(site: Site) -> None:
    browser = log_in(site)
    twin = browser.twin()

    def look(data: ServerSideSession) -> None:
        twin.visit(lambda: session.clear())
        assert data["n"] == 1

    change(site, handle_of(browser), look)
    assert browser.read() == {}


@pytest.mark.parametrize("way", ["clear", "destroy"])
def test_to_end_what_has_ended_is_no_failure(make_site: MakeSite, way: str) -> None:
    site = make_site()
    browser = log_in(site)
    twin = browser.twin()
    rejected: list[object] = []

    def end(data: ServerSideSession) -> None:
        twin.visit(lambda: session.clear())
        getattr(data, way)()

    with signals.session_rejected.connected_to(
        lambda sender, **event: rejected.append(event), site.app
    ):
        change(site, handle_of(browser), end)
    assert rejected == []
    assert site.backend.count() == 0


# Another request changes it meanwhile


def test_changes_of_a_request_and_from_outside_are_merged(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site)
    browser.set(both=0, list=[1])
    twin = browser.twin()

    def there() -> None:
        session.update(theirs=1, both=1)
        session["list"].append(2)

    def here(data: ServerSideSession) -> None:
        data.update(mine=2, both=2)
        data["list"].append(3)

    once(site, "before", "replace", lambda: twin.visit(there))
    change(site, handle_of(browser), here)
    assert browser.read() == {
        **{"_user_id": "ada", "n": 1, "both": 2, "list": [1, 2, 3]},
        **{"theirs": 1, "mine": 2},
    }


def test_a_request_that_runs_meanwhile_is_merged_with_what_was_changed(
    make_site: MakeSite,
) -> None:
    site = make_site()
    browser = log_in(site)
    handle = handle_of(browser)

    def change_it() -> None:
        change(site, handle, lambda data: data.update(mine=2, n=7))

    once(site, "before", "replace", lambda: in_thread(change_it))
    browser.set(theirs=1, n=5)
    assert browser.read() == {"_user_id": "ada", "n": 5, "theirs": 1, "mine": 2}


def test_a_conflict_is_one_from_outside_too() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_CONFLICT="raise")
    browser = log_in(site)
    twin = browser.twin()
    once(site, "before", "replace", lambda: twin.set(m=1))
    with pytest.raises(ConflictError):
        change(site, handle_of(browser), lambda data: data.update(n=2))
    assert browser.read() == {"_user_id": "ada", "n": 1, "m": 1}


# Another request gives it a new id meanwhile


@pytest.mark.parametrize("moment", ["before the load", "before the replace"])
@pytest.mark.parametrize("way", ["regenerate", "renew", "twice"])
def test_a_change_follows_a_session_to_its_new_id(
    make_site: MakeSite, way: str, moment: str
) -> None:
    site = make_site(
        SESSION_RENEWAL_INTERVAL=60 if way == "renew" else None,
        SESSION_ENCRYPTION_KEY=bytes(32),
    )
    browser = log_in(site)
    handle = handle_of(browser)
    twin = browser.twin()

    def change_id() -> None:
        if way == "renew":
            advance(site, 61)
            twin.set(theirs=1)
            return

        def view() -> None:
            session["theirs"] = 1
            typed_session.regenerate()

        twin.visit(view)
        if way == "twice":
            rotate(twin)

    once(site, "before", moment.rpartition(" ")[2], change_id)
    change(site, handle, lambda data: data.update(mine=2))
    assert handle_of(twin) != handle
    assert twin.read() == {"_user_id": "ada", "n": 1, "theirs": 1, "mine": 2}
    assert site.backend.count() == 1


def test_a_change_follows_after_a_conflict_too(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site)
    twin = browser.twin()

    def rotate_later() -> None:
        twin.set(first=1)
        once(site, "before", "replace", rotate_at_the_second)

    def rotate_at_the_second() -> None:
        twin.set(second=1)
        # The pause comes before the record is loaded again.
        once(site, "before", "load", lambda: rotate(twin))

    once(site, "before", "replace", rotate_later)
    change(site, handle_of(browser), lambda data: data.update(mine=2))
    expected = {"_user_id": "ada", "n": 1, "first": 1, "second": 1, "mine": 2}
    assert twin.read() == expected


def test_a_change_does_not_follow_to_another_user(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site)
    twin = browser.twin()
    once(site, "before", "replace", lambda: twin.set(_user_id="bob"))
    with pytest.raises(SessionLostError):
        change(site, handle_of(browser), lambda data: data.update(role="editor"))
    assert twin.read() == {"_user_id": "bob", "n": 1}


def test_a_session_that_ends_after_it_got_a_new_id_does_not_come_back(
    make_site: MakeSite,
) -> None:
    site = make_site()
    browser = log_in(site)
    twin = browser.twin()

    def rotate_and_end() -> None:
        rotate(twin)
        twin.visit(lambda: session.clear())

    once(site, "before", "replace", rotate_and_end)
    with pytest.raises(SessionLostError):
        change(site, handle_of(browser), lambda data: data.update(mine=2))
    assert twin.read() == {}
    assert site.backend.count() == 0


@pytest.mark.parametrize("way", ["clear", "destroy"])
def test_an_end_from_outside_follows_to_the_new_id(
    make_site: MakeSite, way: str
) -> None:
    site = make_site()
    browser = log_in(site)
    twin = browser.twin()
    once(site, "before", "delete", lambda: rotate(twin))
    change(site, handle_of(browser), lambda data: getattr(data, way)())
    assert twin.read() == {}
    assert site.backend.count() == 0


def test_in_the_middle_of_a_rotation_the_change_reaches_the_new_id(
    make_site: MakeSite,
) -> None:
    """The successor is stored, and nobody was told of it yet."""
    site = make_site()
    browser = log_in(site)
    before = handle_of(browser)
    twin = browser.twin()

    def change_both() -> None:
        keys = site.backend.keys_of_user("ada")
        (successor,) = {key[-64:] for key in keys} - {before}
        change(site, successor, lambda data: data.update(by_successor=1))
        change(site, before, lambda data: data.update(by_predecessor=1))

    once(site, "after", "create", lambda: in_thread(change_both))
    rotate(twin)
    assert twin.read() == {
        **{"_user_id": "ada", "n": 1},
        **{"by_successor": 1, "by_predecessor": 1},
    }
    assert site.backend.count() == 1


def in_thread(function: Callable[[], object]) -> None:
    """Run a function where no request is active."""
    with ThreadPoolExecutor() as executor:
        executor.submit(function).result()


# The session of the current request


def test_the_session_of_the_current_request_is_its_own(make_any: MakeSite) -> None:
    site = make_any(SESSION_CONFLICT="overwrite")
    browser = log_in(site)

    def view() -> None:
        session["before"] = 1
        with site.extension.open(typed_session.handle) as data:
            assert data is session._get_current_object()  # type: ignore[attr-defined]
            data["n"] = 2
        assert session["n"] == 2
        session["after"] = 1

    browser.visit(view)
    assert browser.read() == {"_user_id": "ada", "n": 2, "before": 1, "after": 1}


def test_a_block_about_the_own_session_that_raises_is_undone(site: Site) -> None:
    browser = log_in(site)
    browser.set(list=[1])

    def change_and_fail(data: ServerSideSession) -> None:
        data["n"] = 2
        data["list"].append(3)
        data.meta["name"] = "x"
        data["before"] = 2
        raise KeyError("no")

    def view() -> None:
        session["before"] = 1
        session["list"].append(2)
        with pytest.raises(KeyError):
            change(site, typed_session.handle, change_and_fail)
        assert session["before"] == 1

    browser.visit(view)
    assert browser.read() == {"_user_id": "ada", "n": 1, "list": [1, 2], "before": 1}
    assert info_of(browser).meta == {}


def test_the_own_session_is_found_under_the_id_that_it_had(site: Site) -> None:
    browser = log_in(site)
    first = handle_of(browser)

    def view() -> None:
        typed_session.regenerate()
        typed_session.save()
        with site.extension.open(first) as data:
            data["n"] = 2
        assert session["n"] == 2

    browser.visit(view)
    assert browser.read()["n"] == 2


def test_the_own_session_that_was_ended_is_none(site: Site) -> None:
    browser = log_in(site)
    handle = handle_of(browser)

    def view() -> None:
        assert site.extension.revoke(handle)
        with pytest.raises(SessionLostError), site.extension.open(handle) as data:
            data["n"] = 2

    browser.visit(view)

    browser = log_in(site)
    handle, twin = handle_of(browser), browser.twin()

    def change_what_ends(data: ServerSideSession) -> None:
        data["n"] = 2
        twin.visit(lambda: session.clear())

    def view_that_is_too_late() -> None:
        with pytest.raises(SessionLostError) as caught:
            change(site, handle, change_what_ends)
        assert str(caught.value) == (
            "Another request ended the session, or gave it a new id, while this one"
            " ran; its changes are dropped."
        )

    browser.visit(view_that_is_too_late)
    assert browser.read() == {}


@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_the_own_session_that_cannot_be_loaded_is_not_taken_for_absent(
    policy: str,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_BACKEND_ERROR=policy)
    browser = log_in(site)
    handle = handle_of(browser)

    def view() -> None:
        with (
            site.backend.failing("load"),
            pytest.raises(BackendUnavailableError),
            site.extension.open(handle) as data,
        ):
            data["n"] = 2
        with pytest.raises(BackendUnavailableError):
            site.extension.update_user("ada", count_up)

    browser.visit(view)
    assert browser.read()["n"] == 1


def test_a_new_session_is_not_there_yet(site: Site) -> None:
    def view() -> None:
        handle = typed_session.handle
        with pytest.raises(SessionLostError), site.extension.open(handle) as data:
            data["n"] = 2

    site.browser().visit(view)
    assert site.backend.count() == 0


def test_an_administrator_changes_another_session_and_not_the_own(site: Site) -> None:
    browser, admin = log_in(site), log_in(site, "root")
    handle = handle_of(browser)

    def view() -> None:
        with site.extension.open(handle) as data:
            data["role"] = "editor"

    admin.visit(view)
    assert browser.read()["role"] == "editor"
    assert "role" not in admin.read()


# All sessions of a user


def raise_role(data: ServerSideSession) -> None:
    data["role"] = "editor"


def count_up(data: ServerSideSession) -> None:
    data["n"] = data.get("n", 0) + 1


def test_all_sessions_of_a_user_are_changed(make_site: MakeSite) -> None:
    site = make_site()
    browsers = [log_in(site) for _ in range(3)]
    other = log_in(site, "bob")
    assert asked(site, lambda operator: operator.update_user("ada", raise_role)) == 3
    assert [browser.read()["role"] for browser in browsers] == ["editor"] * 3
    assert "role" not in other.read()
    assert asked(site, lambda operator: operator.update_user("eve", raise_role)) == 0


def test_nobody_is_no_user(make_any: MakeSite) -> None:
    site = make_any()
    site.browser().set(n=1)
    with pytest.raises(ValueError, match="None is nobody") as caught:
        asked(site, lambda operator: operator.update_user(None, raise_role))
    assert str(caught.value) == (
        "update_user() takes a user, and None is nobody: it would change the sessions"
        " of all who are not logged in."
    )


def test_a_function_that_nobody_would_await_is_refused(site: Site) -> None:
    async def later(data: ServerSideSession) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="not async") as caught:
        asked(site, lambda operator: operator.update_user("ada", later))
    assert str(caught.value) == (
        "update_user() takes a function that is not async; it would never be awaited."
    )


def test_the_function_runs_again_on_what_a_request_has_saved(
    make_site: MakeSite,
) -> None:
    site = make_site()
    browser = log_in(site)
    twin = browser.twin()
    once(site, "before", "replace", lambda: twin.set(n=10))
    assert asked(site, lambda operator: operator.update_user("ada", count_up)) == 1
    assert browser.read() == {"_user_id": "ada", "n": 11}


def test_a_session_that_ends_meanwhile_is_left_out(make_site: MakeSite) -> None:
    site = make_site()
    browser, other = log_in(site), log_in(site)
    ended: list[Browser] = []

    def end_the_first(data: ServerSideSession) -> None:
        if not ended:
            ended.extend(b for b in (browser, other) if handle_of(b) == data.handle)
            twin = ended[0].twin()
            in_thread(lambda: twin.visit(lambda: session.clear()))
        raise_role(data)

    assert asked(site, lambda operator: operator.update_user("ada", end_the_first)) == 1
    (left,) = {browser, other} - {*ended}
    assert left.read()["role"] == "editor"
    assert ended[0].read() == {}
    assert site.backend.count() == 1


@pytest.mark.parametrize("moment", ["load", "replace"])
def test_a_session_that_gets_a_new_id_meanwhile_is_changed_once(
    make_site: MakeSite, moment: str
) -> None:
    site = make_site()
    browser = log_in(site)
    twin = browser.twin()
    once(site, "before", moment, lambda: rotate(twin))
    assert asked(site, lambda operator: operator.update_user("ada", count_up)) == 1
    assert twin.read() == {"_user_id": "ada", "n": 2}


def test_a_session_that_gets_new_ids_after_it_was_changed_is_changed_once(
    make_site: MakeSite,
) -> None:
    site = make_site()
    browser = log_in(site)

    def rotate_twice() -> None:
        for _ in range(2):
            rotate(browser)

    once(site, "after", "replace", rotate_twice)
    assert asked(site, lambda operator: operator.update_user("ada", count_up)) == 1
    assert browser.read() == {"_user_id": "ada", "n": 2}


def test_a_listing_that_misses_a_session_in_rotation_is_not_believed() -> None:
    class Forgetful(MemoryBackend):
        listings = 0

        def keys_of_user(self, user: str) -> list[str]:
            self.listings += 1
            return [] if self.listings == 1 else super().keys_of_user(user)

    site = Site({"SESSION_BACKEND": Forgetful(FakeClock())})
    browser = log_in(site)
    assert asked(site, lambda operator: operator.update_user("ada", count_up)) == 1
    assert browser.read()["n"] == 2


def test_in_the_middle_of_a_rotation_a_session_is_changed_once(
    make_site: MakeSite,
) -> None:
    site = make_site()
    browser = log_in(site)
    updated: list[int] = []

    def update() -> None:
        with site.app.app_context():
            updated.append(site.extension.update_user("ada", count_up))

    once(site, "after", "create", lambda: in_thread(update))
    rotate(browser)
    assert updated == [1]
    assert browser.read() == {"_user_id": "ada", "n": 2}
    assert site.backend.count() == 1


def test_a_session_that_gets_another_user_meanwhile_is_left_out(
    make_site: MakeSite,
) -> None:
    site = make_site()
    for moment in ("load", "replace"):
        browser = log_in(site)
        twin = browser.twin()
        once(site, "before", moment, lambda twin=twin: twin.set(_user_id="bob"))
        updated = asked(site, lambda operator: operator.update_user("ada", raise_role))
        assert updated == 0
        assert twin.read() == {"_user_id": "bob", "n": 1}


def test_a_session_that_gets_another_user_but_no_new_id_is_left_out(site: Site) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_REGENERATE_ON_LOGIN=False)
    browser = log_in(site)
    twin = browser.twin()
    once(site, "before", "replace", lambda: twin.set(_user_id="bob"))
    assert asked(site, lambda operator: operator.update_user("ada", raise_role)) == 0
    assert browser.read() == {"_user_id": "bob", "n": 1}


def test_the_session_of_the_request_is_changed_as_its_view_sees_it(
    make_site: MakeSite,
) -> None:
    site = make_site(SESSION_CONFLICT="overwrite")
    browser, other = log_in(site), log_in(site)

    def view() -> None:
        session["m"] = 1
        assert site.extension.update_user("ada", count_up) == 2
        assert session["n"] == 2
        session["m"] += 1

    browser.visit(view)
    assert browser.read() == {"_user_id": "ada", "n": 2, "m": 2}
    assert other.read() == {"_user_id": "ada", "n": 2}


def test_a_function_may_end_sessions(make_site: MakeSite) -> None:
    site = make_site()
    keep, end = log_in(site), log_in(site)
    end.set(old=True)

    def end_the_old(data: ServerSideSession) -> None:
        if data.get("old"):
            data.clear()

    assert asked(site, lambda operator: operator.update_user("ada", end_the_old)) == 2
    assert keep.read()["n"] == 1
    assert end.read() == {}


def test_a_function_that_raises_changes_nothing_more(site: Site) -> None:
    browsers = [log_in(site) for _ in range(3)]
    runs: list[str] = []

    def fail_at_the_second(data: ServerSideSession) -> None:
        runs.append(data.handle)
        raise_role(data)
        if len(runs) == 2:
            raise KeyError("no")

    with pytest.raises(KeyError):
        asked(site, lambda operator: operator.update_user("ada", fail_at_the_second))
    changed = [browser for browser in browsers if "role" in browser.read()]
    assert [handle_of(browser) for browser in changed] == runs[:1]


def test_what_a_later_version_has_written_is_told_of_in_the_end() -> None:
    class Newer(MemoryBackend):
        def load(self, key: str) -> t.Any:
            if key == newer:
                raise RecordError("The record has format 9; this is 1.", "newer")
            return super().load(key)

    newer = ""
    site = Site({"SESSION_BACKEND": Newer(FakeClock())})
    browser, other = log_in(site), log_in(site)
    newer = f"session:{handle_of(other)}"
    with pytest.raises(RecordError, match="format 9"):
        asked(site, lambda operator: operator.update_user("ada", raise_role))
    assert browser.read()["role"] == "editor"


def test_what_cannot_be_read_is_no_session_to_be_changed(site: Site) -> None:
    log_in(site)
    encrypted = Site(
        {"SESSION_BACKEND": site.backend}, site.clock, SESSION_ENCRYPTION_KEY=bytes(32)
    )
    assert (
        asked(encrypted, lambda operator: operator.update_user("ada", raise_role)) == 0
    )


def test_a_session_that_ends_meanwhile_was_not_changed(site: Site) -> None:
    browser = log_in(site)
    twin = browser.twin()

    def end(data: ServerSideSession) -> None:
        data["n"] = 2
        twin.visit(lambda: session.clear())

    assert asked(site, lambda operator: operator.update_user("ada", end)) == 0
    assert browser.read() == {}
