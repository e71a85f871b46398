"""Which file a record lies in, and which files are an application's records."""

from __future__ import annotations

import os
import re
import shlex
import stat
import typing as t
import urllib.parse

from ...errors import ConfigurationError
from ...ids import is_key
from . import files

_DIGEST_SIZE = 64
_SHARD = re.compile(r"[0-9a-f]{2}")
# Capitals too: on macOS and Windows, "a" and "A" are the same file. And dots, which
# all other files have: temporary, damaged and lock files.
_ESCAPED = re.compile(rb"[^a-z0-9_-]")
# Every file system in use takes names of 255 bytes. A damaged file's must fit too.
_LONGEST_PREFIX = 255 - _DIGEST_SIZE - len(".12345678") - len(files.DAMAGED_SUFFIX)


class Layout:
    """The records' files below a folder, as :class:`.FilesystemBackend` shows them.

    :param prefix: Whose records are found; ``None`` for all applications'.
    :raises ConfigurationError: if the prefix is too long for a file name.
    """

    def __init__(self, path: str | os.PathLike[str], prefix: str | None) -> None:
        self.path: str = os.path.abspath(os.fspath(path))
        self._prefix = prefix
        self._encoded = _encode(prefix or "")
        if len(self._encoded) > _LONGEST_PREFIX:
            raise ConfigurationError(
                f"'SESSION_KEY_PREFIX' is too long for a file name: it takes"
                f" {len(self._encoded)} bytes there; the 'filesystem' backend allows"
                f" {_LONGEST_PREFIX}.",
                "SESSION_KEY_PREFIX",
            )

    def check(self) -> None:
        """Check that nobody else can put records into the folder, if there is one.

        :raises ConfigurationError: if somebody can.
        """
        parent = os.path.dirname(self.path)
        if files.is_swappable(parent):
            raise _unsafe(
                f"Anybody may write to {parent!r}, and so put another folder in the"
                f" place of {self.path!r}. Run: chmod o-w {shlex.quote(parent)}"
            )
        for path in (self.path, os.path.join(self.path, "users"), *self._shards()):
            try:
                status = os.lstat(path)
            except OSError:
                continue  # the first operation says so
            if stat.S_ISLNK(status.st_mode):
                raise _unsafe(
                    f"{path!r} is a symbolic link. Name the folder that it leads to."
                )
            if stat.S_ISDIR(status.st_mode) and (found := files.problem_of(status)):
                raise _unsafe(
                    f"{path!r} {found}, so that others could read sessions and make"
                    " some up. Run the application as its owner, or:"
                    f" chown -R {os.geteuid()} {shlex.quote(path)} && chmod go-w"
                    f" {shlex.quote(path)}"
                )

    def _shards(self) -> list[str]:
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        return [
            os.path.join(self.path, name) for name in names if _SHARD.fullmatch(name)
        ]

    def locate(self, key: str) -> tuple[str, str]:
        """Return the folder and the file of a record.

        :raises ValueError: for a key that is not one of :func:`.key_of`.
        """
        prefix, digest = key[:-_DIGEST_SIZE], key[-_DIGEST_SIZE:]
        if not is_key(digest, ""):
            raise ValueError("A key is a prefix and 64 hexadecimal digits.")
        encoded = self._encoded if prefix == self._prefix else _encode(prefix)
        folder = f"{self.path}{os.sep}{digest[:2]}"
        return folder, f"{folder}{os.sep}{encoded}{digest}"

    def to_key(self, name: str) -> str | None:
        """Return the key of a file; ``None`` if it is no record of the application."""
        encoded, digest = name[:-_DIGEST_SIZE], name[-_DIGEST_SIZE:]
        if not is_key(digest, ""):
            return None
        if self._prefix is not None:
            return self._prefix + digest if encoded == self._encoded else None
        try:
            prefix = urllib.parse.unquote_to_bytes(encoded).decode()
        except ValueError:
            return None
        return prefix + digest if _encode(prefix) == encoded else None

    def list_folders(self) -> list[str]:
        """Return the folders of all shards that there are."""
        try:
            with os.scandir(self.path) as entries:
                return [
                    entry.path
                    for entry in entries
                    if _SHARD.fullmatch(entry.name)
                    and entry.is_dir(follow_symlinks=False)
                    and not files.problem_of(entry.stat(follow_symlinks=False))
                ]
        except FileNotFoundError:
            return []

    def find_records(self) -> t.Iterator[tuple[str, str]]:
        """Go through keys and files of all records, a shard at a time."""
        for folder in self.list_folders():
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                continue
            for name in names:
                key = self.to_key(name)
                if key is not None:
                    yield key, os.path.join(folder, name)


def _unsafe(text: str) -> ConfigurationError:
    key = "SESSION_FILESYSTEM_PATH"
    return ConfigurationError(f"{key!r}: {text}", key)


def _encode(prefix: str) -> str:
    return _ESCAPED.sub(lambda match: b"%%%02x" % match[0][0], prefix.encode()).decode()
