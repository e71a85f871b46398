"""The default serializer: MessagePack with extension types of our own."""

from __future__ import annotations

import functools
import struct
import typing as t
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import msgpack  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
from markupsafe import Markup
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.datastructures import MultiDict

from .datetimes import moment_text
from .datetimes import parse_date
from .datetimes import parse_datetime
from .datetimes import parse_time
from .datetimes import read_moment
from .lazy import LEAST_SIZE
from .lazy import MOST_KEYS
from .lazy import LazyMap
from .plain import MSGPACK
from .plain import make_multi_dict
from .plain import write_plain
from .wording import checked_dict
from .wording import unreadable

# type() itself; pyright does not know its result for a value of type Any.
_class_of: t.Callable[[object], type] = type


class MsgpackSerializer:
    """MessagePack with extension types; compact, fast, exact.

    Keeps str (lone surrogates too), bytes, None, bool, int of any size, float, list,
    tuple, dict (in order; with keys of any of these types that can be hashed), set,
    frozenset, :class:`~markupsafe.Markup`, UUID, Decimal, datetime, date, time,
    timedelta, and Werkzeug's MultiDict and ImmutableMultiDict with all values. An aware
    datetime or time keeps its fixed offset or the key of its
    :class:`~zoneinfo.ZoneInfo`; where a machine that reads it does not know the key, a
    datetime gets its fixed offset instead, a time none. Any other tzinfo becomes the
    fixed offset at that moment.

    The extension types, by code:

    ====  ===========================================================================
    code  content
    ====  ===========================================================================
    1     marks the array that it is the first item of: ``t`` a tuple, ``s`` a set,
          ``f`` a frozenset, ``m`` a MultiDict, ``i`` an ImmutableMultiDict. Sets are
          sorted by the packed form of their members; the second item of the last two
          is a map of lists
    2     int beyond 64 bits: two's complement, big-endian
    3     Markup: UTF-8
    4     UUID: 16 bytes
    5     Decimal: its ``str``
    6     datetime: ISO 8601, then ``[zone key]`` (RFC 9557) or ``(name of a fixed
          offset)`` if it has one; a leading ``~`` stands for ``fold=1``
    7     date: ISO 8601
    8     time: as datetime
    9     timedelta: days, seconds and microseconds, three 32-bit integers, big-endian
    ====  ===========================================================================
    """

    name: str = "msgpack"
    code: bytes = b"m"

    def dumps(self, data: t.MutableMapping[str, t.Any], /) -> bytes:
        """Write the content of a session.

        :param data: A dict, or what :meth:`open` returned.
        :raises SerializationError: if it holds something that cannot be written.
        """
        try:
            if type(data) is LazyMap:
                return data.dumps()
            packed: bytes = _strict_packer().pack(data)
        except Exception:  # noqa: BLE001 - the second, slower try explains it
            return write_plain(data, MSGPACK, lambda plain: _packer().pack(plain))
        return packed

    def open(self, data: bytes, /) -> t.MutableMapping[str, t.Any]:
        """Read what :meth:`dumps` wrote, of a large session only what is looked at.

        :raises RecordError: as :meth:`loads`. A value that is read later can raise it
            then.
        """
        if len(data) >= LEAST_SIZE:
            try:
                return LazyMap(data, self)
            except Exception:  # noqa: BLE001, S110 - loads() can, or explains it
                pass
        return self.loads(data)

    # As the codec of a lazy map

    def index(self, payload: bytes, /) -> t.Iterator[tuple[t.Any, int, int, int]]:
        """See :meth:`.lazy.Codec.index`."""
        unpacker: t.Any = _unpacker(payload)
        size = unpacker.read_map_header()
        if size > MOST_KEYS:
            raise ValueError  # see there
        end = unpacker.tell()
        for _ in range(size):
            start, key, middle = end, unpacker.unpack(), unpacker.tell()
            unpacker.skip()
            end = unpacker.tell()
            yield key, start, middle, end
        if end != len(payload):
            raise ValueError  # loads() says what is wrong

    def read(self, part: bytes, /) -> t.Any:
        """See :meth:`.lazy.Codec.read`."""
        try:
            return _read(part)
        except Exception as error:  # noqa: BLE001 - hostile bytes raise many things
            raise unreadable(self.name, error) from None

    def write_header(self, size: int, /) -> bytes:
        """See :meth:`.lazy.Codec.write_header`."""
        header: bytes = _packer().pack_map_header(size)
        return header

    def write_pair(self, key: str, value: t.Any, /) -> bytes:
        """See :meth:`.lazy.Codec.write_pair`."""
        packed: bytes = _strict_packer().pack({key: value})
        return packed[1:]  # without the header of a map of one pair

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the bytes are.
        """
        try:
            value: dict[str, t.Any] = _read(data)
        except Exception as error:  # noqa: BLE001 - hostile bytes raise many things
            raise unreadable(self.name, error) from None
        return value if type(value) is dict else checked_dict(self.name, value)


_MARK = 1
_INT = 2
_MARKUP = 3
_UUID = 4
_DECIMAL = 5
_DATETIME = 6
_DATE = 7
_TIME = 8
_TIMEDELTA = 9

_msgpack: t.Any = msgpack  # which has no type hints
_Packer, _unpackb = _msgpack.Packer, _msgpack.unpackb
# The pure-Python msgpack would otherwise intern keys that are a str, which fails for
# Markup.
_PAIRS_HOOK = dict if _unpackb.__module__ == "msgpack.fallback" else None
# Skips the checks in ExtType.__new__, which take longer than everything else.
_ext: t.Any = functools.partial(
    tuple.__new__,  # pyright: ignore[reportUnknownMemberType]
    _msgpack.ExtType,
)
_timedelta_struct = struct.Struct(">iii")

# A marker is the first item of an array. An extension type holding a packed array
# would make packing and unpacking recursive, and each call of unpackb takes 40 KiB of C
# stack: a few hundred levels, which fit into a kilobyte of hostile bytes, would crash
# the process.
_MARK_TUPLE = _ext((_MARK, b"t"))
_MARK_SET = _ext((_MARK, b"s"))
_MARK_FROZENSET = _ext((_MARK, b"f"))
_MARK_MULTI = _ext((_MARK, b"m"))
_MARK_IMMUTABLE = _ext((_MARK, b"i"))


def _write_int(value: int) -> t.Any:
    # Called only for integers that msgpack's own types cannot hold.
    return _ext((_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)))


def _sorted_members(value: t.AbstractSet[t.Any]) -> list[t.Any]:
    members = [_member(member) for member in value]
    if len(members) > 1:
        members.sort(key=_packer().pack)
    return members


def _member(value: t.Any) -> t.Any:
    # Nested sets are sorted here, from the inside out. If the packer did it, each level
    # would pack and sort all levels below it twice.
    kind = _class_of(value)
    if kind is tuple:
        return [_MARK_TUPLE, *map(_member, value)]
    if kind is frozenset:
        return [_MARK_FROZENSET, *_sorted_members(value)]
    return value


_WRITERS: dict[type, t.Callable[[t.Any], t.Any]] = {
    int: _write_int,
    tuple: lambda value: [_MARK_TUPLE, *value],
    set: lambda value: [_MARK_SET, *_sorted_members(value)],
    frozenset: lambda value: [_MARK_FROZENSET, *_sorted_members(value)],
    MultiDict: lambda value: [_MARK_MULTI, dict(value.lists())],
    ImmutableMultiDict: lambda value: [_MARK_IMMUTABLE, dict(value.lists())],
    Markup: lambda value: _ext((_MARKUP, value.encode("utf-8", "surrogatepass"))),
    UUID: lambda value: _ext((_UUID, value.bytes)),
    Decimal: lambda value: _ext((_DECIMAL, str(value).encode())),
    datetime: lambda value: _ext((_DATETIME, _moment_bytes(value))),
    date: lambda value: _ext((_DATE, value.isoformat().encode())),
    time: lambda value: _ext((_TIME, _moment_bytes(value))),
    timedelta: lambda value: _ext(
        (
            _TIMEDELTA,
            _timedelta_struct.pack(value.days, value.seconds, value.microseconds),
        )
    ),
}


def _write(value: t.Any) -> t.Any:
    """Convert a type that msgpack does not know into one that it does."""
    # On a KeyError, dumps() makes the session plain first.
    return _WRITERS[type(value)](value)


# A new packer for each call: as fast as one per thread (most of its cost is the buffer,
# so it starts small and grows), and packers are not reentrant.
def _packer() -> t.Any:
    return _Packer(
        default=_write,
        strict_types=True,
        unicode_errors="surrogatepass",
        buf_size=512,
    )


# Takes two thirds of the time, but refuses lone surrogates.
def _strict_packer() -> t.Any:
    return _Packer(default=_write, strict_types=True, buf_size=512)


def _unpacker(data: bytes) -> t.Any:
    """Return what goes through bytes, and decodes keys that are texts."""
    unpacker = _msgpack.Unpacker(
        strict_map_key=False,
        unicode_errors="surrogatepass",
        max_buffer_size=len(data),
    )
    unpacker.feed(data)
    return unpacker


def _read(data: bytes) -> t.Any:
    reader = read_ext = read_list = None
    # A hook on every list is slow; without this byte there are no markers.
    if b"\xd4" in data:
        reader = _MarkReader()
        read_ext, read_list = reader.read_ext, reader.read_list
    # Limits every length to that of the input, so a few bytes cannot allocate
    # gigabytes. msgpack's own timestamps, written by other programs, become datetimes.
    value = _unpackb(
        data,
        ext_hook=read_ext or _read_ext,
        list_hook=read_list,
        object_pairs_hook=_PAIRS_HOOK,
        strict_map_key=False,
        unicode_errors="surrogatepass",
        timestamp=3,
    )
    if reader is not None and reader.open:
        raise ValueError("a marker outside of its place")
    return value


def _moment_bytes(value: datetime | time) -> bytes:
    return moment_text(value).encode("utf-8", "surrogatepass")


_READERS: dict[int, t.Callable[[bytes], t.Any]] = {
    _INT: lambda data: int.from_bytes(data, "big", signed=True),
    _MARKUP: lambda data: Markup(data.decode("utf-8", "surrogatepass")),  # noqa: S704 - it was one
    _UUID: lambda data: UUID(bytes=data),
    _DECIMAL: lambda data: Decimal(data.decode("ascii")),
    _DATETIME: lambda data: read_moment(
        data.decode("utf-8", "surrogatepass"), parse_datetime
    ),
    _DATE: lambda data: parse_date(data.decode("ascii")),
    _TIME: lambda data: read_moment(data.decode("utf-8", "surrogatepass"), parse_time),
    _TIMEDELTA: lambda data: timedelta(*_timedelta_struct.unpack(data)),
}


def _read_ext(code: int, data: bytes) -> t.Any:
    return _READERS[code](data)


class _Marker:
    __slots__ = ("make",)

    def __init__(self, make: t.Callable[[list[t.Any]], t.Any]) -> None:
        self.make = make


def _make_multi(kind: type) -> t.Callable[[list[t.Any]], t.Any]:
    def make(items: list[t.Any]) -> t.Any:
        (lists,) = items
        return make_multi_dict(kind, lists)

    return make


_MARKERS = {
    b"t": _Marker(tuple),
    b"s": _Marker(set),
    b"f": _Marker(frozenset),
    b"m": _Marker(_make_multi(MultiDict)),
    b"i": _Marker(_make_multi(ImmutableMultiDict)),
}


class _MarkReader:
    """Builds tuples, sets and forms while one payload is read."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        #: The number of markers read that are not yet the first item of a list.
        self.open = 0

    def read_ext(self, code: int, data: bytes) -> t.Any:
        if code == _MARK:
            self.open += 1
            return _MARKERS[data]
        return _READERS[code](data)

    def read_list(self, items: list[t.Any]) -> t.Any:
        if items and type(items[0]) is _Marker:
            self.open -= 1
            return items.pop(0).make(items)
        return items
