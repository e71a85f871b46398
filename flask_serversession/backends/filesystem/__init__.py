"""Records in files, one a session, shared by the processes of one machine."""

from .backend import FilesystemBackend

__all__ = ["FilesystemBackend"]
