"""Backends: where records are kept, and how the configuration chooses one."""

from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced
from .registry import ENTRY_POINT_GROUP as ENTRY_POINT_GROUP
from .registry import BackendSettings as BackendSettings
from .registry import build_backend

__all__ = ["Backend", "Capability", "Conflict", "Gone", "Replaced", "build_backend"]
