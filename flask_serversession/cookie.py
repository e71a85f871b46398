"""The cookie: how it is signed, verified, set and deleted."""

from __future__ import annotations

import base64
import collections.abc as cabc
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
from werkzeug.http import dump_cookie

from .hiding import HiddenText

#: Cookies of the session's name that are tried until one verifies. A browser sends
#: several when one was left on another path or planted by a sibling domain.
MAX_CANDIDATES = 4

# The longest value that can be ours: the longest id, the state, the signature.
_MAX_LENGTH = 512
#: How many values are remembered with what came of them: half a kilobyte for each.
REMEMBERED = 2_048
# How many headers are remembered. A permanent session's expires, so it is another one
# in each second.
_HEADERS = 64
_SALT = b"flask_serversession.cookie"
_ID_KEY = b"flask_serversession.id"
#: The label of notes in the store.
NOTE_KEY = b"flask_serversession.note"
# What we never sign is refused: bigger numbers than these make no dates. The lifetime
# is in milliseconds, and 1000 years are 12 digits of which the first is 1.
_STATE = re.compile(
    r"([pb])([0-9a-f]{1,12})-([0-9a-f]{1,12})(?:-(1?[0-9a-f]{1,11}))?(u?)"
)


class CookieState(t.NamedTuple):
    """What a cookie carries under its signature.

    The times let a request that does not look at its session renew it without
    asking the backend for them.
    """

    #: The session's id. A secret.
    id: str
    #: Whether the session outlives the browser.
    is_permanent: bool
    #: The last activity recorded in the backend, in seconds since the epoch.
    touched_at: float
    #: What its absolute timeout counts from, in seconds since the epoch: when the user
    #: logged in, or when the session began without one.
    counts_from: float
    #: The session's own idle timeout in seconds, ``None`` for the app's.
    lifetime: float | None = None
    #: Whether a secret other than the newest signed it.
    is_stale: bool = False
    #: Whether the id before this one may still name the session: the backend has failed
    #: while it was changed.
    is_unsettled: bool = False

    def says(self, is_permanent: bool, lifetime: float | None) -> bool:
        """Whether the cookie knows how long its session lives."""
        return self.is_permanent is is_permanent and (
            self.lifetime == lifetime
            or _milliseconds(self.lifetime) == _milliseconds(lifetime)
        )

    def touched(self, touched_at: float) -> CookieState:
        """Return the same with another time of the last activity."""
        return self._replace(touched_at=touched_at, is_stale=False)

    def __repr__(self) -> str:
        return "<CookieState>"  # error reporters record the repr of local variables


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
        self._remembered = functools.lru_cache(REMEMBERED)(self._verify)

    def sign(self, state: CookieState) -> str:
        """Return the value of the cookie."""
        # Rounded up, so that rounding never makes a touch due too early.
        text = (
            f"{state.id}.{'p' if state.is_permanent else 'b'}"
            f"{math.ceil(state.touched_at):x}-{int(state.counts_from):x}"
        )
        if state.lifetime is not None:
            text += f"-{_milliseconds(state.lifetime):x}"
        if state.is_unsettled:
            text += "u"
        signature = self._signers[0].get_signature(text)
        return f"{text}.{signature.decode('ascii')}"

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
        kind, touched_at, counts_from, lifetime, unsettled = match.groups()
        return CookieState(
            id=id,
            is_permanent=kind == "p",
            touched_at=int(touched_at, 16),
            counts_from=int(counts_from, 16),
            lifetime=int(lifetime, 16) / 1000 if lifetime else None,
            is_stale=signer is not self._signers[0],
            is_unsettled=bool(unsettled),
        )

    def derive_ids(self, text: bytes) -> list[str]:
        """Return the ids that follow from a text: one for each secret, newest first.

        The ids cannot be derived from the text without a secret.
        """
        return self._derive_all(_ID_KEY, text)

    def attest(self, note: str, label: bytes = NOTE_KEY) -> str:
        """Return what proves that a note is the application's.

        :param label: The kind of the note. A proof is only valid for its own kind.
        """
        return self._derive_all(label, note.encode())[0]

    def attests(self, note: str, proof: str, label: bytes = NOTE_KEY) -> bool:
        """Whether :meth:`attest` returned the proof, with any of the secrets."""
        given = proof.encode("utf-8", "surrogatepass")
        return any(
            hmac.compare_digest(known.encode("ascii"), given)
            for known in self._derive_all(label, note.encode())
        )

    def _derive_all(self, label: bytes, text: bytes) -> list[str]:
        return [
            base64.urlsafe_b64encode(
                # With a key of its own: no signature is an id, and no id one.
                hmac.digest(hmac.digest(key, label, "sha256"), text, "sha256")
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
    now: float,
) -> bool:
    """Set the cookie, with the attributes that the interface's getters return.

    :param sign: Returns the value. Asked last, since a getter may fail, and error
        reporters record local variables.
    :param now: In seconds since the epoch. A browser whose clock is wrong goes by
        ``Max-Age``.
    :return: Whether it is Secure.
    """
    attributes = _attributes(interface, app)
    max_age: int | None = None
    if isinstance(expires, dt.datetime):  # which a getter may have in another form
        moment = expires if expires.tzinfo else expires.replace(tzinfo=dt.timezone.utc)
        # Rounded up: 0 would delete the cookie.
        max_age = max(0, math.ceil(moment.timestamp() - now))
        expires = expires.replace(microsecond=0)
    before, after = _around_value(expires, max_age, *attributes)
    config: t.Any = app.config
    value = HiddenText(sign())
    # What werkzeug warns of, and what a class of the application's own does besides.
    length = len(before) + len(value) + len(after)
    is_special = 0 < config["MAX_COOKIE_SIZE"] < length
    if is_special or type(response) is not Response:
        named = _named(attributes)
        response.set_cookie(value=value, expires=expires, max_age=max_age, **named)
    else:
        response.headers.add("Set-Cookie", f"{before}{value}{after}")
    return bool(attributes[_SECURE])


def delete_cookie(
    interface: SessionInterface, app: Flask, response: Response, suffix: str = ""
) -> None:
    """Delete the cookie.

    With the attributes that it was set with: browsers ignore the deletion otherwise.

    :param suffix: What follows the name of the session's cookie, in that of another.
    """
    response.delete_cookie(**attributes_of(interface, app, suffix))


def attributes_of(
    interface: SessionInterface, app: Flask, suffix: str = ""
) -> dict[str, t.Any]:
    """Return the attributes of the cookie, by the names that werkzeug has for them.

    :param suffix: As for :func:`delete_cookie`.
    """
    named = _named(_attributes(interface, app))
    return named | {"key": named["key"] + suffix}


# By the names that werkzeug has for them.
_ATTRIBUTES = (
    *("key", "domain", "path", "secure"),
    *("partitioned", "samesite", "httponly"),
)
_SECURE = _ATTRIBUTES.index("secure")


def _attributes(interface: SessionInterface, app: Flask) -> tuple[t.Any, ...]:
    return (
        interface.get_cookie_name(app),
        interface.get_cookie_domain(app),
        interface.get_cookie_path(app),
        interface.get_cookie_secure(app),
        interface.get_cookie_partitioned(app),
        interface.get_cookie_samesite(app),
        interface.get_cookie_httponly(app),
    )


def _named(attributes: cabc.Iterable[t.Any]) -> dict[str, t.Any]:
    return dict(zip(_ATTRIBUTES, attributes, strict=True))


# Writing a header takes three times as long as everything else that sets the cookie,
# and but for the value, the next response gets the same one.
@functools.lru_cache(_HEADERS, typed=True)
def _around_value(
    expires: t.Any, max_age: int | None, key: str, *attributes: t.Any
) -> tuple[str, str]:
    """Return what stands before and after the value in the ``Set-Cookie`` header."""
    named = _named((key, *attributes))
    header = dump_cookie(
        value="", expires=expires, max_age=max_age, max_size=0, **named
    )
    length = len(f"{key}=".encode())
    return header[:length], header[length:]


def find_values(header: str, name: str) -> list[str]:
    """Return the values that a ``Cookie`` header has for a name, in their order.

    As browsers write the header (RFC 6265, section 5.4): pairs are separated by
    semicolons, whatever quotes there are. A parser that knows quotes takes all between
    two of them for one value, so whoever can plant two cookies could hide the session's
    between them. Takes a fifth of the time that such a parser does. Only a whole value
    may be in quotes (section 4.1.1), which some clients that are no browsers do.
    """
    values: list[str] = []
    for part in header.split(";"):
        if name not in part:
            continue
        key, _, value = part.partition("=")
        # Not all that is white to Python: to a browser, that is part of a name, and so
        # a way around what it has decided about names that begin with "__Host-".
        if key.strip(" \t") == name:
            value = value.strip(" \t")
            if value[:1] == '"' and value[-1:] == '"':
                value = value[1:-1]
            values.append(value)
    return values


def is_well_formed(value: str) -> bool:
    """Whether a cookie looks like one of ours, whatever its signature is worth."""
    id, _, rest = value[:_MAX_LENGTH].partition(".")
    state, _, signature = rest.partition(".")
    return bool(id and signature and _STATE.fullmatch(state))


def claims_permanent(value: str) -> bool:
    """Whether a cookie says, unverified, that its session is permanent.

    Only a hint, to spare the verification of a cookie that nothing depends on.
    """
    if ".p" not in value:
        return False
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
