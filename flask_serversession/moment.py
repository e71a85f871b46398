"""What is true at the moment when a session is settled: facts for :mod:`.plan`."""

from __future__ import annotations

import re

from flask import Response

from .core import Core
from .meta import tracked_part
from .unit import Unit

# For how long what a request has seen of its session is taken for true when an
# unchanged cookie is sent again, or times are written as they are, in seconds.
_TRUSTED = 0.1
# Directives that let a cache keep a response for everybody: RFC 9111, section 5.2.2.
_PUBLIC = re.compile(r"\b(?:public|s-maxage)\b", re.IGNORECASE)
# How the names of such headers end: a CDN may have one of its own (RFC 9213), which it
# obeys instead, and in which max-age is enough.
_CONTROLS = ("cache-control", "surrogate-control")
_TARGETED = re.compile(
    r"^(?!.*\b(?:private|no-store)\b).*\b(?:public|s-maxage|max-age)\b", re.IGNORECASE
)


class Moment:
    """Why a session is settled, and when: the facts that the table asks for.

    :param is_end: Whether the request ends; otherwise only what changed is written.
    """

    #: ``SESSION_SAVE_ON_ERROR`` is off, and the response is a 5xx.
    is_error_unsaved: bool = False
    #: What an application's own ``should_set_cookie()`` says; ``None`` without one.
    is_wanted: bool | None = None
    #: Why the session needs a new id that nobody asked for; empty if it does not.
    rotation: str = ""

    def __init__(self, core: Core, is_end: bool = False) -> None:
        self._core = core
        self._is_end = is_end

    @property
    def resave(self) -> bool:
        """Whether what was not changed is written too."""
        return False

    @property
    def is_refreshed(self) -> bool:
        """Whether use of a permanent session renews it."""
        return True

    @property
    def is_public(self) -> bool:
        """Whether any cache may keep the response."""
        return False

    @property
    def save_uninitialized(self) -> bool:
        """``SESSION_SAVE_UNINITIALIZED``"""
        return self._core.config.save_uninitialized

    @property
    def raises(self) -> bool:
        """Whether a failure of the backend is raised."""
        return self._core.config.on_backend_error == "raise"

    @property
    def is_tracked(self) -> bool:
        """Whether ``SESSION_TRACK`` asks where the session is seen."""
        return bool(self._core.config.track)

    def is_elsewhere(self, unit: Unit) -> bool:
        """Whether it was last seen with another address or browser."""
        return self.is_tracked and tracked_part(unit.record.meta) != unit.meta

    def is_permanent(self, unit: Unit) -> bool:
        """Whether the session outlives the browser."""
        return self._core.is_permanent(unit)

    def is_touch_due(self, unit: Unit) -> bool:
        """Whether activity has to be recorded again."""
        if not self._is_end:
            return False
        core, stored = self._core, unit.stored
        if stored is not None:
            touched_at, lifetime = stored.record.touched_at, core.lifetime_of(unit)
        elif (cookie := unit.presented.cookie) is not None:
            touched_at = cookie.touched_at
            lifetime = cookie.lifetime or core.idle_timeout(cookie.is_permanent)
        else:
            return False
        return core.is_touch_due(core.clock(), touched_at, lifetime)

    def is_doubtful(self, unit: Unit) -> bool:
        """Whether an unchanged cookie must not be sent without asking for the session.

        While a slow request ran, another one on another machine may have logged in and
        given the browser a new id, which the old cookie would throw away.
        """
        return self._is_end and is_doubtful(self._core, unit)

    def is_ended_here(self, unit: Unit) -> bool:
        """Whether this process has ended the session, or rotated its id away."""
        identity = unit.identity
        return identity is not None and self._core.ended.has(identity.key)

    def differs_from_cookie(self, unit: Unit, is_permanent: bool) -> bool:
        """Whether the cookie says something else, or an old secret signed it."""
        cookie = unit.presented.cookie
        return cookie is not None and (
            # Signed with a secret that will be removed one day.
            cookie.is_stale
            or cookie.is_unsettled is not unit.is_unsettled
            or not cookie.says(is_permanent, unit.lifetime)
        )


class Ahead(Moment):
    """The end of the request, as far as it can be known before there is a response."""

    _is_end = True

    def __init__(self, core: Core) -> None:
        # Not through super().__init__(): each request pays for this.
        self._core = core

    @property
    def is_refreshed(self) -> bool:
        """``SESSION_REFRESH_EACH_REQUEST``"""
        return self._core.is_refreshed

    @property
    def resave(self) -> bool:
        """``SESSION_RESAVE``"""
        return self._core.config.resave


class EndOfRequest(Ahead):
    """The moment at which Flask has a session saved."""

    def __init__(self, core: Core, response: Response) -> None:
        self._core = core
        self._response = response

    @property
    def is_public(self) -> bool:
        """Whether any cache may keep the response and give it to everybody."""
        return is_public(self._response)


def is_doubtful(core: Core, unit: Unit) -> bool:
    """Whether what the request has seen of its session is too old to be true."""
    return core.clock() - unit.presented.seen_at > _TRUSTED


def is_public(response: Response) -> bool:
    """Whether any cache may keep the response and give it to everybody."""
    # Not getlist(), which takes three times as long.
    for name, value in response.headers:
        if name.lower().endswith(_CONTROLS):
            pattern = _TARGETED if is_targeted(name) else _PUBLIC
            if pattern.search(value):
                return True
    return False


def is_targeted(name: str) -> bool:
    """Whether a CDN obeys a header instead of ``Cache-Control``."""
    name = name.lower()
    return name != "cache-control" and name.endswith(_CONTROLS)
