from __future__ import annotations

import base64
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

from flask_serversession.envelope import Envelope
from flask_serversession.envelope import Sealer
from flask_serversession.envelope import parse_encryption_key
from flask_serversession.errors import ConfigurationError
from flask_serversession.errors import RecordError
from flask_serversession.record import TOMBSTONE_DATA

# Other work on the same machine must not fail a test.
without_deadline = settings(deadline=None)

OLD = bytes(range(32))
NEW = bytes(range(1, 33))
ENVELOPE = Envelope(b"a secret payload", b"m", 3600.0, 1_700_000_000.25)
HEADER_SIZE = 28


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
    key=st.text(st.characters(exclude_categories=())),
    keys=st.sampled_from([(), (NEW,), (NEW, OLD)]),
)
def test_what_is_sealed_is_opened(
    payload: bytes,
    serializer: bytes,
    lifetime: float | None,
    issued_at: float,
    key: str,
    keys: tuple[bytes, ...],
) -> None:
    envelope = Envelope(payload, serializer, lifetime, issued_at)
    sealer = Sealer(keys)
    assert sealer.open(sealer.seal(envelope, key), key) == envelope


def test_any_key_of_a_record_will_do() -> None:
    sealer = Sealer([NEW])
    for key in ("", "\0", "\ud800", "x" * 10_000):
        assert sealer.open(sealer.seal(ENVELOPE, key), key) == ENVELOPE


def test_the_layout_is_as_documented() -> None:
    data = Sealer().seal(ENVELOPE, "k")
    assert data[:4] == b"\x01m\x00\x00"
    assert data[12:28].hex() == "40ac20000000000041d954fc40100000"
    assert data[HEADER_SIZE:] == ENVELOPE.payload
    sealed = Sealer([NEW]).seal(ENVELOPE, "k")
    assert sealed[:4] == b"\x01m\x01\x00"
    assert sealed[12:28] == data[12:28]
    assert len(sealed) == len(data) + 12 + 16


def test_what_former_versions_encrypted_is_decrypted() -> None:
    data = bytes.fromhex(
        "016d0100 2e36731c938fa49f 40ac200000000000 41d954fc40100000"
        "b4874a927897d04d6b031801 849186176c0da13dd0bb7f27829563fb"
        "e48ea898a1e43d2d201d155e43ad790f"
    )
    assert Sealer([NEW]).open(data, "k") == ENVELOPE


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
    assert reason_of(sealer, b"\x02" + data[1:]) == "newer"
    assert reason_of(sealer, b"\x02") == "newer"
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
        (plain, b"\x02", "The envelope has format 2; this version knows 1."),
        (plain, data[:27], "The envelope is truncated."),
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
        (sealed, secret[:55], "The encrypted payload is truncated."),
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
    for candidate in (data, b"\x01m\x00\x00" + data, b"\x01m\x01\x00" + data):
        try:
            envelope = sealer.open(candidate, "k")
        except RecordError:
            continue
        assert not keys
        assert math.isfinite(envelope.issued_at)


def test_an_encrypted_payload_cannot_be_read_in_the_store() -> None:
    assert b"secret" not in Sealer([NEW]).seal(ENVELOPE, "k")


def test_the_newest_key_encrypts_and_older_ones_still_decrypt() -> None:
    rotated = Sealer([NEW, OLD])
    assert rotated.open(Sealer([OLD]).seal(ENVELOPE, "k"), "k") == ENVELOPE
    data = rotated.seal(ENVELOPE, "k")
    assert Sealer([NEW]).open(data, "k") == ENVELOPE
    assert reason_of(Sealer([OLD]), data) == "unreadable"


def test_an_encrypted_record_without_keys_is_unreadable() -> None:
    data = Sealer([NEW]).seal(ENVELOPE, "k")
    with pytest.raises(RecordError, match="'SESSION_ENCRYPTION_KEY' is not set"):
        Sealer().open(data, "k")
    assert reason_of(Sealer(), data) == "unreadable"


def test_a_planted_record_that_is_not_encrypted_is_refused() -> None:
    data = Sealer().seal(ENVELOPE, "k")
    with pytest.raises(RecordError, match="is not encrypted"):
        Sealer([NEW]).open(data, "k")
    assert reason_of(Sealer([NEW]), data) == "unreadable"


def test_a_record_under_another_records_key_is_refused() -> None:
    sealer = Sealer([NEW])
    one, other = sealer.seal(ENVELOPE, "one"), sealer.seal(ENVELOPE, "other")
    assert reason_of(sealer, one, "other") == "unreadable"
    assert reason_of(sealer, other, "one") == "unreadable"


def test_every_changed_bit_of_an_encrypted_record_is_noticed() -> None:
    sealer = Sealer([NEW])
    data = sealer.seal(ENVELOPE, "k")
    for index in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            reason = reason_of(sealer, bytes(changed))
            if index >= HEADER_SIZE or index in (1, 4, 11):
                assert reason == "unreadable"


def test_a_header_cannot_be_put_before_another_payload() -> None:
    sealer = Sealer([NEW])
    older = sealer.seal(ENVELOPE, "k")
    newer = sealer.seal(dataclasses.replace(ENVELOPE, lifetime=None), "k")
    assert reason_of(sealer, newer[:HEADER_SIZE] + older[HEADER_SIZE:]) == "unreadable"


def test_each_record_is_encrypted_with_a_key_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cryptography.hazmat.primitives.ciphers import aead

    used: list[bytes] = []

    class Recorder:
        def __init__(self, key: bytes) -> None:
            used.append(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            return bytes(16)

    monkeypatch.setattr(aead, "AESGCM", Recorder)
    sealer = Sealer([NEW])
    for key in ("one", "other", "one"):
        sealer.seal(ENVELOPE, key)
    assert used[0] == used[2] != used[1]
    assert NEW not in used
    assert {len(key) for key in used} == {32}


@pytest.mark.parametrize("keys", [[b"short"], [NEW, NEW[:-1]], [NEW + b"\0"]])
def test_a_key_of_another_length_is_refused(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"^An encryption key has 32 bytes\.$"):
        Sealer(keys)


def test_a_missing_package_is_reported_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigurationError) as caught:
        Sealer([NEW])
    assert caught.value.option == "SESSION_ENCRYPTION_KEY"
    assert str(caught.value) == (
        "'SESSION_ENCRYPTION_KEY' needs the cryptography package. Install it with:"
        ' pip install "flask-serversession[encryption]"'
    )
    Sealer()


def test_cryptography_is_not_imported_without_keys() -> None:
    code = (
        "import sys; from flask_serversession.envelope import Sealer; Sealer();"
        "sys.exit('cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "value",
    [
        NEW,
        base64.urlsafe_b64encode(NEW),
        base64.urlsafe_b64encode(NEW).decode(),
        base64.urlsafe_b64encode(NEW).decode() + "\n",
    ],
)
def test_an_encryption_key_is_raw_bytes_or_their_base64(value: object) -> None:
    assert parse_encryption_key(value) == NEW


def test_a_key_that_fernet_made_is_taken() -> None:
    from cryptography.fernet import Fernet

    assert len(parse_encryption_key(Fernet.generate_key())) == 32


@without_deadline
@given(st.binary(min_size=32, max_size=32))
def test_every_key_survives_its_base64(key: bytes) -> None:
    assert parse_encryption_key(base64.urlsafe_b64encode(key).decode()) == key


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "",
        b"",
        "correct horse battery staple 123",
        "pässwörter-" * 4,
        b"31 bytes, which is one too few!",
        base64.urlsafe_b64encode(NEW[:-1]),
        base64.urlsafe_b64encode(NEW + b"\0").decode(),
        "*" * 44,
        base64.urlsafe_b64encode(NEW).decode().replace("B", "*B", 1),
        [NEW],
        bytearray(NEW),
    ],
)
def test_anything_else_is_refused_without_being_quoted(value: t.Any) -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        parse_encryption_key(value)
    message = str(caught.value)
    assert message == (
        "An encryption key is 32 bytes, or the URL-safe base64 of 32 bytes. Make one"
        ' with: python -c "import base64, os;'
        ' print(base64.urlsafe_b64encode(os.urandom(32)).decode())"'
    )
    if isinstance(value, str) and value:
        assert value not in message


def test_the_command_in_the_message_makes_a_key() -> None:
    with pytest.raises(ValueError, match="Make one with") as caught:
        parse_encryption_key("")
    code = str(caught.value).partition('-c "')[2].removesuffix('"')
    made = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert len(parse_encryption_key(made.stdout)) == 32


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_repeat_the_nonces() -> None:
    code = """
import os
from flask_serversession.envelope import Envelope, Sealer
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
