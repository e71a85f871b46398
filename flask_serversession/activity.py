"""Records that a session was used, without changing what is in it.

A failure to do so is logged, and nothing more.
"""

from __future__ import annotations

import dataclasses
import logging

from .backends.base import Conflict
from .backends.base import Gone
from .core import Core
from .errors import BackendUnavailableError
from .errors import RecordError
from .loading import Loader
from .meta import tracked_part
from .unit import Known
from .unit import Unit

logger = logging.getLogger("flask_serversession")


def touch_stored(core: Core, unit: Unit, renews: bool) -> bool:
    """Touch a session that was loaded.

    :param renews: Whether that prolongs it; otherwise it only asks for the session.
    :return: ``False`` if the session turns out to be gone.
    """
    record, now = unit.record, core.clock()
    if renews:
        expires_at = core.limit(now + core.lifetime_of(unit), record.created_at)
    else:
        # What has passed would end it, which another request may have prolonged.
        expires_at = max(record.expires_at, now + 1)
    is_alive = _ask(core, unit, now, expires_at)
    if is_alive and unit.stored is not None:
        record = dataclasses.replace(record, touched_at=now, expires_at=expires_at)
        unit.stored = unit.stored._replace(record=record)
    return is_alive is not False


def touch_unseen(core: Core, loader: Loader, unit: Unit) -> bool:
    """Touch a session that nobody looked at; of several cookies, that in use.

    :return: ``False`` if it is gone, or if nobody can tell.
    """
    now = core.clock()
    while (cookie := unit.cookie) is not None:
        lifetime = cookie.lifetime or core.idle_timeout(cookie.is_permanent)
        expires_at = core.limit(now + lifetime, cookie.created_at)
        is_alive = _ask(core, unit, now, expires_at)
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
    try:
        if unit.known is not Known.UNSEEN:
            return _write_track(core, unit)
        while (record := core.backend.load(unit.key)) is None or record.is_tombstone:
            if not loader.verify_next(unit):
                return False
        core.adopt(unit, record)
        if core.is_too_old(record) or core.is_idle(unit):
            return False
        if tracked_part(record.meta) == unit.meta:
            return touch_stored(core, unit, True)
        return _write_track(core, unit)
    except BackendUnavailableError as error:
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
    payload = core.dumps(unit, stored.payload if is_own else None)
    before = stored.record
    record = core.make_record(
        unit,
        identity,
        payload,
        now,
        before.created_at,
        stored.issued_at,
        before.version + 1,
    )
    result = core.backend.replace(identity.key, record, before.version)
    if isinstance(result, Conflict):
        # What another request has stored says where that one was.
        return not result.current.is_tombstone and touch_stored(core, unit, True)
    if isinstance(result, Gone):
        return False
    handle = core.handle_of(identity.key)
    logger.debug("Session %s touched, with another address or browser", handle)
    unit.stored = stored._replace(
        record=record, payload=payload, serializer=core.serializer
    )
    return True


def _ask(core: Core, unit: Unit, now: float, expires_at: float) -> bool | None:
    """Touch. A failure is logged and nothing more, and gives ``None``."""
    if unit.failure is not None and not unit.is_closed:
        return None
    try:
        is_alive = core.backend.touch(unit.key, now, expires_at)
    except BackendUnavailableError as error:
        core.report_failure(unit, unit.key, "touch", error)
        return None
    handle = core.handle_of(unit.key)
    logger.debug("Session %s %s", handle, "touched" if is_alive else "is gone")
    return is_alive
