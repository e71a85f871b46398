"""What the parts of the core share: the application's settings, engine and clock."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import logging
import typing as t
import weakref

from . import signals
from .backends.base import Backend
from .breaker import Breaker
from .breaker import NotAskedError
from .config import SessionConfig
from .ended import EndedSessions
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import RecordError
from .errors import SerializationError
from .errors import SessionTooLargeError
from .ids import check_id
from .ids import generate_id
from .ids import handle_of
from .ids import key_of
from .payload import Envelope
from .payload import Sealer
from .record import Record
from .serializers import BUILT_IN
from .serializers import CodedSerializer
from .serializers import serializer_for
from .unit import PERMANENT_KEY
from .unit import Identity
from .unit import Known
from .unit import Stored
from .unit import Unit
from .unit import Wish

if t.TYPE_CHECKING:
    from blinker import NamedSignal
    from flask import Flask

P = t.ParamSpec("P")
T = t.TypeVar("T")

logger = logging.getLogger("flask_serversession")

# The user is kept in columns and index names; longer ones are somebody's mistake.
_MAX_USER = 255


class Core:
    """What one application's sessions are made with. Thread-safe.

    Keeps nothing of a request.

    :param clock: Returns the time in seconds since the epoch.
    """

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
        self._app_config: dict[str, t.Any] = app.config
        self.config = config
        self.backend = backend
        self.clock = clock
        self.serializer = serializer_for(config.serializer)
        self.ended = EndedSessions(config, clock)
        self._sealer = Sealer(config.encryption_key)
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
            return self.breaker.ask(function, *args, **kwargs)
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
            self.report_failure(unit, key, operation, error)
            raise

    def report_failure(
        self, unit: Unit, key: str, operation: str, error: BackendError
    ) -> None:
        """Log that the backend failed, and send the signal; not if it was not asked."""
        if self.app.debug and isinstance(error, BackendUnavailableError):
            # What the page says to the one who is at work on the application.
            error.description = str(error)
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

    def _report_recovery(self) -> None:
        self.send(signals.backend_recovered, "", None)

    # Signals

    def reject(self, key: str, reason: str) -> None:
        """Send the signal that a cookie was not accepted."""
        self.send(signals.session_rejected, key, None, reason=reason)

    def send_destroyed(self, key: str, user: str | None) -> None:
        """Send the signal that a session was ended."""
        self.ended.add(key)
        self.send(signals.session_destroyed, key, user)

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
        """Return whom a session's content belongs to."""
        user = data.get(self.config.user_key)
        return None if user is None else str(user)

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

    def is_permanent(self, unit: Unit) -> bool:
        """Whether the session outlives the browser."""
        known = unit.known
        if known is Known.UNSEEN:
            cookie = unit.presented.cookie
            return cookie is not None and cookie.is_permanent
        if PERMANENT_KEY in unit.data:
            return bool(unit.data[PERMANENT_KEY])
        is_begun = known is Known.NEW or unit.wish >= Wish.RESTART
        return self.config.permanent and is_begun

    def idle_timeout(self, is_permanent: bool) -> float:
        """Return the app's idle timeout, in seconds."""
        timeout = self.config.idle_timeout
        if not is_permanent and timeout is not None:
            return timeout
        # What app.permanent_session_lifetime reads, in half the time.
        lifetime = self._app_config["PERMANENT_SESSION_LIFETIME"]
        if isinstance(lifetime, dt.timedelta):
            return lifetime.total_seconds()
        return float(lifetime)

    def lifetime_of(self, unit: Unit) -> float:
        """Return for how long the session lives without being used, in seconds."""
        return unit.lifetime or self.idle_timeout(self.is_permanent(unit))

    def limit(self, expires_at: float, created_at: float) -> float:
        """Return when a session expires that would, at the latest, at a moment."""
        limit = self.config.absolute_timeout
        return expires_at if limit is None else min(expires_at, created_at + limit)

    def is_touch_due(self, now: float, touched_at: float, lifetime: float) -> bool:
        """Whether activity has to be recorded again.

        Never later than a twentieth of the lifetime, so that a short one is not
        missed by much.
        """
        return now - touched_at >= min(self.config.touch_interval, lifetime / 20)

    def is_too_old(self, record: Record) -> bool:
        """Whether a session has reached its absolute timeout."""
        limit = self.config.absolute_timeout
        return limit is not None and self.clock() >= record.created_at + limit

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
        payload = self.serializer.dumps(unit.data) if encoded is None else encoded
        if len(payload) > self.config.max_size:
            raise SessionTooLargeError(len(payload), self.config.max_size)
        return payload

    def make_record(
        self,
        unit: Unit,
        identity: Identity,
        payload: bytes,
        now: float,
        created_at: float,
        issued_at: float,
        version: int = 1,
        renews: bool = True,
    ) -> Record:
        """Return the record of a session as it is now.

        :param issued_at: When the id was issued, in seconds since the epoch.
        :param renews: ``False`` leaves the times of a stored session as they are.
        """
        user = self.user_of(unit.data)
        if user is not None and len(user) > _MAX_USER:
            key = self.config.user_key
            raise SerializationError(
                f"flask.session[{key!r}] is longer than {_MAX_USER} characters; keep"
                " the user's id there.",
                f"session[{key!r}]",
            )
        touched_at, stored = now, unit.stored
        if renews or stored is None:
            expires_at = self.limit(now + self.lifetime_of(unit), created_at)
        else:
            touched_at, expires_at = stored.record.touched_at, stored.record.expires_at
        envelope = Envelope(
            payload=payload,
            serializer=self.serializer.code,
            lifetime=unit.lifetime,
            issued_at=issued_at,
        )
        return Record(
            data=self._sealer.seal(envelope, identity.key),
            version=version,
            created_at=created_at,
            touched_at=touched_at,
            expires_at=expires_at,
            user=user,
            meta=unit.meta,
        )

    def keep(
        self, unit: Unit, record: Record, payload: bytes, issued_at: float
    ) -> None:
        """Go on with what this request has just stored."""
        serializer, lifetime = self.serializer, unit.lifetime
        unit.adopt(Stored(record, payload, serializer, lifetime, issued_at))

    def adopt(self, unit: Unit, record: Record) -> None:
        """Go on with a record that was loaded.

        :raises RecordError: if it cannot be read.
        """
        envelope, serializer = self._open(unit.key, record)
        payload, lifetime = envelope.payload, envelope.lifetime
        unit.adopt(
            Stored(record, payload, serializer, lifetime, envelope.issued_at),
            serializer.loads(payload),
        )

    def _open(self, key: str, record: Record) -> tuple[Envelope, CodedSerializer]:
        """Return what is in a record, and the serializer that wrote it."""
        envelope = self._sealer.open(record.data, key)
        if envelope.serializer == self.serializer.code:
            return envelope, self.serializer
        # Written before SESSION_SERIALIZER was changed.
        if envelope.serializer not in BUILT_IN:
            raise RecordError(
                "The session was written with another serializer than"
                " 'SESSION_SERIALIZER'.",
                "unreadable",
            )
        return envelope, BUILT_IN[envelope.serializer]
