"""The lazy mapping behind :data:`flask.session`."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import decimal
import enum
import typing as t
import uuid
from copy import deepcopy

from flask import Request
from flask import has_request_context
from flask import request as current_request
from flask.sessions import NullSession
from flask.sessions import SessionMixin
from markupsafe import Markup

from .cookie import CookieSigner
from .cookie import CookieState
from .errors import BackendUnavailableError
from .record import NO_META
from .record import Record
from .serializers import CodedSerializer

if t.TYPE_CHECKING:
    from .migrate import Legacy

T = t.TypeVar("T")

#: The longest duration that dates and cookies can express, in seconds: 1000 years.
MAX_DURATION = 1000 * 365.25 * 86400

#: Key under which Flask keeps :attr:`ServerSideSession.permanent`.
PERMANENT_KEY = "_permanent"

# The attribute of a request that names the session opened for it. Not in its environ,
# which all events of one connection of Flask-SocketIO share.
_OPENED = "_flask_serversession"

# Values of exactly these types cannot change in place, so handing one out does not
# oblige us to look for nested changes.
_IMMUTABLE = frozenset(
    {
        str,
        int,
        float,
        bool,
        type(None),
        bytes,
        Markup,
        uuid.UUID,
        decimal.Decimal,
        dt.datetime,
        dt.date,
        dt.time,
        dt.timedelta,
    }
)


class Status(enum.Enum):
    """What is known of a session."""

    #: Nothing was looked at yet; a cookie may be there, unverified.
    UNLOADED = enum.auto()
    #: There is no stored record. One is created if something is written.
    NEW = enum.auto()
    #: There is a stored record, and it was loaded.
    STORED = enum.auto()
    #: Another request ended the session or rotated its id: nothing is saved, and no
    #: cookie is sent, since either could undo what that other request did.
    LOST = enum.auto()
    #: The backend failed, or a later version of the library wrote the record: the
    #: session is empty and nothing is saved.
    UNSAVED = enum.auto()


class State:
    """Everything a session knows of itself between its request and its response.

    A plain class: one with slots sets all of them at each request, and most requests
    need few.

    :param signer: Verifies this request's cookies and signs its answer.
    :param candidates: Values of the cookies that have the session's name, unverified.
    """

    #: What to record about the browser: see :data:`SESSION_TRACK`.
    meta: cabc.Mapping[str, str] = NO_META
    #: When what is known of the session was seen, in seconds since the epoch.
    seen_at: float = 0.0
    status: Status = Status.UNLOADED
    #: Whether the candidates were verified; ``cookie`` is meaningless before.
    is_verified: bool = False
    #: How many candidates were.
    tried: int = 0
    #: The cookie that verified; ``None`` if there is none.
    cookie: CookieState | None = None
    #: The session of another kind that a cookie stands for, if it is to be taken over.
    legacy: Legacy | None = None
    #: The id, once it is known that the session has or will have one; else empty.
    id: str = ""
    #: The key that belongs to the id.
    key: str = ""
    #: The stored record as this request last saw it.
    record: Record | None = None
    #: The serialized content of ``record``: what changes are compared with.
    payload: bytes = b""
    #: What wrote ``payload``, if that is not the configured serializer.
    writer: CodedSerializer | None = None
    #: ``data`` as serialized while looking for changes, to be used once.
    encoded: bytes | None = None
    #: The session's own idle timeout, in seconds; ``None`` for the app's.
    lifetime: float | None = None
    #: The lifetime in ``record``.
    stored_lifetime: float | None = None
    #: When the id was issued, in seconds since the epoch.
    issued_at: float = 0.0
    #: To whom ``record`` belongs; compared when saving, to rotate the id.
    stored_user: str | None = None
    #: The session was not stored before this request.
    is_new: bool = False
    #: A key was set or removed, or ``modified`` was set.
    is_written: bool = False
    #: The same, but for what was stored or dropped since: see ``modified``.
    was_written: bool = False
    #: A value that can change in place was handed out.
    is_exposed: bool = False
    #: ``clear()`` was called: whatever is stored goes, also what was not looked at.
    is_cleared: bool = False
    #: The stored record was deleted by this request.
    is_destroyed: bool = False
    #: ``regenerate()`` was called: the id changes when the session is saved.
    is_rotating: bool = False
    #: The session starts over when it gets its new id: nothing is merged into it.
    is_restarted: bool = False
    #: ``session_lost`` was sent.
    is_loss_told: bool = False
    #: How the backend has failed this request, which does not ask it again.
    failure: BackendUnavailableError | None = None
    #: ``touch()`` was called.
    is_touched: bool = False
    #: The browser has to be told about a new id, whatever else happens.
    is_cookie_due: bool = False
    #: Whether saving it renews it; not if a permanent session was only looked at
    #: and ``SESSION_REFRESH_EACH_REQUEST`` is off.
    is_activity: bool = True
    #: A function of ``atomic()`` is running.
    is_atomic: bool = False
    #: It was saved before the end of the request.
    is_saved: bool = False
    #: Settling it has failed, or was not wanted.
    is_abandoned: bool = False
    #: The response was settled; what changes from now on needs ``save()``.
    is_closed: bool = False

    def __init__(self, signer: CookieSigner, candidates: cabc.Sequence[str]) -> None:
        self.signer = signer
        self.candidates = candidates
        #: The content.
        self.data: dict[str, t.Any] = {}

    @property
    def stored(self) -> Record:
        """The record of a session that has one."""
        if self.record is None:
            raise RuntimeError("The session is not stored.")
        return self.record


class Keeper(t.Protocol):
    """What a session asks for when it needs the backend."""

    def load(self, state: State) -> None:
        """Fill the state from the backend. Afterwards it is not ``UNLOADED``."""
        ...

    def handle(self, state: State) -> str:
        """Give the public form of the state's key."""
        ...

    def id(self, state: State) -> str:
        """Give the state's id; a new session gets one."""
        ...

    def user(self, state: State) -> str | None:
        """Give whom the content belongs to."""
        ...

    def times(self, state: State) -> tuple[float, float]:
        """Give when the session began and when it expires."""
        ...

    def is_permanent(self, state: State) -> bool:
        """Whether the session outlives the browser."""
        ...

    def regenerate(self, state: State, keep_data: bool) -> None:
        """Prepare a new id."""
        ...

    def destroy(self, state: State) -> None:
        """Delete the record now and start over."""
        ...

    def reload(self, state: State) -> None:
        """Forget local changes and load again."""
        ...

    def save(self, state: State) -> None:
        """Write now."""
        ...

    def touch(self, state: State) -> None:
        """Count as activity."""
        ...

    def atomic(
        self,
        session: ServerSideSession,
        state: State,
        function: cabc.Callable[[ServerSideSession], T],
    ) -> T:
        """Run the function on the freshest copy and save it."""
        ...

    def watch(self) -> None:
        """Begin to warn of changes that are not saved when a request ends."""
        ...


class ServerSideSession(SessionMixin):
    """A session whose content stays on the server. What :data:`flask.session` is.

    Made without any I/O: the cookie is verified and the backend asked at the first
    access to the content. ``bool``, ``len``, ``in``, iteration, ``==`` and
    :attr:`new` count as access; :meth:`destroy` and :meth:`clear` on a session that
    was not looked at do not load it.

    A change inside a value (``session["cart"]["n"] += 1``) is found and saved
    without ``session.modified = True``.

    Not for use by several threads at once, like everything that belongs to one
    request. Every method that reads or writes raises
    :exc:`.BackendUnavailableError` if the backend does not answer.
    """

    #: Whether the request looked at the session; decides about ``Vary: Cookie``.
    accessed: bool = False

    def __init__(self, state: State, keeper: Keeper) -> None:
        self._state = state
        self._keeper = keeper

    def _opened(self) -> State:
        """Give the state, with or without its content."""
        state = self._state
        self.accessed = True
        if state.is_closed:
            self._keeper.watch()
        return state

    def _loaded(self) -> State:
        """Give the state with its content."""
        state = self._opened()
        if state.status is Status.UNLOADED:
            self._keeper.load(state)
        return state

    # The mapping

    def __getitem__(self, key: str) -> t.Any:
        state = self._loaded()
        value = state.data[key]
        if type(value) not in _IMMUTABLE:
            state.is_exposed = True
        return value

    def get(self, key: str, default: t.Any = None) -> t.Any:
        """Give the value under a key, or the default."""
        try:
            return self[key]
        except KeyError:
            return default

    def __setitem__(self, key: str, value: t.Any) -> None:
        state = self._loaded()
        state.data[key] = value
        state.is_written = True

    def __delitem__(self, key: str) -> None:
        state = self._loaded()
        del state.data[key]
        state.is_written = True

    def __iter__(self) -> cabc.Iterator[str]:
        return iter(self._loaded().data)

    def __len__(self) -> int:
        return len(self._loaded().data)

    def __contains__(self, key: object) -> bool:
        return key in self._loaded().data

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ServerSideSession):
            return self is other or self._loaded().data == other._loaded().data
        return self._loaded().data == other

    __hash__ = None  # type: ignore[assignment]

    def clear(self) -> None:
        """Empty the session, which ends it.

        What is stored goes as a whole, also what another request is adding at this
        moment. If something is written afterwards, that begins a new session with a
        new id, as after ``regenerate(keep_data=False)``. Does not load a session that
        was not looked at.
        """
        state = self._opened()
        state.is_cleared = True
        state.is_written = True
        state.lifetime = None
        state.data.clear()

    def popitem(self) -> tuple[str, t.Any]:
        """Remove the last key, and give it and its value."""
        state = self._loaded()
        item = state.data.popitem()
        state.is_written = True
        return item

    def __reversed__(self) -> cabc.Iterator[str]:
        return reversed(self._loaded().data)

    def __or__(self, other: cabc.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return self.copy() | dict(other)

    def __ror__(self, other: cabc.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return dict(other) | self.copy()

    def __ior__(
        self, other: cabc.Mapping[str, t.Any] | cabc.Iterable[tuple[str, t.Any]]
    ) -> ServerSideSession:
        self.update(other)
        return self

    def __copy__(self) -> dict[str, t.Any]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, t.Any]) -> dict[str, t.Any]:
        return deepcopy(self.copy(), memo)

    def copy(self) -> dict[str, t.Any]:
        """Give the content as a plain dict; changes to it are not saved."""
        state = self._loaded()
        state.is_exposed = True
        return dict(state.data)

    def __repr__(self) -> str:
        state = self._state
        name = type(self).__name__
        if state.status is Status.UNLOADED:
            return f"<{name} (not loaded)>"
        return f"<{name} {self._keeper.handle(state)} keys={list(state.data)!r}>"

    # Flask's attributes

    @property
    def permanent(self) -> bool:
        """Whether the session outlives the browser, for its lifetime.

        Kept in the session under ``_permanent``, as Flask does.
        """
        state = self._state
        if not state.is_closed:
            self._loaded()
        return self._keeper.is_permanent(state)

    @permanent.setter
    def permanent(self, value: bool) -> None:
        state = self._loaded()
        if state.data.get(PERMANENT_KEY) is bool(value):
            # What many applications do before each request: it renews the session,
            # as with Flask's own, and changes nothing.
            state.is_touched = True
        else:
            self[PERMANENT_KEY] = bool(value)

    @property
    def new(self) -> bool:  # type: ignore[override]
        """Whether the session was not stored before this request."""
        return self._loaded().is_new

    @property
    def modified(self) -> bool:
        """Whether a key was set or removed. Setting it to ``True`` forces a save.

        It keeps its value after the response, as Flask's does. A change inside a
        value is found when the session is saved, and is not reported here.
        """
        state = self._state
        return state.is_written or state.was_written

    @modified.setter
    def modified(self, value: bool) -> None:
        state = self._state
        state.is_written = state.was_written = bool(value)
        if state.is_closed:
            self._keeper.watch()

    # What the session is

    @property
    def id(self) -> str:
        """The id that the cookie carries. A secret: show :attr:`handle` instead."""
        return self._keeper.id(self._loaded())

    @property
    def handle(self) -> str:
        """The public name of the session: safe to show, to log, and to revoke by.

        It is the stored key without its prefix, from which the id cannot be had.
        """
        return self._keeper.handle(self._loaded())

    @property
    def sid(self) -> str:
        """The :attr:`handle`, under the name that Flask-Session has for an id.

        Code written for Flask-Session logs it, or uses it as a key.
        """
        return self.handle

    @property
    def created_at(self) -> dt.datetime:
        """When the session began, in UTC. A new id does not reset it."""
        return _utc(self._keeper.times(self._loaded())[0])

    @property
    def expires_at(self) -> dt.datetime:
        """When the session ends if it is not used, in UTC, as last recorded."""
        return _utc(self._keeper.times(self._loaded())[1])

    @property
    def lifetime(self) -> dt.timedelta | None:
        """How long this session lives without being used; ``None`` for the app's.

        Takes a :class:`~datetime.timedelta`, a number of seconds, or ``None``. Kept
        with the session, and through a change of its id.

        :raises ValueError: when set to something that is not positive.
        """
        state = self._state
        if not state.is_closed:
            self._loaded()
        elif state.status is Status.UNLOADED and state.cookie is not None:
            return _delta(state.cookie.lifetime)
        return _delta(state.lifetime)

    @lifetime.setter
    def lifetime(self, value: dt.timedelta | float | None) -> None:
        if isinstance(value, dt.timedelta):
            value = value.total_seconds()
        if value is not None:
            number = t.cast("object", value)
            is_number = isinstance(number, (int, float)) and number is not True
            if not is_number or not 0 < value <= MAX_DURATION:
                raise ValueError(
                    f"session.lifetime takes a positive timedelta or number of seconds,"
                    f" of 1000 years at most, or None for the app's lifetime; not"
                    f" {value!r}."
                )
            value = float(value)
        state = self._loaded()
        state.lifetime = value
        state.is_written = True

    @property
    def user(self) -> str | None:
        """Whom the session belongs to: what it holds under :data:`SESSION_USER_KEY`.

        As text, whatever type is kept there; ``None`` if nobody is logged in.
        """
        return self._keeper.user(self._loaded())

    # What it can do

    def regenerate(self, keep_data: bool = True) -> None:
        """Give the session a new id; the old one is dead once the response is saved.

        Happens by itself when the user changes: see
        :data:`SESSION_REGENERATE_ON_LOGIN`.

        :param keep_data: ``False`` starts a new, empty session instead, as
            express-session's ``regenerate`` does.
        :raises ServerSessionError: if the response was already sent, since the
            browser cannot learn the new id any more.
        """
        self._keeper.regenerate(self._loaded(), keep_data)

    def destroy(self) -> None:
        """Delete the stored session now, and continue with a new, empty one.

        If nothing is written afterwards, the cookie is deleted; if something is, a
        flash message for example, a new id is issued. Does not load the session.
        """
        self.accessed = True
        self._keeper.destroy(self._state)

    def reload(self) -> None:
        """Forget all changes of this request and read the backend again."""
        self.accessed = True
        self._keeper.reload(self._state)

    def save(self) -> None:
        """Write the changes now instead of at the end of the request.

        Lists and dicts that were taken out of the session before may be copies
        afterwards, if another request has saved meanwhile: take them out again.
        Inside of :meth:`atomic` it is done together with the rest.

        For handlers that run after the response was begun: streams, WebSockets.

        :raises ServerSessionError: if the session is new, or its user has changed,
            and the response was already sent: the browser cannot be told.
        """
        self._keeper.save(self._state)

    def touch(self) -> None:
        """Count this request as activity, even if it does not look at the session."""
        self._keeper.touch(self._state)

    def atomic(self, function: cabc.Callable[[ServerSideSession], T]) -> T:
        """Run ``function(session)`` on the freshest copy and save the result.

        If another request saves meanwhile, the function runs again on what that one
        saved, so that counters and balances come out right. It should do nothing
        but change the session. What this request changed before is saved with it;
        lists and dicts that it took out of the session before are copies afterwards.

        :return: What the function returned when its result was saved.
        :raises ConflictError: if others were faster very many times in a row.
        """
        self._loaded()
        return self._keeper.atomic(self, self._state, function)


class NullServerSession(NullSession):
    """What there is without a secret: Flask's, which can be read but not changed."""

    regenerate = destroy = reload = save = touch = atomic = NullSession.clear


def is_unused(data: cabc.Mapping[str, t.Any]) -> bool:
    """Whether there is nothing in a session but perhaps that it is permanent.

    Applications set ``session.permanent`` before each request, also for visitors
    whose session is never used.
    """
    return not data or (len(data) == 1 and PERMANENT_KEY in data)


def state_of(session: ServerSideSession) -> State:
    """Give the state of a session. For the session interface only."""
    return session._state  # pyright: ignore[reportPrivateUsage]


def keeper_of(session: ServerSideSession) -> Keeper:
    """Give what a session asks for its content: each application has its own."""
    return session._keeper  # pyright: ignore[reportPrivateUsage]


def remember(session: ServerSideSession, request: Request) -> ServerSideSession:
    """Keep a session with the request it was opened for, and give it back."""
    setattr(request, _OPENED, session)
    return session


def opened_session() -> ServerSideSession | None:
    """Give what was opened for the current request; ``None`` if that failed.

    Does not count as access to it, which asking Flask for it does.
    """
    if not has_request_context():
        return None
    session: ServerSideSession | None = getattr(current_request, _OPENED, None)
    return session


def _utc(timestamp: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(timestamp, dt.timezone.utc)


def _delta(seconds: float | None) -> dt.timedelta | None:
    return None if seconds is None else dt.timedelta(seconds=seconds)
