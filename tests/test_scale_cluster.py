"""Sessions on a Cluster of six nodes: slots that move, and a primary that dies.

What every backend has to do is tried on such a Cluster in
``tests/backends/test_redis.py``.
"""

from __future__ import annotations

import itertools
import typing as t
from collections.abc import Iterator

import flask
import pytest
import redis
import valkey
from redis.crc import key_slot

from flask_serversession import ServerSession

from .figures import Report
from .load import Load
from .load import Visitor
from .load import client_of
from .load import create_app
from .servers import ValkeyCluster
from .servers import ValkeyServer

#: The workers' ways to the Cluster, in turn: by URL, and by a client of each driver.
WORKERS = ("url", "redis-py", "url", "valkey-py", "url", "redis-py", "url", "valkey-py")


@pytest.fixture
def cluster() -> Iterator[ValkeyCluster]:
    # Only the replica that a test wants to take over may: a machine that stalls must
    # not look like another failure.
    options = ("--cluster-replica-no-failover", "yes")
    options += ("--cluster-replica-validity-factor", "0")
    options += ("--cluster-node-timeout", "60000")
    with ValkeyCluster(3, *options, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def timeout() -> int:
    """How long a client waits for an answer, in seconds; the library's default."""
    return 2


@pytest.fixture
def apps(cluster: ValkeyCluster, timeout: int) -> Iterator[list[flask.Flask]]:
    apps = []
    clients = []
    node = cluster.nodes[0]
    for way in WORKERS:
        config: dict[str, t.Any] = {"SESSION_BACKEND": "redis"}
        if way == "url":
            config["SESSION_REDIS_URL"] = f"{cluster.url}?socket_timeout={timeout}"
        else:
            make: t.Any = {
                "redis-py": redis.RedisCluster,
                "valkey-py": valkey.ValkeyCluster,
            }[way]
            client = make(node.host, node.port, socket_timeout=timeout)
            clients.append(client)
            config["SESSION_REDIS"] = client
        apps.append(create_app(config))
    yield apps
    for app in apps:
        app.extensions["serversession"].backend.close()
    for client in clients:
        client.close()


def slot_of(visitor: Visitor) -> int:
    return key_slot(f"session:{visitor.handle}".encode())


def extension_of(app: flask.Flask) -> ServerSession:
    return t.cast(ServerSession, app.extensions["extension"])


def errors_of(node: ValkeyServer, name: str) -> int:
    """Give how many times a node answered with an error."""
    with redis.Redis.from_url(node.url) as client:
        errors: dict[str, t.Any] = client.info("errorstats")  # type: ignore[assignment]
    return int(errors.get(f"errorstat_{name}", {"count": 0})["count"])


def test_an_operator_sees_and_ends_sessions_of_all_slots(
    cluster: ValkeyCluster, apps: list[flask.Flask]
) -> None:
    app, other = apps[0], apps[1]
    server_session = extension_of(app)
    ask = client_of(other)
    handles: dict[str, set[str]] = {"ada": set(), "bob": set()}
    for number in range(60):
        visitor = Visitor(str(number))
        user = "ada" if number % 3 else "bob"
        visitor.cookie = ask("POST", f"/start/{number}/{user}", None)[2]
        handles[user].add(visitor.handle)
    everybody = handles["ada"] | handles["bob"]
    for node in cluster.nodes:
        with redis.Redis.from_url(node.url) as client:
            assert t.cast(int, client.dbsize()) > 5
    with app.app_context():
        assert server_session.count() == 60
        assert {info.handle for info in server_session.sessions()} == everybody
        for user, known in handles.items():
            found = server_session.sessions_of(user)
            assert {info.handle for info in found} == known
            assert {info.user for info in found} == {user}
        one = handles["ada"].pop()
        found_one = server_session.find(one)
        assert found_one is not None
        assert found_one.user == "ada"
        assert server_session.revoke(one)
        assert not server_session.revoke(one)
        assert server_session.revoke_user("ada") == 39
        assert server_session.sessions_of("ada") == []
        assert {info.handle for info in server_session.sessions()} == handles["bob"]
        # They expire by themselves: nothing is left to remove.
        assert server_session.prune() == 0
        assert server_session.count() == 20


class Move:
    """One slot on its way from a node to another."""

    def __init__(
        self, cluster: ValkeyCluster, slot: int, source: ValkeyServer, to: ValkeyServer
    ) -> None:
        self.cluster = cluster
        self.slot = slot
        self.source = source
        self.to = to

    def begin(self) -> None:
        """Move the keys; whoever asks for one is told to ASK the other node."""
        ids = self.cluster.id_of(self.source), self.cluster.id_of(self.to)
        with (
            redis.Redis.from_url(self.source.url) as source,
            redis.Redis.from_url(self.to.url) as to,
        ):
            to.execute_command("CLUSTER SETSLOT", self.slot, "IMPORTING", ids[0])
            source.execute_command("CLUSTER SETSLOT", self.slot, "MIGRATING", ids[1])
            keys: t.Any = source.cluster("GETKEYSINSLOT", self.slot, 100)
            source.migrate(self.to.host, self.to.port, keys, 0, 10_000)

    def end(self) -> None:
        """Give the slot away; whoever comes here is told that it has MOVED."""
        identifier = self.cluster.id_of(self.to)
        for node in (self.to, self.source):
            with redis.Redis.from_url(node.url) as client:
                client.execute_command("CLUSTER SETSLOT", self.slot, "NODE", identifier)


@pytest.mark.parametrize("timeout", [60])
def test_slots_that_move_under_load_are_not_noticed(
    cluster: ValkeyCluster, apps: list[flask.Flask], report: Report
) -> None:
    load = Load([client_of(app) for app in apps])
    server_session = extension_of(apps[0])
    source, to, third = cluster.nodes
    with load.running():
        load.wait_for_turns()
        index = key_slot(b"session:user:w0:sessions")
        slots = {slot_of(visitor) for visitor in load.visitors} | {index}
        moves = [
            Move(cluster, slot, source, to)
            for slot in sorted(slots)
            if slot < 16_384 // 3
        ]
        assert moves
        for move in moves:
            move.begin()
        load.wait_for_turns()
        with apps[0].app_context():
            own = {visitor.handle for visitor in load.own[0]}
            found = {info.handle for info in server_session.sessions_of("w0")}
            assert found == own
        for move in moves:
            move.end()
        load.wait_for_turns()
    assert load.failures == []
    assert errors_of(source, "ASK") > 0
    assert errors_of(source, "MOVED") > 0
    assert errors_of(third, "ASK") == 0
    report(f"{len(moves)} slots moved: {load.check(client_of(apps[0]))}")
    with apps[0].app_context():
        for worker, visitors in enumerate(load.own):
            found = {info.handle for info in server_session.sessions_of(f"w{worker}")}
            assert found == {visitor.handle for visitor in visitors}
        assert server_session.count() == len(load.visitors)
        assert server_session.revoke_user("w0") == len(load.own[0])


@pytest.mark.slow
@pytest.mark.parametrize("is_behind", [False, True], ids=["current", "behind"])
def test_a_primary_that_dies_costs_503s_and_nothing_that_was_replicated(
    cluster: ValkeyCluster,
    apps: list[flask.Flask],
    is_behind: bool,
    report: Report,
) -> None:
    load = Load([client_of(app) for app in apps])
    victim, heir = cluster.nodes[1], cluster.replicas[1]
    slots = range(16_384 // 3, 2 * 16_384 // 3)
    load.is_exposed = lambda visitor: slot_of(visitor) in slots
    with load.running():
        load.wait_for_turns()
        assert {load.is_exposed(visitor) for visitor in load.visitors} == {False, True}
        load.mark()
        with redis.Redis.from_url(victim.url) as client:
            # The replica gets everything in its order, so also what came before.
            names = (f"mark{number}" for number in itertools.count())
            client.set(next(n for n in names if key_slot(n.encode()) in slots), 1)
            assert client.wait(1, 60_000) == 1
            if is_behind:
                heir.pause()
                client.execute_command("CLIENT", "KILL", "TYPE", "replica")
                load.wait_for_turns()
        victim.kill()
        load.after()
        if is_behind:
            heir.resume()
        for node in (*cluster.nodes, *cluster.replicas):
            if node is not victim:
                node._ask("CONFIG SET cluster-node-timeout 2000")
        heir._ask("CONFIG SET cluster-replica-no-failover no")
        load.wait_for_turns(2)
    assert load.failures
    assert "role:master" in heir._ask("INFO replication")
    result = load.check(client_of(apps[0]))
    # Without this, the model might be blind.
    assert not is_behind or load.lost > 0
    report(f"a primary of a Cluster killed: {result}")
    server_session = extension_of(apps[0])
    with apps[0].app_context():
        assert server_session.count() == len(load.visitors)
        for worker, visitors in enumerate(load.own):
            found = {info.handle for info in server_session.sessions_of(f"w{worker}")}
            assert found == {visitor.handle for visitor in visitors}
            assert server_session.revoke_user(f"w{worker}") == len(visitors)
        assert [info.user for info in server_session.sessions()] == ["common"]
