"""What browsers get to sign, and what they get for it: stateless, under a secret.

A *challenge* says when it was made and what for. Who signs it gets a *proof*, the
value of a cookie: that until then, the key that belongs to a point is at hand. It
opens nothing but a session whose record names that point. Both are made with
``SECRET_KEY`` and accepted with its fallbacks.
"""

from __future__ import annotations

import re
import secrets

from ..cookie import CookieSigner

#: By how much clocks of servers may differ, in seconds.
SKEW = 60.0
#: How long a browser may take to sign a challenge, in seconds.
CHALLENGE_AGE = 300.0

_CHALLENGE = b"flask_serversession.device.challenge"
_PROOF = b"flask_serversession.device.proof"
_SEALED = re.compile(r"([0-9a-f]{1,12})\.(?:([\w-]{12})\.)?([\w-]{43})", re.ASCII)


def make_challenge(signer: CookieSigner, subject: str, now: float) -> str:
    """Return what a browser has to sign.

    :param subject: What for. The challenge does not show it.
    """
    text = f"{int(now):x}.{secrets.token_urlsafe(9)}"
    return f"{text}.{signer.attest(f'{text}.{subject}', _CHALLENGE)}"


def is_challenge(
    signer: CookieSigner, challenge: str, subject: str, now: float, max_age: float
) -> bool:
    """Whether this application has made a challenge for a subject, lately.

    :param max_age: In seconds.
    """
    if (match := _SEALED.fullmatch(challenge)) is None:
        return False
    made_at, nonce, seal = match.groups()
    if nonce is None or not -SKEW <= now - int(made_at, 16) <= max_age + SKEW:
        return False
    return signer.attests(f"{made_at}.{nonce}.{subject}", seal, _CHALLENGE)


def make_proof(signer: CookieSigner, identifier: str, until: float) -> str:
    """Return the value of a cookie: the key of that name is at hand until then."""
    text = f"{int(until):x}"
    return f"{text}.{signer.attest(f'{text}.{identifier}', _PROOF)}"


def end_of_proof(signer: CookieSigner, proof: str, identifier: str) -> float:
    """Return until when a proof of the key of that name is good; 0 if it is none."""
    if (match := _SEALED.fullmatch(proof)) is None:
        return 0.0
    until, nonce, seal = match.groups()
    if nonce is None and signer.attests(f"{until}.{identifier}", seal, _PROOF):
        return float(int(until, 16))
    return 0.0
