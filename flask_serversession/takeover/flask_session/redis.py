"""Flask-Session's sessions in Redis: a string each, under the prefix and the id."""

from __future__ import annotations

import collections.abc as cabc
import itertools
import typing as t

from ...backends.redis import RedisBackend
from ...backends.redis.values import glob_of
from ...errors import RecordError
from ...hiding import forget_frames
from .content import decode
from .content import is_id


class FlaskSessionRedis:
    """An :class:`.OldStore` on the server of a backend.

    :param source: Whose connections it uses.
    :param prefix: What the keys begin with.
    """

    def __init__(self, source: RedisBackend, prefix: str) -> None:
        self._server = source._server  # pyright: ignore[reportPrivateUsage]
        self._prefix = prefix

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what the session held. One ``GET``."""
        value = self._ask("load", "GET", key)
        return None if value is None else decode(value)

    def remove(self, key: str) -> None:
        """Remove the session. One ``DEL``."""
        self._ask("delete", "DEL", key)

    def sample(
        self, limit: int
    ) -> cabc.Iterator[dict[str, t.Any] | RecordError | None]:
        """Return what some of the sessions held, by ``SCAN``."""
        start = len(self._prefix.encode())
        pattern = glob_of(self._prefix) + b"*"
        values = (
            value
            for name, value in self._server.scan("iterate", pattern, "GET")
            if value is not None and is_id(name[start:].decode(errors="replace"))
        )
        for value in itertools.islice(values, limit):
            try:
                yield decode(value)
            except RecordError as error:
                yield error

    def _ask(self, operation: str, command: str, key: str) -> t.Any:
        try:
            return self._server.connect().execute_command(command, key)
        except self._server.errors as error:
            raise self._server.failure(operation, error) from forget_frames(error)
