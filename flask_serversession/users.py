"""Whom a session belongs to: what :data:`SESSION_USER_KEY` finds in its content."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import hashlib
import re
import typing as t
from copy import deepcopy

from .errors import SerializationError

#: Keys, of which the first one present counts, or a function of the content.
UserKey: t.TypeAlias = (
    tuple[str, ...] | cabc.Callable[[cabc.Mapping[str, t.Any]], t.Any]
)

# Columns and index names hold no more characters.
_MAX_LENGTH = 255
_HASH = "sha256:"
_SHOWN_HASH = re.compile(_HASH + "[0-9a-f]{64}")


def find_user(data: cabc.Mapping[str, t.Any], keys: tuple[str, ...]) -> str | None:
    """Return the user of a session's content, as the application names them.

    :raises SerializationError: if that is a container.
    """
    for key in keys:
        user: object = data.get(key)
        if user is not None:
            text = user if type(user) is str else _as_text(user)
            if text is None:
                raise SerializationError(
                    f"flask.session[{key!r}] is a {type(user).__name__}, which names"
                    " nobody. Let 'SESSION_USER_KEY' be a function that returns the id"
                    f" inside of it, such as lambda data: data.get({key!r},"
                    " {}).get('sub'), or keep the id under a key of its own.",
                    f"session[{key!r}]",
                )
            return text
    return None


class Content(cabc.Mapping[str, t.Any]):
    """The content of a session as the application's own function gets it: to be read.

    It is the same for a session of any size, of which a large one is decoded in parts.
    """

    __slots__ = ("_data",)

    def __init__(self, data: cabc.Mapping[str, t.Any]) -> None:
        self._data = data

    def __getitem__(self, key: str) -> t.Any:
        return self._data[key]

    def __iter__(self) -> cabc.Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __reversed__(self) -> cabc.Iterator[str]:
        return reversed([*self._data])

    def __or__(self, other: cabc.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return self.copy() | dict(other)

    def __ror__(self, other: cabc.Mapping[str, t.Any]) -> dict[str, t.Any]:
        return dict(other) | self.copy()

    def __copy__(self) -> dict[str, t.Any]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, t.Any]) -> dict[str, t.Any]:
        return deepcopy(self.copy(), memo)

    def __repr__(self) -> str:
        return f"<Content keys={[*self._data]!r}>"  # and no value

    def copy(self) -> dict[str, t.Any]:
        """Return the same as a dict."""
        return {**self._data}

    @property
    def permanent(self) -> bool:
        """Whether the session outlives the browser, as ``session.permanent`` has it."""
        return bool(self._data.get("_permanent"))


def ask_function(
    data: cabc.Mapping[str, t.Any],
    function: cabc.Callable[[cabc.Mapping[str, t.Any]], t.Any],
) -> str | None:
    """Return the same, as the application's own function tells it.

    :raises SerializationError: if the function raises, or returns a container.
    """
    try:
        user: object = function(Content(data))
    except Exception as error:
        raise SerializationError(
            f"The function 'SESSION_USER_KEY' raised {type(error).__name__}. It gets"
            " the session's content, which it can only read, and has to return the"
            " user's id, and None where nobody is logged in."
        ) from error
    if user is None:
        return None
    text = _as_text(user)
    if text is None:
        raise SerializationError(
            f"The function 'SESSION_USER_KEY' returned a {type(user).__name__}, which"
            " names nobody. Let it return the user's id."
        )
    return text


class _Probe(Content):
    """An empty content that notes what is looked for in it."""

    __slots__ = ("keys_read",)

    def __init__(self) -> None:
        super().__init__({})
        self.keys_read: set[object] = set()

    def __getitem__(self, key: str) -> t.Any:
        self.keys_read.add(key)
        raise KeyError(key)

    def __len__(self) -> int:
        return 1  # one that holds nothing may not be looked into

    def __copy__(self) -> t.Any:
        return self

    def copy(self) -> t.Any:
        """Return what notes it too."""
        return self

    def __or__(self, other: cabc.Mapping[str, t.Any]) -> t.Any:
        return self


def keys_read_by(
    function: cabc.Callable[[cabc.Mapping[str, t.Any]], t.Any],
) -> cabc.Set[object]:
    """Return under which keys a function looks for the user, as far as it tells.

    Without any of them, it finds nobody.
    """
    probe = _Probe()
    with contextlib.suppress(Exception):
        function(probe)
    return probe.keys_read


class StoredName(str):
    """What a user is called in records, which may be a hash of their name."""

    __slots__ = ()


def as_shown(user: str) -> str:
    """Return a user whose name was read in a list, where it may be a hash."""
    return StoredName(user) if _SHOWN_HASH.fullmatch(user) else user


def stored_name(user: str) -> str:
    """Return what a user is called in records: their name, or a hash of a long one."""
    # What looks like a hash is hashed too, or somebody could be called like another.
    if len(user) <= _MAX_LENGTH and not user.startswith(_HASH):
        return user
    return _HASH + hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()


def stored_name_of(user: object) -> str:
    """Return what a user who is asked for is called in records.

    :raises ValueError: if it is ``None`` or a container, which is nobody's name.
    """
    if isinstance(user, StoredName):
        return str(user)
    text = None if user is None else _as_text(user)
    if text is None:
        raise ValueError(
            f"Sessions are found by the id of a user, not by {type(user).__name__}."
            " Is somebody logged in?"
        )
    return stored_name(text)


def _as_text(user: object) -> str | None:
    """Return an id as text, the same before it was stored and afterwards."""
    # Subclasses, such as enums, come back as what they derive from.
    if isinstance(user, str):
        return str.__str__(user)
    if isinstance(user, int) and not isinstance(user, bool):
        return int.__repr__(user)
    if isinstance(user, (bytes, bytearray, memoryview)):
        return repr(bytes(t.cast("bytes", user)))
    if isinstance(user, (cabc.Iterable, cabc.Awaitable)) or callable(user):
        return None
    # Such a text says where an object lies, and is another one in each request.
    kind = type(user)
    has_no_text = (kind.__str__, kind.__repr__) == (object.__str__, object.__repr__)
    return None if has_no_text or dataclasses.is_dataclass(user) else str(user)
