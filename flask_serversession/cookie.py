"""The cookie: how it is signed, verified, set and deleted."""

from __future__ import annotations

import base64
import collections.abc as cabc
import dataclasses
import datetime as dt
import functools
import hashlib
import hmac
import math
import re
import typing as t

from flask import Flask
from flask import Response
from flask.sessions import SessionInterface
from itsdangerous import Signer
from itsdangerous.signer import SigningAlgorithm

from .hiding import HiddenText

#: Cookies of the session's name that are tried until one verifies. A browser sends
#: several when one was left on another path or planted by a sibling domain.
MAX_CANDIDATES = 4

# The longest value that can be ours: the longest id, the state, the signature.
_MAX_LENGTH = 512
# How many values are remembered with what came of them: half a kilobyte for each.
_REMEMBERED = 2_048
_SALT = b"flask_serversession.cookie"
_ID_KEY = b"flask_serversession.id"
# What we never sign is refused: bigger numbers than these make no dates. The lifetime
# is in milliseconds, and 1000 years are 12 digits of which the first is 1.
_STATE = re.compile(r"([pb])([0-9a-f]{1,12})-([0-9a-f]{1,12})(?:-(1?[0-9a-f]{1,11}))?")


@dataclasses.dataclass(frozen=True, slots=True)
class CookieState:
    """What a cookie carries under its signature.

    The times let a request that does not look at its session renew it without
    asking the backend for them.
    """

    #: The session's id. A secret.
    id: str = dataclasses.field(repr=False)
    #: Whether the session outlives the browser.
    is_permanent: bool
    #: The last activity recorded in the backend, in seconds since the epoch.
    touched_at: float
    #: When the session began, in seconds since the epoch.
    created_at: float
    #: The session's own idle timeout in seconds, ``None`` for the app's.
    lifetime: float | None = None
    #: Whether a secret other than the newest signed it.
    is_stale: bool = False

    def says(self, is_permanent: bool, lifetime: float | None) -> bool:
        """Whether the cookie knows how long its session lives."""
        return self.is_permanent is is_permanent and (
            self.lifetime == lifetime
            or _milliseconds(self.lifetime) == _milliseconds(lifetime)
        )

    def touched(self, touched_at: float) -> CookieState:
        """Return the same with another time of the last activity."""
        return CookieState(
            id=self.id,
            is_permanent=self.is_permanent,
            touched_at=touched_at,
            created_at=self.created_at,
            lifetime=self.lifetime,
        )


class CookieSigner:
    """Signs and verifies cookies with HMAC-SHA256, through itsdangerous.

    Keys are derived once, here, not at every request. Thread-safe.

    Recently verified cookies are cached: a browser sends the same cookie with many
    requests, and verifying costs as much as the rest of the look-up. The cache hashes
    the whole value with a keyed hash, so timing reveals nothing about how much of a
    forgery is correct.

    :param secrets: Newest first. The first one signs, all of them verify.
    """

    def __init__(self, secrets: cabc.Sequence[str | bytes]) -> None:
        self._keys = [_derive(secret) for secret in secrets]
        self._signers = [
            Signer(key, salt=_SALT, key_derivation="none", algorithm=_HMAC(key))
            for key in self._keys
        ]
        self._remembered = functools.lru_cache(_REMEMBERED)(self._verify)

    def sign(self, state: CookieState) -> str:
        """Return the value of the cookie."""
        # Rounded up, so that rounding never makes a touch due too early.
        text = (
            f"{state.id}.{'p' if state.is_permanent else 'b'}"
            f"{math.ceil(state.touched_at):x}-{int(state.created_at):x}"
        )
        if state.lifetime is not None:
            text += f"-{_milliseconds(state.lifetime):x}"
        return self._signers[0].sign(text).decode("ascii")

    def verify(self, value: str) -> CookieState | None:
        """Read a cookie's value; ``None`` if it is not one that we signed."""
        # Nothing of any length is remembered.
        return None if len(value) > _MAX_LENGTH else self._remembered(value)

    def _verify(self, value: str) -> CookieState | None:
        # Cheap checks first: no HMAC over what cannot be ours.
        if not value.isascii() or value.count(".") < 2:
            return None
        text, _, signature = value.rpartition(".")
        given = signature.encode("ascii")
        for signer in self._signers:
            # Quicker than Signer.unsign(), which also takes the other spellings that
            # base64 has of one signature. We never write those.
            if hmac.compare_digest(given, signer.get_signature(text)):
                break
        else:
            return None
        id, _, state = text.rpartition(".")
        if (match := _STATE.fullmatch(state)) is None:
            return None
        kind, touched_at, created_at, lifetime = match.groups()
        return CookieState(
            id=id,
            is_permanent=kind == "p",
            touched_at=int(touched_at, 16),
            created_at=int(created_at, 16),
            lifetime=int(lifetime, 16) / 1000 if lifetime else None,
            is_stale=signer is not self._signers[0],
        )

    def derive_ids(self, text: bytes) -> list[str]:
        """Return the ids that follow from a text: one for each secret, newest first.

        The ids cannot be derived from the text without a secret.
        """
        return [
            base64.urlsafe_b64encode(
                # With a key of its own: no signature is an id, and no id one.
                hmac.digest(hmac.digest(key, _ID_KEY, "sha256"), text, "sha256")
            )
            .rstrip(b"=")
            .decode("ascii")
            for key in self._keys
        ]


def set_cookie(
    interface: SessionInterface,
    app: Flask,
    response: Response,
    sign: cabc.Callable[[], str],
    expires: dt.datetime | None,
) -> bool:
    """Set the cookie, with the attributes that the interface's getters return.

    :param sign: Returns the value. Asked last, since a getter may fail, and error
        reporters record local variables.
    :return: Whether it is Secure.
    """
    attributes = _attributes(interface, app)
    response.set_cookie(value=HiddenText(sign()), expires=expires, **attributes)
    return bool(attributes["secure"])


def delete_cookie(interface: SessionInterface, app: Flask, response: Response) -> None:
    """Delete the cookie.

    With the attributes that it was set with: browsers ignore the deletion otherwise.
    """
    response.delete_cookie(**_attributes(interface, app))


def _attributes(interface: SessionInterface, app: Flask) -> dict[str, t.Any]:
    return {
        "key": interface.get_cookie_name(app),
        "domain": interface.get_cookie_domain(app),
        "path": interface.get_cookie_path(app),
        "secure": interface.get_cookie_secure(app),
        "partitioned": interface.get_cookie_partitioned(app),
        "samesite": interface.get_cookie_samesite(app),
        "httponly": interface.get_cookie_httponly(app),
    }


def find_values(header: str, name: str) -> list[str]:
    """Return the values that a ``Cookie`` header has for a name, in their order.

    As browsers write the header (RFC 6265, section 5.4): pairs are separated by
    semicolons, and a quote is a character like any other. A parser that knows quotes
    takes all between two of them for one value, so whoever can plant two cookies could
    hide the session's between them. Takes a fifth of the time that such a parser does.
    """
    if name not in header:
        return []
    pairs = [part.partition("=") for part in header.split(";")]
    # Not all that is white to Python: to a browser, that is part of a name, and so a
    # way around what it has decided about names that begin with "__Host-".
    return [value.strip(" \t") for key, _, value in pairs if key.strip(" \t") == name]


def claims_permanent(value: str) -> bool:
    """Whether a cookie says, unverified, that its session is permanent.

    Only a hint, to spare the verification of a cookie that nothing depends on.
    """
    parts = value[:_MAX_LENGTH].rsplit(".", 2)
    return len(parts) == 3 and parts[1].startswith("p")


def _milliseconds(seconds: float | None) -> int:
    return 0 if seconds is None else math.ceil(seconds * 1000)


def _derive(secret: str | bytes) -> bytes:
    return Signer(
        secret, salt=_SALT, key_derivation="hmac", digest_method=_sha256
    ).derive_key()


class _HMAC(SigningAlgorithm):
    """What itsdangerous does by itself, at a fifth of the cost.

    The key is prepared once, and copied for each signature. Thread-safe.
    """

    def __init__(self, key: bytes) -> None:
        self._prepared = hmac.new(key, digestmod="sha256")

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        """Sign with the key that was prepared, whichever is given."""
        mac = self._prepared.copy()
        mac.update(value)
        return mac.digest()


def _sha256(data: bytes = b"") -> t.Any:
    return hashlib.sha256(data)
