"""Authlib's client for Flask, which keeps the state of a log-in in the session.

Its sdist has no tests, so these are here in their place; the provider is a server that
the test starts.
"""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator
from urllib.parse import parse_qs
from urllib.parse import urlsplit

import flask
import pytest
from authlib.integrations.base_client.errors import MismatchingStateError
from authlib.integrations.flask_client import OAuth
from werkzeug.serving import make_server

from flask_serversession import session

from .site import Browser
from .site import Site


def make_provider() -> flask.Flask:
    """Make an OAuth 2 provider that lets everybody in; the code says who it is."""
    app = flask.Flask("provider")

    @app.post("/token")
    def token() -> dict[str, t.Any]:
        code = flask.request.form["code"]
        return {"access_token": f"token-of-{code}", "token_type": "Bearer"}

    @app.get("/me")
    def me() -> dict[str, str]:
        kind, _, token = flask.request.headers["Authorization"].partition(" ")
        assert kind == "Bearer"
        return {"name": token.removeprefix("token-of-")}

    return app


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    server = make_server("127.0.0.1", 0, make_provider(), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class Client:
    """A site whose visitors log in with the provider."""

    def __init__(self, config: dict[str, t.Any], provider: str) -> None:
        self.site = Site(config)
        self.oauth = OAuth(self.site.app)
        self.oauth.register(
            "provider",
            client_id="the-site",
            client_secret="its secret",
            authorize_url=f"{provider}/authorize",
            access_token_url=f"{provider}/token",
            api_base_url=provider,
            code_challenge_method="S256",
        )
        app = self.site.app
        app.add_url_rule("/log-in", view_func=self.log_in)
        app.add_url_rule("/callback", view_func=self.callback)

    def log_in(self) -> t.Any:
        return self.oauth.provider.authorize_redirect(
            flask.url_for("callback", _external=True)
        )

    def callback(self) -> str:
        token = self.oauth.provider.authorize_access_token()
        name = self.oauth.provider.get("/me", token=token).json()["name"]
        session["_user_id"] = name
        return str(name)

    def begin(self, browser: Browser) -> str:
        """Go to the provider, and give the state that comes back from there."""
        response = browser.client.get("/log-in")
        assert response.status_code in (302, 303)
        query = parse_qs(urlsplit(response.headers["Location"]).query)
        assert query["code_challenge_method"] == ["S256"]
        return query["state"][0]

    def end(self, browser: Browser, state: str, name: str = "ada") -> str:
        response = browser.client.get(f"/callback?code={name}&state={state}")
        assert response.status_code == 200
        return response.text


@pytest.fixture
def client(backend_config: dict[str, t.Any], provider: str) -> Client:
    """Give a client on each backend."""
    return Client(backend_config, provider)


@pytest.fixture
def memory_client(provider: str) -> Client:
    return Client({"SESSION_BACKEND": "memory"}, provider)


def test_a_log_in_keeps_its_state_and_changes_the_id(client: Client) -> None:
    browser = client.site.browser()
    browser.set(cart=[1])
    before = browser.id
    state = client.begin(browser)
    assert browser.id == before
    assert client.end(browser, state) == "ada"
    assert browser.id != before
    # The state is used up, and nothing of the provider's stays behind.
    assert browser.read() == {"cart": [1], "_user_id": "ada"}


def test_a_state_is_good_once(memory_client: Client) -> None:
    browser = memory_client.site.browser()
    state = memory_client.begin(browser)
    memory_client.end(browser, state)
    with pytest.raises(MismatchingStateError):
        memory_client.end(browser, state)


def test_a_state_is_good_for_its_browser_alone(memory_client: Client) -> None:
    attacker, victim = (memory_client.site.browser() for _ in range(2))
    state = memory_client.begin(attacker)
    memory_client.begin(victim)
    with pytest.raises(MismatchingStateError):
        memory_client.end(victim, state, "attacker")
    assert "_user_id" not in victim.read()


def test_log_ins_that_are_begun_in_two_tabs_at_once_both_work(
    memory_client: Client,
) -> None:
    browser = memory_client.site.browser()
    browser.set(n=1)
    states: list[str] = []

    def slow_tab() -> None:
        # The other tab begins and ends within this request, and neither loses the
        # state of the other.
        session["looked"] = True
        states.append(memory_client.begin(browser))

    browser.visit(slow_tab)
    states.append(memory_client.begin(browser))
    assert [memory_client.end(browser, state) for state in states] == ["ada", "ada"]
    assert browser.read() == {"n": 1, "looked": True, "_user_id": "ada"}
