"""Deletes expired records now and then, where the engine does not by itself."""

from __future__ import annotations

import logging
import random
import time

from .backends.base import Backend
from .backends.base import Capability
from .config import SessionConfig
from .errors import BackendError
from .forks import PerProcess

logger = logging.getLogger("flask_serversession")


class Cleanup:
    """Deletes expired records now and then, where the engine does not by itself.

    Every process begins at a random moment of its first interval: workers that were
    started or forked together do not clean up together, and of those that live for
    less than an interval, some clean up. Then it is once an interval. While there is
    more than one batch to delete, each call deletes one: a new session makes one
    record, so the records cannot pile up. Thread-safe.
    """

    def __init__(self, config: SessionConfig, backend: Backend) -> None:
        self._backend = backend
        self._batch = config.cleanup_batch
        self._interval = config.cleanup_interval
        self._is_needed = (
            self._interval > 0
            and Capability.PRUNE in backend.capabilities
            and Capability.EXPIRES not in backend.capabilities
        )
        self._due_at = PerProcess(self._first)
        self._due_at.get()  # The first interval begins here.

    def _first(self) -> float:
        # Not what a forked worker's generator has in common with all others.
        return time.monotonic() + random.SystemRandom().uniform(0, self._interval)

    def __call__(self) -> None:
        """Delete one batch if that is due. A failure is logged and nothing more."""
        if not self._is_needed:
            return
        now = time.monotonic()
        if now < self._due_at.get():
            return
        # Two threads here at one moment at worst delete a batch each.
        self._due_at.set(now + self._interval)
        try:
            if self._backend.sweep(self._batch) >= self._batch:
                self._due_at.set(now)
        except BackendError as error:
            logger.warning("Expired sessions could not be deleted: %s", error)
