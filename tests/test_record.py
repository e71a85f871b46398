"""Records as bytes, and ids as keys: what is stored today is readable tomorrow."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import typing as t
import zlib

import pytest

from flask_serversession import record as layout
from flask_serversession.errors import RecordError
from flask_serversession.ids import is_key
from flask_serversession.ids import key_of_handle
from flask_serversession.record import Record
from flask_serversession.record import check_format
from flask_serversession.record import decode_record
from flask_serversession.record import decode_times
from flask_serversession.record import decode_user
from flask_serversession.record import encode_record
from flask_serversession.record import encode_times
from flask_serversession.record import encode_user
from flask_serversession.record import encode_version
from flask_serversession.record import frame
from flask_serversession.record import key_of
from flask_serversession.record import size_with_user
from flask_serversession.record import unframe

RECORD = Record(
    data=b"data",
    version=258,
    created_at=1_600_000_000.25,
    touched_at=1_700_000_000.5,
    expires_at=1_700_003_600.75,
    user="j\xf6e",
    meta={"ip": "::1"},
)
# What the backends hold of it since the first version.
STORED = bytes.fromhex(
    "fe0100008085a4c5 0000000000000102"  # magic, format, flags, checksum; version
    "41d954fc40200000 41d954ffc4300000 89ee2658"  # touched, expires, their checksum
    "41d7d78400100000 0004 000d"  # created, length of user, length of meta
    "6ac3b665 7b226970223a20223a3a31227d 64617461"  # user, meta, data
)
TOMBSTONE = Record(layout.TOMBSTONE_DATA, 1, 1.0, 2.0, 3.0)
STORED_TOMBSTONE = bytes.fromhex(
    "fe010100f50781c2 0000000000000001"
    "4000000000000000 4008000000000000 d8b73125"
    "3ff0000000000000 ffff 0000"
)
FRAMED = bytes.fromhex("fe010000 adf3f363 64617461")


def reason_of(function: t.Callable[[bytes], object], buffer: bytes) -> str:
    with pytest.raises(RecordError) as caught:
        function(buffer)
    return caught.value.reason


def test_what_former_versions_stored_is_read() -> None:
    assert decode_record(STORED) == RECORD
    assert decode_record(STORED_TOMBSTONE) == TOMBSTONE
    assert unframe(FRAMED) == b"data"
    assert decode_times(STORED) == (RECORD.touched_at, RECORD.expires_at)
    assert decode_user(STORED) == RECORD.user
    assert decode_user(STORED_TOMBSTONE) is None


def test_the_layout_is_that_of_the_first_format() -> None:
    # Its data is another one: see test_payload.py.
    encoded = encode_record(RECORD)
    assert encoded[:2] == b"\xfe\x02"
    assert (encoded[2:4], encoded[8:]) == (STORED[2:4], STORED[8:])
    assert decode_record(encoded) == RECORD
    assert frame(b"data") == b"\xfe\x02" + FRAMED[2:]


def test_a_tombstone_is_read_by_former_versions() -> None:
    assert encode_record(TOMBSTONE) == STORED_TOMBSTONE
    assert frame(layout.TOMBSTONE_DATA)[:2] == b"\xfe\x01"
    assert unframe(frame(b"")) == b""


@pytest.mark.parametrize("user", [None, "", "a", "\ud800", "a" * 0xFFFE])
@pytest.mark.parametrize("meta", [{}, {"a": ""}, {"a": "\ud800", "b": "c" * 60_000}])
@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256))])
def test_a_record_comes_back_as_it_was(
    user: str | None, meta: dict[str, str], data: bytes
) -> None:
    record = dataclasses.replace(
        RECORD, user=user, meta=meta, data=data, version=2**63 - 2
    )
    stored = encode_record(record)
    assert decode_record(stored) == record
    assert decode_user(stored) == user
    # Enough to read whose it is.
    size = size_with_user(stored[: layout.HEADER_SIZE])
    assert size == layout.HEADER_SIZE + len((user or "").encode(errors="surrogatepass"))
    assert decode_user(stored[:size]) == user
    assert decode_times(stored[: layout.HEADER_SIZE]) == (
        record.touched_at,
        record.expires_at,
    )


def test_the_parts_of_a_record_lie_where_backends_look_for_them() -> None:
    assert len(STORED_TOMBSTONE) == layout.HEADER_SIZE
    assert encode_version(258) == STORED[layout.VERSION_SLICE]
    times = encode_times(RECORD.touched_at, RECORD.expires_at)
    assert times == STORED[layout.TIMES_SLICE]
    assert STORED[layout.FLAGS_OFFSET] == 0
    assert STORED_TOMBSTONE[layout.FLAGS_OFFSET] == layout.TOMBSTONE_FLAG
    user = encode_user("j\xf6e")
    assert STORED[layout.USER_LENGTH_SLICE] == len(user).to_bytes(2, "big")
    assert STORED[layout.HEADER_SIZE :].startswith(user)
    no_user = layout.NO_USER.to_bytes(2, "big")
    assert STORED_TOMBSTONE[layout.USER_LENGTH_SLICE] == no_user


def test_the_times_may_be_rewritten_in_place() -> None:
    start, stop = layout.TIMES_SLICE.start, layout.TIMES_SLICE.stop
    touched = STORED[:start] + encode_times(5.5, 6.5) + STORED[stop:]
    assert decode_record(touched) == dataclasses.replace(
        RECORD, touched_at=5.5, expires_at=6.5
    )


def test_every_changed_bit_is_noticed() -> None:
    for place in range(len(STORED) * 8):
        damaged = bytearray(STORED)
        damaged[place // 8] ^= 1 << place % 8
        expected = "newer" if place // 8 == 1 and damaged[1] > 1 else "damaged"
        assert reason_of(decode_record, bytes(damaged)) == expected


def test_damage_to_the_times_is_noticed_by_who_reads_them_alone() -> None:
    for place in range(layout.TIMES_SLICE.start, layout.TIMES_SLICE.stop):
        damaged = bytearray(STORED)
        damaged[place] ^= 1
        assert reason_of(decode_times, bytes(damaged)) == "damaged"
    damaged = bytearray(STORED)
    damaged[-1] ^= 1
    assert decode_times(bytes(damaged)) == decode_times(STORED)


@pytest.mark.parametrize("read", [decode_record, decode_times, decode_user, unframe])
def test_what_is_cut_off_is_damaged(read: t.Callable[[bytes], object]) -> None:
    stored = FRAMED if read is unframe else STORED
    needed = {decode_times: layout.HEADER_SIZE, decode_user: size_with_user(STORED)}
    for length in range(needed.get(read, len(stored))):
        assert reason_of(read, stored[:length]) == "damaged"


@pytest.mark.parametrize(
    "read", [decode_record, decode_times, decode_user, size_with_user, unframe]
)
def test_foreign_data_is_damaged_and_a_newer_format_is_not(
    read: t.Callable[[bytes], object],
) -> None:
    for foreign in (b"", b"\xfe", b"\xfe\x00", b"\x80\x04", b"{}" * 40, b"\0" * 99):
        assert reason_of(read, foreign) == "damaged"
    for stored in (STORED, FRAMED):
        assert reason_of(read, b"\xfe\x00" + stored[2:]) == "damaged"
        assert reason_of(read, b"\xfd" + stored[1:]) == "damaged"
        assert reason_of(read, b"\xfe\x03" + stored[2:]) == "newer"
        assert reason_of(read, b"\xfe\xff") == "newer"


def resealed(stored: bytes, **changes: t.Any) -> bytes:
    """Give a record with other lengths, or another meta, and a right checksum."""
    buffer = bytearray(stored)
    if "user_length" in changes:
        buffer[44:46] = struct.pack(">H", changes["user_length"])
    if "meta_length" in changes:
        buffer[46:48] = struct.pack(">H", changes["meta_length"])
    if "rest" in changes:
        buffer[48:] = changes["rest"]
    checksum = zlib.crc32(buffer[0:4] + buffer[8:16] + buffer[36:])
    buffer[4:8] = struct.pack(">I", checksum)
    return bytes(buffer)


@pytest.mark.parametrize(
    "changes",
    [
        {"user_length": 0xFFFE},
        {"user_length": 0, "meta_length": 22},
        {"meta_length": 0xFFFF},
        {"meta_length": 12},
        {"meta_length": 18},
        {"user_length": 22, "meta_length": 0},
        {"user_length": 2},
        {"rest": b"\xff\xc3\xb6e" + b'{"ip": "::1"}data'},
        {"rest": b"j\xc3\xb6e" + b'["ip", "::1"]data'},
        {"rest": b"j\xc3\xb6e" + b"1            data"},
    ],
)
def test_nonsense_with_a_right_checksum_is_damaged(changes: dict[str, t.Any]) -> None:
    assert decode_record(resealed(STORED)) == RECORD
    assert reason_of(decode_record, resealed(STORED, **changes)) == "damaged"


def test_a_user_that_is_no_text_is_damaged() -> None:
    stored = resealed(STORED, rest=b"\xff\xff\xff\xff")
    assert reason_of(decode_user, stored) == "damaged"


def test_the_messages_say_what_is_wrong_and_show_nothing_of_the_record() -> None:
    for read, buffer, message in (
        (decode_record, STORED[:-1], "The record's checksum does not match."),
        (decode_record, STORED[:20], "The record is truncated."),
        (decode_record, b"foreign", "The record is not one of this library's."),
        (
            decode_record,
            resealed(STORED, user_length=0xFFFE, meta_length=0),
            "The record is truncated.",
        ),
        (decode_times, STORED[:20], "The record is truncated."),
        (
            decode_times,
            STORED[:16] + bytes(32),
            "The checksum of the record's times does not match.",
        ),
        (decode_user, STORED[:20], "The record is truncated."),
        (decode_user, STORED[:50], "The record is truncated."),
        (
            decode_user,
            resealed(STORED, rest=b"\xff" * 9),
            "The record's user is not valid UTF-8.",
        ),
        (unframe, FRAMED[:-1], "The record's checksum does not match."),
        (check_format, b"\xfe\x09", "The record has format 9; this version knows 2."),
        (
            decode_record,
            resealed(STORED, rest=b"j\xc3\xb6e" + b"x" * 17),
            "The record's header makes no sense.",
        ),
    ):
        with pytest.raises(RecordError) as caught:
            t.cast("t.Any", read)(buffer)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("field", "value", "longer"),
    [
        ("user", "a" * 0xFFFE, "a" * 0xFFFF),
        ("meta", {"a": "b" * (0xFFFF - 9)}, {"a": "b" * (0xFFFF - 8)}),
    ],
)
def test_user_and_meta_have_room_up_to_a_limit(
    field: str, value: t.Any, longer: t.Any
) -> None:
    record = dataclasses.replace(RECORD, **{field: value})
    assert decode_record(encode_record(record)) == record
    with pytest.raises(RecordError, match="longer than 64 KiB") as caught:
        encode_record(dataclasses.replace(RECORD, **{field: longer}))
    assert caught.value.reason == "damaged"
    assert str(caught.value) == "The record's user or meta is longer than 64 KiB."


def test_a_record_shows_no_value_and_cannot_be_changed() -> None:
    assert "data" not in repr(RECORD)
    assert "258" in repr(RECORD)
    for field in dataclasses.fields(RECORD):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(RECORD, field.name, None)


def test_a_record_is_nobodys_and_says_nothing_unless_told() -> None:
    assert TOMBSTONE.user is None
    assert TOMBSTONE.meta == {}
    assert layout.NO_META == {}
    assert decode_record(STORED_TOMBSTONE).meta is layout.NO_META


def test_only_what_was_written_as_a_tombstone_is_one() -> None:
    assert TOMBSTONE.is_tombstone
    assert not RECORD.is_tombstone
    assert not Record(b"", 1, 1.0, 2.0, 3.0).is_tombstone


# Keys


def test_a_key_is_prefix_and_hash_and_stays_the_same() -> None:
    handle = hashlib.sha256(b"an id").hexdigest()
    assert key_of("an id", "s:") == f"s:{handle}"
    assert key_of("an id", "") == handle
    assert key_of_handle(handle, "s:") == f"s:{handle}"


@pytest.mark.parametrize(
    "handle",
    [None, "", "a" * 63, "a" * 65, "A" * 64, "g" * 64, b"a" * 64, "a" * 64 + "\n", 1],
)
def test_what_is_no_handle_has_no_key(handle: object) -> None:
    assert key_of_handle(handle, "s:") is None


def test_keys_of_other_applications_are_not_ours() -> None:
    key = key_of("an id", "s:")
    assert is_key(key, "s:")
    assert is_key(key_of("an id", ""), "")
    for other in (
        f"s:2:{key[2:]}",
        key[2:],
        key[:-1],
        f"{key}0",
        f"{key}\n",
        key.upper(),
        f"t:{key[2:]}",
        "s:",
        "",
    ):
        assert not is_key(other, "s:"), other
    assert not is_key(key, "")


# -- step by step


LAST = 2**63 - 1


@pytest.mark.parametrize(
    ("version", "is_sensible"),
    [(-1, False), (0, True), (1, True), (LAST - 1, True), (LAST, False), ("1", False)],
)
def test_there_is_a_next_version(version: object, is_sensible: bool) -> None:
    assert layout.are_sensible(version, 1.0) is is_sensible


@pytest.mark.parametrize("field", ["created_at", "touched_at", "expires_at"])
def test_a_record_of_a_time_that_no_date_has_is_damaged(field: str) -> None:
    record = Record(b"data", 1, 1.0, 2.0, 3.0, None, {})
    assert decode_record(encode_record(record)) == record
    for moment in (float("nan"), 1e300):
        wrong = encode_record(dataclasses.replace(record, **{field: moment}))
        with pytest.raises(RecordError, match="header makes no sense") as caught:
            decode_record(wrong)
        assert caught.value.reason == "damaged"


def test_a_meta_of_any_depth_or_length_is_read_or_refused() -> None:
    size = 1024 * 1024
    longest = '"' + "x" * (size - 2) + '"'
    assert layout.parse_meta(longest) == longest[1:-1]
    with pytest.raises(ValueError, match=r"^$"):
        layout.parse_meta(longest + " ")
    with pytest.raises(ValueError, match=r"^$"):
        layout.parse_meta("[" * size)
