"""A backend that counts what is asked of another one, and can let it fail."""

# The operations are described by Backend.
# ruff: noqa: D102

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import threading
import typing as t

from ..backends.base import Backend
from ..backends.base import Conflict
from ..backends.base import Gone
from ..backends.base import Replaced
from ..errors import BackendUnavailableError
from ..record import Record

#: What a backend can be asked for.
OPERATIONS = (
    "load",
    "create",
    "replace",
    "delete",
    "touch",
    "load_many",
    "keys_of_user",
    "iterate",
    "count",
    "prune",
    "sweep",
    "close",
)


class CountingBackend(Backend):
    """Forwards everything to another backend and counts what it was asked for.

    Hand it to ``SESSION_BACKEND`` to test what a page costs::

        backend = CountingBackend(MemoryBackend())
        ...
        with backend.counting() as calls:
            client.get("/")
        assert calls == {"load": 1}

    An operation is counted when it is asked for, even if it then fails.

    :attr:`before` and :attr:`after` are for tests in which another request has to
    come in between. A hook may use the backend, directly or through a request: hooks
    are not called within hooks. A hook may remove itself, so that it is called once::

        def someone_else_logs_out():
            del backend.before["replace"]
            other_client.post("/logout")

        backend.before["replace"] = someone_else_logs_out

    An ``after`` hook that raises stands for an engine that did the work and whose
    answer was lost; see :meth:`failing` for one that did nothing.

    :param backend: The backend that does the work. Its other attributes can be reached
        through this one too.
    """

    def __init__(self, backend: Backend) -> None:
        # Usually class attributes; messages must name the backend inside.
        self.name = backend.name
        self.capabilities = backend.capabilities
        self.key_prefix = backend.key_prefix
        #: The backend that does the work.
        self.backend = backend
        #: How often each operation was asked for.
        self.calls: collections.Counter[str] = collections.Counter()
        #: The operations in the order in which they were asked for.
        self.log: list[str] = []
        #: Called before an operation of that name is forwarded.
        self.before: dict[str, cabc.Callable[[], object]] = {}
        #: Called after an operation of that name was forwarded and succeeded.
        self.after: dict[str, cabc.Callable[[], object]] = {}
        self._lock = threading.Lock()
        self._counters: list[collections.Counter[str]] = []
        self._failing: list[tuple[frozenset[str], Exception | None]] = []
        self._in_hook = threading.local()

    def __getattr__(self, name: str) -> t.Any:
        # Copying and unpickling look up attributes before __init__ has run, and would
        # recurse without this check.
        if name == "backend":
            raise AttributeError(name)
        return getattr(self.backend, name)

    def reset(self) -> None:
        """Forget what was counted so far."""
        with self._lock:
            self.calls.clear()
            self.log.clear()

    @contextlib.contextmanager
    def counting(self) -> cabc.Generator[collections.Counter[str], None, None]:
        """Count what is asked for inside the ``with`` block, by any thread.

        It can be nested, and does not touch :attr:`calls`.
        """
        counter: collections.Counter[str] = collections.Counter()
        with self._lock:
            self._counters.append(counter)
        try:
            yield counter
        finally:
            with self._lock:
                # By identity: nested counters can be equal.
                self._counters = [c for c in self._counters if c is not counter]

    @contextlib.contextmanager
    def failing(
        self, *operations: str, error: Exception | None = None
    ) -> cabc.Generator[None, None, None]:
        """Let operations fail inside the ``with`` block, without being forwarded.

        :param operations: Their names; none for all of them.
        :param error: What they raise; a :exc:`.BackendUnavailableError` by default.
        """
        unknown = set(operations).difference(OPERATIONS)
        if unknown:
            raise ValueError(f"A backend has no operation {sorted(unknown)[0]!r}.")
        rule = (frozenset(operations or OPERATIONS), error)
        with self._lock:
            self._failing.append(rule)
        try:
            yield
        finally:
            with self._lock:
                self._failing = [r for r in self._failing if r is not rule]

    def load(self, key: str) -> Record | None:
        with self._asked_for("load"):
            return self.backend.load(key)

    def create(self, key: str, record: Record) -> bool:
        with self._asked_for("create"):
            return self.backend.create(key, record)

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        with self._asked_for("replace"):
            return self.backend.replace(key, record, expected)

    def delete(self, key: str) -> bool:
        with self._asked_for("delete"):
            return self.backend.delete(key)

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        with self._asked_for("touch"):
            return self.backend.touch(key, touched_at, expires_at)

    def load_many(self, keys: t.Sequence[str]) -> dict[str, Record]:
        with self._asked_for("load_many"):
            return self.backend.load_many(keys)

    def keys_of_user(self, user: str) -> list[str]:
        with self._asked_for("keys_of_user"):
            return self.backend.keys_of_user(user)

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        with self._asked_for("iterate"):
            return self.backend.iterate()

    def iterate_all(self) -> t.Iterator[tuple[str, Record]]:
        with self._asked_for("iterate"):
            return self.backend.iterate_all()

    def count(self) -> int:
        with self._asked_for("count"):
            return self.backend.count()

    def prune(self, limit: int) -> int:
        with self._asked_for("prune"):
            return self.backend.prune(limit)

    def sweep(self, limit: int) -> int:
        with self._asked_for("sweep"):
            return self.backend.sweep(limit)

    def close(self) -> None:
        with self._asked_for("close"):
            self.backend.close()

    @contextlib.contextmanager
    def _asked_for(self, operation: str) -> cabc.Generator[None, None, None]:
        with self._lock:
            self.log.append(operation)
            for counter in (self.calls, *self._counters):
                counter[operation] += 1
        self._call(self.before, operation)
        # After the hook, so that it can let the engine die at the last moment.
        with self._lock:
            rules = [e for names, e in self._failing if operation in names]
        if rules:
            raise rules[-1] or BackendUnavailableError(
                f"The test lets {operation!r} of the {self.name!r} backend fail.",
                backend=self.name,
                operation=operation,
            )
        yield
        self._call(self.after, operation)

    def _call(
        self, hooks: dict[str, cabc.Callable[[], object]], operation: str
    ) -> None:
        hook = hooks.get(operation)
        if hook is None or getattr(self._in_hook, "value", False):
            return
        self._in_hook.value = True
        try:
            hook()
        finally:
            self._in_hook.value = False
