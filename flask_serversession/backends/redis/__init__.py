"""Records in Redis or Valkey: a single server, Sentinel or Cluster."""

from .backend import RedisBackend
from .server import TIMEOUT

__all__ = ["TIMEOUT", "RedisBackend"]
