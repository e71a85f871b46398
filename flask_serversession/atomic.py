"""``session.atomic()``: change the freshest copy, and again until it is saved."""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from .conflicts import rebase
from .core import Core
from .errors import RecordError
from .hiding import HiddenBytes
from .record import Record
from .unit import Known
from .unit import Stored
from .unit import Unit
from .unit import Wish

T = t.TypeVar("T")
Resolve = cabc.Callable[[Record], None]


class _Before(t.NamedTuple):
    """The session before the function ran: what every repetition starts from."""

    stored: Stored
    #: Its content, serialized, since the function may change it in place.
    content: bytes
    wish: Wish
    is_modified: bool
    lifetime: float | None

    def __repr__(self) -> str:
        return "<_Before>"  # without the content of the session

    @property
    def is_changed(self) -> bool:
        """Whether the request had changed something already."""
        return self.wish >= Wish.SAVE or self.content != self.stored.payload

    def restore(self, core: Core, unit: Unit, current: Record) -> None:
        """Put what the request had changed on top of a record."""
        unit.wish, unit.is_modified = self.wish, self.is_modified
        is_mine = self.lifetime != self.stored.lifetime or unit.is_restarted
        now = unit.stored or self.stored
        unit.lifetime = self.lifetime if is_mine else now.lifetime
        content = core.serializer.loads(self.content)
        stored = self.stored
        rebase(core, unit, current, stored.payload, stored.serializer, content)


def run_atomically(
    core: Core,
    unit: Unit,
    function: cabc.Callable[[], T],
    write: cabc.Callable[[Unit, Resolve], None],
) -> T:
    """Run the function on the freshest copy of a stored session, and save it.

    :param write: Writes the unit; gets what brings in another request's version.
    """
    stored = unit.stored
    assert stored is not None  # noqa: S101 - for type checkers
    content = HiddenBytes(core.serializer.dumps(unit.data))
    before = _Before(stored, content, unit.wish, unit.is_modified, unit.lifetime)
    results: list[T] = []

    def run(current: Record) -> None:
        before.restore(core, unit, current)
        results[:] = [function()]
        if unit.known is Known.STORED:
            unit.wish = max(unit.wish, Wish.SAVE)

    try:
        current = core.ask(unit, "load", core.backend.load, unit.key)
    except RecordError:
        current = None
    if current is None or current.is_tombstone:
        unit.data.clear()
        unit.lose()
        unit.wish = max(unit.wish, Wish.SAVE)
        return function()
    try:
        run(current)
        if unit.known is Known.STORED:  # and not ended by the function
            write(unit, run)
    except BaseException:
        if unit.known is Known.STORED:
            before.restore(core, unit, unit.record)
            if before.is_changed or unit.failure is not None:
                unit.wish = max(unit.wish, Wish.SAVE)
        raise
    return results[0]
