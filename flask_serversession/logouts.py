"""What is a log-out, and what keeps one from looking as if it had worked."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging
import sys
import typing as t

from . import signals
from .core import Core
from .errors import BackendUnavailableError
from .errors import SerializationError
from .unit import FRESH_KEY
from .unit import Cookie
from .unit import Known
from .unit import Unit
from .unit import Wish

logger = logging.getLogger("flask_serversession")


def logs_out(core: Core, unit: Unit) -> bool:
    """Whether this request logs out the user of a session."""
    if unit.stored_user is None:
        return unit.wish is Wish.END
    return unit.is_restarted or core.user_of(unit.data) is None


def ends_anyway(core: Core, unit: Unit) -> bool:
    """Whether nobody is meant to find what was in a session, whatever it gets.

    What is left, a message for one, can be missed. Who was there must not stay.
    """
    if unit.is_empty or unit.is_outside or core.user_of(unit.data) is not None:
        return False
    if unit.known is Known.NEW:
        return unit.owed is Cookie.DELETE
    is_left = unit.is_restarted or unit.stored_user is not None
    return is_left and unit.known is Known.STORED


def drop_rest(core: Core, unit: Unit) -> None:
    """Want a session that :func:`ends_anyway` to end, without what is left of it."""
    logger.warning(
        "The backend is full. So session %s is ended, as the request wants it, and what"
        " else the request has put there is dropped.",
        core.handle_of(unit.key) or "(new)",
    )
    unit.failure = None  # the backend can be asked to delete
    unit.data.clear()
    unit.want(Wish.END)
    core.send(signals.session_lost, unit.key, unit.stored_user)


def changes_user(core: Core, unit: Unit) -> bool:
    """Whether whoever was logged in to a session is not afterwards."""
    is_other = core.user_of(unit.data) not in (None, unit.stored_user)
    return logs_out(core, unit) or (unit.stored_user is not None and is_other)


def note_removal(core: Core, unit: Unit, key: object) -> None:
    """Take the removal of the user for the log-out that it is meant to be.

    There is nobody in a session that is gone, or cannot be read. In one that is stored,
    the same user may be put back: who does that has logged in again.
    """
    if not core.is_user_key(key):
        return
    if unit.known >= Known.GONE:
        unit.want(Wish.END)
    elif unit.stored_user is not None:
        unit.has_logged_out = True


def note_absence(core: Core, unit: Unit, key: object) -> None:
    """Take the same for one where there is nobody to be removed any more."""
    if unit.known >= Known.GONE:
        note_removal(core, unit, key)


def note_nobody(core: Core, unit: Unit, key: object) -> None:
    """Take for a log-out what names nobody, in a session that is gone."""
    if core.is_user_key(key):
        user = None
        with contextlib.suppress(SerializationError):
            user = core.user_of(unit.data)
        if user is None:
            unit.want(Wish.END)


def note_emptying(unit: Unit) -> None:
    """Take for a log-out that somebody empties a session that is gone, key by key."""
    if unit.known >= Known.GONE:
        unit.want(Wish.END)


def note_return(core: Core, unit: Unit, key: object) -> None:
    """Count a user who is put back into a session as a new log-in.

    :param unit: That of a session from which this request has removed the user.
    """
    if core.is_user_key(key) and core.user_of(unit.data) == unit.stored_user:
        unit.has_logged_out = False
        if unit.phase:
            return  # the browser cannot be given another id
        unit.confirmed_at = core.clock()
        if core.config.regenerate_on_login:
            unit.want(Wish.NEW_ID)


def refuse_newer(core: Core, unit: Unit) -> BackendUnavailableError:
    """Return why a log-out fails that only a newer version could carry out."""
    error = BackendUnavailableError(
        "The session was written by a newer version of the library, and this one"
        " cannot end it. Try again: a worker that was updated can.",
        backend=core.backend.name,
        operation="delete",
    )
    unit.want(Wish.END)
    unit.fail(error)
    return error


class LogOuts:
    """Hears of log-outs that leave no trace in a session. Thread-safe.

    Flask-Login's ``logout_user()`` removes the keys that it finds, which are none where
    another request has given the session a new id, or where it cannot be read. It
    sends a signal all the same.

    :param find: Returns what the session of the current request knows, if it was
        accessed.
    """

    def __init__(self, core: Core, find: cabc.Callable[[], Unit | None]) -> None:
        self._core = core
        self._find = find
        self._is_watching = False

    def watch(self) -> None:
        """Begin to listen, if Flask-Login is in use."""
        if self._is_watching:
            return
        flask_login: t.Any = sys.modules.get("flask_login")
        if flask_login is not None:
            self._is_watching = True
            flask_login.user_logged_out.connect(self._end, self._core.app)

    def confirm(self, unit: Unit) -> None:
        """Let a log-in count as fresh that Flask-Login has marked as not fresh."""
        flask_login: t.Any = sys.modules.get("flask_login")
        if hasattr(self._core.app, "login_manager") and self._find() is unit:
            # It would be marked again if it did not name this address and browser.
            flask_login.confirm_login()
        else:
            unit.data[FRESH_KEY] = True

    def _end(self, app: object, **_: t.Any) -> None:
        unit = self._find()
        if unit is not None and unit.known >= Known.GONE:
            unit.want(Wish.END)
