"""``flask sessions check``: does all work that requests will need?"""

from __future__ import annotations

import typing as t

from flask import current_app

from ..operator import AppState
from ..trial import try_out
from .commands import json_option
from .commands import sessions
from .diagnostics import folder_of
from .diagnostics import write_hint
from .failures import explained
from .failures import fail_if_wrong
from .output import write_json
from .output import write_line


@sessions.command("check")
@json_option
@explained
def check(as_json: bool) -> None:
    """Write, change and delete a session, to see that it works.

    That is what requests will need: a folder that can be written to, privileges on a
    table, the commands and scripts of a server, the index of users. Run it as the user
    who runs the application, and with its configuration.

    The session is of the user 'flask sessions check', and of nobody else. Should
    deleting it fail, it expires within two minutes. No other session is looked at.

    The exit code is 0 only if all of it worked, and 4 if anything did not.

    \b
    Examples:
      flask sessions check
      flask sessions check --json | jq '.steps[] | select(.error)'
    """
    state = t.cast(AppState, current_app.extensions["serversession"])
    steps = try_out(state)
    if as_json:
        write_json(
            {
                "backend": state.backend.name,
                "works": all(step.error is None for step in steps),
                "steps": [
                    {
                        "operation": step.operation,
                        "error": None if step.error is None else str(step.error),
                    }
                    for step in steps
                ],
            }
        )
    fail_if_wrong(steps)
    if not as_json:
        has_index = any(step.operation == "keys_of_user" for step in steps)
        listed = "listed, " if has_index else ""
        write_line(
            f"The {state.backend.name!r} backend works: a session was written,"
            f" {listed}changed, touched and deleted."
        )
    write_hint(folder_of(current_app, state.config))
