from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import typing as t

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from flask_serversession.encryption import Cipher
from flask_serversession.errors import RecordError
from flask_serversession.payload import Device
from flask_serversession.payload import Envelope
from flask_serversession.payload import Sealer
from flask_serversession.payload import read_authenticated_at
from flask_serversession.payload import read_bound
from flask_serversession.payload import read_device
from flask_serversession.payload import read_issued_at
from flask_serversession.payload import write_device
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record

# Other work on the same machine must not fail a test.
without_deadline = settings(deadline=None)

OLD = bytes(range(32))
NEW = bytes(range(1, 33))
ENVELOPE = Envelope(b"a secret payload", b"m", 3600.0, 1_700_000_000.25, 1.5e9)
HEADER_SIZE = 36


def reason_of(sealer: Sealer, data: bytes, key: str = "k") -> str:
    with pytest.raises(RecordError) as caught:
        sealer.open(data, key)
    assert "secret payload" not in str(caught.value)
    return caught.value.reason


@pytest.fixture(params=[(), (NEW,)], ids=["plain", "encrypted"])
def sealer(request: pytest.FixtureRequest) -> Sealer:
    return Sealer(request.param)


@without_deadline
@given(
    payload=st.binary(max_size=100),
    serializer=st.binary(min_size=1, max_size=1),
    lifetime=st.none() | st.floats(0, 3e10, exclude_min=True),
    issued_at=st.floats(allow_nan=False, allow_infinity=False),
    authenticated_at=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    key=st.text(st.characters(exclude_categories=())),
    keys=st.sampled_from([(), (NEW,), (NEW, OLD)]),
)
def test_what_is_sealed_is_opened(
    payload: bytes,
    serializer: bytes,
    lifetime: float | None,
    issued_at: float,
    authenticated_at: float | None,
    key: str,
    keys: tuple[bytes, ...],
) -> None:
    envelope = Envelope(payload, serializer, lifetime, issued_at, authenticated_at)
    sealer = Sealer(keys)
    data = sealer.seal(envelope, key)
    assert sealer.open(data, key) == envelope
    assert read_authenticated_at(data) == authenticated_at


def test_the_layout_is_as_documented() -> None:
    data = Sealer().seal(ENVELOPE, "k")
    assert data[:4] == b"\x02m\x00\x00"
    assert data[12:28].hex() == "40ac20000000000041d954fc40100000"
    assert data[28:36].hex() == "41d65a0bc0000000"
    assert data[HEADER_SIZE:] == ENVELOPE.payload
    sealed = Sealer([NEW]).seal(ENVELOPE, "k")
    assert sealed[:4] == b"\x02m\x01\x00"
    assert sealed[12:36] == data[12:36]
    assert len(sealed) == len(data) + 12 + 16


DEVICE = Device(b"\2" + bytes(range(32)), 1_700_000_000.25)


def test_the_key_of_a_device_comes_after_the_header(sealer: Sealer) -> None:
    for device in (DEVICE, DEVICE._replace(bound_at=None)):
        envelope = dataclasses.replace(ENVELOPE, device=write_device(device))
        data = sealer.seal(envelope, "k")
        assert data[2] & 2
        assert data[36:69] == DEVICE.point
        assert sealer.open(data, "k") == envelope
        assert read_device(data) == device
        is_bound = device.bound_at is not None
        assert read_bound(data) == (tuple(device) if is_bound else None)
        assert read_authenticated_at(data) == 1.5e9
        for length in range(77):
            assert reason_of(sealer, data[:length]) == "damaged"
    data = sealer.seal(ENVELOPE, "k")
    assert read_device(data) is None
    assert read_bound(data) is None
    assert read_device(b"") is read_device(TOMBSTONE_DATA) is None


def test_a_changed_key_of_a_device_is_refused_with_its_payload() -> None:
    envelope = dataclasses.replace(ENVELOPE, device=write_device(DEVICE))
    data = Sealer([NEW]).seal(envelope, "k")
    for place in range(36, 77):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert reason_of(Sealer([NEW]), changed) == "unreadable"


def test_what_the_first_format_has_stored_is_read() -> None:
    former = dataclasses.replace(ENVELOPE, authenticated_at=None)
    header = (
        b"\x01m%b\x00" + bytes(8) + bytes.fromhex("40ac20000000000041d954fc40100000")
    )
    data = header % b"\x00" + ENVELOPE.payload
    assert Sealer().open(data, "k") == former
    assert read_authenticated_at(data) is None
    header %= b"\x01"
    # Not bound to its user, so whoever can write to the store might have changed that.
    sealed = header + Cipher([NEW]).encrypt(ENVELOPE.payload, header, "k")
    assert reason_of(Sealer([NEW]), sealed) == "unreadable"
    # What is encrypted cannot be passed off as older than it is, nor as younger.
    newer = Sealer([NEW]).seal(ENVELOPE, "k")
    assert reason_of(Sealer([NEW]), b"\x01" + newer[1:]) == "unreadable"
    moved = newer[:28] + bytes(8) + newer[36:]
    assert reason_of(Sealer([NEW]), moved) == "unreadable"


def test_a_session_without_a_lifetime_of_its_own_has_none(sealer: Sealer) -> None:
    envelope = dataclasses.replace(ENVELOPE, lifetime=None)
    assert sealer.open(sealer.seal(envelope, "k"), "k").lifetime is None


def test_a_tombstone_is_no_session(sealer: Sealer) -> None:
    with pytest.raises(RecordError) as info:
        sealer.open(TOMBSTONE_DATA, "k")
    assert info.value.reason == "damaged"


def test_no_two_writes_give_the_same_bytes(sealer: Sealer) -> None:
    assert len({sealer.seal(ENVELOPE, "k")[4:12] for _ in range(100)}) == 100


def test_the_payload_is_not_shown() -> None:
    assert "secret" not in repr(ENVELOPE)


def test_a_newer_format_is_told_from_damage(sealer: Sealer) -> None:
    data = sealer.seal(ENVELOPE, "k")
    assert reason_of(sealer, b"\x03" + data[1:]) == "newer"
    assert reason_of(sealer, b"\x03") == "newer"
    assert reason_of(sealer, b"\x00" + data[1:]) == "damaged"


def test_truncated_data_is_damaged(sealer: Sealer) -> None:
    data = sealer.seal(dataclasses.replace(ENVELOPE, payload=b""), "k")
    for length in range(len(data)):
        assert reason_of(sealer, data[:length]) == "damaged"


@pytest.mark.parametrize(
    ("start", "replacement"),
    [
        (2, b"\x02"),
        (3, b"\x01"),
        (12, b"\x7f\xf0" + bytes(6)),
        (12, bytes(8)),
        (12, b"\xbf\xf0" + bytes(6)),
        (12, b"\x42\x70" + bytes(6)),
        (20, b"\x7f\xf0" + bytes(6)),
        (20, b"\x7f\xf8" + bytes(6)),
        (28, b"\x7f\xf0" + bytes(6)),
    ],
)
def test_a_header_that_makes_no_sense_is_damaged(
    start: int, replacement: bytes
) -> None:
    data = bytearray(Sealer().seal(ENVELOPE, "k"))
    data[start : start + len(replacement)] = replacement
    assert reason_of(Sealer(), bytes(data)) == "damaged"


def test_the_messages_say_what_is_wrong() -> None:
    plain, sealed = Sealer(), Sealer([NEW])
    data, secret = plain.seal(ENVELOPE, "k"), sealed.seal(ENVELOPE, "k")
    for sealer, found, message in (
        (plain, b"\x03", "The envelope has format 3; this version knows 2."),
        (plain, data[:35], "The envelope is truncated."),
        (plain, b"\0" + data[1:], "The envelope's header makes no sense."),
        (
            sealed,
            data,
            "The payload is not encrypted, although 'SESSION_ENCRYPTION_KEY' is set.",
        ),
        (
            plain,
            secret,
            "The payload is encrypted, and 'SESSION_ENCRYPTION_KEY' is not set.",
        ),
        (sealed, secret[:63], "The encrypted payload is truncated."),
        (
            Sealer([OLD]),
            secret,
            "The payload cannot be decrypted: no key in 'SESSION_ENCRYPTION_KEY' fits,"
            " or it was changed, or it belongs to another record.",
        ),
    ):
        with pytest.raises(RecordError) as caught:
            sealer.open(found, "k")
        assert str(caught.value) == message


@without_deadline
@given(st.binary(max_size=100), st.sampled_from([(), (NEW,)]))
def test_garbage_raises_nothing_but_record_errors(
    data: bytes, keys: tuple[bytes, ...]
) -> None:
    sealer = Sealer(keys)
    starts = (b"", b"\x01m\x00\x00", b"\x02m\x00\x00", b"\x02m\x01\x00")
    for candidate in (start + data for start in starts):
        read_authenticated_at(candidate)
        try:
            envelope = sealer.open(candidate, "k")
        except RecordError:
            continue
        assert not keys
        assert math.isfinite(envelope.issued_at)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_repeat_the_nonces() -> None:
    code = """
import os
from flask_serversession.payload import Envelope, Sealer
sealer, envelope = Sealer(), Envelope(b"", b"m", None, 0.0)
reader, writer = os.pipe()
pid = os.fork()
nonce = sealer.seal(envelope, "k")[4:12]
if pid == 0:
    os.write(writer, nonce)
    os._exit(0)
os.waitpid(pid, 0)
assert os.read(reader, 8) != nonce
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_any_key_of_a_record_will_do() -> None:
    sealer = Sealer([NEW])
    for key in ("", "\0", "\ud800", "x" * 10_000):
        assert sealer.open(sealer.seal(ENVELOPE, key), key) == ENVELOPE


def test_what_moves_keeps_its_content_and_gets_the_time_of_what_it_replaces(
    sealer: Sealer,
) -> None:
    bound: dict[str, t.Any] = {"created_at": 5.0, "user": "ada"}
    other = dataclasses.replace(ENVELOPE, issued_at=7.0)
    record = Record(sealer.seal(ENVELOPE, "k", **bound), 3, 5.0, 6.0, 9.0, "ada", {})
    before = Record(sealer.seal(other, "to"), 8, 1.0, 1.0, 9.0, None, {})
    moved = sealer.move(record, "k", "to", before)
    assert dataclasses.replace(moved, data=b"", version=0) == dataclasses.replace(
        record, data=b"", version=0
    )
    assert moved.version == 9
    assert sealer.open(moved.data, "to", **bound) == other
    # Of what has no time of its own, it keeps its own.
    tombstone = dataclasses.replace(before, data=TOMBSTONE_DATA)
    moved = sealer.move(record, "k", "to", tombstone)
    assert sealer.open(moved.data, "to", **bound) == ENVELOPE


def test_when_an_id_was_issued_is_read_without_decrypting(sealer: Sealer) -> None:
    data = sealer.seal(ENVELOPE, "k")
    assert read_issued_at(data) == ENVELOPE.issued_at
    assert read_authenticated_at(data) == ENVELOPE.authenticated_at
    assert read_issued_at(data[:35]) is None
    assert read_issued_at(b"\1" + data[1:]) is None
    assert Device(b"point").bound_at is None
