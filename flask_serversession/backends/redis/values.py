"""Keys as the server knows them, and what it stores under one."""

from __future__ import annotations

import math
import re
import struct

from ...errors import RecordError
from ...hiding import HiddenBytes
from ...record import FLAGS_OFFSET
from ...record import TOMBSTONE_FLAG
from ...record import Record
from ...record import decode_record
from ...record import decode_times
from ...record import encode_record

# What follows the record. Until when its user's index lists it, 0 if it does not:
# see scripts.py. And which write this was: a driver that lost the connection sends its
# command again, and this tells a write that had got through from another request's. The
# record alone would not do: two rotations of the same id leave equal tombstones.
TRAILER = struct.Struct(">d8s")
LISTED = struct.Struct(">d")
NONCE_SIZE = 8
# Redis counts in milliseconds; this is the last number whose double is exact.
LONGEST_LIFE = 2**53 - 1

_GLOB = re.compile(rb"[\\*?\[\]]")


def encode_key(key: str) -> bytes:
    """Return the name that a key has on the server."""
    return key.encode("utf-8", "surrogatepass")


def decode_key(name: bytes) -> str:
    """Return the key that has a name on the server.

    :raises UnicodeDecodeError: if no key has.
    """
    return name.decode("utf-8", "surrogatepass")


def glob_of(prefix: str) -> bytes:
    """Return a pattern that matches the prefix and nothing else."""
    return _GLOB.sub(rb"\\\g<0>", encode_key(prefix))


def encode_value(record: Record, listed: float, nonce: bytes) -> bytes:
    """Return what is stored for a record.

    :param listed: Until when the index of its user lists it; 0 if it does not.
    """
    return HiddenBytes(encode_record(record) + TRAILER.pack(listed, nonce))


def decode_value(value: bytes) -> Record:
    """Return the record in what is stored.

    :raises RecordError: if it cannot be read.
    """
    return decode_record(HiddenBytes(value[: -TRAILER.size]))


def is_live(start: bytes | None, now: float) -> bool | None:
    """Return whether a live record starts like this; ``None`` if it is unreadable.

    :param start: Its header, or more; ``None`` for something other than a string.
    """
    if not start:
        return None if start is None else False
    try:
        _, expires_at = decode_times(start)
    except RecordError:
        return None
    return not start[FLAGS_OFFSET] & TOMBSTONE_FLAG and expires_at > now


def milliseconds_until(moment: float, now: float) -> int:
    """Return for how long a key lives that expires at a moment; 0 if it has passed."""
    left = (moment - now) * 1000
    if left <= 0:
        return 0
    # One more: the server counts from its last full millisecond.
    return math.ceil(min(left, LONGEST_LIFE - 1)) + 1
