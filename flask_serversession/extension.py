"""The extension: sets sessions up for an application."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import logging
import os
import random
import time
import typing as t
import warnings

from flask import Flask
from flask import current_app
from flask import session as flask_session

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
from .errors import NotSupportedError
from .errors import RecordError
from .errors import ServerSessionError
from .interface import ServerSessionInterface
from .keeper import PREDECESSOR
from .keeper import SUCCESSOR
from .keeper import predecessor_of
from .migrate import make_keeper
from .record import Record
from .record import is_key
from .record import key_of_handle
from .session import Status
from .session import keeper_of
from .session import opened_session
from .session import state_of
from .template import TEMPLATE_SESSION

logger = logging.getLogger("flask_serversession")

_KEY = "serversession"
_COMMAND = "sessions"


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """What an operator may see of a session."""

    #: Its public name, for :meth:`ServerSession.revoke`.
    handle: str
    #: Whom it belongs to, ``None`` if nobody.
    user: str | None
    #: When it began, in UTC.
    created_at: dt.datetime
    #: The last activity recorded, in UTC; exact to :data:`SESSION_TOUCH_INTERVAL`.
    last_seen_at: dt.datetime
    #: When it ends if it is not used, in UTC.
    expires_at: dt.datetime
    #: What :data:`SESSION_TRACK` asks for.
    meta: cabc.Mapping[str, str]
    #: Whether it is the session of the current request.
    current: bool


@dataclasses.dataclass(frozen=True)
class AppState:
    """What the extension keeps for one application, under ``app.extensions``."""

    config: SessionConfig
    backend: Backend
    interface: ServerSessionInterface

    def key_of_handle(self, handle: str) -> str | None:
        """Give the key that a handle stands for; ``None`` if it is not a handle."""
        return key_of_handle(handle, self.config.key_prefix)

    def is_own(self, key: str) -> bool:
        """Whether a key belongs to this application: others may share the store."""
        return is_key(key, self.config.key_prefix)

    def keys_of_user(self, user: object) -> list[str]:
        """Give the keys of a user's live sessions; nobody (``None``) has none.

        :raises NotSupportedError: if the backend keeps no index of users.
        """
        if Capability.USER_INDEX not in self.backend.capabilities:
            raise NotSupportedError(self.backend.name, "keys_of_user")
        if user is None:
            return []
        return [key for key in self.backend.keys_of_user(str(user)) if self.is_own(key)]

    def info(self, key: str, record: Record, *, is_current: bool) -> SessionInfo:
        """Give the public view of a record."""
        return SessionInfo(
            handle=key[len(self.config.key_prefix) :],
            user=record.user,
            created_at=_utc(record.created_at),
            last_seen_at=_utc(record.touched_at),
            expires_at=_utc(record.expires_at),
            meta={
                name: value
                for name, value in record.meta.items()
                if name != PREDECESSOR
            },
            current=is_current,
        )


def _now() -> float:
    # Looked up each time, so that tests can freeze the time.
    return time.time()


def _utc(timestamp: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(timestamp, dt.timezone.utc)


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
            keeper = make_keeper(app, setting, backend)
        except (Refused, ConfigurationError) as error:
            problems.add(error.option or "SESSION_BACKEND", str(error))
            raise problems.error() from error
        if (
            config.max_per_user is not None
            and Capability.USER_INDEX not in backend.capabilities
        ):
            problems.add(
                "SESSION_MAX_PER_USER",
                f"'SESSION_MAX_PER_USER' is {config.max_per_user}, but the"
                f" {backend.name!r} backend cannot list the sessions of a user. Choose"
                " another 'SESSION_BACKEND', or None for no limit.",
            )
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
        if backend.name == "cachelib":
            from .backends.cachelib import unpickling_warning

            if (warning := unpickling_warning(backend)) is not None:
                logger.warning("%s", warning)
        interface = self.interface_class(config, keeper, Cleanup(config, backend))
        app.extensions[_KEY] = AppState(config, backend, interface)
        app.session_interface = interface
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
        """List the live sessions of a user of the current application, oldest first.

        Costs what that user has, not what the store holds.

        :param user: What the sessions hold under :data:`SESSION_USER_KEY`.
        :raises NotSupportedError: if the backend keeps no index of users.
        """
        state = _current_state()
        records = state.backend.load_many(state.keys_of_user(user))
        current = _current_key(state)
        return sorted(
            (
                state.info(key, record, is_current=key == current)
                for key, record in records.items()
            ),
            key=lambda info: info.created_at,
        )

    def find(self, handle: str) -> SessionInfo | None:
        """Give what is known of a session of the current application.

        :param handle: Its :attr:`.ServerSideSession.handle`.
        :return: ``None`` if there is no such session.
        """
        state = _current_state()
        if (key := state.key_of_handle(handle)) is None:
            return None
        record = state.backend.load_many([key]).get(key)
        if record is None:
            return None
        return state.info(key, record, is_current=key == _current_key(state))

    def sessions(self) -> cabc.Iterator[SessionInfo]:
        """Go through all live sessions of the current application, in no order.

        :raises NotSupportedError: if the backend cannot enumerate them.
        """
        state = _current_state()
        current = _current_key(state)
        for key, record in state.backend.iterate():
            if state.is_own(key):
                yield state.info(key, record, is_current=key == current)

    def revoke(self, handle: str) -> bool:
        """End a session of the current application, whoever is using it.

        A request of it that is running at this moment cannot bring it back. If its
        id was rotated within the last seconds, it is ended under its new id.

        :param handle: Its :attr:`.ServerSideSession.handle`.
        :return: ``False`` if there was no such session.
        :raises RecordError: if a later version of the library wrote the record.
        """
        state = _current_state()
        key = state.key_of_handle(handle)
        # As many rotations as fit into one grace period, and no endless loop.
        for _ in range(10):
            if key is None:
                return False
            user: str | None = None
            try:
                record = state.backend.load(key)
            except RecordError:
                pass  # nobody can use it, but it is not absent either
            else:
                if record is None:
                    return False
                if record.is_tombstone:
                    key = state.key_of_handle(record.meta.get(SUCCESSOR, ""))
                    continue
                user = record.user
            if state.backend.delete(key):
                state.interface.keeper.send_destroyed(key, user)
                return True
            # Rotated or ended between the two steps.
        return False

    def revoke_user(self, user: object, except_current: bool = False) -> int:
        """End the sessions of a user of the current application, everywhere.

        :param user: What the sessions hold under :data:`SESSION_USER_KEY`.
        :param except_current: Leave the session of the current request alone.
        :return: How many were ended.
        :raises NotSupportedError: if the backend keeps no index of users.
        :raises RecordError: if a later version of the library wrote one of the
            records; the others are ended.
        """
        state = _current_state()
        current = _current_key(state) if except_current else None
        ended: list[str] = []
        failures: dict[str, RecordError] = {}
        try:
            is_empty = False
            # Again until none is left: a session whose id was rotated after it was
            # listed goes by another key.
            for _ in range(10):
                keys = {*state.keys_of_user(user)} - {current, *ended, *failures}
                if current is not None and keys:
                    keys -= _keys_of_current(state, current, keys)
                if is_empty and not keys:
                    break
                # Not at once: an engine that lists in several steps can miss the old
                # and the new id of a session that is rotated between them.
                is_empty = not keys
                for key in keys:
                    try:
                        if state.backend.delete(key):
                            ended.append(key)
                    except RecordError as error:
                        failures[key] = error
        finally:
            # Only now: a receiver that raises must not leave sessions behind.
            for key in ended:
                state.interface.keeper.send_destroyed(key, str(user))
        for failure in failures.values():
            raise failure
        return len(ended)

    def count(self) -> int:
        """Give the number of live sessions of the current application.

        A backend that neither keeps to one application's records nor can enumerate
        them counts those of others too.

        :raises NotSupportedError: if the backend cannot count.
        """
        state = _current_state()
        backend = state.backend
        if (
            backend.key_prefix == state.config.key_prefix
            or Capability.COUNT not in backend.capabilities
            or Capability.ITERATE not in backend.capabilities
        ):
            return backend.count()
        return sum(state.is_own(key) for key, _ in backend.iterate())

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
        if batch is not None and batch < 1:
            raise ValueError("A batch has at least one record.")
        state = _current_state()
        if Capability.PRUNE not in state.backend.capabilities:
            if Capability.EXPIRES in state.backend.capabilities:
                return 0
            raise NotSupportedError(state.backend.name, "prune")
        size = batch or state.config.cleanup_batch
        total = 0
        while True:
            deleted = state.backend.prune(size)
            total += deleted
            if progress is not None:
                progress(deleted)
            if deleted < size:
                return total


def _current_state() -> AppState:
    state: AppState | None = current_app.extensions.get(_KEY)
    if state is None:
        raise ServerSessionError(
            f"ServerSession is not initialized for the application"
            f" {current_app.name!r}. Call init_app(app) first."
        )
    return state


def _current_key(state: AppState) -> str | None:
    """Give the key of the current request's session; one cookie asks no backend."""
    session = opened_session()
    # An app context may have been pushed inside another application's request.
    if session is None or keeper_of(session) is not state.interface.keeper:
        return None
    # What is made of the answer depends on the cookie.
    session.accessed = True
    own = state_of(session)
    state.interface.keeper.verify(own)
    if len(own.candidates) > 1 and own.status is Status.UNLOADED:
        state.interface.keeper.load(own)  # which of them is in use?
    return own.key or None


def _keys_of_current(
    state: AppState, current: str | None, keys: cabc.Collection[str]
) -> set[str | None]:
    """Give the key that the cookie stands for, and those the session has got since.

    :param keys: Where to look for one that another request is just giving it.
    """
    found: set[str | None] = {current}
    records = state.backend.load_many([*keys])
    # Not before: what is no heir any more in there has left a tombstone here.
    # As many rotations as fit into one grace period, and no endless loop.
    for _ in range(10):
        if current is None:
            break
        current = _successor(state, current)
        found.add(current)
    prefix = state.config.key_prefix
    found |= {
        key for key in records if predecessor_of(records[key], prefix) in found - {None}
    }
    return found


def _successor(state: AppState, key: str) -> str | None:
    try:
        record = state.backend.load(key)
    except RecordError:
        return None
    if record is None or not record.is_tombstone:
        return None
    return state.key_of_handle(record.meta.get(SUCCESSOR, ""))


class Cleanup:
    """Deletes expired records now and then, where the engine does not by itself.

    Every process has its own rhythm, with jitter, so that workers that were started
    or forked together do not clean up together. Thread-safe.
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
        self._begin()

    def _begin(self) -> None:
        self._due_at = self._next()
        self._pid = os.getpid()

    def _next(self) -> float:
        # Not what a forked worker's generator has in common with all others.
        jitter = random.SystemRandom().uniform(0.5, 1.5)
        return time.monotonic() + self._interval * jitter

    def __call__(self) -> None:
        """Delete one batch if that is due. A failure is logged and nothing more."""
        if not self._is_needed:
            return
        if self._pid != os.getpid():
            self._begin()
        if time.monotonic() < self._due_at:
            return
        # Two threads here at one moment at worst delete a batch each.
        self._due_at = self._next()
        try:
            self._backend.sweep(self._batch)
        except BackendError as error:
            logger.warning("Expired sessions could not be deleted: %s", error)


def _template_context() -> dict[str, t.Any]:
    # Macros that are imported without context see the globals only.
    names: dict[str, t.Any] = current_app.jinja_env.globals
    if names.get("session") is flask_session:
        names["session"] = TEMPLATE_SESSION
    return {"session": TEMPLATE_SESSION}


def _engine_finder(
    app: Flask,
) -> cabc.Callable[[t.Any, str | None], tuple[t.Any, t.Any]]:
    """Give a function that finds engine and metadata in what the user configured."""

    def find(value: t.Any, bind_key: str | None) -> tuple[t.Any, t.Any]:
        kind = t.cast("t.Any", type(value))
        # Of the class: the object's own property needs an application context.
        if not hasattr(kind, "engines"):  # no Flask-SQLAlchemy object
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
                f"'SESSION_SQLALCHEMY_BIND_KEY' is {bind_key!r}; the keys of"
                f" 'SQLALCHEMY_BINDS' and the default are {names}."
            )
        return engines[bind_key], value.metadatas[bind_key]

    return find
