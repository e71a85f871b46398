"""Two versions, or two sets of settings, side by side on one store, as in a deploy."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import shutil
import sys
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import flask
import pytest

import flask_serversession
from flask_serversession import Capability
from flask_serversession import RecordError

from .backend_configs import BACKEND_CONFIGS
from .backend_configs import Config
from .load import Client
from .load import Visitor
from .load import client_of
from .load import create_app

MakeConfig = Callable[[str], Config]

#: What the next version of the library would have to change for its records to be of a
#: newer format, while it still reads those of this version.
NEXT_VERSION = {
    "record.py": [("\nFORMAT = 2\n", "\nFORMAT = 3\n")],
    "payload.py": [("\nFORMAT = 2\n", "\nFORMAT = 3\n")],
}


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Iterator[t.Any]:
    """Give the library with a newer format, as a package of its own."""
    name = "next_serversession"
    package = tmp_path_factory.mktemp("next") / name
    source = Path(flask_serversession.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, changes in NEXT_VERSION.items():
        text = (package / file).read_text()
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (package / file).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package.parent))
        yield importlib.import_module(name)
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


@contextlib.contextmanager
def running(
    *configs: Mapping[str, t.Any], extension: t.Any = flask_serversession.ServerSession
) -> Iterator[list[flask.Flask]]:
    apps = [create_app(config, extension) for config in configs]
    try:
        yield apps
    finally:
        for app in apps:
            app.extensions["serversession"].backend.close()


def start(ask: Client, name: str) -> Visitor:
    visitor = Visitor(name)
    status, text, visitor.cookie = ask("POST", f"/start/{name}/ada", None)
    assert status == 200, text
    assert visitor.cookie is not None
    return visitor


def visit(ask: Client, visitor: Visitor, path: str = "/read") -> dict[str, t.Any] | str:
    """Ask as a browser does, which keeps the cookies that it is sent."""
    method = "GET" if path == "/read" else "POST"
    status, text, cookie = ask(method, path, visitor.cookie)
    assert status == 200, text
    assert cookie != "", "logged out"
    visitor.cookie = cookie or visitor.cookie
    return json.loads(text) if path == "/read" else text


def content(visitor: Visitor, *log: str) -> dict[str, t.Any]:
    return {"owner": visitor.name, "log": list(log)}


NOTHING = {"owner": None, "log": None}


@pytest.mark.parametrize(
    "name", [n for n in BACKEND_CONFIGS if n not in ("memory", "cachelib-simple")]
)
def test_two_versions_side_by_side_keep_each_others_sessions(
    name: str, make_backend_config: MakeConfig, next_version: t.Any
) -> None:
    config = make_backend_config(name)
    with (
        running(config) as (this,),
        running(config, extension=next_version.ServerSession) as (following,),
    ):
        ask_this, ask_next = client_of(this), client_of(following)
        early, unchanged = start(ask_this, "early"), start(ask_this, "unchanged")
        late = start(ask_next, "late")

        def check_that_this_version_leaves_alone(visitor: Visitor) -> None:
            for path in ("/read", "/start/somebody/else", "/read"):
                before = visitor.cookie
                found = visit(ask_this, visitor, path)
                assert found == (NOTHING if path == "/read" else "")
                assert visitor.cookie == before

        # Both read what this one wrote.
        assert visit(ask_next, early) == content(early)
        assert visit(ask_next, unchanged) == content(unchanged)
        assert visit(ask_this, early) == content(early)
        assert visit(ask_this, early, "/append/1") == ""
        # Who was on a machine of the next version can be served by that one only.
        assert visit(ask_next, early, "/append/2") == ""
        check_that_this_version_leaves_alone(early)
        check_that_this_version_leaves_alone(late)
        assert visit(ask_next, early) == content(early, "1", "2")
        assert visit(ask_next, late) == content(late)
        # So can who got a new id there, and what is left of the old one.
        former = Visitor("late")
        former.cookie = late.cookie
        assert visit(ask_next, late, "/start/late/ada2") == ""
        assert late.cookie != former.cookie
        check_that_this_version_leaves_alone(former)
        check_that_this_version_leaves_alone(late)
        # Whoever was only read there may be served by both.
        assert visit(ask_this, unchanged, "/append/1") == ""
        assert visit(ask_next, unchanged) == content(unchanged, "1")

        check_that_operators_leave_alone(this, early, late)
        assert visit(ask_next, early) == content(early, "1", "2")
        assert visit(ask_next, late) == content(late)
        assert visit(ask_next, unchanged) == NOTHING or not has_users(this)
        # The next version can end them all.
        with following.app_context():
            for visitor in (early, late):
                assert following.extensions["extension"].revoke(visitor.handle)
        assert visit(ask_next, early) == visit(ask_next, late) == NOTHING
        assert visit(ask_this, early) == visit(ask_this, late) == NOTHING


def has_users(app: flask.Flask) -> bool:
    backend = app.extensions["serversession"].backend
    return Capability.USER_INDEX in backend.capabilities


def check_that_operators_leave_alone(
    app: flask.Flask, early: Visitor, late: Visitor
) -> None:
    """Ask this version to end what the next one wrote: it says that it cannot."""
    server_session = app.extensions["extension"]
    with app.app_context():
        for visitor in (early, late):
            with pytest.raises(RecordError, match="format") as caught:
                server_session.revoke(visitor.handle)
            assert caught.value.reason == "newer"
        if has_users(app):
            server_session.prune()
            # Not as if it had been done; what this version can read has gone.
            with pytest.raises(RecordError, match="format"):
                server_session.revoke_user("ada")
            assert server_session.sessions_of("ada") == []


# -- new secrets and keys, as docs/scaling.rst says

Step = dict[str, t.Any]

SECRETS: list[Step] = [
    {"SECRET_KEY": "old"},
    {"SECRET_KEY": "old", "SECRET_KEY_FALLBACKS": ["new"]},
    {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": ["old"]},
    {"SECRET_KEY": "new"},
]
OLD, NEW = (bytes([number]) * 32 for number in (1, 2))
KEYS: list[Step] = [
    {"SESSION_ENCRYPTION_KEY": [OLD]},
    {"SESSION_ENCRYPTION_KEY": [OLD, NEW]},
    # Reading saves, so that everything that is in use is encrypted anew.
    {"SESSION_ENCRYPTION_KEY": [NEW, OLD], "SESSION_RESAVE": True},
    {"SESSION_ENCRYPTION_KEY": [NEW]},
]


@pytest.mark.parametrize("name", ["filesystem", "valkey", "postgresql"])
@pytest.mark.parametrize("steps", [SECRETS, KEYS], ids=["secrets", "encryption keys"])
def test_a_fleet_gets_new_keys_step_by_step_and_nobody_notices(
    name: str, steps: list[Step], make_backend_config: MakeConfig
) -> None:
    store = make_backend_config(name)
    visitors: list[Visitor] = []
    for before, after in itertools.pairwise(steps):
        # In each step, some machines have the new settings and some the old ones.
        with running({**store, **before}, {**store, **after}) as apps:
            asks = [client_of(app) for app in apps]
            for number, ask in enumerate(asks):
                visitors.append(start(ask, f"visitor{len(visitors)}-{number}"))
            for turn, visitor in enumerate(visitors):
                # From each kind of machine to the other one, and back.
                for ask in (*asks, *asks) if turn % 2 else (*asks[::-1], *asks[::-1]):
                    log = visit(ask, visitor)
                    assert isinstance(log, dict)
                    assert log["owner"] == visitor.name
                    entry = str(len(log["log"]))
                    assert visit(ask, visitor, f"/append/{entry}") == ""
                    assert visit(ask, visitor) == content(visitor, *log["log"], entry)
        # Now all have the new ones, and everybody comes once before the next step.
        with running({**store, **after}) as (app,):
            for visitor in visitors:
                log = visit(client_of(app), visitor)
                assert isinstance(log, dict)
                assert log["owner"] == visitor.name
    assert len(visitors) == 6


@pytest.mark.parametrize("steps", [SECRETS, KEYS], ids=["secrets", "encryption keys"])
def test_the_first_step_is_needed(
    steps: list[Step], make_backend_config: MakeConfig
) -> None:
    store = make_backend_config("filesystem")
    with running({**store, **steps[0]}, {**store, **steps[2]}) as apps:
        old, new = map(client_of, apps)
        visitor = start(new, "visitor")
        # The other machines cannot read it; but they leave it alone.
        assert visit(old, visitor) == NOTHING
        assert visit(new, visitor) == content(visitor)


def test_who_is_only_read_keeps_the_old_key_unless_reading_saves(
    make_backend_config: MakeConfig,
) -> None:
    store = make_backend_config("filesystem")
    without_resave: Step = {"SESSION_ENCRYPTION_KEY": [NEW, OLD]}
    for step, is_kept in ((without_resave, False), (KEYS[2], True)):
        with running(*({**store, **s} for s in (KEYS[0], step, KEYS[3]))) as apps:
            first, between, last = map(client_of, apps)
            visitor = start(first, "visitor")
            assert visit(between, visitor) == content(visitor)
            assert (visit(last, visitor) == content(visitor)) is is_kept
