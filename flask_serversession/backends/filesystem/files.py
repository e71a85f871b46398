"""Files and folders that nobody else may read, and that are no symbolic links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
import typing as t

from ...errors import RecordError
from ...forks import unique_number
from ...hiding import HiddenBytes
from ...record import size_with_user
from ..owners import give_away
from ..owners import is_root

# 0 where the system has no such flag. O_NONBLOCK so that opening a pipe that
# somebody put there returns at once; for a file it means nothing. Python adds
# O_CLOEXEC by itself (PEP 446).
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_FLAGS: int = _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# What opening something that is not a file gives: a folder, a symbolic link (EMLINK
# on FreeBSD), a socket, a device without a driver.
_NOT_A_FILE = frozenset(
    {
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENXIO,
        errno.EOPNOTSUPP,
        errno.ENODEV,
    }
)

_LOCK_NAME = ".lock"
TEMPORARY_PREFIX = ".tmp-"
DAMAGED_SUFFIX = ".damaged"
# Enough for a header and for any user that the library allows.
START_SIZE = 2_048
# For how long, and how often, a file that is open is waited for; Windows only.
_OPEN_DELAY = 0.005
_OPEN_TRIES = 50
# The year 9999: what is later does not fit into every system's file times.
_LATEST_MTIME = 253_402_300_799.0


class Access(t.NamedTuple):
    """Who may use files and folders beside their owner."""

    file_mode: int
    folder_mode: int
    #: Whether the members of the folder's group may, so that they are trusted.
    is_shared: bool


PRIVATE = Access(0o600, 0o700, is_shared=False)
#: New files get the group of their folder, by the bit "setgid".
SHARED = Access(0o660, 0o2770, is_shared=True)


def is_folder(path: str, access: Access, *, strict: bool = True) -> bool:
    """Whether there is a folder; if strict, an error if there is anything else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        if not strict:
            return False
        is_link = stat.S_ISLNK(status.st_mode)
        raise NotADirectoryError(
            errno.ENOTDIR,
            f"{os.path.basename(path)!r} in it is"
            f" {'a symbolic link' if is_link else 'not a folder'}",
        )
    if strict and (problem := problem_of(status, path, access)):
        raise PermissionError(
            errno.EPERM, f"{os.path.basename(path)!r} in it {problem}"
        )
    return True


def problem_of(status: os.stat_result, path: str, access: Access) -> str:
    """Return why a folder may hold what others have put there; empty if it cannot.

    Root's folders are as good as our own, unless others may write to them: root could
    do whatever it likes anyway.
    """
    if sys.platform == "win32":
        return ""
    if status.st_uid not in (0, os.geteuid()) and not _is_trusted(status, path, access):
        return f"belongs to the user {name_of(status.st_uid)}"
    others = stat.S_IWOTH if access.is_shared else stat.S_IWGRP | stat.S_IWOTH
    if status.st_mode & others:
        return f"has the mode {stat.S_IMODE(status.st_mode):04o}"
    return ""


def _is_trusted(status: os.stat_result, path: str, access: Access) -> bool:
    """Whether another user's folder is as good as our own."""
    if os.geteuid() == 0:
        # For commands: whoever has the folder above could replace this one anyway.
        parent = os.stat(os.path.dirname(path))
        return status.st_uid == parent.st_uid or (
            access.is_shared and status.st_gid == parent.st_gid
        )
    return access.is_shared and status.st_gid in (os.getegid(), *os.getgroups())


def name_of(uid: int) -> str:
    """Return a user's name, quoted, or the number of one who has none."""
    try:
        import pwd

        return f"{pwd.getpwuid(uid).pw_name!r}"  # type: ignore[attr-defined,unused-ignore]
    except (ImportError, KeyError):
        return str(uid)


def is_swappable(path: str) -> bool:
    """Whether anybody could put something else in the place of what is in a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    is_open = mode & stat.S_IWOTH and not mode & stat.S_ISVTX
    return bool(is_open) and stat.S_ISDIR(mode) and sys.platform != "win32"


def make_folder(path: str, access: Access) -> None:
    """Make a folder, and what is missing above it, unless there is anything."""
    try:
        try:
            os.mkdir(path, access.folder_mode)
        except FileNotFoundError:
            parent = os.path.dirname(path)
            if parent == path:
                raise
            make_folder(parent, access)
            os.mkdir(path, access.folder_mode)
    except FileExistsError:
        return
    # Whoever removes empty folders may have been here already.
    with contextlib.suppress(FileNotFoundError):
        if is_root():
            descriptor = os.open(path, os.O_DIRECTORY | _FLAGS)
            try:
                give_away(descriptor, path)
            finally:
                os.close(descriptor)
        # The umask took away from the mode that was asked for.
        os.chmod(path, access.folder_mode)


def open_file(path: str, flags: int) -> tuple[int | None, int]:
    """Return a regular file's descriptor and size; ``(None, 0)`` if there is none.

    :raises RecordError: if something else has this name.
    """
    try:
        if not _NO_FOLLOW and os.path.islink(path):
            raise OSError(errno.ELOOP, "It is a symbolic link")
        descriptor = os.open(path, flags | _FLAGS)
    except FileNotFoundError:
        return None, 0
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            raise _not_a_file() from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def _not_a_file() -> RecordError:
    return RecordError("It is not a regular file.", "damaged")


def read(path: str, size: int | None = None) -> bytes | None:
    """Read a file, or its beginning; ``None`` if there is none.

    :raises RecordError: as :func:`open_file`.
    """
    # A file never changes its size: another one takes its place.
    descriptor, length = open_file(path, os.O_RDONLY)
    if descriptor is None:
        return None
    try:
        if size is not None:
            return HiddenBytes(os.read(descriptor, size))
        buffer = os.read(descriptor, length)
        while left := length - len(buffer):
            if not (more := os.read(descriptor, left)):
                break
            buffer += more
        return HiddenBytes(buffer)
    finally:
        os.close(descriptor)


def read_start(path: str) -> bytes | None:
    """Read the beginning of a file, at least its record's header and user."""
    start = read(path, START_SIZE)
    if start is not None and len(start) == START_SIZE:
        size = size_with_user(start)
        if size > START_SIZE:
            return read(path, size)
    return start


def create_file(path: str, access: Access, flags: int = os.O_WRONLY) -> int:
    """Create a file and open it.

    :raises FileExistsError: if there is anything.
    """
    mode = access.file_mode
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | _FLAGS, mode)
    try:
        if sys.platform != "win32":
            give_away(descriptor, path)
            # The umask took away from the mode that was asked for.
            os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        os.unlink(path)
        raise
    return descriptor


def replace_file(path: str, content: bytes, mtime: float, access: Access) -> None:
    """Put a new file in the place of one, or where there is none.

    The content goes to a temporary file in the same folder, so that nobody ever finds
    half of it.
    """
    folder = os.path.dirname(path)
    temporary = f"{folder}{os.sep}{TEMPORARY_PREFIX}{unique_number():016x}"
    descriptor = create_file(temporary, access)
    try:
        try:
            written = os.write(descriptor, content)
            while written < len(content):
                # The next one says why this one stopped short.
                written += os.write(descriptor, content[written:])
            set_mtime(descriptor, temporary, mtime)
        finally:
            # Before the rename: a network file system reports a full disk here.
            os.close(descriptor)
        insist(os.replace, temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def set_aside(path: str, now: float) -> None:
    """Rename a damaged file, for the operator to look at."""
    # A folder that has this name already, with something in it, is in the way.
    for infix in ("", f".{os.urandom(4).hex()}"):
        aside = f"{path}{infix}{DAMAGED_SUFFIX}"
        # If it fails, the next one to come finds no file, or tries again.
        with contextlib.suppress(OSError):
            os.rename(path, aside)
            # Its age counts from here, and not from when it would have expired.
            if os.utime in os.supports_follow_symlinks:
                os.utime(aside, (now, now), follow_symlinks=False)
            return


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write into an open file."""
    if sys.platform != "win32":
        os.pwrite(descriptor, data, offset)
    else:
        os.lseek(descriptor, offset, os.SEEK_SET)
        os.write(descriptor, data)


def set_mtime(descriptor: int | None, path: str, mtime: float) -> None:
    """Set the modification time of a file, which may be open."""
    mtime = min(max(mtime, 0.0), _LATEST_MTIME)
    if descriptor is not None and os.utime in os.supports_fd:
        os.utime(descriptor, (mtime, mtime))
    elif os.utime in os.supports_follow_symlinks:
        os.utime(path, (mtime, mtime), follow_symlinks=False)
    else:
        os.utime(path, (mtime, mtime))


def renew_mtime(
    descriptor: int | None, path: str, mtime: float, access: Access
) -> None:
    """Set the modification time of a record's file, under the lock of its shard.

    Only a file's owner may; that of another member of the group is written anew.
    """
    try:
        set_mtime(descriptor, path, mtime)
    except PermissionError:
        if not access.is_shared or (content := read(path)) is None:
            raise
        replace_file(path, content, mtime, access)


def insist(function: t.Callable[..., None], *paths: str) -> None:
    """Rename or remove a file, on Windows until nobody has it open."""
    if sys.platform == "win32":
        # Windows refuses to replace or remove a file that is open, which it is for
        # the few microseconds in which another thread or process loads it.
        for _ in range(_OPEN_TRIES):
            with contextlib.suppress(PermissionError):
                function(*paths)
                return
            time.sleep(_OPEN_DELAY)
    function(*paths)


def unlink(path: str) -> bool:
    """Remove a file; ``False`` if there is none."""
    try:
        insist(os.unlink, path)
    except FileNotFoundError:
        return False
    return True


def open_lock(shard: str, access: Access) -> int | None:
    """Open the lock file of a shard; ``None`` if there is no such folder."""
    if not is_folder(shard, access):
        return None
    path = f"{shard}{os.sep}{_LOCK_NAME}"
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | _FLAGS)
        try:
            return create_file(path, access, os.O_RDWR)
        except FileExistsError:
            continue
        except FileNotFoundError:
            return None
