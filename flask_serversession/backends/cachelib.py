"""Records in any cache of the cachelib package: memcached, MongoDB, DynamoDB, …"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickle
import re
import struct
import threading
import time
import typing as t

from cachelib import BaseCache
from cachelib import FileSystemCache
from cachelib import MemcachedCache
from cachelib import SimpleCache

from ..errors import BackendUnavailableError
from ..errors import RecordError
from ..forks import ThreadLocks
from ..hiding import HiddenBytes
from ..hiding import forget_frames
from ..record import Record
from ..record import decode_record
from ..record import encode_record
from ..serializers.code_runners import code_runner_of
from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced

_T = t.TypeVar("_T")

# The default configuration's keys are used as they are, so that an operator finds them.
# memcached takes 250 bytes; 200 leave room for a prefix that the cache itself adds.
_is_plain_key = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,200}").fullmatch
# Not among the plain characters, so no key can be mistaken for a hashed one.
_HASHED = "#"
_PROBE_KEY = "flask_serversession.probe"
_PROBE_TIMEOUT = 60
# FileSystemCache packs the moment of expiry into 32 bits and memcached reads it as
# a signed 32-bit number (2038). Nothing that is used at all goes unwritten for years.
_LONGEST_TIMEOUT = 5 * 366 * 24 * 3600
# A threshold from here on is never reached: the memory ends before.
_UNREACHABLE_THRESHOLD = 1_000_000_000
# One lock for each group of keys: requests of different visitors hardly ever wait for
# each other, and the number of locks does not grow. They belong to the process and not
# to a backend, because two applications in it may use the same cache.
_locks = ThreadLocks()
_GROUPS = 256

# Mistakes in a program, also in a third-party cache, must be seen as what they are.
_PROGRAMMING_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    TypeError,
)
# What unpickling a damaged value raises, besides the programming errors above.
_UNPICKLING_ERRORS = (
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    ValueError,
    pickle.PickleError,
    struct.error,
)


class CachelibBackend(Backend):
    """Keeps records in a cache of the cachelib package.

    The cache gets nothing but bytes, so what it pickles is never a user's object. But
    what somebody else has put there it unpickles all the same, and that can be code.

    A cache has no compare-and-swap: :meth:`replace`, :meth:`touch` and
    :meth:`delete` read first and write then. A lock of this process makes them
    exact among its threads. Between processes a window remains, from the read to
    the write, in which a change can be lost or a destroyed session revived.

    Several caches answer "nothing there" when they mean "no answer": memcached and
    the file system among them. Where a record is missing, the backend therefore
    writes a probe, to be told whether the cache works; that is one more
    round trip, on that path only.

    Expired records are removed when the cache does so. SimpleCache and
    FileSystemCache do it only once their threshold is exceeded, the latter never with
    a threshold of 0.

    :param cache: The cache. It is used as it is, with its own key prefix; it is not
        closed.
    :param clock: Gives the current time in seconds since the epoch.
    """

    name = "cachelib"
    capabilities = Capability.EXPIRES

    def __init__(
        self, cache: BaseCache, clock: t.Callable[[], float] = time.time
    ) -> None:
        self._cache = cache
        self._clock = clock

    def load(self, key: str) -> Record | None:
        """Return the record, or ``None`` if it is unknown or has expired."""
        return self._read(key, "load")

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless the key is taken."""
        with _lock_of(key):
            if self._write("create", self._cache.add, key, record):
                return True
            # The key is taken, or the cache failed: add() has one answer for both.
            try:
                value = self._get(key, "create")
                if value is not None and self._decode(value) is not None:
                    return False
                # FileSystemCache keeps an expired file, and add() takes it for live.
                if value is None and self._has(key, "create"):
                    return False
            except RecordError:
                return False
            self._set(key, record, "create")
            return True

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if its stored version is the expected one.

        Exact among the threads of this process, not between processes.
        """
        with _lock_of(key):
            current = self._read(key, "replace")
            if current is None:
                return Gone()
            if current.version != expected:
                return Conflict(current)
            version = expected + 1
            if record.expires_at > self._clock():
                record = dataclasses.replace(record, version=version)
                self._set(key, record, "replace")
            else:
                self._remove(key, "replace")
            return Replaced(version)

    def delete(self, key: str) -> bool:
        """Remove the record; a tombstone stays, and counts as none."""
        with _lock_of(key):
            try:
                current = self._read(key, "delete")
            except RecordError as exc:
                if exc.reason == "newer":
                    raise
            else:
                if current is None or current.is_tombstone:
                    return False
            return self._remove(key, "delete")

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Move the times of the record, and nothing else.

        The whole record is written again: caches cannot write a part of a value.
        """
        with _lock_of(key):
            try:
                current = self._read(key, "touch")
            except RecordError:
                return False
            if current is None or current.is_tombstone:
                return False
            if expires_at > self._clock():
                record = dataclasses.replace(
                    current,
                    touched_at=touched_at,
                    expires_at=max(expires_at, current.expires_at),
                )
                self._set(key, record, "touch")
            else:
                self._remove(key, "touch")
            return True

    def _read(self, key: str, operation: str) -> Record | None:
        value = self._get(key, operation)
        return None if value is None else self._decode(value)

    def _decode(self, value: object) -> Record | None:
        if not isinstance(value, bytes):
            raise RecordError("The record is not one of this library's.", "damaged")
        record = decode_record(value)
        return record if record.expires_at > self._clock() else None

    def _get(self, key: str, operation: str) -> object:
        def get() -> object:
            try:
                return self._cache.get(_name(key))
            except OSError:
                # Some are ValueErrors too: a certificate that does not verify.
                raise
            except _UNPICKLING_ERRORS as exc:
                raise RecordError(
                    "The cache cannot unpack the record.", "damaged"
                ) from forget_frames(exc)

        value = self._run(operation, get)
        if value is None and not self._run(
            operation, self._cache.set, _PROBE_KEY, b"", _PROBE_TIMEOUT
        ):
            raise self._unavailable(operation)
        return HiddenBytes(value) if isinstance(value, bytes) else value

    def _has(self, key: str, operation: str) -> bool:
        try:
            return self._run(operation, self._cache.has, _name(key))
        except NotImplementedError:
            # BaseCache leaves has() to those that can answer it cheaply.
            return False

    def _set(self, key: str, record: Record, operation: str) -> None:
        if not self._write(operation, self._cache.set, key, record):
            raise self._unavailable(operation)

    def _remove(self, key: str, operation: str) -> bool:
        if self._run(operation, self._cache.delete, _name(key)):
            return True
        # Another process was faster, or the cache failed: again one answer for both.
        if self._get(key, operation) is not None:
            raise self._unavailable(operation)
        return False

    def _write(
        self,
        operation: str,
        function: t.Callable[[str, bytes, int], bool | None],
        key: str,
        record: Record,
    ) -> bool | None:
        # The record's own moment of expiry decides; the cache only cleans up, so it
        # must never be early. It counts whole seconds, from a time that some caches
        # truncate, hence the one second more. And 0 would mean "never".
        left = min(record.expires_at - self._clock(), _LONGEST_TIMEOUT)
        name, value = _name(key), encode_record(record)
        timeout = max(math.ceil(left) + 1, 1)
        # Plain bytes: caches pickle every other kind.
        return self._run(operation, lambda: function(name, bytes(value), timeout))

    def _run(self, operation: str, function: t.Callable[..., _T], *args: t.Any) -> _T:
        try:
            return function(*args)
        except (RecordError, *_PROGRAMMING_ERRORS):
            raise
        except Exception as exc:  # noqa: BLE001
            # Each client library has exceptions of its own, which share no base
            # class but Exception, and importing all of them is no option.
            raise self._unavailable(operation) from forget_frames(exc)

    def _unavailable(self, operation: str) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"The {type(self._cache).__name__} of the 'cachelib' backend failed to"
            f" carry out {operation!r}: it cannot be reached, or it refuses the"
            " record, perhaps because of its size.",
            backend=self.name,
            operation=operation,
            refused=operation != "load",
        )


def eviction_warning(cache: BaseCache) -> str | None:
    """Return whether a cache loses live sessions when many are kept, and what to do.

    :param cache: The cache that :data:`SESSION_CACHELIB` names.
    :return: A text for the log, or ``None`` if nothing is known against the cache.
    """
    kind = type(cache).__name__
    threshold: object = getattr(cache, "_threshold", None)
    if not isinstance(threshold, int):
        return None
    if isinstance(cache, SimpleCache) and threshold < _UNREACHABLE_THRESHOLD:
        return (
            f"'SESSION_CACHELIB' is a {kind} with a threshold of {threshold}: beyond"
            f" {threshold} sessions it throws live ones away (a threshold of 0 means"
            " 500 there). Use the 'memory' backend instead, or give the cache"
            " threshold=sys.maxsize, with which it never removes an expired one."
        )
    if isinstance(cache, FileSystemCache) and threshold != 0:
        return (
            f"'SESSION_CACHELIB' is a {kind} with a threshold of {threshold}: beyond"
            f" {threshold} sessions it throws live ones away. Use the 'filesystem'"
            " backend instead, or give the cache threshold=0, with which it never"
            " removes an expired one."
        )
    return None


def keeps_nothing(cache: BaseCache) -> bool:
    """Return whether a cache is a NullCache, that of cachelib or of Flask-Caching."""
    return any(cls.__name__ == "NullCache" for cls in type(cache).__mro__)


def unpickles(cache: BaseCache) -> bool:
    """Whether a cache is known to run code that it finds in what it reads."""
    serializer: object = getattr(cache, "serializer", None)
    if serializer is None:
        # Its clients do, where a flag beside the value says so.
        return isinstance(cache, MemcachedCache)
    name = "load" if isinstance(cache, FileSystemCache) else "loads"
    return code_runner_of(getattr(serializer, name, None)) is not None


def unpickling_warning(backend: Backend) -> str | None:
    """Return whether those who write to a cache can run code in the application.

    :return: A text for the log, or ``None`` if nothing is known against the cache.
    """
    if not isinstance(backend, CachelibBackend):
        return None
    cache = backend._cache  # pyright: ignore[reportPrivateUsage] - of this module
    # A SimpleCache is in this process's memory, where nobody else can write.
    if isinstance(cache, SimpleCache) or not unpickles(cache):
        return None
    return (
        f"The {type(cache).__name__} of the 'cachelib' backend unpickles what it reads:"
        " whoever can write to the cache can run code in the application. Let nobody"
        " else write to it, or choose another 'SESSION_BACKEND'."
    )


def _lock_of(key: str) -> threading.RLock:
    return _locks.get(hash(key) % _GROUPS)


def _name(key: str) -> str:
    # Any printable characters make a prefix; memcached refuses spaces, among others.
    if _is_plain_key(key):
        return key
    return _HASHED + hashlib.sha256(key.encode()).hexdigest()
