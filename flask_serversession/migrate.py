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
import copy
import dataclasses
import functools
import logging
import secrets
import typing as t
import zlib

from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadData
from itsdangerous import BadSignature
from itsdangerous import Signer
from itsdangerous import TimestampSigner
from itsdangerous import URLSafeTimedSerializer
from itsdangerous.encoding import base64_decode

from . import signals
from .backends import Setting
from .backends._flask_session import OldStore
from .backends._flask_session import PickledError
from .backends._flask_session import build_old_store
from .backends._flask_session import is_id
from .backends.base import Backend
from .config import SessionConfig
from .cookie import MAX_CANDIDATES
from .cookie import CookieState
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import RecordError
from .errors import SerializationError
from .errors import SessionTooLargeError
from .keeper import SAME_USER
from .keeper import SUCCESSOR
from .keeper import BackendKeeper
from .keeper import Outcome
from .record import TOMBSTONE_DATA
from .record import Record
from .record import key_of
from .session import State
from .session import Status
from .session import is_unused

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


def make_keeper(app: Flask, setting: Setting, backend: Backend) -> BackendKeeper:
    """Give the keeper of an application; one that takes over, if it is to.

    :raises Refused: if there is nothing to take over from.
    """
    config = setting.config
    if not config.migrate_from or config.migrate_until is None:
        return BackendKeeper(app, config, backend, setting.clock)
    if setting.clock() >= config.migrate_until.timestamp():
        _tell_end(config)
        return BackendKeeper(app, config, backend, setting.clock)
    store = None
    if "flask-session" in config.migrate_from:
        store = build_old_store(setting, backend)
    return MigratingKeeper(app, config, backend, setting.clock, store)


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


class MigratingKeeper(BackendKeeper):
    """A keeper that takes over sessions of other kinds.

    Costs nothing where there is no cookie, or one of ours, or where nobody looks at the
    session. Thread-safe.

    :param store: Where Flask-Session has kept its sessions; ``None`` if nothing is to
        be taken over from there.
    """

    def __init__(
        self,
        app: Flask,
        config: SessionConfig,
        backend: Backend,
        clock: cabc.Callable[[], float],
        store: OldStore | None,
    ) -> None:
        super().__init__(app, config, backend, clock)
        assert config.migrate_until is not None  # noqa: S101 - for type checkers
        self.until = config.migrate_until.timestamp()
        self.store = store
        self._is_end_told = False
        self._is_pickle_told = False

    # Which session it is

    @property
    def is_over(self) -> bool:
        """Whether :data:`SESSION_MIGRATE_UNTIL` has passed."""
        return self.clock() >= self.until

    def _recognize(self, state: State) -> bool:
        if self.is_over:
            if not self._is_end_told:
                self._is_end_told = True
                _tell_end(self._config)
            return False
        finders = {"cookie": self._find_cookie, "flask-session": self._find_stored}
        values = [
            value
            for value in state.candidates[:MAX_CANDIDATES]
            if len(value) <= _MAX_COOKIE and value.isascii()
        ]
        for source in self._config.migrate_from:
            for value in values:
                if (legacy := finders[source](value)) is not None:
                    state.legacy = legacy
                    return True
        return False

    def _find_cookie(self, value: str) -> Legacy | None:
        """Verify a cookie as Flask does."""
        serializer = SecureCookieSessionInterface().get_signing_serializer(self._app)
        if serializer is None:
            return None
        signer = t.cast(TimestampSigner, serializer.make_signer(serializer.salt))
        max_age = int(self._app.permanent_session_lifetime.total_seconds())
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
        given = t.cast("dict[str, t.Any]", self._app.config)
        if given.get("SESSION_USE_SIGNER", False):
            if not self._app.secret_key:
                return None
            keys: t.Any
            keys = [*(given["SECRET_KEY_FALLBACKS"] or ()), self._app.secret_key]
            signer = Signer(keys, salt="flask-session", key_derivation="hmac")
            try:
                value = signer.unsign(value).decode("ascii")
            except BadSignature:
                return None
        if self.store is None or not is_id(value):
            return None
        key = self._config.key_prefix + value
        return Legacy(
            "flask-session",
            b"flask-session:" + value.encode(),
            functools.partial(self.store.read, key),
            functools.partial(self.store.remove, key),
        )

    # When it is taken over

    def load(self, state: State) -> None:
        """Fill the state from the backend, or with what is taken over."""
        self.verify(state)
        if state.legacy is None:
            super().load(state)
            return
        state.key = key_of(
            f"legacy:{state.legacy.identity.hex()}", self._config.key_prefix
        )
        state.seen_at = self.clock()
        try:
            self._take_over(state, state.legacy)
        except RecordError as error:
            self._refuse(state, error)
        except BackendUnavailableError as error:
            # Nothing was changed that could be lost, and the next request tries again.
            state.status = Status.UNSAVED
            state.failure = error
            state.is_written = False
            state.data = {}
            if self._config.on_backend_error == "raise":
                raise

    def clear(self, state: State) -> Outcome:
        """Delete a session that was emptied without having been looked at."""
        self._load_legacy(state)
        return super().clear(state)

    def destroy(self, state: State) -> None:
        """Delete the record now and start over."""
        self._load_legacy(state)
        super().destroy(state)

    def _load_legacy(self, state: State) -> None:
        # What is ended has to leave a marker, and that is what taking over does.
        self.verify(state)
        if state.legacy is not None and state.status is Status.UNLOADED:
            self.load(state)

    # How it is taken over

    def _take_over(self, state: State, legacy: Legacy) -> None:
        content = self._asked(state, "load", legacy.read)
        marker = self._asked(state, "load", self.backend.load, state.key)
        if marker is None and content is not None and not is_unused(content):
            marker = self._establish(state, legacy, content)
        if marker is not None and content is not None:
            self._remove(legacy)
        if state.status is Status.STORED:
            self._tell_stored(signals.session_created, state, None)
        elif marker is None:
            self._begin_instead(state, "unknown")
        else:
            self._follow(state, legacy, marker)

    def _establish(
        self, state: State, legacy: Legacy, content: dict[str, t.Any]
    ) -> Record | None:
        """Make a session of it, unless another request does so at this moment.

        :return: The other request's marker, with a state that is not ``STORED``.
        """
        nonce = secrets.token_hex(16)
        now = self.clock()
        heir = copy.copy(state)
        heir.status, heir.data = Status.STORED, content
        heir.id = self._ids(state, legacy, nonce)[0]
        heir.key = key_of(heir.id, self._config.key_prefix)
        heir.issued_at = now
        try:
            payload = self._dumps(heir)
            record = self._record(heir, payload, now, now)
        except (SerializationError, SessionTooLargeError) as error:
            # A 500 at every request of this visitor would help nobody.
            raise RecordError(f"It cannot be stored here. {error}", "unreadable") from (
                error
            )
        if not self._asked(state, "create", self.backend.create, heir.key, record):
            raise BackendError(
                "A key that was never used before is taken.",
                backend=self.backend.name,
                operation="create",
            )
        marker = Record(
            data=TOMBSTONE_DATA,
            version=0,
            created_at=now,
            touched_at=now,
            expires_at=self._forgotten_at(),
            meta={
                SUCCESSOR: self._handle_of(heir.key),
                SAME_USER: "yes",
                _NONCE: nonce,
            },
        )
        if not self._asked(state, "create", self.backend.create, state.key, marker):
            winner = self._asked(state, "load", self.backend.load, state.key)
            # An answer that was lost makes a driver ask again, and meet its own.
            if winner is None or winner.meta.get(_NONCE) != nonce:
                self._asked(state, "delete", self.backend.delete, heir.key)
                return winner
        state.id, state.key, state.issued_at = heir.id, heir.key, now
        # As every later request will see it.
        state.data = self._serializer.loads(payload)
        self._written(state, record, payload)
        state.is_saved = state.is_exposed = False
        if state.is_cleared:
            state.data.clear()
        self._send_cookie(state)
        logger.debug(
            "Session %s taken over: it was one of %r", self.handle(state), legacy.source
        )
        return marker

    def _follow(self, state: State, legacy: Legacy, marker: Record) -> None:
        """Continue with the session that was made of it before."""
        successor = marker.meta.get(SUCCESSOR)
        # By any of the secrets: the newest one may be newer than the marker.
        for id in self._ids(state, legacy, marker.meta.get(_NONCE, "")):
            key = key_of(id, self._config.key_prefix)
            if self._handle_of(key) == successor:
                break
        else:
            self._begin_instead(state, "unknown")
            return
        state.id, state.key = id, key
        self._take(state, self._asked(state, "load", self.backend.load, key))
        if state.status is Status.STORED:
            self._send_cookie(state)

    def _ids(self, state: State, legacy: Legacy, nonce: str) -> list[str]:
        return state.signer.derive_ids(legacy.identity + b":" + nonce.encode())

    def _forgotten_at(self) -> float:
        # For longer than any old cookie is accepted, also if the end is moved a bit.
        return self.until + self._app.permanent_session_lifetime.total_seconds()

    def _send_cookie(self, state: State) -> None:
        """Have the browser get our cookie in place of the old one."""
        record = state.stored
        state.is_cookie_due = True
        # As if it had come with the request, so that it goes if the session does.
        state.cookie = CookieState(
            id=state.id,
            is_permanent=self.is_permanent(state),
            touched_at=record.touched_at,
            created_at=record.created_at,
            lifetime=state.lifetime,
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

    def _refuse(self, state: State, error: RecordError) -> None:
        if not isinstance(error, PickledError):
            self._take_unreadable(state, error)
            return
        if not self._is_pickle_told:
            # Once: where there is one, all of them are.
            self._is_pickle_told = True
            logger.error(
                "A session of Flask-Session is not taken over, nor will others like it"
                " be: %s Their visitors have to log in again.",
                error,
            )
        self._begin_instead(state, error.reason)


def _read_cookie(
    serializer: URLSafeTimedSerializer, payload: bytes, limit: int
) -> dict[str, t.Any]:
    """Give what is in a cookie that Flask has signed.

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
