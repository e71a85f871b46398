"""Flask-WTF, which keeps its CSRF token in a session whose id changes."""

from __future__ import annotations

import typing as t

import flask
import pytest
from flask_wtf import CSRFProtect
from flask_wtf.csrf import generate_csrf
from werkzeug.test import TestResponse

from flask_serversession import session
from flask_serversession.testing import FakeClock

from .site import Action
from .site import Browser
from .site import Site
from .site import cookie_of


def add_csrf(site: Site) -> Site:
    CSRFProtect(site.app)
    return site


@pytest.fixture
def site(backend_config: dict[str, t.Any]) -> Site:
    """Give a site on each backend."""
    return add_csrf(Site(backend_config))


def make_site(**settings: t.Any) -> Site:
    return add_csrf(Site({"SESSION_BACKEND": "memory"}, **settings))


def token_for(browser: Browser) -> str:
    """Visit a page with a form, and give the token in it."""
    return browser.visit(generate_csrf).text


def post(browser: Browser, token: str, action: Action = lambda: "done") -> TestResponse:
    path = browser.site.add(action)
    return browser.client.post(path, data={"csrf_token": token})


def log_in() -> None:
    session["_user_id"] = "ada"


def test_a_form_from_before_the_log_in_is_accepted_after_it(site: Site) -> None:
    browser = site.browser()
    token = token_for(browser)
    before = browser.id
    assert post(browser, token, log_in).status_code == 200
    assert browser.id != before
    assert post(browser, token).text == "done"
    # And once the old id is dead, too.
    t.cast(FakeClock, site.clock).advance(60)
    assert post(browser, token).text == "done"


def test_a_form_of_another_session_is_refused() -> None:
    site = make_site()
    browser, other = site.browser(), site.browser()
    token_for(browser)
    token = token_for(other)
    assert post(browser, token).status_code == 400
    assert post(site.browser(), token).status_code == 400
    assert post(other, token).text == "done"


def test_a_form_of_the_visitor_before_is_refused_in_a_new_session() -> None:
    browser = make_site().browser()
    token = token_for(browser)

    def start_over() -> None:
        session.regenerate(keep_data=False)
        session["started"] = True

    assert post(browser, token, start_over).status_code == 200
    assert post(browser, token).status_code == 400
    assert post(browser, token_for(browser)).text == "done"


def test_a_form_is_refused_after_the_log_out() -> None:
    site = make_site()
    browser = site.browser()
    token = token_for(browser)
    post(browser, token, log_in)
    response = post(browser, token, lambda: session.destroy())
    assert cookie_of(response, site) == "deleted"
    assert post(browser, token).status_code == 400


def test_refusing_a_form_costs_one_look_at_the_session() -> None:
    site = make_site()
    browser = site.browser()
    token_for(browser)
    with site.backend.counting() as calls:
        assert post(browser, "forged").status_code == 400
    assert dict(calls) == {"load": 1}


def test_a_flashed_message_about_a_refused_form_is_kept() -> None:
    site = make_site()

    def refused(error: Exception) -> flask.Response:
        flask.flash("Please send the form again.")
        return flask.Response("refused", 400)

    site.app.register_error_handler(400, refused)
    browser = site.browser()
    token_for(browser)
    assert post(browser, "forged").text == "refused"
    messages = browser.visit(lambda: ", ".join(flask.get_flashed_messages()))
    assert messages.text == "Please send the form again."
