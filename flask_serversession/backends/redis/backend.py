"""The operations of the Redis backend."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ...errors import RecordError
from ...forks import unique_number
from ...hiding import HiddenBytes
from ...hiding import HiddenText
from ...hiding import forget_frames
from ...hiding import hide_texts
from ...record import HEADER_SIZE
from ...record import NO_USER
from ...record import Record
from ...record import encode_times
from ...record import encode_user
from ...record import encode_version
from ..base import Backend
from ..base import Capability
from ..base import Conflict
from ..base import Gone
from ..base import Replaced
from . import scripts
from . import values
from .server import Server
from .server import check_client
from .server import has_code
from .user_index import UserIndex
from .user_index import least_listed
from .user_index import listed_until


class RedisBackend(Backend):
    """Keeps each record in a string of its own, which expires by itself.

    For Redis from 6.0 on, and for Valkey: a single server, the primary that a
    Sentinel names, or a Cluster. The value is the record as
    :func:`.encode_record` lays it out, and 16 bytes after it.

    Every operation is one command, and so one round trip; the first
    :meth:`replace`, :meth:`delete` and :meth:`touch` on a server take a second one,
    to hand it their script. A :meth:`create` that finds the key taken asks a second
    time: its own first attempt may have taken it.

    :meth:`replace` and :meth:`touch` check the header of what is stored, but not the
    checksum of its data, which would have to be computed in the server; :meth:`load`
    does.

    *Users.* The handles of a user's records are the members of a sorted set,
    ``<prefix>user:<user>:sessions``, with the user percent-encoded. It is written by
    each :meth:`create`, :meth:`replace` and :meth:`touch` of a record that has a user,
    in the same round trip, so that an index which was evicted or lost is there again
    as soon as a session is used. On a Cluster it is written by the :meth:`create`, in a
    round trip of its own, and once a minute by a :meth:`touch` or :meth:`replace`,
    which takes three then; so does a :meth:`replace` that changes the user. What is
    deleted or replaced by a tombstone stays until :meth:`keys_of_user` finds it gone,
    or until it would have expired; the set expires with the last of its members.

    Both drivers notice a fork, and open connections of their own in the child.

    :param client: A client of redis-py or valkey-py; see :meth:`check_client`. Its
        timeouts and retries are not changed: redis-py's defaults add up to a minute. A
        Cluster client that reads from replicas can return a record that was changed or
        deleted a moment ago, and so can a client-side cache.
    :param prefix: The prefix of the application's keys. Only its records are listed
        and counted. ``None`` for all records.
    :param clock: Returns the current time in seconds since the epoch. It decides, not
        the server's clock; the server is told durations.
    :raises TypeError: if the object is not such a client.
    :raises ConfigurationError: if the client cannot be used.
    """

    name = "redis"
    capabilities = (
        Capability.COMPARE_AND_SWAP
        | Capability.EXPIRES
        | Capability.USER_INDEX
        | Capability.ITERATE
        | Capability.COUNT
    )

    def __init__(
        self,
        client: t.Any,
        *,
        prefix: str | None = None,
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        self._server = Server(client)
        self.key_prefix = prefix
        self._prefix = prefix or ""
        self._clock = clock
        self._index = UserIndex(self._server, self._prefix, clock)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str | None = None,
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
        from .urls import find_origin  # imports redis-py

        url, options = HiddenText(url), hide_texts(options)
        return cls(find_origin(url, options), prefix=prefix, clock=clock)

    @staticmethod
    def check_client(client: t.Any) -> None:
        """Check that an object is a client that this backend can use.

        That is a ``Redis`` or ``RedisCluster`` of redis-py, a ``Valkey`` or
        ``ValkeyCluster`` of valkey-py, or of a subclass of these; what
        ``Sentinel.master_for()`` returns is one. It has to return bytes.

        :raises TypeError: if it is something else.
        :raises ConfigurationError: if it decodes what it reads.
        """
        check_client(client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._server.where!r}>"

    def load(self, key: str) -> Record | None:
        """Return the record, or ``None``. One ``GET``."""
        name = values.encode_key(key)
        try:
            value = self._server.connect().execute_command("GET", name)
        except self._server.errors as error:
            if has_code(error, "WRONGTYPE"):
                raise _foreign() from forget_frames(error)
            raise self._server.failure("load", error) from forget_frames(error)
        if value is None:
            return None
        value = HiddenBytes(value)
        record = values.decode_value(value)
        return record if record.expires_at > self._clock() else None

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless there is anything under the key. One ``SET``.

        For a record with a user ``EVAL`` and ``SET``: one round trip, on a Cluster
        two. Users with 64, 128, 256, … members in their index take a few more.
        """
        nonce = unique_number().to_bytes(values.NONCE_SIZE, "big")
        name = values.encode_key(key)
        lives = values.milliseconds_until(record.expires_at, self._clock())
        listed = _listed_until(record, lives)
        value = values.encode_value(record, listed, nonce)
        command = ("SET", name, value, "PX", lives, "NX")
        try:
            client = self._server.connect()
            if not lives:
                return not client.execute_command("EXISTS", name)
            if record.user is None or not listed:
                is_created = self._server.write(*command)
            else:
                is_created = self._index.create(name, record.user, listed, command)
            if is_created:
                return True
            # Very rare, because keys are random. Perhaps the answer to a first attempt
            # was lost, and the driver has made a second one.
            stored = client.execute_command("GETRANGE", name, -values.NONCE_SIZE, -1)
            return bool(stored == nonce)
        except self._server.errors as error:
            if has_code(error, "WRONGTYPE"):
                return False
            raise self._server.failure("create", error) from forget_frames(error)

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if it has the expected version. One ``EVALSHA``.

        On a Cluster three, if its user's index was not written for a minute.
        """
        version = expected + 1
        if record.version != version:
            record = dataclasses.replace(record, version=version)
        nonce = unique_number().to_bytes(values.NONCE_SIZE, "big")
        name = values.encode_key(key)
        now = self._clock()
        lives = values.milliseconds_until(record.expires_at, now)
        listed = _listed_until(record, lives)
        args = (
            repr(now),
            encode_version(expected),
            values.encode_value(record, listed, nonce) if lives else b"",
            lives or b"",
        )
        run = self._server.run
        index = self._index.args_of("replace", name, listed) if listed else ()
        least = repr(least_listed(listed)) if listed and not index else b""
        result = run("replace", scripts.REPLACE, name, *args, least, *index)
        if result == scripts.NOT_LISTED and record.user is not None:
            self._index.add("replace", name, encode_user(record.user), listed)
            result = run("replace", scripts.REPLACE, name, *args, b"")
        if result == 1:
            return Replaced(version)
        if result == 0:
            return Gone()
        if result == -1:
            raise _foreign()
        result = HiddenBytes(result)
        if result.endswith(nonce):
            # Ours: the driver sent it again after the first answer was lost.
            return Replaced(version)
        current = values.decode_value(result)
        # The script could not check this only of a record that it could not read.
        return Conflict(current) if current.expires_at > now else Gone()

    def delete(self, key: str) -> bool:
        """Remove the record, also a damaged one; a tombstone stays. One ``EVALSHA``.

        Works on a full server, too.
        """
        name, now = values.encode_key(key), repr(self._clock())
        result = self._server.run("delete", scripts.DELETE, name, now)
        if result == -1:
            raise RecordError("The record has a newer format.", "newer")
        return bool(result)

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Move the times in the value and the key's expiry. One ``EVALSHA``.

        On a Cluster three, if its user's index was not written for a minute; one more
        anywhere, if it lives for longer already.
        """
        name = values.encode_key(key)
        user = listed = b""
        while True:
            now = self._clock()
            until = listed_until(touched_at, expires_at)
            index = self._index.args_of("touch", name, until)
            if index:
                listed = values.LISTED.pack(until)
            result = self._server.run(
                "touch",
                scripts.TOUCH,
                name,
                repr(now),
                encode_times(touched_at, expires_at),
                values.milliseconds_until(expires_at, now) or b"",
                listed,
                user,
                repr(least_listed(until)),
                *index,
            )
            # Neither happens twice, unless another request comes in between.
            if isinstance(result, list):
                (expires_at,) = values.LISTED.unpack(t.cast("list[bytes]", result)[0])
                user = listed = b""
            elif isinstance(result, bytes):
                user = result
                self._index.add("touch", name, user, until)
                listed = values.LISTED.pack(until)
            else:
                return bool(result)

    def load_many(self, keys: t.Sequence[str]) -> dict[str, Record]:
        """Load several records, a hundred in one round trip to each node."""
        names = {values.encode_key(key): key for key in keys}
        found: dict[str, Record] = {}
        with self._server.explaining("load_many"):
            for name, value in self._server.ask_many(list(names), "GET"):
                record = self._read_listable(value)
                if record is not None:
                    found[names[name]] = record
        return found

    def keys_of_user(self, user: str) -> list[str]:
        """Return the keys of the user's live records: ``ZRANGE``, ``GETRANGE`` each.

        Those in pipelines of a hundred. Members that are gone are marked, and after a
        minute removed, by one more ``EVALSHA``; if that fails, the next call does it.
        """
        encoded = encode_user(user)
        if len(encoded) >= NO_USER:
            return []  # no record can have such a user
        with self._server.explaining("keys_of_user"):
            return self._index.find(encoded)

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Iterate over all live records with ``SCAN``; skip what cannot be read.

        Sees every record that exists from beginning to end; one that comes or goes
        meanwhile may be seen or not.
        """
        return (item for item in self.iterate_all() if not item[1].is_tombstone)

    def iterate_all(self) -> t.Iterator[tuple[str, Record]]:
        """Iterate over all live records and tombstones likewise."""
        for name, value in self._scan("iterate", "GET"):
            record = self._read_live(value)
            try:
                key = values.decode_key(name)
            except UnicodeDecodeError:
                continue
            if record is not None:
                yield key, record

    def count(self) -> int:
        """Return the number of live records; reads their headers only."""
        number = 0
        for _, header in self._scan("count", "GETRANGE", 0, HEADER_SIZE - 1):
            number += values.is_live(header, self._clock()) is True
        return number

    def server_version(self) -> str:
        """Return the name and the version of the server, for people. One ``INFO``."""
        with self._server.explaining("server_version"):
            info: dict[str, t.Any] = self._server.get_nodes()[0].info("server")
        # Valkey also names the version of Redis that it is compatible with.
        name = str(info.get("server_name", "redis"))
        return f"{name.title()} {info[f'{name}_version']}"

    def close(self) -> None:
        """Close the client, if :meth:`from_url` made it. The next use makes another."""
        self._server.close()

    def _read_listable(self, value: bytes | None) -> Record | None:
        """Return a live record; ``None`` for a tombstone or what cannot be read."""
        record = self._read_live(value)
        return None if record is None or record.is_tombstone else record

    def _read_live(self, value: bytes | None) -> Record | None:
        """Return a live record or a tombstone; ``None`` for what cannot be read."""
        try:
            record = None if value is None else values.decode_value(value)
        except RecordError:
            return None
        is_live = record is not None and record.expires_at > self._clock()
        return record if is_live else None

    def _scan(
        self, operation: str, *command: t.Any
    ) -> t.Iterator[tuple[bytes, bytes | None]]:
        # As long as a key exactly: another application's prefix may start with this.
        pattern = values.glob_of(self._prefix)
        pattern += b"*" if self.key_prefix is None else b"?" * 64
        return self._server.scan(operation, pattern, *command)


def _listed_until(record: Record, lives: int) -> float:
    """Return until when the index of its user is to list a record; 0 if not at all."""
    if record.user is None or record.is_tombstone or not lives:
        return 0.0
    return listed_until(record.touched_at, record.expires_at)


def _foreign() -> RecordError:
    return RecordError("It is not a record.", "damaged")
