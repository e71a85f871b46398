"""Finds out what is stored: verifies cookies, and loads the record behind them."""

from __future__ import annotations

import functools
import logging
import typing as t

from .cookie import REMEMBERED
from .cookie import is_well_formed
from .core import Core
from .errors import BackendUnavailableError
from .errors import RecordError
from .logouts import LogOuts
from .record import NO_META
from .record import Record
from .rotation import follow_renewal
from .unit import Identity
from .unit import Known
from .unit import Unit
from .unit import Wish
from .unsettled import Settlement

if t.TYPE_CHECKING:
    from .takeover import Takeover

logger = logging.getLogger("flask_serversession")

# Looked up once: see :class:`.Known`.
_UNSEEN, _GONE, _END = Known.UNSEEN, Known.GONE, Wish.END


class Loader:
    """Makes known what a request did not know of its session yet. Thread-safe.

    :param takeover: Takes over the sessions of other kinds; ``None`` if none are.
    :param log_outs: Hears of log-outs that change nothing in a session.
    """

    def __init__(
        self, core: Core, takeover: Takeover | None, log_outs: LogOuts
    ) -> None:
        self.core = core
        self._takeover = takeover
        self._log_outs = log_outs
        self._reported: dict[str, None] = {}
        # As verified cookies are remembered, so are the keys of their ids.
        self._identify = functools.lru_cache(REMEMBERED)(core.identify)

    def verify(self, unit: Unit) -> None:
        """Find the cookie that verifies. Asks nothing of the backend."""
        presented = unit.presented
        if presented.is_verified or self.verify_next(unit):
            return
        if presented.is_verified or not presented.values:
            presented.is_verified = True  # perhaps by another thread of the request
            return
        if self._takeover is not None:
            presented.claim = self._takeover.recognize(presented.values)
        presented.is_verified = True
        if presented.claim is None:
            is_forged = any(map(is_well_formed, presented.values))
            self.reject(unit, "forged" if is_forged else "malformed")

    def verify_next(self, unit: Unit) -> bool:
        """Go on to the next cookie that verifies, if there is one."""
        id = "" if unit.identity is None else unit.identity.id
        cookie = unit.presented.verify_next(unit.signer, id)
        if cookie is None:
            return False
        unit.identity = self._identify(cookie.id)
        unit.presented.cookie = cookie
        unit.is_unsettled = cookie.is_unsettled
        unit.presented.is_verified = True  # last, as other threads go by it
        return True

    def load(self, unit: Unit) -> None:
        """Find out what is stored. Afterwards the session is not ``UNSEEN``."""
        try:
            self._load(unit)
        finally:
            if unit.known >= _GONE:
                self._log_outs.watch()

    def _load(self, unit: Unit) -> None:
        presented, core = unit.presented, self.core
        if not presented.is_verified:
            self.verify(unit)
        if presented.claim is not None and self._takeover is not None:
            self._take_over(unit, self._takeover)
            return
        identity = unit.identity
        if identity is None:
            unit.begin_empty()
            return
        opened_at, presented.seen_at = presented.seen_at, core.clock()
        try:
            record = core.breaker.ask(core.backend.load, identity.key)
            if record is None or record.is_tombstone or unit.is_unsettled:
                record = self._look_further(unit, identity, record)
            if core.leftovers.keys:
                core.leftovers.remove()
        except BackendUnavailableError as error:
            if unit.known is not Known.UNSEEN:
                return
            # Whatever else this request does with its session, it does not wait for
            # the backend again, so that an error page can still be rendered.
            unit.fail(error)
            core.report_failure(unit, unit.key, "load", error)
            if core.config.on_backend_error == "raise":
                raise
        except RecordError as error:
            if unit.known is Known.UNSEEN:
                self.take_unreadable(unit, error)
        else:
            if unit.known is not _UNSEEN:
                # Another thread or greenlet of this request has looked at the same
                # time, and was faster. What it has found may be changed by now.
                return
            if record is None and core.ended.has(unit.key, since=opened_at):
                # Another request has ended it while this one had yet to look. It may
                # have begun another one, whose cookie this one must not replace.
                reason = self.why_absent(unit)
                unit.lose()
                self.reject(unit, "rotated" if reason == "reused" else reason)
            else:
                self.take(unit, record)

    def _load_next(
        self, unit: Unit, identity: Identity, record: Record | None
    ) -> Record | None:
        """Look behind the cookie of a session that is gone for that of a live one.

        A browser also sends an old cookie that was left on another path or domain,
        before or after the current one.

        :return: The record of the live session. If there is none, the given record, and
            the unit is unchanged.
        """
        presented, core = unit.presented, self.core
        for number, cookie in presented.candidates(unit.signer, identity.id):
            other = self._identify(cookie.id)
            is_chosen = True
            try:
                found = core.breaker.ask(core.backend.load, other.key)
                is_chosen = found is not None and not found.is_tombstone
            finally:
                if is_chosen and unit.known is Known.UNSEEN:
                    presented.select(number, cookie)
                    unit.identity = other
                    unit.is_unsettled = cookie.is_unsettled
            if is_chosen:
                return found
        return record

    def _look_further(
        self, unit: Unit, identity: Identity, record: Record | None
    ) -> Record | None:
        """Look behind the other cookies, and bring a change of the id to its end."""
        if len(unit.presented.values) > 1 and (record is None or record.is_tombstone):
            record = self._load_next(unit, identity, record)
        if record is not None and record.is_tombstone:
            return follow_renewal(self.core, unit, record, self._ask) or record
        if record is not None and unit.is_unsettled:
            return Settlement(self.core, unit, record).settle()
        return record

    def _ask(self, key: str) -> Record | None:
        return self.core.breaker.ask(self.core.backend.load, key)

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
        if record is None:
            self.begin_instead(unit, self.why_absent(unit))
        elif record.is_tombstone:
            unit.lose()
            self.reject(unit, "rotated")
        elif core.is_too_old(record):
            self.begin_instead(unit, "expired")
        elif unit.wish is not Wish.END and core.is_unproven(unit, record):
            self._refuse(unit)
        else:
            try:
                if not core.adopt(unit, record, is_first_look=True):
                    return
            except RecordError as error:
                self.take_unreadable(unit, error)
                return
            if core.is_idle(unit):
                self.begin_instead(unit, "expired")
            elif unit.wish is _END:
                unit.data.clear()
                unit.lifetime = None
                unit.own_meta = NO_META

    def _refuse(self, unit: Unit) -> None:
        """Go on without a session that is bound to a key of another device, perhaps."""
        devices = self.core.devices
        assert devices is not None  # noqa: S101 - who else refuses?
        error = devices.find_excuse(unit)
        if error is None and not devices.is_out_of_scope():
            self.begin_instead(unit, "unproven")
            return
        # As if nobody could tell: neither cookie is touched.
        unit.fail(error)
        if error is not None:
            raise error

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
            self.reject(unit, error.reason)
        else:
            self.begin_instead(unit, error.reason)

    def begin_instead(self, unit: Unit, reason: str) -> None:
        """Start a new session, because that of the cookie is not accepted."""
        key = unit.key
        unit.begin()
        self.reject(unit, reason, key)

    def reject(self, unit: Unit, reason: str, key: str = "") -> None:
        """Tell, and remember, why the cookie that came is not accepted."""
        key, more = key or unit.key, dict[str, str]()
        if reason == "ended" and (ended := self.core.ended.reason(key)) is not None:
            more["ended"] = ended
        unit.ended_because = more.get("ended", reason)
        self.core.reject(key, reason, **more)

    def why_absent(self, unit: Unit) -> str:
        """Return why there is no session under an id that was issued.

        As far as this process and the cookie know. The cookie of a session that ends
        with the browser may not know when it was last used.
        """
        ended = self.core.ended.reason(unit.key)
        if ended is not None:
            return "reused" if ended == "rotated" else "ended"
        cookie = unit.cookie
        if cookie is not None and self.core.has_expired(cookie):
            return "expired"
        return "unknown"

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
