"""What ``flask sessions info`` shows: the settings, the server, and what is wrong."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import os
import re
import shlex
import typing as t

import click

from ..backends.base import Capability
from ..backends.filesystem.files import name_of
from ..config import KEYS
from ..config import SessionConfig
from ..config import find_late_keys
from ..config_checks import FLASK_KEYS
from ..errors import BackendError
from ..operator import AppState
from ..trial import Step
from ..trial import did_answer

if t.TYPE_CHECKING:
    from flask import Flask

# Shorter secrets can be guessed.
_LEAST_SECRET = 16
_HOW_TO_MAKE_ONE = (
    "Make one with: python -c 'import secrets; print(secrets.token_hex())'"
)

_SECRETS = frozenset({"SESSION_SECRET", "SESSION_ENCRYPTION_KEY"})
# Backends whose settings begin with their name.
_CONFIGURABLE = frozenset({"cachelib", "filesystem", "redis", "sqlalchemy"})
# Parameters of a database's URL that hold no secret.
_HARMLESS = re.compile(
    r"(host|port|db|charset|sslmode|protocol|max_connections|(\w+_)?timeout"
    r"|(\w+_)?interval)=[\w.:,-]*"
)

#: Keys whose value is a number of seconds.
DURATIONS = frozenset(
    {
        "PERMANENT_SESSION_LIFETIME",
        *(
            f"SESSION_{field.name.upper()}"
            for field in dataclasses.fields(SessionConfig)
            if str(field.type).startswith("float")
        ),
    }
)


class Hidden(str):
    """Stands for a value that is not shown."""

    __slots__ = ()


class ShownSetting(t.NamedTuple):
    """A setting as the application uses it."""

    key: str
    #: Fit for JSON; durations in seconds; nothing secret.
    value: t.Any
    origin: t.Literal["app.config", "default"]
    #: Whether ``app.config`` has another value by now, which is not in force.
    is_late: bool = False


class Diagnosis(t.NamedTuple):
    """Something in the configuration that is probably not meant."""

    setting: str
    message: str


def folder_of(app: Flask, config: SessionConfig) -> str | None:
    """Return the folder that sessions are kept in; ``None`` if there is none."""
    if config.backend != "filesystem":
        return None
    return config.filesystem_path or os.path.join(app.instance_path, "sessions")


def given_to(folder: str) -> str:
    """Return whom a folder was given to that root has created; empty if nobody."""
    if not hasattr(os, "geteuid") or os.geteuid() == os.stat(folder).st_uid:
        return ""
    owner = name_of(os.stat(folder).st_uid)
    return f" and gave it to {owner}, who owns the folder above it"


def hint_at_root(folder: str | None) -> str:
    """Return what is wrong with a folder that only root can use; empty if nothing is.

    Root may write anywhere, so that all seems well to a command that root runs.

    :param folder: ``None`` for none.
    """
    if folder is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return ""
    if not os.path.isdir(folder) or os.stat(folder).st_uid != 0:
        return ""
    return (
        "belongs to root. If the server is run by another user, it cannot store"
        f" sessions there; give it to that user: chown -R USER {shlex.quote(folder)}"
    )


def write_hint(folder: str | None) -> None:
    """Say on stderr what is wrong with a folder that only root can use."""
    if hint := hint_at_root(folder):
        click.echo(f"The folder {hint}", err=True)


def mask_url(url: str) -> str:
    """Return a URL without anything that could be a secret.

    Masks everything before the last ``@``, including a user name, which is a token for
    some services, and the values of all but a few known parameters. Holds for passwords
    that are not quoted correctly, too.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***"
    if "@" in rest:
        rest = f"***@{rest.rpartition('@')[2]}"
    if "#" in rest:
        return f"{scheme}://***"
    rest, mark, query = rest.partition("?")
    parameters = [
        part if _HARMLESS.fullmatch(part) else f"{part.partition('=')[0]}=***"
        for part in query.split("&")
        if part
    ]
    return f"{scheme}://{rest}{mark}{'&'.join(parameters)}"


def shown_settings(app: Flask, state: AppState) -> cabc.Iterator[ShownSetting]:
    """Return the settings of sessions, without those of other backends.

    As they were read at the start, whatever ``app.config`` holds now.
    """
    given = t.cast("dict[str, t.Any]", app.config)
    fallbacks = given["SECRET_KEY_FALLBACKS"]
    for key, value in (
        ("SECRET_KEY", app.secret_key),
        ("SECRET_KEY_FALLBACKS", fallbacks),
    ):
        yield ShownSetting(key, _masked(value), "app.config" if value else "default")
    lifetime = app.permanent_session_lifetime.total_seconds()
    for key in ("PERMANENT_SESSION_LIFETIME", *FLASK_KEYS):
        value = lifetime if key == "PERMANENT_SESSION_LIFETIME" else given[key]
        is_default = given[key] == app.default_config[key]
        yield ShownSetting(
            key, _public(value), "default" if is_default else "app.config"
        )
    others = _CONFIGURABLE - {state.backend.name}
    if not state.config.migrate_from:
        others |= {"migrate"}
    late = {*find_late_keys(given, state.config)}
    defaults = SessionConfig()
    for key, name in KEYS.items():
        if key not in given and name.partition("_")[0] in others:
            continue
        value = getattr(state.config, name)
        is_given = value != getattr(defaults, name) if key in late else key in given
        if key in _SECRETS:
            value = _masked(value)
        elif key.endswith("_URL"):
            value = None if value is None else mask_url(str(value))
        elif key == "SESSION_FILESYSTEM_PATH" and value is None:
            value = folder_of(app, state.config)
        yield ShownSetting(
            key, _public(value), "app.config" if is_given else "default", key in late
        )


def ask_server(state: AppState, steps: cabc.Sequence[Step]) -> str | None:
    """Ask the backend for its server's name and version; ``None`` if it has none.

    :param steps: What was tried before; a server that gave no answer is not asked.
    """
    # Optional, so not part of the protocol.
    tell = t.cast(
        "cabc.Callable[[], str] | None", getattr(state.backend, "server_version", None)
    )
    if tell is None or not did_answer(steps):
        return None
    # Asking may be forbidden although everything else is allowed.
    with contextlib.suppress(BackendError):
        return tell()
    return None


def readable(setting: ShownSetting) -> str:
    """Return a setting's value as text."""
    value = setting.value
    if isinstance(value, Hidden):
        return value
    if setting.key in DURATIONS and value is not None:
        return str(dt.timedelta(seconds=value))
    return repr(value)


def readable_origin(setting: ShownSetting) -> str:
    """Return where a setting's value comes from as text."""
    if setting.is_late:
        return f"{setting.origin} (a later one is not in force)"
    return setting.origin


def _masked(value: t.Any) -> Hidden | None:
    if not value:
        return None
    if isinstance(value, (str, bytes)) or len(value) == 1:
        return Hidden("(1 secret, not shown)")
    return Hidden(f"({len(value)} secrets, not shown)")


def _public(value: t.Any) -> t.Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [_public(item) for item in t.cast("list[t.Any]", value)]
    # Its repr could reveal anything.
    cls = t.cast("type[object]", type(value))
    return Hidden(f"(an object of type {cls.__module__}.{cls.__qualname__})")


def diagnose(app: Flask, state: AppState) -> cabc.Iterator[Diagnosis]:
    """Return what is probably not meant in the configuration."""
    if app.session_interface is not state.interface:
        cls = type(app.session_interface)
        yield Diagnosis(
            "session_interface",
            f"is a {cls.__module__}.{cls.__qualname__}, which took the place of"
            " ServerSession, so that nothing here has any effect. Remove one of the"
            " two.",
        )
    for key in find_late_keys(app.config, state.config):
        yield Diagnosis(
            key,
            "was set or changed after ServerSession(app) or init_app(app), and is not"
            " in force. Set it before.",
        )
    yield from _check_secrets(app, state.config)
    yield from _check_backend(app, state)
    yield from _check_cookie(app, state.config)


def _check_secrets(app: Flask, config: SessionConfig) -> cabc.Iterator[Diagnosis]:
    secrets: list[tuple[str, str | bytes]]
    secrets = [("SESSION_SECRET", secret) for secret in config.secret]
    if not secrets and app.secret_key:
        given = t.cast("dict[str, t.Any]", app.config)
        secrets = [("SECRET_KEY", app.secret_key)]
        secrets += [
            ("SECRET_KEY_FALLBACKS", secret)
            for secret in given["SECRET_KEY_FALLBACKS"] or ()
        ]
    if not secrets:
        yield Diagnosis(
            "SECRET_KEY",
            "is not set, so there are no sessions, and writing to one is an error."
            f" {_HOW_TO_MAKE_ONE}",
        )
    short = [key for key, secret in secrets if len(secret) < _LEAST_SECRET]
    for key in dict.fromkeys(short):
        yield Diagnosis(
            key,
            f"has fewer than {_LEAST_SECRET} characters, which can be found by trying;"
            f" who has it can sign cookies. {_HOW_TO_MAKE_ONE}",
        )


def _check_backend(app: Flask, state: AppState) -> cabc.Iterator[Diagnosis]:
    config, backend = state.config, state.backend
    capabilities = backend.capabilities
    # Used by Gunicorn, Uvicorn and several hosting providers.
    has_workers = os.environ.get("WEB_CONCURRENCY", "1") != "1"
    if backend.name == "memory" and (has_workers or not app.debug):
        yield Diagnosis(
            "SESSION_BACKEND",
            "is 'memory', which is by itself in every process: sessions end with it,"
            " other workers do not see them, and neither does this command. Choose"
            " another one for production.",
        )
    if Capability.COMPARE_AND_SWAP not in capabilities:
        yield Diagnosis(
            "SESSION_BACKEND",
            f"is {backend.name!r}, which cannot compare and swap: when two processes"
            " serve one visitor at the same moment, a change can be lost, or a session"
            " that was ended come back.",
        )
    if config.cachelib is not None and backend.name == "cachelib":
        from ..backends.cachelib import eviction_warning

        if (text := eviction_warning(config.cachelib)) is not None:
            prefix = "'SESSION_CACHELIB' "
            yield Diagnosis("SESSION_CACHELIB", text.removeprefix(prefix))
    if (
        config.cleanup_interval == 0
        and Capability.PRUNE in capabilities
        and Capability.EXPIRES not in capabilities
    ):
        yield Diagnosis(
            "SESSION_CLEANUP_INTERVAL",
            f"is 0, and the {backend.name!r} backend does not delete expired sessions"
            " by itself. Run now and then: flask sessions prune",
        )
    if hint := hint_at_root(folder_of(app, config)):
        yield Diagnosis("SESSION_FILESYSTEM_PATH", hint)
    if not config.regenerate_on_login:
        yield Diagnosis(
            "SESSION_REGENERATE_ON_LOGIN",
            "is False: unless the application calls session.regenerate() wherever"
            " somebody logs in, an id that was planted before becomes theirs.",
        )


def _check_cookie(app: Flask, config: SessionConfig) -> cabc.Iterator[Diagnosis]:
    given = t.cast("dict[str, t.Any]", app.config)
    if not given["SESSION_COOKIE_SECURE"] and not app.debug:
        yield Diagnosis(
            "SESSION_COOKIE_SECURE",
            "is off, so browsers send the cookie over plain HTTP too, where anybody on"
            " the way can read it. Set it to True, or to 'auto'.",
        )
    if given["SESSION_COOKIE_SAMESITE"] is None:
        yield Diagnosis(
            "SESSION_COOKIE_SAMESITE",
            "is not set, and browsers differ in what other sites can do in a visitor's"
            " name then. Set it to 'Lax'.",
        )
    if not given["SESSION_COOKIE_HTTPONLY"]:
        yield Diagnosis(
            "SESSION_COOKIE_HTTPONLY",
            "is off, so every script on a page can read the cookie. Set it to True.",
        )
