"""Which files belong to a user: the user index of the filesystem backend."""

from __future__ import annotations

import contextlib
import hashlib
import os

from . import files


class UserIndex:
    """Lists the files of each user by empty files of the same name, its markers.

    ``<path>/users/<shard>/<hash>/<name>``: the hash is the SHA-256 of the prefix's
    length, the prefix and the user, ``8:session:42``, so that users may have any name
    and applications that share a folder do not see each other's; the shard is its
    first two hex digits. Folders have mode 0700 and files 0600. Symbolic links are not
    followed. Takes no locks.

    :param path: The folder that has the records too.
    :param prefix: What the keys of this application begin with.
    :param access: Who may use the files.
    """

    def __init__(self, path: str, prefix: str, access: files.Access) -> None:
        self._access = access
        self._path = os.path.join(path, "users")
        self._salt = f"{len(prefix)}:{prefix}"

    def add(self, user: str | None, file: str) -> None:
        """List a record's file, unless it is nobody's.

        :raises OSError: if that cannot be done.
        """
        if user is None:
            return
        levels = self._locate(user)
        while True:
            if all(files.is_folder(level, self._access) for level in levels):
                # The folder is removed when it is empty, which may be right now.
                with contextlib.suppress(FileNotFoundError):
                    with contextlib.suppress(FileExistsError):
                        marker = _marker(levels[-1], file)
                        os.close(files.create_file(marker, self._access))
                    return
            files.make_folder(levels[-1], self._access)

    def remove(self, user: str | None, file: str) -> None:
        """List a record's file no longer, as far as that is possible."""
        if user is None:
            return
        levels = self._locate(user)
        with contextlib.suppress(OSError):
            if all(files.is_folder(level, self._access) for level in levels):
                files.unlink(_marker(levels[-1], file))
                # Fails if the user has others.
                os.rmdir(levels[-1])

    def find(self, user: str) -> list[str]:
        """Return the names of all files that are listed for a user.

        :raises OSError: if they cannot be read.
        """
        levels = self._locate(user)
        try:
            if all(files.is_folder(level, self._access) for level in levels):
                return os.listdir(levels[-1])
        except FileNotFoundError:
            pass
        return []

    def _locate(self, user: str) -> tuple[str, str, str]:
        salted = (self._salt + user).encode("utf-8", "surrogatepass")
        name = hashlib.sha256(salted).hexdigest()
        shard = os.path.join(self._path, name[:2])
        return self._path, shard, os.path.join(shard, name)


def _marker(folder: str, file: str) -> str:
    return os.path.join(folder, os.path.basename(file))
