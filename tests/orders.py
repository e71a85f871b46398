"""Every order of the backend operations of two requests, or of three.

Two requests of one browser overlap. Each asks the backend a few times, and between two
operations anything can happen. This tries all of it: one operation at a time, in every
order that there is, on one worker and on two, with an engine that fails and with a
request that is interrupted at each step, and with a renewal that is due. What comes of
it is held to what users are promised, and to nothing else:

-   nothing is lost: what a request has changed, and answered with a success, is there;
-   nothing is revived: of what somebody ended, nothing is found again;
-   at most one id of a session is live, and the browser has it;
-   a log-out is one, or no success;
-   a response names a session that was live, or leaves the browser's cookie alone.

Requests are greenlets here, so an order is carried out exactly, and fast: every
operation of the backend, and every pause, hands over to the one whose turn it is.

``tests/test_orders.py`` runs the pairs. All triples take hours; some of them, or all::

    python -m tests.orders --triples --share 100
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import logging
import sys
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import flask
import greenlet
from flask import session as flask_session

from flask_serversession import BackendUnavailableError
from flask_serversession import ServerSession
from flask_serversession import session
from flask_serversession import session_lost
from flask_serversession.backends.base import Backend
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.record import Record
from flask_serversession.record import key_of
from flask_serversession.testing import FakeClock

NAME = "session"
PREFIX = "session:"
#: What a view answers that found nothing to change.
UNSEEN = "unseen"
ADA, EVE = "ada", "eve"
#: No order is longer, unless requests wait for each other for ever.
MOST_STEPS = 500
#: What the session holds before the requests come.
BEGINNING: dict[str, t.Any] = {"_user_id": ADA, "n": 0, "list": ["old"], "gone": 1}


class CutOffError(BaseException):
    """Stands for what ends a request from outside: a signal, or a worker's time-out."""


# What requests do


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a request does to its session, and what is promised of it.

    :param act: Gets the request's own name, which nobody else changes anything under.
    """

    act: Callable[[str], object]
    #: It writes ``True`` under its own name.
    writes: bool = False
    #: It appends its own name to the list.
    appends: bool = False
    #: It adds one to ``n`` by ``atomic()``.
    counts: bool = False
    #: It removes the key ``gone``.
    removes: bool = False
    #: Nobody is logged in afterwards who was before.
    logs_out: bool = False
    #: Nothing of what the session holds is there afterwards.
    ends: bool = False
    #: It may begin another session, which has nothing of the former one.
    begins: bool = False
    #: It logs somebody else in.
    logs_in: bool = False
    #: It changes the id.
    rotates: bool = False
    #: It goes on after it was stored.
    goes_on: bool = False
    #: It is an operator's, and has no session of its own.
    is_outside: bool = False


class UnseenError(Exception):
    """The session is empty: another request has ended it, or changed its id."""


def _see() -> t.Any:
    if "n" not in flask_session:
        raise UnseenError
    return flask_session


def _count(own: t.Any) -> None:
    own["n"] = _see()["n"] + 1


def _write(name: str) -> None:
    flask_session[name] = True


def _append(name: str) -> None:
    _see()["list"].append(name)


def _save(name: str) -> None:
    _write(name)
    session.save()


def _save_twice(name: str) -> None:
    _append(name)
    session.save()
    _save(name)


def _atomic(name: str) -> None:
    session.atomic(_count)


def _atomic_and_write(name: str) -> None:
    _write(name)
    _atomic(name)


def _regenerate(name: str) -> None:
    session.regenerate()


def _write_and_regenerate(name: str) -> None:
    _write(name)
    session.regenerate()


def _log_in(name: str) -> None:
    flask_session["_user_id"] = EVE


def _log_in_afresh(name: str) -> None:
    session.regenerate(keep_data=False)
    flask_session["_user_id"] = EVE


def _clear(name: str) -> None:
    flask_session.clear()


def _look_and_clear(name: str) -> None:
    flask_session.get("n")
    flask_session.clear()


def _destroy(name: str) -> None:
    session.destroy()


def _pop_user(name: str) -> None:
    flask_session.pop("_user_id", None)


def _pop_user_in_atomic(name: str) -> None:
    session.atomic(lambda own: own.pop("_user_id", None))


def _destroy_and_write(name: str) -> None:
    session.destroy()
    flask_session[f"new {name}"] = True


def _clear_and_write(name: str) -> None:
    flask_session.clear()
    flask_session[f"new {name}"] = True


def _remove(name: str) -> None:
    _see().pop("gone", None)


def _reload(name: str) -> None:
    flask_session.get("n")
    session.reload()
    _write(name)


def _lifetime(name: str) -> None:
    session.lifetime = 1800


def _revoke(name: str) -> None:
    extension: ServerSession = flask.current_app.extensions["orders"]
    extension.revoke_user(ADA)


KINDS: dict[str, Kind] = {
    "ignore": Kind(lambda name: None),
    "read": Kind(lambda name: flask_session.get("n")),
    "read a list": Kind(lambda name: flask_session.get("list")),
    "write": Kind(_write, writes=True),
    "append": Kind(_append, appends=True),
    "remove": Kind(_remove, removes=True),
    "save": Kind(_save, writes=True),
    "save twice": Kind(_save_twice, writes=True, appends=True, goes_on=True),
    "reload": Kind(_reload, writes=True),
    "touch": Kind(lambda name: session.touch()),
    "lifetime": Kind(_lifetime),
    "atomic": Kind(_atomic, counts=True),
    "write, atomic": Kind(_atomic_and_write, writes=True, counts=True),
    "regenerate": Kind(_regenerate, rotates=True),
    "write, regenerate": Kind(_write_and_regenerate, writes=True, rotates=True),
    "log in": Kind(_log_in, logs_in=True, logs_out=True, rotates=True),
    "log in afresh": Kind(
        _log_in_afresh, logs_in=True, logs_out=True, ends=True, begins=True
    ),
    "clear": Kind(_clear, logs_out=True, ends=True),
    "read, clear": Kind(_look_and_clear, logs_out=True, ends=True),
    "clear, write": Kind(_clear_and_write, logs_out=True, ends=True, begins=True),
    "destroy": Kind(_destroy, logs_out=True, ends=True),
    "destroy, write": Kind(_destroy_and_write, logs_out=True, ends=True, begins=True),
    "log out": Kind(_pop_user, logs_out=True, rotates=True),
    "log out in atomic": Kind(_pop_user_in_atomic, logs_out=True, rotates=True),
    "revoke": Kind(_revoke, logs_out=True, ends=True, is_outside=True),
}


# One order


class Fault(t.NamedTuple):
    """What goes wrong, at which step of an order."""

    step: int
    #: ``"fail"`` is the engine's, ``"interrupt"`` is the request's.
    kind: t.Literal["fail", "interrupt"]
    #: Whether the operation was carried out all the same.
    is_done: bool


class Case(t.NamedTuple):
    """What is tried in every order."""

    kinds: tuple[str, ...]
    workers: int = 1
    is_renewal_due: bool = False
    #: What makes it fail: nothing, or each of these at each step.
    faults: bool = False

    def __str__(self) -> str:
        notes = [f"{self.workers} workers"] if self.workers > 1 else []
        notes += ["renewal due"] if self.is_renewal_due else []
        return " | ".join(self.kinds) + (f" ({', '.join(notes)})" if notes else "")


class Order(t.NamedTuple):
    """Who had each turn, and what was asked of the backend in it."""

    turns: tuple[int, ...]
    operations: tuple[str, ...]
    fault: Fault | None

    def __str__(self) -> str:
        steps = [
            f"{who}:{what}"
            for who, what in zip(self.turns, self.operations, strict=True)
        ]
        return f"{' '.join(steps)} {self.fault or ''}".strip()


@dataclasses.dataclass
class Answer:
    """What a request was answered, and what became of its cookie."""

    status: int = 0  # of a request that was interrupted
    cookies: list[str] = dataclasses.field(default_factory=list[str])
    #: It was told that its session is gone, or found an empty one.
    is_lost: bool = False

    @property
    def is_success(self) -> bool:
        return self.status == 200


class Turns(Backend):
    """Hands over before each operation, to whoever has the next turn."""

    name = "turns"
    capabilities = MemoryBackend.capabilities

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.inner = MemoryBackend(clock)
        self.fault: Fault | None = None
        self.operation = ""
        self.runner: greenlet.greenlet | None = None
        self.step = 0
        #: All that were ever created, also of sessions that have ended.
        self.created: dict[str, Record] = {}

    def start(self) -> None:
        self.inner = MemoryBackend(self.clock)
        self.created = {}

    def _ask(self, name: str, function: Callable[..., t.Any], *args: t.Any) -> t.Any:
        if self.runner is None or greenlet.getcurrent() is self.runner:
            return function(*args)
        self.operation = name
        self.runner.switch()
        fault = self.fault
        is_hit = fault is not None and fault.step == self.step
        if is_hit and fault is not None and not fault.is_done:
            raise self._error(fault, name)
        result = function(*args)
        if is_hit and fault is not None:
            raise self._error(fault, name)
        return result

    def _error(self, fault: Fault, name: str) -> BaseException:
        if fault.kind == "interrupt":
            return CutOffError()
        return BackendUnavailableError("forced", backend=self.name, operation=name)

    def pause(self, seconds: float) -> None:
        """Stand in for ``time.sleep``."""
        if self.runner is not None and greenlet.getcurrent() is not self.runner:
            self.operation = "pause"
            self.runner.switch()

    def load(self, key: str) -> Record | None:
        return t.cast("Record | None", self._ask("load", self.inner.load, key))

    def create(self, key: str, record: Record) -> bool:
        self.created[key] = record
        return bool(self._ask("create", self.inner.create, key, record))

    def replace(self, key: str, record: Record, expected: int) -> t.Any:
        return self._ask("replace", self.inner.replace, key, record, expected)

    def delete(self, key: str) -> bool:
        return bool(self._ask("delete", self.inner.delete, key))

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        return bool(self._ask("touch", self.inner.touch, key, touched_at, expires_at))

    def keys_of_user(self, user: str) -> list[str]:
        return list(self._ask("keys_of_user", self.inner.keys_of_user, user))

    def load_many(self, keys: Sequence[str]) -> dict[str, Record]:
        return dict(self._ask("load_many", self.inner.load_many, keys))

    def iterate(self) -> Iterator[tuple[str, Record]]:
        return self.inner.iterate()

    def count(self) -> int:
        return self.inner.count()

    def prune(self, limit: int) -> int:
        return 0


def interleave(
    backend: Turns,
    jobs: Sequence[Callable[[], None]],
    turns: Sequence[int],
    fault: Fault | None = None,
) -> tuple[Order, list[tuple[int, ...]], list[int]]:
    """Run all jobs, one operation of the backend at a time.

    :param turns: Whose turn it is at each step; afterwards, the first who waits.
    :return: What came of that, whose turn it could have been at each step, and the
        jobs in the order in which they ended.
    """
    backend.fault, backend.runner, backend.step = fault, greenlet.getcurrent(), -1
    waiting: dict[int, tuple[greenlet.greenlet, str]] = {}
    choices: list[tuple[int, ...]] = []
    taken: list[int] = []
    operations: list[str] = []
    finished: list[int] = []

    def advance(number: int, job: greenlet.greenlet) -> None:
        backend.clock.advance(2**-10)
        job.switch()
        if job.dead:
            waiting.pop(number, None)
            finished.append(number)
        else:
            waiting[number] = (job, backend.operation)

    try:
        for number, job in enumerate(jobs):
            advance(number, greenlet.greenlet(job))
        while waiting:
            step = len(taken)
            assert step < MOST_STEPS, "It goes on for ever."
            choices.append(tuple(sorted(waiting)))
            number = turns[step] if step < len(turns) else min(waiting)
            if number not in waiting:
                # The order of keys, which chance decides, has made another way shorter.
                number = min(waiting)
            taken.append(number)
            operations.append(waiting[number][1])
            backend.step = step
            advance(number, waiting[number][0])
    finally:
        backend.fault, backend.runner = None, None
    return Order(tuple(taken), tuple(operations), fault), choices, finished


def others_of(
    order: Order, choices: Sequence[Sequence[int]], first: int
) -> Iterator[tuple[int, ...]]:
    """Go through the turns that differ from an order for the first time at a step.

    :param first: At which step at the earliest.
    """
    for step in range(first, len(order.turns)):
        for other in choices[step]:
            if other != order.turns[step]:
                yield (*order.turns[:step], other)


class World:
    """Applications on one store, and a browser's way to them."""

    def __init__(self, **settings: t.Any) -> None:
        self.clock = FakeClock()
        self.backend = Turns(self.clock)
        self._settings = settings
        self.apps = [self._make_app(), self._make_app()]
        self._action: Callable[[], object] = int
        self._actions: dict[str, Callable[[], object]] = {}
        self._lost: set[str] = set()

    def _make_app(self) -> flask.Flask:
        app = flask.Flask("orders", instance_path="/nonexistent/instance")
        app.config.update(
            SECRET_KEY="a secret",
            SESSION_BACKEND=self.backend,
            SESSION_CLEANUP_INTERVAL=0,
        )
        app.config.update(self._settings)
        app.extensions["orders"] = ServerSession(app, clock=self.clock)
        app.logger.disabled = True

        @app.get("/<name>")
        def act(name: str) -> str:  # pyright: ignore[reportUnusedFunction]
            try:
                self._actions[name]()
            except UnseenError:
                return UNSEEN
            except BackendUnavailableError:
                flask.abort(503)
            return ""

        def lose(sender: object, **_: t.Any) -> None:
            self._lost.add(flask.request.path[1:])

        app.extensions["orders lose"] = lose
        session_lost.connect(lose, app)
        return app

    def visit(
        self, name: str, action: Callable[[], object], cookie: str, app: int = 0
    ) -> Answer:
        """Make one request, and return how it was answered."""
        answer = Answer()
        self._actions[name] = action
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": f"/{name}",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
        }
        if cookie:
            environ["HTTP_COOKIE"] = f"{NAME}={cookie}"

        def start_response(
            status: str, headers: t.Any, exc_info: t.Any = None
        ) -> t.Any:
            answer.status = int(status[:3])
            answer.cookies = [
                value.partition(";")[0].partition("=")[2]
                for key, value in headers
                if key == "Set-Cookie"
            ]
            return lambda data: None

        chunks: t.Any = self.apps[app].wsgi_app(environ, start_response)
        is_unseen = b"".join(chunks) == UNSEEN.encode()
        chunks.close()
        answer.is_lost = is_unseen or name in self._lost
        return answer

    def content(self, cookie: str) -> dict[str, t.Any]:
        """Return what a later request finds by a cookie."""
        found: dict[str, t.Any] = {}
        self.look(cookie, found)
        return found

    def look(self, cookie: str, found: dict[str, t.Any]) -> str:
        """Make a later request; return the cookie that the browser has then."""
        answer = self.visit("look", lambda: found.update(flask_session), cookie)
        assert answer.is_success
        return answer.cookies[0] if answer.cookies else cookie

    def run(self, case: Case, turns: Sequence[int], fault: Fault | None) -> Outcome:
        """Carry out one order: the given turns, then whoever comes first."""
        self.backend.start()
        self._lost.clear()
        self._actions.clear()
        self.clock.advance(10_000)  # what was before has expired
        begin = self.visit("begin", lambda: flask_session.update(BEGINNING), "")
        (cookie,) = begin.cookies
        self.clock.advance(100)
        outcome = Outcome(case, cookie)
        outcome.carry_out(self, turns, fault)
        return outcome


class Outcome:
    """What came of one order."""

    def __init__(self, case: Case, cookie: str) -> None:
        self.case = case
        self.cookie = cookie
        self.kinds = [KINDS[name] for name in case.kinds]
        self.answers = [Answer() for _ in self.kinds]
        #: In the order in which the browser got them.
        self.finished: list[int] = []
        self.order = Order((), (), None)
        #: Whose turn it could have been at each step.
        self.choices: list[tuple[int, ...]] = []

    def carry_out(
        self, world: World, turns: Sequence[int], fault: Fault | None
    ) -> None:
        jobs = [self._job(world, number) for number in range(len(self.kinds))]
        self.order, self.choices, self.finished = interleave(
            world.backend, jobs, turns, fault
        )

    def _job(self, world: World, number: int) -> Callable[[], None]:
        kind, name = self.kinds[number], f"r{number}"
        app = number % self.case.workers

        def run() -> None:
            cookie = "" if kind.is_outside else self.cookie
            with contextlib.suppress(CutOffError):
                self.answers[number] = world.visit(
                    name, lambda: kind.act(name), cookie, app
                )

        return run

    # What users are promised

    def faults(self, world: World) -> Iterator[str]:
        """Go through the promises that were not kept."""
        answers, kinds = self.answers, self.kinds
        is_disturbed = self.order.fault is not None
        for answer in answers:
            allowed = (200, 503, 0) if is_disturbed else (200,)
            if answer.status not in allowed:
                yield f"a request was answered {answer.status}"
            if len(answer.cookies) > 1:
                yield "two cookies were sent"
        # What came with a failure, and was replaced in the browser by what came later,
        # is in nobody's hands.
        jar, sent = self.cookie, {id_of(self.cookie): self.cookie}
        for number in self.finished:
            for value in answers[number].cookies:
                jar = value
                if answers[number].is_success:
                    sent[id_of(value)] = value
        if id_of(jar):
            # What was cut off is made up for at the next use.
            jar = world.look(jar, {})
        sent[id_of(jar)] = jar
        jar = id_of(jar)
        # For a while, a renewed id goes on with the session that it was.
        world.clock.advance(20)
        found = {id: world.content(sent[id]) for id in sorted(sent) if id}
        known = {key_of(id, PREFIX) for id in sent}
        stored = [
            record
            for key, record in world.backend.iterate()
            # What a request that was cut off has left under an id that nobody knows
            # is no session of anybody's.
            if not is_disturbed or key in known
        ]
        yield from self._check_ids(stored, found, jar)
        done = [
            kind
            for kind, answer in zip(kinds, answers, strict=True)
            if answer.is_success
        ]
        yield from self._check_ends(done, stored, found)
        # A log-out that comes too late for its session ends that as a whole.
        is_out = any(kind.ends or kind.logs_out > kind.logs_in for kind in kinds)
        if not is_out and not self._is_forgotten(jar):
            yield from self._check_content(found, jar)

    def _is_forgotten(self, jar: str) -> bool:
        """Whether a fault has kept the browser from the id that the session has now.

        The answer of who was interrupted never came. Or it came last, and brought the
        id of a change that has failed: where another request has changed the id for
        more than its age, this one leads nowhere, or is all that is left.
        """
        fault = self.order.fault
        if fault is None or fault.step >= len(self.order.turns):
            return False
        number = self.order.turns[fault.step]
        if fault.kind == "interrupt":
            return self.kinds[number].logs_in or self.kinds[number].goes_on
        return any(
            kind.rotates
            and answer.is_success
            and bool(answer.cookies)
            and id_of(answer.cookies[0]) != jar
            for kind, answer in zip(self.kinds, self.answers, strict=True)
        )

    def _check_ids(
        self, stored: list[Record], found: dict[str, dict[str, t.Any]], jar: str
    ) -> Iterator[str]:
        fresh = sum(kind.begins for kind in self.kinds)
        old = [content for content in found.values() if "n" in content]
        if len(old) > 1:
            yield f"{len(old)} ids are live"
        if len(stored) > 1 + fresh:
            yield f"{len(stored)} records are live"
        if fresh or self._is_forgotten(jar):
            return
        if len(stored) == 1 and not found.get(jar):
            yield "the browser has lost a session that is live"
        if old and "n" not in found.get(jar, {}):
            yield "the browser has not the live id"

    def _check_ends(
        self,
        done: list[Kind],
        stored: list[Record],
        found: dict[str, dict[str, t.Any]],
    ) -> Iterator[str]:
        is_out = any(kind.logs_out and not kind.logs_in for kind in done)
        has_logged_in = any(kind.logs_in for kind in self.kinds)
        # Who still has a former id has no say in the session of anybody else, nor in
        # that of nobody.
        is_other = any(kind.logs_out and not kind.ends for kind in self.kinds)
        if is_out and any(record.user == ADA for record in stored):
            yield "somebody who has logged out is logged in"
        if is_out and not has_logged_in and any(record.user for record in stored):
            yield "somebody is logged in"
        is_there = any("n" in content for content in found.values())
        is_ended = any(kind.ends for kind in done)
        if is_ended and is_there and not has_logged_in and not is_other:
            yield "what was ended is there again"

    def _check_content(
        self, found: dict[str, dict[str, t.Any]], jar: str
    ) -> Iterator[str]:
        content = found.get(jar, {})
        if "n" not in content:
            yield "the session is lost"
            return
        is_renewed_only = not any(kind.rotates or kind.logs_in for kind in self.kinds)
        if is_renewed_only and any(answer.is_lost for answer in self.answers):
            yield "a renewal has cost somebody his session"
        count, least = 0, 0
        for number, (kind, answer) in enumerate(
            zip(self.kinds, self.answers, strict=True)
        ):
            name, is_kept = f"r{number}", answer.is_success and not answer.is_lost
            if kind.writes and is_kept and name not in content:
                yield f"{name} has lost what it wrote"
            if kind.appends and is_kept and content["list"].count(name) != 1:
                yield f"{name} has lost what it appended, or has it twice"
            if kind.removes and is_kept and "gone" in content:
                yield f"{name} has not removed anything"
            if kind.counts:
                count += 1
                least += is_kept
        if not least <= content["n"] <= count:
            yield f"{content['n']} was counted; {least} to {count} is right"
        if set(BEGINNING) - {"gone", "_user_id"} - set(content):
            yield "what was there before is lost"


def id_of(cookie: str) -> str:
    """Return the id in a cookie; empty for one that is deleted."""
    return cookie.rpartition(".")[0].rpartition(".")[0]


# All orders


class Violation(t.NamedTuple):
    """A promise that was not kept."""

    case: Case
    order: Order
    text: str
    answers: tuple[Answer, ...]

    def __str__(self) -> str:
        answers = "; ".join(
            f"{answer.status or 'interrupted'}"
            f"{' cookie' * bool(answer.cookies)}{' lost' * answer.is_lost}"
            for answer in self.answers
        )
        return f"{self.case}: {self.text}\n    {self.order}\n    {answers}"


class Counts(t.NamedTuple):
    """What was tried."""

    cases: int
    orders: int
    faults: int
    violations: list[Violation]


@contextlib.contextmanager
def without_pauses(worlds: Sequence[World]) -> Iterator[None]:
    """Let whoever pauses hand over to another request instead."""
    from flask_serversession import conflicts
    from flask_serversession import user_limit

    class Pause:
        @staticmethod
        def sleep(seconds: float) -> None:
            for world in worlds:
                world.backend.pause(seconds)

    modules: list[t.Any] = [conflicts, user_limit]
    originals = [module.time for module in modules]
    logger = logging.getLogger("flask_serversession")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        for module in modules:
            module.time = Pause
        yield
    finally:
        logger.disabled = was_disabled
        for module, original in zip(modules, originals, strict=True):
            module.time = original


def orders_of(world: World, case: Case) -> Iterator[Outcome]:
    """Carry out every order of a case, without faults."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        turns = pending.pop()
        outcome = world.run(case, turns, None)
        yield outcome
        pending += others_of(outcome.order, outcome.choices, len(turns))


def faults_of(world: World, case: Case, outcome: Outcome) -> Iterator[Outcome]:
    """Carry out one order again, and let each of its steps go wrong in turn."""
    order = outcome.order
    for step, operation in enumerate(order.operations):
        if operation == "pause":
            continue
        for kind, is_done in itertools.product(("fail", "interrupt"), (False, True)):
            fault = Fault(step, t.cast(t.Any, kind), is_done)
            yield world.run(case, order.turns[: step + 1], fault)


def explore(cases: Sequence[Case]) -> Counts:
    """Try all of them, and return what was found."""
    worlds = {
        False: World(),
        True: World(SESSION_RENEWAL_INTERVAL=60),
    }
    orders = faults = 0
    violations: list[Violation] = []

    def check(outcome: Outcome) -> None:
        for text in outcome.faults(worlds[outcome.case.is_renewal_due]):
            violations.append(
                Violation(outcome.case, outcome.order, text, tuple(outcome.answers))
            )

    with without_pauses([*worlds.values()]):
        for case in cases:
            world = worlds[case.is_renewal_due]
            for outcome in orders_of(world, case):
                orders += 1
                check(outcome)
                if case.faults:
                    for broken in faults_of(world, case, outcome):
                        faults += 1
                        check(broken)
    return Counts(len(cases), orders, faults, violations)


def pairs() -> list[Case]:
    """Return all pairs of kinds, in all circumstances."""
    return [
        Case(kinds, workers, is_renewal_due)
        for kinds in itertools.combinations_with_replacement(KINDS, 2)
        for workers in (1, 2)
        for is_renewal_due in (False, True)
    ]


def triples() -> list[Case]:
    """Return all triples of kinds, on as many workers as that takes."""
    return [
        Case(kinds, 2, is_renewal_due)
        for kinds in itertools.combinations_with_replacement(KINDS, 3)
        for is_renewal_due in (False, True)
    ]


def main() -> int:
    """Run from the command line; the exit code says whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.orders")
    parser.add_argument("--triples", action="store_true", help="three requests")
    parser.add_argument("--faults", action="store_true", help="let each step fail too")
    parser.add_argument("--share", type=int, default=1, help="one case of so many")
    parser.add_argument("--only", help="cases with this kind")
    parser.add_argument("--show", type=int, default=20, help="how many to show")
    options = parser.parse_args()
    cases = triples() if options.triples else pairs()
    cases = [case._replace(faults=options.faults) for case in cases]
    if options.only:
        cases = [case for case in cases if options.only in case.kinds]
    started = time.monotonic()
    counts = explore(cases[:: options.share])
    kinds = collections.Counter(violation.text for violation in counts.violations)
    lines = [
        *map(str, counts.violations[: options.show]),
        f"{counts.cases} cases, {counts.orders} orders, {counts.faults} with a fault,"
        f" {len(counts.violations)} violations,"
        f" {time.monotonic() - started:.0f} s: {dict(kinds)}",
    ]
    sys.stdout.write("\n".join([*lines, ""]))
    return bool(counts.violations)


if __name__ == "__main__":
    sys.exit(main())
