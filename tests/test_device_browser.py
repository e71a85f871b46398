"""Sessions that are bound to a device, with a real browser that can do it: Chromium.

Skipped where there is none; ``REQUIRE_SERVERS`` makes that a failure. Chromium on Linux
has no keys of a device, but keys in software for such tests, behind a flag. The first
test fails where a later one lacks that flag.

The browser believes the certificate by a flag of its own: with all that merely ignores
errors of certificates, it binds nothing, and does not say why.
"""

from __future__ import annotations

import os
import shutil
import ssl
import time
import typing as t
import urllib.error
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask import session

from example_app.https import FEATURES
from example_app.https import Certificate
from example_app.https import make_certificate
from flask_serversession import BackendUnavailableError
from flask_serversession import ServerSession
from flask_serversession import ServerSideSession
from flask_serversession import session as our_session
from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.testing import CountingBackend

from .figures import Report
from .servers import Gunicorn
from .test_browser import ARGUMENTS
from .test_browser import PROGRAMS
from .test_browser import TIMEOUT
from .test_browser import WORKERS

if t.TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import BrowserContext
    from playwright.sync_api import CDPSession
    from playwright.sync_api import Page
    from playwright.sync_api import Playwright
    from playwright.sync_api import Response as Answer

pytestmark = pytest.mark.slow

Event: t.TypeAlias = dict[str, t.Any]


def create_site(folder: str) -> Flask:
    """Make a small site, also for gunicorn. Files in the folder steer it."""
    place = Path(folder)

    def clock() -> float:
        shift = place / "shift"
        return time.time() + (float(shift.read_text()) if shift.exists() else 0.0)

    def fail() -> None:
        if (place / "down").exists():
            raise BackendUnavailableError("The test lets the store fail.")

    backend = CountingBackend(FilesystemBackend(str(place / "sessions"), clock=clock))
    backend.before = dict.fromkeys(("load", "create", "replace", "delete"), fail)
    app = Flask("site", static_folder=None)
    app.config.update(
        SECRET_KEY="a secret",
        SESSION_BACKEND=backend,
        SESSION_PERMANENT=True,
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_DEVICE_BOUND=True,
    )
    ServerSession(app, clock=clock)

    @app.get("/")
    def home() -> str:
        return "<!doctype html><title>site</title>"

    @app.get("/log-in")
    def log_in() -> str:
        session["user_id"] = "ann"
        return "<!doctype html><title>logged in</title>"

    @app.get("/log-out")
    def log_out() -> str:
        session.clear()
        return "<!doctype html><title>logged out</title>"

    @app.get("/page")
    def page() -> tuple[str, int]:
        user = session.get("user_id")
        return ("nobody", 401) if user is None else (user, 200)

    @app.post("/count")
    def count() -> str:
        def add(content: ServerSideSession) -> int:
            content["n"] = content.get("n", 0) + 1
            return t.cast(int, content["n"])

        return str(our_session.atomic(add))

    return app


class SecureGunicorn(Gunicorn):
    """A gunicorn that speaks HTTPS."""

    def __init__(self, app: str, certificate: Certificate) -> None:
        files = ("--certfile", str(certificate.path), "--keyfile")
        super().__init__(app, *WORKERS, *files, str(certificate.key_path))
        self.context = ssl.create_default_context(cafile=str(certificate.path))

    @property
    def url(self) -> str:
        return f"https://{self.address}"

    def _ping(self) -> None:
        with urllib.request.urlopen(
            f"{self.url}/", timeout=5, context=self.context
        ) as answer:
            assert answer.status == 200


class Site:
    """The site, served over HTTPS on loopback."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.folder = folder
        name = f"{__name__}:create_site({str(folder)!r})"
        self.server = SecureGunicorn(name, certificate)

    @property
    def url(self) -> str:
        return self.server.url

    def advance(self, seconds: float) -> None:
        """Let time pass on the server."""
        (self.folder / "shift").write_text(str(seconds))

    def visit_with(self, cookies: dict[str, str], path: str = "/page") -> int:
        """Ask for a page without a browser, as somebody does who has copied cookies."""
        header = "; ".join(f"{name}={value}" for name, value in cookies.items())
        request = urllib.request.Request(self.url + path, headers={"Cookie": header})
        context = self.server.context
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return t.cast(int, answer.status)
        except urllib.error.HTTPError as error:
            return error.code


class Visitor:
    """A browser's page, and what the browser tells of device-bound sessions."""

    def __init__(self, site: Site, context: BrowserContext) -> None:
        context.set_default_timeout(TIMEOUT)
        self.site = site
        self.context = context
        self.page: Page = context.new_page()
        self.events: list[Event] = []
        self.is_supported = False
        self.cdp: CDPSession = context.new_cdp_session(self.page)
        self.cdp.on("Network.deviceBoundSessionEventOccurred", self._hear)
        self.cdp.on("Network.deviceBoundSessionsAdded", self._support)
        self.cdp.send("Network.enable")
        self.cdp.send("Network.enableDeviceBoundSessions", {"enable": True})

    def _hear(self, event: Event) -> None:
        self.events.append(event)

    def _support(self, _: Event) -> None:
        self.is_supported = True

    def go(self, path: str) -> int:
        """Visit a page; return the status."""
        response = self.page.goto(self.site.url + path)
        assert response is not None
        return response.status

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for events until there is what is waited for."""
        deadline = time.monotonic() + TIMEOUT / 1000
        while not condition():
            assert time.monotonic() < deadline, f"no {what}; there are {self.told}"
            self.page.wait_for_timeout(20)  # in which events come in

    @property
    def told(self) -> list[str]:
        """What happened, in short."""
        return [
            f"{name.removesuffix('EventDetails')}"
            f" {details.get('refreshResult') or details.get('deletionReason') or ''}"
            f" {event['succeeded']}".replace("  ", " ")
            for event in self.events
            for name, details in event.items()
            if name.endswith("EventDetails") and name != "challengeEventDetails"
        ]

    def count(self, told: str) -> int:
        return self.told.count(told)

    def log_in(self) -> None:
        """Log in, and wait until the session is bound."""
        assert self.go("/log-in") == 200
        self.wait(lambda: self.count("creation True") > 0, "registration")
        assert self.go("/page") == 200
        self.wait(lambda: self.count("refresh Refreshed True") > 0, "first proof")
        assert "session_proof" in self.cookies

    @property
    def cookies(self) -> dict[str, str]:
        return {
            str(cookie.get("name")): str(cookie.get("value"))
            for cookie in self.context.cookies()
        }

    def expire(self) -> None:
        """Let the proof end in the browser, as it does by itself after minutes."""
        self.cdp.send(
            "Network.deleteCookies", {"name": "session_proof", "url": self.site.url}
        )
        assert "session_proof" not in self.cookies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def options(certificate: Certificate) -> dict[str, t.Any]:
    """Give what the browser is started with."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = "These tests need Chromium (Debian: chromium), which is not installed."
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    arguments = [*ARGUMENTS, *certificate.flags]
    return {"executable_path": program, "args": arguments}


@pytest.fixture(scope="module")
def chromium(playwright: Playwright, options: dict[str, t.Any]) -> Iterator[Browser]:
    browser = playwright.chromium.launch(**options)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def site(tmp_path: Path, certificate: Certificate) -> Iterator[Site]:
    site = Site(tmp_path, certificate)
    with site.server:
        yield site


@pytest.fixture
def visitor(chromium: Browser, site: Site) -> Iterator[Visitor]:
    context = chromium.new_context()
    try:
        yield Visitor(site, context)
    finally:
        context.close()


def test_the_browser_can_do_it_and_registers_a_key(visitor: Visitor) -> None:
    visitor.go("/")
    try:
        visitor.wait(lambda: visitor.is_supported, "support")
    except AssertionError:
        pytest.fail(
            "This Chromium does not bind sessions to devices, or not with the features"
            f" {', '.join(FEATURES)}. Look for their new names in its chrome://flags."
        )
    visitor.log_in()
    assert visitor.told == ["creation True", "refresh Refreshed True"]
    assert {*visitor.cookies} == {"session", "session_proof"}
    assert visitor.go("/page") == 200


def test_a_thief_is_out_when_the_proof_has_ended(
    visitor: Visitor, report: Report
) -> None:
    visitor.log_in()
    stolen = visitor.cookies
    assert visitor.site.visit_with(stolen) == 200
    visitor.site.advance(700)
    visitor.expire()
    assert visitor.go("/page") == 200
    status = visitor.site.visit_with(stolen)
    report(f"{', '.join(visitor.told)}, with the stolen cookies {status}")
    assert status == 401
    assert visitor.site.visit_with({"session": stolen["session"]}) == 401
    assert visitor.site.visit_with(visitor.cookies) == 200
    assert visitor.count("refresh Refreshed True") == 2


def test_ten_requests_at_once_wait_for_one_proof(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.site.advance(700)
    visitor.expire()
    counts = visitor.page.evaluate(
        """() => Promise.all(Array.from({length: 10}, async () =>
            await (await fetch("/count", {method: "POST"})).text()))"""
    )
    assert sorted(map(int, counts)) == [*range(1, 11)]
    assert visitor.count("refresh Refreshed True") == 2


def test_a_log_out_ends_it_in_the_browser_too(visitor: Visitor) -> None:
    visitor.log_in()
    assert visitor.go("/log-out") == 200
    assert visitor.cookies == {}
    assert visitor.go("/page") == 401
    ended = "termination ServerRequested True"
    visitor.wait(lambda: visitor.count(ended) == 1, "end")
    visitor.go("/log-in")
    visitor.wait(lambda: visitor.count("creation True") == 2, "registration")
    assert visitor.go("/page") == 200


def test_an_outage_locks_nobody_out(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.site.advance(700)
    visitor.expire()
    down = visitor.site.folder / "down"
    down.touch()
    assert visitor.go("/page") == 503
    down.unlink()
    visitor.wait(lambda: visitor.go("/page") == 200, "answer of the store")
    assert visitor.count("termination ServerRequested True") == 0
    assert visitor.site.visit_with({"session": visitor.cookies["session"]}) == 401


def test_a_restart_of_the_browser_and_of_the_server_log_nobody_out(
    playwright: Playwright, options: dict[str, t.Any], site: Site, tmp_path: Path
) -> None:
    profile = tmp_path / "profile"
    context = playwright.chromium.launch_persistent_context(profile, **options)
    try:
        Visitor(site, context).log_in()
    finally:
        context.close()
    site.server.restart()
    site.advance(700)
    context = playwright.chromium.launch_persistent_context(profile, **options)
    try:
        visitor = Visitor(site, context)
        visitor.go("/")
        visitor.expire()
        assert visitor.go("/page") == 200
        assert visitor.count("refresh Refreshed True") >= 1
        assert site.visit_with({"session": visitor.cookies["session"]}) == 401
    finally:
        context.close()


@pytest.mark.parametrize("has_scripts", [True, False])
def test_a_link_from_another_site_leads_to_the_page(
    chromium: Browser, site: Site, has_scripts: bool
) -> None:
    context = chromium.new_context(java_script_enabled=has_scripts)
    try:
        visitor = Visitor(site, context)
        visitor.log_in()
        site.advance(700)
        visitor.expire()
        target = f"{site.url}/page?a=1&b=2"
        link = f"data:text/html,<a href='{target.replace('&', '%26')}'>go</a>"
        visitor.page.goto(link)
        answers: list[bool] = []

        def hear(response: Answer) -> None:
            answers.append("refresh" in response.headers)

        visitor.page.on("response", hear)
        visitor.page.get_by_role("link").click()
        visitor.page.get_by_text("ann", exact=True).wait_for()
        assert visitor.page.url == target
        assert answers == [True, False]  # it was followed twice
        assert visitor.count("refresh Refreshed True") == 2
    finally:
        context.close()
