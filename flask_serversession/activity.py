"""Records that a session was used, and tells how long it lives if it is not.

A failure to record it is logged, and nothing more.
"""

from __future__ import annotations

import dataclasses
import logging
import typing as t

from .backends.base import Conflict
from .backends.base import Gone
from .core import Core
from .errors import BackendError
from .errors import RecordError
from .loading import Loader
from .meta import tracked_part
from .moment import Ahead
from .moment import is_doubtful
from .plan import Step
from .plan import plan
from .record import Record
from .unit import Known
from .unit import Unit
from .unit import Wish

logger = logging.getLogger("flask_serversession")

# After these a session lives for its whole lifetime, if their row says that they renew.
_RENEWING = frozenset({Step.CREATE, Step.TOUCH, Step.REPLACE, Step.ROTATE})
_ENDING = frozenset({Step.EXPIRE, Step.DELETE})


def time_left(core: Core, loader: Loader, unit: Unit) -> float:
    """Return for how many seconds a session lives if it is not used again.

    This includes what the request has done so far. Asking does not count as activity.
    """
    if unit.known is Known.UNSEEN:
        loader.load(unit)
        if unit.wish is Wish.NOTHING and not unit.is_passive:
            unit.is_passive = unit.is_glanced = True
    expires_at = unit.record.expires_at if unit.known is Known.STORED else 0.0
    if not unit.phase:
        row = plan(unit, Ahead(core))
        if row.renews and row.step in _RENEWING:
            expires_at = core.renewed(unit)
        elif row.step in _ENDING:
            expires_at = 0.0
    return max(0.0, expires_at - core.clock())


def look_again(core: Core, unit: Unit) -> Record | t.Literal[True] | None:
    """Learn when a session was used while this request ran, before it is written.

    A write that renews nothing would undo what another request has recorded by a
    touch, which is no change of the record's version.

    :return: ``True`` if nothing is in the way; otherwise what is stored now, or
        ``None`` if the session is gone.
    """
    stored = unit.stored
    if stored is None or not is_doubtful(core, unit):
        return True
    try:
        record = core.ask(unit, "load", core.backend.load, unit.key)
    except RecordError:
        return None
    if record is None:
        return None
    if record.is_tombstone or record.version != stored.record.version:
        return record
    unit.stored = dataclasses.replace(stored, record=record)
    return True


def touch_stored(core: Core, unit: Unit, renews: bool) -> bool:
    """Touch a session that was loaded.

    :param renews: Whether that prolongs it; otherwise it only asks for the session.
    :return: ``False`` if the session turns out to be gone.
    """
    record, now = unit.record, core.clock()
    if renews:
        since = record.created_at if unit.stored is None else unit.stored.counts_from
        expires_at = core.limit(now + core.lifetime_of(unit), since)
    else:
        # What has passed would end it, which another request may have prolonged.
        expires_at = max(record.expires_at, now + 1)
    is_alive = _ask(core, unit, now, expires_at)
    if is_alive and unit.stored is not None:
        unit.stored = unit.stored.changed(touched_at=now, expires_at=expires_at)
    return is_alive is not False


def touch_unseen(core: Core, loader: Loader, unit: Unit) -> bool:
    """Touch a session that nobody looked at; of several cookies, that in use.

    :return: ``False`` if it is gone, or if nobody can tell.
    """
    now = core.clock()
    while (cookie := unit.cookie) is not None:
        lifetime = cookie.lifetime or core.idle_timeout(cookie.is_permanent)
        expires_at = core.limit(now + lifetime, cookie.counts_from)
        # An older cookie may not know of a log-in; the record knows when it ends.
        is_alive = expires_at > now and _ask(core, unit, now, expires_at)
        if is_alive:
            unit.presented.cookie = cookie.touched(now)
            return True
        if is_alive is None or not loader.verify_next(unit):
            break
    return False


def track(core: Core, loader: Loader, unit: Unit) -> bool:
    """Touch a session, and record where it was seen if that is another place.

    It may be one that nobody looked at.

    :return: As :func:`touch_stored`.
    """
    if unit.failure is not None and not unit.is_closed:
        return True

    def load(key: str) -> Record | None:
        return core.breaker.ask(core.backend.load, key)

    try:
        if unit.known is not Known.UNSEEN:
            return _write_track(core, unit)
        while (record := load(unit.key)) is None or record.is_tombstone:
            if not loader.verify_next(unit):
                return False
        if core.is_unproven(unit, record):
            return False
        core.adopt(unit, record)
        if core.is_too_old(record) or core.is_idle(unit):
            return False
        if tracked_part(record.meta) == unit.meta:
            return touch_stored(core, unit, True)
        return _write_track(core, unit)
    except BackendError as error:
        is_unseen = unit.known is Known.UNSEEN
        operation = "load" if is_unseen else "replace"
        core.report_failure(unit, unit.key, operation, error)
        return not is_unseen
    except RecordError:
        return False


def _write_track(core: Core, unit: Unit) -> bool:
    """Replace a record by one with the same content."""
    stored, identity, now = unit.stored, unit.identity, core.clock()
    assert stored is not None and identity is not None  # noqa: PT018, S101 - as above
    is_own = stored.serializer is core.serializer
    payload = core.dumps(unit, stored.envelope.payload if is_own else None)
    before = stored.record
    made = core.make(
        unit,
        identity,
        payload,
        now,
        before.created_at,
        stored.envelope.issued_at,
        before.version + 1,
    )
    replace = core.backend.replace
    result = core.breaker.ask(replace, identity.key, made.record, before.version)
    if isinstance(result, Conflict):
        # What another request has stored says where that one was.
        return not result.current.is_tombstone and touch_stored(core, unit, True)
    if isinstance(result, Gone):
        return False
    handle = core.handle_of(identity.key)
    logger.debug("Session %s touched, with another address or browser", handle)
    unit.stored = made
    return True


def _ask(core: Core, unit: Unit, now: float, expires_at: float) -> bool | None:
    """Touch. A failure is logged and nothing more, and gives ``None``.

    Whatever failed: also an engine that lacks a privilege or does not know a command.
    """
    if unit.failure is not None and not unit.is_closed:
        return None
    try:
        touch = core.backend.touch
        is_alive = core.breaker.ask(touch, unit.key, now, expires_at)
    except BackendError as error:
        core.report_failure(unit, unit.key, "touch", error)
        return None
    handle = core.handle_of(unit.key)
    logger.debug("Session %s %s", handle, "touched" if is_alive else "is gone")
    return is_alive
