"""Compares contents by value, for serializers that never write the same twice."""

from __future__ import annotations

import datetime as dt
import decimal
import typing as t

# Equal ones of these may still be written differently: 0.0 and -0.0, 1.0 and 1.00, one
# moment in two time zones.
_TOLD_BY_REPR: frozenset[object] = frozenset(
    {float, decimal.Decimal, dt.datetime, dt.time}
)


def is_exactly(one: t.Any, other: t.Any) -> bool:
    """Whether two values that were read are the same, types and all.

    Python's ``==`` takes ``1``, ``1.0`` and ``True`` for equal, ignores the order of a
    dict's keys, and takes NaN for different from itself.
    """
    pairs = [(one, other)]  # a stack: values may be nested deeper than Python recurses
    while pairs:
        a, b = pairs.pop()
        if a is b:
            continue
        kind = t.cast(object, type(a))
        if kind is not type(b):
            return False
        if kind is dict:
            if len(a) != len(b):
                return False
            pairs += zip(a, b, strict=True)
            pairs += zip(a.values(), b.values(), strict=True)
        elif kind is list or kind is tuple:
            if len(a) != len(b):
                return False
            pairs += zip(a, b, strict=True)
        elif kind is set or kind is frozenset:
            if len(a) != len(b):
                return False
            pairs += zip(sorted(a, key=repr), sorted(b, key=repr), strict=True)
        elif kind in _TOLD_BY_REPR:
            if repr(a) != repr(b):
                return False
        elif a != b:
            return False
    return True
