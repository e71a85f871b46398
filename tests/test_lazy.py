"""A large session costs what is touched of it."""

from __future__ import annotations

import operator
import typing as t

import pytest
from flask import session
from hypothesis import given
from hypothesis import strategies as st

from flask_serversession import conflicts
from flask_serversession.errors import RecordError
from flask_serversession.merge import merge
from flask_serversession.serializers import MsgpackSerializer
from flask_serversession.serializers.lazy import LEAST_SIZE
from flask_serversession.serializers.lazy import MOST_KEYS
from flask_serversession.serializers.lazy import LazyMap

from .site import Browser
from .site import Site
from .test_serializers import hashed
from .test_serializers import is_exact
from .test_serializers import msgpack_values
from .test_serializers import without_deadline

MSGPACK = MsgpackSerializer()
CART = [{"id": number, "name": f"thing {number}", "n": 1} for number in range(340)]
SMALL: dict[str, t.Any] = {"_user_id": "ada", "n": 1}
LARGE: dict[str, t.Any] = {**SMALL, "cart": CART, "last": True}


class Spy(MsgpackSerializer):
    """Notes which values are read and written by themselves."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.written: list[str] = []

    def read(self, part: bytes, /) -> t.Any:
        self.bytes_read += len(part)
        return super().read(part)

    def write_pair(self, key: str, value: t.Any, /) -> bytes:
        self.written.append(key)
        return super().write_pair(key, value)


def opened(data: dict[str, t.Any] = LARGE) -> tuple[t.MutableMapping[str, t.Any], Spy]:
    spy = Spy()
    content = spy.open(spy.dumps(data))
    assert type(content) is LazyMap
    return content, spy


def test_a_large_value_is_decoded_when_it_is_looked_at_and_not_before() -> None:
    content, spy = opened()
    assert content["n"] == 1
    assert list(content) == list(LARGE)
    assert len(content) == 4
    assert "cart" in content
    assert spy.bytes_read < 100
    assert content["cart"] == CART
    assert spy.bytes_read > 5_000
    before = spy.bytes_read
    assert content["cart"] is content["cart"]
    assert spy.bytes_read == before


def test_what_nobody_looked_at_is_copied_and_not_encoded() -> None:
    content, spy = opened()
    content["n"] = 2
    assert spy.dumps(content) == spy.dumps({**LARGE, "n": 2})
    assert spy.written == ["n"]


def test_what_cannot_change_in_place_is_copied_although_it_was_looked_at() -> None:
    text = "x" * LEAST_SIZE
    content, spy = opened({"text": text, "n": 1})
    assert content["text"] == text
    assert spy.dumps(content) == spy.dumps({"text": text, "n": 1})
    assert spy.written == []


def test_a_change_inside_of_a_large_value_is_written() -> None:
    content, spy = opened()
    content["cart"][0]["n"] = 2
    changed = [{**CART[0], "n": 2}, *CART[1:]]
    assert spy.dumps(content) == spy.dumps({**LARGE, "cart": changed})
    assert spy.written == ["cart"]


def test_small_sessions_and_those_of_many_keys_are_decoded_at_once() -> None:
    small = {"text": "x" * (LEAST_SIZE - 20)}
    many = {str(number): "x" * 100 for number in range(MOST_KEYS + 1)}
    other = {1: "x" * LEAST_SIZE}
    for data in (small, many, other):
        payload = MSGPACK.dumps(t.cast("dict[str, t.Any]", data))
        content = MSGPACK.open(payload)
        assert type(content) is dict
        assert content == data


@pytest.mark.parametrize(
    "damage",
    [
        lambda payload: payload[:-1],
        lambda payload: payload + b"\0",
        lambda payload: payload.replace(b"last", b"cart"),  # twice the same key
        lambda payload: payload.replace(b"\xa4last", b"\xa4la\xffb"),
    ],
    ids=["cut off", "something after it", "a key twice", "a key that is no text"],
)
def test_what_is_not_as_dumps_writes_it_is_read_as_loads_reads_it(
    damage: t.Callable[[bytes], bytes],
) -> None:
    payload = damage(MSGPACK.dumps(LARGE))
    assert outcome(MSGPACK.open, payload) == outcome(MSGPACK.loads, payload)


def outcome(read: t.Callable[[bytes], t.Any], payload: bytes) -> t.Any:
    try:
        return read(payload)
    except RecordError as error:
        return error.reason


def test_its_keys_can_be_asked_for_in_reverse_and_after_it_was_cleared() -> None:
    data, _ = opened()
    assert list(reversed(data)) == list(LARGE)[::-1]  # type: ignore[call-overload]
    data.clear()
    assert [data.part(key) for key in LARGE] == [None] * len(LARGE)  # type: ignore[attr-defined]


def test_it_shows_no_value() -> None:
    content, _ = opened()
    assert repr(content) == "<LazyMap keys=['_user_id', 'n', 'cart', 'last']>"


actions = st.one_of(
    st.tuples(st.just("get"), st.integers(0, 5), st.none()),
    st.tuples(st.just("del"), st.integers(0, 5), st.none()),
    st.tuples(st.just("set"), st.integers(0, 5), msgpack_values),
    st.tuples(st.just("append"), st.integers(0, 5), hashed),
    st.tuples(st.just("clear"), st.just(0), st.none()),
)


@without_deadline
@given(
    st.dictionaries(st.sampled_from("abcde"), msgpack_values, max_size=5),
    st.lists(actions, max_size=8),
)
def test_whatever_is_done_to_it_it_is_what_a_dict_would_be(
    data: dict[str, t.Any], done: list[tuple[str, int, t.Any]]
) -> None:
    data = {**data, "large": ["x" * LEAST_SIZE]}
    payload = MSGPACK.dumps(data)
    expected = MSGPACK.loads(payload)
    content = MSGPACK.open(payload)
    assert type(content) is LazyMap
    for action, number, value in done:
        key = "abcde"[number] if number < 5 else "large"
        for mapping in (expected, content):
            if action == "set":
                mapping[key] = value
            elif action == "del":
                mapping.pop(key, None)
            elif action == "clear":
                mapping.clear()
            elif action == "append" and isinstance(mapping.get(key), list):
                mapping[key].append(value)
        assert is_exact(content.get(key), expected.get(key))
    assert MSGPACK.dumps(content) == MSGPACK.dumps(expected)
    assert list(content) == list(expected)
    assert is_exact(dict(content), expected)


def test_a_page_that_changes_a_counter_leaves_a_large_cart_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = Browser(site)
    browser.set(**LARGE)
    read: list[int] = []
    written: list[str] = []
    spied_read, spied_write = MsgpackSerializer.read, MsgpackSerializer.write_pair

    def spy_read(self: MsgpackSerializer, part: bytes) -> t.Any:
        read.append(len(part))
        return spied_read(self, part)

    def spy_write(self: MsgpackSerializer, key: str, value: t.Any) -> bytes:
        written.append(key)
        return spied_write(self, key, value)

    monkeypatch.setattr(MsgpackSerializer, "read", spy_read)
    monkeypatch.setattr(MsgpackSerializer, "write_pair", spy_write)

    def count() -> None:
        session["n"] += 1

    browser.visit(count)
    assert written == ["n"]
    assert sum(read) < 100
    browser.visit(lambda: session["cart"][0].update(n=7))
    assert written == ["n", "cart"]
    assert browser.read()["cart"][0]["n"] == 7
    assert browser.read()["n"] == 2


def test_a_session_with_a_value_that_cannot_be_read_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = Browser(site)
    payload = MSGPACK.dumps(LARGE).replace(b"thing 7", b"thing \xff")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MsgpackSerializer, "dumps", lambda *_: payload)
        browser.set(n=1)
    assert browser.visit(lambda: session.get("n")).text == "1"
    assert "cannot be read" not in caplog.text
    assert browser.visit(lambda: session.get("cart", "none")).text == "none"
    assert "cannot be read" in caplog.text
    assert browser.read() == {}
    browser.visit(lambda: session.get("cart") or session.update(n=5))
    assert browser.read() == {"n": 5}


@without_deadline
@given(
    *(
        st.dictionaries(
            st.sampled_from("abcd"),
            st.one_of(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=3)),
            max_size=4,
        )
        for _ in range(3)
    )
)
def test_merging_large_sessions_gives_what_merging_dicts_gives(
    base: dict[str, t.Any], mine: dict[str, t.Any], theirs: dict[str, t.Any]
) -> None:
    large = {"large": ["x" * LEAST_SIZE]}
    base, theirs = {**large, **base}, {**large, **theirs}
    expected = merge(base, {**large, **mine}, theirs, operator.eq)
    content = opened(base)[0]
    for key in "abcd":
        if key in mine:
            content[key] = mine[key]
        else:
            content.pop(key, None)
    found, spy = opened(theirs)
    merged = conflicts._merge(opened(base)[0], content, found, operator.eq)
    assert spy.bytes_read < LEAST_SIZE, "What nobody touched was not decoded."
    assert merged == expected
    assert {*merged} == {*expected}


def test_two_requests_change_a_large_session_at_once() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = Browser(site)
    browser.set(**LARGE)
    other = browser.twin()

    def change() -> None:
        session["n"] = 2
        other.visit(lambda: session["cart"][0].update(n=7))

    browser.visit(change)
    assert browser.read()["n"] == 2
    assert browser.read()["cart"][0]["n"] == 7
