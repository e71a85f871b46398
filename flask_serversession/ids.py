"""The three names of a session: its secret id, its stored key, its public handle."""

from __future__ import annotations

import hashlib
import re
import secrets

# What werkzeug writes into a cookie without quoting. The shortest length allows 64
# bits of entropy in hex: OWASP Session Management Cheat Sheet, "Session ID Entropy".
_ID = re.compile(r"[\w!#$%&'()*+\-./:<=>?@\[\]^`{|}~]{16,256}", re.ASCII)
# What follows the prefix in a key.
_DIGEST = re.compile(r"[0-9a-f]{64}")


def generate_id() -> str:
    """Return a new id: 256 random bits, as 43 characters.

    OWASP Session Management Cheat Sheet, "Session ID Entropy", asks for 64 bits.
    """
    return secrets.token_urlsafe(32)


def check_id(id: object) -> str:
    """Return what a custom generator made, if it can be an id.

    :raises ValueError: if it is not 16 to 256 characters that a cookie takes
        unquoted. The message does not show it.
    """
    if not isinstance(id, str) or _ID.fullmatch(id) is None:
        raise ValueError(
            "'SESSION_ID_GENERATOR' returned something that cannot be an id; expected"
            " a str of 16 to 256 ASCII characters that a cookie takes unquoted, such"
            " as secrets.token_urlsafe(32)."
        )
    return id


def key_of(id: str, prefix: str) -> str:
    """Return the key under which the session with this id is stored.

    The key is the prefix and the hex SHA-256 of the id, so that nothing in the
    store works as a cookie. An id is 256 random bits, which no table of hashes can
    cover; salt or stretching would add nothing (rack-session does the same since
    CVE-2019-16782).
    """
    return prefix + hashlib.sha256(id.encode()).hexdigest()


def handle_of(key: str, prefix: str) -> str:
    """Return the public form of a key: the key without its prefix."""
    return key[len(prefix) :]


def key_of_handle(handle: object, prefix: str) -> str | None:
    """Return the key that a handle stands for; ``None`` if it is not a handle."""
    if not isinstance(handle, str) or _DIGEST.fullmatch(handle) is None:
        return None
    return prefix + handle


def is_key(key: str, prefix: str) -> bool:
    """Whether a key is one of :func:`key_of` with this prefix.

    False for another application's keys, even if its prefix starts with this one.
    """
    return key.startswith(prefix) and _DIGEST.fullmatch(key, len(prefix)) is not None
