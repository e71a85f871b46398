from __future__ import annotations

import dataclasses
import typing as t

import pytest
from flask import Flask
from flask import session
from werkzeug.sansio.http import parse_cookie

from flask_serversession import ServerSession
from flask_serversession.cookie import CookieSigner
from flask_serversession.cookie import CookieState
from flask_serversession.cookie import find_values
from flask_serversession.cookie import generate_id


@pytest.mark.parametrize(
    "header",
    [
        "",
        "session=a",
        "session=a;session=b",
        "other=1; session=a.b-c_d; session=e; last=2",
        "mysession=x; session2=y; notthis=session; session=z",
        " session = a ;\tsession\t=\tb\t",
        "session; session=",
        "a=session=b; session=c=d",
        ";;session=a;;",
        "=session; session=a",
    ],
)
def test_values_are_found_where_the_parser_of_all_cookies_finds_them(
    header: str,
) -> None:
    parsed = [value for value in parse_cookie(header).getlist("session") if value]
    assert [value for value in find_values(header, "session") if value] == parsed


@pytest.mark.parametrize("white", ["\xa0", "\x85", "\x1f", "\x0b", "\x0c"])
def test_what_is_white_to_python_alone_is_part_of_a_name(white: str) -> None:
    # Browsers take such a name from any subdomain and any script, since to them it does
    # not begin with "__Host-".
    header = f"{white}__Host-s=planted; __Host-s=real; __Host-s{white}=planted"
    assert find_values(header, "__Host-s") == ["real"]
    assert parse_cookie(header).getlist("__Host-s") == ["real"]


def test_a_client_may_quote_the_cookie() -> None:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app)

    @app.get("/set")
    def set_() -> str:
        session["name"] = "Ann"
        return ""

    @app.get("/get")
    def get() -> str:
        return str(session.get("name"))

    client = app.test_client()
    client.get("/set")
    cookie = client.get_cookie("session")
    assert cookie is not None
    answer = app.test_client(use_cookies=False).get(
        "/get", headers={"Cookie": f'a="b; c"; session="{cookie.value}"'}
    )
    assert answer.text == "Ann"


def make_cookie(signer: CookieSigner) -> str:
    now = 1_700_000_000.0
    return signer.sign(CookieState(generate_id(), True, now, now))


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the cookies that signatures are computed for."""
    values: list[str] = []
    verify: t.Any = CookieSigner._verify

    def record(self: CookieSigner, value: str) -> CookieState | None:
        values.append(value)
        result: CookieState | None = verify(self, value)
        return result

    monkeypatch.setattr(CookieSigner, "_verify", record)
    return values


def test_a_cookie_that_was_verified_lately_is_not_verified_again(
    verifications: list[str],
) -> None:
    signer = CookieSigner(["secret"])
    cookie = make_cookie(signer)
    first = signer.verify(cookie)
    assert first is not None
    # Equal, and not the same object: as the next request brings it.
    assert signer.verify("".join(list(cookie))) is first
    assert verifications == [cookie]


def test_what_is_remembered_is_bounded_and_short(verifications: list[str]) -> None:
    signer = CookieSigner(["secret"])
    cookie = make_cookie(signer)
    signer.verify(cookie)
    for number in range(5_000):
        assert signer.verify(f"{number}.b0-0.forged") is None
    assert signer.verify("x" * 10_000 + ".b0-0.forged") is None
    assert signer._remembered.cache_info().currsize < 5_000
    assert max(map(len, verifications)) < 1_000
    # Forged ones can push it out, and that is all they can.
    assert signer.verify(cookie) is not None
    assert verifications.count(cookie) == 2


def test_what_is_remembered_cannot_be_changed_by_one_request_for_another() -> None:
    signer = CookieSigner(["secret"])
    state: t.Any = signer.verify(make_cookie(signer))
    for field in dataclasses.fields(state):
        with pytest.raises(AttributeError):
            setattr(state, field.name, None)


def test_a_secret_that_was_withdrawn_verifies_nothing_that_it_had_verified() -> None:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="old", SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app)

    @app.get("/")
    def index() -> str:
        session.setdefault("n", 0)
        session["n"] += 1
        return str(session["n"])

    client = app.test_client()
    assert [client.get("/").text for _ in range(3)] == ["1", "2", "3"]
    app.config["SECRET_KEY"] = "new"
    assert client.get("/").text == "1"
    app.config["SECRET_KEY"] = "newest"
    app.config["SECRET_KEY_FALLBACKS"] = ["new"]
    assert client.get("/").text == "2"
    app.config["SECRET_KEY_FALLBACKS"] = []
    assert client.get("/").text == "3"  # it had got a cookie signed with the newest
