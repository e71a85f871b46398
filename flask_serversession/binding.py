"""Which key of a device a session keeps, and who may register one.

What becomes of it where the session is stored. The protocol is in :mod:`.device`.
"""

from __future__ import annotations

import typing as t

from .payload import write_device
from .unit import Unit

if t.TYPE_CHECKING:
    from .core import Core


def device_of(core: Core, unit: Unit, user: str | None) -> bytes:
    """Return the key that a session is bound to, which is lost with its user.

    Another request's change of the content cannot drop it, nor can this one's.

    :param user: Whose the session is now.
    """
    if unit.device is not None:
        return write_device(unit.device)
    device = b"" if unit.stored is None else unit.stored.envelope.device
    return b"" if device and _is_other(core, unit, user) else device


def is_offered(core: Core, unit: Unit, user: str | None) -> bool:
    """Whether the browser of a session that was just stored may register a key.

    Only if its user has just proved who they are: whoever has but a copy of the cookie
    must not get a key of their own accepted.

    :param user: Whose the session is now.
    """
    return user is not None and (
        unit.confirmed_at is not None or _is_other(core, unit, user)
    )


def _is_other(core: Core, unit: Unit, user: str | None) -> bool:
    """Whether the user of a session was not the one who has it now.

    A user who is put back into a session that was emptied is the same: they proved
    nothing.
    """
    if unit.stored is None:
        return True
    if user == unit.stored.record.user:
        return False
    return user is None or unit.is_restarted or core.is_log_in(unit, user)
