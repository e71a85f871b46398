"""Records that were perhaps created, and whose ids nobody was told."""

from __future__ import annotations

from .backends.base import Backend
from .errors import BackendError
from .errors import RecordError

# How many one request removes, and how many one process remembers.
_AT_ONCE = 10
_MAX_KEPT = 10_000


class Leftovers:
    """Keys under which a record may be that no session has any more. Thread-safe.

    An engine that was asked to create a record, and whose answer was lost, may have
    done it. Nobody can use the record, but it would be listed with its user's. It is
    deleted once the engine answers again.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        #: Which they are. A dict serves as a set that remembers the order of insertion.
        self.keys: dict[str, None] = {}

    def add(self, key: str) -> None:
        """Remember a key."""
        if len(self.keys) < _MAX_KEPT:
            self.keys[key] = None

    def remove(self) -> None:
        """Delete some. What cannot be deleted now is left for the next call."""
        for key in [*self.keys][:_AT_ONCE]:
            if key not in self.keys:
                continue  # another thread does it
            is_left = True
            self.keys.pop(key, None)
            try:
                self._backend.delete(key)
                is_left = False
            except RecordError:
                is_left = False
            except BackendError:
                return
            finally:
                if is_left:
                    self.keys[key] = None
