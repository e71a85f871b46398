"""The tools for tests: clocks, the counting backend, and what the contract catches."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import pytest

from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Capability
from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Gone
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import NotSupportedError
from flask_serversession.record import Record
from flask_serversession.testing import BackendContract
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock
from flask_serversession.testing import RealClock

pytest_plugins = ["pytester"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def counting(clock: FakeClock) -> CountingBackend:
    return CountingBackend(MemoryBackend(clock))


def make_record(clock: FakeClock, data: bytes = b"data", **fields: t.Any) -> Record:
    now = clock()
    return Record(data, 1, now, now, now + 600, **fields)


class TestContractThroughACountingBackend(BackendContract):
    @pytest.fixture
    def backend(self, clock: FakeClock) -> Backend:
        return CountingBackend(MemoryBackend(clock))

    @pytest.fixture
    def second_backend(self, backend: CountingBackend) -> Backend:
        return CountingBackend(backend.backend)

    @pytest.fixture
    def dead_backend(self, clock: FakeClock) -> Iterator[Backend]:
        backend = CountingBackend(MemoryBackend(clock))
        with backend.failing():
            yield backend


# -- clocks


def test_a_fake_clock_stands_still_until_it_is_advanced() -> None:
    clock = FakeClock()
    assert clock() == clock() == 4_102_444_800.0
    clock.advance(1.5)
    assert clock() == 4_102_444_801.5
    clock.advance(0)
    assert clock() == 4_102_444_801.5
    assert repr(clock) == "<FakeClock 4102444801.5>"


def test_a_fake_clock_starts_where_it_is_told_to() -> None:
    assert FakeClock(5.0)() == 5.0


def test_a_fake_clock_does_not_go_back() -> None:
    with pytest.raises(ValueError, match=r"^A clock does not go back\.$"):
        FakeClock().advance(-1)


def test_a_real_clock_waits() -> None:
    clock = RealClock()
    assert abs(clock() - time.time()) < 10
    before = time.monotonic()
    clock.advance(0.01)
    assert time.monotonic() - before >= 0.01


# -- CountingBackend


def test_it_counts_what_it_is_asked_for(
    counting: CountingBackend, clock: FakeClock
) -> None:
    now = clock()
    counting.create("key", make_record(clock, user="one"))
    assert counting.load("key") is not None
    assert counting.load("absent") is None
    assert counting.replace("key", make_record(clock), 1) == Replaced(2)
    assert counting.replace("absent", make_record(clock), 1) == Gone()
    assert counting.touch("key", now, now + 60) is True
    assert counting.load_many(["key"]) == {"key": counting.backend.load("key")}
    assert counting.keys_of_user("one") == []
    assert [key for key, _ in counting.iterate()] == ["key"]
    assert counting.count() == 1
    assert counting.delete("key") is True
    assert counting.prune(1) == 0
    assert counting.sweep(1) == 0
    counting.close()
    assert counting.calls == {
        "create": 1,
        "load": 2,
        "replace": 2,
        "touch": 1,
        "load_many": 1,
        "keys_of_user": 1,
        "iterate": 1,
        "count": 1,
        "delete": 1,
        "prune": 1,
        "sweep": 1,
        "close": 1,
    }
    assert counting.log[:4] == ["create", "load", "load", "replace"]
    counting.reset()
    assert counting.calls == {}
    assert counting.log == []


def test_it_counts_inside_a_with_block(counting: CountingBackend) -> None:
    counting.load("key")
    with counting.counting() as outer:
        counting.load("key")
        with counting.counting() as inner:
            counting.delete("key")
        with counting.counting() as nothing:
            pass
        counting.load("key")
    counting.load("key")
    assert outer == {"load": 2, "delete": 1}
    assert inner == {"delete": 1}
    assert nothing == {}
    assert counting.calls == {"load": 4, "delete": 1}


def test_it_stops_counting_when_the_block_raises(counting: CountingBackend) -> None:
    with pytest.raises(KeyError), counting.counting() as calls:
        raise KeyError
    counting.load("key")
    assert calls == {}


def test_it_counts_exactly_in_several_threads(counting: CountingBackend) -> None:
    def load() -> None:
        for _ in range(200):
            counting.load("key")

    threads = [threading.Thread(target=load) for _ in range(8)]
    with counting.counting() as calls:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert calls == counting.calls == {"load": 1600}
    assert len(counting.log) == 1600


def test_it_has_the_name_and_the_powers_of_the_backend_inside() -> None:
    class Small(MemoryBackend):
        name = "small"
        capabilities = Capability.EXPIRES
        count = Backend.count
        extra = "more"

    backend = CountingBackend(Small())
    assert backend.name == "small"
    assert backend.capabilities == Capability.EXPIRES
    assert backend.extra == "more"
    with pytest.raises(NotSupportedError, match=r"'small' backend .*'count'"):
        backend.count()
    with pytest.raises(AttributeError):
        _ = backend.absent
    assert CountingBackend.name == "custom"


def test_it_can_be_looked_at_before_it_is_initialized() -> None:
    empty = CountingBackend.__new__(CountingBackend)
    assert not hasattr(empty, "backend")
    with pytest.raises(AttributeError):
        _ = empty.absent


def test_a_before_hook_lets_another_request_come_in_between(
    counting: CountingBackend, clock: FakeClock
) -> None:
    counting.create("key", make_record(clock))

    def change() -> None:
        # Not called again for the replace inside it.
        assert counting.replace("key", make_record(clock, b"theirs"), 1) == Replaced(2)

    counting.before["replace"] = change
    counting.reset()
    result = counting.replace("key", make_record(clock, b"mine"), 1)
    assert isinstance(result, Conflict)
    assert result.current.data == b"theirs"
    assert counting.log == ["replace", "replace"]


def test_a_hook_can_remove_itself(counting: CountingBackend) -> None:
    called: list[str] = []

    def once() -> None:
        del counting.before["load"]
        called.append("load")

    counting.before["load"] = once
    counting.load("key")
    counting.load("key")
    assert called == ["load"]


def test_an_after_hook_runs_once_the_work_is_done(
    counting: CountingBackend, clock: FakeClock
) -> None:
    seen: list[Record | None] = []
    counting.after["create"] = lambda: seen.append(counting.load("key"))
    record = make_record(clock)
    assert counting.create("key", record) is True
    assert seen == [record]


def test_an_after_hook_can_lose_the_answer(
    counting: CountingBackend, clock: FakeClock
) -> None:
    def fail() -> None:
        raise BackendUnavailableError("timed out")

    counting.after["create"] = fail
    with pytest.raises(BackendUnavailableError, match="timed out"):
        counting.create("key", make_record(clock))
    assert counting.load("key") is not None
    # A hook that raised is called the next time too.
    with pytest.raises(BackendUnavailableError):
        counting.create("other", make_record(clock))


def test_it_can_fail_without_doing_anything(
    counting: CountingBackend, clock: FakeClock
) -> None:
    with counting.failing("create", "touch"):
        with pytest.raises(BackendUnavailableError) as info:
            counting.create("key", make_record(clock))
        assert counting.load("key") is None
    assert (info.value.backend, info.value.operation) == ("memory", "create")
    assert str(info.value) == "The test lets 'create' of the 'memory' backend fail."
    assert counting.calls == {"create": 1, "load": 1}
    assert counting.create("key", make_record(clock)) is True


def test_it_can_fail_in_everything_and_as_told(counting: CountingBackend) -> None:
    error = RuntimeError("as told")
    with counting.failing(), counting.failing("load", error=error):
        with pytest.raises(RuntimeError) as info:
            counting.load("key")
        assert info.value is error
        with pytest.raises(BackendUnavailableError):
            counting.prune(1)
        with pytest.raises(BackendUnavailableError):
            counting.iterate()
    assert counting.load("key") is None


def test_a_misspelt_operation_is_noticed(counting: CountingBackend) -> None:
    with (
        pytest.raises(ValueError, match=r"^A backend has no operation 'get'\.$"),
        counting.failing("load", "get"),
    ):
        pass


# -- the contract


class Upserting(MemoryBackend):
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        result = super().replace(key, record, expected)
        if isinstance(result, Gone):
            self.create(key, dataclasses.replace(record, version=expected + 1))
            return Replaced(expected + 1)
        return result


class LastWriteWins(MemoryBackend):
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        current = self.load(key)
        return super().replace(key, record, current.version if current else expected)


class TrustsTheRecordsVersion(MemoryBackend):
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        result = super().replace(key, record, expected)
        if isinstance(result, Replaced) and key in self._entries:
            self._entries[key].record = record
        return result


class WritesBeforeComparing(MemoryBackend):
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        result = super().replace(key, record, expected)
        if isinstance(result, Conflict):
            self._entries[key].record = record
        return result


class KeepsWhatExpiredByReplace(MemoryBackend):
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        record = dataclasses.replace(
            record, expires_at=max(record.expires_at, self._clock() + 60)
        )
        return super().replace(key, record, expected)


class Overwriting(MemoryBackend):
    def create(self, key: str, record: Record) -> bool:
        self._discard(key)
        return super().create(key, record)


class OverwritingAndSayingNo(MemoryBackend):
    def create(self, key: str, record: Record) -> bool:
        is_new = super().create(key, record)
        if not is_new:
            self._entries[key].record = record
        return is_new


class NeverReusing(MemoryBackend):
    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.used: set[str] = set()

    def create(self, key: str, record: Record) -> bool:
        if key in self.used:
            return False
        self.used.add(key)
        return super().create(key, record)


class LoadingExpired(MemoryBackend):
    def load(self, key: str) -> Record | None:
        entry = self._entries.get(key)
        return entry.record if entry else None


class ExpiringLate(MemoryBackend):
    """As an engine that compares with ``<`` where ``<=`` is right."""

    def _find(self, key: str, now: float) -> Record | None:
        return super()._find(key, now - 0.0001)


class ExpiringInWholeSeconds(MemoryBackend):
    def _find(self, key: str, now: float) -> Record | None:
        record = super()._find(key, now)
        return record if record and int(record.expires_at) > now else None


class TouchingCreates(MemoryBackend):
    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        if not super().touch(key, touched_at, expires_at):
            self.create(key, Record(b"", 1, touched_at, touched_at, expires_at))
        return True


class TouchingRevives(MemoryBackend):
    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        entry = self._entries.get(key)
        if entry and entry.record.expires_at <= self._clock():
            record = dataclasses.replace(entry.record, expires_at=expires_at)
            self._discard(key)
            return self.create(key, record)
        return super().touch(key, touched_at, expires_at)


class TouchingCountsUp(MemoryBackend):
    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        is_there = super().touch(key, touched_at, expires_at)
        if is_there:
            record = self._entries[key].record
            self._entries[key].record = dataclasses.replace(
                record, version=record.version + 1
            )
        return is_there


class TouchingShortens(MemoryBackend):
    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        current = self._entries.get(key)
        if current is not None and expires_at < current.record.expires_at:
            super().touch(key, touched_at, current.record.expires_at)
            record = dataclasses.replace(
                self._entries[key].record, expires_at=expires_at
            )
            self._store(key, record)
            return True
        return super().touch(key, touched_at, expires_at)


class TouchingTombstones(MemoryBackend):
    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        entry = self._entries.get(key)
        if entry is not None and entry.record.is_tombstone:
            return True
        return super().touch(key, touched_at, expires_at)


class DeletingTombstones(MemoryBackend):
    def delete(self, key: str) -> bool:
        is_there = super().delete(key)
        self._discard(key)
        return is_there


class DeletingIsAlwaysTrue(MemoryBackend):
    def delete(self, key: str) -> bool:
        super().delete(key)
        return True


class TombstonesAreAbsent(MemoryBackend):
    def load(self, key: str) -> Record | None:
        record = super().load(key)
        return None if record is None or record.is_tombstone else record


class EmptyIsATombstone(MemoryBackend):
    def delete(self, key: str) -> bool:
        record = self.load(key)
        return record is not None and bool(record.data) and super().delete(key)


class Rounding(MemoryBackend):
    def create(self, key: str, record: Record) -> bool:
        created_at = round(record.created_at, 3)
        return super().create(key, dataclasses.replace(record, created_at=created_at))


class NobodyIsEmpty(MemoryBackend):
    def load(self, key: str) -> Record | None:
        record = super().load(key)
        return record and dataclasses.replace(record, user=record.user or None)


class Stripping(MemoryBackend):
    def create(self, key: str, record: Record) -> bool:
        data = record.data.rstrip(b"\0\n") or record.data[:1]
        return super().create(key, dataclasses.replace(record, data=data))


class TruncatingAt64KiB(MemoryBackend):
    def create(self, key: str, record: Record) -> bool:
        return super().create(
            key, dataclasses.replace(record, data=record.data[:65535])
        )


class FoldingKeys(MemoryBackend):
    def create(self, key: str, record: Record) -> bool:
        return super().create(key.rstrip().casefold(), record)

    def load(self, key: str) -> Record | None:
        return super().load(key.rstrip().casefold())


class SharingItsRecords(MemoryBackend):
    def create(self, key: str, record: Record) -> bool:
        is_new = super().create(key, record)
        if is_new and key in self._entries:
            self._entries[key].record = record
        return is_new


class ForgettingOnClose(MemoryBackend):
    def close(self) -> None:
        self._entries.clear()


class IndexingOnCreateOnly(MemoryBackend):
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        before = {user: dict(keys) for user, keys in self._keys_by_user.items()}
        result = super().replace(key, record, expected)
        self._keys_by_user = before
        return result


class ListingExpired(MemoryBackend):
    def keys_of_user(self, user: str) -> list[str]:
        return list(self._keys_by_user.get(user, ()))


class ListingTombstones(MemoryBackend):
    def keys_of_user(self, user: str) -> list[str]:
        keys = self._keys_by_user.get(user, ())
        now = self._clock()
        return [key for key in keys if self._entries[key].record.expires_at > now]


class ForgettingWhoComesBack(MemoryBackend):
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        was = self.load(key)
        result = super().replace(key, record, expected)
        if was is not None and was.user is None and record.user is not None:
            self._keys_by_user[record.user].pop(key, None)
            self._keys_by_user[record.user][f"other {key}"] = None
        return result

    def keys_of_user(self, user: str) -> list[str]:
        keys = self._keys_by_user.get(user, ())
        return [key for key in keys if key in self._entries]


class IndexingForOneLifetime(MemoryBackend):
    """Never learns of a later expiry."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._first_expiries: dict[str, float] = {}

    def create(self, key: str, record: Record) -> bool:
        self._first_expiries[key] = record.expires_at
        return super().create(key, record)

    def keys_of_user(self, user: str) -> list[str]:
        keys = super().keys_of_user(user)
        return [key for key in keys if self._first_expiries[key] > self._clock()]


class IndexingByReadingAndWriting(MemoryBackend):
    """Keeps a list for each user, as is often done with a cache."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._lists: dict[str, list[str]] = {}

    def create(self, key: str, record: Record) -> bool:
        is_new = super().create(key, record)
        if is_new and record.user is not None:
            keys = [*self._lists.get(record.user, ()), key]
            time.sleep(0.002)
            self._lists[record.user] = keys
        return is_new

    def keys_of_user(self, user: str) -> list[str]:
        return [key for key in self._lists.get(user, ()) if self.load(key)]


class LoadingManyTombstones(MemoryBackend):
    def load_many(self, keys: Sequence[str]) -> dict[str, Record]:
        return {key: record for key in keys if (record := self.load(key)) is not None}


class SweepingWithoutALimit(MemoryBackend):
    def sweep(self, limit: int) -> int:
        return self.prune(10_000)


class CountingTombstones(MemoryBackend):
    def count(self) -> int:
        return len(self._entries)


class IteratingTombstones(MemoryBackend):
    def iterate(self) -> Iterator[tuple[str, Record]]:
        return iter([(key, entry.record) for key, entry in self._entries.items()])


class IteratingLive(MemoryBackend):
    def iterate(self) -> Iterator[tuple[str, Record]]:
        return ((key, entry.record) for key, entry in self._entries.items())


class PruningEverything(MemoryBackend):
    def prune(self, limit: int) -> int:
        return super().prune(10_000)


class PruningLive(MemoryBackend):
    def prune(self, limit: int) -> int:
        for key in list(self._entries)[:limit]:
            self._discard(key)
        return 0


class PruningByAStaleIndex(MemoryBackend):
    """Prunes what would have expired had nobody touched it."""

    touched: frozenset[str] = frozenset()

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        self.touched |= {key}
        return super().touch(key, touched_at, expires_at)

    def prune(self, limit: int) -> int:
        removed = super().prune(limit)
        for key, entry in list(self._entries.items()):
            if entry.record.created_at + 1 <= self._clock() and key in self.touched:
                self._discard(key)
        return removed


class CountingByTheBeginning(MemoryBackend):
    """Takes the keys of a longer prefix for its own."""

    key_prefix = "contract:"


class PruningLazily(MemoryBackend):
    capabilities = MemoryBackend.capabilities & ~Capability.EXPIRES

    def prune(self, limit: int) -> int:
        return 0


class ClaimingTooLittle(MemoryBackend):
    capabilities = Capability.NONE


class ReadingThenWriting(MemoryBackend):
    """Compares and swaps in two steps, with time for others in between."""

    def create(self, key: str, record: Record) -> bool:
        if self.load(key) is not None:
            return False
        time.sleep(0.002)
        self._discard(key)
        super().create(key, record)
        return True

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        current = self.load(key)
        if current is None:
            return Gone()
        if current.version != expected:
            return Conflict(current)
        time.sleep(0.002)
        with self._lock:
            self._store(key, dataclasses.replace(record, version=expected + 1))
        return Replaced(expected + 1)

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        current = self.load(key)
        if current is None:
            return False
        time.sleep(0.002)
        with self._lock:
            self._store(key, dataclasses.replace(current, expires_at=expires_at))
        return True


MISTAKES: list[tuple[type[MemoryBackend], list[str]]] = [
    (
        Upserting,
        [
            "replace_creates_nothing",
            "replace_refuses_to_revive_a_deleted_record",
            "replace_refuses_to_revive_an_expired_record",
        ],
    ),
    (LastWriteWins, ["replace_hands_back_the_current_record_on_a_conflict"]),
    (TrustsTheRecordsVersion, ["replace_counts_from_the_expected_version_on"]),
    (
        WritesBeforeComparing,
        ["replace_hands_back_the_current_record_on_a_conflict"],
    ),
    (KeepsWhatExpiredByReplace, ["replace_by_an_expired_record_removes_it"]),
    (
        Overwriting,
        [
            "create_refuses_a_taken_key_and_leaves_it_alone",
            "a_tombstone_refuses_a_create",
        ],
    ),
    (
        OverwritingAndSayingNo,
        ["create_refuses_a_taken_key_and_leaves_it_alone"],
    ),
    (
        NeverReusing,
        [
            "create_works_again_after_a_delete",
            "create_works_again_after_the_old_record_expired",
        ],
    ),
    (
        LoadingExpired,
        [
            "a_record_is_there_until_it_expires",
            "a_record_expires_at_its_very_moment",
        ],
    ),
    (ExpiringLate, ["a_record_expires_at_its_very_moment"]),
    (ExpiringInWholeSeconds, ["a_record_is_there_until_it_expires"]),
    (TouchingCreates, ["touch_creates_nothing"]),
    (TouchingRevives, ["touch_refuses_to_revive_an_expired_record"]),
    (
        TouchingCountsUp,
        [
            "touch_moves_the_times_and_nothing_else",
            "touch_never_conflicts_with_a_replace",
        ],
    ),
    (
        TouchingShortens,
        ["touch_does_not_undo_a_longer_life_that_another_request_gave"],
    ),
    (TouchingTombstones, ["a_tombstone_is_neither_touched_nor_deleted"]),
    (DeletingTombstones, ["a_tombstone_is_neither_touched_nor_deleted"]),
    (
        DeletingIsAlwaysTrue,
        [
            "delete_says_whether_there_was_a_record",
            "delete_takes_an_expired_record_for_absent",
        ],
    ),
    (TombstonesAreAbsent, ["a_tombstone_is_loaded_like_any_record"]),
    (EmptyIsATombstone, ["data_that_is_empty_is_no_tombstone"]),
    (Rounding, ["load_gives_every_field_back_exactly"]),
    (NobodyIsEmpty, ["load_gives_every_field_back_exactly"]),
    (Stripping, ["load_gives_the_bytes_back_exactly"]),
    (TruncatingAt64KiB, ["load_gives_large_data_back_exactly"]),
    (FoldingKeys, ["prefixes_that_resemble_each_other_are_different"]),
    (SharingItsRecords, ["a_stored_record_is_nobody_elses"]),
    (ForgettingOnClose, ["close_lets_the_backend_be_used_again"]),
    (IndexingOnCreateOnly, ["keys_of_user_follows_what_happens_to_records"]),
    (ListingExpired, ["keys_of_user_follows_expiry"]),
    (ListingTombstones, ["keys_of_user_leaves_tombstones_out"]),
    (
        ForgettingWhoComesBack,
        ["keys_of_user_follows_a_user_who_changes_and_comes_back"],
    ),
    (
        IndexingForOneLifetime,
        ["keys_of_user_lists_a_record_for_as_long_as_it_is_used"],
    ),
    (
        IndexingByReadingAndWriting,
        ["keys_of_user_lists_everyone_who_logs_in_at_the_same_moment"],
    ),
    (LoadingManyTombstones, ["load_many_gives_what_is_live"]),
    (SweepingWithoutALimit, ["sweep_deletes_expired_records_up_to_the_limit"]),
    (
        CountingTombstones,
        [
            "count_follows_what_happens_to_records",
            "count_leaves_expired_records_out",
        ],
    ),
    (IteratingTombstones, ["iterate_gives_all_live_records"]),
    (IteratingLive, ["iterate_survives_changes_on_the_way"]),
    (PruningEverything, ["prune_deletes_expired_records_up_to_the_limit"]),
    (PruningLive, ["prune_deletes_expired_records_up_to_the_limit"]),
    (PruningByAStaleIndex, ["prune_deletes_expired_records_up_to_the_limit"]),
    (CountingByTheBeginning, ["iterate_and_count_keep_to_the_key_prefix"]),
    (PruningLazily, ["prune_deletes_expired_records_up_to_the_limit"]),
    (
        ClaimingTooLittle,
        ["an_optional_operation_works_or_says_that_it_does_not"],
    ),
    (
        ReadingThenWriting,
        [
            "one_of_many_creates_wins",
            "one_of_many_replaces_of_a_version_wins",
            "concurrent_changes_add_up",
            "a_delete_that_races_with_replaces_is_final",
            "a_delete_that_races_with_touches_is_final",
            "touches_that_race_with_a_replace_do_not_undo_it",
        ],
    ),
]


def run_contract(backend_class: type[MemoryBackend], name: str) -> None:
    """Run one test of the contract, with all its parameters, until it fails."""
    test = getattr(BackendContract, f"test_{name}")
    sets: list[dict[str, t.Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            names = [names] if isinstance(names, str) else names
            values = [value if len(names) > 1 else (value,) for value in values]
            sets = [
                {**old, **dict(zip(names, value, strict=True))}
                for old in sets
                for value in values
            ]
    for parameters in sets:
        clock = FakeClock()
        arguments: dict[str, t.Any] = {"backend": backend_class(clock), **parameters}
        if "clock" in inspect.signature(test).parameters:
            arguments["clock"] = clock
        test(BackendContract(), **arguments)


@pytest.mark.parametrize(
    ("backend_class", "name"),
    [
        pytest.param(backend_class, name, id=f"{backend_class.__name__}-{name}")
        for backend_class, names in MISTAKES
        for name in names
    ],
)
def test_the_contract_catches(backend_class: type[MemoryBackend], name: str) -> None:
    run_contract(MemoryBackend, name)
    # AssertionError, or what a broken backend makes of itself; a skip is neither.
    with pytest.raises((Exception, pytest.fail.Exception)) as info:
        run_contract(backend_class, name)
    assert not isinstance(info.value, pytest.skip.Exception)


def run_pytest(
    pytester: pytest.Pytester, source: str, *options: str
) -> pytest.RunResult:
    pytester.makepyfile(textwrap.dedent(source))
    return pytester.runpytest_inprocess("-p", "no:valkey", "-q", "-rs", *options)


def test_a_subclass_with_a_backend_is_all_it_takes(pytester: pytest.Pytester) -> None:
    result = run_pytest(
        pytester,
        """
        import pytest
        from flask_serversession.backends.base import Backend
        from flask_serversession.backends.memory import MemoryBackend
        from flask_serversession.testing import BackendContract
        from flask_serversession.testing import FakeClock

        class TestMyBackend(BackendContract):
            @pytest.fixture
            def backend(self, clock: FakeClock) -> Backend:
                return MemoryBackend(clock)
        """,
    )
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed", "skipped"}
    assert outcomes["passed"] > 80
    result.stdout.fnmatch_lines(
        [
            "*no 'spoil' fixture*",
            "*no 'second_backend' fixture*",
            "*no 'dead_backend' fixture*",
        ],
        consecutive=False,
    )


def test_a_backend_without_compare_and_swap_skips_the_races(
    pytester: pytest.Pytester,
) -> None:
    result = run_pytest(
        pytester,
        """
        import pytest
        from flask_serversession.backends.base import Backend
        from flask_serversession.backends.base import Capability
        from flask_serversession.backends.memory import MemoryBackend
        from flask_serversession.testing import BackendContract

        class PlainBackend(MemoryBackend):
            name = "plain"
            capabilities = Capability.EXPIRES
            keys_of_user = Backend.keys_of_user
            iterate = Backend.iterate
            count = Backend.count
            prune = Backend.prune

        class TestPlainBackend(BackendContract):
            @pytest.fixture
            def backend(self, clock):
                return PlainBackend(clock)
        """,
    )
    assert set(result.parseoutcomes()) == {"passed", "skipped"}
    result.stdout.fnmatch_lines(
        ["*the 'plain' backend cannot compare and swap, so it promises nothing*"]
    )
    result.stdout.fnmatch_lines(["*the 'plain' backend does not have *COUNT*"])


def test_a_subclass_without_a_backend_is_told_so(pytester: pytest.Pytester) -> None:
    result = run_pytest(
        pytester,
        """
        from flask_serversession.testing import BackendContract

        class TestMyBackend(BackendContract):
            pass
        """,
        "-k",
        "unknown_key",
    )
    assert result.parseoutcomes()["errors"] == 1
    result.stdout.fnmatch_lines(
        ["*NotImplementedError: TestMyBackend needs a fixture 'backend' that returns*"]
    )


def run_python(source: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_the_package_does_not_import_it() -> None:
    output = run_python(
        """
        import sys
        import flask_serversession
        names = {"flask_serversession.testing", "pytest"} & set(sys.modules)
        print(sorted(names))
        """
    )
    assert output == "[]\n"


def test_only_the_contract_needs_pytest_and_says_how_to_get_it() -> None:
    output = run_python(
        """
        import sys
        sys.modules["pytest"] = sys.modules["hypothesis"] = None
        from flask_serversession.testing import CountingBackend, FakeClock, log_in
        print(FakeClock(5)())
        try:
            from flask_serversession.testing import BackendContract
        except ImportError as exc:
            print(exc)
        """
    )
    assert output == (
        "5\n"
        "'flask_serversession.testing' needs the pytest package. Install it with:"
        " pip install pytest\n"
    )


def test_a_race_reports_the_failure_of_any_thread(clock: FakeClock) -> None:
    class Failing(MemoryBackend):
        def create(self, key: str, record: Record) -> bool:
            if record.data == b"3":
                raise BackendUnavailableError("no answer")
            return super().create(key, record)

    with pytest.raises(BackendUnavailableError, match="no answer"):
        BackendContract().test_one_of_many_creates_wins(Failing(clock), clock)


def test_every_test_of_the_contract_has_keys_of_its_own() -> None:
    one, two = BackendContract(), BackendContract()
    assert one.key() == one.key()
    assert one.key("a") != one.key("b")
    assert one.key() != two.key()
    assert one.key().startswith("contract:")
