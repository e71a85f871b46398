"""The table of decisions, row by row, with the exact operations, on every backend."""

from __future__ import annotations

import gc
import typing as t
import weakref
from collections.abc import Callable

import flask
import pytest
from flask import Flask
from flask import Response
from flask import session
from flask.sessions import SessionMixin

from flask_serversession import Capability
from flask_serversession import ServerSession
from flask_serversession import session as typed_session
from flask_serversession.interface import ServerSessionInterface
from flask_serversession.signals import session_rejected
from flask_serversession.testing import FakeClock

from .site import Browser
from .site import Site
from .site import cookie_of

MINUTE = 60.0

MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(backend_config: dict[str, t.Any]) -> MakeSite:
    def make(**settings: t.Any) -> Site:
        return Site(backend_config, **settings)

    return make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


def bump() -> None:
    session["n"] = session.get("n", 0) + 1


def read() -> str:
    return str(session.get("n"))


def start(site: Site, *, permanent: bool = False) -> Browser:
    """Give a browser that has a session."""
    browser = site.browser()
    browser.visit(bump)
    if permanent:
        browser.visit(lambda: setattr(session, "permanent", True))
    return browser


# no cookie, nothing written


def test_a_visitor_without_a_session_costs_nothing(site: Site) -> None:
    assert site.browser().costs(lambda: "hello") == ({}, "none")


def test_reading_without_a_cookie_costs_nothing(site: Site) -> None:
    assert site.browser().costs(read) == ({}, "none")


def test_save_uninitialized_stores_a_session_for_every_visitor(
    make_site: MakeSite,
) -> None:
    browser = make_site(SESSION_SAVE_UNINITIALIZED=True).browser()
    assert browser.costs(lambda: "hello") == ({"create": 1}, "set")
    assert browser.costs(lambda: "hello") == ({}, "none")
    assert browser.costs(read) == ({"load": 1}, "none")
    assert browser.costs(lambda: typed_session.destroy()) == ({"delete": 1}, "deleted")


def test_save_uninitialized_stores_the_session_that_follows_a_restart(
    make_site: MakeSite,
) -> None:
    browser = start(make_site(SESSION_SAVE_UNINITIALIZED=True))
    before = browser.id
    costs, cookie = browser.costs(lambda: typed_session.regenerate(keep_data=False))
    assert (costs, cookie) == ({"load": 1, "create": 1, "replace": 1}, "set")
    assert browser.id != before
    assert browser.read() == {}
    # It is there, so nothing has to be stored for who comes with it.
    assert browser.costs(read) == ({"load": 1}, "none")


# cookie, session not looked at


def test_a_request_that_does_not_look_at_its_session_costs_nothing(site: Site) -> None:
    browser = start(site)
    with site.backend.counting() as calls:
        response = browser.ignore()
    assert not calls
    assert cookie_of(response, site) == "none"
    assert "Vary" not in response.headers


def test_a_permanent_session_is_renewed_unseen_once_an_interval(site: Site) -> None:
    browser = start(site, permanent=True)
    assert browser.costs(lambda: "hello") == ({}, "set")
    t.cast(FakeClock, site.clock).advance(MINUTE)
    assert browser.costs(lambda: "hello") == ({"touch": 1}, "set")
    assert browser.costs(lambda: "hello") == ({}, "set")
    assert browser.ignore().headers["Vary"] == "Cookie"


def test_a_permanent_session_is_left_alone_without_refresh(make_site: MakeSite) -> None:
    site = make_site(SESSION_REFRESH_EACH_REQUEST=False)
    browser = start(site, permanent=True)
    t.cast(FakeClock, site.clock).advance(MINUTE)
    assert browser.costs(lambda: "hello") == ({}, "none")


def test_touch_counts_as_activity_without_loading(site: Site) -> None:
    browser = start(site)
    t.cast(FakeClock, site.clock).advance(MINUTE)
    assert browser.costs(lambda: typed_session.touch()) == ({"touch": 1}, "set")
    assert browser.costs(lambda: typed_session.touch()) == ({}, "none")


# only read


def test_reading_costs_one_load_and_one_touch_an_interval(site: Site) -> None:
    browser = start(site)
    assert browser.costs(read) == ({"load": 1}, "none")
    t.cast(FakeClock, site.clock).advance(MINUTE - 1)
    assert browser.costs(read) == ({"load": 1}, "none")
    t.cast(FakeClock, site.clock).advance(1)
    assert browser.costs(read) == ({"load": 1, "touch": 1}, "none")
    assert browser.costs(read) == ({"load": 1}, "none")


def test_reading_a_permanent_session_sends_its_cookie_again(site: Site) -> None:
    browser = start(site, permanent=True)
    assert browser.costs(read) == ({"load": 1}, "set")


def test_reading_without_refresh_renews_a_permanent_session_not_at_all(
    make_site: MakeSite,
) -> None:
    site = make_site(SESSION_REFRESH_EACH_REQUEST=False)
    browser = start(site, permanent=True)
    t.cast(FakeClock, site.clock).advance(MINUTE)
    assert browser.costs(read) == ({"load": 1}, "none")


def test_reading_without_refresh_renews_a_browser_session(make_site: MakeSite) -> None:
    site = make_site(SESSION_REFRESH_EACH_REQUEST=False)
    browser = start(site)
    t.cast(FakeClock, site.clock).advance(MINUTE)
    assert browser.costs(read) == ({"load": 1, "touch": 1}, "none")


def test_reading_a_nested_value_does_not_write(site: Site) -> None:
    browser = site.browser()
    browser.set(cart={"items": [1, {"n": 2}]})
    assert browser.costs(lambda: session["cart"]["items"][1]["n"]) == (
        {"load": 1},
        "none",
    )


# changed


def test_a_change_costs_a_load_and_a_replace(site: Site) -> None:
    browser = start(site)
    assert browser.costs(bump) == ({"load": 1, "replace": 1}, "set")
    assert browser.read() == {"n": 2}


def test_a_nested_change_is_saved(site: Site) -> None:
    browser = site.browser()
    browser.set(cart={"items": []})

    def add() -> None:
        session["cart"]["items"].append("apple")

    assert browser.costs(add) == ({"load": 1, "replace": 1}, "none")
    assert browser.read() == {"cart": {"items": ["apple"]}}


def test_a_change_of_a_permanent_session_sends_its_cookie(make_site: MakeSite) -> None:
    browser = start(make_site(SESSION_REFRESH_EACH_REQUEST=False), permanent=True)
    assert browser.costs(bump) == ({"load": 1, "replace": 1}, "set")


def test_becoming_and_ceasing_to_be_permanent_sends_the_cookie(site: Site) -> None:
    browser = start(site)

    def make_permanent() -> None:
        session.permanent = True

    def make_temporary() -> None:
        session.permanent = False

    assert browser.costs(make_permanent) == ({"load": 1, "replace": 1}, "set")
    assert browser.costs(make_temporary) == ({"load": 1, "replace": 1}, "set")
    assert browser.costs(lambda: "hello") == ({}, "none")


def test_modified_forces_a_save(site: Site) -> None:
    browser = start(site)

    def force() -> None:
        session.modified = True

    assert browser.costs(force) == ({"load": 1, "replace": 1}, "set")


# fresh and written


def test_a_first_value_costs_one_create(site: Site) -> None:
    browser = site.browser()
    assert browser.costs(bump) == ({"create": 1}, "set")
    assert browser.read() == {"n": 1}


def test_what_is_written_and_removed_in_one_request_is_never_stored(site: Site) -> None:
    def change_mind() -> None:
        session["n"] = 1
        del session["n"]

    assert site.browser().costs(change_mind) == ({}, "none")


# resave


def test_resave_does_not_write_again_what_save_has_written(
    make_site: MakeSite,
) -> None:
    browser = start(make_site(SESSION_RESAVE=True))

    def change_and_save() -> None:
        bump()
        typed_session.save()

    assert browser.costs(change_and_save) == ({"load": 1, "replace": 1}, "set")
    assert browser.read()["n"] == 2


def test_resave_writes_what_was_only_read(make_site: MakeSite) -> None:
    browser = start(make_site(SESSION_RESAVE=True))
    assert browser.costs(read) == ({"load": 1, "replace": 1}, "none")
    assert browser.costs(lambda: "hello") == ({}, "none")


# emptied, or destroyed


def test_clearing_costs_one_delete_and_no_load(site: Site) -> None:
    browser = start(site)
    assert browser.costs(lambda: session.clear()) == ({"delete": 1}, "deleted")
    assert browser.cookie is None


def test_destroying_costs_one_delete_and_no_load(site: Site) -> None:
    browser = start(site)
    old = browser.cookie

    def log_out() -> None:
        session.clear()
        typed_session.destroy()

    assert browser.costs(log_out) == ({"delete": 1}, "deleted")
    browser.cookie = old
    assert browser.read() == {}


def test_destroying_after_reading_costs_no_second_load(site: Site) -> None:
    browser = start(site)

    def log_out() -> None:
        assert session["n"] == 1
        typed_session.destroy()
        assert not session

    assert browser.costs(log_out) == ({"load": 1, "delete": 1}, "deleted")


def test_what_is_written_after_destroying_gets_a_new_id(site: Site) -> None:
    browser = start(site)
    old, old_id = browser.cookie, browser.id

    def log_out() -> None:
        typed_session.destroy()
        session["goodbye"] = True

    assert browser.costs(log_out) == ({"delete": 1, "create": 1}, "set")
    assert browser.id != old_id
    assert browser.read() == {"goodbye": True}
    browser.cookie = old
    assert browser.read() == {}


def test_removing_the_last_key_ends_the_session(site: Site) -> None:
    browser = start(site)
    old = browser.cookie
    # Not a delete: another request may just be adding a key of its own.
    assert browser.costs(lambda: session.pop("n")) == (
        {"load": 1, "replace": 1},
        "deleted",
    )
    browser.cookie = old
    assert browser.read() == {}


def test_logging_out_twice_is_harmless(site: Site) -> None:
    browser = start(site)
    old = browser.cookie
    browser.visit(lambda: typed_session.destroy())
    browser.cookie = old
    assert browser.costs(lambda: typed_session.destroy()) == (
        {"delete": 1, "load": 1},
        "none",
    )


def test_a_message_after_destroying_an_unknown_session_is_kept(site: Site) -> None:
    browser = start(site)
    old = browser.cookie
    browser.visit(lambda: typed_session.destroy())
    browser.cookie = old

    def log_out() -> None:
        typed_session.destroy()
        session["goodbye"] = True

    assert browser.costs(log_out) == ({"delete": 1, "load": 1, "create": 1}, "set")
    assert browser.read() == {"goodbye": True}


# id rotated


def test_regenerating_creates_the_new_and_buries_the_old(site: Site) -> None:
    browser = start(site)
    old_id = browser.id
    assert browser.costs(lambda: typed_session.regenerate()) == (
        {"load": 1, "create": 1, "replace": 1},
        "set",
    )
    assert browser.id != old_id
    assert browser.read() == {"n": 1}


def test_logging_in_rotates_the_id_by_itself(site: Site) -> None:
    browser = start(site)
    old_id = browser.id

    def log_in() -> None:
        session["_user_id"] = "ada"

    assert browser.costs(log_in) == ({"load": 1, "create": 1, "replace": 1}, "set")
    assert browser.id != old_id
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_regenerating_a_new_session_costs_what_any_new_one_costs(site: Site) -> None:
    def log_in() -> None:
        typed_session.regenerate()
        session["_user_id"] = "ada"

    assert site.browser().costs(log_in) == ({"create": 1}, "set")


# unknown, expired, forged or malformed


def test_an_unknown_id_costs_one_load_and_is_not_adopted(site: Site) -> None:
    browser = start(site)
    cookie, id = browser.cookie, browser.id
    browser.visit(lambda: session.clear())
    browser.cookie = cookie
    assert browser.costs(read) == ({"load": 1}, "none")
    assert browser.costs(bump) == ({"load": 1, "create": 1}, "set")
    assert browser.id != id


@pytest.mark.parametrize(
    "value", ["", ".", "..", "x.p1-1.y", "a" * 70_000, "../../etc/passwd", "é.p1-1.x"]
)
def test_a_forged_cookie_costs_nothing_at_all(site: Site, value: str) -> None:
    browser = site.browser()
    header = {"Cookie": f"session={value}"}
    rejected: list[str] = []

    def reject(app: Flask, reason: str, **values: object) -> None:
        rejected.append(reason)

    with session_rejected.connected_to(reject, site.app):
        assert browser.costs(read, headers=header) == ({}, "none")
        assert browser.costs(lambda: session.clear(), headers=header) == ({}, "none")
    reason = "forged" if ".p1-1." in value else "malformed"
    assert rejected == [reason] * 2


def test_an_expired_session_is_gone(site: Site) -> None:
    browser = start(site)
    t.cast(FakeClock, site.clock).advance(31 * 24 * 3600)
    assert browser.costs(read) == ({"load": 1}, "none")


# tombstone


def test_a_rotated_id_can_neither_read_nor_write_nor_send_a_cookie(site: Site) -> None:
    browser = start(site)
    late = site.browser()
    late.cookie = browser.cookie
    browser.visit(lambda: session.update(_user_id="ada"))
    assert late.costs(read) == ({"load": 1}, "none")
    assert late.costs(bump) == ({"load": 1}, "none")
    assert late.costs(lambda: session.clear())[1] == "none"
    assert late.costs(lambda: typed_session.destroy())[1] == "none"
    assert late.costs(lambda: typed_session.regenerate())[1] == "none"
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_a_message_after_destroying_a_rotated_session_is_dropped(site: Site) -> None:
    browser = start(site)
    late = site.browser()
    late.cookie = browser.cookie
    browser.visit(lambda: session.update(_user_id="ada"))

    def log_out() -> None:
        typed_session.destroy()
        session["goodbye"] = True

    calls, cookie = late.costs(log_out)
    assert cookie == "none"
    assert "create" not in calls
    assert browser.read()["_user_id"] == "ada"


def test_after_the_grace_a_rotated_id_is_unknown(site: Site) -> None:
    browser = start(site)
    late = site.browser()
    late.cookie = browser.cookie
    browser.visit(lambda: session.update(_user_id="ada"))
    t.cast(FakeClock, site.clock).advance(10)
    assert late.costs(bump) == ({"load": 1, "create": 1}, "set")
    assert late.read() == {"n": 1}


def test_an_unseen_permanent_session_does_not_send_a_rotated_id(site: Site) -> None:
    browser = start(site, permanent=True)
    late = site.browser()
    late.cookie = browser.cookie
    browser.visit(lambda: session.update(_user_id="ada"))
    assert late.costs(lambda: "hello") == ({}, "none")
    t.cast(FakeClock, site.clock).advance(MINUTE)
    assert late.costs(lambda: "hello") == ({"touch": 1}, "none")


# errors


def test_save_on_error_stores_by_default(site: Site) -> None:
    browser = start(site)

    def fail() -> Response:
        bump()
        return Response(status=500)

    browser.visit(fail)
    assert browser.read() == {"n": 2}


def test_without_save_on_error_a_failed_request_leaves_the_store_alone(
    make_site: MakeSite,
) -> None:
    site = make_site(SESSION_SAVE_ON_ERROR=False)
    browser = start(site)

    def fail() -> Response:
        bump()
        return Response(status=500)

    with site.backend.counting() as calls:
        browser.visit(fail)
    assert calls == {"load": 1}
    assert browser.read() == {"n": 1}


def test_an_error_page_that_must_not_save_asks_nobody_whether_to_set_the_cookie(
    make_site: MakeSite,
) -> None:
    site = make_site(SESSION_SAVE_ON_ERROR=False)
    browser = start(site, permanent=True)

    class Curious(ServerSessionInterface):
        def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
            return "n" in session

    site.app.session_interface.__class__ = Curious
    with site.backend.counting() as calls:
        response = browser.visit(lambda: Response(status=500))
    assert calls == {}
    assert "Vary" not in response.headers


def test_an_error_page_that_must_not_save_stands_whatever_the_session_holds(
    make_site: MakeSite,
) -> None:
    site = make_site(SESSION_SAVE_ON_ERROR=False)
    browser = site.browser()
    browser.visit(lambda: session.update(items=[]))

    def fail() -> Response:
        session["items"].append(object())
        return Response("sorry", status=500)

    assert browser.visit(fail).text == "sorry"
    assert browser.read() == {"items": []}


# two requests at once


def overlap(
    site: Site, slow: Callable[[], t.Any], fast: Callable[[], t.Any]
) -> tuple[Browser, str]:
    """Run one request while another of the same browser has its session loaded."""
    if Capability.COMPARE_AND_SWAP not in site.backend.capabilities:
        pytest.skip("needs compare-and-swap")
    browser = start(site)
    other = site.browser()
    other.cookie = browser.cookie

    def slow_view() -> None:
        assert session["n"] == 1
        browser.visit(fast)
        slow()

    return browser, cookie_of(other.visit(slow_view), site)


def test_a_conflict_costs_one_more_replace(site: Site) -> None:
    browser = start(site)
    if Capability.COMPARE_AND_SWAP not in site.backend.capabilities:
        pytest.skip("needs compare-and-swap")
    other = site.browser()
    other.cookie = browser.cookie
    calls: dict[str, int] = {}

    def slow() -> None:
        session["slow"] = 1
        other.visit(lambda: session.update(fast=1))
        site.backend.reset()

    browser.visit(slow)
    calls.update(site.backend.calls)
    assert calls == {"replace": 2}


def test_a_destroyed_session_stays_destroyed(site: Site) -> None:
    browser, cookie = overlap(
        site, lambda: session.update(slow=1), lambda: typed_session.destroy()
    )
    assert cookie == "none"
    assert browser.cookie is None


def test_a_session_is_not_forked_by_a_rotation(site: Site) -> None:
    browser, cookie = overlap(
        site,
        lambda: session.update(slow=1),
        lambda: session.update(_user_id="ada"),
    )
    assert cookie == "none"
    assert browser.read() == {"n": 1, "_user_id": "ada"}


def test_of_two_rotations_at_once_one_wins(site: Site) -> None:
    browser, cookie = overlap(
        site,
        lambda: typed_session.regenerate(),
        lambda: session.update(_user_id="ada"),
    )
    assert cookie == "none"
    assert browser.read() == {"n": 1, "_user_id": "ada"}
    if Capability.COUNT in site.backend.capabilities:
        assert site.backend.count() == 1


def test_a_rotation_keeps_what_another_request_added_meanwhile(site: Site) -> None:
    if Capability.COMPARE_AND_SWAP not in site.backend.capabilities:
        pytest.skip("needs compare-and-swap")
    browser = start(site)
    other = site.browser()
    other.cookie = browser.cookie

    def log_in() -> None:
        session["_user_id"] = "ada"
        other.visit(lambda: session.update(cart=["apple"]))

    browser.visit(log_in)
    assert browser.read() == {"n": 1, "_user_id": "ada", "cart": ["apple"]}


def test_removing_the_last_key_does_not_remove_what_another_request_adds(
    site: Site,
) -> None:
    browser, cookie = overlap(
        site, lambda: session.pop("n"), lambda: session.update(cart=["apple"])
    )
    assert cookie == "set"
    assert browser.read() == {"cart": ["apple"]}


def test_an_application_is_freed_as_soon_as_nobody_uses_it() -> None:
    """As Flask's own ``test_app_freed_on_zero_refcount`` asks for."""
    gc.collect()
    gc.disable()
    try:
        app = flask.Flask("freed")
        app.config.update(SECRET_KEY="a secret", SESSION_BACKEND="memory", TESTING=True)
        app.config.update(
            SESSION_MIGRATE_FROM="cookie", SESSION_MIGRATE_UNTIL="2999-01-01"
        )
        ServerSession(app)
        app.add_url_rule("/", view_func=lambda: session.update(n=1) or "")
        assert app.test_client().get("/").status_code == 200
        gone = weakref.ref(app)
        del app
        assert gone() is None
    finally:
        gc.enable()
