"""``session.atomic()``: change the freshest copy, and again until it is saved."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import typing as t

from .conflicts import rebase
from .core import Core
from .errors import RecordError
from .hiding import HiddenBytes
from .hiding import HiddenList
from .loading import Loader
from .logouts import changes_user
from .logouts import refuse_newer
from .record import Record
from .rotation import log_out_successor
from .serializers import CodedSerializer
from .serializers import is_same
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
    own_meta: cabc.Mapping[str, str] | None
    confirmed_at: float | None

    def __repr__(self) -> str:
        return "<_Before>"  # without the content of the session

    def is_changed(self, serializer: CodedSerializer) -> bool:
        """Whether the request had changed something already.

        :param serializer: What wrote the content.
        """
        stored = self.stored
        return (
            self.wish >= Wish.SAVE
            or serializer is not stored.serializer
            or not is_same(serializer, self.content, stored.envelope.payload)
        )

    def restore(self, core: Core, unit: Unit, current: Record) -> None:
        """Put what the request had changed on top of a record."""
        unit.wish, unit.is_modified = self.wish, self.is_modified
        unit.confirmed_at = self.confirmed_at
        is_changed = self.lifetime != self.stored.envelope.lifetime
        now = unit.stored or self.stored
        is_mine = is_changed or unit.is_restarted
        unit.lifetime = self.lifetime if is_mine else now.envelope.lifetime
        unit.own_meta = self.own_meta
        rebase(core, unit, current, self.stored, core.serializer.loads(self.content))

    def undo(self, core: Core, unit: Unit) -> None:
        """Put it back as it was, unless it is not stored any more."""
        if unit.known is Known.STORED:
            self.restore(core, unit, unit.record)
            if self.is_changed(core.serializer) or unit.failure is not None:
                unit.wish = max(unit.wish, Wish.SAVE)


def run(
    loader: Loader,
    unit: Unit,
    function: cabc.Callable[[], T],
    write: cabc.Callable[[Unit, Resolve | None], None],
) -> T:
    """Run the function on the freshest copy, save the session, and return the result.

    :param write: Writes the unit; gets what brings in another request's version.
    :raises BackendUnavailableError: without running it, if the session cannot be read.
    """
    if unit.is_atomic:  # a part of what the outer one saves, and repeats
        return function()
    if unit.failure is not None and unit.known is Known.BROKEN:
        raise unit.failure
    unit.is_atomic = True
    try:
        if unit.known is Known.STORED:
            return _run_on_stored(loader, unit, function, write)
        result = _run_on_unstored(loader.core, unit, function)
        write(unit, None)
        return result
    finally:
        unit.is_atomic = False


def _run_on_stored(
    loader: Loader,
    unit: Unit,
    function: cabc.Callable[[], T],
    write: cabc.Callable[[Unit, Resolve], None],
) -> T:
    """Run the function on the freshest copy of a stored session, and save it."""
    core = loader.core
    before = _before(core, unit)
    results: list[T] = HiddenList()

    def run(current: Record) -> None:
        before.restore(core, unit, current)
        results[:] = [function()]
        if unit.known is Known.STORED:
            unit.wish = max(unit.wish, Wish.SAVE)

    tombstone: Record | None = None
    current: Record | None = unit.record
    if not unit.is_outside:  # which was loaded just now
        try:
            current = core.ask(unit, "load", core.backend.load, unit.key)
            if current is not None and current.is_tombstone:
                tombstone, current = current, loader.follow(unit, current)
        except RecordError as error:
            if error.reason == "newer" and changes_user(core, unit):
                raise refuse_newer(core, unit) from error
            current = None
    if current is None:
        if tombstone is not None:
            # Somebody logged out before this, and meant the session of this moment.
            log_out_successor(core, unit, tombstone)
        unit.data.clear()
        unit.lose()
        unit.wish = max(unit.wish, Wish.SAVE)
        result = function()
        write(unit, run)  # tells of the loss, which a later reload() would forget
        return result
    try:
        run(current)
        if unit.known is Known.STORED:  # and not ended by the function
            write(unit, run)
    except BaseException:
        before.undo(core, unit)
        raise
    return results[0]


def _run_on_unstored(core: Core, unit: Unit, function: cabc.Callable[[], T]) -> T:
    """Run the function on a session that has no stored copy yet, or none any more.

    What it changed before it raised is undone, as in a stored one.
    """
    known, wish, is_modified = unit.known, unit.wish, unit.is_modified
    lifetime, own_meta = unit.lifetime, unit.own_meta
    content = HiddenBytes(core.serializer.dumps(unit.data))
    try:
        return function()
    except BaseException:
        if unit.known is known and unit.failure is None:
            unit.data = core.serializer.loads(content)
            unit.lifetime, unit.own_meta = lifetime, own_meta
            unit.wish, unit.is_modified = max(wish, unit.least_wish), is_modified
        raise


@contextlib.contextmanager
def undone_if_raised(core: Core, unit: Unit) -> cabc.Generator[None, None, None]:
    """Put a stored session back as it was if a block raises that changes it."""
    before = _before(core, unit)
    try:
        yield
    except BaseException:
        before.undo(core, unit)
        raise


def _before(core: Core, unit: Unit) -> _Before:
    stored = unit.stored
    assert stored is not None  # noqa: S101 - for type checkers
    content = HiddenBytes(core.serializer.dumps(unit.data))
    changes = unit.wish, unit.is_modified, unit.lifetime, unit.own_meta
    return _Before(stored, content, *changes, unit.confirmed_at)
