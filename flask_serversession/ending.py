"""The end of a session: it is deleted, under whatever id it has now."""

from __future__ import annotations

import contextlib
import logging

from .core import Core
from .ended import Reason
from .errors import RecordError
from .loading import Loader
from .logouts import refuse_newer
from .record import Record
from .rotation import delete_successor
from .unit import Cookie
from .unit import Known
from .unit import Unit
from .unit import Wish

logger = logging.getLogger("flask_serversession")


class Ending:
    """Ends sessions that their own requests want to end. Thread-safe."""

    def __init__(self, core: Core, loader: Loader) -> None:
        self._core = core
        self._loader = loader

    def destroy(self, unit: Unit) -> None:
        """Delete the record now and start over."""
        self._loader.verify(unit)
        if unit.presented.claim is not None and unit.known is Known.UNSEEN:
            # What is ended has to leave a marker, and that is what taking over does.
            unit.want(Wish.END)
            self._loader.load(unit)
        elif unit.is_unsettled and unit.known is Known.UNSEEN:
            unit.want(Wish.END)
            self._loader.load(unit)  # which ends what is left under the id before
        if unit.failure is not None:
            # It may not have ended, so nobody may be told that it has. If the view
            # catches this, the response must not say so either.
            unit.want(Wish.END)
            raise unit.failure
        if unit.known is Known.BROKEN:
            raise refuse_newer(self._core, unit)
        unit.data.clear()
        unit.forget_wishes()
        unit.is_exposed = False
        if unit.key and unit.known in (Known.UNSEEN, Known.STORED, Known.GONE):
            try:
                self.delete_current(unit)
            except BaseException:  # interrupted: nobody knows either
                unit.want(Wish.END)
                raise
        elif unit.known in (Known.UNSEEN, Known.NEW):
            unit.begin()

    def delete_current(self, unit: Unit) -> bool:
        """Delete the session; if it was not loaded yet, the first that is there."""
        is_unseen = unit.known is Known.UNSEEN
        is_deleted = self._delete_record(unit)
        while is_unseen and not is_deleted and self._loader.verify_next(unit):
            is_deleted = self._delete_record(unit)
        return is_deleted

    def _delete_record(self, unit: Unit) -> bool:
        core = self._core
        try:
            if core.ask(unit, "delete", core.backend.delete, unit.key):
                self.end(unit)
                return True
            record = core.ask(unit, "load", core.backend.load, unit.key)
        except RecordError as error:
            if unit.is_outside:
                raise
            self._loader.take_unreadable(unit, error)
            if unit.known is Known.BROKEN:
                raise refuse_newer(core, unit) from error
            return False
        if record is None:
            self._miss(unit)
            return False
        if self._follow(unit, record):
            return self._delete_record(unit)
        try:
            delete_successor(core, unit, record)
        except RecordError as error:
            if error.reason == "newer":
                raise refuse_newer(core, unit) from error
        self._lose(unit)
        return False

    def _follow(self, unit: Unit, tombstone: Record) -> bool:
        """Go on under the id that another request has renewed this request's id with.

        What is written afterwards begins a new session then, and is not dropped.
        """
        if not unit.is_outside:
            with contextlib.suppress(RecordError):
                return self._loader.follow(unit, tombstone) is not None
        return False

    def _miss(self, unit: Unit) -> None:
        """Go on where there was nothing to be ended.

        If another request has ended the session since this one came, it may have begun
        another one, whose cookie this one must not replace. Not so if this request has
        done it, by revoke_user(), say.
        """
        core, seen_at = self._core, unit.presented.seen_at
        is_own = unit.has_revoked
        if not is_own and (unit.known is not Known.UNSEEN or unit.is_renewed):
            self._lose(unit)
            return
        reason = self._loader.why_absent(unit)
        if not is_own and core.ended.has(unit.key, since=seen_at):
            self._lose(unit)
            self._loader.reject(unit, "rotated" if reason == "reused" else reason)
        else:
            self._loader.begin_instead(unit, reason)

    def _lose(self, unit: Unit) -> None:
        unit.lose()
        unit.wish = unit.least_wish  # the session was ended, so nothing is left to do

    def end(self, unit: Unit) -> None:
        """Go on without the session, which was deleted, and tell of it."""
        key, user, is_renewed = unit.key, unit.stored_user, unit.is_renewed
        logger.debug("Session %s ended", self._core.handle_of(key))
        reason: Reason = "revoked" if unit.is_outside else "logged out"
        unit.begin()
        if unit.cookie is not None and not is_renewed:
            unit.owed = Cookie.DELETE
        unit.wish = unit.least_wish
        unit.is_exposed = False
        self._core.send_destroyed(key, user, reason)
