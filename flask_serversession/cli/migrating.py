"""``flask sessions migrate``: what can be taken over."""

from __future__ import annotations

import typing as t

import click
from flask import current_app

from ..config import FormerSettings
from ..operator import AppState
from ..takeover import Findings
from ..takeover import sample
from .commands import json_option
from .commands import sessions
from .failures import NotFound
from .failures import explained
from .output import count_of
from .output import escape
from .output import progress_bar
from .output import write_json
from .output import write_table


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
@json_option
@explained
def migrate(check: bool, limit: int, as_json: bool) -> None:
    """Try out what SESSION_MIGRATE_FROM takes over.

    Sessions are taken over one by one, when their visitors come. There is nothing to
    run for that, only something to try before, which --check asks for: it connects to
    the place where the application, or Flask-Session, has kept its sessions, reads
    some of what is there, and says how much of it is good. It changes nothing. Run
    again later, it says how many are still to come. What is in a cookie only its
    browser has, so of those there is nothing to be counted.

    The exit code is 1 if nothing is taken over, or if a session that was read cannot
    be.

    \b
    Examples:
      flask sessions migrate --check
      flask sessions migrate --check --limit 100000 --json
    """
    state = t.cast(AppState, current_app.extensions["serversession"])
    config = state.config
    is_on, store = _store_of(state)
    found: Findings | None = None
    if store is not None:
        with progress_bar("Reading old sessions") as progress:
            found = sample(store, limit, progress)
    if as_json:
        write_json(
            {
                "on": is_on,
                "from": _sources_of(state),
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
        raise NotFound(f"Nothing is taken over: {reason}")
    if found is not None and (bad := found.pickled + found.unreadable):
        raise NotFound(
            f"{count_of(bad, 'session')} of {found.read} cannot be taken over. Their"
            " visitors will have to log in again."
        )


def _store_of(state: AppState) -> tuple[bool, t.Any]:
    """Return whether anything is taken over, and where from if that can be read."""
    if isinstance(state.config.migrate_from, FormerSettings):
        moving = getattr(state.backend, "sample", None)
        return moving is not None, state.backend if moving is not None else None
    takeover = state.takeover
    if takeover is None or takeover.is_over:
        return False, None
    return True, takeover.store


def _sources_of(state: AppState) -> list[str]:
    sources = state.config.migrate_from
    if isinstance(sources, FormerSettings):
        return [f"SESSION_{name.upper()}" for name in sources]
    return [*sources]


def _print_migration(state: AppState, found: Findings | None) -> None:
    config = state.config
    given = t.cast("dict[str, t.Any]", current_app.config)
    rows = [
        ["From", ", ".join(_sources_of(state))],
        ["Until", f"{config.migrate_until:%Y-%m-%d %H:%M} UTC"],
        ["Cookie", escape(given["SESSION_COOKIE_NAME"])],
    ]
    if "cookie" in config.migrate_from:
        number = len(given["SECRET_KEY_FALLBACKS"] or ())
        rows += [
            ["Flask's signature", f"SECRET_KEY and {count_of(number, 'fallback')}"],
            ["Flask's age", f"at most {current_app.permanent_session_lifetime}"],
        ]
    if found is not None:
        if not isinstance(config.migrate_from, FormerSettings):
            signs = "signed" if given.get("SESSION_USE_SIGNER", False) else "not signed"
            rows += [
                ["Ids in cookies", f"{signs}, as SESSION_USE_SIGNER says"],
                ["Keys begin with", escape(repr(config.key_prefix))],
            ]
        rows += [
            ["Sessions read", str(found.read)],
            ["Good", str(found.good)],
            ["Expired", str(found.expired)],
            ["Pickles", str(found.pickled)],
            ["Not readable", str(found.unreadable)],
        ]
    write_table(rows)
