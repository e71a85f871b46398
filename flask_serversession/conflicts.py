"""Another request has stored something meanwhile: wait, and bring both together."""

from __future__ import annotations

import random
import time
import typing as t

from .core import Core
from .errors import BackendError
from .errors import ConflictError
from .errors import RecordError
from .merge import merge
from .record import Record
from .serializers import CodedSerializer
from .unit import Unit

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
    return record


def resolve(core: Core, unit: Unit, current: Record, is_changed: bool) -> None:
    """Bring another request's version and this one's changes together.

    :param is_changed: Whether there are any.
    :raises ConflictError: if ``SESSION_CONFLICT`` is ``"raise"``.
    """
    policy, stored = core.config.conflict, unit.stored
    if unit.is_renewed and not (is_changed and core.is_changed(unit, current)):
        policy = "merge"  # nothing is in the way but the new id
    if policy == "raise":
        raise ConflictError(
            "Another request changed the session while this one ran, and"
            " 'SESSION_CONFLICT' is 'raise'. The other request's version is kept."
        )
    assert stored is not None  # noqa: S101 - for type checkers
    mine, lifetime = unit.data, unit.lifetime
    rebase(core, unit, current, stored.payload, stored.serializer, mine)
    if policy == "overwrite":
        unit.data, unit.lifetime = mine, lifetime


def rebase(
    core: Core,
    unit: Unit,
    current: Record,
    base: bytes,
    serializer: CodedSerializer,
    mine: dict[str, t.Any],
) -> None:
    """Put what changed from ``base`` to ``mine`` on top of another record.

    :param serializer: What wrote ``base``.
    """
    lifetime = unit.lifetime
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
    is_other = unit.stored is None or base != unit.stored.payload
    if is_other and not unit.is_restarted:
        dumps = core.serializer.dumps

        def is_equal(a: t.Any, b: t.Any) -> bool:
            # As they would be stored: 1, 1.0 and True are equal to Python only.
            return dumps({"": a}) == dumps({"": b})

        mine = merge(serializer.loads(base), mine, unit.data, is_equal)
    unit.data = mine
