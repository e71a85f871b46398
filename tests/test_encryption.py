from __future__ import annotations

import base64
import dataclasses
import math
import subprocess
import sys
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_serversession.encryption import parse_encryption_key
from flask_serversession.errors import ConfigurationError
from flask_serversession.errors import RecordError
from flask_serversession.payload import Sealer

from .test_payload import ENVELOPE
from .test_payload import HEADER_SIZE
from .test_payload import NEW
from .test_payload import OLD
from .test_payload import reason_of
from .test_payload import without_deadline


def test_what_was_once_encrypted_is_decrypted() -> None:
    data = bytes.fromhex(
        "026d0100 6c554139c78b0ba7 40ac200000000000 "
        "41d954fc40100000 41d65a0bc0000000 "
        "6842618851c5326c941e291e4d7d60f86da6a2694d324cc44a6c1d0502e80882"
        "88e2c46e651427abbb22c0f6"
    )
    found = Sealer([NEW]).open(data, "k", created_at=1_700_000_000.25, user="ada")
    assert found == ENVELOPE


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


@pytest.mark.parametrize(
    "other",
    [
        {"user": "grace"},
        {"user": ""},
        {"user": None},
        {"user": "ada\0"},
        {"created_at": 5.0000001},
        {"created_at": -5.0},
        {"created_at": math.nan},
    ],
    ids=str,
)
def test_an_encrypted_payload_is_bound_to_user_and_beginning(
    other: dict[str, t.Any],
) -> None:
    sealer = Sealer([NEW])
    fields: dict[str, t.Any] = {"created_at": 5.0, "user": "ada"}
    data = sealer.seal(ENVELOPE, "k", **fields)
    assert sealer.open(data, "k", **fields) == ENVELOPE
    with pytest.raises(RecordError) as caught:
        sealer.open(data, "k", **{**fields, **other})
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("user", [None, "", "Zoë", "\ud800", "x" * 255])
def test_every_user_can_be_bound(user: str | None) -> None:
    sealer = Sealer([NEW])
    data = sealer.seal(ENVELOPE, "k", user=user)
    assert sealer.open(data, "k", user=user) == ENVELOPE


def test_what_is_bound_cannot_be_moved_from_the_user_to_the_key() -> None:
    sealer = Sealer([NEW])
    data = sealer.seal(ENVELOPE, "k", user="ada")
    with pytest.raises(RecordError):
        sealer.open(data, "ak", user="ad")


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
        "import sys; from flask_serversession.payload import Sealer; Sealer();"
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
