"""Visits the example application with a real browser, Chromium, through Playwright.

Skipped where there is none; ``REQUIRE_SERVERS`` makes that a failure.

The pictures of the documentation are made here, too, and written to a folder that
the environment names::

    SCREENSHOTS=docs/_static python -m pytest tests/test_browser.py -k pictures
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import time
import typing as t
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from flask import Response
from flask import session
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.security import generate_password_hash

from example_app import create_app
from example_app.extensions import server_session
from example_app.users import Users
from flask_serversession import ServerSession

from .servers import Gunicorn

if t.TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import BrowserContext
    from playwright.sync_api import ConsoleMessage
    from playwright.sync_api import Locator
    from playwright.sync_api import Page
    from playwright.sync_api import Request
    from playwright.sync_api import Response as Answer

PROGRAMS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: gunicorn's.
WORKERS = ("--workers", "2", "--worker-class", "gthread", "--threads", "4")

pytestmark = pytest.mark.slow

#: Milliseconds that a page or a part of it may take.
TIMEOUT = 20_000

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
EDGE = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0"
)
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15"
    " (KHTML, like Gecko) Version/18.6 Mobile/15E148 Safari/604.1"
)
TABLET = (
    "Mozilla/5.0 (Linux; Android 15; SM-X210) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/141.0.0.0 Safari/537.36"
)

DESKTOP_SIZE = {"width": 1280, "height": 800}
PHONE_SIZE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start the browser; not for all modules, since an event loop runs meanwhile."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = "These tests need Chromium (Debian: chromium), which is not installed."
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(reason)
        pytest.skip(reason)

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def create_site(folder: str) -> Flask:
    """Make the example application, also for gunicorn."""
    app = create_app({"TESTING": True}, folder)
    # Browsers send where they are, as a proxy would.
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    return app


class Site:
    """The example application, served on loopback.

    By processes of its own. Playwright switches between greenlets in this one, and
    when threads served requests beside them, the interpreter has once crashed.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        #: How long ago it is for the sessions that are made here.
        self.shift = timedelta()
        monkeypatch.setattr(
            server_session, "_clock", lambda: time.time() - self.shift.total_seconds()
        )
        #: On the same files as the one that is served.
        self.app = create_site(str(folder))
        self.server = Gunicorn(f"{__name__}:create_site({str(folder)!r})", *WORKERS)

    @property
    def url(self) -> str:
        return self.server.url.rstrip("/")

    @property
    def users(self) -> Users:
        return t.cast(Users, self.app.extensions["example_users"])

    def log_in(
        self,
        name: str,
        password: str,
        user_agent: str,
        address: str,
        *,
        since: timedelta = timedelta(),
        last_seen: timedelta = timedelta(),
    ) -> None:
        """Log somebody in, some time ago, without a browser."""
        client = self.app.test_client()
        client.environ_base["HTTP_USER_AGENT"] = user_agent
        client.environ_base["REMOTE_ADDR"] = address
        self.shift = since
        page = client.get("/log-in").get_data(as_text=True)
        token = page.split('name="csrf_token" value="')[1].split('"')[0]
        fields = {"csrf_token": token, "name": name, "password": password}
        response = client.post("/log-in", data={**fields, "remember": "yes"})
        assert response.status_code == 302, response.text
        self.shift = last_seen
        assert ">Log out<" in client.get("/").text
        self.shift = timedelta()


@pytest.fixture
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """Serve the application; a parameter has settings of it."""
    for name, value in getattr(request, "param", {}).items():
        monkeypatch.setenv(f"FLASK_{name}", str(value))
    monkeypatch.setattr(
        "example_app.users.generate_password_hash",
        functools.partial(generate_password_hash, method="pbkdf2:sha256:1000"),
    )
    site = Site(tmp_path / "instance", monkeypatch)
    with site.server:
        yield site
    site.app.extensions["serversession"].backend.close()


class Visitor:
    """Somebody with a browser of their own; no two share a cookie."""

    def __init__(self, site: Site, context: BrowserContext) -> None:
        context.set_default_timeout(TIMEOUT)
        self.site = site
        self.context = context
        self.page: Page = context.new_page()
        #: What the browser complains about, the Content-Security-Policy included.
        self.complaints: list[str] = []
        self.page.on("console", self._take_message)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", self._take_failure)
        self.page.on("response", self._take_response)

    def _take_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _take_failure(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # somebody clicked on
            self.complaints.append(f"{request.failure} {request.url}")

    def _take_response(self, response: Answer) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status} {response.url}")

    def go(self, address: str) -> None:
        self.page.goto(self.site.url + address)

    def link(self, name: str) -> Locator:
        return self.page.get_by_role("link", name=name, exact=True)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def click(self, name: str) -> None:
        """Click on a link or a button, and wait for the page that it leads to."""
        with self.page.expect_navigation():
            self.link(name).or_(self.button(name)).click()

    def ask_and_click(self, name: str) -> None:
        """Click on a button that asks first."""
        button = self.page.locator("button", has_text=name)
        question = self.page.locator("details.ask").filter(has=button)
        assert not self.button(name).is_visible()
        question.locator("summary").click()
        self.click(name)

    def press_enter(self) -> None:
        """Press the key on what has the focus, and wait for the page."""
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def fill(self, **fields: str) -> None:
        for label, text in fields.items():
            beginning = re.compile(f"^{label.replace('_', ' ')}")
            self.page.get_by_label(beginning).fill(text)

    def log_in(self, name: str = "ada", password: str = "countess") -> None:
        self.go("/log-in")
        self.fill(Name=name, Password=password)
        with self.page.expect_navigation():
            self.button("Log in").click()  # there is a link of that name, too
        assert self.message == f"Welcome, {name}."

    @property
    def message(self) -> str:
        """What the page says that it did."""
        return self.page.locator("main").get_by_role("status").inner_text()

    @property
    def devices(self) -> list[str]:
        """The headings of the list of sessions."""
        return self.page.locator(".sessions h2").all_inner_texts()

    @property
    def is_logged_in(self) -> bool:
        """What the page says that is shown now, without asking for another one."""
        is_logged_in = self.button("Log out").count() == 1
        assert self.link("Log in").count() == (0 if is_logged_in else 1)
        return is_logged_in


class Opener(t.Protocol):
    """Opens a browser of somebody's own."""

    def __call__(
        self, user_agent: str = ..., address: str = ..., **options: t.Any
    ) -> Visitor: ...


@pytest.fixture
def open_browser(chromium: Browser, site: Site) -> Iterator[Opener]:
    """Open a browser; afterwards none may have had anything to complain about."""
    visitors: list[Visitor] = []
    with contextlib.ExitStack() as stack:

        def open_one(
            user_agent: str = FIREFOX, address: str = "192.0.2.1", **options: t.Any
        ) -> Visitor:
            context = chromium.new_context(
                user_agent=user_agent,
                extra_http_headers={"X-Forwarded-For": address},
                **{"viewport": DESKTOP_SIZE, **options},
            )
            stack.callback(context.close)
            visitors.append(Visitor(site, context))
            return visitors[-1]

        yield open_one

        assert [visitor.complaints for visitor in visitors] == [[]] * len(visitors)


# Your devices


@pytest.mark.parametrize("has_scripts", [True, False])
def test_one_browser_ends_the_session_of_another(
    open_browser: Opener, has_scripts: bool
) -> None:
    desktop = open_browser(FIREFOX, "192.0.2.1", java_script_enabled=has_scripts)
    phone = open_browser(PHONE, "198.51.100.7", java_script_enabled=has_scripts)
    desktop.log_in()
    phone.log_in()
    phone.click("Your devices")
    assert phone.devices == ["Safari, iPhone This device", "Firefox, Linux"]

    desktop.click("Your devices")
    assert desktop.devices == ["Firefox, Linux This device", "Safari, iPhone"]
    assert "198.51.100.7" in desktop.page.get_by_role("listitem").last.inner_text()
    desktop.ask_and_click("End session on Safari, iPhone")
    assert desktop.message == "The session on Safari, iPhone is ended."
    assert desktop.devices == ["Firefox, Linux This device"]

    assert phone.is_logged_in  # as far as it knows
    phone.click("Notes")
    assert not phone.is_logged_in
    phone.go("/devices")
    assert phone.page.url.endswith("/log-in?next=/devices")
    desktop.click("Notes")
    assert desktop.is_logged_in


def test_somebody_logs_out_everywhere_else(open_browser: Opener) -> None:
    desktop, *others = (
        open_browser(user_agent) for user_agent in (FIREFOX, PHONE, TABLET, EDGE)
    )
    stranger = open_browser()
    desktop.site.users.add("grace", "amazing grace")
    stranger.log_in("grace", "amazing grace")
    for each in (desktop, *others):
        each.log_in()
    desktop.go("/devices")
    assert len(desktop.devices) == 4
    desktop.ask_and_click("Log out everywhere else")
    assert desktop.message == "Logged out everywhere else; sessions ended: 3."
    assert desktop.devices == ["Firefox, Linux This device"]
    for each in (desktop, stranger, *others):
        each.click("Notes")
        assert each.is_logged_in is (each in (desktop, stranger))


def test_a_change_of_the_password_logs_out_everywhere_else(
    open_browser: Opener,
) -> None:
    desktop, phone = open_browser(FIREFOX), open_browser(PHONE)
    for each in (desktop, phone):
        each.log_in()
    desktop.click("Your devices")
    desktop.click("change your password")
    # The old one was asked for a moment ago, at the log-in.
    assert desktop.page.get_by_label("Current password").count() == 0
    desktop.fill(New_password="enchantress")
    desktop.click("Change password")
    assert desktop.message.endswith("logged out everywhere else; sessions ended: 1.")
    assert desktop.devices == ["Firefox, Linux This device"]
    phone.click("Notes")
    assert not phone.is_logged_in
    phone.log_in("ada", "enchantress")


@pytest.mark.parametrize("site", [{"LOG_IN_IS_FRESH_FOR": 0}], indirect=True)
def test_who_logged_in_a_while_ago_is_asked_for_the_old_password(
    open_browser: Opener,
) -> None:
    desktop = open_browser()
    desktop.log_in()
    desktop.click("Your devices")
    desktop.click("change your password")
    desktop.fill(Current_password="countess", New_password="enchantress")
    desktop.click("Change password")
    assert "Your password is changed" in desktop.message


@pytest.mark.parametrize("site", [{"SESSION_IDLE_TIMEOUT": 8}], indirect=True)
def test_a_dialog_counts_down_and_then_the_log_in_says_why(
    open_browser: Opener,
) -> None:
    desktop = open_browser()
    desktop.log_in()
    dialog = desktop.page.get_by_role("dialog", name="Are you still there?")
    dialog.wait_for()
    seconds = dialog.locator("output")
    assert 0 < int(seconds.inner_text()) <= 8
    with desktop.page.expect_response("**/session/stay") as answer:
        desktop.button("Stay logged in").click()
    assert 0 < answer.value.json()["seconds"] <= 8
    assert desktop.is_logged_in
    # It goes by itself, without a click.
    desktop.link("Log in").wait_for()
    assert not dialog.is_visible()
    desktop.click("Log in")
    reason = "Your session ended, because you have not been here for a while."
    assert desktop.message == reason


def test_an_administrator_ends_the_session_of_somebody(open_browser: Opener) -> None:
    desktop, phone = open_browser(FIREFOX), open_browser(PHONE)
    desktop.site.users.add("grace", "amazing grace")
    phone.log_in("grace", "amazing grace")
    desktop.log_in()
    desktop.click("Admin")
    desktop.page.get_by_role("searchbox", name="User name").fill("Grace")
    desktop.click("Search")
    assert desktop.message == "grace has one session."
    desktop.ask_and_click("End session on Safari, iPhone")
    messages = desktop.page.get_by_role("status").all_inner_texts()
    assert messages[0] == "The session of grace on Safari, iPhone is ended."
    assert messages[1].startswith("grace has no sessions")
    phone.click("Notes")
    assert not phone.is_logged_in


# For everybody


def test_the_keyboard_alone_is_enough(open_browser: Opener) -> None:
    phone = open_browser(PHONE)
    phone.log_in()
    desktop = open_browser(FIREFOX)
    page = desktop.page

    desktop.go("/")
    page.keyboard.press("Tab")
    assert has_visible_focus(desktop.link("Skip to the content"))
    tab_to(desktop.link("Log in"))
    desktop.press_enter()

    page.keyboard.press("Tab")
    assert has_visible_focus(desktop.link("Skip to the content"))
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # past the header, at once
    assert has_visible_focus(page.get_by_label("Name"))
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type("countess")
    page.keyboard.press("Tab")
    assert has_visible_focus(page.get_by_label("Keep me logged in"))
    page.keyboard.press("Space")
    tab_to(desktop.button("Log in"))
    desktop.press_enter()
    assert desktop.message == "Welcome, ada."

    tab_to(desktop.link("Your devices"))
    desktop.press_enter()
    tab_to(page.locator("summary", has_text="End session… on Safari, iPhone"))
    page.keyboard.press("Enter")
    tab_to(desktop.button("End session on Safari, iPhone"))
    desktop.press_enter()
    assert desktop.message == "The session on Safari, iPhone is ended."

    phone.click("Notes")
    assert not phone.is_logged_in


def tab_to(target: Locator) -> None:
    """Press the tabulator key until an element has the focus."""
    for _ in range(60):
        target.page.keyboard.press("Tab")
        # All that is on the way has to be seen as well; from the end of the page, the
        # way leads through the browser's own buttons.
        focused = target.page.locator(":focus")
        assert not focused.count() or has_visible_focus(focused)
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{target} cannot be reached.")


def has_visible_focus(element: Locator) -> bool:
    return t.cast(
        bool,
        element.evaluate(
            """element => {
                const style = getComputedStyle(element);
                const box = element.getBoundingClientRect();
                return element === document.activeElement
                    && style.outlineStyle !== "none"
                    && parseFloat(style.outlineWidth) >= 2
                    && box.width > 0 && box.top >= 0 && box.left >= 0
                    && box.bottom <= innerHeight && box.right <= innerWidth;
            }"""
        ),
    )


def test_a_screen_reader_gets_names_and_not_only_looks(open_browser: Opener) -> None:
    desktop, phone = open_browser(FIREFOX), open_browser(PHONE, "198.51.100.7")
    phone.log_in()
    desktop.log_in()
    desktop.click("Your devices")
    page = desktop.page
    assert page.title().startswith("Your devices")
    sessions = page.get_by_role("region", name="Sessions").get_by_role("listitem")
    assert sessions.get_by_role("heading", level=2).all_inner_texts() == desktop.devices
    end = page.locator("summary", has_text="End session… on Safari, iPhone")
    description = end.evaluate(
        "button => document.getElementById(button.getAttribute('aria-describedby'))"
        ".innerText"
    )
    assert "198.51.100.7" in description
    assert "just now" in description
    moment = page.locator("time").first
    assert moment.get_attribute("datetime", timeout=TIMEOUT) is not None
    assert page.get_by_role("link", name="Your devices").get_attribute(
        "aria-current"
    ) == ("page")

    desktop.click("Admin")
    table = page.get_by_role("table", name="Users who are logged in")
    assert table.get_by_role("columnheader").all_inner_texts() == [
        "User",
        "Sessions",
        "Last seen",
    ]
    row = table.get_by_role("row").filter(has=page.get_by_role("rowheader", name="ada"))
    assert row.get_by_role("cell").all_inner_texts() == ["2", "just now"]


PAGES = (
    "/",
    "/products/pen",
    "/cart",
    "/notes",
    "/notes/edit",
    "/preferences",
    "/session",
    "/devices",
    "/password",
    "/admin",
    "/admin?name=ada",
    "/admin?name=" + "M" * 30,
    "/admin?name=" + "W" * 30,
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 320])
def test_pages_fit_on_a_phone(open_browser: Opener, width: int, scheme: str) -> None:
    size = {"width": width, "height": 844}
    phone = open_browser(
        PHONE,
        # As long as an address can be.
        "2001:db8:1111:2222:3333:4444:5555:6666",
        viewport=size,
        is_mobile=True,
        has_touch=True,
        color_scheme=scheme,
    )
    site = phone.site
    site.users.add("M" * 30, "amazing grace")
    for name, password in (("ada", "countess"), ("M" * 30, "amazing grace")):
        site.log_in(name, password, "W" * 30 + "/1.0", "2001:db8:" + "f" * 30)
    phone.go("/log-in")
    assert_fits(phone, width)
    phone.log_in()
    phone.go("/products/pen")
    phone.click("Add to cart")
    for address in PAGES:
        phone.go(address)
        assert_fits(phone, width)
        background = phone.page.locator("body").evaluate(
            "body => getComputedStyle(body).backgroundColor"
        )
        is_dark = sum(map(int, background[4:-1].split(","))) < 3 * 128
        assert is_dark is (scheme == "dark")
    if width == PHONE_SIZE["width"]:
        phone.go("/preferences")
        phone.page.get_by_label("Large").check()
        phone.click("Save")
        for address in PAGES:
            phone.go(address)
            assert_fits(phone, width)
    phone.click("Log out")
    phone.log_in("m" * 30, "amazing grace")
    phone.go("/devices")
    assert_fits(phone, width)
    # What was looked at was there.
    assert "W" * 30 in phone.page.locator("main").inner_text()
    assert phone.page.locator("main button").count() >= 2


def assert_fits(visitor: Visitor, width: int) -> None:
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing is cut off instead, and what is to be touched can be.
    narrow = visitor.page.locator("main button, main .button").evaluate_all(
        """elements => elements.filter(element => {
            const box = element.getBoundingClientRect();
            return element.checkVisibility()
                && (box.right > innerWidth || box.height < 24 || box.width < 24);
        }).map(element => element.innerText)"""
    )
    assert narrow == []


def test_the_menu_of_a_phone_opens_and_closes(open_browser: Opener) -> None:
    phone = open_browser(PHONE, viewport=PHONE_SIZE, is_mobile=True, has_touch=True)
    phone.go("/")
    assert not phone.link("Notes").is_visible()
    phone.button("Menu").click()
    assert phone.page.get_by_role("navigation", name="Main").is_visible()
    phone.page.keyboard.press("Escape")
    assert not phone.link("Notes").is_visible()
    phone.button("Menu").click()
    phone.click("Notes")
    assert phone.page.url.endswith("/notes")
    assert not phone.link("Preferences").is_visible()
    desktop = open_browser(FIREFOX)
    desktop.go("/")
    assert desktop.link("Notes").is_visible()
    assert not desktop.button("Menu").is_visible()


def test_what_was_typed_survives_and_its_field_says_what_is_wrong(
    open_browser: Opener,
) -> None:
    desktop = open_browser(FIREFOX)
    desktop.go("/notes")
    desktop.fill(Name="a/b", Text="a long thought")
    desktop.click("Add note")
    assert len(desktop.complaints) == 2  # of the status, and nothing else
    assert all("422" in complaint for complaint in desktop.complaints)
    desktop.complaints.clear()
    assert (
        desktop.page.get_by_label("Text", exact=True).input_value() == "a long thought"
    )
    field = desktop.page.get_by_label("Name", exact=True)
    assert field.input_value() == "a/b"
    described_by = field.get_attribute("aria-describedby", timeout=TIMEOUT)
    assert (
        "A name has up to 40" in desktop.page.locator(f"#{described_by}").inner_text()
    )
    desktop.fill(Name="Thought")
    desktop.click("Add note")
    desktop.page.get_by_label("Choose Thought").check()
    desktop.click("Delete the ticked ones")
    desktop.click("Undo")
    assert desktop.message == "Back again: Thought."


# For the documentation


@pytest.mark.parametrize(
    ("name", "size"), [("desktop", DESKTOP_SIZE), ("phone", PHONE_SIZE)]
)
@pytest.mark.parametrize("text", ["Normal", "Large"])
def test_every_page_is_pictured(
    open_browser: Opener, tmp_path: Path, name: str, size: t.Any, text: str
) -> None:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    site = open_browser().site
    fill_with_life(site)
    visitor = open_browser(PHONE, viewport=size)
    visitor.log_in()
    visitor.go("/preferences")
    visitor.page.get_by_label(text).check()
    visitor.click("Save")
    for sku, quantity in (("pen", "99"), ("envelopes", "3")):
        visitor.go(f"/products/{sku}")
        visitor.fill(Quantity=quantity)
        visitor.click("Add to cart")
    visitor.go("/notes")
    visitor.fill(Name="To do", Text="Buy stamps")
    visitor.click("Add note")
    for address in (*PAGES[:11], "/no-such-page"):
        visitor.go(address)
        file = address.strip("/").replace("/", "-").partition("?")[0] or "home"
        take_picture(visitor, folder / f"{name}-{text.lower()}-{file}.png")
        assert (
            visitor.page.evaluate("document.documentElement.scrollWidth")
            <= (size["width"])
        )
    visitor.complaints.clear()  # there is no such page
    visitor.go("/devices")
    visitor.page.locator("summary").first.click()
    if size is PHONE_SIZE:
        visitor.button("Menu").click()
    take_picture(visitor, folder / f"{name}-{text.lower()}-open.png")


def test_pictures_are_made(open_browser: Opener, site: Site, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    fill_with_life(site)
    desktop = open_browser(
        FIREFOX, "192.0.2.17", viewport={"width": 1080, "height": 720}
    )
    phone = open_browser(
        PHONE,
        "198.51.100.7",
        viewport=PHONE_SIZE,
        color_scheme="dark",
    )
    phone.log_in()
    desktop.log_in()
    for sku in ("pen", "ink"):
        desktop.go(f"/products/{sku}")
        desktop.click("Add to cart")
    desktop.go("/")
    take_picture(desktop, folder / "example-home.png")
    desktop.go("/session")
    take_picture(desktop, folder / "example-session.png")
    desktop.go("/devices")
    take_picture(desktop, folder / "example-devices.png")
    assert desktop.devices == [
        "Firefox, Linux This device",
        "Safari, iPhone",
        "Chrome, Android",
        "Edge, Windows",
    ]
    desktop.go("/admin?name=grace")
    take_picture(desktop, folder / "example-admin.png")
    assert desktop.message.startswith("grace has 2 sessions.")
    phone.go("/devices")
    take_picture(phone, folder / "example-devices-phone.png")


#: Set by a subdomain. A browser sends those of the longer path first.
PLANTED = (
    ('q="; Path=/who', 'z="; Path=/'),
    ('\xa0__Host-session="; Path=/who', 'z="; Path=/'),
    ('__Host-session="; Path=/who; Secure', '=__Host-session="; Path=/who; Secure'),
)


def create_shop() -> Flask:
    """Make an application that also answers for a subdomain which is up to no good."""
    app = Flask("shop")
    app.config.update(
        SECRET_KEY="a secret",
        SESSION_BACKEND="memory",
        SESSION_COOKIE_NAME="__Host-session",
        SESSION_COOKIE_SECURE=True,
        TESTING=True,
    )
    ServerSession(app)

    @app.get("/log-in/<user>")
    def log_in(user: str) -> str:
        session["_user_id"] = user
        return user

    @app.get("/who")
    def who() -> str:
        return str(session.get("_user_id"))

    @app.get("/plant/<int:number>")
    def plant(number: int) -> Response:
        response = Response("planted")
        for cookie in PLANTED[number]:
            response.headers.add("Set-Cookie", f"{cookie}; Domain=app.localhost")
        return response

    return app


def test_a_subdomain_cannot_hide_the_session_between_quotes(chromium: Browser) -> None:
    # Each parser of cookies that knows quotes takes what lies between for one value.
    with Gunicorn(f"{__name__}:create_shop()", "--threads", "4") as server:
        port = server.address.rpartition(":")[2]
        for number in range(len(PLANTED)):
            with contextlib.closing(chromium.new_context()) as context:
                page = context.new_page()
                page.goto(f"http://app.localhost:{port}/log-in/ann")
                page.goto(f"http://evil.app.localhost:{port}/plant/{number}")
                page.goto(f"http://app.localhost:{port}/who")
                assert page.inner_text("body") == "ann"


def fill_with_life(site: Site) -> None:
    day, hour, minute = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
    for name in ("grace", "alan", "mary", "joan", "edsger", "barbara"):
        site.users.add(name, "correct horse")
    sessions = (
        ("ada", EDGE, "203.0.113.80", 12 * day, 3 * day),
        ("ada", TABLET, "2001:db8::4a:17", 5 * day + 7 * hour, 20 * minute),
        ("grace", FIREFOX, "203.0.113.4", 2 * day, 4 * minute),
        ("grace", TABLET, "198.51.100.23", 9 * day, 5 * hour),
        ("alan", EDGE, "192.0.2.200", 1 * day, 41 * minute),
        ("barbara", PHONE, "192.0.2.44", 3 * day, 2 * day),
        ("mary", PHONE, "192.0.2.45", 4 * day, 2 * hour),
    )
    for name, user_agent, address, since, last_seen in sessions:
        password = "countess" if name == "ada" else "correct horse"
        site.log_in(
            name, password, user_agent, address, since=since, last_seen=last_seen
        )
    for _ in range(5):
        site.app.test_client().get("/session")


def take_picture(visitor: Visitor, path: Path) -> None:
    visitor.page.mouse.move(0, 0)
    visitor.page.screenshot(path=path, full_page=True, animations="disabled")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 250_000
