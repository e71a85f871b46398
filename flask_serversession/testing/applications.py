"""What tests of applications need: to log in, and to know what a page costs."""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import functools
import threading
import time
import typing as t

from ..users import UserKey
from .clocks import FakeClock
from .counting import OPERATIONS
from .counting import CountingBackend

if t.TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient

_KEY = "serversession"


def log_in(client: FlaskClient, user: object, **content: t.Any) -> None:
    """Log a user in, without a password, by what the session holds then.

    Sets the keys of :data:`SESSION_USER_KEY`, and what else Flask-Login looks for if
    the application has it.

    :param client: A test client of the application.
    :param user: The user's id.
    :param content: What the session holds besides, such as ``role="editor"``.
    :raises ValueError: if ``SESSION_USER_KEY`` is a function: give the keys that it
        looks at as ``content`` to ``client.session_transaction()`` instead.
    """
    app: t.Any = client.application
    keys: UserKey = app.extensions[_KEY].config.user_key
    if callable(keys):
        raise ValueError(
            "log_in() cannot know where the user is kept, because 'SESSION_USER_KEY' is"
            " a function. Use client.session_transaction() to put the user there."
        )
    manager: t.Any = getattr(app, "login_manager", None)
    with client.session_transaction() as session:
        session.update(dict.fromkeys(keys, user), **content)
        if manager is not None:
            session["_fresh"] = True
            with app.test_request_context(environ_base=client.environ_base):
                session["_id"] = manager._session_identifier_generator()


@contextlib.contextmanager
def counting(app: Flask) -> cabc.Generator[collections.Counter[str], None, None]:
    """Count what is asked of an application's backend inside the ``with`` block.

    By any thread. Each operation is one round trip to the store::

        with counting(app) as calls:
            client.get("/")
        assert calls == {"load": 1}

    :return: How often each operation was asked for, by name.
    """
    backend: t.Any = app.extensions[_KEY].backend
    if isinstance(backend, CountingBackend):
        with backend.counting() as calls:
            yield calls
        return
    with _counting_inside(backend) as calls:
        yield calls


@contextlib.contextmanager
def _counting_inside(
    backend: object,
) -> cabc.Generator[collections.Counter[str], None, None]:
    calls = collections.Counter[str]()
    lock, asked = threading.Lock(), threading.local()

    def counted(operation: str, function: cabc.Callable[..., t.Any]) -> t.Any:
        @functools.wraps(function)
        def run(*args: t.Any, **kwargs: t.Any) -> t.Any:
            if getattr(asked, "is_inside", False):  # the backend asks itself
                return function(*args, **kwargs)
            with lock:
                calls[operation] += 1
            asked.is_inside = True
            try:
                return function(*args, **kwargs)
            finally:
                asked.is_inside = False

        return run

    # Attributes of the object hide the methods of its class.
    attributes: dict[str, t.Any] = vars(backend)
    before = {name: attributes[name] for name in OPERATIONS if name in attributes}
    wrappers = {name: counted(name, getattr(backend, name)) for name in OPERATIONS}
    attributes.update(wrappers)
    try:
        yield calls
    finally:
        for name in OPERATIONS:
            del attributes[name]
        attributes.update(before)


@contextlib.contextmanager
def no_round_trips(app: Flask) -> cabc.Generator[None, None, None]:
    """Assert that nothing in the ``with`` block costs a round trip to the store.

    :raises AssertionError: if the backend was asked for anything, with what it was.
    """
    with counting(app) as calls:
        yield
    if calls:
        asked = ", ".join(f"{name} ({number})" for name, number in calls.items())
        raise AssertionError(
            f"The store was asked for {asked}. A page costs a round trip if it looks at"
            " the session, also in a template or in a function that runs before it."
        )


@contextlib.contextmanager
def fake_clock(now: float | None = None) -> cabc.Generator[FakeClock, None, None]:
    """Let applications without a clock of their own go by one that stands still.

    Whenever they were made: for those whose :class:`.ServerSession` is made when their
    module is imported. The backend goes by it, too, unless it is given as an object.

    :param now: Where it starts; the time of the machine by default, so that cookies
        that browsers and test clients keep are not in the past or far in the future.
    """
    from .. import extension

    clock = FakeClock(time.time() if now is None else now)
    before = extension.now
    extension.now = clock
    try:
        yield clock
    finally:
        extension.now = before
