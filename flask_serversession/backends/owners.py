"""Whose files are: commands may be run by root, and the server by somebody else."""

from __future__ import annotations

import os
import sys


def is_root() -> bool:
    """Return whether this process may do what it likes with any file."""
    return sys.platform != "win32" and os.geteuid() == 0


def give_away(descriptor: int, path: str) -> None:
    """Give what root has made to the owner of the folder that it is in.

    Commands may be run by root, but the server could not use what is root's.
    """
    if sys.platform != "win32" and is_root():
        parent = os.stat(os.path.dirname(path) or os.curdir)
        if parent.st_uid != 0:
            os.fchown(descriptor, parent.st_uid, parent.st_gid)
