"""Every ``SESSION_*`` key: its type, its default and its validation."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import difflib
import math
import re
import typing as t
import warnings

from .code_runners import refuse_code_runner
from .envelope import parse_encryption_key
from .errors import ConfigurationError
from .session import MAX_DURATION

if t.TYPE_CHECKING:
    from flask import Flask

_T = t.TypeVar("_T")
_Parser = cabc.Callable[[t.Any], t.Any]

_FLASK_KEYS = frozenset(
    {
        "SESSION_COOKIE_NAME",
        "SESSION_COOKIE_DOMAIN",
        "SESSION_COOKIE_PATH",
        "SESSION_COOKIE_HTTPONLY",
        "SESSION_COOKIE_SECURE",
        "SESSION_COOKIE_PARTITIONED",
        "SESSION_COOKIE_SAMESITE",
        "SESSION_REFRESH_EACH_REQUEST",
    }
)
# Keys of other extensions, which are nobody's spelling mistakes.
_FOREIGN_KEYS = frozenset(
    {
        "SESSION_PROTECTION",  # Flask-Login, and from here on Flask-Session
        "SESSION_TYPE",
        "SESSION_USE_SIGNER",
        "SESSION_ID_LENGTH",
        "SESSION_SID_LENGTH",
        "SESSION_SERIALIZATION_FORMAT",
        "SESSION_CLEANUP_N_REQUESTS",
        "SESSION_FILE_DIR",
        "SESSION_FILE_MODE",
        "SESSION_FILE_THRESHOLD",
        "SESSION_MEMCACHED",
        "SESSION_MONGODB",
        "SESSION_MONGODB_DB",
        "SESSION_MONGODB_COLLECT",
        "SESSION_DYNAMODB",
        "SESSION_DYNAMODB_TABLE",
        "SESSION_DYNAMODB_TABLE_NAME",
        "SESSION_DYNAMODB_KEY_ID",
        "SESSION_DYNAMODB_SECRET",
        "SESSION_DYNAMODB_REGION",
        "SESSION_DYNAMODB_ENDPOINT_URL",
        "SESSION_DYNAMODB_TABLE_EXISTS",
        "SESSION_SQLALCHEMY_SEQUENCE",
        "SESSION_PEEWEE_TABLE",
    }
)


#: What :data:`SESSION_MIGRATE_FROM` can name.
MIGRATION_SOURCES = ("cookie", "flask-session")

# Who sets one of these has a backend in mind.
_BACKEND_OF_KEY = {
    "SESSION_REDIS": "redis",
    "SESSION_REDIS_URL": "redis",
    "SESSION_SQLALCHEMY": "sqlalchemy",
    "SESSION_SQLALCHEMY_URL": "sqlalchemy",
    "SESSION_CACHELIB": "cachelib",
}


_TOKEN = re.compile(r"[\w!#$%&'*+\-.^`|~]+", re.ASCII)
_NO_ATTRIBUTE = re.compile(r"[;\x00-\x1f\x7f]")


class ConfigurationWarning(UserWarning):
    """Something in the configuration is probably not what was meant."""


class _Invalid(Exception):
    """A parser refused a value; the text says what it expects."""


def _shown(key: str, value: object) -> str:
    """Say what was given, unless it could be a secret."""
    if any(word in key for word in ("SECRET", "ENCRYPTION", "URL")):
        return f"a {type(value).__name__} that is not shown"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _boolean(value: t.Any) -> bool:
    if not isinstance(value, bool):
        raise _Invalid("True or False")
    return value


def _text(value: t.Any) -> str:
    if not isinstance(value, str) or not value:
        raise _Invalid("a str that is not empty")
    return value


def _identifier(value: t.Any) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z_]\w{0,62}", value) is None:
        raise _Invalid("a name of letters, digits and underscores")
    return value


def _prefix(value: t.Any) -> str:
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise _Invalid("a str of at most 100 printable characters")
    return value


def _path(value: t.Any) -> str:
    try:
        path = value.__fspath__() if hasattr(value, "__fspath__") else value
    except TypeError as error:
        raise _Invalid("the path of a folder") from error
    if not isinstance(path, str) or not path or "\0" in path:
        raise _Invalid("the path of a folder, as a str or pathlib.Path")
    return path


def _seconds(value: t.Any, what: str, *, zero: bool = False) -> float:
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value < 0
        or value > MAX_DURATION
        or math.isnan(value)  # not of any int: that may be too large to ask
        or (value == 0 and not zero)
    ):
        kind = "timedelta or number of seconds"
        raise _Invalid(f"a {kind}, 0 {what}" if zero else f"a positive {kind}{what}")
    return float(value)


def _duration(value: t.Any) -> float:
    return _seconds(value, "")


def _duration_or(zero: str) -> _Parser:
    return lambda value: _seconds(value, zero, zero=True)


def _duration_or_none(none: str) -> _Parser:
    def parse(value: t.Any) -> float | None:
        return None if value is None else _seconds(value, f", or None {none}")

    return parse


def _positive(value: t.Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _Invalid("a positive int")
    return value


def _choice(*allowed: str) -> _Parser:
    def parse(value: t.Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            names = " or ".join(repr(name) for name in allowed)
            raise _Invalid(names + suggest(value, allowed, end=""))
        return value

    return parse


def _callable(value: t.Any) -> cabc.Callable[[], str] | None:
    if value is not None and not callable(value):
        raise _Invalid("a function without arguments that returns a new id, or None")
    return t.cast("cabc.Callable[[], str] | None", value)


def _secrets(value: t.Any) -> tuple[str | bytes, ...]:
    values: cabc.Sequence[t.Any]
    if value is None:
        return ()
    values = (value,) if isinstance(value, (str, bytes)) else value
    if (
        not isinstance(values, (list, tuple))
        or not values
        or not all(isinstance(item, (str, bytes)) and item for item in values)
    ):
        raise _Invalid("a str or bytes, or a list of them with the newest first")
    return tuple(values)


def _encryption_keys(value: t.Any) -> tuple[bytes, ...]:
    if value is None:
        return ()
    values: t.Any = [value] if isinstance(value, (str, bytes)) else value
    if not isinstance(values, (list, tuple)) or not values:
        raise _Invalid("one key, or a list of keys with the newest first")
    try:
        return tuple(
            parse_encryption_key(item) for item in t.cast("list[t.Any]", values)
        )
    except ValueError as error:
        raise _Invalid(
            "32 bytes or their URL-safe base64, as Fernet.generate_key() of the"
            " cryptography package gives, or a list of such keys with the newest first"
        ) from error


def _serializer(value: t.Any) -> t.Any:
    refuse_code_runner(value)
    if isinstance(value, str):
        return _choice("msgpack", "json")(value)
    if not callable(getattr(value, "dumps", None)) or not callable(
        getattr(value, "loads", None)
    ):
        raise _Invalid(
            "'msgpack', 'json', or an object with dumps(dict) -> bytes and"
            " loads(bytes) -> dict"
        )
    return value


def _track(value: t.Any) -> tuple[str, ...]:
    allowed = ("user_agent", "remote_addr")
    if (
        isinstance(value, str)
        or not isinstance(value, (list, tuple, set, frozenset))
        or not all(item in allowed for item in t.cast("cabc.Iterable[t.Any]", value))
    ):
        raise _Invalid("a tuple of 'user_agent' and 'remote_addr', or ()")
    names = t.cast("cabc.Collection[str]", value)
    return tuple(name for name in allowed if name in names)


def _sources(value: t.Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = (value,) if isinstance(value, str) else value
    if (
        not isinstance(values, (list, tuple))
        or not values
        or not all(
            name in MIGRATION_SOURCES for name in t.cast("cabc.Iterable[t.Any]", values)
        )
    ):
        names = " or ".join(repr(name) for name in MIGRATION_SOURCES)
        raise _Invalid(
            f"{names}, or a list of them" + suggest(value, MIGRATION_SOURCES, end="")
        )
    return tuple(name for name in MIGRATION_SOURCES if name in values)


def _moment(value: t.Any) -> dt.datetime:
    moment = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            # Python 3.10 does not know the Z.
            moment = dt.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))
            if re.fullmatch(r"\d{4}-?(\d\d-?\d\d|W\d\d-?\d)", value):
                moment = moment.date()
    if isinstance(moment, dt.date) and not isinstance(moment, dt.datetime):
        if moment == dt.date.max:
            raise _Invalid("a date that has a next day")
        # The whole day counts.
        moment = dt.datetime.combine(
            moment + dt.timedelta(days=1), dt.time(), dt.timezone.utc
        )
    if not isinstance(moment, dt.datetime) or moment.utcoffset() is None:
        raise _Invalid(
            "a date, a datetime with a time zone, or either as a str such as"
            " '2030-01-31' or '2030-01-31T12:00:00+00:00'"
        )
    try:
        return moment.astimezone(dt.timezone.utc)
    except OverflowError as error:
        raise _Invalid("a moment that UTC can express") from error


def _anything(value: t.Any) -> t.Any:
    return value


def _optional(parser: _Parser) -> _Parser:
    return lambda value: None if value is None else parser(value)


def _option(default: _T, parser: _Parser) -> _T:
    """Declare an option: the key is ``SESSION_`` and the field's name in capitals."""
    return dataclasses.field(default=default, metadata={"parser": parser})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """The settings of one application; durations in seconds, sizes in bytes.

    Read once, by :meth:`.ServerSession.init_app`. Not here, because they are read at
    each response: ``SECRET_KEY`` and its fallbacks, ``PERMANENT_SESSION_LIFETIME``,
    ``SESSION_REFRESH_EACH_REQUEST`` and the cookie's attributes, which are Flask's.
    """

    # Where sessions are kept
    backend: t.Any = _option("filesystem", _anything)
    key_prefix: str = _option("session:", _prefix)
    serializer: t.Any = _option("msgpack", _serializer)
    encryption_key: tuple[bytes, ...] = _option((), _encryption_keys)
    max_size: int = _option(1024 * 1024, _positive)
    filesystem_path: str | None = _option(None, _optional(_path))
    redis: t.Any = _option(None, _anything)
    redis_url: str | None = _option(None, _optional(_text))
    sqlalchemy: t.Any = _option(None, _anything)
    sqlalchemy_url: t.Any = _option(None, _anything)
    sqlalchemy_bind_key: str | None = _option(None, _optional(_text))
    sqlalchemy_table: str = _option("sessions", _identifier)
    sqlalchemy_schema: str | None = _option(None, _optional(_identifier))
    sqlalchemy_metadata: t.Any = _option(None, _anything)
    sqlalchemy_create_table: bool = _option(True, _boolean)
    cachelib: t.Any = _option(None, _anything)

    # The cookie and the id
    secret: tuple[str | bytes, ...] = _option((), _secrets)
    id_generator: cabc.Callable[[], str] | None = _option(None, _callable)

    # When a session is stored
    resave: bool = _option(False, _boolean)
    save_uninitialized: bool = _option(False, _boolean)
    save_on_error: bool = _option(True, _boolean)
    permanent: bool = _option(False, _boolean)
    conflict: str = _option("merge", _choice("merge", "overwrite", "raise"))
    on_lost: str = _option("drop", _choice("drop", "raise"))
    on_backend_error: str = _option("raise", _choice("raise", "ignore"))

    # How long it lives
    idle_timeout: float | None = _option(
        None, _duration_or_none("for PERMANENT_SESSION_LIFETIME")
    )
    absolute_timeout: float | None = _option(
        None, _duration_or_none("for no absolute timeout")
    )
    renewal_interval: float | None = _option(None, _duration_or_none("for no renewal"))
    rotation_grace: float = _option(10.0, _duration_or("for none"))
    touch_interval: float = _option(60.0, _duration_or("to record every access"))
    cleanup_interval: float = _option(300.0, _duration_or("for no automatic cleanup"))
    cleanup_batch: int = _option(500, _positive)

    # What is taken over
    migrate_from: tuple[str, ...] = _option((), _sources)
    migrate_until: dt.datetime | None = _option(None, _optional(_moment))
    migrate_store: t.Any = _option(None, _anything)
    migrate_table: str = _option("sessions", _identifier)

    # Whom it belongs to
    user_key: str = _option("_user_id", _text)
    regenerate_on_login: bool = _option(True, _boolean)
    max_per_user: int | None = _option(None, _optional(_positive))
    track: tuple[str, ...] = _option((), _track)


#: Configuration key to field name.
KEYS: cabc.Mapping[str, str] = {
    f"SESSION_{field.name.upper()}": field.name
    for field in dataclasses.fields(SessionConfig)
}


class Problems:
    """Collects what is wrong with a configuration, to report all of it at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, option: str, message: str) -> None:
        """Note a problem. The message is a full sentence that names the option."""
        self._found.append((option, message))

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self) -> ConfigurationError:
        """Give the exception that names all that was found."""
        option = self._found[0][0]
        if len(self._found) == 1:
            return ConfigurationError(self._found[0][1], option)
        lines = "".join(f"\n- {message}" for _, message in self._found)
        return ConfigurationError(
            f"{len(self._found)} settings are wrong:{lines}", option
        )


def read_config(app: Flask, problems: Problems) -> SessionConfig:
    """Read and validate all keys of an application.

    :param problems: Gets what is wrong; a wrong value reads as its default, and the
        caller has to raise :meth:`Problems.error` then.
    """
    given = t.cast("dict[str, t.Any]", app.config)
    values: dict[str, t.Any] = {}
    for field in dataclasses.fields(SessionConfig):
        key = f"SESSION_{field.name.upper()}"
        if key not in given:
            continue
        value = given[key]
        try:
            values[field.name] = field.metadata["parser"](value)
        except _Invalid as error:
            expected = str(error)
            end = "" if expected.endswith("?") else "."
            problems.add(
                key, f"{key!r} is {_shown(key, value)}; expected {expected}{end}"
            )
        except ConfigurationError as error:
            problems.add(key, str(error))
    _check_migration(given, values.get("migrate_from", ()), problems)
    _check_secret(given, problems)
    _check_lifetime(given, problems)
    _check_cookie(given, problems)
    _warn_of_misspellings(given)
    return SessionConfig(**values)


def _check_cookie(config: cabc.Mapping[str, t.Any], problems: Problems) -> None:
    secure = config["SESSION_COOKIE_SECURE"]
    samesite = config["SESSION_COOKIE_SAMESITE"]
    partitioned = config["SESSION_COOKIE_PARTITIONED"]
    name = config["SESSION_COOKIE_NAME"]
    if secure not in (True, False, "auto"):
        problems.add(
            "SESSION_COOKIE_SECURE",
            f"'SESSION_COOKIE_SECURE' is {secure!r}; expected True, False or 'auto'.",
        )
    if samesite is not None and (
        not isinstance(samesite, str)
        or samesite.title() not in ("Strict", "Lax", "None", "Auto")
    ):
        problems.add(
            "SESSION_COOKIE_SAMESITE",
            f"'SESSION_COOKIE_SAMESITE' is {samesite!r}; expected 'Strict', 'Lax',"
            " 'None', 'auto' or None.",
        )
    elif (
        isinstance(samesite, str)
        and samesite.title() == "None"
        and not (secure is True or partitioned)
    ):
        problems.add(
            "SESSION_COOKIE_SAMESITE",
            "'SESSION_COOKIE_SAMESITE' is 'None', which browsers accept only from a"
            " Secure cookie: set 'SESSION_COOKIE_SECURE' to True.",
        )
    for key in (
        "SESSION_COOKIE_HTTPONLY",
        "SESSION_COOKIE_PARTITIONED",
        "SESSION_REFRESH_EACH_REQUEST",
    ):
        if config[key] not in (True, False):
            problems.add(key, f"{key!r} is {config[key]!r}; expected True or False.")
    for key in ("SESSION_COOKIE_DOMAIN", "SESSION_COOKIE_PATH"):
        value = config[key]
        # Flask takes any false value for none.
        if value and (not isinstance(value, str) or _NO_ATTRIBUTE.search(value)):
            problems.add(
                key,
                f"{key!r} is {value!r}; expected a str without semicolons and control"
                " characters, or None.",
            )
    # RFC 6265, section 4.1.1: the name is a token.
    if not isinstance(name, str) or _TOKEN.fullmatch(name) is None:
        problems.add(
            "SESSION_COOKIE_NAME",
            f"'SESSION_COOKIE_NAME' is {name!r}; expected a str of letters, digits and"
            " any of !#$%&'*+-.^_`|~.",
        )
        return
    # RFC 6265bis, section 4.1.3: browsers ignore such a cookie otherwise.
    is_host = name.lower().startswith("__host-")
    if not (is_host or name.lower().startswith("__secure-")):
        return
    needs: list[str] = []
    if secure is not True:
        needs.append("'SESSION_COOKIE_SECURE' to be True")
    if is_host and config["SESSION_COOKIE_DOMAIN"]:
        needs.append("'SESSION_COOKIE_DOMAIN' to be None")
    if is_host and (config["SESSION_COOKIE_PATH"] or config["APPLICATION_ROOT"]) != "/":
        needs.append("'SESSION_COOKIE_PATH' to be '/'")
    if needs:
        problems.add(
            "SESSION_COOKIE_NAME",
            f"'SESSION_COOKIE_NAME' is {name!r}, which needs {' and '.join(needs)}:"
            " browsers ignore the cookie otherwise.",
        )


def _check_migration(
    config: cabc.Mapping[str, t.Any],
    sources: cabc.Collection[str],
    problems: Problems,
) -> None:
    if sources and config.get("SESSION_MIGRATE_UNTIL") is None:
        problems.add(
            "SESSION_MIGRATE_UNTIL",
            f"'SESSION_MIGRATE_FROM' is {config['SESSION_MIGRATE_FROM']!r}, which needs"
            " 'SESSION_MIGRATE_UNTIL': the day after which nobody needs the old"
            " sessions any more, such as '2030-01-31'.",
        )
    if "flask-session" in sources and not isinstance(
        config.get("SESSION_USE_SIGNER", False), bool
    ):
        problems.add(
            "SESSION_USE_SIGNER",
            f"'SESSION_USE_SIGNER' is {config['SESSION_USE_SIGNER']!r}; expected what"
            " Flask-Session had: True or False.",
        )


def _check_secret(config: cabc.Mapping[str, t.Any], problems: Problems) -> None:
    secret = config["SECRET_KEY"]
    if secret is not None and not isinstance(secret, (str, bytes)):
        problems.add(
            "SECRET_KEY",
            f"'SECRET_KEY' is {_shown('SECRET', secret)}; expected a str or bytes.",
        )
    fallbacks = config["SECRET_KEY_FALLBACKS"]
    if fallbacks is not None and fallbacks not in ([], ()):
        try:
            # Of a str each letter would be a secret.
            if isinstance(fallbacks, (str, bytes)):
                raise _Invalid
            _secrets(fallbacks)
        except _Invalid:
            problems.add(
                "SECRET_KEY_FALLBACKS",
                f"'SECRET_KEY_FALLBACKS' is {_shown('SECRET', fallbacks)}; expected a"
                " list of str or bytes, or None.",
            )


def _check_lifetime(config: cabc.Mapping[str, t.Any], problems: Problems) -> None:
    lifetime = config["PERMANENT_SESSION_LIFETIME"]
    try:
        _duration(lifetime)
    except _Invalid as error:
        problems.add(
            "PERMANENT_SESSION_LIFETIME",
            f"'PERMANENT_SESSION_LIFETIME' is {lifetime!r}; expected {error}.",
        )


def _warn_of_misspellings(config: cabc.Mapping[str, t.Any]) -> None:
    known = {*KEYS, *_FLASK_KEYS}
    for key, backend in _BACKEND_OF_KEY.items():
        if config.get(key) is not None and "SESSION_BACKEND" not in config:
            warnings.warn(
                f"{key!r} has no effect, because 'SESSION_BACKEND' is not set and"
                f" therefore 'filesystem'. Set it to {backend!r}.",
                ConfigurationWarning,
                stacklevel=5,
            )
    for key in config:
        if not key.startswith("SESSION_") or key in known:
            continue
        if key == "SESSION_TYPE" and "SESSION_BACKEND" not in config:
            warnings.warn(
                "'SESSION_TYPE' is a key of Flask-Session and has no effect here. Use"
                " 'SESSION_BACKEND' instead, which is 'filesystem' when not set.",
                ConfigurationWarning,
                stacklevel=5,
            )
        elif key not in _FOREIGN_KEYS and (hint := suggest(key, known, end="")):
            warnings.warn(
                f"{key!r} is no configuration key{hint}",
                ConfigurationWarning,
                stacklevel=5,
            )


def suggest(value: object, allowed: cabc.Iterable[str], end: str = ".") -> str:
    """End a sentence about a wrong value, with the nearest right one if any."""
    matches = difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=0.75)
    return f". Did you mean {matches[0]!r}?" if matches else end
