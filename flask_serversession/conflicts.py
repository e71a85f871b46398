"""Another request has stored something meanwhile: wait, and bring both together."""

from __future__ import annotations

import collections.abc as cabc
import logging
import operator
import random
import time
import typing as t

from .core import Core
from .errors import BackendError
from .errors import ConflictError
from .errors import RecordError
from .errors import SerializationError
from .errors import ServerSessionError
from .hiding import forget_frames
from .merge import merge
from .meta import MAX_SIZE
from .meta import own_part
from .meta import size_of
from .record import Record
from .serializers import is_same
from .serializers.lazy import LazyMap
from .unit import Stored
from .unit import Unit
from .unit import Wish

logger = logging.getLogger("flask_serversession")

_Content = cabc.MutableMapping[str, t.Any]

# How often a conflict is resolved before giving up. Some request succeeds at every
# round, so only starvation gets here.
_MAX_TRIES = 100
# The longest pause between two tries, in seconds.
_MAX_PAUSE = 0.05


def wait(core: Core, unit: Unit, current: Record, conflicts: int) -> Record | None:
    """Wait before another try; return what is stored then, perhaps a tombstone.

    :param current: What was in the way.
    :param conflicts: How many there were in a row.
    :raises ConflictError: after a hundred.
    :raises RecordError: if what is stored then cannot be read.
    """
    if conflicts >= _MAX_TRIES:
        raise ConflictError(
            f"The session was changed by other requests {conflicts} times in a row"
            " while this one tried to save it. Write less often to one session."
        )
    if conflicts < 2:
        return current
    # Jitter: requests that collided once would collide again in step.
    pause = min(_MAX_PAUSE, 0.001 * 2**conflicts)
    time.sleep(random.uniform(0, pause))  # noqa: S311
    # The others went on meanwhile, so what was in the way is of no use any more.
    return core.ask(unit, "load", core.backend.load, unit.key)


def has_timed_out(core: Core, unit: Unit, current: Record) -> bool:
    """Whether a session had ended by itself before this request met it again.

    Its record is there for longer if a request that did not know of a shorter lifetime
    yet has touched it.
    """
    seal, key = core.sealer, unit.key
    began_at, user = current.created_at, current.user
    try:
        envelope = seal.open(current.data, key, created_at=began_at, user=user)
    except RecordError:
        return False  # which is said elsewhere
    lifetime = envelope.lifetime
    is_idle = lifetime is not None and core.clock() >= current.touched_at + lifetime
    return is_idle or core.is_too_old(current)


def resolve(core: Core, unit: Unit, current: Record) -> None:
    """Bring another request's version and this one's changes together.

    A request that changed nothing takes the other's, whatever ``SESSION_CONFLICT``.

    :raises ConflictError: if ``SESSION_CONFLICT`` is ``"raise"``.
    """
    policy, stored = core.config.conflict, unit.stored
    assert stored is not None  # noqa: S101 - for type checkers
    if policy != "merge" and (
        _unacknowledged(unit, current) is not None
        or not is_changed(core, unit, stored)
        # If nothing but the new id is in the way, there is no conflict.
        or (unit.is_renewed and not core.is_changed(unit, current))
    ):
        policy = "merge"  # there is nothing to be in conflict with
    if policy == "raise":
        raise ConflictError(
            "Another request changed the session while this one ran, and"
            " 'SESSION_CONFLICT' is 'raise'. The other request's version is kept."
        )
    rebase(core, unit, current, stored, unit.data, is_merged=policy == "merge")


def is_changed(core: Core, unit: Unit, stored: Stored) -> bool:
    """Whether a request has written to its session.

    That it is to be stored says nothing about it: ``SESSION_RESAVE`` and a renewal
    store what was only read, and so does ``regenerate()``.
    """
    if unit.wish is not Wish.NEW_ID:
        return unit.wish >= Wish.SAVE
    if unit.lifetime != stored.envelope.lifetime or unit.own_meta is not None:
        return True
    try:
        content = stored.serializer.dumps(unit.data)
    except SerializationError:
        return True  # what was stored, the former serializer could write
    return not is_same(stored.serializer, content, stored.envelope.payload)


def _unacknowledged(unit: Unit, current: Record) -> Stored | None:
    """Return what this request has stored itself, if that is what is in the way."""
    known = unit.unacknowledged
    return known if known is not None and known.record.data == current.data else None


def rebase(
    core: Core,
    unit: Unit,
    current: Record,
    base: Stored,
    mine: _Content,
    is_merged: bool = True,
) -> None:
    """Put what changed from ``base`` to ``mine`` on top of another record.

    :param is_merged: Whether anything of the other record is kept.
    """
    lifetime, meta = unit.lifetime, unit.current_meta
    try:
        _rebase(core, unit, current, _unacknowledged(unit, current) or base, mine)
        if not is_merged:
            unit.data, unit.lifetime, unit.own_meta = mine, lifetime, meta
    except ServerSessionError as error:
        del mine  # error reporters record local variables
        raise forget_frames(error) from error.__cause__


def _rebase(
    core: Core, unit: Unit, current: Record, base: Stored, mine: _Content
) -> None:
    lifetime, meta = unit.lifetime, unit.own_meta
    stored = unit.stored
    is_lifetime_mine = stored is None or lifetime != stored.envelope.lifetime
    try:
        core.adopt(unit, current)
    except RecordError as error:
        raise BackendError(
            "The session was overwritten meanwhile with something that cannot be"
            f" read: {error}",
            backend=core.backend.name,
            operation="replace",
        ) from error
    if is_lifetime_mine or unit.is_restarted:
        unit.lifetime = lifetime
    if meta is not None and not unit.is_restarted:
        theirs = unit.current_meta
        meta = merge(own_part(base.record.meta), meta, theirs, operator.eq)
        # What one request adds is checked when it does; together they may be too much.
        if (size := size_of(meta)) > MAX_SIZE:
            logger.warning(
                "session.meta would take %d bytes with what another request has put"
                " there, and may take %d. What this request has put there is dropped:"
                " keep what is long in the session itself.",
                size,
                MAX_SIZE,
            )
            meta = theirs
    unit.own_meta = meta
    payload = base.envelope.payload
    is_other = unit.stored is None or payload != unit.stored.envelope.payload
    if is_other and not unit.is_restarted:
        serial = core.serializer

        def is_equal(a: t.Any, b: t.Any) -> bool:
            # As they would be stored: 1, 1.0 and True are equal to Python only.
            return is_same(serial, serial.dumps({"": a}), serial.dumps({"": b}))

        mine = _merge(base.open(), mine, unit.data, is_equal)
    unit.data = mine


def _merge(
    base: _Content,
    mine: _Content,
    theirs: _Content,
    equal: cabc.Callable[[t.Any, t.Any], bool],
) -> _Content:
    """Merge, and of large sessions only what this request has touched.

    :param theirs: Just loaded; what comes out may be the same object, changed.
    """
    if not (isinstance(mine, LazyMap) and isinstance(theirs, LazyMap)):
        return merge(base, mine, theirs, equal)
    touched = {key for key in (*base, *mine, *theirs) if mine.part(key) is None}

    def part(version: _Content) -> dict[str, t.Any]:
        return {key: version[key] for key in version if key in touched}

    merged = merge(part(base), part(mine), part(theirs), equal)
    for key in touched:
        if key not in merged:
            theirs.pop(key, None)
    for key, value in merged.items():
        if key not in theirs or theirs[key] is not value:
            theirs[key] = value
    return theirs
