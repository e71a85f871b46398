"""Each signal: when it is sent, how often, with what, and what receivers may do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from blinker import ANY
from blinker import NamedSignal
from flask import Response
from flask import session
from werkzeug.test import TestResponse

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import SessionLostError
from flask_serversession import session as typed_session
from flask_serversession import signals

from .backend_configs import Config
from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of
from .site import handle_of

Action = Callable[[], t.Any]

SIGNALS: dict[str, NamedSignal] = {
    name: value
    for name, value in vars(signals).items()
    if isinstance(value, NamedSignal)
}


class Event(t.NamedTuple):
    """A signal as it was received."""

    name: str
    handle: str | None
    user: str | None
    more: dict[str, t.Any]


class Listener:
    """Receives all signals of a site, and checks what must be true of all of them."""

    def __init__(self, site: Site, ids: list[str]) -> None:
        self.events: list[Event] = []
        self._site = site
        self._ids = ids
        self._receivers = {name: self._make(name) for name in SIGNALS}
        for name, receiver in self._receivers.items():
            SIGNALS[name].connect(receiver, site.app)

    def _make(self, name: str) -> Callable[..., None]:
        def receive(sender: object, **values: t.Any) -> None:
            assert sender is self._site.app  # the object itself, and no proxy of it
            for id in self._ids:
                assert id not in repr(values)
                assert not any(id in str(value) for value in values.values())
            self.events.append(
                Event(name, values.pop("handle"), values.pop("user"), values)
            )

        return receive

    def take(self) -> list[Event]:
        """Give what was received since the last time."""
        events, self.events = self.events, []
        return events


def make_site(config: Config | None = None, **settings: t.Any) -> tuple[Site, Listener]:
    ids: list[str] = []

    def make_id() -> str:
        ids.append(secrets.token_urlsafe(32))
        return ids[-1]

    site = Site(
        config or {"SESSION_BACKEND": "memory"},
        SESSION_ID_GENERATOR=make_id,
        **settings,
    )
    return site, Listener(site, ids)


@pytest.fixture
def heard() -> tuple[Site, Listener]:
    return make_site()


def log_in(site: Site, user: str = "ada") -> Browser:
    browser = site.browser()
    browser.set(n=1, cart=[], _user_id=user)
    return browser


def clear_and_destroy() -> None:
    session.clear()
    typed_session.destroy()


# The life of a session, on every backend


def test_the_signals_of_a_session_from_its_beginning_to_its_end(
    backend_config: Config,
) -> None:
    site, listener = make_site(backend_config)
    browser = site.browser()
    browser.set(n=1, cart=[])
    first = handle_of(browser)
    assert listener.take() == [("session_created", first, None, {})]
    browser.visit(lambda: session["cart"].append("apple"))
    assert listener.take() == [("session_saved", first, None, {})]
    browser.set(_user_id=7)
    second = handle_of(browser)
    assert listener.take() == [
        ("session_regenerated", second, "7", {"previous": first})
    ]
    browser.set(n=2)
    assert listener.take() == [("session_saved", second, "7", {})]
    late = browser.twin()
    browser.visit(lambda: (session.get("n"), typed_session.destroy()))
    logged_out = {"reason": "logged out"}
    assert listener.take() == [("session_destroyed", second, "7", logged_out)]
    late.read()
    more = {"reason": "ended", "ended": "logged out"}
    assert listener.take() == [("session_rejected", second, None, more)]
    with site.backend.failing("create"):
        browser.set(n=1)
    (event,) = listener.take()
    assert event.name == "backend_failed"
    assert event.more["operation"] == "create"


def test_a_session_that_is_lost_is_told_of(backend_config: Config) -> None:
    site, listener = make_site(backend_config)
    browser = log_in(site)
    handle = handle_of(browser)
    twin = browser.twin()
    listener.take()

    def view() -> None:
        assert session["n"] == 1
        twin.visit(clear_and_destroy)
        session["n"] = 2

    browser.visit(view)
    assert listener.take() == [
        ("session_destroyed", handle, None, {"reason": "logged out"}),
        ("session_lost", handle, "ada", {}),
    ]


def test_who_is_told_of_a_loss_finds_no_successor_in_the_store() -> None:
    site, _ = make_site({"SESSION_BACKEND": "memory"})
    browser = log_in(site)
    found: list[int] = []

    def look(_: object, **__: object) -> None:
        found.append(site.extension.count())

    def view() -> None:
        typed_session.regenerate()
        site.extension.revoke(typed_session.handle)

    with signals.session_lost.connected_to(look):
        browser.visit(view)
    assert found == [0]


def test_a_session_that_a_receiver_ends_at_once_is_not_named_to_the_browser() -> None:
    site, _ = make_site({"SESSION_BACKEND": "memory"})
    browser = log_in(site)

    def end(_: object, handle: str, **__: object) -> None:
        site.extension.revoke(handle)

    with signals.session_regenerated.connected_to(end):
        response = browser.visit(lambda: typed_session.regenerate())
    assert cookie_of(response, site) == "none"


# Exactly when, and how often


def save_early() -> None:
    session["m"] = 1
    typed_session.save()
    typed_session.save()


def save_twice() -> None:
    save_early()
    session["m"] = 2


def change_mind() -> None:
    session["m"] = 1
    del session["m"]


def save_rotated() -> None:
    typed_session.regenerate()
    typed_session.save()


def start_over() -> None:
    typed_session.regenerate(keep_data=False)
    session["m"] = 1


def end_and_begin() -> None:
    typed_session.destroy()
    session["m"] = 1


def end_twice() -> None:
    typed_session.destroy()
    typed_session.destroy()
    session.clear()


def empty() -> None:
    for key in list(session):
        del session[key]


CREATED, SAVED = "session_created", "session_saved"
REGENERATED, DESTROYED = "session_regenerated", "session_destroyed"

ROWS: dict[str, tuple[bool, Action, list[str], dict[str, t.Any]]] = {
    # without a session before
    "nothing": (False, lambda: None, [], {}),
    "reads nothing": (False, lambda: session.get("n"), [], {}),
    "begins": (False, lambda: session.update(m=1), [CREATED], {}),
    "begins and saves": (False, save_early, [CREATED], {}),
    "begins, saves and changes": (False, save_twice, [CREATED, SAVED], {}),
    "begins and logs in": (False, lambda: session.update(_user_id=1), [CREATED], {}),
    "begins with a new id": (
        False,
        lambda: (typed_session.regenerate(), session.update(m=1)),
        [CREATED],
        {},
    ),
    "changes its mind": (False, change_mind, [], {}),
    "clears nothing": (False, lambda: session.clear(), [], {}),
    "destroys nothing": (False, lambda: typed_session.destroy(), [], {}),
    "uninitialized": (
        False,
        lambda: None,
        [CREATED],
        {"SESSION_SAVE_UNINITIALIZED": True},
    ),
    # with one
    "does not look": (True, lambda: None, [], {}),
    "reads": (True, lambda: session["n"], [], {}),
    "looks into a value": (True, lambda: session["cart"], [], {}),
    "touches": (True, lambda: typed_session.touch(), [], {}),
    "reloads": (True, lambda: typed_session.reload(), [], {}),
    "resaves": (True, lambda: session["n"], [SAVED], {"SESSION_RESAVE": True}),
    "changes": (True, lambda: session.update(n=2), [SAVED], {}),
    "changes a value": (True, lambda: session["cart"].append(1), [SAVED], {}),
    "says it is modified": (
        True,
        lambda: (session["n"], setattr(session, "modified", True)),
        [SAVED],
        {},
    ),
    "lives longer": (
        True,
        lambda: setattr(typed_session, "lifetime", 60),
        [SAVED],
        {},
    ),
    "saves": (True, save_early, [SAVED], {}),
    "saves and changes": (True, save_twice, [SAVED, SAVED], {}),
    "counts": (
        True,
        lambda: typed_session.atomic(lambda own: own.update(n=2)),
        [SAVED],
        {},
    ),
    "takes a new id": (True, lambda: typed_session.regenerate(), [REGENERATED], {}),
    "takes a new id and saves": (True, save_rotated, [REGENERATED], {}),
    "changes the user": (True, lambda: session.update(_user_id=2), [REGENERATED], {}),
    "changes the user only": (
        True,
        lambda: session.update(_user_id=2),
        [SAVED],
        {"SESSION_REGENERATE_ON_LOGIN": False},
    ),
    "logs out": (True, lambda: session.pop("_user_id"), [REGENERATED], {}),
    "starts over": (True, start_over, [REGENERATED, DESTROYED], {}),
    "destroys": (True, lambda: typed_session.destroy(), [DESTROYED], {}),
    "reads and destroys": (
        True,
        lambda: (session["n"], typed_session.destroy()),
        [DESTROYED],
        {},
    ),
    "clears": (True, lambda: session.clear(), [DESTROYED], {}),
    "reads and clears": (
        True,
        lambda: (session["n"], session.clear()),
        [DESTROYED],
        {},
    ),
    "clears and destroys": (True, clear_and_destroy, [DESTROYED], {}),
    "ends twice": (True, end_twice, [DESTROYED], {}),
    "empties": (True, empty, [DESTROYED], {}),
    "ends and begins": (True, end_and_begin, [DESTROYED, CREATED], {}),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_request_sends_exactly_these_signals(name: str) -> None:
    has_session, action, expected, settings = ROWS[name]
    site, listener = make_site(**settings)
    browser = log_in(site) if has_session else site.browser()
    listener.take()
    assert browser.visit(action).status_code == 200
    assert [event.name for event in listener.take()] == expected


def test_no_signal_is_sent_for_recorded_activity() -> None:
    site, listener = make_site()
    browser = log_in(site)
    listener.take()
    advance(site, 120)
    with site.backend.counting() as calls:
        browser.read()
    assert calls["touch"] == 1
    assert listener.take() == []


def test_an_id_that_is_renewed_is_told_of() -> None:
    site, listener = make_site(SESSION_RENEWAL_INTERVAL=60)
    browser = log_in(site)
    before = handle_of(browser)
    listener.take()
    advance(site, 60)
    browser.read()
    assert listener.take() == [
        ("session_regenerated", handle_of(browser), "ada", {"previous": before})
    ]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda: session.update(mine=1), SAVED),
        (lambda: typed_session.atomic(lambda own: own.update(mine=1)), SAVED),
        (lambda: typed_session.regenerate(), REGENERATED),
    ],
    ids=["changes", "counts", "takes a new id"],
)
def test_a_conflict_on_the_way_is_not_told_of(
    heard: tuple[Site, Listener], action: Action, expected: str
) -> None:
    site, listener = heard
    browser = log_in(site)
    twin = browser.twin()
    listener.take()

    def someone_else() -> None:
        del site.backend.before["replace"]
        twin.set(theirs=1)

    site.backend.before["replace"] = someone_else
    browser.visit(action)
    assert [event.name for event in listener.take()] == [SAVED, expected]


# What else is told with them


def test_the_user_of_an_ended_session_is_told_if_it_is_known(
    heard: tuple[Site, Listener],
) -> None:
    site, listener = heard
    for action, user in [
        (lambda: typed_session.destroy(), None),
        (lambda: (session["n"], typed_session.destroy()), "ada"),
        (lambda: session.clear(), None),
        (lambda: (session["n"], session.clear()), "ada"),
        (empty, "ada"),
    ]:
        browser = log_in(site)
        handle = handle_of(browser)
        listener.take()
        browser.visit(action)
        more = {"reason": "logged out"}
        assert listener.take() == [("session_destroyed", handle, user, more)]


def test_what_an_operator_ends_is_told_of(heard: tuple[Site, Listener]) -> None:
    site, listener = heard
    one, two, three = [log_in(site) for _ in range(3)]
    listener.take()
    with site.app.app_context():
        site.extension.revoke(handle_of(one))
        more = {"reason": "revoked"}
        assert listener.take() == [("session_destroyed", handle_of(one), "ada", more)]
        site.extension.revoke(handle_of(one))
        assert listener.take() == []
        site.extension.revoke_user("ada")
    assert sorted(listener.take()) == sorted(
        ("session_destroyed", handle_of(browser), "ada", more)
        for browser in (two, three)
    )


def test_what_a_limit_ends_is_told_of() -> None:
    site, listener = make_site(SESSION_MAX_PER_USER=1)
    first = log_in(site)
    advance(site, 1)
    listener.take()
    second = log_in(site)
    assert sorted(listener.take()) == [
        ("session_created", handle_of(second), "ada", {}),
        ("session_destroyed", handle_of(first), "ada", {"reason": "limit"}),
    ]


def test_what_expires_and_is_cleaned_up_is_not_told_of() -> None:
    site, listener = make_site()
    log_in(site)
    listener.take()
    advance(site, 32 * 86400)
    with site.app.app_context():
        assert site.extension.prune() == 1
    assert listener.take() == []


# Lost


def end_meanwhile(browser: Browser, action: Action) -> Action:
    twin = browser.twin()

    def view() -> None:
        assert session["n"] == 1
        twin.visit(clear_and_destroy)
        action()

    return view


@pytest.mark.parametrize(
    ("action", "is_lost"),
    [
        (lambda: None, False),
        (lambda: session["n"], False),
        (lambda: typed_session.touch(), False),
        (lambda: session.update(n=2), True),
        (lambda: session["cart"].append(1), True),
        (lambda: (session.update(n=2), typed_session.save()), True),
        (
            lambda: (
                session.update(n=2),
                typed_session.save(),
                session.update(n=3),
                typed_session.save(),
            ),
            True,
        ),
        (lambda: typed_session.destroy(), False),
    ],
)
def test_only_lost_changes_are_told_of_and_once(
    heard: tuple[Site, Listener], action: Action, is_lost: bool
) -> None:
    site, listener = heard
    browser = log_in(site)
    handle = handle_of(browser)
    listener.take()
    browser.visit(end_meanwhile(browser, action))
    events = [event for event in listener.take() if event.name == "session_lost"]
    assert events == ([("session_lost", handle, "ada", {})] if is_lost else [])


def test_a_loss_that_raises_is_told_of_too() -> None:
    site, listener = make_site(SESSION_ON_LOST="raise")
    browser = log_in(site)
    listener.take()
    with pytest.raises(SessionLostError):
        browser.visit(end_meanwhile(browser, lambda: session.update(n=2)))
    assert [event.name for event in listener.take()] == [
        "session_destroyed",
        "session_lost",
    ]


# Rejected


def look() -> None:
    session.get("n")
    session.get("m")
    assert not session


def test_a_forged_cookie_is_told_of_once_and_names_no_session(
    heard: tuple[Site, Listener],
) -> None:
    site, listener = heard
    browser = site.browser()
    browser.cookie = "x.p1-1.y"
    browser.visit(look)
    assert listener.take() == [("session_rejected", None, None, {"reason": "forged"})]
    browser.cookie = "not one of ours"
    browser.visit(look)
    more = {"reason": "malformed"}
    assert listener.take() == [("session_rejected", None, None, more)]
    # Who does not look does not verify.
    browser.ignore()
    assert listener.take() == []


def test_a_request_without_a_cookie_is_not_rejected(
    heard: tuple[Site, Listener],
) -> None:
    site, listener = heard
    site.browser().visit(look)
    assert listener.take() == []


@pytest.mark.parametrize(
    ("settings", "action", "later", "reason"),
    [
        ({}, clear_and_destroy, 0, "ended: logged out"),
        ({}, clear_and_destroy, 30 * 86400, "ended: logged out"),
        ({}, lambda: start_over(), 0, "rotated"),
        ({}, lambda: start_over(), 10, "ended: replaced"),
        ({}, lambda: None, 32 * 86400, "expired"),
        ({"SESSION_ABSOLUTE_TIMEOUT": 600}, lambda: None, 600, "expired"),
        ({}, lambda: typed_session.regenerate(), 0, "rotated"),
        ({}, lambda: typed_session.regenerate(), 10, "reused"),
    ],
    ids=[
        *("ended", "ended long ago", "replaced just now", "replaced"),
        *("expired", "too old", "rotated", "grace over"),
    ],
)
def test_a_session_that_is_no_more_is_told_of_once_a_request(
    settings: dict[str, t.Any], action: Action, later: float, reason: str
) -> None:
    site, listener = make_site(**settings)
    browser = log_in(site)
    handle = handle_of(browser)
    late = browser.twin()
    browser.visit(action)
    advance(site, later)
    listener.take()
    late.visit(look)
    reason, _, ended = reason.partition(": ")
    more = {"reason": reason, "ended": ended} if ended else {"reason": reason}
    assert listener.take() == [("session_rejected", handle, None, more)]


@pytest.mark.parametrize("reason", ["damaged", "unreadable", "newer"])
def test_a_record_that_cannot_be_read_is_told_of_at_each_request(
    heard: tuple[Site, Listener], reason: t.Any
) -> None:
    site, listener = heard
    browser = log_in(site)
    handle = handle_of(browser)
    listener.take()

    def refuse(key: str) -> None:
        raise RecordError("It cannot be read.", reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.backend, "load", refuse)
        for _ in range(2):
            browser.visit(look)
            assert listener.take() == [
                ("session_rejected", handle, None, {"reason": reason})
            ]


# The backend failed


@pytest.mark.parametrize("policy", ["raise", "ignore"])
@pytest.mark.parametrize(
    ("operation", "action", "user"),
    [
        ("load", lambda: session.get("n"), None),
        ("replace", lambda: session.update(n=2), "ada"),
        ("create", lambda: typed_session.regenerate(), "ada"),
        ("delete", lambda: typed_session.destroy(), None),
        ("touch", lambda: session.get("n"), "ada"),
    ],
)
def test_a_failure_of_the_backend_is_told_of_once(
    policy: str, operation: str, action: Action, user: str | None
) -> None:
    site, listener = make_site(SESSION_ON_BACKEND_ERROR=policy)
    browser = log_in(site)
    handle = handle_of(browser)
    advance(site, 120)
    listener.take()
    with site.backend.failing(operation):
        browser.visit(action)
    (event,) = [event for event in listener.take() if event.name == "backend_failed"]
    # A new id is asked for under its own handle.
    assert (event.handle == handle) is (operation != "create")
    assert event.user == user
    assert event.more.keys() == {"operation", "error"}
    assert event.more["operation"] == operation
    assert isinstance(event.more["error"], BackendUnavailableError)


def test_the_failure_that_is_told_is_the_one_that_is_raised() -> None:
    site, listener = make_site()
    browser = log_in(site)
    listener.take()

    def view() -> None:
        with pytest.raises(BackendUnavailableError) as caught:
            session.get("n")
        (event,) = listener.take()
        assert event.more["error"] is caught.value

    with site.backend.failing("load"):
        browser.visit(view)


def test_what_an_operator_asks_for_only_raises(heard: tuple[Site, Listener]) -> None:
    site, listener = heard
    with (
        site.app.app_context(),
        site.backend.failing(),
        pytest.raises(BackendUnavailableError),
    ):
        site.extension.count()
    assert listener.take() == []


# Receivers


def test_receivers_hear_of_their_own_application_only() -> None:
    one, listener_one = make_site()
    two, listener_two = make_site()
    log_in(one)
    assert len(listener_one.take()) == 1
    assert listener_two.take() == []
    everything: list[object] = []

    def receive(sender: object, **values: t.Any) -> None:
        everything.append(sender)

    with signals.session_created.connected_to(receive, ANY):
        log_in(one)
        log_in(two)
    assert everything == [one.app, two.app]


def test_receivers_run_in_the_request_and_know_the_application(
    heard: tuple[Site, Listener],
) -> None:
    from flask import current_app
    from flask import request

    site, _ = heard
    seen: list[tuple[object, str]] = []

    def receive(sender: object, **values: t.Any) -> None:
        seen.append((current_app._get_current_object(), request.path))  # type: ignore[attr-defined]

    with signals.session_created.connected_to(receive, site.app):
        log_in(site)
    ((app, path),) = seen
    assert app is site.app
    assert path.startswith("/run/")


def test_receivers_are_forgotten_with_the_last_reference_to_them(
    heard: tuple[Site, Listener],
) -> None:
    site, _ = heard
    calls: list[str] = []

    def connect(weak: bool) -> weakref.ref[t.Any]:
        def receive(sender: object, **values: t.Any) -> None:
            calls.append("weak" if weak else "strong")

        signals.session_created.connect(receive, site.app, weak=weak)
        return weakref.ref(receive)

    forgotten, kept = connect(True), connect(False)
    gc.collect()
    assert forgotten() is None
    assert kept() is not None
    log_in(site)
    assert calls == ["strong"]
    signals.session_created.disconnect(kept(), site.app)


def test_receivers_may_be_coroutines(heard: tuple[Site, Listener]) -> None:
    site, _ = heard
    seen: list[tuple[str, str | None]] = []

    async def receive(sender: object, handle: str, user: str, **more: t.Any) -> None:
        await asyncio.sleep(0)
        seen.append((handle, user))

    browser = site.browser()
    with signals.session_created.connected_to(receive, site.app):
        browser.set(_user_id="ada")
    assert seen == [(handle_of(browser), "ada")]


def test_coroutines_receive_what_async_views_cause(
    heard: tuple[Site, Listener],
) -> None:
    site, _ = heard
    seen: list[str] = []

    async def receive(sender: object, **values: t.Any) -> None:
        seen.append(values["handle"])

    @site.app.get("/async")
    async def view() -> str:
        await asyncio.sleep(0)
        session["n"] = 1
        return typed_session.handle

    with signals.session_created.connected_to(receive, site.app):
        handle = site.app.test_client().get("/async").text
    assert seen == [handle]


def test_a_coroutine_cannot_be_awaited_from_inside_an_async_view(
    heard: tuple[Site, Listener],
) -> None:
    """As with Flask's own signals; the record is stored all the same."""
    site, _ = heard

    async def receive(sender: object, **values: t.Any) -> None:
        raise AssertionError("It cannot run.")

    @site.app.get("/async")
    async def view() -> str:
        session["n"] = 1
        with pytest.raises(RuntimeError, match="AsyncToSync"):
            typed_session.save()
        return typed_session.handle

    client = site.app.test_client()
    with signals.session_created.connected_to(receive, site.app):
        response = client.get("/async")
    assert response.status_code == 200
    with client.session_transaction() as content:
        assert content["n"] == 1


# Receivers that raise


class ReceiverError(Exception):
    pass


@contextlib.contextmanager
def failing(site: Site, name: str) -> Iterator[list[str]]:
    """Let a receiver of a signal raise, and every exception become an answer."""
    failed: list[str] = []

    def fail(sender: object, **values: t.Any) -> None:
        failed.append(name)
        raise ReceiverError(name)

    site.app.testing = False
    try:
        with SIGNALS[name].connected_to(fail, site.app):
            yield failed
    finally:
        site.app.testing = True


def visit_failing(browser: Browser, action: Action, name: str) -> TestResponse:
    with failing(browser.site, name) as failed:
        response = browser.visit(action)
    assert failed == [name]
    assert response.status_code == 500
    return response


def test_the_exception_of_a_receiver_comes_out(heard: tuple[Site, Listener]) -> None:
    site, _ = heard

    def fail(sender: object, **values: t.Any) -> None:
        raise ReceiverError

    with (
        signals.session_created.connected_to(fail, site.app),
        pytest.raises(ReceiverError),
    ):
        log_in(site)


def test_a_session_is_stored_and_known_to_the_browser_before_created_is_sent(
    heard: tuple[Site, Listener],
) -> None:
    site, _ = heard
    browser = site.browser()
    response = visit_failing(browser, lambda: session.update(n=1), "session_created")
    assert cookie_of(response, site) == "set"
    assert response.headers["Vary"] == "Cookie"
    assert browser.read() == {"n": 1}
    assert site.backend.count() == 1


def test_a_change_is_stored_before_saved_is_sent(heard: tuple[Site, Listener]) -> None:
    site, _ = heard
    browser = log_in(site)
    visit_failing(browser, lambda: session.update(n=2), "session_saved")
    assert browser.read()["n"] == 2


def test_a_new_id_reaches_the_browser_though_a_receiver_raises(
    heard: tuple[Site, Listener],
) -> None:
    """Else the visitor would be left with an id that is dead."""
    site, _ = heard
    browser = site.browser()
    browser.set(n=1)
    before = browser.id
    response = visit_failing(
        browser, lambda: session.update(_user_id="ada"), "session_regenerated"
    )
    assert cookie_of(response, site) == "set"
    assert browser.id != before
    assert browser.read() == {"n": 1, "_user_id": "ada"}
    assert site.backend.count() == 1


@pytest.mark.parametrize(
    "action",
    [
        lambda: typed_session.destroy(),
        lambda: (session["n"], typed_session.destroy()),
        lambda: session.clear(),
        lambda: (session["n"], session.clear()),
        empty,
    ],
    ids=["destroy", "load and destroy", "clear", "load and clear", "empty"],
)
def test_a_session_is_ended_and_its_cookie_deleted_before_destroyed_is_sent(
    heard: tuple[Site, Listener], action: Action
) -> None:
    site, _ = heard
    browser = log_in(site)
    twin = browser.twin()
    response = visit_failing(browser, action, "session_destroyed")
    assert cookie_of(response, site) == "deleted"
    assert site.backend.count() == 0
    assert twin.read() == {}


def test_nothing_comes_back_though_a_receiver_of_lost_raises(
    heard: tuple[Site, Listener],
) -> None:
    site, _ = heard
    browser = log_in(site)
    view = end_meanwhile(browser, lambda: session.update(n=2))
    response = visit_failing(browser, view, "session_lost")
    assert cookie_of(response, site) == "none"
    assert browser.read() == {}
    assert site.backend.count() == 0


@pytest.mark.parametrize(
    "kind",
    [
        "forged",
        "unknown",
        "rotated",
        "damaged",
        "expired",
    ],
)
def test_an_error_page_can_use_the_session_after_a_receiver_of_rejected_raised(
    kind: str,
) -> None:
    site, _ = make_site(SESSION_ABSOLUTE_TIMEOUT=3600)

    @site.app.errorhandler(ReceiverError)
    def show(error: ReceiverError) -> Response:
        session["seen"] = len(session)
        return Response("sorry", status=500)

    browser = log_in(site)
    late = browser.twin()
    if kind == "forged":
        late.cookie = "forged"
    elif kind == "expired":
        advance(site, 3600)
    elif kind == "unknown":
        browser.visit(clear_and_destroy)
    elif kind == "rotated":
        browser.visit(lambda: typed_session.regenerate())
    elif kind == "damaged":

        def refuse(key: str) -> None:
            raise RecordError("It cannot be read.", "damaged")

        site.backend.load = refuse  # type: ignore[method-assign,assignment]

    response = visit_failing(late, lambda: session.get("n"), "session_rejected")
    assert response.text == "sorry"
    assert cookie_of(response, site) == ("none" if kind == "rotated" else "set")


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("load", lambda: session.get("n")),
        ("replace", lambda: session.update(n=2)),
        ("create", lambda: typed_session.regenerate()),
        ("delete", lambda: typed_session.destroy()),
    ],
)
def test_a_receiver_of_failed_that_raises_does_not_make_it_worse(
    heard: tuple[Site, Listener], operation: str, action: Action
) -> None:
    site, _ = heard
    browser = log_in(site)
    with site.backend.failing(operation):
        response = visit_failing(browser, action, "backend_failed")
    assert cookie_of(response, site) == "none"
    assert browser.read()["n"] == 1
    assert site.backend.count() == 1


def catching(action: Action) -> Action:
    def view() -> None:
        with contextlib.suppress(ReceiverError):
            action()

    return view


@pytest.mark.parametrize(
    ("name", "action", "cookie", "content"),
    [
        (SAVED, save_early, "set", {"n": 1, "m": 1}),
        (REGENERATED, save_rotated, "set", {"n": 1}),
        (DESTROYED, lambda: typed_session.destroy(), "deleted", {}),
        (
            DESTROYED,
            lambda: (session["n"], typed_session.destroy()),
            "deleted",
            {},
        ),
    ],
)
def test_a_view_that_catches_the_exception_goes_on_with_what_is_stored(
    heard: tuple[Site, Listener],
    name: str,
    action: Action,
    cookie: str,
    content: dict[str, t.Any],
) -> None:
    site, _ = heard
    browser = site.browser()
    browser.set(n=1)
    with failing(site, name) as failed:
        response = browser.visit(catching(action))
    assert failed == [name]
    assert response.status_code == 200
    assert cookie_of(response, site) == cookie
    assert browser.read() == content
    assert site.backend.count() == (1 if content else 0)


def test_what_is_written_after_a_caught_exception_begins_another_session(
    heard: tuple[Site, Listener],
) -> None:
    site, _ = heard
    browser = log_in(site)
    before = browser.id

    def view() -> None:
        with contextlib.suppress(ReceiverError):
            typed_session.destroy()
        session["goodbye"] = True

    with failing(site, DESTROYED):
        browser.visit(view)
    assert browser.id != before
    assert browser.read() == {"goodbye": True}


@pytest.mark.parametrize(
    "name",
    [
        CREATED,
        REGENERATED,
        DESTROYED,
    ],
)
def test_a_limit_holds_though_a_receiver_raises(name: str) -> None:
    site, _ = make_site(SESSION_MAX_PER_USER=1)
    browser = site.browser()
    if name == REGENERATED:
        browser.set(n=1)
    old = [log_in(site)]
    advance(site, 1)
    visit_failing(browser, lambda: session.update(_user_id="ada"), name)
    assert browser.read()["_user_id"] == "ada"
    assert [twin.read() for twin in old] == [{}]


def test_the_signals_are_listed_in_the_package() -> None:
    import flask_serversession

    assert set(SIGNALS) == {
        "session_created",
        "session_saved",
        "session_regenerated",
        "session_destroyed",
        "session_lost",
        "session_rejected",
        "backend_failed",
        "backend_recovered",
    }
    for name, signal in SIGNALS.items():
        assert getattr(flask_serversession, name) is signal
