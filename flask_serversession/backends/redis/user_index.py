"""The index of a user: which records are theirs. scripts.py says how it is stored."""

from __future__ import annotations

import contextlib
import re
import typing as t

from ...hiding import forget_frames
from ...record import HEADER_SIZE
from ...record import USER_LENGTH_SLICE
from ...record import encode_user
from . import scripts
from . import values
from .server import Server
from .server import is_cluster
from .server import is_demoted
from .server import was_cut_off

# How many members one script repairs.
_REPAIRS_AT_ONCE = 1_000
# From this many members on, an index is searched for members that are gone whenever its
# size reaches a power of two.
_SMALL_INDEX = 64

# After how many seconds a record in use is listed again on a Cluster, where that takes
# round trips of its own: a little less than SESSION_TOUCH_INTERVAL.
_LISTED_AGAIN = 50.0

# The member for a key of the library's, and how the member for any other key begins.
_HANDLE = re.compile(rb"[0-9a-f]{64}")
_WHOLE_KEY = b"="

_ESCAPED = re.compile(rb"[^A-Za-z0-9_.@+-]")


def listed_until(touched_at: float, expires_at: float) -> float:
    """Return until when an index is to list a record with these times.

    Half a lifetime longer than it lives, so that not every touch writes to the index.
    """
    return expires_at + max(0.0, expires_at - touched_at) / 2


def least_listed(listed: float) -> float:
    """Return until when an index has to list a record, or be written again.

    A minute less than if it was listed now, since it may have been evicted.
    """
    return listed - _LISTED_AGAIN


class UserIndex:
    """The indexes of all users. Thread-safe.

    :param prefix: What the application's keys begin with.
    :param clock: Returns the current time in seconds since the epoch.
    """

    def __init__(
        self, server: Server, prefix: str, clock: t.Callable[[], float]
    ) -> None:
        self._server = server
        self._prefix = values.encode_key(prefix)
        self._clock = clock

    def create(
        self, name: bytes, user: str, listed: float, command: tuple[t.Any, ...]
    ) -> bool:
        """Create a record and list it. One round trip; two on a Cluster.

        :param command: The ``SET`` that creates it, and says whether it did.
        :raises BackendUnavailableError: if the index cannot be written; there is no
            record then.
        """
        encoded = encode_user(user)
        index, args = self._index_of(encoded), self._args(name, listed)
        client = self._server.connect()
        answers: list[t.Any] = []
        if not is_cluster(client):
            # The script itself, not its digest: the second command is executed even if
            # the server does not know the digest.
            listing = ("EVAL", scripts.INDEX, 1, index, *args)
            try:
                answers = self._server.ask_together(listing, command)
            except self._server.errors as error:
                if not was_cut_off(error):
                    raise
        if answers and is_demoted(answers[0]):
            self._server.leave_primary()
            answers = []
        if not answers:
            number = self._server.run("create", scripts.INDEX, index, *args)
            answers = [number, self._server.write(*command)]
        number, is_created = answers
        if isinstance(number, Exception):
            if is_created and not isinstance(is_created, Exception):
                # Unlisted, it would not be found. No visitor has its id yet.
                client.execute_command("UNLINK", name)
            raise self._server.failure("create", number) from forget_frames(number)
        if isinstance(is_created, Exception):
            raise is_created
        self._limit(encoded, number)
        return bool(is_created)

    def args_of(self, operation: str, name: bytes, listed: float) -> tuple[t.Any, ...]:
        """Return what a script needs to list a key itself; nothing on a Cluster.

        There the index is on another server, or in another slot.
        """
        with self._server.explaining(operation):
            if is_cluster(self._server.connect()):
                return ()
        _, until, lives, member = self._args(name, listed)
        return self._prefix, member, until, lives

    def add(self, operation: str, name: bytes, user: bytes, listed: float) -> None:
        """List a key until the moment, or for longer if it is already."""
        args = self._args(name, listed)
        number = self._server.run(operation, scripts.INDEX, self._index_of(user), *args)
        self._limit(user, number)

    def find(self, user: bytes) -> list[str]:
        """Return the keys of the user's live records, and of what cannot be read.

        Marks or removes the members of records that are gone.
        """
        index = self._index_of(user)
        keys: list[str] = []
        repairs: list[t.Any] = []
        seen: set[bytes] = set()
        is_moving = True
        # Again while sessions get other ids: the new one is listed before the old one
        # goes, so whoever finds the old one gone finds the new one here.
        while is_moving:
            scores = self._scores_of(index, seen)
            seen.update(scores)
            is_moving = False
            now = self._clock()
            for name, start in self._server.ask_many(
                list(scores), "GETRANGE", 0, HEADER_SIZE + len(user) - 1
            ):
                if _may_be_of(user, start, now):
                    with contextlib.suppress(UnicodeDecodeError):
                        keys.append(values.decode_key(name))
                    continue
                # A negative score says that it was gone before.
                is_moving = is_moving or scores[name] >= 0
                new_score = _new_score(scores[name], now)
                if new_score is not None:
                    repairs += self._member_of(name), repr(scores[name]), new_score
        with contextlib.suppress(*self._server.errors):
            for first in range(0, len(repairs), 3 * _REPAIRS_AT_ONCE):
                batch = repairs[first : first + 3 * _REPAIRS_AT_ONCE]
                self._server.evaluate(scripts.REPAIR, index, *batch)
        return keys

    def _scores_of(self, index: bytes, seen: t.Container[bytes]) -> dict[bytes, float]:
        """Return the names that an index lists, with their scores, but those seen."""
        pairs: t.Iterable[t.Any] = self._server.connect().zrange(
            index, 0, -1, withscores=True
        )
        scores = {self._name_of(member): float(score) for member, score in pairs}
        return {name: score for name, score in scores.items() if name not in seen}

    def _limit(self, user: bytes, number: int) -> None:
        # For somebody who logs in and out all day, and whose sessions nobody lists. At
        # powers of two, so that it costs little even if all of them are live.
        if number >= _SMALL_INDEX and number & (number - 1) == 0:
            with contextlib.suppress(*self._server.errors):
                self.find(user)

    def _index_of(self, user: bytes) -> bytes:
        # The escaped user has no colon, and no key of a record ends like this; so it
        # cannot be another application's key either, whatever the prefixes are.
        encoded = _ESCAPED.sub(lambda match: b"%%%02x" % match[0][0], user)
        return b"%buser:%b:sessions" % (self._prefix, encoded)

    def _args(self, name: bytes, listed: float) -> tuple[t.Any, ...]:
        now = self._clock()
        # A second more than needed, for the way to the server.
        lives = min(values.milliseconds_until(listed, now) + 1_000, values.LONGEST_LIFE)
        return repr(now), repr(listed), lives, self._member_of(name)

    def _member_of(self, name: bytes) -> bytes:
        # Without the prefix: a sorted set with a member of more than 64 bytes
        # (zset-max-listpack-value) takes several times the memory.
        handle = name[len(self._prefix) :]
        if name.startswith(self._prefix) and _HANDLE.fullmatch(handle):
            return handle
        return _WHOLE_KEY + name

    def _name_of(self, member: bytes) -> bytes:
        if _HANDLE.fullmatch(member):
            return self._prefix + member
        return member.removeprefix(_WHOLE_KEY)


def _may_be_of(user: bytes, start: bytes | None, now: float) -> bool:
    """Return whether a value that starts like this is a live record of the user.

    True for a value that cannot be read.
    """
    is_record = values.is_live(start, now)
    if not is_record or start is None:
        return is_record is None
    size = len(user).to_bytes(2, "big")
    return start[USER_LENGTH_SLICE] == size and start[HEADER_SIZE:] == user


def _new_score(score: float, now: float) -> str | bytes | None:
    """Return the new score of a member whose record is gone.

    :return: Empty if the member is to be removed; ``None`` if it stays as it is.
    """
    if score >= 0:
        return b"" if score < now - scripts.IN_FLIGHT else repr(-now)
    return b"" if -score <= now - scripts.IN_FLIGHT else None
