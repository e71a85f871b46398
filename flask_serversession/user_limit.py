"""``SESSION_MAX_PER_USER``: ends the sessions of a user that logged in first.

All log-ins go by one order, the moment of the log-in, and none ends a session that is
among the last ones in it. Each stores its own session before it lists all. So whoever
lists last sees all that are left, and ends what is too much, in whatever order their
operations come: exactly as many sessions remain as the limit says, the last ones.
"""

from __future__ import annotations

import itertools
import random
import time
import typing as t

from .core import Core
from .core import counts_from
from .ids import is_key
from .rotation import Trail
from .rotation import predecessor_of
from .unit import Unit

if t.TYPE_CHECKING:
    from blinker import NamedSignal

# How often the sessions of a user are counted again while something moves, and the
# pause between, in seconds.
_TRIES = 6
_PAUSE = 0.02


def tell_stored(
    core: Core,
    unit: Unit,
    signal: NamedSignal,
    user_before: str | None,
    **values: str,
) -> None:
    """Send a signal about what was just stored, and see to the user's limit.

    In this order: a receiver that raises is no way around the limit.
    """
    user = unit.record.user
    if user == user_before or user is None or core.config.max_per_user is None:
        if signal.receivers:
            core.send(signal, unit.key, user, **values)
        return
    ended: list[str] = []
    try:
        _end_first(core, unit, user, core.config.max_per_user, ended)
    finally:
        core.send(signal, unit.key, user, **values)
        for key in ended:
            core.send_destroyed(key, user, "limit")


def _end_first(core: Core, unit: Unit, user: str, limit: int, ended: list[str]) -> None:
    """End the sessions that logged in first, of a user who has just logged in.

    :param ended: Gets the keys of those that were ended.
    """
    own_key = unit.key
    gone: set[str] = set()
    trail = Trail(core.backend, core.config.key_prefix, "SESSION_MAX_PER_USER")
    for tries in itertools.count():
        trail.step()
        keys = core.ask(unit, "keys_of_user", core.backend.keys_of_user, user)
        keys = [key for key in keys if is_key(key, core.config.key_prefix)]
        if len(keys) <= limit or own_key not in keys:
            return
        loaded = core.ask(unit, "load", core.backend.load_many, keys)
        # What has gone meanwhile may have another id now, and is counted again.
        gone_before, gone = gone, {*keys} - {*loaded}
        moments = {
            key: counts_from(record)
            for key, record in loaded.items()
            if predecessor_of(record, core.config.key_prefix) not in loaded
        }
        moments[own_key] = counts_from(unit.record)
        chosen, is_unclear = _choose(moments, own_key, limit, core.clock())
        if is_unclear and tries >= _TRIES - 1:
            chosen, is_unclear = _spare(moments, own_key, limit), False
        for key in chosen:
            if core.ask(unit, "delete", core.backend.delete, key):
                core.ended.add(key, "limit")
                ended.append(key)
            else:
                gone.add(key)
        if is_unclear:
            time.sleep(random.uniform(0.5, 1.5) * _PAUSE)  # noqa: S311
        elif gone <= gone_before or own_key in ended:
            return


def _choose(
    moments: dict[str, float], own_key: str, limit: int, now: float
) -> tuple[list[str], bool]:
    """Return the keys of the sessions to end, and whether to look again.

    Where others have logged in while this one was being stored, it may be itself too
    much: that is as if they had come right after it. It is unclear where they did so at
    the very same moment, or by a clock that is ahead of this one. Their own request may
    be about to end this session, so for a while nobody is ended in place of it.

    :param moments: When who logged in, in seconds since the epoch.
    """
    order = sorted(moments, key=lambda key: (moments[key], key))
    first = order[: max(0, len(order) - limit)]
    if own_key not in first:
        return first, False
    later = [key for key in order if moments[own_key] < moments[key] <= now]
    if len(later) >= limit:
        return first, False
    return [key for key in first if key != own_key], True


def _spare(moments: dict[str, float], own_key: str, limit: int) -> list[str]:
    """Return the keys of the sessions to end if nobody ends this one."""
    others = sorted(moments.keys() - {own_key}, key=lambda key: (moments[key], key))
    return others[: len(moments) - limit]
