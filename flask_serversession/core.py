"""What the parts of the core share: the application's settings, engine and clock."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import logging
import typing as t
import weakref

from flask import Flask

from . import signals
from .backends.base import Backend
from .binding import device_of
from .binding import is_offered
from .breaker import Breaker
from .breaker import NotAskedError
from .config import SessionConfig
from .cookie import CookieState
from .ended import EndedSessions
from .ended import Reason
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import RecordError
from .errors import SerializationError
from .errors import SessionTooLargeError
from .hiding import HiddenBytes
from .hiding import forget_frames
from .ids import check_id
from .ids import generate_id
from .ids import handle_of
from .ids import key_of
from .leftovers import Leftovers
from .meta import internal_part
from .meta import tracked_part
from .payload import Envelope
from .payload import Sealer
from .payload import read_authenticated_at
from .record import Record
from .serializers import BUILT_IN
from .serializers import CodedSerializer
from .serializers import serializer_for
from .unit import FRESH_KEY
from .unit import PERMANENT_KEY
from .unit import Identity
from .unit import Known
from .unit import Stored
from .unit import Unit
from .unit import Wish
from .unit import is_unused
from .users import ask_function
from .users import find_user
from .users import keys_read_by
from .users import stored_name

if t.TYPE_CHECKING:
    from blinker import NamedSignal

    from .device import Devices

P = t.ParamSpec("P")
T = t.TypeVar("T")

logger = logging.getLogger("flask_serversession")

# Looked up once: see :class:`.Known`.
_UNSEEN, _NEW, _RESTART = Known.UNSEEN, Known.NEW, Wish.RESTART


class Core:
    """What one application's sessions are made with. Thread-safe.

    Keeps nothing of a request.

    :param clock: Returns the time in seconds since the epoch.
    """

    #: Binds sessions to devices; ``None`` unless ``SESSION_DEVICE_BOUND`` asks for it.
    devices: Devices | None = None

    def __init__(
        self,
        app: Flask,
        config: SessionConfig,
        backend: Backend,
        clock: cabc.Callable[[], float],
    ) -> None:
        # A strong reference would keep an application alive that nobody uses any more,
        # until the garbage collector finds the cycle.
        self._app = weakref.ref(app)
        #: The application's own settings, some of which are read at each request.
        self.app_config: dict[str, t.Any] = app.config
        # A subclass of Flask may have a property in place of the setting.
        flask: t.Any = Flask
        lifetime = t.cast("t.Any", type(app)).permanent_session_lifetime
        self._has_own_lifetime = lifetime is not flask.permanent_session_lifetime
        self.config = config
        # Empty if a function tells whose a session is.
        self._user_keys = () if callable(config.user_key) else config.user_key
        self.backend = backend
        self.clock = clock
        self.serializer = serializer_for(config.serializer)
        self.ended = EndedSessions(config, clock)
        self.leftovers = Leftovers(backend)
        self.sealer = Sealer(config.encryption_key)
        self.breaker = Breaker(clock, self._report_recovery)

    @property
    def app(self) -> Flask:
        """The application."""
        app = self._app()
        assert app is not None  # noqa: S101 - who asks is called by it
        return app

    # Asking the backend

    def ask(
        self,
        unit: Unit,
        operation: str,
        function: cabc.Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Ask the backend, and report if it fails.

        A request whose backend has failed does not ask again before it has answered:
        nobody waits twice, neither in an error page nor when the session is settled.
        """
        if unit.failure is not None and not unit.is_closed:
            raise unit.failure
        try:
            result = self.breaker.ask(function, *args, **kwargs)
        except BackendUnavailableError as error:
            if not unit.is_closed:
                unit.failure = error
                if operation != "load":
                    # It has to be tried again at the end, which raises the failure.
                    unit.wish = max(unit.wish, Wish.SAVE)
                if unit.known is Known.UNSEEN:
                    unit.fail(error)
            # A record that is created is not yet the unit's.
            key = t.cast(str, args[0]) if operation == "create" else unit.key
            if not unit.is_outside:  # where no request failed
                self.report_failure(unit, key, operation, error)
            raise
        if self.leftovers.keys:
            self.leftovers.remove()
        return result

    def report_failure(
        self, unit: Unit, key: str, operation: str, error: BackendError
    ) -> None:
        """Log that the backend failed, and send the signal; not if it was not asked."""
        if isinstance(error, NotAskedError):
            return
        logger.error("The session backend failed at %r: %s", operation, error)
        self.send(
            signals.backend_failed,
            key,
            unit.stored_user,
            operation=operation,
            error=error,
        )

    def log_saved(self, unit: Unit, reason: str) -> None:
        """Log why a session was stored."""
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("Session %s saved: %s", self.handle_of(unit.key), reason)

    def _report_recovery(self) -> None:
        self.send(signals.backend_recovered, "", None)

    # Signals

    def reject(self, key: str, reason: str, **more: str) -> None:
        """Send the signal that a cookie was not accepted."""
        self.send(signals.session_rejected, key, None, reason=reason, **more)

    def send_destroyed(self, key: str, user: str | None, reason: Reason) -> None:
        """Send the signal that a session was ended."""
        self.ended.add(key, reason)
        self.send(signals.session_destroyed, key, user, reason=reason)

    def send(
        self, signal: NamedSignal, key: str, user: str | None, **values: t.Any
    ) -> None:
        """Send a signal about a session."""
        if signal.receivers:
            signal.send(
                self.app,
                _async_wrapper=self.app.ensure_sync,
                handle=self.handle_of(key) if key else None,
                user=user,
                **values,
            )

    # Names

    def handle_of(self, key: str) -> str:
        """Return the public form of a key."""
        return handle_of(key, self.config.key_prefix)

    def identify(self, id: str) -> Identity:
        """Return an id with its key."""
        return Identity(id, key_of(id, self.config.key_prefix))

    def issue(self) -> Identity:
        """Return a new id."""
        generator = self.config.id_generator
        id = generate_id() if generator is None else check_id(generator())
        return self.identify(id)

    def user_of(self, data: cabc.Mapping[str, t.Any]) -> str | None:
        """Return the user of a session's content, as stored in its record."""
        keys = self._user_keys
        user = find_user(data, keys) if keys else self.user_text_of(data)
        return None if user is None else stored_name(user)

    def user_text_of(self, data: cabc.Mapping[str, t.Any]) -> str | None:
        """Return the user of a session's content, as the application names them.

        :raises SerializationError: if that cannot be told.
        """
        function = self.config.user_key
        if not callable(function):
            return find_user(data, function)
        # A function cannot keep anybody from logging out.
        return None if is_unused(data) else ask_function(data, function)

    def is_user_key(self, key: object) -> bool:
        """Whether the user of a session is stored under this key."""
        return key in (self._user_keys or self._keys_read)

    @functools.cached_property
    def _keys_read(self) -> cabc.Container[object]:
        """Where the function that tells whose a session is looks for that."""
        function = self.config.user_key
        return keys_read_by(function) if callable(function) else ()

    def is_log_in(self, unit: Unit, user: str | None) -> bool:
        """Whether a user was not in the session before this request.

        :param user: Who is in it now, as :meth:`user_of` returns it.
        """
        if user is None:
            return False
        if unit.known is _NEW or unit.is_restarted:
            return True
        stored = unit.stored
        if stored is None or user == stored.record.user:
            return False
        # They are in there and were not found before, if the settings have changed.
        try:
            return user != self.user_of(stored.open())
        except SerializationError:
            return True

    def is_proven(self, unit: Unit) -> bool:
        """Whether nothing in the content says that the log-in is not fresh."""
        return unit.data.get(FRESH_KEY) is not False

    def authenticated_at(
        self, unit: Unit, user: str | None, now: float
    ) -> float | None:
        """Return when the user logged in; ``None`` if nobody did, or nobody knows.

        :param user: Who is in the session now, as :meth:`user_of` returns it.
        """
        if self.is_log_in(unit, user):
            return now if self.is_proven(unit) else None
        if unit.stored is None or user is None:
            return None
        before, confirmed = unit.stored.envelope.authenticated_at, unit.confirmed_at
        if before is None or confirmed is None:
            return before or confirmed
        return max(before, confirmed)

    def is_unproven(self, unit: Unit, record: Record) -> bool:
        """Whether a record is bound to a key that the request has not proven."""
        return self.devices is not None and not self.devices.accepts(unit, record)

    def handle(self, unit: Unit) -> str:
        """Return the public form of the session's key."""
        if unit.identity is None and unit.known is Known.NEW:
            self.id(unit)
        return self.handle_of(unit.key)

    def id(self, unit: Unit) -> str:
        """Return the session's id; a new session gets one."""
        if unit.identity is None:
            if unit.known is not Known.NEW:
                return ""
            unit.identity = self.issue()
        return unit.identity.id

    def times(self, unit: Unit) -> tuple[float, float]:
        """Return when the session began and when it expires."""
        if unit.stored is not None and unit.known is Known.STORED:
            return unit.stored.record.created_at, unit.stored.record.expires_at
        now = self.clock()
        return now, self.limit(now + self.lifetime_of(unit), now)

    # Time-outs

    @property
    def is_refreshed(self) -> bool:
        """``SESSION_REFRESH_EACH_REQUEST``: whether use renews a permanent session."""
        return bool(self.app_config["SESSION_REFRESH_EACH_REQUEST"])

    def is_permanent(self, unit: Unit) -> bool:
        """Whether the session outlives the browser."""
        known = unit.known
        if known is _UNSEEN:
            cookie = unit.presented.cookie
            return cookie is not None and cookie.is_permanent
        if PERMANENT_KEY in unit.data:
            return bool(unit.data[PERMANENT_KEY])
        if not self.config.permanent:
            return False
        return known is _NEW or unit.wish >= _RESTART  # it begins

    def idle_timeout(self, is_permanent: bool) -> float:
        """Return the app's idle timeout, in seconds."""
        timeout = self.config.idle_timeout
        if not is_permanent and timeout is not None:
            return timeout
        if self._has_own_lifetime:
            lifetime = self.app.permanent_session_lifetime
        else:  # what that reads, in half the time
            lifetime = self.app_config["PERMANENT_SESSION_LIFETIME"]
        if isinstance(lifetime, dt.timedelta):
            return lifetime.total_seconds()
        return float(lifetime)

    def lifetime_of(self, unit: Unit) -> float:
        """Return for how long the session lives without being used, in seconds."""
        if unit.lifetime:
            return unit.lifetime
        # Most applications have one timeout for both.
        is_one = self.config.idle_timeout is None
        return self.idle_timeout(is_one or self.is_permanent(unit))

    def limit(self, expires_at: float, counts_from: float) -> float:
        """Return when a session expires that would, at the latest, at a moment.

        :param counts_from: When the user logged in, or the session began without one.
        """
        limit = self.config.absolute_timeout
        return expires_at if limit is None else min(expires_at, counts_from + limit)

    def renewed(self, unit: Unit) -> float:
        """Return when the session expires if it is used now and never again."""
        now, stored = self.clock(), unit.stored
        begins_at = now
        if stored is not None and not unit.is_restarted:
            begins_at = stored.counts_from
        return self.limit(now + self.lifetime_of(unit), begins_at)

    def is_touch_due(self, now: float, touched_at: float, lifetime: float) -> bool:
        """Whether activity has to be recorded again.

        Never later than a twentieth of the lifetime, so that a short one is not
        missed by much.
        """
        age = now - touched_at
        return age >= self.config.touch_interval or age >= lifetime / 20

    def is_too_old(self, record: Record) -> bool:
        """Whether a session has reached its absolute timeout."""
        limit = self.config.absolute_timeout
        return limit is not None and self.clock() >= counts_from(record) + limit

    def has_expired(self, cookie: CookieState) -> bool:
        """Whether a session has ended by itself, as far as its cookie tells."""
        lifetime = cookie.lifetime or self.idle_timeout(cookie.is_permanent)
        expires_at = self.limit(cookie.touched_at + lifetime, cookie.counts_from)
        return self.clock() >= expires_at

    def is_idle(self, unit: Unit) -> bool:
        """Whether the session was unused for longer than its own lifetime.

        Its record is there for longer if a request that did not know of the lifetime
        yet has touched it.
        """
        stored = unit.stored
        assert stored is not None  # noqa: S101 - for type checkers
        return self.clock() >= stored.record.touched_at + self.lifetime_of(unit)

    # What is in a record

    def dumps(self, unit: Unit, encoded: bytes | None = None) -> bytes:
        """Serialize the content, and check its size.

        :param encoded: What that gives, if it is known already.
        """
        try:
            payload = HiddenBytes(
                self.serializer.dumps(unit.data) if encoded is None else encoded
            )
        except SerializationError as error:
            raise forget_frames(error) from error.__cause__
        if len(payload) > self.config.max_size:
            raise SessionTooLargeError(len(payload), self.config.max_size)
        return payload

    def make(
        self,
        unit: Unit,
        identity: Identity,
        payload: bytes,
        now: float,
        created_at: float,
        issued_at: float,
        version: int = 1,
        renews: bool = True,
    ) -> Stored:
        """Return a session as it is now, such as it is to be stored.

        :param issued_at: When the id was issued, in seconds since the epoch.
        :param renews: ``False`` leaves the times of a stored session as they are.
        """
        user = self.user_of(unit.data)
        touched_at, stored = now, unit.stored
        authenticated_at = self.authenticated_at(unit, user, now)
        if user is None and unit.stored_user is not None:
            # What a log-out leaves, a message for one, is a visitor's session. Counted
            # from before the log-in, it could have reached its absolute timeout.
            created_at = now
        if renews or stored is None:
            since = authenticated_at or created_at
            expires_at = self.limit(now + self.lifetime_of(unit), since)
        else:
            touched_at, expires_at = stored.record.touched_at, stored.record.expires_at
            if unit.lifetime != stored.envelope.lifetime:
                end = touched_at + self.lifetime_of(unit)
                expires_at = self.limit(end, authenticated_at or created_at)
        serializer = self.serializer
        envelope = Envelope(
            payload,
            serializer.code,
            unit.lifetime,
            issued_at,
            authenticated_at,
            device_of(self, unit, user),
        )
        record = Record(
            data=self.sealer.seal(
                envelope, identity.key, created_at=created_at, user=user
            ),
            version=version,
            created_at=created_at,
            touched_at=touched_at,
            expires_at=expires_at,
            user=user,
            meta=self._meta_of(unit, renews),
        )
        return Stored(record, envelope, serializer)

    def _meta_of(self, unit: Unit, renews: bool) -> cabc.Mapping[str, str]:
        """Return the meta of a session's record as it is now."""
        own, seen = unit.current_meta, unit.meta
        if unit.is_unsettled:  # what is left under the id before is still to be found
            seen = {**seen, **internal_part(unit.record.meta)}
        if not renews and unit.stored is not None:
            # Where it is changed from is not where it was seen.
            seen = {**tracked_part(unit.stored.record.meta), **internal_part(seen)}
        if not own:
            return seen
        return {**own, **seen}

    def keep(self, unit: Unit, stored: Stored) -> None:
        """Go on with what this request has just stored."""
        if self.devices is not None and is_offered(self, unit, stored.record.user):
            unit.is_device_offered = True
        unit.adopt(stored)

    def adopt(self, unit: Unit, record: Record, is_first_look: bool = False) -> bool:
        """Go on with a record that was loaded.

        :param is_first_look: As for :meth:`.Unit.adopt`.
        :return: Whether it was adopted.
        :raises RecordError: if it cannot be read.
        """
        key = unit.key
        try:
            envelope = self.sealer.open(
                record.data, key, created_at=record.created_at, user=record.user
            )
            serializer = self.serializer
            if envelope.serializer != serializer.code:
                serializer = _former_serializer(envelope.serializer)
            data = serializer.open(envelope.payload)
        except RecordError as error:
            raise forget_frames(error) from error.__cause__
        return unit.adopt(Stored(record, envelope, serializer), data, is_first_look)

    def is_changed(self, unit: Unit, current: Record) -> bool:
        """Whether a record holds something else than the one that was loaded."""
        stored = unit.stored
        try:
            envelope = self.sealer.open(
                current.data, unit.key, created_at=current.created_at, user=current.user
            )
        except RecordError:
            return True
        if stored is None:
            return True
        before = stored.envelope
        return (envelope.payload, envelope.lifetime) != (
            before.payload,
            before.lifetime,
        )


def counts_from(record: Record) -> float:
    """Return when a record's user logged in, or else when its session began."""
    return read_authenticated_at(record.data) or record.created_at


def _former_serializer(code: bytes) -> CodedSerializer:
    """Return what wrote a payload before ``SESSION_SERIALIZER`` was changed."""
    if code not in BUILT_IN:
        raise RecordError(
            "The session was written with another serializer than"
            " 'SESSION_SERIALIZER'.",
            "unreadable",
        )
    return BUILT_IN[code]
