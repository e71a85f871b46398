"""Whatever a browser sends, or somebody plants in the store, opens and breaks nothing.

Cookies are fuzzed, as servers hand them on: any bytes, read as latin-1.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import hashlib
import hmac
import io
import math
import os
import pickle
import re
import sys
import time
import typing as t
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.cookies import SimpleCookie
from pathlib import Path

import flask
import pytest
from flask import session
from hypothesis import HealthCheck
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from itsdangerous import Signer
from itsdangerous import URLSafeTimedSerializer
from markupsafe import Markup
from werkzeug.test import EnvironBuilder
from werkzeug.test import run_wsgi_app

from flask_serversession import Capability
from flask_serversession import SerializationError
from flask_serversession import session as typed_session
from flask_serversession.payload import Envelope
from flask_serversession.payload import Sealer
from flask_serversession.record import key_of
from flask_serversession.serializers import serializer_for
from flask_serversession.testing import FakeClock
from flask_serversession.users import stored_name_of

from .figures import Report
from .site import Action
from .site import Browser
from .site import Site
from .test_faults import RAW
from .test_faults import MakeConfig
from .test_faults import Store

#: Where cookies are fuzzed: engines of every kind.
FUZZED = ["memory", "filesystem", "sqlite", "valkey"]
MINUTE = 60.0

#: How many inputs each test makes up; a long run sets more.
INPUTS = int(os.environ.get("HOSTILE_INPUTS", "150"))

fuzz = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(params=FUZZED)
def site(request: pytest.FixtureRequest, make_backend_config: MakeConfig) -> Site:
    return Site(make_backend_config(request.param))


@pytest.fixture
def memory_site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


@dataclasses.dataclass
class Answer:
    status: int
    text: str
    cookies: list[str]


def send(site: Site, header: str, action: Action, **environ: str) -> Answer:
    """Make a request with a raw Cookie header, as a WSGI server does."""
    builder = EnvironBuilder(path=site.add(action))
    wsgi = {**builder.get_environ(), "HTTP_COOKIE": header, **environ}
    body, status, headers = run_wsgi_app(site.app, wsgi)
    text = b"".join(body).decode()
    return Answer(int(status.split()[0]), text, headers.getlist("Set-Cookie"))


def show() -> str:
    return repr(dict(session))


def write() -> None:
    session["n"] = 2


def touch() -> None:
    typed_session.touch()


def regenerate() -> None:
    typed_session.regenerate()


def destroy() -> None:
    typed_session.destroy()


def clear() -> None:
    session.clear()


def log_in(user: t.Any) -> Action:
    return lambda: session.update(_user_id=user)


def id_of(cookie: str) -> str:
    """Give the id in a Set-Cookie header."""
    return cookie.partition("=")[2].partition(";")[0].rsplit(".", 2)[0]


def assert_stranger(site: Site, header: str) -> None:
    """Check that a Cookie header is nobody's: it opens nothing, and asks nothing."""
    with site.backend.counting() as calls:
        for action in (show, lambda: "ignored", touch, destroy, clear):
            answer = send(site, header, action)
            assert answer.status == 200
            assert answer.text in ("{}", "ignored", "")
            assert answer.cookies == []
    assert calls == {}
    with site.backend.counting() as calls:
        answer = send(site, header, write)
    assert answer.status == 200
    assert calls == {"create": 1}
    [cookie] = answer.cookies
    # An id that the browser made up is never adopted, as a whole or in parts.
    assert id_of(cookie) not in header


HOSTILE = [
    "",
    '""',
    '"',
    ".",
    "..",
    "...",
    "a.b.c",
    "x" * 65_536,
    ".".join("x" * 30_000),
    "\0",
    "id\0.b0-0.sig",
    "\x01\x02\x1b[31m\x7f",
    "\r\nSet-Cookie: planted=1",
    "a\tb\vc\fd",
    "../../x",
    "../" * 40 + "etc/passwd",
    "..\\..\\x",
    "/etc/passwd",
    "C:\\Windows\\x",
    "//host/share",
    "~root",
    "%2e%2e%2f%2e%2e%2fx",
    "%00",
    "file:///etc/passwd",
    "' OR '1'='1",
    "'; DROP TABLE sessions; --",
    '" OR 1=1 --',
    "1) UNION SELECT 1",
    "%' LIKE '%",
    "*",
    "session:*",
    "?[a-z]",
    "\r\nFLUSHALL\r\n",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "{user}:1",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "ÿþýü",
    "ünïcödé".encode().decode("latin-1"),
    "☃💥".encode().decode("latin-1"),
    "\xff\xfe\x80",
    "\xed\xa0\x80",
    "\xc0\xae\xc0\xae/",
    '"\\073\\054\\042"',
    '"\\377\\376"',
    "None",
    "null",
    "-1",
    "1e999",
    "eyJhIjoxfQ.ZZZZZZ.abcdefghijklmnopqrstuvwxyz",
    base64.b64encode(pickle.dumps({"n": 1})).decode(),
    "x" * 43 + ".b0-0." + "y" * 43,
    "x" * 43 + ".p6b49d200-6b49d200." + "y" * 43,
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_a_hostile_cookie_is_nobodys(memory_site: Site, value: str) -> None:
    assert_stranger(memory_site, f"session={value}")
    assert_stranger(memory_site, f"a=1; session={value}; session={value}")


def test_hostile_cookies_are_nobodys_on_any_engine(site: Site) -> None:
    for value in HOSTILE:
        assert_stranger(site, f"session={value}")


latin_1 = st.text(st.characters(max_codepoint=255), max_size=200)
#: What tries to look like a cookie of ours.
lookalike = st.builds(
    "{}.{}{:x}-{:x}{}.{}".format,
    st.one_of(st.text("abc-_ZZ09", min_size=1, max_size=60), latin_1),
    st.sampled_from(["p", "b", "x", "", "P"]),
    st.integers(0, 2**70),
    st.integers(0, 2**70),
    st.sampled_from(["", "-0", "-ff", "--1", "-" + "f" * 40, "-g"]),
    st.one_of(
        st.binary(max_size=40).map(lambda b: base64.urlsafe_b64encode(b).decode()),
        latin_1,
    ),
)


def test_fuzzed_headers_are_nobodys(site: Site, report: Report) -> None:
    tried = 0

    @fuzz
    @given(st.one_of(latin_1, lookalike), st.booleans())
    def check(text: str, is_whole_header: bool) -> None:
        nonlocal tried
        tried += 1
        assert_stranger(site, text if is_whole_header else f"session={text}")

    check()
    report(cookie_headers_tried=tried)


# -- what looks like one of ours


def start(site: Site) -> tuple[Browser, str]:
    browser = site.browser()
    browser.set(n=1)
    assert browser.cookie is not None
    return browser, browser.cookie


def test_a_changed_cookie_is_nobodys(site: Site, report: Report) -> None:
    _, valid = start(site)
    text, _, signature = valid.rpartition(".")
    tried = unchanged = 0
    alphabet = st.sampled_from("abcxyzABC0123456789-_.=!/+ \xff")
    place = st.integers(0, len(valid) - 1)
    changed = st.one_of(
        st.builds(lambda i: valid[:i], place),
        st.builds(lambda i: valid[i:], st.integers(1, len(valid))),
        st.builds(lambda i, c: valid[:i] + c + valid[i + 1 :], place, alphabet),
        st.builds(lambda i, c: valid[:i] + c + valid[i:], place, alphabet),
        st.builds(lambda s: valid + s, st.text(alphabet, min_size=1, max_size=9)),
        st.builds(lambda s: s + valid, st.text(alphabet, min_size=1, max_size=9)),
        st.just(valid.swapcase()),
        st.just(valid + "." + signature),
        st.just(f"{text}.p0-0.{signature}"),
        st.just(text.replace(".b", ".p") + "." + signature),
    )

    @fuzz
    @given(changed)
    def check(value: str) -> None:
        nonlocal tried, unchanged
        tried += 1
        if value.strip(" \t") == valid:
            unchanged += 1
            return
        assert_stranger(site, f"session={value}")

    check()
    assert send(site, f"session={valid}", show).text == "{'n': 1}"
    report(changed_cookies_tried=tried, of_them_the_same=unchanged)


def test_every_bit_of_a_cookie_counts(memory_site: Site) -> None:
    _, valid = start(memory_site)
    for place in range(len(valid)):
        for bit in range(7):
            value = (
                valid[:place] + chr(ord(valid[place]) ^ 1 << bit) + valid[place + 1 :]
            )
            if set(value) & set(" ;=!"):
                continue  # which end a cookie, or which Base64 leaves out
            assert_stranger(memory_site, f"session={value}")


def test_signatures_of_others_are_nobodys(site: Site) -> None:
    browser, valid = start(site)
    text = valid.rpartition(".")[0]
    secret = "a secret"

    def sign(key: str, salt: str, method: str, digest: t.Any) -> str:
        signer = Signer(key, salt=salt, key_derivation=method, digest_method=digest)
        return signer.sign(text).decode()

    ours = "flask_serversession.cookie"
    forged = [
        # Another application's secret, the empty one, a part of ours.
        *(sign(key, ours, "hmac", hashlib.sha256) for key in ("other", "", "a secre")),
        # Our secret, as others use it.
        sign(secret, "cookie-session", "hmac", hashlib.sha1),
        sign(secret, "itsdangerous.Signer", "django-concat", hashlib.sha1),
        sign(secret, "flask_serversession", "hmac", hashlib.sha256),
        # Our salt, otherwise derived or digested.
        sign(secret, ours, "django-concat", hashlib.sha256),
        sign(secret, ours, "concat", hashlib.sha256),
        sign(secret, ours, "none", hashlib.sha256),
        sign(secret, ours, "hmac", hashlib.sha1),
        sign(secret, ours, "hmac", hashlib.sha512),
        # Flask's own session, Flask-WTF's token, Flask-Login's remember me.
        t.cast(str, URLSafeTimedSerializer(secret, "cookie-session").dumps(text)),
        t.cast(str, URLSafeTimedSerializer(secret, "wtf-csrf-token").dumps(text)),
        f"{text}|{hmac.new(secret.encode(), text.encode(), 'sha512').hexdigest()}",
        f"{text}.{hmac.new(secret.encode(), text.encode(), 'sha256').hexdigest()}",
    ]
    for value in forged:
        assert value != valid
        assert_stranger(site, f"session={value}")
    assert sign(secret, ours, "hmac", hashlib.sha256) == valid
    assert browser.read() == {"n": 1}


def test_flasks_own_session_cookie_is_nobodys_and_ours_not_flasks() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    plain = flask.Flask("plain")
    plain.secret_key = site.app.secret_key
    plain.add_url_rule("/write", "write", lambda: session.update(n=1) or "")
    plain.add_url_rule("/", "show", show)
    client = plain.test_client()
    client.get("/write")
    cookie = client.get_cookie("session")
    assert cookie is not None
    assert_stranger(site, f"session={cookie.value}")
    _, valid = start(site)
    client.set_cookie("session", valid)
    assert client.get("/").text == "{}"


def test_a_removed_secret_opens_nothing(site: Site) -> None:
    browser, valid = start(site)
    site.app.config["SECRET_KEY_FALLBACKS"] = ["a secret", "an older one"]
    site.app.secret_key = "a new secret"
    assert send(site, f"session={valid}", show).text == "{'n': 1}"
    site.app.config["SECRET_KEY_FALLBACKS"] = ["an older one"]
    assert_stranger(site, f"session={valid}")
    site.app.config["SECRET_KEY_FALLBACKS"] = None
    assert_stranger(site, f"session={valid}")
    site.app.secret_key = "a secret"
    assert browser.read() == {"n": 1}


def test_no_secret_of_ours_is_accepted_from_session_secret_beside_it() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_SECRET=["new", "old"])
    _, valid = start(site)
    text = valid.rpartition(".")[0]
    signer = Signer(
        "a secret",  # SECRET_KEY, which does not sign sessions here
        salt="flask_serversession.cookie",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )
    assert_stranger(site, f"session={signer.sign(text).decode()}")


numbers = st.one_of(
    st.integers(0, 2**40).map("{:x}".format),
    st.text("0123456789abcdef", min_size=1, max_size=130),
    st.sampled_from(["0", "", "-1", "f" * 16, "f" * 17, "f" * 100, "g", "1" * 300]),
)
states = st.builds(
    lambda id, kind, times: f"{id}.{kind}{'-'.join(times)}",
    st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=90),
        st.sampled_from(["../../x", "", ".", "x" * 43, "' OR 1=1 --", "*"]),
    ),
    st.sampled_from(["p", "b", "", "pp", "x"]),
    st.lists(numbers, max_size=4),
)
whatever = st.one_of(
    states, st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=300)
)


def test_a_signature_over_nonsense_is_nobodys_either(
    site: Site, report: Report
) -> None:
    """Whoever knows the secret can forge cookies, and yet no error page."""
    tried = 0
    signer = site.state.interface.get_signer(site.app)
    assert signer is not None
    settings_ = (
        {"PERMANENT_SESSION_LIFETIME": dt.timedelta(days=31)},
        {"PERMANENT_SESSION_LIFETIME": dt.timedelta(seconds=1)},
    )

    @fuzz
    @given(whatever, st.sampled_from(settings_))
    def check(text: str, config: dict[str, t.Any]) -> None:
        nonlocal tried
        tried += 1
        site.app.config.update(config)
        value = signer._signers[0].sign(text.encode("latin-1")).decode("latin-1")
        for action in (show, lambda: "ignored", touch):
            with site.backend.counting() as calls:
                answer = send(site, f"session={value}", action)
            assert answer.status == 200
            assert answer.text in ("{}", "ignored", "")
            assert sum(calls.values()) <= 1
        answer = send(site, f"session={value}", write)
        assert answer.status == 200
        [cookie] = answer.cookies
        assert id_of(cookie) not in text

    check()
    report(signed_nonsense_tried=tried)


def test_an_unknown_id_with_our_signature_is_never_adopted(site: Site) -> None:
    browser, valid = start(site)
    browser.visit(destroy)
    browser.cookie = valid
    with site.backend.counting() as calls:
        assert browser.read() == {}
    assert calls == {"load": 1}
    browser.cookie = valid
    browser.set(n=3)
    assert browser.cookie != valid
    assert browser.id != valid.partition(".")[0]


# -- several cookies of one name


def test_planted_cookies_before_the_real_one_do_no_harm(
    site: Site, report: Report
) -> None:
    _, valid = start(site)
    _, foreign = start(Site({"SESSION_BACKEND": "memory"}, SECRET_KEY="another"))
    tried = 0
    planted = st.lists(
        st.one_of(
            st.sampled_from(
                [foreign, valid[:-3], valid + "x", "", '"', '"x', "=", "/"]
            ),
            latin_1.map(lambda text: text.replace(";", "").replace("\0", "")),
        ),
        min_size=1,
        max_size=3,
    )
    noise = latin_1.filter(lambda text: "session" not in text)

    @fuzz
    @given(planted, noise)
    def check(values: list[str], other: str) -> None:
        nonlocal tried
        tried += 1
        header = ";".join(f" session={value}" for value in values)
        for text in (
            f"{header}; session={valid}",
            f"{other};{header}; session={valid}; {other}",
        ):
            assert send(site, text, show).text == "{'n': 1}"

    check()
    report(planted_headers_tried=tried)


def test_of_many_cookies_no_more_than_four_are_verified(memory_site: Site) -> None:
    _, valid = start(memory_site)
    forged = valid[:-4] + "AAAA"
    for number in range(4):
        header = f"session={forged}; " * number + f"session={valid}"
        assert send(memory_site, header, show).text == "{'n': 1}"
    # Whoever can plant so many can log somebody out, and nothing more.
    header = f"session={forged}; " * 4 + f"session={valid}"
    assert_stranger(memory_site, header)
    started = time.monotonic()
    assert_stranger(memory_site, f"session={forged}; " * 20_000)
    assert time.monotonic() - started < 5
    assert send(memory_site, f"session={valid}", show).text == "{'n': 1}"


def test_only_the_first_that_verifies_is_looked_at(memory_site: Site) -> None:
    _, first = start(memory_site)
    _, second = start(memory_site)
    header = f"session={first}; session={second}"
    for value in (first, second):
        memory_site.browser().cookie = value
    with memory_site.backend.counting() as calls:
        send(memory_site, header, show)
    assert calls == {"load": 1}


# -- the file system


class Watch:
    """Notes what this process does to files, by the interpreter's own account."""

    _events = (
        *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"),
        *("os.utime", "os.symlink", "os.link", "os.truncate", "os.listdir"),
        *("os.scandir", "os.chown", "shutil.rmtree"),
    )
    _active: t.ClassVar[list[set[str]]] = []
    _is_installed = False

    @classmethod
    def _hook(cls, event: str, args: tuple[t.Any, ...]) -> None:
        if cls._active and event in cls._events:
            for arg in args[:2]:
                if isinstance(arg, (str, bytes)) and len(arg) > 1:
                    cls._active[-1].add(os.path.abspath(os.fsdecode(arg)))

    @classmethod
    @contextlib.contextmanager
    def files(cls) -> Iterator[set[str]]:
        if not cls._is_installed:  # for good: a hook cannot be removed
            sys.addaudithook(cls._hook)
            cls._is_installed = True
        cls._active.append(found := set())
        try:
            yield found
        finally:
            cls._active.pop()


def test_no_cookie_reaches_a_file_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "instance" / "sessions"
    site = Site({"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": folder})
    signer = site.state.interface.get_signer(site.app)
    assert signer is not None
    browser, valid = start(site)
    with Watch.files() as used:
        for value in (*HOSTILE, valid):
            signed = signer._signers[0].sign(f"{value}.p0-0".encode("latin-1"))
            for header in (f"session={value}", f"session={signed.decode('latin-1')}"):
                for action in (
                    show,
                    write,
                    touch,
                    regenerate,
                    log_in(value),
                ):
                    if len(value) < 250:
                        assert send(site, header, action).status == 200
                if value != valid:
                    send(site, header, destroy)
    outside = {
        path
        for path in used
        if not path.startswith(f"{folder}{os.sep}")
        and path != str(folder)
        # Modules that are imported when first needed.
        and not path.startswith(
            (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))
        )
        and not path.endswith((".py", ".pyc", "__pycache__"))
    }
    assert not outside
    assert any(path.startswith(f"{folder}{os.sep}") for path in used)
    assert [path.name for path in tmp_path.iterdir()] == ["instance"]
    assert [path.name for path in folder.parent.iterdir()] == ["sessions"]
    assert browser.site is site


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes.")
@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_only_the_owner_may_read_sessions(
    tmp_path: Path, umask: Callable[[int], object], mask: int
) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "sessions"
    site = Site({"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": folder})
    umask(mask)
    browser = site.browser()
    for action in (
        write,
        log_in("ada"),
        lambda: session.update(n=3),
        regenerate,
    ):
        assert browser.visit(action).status_code == 200
    t.cast(FakeClock, site.clock).advance(MINUTE)
    browser.read()
    damaged = site.browser()
    damaged.visit(write)
    digest = key_of(damaged.id, "")
    [file] = folder.glob(f"{digest[:2]}/*{digest}")
    file.write_bytes(b"not one of ours")
    assert damaged.read() == {}
    found = [folder, *folder.rglob("*")]
    assert len(found) > 5
    for path in found:
        mode = path.stat().st_mode & 0o7777
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes.")
def test_only_the_owner_may_read_a_sqlite_database(
    tmp_path: Path, umask: Callable[[int], object]
) -> None:
    umask(0)
    path = tmp_path / "sessions.db"
    url = f"sqlite:///{path}"
    site = Site({"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": url})
    site.browser().visit(write)
    found = list(tmp_path.iterdir())
    assert path in found
    for file in found:
        assert file.stat().st_mode & 0o077 == 0, file
    site.backend.close()


def plant_record(folder: Path, record: Path, target: Path) -> None:
    record.unlink()
    record.symlink_to(target / "file")


def plant_dangling_record(folder: Path, record: Path, target: Path) -> None:
    record.unlink()
    record.symlink_to(target / "new")


def plant_shard(folder: Path, record: Path, target: Path) -> None:
    record.parent.rename(folder / "moved")
    record.parent.symlink_to(target)


def plant_lock(folder: Path, record: Path, target: Path) -> None:
    (record.parent / ".lock").unlink()
    (record.parent / ".lock").symlink_to(target / "file")


def plant_dangling_lock(folder: Path, record: Path, target: Path) -> None:
    (record.parent / ".lock").unlink()
    (record.parent / ".lock").symlink_to(target / "new")


def plant_users(folder: Path, record: Path, target: Path) -> None:
    if (folder / "users").exists():
        (folder / "users").rename(folder / "moved")
    (folder / "users").symlink_to(target)


def plant_every_shard(folder: Path, record: Path, target: Path) -> None:
    for number in range(256):
        shard = folder / f"{number:02x}"
        if not shard.exists():
            shard.symlink_to(target)


def plant_hard_link(folder: Path, record: Path, target: Path) -> None:
    record.unlink()
    os.link(target / "file", record)


PLANTS = [
    *(plant_record, plant_dangling_record, plant_shard, plant_lock),
    *(plant_dangling_lock, plant_users, plant_every_shard, plant_hard_link),
]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no O_NOFOLLOW.")
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_link_is_not_followed(
    tmp_path: Path, plant: Callable[[Path, Path, Path], None]
) -> None:
    folder, target = tmp_path / "sessions", tmp_path / "target"
    target.mkdir()
    content = b"somebody's most important file"
    for name, action in {
        "read": show,
        "write": lambda: session.update(n=2),
        "log in": log_in("ada"),
        "log out": clear,
        "destroy": destroy,
        "touch": touch,
        "regenerate": regenerate,
    }.items():
        (target / "file").write_bytes(content)
        os.utime(target / "file", (1, 1))
        site = Site(
            {"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": folder},
            TESTING=False,
        )
        browser = site.browser()
        browser.set(n=1, _user_id="grace")
        digest = key_of(browser.id, "")
        [record] = folder.glob(f"{digest[:2]}/*{digest}")
        plant(folder, record, target)
        for later in (0, MINUTE, 40 * 86_400):
            t.cast(FakeClock, site.clock).advance(later)
            assert browser.visit(action).status_code in (200, 503), name
            assert browser.read().get("n") in (None, 1, 2)
            with contextlib.suppress(Exception):
                site.backend.prune(1_000)
        status = (target / "file").stat()
        assert (target / "file").read_bytes() == content, name
        assert status.st_mtime == 1 or plant is plant_hard_link
        assert [path.name for path in target.iterdir()] == ["file"], name
        # Not `shutil`: what is planted must not be followed here either.
        folder.rename(tmp_path / f"done {name}")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no O_NOFOLLOW.")
def test_a_link_at_the_name_of_the_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_serversession.backends.filesystem import files

    folder, target = tmp_path / "sessions", tmp_path / "target"
    site = Site(
        {"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": folder},
        TESTING=False,
    )
    browser = site.browser()
    browser.set(n=1)
    target.write_bytes(b"somebody's most important file")
    digest = key_of(browser.id, "")
    # As if an attacker could foresee the name.
    with monkeypatch.context() as patch:
        patch.setattr(files, "unique_number", lambda: 0)
        (folder / digest[:2] / f".tmp-{bytes(8).hex()}").symlink_to(target)
        assert browser.set(n=2).status_code == 503
    assert target.read_bytes() == b"somebody's most important file"
    assert browser.read() == {"n": 1}


# -- what a session may hold


class Color(enum.Enum):
    RED = "red"


class Rude:
    def __str__(self) -> str:
        raise ZeroDivisionError("rude")

    def __repr__(self) -> str:
        return "Rude()"


class RudeHtml:
    def __html__(self) -> str:
        raise ZeroDivisionError("rude")


class WrongHtml:
    def __html__(self) -> t.Any:
        return 5


class Liar:
    def __getattr__(self, name: str) -> t.Any:
        return lambda *args: self


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=("Cs", "Cc", "Lu"))),
    st.binary(max_size=50),
    st.uuids(),
    st.decimals(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.sampled_from([Color.RED, Markup("<b>"), object, len, ..., 1j, range(3)]),
    st.builds(object),
    st.builds(Rude),
    st.builds(RudeHtml),
    st.builds(WrongHtml),
    st.builds(Liar),
    st.builds(io.BytesIO),
)
keys = st.one_of(
    st.text(), st.integers(), st.none(), st.booleans(), st.binary(), st.floats(),
    st.tuples(st.text(), st.integers()), st.text(st.characters(categories=("Cs",))),
    st.sampled_from([" t", " d", "_permanent", "_user_id", "", uuid.UUID(int=1)]),
    st.builds(object),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_any_value_is_stored_or_refused_by_name(
    serializer: str, report: Report
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_SERIALIZER=serializer)
    tried = refused = 0

    @fuzz
    @given(keys, values)
    def check(key: t.Any, value: t.Any) -> None:
        nonlocal tried, refused
        # Who cannot even be asked who he is, is a bug, which is passed on.
        assume(not (key == "_user_id" and isinstance(value, Rude)))
        tried += 1
        browser = site.browser()
        browser.set(before=1)
        id = browser.id
        error: SerializationError | None = None
        try:
            browser.visit(lambda: session.__setitem__(key, value))
        except SerializationError as caught:
            error = caught
        if error is not None:
            refused += 1
            assert error.path.startswith("session")
            assert browser.id == id
            assert browser.read() == {"before": 1}
        else:
            # Whatever was taken can be read and written again.
            assert browser.read()["before"] == 1
            assert browser.set(before=2).status_code == 200
            assert browser.read()["before"] == 2

    check()
    assert 0 < refused < tried
    report(values_tried=tried, of_them_refused=refused)


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize("exponent", [64, 4_000, 14_284, 14_286, 20_000, 1_000_000])
def test_an_integer_of_any_size_is_stored_or_refused(
    serializer: str, exponent: int
) -> None:
    # Python converts no integer of more than 4300 digits to text, or back.
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_SERIALIZER=serializer)
    for value in (2**exponent, -(2**exponent), [2**exponent], {2**exponent: 1}):
        browser = site.browser()
        browser.set(before=1)
        try:
            browser.visit(lambda v=value: session.__setitem__("large", v))
        except SerializationError:
            assert exponent > 14_284
            assert browser.read() == {"before": 1}
        else:
            found: list[t.Any] = []
            browser.visit(lambda f=found: f.append(session["large"]))
            assert found[0] == value


def nest(depth: int, make: Callable[[t.Any], t.Any]) -> t.Any:
    value: t.Any = 1
    for _ in range(depth):
        value = make(value)
    return value


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize(
    "make",
    [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: {1: v}],
    ids=["list", "tuple", "dict", "int keys"],
)
def test_what_is_nested_too_deeply_is_refused(
    serializer: str, make: Callable[[t.Any], t.Any]
) -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_SERIALIZER=serializer)
    depths = [*range(1, 40), *range(40, 1100, 47), 5_000, 100_000]
    stored = 0
    for depth in depths:
        browser = site.browser()
        browser.set(before=1)
        value = nest(depth, make)
        try:
            browser.visit(lambda v=value: session.__setitem__("deep", v))
        except SerializationError:
            assert browser.read() == {"before": 1}
            assert depth >= 30
            continue
        stored += 1

        def look(frames: int = 0) -> t.Any:
            if frames:
                return look(frames - 1)
            found, levels = session["deep"], 0
            while not isinstance(found, int):
                found = next(iter(found.values() if isinstance(found, dict) else found))
                levels += 1
            return levels

        # Also where the view is called from far away.
        for frames in (0, 200):
            assert browser.visit(lambda f=frames: look(f)).text == str(depth)
    assert 30 <= stored < len(depths)


def test_a_cycle_is_refused(memory_site: Site) -> None:
    a_list: list[t.Any] = [1]
    a_list.append(a_list)
    a_dict: dict[str, t.Any] = {}
    a_dict["self"] = {"deeper": [a_dict]}
    for serializer in ("msgpack", "json"):
        site = Site({"SESSION_BACKEND": "memory"}, SESSION_SERIALIZER=serializer)
        for value in (a_list, a_dict, (a_list,), {"x": a_dict}):
            browser = site.browser()
            browser.set(before=1)
            with pytest.raises(SerializationError):
                browser.visit(lambda v=value: session.update(cycle=v))
            assert browser.read() == {"before": 1}
            with pytest.raises(SerializationError):
                browser.visit(
                    lambda: session.setdefault("own", []).append(session["own"])
                )
            assert browser.read() == {"before": 1}


def test_a_session_that_holds_itself_is_refused_or_copied(memory_site: Site) -> None:
    browser = memory_site.browser()
    with pytest.raises(SerializationError):
        browser.visit(lambda: session.update(me=session))
    assert browser.read() == {}


@pytest.mark.parametrize(
    ("lifetime", "is_kept"),
    [
        (dt.timedelta.max, False),
        (1e300, False),
        (1e12, False),
        (8.64e13, False),
        (5e-324, True),
        (dt.timedelta(microseconds=1), True),
    ],
    ids=str,
)
def test_a_lifetime_beyond_reason_is_refused_or_kept(
    make_backend_config: MakeConfig, lifetime: t.Any, is_kept: bool
) -> None:
    for name in FUZZED:
        site = Site(make_backend_config(name))
        browser = site.browser()
        browser.set(n=1)

        def prolong() -> None:
            session.permanent = True
            typed_session.lifetime = lifetime

        if not is_kept:
            with pytest.raises(ValueError, match="lifetime"):
                browser.visit(prolong)
            assert browser.read() == {"n": 1}
            continue
        browser.visit(prolong)
        for _ in range(2):
            for action in (show, write, lambda: "ignored", describe):
                assert browser.visit(action).status_code == 200
            t.cast(FakeClock, site.clock).advance(MINUTE)


def describe() -> str:
    return f"{typed_session.created_at} {typed_session.expires_at}"


# -- whom a session belongs to, and from where it is used

USERS: list[t.Any] = [
    *("", " ", "ada ", " ada", "ADA", "ada\0", "\0", "a\nb", "é", "e\u0301", "☃💥"),
    *("\ud800", "x" * 255, "💥" * 255, "'; DROP TABLE sessions; --", "*", "user:*"),
    *("../../x", "/etc/passwd", "sha256:" + "0" * 64, "%", "_", "{x}", "None"),
    *(0, 1, -1, 10**300, True, 1.5, float("nan"), b"ada", "y" * 300),
    *(("ada", 1), ["ada"], {"a": 1}, Markup("<b>"), uuid.UUID(int=1)),
    decimal.Decimal("1.0"),
]  # fmt: skip


def test_any_user_can_be_logged_in_found_and_ended(
    backend_config: dict[str, t.Any],
) -> None:
    site = Site(backend_config)
    has_index = Capability.USER_INDEX in site.backend.capabilities
    texts: set[str] = set()
    logged_in = 0
    for user in USERS:
        browser = site.browser()
        browser.set(n=1)
        id = browser.id
        if isinstance(user, (tuple, list, dict)):
            with pytest.raises(SerializationError):
                browser.visit(log_in(user))
            assert browser.id == id
            continue
        assert browser.visit(log_in(user)).status_code == 200
        assert browser.id != id
        logged_in += 1
        found: list[t.Any] = []
        browser.visit(lambda f=found: f.append(typed_session.user))
        assert found == [str(user)]
        texts.add(str(user))
        browser.visit(lambda: session.update(n=2))
        assert browser.read()["n"] == 2
        if has_index:
            with site.app.app_context():
                infos = site.extension.sessions_of(user)
                assert {info.user for info in infos} == {stored_name_of(user)}
    if has_index:
        with site.app.app_context():
            # All but those whose user was refused.
            before = site.extension.count() - (len(USERS) - logged_in)
            # Each ends its own, and nobody else's.
            ended = [site.extension.revoke_user(text) for text in sorted(texts)]
            assert min(ended) >= 1
            assert sum(ended) == before
            assert site.extension.count() == len(USERS) - logged_in


AGENTS = [
    *("", "x" * 10_000, "\xff\xfe", "\x01\x1b[31m", "a\tb", "<script>"),
    *("'; DROP TABLE sessions; --", "\xc3\xbc", "\xed\xa0\x80", "\0", "{}", '"\\'),
]  # fmt: skip


def test_any_user_agent_and_address_is_tracked(
    backend_config: dict[str, t.Any],
) -> None:
    site = Site(backend_config, SESSION_TRACK=("user_agent", "remote_addr"))
    for agent in AGENTS:
        for address in ("127.0.0.1", "::1", "", "x" * 5_000, "\xff\0"):
            if address not in ("127.0.0.1", "\xff\0") and agent:
                continue
            answer = send(site, "", write, HTTP_USER_AGENT=agent, REMOTE_ADDR=address)
            assert answer.status == 200
            cookie = answer.cookies[0].partition(";")[0]
            record = site.backend.load(
                key_of(id_of(cookie), site.state.config.key_prefix)
            )
            assert record is not None
            assert record.meta.get("user_agent", "") == agent[:256]
            assert record.meta.get("remote_addr", "") == address[:256]
            environ = {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": address}
            assert send(site, cookie, show, **environ).text == "{'n': 2}"


# -- cookies that a browser accepts


class Jar:
    """Keeps cookies as RFC 6265bis (draft 20), section 5.7, has it.

    Of one page, which a browser opened itself; third parties are not its business.
    """

    def __init__(self, host: str, *, is_secure: bool, now: float) -> None:
        self.host, self.is_secure, self.now = host, is_secure, now
        #: By name, host-only domain, path and partition.
        self.cookies: dict[tuple[str, str, str, bool], dict[str, t.Any]] = {}

    def receive(self, header: str) -> bool:
        """Process a Set-Cookie header; say whether it was accepted."""
        # 5.6: anything that has a control character is dropped.
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", header):
            return False
        pair, *rest = header.split(";")
        name, separator, value = pair.partition("=")
        name, value = name.strip(), value.strip()
        if not separator or len(name) + len(value) > 4096:
            return False
        attributes: dict[str, str] = {}
        for item in rest:
            key, _, text = item.partition("=")
            attributes[key.strip().lower()] = text.strip()
        domain = attributes.get("domain", "").lower().lstrip(".")
        if domain and not (self.host == domain or self.host.endswith(f".{domain}")):
            return False
        is_host_only = not domain
        path = attributes.get("path", "")
        path = path if path.startswith("/") else "/"
        is_secure = "secure" in attributes
        is_partitioned = "partitioned" in attributes
        # Steps on secure origins and attributes.
        if is_secure and not self.is_secure:
            return False
        if attributes.get("samesite", "").lower() == "none" and not is_secure:
            return False
        if is_partitioned and not is_secure:
            return False
        # 4.1.3 and 5.7, in any case of letters.
        if name.lower().startswith("__secure-") and not is_secure:
            return False
        if name.lower().startswith("__host-") and not (
            is_secure and is_host_only and attributes.get("path") == "/"
        ):
            return False
        place = (name, domain or self.host, path, is_partitioned)
        # "Leave secure cookies alone."
        if not self.is_secure and self.cookies.get(place, {}).get("is_secure"):
            return False
        if self._has_expired(attributes):
            self.cookies.pop(place, None)
        else:
            self.cookies[place] = {"value": value, "is_secure": is_secure}
        return True

    def _has_expired(self, attributes: dict[str, str]) -> bool:
        if "max-age" in attributes:
            return int(attributes["max-age"]) <= 0
        if "expires" in attributes:
            moment = parsedate_to_datetime(attributes["expires"])
            return moment.timestamp() <= self.now
        return False

    @property
    def header(self) -> str:
        return "; ".join(
            f"{name}={cookie['value']}"
            for (name, *_), cookie in self.cookies.items()
            if self.is_secure or not cookie["is_secure"]
        )


SECURE = {"SESSION_COOKIE_SECURE": True}
COOKIES: list[tuple[bool, dict[str, t.Any]]] = [
    (True, {"SESSION_COOKIE_NAME": "__Host-session", **SECURE}),
    (True, {"SESSION_COOKIE_NAME": "__HOST-session", **SECURE}),
    (True, {"SESSION_COOKIE_NAME": "__Secure-session", **SECURE}),
    (
        True,
        {
            "SESSION_COOKIE_NAME": "__Secure-session",
            "SESSION_COOKIE_DOMAIN": "example.com",
            "SESSION_COOKIE_PATH": "/",
            **SECURE,
        },
    ),
    (
        True,
        {
            "SESSION_COOKIE_NAME": "__Host-session",
            "SESSION_COOKIE_SAMESITE": "None",
            "SESSION_COOKIE_PARTITIONED": True,
            **SECURE,
        },
    ),
    (
        True,
        {
            "SESSION_COOKIE_NAME": "__Host-session",
            "SESSION_COOKIE_SAMESITE": "Strict",
            "SESSION_COOKIE_HTTPONLY": False,
            **SECURE,
        },
    ),
    (True, {"SESSION_COOKIE_SECURE": "auto", "SESSION_COOKIE_SAMESITE": "auto"}),
    (False, {"SESSION_COOKIE_SECURE": "auto", "SESSION_COOKIE_SAMESITE": "auto"}),
    (False, {"SESSION_COOKIE_SAMESITE": "Lax", "SESSION_COOKIE_PATH": "/"}),
    (False, {"SESSION_COOKIE_DOMAIN": "example.com"}),
    (False, {}),
]


@pytest.mark.parametrize("is_permanent", [False, True])
@pytest.mark.parametrize(("is_secure", "config"), COOKIES)
def test_a_browser_accepts_the_cookie_and_its_removal(
    is_secure: bool, config: dict[str, t.Any], is_permanent: bool
) -> None:
    name = config.get("SESSION_COOKIE_NAME", "session")
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_PERMANENT=is_permanent, **config)
    jar = Jar("www.example.com", is_secure=is_secure, now=site.clock())
    environ = {
        "HTTP_HOST": jar.host,
        "wsgi.url_scheme": "https" if is_secure else "http",
    }

    def visit(action: Action) -> list[str]:
        answer = send(site, jar.header, action, **environ)
        assert answer.status == 200
        for cookie in answer.cookies:
            assert jar.receive(cookie), cookie
        return answer.cookies

    [cookie] = visit(lambda: session.update(n=1))
    assert len(jar.cookies) == 1
    if name.lower().startswith("__host-"):
        parts = {part.strip().partition("=")[0].lower() for part in cookie.split(";")}
        assert "domain" not in parts
        assert "secure" in parts
        assert "; Path=/" in cookie
    assert send(site, jar.header, show, **environ).text.startswith("{'n': 1")
    # Renewed, the browser has the new one only.
    for action in (
        log_in("ada"),
        regenerate,
        lambda: session.pop("_user_id"),
    ):
        assert len(visit(action)) == 1
        assert len(jar.cookies) == 1
        assert send(site, jar.header, show, **environ).text.startswith("{'n': 1")
    for ending in (destroy, clear):
        visit(lambda: session.update(n=1))
        assert len(jar.cookies) == 1
        [removal] = visit(ending)
        assert jar.cookies == {}
        # Attribute by attribute what it was set with, but for the time.
        assert attributes_of(removal) == attributes_of(cookie)


def attributes_of(header: str) -> dict[str, str]:
    attributes = {}
    for item in header.split(";")[1:]:
        name, _, value = item.strip().partition("=")
        if name not in ("Expires", "Max-Age"):
            attributes[name] = value
    return attributes


def test_the_jar_is_as_strict_as_a_browser() -> None:
    jar = Jar("www.example.com", is_secure=True, now=1e9)
    assert jar.receive("__Host-a=1; Secure; Path=/")
    for header in (
        "__Host-a=2; Path=/",
        "__Host-a=2; Secure",
        "__Host-a=2; Secure; Path=/x",
        "__Host-a=2; Secure; Path=/; Domain=example.com",
        "__Secure-a=2; Path=/",
        "a=2; SameSite=None",
        "a=2; Partitioned",
        "a=2; Domain=example.org",
        "a=\x01",
        "a=" + "x" * 5000,
    ):
        assert not jar.receive(header), header
    # A removal without its attributes removes nothing.
    assert not jar.receive("__Host-a=; Path=/; Max-Age=0")
    assert len(jar.cookies) == 1
    assert jar.receive("__Host-a=; Secure; Path=/; Max-Age=0")
    assert jar.cookies == {}
    plain = Jar("www.example.com", is_secure=False, now=1e9)
    assert not plain.receive("a=1; Secure")


def test_no_generator_gets_a_header_of_its_own(report: Report) -> None:
    produced: list[t.Any] = []
    seen: list[t.Any] = []
    site = Site(
        {"SESSION_BACKEND": "memory"}, SESSION_ID_GENERATOR=lambda: produced[-1]
    )
    tried = accepted = 0
    nasty = [
        *("x" * 20 + end for end in '\r\n\t ;,"\\\0\x7f\x80é☃'),
        *("x" * 20 + "\r\nSet-Cookie: planted=1", "x" * 20 + "; Domain=evil.example"),
        *("", "x" * 15, "x" * 257, "x" * 100_000, b"x" * 20, None, 5, ["x" * 20]),
    ]
    ids = st.one_of(
        st.sampled_from(nasty),
        st.text(max_size=300),
        st.text(st.characters(max_codepoint=127), min_size=16, max_size=260),
        st.text("abc09-_.~%&=<>/()", min_size=16, max_size=256),
    )

    @fuzz
    @given(ids)
    def check(id: t.Any) -> None:
        nonlocal tried, accepted
        tried += 1
        produced.append(id)
        browser = site.browser()
        if id in seen:
            return  # and so taken
        try:
            response = browser.visit(write)
        except ValueError as caught:
            error = caught
        else:
            error = None
        if error is not None:
            assert "SESSION_ID_GENERATOR" in str(error)
            assert not isinstance(id, str) or len(id) < 4 or id not in str(error)
            return
        seen.append(id)
        accepted += 1
        [header] = response.headers.getlist("Set-Cookie")
        assert len(response.headers.getlist("Set-Cookie")) == 1
        assert header.isascii()
        assert header.isprintable()
        assert header.endswith("; HttpOnly; Path=/")
        assert set(SimpleCookie(header)) <= {"session"}
        assert browser.id == id
        assert browser.read() == {"n": 2}

    check()
    assert accepted
    report(ids_generated=tried, of_them_accepted=accepted)


# -- what is planted in the store


class Bomb:
    exploded: t.ClassVar[list[str]] = []

    def __reduce__(self) -> t.Any:
        return (Bomb.explode, ())

    @staticmethod
    def explode() -> None:
        Bomb.exploded.append("a pickle was run")


@pytest.fixture(params=list(RAW))
def store(
    request: pytest.FixtureRequest, make_backend_config: MakeConfig
) -> Iterator[Store]:
    config = make_backend_config(request.param)
    raw = RAW[request.param](config)
    yield Store(request.param, Site(config), raw)
    if hasattr(raw, "close"):
        raw.close()


def test_a_planted_pickle_never_runs(store: Store) -> None:
    bomb = Bomb()
    pickles = [pickle.dumps(bomb, protocol) for protocol in range(6)]
    pickles += [pickle.dumps({"n": bomb}), pickle.dumps([bomb])]
    assert pickle.loads(pickles[0]) is None
    assert Bomb.exploded
    Bomb.exploded.clear()
    sealer = Sealer()
    for planted in pickles:
        browser, _ = store.start()
        # Where a record belongs, raw; a loader that tries anything else would run it.
        for value in (planted, base64.b64encode(planted), b"\x80" + planted):
            store.spoil(browser, value)
            assert browser.read() == {}
        # Inside of a whole record, by somebody who can make a checksum.
        for code in (b"m", b"j", b"p", b"\x80", b"c", b"\0"):
            browser, _ = store.start()
            key = store.key(browser)
            record = store.site.backend.backend.load(key)
            assert record is not None
            envelope = Envelope(planted, code, None, record.created_at)
            for data in (planted, sealer.seal(envelope, key)):
                current = store.site.backend.backend.load(key)
                if current is None:
                    break
                store.site.backend.backend.replace(
                    key, dataclasses.replace(record, data=data), current.version
                )
                assert browser.visit(show).text == "{}"
    assert Bomb.exploded == []


def test_nonsense_with_a_right_checksum_is_never_an_error(
    make_backend_config: MakeConfig, report: Report
) -> None:
    """What only somebody can plant who writes to the store with our own format."""
    site = Site(make_backend_config("filesystem"))
    backend = site.backend.backend
    tried = 0
    _, valid = start(site)
    payloads = st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.sampled_from([b"\x81\xa1n\x01", b"\xc0", b"\xc1", b"\xd4\x01\x00"]),
            lambda inner: st.builds(lambda a, b: b"\x92" + a + b, inner, inner),
        ),
        st.sampled_from(
            [b"\x91" * 5_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
        ),
        st.sampled_from(
            [b"\xc7\xff" + bytes([code]) + b"9" * 255 for code in range(30)]
        ),
        st.sampled_from([b"[" * 50_000, b'{" u": "x"}', b'{" d": 5}', b"5", b"[]"]),
    )

    @fuzz
    @given(
        payloads,
        st.sampled_from([b"m", b"j", b"\0", b"x"]),
        st.sampled_from([None, -1.0, 0.0, 1e308, 1e300, 1e14, 5e-324, 1e-9, 60.0]),
        st.sampled_from([1.8e9, 0.0, -1e300, 1e300, 1e308]),
    )
    def check(
        payload: bytes, code: bytes, lifetime: float | None, issued_at: float
    ) -> None:
        nonlocal tried
        tried += 1
        browser = site.browser()
        browser.visit(lambda: session.update(n=1, _permanent=True))
        key = key_of(browser.id, "session:")
        record = backend.load(key)
        assert record is not None
        data = Sealer().seal(Envelope(payload, code, lifetime, issued_at), key)
        backend.replace(key, dataclasses.replace(record, data=data), record.version)
        cookie = browser.cookie
        for action in (show, describe, write, regenerate):
            browser.cookie = cookie
            assert browser.visit(action).status_code == 200

    check()
    assert send(site, f"session={valid}", show).text == "{'n': 1}"
    report(planted_payloads_tried=tried)


@pytest.mark.parametrize("lifetime", [-1.0, 0.0, 1e14, 1e300, 1e308, 5e-324, math.inf])
@pytest.mark.parametrize("issued_at", [0.0, -1e300, 1e308])
def test_nonsense_in_an_envelope_is_never_an_error(
    memory_site: Site, lifetime: float, issued_at: float
) -> None:
    backend = memory_site.backend.backend
    serializer = serializer_for("msgpack")
    for is_permanent in (False, True):
        browser = memory_site.browser()
        content = {"n": 1, "_permanent": is_permanent}
        browser.set(**content)
        key = key_of(browser.id, "session:")
        record = backend.load(key)
        assert record is not None
        envelope = Envelope(serializer.dumps(content), b"m", lifetime, issued_at)
        data = Sealer().seal(envelope, key)
        backend.replace(key, dataclasses.replace(record, data=data), record.version)
        cookie = browser.cookie
        for action in (show, describe, lambda: "ignored", write, regenerate):
            browser.cookie = cookie
            assert browser.visit(action).status_code == 200


def test_a_planted_record_cannot_be_made_anothers(store: Store) -> None:
    """Without encryption, whoever writes to the store decides; with it, nobody."""
    admin, attacker = start(store.site)[0], start(store.site)[0]
    admin.set(role="admin", _user_id="root")
    value = store.raw.get(store.key(admin))
    store.spoil(attacker, value)
    if store.name in ("sqlite", "postgresql", "mariadb"):
        assert attacker.read()["role"] == "admin"
    key = base64.urlsafe_b64encode(bytes(32)).decode()
    site = Site({"SESSION_BACKEND": store.site.backend.backend})
    site = Site(
        {"SESSION_BACKEND": store.site.backend.backend},
        SESSION_ENCRYPTION_KEY=key,
        SESSION_KEY_PREFIX=store.site.state.config.key_prefix,
    )
    encrypted = dataclasses.replace(store, site=site)
    admin, attacker = start(site)[0], start(site)[0]
    admin.set(role="admin", _user_id="root")
    value = encrypted.raw.get(encrypted.key(admin))
    assert b"admin" not in value
    encrypted.spoil(attacker, value)
    assert attacker.read() == {}
    assert admin.read()["role"] == "admin"
    assert math.isfinite(time.time())
