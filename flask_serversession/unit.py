"""One session during one request: the only thing in the core that changes.

What a request knows of its session is a sum of cases, not a product of flags, and the
classes below are its parts:

-   :class:`Presented`: the cookies that came, verified one after the other;
-   :class:`Identity`: the id and its key;
-   :class:`Stored`: the record as this request last saw it, which changes are compared
    with;
-   :class:`Wish`: what the view wants, in order, so that the strongest wish counts;
-   :class:`Cookie`: what earlier steps of this request owe the browser;
-   :class:`Phase`: whether the response has begun.

Only :meth:`Unit.begin`, :meth:`Unit.begin_empty`, :meth:`Unit.adopt`, :meth:`Unit.lose`
and :meth:`Unit.fail` set :attr:`Unit.known`.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import enum
import typing as t

from .cookie import MAX_CANDIDATES
from .cookie import CookieSigner
from .cookie import CookieState
from .cookie import claims_permanent
from .cookie import find_values
from .errors import BackendUnavailableError
from .errors import SerializationError
from .hiding import HiddenBytes
from .hiding import forget_frames
from .meta import own_part
from .payload import Device
from .payload import Envelope
from .payload import read_device
from .record import NO_META
from .record import Record
from .serializers import CodedSerializer
from .serializers import is_same

#: Key under which Flask keeps whether a session outlives the browser.
PERMANENT_KEY = "_permanent"
#: Key under which Flask-Login keeps whether its user has logged in, or has confirmed it
#: since: ``False`` after its remember cookie, and at another address or browser.
FRESH_KEY = "_fresh"
# When a socket's handshake arrived, in its environ.
_ARRIVED_AT = "flask_serversession.arrived_at"


# Not Enum: its __hash__ is Python code, and costs 0.2 µs at each look-up in a table.
# What most requests ask is asked with names of the members' own, such as _STORED: up to
# Python 3.11 it takes 0.1 µs to find a member in its class, and a request does that
# up to forty times.
class Known(enum.IntEnum):
    """What is known of the stored record."""

    #: Nobody looked.
    UNSEEN = 0
    #: There is none. One is created if something is written.
    NEW = 1
    #: There is one, and it was loaded.
    STORED = 2
    #: Another request ended it, or gave it another id. Nothing is saved and no cookie
    #: is sent, since either could undo what the other request did.
    GONE = 3
    #: The backend failed, or a later version of the library wrote the record. The
    #: session is empty, and nothing is saved.
    BROKEN = 4


class Wish(enum.IntEnum):
    """What the view wants; a stronger wish includes the weaker ones."""

    NOTHING = 0
    #: Count as activity.
    TOUCH = 1
    #: A key was set or removed, or ``modified`` was set.
    SAVE = 2
    #: ``regenerate()``
    NEW_ID = 3
    #: ``regenerate(keep_data=False)``: a new id, and nothing of the old session.
    RESTART = 4
    #: ``clear()``: what is stored goes, also what was not looked at. What is written
    #: afterwards begins another session.
    END = 5


class Cookie(enum.IntEnum):
    """What happens to the cookie."""

    NONE = 0
    SET = 1
    DELETE = 2


class Phase(enum.IntEnum):
    """Where the request is."""

    OPEN = 0
    #: The response was settled; what changes from now on needs ``save()``.
    CLOSED = 1
    #: The same, and settling it has failed or was not wanted.
    ABANDONED = 2
    #: There is no request: the session was opened from outside, by :mod:`.outside`.
    OUTSIDE = 3


_UNSEEN, _STORED = Known.UNSEEN, Known.STORED
_SAVE, _RESTART = Wish.SAVE, Wish.RESTART
_OPEN, _OUTSIDE = Phase.OPEN, Phase.OUTSIDE


class Identity(t.NamedTuple):
    """A session's id and what goes with it."""

    #: A secret.
    id: str
    key: str

    def __repr__(self) -> str:
        return "<Identity>"  # error reporters record the repr of local variables


@dataclasses.dataclass(slots=True, repr=False)
class Stored:
    """A record as this request last saw it: what changes are compared with.

    Never changed once it is made.
    """

    record: Record
    #: What is in the record's data.
    envelope: Envelope
    #: What wrote the payload. It may be another one than the application's, if
    #: ``SESSION_SERIALIZER`` was changed.
    serializer: CodedSerializer

    @property
    def device(self) -> Device | None:
        """The key that it is bound to, or is about to be; ``None`` without one."""
        return read_device(self.record.data)

    @property
    def counts_from(self) -> float:
        """What the absolute timeout counts from."""
        return self.envelope.authenticated_at or self.record.created_at

    def open(self) -> cabc.MutableMapping[str, t.Any]:
        """Return the content, anew."""
        return self.serializer.open(self.envelope.payload)

    def changed(self, **fields: t.Any) -> Stored:
        """Return the same with other fields of the record."""
        record = dataclasses.replace(self.record, **fields)
        return Stored(record, self.envelope, self.serializer)

    def __repr__(self) -> str:
        return f"<Stored {self.record!r}>"  # without the content of the session


class Presented:
    """The cookies that came with the session's name.

    :param header: The ``Cookie`` header. It is taken apart if anybody asks for what is
        in it, which most requests do not that leave their session alone.
    :param name: The name.
    :param seen_at: When what they say was seen, in seconds since the epoch.
    """

    is_verified: bool = False
    #: The cookie that verified; ``None`` if there is none, or nobody looked yet.
    cookie: CookieState | None = None
    #: The session of another kind that a cookie stands for; see :mod:`.takeover`.
    claim: t.Any = None
    #: When the request arrived, if it has to prove that it comes from the session's own
    #: device: a view may look at its session late.
    arrived_at: float | None = None
    _tried: int = 0
    _values: cabc.Sequence[str] | None = None

    def __init__(self, header: str, name: str, seen_at: float) -> None:
        self._header = header
        self._name = name
        self.seen_at = seen_at

    @property
    def values(self) -> cabc.Sequence[str]:
        """Their values, unverified, in the order in which they came."""
        if self._values is None:
            header = self._header
            self._values = find_values(header, self._name) if header else ()
        return self._values

    def values_beside(self, suffix: str) -> list[str]:
        """Return the values of another cookie, whose name is longer by a suffix."""
        return find_values(self._header, self._name + suffix)

    def arrive_with(self, environ: dict[str, t.Any]) -> None:
        """Let an event of a socket have arrived with its handshake.

        Whose cookies do not get younger. All its events share its environ.
        """
        if self.arrived_at is not None:
            self.arrived_at = environ.setdefault(_ARRIVED_AT, self.arrived_at)

    @property
    def claims_permanent(self) -> bool:
        """Whether a cookie says, perhaps unverified, that its session is permanent."""
        if self.is_verified:
            return self.cookie is not None and self.cookie.is_permanent
        return ".p" in self._header and any(map(claims_permanent, self.values))

    @property
    def value(self) -> str:
        """The value that was verified last; empty if there is none."""
        return self.values[self._tried - 1] if self._tried else ""

    def verify_next(self, signer: CookieSigner, id: str) -> CookieState | None:
        """Go on to the next cookie that verifies and has another id.

        :return: Its state, which is not chosen yet; ``None`` if no other one verifies.
        """
        # Not by candidates(): a generator takes as long as everything else here.
        values = self.values[self._tried : MAX_CANDIDATES]
        for number, value in enumerate(values, self._tried + 1):
            cookie = signer.verify(value)
            if cookie is not None and cookie.id != id:
                self._tried = number
                return cookie
        self._tried = len(self.values)
        return None

    def candidates(
        self, signer: CookieSigner, id: str
    ) -> cabc.Iterator[tuple[int, CookieState]]:
        """Go through the cookies that verify and have another id, and keep nothing.

        :return: With the number of each, for :meth:`select`.
        """
        values = self.values[self._tried : MAX_CANDIDATES]
        for number, value in enumerate(values, self._tried + 1):
            cookie = signer.verify(value)
            if cookie is not None and cookie.id != id:
                yield number, cookie

    def select(self, number: int, cookie: CookieState) -> None:
        """Let one of the candidates be the cookie that counts."""
        self._tried = number
        self.cookie = cookie


_NOTHING_PRESENTED = Presented("", "", 0.0)
_NOTHING_PRESENTED.is_verified = True


class Unit:
    """Everything a session knows of itself between its request and its response.

    A plain class with defaults: one with slots sets all of them at each request, and
    most requests need few.

    :param signer: Verifies this request's cookies and signs its answer.
    """

    known: Known = Known.UNSEEN
    presented: Presented = _NOTHING_PRESENTED
    #: ``None`` before a cookie has verified, and in a new session that nobody asked
    #: for its id.
    identity: Identity | None = None
    #: ``None`` before the record was loaded, and again in a new session.
    stored: Stored | None = None
    #: What this request has perhaps stored: it was interrupted before it was told.
    unacknowledged: Stored | None = None
    #: The session's own idle timeout in seconds; ``None`` for the application's.
    lifetime: float | None = None
    #: What to record about the browser: see :data:`SESSION_TRACK`.
    meta: cabc.Mapping[str, str] = NO_META
    #: What the application tells of it (``session.meta``); ``None`` for what is stored.
    own_meta: cabc.Mapping[str, str] | None = None
    #: When this request has learnt that the user is who they are: see
    #: ``mark_authenticated()``.
    confirmed_at: float | None = None
    #: The key that this request binds it to; ``None`` for what is stored.
    device: Device | None = None
    #: Somebody has logged in, whose browser may register a key.
    is_device_offered: bool = False
    #: The user was taken out of the session in this request, which is a log-out unless
    #: they are put back.
    has_logged_out: bool = False
    #: This request has ended its own session from outside, as by ``revoke_user()``.
    has_revoked: bool = False
    #: The id that it came with was renewed by another request. It works on the
    #: session under its new id, which the browser has, or is about to get.
    is_renewed: bool = False
    #: The id before this one may still name the session, as its cookie tells: the
    #: backend has failed while it was changed.
    is_unsettled: bool = False
    #: Whether the session was not stored before this request.
    is_new: bool = False
    wish: Wish = Wish.NOTHING
    #: What the wish falls back to: ``TOUCH`` once the request counts as activity.
    least_wish: Wish = Wish.NOTHING
    #: A key was set or removed, or ``modified`` was set, in this request.
    is_modified: bool = False
    #: It is saved because ``modified`` was set, for all that is known.
    is_forced: bool = False
    #: A value that can change in place was handed out.
    is_exposed: bool = False
    #: The request does not count as activity: it neither renews the session nor sends
    #: its cookie again.
    is_passive: bool = False
    #: Only its time was asked for, which is passive until its content is looked at.
    is_glanced: bool = False
    #: It was stored by this request, by ``save()`` for example.
    is_saved: bool = False
    #: A function of ``atomic()`` is running.
    is_atomic: bool = False
    #: Why the cookie that came is not accepted; ``None`` if it is, or nothing came.
    ended_because: str | None = None
    #: It was warned of a change that came too late.
    is_late_told: bool = False
    #: ``session_lost`` was sent.
    is_loss_told: bool = False
    #: What earlier steps of this request owe the browser, whatever else happens.
    owed: Cookie = Cookie.NONE
    phase: Phase = Phase.OPEN
    #: How the backend has failed this request, which does not ask it again.
    failure: BackendUnavailableError | None = None

    def __init__(self, signer: CookieSigner) -> None:
        self.signer = signer
        #: The content.
        self.data: cabc.MutableMapping[str, t.Any] = {}

    # What is asked of it

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing but perhaps that it is permanent."""
        return is_unused(self.data)

    @property
    def was_empty(self) -> bool:
        """The same, of what is stored."""
        stored = self.stored
        return stored is None or is_unused(stored.open())

    @property
    def is_restarted(self) -> bool:
        """Whether what is written now is another session than the stored one."""
        return self.wish >= _RESTART

    @property
    def is_closed(self) -> bool:
        """Whether the browser cannot be told anything any more."""
        return self.phase is not _OPEN

    @property
    def is_outside(self) -> bool:
        """Whether the session was opened from outside of its requests."""
        return self.phase is _OUTSIDE

    @property
    def key(self) -> str:
        """The key of its id; empty if it has none yet."""
        return "" if self.identity is None else self.identity.key

    @property
    def cookie(self) -> CookieState | None:
        """The cookie that verified; ``None`` if there is none, or nobody looked yet."""
        return self.presented.cookie

    @property
    def record(self) -> Record:
        """The record of a session that is stored."""
        if self.stored is None:
            raise RuntimeError("The session is not stored.")
        return self.stored.record

    @property
    def current_meta(self) -> cabc.Mapping[str, str]:
        """What the application tells of the session now."""
        if self.own_meta is not None:
            return self.own_meta
        return NO_META if self.stored is None else own_part(self.stored.record.meta)

    @property
    def stored_user(self) -> str | None:
        """The user of the stored record."""
        return None if self.stored is None else self.stored.record.user

    def find_change(self, serializer: CodedSerializer) -> tuple[str, bytes | None]:
        """Return why a stored session has to be written; empty if nothing changed.

        :param serializer: The application's.
        :return: The reason, and the content as that serializer wrote it, if it had to
            be written to find out.
        :raises SerializationError: if it holds something that cannot be written.
        """
        stored = self.stored
        if stored is None or self.wish >= _SAVE:
            if self.device is not None:
                is_bound = self.device.bound_at is not None
                return "device bound" if is_bound else "device registered", None
            if self.own_meta is not None:
                return "meta changed", None
            if stored is not None and self.lifetime != stored.envelope.lifetime:
                return "lifetime changed", None
            return "'modified' was set" if self.is_forced else "key changed", None
        if self.lifetime != stored.envelope.lifetime:
            return "lifetime changed", None
        if not self.is_exposed:
            return "", None
        try:
            encoded = HiddenBytes(stored.serializer.dumps(self.data))
        except SerializationError as error:
            if stored.serializer is serializer:
                raise forget_frames(error) from error.__cause__
            # What was stored, the former serializer could write.
            return "nested change", None
        if is_same(stored.serializer, encoded, stored.envelope.payload):
            return "", None
        return "nested change", encoded if stored.serializer is serializer else None

    # What a view wants

    def want(self, wish: Wish) -> None:
        """Raise the wish. ``reload()``, ``destroy()`` and ``modified`` lower it."""
        if wish > self.wish:
            self.wish = wish
        if wish >= _SAVE:
            self.is_modified = True
        else:
            self.least_wish = wish

    def force(self) -> None:
        """Save it, whatever has changed."""
        self.is_forced = self.is_forced or self.wish < _SAVE
        self.want(_SAVE)

    def change_meta(self, meta: cabc.Mapping[str, str]) -> None:
        """Tell something else of the session from now on."""
        self.own_meta = meta
        self.want(Wish.SAVE)

    def be_active(self, is_active: bool) -> None:
        """Decide whether this request counts as activity. The last call counts."""
        self.is_passive = not is_active
        self.is_glanced = False

    def forget_change(self) -> None:
        """Do not save what was changed. That a new id is wanted is no change."""
        if self.wish in (Wish.SAVE, Wish.END):
            self.wish = self.least_wish
            self.own_meta = self.confirmed_at = None
        self.is_modified = self.is_forced = False

    def forget_wishes(self) -> None:
        """Want nothing any more, but to count as activity."""
        self.wish = self.least_wish
        self.own_meta = None
        self.is_modified = self.is_forced = self.has_logged_out = False
        self.confirmed_at = None

    # What becomes known

    def begin(self, identity: Identity | None = None) -> None:
        """There is no record: start a new session."""
        self.known = Known.NEW
        self.is_new = True
        self.identity = identity
        self.stored = None
        self.data = {}
        self.lifetime = None
        self.own_meta = None
        self.confirmed_at = None
        self.is_renewed = self.is_unsettled = self.has_revoked = False
        self._owe_no_id()

    def begin_empty(self) -> None:
        """The browser has sent nothing. Sets nothing that another thread changes."""
        self.is_new = True
        self.known = Known.NEW

    def adopt(
        self,
        stored: Stored,
        data: cabc.MutableMapping[str, t.Any] | None = None,
        is_first_look: bool = False,
    ) -> bool:
        """There is this record: it was loaded, or this request has just stored it.

        :param data: What was loaded; ``None`` if it was stored, and so is there.
        :param is_first_look: Leave what another thread or greenlet of the request has
            loaded meanwhile, and perhaps changed.
        :return: Whether it was adopted.
        """
        if data is not None:
            # Nothing is called from here on, so no other thread comes in between.
            if is_first_look and self.known is not _UNSEEN:
                return False
            self.data = data
            self.lifetime = stored.envelope.lifetime
            self.own_meta = None
            self.stored = stored
            # Last: another thread that sees it takes the content for loaded.
            self.known = _STORED
            return True
        self.known = _STORED
        self.stored = stored
        self.own_meta = None
        self.is_saved, self.is_forced = True, False
        self.wish = self.least_wish
        # Somebody may hold on to a list that is in there now.
        self.is_exposed = True
        return True

    def follow(self, key: str) -> None:
        """Its id was renewed: go on with the record that has this key now."""
        assert self.identity is not None  # noqa: S101 - for type checkers
        self.identity = self.identity._replace(key=key)
        self.is_renewed = True

    def lose(self) -> None:
        """Another request has ended the session, or given it another id."""
        self.known = Known.GONE
        self.is_exposed = False
        self._owe_no_id()
        if self.wish is not Wish.END:
            self.wish = self.least_wish

    def fail(self, error: BackendUnavailableError | None) -> None:
        """Nobody knows: the backend failed, or the record is a later version's."""
        self.known = Known.BROKEN
        self.failure = error

    def _owe_no_id(self) -> None:
        """Do not tell the browser an id that names no session any more."""
        if self.owed is Cookie.SET:
            self.owed = Cookie.NONE


def is_unused(data: cabc.Mapping[str, t.Any]) -> bool:
    """Whether there is nothing in a session but perhaps that it is permanent.

    Applications set ``session.permanent`` before each request, also for visitors
    whose session is never used.
    """
    return not data or (len(data) == 1 and PERMANENT_KEY in data)
