"""Every ``SESSION_*`` key: its type, its default and its validation."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import functools
import inspect
import math
import os
import re
import typing as t

from .encryption import parse_encryption_key
from .errors import ConfigurationError
from .serializers.code_runners import refuse_code_runner
from .serializers.wording import described
from .suggestions import suggest
from .suggestions import suggest_value
from .users import UserKey

if t.TYPE_CHECKING:
    from flask import Flask

#: The longest duration that dates and cookies can express, in seconds: 1000 years.
MAX_DURATION = 1000 * 365.25 * 86400

_URL_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[\w.~-]+)+", re.ASCII)
_HOST_PATTERN = re.compile(r"\*|(?:\*\.)?[a-z\d-]+(?:\.[a-z\d-]+)*(?::\d{1,5})?")

_T = t.TypeVar("_T")
_Parser = cabc.Callable[[t.Any], t.Any]

#: What :data:`SESSION_MIGRATE_FROM` can name.
MIGRATION_SOURCES = ("cookie", "flask-session")
# What the keys begin with that say where sessions are kept, and how.
_PLACES = ("backend", "cachelib", "encryption", "filesystem", "key", "redis", "sqlalch")


class ConfigurationWarning(UserWarning):
    """Something in the configuration is probably not what was meant."""


class InvalidValueError(Exception):
    """A parser refused a value; the text says what is expected."""


def _may_be_secret(key: str) -> bool:
    return any(word in key for word in ("SECRET", "ENCRYPTION", "URL"))


def shown(key: str, value: object) -> str:
    """Return a value for a message, unless it could be a secret."""
    if _may_be_secret(key):
        return f"{described(value)} that is not shown"
    if isinstance(value, cabc.Mapping):
        return "a former configuration that is not shown"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def correction(
    key: str, value: object, is_accepted: cabc.Callable[[t.Any], bool]
) -> str:
    """Return the end of a message about a value, which tells what is meant by it."""
    return "" if _may_be_secret(key) else suggest_value(value, is_accepted)


def _boolean(value: t.Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError("True or False")
    return value


def _text(value: t.Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidValueError("a str that is not empty")
    return value


def _identifier(value: t.Any) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z_]\w{0,62}", value) is None:
        raise InvalidValueError("a name of letters, digits and underscores")
    return value


def _name(value: t.Any) -> str:
    # Any that the database takes: SQLAlchemy quotes what needs quotes.
    is_name = isinstance(value, str) and value.isprintable() and value == value.strip()
    if not is_name or not 0 < len(value) < 64:
        raise InvalidValueError("a name of 1 to 63 printable characters")
    return t.cast(str, value)


def _prefix(value: t.Any) -> str:
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise InvalidValueError("a str of at most 100 printable characters")
    return value


def _path(value: t.Any) -> str:
    try:
        path = value.__fspath__() if hasattr(value, "__fspath__") else value
    except TypeError as error:
        raise InvalidValueError("the path of a folder") from error
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidValueError("the path of a folder, as a str or pathlib.Path")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InvalidValueError(
            "the path of a folder; that user has no home folder here, and a folder of"
            " this name is './~…'"
        )
    return expanded


def _seconds(value: t.Any, what: str, *, zero: bool = False) -> float:
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value < 0
        or value > MAX_DURATION
        or math.isnan(value)  # last: it raises for an int that is too large
        or (value == 0 and not zero)
    ):
        kind = "timedelta or number of seconds"
        raise InvalidValueError(
            f"a {kind}, 0 {what}" if zero else f"a positive {kind}{what}"
        )
    return float(value)


def parse_duration(value: t.Any) -> float:
    """Return a positive duration in seconds."""
    return _seconds(value, "")


def _duration_or(zero: str) -> _Parser:
    return lambda value: _seconds(value, zero, zero=True)


def _duration_or_none(none: str) -> _Parser:
    def parse(value: t.Any) -> float | None:
        return None if value is None else _seconds(value, f", or None {none}")

    return parse


def _positive(value: t.Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidValueError("a positive int")
    return value


def _choice(*allowed: str) -> _Parser:
    def parse(value: t.Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            names = " or ".join(repr(name) for name in allowed)
            raise InvalidValueError(names + suggest(value, allowed, end=""))
        return value

    return parse


def _callable(value: t.Any) -> cabc.Callable[[], str] | None:
    if value is not None and not callable(value):
        raise InvalidValueError(
            "a function without arguments that returns a new id, or None"
        )
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
        raise InvalidValueError(
            "a str or bytes, or a list of them with the newest first"
        )
    return tuple(values)


def _encryption_keys(value: t.Any) -> tuple[bytes, ...]:
    if value is None:
        return ()
    values: t.Any = [value] if isinstance(value, (str, bytes)) else value
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidValueError("one key, or a list of keys with the newest first")
    try:
        return tuple(
            parse_encryption_key(item) for item in t.cast("list[t.Any]", values)
        )
    except ValueError as error:
        raise InvalidValueError(
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
        raise InvalidValueError(
            "'msgpack', 'json', or an object with dumps(dict) -> bytes and"
            " loads(bytes) -> dict"
        )
    return value


def _user_key(value: t.Any) -> UserKey:
    keys: cabc.Sequence[t.Any] = (value,) if isinstance(value, str) else value
    if isinstance(keys, (list, tuple)):
        if keys and all(isinstance(key, str) and key for key in keys):
            return tuple(keys)
    elif callable(value) and not (
        isinstance(value, type) or inspect.iscoroutinefunction(value)
    ):
        return t.cast(UserKey, value)
    raise InvalidValueError(
        "a key of the session, a list of keys, or a function that is not async and"
        " takes the session and returns the user's id or None"
    )


def _track(value: t.Any) -> tuple[str, ...]:
    allowed = ("user_agent", "remote_addr")
    if (
        isinstance(value, str)
        or not isinstance(value, (list, tuple, set, frozenset))
        or not all(item in allowed for item in t.cast("cabc.Iterable[t.Any]", value))
    ):
        raise InvalidValueError("a tuple of 'user_agent' and 'remote_addr', or ()")
    names = t.cast("cabc.Collection[str]", value)
    return tuple(name for name in allowed if name in names)


class FormerSettings(dict[str, t.Any]):
    """A former configuration, of :data:`SESSION_MIGRATE_FROM`: fields by names."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {[*self]}>"  # a value may be a secret

    def completed(self) -> dict[str, t.Any]:
        """Return the fields in which the former configuration differs.

        Of a server that is given as an object and by its URL, only one is meant.
        """
        pairs = {"redis": "redis_url", "sqlalchemy": "sqlalchemy_url"}
        pairs |= {url: name for name, url in pairs.items()}
        return {pairs[name]: None for name in self if name in pairs} | self


def _parse_former(given: cabc.Mapping[str, t.Any]) -> FormerSettings:
    fields = {
        f"SESSION_{field.name.upper()}": field
        for field in dataclasses.fields(SessionConfig)
        if field.name.startswith(_PLACES)
    }
    found = FormerSettings()
    for key, value in given.items():
        if (field := fields.get(key)) is None:
            end = suggest(key, fields, end="")
            raise InvalidValueError(
                f"the keys that say where sessions were kept, and {key!r} is not one of"
                f" them{end}"
            )
        try:
            found[field.name] = field.metadata["parser"](value)
        except InvalidValueError as error:
            raise InvalidValueError(f"as its {key!r} {error}") from error
    if not found:
        raise InvalidValueError("at least one key that has changed")
    return found


def parse_sources(value: t.Any) -> tuple[str, ...] | FormerSettings:
    """Return the names in a value of :data:`SESSION_MIGRATE_FROM`.

    Or the former configuration that it is.
    """
    if value is None:
        return ()
    if isinstance(value, cabc.Mapping):
        return _parse_former(t.cast("cabc.Mapping[str, t.Any]", value))
    values = (value,) if isinstance(value, str) else value
    if (
        not isinstance(values, (list, tuple))
        or not values
        or not all(
            name in MIGRATION_SOURCES for name in t.cast("cabc.Iterable[t.Any]", values)
        )
    ):
        names = " or ".join(repr(name) for name in MIGRATION_SOURCES)
        raise InvalidValueError(
            f"{names}, a list of them, or a dict of the keys that have changed"
            + suggest(value, MIGRATION_SOURCES, end="")
        )
    return tuple(name for name in MIGRATION_SOURCES if name in values)


def _moment(value: t.Any) -> dt.datetime:
    moment = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            # Python 3.10 does not accept the Z.
            moment = dt.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))
            if re.fullmatch(r"\d{4}-?(\d\d-?\d\d|W\d\d-?\d)", value):
                moment = moment.date()
    if isinstance(moment, dt.date) and not isinstance(moment, dt.datetime):
        if moment == dt.date.max:
            raise InvalidValueError("a date that has a next day")
        # Until the end of that day.
        moment = dt.datetime.combine(
            moment + dt.timedelta(days=1), dt.time(), dt.timezone.utc
        )
    if not isinstance(moment, dt.datetime) or moment.utcoffset() is None:
        raise InvalidValueError(
            "a date, a datetime with a time zone, or either as a str such as"
            " '2030-01-31' or '2030-01-31T12:00:00+00:00'"
        )
    try:
        return moment.astimezone(dt.timezone.utc)
    except OverflowError as error:
        raise InvalidValueError("a moment that UTC can express") from error


def _url_path(value: t.Any) -> str:
    # Nothing that means anything in a header, or that a proxy could read otherwise.
    if not isinstance(value, str) or _URL_PATH.fullmatch(value) is None:
        raise InvalidValueError(
            "a path such as '/_session/device', of letters, digits and any of -._~"
        )
    return value


def _initiators(value: t.Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(item, str) and _HOST_PATTERN.fullmatch(item)
        for item in t.cast("cabc.Iterable[object]", value)
    ):
        raise InvalidValueError(
            "a tuple of hosts such as 'example.com' or '*.example.com', or ()"
        )
    return tuple(t.cast("cabc.Iterable[str]", value))


def _anything(value: t.Any) -> t.Any:
    return value


def _optional(parser: _Parser) -> _Parser:
    return lambda value: None if value is None else parser(value)


def _option(default: _T, parser: _Parser, *, is_shown: bool = True) -> _T:
    """Declare an option: the key is ``SESSION_`` and the field's name in capitals.

    :param is_shown: Whether its value can hold no secret.
    """
    return dataclasses.field(
        default=default, metadata={"parser": parser}, repr=is_shown
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """The settings of one application; durations in seconds, sizes in bytes.

    Read once, by :meth:`.ServerSession.init_app`. Flask's own settings are missing here
    because they are read at each response: ``SECRET_KEY`` and its fallbacks,
    ``PERMANENT_SESSION_LIFETIME``, ``SESSION_REFRESH_EACH_REQUEST`` and the cookie's
    attributes.
    """

    # Where sessions are kept
    backend: t.Any = _option("filesystem", _anything, is_shown=False)
    key_prefix: str = _option("session:", _prefix)
    serializer: t.Any = _option("msgpack", _serializer, is_shown=False)
    encryption_key: tuple[bytes, ...] = _option((), _encryption_keys, is_shown=False)
    max_size: int = _option(1024 * 1024, _positive)
    filesystem_path: str | None = _option(None, _optional(_path))
    filesystem_group_access: bool = _option(False, _boolean)
    redis: t.Any = _option(None, _anything, is_shown=False)
    redis_url: str | None = _option(None, _optional(_text), is_shown=False)
    sqlalchemy: t.Any = _option(None, _anything, is_shown=False)
    sqlalchemy_url: t.Any = _option(None, _anything, is_shown=False)
    sqlalchemy_bind_key: str | None = _option(None, _optional(_text))
    sqlalchemy_table: str = _option("server_sessions", _identifier)
    sqlalchemy_schema: str | None = _option(None, _optional(_name))
    sqlalchemy_metadata: t.Any = _option(None, _anything)
    sqlalchemy_create_table: bool = _option(True, _boolean)
    cachelib: t.Any = _option(None, _anything, is_shown=False)

    # The cookie and the id
    secret: tuple[str | bytes, ...] = _option((), _secrets, is_shown=False)
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
    migrate_from: tuple[str, ...] | FormerSettings = _option((), parse_sources)
    migrate_until: dt.datetime | None = _option(None, _optional(_moment))
    migrate_store: t.Any = _option(None, _anything, is_shown=False)
    migrate_table: str = _option("sessions", _identifier)

    # Whom it belongs to
    user_key: UserKey = _option(("_user_id", "user_id"), _user_key)
    regenerate_on_login: bool = _option(True, _boolean)
    max_per_user: int | None = _option(None, _optional(_positive))
    track: tuple[str, ...] = _option((), _track)

    # Whether it is bound to a key of the browser's device
    device_bound: bool = _option(False, _boolean)
    device_bound_lifetime: float = _option(600.0, parse_duration)
    device_bound_path: str = _option("/_session/device", _url_path)
    device_bound_initiators: tuple[str, ...] = _option((), _initiators)


#: Configuration key to field name.
KEYS: cabc.Mapping[str, str] = {
    f"SESSION_{field.name.upper()}": field.name
    for field in dataclasses.fields(SessionConfig)
}


class Problems:
    """Collects the mistakes in a configuration, to report all of them at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, option: str, message: str) -> None:
        """Note a problem. The message is a full sentence that names the option."""
        self._found.append((option, message))

    def __bool__(self) -> bool:
        return bool(self._found)

    def error(self) -> ConfigurationError:
        """Return the exception that names all of them."""
        option = self._found[0][0]
        if len(self._found) == 1:
            return ConfigurationError(self._found[0][1], option)
        lines = "".join(f"\n- {message}" for _, message in self._found)
        return ConfigurationError(
            f"{len(self._found)} settings are wrong:{lines}", option
        )


def read_config(app: Flask, problems: Problems) -> SessionConfig:
    """Read the ``SESSION_*`` keys of an application, and validate each by itself.

    :param problems: Collects the mistakes. A wrong value is read as its default; the
        caller must raise :meth:`Problems.error`.
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
        except InvalidValueError as error:
            text = f"{key!r} is {shown(key, value)}; expected {error}"
            if not text.endswith("?"):
                is_taken = functools.partial(_is_taken, field.metadata["parser"])
                text += f".{correction(key, value, is_taken)}"
            problems.add(key, text)
        except ConfigurationError as error:
            problems.add(key, str(error))
    return SessionConfig(**values)


def _is_taken(parser: _Parser, value: t.Any) -> bool:
    try:
        parser(value)
    except InvalidValueError:
        return False
    return True


def find_late_keys(given: cabc.Mapping[str, t.Any], config: SessionConfig) -> list[str]:
    """Return the keys whose value in ``app.config`` is not the one in force.

    They were set, changed or removed after :func:`read_config`.
    """
    return [
        f"SESSION_{field.name.upper()}"
        for field in dataclasses.fields(config)
        if not _is_in_force(given, field, getattr(config, field.name))
    ]


def _is_in_force(
    given: cabc.Mapping[str, t.Any], field: dataclasses.Field[t.Any], value: t.Any
) -> bool:
    key = f"SESSION_{field.name.upper()}"
    if key not in given:
        return value is field.default or bool(value == field.default)
    try:
        now = field.metadata["parser"](given[key])
        return now is value or bool(now == value)
    except Exception:  # noqa: BLE001 - refused, or an object with a == of its own
        return False
