"""Flask-Session's sessions in a cache of cachelib's, which has pickled them."""

from __future__ import annotations

import collections.abc as cabc
import copy
import os
import struct
import typing as t

from cachelib import FileSystemCache

from ...backends.cachelib import CachelibBackend
from ...backends.cachelib import unpickles
from ...errors import BackendUnavailableError
from ...errors import NotSupportedError
from ...errors import RecordError
from ...hiding import forget_frames
from .content import checked
from .pickled import read_plain


class FlaskSessionCache(CachelibBackend):
    """An :class:`.OldStore` in the cache of a backend.

    Flask-Session hands a cache the session itself and leaves it to the cache to make
    bytes of it: a pickle. Plain data is read out of that without unpickling.

    :param source: Whose cache it is.
    :raises TypeError: if the cache unpickles where nobody can keep it from doing so.
    """

    def __init__(self, source: CachelibBackend) -> None:
        cache = source._cache
        serializer: t.Any = getattr(cache, "serializer", None)
        if serializer is None:
            raise TypeError(
                f"a {type(cache).__name__} cannot be read without unpickling; let its"
                " sessions expire, or switch when few are logged in."
            )
        # Of the same files or server, with another idea of what the bytes mean.
        self._cache = copy.copy(cache)
        if unpickles(cache):
            t.cast("t.Any", self._cache).serializer = _PlainData(serializer)
        self._clock = source._clock

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what the session held."""
        value = self._run("load", self._cache.get, key)
        if isinstance(value, RecordError):
            raise value
        return None if value is None else checked(value)

    def remove(self, key: str) -> None:
        """Remove the session."""
        try:
            self._run("delete", self._cache.delete, key)
        except TypeError as error:
            # Files are counted, in a file of their own.
            raise BackendUnavailableError(
                "The cache's count of its files is none.",
                backend=self.name,
                operation="delete",
                refused=True,
            ) from forget_frames(error)

    def sample(
        self, limit: int
    ) -> cabc.Iterator[dict[str, t.Any] | RecordError | None]:
        """Return what some of the sessions held, which only files can tell."""
        cache: t.Any = self._cache
        if not isinstance(self._cache, FileSystemCache):
            raise NotSupportedError(type(cache).__name__, "iterate")
        with os.scandir(cache._path) as entries:
            for entry in entries:
                if limit and entry.is_file(follow_symlinks=False):
                    # Whatever else is in the folder is no session.
                    for value in self._read_file(entry.path):
                        limit -= 1
                        yield value

    def _read_file(
        self, path: str
    ) -> cabc.Iterator[dict[str, t.Any] | RecordError | None]:
        try:
            with open(path, "rb") as file:
                (expiry,) = struct.unpack("I", file.read(4))
                value = t.cast("t.Any", self._cache).serializer.load(file)
        except (OSError, struct.error):
            return
        if isinstance(value, RecordError):
            yield value
        elif isinstance(value, dict):
            is_live = expiry == 0 or expiry >= self._clock()
            yield t.cast("dict[str, t.Any]", value) if is_live else None


class _PlainData:
    """What a cache has instead of its serializer."""

    def __init__(self, serializer: t.Any) -> None:
        # Of how many files there are; others need none.
        self.dump = getattr(serializer, "dump", None)

    def load(self, file: t.BinaryIO) -> object:
        return self.loads(file.read())

    def loads(self, value: bytes | None) -> object:
        if value is None:
            return None
        try:
            # The marker is of caches that keep numbers unpickled.
            return read_plain(value[1:] if value[:1] == b"!" else value)
        except RecordError as error:
            # Caches have ideas of their own about exceptions.
            return error
