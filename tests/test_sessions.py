"""The session object by itself: a dict that tells what was done to it."""

from __future__ import annotations

import copy
import datetime as dt
import decimal
import typing as t
import uuid
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from flask import Flask
from flask import Response
from flask import render_template_string
from flask import session
from flask import stream_with_context
from flask.sessions import NullSession
from markupsafe import Markup

from flask_serversession import ServerSession
from flask_serversession import ServerSideSession
from flask_serversession import session as typed_session
from flask_serversession.config import MAX_DURATION
from flask_serversession.opened import opened_session
from flask_serversession.sessions import unit_of
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .site import Browser
from .site import Site
from .site import cookie_of


@pytest.fixture
def site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


@pytest.fixture
def browser(site: Site) -> Browser:
    browser = site.browser()
    browser.set(n=1, items=["a"], text="b")
    return browser


def own() -> t.Any:
    return opened_session()


# What is found and saved

TAKING_OUT: dict[str, Callable[[], t.Any]] = {
    "an item": lambda: session["items"],
    "get": lambda: session.get("items"),
    "setdefault": lambda: session.setdefault("items", []),
    "values": lambda: list(session.values())[1],
    "items": lambda: dict(session.items())["items"],
    "dict": lambda: dict(session)["items"],
    "copy": lambda: own().copy()["items"],
    "copy.copy": lambda: copy.copy(own())["items"],
    "or": lambda: (session | {"m": 1})["items"],
    "or of another": lambda: ({"m": 1} | session)["items"],
}


@pytest.mark.parametrize("way", TAKING_OUT)
def test_a_change_inside_of_what_was_taken_out_is_saved(
    browser: Browser, way: str
) -> None:
    browser.visit(lambda: TAKING_OUT[way]().append("c"))
    assert browser.read() == {"n": 1, "items": ["a", "c"], "text": "b"}


def test_a_change_of_a_copy_is_not_saved(browser: Browser) -> None:
    def view() -> None:
        own().copy()["n"] = 2
        copy.deepcopy(own())["items"].append("c")

    assert browser.costs(view) == ({"load": 1}, "none")
    assert browser.read() == {"n": 1, "items": ["a"], "text": "b"}


def test_a_deep_copy_knows_what_was_copied_already(browser: Browser) -> None:
    def view() -> None:
        whole, items = copy.deepcopy([own(), session["items"]])
        assert whole["items"] is items
        assert items == ["a"]
        assert items is not session["items"]

    browser.visit(view)


WRITING: dict[str, tuple[Callable[[], t.Any], dict[str, t.Any]]] = {
    "set": (lambda: session.update(n=2), {"n": 2, "items": ["a"], "text": "b"}),
    "delete": (lambda: session.pop("n"), {"items": ["a"], "text": "b"}),
    "popitem": (lambda: session.popitem(), {"n": 1, "items": ["a"]}),
    "update in place": (
        lambda: own().__ior__({"m": 3}),
        {"n": 1, "items": ["a"], "text": "b", "m": 3},
    ),
    "clear": (lambda: session.clear(), {}),
}


@pytest.mark.parametrize("way", WRITING)
def test_what_is_written_is_saved_and_told(browser: Browser, way: str) -> None:
    action, content = WRITING[way]

    def view() -> None:
        assert session.modified is False
        action()
        assert session.modified is True
        assert session == content

    browser.visit(view)
    assert browser.read() == content


@pytest.mark.parametrize(
    "value",
    [
        "text",
        5,
        1.5,
        True,
        None,
        b"bytes",
        Markup("<b>"),
        uuid.UUID(int=5),
        decimal.Decimal("1.5"),
        dt.datetime(2030, 1, 31, tzinfo=dt.timezone.utc),
        dt.date(2030, 1, 31),
        dt.time(12, 30),
        dt.timedelta(5),
    ],
    ids=repr,
)
def test_a_value_that_cannot_change_in_place_is_not_looked_for(
    site: Site, value: t.Any
) -> None:
    browser = site.browser()
    browser.set(value=value)

    def read() -> None:
        assert session["value"] == value
        assert type(session["value"]) is type(value)
        assert not unit_of(own()).is_exposed

    browser.visit(read)


def test_a_key_that_is_not_there_has_the_default(browser: Browser) -> None:
    def view() -> None:
        assert session.get("missing") is None
        assert session.get("missing", 5) == 5
        assert "missing" not in session
        assert "n" in session
        assert len(session) == 3
        assert list(session) == ["n", "items", "text"]
        assert list(reversed(own())) == ["text", "items", "n"]
        for key in ("missing", 5):
            with pytest.raises(KeyError):
                session[t.cast(str, key)]
            with pytest.raises(KeyError):
                del session[t.cast(str, key)]
        assert not session.modified

    browser.visit(view)


def test_a_session_equals_what_has_the_same_content(browser: Browser) -> None:
    def view() -> None:
        mine = own()
        with browser.site.app.test_request_context(headers={"Cookie": "other=1"}):
            other = own()
            assert mine != other
            other.update(n=1, items=["a"], text="b")
            assert mine == other
        assert mine == mine
        assert mine == {"n": 1, "items": ["a"], "text": "b"}
        assert mine != {"n": 1}
        assert mine != 5
        with pytest.raises(TypeError):
            hash(mine)

    browser.visit(view)


# What it tells


def test_nothing_is_loaded_and_accessed_before_somebody_looks(browser: Browser) -> None:
    def view() -> None:
        assert own().accessed is False
        assert own().modified is False
        assert repr(own()) == "<ServerSideSession (not loaded)>"

    assert browser.costs(view) == ({}, "none")


LOOKING: dict[str, Callable[[], t.Any]] = {
    "id": lambda: own().id,
    "handle": lambda: own().handle,
    "user": lambda: own().user,
    "created_at": lambda: own().created_at,
    "authenticated_at": lambda: own().authenticated_at,
    "is_fresh": lambda: own().is_fresh(60),
    "expires_at": lambda: own().expires_at,
    "lifetime": lambda: own().lifetime,
    "permanent": lambda: own().permanent,
    "new": lambda: own().new,
    "destroy": lambda: own().destroy(),
    "reload": lambda: own().reload(),
    "regenerate": lambda: own().regenerate(),
    "atomic": lambda: own().atomic(lambda s: None),
    "clear": lambda: own().clear(),
    "popitem": lambda: own().popitem(),
    "reversed": lambda: reversed(own()),
    "bool": lambda: bool(own()),
}


@pytest.mark.parametrize("way", LOOKING)
def test_to_look_is_an_access(browser: Browser, way: str) -> None:
    def view() -> None:
        LOOKING[way]()
        assert own().accessed is True

    assert browser.visit(view).headers["Vary"] == "Cookie"


def test_the_repr_has_handle_and_keys(browser: Browser) -> None:
    def view() -> None:
        assert session["n"] == 1
        assert repr(own()) == (
            f"<ServerSideSession {typed_session.handle} keys=['n', 'items', 'text']>"
        )

    browser.visit(view)


def test_moments_are_in_utc(browser: Browser) -> None:
    clock = t.cast(FakeClock, browser.site.clock)
    began = dt.datetime.fromtimestamp(clock(), dt.timezone.utc)
    clock.advance(30)

    def view() -> None:
        assert typed_session.created_at == began
        assert typed_session.expires_at == began + dt.timedelta(31)
        assert typed_session.expires_at.utcoffset() == dt.timedelta(0)

    browser.visit(view)


def test_modified_is_a_bool_and_decides_whether_a_change_is_saved(
    browser: Browser,
) -> None:
    def force() -> None:
        session.modified = t.cast(bool, 1)
        assert session.modified is True

    def prevent() -> None:
        session["n"] = 2
        session.modified = t.cast(bool, None)
        assert session.modified is False

    assert browser.costs(force)[0] == {"load": 1, "replace": 1}
    browser.visit(prevent)
    assert browser.read()["n"] == 1


def test_that_nothing_was_modified_does_not_take_back_a_new_id(
    browser: Browser,
) -> None:
    def view() -> None:
        typed_session.regenerate()
        session.modified = False

    before = browser.id
    browser.visit(view)
    assert browser.id != before


def test_what_was_cleared_stays_so_in_the_request_that_unmodifies_it(
    browser: Browser,
) -> None:
    def view() -> str:
        session.clear()
        session.modified = False
        return str(dict(session))

    assert browser.visit(view).text == "{}"
    assert browser.read()["n"] == 1


# Permanent sessions


def test_permanent_is_kept_in_the_session_as_a_bool(browser: Browser) -> None:
    def become() -> None:
        session.permanent = t.cast(bool, 1)
        assert session["_permanent"] is True
        assert session.modified

    def cease() -> None:
        assert session.permanent is True
        session.permanent = t.cast(bool, 0)
        assert session["_permanent"] is False
        assert session.permanent is False

    browser.visit(become)
    browser.visit(cease)
    assert browser.read()["_permanent"] is False


def test_to_make_a_permanent_session_permanent_renews_it_and_changes_nothing(
    browser: Browser,
) -> None:
    def make_permanent() -> None:
        session.permanent = True

    browser.visit(make_permanent)

    def again() -> None:
        session.permanent = True
        assert session.modified  # as Flask's would be
        assert unit_of(own()).wish is Wish.TOUCH

    operations, cookie = browser.costs(again)
    assert "replace" not in operations
    assert cookie == "set"


# Lifetimes


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (0.5, dt.timedelta(seconds=0.5)),
        (60, dt.timedelta(minutes=1)),
        (dt.timedelta(hours=1), dt.timedelta(hours=1)),
        (MAX_DURATION, dt.timedelta(days=365_250)),
        (None, None),
    ],
)
def test_a_lifetime_is_seconds_or_a_timedelta_or_none(
    browser: Browser, given: t.Any, kept: dt.timedelta | None
) -> None:
    def view() -> None:
        assert session.modified is False
        typed_session.lifetime = given
        assert typed_session.lifetime == kept
        assert session.modified is True

    browser.visit(view)

    def later() -> None:
        assert typed_session.lifetime == kept

    browser.visit(later)


@pytest.mark.parametrize(
    "given", [0, -1, MAX_DURATION + 1, True, False, "60", float("nan"), [60]]
)
def test_a_lifetime_that_is_none_is_refused_and_changes_nothing(
    browser: Browser, given: t.Any
) -> None:
    def view() -> None:
        typed_session.lifetime = 60
        with pytest.raises(ValueError, match="takes a positive timedelta") as caught:
            typed_session.lifetime = given
        assert str(caught.value) == (
            "session.lifetime takes a positive timedelta or number of seconds, of 1000"
            f" years at most, or None for the app's lifetime; not {given!r}."
        )
        assert typed_session.lifetime == dt.timedelta(minutes=1)

    browser.visit(view)


def test_what_begins_after_clear_lives_as_long_as_any(browser: Browser) -> None:
    def shorten() -> None:
        typed_session.lifetime = 60

    def start_over() -> None:
        session.clear()
        session["m"] = 1

    browser.visit(shorten)
    browser.visit(start_over)

    def later() -> None:
        assert typed_session.lifetime is None

    browser.visit(later)


# After the response


def streaming(action: Callable[[], t.Any]) -> Callable[[], Response]:
    """Give a view whose action runs when the response was settled."""

    def view() -> Response:
        def stream() -> Iterator[str]:
            yield str(action())

        return Response(stream_with_context(stream()))

    return view


def test_after_the_response_a_session_that_was_not_looked_at_tells_what_its_cookie_says(
    browser: Browser,
) -> None:
    def shorten() -> None:
        session.permanent = True
        typed_session.lifetime = 60

    browser.visit(shorten)
    browser.site.app.config["SESSION_REFRESH_EACH_REQUEST"] = True
    look = streaming(lambda: (typed_session.permanent, typed_session.lifetime))
    assert browser.visit(look).text == "(True, datetime.timedelta(seconds=60))"


def test_after_the_response_a_session_that_was_looked_at_tells_what_it_is(
    browser: Browser,
) -> None:
    def look() -> Response:
        typed_session.lifetime = 60
        session.permanent = True
        return streaming(lambda: (typed_session.permanent, typed_session.lifetime))()

    assert browser.visit(look).text == "(True, datetime.timedelta(seconds=60))"


def test_modified_is_warned_of_after_the_response_to_who_looked_before(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    def look() -> Response:
        assert session["n"] == 1
        return streaming(lambda: setattr(session, "modified", True))()

    browser.visit(look)
    assert [r.levelname for r in caplog.records if "save()" in r.getMessage()] == [
        "WARNING"
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda: session.update(n=2),
        lambda: session["items"].append("c"),
        lambda: (session["n"], setattr(session, "modified", True)),
    ],
    ids=["a key", "inside of a value", "modified"],
)
def test_what_is_changed_after_the_response_is_warned_of(
    browser: Browser, change: Callable[[], t.Any], caplog: pytest.LogCaptureFixture
) -> None:
    browser.visit(streaming(change))
    (record,) = [r for r in caplog.records if "save()" in r.getMessage()]
    assert record.levelname == "WARNING"
    assert browser.read() == {"n": 1, "items": ["a"], "text": "b"}


# What there is without a secret, and outside of a request


@pytest.mark.parametrize(
    "name", ["regenerate", "destroy", "reload", "save", "touch", "atomic"]
)
def test_without_a_secret_a_session_refuses_as_flasks_does(name: str) -> None:
    app = Flask("site")
    app.config["SESSION_BACKEND"] = "memory"
    ServerSession(app)
    with app.test_request_context():
        assert isinstance(session._get_current_object(), NullSession)  # type: ignore[attr-defined]
        assert dict(session) == {}
        with pytest.raises(RuntimeError, match="no secret key was set"):
            getattr(session, name)()


@pytest.mark.parametrize(
    "name",
    [
        *("id", "handle", "sid", "user", "meta"),
        *("created_at", "expires_at", "lifetime"),
    ],
)
def test_without_a_secret_what_a_session_is_says_what_is_missing(name: str) -> None:
    app = Flask("site")
    app.config["SESSION_BACKEND"] = "memory"
    ServerSession(app)
    with app.test_request_context():
        with pytest.raises(RuntimeError, match="no secret key was set"):
            getattr(session, name)
        with pytest.raises(RuntimeError, match="no secret key was set"):
            setattr(session, name, None)
        # A key of that name is what a template means, as with Flask's.
        assert render_template_string("<{{ session." + name + " }}>") == "<>"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            "user",
            "It is what 'SESSION_USER_KEY' finds in the session. To log somebody in,"
            " set that key: session['_user_id'] = ….",
        ),
        ("id", "Call session.regenerate() for a new one."),
        ("handle", "Call session.regenerate() for a new one."),
        ("sid", "Call session.regenerate() for a new one."),
        ("meta", "Set names in it: session.meta['device'] = '…'."),
        ("expires_at", "Set session.lifetime."),
        ("time_left", "Set session.lifetime."),
        ("created_at", "Call session.regenerate(keep_data=False) to start over."),
        ("authenticated_at", "Call session.mark_authenticated()."),
    ],
)
def test_what_cannot_be_set_says_what_to_do(
    browser: Browser, name: str, remedy: str
) -> None:
    def view() -> None:
        with pytest.raises(AttributeError) as caught:
            setattr(session, name, "hunter2")
        assert str(caught.value) == f"session.{name} cannot be set. {remedy}"

    browser.visit(view)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, "destroy()") for name in ("invalidate", "delete", "logout", "flush")),
        *((name, "regenerate()") for name in ("cycle_key", "rotate", "regenerate_id")),
        *((name, "handle") for name in ("session_id", "session_key")),
        ("user_id", "user"),
        ("max_age", "lifetime"),
        ("expires", "expires_at"),
        ("commit", "save()"),
    ],
)
def test_a_member_by_another_name_says_what_it_is_called_here(
    browser: Browser, name: str, meant: str
) -> None:
    def view() -> None:
        assert not hasattr(session, name)
        for use in (lambda: getattr(session, name), lambda: setattr(session, name, 1)):
            with pytest.raises(AttributeError) as caught:
                use()
            assert str(caught.value) == (
                f"session has no attribute {name!r}. Did you mean session.{meant}?"
            )
        # The wish to have it is no access.
        assert render_template_string("<{{ session." + name + " }}>") == "<>"

    browser.visit(view)


def test_a_session_that_is_not_stored_has_no_record(site: Site) -> None:
    def view() -> None:
        session["n"] = 1
        with pytest.raises(RuntimeError, match=r"^The session is not stored\.$"):
            assert unit_of(own()).record

    site.browser().visit(view)


def test_a_new_unit_has_seen_and_done_nothing(site: Site) -> None:
    with site.app.test_request_context():
        unit = unit_of(own())
        assert isinstance(own(), ServerSideSession)
        assert isinstance(unit, Unit)
        assert unit.presented.values == ()
        assert unit.data == {}


def test_what_a_request_does_is_saved_by_itself(browser: Browser) -> None:
    def view() -> str:
        session["n"] = 2
        typed_session.save()
        other = browser.twin()
        assert other.read()["n"] == 2
        session["n"] = 3
        typed_session.reload()
        return str(session["n"])

    assert browser.visit(view).text == "2"
    assert browser.costs(lambda: typed_session.touch())[0].keys() <= {"touch", "load"}

    def starts_over() -> None:
        typed_session.regenerate(keep_data=False)
        assert dict(session) == {}

    former = browser.id
    assert cookie_of(browser.visit(starts_over), browser.site) != "none"
    assert browser.cookie is None or browser.id != former


def test_atomic_says_that_nobody_would_await_its_function(browser: Browser) -> None:
    async def later(own: ServerSideSession) -> None:
        raise AssertionError

    def view() -> None:
        with pytest.raises(TypeError, match="not async") as caught:
            typed_session.atomic(later)
        assert str(caught.value) == (
            "session.atomic() takes a function that is not async; it would never be"
            " awaited."
        )

    assert browser.visit(view).status_code == 200
