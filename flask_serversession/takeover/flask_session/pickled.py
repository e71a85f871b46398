"""Plain data out of a pickle, without unpickling it.

A pickle is a program, and the :mod:`pickle` module runs it: it imports what the
program names and calls it. Nothing is imported or called here but the few types below.
:mod:`pickletools` only takes the program apart.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import decimal
import pickletools
import typing as t
import uuid

from markupsafe import Markup

from ...errors import RecordError

# No session of a size that anybody has is near that.
_MAX_ITEMS = 1_000_000
_MAX_TEXT = 64 * 2**20
# Of what is hashed as a key: Python goes down into it in C, at each use, and as often
# as something is in it. Keys of that kind are pairs, or dates in a tuple.
_MAX_KEY_DEPTH = 50
_MAX_KEY_ITEMS = 1_000

_IGNORED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: cabc.Mapping[str, object] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_VALUES = frozenset(
    {
        "BINBYTES",
        "BINBYTES8",
        "BINFLOAT",
        "BININT",
        "BININT1",
        "BININT2",
        "BINUNICODE",
        "BINUNICODE8",
        "LONG1",
        "LONG4",
        "SHORT_BINBYTES",
        "SHORT_BINUNICODE",
    }
)
_CONTAINERS: cabc.Mapping[str, type] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Types that do nothing but hold what they are given.
_TYPES: cabc.Mapping[tuple[str, str], type] = {
    ("datetime", "date"): dt.date,
    ("datetime", "datetime"): dt.datetime,
    ("datetime", "time"): dt.time,
    ("datetime", "timedelta"): dt.timedelta,
    ("datetime", "timezone"): dt.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
    ("markupsafe", "Markup"): Markup,
    ("uuid", "UUID"): uuid.UUID,
}


def read_plain(value: bytes) -> object:
    """Return the dicts, lists, texts, numbers, dates, … that a pickle holds.

    :raises RecordError: if there is anything else in it.
    """
    try:
        result = _Reader().read(value)
        _check_items(result)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise RecordError(
            "It is a pickle with more than plain data in it, or a damaged one. Nothing"
            " is unpickled.",
            "unreadable",
        ) from error
    return result


class _Reader:
    """A stack, and a memo of what was on it, as the format of pickles has them."""

    def __init__(self) -> None:
        self._stack: list[t.Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, t.Any] = {}
        # Tuples and frozensets by their identity: itself, so that nothing else gets
        # it, and how deep it is and how much is in it.
        self._hashables: dict[int, tuple[object, int, int]] = {}

    def read(self, value: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(value):
            if opcode.name == "STOP":
                (result,) = self._stack
                return result
            self._step(opcode.name, argument)
        raise ValueError("There is no end.")

    def _step(self, name: str, argument: t.Any) -> None:
        is_known = (
            self._push(name, argument)
            or self._collect(name)
            or self._remember(name, argument)
            or self._build(name)
        )
        if not is_known and name not in _IGNORED:
            raise ValueError(f"{name} is not for plain data.")

    def _push(self, name: str, argument: t.Any) -> bool:
        """Put a value on the stack, or a mark under those that follow."""
        push = self._stack.append
        if name in _VALUES:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _CONTAINERS:
            push(_CONTAINERS[name]())
        elif name == "MARK":
            self._marks.append(len(self._stack))
        else:
            return False
        return True

    def _collect(self, name: str) -> bool:
        """Put values from the stack into a collection."""
        push = self._stack.append
        if name in _TUPLES:
            push(self._make_hashable(tuple, self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            push(self._make_hashable(tuple, self._pop_to_mark()))
        elif name == "FROZENSET":
            items = self._pop_to_mark()
            self._check_keys(items)
            push(self._make_hashable(frozenset, items))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            t.cast("list[t.Any]", self._top(list)).extend(items)
        elif name == "ADDITEMS":
            items = self._pop_to_mark()
            self._check_keys(items)
            t.cast("set[t.Any]", self._top(set)).update(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            self._check_keys(items[::2])
            pairs = zip(items[::2], items[1::2], strict=True)
            t.cast("dict[t.Any, t.Any]", self._top(dict)).update(pairs)
        else:
            return False
        return True

    def _remember(self, name: str, argument: t.Any) -> bool:
        """Put the top of the stack into the memo, or something from there on top."""
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        else:
            return False
        return True

    def _build(self, name: str) -> bool:
        """Make an object of one of the few types that are allowed."""
        if name == "STACK_GLOBAL":
            module, type_name = self._pop(2)
            self._stack.append(_TYPES[module, type_name])
        elif name in ("REDUCE", "NEWOBJ"):
            cls, arguments = self._pop(2)
            self._stack.append(_make(cls, *arguments))
        elif name == "BUILD":
            (content,) = self._pop(1)
            _fill(self._stack[-1], **content)
        else:
            return False
        return True

    def _make_hashable(self, cls: type, items: list[t.Any]) -> object:
        depth, number = 1, 1 + len(items)
        for item in items:
            _, its_depth, its_number = self._hashables.get(id(item), (None, 0, 0))
            depth = max(depth, its_depth + 1)
            number += its_number
        made: object = cls(items)
        self._hashables[id(made)] = made, depth, number
        return made

    def _check_keys(self, items: cabc.Iterable[t.Any]) -> None:
        for item in items:
            _, depth, number = self._hashables.get(id(item), (None, 0, 0))
            if depth > _MAX_KEY_DEPTH or number > _MAX_KEY_ITEMS:
                raise ValueError("A key is too deep or too large.")

    def _top(self, kind: type) -> object:
        if type(self._stack[-1]) is not kind:
            raise TypeError(f"That is no {kind.__name__}.")
        return self._stack[-1]

    def _pop(self, number: int) -> list[t.Any]:
        if len(self._stack) < number + (self._marks[-1] if self._marks else 0):
            raise ValueError("The stack is empty.")
        items = self._stack[-number:]
        del self._stack[-number:]
        return items

    def _pop_to_mark(self) -> list[t.Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items


def _make(cls: t.Any, *arguments: t.Any) -> object:
    if cls not in _TYPES.values():
        raise TypeError("That is not one of the types.")
    # A UUID gets its number afterwards.
    return uuid.UUID.__new__(cls) if cls is uuid.UUID else cls(*arguments)


def _fill(made: object, *, int: int, is_safe: object = None) -> None:
    if not isinstance(made, uuid.UUID):
        raise TypeError("Only a UUID gets its content afterwards.")
    # As its own __setstate__() does: the attributes cannot be set any more.
    object.__setattr__(made, "int", uuid.UUID(int=int).int)
    object.__setattr__(made, "is_safe", uuid.SafeUUID.unknown)


def _check_items(result: object) -> None:
    """Refuse what holds itself, or what is small here and huge when it is written."""
    number = size = 0
    rest: list[t.Any] = [result]
    while rest:
        value = rest.pop()
        if isinstance(value, type):
            raise TypeError("A type is no plain data.")
        if isinstance(value, (str, bytes)):
            size += len(value)
            if size > _MAX_TEXT:
                raise ValueError("There is too much text in it.")
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            items = t.cast("cabc.Collection[t.Any]", value)
            number += len(items) + 1
            if number > _MAX_ITEMS:
                raise ValueError("There is too much in it.")
            rest += items
            if isinstance(items, dict):
                rest += items.values()
