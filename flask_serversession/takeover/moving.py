"""Takes over our own sessions from where a former configuration kept them.

A session moves at its first use, from the *former* backend to the one that is in use
now. In this order, so that it is never lost, never there twice and never brought back,
whatever dies or runs at the same moment:

.. code-block:: text

    load it here ──────── it is here ──▶ done
      │ it is not
    load it there ─────── nor there ───▶ look again in both, three times; absent
      │
    mark it there, by compare-and-swap ── another request was faster ──▶ from the start
      │
    create it here, marked too
      │
    remove it there, by compare-and-swap ── it was changed or ended meanwhile ──▶ take
      │                                     back what was created, and from the start
    remove the mark
      │
      ▼
    done

A record that is marked is nobody's to use or to change: whoever meets one waits until
the mark has gone. If that takes too long, a process has died, and whoever waits
finishes its work. Of a record here without a mark nothing is left there, so ending it
ends it. A version never falls, so a request that loaded the session before it moved
meets a conflict when it saves, and merges.

Both configurations may name each other as the former one. Their processes then take
sessions from each other, and either can end one.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import itertools
import time
import typing as t

from ..backends import BackendSettings
from ..backends import build_backend
from ..backends.base import Backend
from ..backends.base import Capability
from ..backends.base import Conflict
from ..backends.base import Gone
from ..backends.base import Replaced
from ..config import FormerSettings
from ..errors import BackendError
from ..errors import ConfigurationError
from ..errors import RecordError
from ..ids import is_key
from ..meta import MOVING
from ..payload import Sealer
from ..payload import is_encrypted
from ..record import Record

_KEY = "SESSION_MIGRATE_FROM"
# What a record is marked with while it is moved away, and until it has arrived.
_AWAY, _ARRIVING = "away", "arriving"
# How long a move is waited for, and how often it is looked at, in seconds.
_PATIENCE = 2.0
_PAUSE = 0.01
_MAX_TRIES = 1000
# How often a record must be found in neither place before it counts as absent. It can
# move back and forth between two looks while both kinds of processes use it at once.
_ABSENCES = 3

_LISTING = Capability.USER_INDEX | Capability.ITERATE | Capability.COUNT
_NEEDED = Capability.COMPARE_AND_SWAP | Capability.EXPIRES


def with_former(backend: Backend, settings: BackendSettings) -> Backend:
    """Return a backend that takes over what a former configuration has kept.

    :return: The same one if there is none, or if :data:`SESSION_MIGRATE_UNTIL` is over.
    :raises ConfigurationError: if the former configuration makes no sense.
    """
    config = settings.config
    given = config.migrate_from
    if not isinstance(given, FormerSettings) or config.migrate_until is None:
        return backend
    until = config.migrate_until.timestamp()
    if settings.clock() >= until:
        return backend
    former = dataclasses.replace(config, migrate_from=(), **given.completed())
    place: Place | None = None
    if {*given} - {"encryption_key"}:
        try:
            source, _ = build_backend(dataclasses.replace(settings, config=former))
        except ConfigurationError as error:
            raise ConfigurationError(f"{_KEY!r}: {error}", _KEY) from error
        if source.name == "memory":
            raise ConfigurationError(
                f"{_KEY!r}: 'SESSION_BACKEND' is 'memory', of which nothing is left"
                " when its process has ended.",
                _KEY,
            )
        if source.key_prefix not in (None, former.key_prefix):
            raise ConfigurationError(
                f"{_KEY!r}: its backend lists the sessions of {source.key_prefix!r},"
                f" not those of {former.key_prefix!r}. Name the kind of backend, or"
                " give another object that was made for that prefix.",
                _KEY,
            )
        place = Place(source, former.key_prefix)
    return MovingBackend(
        Place(backend, config.key_prefix),
        place,
        Sealers(config.encryption_key, former.encryption_key),
        until,
        settings.clock,
    )


class Place(t.NamedTuple):
    """Where records are kept, and under which keys."""

    backend: Backend
    prefix: str


class Sealers:
    """Seals data as it is sealed now that was sealed as a former configuration has it.

    :param keys: :data:`SESSION_ENCRYPTION_KEY`.
    :param former: What it was.
    """

    def __init__(self, keys: tuple[bytes, ...], former: tuple[bytes, ...]) -> None:
        self._is_needed = bool(keys or former)
        self._encrypts = bool(keys)
        self._now = Sealer(keys)
        self._former = Sealer(former)

    def convert(self, record: Record, key: str, found_under: str) -> Record:
        """Return a record as it would be written now under a key; itself if it is so.

        :raises RecordError: if it cannot be read.
        """
        if record.is_tombstone or not self._is_needed:
            return record
        is_sealed = is_encrypted(record.data)
        is_same = is_sealed is self._encrypts
        if is_same and (key == found_under or not is_sealed):
            return record
        bound: dict[str, t.Any]
        bound = {"created_at": record.created_at, "user": record.user}
        try:
            sealer = self._now if is_same else self._former
            envelope = sealer.open(record.data, found_under, **bound)
        except RecordError:
            if not is_same:
                raise
            envelope = self._former.open(record.data, found_under, **bound)
        data = self._now.seal(envelope, key, **bound)
        return dataclasses.replace(record, data=data)


class MovingBackend(Backend):
    """A backend that takes records over from a former place. Thread-safe.

    Costs nothing more where a session is here already, and nothing at all once it is
    over.

    :param now: Where records are kept.
    :param former: Where they were kept; ``None`` if that is the same place, and only
        the encryption has changed.
    :param until: When it ends, in seconds since the epoch.
    :param patience: How long a record that another request moves is waited for.
    """

    def __init__(
        self,
        now: Place,
        former: Place | None,
        sealers: Sealers,
        until: float,
        clock: cabc.Callable[[], float],
        *,
        patience: float = _PATIENCE,
    ) -> None:
        self._now = now.backend
        self._prefix = now.prefix
        self.former = former
        self._sealers = sealers
        self._until = until
        self._clock = clock
        self._patience = patience
        self.name = now.backend.name
        self.key_prefix = now.backend.key_prefix
        self.capabilities = now.backend.capabilities
        if former is not None:
            other = former.backend
            both = self.capabilities & other.capabilities & (_LISTING | _NEEDED)
            either = (self.capabilities | other.capabilities) & Capability.PRUNE
            self.capabilities = both | either
            if other.key_prefix != former.prefix:
                self.key_prefix = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._now!r}>"

    def __getattr__(self, name: str) -> t.Any:
        if name == "_now":  # while it is copied
            raise AttributeError(name)
        return getattr(self._now, name)

    @property
    def is_over(self) -> bool:
        """Whether :data:`SESSION_MIGRATE_UNTIL` has passed."""
        return self._clock() >= self._until

    def load(self, key: str) -> Record | None:
        """Return the record, taken over if it was elsewhere."""
        record = self._now.load(key)
        if self._is_settled(key, record) or self.is_over:
            return record
        return self._find(key, record)

    def create(self, key: str, record: Record) -> bool:
        """Store a new record. Its id was never used before, so it is nowhere else."""
        return self._now.create(key, record)

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record; one that was elsewhere meanwhile is a conflict."""
        result = self._now.replace(key, record, expected)
        if isinstance(result, Replaced) or self.is_over:
            return result
        current = result.current if isinstance(result, Conflict) else None
        if self._is_settled(key, current):
            return result
        found = self._find(key, current)
        return Gone() if found is None else Conflict(found)

    def delete(self, key: str) -> bool:
        """Remove the record, wherever it is."""
        if self.is_over:
            return self._now.delete(key)
        try:
            for _ in range(_MAX_TRIES):
                found = self._find(key, self._now.load(key))
                if found is None or found.is_tombstone:
                    return False
                # Not what another request is just moving away.
                if self._remove(self._now, key, found):
                    return True
        except RecordError as error:
            if error.reason == "newer":
                raise
        is_deleted = self._now.delete(key)
        if self.former is not None:
            is_deleted |= self.former.backend.delete(self._former_key(key))
        return is_deleted

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Extend the life of the record, taken over if it was elsewhere."""
        if self._now.touch(key, touched_at, expires_at):
            return True
        if self.former is None or self.is_over:
            return False
        try:
            found = self._find(key, self._now.load(key))
        except RecordError:
            return False
        if found is None or found.is_tombstone:
            return False
        return self._now.touch(key, touched_at, expires_at)

    # Moving

    def _is_settled(self, key: str, record: Record | None) -> bool:
        """Whether a record is here as it is to be."""
        if record is None:
            return self.former is None
        if self.former is not None and MOVING in record.meta:
            return False
        return self._sealers.convert(record, key, key) is record

    def _find(self, key: str, record: Record | None) -> Record | None:
        """Return the record once it is here as it is to be.

        :param record: What was found here just now.
        """
        patience = _Patience(self._patience)
        absences = 0
        for _ in range(_MAX_TRIES):
            if record is not None:
                absences = 0
                found = self._settle(key, record, patience)
            elif absences == _ABSENCES or self.former is None:
                return None
            else:
                former = self.former
                there = former.backend.load(self._former_key(key))
                absences = absences + 1 if there is None else 0
                found = there and self._take(key, there, former, patience)
            if found is not None:
                return found
            record = self._now.load(key)
        raise BackendError(
            "A session is moved again and again, and is nowhere.",
            backend=self.name,
            operation="load",
        )

    def _settle(self, key: str, record: Record, patience: _Patience) -> Record | None:
        """Bring a record that is here into the form that it is to have.

        :return: ``None`` if it is to be looked at again.
        """
        former = self.former
        if former is not None and MOVING in record.meta:
            if patience.is_over(record):
                self._recover(key, record, former)
            return None
        sealed = self._sealers.convert(record, key, key)
        if sealed is record:
            return record
        return self._swap(key, sealed, record.version)

    def _take(
        self, key: str, there: Record, former: Place, patience: _Patience
    ) -> Record | None:
        """Take over a record, unless another request does; ``None`` to look again."""
        if there.is_tombstone:
            return there
        if MOVING not in there.meta or patience.is_over(there):
            return self._move(key, there, former)
        return None

    def _move(self, key: str, there: Record, former: Place) -> Record | None:
        """Move a record here; ``None`` if it was changed or ended meanwhile."""
        former_key = self._former_key(key)
        moved = self._sealers.convert(_unmarked(there), key, former_key)
        claimed = _marked(there, _AWAY)
        result = former.backend.replace(former_key, claimed, there.version)
        if not isinstance(result, Replaced):
            return None
        claimed = dataclasses.replace(claimed, version=result.version)
        moved = dataclasses.replace(moved, version=result.version + 1)
        if not self._now.create(key, _marked(moved, _ARRIVING)):
            return None
        if not self._remove(former.backend, former_key, claimed):
            self._remove(self._now, key, moved)
            return None
        return self._swap(key, moved, moved.version)

    def _recover(self, key: str, record: Record, former: Place) -> None:
        """Finish what a process that died has begun, or undo it."""
        former_key = self._former_key(key)
        there = former.backend.load(former_key)
        is_claimed = there is not None and MOVING in there.meta
        if record.meta[MOVING] == _ARRIVING and there is not None and not is_claimed:
            self._remove(self._now, key, record)  # it went on there
            return
        if there is not None and is_claimed:
            self._remove(former.backend, former_key, there)
        # Last, so that nothing is there of a record without a mark.
        self._swap(key, _unmarked(record), record.version)

    def _swap(self, key: str, record: Record, expected: int) -> Record | None:
        result = self._now.replace(key, record, expected)
        if not isinstance(result, Replaced):
            return None
        return dataclasses.replace(record, version=result.version)

    def _remove(self, backend: Backend, key: str, record: Record) -> bool:
        ended = dataclasses.replace(record, expires_at=self._clock())
        return isinstance(backend.replace(key, ended, record.version), Replaced)

    def _former_key(self, key: str) -> str:
        assert self.former is not None  # noqa: S101 - for type checkers
        return self.former.prefix + key[len(self._prefix) :]

    # Listing

    def load_many(self, keys: t.Sequence[str]) -> dict[str, Record]:
        """Load several records from both places. Moves nothing."""
        there = self._load_there(keys)
        found = there | self._now.load_many(keys)
        missing = [key for key in keys if key not in found]
        # What has moved back between the two looks.
        found |= self._load_there(missing) if missing else {}
        return {key: _unmarked(record) for key, record in found.items()}

    def _load_there(self, keys: t.Sequence[str]) -> dict[str, Record]:
        if self.former is None or self.is_over:
            return {}
        names = {self._former_key(key): key for key in keys}
        there = self.former.backend.load_many([*names])
        return {names[name]: record for name, record in there.items()}

    def keys_of_user(self, user: str) -> list[str]:
        """Return the keys of a user's records in both places."""
        # What moves between two looks, in either direction, is found twice.
        there = self._keys_there(user)
        here = self._now.keys_of_user(user)
        return [*dict.fromkeys([*there, *here, *self._keys_there(user)])]

    def _keys_there(self, user: str) -> list[str]:
        if self.former is None or self.is_over:
            return []
        keys = self.former.backend.keys_of_user(user)
        return [own for key in keys if (own := self._own_key(key))]

    def _own_key(self, former_key: str) -> str:
        """Return the key that a record gets here; empty if it is another's."""
        prefix = self._prefix if self.former is None else self.former.prefix
        if not is_key(former_key, prefix):
            return ""
        return self._prefix + former_key[len(prefix) :]

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Go through the records in both places."""
        moving: set[str] = set()
        if self.former is not None and not self.is_over:
            for former_key, record in self.former.backend.iterate():
                if key := self._own_key(former_key):
                    if MOVING in record.meta:
                        moving.add(key)
                    yield key, _unmarked(record)
        for key, record in self._now.iterate():
            if key not in moving:
                yield key, _unmarked(record)

    def iterate_all(self) -> t.Iterator[tuple[str, Record]]:
        """Go through the records in both places, and the tombstones in this one."""
        tombstones = (item for item in self._now.iterate_all() if item[1].is_tombstone)
        return itertools.chain(tombstones, self.iterate())

    def count(self) -> int:
        """Return how many records there are in both places."""
        number = self._now.count()
        if self.former is not None and not self.is_over:
            number += self.former.backend.count()
        return number

    def prune(self, limit: int) -> int:
        """Delete expired records in both places."""
        return self._clean(limit, lambda backend, most: backend.prune(most))

    def sweep(self, limit: int) -> int:
        """Delete expired records in both places at a bounded cost."""
        return self._clean(limit, lambda backend, most: backend.sweep(most))

    def _clean(self, limit: int, clean: cabc.Callable[[Backend, int], int]) -> int:
        deleted = 0
        places = [self._now]
        if self.former is not None and not self.is_over:
            places.append(self.former.backend)
        for backend in places:
            if Capability.PRUNE in backend.capabilities and deleted < limit:
                deleted += clean(backend, limit - deleted)
        return deleted

    def close(self) -> None:
        """Close both."""
        self._now.close()
        if self.former is not None:
            self.former.backend.close()

    # Trying out

    def sample(self, limit: int) -> cabc.Iterator[dict[str, t.Any] | RecordError]:
        """Read some of the records that are still to be taken over. Changes nothing.

        :return: For each, why it cannot be; an empty mapping if it can.
        :raises NotSupportedError: if the place cannot list what it holds.
        """
        place = self.former or Place(self._now, self._prefix)
        for found_under, record in place.backend.iterate():
            if limit <= 0:
                return
            if not (key := self._own_key(found_under)):
                continue
            answer: dict[str, t.Any] | RecordError = {}
            try:
                converted = self._sealers.convert(record, key, found_under)
                if self.former is None and converted is record:
                    continue  # it is as it is to be
            except RecordError as error:
                answer = error
            limit -= 1
            yield answer


class _Patience:
    """How long a record has been seen with the same mark."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._version: int | None = None
        self._since = 0.0

    def is_over(self, record: Record) -> bool:
        """Wait a moment; return whether the mark is that of a process that died."""
        # Every mark has a version of its own. The clock is this process's alone.
        if record.version != self._version:
            self._version, self._since = record.version, time.monotonic()
        if time.monotonic() - self._since >= self._longest:
            return True
        time.sleep(_PAUSE)
        return False


def _marked(record: Record, mark: str) -> Record:
    return dataclasses.replace(record, meta={**record.meta, MOVING: mark})


def _unmarked(record: Record) -> Record:
    if MOVING not in record.meta:
        return record
    meta = {name: value for name, value in record.meta.items() if name != MOVING}
    return dataclasses.replace(record, meta=meta)
