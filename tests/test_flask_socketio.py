"""Flask-SocketIO with ``manage_session=False``: events and requests share a session."""

from __future__ import annotations

import contextlib
import logging
import threading
import typing as t
from collections.abc import Callable
from collections.abc import Iterator

import flask
import flask_socketio
import pytest
import socketio
from werkzeug.serving import make_server

from flask_serversession import ServerSessionError
from flask_serversession import session
from flask_serversession.testing import FakeClock

from .dbsc import DeviceBrowser
from .site import Action
from .site import Browser
from .site import Site


class Socket:
    """A connection of a browser, whose events run functions of the test."""

    def __init__(self, site: Site, extension: flask_socketio.SocketIO) -> None:
        self.site = site
        self.extension = extension
        self._actions: list[Action] = []
        extension.on_event("run", self._run)

    def _run(self) -> t.Any:
        return self._actions.pop()()

    def open(self, browser: Browser) -> Callable[[Action], t.Any]:
        """Connect, and give a function that runs another one as an event's handler."""
        client = self.extension.test_client(
            self.site.app, flask_test_client=browser.client
        )

        def run(action: Action) -> t.Any:
            self._actions.append(action)
            return client.emit("run", callback=True)

        return run


def make_socket(config: dict[str, t.Any], **settings: t.Any) -> Socket:
    site = Site(config, **settings)
    extension = flask_socketio.SocketIO(
        site.app, manage_session=False, async_mode="threading"
    )
    return Socket(site, extension)


@pytest.fixture
def socket(backend_config: dict[str, t.Any]) -> Socket:
    """Give a site on each backend."""
    return make_socket(backend_config)


@pytest.fixture
def memory_socket() -> Socket:
    return make_socket({"SESSION_BACKEND": "memory"})


def set_in_place() -> None:
    session["cart"]["pens"] = 2


def test_events_and_requests_share_what_they_write(socket: Socket) -> None:
    browser = socket.site.browser()
    browser.set(n=1)
    cookie = browser.cookie
    run = socket.open(browser)
    assert run(lambda: session["n"]) == 1
    run(lambda: session.update(n=2, seen=True))
    assert browser.read() == {"n": 2, "seen": True}
    browser.set(n=3)
    assert run(lambda: session["n"]) == 3
    assert browser.cookie == cookie


def test_a_handler_saves_and_reloads(socket: Socket) -> None:
    browser = socket.site.browser()
    browser.set(cart={"pens": 1})
    run = socket.open(browser)

    def handler() -> list[int]:
        set_in_place()
        session.save()
        numbers = [browser.read()["cart"]["pens"]]
        browser.set(cart={"pens": 3})
        numbers.append(session["cart"]["pens"])
        session.reload()
        numbers.append(session["cart"]["pens"])
        return numbers

    assert run(handler) == [2, 2, 3]
    assert browser.read() == {"cart": {"pens": 3}}


def test_a_session_that_flask_socketio_manages_itself_is_not_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    socket = Socket(site, flask_socketio.SocketIO(site.app, async_mode="threading"))
    browser = site.browser()
    browser.set(cart={"pens": 1}, _user_id="ada")
    run = socket.open(browser)

    def handler() -> int:
        set_in_place()
        (info,) = site.extension.sessions_of("ada")
        assert info.current
        return int(session["cart"]["pens"])

    assert run(handler) == 2
    assert not caplog.records
    assert browser.read()["cart"] == {"pens": 1}


def test_a_change_inside_a_value_that_is_not_saved_is_warned_of(
    memory_socket: Socket, caplog: pytest.LogCaptureFixture
) -> None:
    browser = memory_socket.site.browser()
    browser.set(cart={"pens": 1})
    run = memory_socket.open(browser)
    with caplog.at_level(logging.WARNING, "flask_serversession"):
        run(set_in_place)
        (message,) = caplog.messages
        assert "Call session.save()" in message
        assert browser.read() == {"cart": {"pens": 1}}
        caplog.clear()

        def set_and_save() -> None:
            set_in_place()
            session.save()

        run(set_and_save)
        assert caplog.messages == []
    assert browser.read() == {"cart": {"pens": 2}}


def test_changes_of_an_event_and_of_a_request_meanwhile_both_stay(
    socket: Socket,
) -> None:
    browser = socket.site.browser()
    browser.set(n=1)
    run = socket.open(browser)

    def handler() -> None:
        session["event"] = True
        browser.set(request=True)

    run(handler)
    assert browser.read() == {"n": 1, "event": True, "request": True}


def test_counting_in_events_and_requests_comes_out_right(memory_socket: Socket) -> None:
    browser = memory_socket.site.browser()
    browser.set(n=0)
    run = memory_socket.open(browser)

    def count() -> None:
        def add(session: t.Any) -> None:
            session["n"] += 1

        session.atomic(add)

    def handler() -> None:
        assert session["n"] == 0
        browser.visit(count)
        count()

    run(handler)
    assert browser.read() == {"n": 2}


def test_an_event_that_only_reads_costs_one_load(memory_socket: Socket) -> None:
    browser = memory_socket.site.browser()
    browser.set(n=1)
    run = memory_socket.open(browser)
    with memory_socket.site.backend.counting() as calls:
        run(lambda: session["n"])
    assert dict(calls) == {"load": 1}
    with memory_socket.site.backend.counting() as calls:
        run(lambda: "ignored")
    assert dict(calls) == {}


@pytest.mark.parametrize(
    "begin",
    [lambda: session.update(n=1), lambda: session.update(n=1, _user_id="ada")],
    ids=["anonymous", "logged in"],
)
def test_a_session_does_not_begin_in_an_event(
    memory_socket: Socket, begin: Action, caplog: pytest.LogCaptureFixture
) -> None:
    browser = memory_socket.site.browser()
    run = memory_socket.open(browser)
    with caplog.at_level(logging.WARNING, "flask_serversession"):
        run(begin)
    (message,) = caplog.messages
    assert "not saved" in message
    with memory_socket.site.app.app_context():
        assert memory_socket.site.extension.count() == 0

    def begin_and_save() -> None:
        begin()
        with pytest.raises(ServerSessionError, match="cannot learn its id"):
            session.save()

    run(begin_and_save)


def test_a_log_in_in_an_event_does_not_cost_the_browser_its_session(
    memory_socket: Socket, caplog: pytest.LogCaptureFixture
) -> None:
    browser = memory_socket.site.browser()
    browser.set(cart=[1])
    run = memory_socket.open(browser)
    with caplog.at_level(logging.WARNING, "flask_serversession"):
        run(lambda: session.update(_user_id="ada"))
    (message,) = caplog.messages
    assert "not saved" in message
    assert browser.read() == {"cart": [1]}

    def log_in_and_save() -> None:
        session["_user_id"] = "ada"
        with pytest.raises(ServerSessionError, match="in an ordinary request"):
            session.save()

    run(log_in_and_save)
    assert browser.read() == {"cart": [1]}


def test_a_log_out_in_an_event_ends_the_session(memory_socket: Socket) -> None:
    browser = memory_socket.site.browser()
    browser.set(_user_id="ada")
    run = memory_socket.open(browser)
    run(lambda: session.destroy())
    assert run(lambda: dict(session)) == {}
    assert browser.read() == {}
    browser = memory_socket.site.browser()
    browser.set(n=1)
    run = memory_socket.open(browser)
    run(lambda: session.clear())
    assert browser.read() == {}


def test_a_connection_from_before_the_log_in_has_no_session_afterwards(
    memory_socket: Socket,
) -> None:
    browser = memory_socket.site.browser()
    browser.set(n=1)
    run = memory_socket.open(browser)
    browser.set(_user_id="ada")
    assert run(lambda: dict(session)) == {}
    assert memory_socket.open(browser)(lambda: session["_user_id"]) == "ada"


def test_a_revoked_session_ends_for_its_connections_too(memory_socket: Socket) -> None:
    site = memory_socket.site
    browser = site.browser()
    browser.set(_user_id="ada")
    run = memory_socket.open(browser)
    assert run(lambda: str(session.user)) == "ada"
    with site.app.app_context():
        site.extension.revoke_user("ada")
    assert run(lambda: str(session.user)) == "None"


def test_a_managed_session_is_a_copy_as_flask_socketio_says() -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    extension = flask_socketio.SocketIO(site.app, async_mode="threading")
    socket = Socket(site, extension)
    browser = site.browser()
    browser.set(n=1)
    run = socket.open(browser)
    run(lambda: flask.session.update(n=2))
    assert run(lambda: flask.session["n"]) == 2
    assert browser.read() == {"n": 1}


# -- over a real connection


@contextlib.contextmanager
def serving(app: flask.Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_a_real_connection_shares_the_session(
    memory_socket: Socket, transport: str
) -> None:
    site = memory_socket.site
    browser = site.browser()
    browser.set(n=1)

    @memory_socket.extension.on("add")
    def add(number: int) -> int:
        session["n"] += number
        return int(session["n"])

    @memory_socket.extension.on("bye")
    def bye() -> None:
        flask_socketio.disconnect()

    client = socketio.Client(reconnection=False)
    is_closed = threading.Event()
    client.on("disconnect", lambda *_: is_closed.set())
    with serving(site.app) as url:
        client.connect(
            url,
            headers={"Cookie": f"{site.cookie_name()}={browser.cookie}"},
            transports=[transport],
            wait_timeout=60,
        )
        try:
            assert client.call("add", 2, timeout=60) == 3
            browser.set(n=10)
            assert client.call("add", 2, timeout=60) == 12
        finally:
            # The server ends it: ending it from here, while the client's own thread is
            # reading, can wait for ever for a lock of the websocket's.
            client.emit("bye")
            assert is_closed.wait(60)
    assert browser.read() == {"n": 12}


def test_a_socket_proves_its_session_when_it_connects_and_no_more() -> None:
    """The cookies of a handshake do not get younger, as those of requests do."""
    socket = make_socket(
        {"SESSION_BACKEND": "memory"},
        SESSION_DEVICE_BOUND=True,
        SESSION_COOKIE_SECURE=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    site = socket.site
    socket.extension.on_event("connect", lambda: None)
    log_in = site.add(lambda: session.update(_user_id="ann"))
    page = site.add(lambda: session.user)
    device = DeviceBrowser(site.app, site.clock)
    device.fetch(log_in)
    assert device.fetch(page).text == "ann"
    browser = site.browser()
    for name, value in device.live_cookies().items():
        browser.client.set_cookie(name, value)

    def look() -> str:
        return str(session.user)

    clock = t.cast(FakeClock, site.clock)
    clock.advance(100)
    run = socket.open(browser)
    clock.advance(3600)
    assert run(look) == "ann"
    run(lambda: session.update(n=1))
    assert run(lambda: session["n"]) == 1
    assert socket.open(browser)(look) == "None"  # a new connection is too late
