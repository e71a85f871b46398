"""Orders of calls, and overlaps, that ended wrongly once."""

from __future__ import annotations

import copy
import datetime as dt
import typing as t

import flask
import freezegun
import pytest
from flask import Flask
from flask import Response
from flask import session

from flask_serversession import BackendUnavailableError
from flask_serversession import SerializationError
from flask_serversession import ServerSession
from flask_serversession import session as typed_session
from flask_serversession import signals
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.record import key_of
from flask_serversession.testing import FakeClock

from .site import Action
from .site import Site
from .site import advance
from .site import cookie_of

Config = dict[str, t.Any]
HOUR = 3600.0


@pytest.fixture
def site(backend_config: Config) -> Site:
    return Site(backend_config)


def make_site(**settings: t.Any) -> Site:
    clock = FakeClock()
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


@pytest.mark.parametrize("is_user_known", [True, False], ids=["user key", "other key"])
def test_who_logs_in_after_clear_gets_nothing_of_the_former_user(
    site: Site, is_user_known: bool
) -> None:
    key = "_user_id" if is_user_known else "account"
    browser = site.browser()
    browser.set(**{key: "joe"})
    parallel = browser.twin()

    def log_in() -> None:
        assert session[key] == "joe"
        parallel.set(report="joe's")
        session.clear()
        session[key] = "eve"

    browser.visit(log_in)
    assert browser.read() == {key: "eve"}


def test_what_is_written_after_clear_has_a_new_id(site: Site) -> None:
    browser = site.browser()
    browser.set(account="joe")
    late = browser.twin()
    former = browser.id

    def log_in() -> None:
        session.clear()
        session["account"] = "eve"

    def change() -> None:
        assert session["account"] == "joe"
        browser.visit(log_in)
        session["report"] = "joe's"

    assert cookie_of(late.visit(change), site) == "none"
    assert browser.id != former
    assert browser.read() == {"account": "eve"}
    # Its former id sees nothing.
    assert late.read() == {}


def test_after_clear_a_session_begins_as_a_new_one_does() -> None:
    site = make_site(SESSION_PERMANENT=True)
    browser = site.browser()

    def begin() -> None:
        session.permanent = False
        typed_session.lifetime = dt.timedelta(days=30)
        session["seen"] = 1

    def log_in() -> str:
        session.clear()
        session["account"] = "eve"
        return f"{session.permanent} {typed_session.lifetime}"

    browser.visit(begin)
    assert browser.visit(log_in).text == "True None"
    assert browser.read() == {"account": "eve", "_permanent": True}


def test_a_session_cleared_and_written_after_the_response_keeps_its_id() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(n=1)

    def stream() -> t.Any:
        real = t.cast(t.Any, session)._get_current_object()
        session["n"] = 2

        def generate() -> t.Iterator[str]:
            yield "begun"
            real.clear()
            real["m"] = 3
            real.save()

        return Response(generate())

    assert browser.visit(stream).text == "begun"
    assert browser.read() == {"m": 3}


@pytest.mark.parametrize("setting", ["SESSION_RESAVE", "SESSION_RENEWAL_INTERVAL"])
def test_reading_does_not_renew_what_is_not_refreshed(setting: str) -> None:
    value = True if setting == "SESSION_RESAVE" else 900
    site = make_site(
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=HOUR,
        **{setting: value},
    )
    browser = site.browser()
    browser.set(x=1, _permanent=True)
    for _ in range(2):
        advance(site, 1500)
        response = browser.visit(lambda: session["x"])
        assert response.text == "1"
        sent = "none" if setting == "SESSION_RESAVE" else "set"
        assert cookie_of(response, site) == sent
    advance(site, 1500)
    assert browser.read() == {}


def test_setting_permanent_again_writes_nothing_and_renews() -> None:
    site = make_site(PERMANENT_SESSION_LIFETIME=HOUR)
    browser = site.browser()

    def act() -> None:
        session.permanent = True

    browser.set(n=1)
    assert browser.costs(act) == ({"load": 1, "replace": 1}, "set")
    assert browser.costs(act) == ({"load": 1}, "set")
    site.app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    for _ in range(3):
        advance(site, HOUR / 2)
        assert browser.costs(act) == ({"load": 1, "touch": 1}, "set")


def test_what_the_former_serializer_cannot_write_the_new_one_can() -> None:
    backend = MemoryBackend(FakeClock())
    before = Site({"SESSION_BACKEND": backend}, SESSION_SERIALIZER="json")
    after = Site({"SESSION_BACKEND": backend})
    browser = before.browser()
    browser.set(a=[1])
    cookie, browser = browser.cookie, after.browser()
    browser.cookie = cookie
    browser.visit(lambda: session["a"].append({1, 2}))
    assert browser.read() == {"a": [1, {1, 2}]}
    with pytest.raises(SerializationError):
        browser.visit(lambda: session["a"].append(object()))


@pytest.mark.parametrize("has_failed", [True, False])
def test_atomic_survives_a_change_of_the_serializer(has_failed: bool) -> None:
    backend = MemoryBackend(FakeClock())
    before = Site({"SESSION_BACKEND": backend}, SESSION_SERIALIZER="json")
    after = Site({"SESSION_BACKEND": backend})
    browser = before.browser()
    browser.set(n=1)
    cookie, browser = browser.cookie, after.browser()
    browser.cookie = cookie
    other = browser.twin()
    turns = iter(range(10))

    def count(own: t.Any) -> None:
        own["n"] += 1
        if next(turns) == 0:
            other.set(m=1)
            if has_failed:
                raise ValueError("on purpose")

    def act() -> None:
        assert session["n"] == 1
        if has_failed:
            with pytest.raises(ValueError, match="on purpose"):
                typed_session.atomic(count)
        else:
            typed_session.atomic(count)

    browser.visit(act)
    assert browser.read() == {"n": 1 if has_failed else 2, "m": 1}


@pytest.mark.parametrize("inner", ["atomic", "save"])
def test_what_is_saved_inside_of_atomic_counts_once(inner: str) -> None:
    site = make_site()
    browser = site.browser()
    browser.set(n=0)
    other = browser.twin()
    turns = iter(range(10))

    def add(own: t.Any) -> None:
        own["n"] += 1

    def outer(own: t.Any) -> None:
        if inner == "atomic":
            own.atomic(add)
        else:
            add(own)
            own.save()
        if next(turns) == 0:
            other.set(m=1)

    browser.visit(lambda: typed_session.atomic(outer))
    assert browser.read() == {"n": 1, "m": 1}


def test_atomic_refuses_what_nobody_would_await() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(n=0)

    async def count(own: t.Any) -> None:
        own["n"] += 1

    with pytest.raises(TypeError, match="not async"):
        browser.visit(lambda: typed_session.atomic(t.cast(t.Any, count)))


def test_a_copy_is_no_alias() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(cart=[1])

    def act() -> None:
        old = copy.copy(t.cast(t.Any, session)._get_current_object())
        session.clear()
        session.update(old)

    browser.visit(act)
    assert browser.read() == {"cart": [1]}


@pytest.mark.parametrize("lifetime", ["60", True, 0, -1, float("nan"), 1e12])
def test_a_lifetime_that_is_none_is_refused_by_name(lifetime: t.Any) -> None:
    site = make_site()

    def act() -> None:
        with pytest.raises(ValueError, match=r"session\.lifetime takes a positive"):
            typed_session.lifetime = lifetime
        session["n"] = 1

    browser = site.browser()
    assert browser.visit(act).status_code == 200
    assert browser.read() == {"n": 1}


def test_a_view_that_hides_a_failed_log_out_does_not_answer_success() -> None:
    site = make_site(SESSION_ON_BACKEND_ERROR="ignore")
    browser = site.browser()
    browser.set(_user_id="ada")

    def log_out() -> str:
        with pytest.raises(BackendUnavailableError):
            typed_session.destroy()
        return "Good bye."

    with site.backend.failing("delete"):
        assert browser.visit(log_out).status_code == 503
    assert browser.read() == {"_user_id": "ada"}


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_a_parallel_request_does_not_undo_a_longer_life(
    backend_config: Config, is_looked_at: bool
) -> None:
    site = Site(backend_config, SESSION_IDLE_TIMEOUT=1800)
    browser = site.browser()
    browser.set(cart=[1], _permanent=True)
    browser.visit(lambda: setattr(typed_session, "lifetime", 1800))
    slow = browser.twin()

    def remember() -> None:
        typed_session.lifetime = dt.timedelta(days=30)

    def read() -> None:
        if is_looked_at:
            assert session["cart"] == [1]
        browser.visit(remember)

    advance(site, 61)
    slow.visit(read)
    advance(site, 1801)
    assert browser.read()["cart"] == [1]


def test_without_a_secret_ending_a_session_says_what_is_missing() -> None:
    app = Flask("app")
    app.config.update(SESSION_BACKEND="memory", TESTING=True)
    ServerSession(app)
    with app.test_request_context():
        assert session.get("n") is None
        for act in (typed_session.destroy, typed_session.regenerate):
            with pytest.raises(RuntimeError, match="secret key"):
                act()


def test_frozen_time_is_the_time_of_sessions() -> None:
    app = Flask("app")
    app.config.update(
        SECRET_KEY="a secret", SESSION_BACKEND="memory", SESSION_IDLE_TIMEOUT=60
    )
    app.testing = True
    ServerSession(app)
    app.add_url_rule("/set", "set", view_func=lambda: session.update(n=1) or "")
    app.add_url_rule("/get", "get", view_func=lambda: str(session.get("n")))
    client = app.test_client()
    client.get("/set")
    assert client.get("/get").text == "1"
    with freezegun.freeze_time(dt.timedelta(hours=1)):
        assert client.get("/get").text == "None"


def test_templates_can_filter_the_session() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(a=1)
    template = "{{ session is mapping }} {{ session|items|list }}"
    response = browser.visit(lambda: flask.render_template_string(template))
    assert response.text == "True [(&#39;a&#39;, 1)]"


def end(site: Site) -> None:
    """End the session of the current request, as an operator does."""
    assert site.extension.revoke(typed_session.handle)


@pytest.mark.parametrize("is_new", [True, False])
def test_an_id_that_names_no_session_any_more_is_not_sent(is_new: bool) -> None:
    site = make_site(SESSION_SAVE_ON_ERROR=False)
    browser = site.browser()
    if not is_new:
        browser.set(n=1)

    def view() -> Response:
        session["_user_id"] = "ada"
        typed_session.save()
        end(site)
        typed_session.destroy()
        return Response("sorry", status=500)

    response = browser.visit(view)
    assert response.text == "sorry"
    assert cookie_of(response, site) == "none"


def test_an_id_that_was_lost_again_is_not_sent_with_the_error() -> None:
    site = make_site(SESSION_ON_LOST="raise", PROPAGATE_EXCEPTIONS=False)
    browser = site.browser()
    browser.set(n=1)

    def view() -> None:
        session["_user_id"] = "ada"
        typed_session.save()
        end(site)
        session["n"] = 2

    response = browser.visit(view)
    assert response.status_code == 500
    assert cookie_of(response, site) == "none"


def test_what_a_failed_atomic_has_changed_was_not_modified() -> None:
    browser = make_site().browser()
    browser.set(n=1)

    def change_and_fail(own: t.Any) -> None:
        own["n"] = 2
        raise LookupError

    def view() -> None:
        with pytest.raises(LookupError):
            typed_session.atomic(change_and_fail)
        assert not session.modified

    assert browser.costs(view) == ({"load": 2}, "none")


def test_to_find_out_in_atomic_that_the_session_is_gone_loses_nothing() -> None:
    site = make_site(SESSION_ON_LOST="raise")
    browser = site.browser()
    browser.set(n=1)

    def look_again(own: t.Any) -> None:
        end(site)
        own.reload()

    assert browser.visit(lambda: typed_session.atomic(look_again)).status_code == 200


def test_to_save_in_vain_when_nothing_was_changed_is_no_failure_afterwards() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(n=1)

    def view() -> None:
        for act in (lambda: session["n"], typed_session.save):
            with pytest.raises(BackendUnavailableError):
                act()

    with site.backend.failing("load"):
        assert browser.visit(view).status_code == 200


def test_a_new_session_that_cannot_be_stored_keeps_its_name() -> None:
    site = make_site()
    names: list[str] = []

    def view() -> None:
        session["n"] = 1
        with pytest.raises(BackendUnavailableError):
            typed_session.save()
        names.extend([typed_session.handle, typed_session.handle])

    @signals.backend_failed.connect
    def note(_: object, handle: str, **__: object) -> None:
        names.append(handle)

    with site.backend.failing("create"):
        site.browser().visit(view)
    assert len({*names}) == 1


@pytest.mark.parametrize("is_begun", [False, True], ids=["empty", "written to"])
def test_atomic_that_raises_undoes_its_changes_of_a_new_session_too(
    is_begun: bool,
) -> None:
    site = make_site()
    browser = site.browser()

    def buy(own: t.Any) -> None:
        own["coins"] = own.get("coins", 10) - 30
        own.setdefault("log", []).append("bought")
        own.lifetime = 100
        own.permanent = True
        raise ValueError("too expensive")

    def act() -> str:
        if is_begun:
            session["log"] = ["seen"]
        with pytest.raises(ValueError, match="too expensive"):
            typed_session.atomic(buy)
        assert session.modified is is_begun
        return f"{dict(session)} {typed_session.lifetime}"

    expected: dict[str, t.Any] = {"log": ["seen"]} if is_begun else {}
    response = browser.visit(act)
    assert response.text == f"{expected} None"
    assert cookie_of(response, site) == ("set" if is_begun else "none")
    assert browser.read() == expected


def test_atomic_on_a_new_session_whose_failure_is_hidden_is_no_success() -> None:
    site = make_site()
    browser = site.browser()

    def act() -> str:
        with pytest.raises(BackendUnavailableError):
            typed_session.atomic(lambda own: own.update(n=1))
        return "stored"

    with site.backend.failing("create"):
        assert browser.visit(act).status_code == 503
    assert site.backend.count() == 0


def test_atomic_that_raises_undoes_its_changes_of_a_session_that_is_gone() -> None:
    site = make_site()
    browser = site.browser()
    browser.set(_user_id="ada")
    late = browser.twin()
    browser.visit(lambda: typed_session.regenerate())

    def log_out(own: t.Any) -> None:
        own["n"] = 1
        own.pop("_user_id", None)
        raise ValueError("on purpose")

    def act() -> str:
        with pytest.raises(ValueError, match="on purpose"):
            typed_session.atomic(log_out)
        return str(dict(session))

    assert late.visit(act).text == "{}"
    assert browser.read() == {"_user_id": "ada"}


def test_what_has_timed_out_by_a_shorter_lifetime_is_not_saved_again() -> None:
    clock = FakeClock()
    site = Site({"SESSION_BACKEND": "memory"}, clock)
    browser = site.browser()
    browser.set(_user_id="ada", n=1)
    other = browser.twin()
    key = key_of(browser.id, site.state.config.key_prefix)

    def slow_view() -> None:
        session["n"] = 2
        other.visit(lambda: setattr(typed_session, "lifetime", 60))
        # By a request that had come before, and does not know of that.
        clock.advance(10)
        site.backend.touch(key, clock(), clock() + 86_400)
        clock.advance(100)

    browser.visit(slow_view)
    assert browser.read() == other.read() == {}


def flash() -> None:
    flask.flash("Good bye.")


#: What a request may do whose session another one has ended.
LATE: dict[str, Action] = {
    "writes": flash,
    "clears": lambda: (session.clear(), flash()),
    "destroys": lambda: (typed_session.destroy(), flash()),
    "restarts": lambda: (typed_session.regenerate(keep_data=False), flash()),
    "removes": lambda: (session.pop("user_id", None), flash()),
    "destroys in atomic()": lambda: (
        typed_session.atomic(lambda own: own.destroy()),
        flash(),
    ),
    "reloads": lambda: (typed_session.reload(), flash()),
    "saves and destroys": lambda: (
        flash(),
        typed_session.save(),
        typed_session.destroy(),
        flash(),
    ),
}


@pytest.mark.parametrize("late", LATE.values(), ids=[*LATE])
@pytest.mark.parametrize("looks", [False, True], ids=["", "looks"])
@pytest.mark.parametrize("end", ["clear", "destroy"])
def test_a_late_request_does_not_replace_the_log_in_that_came_after_an_end(
    site: Site, late: Action, looks: bool, end: str
) -> None:
    browser = site.browser()
    browser.set(user_id="ada")
    slow = browser.twin()

    def log_in_again() -> None:
        getattr(typed_session, end)()
        session["user_id"] = "grace"

    def act() -> None:
        if looks:
            assert session["user_id"] == "ada"
        advance(site, 1)
        browser.visit(log_in_again)
        late()

    assert cookie_of(slow.visit(act), site) == "none"
    assert browser.read() == {"user_id": "grace"}


def test_what_is_written_after_the_end_of_no_session_has_a_new_id(site: Site) -> None:
    browser = site.browser()
    browser.set(user_id="ada")
    stale = browser.twin()
    browser.visit(lambda: typed_session.destroy())
    response = stale.visit(lambda: (typed_session.destroy(), session.update(n=1)))
    assert cookie_of(response, site) == "set"
    assert stale.read() == {"n": 1}
