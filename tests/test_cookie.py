from __future__ import annotations

import datetime as dt
import math
import re
import typing as t

import pytest
from flask import Flask
from flask import Response
from flask import session
from werkzeug.sansio.http import parse_cookie

from flask_serversession import ServerSession
from flask_serversession.config import MAX_DURATION
from flask_serversession.cookie import CookieSigner
from flask_serversession.cookie import CookieState
from flask_serversession.cookie import claims_permanent
from flask_serversession.cookie import find_values
from flask_serversession.cookie import set_cookie
from flask_serversession.ids import check_id
from flask_serversession.ids import generate_id

ID = "0123456789abcdefghijABCDEFGHIJ_-0123456789a"
# What browsers hold. Another signature for the same would log everybody out.
PERMANENT = f"{ID}.p6553f101-5f5e1000.PO2-j7qZLyRdjF4GM-LQI0T8Pz5McTkcWmnRbvqDBUA"
OWN_LIFETIME = (
    f"{ID}.b6553f100-5f5e1000-15f91.nrJ7JTaQ-Y3Dau_ydoOdcCzF_VU4ZGyiaq5uN3zoE90"
)
OF_OLDER_SECRET = f"{ID}.b6553f100-5f5e1000.ys3te5STU_Cv1Ic3dTGzbX4UhkRmtb22Q_iAp74WB6c"


def test_cookies_of_former_versions_are_known() -> None:
    signer = CookieSigner(["a secret", "older"])
    assert signer.verify(PERMANENT) == CookieState(
        id=ID, is_permanent=True, touched_at=1_700_000_001, counts_from=1_600_000_000
    )
    assert signer.verify(OWN_LIFETIME) == CookieState(
        id=ID,
        is_permanent=False,
        touched_at=1_700_000_000,
        counts_from=1_600_000_000,
        lifetime=90.001,
    )
    assert signer.verify(OF_OLDER_SECRET) == CookieState(
        id=ID,
        is_permanent=False,
        touched_at=1_700_000_000,
        counts_from=1_600_000_000,
        is_stale=True,
    )


def test_a_cookie_is_signed_with_the_newest_secret_and_no_moment_is_too_early() -> None:
    signer = CookieSigner(["a secret", "older"])
    state = CookieState(ID, True, 1_700_000_000.25, 1_600_000_000.75)
    assert signer.sign(state) == PERMANENT
    state = CookieState(ID, False, 1_700_000_000, 1_600_000_000, 90.0005)
    assert signer.sign(state) == OWN_LIFETIME


@pytest.mark.parametrize("cookie", [PERMANENT, OWN_LIFETIME, OF_OLDER_SECRET])
def test_a_signature_covers_all_of_a_cookie(cookie: str) -> None:
    signer = CookieSigner(["a secret", "older"])
    assert signer.verify(cookie) is not None
    for place, character in enumerate(cookie):
        other = "1" if character == "0" else "0"
        changed = cookie[:place] + other + cookie[place + 1 :]
        assert signer.verify(changed) is None, changed
        assert signer.verify(cookie[:place]) is None
        assert signer.verify(cookie[:place] + cookie[place + 1 :]) is None


def test_a_signature_is_worth_nothing_to_another_application() -> None:
    assert CookieSigner(["another"]).verify(PERMANENT) is None
    assert CookieSigner([b"a secret"]).verify(PERMANENT) is not None


@pytest.mark.parametrize("value", ["", "a", "a.b", "a.b.c", "..", f"{ID}.b0-0.\xe9"])
def test_what_is_no_cookie_of_ours_is_nobodys(value: str) -> None:
    assert CookieSigner(["a secret"]).verify(value) is None


def test_the_longest_cookie_is_known() -> None:
    signer = CookieSigner(["a secret"])
    state = CookieState("a" * 256, True, 2**48 - 1, 2**48 - 1, MAX_DURATION)
    assert signer.verify(signer.sign(state)) == state


def test_an_id_may_hold_dots() -> None:
    signer = CookieSigner(["a secret"])
    state = CookieState("an.id.with.dots.in.it", True, 1.0, 2.0, 0.5)
    assert signer.verify(signer.sign(state)) == state


def test_a_cookie_says_how_long_its_session_lives() -> None:
    cookie = CookieState(ID, True, 0, 0, 90.001)
    assert cookie.says(True, 90.001)
    # Of the same millisecond, which is all that it can say.
    assert cookie.says(True, 90.0005)
    assert not cookie.says(False, 90.001)
    assert not cookie.says(True, 91.0)
    assert not cookie.says(True, 0.5)
    assert not cookie.says(True, None)
    assert not CookieState(ID, True, 0, 0).says(True, 90.0)
    assert not CookieState(ID, True, 0, 0).says(True, 0.001)
    assert CookieState(ID, False, 0, 0).says(False, None)


def test_an_id_is_a_secret_of_256_bits() -> None:
    ids = {generate_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", id) for id in ids)
    assert check_id(min(ids)) == min(ids)
    assert ID not in repr(CookieState(ID, True, 0, 0))


@pytest.mark.parametrize(
    "id", ["0123456789abcdef", "a" * 256, "!#$%&'()*+-./:<=>?@[]^_`{|}~"]
)
def test_a_generator_may_make_any_id_that_a_cookie_takes(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize(
    "id",
    [
        "0123456789abcde",
        "a" * 257,
        "0123456789 abcdef",
        "0123456789abcdef;",
        "0123456789abcdef\n",
        "0123456789abcde\xe9",
        "",
        b"0123456789abcdef",
        None,
        123456789012345678,
    ],
)
def test_what_cannot_be_an_id_is_refused_and_not_shown(id: object) -> None:
    with pytest.raises(ValueError, match="SESSION_ID_GENERATOR") as caught:
        check_id(id)
    assert str(caught.value) == (
        "'SESSION_ID_GENERATOR' returned something that cannot be an id; expected a str"
        " of 16 to 256 ASCII characters that a cookie takes unquoted, such as"
        " secrets.token_urlsafe(32)."
    )


def test_ids_that_follow_from_a_text_stay_the_same() -> None:
    # Of sessions that are taken over, by several requests of one visitor at once.
    newest, older = CookieSigner(["a secret", "older"]).derive_ids(b"text")
    assert newest == "oxOJjD4_79kQQG9MQTGcXHqmnbJReFSLcGNL04m3L84"
    assert older == "YhhQ-EzDp45CZEyy0xDR_-BDpwoksWtBrgCACy9zK6I"
    assert check_id(newest) == newest


@pytest.mark.parametrize(
    ("value", "is_permanent"),
    [
        (PERMANENT, True),
        ("an.id.with.dots.p0-0.signature", True),
        (OWN_LIFETIME, False),
        ("p.b0-0.p", False),
        ("p0-0.signature", False),
        ("p", False),
        ("", False),
    ],
)
def test_a_cookie_claims_to_be_permanent(value: str, is_permanent: bool) -> None:
    assert claims_permanent(value) is is_permanent


@pytest.mark.parametrize(
    "header",
    [
        "",
        "session=a",
        "session=a;session=b",
        "other=1; session=a.b-c_d; session=e; last=2",
        "mysession=x; session2=y; notthis=session; session=z",
        "Xsession=a; sessionX=b; X session=c; session=XdX",
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
    assert find_values(f"s={white}real{white} \t", "s") == [f"{white}real{white}"]


@pytest.mark.parametrize(
    "header",
    [
        'q="; session=VALUE; z="',
        'session=VALUE; z="',
        '"; session=VALUE',
        'q="a\\"; session=VALUE; z="; w="\\',
        'a="b; c"; session=VALUE; d="e',
        'session="planted"; session=VALUE',
        'session="; session=VALUE; session="',
        '\xa0session="planted"; session=VALUE; q="',
        'session"="planted; session=VALUE',
    ],
)
def test_no_quote_in_the_header_hides_the_session(header: str) -> None:
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
        "/get", environ_overrides={"HTTP_COOKIE": header.replace("VALUE", cookie.value)}
    )
    assert answer.text == "Ann"


def test_a_client_may_put_the_whole_value_into_quotes() -> None:
    assert find_values('session="a"; b="session=c"', "session") == ["a"]
    assert find_values('session= "a"\t; session=""; session="', "session") == [
        *("a", "", ""),
    ]
    signer = CookieSigner(["a secret"])
    (value,) = find_values(f'session="{make_cookie(signer)}"', "session")
    assert signer.verify(value) is not None


def test_what_begins_or_ends_in_quotes_is_never_the_session() -> None:
    assert find_values('"session"=a; b="; session=c"', "session") == ['c"']
    assert find_values('session="a; b="', "session") == ['"a']
    planted = '\xa0__Host-s=planted; q="; __Host-s=real; z="; \xa0__Host-s="planted"'
    assert find_values(planted, "__Host-s") == ["real"]


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
    for name in CookieState._fields:
        with pytest.raises(AttributeError):
            setattr(state, name, None)


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


# The header


def make_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="secret", SESSION_BACKEND="memory", **config)
    app.testing = True
    ServerSession(app)
    app.add_url_rule("/", view_func=lambda: session.update(n=1) or "")
    return app


NOW = 1_800_000_000.0


def set_ours(app: Flask, expires: t.Any) -> str:
    with app.test_request_context():
        response = app.make_response("")
        set_cookie(
            app.session_interface, app, response, lambda: "a-value", expires, NOW
        )
        return response.headers["Set-Cookie"]


@pytest.mark.parametrize(
    "expires",
    [
        None,
        dt.datetime(2030, 1, 1, 12, 30, 59, 999_999, dt.timezone.utc),
        dt.datetime(2030, 1, 1, 12, 30, 59),  # noqa: DTZ001
        dt.datetime(2030, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        1_900_000_000,
        "Tue, 01 Jan 2030 12:30:59 GMT",
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("config", "attributes"),
    [
        ({}, {"httponly": True}),
        (
            {
                "SESSION_COOKIE_NAME": "sitzung-ä",
                "SESSION_COOKIE_DOMAIN": ".bücher.example",
                "SESSION_COOKIE_PATH": "/ä b",
                "SESSION_COOKIE_SECURE": True,
                "SESSION_COOKIE_HTTPONLY": False,
                "SESSION_COOKIE_SAMESITE": "lax",
                "SESSION_COOKIE_PARTITIONED": True,
            },
            {
                "key": "sitzung-ä",
                "domain": ".bücher.example",
                "path": "/ä b",
                "secure": True,
                "samesite": "lax",
                "partitioned": True,
            },
        ),
    ],
    ids=["defaults", "all"],
)
@pytest.mark.filterwarnings("ignore:'SESSION_COOKIE_NAME' is 'sitzung")
def test_a_cookie_is_set_as_werkzeug_sets_it(
    config: dict[str, t.Any], attributes: dict[str, t.Any], expires: t.Any
) -> None:
    app = make_app()
    app.config.update(config)  # past the checks of the settings
    response = Response()
    named: dict[str, t.Any] = {"key": "session", **attributes}
    max_age: int | None = None
    if isinstance(expires, dt.datetime):
        utc = dt.timezone.utc
        moment = expires if expires.tzinfo else expires.replace(tzinfo=utc)
        max_age = math.ceil(moment.timestamp() - NOW)
    response.set_cookie(value="a-value", expires=expires, max_age=max_age, **named)
    # The second time, it is remembered.
    for _ in range(2):
        assert set_ours(app, expires) == response.headers["Set-Cookie"]


def test_an_attribute_that_changes_is_in_the_next_response() -> None:
    app = make_app()
    for path in ("/", "/one", "/two", "/one"):
        app.config["SESSION_COOKIE_PATH"] = path
        assert set_ours(app, None) == f"session=a-value; HttpOnly; Path={path}"


def test_a_response_class_of_the_application_sets_the_cookie_itself() -> None:
    app = make_app()

    class Marked(Response):
        def set_cookie(self, *args: t.Any, **kwargs: t.Any) -> None:
            super().set_cookie(*args, **kwargs)
            self.headers["Marked"] = kwargs["key"]

    app.response_class = Marked
    response = app.test_client().get("/")
    assert response.headers["Marked"] == "session"
    assert response.headers["Set-Cookie"].startswith("session=")


def test_a_cookie_that_is_longer_than_the_application_allows_is_warned_of() -> None:
    app = make_app()
    app.config["MAX_COOKIE_SIZE"] = 100
    with pytest.warns(UserWarning, match="'session' cookie is too large"):
        response = app.test_client().get("/")
    assert response.headers["Set-Cookie"].startswith("session=")
    app.config["MAX_COOKIE_SIZE"] = 0  # no limit
    assert "Set-Cookie" in app.test_client().get("/").headers


# What leads on in the store


def test_a_note_in_the_store_is_proved_by_any_of_the_secrets_and_by_nothing_else() -> (
    None
):
    former, now = CookieSigner(["old"]), CookieSigner(["new", "old"])
    note = "from a to b"
    assert now.attests(note, former.attest(note))
    assert now.attests(note, now.attest(note))
    assert not former.attests(note, now.attest(note))
    assert not now.attests("from a to c", now.attest(note))
    for proof in ("", "yes", "é", "\udce9", now.attest(note)[:-1]):
        assert not now.attests(note, proof)
    # No id that follows from the same text is a proof of it.
    assert not any(now.attests(note, id) for id in now.derive_ids(note.encode()))
