"""The extension: sets sessions up for an application."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import logging
import random
import time
import typing as t
import warnings

from flask import Flask
from flask.globals import request_ctx

from .backends import Refused
from .backends import Setting
from .backends import build_backend
from .backends.base import Backend
from .backends.base import Capability
from .config import ConfigurationWarning
from .config import Problems
from .config import SessionConfig
from .config import read_config
from .errors import BackendError
from .errors import ConfigurationError
from .interface import ServerSessionInterface
from .keeper import BackendKeeper

logger = logging.getLogger("flask_serversession")

_KEY = "serversession"


@dataclasses.dataclass(frozen=True)
class AppState:
    """What the extension keeps for one application, under ``app.extensions``."""

    config: SessionConfig
    backend: Backend
    interface: ServerSessionInterface


class ServerSession:
    """Keeps the sessions of Flask applications on the server.

    One object may serve several applications; it keeps nothing of them itself.
    Settings are read once, by :meth:`init_app`; changing ``app.config`` afterwards
    changes only what Flask itself reads at each request: its secrets, the lifetime
    and the attributes of the cookie.

    :param app: The application, or ``None`` to call :meth:`init_app` later.
    :param clock: Gives the time in seconds since the epoch; for tests.
    """

    #: The class that is put into :attr:`flask.Flask.session_interface`.
    interface_class: type[ServerSessionInterface] = ServerSessionInterface

    def __init__(
        self, app: Flask | None = None, *, clock: cabc.Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Replace the application's sessions.

        Opens no connection and creates no file or table: that happens at first use.

        :raises ConfigurationError: if any setting is wrong; names all of them.
        """
        if _KEY in app.extensions:
            raise ConfigurationError(
                "ServerSession was already initialized for this application. Call"
                " either ServerSession(app) or init_app(app), once."
            )
        problems = Problems()
        config = read_config(app, problems)
        setting = Setting(
            config=config,
            app_config=app.config,
            instance_path=app.instance_path,
            clock=self._clock,
            sqlalchemy_engine=_engine_finder(app),
        )
        try:
            backend, warning = build_backend(setting)
        except Refused as error:
            problems.add(error.option, str(error))
            raise problems.error() from error
        if problems:
            raise problems.error()
        if warning is not None:
            warnings.warn(warning, ConfigurationWarning, stacklevel=3)
        if backend.name == "memory" and not (app.debug or app.testing):
            logger.warning(
                "Sessions are kept in this process's memory: they end with it, and"
                " other workers do not see them. Set 'SESSION_BACKEND' to anything else"
                " for production."
            )
        keeper = BackendKeeper(app, config, backend, self._clock)
        interface = self.interface_class(config, keeper, Cleanup(config, backend))
        app.extensions[_KEY] = AppState(config, backend, interface)
        app.session_interface = interface
        app.teardown_request(_warn_if_unsaved)


class Cleanup:
    """Deletes expired records now and then, where the engine does not by itself.

    Every process has its own rhythm, with jitter, so that workers that were started
    together do not clean up together. Thread-safe.
    """

    def __init__(self, config: SessionConfig, backend: Backend) -> None:
        self._backend = backend
        self._batch = config.cleanup_batch
        self._interval = config.cleanup_interval
        self._is_needed = (
            self._interval > 0
            and Capability.PRUNE in backend.capabilities
            and Capability.EXPIRES not in backend.capabilities
        )
        self._due_at = self._next()

    def _next(self) -> float:
        return time.monotonic() + self._interval * random.uniform(0.5, 1.5)  # noqa: S311

    def __call__(self) -> None:
        """Delete one batch if that is due. A failure is logged and nothing more."""
        if not self._is_needed or time.monotonic() < self._due_at:
            return
        # Two threads here at one moment at worst delete a batch each.
        self._due_at = self._next()
        try:
            self._backend.prune(self._batch)
        except BackendError as error:
            logger.warning("Expired sessions could not be deleted: %s", error)


def _warn_if_unsaved(error: BaseException | None) -> None:
    # Not request_ctx.session: that asserts that opening the session did not fail.
    session = getattr(request_ctx, "_session", None)
    interface = request_ctx.app.session_interface
    if session is not None and isinstance(interface, ServerSessionInterface):
        interface.warn_if_unsaved(session)


def _engine_finder(
    app: Flask,
) -> cabc.Callable[[t.Any, str | None], tuple[t.Any, t.Any]]:
    """Give a function that finds engine and metadata in what the user configured."""

    def find(value: t.Any, bind_key: str | None) -> tuple[t.Any, t.Any]:
        if not hasattr(value, "engines"):  # no Flask-SQLAlchemy object
            return value, None
        if "sqlalchemy" not in app.extensions:
            raise ValueError(
                "the Flask-SQLAlchemy object is not initialized for this application;"
                " call db.init_app(app) before ServerSession's."
            )
        with app.app_context():
            engines = value.engines
        if bind_key not in engines:
            names = ", ".join(repr(name) for name in engines)
            raise ValueError(
                f"'SESSION_SQLALCHEMY_BIND_KEY' is {bind_key!r}; there are {names}."
            )
        return engines[bind_key], value.metadatas[bind_key]

    return find
