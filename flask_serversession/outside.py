"""Changes sessions from outside of their requests: from a view, a job or a shell.

What is opened has a unit of its own that belongs to no browser, and its phase is
:attr:`.Phase.OUTSIDE`. It is written as any other, by what the table says: a change is
compared, merged, and never revives a session. There are two differences. It is no
activity of the session's user. And if the id was renewed meanwhile, the change follows
the session, whereas what a request has changed is dropped then.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import inspect

from .atomic import undone_if_raised
from .errors import RecordError
from .errors import SessionLostError
from .opened import opened_session
from .operator import LEAST_DIGITS
from .operator import AppState
from .operator import find_key
from .operator import is_handle
from .record import Record
from .rotation import Trail
from .rotation import follow
from .rotation import predecessor_of
from .sessions import ServerSideSession
from .sessions import unit_of
from .unit import Identity
from .unit import Known
from .unit import Phase
from .unit import Presented
from .unit import Unit
from .users import stored_name_of

# How much of a handle an error shows.
_SHOWN_DIGITS = 12


@contextlib.contextmanager
def opened(
    state: AppState, handle: str
) -> cabc.Generator[ServerSideSession, None, None]:
    """Open a session, and save what the block has changed."""
    session = _open(state, find_key(state, handle))
    if not is_handle(handle):  # nor is it shown: it may be an id
        raise SessionLostError(
            "This is not a handle: it has 64 hexadecimal digits, of which the first"
            f" {LEAST_DIGITS} or more are enough. session.handle and sessions_of() give"
            " it; the id in the cookie is something else."
        )
    if session is None:
        raise SessionLostError(
            f"There is no session {handle[:_SHOWN_DIGITS]!r}. It may have ended, or"
            " have a new handle, as it gets when somebody logs in or out."
        )
    unit = unit_of(session)
    if unit.is_outside:
        yield session
        state.interface.lifecycle.write(unit, None)
        return
    with undone_if_raised(state.interface.core, unit):
        yield session
    session.save()
    if unit.known is Known.GONE:
        raise SessionLostError(
            "Another request ended the session, or gave it a new id, while this one"
            " ran; its changes are dropped."
        )


def update_user(
    state: AppState, user: object, function: cabc.Callable[[ServerSideSession], object]
) -> int:
    """Change all live sessions of a user; return how many were changed."""
    if user is None:
        raise ValueError(
            "update_user() takes a user, and None is nobody: it would change the"
            " sessions of all who are not logged in."
        )
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            "update_user() takes a function that is not async; it would never be"
            " awaited."
        )
    name = stored_name_of(user)
    updated: set[str] = set()
    seen: set[str] = set()
    failures: list[RecordError] = []
    number = 0
    is_empty = False
    # Again until there is no other: a session whose id was rotated after it was listed
    # goes by another key. Nor is one empty listing believed: see operator._end_all().
    trail = Trail(state.backend, state.config.key_prefix, "update_user")
    while True:
        trail.step()
        keys = {*state.keys_of_user(user)} - seen
        if keys and updated:
            seen |= _moved(state, updated)
            keys -= seen
        if is_empty and not keys:
            break
        is_empty = not keys
        for key in keys:
            seen.add(key)
            try:
                found = _update(state, key, name, function, updated)
            except RecordError as error:
                if error.reason == "newer":  # else it is no session
                    failures.append(error)
                continue
            if found is not None:
                updated.add(found)
                number += 1
    for failure in failures:
        raise failure
    return number


def _update(
    state: AppState,
    key: str,
    user: str,
    function: cabc.Callable[[ServerSideSession], object],
    updated: cabc.Container[str],
) -> str | None:
    """Change one session of a user.

    :param updated: The keys of those that were changed before.
    :return: The key that it has now; ``None`` if there is nothing to be changed.
    """
    session = _open(state, key)
    if session is None or (unit := unit_of(session)).key in updated:
        return None

    def change() -> None:
        if state.interface.core.user_of(unit.data) != user:
            raise _NotTheirs
        function(session)

    try:
        state.interface.lifecycle.atomic(unit, change)
    except (_NotTheirs, SessionLostError):
        return None
    return None if unit.known is Known.GONE else unit.key or key


class _NotTheirs(Exception):
    """The session has another user by now."""


def _open(state: AppState, key: str | None) -> ServerSideSession | None:
    """Return a live session, under the id that it has now; ``None`` if there is none.

    That of the current request is the one that its view has.
    """
    current = state.current_key()
    buried: set[str] = set()
    prefix = state.config.key_prefix
    trail = Trail(state.backend, prefix, "open")
    while key is not None:
        if key == current:
            return _current(state)
        record = state.backend.load(key)
        if record is None:
            return None
        if record.is_tombstone:
            buried.add(key)
            key = trail.leave(key, record)
            continue
        before = predecessor_of(record, prefix)
        if before is not None and before not in buried and _is_live(state, before):
            # Its id is just being changed, by a request that takes a change of what
            # nobody should know yet for the end of the session.
            trail.step()
            key = before
            continue
        return _read(state, key, record)
    return None


def _current(state: AppState) -> ServerSideSession | None:
    """Return the session of the current request, if it is a stored one."""
    session = opened_session()
    assert session is not None  # noqa: S101 - who asks has found its key
    unit, loader = unit_of(session), state.interface.lifecycle.loader
    if unit.known is Known.UNSEEN:
        loader.load(unit)
    if unit.failure is not None:
        raise unit.failure  # whatever the visitor gets: nobody knows what there is
    return session if unit.known is Known.STORED else None


def _read(state: AppState, key: str, record: Record) -> ServerSideSession | None:
    """Return the session that is in a record; ``None`` if it has timed out."""
    core, interface = state.interface.core, state.interface
    signer = interface.get_signer(core.app)
    if signer is None or core.is_too_old(record):
        return None  # without a secret, there are no sessions
    unit = Unit(signer)
    unit.phase = Phase.OUTSIDE
    unit.presented = Presented("", "", core.clock())
    unit.identity = Identity("", key)
    core.adopt(unit, record)
    if core.is_idle(unit):
        return None
    return interface.session_class(unit, interface.lifecycle)


def _is_live(state: AppState, key: str) -> bool:
    """Whether there is a session under a key."""
    return key in state.backend.load_many([key])


def _moved(state: AppState, keys: cabc.Iterable[str]) -> set[str]:
    """Return the keys that sessions have got since they had these."""
    prefix = state.config.key_prefix
    return {key for old in keys for key in follow(state.backend, old, prefix)}
