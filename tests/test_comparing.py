from __future__ import annotations

import copy
import datetime as dt
import decimal
import typing as t

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from flask_serversession.serializers.comparing import is_exactly

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone.utc)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]),
    st.text(max_size=2),
    st.binary(max_size=2),
)
contents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers(0, 2)), inner),
        st.frozensets(scalars, max_size=3),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(contents)
def test_a_copy_is_the_same(value: t.Any) -> None:
    assert is_exactly(value, copy.deepcopy(value))


@settings(deadline=None)
@given(contents, contents)
def test_it_does_not_matter_which_of_the_two_comes_first(
    one: t.Any, other: t.Any
) -> None:
    assert is_exactly(one, other) == is_exactly(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ([1], [True]),
        ([1], (1,)),
        ([1], [1, 2]),
        ((1, 2), (1,)),
        ({1: "a"}, {True: "a"}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1}, {True}),
        ({1}, {1, 2}),
        ({1}, frozenset({1})),
        ("a", b"a"),
        (None, False),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (NOON, NOON.astimezone(dt.timezone(dt.timedelta(hours=1)))),
        (object(), object()),
    ],
)
def test_what_would_be_stored_differently_differs(one: t.Any, other: t.Any) -> None:
    assert not is_exactly(one, other)
    assert not is_exactly({"a": [one]}, {"a": [other]})


def test_sets_have_no_order() -> None:
    assert is_exactly({3, 1, 2}, {2, 3, 1})
    assert is_exactly({"a", 1, None}, {None, "a", 1})


def test_depth_is_no_limit() -> None:
    one: list[t.Any] = []
    other: list[t.Any] = []
    for _ in range(100_000):
        one, other = [one], [other]
    assert is_exactly(one, other)
    while one:
        one, other = one.pop(), other.pop()  # else freeing them would recurse


@pytest.mark.parametrize("text", ["1.5", "-0.0", "nan"])
@pytest.mark.parametrize("kind", [float, decimal.Decimal])
def test_equal_numbers_need_not_be_the_same_object(kind: t.Any, text: str) -> None:
    assert is_exactly(kind(text), kind(text))
    assert not is_exactly(kind(text), kind("7"))
