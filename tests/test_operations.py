"""What each kind of request costs on each backend, counted and printed as a table."""

from __future__ import annotations

import collections
import dataclasses
import typing as t
from collections.abc import Callable

import pytest
from flask import session

from flask_serversession import cookie
from flask_serversession import ids
from flask_serversession import passive
from flask_serversession import session as typed_session
from flask_serversession.serializers import MsgpackSerializer
from flask_serversession.testing import FakeClock

from .figures import add_cost
from .site import Browser
from .site import Site


@dataclasses.dataclass(frozen=True)
class Row:
    """A kind of request."""

    name: str
    action: Callable[[], t.Any]
    operations: str
    cookie: str
    start: t.Mapping[str, t.Any] | None = None
    later: float = 0
    settings: t.Mapping[str, t.Any] = dataclasses.field(
        default_factory=dict[str, t.Any]
    )


def ignore() -> None:
    pass


def read() -> None:
    session.get("n")


def change() -> None:
    session["n"] = session.get("n", 0) + 1


def change_nested() -> None:
    session["cart"]["n"] += 1


def log_out() -> None:
    session.clear()
    typed_session.destroy()


def log_in() -> None:
    session["_user_id"] = "ada"


def say_goodbye() -> None:
    log_out()
    session["goodbye"] = True


STORED = {"n": 1, "cart": {"n": 1}}
PERMANENT = {**STORED, "_permanent": True}
DUE = 60.0

ROWS = [
    Row("no cookie, not looked at", ignore, "", "none"),
    Row("no cookie, read", read, "", "none"),
    Row("no cookie, written", change, "create", "set"),
    Row(
        "no cookie, SAVE_UNINITIALIZED",
        ignore,
        "create",
        "set",
        settings={"SESSION_SAVE_UNINITIALIZED": True},
    ),
    Row("not looked at", ignore, "", "none", STORED),
    Row("not looked at, later", ignore, "", "none", STORED, DUE),
    Row("not looked at, permanent", ignore, "", "set", PERMANENT),
    Row("not looked at, permanent, later", ignore, "touch", "set", PERMANENT, DUE),
    Row("read", read, "load", "none", STORED),
    Row("read, later", read, "load touch", "none", STORED, DUE),
    Row("read, permanent", read, "load", "set", PERMANENT),
    Row("read, passive, later", passive(read), "load", "none", PERMANENT, DUE),
    Row(
        "time left, later",
        lambda: typed_session.time_left,
        "load",
        "none",
        PERMANENT,
        DUE,
    ),
    Row("changed, passive", passive(change), "load replace", "none", PERMANENT),
    Row(
        "read, RESAVE",
        read,
        "load replace",
        "none",
        STORED,
        settings={"SESSION_RESAVE": True},
    ),
    Row("changed", change, "load replace", "set", STORED),
    Row("changed inside", change_nested, "load replace", "none", STORED),
    Row("changed, permanent", change, "load replace", "set", PERMANENT),
    Row("cleared", lambda: session.clear(), "delete", "deleted", STORED),
    Row("logged out", log_out, "delete", "deleted", STORED),
    Row("logged out with a message", say_goodbye, "create delete", "set", STORED),
    Row(
        "last key removed",
        lambda: session.pop("n"),
        "load replace",
        "deleted",
        {"n": 1},
    ),
    Row("logged in", log_in, "create load replace", "set", STORED),
    Row("logged in, no cookie", log_in, "create", "set"),
    Row(
        "regenerated",
        lambda: typed_session.regenerate(),
        "create load replace",
        "set",
        STORED,
    ),
    Row("expired, read", read, "load", "none", STORED, 31 * 86400.0),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_request_costs_exactly_what_the_table_says(
    row: Row, backend_config: dict[str, t.Any], request: pytest.FixtureRequest
) -> None:
    site = Site(backend_config, **row.settings)
    browser = Browser(site)
    if row.start is not None:
        browser.set(**row.start)
    t.cast(FakeClock, site.clock).advance(row.later)
    operations, sent = browser.costs(row.action)
    assert set(operations.values()) <= {1}
    found = " ".join(sorted(operations))
    cost = f"{found or 'nothing':<20}  cookie {sent}"
    backend = request.node.callspec.params["backend_config"]
    add_cost(request.node, row.name, cost, backend)
    assert (found, sent) == (row.operations, row.cookie)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a request does beside the round trips, as docs/performance.rst says."""

    signatures: int = 0
    hashes: int = 0
    reads: int = 0
    writes: int = 0


@pytest.mark.parametrize(
    ("action", "work", "is_stored"),
    [
        (ignore, Work(), True),
        (read, Work(signatures=1, hashes=1, reads=1), True),
        (
            lambda: session["cart"]["n"],
            Work(signatures=1, hashes=1, reads=1, writes=1),
            True,
        ),
        (change, Work(signatures=1, hashes=1, reads=1, writes=1), True),
        (change, Work(signatures=1, hashes=1, writes=1), False),
        (log_out, Work(signatures=1, hashes=1), True),
    ],
    ids=["not looked at", "read", "read inside", "changed", "begun", "ended"],
)
def test_a_request_does_the_work_that_the_page_on_performance_says(
    action: Callable[[], t.Any],
    work: Work,
    is_stored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site({"SESSION_BACKEND": "memory"})
    browser = Browser(site)
    browser.visit(ignore)  # which derives the keys that sign, once
    if is_stored:
        browser.set(**STORED)
    counted = collections.Counter[str]()

    def count(owner: object, name: str, what: str) -> None:
        function = getattr(owner, name)

        def counting(*args: t.Any) -> t.Any:
            counted[what] += 1
            return function(*args)

        monkeypatch.setattr(owner, name, counting)

    count(cookie._HMAC, "get_signature", "signatures")
    count(ids.hashlib, "sha256", "hashes")
    count(MsgpackSerializer, "loads", "reads")
    count(MsgpackSerializer, "dumps", "writes")
    browser.visit(action)
    assert counted == collections.Counter(dataclasses.asdict(work))
    if is_stored and work.signatures and action is not log_out:
        counted.clear()
        browser.visit(action)
        assert counted["signatures"] == 0, "It was verified lately."
        assert counted["hashes"] == 0
