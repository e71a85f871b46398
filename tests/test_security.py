"""A stolen store is useless; ids show up nowhere; the id changes with the user."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
import logging
import pickle
import traceback
import typing as t
from collections.abc import Iterator

import pytest
from blinker import Signal
from flask import session

from flask_serversession import BackendUnavailableError
from flask_serversession import Record
from flask_serversession import SerializationError
from flask_serversession import session as typed_session
from flask_serversession import signals
from flask_serversession.atomic import _Before
from flask_serversession.backends import Replaced
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.payload import Envelope
from flask_serversession.record import key_of
from flask_serversession.rotation import Successor
from flask_serversession.serializers import serializer_for
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Identity
from flask_serversession.unit import Stored
from flask_serversession.unit import Wish

from .site import Browser
from .site import Site


@pytest.fixture
def site(backend_config: dict[str, t.Any]) -> Site:
    return Site(backend_config)


def dump(config: dict[str, t.Any]) -> Iterator[bytes]:
    """Give everything that the store behind a configuration holds, raw."""
    if path := config.get("SESSION_FILESYSTEM_PATH"):
        yield from dump_folder(path)
    elif url := config.get("SESSION_REDIS_URL"):
        from redis import Redis

        with Redis.from_url(url) as client:
            for key in client.scan_iter("*"):
                yield key
                if client.type(key) == b"string":
                    yield client.get(key) or b""
                else:
                    yield repr(client.zrange(key, 0, -1)).encode()
    elif url := config.get("SESSION_SQLALCHEMY_URL"):
        import sqlalchemy as sa

        engine = sa.create_engine(url)
        with engine.connect() as connection:
            table = sa.Table(
                config["SESSION_SQLALCHEMY_TABLE"], sa.MetaData(), autoload_with=engine
            )
            for row in connection.execute(table.select()):
                for value in row:
                    yield value if isinstance(value, bytes) else str(value).encode()
        engine.dispose()
    elif cache := config.get("SESSION_CACHELIB"):
        if hasattr(cache, "_cache"):
            for key, value in cache._cache.items():
                yield key.encode()
                yield repr(value).encode()
        elif hasattr(cache, "_path"):
            yield from dump_folder(cache._path)
        else:
            yield from dump_memcached(cache._client)


def dump_folder(path: str) -> Iterator[bytes]:
    import os

    for folder, _, names in os.walk(path):
        for name in names:
            yield name.encode()
            with open(os.path.join(folder, name), "rb") as file:
                yield file.read()


def dump_memcached(client: t.Any) -> Iterator[bytes]:
    import socket

    with socket.create_connection(client.servers[0].address) as connection:
        connection.sendall(b"lru_crawler metadump all\r\n")
        text = b""
        while not text.endswith(b"END\r\n"):
            text += connection.recv(65536)
        for line in text.splitlines()[:-1]:
            key = line.split()[0].removeprefix(b"key=")
            yield key
            yield repr(client.get(key.decode().replace("%3A", ":"))).encode()


def forms_of(id: str) -> list[bytes]:
    raw = base64.urlsafe_b64decode(id + "=")
    return [id.encode(), raw, raw.hex().encode(), base64.b64encode(raw)]


def test_nothing_in_the_store_works_as_a_cookie(
    site: Site, backend_config: dict[str, t.Any]
) -> None:
    browser = site.browser()
    browser.set(n=1)
    ids = [browser.id]
    browser.set(_user_id="ada")
    ids.append(browser.id)
    if site.backend.name == "memory":
        records = vars(site.backend.backend)["_entries"]
        content = [item for pair in records.items() for item in pair]
        content = [
            item if isinstance(item, str) else item.record.data for item in content
        ]
    else:
        content = list(dump(backend_config))
    text = b"\n".join(
        item if isinstance(item, bytes) else str(item).encode() for item in content
    )
    assert text
    for id in ids:
        for form in forms_of(id):
            assert form not in text
    assert browser.cookie is not None
    assert browser.cookie.encode() not in text
    # What is there, presented as a cookie, opens nothing.
    thief = site.browser()
    for value in {item for item in text.decode("latin1").split() if len(item) < 4000}:
        if value.isprintable() and ";" not in value and value.isascii():
            thief.cookie = value
            assert thief.costs(lambda: session.get("n"))[0] == {}


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = io.StringIO()

    def emit(self, record: logging.LogRecord) -> None:
        self.text.write(self.format(record) + "\n")
        self.text.write(repr(record.args) + "\n")


def test_no_log_line_repr_error_or_signal_shows_an_id() -> None:
    site = Site({"SESSION_BACKEND": MemoryBackend(FakeClock())})
    log = Log()
    ids: list[str] = []
    seen: list[str] = []

    sent: set[str] = set()

    def receive(name: str, sender: t.Any, **values: t.Any) -> None:
        sent.add(name)
        seen.append(repr(values))

    names = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    logger = logging.getLogger("flask_serversession")
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    try:
        with contextlib.ExitStack() as stack:
            for name in names:
                receiver = functools.partial(receive, name)
                stack.enter_context(getattr(signals, name).connected_to(receiver))
            exercise(site, ids, seen)
    finally:
        logger.removeHandler(log)
        logger.setLevel(logging.NOTSET)
    text = log.text.getvalue() + "\n".join(seen)
    assert len(ids) >= 3
    assert sent == names - {"backend_recovered"}  # which is about no session
    assert "rotated" in text
    assert all(id not in text for id in ids)
    assert "a value" not in text


def exercise(site: Site, ids: list[str], seen: list[str]) -> None:
    """Do everything that is logged, signalled, shown or refused."""
    browser, other = site.browser(), site.browser()
    browser.set(secret="a value")
    ids.append(browser.id)
    other.cookie = browser.cookie

    def look() -> None:
        assert session["secret"]
        own = t.cast(t.Any, session)._get_current_object()
        seen.append(repr(own))
        record = site.backend.load(key_of(browser.id, "session:"))
        seen.append(repr(record))

    browser.visit(look)
    browser.set(n=1)
    browser.set(_user_id="ada")
    ids.append(browser.id)
    other.set(n=2)  # lost
    browser.visit(lambda: typed_session.regenerate())
    ids.append(browser.id)

    def fail(action: t.Callable[[], t.Any]) -> None:
        try:
            browser.visit(action)
        except Exception as error:  # noqa: BLE001 - whatever it is, it shows no id
            seen.append(repr(error) + "".join(traceback.format_exception(error)))

    fail(lambda: session.update(bad={"deep": [object()]}))
    fail(lambda: session.update(big="a value" * 1_000_000))
    with site.backend.failing("load", "replace"):
        browser.visit(lambda: session.get("n"))
    with site.backend.failing("replace", "touch"):
        browser.set(n=3)
    browser.visit(lambda: typed_session.destroy())
    other.visit(lambda: session.get("n"))
    rejected: list[str] = []

    def reject(app: object, reason: str, **values: object) -> None:
        rejected.append(reason)

    with signals.session_rejected.connected_to(reject, site.app):
        other.visit(lambda: session.get("n"), headers={"Cookie": "session=x.p1-1.z"})
    assert rejected == ["forged"]


def test_the_key_is_the_hash_of_the_id() -> None:
    site = Site({"SESSION_BACKEND": MemoryBackend(FakeClock())})
    browser = site.browser()
    browser.set(n=1)
    record = site.backend.load(key_of(browser.id, "session:"))
    assert record is not None
    assert browser.visit(lambda: typed_session.handle).text in key_of(browser.id, "")


# The id follows the user


def test_the_id_changes_at_log_in_change_of_user_and_log_out(site: Site) -> None:
    browser = site.browser()
    browser.set(cart=[1])
    ids = [browser.id]
    for user in ("ada", "grace", None):
        if user is None:
            browser.visit(lambda: session.pop("_user_id"))
        else:
            browser.set(_user_id=user)
        ids.append(browser.id)
        assert browser.read()["cart"] == [1]
    assert len(set(ids)) == 4


def test_a_planted_session_is_worth_nothing_after_the_victim_logs_in(
    site: Site,
) -> None:
    attacker, victim = site.browser(), site.browser()
    attacker.set(trap=1)
    victim.cookie = attacker.cookie
    victim.set(_user_id="victim")
    assert attacker.read() == {}
    t.cast(FakeClock, site.clock).advance(11)
    assert attacker.read() == {}
    attacker.set(n=1)
    assert victim.read() == {"trap": 1, "_user_id": "victim"}


def test_the_user_key_is_configurable_and_rotation_can_be_switched_off() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_USER_KEY="uid")
    browser = site.browser()
    browser.set(n=1)
    first = browser.id
    browser.set(_user_id="ada")
    assert browser.id == first
    browser.set(uid=7)
    assert browser.id != first
    assert browser.visit(lambda: typed_session.user).text == "7"

    site = Site({"SESSION_BACKEND": "memory"}, SESSION_REGENERATE_ON_LOGIN=False)
    browser = site.browser()
    browser.set(n=1)
    first = browser.id
    browser.set(_user_id="ada")
    assert browser.id == first


# Encryption


KEYS = [base64.urlsafe_b64encode(bytes([n]) * 32).decode() for n in range(3)]


def keyed(backend: MemoryBackend, *keys: str) -> Site:
    return Site({"SESSION_BACKEND": backend}, SESSION_ENCRYPTION_KEY=list(keys))


def raw(site: Site, browser: Browser) -> Record:
    record = site.backend.load(key_of(browser.id, "session:"))
    assert record is not None
    return record


def test_with_a_key_the_store_holds_no_value() -> None:
    clock = FakeClock()
    site = keyed(MemoryBackend(clock), KEYS[0])
    browser = site.browser()
    browser.set(pin="secret value")
    assert b"secret value" not in raw(site, browser).data
    assert browser.read() == {"pin": "secret value"}


def test_an_encrypted_record_whose_user_or_beginning_was_changed_is_no_session(
    site: Site, backend_config: dict[str, t.Any]
) -> None:
    site = Site(backend_config, SESSION_ENCRYPTION_KEY=KEYS[0])
    for changed in ({"user": "grace"}, {"user": None}, {"created_at": 9e9}):
        browser = site.browser()
        browser.set(_user_id="ada")
        key = key_of(browser.id, site.state.config.key_prefix)
        before = site.backend.load(key)
        assert before is not None
        planted = dataclasses.replace(before, **t.cast(t.Any, changed))
        assert isinstance(site.backend.replace(key, planted, before.version), Replaced)
        assert browser.read() == {}
        browser.set(n=1)
        assert browser.read() == {"n": 1}


def test_an_encrypted_session_lives_on_through_touches_and_new_ids(
    site: Site, backend_config: dict[str, t.Any]
) -> None:
    site = Site(
        backend_config, SESSION_ENCRYPTION_KEY=KEYS[0], SESSION_TOUCH_INTERVAL=0
    )
    browser = site.browser()
    browser.set(_user_id="ada")
    browser.read()
    browser.visit(lambda: typed_session.regenerate())
    browser.ignore()
    browser.set(_user_id="grace", n=1)
    browser.visit(lambda: typed_session.touch())
    browser.visit(lambda: typed_session.atomic(lambda own: own.update(n=2)))
    assert browser.read() == {"_user_id": "grace", "n": 2}
    browser.visit(lambda: session.pop("_user_id"))
    assert browser.read() == {"n": 2}


def test_encryption_keys_rotate() -> None:
    backend = MemoryBackend(FakeClock())
    old, both, new = (
        keyed(backend, KEYS[0]),
        keyed(backend, KEYS[1], KEYS[0]),
        keyed(backend, KEYS[1]),
    )
    browser = old.browser()
    browser.set(n=1)
    later = both.browser()
    later.cookie = browser.cookie
    later.set(m=2)
    last = new.browser()
    last.cookie = browser.cookie
    assert last.read() == {"n": 1, "m": 2}
    assert browser.read() == {}


def test_a_record_copied_to_another_key_is_refused() -> None:
    backend = MemoryBackend(FakeClock())
    site = keyed(backend, KEYS[0])
    admin, attacker = site.browser(), site.browser()
    admin.set(role="admin")
    attacker.set(role="guest")
    key = key_of(attacker.id, "session:")
    backend.replace(key, raw(site, admin), raw(site, attacker).version)
    assert attacker.read() == {}


def test_an_older_state_of_a_session_that_is_put_back_is_not_noticed() -> None:
    """What encryption does not promise."""
    backend = MemoryBackend(FakeClock())
    site = keyed(backend, KEYS[0])
    browser = site.browser()
    browser.set(role="admin")
    older = raw(site, browser)
    browser.set(role="guest")
    key = key_of(browser.id, "session:")
    backend.replace(key, older, raw(site, browser).version)
    assert browser.read() == {"role": "admin"}


def test_whoever_has_the_cookie_is_the_visitor() -> None:
    """What no session promises that is a cookie."""
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_TRACK=("user_agent",))
    browser, thief = site.browser(), site.browser()
    browser.set(_user_id="ada")
    thief.cookie = browser.cookie
    assert thief.read() == {"_user_id": "ada"}
    thief.set(n=1)
    assert browser.read() == {"_user_id": "ada", "n": 1}


def test_an_unreadable_record_is_logged_once_and_never_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = MemoryBackend(FakeClock())
    browser = keyed(backend, KEYS[0]).browser()
    browser.set(n=1)
    other = keyed(backend, KEYS[1]).browser()
    other.cookie = browser.cookie
    for _ in range(3):
        assert other.read() == {}
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    assert browser.read() == {"n": 1}


class Bomb:
    def __reduce__(self) -> t.Any:
        return (pytest.fail, ("A pickle was run.",))


def test_a_pickle_in_the_store_is_never_run(site: Site) -> None:
    if "cachelib" in site.backend.name:
        pytest.skip("what a cache itself pickles is out of our hands")
    browser = site.browser()
    browser.set(n=1)
    key = key_of(browser.id, site.app.config.get("SESSION_KEY_PREFIX", "session:"))
    record = site.backend.load(key)
    assert record is not None

    planted = dataclasses.replace(record, data=pickle.dumps(Bomb()))
    site.backend.replace(key, planted, record.version)
    assert browser.read() == {}


def test_what_cannot_be_stored_leaves_what_was_stored(site: Site) -> None:
    browser = site.browser()
    browser.set(cart=[{"n": 1}])

    def spoil() -> None:
        session["cart"].append({"thumb": object()})

    with pytest.raises(SerializationError) as caught:
        browser.visit(spoil)
    assert caught.value.path == "session['cart'][1]['thumb']"
    assert browser.read() == {"cart": [{"n": 1}]}


def test_the_error_of_a_backend_shows_no_password() -> None:
    error = BackendUnavailableError("The backend failed.", backend="redis")
    assert "hunter2" not in repr(error)


def test_what_a_session_is_made_of_shows_neither_its_id_nor_its_content() -> None:
    record = Record(b"a secret value", 1, 1.0, 1.0, 2.0)
    identity = Identity("a secret id", "key")
    envelope = Envelope(b"a secret value", b"j", None, 1.0)
    stored = Stored(record, envelope, serializer_for("json"))
    before = _Before(stored, b"a secret value", Wish.SAVE, True, None, None, None)
    successor = Successor(identity, stored)
    for part in (identity, stored, before, successor):
        assert "secret" not in f"{part!r} {part}"
