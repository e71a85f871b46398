"""Handles as they are typed: whole, or by their first digits."""

from __future__ import annotations

import click

from .. import operator
from ..backends.base import Capability
from ..ids import handle_of
from ..ids import key_of_handle
from ..operator import AppState
from .failures import NotFound
from .failures import Unsupported
from .output import SHOWN_DIGITS
from .output import progress_bar
from .output import shorten


def whole_handle(state: AppState, text: str) -> str:
    """Return the whole handle that begins as given."""
    handle, backend = text.strip().lower(), state.backend
    if not operator.is_handle(handle):
        raise click.BadParameter(
            "A handle has 64 hexadecimal digits, of which the first"
            f" {operator.LEAST_DIGITS} or more are enough.",
            param_hint="HANDLE",
        )
    if key_of_handle(handle, "") is not None:
        return handle
    if Capability.ITERATE not in backend.capabilities:
        raise Unsupported(
            f"The {backend.name!r} backend cannot list its sessions, so it cannot find"
            " one by how its handle begins. Give all 64 digits."
        )
    try:
        with progress_bar("Looking for the session") as progress:
            key = operator.find_key(state, handle, progress)
    except LookupError as error:
        raise click.BadParameter(str(error), param_hint="HANDLE") from error
    if key is None:
        raise no_session(state, text)
    return handle_of(key, state.config.key_prefix)


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
