"""The protocol that every backend follows, and its optional capabilities."""

from __future__ import annotations

import abc
import dataclasses
import enum
import typing as t

from ..errors import NotSupportedError
from ..errors import RecordError
from ..record import Record


class Capability(enum.Flag):
    """What a backend can do beyond the five operations that every one has."""

    #: None of the others.
    NONE = 0
    #: :meth:`Backend.replace` is atomic across threads, processes and machines.
    #: Without it a change can be lost, or a destroyed session revived, in the
    #: moment between the backend's own read and write.
    COMPARE_AND_SWAP = enum.auto()
    #: The engine removes expired records by itself, without :meth:`Backend.prune`.
    EXPIRES = enum.auto()
    #: :meth:`Backend.keys_of_user`
    USER_INDEX = enum.auto()
    #: :meth:`Backend.iterate`
    ITERATE = enum.auto()
    #: :meth:`Backend.count`
    COUNT = enum.auto()
    #: :meth:`Backend.prune`
    PRUNE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Replaced:
    """The record was replaced; ``version`` is its version now."""

    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing was written: the stored record has another version; here it is."""

    current: Record


@dataclasses.dataclass(frozen=True, slots=True)
class Gone:
    """Nothing was written: there is no such record, or it has expired."""


class Backend(abc.ABC):
    """Keeps records under keys. Knows nothing of Flask, cookies or what is in a record.

    Every method is safe to call from several threads at once, and, where the
    engine is shared, from several processes and machines.

    ``None``, ``False`` and :class:`.Gone` always mean *absent*. An engine that
    fails, refuses or times out raises :exc:`.BackendUnavailableError`; the two are
    never mixed up. A stored value that cannot be read raises :exc:`.RecordError`.

    A record whose :attr:`.Record.expires_at` is not after the current time is
    absent for every operation, whether it was cleaned up already or not.

    A tombstone (:attr:`.Record.is_tombstone`) is loaded and replaced like any
    other record, but :meth:`touch` and :meth:`delete` treat it as absent.
    """

    #: The name used in messages and on the command line.
    name: str = "custom"
    #: What the backend can do beyond the five operations.
    capabilities: Capability = Capability.NONE
    #: Whose records :meth:`iterate` and :meth:`count` keep to: those of the application
    #: whose keys are this and 64 hexadecimal digits. ``None`` if they give all, which
    #: may be several applications'; then those of one are counted by :meth:`iterate`.
    key_prefix: str | None = None

    @abc.abstractmethod
    def load(self, key: str) -> Record | None:
        """Return the record, or ``None`` if it is unknown or has expired.

        One round trip.

        :raises BackendUnavailableError: if the engine did not answer in time.
        :raises RecordError: if what is stored cannot be read.
        """

    @abc.abstractmethod
    def create(self, key: str, record: Record) -> bool:
        """Store a new record. Never overwrites a live one. One round trip.

        :return: ``False`` if the key is taken, also by a tombstone or by a record
            that cannot be read.
        :raises BackendUnavailableError: if the engine did not answer in time.
        """

    @abc.abstractmethod
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if, and only if, its stored version is the expected one.

        Atomic, and never creates. The new version is ``expected + 1``, whatever
        ``record.version`` says. The given record may have expired already: it then
        removes the stored one, if the version is the expected one, and counts as
        replaced.

        :raises BackendUnavailableError: if the engine did not answer in time.
        :raises RecordError: if what is stored cannot be read; it is left alone.
        """

    @abc.abstractmethod
    def delete(self, key: str) -> bool:
        """Remove the record.

        :return: ``True`` if there was one. A tombstone stays, and counts as absent.
        :raises BackendUnavailableError: if the engine did not answer in time.
        :raises RecordError: if what is stored has a newer format; it is left alone.
        """

    @abc.abstractmethod
    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Extend the life of a record without reading or rewriting its data.

        Does not change the version, so it never conflicts with a replace. Never
        shortens the life of a record, because another request may just have extended
        it. The exception is an ``expires_at`` in the past, which ends the record.

        :param touched_at: When the session was last used, in seconds since the epoch.
        :param expires_at: When the record expires at the earliest, in seconds since the
            epoch.
        :return: ``False`` if the record is absent, has expired or is a tombstone;
            nothing is created or changed then.
        :raises BackendUnavailableError: if the engine did not answer in time.
        """

    def load_many(self, keys: t.Sequence[str]) -> dict[str, Record]:
        """Load several records, for listing.

        Records that are expired, damaged or tombstones are left out. The records are
        loaded one by one, unless the backend overrides this method.

        :return: The records by their keys, in no special order.
        :raises BackendUnavailableError: if the engine did not answer in time.
        """
        found: dict[str, Record] = {}
        for key in keys:
            try:
                record = self.load(key)
            except RecordError:
                continue
            if record is not None and not record.is_tombstone:
                found[key] = record
        return found

    def keys_of_user(self, user: str) -> list[str]:
        """Return the keys of all live records of a user, tombstones left out.

        Records that are known to be the user's, but cannot be read, are included, so
        that ending all sessions of a user does not miss them.

        :raises NotSupportedError: without :attr:`Capability.USER_INDEX`.
        """
        raise NotSupportedError(self.name, "keys_of_user")

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Iterate over all live records, without tombstones, in no special order.

        :raises NotSupportedError: without :attr:`Capability.ITERATE`.
        """
        raise NotSupportedError(self.name, "iterate")

    def iterate_all(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records as :meth:`iterate` does, and the tombstones.

        For ending all sessions. An engine that lists in several steps can miss a
        session whose id changes meanwhile, and its tombstone tells where it went. The
        same as :meth:`iterate` unless the backend can do it.

        :raises NotSupportedError: without :attr:`Capability.ITERATE`.
        """
        return self.iterate()

    def count(self) -> int:
        """Return the number of live records, tombstones left out.

        :raises NotSupportedError: without :attr:`Capability.COUNT`.
        """
        raise NotSupportedError(self.name, "count")

    def prune(self, limit: int) -> int:
        """Delete at most ``limit`` expired records.

        :return: How many were deleted. Fewer than ``limit`` means that no other record
            had expired when this was called.
        :raises NotSupportedError: without :attr:`Capability.PRUNE`.
        """
        raise NotSupportedError(self.name, "prune")

    def sweep(self, limit: int) -> int:
        """Delete at most ``limit`` expired records at a bounded cost.

        For the automatic cleanup, for which a visitor waits. It is the same as
        :meth:`prune`, unless the backend would have to look at very many records. Then
        it may stop earlier, and the next call continues elsewhere.

        :return: How many were deleted; fewer than ``limit`` does not mean that nothing
            is left.
        :raises NotSupportedError: without :attr:`Capability.PRUNE`.
        """
        return self.prune(limit)

    def close(self) -> None:  # noqa: B027 - most backends have nothing to release
        """Release connections that the backend itself opened. It may be used again."""
