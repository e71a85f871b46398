"""The memory backend: the contract, its housekeeping, and a comparison with a dict."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import invariant
from hypothesis.stateful import rule

from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Capability
from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Gone
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.record import NO_META
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.testing import BackendContract
from flask_serversession.testing import FakeClock


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def backend(self, clock: FakeClock) -> Backend:
        return MemoryBackend(clock)


def make_record(
    clock: FakeClock, lives: float = 600, user: str | None = None
) -> Record:
    now = clock()
    return Record(b"data", 1, now, now, now + lives, user)


def size(backend: MemoryBackend) -> int:
    return len(backend._entries)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def memory(clock: FakeClock) -> MemoryBackend:
    return MemoryBackend(clock)


def test_it_has_every_capability() -> None:
    assert MemoryBackend.name == "memory"
    for capability in Capability:
        assert capability in MemoryBackend.capabilities


def test_it_runs_on_the_time_of_the_machine_by_default() -> None:
    backend = MemoryBackend()
    now = time.time()
    backend.create("live", Record(b"data", 1, now, now, now + 60))
    backend.create("expired", Record(b"data", 1, now, now, now - 60))
    assert backend.load("live") is not None
    assert backend.load("expired") is None


def test_instances_share_nothing(clock: FakeClock) -> None:
    one, two = MemoryBackend(clock), MemoryBackend(clock)
    one.create("key", make_record(clock))
    assert two.load("key") is None


@pytest.mark.parametrize("operation", ["create", "replace", "touch"])
def test_expired_records_go_away_as_it_works(
    memory: MemoryBackend, clock: FakeClock, operation: str
) -> None:
    for number in range(10):
        memory.create(str(number), make_record(clock, 10, user=str(number)))
    memory.create("live", make_record(clock))
    clock.advance(10)
    if operation == "create":
        memory.create("live", make_record(clock))
    elif operation == "replace":
        memory.replace("live", make_record(clock), 1)
    else:
        memory.touch("live", clock(), clock() + 600)
    assert size(memory) == 1
    assert not memory._keys_by_user


def test_no_single_operation_cleans_up_after_a_quiet_night(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    for number in range(1000):
        memory.create(str(number), make_record(clock, 10))
    clock.advance(10)
    memory.create("live", make_record(clock))
    assert 800 < size(memory) < 1000
    for _ in range(20):
        memory.touch("live", clock(), clock() + 600)
    assert size(memory) == 1


def test_no_single_operation_goes_through_all_that_lived_on(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    for number in range(1000):
        memory.create(str(number), make_record(clock, 10))
        memory.touch(str(number), clock(), clock() + 600)
    clock.advance(10)
    memory.create("live", make_record(clock))
    assert sum(due <= clock() for due, _ in memory._expiries) > 800
    for _ in range(20):
        memory.touch("live", clock(), clock() + 600)
    assert sum(due <= clock() for due, _ in memory._expiries) == 0
    assert memory.count() == 1001


def test_records_expire_in_their_order_whatever_came_and_went(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    for number in range(50):
        memory.create(str(number), make_record(clock, 100 - number))
    for _ in range(200):
        memory.create("short", make_record(clock, 1000))
        memory.delete("short")
    clock.advance(51)
    assert memory.prune(10) == 1
    assert size(memory) == 49


def test_versions_are_counted_of_records_without_meta(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    record = dataclasses.replace(make_record(clock), meta=NO_META)
    memory.create("key", record)
    assert memory.load("key") is record
    for version in (1, 2):
        assert memory.replace("key", record, version) == Replaced(version + 1)
        assert memory.load("key") == dataclasses.replace(record, version=version + 1)


def test_a_touch_adds_nothing_to_the_heap(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    memory.create("key", make_record(clock, 10))
    for _ in range(1000):
        clock.advance(1)
        assert memory.touch("key", clock(), clock() + 10)
    assert len(memory._expiries) == 1
    clock.advance(10)
    assert memory.prune(10) == 1
    assert memory._expiries == []


def test_records_that_are_shortened_again_and_again_do_not_grow_the_heap(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    now = clock()
    for number in range(100):
        memory.create(str(number), make_record(clock, 10_000))
    for step in range(100):
        for number in range(100):
            record = dataclasses.replace(
                make_record(clock), expires_at=now + 9000 - step
            )
            assert memory.replace(str(number), record, step + 1) == Replaced(step + 2)
        assert len(memory._expiries) <= 2 * 100
    clock.advance(9000 - 99)
    assert memory.prune(1000) == 100
    assert size(memory) == 0


def test_records_that_come_and_go_do_not_grow_the_heap(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    for number in range(10_000):
        key = str(number % 7)
        assert memory.create(key, make_record(clock, user=key))
        assert memory.delete(key)
        assert len(memory._expiries) <= 64
    assert size(memory) == 0
    assert not memory._keys_by_user


def test_a_key_used_again_is_not_removed_at_the_old_moment(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    memory.create("key", make_record(clock, 10))
    memory.delete("key")
    memory.create("key", make_record(clock, 20))
    clock.advance(10)
    assert memory.prune(10) == 0
    assert memory.load("key") is not None
    clock.advance(10)
    assert memory.prune(10) == 1


def test_prune_with_a_limit_of_zero_does_nothing(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    memory.create("key", make_record(clock, 10))
    clock.advance(10)
    assert memory.prune(0) == 0
    assert size(memory) == 1


def test_a_user_whose_sessions_went_to_another_leaves_nothing_behind(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    for user in ("one", "two", None, "three"):
        record = make_record(clock, user=user)
        if not memory.create("key", record):
            current = memory.load("key")
            assert current is not None
            memory.replace("key", record, current.version)
        assert list(memory._keys_by_user) == ([] if user is None else [user])


def test_records_that_keep_their_expiry_do_not_grow_the_heap(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    record = make_record(clock)
    memory.create("key", record)
    for version in range(1, 50):
        memory.replace("key", record, version)
        memory.touch("key", clock(), record.expires_at)
    assert len(memory._expiries) == 1


def test_a_touch_to_this_very_moment_ends_the_record(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    memory.create("key", make_record(clock))
    assert memory.touch("key", clock(), clock())
    assert memory.load("key") is None


def test_tombstones_are_not_listed_as_a_users(
    memory: MemoryBackend, clock: FakeClock
) -> None:
    record = make_record(clock, user="one")
    memory.create("key", record)
    memory.replace("key", dataclasses.replace(record, data=TOMBSTONE_DATA), 1)
    assert memory.keys_of_user("one") == []


KEYS = st.sampled_from(["a", "b", "c", "d"])
USERS = st.sampled_from([None, "", "one", "two"])
LIVES = st.integers(-3, 30)
VERSIONS = st.integers(0, 4)
DATA = st.sampled_from([TOMBSTONE_DATA, b"", b"x", b"y"])


class MemoryMachine(RuleBasedStateMachine):
    """Compares the backend with the simplest thing that could be right."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.backend = MemoryBackend(self.clock)
        self.model: dict[str, Record] = {}

    def find(self, key: str) -> Record | None:
        record = self.model.get(key)
        return record if record and record.expires_at > self.clock() else None

    def make(self, data: bytes, version: int, lives: int, user: str | None) -> Record:
        now = self.clock()
        return Record(data, version, now, now, now + lives, user)

    @rule(seconds=st.integers(0, 20))
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(key=KEYS, data=DATA, version=VERSIONS, lives=LIVES, user=USERS)
    def create(
        self, key: str, data: bytes, version: int, lives: int, user: str | None
    ) -> None:
        record = self.make(data, version, lives, user)
        is_free = self.find(key) is None
        assert self.backend.create(key, record) is is_free
        if is_free:
            self.model[key] = record

    @rule(key=KEYS, data=DATA, lives=LIVES, user=USERS, expected=VERSIONS)
    def replace(
        self, key: str, data: bytes, lives: int, user: str | None, expected: int
    ) -> None:
        record = self.make(data, 99, lives, user)
        current = self.find(key)
        result = self.backend.replace(key, record, expected)
        if current is None:
            assert result == Gone()
        elif current.version != expected:
            assert result == Conflict(current)
        else:
            assert result == Replaced(expected + 1)
            self.model[key] = dataclasses.replace(record, version=expected + 1)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        record = self.find(key)
        is_there = record is not None and not record.is_tombstone
        assert self.backend.delete(key) is is_there
        if is_there:
            del self.model[key]

    @rule(key=KEYS, lives=LIVES)
    def touch(self, key: str, lives: int) -> None:
        record = self.find(key)
        is_there = record is not None and not record.is_tombstone
        now = self.clock()
        assert self.backend.touch(key, now, now + lives) is is_there
        if is_there and record is not None:
            expires_at = now + lives
            if lives > 0:
                expires_at = max(expires_at, record.expires_at)
            self.model[key] = dataclasses.replace(
                record, touched_at=now, expires_at=expires_at
            )

    @rule(limit=st.integers(0, 3))
    def prune(self, limit: int) -> None:
        before = size(self.backend)
        pruned = self.backend.prune(limit)
        assert 0 <= pruned <= limit
        assert size(self.backend) == before - pruned

    @invariant()
    def agrees_with_the_model(self) -> None:
        live = {key: record for key in "abcd" if (record := self.find(key))}
        for key in "abcd":
            assert self.backend.load(key) == live.get(key)
        sessions = {k: r for k, r in live.items() if not r.is_tombstone}
        assert dict(self.backend.iterate()) == sessions
        assert self.backend.count() == len(sessions)
        for user in ("", "one", "two"):
            keys = [key for key, record in sessions.items() if record.user == user]
            assert sorted(self.backend.keys_of_user(user)) == sorted(keys)

    def teardown(self) -> None:
        self.clock.advance(1000)
        self.backend.prune(1000)
        assert self.backend._entries == {}
        assert self.backend._expiries == []
        assert self.backend._keys_by_user == {}


class TestAgainstADict(MemoryMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
