"""A large session, of which only what is looked at is decoded.

MessagePack writes a map as a count, then each key followed by its value. Finding where
the pairs lie takes a twentieth of the time that decoding them takes. So a large value
is decoded when it is first looked at. When the session is written again, the bytes of
every value that cannot have changed are copied.
"""

from __future__ import annotations

import collections.abc as cabc
import typing as t

from .plain import IMMUTABLE

#: Smaller payloads are decoded at once, which is as quick.
LEAST_SIZE = 2_048
# A value of fewer bytes is decoded with the keys.
_LEAST_VALUE = 256
#: With more keys, finding them takes as long as decoding all.
MOST_KEYS = 64

_PENDING: t.Any = object()


class Codec(t.Protocol):
    """What writes and reads the parts of a payload. Thread-safe."""

    def index(self, payload: bytes, /) -> cabc.Iterator[tuple[t.Any, int, int, int]]:
        """Go through the pairs of a map.

        :return: Each key, and where it begins, where its value begins and ends.
        """
        ...

    def read(self, part: bytes, /) -> t.Any:
        """Read a value."""
        ...

    def write_header(self, size: int, /) -> bytes:
        """Write what a map of that many pairs begins with."""
        ...

    def write_pair(self, key: str, value: t.Any, /) -> bytes:
        """Write a key and its value."""
        ...


class LazyMap(cabc.MutableMapping[str, t.Any]):
    """The content of a large session. For one thread at a time.

    A mapping like the dict that it stands for, in the same order.

    :param payload: A map whose keys are texts.
    """

    __slots__ = ("_codec", "_parts", "_payload", "_values")

    def __init__(self, payload: bytes, codec: Codec) -> None:
        self._payload = payload
        self._codec = codec
        #: In their order; those that nobody has looked at are pending.
        self._values: dict[str, t.Any] = {}
        #: Where those that are as they were lie in the payload: the pair's beginning,
        #: the value's, and the end of both.
        self._parts: dict[str, tuple[int, int, int]] = {}
        for key, start, middle, end in codec.index(payload):
            if type(key) is not str or key in self._parts:
                raise ValueError  # it stands twice, or is no text
            is_small = end - middle < _LEAST_VALUE
            self._parts[key] = start, middle, end
            self._values[key] = (
                codec.read(payload[middle:end]) if is_small else _PENDING
            )

    def __getitem__(self, key: str) -> t.Any:
        value = self._values[key]
        if value is _PENDING:
            value = self._read(key)
        if type(value) not in IMMUTABLE:
            self._parts.pop(key, None)  # from now on it can change
        return value

    def __setitem__(self, key: str, value: t.Any) -> None:
        self._values[key] = value
        self._parts.pop(key, None)

    def __delitem__(self, key: str) -> None:
        del self._values[key]
        self._parts.pop(key, None)

    def __iter__(self) -> cabc.Iterator[str]:
        return iter(self._values)

    def __reversed__(self) -> cabc.Iterator[str]:
        return reversed(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return f"<LazyMap keys={list(self._values)!r}>"  # and no value

    def clear(self) -> None:
        """Remove everything."""
        self._values.clear()
        self._parts.clear()

    def read_all(self) -> None:
        """Decode the values that nobody has looked at yet."""
        for key, value in self._values.items():
            if value is _PENDING:
                self._read(key)

    def _read(self, key: str) -> t.Any:
        _, middle, end = self._parts[key]
        value = self._values[key] = self._codec.read(self._payload[middle:end])
        return value

    def part(self, key: str) -> bytes | None:
        """Return the bytes of a value that is as it was; ``None`` of any other."""
        if key not in self._parts:
            return None
        _, middle, end = self._parts[key]
        return self._payload[middle:end]

    def dumps(self) -> bytes:
        """Write all of it: copy what is as it was, and encode the rest."""
        codec, payload, parts = self._codec, self._payload, self._parts
        written = [codec.write_header(len(self._values))]
        # What lies side by side is copied at once.
        copied_from = copied_to = 0
        for key, value in self._values.items():
            if key in parts:
                start, _, end = parts[key]
                if start != copied_to:
                    written.append(payload[copied_from:copied_to])
                    copied_from = start
                copied_to = end
            else:
                written.append(payload[copied_from:copied_to])
                copied_from = copied_to = 0
                written.append(codec.write_pair(key, value))
        written.append(payload[copied_from:copied_to])
        return b"".join(written)
