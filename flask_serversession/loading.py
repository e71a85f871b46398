"""Finds out what is stored: verifies cookies, and loads the record behind them."""

from __future__ import annotations

import logging
import typing as t

from .core import Core
from .errors import BackendUnavailableError
from .errors import RecordError
from .record import Record
from .rotation import follow_renewal
from .unit import Unit
from .unit import Wish

if t.TYPE_CHECKING:
    from .takeover import Takeover

logger = logging.getLogger("flask_serversession")


class Loader:
    """Makes known what a request did not know of its session yet. Thread-safe.

    :param takeover: Takes over the sessions of other kinds; ``None`` if none are.
    """

    def __init__(self, core: Core, takeover: Takeover | None = None) -> None:
        self.core = core
        self._takeover = takeover
        self._reported: dict[str, None] = {}

    def verify(self, unit: Unit) -> None:
        """Find the cookie that verifies. Asks nothing of the backend."""
        presented = unit.presented
        if presented.is_verified:
            return
        if self.verify_next(unit) or not presented.values:
            return
        if self._takeover is not None:
            presented.claim = self._takeover.recognize(presented.values)
        if presented.claim is None:
            self.core.reject("", "forged")

    def verify_next(self, unit: Unit) -> bool:
        """Go on to the next cookie that verifies, if there is one."""
        id = "" if unit.identity is None else unit.identity.id
        cookie = unit.presented.verify_next(unit.signer, id)
        if cookie is None:
            return False
        unit.presented.cookie = cookie
        unit.identity = self.core.identify(cookie.id)
        return True

    def load(self, unit: Unit) -> None:
        """Find out what is stored. Afterwards the session is not ``UNSEEN``."""
        presented, core = unit.presented, self.core
        if not presented.is_verified:
            self.verify(unit)
        if presented.claim is not None and self._takeover is not None:
            self._take_over(unit, self._takeover)
            return
        if unit.identity is None:
            unit.begin()
            return
        opened_at, presented.seen_at = presented.seen_at, core.clock()
        try:
            record = core.backend.load(unit.identity.key)
            if len(presented.values) > 1 and (record is None or record.is_tombstone):
                record = self._load_next(unit, record)
            if record is not None and record.is_tombstone:
                record = follow_renewal(core, unit, record, core.backend.load) or record
        except BackendUnavailableError as error:
            # Whatever else this request does with its session, it does not wait for
            # the backend again, so that an error page can still be rendered.
            unit.fail(error)
            core.report_failure(unit, unit.key, "load", error)
            if core.config.on_backend_error == "raise":
                raise
        except RecordError as error:
            self.take_unreadable(unit, error)
        else:
            if record is None and core.ended.has(unit.key, since=opened_at):
                # Another request has ended it while this one had yet to look. It may
                # have begun another one, whose cookie this one must not replace.
                unit.lose()
                core.reject(unit.key, "unknown")
            else:
                self.take(unit, record)

    def _load_next(self, unit: Unit, record: Record | None) -> Record | None:
        """Look behind the cookie of a session that is gone for that of a live one.

        A browser goes on sending one that was left on another path or domain, before
        or after the one that it was given since.

        :return: The live one's record; else the given one, and the unit is as before.
        """
        first = unit.cookie, unit.identity
        while self.verify_next(unit):
            found = self.core.backend.load(unit.key)
            if found is not None and not found.is_tombstone:
                return found
        unit.presented.cookie, unit.identity = first
        return record

    def follow(self, unit: Unit, tombstone: Record) -> Record | None:
        """Go on under the id that another request has renewed this request's id with.

        For one that meets the tombstone after it has loaded the session.

        :return: What is stored there; ``None`` if the session is gone.
        :raises RecordError: if it cannot be read.
        """
        core = self.core

        def load(key: str) -> Record | None:
            return core.ask(unit, "load", core.backend.load, key)

        return follow_renewal(core, unit, tombstone, load)

    def take(self, unit: Unit, record: Record | None) -> None:
        """Go on with what the backend returned."""
        core = self.core
        if record is None or core.is_too_old(record):
            self.begin_instead(unit, "unknown")
        elif record.is_tombstone:
            unit.lose()
            core.reject(unit.key, "rotated")
        else:
            try:
                core.adopt(unit, record)
            except RecordError as error:
                self.take_unreadable(unit, error)
                return
            if core.is_idle(unit):
                self.begin_instead(unit, "unknown")
            elif unit.wish is Wish.END:
                unit.data.clear()
                unit.lifetime = None

    def take_unreadable(self, unit: Unit, error: RecordError) -> None:
        """Go on without a record that cannot be read; log it once."""
        key = unit.key
        if key not in self._reported:
            if len(self._reported) >= 1000:
                self._reported.pop(next(iter(self._reported)), None)
            self._reported[key] = None
            logger.error(
                "Session %s cannot be read, and counts as no session: %s",
                self.core.handle_of(key),
                error,
            )
        if error.reason == "newer":
            # A rolling deploy: the newer version must find it as it left it.
            unit.fail(None)
            self.core.reject(key, error.reason)
        else:
            self.begin_instead(unit, error.reason)

    def begin_instead(self, unit: Unit, reason: str) -> None:
        """Start a new session, because that of the cookie is not accepted."""
        key = unit.key
        unit.begin()
        self.core.reject(key, reason)

    def _take_over(self, unit: Unit, takeover: Takeover) -> None:
        """Go on with the session of another kind that a cookie stands for."""
        unit.presented.seen_at = self.core.clock()
        try:
            takeover.take_over(unit, self)
        except RecordError as error:
            if takeover.is_to_be_reported(error):
                self.take_unreadable(unit, error)
            else:
                self.begin_instead(unit, error.reason)
        except BackendUnavailableError as error:
            # Nothing was changed that could be lost, and the next request tries again.
            # But for a log-out, which must not look as if it had worked.
            unit.fail(error)
            if unit.wish is not Wish.END:
                unit.wish = min(unit.wish, Wish.TOUCH)
            unit.data = {}
            if self.core.config.on_backend_error == "raise":
                raise
