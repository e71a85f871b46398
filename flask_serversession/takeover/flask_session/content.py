"""What Flask-Session 0.8 has stored, read without unpickling anything."""

from __future__ import annotations

import collections.abc as cabc
import json
import re
import typing as t

import msgpack  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs]

from ...errors import RecordError

_msgpack: t.Any = msgpack  # which has no type hints

_ID = re.compile(r"[A-Za-z0-9_-]{16,256}")
_HANDLE = re.compile(r"[0-9a-f]{64}")

#: Why nothing of a pickle is read.
PICKLED = (
    "It is a pickle, as Flask-Session before 0.7 wrote them, and whoever can write to"
    " the store could run code with one. Nothing is unpickled."
)


class PickledError(RecordError):
    """The session was pickled."""

    def __init__(self) -> None:
        super().__init__(PICKLED, "unreadable")


class OldStore(t.Protocol):
    """Where Flask-Session has kept its sessions. Thread-safe.

    All methods raise :exc:`.BackendUnavailableError` if the engine does not answer.
    """

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what the session held; ``None`` if there is none, or it has expired.

        :raises RecordError: if it cannot be read; a :exc:`PickledError` if that is
            because it is a pickle.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove the session, if there is one."""
        ...

    def sample(
        self, limit: int
    ) -> cabc.Iterator[dict[str, t.Any] | RecordError | None]:
        """Return what some of the sessions held, in no special order.

        :return: ``None`` for one that has expired, and the error for one that cannot
            be read.
        :raises NotSupportedError: if the store cannot list what it holds.
        """
        ...


def decode(value: bytes) -> dict[str, t.Any]:
    """Read what Flask-Session has written with msgspec, as msgpack or as JSON.

    msgspec's msgpack is the ordinary one: a datetime is a timestamp of the format.

    :raises RecordError: as :meth:`OldStore.read`.
    """
    try:
        if value[:1] == b"{":
            content: t.Any = json.loads(value)
        else:
            content = _msgpack.unpackb(value, timestamp=3, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if is_pickle(value):
            raise PickledError from error
        raise RecordError(
            "It is neither msgpack nor JSON that makes sense.", "unreadable"
        ) from error
    return checked(content)


def checked(content: object) -> dict[str, t.Any]:
    """Return what was read, if it is the content of a session."""
    if not isinstance(content, dict):
        raise RecordError("It is not the content of a session.", "unreadable")
    return t.cast("dict[str, t.Any]", content)


def is_pickle(value: bytes) -> bool:
    """Whether a value looks like a dict that was pickled, by any protocol."""
    is_binary = value[:1] == b"\x80" and value[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return (is_binary or value[:1] in (b"(", b"}")) and value[-1:] == b"."


def is_id(text: str) -> bool:
    """Whether a text can be an id of Flask-Session's.

    What ``secrets.token_urlsafe()`` gives, or ``uuid4()`` before: nothing that leads to
    other keys of the store, such as the index of a user. Nor the handle of a session of
    ours, which is no secret.
    """
    return _ID.fullmatch(text) is not None and _HANDLE.fullmatch(text) is None
