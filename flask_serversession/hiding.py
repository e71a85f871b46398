"""Values that do not show what they are.

Error reporters, Sentry by default, record the ``repr`` of the local variables of every
frame of a traceback. So no frame of the library holds a secret, or the content of a
session, in a variable that shows it.
"""

from __future__ import annotations

import typing as t

E = t.TypeVar("E", bound=BaseException)


class HiddenText(str):
    """A text whose ``repr`` does not show it, such as a URL with a password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"

    def __reduce__(self) -> tuple[t.Any, ...]:
        return str, (str(self),)


# Messages name the type of what was given.
HiddenText.__name__ = HiddenText.__qualname__ = "str"
HiddenText.__module__ = "builtins"


class HiddenBytes(bytes):
    """Bytes whose ``repr`` does not show them: the serialized content of a session."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"

    def __reduce__(self) -> tuple[t.Any, ...]:
        # Whoever reads them does not have this class, perhaps.
        return bytes, (bytes(self),)


class HiddenTuple(tuple[t.Any, ...]):
    """A tuple whose ``repr`` does not show what is in it: the secrets."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class HiddenList(list[t.Any]):
    """A list whose ``repr`` does not show what is in it: the content of a session."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


def hide(value: t.Any) -> t.Any:
    """Return a value in which somebody may have put a secret, such that it is hidden.

    Objects stay what they are, since those of other libraries show no password.
    """
    return HiddenText(value) if isinstance(value, str) else value


def hide_texts(values: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return a mapping that shows the names of its values, and none that is a text."""
    return {
        name: HiddenText(value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def forget_frames(error: E) -> E:
    """Cut an exception, and those that led to it, off from the frames they passed.

    Where the frames are a driver's or a serializer's, they hold what it was given: a
    password, the content of a session. What went wrong is in the exceptions themselves.

    :return: The same exception.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            waiting += [link.__cause__, link.__context__]
    return error
