"""What Flask-Session 0.8 has stored: found by its key, read, and removed.

Nothing is ever unpickled, which runs whatever the pickle says. A module for each kind
of store, the only importer of its driver.
"""

from __future__ import annotations

import collections.abc as cabc
import json
import re
import typing as t

import msgpack  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]

from ...errors import RecordError
from .. import Refused
from .. import Setting
from ..base import Backend

_msgpack: t.Any = msgpack  # which has no type hints

_ID = re.compile(r"[A-Za-z0-9_-]{16,256}")
_HANDLE = re.compile(r"[0-9a-f]{64}")

#: Why nothing of a pickle is read.
PICKLED = (
    "It is a pickle, as Flask-Session before 0.7 wrote them, and whoever can write to"
    " the store could run code with one. Nothing is unpickled."
)


class PickledError(RecordError):
    """The session was pickled."""

    def __init__(self) -> None:
        super().__init__(PICKLED, "unreadable")


class OldStore(t.Protocol):
    """Where Flask-Session has kept its sessions. Thread-safe.

    All methods raise :exc:`.BackendUnavailableError` if the engine does not answer.
    """

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Give what the session held; ``None`` if there is none, or it has expired.

        :raises RecordError: if it cannot be read; a :exc:`PickledError` if that is
            because it is a pickle.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove the session, if there is one."""
        ...

    def sample(
        self, limit: int
    ) -> cabc.Iterator[dict[str, t.Any] | RecordError | None]:
        """Give what some of the sessions held, in no special order.

        :return: ``None`` for one that has expired, and the error for one that cannot
            be read.
        :raises NotSupportedError: if the store cannot list what it holds.
        """
        ...


def decode(value: bytes) -> dict[str, t.Any]:
    """Read what Flask-Session has written with msgspec, as msgpack or as JSON.

    msgspec's msgpack is the ordinary one: a datetime is a timestamp of the format.

    :raises RecordError: as :meth:`OldStore.read`.
    """
    try:
        if value[:1] == b"{":
            content: t.Any = json.loads(value)
        else:
            content = _msgpack.unpackb(value, timestamp=3, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if is_pickle(value):
            raise PickledError from error
        raise RecordError(
            "It is neither msgpack nor JSON that makes sense.", "unreadable"
        ) from error
    return checked(content)


def checked(content: object) -> dict[str, t.Any]:
    """Give what was read, if it is the content of a session."""
    if not isinstance(content, dict):
        raise RecordError("It is not the content of a session.", "unreadable")
    return t.cast("dict[str, t.Any]", content)


def is_pickle(value: bytes) -> bool:
    """Whether a value looks like a dict that was pickled, by any protocol."""
    is_binary = value[:1] == b"\x80" and value[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return (is_binary or value[:1] in (b"(", b"}")) and value[-1:] == b"."


def is_id(text: str) -> bool:
    """Whether a text can be an id of Flask-Session's.

    What ``secrets.token_urlsafe()`` gives, or ``uuid4()`` before: nothing that leads to
    other keys of the store, such as the index of a user. Nor the handle of a session of
    ours, which is no secret.
    """
    return _ID.fullmatch(text) is not None and _HANDLE.fullmatch(text) is None


def build_old_store(setting: Setting, backend: Backend) -> OldStore:
    """Give the store that :data:`SESSION_MIGRATE_STORE` means.

    :param backend: The backend for the new sessions, whose place is the default.
    :raises Refused: if there is no such store.
    """
    found: t.Any = setting.config.migrate_store
    key = "SESSION_MIGRATE_STORE"
    store: OldStore | None = None
    try:
        for kind, names in _CLASSES.items():
            if found is None and backend.name == kind:
                store = _MAKERS[kind](setting, backend)
            # By names, because the drivers may not be installed.
            elif names & {cls.__name__ for cls in type(found).__mro__}:
                store = _MAKERS[kind](setting, found)
    except (TypeError, ValueError) as error:
        raise Refused(key, f"{key!r}: {error}") from error
    if store is not None:
        _check_table(setting, backend, store)
        return store
    what = (
        f"not set, and the {backend.name!r} backend keeps nothing where Flask-Session"
        " could have kept it"
        if found is None
        else f"an object of type {type(found).__name__}"
    )
    raise Refused(
        key,
        f"{key!r} is {what}; expected what Flask-Session had: a Redis client, a"
        " SQLAlchemy engine or Flask-SQLAlchemy object, or a cachelib cache"
        " (cachelib.FileSystemCache(folder) for its 'filesystem').",
    )


def _make_redis(setting: Setting, found: t.Any) -> OldStore | None:
    from ..redis import RedisBackend
    from .redis import FlaskSessionRedis

    source = RedisBackend(found) if not isinstance(found, Backend) else found
    if not isinstance(source, RedisBackend):
        return None
    return FlaskSessionRedis(source, setting.config.key_prefix)


def _make_sqlalchemy(setting: Setting, found: t.Any) -> OldStore | None:
    from ..sqlalchemy import SQLAlchemyBackend
    from .sqlalchemy import FlaskSessionTable

    config = setting.config
    source = found
    if not isinstance(found, Backend):
        engine, _ = setting.sqlalchemy_engine(found, config.sqlalchemy_bind_key)
        source = SQLAlchemyBackend(engine, clock=setting.clock)
    if not isinstance(source, SQLAlchemyBackend):
        return None
    return FlaskSessionTable(
        source, config.migrate_table, config.sqlalchemy_schema, config.key_prefix
    )


def _make_cachelib(setting: Setting, found: t.Any) -> OldStore | None:
    from ..cachelib import CachelibBackend
    from .cachelib import FlaskSessionCache

    source = found
    if not isinstance(found, Backend):
        source = CachelibBackend(found, clock=setting.clock)
    return FlaskSessionCache(source) if isinstance(source, CachelibBackend) else None


def _check_table(setting: Setting, backend: Backend, store: OldStore) -> None:
    is_that_of: t.Any = getattr(store, "is_that_of", None)
    if is_that_of is not None and is_that_of(backend):
        raise Refused(
            "SESSION_SQLALCHEMY_TABLE",
            f"'SESSION_SQLALCHEMY_TABLE' is {setting.config.sqlalchemy_table!r}, which"
            " is Flask-Session's table ('SESSION_MIGRATE_TABLE') and has other columns."
            " Choose another name for the new one, such as 'server_sessions'.",
        )


_MAKERS: cabc.Mapping[str, cabc.Callable[[Setting, t.Any], OldStore | None]] = {
    "cachelib": _make_cachelib,
    "redis": _make_redis,
    "sqlalchemy": _make_sqlalchemy,
}
# What there can be in place of a backend of that kind.
_CLASSES: cabc.Mapping[str, set[str]] = {
    "cachelib": {"BaseCache"},
    "redis": {"Redis", "RedisCluster", "Valkey", "ValkeyCluster"},
    # Flask-SQLAlchemy's class has that name.
    "sqlalchemy": {"Engine", "SQLAlchemy"},
}
