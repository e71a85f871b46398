from __future__ import annotations

import html
import logging
import threading
import time
import typing as t
from collections.abc import Callable

import pytest
from flask import session

from flask_serversession import ServerSession
from flask_serversession import backend_failed
from flask_serversession import backend_recovered
from flask_serversession import breaker
from flask_serversession.backends.redis import RedisBackend
from flask_serversession.breaker import FAILURES
from flask_serversession.breaker import PAUSE
from flask_serversession.breaker import Breaker
from flask_serversession.breaker import NotAskedError
from flask_serversession.errors import BackendError
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.testing import FakeClock

from .servers import ValkeyServer
from .site import Site
from .site import advance


class Engine:
    """What a breaker asks."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: BaseException | None = None

    def answer(self) -> str:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return "yes"

    def fail(self, **options: t.Any) -> None:
        self.error = BackendUnavailableError("It is down.", **options)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def recoveries() -> list[str]:
    return []


@pytest.fixture
def asking(clock: FakeClock, recoveries: list[str]) -> Breaker:
    return Breaker(clock, lambda: recoveries.append("recovered"))


def ask(asking: Breaker, engine: Engine, times: int = 1) -> list[str]:
    """Ask some times, and give what came of it."""
    found: list[str] = []
    for _ in range(times):
        try:
            found.append(asking.ask(engine.answer))
        except NotAskedError:
            found.append("not asked")
        except BackendError as error:
            found.append(type(error).__name__)
    return found


FAILED = "BackendUnavailableError"


def test_after_five_failures_in_a_row_nobody_asks_for_two_seconds(
    asking: Breaker, engine: Engine, clock: FakeClock, recoveries: list[str]
) -> None:
    engine.fail()
    assert ask(asking, engine, FAILURES) == [FAILED] * 5
    assert ask(asking, engine, 9) == ["not asked"] * 9
    clock.advance(PAUSE)
    # One may try; and nobody else, until the next pause is over.
    assert ask(asking, engine, 3) == [FAILED, "not asked", "not asked"]
    assert engine.asked == 6
    clock.advance(PAUSE)
    engine.error = None
    assert recoveries == []
    assert ask(asking, engine, 3) == ["yes"] * 3
    assert recoveries == ["recovered"]


def test_an_answer_in_between_begins_the_count_anew(
    asking: Breaker, engine: Engine, recoveries: list[str]
) -> None:
    for _ in range(3):
        engine.fail()
        assert ask(asking, engine, FAILURES - 1) == [FAILED] * 4
        engine.error = None
        assert ask(asking, engine) == ["yes"]
    assert recoveries == []


def test_what_the_backend_refuses_is_an_answer(asking: Breaker, engine: Engine) -> None:
    engine.fail(refused=True)
    assert ask(asking, engine, 20) == [FAILED] * 20
    engine.error = BackendError("There is no such table.")
    assert ask(asking, engine, 20) == ["BackendError"] * 20


def test_the_pause_is_over_by_the_real_time_too(
    asking: Breaker, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.fail()
    ask(asking, engine, FAILURES)
    later = time.monotonic() + PAUSE
    monkeypatch.setattr(breaker.time, "monotonic", lambda: later)
    assert ask(asking, engine, 2) == [FAILED, "not asked"]


def test_another_one_tries_where_the_first_one_hangs(
    asking: Breaker, engine: Engine, clock: FakeClock
) -> None:
    engine.fail()
    ask(asking, engine, FAILURES)
    clock.advance(PAUSE)

    def hang() -> str:
        assert ask(asking, engine) == ["not asked"]
        clock.advance(PAUSE)
        assert ask(asking, engine) == [FAILED]
        return "at last"

    assert asking.ask(hang) == "at last"
    engine.error = None
    assert ask(asking, engine) == ["yes"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError])
def test_whoever_tries_and_is_interrupted_leaves_it_to_the_next(
    asking: Breaker, engine: Engine, clock: FakeClock, error: type[BaseException]
) -> None:
    engine.fail()
    ask(asking, engine, FAILURES)
    clock.advance(PAUSE)
    engine.error = error()
    with pytest.raises(error):
        asking.ask(engine.answer)
    engine.error = None
    assert ask(asking, engine) == ["yes"]


def test_one_of_many_threads_tries(
    asking: Breaker, engine: Engine, clock: FakeClock, recoveries: list[str]
) -> None:
    engine.fail()
    ask(asking, engine, FAILURES)
    clock.advance(PAUSE)
    others_are_through = threading.Event()
    found: list[str] = []

    def answer_late() -> str:
        others_are_through.wait(30)
        return "tried"

    def visit() -> None:
        try:
            found.append(asking.ask(answer_late))
        except NotAskedError:
            found.append("not asked")
        if len(found) == 9:
            others_are_through.set()

    threads = [threading.Thread(target=visit) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == ["not asked"] * 9 + ["tried"]
    assert recoveries == ["recovered"]


def test_a_forked_child_finds_out_for_itself(
    asking: Breaker,
    engine: Engine,
    recoveries: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.fail()
    ask(asking, engine, FAILURES)
    monkeypatch.setattr(breaker.os, "getpid", lambda: 1)
    assert ask(asking, engine, 6) == [FAILED] * 5 + ["not asked"]
    engine.error = None
    monkeypatch.setattr(breaker.os, "getpid", lambda: 2)
    assert ask(asking, engine) == ["yes"]
    assert recoveries == []


def test_the_operator_is_told_when_it_stops_and_when_it_works_again(
    asking: Breaker,
    engine: Engine,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.fail()
    ask(asking, engine, FAILURES)
    clock.advance(PAUSE)
    ask(asking, engine, 2)
    stopped = (
        logging.ERROR,
        "The session backend has failed 5 times in a row. Until it answers again, it"
        " is asked once in 2 seconds.",
    )
    assert told(caplog) == [stopped]
    clock.advance(PAUSE)
    engine.error = None
    ask(asking, engine, 2)
    answers = (logging.WARNING, "The session backend answers again.")
    assert told(caplog) == [stopped, answers]


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    assert {record.name for record in caplog.records} <= {"flask_serversession"}
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_who_may_not_ask_is_told_of_the_last_failure(
    asking: Breaker, engine: Engine, clock: FakeClock
) -> None:
    engine.fail(backend="an engine", operation="load")
    ask(asking, engine, FAILURES)
    with pytest.raises(NotAskedError) as info:
        asking.ask(engine.answer)
    assert str(info.value) == (
        "The session backend does not answer, and is asked once in 2 seconds. The last"
        " failure: It is down."
    )
    assert info.value.backend == "an engine"
    assert info.value.operation == "load"
    clock.advance(PAUSE)
    engine.error = BackendUnavailableError("It is down still.")
    assert ask(asking, engine) == [FAILED]
    with pytest.raises(NotAskedError, match=r" The last failure: It is down still\.$"):
        asking.ask(engine.answer)


@pytest.mark.parametrize(
    "answer",
    [BackendUnavailableError("full", refused=True), BackendError("no such table")],
    ids=["refused", "wrong"],
)
def test_a_refusal_begins_the_count_anew(
    asking: Breaker,
    engine: Engine,
    clock: FakeClock,
    recoveries: list[str],
    answer: BackendError,
) -> None:
    for _ in range(2):
        engine.fail()
        ask(asking, engine, FAILURES - 1)
        engine.error = answer
        ask(asking, engine)
    engine.fail()
    assert ask(asking, engine, FAILURES + 1) == [FAILED] * 5 + ["not asked"]
    clock.advance(PAUSE)
    engine.error = answer
    ask(asking, engine)
    assert recoveries == ["recovered"]


def test_what_is_asked_gets_its_arguments(asking: Breaker) -> None:
    assert asking.ask(dict, {"a": 1}, b=2) == {"a": 1, "b": 2}


def test_a_pause_is_not_over_before_its_time(
    asking: Breaker, engine: Engine, clock: FakeClock
) -> None:
    engine.fail()
    ask(asking, engine, FAILURES)
    clock.advance(PAUSE - 0.5)
    assert ask(asking, engine) == ["not asked"]
    clock.advance(0.5)
    assert ask(asking, engine, 2) == [FAILED, "not asked"]


def test_a_late_failure_does_not_prolong_the_pause(
    asking: Breaker, engine: Engine, clock: FakeClock
) -> None:
    engine.fail()

    def fail_late() -> str:
        ask(asking, engine, FAILURES)
        clock.advance(PAUSE / 2)
        return engine.answer()

    with pytest.raises(BackendUnavailableError):
        asking.ask(fail_late)
    clock.advance(PAUSE / 2)
    assert ask(asking, engine) == [FAILED]


# -- with an application


@pytest.fixture
def site(own_valkey: ValkeyServer) -> Site:
    return Site({"SESSION_BACKEND": "redis", "SESSION_REDIS_URL": own_valkey.url})


@pytest.fixture
def own_valkey() -> t.Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def test_an_outage_costs_five_waits_and_then_one_in_two_seconds(
    own_valkey: ValkeyServer, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, dict[str, t.Any]]] = []

    def hear(name: str) -> Callable[..., None]:
        return lambda sender, **values: told.append((name, values))

    failed, recovered = hear("failed"), hear("recovered")
    backend_failed.connect(failed, site.app)
    backend_recovered.connect(recovered, site.app)
    browser = site.browser()
    browser.set(n=1)
    with own_valkey.paused():
        with site.backend.counting() as calls:
            for _ in range(20):
                assert browser.visit(lambda: session.get("n")).status_code == 503
                # Nobody has it, so it is not even looked for.
                assert browser.ignore().status_code == 200
        assert calls == {"load": 5}
        # Whatever they want, others do not wait either.
        with site.backend.counting() as calls:
            response = site.browser().set(n=1)
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) > 0
            assert browser.visit(lambda: session.clear()).status_code == 503
        assert calls == {}
        advance(site, PAUSE)
        with site.backend.counting() as calls:
            assert [browser.set(n=2).status_code for _ in range(3)] == [503] * 3
        assert calls == {"load": 1}
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len([line for line in lines if "failed at 'load'" in line]) == 6
    assert len([line for line in lines if "5 times in a row" in line]) == 1
    assert [name for name, _ in told] == ["failed"] * 6
    # An operator is not held up, and finds out before anybody else.
    with site.app.app_context():
        assert site.extension.count() == 1
    assert browser.visit(lambda: session.get("n")).status_code == 503
    advance(site, PAUSE)
    assert browser.read() == {"n": 1}
    assert told[6:] == [("recovered", {"handle": None, "user": None})]


@pytest.mark.parametrize("is_debug", [True, False])
@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("load", lambda: session.get("n")),
        ("delete", lambda: session.destroy()),  # type: ignore[attr-defined]
        # which asks past the session
        ("keys_of_user", lambda: ServerSession().sessions_of("ada")),
    ],
)
def test_the_page_says_why_and_what_to_do_in_debug_mode_only(
    operation: str, action: t.Callable[[], object], is_debug: bool
) -> None:
    backend = RedisBackend.from_url("redis://:hunter2@localhost:1/0")
    site = Site({"SESSION_BACKEND": "memory"})
    site.app.debug = is_debug
    browser = site.browser()
    browser.set(n=1)
    site.backend.backend = backend
    response = browser.visit(action)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    page = html.unescape(response.get_data(as_text=True))
    assert "hunter2" not in page
    assert browser.id not in page
    assert (
        f"The Redis backend at 'localhost:1' cannot be reached for '{operation}':"
        " Connection refused.<br>Is it running, and is its address right? Try it out"
        " with: flask sessions check<br>Only debug mode shows this."
    ) in page or not is_debug
    assert ("Redis" in page) is is_debug


def test_the_page_of_what_was_refused_says_why_and_does_not_ask_whether_it_runs() -> (
    None
):
    site = Site({"SESSION_BACKEND": "memory"})
    site.app.debug = True
    browser = site.browser()
    browser.set(n=1)

    def refuse() -> t.NoReturn:
        raise BackendUnavailableError("The disk is <full>. Make room.", refused=True)

    site.backend.before["load"] = refuse
    page = browser.visit(lambda: session.get("n")).get_data(as_text=True)
    assert "The disk is &lt;full&gt;. Make room.<br>Only debug mode shows" in page


def test_a_full_redis_can_be_read_and_ended_whatever_was_refused(
    own_valkey: ValkeyServer, site: Site
) -> None:
    import redis

    browser = site.browser()
    browser.set(n=1)
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
    for _ in range(10):
        assert site.browser().set(n=1).status_code == 503
    assert browser.read() == {"n": 1}
    assert browser.visit(lambda: session.clear()).status_code == 200
    assert browser.read() == {}


def test_a_touch_that_the_backend_does_not_permit_is_logged_and_nothing_more(
    own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    import redis

    with redis.Redis.from_url(own_valkey.url) as client:
        client.execute_command(
            *("ACL", "SETUSER", "reader", "on", ">p", "~*", "+@all", "-evalsha")
        )
    site = Site(
        {
            "SESSION_BACKEND": "redis",
            "SESSION_REDIS_URL": f"redis://reader:p@{own_valkey.address}",
        },
        SESSION_TOUCH_INTERVAL=0,
    )
    browser = site.browser()
    browser.set(n=1)
    assert browser.read() == {"n": 1}
    assert any("at 'touch'" in r.getMessage() for r in caplog.records)


def test_a_wrong_statement_at_a_touch_is_no_error_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_TOUCH_INTERVAL=0)
    browser = site.browser()
    browser.set(n=1)

    def touch(*_: t.Any) -> bool:
        raise BackendError("The role may only read.", operation="touch")

    site.backend.touch = touch  # type: ignore[method-assign]
    assert browser.read() == {"n": 1}
    assert any("may only read" in r.getMessage() for r in caplog.records)
