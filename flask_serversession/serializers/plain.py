"""Converts a session into exactly typed data, and explains what cannot be written."""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing as t
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from flask.json.tag import TaggedJSONSerializer
from markupsafe import Markup
from werkzeug.datastructures import CombinedMultiDict
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.datastructures import MultiDict
from werkzeug.local import LocalProxy

from ..errors import SerializationError
from .datetimes import RefusedError
from .datetimes import moment_text
from .wording import type_name
from .wording import with_article

#: Types that both serializers write unchanged.
ATOMS = frozenset({str, int, bool, float, type(None), bytes})
_DICTS = frozenset({dict, MultiDict, ImmutableMultiDict, CombinedMultiDict})
#: Types that hold other values.
CONTAINERS = _DICTS | {list, tuple, set, frozenset}
#: Types whose values cannot change in place.
IMMUTABLE = ATOMS | {Markup, UUID, Decimal, datetime, date, time, timedelta}
_class_of: t.Callable[[object], type] = type


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """The types that a serializer cannot write, each with what to do instead."""

    name: str
    refused: t.Mapping[type, str]
    refused_keys: t.Mapping[type, str]


_LIST = "Keep a list, or use the default serializer."
_KEY = "Use a string as the key, or use the default serializer."
MSGPACK = Format("msgpack", {}, {})
JSON = Format(
    "json",
    {
        set: _LIST,
        frozenset: _LIST,
        time: "Keep its isoformat(), or use the default serializer.",
        timedelta: "Keep its total_seconds(), or use the default serializer.",
    },
    dict.fromkeys((tuple, frozenset, ImmutableMultiDict, CombinedMultiDict), _KEY),
)

#: The deepest nesting that is converted. The recursion takes three or four frames per
#: level, and Python allows 1000.
_MAX_DEPTH = 200


def make_multi_dict(kind: type, lists: t.Any) -> MultiDict[t.Any, t.Any]:
    """Return a dict of several values for each key, such as a form.

    :param kind: ``MultiDict``, or an immutable one.
    :param lists: The values of each key.
    :raises ValueError: if it is anything else than a dict of lists.
    """
    if type(lists) is not dict or not all(
        type(values) is list
        for values in t.cast("dict[object, object]", lists).values()
    ):
        raise ValueError("not a dict of lists")
    made = t.cast("t.Any", MultiDict if kind is MultiDict else ImmutableMultiDict)()
    # As its own methods fill it: they drop a key without values, or refuse to change.
    dict.update(made, lists)  # pyright: ignore[reportUnknownMemberType]
    return t.cast("MultiDict[t.Any, t.Any]", made)


def write_plain(
    data: t.Mapping[str, t.Any], format: Format, write: t.Callable[[t.Any], bytes]
) -> bytes:
    """Convert and write a session.

    :raises SerializationError: and nothing else; it says where and why.
    """
    try:
        whole = data if isinstance(data, dict) else dict(data)
        return write(_Converter(format).convert(whole, None))
    except SerializationError:
        raise
    except RecursionError as error:
        raise _too_deep(format, None) from error
    except Exception as error:
        raise SerializationError(
            f"flask.session could not be written by the {format.name} serializer:"
            f" {type_name(error)}."
        ) from error


class _Converter:
    """Copies a session so that every value has a type that can be written.

    Accepts, in the same order, what Flask's own session accepts
    (:class:`~flask.json.tag.TaggedJSONSerializer`, then
    :class:`~flask.json.provider.DefaultJSONProvider`).
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        #: The ids of the containers around the current value.
        self.open: set[int] = set()

    def convert(self, value: t.Any, place: _Place) -> t.Any:
        kind, convert = self.kind_of(value, place)
        if kind is object or kind in self.format.refused:
            return self.convert(self.ask_provider(value, kind, place), place)
        converted = self.apply(convert, value, place)
        if kind not in CONTAINERS:
            return converted
        if id(value) in self.open:
            path, _ = _describe(place)
            raise SerializationError(
                f"flask.{path} contains itself, which the {self.format.name} serializer"
                " cannot write. Remove the circular reference.",
                path,
            )
        if len(self.open) == _MAX_DEPTH:
            raise _too_deep(self.format, place)
        self.open.add(id(value))
        plain = self.convert_items(value, kind, converted, place)
        self.open.discard(id(value))
        return plain

    def convert_items(
        self, value: t.Any, kind: t.Any, items: t.Any, place: _Place
    ) -> t.Any:
        if kind in _DICTS:
            lead = _ITEM if isinstance(value, dict) else _FIELD
            # Most keys and values are atoms and need neither a step nor a call.
            plain: dict[t.Any, t.Any] = {}
            for key, item in items:
                plain_key = key
                if type(key) not in ATOMS:
                    plain_key = self.convert_hashed(key, _Step(place, _IN_KEYS))
                if type(item) not in ATOMS:
                    item = self.convert(item, _Step(place, lead, key))
                plain[plain_key] = item
            return plain if kind is dict else make_multi_dict(kind, plain)
        if kind is set or kind is frozenset:
            step = _Step(place, _HOLDS)
            members = [self.convert_hashed(item, step) for item in items]
            return set(members) if kind is set else frozenset(members)
        listed = [
            item
            if type(item) in ATOMS
            else self.convert(item, _Step(place, _ITEM, index))
            for index, item in enumerate(items)
        ]
        return listed if kind is list else tuple(listed)

    def convert_hashed(self, value: t.Any, place: _Step) -> t.Any:
        """Convert a dict's key or a set's member, which must stay hashable."""
        if type(value) in ATOMS:
            return value
        kind, convert = self.kind_of(value, place)
        if place.lead is _IN_KEYS and kind in self.format.refused_keys:
            raise self.refusal(value, place, self.format.refused_keys[kind])
        if kind is object:
            if place.lead is _IN_KEYS:  # of which Flask asks nobody
                raise self.refusal(value, place, _remedy(value))
            return self.convert_hashed(self.ask_provider(value, kind, place), place)
        if kind in (dict, list, set, MultiDict):
            remedy = f"It would become a {kind.__name__}, which cannot be hashed."
            raise self.refusal(value, place, remedy)
        if kind is tuple:
            items = self.apply(convert, value, place)
            return tuple([self.convert_hashed(item, place) for item in items])
        return self.convert(value, place)

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
        return _UNKNOWN

    def ask_provider(self, value: t.Any, kind: t.Any, place: _Place) -> t.Any:
        """Return what Flask's session reads back of a value that we cannot write.

        An application's JSON provider may know more types than Flask's own.
        """
        text: t.Any = None
        try:
            text = _FLASKS.dumps(value)
        except TypeError:
            pass  # nor can the provider
        except Exception as error:
            raise self.failure(value, place, error) from error
        if text is None:
            remedy = self.format.refused.get(kind) or _remedy(value)
            raise self.refusal(value, place, remedy)
        # Not by the provider, which could return anything, such as the value again.
        return json.loads(text, object_hook=_FLASKS.untag)

    def apply(
        self, function: t.Callable[[t.Any], t.Any], value: t.Any, place: _Place
    ) -> t.Any:
        try:
            return function(value)
        except RefusedError as error:
            raise self.refusal(value, place, error.remedy) from error
        except Exception as error:
            raise self.failure(value, place, error) from error

    def refusal(self, value: t.Any, place: _Place, remedy: str) -> SerializationError:
        path, relation = _describe(place)
        what = with_article(type_name(value))
        error = SerializationError(
            f"flask.{path} {relation} {what}, which the {self.format.name} serializer"
            f" cannot write. {remedy}",
            path,
        )
        error.__cause__ = TypeError(f"{what} cannot be written")
        return error

    def failure(
        self, value: t.Any, place: _Place, cause: Exception
    ) -> SerializationError:
        """Explain an exception raised by the value's own code, such as ``__html__``."""
        if isinstance(cause, RecursionError) and len(self.open) > _MAX_DEPTH / 4:
            return _too_deep(self.format, place)  # where the stack happened to run out
        path, relation = _describe(place)
        return SerializationError(
            f"flask.{path} {relation} {with_article(type_name(value))}, which raised"
            f" {type_name(cause)} while the {self.format.name} serializer wrote it.",
            path,
        )


def _items_of_dict(value: t.Any) -> list[tuple[t.Any, t.Any]]:
    return list(value.items())


def _lists_of_multi_dict(value: t.Any) -> list[tuple[t.Any, list[t.Any]]]:
    return list(value.lists())


def _items_of_dataclass(value: t.Any) -> list[tuple[t.Any, t.Any]]:
    # dataclasses.asdict() copies every value and fails for those that cannot be copied.
    return [
        (field.name, getattr(value, field.name)) for field in dataclasses.fields(value)
    ]


def _base_bytes(value: t.Any) -> bytes:
    return bytes(memoryview(value))


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
    moment_text(moment)  # reports an error in the tzinfo's code with its place
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


#: A type, and a function that converts a value of a subclass to it; for a container,
#: one that returns its items.
_Kind = tuple[t.Any, t.Callable[[t.Any], t.Any]]

# These call the base classes' methods, since a subclass may override them: str() of an
# enum member that is a str does not return the string.
_KINDS_BEFORE_HTML: tuple[_Kind, ...] = (
    (ImmutableMultiDict, _lists_of_multi_dict),
    (CombinedMultiDict, _lists_of_multi_dict),
    (MultiDict, _lists_of_multi_dict),
    (dict, _items_of_dict),
    (tuple, list),
    (list, list),
    (bytes, _base_bytes),
    (bytearray, _base_bytes),
    (memoryview, _base_bytes),
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
_UNKNOWN: _Kind = (object, lambda value: value)

#: As Flask's session has it: it asks the JSON provider of the current application.
_FLASKS = TaggedJSONSerializer()


# The wording of errors

_ITEM = "[]"
_FIELD = "."
_IN_KEYS = "has in its keys"
_HOLDS = "holds"


class _Step(t.NamedTuple):
    """A place in the session; put into words only when needed.

    :param before: The place that contains this one; ``None`` for the session itself.
    :param lead: How this one is reached from there.
    :param name: The key, index or field, if it has one.
    """

    before: _Step | None
    lead: str
    name: object = None


_Place: t.TypeAlias = "_Step | None"


def _describe(place: _Place) -> tuple[str, str]:
    """Return the path of a place, and how the value relates to that path."""
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


def _too_deep(format: Format, place: _Place) -> SerializationError:
    while place is not None and place.before is not None:
        place = place.before
    path, _ = _describe(place)
    return SerializationError(
        f"flask.{path} is nested too deeply for the {format.name} serializer. Keep a"
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
    elif kind in IMMUTABLE:
        shown = repr(key)
    else:  # its repr may reveal, or run, anything
        shown = f"<{type_name(key)}>"
    return shown if len(shown) <= 60 else f"{shown[:58]}…{shown[-1]}"


def _remedy(value: t.Any) -> str:
    if isinstance(value, LocalProxy):  # which claims to be of its object's class
        return (
            "It stands for another object: keep the id of that one, such as"
            " current_user.get_id()."
        )
    if isinstance(value, enum.Enum):
        return "Keep its value."
    if isinstance(value, (type, types.ModuleType)) or callable(value):
        return "Keep its name."
    return "Keep plain data that identifies or describes it."
