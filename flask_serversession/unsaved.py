"""Warns of changes that came after the session was stored, and so are not saved."""

from __future__ import annotations

import collections.abc as cabc
import logging
import typing as t

from flask import Response
from flask import request_tearing_down

from .core import Core
from .errors import SerializationError
from .unit import Known
from .unit import Phase
from .unit import Unit
from .unit import Wish

if t.TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger("flask_serversession")


class UnsavedChanges:
    """Looks for them when a request is torn down. Thread-safe.

    :param find: Returns what the session of the current request knows, if it was
        accessed.
    """

    def __init__(self, core: Core, find: cabc.Callable[[], Unit | None]) -> None:
        self._core = core
        self._find = find
        self._is_watching = False

    def watch(self) -> None:
        """Begin to warn.

        Not from the start: to ask for that costs a request as much as its session
        does, and few applications touch one after the response was begun.
        """
        if not self._is_watching:
            self._is_watching = True
            request_tearing_down.connect(self._warn, self._core.app)

    def watch_response(self, unit: Unit, response: Response) -> None:
        """Warn of a change inside a value that was handed out, however late it comes.

        What runs after the request, such as a generator without its context, may hold
        on to the value.
        """
        if response.is_streamed:
            self.watch()
        response.call_on_close(lambda: self._warn_of(unit))

    def _warn(self, app: Flask, **_: t.Any) -> None:
        unit = self._find()
        if unit is not None:
            self._warn_of(unit)

    def _warn_of(self, unit: Unit) -> None:
        if unit.is_late_told or not self._is_changed(unit):
            return
        unit.is_late_told = True
        logger.warning(
            "Session %s was changed after the response was begun, so the change is"
            " not saved. Call session.save() after such a change, or make it before"
            " the response.",
            self._core.handle_of(unit.key)
            or ("(unread)" if unit.known is Known.UNSEEN else "(new)"),
        )

    def _is_changed(self, unit: Unit) -> bool:
        if unit.phase is not Phase.CLOSED or unit.failure is not None:
            return False  # what was abandoned or has failed was reported or asked for
        if unit.known is not Known.STORED:
            return unit.wish >= Wish.SAVE and self._is_lost(unit)
        if unit.wish < Wish.SAVE and not unit.is_exposed:
            return False
        try:
            return bool(unit.find_change(self._core.serializer)[0])
        except SerializationError:
            return True

    def _is_lost(self, unit: Unit) -> bool:
        """Whether there was something to be done with a session that is not stored."""
        if unit.known is Known.UNSEEN:
            presented = unit.presented
            return bool(presented.values) and (
                not presented.is_verified
                or presented.cookie is not None
                or presented.claim is not None
            )
        if unit.known is Known.BROKEN:
            return unit.wish is Wish.END
        is_log_out = unit.known is Known.GONE and unit.wish is Wish.END
        return is_log_out or not unit.is_empty
