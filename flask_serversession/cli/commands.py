"""``flask sessions …``: see and end sessions from the command line."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import heapq
import os
import sys
import typing as t

import click
from flask import current_app
from flask.cli import AppGroup

from .. import operator
from ..backends.base import Capability
from ..operator import AppState
from ..operator import SessionInfo
from ..trial import Step
from ..trial import did_answer
from ..trial import try_out
from ..users import as_shown
from .browsers import browser_name
from .diagnostics import ask_server
from .diagnostics import diagnose
from .diagnostics import folder_of
from .diagnostics import given_to
from .diagnostics import readable
from .diagnostics import readable_origin
from .diagnostics import shown_settings
from .diagnostics import write_hint
from .failures import NotFound
from .failures import explained
from .failures import fail_if_wrong
from .handles import no_session
from .handles import whole_handle
from .output import META_TITLES
from .output import SHOWN_DIGITS
from .output import count_of
from .output import document_of
from .output import escape
from .output import own_meta
from .output import progress_bar
from .output import write_json
from .output import write_line
from .output import write_sessions
from .output import write_table
from .output import write_wrapped

_POWERS = {
    Capability.USER_INDEX: "list the sessions of a user",
    Capability.ITERATE: "list all sessions",
    Capability.COUNT: "count them",
    Capability.PRUNE: "delete expired ones on demand",
    Capability.EXPIRES: "delete expired ones by itself",
    Capability.COMPARE_AND_SWAP: "compare and swap",
}


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


class _Group(AppGroup):
    def invoke(self, ctx: click.Context) -> t.Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # "| head" has read what it wanted. Python would flush once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit()


sessions = _Group(
    "sessions",
    short_help="See and end the sessions of visitors.",
    help="""See and end the sessions of visitors.

    Every session has a handle. It is safe to show and to log: nobody can make a
    cookie of it. Tables show its first 12 digits, and wherever a HANDLE is asked
    for, its first 8 or more are enough if no other session begins with them.

    \b
    Examples:
      flask sessions check
      flask sessions count
      flask sessions list --user ada
      flask sessions show 1f3a9c0b77de
      flask sessions revoke 1f3a9c0b77de
      flask sessions revoke --user ada
      flask sessions revoke --all
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
@explained
def init() -> None:
    """Create what the backend needs, and check that it works.

    That is the table and its indexes for 'sqlalchemy', and the folder for
    'filesystem'. What is there already is left alone, so it does no harm to run
    this at each deployment. Without it, both are created when they are first
    needed, unless SESSION_SQLALCHEMY_CREATE_TABLE is False. A folder, or a file of
    SQLite's, that root creates is given to the owner of the folder above it.

    Afterwards the backend is tried out, as 'flask sessions check' does.

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
    fail_if_wrong(try_out(state))
    if create_tables is not None:
        name = getattr(getattr(backend, "table", None), "fullname", None)
        table = "The table" if name is None else f"The table {name!r}"
        write_line(f"{table} and its indexes are there; what was missing was created.")
    elif folder is None:
        write_line(f"Nothing to do: the {backend.name!r} backend needs no preparation.")
    elif is_new:
        write_line(f"Created the folder {folder!r}{given_to(folder)}.")
    else:
        write_line(f"Nothing to do: the folder {folder!r} is there.")
    write_hint(folder)


# -- reading


@sessions.command("count")
@json_option
@explained
def count(as_json: bool) -> None:
    """Print the number of live sessions.

    A session that has expired does not count, whether it was deleted yet or not.

    \b
    Examples:
      flask sessions count
      flask sessions count --json
    """
    number = operator.count(_state())
    if as_json:
        write_json({"count": number})
    else:
        write_line(str(number))


@sessions.command("list")
@click.option("--user", metavar="U", help="Only the sessions of this user.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help="Only the N that were seen last.",
)
@click.option("--full", is_flag=True, help="Don't shorten anything, including handles.")
@json_option
@explained
def list_(user: str | None, limit: int | None, full: bool, as_json: bool) -> None:
    """List live sessions, those that were seen last first.

    The user is what SESSION_USER_KEY finds in the session; with Flask-Login that is
    the user's id. Addresses and browsers are listed if SESSION_TRACK asks for them.
    A narrow terminal gets less; --full prints all, with whole user agents.

    With --user this costs what that user has; without, all sessions are read.

    \b
    Examples:
      flask sessions list --limit 20
      flask sessions list --user ada --full
      flask sessions list --json | jq '.sessions | length'
    """
    with progress_bar("Reading sessions") as progress:
        found: cabc.Iterable[SessionInfo]
        state = _state()
        if user is None:
            found = operator.sessions(state)
        else:
            found = operator.sessions_of(state, _name_of(user))
        found = operator.counted(found, progress)
        if limit is None:
            listed = sorted(found, key=_last_seen, reverse=True)
        else:
            # Doesn't keep all of them in memory.
            listed = heapq.nlargest(limit, found, key=_last_seen)
    if as_json:
        write_json({"sessions": [document_of(info) for info in listed]})
    elif listed:
        write_sessions(listed, full)
    elif user is None:
        write_line("There are no live sessions.")
    else:
        write_line(_none_of(user))


def _name_of(user: str) -> str:
    """Return a user who was given as lists show them, where they may be a hash."""
    shown = as_shown(user)
    is_known = shown is not user and operator.sessions_of(_state(), shown)
    return shown if is_known else user


def _none_of(user: str) -> str:
    return (
        f"There are no live sessions of {user!r}. A user is called what"
        " 'SESSION_USER_KEY' finds in the session, which may be a number."
    )


def _last_seen(info: SessionInfo) -> tuple[dt.datetime, dt.datetime, str]:
    return info.last_seen_at, info.created_at, info.handle


@sessions.command("show")
@click.argument("handle")
@json_option
@explained
def show(handle: str, as_json: bool) -> None:
    """Show what is known of a session; never what it holds.

    HANDLE is the session's handle, or its first 8 digits or more. A backend that
    cannot list all sessions needs the whole handle.

    \b
    Examples:
      flask sessions show 1f3a9c0b77de
      flask sessions show 1f3a9c0b77de --json
    """
    info = operator.find(_state(), whole_handle(_state(), handle))
    if info is None:
        raise no_session(_state(), handle)
    if as_json:
        write_json(document_of(info))
        return
    rows = [
        ["Handle", info.handle],
        ["User", "(nobody)" if info.user is None else escape(info.user)],
        ["Last seen", f"{info.last_seen_at:%Y-%m-%d %H:%M:%S} UTC"],
        ["Created", f"{info.created_at:%Y-%m-%d %H:%M:%S} UTC"],
        ["Logged in", _moment(info.authenticated_at)],
        ["Expires", f"{info.expires_at:%Y-%m-%d %H:%M:%S} UTC"],
    ]
    if info.is_device_bound:
        rows.append(["Device", "bound"])
    for name, title in META_TITLES.items():
        if name not in info.meta:
            continue
        value = info.meta[name]
        if name == "user_agent" and (browser := browser_name(value)):
            rows.append(["Browser", browser])
        rows.append([title, escape(value)])
    rows += [[f"Meta {name}", value] for name, value in own_meta(info)]
    write_table(rows)


def _moment(moment: dt.datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


# -- ending


@sessions.command("revoke")
@click.argument("handle", required=False)
@click.option("--user", metavar="U", help="End all sessions of this user.")
@click.option("--all", "is_all", is_flag=True, help="End all sessions of everybody.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before ending several.")
@explained
def revoke(handle: str | None, user: str | None, is_all: bool, yes: bool) -> None:
    """End a session, all sessions of a user, or all there are, at once.

    Its user is logged out on their next request. A request that is running at this
    moment cannot bring it back. What the session held is lost.

    HANDLE is the session's handle, or its first 8 digits or more. A backend that
    cannot list all sessions needs the whole handle.

    \b
    Examples:
      flask sessions revoke 1f3a9c0b77de
      flask sessions revoke --user ada
      flask sessions revoke --user ada --yes
      flask sessions revoke --all
    """
    if (handle is not None) + (user is not None) + is_all != 1:
        raise click.UsageError("Give a HANDLE, --user or --all, and only one of them.")
    if handle is not None:
        _revoke_one(handle)
    elif user is not None:
        _revoke_all_of(user, is_sure=yes)
    else:
        _revoke_all(is_sure=yes)


def _revoke_one(handle: str) -> None:
    whole = whole_handle(_state(), handle)
    info = operator.find(_state(), whole)
    if not operator.revoke(_state(), whole):
        raise no_session(_state(), handle)
    whose = "" if info is None or info.user is None else f" of {info.user!r}"
    write_line(f"Ended the session {whole[:SHOWN_DIGITS]}{whose}.")


def _revoke_all_of(user: str, *, is_sure: bool) -> None:
    if not is_sure:
        number = len(operator.sessions_of(_state(), _name_of(user)))
        if number > 1 and not _is_confirmed(f"End {number} sessions of {user!r}?"):
            raise NotFound("No session was ended.")
    ended = operator.revoke_user(_state(), _name_of(user), except_current=False)
    if not ended:
        raise NotFound(_none_of(user))
    write_line(f"Ended {count_of(ended, 'session')} of {user!r}.")


def _revoke_all(*, is_sure: bool) -> None:
    if not is_sure:
        number = operator.count(_state())
        question = f"End {count_of(number, 'session')}, of everybody?"
        if number and not _is_confirmed(question):
            raise NotFound("No session was ended.")
    with progress_bar("Ending sessions") as progress:
        ended = operator.revoke_all(_state(), False, progress)
    if not ended:
        raise NotFound("There are no live sessions.")
    write_line(f"Ended {count_of(ended, 'session')}.")


def _is_confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        raise NotFound(
            "No session was ended. Where nobody can answer, use --yes."
        ) from None


@sessions.command("prune")
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many to delete at a time; SESSION_CLEANUP_BATCH by default.",
)
@explained
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
        write_line(f"Nothing to do: {name!r} deletes expired sessions by itself.")
        return
    with progress_bar("Deleting expired sessions") as progress:
        deleted = operator.prune(_state(), batch, progress)
    if deleted:
        write_line(f"Deleted {count_of(deleted, 'expired session')}.")
    else:
        write_line("There were no expired sessions.")


# -- the configuration


@sessions.command("info")
@json_option
@explained
def info(as_json: bool) -> None:
    """Show the backend and the settings, and what is wrong.

    Each setting is shown with its origin: 'app.config' or 'default'. Secrets, keys
    and what may be secret in a URL are left out, so that the output can be shown to
    others. Settings of other backends are left out too.

    The backend is tried out, as 'flask sessions check' does. If it does not work, the
    settings are shown all the same, and the exit code is 4. Warnings do not change the
    exit code.

    \b
    Examples:
      flask sessions info
      flask sessions info --json | jq '.warnings'
    """
    state = _state()
    steps = try_out(state)
    server = ask_server(state, steps)
    if as_json:
        write_json(_describe(state, server, steps))
    else:
        _write_description(state, server, steps)
    fail_if_wrong(steps)


def _powers_of(state: AppState) -> list[Capability]:
    return [flag for flag in _POWERS if flag in state.backend.capabilities]


def _describe(
    state: AppState, server: str | None, steps: list[Step]
) -> dict[str, t.Any]:
    return {
        "backend": state.backend.name,
        "server": server,
        "error": next((str(step.error) for step in steps if step.error), None),
        "capabilities": [str(flag.name).lower() for flag in _powers_of(state)],
        "settings": {
            setting.key: {"value": setting.value, "origin": setting.origin}
            | ({"late": True} if setting.is_late else {})
            for setting in shown_settings(current_app, state)
        },
        "warnings": [found._asdict() for found in diagnose(current_app, state)],
    }


def _write_description(state: AppState, server: str | None, steps: list[Step]) -> None:
    powers = ", ".join(_POWERS[flag] for flag in _powers_of(state))
    for title, value in (
        ("Backend", escape(state.backend.name)),
        ("Server", escape(server or "-") if did_answer(steps) else "no answer"),
        ("It can", powers or "-"),
    ):
        write_wrapped(f"{title:<7}  {value}", " " * 9)
    write_line("")
    rows = [["SETTING", "VALUE", "ORIGIN"]]
    for setting in shown_settings(current_app, state):
        origin = readable_origin(setting)
        rows.append([setting.key, escape(readable(setting)), origin])
    write_table(rows)
    found = list(diagnose(current_app, state))
    if found:
        write_line("\nWarnings")
    for diagnosis in found:
        line = f"- {diagnosis.setting} {diagnosis.message}"
        write_wrapped(escape(line), "  ")


def _state() -> AppState:
    return t.cast(AppState, current_app.extensions["serversession"])
