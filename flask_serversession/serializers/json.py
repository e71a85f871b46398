"""The serializer that any tool can read: Flask's tagged JSON with tags of our own."""

from __future__ import annotations

import json
import typing as t
from datetime import date
from datetime import datetime
from datetime import timezone
from decimal import Decimal

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
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.datastructures import MultiDict

from .datetimes import moment_text
from .datetimes import parse_date
from .datetimes import parse_datetime
from .datetimes import read_moment
from .plain import ATOMS
from .plain import JSON
from .plain import make_multi_dict
from .plain import write_plain
from .wording import checked_dict
from .wording import unreadable

_STR = frozenset({str})
_JSON_ATOMS = ATOMS - {bytes}


class JSONSerializer:
    """Flask's own tagged JSON, as UTF-8 text that any store's tools can show.

    Values that Flask's session keeps are written as Flask writes them. Values that it
    would silently change get tags of our own:

    =========  ======================================================================
    tag        content
    =========  ======================================================================
    ``" dt"``  datetime that Flask's ``" d"`` would change: with microseconds, naive, or
               not in UTC; written as :class:`MsgpackSerializer` does
    ``" da"``  date: ISO 8601
    ``" de"``  Decimal: its ``str``
    ``" k"``   dict with keys that are not all str: list of ``[key, value]``
    ``" md"``  Werkzeug's MultiDict: list of ``[key, [value, ...]]``
    ``" im"``  ImmutableMultiDict, such as ``request.form``: the same
    =========  ======================================================================

    set, frozenset, time, timedelta and tuples as keys are refused, as Flask does.

    The application's JSON provider is asked for what is refused otherwise, and for
    nothing else: a setting made for responses must not change the meaning of stored
    data.
    """

    name: str = "json"
    code: bytes = b"j"

    def __init__(self) -> None:
        self._tagged = _TaggedJSON()

    def dumps(self, data: t.MutableMapping[str, t.Any], /) -> bytes:
        """Write the content of a session.

        :raises SerializationError: if it holds something that cannot be written.
        """
        return write_plain(
            data,
            JSON,
            # Not escaped: escaped lone surrogates could combine into one character.
            lambda plain: self._tagged.dumps(plain).encode("utf-8", "surrogatepass"),
        )

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the bytes are.
        """
        try:
            value = self._tagged.loads(data.decode("utf-8", "surrogatepass"))
        except Exception as error:  # noqa: BLE001 - hostile bytes raise many things
            raise unreadable(self.name, error) from None
        return checked_dict(self.name, value)

    open = loads


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


class _TagMultiDict(JSONTag):
    __slots__ = ()
    key = " md"
    kind: type = MultiDict

    def check(self, value: t.Any) -> bool:
        return type(value) is self.kind

    def to_json(self, value: t.Any) -> t.Any:
        tag = self.serializer.tag
        return [[tag(key), tag(values)] for key, values in value.lists()]

    def to_python(self, value: t.Any) -> t.Any:
        return make_multi_dict(self.kind, {key: values for key, values in value})  # noqa: C416 - refuses more shapes


class _TagImmutableMultiDict(_TagMultiDict):
    __slots__ = ()
    key = " im"
    kind = ImmutableMultiDict


class _TagHTTPDate(TagDateTime):
    """Flask's tag, where it changes nothing."""

    __slots__ = ()

    def check(self, value: t.Any) -> bool:
        return (
            isinstance(value, datetime)
            and value.tzinfo is timezone.utc
            and not value.microsecond
            and not value.fold
            # Two-digit years, as in old e-mails, are read as 1969 to 2068.
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
        if not isinstance(value, str):  # a float would become its exact binary value
            raise TypeError("not a string")
        return Decimal(value)


class _TaggedJSON(TaggedJSONSerializer):
    __slots__ = ()

    default_tags = [  # noqa: RUF012 - as Flask has it
        _TagMultiDict,
        _TagImmutableMultiDict,
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
