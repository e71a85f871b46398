"""Flask's contexts, and the methods that take them: not the same in 3.1 and in 3.2.

Every test here says what holds with both, whichever is installed. See
``make test-flask-main``.
"""

from __future__ import annotations

import subprocess
import sys
import typing as t
import warnings
from collections.abc import Callable

import flask
import pytest
from flask import session
from flask.ctx import AppContext
from flask.testing import FlaskClient

from flask_serversession import BackendUnavailableError
from flask_serversession import ServerSession
from flask_serversession.interface import ServerSessionInterface
from flask_serversession.opened import opened_session

from .flask_version import HAS_ONE_CONTEXT
from .site import Browser
from .site import Site

IMPORT_ALL = """\
import importlib, pkgutil
import flask_serversession

path = flask_serversession.__path__
for module in pkgutil.walk_packages(path, "flask_serversession."):
    importlib.import_module(module.name)
    print(module.name)
"""


@pytest.fixture
def site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


def write() -> None:
    session["n"] = 2


def start(site: Site) -> Browser:
    browser = site.browser()
    browser.set(n=1, _user_id="ada")
    return browser


def test_importing_any_module_warns_of_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    assert "flask_serversession.interface" in done.stdout.split()
    assert "flask_serversession.backends.redis" in done.stdout.split()


# handle_user_exception() and finalize_request()


class Seen(t.NamedTuple):
    """What an application's own methods got."""

    errors: list[Exception]
    pages: list[t.Any]


def make_classic() -> tuple[type[flask.Flask], Seen]:
    """Make a subclass with methods as in Flask 3.1; 3.2 adapts them, and warns."""
    seen = Seen([], [])

    class App(flask.Flask):
        def handle_user_exception(self, e: Exception) -> t.Any:
            seen.errors.append(e)
            return super().handle_user_exception(e)

        def finalize_request(
            self, rv: t.Any, from_error_handler: bool = False
        ) -> t.Any:
            seen.pages.append(rv)
            return super().finalize_request(rv, from_error_handler)

    return App, seen


def make_modern() -> tuple[type[flask.Flask], Seen]:
    """Make a subclass with methods as in Flask 3.2."""
    seen = Seen([], [])

    class App(flask.Flask):
        def handle_user_exception(self, ctx: AppContext, e: Exception) -> t.Any:
            assert ctx.request is flask.request._get_current_object()
            seen.errors.append(e)
            return super().handle_user_exception(ctx, e)

        def finalize_request(
            self, ctx: AppContext, rv: t.Any, from_error_handler: bool = False
        ) -> t.Any:
            assert ctx.request is flask.request._get_current_object()
            seen.pages.append(rv)
            return super().finalize_request(ctx, rv, from_error_handler)

    return App, seen


@pytest.fixture
def restored_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what Flask 3.2 does to its own class for a subclass of the old form."""
    for name in ("handle_user_exception", "finalize_request"):
        monkeypatch.setattr(flask.Flask, name, getattr(flask.Flask, name))


@pytest.mark.usefixtures("restored_methods")
@pytest.mark.parametrize(
    "make",
    [
        make_classic,
        pytest.param(
            make_modern,
            marks=pytest.mark.skipif(
                not HAS_ONE_CONTEXT, reason="Flask 3.1 has no methods of this form."
            ),
        ),
    ],
)
@pytest.mark.parametrize("has_page", [False, True], ids=["no page", "own page"])
def test_a_failed_save_is_a_503_through_the_applications_own_methods(
    make: Callable[[], tuple[type[flask.Flask], Seen]], has_page: bool
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The '.*' method now takes 'ctx", category=DeprecationWarning
        )
        cls, seen = make()
    site = Site({"SESSION_BACKEND": "memory"})
    site.app.__class__ = cls
    site.app.testing = False
    if has_page:
        site.app.register_error_handler(
            BackendUnavailableError, lambda error: ("closed for today", 503)
        )
    browser = start(site)
    seen.pages.clear()
    with site.backend.failing("replace"):
        response = browser.visit(write)
    assert response.status_code == 503
    assert (response.text == "closed for today") == has_page
    assert [type(error) for error in seen.errors] == [BackendUnavailableError]
    # That of the view, and the one in its place.
    assert len(seen.pages) == 2
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_a_failed_save_is_a_503_for_each_of_two_nested_applications(
    site: Site,
) -> None:
    """The context that is handed on is that of the request whose save failed."""
    outer = Site({"SESSION_BACKEND": "memory"})
    site.app.testing = outer.app.testing = False
    site.app.register_error_handler(503, lambda error: ("inner", 503))
    outer.app.register_error_handler(503, lambda error: ("outer", 503))
    inside, outside = start(site), start(outer)

    def view() -> str:
        write()
        with site.backend.failing("replace"):
            response = inside.visit(write)
        return f"{response.status_code} {response.text}"

    assert outside.visit(view).text == "503 inner"
    with outer.backend.failing("replace"):
        response = outside.visit(view)
    assert (response.status_code, response.text) == (503, "outer")


# The session of the context


def test_finding_the_opened_session_is_no_access_to_it(site: Site) -> None:
    def view() -> None:
        own = opened_session()
        assert own is not None
        assert not own.accessed
        assert own is t.cast(t.Any, session)._get_current_object()

    browser = start(site)
    assert browser.visit(view).status_code == 200
    response = browser.visit(lambda: opened_session() is None)
    assert "Vary" not in response.headers
    assert opened_session() is None
    with site.app.app_context():
        assert opened_session() is None


def test_a_context_that_is_pushed_again_opens_its_session_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[t.Any] = []
    open_session = ServerSessionInterface.open_session

    def count(*args: t.Any) -> t.Any:
        opened.append(open_session(*args))
        return opened[-1]

    monkeypatch.setattr(ServerSessionInterface, "open_session", count)
    context = site.app.test_request_context()
    if HAS_ONE_CONTEXT:
        # Which opens it before the context is active.
        assert context.session is opened[0]
    with context, context:
        assert opened_session() is opened[0]
    assert len(opened) == 1


def test_a_copied_context_has_the_same_session(site: Site) -> None:
    def view() -> None:
        own = opened_session()

        @flask.copy_current_request_context
        def inside() -> None:
            assert opened_session() is own
            session["n"] += 1

        inside()

    browser = start(site)
    assert browser.visit(view).status_code == 200
    assert browser.read()["n"] == 2


def test_the_current_session_is_that_of_the_request_if_the_context_has_one(
    site: Site,
) -> None:
    """Since Flask 3.2, an app context inside of a request is one without a request."""

    def current() -> list[bool]:
        return [info.current for info in site.extension.sessions_of("ada")]

    def view() -> None:
        assert current() == [True]
        with site.app.app_context():
            assert current() == [not HAS_ONE_CONTEXT]
        with site.app.test_request_context():
            assert current() == [False]

    assert start(site).visit(view).status_code == 200


def test_another_application_does_not_look_at_the_session_of_this_request(
    site: Site,
) -> None:
    other = Site({"SESSION_BACKEND": "memory"})

    def view() -> None:
        with other.app.app_context():
            assert other.extension.sessions_of("ada") == []

    assert "Vary" not in start(site).visit(view).headers


@pytest.mark.parametrize("is_kept", [False, True], ids=["lost", "saved"])
def test_a_stream_ends_with_its_context_and_a_warning_of_what_is_lost(
    site: Site, is_kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask 3.1 ends the context twice, before and after the stream; 3.2 once."""

    def view() -> flask.Response:
        @flask.stream_with_context
        def body() -> t.Iterator[str]:
            yield "begun"
            write()
            if is_kept:
                t.cast(t.Any, session).save()

        assert session["n"] == 1
        return flask.Response(body())

    browser = start(site)
    assert browser.visit(view, buffered=True).text == "begun"
    messages = [record.message for record in caplog.records]
    assert len(messages) == (0 if is_kept else 1)
    assert all("the change is not saved" in message for message in messages)
    assert browser.read()["n"] == (2 if is_kept else 1)


def test_the_warning_comes_although_a_teardown_function_fails(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    if not HAS_ONE_CONTEXT:
        pytest.skip("Flask 3.1 ends with the first function that fails.")

    def view() -> flask.Response:
        @flask.stream_with_context
        def body() -> t.Iterator[str]:
            write()
            yield "begun"

        assert session["n"] == 1
        return flask.Response(body())

    is_failing = False

    @site.app.teardown_request
    def fail(error: BaseException | None) -> None:
        if is_failing:
            raise ZeroDivisionError

    browser = start(site)
    is_failing = True
    # What is raised, a group from Python 3.11 on, is Flask's affair.
    with pytest.raises(BaseException, match=r"context teardown|division"):
        browser.visit(view, buffered=True)
    assert "is not saved" in caplog.text


def test_a_session_that_cannot_be_opened_is_an_error_page(site: Site) -> None:
    """Flask 3.2 asks for it again when it finishes the error page."""

    class Interface(ServerSessionInterface):
        def open_session(self, app: flask.Flask, request: flask.Request) -> t.Any:
            raise ZeroDivisionError

    app = flask.Flask("broken")
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory")

    class Extension(ServerSession):
        interface_class = Interface

    Extension(app, clock=site.clock)
    app.add_url_rule("/", view_func=lambda: "never")
    client: FlaskClient = app.test_client()
    assert client.get("/").status_code == 500
