"""Dates and times as text, for both serializers."""

from __future__ import annotations

import contextlib
import typing as t
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone
from zoneinfo import ZoneInfo

_Moment = t.TypeVar("_Moment", datetime, time)


class RefusedError(TypeError):
    """This value cannot be written, although others of its type can."""

    def __init__(self, remedy: str) -> None:
        super().__init__(remedy)
        self.remedy = remedy


# Bound once, here: freezegun replaces the classes in this module while time is frozen,
# and reading must return the real ones.
parse_datetime = datetime.fromisoformat
parse_date = date.fromisoformat
parse_time = time.fromisoformat


def moment_text(value: datetime | time) -> str:
    """Return a datetime or time as text, with its zone's key or name, and its fold."""
    zone = value.tzinfo
    text = value.isoformat()
    # The key is None for ZoneInfo.from_file().
    if isinstance(zone, ZoneInfo) and zone.key:
        text += f"[{zone.key}]"
    elif isinstance(value, time) and zone is not None and value.utcoffset() is None:
        # Other zones are stored as an offset, and this value has none.
        raise RefusedError("Give it a ZoneInfo or a fixed offset.")
    elif isinstance(zone, timezone) and zone is not timezone.utc:
        name = zone.tzname(None)
        if name != timezone(zone.utcoffset(None)).tzname(None):
            text += f"({name})"
    return f"~{text}" if value.fold else text


def read_moment(text: str, parse: t.Callable[[str], _Moment]) -> _Moment:
    """Read back what :func:`moment_text` wrote."""
    fold = text.startswith("~")
    if fold:
        text = text[1:]
    if text.endswith("]"):
        iso, _, key = text[:-1].partition("[")
        value = _iso_moment(iso, parse)
        # If this machine does not know the zone, the offset in the text remains.
        with contextlib.suppress(LookupError, ValueError, OSError, ImportError):
            value = value.replace(tzinfo=ZoneInfo(key))
    elif text.endswith(")"):
        iso, _, name = text[:-1].partition("(")
        value = _iso_moment(iso, parse)
        offset = value.utcoffset()
        if offset is None:
            raise ValueError("a named offset without the offset")
        value = value.replace(tzinfo=timezone(offset, name))
    else:
        value = _iso_moment(text, parse)
    return value.replace(fold=1) if fold else value


def _iso_moment(iso: str, parse: t.Callable[[str], _Moment]) -> _Moment:
    value = parse(iso)
    # CPython reads an offset of less than a second as UTC.
    if iso[-16:-7] in ("+00:00:00", "-00:00:00"):
        offset = timedelta(microseconds=int(iso[-16] + iso[-6:]))
        value = value.replace(tzinfo=timezone(offset))
    return value
