from __future__ import annotations

import copy
import operator
import typing as t

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from flask_serversession.merge import merge

# Other work on the same machine must not fail a test.
without_deadline = settings(deadline=None)


def merged(
    base: dict[t.Any, t.Any], mine: dict[t.Any, t.Any], theirs: dict[t.Any, t.Any]
) -> dict[t.Any, t.Any]:
    return merge(base, mine, theirs, operator.eq)


def test_changes_of_different_keys_both_survive() -> None:
    assert merged({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 2}) == {
        "a": 2,
        "b": 2,
    }


def test_new_keys_of_both_sides_survive() -> None:
    assert merged({}, {"mine": 1}, {"theirs": 2}) == {"mine": 1, "theirs": 2}


def test_a_key_that_both_changed_is_mine() -> None:
    assert merged({"a": 1}, {"a": 2}, {"a": 3}) == {"a": 2}
    assert merged({}, {"a": 2}, {"a": 3}) == {"a": 2}


def test_removing_a_key_that_the_other_side_left_alone_removes_it() -> None:
    assert merged({"a": 1, "b": 1}, {"b": 1}, {"a": 1, "b": 1}) == {"b": 1}
    assert merged({"a": 1, "b": 1}, {"a": 1, "b": 1}, {"b": 1}) == {"b": 1}


def test_a_key_that_both_removed_stays_removed() -> None:
    assert merged({"a": 1, "f": [1]}, {}, {}) == {}


def test_my_removal_wins_over_their_change() -> None:
    assert merged({"a": 1}, {}, {"a": 2}) == {}


def test_my_change_wins_over_their_removal() -> None:
    assert merged({"a": 1}, {"a": 2}, {}) == {"a": 2}


def test_both_changed_to_the_same_is_no_conflict() -> None:
    assert merged({"a": 1}, {"a": 2}, {"a": 2}) == {"a": 2}
    assert merged({"a": [1]}, {"a": [2]}, {"a": [2]}) == {"a": [2]}
    assert merged({"a": 1, "f": [1]}, {}, {}) == {}


def test_two_equal_appends_are_two() -> None:
    assert merged({"a": [1]}, {"a": [1, 2]}, {"a": [1, 2]}) == {"a": [1, 2, 2]}
    assert merged({}, {"a": ["saved"]}, {"a": ["saved"]}) == {"a": ["saved", "saved"]}


def test_what_nobody_changed_is_mine_to_hold_on_to() -> None:
    mine = {"a": [1]}
    assert merged({"a": [1]}, mine, {"a": [1]})["a"] is mine["a"]


def test_lists_that_both_appended_to_get_both_tails_theirs_first() -> None:
    assert merged({"f": [1]}, {"f": [1, 2]}, {"f": [1, 3, 4]}) == {"f": [1, 3, 4, 2]}


def test_lists_that_both_began_get_both_contents() -> None:
    assert merged({}, {"f": ["mine"]}, {"f": ["theirs"]}) == {"f": ["theirs", "mine"]}


@pytest.mark.parametrize("mine", ["text", (1, 2), {"a": 1}])
def test_a_list_that_became_something_else_is_mine(mine: t.Any) -> None:
    assert merged({"f": [1]}, {"f": mine}, {"f": [1, 3]}) == {"f": mine}


def test_a_list_that_both_changed_otherwise_is_mine() -> None:
    assert merged({"f": [1]}, {"f": [2]}, {"f": [3]}) == {"f": [2]}


def test_lists_that_began_as_something_else_are_mine() -> None:
    assert merged({"f": None}, {"f": [1]}, {"f": [2]}) == {"f": [1]}
    assert merged({"f": (1,)}, {"f": [1]}, {"f": [1, 2]}) == {"f": [1]}


def test_a_flash_message_added_while_another_request_shows_the_older_survives() -> None:
    assert merged({"f": ["old"]}, {"f": ["old", "new"]}, {}) == {"f": ["new"]}
    assert merged({"f": ["old"]}, {}, {"f": ["old", "new"]}) == {"f": ["new"]}


def test_a_list_that_was_replaced_there_gets_what_was_appended_here() -> None:
    base, replaced, appended = {"l": [1]}, {"l": [9]}, {"l": [1, 2]}
    assert merged(base, appended, replaced) == {"l": [9, 2]}
    assert merged(base, replaced, appended) == {"l": [9, 2]}
    assert merged(base, appended, {"l": "text"}) == appended
    assert merged(base, {"l": []}, appended) == {"l": [2]}


def test_a_shown_flash_message_does_not_come_back() -> None:
    assert merged({"f": ["old"]}, {"f": ["old"]}, {}) == {}
    assert merged({"f": ["old"]}, {}, {"f": ["old"]}) == {}


def test_a_removed_list_that_was_otherwise_changed_there_is_mine() -> None:
    assert merged({"f": [1]}, {"f": [2]}, {}) == {"f": [2]}
    assert merged({"f": [1]}, {}, {"f": [2]}) == {}


def test_keys_are_in_their_order_and_then_in_mine() -> None:
    base = {"a": 1, "b": 1}
    mine = {"z": 1, "b": 1, "a": 1, "y": 1}
    theirs = {"b": 2, "x": 1, "a": 1}
    assert list(merged(base, mine, theirs)) == ["b", "x", "a", "z", "y"]


def test_values_are_compared_by_the_function_given() -> None:
    def is_exact(one: t.Any, other: t.Any) -> bool:
        return repr(one) == repr(other)

    assert merge({"a": 1}, {"a": True}, {"a": 1}, is_exact) == {"a": True}
    assert merge({"a": 1}, {"a": 1}, {"a": True}, is_exact)["a"] is True
    assert merge({"a": [1]}, {"a": [True, 2]}, {"a": [1, 3]}, is_exact) == {
        "a": [True, 2, 3]
    }


def test_the_function_is_not_asked_about_the_same_object() -> None:
    def fail(one: t.Any, other: t.Any) -> bool:
        raise AssertionError("asked")

    value = object()
    assert merge({"a": value}, {"a": value}, {"a": value}, fail) == {"a": value}


keys = st.sampled_from("abcd")
values = st.one_of(
    st.integers(0, 3), st.lists(st.integers(0, 2), max_size=4), st.none()
)
versions = st.dictionaries(keys, values)


# The laws of merging, as docs/session.rst states them.


@without_deadline
@given(versions, versions)
def test_identity_an_unchanged_side_leaves_the_other(
    base: dict[str, t.Any], changed: dict[str, t.Any]
) -> None:
    assert merged(base, changed, base) == changed
    assert merged(base, base, changed) == changed
    assert list(merged(base, base, changed)) == list(changed)


@st.composite
def without_conflict(draw: st.DrawFn) -> tuple[dict[str, t.Any], ...]:
    """Draw a base, and two versions that changed different keys of it."""
    base, mine, theirs = draw(versions), {}, {}
    for key in {*"abcd"}:
        old = {key: base[key]} if key in base else {}
        new = draw(st.one_of(st.just({}), values.map(lambda value, k=key: {k: value})))
        is_mine = draw(st.booleans())
        mine.update(new if is_mine else old)
        theirs.update(old if is_mine else new)
    return base, mine, theirs


@without_deadline
@given(without_conflict())
def test_without_a_conflict_the_order_of_the_sides_does_not_matter(
    sides: tuple[dict[str, t.Any], ...],
) -> None:
    base, mine, theirs = sides
    result = merged(base, mine, theirs)
    assert result == merged(base, theirs, mine)
    for key in {*base, *mine, *theirs}:
        changed = mine if mine.get(key, "-") != base.get(key, "-") else theirs
        assert result.get(key, "-") == changed.get(key, "-")


@without_deadline
@given(versions, versions)
def test_the_same_change_on_both_sides_is_that_change_unless_it_appends(
    base: dict[str, t.Any], changed: dict[str, t.Any]
) -> None:
    expected = dict(changed)
    for key, value in changed.items():
        old = base.get(key, [])
        are_lists = isinstance(old, list) and isinstance(value, list)
        if are_lists and value[: len(old)] == old:
            expected[key] = value + value[len(old) :]
    assert merged(base, changed, copy.deepcopy(changed)) == expected


@without_deadline
@given(versions, versions, versions)
def test_no_changed_key_is_lost_and_none_comes_back(
    base: dict[str, t.Any], mine: dict[str, t.Any], theirs: dict[str, t.Any]
) -> None:
    before = copy.deepcopy((base, mine, theirs))
    result = merged(base, mine, theirs)
    assert (base, mine, theirs) == before  # nothing passed in is changed
    absent = object()
    for key in {*base, *mine, *theirs}:
        old, my, their = (side.get(key, absent) for side in (base, mine, theirs))
        got = result.get(key, absent)
        if my == old:
            assert got == their
        elif their == old:
            assert got == my
        elif got != my:
            assert isinstance(got, list)
            for side in (my, their):  # what was appended is there
                if side is not absent:
                    assert isinstance(side, list)
                    start = len(old) if isinstance(old, list) else 0
                    assert all(item in got for item in side[start:])
    assert set(result) <= {*mine, *theirs}


@without_deadline
@given(
    st.lists(st.integers(0, 3)),
    st.lists(st.integers(0, 3)),
    st.lists(st.integers(0, 3)),
)
def test_no_append_is_lost_or_doubled_and_all_are_in_order(
    base: list[int], mine: list[int], theirs: list[int]
) -> None:
    result = merged({"f": base}, {"f": base + mine}, {"f": base + theirs})
    assert result == {"f": base + theirs + mine}


@without_deadline
@given(versions, versions)
def test_a_removed_key_stays_removed_unless_the_other_side_changed_it(
    base: dict[str, t.Any], changed: dict[str, t.Any]
) -> None:
    for key in base:
        removed = {k: value for k, value in base.items() if k != key}
        here, there = merged(base, removed, changed), merged(base, changed, removed)
        if changed.get(key, "-") == base[key] or key not in changed:
            assert key not in here
            assert key not in there
            continue
        old, new = base[key], changed[key]
        if isinstance(old, list) and isinstance(new, list) and new[: len(old)] == old:
            # What was appended meanwhile is no part of what was removed.
            assert here[key] == there[key] == new[len(old) :]
        else:
            assert key not in here
            assert there[key] == new
