"""The lazy mapping behind :data:`flask.session`."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import inspect
import typing as t
from copy import deepcopy

from flask.sessions import NullSession
from flask.sessions import SessionMixin

from .config import MAX_DURATION
from .errors import RecordError
from .lifecycle import Lifecycle
from .logouts import note_absence
from .logouts import note_emptying
from .logouts import note_nobody
from .logouts import note_removal
from .logouts import note_return
from .meta import Meta
from .record import NO_META
from .serializers.lazy import LazyMap
from .serializers.plain import IMMUTABLE
from .suggestions import explain_members
from .unit import FRESH_KEY
from .unit import PERMANENT_KEY
from .unit import Known
from .unit import Unit
from .unit import Wish

T = t.TypeVar("T")

# Raises Flask's error that there is no secret.
_REFUSE: t.Any = NullSession.clear
# Looked up once: see :class:`.Known`.
_UNSEEN, _GONE, _SAVE = Known.UNSEEN, Known.GONE, Wish.SAVE


@explain_members
class ServerSideSession(SessionMixin):
    """A session whose content stays on the server: the class of :data:`flask.session`.

    It is created without any I/O. The cookie is verified and the backend asked at the
    first access to the content. ``bool``, ``len``, ``in``, iteration, ``==`` and
    :attr:`new` count as access; :meth:`destroy` and :meth:`clear` on a session that
    was not looked at do not load it.

    A change inside a value (``session["cart"]["n"] += 1``) is found and saved
    without ``session.modified = True``.

    A session belongs to one request, and only one thread may change it. Another thread
    or greenlet may read it, with Flask's ``copy_current_request_context``. Every method
    that reads or writes raises :exc:`.BackendUnavailableError` if the backend does not
    answer.
    """

    #: Whether the request looked at the session; decides about ``Vary: Cookie``.
    accessed: bool = False

    def __init__(self, unit: Unit, lifecycle: Lifecycle) -> None:
        self._unit = unit
        self._lifecycle = lifecycle

    def _opened(self) -> Unit:
        """Return the unit, with or without its content."""
        unit = self._unit
        self.accessed = True
        if unit.phase and not unit.is_outside:
            self._lifecycle.unsaved.watch()
        return unit

    def _loaded(self) -> Unit:
        """Return the unit with its content."""
        # As _opened() does; each look at the session pays for this.
        unit = self._unit
        self.accessed = True
        if unit.phase:
            self._lifecycle.unsaved.watch()
        if unit.known is _UNSEEN:
            self._lifecycle.loader.load(unit)
        elif unit.is_glanced:
            unit.be_active(True)
        return unit

    # The mapping

    def __getitem__(self, key: str) -> t.Any:
        unit = self._loaded()
        try:
            value = unit.data[key]
        except RecordError as error:  # only now, of a value that was not yet read
            self._lifecycle.loader.take_unreadable(unit, error)
            raise KeyError(key) from None
        # One that can change in place obliges us to look for nested changes.
        if type(value) not in IMMUTABLE:
            unit.is_exposed = True
        return value

    def get(self, key: str, default: t.Any = None) -> t.Any:
        """Return the value under a key, or the default."""
        try:
            return self[key]
        except KeyError:
            return default

    def __setitem__(self, key: str, value: t.Any) -> None:
        unit = self._loaded()
        unit.data[key] = value
        unit.want(_SAVE)
        if value is None:
            note_removal(self._lifecycle.core, unit, key)
        elif unit.known >= _GONE:
            note_nobody(self._lifecycle.core, unit, key)
        elif unit.has_logged_out:
            note_return(self._lifecycle.core, unit, key)
        if value is True and key == FRESH_KEY:
            # login_user() as the same user, or confirm_login().
            unit.confirmed_at = self._lifecycle.core.clock()

    def __delitem__(self, key: str) -> None:
        unit = self._loaded()
        try:
            del unit.data[key]
        except KeyError:
            note_absence(self._lifecycle.core, unit, key)
            raise
        unit.want(Wish.SAVE)
        note_removal(self._lifecycle.core, unit, key)

    def __iter__(self) -> cabc.Iterator[str]:
        unit = self._loaded()
        data = unit.data
        if isinstance(data, LazyMap):
            # Whoever goes through the keys looks at the values, and must not meet one
            # that cannot be read on the way.
            try:
                data.read_all()
            except RecordError as error:
                self._lifecycle.loader.take_unreadable(unit, error)
        return iter(unit.data)

    def __len__(self) -> int:
        return len(self._loaded().data)

    def __contains__(self, key: object) -> bool:
        return key in self._loaded().data

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ServerSideSession):
            return self is other or self.copy() == other.copy()
        return self.copy() == other

    __hash__ = None  # type: ignore[assignment]

    def clear(self) -> None:
        """Empty the session, which ends it.

        The whole stored session is deleted, including what another request adds at
        the same time. If something is written afterwards, that starts a new session
        with a new id, as after ``regenerate(keep_data=False)``. Does not load the
        session.
        """
        unit = self._opened()
        unit.want(Wish.END)
        unit.lifetime = None
        unit.own_meta = NO_META
        unit.data.clear()

    def pop(self, key: str, *default: t.Any) -> t.Any:
        """Remove a key, and return its value; the default if it is not there.

        Removing the user is a log-out. If another request has changed the id, the
        session is ended under its new id; if it cannot be read, this raises.
        """
        unit = self._loaded()
        if key not in unit.data:
            note_absence(self._lifecycle.core, unit, key)
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, t.Any]:
        """Remove the last key, and return it with its value."""
        for key in reversed(self):
            return key, self.pop(key)
        note_emptying(self._unit)
        raise KeyError  # as a dict does

    def __reversed__(self) -> cabc.Iterator[str]:
        iter(self)  # reads what was not yet read
        return reversed(t.cast("dict[str, t.Any]", self._unit.data))

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
        """Return the content as a plain dict; changes to it are not saved."""
        return {key: self[key] for key in self}

    def __repr__(self) -> str:
        unit = self._unit
        name = type(self).__name__
        if unit.known is Known.UNSEEN:
            return f"<{name} (not loaded)>"
        return f"<{name} {self._lifecycle.core.handle(unit)} keys={list(unit.data)!r}>"

    # Flask's attributes

    @property
    def permanent(self) -> bool:
        """Whether the session outlives the browser, for its lifetime.

        Kept in the session under ``_permanent``, as Flask does.
        """
        unit = self._unit
        if not unit.phase:
            self._loaded()
        return self._lifecycle.core.is_permanent(unit)

    @permanent.setter
    def permanent(self, value: bool) -> None:
        unit = self._loaded()
        if unit.data.get(PERMANENT_KEY) is bool(value):
            # What many applications do before each request: it renews the session
            # and counts as modified, as with Flask's own, but changes nothing.
            unit.want(Wish.TOUCH)
            unit.is_modified = True
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
        return self._unit.is_modified

    @modified.setter
    def modified(self, value: bool) -> None:
        unit = self._unit
        if value:
            unit.force()
        else:
            if unit.wish is Wish.END:
                self._loaded()  # as empty as clear() has left it
            unit.forget_change()
            unit.is_exposed = False  # nor are changes inside of values
        if unit.phase and not unit.is_outside:
            self._lifecycle.unsaved.watch()

    # What the session is

    @property
    def id(self) -> str:
        """The id that the cookie carries. A secret: show :attr:`handle` instead."""
        return self._lifecycle.core.id(self._loaded())

    @property
    def handle(self) -> str:
        """The public name of the session: safe to show, to log, and to revoke by.

        It is the stored key without its prefix. Nobody can compute the id from it.
        """
        return self._lifecycle.core.handle(self._loaded())

    @property
    def sid(self) -> str:
        """The :attr:`handle`, under the name that Flask-Session has for an id.

        Code written for Flask-Session logs it, or uses it as a key.
        """
        return self.handle

    @property
    def created_at(self) -> dt.datetime:
        """When the session began, in UTC. A new id does not reset it."""
        return _utc(self._lifecycle.core.times(self._loaded())[0])

    @property
    def expires_at(self) -> dt.datetime:
        """When the session ends if it is not used, in UTC, as last recorded."""
        return _utc(self._lifecycle.core.times(self._loaded())[1])

    @property
    def time_left(self) -> dt.timedelta:
        """How long the session lives if it is not used any more; never negative.

        Asking for it is no activity: a request that uses nothing else of its session is
        :meth:`passive`. In a request that counts as activity, it is the time left after
        that. Zero if there is no session, or if it has ended.
        """
        self.accessed = True
        return dt.timedelta(seconds=self._lifecycle.time_left(self._unit))

    @property
    def lifetime(self) -> dt.timedelta | None:
        """How long this session lives without being used; ``None`` for the app's.

        Takes a :class:`~datetime.timedelta`, a number of seconds, or ``None``. Kept
        with the session, and through a change of its id.

        :raises ValueError: when set to something that is not positive.
        """
        unit = self._unit
        if not unit.phase:
            self._loaded()
        elif unit.known is Known.UNSEEN and unit.cookie is not None:
            return _delta(unit.cookie.lifetime)
        return _delta(unit.lifetime)

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
        unit = self._loaded()
        unit.lifetime = value
        unit.want(Wish.SAVE)

    @property
    def meta(self) -> cabc.MutableMapping[str, str]:
        """Small texts of the application about the session, for lists and operators.

        A mapping of text to text, such as the name of the device, how the user logged
        in, or the ``sid`` of an identity provider. :attr:`.SessionInfo.meta` and
        ``flask sessions`` show it. It is **not encrypted**, even with
        :data:`SESSION_ENCRYPTION_KEY`. It survives a change of the id, and ends with
        the content. A session without content is not stored for it. If two requests
        overlap, it is merged name by name.

        Names and values may take 4096 bytes in UTF-8. More raises :exc:`ValueError`,
        and so does a name that the library uses itself, such as those of
        :data:`SESSION_TRACK`. Anything but ``str`` raises :exc:`TypeError`.
        """
        return Meta(self._loaded)

    @property
    def user(self) -> str | None:
        """The id of the user, as :data:`SESSION_USER_KEY` finds it in the session.

        It is always text; ``None`` if nobody is logged in.

        :raises SerializationError: if a container is kept there.
        """
        return self._lifecycle.core.user_text_of(self._loaded().data)

    @property
    def ended_because(self) -> str | None:
        """Why the session of the browser's cookie has ended.

        ``None`` if it has not ended, or if there was no cookie. Otherwise a reason of
        :data:`.session_rejected`: ``"expired"``, ``"revoked"``, ``"limit"``,
        ``"logged out"``, ``"replaced"`` or another one. If another process ended the
        session, this may be ``"unknown"``. It keeps its value when the request starts a
        new session.
        """
        return self._loaded().ended_because

    @property
    def authenticated_at(self) -> dt.datetime | None:
        """When the user last logged in or proved their identity, in UTC.

        ``None`` if nobody is logged in. Set when the user appears or changes, by
        :meth:`mark_authenticated`, and by Flask-Login's ``login_user()`` and
        ``confirm_login()``; a new id does not reset it. If it is unknown,
        because the session was taken over or is one of version 0.1, it is
        :attr:`created_at`.
        """
        unit, core = self._loaded(), self._lifecycle.core
        if (user := core.user_of(unit.data)) is None:
            return None
        moment = core.authenticated_at(unit, user, core.clock())
        return _utc(core.times(unit)[0] if moment is None else moment)

    def is_fresh(self, max_age: dt.timedelta | float) -> bool:
        """Whether the user logged in or proved their identity at most that long ago.

        For steps that need a recent log-in, such as a payment. Always false if nobody
        is logged in, if the time of the log-in is unknown, or if Flask-Login's remember
        cookie logged the user in.

        :param max_age: A duration, in seconds unless it is a timedelta.
        :raises ValueError: if it is not one.
        """
        age = max_age
        if isinstance(age, dt.timedelta):
            age = age.total_seconds()
        number = t.cast("object", age)
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not age >= 0:
            raise ValueError(
                "session.is_fresh() takes a timedelta or a number of seconds that is"
                f" not negative; not {max_age!r}."
            )
        unit, core = self._loaded(), self._lifecycle.core
        now = core.clock()
        moment = core.authenticated_at(unit, core.user_of(unit.data), now)
        return core.is_proven(unit) and moment is not None and now - moment <= age

    # What it can do

    def mark_authenticated(self) -> None:
        """Record that the user has just proved their identity again.

        Call it after a repeated password or a second factor. The session gets a new id
        and keeps its data, :attr:`authenticated_at` is now, and both timeouts start
        again. A log-in that changes the user needs no call.

        :raises ServerSessionError: if nobody is logged in, or if the response was
            already sent: the browser could not learn the new id.
        """
        self._lifecycle.mark_authenticated(self._loaded())

    def regenerate(self, keep_data: bool = True) -> None:
        """Give the session a new id. The old id is dead once the session is saved.

        This happens by itself when the user changes: see
        :data:`SESSION_REGENERATE_ON_LOGIN`.

        :param keep_data: ``False`` starts a new, empty session instead, as
            express-session's ``regenerate`` does.
        :raises ServerSessionError: if the response was already sent: the browser
            could not learn the new id.
        """
        self._lifecycle.regenerate(self._loaded(), keep_data)

    def destroy(self) -> None:
        """Delete the stored session now, and continue with a new, empty one.

        If nothing is written afterwards, the cookie is deleted; if something is, a
        flash message for example, a new id is issued. Does not load the session.
        """
        self.accessed = True
        self._lifecycle.ending.destroy(self._unit)

    def reload(self) -> None:
        """Discard all changes of this request, and read the session again."""
        self.accessed = True
        self._lifecycle.reload(self._unit)

    def save(self) -> None:
        """Write the changes now instead of at the end of the request.

        For code that runs after the response has begun: streams, WebSockets. If another
        request has saved meanwhile, lists and dicts that were taken out of the session
        before are copies afterwards: take them out again. Inside :meth:`atomic`, it
        takes effect at the end of the function.

        :raises ServerSessionError: if the session is new or its user has changed, and
            the response was already sent: the browser could not learn the id.
        """
        self._lifecycle.save(self._unit)

    def touch(self) -> None:
        """Count this request as activity, even if it does not use the session.

        Of this and :meth:`passive`, the last call counts.
        """
        self._lifecycle.touch(self._unit)

    def passive(self) -> None:
        """Do not count this request as activity, whatever it reads and changes.

        For requests that a page makes by itself. The request does not extend the life
        of the session, and its cookie is not sent again. Changes are saved as usual.
        Does not load the session. The decorator :func:`flask_serversession.passive`
        does the same for a view.
        """
        self._unit.be_active(False)

    def atomic(self, function: cabc.Callable[[ServerSideSession], T]) -> T:
        """Run ``function(session)`` on the newest version, and save the result.

        If another request saves meanwhile, the function runs again on what that request
        saved, so that counters and balances are exact. The function should only change
        the session. What this request changed before is saved with it. Lists and dicts
        that were taken out of the session before are copies afterwards.

        :return: What the function returned when its result was saved.
        :raises ConflictError: if other requests were faster a hundred times in a row.
        """
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                "session.atomic() takes a function that is not async; it would never"
                " be awaited."
            )
        self._loaded()
        return self._lifecycle.atomic(self._unit, lambda: function(self))


class NullServerSession(NullSession):
    """The session without a secret: Flask's null session, which cannot be changed."""

    authenticated_at: dt.datetime | None = None

    regenerate = destroy = reload = save = touch = atomic = NullSession.clear
    mark_authenticated = NullSession.clear
    id = handle = sid = property(_REFUSE, _REFUSE)
    user = meta = created_at = expires_at = lifetime = id
    #: No session is left, and none has ended.
    time_left = dt.timedelta()
    ended_because = None

    def passive(self) -> None:
        """Do nothing: there is nothing that could be renewed."""

    def is_fresh(self, max_age: dt.timedelta | float) -> bool:
        """Whether somebody has logged in lately: nobody has."""
        return False


def unit_of(session: ServerSideSession) -> Unit:
    """Return what a session knows of itself. For the library only."""
    return session._unit  # pyright: ignore[reportPrivateUsage]


def lifecycle_of(session: ServerSideSession) -> Lifecycle:
    """Return what a session asks for its content: each application has its own."""
    return session._lifecycle  # pyright: ignore[reportPrivateUsage]


def _utc(timestamp: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(timestamp, dt.timezone.utc)


def _delta(seconds: float | None) -> dt.timedelta | None:
    return None if seconds is None else dt.timedelta(seconds=seconds)
