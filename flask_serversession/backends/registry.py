"""The kinds of backends, and how the configuration makes one."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import importlib
import importlib.metadata
import inspect
import os
import typing as t

from ..config import SessionConfig
from ..errors import ConfigurationError
from ..hiding import forget_frames
from ..hiding import hide
from ..serializers.wording import described
from ..suggestions import suggest_driver
from ..suggestions import suggest_kind
from ..suggestions import suggest_place
from .base import Backend

if t.TYPE_CHECKING:
    from .redis import RedisBackend
    from .sqlalchemy import SQLAlchemyBackend

#: Entry points of this group name third-party backends.
ENTRY_POINT_GROUP = "flask_serversession.backends"


@dataclasses.dataclass(frozen=True)
class BackendSettings:
    """What backends are built from.

    :param app_config: The whole configuration, for third-party backends.
    :param instance_path: The application's instance folder.
    :param sqlalchemy_engine: Finds engine and metadata of a Flask-SQLAlchemy object.
    """

    config: SessionConfig
    app_config: cabc.Mapping[str, t.Any] = dataclasses.field(repr=False)
    instance_path: str
    clock: cabc.Callable[[], float]
    sqlalchemy_engine: cabc.Callable[[t.Any, str | None], tuple[t.Any, t.Any]]


def build_backend(settings: BackendSettings) -> tuple[Backend, str | None]:
    """Return the configured backend, and something to warn of at start, if any.

    :raises ConfigurationError: if there is none of that name, or it cannot be built.
    """
    chosen = hide(settings.config.backend)  # perhaps a URL
    if isinstance(chosen, Backend):
        return chosen, None
    if not isinstance(chosen, str) or "://" in chosen:
        raise _misplaced(chosen)
    if (kind := _KINDS.get(chosen)) is not None:
        backend = kind.build(settings)
        return backend, kind.warn(settings.config, backend) if kind.warn else None
    return _third_party(str(chosen), settings), None


# -- backends of others --------------------------------------------------------


def _third_party(name: str, settings: BackendSettings) -> Backend:
    key = "SESSION_BACKEND"
    try:
        found = _find(name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{key!r} is {name!r}, which cannot be imported: {error}.", key
        ) from error
    if found is None:
        raise _unknown(name)
    if isinstance(found, Backend):
        return found
    if not callable(found):
        raise ConfigurationError(
            f"{key!r} is {name!r}, which is neither a Backend nor makes one. Name a"
            " class, a function or an object.",
            key,
        )
    # A class that wants to be configured has from_config(mapping); others take nothing.
    make = getattr(found, "from_config", None)
    try:
        backend: t.Any = found() if make is None else make(settings.app_config)
    except TypeError as error:
        raise ConfigurationError(
            f"{key!r} is {name!r}, from which no backend can be made: {error}.", key
        ) from error
    if not isinstance(backend, Backend):
        raise ConfigurationError(
            f"{key!r} is {name!r}, which made a {type(backend).__name__} instead of a"
            " flask_serversession.backends.Backend.",
            key,
        )
    return backend


def _find(name: str) -> t.Any:
    """Return what ``package.module:Name`` or an entry point names; ``None`` if none."""
    if ":" not in name:
        points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
        return next(iter(points)).load() if points else None
    module_name, _, attribute = name.partition(":")
    found: t.Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


# -- our own -------------------------------------------------------------------


def _build_memory(settings: BackendSettings) -> Backend:
    from .memory import MemoryBackend

    return MemoryBackend(clock=settings.clock)


def _build_filesystem(settings: BackendSettings) -> Backend:
    from .filesystem import FilesystemBackend

    config = settings.config
    path = config.filesystem_path or os.path.join(settings.instance_path, "sessions")
    return FilesystemBackend(
        path,
        prefix=config.key_prefix,
        group_access=config.filesystem_group_access,
        clock=settings.clock,
    )


def _build_redis(settings: BackendSettings) -> Backend:
    config = settings.config
    key = _key_of_source("redis", config, "redis://localhost:6379/0")
    backend_class: type[RedisBackend] = _import("redis").RedisBackend
    options: dict[str, t.Any] = {"prefix": config.key_prefix, "clock": settings.clock}
    with _explained(key, lambda _: _not_installed("redis")):
        if config.redis_url is not None:
            return backend_class.from_url(config.redis_url, **options)
        backend_class.check_client(hide(config.redis))
        return backend_class(config.redis, **options)


def _build_sqlalchemy(settings: BackendSettings) -> Backend:
    config = settings.config
    key = _key_of_source("sqlalchemy", config, "sqlite:///sessions.db")
    backend_class: type[SQLAlchemyBackend] = _import("sqlalchemy").SQLAlchemyBackend
    metadata: t.Any = config.sqlalchemy_metadata
    if metadata is not None and not hasattr(metadata, "tables"):
        raise ConfigurationError(
            f"'SESSION_SQLALCHEMY_METADATA' is {metadata!r}; expected a"
            " sqlalchemy.MetaData or None.",
            "SESSION_SQLALCHEMY_METADATA",
        )
    options: dict[str, t.Any] = {
        "table_name": config.sqlalchemy_table,
        "schema": config.sqlalchemy_schema,
        "metadata": metadata,
        "create_table": config.sqlalchemy_create_table,
        "prefix": config.key_prefix,
        "clock": settings.clock,
    }
    source, bind_key = hide(config.sqlalchemy), config.sqlalchemy_bind_key
    with _explained(key, lambda error: _no_driver(key, error, config.sqlalchemy_url)):
        engine, its_metadata = settings.sqlalchemy_engine(source, bind_key)
        if bind_key is not None and engine is source:
            raise ConfigurationError(
                f"'SESSION_SQLALCHEMY_BIND_KEY' is {bind_key!r}, which has no effect"
                " without a Flask-SQLAlchemy object in 'SESSION_SQLALCHEMY'. Leave it"
                " out, or pass that object.",
                "SESSION_SQLALCHEMY_BIND_KEY",
            )
        if source is None:
            return backend_class.from_url(config.sqlalchemy_url, **options)
        if metadata is None:
            options["metadata"] = its_metadata
        return backend_class(engine, **options)


def _build_cachelib(settings: BackendSettings) -> Backend:
    from cachelib import BaseCache

    from .cachelib import CachelibBackend
    from .cachelib import keeps_nothing

    config = settings.config
    if not isinstance(config.cachelib, BaseCache):
        raise ConfigurationError(
            f"'SESSION_CACHELIB' is {described(config.cachelib)}; expected an"
            " instance of a cachelib cache, such as"
            " cachelib.FileSystemCache(path, threshold=0), because 'SESSION_BACKEND' is"
            " 'cachelib'.",
            "SESSION_CACHELIB",
        )
    if keeps_nothing(config.cachelib):
        raise ConfigurationError(
            f"'SESSION_CACHELIB' is a {type(config.cachelib).__name__}, which keeps"
            " nothing: every session is lost at the end of its request. Use another"
            " cache, or the 'memory' backend for tests.",
            "SESSION_CACHELIB",
        )
    return CachelibBackend(config.cachelib, clock=settings.clock)


def _warn_of_eviction(config: SessionConfig, backend: Backend) -> str | None:
    from .cachelib import eviction_warning

    return eviction_warning(config.cachelib)


def _warn_of_driver(config: SessionConfig, backend: Backend) -> str | None:
    return t.cast("SQLAlchemyBackend", backend).warning


class _Kind(t.NamedTuple):
    build: cabc.Callable[[BackendSettings], Backend]
    warn: cabc.Callable[[SessionConfig, Backend], str | None] | None = None


_KINDS: cabc.Mapping[str, _Kind] = {
    "cachelib": _Kind(_build_cachelib, _warn_of_eviction),
    "filesystem": _Kind(_build_filesystem),
    "memory": _Kind(_build_memory),
    "redis": _Kind(_build_redis),
    "sqlalchemy": _Kind(_build_sqlalchemy, _warn_of_driver),
}


def _import(kind: str) -> t.Any:
    """Return a backend's module, which is the only importer of its driver."""
    try:
        return importlib.import_module(f".{kind}", __package__)
    except ImportError as error:
        raise _not_installed(kind) from error


def _key_of_source(kind: str, config: SessionConfig, example: str) -> str:
    """Return the key that says where the sessions are, of the two that can."""
    key = f"SESSION_{kind.upper()}"
    has_object = getattr(config, kind) is not None
    has_url = getattr(config, f"{kind}_url") is not None
    if has_object is has_url:
        raise ConfigurationError(
            f"'SESSION_BACKEND' is {kind!r}, which needs exactly one of '{key}_URL'"
            f" (such as {example!r}) and {key!r}.",
            f"{key}_URL",
        )
    return f"{key}_URL" if has_url else key


# -- what can be wrong with any of them ----------------------------------------


@contextlib.contextmanager
def _explained(
    key: str, not_installed: cabc.Callable[[ImportError], ConfigurationError]
) -> t.Generator[None, None, None]:
    try:
        yield
    except ImportError as error:
        raise not_installed(error) from forget_frames(error)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError) and repr(error.option) in str(error):
            raise  # it names its key itself
        raise ConfigurationError(f"{key!r}: {error}", key) from forget_frames(error)


def _unknown(value: object) -> ConfigurationError:
    names = ", ".join(repr(name) for name in sorted(_KINDS))
    shown = repr(value) if isinstance(value, str) else described(value)
    return ConfigurationError(
        f"'SESSION_BACKEND' is {shown}; expected {names}, an entry point's name,"
        f" 'package.module:Name' or a Backend object{suggest_kind(value, _KINDS)}",
        "SESSION_BACKEND",
    )


def _misplaced(value: t.Any) -> ConfigurationError:
    """Return the error about what is not the name of a kind; never shows a URL."""
    if isinstance(value, str):
        shown, what = "a URL", "the URL"
    else:
        shown, what = described(value), "this object"
    place = suggest_place(value)
    if inspect.isclass(value):
        what = "an instance of this class"
    if inspect.isclass(value) and issubclass(value, Backend):
        remedy = "Make an instance of it."
    elif place is None:
        return _unknown(value)
    else:
        remedy = f"Set it to {place[0]!r}, and {place[1]!r} to {what}."
    return ConfigurationError(
        f"'SESSION_BACKEND' is {shown}. {remedy}", "SESSION_BACKEND"
    )


def _not_installed(kind: str) -> ConfigurationError:
    return ConfigurationError(
        f"The {kind!r} backend needs the {kind} package. Install it with:"
        f' pip install "flask-serversession[{kind}]"',
        "SESSION_BACKEND",
    )


def _no_driver(key: str, error: ImportError, url: object) -> ConfigurationError:
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        scheme = str(url).partition("://")[0]
        return ConfigurationError(
            f"{key!r} needs the database driver {error.name!r}, which is not installed."
            f" {suggest_driver(error.name, scheme)}",
            key,
        )
    return ConfigurationError(
        f"{key!r} needs a database driver that cannot be imported: {error}. Install"
        " what it needs, or name another one in the URL.",
        key,
    )
