"""Brings a change of the id to its end that has failed half-way.

The engine has failed between the two steps, and nobody knows how far it got. The
browser goes on with the new id, and its next request finds out what has become of the
old one. What was answered with a failure yields to what other requests have stored
under the old id since, with a success.
"""

from __future__ import annotations

import dataclasses

from .backends.base import Conflict
from .backends.base import Replaced
from .core import Core
from .errors import RecordError
from .meta import LEFT_AT
from .meta import internal_part
from .meta import moved_part
from .payload import read_issued_at
from .record import Record
from .rotation import RENEWED
from .rotation import SAME_USER
from .rotation import SUCCESSOR
from .rotation import Trail
from .rotation import delete_successor
from .rotation import make_tombstone
from .rotation import predecessor_of
from .unit import Unit

# For which part of the time that a tombstone lives an empty place means that there was
# none: the session was ended. Clocks differ.
_CERTAIN = 0.5


class Settlement:
    """Ends what may be left of a session under the id before the one that it has now.

    :param record: What is stored under that.
    """

    def __init__(self, core: Core, unit: Unit, record: Record) -> None:
        self._core = core
        self._unit = unit
        self._record: Record | None = record
        self._began_at = read_issued_at(record.data)
        self._first = predecessor_of(record, core.config.key_prefix)

    def settle(self) -> Record | None:
        """Return what is stored under the new id then; ``None`` if the session ended.

        :raises RecordError: if a newer version has written what is left.
        """
        core, backend = self._core, self._core.backend
        key = self._first
        trail = Trail(backend, core.config.key_prefix, "replace")
        while key is not None and self._record is not None:
            try:
                old = core.breaker.ask(backend.load, key)
            except RecordError:
                core.breaker.ask(backend.delete, key)  # nobody can use it
                break
            if old is None:
                if self._was_ended(key):
                    self._end()
                break
            if old.is_tombstone:
                key = self._leave(key, trail.leave(key, old), old)
            elif self._bury(key, old):
                break
            else:
                trail.step()
        self._unit.is_unsettled = False
        return self._record

    def _was_ended(self, key: str) -> bool:
        """Whether nothing under an id means that its session was ended.

        It may also have been left for the new id, by a tombstone that has expired.
        """
        grace, began_at = self._core.config.rotation_grace, self._began_at
        return key != self._first or (
            began_at is not None and self._core.clock() - began_at < grace * _CERTAIN
        )

    def _leave(self, key: str, successor: str | None, tombstone: Record) -> str | None:
        """Return the key to continue with; ``None`` if everything is settled."""
        unit, meta = self._unit, tombstone.meta
        if successor is None or successor == unit.key:
            return None
        if unit.signer.attests(f"{key} {successor}", meta.get(RENEWED, "")):
            return successor
        if meta.get(SAME_USER):
            # Somebody has got another id for it, by the one that was to go.
            delete_successor(self._core, unit, tombstone)
        elif self._has_same_user(successor):
            return successor  # who has logged in here has also logged in there
        else:
            self._end()  # somebody else is logged in there, or nobody
        return None

    def _has_same_user(self, key: str) -> bool:
        """Whether a session belongs to the user of this one."""
        core, record = self._core, self._record
        found = core.breaker.ask(core.backend.load, key)
        user = None if found is None or found.is_tombstone else found.user
        return user is not None and record is not None and user == record.user

    def _bury(self, key: str, old: Record) -> bool:
        """Put a tombstone in place of a live record; return whether that came off."""
        core, unit = self._core, self._unit
        record = self._record
        assert record is not None  # noqa: S101 - for type checkers
        left_at = record.meta.get(LEFT_AT)
        if key != self._first or left_at not in (None, str(old.version)):
            record = self._bring_in(key, old, record)
            if record is None:
                return False
        meta = {SUCCESSOR: core.handle_of(unit.key)}
        if old.user == record.user:
            meta[SAME_USER] = "yes"
        if RENEWED in record.meta:
            meta[RENEWED] = unit.signer.attest(f"{key} {unit.key}")
        now = core.clock()
        tombstone = make_tombstone(now, now + core.config.rotation_grace, meta)
        result = core.breaker.ask(core.backend.replace, key, tombstone, old.version)
        if isinstance(result, Conflict):
            return False
        core.ended.add(key, "rotated")
        return True

    def _bring_in(self, key: str, old: Record, record: Record) -> Record | None:
        """Store under the new id what others have stored since under the old one.

        :return: ``None`` if another request was in the way.
        """
        core, unit = self._core, self._unit
        marks = {**internal_part(record.meta), LEFT_AT: str(old.version)}
        try:
            moved = core.sealer.move(old, key, unit.key, record)
        except RecordError:
            return record  # of no use to anybody
        moved = dataclasses.replace(moved, meta=moved_part(old.meta, marks))
        result = core.breaker.ask(core.backend.replace, unit.key, moved, record.version)
        if isinstance(result, Replaced):
            moved = dataclasses.replace(moved, version=result.version)
            self._record = moved
            return moved
        found = result.current if isinstance(result, Conflict) else None
        self._record = None if found is None or found.is_tombstone else found
        return None

    def _end(self) -> None:
        """End the session, since another request did so by its former id."""
        self._record = None
        self._core.breaker.ask(self._core.backend.delete, self._unit.key)
