"""``SESSION_MAX_PER_USER``: ends the sessions of a user that logged in first."""

from __future__ import annotations

import itertools
import random
import time
import typing as t

from .core import Core
from .core import counts_from
from .ids import is_key
from .record import Record
from .rotation import Trail
from .rotation import predecessor_of
from .unit import Unit

if t.TYPE_CHECKING:
    from blinker import NamedSignal

# How often the sessions of a user are counted before those of newer log-ins are ended
# too, and the pause between while two log in at once, in seconds.
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
    if unit.stored_user == user_before:
        core.send(signal, unit.key, user_before, **values)
        return
    ended: list[str] = []
    try:
        _end_oldest(core, unit, ended)
    finally:
        core.send(signal, unit.key, unit.stored_user, **values)
        for key in ended:
            core.send_destroyed(key, unit.stored_user, "limit")


def _end_oldest(core: Core, unit: Unit, ended: list[str]) -> None:
    """End the oldest sessions of a user who has just logged in once too often.

    All that log in at one moment end the same sessions in the same order, so together
    they end no more than they have to.

    :param ended: Gets the keys of those that were ended.
    """
    limit, user = core.config.max_per_user, unit.stored_user
    if limit is None or user is None:
        return
    gone: set[str] = set()
    trail = Trail(core.backend, core.config.key_prefix, "SESSION_MAX_PER_USER")
    for tries in itertools.count():
        trail.step()
        keys = core.ask(unit, "keys_of_user", core.backend.keys_of_user, user)
        keys = [key for key in keys if is_key(key, core.config.key_prefix)]
        if len(keys) <= limit or unit.key not in keys:
            return
        loaded = core.ask(unit, "load", core.backend.load_many, keys)
        # What has gone meanwhile may have another id now, and is counted again.
        gone_before, gone = gone, {*keys} - {*loaded}
        records = {
            key: record
            for key, record in loaded.items()
            if predecessor_of(record, core.config.key_prefix) not in loaded
        }
        records[unit.key] = unit.record
        excess = max(0, len(records) - limit)
        chosen = _choose(records, unit.key, excess, is_last=tries >= _TRIES - 1)
        for key in chosen:
            if core.ask(unit, "delete", core.backend.delete, key):
                core.ended.add(key, "limit")
                ended.append(key)
            else:
                gone.add(key)
        if len(chosen) < excess:
            time.sleep(random.uniform(0.5, 1.5) * _PAUSE)  # noqa: S311
        elif gone <= gone_before:
            return


def _choose(
    records: dict[str, Record], own_key: str, excess: int, is_last: bool
) -> list[str]:
    """Return the keys of the sessions that this log-in may end.

    Two concurrent log-ins must not end each other. So the records of newer log-ins are
    left to their own requests, and are taken in the last round only, should a clock
    have been wrong, or a request have counted before this one was there.
    """
    written = {key: (record.touched_at, key) for key, record in records.items()}
    is_newest = is_last or max(written.values()) == written[own_key]
    oldest = sorted(records, key=lambda key: (counts_from(records[key]), key))
    # A log-in that is itself among the oldest stays, and another session goes for it;
    # but not if a newer log-in is about to end it.
    is_spared = is_newest and own_key in oldest[:excess]
    return [
        key
        for key in oldest[: excess + is_spared]
        if key != own_key and (is_last or written[key] < written[own_key])
    ]
