"""Handles as they are typed: whole, or by their first digits."""

from __future__ import annotations

import re

import click

from .. import operator
from ..backends.base import Capability
from ..operator import AppState
from .failures import NotFound
from .failures import Unsupported
from .output import SHOWN_DIGITS
from .output import progress_bar
from .output import reported
from .output import shorten

# How many digits have to be given.
_LEAST_DIGITS = 8


def whole_handle(state: AppState, text: str) -> str:
    """Return the whole handle that begins as given."""
    handle = text.strip().lower()
    if re.fullmatch(r"[0-9a-f]{64}", handle) is not None:
        return handle
    if re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},63}}", handle) is None:
        raise click.BadParameter(
            "A handle has 64 hexadecimal digits, of which the first"
            f" {_LEAST_DIGITS} or more are enough.",
            param_hint="HANDLE",
        )
    backend = state.backend
    if Capability.ITERATE not in backend.capabilities:
        raise Unsupported(
            f"The {backend.name!r} backend cannot list its sessions, so it cannot find"
            " one by how its handle begins. Give all 64 digits."
        )
    with progress_bar("Looking for the session") as progress:
        found = reported(operator.sessions(state), progress)
        matches = sorted(
            info.handle for info in found if info.handle.startswith(handle)
        )
    if not matches:
        raise no_session(state, text)
    if len(matches) > 1:
        digits = max(SHOWN_DIGITS, len(handle) + 4)
        shown = ", ".join(match[:digits] for match in matches[:5])
        raise click.BadParameter(
            f"{len(matches)} sessions begin with {handle}, such as {shown}. Give more"
            " digits.",
            param_hint="HANDLE",
        )
    return matches[0]


def no_session(state: AppState, handle: str) -> NotFound:
    """Return the failure that there is no such session."""
    shown = shorten(handle.strip().lower(), SHOWN_DIGITS + 3)
    text = (
        f"There is no session {shown!r}. It may have ended, or have a new handle, as"
        " it gets when somebody logs in or out."
    )
    if Capability.ITERATE in state.backend.capabilities:
        text += " See: flask sessions list"
    return NotFound(text)
