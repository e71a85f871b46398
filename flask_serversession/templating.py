"""What templates see as ``session``."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import typing as t

import flask

from .sessions import ServerSideSession

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
    of another kind of session all are.
    """

    def __getattr__(self, name: str) -> t.Any:
        if name.startswith("__"):
            raise AttributeError(name)
        session: t.Any = flask.session
        found: object = session._get_current_object()
        if name in _FLASKS or not isinstance(found, ServerSideSession):
            return getattr(session, name)
        if _is_added(name, type(found)):
            with contextlib.suppress(AttributeError):
                return getattr(session, name)
        if name in session:
            return session[name]
        if name in _OURS:
            return getattr(session, name)
        raise AttributeError(name)

    def __getitem__(self, key: str) -> t.Any:
        return flask.session[key]

    def __setitem__(self, key: str, value: t.Any) -> None:
        flask.session[key] = value

    def __contains__(self, key: object) -> bool:
        return key in flask.session

    def __iter__(self) -> cabc.Iterator[str]:
        return iter(flask.session)

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


def _is_added(name: str, kind: type[ServerSideSession]) -> bool:
    """Whether a member may be of an application's own session class, not of ours."""
    ours: object = getattr(ServerSideSession, name, None)
    if ours is None:
        return not name.startswith("_")
    return name in _OURS and getattr(kind, name) is not ours


# For Jinja's filter "items" and its test "mapping".
t.cast("t.Any", cabc.Mapping).register(TemplateSession)

#: There is one for all requests: it asks :data:`flask.session` each time.
TEMPLATE_SESSION = TemplateSession()
