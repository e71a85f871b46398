"""``flask sessions …``: see and end sessions from the command line."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import functools
import heapq
import itertools
import json
import os
import re
import secrets
import shutil
import sys
import textwrap
import typing as t
import unicodedata

import click
from flask import current_app
from flask.cli import AppGroup

from .backends.base import Capability
from .checkup import DURATIONS
from .checkup import Hidden
from .checkup import SettingInForce
from .checkup import findings
from .checkup import folder_of
from .checkup import settings_in_force
from .cookie import generate_id
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import NotSupportedError
from .errors import RecordError
from .extension import AppState
from .extension import ServerSession
from .extension import SessionInfo
from .migrate import Findings
from .migrate import MigratingKeeper
from .migrate import sample
from .record import Record
from .record import key_of

P = t.ParamSpec("P")
T = t.TypeVar("T")

# How many digits of a handle are shown in a table, and how many have to be given.
_SHOWN_DIGITS = 12
_LEAST_DIGITS = 8
# The widest that columns get unless everything is asked for.
_WIDEST_USER = 32
_WIDEST_META = 48
# What a terminal that is too narrow for a table does not get, and how much of a user
# agent it does get in any case that can be avoided.
_LEFT_OUT_FIRST = ("CREATED (UTC)", "EXPIRES (UTC)")
_LEAST_AGENT = 24
# How often a progress bar moves, in sessions.
_STEP = 100

_META_TITLES = {"remote_addr": "Address", "user_agent": "User agent"}
_POWERS = {
    Capability.USER_INDEX: "list the sessions of a user",
    Capability.ITERATE: "list all sessions",
    Capability.COUNT: "count them",
    Capability.PRUNE: "delete expired ones on demand",
    Capability.EXPIRES: "delete expired ones by itself",
    Capability.COMPARE_AND_SWAP: "compare and swap",
}

# Keeps nothing of an application: all it does is done on the current one.
_operator = ServerSession()


class _Failure(click.ClickException):
    """Ends a command with one line on stderr and an exit code."""

    def __init__(self, message: str) -> None:
        super().__init__(_plain(message))


class _NotFound(_Failure):
    exit_code = 1  # 2 is click's own, for a command that was called wrongly


class _Unsupported(_Failure):
    exit_code = 3


class _Unavailable(_Failure):
    exit_code = 4


def _explained(function: cabc.Callable[P, T]) -> cabc.Callable[P, T]:
    """Turn the library's exceptions into failures."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except NotSupportedError as error:
            raise _Unsupported(
                f"{error} Choose another 'SESSION_BACKEND' if you need it."
            ) from error
        except BackendUnavailableError as error:
            raise _Unavailable(
                f"{error} Is it running, and is its address right? See: flask sessions"
                " info"
            ) from error
        except BackendError as error:
            raise _Unavailable(str(error)) from error
        except RecordError as error:
            raise _NotFound(
                f"{error} Use the version of flask-serversession that wrote it."
            ) from error

    return run


_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)

sessions = AppGroup(
    "sessions",
    short_help="See and end the sessions of visitors.",
    help="""See and end the sessions of visitors.

    Every session has a handle. It is safe to show and to log: nobody can make a
    cookie of it. Tables show its first 12 digits, and wherever a HANDLE is asked
    for, its first 8 or more are enough if no other session begins with them.

    \b
    Examples:
      flask sessions count
      flask sessions list --user ada
      flask sessions show 1f3a9c0b77de
      flask sessions revoke 1f3a9c0b77de
      flask sessions revoke --user ada
      flask sessions list --json | jq -r '.sessions[].user'

    \b
    Exit codes:
      0  it worked
      1  there is no such session, or none was ended
      2  the command was called wrongly
      3  the backend cannot do that
      4  the backend does not answer, or refuses to work

    Commands that read take --json. All times are UTC.
    """,
)


# -- preparing


@sessions.command("init")
@_explained
def init() -> None:
    """Create what the backend needs, and check that it works.

    That is the table and its indexes for 'sqlalchemy', and the folder for
    'filesystem'. What is there already is left alone, so it does no harm to run
    this at each deployment. Without it, both are created when they are first
    needed, unless SESSION_SQLALCHEMY_CREATE_TABLE is False.

    Afterwards a record is written, read and deleted again. It is nobody's session.

    \b
    Example:
      flask sessions init
    """
    state = _state()
    backend: t.Any = state.backend
    folder = folder_of(current_app, state.config)
    is_new = folder is not None and not os.path.isdir(folder)
    create_tables: cabc.Callable[[], None] | None
    create_tables = getattr(backend, "create_tables", None)
    if create_tables is not None:
        create_tables()
    _try_out(state)
    if create_tables is not None:
        name = getattr(getattr(backend, "table", None), "fullname", None)
        table = "The table" if name is None else f"The table {name!r}"
        _print(f"{table} and its indexes are there; what was missing was created.")
    elif folder is None:
        _print(f"Nothing to do: the {backend.name!r} backend needs no preparation.")
    elif is_new:
        _print(f"Created the folder {folder!r}.")
    else:
        _print(f"Nothing to do: the folder {folder!r} is there.")


def _try_out(state: AppState) -> None:
    """Write, read and delete a record, which would soon expire in any case."""
    backend = state.backend
    key = key_of(generate_id(), state.config.key_prefix)
    now = state.interface.keeper.clock()
    data = secrets.token_bytes(16)
    record = Record(
        data=data, version=1, created_at=now, touched_at=now, expires_at=now + 60
    )
    backend.create(key, record)
    try:
        stored = backend.load(key)
    finally:
        backend.delete(key)
    if stored is None or stored.data != data:
        raise _Unavailable(
            f"The {backend.name!r} backend took a record, but does not give it back."
        )


# -- reading


@sessions.command("count")
@_json_option
@_explained
def count(as_json: bool) -> None:
    """Print the number of live sessions.

    A session that has expired does not count, whether it was deleted yet or not.

    \b
    Examples:
      flask sessions count
      flask sessions count --json
    """
    number = _operator.count()
    if as_json:
        _print_json({"count": number})
    else:
        _print(str(number))


@sessions.command("list")
@click.option("--user", metavar="U", help="Only the sessions of this user.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help="Only the N that were seen last.",
)
@click.option("--full", is_flag=True, help="Shorten nothing, nor the handles.")
@_json_option
@_explained
def list_(user: str | None, limit: int | None, full: bool, as_json: bool) -> None:
    """List live sessions, those that were seen last first.

    The user is what the application keeps under SESSION_USER_KEY; with Flask-Login
    that is the user's id. Addresses and user agents are listed if SESSION_TRACK asks
    for them. A narrow terminal gets fewer columns; --full prints them all.

    With --user this costs what that user has; without, all sessions are read.

    \b
    Examples:
      flask sessions list --limit 20
      flask sessions list --user ada --full
      flask sessions list --json | jq '.sessions | length'
    """
    with _progress("Reading sessions") as progress:
        found: cabc.Iterable[SessionInfo]
        found = _operator.sessions() if user is None else _operator.sessions_of(user)
        found = _reported(found, progress)
        if limit is None:
            listed = sorted(found, key=_last_seen, reverse=True)
        else:
            # Keeps no more than it needs.
            listed = heapq.nlargest(limit, found, key=_last_seen)
    if as_json:
        _print_json({"sessions": [_document(info) for info in listed]})
    elif listed:
        _print_sessions(listed, full)
    elif user is None:
        _print("There are no live sessions.")
    else:
        _print(_none_of(user))


def _none_of(user: str) -> str:
    key = _state().config.user_key
    return (
        f"There are no live sessions of {user!r}. A user is called what the session"
        f" holds under {key!r}, which may be a number."
    )


def _last_seen(info: SessionInfo) -> tuple[dt.datetime, dt.datetime, str]:
    return info.last_seen_at, info.created_at, info.handle


def _print_sessions(listed: cabc.Sequence[SessionInfo], is_full: bool) -> None:
    tracked = {name for info in listed for name in info.meta}
    names = [name for name in _META_TITLES if name in tracked]
    header = ["HANDLE", "USER", "LAST SEEN (UTC)", "CREATED (UTC)", "EXPIRES (UTC)"]
    rows = [[*header, *(_META_TITLES[name].upper() for name in names)]]
    for info in listed:
        handle = info.handle if is_full else info.handle[:_SHOWN_DIGITS]
        user = "-" if info.user is None else _plain(info.user)
        meta = [_plain(info.meta.get(name, "-")) for name in names]
        if not is_full:
            user = _shorten(user, _WIDEST_USER)
            # Nearly all user agents begin so, and none is told from another by it.
            meta = [value.removeprefix("Mozilla/5.0 ") for value in meta]
            meta = [_shorten(value, _WIDEST_META) for value in meta]
        times = (info.last_seen_at, info.created_at, info.expires_at)
        rows.append(
            [handle, user, *(f"{time:%Y-%m-%d %H:%M}" for time in times), *meta]
        )
    if not is_full and (width := _terminal_width()) is not None:
        rows = _fitted(rows, width)
    _print_table(rows)


def _fitted(rows: list[list[str]], width: int) -> list[list[str]]:
    """Leave out and shorten what would make lines wrap; ``show`` tells all of it."""
    has_agent = rows[0][-1] == _META_TITLES["user_agent"].upper()
    for title in _LEFT_OUT_FIRST:
        widths = _widths(rows)
        if has_agent:
            widths[-1] = min(widths[-1], _LEAST_AGENT)
        if sum(widths) + 2 * (len(widths) - 1) > width:
            column = rows[0].index(title)
            rows = [row[:column] + row[column + 1 :] for row in rows]
    if has_agent:
        widths = _widths(rows)
        room = width - sum(widths[:-1]) - 2 * (len(widths) - 1)
        room = max(room, len(rows[0][-1]))
        rows = [[*row[:-1], _shorten(row[-1], room)] for row in rows]
    return rows


@sessions.command("show")
@click.argument("handle")
@_json_option
@_explained
def show(handle: str, as_json: bool) -> None:
    """Show what is known of a session; never what it holds.

    HANDLE is the session's handle, or its first 8 digits or more. A backend that
    cannot list all sessions needs the whole handle.

    \b
    Examples:
      flask sessions show 1f3a9c0b77de
      flask sessions show 1f3a9c0b77de --json
    """
    info = _operator.find(_whole(handle))
    if info is None:
        raise _no_session(handle)
    if as_json:
        _print_json(_document(info))
        return
    rows = [
        ["Handle", info.handle],
        ["User", "(nobody)" if info.user is None else _plain(info.user)],
        ["Last seen", f"{info.last_seen_at:%Y-%m-%d %H:%M:%S} UTC"],
        ["Created", f"{info.created_at:%Y-%m-%d %H:%M:%S} UTC"],
        ["Expires", f"{info.expires_at:%Y-%m-%d %H:%M:%S} UTC"],
    ]
    for name, title in _META_TITLES.items():
        if name in info.meta:
            rows.append([title, _plain(info.meta[name])])
    _print_table(rows)


# -- ending


@sessions.command("revoke")
@click.argument("handle", required=False)
@click.option("--user", metavar="U", help="End all sessions of this user.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before ending several.")
@_explained
def revoke(handle: str | None, user: str | None, yes: bool) -> None:
    """End a session, or all sessions of a user, at once.

    Whoever uses it is out at the next click. A request that is running at this
    moment cannot bring it back. What the session held is lost.

    HANDLE is the session's handle, or its first 8 digits or more. A backend that
    cannot list all sessions needs the whole handle.

    \b
    Examples:
      flask sessions revoke 1f3a9c0b77de
      flask sessions revoke --user ada
      flask sessions revoke --user ada --yes
    """
    if handle is not None and user is None:
        _revoke_one(handle)
    elif user is not None and handle is None:
        _revoke_all_of(user, is_sure=yes)
    else:
        raise click.UsageError("Give either a HANDLE or --user.")


def _revoke_one(handle: str) -> None:
    whole = _whole(handle)
    info = _operator.find(whole)
    if not _operator.revoke(whole):
        raise _no_session(handle)
    whose = "" if info is None or info.user is None else f" of {info.user!r}"
    _print(f"Ended the session {whole[:_SHOWN_DIGITS]}{whose}.")


def _revoke_all_of(user: str, *, is_sure: bool) -> None:
    if not is_sure:
        number = len(_operator.sessions_of(user))
        if number > 1 and not _is_confirmed(f"End {number} sessions of {user!r}?"):
            raise _NotFound("No session was ended.")
    ended = _operator.revoke_user(user)
    if not ended:
        raise _NotFound(_none_of(user))
    _print(f"Ended {_count(ended, 'session')} of {user!r}.")


def _is_confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        raise _NotFound(
            "No session was ended. Where nobody can answer, use --yes."
        ) from None


@sessions.command("prune")
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many to delete at a time; SESSION_CLEANUP_BATCH by default.",
)
@_explained
def prune(batch: int | None) -> None:
    """Delete what is left of all expired sessions.

    Nobody can use them, deleted or not; this only frees the space. It works in
    batches, so that no request has to wait for long. Backends that do not delete
    them by themselves do it now and then after a request; this is for doing it all
    at once, and for applications that set SESSION_CLEANUP_INTERVAL to 0.

    \b
    Examples:
      flask sessions prune
      flask sessions prune --batch 5000
    """
    backend = _state().backend
    if Capability.PRUNE not in backend.capabilities and (
        Capability.EXPIRES in backend.capabilities
    ):
        name = backend.name
        _print(f"Nothing to do: {name!r} deletes expired sessions by itself.")
        return
    with _progress("Deleting expired sessions") as progress:
        deleted = _operator.prune(batch, progress)
    if deleted:
        _print(f"Deleted {_count(deleted, 'expired session')}.")
    else:
        _print("There were no expired sessions.")


# -- the configuration


@sessions.command("info")
@_json_option
@_explained
def info(as_json: bool) -> None:
    """Show the backend and the settings, and what is wrong.

    Each setting is shown with its origin: 'app.config' or 'default'. Secrets, keys
    and what may be secret in a URL are left out, so that the output can be shown to
    others. Settings of other backends are left out too.

    If the backend does not answer, the settings are shown all the same, and the exit
    code is 4. Warnings do not change the exit code.

    \b
    Examples:
      flask sessions info
      flask sessions info --json | jq '.warnings'
    """
    state = _state()
    failure: BackendError | None = None
    server: str | None = None
    try:
        server = _ask_server(state)
    except BackendError as error:
        failure = error
    capabilities = [flag for flag in _POWERS if flag in state.backend.capabilities]
    settings = list(settings_in_force(current_app, state))
    warnings = list(findings(current_app, state))
    if as_json:
        _print_json(
            {
                "backend": state.backend.name,
                "server": server,
                "error": None if failure is None else str(failure),
                "capabilities": [str(flag.name).lower() for flag in capabilities],
                "settings": {
                    setting.key: {"value": setting.value, "origin": setting.origin}
                    for setting in settings
                },
                "warnings": [warning._asdict() for warning in warnings],
            }
        )
    else:
        rows = [
            ["Backend", _plain(state.backend.name)],
            ["Server", _plain(server or "-") if failure is None else "no answer"],
            ["It can", ", ".join(_POWERS[flag] for flag in capabilities) or "-"],
        ]
        for title, value in rows:
            _print_wrapped(f"{title:<7}  {value}", " " * 9)
        _print("")
        rows = [["SETTING", "VALUE", "ORIGIN"]]
        rows += [
            [setting.key, _plain(_readable(setting)), setting.origin]
            for setting in settings
        ]
        _print_table(rows)
        if warnings:
            _print("\nWarnings")
        for warning in warnings:
            _print_wrapped(_plain(f"- {warning.setting} {warning.message}"), "  ")
    if failure is not None:
        raise failure


def _ask_server(state: AppState) -> str | None:
    """See that the backend answers, and say what answers, where it can tell.

    :raises BackendError: if it does not answer.
    """
    with contextlib.suppress(RecordError):
        state.backend.load(key_of(generate_id(), state.config.key_prefix))
    # Optional, so it is no part of the protocol.
    tell = t.cast(
        "cabc.Callable[[], str] | None", getattr(state.backend, "server_version", None)
    )
    # It may be forbidden to ask, where everything else is allowed.
    with contextlib.suppress(BackendError):
        return None if tell is None else tell()
    return None


def _readable(setting: SettingInForce) -> str:
    value = setting.value
    if isinstance(value, Hidden):
        return value
    if setting.key in DURATIONS and value is not None:
        return str(dt.timedelta(seconds=value))
    return repr(value)


# -- what is taken over


@sessions.command("migrate")
@click.option("--check", is_flag=True, required=True, help="Needed. Changes nothing.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Read so many of the old sessions.",
)
@_json_option
@_explained
def migrate(check: bool, limit: int, as_json: bool) -> None:
    """Try out what SESSION_MIGRATE_FROM takes over.

    Sessions are taken over one by one, when their visitors come. There is nothing to
    run for that, only something to try before, which --check asks for: it connects to
    the store that Flask-Session has used, reads some of what is there, and says how
    much of it is good. It changes nothing. What is in a cookie only its browser has,
    so of those there is nothing to be counted.

    The exit code is 1 if nothing is taken over, or if a session that was read cannot
    be.

    \b
    Examples:
      flask sessions migrate --check
      flask sessions migrate --check --limit 100000 --json
    """
    state = _state()
    keeper = state.interface.keeper
    config = state.config
    is_on = isinstance(keeper, MigratingKeeper) and not keeper.is_over
    found: Findings | None = None
    if isinstance(keeper, MigratingKeeper) and is_on and keeper.store is not None:
        with _progress("Reading old sessions") as progress:
            found = sample(keeper.store, limit, progress)
    if as_json:
        _print_json(
            {
                "on": is_on,
                "from": list(config.migrate_from),
                "until": config.migrate_until and config.migrate_until.isoformat(),
                "store": None if found is None else found._asdict(),
            }
        )
    elif is_on:
        _print_migration(state, found)
    if not is_on:
        reason = "'SESSION_MIGRATE_FROM' is not set."
        if config.migrate_from:
            end = f"{config.migrate_until:%Y-%m-%d %H:%M} UTC"
            reason = f"'SESSION_MIGRATE_UNTIL' was {end}."
        raise _NotFound(f"Nothing is taken over: {reason}")
    if found is not None and (bad := found.pickled + found.unreadable):
        raise _NotFound(
            f"{_count(bad, 'session')} of {found.read} cannot be taken over. Their"
            " visitors will have to log in again."
        )


def _print_migration(state: AppState, found: Findings | None) -> None:
    config = state.config
    given = t.cast("dict[str, t.Any]", current_app.config)
    rows = [
        ["From", ", ".join(config.migrate_from)],
        ["Until", f"{config.migrate_until:%Y-%m-%d %H:%M} UTC"],
        ["Cookie", _plain(given["SESSION_COOKIE_NAME"])],
    ]
    if "cookie" in config.migrate_from:
        number = len(given["SECRET_KEY_FALLBACKS"] or ())
        rows += [
            ["Flask's signature", f"SECRET_KEY and {_count(number, 'fallback')}"],
            ["Flask's age", f"at most {current_app.permanent_session_lifetime}"],
        ]
    if found is not None:
        signs = "signed" if given.get("SESSION_USE_SIGNER", False) else "not signed"
        rows += [
            ["Ids in cookies", f"{signs}, as SESSION_USE_SIGNER says"],
            ["Keys begin with", _plain(repr(config.key_prefix))],
            ["Sessions read", str(found.read)],
            ["Good", str(found.good)],
            ["Expired", str(found.expired)],
            ["Pickles", str(found.pickled)],
            ["Not readable", str(found.unreadable)],
        ]
    _print_table(rows)


# -- handles


def _whole(text: str) -> str:
    """Give the whole handle that begins as given."""
    handle = text.strip().lower()
    if re.fullmatch(r"[0-9a-f]{64}", handle) is not None:
        return handle
    if re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},63}}", handle) is None:
        raise click.BadParameter(
            "A handle has 64 hexadecimal digits, of which the first"
            f" {_LEAST_DIGITS} or more are enough.",
            param_hint="HANDLE",
        )
    backend = _state().backend
    if Capability.ITERATE not in backend.capabilities:
        raise _Unsupported(
            f"The {backend.name!r} backend cannot list its sessions, so it cannot find"
            " one by how its handle begins. Give all 64 digits."
        )
    with _progress("Looking for the session") as progress:
        found = _reported(_operator.sessions(), progress)
        matches = sorted(
            info.handle for info in found if info.handle.startswith(handle)
        )
    if not matches:
        raise _no_session(text)
    if len(matches) > 1:
        digits = max(_SHOWN_DIGITS, len(handle) + 4)
        shown = ", ".join(match[:digits] for match in matches[:5])
        raise click.BadParameter(
            f"{len(matches)} sessions begin with {handle}, such as {shown}. Give more"
            " digits.",
            param_hint="HANDLE",
        )
    return matches[0]


def _no_session(handle: str) -> _NotFound:
    shown = _shorten(handle.strip().lower(), _SHOWN_DIGITS + 3)
    text = (
        f"There is no session {shown!r}. It may have ended, or have a new handle, as"
        " it gets when somebody logs in or out."
    )
    if Capability.ITERATE in _state().backend.capabilities:
        text += " See: flask sessions list"
    return _NotFound(text)


def _state() -> AppState:
    return t.cast(AppState, current_app.extensions["serversession"])


# -- output


def _document(info: SessionInfo) -> dict[str, t.Any]:
    return {
        "handle": info.handle,
        "user": info.user,
        "created_at": info.created_at.isoformat(timespec="seconds"),
        "last_seen_at": info.last_seen_at.isoformat(timespec="seconds"),
        "expires_at": info.expires_at.isoformat(timespec="seconds"),
        "meta": dict(info.meta),
    }


def _print(text: str) -> None:
    # What the terminal cannot show is no reason to fail.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def _print_json(document: t.Any) -> None:
    # It writes ASCII, and of all control characters only this one as it is.
    click.echo(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def _terminal_width() -> int | None:
    """Give how wide the terminal is; ``None`` if the output goes somewhere else."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print_wrapped(text: str, indent: str) -> None:
    """Print a line, on a terminal without breaking its words."""
    width = _terminal_width()
    if width is not None:
        text = textwrap.fill(
            text,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    _print(text)


def _widths(rows: cabc.Sequence[cabc.Sequence[str]]) -> list[int]:
    return [max(map(_width, column)) for column in zip(*rows, strict=True)]


def _print_table(rows: cabc.Sequence[cabc.Sequence[str]]) -> None:
    widths = _widths(rows)
    for row in rows:
        cells = [
            cell + " " * (width - _width(cell))
            for cell, width in zip(row, widths, strict=True)
        ]
        _print("  ".join(cells).rstrip())


def _plain(text: str) -> str:
    """Escape what would move the cursor, change colours, hide text or end the line.

    User names and user agents come from visitors, and a terminal obeys them.
    """
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _shorten(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - 3:
        text = text[:-1]
    return f"{text}..."


def _width(text: str) -> int:
    """Give how many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextlib.contextmanager
def _progress(
    label: str,
) -> cabc.Generator[cabc.Callable[[int], None], None, None]:
    """Show on stderr how many were dealt with, if that is a terminal.

    Not out of how many: to count them would take as long.
    """
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    with click.progressbar(
        itertools.count(), label=label, show_pos=True, show_eta=False, file=sys.stderr
    ) as bar:
        yield bar.update


def _reported(
    found: cabc.Iterable[SessionInfo], progress: cabc.Callable[[int], None]
) -> cabc.Iterator[SessionInfo]:
    for number, info in enumerate(found, 1):
        if number % _STEP == 0:
            progress(_STEP)
        yield info
