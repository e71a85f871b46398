"""Records in Redis or Valkey: a single server, Sentinel or Cluster."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import functools
import hashlib
import importlib
import math
import os
import re
import sys
import threading
import time
import typing as t
from urllib.parse import unquote

from ..errors import BackendError
from ..errors import BackendUnavailableError
from ..errors import ConfigurationError
from ..errors import RecordError
from ..record import FLAGS_OFFSET
from ..record import FORMAT
from ..record import HEADER_SIZE
from ..record import MAGIC
from ..record import TIMES_SLICE
from ..record import TOMBSTONE_FLAG
from ..record import VERSION_SLICE
from ..record import Record
from ..record import decode_record
from ..record import decode_times
from ..record import encode_record
from ..record import encode_times
from ..record import encode_version
from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced

# After the record: which write this was. A driver that lost the connection sends
# its command again, and only so can a write that had got through be told from
# another request's; the record alone would not do, since two requests that rotate
# the same id leave equal tombstones.
_NONCE_SIZE = 8
# Redis counts in milliseconds; this is the last whose double is exact.
_LATEST_EXPIRY = 2**53 - 1

_SCAN_COUNT = 1_000
_PIPELINE_SIZE = 100

#: Seconds for connecting and for each answer, unless the URL says otherwise.
TIMEOUT = 2.0

# -- scripts -------------------------------------------------------------------
#
# Each works on KEYS[1] alone, so it runs on a Cluster, and in one step, so nothing
# comes in between. ARGV[1] is always the current time, for a server whose clock is
# behind. No script writes anything before it deletes: a server that is full refuses
# the rest of a script after a write that takes memory, but never a deletion.

# What all of them begin with. `header` is empty if there is nothing; `is_foreign`
# says that there is something else than a string; `is_known` that this version can
# read it, in which case `expires_at` and `is_tombstone` count.
_PRELUDE = f"""
local header = redis.pcall('GETRANGE', KEYS[1], 0, {HEADER_SIZE - 1})
local is_foreign = false
if type(header) == 'table' then
  if not string.find(header.err, 'WRONGTYPE', 1, true) then return header end
  is_foreign, header = true, ''
end
local is_known = #header == {HEADER_SIZE}
  and string.byte(header, 1) == {MAGIC} and string.byte(header, 2) == {FORMAT}
local is_tombstone, expires_at = false, 0
if is_known then
  is_tombstone = bit.band(string.byte(header, {FLAGS_OFFSET + 1}),
    {TOMBSTONE_FLAG}) ~= 0
  expires_at = struct.unpack('>d', header, {TIMES_SLICE.start + 9})
end
local is_live = is_known and expires_at > tonumber(ARGV[1])
"""

# ARGV: now, expected version, new value, its expiry in ms ('' if that has passed).
# Gives 1 for done, 0 for gone, -1 for something foreign, else the current value.
_REPLACE = f"""{_PRELUDE}
if is_foreign then return -1 end
if header == '' or (is_known and not is_live) then return 0 end
if not is_known
  or string.sub(header, {VERSION_SLICE.start + 1}, {VERSION_SLICE.stop}) ~= ARGV[2] then
  return redis.call('GET', KEYS[1])
end
if ARGV[4] == '' then
  redis.call('UNLINK', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PXAT', ARGV[4])
end
return 1
"""

# ARGV: now. Gives 1 for done, 0 for absent, -1 for a newer format.
_DELETE = f"""{_PRELUDE}
if not is_known and #header > 1
  and string.byte(header, 1) == {MAGIC} and string.byte(header, 2) > {FORMAT} then
  return -1
end
if is_live and is_tombstone then return 0 end
local number = redis.call('UNLINK', KEYS[1])
if is_known and not is_live then return 0 end
return number
"""

# ARGV: now, the encoded times, the expiry in ms. Gives 1 for done, 0 for absent.
_TOUCH = f"""{_PRELUDE}
if not is_live or is_tombstone then return 0 end
redis.call('SETRANGE', KEYS[1], {TIMES_SLICE.start}, ARGV[2])
redis.call('PEXPIREAT', KEYS[1], ARGV[3])
return 1
"""


class RedisBackend(Backend):
    """Keeps each record in a string of its own, which expires by itself.

    For Redis from 6.2 on, and for Valkey: a single server, the primary that a
    Sentinel names, or a Cluster. The value is the record as
    :func:`.encode_record` lays it out, and 8 random bytes after it.

    Every operation is one command, and so one round trip; the first
    :meth:`replace`, :meth:`delete` and :meth:`touch` on a server take a second one,
    to hand it their script. A :meth:`create` that finds the key taken looks a second
    time, whether it was not its own first attempt that took it.

    :meth:`replace` and :meth:`touch` check the header of what is stored, but not the
    checksum of its data, which would have to be computed in the server; :meth:`load`
    does.

    Both drivers notice a fork, and open connections of their own in the child.

    :param client: A client of redis-py or valkey-py; see :meth:`check_client`. Its
        timeouts and its retries are its owner's: redis-py's defaults add up to a
        minute. A Cluster client that reads from replicas, and a client-side cache,
        can give a record that was changed or deleted a moment before.
    :param prefix: What the keys of this application begin with; :meth:`iterate` and
        :meth:`count` keep to those keys.
    :param clock: Gives the current time in seconds since the epoch.
    :raises TypeError: if the client is none.
    :raises ConfigurationError: if the client cannot be used.
    """

    name = "redis"
    capabilities = (
        Capability.COMPARE_AND_SWAP
        | Capability.EXPIRES
        | Capability.ITERATE
        | Capability.COUNT
    )

    def __init__(
        self,
        client: t.Any,
        *,
        prefix: str = "",
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        #: How to make a client; ``None`` for one that is not ours to close.
        self._origin: _Origin | None = None
        #: ``None`` until it is needed, if it has to be made.
        self._client: t.Any = None
        if isinstance(client, _Origin):
            self._origin = client
            self._errors = _get_errors("redis")
        else:
            self.check_client(client)
            self._client = client
            self._errors = _get_errors(_get_driver(client))
        self._lock = threading.Lock()
        self._prefix = prefix
        self._clock = clock

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = "",
        clock: t.Callable[[], float] = time.time,
        **options: t.Any,
    ) -> RedisBackend:
        """Make the client too, with redis-py. Nothing is connected yet.

        ========================================================  ====================
        ``redis://user:password@host:6379/0``                     a single server
        ``unix:///path/to/redis.sock?db=0``                       the same
        ``redis+sentinel://host1:26379,host2:26379/mymaster/0``   found by Sentinels
        ``redis+cluster://host1:7000,host2:7001``                 a Cluster
        ========================================================  ====================

        With ``rediss`` instead of ``redis``, all connections use TLS. User and
        password are those of the servers; those of the Sentinels are the parameters
        ``sentinel_username`` and ``sentinel_password``. Other parameters of the URL
        are redis-py's: ``?socket_timeout=0.5&health_check_interval=30``.

        Connecting takes at most 2 seconds, and so does each answer, unless
        ``socket_connect_timeout`` or ``socket_timeout`` say otherwise. A command whose
        connection turns out to be dead is sent once more at once, on a new one; one
        that timed out is not, so that nobody waits twice.

        :param options: Further arguments for redis-py's connections.
        :raises ConfigurationError: if the URL is wrong; its text has no password.
        :raises ImportError: if redis-py is not installed.
        """
        scheme, separator, _ = url.partition("://")
        if not separator or scheme not in _ORIGINS:
            known = ", ".join(f"'{name}://'" for name in _ORIGINS)
            raise _wrong_url(f"begins with none of {known}")
        origin = _ORIGINS[scheme](url, options)
        return cls(origin, prefix=prefix, clock=clock)

    @staticmethod
    def check_client(client: t.Any) -> None:
        """Check that an object is a client that this backend can use.

        That is a ``Redis`` or ``RedisCluster`` of redis-py, a ``Valkey`` or
        ``ValkeyCluster`` of valkey-py, or of a subclass of these; what
        ``Sentinel.master_for()`` gives is one. It has to give bytes.

        :raises TypeError: if it is something else.
        :raises ConfigurationError: if it decodes what it reads.
        """
        hint = _find_objection(client)
        if hint is not None:
            raise TypeError(
                "Expected a client of redis-py (redis.Redis, redis.RedisCluster or"
                " what Sentinel.master_for() gives) or of valkey-py (valkey.Valkey,"
                f" valkey.ValkeyCluster), not {_name_type(client)}.{hint}"
            )
        if client.get_encoder().decode_responses:
            raise ConfigurationError(
                "The client decodes what it reads ('decode_responses'), which records"
                " do not survive. Make one without it for the sessions.",
                "SESSION_REDIS",
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._where!r}>"

    def load(self, key: str) -> Record | None:
        """Give the record, or ``None``. One ``GET``."""
        try:
            value = self._connect().get(_encode_key(key))
        except self._errors as error:
            if _has_code(error, "WRONGTYPE"):
                raise _foreign() from error
            raise self._failure("load", error) from error
        if value is None:
            return None
        record = _decode(value)
        return record if record.expires_at > self._clock() else None

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless there is anything under the key. One ``SET``."""
        nonce = os.urandom(_NONCE_SIZE)
        name = _encode_key(key)
        value = encode_record(record) + nonce
        expiry = _to_milliseconds(record.expires_at)
        try:
            client = self._connect()
            if client.execute_command("SET", name, value, "PXAT", expiry, "NX"):
                return True
            # Very rare: keys are random. It may be that the answer to a first attempt
            # was lost, and that the driver has made a second one.
            stored = client.execute_command("GETRANGE", name, -_NONCE_SIZE, -1)
            return bool(stored == nonce)
        except self._errors as error:
            if _has_code(error, "WRONGTYPE"):
                return False
            raise self._failure("create", error) from error

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if it has the expected version. One ``EVALSHA``."""
        version = expected + 1
        if record.version != version:
            record = dataclasses.replace(record, version=version)
        nonce = os.urandom(_NONCE_SIZE)
        now = self._clock()
        has_expired = record.expires_at <= now
        result = self._run(
            "replace",
            _REPLACE,
            key,
            repr(now),
            encode_version(expected),
            b"" if has_expired else encode_record(record) + nonce,
            b"" if has_expired else _to_milliseconds(record.expires_at),
        )
        if result == 1:
            return Replaced(version)
        if result == 0:
            return Gone()
        if result == -1:
            raise _foreign()
        if result.endswith(nonce):
            # Ours: the driver sent it again after the first answer was lost.
            return Replaced(version)
        current = _decode(result)
        # The script could not tell only for a record that it could not read.
        return Conflict(current) if current.expires_at > now else Gone()

    def delete(self, key: str) -> bool:
        """Remove the record, also a damaged one; a tombstone stays. One ``EVALSHA``.

        Works on a server that is full, too.
        """
        result = self._run("delete", _DELETE, key, repr(self._clock()))
        if result == -1:
            raise RecordError("The record has a newer format.", "newer")
        return bool(result)

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Move the times in the value and the key's expiry. One ``EVALSHA``."""
        result = self._run(
            "touch",
            _TOUCH,
            key,
            repr(self._clock()),
            encode_times(touched_at, expires_at),
            _to_milliseconds(expires_at),
        )
        return bool(result)

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records with ``SCAN``; what cannot be read is left out.

        Sees every record that is there from beginning to end; one that comes or goes
        meanwhile may be seen or not.
        """
        for name, value in self._scan("iterate", "GET"):
            try:
                key = name.decode("utf-8", "surrogatepass")
                record = _decode(value)
            except (RecordError, UnicodeDecodeError):
                continue
            if not record.is_tombstone and record.expires_at > self._clock():
                yield key, record

    def count(self) -> int:
        """Give the number of live records; reads their headers only."""
        number = 0
        for _, header in self._scan("count", "GETRANGE", 0, HEADER_SIZE - 1):
            try:
                _, expires_at = decode_times(header)
            except RecordError:
                continue
            is_tombstone = header[FLAGS_OFFSET] & TOMBSTONE_FLAG
            number += not is_tombstone and expires_at > self._clock()
        return number

    def close(self) -> None:
        """Close the client, if :meth:`from_url` made it. The next use makes another."""
        if self._origin is None:
            return
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
            pool = getattr(client, "connection_pool", None)
            sentinel = getattr(pool, "sentinel_manager", None)
            for watcher in getattr(sentinel, "sentinels", ()):
                watcher.close()

    # -- talking to the server -------------------------------------------------

    def _connect(self) -> t.Any:
        client = self._client
        if client is None:
            assert self._origin is not None  # noqa: S101 - for type checkers
            with self._lock:
                client = self._client
                if client is None:
                    client = self._client = self._origin.make()
        return client

    def _run(self, operation: str, script: str, key: str, *args: t.Any) -> t.Any:
        name = _encode_key(key)
        try:
            client = self._connect()
            try:
                return client.execute_command(
                    "EVALSHA", _digest(script), 1, name, *args
                )
            except self._errors as error:
                if "NoScriptError" not in _names_of(error):
                    raise
                # A new server, a restarted one, or somebody flushed its scripts.
                return client.execute_command("EVAL", script, 1, name, *args)
        except self._errors as error:
            raise self._failure(operation, error) from error

    def _scan(
        self, operation: str, command: str, *args: t.Any
    ) -> t.Iterator[tuple[bytes, bytes]]:
        """Give the keys of this application, with what the command says of each."""
        pattern = _GLOB.sub(rb"\\\g<0>", _encode_key(self._prefix)) + b"*"
        # SCAN may give a key twice, and so may two nodes while a slot moves. Hashes
        # of the keys take less memory than the keys.
        seen: set[int] = set()
        try:
            client = self._connect()
            for node in _get_nodes(client):
                cursor: t.Any = None
                while cursor != 0:
                    cursor, found = node.scan(
                        cursor or 0, match=pattern, count=_SCAN_COUNT, _type="string"
                    )
                    names: list[bytes] = []
                    for name in found:
                        if hash(name) not in seen:
                            seen.add(hash(name))
                            names.append(name)
                    for start in range(0, len(names), _PIPELINE_SIZE):
                        batch = names[start : start + _PIPELINE_SIZE]
                        pipeline = node.pipeline(transaction=False)
                        for name in batch:
                            pipeline.execute_command(command, name, *args)
                        values = pipeline.execute(raise_on_error=False)
                        for name, value in zip(batch, values, strict=True):
                            if {"MovedError", "AskError"} & _names_of(value):
                                # Its slot has moved to another node since.
                                value = client.execute_command(command, name, *args)
                            if isinstance(value, bytes):
                                yield name, value
        except self._errors as error:
            raise self._failure(operation, error) from error

    # -- errors ----------------------------------------------------------------

    @property
    def _where(self) -> str:
        if self._origin is not None:
            return self._origin.where
        return _locate(self._client)

    @property
    def _timeout(self) -> float | None:
        if self._origin is not None:
            return self._origin.timeout
        nodes = getattr(self._client, "nodes_manager", None)
        pool = getattr(self._client, "connection_pool", nodes)
        options: dict[str, t.Any] = getattr(pool, "connection_kwargs", {})
        return options.get("socket_timeout")

    def _failure(self, operation: str, error: Exception) -> BackendError:
        """Say what an exception of the driver means, without its text.

        Its text can hold arguments of the command, and so a session's values.
        """
        start = f"The Redis backend at {self._where!r}"
        names = _names_of(error)
        for name, code, text in _REASONS:
            if name in names or (code and _has_code(error, code)):
                if name == "TimeoutError" and self._timeout:
                    text += f" within {self._timeout:g} seconds"
                return BackendUnavailableError(
                    f"{start} {text.format(repr(operation))}.",
                    backend=self.name,
                    operation=operation,
                )
        return BackendError(
            f"{start} does not understand {operation!r}; it has to be Redis 6.2 or"
            " newer, or Valkey.",
            backend=self.name,
            operation=operation,
        )


# What the drivers' exceptions mean: the name of a class, the code that the server's
# answer begins with, and the end of the sentence. The first match counts, so classes
# stand before what they are derived from. Names, because redis-py and valkey-py each
# have their own classes, and either may be missing.
_REASONS: tuple[tuple[str, str, str], ...] = (
    ("TimeoutError", "", "did not answer {}"),
    ("AuthenticationError", "WRONGPASS", "refused user name or password at {}"),
    ("AuthenticationError", "NOAUTH", "refused user name or password at {}"),
    ("AuthorizationError", "NOPERM", "does not permit {} to this user"),
    ("NoPermissionError", "NOPERM", "does not permit {} to this user"),
    ("BusyLoadingError", "LOADING", "is still loading its data and refused {}"),
    ("MaxConnectionsError", "", "has no free connection in its pool for {}"),
    ("MasterNotFoundError", "", "has no primary for {}, says Sentinel"),
    ("OutOfMemoryError", "OOM", "is full and refused {}"),
    ("ReadOnlyError", "READONLY", "is read-only and refused {}"),
    ("", "MISCONF", "cannot write to its disk and refused {}"),
    ("", "NOREPLICAS", "has too few replicas and refused {}"),
    ("", "BUSY", "is busy with a script and refused {}"),
    ("MasterDownError", "MASTERDOWN", "has lost its primary and refused {}"),
    ("ClusterError", "CLUSTERDOWN", "is a Cluster that is down and refused {}"),
    ("TryAgainError", "TRYAGAIN", "is moving the slot and refused {}"),
    ("AskError", "", "is moving the slot and refused {}"),
    ("RedisClusterException", "", "is a Cluster that cannot be reached for {}"),
    ("ValkeyClusterException", "", "is a Cluster that cannot be reached for {}"),
    ("ConnectionError", "", "cannot be reached for {}"),
    ("OSError", "", "cannot be reached for {}"),
    ("InvalidResponse", "", "gave an answer that makes no sense to {}"),
)


def _names_of(error: object) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _has_code(error: Exception, code: str) -> bool:
    """Say whether the server's answer has this code."""
    if "ResponseError" not in _names_of(error):
        return False
    text = str(error)
    # Redis 6.2 puts what went wrong inside of a script behind where it did:
    # "ERR Error running script (call to f_…): @user_script:1: -OOM command not…"
    return text.startswith(code + " ") or f": -{code} " in text[:400]


def _foreign() -> RecordError:
    return RecordError("There is something else than a record.", "damaged")


# -- values --------------------------------------------------------------------

_GLOB = re.compile(rb"[\\*?\[\]]")


def _encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _decode(value: bytes) -> Record:
    return decode_record(value[:-_NONCE_SIZE])


def _to_milliseconds(moment: float) -> int:
    """Give the first millisecond, from 1970 on, that is not before the moment."""
    return math.ceil(min(max(moment * 1000, 1), _LATEST_EXPIRY))


@functools.cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


# -- clients that the application made -----------------------------------------


def _get_classes() -> tuple[type, ...]:
    """Give the classes of the drivers that are imported; import none.

    Whoever has a client has imported its driver.
    """
    names = (("redis", "Redis"), ("valkey", "Valkey"))
    return tuple(
        getattr(sys.modules[module], name + suffix)
        for module, name in names
        for suffix in ("", "Cluster")
        if sys.modules.get(module)
    )


def _find_objection(client: t.Any) -> str | None:
    """Give ``None`` for a client, or what to do about it if it is none, or ``""``."""
    names = _names_of(client)
    if isinstance(client, (str, bytes)):
        return " A URL belongs into 'SESSION_REDIS_URL'."
    if isinstance(client, type):
        return " Make an instance of it."
    if any(".asyncio" in cls.__module__ for cls in type(client).__mro__):
        return " Its methods are coroutines; make a client without asyncio."
    if {"Pipeline", "ClusterPipeline"} & names:
        return " Pass the client that it was made from."
    if isinstance(client, _get_classes()):
        return None
    if "Sentinel" in names:
        return " Pass what its 'master_for()' gives."
    if "ConnectionPool" in names:
        return " Pass redis.Redis(connection_pool=…)."
    return ""


def _name_type(client: object) -> str:
    if client is None:
        return "None"
    cls = client if isinstance(client, type) else type(client)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    return f"the class {name}" if cls is client else f"an object of type {name}"


def _get_driver(client: object) -> str:
    for cls in type(client).__mro__:
        driver = cls.__module__.partition(".")[0]
        if driver in ("redis", "valkey"):
            return driver
    raise AssertionError("It was checked that it is a client.")


def _get_errors(driver: str) -> tuple[type[Exception], ...]:
    """Give the base classes of everything that a driver raises."""
    errors = importlib.import_module(f"{driver}.exceptions")
    title = driver.title()
    return (
        getattr(errors, f"{title}Error"),
        getattr(errors, f"{title}ClusterException"),
        OSError,
    )


def _get_nodes(client: t.Any) -> list[t.Any]:
    """Give a client for each server that holds keys."""
    if not hasattr(client, "get_primaries"):
        return [client]
    name = f"get_{_get_driver(client)}_connection"
    return [getattr(client, name)(node) for node in client.get_primaries()]


def _locate(client: t.Any) -> str:
    """Say where a client's server is."""
    nodes = getattr(client, "nodes_manager", None)
    if nodes is not None:
        return ",".join(nodes.startup_nodes)
    pool = client.connection_pool
    service = getattr(pool, "service_name", None)
    if service is not None:
        return str(service)
    options: dict[str, t.Any] = pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


# -- clients that a URL describes ----------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Origin:
    make: t.Callable[[], t.Any]
    where: str
    timeout: float | None


def _import_redis() -> t.Any:
    # Untyped on purpose: annotations differ between the versions of redis-py.
    for name in ("cluster", "sentinel"):
        importlib.import_module(f"redis.{name}")
    return importlib.import_module("redis")


def _make_single_origin(url: str, options: dict[str, t.Any]) -> _Origin:
    redis = _import_redis()
    address = _Address.parse(url)
    if address.scheme != "unix" and not re.fullmatch(r"\d*/?", address.path):
        raise _wrong_url("has something else than a database's number after the host")
    defaults = _get_defaults(redis, url)
    if address.scheme == "unix":
        # redis-py before 6 has no such argument for these.
        del defaults["socket_connect_timeout"]
    arguments = {**defaults, **options}

    def make() -> t.Any:
        return redis.Redis.from_url(url, **arguments)

    return _try(redis, make)


def _make_sentinel_origin(url: str, options: dict[str, t.Any]) -> _Origin:
    redis = _import_redis()
    address = _Address.parse(url)
    service, _, database = address.path.partition("/")
    if not service or not re.fullmatch(r"\d*/?", database):
        raise _wrong_url("has no '/service-name' or '/service-name/0' after the hosts")
    hosts = address.parse_hosts(26379)
    own, theirs = address.split_query("sentinel_")
    is_tls = address.scheme == "rediss+sentinel"
    defaults = {**_get_defaults(redis, url), **options}
    arguments: dict[str, t.Any] = {
        **defaults,
        **address.credentials,
        **_parse_query(redis, own),
    }
    if database.strip("/"):
        arguments.setdefault("db", int(database.strip("/")))
    # They are asked one after the other, within the time of one connection.
    share = (arguments["socket_timeout"] or TIMEOUT) / len(hosts)
    sentinel_arguments: dict[str, t.Any] = {
        **defaults,
        **{name: arguments[name] for name in arguments if name.startswith("ssl_")},
        **({"ssl": True} if is_tls else {}),
        "socket_timeout": share,
        "socket_connect_timeout": share,
        **_parse_query(redis, theirs),
    }
    connection_class = _get_sentinel_connection(redis, is_tls)

    def make() -> t.Any:
        sentinel = redis.Sentinel(hosts, sentinel_kwargs=sentinel_arguments)
        return sentinel.master_for(
            unquote(service), connection_class=connection_class, **arguments
        )

    return _try(redis, make)


def _make_cluster_origin(url: str, options: dict[str, t.Any]) -> _Origin:
    redis = _import_redis()
    address = _Address.parse(url)
    if address.path.strip("/") not in ("", "0"):
        raise _wrong_url("names a database, which a Cluster does not have")
    hosts = address.parse_hosts(6379)
    is_tls = address.scheme == "rediss+cluster"
    defaults = _without(_get_defaults(redis, url), "retry", "retry_on_error")
    query = _parse_query(redis, address.query)
    arguments: dict[str, t.Any] = {
        **defaults,
        **options,
        **address.credentials,
        **query,
    }
    connection_class = redis.SSLConnection if is_tls else redis.Connection
    try:
        # A Cluster client drops what it does not know, without a word.
        connection_class(**_without(arguments, "max_connections"))
    except (TypeError, ValueError, redis.RedisError) as error:
        raise _wrong_option(error) from None
    if arguments.get("decode_responses"):
        raise _wrong_url("has 'decode_responses', which records do not survive")
    if is_tls:
        arguments["ssl"] = True
    if redis.VERSION < (6,):
        # There, a retry is for each connection, and the number stands for itself.
        arguments["cluster_error_retry_attempts"] = 1
    else:
        no_backoff = redis.backoff.NoBackoff()
        arguments["retry"] = redis.retry.Retry(no_backoff, 1)

    base: t.Any = redis.RedisCluster

    class Cluster(base):  # type: ignore[misc]
        # A timeout is not tried again, so that nobody waits twice.
        ERRORS_ALLOW_RETRY = tuple(
            error
            for error in base.ERRORS_ALLOW_RETRY
            if error is not redis.TimeoutError
        )

    def make() -> t.Any:
        # Connects to the first node that answers, so not before it is needed.
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in hosts]
        return Cluster(startup_nodes=nodes, **arguments)

    return _Origin(make, address.hosts, arguments["socket_timeout"])


def _try(redis: t.Any, make: t.Callable[[], t.Any]) -> _Origin:
    """Make a client, which does not connect it, to see whether it can be made."""
    try:
        client = make()
        pool = client.connection_pool
        # What is misspelt would otherwise come out at the first request.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, redis.RedisError) as error:
        raise _wrong_option(error) from None
    RedisBackend.check_client(client)
    return _Origin(make, _locate(client), pool.connection_kwargs["socket_timeout"])


_ORIGINS: dict[str, t.Callable[[str, dict[str, t.Any]], _Origin]] = {
    "redis": _make_single_origin,
    "rediss": _make_single_origin,
    "unix": _make_single_origin,
    "redis+sentinel": _make_sentinel_origin,
    "rediss+sentinel": _make_sentinel_origin,
    "redis+cluster": _make_cluster_origin,
    "rediss+cluster": _make_cluster_origin,
}


@dataclasses.dataclass(frozen=True)
class _Address:
    """The parts of a URL, which may have several hosts; urllib knows one only."""

    scheme: str
    credentials: dict[str, str]
    hosts: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> _Address:
        scheme, _, rest = url.partition("://")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        user_info, _, hosts = authority.rpartition("@")
        username, _, password = user_info.partition(":")
        credentials = {"username": unquote(username), "password": unquote(password)}
        credentials = {name: value for name, value in credentials.items() if value}
        return cls(scheme, credentials, hosts, path, query)

    def parse_hosts(self, default_port: int) -> list[tuple[str, int]]:
        hosts: list[tuple[str, int]] = []
        for part in self.hosts.split(","):
            match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", part)
            if match is None:
                raise _wrong_url("does not list hosts as 'host:port,host:port'")
            port = int(match[3]) if match[3] else default_port
            hosts.append((match[1] or match[2], port))
        return hosts

    def split_query(self, prefix: str) -> tuple[str, str]:
        """Give the parameters without the prefix, and those with it, freed from it."""
        parts = [part for part in self.query.split("&") if part]
        own = [part for part in parts if not part.startswith(prefix)]
        theirs = [part[len(prefix) :] for part in parts if part.startswith(prefix)]
        return "&".join(own), "&".join(theirs)


def _parse_query(redis: t.Any, query: str) -> dict[str, t.Any]:
    """Read parameters as redis-py does, which knows their types."""
    try:
        parsed = redis.connection.parse_url(f"redis://host/?{query}")
    except ValueError as error:
        raise _wrong_option(error) from None
    return _without(parsed, "host")


def _without(options: cabc.Mapping[str, t.Any], *names: str) -> dict[str, t.Any]:
    return {name: value for name, value in options.items() if name not in names}


def _get_defaults(redis: t.Any, url: str) -> dict[str, t.Any]:
    defaults: dict[str, t.Any] = {
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        # The third version of the protocol has nothing that is needed here, and
        # redis-py sends two more commands with it on each new connection.
        "protocol": 2,
    }
    if "retry_on_timeout=" not in url and "retry_on_error=" not in url:
        defaults["retry"] = _make_retry(redis)
        # redis-py before 6 retries a command for these only, whatever the above says.
        defaults["retry_on_error"] = [redis.ConnectionError, redis.ReadOnlyError]
    return defaults


def _make_retry(redis: t.Any) -> t.Any:
    base: t.Any = redis.retry.Retry

    class RetryOnce(base):  # type: ignore[misc]
        """Tries again at once, after what did not take long."""

        def call_with_retry(
            self,
            do: t.Callable[[], t.Any],
            fail: t.Callable[..., t.Any],
            *args: t.Any,
            **kwargs: t.Any,
        ) -> t.Any:
            started = time.monotonic()

            def fail_or_give_up(error: Exception, *more: t.Any) -> None:
                # This disconnects. It has to, after a timeout too: the answer that
                # comes late must not be taken for that of the next command.
                fail(error, *more)
                if isinstance(error, final) or time.monotonic() - started > TIMEOUT / 4:
                    raise error

            return base.call_with_retry(self, do, fail_or_give_up, *args, **kwargs)

    final = (redis.TimeoutError, redis.AuthenticationError, OSError)
    # A primary that has become a replica: the next connection may lead to its heir.
    supported = (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.ReadOnlyError,
        OSError,
    )
    return RetryOnce(redis.backoff.NoBackoff(), 1, supported)


def _get_sentinel_connection(redis: t.Any, is_tls: bool) -> t.Any:
    name = "SentinelManagedSSLConnection" if is_tls else "SentinelManagedConnection"

    base: t.Any = getattr(redis.sentinel, name)

    class SentinelConnection(base):  # type: ignore[misc]
        # redis-py leaves these connections open when reading is interrupted, by a
        # gevent timeout for instance, and the answer, which may be another
        # visitor's record, would be taken for that of the next command. Its other
        # connections are closed then.
        def read_response(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            kwargs.setdefault("disconnect_on_error", True)
            return base.read_response(self, *args, **kwargs)

    return SentinelConnection


def _wrong_url(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"The URL of the Redis server {text}.", "SESSION_REDIS_URL"
    )


def _wrong_option(error: Exception) -> ConfigurationError:
    """Say which parameter was refused; never the text of others, nor any value."""
    text = str(error)
    match = re.search(
        r"unexpected keyword argument '(\w+)'|Invalid value for '(\w+)'", text
    )
    if match is None:
        return _wrong_url("cannot be used: look at its port and its parameters")
    if match[1]:
        return _wrong_url(f"has a parameter {match[1]!r}, which redis-py does not know")
    return _wrong_url(f"has a wrong value for {match[2]!r}")
