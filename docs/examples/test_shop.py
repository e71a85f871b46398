from datetime import timedelta

import pytest
from flask import Flask
from flask_serversession import ServerSession, session
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.testing import CountingBackend

pytest_plugins = "flask_serversession.testing.fixtures"  # or in conftest.py


def create_app(**settings):
    app = Flask(__name__)
    app.config.update(SECRET_KEY="change me", **settings)
    ServerSession(app)

    @app.get("/")
    def index():
        return "Welcome."

    @app.get("/account")
    def account():
        return f"Hello, {session.user}." if session.user else ("Log in.", 401)

    @app.get("/cart")
    def cart():
        return session.get("cart", [])

    @app.post("/cart/<product>")
    def add(product):
        session.setdefault("cart", []).append(product)
        return ""

    @app.post("/log-out")
    def log_out():
        session.destroy()
        return ""

    return app


@pytest.fixture
def backend():
    return CountingBackend(MemoryBackend())  # "memory" does for most tests


@pytest.fixture
def app(backend):
    return create_app(
        TESTING=True, SESSION_BACKEND=backend, SESSION_IDLE_TIMEOUT=timedelta(days=1)
    )


@pytest.fixture
def client(app):
    return app.test_client()


def test_the_cart_is_shown(client):
    with client.session_transaction() as content:
        content["cart"] = ["pen"]
    assert client.get("/cart").json == ["pen"]


def test_whoever_is_logged_in_sees_the_account(log_in, client):
    assert log_in("ada", cart=["pen"]).get("/account").text == "Hello, ada."
    assert client.get("/account").status_code == 401


def test_the_front_page_does_not_use_the_session(log_in, no_round_trips):
    client = log_in("ada")
    with no_round_trips():
        client.get("/")


def test_the_cart_costs_one_round_trip(log_in, backend):
    client = log_in("ada")
    with backend.counting() as calls:
        client.get("/cart")
    assert calls == {"load": 1}


def test_visitors_see_a_503_while_the_store_is_down(client, backend):
    client.post("/cart/pen")
    with backend.failing("load"):
        assert client.get("/cart").status_code == 503
    assert client.get("/cart").json == ["pen"]


def test_a_log_out_in_another_tab_is_final(client, backend):
    client.post("/cart/pen")
    other_tab = client.application.test_client()
    other_tab.set_cookie("session", client.get_cookie("session").value)

    def log_out_elsewhere():
        del backend.before["replace"]
        other_tab.post("/log-out")

    backend.before["replace"] = log_out_elsewhere  # just before it is stored
    client.post("/cart/ink")
    assert client.get("/cart").json == []


def test_a_day_without_a_visit_ends_the_session(log_in, session_clock):
    client = log_in("ada")
    session_clock.advance(86_399)
    assert client.get("/account").text == "Hello, ada."
    session_clock.advance(86_400)
    assert client.get("/account").status_code == 401
