"""A pytest plugin that gives every Flask application server-side sessions.

For running the tests of other packages with this library; see
test_third_party_suites, which has this folder on the path: those packages have modules
named ``tests`` as well.

What the environment tells it:

``SUITE_CONFIG``
    The settings of the sessions, as JSON. Without any, applications keep Flask's own,
    and the plugin only counts.
``SUITE_OWN_INTERFACES``
    The tests, as JSON, that bring a session interface of their own because that is what
    they test. In all others an application keeps ours, whatever is set.
``SUITE_RESULTS``
    Where to write, as JSON, which tests passed and what they did with sessions.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import typing as t
import weakref
from pathlib import Path

import _pytest.monkeypatch
import flask
import itsdangerous
import pytest
from flask.sessions import SecureCookieSessionInterface
from flask.sessions import SessionInterface
from flask.sessions import SessionMixin

from flask_serversession import ServerSession
from flask_serversession import ServerSessionInterface
from flask_serversession import session_created
from flask_serversession import session_destroyed
from flask_serversession import session_saved

CONFIG: dict[str, t.Any] = json.loads(os.environ["SUITE_CONFIG"])
OWN_INTERFACES = frozenset(json.loads(os.environ.get("SUITE_OWN_INTERFACES", "[]")))

# The test that runs; empty while modules are imported.
_test = ""
# The applications that were made, and in which test.
_apps: list[tuple[weakref.ref[flask.Flask], str]] = []
# The sessions that were opened in the test that runs.
_sessions: list[SessionMixin] = []
# Which tests did what.
_tests: dict[str, set[str]] = {
    "failed": set(),
    "passed": set(),
    # A request, or the test client, opened a session; Flask does so for each request.
    "opened": set(),
    # The session that was opened was looked at or changed.
    "used": set(),
    # A session was handed back to be saved.
    "saved": set(),
    # A record was written to our store, or removed from it.
    "stored": set(),
    # An application was left with the interface that the test brings.
    "left_alone": set(),
    # It made an application that has no interface of ours at the end.
    "strayed": set(),
}


def _note(key: str) -> None:
    _tests[key].add(_test)


def _living_apps() -> list[tuple[flask.Flask, str]]:
    pairs = ((reference(), test) for reference, test in _apps)
    return [(app, test) for app, test in pairs if app is not None]


def _count(interface: type[SessionInterface]) -> None:
    """Have an interface's two ends note in which tests they are called."""
    open_session, save_session = interface.open_session, interface.save_session

    @functools.wraps(open_session)
    def counting_open(self: t.Any, app: flask.Flask, request: flask.Request) -> t.Any:
        session = open_session(self, app, request)
        if session is not None:
            _note("opened")
            _sessions.append(session)
        return session

    @functools.wraps(save_session)
    def counting_save(
        self: t.Any, app: flask.Flask, session: SessionMixin, response: flask.Response
    ) -> None:
        _note("saved")
        _note_used(session)
        save_session(self, app, session, response)

    interface.open_session = counting_open  # type: ignore[method-assign]
    interface.save_session = counting_save  # type: ignore[method-assign]


def _note_used(session: SessionMixin) -> None:
    if session.accessed or session.modified:
        _note("used")


def _note_stored(app: flask.Flask, **values: object) -> None:
    _note("stored")


_open_uncounted: t.Callable[..., t.Any] = ServerSessionInterface.open_session
_init = flask.Flask.__init__
_flasks_interface = flask.Flask.session_interface


@functools.wraps(_init)
def _init_counted(self: flask.Flask, *args: t.Any, **kwargs: t.Any) -> None:
    _init(self, *args, **kwargs)
    _apps.append((weakref.ref(self), _test))


@functools.wraps(_init)
def _init_with_server_session(self: flask.Flask, *args: t.Any, **kwargs: t.Any) -> None:
    _init_counted(self, *args, **kwargs)
    # Before anybody looks: of the class, which the object's own hides from now on.
    brings_own = type(self).session_interface is not _flasks_interface
    self.testing, before = True, self.testing
    self.config.update(CONFIG)
    ServerSession(self)
    self.testing = before
    if brings_own and _test in OWN_INTERFACES:
        del self.session_interface
        _note("left_alone")


def _set_attribute(self: flask.Flask, name: str, value: object) -> None:
    """Set an attribute; but no other interface than ours."""
    if name == "session_interface" and not isinstance(value, ServerSessionInterface):
        if _test not in OWN_INTERFACES:
            return
        _note("left_alone")
    super(flask.Flask, self).__setattr__(name, value)


if CONFIG:
    _count(ServerSessionInterface)
    session_created.connect(_note_stored)
    session_saved.connect(_note_stored)
    session_destroyed.connect(_note_stored)
    flask.Flask.__init__ = _init_with_server_session  # type: ignore[method-assign]
    flask.Flask.__setattr__ = _set_attribute  # type: ignore[method-assign,assignment]
else:
    _count(SecureCookieSessionInterface)
    flask.Flask.__init__ = _init_counted  # type: ignore[method-assign]


# Flask's tests take this name from pytest's inside; newer pytest spells it so.
if not hasattr(_pytest.monkeypatch, "notset"):
    _pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET  # type: ignore[attr-defined]


class StoreSerializer(itsdangerous.URLSafeTimedSerializer):
    """Gives what the store has, to tests that decode the cookie themselves."""

    def loads_unsafe(
        self, s: t.Any, *args: t.Any, **kwargs: t.Any
    ) -> tuple[bool, t.Any]:
        """Give the content of the session that the cookie stands for."""
        for app, _ in reversed(_living_apps()):
            name = app.session_interface.get_cookie_name(app)
            context = app.test_request_context(headers={"Cookie": f"{name}={s}"})
            session = _open_uncounted(app.session_interface, app, context.request)
            if session:
                return True, dict(session)
        return super().loads_unsafe(s, *args, **kwargs)


def pytest_collection_finish() -> None:
    """Have Flask-Security's ``get_session()`` ask the store."""
    helpers: t.Any = sys.modules.get("tests.test_utils")
    if CONFIG and hasattr(helpers, "get_session"):
        helpers.URLSafeTimedSerializer = StoreSerializer


def pytest_runtest_logstart(nodeid: str) -> None:
    """Remember which test runs: what happens from now on belongs to it."""
    global _test
    _test = nodeid


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how the test ends; its setup and its teardown belong to it."""
    if report.failed:
        _note("failed")
    elif report.when == "call" and report.passed:
        _note("passed")
    # What a test opens by pushing a context is never handed back.
    for session in _sessions:
        _note_used(session)
    _sessions.clear()
    for app, test in _living_apps() if CONFIG else []:
        if not isinstance(app.session_interface, ServerSessionInterface):
            _tests["strayed"].add(test)


def pytest_sessionfinish() -> None:
    """Write what has been counted."""
    _tests["passed"] -= _tests["failed"]
    results = {
        "apps": len(_apps),
        **{key: sorted(tests - {""}) for key, tests in _tests.items()},
    }
    Path(os.environ["SUITE_RESULTS"]).write_text(json.dumps(results), encoding="utf-8")
