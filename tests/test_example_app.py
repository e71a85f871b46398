"""Visits the example application as a person with a browser does."""

from __future__ import annotations

import functools
import html.parser
import json
import ssl
import stat
import subprocess
import sys
import time
import typing as t
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path

import pytest
from cachelib import SimpleCache
from flask import Flask
from werkzeug.security import generate_password_hash
from werkzeug.test import TestResponse

from example_app import create_app
from example_app.auth import MAX_PASSWORD
from example_app.auth import REASONS
from example_app.extensions import server_session
from example_app.notes import MAX_NOTES
from example_app.notes import MAX_TEXT
from example_app.shop import PRODUCTS
from example_app.users import NameTakenError
from example_app.users import Users
from example_app.words import ago
from example_app.words import device
from flask_serversession import Capability
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .dbsc import DeviceBrowser
from .servers import Gunicorn

ROOT = Path(__file__).parent.parent

AppMaker = Callable[..., Flask]


@pytest.fixture(autouse=True)
def _hash_passwords_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "example_app.users.generate_password_hash",
        functools.partial(generate_password_hash, method="pbkdf2:sha256:1000"),
    )


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[AppMaker]:
    """Make the application as a start of the server does, always in one folder."""
    apps: list[Flask] = []

    def make(config: Config | None = None, **settings: t.Any) -> Flask:
        app = create_app(
            {"TESTING": True, **(config or {}), **settings}, tmp_path / "instance"
        )
        apps.append(app)
        return app

    yield make

    for app in apps:
        app.extensions["serversession"].backend.close()


@pytest.fixture
def app(make_app: AppMaker) -> Flask:
    return make_app(SESSION_BACKEND="memory")


@pytest.fixture
def browser(app: Flask) -> Browser:
    return Browser(app)


def make_counted_app(make_app: AppMaker, config: Config) -> Flask:
    """Make the application with a backend that counts, and fails when told to."""
    inner = make_app(config).extensions["serversession"].backend
    prefix = {
        key: value for key, value in config.items() if key == "SESSION_KEY_PREFIX"
    }
    return make_app(prefix, SESSION_BACKEND=CountingBackend(inner))


def backend_of(app: Flask) -> CountingBackend:
    return t.cast(CountingBackend, app.extensions["serversession"].backend)


# What a browser does


class Button(t.NamedTuple):
    text: str
    form: str
    name: str | None
    value: str


class Page(html.parser.HTMLParser):
    """A page: its text, its forms, and whether it keeps the rules."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.actions: dict[str, str] = {}
        self.methods: dict[str, str] = {}
        self.fields: dict[str, list[tuple[str, str]]] = {}
        self.buttons: list[Button] = []
        self.ids: set[str] = set()
        self.references: set[str] = set()
        self.links: dict[str, str] = {}
        self.messages: list[tuple[str, str]] = []
        #: What is wrong with fields, by their ids.
        self.problems: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str], int]] = []
        self._labels: set[str] = set()
        self._controls: list[dict[str, str]] = []
        self._form = ""
        self.feed(source)
        self.close()
        self._check()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        # What the Content-Security-Policy forbids would only be seen in a browser.
        assert tag != "style"
        assert tag != "script" or found["src"].startswith("/static/"), found
        assert not any(n == "style" or n.startswith("on") for n in found), found
        if "id" in found:
            assert found["id"] not in self.ids, f"{found['id']} twice"
            self.ids.add(found["id"])
        for name in ("for", "form", "aria-describedby", "aria-labelledby"):
            if name in found:
                self.references.add(found[name])
        if tag == "label" and "for" in found:
            self._labels.add(found["for"])
        if tag == "form":
            self._form = found.get("id", f"#{len(self.actions)}")
            self.actions[self._form] = found.get("action", "")
            self.methods[self._form] = found.get("method", "get")
            self.fields.setdefault(self._form, [])
        if tag == "input":
            self._take_input(found)
        if tag not in ("input", "img", "link", "meta", "br"):
            self._open.append((tag, found, len(self.words)))

    def _take_input(self, found: dict[str, str]) -> None:
        if found.get("type") != "hidden":
            inside_label = any(tag == "label" for tag, _, _ in self._open)
            self._controls.append({**found, "is_inside": "yes" if inside_label else ""})
        if found.get("type") in ("checkbox", "radio") and "checked" not in found:
            return
        self.fields[self._form].append((found["name"], found.get("value", "")))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        opened, found, start = self._open.pop()
        assert opened == tag, f"<{opened}> ended by </{tag}>"
        raw = "".join(self.words[start:])
        text = " ".join(raw.split())
        if tag == "form":
            self._form = ""
        elif tag == "button":
            form = found.get("form", self._form)
            self.buttons.append(
                Button(text, form, found.get("name"), found.get("value", ""))
            )
        elif tag == "script":
            assert not text, "a script in the page"
        elif tag == "textarea":
            self._controls.append({**found, "is_inside": ""})
            self.fields[self._form].append((found["name"], raw.removeprefix("\n")))
        elif tag == "a":
            self.links[text] = found["href"]
        elif tag == "p" and "message" in found.get("class", "").split():
            self.messages.append((found["class"].removeprefix("message "), text))
        elif tag == "p" and found.get("class") == "field-error":
            self.problems[found["id"].removesuffix("-error")] = text

    def _check(self) -> None:
        assert not self._open, self._open
        assert self.references <= self.ids, self.references - self.ids
        for control in self._controls:
            assert (
                control.get("id") in self._labels
                or control["is_inside"]
                or control.get("aria-label")
            ), f"{control} has no label"
        for form, method in self.methods.items():
            # What is only looked for is in the address; a token must not be.
            assert (method == "post") is ("csrf_token" in dict(self.fields[form]))


class Browser:
    """A person with a browser: follows links, fills in forms, and keeps cookies."""

    def __init__(
        self, app: Flask, user_agent: str = "Shopper/1.0", address: str = "127.0.0.1"
    ) -> None:
        self.client = app.test_client()
        self.client.environ_base["HTTP_USER_AGENT"] = user_agent
        self.client.environ_base["REMOTE_ADDR"] = address
        self.secrets: set[str] = set()
        self.page = Page("")
        self.address = ""
        self.status = 0

    @property
    def cookie(self) -> str | None:
        cookie = self.client.get_cookie("session")
        return None if cookie is None else cookie.value

    @cookie.setter
    def cookie(self, value: str) -> None:
        self.client.set_cookie("session", value)

    @property
    def id(self) -> str:
        assert self.cookie is not None
        return self.cookie.split(".")[0]

    def visit(self, address: str) -> Page:
        self._take(self.client.get(address, follow_redirects=True))
        return self.page

    def submit(
        self, text: str, /, *ticked: tuple[str, str], **filled_in: str
    ) -> TestResponse:
        """Fill in the form that a button belongs to, and press it."""
        (button,) = (b for b in self.page.buttons if b.text == text)
        fields = {name: [value] for name, value in self.page.fields[button.form]}
        for name, value in (*filled_in.items(), *ticked):
            fields[name] = [value]
        if button.name is not None:
            fields[button.name] = [button.value]
        if self.page.methods[button.form] == "get":
            response = self.client.get(self.address, query_string=fields)
            self._take(response)
            return response
        return self.post(self.page.actions[button.form] or self.address, fields)

    def post(self, address: str, fields: t.Mapping[str, t.Any]) -> TestResponse:
        response = self.client.post(address, data=fields, follow_redirects=True)
        self._take(response)
        if response.status_code == 200:
            assert [r.status_code for r in response.history] in ([302], [303]), (
                "no redirect after the form"
            )
        return response

    def _take(self, response: TestResponse) -> None:
        self.address = response.request.path
        self.status = response.status_code
        if self.cookie is not None:
            self.secrets |= {self.cookie, self.id}
        for each in (*response.history, response):
            content = each.get_data(as_text=True)
            headers = str(each.headers.to_wsgi_list()).replace(
                str(each.headers.getlist("Set-Cookie")), ""
            )
            assert not [s for s in self.secrets if s in content]
            assert "default-src 'none'" in headers
        self.page = Page(response.get_data(as_text=True))

    # What people do here

    @property
    def token(self) -> str:
        """What the forms of the page have in them, for a forged one."""
        return next(
            dict(fields)["csrf_token"]
            for form, fields in self.page.fields.items()
            if self.page.methods.get(form) == "post"
        )

    @property
    def is_logged_in(self) -> bool:
        self.visit("/")
        return "Log in" not in self.page.links

    def register(self, name: str, password: str = "amazing grace") -> TestResponse:
        self.visit("/register")
        return self.submit("Register", name=name, password=password)

    def log_in(self, name: str = "ada", password: str = "countess") -> TestResponse:
        self.visit("/log-in")
        return self.submit("Log in", name=name, password=password)

    def add_to_cart(self, sku: str, quantity: int = 1) -> None:
        self.visit(f"/products/{sku}")
        self.submit("Add to cart", quantity=str(quantity))

    @property
    def cart(self) -> dict[str, str]:
        self.visit("/cart")
        return {
            name.removeprefix("quantity-"): value
            for fields in self.page.fields.values()
            for name, value in fields
            if name.startswith("quantity-")
        }

    @property
    def notes(self) -> dict[str, str]:
        self.visit("/notes/edit")
        return {
            name.removeprefix("text-"): value
            for fields in self.page.fields.values()
            for name, value in fields
            if name.startswith("text-")
        }


# On every backend


def test_one_note_is_set_read_updated_and_deleted(
    make_app: AppMaker, backend_config: Config
) -> None:
    browser = Browser(make_app(backend_config))
    browser.visit("/notes")
    browser.submit("Add note", name="To do", text="buy stamps")
    assert browser.page.messages == [("success", "Added: To do.")]
    browser.visit(browser.page.links["To do"])
    assert browser.page.fields["#0"][1] == ("text", "buy stamps")
    browser.submit("Save", text="buy\nenvelopes")
    assert browser.notes == {"To do": "buy\nenvelopes"}
    browser.visit("/note/To do")
    browser.submit("Delete this note")
    assert browser.page.messages == [("info", "Deleted: To do.")]
    assert browser.notes == {}
    browser.visit("/note/To do")
    assert browser.status == 404


def test_several_notes_are_set_read_updated_and_deleted(
    make_app: AppMaker, backend_config: Config
) -> None:
    browser = Browser(make_app(backend_config))
    browser.visit("/notes")
    browser.submit("Add notes", lines="One: 1\n\nTwo: 2\r\nThree: a: b")
    assert browser.notes == {"One": "1", "Two": "2", "Three": "a: b"}
    browser.submit("Save all", ("text-One", "I"), ("text-Three", "III"))
    assert browser.notes == {"One": "I", "Two": "2", "Three": "III"}
    browser.visit("/notes")
    token = dict(browser.page.fields["#0"])["csrf_token"]
    browser.post(
        "/notes/delete", {"csrf_token": token, "name": ["One", "Two", "Unknown"]}
    )
    assert browser.page.messages == [("info", "Deleted: One, Two.")]
    assert browser.notes == {"Three": "III"}


def test_several_preferences_are_set_and_reset_at_once(
    make_app: AppMaker, backend_config: Config
) -> None:
    browser = Browser(make_app(backend_config))
    browser.visit("/preferences")
    browser.submit("Save", theme="dark", text="large")
    source = browser.client.get("/").get_data(as_text=True)
    assert '<html lang="en" data-theme="dark" data-text="large">' in source
    browser.visit("/preferences")
    assert browser.page.fields["#0"][1:] == [("theme", "dark"), ("text", "large")]
    browser.submit("Back to the defaults")
    assert browser.page.fields["#0"][1:] == [("theme", "auto"), ("text", "normal")]


def test_a_customer_stays_logged_in_with_the_cart_until_the_log_out(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    browser = Browser(app)
    browser.visit("/")
    assert browser.cookie is None  # nothing to remember yet
    browser.add_to_cart("pen", 2)
    browser.add_to_cart("pen")
    browser.add_to_cart("ink")
    anonymous, anonymous_id = browser.cookie, browser.id
    assert anonymous is not None

    browser.submit("Order")
    assert browser.address == "/log-in"
    browser.submit("Log in", name="ada", password="countess")
    assert browser.address == "/cart"
    assert browser.page.messages == [("success", "Welcome, ada.")]
    assert browser.id != anonymous_id
    logged_in = browser.cookie
    assert logged_in is not None

    stranger = Browser(app)
    stranger.cookie = anonymous
    assert stranger.cart == {}
    assert "Log in" in stranger.page.links

    if survives_a_restart(backend_config):
        app = make_app(backend_config)
        browser = Browser(app)
        browser.cookie = logged_in

    assert browser.cart == {"pen": "3", "ink": "1"}
    assert "ada" in browser.page.text
    browser.submit("Update quantities", ("quantity-pen", "1"), ("quantity-ink", "0"))
    assert browser.cart == {"pen": "1"}

    response = browser.submit("Log out")
    assert browser.page.messages == [("info", "You are logged out.")]
    assert "Log in" in browser.page.links
    # The message came in a session of its own, which ended when it was shown.
    issued = response.history[0].headers["Set-Cookie"].split("=", 1)[1]
    assert issued.split(".")[0] not in ("", anonymous_id, logged_in.split(".")[0])
    assert browser.cookie is None
    assert browser.cart == {}

    for dead in (anonymous, logged_in):
        stranger = Browser(app)
        stranger.cookie = dead
        assert stranger.cart == {}
        assert "Log in" in stranger.page.links


def survives_a_restart(config: Config) -> bool:
    return config["SESSION_BACKEND"] != "memory" and not isinstance(
        config.get("SESSION_CACHELIB"), SimpleCache
    )


def test_the_session_page_shows_the_session_and_no_secret(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    browser = Browser(app)
    browser.log_in()
    browser.add_to_cart("clips")
    with browser.client.session_transaction() as session:
        token = session["csrf_token"]
    page = browser.visit("/session").text
    assert token not in page
    assert "csrf_token ••••••••" in page
    assert '_user_id "1"' in page
    assert '"clips": { "quantity": 1, "added_at": "20' in page
    assert f"Backend {backend_config['SESSION_BACKEND']} Began 20" in page
    assert "less than a minute ago" in page
    assert "temporary: ends with the browser" in page
    assert "in 1 day, unless" in page


def test_the_session_can_be_made_permanent_and_temporary(
    make_app: AppMaker, backend_config: Config
) -> None:
    browser = Browser(make_app(backend_config))
    browser.visit("/session")
    browser.submit("Make permanent")
    assert "permanent: stays when you close the browser" in browser.page.text
    cookie = browser.client.get_cookie("session")
    assert cookie is not None
    assert cookie.expires is not None
    assert "in 31 days" in browser.visit("/session").text
    browser.submit("Make temporary")
    assert "temporary: ends with the browser" in browser.page.text
    cookie = browser.client.get_cookie("session")
    assert cookie is not None
    assert cookie.expires is None


def test_a_new_id_keeps_the_content_and_ends_the_old_id(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    browser = Browser(app)
    browser.add_to_cart("pen")
    old, old_id = browser.cookie, browser.id
    assert old is not None
    browser.visit("/session")
    browser.submit("New id")
    assert browser.id != old_id
    assert browser.cart == {"pen": "1"}
    stranger = Browser(app)
    stranger.cookie = old
    assert stranger.cart == {}


def test_the_session_can_be_touched(make_app: AppMaker, backend_config: Config) -> None:
    browser = Browser(make_app(backend_config))
    browser.visit("/session")
    browser.submit("Touch")
    assert "counts as activity" in browser.page.messages[0][1]


def test_destroying_the_session_ends_everything_at_once(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    browser = Browser(app)
    browser.log_in()
    browser.add_to_cart("pen")
    old, old_id = browser.cookie, browser.id
    assert old is not None
    browser.visit("/session")
    browser.submit("Destroy")
    assert browser.page.messages[0][1].startswith("Your session is destroyed.")
    assert browser.id != old_id
    for cookie in (browser.cookie, old):
        someone = Browser(app)
        assert cookie is not None
        someone.cookie = cookie
        assert someone.cart == {}
        assert "Log in" in someone.page.links


def test_a_page_says_so_when_the_backend_is_down_and_nothing_is_lost(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_counted_app(make_app, backend_config)
    backend = backend_of(app)
    browser = Browser(app)
    browser.log_in()
    browser.add_to_cart("pen")
    cookie = browser.cookie

    browser.visit("/products/ink")
    with backend.failing():
        browser.submit("Add to cart")
        assert browser.status == 503
    # An answer in between: after five failures in a row nobody asks for a while.
    browser.visit("/products/ink")
    with backend.failing():
        for address in ("/", "/session"):
            browser.visit(address)
            assert browser.status == 503
            assert "We will be back in a moment" in browser.page.text
        response = browser.client.get("/cart")
        assert response.headers["Retry-After"] == "5"
        browser.visit("/no-such-page")
        assert browser.status == 404  # which is shown as to a stranger
        assert "Log out" not in browser.page.text

    browser.visit("/products/ink")
    with backend.failing("replace"):
        browser.submit("Add to cart")
        assert browser.status == 503
        assert "not saved" in browser.page.text

    assert browser.cookie == cookie
    assert browser.cart == {"pen": "1"}
    assert "ada" in browser.page.text


def test_what_needs_no_session_asks_nothing_of_the_backend(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_counted_app(make_app, backend_config)
    browser = Browser(app)

    with backend_of(app).counting() as calls:
        browser.visit("/")
        browser.visit("/cart")
    assert browser.cookie is None
    assert calls == {}

    browser.log_in()
    with backend_of(app).counting() as calls:
        for path in sorted((ROOT / "example_app" / "static").rglob("*.*")):
            name = path.relative_to(ROOT / "example_app").as_posix()
            response = browser.client.get(f"/{name}")
            assert response.status_code == 200, name
            assert "Set-Cookie" not in response.headers
            response.close()
        Browser(app).visit("/no-such-page")
    assert calls == {}

    for address in ("/", "/no-such-page"):
        browser.visit("/")
        with backend_of(app).counting() as calls:
            browser.visit(address)
        assert calls == {"load": 1}


# The end of a session


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(server_session, "_clock", clock)
    return clock


def seconds_left(browser: Browser) -> float:
    return t.cast(float, browser.client.get("/session/left").json["seconds"])


def test_a_page_counts_down_to_the_log_out_and_does_not_hinder_it(
    clock: FakeClock, make_app: AppMaker
) -> None:
    browser = Browser(make_app(SESSION_BACKEND="memory", SESSION_IDLE_TIMEOUT=600))
    browser.log_in()
    assert "countdown" in browser.page.ids
    stay = browser.page.actions[browser.page.buttons[-1].form]
    fields = {"csrf_token": browser.token}
    for left in (600, 540, 480):
        assert seconds_left(browser) == left
        clock.advance(60)
    assert browser.client.post(stay, data=fields).json == {"seconds": 600}
    clock.advance(599)
    assert seconds_left(browser) == 1
    clock.advance(1)
    assert seconds_left(browser) == 0
    assert browser.client.post(stay, data=fields).status_code == 400
    assert not browser.is_logged_in
    assert "countdown" not in browser.page.ids


def test_who_is_not_logged_in_is_not_asked_whether_they_are_there(
    browser: Browser,
) -> None:
    browser.add_to_cart("pen")
    assert "countdown" not in browser.page.ids
    assert seconds_left(browser) == 0
    assert Browser(browser.client.application).page.ids == set()


ENDS: dict[str, Callable[[Flask, FakeClock], object]] = {
    "expired": lambda app, clock: clock.advance(86_400),
    "limit": lambda app, clock: (clock.advance(1), Browser(app).log_in()),
    "revoked": lambda app, clock: server_session.revoke_user("1"),
}


@pytest.mark.parametrize("reason", ENDS)
@pytest.mark.parametrize("address", ["/devices", "/log-in"])
def test_who_was_logged_out_is_told_why(
    address: str, reason: str, clock: FakeClock, make_app: AppMaker
) -> None:
    app = make_app(SESSION_BACKEND="memory", SESSION_MAX_PER_USER=1)
    browser = Browser(app)
    browser.log_in()
    with app.app_context():
        ENDS[reason](app, clock)
    page = browser.visit(address)
    ((_, message),) = page.messages
    assert message.startswith(REASONS[reason])
    assert browser.visit("/log-in").messages == []


def test_whose_cart_has_expired_is_not_told_that_they_were_logged_out(
    clock: FakeClock, make_app: AppMaker
) -> None:
    browser = Browser(make_app(SESSION_BACKEND="memory"))
    browser.add_to_cart("pen")
    clock.advance(86_400 * 100)
    browser.visit("/log-in")
    ((_, message),) = browser.page.messages
    assert message == "Your session ended, because you have not been here for a while."


def test_who_was_not_logged_in_is_not_told_that_they_were_logged_out(
    browser: Browser,
) -> None:
    browser.visit("/devices")
    assert browser.page.messages == [("info", "Log in to see that page.")]


# Log-in


@pytest.mark.parametrize(
    ("name", "password"),
    [("ada", "baroness"), ("charles", "countess"), ("ada", ""), ("", "")],
)
def test_a_wrong_name_or_password_logs_nobody_in(
    browser: Browser, name: str, password: str
) -> None:
    browser.visit("/log-in")
    before = browser.cookie
    browser.log_in(name, password)
    assert browser.status == 422
    assert "The name or the password is wrong." in browser.page.text
    assert ("name", name) in browser.page.fields["#0"]
    assert "Log in" in browser.page.links
    assert browser.cookie == before


def test_the_name_is_accepted_in_any_case(browser: Browser) -> None:
    browser.log_in(" Ada ")
    assert browser.page.messages == [("success", "Welcome, ada.")]


def test_an_unknown_name_costs_a_hash_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = Users(tmp_path / "users.sqlite3")
    checked: list[str] = []

    def check(hashed: str, password: str) -> bool:
        checked.append(hashed)
        return True

    monkeypatch.setattr("example_app.users.check_password_hash", check)
    assert users.authenticate("nobody", "anything") is None
    assert users.authenticate("ada", "anything") is not None
    unknown, known = (hashed.rsplit("$", 2)[0] for hashed in checked)
    assert unknown == known  # the same method at the same cost


def test_passwords_are_kept_as_hashes(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite3"
    users = Users(path)
    user = users.add("grace", "amazing grace")
    assert b"amazing grace" not in path.read_bytes()
    assert b"countess" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Users(path).authenticate("Grace", "amazing grace") == user
    with pytest.raises(NameTakenError):
        users.add("GRACE", "another")


def test_somebody_registers_and_is_logged_in(browser: Browser) -> None:
    browser.add_to_cart("ink")
    before = browser.id
    browser.visit("/register?next=/cart")
    browser.submit("Register", name="grace", password="amazing grace")
    assert browser.address == "/cart"
    assert "grace" in browser.page.text
    assert browser.id != before
    assert browser.cart == {"ink": "1"}
    browser.submit("Log out")
    browser.log_in("grace", "amazing grace")
    assert browser.page.messages == [("success", "Welcome, grace.")]


@pytest.mark.parametrize(
    ("name", "password", "message"),
    [
        ("Ada", "long enough", "This name is taken."),
        ("x", "long enough", "A name has 2 to 30"),
        ("<b>", "long enough", "A name has 2 to 30"),
        ("grace", "short", "A password has 8 to 200 characters."),
        ("grace", "x" * (MAX_PASSWORD + 1), "A password has 8 to 200 characters."),
    ],
)
def test_registering_says_what_is_wrong(
    browser: Browser, name: str, password: str, message: str
) -> None:
    browser.visit("/register")
    browser.submit("Register", name=name, password=password)
    assert browser.status == 422
    assert message in browser.page.text
    assert "Log in" in browser.page.links


def test_nobody_finds_what_another_user_left_in_the_session(browser: Browser) -> None:
    browser.log_in()
    browser.add_to_cart("pen")
    browser.visit("/register")
    browser.submit("Register", name="grace", password="amazing grace")
    assert "grace" in browser.page.text
    assert browser.cart == {}


def test_keeping_somebody_logged_in_makes_the_session_permanent(
    browser: Browser,
) -> None:
    browser.visit("/log-in")
    browser.submit("Log in", name="ada", password="countess", remember="yes")
    assert "permanent: stays" in browser.visit("/session").text
    browser.submit("Log out")
    assert "temporary: ends" in browser.visit("/session").text


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("/cart", "/cart"),
        ("/session?touched=1", "/session"),
        ("", "/"),
        ("cart", "/"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("///evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("/\t/evil.example/", "/"),
        ("/\n/evil.example/", "/"),
        ("\\\\evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        (" //evil.example/", "/"),
    ],
)
def test_the_log_in_leads_to_pages_of_this_site_only(
    browser: Browser, target: str, address: str
) -> None:
    browser.visit("/log-in")
    response = browser.submit("Log in", name="ada", password="countess", next=target)
    assert browser.address == address
    assert response.request.host == "localhost"


# Your devices

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1"
)
EDGE = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0"
)


def knows_users(app: Flask) -> bool:
    backend = app.extensions["serversession"].backend
    return Capability.USER_INDEX in backend.capabilities


def test_a_user_sees_where_else_they_are_logged_in_and_ends_it(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    desktop = Browser(app, FIREFOX, "192.0.2.1")
    phone = Browser(app, SAFARI, "198.51.100.7")
    laptop, tablet = Browser(app, EDGE), Browser(app)
    other = Browser(app)
    for each in (desktop, phone, laptop, tablet):
        each.log_in()
    other.register("grace")

    page = desktop.visit(desktop.visit("/").links["Your devices"])
    assert "Firefox, Linux This device Last seen just now Address 192.0.2.1" in (
        page.text
    )
    ends = [button.text for button in page.buttons if button.name == "handle"]
    if not knows_users(app):
        name = backend_config["SESSION_BACKEND"]
        assert f"The {name} backend keeps no index of users" in page.text
        assert "Safari" not in page.text
        assert ends == []
        desktop.post("/devices/end-others", {"csrf_token": desktop.token})
        assert desktop.status == 404
        assert phone.is_logged_in
        return

    assert "Safari, iPhone Last seen just now Address 198.51.100.7 Since" in page.text
    assert sorted(ends) == [
        "End session on Edge, Windows",
        "End session on Safari, iPhone",
        "End session on Shopper",
    ]
    desktop.submit("End session on Safari, iPhone")
    assert desktop.page.messages == [
        ("success", "The session on Safari, iPhone is ended.")
    ]
    assert "Safari" not in desktop.visit("/devices").text
    assert not phone.is_logged_in
    assert laptop.is_logged_in

    desktop.visit("/devices")
    desktop.submit("Log out everywhere else")
    assert "sessions ended: 2." in desktop.page.messages[0][1]
    assert "You are logged in nowhere else." in desktop.page.text
    for each in (laptop, tablet):
        assert not each.is_logged_in
    for each in (desktop, other):
        assert each.is_logged_in


def test_a_new_password_logs_out_everywhere_else(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    desktop, phone, other = Browser(app), Browser(app), Browser(app)
    for each in (desktop, phone):
        each.log_in()
    other.register("grace")
    desktop.add_to_cart("pen")
    before = desktop.id

    desktop.visit("/password")
    desktop.submit("Change password", old="countess", new="enchantress")
    assert desktop.address == "/devices"
    category, message = desktop.page.messages[0]
    if knows_users(app):
        assert category == "success"
        assert message.endswith("logged out everywhere else; sessions ended: 1.")
        assert not phone.is_logged_in
    else:
        assert category == "warning"
        assert "keeps no index of users, so your other sessions go on" in message
    assert desktop.is_logged_in
    assert desktop.id != before
    assert desktop.cart == {"pen": "1"}
    assert other.is_logged_in

    phone = Browser(app)
    phone.log_in()
    assert phone.status == 422
    phone.log_in("ada", "enchantress")
    assert phone.status == 200


def test_a_password_is_not_changed_while_the_backend_is_down(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_counted_app(make_app, backend_config)
    browser = Browser(app)
    browser.log_in()
    browser.visit("/password")
    failing = backend_of(app).failing
    operation = "keys_of_user" if knows_users(app) else "load"
    with failing(operation):
        browser.submit("Change password", old="countess", new="enchantress")
        assert browser.status == 503
    assert Browser(app).log_in().status_code == 200


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baroness", "enchantress", "This is not your password."),
        ("", "enchantress", "This is not your password."),
        ("countess", "short", "A password has 8 to 200 characters."),
        ("countess", "x" * (MAX_PASSWORD + 1), "A password has 8 to 200 characters."),
    ],
)
def test_a_password_that_cannot_be_changed_says_why(
    clock: FakeClock, make_app: AppMaker, old: str, new: str, message: str
) -> None:
    app = make_app(SESSION_BACKEND="memory")
    browser, other = Browser(app), Browser(app)
    for each in (browser, other):
        each.log_in()
    clock.advance(601)
    browser.visit("/password")
    browser.submit("Change password", old=old, new=new)
    assert browser.status == 422
    assert message in browser.page.text
    assert other.is_logged_in
    assert Browser(app).log_in().status_code == 200


def test_the_old_password_is_asked_for_unless_the_log_in_was_a_moment_ago(
    clock: FakeClock, make_app: AppMaker
) -> None:
    app = make_app(SESSION_BACKEND="memory")
    browser = Browser(app)
    browser.log_in()
    clock.advance(600)
    assert "Current password" not in browser.visit("/password").text
    clock.advance(1)
    browser.submit("Change password", new="enchantress")
    assert browser.status == 422
    assert "Current password" in browser.page.text
    before = browser.id
    # Who proves it is asked no more, also if the new password is none.
    browser.submit("Change password", old="countess", new="short")
    assert browser.status == 422
    assert browser.id != before
    assert "Current password" not in browser.page.text
    browser.submit("Change password", new="enchantress")
    assert browser.address == "/devices"


def test_nobody_ends_the_sessions_of_others(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    victim, attacker, stranger = (Browser(app) for _ in range(3))
    victim.log_in()
    handle = victim.visit("/session").text.split("Handle ")[1].split()[0]
    attacker.register("mallory")

    attacker.visit("/devices")
    fields = {"csrf_token": attacker.token, "handle": handle}
    attacker.post("/devices/end", fields)
    assert attacker.status == 404
    assert "There is no such session of yours." in attacker.page.text
    attacker.post("/devices/end-others", fields)
    for address in ("/admin/end", "/admin/log-out"):
        attacker.post(address, {**fields, "name": "ada"})
        assert attacker.status == 403

    stranger.visit("/session")
    for address in (
        "/devices/end",
        "/devices/end-others",
        "/admin/end",
        "/admin/log-out",
    ):
        stranger.post(address, {**fields, "csrf_token": stranger.token, "name": "ada"})
        assert stranger.address == "/log-in"
    assert victim.is_logged_in


@pytest.mark.parametrize("handle", ["", "x", "0" * 64, "é", "../" * 10, "a" * 5000])
def test_a_session_that_does_not_exist_cannot_be_ended(app: Flask, handle: str) -> None:
    browser, other = Browser(app, FIREFOX), Browser(app)
    for each in (browser, other):
        each.log_in()
    browser.visit("/devices")
    fields = {"csrf_token": browser.token, "handle": handle}
    for _ in range(2):
        browser.post("/devices/end", fields)
        assert browser.status == 404
        # The list is there, to choose again.
        assert "End session on Shopper" in [b.text for b in browser.page.buttons]
    browser.post("/admin/end", fields)
    assert browser.status == 404
    assert other.is_logged_in


def test_ending_this_session_is_logging_out(browser: Browser) -> None:
    browser.log_in()
    handle = browser.visit("/session").text.split("Handle ")[1].split()[0]
    browser.visit("/devices")
    browser.post("/devices/end", {"csrf_token": browser.token, "handle": handle})
    assert browser.page.messages == [("info", "You are logged out.")]
    assert not browser.is_logged_in


def test_a_double_click_ends_a_session_once(app: Flask) -> None:
    browser, other = Browser(app, FIREFOX), Browser(app)
    for each in (browser, other):
        each.log_in()
    browser.visit("/devices")
    (end,) = (b for b in browser.page.buttons if b.name == "handle")
    fields = {"csrf_token": browser.token, "handle": end.value}
    browser.post("/devices/end", fields)
    assert browser.status == 200
    browser.post("/devices/end", fields)
    assert browser.status == 404
    assert "It may have ended." in browser.page.text


def test_the_devices_that_were_seen_last_are_shown(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("example_app.devices.MAX_SHOWN", 3)
    others = [Browser(app) for _ in range(4)]
    browser = Browser(app, FIREFOX)
    for each in (*others, browser):
        each.log_in()
    page = browser.visit("/devices")
    assert page.text.index("This device") < page.text.index("Shopper")
    assert "These are the 3 that were seen last, of 5." in page.text
    browser.submit("Log out everywhere else")
    assert "sessions ended: 4." in browser.page.messages[0][1]


@pytest.mark.parametrize("address", ["/devices", "/password", "/admin?name=grace"])
def test_a_page_for_users_leads_to_the_log_in_and_back(
    browser: Browser, address: str
) -> None:
    browser.visit(address)
    assert browser.address == "/log-in"
    assert browser.page.messages == [("info", "Log in to see that page.")]
    response = browser.submit("Log in", name="ada", password="countess")
    assert response.request.full_path.removesuffix("?") == address


def test_logging_in_gives_no_cookie_but_the_session(browser: Browser) -> None:
    browser.visit("/log-in")
    response = browser.submit("Log in", name="ada", password="countess", remember="yes")
    for each in (*response.history, response):
        for cookie in each.headers.getlist("Set-Cookie"):
            assert cookie.startswith("session=")
    with browser.client.session_transaction() as session:
        assert session["_user_id"] == "1"


def test_what_a_browser_says_of_itself_is_shown_as_text(app: Flask) -> None:
    admin, browser = Browser(app), Browser(app, "<script>alert(1)</script>/1.0")
    for each in (admin, browser):
        each.log_in()
    for each, address in ((browser, "/devices"), (admin, "/admin?name=ada")):
        assert "Unknown browser" in each.visit(address).text
    odd = Browser(app, "Br<b>ow</b>ser/1 (Windows)", "&lt;b&gt;")
    odd.log_in()
    assert "Unknown browser, Windows" in odd.visit("/devices").text
    assert "Address &lt;b&gt;" in odd.page.text


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (FIREFOX, "Firefox, Linux"),
        (SAFARI, "Safari, iPhone"),
        (EDGE, "Edge, Windows"),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML,"
            " like Gecko) Chrome/141.0.0.0 Safari/537.36",
            "Chrome, macOS",
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15"
            " (KHTML, like Gecko) Version/18.6 Safari/605.1.15",
            "Safari, macOS",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X)"
            " AppleWebKit/605.1.15 (KHTML, like Gecko)"
            " CriOS/141.0.0.0 Mobile/15E148 Safari/604.1",
            "Chrome, iPhone",
        ),
        (
            "Mozilla/5.0 (iPad; CPU OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML,"
            " like Gecko) FxiOS/140.0 Mobile/15E148 Safari/605.1.15",
            "Firefox, iPad",
        ),
        (
            "Mozilla/5.0 (Linux; Android 15; SM-S931B) AppleWebKit/537.36 (KHTML, like"
            " Gecko) SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
            "Samsung Internet, Android",
        ),
        (
            "Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0",
            "Firefox, Android",
        ),
        (
            "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like"
            " Gecko) Chrome/141.0.0.0 Safari/537.36",
            "Chrome, ChromeOS",
        ),
        (
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
            " Chrome/141.0.0.0 Safari/537.36 OPR/125.0.0.0",
            "Opera, Linux",
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Trident/7.0; rv:11.0) like Gecko",
            "Internet Explorer, Windows",
        ),
        ("curl/8.5.0", "curl"),
        ("python-requests/2.32.3", "python-requests"),
        ("Mozilla/5.0", "Unknown browser"),
        ("Mozilla/5.0 (Windows NT 10.0)", "Unknown browser, Windows"),
        ("", "Unknown browser"),
        ("\0\n<b>", "Unknown browser"),
    ],
)
def test_devices_have_names(user_agent: str, name: str) -> None:
    assert str(device(user_agent)) == name


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-60, "just now"),  # clocks differ
        (0, "just now"),
        (119, "just now"),
        (130, "2 minutes ago"),
        (3600, "1 hour ago"),
        (47 * 3600, "1 day ago"),
        (49 * 3600, "2 days ago"),
    ],
)
def test_times_have_words(seconds: int, words: str) -> None:
    assert ago(datetime.now(timezone.utc) - timedelta(seconds=seconds)) == words


# Administration


def test_an_administrator_sees_and_ends_the_sessions_of_all(
    make_app: AppMaker, backend_config: Config
) -> None:
    app = make_app(backend_config)
    capabilities = app.extensions["serversession"].backend.capabilities
    admin, stranger = Browser(app, FIREFOX), Browser(app)
    phone, tablet, laptop, other = (
        Browser(app, SAFARI, "198.51.100.7"),
        Browser(app),
        Browser(app, EDGE),
        Browser(app),
    )
    admin.log_in()
    stranger.add_to_cart("pen")
    phone.register("grace")
    for each in (tablet, laptop):
        each.log_in("grace", "amazing grace")
    other.register("alan")

    admin.visit("/")
    page = admin.visit(admin.page.links["Admin"])
    if Capability.COUNT in capabilities:
        assert "Numbers Sessions 6 " in page.text
    else:
        assert "Numbers Sessions unknown " in page.text
    if Capability.ITERATE in capabilities:
        assert "Users logged in 3 Anonymous 1 Registered users 3" in page.text
        assert "grace 3 just now" in page.text
    else:
        assert "cannot count or list sessions" in page.text
        assert "Users logged in unknown Anonymous unknown Registered users 3" in (
            page.text
        )
    if not knows_users(app):
        name = backend_config["SESSION_BACKEND"]
        assert f"The {name} backend keeps no index of users" in page.text
        assert "Search" not in [button.text for button in page.buttons]
        admin.visit("/admin?name=grace")
        admin.post("/admin/log-out", {"csrf_token": admin.token, "name": "grace"})
        assert admin.status == 404
        assert laptop.is_logged_in
        return

    admin.submit("Search", name="nobody")
    assert "Nobody is called nobody." in admin.page.text
    admin.submit("Search", name=" Grace ")
    assert "grace has 3 sessions." in admin.page.text
    assert "Safari, iPhone Last seen just now Address 198.51.100.7" in admin.page.text
    admin.submit("End session on Safari, iPhone")
    assert admin.page.messages == [
        ("success", "The session of grace on Safari, iPhone is ended.")
    ]
    assert "grace has 2 sessions." in admin.page.text
    assert not phone.is_logged_in
    assert laptop.is_logged_in

    admin.visit("/admin?name=grace")
    admin.submit("Log out grace everywhere")
    assert admin.page.messages == [
        ("success", "grace is logged out everywhere; sessions ended: 2.")
    ]
    assert "grace has no sessions." in admin.page.text
    for each in (tablet, laptop):
        assert not each.is_logged_in
    for each in (admin, other):
        assert each.is_logged_in
    assert stranger.cart == {"pen": "1"}


def test_an_administrator_stays_logged_in_here(app: Flask) -> None:
    admin, elsewhere = Browser(app, FIREFOX), Browser(app)
    for each in (admin, elsewhere):
        each.log_in()
    handle = admin.visit("/session").text.split("Handle ")[1].split()[0]
    admin.visit("/admin?name=ada")
    admin.post("/admin/end", {"csrf_token": admin.token, "handle": handle})
    assert admin.status == 404
    admin.visit("/admin?name=ada")
    admin.submit("Log out ada everywhere else")
    assert admin.page.messages[0][1].endswith("everywhere else; sessions ended: 1.")
    assert admin.is_logged_in
    assert not elsewhere.is_logged_in


def test_the_session_of_nobody_is_nobodys_to_end(app: Flask) -> None:
    admin, stranger = Browser(app), Browser(app)
    admin.log_in()
    stranger.add_to_cart("pen")
    handle = stranger.visit("/session").text.split("Handle ")[1].split()[0]
    admin.visit("/admin")
    admin.post("/admin/end", {"csrf_token": admin.token, "handle": handle})
    assert admin.status == 404
    assert stranger.cart == {"pen": "1"}


def test_nobody_else_is_an_administrator(app: Flask) -> None:
    browser = Browser(app)
    browser.register("grace")
    assert "Admin" not in browser.visit("/").links
    for address in ("/admin", "/admin?name=ada"):
        browser.visit(address)
        assert browser.status == 403
        assert "This page is not for everybody" in browser.page.text
    browser.visit("/devices")
    fields = {"csrf_token": browser.token, "name": "grace"}
    for address in ("/admin/end", "/admin/log-out"):
        browser.post(address, fields)
        assert browser.status == 403
    # A name that only looks like another one is the same one, and taken.
    stranger = Browser(app)
    for name in ("Ada", "ADA", "\uff41\uff44\uff41"):
        stranger.register(name)
        assert stranger.status == 422
        assert "This name is taken." in stranger.page.text


def test_an_administrator_does_not_wait_for_too_many_sessions(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = Browser(app)
    admin.log_in()
    for number in range(4):
        Browser(app).register(f"user{number}")
    monkeypatch.setattr("example_app.admin.MAX_LOOKED_AT", 2)
    monkeypatch.setattr("example_app.admin.MAX_SHOWN", 2)
    page = admin.visit("/admin")
    assert "Sessions 5 Users logged in at least 3 Anonymous at least 0" in page.text
    assert "There are too many sessions to look at all of them." in page.text
    assert "These are the 2 who were seen last, of 3." in page.text


# Forms


def test_a_form_without_its_token_is_refused(app: Flask, browser: Browser) -> None:
    browser.log_in()
    browser.add_to_cart("pen")
    paths = {
        rule.rule.replace("<name>", "x")
        for rule in app.url_map.iter_rules()
        if "POST" in (rule.methods or ())
    }
    assert len(paths) > 15
    for path in paths:
        for fields in ({}, {"csrf_token": "forged"}):
            browser.post(path, fields)
            assert browser.status == 400, path
            assert "This form was not accepted" in browser.page.text
    assert browser.cart == {"pen": "1"}


def test_the_token_of_another_visitor_is_refused(app: Flask) -> None:
    victim, attacker = Browser(app), Browser(app)
    victim.add_to_cart("pen")
    attacker.visit("/session")
    token = dict(attacker.page.fields["#0"])["csrf_token"]
    victim.post("/session/destroy", {"csrf_token": token})
    assert victim.status == 400
    assert victim.cart == {"pen": "1"}


def test_a_form_opened_before_the_log_in_works_after_it(app: Flask) -> None:
    browser = Browser(app)
    browser.visit("/products/pen")
    token = dict(browser.page.fields["#0"])["csrf_token"]
    browser.log_in()
    browser.post("/cart/add", {"csrf_token": token, "sku": "pen", "quantity": "1"})
    assert browser.cart == {"pen": "1"}


@pytest.mark.parametrize("quantity", ["0", "-1", "100", "many", "1.5", "", "9" * 5000])
def test_an_impossible_quantity_changes_nothing(
    browser: Browser, quantity: str
) -> None:
    browser.visit("/products/pen")
    browser.submit("Add to cart", quantity=quantity)
    assert browser.status == 422
    assert browser.page.problems == {"quantity": "Say how many, from 1 to 99."}
    assert dict(browser.page.fields["#0"])["quantity"] == quantity
    assert browser.cart == {}


def test_there_is_a_limit_to_what_is_in_the_cart(browser: Browser) -> None:
    browser.add_to_cart("pen", 60)
    browser.add_to_cart("pen", 60)
    because = "added, because a cart holds 99 of a product at most."
    assert browser.page.messages == [("warning", f"Fountain pen: 39 of 60 {because}")]
    browser.add_to_cart("pen", 5)
    assert browser.page.messages == [("warning", f"Fountain pen: 0 of 5 {because}")]
    browser.add_to_cart("ink")
    assert browser.cart == {"pen": "99", "ink": "1"}
    browser.submit("Update quantities", ("quantity-pen", "100"), ("quantity-ink", "2"))
    assert browser.status == 422
    assert browser.page.problems == {"quantity-pen": "A number from 0 to 99."}
    sent = [field for fields in browser.page.fields.values() for field in fields]
    assert ("quantity-pen", "100") in sent
    assert ("quantity-ink", "2") in sent
    assert browser.cart == {"pen": "99", "ink": "1"}


def test_what_was_removed_from_the_cart_can_be_put_back(browser: Browser) -> None:
    browser.add_to_cart("pen", 3)
    browser.add_to_cart("ink")
    browser.submit("Remove Fountain pen")
    assert browser.page.messages == [("info", "Removed: Fountain pen.")]
    assert browser.cart == {"ink": "1"}
    browser.submit("Undo")
    assert browser.page.messages == [("success", "Back in your cart: Fountain pen.")]
    assert browser.cart == {"ink": "1", "pen": "3"}
    assert "Undo" not in {button.text for button in browser.page.buttons}


def test_a_product_that_is_sold_no_more_disappears_from_the_cart(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.add_to_cart("pen")
    browser.add_to_cart("ink")
    monkeypatch.delitem(PRODUCTS, "pen")
    assert browser.cart == {"ink": "1"}


def test_the_cart_is_ordered(browser: Browser) -> None:
    browser.log_in()
    browser.add_to_cart("pen", 2)
    browser.add_to_cart("clips")
    browser.submit("Order")
    assert browser.page.messages == [("success", "Thank you, ada: ordered for €50.50.")]
    assert browser.cart == {}


def test_a_double_click_orders_once(make_app: AppMaker) -> None:
    app = make_counted_app(make_app, {"SESSION_BACKEND": "memory"})
    backend = backend_of(app)
    browser, again = Browser(app), Browser(app)
    browser.log_in()
    browser.add_to_cart("pen")
    assert browser.cookie is not None
    again.cookie = browser.cookie
    for each in (browser, again):
        each.visit("/cart")

    def the_second_click_comes_in() -> None:
        del backend.before["replace"]
        again.submit("Order")

    backend.before["replace"] = the_second_click_comes_in
    browser.submit("Order")
    messages = [m for each in (again, browser) for m in each.page.messages]
    assert sorted(category for category, _ in messages) == ["success", "warning"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("", "text", "A name has up to 40"),
        ("a/b", "text", "A name has up to 40"),
        (".", "text", "A name has up to 40"),
        ("x" * 41, "text", "A name has up to 40"),
        ("name", " ", "name: write something"),
        ("name", "x" * (MAX_TEXT + 1), "name: write something"),
        ("Taken", "text", "There is a note Taken already."),
    ],
)
def test_a_note_that_cannot_be_kept_says_why(
    browser: Browser, name: str, text: str, message: str
) -> None:
    browser.visit("/notes")
    browser.submit("Add note", name="Taken", text="before")
    browser.submit("Add note", name=name, text=text)
    ((field, shown),) = browser.page.problems.items()
    assert field == ("text" if "write something" in message else "name")
    assert message in shown
    # Nothing that was typed is lost.
    sent = [field for fields in browser.page.fields.values() for field in fields]
    assert {("name", name), ("text", text)} <= {*sent}
    lines = f"New: note\n{name}: {text}"
    browser.submit("Add notes", lines=lines)
    assert browser.status == 422
    assert [*browser.page.problems] == ["lines"]
    sent = [field for fields in browser.page.fields.values() for field in fields]
    assert ("lines", lines) in sent
    assert browser.notes == {"Taken": "before"}


def test_an_update_that_cannot_be_kept_changes_nothing(browser: Browser) -> None:
    browser.visit("/notes")
    browser.submit("Add notes", lines="One: 1\nTwo: 2")
    browser.visit("/note/One")
    long = "x" * (MAX_TEXT + 1)
    browser.submit("Save", text=long)
    assert [*browser.page.problems] == ["text"]
    assert long in browser.page.text
    browser.visit("/notes/edit")
    browser.submit("Save all", ("text-One", "I"), ("text-Two", long))
    assert browser.page.problems == {
        "text-2": f"Two: write something, of up to {MAX_TEXT} characters."
    }
    sent = [field for fields in browser.page.fields.values() for field in fields]
    assert {("text-One", "I"), ("text-Two", long)} <= {*sent}
    assert browser.notes == {"One": "1", "Two": "2"}


def test_what_was_deleted_can_be_brought_back(browser: Browser) -> None:
    browser.visit("/notes")
    browser.submit("Add notes", lines="One: 1\nTwo: 2")
    browser.visit("/note/One")
    browser.submit("Delete this note")
    assert browser.notes == {"Two": "2"}
    browser.visit("/notes")
    browser.submit("Undo")
    assert browser.page.messages == [("success", "Back again: One.")]
    assert browser.notes == {"Two": "2", "One": "1"}
    # What was written anew stays, and there is no more room than before.
    browser.visit("/note/One")
    browser.submit("Delete this note")
    browser.submit("Add note", name="One", text="new")
    browser.submit("Undo")
    assert browser.notes == {"Two": "2", "One": "new"}


def test_nothing_is_brought_back_for_which_there_is_no_room(browser: Browser) -> None:
    browser.visit("/notes")
    lines = [f"{number}: text" for number in range(MAX_NOTES)]
    browser.submit("Add notes", lines="\n".join(lines))
    browser.visit("/note/1")
    browser.submit("Delete this note")
    browser.submit("Add note", name="another", text="text")
    browser.submit("Undo")
    assert browser.page.messages[0][0] == "error"
    assert "Undo" in {button.text for button in browser.page.buttons}
    assert len(browser.notes) == MAX_NOTES


@pytest.mark.parametrize("address", ["/no-such-page", "/admin"])
def test_an_error_page_is_the_visitors(browser: Browser, address: str) -> None:
    browser.register("alan")
    browser.add_to_cart("pen", 2)
    browser.visit("/preferences")
    browser.submit("Save", theme="dark", text="large")
    page = browser.client.get(address).get_data(as_text=True)
    assert 'data-theme="dark" data-text="large"' in page
    browser.visit(address)
    assert browser.status in (403, 404)
    assert "alan" in browser.page.text
    assert "Log out" in {button.text for button in browser.page.buttons}
    assert "Cart 2" in browser.page.text
    stranger = Browser(browser.client.application)
    stranger.visit("/no-such-page")
    assert stranger.cookie is None


def test_there_is_a_limit_to_the_notes(browser: Browser) -> None:
    browser.visit("/notes")
    lines = "\n".join(f"{n}: text" for n in range(MAX_NOTES))
    browser.submit("Add notes", lines=lines)
    browser.submit("Add note", name="one more", text="text")
    assert [*browser.page.problems] == ["name"]
    assert len(browser.notes) == MAX_NOTES


def test_two_tabs_that_add_notes_at_once_both_succeed(make_app: AppMaker) -> None:
    app = make_counted_app(make_app, {"SESSION_BACKEND": "memory"})
    backend = backend_of(app)
    one, two = Browser(app), Browser(app)
    one.visit("/notes")
    assert one.cookie is not None
    two.cookie = one.cookie
    two.visit("/notes")

    def the_other_tab_saves() -> None:
        del backend.before["replace"]
        two.submit("Add note", name="Two", text="2")

    backend.before["replace"] = the_other_tab_saves
    one.submit("Add note", name="One", text="1")
    assert one.notes == {"One": "1", "Two": "2"}


def test_what_visitors_write_is_shown_as_text(browser: Browser) -> None:
    browser.visit("/notes")
    text = "<script>alert('1')</script> & \"so on\""
    browser.submit("Add note", name="Note", text=text)
    assert text in browser.visit("/notes").text
    assert browser.notes == {"Note": text}
    browser.visit("/session")


def test_preferences_that_do_not_exist_are_refused(browser: Browser) -> None:
    browser.visit("/preferences")
    browser.submit("Save", theme='dark" onload="')
    assert browser.status == 400


# Errors


def test_a_page_that_does_not_exist_has_a_page(browser: Browser) -> None:
    for address in ("/nothing", "/products/nothing", "/note/nothing", "/cart/add"):
        browser.visit(address)
        assert browser.status == (405 if address == "/cart/add" else 404)
        assert browser.page.links["To the shop"] == "/"


def test_a_fault_of_ours_has_a_page(make_app: AppMaker) -> None:
    app = make_app(SESSION_BACKEND="memory", PROPAGATE_EXCEPTIONS=False)
    app.add_url_rule("/fault", view_func=lambda: str(1 // 0))
    browser = Browser(app)
    browser.visit("/fault")
    assert browser.status == 500
    assert "Something went wrong" in browser.page.text


def test_a_form_that_is_too_large_has_a_page(browser: Browser) -> None:
    browser.visit("/notes")
    browser.submit("Add note", name="Note", text="x" * 300_000)
    assert browser.status == 413


def test_pages_are_not_kept_by_caches_and_static_files_are(browser: Browser) -> None:
    response = browser.client.get("/cart")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    with browser.client.get("/static/style.css") as style:
        assert style.headers["Cache-Control"] != "no-store"


# Configuration


def test_the_cookie_is_not_for_scripts_nor_for_other_sites(app: Flask) -> None:
    def cookie(address: str) -> str:
        response = app.test_client().get("/session", base_url=address)
        return response.headers["Set-Cookie"].split(";", 1)[1]

    assert cookie("http://localhost") == " HttpOnly; Path=/; SameSite=Lax"
    assert cookie("https://localhost") == " Secure; HttpOnly; Path=/; SameSite=Lax"


def test_the_default_backend_needs_no_set_up(make_app: AppMaker) -> None:
    app = make_app()
    browser = Browser(app)
    browser.log_in()
    assert "Sessions are kept by the filesystem backend." in browser.page.text
    instance = Path(app.instance_path)
    assert stat.S_IMODE(instance.stat().st_mode) == 0o700
    assert (instance / "sessions").is_dir()


@pytest.mark.parametrize("name", ["memory", "filesystem", "cachelib", "sqlalchemy"])
def test_a_backend_without_a_server_is_chosen_by_its_name(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FLASK_SESSION_BACKEND", name)
    browser = Browser(make_app())
    browser.log_in()
    assert f"Sessions are kept by the {name} backend." in browser.page.text
    if name != "memory":
        restarted = Browser(make_app())
        assert browser.cookie is not None
        restarted.cookie = browser.cookie
        restarted.visit("/")
        assert "ada" in restarted.page.text


def test_redis_is_chosen_by_the_environment(
    make_app: AppMaker,
    make_backend_config: Callable[[str], Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in make_backend_config("valkey").items():
        monkeypatch.setenv(f"FLASK_{key}", value)
    browser = Browser(make_app())
    browser.log_in()
    assert "Sessions are kept by the redis backend." in browser.page.text


def test_a_file_of_settings_is_read_and_the_environment_wins(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "settings.py").write_text(
        "SESSION_BACKEND = 'memory'\nSESSION_SERIALIZER = 'json'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXAMPLE_CONFIG", "settings.py")
    browser = Browser(make_app())
    browser.add_to_cart("pen")
    browser.add_to_cart("pen")
    assert browser.cart == {"pen": "2"}
    assert "the memory backend." in browser.page.text
    monkeypatch.setenv("FLASK_SESSION_BACKEND", "filesystem")
    assert "the filesystem backend." in Browser(make_app()).visit("/").text


def test_a_file_of_settings_that_is_not_there_is_an_error(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_CONFIG", "settnigs.py")
    with pytest.raises(FileNotFoundError):
        make_app()


def test_the_secret_key_is_made_once_and_for_nobody_else_to_read(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(SESSION_BACKEND="memory")
    path = Path(app.instance_path) / "secret_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert app.secret_key == path.read_text()
    assert len(path.read_text()) == 64
    assert make_app(SESSION_BACKEND="memory").secret_key == app.secret_key
    assert [p for p in path.parent.iterdir() if p.name.startswith(".")] == []
    for secret in ("from the environment", "12345"):
        monkeypatch.setenv("FLASK_SECRET_KEY", secret)
        assert make_app(SESSION_BACKEND="memory").secret_key == secret


def test_several_workers_that_start_at_once_share_one_secret_key(
    tmp_path: Path,
) -> None:
    source = (
        "import json, sys\n"
        "from example_app import create_app\n"
        "app = create_app(instance_path=sys.argv[1])\n"
        "print(json.dumps([app.secret_key, app.test_client().get('/').status]))\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", source, str(tmp_path / "instance")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    answers = [json.loads(worker.communicate()[0]) for worker in workers]
    assert {status for _, status in answers} == {"200 OK"}
    assert len({key for key, _ in answers}) == 1


# Over HTTPS


def test_over_https_a_session_is_bound_to_its_device(app: Flask) -> None:
    browser = DeviceBrowser(app, time.time)
    page = Page(browser.fetch("/log-in").text)
    (form,) = (name for name in page.fields if page.methods.get(name) == "post")
    fields = {**dict(page.fields[form]), "name": "ada", "password": "countess"}
    assert browser.fetch("/log-in", "POST", data=fields).status_code in (302, 303)
    assert "Bound to the device" in Page(browser.fetch("/devices").text).text
    assert browser.events == ["registered", "refreshed"]


def test_over_plain_http_no_session_is_bound(browser: Browser) -> None:
    response = browser.log_in()
    assert "Secure-Session-Registration" not in response.headers
    browser.visit("/devices")
    assert "Bound to the device" not in browser.page.text


class HTTPSDemo(Gunicorn):
    """What ``make demo-https`` starts."""

    def __init__(self, folder: Path) -> None:
        super().__init__("")
        self.folder = folder

    def _command(self) -> list[str]:
        options = ["--port", str(self.port), "--instance", str(self.folder)]
        return [sys.executable, "-m", "example_app.https", *options]

    def visit(self, path: str) -> t.Any:
        certificate = str(self.folder / "certificate.pem")
        context = ssl.create_default_context(cafile=certificate)
        url = f"https://{self.address}{path}"
        with urllib.request.urlopen(url, timeout=20, context=context) as answer:
            return answer.headers

    def _ping(self) -> None:
        self.visit("/")


def test_the_demo_makes_a_certificate_and_says_who_believes_it(
    tmp_path: Path,
) -> None:
    with HTTPSDemo(tmp_path) as demo:
        assert "; Secure;" in demo.visit("/log-in")["Set-Cookie"]
        log = demo.log.read_text()
    assert "--ignore-certificate-errors-spki-list=" in log
    assert f"https://{demo.address}/" in log
    assert stat.S_IMODE((tmp_path / "certificate-key.pem").stat().st_mode) == 0o600
