"""Takes over the sessions of Flask itself and of Flask-Session, one at its first use.

A cookie that is not ours may stand for a session of the system that the application had
before. That session gets a record and an id of its own, and the old cookie a *marker*:
a tombstone that leads to the new record, and that stays for as long as the old cookie
could be accepted. In this order, so that nothing is lost or there twice, whatever dies
or runs at the same moment:

.. code-block:: text

    read what the session held: out of the old cookie,
      │ or out of Flask-Session's store
    load the marker ──── there is one ───────────────────────┐
      │ there is none                                        │
    create the record, under an id that nobody was told      │
      │                                                      │
    create the marker ── another request was faster:         │
      │ it is ours       delete the record ──────────────────┤
      │                                                      ▼
    remove the old session                      load the record that it leads to

The marker is what decides, because creating it succeeds once. It is there before the
old session is removed, and looked for after that was read, so who does not find the one
finds the other. What leads to a record that has gone means that the session was ended,
so replaying the old cookie brings nothing back. A process that dies before it leaves a
record that nobody knows the id of; one that dies after it has done all that counts.

The id is derived from the old cookie, a random number in the marker, and the
application's secret: the second of two requests with the same old cookie can tell it,
and nobody who has the cookie or the store can.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import functools
import logging
import secrets
import typing as t
import zlib

from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadData
from itsdangerous import BadSignature
from itsdangerous import Signer
from itsdangerous import TimestampSigner
from itsdangerous import URLSafeTimedSerializer
from itsdangerous.encoding import base64_decode

from .. import signals
from ..backends import BackendSettings
from ..config import FormerSettings
from ..config import SessionConfig
from ..cookie import MAX_CANDIDATES
from ..cookie import CookieState
from ..core import Core
from ..errors import BackendError
from ..errors import RecordError
from ..errors import SerializationError
from ..errors import SessionTooLargeError
from ..hiding import HiddenText
from ..loading import Loader
from ..record import NO_META
from ..record import Record
from ..rotation import SAME_USER
from ..rotation import SUCCESSOR
from ..rotation import make_tombstone
from ..unit import Cookie
from ..unit import Identity
from ..unit import Known
from ..unit import Stored
from ..unit import Unit
from ..unit import is_unused
from ..user_limit import tell_stored
from .flask_session import OldStore
from .flask_session import PickledError
from .flask_session import build_old_store
from .flask_session import is_id

logger = logging.getLogger("flask_serversession")

# Key in a marker's meta: the random number that the new id is derived with.
_NONCE = "nonce"
# Browsers keep cookies of 4 KiB, and servers take headers of 8 to 64 KiB.
_MAX_COOKIE = 16 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Legacy:
    """A session of another kind, which a cookie stands for."""

    #: Where it comes from, as :data:`SESSION_MIGRATE_FROM` names it.
    source: str
    #: What nobody can change without making it another session. A secret.
    identity: bytes = dataclasses.field(repr=False)
    #: Gives what it holds; ``None`` if it has gone.
    read: cabc.Callable[[], dict[str, t.Any] | None] = dataclasses.field(repr=False)
    #: Removes it.
    remove: cabc.Callable[[], None] = dataclasses.field(repr=False)


def make_takeover(core: Core, settings: BackendSettings) -> Takeover | None:
    """Return what takes over the sessions of an application, if any are to be.

    :raises ConfigurationError: if there is nothing to take over from.
    """
    config = core.config
    if not config.migrate_from or config.migrate_until is None:
        return None
    if core.clock() >= config.migrate_until.timestamp():
        _tell_end(config)
        return None
    if isinstance(config.migrate_from, FormerSettings):
        return None  # its cookies are ours: see moving.py
    store = None
    if "flask-session" in config.migrate_from:
        store = build_old_store(settings, core.backend)
    return Takeover(core, config.migrate_until.timestamp(), store)


def _tell_end(config: SessionConfig) -> None:
    logger.warning(
        "No session is taken over any more: 'SESSION_MIGRATE_UNTIL' was %s. Remove"
        " 'SESSION_MIGRATE_FROM' and what goes with it.",
        config.migrate_until,
    )


class Findings(t.NamedTuple):
    """How many of the sessions in an old store can be taken over."""

    read: int = 0
    good: int = 0
    expired: int = 0
    pickled: int = 0
    unreadable: int = 0


def sample(
    store: OldStore,
    limit: int,
    progress: cabc.Callable[[int], None] = lambda number: None,
) -> Findings:
    """Read some of the sessions in an old store, and change nothing.

    :param limit: How many to read at most.
    :param progress: Called after each with 1.
    :raises NotSupportedError: if the store cannot list what it holds.
    """
    found: collections.Counter[str] = collections.Counter()
    for content in store.sample(limit):
        found["read"] += 1
        if content is None:
            found["expired"] += 1
        elif isinstance(content, PickledError):
            found["pickled"] += 1
        elif isinstance(content, RecordError):
            found["unreadable"] += 1
        else:
            found["good"] += 1
        progress(1)
    return Findings(**found)


class Takeover:
    """Takes over sessions of other kinds. Thread-safe.

    Costs nothing where there is no cookie, or one of ours, or where nobody looks at the
    session.

    :param until: The end of :data:`SESSION_MIGRATE_UNTIL`, in seconds since the epoch.
    :param store: Where Flask-Session has kept its sessions; ``None`` if nothing is to
        be taken over from there.
    """

    def __init__(self, core: Core, until: float, store: OldStore | None) -> None:
        self._core = core
        self._config = core.config
        self.until = until
        self.store = store
        self._is_end_told = False
        self._is_pickle_told = False

    # Which session it is

    @property
    def is_over(self) -> bool:
        """Whether :data:`SESSION_MIGRATE_UNTIL` has passed."""
        return self._core.clock() >= self.until

    def recognize(self, values: cabc.Sequence[str]) -> Legacy | None:
        """Return what a cookie stands for that is not ours; ``None`` if nothing."""
        if self.is_over:
            if not self._is_end_told:
                self._is_end_told = True
                _tell_end(self._config)
            return None
        finders = {"cookie": self._find_cookie, "flask-session": self._find_stored}
        candidates = [
            value
            for value in values[:MAX_CANDIDATES]
            if len(value) <= _MAX_COOKIE and value.isascii()
        ]
        for source in self._config.migrate_from:
            for value in candidates:
                if (legacy := finders[source](value)) is not None:
                    return legacy
        return None

    def _find_cookie(self, value: str) -> Legacy | None:
        """Verify a cookie as Flask does."""
        serializer = SecureCookieSessionInterface().get_signing_serializer(
            self._core.app
        )
        if serializer is None:
            return None
        signer = t.cast(TimestampSigner, serializer.make_signer(serializer.salt))
        max_age = int(self._core.app.permanent_session_lifetime.total_seconds())
        try:
            payload = signer.unsign(value, max_age=max_age)
        except BadSignature:
            return None
        # Decoded: of the last character not every bit counts, so there are several
        # ways to write the same signature.
        signature = base64_decode(value.rpartition(".")[2])
        return Legacy(
            "cookie",
            b"cookie:" + signature,
            functools.partial(_read_cookie, serializer, payload, self._config.max_size),
            lambda: None,
        )

    def _find_stored(self, value: str) -> Legacy | None:
        """Read an id of Flask-Session's out of a cookie."""
        value = HiddenText(value)
        given = t.cast("dict[str, t.Any]", self._core.app.config)
        if given.get("SESSION_USE_SIGNER", False):
            if not self._core.app.secret_key:
                return None
            keys: t.Any
            keys = [*(given["SECRET_KEY_FALLBACKS"] or ()), self._core.app.secret_key]
            signer = Signer(keys, salt="flask-session", key_derivation="hmac")
            try:
                value = HiddenText(signer.unsign(value).decode("ascii"))
            except BadSignature:
                return None
        if self.store is None or not is_id(value):
            return None
        # As secret as the id.
        key = HiddenText(self._config.key_prefix + value)
        return Legacy(
            "flask-session",
            b"flask-session:" + value.encode(),
            functools.partial(self.store.read, key),
            functools.partial(self.store.remove, key),
        )

    # How it is taken over

    def take_over(self, unit: Unit, loader: Loader) -> None:
        """Fill the unit with the session that its claim stands for.

        :raises RecordError: if that cannot be read.
        """
        core = self._core
        legacy: Legacy = unit.presented.claim
        # The key alone: what it is made of is no id, and as secret as one.
        marked = core.identify(f"legacy:{legacy.identity.hex()}")
        unit.identity = marked._replace(id="")
        content = core.ask(unit, "load", legacy.read)
        marker = core.ask(unit, "load", core.backend.load, unit.key)
        if marker is None and content is not None and not is_unused(content):
            marker = self._establish(unit, legacy, content)
        if marker is not None and content is not None:
            self._remove(legacy)
        if unit.known is Known.STORED:
            tell_stored(core, unit, signals.session_created, None)
        else:
            self._follow(unit, legacy, marker, loader)

    def is_to_be_reported(self, error: RecordError) -> bool:
        """Whether a session that cannot be read is reported like any other."""
        if not isinstance(error, PickledError):
            return True
        if not self._is_pickle_told:
            # Once: where there is one, all of them are.
            self._is_pickle_told = True
            logger.error(
                "A session of Flask-Session is not taken over, nor will others like it"
                " be: %s Their visitors have to log in again.",
                error,
            )
        return False

    def _establish(
        self, unit: Unit, legacy: Legacy, content: dict[str, t.Any]
    ) -> Record | None:
        """Make a session of it, unless another request does so at this moment.

        :return: The marker. It is another request's if the unit is not ``STORED`` then.
        """
        core, nonce = self._core, secrets.token_hex(16)
        now, key = core.clock(), unit.key
        id = self._ids(unit, legacy, nonce)[0]
        identity = core.identify(id)
        made = self._make(unit, identity, content, now)
        create = core.backend.create
        if not core.ask(unit, "create", create, identity.key, made.record):
            raise BackendError(
                "A key that was never used before is taken.",
                backend=core.backend.name,
                operation="create",
            )
        meta = {
            SUCCESSOR: core.handle_of(identity.key),
            SAME_USER: "yes",
            _NONCE: nonce,
        }
        marker = make_tombstone(now, self._forgotten_at(), meta)
        if not core.ask(unit, "create", create, key, marker):
            winner = core.ask(unit, "load", core.backend.load, key)
            # An answer that was lost makes a driver ask again, and meet its own.
            if winner is None or winner.meta.get(_NONCE) != nonce:
                core.ask(unit, "delete", core.backend.delete, identity.key)
                return winner
        unit.identity = identity
        # As every later request will see it.
        unit.adopt(made, core.serializer.loads(made.envelope.payload))
        if unit.is_restarted:
            unit.data.clear()
        self._send_cookie(unit)
        logger.debug(
            "Session %s taken over: it was one of %r",
            core.handle_of(identity.key),
            legacy.source,
        )
        return marker

    def _make(
        self, unit: Unit, identity: Identity, content: dict[str, t.Any], now: float
    ) -> Stored:
        """Return a session that is taken over, as it is to be stored.

        :raises RecordError: if it cannot be stored here. A 500 at every request of
            this visitor would help nobody.
        """
        core = self._core
        heir = Unit(unit.signer)
        heir.known, heir.data, heir.meta = Known.STORED, content, unit.meta
        try:
            payload = core.dumps(heir)
            return core.make(heir, identity, payload, now, now, now)
        except (SerializationError, SessionTooLargeError) as error:
            raise RecordError(f"It cannot be stored here. {error}", "unreadable") from (
                error
            )

    def _follow(
        self,
        unit: Unit,
        legacy: Legacy,
        marker: Record | None,
        loader: Loader,
    ) -> None:
        """Continue with the session that was made of it before, if one was."""
        core = self._core
        meta = NO_META if marker is None else marker.meta
        # By any of the secrets: the newest one may be newer than the marker.
        for id in self._ids(unit, legacy, meta.get(_NONCE, "")):
            identity = core.identify(id)
            if core.handle_of(identity.key) == meta.get(SUCCESSOR):
                break
        else:
            loader.take(unit, None)
            return
        unit.identity = identity
        loader.take(unit, core.ask(unit, "load", core.backend.load, identity.key))
        if unit.known is Known.STORED:
            self._send_cookie(unit)

    def _ids(self, unit: Unit, legacy: Legacy, nonce: str) -> list[str]:
        return unit.signer.derive_ids(legacy.identity + b":" + nonce.encode())

    def _forgotten_at(self) -> float:
        # For longer than any old cookie is accepted, also if the end is moved a bit.
        return self.until + self._core.app.permanent_session_lifetime.total_seconds()

    def _send_cookie(self, unit: Unit) -> None:
        """Have the browser get our cookie in place of the old one."""
        identity, record = unit.identity, unit.record
        assert identity is not None  # noqa: S101 - for type checkers
        unit.owed = Cookie.SET
        # As if it had come with the request, so that it goes if the session does.
        unit.presented.cookie = CookieState(
            id=identity.id,
            is_permanent=self._core.is_permanent(unit),
            touched_at=record.touched_at,
            counts_from=record.created_at,
            lifetime=unit.lifetime,
            is_stale=True,
        )

    def _remove(self, legacy: Legacy) -> None:
        try:
            legacy.remove()
        except BackendError as error:
            # The marker keeps it from being taken over again.
            logger.warning(
                "A session was taken over, but the old one could not be removed: %s",
                error,
            )


def _read_cookie(
    serializer: URLSafeTimedSerializer, payload: bytes, limit: int
) -> dict[str, t.Any]:
    """Return what is in a cookie that Flask has signed.

    :param limit: Of the content, in bytes. Flask has none: what it compresses well, an
        application may have let a visitor put there.
    """
    try:
        if payload.startswith(b"."):
            unpacker = zlib.decompressobj()
            if len(unpacker.decompress(base64_decode(payload[1:]), limit + 1)) > limit:
                raise RecordError(
                    f"It is larger than 'SESSION_MAX_SIZE', {limit} bytes.",
                    "unreadable",
                )
        content: t.Any = serializer.load_payload(payload)
    except (BadData, zlib.error) as error:
        raise RecordError("The cookie makes no sense.", "unreadable") from error
    if not isinstance(content, dict):
        raise RecordError("The cookie holds no session.", "unreadable")
    return t.cast("dict[str, t.Any]", content)
