"""A new id for a stored session: the successor, and the tombstone that leads to it.

The successor exists before the old record goes, and the old record goes by
compare-and-swap. So a crash loses nothing, and two rotations at the same moment leave
one session. If the engine fails between the two steps, the successor stays until it
expires; nobody was told its id.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import logging

from .backends.base import Backend
from .backends.base import Conflict
from .backends.base import Replaced
from .core import Core
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import RecordError
from .errors import ServerSessionError
from .ids import key_of_handle
from .record import TOMBSTONE_DATA
from .record import Record
from .unit import PERMANENT_KEY
from .unit import Cookie
from .unit import Identity
from .unit import Unit
from .unit import Wish

logger = logging.getLogger("flask_serversession")

#: Key in a tombstone's meta: the handle that the session has now.
SUCCESSOR = "successor"
#: Key in a tombstone's meta: the id changed, but not whom the session belongs to.
SAME_USER = "same_user"
#: Key in the meta of a record that has just got its id: the handle before. While the
#: id changes there are two records of one session, and this tells.
PREDECESSOR = "predecessor"

#: How many rotations are followed: as many as fit into one grace period.
MAX_STEPS = 10
# How often a custom generator may return an id that is taken.
_MAX_TAKEN = 5


def predecessor_of(record: Record, prefix: str) -> str | None:
    """Return the key from which a record's session is moving, or has just moved."""
    return key_of_handle(record.meta.get(PREDECESSOR), prefix)


def successor_of(record: Record | None, prefix: str) -> str | None:
    """Return the key that a tombstone leads to; ``None`` if it is none."""
    if record is None or not record.is_tombstone:
        return None
    return key_of_handle(record.meta.get(SUCCESSOR), prefix)


def follow(backend: Backend, key: str, prefix: str) -> cabc.Iterator[str]:
    """Go through the keys that a session has got since it had this one."""
    for _ in range(MAX_STEPS):
        try:
            successor = successor_of(backend.load(key), prefix)
        except RecordError:
            return
        if successor is None:
            return
        yield (key := successor)


@dataclasses.dataclass(slots=True)
class Successor:
    """A session under its new id, which is stored and which nobody was told yet."""

    identity: Identity
    record: Record
    payload: bytes = dataclasses.field(repr=False)
    issued_at: float


def create(
    core: Core,
    unit: Unit,
    identity: Identity,
    payload: bytes,
    now: float,
    created_at: float,
    renews: bool = True,
) -> tuple[Identity, Record]:
    """Store a new record under an id, or under another one if that is taken."""
    for _ in range(_MAX_TAKEN):
        record = core.make_record(
            unit, identity, payload, now, created_at, now, renews=renews
        )
        if core.ask(unit, "create", core.backend.create, identity.key, record):
            core.ended.discard(identity.key)
            return identity, record
        identity = core.issue()
    raise BackendError(
        f"{_MAX_TAKEN} new ids in a row were taken already; check"
        " 'SESSION_ID_GENERATOR'.",
        backend=core.backend.name,
        operation="create",
    )


class Rotation:
    """One change of one session's id, through as many attempts as it takes."""

    def __init__(self, core: Core, unit: Unit) -> None:
        self._core = core
        self._unit = unit
        #: What is stored under the new id, until it is known whether it is needed.
        self.pending: Successor | None = None

    def attempt(
        self, reason: str, renews: bool, encoded: bytes | None
    ) -> bool | Record:
        """Move the session to a new id, and leave a tombstone under the old one.

        :return: Whether it came off, or the record of another request that was in
            the way.
        :raises ServerSessionError: if the response was sent already.
        """
        core, unit = self._core, self._unit
        refuse_if_closed(
            unit,
            f"The session needs a new id ({reason}), but the response was already"
            " sent and the browser cannot learn it. Log in and out in an ordinary"
            " request.",
        )
        old_key, old_record = unit.key, unit.record
        if unit.is_restarted and core.config.permanent:
            unit.data.setdefault(PERMANENT_KEY, True)
            encoded = None
        successor = self._store(core.dumps(unit, encoded), renews)
        if successor is None:
            # Revoked before anybody knew it; so is what it was to follow.
            if core.ask(unit, "delete", core.backend.delete, old_key):
                core.send_destroyed(old_key, old_record.user)
            return False
        try:
            outcome = self._bury(successor)
        except BackendUnavailableError:
            # The old record may or may not be a tombstone. Switch to the new id,
            # except on log-out: the old session may still be live, so don't pretend
            # that it ended.
            if old_record.user in (None, successor.record.user):
                self._move(successor)
            raise
        if outcome is not True:
            return outcome
        core.ended.add(old_key)
        self._move(successor)
        logger.debug(
            "Session %s rotated to %s: %s",
            core.handle_of(old_key),
            core.handle_of(unit.key),
            reason,
        )
        return True

    def _store(self, payload: bytes, renews: bool) -> Successor | None:
        """Store the successor; ``None`` if it was ended before anybody knew it."""
        core, unit = self._core, self._unit
        issued_at = now = core.clock()
        created_at = now if unit.is_restarted else unit.record.created_at
        meta = unit.meta
        if core.user_of(unit.data) is not None:
            unit.meta = {**meta, PREDECESSOR: core.handle_of(unit.key)}
        try:
            if (pending := self.pending) is None:
                identity, record = create(
                    core, unit, core.issue(), payload, now, created_at, renews
                )
            else:
                identity, issued_at = pending.identity, pending.issued_at
                record = core.make_record(
                    unit, identity, payload, now, created_at, issued_at, renews=renews
                )
                replaced = core.ask(
                    unit,
                    "replace",
                    core.backend.replace,
                    identity.key,
                    record,
                    pending.record.version,
                )
                if not isinstance(replaced, Replaced):
                    return None
                record = dataclasses.replace(record, version=replaced.version)
        finally:
            unit.meta = meta
        self.pending = Successor(identity, record, payload, issued_at)
        return self.pending

    def _bury(self, successor: Successor) -> bool | Record:
        """Put the tombstone in place of the old record.

        :return: ``False`` if that was ended or rotated by another request, and the
            record that another request has stored there if it was changed.
        """
        core, unit = self._core, self._unit
        old_record = unit.record
        # The handle tells revoke() where the session went, and tells our own tombstone
        # from another's, should the acknowledgement of it get lost.
        handle = core.handle_of(successor.identity.key)
        meta = {SUCCESSOR: handle}
        if old_record.user == successor.record.user and not unit.is_restarted:
            meta[SAME_USER] = "yes"
        tombstone = make_tombstone(
            core.clock(), core.clock() + core.config.rotation_grace, meta
        )
        try:
            result = core.ask(
                unit,
                "replace",
                core.backend.replace,
                unit.key,
                tombstone,
                old_record.version,
            )
        except RecordError:
            return False
        if isinstance(result, Conflict):
            if not result.current.is_tombstone:
                return result.current
            if result.current.meta.get(SUCCESSOR) == handle:
                return True
            log_out_successor(core, unit, result.current)
            return False
        return isinstance(result, Replaced)

    def _move(self, successor: Successor) -> None:
        """Go on under the new id."""
        self.pending = None
        self._unit.identity = successor.identity
        self._unit.owed = Cookie.SET
        self._core.keep(
            self._unit, successor.record, successor.payload, successor.issued_at
        )

    def take_back(self) -> None:
        """Delete a successor that is not needed."""
        if self.pending is not None:
            key, self.pending = self.pending.identity.key, None
            self._core.ask(self._unit, "delete", self._core.backend.delete, key)


def refuse_if_closed(unit: Unit, message: str) -> None:
    """Refuse what the browser would have to be told of, if that is impossible.

    :param message: What to say after the response.
    """
    if unit.is_outside:
        raise ServerSessionError(
            "A session that was opened from outside keeps its id and its user, since"
            " only its own browser can be given others. Leave them as they are, or end"
            " the session with clear()."
        )
    if unit.is_closed:
        raise ServerSessionError(message)


def make_tombstone(
    now: float, expires_at: float, meta: cabc.Mapping[str, str]
) -> Record:
    """Return what is left under an id that leads to another one."""
    return Record(
        data=TOMBSTONE_DATA,
        version=0,
        created_at=now,
        touched_at=now,
        expires_at=expires_at,
        meta=meta,
    )


def go_along(core: Core, unit: Unit, tombstone: Record) -> Record | None:
    """Go on, from outside, with a session under the id that it has got meanwhile.

    A request's own changes do not follow: what it was allowed to do may have changed
    with the id. Who changes a session from outside asks for the session, whatever id
    it has, as long as it has the same user.

    :return: Its record; ``None`` if it is another session now.
    """
    prefix = core.config.key_prefix
    record: Record | None = tombstone
    for _ in range(MAX_STEPS):
        key = successor_of(record, prefix)
        if record is None or key is None or not record.meta.get(SAME_USER):
            return None
        record = core.ask(unit, "load", core.backend.load, key)
        if record is not None and not record.is_tombstone:
            unit.identity = Identity("", key)
            return record
    return None


def delete_successor(core: Core, unit: Unit, tombstone: Record) -> None:
    """End a session under the id that another request has just given it.

    Somebody who logs out while a background request renews the id wants to be logged
    out. After a log-in the old id has no say in the new session.
    """
    prefix = core.config.key_prefix
    for _ in range(MAX_STEPS):
        key = successor_of(tombstone, prefix)
        if key is None or not tombstone.meta.get(SAME_USER):
            return
        if core.ask(unit, "delete", core.backend.delete, key):
            core.send_destroyed(key, None)
            return
        found = core.ask(unit, "load", core.backend.load, key)
        if found is None or not found.is_tombstone:
            return
        tombstone = found


def log_out_successor(core: Core, unit: Unit, tombstone: Record) -> None:
    """End the successor, if the change that cannot be saved any more is a log-out."""
    has_nobody = unit.is_restarted or core.user_of(unit.data) is None
    if unit.wish is Wish.END or (unit.stored_user is not None and has_nobody):
        delete_successor(core, unit, tombstone)
