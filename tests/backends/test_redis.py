"""The Redis backend: the contract on real servers, and what can happen to servers."""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import typing as t
import uuid
from pathlib import Path

import pytest
import redis
import redis.asyncio
import redis.sentinel
import valkey
from flask import Flask
from flask import session
from freezegun import freeze_time
from redis.exceptions import ResponseError

from flask_serversession import ServerSession
from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Capability
from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Gone
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.redis import RedisBackend
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import ConfigurationError
from flask_serversession.errors import RecordError
from flask_serversession.record import FORMAT
from flask_serversession.record import MAGIC
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.record import encode_record
from flask_serversession.record import key_of
from flask_serversession.testing import BackendContract
from flask_serversession.testing import Clock
from flask_serversession.testing import RealClock
from flask_serversession.testing import Spoil

from ..servers import RedisServer
from ..servers import ValkeyCluster
from ..servers import ValkeySentinel
from ..servers import ValkeyServer
from ..servers import find_free_port


def make_record(data: bytes = b"data", lives: float = 600, **fields: t.Any) -> Record:
    now = time.time()
    fields.setdefault("version", 1)
    return Record(
        data, created_at=now, touched_at=now, expires_at=now + lives, **fields
    )


def remove(client: t.Any, prefix: str) -> None:
    for key in client.scan_iter(match=f"{prefix}*", count=1_000):
        client.delete(key)


# -- the contract


class RedisContract(BackendContract):
    prefix = f"contract-{uuid.uuid4().hex[:8]}:"

    @pytest.fixture
    def clock(self) -> Clock:
        return RealClock()

    @pytest.fixture
    def url(self, valkey_server: ValkeyServer) -> str:
        return valkey_server.url

    @pytest.fixture
    def backend(self, url: str) -> cabc.Iterator[Backend]:
        backend = RedisBackend.from_url(url, prefix=self.prefix)
        yield backend
        remove(backend._server.connect(), self.prefix)
        backend.close()

    @pytest.fixture
    def second_backend(self, backend: t.Any, url: str) -> cabc.Iterator[Backend]:
        second = RedisBackend.from_url(url, prefix=self.prefix)
        yield second
        second.close()

    @pytest.fixture
    def dead_backend(self) -> Backend:
        return RedisBackend.from_url(f"redis://127.0.0.1:{find_free_port()}")

    @pytest.fixture
    def spoil(self, backend: t.Any) -> Spoil:
        def spoil(key: str, reason: str) -> None:
            newer = bytes([MAGIC, FORMAT + 1])
            start = newer if reason == "newer" else b"\xfd"
            backend._server.connect().setrange(key, 0, start)

        return spoil


class TestOnValkey(RedisContract):
    pass


class TestOnRedis(RedisContract):
    @pytest.fixture
    def url(self, redis_server: RedisServer) -> str:
        return redis_server.url


@pytest.fixture(scope="module")
def cluster() -> cabc.Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=1) as cluster:
        yield cluster


class TestOnCluster(RedisContract):
    short = 0.5

    @pytest.fixture
    def url(self, cluster: ValkeyCluster) -> str:
        return cluster.url

    @pytest.fixture
    def dead_backend(self) -> Backend:
        ports = find_free_port(), find_free_port()
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return RedisBackend.from_url(f"redis+cluster://{hosts}")


class TestWithValkeyPy(RedisContract):
    short = 0.5

    @pytest.fixture
    def backend(self, url: str) -> cabc.Iterator[Backend]:
        with valkey.Valkey.from_url(url) as client:
            yield RedisBackend(client, prefix=self.prefix)
            remove(client, self.prefix)

    @pytest.fixture
    def dead_backend(self) -> Backend:
        return RedisBackend(valkey.Valkey(port=find_free_port()))


# -- on the shared server


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> ValkeyServer:
    return t.cast(ValkeyServer, request.getfixturevalue(f"{request.param}_server"))


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:12]}:"


@pytest.fixture
def client(server: ValkeyServer, prefix: str) -> cabc.Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, protocol=2) as client:
        yield client
        remove(client, prefix)


@pytest.fixture
def backend(server: ValkeyServer, prefix: str) -> cabc.Iterator[RedisBackend]:
    backend = RedisBackend.from_url(server.url, prefix=prefix)
    yield backend
    remove(backend._server.connect(), prefix)
    backend.close()


@pytest.fixture
def key(prefix: str) -> str:
    return key_of("an id", prefix)


@contextlib.contextmanager
def monitoring(server: ValkeyServer) -> cabc.Iterator[list[str]]:
    """Collect the commands that clients send, without those inside of scripts."""
    commands: list[str] = []
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(b"MONITOR\r\n")
        lines = connection.makefile("r", encoding="latin-1")
        assert lines.readline() == "+OK\n"
        yield commands
        with socket.create_connection((server.host, server.port), timeout=5) as other:
            other.sendall(b"ECHO the-end\r\n")
            other.recv(100)
        for line in lines:
            if "the-end" in line:
                break
            if " lua]" not in line:
                commands.append(line.split('"')[1])


def test_it_declares_what_it_can() -> None:
    assert RedisBackend.name == "redis"
    assert RedisBackend.capabilities == (
        Capability.COMPARE_AND_SWAP
        | Capability.EXPIRES
        | Capability.USER_INDEX
        | Capability.ITERATE
        | Capability.COUNT
    )


@pytest.mark.parametrize("user", [None, "zoë"])
def test_every_operation_is_one_command(
    server: ValkeyServer, backend: RedisBackend, key: str, user: str | None
) -> None:
    def use() -> None:
        now = time.time()
        backend.load(key)
        assert backend.create(key, make_record(user=user))
        assert backend.load(key) is not None
        assert backend.replace(key, make_record(user=user), 1) == Replaced(2)
        assert isinstance(backend.replace(key, make_record(user=user), 1), Conflict)
        assert backend.touch(key, now + 60, now + 660)
        tombstone = make_record(TOMBSTONE_DATA, lives=10)
        assert backend.replace(key, tombstone, 2) == Replaced(3)
        assert backend.replace(key, make_record(), 3) == Replaced(4)
        assert backend.delete(key)
        assert backend.replace(key, make_record(user=user), 1) == Gone()

    use()
    with monitoring(server) as commands:
        use()
    create = ["SET"] if user is None else ["EVAL", "SET"]
    assert commands == ["GET", *create, "GET", *["EVALSHA"] * 7]


@pytest.mark.parametrize("operation", ["replace", "touch", "delete"])
def test_a_server_that_lost_its_scripts_gets_them_again(
    server: ValkeyServer,
    client: redis.Redis,
    backend: RedisBackend,
    key: str,
    operation: str,
) -> None:
    backend.create(key, make_record())
    client.script_flush()
    use: cabc.Callable[[], object] = {
        "replace": lambda: backend.replace(key, make_record(), 1),
        "touch": lambda: backend.touch(key, 1, time.time() + 900),
        "delete": lambda: backend.delete(key),
    }[operation]
    with monitoring(server) as commands:
        assert use() in (True, Replaced(2))
        use()
    assert commands == ["EVALSHA", "EVAL", "EVALSHA"]


def test_the_server_expires_what_it_has(
    client: redis.Redis, backend: RedisBackend, key: str
) -> None:
    def get_expiry() -> float:
        return t.cast(int, client.pexpiretime(key)) / 1000

    def check(expires_at: float) -> None:
        # Never earlier, and later by what the command takes to the server.
        assert -1e-6 <= get_expiry() - expires_at < 0.5

    record = make_record(lives=100.123456)
    backend.create(key, record)
    check(record.expires_at)
    record = make_record(lives=200.6543217)
    backend.replace(key, record, 1)
    check(record.expires_at)
    moment = time.time() + 300.777777
    backend.touch(key, time.time(), moment)
    check(moment)
    backend.replace(key, make_record(TOMBSTONE_DATA, lives=10), 2)
    assert 9 < t.cast(int, client.pttl(key)) / 1000 <= 10.001
    far = dataclasses.replace(make_record(), expires_at=2e11)
    assert backend.replace(key, far, 3) == Replaced(4)
    assert backend.load(key) == dataclasses.replace(far, version=4)


def test_the_value_is_the_record_and_a_trailer(
    client: redis.Redis, backend: RedisBackend, key: str
) -> None:
    record = make_record(user="zoë", meta={"address": "192.0.2.1"})
    backend.create(key, record)
    value = t.cast(bytes, client.get(key))
    assert value[:-16] == encode_record(record)
    backend.touch(key, record.touched_at, record.expires_at)
    assert client.get(key) == value
    backend.replace(key, record, 1)
    assert t.cast(bytes, client.get(key))[-8:] != value[-8:]


def test_the_backends_own_clock_decides(
    server: ValkeyServer, backend: RedisBackend, key: str
) -> None:
    record = make_record(lives=100)
    backend.create(key, record)
    late = RedisBackend.from_url(server.url, clock=lambda: record.expires_at)
    assert late.load(key) is None
    assert late.replace(key, make_record(lives=500), 1) == Gone()
    assert late.replace(key, make_record(lives=500), 7) == Gone()
    assert late.touch(key, 1, record.expires_at + 10) is False
    assert late.count() == 0
    assert list(late.iterate()) == []
    assert backend.load(key) == record
    assert late.delete(key) is False
    assert backend.load(key) is None
    late.close()


@pytest.mark.parametrize("position", [0, 1, 2, 5, 10, 20, 34, 40, 47, 48, 50, -17, -1])
def test_damage_is_noticed(
    client: redis.Redis, backend: RedisBackend, key: str, position: int
) -> None:
    backend.create(key, make_record())
    value = bytearray(t.cast(bytes, client.get(key)))
    value[position] ^= 0x40
    client.set(key, bytes(value))
    if position == -1:  # a part of the nonce
        assert backend.load(key) is not None
    else:
        with pytest.raises(RecordError):
            backend.load(key)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 20, 47, 48, 55, 56])
def test_a_truncated_value_is_damage(
    client: redis.Redis, backend: RedisBackend, key: str, size: int
) -> None:
    backend.create(key, make_record())
    client.set(key, t.cast(bytes, client.get(key))[:size])
    with pytest.raises(RecordError) as info:
        backend.load(key)
    assert info.value.reason == "damaged"
    assert backend.create(key, make_record()) is False
    assert list(backend.iterate()) == []
    if size < 48:
        with pytest.raises(RecordError):
            backend.replace(key, make_record(), 1)
        assert backend.touch(key, 1, time.time() + 60) is False
    assert backend.delete(key) is True
    assert client.exists(key) == 0


def test_something_else_under_the_key_is_damage(
    client: redis.Redis, backend: RedisBackend, key: str
) -> None:
    client.rpush(key, "a list")
    for call in (
        lambda: backend.load(key),
        lambda: backend.replace(key, make_record(), 1),
    ):
        with pytest.raises(RecordError) as info:
            call()
        assert info.value.reason == "damaged"
    assert backend.create(key, make_record()) is False
    assert backend.touch(key, 1, time.time() + 60) is False
    assert backend.count() == 0
    assert list(backend.iterate()) == []
    assert client.llen(key) == 1
    assert backend.delete(key) is True
    assert backend.create(key, make_record()) is True


def test_a_newer_format_is_left_alone(
    client: redis.Redis, backend: RedisBackend, key: str
) -> None:
    backend.create(key, make_record())
    client.setrange(key, 1, bytes([FORMAT + 1]))
    value = client.get(key)
    for call in (
        lambda: backend.load(key),
        lambda: backend.replace(key, make_record(), 1),
        lambda: backend.replace(key, make_record(lives=-1), 1),
        lambda: backend.delete(key),
    ):
        with pytest.raises(RecordError) as info:
            call()
        assert info.value.reason == "newer"
    assert backend.touch(key, 1, time.time() + 60) is False
    assert backend.create(key, make_record()) is False
    assert backend.count() == 0
    assert list(backend.iterate()) == []
    assert client.get(key) == value


def test_iterate_and_count_keep_to_the_prefix(
    server: ValkeyServer, client: redis.Redis, prefix: str
) -> None:
    odd = f"{prefix}[a-z]*?\\"
    backend = RedisBackend.from_url(server.url, prefix=odd)
    other = RedisBackend.from_url(server.url, prefix=f"{prefix}x")
    keys = {key_of(str(number), odd) for number in range(2_500)}
    for key in keys:
        backend.create(key, make_record())
    other.create(key_of("id", f"{prefix}x"), make_record())
    other.create(key_of("id", f"{prefix}a*?\\"), make_record())
    backend.create(key_of("tombstone", odd), make_record(TOMBSTONE_DATA))
    client.rpush(f"{odd}list", "foreign")
    # As long as a key.
    no_text = odd.encode() + b"\xff\xfe" * 32
    client.set(no_text, encode_record(make_record()) + bytes(16))
    client.set(f"{odd}{'foreign-' * 8}", "foreign")
    nested = key_of("id", f"{odd}x:")
    other.create(nested, make_record())
    assert {key for key, _ in backend.iterate()} == keys
    assert len(list(backend.iterate())) == 2_500
    assert backend.count() == 2_501  # one of them has no text for a key
    assert other.count() == 1
    every = RedisBackend.from_url(server.url)
    assert keys | {nested} < {key for key, _ in every.iterate()}
    for each in (backend, other, every):
        each.close()


def test_close_leaves_the_applications_client_open(
    client: redis.Redis, key: str
) -> None:
    backend = RedisBackend(client)
    backend.create(key, make_record())
    connections = client.connection_pool._available_connections
    assert len(connections) == 1
    backend.close()
    assert connections[0]._sock is not None


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(
    backend: RedisBackend, prefix: str
) -> None:
    keys = [key_of(str(number), prefix) for number in range(20)]
    for key in keys:
        backend.create(key, make_record(key.encode()))
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=check_data, args=(backend, keys)) for _ in range(4)
    ]
    for child in children:
        child.start()
    check_data(backend, keys)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0, 0]


def check_data(backend: RedisBackend, keys: list[str]) -> None:
    for _ in range(20):
        for key in keys:
            record = backend.load(key)
            assert record is not None
            assert record.data == key.encode()


# -- the index of a user


def index_of(prefix: str, user: str) -> str:
    return f"{prefix}user:{user}:sessions"


def members_of(client: t.Any, prefix: str, user: str = "ada") -> dict[str, float]:
    pairs = client.zrange(index_of(prefix, user), 0, -1, withscores=True)
    return {
        member.decode().removeprefix("=")
        if member.startswith(b"=")
        else prefix + member.decode(): score
        for member, score in pairs
    }


class SettableClock:
    """The time now, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def settable_clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ahead(
    server: ValkeyServer, prefix: str, settable_clock: SettableClock
) -> cabc.Iterator[RedisBackend]:
    """Give a backend whose clock can be set; the server's cannot."""
    backend = RedisBackend.from_url(server.url, prefix=prefix, clock=settable_clock)
    yield backend
    backend.close()


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ("42", b"42"),
        ("ada@example.com", b"ada@example.com"),
        ("zoë", b"zo%c3%ab"),
        ("", b""),
        (
            "a:b {c}*[d]?%\\\0\n\udc80",
            b"a%3ab%20%7bc%7d%2a%5bd%5d%3f%25%5c%00%0a%ed%b2%80",
        ),
    ],
)
def test_the_index_has_a_name_that_is_no_records(
    client: redis.Redis,
    backend: RedisBackend,
    prefix: str,
    key: str,
    user: str,
    name: bytes,
) -> None:
    record = make_record(user=user)
    backend.create(key, record)
    index = f"{prefix}user:".encode() + name + b":sessions"
    assert sorted(client.scan_iter(f"{prefix}*")) == sorted([key.encode(), index])
    assert client.type(index) == b"zset"
    assert backend.keys_of_user(user) == [key]
    assert [found for found, _ in backend.iterate()] == [key]
    assert backend.count() == 1
    # For half a lifetime more.
    [(member, score)] = t.cast(t.Any, client.zrange(index, 0, -1, withscores=True))
    assert prefix.encode() + member == key.encode()
    # The encoding that takes little memory, which members of 64 bytes may have.
    assert client.object("encoding", index) in (b"listpack", b"ziplist")
    assert score == pytest.approx(record.expires_at + 300)
    assert client.pexpiretime(index) / 1000 == pytest.approx(score + 1, abs=0.5)


def test_keys_that_are_not_the_librarys_are_indexed_as_they_are(
    backend: RedisBackend, key: str, prefix: str
) -> None:
    handle = key.removeprefix(prefix)
    keys = [key, handle, f"={key}", f"{prefix}={key}", f"{key}0", prefix, f"{prefix}ä"]
    for name in keys:
        assert backend.create(name, make_record(user="ada"))
    assert sorted(backend.keys_of_user("ada")) == sorted(keys)
    for name in keys:
        assert backend.delete(name)
    assert backend.keys_of_user("ada") == []


def test_applications_that_share_a_server_share_no_users(
    server: ValkeyServer, prefix: str
) -> None:
    prefixes = [prefix, f"{prefix}user:", f"{prefix}user:a", f"{prefix}user:a:"]
    backends = [RedisBackend.from_url(server.url, prefix=each) for each in prefixes]
    for each, backend in zip(prefixes, backends, strict=True):
        for user in ("user", "a", "a:user", "aa", ":"):
            backend.create(key_of(user, each), make_record(user=user))
    for each, backend in zip(prefixes, backends, strict=True):
        for user in ("user", "a", "a:user", "aa", ":"):
            assert backend.keys_of_user(user) == [key_of(user, each)]
        backend.close()


def test_an_index_lists_a_record_for_as_long_as_it_lives_whatever_happens(
    server: ValkeyServer, client: redis.Redis, prefix: str
) -> None:
    # The server's clock stands still, so to speak, and ours does not: nothing ever
    # really expires, and what would is known by what the server was told.
    for seed in range(8):
        clock = SettableClock()
        backend = RedisBackend.from_url(
            server.url, prefix=f"{prefix}{seed}:", clock=clock
        )
        chance = random.Random(seed)
        lifetimes = (chance.choice([1, 60, 1200, 86_400, 2_678_400]) for _ in range(3))
        lifetimes = tuple(lifetimes)
        records: dict[str, Record] = {}
        for turn in range(150):
            clock.ahead += chance.expovariate(3) * chance.choice(lifetimes)
            now = clock()
            records = {k: r for k, r in records.items() if r.expires_at > now}
            lifetime = chance.choice(lifetimes)
            # As with an absolute timeout, and with clocks that differ.
            expires_at = now + lifetime * chance.choice([1, 1, 1, chance.random()])
            touched_at = now - chance.choice([0, 0, 0, 5, -5])
            key = key_of(str(turn), backend._prefix)
            if records and chance.random() < 0.8:
                key = chance.choice(list(records))
            record = records.get(key)
            if record is None:
                user = chance.choice(["ada", "bob"])
                record = Record(b"x", 1, now, touched_at, expires_at, user)
                assert backend.create(key, record)
            elif chance.random() < 0.7:
                assert backend.touch(key, touched_at, expires_at)
                if expires_at > clock():
                    expires_at = max(expires_at, record.expires_at)
                else:  # perhaps it had passed already, and ended the record
                    backend.delete(key)
                record = dataclasses.replace(
                    record, touched_at=touched_at, expires_at=expires_at
                )
            elif chance.random() < 0.1:
                assert backend.delete(key)
                record = dataclasses.replace(record, expires_at=0)
            else:
                user = chance.choice([record.user, record.user, "ada", "bob", None])
                record = Record(
                    b"y", record.version + 1, now, touched_at, expires_at, user
                )
                assert backend.replace(key, record, record.version - 1) == Replaced(
                    record.version
                )
            records[key] = record
            now = clock()
            for user in ("ada", "bob"):
                index = index_of(backend._prefix, user)
                scores = members_of(client, backend._prefix, user)
                ours = {
                    k: r
                    for k, r in records.items()
                    if r.user == user and r.expires_at > now
                }
                # The server's own clock stands still meanwhile, or nearly so.
                end = clock() + t.cast(int, client.pttl(index)) / 1000
                for each, live in ours.items():
                    assert scores[each] < 0 or scores[each] >= live.expires_at
                    assert end >= live.expires_at
                if chance.random() < 0.3:
                    assert sorted(backend.keys_of_user(user)) == sorted(ours)
        backend.close()


@pytest.mark.slow
def test_short_sessions_are_listed_as_long_as_they_live_and_then_gone(
    client: redis.Redis, backend: RedisBackend, prefix: str, key: str
) -> None:
    chance = random.Random(1)
    lifetime = 0.6
    backend.create(key, make_record(lives=lifetime, user="ada"))
    end = time.time() + 5
    touches = 0
    while time.time() < end:
        time.sleep(chance.choice([0.001, 0.01, 0.1, 0.3, 0.5]))
        now = time.time()
        assert backend.touch(key, now, now + lifetime)
        assert backend.keys_of_user("ada") == [key]
        touches += 1
    assert touches > 10
    time.sleep(lifetime)
    assert backend.keys_of_user("ada") == []
    time.sleep(lifetime / 2 + 1.2)
    assert list(client.scan_iter(f"{prefix}*")) == []


@pytest.mark.parametrize("skew", [-100_000_000.0, -301.0, 0.0, 301.0, 100_000_000.0])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["running", "frozen"])
def test_the_clock_of_the_application_decides_and_not_the_servers(
    server: ValkeyServer,
    client: redis.Redis,
    prefix: str,
    skew: float,
    is_frozen: bool,
) -> None:
    frozen = time.time() + skew
    clock = (lambda: frozen) if is_frozen else (lambda: time.time() + skew)
    backend = RedisBackend.from_url(server.url, prefix=prefix, clock=clock)

    def make(lives: float, user: str | None, data: bytes = b"data") -> Record:
        now = clock()
        return Record(data, 1, now, now, now + lives, user)

    def check_lives(lives: float, index_lives: float | None) -> None:
        assert lives - 30 < client.pttl(key) / 1000 < lives + 1
        ttls = [client.pttl(k) for k in client.scan_iter(f"{prefix}*")]
        assert all(0 < ttl <= 1000 * (index_lives or lives) + 2_000 for ttl in ttls)

    for user in (None, "ada"):
        key = key_of(f"id of {user}", prefix)
        assert backend.create(key, make(300, user))
        check_lives(300, 450)
        assert backend.load(key) is not None
        assert backend.touch(key, clock(), clock() + 400)
        check_lives(400, 600)
        assert backend.replace(key, make(350, user), 1) == Replaced(2)
        check_lives(350, 600)
        # In a list for longer than it was.
        assert backend.replace(key, make(900, user), 2) == Replaced(3)
        check_lives(900, 1350)
        if user is not None:
            assert backend.keys_of_user(user) == [key]
        tombstone = make(60, user, TOMBSTONE_DATA)
        assert backend.replace(key, tombstone, 3) == Replaced(4)
        check_lives(60, 1350)
        # What is over is not stored at all, and what is there is deleted.
        assert backend.create(key, make(-1, user)) is False
        assert backend.replace(key, make(0, user), 4) == Replaced(5)
        assert backend.create(key, make(-1, user)) is True
        assert client.exists(key) == 0
        assert backend.create(key, make(300, user))
        assert backend.touch(key, clock(), clock())
        assert client.exists(key) == 0
    backend.close()


@pytest.mark.parametrize("moment", ["2001-01-01", "2099-01-01"])
def test_a_test_that_freezes_the_time_keeps_its_sessions(
    server: ValkeyServer, client: redis.Redis, prefix: str, moment: str
) -> None:
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="a secret",
        SESSION_BACKEND="redis",
        SESSION_REDIS_URL=server.url,
        SESSION_KEY_PREFIX=prefix,
    )
    ServerSession(app)

    @app.get("/")
    def count() -> str:
        session["_user_id"] = "ada"
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    browser = app.test_client()
    with freeze_time(moment) as frozen:
        for number in "1234":
            assert browser.get("/").text == number
            frozen.tick(600)
    assert min(client.pttl(k) for k in client.scan_iter(f"{prefix}*")) > 0
    app.extensions["serversession"].backend.close()


def test_what_another_clock_has_written_is_never_left_without_an_end(
    server: ValkeyServer, client: redis.Redis, prefix: str, key: str
) -> None:
    skews = (-301.0, 0.0, 301.0)
    backends = {
        skew: RedisBackend.from_url(
            server.url, prefix=prefix, clock=lambda skew=skew: time.time() + skew
        )
        for skew in skews
    }
    for first in skews:
        for second in skews:
            client.delete(key)
            now = time.time() + first
            backends[first].create(key, Record(b"1", 1, now, now, now + 300, "ada"))
            now = time.time() + second
            record = Record(b"2", 1, now, now, now + 300, "ada")
            backends[second].touch(key, now, now + 310)
            backends[second].replace(key, record, 1)
            backends[second].keys_of_user("ada")
            assert min(client.pttl(k) for k in client.scan_iter(f"{prefix}*")) > 0
    for backend in backends.values():
        backend.close()


def test_what_is_gone_is_not_listed_and_removed_after_a_minute(
    client: redis.Redis,
    ahead: RedisBackend,
    settable_clock: SettableClock,
    server: ValkeyServer,
    prefix: str,
) -> None:
    names = ("deleted", "rotated", "other", "nobody", "expired", "live")
    keys = {name: key_of(name, prefix) for name in names}
    for name, key in keys.items():
        lives = 10 if name == "expired" else 10_000
        ahead.create(key, make_record(lives=lives, user="ada"))
    ahead.delete(keys["deleted"])
    ahead.replace(keys["rotated"], make_record(TOMBSTONE_DATA, lives=5_000), 1)
    ahead.replace(keys["other"], make_record(user="bob", lives=10_000), 1)
    ahead.replace(keys["nobody"], make_record(lives=10_000), 1)
    settable_clock.ahead += 11
    assert len(members_of(client, prefix)) == 6
    for turn in range(3):
        with monitoring(server) as commands:
            assert ahead.keys_of_user("ada") == [keys["live"]]
        expected = ["ZRANGE", *["GETRANGE"] * 6]
        if turn == 0:
            # Once more, since they may have been moving; then they are marked.
            expected += ["ZRANGE", "EVALSHA"]
            expected += [name for name in commands if name == "EVAL"]
        assert commands == expected
        assert len(members_of(client, prefix)) == 6
        settable_clock.ahead += 25
    settable_clock.ahead += 11
    assert ahead.keys_of_user("ada") == [keys["live"]]
    assert list(members_of(client, prefix)) == [keys["live"]]
    assert ahead.keys_of_user("bob") == [keys["other"]]


def test_a_record_that_is_just_being_created_is_not_forgotten(
    client: redis.Redis,
    ahead: RedisBackend,
    settable_clock: SettableClock,
    prefix: str,
    key: str,
) -> None:
    # The index is written, and the record not yet: somebody lists in between.
    record = make_record(lives=10_000, user="ada")
    ahead._index.add("create", key.encode(), b"ada", record.expires_at + 5_000)
    for _ in range(2):
        assert ahead.keys_of_user("ada") == []
        settable_clock.ahead += 20
    client.set(key, encode_record(record) + struct.pack(">d8s", 1e12, b"nonce"))
    settable_clock.ahead += 200
    assert ahead.keys_of_user("ada") == [key]
    # Nor is it forgotten by a log-in.
    ahead.create(key_of("other", prefix), make_record(lives=10_000, user="ada"))
    assert len(ahead.keys_of_user("ada")) == 2


def test_what_was_listed_again_meanwhile_is_not_removed(
    client: redis.Redis, ahead: RedisBackend, prefix: str, key: str
) -> None:
    # Somebody lists, and another log-in comes in before the repair.
    record = make_record(user="ada")
    ahead._index.add("create", key.encode(), b"ada", record.expires_at)
    ask_many = ahead._server.ask_many

    def ask_and_create(*args: t.Any) -> t.Any:
        answers = list(ask_many(*args))
        ahead.create(key, record)
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead._server, "ask_many", ask_and_create)
        assert ahead.keys_of_user("ada") == []
    assert members_of(client, prefix)[key] > 0
    assert ahead.keys_of_user("ada") == [key]


def test_a_create_that_is_refused_does_not_shorten_what_is_listed(
    ahead: RedisBackend, settable_clock: SettableClock, prefix: str, key: str
) -> None:
    assert ahead.create(key, make_record(lives=10_000, user="ada")) is True
    assert ahead.create(key, make_record(lives=10, user="ada")) is False
    settable_clock.ahead += 5_000
    other = key_of("other", prefix)
    assert ahead.create(other, make_record(lives=9_000, user="ada")) is True
    assert sorted(ahead.keys_of_user("ada")) == sorted([key, other])


def test_who_logs_in_and_out_all_day_leaves_little_behind(
    client: redis.Redis,
    ahead: RedisBackend,
    settable_clock: SettableClock,
    prefix: str,
) -> None:
    kept = [key_of(f"kept {number}", prefix) for number in range(10)]
    for key in kept:
        ahead.create(key, make_record(lives=10**6, user="ada"))
    most = 0
    for number in range(1_000):
        settable_clock.ahead += 5
        key = key_of(str(number), prefix)
        assert ahead.create(key, make_record(lives=10**6, user="ada"))
        assert ahead.delete(key)
        most = max(most, len(members_of(client, prefix)))
    assert most <= 128
    assert sorted(ahead.keys_of_user("ada")) == sorted(kept)
    settable_clock.ahead += 61
    assert len(ahead.keys_of_user("ada")) == 10
    assert sorted(members_of(client, prefix)) == sorted(kept)
    # What has expired is not even looked at.
    settable_clock.ahead += 2 * 10**6
    ahead.create(kept[0] + "-new", make_record(lives=3 * 10**6, user="ada"))
    assert list(members_of(client, prefix)) == [kept[0] + "-new"]


@pytest.mark.parametrize("driver", [redis.Redis, valkey.Valkey])
@pytest.mark.parametrize("protocol", [2, 3])
def test_users_over_both_versions_of_the_protocol(
    server: ValkeyServer, prefix: str, driver: t.Any, protocol: int
) -> None:
    with driver.from_url(server.url, protocol=protocol) as client:
        backend = RedisBackend(client, prefix=prefix)
        keys = [key_of(name, prefix) for name in ("one", "two")]
        for key in keys:
            assert backend.create(key, make_record(user="ada")) is True
        assert sorted(backend.keys_of_user("ada")) == sorted(keys)
        assert backend.delete(keys[0]) is True
        assert backend.keys_of_user("ada") == [keys[1]]
        assert members_of(client, prefix)[keys[0]] < 0
        assert backend.touch(keys[1], time.time(), time.time() + 5_000) is True
        assert backend.load_many(keys).keys() == {keys[1]}
        assert backend.count() == 1
        backend.delete(keys[1])


def test_a_user_that_no_record_can_have_has_none(backend: RedisBackend) -> None:
    assert backend.keys_of_user("u" * 70_000) == []


def test_listing_a_user_costs_what_that_user_has(
    server: ValkeyServer, backend: RedisBackend, prefix: str
) -> None:
    users = [str(number % 1_000) for number in range(9_000)] + ["many"] * 1_000
    for number, user in enumerate(users):
        assert backend.create(key_of(str(number), prefix), make_record(user=user))
    for user, number in (("7", 9), ("many", 1_000), ("nobody", 0)):
        with monitoring(server) as commands:
            keys = backend.keys_of_user(user)
        assert len(keys) == number
        assert commands == ["ZRANGE", *["GETRANGE"] * number]
        with monitoring(server) as commands:
            assert len(backend.load_many(keys)) == number
        assert commands == ["GET"] * number
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="key", SESSION_BACKEND=backend, SESSION_KEY_PREFIX=prefix
    )
    operator = ServerSession(app)
    with app.app_context():
        for user, number in (("7", 9), ("many", 1_000), ("nobody", 0)):
            with monitoring(server) as commands:
                assert len(operator.sessions_of(user)) == number
            listing = ["ZRANGE", *["GETRANGE"] * number]
            assert commands == [*listing, *["GET"] * number]
            with monitoring(server) as commands:
                assert operator.revoke_user(user) == number
            # Twice more, to see that nothing has come meanwhile; and what has just gone
            # may have moved, so there is one more.
            listings = 4 if number else 2
            counted = collections.Counter(commands)
            assert counted["ZRANGE"] == listings
            assert counted["GETRANGE"] == 3 * number
            # Two to know the digests of the scripts, and some to mark what is gone.
            assert number <= counted["EVALSHA"] <= number + 2 + 2 * -(-number // 100)
            assert set(counted) <= {"ZRANGE", "GETRANGE", "EVALSHA", "EVAL"}


def test_listing_a_user_reads_no_data(
    client: redis.Redis, backend: RedisBackend, key: str
) -> None:
    backend.create(key, make_record(bytes(10**6), user="ada"))
    before = t.cast(t.Any, client.info("stats"))["total_net_output_bytes"]
    assert backend.keys_of_user("ada") == [key]
    after = t.cast(t.Any, client.info("stats"))["total_net_output_bytes"]
    assert after - before < 20_000


def test_something_else_in_the_place_of_an_index_is_an_error(
    client: redis.Redis, backend: RedisBackend, prefix: str, key: str
) -> None:
    client.set(index_of(prefix, "ada"), "foreign")
    record = make_record(user="ada")
    assert backend.create(key_of("other", prefix), make_record(user="bob")) is True
    for operation, call in {
        "create": lambda: backend.create(key, record),
        "keys_of_user": lambda: backend.keys_of_user("ada"),
        "replace": lambda: backend.replace(key_of("other", prefix), record, 1),
    }.items():
        with pytest.raises(BackendUnavailableError) as info:
            call()
        assert info.value.refused
        assert str(info.value).endswith(
            f"has something else where {operation!r} needs the sessions of a user."
        )
    # Nothing was stored that could not be found.
    assert backend.load(key) is None
    assert backend.keys_of_user("bob") == [key_of("other", prefix)]
    assert client.get(index_of(prefix, "ada")) == b"foreign"


def test_a_repair_that_fails_does_not_matter(
    own_server: ValkeyServer, own_backend: RedisBackend
) -> None:
    # More than the server's own memory, so that a limit means anything.
    own_backend.create("large", make_record(b"x" * 10**6))
    for name in ("one", "two"):
        own_backend.create(name, make_record(user="ada"))
    own_backend.delete("one")
    with redis.Redis.from_url(own_server.url, protocol=2) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        assert "is full" in fail(own_backend, "create")
        with pytest.raises(BackendUnavailableError, match="is full"):
            own_backend.create("three", make_record(user="ada"))
        assert own_backend.keys_of_user("ada") == ["two"]
        assert own_backend.delete("two") is True
        assert own_backend.keys_of_user("ada") == []
        client.config_set("maxmemory", "0")
    assert own_backend.load("three") is None


def test_an_index_that_may_not_be_written_lets_nobody_in_unlisted(
    own_server: ValkeyServer, own_backend: RedisBackend
) -> None:
    own_backend._server.connect().execute_command(
        "ACL", "SETUSER", "guest", "on", ">secret", "~k:?", "+@all"
    )
    guest = RedisBackend.from_url(
        f"redis://guest:secret@{own_server.address}", prefix="k:"
    )
    assert guest.create("k:1", make_record()) is True
    with pytest.raises(BackendUnavailableError, match="does not permit 'create'"):
        guest.create("k:2", make_record(user="ada"))
    assert own_backend.load("k:2") is None
    guest.close()


@pytest.mark.parametrize("operation", ["touch", "replace"])
@pytest.mark.parametrize("user", ["ada", "zoë: x%/"])
def test_who_was_evicted_from_the_index_is_listed_at_the_next_use(
    client: redis.Redis, backend: RedisBackend, prefix: str, operation: str, user: str
) -> None:
    """The index is read by nobody but who lists sessions, so it is evicted first."""
    key, now = key_of("id", prefix), time.time()
    record = make_record(user=user)
    assert backend.create(key, record)
    (index,) = client.keys(f"*{prefix}user:*")
    client.delete(index)
    assert backend.keys_of_user(user) == []
    if operation == "touch":
        assert backend.touch(key, now + 60, record.expires_at + 60)
    else:
        assert backend.replace(key, record, 1) == Replaced(2)
    assert backend.keys_of_user(user) == [key]
    assert client.keys(f"*{prefix}user:*") == [index]
    assert client.ttl(index) > 600


@pytest.mark.parametrize("operation", ["touch", "replace"])
def test_a_shard_of_a_cluster_that_was_lost_costs_a_minute_of_the_index(
    cluster: ValkeyCluster, prefix: str, operation: str
) -> None:
    backend = RedisBackend.from_url(cluster.url, prefix=prefix)
    key, now = key_of("id", prefix), time.time()
    record = make_record(user="ada")
    assert backend.create(key, record)
    client = backend._server.connect()
    client.delete(backend._index._index_of(b"ada"))
    assert backend.keys_of_user("ada") == []
    later = dataclasses.replace(
        record, touched_at=now + 60, expires_at=record.expires_at + 60
    )
    if operation == "touch":
        assert backend.touch(key, later.touched_at, later.expires_at)
    else:
        assert backend.replace(key, later, 1) == Replaced(2)
    assert backend.keys_of_user("ada") == [key]
    backend.close()


def test_users_on_a_cluster(cluster: ValkeyCluster, prefix: str) -> None:
    backend = RedisBackend.from_url(cluster.url, prefix=prefix)
    client = backend._server.connect()
    commands: list[str] = []
    execute = client.execute_command

    def execute_and_note(*args: t.Any, **options: t.Any) -> t.Any:
        commands.append(args[0])
        return execute(*args, **options)

    keys = {key_of(str(number), prefix) for number in range(60)}
    # Hands over the scripts to all nodes.
    for user in map(str, range(60)):
        backend.create(key_of(f"of {user}", prefix), make_record(user=user))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "execute_command", execute_and_note)
        for key in keys:
            assert backend.create(key, make_record(user="ada"))
            assert commands == ["EVALSHA", "SET"]
            commands.clear()
            # Within a minute the index is not written again.
            for lives, number in ((610, 1), (700, 3), (710, 1)):
                assert backend.touch(key, time.time(), time.time() + lives)
                scripts = [name for name in commands if name != "EVAL"]
                assert scripts == ["EVALSHA"] * number
                commands.clear()
        assert set(backend.keys_of_user("ada")) == keys
        assert commands == ["ZRANGE"]
        commands.clear()
        assert backend.load_many(list(keys)).keys() == keys
        # The rest goes in one pipeline to each node.
        assert commands == []
    backend.close()


def test_listing_on_a_cluster_survives_connections_that_died(
    cluster: ValkeyCluster, prefix: str
) -> None:
    backend = RedisBackend.from_url(cluster.url, prefix=prefix)
    keys = {key_of(str(number), prefix) for number in range(60)}
    for key in keys:
        assert backend.create(key, make_record(user="ada"))
    for node in cluster.nodes:
        with redis.Redis.from_url(node.url) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert set(backend.keys_of_user("ada")) == keys
    for node in cluster.nodes:
        with redis.Redis.from_url(node.url) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert backend.load_many(list(keys)).keys() == keys
    backend.close()


# -- clients that are taken, and those that are not


def test_a_client_of_the_application_is_taken(server: ValkeyServer) -> None:
    class Own(redis.Redis):
        pass

    for client in (
        redis.Redis.from_url(server.url),
        Own.from_url(server.url),
        valkey.Valkey.from_url(server.url),
        redis.Redis(unix_socket_path="/nowhere"),
        redis.Sentinel([("localhost", 1)]).master_for("mymaster"),
    ):
        RedisBackend.check_client(client)
        RedisBackend(client)
        client.close()


def test_what_is_no_client_is_refused() -> None:
    client = redis.Redis()
    for wrong, ending in (
        (None, "not None."),
        (
            "redis://:secret@localhost",
            "an object of type str. A URL belongs into 'SESSION_REDIS_URL'.",
        ),
        (b"redis://", "A URL belongs into 'SESSION_REDIS_URL'."),
        (redis.Redis, "not the class redis.client.Redis. Make an instance of it."),
        ({}, "an object of type dict."),
        (object(), "an object of type object."),
        (
            redis.asyncio.Redis(),
            "redis.asyncio.client.Redis. Its methods are coroutines; make a client"
            " without asyncio.",
        ),
        (client.pipeline(), "Pass the client that it was made from."),
        (
            redis.Sentinel([("localhost", 1)]),
            "redis.sentinel.Sentinel. Pass what its 'master_for()' gives.",
        ),
        (
            client.connection_pool,
            "ConnectionPool. Pass redis.Redis(connection_pool=…).",
        ),
    ):
        for check in (RedisBackend.check_client, RedisBackend):
            with pytest.raises(TypeError) as info:
                check(wrong)
            assert str(info.value).startswith("Expected a client of redis-py (")
            assert str(info.value).endswith(ending)
            assert "secret" not in str(info.value)


@pytest.mark.parametrize("driver", [redis.Redis, valkey.Valkey])
def test_a_client_that_decodes_is_refused(driver: t.Any) -> None:
    with pytest.raises(ConfigurationError) as info:
        RedisBackend(driver(decode_responses=True))
    assert str(info.value) == (
        "The client decodes what it reads ('decode_responses'), which records do not"
        " survive. Make one without it for the sessions."
    )


def test_valkey_py_is_enough(valkey_server: ValkeyServer) -> None:
    script = f"""if True:
        import sys, time
        sys.modules["redis"] = None
        import valkey
        from flask_serversession.backends.redis import RedisBackend
        from flask_serversession.record import Record
        backend = RedisBackend(valkey.Valkey.from_url({valkey_server.url!r}))
        record = Record(b"x", 1, 0, 0, time.time() + 60)
        assert backend.create("valkey-py", record)
        assert backend.load("valkey-py") == record
        assert backend.delete("valkey-py")
        try:
            RedisBackend.from_url({valkey_server.url!r})
        except ImportError:
            print("fine")
    """
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output == "fine\n"


def test_no_driver_is_imported_before_it_is_needed() -> None:
    script = """if True:
        import sys
        from flask_serversession.backends.redis import RedisBackend
        assert not {"redis", "valkey"} & set(sys.modules)
        try:
            RedisBackend.check_client(None)
        except TypeError:
            assert not {"redis", "valkey"} & set(sys.modules)
            print("fine")
    """
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output == "fine\n"


# -- URLs


@pytest.mark.parametrize(
    ("url", "where", "expected"),
    [
        ("redis://", "localhost:6379", {"socket_timeout": 2.0}),
        (
            "redis://user:p%40ss@example.com:7000/3?socket_timeout=0.5",
            "example.com:7000",
            {
                "username": "user",
                "password": "p@ss",
                "db": 3,
                "socket_timeout": 0.5,
                "socket_connect_timeout": 2.0,
            },
        ),
        ("unix:///run/redis.sock?db=4", "/run/redis.sock", {"db": 4}),
        ("rediss://example.com", "example.com:6379", {"socket_timeout": 2.0}),
        (
            "redis+sentinel://user:pass@a:1,b/mymaster/5?socket_timeout=1"
            "&sentinel_password=other",
            "mymaster",
            {"db": 5, "password": "pass", "username": "user", "socket_timeout": 1.0},
        ),
    ],
)
def test_a_url_makes_a_client(url: str, where: str, expected: t.Any) -> None:
    backend = RedisBackend.from_url(url)
    options = backend._server.connect().connection_pool.connection_kwargs
    assert expected.items() <= options.items()
    assert repr(backend) == f"<RedisBackend {where!r}>"
    if url.startswith("rediss"):
        assert options.get("connection_class") or issubclass(
            backend._server.connect().connection_pool.connection_class,
            redis.SSLConnection,
        )


def test_sentinels_have_credentials_and_timeouts_of_their_own() -> None:
    backend = RedisBackend.from_url(
        "rediss+sentinel://:pass@a:1,b,[::1]:3/mymaster?sentinel_password=other"
        "&sentinel_username=me&ssl_ca_certs=/ca.pem"
    )
    pool = backend._server.connect().connection_pool
    assert issubclass(pool.connection_class, redis.SSLConnection)
    options = [
        sentinel.connection_pool.connection_kwargs
        for sentinel in pool.sentinel_manager.sentinels
    ]
    assert [(o["host"], o["port"]) for o in options] == [
        ("a", 1),
        ("b", 26379),
        ("::1", 3),
    ]
    for option in options:
        assert option["password"] == "other"
        assert option["username"] == "me"
        assert option["ssl_ca_certs"] == "/ca.pem"
        assert option["socket_timeout"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:6379", "begins with none of 'redis://', "),
        ("http://secret@localhost", "begins with none of 'redis://', "),
        ("redis://:secret@localhost/abc", "has something else than a database's"),
        ("redis://:secret@localhost:port", "cannot be used: look at its port"),
        ("redis://localhost?socket_timeout=secret", "wrong value for 'socket_timeout'"),
        ("redis://localhost?socket_timout=1", "has a parameter 'socket_timout', which"),
        ("redis+sentinel://:secret@localhost:1", "has no '/service-name'"),
        ("redis+sentinel://:secret@localhost:1/", "has no '/service-name'"),
        ("redis+sentinel://localhost/m/secret", "has no '/service-name'"),
        ("redis+sentinel://:secret@a:b/m", "does not list hosts as"),
        ("redis+sentinel:///m", "does not list hosts as"),
        ("redis+sentinel://a/m?socket_timout=1", "has a parameter 'socket_timout'"),
        ("redis+cluster://:secret@a,,b", "does not list hosts as"),
        ("redis+cluster://a/1", "names a database, which a Cluster does not have"),
        ("redis+cluster://a?socket_timout=1", "has a parameter 'socket_timout'"),
        ("redis+cluster://a?decode_responses=1", "has 'decode_responses'"),
    ],
)
def test_a_wrong_url_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as info:
        RedisBackend.from_url(url)
    assert info.value.option == "SESSION_REDIS_URL"
    assert str(info.value).startswith("The URL of the Redis server ")
    assert problem in str(info.value)
    assert "secret" not in str(info.value)
    assert "secret" not in repr(info.value.__cause__)


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel"])
def test_a_url_that_asks_for_text_is_refused(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="decodes what it reads"):
        RedisBackend.from_url(f"{scheme}://localhost/0?decode_responses=True")


# -- servers that fail


@pytest.fixture
def own_server() -> cabc.Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def own_backend(own_server: ValkeyServer) -> cabc.Iterator[RedisBackend]:
    backend = RedisBackend.from_url(own_server.url)
    yield backend
    backend.close()


def get_operations(
    backend: RedisBackend, key: str = "key"
) -> dict[str, cabc.Callable[[], object]]:
    return {
        "load": lambda: backend.load(key),
        "create": lambda: backend.create(f"{key}-new", make_record()),
        "replace": lambda: backend.replace(key, make_record(), 1),
        "touch": lambda: backend.touch(key, 1, time.time() + 900),
        "delete": lambda: backend.delete(key),
        "load_many": lambda: backend.load_many([key]),
        "keys_of_user": lambda: backend.keys_of_user("zoë"),
        "count": backend.count,
        "iterate": lambda: list(backend.iterate()),
    }


def fail(backend: RedisBackend, operation: str, key: str = "key") -> str:
    """Use a backend whose server fails; give the message."""
    with pytest.raises(BackendUnavailableError) as info:
        get_operations(backend, key)[operation]()
    assert info.value.backend == "redis"
    assert info.value.operation == operation
    assert info.value.__cause__ is not None
    return str(info.value)


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_server_that_hangs_is_waited_for_two_seconds_and_not_four(
    own_server: ValkeyServer, own_backend: RedisBackend, is_connected: bool
) -> None:
    if is_connected:
        own_backend.create("key", make_record())
    with own_server.paused():
        for operation in ("load", "replace"):
            started = time.monotonic()
            message = fail(own_backend, operation)
            assert 1.9 < time.monotonic() - started < 3.8
            assert message == (
                f"The Redis backend at '{own_server.address}' did not answer"
                f" '{operation}' within 2 seconds."
            )
    # What the server answered late is nobody's.
    assert own_backend.create("other", make_record(b"other"))
    loaded = own_backend.load("other")
    assert loaded is not None
    assert loaded.data == b"other"


def test_the_urls_timeout_counts(own_server: ValkeyServer) -> None:
    backend = RedisBackend.from_url(f"{own_server.url}?socket_timeout=0.3")
    with own_server.paused():
        started = time.monotonic()
        assert fail(backend, "load").endswith("within 0.3 seconds.")
        assert time.monotonic() - started < 1.9
    backend.close()


@pytest.mark.parametrize("operation", list(get_operations(t.cast(t.Any, RedisBackend))))
def test_a_dead_server_is_unavailable_at_once(operation: str) -> None:
    port = find_free_port()
    backend = RedisBackend.from_url(f"redis://:secret@127.0.0.1:{port}")
    started = time.monotonic()
    assert fail(backend, operation) == (
        f"The Redis backend at '127.0.0.1:{port}' cannot be reached for '{operation}':"
        " Connection refused."
    )
    assert time.monotonic() - started < 1.9


def test_a_server_that_was_killed_and_started_again_heals() -> None:
    with ValkeyServer(persistent=True) as server:
        backend = RedisBackend.from_url(server.url)
        record = make_record()
        backend.create("key", record)
        for stop in (server.kill, server.stop):
            stop()
            fail(backend, "load")
            server.start()
            assert backend.load("key") == record
        backend.close()


def test_connections_that_died_in_the_pool_do_not_show() -> None:
    with ValkeyServer(persistent=True) as server:
        backend = RedisBackend.from_url(server.url)
        backend.create("key", make_record())
        threads = [
            threading.Thread(target=lambda: [backend.load("key") for _ in range(50)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        version = 1
        for _ in range(2):
            server.restart()
            version += 1
            assert backend.replace("key", make_record(), version - 1) == Replaced(
                version
            )
            assert backend.load("key") is not None
        backend.close()


def test_a_connection_that_the_server_closes_does_not_show(
    own_server: ValkeyServer, own_backend: RedisBackend
) -> None:
    own_backend.create("key", make_record())
    with redis.Redis.from_url(own_server.url, protocol=2) as client:
        for _ in range(3):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert own_backend.load("key") is not None
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert own_backend.create(uuid.uuid4().hex, make_record(user="ada"))
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert own_backend.load_many(["key"])


def test_a_limit_of_connections_is_kept(server: ValkeyServer, prefix: str) -> None:
    backend = RedisBackend.from_url(f"{server.url}?max_connections=1", prefix=prefix)
    backend.count()
    key = key_of("one", prefix)
    for _ in range(3):
        assert backend.load(key) is None
    client = backend._server.connect()
    client.connection_pool.connection_kwargs["socket_timeout"] = 0.05
    taken = client.connection_pool.get_connection()
    with pytest.raises(BackendUnavailableError) as caught:
        backend.load(key)
    assert str(caught.value).endswith(
        " has no free connection for 'load' in its pool, which allows 1"
        " ('max_connections' of the URL)."
    )
    client.connection_pool.release(taken)
    assert backend.load(key) is None


def test_a_connection_that_an_interruption_has_cost_is_not_missed(
    server: ValkeyServer, prefix: str
) -> None:
    backend = RedisBackend.from_url(f"{server.url}?max_connections=2", prefix=prefix)
    key = key_of("one", prefix)
    for _ in range(5):
        # A handler of a signal that raises before there is somebody to give it back.
        backend._server.connect().connection_pool.get_connection()
        gc.collect()
        assert backend.load(key) is None


def test_who_says_how_to_retry_is_obeyed() -> None:
    tries: list[Exception] = []

    class Retry(redis.retry.Retry):
        def call_with_retry(
            self,
            do: t.Callable[[], t.Any],
            fail: t.Callable[..., t.Any],
            *args: t.Any,
            **kwargs: t.Any,
        ) -> t.Any:
            def count(error: Exception, *more: t.Any) -> None:
                tries.append(error)
                fail(error, *more)

            return super().call_with_retry(do, count, *args, **kwargs)

    retry = Retry(redis.backoff.NoBackoff(), 2)
    url = f"redis://127.0.0.1:{find_free_port()}"
    backend = RedisBackend.from_url(url, retry=retry)
    assert "cannot be reached for 'load'" in fail(backend, "load")
    assert len(tries) == 3
    backend = RedisBackend.from_url(url, retry_on_error=[redis.ConnectionError])
    assert "cannot be reached for 'load'" in fail(backend, "load")


class InterruptedForTest(Exception):
    """What Celery's soft time limit raises in the handler of a signal."""


OPERATIONS: dict[str, cabc.Callable[[RedisBackend, str], object]] = {
    "load": lambda backend, key: backend.load(key),
    "create": lambda backend, key: backend.create(key, make_record(user="ada")),
    "replace": lambda backend, key: backend.replace(key, make_record(b"new"), 1),
    "load_many": lambda backend, key: backend.load_many([key]),
    "keys_of_user": lambda backend, key: backend.keys_of_user("ada"),
    "iterate": lambda backend, key: [*backend.iterate()],
    "count": lambda backend, key: backend.count(),
    "server_version": lambda backend, key: backend.server_version(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_interrupted_before_its_answer_leaves_none_to_others(
    server: ValkeyServer,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    backend = RedisBackend.from_url(server.url, prefix=prefix)
    mine, other = key_of("mine", prefix), key_of("other", prefix)
    backend.create(mine, make_record(b"mine", user="ada"))
    backend.create(other, make_record(b"other"))
    pool = backend._server.connect().connection_pool
    connection = pool.get_connection()
    pool.release(connection)
    with monkeypatch.context() as patch:

        def interrupt(*_: object, **__: object) -> t.NoReturn:
            # Not before the answer is there: redis-py's own pool would look for it.
            assert connection.can_read(timeout=5)
            raise InterruptedForTest

        patch.setattr(type(connection), "read_response", interrupt)
        with pytest.raises(InterruptedForTest):
            OPERATIONS[operation](backend, mine)
    for _ in range(3):
        loaded = backend.load(other)
        assert loaded is not None
        assert loaded.data == b"other"


def test_no_thread_of_a_forked_child_takes_a_connection_of_the_parents(
    server: ValkeyServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = RedisBackend.from_url(server.url, prefix=prefix)
    key = key_of("one", prefix)
    backend.load(key)
    pool = backend._server.connect().connection_pool
    parents = pool.get_connection()
    pool.release(parents)
    taken = []
    reset = redis.ConnectionPool.reset

    def reset_and_be_overtaken(pool: t.Any) -> None:
        reset(pool)
        # From now on other threads do not wait for the one that resets.
        taken.append(pool.get_connection())

    monkeypatch.setattr(redis.ConnectionPool, "reset", reset_and_be_overtaken)
    pool.pid = 0  # as it looks to a child
    backend.load(key)
    assert len(taken) == 1
    assert taken[0] is not parents


@pytest.mark.parametrize("driver", [redis.Redis, valkey.Valkey])
def test_a_clients_pool_that_is_used_up_is_named(
    server: ValkeyServer, prefix: str, driver: t.Any
) -> None:
    client = driver.from_url(server.url, max_connections=1)
    backend = RedisBackend(client, prefix=prefix)
    with client.pubsub() as subscription:
        subscription.subscribe("news")  # for as long as it lasts, on a connection
        with pytest.raises(BackendUnavailableError) as caught:
            backend.load(key_of("one", prefix))
        assert "which allows 1 ('max_connections' of the client)" in str(caught.value)
    assert backend.load(key_of("one", prefix)) is None
    client.close()


def test_a_full_server_lets_visitors_log_out(
    own_server: ValkeyServer, own_backend: RedisBackend
) -> None:
    own_backend.create("key", make_record(b"x" * 10_000))
    own_backend.create("last", make_record())
    with redis.Redis.from_url(own_server.url, protocol=2) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        assert own_backend.load("key") is not None
        for operation in ("create", "replace", "touch"):
            assert fail(own_backend, operation) == (
                f"The Redis backend at '{own_server.address}' is full and refused"
                f" '{operation}'."
            )
        assert own_backend.replace("last", make_record(lives=-1), 1) == Replaced(2)
        # Also where the script has to be handed over first.
        client.script_flush()
        assert own_backend.delete("key") is True
        assert own_backend.load("key") is None
        client.config_set("maxmemory", "0")
    assert own_backend.create("key", make_record()) is True


@pytest.mark.parametrize("kind", [ValkeyServer, RedisServer])
def test_the_commands_that_the_documentation_lists_are_enough(
    kind: type[ValkeyServer], run_server: t.Any
) -> None:
    with run_server(kind) as own_server:
        check_documented_rights(own_server)


def check_documented_rights(own_server: ValkeyServer) -> None:
    page = (Path(__file__).parents[2] / "docs/backends/redis.rst").read_text("utf-8")
    rights = page.partition("ACL SETUSER")[2].partition("For a Cluster")[0]
    names = re.findall(r"\+([a-z]+)", rights)
    assert len(names) > 15
    with redis.Redis.from_url(own_server.url) as admin:
        rules = [f"+{name}" for name in names]
        admin.execute_command(
            "ACL", "SETUSER", "few", "on", ">p", "~*", "-@all", *rules
        )
    backend = RedisBackend.from_url(f"redis://few:p@{own_server.address}", prefix="")
    backend.create("key", make_record(user="zo\u00eb"))
    for operation in get_operations(backend).values():
        operation()
    # Members that are gone are marked, and removed.
    backend.create("gone", make_record(user="ada"))
    backend.delete("gone")
    assert backend.keys_of_user("ada") == []
    with redis.Redis.from_url(own_server.url) as admin:
        denied = [e for e in admin.acl_log() if e["username"] == "few"]
    # Drivers introduce themselves, and do without if they may not.
    assert {entry["object"] for entry in denied} <= {"client|setinfo", "select"}
    backend.close()


def test_a_client_side_cache_is_refused(server: ValkeyServer) -> None:
    cache = redis.cache.CacheConfig()
    client = redis.Redis.from_url(server.url, protocol=3, cache_config=cache)
    with pytest.raises(ConfigurationError, match="has a client-side cache"):
        RedisBackend(client)
    client.close()


def test_a_read_only_replica_can_be_read(own_server: ValkeyServer) -> None:
    options = ("--replicaof", f"{own_server.host} {own_server.port}")
    primary = RedisBackend.from_url(own_server.url)
    primary.create("gone", make_record(user="ada"))
    primary.delete("gone")
    primary.create("listed", make_record(user="ada"))
    primary.create("key", make_record())
    with ValkeyServer(*options) as replica:
        backend = RedisBackend.from_url(replica.url)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(BackendUnavailableError):
                if backend.load("key") is not None:
                    break
            time.sleep(0.05)
        assert backend.load("key") is not None
        assert backend.count() == 2
        for operation in ("create", "replace", "touch", "delete"):
            assert fail(backend, operation) == (
                f"The Redis backend at '{replica.address}' is read-only and refused"
                f" '{operation}'."
            )
        with pytest.raises(BackendUnavailableError, match="is read-only"):
            backend.create("new", make_record(user="ada"))
        assert backend.keys_of_user("ada") == ["listed"]
        backend.close()
    primary.close()


@pytest.mark.parametrize(
    ("credentials", "problem"),
    [
        ("", "refused the log-in at 'load': Authentication required."),
        (
            ":wrong-secret@",
            "refused the log-in at 'load': invalid username-password pair or user is"
            " disabled.",
        ),
        (
            "me:wrong-secret@",
            "refused the log-in at 'load': invalid username-password pair or user is"
            " disabled.",
        ),
        (
            "guest:guest-secret@",
            "to this user: User guest has no permissions to run the 'get' command.",
        ),
    ],
)
def test_a_wrong_password_is_not_repeated(credentials: str, problem: str) -> None:
    with ValkeyServer("--requirepass", "right-secret") as server:
        url = f"redis://:right-secret@{server.address}"
        backend = RedisBackend.from_url(url)
        assert backend.create("key", make_record())
        backend._server.connect().execute_command(
            "ACL", "SETUSER", "guest", "on", ">guest-secret", "~*", "+ping"
        )
        backend.close()
        backend = RedisBackend.from_url(f"redis://{credentials}{server.address}")
        message = fail(backend, "load")
        backend.close()
    assert problem in message
    assert "secret" not in message
    assert "secret" not in repr(backend)


def test_a_password_for_a_server_without_one_is_told_from_a_wrong_one(
    own_server: ValkeyServer,
) -> None:
    backend = RedisBackend.from_url(f"redis://:needless@{own_server.address}")
    message = fail(backend, "load")
    backend.close()
    assert message == (
        f"The Redis backend at '{own_server.address}' refused the log-in at 'load':"
        " AUTH <password> called without any password configured for the default user."
    )


def test_a_database_that_there_is_not_is_refused_in_the_servers_words(
    own_server: ValkeyServer,
) -> None:
    backend = RedisBackend.from_url(f"redis://{own_server.address}/99")
    for operation in ("load", "create", "delete"):
        with pytest.raises(BackendUnavailableError) as info:
            get_operations(backend)[operation]()
        assert info.value.refused
        assert str(info.value) == (
            f"The Redis backend at '{own_server.address}' refused '{operation}': DB"
            " index is out of range."
        )
    backend.close()


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://nohost.invalid:1", "cannot be reached for 'load'"),
        (
            "redis+cluster://nohost.invalid:1",
            "is a Cluster that cannot be reached for 'load'",
        ),
        ("redis+sentinel://nohost.invalid:1/m", "for 'load', says Sentinel"),
    ],
)
def test_an_unknown_host_is_told_from_a_server_that_does_not_run(
    url: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_none(*args: object, **kwargs: object) -> t.NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", find_none)
    backend = RedisBackend.from_url(url)
    message = fail(backend, "load")
    backend.close()
    assert where in message
    if "sentinel" not in url:  # of which redis-py 8 says no more than "network"
        assert message.endswith(": Name or service not known.")


def test_a_server_that_is_too_old_is_an_error_that_says_so(
    own_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis.from_url(own_server.url)
    backend = RedisBackend(client)

    def refuse(*args: object) -> t.NoReturn:
        raise ResponseError(f"ERR syntax error near {args!r}")

    monkeypatch.setattr(client, "execute_command", refuse)
    with pytest.raises(BackendUnavailableError) as info:
        backend.create("key", make_record(b"a value"))
    assert info.value.refused
    assert str(info.value) == (
        f"The Redis backend at '{own_server.address}' refused 'create': syntax error."
    )
    client.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("MISCONF Redis is configured to save", "cannot write to its disk"),
        ("NOREPLICAS Not enough good replicas", "has too few replicas"),
        ("BUSY Redis is busy running a script", "is busy with a script"),
        (
            "ERR Error running script (call to f_0): @user_script:1:"
            " @user_script: 1: -OOM command not allowed",
            "is full",
        ),
        (
            "ERR Error running script (call to f_0): @user_script:1:"
            " @user_script: 1: -READONLY You can't write against a",
            "is read-only",
        ),
    ],
)
def test_refusals_without_a_class_of_their_own_are_understood(
    monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    client = redis.Redis()
    backend = RedisBackend(client)

    def refuse(*_: object) -> t.NoReturn:
        raise ResponseError(text)

    monkeypatch.setattr(client, "execute_command", refuse)
    assert fail(backend, "replace") == (
        f"The Redis backend at 'localhost:6379' {problem} and refused 'replace'."
    )


def test_a_bug_is_no_failure_of_the_server(backend: RedisBackend, key: str) -> None:
    with pytest.raises((TypeError, AttributeError)):
        backend.create(key, t.cast(t.Any, "no record"))


# -- answers that get lost


class LossyProxy:
    """Forwards to a server, and cuts the connection instead of the next answer."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        #: How many answers to swallow, of requests that contain this.
        self.losses = 0
        self.marker = b""
        #: How many requests there were, of one or more commands.
        self.requests = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(
                    target=self._forward, args=(client,), daemon=True
                ).start()

    def _forward(self, client: socket.socket) -> None:
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection((self.server.host, self.server.port)) as upstream,
        ):
            while request := client.recv(65_536):
                self.requests += 1
                upstream.sendall(request)
                answer = upstream.recv(65_536)
                if self.losses and self.marker in request:
                    self.losses -= 1
                    return
                client.sendall(answer)

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def proxy(own_server: ValkeyServer) -> cabc.Iterator[LossyProxy]:
    proxy = LossyProxy(own_server)
    yield proxy
    proxy.close()


@pytest.fixture(params=["from_url", "redis-py", "valkey-py"])
def lossy_backend(
    request: pytest.FixtureRequest, proxy: LossyProxy
) -> cabc.Iterator[RedisBackend]:
    url = f"redis://127.0.0.1:{proxy.port}"
    if request.param == "from_url":
        backend = RedisBackend.from_url(url)
        yield backend
        backend.close()
        return
    if request.param == "redis-py":
        client: t.Any = redis.Redis.from_url(url, protocol=2, **retrying(redis))
    else:
        client = valkey.Valkey.from_url(url, **retrying(valkey))
    yield RedisBackend(client)
    client.close()


def retrying(driver: t.Any) -> dict[str, t.Any]:
    return {
        "retry": driver.retry.Retry(driver.backoff.NoBackoff(), 3),
        "retry_on_error": [driver.ConnectionError],
    }


@pytest.fixture(params=["from_url", "redis-py", "blocking", "valkey-py", "blocking v."])
def switching_backend(
    request: pytest.FixtureRequest, proxy: LossyProxy
) -> cabc.Iterator[RedisBackend]:
    url = f"redis://127.0.0.1:{proxy.port}"
    if request.param == "from_url":
        backend = RedisBackend.from_url(url)
        yield backend
        backend.close()
        return
    driver: t.Any = valkey if "v" in request.param else redis
    if "blocking" in request.param:
        pool = driver.BlockingConnectionPool.from_url(url, protocol=2)
        name = "Valkey" if driver is valkey else "Redis"
        client: t.Any = getattr(driver, name)(connection_pool=pool)
    else:
        client = driver.from_url(url, protocol=2)
    yield RedisBackend(client)
    client.close()
    client.connection_pool.disconnect()


def switch_over(proxy: LossyProxy, successor: ValkeyServer) -> None:
    """Make the primary behind the proxy a replica of its own replica."""
    before = proxy.server
    with (
        redis.Redis.from_url(before.url, socket_timeout=60) as old,
        redis.Redis.from_url(successor.url, socket_timeout=60) as new,
    ):
        # WAIT looks no further than the last write of the connection that asks.
        old.set("switch over", 1)
        assert old.execute_command("WAIT", 1, 10_000) == 1
        new.replicaof("NO", "ONE")
        old.replicaof(successor.host, successor.port)
        proxy.server = successor
        new.execute_command("WAIT", 1, 10_000)


def test_a_switch_over_costs_nobody_a_request(
    own_server: ValkeyServer, proxy: LossyProxy, switching_backend: RedisBackend
) -> None:
    backend = switching_backend
    options = ("--replicaof", f"{own_server.host} {own_server.port}")
    with ValkeyServer(*options) as other:
        servers = [own_server, other]
        for server in servers:
            with redis.Redis.from_url(server.url) as client:
                client.config_set("repl-diskless-sync-delay", 0)
        pool = backend._server.connect().connection_pool
        # Several connections, all of which lead to the old primary.
        named = ("GET",) if type(pool).__module__.startswith("valkey") else ()
        taken = [pool.get_connection(*named) for _ in range(3)]
        for connection in taken:
            connection.connect()
            pool.release(connection)
        writes: dict[str, cabc.Callable[[], object]] = {
            "create": lambda: backend.create("key", make_record()) is True,
            "with a user": lambda: backend.create("ada's", make_record(user="ada")),
            "replace": lambda: backend.replace("key", make_record(), 1) == Replaced(2),
            "touch": lambda: backend.touch("key", 1, time.time() + 900),
            "delete": lambda: backend.delete("key"),
        }
        backend.load("key")
        for write in writes.values():
            switch_over(proxy, servers[1])
            servers.reverse()
            assert write() is True
        assert backend.keys_of_user("ada") == ["ada's"]


def test_a_write_whose_answer_was_lost_is_recognized(
    proxy: LossyProxy, lossy_backend: RedisBackend
) -> None:
    proxy.marker = b"\r\nSET\r\n"
    for key, user in (("with a user", "zoë"), ("key", None)):
        proxy.losses = 1
        assert lossy_backend.create(key, make_record(user=user)) is True
        assert proxy.losses == 0
    assert lossy_backend.keys_of_user("zoë") == ["with a user"]
    assert lossy_backend.replace("key", make_record(), 1) == Replaced(2)
    proxy.marker = b"EVAL"
    for version, data in ((2, b"data"), (3, TOMBSTONE_DATA)):
        proxy.losses = 1
        record = make_record(data)
        assert lossy_backend.replace("key", record, version) == Replaced(version + 1)
        assert proxy.losses == 0
        loaded = lossy_backend.load("key")
        assert loaded == dataclasses.replace(record, version=version + 1)


def test_round_trips(proxy: LossyProxy, lossy_backend: RedisBackend) -> None:
    backend = lossy_backend

    def count(call: cabc.Callable[[], object]) -> int:
        before = proxy.requests
        assert call()
        return proxy.requests - before

    def use(user: str | None) -> list[int]:
        now = time.time()
        record = make_record(user=user)
        later = dataclasses.replace(record, touched_at=now + 400, expires_at=now + 1000)
        last = dataclasses.replace(record, touched_at=now + 800, expires_at=now + 1400)
        return [
            count(lambda: backend.create("key", record)),
            count(lambda: backend.load("key")),
            count(lambda: backend.touch("key", now + 200, now + 800)),
            count(lambda: backend.touch("key", later.touched_at, later.expires_at)),
            count(lambda: backend.replace("key", later, 1) == Replaced(2)),
            count(lambda: backend.replace("key", last, 2) == Replaced(3)),
            count(lambda: backend.touch("key", last.touched_at, last.expires_at)),
            count(lambda: backend.delete("key")),
        ]

    for user in (None, "zoë"):
        # Hands over the scripts.
        use(user)
    assert use(None) == [1] * 8
    assert use("zoë") == [1] * 8
    for number in range(90):
        backend.create(f"{number}", make_record(user="ada"))
    assert count(lambda: len(backend.keys_of_user("ada")) == 90) == 2
    keys = [str(number) for number in range(90)]
    assert count(lambda: len(backend.load_many(keys)) == 90) == 1


def test_an_equal_write_of_somebody_else_is_a_conflict(backend: RedisBackend) -> None:
    key = key_of("id", backend._prefix)
    tombstone = make_record(TOMBSTONE_DATA, version=2)
    backend.create(key, make_record())
    assert backend.replace(key, tombstone, 1) == Replaced(2)
    assert backend.replace(key, tombstone, 1) == Conflict(tombstone)
    assert backend.create(key, tombstone) is False


# -- Sentinel and Cluster


def test_sentinel_finds_the_primary_and_follows_a_fail_over() -> None:
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(ValkeyServer("--repl-diskless-sync-delay", "0"))
        replica = stack.enter_context(
            ValkeyServer("--replicaof", f"{primary.host} {primary.port}")
        )
        with redis.Redis.from_url(primary.url) as client:
            client.set("synchronized", 1)
            assert client.wait(1, 20_000) == 1
        sentinel = stack.enter_context(ValkeySentinel(primary))
        dead = f"127.0.0.1:{find_free_port()}"
        url = sentinel.url.replace(sentinel.address, f"{dead},{sentinel.address}")
        backend = RedisBackend.from_url(url)
        stack.callback(backend.close)
        assert backend.create("key", make_record())
        assert repr(backend) == "<RedisBackend 'mymaster'>"
        with redis.Redis.from_url(primary.url) as client:
            assert client.wait(1, 20_000) == 1
        # Sentinel asks the primary for its replicas every ten seconds.
        with redis.Redis(port=sentinel.port) as client:
            wait_until(lambda: bool(client.sentinel_slaves("mymaster")))
        primary.kill()
        wait_until(lambda: is_replaced(backend))
        assert (
            backend._server.connect().connection_pool.master_address[1] == replica.port
        )
        assert backend.load("key") is not None


def is_replaced(backend: RedisBackend) -> bool:
    try:
        return backend.replace("key", make_record(), 1) == Replaced(2)
    except BackendUnavailableError:
        return False


def wait_until(condition: cabc.Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_dead_or_hanging_sentinels_are_not_waited_for_long() -> None:
    backend = RedisBackend.from_url(
        f"redis+sentinel://:secret@127.0.0.1:{find_free_port()}/mymaster"
    )
    message = fail(backend, "load")
    assert message.startswith(
        "The Redis backend at 'mymaster' has no primary for 'load', says Sentinel: "
    )
    assert "Connection" in message  # more, where redis-py says more
    assert "secret" not in message
    with ValkeyServer() as one, ValkeyServer() as two, one.paused(), two.paused():
        backend = RedisBackend.from_url(
            f"redis+sentinel://{one.address},{two.address}/mymaster"
        )
        started = time.monotonic()
        fail(backend, "load")
        assert 1.5 < time.monotonic() - started < 3.8


def test_an_interrupted_answer_is_not_the_next_commands() -> None:
    class Interrupt(BaseException):
        pass

    with ValkeyServer() as server:
        sentinel = redis.Sentinel([(server.host, server.port)])
        sentinel.discover_master = lambda _: (server.host, server.port)  # type: ignore[method-assign]
        backend = RedisBackend.from_url(f"redis+sentinel://{server.address}/mymaster")
        pool = backend._server.connect().connection_pool
        pool.proxy.sentinel_manager = sentinel
        backend.create("one", make_record(b"one"))
        backend.create("two", make_record(b"two"))
        connection = pool._available_connections[0]
        parser = connection._parser
        read = parser.read_response

        def interrupt(*_: object, **__: object) -> t.NoReturn:
            parser.read_response = read
            raise Interrupt

        parser.read_response = interrupt
        with pytest.raises(Interrupt):
            backend.load("one")
        loaded = backend.load("two")
        assert loaded is not None
        assert loaded.data == b"two"
        backend.close()


def test_a_cluster_is_not_needed_before_the_first_request() -> None:
    backend = RedisBackend.from_url(
        f"redis+cluster://:secret@127.0.0.1:{find_free_port()}"
    )
    assert "secret" not in repr(backend)
    assert "is a Cluster that cannot be reached for 'load'" in fail(backend, "load")


def test_every_node_of_a_cluster_is_used(cluster: ValkeyCluster, prefix: str) -> None:
    backend = RedisBackend.from_url(cluster.url, prefix=prefix)
    keys = {key_of(str(number), prefix) for number in range(300)}
    for key in keys:
        assert backend.create(key, make_record())
        assert backend.touch(key, 1, time.time() + 60)
        assert backend.replace(key, make_record(), 1) == Replaced(2)
    for node in cluster.nodes:
        with redis.Redis.from_url(node.url) as client:
            assert t.cast(int, client.dbsize()) > 50
    assert backend.count() == 300
    assert {key for key, _ in backend.iterate()} == keys
    for key in keys:
        assert backend.delete(key)
    assert backend.count() == 0
    backend.close()


@pytest.mark.parametrize("driver", ["redis", "valkey"])
def test_a_cluster_client_of_the_application_is_taken(
    cluster: ValkeyCluster, prefix: str, driver: str
) -> None:
    node = cluster.nodes[0]
    if driver == "redis":
        client: t.Any = redis.RedisCluster(node.host, node.port)
    else:
        client = valkey.ValkeyCluster(node.host, node.port)
    backend = RedisBackend(client, prefix=prefix)
    keys = {key_of(str(number), prefix) for number in range(30)}
    for key in keys:
        assert backend.create(key, make_record())
        assert isinstance(backend.replace(key, make_record(), 7), Conflict)
    assert {key for key, _ in backend.iterate()} == keys
    assert backend.count() == 30
    for key in keys:
        assert backend.delete(key)
    client.close()


def test_a_cluster_node_that_hangs_is_waited_for_two_seconds_and_not_four(
    prefix: str,
) -> None:
    with ValkeyCluster() as cluster:
        backend = RedisBackend.from_url(cluster.url)
        keys = [f"{prefix}{number}" for number in range(50)]
        for key in keys:
            assert backend.create(key, make_record())
        with cluster.nodes[1].paused():
            waited: list[float] = []
            for key in keys[:10]:
                started = time.monotonic()
                with contextlib.suppress(BackendUnavailableError):
                    backend.load(key)
                waited.append(time.monotonic() - started)
                if waited[-1] > 1:
                    break
            assert 1.9 < max(waited) < 3.8
        wait_until(lambda: can_load(backend, keys))
        backend.close()


def can_load(backend: RedisBackend, keys: list[str]) -> bool:
    try:
        return all(backend.load(key) is not None for key in keys)
    except BackendUnavailableError:
        return False


def test_the_environment_is_not_consulted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "REDIS_URL", "redis://elsewhere")
    assert repr(RedisBackend.from_url("redis://here")) == "<RedisBackend 'here:6379'>"
