"""What lies in :attr:`.Record.data`: the payload, sealed if it is to be secret.

.. code-block:: text

    offset  length
         0       1  format of the envelope
         1       1  code of the serializer
         2       1  flags: 1 if encrypted
         3       1  reserved, 0
         4       8  nonce of the write
        12       8  lifetime of the session in seconds, a float; NaN if it has none
        20       8  when the id was issued, in seconds since the epoch, a float
        28          the payload; if encrypted: nonce (12), ciphertext, tag (16)

Numbers are big-endian. The checksum against damage is :mod:`.record`'s.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hmac
import math
import os
import struct
import typing as t

from .errors import ConfigurationError
from .errors import RecordError
from .nonce import make_nonce

#: The format written by this version. Whoever raises it raises that of :mod:`.record`
#: too: logging out deletes a record without looking inside.
FORMAT = 1

_ENCRYPTED = 1
# A little more than session.lifetime takes. Nobody else can say how long it lives, and
# dates end at some time.
_LONGEST_LIFETIME = 1001 * 366 * 86_400.0
_HEADER = struct.Struct(">BcBBQdd")
_NONCE_SIZE = 12
_TAG_SIZE = 16
_KEY_SIZE = 32
_SUBKEY_INFO = b"flask-serversession record key 1\0"


@dataclasses.dataclass(slots=True)
class Envelope:
    """The payload of a session, and what the session itself needs to remember.

    Never changed once it is made.
    """

    #: What the serializer wrote. Never shown: it holds session values.
    payload: bytes = dataclasses.field(repr=False)
    #: One byte: which serializer that was, its :attr:`.CodedSerializer.code`.
    serializer: bytes
    #: The session's own idle timeout in seconds; ``None`` if the application's holds.
    lifetime: float | None
    #: When the session's id was issued, in seconds since the epoch.
    issued_at: float


class Sealer:
    """Turns envelopes into the data of records and back.

    With keys, payloads are encrypted with AES-256-GCM and bound to the record's key
    and to their header: data that was copied from another record, or changed, is
    refused, and so is data that is not encrypted, which whoever can write to the store
    could otherwise plant. The header is readable without keys.

    Safe to use from several threads at once.

    :param keys: 32 bytes each, newest first: the first encrypts, all decrypt. None
        leaves payloads unencrypted.
    :raises ConfigurationError: if there are keys, but no package to use them with.
    """

    def __init__(self, keys: t.Sequence[bytes] = ()) -> None:
        if any(len(key) != _KEY_SIZE for key in keys):
            raise ValueError(f"An encryption key has {_KEY_SIZE} bytes.")
        self._keys = tuple(keys)
        if not keys:
            return
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

    def seal(self, envelope: Envelope, key: str) -> bytes:
        """Give the data to store.

        No two calls give the same bytes. That lets a write whose acknowledgement was
        lost with its connection be recognised as our own in what is stored now.

        :param key: The key of the record, which encrypted data is bound to.
        """
        header = _HEADER.pack(
            FORMAT,
            envelope.serializer,
            _ENCRYPTED if self._keys else 0,
            0,
            make_nonce(),
            math.nan if envelope.lifetime is None else envelope.lifetime,
            envelope.issued_at,
        )
        if not self._keys:
            return header + envelope.payload
        nonce = os.urandom(_NONCE_SIZE)
        cipher = self._aesgcm(_subkey(self._keys[0], key))
        return (
            header
            + nonce
            + cipher.encrypt(nonce, envelope.payload, _bound_to(header, key))
        )

    def open(self, data: bytes, key: str) -> Envelope:
        """Read back what :meth:`seal` gave.

        :param key: The key of the record that the data was found in.
        :raises RecordError: with the reason ``"newer"`` for a format that only a later
            version of the library knows; ``"damaged"`` if the data is cut off or
            makes no sense; ``"unreadable"`` if it is encrypted and no key opens it,
            or if it is not encrypted although there are keys.
        """
        if data and data[0] > FORMAT:
            raise RecordError(
                f"The envelope has format {data[0]}; this version knows {FORMAT}.",
                "newer",
            )
        if len(data) < _HEADER.size:
            raise RecordError("The envelope is truncated.", "damaged")
        format, serializer, flags, reserved, _, lifetime, issued_at = (
            _HEADER.unpack_from(data)
        )
        if (
            format != FORMAT
            or flags & ~_ENCRYPTED
            or reserved
            or not (math.isnan(lifetime) or 0 < lifetime <= _LONGEST_LIFETIME)
            or not math.isfinite(issued_at)
        ):
            raise RecordError("The envelope's header makes no sense.", "damaged")
        if flags & _ENCRYPTED:
            payload = self._decrypt(data, key)
        elif self._keys:
            raise RecordError(
                "The payload is not encrypted, although 'SESSION_ENCRYPTION_KEY' is"
                " set.",
                "unreadable",
            )
        else:
            payload = data[_HEADER.size :]
        return Envelope(
            payload=payload,
            serializer=serializer,
            lifetime=None if math.isnan(lifetime) else lifetime,
            issued_at=issued_at,
        )

    def _decrypt(self, data: bytes, key: str) -> bytes:
        if not self._keys:
            raise RecordError(
                "The payload is encrypted, and 'SESSION_ENCRYPTION_KEY' is not set.",
                "unreadable",
            )
        start = _HEADER.size + _NONCE_SIZE
        if len(data) < start + _TAG_SIZE:
            raise RecordError("The encrypted payload is truncated.", "damaged")
        nonce = data[_HEADER.size : start]
        sealed = data[start:]
        associated = _bound_to(data[: _HEADER.size], key)
        for master in self._keys:
            cipher = self._aesgcm(_subkey(master, key))
            try:
                return cipher.decrypt(nonce, sealed, associated)
            except self._invalid_tag:
                continue
        raise RecordError(
            "The payload cannot be decrypted: no key in 'SESSION_ENCRYPTION_KEY' fits,"
            " or it was changed, or it belongs to another record.",
            "unreadable",
        )


def parse_encryption_key(value: object) -> bytes:
    """Give the 32 bytes of an encryption key.

    :param value: The bytes themselves, or their URL-safe base64 as text or bytes, as
        ``cryptography.fernet.Fernet.generate_key()`` gives it.
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
    # A key of its own for each record: with random nonces, one key must not encrypt
    # more than 2**32 times (NIST SP 800-38D, section 8.3), which all sessions together
    # could reach, and no single one does.
    return hmac.digest(master, _SUBKEY_INFO + _key_bytes(key), "sha256")


def _bound_to(header: bytes, key: str) -> bytes:
    # The header has a fixed size, so no two pairs give the same bytes.
    return header + _key_bytes(key)


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
