"""The three-way merge of two versions of one session."""

from __future__ import annotations

import typing as t

#: Stands for a key that a version does not have.
_ABSENT: t.Any = object()


def merge(
    base: t.Mapping[t.Any, t.Any],
    mine: t.Mapping[t.Any, t.Any],
    theirs: t.Mapping[t.Any, t.Any],
    equal: t.Callable[[t.Any, t.Any], bool],
) -> dict[t.Any, t.Any]:
    """Bring together what two overlapping requests made of the same session.

    For each key by itself, the first rule that applies:

    1.  Only one side changed it: that side's, or no key if it was removed there.
    2.  Both sides hold a list and only appended to the list in ``base`` (none counts
        as an empty one): the base, what they appended, then what this side appended.
        Two that append the same have appended it twice.
    3.  One side removed a list or put another list in its place, the other only
        appended to it: what the one has now, then what the other appended. That is
        how a flash message survives when it is added while another request shows the
        older ones, and those are not shown twice.
    4.  Otherwise ``mine``, or no key if it was removed there.

    A change inside a value, at any depth, counts as a change of its key.

    Keys are in the order of ``theirs``; those that only this side has come after
    them, in its order. Nothing that is passed is changed, but the result shares values
    with it.

    :param base: What this request loaded.
    :param mine: What this request holds now.
    :param theirs: What is stored now.
    :param equal: Whether two values are the same. It is not asked about values that
        are the same object. It should tell ``1`` from ``True`` and see the order of
        a dict's keys, as comparing serialized values does.
    """
    merged: dict[t.Any, t.Any] = {}
    for key in {**theirs, **mine}:
        value = _merge_value(
            base.get(key, _ABSENT),
            mine.get(key, _ABSENT),
            theirs.get(key, _ABSENT),
            equal,
        )
        if value is not _ABSENT:
            merged[key] = value
    return merged


def _merge_value(
    base: t.Any, mine: t.Any, theirs: t.Any, equal: t.Callable[[t.Any, t.Any], bool]
) -> t.Any:
    if _is_same(theirs, base, equal):
        return mine  # which somebody may hold on to, and change in place
    if _is_same(mine, base, equal):
        return theirs
    start: t.Any = [] if base is _ABSENT else base
    if _is_list(start):
        my_tail = _tail(start, mine, equal)
        their_tail = _tail(start, theirs, equal)
        if my_tail is not None and their_tail is not None:
            return [*start, *their_tail, *my_tail]
        if my_tail is not None:
            return _append(theirs, my_tail, mine)
        if their_tail is not None:
            return _append(mine, their_tail, mine)
    return mine


def _append(value: t.Any, tail: list[t.Any], otherwise: t.Any) -> t.Any:
    """Append to what the other side made of a list, if it is one or was removed."""
    if value is _ABSENT:
        return tail or _ABSENT
    return [*value, *tail] if _is_list(value) else otherwise


def _is_same(one: t.Any, other: t.Any, equal: t.Callable[[t.Any, t.Any], bool]) -> bool:
    if one is other:
        return True
    return one is not _ABSENT and other is not _ABSENT and equal(one, other)


def _tail(
    start: list[t.Any], value: t.Any, equal: t.Callable[[t.Any, t.Any], bool]
) -> list[t.Any] | None:
    """Return what was appended to a list; ``None`` if it was changed otherwise."""
    if (
        not _is_list(value)
        or len(value) < len(start)
        or not _is_same(value[: len(start)], start, equal)
    ):
        return None
    return list(value[len(start) :])


def _is_list(value: t.Any) -> bool:
    return isinstance(value, list)
