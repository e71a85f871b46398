"""Records that a session was used, without reading or writing what is in it."""

from __future__ import annotations

import dataclasses
import logging

from .core import Core
from .errors import BackendUnavailableError
from .loading import Loader
from .unit import Unit

logger = logging.getLogger("flask_serversession")


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
        expires_at = core.limit(now + lifetime, cookie.counts_from)
        # An older cookie may not know of a log-in; the record knows when it ends.
        is_alive = expires_at > now and _ask(core, unit, now, expires_at)
        if is_alive:
            unit.presented.cookie = cookie.touched(now)
            return True
        if is_alive is None or not loader.verify_next(unit):
            break
    return False


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
