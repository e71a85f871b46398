"""The attempts of one call of :meth:`.Lifecycle.settle`."""

from __future__ import annotations

import collections.abc as cabc
import enum

from .record import Record
from .rotation import Rotation

#: Brings another request's version in.
Resolve = cabc.Callable[[Record], None]


class Outcome(enum.IntEnum):
    """What became of a step."""

    #: It was done.
    DONE = 0
    #: Something was learnt, or another request was in the way: plan again.
    AGAIN = 1
    #: The session is gone, or nobody can tell: the browser is told nothing.
    LOST = 2


class Attempts:
    """What one call of settle() carries from one attempt to the next.

    :param resolve: Brings in what another request has stored; ``None`` for a merge.
    """

    #: The change of the id, once one was begun.
    rotation: Rotation | None = None
    conflicts: int = 0
    #: Why the session is written, for the log.
    reason: str = ""
    #: The content as the look for changes has serialized it.
    encoded: bytes | None = None

    def __init__(self, resolve: Resolve | None) -> None:
        self.resolve = resolve

    def take_back(self) -> None:
        """Give up the change of the id, if one was begun."""
        if self.rotation is not None:
            self.rotation.take_back()
            self.rotation = None

    @property
    def is_rotation_pending(self) -> bool:
        """Whether the session is stored under a new id that nobody was told yet."""
        return self.rotation is not None and self.rotation.pending is not None
