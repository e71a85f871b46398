"""A pytest plugin that gives every Flask application server-side sessions.

For running the tests of other packages with this library; see test_flask_suite.
"""

from __future__ import annotations

import functools
import os
import typing as t

import _pytest.monkeypatch
import flask

from flask_serversession import ServerSession

_init = flask.Flask.__init__


@functools.wraps(_init)
def _init_with_server_session(self: flask.Flask, *args: t.Any, **kwargs: t.Any) -> None:
    _init(self, *args, **kwargs)
    if "session_interface" in type(self).__dict__:
        return  # the test brings its own
    self.testing, before = True, self.testing
    self.config["SESSION_BACKEND"] = os.environ["FLASK_SUITE_BACKEND"]
    self.config["SESSION_FILESYSTEM_PATH"] = os.environ["FLASK_SUITE_FOLDER"]
    ServerSession(self)
    self.testing = before


if os.environ.get("FLASK_SUITE_BACKEND"):
    flask.Flask.__init__ = _init_with_server_session  # type: ignore[method-assign]

# Flask's tests take this name from pytest's inside; newer pytest spells it so.
if not hasattr(_pytest.monkeypatch, "notset"):
    _pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET  # type: ignore[attr-defined]
