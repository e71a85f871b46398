"""Records in Redis or Valkey: a single server, Sentinel or Cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import re
import struct
import time
import typing as t

from ..errors import RecordError
from ..nonce import make_nonce
from ..record import FLAGS_OFFSET
from ..record import FORMAT
from ..record import HEADER_SIZE
from ..record import MAGIC
from ..record import NO_USER
from ..record import TIMES_SLICE
from ..record import TOMBSTONE_FLAG
from ..record import USER_LENGTH_SLICE
from ..record import VERSION_SLICE
from ..record import Record
from ..record import decode_record
from ..record import decode_times
from ..record import encode_record
from ..record import encode_times
from ..record import encode_user
from ..record import encode_version
from ._redis_client import TIMEOUT
from ._redis_client import Server
from ._redis_client import check_client
from ._redis_client import find_origin
from ._redis_client import has_code
from ._redis_client import is_cluster
from ._redis_client import names_of
from ._redis_client import was_cut_off
from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced

__all__ = ["TIMEOUT", "RedisBackend"]

# What follows the record. Until when its user's index lists it, 0 if it does not:
# see _INDEX. And which write this was: a driver that lost the connection sends its
# command again, and only so can a write that had got through be told from another
# request's; the record alone would not do, since two requests that rotate the same id
# leave equal tombstones.
_TRAILER = struct.Struct(">d8s")
_NONCE_SIZE = 8
_LISTED = struct.Struct(">d")
# Redis counts in milliseconds; this is the last whose double is exact.
_LONGEST_LIFE = 2**53 - 1

# The answer of a script; compared with answers of any type.
_NOT_LISTED: t.Any = -2

_SCAN_COUNT = 1_000
# How many members of an index one script looks after.
_REPAIRS_AT_ONCE = 1_000
# A record that an index names and that is not there may be one that is just being
# created. After so many seconds it is not.
_IN_FLIGHT = 60.0
# From this many members on, an index whose number of members reaches a power of two
# is looked through for those that are gone.
_SMALL_INDEX = 64

# -- scripts -------------------------------------------------------------------
#
# Each works on KEYS[1] alone, so it runs on a Cluster, and in one step, so nothing
# comes in between. ARGV[1] is always the current time, since the server's clock may be
# another one; so expiry is always given as a duration. No more than plain Lua is used:
# not every server has bit and struct. No script writes anything before it deletes: a
# server that is full refuses the rest of a script after a write that takes memory, but
# never a deletion.

# What those for a record begin with. `header` is empty if there is nothing;
# `is_foreign` says that there is something else than a string; `is_known` that this
# version can read it, in which case `expires_at` and `is_tombstone` count.
_PRELUDE = f"""
local function double(text, at)
  local a, b, c, d, e, f, g, h = string.byte(text, at, at + 7)
  local exponent = a % 128 * 16 + math.floor(b / 16)
  local mantissa =
    (((((b % 16 * 256 + c) * 256 + d) * 256 + e) * 256 + f) * 256 + g) * 256 + h
  if exponent == 0 then
    exponent = 1
  else
    mantissa = mantissa + 2^52
  end
  return (a < 128 and 1 or -1) * mantissa * 2^(exponent - 1075)
end
local function short(text, at)
  local a, b = string.byte(text, at, at + 1)
  return a * 256 + b
end
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
  is_tombstone = string.byte(header, {FLAGS_OFFSET + 1}) % {2 * TOMBSTONE_FLAG}
    >= {TOMBSTONE_FLAG}
  expires_at = double(header, {TIMES_SLICE.start + 9})
end
local is_live = is_known and expires_at > tonumber(ARGV[1])
"""

# What they need to know for the index of a user. Not a part of the prelude: most
# calls do without.
_GET_USER = f"""
  local size = short(header, {USER_LENGTH_SLICE.start + 1})
  local user = redis.call('GETRANGE', KEYS[1], {HEADER_SIZE}, {HEADER_SIZE - 1} + size)
  local listed = redis.call('GETRANGE', KEYS[1], -{_TRAILER.size}, -{_NONCE_SIZE + 1})
"""

# ARGV: now, expected version, new value, how long it lives in ms ('' if not at all),
# and '1' if the new value may only be written where the index lists it already. Gives 1
# for done, 0 for gone, -1 for something foreign, -2 for not listed, else the current
# value.
_REPLACE = f"""{_PRELUDE}
if is_foreign then return -1 end
if header == '' or (is_known and not is_live) then return 0 end
if not is_known
  or string.sub(header, {VERSION_SLICE.start + 1}, {VERSION_SLICE.stop}) ~= ARGV[2] then
  return redis.call('GET', KEYS[1])
end
if ARGV[4] == '' then
  redis.call('UNLINK', KEYS[1])
elseif ARGV[5] == '' then
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
else
  {_GET_USER}
  local new_size = short(ARGV[3], {USER_LENGTH_SLICE.start + 1})
  local new_expires_at = double(ARGV[3], {TIMES_SLICE.start + 9})
  if size ~= new_size
    or user ~= string.sub(ARGV[3], {HEADER_SIZE + 1}, {HEADER_SIZE} + size)
    or double(listed, 1) < new_expires_at then
    return {_NOT_LISTED}
  end
  -- It is there: no time passes within a script, and the life is never over.
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
  redis.call('SETRANGE', KEYS[1], #ARGV[3] - {_TRAILER.size}, listed)
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

# ARGV: now, the encoded times, how long it lives in ms ('' if not at all), and until
# when the index of which user lists it now ('' if it was not asked). Gives 1 for done,
# 0 for absent, the user, which is a string, if the index has to list it for longer
# first, and a list of the encoded expiry if the record lives for longer already: a
# script cannot make the checksum.
_TOUCH = f"""{_PRELUDE}
if not is_live or is_tombstone then return 0 end
if ARGV[3] == '' then
  return redis.call('UNLINK', KEYS[1])
end
local new_expires_at = double(ARGV[2], 9)
if expires_at > new_expires_at then
  return {{string.sub(header, {TIMES_SLICE.start + 9}, {TIMES_SLICE.start + 16})}}
end
if short(header, {USER_LENGTH_SLICE.start + 1}) ~= {NO_USER} then
  {_GET_USER}
  if double(listed, 1) < new_expires_at then
    if ARGV[4] == '' or user ~= ARGV[5] then return user end
    redis.call('SETRANGE', KEYS[1],
      redis.call('STRLEN', KEYS[1]) - {_TRAILER.size}, ARGV[4])
  end
end
redis.call('SETRANGE', KEYS[1], {TIMES_SLICE.start}, ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# The index of a user: a sorted set whose members are the handles of records. A member's
# score is until when it is listed, which is never before its record expires; so what
# has a score in the past is not needed any more (with a minute for servers whose clocks
# differ). A negative score is a mark: at this moment there was no such record. The set
# itself expires when nothing in it is listed any more.
#
# A record's index is written before the record, here and in every other case, so that
# whoever dies in between leaves one member too many and never one too few.

# ARGV: now, until when, for how long in ms, the member. Gives the number of members.
_INDEX = f"""
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, tonumber(ARGV[1]) - {_IN_FLIGHT})
local score = redis.call('ZSCORE', KEYS[1], ARGV[4])
if not score or tonumber(score) < tonumber(ARGV[2]) then
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[4])
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return redis.call('ZCARD', KEYS[1])
"""

# ARGV: for each member that is gone its name, its score, and its new score ('' if it
# may go). A member that somebody has listed again meanwhile has another score.
_REPAIR = """
for i = 1, #ARGV, 3 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then
    if ARGV[i + 2] == '' then
      redis.call('ZREM', KEYS[1], ARGV[i])
    else
      redis.call('ZADD', KEYS[1], 'XX', ARGV[i + 2], ARGV[i])
    end
  end
end
"""


class RedisBackend(Backend):
    """Keeps each record in a string of its own, which expires by itself.

    For Redis from 6.0 on, and for Valkey: a single server, the primary that a
    Sentinel names, or a Cluster. The value is the record as
    :func:`.encode_record` lays it out, and 16 bytes after it.

    Every operation is one command, and so one round trip; the first
    :meth:`replace`, :meth:`delete` and :meth:`touch` on a server take a second one,
    to hand it their script. A :meth:`create` that finds the key taken looks a second
    time, whether it was not its own first attempt that took it.

    :meth:`replace` and :meth:`touch` check the header of what is stored, but not the
    checksum of its data, which would have to be computed in the server; :meth:`load`
    does.

    *Users.* The handles of a user's records are the members of a sorted set,
    ``<prefix>user:<user>:sessions``, with the user percent-encoded. It is written by
    the :meth:`create` of a record that has a user, in the same round trip (on a
    Cluster in one of its own), and then only when the record would outlive its place
    in there, about twice in a lifetime; that :meth:`touch` or :meth:`replace` takes
    three round trips, and so does a :meth:`replace` that changes the user. What is
    deleted or replaced by a tombstone stays until :meth:`keys_of_user` finds it gone,
    or until it would have expired; the set expires with the last of its members.

    Both drivers notice a fork, and open connections of their own in the child.

    :param client: A client of redis-py or valkey-py; see :meth:`check_client`. Its
        timeouts and its retries are its owner's: redis-py's defaults add up to a
        minute. A Cluster client that reads from replicas, and a client-side cache,
        can give a record that was changed or deleted a moment before.
    :param prefix: That of the application whose records are listed and counted:
        their keys are this and 64 hexadecimal digits. ``None`` for all.
    :param clock: Gives the current time in seconds since the epoch. It decides, and not
        that of the server, which is told durations.
    :raises TypeError: if the client is none.
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
        return cls(find_origin(url, options), prefix=prefix, clock=clock)

    @staticmethod
    def check_client(client: t.Any) -> None:
        """Check that an object is a client that this backend can use.

        That is a ``Redis`` or ``RedisCluster`` of redis-py, a ``Valkey`` or
        ``ValkeyCluster`` of valkey-py, or of a subclass of these; what
        ``Sentinel.master_for()`` gives is one. It has to give bytes.

        :raises TypeError: if it is something else.
        :raises ConfigurationError: if it decodes what it reads.
        """
        check_client(client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._server.where!r}>"

    def load(self, key: str) -> Record | None:
        """Give the record, or ``None``. One ``GET``."""
        try:
            value = self._server.connect().execute_command("GET", _encode_key(key))
        except self._server.errors as error:
            if has_code(error, "WRONGTYPE"):
                raise _foreign() from error
            raise self._server.failure("load", error) from error
        if value is None:
            return None
        record = _decode(value)
        return record if record.expires_at > self._clock() else None

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless there is anything under the key. One ``SET``.

        For a record with a user ``EVAL`` and ``SET``: one round trip, on a Cluster
        two. Users with 64, 128, 256, … members in their index take a few more.
        """
        nonce = make_nonce().to_bytes(_NONCE_SIZE, "big")
        name = _encode_key(key)
        listed = 0.0
        if record.user is not None and self._is_listed(record):
            listed = _until(record.touched_at, record.expires_at)
        lives = self._lives(record.expires_at)
        command: tuple[t.Any, ...] = (
            "SET",
            name,
            encode_record(record) + _TRAILER.pack(listed, nonce),
            "PX",
            lives,
            "NX",
        )
        try:
            if not lives:
                is_taken = self._server.connect().execute_command("EXISTS", name)
                return not is_taken
            if record.user is None or not listed:
                is_created = self._server.connect().execute_command(*command)
            else:
                is_created = self._create_and_list(name, record.user, listed, command)
            if is_created:
                return True
            # Very rare: keys are random. It may be that the answer to a first attempt
            # was lost, and that the driver has made a second one.
            stored = self._server.connect().execute_command(
                "GETRANGE", name, -_NONCE_SIZE, -1
            )
            return bool(stored == nonce)
        except self._server.errors as error:
            if has_code(error, "WRONGTYPE"):
                return False
            raise self._server.failure("create", error) from error

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if it has the expected version. One ``EVALSHA``.

        Three, if the index of its user does not list it yet for so long.
        """
        version = expected + 1
        if record.version != version:
            record = dataclasses.replace(record, version=version)
        nonce = make_nonce().to_bytes(_NONCE_SIZE, "big")
        now = self._clock()
        lives = self._lives(record.expires_at)
        is_listed = bool(lives) and self._is_listed(record)
        listed = _until(record.touched_at, record.expires_at) if is_listed else 0.0
        args = (
            repr(now),
            encode_version(expected),
            encode_record(record) + _TRAILER.pack(listed, nonce) if lives else b"",
            lives or b"",
        )
        name = _encode_key(key)
        result = self._run("replace", _REPLACE, name, *args, "1" if is_listed else "")
        if result == _NOT_LISTED and record.user is not None:
            self._list("replace", name, encode_user(record.user), listed)
            result = self._run("replace", _REPLACE, name, *args, "")
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
        result = self._run("delete", _DELETE, _encode_key(key), repr(self._clock()))
        if result == -1:
            raise RecordError("The record has a newer format.", "newer")
        return bool(result)

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Move the times in the value and the key's expiry. One ``EVALSHA``.

        Three, if the index of its user does not list it yet for so long; one more, if
        it lives for longer already.
        """
        name = _encode_key(key)
        user = listed = b""
        while True:
            result = self._run(
                "touch",
                _TOUCH,
                name,
                repr(self._clock()),
                encode_times(touched_at, expires_at),
                self._lives(expires_at) or b"",
                listed,
                user,
            )
            # Each of these more than once only if another request is in between.
            if isinstance(result, list):
                (expires_at,) = _LISTED.unpack(t.cast("list[bytes]", result)[0])
                user = listed = b""
            elif isinstance(result, bytes):
                user, until = result, _until(touched_at, expires_at)
                self._list("touch", name, user, until)
                listed = _LISTED.pack(until)
            else:
                return bool(result)

    def load_many(self, keys: t.Sequence[str]) -> dict[str, Record]:
        """Load several records, a hundred in one round trip to each node."""
        names = {_encode_key(key): key for key in keys}
        found: dict[str, Record] = {}
        try:
            for name, value in self._server.ask_many(list(names), "GET"):
                record = self._read_listable(value)
                if record is not None:
                    found[names[name]] = record
        except self._server.errors as error:
            raise self._server.failure("load_many", error) from error
        return found

    def keys_of_user(self, user: str) -> list[str]:
        """Give the keys of the user's live records: ``ZRANGE``, then ``GETRANGE`` each.

        Those in pipelines of a hundred. Members that are gone are marked, and after a
        minute removed, by one more ``EVALSHA``; if that fails, the next call does it.
        """
        encoded = encode_user(user)
        if len(encoded) >= NO_USER:
            return []  # no record can have such a user
        try:
            return self._find_listed(encoded)
        except self._server.errors as error:
            raise self._server.failure("keys_of_user", error) from error

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records with ``SCAN``; what cannot be read is left out.

        Sees every record that is there from beginning to end; one that comes or goes
        meanwhile may be seen or not.
        """
        for name, value in self._scan("iterate", "GET"):
            record = self._read_listable(value)
            try:
                key = _decode_key(name)
            except UnicodeDecodeError:
                continue
            if record is not None:
                yield key, record

    def count(self) -> int:
        """Give the number of live records; reads their headers only."""
        number = 0
        for _, header in self._scan("count", "GETRANGE", 0, HEADER_SIZE - 1):
            number += self._is_live(header) is True
        return number

    def server_version(self) -> str:
        """Give the name and the version of the server, for people. One ``INFO``."""
        try:
            info: dict[str, t.Any] = self._server.get_nodes()[0].info("server")
        except self._server.errors as error:
            raise self._server.failure("server_version", error) from error
        # Valkey says that it is a Redis too, of the version that it is like.
        name = str(info.get("server_name", "redis"))
        return f"{name.title()} {info[f'{name}_version']}"

    def close(self) -> None:
        """Close the client, if :meth:`from_url` made it. The next use makes another."""
        self._server.close()

    def _lives(self, expires_at: float) -> int:
        """Give how many milliseconds are left until a moment; 0 if it has passed."""
        left = (expires_at - self._clock()) * 1000
        # One more than that: the server counts from the last full millisecond.
        if left <= 0:
            return 0
        return math.ceil(min(left, _LONGEST_LIFE - 1)) + 1

    # -- the index of a user ---------------------------------------------------

    def _is_listed(self, record: Record) -> bool:
        return (
            record.user is not None
            and not record.is_tombstone
            and record.expires_at > self._clock()
        )

    def _index_of(self, user: bytes) -> bytes:
        # The user's name has no colon, and no key of a record ends like that; so it is
        # no other application's key either, whatever the prefixes are.
        encoded = _ESCAPED.sub(lambda match: b"%%%02x" % match[0][0], user)
        return b"%buser:%b:sessions" % (_encode_key(self._prefix), encoded)

    def _index_args(self, name: bytes, listed: float) -> tuple[t.Any, ...]:
        # A second more than needed, for the way between here and the server.
        lives = min(self._lives(listed) + 1_000, _LONGEST_LIFE)
        return repr(self._clock()), repr(listed), lives, self._member_of(name)

    def _member_of(self, name: bytes) -> bytes:
        # Without the prefix: a sorted set with a member of more than 64 bytes
        # (zset-max-listpack-value) takes several times the memory.
        prefix = _encode_key(self._prefix)
        handle = name[len(prefix) :]
        if name.startswith(prefix) and _HANDLE.fullmatch(handle):
            return handle
        return _WHOLE_KEY + name

    def _name_of(self, member: bytes) -> bytes:
        if _HANDLE.fullmatch(member):
            return _encode_key(self._prefix) + member
        return member.removeprefix(_WHOLE_KEY)

    def _create_and_list(
        self, name: bytes, user: str, listed: float, command: tuple[t.Any, ...]
    ) -> bool:
        index, args = self._index_of(encode_user(user)), self._index_args(name, listed)
        client = self._server.connect()
        answers: list[t.Any] = []
        if not is_cluster(client):
            # The script itself and not its digest: the second command is executed also
            # if the server does not know the digest.
            listing = ("EVAL", _INDEX, 1, index, *args)
            try:
                answers = self._server.ask_together(listing, command)
            except self._server.errors as error:
                if not was_cut_off(error):
                    raise
        if not answers or "ReadOnlyError" in names_of(answers[0]):
            # Drivers try these once more, on a new connection, which may lead to
            # another server.
            number = self._run("create", _INDEX, index, *args)
            answers = [number, client.execute_command(*command)]
        number, is_created = answers
        if isinstance(number, Exception):
            if is_created and not isinstance(is_created, Exception):
                # Nobody would find it, and its id is told to nobody.
                client.execute_command("UNLINK", name)
            raise self._server.failure("create", number) from number
        if isinstance(is_created, Exception):
            raise is_created
        self._limit_index(encode_user(user), number)
        return bool(is_created)

    def _list(self, operation: str, name: bytes, user: bytes, listed: float) -> None:
        """Have the index of a user list a key until the moment, or for longer."""
        index = self._index_of(user)
        number = self._run(operation, _INDEX, index, *self._index_args(name, listed))
        self._limit_index(user, number)

    def _limit_index(self, user: bytes, number: int) -> None:
        # Somebody who logs in and out all day, and whose sessions nobody lists. At
        # powers of two, so that it costs little also if all of them are live.
        if number >= _SMALL_INDEX and number & (number - 1) == 0:
            with contextlib.suppress(*self._server.errors):
                self._find_listed(user)

    def _find_listed(self, user: bytes) -> list[str]:
        index = self._index_of(user)
        pairs: t.Iterable[t.Any] = self._server.connect().zrange(
            index, 0, -1, withscores=True
        )
        scores: dict[bytes, float] = {
            self._name_of(member): float(score) for member, score in pairs
        }
        size = len(user).to_bytes(2, "big")
        now = self._clock()
        keys: list[str] = []
        repairs: list[t.Any] = []
        for name, start in self._server.ask_many(
            list(scores), "GETRANGE", 0, HEADER_SIZE + len(user) - 1
        ):
            is_live = self._is_live(start)
            if is_live and (
                start[USER_LENGTH_SLICE] != size or start[HEADER_SIZE:] != user
            ):
                is_live = False
            if is_live is not False:
                with contextlib.suppress(UnicodeDecodeError):
                    keys.append(_decode_key(name))
            else:
                score = scores[name]
                if score >= 0:
                    is_due = score < now - _IN_FLIGHT
                    new_score = b"" if is_due else repr(-now)
                elif -score <= now - _IN_FLIGHT:
                    new_score = b""
                else:
                    continue
                repairs += self._member_of(name), repr(score), new_score
        with contextlib.suppress(*self._server.errors):
            for start_at in range(0, len(repairs), 3 * _REPAIRS_AT_ONCE):
                self._eval(
                    _REPAIR, index, *repairs[start_at : start_at + 3 * _REPAIRS_AT_ONCE]
                )
        return keys

    def _is_live(self, start: bytes | None) -> bool | None:
        """Say whether a live record begins so; ``None`` if it cannot be read."""
        if not start:
            return None if start is None else False
        try:
            _, expires_at = decode_times(start)
        except RecordError:
            return None
        is_tombstone = start[FLAGS_OFFSET] & TOMBSTONE_FLAG
        return not is_tombstone and expires_at > self._clock()

    def _read_listable(self, value: bytes | None) -> Record | None:
        """Give a live record; ``None`` for a tombstone and for what cannot be read."""
        try:
            record = None if value is None else _decode(value)
        except RecordError:
            return None
        if record is None or record.is_tombstone or record.expires_at <= self._clock():
            return None
        return record

    # -- talking to the server -------------------------------------------------

    def _run(self, operation: str, script: str, name: bytes, *args: t.Any) -> t.Any:
        try:
            return self._eval(script, name, *args)
        except self._server.errors as error:
            raise self._server.failure(operation, error) from error

    def _eval(self, script: str, name: bytes, *args: t.Any) -> t.Any:
        client = self._server.connect()
        try:
            return client.execute_command("EVALSHA", _digest(script), 1, name, *args)
        except self._server.errors as error:
            if "NoScriptError" not in names_of(error):
                raise
            # A new server, a restarted one, or somebody flushed its scripts.
            return client.execute_command("EVAL", script, 1, name, *args)

    def _scan(
        self, operation: str, *command: t.Any
    ) -> t.Iterator[tuple[bytes, bytes | None]]:
        """Give the keys of this application, with what the command says of each."""
        pattern = _GLOB.sub(rb"\\\g<0>", _encode_key(self._prefix))
        # So long and no longer: another application's prefix may begin with this one.
        pattern += b"*" if self.key_prefix is None else b"?" * 64
        # SCAN may give a key twice, and so may two nodes while a slot moves. Hashes
        # of the keys take less memory than the keys.
        seen: set[int] = set()
        try:
            for node in self._server.get_nodes():
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
                    yield from self._server.ask_node(node, names, *command)
        except self._server.errors as error:
            raise self._server.failure(operation, error) from error


def _foreign() -> RecordError:
    return RecordError("There is something else than a record.", "damaged")


# -- values --------------------------------------------------------------------

# What a member is that stands for a key of the library's, and what one begins with that
# stands for any other key.
_HANDLE = re.compile(rb"[0-9a-f]{64}")
_WHOLE_KEY = b"="

_ESCAPED = re.compile(rb"[^A-Za-z0-9_.@+-]")
_GLOB = re.compile(rb"[\\*?\[\]]")


def _encode_key(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _decode_key(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def _decode(value: bytes) -> Record:
    return decode_record(value[: -_TRAILER.size])


def _until(touched_at: float, expires_at: float) -> float:
    """Give until when an index is to list a record with these times.

    For half a lifetime longer than it lives, so that not every touch has to write to
    the index.
    """
    return expires_at + max(0.0, expires_at - touched_at) / 2


@functools.cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
