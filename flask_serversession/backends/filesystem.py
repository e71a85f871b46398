"""Records in files, one a session, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
import re
import stat
import sys
import time
import typing as t
import weakref

from filelock import lock_descriptor
from filelock import unlock_descriptor

from ..errors import BackendUnavailableError
from ..errors import ConfigurationError
from ..errors import RecordError
from ..nonce import make_nonce
from ..record import FLAGS_OFFSET
from ..record import HEADER_SIZE
from ..record import TIMES_SLICE
from ..record import TOMBSTONE_FLAG
from ..record import Record
from ..record import decode_record
from ..record import decode_times
from ..record import decode_user
from ..record import encode_record
from ..record import encode_times
from ..record import is_key
from ..record import size_with_user
from ._files import create_file
from ._files import decode_name
from ._files import encode_name
from ._files import hash_text
from ._files import insist
from ._files import is_folder
from ._files import make_folder
from ._files import open_file
from ._files import open_lock
from ._files import read
from ._files import set_mtime
from ._files import unlink
from ._files import write_at
from ._locks import ThreadLocks
from ._user_markers import UserMarkers
from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_TEMPORARY_PREFIX = ".tmp-"
_DAMAGED_SUFFIX = ".damaged"
_HASHED = "%%"
_SHARD = re.compile(r"[0-9a-f]{2}\Z")
_SHARD_COUNT = 256
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
# Every file system in use takes names of 255 bytes. What a damaged file is called
# must fit too.
_LONGEST_NAME = 255 - len(".12345678") - len(_DAMAGED_SUFFIX)

# Enough for a header and for any user that the library allows.
_START_SIZE = 2_048

# How long what nobody needs any more is kept, in seconds. No write takes an hour;
# a damaged file is for the operator to look at.
_TEMPORARY_AGE = 3_600.0
_DAMAGED_AGE = 7 * 86_400.0
# sweep() does not look at more files than this in one call, or than so many for
# each record that it may delete. At about 2 µs a file that is 0.1 s.
_LEAST_LOOKS = 50_000
_LOOKS_PER_DELETION = 100
# Both let go of a shard's lock after so many seconds. prune() then waits for as long as
# it held it, since requests that want the lock ask every few milliseconds; not so
# sweep(), for which a visitor waits.
_LONGEST_HOLD = 0.002

_FIRST_DELAY = 0.0002
_LONGEST_DELAY = 0.005


class FilesystemBackend(Backend):
    """Keeps each record in a file of its own, below one folder.

    For the processes of one machine, threads and forks included, and for shared
    folders whose file system has working locks. Nothing is ever evicted.

    ``<path>/<shard>/<name>`` is where a record lies: the name is the key,
    percent-encoded, and the shard the first two hex digits of the SHA-256 in it.
    The first :meth:`create` makes the folders, with mode 0700; files have mode
    0600, whatever the umask is. Symbolic links below ``path`` are never followed.

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
    :param prefix: That of the application whose records are listed, counted and
        pruned, so that several can share a folder: their keys are this and 64
        hexadecimal digits. ``None`` for all.
    :param lock_timeout: How long an operation waits for another one in the same
        shard, in seconds, before it raises :exc:`.BackendUnavailableError`.
    :param clock: Gives the current time in seconds since the epoch.
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
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        self._path: str = os.path.abspath(os.fspath(path))
        self.key_prefix = prefix
        self._prefix = prefix or ""
        self._encoded_prefix = encode_name(self._prefix)
        if len(self._encoded_prefix) + 64 > _LONGEST_NAME:
            raise ConfigurationError(
                f"'SESSION_KEY_PREFIX' is too long for a file name: it takes"
                f" {len(self._encoded_prefix)} bytes there; the 'filesystem' backend"
                f" allows {_LONGEST_NAME - 64}.",
                "SESSION_KEY_PREFIX",
            )
        self._markers = UserMarkers(self._path, self._prefix)
        self._lock_timeout = lock_timeout
        self._clock = clock
        # Where the next prune() begins; different in each process, so that they do
        # not all clean the same corner.
        self._next_shard = random.randrange(_SHARD_COUNT)  # noqa: S311
        self._thread_locks = ThreadLocks()
        #: Open lock files of this process.
        self._held: set[int] = set()
        _backends.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path!r}>"

    def load(self, key: str) -> Record | None:
        """Give the record, or ``None``. Takes no lock; moves a damaged file aside."""
        shard, path = self._locate(key)
        try:
            if not is_folder(shard):
                return None
            try:
                buffer = read(path)
                record = None if buffer is None else decode_record(buffer)
            except RecordError as error:
                if error.reason != "damaged":
                    raise
                record = self._load_again(shard, path, error)
        except OSError as error:
            raise self._unavailable("load", error) from error
        if record is None or record.expires_at <= self._clock():
            return None
        return record

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless the key is taken by anything but an expired one.

        Creates the folders if there are none yet.
        """
        shard, path = self._locate(key)
        encoded = encode_record(record)
        try:
            while True:
                with self._locked(shard, "create") as exists:
                    if exists:
                        if not self._is_free(path):
                            return False
                        self._mark(path, self._owner_of(record))
                        self._write(shard, path, encoded, record.expires_at)
                        return True
                # A second turn only if somebody removes the folder right here.
                make_folder(shard)
        except OSError as error:
            raise self._unavailable("create", error) from error

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if its stored version is the expected one."""
        version = expected + 1
        if record.version != version:
            record = dataclasses.replace(record, version=version)
        shard, path = self._locate(key)
        # Outside of the lock: it takes a while for a large session.
        encoded = encode_record(record)
        try:
            with self._locked(shard, "replace") as exists:
                buffer = read(path) if exists else None
                if buffer is None:
                    return Gone()
                current = decode_record(buffer)
                now = self._clock()
                if current.expires_at <= now:
                    return Gone()
                if current.version != expected:
                    return Conflict(current)
                before, after = self._owner_of(current), self._owner_of(record)
                if after != before:
                    self._mark(path, after)
                if record.expires_at <= now:
                    unlink(path)
                else:
                    self._write(shard, path, encoded, record.expires_at)
                if after != before:
                    self._unmark(path, before)
                return Replaced(version)
        except OSError as error:
            raise self._unavailable("replace", error) from error

    def delete(self, key: str) -> bool:
        """Remove the record, also a damaged one; a tombstone stays."""
        shard, path = self._locate(key)
        try:
            with self._locked(shard, "delete") as exists:
                if not exists:
                    return False
                is_expired = False
                owner = None
                try:
                    start = _read_start(path)
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
                if not is_folder(path, strict=False):
                    unlink(path)
                else:
                    self._set_aside(path)
                self._unmark(path, owner)
                return not is_expired
        except OSError as error:
            raise self._unavailable("delete", error) from error

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Rewrite the two times inside the file; the data is not even read."""
        shard, path = self._locate(key)
        try:
            with self._locked(shard, "touch") as exists:
                descriptor = open_file(path, os.O_RDWR)[0] if exists else None
                if descriptor is None:
                    return False
                try:
                    header = os.read(descriptor, HEADER_SIZE)
                    _, lives_until = decode_times(header)
                    now = self._clock()
                    if lives_until <= now or header[FLAGS_OFFSET] & TOMBSTONE_FLAG:
                        return False
                    if expires_at > now:
                        expires_at = max(expires_at, lives_until)
                    write_at(
                        descriptor,
                        encode_times(touched_at, expires_at),
                        TIMES_SLICE.start,
                    )
                    # Last: writing sets the modification time to the present.
                    set_mtime(descriptor, path, expires_at)
                finally:
                    os.close(descriptor)
                return True
        except RecordError:
            return False
        except OSError as error:
            raise self._unavailable("touch", error) from error

    def keys_of_user(self, user: str) -> list[str]:
        """Give the keys of a user's live records; reads their beginnings only.

        A record whose key was too long for a file name is left out, as by
        :meth:`iterate`.
        """
        keys: list[str] = []
        leftovers: list[str] = []
        try:
            for name in self._markers.find(user):
                key = self._to_key(name)
                if key is None:
                    continue
                shard, path = self._locate(key)
                try:
                    start = _read_start(path) if is_folder(shard) else None
                    if start is None or not _is_of(start, user):
                        leftovers.append(key)
                    elif decode_times(start)[1] > self._clock():
                        keys.append(key)
                except RecordError:
                    keys.append(key)
        except OSError as error:
            raise self._unavailable("keys_of_user", error) from error
        # If another one holds a lock for too long, the next call does it.
        with contextlib.suppress(OSError, BackendUnavailableError):
            for key in leftovers:
                with contextlib.suppress(RecordError):
                    self._unmark_if_gone(key, user)
        return keys

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records, a shard at a time.

        What cannot be read is left out. So is a record whose key was too long for a
        file name, since the file has only its hash; no key of the library's is.
        """
        for key, path in self._find_records("iterate"):
            try:
                buffer = read(path)
                record = None if buffer is None else decode_record(buffer)
            except RecordError:
                continue
            except OSError as error:
                raise self._unavailable("iterate", error) from error
            if (
                record is not None
                and not record.is_tombstone
                and record.expires_at > self._clock()
            ):
                yield key, record

    def count(self) -> int:
        """Give the number of live records; reads their headers only."""
        number = 0
        for _, path in self._find_records("count"):
            try:
                header = read(path, HEADER_SIZE)
                if header is None or header[FLAGS_OFFSET] & TOMBSTONE_FLAG:
                    continue
                number += decode_times(header)[1] > self._clock()
            except (RecordError, IndexError):
                continue
            except OSError as error:
                raise self._unavailable("count", error) from error
        return number

    def prune(self, limit: int) -> int:
        """Delete at most ``limit`` expired records, and what killed processes left.

        Goes through all files, or until it has deleted so many; the next call goes on
        where it stopped.
        """
        return self._prune("prune", limit, looks=None)

    def sweep(self, limit: int) -> int:
        """Delete at most ``limit`` expired records, but look only for a while.

        At no more than about 50,000 files, or 100 times ``limit`` if that is more. The
        next call goes on where this one stopped.
        """
        looks = max(_LEAST_LOOKS, _LOOKS_PER_DELETION * limit)
        return self._prune("sweep", limit, looks)

    # -- where things are ------------------------------------------------------

    def _locate(self, key: str) -> tuple[str, str]:
        """Give the shard's folder and the file of a key."""
        digest = key[-64:]
        if _DIGEST.match(digest) is None:
            shard = hash_text(key)[:2]
            name = encode_name(key)
        else:
            shard = digest[:2]
            if len(key) == len(self._prefix) + 64 and key.startswith(self._prefix):
                name = self._encoded_prefix + digest
            else:
                name = encode_name(key)
        if len(name) > _LONGEST_NAME:
            # No encoded key has a bare percent sign in front of another one.
            name = f"{_HASHED}{hash_text(key)}"
        folder = f"{self._path}{os.sep}{shard}"
        return folder, f"{folder}{os.sep}{name}"

    def _list_shards(self) -> list[str]:
        try:
            with os.scandir(self._path) as entries:
                return [
                    entry.name
                    for entry in entries
                    if _SHARD.match(entry.name) and entry.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return []

    def _find_records(self, operation: str) -> t.Iterator[tuple[str, str]]:
        try:
            shards = self._list_shards()
            for shard in shards:
                folder = os.path.join(self._path, shard)
                try:
                    names = os.listdir(folder)
                except FileNotFoundError:
                    continue
                for name in names:
                    key = self._to_key(name)
                    if key is not None:
                        yield key, os.path.join(folder, name)
        except OSError as error:
            raise self._unavailable(operation, error) from error

    def _is_ours(self, name: str) -> bool:
        if self.key_prefix is not None:
            return is_key(name, self._encoded_prefix)
        # An encoded key never has a dot; temporary, damaged and lock files have.
        return "." not in name

    def _to_key(self, name: str) -> str | None:
        """Give the key of a file; ``None`` if it is no record of the application's."""
        if not self._is_ours(name):
            return None
        if self.key_prefix is not None:
            return self._prefix + name[-64:]
        return decode_name(name)

    # -- reading and writing ---------------------------------------------------

    def _load_again(self, shard: str, path: str, damage: RecordError) -> Record | None:
        """Read a damaged file once more, under the lock, and move it aside.

        The first reading took no lock, so it may have met a touch halfway.
        """
        try:
            with self._locked(shard, "load") as exists:
                try:
                    buffer = read(path) if exists else None
                    return None if buffer is None else decode_record(buffer)
                except RecordError as error:
                    if error.reason == "damaged":
                        self._set_aside(path)
                    raise
        except OSError as error:
            # Nothing can be locked or moved here, nor can anything be touched.
            if error.errno in _READ_ONLY:
                raise damage from None
            raise

    def _set_aside(self, path: str) -> None:
        # A folder that has this name already, with something in it, is in the way.
        for infix in ("", f".{os.urandom(4).hex()}"):
            aside = f"{path}{infix}{_DAMAGED_SUFFIX}"
            # Whoever comes next finds no file, or tries again.
            with contextlib.suppress(OSError):
                os.rename(path, aside)
                # Its age counts from here, and not from when it would have expired.
                if os.utime in os.supports_follow_symlinks:
                    now = self._clock()
                    os.utime(aside, (now, now), follow_symlinks=False)
                return

    def _is_free(self, path: str) -> bool:
        try:
            header = read(path, HEADER_SIZE)
            return header is None or decode_times(header)[1] <= self._clock()
        except RecordError:
            return False

    def _write(self, shard: str, path: str, encoded: bytes, expires_at: float) -> None:
        """Put the bytes in the place of the file. The shard's lock must be held."""
        temporary = f"{shard}{os.sep}{_TEMPORARY_PREFIX}{make_nonce():016x}"
        descriptor = create_file(temporary)
        try:
            try:
                written = os.write(descriptor, encoded)
                while written < len(encoded):
                    # The next one says why this one stopped short.
                    written += os.write(descriptor, encoded[written:])
                set_mtime(descriptor, temporary, expires_at)
            finally:
                # Before the rename: a network file system reports a full disk here.
                os.close(descriptor)
            insist(os.replace, temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    # -- users -----------------------------------------------------------------

    def _owner_of(self, record: Record) -> str | None:
        """Give the user who is to have a marker for a record."""
        if record.is_tombstone or record.expires_at <= self._clock():
            return None
        return record.user

    def _mark(self, path: str, user: str | None) -> None:
        name = os.path.basename(path)
        if user is not None and not name.startswith(_HASHED):
            self._markers.add(user, name)

    def _unmark(self, path: str, user: str | None) -> None:
        if user is not None:
            self._markers.remove(user, os.path.basename(path))

    def _unmark_if_gone(self, key: str, user: str) -> None:
        """Remove a marker that was left over. Not so one that is just being made."""
        shard, path = self._locate(key)
        with self._locked(shard, "keys_of_user") as exists:
            if exists:
                start = _read_start(path)
                if start is None or not _is_of(start, user):
                    self._unmark(path, user)

    # -- pruning ---------------------------------------------------------------

    def _prune(self, operation: str, limit: int, looks: int | None) -> int:
        deleted = 0
        try:
            shards = self._list_shards()
            # The position is a shard's number, not an index: shards come and go.
            start = self._next_shard
            shards.sort(key=lambda shard: (int(shard, 16) - start) % _SHARD_COUNT)
            for shard in shards:
                self._next_shard = int(shard, 16)
                if deleted >= limit or (looks is not None and looks <= 0):
                    break
                looked, removed = self._prune_shard(operation, shard, limit - deleted)
                if looks is not None:
                    looks -= looked
                deleted += removed
        except OSError as error:
            raise self._unavailable(operation, error) from error
        return deleted

    def _prune_shard(self, operation: str, shard: str, limit: int) -> tuple[int, int]:
        """Give how many files were looked at, and how many records were deleted."""
        folder = os.path.join(self._path, shard)
        now = self._clock()
        looked = 0
        leftovers: list[str] = []
        expired: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    looked += 1
                    age = _age(entry, now)
                    if age is None:
                        continue
                    if self._is_ours(entry.name):
                        if age >= 0:
                            expired.append(entry.path)
                    elif (
                        entry.name.startswith(_TEMPORARY_PREFIX)
                        and age > _TEMPORARY_AGE
                    ) or (entry.name.endswith(_DAMAGED_SUFFIX) and age > _DAMAGED_AGE):
                        leftovers.append(entry.path)
        except FileNotFoundError:
            return 0, 0
        deleted = 0
        while leftovers or (expired and deleted < limit):
            with self._locked(folder, operation) as exists:
                if not exists:
                    break
                started, held = time.monotonic(), 0.0
                while held < _LONGEST_HOLD:
                    if leftovers:
                        unlink(leftovers.pop())
                    elif expired and deleted < limit:
                        deleted += self._unlink_if_expired(expired.pop())
                    else:
                        break
                    held = time.monotonic() - started
            if held >= _LONGEST_HOLD and operation == "prune":
                time.sleep(min(held, 5 * _LONGEST_HOLD))
        return looked, deleted

    def _unlink_if_expired(self, path: str) -> bool:
        # The modification time may be wrong: a process was killed between the two
        # halves of a touch, or somebody copied or restored the folder.
        try:
            start = _read_start(path)
            if start is None:
                return False
            _, expires_at = decode_times(start)
            owner = decode_user(start)
        except RecordError as error:
            if error.reason == "damaged":
                self._set_aside(path)
            return False
        if expires_at > self._clock():
            with contextlib.suppress(FileNotFoundError):
                set_mtime(None, path, expires_at)
            return False
        is_deleted = unlink(path)
        self._unmark(path, owner)
        return is_deleted

    # -- locking ---------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, shard: str, operation: str) -> t.Generator[bool, None, None]:
        """Hold the lock of a shard. Gives ``False`` if there is no such folder."""
        deadline = time.monotonic() + self._lock_timeout
        # In front of the lock file, so that threads wait in line and do not poll.
        lock = self._thread_locks.get(int(shard[-2:], 16))
        try:
            if not lock.acquire(timeout=self._lock_timeout):
                raise self._locked_out(operation, shard, "thread")
            descriptor = self._lock_file(shard, operation, deadline)
            if descriptor is None:
                yield False
                return
            try:
                yield True
            finally:
                try:
                    self._held.discard(descriptor)
                finally:
                    try:
                        # Closing would not be enough: a child that another thread has
                        # just forked has the same open file, and with it the lock.
                        unlock_descriptor(descriptor)
                    finally:
                        os.close(descriptor)
        finally:
            # A handler of a signal may raise before anything is noted. It is an error
            # to release what is not this thread's.
            try:  # noqa: SIM105 - takes no call before this one
                lock.release()
            except RuntimeError:
                pass

    def _lock_file(self, shard: str, operation: str, deadline: float) -> int | None:
        delay = _FIRST_DELAY
        while True:
            descriptor = open_lock(shard)
            if descriptor is None:
                return None
            try:
                self._held.add(descriptor)
                while not lock_descriptor(descriptor, blocking=False):
                    if time.monotonic() >= deadline:
                        raise self._locked_out(operation, shard, "process")
                    time.sleep(delay * (0.5 + random.random()))  # noqa: S311
                    delay = min(delay * 2, _LONGEST_DELAY)
                # Somebody who removed the folder meanwhile made this the lock of
                # nothing; the next one to come locks another file.
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BaseException:
                self._held.discard(descriptor)
                os.close(descriptor)
                raise
            self._held.discard(descriptor)
            os.close(descriptor)

    def _after_fork(self) -> None:
        """Drop what belongs to threads that only the parent process has."""
        # A lock lives as long as any descriptor of its open file: were it not closed
        # here, it would outlive a parent that is killed.
        for descriptor in self._held:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._held.clear()

    # -- errors ----------------------------------------------------------------

    def _unavailable(self, operation: str, error: OSError) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"The filesystem backend cannot {operation!r} in {self._path!r}:"
            f" {error.strerror or type(error).__name__}.",
            backend=self.name,
            operation=operation,
        )

    def _locked_out(
        self, operation: str, shard: str, who: str
    ) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"The filesystem backend cannot {operation!r} in {self._path!r}: another"
            f" {who} has held the lock of {os.path.basename(shard)!r} for"
            f" {self._lock_timeout:g} seconds.",
            backend=self.name,
            operation=operation,
        )


_backends: weakref.WeakSet[FilesystemBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for backend in _backends:
        backend._after_fork()  # pyright: ignore[reportPrivateUsage]


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


def _read_start(path: str) -> bytes | None:
    """Read the beginning of a file, at least its record's header and user."""
    start = read(path, _START_SIZE)
    if start is not None and len(start) == _START_SIZE:
        size = size_with_user(start)
        if size > _START_SIZE:
            return read(path, size)
    return start


def _is_of(start: bytes, user: str) -> bool:
    """Say whether a record begins so that a user has, or had until it expired."""
    return not start[FLAGS_OFFSET] & TOMBSTONE_FLAG and decode_user(start) == user


def _age(entry: os.DirEntry[str], now: float) -> float | None:
    """Give the seconds since the file's time; ``None`` if it is no file any more."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    if entry.name.startswith(_TEMPORARY_PREFIX):
        # Its modification time may already be the record's expiry.
        return now - min(status.st_mtime, status.st_ctime)
    return now - status.st_mtime
