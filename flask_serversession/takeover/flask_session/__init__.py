"""What Flask-Session 0.8 has stored: found by its key, read, and removed.

Nothing is ever unpickled, which runs whatever the pickle says. A module for each kind
of store, the only importer of its driver.
"""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from ...backends import BackendSettings
from ...backends.base import Backend
from ...errors import ConfigurationError
from ...hiding import hide
from .content import PICKLED as PICKLED
from .content import OldStore as OldStore
from .content import PickledError as PickledError
from .content import checked as checked
from .content import decode as decode
from .content import is_id as is_id
from .content import is_pickle as is_pickle


def build_old_store(settings: BackendSettings, backend: Backend) -> OldStore:
    """Return the store that :data:`SESSION_MIGRATE_STORE` means.

    :param backend: The backend for the new sessions, whose place is the default.
    :raises ConfigurationError: if there is no such store.
    """
    found: t.Any = hide(settings.config.migrate_store)
    key = "SESSION_MIGRATE_STORE"
    store: OldStore | None = None
    try:
        for kind, names in _CLASSES.items():
            if found is None and backend.name == kind:
                store = _MAKERS[kind](settings, backend)
            # By names, because the drivers may not be installed.
            elif names & {cls.__name__ for cls in type(found).__mro__}:
                store = _MAKERS[kind](settings, found)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{key!r}: {error}", key) from error
    if store is not None:
        _check_table(settings, backend, store)
        return store
    what = (
        f"not set, and the {backend.name!r} backend keeps nothing where Flask-Session"
        " could have kept it"
        if found is None
        else f"an object of type {type(found).__name__}"
    )
    raise ConfigurationError(
        f"{key!r} is {what}; expected what Flask-Session had: a Redis client, a"
        " SQLAlchemy engine or Flask-SQLAlchemy object, or a cachelib cache"
        " (cachelib.FileSystemCache(folder) for its 'filesystem').",
        key,
    )


def _make_redis(settings: BackendSettings, found: t.Any) -> OldStore | None:
    from ...backends.redis import RedisBackend
    from .redis import FlaskSessionRedis

    source = RedisBackend(found) if not isinstance(found, Backend) else found
    if not isinstance(source, RedisBackend):
        return None
    return FlaskSessionRedis(source, settings.config.key_prefix)


def _make_sqlalchemy(settings: BackendSettings, found: t.Any) -> OldStore | None:
    from ...backends.sqlalchemy import SQLAlchemyBackend
    from .sqlalchemy import FlaskSessionTable

    config = settings.config
    source = found
    if not isinstance(found, Backend):
        engine, _ = settings.sqlalchemy_engine(found, config.sqlalchemy_bind_key)
        source = SQLAlchemyBackend(engine, clock=settings.clock)
    if not isinstance(source, SQLAlchemyBackend):
        return None
    return FlaskSessionTable(
        source, config.migrate_table, config.sqlalchemy_schema, config.key_prefix
    )


def _make_cachelib(settings: BackendSettings, found: t.Any) -> OldStore | None:
    from ...backends.cachelib import CachelibBackend
    from .cachelib import FlaskSessionCache

    source = found
    if not isinstance(found, Backend):
        source = CachelibBackend(found, clock=settings.clock)
    return FlaskSessionCache(source) if isinstance(source, CachelibBackend) else None


def _check_table(settings: BackendSettings, backend: Backend, store: OldStore) -> None:
    is_that_of: t.Any = getattr(store, "is_that_of", None)
    if is_that_of is not None and is_that_of(backend):
        raise ConfigurationError(
            f"'SESSION_SQLALCHEMY_TABLE' is {settings.config.sqlalchemy_table!r}, which"
            " is Flask-Session's table ('SESSION_MIGRATE_TABLE') and has other columns."
            " Choose another name for the new one, such as 'server_sessions'.",
            "SESSION_SQLALCHEMY_TABLE",
        )


_MAKERS: cabc.Mapping[str, cabc.Callable[[BackendSettings, t.Any], OldStore | None]] = {
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
