"""A new id for a stored session: the successor, and the tombstone that leads to it.

The successor exists before the old record goes, and the old record goes by
compare-and-swap. So a crash loses nothing, and two rotations at the same moment leave
one session. If the engine fails between the two steps, the session goes on under its
new id, and the next request buries the old one: see :mod:`.unsettled`.
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
from .errors import SerializationError
from .errors import ServerSessionError
from .ids import key_of_handle
from .logouts import logs_out
from .meta import LEFT_AT
from .meta import PREDECESSOR
from .meta import moved_part
from .record import TOMBSTONE_DATA
from .record import Record
from .unit import PERMANENT_KEY
from .unit import Cookie
from .unit import Identity
from .unit import Stored
from .unit import Unit

logger = logging.getLogger("flask_serversession")

#: Key in a tombstone's meta: the handle that the session has now.
SUCCESSOR = "successor"
#: Key in a tombstone's meta: the id changed, but not whom the session belongs to.
SAME_USER = "same_user"
#: Key in a tombstone's meta: the id is as old as :data:`SESSION_RENEWAL_INTERVAL`, and
#: nothing else has changed. Requests with the old id work on the successor. Signed.
RENEWED = "renewed"

#: Why the id of a session is renewed.
RENEWAL = "it is as old as 'SESSION_RENEWAL_INTERVAL'"
#: Why it is, if the user was there before the settings could find them.
_FOUND = "its user is found by other settings"
_CHANGED = "the user changed"

# How many steps a session is followed whose id is changing all the time. A step is
# faster than a change, so no client gets there.
_MAX_STEPS = 10_000
# How often a custom generator may return an id that is taken.
_MAX_TAKEN = 5


def find_reason(core: Core, unit: Unit, is_changed: bool) -> str:
    """Return why a session needs a new id that nobody asked for; empty if it does not.

    :param is_changed: Whether this request has changed what the session holds.
    :raises SerializationError: if the user of a changed session cannot be found.
    """
    config, stored = core.config, unit.stored
    assert stored is not None  # noqa: S101 - for type checkers
    if config.regenerate_on_login:
        before = stored.record.user
        try:
            user = core.user_of(unit.data)
        except SerializationError:
            if is_changed:
                raise
            user = before  # it was stored under other settings, and is only read
        if user != before:
            is_found = user is not None and not core.is_log_in(unit, user)
            return _FOUND if is_found else _CHANGED
    if (
        config.renewal_interval is not None
        # The browser is not told, or cannot be any more; the next request will do.
        and not unit.phase
        and not unit.is_passive
        and not unit.is_renewed
        and core.clock() - stored.envelope.issued_at >= config.renewal_interval
    ):
        return RENEWAL
    return ""


def predecessor_of(record: Record, prefix: str) -> str | None:
    """Return the key from which a record's session is moving, or has just moved."""
    return key_of_handle(record.meta.get(PREDECESSOR), prefix)


def successor_of(record: Record | None, prefix: str) -> str | None:
    """Return the key that a tombstone leads to; ``None`` if it is not a tombstone."""
    if record is None or not record.is_tombstone:
        return None
    return key_of_handle(record.meta.get(SUCCESSOR), prefix)


class Trail:
    """The way after a session whose id is changing, however often.

    There is no number of changes at which the session may be taken for ended.

    :param operation: What is being done, for the error.
    """

    def __init__(self, backend: Backend, prefix: str, operation: str) -> None:
        self._backend = backend
        self._prefix = prefix
        self._operation = operation
        self._left: set[str] = set()
        self._steps = 0

    def step(self) -> None:
        """Note that something has moved.

        :raises BackendUnavailableError: after ten thousand times.
        """
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise BackendUnavailableError(
                f"{self._operation} has met {_MAX_STEPS} changes, and sessions go on"
                " changing their ids. They may be live: call it again, and find out"
                " which client asks for so many new ids.",
                backend=self._backend.name,
                operation=self._operation,
            )

    def leave(self, key: str, found: Record | None) -> str | None:
        """Return the key that a tombstone leads to; ``None`` if there is no session.

        :param found: What was found under the key.
        """
        self.step()
        self._left.add(key)
        successor = successor_of(found, self._prefix)
        # Tombstones that lead in a circle were not written by this library.
        return None if successor in self._left else successor


def follow(backend: Backend, key: str, prefix: str) -> cabc.Iterator[str]:
    """Go through the keys that a session has got since it had this one."""
    trail = Trail(backend, prefix, "follow")
    while True:
        try:
            successor = trail.leave(key, backend.load(key))
        except RecordError:
            return
        if successor is None:
            return
        yield (key := successor)


@dataclasses.dataclass(slots=True)
class Successor:
    """A session under its new id, which is stored and which nobody was told yet."""

    identity: Identity
    stored: Stored


def create(
    core: Core,
    unit: Unit,
    identity: Identity,
    payload: bytes,
    now: float,
    created_at: float,
    renews: bool = True,
) -> tuple[Identity, Stored]:
    """Store a new record under an id, or under another one if that is taken."""
    for _ in range(_MAX_TAKEN):
        made = core.make(unit, identity, payload, now, created_at, now, renews=renews)
        try:
            is_created = core.ask(
                unit, "create", core.backend.create, identity.key, made.record
            )
        except BaseException:
            # The record may have been created, but no browser will learn its id.
            core.leftovers.add(identity.key)
            raise
        if is_created:
            core.ended.discard(identity.key)
            return identity, made
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
        :raises RecordError: if what is stored now cannot be read.
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
        successor = self._store(core.dumps(unit, encoded), renews, reason)
        if successor is None:
            # Revoked before anybody knew it; so is what it was to follow.
            if core.ask(unit, "delete", core.backend.delete, old_key):
                core.send_destroyed(old_key, old_record.user, "revoked")
            return False
        try:
            outcome = self._bury(successor, reason)
        except BackendUnavailableError:
            self._go_on_unsettled(successor)
            raise
        except RecordError:
            raise
        except BaseException:
            self._undo(successor)
            raise
        if outcome is not True:
            return outcome
        core.ended.add(old_key, "replaced" if unit.is_restarted else "rotated")
        self._move(successor)
        logger.debug(
            "Session %s rotated to %s: %s",
            core.handle_of(old_key),
            core.handle_of(unit.key),
            reason,
        )
        return True

    def _store(self, payload: bytes, renews: bool, reason: str) -> Successor | None:
        """Store the successor; ``None`` if it was ended before anybody knew it."""
        core, unit = self._core, self._unit
        now = core.clock()
        created_at = now if unit.is_restarted else unit.record.created_at
        meta = unit.meta
        pending = self.pending
        identity = core.issue() if pending is None else pending.identity
        before = {
            PREDECESSOR: core.handle_of(unit.key),
            LEFT_AT: str(unit.record.version),
        }
        unit.meta = {**meta, **before, **self._renewed(reason, identity)}
        try:
            if pending is None:
                identity, made = create(
                    core, unit, identity, payload, now, created_at, renews
                )
            else:
                earlier = pending.stored
                made = core.make(
                    unit,
                    identity,
                    payload,
                    now,
                    created_at,
                    earlier.envelope.issued_at,
                    renews=renews,
                )
                replaced = core.ask(
                    unit,
                    "replace",
                    core.backend.replace,
                    identity.key,
                    made.record,
                    earlier.record.version,
                )
                if not isinstance(replaced, Replaced):
                    return None
                made = made.changed(version=replaced.version)
        finally:
            unit.meta = meta
        self.pending = Successor(identity, made)
        return self.pending

    def _bury(self, successor: Successor, reason: str) -> bool | Record:
        """Put the tombstone in place of the old record.

        :return: ``False`` if that was ended by another request, and what another
            request has stored there if it was changed or rotated.
        """
        core, unit = self._core, self._unit
        old_record = unit.record
        # The handle tells revoke() where the session went, and tells our own tombstone
        # from another's, should the acknowledgement of it get lost.
        handle = core.handle_of(successor.identity.key)
        meta = {SUCCESSOR: handle, **self._renewed(reason, successor.identity)}
        if old_record.user == successor.stored.record.user and not unit.is_restarted:
            meta[SAME_USER] = "yes"
        tombstone = make_tombstone(
            core.clock(), core.clock() + core.config.rotation_grace, meta
        )
        result = core.ask(
            unit,
            "replace",
            core.backend.replace,
            unit.key,
            tombstone,
            old_record.version,
        )
        if isinstance(result, Conflict):
            is_own = successor_of(result.current, core.config.key_prefix)
            return result.current if is_own != successor.identity.key else True
        return isinstance(result, Replaced)

    def _go_on_unsettled(self, successor: Successor) -> None:
        """Go on under the new id, though nobody knows what is under the old one.

        It may or may not be a tombstone. The next request finds out, and puts one
        there: see :mod:`.unsettled`. Not on a log-out: the old session may still be
        live, so don't pretend that it ended.
        """
        if self._unit.record.user is None or successor.stored.record.user is not None:
            self._move(successor)
            self._unit.is_unsettled = True

    def _undo(self, successor: Successor) -> None:
        """Put everything back as it was, after an interruption.

        The browser may never get an answer, and then keeps using the old id. A log-out
        is not undone: others may already have been told of it.
        """
        backend, key = self._core.backend, self._unit.key
        is_undone = False
        try:
            current = backend.load(key)
            if successor_of(current, self._core.config.key_prefix) == (
                successor.identity.key
            ):
                assert current is not None  # noqa: S101 - for type checkers
                if SAME_USER in current.meta or self._unit.stored_user is None:
                    self._go_back(successor, current)
                    self.pending = None
            is_undone = True
        except (BackendError, RecordError):
            pass  # what has interrupted is raised
        finally:
            if not is_undone:
                self._go_on_unsettled(successor)

    def _go_back(self, successor: Successor, tombstone: Record) -> None:
        """Store the session under its old id again, with what others have changed."""
        core, backend = self._core, self._core.backend
        key, new_key = self._unit.key, successor.identity.key
        restored, latest, version = (
            self._unit.record,
            successor.stored.record,
            tombstone.version,
        )
        meta = {SUCCESSOR: core.handle_of(key)}
        if RENEWED in tombstone.meta:
            # Whoever works on the session under the new id has come by the old one.
            meta[RENEWED] = self._unit.signer.attest(f"{new_key} {key}")
        while True:
            replaced = backend.replace(key, restored, version)
            if not isinstance(replaced, Replaced):
                return
            version, now = replaced.version, core.clock()
            back = make_tombstone(now, now + core.config.rotation_grace, meta)
            result = backend.replace(new_key, back, latest.version)
            if not isinstance(result, Conflict):
                if not isinstance(result, Replaced):
                    backend.delete(key)  # it was ended meanwhile, by its new id
                return
            latest = result.current
            if latest.is_tombstone:
                backend.replace(key, tombstone, version)  # it has moved on
                return
            restored = core.sealer.move(latest, new_key, key, self._unit.record)
            restored = dataclasses.replace(restored, meta=moved_part(latest.meta, {}))

    def _renewed(self, reason: str, identity: Identity) -> dict[str, str]:
        """Return what tells that nothing has changed but the id, which is this one."""
        if reason not in (RENEWAL, _FOUND):
            return {}
        note = f"{self._unit.key} {identity.key}"
        return {RENEWED: self._unit.signer.attest(note)}

    def _move(self, successor: Successor) -> None:
        """Go on under the new id."""
        self.pending = None
        self._unit.identity = successor.identity
        self._unit.is_renewed = self._unit.is_unsettled = False
        self._unit.owed = Cookie.SET
        self._core.keep(self._unit, successor.stored)

    def take_back(self) -> None:
        """Delete a successor that is not needed."""
        if self.pending is not None:
            key, self.pending = self.pending.identity.key, None
            try:
                self._core.ask(self._unit, "delete", self._core.backend.delete, key)
            except BaseException:
                self._core.leftovers.add(key)
                raise

    def give_up(self) -> None:
        """Leave a successor that is not needed to be deleted later."""
        if self.pending is not None:
            self._core.leftovers.add(self.pending.identity.key)
            self.pending = None


def refuse_if_closed(unit: Unit, message: str) -> None:
    """Refuse a change of the id that the browser could not learn of.

    :param message: What to say after the response.
    """
    if not unit.is_closed:
        return
    if unit.is_outside:
        raise ServerSessionError(
            "A session that was opened from outside keeps its id and its user, since"
            " only its own browser can be given others. Leave them as they are, or end"
            " the session with clear()."
        )
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


def follow_renewal(
    core: Core,
    unit: Unit,
    tombstone: Record,
    load: cabc.Callable[[str], Record | None],
) -> Record | None:
    """Follow a session whose id another request has only renewed.

    With any other new id, privileges may have changed. A change from outside follows
    the session to any id, as long as the user is the same.

    :param tombstone: What was found under the id. Its word is only taken if it was
        signed: whoever can write to the store could lead to another's session.
    :return: The session's record; ``None`` if this id no longer leads to it.
    :raises RecordError: if it cannot be read.
    """
    trail = Trail(core.backend, core.config.key_prefix, "load")
    key = unit.key
    while True:
        meta = tombstone.meta
        successor = trail.leave(key, tombstone)
        if successor is None or not (
            unit.signer.attests(f"{key} {successor}", meta.get(RENEWED, ""))
            or (unit.is_outside and meta.get(SAME_USER))
        ):
            return None
        key = successor
        found = load(key)
        if found is None:
            return None
        if not found.is_tombstone:
            unit.follow(key)
            return found
        tombstone = found


def delete_successor(core: Core, unit: Unit, tombstone: Record) -> None:
    """End a session under the id that another request has just given it.

    Somebody who logs out while a background request renews the id wants to be logged
    out. After a log-in the old id has no say in the new session.
    """
    trail = Trail(core.backend, core.config.key_prefix, "delete")
    key = ""
    found: Record | None = tombstone
    while found is not None:
        if found.is_tombstone:
            meta = found.meta
            successor = trail.leave(key, found)
            if successor is None or not (meta.get(SAME_USER) or meta.get(RENEWED)):
                return
            key = successor
        else:
            trail.step()
        if core.ask(unit, "delete", core.backend.delete, key):
            core.send_destroyed(key, None, "logged out")
            return
        found = core.ask(unit, "load", core.backend.load, key)


def is_somebody_left(core: Core, unit: Unit) -> bool:
    """Whether the same user is logged in under the id that a session has now."""
    trail = Trail(core.backend, core.config.key_prefix, "load")
    key = unit.key
    while True:
        try:
            record = core.ask(unit, "load", core.backend.load, key)
        except RecordError:
            return True  # nobody can tell, and the log-out will say so
        if record is None or not record.is_tombstone:
            return record is not None and record.user is not None
        successor = trail.leave(key, record)
        if successor is None or not record.meta.get(SAME_USER):
            return False
        key = successor


def log_out_successor(core: Core, unit: Unit, tombstone: Record) -> None:
    """End the successor, if the change that cannot be saved any more is a log-out."""
    if logs_out(core, unit):
        delete_successor(core, unit, tombstone)
