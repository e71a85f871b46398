"""Whom a session belongs to, wherever the application keeps that user."""

from __future__ import annotations

import copy
import dataclasses
import enum
import hashlib
import typing as t
import uuid
from collections.abc import Callable

import pytest
from flask import session

from flask_serversession import SerializationError
from flask_serversession import session as typed_session
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.testing import FakeClock
from flask_serversession.users import Content
from flask_serversession.users import StoredName
from flask_serversession.users import _Probe
from flask_serversession.users import as_shown
from flask_serversession.users import ask_function
from flask_serversession.users import find_user
from flask_serversession.users import keys_read_by
from flask_serversession.users import stored_name
from flask_serversession.users import stored_name_of

from .backend_configs import BACKEND_CONFIGS
from .backend_configs import Config
from .site import Browser
from .site import Site

INDEXED = [name for name in BACKEND_CONFIGS if not name.startswith("cachelib")]
LONG = "urn:" + "x" * 300


class Role(enum.Enum):
    ADMIN = "admin"


class Name(str, enum.Enum):
    ADA = "ada"


class Number(enum.IntEnum):
    SEVEN = 7


@dataclasses.dataclass
class User:
    name: str


def claim(data: t.Mapping[str, t.Any]) -> object:
    claims = data.get("claims")
    return None if claims is None else claims["sub"]


@pytest.fixture(params=INDEXED)
def make_site(
    request: pytest.FixtureRequest, make_backend_config: Callable[[str], Config]
) -> Callable[..., Site]:
    config = make_backend_config(request.param)
    return lambda **settings: Site(config, **settings)


def in_memory(**settings: t.Any) -> Site:
    clock = FakeClock()
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


def users_of(site: Site) -> list[str | None]:
    with site.app.app_context():
        return [info.user for info in site.extension.sessions()]


def count_of(site: Site, user: object) -> int:
    with site.app.app_context():
        return len(site.extension.sessions_of(user))


def revoked(site: Site, user: object) -> int:
    with site.app.app_context():
        return site.extension.revoke_user(user)


WAYS: dict[str, tuple[dict[str, t.Any], dict[str, t.Any]]] = {
    "Flask-Login": ({}, {"_user_id": "ada"}),
    "Flask's tutorial": ({}, {"user_id": "ada"}),
    "a key": ({"SESSION_USER_KEY": "account"}, {"account": "ada"}),
    "several": ({"SESSION_USER_KEY": ["a", "b"]}, {"a": None, "b": "ada"}),
    "a function": ({"SESSION_USER_KEY": claim}, {"claims": {"sub": "ada"}}),
}


@pytest.mark.parametrize(("settings", "content"), WAYS.values(), ids=WAYS)
def test_a_planted_session_opens_nothing_wherever_the_user_is_kept(
    settings: dict[str, t.Any], content: dict[str, t.Any]
) -> None:
    site = in_memory(**settings)
    attacker = site.browser()
    attacker.set(seen=1)
    victim = attacker.twin()
    victim.set(**content)
    assert attacker.read() == {}
    assert victim.visit(lambda: typed_session.user).text == "ada"
    assert count_of(site, "ada") == 1
    assert revoked(site, "ada") == 1
    assert victim.read() == {}


def test_the_first_key_that_is_there_counts() -> None:
    browser = in_memory().browser()
    browser.set(user_id="bob", _user_id="ada")
    assert browser.visit(lambda: typed_session.user).text == "ada"
    browser.visit(lambda: session.pop("_user_id"))
    assert browser.visit(lambda: typed_session.user).text == "bob"


def test_a_long_user_is_kept_as_a_hash_and_found_by_it(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(SESSION_MAX_PER_USER=1)
    first, second, other = site.browser(), site.browser(), site.browser()
    hashed = "sha256:" + hashlib.sha256(LONG.encode()).hexdigest()
    for browser, user in ((first, LONG), (other, LONG + "y"), (second, LONG)):
        browser.set(_user_id=user)
    assert first.read() == {}
    assert second.visit(lambda: typed_session.user).text == LONG
    with site.app.app_context():
        assert [info.user for info in site.extension.sessions_of(LONG)] == [hashed]
    # Nobody becomes another by calling himself as that one is kept.
    assert count_of(site, hashed) == 0
    assert revoked(site, hashed) == 0
    assert revoked(site, LONG) == 1
    assert other.read() == {"_user_id": LONG + "y"}


def test_users_whom_a_database_could_find_equal_are_told_apart(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(SESSION_MAX_PER_USER=1)
    users = [
        "ada",
        "ADA",
        "Ada ",
        "ada ",
        " ada",
        "\xe4da",
        "a\u0308da",
        "ad\xe0",
        "ad",
    ]
    browsers: dict[str, Browser] = {}
    for user in users:
        browsers[user] = site.browser()
        browsers[user].set(user_id=user)
    for user in users:
        assert count_of(site, user) == 1
    for user in users:
        assert revoked(site, user) == 1
        assert browsers.pop(user).read() == {}
        for other, browser in browsers.items():
            assert browser.read() == {"user_id": other}


@pytest.mark.parametrize("user", [None, {"sub": "7"}, ["ada"], ()])
def test_nobody_is_no_user_to_be_listed_or_ended(user: object) -> None:
    site = in_memory()
    site.browser().set(n=1)
    with site.app.app_context():
        for ask in (site.extension.sessions_of, site.extension.revoke_user):
            with pytest.raises(ValueError, match="found by the id of a user, not by"):
                ask(user)
    assert len(users_of(site)) == 1


@pytest.mark.parametrize(
    "user", [{"sub": "secret"}, ["secret"], ("secret",), {"secret"}, User("secret")]
)
def test_a_container_is_refused_with_the_remedy(user: object) -> None:
    site = in_memory()
    browser = site.browser()
    browser.set(n=1)
    with pytest.raises(SerializationError) as caught:
        browser.visit(lambda: session.update(user_id=user, n=2))
    assert caught.value.path == "session['user_id']"
    message = str(caught.value)
    assert f"flask.session['user_id'] is a {type(user).__name__}" in message
    assert "Let 'SESSION_USER_KEY' be a function" in message
    assert "secret" not in message
    assert browser.read() == {"n": 1}
    assert users_of(site) == [None]


def test_what_a_function_returns_or_raises_is_refused_with_the_remedy() -> None:
    site = in_memory(SESSION_USER_KEY=claim)
    browser = site.browser()
    browser.set(n=1)
    with pytest.raises(SerializationError, match="raised TypeError"):
        browser.visit(lambda: session.update(claims=5))
    with pytest.raises(SerializationError, match="returned a list, which names"):
        browser.visit(lambda: session.update(claims={"sub": ["secret"]}))
    assert browser.read() == {"n": 1}


def test_a_function_cannot_change_the_session() -> None:
    def change(data: t.Any) -> object:
        data["n"] = 2
        return "ada"

    with pytest.raises(SerializationError, match="raised TypeError"):
        in_memory(SESSION_USER_KEY=change).browser().set(n=1)


def test_a_function_that_raises_keeps_nobody_from_logging_out() -> None:
    def demand(data: t.Mapping[str, t.Any]) -> object:
        return data["claims"]["sub"]

    site = in_memory(SESSION_USER_KEY=demand)
    for log_out in (lambda: session.clear(), lambda: typed_session.destroy()):
        browser = site.browser()
        browser.set(claims={"sub": "ada"}, _permanent=True)
        assert browser.visit(log_out).status_code == 200
        assert users_of(site) == []


def test_what_other_settings_have_stored_can_still_be_read_and_ended() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock)
    before = Site({"SESSION_BACKEND": backend}, clock, SESSION_USER_KEY="account")
    after = Site({"SESSION_BACKEND": backend}, clock)
    browser = before.browser()
    browser.set(user_id={"sub": "7"})
    cookie, browser = browser.cookie, after.browser()
    browser.cookie = cookie
    assert browser.read() == {"user_id": {"sub": "7"}}
    with pytest.raises(SerializationError):
        browser.set(n=1)
    assert browser.visit(lambda: session.clear()).status_code == 200
    assert backend.count() == 0


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (7, "7"),
        (True, "True"),
        (Number.SEVEN, "7"),
        (Name.ADA, "ada"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        (b"\xff", "b'\\xff'"),
        (bytearray(b"a"), "b'a'"),
        ("", ""),
    ],
)
def test_a_user_has_one_name_before_and_after_being_stored(
    user: object, name: str
) -> None:
    site = in_memory()
    browser = site.browser()
    browser.set(user_id=user)
    first = browser.id
    assert browser.visit(lambda: typed_session.user).text == name
    assert browser.id == first
    assert users_of(site) == [name]
    assert stored_name_of(user) == name
    assert revoked(site, user) == 1


def test_an_object_that_has_no_text_of_its_own_names_nobody() -> None:
    class User:
        pass

    def named(data: t.Any) -> object:
        return User() if "uid" in data else None

    browser = Site({"SESSION_BACKEND": "memory"}, SESSION_USER_KEY=named).browser()
    with pytest.raises(SerializationError, match="returned a User, which names nobody"):
        browser.set(uid=1)


# -- step by step


def test_the_messages_name_key_type_and_remedy() -> None:
    with pytest.raises(SerializationError) as caught:
        find_user({"user_id": ["secret"]}, ("_user_id", "user_id"))
    assert str(caught.value) == (
        "flask.session['user_id'] is a list, which names nobody. Let 'SESSION_USER_KEY'"
        " be a function that returns the id inside of it, such as lambda data:"
        " data.get('user_id', {}).get('sub'), or keep the id under a key of its own."
    )
    assert caught.value.path == "session['user_id']"
    with pytest.raises(SerializationError) as caught:
        ask_function({}, lambda data: ["secret"])
    assert str(caught.value) == (
        "The function 'SESSION_USER_KEY' returned a list, which names nobody. Let it"
        " return the user's id."
    )
    with pytest.raises(SerializationError) as caught:
        ask_function({}, lambda data: data["secret"])
    assert str(caught.value) == (
        "The function 'SESSION_USER_KEY' raised KeyError. It gets the session's"
        " content, which it can only read, and has to return the user's id, and None"
        " where nobody is logged in."
    )
    with pytest.raises(ValueError, match="Is somebody") as refused:
        stored_name_of(None)
    assert str(refused.value) == (
        "Sessions are found by the id of a user, not by NoneType. Is somebody logged"
        " in?"
    )


def by_item(data: t.Any) -> t.Any:
    try:
        return data["who"]
    except KeyError:
        return None


def by_match(data: t.Any) -> t.Any:
    match data:
        case {"who": who}:
            return who
    return None


#: What a function may do with the content that it gets.
READS: dict[str, t.Callable[[t.Any], t.Any]] = {
    "get": lambda data: data.get("who"),
    "[]": by_item,
    "copy()": lambda data: data.copy().get("who"),
    "copy.copy()": lambda data: copy.copy(data).get("who"),
    "deepcopy": lambda data: copy.deepcopy(data).get("who"),
    "dict": lambda data: dict(data).get("who"),
    "**": lambda data: {**data}.get("who"),
    "|": lambda data: (data | {"a": 1}).get("who"),
    "dict |": lambda data: ({"a": 1} | data).get("who"),
    "items": lambda data: dict(data.items()).get("who"),
    "keys": lambda data: data["who"] if "who" in [*data.keys()] else None,
    "values": lambda data: "ada" if "ada" in [*data.values()] else None,
    "reversed": lambda data: next(
        (data[k] for k in reversed(data) if k == "who"), None
    ),
    "len": lambda data: data.get("who") if len(data) else None,
    "==": lambda data: None if data == {} else data.get("who"),
    "permanent": lambda data: None if data.permanent else data.get("who"),
    "match": by_match,
}


def typed_user(browser: Browser) -> str:
    return browser.visit(lambda: typed_session.user).text


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("function", READS.values(), ids=[*READS])
def test_a_function_may_read_the_content_in_any_way_at_any_size(
    function: t.Callable[[t.Any], t.Any], is_large: bool
) -> None:
    browser = in_memory(SESSION_USER_KEY=function).browser()
    content = {f"rows{n}": ["x" * 700] for n in range(10)} if is_large else {}
    browser.set(n=1, **content)
    former = browser.id
    browser.set(who="ada")
    assert browser.id != former
    assert typed_user(browser) == "ada"
    browser.set(n=2)
    assert browser.read() == {"n": 2, **content, "who": "ada"}
    former = browser.id
    browser.visit(lambda: session.pop("who"))
    assert browser.id != former
    assert typed_user(browser) == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda data: data.pop("who", None),
        lambda data: data.setdefault("who", None),
        lambda data: data.meta.get("who"),
        lambda data: data.new,
        lambda data: data.clear(),
    ],
)
def test_whatever_else_it_does_with_it_is_refused_at_any_size(function: t.Any) -> None:
    for size in (1, 10_000):
        browser = in_memory(SESSION_USER_KEY=function).browser()
        with pytest.raises(
            SerializationError, match="which it can only read"
        ) as caught:
            browser.set(rows=["x" * size])
        assert isinstance(caught.value.__cause__, AttributeError)


def test_the_content_that_a_function_gets_shows_no_value() -> None:
    assert repr(Content({"who": "ada"})) == "<Content keys=['who']>"


@pytest.mark.parametrize("name", ["get", "[]", "copy()", "copy.copy()", "|", "len"])
def test_it_is_known_which_keys_a_function_reads(name: str) -> None:
    assert keys_read_by(READS[name]) == {"who"}


def test_a_function_may_find_nobody() -> None:
    assert ask_function({}, lambda data: None) is None
    assert ask_function({"a": 1}, lambda data: data["a"]) == "1"
    assert find_user({}, ("_user_id",)) is None


@pytest.mark.parametrize("length", [255, 256])
def test_only_what_is_too_long_is_hashed(length: int) -> None:
    user = "u" * length
    assert (stored_name(user) == user) is (length == 255)
    assert stored_name("sha256") == "sha256"
    lone = "\udc80" * 256
    assert stored_name(lone).startswith("sha256:")


@dataclasses.dataclass
class Account:
    id: int


class OnlyShown:
    def __repr__(self) -> str:
        return "shown"


class OnlyText:
    def __str__(self) -> str:
        return "text"


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (memoryview(b"a"), "b'a'"),
        (1.5, "1.5"),
        (OnlyShown(), "shown"),
        (OnlyText(), "text"),
        (object(), None),
        (Account(1), None),
        (iter("ada"), None),
        (len, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_names_somebody(user: object, name: str | None) -> None:
    if name is None:
        with pytest.raises(ValueError, match="Is somebody logged in"):
            stored_name_of(user)
    else:
        assert stored_name_of(user) == name


@pytest.mark.parametrize("name", [LONG, "sha256:" + "0" * 64, "sha256:short"])
def test_a_user_is_found_by_the_name_that_lists_show(name: str) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    site.browser().set(_user_id=name)
    with site.app.app_context():
        (info,) = site.extension.sessions()
        assert info.user == stored_name_of(name)
        assert info.user != name
        for user in (name, info.user):
            assert [found.user for found in site.extension.sessions_of(user)] == [
                info.user
            ]
        # As text it is somebody's who is called like that.
        assert site.extension.sessions_of(str.__str__(info.user)) == []
        assert site.extension.update_user(info.user, lambda own: own.update(n=1)) == 1
        assert site.extension.revoke_user(info.user) == 1


class Texts(str):
    """A text that names somebody as any text does."""

    def __str__(self) -> str:
        return "another"


def test_a_text_is_a_name_as_it_is() -> None:
    name = "a" * 3
    assert find_user({"user_id": name}, ("user_id",)) is name
    assert find_user({"user_id": Texts("ada")}, ("user_id",)) == "ada"
    with pytest.raises(ValueError, match=r"not by list\. Is somebody"):
        stored_name_of([])


def test_a_function_tells_where_it_looks() -> None:
    def look(data: t.Any) -> object:
        assert data  # or it would not look further
        assert list(data) == []
        assert data.get("profile") is None
        assert data.get("claims", {}) == {}
        return data["last"]["never"]

    assert keys_read_by(look) == {"profile", "claims", "last"}
    assert keys_read_by(lambda data: None) == set()
    with pytest.raises(KeyError, match="last"):
        _Probe()["last"]


@pytest.mark.parametrize(
    ("shown", "is_hash"),
    [
        ("sha256:" + "0f" * 32, True),
        ("sha256:" + "0f" * 31, False),
        ("ada", False),
    ],
)
def test_a_hash_that_was_shown_in_a_list_finds_its_user(
    shown: str, is_hash: bool
) -> None:
    user = as_shown(shown)
    assert user == shown
    assert isinstance(user, StoredName) is is_hash
    assert (stored_name_of(user) == shown) is (is_hash or not shown.startswith("sha"))
