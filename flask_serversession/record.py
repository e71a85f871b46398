"""What a backend keeps, and how it is laid out in bytes."""

from __future__ import annotations

import dataclasses
import json
import struct
import types
import typing as t
import zlib

from .errors import RecordError
from .hiding import HiddenBytes
from .ids import key_of as key_of

#: The first byte of everything the library stores. It is not valid as the first
#: byte of UTF-8 text, of a pickle or of JSON, so foreign data never looks like ours.
MAGIC = 0xFE
#: The format written by this version. The layout of format 1 is the same, but what is
#: in the data is not: see :mod:`.payload`.
FORMAT = 2
# Tombstones are as they were, so versions that know no later format understand them.
_TOMBSTONE_FORMAT = 1

# What a datetime can express, in seconds since the epoch, and what an SQL column can.
_EARLIEST = -62_135_596_800
_LATEST = 253_402_300_800
_LAST_VERSION = 2**63 - 1
# In characters. What the library writes is a hundredth of it.
_MAX_META = 1024 * 1024

_TOMBSTONE = 1
_NO_USER = 0xFFFF
# magic, format, flags, -, body checksum | version | touched_at, expires_at, their
# checksum | created_at, length of user, length of meta
_HEADER = struct.Struct(">BBBxIQddIdHH")
_TIMES = struct.Struct(">dd")
_TIMES_CRC = struct.Struct(">I")
_VERSION = struct.Struct(">Q")
_FRAME = struct.Struct(">BBxxI")

#: The data of a tombstone. No session's data begins like that, and nothing that is
#: damaged comes to look like it.
TOMBSTONE_DATA = b"\0tombstone"

#: The meta of a record that has none: nobody can change it, so nobody need copy it.
NO_META: t.Mapping[str, str] = types.MappingProxyType({})
#: Length of the fixed-size header of an encoded record, in bytes.
HEADER_SIZE = _HEADER.size
#: Where the version lies in an encoded record: 8 bytes, big-endian.
VERSION_SLICE = slice(8, 16)
#: Where :func:`encode_times` belongs in an encoded record.
TIMES_SLICE = slice(16, 36)
#: Where the flags byte lies; it is :data:`TOMBSTONE_FLAG` for a tombstone.
FLAGS_OFFSET = 2
#: Value of the flags byte of a tombstone.
TOMBSTONE_FLAG = _TOMBSTONE
#: Where the length of the user lies: 2 bytes, big-endian. The user follows the header.
USER_LENGTH_SLICE = slice(44, 46)
#: The length that stands for no user.
NO_USER = _NO_USER


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One stored session, as backends see it. All times are seconds since the epoch.

    A record whose data is ``TOMBSTONE_DATA`` is a *tombstone*: it stands for a few
    seconds where a session was whose id has changed. It is loaded and compared like any
    other record. :meth:`.Backend.touch` and :meth:`.Backend.delete` treat it as absent,
    so that a request with the old id can neither extend nor remove it.
    """

    #: The serialized session; opaque to backends. Never shown: it holds session values.
    data: bytes = dataclasses.field(repr=False)
    #: Grows by one with every replace.
    version: int
    #: When the session began. Rotating the id does not reset it.
    created_at: float
    #: The last activity recorded.
    touched_at: float
    #: From this moment on the record must not be returned.
    expires_at: float
    #: Whom the session belongs to, for listing and revoking; ``None`` if nobody.
    user: str | None = None
    #: What an operator may see, such as the user agent and the address; may be empty.
    meta: t.Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])

    @property
    def is_tombstone(self) -> bool:
        """Whether the record only marks that its id was rotated away."""
        return self.data == TOMBSTONE_DATA


def encode_times(touched_at: float, expires_at: float) -> bytes:
    """Return the bytes of :data:`TIMES_SLICE`: both times and their own checksum.

    They have a checksum of their own so that a touch can rewrite them in place.
    """
    times = _TIMES.pack(touched_at, expires_at)
    return times + _TIMES_CRC.pack(zlib.crc32(times))


def encode_version(version: int) -> bytes:
    """Return the bytes of :data:`VERSION_SLICE`."""
    return _VERSION.pack(version)


def encode_record(record: Record) -> bytes:
    """Lay a whole record out in bytes, for backends that keep one value a session."""
    user = b"" if record.user is None else encode_user(record.user)
    meta = json.dumps(dict(record.meta)).encode() if record.meta else b""
    if len(user) >= _NO_USER or len(meta) > 0xFFFF:
        raise RecordError("The record's user or meta is longer than 64 KiB.", "damaged")
    header = _HEADER.pack(
        MAGIC,
        _TOMBSTONE_FORMAT if record.is_tombstone else FORMAT,
        _TOMBSTONE if record.is_tombstone else 0,
        0,
        record.version,
        record.touched_at,
        record.expires_at,
        zlib.crc32(_TIMES.pack(record.touched_at, record.expires_at)),
        record.created_at,
        _NO_USER if record.user is None else len(user),
        len(meta),
    )
    buffer = bytearray(header)
    buffer += user
    buffer += meta
    if not record.is_tombstone:
        buffer += record.data
    buffer[4:8] = _TIMES_CRC.pack(_body_checksum(buffer))
    return HiddenBytes(buffer)


def decode_record(buffer: bytes) -> Record:
    """Read back what :func:`encode_record` wrote.

    :raises RecordError: if the bytes are damaged, foreign, or of a newer format.
    """
    check_format(buffer)
    if len(buffer) < HEADER_SIZE:
        raise RecordError("The record is truncated.", "damaged")
    (
        _,
        _,
        flags,
        body_crc,
        version,
        touched_at,
        expires_at,
        times_crc,
        created_at,
        user_length,
        meta_length,
    ) = _HEADER.unpack_from(buffer)
    if zlib.crc32(buffer[16:32]) != times_crc or _body_checksum(buffer) != body_crc:
        raise RecordError("The record's checksum does not match.", "damaged")
    user: str | None = None
    user_end = HEADER_SIZE
    meta: t.Mapping[str, str] = NO_META
    try:
        if user_length != _NO_USER:
            user_end += user_length
            user = buffer[HEADER_SIZE:user_end].decode("utf-8", "surrogatepass")
        data_start = user_end + meta_length
        if meta_length:
            meta = check_meta(parse_meta(buffer[user_end:data_start]))
    except ValueError:
        raise RecordError("The record's header makes no sense.", "damaged") from None
    if data_start > len(buffer):
        raise RecordError("The record is truncated.", "damaged")
    # A checksum is no proof: whoever writes to the store can make one.
    if not are_sensible(version, created_at, touched_at, expires_at):
        raise RecordError("The record's header makes no sense.", "damaged")
    return Record(
        # Decided by the flag: data that is empty for another reason is damaged.
        data=TOMBSTONE_DATA if flags & _TOMBSTONE else buffer[data_start:],
        version=version,
        created_at=created_at,
        touched_at=touched_at,
        expires_at=expires_at,
        user=user,
        meta=meta,
    )


def are_sensible(version: object, *moments: object) -> bool:
    """Return whether a version and moments are of the kind that the library writes.

    Dates can express the moments, and there is a next version.
    """
    return (
        isinstance(version, int)
        and 0 <= version < _LAST_VERSION
        and all(
            isinstance(moment, (int, float)) and _EARLIEST <= moment < _LATEST
            for moment in moments
        )
    )


def parse_meta(text: str | bytes) -> object:
    """Return what is in the JSON of a record's meta.

    :raises ValueError: if it is not JSON, or very long.
    """
    if len(text) > _MAX_META:
        raise ValueError
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError from error


def check_meta(value: object) -> dict[str, str]:
    """Return the meta of a record.

    :raises ValueError: if it is not a mapping of texts to texts.
    """
    if not isinstance(value, dict):
        raise ValueError
    meta = t.cast("dict[str, object]", value)
    if not all(isinstance(text, str) for text in meta.values()):
        raise ValueError
    return t.cast("dict[str, str]", meta)


def decode_times(header: bytes) -> tuple[float, float]:
    """Read ``(touched_at, expires_at)`` from an encoded record or from its header.

    :raises RecordError: as :func:`decode_record`.
    """
    check_format(header)
    if len(header) < HEADER_SIZE:
        raise RecordError("The record is truncated.", "damaged")
    if zlib.crc32(header[16:32]) != _TIMES_CRC.unpack_from(header, 32)[0]:
        raise RecordError(
            "The checksum of the record's times does not match.", "damaged"
        )
    touched_at, expires_at = _TIMES.unpack_from(header, 16)
    return touched_at, expires_at


def encode_user(user: str) -> bytes:
    """Return the bytes that follow the header of a record of this user."""
    return user.encode("utf-8", "surrogatepass")


def decode_user(start: bytes) -> str | None:
    """Read the user of a record from its encoded form, or from the beginning of it.

    :param start: The header and what follows it, at least as much as the user has.
    :raises RecordError: as :func:`decode_record`, but for the checksum of the data.
    """
    size = size_with_user(start)
    if size == HEADER_SIZE and start[USER_LENGTH_SLICE] != b"\0\0":
        return None
    if len(start) < size:
        raise RecordError("The record is truncated.", "damaged")
    try:
        return start[HEADER_SIZE:size].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise RecordError("The record's user is not valid UTF-8.", "damaged") from None


def size_with_user(header: bytes) -> int:
    """Return the length of a record's header and user.

    :raises RecordError: as :func:`decode_user`.
    """
    check_format(header)
    if len(header) < HEADER_SIZE:
        raise RecordError("The record is truncated.", "damaged")
    length = int.from_bytes(header[USER_LENGTH_SLICE], "big")
    return HEADER_SIZE + (0 if length == _NO_USER else length)


def frame(data: bytes) -> bytes:
    """Put magic byte, format and checksum before data that is stored by itself.

    For backends that keep the other fields of a record in columns of their own.
    """
    format = _TOMBSTONE_FORMAT if data == TOMBSTONE_DATA else FORMAT
    return HiddenBytes(_FRAME.pack(MAGIC, format, zlib.crc32(data)) + data)


def unframe(buffer: bytes) -> bytes:
    """Read back what :func:`frame` wrote.

    :raises RecordError: as :func:`decode_record`.
    """
    check_format(buffer)
    checksum = zlib.crc32(memoryview(buffer)[_FRAME.size :])
    if len(buffer) < _FRAME.size or _FRAME.unpack_from(buffer)[2] != checksum:
        raise RecordError("The record's checksum does not match.", "damaged")
    return buffer[_FRAME.size :]


def check_format(buffer: bytes) -> None:
    """Check the two bytes that every format begins with.

    :raises RecordError: with the reason ``"newer"`` for a format that only a later
        version of the library knows, with ``"damaged"`` for anything else.
    """
    if len(buffer) < 2 or buffer[0] != MAGIC or buffer[1] == 0:
        raise RecordError("The record is not one of this library's.", "damaged")
    if buffer[1] > FORMAT:
        raise RecordError(
            f"The record has format {buffer[1]}; this version knows {FORMAT}.", "newer"
        )


def _body_checksum(buffer: bytes | bytearray) -> int:
    # Everything but the checksum itself and the times, which change in place.
    return zlib.crc32(
        memoryview(buffer)[36:],
        zlib.crc32(buffer[VERSION_SLICE], zlib.crc32(buffer[0:4])),
    )
