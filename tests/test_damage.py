"""What visitors notice of a record that is damaged: they go on, with a new session.

:mod:`tests.test_faults` has more kinds of damage to bytes. Here are those that may look
like something else, above all like a tombstone, and what only a column can hold.
"""

from __future__ import annotations

import dataclasses
import pickle
import struct
import typing as t
import zlib
from collections.abc import Iterator

import pytest
from flask import session

from flask_serversession import session as typed_session
from flask_serversession.backends import Capability
from flask_serversession.record import HEADER_SIZE
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import USER_LENGTH_SLICE
from flask_serversession.record import Record
from flask_serversession.record import _body_checksum
from flask_serversession.record import key_of

from .site import Action
from .site import Browser
from .site import Site
from .test_faults import RAW
from .test_faults import MakeConfig
from .test_faults import RawTable
from .test_faults import own_log

TABLES = ("sqlite", "postgresql", "mariadb")
BACKENDS = ("memory", *RAW)

#: Where the fields of an encoded record begin, without the byte of the format: what a
#: later version has written is left alone. Then its body, with user, meta and envelope.
RECORD_FIELDS = (0, 2, 3, 4, 8, 16, 24, 32, 36, 44, 46, *range(48, 100, 3))
#: Those of what a table has in its column, without the two spare bytes.
FRAME_FIELDS = (0, 4, 8, 9, 10, 11, 12, 20, 28, 29)
#: Those of the envelope, which is all that the memory backend has.
DATA_FIELDS = (1, 2, 3, 4, 12, 20)


class RawMemory:
    """Keeps objects, of which the session itself is the only one with bytes."""

    def __init__(self, site: Site) -> None:
        backend: t.Any = site.backend.backend
        self._entries = backend._entries

    def get(self, key: str) -> bytes:
        record: Record = self._entries[key].record
        return record.data

    def set(self, key: str, value: bytes) -> None:
        entry = self._entries[key]
        entry.record = dataclasses.replace(entry.record, data=value)


@dataclasses.dataclass
class Store:
    name: str
    site: Site
    raw: t.Any

    def key(self, browser: Browser) -> str:
        prefix = self.site.app.config.get("SESSION_KEY_PREFIX", "session:")
        return key_of(browser.id, prefix)

    def log_in(self) -> Browser:
        browser = self.site.browser()
        browser.set(n=1, _user_id="ada")
        return browser


@pytest.fixture
def make_store(make_backend_config: MakeConfig) -> Iterator[t.Callable[[str], Store]]:
    opened: list[t.Any] = []

    def make(name: str) -> Store:
        config = make_backend_config(name)
        site = Site(config, SESSION_TRACK=["remote_addr"])
        raw = RAW[name](config) if name in RAW else RawMemory(site)
        opened.append(raw)
        return Store(name, site, raw)

    yield make
    for raw in opened:
        if hasattr(raw, "close"):
            raw.close()


def write() -> None:
    session["n"] = 2


#: The first request of the visitor whose record is damaged.
FIRST: dict[str, Action] = {
    "nothing": lambda: None,
    "read": lambda: session.get("n"),
    "write": write,
    "log in": lambda: session.update(_user_id="grace"),
    "log out": lambda: typed_session.destroy(),
    "start over": lambda: typed_session.regenerate(keep_data=False),
}


def damages(kind: str, name: str, value: bytes) -> list[bytes]:
    fields = {"memory": DATA_FIELDS}.get(name, RECORD_FIELDS)
    if name in TABLES:
        fields = FRAME_FIELDS
    if kind == "empty":
        return [b""]
    if kind == "one byte":
        return [value[:1], b"\0", b"\1"]
    if kind == "truncated":
        return [value[:place] for place in fields if place]
    if kind == "wrong magic":
        return [bytes([byte]) + value[1:] for byte in (0, 0xFC, 0xFF, 0x80)][
            : 1 if name == "memory" else 4
        ]
    if kind == "flipped":
        # Nothing in memory has a checksum; of the envelope some bits are checked.
        fields = (2, 3) if name == "memory" else fields
        return [
            value[:place] + bytes([value[place] ^ bit]) + value[place + 1 :]
            for place in fields
            for bit in (1, 0x40)
            if place < len(value) - 16 and not (name == "memory" and bit == 1)
        ]
    assert kind == "foreign"
    foreign = [b"\0" * len(value)]
    if name != "memory":  # in which only an envelope can be told from others
        foreign += [b"{}", pickle.dumps({"n": 1}), b"n=1".ljust(99), TOMBSTONE_DATA]
    return foreign


@pytest.mark.parametrize(
    "kind", ["empty", "one byte", "truncated", "wrong magic", "flipped", "foreign"]
)
@pytest.mark.parametrize("name", BACKENDS)
def test_who_has_a_damaged_record_goes_on_with_a_new_session(
    make_store: t.Callable[[str], Store],
    caplog: pytest.LogCaptureFixture,
    name: str,
    kind: str,
) -> None:
    store = make_store(name)
    example = store.raw.get(store.key(store.log_in()))
    for number in range(len(damages(kind, name, example))):
        for first, action in FIRST.items():
            browser = store.log_in()
            id, key = browser.id, store.key(browser)
            damage = damages(kind, name, store.raw.get(key))[number]
            store.raw.set(key, damage)
            what = (first, damage)
            caplog.clear()
            assert browser.visit(action).status_code == 200, what
            if first == "write":
                assert browser.read() == {"n": 2}, what
            assert_goes_on(browser, id, what)
            # Deleting need not look at it.
            lines = len(own_log(caplog))
            assert lines == 1 or (lines == 0 and first == "log out"), what


# Not in memory, where there is nothing that a write would not mend.
@pytest.mark.parametrize("name", RAW)
def test_who_had_a_damaged_record_meanwhile_goes_on_with_a_new_session(
    make_store: t.Callable[[str], Store], name: str
) -> None:
    store = make_store(name)
    for damage in (b"", b"\xfe", b"{}"):
        for first, action in FIRST.items():
            browser = store.log_in()
            id, key = browser.id, store.key(browser)

            def spoil_and_act(
                key: str = key, damage: bytes = damage, action: Action = action
            ) -> None:
                session.get("n")
                store.raw.set(key, damage)
                action()

            assert browser.visit(spoil_and_act).status_code == 200, (first, damage)
            assert_goes_on(browser, id, (first, damage))


def assert_goes_on(browser: Browser, id: str, what: object) -> None:
    browser.set(m=1)
    assert browser.id != id, what
    # Its own session, with which it goes on; of the former one nothing is left.
    found, id = browser.read(), browser.id
    assert found.pop("m") == 1, what
    assert found in ({}, {"n": 2}, {"_user_id": "grace"}), what
    assert browser.set(m=2).status_code == 200, what
    assert (browser.read()["m"], browser.id) == (2, id), what


# -- objects, where an engine takes some


@pytest.mark.parametrize("value", ["text", 42, {"n": 1}, ("n",), ""], ids=repr)
def test_an_object_in_a_cache_is_no_session(
    make_store: t.Callable[[str], Store],
    caplog: pytest.LogCaptureFixture,
    value: t.Any,
) -> None:
    store = make_store("cachelib-simple")
    browser = store.log_in()
    store.raw.set(store.key(browser), value)
    assert_goes_on(browser, browser.id, value)
    assert len(own_log(caplog)) == 1


@pytest.mark.parametrize("command", ["rpush", "sadd"])
def test_another_type_in_redis_is_no_session(
    make_store: t.Callable[[str], Store],
    caplog: pytest.LogCaptureFixture,
    command: str,
) -> None:
    store = make_store("redis")
    browser = store.log_in()
    key = store.key(browser)
    store.raw._client.delete(key)
    getattr(store.raw._client, command)(key, "x")
    assert_goes_on(browser, browser.id, command)
    assert len(own_log(caplog)) == 1


# -- columns, which no checksum covers

NUMBERS = ("version", "created_at", "touched_at", "expires_at")
#: JSON of other shapes, in every database.
SHAPES = (
    *("'null'", "'{\"a\": null}'", '\'{"a": {"b": "c"}}\'', "'NaN'"),
    *("'[5, {}]'", "'[null, {}]'", "'[\"a\", {}, 1]'", "'[{}, {}]'"),
    "'" + "[" * 20_000 + "'",
    '\'{"a": "' + "x" * 10_000_000 + "\"}'",
)
#: What each database takes, as the text of an expression.
NONSENSE: dict[str, dict[str, tuple[str, ...]]] = {
    "sqlite": {
        "data": ("'text'", "''", "42", "CAST(X'FEFF' AS TEXT)", "CAST(data AS TEXT)"),
        "user": ("X'FF'", "42", "CAST(X'C328' AS TEXT)", "''"),
        "meta": (
            *("'{'", "'[]'", "'1'", "'[1]'", "X'FF'", "CAST(X'C328' AS TEXT)"),
            *SHAPES,
        ),
        "version": ("'text'", "X'FF'", "1.5", "-1", "9223372036854775807"),
        **dict.fromkeys(
            NUMBERS[1:], ("'x'", "X'FF'", "1e308", "-9e999", "CAST(X'C328' AS TEXT)")
        ),
    },
    "postgresql": {
        "user": ("''", "'*'"),
        "meta": (
            *("'{'", "'[]'", "'1'", "'[1]'", "'{\"a\": 1}'", "'[\"a\", [1]]'"),
            *SHAPES,
        ),
        "version": ("-1", "9223372036854775807", "-9223372036854775808"),
        **dict.fromkeys(NUMBERS[1:], ("'NaN'", "'Infinity'", "1e308", "-1e308", "0")),
    },
    "mariadb": {
        "user": ("''", "'*'"),
        "meta": (
            *("'{'", "'[]'", "'1'", "'[1]'", "'{\"a\": 1}'", "'[\"a\", [1]]'"),
            *SHAPES,
        ),
        "version": ("-1", "9223372036854775807", "-9223372036854775808"),
        **dict.fromkeys(NUMBERS[1:], ("1e308", "-1e308", "0")),
    },
}


#: What stands in a column or in a header, and is nobody's.
MOMENTS = (float("nan"), float("inf"), float("-inf"), -1e300, 1e300, 9e11, -9e11)
METAS = (
    b"[]",
    b"1",
    b"null",
    b'"text"',
    b"{",
    b'{"a": 1}',
    b'{"a": null}',
    b'{"a": {"b": "c"}}',
    b'{"a": ["b"]}',
    b'[["a", "b"]]',
    b'[["a", 1]]',
    b"[" * 20_000,
    b'{"a":' * 5_000,
    b"\xff",
    b"NaN",
)


def forge(value: bytes, trailer: int, field: str, content: t.Any) -> bytes:
    """Change an encoded record, checksums included, as an attacker would."""
    end = len(value) - trailer
    buffer, rest = bytearray(value[:end]), value[end:]
    if field == "meta":
        start = HEADER_SIZE + int.from_bytes(buffer[USER_LENGTH_SLICE], "big")
        size = int.from_bytes(buffer[46:48], "big")
        buffer[start : start + size] = content
        buffer[46:48] = len(content).to_bytes(2, "big")
    elif field == "version":
        buffer[8:16] = content.to_bytes(8, "big")
    else:
        place = {"touched_at": 16, "expires_at": 24, "created_at": 36}[field]
        buffer[place : place + 8] = struct.pack(">d", content)
    buffer[32:36] = zlib.crc32(buffer[16:32]).to_bytes(4, "big")
    buffer[4:8] = _body_checksum(buffer).to_bytes(4, "big")
    return bytes(buffer) + rest


FORGERIES = [
    *(("meta", content) for content in METAS),
    *((f"{what}_at", n) for what in ("created", "touched", "expires") for n in MOMENTS),
    *(("version", number) for number in (2**63 - 1, 2**63, 2**64 - 1)),
]


@pytest.mark.parametrize("name", [name for name in RAW if name not in TABLES])
def test_what_is_forged_with_its_checksum_harms_one_visitor_once(
    make_store: t.Callable[[str], Store], name: str
) -> None:
    store = make_store(name)
    trailer = 16 if name in ("redis", "valkey") else 0
    extension, app = store.site.extension, store.site.app
    other = store.log_in()
    is_listed = Capability.USER_INDEX in store.site.backend.capabilities
    for field, content in FORGERIES:
        what = (field, content)
        browser = store.log_in()
        key = store.key(browser)
        handle = key[-64:]
        store.raw.set(key, forge(store.raw.get(key), trailer, field, content))
        with app.app_context():
            extension.find(handle)
            if is_listed:
                handles = {info.handle for info in extension.sessions_of("ada")}
                assert store.key(other)[-64:] in handles, what
                assert {info.handle for info in extension.sessions()} >= {
                    store.key(other)[-64:]
                }, what
                extension.count()
                extension.prune()
        assert browser.visit(look).status_code == 200, what
        assert browser.set(m=3).status_code == 200, what
        assert browser.read()["m"] == 3, what
        with app.app_context():
            extension.revoke(handle)
    if is_listed:
        with app.app_context():
            assert extension.revoke_user("ada")
            assert extension.sessions_of("ada") == []


def look() -> None:
    """Ask for all that a session tells of itself."""
    dict(session)
    assert typed_session.created_at
    assert typed_session.expires_at
    assert typed_session.handle


def list_all(store: Store) -> None:
    """Ask for all that an operator can, with another session beside the damaged."""
    other = store.log_in()
    extension, handle = store.site.extension, store.key(other)[-64:]
    with store.site.app.app_context():
        assert handle in {info.handle for info in extension.sessions_of("ada")}
        assert handle in {info.handle for info in extension.sessions()}
        assert extension.find(handle)
        extension.count()
        extension.prune()
        assert extension.revoke(handle)


@pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for name in TABLES for column in NONSENSE[name]],
)
def test_nonsense_in_a_column_is_never_an_error(
    make_store: t.Callable[[str], Store],
    caplog: pytest.LogCaptureFixture,
    name: str,
    column: str,
) -> None:
    store = make_store(name)
    assert isinstance(store.raw, RawTable)
    table, column, key = map(
        store.raw._quote, (store.site.backend.table.name, column, "key")
    )
    for value in NONSENSE[name][column.strip('"`')]:
        for first, action in {**FIRST, "look": look}.items():
            browser = store.log_in()
            store.raw._execute(
                f"UPDATE {table} SET {column} = {value} WHERE {key} = ?",
                store.key(browser),
            )
            what = (first, value)
            list_all(store)
            caplog.clear()
            assert browser.visit(action).status_code == 200, what
            # Perhaps it was not noticed: then it is the same session.
            for number in (3, 4):
                assert browser.set(m=number).status_code == 200, what
                assert browser.read()["m"] == number, what
            assert len(own_log(caplog)) <= 1, what
        browser = store.log_in()
        store.raw._execute(
            f"UPDATE {table} SET {column} = {value} WHERE {key} = ?",
            store.key(browser),
        )
        with store.site.app.app_context():
            store.site.extension.revoke(store.key(browser)[-64:])
            store.site.extension.revoke_user("ada")
    # Nobody else's sessions disappear from the lists.
    other = store.log_in()
    assert store.key(other) in store.site.backend.keys_of_user("ada")
    assert store.key(other) in dict(store.site.backend.iterate())
    assert store.key(other) in store.site.backend.load_many([store.key(other)])
