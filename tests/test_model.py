"""Random requests of several browsers, held to what users are promised.

The model knows the content of every session that was ever begun, its ids, and how long
it has to live, and nothing of how the library works. It says what it was promised:

-   Nothing is lost: a change that was answered without ``session_lost`` is there, as
    long as no later request changed the same key and nobody ended the session.
-   Nothing is revived: of a session that was ended, no id ever opens anything again.
-   One live id: of all that a session ever had, the last one opens it, and no other.
-   Cookie or none: a response never names a session that is gone, and never throws away
    the cookie of one that lives, unless its own request asked for that.
-   It costs what the documentation says, where no other request is in the way.
-   Nothing is served after its time, and use prolongs it.

Requests overlap: one is begun, others run inside of its view, or between two operations
of its backend, and then it ends.
"""

from __future__ import annotations

import collections
import copy
import logging
import logging.handlers
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field

import flask
import pytest
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
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .figures import add_counts
from .site import Site
from .site import cookie_of

MINUTE = 60
HOUR = 60 * MINUTE

#: How long a request takes at least, and all that run inside of one at most. Two that
#: begin and end in the very same moment are in no order.
MOMENT = 2**-10
WHILE = 0.1
#: How long the sessions of these tests live without being used.
IDLE = HOUR
PERMANENT = 24 * HOUR

USER = "_user_id"
#: Where the model keeps a session's own lifetime.
LIFETIME = "lifetime"
#: Keys that hold lists, to which requests append.
LISTS = ("list", "_flashes")

Content: t.TypeAlias = dict[str, t.Any]

#: What has been tried, over all backends; shown at the end.
tried: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def _show_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    tried.clear()
    yield
    add_counts(request.node, "model", tried)


# -- what is promised


@dataclass(frozen=True)
class Terms:
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


@dataclass(eq=False)
class Session:
    """What somebody's data are, from the first write to the end."""

    terms: Terms
    content: Content
    #: The one that is live comes last.
    ids: list[str]
    created: float
    #: When the live id was issued.
    issued: float
    #: When its user logged in; when it began, without one.
    since: float
    #: It has to be there before this moment, ...
    surely: float = 0.0
    #: ... and nobody may see it from this one on, ...
    at_most: float = 0.0
    #: ... though who has begun before may still save it until then, where somebody has
    #: used it without knowing of a shorter lifetime yet.
    kept_until: float = 0.0
    #: When it ended, if it has.
    over: float | None = None
    has_expired: bool = False
    #: Of ids that it had: when each was rotated away, whether for the same user, and
    #: whether it was only renewed.
    rotated: dict[str, tuple[float, bool, bool]] = field(
        default_factory=dict[str, tuple[float, bool, bool]]
    )

    @property
    def last(self) -> float:
        """When it ends whatever happens."""
        limit = self.terms.absolute_timeout
        return float("inf") if limit is None else self.since + limit

    def is_live_as(self, id: str) -> bool:
        return self.over is None and self.ids[-1] == id

    def opens(self, id: str, now: float) -> bool:
        """Whether an id leads to it: its own, or one that was renewed a moment ago."""
        if self.over is not None or id not in self.ids:
            return False
        former = [self.rotated[each] for each in self.ids[self.ids.index(id) : -1]]
        grace = self.terms.grace
        return all(is_renewal and now < at + grace for at, _, is_renewal in former)

    def may_expire(self, now: float) -> bool:
        return self.surely <= now

    def write(self, now: float) -> None:
        self.at_most = min(now + lifetime_of(self.content), self.last)
        self.surely = self.at_most - WHILE
        self.kept_until = max(self.kept_until, self.at_most)

    def use(self, now: float, lifetime: float) -> None:
        """Prolong it, as promised: to the touch interval.

        :param lifetime: As whoever uses it knows it.
        """
        latest = now + lifetime_of(self.content)
        slack = min(self.terms.touch_interval, lifetime / 20) + WHILE
        surely = min(latest, now + lifetime) - slack
        self.surely = min(max(self.surely, surely), self.last)
        self.at_most = min(max(self.at_most, latest), self.last)
        self.kept_until = max(self.kept_until, self.at_most, now + lifetime)


def lifetime_of(content: Content) -> float:
    own: float | None = content.get(LIFETIME)
    return own or (PERMANENT if content.get("_permanent") else IDLE)


def is_unused(content: Content) -> bool:
    return not content.keys() - {"_permanent", LIFETIME}


def merged(base: Content, mine: Content, theirs: Content) -> Content:
    """Return what two requests together have made of a session."""
    result: Content = {}
    for name in {*mine, *theirs}:
        before, ours, others = base.get(name), mine.get(name), theirs.get(name)
        value = others if ours == before else ours
        if name in LISTS and before not in (ours, others):
            # Each item is there once, unless both sides have taken some out.
            start: list[t.Any] = before or []
            one: list[t.Any] = ours or []
            other: list[t.Any] = others or []
            kept = [item for item in start if item in one and item in other]
            new = [item for item in [*other, *one] if item not in start]
            if all(x in one for x in start) or all(x in other for x in start):
                value = [*kept, *new]
        if value is not None and value != []:
            result[name] = value
    return copy.deepcopy(result)


# -- what requests do

#: A step of a view: its name, and what it is done with.
Step: t.TypeAlias = "tuple[t.Any, ...]"


class Plan(t.NamedTuple):
    """A request: whose, what its view does, and what comes in between at the end."""

    slot: int
    steps: list[Step]
    #: An operation, and the request that runs before the backend is asked for it.
    late: tuple[str, Plan] | None = None


class Visit:
    """One request: what it found, what it asked for, and what it was promised.

    The methods ``do_…`` are the steps of its view. Each does it with the library, and
    then to plain dicts.
    """

    def __init__(self, world: SessionsMachine, slot: int) -> None:
        self.world = world
        self.slot = slot
        self.cookie = world.slots[slot]
        #: The id that it came with; then that of what it has stored.
        self.id = world.cookies.get(self.cookie or "", "")
        #: The id of what it works on; another one, if that was renewed.
        self.at, self.came_late = self.id, False
        self.opened = world.clock()
        #: The session that it came with, and what it works on.
        self.origin = world.find(self.id)
        self.session: Session | None = None
        #: What it found, and what it holds now.
        self.base: Content = {}
        self.mine: Content = {}
        self.has_looked = self.has_touched = self.has_saved = False
        #: Asked for a key to be set; for a new id; for another session.
        self.has_set = self.wants_id = self.wants_other = False
        #: Asked for the end of the session; has ended this one.
        self.has_cleared = self.has_asked_end = False
        self.ended: Session | None = None
        #: Started over where its id leads on to another, which has to be followed.
        self.has_followed = False
        #: It has saved a session whose time was over while it ran.
        self.was_kept = False
        #: Others were in the way; and changes have to be reported as dropped.
        self.is_gone = self.is_dropped = False
        self.losses = self.known_losses = 0

    def look(self) -> None:
        is_empty = not len(flask_session)
        if self.has_looked:
            return
        self.has_looked = True
        self.session = self.world.find(self.id)
        if self.session is None:
            assert is_empty, "a session is seen that is gone"
            return
        assert is_empty == self.has_cleared, "a session is not seen that is there"
        self.at = self.session.ids[-1]
        self.came_late = self.is_late
        tried["requests with an id that was renewed"] += self.is_late
        self.base = copy.deepcopy(self.session.content)
        if not self.has_cleared:
            self.mine = copy.deepcopy(self.base)

    def write(self, name: str, value: t.Any) -> None:
        self.look()
        if value is not None:
            flask_session[name] = value
            self.mine[name] = copy.deepcopy(value)
            self.has_set = True
        elif name in self.mine:
            del flask_session[name], self.mine[name]
            self.has_set = True
            if name == USER and not self.session and self.find_successor():
                self.log_out_successor()

    # the steps

    def do_look(self) -> None:
        self.look()
        assert self.is_gone or self.world.read() == sort(self.mine)

    def do_ask(self) -> None:
        """Look whether there is anything, without taking it out."""
        self.look()

    def do_set(self, name: str) -> None:
        self.write(name, self.world.token())

    def do_pop(self, name: str) -> None:
        self.write(name, None)

    def do_nest(self) -> None:
        """Change something inside of a value."""
        self.look()
        if "nested" not in self.mine:
            self.write("nested", {})
        token = self.world.token()
        flask_session["nested"]["inner"] = self.mine["nested"]["inner"] = token

    def do_append(self) -> None:
        self.look()
        if "list" not in self.mine:
            self.write("list", [])
        token = self.world.token()
        flask_session["list"].append(token)
        self.mine["list"].append(token)

    def do_flash(self) -> None:
        self.look()
        token = self.world.token()
        flask.flash(token)
        self.mine.setdefault("_flashes", []).append(("message", token))
        self.has_set = True

    def do_permanent(self, is_permanent: bool) -> None:
        if len(flask_session) and flask_session.get("_permanent") is is_permanent:
            self.look()
            flask_session.permanent = is_permanent
            self.has_touched = True
        else:
            self.write("_permanent", is_permanent)

    def do_lifetime(self, lifetime: int | None) -> None:
        self.look()
        session.lifetime = lifetime
        self.mine.pop(LIFETIME, None)
        if lifetime is not None:
            self.mine[LIFETIME] = lifetime
        self.has_set = True

    def do_user(self, user: str | None) -> None:
        self.write(USER, user)

    def do_touch(self) -> None:
        session.touch()
        self.has_touched = True

    def do_wait(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    def do_regenerate(self, keep_data: bool) -> None:
        self.look()
        session.regenerate(keep_data)
        self.wants_id = True
        if not keep_data:
            self.mine, self.wants_other = {}, True
            successor = None if self.session else self.find_successor()
            self.has_followed = self.session is None
            if successor is not None and successor.content.get(USER):
                self.log_out_successor()

    def do_clear(self) -> None:
        session.clear()
        self.mine, self.has_cleared, self.has_asked_end = {}, True, True
        self.has_set = True

    def do_destroy(self) -> None:
        session.destroy()
        self.has_asked_end = self.has_looked = True
        self.mine = {}
        self.end_own()

    def do_save(self) -> None:
        session.save()
        self.settle_inside()

    def do_reload(self) -> None:
        self.look()
        session.reload()
        found = self.session
        if found and self.world.find(self.at) is not found:
            self.session, self.is_gone = None, True
        elif found:
            self.at = found.ids[-1]
        self.go_on(self.session.content if self.session else {})

    def do_count(self) -> None:
        """Count atomically."""

        def increment(own: ServerSideSession) -> None:
            own["n"] = own.get("n", 0) + 1

        self.look()
        self.world.find(self.at)  # it may have expired
        session.atomic(increment)
        found, now = self.session, self.world.clock()
        if found and found.opens(self.at, now) and not self.is_other:
            self.mine = merged(self.base, self.mine, found.content)
            self.base = copy.deepcopy(found.content)
        elif found and not found.opens(self.at, now):
            self.mine = {}
        self.mine["n"] = self.mine.get("n", 0) + 1
        self.has_set = True
        self.settle_inside()

    def do_revoke(self, user: str) -> None:
        """End all sessions of a user, as an operator does."""
        self.world.site.extension.revoke_user(user)
        for other in self.world.sessions:
            if other.over is None and other.content.get(USER) == user:
                self.world.end(other)

    def do_meanwhile(self, plan: Plan) -> None:
        tried["requests inside of views"] += 1
        self.world.run(plan, is_inside=True)

    def log_out_successor(self) -> None:
        """Ask for the end of what has become of the session, as every log-out does."""
        self.has_cleared = self.has_asked_end = self.has_followed = True

    # what it was promised

    @property
    def is_late(self) -> bool:
        """Whether the browser has a newer id than this request came with."""
        return self.at != self.id

    @property
    def is_other(self) -> bool:
        """Whether what it writes is another session than the one that it found."""
        return self.has_cleared or self.wants_other

    def go_on(self, content: Content) -> None:
        """Begin anew with what is stored, or with nothing."""
        self.base, self.mine = copy.deepcopy(content), copy.deepcopy(content)
        self.has_set = self.has_cleared = self.wants_id = self.wants_other = False

    def settle_inside(self) -> None:
        """Settle what a view has saved before its end."""
        has_id = self.session is not None or not is_unused(self.mine)
        self.settle(session.id if self.has_looked and has_id else self.id)

    def settle(self, id: str) -> None:
        """Write down what is stored now.

        :param id: The session's, as the library says.
        """
        now, found = self.world.clock(), self.session
        if found is not None and self.has_kept(found, id):
            found.over, found.has_expired, self.was_kept = None, False, True
        is_changed = self.mine != self.base or self.wants_id
        if self.losses > self.known_losses:
            self.known_losses = self.losses
            assert self.may_be_lost(), "changes are dropped for nothing"
            self.lose()
        elif found is None or self.is_gone:
            if self.has_cleared and is_unused(self.mine):
                self.end_own()
            elif self.is_gone:
                self.is_dropped |= is_changed and not is_unused(self.mine)
            elif id == self.id and self.known_losses:
                self.is_gone = True  # it still is, which is told once
            elif not is_unused(self.mine):
                self.own(self.world.begin(self.mine, id), id)
        elif self.has_cleared and is_unused(self.mine):
            self.end_own()
        elif not found.opens(self.at, now):
            self.is_dropped |= is_changed and not found.has_expired
            self.lose()
        elif found.may_expire(now) and not self.world.peek(id):
            self.world.end(found, has_expired=True)
            self.lose()
        elif self.is_other:
            self.world.end(found)
            self.at = found.ids[-1]
            self.ended = None if self.is_late else found
            if is_unused(self.mine):
                self.session, self.has_asked_end = None, True
                self.go_on({})
            else:
                found.rotated[found.ids[-1]] = now, False, False
                self.own(self.world.begin(self.mine, id), id)
        else:
            self.store(found, id, now)

    def has_kept(self, found: Session, id: str) -> bool:
        """Whether it has saved a session whose time was over while it ran.

        That is allowed where the record was kept for longer, see ``kept_until``.
        """
        return (
            found.has_expired
            and self.losses == self.known_losses
            and self.opened <= (found.over or 0.0)
            and self.world.clock() < min(found.kept_until, found.last)
            and bool(self.world.peek(id))
        )

    def store(self, found: Session, id: str, now: float) -> None:
        """Bring what it changed together with what others did."""
        interval = self.world.terms.renewal_interval
        is_same_user = self.mine.get(USER) == self.base.get(USER)
        self.at = found.ids[-1]
        must_rotate = is_asked = self.wants_id or not is_same_user
        if interval is not None and not self.is_late:
            must_rotate |= now - found.issued >= interval
        is_changed = self.mine != self.base or self.has_set or self.wants_id
        content = merged(self.base, self.mine, found.content)
        if is_unused(content):
            self.world.end(found)
            self.ended, self.session = None if self.is_late else found, None
            self.go_on({})
            return
        tried["conflicts"] += is_changed and self.base != found.content
        assert (id != self.id) == must_rotate, "the id has to be a new one, or not to"
        if must_rotate:
            self.world.move(found, id, is_same_user, not is_asked)
        if is_changed:
            found.content = content
            if not is_same_user:
                found.since = now
                if content.get(USER) is None:  # what is left begins anew
                    found.created = now
            found.write(now)
            self.own(found, id)
        elif must_rotate:
            found.at_most = min(
                max(found.at_most, now + lifetime_of(content)), found.last
            )
            self.own(found, id)

    def own(self, stored: Session, id: str) -> None:
        """Go on with what was just stored."""
        self.has_saved, self.session, self.id = True, stored, id
        self.at = stored.ids[-1]
        self.go_on(stored.content)

    def lose(self) -> None:
        """Give up, since others were in the way; a log-out is one all the same."""
        is_nobody = self.wants_other or not self.mine.get(USER)
        if self.has_cleared or (self.base.get(USER) and is_nobody):
            self.end_successor()
        mine = self.mine
        self.go_on({})
        self.session, self.is_gone, self.base, self.mine = None, True, mine, mine.copy()

    def end_own(self) -> None:
        """End the session that it has, as it has asked."""
        found = self.world.by_id.get(self.at)
        if found is not None and found.is_live_as(self.at):
            self.world.end(found, found.may_expire(self.world.clock()))
            self.ended = None if self.is_late else found
        else:
            self.end_successor()
        self.session, self.is_gone = None, False
        self.go_on({})

    def find_successor(self) -> Session | None:
        """Find what has become of the session, within the grace and for one user."""
        found = self.world.by_id.get(self.at)
        if found is None or found.over is not None or found.ids[-1] == self.at:
            return None
        later = found.ids[found.ids.index(self.at) : -1]
        since = found.rotated[self.at][0]
        is_same_user = all(found.rotated[id][1] for id in later)
        is_known = self.world.clock() < since + self.world.terms.grace
        return found if is_same_user and is_known else None

    def end_successor(self) -> None:
        """End what has become of the session."""
        successor = self.find_successor()
        if successor is not None:
            self.world.end(successor)
            tried["log-outs beside a rotation"] += 1

    def may_be_lost(self) -> bool:
        """Whether another request was in the way of this one."""
        found = self.world.by_id.get(self.at)
        if found is None:
            return False
        since = found.rotated.get(self.at)
        return (
            (since is not None and since[0] + self.world.terms.grace > self.opened)
            or (since is not None and since[0] >= self.opened)
            or (found.over is not None and found.over >= self.opened)
            or (found.over is None and found.may_expire(self.world.clock()))
        )

    def finish(self, sent: str, value: str | None, cost: dict[str, int] | None) -> None:
        """Hold the response to what is promised, and let the browser follow it.

        :param sent: What it did to the cookie, which has this value now.
        :param cost: What it has cost, if no other request was in the way.
        """
        world, now, given = self.world, self.world.clock(), self.cookie or ""
        came_with, said = world.cookies.get(given, ""), world.told.get(given, {})
        id = value.rsplit(".", 2)[0] if value and sent == "set" else self.id
        is_changed = self.mine != self.base or self.wants_id or self.has_set
        has_set, is_saved = self.has_set, self.has_saved or is_changed
        if self.has_looked:
            self.settle(id)
        elif self.has_cleared:
            self.end_own()
        content = self.mine if self.has_looked else said
        # Only who looks learns where an id leads to.
        found = self.session if self.has_looked else world.find(self.id, True)
        assert self.losses or not self.is_dropped, "changes are lost, and nobody told"
        is_permanent = bool(content.get("_permanent"))
        is_refreshed = self.has_touched or (world.terms.is_refreshed and is_permanent)
        is_used = is_refreshed or (
            self.has_looked
            and (is_changed or not is_permanent or world.terms.is_refreshed)
        )
        if found and is_used:
            found.use(now, lifetime_of(content))
        elif found and sent == "set":  # the browser keeps it for a moment at least
            found.at_most = min(max(found.at_most, now + 1), found.last)

        knows = all(said.get(x) == content.get(x) for x in ("_permanent", LIFETIME))
        if sent == "set":
            assert found is not None, "the cookie names a session that is gone"
            assert found.is_live_as(id), "the cookie names an id that is gone"
            is_due = is_saved or is_refreshed or not knows or id != came_with
            assert is_due, "a cookie is sent for nothing"
        elif sent == "deleted":
            assert self.cookie, "a cookie is deleted that the browser did not send"
            assert self.ended, "the cookie is deleted of a session that nobody ended"
        elif self.is_late:
            pass  # the browser has the newer id, or is about to get it
        elif found and self.has_looked:
            assert found.is_live_as(came_with), "the browser does not learn the new id"
            assert not has_set, "a change sends no cookie"
            is_due = is_permanent and (is_used or is_saved)
            assert not is_due, "a permanent cookie is not renewed"
        elif self.ended and not found and not self.is_gone:
            is_known = came_with in self.ended.ids and not self.ended.has_expired
            assert not is_known, "the cookie stays of a session that was ended"
        kept = world.find(world.cookies.get(world.slots[self.slot] or "", ""))
        if kept and sent != "none" and id != kept.ids[-1]:
            is_new = self.origin is None or self.origin.has_expired or self.was_kept
            assert is_new or self.has_asked_end, "another request's cookie is lost"
        if sent != "none":
            world.slots[self.slot] = value
        if value and found and sent == "set":
            world.cookies[value], world.told[value] = id, copy.deepcopy(content)
        if cost is not None and not self.has_followed:
            self.check_cost(cost, came_with, is_changed, is_used)

    def check_cost(
        self, cost: dict[str, int], came_with: str, is_changed: bool, is_used: bool
    ) -> None:
        """Compare what it has cost with the table, where nothing was in the way."""
        expected: dict[str, int] = {}
        if self.session and self.id != came_with:
            expected = {"create": 1, "replace": 1} if self.origin else {"create": 1}
        elif (self.session and is_changed) or self.ended:
            expected = {"replace": 1}
        touches = cost.pop("touch", 0)
        assert touches <= bool(came_with and is_used and not expected)
        loads = cost.pop("load", 0)
        assert loads == bool(came_with and self.has_looked) or self.came_late
        assert cost == expected


# -- what is tried

USERS = ["ada", "eve"]
#: Durations of all kinds: within the grace, beyond it, a touch interval, ...
DURATIONS = [1, 5, 9, 10, 59, 60, 100, 1800, IDLE, 2 * HOUR, PERMANENT]
SLOTS = st.integers(0, 2)
OPERATIONS = ["load", "create", "replace", "replace", "replace", "delete", "touch"]

NAMES = ["a", "b", "nested", "list", "_flashes", USER]
CHANGES: list[Step] = [
    *((name,) for name in ["nest", "append", "flash", "count", "count"]),
    *(("set", name) for name in ["a", "b"] * 2),
    *(("pop", name) for name in NAMES),
]
STEPS: list[Step] = [
    *CHANGES,
    *((name,) for name in ["clear", "destroy", "save", "reload"]),
    *((name,) for name in ["touch", "look", "ask"]),
    *(("user", user) for user in [*USERS, None]),
    *(("lifetime", lifetime) for lifetime in [None, 100, 2 * HOUR]),
    *((name, yes) for name in ["permanent", "regenerate"] for yes in [True, False]),
]
REVOKE: Step = ("revoke", "ada")
WAITS: list[Step] = [("wait", duration) for duration in DURATIONS]
LOG_OUTS: list[Step] = [("user", None), ("regenerate", False), ("clear",), ("destroy",)]
MOVES: list[Step] = [("regenerate", True), ("regenerate", True), ("user", "eve")]
#: What costs a round trip of its own.
COSTLY = {"count", "destroy", "clear", "revoke", "save", "reload", "meanwhile", "wait"}


@st.composite
def plans(draw: st.DrawFn, depth: int, is_late: bool = False) -> Plan:
    """Plan a request, with others inside of it to a depth."""
    steps: list[Step] = []
    for _ in range(draw(st.integers(0, 5))):
        if depth and draw(st.integers(0, 3)) == 0:
            steps.append(("meanwhile", draw(plans(depth - 1))))
        else:
            # No time passes between two operations. A revocation there may meet the
            # new id before the browser has it, which test_operator.py is about.
            some = STEPS if is_late else [*STEPS, REVOKE]
            if not is_late and draw(st.integers(0, 24)) == 0:
                some = WAITS
            steps.append(draw(st.sampled_from(some)))
    late = None
    if depth and draw(st.booleans()):
        operation = draw(st.sampled_from(OPERATIONS))
        late = (operation, draw(plans(0, is_late=True)))
    return Plan(draw(SLOTS), steps, late)


LOGGER = logging.getLogger("flask_serversession")


class SessionsMachine(RuleBasedStateMachine):
    """Three browsers, and all cookies that they ever had."""

    #: Set by the test.
    backend: Backend
    prefix: str
    clock: FakeClock

    @initialize(
        terms=st.builds(
            Terms,
            touch_interval=st.sampled_from([0, MINUTE]),
            grace=st.sampled_from([10, 0, 10]),
            absolute_timeout=st.sampled_from([None, None, 3 * HOUR]),
            renewal_interval=st.sampled_from([None, None, 100]),
            is_refreshed=st.booleans(),
        )
    )
    def start(self, terms: Terms) -> None:
        # What earlier examples left has expired.
        self.clock.advance(2 * PERMANENT)
        if Capability.PRUNE in self.backend.capabilities:
            self.backend.prune(10_000)
        self.site = Site(
            {"SESSION_BACKEND": self.backend},
            clock=self.clock,
            SESSION_KEY_PREFIX=self.prefix,
            **terms.config,
        )
        self.terms = terms
        self.sessions: list[Session] = []
        self.by_id: dict[str, Session] = {}
        self.slots: list[str | None] = [None] * 3
        #: The ids in all cookies that were ever sent, and what those knew.
        self.cookies: dict[str, str] = {}
        self.told: dict[str, Content] = {}
        #: The requests that run, the innermost last.
        self.visits: list[Visit] = []
        self.tokens = self.touches = 0
        self.times: tuple[float, ...] = ()
        session_lost.connect(self.note_loss, self.site.app)
        self.warnings = logging.handlers.BufferingHandler(10**6)
        self.warnings.setLevel(logging.WARNING)
        LOGGER.addHandler(self.warnings)
        tried["examples"] += 1
        self.begin_together()

    def note_loss(self, app: flask.Flask, handle: str, user: str | None) -> None:
        self.visits[-1].losses += 1
        tried["losses"] += 1

    # rules

    @rule(plan=plans(2))
    def request(self, plan: Plan) -> None:
        self.run(plan)

    @rule(outer=plans(1), inner=plans(1))
    def request_around_another(self, outer: Plan, inner: Plan) -> None:
        """Run a request inside of the view of another, of the same session if any."""
        inner = inner._replace(slot=outer.slot)
        steps: list[Step] = [("ask",), ("meanwhile", inner), *outer.steps]
        self.run(outer._replace(steps=steps))

    @rule(outer=plans(0), inner=plans(0, is_late=True))
    def request_while_another_is_saved(self, outer: Plan, inner: Plan) -> None:
        """Run a request before another one's first write, and in the same session."""
        self.run(outer._replace(late=("replace", inner._replace(slot=outer.slot))))

    @rule(outer=plans(0), inner=plans(0, is_late=True))
    def request_while_an_id_is_changed(self, outer: Plan, inner: Plan) -> None:
        """Run a request before a tombstone is put."""
        late = ("replace", inner._replace(slot=outer.slot))
        steps = [*outer.steps, ("regenerate", True)]
        self.run(outer._replace(steps=steps, late=late))

    @rule(plan=plans(0))
    def simple_request(self, plan: Plan) -> None:
        self.run(plan)

    @rule(slot=SLOTS, other=SLOTS, steps=st.lists(st.sampled_from(CHANGES), max_size=2))
    def requests_that_count(self, slot: int, other: int, steps: list[Step]) -> None:
        late = ("replace", Plan(other, [*steps, ("count",)]))
        self.run(Plan(slot, [("ask",), *steps, ("count",)], late))

    @rule(slot=SLOTS, user=st.sampled_from(USERS))
    def log_in(self, slot: int, user: str) -> None:
        self.run(Plan(slot, [("set", "a"), ("user", user)]))

    @rule(slot=SLOTS, other=st.sampled_from(MOVES), looks=st.booleans())
    def log_out_while_an_id_is_changed(
        self, slot: int, other: Step, looks: bool
    ) -> None:
        first: list[Step] = [("ask",)] if looks else []
        for step in LOG_OUTS:
            self.run(Plan(slot, [("set", "a"), ("user", "ada")]))
            self.run(Plan(slot, [*first, ("meanwhile", Plan(slot, [other])), step]))

    @rule(slot=SLOTS, looks=st.booleans())
    def write_after_others_have_logged_out(self, slot: int, looks: bool) -> None:
        first: list[Step] = [("ask",)] if looks else []
        for step in LOG_OUTS:
            self.run(Plan(slot, [("set", "a"), ("user", "ada")]))
            inner = Plan(slot, [step, ("flash",)])
            self.run(Plan(slot, [*first, ("meanwhile", inner), ("set", "b")]))

    @rule(
        slot=SLOTS,
        step=st.sampled_from([("ask",), ("set", "b"), *MOVES]),
        is_permanent=st.booleans(),
    )
    def grow_old(self, slot: int, step: Step, is_permanent: bool) -> None:
        """Use a session for as long as that is allowed, and for longer."""
        self.run(Plan(slot, [("set", "a"), ("permanent", is_permanent)]))
        for _ in range(7):
            self.clock.advance((PERMANENT if is_permanent else IDLE) / 2)
            self.run(Plan(slot, [("ask",), step]))

    @rule(slot=SLOTS, step=st.sampled_from([None, "ask", "look", "touch"]))
    def use_twice(self, slot: int, step: str | None) -> None:
        """Use a session again before it is time to write that down."""
        plan = Plan(slot, [(step,)] if step else [])
        self.run(plan)
        touches = self.touches
        self.clock.advance(1)
        self.run(plan)
        is_live = self.find(self.cookies.get(self.slots[slot] or "", ""))
        if is_live and self.terms.touch_interval:
            assert touches + self.touches <= 1, "the touch interval is not kept to"

    @rule(slot=SLOTS, plan=plans(0))
    def first_visit(self, slot: int, plan: Plan) -> None:
        """Come without a cookie, twice; what the first stores it ends."""
        for steps in ([("set", "a"), ("save",), ("destroy",)], plan.steps):
            self.slots[slot] = None
            self.run(Plan(slot, [*steps]))

    @rule(slot=SLOTS)
    def log_out(self, slot: int) -> None:
        self.run(Plan(slot, [("clear",), ("destroy",)]))

    @rule()
    def begin_together(self) -> None:
        """Let all browsers have one session."""
        self.run(Plan(0, [("set", "a"), ("nest",), ("append",)]))
        self.slots = [self.slots[0]] * 3

    @rule(slot=SLOTS, other=SLOTS)
    def copy_cookie(self, slot: int, other: int) -> None:
        self.slots[slot] = self.slots[other]

    @rule(slot=SLOTS, number=st.integers(0, 10**6))
    def replay_cookie(self, slot: int, number: int) -> None:
        cookies = [*self.cookies]
        if cookies:
            self.slots[slot] = cookies[number % len(cookies)]

    @rule(seconds=st.sampled_from(DURATIONS))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        tried["clock steps"] += 1
        self.check()

    # carrying them out

    def token(self) -> str:
        """Return a value that nobody has ever stored."""
        self.tokens += 1
        return f"token {self.tokens}"

    def run(self, plan: Plan, is_inside: bool = False) -> None:
        """Carry out a request, and hold it to what is promised."""
        tried["requests"] += 1
        self.clock.advance(MOMENT)
        self.is_well = False
        visit, before = Visit(self, plan.slot), self.site.backend.before

        def come() -> None:
            assert plan.late is not None
            del before[plan.late[0]]
            tried["requests between operations"] += 1
            self.run(plan.late[1], is_inside=True)

        def view() -> None:
            for name, *values in plan.steps:
                getattr(visit, f"do_{name}")(*values)

        if plan.late is not None:
            before.setdefault(plan.late[0], come)
        browser = self.site.browser()
        browser.cookie = visit.cookie
        self.visits.append(visit)
        with self.site.backend.counting() as calls:
            response = browser.visit(view)
        self.visits.pop()
        self.touches = calls["touch"]
        assert response.status_code == 200
        if plan.late is not None and before.get(plan.late[0]) is come:
            del before[plan.late[0]]
        is_alone = not is_inside and plan.late is None
        is_simple = is_alone and COSTLY.isdisjoint(name for name, *_ in plan.steps)
        cost = dict(calls) if is_simple else None
        visit.finish(cookie_of(response, self.site), browser.cookie, cost)
        if not is_inside:
            self.check()

    # what the model knows

    def begin(self, content: Content, id: str) -> Session:
        assert id, "a new session is lost"
        assert id not in self.by_id, "a new session has an old id"
        now = self.clock()
        new = Session(self.terms, copy.deepcopy(content), [id], now, now, now)
        new.write(now)
        self.sessions.append(new)
        self.by_id[id] = new
        return new

    def move(
        self, moved: Session, id: str, is_same_user: bool, is_renewal: bool
    ) -> None:
        assert id not in self.by_id
        moved.rotated[moved.ids[-1]] = self.clock(), is_same_user, is_renewal
        moved.issued = self.clock()
        moved.ids.append(id)
        self.by_id[id] = moved
        tried["rotations"] += 1

    def end(self, ended: Session, has_expired: bool = False) -> None:
        ended.over, ended.has_expired = self.clock(), has_expired

    def find(self, id: str, is_own: bool = False) -> Session | None:
        """Return the session that an id has to open.

        :param is_own: By the id that it has, and not by one that was renewed.
        """
        found = self.by_id.get(id)
        now = self.clock()
        if found is None or not found.opens(id, now):
            return None
        if is_own and not found.is_live_as(id):
            return None
        if found.may_expire(now) and (now >= found.at_most or not self.peek(id)):
            self.end(found, has_expired=True)
            return None
        return found

    # what the library says

    def read(self) -> Content:
        content = dict(flask_session)
        if session.lifetime is not None:
            content[LIFETIME] = session.lifetime.total_seconds()
        return sort(content)

    def peek(self, id: str) -> Content:
        """Return what an id opens, without leaving a trace."""
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        value = signer.sign(CookieState(id, False, self.clock(), self.clock()))
        header = {"Cookie": f"{self.site.cookie_name()}={value}"}
        hooks, self.site.backend.before = self.site.backend.before, {}
        try:
            with self.site.app.test_request_context(headers=header):
                content = self.read()
                moments = session.created_at, session.expires_at
                self.times = tuple(moment.timestamp() for moment in moments)
                return content
        finally:
            self.site.backend.before = hooks

    def check(self) -> None:
        """Compare all that can be opened with what has to be there."""
        is_live = {
            known.ids[-1]: known for known in self.sessions if known.over is None
        }
        for id in [*is_live]:
            if (found := self.find(id)) is not None:
                assert self.peek(id) == sort(found.content)
                began, expires = self.times
                assert abs(began - found.created) < WHILE
                assert found.surely - WHILE < expires < found.last + WHILE
                tried["sessions compared"] += 1
            else:
                assert not self.peek(id), "a session is there after its time"
        dead = [id for id in self.by_id if id not in is_live]
        for id in dead[-3:]:
            is_renewed = self.by_id[id].opens(id, self.clock())
            assert is_renewed or not self.peek(id), "an id that is gone opens something"
        if Capability.COUNT in self.backend.capabilities:
            live = [known for known in self.sessions if known.over is None]
            expired = sum(known.has_expired for known in self.sessions)
            assert len(live) <= self.backend.count() <= len(live) + expired
        assert not self.warnings.buffer, self.warnings.buffer[0].getMessage()
        self.is_well = True

    def teardown(self) -> None:
        LOGGER.removeHandler(self.warnings)
        for id, known in self.by_id.items():
            is_open = known.opens(id, self.clock())
            assert not self.is_well or is_open or not self.peek(id)
        if Capability.ITERATE in self.backend.capabilities:
            for key, _ in list(self.backend.iterate()):
                self.backend.delete(key)


def sort(content: Content) -> Content:
    """Put lists in an order: that of appended items is another test's."""
    return {
        name: sorted(map(repr, value)) if name in LISTS else value
        for name, value in content.items()
    }


# -- the tests

# Both are tried, whichever of them comes first.
pytestmark = pytest.mark.filterwarnings(
    "ignore:'SESSION_ABSOLUTE_TIMEOUT':flask_serversession.ConfigurationWarning"
)

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
