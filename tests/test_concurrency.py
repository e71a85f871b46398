"""Overlapping requests: what they change survives, and what has ended stays ended.

The bad moment is forced, never waited for: by barriers inside of views, and by hooks
that let another request in between two operations of the backend.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.synchronize
import socket
import sys
import threading
import traceback
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import flask
import pytest
from flask import flash
from flask import get_flashed_messages
from flask import session as flask_session
from werkzeug.test import TestResponse

from flask_serversession import BackendUnavailableError
from flask_serversession import Capability
from flask_serversession import ConflictError
from flask_serversession import ServerSideSession
from flask_serversession import SessionLostError
from flask_serversession import SessionTooLargeError
from flask_serversession import session
from flask_serversession import session_lost
from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Gone
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.cookie import CookieState
from flask_serversession.record import Record
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .figures import add_counts
from .servers import MemcachedServer
from .servers import Server
from .servers import ValkeyServer
from .site import Action
from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of
from .site import handle_of
from .site import key
from .site import start

S = t.TypeVar("S", bound=Server)
T = t.TypeVar("T")
MakeSite = Callable[..., Site]
Barrier = multiprocessing.synchronize.Barrier

#: The backends that all is tried on. The others differ from these in their driver or
#: server only, or run the same statements, and get a selection.
THOROUGH = {"memory", "filesystem", "valkey", "sqlite", "postgresql"}

#: Seconds. Nothing waits that long unless it is broken.
WAIT = 30.0
GRACE = 10.0
MINUTE = 60.0
DAY = 86_400.0

#: How many interleavings each test has forced; shown at the end.
forced: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def _show_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    forced.clear()
    yield
    add_counts(request.node, "interleavings forced", forced)


@pytest.fixture
def backend_name(request: pytest.FixtureRequest) -> str:
    return t.cast(str, request.node.callspec.params["backend_config"])


#: What a thread has to close before it ends.
closers: list[Callable[[], object]] = []


@pytest.fixture
def make_site(backend_config: Config) -> Iterator[MakeSite]:
    cache = backend_config.get("SESSION_CACHELIB")
    client = getattr(cache, "_client", None)  # of memcached: one for each thread
    if client is not None:
        closers.append(client.disconnect_all)
    yield functools.partial(Site, backend_config)
    closers.clear()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


def memory_site(**settings: t.Any) -> Site:
    return Site({"SESSION_BACKEND": "memory"}, **settings)


# What the tests are made with


def sharing(site: Site, **settings: t.Any) -> Site:
    """Give another application on the same store."""
    settings.setdefault("SESSION_KEY_PREFIX", site.state.config.key_prefix)
    backend = settings.pop("SESSION_BACKEND", site.backend.backend)
    return Site({"SESSION_BACKEND": backend}, clock=site.clock, **settings)


def count(site: Site) -> int | None:
    """Give the number of live records, where the backend can tell."""
    if Capability.COUNT not in site.backend.capabilities:
        return None
    return site.backend.count()


def read_with_lifetime(browser: Browser) -> tuple[dict[str, t.Any], float | None]:
    """Give what the session holds, and its lifetime in seconds."""
    found: list[tuple[dict[str, t.Any], float | None]] = []

    def view() -> None:
        lifetime = session.lifetime
        seconds = None if lifetime is None else lifetime.total_seconds()
        found.append((dict(flask_session), seconds))

    browser.visit(view)
    return found[0]


class Losses(list[dict[str, t.Any]]):
    """What the signal ``session_lost`` was sent with."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        session_lost.connect(self._note, site.app)

    def _note(self, app: flask.Flask, **values: t.Any) -> None:
        self.append(values)


def together(*functions: Callable[[], T]) -> list[T]:
    """Run functions at the same time, each in a thread."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = functions[index]()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)
        finally:
            for close in closers:
                close()

    threads = [
        threading.Thread(target=run, args=(index,), daemon=True)
        for index in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT)
    assert not any(thread.is_alive() for thread in threads), "a thread does not end"
    # A barrier breaks for everybody where one request fails.
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(functions))]


class Visit(t.NamedTuple):
    browser: Browser
    response: TestResponse

    @property
    def cookie(self) -> str:
        return cookie_of(self.response, self.browser.site)


def overlap(
    browser: Browser, *actions: Action, order: Sequence[int] | None = None
) -> list[Visit]:
    """Run a request for each action, all with the cookie of the same browser.

    Each has loaded the session before any of them goes on. With an order, each goes
    on only after the one before it was answered; without, all do at once.
    """
    forced["in threads"] += 1
    barrier = threading.Barrier(len(actions))
    answered = [threading.Event() for _ in actions]
    previous = dict(zip(order[1:], order, strict=False)) if order else {}

    def visit(index: int) -> Visit:
        def view() -> t.Any:
            flask_session.get("n")
            barrier.wait(WAIT)
            if index in previous:
                assert answered[previous[index]].wait(WAIT)
            return actions[index]()

        twin = browser.twin()
        try:
            return Visit(twin, twin.visit(view))
        finally:
            answered[index].set()

    return together(*(functools.partial(visit, index) for index in range(len(actions))))


def overlaps(
    site: Site, values: dict[str, t.Any], *actions: Action
) -> Iterator[tuple[str, Browser, list[Visit]]]:
    """Overlap the requests in every order, and at once; each time a new session."""
    orders: list[Sequence[int] | None] = [
        *itertools.permutations(range(len(actions))),
        *[None] * 2,
    ]
    for order in orders:
        browser = start(site, **values)
        yield str(order), browser, overlap(browser, *actions, order=order)


@contextlib.contextmanager
def stepping(
    site: Site, step: Callable[[int, str], object], when: str = "before"
) -> Iterator[None]:
    """Call a function at each operation that is asked for, with its number.

    Not for the operations that the function itself causes.
    """
    numbers = itertools.count()
    hooks = site.backend.before if when == "before" else site.backend.after
    for name in ("load", "create", "replace", "delete", "touch"):
        hooks[name] = functools.partial(lambda name: step(next(numbers), name), name)
    try:
        yield
    finally:
        hooks.clear()


@contextlib.contextmanager
def before(site: Site, operation: str, intrude: Action) -> Iterator[None]:
    """Let something happen once, before the next operation of that name."""
    forced["between operations"] += 1
    has_happened = []

    def hook() -> None:
        if not has_happened:
            has_happened.append(True)
            intrude()

    site.backend.before[operation] = hook
    try:
        yield
    finally:
        del site.backend.before[operation]
    assert has_happened, f"there was no {operation!r}"


# -- what overlapping requests change


def test_different_keys_both_survive(site: Site) -> None:
    for order, browser, visits in overlaps(
        site,
        {"n": 0},
        lambda: flask_session.update(a=1),
        lambda: flask_session.update(b=2),
    ):
        assert browser.read() == {"n": 0, "a": 1, "b": 2}, order
        assert [visit.cookie for visit in visits] == ["set", "set"]


def test_nested_changes_of_different_keys_both_survive(site: Site) -> None:
    def add_item() -> None:
        flask_session["cart"]["items"].append("apple")

    def add_setting() -> None:
        flask_session["settings"]["colours"]["text"] = "black"

    for order, browser, _ in overlaps(
        site,
        {"cart": {"items": []}, "settings": {"colours": {}}},
        add_item,
        add_setting,
    ):
        assert browser.read() == {
            "cart": {"items": ["apple"]},
            "settings": {"colours": {"text": "black"}},
        }, order


def show(browser: Browser) -> list[str]:
    """Give the messages that a page shows, which empties them."""
    messages: list[str] = []
    browser.visit(lambda: messages.extend(t.cast(list[str], get_flashed_messages())))
    return messages


@pytest.mark.parametrize("earlier", [[], ["earlier"]], ids=["none before", "some"])
def test_messages_flashed_by_two_requests_are_both_shown(
    site: Site, earlier: list[str]
) -> None:
    for order, browser, _ in overlaps(
        site,
        {
            "n": 0,
            **({"_flashes": [("message", m) for m in earlier]} if earlier else {}),
        },
        lambda: flash("one"),
        lambda: flash("two"),
    ):
        messages = show(browser)
        assert messages[: len(earlier)] == earlier, order
        assert sorted(messages[len(earlier) :]) == ["one", "two"], order
        assert show(browser) == []


def test_a_message_flashed_while_others_are_shown_survives_and_those_do_not(
    site: Site,
) -> None:
    for order, browser, _ in overlaps(
        site,
        {"n": 0, "_flashes": [("message", "shown")]},
        lambda: ",".join(t.cast(list[str], get_flashed_messages())),
        lambda: flash("new"),
    ):
        assert show(browser) == ["new"], order
        assert browser.read() == {"n": 0}


def test_of_one_key_the_later_value_wins_and_nothing_else_is_lost(site: Site) -> None:
    for order, browser, _ in overlaps(
        site,
        {"n": 0, "kept": True},
        lambda: flask_session.update(n=1, a=1),
        lambda: flask_session.update(n=2, b=2),
    ):
        content = browser.read()
        number = content.pop("n")
        assert content == {"kept": True, "a": 1, "b": 2}, order
        expected = {"(0, 1)": [2], "(1, 0)": [1]}.get(order, [1, 2])
        assert number in expected, order


def test_a_key_is_removed_while_another_is_changed(site: Site) -> None:
    for order, browser, _ in overlaps(
        site,
        {"n": 0, "a": 1},
        lambda: flask_session.pop("a"),
        lambda: flask_session.update(b=2),
    ):
        assert browser.read() == {"n": 0, "b": 2}, order


def test_lifetime_and_data_changed_by_two_requests_both_survive(site: Site) -> None:
    for order, browser, _ in overlaps(
        site,
        {"n": 0},
        lambda: setattr(session, "lifetime", 3 * DAY),
        lambda: flask_session.update(a=1),
    ):
        assert read_with_lifetime(browser) == ({"n": 0, "a": 1}, 3 * DAY), order
        # It is not only told, but counts.
        advance(site, 3 * DAY)
        assert browser.read() == {}, order


def test_permanent_lifetime_and_data_changed_by_three_requests_all_survive(
    site: Site,
) -> None:
    for order, browser, visits in overlaps(
        site,
        {"n": 0},
        lambda: setattr(session, "permanent", True),
        lambda: setattr(session, "lifetime", 3 * DAY),
        lambda: flask_session.update(a=1),
    ):
        content = {"n": 0, "a": 1, "_permanent": True}
        assert read_with_lifetime(browser) == (content, 3 * DAY), order
        assert "Expires" in browser.ignore().headers["Set-Cookie"]
        # Who merges the other's flag in tells the browser.
        assert visits[0].cookie == "set"
        if order == "(0, 1, 2)":
            assert [visit.cookie for visit in visits] == ["set"] * 3


def test_whoever_did_not_know_of_a_shorter_lifetime_does_not_prolong_it(
    site: Site,
) -> None:
    browser = start(site, n=0)
    advance(site, MINUTE)  # so that a touch is due

    def view() -> None:
        assert flask_session["n"] == 0
        browser.visit(lambda: setattr(session, "lifetime", 600))

    browser.twin().visit(view)
    advance(site, 599)
    assert read_with_lifetime(browser) == ({"n": 0}, 600)
    advance(site, 600)
    assert browser.read() == {}


def test_six_requests_at_once_all_survive(site: Site) -> None:
    browser = start(site, n=0)
    overlap(
        browser,
        *(lambda i=i: flask_session.update({f"k{i}": i}) for i in range(6)),
    )
    assert browser.read() == {"n": 0, **{f"k{i}": i for i in range(6)}}


# -- counters


def increment(own: ServerSideSession) -> int:
    own["n"] = own.get("n", 0) + 1
    return t.cast(int, own["n"])


def visit_to_count(browser: Browser) -> None:
    browser.visit(lambda: session.atomic(increment))


def counting_up(
    barrier: threading.Barrier | Barrier, browser: Browser, requests: int
) -> list[int]:
    """Count, and give the numbers that this one was told.

    All that share the barrier read the same number first, so that they do meet.
    """
    waits = iter([True])

    def count_once(own: ServerSideSession) -> int:
        if next(waits, False):
            barrier.wait(WAIT)
        return increment(own)

    return [
        int(browser.visit(lambda: session.atomic(count_once)).text)
        for _ in range(requests)
    ]


def test_atomic_increments_of_eight_threads_add_up_exactly(
    site: Site, backend_name: str
) -> None:
    requests = 200 if backend_name in THOROUGH else 25
    browser = start(site, n=0)
    barrier = threading.Barrier(8)
    with site.backend.counting() as calls:
        results = together(
            *[lambda: counting_up(barrier, browser.twin(), requests)] * 8
        )
    assert calls["replace"] >= 8 * requests + 7, "they did not meet"
    assert browser.read() == {"n": 8 * requests}
    # Nobody was told a number twice.
    assert sorted(itertools.chain(*results)) == list(range(1, 8 * requests + 1))
    forced["atomic increments in threads"] += 8 * requests


def test_many_writers_of_one_session_all_get_through(site: Site) -> None:
    browser = start(site, n=0)
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        twin = browser.twin()
        for turn in range(15):

            def view(turn: int = turn) -> None:
                flask_session.get("n")
                if turn == 0:
                    barrier.wait(WAIT)
                flask_session[f"k{number}-{turn}"] = turn

            twin.visit(view)

    with site.backend.counting() as calls:
        together(*(functools.partial(write, number) for number in range(8)))
    assert calls["replace"] >= 120 + 7, "they did not meet"
    expected = {f"k{n}-{turn}": turn for n in range(8) for turn in range(15)}
    assert browser.read() == {"n": 0, **expected}
    forced["writes in threads"] += 120


class OvertakingBackend(MemoryBackend):
    """Has another request save just before each replace."""

    times = 0

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        if (current := self.load(key)) is not None:
            self.times += 1
            super().replace(key, current, current.version)
        return super().replace(key, record, expected)


def test_a_change_that_is_overtaken_a_hundred_times_is_an_error() -> None:
    clock = FakeClock()
    backend = OvertakingBackend(clock)
    browser = start(Site({"SESSION_BACKEND": backend}, clock), n=0)
    with pytest.raises(ConflictError, match="by other requests 100 times in a row"):
        browser.set(a=1)
    assert backend.times == 100
    assert browser.read() == {"n": 0}


def test_an_increment_that_meets_a_rotation_counts_once_or_is_lost(site: Site) -> None:
    for _ in range(3):
        browser = start(site, n=0)
        losses = Losses(site)
        barrier = threading.Barrier(5)

        def count_up(twin: Browser, barrier: threading.Barrier = barrier) -> None:
            visit_to_count(twin)
            barrier.wait(WAIT)
            for _ in range(9):
                visit_to_count(twin)

        def rotate(twin: Browser, barrier: threading.Barrier = barrier) -> Browser:
            barrier.wait(WAIT)
            twin.visit(lambda: session.regenerate())
            return twin

        twins = [browser.twin() for _ in range(4)]
        *_, rotated = together(
            *(functools.partial(count_up, twin) for twin in twins),
            functools.partial(rotate, browser.twin()),
        )
        assert isinstance(rotated, Browser)
        assert rotated.id != browser.id
        assert rotated.read() == {"n": 40 - len(losses)}
        assert len(losses) <= 36
        forced["atomic increments in threads"] += 40


def test_increments_that_meet_one_that_rotates_are_all_counted(site: Site) -> None:
    for reason, (rotate, _) in ROTATIONS.items():
        browser = start(site, n=0, _user_id="eve")
        twin = browser.twin()

        def view(rotate: Action = rotate) -> None:
            rotate()
            session.atomic(increment)

        with before(site, "replace", functools.partial(visit_to_count, twin)):
            browser.visit(view)
        assert browser.read()["n"] == 2, reason
        assert browser.id != twin.id, reason
        assert count(site) in (None, 1), reason
        browser.visit(lambda: session.destroy())


def test_increments_that_meet_one_that_empties_are_all_counted(site: Site) -> None:
    def decrement(own: ServerSideSession) -> None:
        left = own.pop("n") - 1
        if left:
            own["n"] = left

    browser = start(site, n=1)
    twin = browser.twin()
    with before(site, "replace", functools.partial(visit_to_count, twin)):
        browser.visit(lambda: session.atomic(decrement))
    assert browser.read() == {"n": 1}
    browser.visit(lambda: session.atomic(decrement))
    assert browser.cookie is None
    assert twin.read() == {}


def test_an_atomic_change_that_cannot_be_stored_is_undone() -> None:
    site = memory_site(SESSION_MAX_SIZE=100)
    browser = start(site, n=1)

    def view() -> None:
        flask_session["a"] = 1
        with pytest.raises(SessionTooLargeError):
            session.atomic(lambda own: own.update(n=2, large="x" * 200))
        assert dict(flask_session) == {"n": 1, "a": 1}

    browser.visit(view)
    assert browser.read() == {"n": 1, "a": 1}


# -- ended while another request runs


def pop_all() -> None:
    for name in list(flask_session):
        flask_session.pop(name)


def restart() -> None:
    session.regenerate(keep_data=False)
    flask_session["restarted"] = True


def revoke(browser: Browser) -> None:
    assert browser.site.backend.delete(key(browser))


BEGINNING: dict[str, t.Any] = {"n": 0, "cart": ["apple"], "_permanent": True}

#: How a session is ended, and what is then found by whoever did it. All but
#: the first four leave a tombstone.
ENDINGS: dict[str, tuple[Callable[[Browser], object], dict[str, t.Any]]] = {
    "destroyed": (lambda b: b.visit(lambda: session.destroy()), {}),
    "cleared": (lambda b: b.visit(lambda: flask_session.clear()), {}),
    "emptied": (lambda b: b.visit(pop_all), {}),
    "revoked": (revoke, {}),
    "rotated": (lambda b: b.visit(lambda: session.regenerate()), BEGINNING),
    "rotated by a login": (
        lambda b: b.visit(lambda: flask_session.update(_user_id="ada")),
        {**BEGINNING, "_user_id": "ada"},
    ),
    "started over": (lambda b: b.visit(restart), {"restarted": True}),
}


def save() -> None:
    flask_session["late"] = 1
    session.save()


def regenerate() -> None:
    flask_session["late"] = 1
    session.regenerate()


#: What a late request changes.
CHANGES: dict[str, Action] = {
    "sets a key": lambda: flask_session.update(late=1),
    "removes a key": lambda: flask_session.pop("n"),
    "removes all": pop_all,
    "changes a nested value": lambda: flask_session["cart"].append("late"),
    "flashes": lambda: flash("late"),
    "becomes temporary": lambda: setattr(session, "permanent", False),
    "changes its lifetime": lambda: setattr(session, "lifetime", 100),
    "is marked": lambda: setattr(session, "modified", True),
    "saves": save,
    "saves twice": lambda: (save(), save()),
    "counts": lambda: session.atomic(lambda own: own.update(late=1)),
    "counts inside": lambda: session.atomic(
        lambda own: own.setdefault("cart", []).append("late")
    ),
    "rotates": regenerate,
    "starts over": restart,
    "logs in": lambda: flask_session.update(_user_id="eve"),
}

SOME_CHANGES = ("sets a key", "changes a nested value", "counts", "rotates")


@pytest.fixture
def changes(backend_name: str) -> dict[str, Action]:
    """Give what to try on this backend."""
    if backend_name in THOROUGH:
        return CHANGES
    return {name: CHANGES[name] for name in SOME_CHANGES}


#: What it does that changes nothing.
NO_CHANGES: dict[str, Action] = {
    "does nothing": lambda: None,
    "reads": lambda: str(flask_session.get("n")),
    "reads a nested value": lambda: str(flask_session.get("cart")),
    "touches": lambda: session.touch(),
    "reloads": lambda: session.reload(),
    "saves nothing": lambda: session.save(),
}


def check_that_it_is_over(
    late: Browser, winner: Browser, content: dict[str, t.Any], what: str
) -> None:
    """Check that only the winner's session is there, and nothing of a late request."""
    assert late.read() == {}, what
    assert winner.read() == content, what
    assert count(winner.site) in (None, bool(content)), what
    winner.visit(lambda: session.destroy())


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_ended_while_a_request_ran_never_comes_back(
    site: Site, changes: dict[str, Action], ending: str
) -> None:
    end, content = ENDINGS[ending]
    for name, change in changes.items():
        winner = start(site, **BEGINNING)
        late, id, handle = winner.twin(), winner.id, handle_of(winner)
        losses = Losses(site)

        def view(winner: Browser = winner, change: Action = change) -> None:
            assert flask_session["n"] == 0
            end(winner)
            change()

        forced["in views"] += 1
        response = late.visit(view)
        assert response.status_code == 200
        assert cookie_of(response, site) == "none", name
        assert losses == [{"handle": handle, "user": None}], name
        assert id not in repr(losses)
        check_that_it_is_over(late, winner, content, name)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_ended_between_the_load_and_the_save_never_comes_back(
    site: Site, changes: dict[str, Action], ending: str
) -> None:
    end, content = ENDINGS[ending]
    for name, change in changes.items():
        winner = start(site, **BEGINNING)
        late = winner.twin()
        losses = Losses(site)

        def view(change: Action = change) -> None:
            assert flask_session["n"] == 0
            change()

        with before(site, "replace", functools.partial(end, winner)):
            response = late.visit(view)
        assert cookie_of(response, site) == "none", name
        assert len(losses) == 1, name
        check_that_it_is_over(late, winner, content, name)


@pytest.mark.parametrize("ending", [name for name in ENDINGS if name != "revoked"])
def test_a_late_request_that_changes_nothing_sends_no_cookie(
    site: Site, backend_name: str, ending: str
) -> None:
    # Of what ended in another process, or by the backend itself, nobody here is told:
    # there, a cookie is sent until the next touch is due.
    end, content = ENDINGS[ending]
    names = list(NO_CHANGES)[: None if backend_name in THOROUGH else 2]
    for has_loaded, name in itertools.product((True, False), names):
        winner = start(site, **BEGINNING)
        late = winner.twin()
        losses = Losses(site)

        def view(
            winner: Browser = winner,
            action: Action = NO_CHANGES[name],
            load: bool = has_loaded,
        ) -> None:
            if load:
                assert flask_session["n"] == 0
            end(winner)
            action()

        forced["in views"] += 1
        response = late.visit(view)
        assert cookie_of(response, site) == "none", name
        assert losses == []
        check_that_it_is_over(late, winner, content, name)


def test_a_late_request_sends_no_news_of_a_session_that_has_another_id(
    make_site: MakeSite,
) -> None:
    site = make_site(
        SESSION_REFRESH_EACH_REQUEST=False,
        SESSION_TOUCH_INTERVAL=0,
        SESSION_ROTATION_GRACE=0,
    )
    winner = start(site, n=0)
    late = winner.twin()

    def view() -> None:
        assert flask_session["n"] == 0
        winner.visit(lambda: setattr(session, "permanent", True))
        session.reload()  # and with it the news, for the cookie, that it is permanent
        winner.visit(lambda: session.regenerate())

    assert cookie_of(late.visit(view), site) == "none"
    assert winner.read() == {"n": 0, "_permanent": True}


def test_a_touch_that_is_due_tells_what_ended_elsewhere(site: Site) -> None:
    for has_loaded, ending in itertools.product((True, False), ("revoked", "rotated")):
        end, _ = ENDINGS[ending]
        winner = start(site, **BEGINNING)
        late = winner.twin()
        advance(site, MINUTE)

        def view(
            winner: Browser = winner,
            load: bool = has_loaded,
            end: Callable[[Browser], object] = end,
        ) -> None:
            if load:
                assert flask_session["n"] == 0
            end(winner)

        assert cookie_of(late.visit(view), site) == "none"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_request_that_had_not_loaded_what_ended_cannot_bring_it_back(
    site: Site, backend_name: str, ending: str
) -> None:
    end, content = ENDINGS[ending]
    for name in CHANGES if backend_name == "memory" else SOME_CHANGES:
        winner = start(site, **BEGINNING)
        late, old = winner.twin(), winner.twin()
        losses = Losses(site)

        def view(winner: Browser = winner, change: Action = CHANGES[name]) -> None:
            end(winner)
            assert flask_session == {}
            change_empty(change)

        forced["in views"] += 1
        response = late.visit(view)
        if content:
            assert cookie_of(response, site) == "none", name
        elif cookie_of(response, site) == "set":
            # As after a log-out: what is new begins under an id of its own.
            assert late.id != old.id
            assert not {"n", "cart"} & set(late.read()) - {"cart"}
            assert late.read().get("cart", ["late"]) == ["late"]
            late.visit(lambda: session.destroy())
        assert len(losses) <= bool(content)
        check_that_it_is_over(old, winner, content, name)


def change_empty(change: Action) -> None:
    """Change a session in which nothing is."""
    with contextlib.suppress(KeyError):
        change()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_lost_session_is_an_error_where_that_is_asked_for(
    make_site: MakeSite, ending: str
) -> None:
    site = make_site(SESSION_ON_LOST="raise")
    end, content = ENDINGS[ending]
    for name in SOME_CHANGES:
        winner = start(site, **BEGINNING)
        late = winner.twin()
        losses = Losses(site)

        def view(winner: Browser = winner, change: Action = CHANGES[name]) -> None:
            assert flask_session["n"] == 0
            end(winner)
            change()

        forced["in views"] += 1
        with pytest.raises(SessionLostError, match="Another request ended the session"):
            late.visit(view)
        assert len(losses) == 1, name
        site.app.testing = False
        check_that_it_is_over(late, winner, content, name)
        site.app.testing = True


def test_a_lost_session_is_an_error_page_without_a_cookie() -> None:
    site = memory_site(SESSION_ON_LOST="raise", TESTING=False)
    browser = start(site, n=0)
    twin = browser.twin()
    losses = Losses(site)

    def view() -> None:
        flask_session["late"] = 1
        browser.visit(lambda: session.destroy())

    response = twin.visit(view)
    assert response.status_code == 500
    assert cookie_of(response, site) == "none"
    assert len(losses) == 1


def test_reload_shows_that_the_session_is_gone(site: Site) -> None:
    browser = start(site, n=0)
    twin = browser.twin()

    def view() -> None:
        flask_session["late"] = 1
        browser.visit(lambda: session.destroy())
        session.save()
        session.reload()
        assert flask_session == {}

    assert cookie_of(twin.visit(view), site) == "none"


# -- arriving with an id that was rotated away

LOG_OUTS: tuple[Action, ...] = (
    lambda: session.destroy(),
    lambda: flask_session.clear(),
)

#: What an arriving request does, given a session in which nothing is.
ARRIVALS: dict[str, Action] = {
    **{name: functools.partial(change_empty, CHANGES[name]) for name in CHANGES},
    **NO_CHANGES,
    "regenerates": lambda: session.regenerate(),
    "clears and sets": lambda: (flask_session.clear(), flask_session.update(late=1)),
    "becomes permanent": lambda: setattr(session, "permanent", True),
}


@pytest.mark.parametrize("permanent", [False, True], ids=["browser", "permanent"])
def test_a_rotated_id_sees_nothing_changes_nothing_and_sends_no_cookie(
    site: Site, permanent: bool
) -> None:
    browser = start(site, n=0, _permanent=permanent)
    old = browser.twin()
    browser.visit(lambda: flask_session.update(_user_id="ada", secret="s"))
    stored = site.backend.load(key(browser))
    for seconds in (0.0, GRACE - 0.001):
        advance(site, seconds)
        for name, action in ARRIVALS.items():
            forced["arrivals"] += 1
            response = old.visit(action)
            assert response.status_code == 200, name
            assert cookie_of(response, site) == "none", name
            assert old.read() == {}, name
        # Only a log-out reaches through, and not into another user's session.
        for end in LOG_OUTS:
            assert cookie_of(old.visit(end), site) == "none"
    assert site.backend.load(key(browser)) == stored
    expected = {"n": 0, "_permanent": permanent, "_user_id": "ada", "secret": "s"}
    assert browser.read() == expected


@pytest.mark.parametrize("interval", [60, 0])
def test_another_process_may_send_a_permanent_cookie_again_until_a_touch_is_due(
    make_site: MakeSite, interval: int
) -> None:
    # The price of answering without asking the backend: this is not promised between
    # processes. Where every access is recorded, there is no such moment.
    site = make_site(SESSION_TOUCH_INTERVAL=interval)
    other = sharing(site, SESSION_TOUCH_INTERVAL=interval)
    browser = start(site, **BEGINNING)
    old = other.browser()
    old.cookie = browser.cookie
    browser.visit(lambda: session.regenerate())
    assert cookie_of(old.twin().ignore(), other) == ("set" if interval else "none")
    # Whoever looks at the session, or has to touch it, finds out.
    assert cookie_of(old.twin().visit(lambda: flask_session.get("n")), other) == "none"
    advance(site, interval)
    assert cookie_of(old.twin().ignore(), other) == "none"


def test_arriving_with_a_rotated_id_is_reported_once_if_it_changes_something(
    site: Site,
) -> None:
    browser = start(site, **BEGINNING)
    old, handle = browser.twin(), handle_of(browser)
    browser.visit(lambda: session.regenerate())
    losses = Losses(site)
    for action in NO_CHANGES.values():
        old.visit(action)
    assert losses == []
    old.set(late=1)
    assert losses == [{"handle": handle, "user": None}]


def test_after_the_grace_a_rotated_id_is_unknown_and_gets_a_new_session(
    site: Site,
) -> None:
    browser = start(site, **BEGINNING)
    old = browser.twin()
    browser.visit(lambda: session.regenerate())
    advance(site, GRACE)
    assert old.read() == {}
    former = old.id
    assert cookie_of(old.set(other=1), site) == "set"
    assert len({old.id, former, browser.id}) == 3
    assert old.read() == {"other": 1}
    assert browser.read() == BEGINNING


def test_without_a_grace_a_rotated_id_is_unknown_at_once(make_site: MakeSite) -> None:
    site = make_site(SESSION_ROTATION_GRACE=0)
    browser = start(site, **BEGINNING)
    old, late = browser.twin(), browser.twin()
    losses = Losses(site)

    def view() -> None:
        assert flask_session["n"] == 0
        browser.visit(lambda: session.regenerate())
        flask_session["late"] = 1

    assert cookie_of(late.visit(view), site) == "none"
    assert len(losses) == 1
    assert site.backend.load(key(old)) is None
    assert cookie_of(old.visit(lambda: None), site) == "none"
    assert old.read() == {}
    assert cookie_of(old.set(other=1), site) == "set"
    assert old.read() == {"other": 1}
    assert browser.read() == BEGINNING


def test_whoever_logs_out_while_the_id_is_renewed_is_logged_out(site: Site) -> None:
    for load_first, end in itertools.product((True, False), LOG_OUTS):
        browser = start(site, n=0, _user_id="ada")
        old = browser.twin()
        browser.visit(lambda: session.regenerate())

        def view(load_first: bool = load_first, end: Action = end) -> None:
            if load_first:
                flask_session.pop("_user_id", None)
            end()

        assert cookie_of(old.visit(view), site) == "none"
        assert browser.read() == {}
        assert count(site) in (None, 0)


# -- rotation, step by step

#: What makes a rotation, given a session of the user eve; and what it changes.
ROTATIONS: dict[str, tuple[Action, dict[str, t.Any]]] = {
    "regenerate": (lambda: session.regenerate(), {"_user_id": "eve"}),
    "log-in": (lambda: flask_session.update(_user_id="ada"), {"_user_id": "ada"}),
    "log-out": (lambda: flask_session.pop("_user_id"), {}),
}


class Intrusion(t.NamedTuple):
    """What another request does in between, and what becomes of the session then."""

    change: Callable[[int], object]
    ends: bool = False


def note(number: int) -> None:
    """Leave a mark, and one in a list."""
    flask_session[f"mark{number}"] = True
    flask_session["log"].append(number)


INTRUSIONS: dict[str, Intrusion] = {
    "changes": Intrusion(note),
    "counts": Intrusion(lambda number: session.atomic(lambda own: note(number))),
    "touches": Intrusion(lambda number: session.touch()),
    "rotates": Intrusion(lambda number: (note(number), session.regenerate()), True),
    "logs in": Intrusion(
        lambda number: (note(number), flask_session.update(_user_id="mallory")), True
    ),
    "destroys": Intrusion(lambda number: session.destroy(), True),
}


@pytest.fixture
def intrusions(backend_name: str) -> Sequence[str]:
    """Give what to try on this backend."""
    return list(INTRUSIONS) if backend_name in THOROUGH else ["changes", "destroys"]


def interrupt(site: Site, reason: str, intrusions: dict[int, str]) -> bool:
    """Rotate an id while others come in, and check what is left.

    :param intrusions: What happens before which of the backend's operations.
    :return: Whether there were that many operations.
    """
    rotate, rotated_content = ROTATIONS[reason]
    browser = start(site, n=0, log=[], _user_id="eve")
    old = browser.twin()
    losses = Losses(site)
    notes: list[int] = []
    winners: list[Browser] = []
    ended: list[Browser] = []
    happened: list[int] = []

    def step(number: int, operation: str) -> None:
        if number not in intrusions:
            return
        happened.append(number)
        intrusion = INTRUSIONS[intrusions[number]]
        intruder = old.twin()
        lost = len(losses)
        intruder.visit(lambda: intrusion.change(number))
        if len(losses) > lost:
            return
        if intrusion.change is not INTRUSIONS["touches"].change and not winners:
            notes.append(number)
        if intrusion.ends:
            winners.append(intruder)
            # Who logs out means the session that goes on under another id, too.
            if reason == "log-out" and intrusions[number] == "rotates":
                ended.append(intruder)

    def view() -> None:
        assert flask_session["n"] == 0
        flask_session["mine"] = True
        rotate()

    with stepping(site, step):
        response = browser.visit(view)
    if len(happened) < len(intrusions):
        browser.visit(lambda: session.destroy())
        return False
    forced["in rotations"] += 1
    what = (reason, intrusions)
    if winners:
        assert cookie_of(response, site) == "none", what
        winner = winners[0]
    else:
        assert cookie_of(response, site) == "set", what
        assert browser.id != old.id
        winner = browser
    is_over = bool(winners) and (winner.cookie is None or winner in ended)
    content = winner.read()
    if is_over:
        assert content == {}, what
    else:
        assert content.pop("log") == notes, what
        marks = {f"mark{number}": True for number in notes}
        mine = {} if winners else {"mine": True, **rotated_content}
        content.pop("_user_id", None) if winners else None
        assert content == {"n": 0, **mine, **marks}, what
    assert old.read() == {}, what
    assert count(site) in (None, not is_over), what
    winner.visit(lambda: session.destroy())
    return True


@pytest.mark.parametrize("reason", ROTATIONS)
def test_whoever_comes_in_at_any_step_of_a_rotation_one_whole_session_is_left(
    site: Site, intrusions: Sequence[str], reason: str
) -> None:
    for name in intrusions:
        # Before it are the load, the creation and the tombstone.
        steps = [n for n in range(1, 6) if interrupt(site, reason, {n: name})]
        assert steps == [1, 2], name


def test_a_rotation_is_disturbed_again_and_again(
    site: Site, intrusions: Sequence[str]
) -> None:
    # A change before the tombstone makes a conflict, after which there are more steps.
    for last in intrusions:
        steps = [
            n for n in range(3, 9) if interrupt(site, "log-in", {2: "changes", n: last})
        ]
        assert steps[:2] == [3, 4], last
        steps = [
            n
            for n in range(5, 11)
            if interrupt(site, "log-in", {2: "changes", 4: "counts", n: last})
        ]
        assert len(steps) >= 2, last


def test_of_many_rotations_at_once_one_wins(site: Site) -> None:
    for _ in range(3):
        browser = start(site, n=0)
        visits = overlap(browser, *[lambda: session.regenerate()] * 4)
        (winner,) = [visit.browser for visit in visits if visit.cookie == "set"]
        assert winner.id != browser.id
        assert winner.read() == {"n": 0}
        assert browser.read() == {}
        assert count(site) in (None, 1)
        winner.visit(lambda: session.destroy())


def test_writers_and_a_rotation_at_once(site: Site) -> None:
    for _ in range(3):
        browser = start(site, n=0)
        losses = Losses(site)
        *writers, rotator = overlap(
            browser,
            lambda: flask_session.update(a=1),
            lambda: flask_session.update(b=1),
            lambda: flask_session.update(_user_id="ada"),
        )
        # Only a request that was lost says nothing to the browser.
        assert [visit.cookie for visit in writers].count("none") >= len(losses)
        assert rotator.cookie == "set"
        content = rotator.browser.read()
        assert content.pop("n") == 0
        assert content.pop("_user_id") == "ada"
        # Each of them was told, or is there.
        assert len(content) == 2 - len(losses)
        assert browser.read() == {}
        rotator.browser.visit(lambda: session.destroy())


def unavailable() -> BackendUnavailableError:
    return BackendUnavailableError("The test lets it fail.")


@pytest.mark.parametrize("done", [False, True], ids=["not done", "answer lost"])
@pytest.mark.parametrize("disturbed", [False, True], ids=["alone", "disturbed"])
def test_an_engine_that_fails_at_any_step_of_a_rotation_leaves_what_can_be_explained(
    site: Site, disturbed: bool, done: bool
) -> None:
    for failing in range(1, 10):
        browser = start(site, n=0)
        old = browser.twin()
        failed: list[str] = []

        def step(
            number: int,
            operation: str,
            failing: int = failing,
            failed: list[str] = failed,
            old: Browser = old,
        ) -> None:
            if disturbed and number == 1:
                old.set(a=1)
            if number == failing:
                failed.append(operation)
                raise unavailable()

        with stepping(site, step, "after" if done else "before"):
            response = browser.set(_user_id="ada")
        if not failed:
            assert response.status_code == 200
            assert failing > 2
            break
        forced["failing engines"] += 1
        assert response.status_code == 503
        assert "Retry-After" in response.headers
        written = {"n": 0, **({"a": 1} if disturbed else {})}
        record = site.backend.load(key(old))
        assert record is not None
        if cookie_of(response, site) == "set":
            # The tombstone is there, or it is not, but the new record certainly is.
            assert failed == ["replace"]
            content = browser.read()
            # What was answered with a failure yields to what was stored after it.
            user = content.pop("_user_id", None)
            assert user == "ada" or (disturbed and user is None)
            assert content == written
            # The next request has put an end to the old one.
            assert old.read() == {}
            assert count(site) in (None, 1)
        else:
            # The old one is still there, as a whole. What was created, perhaps, has an
            # id that nobody knows.
            assert old.read() == browser.read() == written
            assert count(site) in (None, 1, 2)
            assert cookie_of(browser.set(_user_id="ada"), site) == "set"
            assert browser.read() == {**written, "_user_id": "ada"}
            assert old.read() == {}
        if Capability.ITERATE in site.backend.capabilities:
            for name, _ in list(site.backend.iterate()):
                site.backend.delete(name)


def test_a_rotation_that_gives_up_takes_the_new_record_back(site: Site) -> None:
    for settings, error in (
        ({"SESSION_CONFLICT": "raise"}, ConflictError),
        ({"SESSION_MAX_SIZE": 200}, SessionTooLargeError),
    ):
        own = sharing(site, **settings)
        browser = start(own, n=0)
        twin = browser.twin()

        def view(twin: Browser = twin, error: type[Exception] = error) -> None:
            flask_session["mine"] = "x" * 100
            session.regenerate()
            twin.set(theirs="x" * 100)
            with pytest.raises(error):
                session.save()
            session.reload()

        response = browser.visit(view)
        assert cookie_of(response, own) == "none"
        assert browser.read() == twin.read() == {"n": 0, "theirs": "x" * 100}
        assert count(own) in (None, 1)
        browser.visit(lambda: session.destroy())


def test_a_rotation_that_was_disturbed_is_not_due_again_at_once(site: Site) -> None:
    renewing = sharing(site, SESSION_RENEWAL_INTERVAL=100)
    browser = start(renewing, n=0)
    other = site.browser()
    other.cookie = browser.cookie
    advance(site, 100)
    with before(renewing, "replace", lambda: other.set(a=1)):
        assert cookie_of(browser.set(b=1), renewing) == "set"
    id = browser.id
    assert browser.read() == {"n": 0, "a": 1, "b": 1}
    assert browser.id == id


def test_a_log_out_that_meets_a_change_rotates_too(site: Site) -> None:
    browser = start(site, _user_id="ada")
    old = browser.twin()

    def view() -> None:
        flask_session.pop("_user_id")  # the last key
        old.set(cart=1)

    assert cookie_of(browser.visit(view), site) == "set"
    assert browser.id != old.id
    assert browser.read() == {"cart": 1}
    assert old.read() == {}


def test_starting_over_takes_nothing_of_a_writer_along(site: Site) -> None:
    def write() -> None:
        flask_session["theirs"] = 1
        session.lifetime = 100
        session.permanent = True

    for order, browser, visits in overlaps(site, {"n": 0}, restart, write):
        starter = visits[0]
        assert starter.cookie == "set", order
        assert visits[1].cookie == ("set" if order == "(1, 0)" else visits[1].cookie)
        found = read_with_lifetime(starter.browser)
        assert found == ({"restarted": True}, None), order
        assert browser.read() == {}
        starter.browser.visit(lambda: session.destroy())


def test_only_starting_over_drops_what_others_write(site: Site) -> None:
    """A session that was begun anew is like any other afterwards."""
    browser = site.browser()

    def view() -> flask.Response:
        session.regenerate(keep_data=False)
        flask_session["a"] = 1

        @flask.stream_with_context
        def body() -> Iterator[str]:
            yield "begun"
            twin = site.browser()
            twin.cookie = signed_cookie(site, session.id)
            twin.set(theirs=1)
            flask_session["mine"] = 1
            session.save()

        return flask.Response(body())

    assert browser.visit(view).text == "begun"
    assert browser.read() == {"a": 1, "theirs": 1, "mine": 1}


def signed_cookie(site: Site, id: str) -> str:
    """Give the cookie that a session will be sent with."""
    signer = site.state.interface.get_signer(site.app)
    assert signer is not None
    now = site.clock()
    return signer.sign(CookieState(id, False, now, now))


def test_rotations_of_many_threads_do_not_trip_over_each_other() -> None:
    site = memory_site()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def rotate() -> None:
            browser = start(site, n=0)
            for turn in range(60):
                assert browser.visit(regenerate).status_code == 200, turn
                assert browser.read() == {"n": 0, "late": 1}

        together(*[rotate] * 6)
    finally:
        sys.setswitchinterval(interval)


# -- answers that get lost


class RepeatingBackend(CountingBackend):
    """Stands for a driver that loses the first answer, and asks a second time."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.losses: set[str] = set()

    def _repeat(self, name: str, *args: t.Any) -> t.Any:
        function = getattr(super(), name)
        if name in self.losses:
            self.losses.remove(name)
            function(*args)
        return function(*args)

    def create(self, key: str, record: Record) -> bool:
        return t.cast(bool, self._repeat("create", key, record))

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        answer = self._repeat("replace", key, record, expected)
        return t.cast("Replaced | Conflict | Gone", answer)

    def delete(self, key: str) -> bool:
        return t.cast(bool, self._repeat("delete", key))


def test_what_was_carried_out_twice_is_not_there_twice(site: Site) -> None:
    # No backend of ours needs it: they find out for themselves.
    backend = RepeatingBackend(site.backend.backend)
    repeating = sharing(site, SESSION_BACKEND=backend)
    plain = start(site, n=0, log=[])
    browser = repeating.browser()
    browser.cookie = plain.cookie

    def view() -> None:
        session.atomic(increment)
        flask_session["log"].append(flask_session["n"])
        flash("message")

    for _ in range(3):
        backend.losses = {"replace"}
        browser.visit(view)
        assert not backend.losses
    content = browser.read()
    assert (content["n"], content["log"]) == (3, [1, 2, 3])
    assert show(browser) == ["message"] * 3
    backend.losses = {"create", "replace"}
    browser.visit(regenerate)
    assert not backend.losses
    assert browser.id != plain.id
    assert browser.read() == {"n": 3, "log": [1, 2, 3], "late": 1}
    assert plain.read() == {}
    assert count(site) in (None, 2)  # nobody knows the id of the first attempt
    backend.losses = {"delete"}
    browser.visit(lambda: session.destroy())
    assert not backend.losses
    assert browser.read() == {}


def test_a_save_whose_answer_was_lost_is_not_done_twice(site: Site) -> None:
    browser = start(site, n=0)

    def view() -> None:
        flash("message")
        flask_session["n"] += 1

    def lose() -> None:
        raise unavailable()

    site.backend.after["replace"] = lose
    response = browser.visit(view)
    del site.backend.after["replace"]
    assert response.status_code == 503
    # Nobody can tell whether it was carried out. It was, and once.
    assert browser.read()["n"] == 1
    assert show(browser) == ["message"]


class LossyProxy:
    """Forwards to a server; cuts the connection instead of every third answer."""

    def __init__(self, server: Server, marker: bytes) -> None:
        self._address = (server.host, server.port)
        self._marker = marker
        self._seen: set[bytes] = set()
        self.losses = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(
                    target=self._forward, args=(client,), daemon=True
                ).start()

    def _forward(self, client: socket.socket) -> None:
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(self._address) as server,
        ):
            while request := client.recv(65_536):
                server.sendall(request)
                answer = server.recv(65_536)
                if self._marker in request and request not in self._seen:
                    self._seen.add(request)  # whoever asks again gets an answer
                    if len(self._seen) % 3 == 0:
                        self.losses += 1
                        return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


def test_increments_whose_answers_were_lost_by_redis_add_up_exactly(
    valkey_server: ValkeyServer, make_backend_config: Callable[[str], Config]
) -> None:
    config = make_backend_config("valkey")
    proxy = LossyProxy(valkey_server, b"EVALSHA")
    try:
        site = Site({**config, "SESSION_REDIS_URL": f"redis://127.0.0.1:{proxy.port}"})
        assert count_to_sixty(site) == {"n": 60}
        assert proxy.losses >= 20
        site.backend.close()
    finally:
        proxy.close()


@pytest.mark.parametrize("name", ["sqlite", "postgresql", "mariadb"])
def test_increments_whose_answers_were_lost_by_a_database_add_up_exactly(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    import sqlite3

    import psycopg
    import pymysql
    from sqlalchemy import event

    errors: dict[str, Exception] = {
        "sqlite": sqlite3.ProgrammingError("Cannot operate on a closed database."),
        "postgresql": psycopg.OperationalError("server closed the connection"),
        "mariadb": pymysql.OperationalError(2013, "Lost connection"),
    }
    seen: set[str] = set()
    losses: list[str] = []

    def lose(
        connection: t.Any,
        cursor: t.Any,
        statement: str,
        parameters: t.Any,
        *_: t.Any,
    ) -> None:
        if not statement.startswith("UPDATE"):
            return
        found = parameters.values() if isinstance(parameters, dict) else parameters
        data = str([getattr(value, "obj", value) for value in found])
        if data not in seen:
            seen.add(data)  # whoever asks again gets an answer
            if len(seen) % 3 == 0:
                losses.append(statement)
                if name == "postgresql":
                    connection.connection.dbapi_connection.close()
                raise errors[name]

    site = Site(make_backend_config(name))
    engine = t.cast(t.Any, site.backend.backend)._engine
    event.listen(engine, "after_cursor_execute", lose)
    try:
        assert count_to_sixty(site) == {"n": 60}
    finally:
        event.remove(engine, "after_cursor_execute", lose)
    assert len(losses) >= 20


def count_to_sixty(site: Site) -> dict[str, t.Any]:
    # One after the other. Where another request writes between the lost answer and
    # the second attempt, nobody can tell any more that there was a first one.
    browser = start(site, n=0)
    for _ in range(60):
        assert browser.visit(lambda: session.atomic(increment)).status_code == 200
    forced["lost answers"] += 20
    return browser.read()


# -- SESSION_CONFLICT


def test_overwrite_keeps_the_later_version_as_it_is(make_site: MakeSite) -> None:
    site = make_site(SESSION_CONFLICT="overwrite")

    def one() -> None:
        flask_session["a"] = 1
        session.lifetime = 100

    for order, browser, _ in overlaps(
        site, {"n": 0}, one, lambda: flask_session.update(b=2)
    ):
        first, second = ({"n": 0, "a": 1}, 100.0), ({"n": 0, "b": 2}, None)
        expected = {"(0, 1)": [second], "(1, 0)": [first]}.get(order, [first, second])
        assert read_with_lifetime(browser) in expected, order


def test_raise_keeps_the_earlier_version_and_says_so(make_site: MakeSite) -> None:
    site = make_site(SESSION_CONFLICT="raise")
    browser = start(site, n=0)
    for order in ((0, 1), (1, 0)):
        with pytest.raises(ConflictError, match="Another request changed the session"):
            overlap(
                browser,
                lambda: flask_session.update(a=1),
                lambda: flask_session.update(b=2),
                order=order,
            )
    assert browser.read() == {"n": 0, "a": 1, "b": 2}
    # Each of the two was the first once: nothing was merged.
    browser = start(site, n=0)
    with pytest.raises(ConflictError):
        overlap(
            browser,
            lambda: flask_session.update(a=1),
            lambda: flask_session.update(b=2),
            order=(1, 0),
        )
    assert browser.read() == {"n": 0, "b": 2}


@pytest.mark.parametrize("policy", ["overwrite", "raise"])
def test_the_policy_revives_nothing_and_counts_right(
    make_site: MakeSite, policy: str
) -> None:
    site = make_site(SESSION_CONFLICT=policy)
    for ending in ("destroyed", "rotated"):
        end, content = ENDINGS[ending]
        browser = start(site, **BEGINNING)
        late = browser.twin()
        with before(site, "replace", functools.partial(end, browser)):
            assert cookie_of(late.set(late=1), site) == "none"
        check_that_it_is_over(late, browser, content, ending)
    browser = start(site, n=0)
    barrier = threading.Barrier(4)
    with site.backend.counting() as calls:
        together(*[lambda: counting_up(barrier, browser.twin(), 10)] * 4)
    assert calls["replace"] >= 40 + 3, "they did not meet"
    assert browser.read() == {"n": 40}


# -- save(), reload() and atomic() against each other


def test_save_and_reload_and_atomic_of_two_requests_lose_nothing(site: Site) -> None:
    def save_twice() -> None:
        flask_session["a"] = 1
        session.save()
        flask_session["b"] = 1
        session.save()

    def reload_and_count() -> None:
        flask_session["dropped"] = 1
        session.reload()
        session.atomic(increment)
        flask_session["c"] = 1

    for order, browser, _ in overlaps(site, {"n": 0}, save_twice, reload_and_count):
        assert browser.read() == {"n": 1, "a": 1, "b": 1, "c": 1}, order


def test_atomic_sees_what_another_saved_and_keeps_what_was_changed_before(
    site: Site,
) -> None:
    browser = start(site, n=0, log=["start"])
    twin = browser.twin()
    seen: list[dict[str, t.Any]] = []

    def write() -> None:
        flask_session["theirs"] = 1
        flask_session["log"].append("theirs")

    def view() -> None:
        flask_session["mine"] = 1
        flask_session["log"].append("mine")
        twin.visit(write)

        def function(own: ServerSideSession) -> None:
            seen.append(dict(own))
            own["n"] += 1

        session.atomic(function)

    browser.visit(view)
    expected = {"n": 0, "log": ["start", "theirs", "mine"], "theirs": 1, "mine": 1}
    assert seen == [expected]
    assert browser.read() == {**expected, "n": 1}


@pytest.mark.parametrize("ending", ENDINGS)
def test_atomic_does_not_revive_what_ends_while_it_runs(
    site: Site, ending: str
) -> None:
    end, content = ENDINGS[ending]
    for operation in ("load", "replace"):
        browser = start(site, **BEGINNING)
        late = browser.twin()
        losses = Losses(site)

        def view(browser: Browser = browser, operation: str = operation) -> None:
            assert flask_session["n"] == 0
            with before(site, operation, functools.partial(end, browser)):
                session.atomic(lambda own: own.update(late=1))

        assert cookie_of(late.visit(view), site) == "none"
        assert len(losses) == 1
        check_that_it_is_over(late, browser, content, operation)


def test_atomic_that_ends_the_session_itself(site: Site) -> None:
    for disturbed in (False, True):
        browser = start(site, n=0)
        twin = browser.twin()

        def function(
            own: ServerSideSession, twin: Browser = twin, once: bool = disturbed
        ) -> None:
            if own["n"] == 0 and once:
                own["n"] = 5
                twin.set(n=1)
            else:
                own.destroy()

        response = browser.visit(lambda: session.atomic(function))
        assert cookie_of(response, site) == "deleted"
        assert twin.read() == {}
        assert count(site) in (None, 0)


def test_atomic_that_rotates_only_the_second_time(site: Site) -> None:
    browser = start(site, n=0)
    twin = browser.twin()

    def function(own: ServerSideSession) -> None:
        if own["n"] == 0:
            own["n"] = 5
            twin.set(n=1)
        else:
            own["_user_id"] = "ada"

    assert cookie_of(browser.visit(lambda: session.atomic(function)), site) == "set"
    assert browser.read() == {"n": 1, "_user_id": "ada"}
    assert twin.read() == {}
    assert count(site) in (None, 1)


def test_atomic_that_rotates_only_the_first_time(site: Site) -> None:
    browser = start(site, n=0)
    twin = browser.twin()

    def function(own: ServerSideSession) -> None:
        if own["n"] == 0:
            own["_user_id"] = "ada"
        else:
            own.clear()

    with before(site, "replace", lambda: twin.set(n=1)):
        response = browser.visit(lambda: session.atomic(function))
    assert cookie_of(response, site) == "deleted"
    assert twin.read() == {}
    assert count(site) in (None, 0)


# -- in separate processes

SHARED = ["filesystem", "valkey", "redis", "sqlite", "postgresql", "mariadb"]
#: They cannot compare and swap.
CACHES = ["cachelib-filesystem", "cachelib-memcached"]

#: What runs in a process: it gets a barrier, a configuration and a cookie.
Task = Callable[..., t.Any]


class Workers:
    """Processes that run functions, two or four of them at the same time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._barriers = {number: context.Barrier(number) for number in (2, 4)}
        self._pipes = []
        self._processes = []
        for _ in range(4):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, self._barriers), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, config: Config, cookie: str | None, *tasks: Task) -> list[t.Any]:
        """Run each task in a process of its own."""
        pipes = self._pipes[: len(tasks)]
        for pipe, task in zip(pipes, tasks, strict=True):
            pipe.send((len(tasks), task, config, cookie))
        results = []
        for pipe in pipes:
            assert pipe.poll(2 * WAIT), "a process does not answer"
            results.append(pipe.recv())
        self._barriers[len(tasks)].reset()
        for error, _ in results:
            assert error is None, error
        forced["in processes"] += 1
        return [result for _, result in results]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(WAIT)


def _work(pipe: t.Any, barriers: dict[int, Barrier]) -> None:
    with contextlib.suppress(EOFError):
        while True:
            number, task, config, cookie = pipe.recv()
            try:
                site = Site(build(config))
                browser = site.browser()
                browser.cookie = cookie
                result = task(barriers[number], site, browser)
                site.backend.close()
                pipe.send((None, result))
            except BaseException:  # noqa: BLE001 - it is told in the test's process
                barriers[number].abort()
                pipe.send((traceback.format_exc(), None))


def build(config: Config) -> Config:
    """Make what cannot be sent to another process."""
    kind, *arguments = config.get("SESSION_CACHELIB", [None])
    if kind == "filesystem":
        from cachelib import FileSystemCache

        cache: t.Any = FileSystemCache(*arguments, threshold=0)
    elif kind == "memcached":
        import memcache
        from cachelib import MemcachedCache

        cache = MemcachedCache(memcache.Client(arguments))
    else:
        return config
    return {**config, "SESSION_CACHELIB": cache}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()


@pytest.fixture(params=SHARED)
def shared_config(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> Config:
    return make_backend_config(request.param)


@pytest.fixture(params=CACHES)
def cache(
    request: pytest.FixtureRequest,
    make_backend_config: Callable[[str], Config],
    get_server: Callable[[type[S]], S],
) -> tuple[Site, Config]:
    """Give a site, and its configuration as it can be sent to another process."""
    config = make_backend_config(request.param)
    if request.param == "cachelib-filesystem":
        place: tuple[str, ...] = ("filesystem", config["SESSION_CACHELIB"]._path)
    else:
        place = ("memcached", get_server(MemcachedServer).address)
    return Site(config), {**config, "SESSION_CACHELIB": place}


ROUNDS = 10


def add_keys(name: str, barrier: Barrier, site: Site, browser: Browser) -> list[str]:
    cookies = []
    for turn in range(ROUNDS):

        def view(turn: int = turn) -> None:
            flask_session.get("n")
            barrier.wait(WAIT)
            flask_session[f"{name}{turn}"] = turn
            flash(f"{name}{turn}")

        cookies.append(cookie_of(browser.visit(view), site))
    return cookies


def test_processes_that_change_different_keys_both_survive(
    workers: Workers, shared_config: Config
) -> None:
    site = Site(shared_config)
    browser = start(site, n=0)
    tasks = [functools.partial(add_keys, name) for name in "ab"]
    assert workers.run(shared_config, browser.cookie, *tasks) == [["set"] * ROUNDS] * 2
    names = {f"{name}{turn}": turn for name in "ab" for turn in range(ROUNDS)}
    assert sorted(show(browser)) == sorted(names)
    assert browser.read() == {"n": 0, **names}
    forced["in processes"] += ROUNDS - 1


def add_up(barrier: Barrier, site: Site, browser: Browser) -> tuple[list[int], int]:
    with site.backend.counting() as calls:
        numbers = counting_up(barrier, browser, 50)
    return numbers, calls["replace"]


def test_atomic_increments_of_four_processes_add_up_exactly(
    workers: Workers, shared_config: Config
) -> None:
    browser = start(Site(shared_config), n=0)
    results = workers.run(shared_config, browser.cookie, *[add_up] * 4)
    assert sum(replaced for _, replaced in results) >= 200 + 3, "they did not meet"
    assert browser.read() == {"n": 200}
    numbers = itertools.chain.from_iterable(numbers for numbers, _ in results)
    assert sorted(numbers) == list(range(1, 201))
    forced["atomic increments in processes"] += 200


def be_late(change: str, barrier: Barrier, site: Site, browser: Browser) -> t.Any:
    losses = Losses(site)

    def view() -> None:
        assert flask_session["n"] == 0
        barrier.wait(WAIT)
        barrier.wait(WAIT)  # here the other process ends the session
        CHANGES[change]()

    cookie = cookie_of(browser.visit(view), site)
    return cookie, len(losses), browser.read()


def end_it(ending: str, barrier: Barrier, site: Site, browser: Browser) -> t.Any:
    barrier.wait(WAIT)
    ENDINGS[ending][0](browser)
    barrier.wait(WAIT)
    return browser.cookie


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_another_process_ended_never_comes_back(
    workers: Workers, shared_config: Config, ending: str
) -> None:
    site = Site(shared_config)
    changes = (
        ["counts", "rotates"] if ending in ("destroyed", "rotated") else ["counts"]
    )
    for change in changes:
        browser = start(site, **BEGINNING)
        late, cookie = workers.run(
            shared_config,
            browser.cookie,
            functools.partial(be_late, change),
            functools.partial(end_it, ending),
        )
        assert late == ("none", 1, {})
        assert browser.read() == {}
        browser.cookie = cookie
        assert browser.read() == ENDINGS[ending][1]
        assert count(site) in (None, bool(ENDINGS[ending][1]))
        browser.visit(lambda: session.destroy())


# -- cachelib, which cannot compare and swap: between processes only
#
# Among the threads of one process, all of the tests above hold for it too.


def write_late(barrier: Barrier, site: Site, browser: Browser) -> str:
    """Save a session, and let the other process in between reading and writing it."""
    cache = t.cast(t.Any, site.backend.backend)._cache
    write, waits = cache.set, iter([True])

    def write_after_the_other(name: str, *args: t.Any) -> t.Any:
        if not name.endswith("probe") and next(waits, False):
            barrier.wait(WAIT)
            barrier.wait(WAIT)
        return write(name, *args)

    cache.set = write_after_the_other
    return cookie_of(browser.visit(lambda: flask_session.update(late=1)), site)


def write_meanwhile(barrier: Barrier, site: Site, browser: Browser) -> str:
    barrier.wait(WAIT)
    cookie = cookie_of(browser.visit(lambda: flask_session.update(other=1)), site)
    barrier.wait(WAIT)
    return cookie


def test_a_cache_loses_a_change_between_processes(
    workers: Workers, cache: tuple[Site, Config]
) -> None:
    site, config = cache
    browser = start(site, n=0)
    workers.run(config, browser.cookie, write_late, write_meanwhile)
    assert browser.read() == {"n": 0, "late": 1}  # and not other=1


def test_a_cache_revives_between_processes_what_was_ended(
    workers: Workers, cache: tuple[Site, Config]
) -> None:
    site, config = cache
    for ending, (_, content) in ENDINGS.items():
        browser = start(site, **BEGINNING)
        _, cookie = workers.run(
            config, browser.cookie, write_late, functools.partial(end_it, ending)
        )
        assert browser.read() == {**BEGINNING, "late": 1}
        if cookie != browser.cookie:
            # Where the id was changed, there are two sessions from now on.
            browser.cookie = cookie
            assert browser.read() == content


def test_a_cache_keeps_all_between_processes_that_do_not_meet_inside_of_it(
    workers: Workers, cache: tuple[Site, Config]
) -> None:
    # All that is left open is the moment from the cache's own read to its write.
    site, config = cache
    for ending, (_, content) in ENDINGS.items():
        for change in ("sets a key", "counts", "rotates"):
            browser = start(site, **BEGINNING)
            late, cookie = workers.run(
                config,
                browser.cookie,
                functools.partial(be_late, change),
                functools.partial(end_it, ending),
            )
            assert late == ("none", 1, {})
            if ending != "revoked":
                browser.cookie = cookie
            assert browser.read() == content
