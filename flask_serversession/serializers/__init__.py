"""Bytes to dict and back, exact for every type that Flask's own session supports.

A serializer is two functions, :class:`Serializer`. Two are built in:

-   ``"msgpack"``, :class:`MsgpackSerializer`: compact, fast, the default.
-   ``"json"``, :class:`JSONSerializer`: Flask's tagged JSON, readable in any store.

Neither executes anything that it reads, and both write equal content as equal bytes,
so that ``dumps(loads(data)) == data``: changes are detected by comparing them.

Both accept whatever Flask's own session accepts. Instances of subclasses come back as
the type that Flask restores: an enum member that is a ``str`` as ``str``, an
``OrderedDict`` as ``dict``, a named tuple as ``tuple``, a dataclass instance as the
dict of its fields, anything with ``__html__`` as :class:`~markupsafe.Markup`. A
``bytearray`` or ``memoryview`` comes back as ``bytes``. What neither knows becomes
what the application's JSON provider makes of it (:attr:`flask.Flask.json`).
"""

from __future__ import annotations

import typing as t

from ..errors import ConfigurationError
from ..errors import RecordError
from ..errors import SerializationError
from .code_runners import refuse_code_runner
from .comparing import is_exactly
from .json import JSONSerializer as JSONSerializer
from .msgpack import MsgpackSerializer as MsgpackSerializer
from .wording import checked_dict
from .wording import qualified
from .wording import type_name
from .wording import unreadable
from .wording import with_article


class Serializer(t.Protocol):
    """What :data:`SESSION_SERIALIZER` takes: two functions that undo each other.

    ``dumps`` should write equal content as equal bytes. Otherwise, as with encryption,
    its output is read back to be compared, which takes time. Both may be called from
    several threads at once.
    """

    def dumps(self, data: dict[str, t.Any], /) -> bytes:
        """Write the content of a session. May raise anything if it cannot."""
        ...

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote. May raise anything if it cannot."""
        ...


class CodedSerializer(t.Protocol):
    """A serializer with its name and its code, as returned by :func:`serializer_for`.

    Unlike a bare :class:`Serializer`, it raises nothing but the two errors named here.
    """

    #: For messages.
    name: str
    #: One byte, stored with each payload: which serializer wrote it.
    code: bytes

    def dumps(self, data: t.MutableMapping[str, t.Any], /) -> bytes:
        """Write the content of a session.

        :raises SerializationError: if it holds something that cannot be written.
        """
        ...

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the bytes are.
        """
        ...

    def open(self, data: bytes, /) -> t.MutableMapping[str, t.Any]:
        """Read the same, perhaps only what is looked at.

        :raises RecordError: as :meth:`loads`, then or when a value is looked at.
        """
        ...


class CustomSerializer:
    """The application's own serializer, made to raise our errors only.

    :param serializer: Any object, also a module, with ``dumps`` and ``loads``.
    :raises ConfigurationError: if it is known to run code that it reads.
    """

    code: bytes = b"c"

    def __init__(self, serializer: Serializer) -> None:
        refuse_code_runner(serializer)
        self._serializer: t.Any = serializer
        #: The module's or the class's name.
        self.name: str = getattr(serializer, "__name__", type(serializer).__name__)

    def dumps(self, data: t.MutableMapping[str, t.Any], /) -> bytes:
        """Write the content of a session.

        :raises SerializationError: whatever the serializer raised, or if it gave
            something else than bytes.
        """
        try:
            written: object = self._serializer.dumps(
                data if type(data) is dict else dict(data)
            )
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"flask.session could not be written by the serializer {self.name!r}:"
                f" it raised {type_name(error)}."
            ) from error
        if not isinstance(written, bytes):
            raise SerializationError(
                f"'dumps' of the serializer {self.name!r} gave"
                f" {with_article(type_name(written))}; bytes are expected."
            )
        return written

    def loads(self, data: bytes, /) -> dict[str, t.Any]:
        """Read what :meth:`dumps` wrote.

        :raises RecordError: with the reason ``"unreadable"``, whatever the serializer
            raised, or if it gave something else than a dict.
        """
        try:
            value: object = self._serializer.loads(data)
        except RecordError:
            raise
        except Exception as error:
            raise unreadable(self.name, error) from error
        return checked_dict(self.name, value)

    open = loads


#: The built-in serializers, by code.
BUILT_IN: t.Mapping[bytes, CodedSerializer] = {
    MsgpackSerializer.code: MsgpackSerializer(),
    JSONSerializer.code: JSONSerializer(),
}


def is_same(serializer: CodedSerializer, one: bytes, other: bytes) -> bool:
    """Whether a serializer wrote the same content twice.

    :raises RecordError: as :meth:`CodedSerializer.loads`.
    """
    if one == other:
        return True
    # The built-in ones write equal content as equal bytes.
    return serializer.code not in BUILT_IN and is_exactly(
        serializer.loads(one), serializer.loads(other)
    )


def serializer_for(value: str | Serializer) -> CodedSerializer:
    """Return the serializer that a value of :data:`SESSION_SERIALIZER` stands for.

    :param value: A built-in serializer's name or any object with ``dumps`` and
        ``loads``.
    :raises ConfigurationError: if it is neither, or runs code that it reads.
    """
    refuse_code_runner(value)
    if isinstance(value, str):
        for serializer in BUILT_IN.values():
            if serializer.name == value:
                return serializer
        given = repr(value)
    elif isinstance(value, (MsgpackSerializer, JSONSerializer, CustomSerializer)):
        return value
    elif isinstance(value, type):
        given = f"the class {qualified(value)}, not an instance of it"
    elif callable(getattr(value, "dumps", None)) and callable(
        getattr(value, "loads", None)
    ):
        return CustomSerializer(value)
    else:
        given = with_article(type_name(value))
    raise ConfigurationError(
        f"'SESSION_SERIALIZER' is {given}; expected 'json', 'msgpack' or an object"
        " with 'dumps' and 'loads'.",
        "SESSION_SERIALIZER",
    )
