"""What visitors notice of a record that is damaged: they go on, with a new session.

:mod:`tests.test_faults` has more kinds of damage to bytes. Here are those that may look
like something else, above all like a tombstone, and what only a column can hold.
"""

from __future__ import annotations

import dataclasses
import pickle
import typing as t
from collections.abc import Iterator

import pytest
from flask import session

from flask_serversession import session as typed_session
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
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
#: What each database takes, as the text of an expression.
NONSENSE: dict[str, dict[str, tuple[str, ...]]] = {
    "sqlite": {
        "data": ("'text'", "''", "42", "CAST(X'FEFF' AS TEXT)", "CAST(data AS TEXT)"),
        "user": ("X'FF'", "42", "CAST(X'C328' AS TEXT)", "''"),
        "meta": ("'{'", "'[]'", "'1'", "'[1]'", "X'FF'", "CAST(X'C328' AS TEXT)"),
        "version": ("'text'", "X'FF'", "1.5", "-1", "9223372036854775807"),
        **dict.fromkeys(
            NUMBERS[1:], ("'x'", "X'FF'", "1e308", "-9e999", "CAST(X'C328' AS TEXT)")
        ),
    },
    "postgresql": {
        "user": ("''", "'*'"),
        "meta": ("'{'", "'[]'", "'1'", "'[1]'", "'{\"a\": 1}'", "'[\"a\", [1]]'"),
        "version": ("-1", "9223372036854775807", "-9223372036854775808"),
        **dict.fromkeys(NUMBERS[1:], ("'NaN'", "'Infinity'", "1e308", "-1e308", "0")),
    },
    "mariadb": {
        "user": ("''", "'*'"),
        "meta": ("'{'", "'[]'", "'1'", "'[1]'", "'{\"a\": 1}'", "'[\"a\", [1]]'"),
        "version": ("-1", "9223372036854775807", "-9223372036854775808"),
        **dict.fromkeys(NUMBERS[1:], ("1e308", "-1e308", "0")),
    },
}


def look() -> None:
    """Ask for all that a session tells of itself."""
    dict(session)
    assert typed_session.created_at
    assert typed_session.expires_at
    assert typed_session.handle


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
            caplog.clear()
            assert browser.visit(action).status_code == 200, what
            # Perhaps it was not noticed: then it is the same session.
            for number in (3, 4):
                assert browser.set(m=number).status_code == 200, what
                assert browser.read()["m"] == number, what
            assert len(own_log(caplog)) <= 1, what
    # Nobody else's sessions disappear from the lists.
    other = store.log_in()
    assert store.key(other) in store.site.backend.keys_of_user("ada")
    assert store.key(other) in dict(store.site.backend.iterate())
    assert store.key(other) in store.site.backend.load_many([store.key(other)])
