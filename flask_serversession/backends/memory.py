"""Records in a dict of this process, for tests and single-process use."""

from __future__ import annotations

import dataclasses
import heapq
import threading
import time
import types
import typing as t

from ..forks import PerProcess
from ..record import NO_META
from ..record import Record
from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced

# How many due heap entries one operation looks at on the way. An operation adds
# at most one, so the sweep outruns the growth, and yet no single request has to
# clean up after a quiet night.
_SWEEP_AT_ONCE = 64
# Below this the heap is never rebuilt: it would cost more than it frees.
_SMALL_HEAP = 64


@dataclasses.dataclass(slots=True)
class _Entry:
    record: Record
    #: The time of the one heap entry that speaks for this record. It is never
    #: later than ``record.expires_at``; other heap entries for the key are stale.
    due: float


class MemoryBackend(Backend):
    """Keeps records in a dict; whatever changes it does so under a lock.

    For tests and for applications that run as one process. Nothing survives the
    end of the process, and nothing is shared: after a fork every worker has a
    store of its own, so with more than one worker a visitor's session comes and
    goes with the worker that answers.

    Expired records go away as the backend works, a few with every write, without
    a scan over all of them.

    :param clock: Gives the current time in seconds since the epoch.
    """

    name = "memory"
    capabilities = (
        Capability.COMPARE_AND_SWAP
        | Capability.EXPIRES
        | Capability.USER_INDEX
        | Capability.ITERATE
        | Capability.COUNT
        | Capability.PRUNE
    )

    def __init__(self, clock: t.Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Looked up when it is needed: see PerProcess.
        self._lock = PerProcess(lambda: threading.Lock())
        self._entries: dict[str, _Entry] = {}
        # A dict serves as a set that remembers the order of insertion.
        self._keys_by_user: dict[str, dict[str, None]] = {}
        self._expiries: list[tuple[float, str]] = []

    def load(self, key: str) -> Record | None:
        """Return the record, or ``None`` if it is unknown or has expired."""
        # Without the lock: records never change, and a dict is read in one step.
        return self._find(key, self._clock())

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless the key is taken by a live one."""
        with self._lock.get():
            now = self._clock()
            self._sweep(now)
            if key in self._entries:
                if self._find(key, now) is not None:
                    return False
                self._discard(key)
            if record.expires_at > now:
                self._store(key, _unshared(record, record.version))
            return True

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if its stored version is the expected one."""
        with self._lock.get():
            now = self._clock()
            self._sweep(now)
            current = self._find(key, now)
            if current is None:
                return Gone()
            if current.version != expected:
                return Conflict(current)
            version = expected + 1
            if record.expires_at > now:
                self._store(key, _unshared(record, version))
            else:
                self._discard(key)
            return Replaced(version)

    def delete(self, key: str) -> bool:
        """Remove the record; a tombstone stays, and counts as none."""
        with self._lock.get():
            record = self._find(key, self._clock())
            if record is None or record.is_tombstone:
                return False
            self._discard(key)
            return True

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Move the times of the record, and nothing else."""
        with self._lock.get():
            now = self._clock()
            self._sweep(now)
            record = self._find(key, now)
            if record is None or record.is_tombstone:
                return False
            if expires_at > now:
                expires_at = max(expires_at, record.expires_at)
            self._store(
                key,
                dataclasses.replace(
                    record, touched_at=touched_at, expires_at=expires_at
                ),
            )
            return True

    def keys_of_user(self, user: str) -> list[str]:
        """Return the keys of all live records of a user, tombstones left out."""
        with self._lock.get():
            now = self._clock()
            return [
                key
                for key in self._keys_by_user.get(user, ())
                if (entry := self._entries.get(key)) is not None
                and entry.record.user == user
                and _is_live_session(entry.record, now)
            ]

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records, as they were when this was called."""
        with self._lock.get():
            now = self._clock()
            records = [
                (key, entry.record)
                for key, entry in self._entries.items()
                if _is_live_session(entry.record, now)
            ]
        return iter(records)

    def count(self) -> int:
        """Return the number of live records, tombstones left out. Scans them all."""
        with self._lock.get():
            now = self._clock()
            return sum(
                _is_live_session(entry.record, now) for entry in self._entries.values()
            )

    def prune(self, limit: int) -> int:
        """Delete at most ``limit`` expired records."""
        with self._lock.get():
            return self._remove_expired(self._clock(), limit)

    def _find(self, key: str, now: float) -> Record | None:
        if (entry := self._entries.get(key)) is None:
            return None
        record = entry.record
        return record if record.expires_at > now else None

    def _store(self, key: str, record: Record) -> None:
        entry = self._entries.get(key)
        # Whatever comes between, such as an exception of a signal's handler, no record
        # is without its entries in index and heap; entries of no record do no harm.
        if entry is None:
            self._add_to_index(key, record.user)
            self._schedule(key, record.expires_at)
            self._entries[key] = _Entry(record, due=record.expires_at)
            return
        if entry.record.user != record.user:
            former = entry.record.user
            self._add_to_index(key, record.user)
            entry.record = record
            self._remove_from_index(key, former)
        entry.record = record
        # A later expiry needs no new heap entry: the one there is comes up too
        # early, finds the record alive and is put back. So a touch is O(1).
        if record.expires_at < entry.due:
            self._schedule(key, record.expires_at)
            entry.due = record.expires_at

    def _discard(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._remove_from_index(key, entry.record.user)

    def _schedule(self, key: str, due: float) -> None:
        # Deleted and shortened records leave stale heap entries behind. Rebuilding
        # once they outnumber the records keeps the heap within twice their number,
        # and costs O(1) for each entry added since the last time.
        if len(self._expiries) >= max(_SMALL_HEAP, 2 * len(self._entries)):
            expiries = [(entry.due, name) for name, entry in self._entries.items()]
            heapq.heapify(expiries)
            self._expiries = expiries
        heapq.heappush(self._expiries, (due, key))

    def _sweep(self, now: float) -> None:
        if self._expiries and self._expiries[0][0] <= now:
            self._remove_expired(now, _SWEEP_AT_ONCE, looks=_SWEEP_AT_ONCE)

    def _remove_expired(self, now: float, limit: int, looks: int | None = None) -> int:
        removed = looked = 0
        while removed < limit and self._expiries and self._expiries[0][0] <= now:
            if looks is not None and looked >= looks:
                break
            looked += 1
            due, key = self._expiries[0]
            entry = self._entries.get(key)
            if entry is not None and entry.due == due:
                if entry.record.expires_at <= now:
                    self._discard(key)
                    removed += 1
                else:
                    # Later than the first, so that one still is the first.
                    heapq.heappush(self._expiries, (entry.record.expires_at, key))
                    entry.due = entry.record.expires_at
            heapq.heappop(self._expiries)
        return removed

    def _add_to_index(self, key: str, user: str | None) -> None:
        if user is not None:
            self._keys_by_user.setdefault(user, {})[key] = None

    def _remove_from_index(self, key: str, user: str | None) -> None:
        if user is None:
            return
        keys = self._keys_by_user.get(user, {})
        keys.pop(key, None)
        if not keys:
            self._keys_by_user.pop(user, None)


def _is_live_session(record: Record, now: float) -> bool:
    return record.expires_at > now and not record.is_tombstone


def _unshared(record: Record, version: int) -> Record:
    # A record is frozen but its meta need not be. With one that nobody can change, what
    # is kept here is given to everybody as it is.
    if record.meta is NO_META and record.version == version:
        return record
    return Record(
        data=record.data,
        version=version,
        created_at=record.created_at,
        touched_at=record.touched_at,
        expires_at=record.expires_at,
        user=record.user,
        meta=types.MappingProxyType(dict(record.meta)) if record.meta else NO_META,
    )
