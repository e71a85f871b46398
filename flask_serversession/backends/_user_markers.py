"""Which files belong to a user, for backends that keep records in files."""

from __future__ import annotations

import contextlib
import os

from ._files import create_file
from ._files import hash_text
from ._files import is_folder
from ._files import make_folder
from ._files import unlink


class UserMarkers:
    """Lists the files of each user by empty files of the same name.

    ``<path>/users/<shard>/<hash>/<name>``: the hash is the SHA-256 of the prefix's
    length, the prefix and the user, ``8:session:42``, so that users may have any name
    and applications that share a folder do not see each other's; the shard is its
    first two hex digits. Folders have mode 0700 and files 0600. Symbolic links are not
    followed. Takes no locks.

    :param path: The folder that has the records too.
    :param prefix: What the keys of this application begin with.
    """

    def __init__(self, path: str, prefix: str) -> None:
        self._path = os.path.join(path, "users")
        self._salt = f"{len(prefix)}:{prefix}"

    def add(self, user: str, name: str) -> None:
        """List a file.

        :raises OSError: if that cannot be done.
        """
        levels = self._locate(user)
        while True:
            if all(is_folder(level) for level in levels):
                # The second happens if somebody removes the folder, being empty.
                with contextlib.suppress(FileNotFoundError):
                    with contextlib.suppress(FileExistsError):
                        os.close(create_file(os.path.join(levels[-1], name)))
                    return
            make_folder(levels[-1])

    def remove(self, user: str, name: str) -> None:
        """List a file no longer, as far as that is possible."""
        levels = self._locate(user)
        with contextlib.suppress(OSError):
            if all(is_folder(level) for level in levels):
                unlink(os.path.join(levels[-1], name))
                # Unless it has others.
                os.rmdir(levels[-1])

    def find(self, user: str) -> list[str]:
        """Give the names of all files that are listed for a user.

        :raises OSError: if they cannot be read.
        """
        levels = self._locate(user)
        try:
            if all(is_folder(level) for level in levels):
                return os.listdir(levels[-1])
        except FileNotFoundError:
            pass
        return []

    def _locate(self, user: str) -> tuple[str, str, str]:
        name = hash_text(self._salt + user)
        shard = os.path.join(self._path, name[:2])
        return self._path, shard, os.path.join(shard, name)
