"""What templates see as ``session``."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import functools
import json
import types
import typing as t

import flask

from .sessions import NullServerSession
from .sessions import ServerSideSession
from .sessions import unit_of

# What Flask's own session, a dict, has as attributes: as there, they come before a key
# of the same name.
_FLASKS = frozenset(
    {
        *("get", "keys", "values", "items", "pop", "popitem", "setdefault", "update"),
        *("clear", "copy", "new", "permanent", "modified", "accessed"),
    }
)
# What a template may ask of our sessions besides: nothing that changes them, and not
# the id, which would end up in a page.
_OURS = frozenset(
    {
        *("handle", "sid", "created_at", "expires_at", "lifetime", "user"),
        "ended_because",
        *("authenticated_at", "is_fresh"),
    }
)


class TemplateSession:
    """The session, seen so that ``session.name`` is its key wherever it has that key.

    Jinja looks for an attribute before it looks for a key. In a template that was
    written for Flask's own sessions, ``{{ session.user }}`` and ``{{ session.id }}``
    would name our attributes: the first would show somebody else's value, the second
    put the secret into the page. Here a key comes first, the id is never shown, and
    what changes the session as a whole is not there. The members that an application
    adds with a session class of its own are there, and come before keys as in Flask;
    of another kind of session all are. Jinja's filters and tests find what they find in
    Flask's own.
    """

    def __getattr__(self, name: str) -> t.Any:
        if name.startswith("__"):
            raise AttributeError(name)
        session: t.Any = flask.session
        found: object = session._get_current_object()
        if isinstance(found, NullServerSession) and name in _OURS | {"id", "meta"}:
            raise AttributeError(name)  # there is no secret: the key, as with Flask
        if name in _FLASKS or not isinstance(found, ServerSideSession):
            return getattr(session, name)
        if _is_added(name, type(found)):
            with contextlib.suppress(AttributeError):
                return getattr(session, name)
        if name == "time_left":
            time_left = found.time_left  # which is no look at the content
            if name not in unit_of(found).data:
                return time_left
        elif name == "meta" and name not in session:
            return types.MappingProxyType({**found.meta})
        # Jinja goes on to the key then. Its filter "attr" must not, as with Flask.
        elif name in _OURS and name not in session:
            return getattr(session, name)
        raise AttributeError(name)

    # Nobody sets it.
    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Some of Jinja's filters and tests ask whether it is a dict, which Flask's is.
        return dict if flask.has_request_context() else TemplateSession

    def __getitem__(self, key: str) -> t.Any:
        return flask.session[key]

    def __setitem__(self, key: str, value: t.Any) -> None:
        flask.session[key] = value

    def __contains__(self, key: object) -> bool:
        return key in flask.session

    def __iter__(self) -> cabc.Iterator[str]:
        return iter(flask.session)

    def __reversed__(self) -> cabc.Iterator[str]:
        session: t.Any = flask.session
        return iter(reversed(session))

    def __bool__(self) -> bool:
        # Without a request it is false, where asking for its length raises.
        return bool(flask.session)

    def __len__(self) -> int:
        return len(flask.session)

    def __eq__(self, other: object) -> bool:
        return bool(flask.session == other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(flask.session)

    def __str__(self) -> str:
        # Without a request, this raises as Flask's does.
        return str(flask.session)


def _is_added(name: str, kind: type[ServerSideSession]) -> bool:
    """Whether a member may be of an application's own session class, not of ours."""
    ours: object = getattr(ServerSideSession, name, None)
    if ours is None:
        return not name.startswith("_")
    return name in _OURS and getattr(kind, name) is not ours


#: There is one for all requests: it asks :data:`flask.session` each time.
TEMPLATE_SESSION = TemplateSession()


def adapt_environment(app: flask.Flask) -> None:
    """Let templates see the session where Flask's context does not put it.

    Called before each template; does something before the first.
    """
    environment = app.jinja_env
    # Macros that are imported without context see the globals only.
    names: dict[str, t.Any] = environment.globals
    if names.get("session") is flask.session:
        names["session"] = TEMPLATE_SESSION
        # JSON takes a real dict only. This is what the filter "tojson" calls.
        policies = environment.policies
        dumps = policies["json.dumps_function"] or json.dumps
        policies["json.dumps_function"] = functools.partial(_dumps, dumps)


def _dumps(dumps: cabc.Callable[..., str], value: t.Any, **options: t.Any) -> str:
    if value is TEMPLATE_SESSION and flask.has_request_context():
        value = dict(flask.session)
    return dumps(value, **options)
