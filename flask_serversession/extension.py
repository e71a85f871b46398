"""The extension: sets sessions up for an application."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging
import time
import typing as t
import warnings

from flask import Blueprint
from flask import Flask
from flask import current_app

from . import operator
from . import outside
from .backends import BackendSettings
from .backends import build_backend
from .backends.base import Backend
from .backends.base import Capability
from .cleanup import Cleanup
from .config import ConfigurationWarning
from .config import Problems
from .config import SessionConfig
from .config import read_config
from .config_checks import check_config
from .core import Core
from .errors import ConfigurationError
from .errors import ServerSessionError
from .interface import ServerSessionInterface
from .lifecycle import Lifecycle
from .logouts import LogOuts
from .opened import accessed_unit
from .operator import AppState
from .operator import SessionInfo as SessionInfo
from .serializers.wording import described
from .sessions import ServerSideSession
from .takeover import make_takeover
from .takeover.moving import with_former
from .templating import TEMPLATE_SESSION
from .templating import adapt_environment
from .unsaved import UnsavedChanges

if t.TYPE_CHECKING:
    from .device import Devices

logger = logging.getLogger("flask_serversession")

_KEY = "serversession"
_COMMAND = "sessions"
_ASYNC_FRAMEWORKS = ("quart", "fastapi", "starlette", "sanic", "litestar", "aiohttp")


def now() -> float:
    """Return the time; :func:`.fake_clock` puts another one in its place."""
    # Looked up each time, so that tests can freeze the time.
    return time.time()


def _now() -> float:
    return now()


class ServerSession:
    """Keeps the sessions of Flask applications on the server.

    One object may serve several applications; it keeps no state of theirs.
    Settings are read once, by :meth:`init_app`; changing ``app.config`` afterwards
    changes only what Flask itself reads at each request: its secrets, the lifetime
    and the attributes of the cookie.

    :param app: The application, or ``None`` to call :meth:`init_app` later.
    :param clock: Gives the time in seconds since the epoch; for tests.
    """

    #: The class that is put into :attr:`flask.Flask.session_interface`.
    interface_class: type[ServerSessionInterface] = ServerSessionInterface

    def __init__(
        self, app: Flask | None = None, *, clock: cabc.Callable[[], float] | None = None
    ) -> None:
        self._clock = clock or _now
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Replace the application's sessions.

        Opens no connection and creates no file or table: that happens at first use.

        :raises ConfigurationError: if any setting is wrong; names all of them.
        """
        app = _check_application(app)
        problems = Problems()
        config = read_config(app, problems)
        check_config(app.config, problems)
        settings = BackendSettings(
            config=config,
            app_config=app.config,
            instance_path=app.instance_path,
            clock=self._clock,
            sqlalchemy_engine=_engine_finder(app),
        )
        try:
            backend, warning = build_backend(settings)
            kept = with_former(backend, settings)
            core = Core(app, config, kept, self._clock)
            takeover = make_takeover(core, settings)
        except ConfigurationError as error:
            problems.add(error.option or "SESSION_BACKEND", str(error))
            raise problems.error() from error
        if (
            config.max_per_user is not None
            and Capability.USER_INDEX not in kept.capabilities
        ):
            problems.add(
                "SESSION_MAX_PER_USER",
                f"'SESSION_MAX_PER_USER' is {config.max_per_user}, but the"
                f" {backend.name!r} backend cannot list the sessions of a user. Choose"
                " another 'SESSION_BACKEND', or None for no limit.",
            )
        devices = _make_devices(config, problems)
        if problems:
            raise problems.error()
        if warning is not None:
            warnings.warn(warning, ConfigurationWarning, stacklevel=3)
        _warn_of_backend(app, backend)
        unsaved = UnsavedChanges(core, accessed_unit)
        log_outs = LogOuts(core, accessed_unit)
        lifecycle = Lifecycle(core, takeover, unsaved, log_outs)
        interface = self.interface_class(config, lifecycle, Cleanup(config, kept))
        app.extensions[_KEY] = AppState(config, kept, interface, takeover)
        app.session_interface = interface
        if devices is not None:
            _bind_devices(app, interface, devices)
        app.context_processor(_template_context)
        # An application's own command of this name stays.
        if _COMMAND not in app.cli.commands:
            from .cli import sessions

            app.cli.add_command(sessions, _COMMAND)

    @property
    def backend(self) -> Backend:
        """The backend of the current application."""
        return _current_state().backend

    # The operator's API

    def sessions_of(self, user: object) -> list[SessionInfo]:
        """List the live sessions of a user of the current application.

        The session that logged in first comes first. The cost depends on how many
        sessions this user has, not on how many are stored.

        :param user: What :data:`SESSION_USER_KEY` finds in the sessions.
        :raises NotSupportedError: if the backend keeps no index of users.
        :raises ValueError: if the user is ``None``.
        """
        return operator.sessions_of(_current_state(), user)

    def find(self, handle: str) -> SessionInfo | None:
        """Return what is known of a session of the current application.

        :param handle: Its :attr:`.ServerSideSession.handle`, or the first eight digits
            of it or more. The whole handle costs one record. Its first digits cost a
            search of all sessions, so leave that to operators.
        :return: ``None`` if there is no such session.
        :raises LookupError: if several sessions begin with these digits.
        :raises NotSupportedError: if there are only the first digits, and the backend
            cannot enumerate sessions.
        """
        return operator.find(_current_state(), handle)

    def sessions(self) -> cabc.Iterator[SessionInfo]:
        """Iterate over all live sessions of the current application, in no order.

        :raises NotSupportedError: if the backend cannot enumerate them.
        """
        return operator.sessions(_current_state())

    def revoke(self, handle: str) -> bool:
        """End a session of the current application, whoever is using it.

        A request of that session that is still running cannot bring it back. If the
        session got a new id a few seconds ago, it is ended under its new id.
        Flask-Login's remember cookie is no session: see :meth:`revoke_user`.

        :param handle: As for :meth:`find`.
        :return: ``False`` if there was no such session.
        :raises LookupError: if several sessions begin with these digits.
        :raises NotSupportedError: as :meth:`find`.
        :raises RecordError: if a later version of the library wrote the record.
        """
        return operator.revoke(_current_state(), handle)

    def revoke_user(self, user: object, except_current: bool = False) -> int:
        """End the sessions of a user of the current application, everywhere.

        Flask-Login's remember cookie is no session: it logs its owner in again.
        :ref:`remember-cookie` says what to do.

        :param user: What :data:`SESSION_USER_KEY` finds in the sessions.
        :param except_current: Leave the session of the current request alone.
        :return: How many were ended.
        :raises NotSupportedError: if the backend keeps no index of users.
        :raises RecordError: if a later version of the library wrote one of the
            records; the others are ended.
        :raises ValueError: if the user is ``None``.
        """
        return operator.revoke_user(_current_state(), user, except_current)

    def revoke_all(
        self,
        except_current: bool = False,
        progress: cabc.Callable[[int], None] | None = None,
    ) -> int:
        """End all sessions of the current application.

        Goes through all of them, and again until none is left. So a session that is
        just getting a new id is ended too. Sessions of other applications in the same
        store stay, and so do those that a later version of the library has written.

        :param except_current: Leave the session of the current request alone.
        :param progress: Called now and then with how many were ended since the last
            call.
        :return: How many were ended.
        :raises NotSupportedError: if the backend cannot enumerate them.
        """
        return operator.revoke_all(_current_state(), except_current, progress)

    def open(self, handle: str) -> contextlib.AbstractContextManager[ServerSideSession]:
        """Change another session, from a view, a job or a shell without a request.

        .. code-block:: python

            with server_session.open(handle) as data:
                data["role"] = "editor"

        Changes are saved at the end of the block, with the guarantees of a request.
        What a request has changed meanwhile is merged, as :data:`SESSION_CONFLICT`
        says. A session that has ended is never brought back. If its id is renewed
        meanwhile, the change follows. A block that raises saves nothing.

        Opening a session does not count as activity, so it lives no longer for it.
        ``clear()`` ends it. Its user and its id cannot be changed, because the browser
        could not learn a new id: trying raises :exc:`.ServerSessionError`.

        The session of the current request is :data:`flask.session` itself. It is saved
        at the end of the block; if the block raises, its changes are undone.

        :param handle: As for :meth:`find`. If the id changed a few seconds ago, the
            session is opened under its new id. It may then belong to somebody who has
            just logged in: check its ``user``.
        :return: A context manager that returns a :class:`.ServerSideSession`.
        :raises SessionLostError: if there is no such session, or if it has ended when
            a change is to be saved.
        :raises LookupError: if several sessions begin with these digits.
        :raises NotSupportedError: as :meth:`find`.
        :raises RecordError: if the stored session cannot be read.
        :raises ConflictError: if :data:`SESSION_CONFLICT` asks for it.
        """
        return outside.opened(_current_state(), handle)

    def update_user(
        self, user: object, function: cabc.Callable[[ServerSideSession], object]
    ) -> int:
        """Change all live sessions of a user, so that a new role is in force at once.

        Runs ``function(session)`` on each session, as
        :meth:`.ServerSideSession.atomic` does: if a request saves meanwhile, the
        function runs again on the newest version. A session that is just getting a new
        id is changed too. One that ends meanwhile, or gets another user, is left out.
        Everything else is as for :meth:`open`.

        :param user: What the sessions hold under :data:`SESSION_USER_KEY`.
        :param function: If it raises, this session is not changed and no further one is
            tried. Those before it stay changed.
        :return: How many were changed.
        :raises ValueError: if the user is ``None``.
        :raises RecordError: if a later version of the library wrote one of the
            records; the others are changed.
        :raises NotSupportedError: if the backend keeps no index of users.
        """
        return outside.update_user(_current_state(), user, function)

    def count(self) -> int:
        """Return the number of live sessions of the current application.

        A backend that can neither tell applications apart nor enumerate its records
        counts those of other applications too.

        :raises NotSupportedError: if the backend cannot count.
        """
        return operator.count(_current_state())

    def prune(
        self,
        batch: int | None = None,
        progress: cabc.Callable[[int], None] | None = None,
    ) -> int:
        """Delete all expired records, in batches, so that nothing is locked for long.

        :param batch: How many at a time; :data:`SESSION_CLEANUP_BATCH` by default.
        :param progress: Called after each batch with how many it deleted.
        :return: How many were deleted; 0 if the engine removes them by itself.
        :raises NotSupportedError: if the backend can do neither.
        """
        return operator.prune(_current_state(), batch, progress)


def _current_state() -> AppState:
    state: AppState | None = current_app.extensions.get(_KEY)
    if state is None:
        raise ServerSessionError(
            f"ServerSession is not initialized for the application"
            f" {current_app.name!r}. Call init_app(app) first."
        )
    return state


def _check_application(app: t.Any) -> Flask:
    """Return the application itself.

    :raises ConfigurationError: if it is not a Flask application, or has been
        initialized already.
    """
    if app and hasattr(app, "_get_current_object"):  # current_app
        app = app._get_current_object()
    if not isinstance(app, Flask):
        raise ConfigurationError(
            f"ServerSession takes a Flask application, not {described(app)}."
            f" {_remedy_for(app)}"
        )
    if _KEY in app.extensions:
        raise ConfigurationError(
            "ServerSession was already initialized for this application. Call either"
            " ServerSession(app) or init_app(app), once."
        )
    return app


def _remedy_for(value: object) -> str:
    if type(value).__module__.partition(".")[0] in _ASYNC_FRAMEWORKS:
        return 'Async views work with Flask, too: pip install "flask[async]"'
    if isinstance(value, Blueprint):
        return "Pass the application that it is registered with."
    if hasattr(value, "_get_current_object"):
        return "Pass the application itself."
    return "Make one with Flask(__name__), and pass it."


def _make_devices(config: SessionConfig, problems: Problems) -> Devices | None:
    """Return what binds sessions to devices; ``None`` if nothing is to."""
    if not config.device_bound:
        return None
    try:
        from .device import Devices
    except ImportError:
        problems.add(
            "SESSION_DEVICE_BOUND",
            "'SESSION_DEVICE_BOUND' needs the cryptography package. Install it with:"
            ' pip install "flask-serversession[device]"',
        )
        return None
    return Devices(config)


def _bind_devices(
    app: Flask, interface: ServerSessionInterface, devices: Devices
) -> None:
    from .device.route import make_answer

    interface.core.devices = devices
    # First, whatever else the application has run before its views.
    functions = app.before_request_funcs.setdefault(None, [])
    functions.insert(0, make_answer(interface, devices))


def _warn_of_backend(app: Flask, backend: Backend) -> None:
    """Log what an operator has to know of the backend, once for an application."""
    if backend.name == "memory" and not (app.debug or app.testing):
        logger.warning(
            "Sessions are kept in this process's memory: they end with it, and"
            " other workers do not see them. Set 'SESSION_BACKEND' to anything else"
            " for production."
        )
    if backend.name == "cachelib":
        from .backends.cachelib import unpickling_warning

        if (warning := unpickling_warning(backend)) is not None:
            logger.warning("%s", warning)


def _template_context() -> dict[str, t.Any]:
    adapt_environment(current_app)
    return {"session": TEMPLATE_SESSION}


def _engine_finder(
    app: Flask,
) -> cabc.Callable[[t.Any, str | None], tuple[t.Any, t.Any]]:
    """Return a function that finds engine and metadata in what the user configured."""

    def find(value: t.Any, bind_key: str | None) -> tuple[t.Any, t.Any]:
        kind = t.cast("t.Any", type(value))
        # Of the class: the object's own property needs an application context.
        if not hasattr(kind, "engines"):  # no Flask-SQLAlchemy object
            return value, None
        is_lite = not hasattr(value, "metadatas")
        if is_lite and bind_key is None:
            bind_key = "default"
        if "sqlalchemy" not in app.extensions:
            raise ValueError(
                "the Flask-SQLAlchemy object is not initialized for this application;"
                " call db.init_app(app) before ServerSession's."
            )
        with app.app_context():
            engines = value.engines
        if bind_key not in engines:
            names = ", ".join(sorted(repr(name) for name in engines if name))
            raise ConfigurationError(
                f"'SESSION_SQLALCHEMY_BIND_KEY' is {bind_key!r}, which"
                " 'SQLALCHEMY_BINDS' does not have; it"
                f" {f'has {names}' if names else 'is empty'}. Add it there, or leave"
                " the key out for the application's own database.",
                "SESSION_SQLALCHEMY_BIND_KEY",
            )
        # Flask-SQLAlchemy-Lite has no metadata: the application's models have.
        return engines[bind_key], None if is_lite else value.metadatas[bind_key]

    return find
