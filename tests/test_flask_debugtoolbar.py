"""Flask-DebugToolbar, which reads the session of each page.

Its sdist has no tests, so these are here in their place.
"""

from __future__ import annotations

import typing as t

import flask
import pytest

from flask_serversession import session

from .flask_version import skipping_where_deprecated
from .site import Browser
from .site import Site
from .site import cookie_of

with skipping_where_deprecated("Flask-DebugToolbar"):
    from flask_debugtoolbar import DebugToolbarExtension

pytestmark = pytest.mark.filterwarnings(
    # Of pages without a body, which the helpers of these tests make.
    "ignore:Could not insert debug toolbar:UserWarning"
)

PAGE = "<!doctype html><html><head></head><body>{}</body></html>"


@pytest.fixture
def site() -> Site:
    site = Site({"SESSION_BACKEND": "memory"}, DEBUG=True)
    DebugToolbarExtension(site.app)
    return site


def page(browser: Browser, change: t.Callable[[], t.Any] = lambda: None) -> str:
    def view() -> flask.Response:
        change()
        return flask.Response(PAGE.format("a page"), mimetype="text/html")

    response = browser.visit(view)
    assert response.status_code == 200
    assert "flDebug" in response.text
    return response.text


def test_the_toolbar_shows_the_session_and_changes_nothing(site: Site) -> None:
    browser = site.browser()
    assert "clover" not in page(browser)
    assert browser.cookie is None
    browser.set(cart={"plant": "clover"})
    before = browser.cookie
    assert "clover" in page(browser)
    assert browser.cookie == before
    assert browser.read() == {"cart": {"plant": "clover"}}


def test_what_a_page_with_the_toolbar_changes_is_saved(site: Site) -> None:
    browser = site.browser()
    browser.set(cart={"pens": 1})

    def change() -> None:
        session["cart"]["pens"] += 1

    page(browser, change)
    assert browser.read() == {"cart": {"pens": 2}}


def test_a_log_in_and_a_log_out_with_the_toolbar(site: Site) -> None:
    browser = site.browser()
    browser.set(n=1)
    before = browser.id
    page(browser, lambda: session.update(_user_id="clover"))
    assert browser.id != before
    response = browser.visit(lambda: session.destroy())
    assert cookie_of(response, site) == "deleted"
    assert "clover" not in page(browser)


def test_the_toolbar_shows_a_redirect_and_the_session_is_kept(site: Site) -> None:
    site.app.config["DEBUG_TB_INTERCEPT_REDIRECTS"] = True
    browser = site.browser()

    def move() -> t.Any:
        session["moved"] = True
        return flask.redirect("/elsewhere")

    response = browser.visit(move)
    assert response.status_code == 200
    assert "/elsewhere" in response.text
    assert browser.read() == {"moved": True}
