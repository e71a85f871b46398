"""More requests at once than there are connections: every one is answered."""

from __future__ import annotations

import collections
import contextlib
import subprocess
import sys
import threading
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from redis.exceptions import MaxConnectionsError

from flask_serversession import ServerSession
from flask_serversession import session
from flask_serversession.backends.redis.pool import Turns

from .backend_configs import Config
from .servers import Server
from .servers import ValkeyCluster
from .servers import ValkeySentinel
from .servers import ValkeyServer


def run_together(number: int, function: Callable[[], object]) -> None:
    threads = [threading.Thread(target=function) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("size", [1, 5, 20])
@pytest.mark.parametrize("name", ["postgresql", "mariadb", "sqlite"])
def test_requests_that_hold_all_of_the_applications_connections_are_answered(
    name: str, make_backend_config: Callable[[str], Config], tmp_path: Path, size: int
) -> None:
    config = make_backend_config(name)
    db = SQLAlchemy()
    app = Flask("shop", instance_path=str(tmp_path))
    app.config.update(
        SECRET_KEY="k",
        SQLALCHEMY_DATABASE_URI=config.pop("SESSION_SQLALCHEMY_URL"),
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": size, "max_overflow": 0},
        SESSION_SQLALCHEMY=db,
        **config,
    )
    db.init_app(app)
    ServerSession(app)
    all_hold_one = threading.Barrier(size, timeout=30)

    @app.get("/")
    def index() -> str:
        db.session.execute(sa.text("SELECT 1"))
        all_hold_one.wait()
        session["n"] = session.get("n", 0) + 1
        return ""

    codes: collections.Counter[int] = collections.Counter()

    def visit() -> None:
        client = app.test_client()
        for _ in range(2):
            codes[client.get("/").status_code] += 1

    run_together(size, visit)
    assert codes == {200: 2 * size}
    with app.app_context():
        backend: t.Any = app.extensions["serversession"].backend
        backend.close()
        db.engine.dispose()


@pytest.mark.parametrize("size", [1, 5, 100])
@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_many_more_requests_than_connections_are_answered(
    name: str, make_backend_config: Callable[[str], Config], size: int
) -> None:
    config = make_backend_config(name)
    url = config.pop("SESSION_SQLALCHEMY_URL")
    engine = sa.create_engine(url, pool_size=size, max_overflow=0)
    app = Flask("shop")
    app.config.update(SECRET_KEY="k", SESSION_SQLALCHEMY=engine, **config)
    ServerSession(app)
    app.add_url_rule("/", view_func=lambda: session.update(n=1) or "")
    codes: collections.Counter[int] = collections.Counter()
    run_together(150, lambda: codes.update([app.test_client().get("/").status_code]))
    assert codes == {200: 150}
    app.extensions["serversession"].backend.close()
    engine.dispose()


# -- Redis


@pytest.fixture(params=["valkey", "redis", "sentinel", "cluster"])
def redis_url(
    request: pytest.FixtureRequest,
    run_server: Callable[..., contextlib.AbstractContextManager[t.Any]],
) -> t.Iterator[str]:
    """Give the URL of each kind of server."""
    fixtures = {"valkey": "valkey_server", "redis": "redis_server"}
    if request.param in fixtures:
        server: Server = request.getfixturevalue(fixtures[request.param])
        yield server.url
        return
    with contextlib.ExitStack() as stack:
        if request.param == "cluster":
            cluster = stack.enter_context(ValkeyCluster())
            yield cluster.url
        else:
            primary = stack.enter_context(run_server(ValkeyServer))
            sentinel = stack.enter_context(ValkeySentinel(primary))
            yield sentinel.url


@pytest.mark.parametrize("size", [1, 5])
def test_requests_wait_for_one_of_the_connections(redis_url: str, size: int) -> None:
    app = Flask("shop")
    app.config.update(
        SECRET_KEY="k",
        SESSION_BACKEND="redis",
        SESSION_REDIS_URL=f"{redis_url}?max_connections={size}",
    )
    ServerSession(app)
    app.add_url_rule("/", view_func=lambda: count())
    codes: collections.Counter[int] = collections.Counter()

    def count() -> str:
        session["n"] = session.get("n", 0) + 1
        return ""

    def visit() -> None:
        client = app.test_client()
        for _ in range(5):
            codes[client.get("/").status_code] += 1

    run_together(40, visit)
    assert codes == {200: 200}
    app.extensions["serversession"].backend.close()


_GEVENT = """
from gevent import monkey
monkey.patch_all()
import collections, sys
import gevent
from flask import Flask, session
from flask_serversession import ServerSession
app = Flask("shop")
app.config.update(SECRET_KEY="k", SESSION_BACKEND=sys.argv[1])
app.config["SESSION_%s_URL" % sys.argv[1].upper()] = sys.argv[2]
if sys.argv[1] == "sqlalchemy":
    app.config["SESSION_SQLALCHEMY_TABLE"] = "of_greenlets"
ServerSession(app)
app.add_url_rule("/", view_func=lambda: session.update(n=1) or "")
assert app.test_client().get("/").status_code == 200
codes = collections.Counter()
def visit():
    codes[app.test_client().get("/").status_code] += 1
gevent.joinall([gevent.spawn(visit) for _ in range(1000)], raise_error=True)
assert codes == {200: 1000}, codes
"""


def visit_with_greenlets(backend: str, url: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _GEVENT, backend, url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_a_thousand_greenlets_wait_for_a_connection_to_redis(redis_url: str) -> None:
    visit_with_greenlets("redis", redis_url)


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_a_thousand_greenlets_wait_for_a_connection_to_a_database(
    name: str, make_backend_config: Callable[[str], Config]
) -> None:
    url = make_backend_config(name)["SESSION_SQLALCHEMY_URL"]
    visit_with_greenlets("sqlalchemy", url)


# -- waiting for one's turn


def exhausted() -> t.NoReturn:
    raise MaxConnectionsError("Too many connections")


def test_who_waits_longest_is_next() -> None:
    turns, free, got = Turns(), collections.deque[int](), list[int]()
    threads: list[threading.Thread] = []

    def take() -> int:
        return free.popleft() if free else exhausted()

    for number in range(3):
        threads.append(
            threading.Thread(
                target=lambda n=number: got.append(n) if turns.wait(take, 30) else None
            )
        )
        threads[-1].start()
        while len(turns.waiting) <= number:
            pass
    for number, thread in enumerate(threads):
        free.append(1)
        turns.next()
        thread.join(30)
        assert got == [*range(number + 1)]
    assert not turns.waiting


def test_who_has_waited_in_vain_says_so() -> None:
    turns = Turns()
    with pytest.raises(MaxConnectionsError):
        turns.wait(exhausted, 0.01)
    assert not turns.waiting


def test_a_turn_that_somebody_cannot_take_goes_to_the_next() -> None:
    turns = Turns()
    later = threading.Event()
    turns.waiting.append(later)

    def take() -> t.NoReturn:
        # A connection comes back for this one, which is interrupted at that moment.
        turns.waiting.rotate()
        turns.next()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turns.wait(take, 30)
    assert later.is_set()
