"""A site, and one stored session that no browser has."""

from __future__ import annotations

import typing as t

from flask_serversession.core import Core
from flask_serversession.record import Record
from flask_serversession.unit import Identity
from flask_serversession.unit import Unit

from .site import Site

IDENTITY = Identity("the id", "the key")


class Prepared:
    """A session that was loaded, for what happens to it next."""

    def __init__(self, data: dict[str, t.Any], **settings: t.Any) -> None:
        self.site = Site({"SESSION_BACKEND": "memory"}, **settings)
        self.core: Core = self.site.state.interface.core
        self.record = self.write(data)
        self.site.backend.create(IDENTITY.key, self.record)
        self.unit = self.new_unit()
        self.core.adopt(self.unit, self.record)

    def new_unit(self) -> Unit:
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        unit = Unit(signer)
        unit.identity = IDENTITY
        return unit

    def write(self, data: dict[str, t.Any], lifetime: float | None = None) -> Record:
        """Give the record of a content."""
        unit, now = self.new_unit(), self.core.clock()
        unit.data, unit.lifetime = data, lifetime
        payload = self.core.dumps(unit)
        return self.core.make(unit, IDENTITY, payload, now, now, now).record
