from __future__ import annotations

import pytest
from flask import Flask
from flask import session
from werkzeug.sansio.http import parse_cookie

from flask_serversession import ServerSession
from flask_serversession.cookie import find_values


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
