"""Fixtures of pytest for tests of applications.

To use them, put this into ``conftest.py``, beside a fixture ``app`` that gives the
application::

    pytest_plugins = ["flask_serversession.testing.fixtures"]
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import functools
import typing as t

import pytest

from . import applications
from .clocks import FakeClock

if t.TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient


@pytest.fixture
def log_in(app: Flask) -> cabc.Callable[..., FlaskClient]:
    """Return a function that gives a test client with a user who is logged in.

    Each call is another browser. It takes the user's id, and what the session holds
    besides: ``log_in("ada", role="editor")``.
    """

    def log_in(user: object, **content: t.Any) -> FlaskClient:
        client = app.test_client()
        applications.log_in(client, user, **content)
        return client

    return log_in


@pytest.fixture
def no_round_trips(
    app: Flask,
) -> cabc.Callable[[], contextlib.AbstractContextManager[None]]:
    """Return :func:`.no_round_trips` for the application."""
    return functools.partial(applications.no_round_trips, app)


@pytest.fixture
def session_clock() -> cabc.Iterator[FakeClock]:
    """Return a clock to advance, by which sessions go: :func:`.fake_clock`."""
    with applications.fake_clock() as clock:
        yield clock
