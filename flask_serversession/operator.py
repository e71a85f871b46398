"""What an operator may do with the sessions of an application: list, find and end them.

Functions on :class:`AppState`; :class:`.ServerSession` and the command line call them.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import re
import typing as t

from .backends.base import Backend
from .backends.base import Capability
from .config import SessionConfig
from .core import counts_from
from .errors import NotSupportedError
from .errors import RecordError
from .ids import is_key
from .ids import key_of_handle
from .interface import ServerSessionInterface
from .meta import shown_part
from .opened import opened_session
from .payload import read_bound
from .record import Record
from .rotation import RENEWED
from .rotation import SAME_USER
from .rotation import Trail
from .rotation import follow
from .rotation import predecessor_of
from .rotation import successor_of
from .sessions import lifecycle_of
from .sessions import unit_of
from .takeover import Takeover
from .unit import Known
from .users import StoredName
from .users import stored_name_of

T = t.TypeVar("T")

#: How many digits of a handle have to be given.
LEAST_DIGITS = 8
# A whole handle, or how one begins.
_HANDLE = re.compile(rf"[0-9a-f]{{{LEAST_DIGITS},64}}")
# After how many sessions progress is told.
_STEP = 100


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """What an operator may see of a session."""

    #: The session's public name, for :meth:`ServerSession.revoke` and ``open``.
    handle: str
    #: The id of the user, ``None`` if nobody is logged in. ``sha256:`` and a hash if it
    #: has more than 255 characters.
    user: str | None
    #: When it began, in UTC.
    created_at: dt.datetime
    #: When the user last logged in or proved their identity, in UTC. ``None`` if nobody
    #: is logged in, and ``created_at`` if it is unknown.
    authenticated_at: dt.datetime | None
    #: The last activity recorded, in UTC; exact to :data:`SESSION_TOUCH_INTERVAL`.
    last_seen_at: dt.datetime
    #: When it ends if it is not used, in UTC.
    expires_at: dt.datetime
    #: What :data:`SESSION_TRACK` asks for, and the application's
    #: :attr:`.ServerSideSession.meta`.
    meta: cabc.Mapping[str, str]
    #: Whether it is the session of the current request.
    current: bool
    #: Whether the session is bound to a device: see :data:`SESSION_DEVICE_BOUND`.
    is_device_bound: bool = False


@dataclasses.dataclass(frozen=True)
class AppState:
    """What the extension keeps for one application, under ``app.extensions``."""

    config: SessionConfig
    backend: Backend
    interface: ServerSessionInterface
    #: What takes over sessions of other kinds; ``None`` if none are.
    takeover: Takeover | None

    def is_own(self, key: str) -> bool:
        """Whether a key belongs to this application: others may share the store."""
        return is_key(key, self.config.key_prefix)

    def keys_of_user(self, user: object) -> list[str]:
        """Return the keys of a user's live sessions.

        :raises NotSupportedError: if the backend keeps no index of users.
        :raises ValueError: for ``None``, which is nobody.
        """
        if Capability.USER_INDEX not in self.backend.capabilities:
            raise NotSupportedError(self.backend.name, "keys_of_user")
        keys = self.backend.keys_of_user(stored_name_of(user))
        return [key for key in keys if self.is_own(key)]

    def send_destroyed(self, key: str, user: str | None) -> None:
        """Send the signal that a session was ended."""
        own = opened_session()
        if own is not None and unit_of(own).key == key:
            unit_of(own).has_revoked = True
        self.interface.core.send_destroyed(key, user, "revoked")

    def current_key(self) -> str | None:
        """Return the key of the current request's session; one cookie costs nothing."""
        session = opened_session()
        lifecycle = self.interface.lifecycle
        # An app context may have been pushed inside another application's request.
        if session is None or lifecycle_of(session) is not lifecycle:
            return None
        # What is made of the answer depends on the cookie.
        session.accessed = True
        unit = unit_of(session)
        lifecycle.loader.verify(unit)
        if len(unit.presented.values) > 1 and unit.known is Known.UNSEEN:
            lifecycle.loader.load(unit)  # which of them is in use?
        return unit.key or None

    def loaded_key(self) -> str | None:
        """Return the key that the current request's session has now.

        Where ids are renewed, another request may have done that, which is only known
        once the session is loaded.
        """
        current, session = self.current_key(), opened_session()
        if current is None or session is None or self.config.renewal_interval is None:
            return current
        unit = unit_of(session)
        if unit.known is Known.UNSEEN:
            self.interface.lifecycle.loader.load(unit)
        return unit.key or None

    def info(self, key: str, record: Record, current: str | None) -> SessionInfo:
        """Return the public view of a record.

        :param current: The key of the current request's session.
        """
        return SessionInfo(
            handle=key[len(self.config.key_prefix) :],
            user=None if record.user is None else StoredName(record.user),
            created_at=_utc(record.created_at),
            authenticated_at=(
                None if record.user is None else _utc(counts_from(record))
            ),
            last_seen_at=_utc(record.touched_at),
            expires_at=_utc(record.expires_at),
            meta=shown_part(record.meta),
            current=key == current,
            is_device_bound=(
                self.config.device_bound and read_bound(record.data) is not None
            ),
        )


def counted(
    items: cabc.Iterable[T], progress: cabc.Callable[[int], None] | None
) -> cabc.Iterator[T]:
    """Return an iterator that tells how many have gone by."""
    for number, item in enumerate(items, 1):
        if progress is not None and number % _STEP == 0:
            progress(_STEP)
        yield item


def is_handle(text: object) -> bool:
    """Whether it can be a handle, or the first digits of one."""
    return isinstance(text, str) and _HANDLE.fullmatch(text) is not None


def find_key(
    state: AppState,
    handle: object,
    progress: cabc.Callable[[int], None] | None = None,
) -> str | None:
    """Return the key of a handle. A whole handle needs no round trip.

    :param handle: The handle, or its first eight digits or more.
    :param progress: Told how many sessions were looked at.
    :return: ``None`` if there is no such session, or it is no handle.
    :raises LookupError: if several sessions begin like that.
    :raises NotSupportedError: if the backend cannot look for it.
    """
    prefix = state.config.key_prefix
    key = key_of_handle(handle, prefix)
    if key is not None or not is_handle(handle):
        return key
    start = f"{prefix}{handle}"
    found = sorted(
        key
        for key, _ in counted(state.backend.iterate(), progress)
        if key.startswith(start) and state.is_own(key)
    )
    if len(found) > 1:
        digits = len(start) + 4
        shown = ", ".join(key[len(prefix) : digits] for key in found[:5])
        raise LookupError(
            f"{len(found)} sessions begin with {handle}, such as {shown}. Give more"
            " digits."
        )
    return found[0] if found else None


def sessions_of(state: AppState, user: object) -> list[SessionInfo]:
    """List the live sessions of a user, those that logged in first first."""
    records = state.backend.load_many(state.keys_of_user(user))
    current = state.current_key()
    if current is not None and current not in records:
        current = state.loaded_key()
    for key in [*records]:
        # Two records of one session, whose id is just being changed.
        before = predecessor_of(records[key], state.config.key_prefix)
        if before in records:
            del records[before if key == current else key]
    return sorted(
        (state.info(key, record, current) for key, record in records.items()),
        key=lambda info: (info.authenticated_at or info.created_at, info.created_at),
    )


def find(state: AppState, handle: str) -> SessionInfo | None:
    """Return what is known of a session; ``None`` if there is none."""
    if (key := find_key(state, handle)) is None:
        return None
    record = state.backend.load_many([key]).get(key)
    if record is None:
        return None
    current = state.current_key()
    return state.info(key, record, state.loaded_key() if current != key else current)


def sessions(state: AppState) -> cabc.Iterator[SessionInfo]:
    """Go through all live sessions, in no order."""
    current = state.loaded_key()
    for key, record in state.backend.iterate():
        if state.is_own(key):
            yield state.info(key, record, current)


def revoke(state: AppState, handle: str) -> bool:
    """End a session, under the id that it has now; ``False`` if there was none."""
    key = find_key(state, handle)
    if key is None:
        return False
    ended = _end(state, key, None, is_any_user=True)
    if ended is None:
        return False
    state.send_destroyed(*ended)
    return True


class _Listed(t.NamedTuple):
    """A session that may be ended."""

    user: str | None
    #: The key from which it is moving, or has just moved.
    predecessor: str | None = None
    created_at: float = 0.0


def _listed(record: Record, prefix: str) -> _Listed:
    """Return what is known of a session by its record."""
    return _Listed(record.user, predecessor_of(record, prefix), record.created_at)


def _look(state: AppState, key: str) -> _Listed | None:
    """Return what is known of a session that has a new key, or had it just now."""
    with contextlib.suppress(RecordError):
        record = state.backend.load(key)
        if record is None:
            return None
        if not record.is_tombstone:
            return _listed(record, state.config.key_prefix)
    return _Listed(None)  # _end() goes after it


def revoke_user(state: AppState, user: object, except_current: bool) -> int:
    """End the sessions of a user, everywhere; return how many were ended."""
    current = state.current_key() if except_current else None

    def find() -> dict[str, _Listed]:
        keys = state.keys_of_user(user)
        records = state.backend.load_many(keys) if current is not None else {}
        prefix = state.config.key_prefix
        moving = {key: predecessor_of(records[key], prefix) for key in records}
        name = stored_name_of(user)
        return {key: _Listed(name, moving.get(key)) for key in keys}

    return _end_all(state, find, current, "revoke_user")


def revoke_all(
    state: AppState,
    except_current: bool,
    progress: cabc.Callable[[int], None] | None = None,
) -> int:
    """End all sessions; return how many were ended."""
    current = state.current_key() if except_current else None
    prefix = state.config.key_prefix

    def find() -> dict[str, _Listed]:
        found: dict[str, _Listed] = {}
        moved: dict[str, str | None] = {}
        for key, record in state.backend.iterate_all():
            if record.is_tombstone:
                moved[key] = successor_of(record, prefix)
            elif state.is_own(key):
                found[key] = _listed(record, prefix)
        # What has moved to where the listing had been before.
        for new_key in {*moved.values()} - {*found, *moved}:
            if new_key is not None and (listed := _look(state, new_key)) is not None:
                found[new_key] = listed
        return found

    return _end_all(state, find, current, "revoke_all", progress)


def _end_all(
    state: AppState,
    find: cabc.Callable[[], dict[str, _Listed]],
    current: str | None,
    operation: str,
    progress: cabc.Callable[[int], None] | None = None,
) -> int:
    """End all sessions that are found; return how many were ended.

    :param current: The key of the one to spare, whatever key it has by now.
    """
    prefix, began_at = state.config.key_prefix, state.interface.core.clock()
    ended: dict[str, str | None] = {}
    seen, gone = set[str](), set[str]()
    failures: dict[str, RecordError] = {}
    trail = Trail(state.backend, prefix, operation)
    try:
        is_empty = False
        # Again until none is left: a session whose id was rotated after it was
        # listed goes by another key.
        while True:
            trail.step()
            found = find()
            keys = {*found} - {current, *ended, *failures, *gone}
            # Sessions that began meanwhile are not among those to be ended.
            keys = {
                key
                for key in keys
                if not seen
                or found[key].created_at <= began_at
                or found[key].predecessor in seen
            }
            if current is not None and keys:
                # Must come after find(): a successor that has moved on by then has
                # left a tombstone.
                own = {current, *follow(state.backend, current, prefix)}
                keys -= {key for key in keys if {key, found[key].predecessor} & own}
            if is_empty and not keys:
                break
            # Not at once: an engine that lists in several steps can miss the old
            # and the new id of a session that is rotated between them.
            is_empty = not keys
            seen |= keys
            for key in counted(keys, progress):
                try:
                    last = _end(state, key, found[key].user, operation == "revoke_all")
                except RecordError as error:
                    failures[key] = error
                    continue
                if last is None:
                    gone.add(key)
                else:
                    ended[last[0]] = last[1]
    finally:
        # Only now: a receiver that raises must not leave sessions behind.
        for key, user in ended.items():
            state.send_destroyed(key, user)
    for failure in failures.values():
        raise failure
    return len(ended)


def _end(
    state: AppState, key: str, user: str | None, is_any_user: bool
) -> tuple[str, str | None] | None:
    """End one session, under the id that it has now, however often that changes.

    :param user: Whose it is, as far as that is known.
    :param is_any_user: Whether to end it after somebody else has logged in, too.
    :return: The key under which it was ended, and its user; ``None`` if there is no
        session any more.
    :raises RecordError: if a newer version has written it.
    """
    backend, prefix = state.backend, state.config.key_prefix
    trail = Trail(backend, prefix, "revoke")
    before: str | None = None
    is_listed = user is not None
    while True:
        if not is_listed:
            record: Record | None
            with contextlib.suppress(RecordError):  # then nobody can use it
                record = backend.load(key)
                if record is None:
                    return None
                if record.is_tombstone:
                    meta = record.meta
                    if not (is_any_user or meta.get(SAME_USER) or meta.get(RENEWED)):
                        return None
                    successor = trail.leave(key, record)
                    if successor is None:
                        return None
                    key = successor
                    continue
                user, before = record.user, predecessor_of(record, prefix)
        is_listed = False
        is_ended = backend.delete(key)
        if before is not None:
            # The request that has given it this id may fail before the old one goes.
            is_ended = backend.delete(before) or is_ended
        if is_ended:
            return key, user
        trail.step()  # rotated or ended between the two steps


def count(state: AppState) -> int:
    """Return the number of live sessions."""
    backend = state.backend
    if (
        backend.key_prefix == state.config.key_prefix
        or Capability.COUNT not in backend.capabilities
        or Capability.ITERATE not in backend.capabilities
    ):
        return backend.count()
    return sum(state.is_own(key) for key, _ in backend.iterate())


def prune(
    state: AppState,
    batch: int | None = None,
    progress: cabc.Callable[[int], None] | None = None,
) -> int:
    """Delete all expired records, in batches; return how many were deleted."""
    if batch is not None and batch < 1:
        raise ValueError("A batch has at least one record.")
    if Capability.PRUNE not in state.backend.capabilities:
        if Capability.EXPIRES in state.backend.capabilities:
            return 0
        raise NotSupportedError(state.backend.name, "prune")
    size = batch or state.config.cleanup_batch
    total = 0
    while True:
        deleted = state.backend.prune(size)
        total += deleted
        if progress is not None:
            progress(deleted)
        if deleted < size:
            return total


def _utc(timestamp: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(timestamp, dt.timezone.utc)
