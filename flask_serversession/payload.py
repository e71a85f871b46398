"""The bytes of :attr:`.Record.data`: a header, then the payload, encrypted or not.

.. code-block:: text

    offset  length
         0       1  format of the envelope
         1       1  code of the serializer
         2       1  flags: 1 if encrypted, 2 if there is a key of a device
         3       1  reserved, 0
         4       8  nonce of the write
        12       8  lifetime of the session in seconds, a float; NaN if it has none
        20       8  when the id was issued, in seconds since the epoch, a float
        28       8  when the user logged in, likewise; NaN if that is not known
        36      33  with that flag: the key, a compressed point of P-256
        69       8  when the session was bound to it, a float; NaN if it is not yet
                    the payload; if encrypted: nonce (12), ciphertext, tag (16)

Numbers are big-endian. The checksum against damage is :mod:`.record`'s. In format 1,
which is still read, the payload comes at 28.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import typing as t

from .encryption import Cipher
from .errors import RecordError
from .forks import unique_number
from .record import Record
from .record import encode_user

#: The format written by this version. Whenever it is raised, raise that of
#: :mod:`.record` too: log-out deletes a record without looking inside.
FORMAT = 2

_ENCRYPTED = 1
_HAS_DEVICE = 2
# Slightly above the maximum of session.lifetime; guards against corrupt values.
_LONGEST_LIFETIME = 1001 * 366 * 86_400.0
_HEADER = struct.Struct(">BcBBQddd")
_DEVICE = struct.Struct(">33sd")
_WITH_DEVICE = _HEADER.size + _DEVICE.size
_BOUND = struct.Struct(">d?I")
_FORMER_SIZE = 28  # of the header of format 1
_ISSUED_AT = 20  # where that lies
_MOMENT = struct.Struct(">d")
_NOT_A_TIME = _MOMENT.pack(math.nan)


class Device(t.NamedTuple):
    """A key that never leaves the browser's device: see :mod:`.device`."""

    #: Its public half: a compressed point of the curve P-256, 33 bytes. No secret.
    point: bytes
    #: When the session was bound to it, in seconds since the epoch; ``None`` while the
    #: browser has registered it and not used it.
    bound_at: float | None = None


@dataclasses.dataclass(slots=True)
class Envelope:
    """The payload of a session, and what the session itself needs to remember.

    Never changed once it is made.
    """

    #: What the serializer wrote. Never shown: it holds session values.
    payload: bytes = dataclasses.field(repr=False)
    #: One byte: which serializer that was, its :attr:`.CodedSerializer.code`.
    serializer: bytes
    #: The session's own idle timeout in seconds; ``None`` to use the application's.
    lifetime: float | None
    #: When the session's id was issued, in seconds since the epoch.
    issued_at: float
    #: When its user logged in or confirmed it last, likewise; ``None`` if nobody did,
    #: or nobody knows.
    authenticated_at: float | None = None
    #: The key that the session is bound to, or is about to be, as :func:`write_device`
    #: writes it; empty without one.
    device: bytes = b""


class Sealer:
    """Turns envelopes into the data of records and back. Thread-safe.

    With keys, payloads are encrypted and bound to the record's key and to their header,
    which stays readable. Unencrypted data is then refused: anyone who can write to the
    store could have planted it.

    :param keys: 32 bytes each, newest first: the first encrypts, all decrypt. None
        leaves payloads unencrypted.
    :raises ConfigurationError: if there are keys, but no package to use them with.
    """

    def __init__(self, keys: t.Sequence[bytes] = ()) -> None:
        self._cipher = Cipher(keys) if keys else None

    def seal(
        self,
        envelope: Envelope,
        key: str,
        *,
        created_at: float = 0.0,
        user: str | None = None,
    ) -> bytes:
        """Return the data to store.

        No two calls return the same bytes, so a write whose acknowledgement was lost
        with its connection can be recognized as our own in what is stored now.

        :param key: The key of the record, which encrypted data is bound to.
        :param created_at: What the record says; bound likewise.
        :param user: The same.
        """
        flags = 0 if self._cipher is None else _ENCRYPTED
        header = _HEADER.pack(
            FORMAT,
            envelope.serializer,
            flags | _HAS_DEVICE if envelope.device else flags,
            0,
            unique_number(),
            math.nan if envelope.lifetime is None else envelope.lifetime,
            envelope.issued_at,
            math.nan
            if envelope.authenticated_at is None
            else envelope.authenticated_at,
        )
        header += envelope.device
        if self._cipher is None:
            return header + envelope.payload
        bound = header + _bind(created_at, user)
        return header + self._cipher.encrypt(envelope.payload, bound, key)

    def open(
        self,
        data: bytes,
        key: str,
        *,
        created_at: float = 0.0,
        user: str | None = None,
    ) -> Envelope:
        """Read back what :meth:`seal` returned.

        :param key: The key of the record that the data was found in.
        :param created_at: What that record says.
        :param user: The same.
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
        is_former, device = data[:1] == b"\1", device_part(data)
        size = (_FORMER_SIZE if is_former else _HEADER.size) + len(device)
        if len(data) < size:
            raise RecordError("The envelope is truncated.", "damaged")
        fields = data[:size] + _NOT_A_TIME if is_former else data
        format, serializer, flags, reserved, _, *moments = _HEADER.unpack_from(fields)
        lifetime, issued_at, authenticated_at = moments
        has_lifetime = not math.isnan(lifetime)
        has_log_in = not math.isnan(authenticated_at)
        if (
            format == 0
            or flags & ~(_ENCRYPTED | _HAS_DEVICE if device else _ENCRYPTED)
            or reserved
            or (has_lifetime and not 0 < lifetime <= _LONGEST_LIFETIME)
            or not math.isfinite(issued_at)
            or math.isinf(authenticated_at)
        ):
            raise RecordError("The envelope's header makes no sense.", "damaged")
        payload = data[size:]
        if flags & _ENCRYPTED:
            bound = data[:size] + _bind(created_at, user)
            payload = self._decrypt(payload, bound, key)
        elif self._cipher is not None:
            raise RecordError(
                "The payload is not encrypted, although 'SESSION_ENCRYPTION_KEY' is"
                " set.",
                "unreadable",
            )
        return Envelope(
            payload,
            serializer,
            lifetime if has_lifetime else None,
            issued_at,
            authenticated_at if has_log_in else None,
            device,
        )

    def move(self, record: Record, key: str, to: str, instead_of: Record) -> Record:
        """Return a record as it has to be under another key, but for its meta.

        :param key: Under which it was found.
        :param instead_of: What is under the other key, or was.
        :raises RecordError: as :meth:`open`.
        """
        bound: dict[str, t.Any]
        bound = {"created_at": record.created_at, "user": record.user}
        envelope = self.open(record.data, key, **bound)
        issued_at = read_issued_at(instead_of.data)
        if issued_at is not None:
            envelope = dataclasses.replace(envelope, issued_at=issued_at)
        data = self.seal(envelope, to, **bound)
        return dataclasses.replace(record, data=data, version=instead_of.version + 1)

    def _decrypt(self, payload: bytes, bound: bytes, key: str) -> bytes:
        if self._cipher is None:
            raise RecordError(
                "The payload is encrypted, and 'SESSION_ENCRYPTION_KEY' is not set.",
                "unreadable",
            )
        return self._cipher.decrypt(payload, bound, key)


def _bind(created_at: float, user: str | None) -> bytes:
    """Return the fields of a record that its payload is bound to.

    Not the times that a touch moves without opening the payload.
    """
    name = b"" if user is None else encode_user(user)
    return _BOUND.pack(created_at, user is not None, len(name)) + name


def is_encrypted(data: bytes) -> bool:
    """Whether the payload in a record's data is encrypted, by its header."""
    return len(data) >= _FORMER_SIZE and bool(data[2] & _ENCRYPTED)


def read_authenticated_at(data: bytes) -> float | None:
    """Return when the user of a record logged in, from its data, without decrypting.

    :return: Seconds since the epoch; ``None`` if nobody did, or nobody knows.
    """
    return _read_moment(data, _FORMER_SIZE)


def read_issued_at(data: bytes) -> float | None:
    """Return when the id of a record was issued, likewise."""
    return _read_moment(data, _ISSUED_AT)


def _read_moment(data: bytes, offset: int) -> float | None:
    if len(data) < _HEADER.size or data[0] != FORMAT:
        return None
    (moment,) = _MOMENT.unpack_from(data, offset)
    return moment if math.isfinite(moment) else None


def write_device(device: Device) -> bytes:
    """Return the bytes that stand for the key of a device."""
    bound_at = math.nan if device.bound_at is None else device.bound_at
    return _DEVICE.pack(device.point, bound_at)


def read_device(data: bytes) -> Device | None:
    """Return the key of a device that a session has, from its data, likewise."""
    if not (part := device_part(data)):
        return None
    point, bound_at = _DEVICE.unpack(part)
    return Device(point, None if math.isnan(bound_at) else bound_at)


def read_bound(data: bytes) -> tuple[bytes, float] | None:
    """Return the key that a session is bound to, and since when, likewise.

    :return: ``None`` if it is bound to none.
    """
    if not (part := device_part(data)):
        return None
    bound: tuple[bytes, float] = _DEVICE.unpack(part)
    return None if math.isnan(bound[1]) else bound


def device_part(data: bytes) -> bytes:
    """Return what stands for the key of a device in a session's data; or nothing."""
    if len(data) < _WITH_DEVICE or not data[2] & _HAS_DEVICE or data[0] != FORMAT:
        return b""
    return data[_HEADER.size : _WITH_DEVICE]
