"""Random requests of several browsers, compared with a model made of plain dicts.

The model knows nothing of the library's code. It says what the store must hold after
each request, for every id that ever was: this content, with these times, or nothing,
or a tombstone; which cookie was sent; and which changes were reported as lost.

Requests overlap: one is begun, others run inside of its view, or between two operations
of its backend, and then it ends.
"""

from __future__ import annotations

import collections
import copy
import functools
import json
import logging
import types
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace

import flask
import pytest
from flask import flash
from flask import get_flashed_messages
from flask import session as flask_session
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import initialize
from hypothesis.stateful import rule
from hypothesis.stateful import run_state_machine_as_test

from flask_serversession import Capability
from flask_serversession import ServerSideSession
from flask_serversession import session
from flask_serversession import session_lost
from flask_serversession.backends.base import Backend
from flask_serversession.cookie import CookieState
from flask_serversession.envelope import Sealer
from flask_serversession.record import key_of
from flask_serversession.serializers import serializer_for
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .figures import add_counts
from .site import Browser
from .site import Site
from .site import cookie_of

T = t.TypeVar("T")

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR

#: How long the sessions of these tests live without being used.
IDLE = HOUR
PERMANENT = DAY

USER = "_user_id"
FLASHES = "_flashes"

#: What has been tried, over all backends; shown at the end.
tried: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def _show_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    tried.clear()
    yield
    add_counts(request.node, "model", tried)


# -- the model


@dataclass(frozen=True)
class Rules:
    """The settings that sessions are tried with."""

    touch_interval: int = MINUTE
    grace: int = 10
    absolute_timeout: int | None = None
    renewal_interval: int | None = None
    is_refreshed: bool = True

    @property
    def config(self) -> dict[str, t.Any]:
        return {
            "PERMANENT_SESSION_LIFETIME": PERMANENT,
            "SESSION_IDLE_TIMEOUT": IDLE,
            "SESSION_TOUCH_INTERVAL": self.touch_interval,
            "SESSION_ROTATION_GRACE": self.grace,
            "SESSION_ABSOLUTE_TIMEOUT": self.absolute_timeout,
            "SESSION_RENEWAL_INTERVAL": self.renewal_interval,
            "SESSION_REFRESH_EACH_REQUEST": self.is_refreshed,
        }


@dataclass
class Entry:
    """A session in the store, or the tombstone of one."""

    data: dict[str, t.Any]
    created: float
    touched: float
    expires: float
    issued: float
    lifetime: float | None
    version: int = 1
    is_tombstone: bool = False
    #: Of a tombstone: where the session has gone, unless its user has changed.
    heir: str | None = None

    @property
    def user(self) -> str | None:
        return self.data.get(USER)


def lifetime_of(data: dict[str, t.Any], own: float | None) -> float:
    return own or (PERMANENT if data.get("_permanent") else IDLE)


def is_same(one: t.Any, other: t.Any) -> bool:
    return json.dumps(one) == json.dumps(other)


def merged(
    base: dict[str, t.Any], mine: dict[str, t.Any], theirs: dict[str, t.Any]
) -> dict[str, t.Any]:
    """Give what two requests together have made of a session."""
    result: dict[str, t.Any] = {}
    for name in {*mine, *theirs}:
        # None stands for a key that is not there: no rule here stores one.
        before, ours, others = base.get(name), mine.get(name), theirs.get(name)
        start = before or []
        is_list = isinstance(start, list)
        appended = [
            version[len(start) :]
            if is_list
            and isinstance(version, list)
            and is_same(version[: len(start)], start)
            else None
            for version in (others, ours)
        ]
        if is_same(ours, before) or is_same(ours, others):
            value = others
        elif is_same(others, before):
            value = ours
        elif appended[0] is not None and appended[1] is not None:
            value = [*start, *appended[0], *appended[1]]
        elif appended[1] is not None and (others is None or isinstance(others, list)):
            value = [*(others or []), *appended[1]] or None
        elif appended[0] is not None and (ours is None or isinstance(ours, list)):
            value = [*(ours or []), *appended[0]] or None
        else:
            value = ours
        if value is not None:
            result[name] = copy.deepcopy(value)
    return result


class Store:
    """All sessions that ever were, by their ids."""

    def __init__(self, rules: Rules, clock: Callable[[], float]) -> None:
        self.rules = rules
        self.clock = clock
        self.entries: dict[str, Entry] = {}
        #: Ended by a request, or rotated away, and until when that is remembered: no
        #: cookie may name them again.
        self.retired: dict[str, float] = {}
        self._numbers = iter(range(10**9))

    def new_id(self) -> str:
        """Give a stand-in for an id that only the library knows yet."""
        return f"new {next(self._numbers)}"

    def rename(self, old: str, new: str) -> None:
        self.entries[new] = self.entries.pop(old)
        for entry in self.entries.values():
            if entry.heir == old:
                entry.heir = new

    def get(self, id: str) -> Entry | None:
        entry = self.entries.get(id)
        return None if entry is None or entry.expires <= self.clock() else entry

    def is_live(self, id: str) -> bool:
        entry = self.get(id)
        return entry is not None and not entry.is_tombstone

    def limit(self, expires: float, created: float) -> float:
        limit = self.rules.absolute_timeout
        return expires if limit is None else min(expires, created + limit)

    def make(
        self,
        data: dict[str, t.Any],
        lifetime: float | None,
        created: float,
        issued: float,
        version: int,
    ) -> Entry:
        now = self.clock()
        expires = self.limit(now + lifetime_of(data, lifetime), created)
        data = copy.deepcopy(data)
        return Entry(data, created, now, expires, issued, lifetime, version)

    def retire(self, id: str) -> None:
        remembered = max(self.rules.grace, self.rules.touch_interval, MINUTE)
        self.retired[id] = self.clock() + remembered

    def is_retired(self, id: str, since: float = -1.0) -> bool:
        """Say whether a session was ended, after a moment, by what is remembered."""
        until = self.retired.get(id, 0.0)
        remembered = max(self.rules.grace, self.rules.touch_interval, MINUTE)
        return until > self.clock() and until - remembered > since

    def remove(self, id: str) -> bool:
        """Delete a session, but not a tombstone."""
        entry = self.get(id)
        if entry is None or entry.is_tombstone:
            return False
        del self.entries[id]
        self.retire(id)
        return True

    def touch(self, id: str, lifetime: float, created: float) -> bool:
        return self.touch_until(id, self.limit(self.clock() + lifetime, created))

    def touch_until(self, id: str, expires: float) -> bool:
        entry = self.get(id)
        if entry is None or entry.is_tombstone:
            return False
        entry.touched = self.clock()
        # Unless the limit has passed, no touch shortens a life.
        if expires > entry.touched:
            expires = max(expires, entry.expires)
        entry.expires = expires
        return True

    def is_touch_due(self, touched: float, lifetime: float) -> bool:
        return self.clock() - touched >= min(self.rules.touch_interval, lifetime / 20)


#: Stops where the library asks its backend for an operation, and says which.
Steps: t.TypeAlias = "t.Generator[str, None, T]"


def is_unused(data: dict[str, t.Any]) -> bool:
    return not data.keys() - {"_permanent"}


class ModelRequest:
    """What one request sees, changes and leaves behind.

    :param cookie: What the cookie says that the request came with.
    :param losses: Gets the ids of sessions whose changes were dropped.
    """

    def __init__(
        self, store: Store, cookie: CookieState | None, losses: list[str]
    ) -> None:
        self.store = store
        self.losses = losses
        self.cookie = cookie
        self.id = None if cookie is None else cookie.id
        self.seen_at = store.clock()
        #: "unloaded", "new", "stored" or "lost"
        self.status = "unloaded"
        self.base: dict[str, t.Any] = {}
        self.data: dict[str, t.Any] = {}
        self.version = 0
        self.touched = self.created = self.issued = self.expires = 0.0
        self.lifetime: float | None = None
        self.base_lifetime: float | None = None
        self.user: str | None = None
        self.is_written = self.is_cleared = self.is_rotating = False
        self.is_modified = False
        self.is_restarted = self.is_touched = self.has_ended = False
        self.is_moved = self.is_saved = self.is_loss_told = False
        self.flashes_shown = False
        self.is_activity = True

    # what views do

    def load(self) -> None:
        if self.status != "unloaded":
            return
        if self.id is None:
            self.begin()
            return
        opened_at, self.seen_at = self.seen_at, self.store.clock()
        now = self.seen_at
        entry = self.store.get(self.id)
        limit = self.store.rules.absolute_timeout
        if entry is None and self.store.is_retired(self.id, since=opened_at):
            self.status = "lost"
        elif entry is None or (limit is not None and now >= entry.created + limit):
            self.begin()
        elif entry.is_tombstone:
            self.status = "lost"
        elif now >= entry.touched + lifetime_of(entry.data, entry.lifetime):
            self.begin()
        else:
            self.adopt(entry)
            self.status = "stored"
            if self.is_cleared:
                self.data, self.lifetime = {}, None

    def adopt(self, entry: Entry) -> None:
        self.base, self.data = copy.deepcopy(entry.data), copy.deepcopy(entry.data)
        self.lifetime = self.base_lifetime = entry.lifetime
        self.version, self.user = entry.version, entry.user
        self.touched, self.created = entry.touched, entry.created
        self.issued, self.expires = entry.issued, entry.expires

    def begin(self) -> None:
        self.status, self.id = "new", None
        self.base, self.data = {}, {}
        self.lifetime = self.base_lifetime = self.user = None

    def set(self, name: str, value: t.Any) -> None:
        self.load()
        self.data[name] = value
        self.is_written = True

    def set_permanent(self, is_permanent: bool) -> None:
        self.load()
        if self.data.get("_permanent") is is_permanent:
            self.is_touched = True
        else:
            self.set("_permanent", is_permanent)

    def pop(self, name: str) -> None:
        self.load()
        if name in self.data:
            del self.data[name]
            self.is_written = True

    def change_inside(self, name: str) -> None:
        self.load()
        value = self.data.get(name)
        if isinstance(value, dict):
            value["n"] = value.get("n", 0) + 1
        elif isinstance(value, list):
            value.append(len(value))

    def flash(self, message: str) -> None:
        self.load()
        self.data[FLASHES] = [*self.data.get(FLASHES, []), ["message", message]]
        self.is_written = True

    def show(self) -> None:
        if not self.flashes_shown:  # Flask remembers them for the rest of the request
            self.flashes_shown = True
            self.load()
            self.pop(FLASHES)

    def set_lifetime(self, lifetime: int | None) -> None:
        self.load()
        self.lifetime = lifetime
        self.is_written = True

    def clear(self) -> None:
        self.is_cleared = self.is_written = True
        self.data, self.lifetime = {}, None

    def destroy(self) -> Steps[None]:
        self.data = {}
        self.is_written = self.is_cleared = self.is_modified = False
        self.is_rotating = self.is_restarted = False
        if self.id is not None and self.status != "new":
            yield from self.delete()
        elif self.status in ("unloaded", "new"):
            self.begin()

    def delete(self) -> Steps[bool]:
        """Delete what is stored, whatever others have made of it."""
        assert self.id is not None
        yield "delete"
        if self.store.remove(self.id):
            self.end()
            return True
        entry = self.store.get(self.id)
        if entry is None:
            self.begin()
            return False
        self.delete_heir(entry)
        self.lose(False)
        return False

    def delete_heir(self, entry: Entry | None) -> None:
        """End the session that a tombstone leads to."""
        for _ in range(5):
            if entry is None or entry.heir is None:
                break
            heir = entry.heir
            if self.store.remove(heir):
                break
            entry = self.store.get(heir)

    def is_log_out(self) -> bool:
        return self.is_cleared or (
            self.user is not None and (self.is_restarted or not self.data.get(USER))
        )

    def end(self) -> None:
        self.begin()
        self.has_ended = True
        self.is_modified |= self.is_written
        self.is_written = self.is_cleared = False

    def regenerate(self, keep_data: bool) -> None:
        self.load()
        if not keep_data:
            self.data, self.lifetime = {}, None
        self.is_written = True
        if self.status == "stored":
            self.is_rotating = True
            self.is_restarted |= not keep_data

    def reload(self) -> None:
        self.is_written = self.is_cleared = self.is_modified = False
        self.is_rotating = self.is_restarted = False
        if self.status == "stored":
            assert self.id is not None
            entry = self.store.get(self.id)
            limit = self.store.rules.absolute_timeout
            if (
                entry is None
                or entry.is_tombstone
                or (limit is not None and self.store.clock() >= entry.created + limit)
            ):
                self.status, self.data = "lost", {}
            else:
                self.adopt(entry)
        elif self.status == "unloaded":
            self.load()
        elif self.status == "new":
            self.begin()
        else:
            self.data = {}

    def save(self) -> Steps[None]:
        if self.status == "unloaded":
            if not self.is_written:
                return
            self.load()
        if self.status == "new" and not is_unused(self.data):
            yield from self.create()
        elif self.status == "stored":
            if self.has_changed() or self.must_rotate():
                yield from self.write(self.has_changed(), self.merge)
        elif self.status == "lost" and self.is_written:
            self.lose(True)

    def count(self) -> Steps[None]:
        """Count atomically."""
        self.load()

        def increment() -> None:
            self.set("n", self.data.get("n", 0) + 1)

        if self.status != "stored":
            increment()
            yield from self.save()
            return
        assert self.id is not None
        flags = self.is_rotating, self.is_restarted, self.is_cleared
        base, mine = self.base, copy.deepcopy(self.data)
        lifetime, is_lifetime_mine = self.lifetime, self.lifetime != self.base_lifetime

        def run(entry: Entry) -> None:
            self.is_rotating, self.is_restarted, self.is_cleared = flags
            self.adopt(entry)
            if is_lifetime_mine or self.is_restarted:
                self.lifetime = lifetime
            if self.is_cleared or self.is_restarted or is_same(base, entry.data):
                self.data = copy.deepcopy(mine)
            else:
                self.data = merged(base, mine, entry.data)
            increment()

        entry = self.store.get(self.id)
        if entry is None or entry.is_tombstone:
            self.data = {}
            self.lose(False)
            increment()
            return
        run(entry)
        yield from self.write(True, run)

    # what is stored

    def has_changed(self) -> bool:
        return (
            self.is_written
            or self.lifetime != self.base_lifetime
            or not is_same(self.data, self.base)
        )

    def must_rotate(self) -> bool:
        interval = self.store.rules.renewal_interval
        return (
            self.is_rotating
            or (self.is_cleared and not is_unused(self.data))
            or self.data.get(USER) != self.user
            or (interval is not None and self.store.clock() - self.issued >= interval)
        )

    def create(self) -> Steps[None]:
        now = self.store.clock()
        entry = self.store.make(self.data, self.lifetime, now, now, 1)
        yield "create"
        self.id = self.store.new_id()
        self.store.entries[self.id] = entry
        self.is_moved = True
        self.keep(entry)

    def keep(self, entry: Entry) -> None:
        """Go on with what was just stored."""
        self.adopt(entry)
        self.status = "stored"
        self.is_modified |= self.is_written
        self.is_written = self.is_cleared = self.is_restarted = False
        self.is_saved = True

    def write(self, has_changed: bool, resolve: Callable[[Entry], None]) -> Steps[str]:
        """Give "stored", "ended" or "lost"."""
        heir: str | None = None
        issued = 0.0
        outcome = "lost"
        while True:
            assert self.id is not None
            if self.is_cleared and is_unused(self.data):
                outcome = "ended" if (yield from self.delete()) else "lost"
                break
            # What is written after clear() begins another session.
            self.is_restarted |= self.is_cleared
            is_emptied = is_unused(self.data) and not is_unused(self.base)
            is_rotating = not is_emptied and (heir is not None or self.must_rotate())
            now = self.store.clock()
            created = now if is_rotating and self.is_restarted else self.created
            new = self.store.make(self.data, self.lifetime, created, self.issued, 0)
            if not self.is_activity:
                new.touched, new.expires = self.touched, self.expires
            if is_rotating:
                if heir is None:
                    yield "create"
                    heir, issued = self.store.new_id(), now
                else:
                    yield "replace"
                    if self.store.get(heir) is None:  # expired before it was known
                        break
                new.issued, new.version = issued, 1
                self.store.entries[heir] = new
            tombstone_expires = self.store.clock() + self.store.rules.grace
            yield "replace"
            current = self.store.get(self.id)
            if current is None:
                break
            if current.is_tombstone:
                if self.is_log_out():
                    self.delete_heir(current)
                break
            if current.version != self.version:
                tried["conflicts"] += 1
                resolve(current)
                continue
            if is_rotating:
                assert heir is not None
                is_same_user = current.user == new.user and not self.is_restarted
                del self.store.entries[self.id]
                self.store.retire(self.id)
                self.store.entries[self.id] = replace(
                    current,
                    data={},
                    is_tombstone=True,
                    version=current.version + 1,
                    expires=tombstone_expires,
                    heir=heir if is_same_user else None,
                )
                self.id, heir = heir, None
                self.is_rotating = False
                self.is_moved = True
                self.keep(new)
                tried["rotations"] += 1
                outcome = "stored"
            elif is_emptied or new.expires <= now:
                self.store.remove(self.id)
                self.end()
                outcome = "ended"
            else:
                new.version = current.version + 1
                self.store.entries[self.id] = new
                self.keep(new)
                outcome = "stored"
            break
        if heir is not None:
            self.store.entries.pop(heir, None)
        if outcome == "lost" and self.status == "stored":
            self.lose(has_changed)
        return outcome

    def merge(self, current: Entry) -> None:
        mine, lifetime, base = self.data, self.lifetime, self.base
        is_lifetime_mine = lifetime != self.base_lifetime
        self.adopt(current)
        if self.is_restarted:
            self.data, self.lifetime = mine, lifetime
            return
        self.data = merged(base, mine, current.data)
        if is_lifetime_mine:
            self.lifetime = lifetime

    def lose(self, has_changed: bool) -> None:
        self.status = "lost"
        self.is_modified |= self.is_written
        self.is_written = self.is_rotating = False
        if has_changed and not self.is_loss_told:
            self.is_loss_told = True
            assert self.id is not None
            self.losses.append(self.id)
            tried["losses"] += 1

    # how it ends

    def finish(self) -> Steps[str]:
        """Give what becomes of the cookie: "none", "same", "new" or "deleted"."""
        if self.status == "unloaded":
            if not self.is_written:
                return self.finish_unseen()
            if self.id is None:
                return "none"
            return "deleted" if (yield from self.delete()) else "none"
        if self.status == "new":
            if self.has_ended and self.cookie is not None and is_unused(self.data):
                return "deleted"
            if is_unused(self.data) or not self.is_written:
                return "none"
            yield from self.create()
            return "new"
        if self.status == "stored":
            return (yield from self.finish_stored())
        if self.is_written and (
            not is_unused(self.data) or not (self.data or self.is_cleared)
        ):
            self.lose(True)
        if self.is_cleared and self.id is not None:
            yield from self.delete()
        return "none"

    def finish_unseen(self) -> str:
        cookie, store = self.cookie, self.store
        is_refreshed = store.rules.is_refreshed
        if cookie is None or not (
            self.is_touched or (is_refreshed and cookie.is_permanent)
        ):
            return "none"
        lifetime = cookie.lifetime or (PERMANENT if cookie.is_permanent else IDLE)
        is_old = store.clock() - self.seen_at > 0.1
        if store.is_touch_due(cookie.touched_at, lifetime) or is_old:
            if not store.touch(cookie.id, lifetime, cookie.created_at):
                return "none"
            is_renewed = store.clock() != cookie.touched_at
            is_sent = is_renewed or (is_refreshed and cookie.is_permanent)
            return "same" if is_sent else "none"
        if store.is_retired(cookie.id):
            return "none"
        return "same" if is_refreshed and cookie.is_permanent else "none"

    def finish_stored(self) -> Steps[str]:
        assert self.id is not None
        has_changed, store = self.has_changed(), self.store
        is_renewed = store.rules.is_refreshed or self.is_touched
        is_changed = has_changed or self.is_saved
        was_permanent = bool(self.data.get("_permanent"))
        self.is_activity = is_changed or is_renewed or not was_permanent
        is_written = has_changed or self.must_rotate()
        if is_written:
            outcome = yield from self.write(has_changed, self.merge)
            if outcome == "ended":
                return "deleted" if self.cookie is not None else "none"
            if outcome == "lost":
                return "none"
        if store.is_retired(self.id):
            return "none"
        is_permanent = bool(self.data.get("_permanent"))
        is_due = (
            self.cookie is None
            or self.cookie.is_permanent != is_permanent
            or self.cookie.lifetime != self.lifetime
            or self.is_written
            or self.is_modified
            or (is_permanent and (is_renewed or is_changed))
        )
        if not is_written:
            lifetime = lifetime_of(self.data, self.lifetime)
            is_used = is_renewed or not was_permanent
            is_old = store.clock() - self.seen_at > 0.1
            is_sent_again = is_due and self.cookie is not None and not self.is_moved
            is_alive = True
            if is_used and (
                store.is_touch_due(self.touched, lifetime) or (is_sent_again and is_old)
            ):
                is_alive = store.touch(self.id, lifetime, self.created)
            elif is_sent_again and is_old:
                expires = max(self.expires, store.clock() + 1)
                is_alive = store.touch_until(self.id, expires)
            if not is_alive:
                return "none"
        if self.is_moved:
            return "new"
        return "same" if is_due else "none"


# -- what is done with both

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.one_of(
    st.integers(0, 3),
    st.just({"n": 0}),
    st.just([]),
    st.just(["x"]),
)
USERS = st.sampled_from(["ada", "eve"])
LIFETIMES = st.sampled_from([None, 100, 2 * HOUR])
#: Durations of all kinds: within the grace, beyond it, a touch interval, ...
DURATIONS = st.sampled_from([1, 5, 9, 10, 59, 60, 100, 1800, IDLE, 2 * HOUR, PERMANENT])
SLOTS = st.integers(0, 2)

#: A step of a view: its name, and what it is done with.
Step: t.TypeAlias = "tuple[t.Any, ...]"

CHANGES: list[st.SearchStrategy[Step]] = [
    st.tuples(st.just("set"), NAMES, VALUES),
    st.tuples(st.just("pop"), NAMES),
    st.tuples(st.just("change inside"), NAMES),
    st.tuples(st.just("flash"), st.sampled_from(["one", "two"])),
    st.tuples(st.just("show")),
    st.tuples(st.just("count")),
]
PLAIN_STEPS: list[st.SearchStrategy[Step]] = [
    *CHANGES * 3,
    st.tuples(st.just("permanent"), st.booleans()),
    st.tuples(st.just("lifetime"), LIFETIMES),
    st.tuples(st.just("log in"), USERS),
    st.tuples(st.just("log out")),
    st.tuples(st.just("regenerate"), st.booleans()),
    st.tuples(st.just("clear")),
    st.tuples(st.just("destroy")),
    st.tuples(st.just("save")),
    st.tuples(st.just("reload")),
    st.tuples(st.just("touch")),
    st.tuples(st.just("look")),
    st.tuples(st.just("wait"), DURATIONS),
]


class Plan(t.NamedTuple):
    """A request: whose, what its view does, and what comes in between at the end."""

    slot: int
    steps: list[Step]
    #: An operation, and the request that runs before the backend is asked for it.
    late: tuple[str, Plan] | None = None


@st.composite
def plans(draw: st.DrawFn, depth: int) -> Plan:
    """Plan a request, with others inside of it to a depth."""
    steps: list[Step] = []
    for _ in range(draw(st.integers(0, 5))):
        if depth and draw(st.integers(0, 3)) == 0:
            steps.append(("meanwhile", draw(plans(depth - 1))))
        else:
            steps.append(draw(st.one_of(PLAIN_STEPS)))
    late = None
    if depth and draw(st.booleans()):
        operation = draw(st.sampled_from(["create", "replace", "replace", "delete"]))
        late = (operation, draw(plans(0)))
    return Plan(draw(SLOTS), steps, late)


LOGGER = logging.getLogger("flask_serversession")


class Warnings(logging.Handler):
    """Keeps what was warned of: none of these requests deserves it."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class SessionsMachine(RuleBasedStateMachine):
    """Three browsers, and all cookies that they ever had."""

    #: Set by the test.
    backend: Backend
    prefix: str
    clock: FakeClock

    @initialize(
        rules=st.builds(
            Rules,
            touch_interval=st.sampled_from([0, MINUTE]),
            grace=st.sampled_from([0, 10]),
            absolute_timeout=st.sampled_from([None, None, 3 * HOUR]),
            renewal_interval=st.sampled_from([None, None, 100]),
            is_refreshed=st.booleans(),
        )
    )
    def start(self, rules: Rules) -> None:
        # What earlier examples left has expired.
        self.clock.advance(2 * PERMANENT)
        if Capability.PRUNE in self.backend.capabilities:
            self.backend.prune(10_000)
        self.site = Site(
            {"SESSION_BACKEND": self.backend},
            clock=self.clock,
            SESSION_KEY_PREFIX=self.prefix,
            **rules.config,
        )
        self.rules = rules
        self.store = Store(rules, self.clock)
        self.slots: list[str | None] = [None] * 3
        self.cookies: list[str] = []
        session_lost.connect(self._note_loss, self.site.app)
        self.losses: list[str] = []
        self.expected_losses: list[str] = []
        self.warnings = Warnings(logging.WARNING)
        LOGGER.addHandler(self.warnings)
        #: The ids, by what the model called them before it knew.
        self.ids: dict[str, str] = {}
        tried["examples"] += 1
        self.begin_together()

    def _note_loss(self, app: flask.Flask, handle: str, user: str | None) -> None:
        self.losses.append(handle)

    # rules

    @rule(plan=plans(2))
    def request(self, plan: Plan) -> None:
        self.run_plan(plan)

    @rule(plan=plans(2))
    def another_request(self, plan: Plan) -> None:
        self.run_plan(plan)

    @rule(outer=plans(1), inner=plans(1))
    def request_around_another(self, outer: Plan, inner: Plan) -> None:
        """Run a request inside of the view of another, of the same session if any."""
        inner = inner._replace(slot=outer.slot)
        steps: list[Step] = [("look",), ("meanwhile", inner), *outer.steps]
        self.run_plan(outer._replace(steps=steps))

    @rule(outer=plans(0), inner=plans(0))
    def request_while_another_is_saved(self, outer: Plan, inner: Plan) -> None:
        """Run a request before another one's first write, and in the same session."""
        late = ("replace", inner._replace(slot=outer.slot))
        self.run_plan(outer._replace(late=late))

    @rule(outer=plans(0), inner=plans(0))
    def request_while_an_id_is_changed(self, outer: Plan, inner: Plan) -> None:
        """Run a request before a tombstone is put."""
        late = ("replace", inner._replace(slot=outer.slot))
        steps = [*outer.steps, ("regenerate", True)]
        self.run_plan(outer._replace(steps=steps, late=late))

    @rule(plan=plans(0))
    def simple_request(self, plan: Plan) -> None:
        self.run_plan(plan)

    @rule(slot=SLOTS, user=USERS)
    def log_in(self, slot: int, user: str) -> None:
        self.run_plan(Plan(slot, [("set", "a", ["x"]), ("log in", user)]))

    @rule(slot=SLOTS)
    def log_out(self, slot: int) -> None:
        self.run_plan(Plan(slot, [("clear",), ("destroy",)]))

    @rule(slot=SLOTS)
    def ignore(self, slot: int) -> None:
        self.run_plan(Plan(slot, []))

    @rule()
    def begin_together(self) -> None:
        """Let all browsers have one session."""
        self.run_plan(Plan(0, [("set", "a", ["x"]), ("set", "b", {"n": 0})]))
        self.slots = [self.slots[0]] * 3

    @rule(slot=SLOTS, other=SLOTS)
    def copy_cookie(self, slot: int, other: int) -> None:
        self.slots[slot] = self.slots[other]

    @rule(slot=SLOTS, number=st.integers(0, 10**6))
    def replay_cookie(self, slot: int, number: int) -> None:
        if self.cookies:
            self.slots[slot] = self.cookies[number % len(self.cookies)]

    @rule(seconds=DURATIONS)
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        tried["clock steps"] += 1
        self.compare()

    # a request, both ways

    def run_plan(self, plan: Plan, is_inside: bool = False) -> None:
        """Carry out a request, with the library and with the model."""
        tried["requests"] += 1
        cookie = self.slots[plan.slot]
        model = ModelRequest(self.store, self._verify(cookie), self.expected_losses)
        late = plan.late
        has_come = False
        outcomes: list[str] = []

        def come() -> None:
            nonlocal has_come
            assert late is not None
            has_come = True
            del self.site.backend.before[late[0]]
            tried["requests between operations"] += 1
            self.run_plan(late[1], True)

        def start(steps: Steps[None]) -> Steps[None] | None:
            """Let the model go on until something comes in between."""
            for operation in steps:
                if late is not None and not has_come and operation == late[0]:
                    self.site.backend.before[operation] = come
                    return steps
            return None

        def end(steps: Steps[None] | None) -> None:
            if steps is not None:
                assert has_come, "the backend was not asked for what the model says"
                for _ in steps:
                    pass

        def finish() -> Steps[None]:
            outcomes.append((yield from model.finish()))

        finishing: list[Steps[None] | None] = []

        def view() -> None:
            for step in plan.steps:
                name, *values = step
                if name == "meanwhile":
                    tried["requests inside of views"] += 1
                    self.run_plan(*values, True)
                    continue
                steps = start(in_model(model, name, *copy.deepcopy(values)))
                in_view(self.clock, model, name, *copy.deepcopy(values))
                end(steps)
            finishing.append(start(finish()))

        browser = self.site.browser()
        browser.cookie = cookie
        response = browser.visit(view)
        assert response.status_code == 200
        end(finishing[0])
        self.check_cookie(
            plan.slot, browser, cookie_of(response, self.site), model, *outcomes
        )
        if not is_inside:
            self.compare()

    def check_cookie(
        self, slot: int, browser: Browser, sent: str, model: ModelRequest, expected: str
    ) -> None:
        assert sent == {"same": "set", "new": "set"}.get(expected, expected)
        if sent == "none":
            return
        self.slots[slot] = browser.cookie
        if browser.cookie is None:
            return
        self.cookies.append(browser.cookie)
        assert model.id is not None
        if expected == "same":
            assert browser.id == model.id
        elif model.id != browser.id:
            assert browser.id not in self.store.entries
            self.ids[model.id] = browser.id
            self.store.rename(model.id, browser.id)

    def _verify(self, cookie: str | None) -> CookieState | None:
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        return None if cookie is None else signer.verify(cookie)

    def compare(self) -> None:
        """Compare all that is stored."""
        for id in self.ids.values():
            key = key_of(id, self.prefix)
            record = self.backend.load(key)
            entry = self.store.get(id)
            if entry is None:
                assert record is None
                continue
            assert record is not None
            assert record.expires_at == entry.expires
            assert record.is_tombstone == entry.is_tombstone
            if entry.is_tombstone:
                continue
            envelope = SEALER.open(record.data, key)
            content = SERIALIZER.loads(envelope.payload)
            assert json.loads(json.dumps(content)) == entry.data
            assert envelope.lifetime == entry.lifetime
            assert record.created_at == entry.created
            assert record.touched_at == entry.touched
            assert record.user == entry.user
            tried["sessions compared"] += 1
        if Capability.COUNT in self.backend.capabilities:
            live = [id for id in self.store.entries if self.store.is_live(id)]
            assert self.backend.count() == len(live)
        assert len(self.losses) == len(self.expected_losses)
        real = set(self.ids.values())
        for handle, expected in zip(self.losses, self.expected_losses, strict=True):
            id = self.ids.get(expected, expected)
            # Nobody was told the others, so they cannot be known here either.
            assert handle == key_of(id, "") or id not in real
        assert not self.warnings.records, self.warnings.records[0].getMessage()

    def teardown(self) -> None:
        LOGGER.removeHandler(self.warnings)
        if Capability.ITERATE in self.backend.capabilities:
            for key, _ in list(self.backend.iterate()):
                self.backend.delete(key)


SEALER = Sealer(())
SERIALIZER = serializer_for("msgpack")


def in_model(model: ModelRequest, name: str, *values: t.Any) -> Steps[None]:
    """Carry out a step of a view in the model."""
    actions: dict[str, Callable[..., t.Any]] = {
        "set": model.set,
        "pop": model.pop,
        "change inside": model.change_inside,
        "flash": model.flash,
        "show": model.show,
        "permanent": model.set_permanent,
        "lifetime": model.set_lifetime,
        "log in": functools.partial(model.set, USER),
        "log out": functools.partial(model.pop, USER),
        "regenerate": model.regenerate,
        "clear": model.clear,
        "destroy": model.destroy,
        "save": model.save,
        "reload": model.reload,
        "count": model.count,
        "touch": functools.partial(setattr, model, "is_touched", True),
        "look": model.load,
        "wait": lambda seconds: None,
    }
    result = actions[name](*values)
    if isinstance(result, types.GeneratorType):
        yield from result


def in_view(clock: FakeClock, model: ModelRequest, name: str, *values: t.Any) -> None:
    """Carry out a step of a view."""
    actions: dict[str, Callable[..., t.Any]] = {
        "set": flask_session.__setitem__,
        "pop": lambda name: flask_session.pop(name, None),
        "change inside": change_inside,
        "flash": flash,
        "show": get_flashed_messages,
        "permanent": functools.partial(setattr, flask_session, "permanent"),
        "lifetime": functools.partial(setattr, session, "lifetime"),
        "log in": functools.partial(flask_session.__setitem__, USER),
        "log out": lambda: flask_session.pop(USER, None),
        "regenerate": session.regenerate,
        "clear": flask_session.clear,
        "destroy": session.destroy,
        "save": session.save,
        "reload": session.reload,
        "count": lambda: session.atomic(increment),
        "touch": session.touch,
        "look": functools.partial(look, model),
        "wait": clock.advance,
    }
    actions[name](*values)


def change_inside(name: str) -> None:
    value = flask_session.get(name)
    if isinstance(value, dict):
        value["n"] = value.get("n", 0) + 1
    elif isinstance(value, list):
        value.append(len(value))


def increment(own: ServerSideSession) -> None:
    own["n"] = own.get("n", 0) + 1


def look(model: ModelRequest) -> None:
    assert json.loads(json.dumps(dict(flask_session))) == model.data


# -- the tests

BACKENDS = {"memory": 2, "filesystem": 1, "sqlite": 1, "valkey": 1, "postgresql": 1}


def check(config: Config, examples: int, steps: int) -> None:
    clock = FakeClock()
    site = Site(config, clock=clock)

    class Machine(SessionsMachine):
        backend = site.backend.backend
        prefix = site.state.config.key_prefix

    Machine.clock = clock
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    site.backend.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_the_store_holds_what_the_model_says(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    check(make_backend_config(name), 50 * BACKENDS[name], 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_the_store_holds_what_the_model_says_for_long(
    make_backend_config: Callable[[str], Config], name: str
) -> None:
    check(make_backend_config(name), 80 * BACKENDS[name], 40)
