"""A pytest plugin that gives every Flask application server-side sessions.

For running the tests of other packages with this library; see
test_third_party_suites, which has
this folder on the path: those packages have modules named ``tests`` as well.
"""

from __future__ import annotations

import functools
import os
import typing as t
from pathlib import Path

import _pytest.monkeypatch
import flask
import pytest

from flask_serversession import ServerSession

_init = flask.Flask.__init__


@functools.wraps(_init)
def _init_with_server_session(self: flask.Flask, *args: t.Any, **kwargs: t.Any) -> None:
    _init(self, *args, **kwargs)
    if "session_interface" in type(self).__dict__:
        return  # the test brings its own
    self.testing, before = True, self.testing
    self.config["SESSION_BACKEND"] = os.environ["SUITE_BACKEND"]
    self.config["SESSION_FILESYSTEM_PATH"] = os.environ["SUITE_FOLDER"]
    ServerSession(self)
    self.testing = before


if os.environ["SUITE_BACKEND"]:
    flask.Flask.__init__ = _init_with_server_session  # type: ignore[method-assign]

# Flask's tests take this name from pytest's inside; newer pytest spells it so.
if not hasattr(_pytest.monkeypatch, "notset"):
    _pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET  # type: ignore[attr-defined]

_failed: set[str] = set()
_passed: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how the test ends; its setup and its teardown belong to it."""
    if report.failed:
        _failed.add(report.nodeid)
    elif report.when == "call" and report.passed:
        _passed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Write the names of those that passed, one a line."""
    names = "\n".join(sorted(_passed - _failed))
    Path(os.environ["SUITE_PASSED"]).write_text(names, encoding="utf-8")
