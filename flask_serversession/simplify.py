"""Gives what a session holds in exact types, and words what cannot be written."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing as t
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from markupsafe import Markup

from .errors import SerializationError
from .moments import RefusedError
from .moments import moment_text

#: What both serializers write as it is.
ATOMS = frozenset({str, int, bool, float, type(None), bytes})
#: What holds other values.
CONTAINERS = frozenset({list, tuple, set, frozenset, dict})
_SHOWN = ATOMS | {Markup, UUID, Decimal, datetime, date, time, timedelta}
_class_of: t.Callable[[object], type] = type


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """What a serializer has no form for, and what to do instead."""

    name: str
    refused: t.Mapping[type, str]
    refused_keys: t.Mapping[type, str]


_LIST = "Keep a list, or use the default serializer."
_KEY = "Use a string as the key, or use the default serializer."
MSGPACK = Form("msgpack", {}, {})
JSON = Form(
    "json",
    {
        set: _LIST,
        frozenset: _LIST,
        time: "Keep its isoformat(), or use the default serializer.",
        timedelta: "Keep its total_seconds(), or use the default serializer.",
    },
    {tuple: _KEY, frozenset: _KEY},
)

#: The deepest nesting that is simplified. The recursion needs three or four frames a
#: level, of which Python allows 1000.
_MAX_DEPTH = 200


def write_simplified(
    data: dict[str, t.Any], form: Form, write: t.Callable[[t.Any], bytes]
) -> bytes:
    """Write, and raise nothing but a SerializationError that says where and why."""
    try:
        return write(_Simplifier(form).simplify(data, None))
    except SerializationError:
        raise
    except RecursionError as error:
        raise _too_deep(form, None) from error
    except Exception as error:
        raise SerializationError(
            f"flask.session could not be written by the {form.name} serializer:"
            f" {type_name(error)}."
        ) from error


class _Simplifier:
    """Copies a session so that every value is of an exact type that is written.

    It takes, in the same order, what Flask's own session takes
    (:class:`~flask.json.tag.TaggedJSONSerializer`, then
    :class:`~flask.json.provider.DefaultJSONProvider`).
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        #: The ids of the containers around the current value.
        self.open: set[int] = set()

    def simplify(self, value: t.Any, place: _Place) -> t.Any:
        kind, convert = self.kind_of(value, place)
        if kind in self.form.refused:
            raise self.refusal(value, place, self.form.refused[kind])
        converted = self.convert(value, convert, place)
        if kind not in CONTAINERS:
            return converted
        if id(value) in self.open:
            path, _ = _describe(place)
            raise SerializationError(
                f"flask.{path} contains itself, which the {self.form.name} serializer"
                " cannot write. Remove the circular reference.",
                path,
            )
        if len(self.open) == _MAX_DEPTH:
            raise _too_deep(self.form, place)
        self.open.add(id(value))
        simplified = self.simplify_items(value, kind, converted, place)
        self.open.discard(id(value))
        return simplified

    def simplify_items(
        self, value: t.Any, kind: t.Any, items: t.Any, place: _Place
    ) -> t.Any:
        if kind is dict:
            lead = _ITEM if isinstance(value, dict) else _FIELD
            # Most keys and values are atoms, which need no step, nor a call.
            simplified: dict[t.Any, t.Any] = {}
            for key, item in items:
                simple_key = key
                if type(key) not in ATOMS:
                    simple_key = self.simplify_hashed(key, _Step(place, _IN_KEYS))
                if type(item) not in ATOMS:
                    item = self.simplify(item, _Step(place, lead, key))
                simplified[simple_key] = item
            return simplified
        if kind is set or kind is frozenset:
            step = _Step(place, _HOLDS)
            members = [self.simplify_hashed(item, step) for item in items]
            return set(members) if kind is set else frozenset(members)
        listed = [
            item
            if type(item) in ATOMS
            else self.simplify(item, _Step(place, _ITEM, index))
            for index, item in enumerate(items)
        ]
        return listed if kind is list else tuple(listed)

    def simplify_hashed(self, value: t.Any, place: _Step) -> t.Any:
        """Simplify a dict's key or a set's member, which must stay hashable."""
        if type(value) in ATOMS:
            return value
        kind, convert = self.kind_of(value, place)
        if place.lead is _IN_KEYS and kind in self.form.refused_keys:
            raise self.refusal(value, place, self.form.refused_keys[kind])
        if kind in (dict, list, set):
            remedy = f"It would become a {kind.__name__}, which cannot be hashed."
            raise self.refusal(value, place, remedy)
        if kind is tuple:
            items = self.convert(value, convert, place)
            return tuple([self.simplify_hashed(item, place) for item in items])
        return self.simplify(value, place)

    def kind_of(self, value: t.Any, place: _Place) -> _Kind:
        try:
            for kind in _KINDS_BEFORE_HTML:
                if isinstance(value, kind[0]):
                    return kind
            if not isinstance(value, type):
                if callable(getattr(value, "__html__", None)):
                    return _HTML
                for kind in _KINDS_AFTER_HTML:
                    if isinstance(value, kind[0]):
                        return kind
                if dataclasses.is_dataclass(value):
                    return _DATACLASS
        except Exception as error:
            raise self.failure(value, place, error) from error
        raise self.refusal(value, place, _remedy(value))

    def convert(
        self, value: t.Any, convert: t.Callable[[t.Any], t.Any], place: _Place
    ) -> t.Any:
        try:
            return convert(value)
        except RefusedError as error:
            raise self.refusal(value, place, error.remedy) from error
        except Exception as error:
            raise self.failure(value, place, error) from error

    def refusal(self, value: t.Any, place: _Place, remedy: str) -> SerializationError:
        path, relation = _describe(place)
        what = with_article(type_name(value))
        error = SerializationError(
            f"flask.{path} {relation} {what}, which the {self.form.name} serializer"
            f" cannot write. {remedy}",
            path,
        )
        error.__cause__ = TypeError(f"{what} cannot be written")
        return error

    def failure(
        self, value: t.Any, place: _Place, cause: Exception
    ) -> SerializationError:
        """Explain an exception of the value's own code, such as its ``__html__``."""
        if isinstance(cause, RecursionError) and len(self.open) > _MAX_DEPTH / 4:
            return _too_deep(self.form, place)  # just where the stack came to its end
        path, relation = _describe(place)
        return SerializationError(
            f"flask.{path} {relation} {with_article(type_name(value))}, which raised"
            f" {type_name(cause)} while the {self.form.name} serializer wrote it.",
            path,
        )


def _items_of_dict(value: t.Any) -> list[tuple[t.Any, t.Any]]:
    return list(value.items())


def _items_of_dataclass(value: t.Any) -> list[tuple[t.Any, t.Any]]:
    # dataclasses.asdict gives the same in the end, but copies every value, and fails
    # for those that cannot be copied.
    return [
        (field.name, getattr(value, field.name)) for field in dataclasses.fields(value)
    ]


def _base_datetime(value: t.Any, base: type[datetime] = datetime) -> datetime:
    moment = base(
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        value.tzinfo,
        fold=value.fold,
    )
    moment_text(moment)  # runs the tzinfo's code here, where its errors have a place
    return moment


def _base_date(value: t.Any, base: type[date] = date) -> date:
    return base(value.year, value.month, value.day)


def _base_time(value: t.Any, base: type[time] = time) -> time:
    moment = base(
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        value.tzinfo,
        fold=value.fold,
    )
    moment_text(moment)
    return moment


#: A type, and how to give a value of a subclass as that type; for a container, how to
#: give its items.
_Kind = tuple[t.Any, t.Callable[[t.Any], t.Any]]

# The base classes' own methods, since those of the subclass may mean something else:
# str() of an enum member that is a str is not the string.
_KINDS_BEFORE_HTML: tuple[_Kind, ...] = (
    (dict, _items_of_dict),
    (tuple, list),
    (list, list),
    (bytes, lambda value: bytes(memoryview(value))),
)
_HTML: _Kind = (Markup, lambda value: Markup(str(value.__html__())))  # noqa: S704 - by its own word
_KINDS_AFTER_HTML: tuple[_Kind, ...] = (
    (UUID, lambda value: UUID(int=value.int)),
    (datetime, _base_datetime),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (date, _base_date),
    (Decimal, Decimal),
    (time, _base_time),
    (timedelta, lambda value: timedelta(value.days, value.seconds, value.microseconds)),
    (set, list),
    (frozenset, list),
)
_DATACLASS: _Kind = (dict, _items_of_dataclass)


# The wording of errors

_ITEM = "[]"
_FIELD = "."
_IN_KEYS = "has in its keys"
_HOLDS = "holds"


class _Step(t.NamedTuple):
    """A place in the session, which is put into words only if it is needed.

    :param before: The place that this one is in; ``None`` for the session itself.
    :param lead: How this one is reached from there.
    :param name: The key, index or field, if that is how.
    """

    before: _Step | None
    lead: str
    name: object = None


_Place: t.TypeAlias = "_Step | None"


def _describe(place: _Place) -> tuple[str, str]:
    """Give the path of a place, and how what is there relates to that path."""
    steps: list[_Step] = []
    while place is not None:
        steps.append(place)
        place = place.before
    path = "session"
    for step in reversed(steps):
        if step.lead is _ITEM:
            path += f"[{_show_key(step.name)}]"
        elif step.lead is _FIELD:
            path += f".{step.name}"
        else:
            return path, step.lead
    return path, "is"


def _too_deep(form: Form, place: _Place) -> SerializationError:
    while place is not None and place.before is not None:
        place = place.before
    path, _ = _describe(place)
    return SerializationError(
        f"flask.{path} is nested too deeply for the {form.name} serializer. Keep a"
        " flatter structure.",
        path,
    )


def _show_key(key: t.Any) -> str:
    kind = _class_of(key)
    if kind is tuple:
        inside = ", ".join(map(_show_key, key))
        shown = f"({inside},)" if len(key) == 1 else f"({inside})"
    elif isinstance(key, str):
        shown = str.__repr__(key)
    elif kind in _SHOWN:
        shown = repr(key)
    else:  # whose repr may say, or do, anything
        shown = f"<{type_name(key)}>"
    return shown if len(shown) <= 60 else f"{shown[:58]}…{shown[-1]}"


def type_name(value: object) -> str:
    """Name the type of a value."""
    return qualified(type(value))


def qualified(kind: type) -> str:
    """Name a type, with its module unless it is a built-in one."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"an {noun}" if noun[0] in "AEIOaeio" else f"a {noun}"


def _remedy(value: object) -> str:
    if isinstance(value, enum.Enum):
        return "Keep its value."
    if isinstance(value, (bytearray, memoryview)):
        return "Keep bytes."
    if isinstance(value, (type, types.ModuleType)) or callable(value):
        return "Keep its name."
    return "Keep plain data that identifies or describes it."
