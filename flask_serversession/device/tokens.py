"""What a browser signs with the key of its device: a JSON Web Token, and nothing more.

The only reader of these, and written for them alone: one algorithm, ES256, one type,
and a key only where one is registered. Everything else is no token.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import typing as t

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

#: The longest that is looked at, in characters. Chromium's take a third of it.
MAX_LENGTH = 2_048

_TYPE = "dbsc+jwt"
_NUMBER_SIZE = 32  # of the curve P-256
_SHAPE = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_POINT = re.compile(r"[\w-]{44}", re.ASCII)
_ES256 = ec.ECDSA(hashes.SHA256())


class Token(t.NamedTuple):
    """A token whose signature nobody has verified yet."""

    #: What the server had asked to be signed: the claim ``jti``.
    challenge: str
    #: The key that came with it, as :func:`read_point` returns it; ``None`` without.
    point: bytes | None
    signed: bytes
    signature: bytes

    def is_signed_by(self, point: bytes) -> bool:
        """Whether the key that belongs to a point has signed it."""
        r, s = self.signature[:_NUMBER_SIZE], self.signature[_NUMBER_SIZE:]
        signature = encode_dss_signature(
            int.from_bytes(r, "big"), int.from_bytes(s, "big")
        )
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            key.verify(signature, self.signed, _ES256)
        except (ValueError, InvalidSignature):  # no point of the curve
            return False
        return True


def unquote(value: str) -> str:
    """Return a header's value without the quotes that the draft has, and no browser."""
    value = value.strip(" \t")
    is_quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1] if is_quoted else value


def read_token(text: str) -> Token | None:
    """Read a token; ``None`` if it is not one of those that browsers make here."""
    if len(text) > MAX_LENGTH or _SHAPE.fullmatch(text) is None:
        return None
    signed, _, signature = text.rpartition(".")
    try:
        header, payload = map(_read_object, signed.split("."))
        if header.get("typ") != _TYPE or header.get("alg") != "ES256":
            return None
        if "crit" in header:  # RFC 7515, section 4.1.11: nothing of it is understood
            return None
        challenge = payload.get("jti")
        if not isinstance(challenge, str):
            return None
        point = _point_of(header["jwk"]) if "jwk" in header else None
        token = Token(challenge, point, signed.encode("ascii"), _decode(signature))
    except (ValueError, RecursionError):
        return None
    return token if len(token.signature) == 2 * _NUMBER_SIZE else None


def read_point(text: str) -> bytes | None:
    """Read a point as :func:`write_point` writes it, which is a session's public name.

    :return: ``None`` if it is none. It may still be no point of the curve.
    """
    if _POINT.fullmatch(text) is None:
        return None
    point = base64.urlsafe_b64decode(text)
    return point if point[0] in (2, 3) else None


def write_point(point: bytes) -> str:
    """Return a compressed point as text: 44 characters."""
    return base64.urlsafe_b64encode(point).decode("ascii")


def _point_of(jwk: t.Any) -> bytes:
    """Return the compressed point of a public key.

    :raises ValueError: if it is another kind of key, or none at all.
    """
    if not isinstance(jwk, dict):
        raise ValueError
    key = t.cast("dict[str, t.Any]", jwk)
    x, y = key.get("x"), key.get("y")
    if (key.get("kty"), key.get("crv")) != ("EC", "P-256") or "d" in key:
        raise ValueError
    if not isinstance(x, str) or not isinstance(y, str):
        raise ValueError
    abscissa, ordinate = _decode(x), _decode(y)
    if not len(abscissa) == len(ordinate) == _NUMBER_SIZE:
        raise ValueError
    # Raises for what is not on the curve.
    ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), b"\4" + abscissa + ordinate
    )
    return bytes([2 + ordinate[-1] % 2]) + abscissa


def _read_object(part: str) -> dict[str, t.Any]:
    value: t.Any = json.loads(_decode(part), object_pairs_hook=_without_repetition)
    if not isinstance(value, dict):
        raise ValueError
    return t.cast("dict[str, t.Any]", value)


def _without_repetition(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    """Make a dict, unless a name stands twice: others could read the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _decode(text: str) -> bytes:
    """Decode base64url without padding, in its only spelling.

    :raises ValueError: if it is not that.
    """
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError from error
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode("ascii") != text:
        raise ValueError
    return decoded
