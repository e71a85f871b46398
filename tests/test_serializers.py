# ruff: noqa: DTZ001, DTZ005, DTZ011, DTZ901 - naive moments must be kept, too
from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import threading
import types
import typing as t
import zoneinfo
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone
from datetime import tzinfo
from decimal import Decimal
from pathlib import PurePosixPath
from uuid import UUID
from zoneinfo import ZoneInfo

import flask
import msgpack
import pytest
from flask.json.tag import TaggedJSONSerializer
from freezegun import freeze_time
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from markupsafe import Markup
from werkzeug.datastructures import CombinedMultiDict
from werkzeug.datastructures import FileMultiDict
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.datastructures import MultiDict
from werkzeug.local import LocalProxy

from flask_serversession.errors import ConfigurationError
from flask_serversession.errors import RecordError
from flask_serversession.errors import SerializationError
from flask_serversession.serializers import BUILT_IN as BY_CODE
from flask_serversession.serializers import CodedSerializer
from flask_serversession.serializers import CustomSerializer
from flask_serversession.serializers import JSONSerializer
from flask_serversession.serializers import MsgpackSerializer
from flask_serversession.serializers import serializer_for

# Other work on the same machine must not fail a test.
without_deadline = settings(deadline=None)

MSGPACK = MsgpackSerializer()
JSON = JSONSerializer()
BUILT_IN = [MSGPACK, JSON]


@pytest.fixture(params=BUILT_IN, ids=["msgpack", "json"])
def serializer(request: pytest.FixtureRequest) -> CodedSerializer:
    return request.param


def is_exact(one: t.Any, other: t.Any) -> bool:
    """Compare types and values all the way down, and what ``==`` overlooks."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one != one and other != other) or (
            struct.pack(">d", one) == struct.pack(">d", other)
        )
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, MultiDict):
        return is_exact(dict(one.lists()), dict(other.lists()))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            is_exact(*keys) and is_exact(*values)
            for keys, values in zip(
                zip(one, other, strict=True),
                zip(one.values(), other.values(), strict=True),
                strict=True,
            )
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_exact, one, other))
    if isinstance(one, (set, frozenset)):
        rest = list(other)
        for member in one:
            found = [index for index, o in enumerate(rest) if is_exact(member, o)]
            if not found:
                return False
            del rest[found[0]]
        return not rest
    if isinstance(one, (datetime, time)):
        return (
            one.replace(tzinfo=None) == other.replace(tzinfo=None)
            and one.fold == other.fold
            and is_exact(one.tzinfo, other.tzinfo)
        )
    if isinstance(one, timezone):
        return one == other and one.tzname(None) == other.tzname(None)
    if isinstance(one, ZoneInfo):
        return one.key == other.key
    return bool(one == other)


def back(serializer: CodedSerializer, value: t.Any) -> t.Any:
    data = serializer.dumps({"key": value})
    assert type(data) is bytes
    read = serializer.loads(data)
    assert list(read) == ["key"]
    assert serializer.dumps(read) == data
    return read["key"]


def error_of(serializer: CodedSerializer, data: dict[t.Any, t.Any]) -> t.Any:
    with pytest.raises(SerializationError) as caught:
        serializer.dumps(data)
    return caught.value


# Every value that must survive exactly

texts = st.text(st.characters(exclude_categories=()), max_size=8)
fixed_offsets = st.builds(
    timezone,
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
)
named_offsets = st.builds(
    timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), texts
)
zones = st.one_of(
    st.none(), st.just(timezone.utc), fixed_offsets, named_offsets, st.timezones()
)
datetimes = st.builds(
    lambda moment, fold: moment.replace(fold=fold),
    st.datetimes(timezones=zones),
    st.sampled_from([0, 1]),
)
times = st.builds(
    lambda moment, fold: moment.replace(fold=fold),
    st.times(timezones=zones),
    st.sampled_from([0, 1]),
)
json_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**40]),
    st.floats(),
    texts,
    st.sampled_from([" t", " t__", " di", " k", " dt", " da", " de", " d", " b"]),
    st.binary(max_size=20),
    texts.map(Markup),
    st.uuids(),
    st.decimals(),
    st.sampled_from(["1E+5", "-0", "1.50", "sNaN12", "-Infinity"]).map(Decimal),
    datetimes,
    st.dates(),
)
scalars = st.one_of(json_scalars, times, st.timedeltas())


def not_nan(value: t.Any) -> bool:
    # A signaling NaN cannot be hashed, so it is no key either.
    return not (isinstance(value, Decimal) and value.is_snan())


hashed = st.recursive(
    scalars.filter(not_nan),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=4,
)
msgpack_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashed, inner, max_size=4),
        st.sets(hashed, max_size=4),
        st.frozensets(hashed, max_size=4),
    ),
    max_leaves=12,
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(json_scalars.filter(not_nan), inner, max_size=4),
    ),
    max_leaves=12,
)


def check_round_trip(serializer: CodedSerializer, data: dict[t.Any, t.Any]) -> None:
    written = serializer.dumps(data)
    read = serializer.loads(written)
    assert is_exact(read, data), (read, data)
    assert serializer.dumps(read) == written


@without_deadline
@given(st.dictionaries(hashed, msgpack_values, max_size=4))
def test_msgpack_keeps_everything_exactly(data: dict[t.Any, t.Any]) -> None:
    check_round_trip(MSGPACK, data)


@without_deadline
@given(st.dictionaries(json_scalars.filter(not_nan), json_values, max_size=4))
def test_json_keeps_everything_that_it_takes_exactly(data: dict[t.Any, t.Any]) -> None:
    check_round_trip(JSON, data)


NEW_YORK = ZoneInfo("America/New_York")


def multi_dict(**lists: list[t.Any]) -> MultiDict[str, t.Any]:
    made: MultiDict[str, t.Any] = MultiDict()
    for key, values in lists.items():
        made.setlist(key, values)
    return made


EXACT: list[t.Any] = [
    "",
    "\ud800",
    "\ud83d\ude00",  # two halves that must not become one character
    "\U0001f600 żółć",
    "\0\n\"\\'",
    b"\x00\xff",
    b"",
    math.inf,
    -math.inf,
    math.nan,
    -0.0,
    5e-324,
    1e22,
    2**64,
    -(2**64),
    2**1000,
    (),
    (1, (2, [3, ()])),
    [],
    {},
    {"b": 1, "a": 2},
    {1: "int", "1": "str", None: 0, 1.5: 0, b"b": 0},
    {True: "bool"},
    {UUID(int=1): 1, Decimal(2): 2, date(2024, 1, 1): 3, datetime(2024, 1, 1): 4},
    {Markup("<b>"): 1},
    {" t": [1]},
    {" t": (1,), "more": 1},
    {" t__": 1},
    {" di": {" t": 1}},
    {" d": datetime(2024, 1, 2, tzinfo=timezone.utc)},
    {" k": [[1, 2]]},
    {" dt": "x"},
    {" da": {1: " da"}},
    {" de": Decimal("1.10")},
    {(" t"): {" t": {" t": {1: (2,)}}}},
    {" md": [["a", [1]]]},
    {" im": {1: " im"}},
    MultiDict([("tag", "a"), ("size", 1), ("tag", "b")]),
    ImmutableMultiDict([("tag", "a"), ("size", 1), ("tag", "b")]),
    MultiDict(),
    multi_dict(empty=[], one=[()], several=[Markup("<b>"), b"b", None]),
    MultiDict([(1, {2: 3}), (None, MultiDict([(" md", [1, (2,)])]))]),
    ImmutableMultiDict([("a", MultiDict([("b", ImmutableMultiDict([("c", "d")]))]))]),
    Markup("<b>\ud800"),
    Decimal("NaN"),
    Decimal("-sNaN7"),
    Decimal("1E-30"),
    Decimal("1.10"),
    datetime(2024, 1, 2, 3, 4, 5),
    datetime(2024, 1, 2, 3, 4, 5, 6),
    datetime(2024, 1, 2, tzinfo=timezone.utc),
    datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
    datetime(2024, 1, 2, tzinfo=timezone.utc, fold=1),
    datetime(50, 1, 2, tzinfo=timezone.utc),
    datetime(999, 12, 31, tzinfo=timezone.utc),
    datetime(1000, 1, 1, tzinfo=timezone.utc),
    datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=-5, seconds=1))),
    datetime(2024, 1, 2, tzinfo=timezone(timedelta(microseconds=-1))),
    datetime(2024, 1, 2, tzinfo=timezone(timedelta(microseconds=1), "name")),
    datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=1), "A [b] (c)")),
    datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK),
    datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1),
    datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam")),
    datetime.min,
    datetime.max.replace(tzinfo=timezone.utc),
    date.min,
    date(2024, 2, 29),
]
EXACT_IN_MSGPACK: list[t.Any] = [
    {(1, "a", (None,)): 1, frozenset({1}): 2, time(1): 3, timedelta(1): 4},
    {ImmutableMultiDict([("a", 1), ("a", 2)]): 1},
    {frozenset({(ImmutableMultiDict([("a", (1,))]),)})},
    MultiDict([((1,), {1}), ((1,), timedelta(1))]),
    set(),
    {1, "1", b"1", None, 1.5, (1,), frozenset({frozenset({1}), frozenset()})},
    frozenset({(frozenset({1, 2, 3}), "x")}),
    time(1, 2, 3, 4),
    time(1, fold=1, tzinfo=NEW_YORK),
    time(1, tzinfo=timezone(timedelta(hours=2), "two")),
    timedelta(-1, 1, 1),
    timedelta.min,
    timedelta.max,
]


def name_of(value: object) -> str:
    # The order of a set differs from one of pytest's workers to the other.
    return "set" if isinstance(value, set) else repr(value)


@pytest.mark.parametrize("value", EXACT, ids=repr)
def test_each_of_these_comes_back_exactly(
    serializer: CodedSerializer, value: t.Any
) -> None:
    assert is_exact(back(serializer, value), value)
    assert is_exact(back(serializer, [value, (value,)]), [value, (value,)])


@pytest.mark.parametrize("value", EXACT_IN_MSGPACK, ids=name_of)
def test_msgpack_also_keeps_what_json_has_no_form_for(value: t.Any) -> None:
    assert is_exact(back(MSGPACK, value), value)
    error_of(JSON, {"key": value})


@pytest.mark.parametrize("value", [{1: 2}, {" t": 1}, {" k": []}, {(1,): 2}, {}])
def test_the_session_itself_may_have_any_keys(value: dict[t.Any, t.Any]) -> None:
    assert is_exact(MSGPACK.loads(MSGPACK.dumps(value)), value)
    if (1,) not in value:
        assert is_exact(JSON.loads(JSON.dumps(value)), value)


def test_utc_comes_back_as_the_one_utc(serializer: CodedSerializer) -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
    assert back(serializer, moment).tzinfo is timezone.utc
    assert back(serializer, moment.replace(microsecond=0)).tzinfo is timezone.utc


def test_a_zone_comes_back_as_the_zone_itself(serializer: CodedSerializer) -> None:
    assert back(serializer, datetime(2024, 7, 1, tzinfo=NEW_YORK)).tzinfo is NEW_YORK


def test_an_unknown_zone_leaves_its_offset(serializer: CodedSerializer) -> None:
    moment = datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1)
    data = serializer.dumps({"key": moment})
    for key in (b"America/New_Jork", b"../../etc/passw", b"/etc/localtime/"):
        assert len(key) in (15, 16)
        changed = data.replace(b"America/New_York", key.ljust(16, b"x"))
        read = serializer.loads(changed)["key"]
        assert is_exact(read, moment.replace(tzinfo=timezone(timedelta(hours=-5))))


def test_a_time_of_an_unknown_zone_becomes_naive() -> None:
    data = MSGPACK.dumps({"key": time(1, tzinfo=NEW_YORK)})
    changed = data.replace(b"New_York", b"New_Jork")
    assert is_exact(MSGPACK.loads(changed)["key"], time(1))


class OddZone(tzinfo):
    """As dateutil's and pytz's: neither a fixed offset nor a ZoneInfo."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else timedelta(hours=3)

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return "ODD"


def test_another_kind_of_zone_becomes_its_offset(serializer: CodedSerializer) -> None:
    fixed = datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=3)))
    assert is_exact(back(serializer, fixed.replace(tzinfo=OddZone())), fixed)


def test_a_time_whose_zone_has_no_offset_is_refused() -> None:
    error = error_of(MSGPACK, {"at": time(1, tzinfo=OddZone())})
    assert str(error) == (
        "flask.session['at'] is a datetime.time, which the msgpack serializer cannot"
        " write. Give it a ZoneInfo or a fixed offset."
    )


# What Flask's own session takes


class TextEnum(str, enum.Enum):
    A = "a"


class NumberEnum(enum.IntEnum):
    ONE = 1
    HUGE = 2**70


class Float(float):
    pass


class Bytes(bytes):
    pass


class Loud(str):
    def __str__(self) -> str:
        return "overridden"

    def __repr__(self) -> str:
        return "overridden"


class Point(t.NamedTuple):
    x: t.Any
    y: t.Any


class ListOfMine(list[t.Any]):
    pass


class DateOfMine(date):
    pass


class UUIDOfMine(UUID):
    pass


class DecimalOfMine(Decimal):
    def __str__(self) -> str:
        return "overridden"


class Lazy:
    """As flask-babel's lazy strings."""

    def __html__(self) -> str:
        return "<i>lazy</i>"


class HTMLDict(dict[t.Any, t.Any]):
    def __html__(self) -> str:
        raise AssertionError("Flask takes it for a dict")


class HTMLBytes(bytes):
    def __html__(self) -> str:
        raise AssertionError("Flask takes it for bytes")


class HTMLText(str):
    def __html__(self) -> str:
        return "html of " + self


@dataclasses.dataclass
class Address:
    street: str
    lines: list[t.Any]


@dataclasses.dataclass(frozen=True)
class User:
    name: str
    address: Address


@dataclasses.dataclass
class HTMLData:
    name: str

    def __html__(self) -> str:
        return self.name


class HashableForm(MultiDict[str, t.Any]):
    __hash__ = object.__hash__


AS_FLASK: list[t.Any] = [
    TextEnum.A,
    NumberEnum.ONE,
    NumberEnum.HUGE,
    Float(1.5),
    Bytes(b"x"),
    Loud("loud"),
    Point(1, Point(2, [3])),
    ListOfMine([1, (2,)]),
    collections.OrderedDict(b=1, a=2),
    collections.defaultdict(list, a=[1]),
    collections.Counter("abca"),
    {TextEnum.A: 1},
    {Loud("loud"): TextEnum.A},
    [{TextEnum.A: NumberEnum.ONE}],
    Lazy(),
    [("message", Lazy())],
    HTMLDict(a=1),
    HTMLBytes(b"b"),
    HTMLText("t"),
    HTMLData("n"),
    Markup("<b>"),
    UUIDOfMine(int=5),
    User("n", Address("s", [1, {"a": None}])),
    {" t": TextEnum.A},
    {"a": (1, [b"x", {" b": 1}])},
    None,
    True,
    datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
]


@pytest.mark.parametrize("value", AS_FLASK, ids=lambda value: type(value).__name__)
def test_what_flask_takes_comes_back_as_flask_gives_it_back(
    serializer: CodedSerializer, value: t.Any
) -> None:
    flasks = TaggedJSONSerializer()
    expected = flasks.loads(flasks.dumps({"key": value}))["key"]
    assert is_exact(back(serializer, value), expected)


@without_deadline
@given(
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False),
            st.text(max_size=8),
            st.binary(max_size=8),
            st.uuids(),
            st.text(max_size=8).map(Markup),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(
                st.sampled_from([" t", " di", " b__", "a"]), inner, max_size=3
            ),
        ),
    )
)
def test_what_flask_keeps_is_written_as_flask_writes_it(value: t.Any) -> None:
    flasks = TaggedJSONSerializer()
    written = flasks.dumps({"key": value})
    assert json.loads(JSON.dumps({"key": value})) == json.loads(written)
    assert is_exact(JSON.loads(written.encode()), flasks.loads(written))
    assert is_exact(back(MSGPACK, value), flasks.loads(written)["key"])


def test_a_dataclass_keeps_what_asdict_gives(serializer: CodedSerializer) -> None:
    user = User("n", Address("s", [(1, 2), Decimal(3), b"x", {1: date(2024, 1, 1)}]))
    assert is_exact(back(serializer, user), dataclasses.asdict(user))


def test_subclasses_of_what_flask_changes_come_back_as_their_base(
    serializer: CodedSerializer,
) -> None:
    assert is_exact(back(serializer, DateOfMine(2024, 1, 2)), date(2024, 1, 2))
    assert is_exact(back(serializer, DecimalOfMine("1.10")), Decimal("1.10"))


def test_other_forms_come_back_with_every_value(serializer: CodedSerializer) -> None:
    """``request.values`` looks into two forms, and an application has its own."""

    class Form(MultiDict[str, str]):
        pass

    class Arguments(ImmutableMultiDict[str, str]):
        pass

    pairs = [("tag", TextEnum.A), ("tag", "b")]
    both = CombinedMultiDict([MultiDict(pairs), MultiDict([("tag", "c")])])
    plain = [("tag", str(TextEnum.A.value)), ("tag", "b")]
    assert is_exact(back(serializer, Form(pairs)), MultiDict(plain))
    assert is_exact(back(serializer, Arguments(pairs)), ImmutableMultiDict(plain))
    expected = ImmutableMultiDict([*plain, ("tag", "c")])
    assert is_exact(back(serializer, both), expected)
    assert is_exact(back(serializer, [both]), [expected])


def test_a_form_that_holds_itself_or_a_file_is_refused(
    serializer: CodedSerializer,
) -> None:
    form: MultiDict[str, t.Any] = MultiDict([("a", 1)])
    form.add("a", form)
    assert "session['form']['a'][1] contains itself" in str(
        error_of(serializer, {"form": form})
    )
    files = FileMultiDict()
    files.add_file("photo", io.BytesIO(b""), "photo.jpg")
    start = "flask.session['files']['photo'][0] is a "
    assert str(error_of(serializer, {"files": files})).startswith(start)
    refused = error_of(serializer, {"a": {HashableForm([("a", 1)]): 1}})
    assert str(refused).startswith("flask.session['a'] has in its keys a ")


def test_moments_of_freezegun_come_back_as_real_ones(
    serializer: CodedSerializer,
) -> None:
    with freeze_time("2024-01-02 03:04:05.000006"):
        value = [
            date.today(),
            datetime.now(),
            datetime.now(NEW_YORK),
        ]
        assert type(value[0]).__name__ == "FakeDate"
        written = serializer.dumps({"key": value})
        read_while_frozen = serializer.loads(written)["key"]
    expected = [
        date(2024, 1, 2),
        datetime(2024, 1, 2, 3, 4, 5, 6),
        datetime(2024, 1, 1, 22, 4, 5, 6, NEW_YORK),
    ]
    assert is_exact(read_while_frozen, expected)
    assert is_exact(serializer.loads(written)["key"], expected)


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"\xc4\0"),
        memoryview(b"\xc4\0"),
        memoryview(b"\xc4-\0-")[::2],
        memoryview(b"\xc4\0").cast("H"),
    ],
)
def test_other_bytes_come_back_as_bytes(
    serializer: CodedSerializer, value: t.Any
) -> None:
    assert is_exact(back(serializer, value), b"\xc4\0")
    # The same where something beside it makes the session take another way.
    beside = collections.OrderedDict(a=[value])
    assert is_exact(back(serializer, [beside, value]), [{"a": [b"\xc4\0"]}, b"\xc4\0"])


def test_a_view_of_bytes_as_a_key_or_member_comes_back_as_bytes() -> None:
    value: dict[t.Any, t.Any] = {memoryview(b"a"): {memoryview(b"b")}}
    assert is_exact(back(MSGPACK, value), {b"a": {b"b"}})
    value["o"] = collections.OrderedDict()
    assert is_exact(back(MSGPACK, value), {b"a": {b"b"}, "o": {}})
    assert is_exact(back(JSON, {memoryview(b"a"): 1}), {b"a": 1})


def test_equal_text_of_other_types_are_different_keys_no_more(
    serializer: CodedSerializer,
) -> None:
    # Markup is a str, so that Flask would turn the key into one.
    assert type(next(iter(back(serializer, {Markup("a"): 1})))) is Markup


# The form


def test_json_is_readable_text_in_the_order_of_the_session() -> None:
    data = {"z": "żółć", "a": [1, (2,)], "d": Decimal("1.10")}
    assert JSON.dumps(data).decode() == (
        '{"z":"żółć","a":[1,{" t":[2]}],"d":{" de":"1.10"}}'
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (
            datetime(2024, 1, 2, tzinfo=timezone.utc),
            {" d": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
        (datetime(2024, 1, 2), {" dt": "2024-01-02T00:00:00"}),
        (
            datetime(2024, 7, 2, tzinfo=NEW_YORK),
            {" dt": "2024-07-02T00:00:00-04:00[America/New_York]"},
        ),
        (date(2024, 1, 2), {" da": "2024-01-02"}),
        ({1: "a"}, {" k": [[1, "a"]]}),
        (MultiDict([("a", (1,)), ("a", 2)]), {" md": [["a", [{" t": [1]}, 2]]]}),
        (ImmutableMultiDict([(1, 2)]), {" im": [[1, [2]]]}),
        ({" dt": 1}, {" di": {" dt__": 1}}),
    ],
)
def test_the_tags_of_json_are_as_documented(
    value: t.Any, written: dict[str, t.Any]
) -> None:
    assert json.loads(JSON.dumps({"key": value}))["key"] == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ((1, 2), "93 d40174 01 02"),
        ({2, 1}, "93 d40173 01 02"),
        (frozenset(), "91 d40166"),
        (MultiDict([("a", 1), ("a", 2)]), "92 d4016d 81 a161 92 01 02"),
        (ImmutableMultiDict([("a", 1)]), "92 d40169 81 a161 91 01"),
        (2**64, "c7 09 02 01 00000000 00000000"),
        (Markup("a"), "d4 03 61"),
        (UUID(int=1), "d8 04 00000000 00000000 00000000 00000001"),
        (Decimal("1"), "d4 05 31"),
        (datetime(2024, 1, 2, fold=1), "c7 14 06" + b"~2024-01-02T00:00:00".hex()),
        (date(2024, 1, 2), "c7 0a 07" + b"2024-01-02".hex()),
        (time(1, 2, 3), "d7 08" + b"01:02:03".hex()),
        (timedelta(1, 2, 3), "c7 0c 09 00000001 00000002 00000003"),
    ],
)
def test_the_extension_types_of_msgpack_are_as_documented(
    value: t.Any, written: str
) -> None:
    data = MSGPACK.dumps({"": value})
    assert data == b"\x81\xa0" + bytes.fromhex(written.replace(" ", ""))


def test_the_order_of_a_sets_members_does_not_change_the_bytes() -> None:
    # Strings are in an order of their own in each process.
    members = [f"member {number}" for number in range(50)]
    nested = frozenset(frozenset(members[:number]) for number in range(9))
    backwards = members[::-1]
    one = {"a": set(members), "b": nested}
    other = {
        "a": set(backwards),
        "b": frozenset(frozenset(members[:n][::-1]) for n in reversed(range(9))),
    }
    assert MSGPACK.dumps(one) == MSGPACK.dumps(other)


def test_the_order_of_keys_changes_the_bytes(serializer: CodedSerializer) -> None:
    assert serializer.dumps({"a": 1, "b": 2}) != serializer.dumps({"b": 2, "a": 1})


def test_sets_in_sets_take_no_exponential_time() -> None:
    value: frozenset[t.Any] = frozenset({0, 1})
    for number in range(60):
        value = frozenset({value, number})
    assert is_exact(back(MSGPACK, value), value)


def test_the_json_provider_has_no_say_in_what_can_be_written_without_it() -> None:
    class Provider(flask.json.provider.DefaultJSONProvider):
        def dumps(self, obj: t.Any, **kwargs: t.Any) -> str:
            raise AssertionError

        def loads(self, s: str | bytes, **kwargs: t.Any) -> t.Any:
            raise AssertionError

    app = flask.Flask(__name__)
    app.json = Provider(app)
    data = {"b": date(2024, 1, 2), "a": [1]}
    outside = JSON.dumps(data)
    with app.app_context():
        assert JSON.dumps(data) == outside
        assert list(JSON.loads(outside)) == ["b", "a"]


class Tagged:
    """What a provider writes in a form that Flask's session reads as something else."""


class Looped:
    """What a provider makes itself of."""


class Broken:
    """What a provider fails at."""


class OwnProvider(flask.json.provider.DefaultJSONProvider):
    """Knows more types than Flask's, as its documentation shows."""

    @staticmethod
    def default(o: t.Any) -> t.Any:  # type: ignore[override]
        if isinstance(o, PurePosixPath):
            return str(o)
        if isinstance(o, (set, frozenset)):
            return sorted(t.cast("set[str]", o))
        if isinstance(o, complex):
            return {"real": o.real, "parts": (PurePosixPath("x"), Decimal(1))}
        if isinstance(o, Tagged):
            return {" t": [1, 2]}
        if isinstance(o, Looped):
            return o
        if isinstance(o, Broken):
            raise ZeroDivisionError("a secret value")
        return flask.json.provider.DefaultJSONProvider.default(o)


@pytest.fixture
def own_provider() -> t.Iterator[None]:
    app = flask.Flask(__name__)
    app.json = OwnProvider(app)
    with app.app_context():
        yield


FLASKS = TaggedJSONSerializer()


@pytest.mark.usefixtures("own_provider")
@pytest.mark.parametrize(
    "value",
    [
        PurePosixPath("/a"),
        1j,
        Tagged(),
        [PurePosixPath("/a"), (PurePosixPath("b"),)],
        {"a": {"b": PurePosixPath("/a")}},
        collections.OrderedDict(a=PurePosixPath("/a")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_json_provider_knows_is_read_back_as_flask_reads_it(
    serializer: CodedSerializer, value: t.Any
) -> None:
    assert is_exact(
        back(serializer, value), FLASKS.loads(FLASKS.dumps({"v": value}))["v"]
    )
    address = back(serializer, Address("street", [value]))
    assert address["lines"] == [back(serializer, value)]


@pytest.mark.usefixtures("own_provider")
def test_what_json_has_no_form_for_is_the_json_providers() -> None:
    assert back(JSON, {"b", "a"}) == ["a", "b"]
    assert back(JSON, [frozenset({"a"})]) == [["a"]]
    assert back(MSGPACK, {"b", "a"}) == {"a", "b"}
    error_of(JSON, {"at": time(1)})
    error_of(JSON, {"grid": {(1, 2): 3}})


@pytest.mark.usefixtures("own_provider")
def test_a_member_of_a_set_is_what_the_json_provider_makes_of_it() -> None:
    assert back(MSGPACK, {PurePosixPath("/a")}) == {"/a"}
    error_of(MSGPACK, {"v": {1j}})  # which becomes a dict


@pytest.mark.usefixtures("own_provider")
def test_what_the_json_provider_fails_at_is_named(serializer: CodedSerializer) -> None:
    for value in (Opaque(), {PurePosixPath("/a"): 1}):
        error = error_of(serializer, {"v": value})
        assert "cannot write" in str(error)
        assert error.path == "session['v']"
    for broken, raised in ((Looped(), "ValueError"), (Broken(), "ZeroDivisionError")):
        error = error_of(serializer, {"v": [broken]})
        assert str(error) == (
            f"flask.session['v'][0] is a {__name__}.{type(broken).__name__}, which"
            f" raised {raised} while the {serializer.name} serializer wrote it."
        )


def test_a_timestamp_that_another_program_packed_is_a_datetime() -> None:
    packed = msgpack.packb({"at": msgpack.Timestamp(0, 1000)})
    assert MSGPACK.loads(packed) == {
        "at": datetime(1970, 1, 1, microsecond=1, tzinfo=timezone.utc)
    }


def test_msgpack_in_python_alone_reads_and_writes_the_same_bytes() -> None:
    data = MSGPACK.dumps({"values": [*EXACT, *EXACT_IN_MSGPACK, *AS_FLASK]})
    code = (
        "import sys, msgpack\n"
        "from flask_serversession.serializers import MsgpackSerializer\n"
        "assert msgpack.Packer.__module__ == 'msgpack.fallback'\n"
        "data = sys.stdin.buffer.read()\n"
        "assert MsgpackSerializer().dumps(MsgpackSerializer().loads(data)) == data\n"
    )
    environ = {**os.environ, "MSGPACK_PUREPYTHON": "1"}
    subprocess.run([sys.executable, "-c", code], input=data, env=environ, check=True)


# What cannot be written


class Opaque:
    """An object like any other."""

    def __repr__(self) -> str:
        return "a secret value"


class PlainEnum(enum.Enum):
    A = "a secret value"


class HashableList(list[t.Any]):
    def __hash__(self) -> int:  # type: ignore[override]
        return 1


@pytest.mark.parametrize(
    ("value", "what", "remedy"),
    [
        (Opaque(), f"a {__name__}.Opaque", "plain data"),
        (object(), "an object", "plain data"),
        (PlainEnum.A, f"a {__name__}.PlainEnum", "Keep its value."),
        (math, "a module", "Keep its name."),
        (math.sqrt, "a builtin_function_or_method", "Keep its name."),
        (lambda: None, "a function", "Keep its name."),
        (Opaque, "a type", "Keep its name."),
        (User, "a type", "Keep its name."),
        (Markup, "a type", "Keep its name."),
        (
            LocalProxy(lambda: User),
            "a werkzeug.local.LocalProxy",
            "It stands for another object: keep the id of that one, such as"
            " current_user.get_id().",
        ),
        (1j, "a complex", "plain data"),
        (iter([]), "a list_iterator", "plain data"),
        (types.MappingProxyType({}), "a mappingproxy", "plain data"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_these_are_refused_by_both(
    serializer: CodedSerializer, value: t.Any, what: str, remedy: str
) -> None:
    error = error_of(serializer, {"cart": [1, 2, {"thumb": value}]})
    assert str(error).startswith(
        f"flask.session['cart'][2]['thumb'] is {what}, which the {serializer.name}"
        " serializer cannot write. "
    )
    assert remedy in str(error)
    assert "a secret value" not in str(error)
    assert error.path == "session['cart'][2]['thumb']"
    assert isinstance(error.__cause__, TypeError)
    # Also where it hides among what is written by other ways.
    for place in (
        [value],
        (value,),
        collections.OrderedDict(a=value),
        Address("s", [value]),
        Point(1, value),
        {1: [(value,)]},
        [[{"a": 1}, {"a": value}], ({},)],
    ):
        error_of(serializer, {"a": b"x", "key": place})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"cart": {"tags": {1}}},
            "flask.session['cart']['tags'] is a set, which the json serializer cannot"
            " write. Keep a list, or use the default serializer.",
        ),
        (
            {"tags": [frozenset()]},
            "flask.session['tags'][0] is a frozenset, which the json serializer cannot"
            " write. Keep a list, or use the default serializer.",
        ),
        (
            {"at": time(1)},
            "flask.session['at'] is a datetime.time, which the json serializer cannot"
            " write. Keep its isoformat(), or use the default serializer.",
        ),
        (
            {"for": timedelta(1)},
            "flask.session['for'] is a datetime.timedelta, which the json serializer"
            " cannot write. Keep its total_seconds(), or use the default serializer.",
        ),
        (
            {"grid": {(1, 2): 3}},
            "flask.session['grid'] has in its keys a tuple, which the json serializer"
            " cannot write. Use a string as the key, or use the default serializer.",
        ),
        (
            {frozenset(): 3},
            "flask.session has in its keys a frozenset, which the json serializer"
            " cannot write. Use a string as the key, or use the default serializer.",
        ),
    ],
)
def test_json_refuses_what_it_has_no_form_for(
    value: dict[t.Any, t.Any], message: str
) -> None:
    assert str(error_of(JSON, value)) == message
    assert is_exact(MSGPACK.loads(MSGPACK.dumps(value)), value)


@pytest.mark.parametrize(
    ("data", "start"),
    [
        ({"a": {Opaque(): 1}}, "flask.session['a'] has in its keys a "),
        ({"a": {(1, (Opaque(),)): 1}}, "flask.session['a'] has in its keys a "),
        ({Opaque(): 1}, "flask.session has in its keys a "),
        ({"a": {Opaque()}}, "flask.session['a'] holds a "),
        ({1: {None: Opaque()}}, "flask.session[1][None] is a "),
        ({(1, "a"): Opaque()}, "flask.session[(1, 'a')] is a "),
        ({(1,): Opaque()}, "flask.session[(1,)] is a "),
        ({UUID(int=1): Opaque()}, f"flask.session[{UUID(int=1)!r}] is a "),
        ({Loud("loud"): Opaque()}, "flask.session['loud'] is a "),
        (
            {"u": User("n", Address("s", [Opaque()]))},
            "flask.session['u'].address.lines[0] is a ",
        ),
        ({"p": Point(1, Opaque())}, "flask.session['p'][1] is a "),
    ],
)
def test_the_place_is_named_exactly(data: dict[t.Any, t.Any], start: str) -> None:
    error = error_of(MSGPACK, data)
    assert str(error).startswith(start)
    assert start.startswith(f"flask.{error.path} ")


def test_a_key_with_a_repr_of_its_own_is_shown_by_its_type() -> None:
    error = error_of(MSGPACK, {Lazy(): Opaque()})
    assert error.path == f"session[<{__name__}.Lazy>]"


def test_a_long_key_is_cut_off(serializer: CodedSerializer) -> None:
    error = error_of(serializer, {"k" * 1000: Opaque()})
    assert error.path == "session['" + "k" * 57 + "…']"


@pytest.mark.parametrize(
    "key",
    [
        User("n", None),  # type: ignore[arg-type]
        HashableList(),
        (1, HashableList()),
    ],
    ids=["dataclass", "list", "list in tuple"],
)
def test_a_key_that_could_not_be_read_back_as_one_is_refused(key: t.Any) -> None:
    for value in ({key: 1}, {key}, frozenset({(key,)})):
        error = error_of(MSGPACK, {"a": value})
        assert "which cannot be hashed" in str(error)
        assert error.path == "session['a']"


def test_a_circular_reference_is_named(serializer: CodedSerializer) -> None:
    data: dict[str, t.Any] = {"a": {"b": [1]}}
    data["a"]["b"].append(data["a"])
    error = error_of(serializer, data)
    assert str(error) == (
        f"flask.session['a']['b'][1] contains itself, which the {serializer.name}"
        " serializer cannot write. Remove the circular reference."
    )
    data = {}
    data["me"] = (data,)
    assert error_of(serializer, data).path == "session['me'][0]"


def test_the_same_object_in_two_places_is_no_circular_reference(
    serializer: CodedSerializer,
) -> None:
    shared = collections.OrderedDict(a=[1])
    assert back(serializer, [shared, shared]) == [{"a": [1]}, {"a": [1]}]


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}])
@pytest.mark.parametrize("depth", [1100, 100_000])
def test_nesting_too_deeply_is_named(
    serializer: CodedSerializer, wrap: t.Callable[[t.Any], t.Any], depth: int
) -> None:
    value: t.Any = 1
    for _ in range(depth):
        value = wrap(value)
    error = error_of(serializer, {"ok": 1, "deep": value})
    assert str(error) == (
        f"flask.session['deep'] is nested too deeply for the {serializer.name}"
        " serializer. Keep a flatter structure."
    )
    while value != 1:  # freeing it at once would take as many C frames
        value = next(iter(value.values() if isinstance(value, dict) else value))


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}])
def test_nesting_a_hundred_deep_is_kept(
    serializer: CodedSerializer, wrap: t.Callable[[t.Any], t.Any]
) -> None:
    value: t.Any = Lazy()
    for _ in range(100):
        value = wrap(value)
    back(serializer, value)


def test_what_msgpack_writes_it_can_read_at_any_depth() -> None:
    # Between msgpack's releases, the deepest that is written differs.
    written = 0
    for depth in [*range(505, 515), *range(1018, 1028)]:
        value: t.Any = 1
        for _ in range(depth):
            value = (value,)
        try:
            data = MSGPACK.dumps({"a": value})
        except SerializationError:
            continue
        written += 1
        assert MSGPACK.dumps(MSGPACK.loads(data)) == data
    assert 0 < written < 20


class Failing:
    def __html__(self) -> str:
        raise LookupError("a secret value")


class FailingDict(dict[t.Any, t.Any]):
    def items(self) -> t.Any:
        raise LookupError("a secret value")


class FailingZone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        raise LookupError("a secret value")


class FailingProperty:
    @property
    def __html__(self) -> t.Any:
        raise LookupError("a secret value")


@pytest.mark.parametrize(
    "value",
    [
        Failing(),
        FailingDict(),
        datetime(2024, 1, 1, tzinfo=FailingZone()),
        FailingProperty(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_of_the_values_own_code_is_not_hidden(
    serializer: CodedSerializer, value: t.Any
) -> None:
    error = error_of(serializer, {"a": [value]})
    assert error.path == "session['a'][0]"
    assert "which raised LookupError while" in str(error)
    assert "a secret value" not in str(error)
    assert isinstance(error.__cause__, LookupError)


def test_an_int_that_python_refuses_to_print_is_refused_by_json() -> None:
    error = error_of(JSON, {"n": 10**5000})
    assert "ValueError" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert back(MSGPACK, 10**5000) == 10**5000


def test_a_failure_leaves_the_serializer_usable(serializer: CodedSerializer) -> None:
    error_of(serializer, {"a": Opaque()})
    assert back(serializer, {"a": 1}) == {"a": 1}


def test_serializing_while_serializing_works(serializer: CodedSerializer) -> None:
    class Nested:
        def __html__(self) -> str:
            return serializer.dumps({"inner": (1, {"a": "b"})}).hex()

    inner = serializer.dumps({"inner": (1, {"a": "b"})}).hex()
    assert back(serializer, [Nested(), 1]) == [Markup(inner), 1]


def test_threads_do_not_mix_their_sessions(serializer: CodedSerializer) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        data = {"n": number, "t": (number,) * 20, "l": Lazy(), "s": "x" * number}
        expected = {**data, "l": Markup("<i>lazy</i>")}
        for _ in range(50):
            if serializer.loads(serializer.dumps(data)) != expected:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# What cannot be read


def reads_or_raises_record_error(serializer: CodedSerializer, data: bytes) -> None:
    try:
        value = serializer.loads(data)
    except RecordError as error:
        assert error.reason == "unreadable"  # noqa: PT017
    else:
        assert type(value) is dict


@without_deadline
@given(st.binary(max_size=200))
@example(b"")
def test_garbage_raises_nothing_but_record_errors(data: bytes) -> None:
    for serializer in BUILT_IN:
        reads_or_raises_record_error(serializer, data)
    reads_or_raises_record_error(MSGPACK, b"\x81\xa1a" + data)
    for code in range(11):
        if len(data) < 256:
            ext = b"\xc7" + bytes([len(data), code]) + data
            reads_or_raises_record_error(MSGPACK, b"\x81\xa1a" + ext)
            reads_or_raises_record_error(MSGPACK, b"\x81\xa1a\x92\xd4\x01t" + ext)
            reads_or_raises_record_error(MSGPACK, b"\x81" + ext + b"\x01")


@without_deadline
@given(
    st.dictionaries(hashed, msgpack_values, max_size=4),
    st.integers(0, 10**6),
    st.binary(min_size=1, max_size=3),
)
def test_a_changed_payload_raises_nothing_but_record_errors(
    data: dict[t.Any, t.Any], at: int, replacement: bytes
) -> None:
    written = MSGPACK.dumps(data)
    at %= len(written)
    changed = written[:at] + replacement + written[at + 1 :]
    reads_or_raises_record_error(MSGPACK, changed)
    reads_or_raises_record_error(MSGPACK, written[:at])


json_like = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *(" t", " b", " m", " u", " d", " di", " k", " dt", " da", " de"),
                    *(" md", " im", "a"),
                ]
            ),
            inner,
            max_size=2,
        ),
    ),
)


@without_deadline
@given(st.dictionaries(st.text(max_size=3), json_like, max_size=3))
def test_hostile_tags_raise_nothing_but_record_errors(data: dict[str, t.Any]) -> None:
    reads_or_raises_record_error(JSON, json.dumps(data).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",  # a list
        b"\x01",
        b"\xd4\x01t",
        b"\x80\x80",  # trailing bytes
        b"\x81\xa1a",  # cut off
        b"\x81\x90\x01",  # a list as a key
        b"\x81\x80\x01",  # a dict as a key
        b"\x81\xa1a\xc1",  # never used
        b"\x81\xa1a\xd4\x7fx",  # an unknown extension type
        b"\x81\xa1a\xd4\x01t",  # a marker that is no list's first item
        b"\x81\xd4\x01t\x01",
        b"\x81\xa1a\x92\x01\xd4\x01t",
        b"\x81\xa1a\x93\xd4\x01t\xd4\x01t\x01",
        b"\x81\xa1a\x91\xc7\x01\x01t",  # a marker in another form
        b"\x81\xa1a\x91\xd4\x01x",  # an unknown marker
        b"\x81\xa1a\x92\xd4\x01s\x90",  # a list in a set
        b"\x81\xa1a\x91\xd4\x01m",  # no values
        b"\x81\xa1a\x92\xd4\x01m\x90",
        b"\x81\xa1a\x92\xd4\x01i\x81\xa1a\x01",
        b"\x81\xa1a\x93\xd4\x01m\x80\x80",
        b"\x81\xa1a\xd4\x05x",  # no Decimal
        b"\x81\xa1a\xd4\x04x",  # no UUID
        b"\x81\xa1a\xd4\x09x",  # no timedelta
        b"\x81\xa1a\xc7\x0c\x09\x7f\xff\xff\xff" + bytes(8),  # beyond timedelta.max
        b"\x81\xa1a\xc7\x0c\xff" + b"\x00" * 4 + b"\x7f" + b"\xff" * 7,
        b"\x81\xa1a\xa1\xff",  # no UTF-8
        b"\x81\xa1a" + b"\x91" * 5000 + b"\x01",
        b"\x81\xa1a" + b"\x92\xd4\x01t" * 5000 + b"\x01",
        b"\xdf\xff\xff\xff\xff",  # four billion entries
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
    ],
    ids=repr,
)
def test_unreadable_msgpack_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        MSGPACK.loads(data)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'{"a":1}x',
        b"\xff",
        b'{" t":[1]}',  # not a dict at the top
        b'{"a":{" k":[[[],1]]}}',
        b'{"a":{" k":[[1,2,3]]}}',
        b'{"a":{" k":["ab",1]}}',
        b'{"a":{" di":{}}}',
        b'{"a":{" d":"yesterday"}}',
        b'{"a":{" dt":"yesterday"}}',
        b'{"a":{" dt":"2024-01-02T00:00:00(name)"}}',
        b'{"a":{" da":"yesterday"}}',
        b'{"a":{" de":"much"}}',
        b'{"a":{" de":1.1}}',
        b'{"a":{" u":"x"}}',
        b'{"a":{" md":{"a":[1]}}}',
        b'{"a":{" md":[["a",1]]}}',
        b'{"a":{" im":[[[],[1]]]}}',
        b'{"a":{" im":1}}',
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_unreadable_json_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        JSON.loads(data)
    assert caught.value.reason == "unreadable"


def test_an_error_of_reading_does_not_quote_the_payload(
    serializer: CodedSerializer,
) -> None:
    written = serializer.dumps({"at": datetime(2024, 1, 2)})
    with pytest.raises(RecordError) as caught:
        serializer.loads(written.replace(b"2024-01-02", b"a-secret!!"))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_few_hostile_bytes_do_not_take_gigabytes() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (
        b"\x81\xa1a" + b"\xdd\x00\x00\xff\xff" * 1000 + b"\xc0" * 65536,
        b"\x81\xa1a" + b"\xdf\x00\x00\x7f\xff\x01" * 1000 + b"\xc0" * 65536,
    ):
        with pytest.raises(RecordError):
            MSGPACK.loads(data)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 800_000


# Which serializer


def test_the_built_in_serializers_are_known_by_name_and_by_code() -> None:
    for name, code, kind in (
        ("msgpack", b"m", MsgpackSerializer),
        ("json", b"j", JSONSerializer),
    ):
        assert serializer_for(name) is BY_CODE[code]
        assert type(BY_CODE[code]) is kind
        assert (BY_CODE[code].name, BY_CODE[code].code) == (name, code)


def test_a_serializer_of_ours_is_taken_as_it_is() -> None:
    for value in (MSGPACK, JSON, CustomSerializer(Own({}))):
        assert serializer_for(value) is value


class OneWay:
    def dumps(self, data: t.Any) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("yaml", "'yaml'"),
        ("", "''"),
        (None, "a NoneType"),
        (5, "an int"),
        (OneWay(), f"a {__name__}.OneWay"),
        (
            MsgpackSerializer,
            "the class flask_serversession.serializers.msgpack.MsgpackSerializer,",
        ),
    ],
)
def test_anything_else_is_a_configuration_error(value: t.Any, given: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        serializer_for(value)
    assert caught.value.option == "SESSION_SERIALIZER"
    assert str(caught.value).startswith(f"'SESSION_SERIALIZER' is {given}")
    assert "expected 'json', 'msgpack' or an object" in str(caught.value)


class Own:
    """Gives and raises what it is told to."""

    def __init__(self, result: t.Any) -> None:
        self.result = result

    def dumps(self, data: t.Any) -> t.Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    loads = dumps


OwnModule = types.ModuleType("own_module")
vars(OwnModule).update(
    dumps=lambda data: json.dumps(data).encode(), loads=lambda data: json.loads(data)
)


def test_the_applications_own_serializer_is_used() -> None:
    custom = serializer_for(t.cast("t.Any", OwnModule))
    assert (custom.name, custom.code) == ("own_module", b"c")
    assert custom.loads(custom.dumps({"a": 1})) == {"a": 1}
    assert serializer_for(Own({})).name == "Own"


def test_an_exception_of_the_applications_own_dumps_is_explained() -> None:
    cause = LookupError("a secret value")
    error = error_of(serializer_for(Own(cause)), {"a": 1})
    assert str(error) == (
        "flask.session could not be written by the serializer 'Own': it raised"
        " LookupError."
    )
    assert error.path == "session"
    assert error.__cause__ is cause


@pytest.mark.parametrize("result", ["text", None, bytearray()])
def test_the_applications_own_dumps_must_give_bytes(result: object) -> None:
    error = error_of(serializer_for(Own(result)), {"a": 1})
    assert str(error) == (
        f"'dumps' of the serializer 'Own' gave a {type(result).__name__}; bytes are"
        " expected."
    )


def test_an_exception_of_the_applications_own_loads_is_unreadable() -> None:
    cause = LookupError("a secret value")
    with pytest.raises(RecordError) as caught:
        serializer_for(Own(cause)).loads(b"")
    assert caught.value.reason == "unreadable"
    assert caught.value.__cause__ is cause
    assert "a secret value" not in str(caught.value)


@pytest.mark.parametrize("result", [[], None, "text"])
def test_the_applications_own_loads_must_give_a_dict(result: object) -> None:
    with pytest.raises(RecordError) as caught:
        serializer_for(Own(result)).loads(b"")
    assert caught.value.reason == "unreadable"


def test_the_librarys_errors_pass_through_the_applications_own_serializer() -> None:
    error = SerializationError("own", "session['a']")
    assert error_of(serializer_for(Own(error)), {}) is error
    newer = RecordError("own", "newer")
    with pytest.raises(RecordError) as caught:
        serializer_for(Own(newer)).loads(b"")
    assert caught.value is newer


def test_nothing_is_imported_or_executed_by_reading() -> None:
    # Where the system does not know a zone, zoneinfo looks into the package tzdata.
    with contextlib.suppress(zoneinfo.ZoneInfoNotFoundError):
        zoneinfo.ZoneInfo("os.path")
    before = set(sys.modules)
    reads_or_raises_record_error(MSGPACK, pickle.dumps({"a": Opaque()}))
    reads_or_raises_record_error(
        MSGPACK, msgpack.packb({"a": msgpack.ExtType(6, b"2024-01-01T00[os.path]")})
    )
    assert set(sys.modules) == before
