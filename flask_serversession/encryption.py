"""Encryption of payloads: AES-256-GCM, with keys from ``SESSION_ENCRYPTION_KEY``."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import typing as t

from .errors import ConfigurationError
from .errors import RecordError

_NONCE_SIZE = 12
_TAG_SIZE = 16
_KEY_SIZE = 32
_SUBKEY_INFO = b"flask-serversession record key 1\0"


class Cipher:
    """Encrypts payloads, bound to the key of their record and to what stays readable.

    Data that was changed, or copied from another record, is refused. Thread-safe.

    :param keys: 32 bytes each, newest first: the first encrypts, all decrypt.
    :raises ConfigurationError: if the cryptography package is not installed.
    """

    def __init__(self, keys: t.Sequence[bytes]) -> None:
        if any(len(key) != _KEY_SIZE for key in keys):
            raise ValueError(f"An encryption key has {_KEY_SIZE} bytes.")
        self._keys = tuple(keys)
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigurationError(
                "'SESSION_ENCRYPTION_KEY' needs the cryptography package. Install it"
                ' with: pip install "flask-serversession[encryption]"',
                "SESSION_ENCRYPTION_KEY",
            ) from error
        self._aesgcm = AESGCM
        self._invalid_tag = InvalidTag

    def encrypt(self, payload: bytes, bound: bytes, key: str) -> bytes:
        """Return nonce, ciphertext and tag.

        :param bound: What stays readable, and is noticed when it changes.
        """
        nonce = os.urandom(_NONCE_SIZE)
        cipher = self._aesgcm(_subkey(self._keys[0], key))
        return nonce + cipher.encrypt(nonce, payload, _associated(bound, key))

    def decrypt(self, sealed: bytes, bound: bytes, key: str) -> bytes:
        """Read back what :meth:`encrypt` returned.

        :raises RecordError: with the reason ``"damaged"`` if it is cut off;
            ``"unreadable"`` if no key decrypts it.
        """
        if len(sealed) < _NONCE_SIZE + _TAG_SIZE:
            raise RecordError("The encrypted payload is truncated.", "damaged")
        nonce, ciphertext = sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:]
        associated = _associated(bound, key)
        for master in self._keys:
            cipher = self._aesgcm(_subkey(master, key))
            try:
                return cipher.decrypt(nonce, ciphertext, associated)
            except self._invalid_tag:
                continue
        raise RecordError(
            "The payload cannot be decrypted: no key in 'SESSION_ENCRYPTION_KEY' fits,"
            " or it was changed, or it belongs to another record.",
            "unreadable",
        )


def parse_encryption_key(value: object) -> bytes:
    """Return the 32 bytes of an encryption key.

    :param value: The bytes themselves, or their URL-safe base64 as text or bytes, as
        returned by ``cryptography.fernet.Fernet.generate_key()``.
    :raises ValueError: if it is neither. The message does not quote the value.
    """
    if isinstance(value, bytes) and len(value) == _KEY_SIZE:
        return value
    if isinstance(value, (str, bytes)):
        try:
            text = value.encode("ascii") if isinstance(value, str) else value
            key = base64.b64decode(text.strip(), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            key = b""
        if len(key) == _KEY_SIZE:
            return key
    raise ValueError(
        "An encryption key is 32 bytes, or the URL-safe base64 of 32 bytes. Make one"
        ' with: python -c "import base64, os;'
        ' print(base64.urlsafe_b64encode(os.urandom(32)).decode())"'
    )


def _subkey(master: bytes, key: str) -> bytes:
    # One subkey per record: with random nonces, a key must not encrypt more than 2**32
    # times (NIST SP 800-38D, section 8.3). All sessions together could reach that; a
    # single one does not.
    return hmac.digest(master, _SUBKEY_INFO + _key_bytes(key), "sha256")


def _associated(bound: bytes, key: str) -> bytes:
    # Unambiguous, since what is bound says how long it is.
    return bound + _key_bytes(key)


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
