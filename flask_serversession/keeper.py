"""Carries out, against the backend, what a session or its interface decides."""

from __future__ import annotations

import collections.abc as cabc
import copy
import dataclasses
import enum
import functools
import inspect
import itertools
import logging
import math
import random
import threading
import time
import typing as t

from flask import request_tearing_down
from flask import session as flask_session

from . import signals
from .backends.base import Backend
from .backends.base import Conflict
from .backends.base import Replaced
from .config import SessionConfig
from .cookie import MAX_CANDIDATES
from .cookie import check_id
from .cookie import generate_id
from .envelope import Envelope
from .envelope import Sealer
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import ConflictError
from .errors import RecordError
from .errors import SerializationError
from .errors import ServerSessionError
from .errors import SessionLostError
from .errors import SessionTooLargeError
from .merge import merge
from .record import TOMBSTONE_DATA
from .record import Record
from .record import is_key
from .record import key_of
from .record import key_of_handle
from .serializers import CodedSerializer
from .serializers import serializer_for
from .session import PERMANENT_KEY
from .session import ServerSideSession
from .session import State
from .session import Status
from .session import is_unused
from .session import opened_session
from .session import state_of

if t.TYPE_CHECKING:
    from blinker import NamedSignal
    from flask import Flask

P = t.ParamSpec("P")
T = t.TypeVar("T")

logger = logging.getLogger("flask_serversession")

#: Key in a tombstone's meta: the handle that the session has now.
SUCCESSOR = "successor"
#: Key in a tombstone's meta: the id changed, but not whom the session belongs to.
SAME_USER = "same_user"
#: Key in the meta of a record that has just got its id: the handle before. While the
#: id changes there are two records of one session, and this tells.
PREDECESSOR = "predecessor"

# Sessions stay readable when SESSION_SERIALIZER changes from one to the other.
_BUILT_IN = {
    serializer.code: serializer
    for serializer in (serializer_for("msgpack"), serializer_for("json"))
}
# How often a conflict is resolved before giving up. Some request succeeds at every
# round, so only starvation gets here.
_MAX_TRIES = 100
# The longest pause between two tries, in seconds.
_MAX_PAUSE = 0.05
# For how long what a request has seen of its session is taken for true when an
# unchanged cookie is sent again, in seconds.
_TRUSTED = 0.1
# How often a custom generator may return an id that is taken.
_MAX_TAKEN = 5
# How many ended keys one process remembers, and for how long at least, in seconds:
# longer than a request runs.
_MAX_RETIRED = 10_000
_LEAST_RETIRED = 60.0
# How often the sessions of a user are counted again while two log in at once, and the
# pause between, in seconds.
_LIMIT_TRIES = 6
_LIMIT_PAUSE = 0.02
# The user is kept in columns and index names; longer ones are somebody's mistake.
_MAX_USER = 255


def predecessor_of(record: Record, prefix: str) -> str | None:
    """Give the key from which a record's session is moving, or has just moved."""
    return key_of_handle(record.meta.get(PREDECESSOR), prefix)


class Outcome(enum.Enum):
    """What became of a session that was to be written."""

    #: The backend holds what the request wants it to hold.
    STORED = enum.auto()
    #: It was emptied, and its record is gone.
    EMPTIED = enum.auto()
    #: Another request had ended it; this one's changes were dropped.
    LOST = enum.auto()


@dataclasses.dataclass(slots=True)
class _Rotation:
    """A change of the id that is under way."""

    #: The session as it will be under its new id.
    heir: State | None = None
    #: What is stored under the new id, until it is known whether it will be needed.
    record: Record | None = None


class BackendKeeper:
    """The :class:`.Keeper` of one application. Thread-safe; keeps nothing of a request.

    :param clock: Gives the time in seconds since the epoch.
    """

    def __init__(
        self,
        app: Flask,
        config: SessionConfig,
        backend: Backend,
        clock: cabc.Callable[[], float],
    ) -> None:
        self._app = app
        self._config = config
        self._serializer = serializer_for(config.serializer)
        self._sealer = Sealer(config.encryption_key)
        self._reported: dict[str, None] = {}
        self._retired: dict[str, float] = {}
        self._retired_for = max(
            config.rotation_grace, config.touch_interval, _LEAST_RETIRED
        )
        self._retired_lock = threading.Lock()
        self._is_watching = False
        self.backend = backend
        self.clock = clock

    # Reading

    def verify(self, state: State) -> None:
        """Find the cookie that verifies. Asks nothing of the backend."""
        if state.is_verified:
            return
        state.is_verified = True
        if (
            not self._verify_next(state)
            and state.candidates
            and not self._recognize(state)
        ):
            self._reject("", "forged")

    def _verify_next(self, state: State) -> bool:
        """Go on to the next cookie that verifies, if there is one."""
        for value in state.candidates[state.tried : MAX_CANDIDATES]:
            state.tried += 1
            cookie = state.signer.verify(value)
            if cookie is not None and cookie.id != state.id:
                state.cookie = cookie
                state.id = cookie.id
                state.key = key_of(cookie.id, self._config.key_prefix)
                return True
        return False

    def _recognize(self, state: State) -> bool:
        """Whether a cookie that is not ours stands for something all the same."""
        return False

    def load(self, state: State) -> None:
        """Fill the state from the backend. Afterwards it is not ``UNLOADED``."""
        self.verify(state)
        if not state.key:
            self._begin(state)
            return
        opened_at, state.seen_at = state.seen_at, self.clock()
        try:
            record = self.backend.load(state.key)
            if len(state.candidates) > 1 and (record is None or record.is_tombstone):
                record = self._load_next(state, record)
        except BackendUnavailableError as error:
            # Whatever else this request does with its session, it does not wait for
            # the backend again, so that an error page can still be rendered.
            state.status = Status.UNSAVED
            state.failure = error
            self._report_failure(state, "load", error)
            if self._config.on_backend_error == "raise":
                raise
        except RecordError as error:
            self._take_unreadable(state, error)
        else:
            if record is None and self.is_retired(state.key, since=opened_at):
                # Another request has ended it while this one had yet to look. It may
                # have begun another one, whose cookie this one must not replace.
                state.status = Status.LOST
                self._reject(state.key, "unknown")
            else:
                self._take(state, record)

    def _load_next(self, state: State, record: Record | None) -> Record | None:
        """Look behind the cookie of a session that is gone for that of a live one.

        A browser goes on sending one that was left on another path or domain, before
        or after the one that it was given since.

        :return: The live one's record; else the given one, and the state is as before.
        """
        first = state.cookie, state.id, state.key
        while self._verify_next(state):
            found = self.backend.load(state.key)
            if found is not None and not found.is_tombstone:
                return found
        state.cookie, state.id, state.key = first
        return record

    def _take(self, state: State, record: Record | None) -> None:
        """Continue with what the backend gave."""
        if record is None or self._is_too_old(record):
            self._begin_instead(state, "unknown")
        elif record.is_tombstone:
            state.status = Status.LOST
            self._reject(state.key, "rotated")
        else:
            try:
                self._adopt(state, record)
            except RecordError as error:
                self._take_unreadable(state, error)
                return
            state.status = Status.STORED
            if self._is_idle(state):
                self._begin_instead(state, "unknown")
            elif state.is_cleared:
                state.data.clear()
                state.lifetime = None

    def _adopt(self, state: State, record: Record) -> None:
        """Make a record the one that changes are compared with."""
        envelope, writer = self._open(state.key, record)
        state.data = writer.loads(envelope.payload)
        state.record = record
        state.payload = envelope.payload
        state.writer = writer
        state.lifetime = state.stored_lifetime = envelope.lifetime
        state.issued_at = envelope.issued_at
        state.stored_user = record.user

    def _open(self, key: str, record: Record) -> tuple[Envelope, CodedSerializer]:
        """Give what is in a record, and the serializer that wrote it."""
        envelope = self._sealer.open(record.data, key)
        if envelope.serializer == self._serializer.code:
            return envelope, self._serializer
        # Written before SESSION_SERIALIZER was changed.
        if envelope.serializer not in _BUILT_IN:
            raise RecordError(
                "The session was written with another serializer than"
                " 'SESSION_SERIALIZER'.",
                "unreadable",
            )
        return envelope, _BUILT_IN[envelope.serializer]

    def _take_unreadable(self, state: State, error: RecordError) -> None:
        key = state.key
        if key not in self._reported:
            if len(self._reported) >= 1000:
                self._reported.pop(next(iter(self._reported)), None)
            self._reported[key] = None
            logger.error(
                "Session %s cannot be read, and counts as no session: %s",
                self._handle_of(key),
                error,
            )
        if error.reason == "newer":
            # A rolling deploy: the newer version must find it as it left it.
            state.status = Status.UNSAVED
            self._reject(key, error.reason)
        else:
            self._begin_instead(state, error.reason)

    def _begin_instead(self, state: State, reason: str) -> None:
        """Start a new session, because that of the cookie is not accepted."""
        key = state.key
        self._begin(state)
        self._reject(key, reason)

    def _begin(self, state: State) -> None:
        """Start a new session; it gets an id when somebody asks for it."""
        now = self.clock()
        state.status = Status.NEW
        state.is_new = True
        state.id = state.key = ""
        state.record = None
        state.payload = b""
        state.data = {}
        state.lifetime = state.stored_lifetime = state.stored_user = None
        state.issued_at = now

    def _is_too_old(self, record: Record) -> bool:
        limit = self._config.absolute_timeout
        return limit is not None and self.clock() >= record.created_at + limit

    def _is_idle(self, state: State) -> bool:
        """Whether the session was unused for longer than its own lifetime.

        Its record is there for longer if a request that did not know of the lifetime
        yet has touched it.
        """
        lifetime = state.lifetime or self.idle_timeout(self.is_permanent(state))
        return self.clock() >= state.stored.touched_at + lifetime

    # What a session tells of itself

    def handle(self, state: State) -> str:
        """Give the public form of the state's key."""
        if not state.key and state.status is Status.NEW:
            self.id(state)
        return self._handle_of(state.key)

    def _handle_of(self, key: str) -> str:
        return key[len(self._config.key_prefix) :]

    def id(self, state: State) -> str:
        """Give the state's id; a new session gets one."""
        if not state.id:
            self._issue_id(state)
        return state.id

    def _issue_id(self, state: State) -> None:
        generator = self._config.id_generator
        state.id = generate_id() if generator is None else check_id(generator())
        state.key = key_of(state.id, self._config.key_prefix)
        state.issued_at = self.clock()

    def user(self, state: State) -> str | None:
        """Give whom the content belongs to."""
        user = state.data.get(self._config.user_key)
        return None if user is None else str(user)

    def times(self, state: State) -> tuple[float, float]:
        """Give when the session began and when it expires."""
        if state.record is not None and state.status is Status.STORED:
            return state.record.created_at, state.record.expires_at
        now = self.clock()
        return now, self._expiry(state, now, now)

    def is_permanent(self, state: State) -> bool:
        """Whether the session outlives the browser."""
        if state.status is Status.UNLOADED:
            return state.cookie is not None and state.cookie.is_permanent
        default = self._config.permanent and (
            state.status is Status.NEW or state.is_restarted or state.is_cleared
        )
        return bool(state.data.get(PERMANENT_KEY, default))

    def idle_timeout(self, is_permanent: bool) -> float:
        """Give the app's idle timeout, in seconds."""
        timeout = self._config.idle_timeout
        if is_permanent or timeout is None:
            return self._app.permanent_session_lifetime.total_seconds()
        return timeout

    def _expiry(self, state: State, now: float, created_at: float) -> float:
        lifetime = state.lifetime or self.idle_timeout(self.is_permanent(state))
        return self._limit(now + lifetime, created_at)

    def _limit(self, expires_at: float, created_at: float) -> float:
        limit = self._config.absolute_timeout
        return expires_at if limit is None else min(expires_at, created_at + limit)

    def is_touch_due(self, now: float, touched_at: float, lifetime: float) -> bool:
        """Whether activity has to be recorded again.

        Never later than a twentieth of the lifetime, so that a short one is not
        missed by much.
        """
        return now - touched_at >= min(self._config.touch_interval, lifetime / 20)

    # Writing

    def change_reason(self, state: State) -> str | None:
        """Say why a stored session has to be written; ``None`` if nothing changed.

        :raises SerializationError: if it holds something that cannot be written.
        """
        if state.is_written:
            return "key changed"
        if state.lifetime != state.stored_lifetime:
            return "lifetime changed"
        if state.is_exposed:
            writer = state.writer or self._serializer
            try:
                encoded = writer.dumps(state.data, state.payload)
            except SerializationError:
                if writer is self._serializer:
                    raise
                # What was stored, the former serializer could write.
                return "nested change"
            if encoded != state.payload:
                if writer is self._serializer:
                    state.encoded = encoded
                return "nested change"
        return None

    def rotation_reason(self, state: State) -> str | None:
        """Say why a stored session needs a new id; ``None`` if it does not."""
        config = self._config
        if state.is_rotating:
            return "regenerate() was called"
        # Emptying a session ends it, so what is written afterwards begins another one,
        # which a request that still runs for the former one has no part in.
        if state.is_cleared and not state.is_closed and not is_unused(state.data):
            return "it was emptied and written again"
        if config.regenerate_on_login and self.user(state) != state.stored_user:
            return "the user changed"
        if (
            config.renewal_interval is not None
            # The browser cannot be told any more; the next request will do.
            and not state.is_closed
            and self.clock() - state.issued_at >= config.renewal_interval
        ):
            return "it is as old as 'SESSION_RENEWAL_INTERVAL'"
        return None

    def write(self, state: State, change: str | None) -> Outcome:
        """Write a session, whatever its status is.

        :param change: What changed; ``None`` if it is written for another reason.
        """
        if state.status is Status.NEW:
            return self._create(state)
        if state.status is not Status.STORED:
            return self._lose(state, change is not None)
        return self._write_stored(state, change, functools.partial(self._merge, state))

    def _create(self, state: State) -> Outcome:
        if self._config.permanent:
            state.data.setdefault(PERMANENT_KEY, True)
        payload = self._dumps(state)
        now = self.clock()
        self.id(state)
        record = self._store_new(state, payload, now, now)
        self._written(state, record, payload)
        logger.debug("Session %s saved: new", self.handle(state))
        self._tell_stored(signals.session_created, state, None)
        return Outcome.STORED

    def _store_new(
        self, state: State, payload: bytes, now: float, created_at: float
    ) -> Record:
        """Store a record under the state's id, with another id if that is taken."""
        for _ in range(_MAX_TAKEN):
            record = self._record(state, payload, now, created_at)
            if self._asked(state, "create", self.backend.create, state.key, record):
                self._retired.pop(state.key, None)
                return record
            self._issue_id(state)
        raise BackendError(
            f"{_MAX_TAKEN} new ids in a row were taken already; check"
            " 'SESSION_ID_GENERATOR'.",
            backend=self.backend.name,
            operation="create",
        )

    def _write_stored(
        self,
        state: State,
        change: str | None,
        resolve: cabc.Callable[[Record], None],
    ) -> Outcome:
        """Write a stored session, until no other request is in the way.

        :param change: What changed; ``None`` if it is written for another reason.
        :param resolve: Brings the session together with what another request stored.
        """
        rotation = _Rotation()
        outcome = Outcome.LOST
        key = state.key
        try:
            for tries in itertools.count(1):
                result = self._try_write(state, rotation)
                if isinstance(result, Outcome):
                    outcome = result
                    break
                current = self._pause(state, result, tries)
                if current is None:
                    break
                resolve(current)
                if state.status is not Status.STORED:  # atomic()'s function ended it
                    break
        except BackendUnavailableError:
            # It may have done what it did not acknowledge; and nobody waits twice.
            rotation.record = None
            raise
        finally:
            if rotation.heir is not None and rotation.record is not None:
                unused = rotation.heir.key
                self._asked(state, "delete", self.backend.delete, unused)
        if outcome is Outcome.LOST and state.status is Status.STORED:
            return self._lose(state, change is not None)
        if outcome is Outcome.STORED and state.key == key:
            logger.debug("Session %s saved: %s", self.handle(state), change or "resave")
        return outcome

    def _try_write(self, state: State, rotation: _Rotation) -> Outcome | Record:
        """Write once; another request's record comes back if that was in the way."""
        is_empty = is_unused(state.data)
        if state.is_cleared:
            if is_empty:
                return self._delete_stored(state)
            state.is_restarted = True
        is_emptied = is_empty and not self._was_empty(state)
        reason = self.rotation_reason(state)
        if is_emptied or (reason is None and rotation.record is None):
            return self._try_replace(state, is_emptied)
        return self._try_rotate(state, rotation, reason or "it was begun")

    def _try_replace(self, state: State, is_emptied: bool) -> Outcome | Record:
        key, stored = state.key, state.stored
        now = self.clock()
        payload = self._dumps(state)
        version = stored.version + 1
        record = self._record(state, payload, now, stored.created_at, version)
        if is_emptied:
            # Expired at once, which deletes it only if nobody else has written to
            # it: a key that another request just added is not lost.
            record = dataclasses.replace(record, expires_at=now)
        try:
            result = self._asked(
                state, "replace", self.backend.replace, key, record, stored.version
            )
        except RecordError:
            return Outcome.LOST
        if isinstance(result, Conflict) and result.current.data == record.data:
            # No two writes are alike: an acknowledgement was lost, and a driver that
            # asked again met what it had already written.
            result = Replaced(result.current.version)
        if isinstance(result, Replaced):
            if record.expires_at <= now:
                return self._ended(state)
            if result.version != version:
                record = dataclasses.replace(record, version=result.version)
            self._written(state, record, payload)
            self._tell_stored(signals.session_saved, state, stored.user)
            return Outcome.STORED
        if isinstance(result, Conflict):
            if not result.current.is_tombstone:
                return result.current
            self._log_out_successor(state, result.current)
        return Outcome.LOST

    def _merge(self, state: State, current: Record) -> None:
        """Bring another request's version and this one's changes together."""
        policy = self._config.conflict
        if policy == "raise":
            raise ConflictError(
                "Another request changed the session while this one ran, and"
                " 'SESSION_CONFLICT' is 'raise'. The other request's version is kept."
            )
        mine, lifetime = state.data, state.lifetime
        self._rebase(state, current, state.payload, state.writer, mine)
        if policy == "overwrite":
            state.data, state.lifetime = mine, lifetime

    def _pause(self, state: State, current: Record, tries: int) -> Record | None:
        """Wait before another try, or give up.

        :param current: What was in the way.
        :return: What is stored now; ``None`` if the session is gone.
        """
        if tries >= _MAX_TRIES:
            raise ConflictError(
                f"The session was changed by other requests {tries} times in a row"
                " while this one tried to save it. Write less often to one session."
            )
        if tries < 2:
            return current
        # Jitter: requests that collided once would collide again in step.
        time.sleep(random.uniform(0, min(_MAX_PAUSE, 0.001 * 2**tries)))  # noqa: S311
        # The others went on meanwhile, so what was in the way is of no use any more.
        try:
            record = self._asked(state, "load", self.backend.load, state.key)
        except RecordError:
            return None
        return None if record is None or record.is_tombstone else record

    def _rebase(
        self,
        state: State,
        current: Record,
        base: bytes,
        writer: CodedSerializer | None,
        mine: dict[str, t.Any],
    ) -> None:
        """Put what changed from ``base`` to ``mine`` on top of another record.

        :param writer: What wrote ``base``, if that is not the configured serializer.
        """
        lifetime = state.lifetime
        is_lifetime_mine = lifetime != state.stored_lifetime
        writer = writer or self._serializer
        try:
            self._adopt(state, current)
        except RecordError as error:
            raise BackendError(
                "The session was overwritten meanwhile with something that cannot be"
                f" read: {error}",
                backend=self.backend.name,
                operation="replace",
            ) from error
        if is_lifetime_mine or state.is_restarted:
            state.lifetime = lifetime
        if base != state.payload and not (state.is_cleared or state.is_restarted):
            mine = merge(writer.loads(base), mine, state.data, self._is_equal)
        state.data = mine

    def _is_equal(self, a: t.Any, b: t.Any) -> bool:
        # As they would be stored: 1, 1.0 and True are equal to Python only.
        return self._serializer.dumps({"": a}) == self._serializer.dumps({"": b})

    def _try_rotate(
        self, state: State, rotation: _Rotation, reason: str
    ) -> Outcome | Record:
        """Move the session to a new id, and leave a tombstone under the old one.

        The new record exists before the old one goes, and the old one goes by
        compare-and-swap, so that a crash loses nothing and two rotations at the same
        moment leave one session. If the engine fails between the two steps, the new
        record stays until it expires; nobody was told its id.
        """
        if state.is_closed:
            raise ServerSessionError(
                f"The session needs a new id ({reason}), but the response was already"
                " sent and the browser cannot learn it. Log in and out in an ordinary"
                " request."
            )
        old_key, old_record = state.key, state.stored
        if state.is_restarted and self._config.permanent:
            state.data.setdefault(PERMANENT_KEY, True)
        payload = self._dumps(state)
        now = self.clock()
        created_at = now if state.is_restarted else old_record.created_at
        heir = copy.copy(state)
        if self.user(state) is not None:
            heir.meta = {**state.meta, PREDECESSOR: self._handle_of(old_key)}
        if rotation.heir is None or rotation.record is None:
            self._issue_id(heir)
            try:
                record = self._store_new(heir, payload, now, created_at)
            except BackendUnavailableError as error:
                state.failure = error
                raise
        else:
            heir.id, heir.key = rotation.heir.id, rotation.heir.key
            heir.issued_at = rotation.heir.issued_at
            record = self._record(heir, payload, now, created_at)
            replaced = self._asked(
                state,
                "replace",
                self.backend.replace,
                heir.key,
                record,
                rotation.record.version,
            )
            if not isinstance(replaced, Replaced):
                # Revoked before anybody knew it; so is what it was to follow.
                if self._asked(state, "delete", self.backend.delete, old_key):
                    self.send_destroyed(old_key, old_record.user)
                return Outcome.LOST
            record = dataclasses.replace(record, version=replaced.version)
        rotation.heir, rotation.record = heir, record
        # Tells revoke() where the session went, and us our own tombstone should the
        # acknowledgement of it get lost.
        successor = self._handle_of(heir.key)
        meta = {SUCCESSOR: successor}
        if old_record.user == record.user and not state.is_restarted:
            meta[SAME_USER] = "yes"
        now = self.clock()
        tombstone = Record(
            data=TOMBSTONE_DATA,
            version=0,
            created_at=now,
            touched_at=now,
            expires_at=now + self._config.rotation_grace,
            meta=meta,
        )
        try:
            result = self._asked(
                state,
                "replace",
                self.backend.replace,
                old_key,
                tombstone,
                old_record.version,
            )
        except RecordError:
            return Outcome.LOST
        except BackendUnavailableError:
            # Perhaps the old id is dead now, perhaps not; the new one lives for sure.
            # Who logs out keeps the old one: its session may still be there to be
            # ended, and nobody may believe that it was.
            if old_record.user in (None, record.user):
                self._move(state, heir, record, payload)
            raise
        if isinstance(result, Conflict):
            if not result.current.is_tombstone:
                return result.current
            if result.current.meta.get(SUCCESSOR) != successor:
                # Rotated by another request.
                self._log_out_successor(state, result.current)
                return Outcome.LOST
        elif not isinstance(result, Replaced):
            return Outcome.LOST  # ended
        rotation.record = None
        self._retire(old_key)
        self._move(state, heir, record, payload)
        logger.debug(
            "Session %s rotated to %s: %s",
            self._handle_of(old_key),
            self._handle_of(state.key),
            reason,
        )
        self._tell_stored(
            signals.session_regenerated,
            state,
            old_record.user,
            previous=self._handle_of(old_key),
        )
        return Outcome.STORED

    def _move(self, state: State, heir: State, record: Record, payload: bytes) -> None:
        """Continue under the new id."""
        state.id, state.key, state.issued_at = heir.id, heir.key, heir.issued_at
        state.is_cookie_due = True
        state.is_rotating = state.is_restarted = False
        self._written(state, record, payload)

    def _tell_stored(
        self, signal: NamedSignal, state: State, user_before: str | None, **values: str
    ) -> None:
        """Send a signal about what was just stored, and see to the user's limit.

        In this order: a receiver that raises is no way around the limit.
        """
        ended: list[str] = []
        try:
            if state.stored_user != user_before:
                self._limit_user(state, ended)
        finally:
            self._send(signal, state.key, state.stored_user, **values)
            for key in ended:
                self.send_destroyed(key, state.stored_user)

    def _limit_user(self, state: State, ended: list[str]) -> None:
        """End the oldest sessions of a user who has just logged in once too often.

        :param ended: Gets the keys of those that were ended.
        """
        limit, user = self._config.max_per_user, state.stored_user
        if limit is None or user is None:
            return
        gone: set[str] = set()
        for tries in range(_LIMIT_TRIES):
            keys = self._asked(state, "keys_of_user", self.backend.keys_of_user, user)
            keys = [key for key in keys if is_key(key, self._config.key_prefix)]
            if len(keys) <= limit or state.key not in keys:
                return
            loaded = self._asked(state, "load", self.backend.load_many, keys)
            # What has gone meanwhile may have another id now, and is counted again.
            gone_before, gone = gone, {*keys} - {*loaded}
            records = {
                key: record
                for key, record in loaded.items()
                if predecessor_of(record, self._config.key_prefix) not in loaded
            }
            records[state.key] = state.stored
            excess = max(0, len(records) - limit)
            # What was written after this one may be another log-in at this moment,
            # which ends this one if it is one too many. Were both to end each other,
            # nobody would be left. It is ended last, should nothing come of that: its
            # clock was wrong, or it had counted before this one was there.
            written = {key: (records[key].touched_at, key) for key in records}
            is_last = tries == _LIMIT_TRIES - 1
            is_newest = is_last or max(written.values()) == written[state.key]
            # All choose in the same order, so together they end no more than they have
            # to. Who is itself among the oldest stays, and another one goes for it; but
            # not if somebody newer is about to end it.
            oldest = sorted(records, key=lambda key: (records[key].created_at, key))
            is_spared = is_newest and state.key in oldest[:excess]
            allowed = [
                key
                for key in oldest[: excess + is_spared]
                if key != state.key and (is_last or written[key] < written[state.key])
            ]
            for key in allowed:
                if self._asked(state, "delete", self.backend.delete, key):
                    self._retire(key)
                    ended.append(key)
                else:
                    gone.add(key)
            if len(allowed) < excess:
                time.sleep(random.uniform(0.5, 1.5) * _LIMIT_PAUSE)  # noqa: S311
            elif gone <= gone_before:
                return

    def _retire(self, key: str) -> None:
        """Remember that a session was ended, or has another id now.

        For as long as another request's cookie for it can look as if it needed no
        touch, which would tell.
        """
        now = self.clock()
        with self._retired_lock:
            self._retired.pop(key, None)
            self._retired[key] = now + self._retired_for
            # The oldest come first.
            for old, until in [*itertools.islice(self._retired.items(), 2)]:
                if until <= now or len(self._retired) > _MAX_RETIRED:
                    del self._retired[old]

    def is_retired(self, key: str, since: float = -math.inf) -> bool:
        """Whether this process has ended the session, or rotated its id away.

        :param since: After which moment, in seconds since the epoch.
        """
        until = self._retired.get(key)
        return (
            until is not None
            and until > self.clock()
            and until - self._retired_for > since
        )

    def _written(self, state: State, record: Record, payload: bytes) -> None:
        """Continue with what was just stored."""
        if state.status is Status.NEW:
            state.is_cookie_due = True
        state.status = Status.STORED
        state.record = record
        state.payload = payload
        state.writer = self._serializer
        state.is_saved = True
        state.stored_lifetime = state.lifetime
        state.stored_user = record.user
        state.was_written = state.was_written or state.is_written
        state.is_written = state.is_cleared = state.is_restarted = False
        # Somebody may hold on to a list that is in there now.
        state.is_exposed = True

    def _was_empty(self, state: State) -> bool:
        return is_unused((state.writer or self._serializer).loads(state.payload))

    def _delete_stored(self, state: State) -> Outcome:
        try:
            if self._asked(state, "delete", self.backend.delete, state.key):
                return self._ended(state)
            record = self._asked(state, "load", self.backend.load, state.key)
        except RecordError as error:
            self._take_unreadable(state, error)
            return Outcome.LOST
        if record is None:
            self._begin_instead(state, "unknown")
            return Outcome.LOST
        self._delete_successor(state, record)
        return self._lose(state, False)

    def _delete_successor(self, state: State, tombstone: Record) -> None:
        """End a session under the id that another request has just given it.

        Somebody who logs out while a background request renews the id wants to be
        logged out. After a log-in the old id has no say in the new session.
        """
        for _ in range(_MAX_TAKEN):
            handle = tombstone.meta.get(SUCCESSOR)
            if handle is None or not tombstone.meta.get(SAME_USER):
                return
            key = self._config.key_prefix + handle
            if self._asked(state, "delete", self.backend.delete, key):
                self.send_destroyed(key, None)
                return
            found = self._asked(state, "load", self.backend.load, key)
            if found is None or not found.is_tombstone:
                return
            tombstone = found

    def _log_out_successor(self, state: State, tombstone: Record) -> None:
        """End the successor, if what cannot be saved any more is a log-out."""
        has_had_user = state.stored_user is not None
        if state.is_cleared or (
            has_had_user and (state.is_restarted or self.user(state) is None)
        ):
            self._delete_successor(state, tombstone)

    def _ended(self, state: State) -> Outcome:
        key, user = state.key, state.stored_user
        logger.debug("Session %s ended", self._handle_of(key))
        self._begin(state)
        state.is_destroyed = True
        state.was_written = state.was_written or state.is_written
        state.is_written = state.is_cleared = state.is_exposed = False
        self.send_destroyed(key, user)
        return Outcome.EMPTIED

    def drop(self, state: State) -> None:
        """Report what a session wants to change that another request has ended."""
        self._lose(state, True)

    def _lose(self, state: State, has_changes: bool) -> Outcome:
        """Drop the changes of a session that another request has ended."""
        state.status = Status.LOST
        state.was_written = state.was_written or state.is_written
        state.is_written = state.is_exposed = state.is_rotating = False
        if has_changes:
            if not state.is_loss_told:
                state.is_loss_told = True
                logger.info(
                    "Session %s was ended or rotated by another request; the changes"
                    " of this one are dropped.",
                    self.handle(state),
                )
                self._send(signals.session_lost, state.key, state.stored_user)
            if self._config.on_lost == "raise":
                raise SessionLostError(
                    "Another request ended the session, or gave it a new id, while"
                    " this one ran; its changes are dropped."
                )
        return Outcome.LOST

    def clear(self, state: State) -> Outcome:
        """Delete a session that was emptied without having been looked at."""
        self.verify(state)
        if not state.key:
            self._begin(state)
            return Outcome.LOST
        return self._delete_current(state)

    def _delete_current(self, state: State) -> Outcome:
        """Delete the session; if it was not loaded yet, the first that is there."""
        is_unseen = state.status is Status.UNLOADED
        outcome = self._delete_stored(state)
        while is_unseen and outcome is Outcome.LOST and self._verify_next(state):
            outcome = self._delete_stored(state)
        return outcome

    def renew(self, state: State, is_used: bool, is_sent_again: bool) -> bool:
        """Record that a stored session was used, if that is due.

        A failure is logged and nothing more.

        :param is_used: Whether that makes it live longer.
        :param is_sent_again: Whether the cookie will be sent: see :meth:`_is_old_news`.
        :return: ``False`` if the session turns out to be gone.
        """
        record = state.stored
        now = self.clock()
        lifetime = state.lifetime or self.idle_timeout(self.is_permanent(state))
        is_due = is_used and self.is_touch_due(now, record.touched_at, lifetime)
        if not is_due and not (is_sent_again and self._is_old_news(state)):
            return True
        if is_used:
            expires_at = self._limit(now + lifetime, record.created_at)
        else:
            # What has passed would end it, which another request may have prolonged.
            expires_at = max(record.expires_at, now + 1)
        if (touched := self._touch(state, now, expires_at)) is True:
            state.record = dataclasses.replace(
                record, touched_at=now, expires_at=expires_at
            )
        return touched is not False

    def renew_unseen(self, state: State) -> float | None:
        """Record that a session was used that was not looked at, if that is due.

        :return: When it was touched last; ``None`` if it is gone, or if nobody knows.
        """
        now = self.clock()
        while (cookie := state.cookie) is not None:
            lifetime = cookie.lifetime or self.idle_timeout(cookie.is_permanent)
            if not (
                self.is_touch_due(now, cookie.touched_at, lifetime)
                or self._is_old_news(state)
                or len(state.candidates) > 1  # which of them is in use?
            ):
                return None if self.is_retired(state.key) else cookie.touched_at
            expires_at = self._limit(now + lifetime, cookie.created_at)
            if (touched := self._touch(state, now, expires_at)) is True:
                return now
            if touched is None or not self._verify_next(state):
                break
        return None

    def _is_old_news(self, state: State) -> bool:
        """Whether an unchanged cookie must not be sent without asking for the session.

        While a slow request ran, another one on another machine may have logged in and
        given the browser a new id, which the old cookie would throw away.
        """
        return self.clock() - state.seen_at > _TRUSTED

    def _touch(self, state: State, now: float, expires_at: float) -> bool | None:
        """Touch; ``None`` if the backend failed."""
        if state.failure is not None and not state.is_closed:
            return None
        try:
            is_alive = self.backend.touch(state.key, now, expires_at)
        except BackendUnavailableError as error:
            self._report_failure(state, "touch", error)
            return None
        logger.debug(
            "Session %s %s", self.handle(state), "touched" if is_alive else "is gone"
        )
        return is_alive

    def watch(self) -> None:
        """Begin to warn of changes that are not saved when a request ends.

        Not from the start: to ask for that costs a request as much as its session
        does, and few applications touch one after the response was begun.
        """
        if not self._is_watching:
            self._is_watching = True
            request_tearing_down.connect(self._warn_if_unsaved, self._app)

    def _warn_if_unsaved(self, app: Flask, **_: t.Any) -> None:
        """Warn of changes that came after the session was stored."""
        session = opened_session()
        if session is None or not session.accessed:
            return
        flasks: t.Any = flask_session  # asking for it is access, which there was
        if flasks._get_current_object() is not session:
            return  # Flask-SocketIO has put one of its own in its place
        state = state_of(session)
        if not state.is_closed or state.status not in (Status.NEW, Status.STORED):
            return
        if state.failure is not None or state.is_abandoned:
            return  # which was reported, or asked for
        if not (state.is_written or state.is_exposed):
            return
        if state.status is Status.NEW and is_unused(state.data):
            return  # there is nothing that could be kept
        try:
            is_changed = self.change_reason(state) is not None
        except SerializationError:
            is_changed = True
        if is_changed:
            logger.warning(
                "Session %s was changed after the response was begun, so the change is"
                " not saved. Call session.save() after such a change, or make it"
                " before the response.",
                self.handle(state) or "(new)",
            )

    # What a session asks for

    def regenerate(self, state: State, keep_data: bool) -> None:
        """Prepare a new id."""
        if state.is_closed:
            raise ServerSessionError(
                "regenerate() came after the response was sent; the browser cannot"
                " learn the new id any more. Call it before the response begins."
            )
        if not keep_data:
            state.data.clear()
            state.lifetime = None
            state.is_new = True
        state.is_written = True
        if state.status is Status.STORED:
            state.is_rotating = True
            state.is_restarted = state.is_restarted or not keep_data
        elif state.status is Status.NEW:
            state.id = state.key = ""

    def destroy(self, state: State) -> None:
        """Delete the record now and start over."""
        self.verify(state)
        if state.failure is not None:
            # Not known to be ended, so nobody may be told that it is: the response
            # neither, should the view go on.
            state.is_cleared = True
            raise state.failure
        state.data.clear()
        state.is_written = state.is_cleared = state.is_exposed = False
        state.is_rotating = state.is_restarted = state.was_written = False
        if state.key and state.status in (
            Status.UNLOADED,
            Status.STORED,
            Status.LOST,
        ):
            try:
                self._delete_current(state)
            except BackendUnavailableError:
                state.is_cleared = True
                raise
        elif state.status in (Status.UNLOADED, Status.NEW):
            self._begin(state)

    def reload(self, state: State) -> None:
        """Forget local changes and load again."""
        state.is_written = state.is_exposed = state.is_cleared = False
        state.is_rotating = state.is_restarted = state.was_written = False
        if state.status is Status.STORED:
            # As this request last left it, also when it has rotated the id already.
            try:
                record = self._asked(state, "load", self.backend.load, state.key)
                state.data = {}
                if record is None or record.is_tombstone or self._is_too_old(record):
                    state.status = Status.LOST
                else:
                    self._adopt(state, record)
            except RecordError:
                state.data = {}
                state.status = Status.LOST
        elif state.status is Status.UNLOADED:
            self.load(state)
        elif state.status is Status.NEW:
            self._begin(state)
        else:
            state.data = {}

    def save(self, state: State) -> None:
        """Write now, or together with the rest of what atomic() does."""
        if not state.is_atomic:
            self._save(state)

    def _save(self, state: State) -> None:
        if state.status is Status.UNLOADED:
            if not state.is_written:
                return
            self.load(state)
        if state.status is Status.NEW:
            if is_unused(state.data) and not self._config.save_uninitialized:
                return
            state.is_written = True
            if state.is_closed:
                raise ServerSessionError(
                    "The session is new and the response was already sent, so the"
                    " browser cannot learn its id. Write to the session before the"
                    " response begins."
                )
        if state.status is Status.LOST:
            if state.is_written:
                self.drop(state)
        elif state.status is not Status.UNSAVED:
            change = self.change_reason(state)
            if change is not None or self.rotation_reason(state) is not None:
                self.write(state, change)
        elif state.failure is not None and self._config.on_backend_error == "raise":
            raise state.failure

    def touch(self, state: State) -> None:
        """Count as activity: at the end of the request, or now if that has passed."""
        state.is_touched = True
        if not state.is_closed:
            return
        if state.status is Status.STORED:
            self.renew(state, is_used=True, is_sent_again=False)
        elif state.status is Status.UNLOADED:
            self.verify(state)
            self.renew_unseen(state)

    def atomic(
        self,
        session: ServerSideSession,
        state: State,
        function: cabc.Callable[[ServerSideSession], T],
    ) -> T:
        """Run the function on the freshest copy and save it."""
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                "session.atomic() takes a function that is not async; it would never"
                " be awaited."
            )
        if state.is_atomic:  # a part of what the outer one saves, and repeats
            return function(session)
        state.is_atomic = True
        try:
            return self._run_atomic(session, state, function)
        finally:
            state.is_atomic = False

    def _run_atomic(
        self,
        session: ServerSideSession,
        state: State,
        function: cabc.Callable[[ServerSideSession], T],
    ) -> T:
        if state.status is not Status.STORED:
            result = function(session)
            self._save(state)
            return result
        was_written = state.is_written
        flags = state.is_rotating, state.is_restarted, state.is_cleared
        base, writer = state.payload, state.writer
        mine = self._serializer.dumps(state.data)
        lifetime = state.lifetime
        is_lifetime_mine = lifetime != state.stored_lifetime
        results: list[T] = []

        def start_from(current: Record) -> None:
            state.is_rotating, state.is_restarted, state.is_cleared = flags
            if is_lifetime_mine or state.is_restarted:
                state.lifetime = lifetime
            else:
                state.lifetime = state.stored_lifetime
            state.encoded = None
            self._rebase(state, current, base, writer, self._serializer.loads(mine))

        def run(current: Record) -> None:
            start_from(current)
            results[:] = [function(session)]

        try:
            current = self._asked(state, "load", self.backend.load, state.key)
        except RecordError:
            current = None
        if current is None or current.is_tombstone:
            state.data.clear()
            self._lose(state, False)
            state.is_written = True
            return function(session)
        try:
            run(current)
            if state.status is Status.STORED:  # and not ended by the function
                self._write_stored(state, "atomic() was called", run)
        except BaseException:
            if state.status is Status.STORED:
                start_from(state.stored)
                state.is_written = (
                    was_written or mine != base or state.failure is not None
                )
            raise
        return results[0]

    # Helpers

    def _dumps(self, state: State) -> bytes:
        """Serialize the content, and check its size."""
        payload, state.encoded = state.encoded, None
        if payload is None:
            payload = self._serializer.dumps(state.data)
        if len(payload) > self._config.max_size:
            raise SessionTooLargeError(len(payload), self._config.max_size)
        return payload

    def _record(
        self,
        state: State,
        payload: bytes,
        now: float,
        created_at: float,
        version: int = 1,
    ) -> Record:
        user = self.user(state)
        if user is not None and len(user) > _MAX_USER:
            key = self._config.user_key
            raise SerializationError(
                f"flask.session[{key!r}] is longer than {_MAX_USER} characters; keep"
                " the user's id there.",
                f"session[{key!r}]",
            )
        touched_at, expires_at = now, self._expiry(state, now, created_at)
        if not state.is_activity and state.record is not None:
            touched_at, expires_at = state.record.touched_at, state.record.expires_at
        envelope = Envelope(
            payload=payload,
            serializer=self._serializer.code,
            lifetime=state.lifetime,
            issued_at=state.issued_at,
        )
        return Record(
            data=self._sealer.seal(envelope, state.key),
            version=version,
            created_at=created_at,
            touched_at=touched_at,
            expires_at=expires_at,
            user=user,
            meta=state.meta,
        )

    def _asked(
        self,
        state: State,
        operation: str,
        function: cabc.Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Ask the backend, and report if it fails.

        A request whose backend has failed does not ask again before it has answered:
        nobody waits twice, neither in an error page nor when the session is settled.
        """
        if state.failure is not None and not state.is_closed:
            raise state.failure
        try:
            return function(*args, **kwargs)
        except BackendUnavailableError as error:
            if not state.is_closed:
                state.failure = error
                state.is_written = state.is_written or operation != "load"
                if state.status is Status.UNLOADED:
                    state.status = Status.UNSAVED
            self._report_failure(state, operation, error)
            raise

    def _report_failure(
        self, state: State, operation: str, error: BackendUnavailableError
    ) -> None:
        logger.error("The session backend failed at %r: %s", operation, error)
        self._send(
            signals.backend_failed,
            state.key,
            state.stored_user,
            operation=operation,
            error=error,
        )

    def _reject(self, key: str, reason: str) -> None:
        self._send(signals.session_rejected, key, None, reason=reason)

    def send_destroyed(self, key: str, user: str | None) -> None:
        """Tell that a session was ended from outside of it."""
        self._retire(key)
        self._send(signals.session_destroyed, key, user)

    def _send(
        self, signal: NamedSignal, key: str, user: str | None, **values: t.Any
    ) -> None:
        if signal.receivers:
            signal.send(
                self._app,
                _async_wrapper=self._app.ensure_sync,
                handle=self._handle_of(key) if key else None,
                user=user,
                **values,
            )
