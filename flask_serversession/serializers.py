"""Bytes to dict and back, exact for every type that Flask's own session supports.

A serializer is two functions, :class:`Serializer`. Two are built in:

-   ``"msgpack"``, :class:`MsgpackSerializer`: compact, fast, the default.
-   ``"json"``, :class:`JSONSerializer`: Flask's tagged JSON, readable in any store.

Neither executes anything that it reads, and both write equal content as equal bytes,
so that ``dumps(loads(data)) == data``: changes are detected by comparing them.

Both take whatever Flask's own session takes. What is of a subclass comes back as the
type that Flask gives back for it: an enum member that is a ``str`` as ``str``, an
``OrderedDict`` as ``dict``, a named tuple as ``tuple``, a dataclass instance as the
dict of its fields, anything with ``__html__`` as :class:`~markupsafe.Markup`.
"""

from __future__ import annotations

import functools
import gc
import json
import struct
import typing as t
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone
from decimal import Decimal
from uuid import UUID

import msgpack  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]
from flask.json.tag import JSONTag
from flask.json.tag import PassDict
from flask.json.tag import PassList
from flask.json.tag import TagBytes
from flask.json.tag import TagDateTime
from flask.json.tag import TagDict
from flask.json.tag import TaggedJSONSerializer
from flask.json.tag import TagMarkup
from flask.json.tag import TagTuple
from flask.json.tag import TagUUID
from markupsafe import Markup

from .code_runners import refuse_code_runner
from .errors import ConfigurationError
from .errors import RecordError
from .errors import SerializationError
from .moments import moment_text
from .moments import parse_date
from .moments import parse_datetime
from .moments import parse_time
from .moments import read_moment
from .simplify import ATOMS
from .simplify import CONTAINERS
from .simplify import JSON
from .simplify import MSGPACK
from .simplify import qualified
from .simplify import type_name
from .simplify import with_article
from .simplify import write_simplified

# type() itself; of a value of type Any, its result is of an unknown type to pyright.
_class_of: t.Callable[[object], type] = type


class Serializer(t.Protocol):
    """What :data:`SESSION_SERIALIZER` takes: two functions that undo each other.

    ``dumps`` should write equal content as equal bytes; where it does not, a session
    that was only read may be saved again. Both may be called from several threads at
    once.
    """

    def dumps(self, data: dict[str, t.Any], /) -> bytes:
        """Write the content of a session. May raise anything if it cannot."""
        ...

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote. May raise anything if it cannot."""
        ...


class CodedSerializer(t.Protocol):
    """A serializer with its name and its code, as :func:`serializer_for` gives it.

    Unlike a bare :class:`Serializer`, it raises nothing but the two errors named here.
    """

    #: For messages.
    name: str
    #: One byte, kept beside each payload: who wrote it.
    code: bytes

    def dumps(self, data: dict[str, t.Any], stored: bytes = b"", /) -> bytes:
        """Write the content of a session.

        :param stored: What was written before; whoever can tell faster that it is the
            same may do so.
        :raises SerializationError: if it holds something that cannot be written.
        """
        ...

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the bytes are.
        """
        ...


class MsgpackSerializer:
    """MessagePack with extension types; compact, fast, exact.

    Keeps str (lone surrogates too), bytes, None, bool, int of any size, float, list,
    tuple, dict (in order; with keys of any of these types that can be hashed), set,
    frozenset, :class:`~markupsafe.Markup`, UUID, Decimal, datetime, date, time and
    timedelta. An aware datetime or time keeps its fixed offset or the key of its
    :class:`~zoneinfo.ZoneInfo`; where a machine that reads it does not know the key, a
    datetime gets its fixed offset instead, a time none. Any other tzinfo becomes the
    fixed offset at that moment.

    The extension types, by code:

    ====  ===========================================================================
    code  content
    ====  ===========================================================================
    1     marks the array that it is the first item of: ``t`` a tuple, ``s`` a set,
          ``f`` a frozenset. Sets are sorted by the packed form of their members
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

    def dumps(self, data: dict[str, t.Any], stored: bytes = b"", /) -> bytes:
        """Write the content of a session.

        :param stored: What was written before. If that is what it would write again,
            it does so without looking for what must not be written, which takes as
            long as writing.
        :raises SerializationError: if it holds something that cannot be written.
        """
        try:
            packed: bytes = _strict_packer().pack(data)
        except Exception:  # noqa: BLE001 - the second, slower try explains it
            packed = b""
        if packed and packed == stored:
            return packed
        if packed and not (_may_hold_impostor(packed) and _holds_impostor(data)):
            return packed
        return write_simplified(data, MSGPACK, lambda plain: _packer().pack(plain))

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the bytes are.
        """
        try:
            # Hooking into every list costs time; without this byte there is no marker.
            if b"\xd4" in data:
                reader = _MarkReader()
                value = _unpack(
                    data, ext_hook=reader.read_ext, list_hook=reader.read_list
                )
                if reader.open:
                    raise ValueError("a marker outside of its place")
            else:
                value = _unpack(data, ext_hook=_read_ext)
        except Exception as error:  # noqa: BLE001 - hostile bytes raise many things
            raise _unreadable(self.name, error) from None
        return _checked_dict(self.name, value)


class JSONSerializer:
    """Flask's own tagged JSON, as UTF-8 text that any store's tools can show.

    What Flask's session keeps is written as Flask writes it. What it would change
    without a word is kept by tags of our own:

    =========  ======================================================================
    tag        content
    =========  ======================================================================
    ``" dt"``  datetime that Flask's ``" d"`` would change: with microseconds, naive, or
               not in UTC; written as :class:`MsgpackSerializer` does
    ``" da"``  date: ISO 8601
    ``" de"``  Decimal: its ``str``
    ``" k"``   dict with keys that are not all str: list of ``[key, value]``
    =========  ======================================================================

    set, frozenset, time, timedelta and tuples as keys are refused, as Flask does.

    Does not use the application's JSON provider: what is stored must not change its
    meaning with a setting that was made for responses.
    """

    name: str = "json"
    code: bytes = b"j"

    def __init__(self) -> None:
        self._tagged = _TaggedJSON()

    def dumps(self, data: dict[str, t.Any], _stored: bytes = b"", /) -> bytes:
        """Write the content of a session.

        :raises SerializationError: if it holds something that cannot be written.
        """
        return write_simplified(
            data,
            JSON,
            # Escaped in ASCII, a lone surrogate could meet its other half.
            lambda plain: self._tagged.dumps(plain).encode("utf-8", "surrogatepass"),
        )

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the bytes are.
        """
        try:
            value = self._tagged.loads(data.decode("utf-8", "surrogatepass"))
        except Exception as error:  # noqa: BLE001 - hostile bytes raise many things
            raise _unreadable(self.name, error) from None
        return _checked_dict(self.name, value)


class CustomSerializer:
    """The application's own serializer, made to raise our errors only.

    :param serializer: Any object, also a module, with ``dumps`` and ``loads``.
    :raises ConfigurationError: if it is known to run code that it reads.
    """

    code: bytes = b"c"

    def __init__(self, serializer: Serializer) -> None:
        refuse_code_runner(serializer)
        self._serializer: t.Any = serializer
        #: The module's or the class's name.
        self.name: str = getattr(serializer, "__name__", type(serializer).__name__)

    def dumps(self, data: dict[str, t.Any], _stored: bytes = b"", /) -> bytes:
        """Write the content of a session.

        :raises SerializationError: whatever the serializer raised, or if it gave
            something else than bytes.
        """
        try:
            written: object = self._serializer.dumps(data)
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"flask.session could not be written by the serializer {self.name!r}:"
                f" it raised {type_name(error)}."
            ) from error
        if not isinstance(written, bytes):
            raise SerializationError(
                f"'dumps' of the serializer {self.name!r} gave"
                f" {with_article(type_name(written))}; bytes are expected."
            )
        return written

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the serializer
            raised, or if it gave something else than a dict.
        """
        try:
            value: object = self._serializer.loads(data)
        except RecordError:
            raise
        except Exception as error:
            raise _unreadable(self.name, error) from error
        return _checked_dict(self.name, value)


def serializer_for(value: str | bytes | Serializer) -> CodedSerializer:
    """Give the serializer that a value of :data:`SESSION_SERIALIZER` stands for.

    :param value: A built-in serializer's name or any object with ``dumps`` and
        ``loads``; or the code of a built-in serializer, as found beside a payload.
    :raises ConfigurationError: if it is none of these, or runs code that it reads.
    :raises RecordError: if it is another code, with the reason ``"unreadable"``.
    """
    if isinstance(value, bytes):
        for make in _BUILT_IN.values():
            serializer = make()
            if serializer.code == value:
                return serializer
        raise RecordError(
            "The payload was written by another serializer than the one in"
            " 'SESSION_SERIALIZER'.",
            "unreadable",
        )
    refuse_code_runner(value)
    if isinstance(value, str):
        if value in _BUILT_IN:
            return _BUILT_IN[value]()
    elif isinstance(value, (MsgpackSerializer, JSONSerializer, CustomSerializer)):
        return value
    elif (
        not isinstance(value, type)
        and callable(getattr(value, "dumps", None))
        and callable(getattr(value, "loads", None))
    ):
        return CustomSerializer(value)
    given = repr(value) if isinstance(value, str) else with_article(type_name(value))
    if isinstance(value, type):
        given = f"the class {qualified(value)}, not an instance of it"
    raise ConfigurationError(
        f"'SESSION_SERIALIZER' is {given}; expected 'json', 'msgpack' or an object"
        " with 'dumps' and 'loads'.",
        "SESSION_SERIALIZER",
    )


_BUILT_IN: dict[str, t.Callable[[], CodedSerializer]] = {
    "msgpack": MsgpackSerializer,
    "json": JSONSerializer,
}


def _unreadable(name: str, error: Exception) -> RecordError:
    # The error's own message may quote what it stumbled over, a value of the session.
    return RecordError(
        f"The payload cannot be read by the {name} serializer ({type_name(error)}).",
        "unreadable",
    )


def _checked_dict(name: str, value: object) -> dict[str, t.Any]:
    if not isinstance(value, dict):
        raise RecordError(
            f"The payload, read by the {name} serializer, is"
            f" {with_article(type_name(value))}; a dict is expected.",
            "unreadable",
        )
    return t.cast("dict[str, t.Any]", value)


# MessagePack

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
_FALLBACK = "msgpack.fallback"
# Skips the checks of ExtType.__new__, which take longer than all the rest.
_ext: t.Any = functools.partial(
    tuple.__new__,  # pyright: ignore[reportUnknownMemberType]
    _msgpack.ExtType,
)
_timedelta_struct = struct.Struct(">iii")

# A marker as the first item of an array, and not an extension type that holds a
# packed array: packing and unpacking would enter themselves at each level, and each
# call of unpackb takes 40 KiB of C stack, so that a few hundred levels, which fit into
# a kilobyte of hostile bytes, would end the process.
_MARK_TUPLE = _ext((_MARK, b"t"))
_MARK_SET = _ext((_MARK, b"s"))
_MARK_FROZENSET = _ext((_MARK, b"f"))


def _write_int(value: int) -> t.Any:
    # Only called for what msgpack's own integers cannot hold.
    return _ext((_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)))


def _sorted_members(value: t.AbstractSet[t.Any]) -> list[t.Any]:
    members = [_member(member) for member in value]
    if len(members) > 1:
        members.sort(key=_packer().pack)
    return members


def _member(value: t.Any) -> t.Any:
    # Sets in sets are sorted here, from the inside out: left to the packer, each
    # level would pack, and sort, all the levels below it twice.
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
    """Turn what msgpack does not know into something that it does know."""
    # A KeyError makes dumps simplify the session first.
    return _WRITERS[type(value)](value)


# One packer a call: that is as fast as keeping one for each thread (its cost is its
# buffer, hence the small one, which grows), and a packer cannot be entered again by
# something that it calls.
_packer: t.Any = functools.partial(
    _msgpack.Packer,
    default=_write,
    strict_types=True,
    unicode_errors="surrogatepass",
    buf_size=512,
)
# Takes two thirds of the time, and refuses a lone surrogate.
_strict_packer: t.Any = functools.partial(
    _msgpack.Packer, default=_write, strict_types=True, buf_size=512
)
# Bounds every length by that of the bytes, so that a few of them cannot ask for
# gigabytes. What other programs wrote as msgpack's own timestamp is a datetime.
_unpack: t.Any = functools.partial(
    _msgpack.unpackb,
    strict_map_key=False,
    unicode_errors="surrogatepass",
    timestamp=3,
    # msgpack in Python alone, for where it cannot be compiled, would otherwise intern
    # the keys that are a str, which fails for Markup.
    object_pairs_hook=dict if _msgpack.unpackb.__module__ == _FALLBACK else None,
)


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


_MARKERS = {b"t": _Marker(tuple), b"s": _Marker(set), b"f": _Marker(frozenset)}


class _MarkReader:
    """Builds tuples and sets while one payload is read."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        #: How many markers were read that no list has begun with, as yet.
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


# What the packer writes by itself although it would be read back as another type, or
# not at all, and so must be refused. It writes them with these first bytes, which
# also occur in other places: then looking through the session is needed.
_IMPOSTORS: frozenset[type] = frozenset(
    {bytearray, memoryview, _msgpack.ExtType, _msgpack.Timestamp}
)
_STR = frozenset({str})


def _may_hold_impostor(packed: bytes) -> bool:
    # One by one, since each is a memchr: a regular expression takes 30 times as long.
    return (
        b"\xd4" in packed
        or b"\xc4" in packed
        or b"\xc7" in packed
        or b"\xd5" in packed
        or b"\xd6" in packed
        or b"\xd7" in packed
        or b"\xd8" in packed
        # These are for what is longer than 255 bytes.
        or (
            len(packed) > 0xFF
            and (
                b"\xc5" in packed
                or b"\xc6" in packed
                or b"\xc8" in packed
                or b"\xc9" in packed
            )
        )
    )


def _holds_impostor(data: dict[str, t.Any]) -> bool:
    # Level by level, with the garbage collector's view of what is in a container: that
    # leaves all loops to C. Only after packing, which makes sure that nothing contains
    # itself.
    containers: list[t.Any] = [data]
    while containers:
        items = gc.get_referents(*containers)
        kinds = set(map(type, items))
        if not _IMPOSTORS.isdisjoint(kinds):
            return True
        if CONTAINERS.isdisjoint(kinds):
            return False
        if CONTAINERS.issuperset(kinds):  # a list of dicts, as most large ones are
            containers = items
        else:
            containers = [item for item in items if type(item) in CONTAINERS]
    return False


# JSON


class _TagKeys(JSONTag):
    """Tag for dicts with keys that JSON would turn into strings."""

    __slots__ = ()
    key = " k"

    def check(self, value: t.Any) -> bool:
        return isinstance(value, dict) and not _STR.issuperset(
            map(type, t.cast("t.Iterable[object]", value))
        )

    def to_json(self, value: t.Any) -> t.Any:
        tag = self.serializer.tag
        return [[tag(key), tag(item)] for key, item in value.items()]

    def to_python(self, value: t.Any) -> t.Any:
        return {key: item for key, item in value}  # noqa: C416 - refuses more shapes


class _TagHTTPDate(TagDateTime):
    """Flask's tag, where it changes nothing."""

    __slots__ = ()

    def check(self, value: t.Any) -> bool:
        return (
            isinstance(value, datetime)
            and value.tzinfo is timezone.utc
            and not value.microsecond
            and not value.fold
            # The years of two digits that e-mails had are taken for 1969 to 2068.
            and value.year >= 1000
        )

    def to_python(self, value: t.Any) -> t.Any:
        moment = super().to_python(value)
        if moment is None:
            raise ValueError("not an HTTP date")
        return moment


class _TagMoment(JSONTag):
    __slots__ = ()
    key = " dt"

    def check(self, value: t.Any) -> bool:
        return isinstance(value, datetime)

    def to_json(self, value: t.Any) -> t.Any:
        return moment_text(value)

    def to_python(self, value: t.Any) -> t.Any:
        return read_moment(value, parse_datetime)


class _TagDate(JSONTag):
    __slots__ = ()
    key = " da"

    def check(self, value: t.Any) -> bool:
        return isinstance(value, date)

    def to_json(self, value: t.Any) -> t.Any:
        return value.isoformat()

    def to_python(self, value: t.Any) -> t.Any:
        return parse_date(value)


class _TagDecimal(JSONTag):
    __slots__ = ()
    key = " de"

    def check(self, value: t.Any) -> bool:
        return isinstance(value, Decimal)

    def to_json(self, value: t.Any) -> t.Any:
        return str(value)

    def to_python(self, value: t.Any) -> t.Any:
        if not isinstance(value, str):  # a float would be taken for its binary value
            raise TypeError("not a string")
        return Decimal(value)


class _TaggedJSON(TaggedJSONSerializer):
    __slots__ = ()

    default_tags = [  # noqa: RUF012 - as Flask has it
        _TagKeys,
        TagDict,
        PassDict,
        TagTuple,
        PassList,
        TagBytes,
        TagMarkup,
        TagUUID,
        _TagHTTPDate,
        _TagMoment,
        _TagDate,
        _TagDecimal,
    ]

    def tag(self, value: t.Any) -> t.Any:
        return value if type(value) in _JSON_ATOMS else super().tag(value)

    def dumps(self, value: t.Any) -> str:
        return json.dumps(
            self.tag(value),
            ensure_ascii=False,
            check_circular=False,
            separators=(",", ":"),
        )

    def loads(self, value: str) -> t.Any:
        return json.loads(value, object_hook=self.untag)


_JSON_ATOMS = ATOMS - {bytes}
