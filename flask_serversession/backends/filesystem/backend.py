"""The backend that keeps records in files."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import sys
import time
import typing as t

from ...errors import BackendUnavailableError
from ...errors import RecordError
from ...hiding import forget_frames
from ...record import FLAGS_OFFSET
from ...record import HEADER_SIZE
from ...record import TIMES_SLICE
from ...record import TOMBSTONE_FLAG
from ...record import Record
from ...record import decode_record
from ...record import decode_times
from ...record import decode_user
from ...record import encode_record
from ...record import encode_times
from ..base import Backend
from ..base import Capability
from ..base import Conflict
from ..base import Gone
from ..base import Replaced
from . import files
from .layout import Layout
from .locks import ShardLocks
from .pruning import Pruner
from .user_index import UserIndex

_P = t.ParamSpec("_P")
_T = t.TypeVar("_T")

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def _operation(
    method: t.Callable[t.Concatenate[FilesystemBackend, _P], _T],
) -> t.Callable[t.Concatenate[FilesystemBackend, _P], _T]:
    """Let an operation raise the library's error where the system raises its own."""

    @functools.wraps(method)
    def operation(
        backend: FilesystemBackend, /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        try:
            return method(backend, *args, **kwargs)
        except OSError as error:
            failure = _unavailable(backend, method.__name__, error)
            raise failure from forget_frames(error)

    return operation


def _remedy_of(error: OSError) -> str:
    # EPERM comes with words of our own, which say what is wrong.
    if error.errno != errno.EACCES or sys.platform == "win32":
        return ""
    user = files.name_of(os.geteuid())
    return f" Let the user {user}, who runs this, read and write there."


def _unavailable(
    backend: FilesystemBackend, operation: str, error: OSError
) -> BackendUnavailableError:
    path = backend._layout.path  # pyright: ignore[reportPrivateUsage] - of this module
    return BackendUnavailableError(
        f"The filesystem backend cannot {operation!r} in {path!r}:"
        f" {error.strerror or type(error).__name__}.{_remedy_of(error)}",
        backend=backend.name,
        operation=operation,
        refused=True,  # nobody waits for another machine
        full=error.errno in (errno.ENOSPC, errno.EDQUOT),
    )


class FilesystemBackend(Backend):
    """Keeps each record in a file of its own, below one folder.

    For the processes of one machine, threads and forks included, and for shared
    folders whose file system has working locks. Nothing is ever evicted.

    ``<path>/<shard>/<name>`` is where a record lies: the name is the key, its prefix
    percent-encoded, and the shard the first two of its 64 hexadecimal digits.
    The first :meth:`create` makes the folders, with mode 0700; files have mode
    0600, whatever the umask is. What root creates is given to the owner of the parent
    folder, so that commands may be run as root. Symbolic links below
    ``path`` are never followed.

    *Writing.* A record is written to a temporary file in the same folder, which
    then takes the place of the old one. So a process that is killed, or a disk that
    is full, leaves the old record or the new one. There is no ``fsync``, which
    would cost milliseconds for each request: when the machine itself crashes, the
    last seconds can be lost, and a file that the file system had not yet filled is
    recognized by its checksum.

    *Locking.* Each shard has a lock file for everything that writes, across threads
    and processes; :meth:`load` takes no lock. The system releases the lock of a
    process that dies.

    *Users.* An empty file, ``<path>/users/<shard>/<hash>/<name>``, says that a record
    belongs to a user; the hash is the SHA-256 of prefix and user. It is made before the
    record and removed after it, under the record's lock. Should a process be killed in
    between, an empty file is left over until :meth:`keys_of_user` meets it;
    :meth:`prune` does not look for those.

    *Expiry.* A file's modification time is the moment its record expires, so that
    :meth:`prune` needs no more than ``stat`` to pass over live records. It is only a
    hint: the times inside the file decide.

    A damaged file is moved aside by the :meth:`load` that finds it, to a name that
    ends in ``.damaged``, where it stays for a week.

    :param path: The folder. It, and what is missing above it, is created when needed.
    :param prefix: The prefix of the application's keys. Only its records are listed,
        counted and pruned, so that several applications can share a folder. ``None``
        for all records.
    :param lock_timeout: How long an operation waits for another one in the same
        shard, in seconds, before it raises :exc:`.BackendUnavailableError`.
    :param group_access: Share the files with the group of the folder: folders have
        mode 2770 then, so that what is made in them gets their group, and files 0660.
        All members of the group are trusted.
    :param clock: Gives the current time in seconds since the epoch.
    :raises ConfigurationError: if the folder, or one in it, belongs to somebody else
        than this process's user or root, if its group or others may write to it, or if
        it is a symbolic link; or if anybody may put another one in its place. Not on
        Windows.
    """

    name = "filesystem"
    capabilities = (
        Capability.COMPARE_AND_SWAP
        | Capability.USER_INDEX
        | Capability.ITERATE
        | Capability.COUNT
        | Capability.PRUNE
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prefix: str | None = None,
        lock_timeout: float = 5.0,
        group_access: bool = False,
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        self.key_prefix = prefix
        access = files.SHARED if group_access else files.PRIVATE
        self._access = access
        self._layout = Layout(path, prefix, access)
        self._layout.check()
        self._locks = ShardLocks(lock_timeout, access)
        self._users = UserIndex(self._layout.path, prefix or "", access)
        self._pruner = Pruner(self._layout, self._locks, self._users, clock)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._layout.path!r}>"

    @_operation
    def load(self, key: str) -> Record | None:
        """Return the record, or ``None``. Takes no lock; moves a damaged file aside."""
        folder, file = self._layout.locate(key)
        if not files.is_folder(folder, self._access):
            return None
        try:
            buffer = files.read(file)
            record = None if buffer is None else decode_record(buffer)
        except RecordError as error:
            if error.reason != "damaged":
                raise
            record = self._load_again(folder, file, error)
        if record is None or record.expires_at <= self._clock():
            return None
        return record

    @_operation
    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless the key is taken by anything but an expired one.

        Creates the folders if there are none yet.
        """
        folder, file = self._layout.locate(key)
        encoded = encode_record(record)
        while True:
            with self._locks.hold(folder) as exists:
                if exists:
                    if not self._is_free(file):
                        return False
                    self._users.add(self._owner_of(record), file)
                    files.replace_file(file, encoded, record.expires_at, self._access)
                    return True
            # A second turn only if somebody removes the folder right here.
            files.make_folder(folder, self._access)

    @_operation
    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if its stored version is the expected one."""
        version = expected + 1
        if record.version != version:
            record = dataclasses.replace(record, version=version)
        folder, file = self._layout.locate(key)
        # Outside of the lock: it takes a while for a large session.
        encoded = encode_record(record)
        with self._locks.hold(folder) as exists:
            buffer = files.read(file) if exists else None
            if buffer is None:
                return Gone()
            current = decode_record(buffer)
            now = self._clock()
            if current.expires_at <= now:
                return Gone()
            if current.version != expected:
                return Conflict(current)
            before, after = self._owner_of(current), self._owner_of(record)
            # Also if it has one, which a cleaner of temporary files may have removed.
            self._users.add(after, file)
            if record.expires_at <= now:
                files.unlink(file)
            else:
                files.replace_file(file, encoded, record.expires_at, self._access)
            if after != before:
                self._users.remove(before, file)
            return Replaced(version)

    @_operation
    def delete(self, key: str) -> bool:
        """Remove the record, also a damaged one; a tombstone stays."""
        folder, file = self._layout.locate(key)
        with self._locks.hold(folder) as exists:
            if not exists:
                return False
            is_expired = False
            owner = None
            try:
                start = files.read_start(file)
                if start is None:
                    return False
                _, expires_at = decode_times(start)
                is_expired = expires_at <= self._clock()
                if not is_expired and start[FLAGS_OFFSET] & TOMBSTONE_FLAG:
                    return False
                owner = decode_user(start)
            except RecordError as error:
                if error.reason == "newer":
                    raise
            if not files.is_folder(file, self._access, strict=False):
                files.unlink(file)
            else:
                files.set_aside(file, self._clock())
            self._users.remove(owner, file)
            return not is_expired

    @_operation
    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Rewrite the two times inside the file; the data is not even read."""
        folder, file = self._layout.locate(key)
        try:
            with self._locks.hold(folder) as exists:
                descriptor = files.open_file(file, os.O_RDWR)[0] if exists else None
                if descriptor is None:
                    return False
                try:
                    header = os.read(descriptor, files.START_SIZE)
                    _, lives_until = decode_times(header)
                    now = self._clock()
                    if lives_until <= now or header[FLAGS_OFFSET] & TOMBSTONE_FLAG:
                        return False
                    if expires_at > now:
                        expires_at = max(expires_at, lives_until)
                        self._users.add(decode_user(header), file)
                    files.write_at(
                        descriptor,
                        encode_times(touched_at, expires_at),
                        TIMES_SLICE.start,
                    )
                    # Last: writing sets the modification time to the present.
                    files.renew_mtime(descriptor, file, expires_at, self._access)
                finally:
                    os.close(descriptor)
                return True
        except RecordError:
            return False

    @_operation
    def keys_of_user(self, user: str) -> list[str]:
        """Return the keys of a user's live records; reads their beginnings only."""
        keys: list[str] = []
        leftovers: list[str] = []
        seen: set[str] = set()
        is_moving = True
        # Again while sessions get other ids: the new one has its marker before the old
        # one goes.
        while is_moving:
            names = {*self._users.find(user)} - seen
            seen |= names
            is_moving = False
            for name in names:
                key = self._layout.to_key(name)
                if key is None:
                    continue
                folder, file = self._layout.locate(key)
                try:
                    is_there = files.is_folder(folder, self._access)
                    start = files.read_start(file) if is_there else None
                    if start is None or not _is_of(start, user):
                        leftovers.append(key)
                        is_moving = True
                    elif decode_times(start)[1] > self._clock():
                        keys.append(key)
                except RecordError:
                    keys.append(key)
        # If another one holds a lock for too long, the next call does it.
        with contextlib.suppress(OSError):
            for key in leftovers:
                with contextlib.suppress(RecordError):
                    self._remove_marker(key, user)
        return keys

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records, a shard at a time.

        What cannot be read is left out.
        """
        return (item for item in self.iterate_all() if not item[1].is_tombstone)

    def iterate_all(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records and tombstones likewise."""
        try:
            for key, file in self._layout.find_records():
                try:
                    buffer = files.read(file)
                    record = None if buffer is None else decode_record(buffer)
                except RecordError:
                    continue
                if record is not None and record.expires_at > self._clock():
                    yield key, record
        except OSError as error:
            raise _unavailable(self, "iterate", error) from forget_frames(error)

    @_operation
    def count(self) -> int:
        """Return the number of live records; reads their headers only."""
        number = 0
        for _, file in self._layout.find_records():
            try:
                header = files.read(file, HEADER_SIZE)
                if header and decode_times(header)[1] > self._clock():
                    number += not header[FLAGS_OFFSET] & TOMBSTONE_FLAG
            except RecordError:
                continue
        return number

    @_operation
    def prune(self, limit: int) -> int:
        """Delete at most ``limit`` expired records, and what killed processes left.

        Goes through all files until it has deleted that many. The next call continues
        where it stopped.
        """
        return self._pruner.prune(limit)

    @_operation
    def sweep(self, limit: int) -> int:
        """Delete at most ``limit`` expired records, but look only for a while.

        It looks at no more than about 50,000 files, or 100 times ``limit`` if that is
        more. The next call continues where this one stopped.
        """
        return self._pruner.sweep(limit)

    def _load_again(self, folder: str, file: str, damage: RecordError) -> Record | None:
        """Read a damaged file once more, under the lock, and move it aside.

        The first reading took no lock, so it may have met a touch halfway.
        """
        try:
            with self._locks.hold(folder) as exists:
                try:
                    buffer = files.read(file) if exists else None
                    return None if buffer is None else decode_record(buffer)
                except RecordError as error:
                    if error.reason == "damaged":
                        files.set_aside(file, self._clock())
                    raise
        except OSError as error:
            # Nothing can be locked or moved here, nor can anything be touched.
            if error.errno in _READ_ONLY:
                raise damage from None
            raise

    def _is_free(self, file: str) -> bool:
        try:
            header = files.read(file, HEADER_SIZE)
            return header is None or decode_times(header)[1] <= self._clock()
        except RecordError:
            return False

    def _owner_of(self, record: Record) -> str | None:
        """Return the user who is to have a marker for a record."""
        if record.is_tombstone or record.expires_at <= self._clock():
            return None
        return record.user

    def _remove_marker(self, key: str, user: str) -> None:
        """Remove a stale marker, unless its record is being created right now."""
        folder, file = self._layout.locate(key)
        with self._locks.hold(folder) as exists:
            if exists:
                start = files.read_start(file)
                if start is None or not _is_of(start, user):
                    self._users.remove(user, file)


def _is_of(start: bytes, user: str) -> bool:
    """Whether a record is a user's, or was until it expired, by its beginning."""
    return not start[FLAGS_OFFSET] & TOMBSTONE_FLAG and decode_user(start) == user
