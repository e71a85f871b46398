"""Backends: where records are kept, and how the configuration chooses one."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import importlib
import importlib.metadata
import os
import types
import typing as t

from ..config import SessionConfig
from ..config import suggest
from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced

__all__ = ["Backend", "Capability", "Conflict", "Gone", "Replaced", "build_backend"]

#: Entry points of this group name third-party backends.
ENTRY_POINT_GROUP = "flask_serversession.backends"


class Refused(Exception):
    """A backend cannot be built.

    :param option: The configuration key at fault.
    :param message: A full sentence that names it and says what to do.
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclasses.dataclass(frozen=True)
class Setting:
    """What backends are built from.

    :param app_config: The whole configuration, for third-party backends.
    :param instance_path: The application's instance folder.
    :param sqlalchemy_engine: Gives engine and metadata of a Flask-SQLAlchemy object.
    """

    config: SessionConfig
    app_config: cabc.Mapping[str, t.Any]
    instance_path: str
    clock: cabc.Callable[[], float]
    sqlalchemy_engine: cabc.Callable[[t.Any, str | None], tuple[t.Any, t.Any]]


def build_backend(setting: Setting) -> tuple[Backend, str | None]:
    """Give the configured backend, and something to warn of at start, if any.

    :raises Refused: if the configuration does not allow it.
    """
    chosen = setting.config.backend
    if isinstance(chosen, Backend):
        return chosen, None
    if not isinstance(chosen, str):
        raise _unknown(chosen)
    if chosen in _BUILDERS:
        return _BUILDERS[chosen](setting)
    if "://" in chosen:
        # Not shown: it may have a password.
        raise Refused(
            "SESSION_BACKEND",
            "'SESSION_BACKEND' is a URL, which belongs into 'SESSION_REDIS_URL' or"
            " 'SESSION_SQLALCHEMY_URL'; 'SESSION_BACKEND' names the kind of backend.",
        )
    return _third_party(chosen, setting), None


def _unknown(value: object) -> Refused:
    names = ", ".join(repr(name) for name in sorted(_BUILDERS))
    return Refused(
        "SESSION_BACKEND",
        f"'SESSION_BACKEND' is {value!r}; expected {names}, an entry point's name,"
        f" 'package.module:Name' or a Backend object{suggest(value, _BUILDERS)}",
    )


def _third_party(name: str, setting: Setting) -> Backend:
    key = "SESSION_BACKEND"
    try:
        if ":" in name:
            module_name, _, attribute = name.partition(":")
            found: t.Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        else:
            points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
            if not points:
                raise _unknown(name)
            found = next(iter(points)).load()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise Refused(
            key, f"{key!r} is {name!r}, which cannot be imported: {error}."
        ) from error
    if isinstance(found, Backend):
        return found
    if not callable(found):
        raise Refused(
            key,
            f"{key!r} is {name!r}, which is neither a Backend nor makes one. Name a"
            " class, a function or an object.",
        )
    # A class that wants to be configured has from_config(mapping); others take nothing.
    make = getattr(found, "from_config", None)
    try:
        backend: t.Any = found() if make is None else make(setting.app_config)
    except TypeError as error:
        raise Refused(
            key, f"{key!r} is {name!r}, from which no backend can be made: {error}."
        ) from error
    if not isinstance(backend, Backend):
        raise Refused(
            key,
            f"{key!r} is {name!r}, which made a {type(backend).__name__} instead of a"
            " flask_serversession.backends.Backend.",
        )
    return backend


def _import(module: str, extra: str) -> types.ModuleType:
    """Import a backend's module, which is the only importer of its driver."""
    try:
        return importlib.import_module(f".{module}", __name__)
    except ImportError as error:
        raise _missing(extra) from error


def _missing(extra: str) -> Refused:
    return Refused(
        "SESSION_BACKEND",
        f"The {extra!r} backend needs the {extra} package. Install it with:"
        f' pip install "flask-serversession[{extra}]"',
    )


def _build_memory(setting: Setting) -> tuple[Backend, str | None]:
    from .memory import MemoryBackend

    return MemoryBackend(clock=setting.clock), None


def _build_filesystem(setting: Setting) -> tuple[Backend, str | None]:
    from .filesystem import FilesystemBackend

    config = setting.config
    path = config.filesystem_path or os.path.join(setting.instance_path, "sessions")
    return (
        FilesystemBackend(path, prefix=config.key_prefix, clock=setting.clock),
        None,
    )


def _build_redis(setting: Setting) -> tuple[Backend, str | None]:
    config = setting.config
    if (config.redis is None) == (config.redis_url is None):
        raise _one_of(
            "redis", "'SESSION_REDIS_URL' (such as 'redis://localhost:6379/0')"
        )
    backend_class = _import("redis", "redis").RedisBackend
    try:
        if config.redis is not None:
            backend_class.check_client(config.redis)
            return (
                backend_class(
                    config.redis, prefix=config.key_prefix, clock=setting.clock
                ),
                None,
            )
        return (
            backend_class.from_url(
                config.redis_url, prefix=config.key_prefix, clock=setting.clock
            ),
            None,
        )
    except ImportError as error:
        raise _missing("redis") from error
    except (TypeError, ValueError) as error:
        key = "SESSION_REDIS_URL" if config.redis is None else "SESSION_REDIS"
        raise Refused(key, f"{key!r}: {error}") from error


def _build_sqlalchemy(setting: Setting) -> tuple[Backend, str | None]:
    config = setting.config
    if (config.sqlalchemy is None) == (config.sqlalchemy_url is None):
        raise _one_of(
            "sqlalchemy", "'SESSION_SQLALCHEMY_URL' (such as 'sqlite:///sessions.db')"
        )
    backend_class = _import("sqlalchemy", "sqlalchemy").SQLAlchemyBackend
    metadata: t.Any = config.sqlalchemy_metadata
    if metadata is not None and not hasattr(metadata, "tables"):
        raise Refused(
            "SESSION_SQLALCHEMY_METADATA",
            f"'SESSION_SQLALCHEMY_METADATA' is {metadata!r}; expected a"
            " sqlalchemy.MetaData or None.",
        )
    options: dict[str, t.Any] = {
        "table_name": config.sqlalchemy_table,
        "schema": config.sqlalchemy_schema,
        "metadata": metadata,
        "create_table": config.sqlalchemy_create_table,
        "prefix": config.key_prefix,
        "clock": setting.clock,
    }
    key = (
        "SESSION_SQLALCHEMY_URL" if config.sqlalchemy is None else "SESSION_SQLALCHEMY"
    )
    try:
        if config.sqlalchemy is None:
            return backend_class.from_url(config.sqlalchemy_url, **options), None
        engine, its_metadata = setting.sqlalchemy_engine(
            config.sqlalchemy, config.sqlalchemy_bind_key
        )
        if options["metadata"] is None:
            options["metadata"] = its_metadata
        return backend_class(engine, **options), None
    except ImportError as error:
        raise Refused(
            key,
            f"{key!r} needs a database driver that is not installed: {error}. Install"
            " it, or name another one in the URL.",
        ) from error
    except (TypeError, ValueError) as error:
        raise Refused(key, f"{key!r}: {error}") from error


def _build_cachelib(setting: Setting) -> tuple[Backend, str | None]:
    from cachelib import BaseCache

    from .cachelib import CachelibBackend
    from .cachelib import eviction_warning

    cache = setting.config.cachelib
    if not isinstance(cache, BaseCache):
        raise Refused(
            "SESSION_CACHELIB",
            f"'SESSION_CACHELIB' is a {type(cache).__name__}; expected an instance of a"
            " cachelib cache, such as cachelib.FileSystemCache(path, threshold=0),"
            " because 'SESSION_BACKEND' is 'cachelib'.",
        )
    return CachelibBackend(cache, clock=setting.clock), eviction_warning(cache)


def _one_of(backend: str, url_key: str) -> Refused:
    key = f"SESSION_{backend.upper()}"
    return Refused(
        f"{key}_URL",
        f"'SESSION_BACKEND' is {backend!r}, which needs exactly one of {url_key} and"
        f" {key!r}.",
    )


_BUILDERS: cabc.Mapping[str, cabc.Callable[[Setting], tuple[Backend, str | None]]] = {
    "cachelib": _build_cachelib,
    "filesystem": _build_filesystem,
    "memory": _build_memory,
    "redis": _build_redis,
    "sqlalchemy": _build_sqlalchemy,
}
