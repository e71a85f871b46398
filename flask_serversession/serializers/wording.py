"""What messages about objects are worded with."""

from __future__ import annotations

import types
import typing as t

from ..errors import RecordError


def type_name(value: object) -> str:
    """Return the name of a value's type."""
    return qualified(type(value))


def qualified(kind: type) -> str:
    """Return the name of a type, with its module unless it is built in."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "AEIOaeio" else f"a {noun}"


def described(value: object) -> str:
    """Return what an object is, without its ``repr``, which may show a secret."""
    if value is None:
        return "None"
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    if isinstance(value, type):
        return f"the class {qualified(value)}"
    return with_article(type_name(value))


def unreadable(name: str, error: Exception) -> RecordError:
    """Return the error about a payload that a serializer could not read."""
    # Don't include the error's own message: it may quote a value of the session.
    return RecordError(
        f"The payload cannot be read by the {name} serializer ({type_name(error)}).",
        "unreadable",
    )


def checked_dict(name: str, value: object) -> dict[str, t.Any]:
    """Return what a serializer has read.

    :raises RecordError: if it is not a dict.
    """
    if not isinstance(value, dict):
        raise RecordError(
            f"The payload, read by the {name} serializer, is"
            f" {with_article(type_name(value))}; a dict is expected.",
            "unreadable",
        )
    return t.cast("dict[str, t.Any]", value)
