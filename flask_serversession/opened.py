"""The session that was opened for the current request, without a look at it."""

from __future__ import annotations

import collections.abc as cabc
import functools
import inspect
import typing as t

from flask import Request
from flask import has_request_context
from flask import request as current_request
from flask import session as flask_session
from flask.sessions import SessionMixin

from .sessions import ServerSideSession
from .sessions import unit_of
from .unit import Unit

P = t.ParamSpec("P")
T = t.TypeVar("T")

# The attribute of a request that names the session opened for it. Not in its environ,
# which all events of one connection of Flask-SocketIO share.
_OPENED = "_flask_serversession"


def accessed_unit() -> Unit | None:
    """Return what the current request's session knows, if it was accessed."""
    session = opened_session()
    if session is None or not session.accessed:
        return None
    flasks: t.Any = flask_session  # asking for it is access, which there was
    if flasks._get_current_object() is not session:
        return None  # Flask-SocketIO has put one of its own in its place
    return unit_of(session)


def is_visitors(session: SessionMixin) -> bool:
    """Whether it is what the view has, and not a second one of the same request.

    The test client's ``session_transaction()`` opens and saves one.
    """
    flasks: t.Any = flask_session
    views: object = flasks._get_current_object() if has_request_context() else session
    return views is session or not isinstance(views, ServerSideSession)


def remember(session: ServerSideSession, request: Request) -> ServerSideSession:
    """Keep a session with the request it was opened for, and return it."""
    setattr(request, _OPENED, session)
    return session


def opened_session() -> ServerSideSession | None:
    """Return what was opened for the current request; ``None`` if that failed.

    Does not count as access to it, which asking Flask for it does.
    """
    if not has_request_context():
        return None
    session: ServerSideSession | None = getattr(current_request, _OPENED, None)
    return session


def passive(view: cabc.Callable[P, T]) -> cabc.Callable[P, T]:
    """Decorate a view, so that its requests do not count as activity.

    It has the effect of calling :meth:`.ServerSideSession.passive` at the beginning of
    the view, but does not count as use of the session. Write it below ``@app.route``.
    The view may be a coroutine function.
    """
    if inspect.iscoroutinefunction(view):

        @functools.wraps(view)
        async def wait(*args: P.args, **kwargs: P.kwargs) -> t.Any:
            _be_passive()
            return await t.cast("cabc.Awaitable[t.Any]", view(*args, **kwargs))

        return t.cast("cabc.Callable[P, T]", wait)

    @functools.wraps(view)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        _be_passive()
        return view(*args, **kwargs)

    return run


def _be_passive() -> None:
    session = opened_session()
    if session is not None:  # there is none without a secret
        session.passive()
