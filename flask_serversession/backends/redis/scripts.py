"""The scripts that run in the server, in plain Lua.

Each works on ``KEYS[1]`` alone, so it runs on a Cluster, and in one step, so nothing
comes in between. Where there is one server, two of them write to an index besides.
``ARGV[1]`` is the current time, because the server's clock may be another one; for the
same reason expiry is always given as a duration. Not every server has Lua's ``bit`` and
``struct``, so neither is used. No script writes anything before it deletes: a full
server refuses the rest of a script after a write that takes memory, but never a
deletion.
"""

from __future__ import annotations

import functools
import hashlib
import typing as t

from ...record import FLAGS_OFFSET
from ...record import FORMAT
from ...record import HEADER_SIZE
from ...record import MAGIC
from ...record import NO_USER
from ...record import TIMES_SLICE
from ...record import TOMBSTONE_FLAG
from ...record import USER_LENGTH_SLICE
from ...record import VERSION_SLICE
from .values import NONCE_SIZE
from .values import TRAILER

#: One of :data:`REPLACE`'s answers. ``Any``: answers of any type are compared with it.
NOT_LISTED: t.Any = -2
#: A record that an index names but that does not exist may be one that is just being
#: created; after this many seconds it is not.
IN_FLIGHT = 60.0


@functools.cache
def digest_of(script: str) -> str:
    """Return the digest by which the server knows a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


# How the scripts for a record begin. `header` is empty if there is nothing;
# `is_foreign` means that the key holds something other than a string; `is_known` that
# this version can read it, and only then `expires_at` and `is_tombstone` are valid.
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
  and string.byte(header, 1) == {MAGIC}
  and string.byte(header, 2) > 0 and string.byte(header, 2) <= {FORMAT}
local is_tombstone, expires_at = false, 0
if is_known then
  is_tombstone = string.byte(header, {FLAGS_OFFSET + 1}) % {2 * TOMBSTONE_FLAG}
    >= {TOMBSTONE_FLAG}
  expires_at = double(header, {TIMES_SLICE.start + 9})
end
local is_live = is_known and expires_at > tonumber(ARGV[1])
"""

# What the index of a user needs. Not a part of the prelude: most calls do without.
_GET_USER = f"""
  local size = short(header, {USER_LENGTH_SLICE.start + 1})
  local user = redis.call('GETRANGE', KEYS[1], {HEADER_SIZE}, {HEADER_SIZE - 1} + size)
  local listed = redis.call('GETRANGE', KEYS[1], -{TRAILER.size}, -{NONCE_SIZE + 1})
"""

# Lists a record in the index of its user, where one server has both: the index is read
# by nobody but who lists sessions, so a server that evicts throws it away first. Its
# name is UserIndex._index_of(), and what is done is what INDEX does.
_LIST = f"""
local function list(user, prefix, member, listed, lives)
  local name = string.gsub(user, '[^A-Za-z0-9_.@+-]', function(byte)
    return string.format('%%%02x', string.byte(byte))
  end)
  local index = prefix .. 'user:' .. name .. ':sessions'
  -- Changes nothing, and is refused by a server that is full. What comes after would
  -- not be: a script that has removed something may go on to write.
  redis.call('SETRANGE', KEYS[1], 0, '')
  redis.call('ZREMRANGEBYSCORE', index, 0, tonumber(ARGV[1]) - {IN_FLIGHT})
  local score = redis.call('ZSCORE', index, member)
  if not score or tonumber(score) < tonumber(listed) then
    redis.call('ZADD', index, listed, member)
  end
  if redis.call('PTTL', index) < tonumber(lives) then
    redis.call('PEXPIRE', index, lives)
  end
end
"""

# ARGV: now, expected version, new value, how long it lives in ms ('' if not at all),
# the moment until which an index has to list the new value already ('' for any), and
# what list() takes, if it is to be listed by the script. Returns 1 for done, 0
# for gone, -1 for something foreign, -2 for not listed, else the current value.
REPLACE = f"""{_PRELUDE}{_LIST}
if is_foreign then return -1 end
if header == '' or (is_known and not is_live) then return 0 end
if not is_known
  or string.sub(header, {VERSION_SLICE.start + 1}, {VERSION_SLICE.stop}) ~= ARGV[2] then
  return redis.call('GET', KEYS[1])
end
if ARGV[4] == '' then
  redis.call('UNLINK', KEYS[1])
elseif ARGV[5] == '' then
  if ARGV[6] then
    local size = short(ARGV[3], {USER_LENGTH_SLICE.start + 1})
    local user = string.sub(ARGV[3], {HEADER_SIZE + 1}, {HEADER_SIZE} + size)
    list(user, ARGV[6], ARGV[7], ARGV[8], ARGV[9])
  end
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
else
  {_GET_USER}
  local new_size = short(ARGV[3], {USER_LENGTH_SLICE.start + 1})
  if size ~= new_size
    or user ~= string.sub(ARGV[3], {HEADER_SIZE + 1}, {HEADER_SIZE} + size)
    or double(listed, 1) < tonumber(ARGV[5]) then
    return {NOT_LISTED}
  end
  -- It is there: no time passes within a script, and the life is never over.
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
  redis.call('SETRANGE', KEYS[1], #ARGV[3] - {TRAILER.size}, listed)
end
return 1
"""

# ARGV: now. Returns 1 for done, 0 for absent, -1 for a newer format.
DELETE = f"""{_PRELUDE}
if not is_known and #header > 1
  and string.byte(header, 1) == {MAGIC} and string.byte(header, 2) > {FORMAT} then
  return -1
end
if is_live and is_tombstone then return 0 end
local number = redis.call('UNLINK', KEYS[1])
if is_known and not is_live then return 0 end
return number
"""

# ARGV: now, the encoded times, how long it lives in ms ('' if not at all), until when
# the index lists it now, and of which user ('' if the index was not asked), until when
# it has to, and what list() takes, if it is to be listed by the script. Returns 1
# for done and 0 for absent. Returns the user, a string, if the index has to list the
# record for longer first; and a list with the encoded expiry if the record lives for
# longer already, because a script cannot compute the checksum.
TOUCH = f"""{_PRELUDE}{_LIST}
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
  if ARGV[7] then
    list(user, ARGV[7], ARGV[8], ARGV[9], ARGV[10])
    redis.call('SETRANGE', KEYS[1],
      redis.call('STRLEN', KEYS[1]) - {TRAILER.size}, ARGV[4])
  elseif double(listed, 1) < tonumber(ARGV[6]) then
    if ARGV[4] == '' or user ~= ARGV[5] then return user end
    redis.call('SETRANGE', KEYS[1],
      redis.call('STRLEN', KEYS[1]) - {TRAILER.size}, ARGV[4])
  end
end
redis.call('SETRANGE', KEYS[1], {TIMES_SLICE.start}, ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# The index of a user: a sorted set whose members are the handles of records. A member's
# score is until when it is listed, which is never before its record expires; so once
# it has passed the member can go (a minute later, for servers whose clocks differ). A
# negative score is a mark: at that moment the record did not exist. The set itself
# expires with the last of its members.
#
# The index is always written before the record: a process that dies in between leaves
# one member too many, never one too few.

# ARGV: now, until when, for how long in ms, the member. Returns the number of members.
INDEX = f"""
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, tonumber(ARGV[1]) - {IN_FLIGHT})
local score = redis.call('ZSCORE', KEYS[1], ARGV[4])
if not score or tonumber(score) < tonumber(ARGV[2]) then
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[4])
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return redis.call('ZCARD', KEYS[1])
"""

# ARGV: for each member whose record is gone its name, its score, and its new score (''
# to remove it). A member that was listed again in the meantime has another score.
REPAIR = """
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
