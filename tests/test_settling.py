"""What a session is settled with: what is logged, asked for and said when it fails."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Iterator

import pytest
from flask import Response
from flask import session
from flask import stream_with_context

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import ServerSessionError
from flask_serversession import SessionLostError
from flask_serversession import session as typed_session
from flask_serversession.signals import backend_failed
from flask_serversession.signals import session_destroyed
from flask_serversession.signals import session_lost
from flask_serversession.signals import session_saved

from .site import Action
from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of
from .site import handle_of
from .site import key
from .site import start


def make_site(**settings: t.Any) -> Site:
    return Site({"SESSION_BACKEND": "memory"}, **settings)


def streaming(action: Action) -> Action:
    """Give a view whose action runs when the response was settled."""

    def view() -> Response:
        def stream() -> Iterator[str]:
            yield str(action())

        return Response(stream_with_context(stream()))

    return view


# In the log


def change_inside() -> None:
    session["items"].append(1)


def clear_and_write() -> None:
    session.clear()
    session["m"] = 1


def force() -> None:
    session.modified = True


def write_and_force() -> None:
    session["n"] = 2
    session.modified = True


def force_and_save() -> None:
    session.modified = True
    typed_session.save()
    session["n"] = 2


REASONS: dict[str, tuple[Action, dict[str, t.Any], str]] = {
    "key": (lambda: session.update(n=2), {}, "saved: key changed"),
    "inside": (change_inside, {}, "saved: nested change"),
    "lifetime": (
        lambda: setattr(typed_session, "lifetime", 9),
        {},
        "saved: lifetime changed",
    ),
    "modified": (force, {}, "saved: 'modified' was set"),
    "key, then modified": (write_and_force, {}, "saved: key changed"),
    "atomic": (
        lambda: typed_session.atomic(lambda own: own.update(n=2)),
        {},
        "saved: atomic() was called",
    ),
    "resave": (lambda: session["n"], {"SESSION_RESAVE": True}, "saved: resave"),
    "destroy": (lambda: typed_session.destroy(), {}, "ended"),
    "pop": (lambda: [session.pop(name) for name in list(session)], {}, "ended"),
    "regenerate": (
        lambda: typed_session.regenerate(),
        {},
        "rotated to {}: regenerate() was called",
    ),
    "start over": (
        lambda: (typed_session.regenerate(keep_data=False), session.update(m=1)),
        {},
        "rotated to {}: regenerate() was called",
    ),
    "clear": (clear_and_write, {}, "rotated to {}: it was emptied and written again"),
    "log-in": (
        lambda: session.update(_user_id="ada"),
        {},
        "rotated to {}: the user changed",
    ),
    "renewal": (
        lambda: session["n"],
        {"SESSION_RENEWAL_INTERVAL": 50},
        "rotated to {}: it is as old as 'SESSION_RENEWAL_INTERVAL'",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_became_of_a_session_is_in_the_log_with_the_reason(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    action, settings, expected = REASONS[name]
    site = make_site(SESSION_TOUCH_INTERVAL=1000, **settings)
    browser = start(site, n=1, items=[])
    before = handle_of(browser)
    advance(site, 50)
    with caplog.at_level(logging.DEBUG, "flask_serversession"):
        caplog.clear()
        browser.visit(action)
    after = handle_of(browser) if browser.cookie else ""
    messages = [record.getMessage() for record in caplog.records]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    expected = f"Session {before} {expected.format(after)}"
    assert len(messages) == 1
    assert messages[0].startswith(expected)
    if not expected.endswith(" "):
        assert messages[0] == expected


def test_each_save_of_a_request_has_its_own_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    browser = start(make_site(), n=1)
    with caplog.at_level(logging.DEBUG, "flask_serversession"):
        caplog.clear()
        browser.visit(force_and_save)
    reasons = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert reasons == ["'modified' was set", "key changed"]


def test_a_new_session_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    browser = make_site().browser()
    with caplog.at_level(logging.DEBUG, "flask_serversession"):
        caplog.clear()
        browser.set(n=1)
    (record,) = caplog.records
    assert record.getMessage() == f"Session {handle_of(browser)} saved: new"


def test_a_rotation_that_was_begun_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Also if what it was begun for has been taken back by another request."""
    site = make_site()
    browser = start(site, n=1)
    other = browser.twin()

    def meet() -> None:
        del site.backend.before["replace"]
        other.set(_user_id="ada")

    def log_in() -> None:
        session["_user_id"] = "ada"
        site.backend.before["replace"] = meet

    response = browser.visit(log_in)
    assert response.status_code == 200
    assert cookie_of(response, site) == "none"


@pytest.mark.parametrize("policy", ["drop", "raise"])
def test_a_loss_is_logged_told_and_perhaps_raised(
    policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(SESSION_ON_LOST=policy)
    browser = start(site, n=1)
    name, twin = handle_of(browser), browser.twin()
    heard: list[tuple[t.Any, t.Any]] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append((values["handle"], values["user"]))

    def view() -> None:
        session["n"] = 2
        twin.visit(lambda: typed_session.destroy())

    with session_lost.connected_to(hear, site.app):
        caplog.clear()
        with caplog.at_level(logging.INFO, "flask_serversession"):
            if policy == "raise":
                with pytest.raises(SessionLostError) as caught:
                    browser.visit(view)
                assert str(caught.value) == (
                    "Another request ended the session, or gave it a new id, while"
                    " this one ran; its changes are dropped."
                )
            else:
                assert cookie_of(browser.visit(view), site) == "none"
    assert heard == [(name, None)]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("flask_serversession", "INFO")
    assert record.getMessage() == (
        f"Session {name} was ended or rotated by another request; the changes of this"
        " one are dropped."
    )


# After the response


def test_a_new_session_cannot_be_stored_after_the_response() -> None:
    def act() -> str:
        session["n"] = 1
        with pytest.raises(ServerSessionError) as caught:
            typed_session.save()
        return str(caught.value)

    assert make_site().browser().visit(streaming(act)).text == (
        "The session is new and the response was already sent, so the browser cannot"
        " learn its id. Write to the session before the response begins."
    )


def test_no_new_id_can_be_asked_for_after_the_response() -> None:
    browser = start(make_site(), n=1)

    def act() -> str:
        with pytest.raises(ServerSessionError) as caught:
            typed_session.regenerate()
        return str(caught.value)

    assert browser.visit(streaming(act)).text == (
        "regenerate() came after the response was sent; the browser cannot learn the"
        " new id any more. Call it before the response begins."
    )


@pytest.mark.parametrize("is_looked_at", [True, False])
@pytest.mark.parametrize("seconds", [10, 60])
def test_a_touch_after_the_response_is_carried_out_at_once_if_it_is_due(
    is_looked_at: bool, seconds: float
) -> None:
    site = make_site(SESSION_TOUCH_INTERVAL=60)
    browser = start(site, n=1)
    advance(site, seconds)

    def act() -> str:
        if is_looked_at:
            assert session["n"] == 1
        with site.backend.counting() as calls:
            typed_session.touch()
        return str(calls["touch"])

    assert browser.visit(streaming(act)).text == ("1" if seconds == 60 else "0")


def test_a_new_session_is_not_touched_after_the_response() -> None:
    site = make_site(SESSION_TOUCH_INTERVAL=0)

    def act() -> None:
        session.get("n")
        typed_session.touch()

    with site.backend.counting() as calls:
        site.browser().visit(streaming(act))
    assert calls == {}


# What the engine was asked for when it failed


FAILURES: dict[str, tuple[Action, list[str]]] = {
    "load": (lambda: session["n"], ["load"]),
    "replace": (lambda: session.update(n=2), ["replace"]),
    "create": (lambda: typed_session.regenerate(), ["create"]),
    "delete": (lambda: typed_session.destroy(), ["delete"]),
}


@pytest.mark.parametrize("operation", FAILURES)
def test_the_operation_that_failed_is_told_once(operation: str) -> None:
    action, expected = FAILURES[operation]
    site = make_site()
    browser = start(site, n=1)
    heard: list[str] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append(values["operation"])

    with (
        site.backend.failing(operation),
        backend_failed.connected_to(hear, site.app),
    ):
        assert browser.visit(action).status_code == 503
    assert heard == expected


def test_a_look_that_fails_after_the_session_was_seen_is_told_too() -> None:
    site = make_site()
    browser = start(site, n=1)
    heard: list[str] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append(values["operation"])

    def reload() -> None:
        assert session["n"] == 1
        with site.backend.failing("load"):
            typed_session.reload()

    gone = start(site, n=2)
    site.backend.delete(key(gone))
    with backend_failed.connected_to(hear, site.app):
        assert browser.visit(reload).status_code == 503
        with site.backend.failing("load"):
            # It is not there to be deleted, and what is there cannot be told.
            assert gone.visit(lambda: typed_session.destroy()).status_code == 503
    assert heard == ["load", "load"]


# What a session is afterwards


def test_reload_takes_what_is_there_and_forgets_what_was_changed() -> None:
    site = make_site(SESSION_ABSOLUTE_TIMEOUT=100)
    browser = start(site, n=1)
    twin = browser.twin()

    def view() -> None:
        session["n"] = 2
        typed_session.lifetime = 5
        twin.set(m=1)
        typed_session.reload()
        assert dict(session) == {"n": 1, "m": 1}
        assert typed_session.lifetime is None
        assert session.modified is False

    assert browser.costs(view)[0] == {"load": 3, "replace": 1}

    def too_late() -> None:
        assert session["n"] == 1
        advance(site, 100)
        typed_session.reload()
        assert dict(session) == {}

    assert cookie_of(browser.visit(too_late), site) == "none"


def test_reload_of_what_is_not_stored_begins_again() -> None:
    site = make_site()

    def view() -> None:
        session["n"] = 1
        typed_session.reload()
        assert dict(session) == {}

    assert site.browser().costs(view) == ({}, "none")


def test_reload_without_a_look_before_is_a_look() -> None:
    browser = start(make_site(), n=1)

    def view() -> None:
        typed_session.reload()
        assert session["n"] == 1

    assert browser.costs(view) == ({"load": 1}, "none")


def test_what_was_ended_is_told_with_its_user_and_leaves_no_wish() -> None:
    site = make_site()
    browser = start(site, _user_id="ada", items=[])
    name = handle_of(browser)
    heard: list[tuple[t.Any, t.Any]] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append((values["handle"], values["user"]))

    def view() -> None:
        items = session["items"]
        typed_session.destroy()
        items.append(1)
        assert session.new
        assert typed_session.id != ""

    with session_destroyed.connected_to(hear, site.app):
        assert browser.costs(view) == ({"load": 1, "delete": 1}, "deleted")
    assert heard == [(name, "ada")]


def test_of_several_cookies_the_first_that_is_there_is_ended() -> None:
    site = make_site()
    gone, live, other = start(site, n=1), start(site, n=2), start(site, n=3)
    keys = [key(browser) for browser in (live, other)]
    site.backend.delete(key(gone))
    cookies = "; ".join(f"session={b.cookie}" for b in (gone, live, other))
    response = site.browser().visit(
        lambda: typed_session.destroy(), headers={"Cookie": cookies}
    )
    assert response.status_code == 200
    assert [site.backend.load(key) is None for key in keys] == [True, False]


def test_a_receiver_that_ends_what_was_saved_has_the_last_word() -> None:
    site = make_site()
    browser = start(site, n=1)
    name = key(browser)

    def end(sender: object, **values: t.Any) -> None:
        assert site.extension.revoke(values["handle"])

    with session_saved.connected_to(end, site.app):
        response = browser.set(n=2)
    assert cookie_of(response, site) == "none"
    assert site.backend.load(name) is None


# A passive request that has taken its time


def change_slowly(site: Site, meanwhile: Action) -> Action:
    """Give a view that changes the session and is passive, while something happens."""

    def view() -> None:
        typed_session.passive()
        session["n"] = 2
        advance(site, 1)
        meanwhile()

    return view


def test_what_a_passive_request_changes_is_merged_with_what_it_meets() -> None:
    site = make_site()
    browser = start(site, n=1)
    other = browser.twin()
    browser.visit(change_slowly(site, lambda: other.set(m=1)))
    assert browser.read() == {"n": 2, "m": 1}


@pytest.mark.parametrize("is_buried", [True, False])
def test_what_a_passive_request_changes_is_lost_with_the_session(
    is_buried: bool,
) -> None:
    site = make_site()
    browser = start(site, n=1)
    other, lost = browser.twin(), []

    def end() -> None:
        other.visit(
            lambda: typed_session.regenerate() if is_buried else typed_session.destroy()
        )

    with session_lost.connected_to(lambda *_, **__: lost.append(1), site.app):
        assert cookie_of(browser.visit(change_slowly(site, end)), site) == "none"
    assert lost == [1]


def test_a_passive_request_whose_look_fails_says_what_it_asked_for() -> None:
    site = make_site()
    browser = start(site, n=1)
    heard: list[str] = []

    def hear(sender: object, **values: t.Any) -> None:
        heard.append(values["operation"])

    def fail() -> None:
        raise BackendUnavailableError("It failed.")

    def meanwhile() -> None:
        site.backend.before["load"] = fail

    with backend_failed.connected_to(hear, site.app):
        response = browser.visit(change_slowly(site, meanwhile))
    assert response.status_code == 503
    assert heard == ["load"]


# Conflicts in a row


def meet(site: Site, other: Browser, last: Action) -> None:
    """Let another request store something twice, and then something else happen."""
    turns = iter([1, 2])

    def before_replace() -> None:
        if (turn := next(turns, None)) is None:
            return
        other.set(m=turn)
        if turn == 2:
            site.backend.before["load"] = before_load

    def before_load() -> None:
        del site.backend.before["load"]
        last()

    site.backend.before["replace"] = before_replace


def test_a_session_that_ends_while_a_request_waits_for_another_is_lost() -> None:
    for end in (lambda: typed_session.regenerate(), lambda: typed_session.destroy()):
        site = make_site()
        browser = start(site, n=1)
        other = browser.twin()
        lost: list[object] = []

        def change(
            site: Site = site, other: Browser = other, end: Action = end
        ) -> None:
            session["n"] = 2
            meet(site, other, lambda: other.visit(end))

        with session_lost.connected_to(
            lambda *_, lost=lost, **__: lost.append(1), site.app
        ):
            assert cookie_of(browser.visit(change), site) == "none"
        assert lost == [1]


@pytest.mark.parametrize("is_log_out", [True, False])
@pytest.mark.parametrize("reason", ["damaged", "newer"])
def test_what_cannot_be_read_after_a_conflict_is_lost_but_no_log_out_is(
    reason: t.Any, is_log_out: bool
) -> None:
    site = make_site()
    browser = start(site, n=1, _user_id="ada")
    other = browser.twin()
    lost: list[object] = []

    def fail() -> None:
        raise RecordError("It is broken.", reason)

    def change() -> None:
        session["n"] = 2
        if is_log_out:
            typed_session.regenerate(keep_data=False)
            session["n"] = 2
        meet(site, other, fail)

    with session_lost.connected_to(lambda *_, **__: lost.append(1), site.app):
        response = browser.visit(change)
    if is_log_out and reason == "newer":
        assert response.status_code == 503
        assert lost == []
    else:
        assert response.status_code == 200
        assert cookie_of(response, site) == "none"
        assert lost == [1]
    assert site.backend.count() == 1  # no successor is left


# What else a session asks for


def test_what_was_destroyed_was_not_modified() -> None:
    browser = start(make_site(), n=1)

    def view() -> None:
        session["n"] = 2
        typed_session.destroy()
        assert session.modified is False

    assert browser.costs(view) == ({"load": 1, "delete": 1}, "deleted")


def test_a_new_session_that_is_destroyed_is_another_one() -> None:
    def view() -> None:
        session["n"] = 1
        typed_session.lifetime = 9
        former = typed_session.id
        typed_session.destroy()
        assert typed_session.id not in ("", former)
        assert typed_session.lifetime is None
        assert dict(session) == {}

    assert make_site().browser().costs(view) == ({}, "none")


def test_a_new_session_gets_a_new_id_when_it_is_asked_for() -> None:
    def view() -> None:
        session["n"] = 1
        former = typed_session.id
        typed_session.regenerate()
        assert typed_session.id not in ("", former)

    assert make_site().browser().costs(view) == ({"create": 1}, "set")


def test_who_starts_over_tells_nothing_of_the_former_session() -> None:
    site = make_site()
    browser = start(site, n=1)
    browser.visit(lambda: typed_session.meta.update(device="phone"))

    def start_over() -> None:
        typed_session.regenerate(keep_data=False)
        session["m"] = 1
        assert dict(typed_session.meta) == {}

    browser.visit(start_over)
    record = site.backend.load(key(browser))
    assert record is not None
    assert "device" not in record.meta


def test_reload_forgets_the_lifetime_of_a_new_session() -> None:
    def view() -> None:
        session["n"] = 1
        typed_session.lifetime = 9
        typed_session.reload()
        assert typed_session.lifetime is None

    assert make_site().browser().costs(view) == ({}, "none")


def test_reload_does_not_begin_another_session_where_one_has_gone() -> None:
    site = make_site()
    browser = start(site, n=1)
    late = browser.twin()
    browser.visit(lambda: typed_session.regenerate())

    def view() -> None:
        session["n"] = 2
        typed_session.reload()
        assert dict(session) == {}
        session["n"] = 3

    calls, cookie = late.costs(view)
    assert (calls.get("create", 0), cookie) == (0, "none")


def test_what_was_written_twice_is_gone_on_with() -> None:
    """By a driver that has lost the first answer, and asks again."""
    site = make_site()
    browser = start(site, n=1)
    inner = t.cast("t.Any", site.backend.backend)
    replace = type(inner).replace

    def replace_twice(*args: t.Any) -> t.Any:
        replace(inner, *args)
        return replace(inner, *args)

    def view() -> None:
        for number in (2, 3):
            session["n"] = number
            typed_session.save()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inner, "replace", replace_twice)
        assert browser.costs(view)[0] == {"load": 1, "replace": 2}
    assert browser.read() == {"n": 3}


def test_a_log_out_that_only_a_newer_version_could_carry_out_fails() -> None:
    site = make_site()
    browser = start(site, n=1, _user_id="ada")
    late = browser.twin()
    browser.visit(lambda: typed_session.regenerate())
    successor = key(browser)
    inner = t.cast("t.Any", site.backend.backend)
    delete = type(inner).delete

    def refuse(name: str) -> bool:
        if name == successor:
            raise RecordError("It is newer.", "newer")
        return bool(delete(inner, name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inner, "delete", refuse)
        assert late.visit(lambda: typed_session.destroy()).status_code == 503
    assert browser.read() == {"n": 1, "_user_id": "ada"}


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("reason", ["damaged", "newer"])
def test_a_log_out_that_meets_a_new_id_is_lost_unless_a_newer_version_has_it(
    reason: t.Any, rotates: bool
) -> None:
    site = make_site(SESSION_REGENERATE_ON_LOGIN=rotates)
    browser = start(site, n=1, _user_id="ada")
    late, lost = browser.twin(), []
    inner = t.cast("t.Any", site.backend.backend)
    delete = type(inner).delete

    def refuse(name: str) -> bool:
        if name == key(browser):
            raise RecordError("It is broken.", reason)
        return bool(delete(inner, name))

    def log_out() -> None:
        del session["_user_id"]
        browser.visit(lambda: typed_session.regenerate())

    with (
        pytest.MonkeyPatch.context() as patch,
        session_lost.connected_to(lambda *_, **__: lost.append(1), site.app),
    ):
        patch.setattr(inner, "delete", refuse)
        response = late.visit(log_out)
    assert response.status_code == (503 if reason == "newer" else 200)
    assert cookie_of(response, site) == "none"
    assert lost == ([] if reason == "newer" else [1])
