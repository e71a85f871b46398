"""Another request has stored something meanwhile: wait, and bring both together."""

from __future__ import annotations

import operator
import random
import time
import typing as t

from .core import Core
from .errors import BackendError
from .errors import ConflictError
from .errors import RecordError
from .merge import merge
from .meta import own_part
from .record import Record
from .rotation import go_along
from .unit import Stored
from .unit import Unit

# How often a conflict is resolved before giving up. Some request succeeds at every
# round, so only starvation gets here.
_MAX_TRIES = 100
# The longest pause between two tries, in seconds.
_MAX_PAUSE = 0.05


def wait(core: Core, unit: Unit, current: Record, conflicts: int) -> Record | None:
    """Wait before another try; return what is stored then, or ``None``.

    :param current: What was in the way.
    :param conflicts: How many there were in a row.
    :raises ConflictError: after a hundred.
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
    try:
        record = core.ask(unit, "load", core.backend.load, unit.key)
    except RecordError:
        return None
    if record is not None and record.is_tombstone:
        return go_along(core, unit, record) if unit.is_outside else None
    return record


def resolve(core: Core, unit: Unit, current: Record) -> None:
    """Bring another request's version and this one's changes together.

    :raises ConflictError: if ``SESSION_CONFLICT`` is ``"raise"``.
    """
    policy, stored = core.config.conflict, unit.stored
    if policy == "raise":
        raise ConflictError(
            "Another request changed the session while this one ran, and"
            " 'SESSION_CONFLICT' is 'raise'. The other request's version is kept."
        )
    assert stored is not None  # noqa: S101 - for type checkers
    mine, lifetime, meta = unit.data, unit.lifetime, unit.current_meta
    rebase(core, unit, current, stored, mine)
    if policy == "overwrite":
        unit.data, unit.lifetime, unit.own_meta = mine, lifetime, meta


def rebase(
    core: Core,
    unit: Unit,
    current: Record,
    base: Stored,
    mine: dict[str, t.Any],
) -> None:
    """Put what changed from ``base`` to ``mine`` on top of another record."""
    lifetime, meta = unit.lifetime, unit.own_meta
    is_lifetime_mine = unit.stored is None or lifetime != unit.stored.lifetime
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
    unit.own_meta = meta
    is_other = unit.stored is None or base.payload != unit.stored.payload
    if is_other and not unit.is_restarted:
        dumps = core.serializer.dumps

        def is_equal(a: t.Any, b: t.Any) -> bool:
            # As they would be stored: 1, 1.0 and True are equal to Python only.
            return dumps({"": a}) == dumps({"": b})

        content = base.serializer.loads(base.payload)
        mine = merge(content, mine, unit.data, is_equal)
    unit.data = mine
