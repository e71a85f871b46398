"""Sessions on a primary with two replicas, which three Sentinels watch."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterator

import flask
import pytest
import redis
import redis.sentinel
import valkey
import valkey.sentinel

from .figures import Report
from .load import Load
from .load import client_of
from .load import create_app
from .servers import ValkeySentinel
from .servers import ValkeyServer
from .servers import wait_until

#: The workers' ways to the primary: by URL, and by what a Sentinel client gives.
WORKERS = ("url", "redis-py", "url", "valkey-py", "url", "redis-py", "url", "valkey-py")


class Watched:
    """A primary, two replicas and three Sentinels, two of which have to agree."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        fast = ("--repl-diskless-sync-delay", "0")
        self.primary = stack.enter_context(ValkeyServer(*fast))
        options = ("--replicaof", f"{self.primary.host} {self.primary.port}", *fast)
        # With priority 0, a replica never takes over: a machine that stalls must not
        # look like another failure.
        options += ("--replica-priority", "0")
        self.replicas = [stack.enter_context(ValkeyServer(*options)) for _ in range(2)]
        self.wait_for_replicas()
        self.sentinels = [
            stack.enter_context(ValkeySentinel(self.primary, quorum=2, down_after=1))
            for _ in range(3)
        ]
        # They find each other and the replicas through the primary.
        for sentinel in self.sentinels:
            wait_until(lambda: self._knows_all(sentinel))  # noqa: B023

    @property
    def url(self) -> str:
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/mymaster/0"

    @property
    def hosts(self) -> list[tuple[str, int]]:
        return [(sentinel.host, sentinel.port) for sentinel in self.sentinels]

    def wait_for_replicas(self) -> None:
        """Wait until both have what the primary had when this was called."""
        with redis.Redis.from_url(self.primary.url) as client:
            # They get everything in its order, so also what came before.
            client.set("mark", 1)
            assert client.wait(2, 60_000) == 2

    def _knows_all(self, sentinel: ValkeySentinel) -> bool:
        with redis.Redis(sentinel.host, sentinel.port) as client:
            state: t.Any = client.sentinel_master("mymaster")
        return (state["num-other-sentinels"], state["num-slaves"]) == (2, 2)


@pytest.fixture
def watched() -> Iterator[Watched]:
    with contextlib.ExitStack() as stack:
        yield Watched(stack)


@pytest.fixture
def apps(watched: Watched) -> Iterator[list[flask.Flask]]:
    with contextlib.ExitStack() as stack:
        apps = []
        for way in WORKERS:
            config: dict[str, t.Any] = {"SESSION_BACKEND": "redis"}
            if way == "url":
                config["SESSION_REDIS_URL"] = watched.url
            else:
                module: t.Any = redis if way == "redis-py" else valkey
                sentinel = module.sentinel.Sentinel(watched.hosts, socket_timeout=2)
                for watcher in sentinel.sentinels:
                    stack.callback(watcher.close)
                config["SESSION_REDIS"] = sentinel.master_for("mymaster")
                stack.callback(config["SESSION_REDIS"].close)
            apps.append(create_app(config))
        yield apps
        for app in apps:
            app.extensions["serversession"].backend.close()


@pytest.mark.slow
def test_a_fail_over_costs_503s_and_nothing_that_was_replicated(
    watched: Watched, apps: list[flask.Flask], report: Report
) -> None:
    load = Load([client_of(app) for app in apps])
    heir = watched.replicas[1]
    with load.running():
        load.wait_for_turns()
        load.mark()
        watched.wait_for_replicas()
        assert heir._ask("CONFIG SET replica-priority 100").startswith("+OK")
        watched.primary.kill()
        load.after()
        load.wait_for_turns(2)
    assert load.failures
    assert "role:master" in heir._ask("INFO replication")
    report(f"fail-over by Sentinels: {load.check(client_of(apps[0]))}")
    for app in (apps[0], apps[1], apps[3]):
        server_session = app.extensions["extension"]
        with app.app_context():
            assert server_session.count() == len(load.visitors)
            for worker, visitors in enumerate(load.own):
                found = server_session.sessions_of(f"w{worker}")
                assert {info.handle for info in found} == {v.handle for v in visitors}
    with apps[1].app_context():
        assert apps[1].extensions["extension"].revoke_user("w0") == len(load.own[0])
    # The other replica follows the new primary.
    wait_until(
        lambda: (
            f"master_port:{heir.port}" in watched.replicas[0]._ask("INFO replication")
        )
    )
