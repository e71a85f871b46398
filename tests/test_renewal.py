"""An id that is renewed logs nobody out: who still has it works on the successor.

The bad moment is forced, by barriers inside of views and before operations of the
backend.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import typing as t
from collections.abc import Callable
from collections.abc import Iterator

import flask
import pytest
from flask import session as flask_session
from werkzeug.test import TestResponse

from flask_serversession import BackendUnavailableError
from flask_serversession import Capability
from flask_serversession import session
from flask_serversession import session_lost
from flask_serversession import session_rejected
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.record import key_of
from flask_serversession.testing import FakeClock

from .backend_configs import Config
from .figures import add_counts
from .site import Action
from .site import Browser
from .site import Site
from .site import advance
from .site import cookie_of
from .test_concurrency import WAIT
from .test_concurrency import closers
from .test_concurrency import together

INTERVAL = 1000.0
GRACE = 10.0
TEN = 10

#: How many interleavings each test has forced; shown at the end.
forced: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def _show_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    forced.clear()
    yield
    add_counts(request.node, "interleavings forced", forced)


@pytest.fixture
def make_site(backend_config: Config) -> Iterator[Callable[..., Site]]:
    client = getattr(backend_config.get("SESSION_CACHELIB"), "_client", None)
    if client is not None:
        closers.append(client.disconnect_all)
    settings = {"SESSION_RENEWAL_INTERVAL": INTERVAL}
    yield lambda **more: Site(backend_config, **{**settings, **more})
    closers.clear()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def in_memory(**settings: t.Any) -> Site:
    clock = FakeClock()
    settings.setdefault("SESSION_RENEWAL_INTERVAL", INTERVAL)
    return Site({"SESSION_BACKEND": MemoryBackend(clock)}, clock, **settings)


def aged(site: Site, **values: t.Any) -> Browser:
    """Give a browser of a user, whose id is about to be renewed."""
    browser = site.browser()
    browser.set(user_id="ada", **values)
    advance(site, INTERVAL)
    return browser


def renewed(site: Site, **values: t.Any) -> tuple[Browser, Browser]:
    """Give a browser whose id was renewed, and one that still has the old one."""
    browser = aged(site, **values)
    late = browser.twin()
    former = browser.id
    browser.read()
    assert browser.id != former
    forced["arrives after a renewal"] += 1
    return browser, late


def count(site: Site) -> int | None:
    if Capability.COUNT not in site.backend.capabilities:
        return None
    return site.backend.count()


def rejections(site: Site) -> list[str]:
    reasons: list[str] = []

    def note(app: flask.Flask, reason: str, **_: t.Any) -> None:
        reasons.append(reason)

    session_rejected.connect(note, site.app, weak=False)
    return reasons


def losses(site: Site) -> list[object]:
    lost: list[object] = []

    def note(app: flask.Flask, **values: t.Any) -> None:
        lost.append(values)

    session_lost.connect(note, site.app, weak=False)
    return lost


# Ten at once


def visit_with(browser: Browser, view: Action) -> tuple[Browser, TestResponse]:
    twin = browser.twin()
    return twin, twin.visit(view)


def check_that_all_was_kept(
    site: Site, browser: Browser, visits: list[tuple[Browser, TestResponse]]
) -> None:
    """All were answered for the same user, one has renewed, and nothing is lost."""
    assert [response.text for _, response in visits] == ["ada"] * TEN
    sent = [cookie_of(response, site) for _, response in visits]
    assert sorted(sent) == ["none"] * (TEN - 1) + ["set"]
    renewing = visits[sent.index("set")][0]
    assert renewing.id != browser.id
    content = renewing.read()
    assert content.pop("user_id") == "ada"
    assert content.pop("list") == [0]
    assert content == {f"k{number}": number for number in range(TEN)}
    assert count(site) in (1, None)
    renewing.visit(lambda: session.destroy())


def change(number: int) -> str:
    flask_session[f"k{number}"] = number
    if number == 0:
        flask_session["list"].append(0)
    return str(session.user)


def test_ten_requests_at_once_of_which_one_renews_lose_nothing(site: Site) -> None:
    lost, rejected = losses(site), rejections(site)
    for renewing in range(3):
        browser = aged(site, list=[])
        has_renewed = threading.Event()
        # All have sent the old id; one has got its answer before the others look.
        barrier = threading.Barrier(TEN)

        def visit(
            number: int,
            browser: Browser = browser,
            barrier: threading.Barrier = barrier,
            has_renewed: threading.Event = has_renewed,
            renewing: int = renewing,
        ) -> tuple[Browser, TestResponse]:
            def view() -> str:
                barrier.wait(WAIT)
                if number != renewing:
                    assert has_renewed.wait(WAIT)
                return change(number)

            try:
                return visit_with(browser, view)
            finally:
                if number == renewing:
                    has_renewed.set()

        visits = together(*(functools.partial(visit, n) for n in range(TEN)))
        check_that_all_was_kept(site, browser, visits)
        assert cookie_of(visits[renewing][1], site) == "set"
        forced["arrive after a renewal, ten at once"] += 1
    assert (lost, rejected) == ([], [])


@pytest.mark.parametrize("is_read_only", [False, True], ids=["changing", "reading"])
def test_ten_requests_that_had_all_loaded_before_lose_nothing(
    site: Site, is_read_only: bool
) -> None:
    lost = losses(site)
    for _ in range(3):
        browser = aged(site, list=[])
        barrier = threading.Barrier(TEN)

        def view(number: int, barrier: threading.Barrier = barrier) -> str:
            assert flask_session["user_id"] == "ada"
            barrier.wait(WAIT)
            return str(session.user) if is_read_only else change(number)

        visits = together(
            *(
                functools.partial(visit_with, browser, functools.partial(view, n))
                for n in range(TEN)
            )
        )
        if is_read_only:
            for twin, response in visits:
                if cookie_of(response, site) == "set":
                    twin.set(list=[0], **{f"k{n}": n for n in range(TEN)})
        check_that_all_was_kept(site, browser, visits)
        forced["had loaded before a renewal, ten at once"] += 1
    assert lost == []


def test_ten_requests_that_meet_at_the_swap_lose_nothing(site: Site) -> None:
    """All have made a successor before any has put its tombstone in place."""
    browser = aged(site, list=[])
    barrier = threading.Barrier(TEN)
    met = threading.local()

    def wait() -> None:
        if not getattr(met, "once", False):
            met.once = True
            barrier.wait(WAIT)

    def view(number: int) -> str:
        assert flask_session["user_id"] == "ada"
        return change(number)

    site.backend.before["replace"] = wait
    try:
        visits = together(
            *(
                functools.partial(visit_with, browser, functools.partial(view, n))
                for n in range(TEN)
            )
        )
    finally:
        del site.backend.before["replace"]
    check_that_all_was_kept(site, browser, visits)
    forced["meet at the swap of a renewal, ten at once"] += 1


# Who arrives with an id that was renewed


def test_who_arrives_reads_and_changes_the_successor_and_sends_no_cookie(
    site: Site,
) -> None:
    browser, late = renewed(site, n=1)
    cost, cookie = late.costs(lambda: flask_session["n"])
    assert (cost, cookie) == ({"load": 2}, "none")
    cost, cookie = late.costs(lambda: flask_session.update(m=2))
    assert (cost, cookie) == ({"load": 2, "replace": 1}, "none")
    assert browser.read() == {"user_id": "ada", "n": 1, "m": 2}


@pytest.mark.parametrize("permanent", [False, True])
def test_it_may_do_all_that_a_request_does_without_a_cookie(
    site: Site, permanent: bool
) -> None:
    doings: dict[str, Action] = {
        "saves": lambda: (flask_session.update(m=2), session.save()),
        "counts": lambda: session.atomic(lambda own: own.update(m=2)),
        "reloads": lambda: (session.reload(), flask_session.update(m=2)),
        "nests": lambda: flask_session["nested"].update(m=2),
        "touches": lambda: session.touch(),
        "looks at nothing": lambda: None,
        "is permanent": lambda: setattr(session, "permanent", permanent),
        "lives longer": lambda: setattr(session, "lifetime", 86_400),
    }
    for name, action in doings.items():
        browser, late = renewed(site, nested={}, _permanent=permanent)
        assert cookie_of(late.visit(action), site) == "none", name
        content = browser.read()
        assert content["user_id"] == "ada"
        if name in ("saves", "counts", "reloads"):
            assert content["m"] == 2
        if name == "nests":
            assert content["nested"] == {"m": 2}
        forced["arrives after a renewal, and acts"] += 1


def test_a_chain_of_renewals_is_followed_as_far_as_it_goes(site: Site) -> None:
    quick = Site(
        {"SESSION_BACKEND": site.backend.backend},
        site.clock,
        SESSION_RENEWAL_INTERVAL=1,
        SESSION_KEY_PREFIX=site.state.config.key_prefix,
    )
    browser = quick.browser()
    browser.set(user_id="ada")
    late = browser.twin()
    ids = {browser.id}
    for _ in range(3):
        advance(site, 2)
        browser.read()
        ids.add(browser.id)
    assert len(ids) == 4
    assert late.read() == {"user_id": "ada"}
    forced["arrives after several renewals"] += 1
    browser.visit(lambda: session.regenerate())
    assert late.read() == {}
    assert browser.read() == {"user_id": "ada"}


def test_without_a_grace_nothing_is_followed(make_site: Callable[..., Site]) -> None:
    _, late = renewed(make_site(SESSION_ROTATION_GRACE=0))
    assert late.read() == {}


def test_after_the_grace_the_id_opens_nothing(site: Site) -> None:
    browser, late = renewed(site)
    rejected = rejections(site)
    advance(site, GRACE)
    assert late.read() == {}
    assert len(rejected) == 1
    assert browser.read() == {"user_id": "ada"}


PRIVILEGED: dict[str, Action] = {
    "a new id": lambda: session.regenerate(),
    "a proof": lambda: session.mark_authenticated(),
    "a log-in": lambda: flask_session.update(user_id="bob"),
    "a log-out": lambda: flask_session.pop("user_id"),
    "a new session": lambda: session.regenerate(keep_data=False),
    "emptied": lambda: (flask_session.clear(), flask_session.update(user_id="ada")),
}


@pytest.mark.parametrize("name", PRIVILEGED)
def test_after_anything_else_the_old_id_opens_nothing(site: Site, name: str) -> None:
    # At the moment at which a renewal is due as well.
    browser = aged(site, n=1)
    first = browser.twin()
    browser.visit(PRIVILEGED[name])
    assert first.read() == {}
    # And where a renewal came before.
    browser, late = renewed(site, n=1)
    browser.visit(PRIVILEGED[name])
    assert late.read() == {}
    assert cookie_of(late.visit(lambda: flask_session.update(m=2)), site) == "none"
    assert "m" not in browser.read()
    forced["arrives after something else"] += 2


@pytest.mark.parametrize("name", PRIVILEGED)
def test_a_new_id_that_it_asks_for_itself_reaches_the_browser(
    site: Site, name: str
) -> None:
    browser, late = renewed(site, n=1)

    def view() -> None:
        assert flask_session["n"] == 1
        PRIVILEGED[name]()
        flask_session["m"] = 2

    assert cookie_of(late.visit(view), site) == "set"
    assert late.read()["m"] == 2
    assert browser.read() == {}
    assert count(site) in (1, None)


def test_a_planted_id_gets_no_part_in_a_log_in_that_is_taken_back() -> None:
    """``modified = False`` keeps a change from being saved, but not a new id."""
    site = in_memory()
    browser = site.browser()
    browser.set(n=1)
    planted = browser.twin()

    def view() -> None:
        flask_session["user_id"] = "ada"
        flask_session.modified = False

    browser.visit(view)
    assert planted.read() == {}


def test_a_user_who_is_found_by_other_settings_is_not_logged_out() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock)
    before = Site({"SESSION_BACKEND": backend}, clock, SESSION_USER_KEY="account")
    after = Site({"SESSION_BACKEND": backend}, clock)
    browser = before.browser()
    browser.set(user_id="ada")
    cookie, browser = browser.cookie, after.browser()
    browser.cookie = cookie
    late = browser.twin()
    former = browser.id
    browser.read()
    assert browser.id != former
    assert late.read() == {"user_id": "ada"}


# Log-outs


LOG_OUTS: dict[str, Action] = {
    "destroys": lambda: session.destroy(),
    "empties": lambda: flask_session.clear(),
    "looks and destroys": lambda: (session.user, session.destroy()),
    "looks and empties": lambda: (session.user, flask_session.clear()),
    "removes all": lambda: [flask_session.pop(key) for key in [*flask_session]],
}


@pytest.mark.parametrize("name", LOG_OUTS)
@pytest.mark.parametrize("has_loaded", [False, True])
@pytest.mark.parametrize("renewals", [1, 2])
def test_a_log_out_by_the_old_id_ends_the_successor(
    site: Site, name: str, has_loaded: bool, renewals: int
) -> None:
    quick = Site(
        {"SESSION_BACKEND": site.backend.backend},
        site.clock,
        SESSION_RENEWAL_INTERVAL=2,
        SESSION_KEY_PREFIX=site.state.config.key_prefix,
    )
    browser = quick.browser()
    browser.set(user_id="ada")
    late = browser.twin()

    def renew() -> None:
        for _ in range(renewals):
            advance(site, 2)
            browser.read()

    def view() -> None:
        if has_loaded:
            assert flask_session["user_id"] == "ada"
            renew()
        LOG_OUTS[name]()

    if not has_loaded:
        renew()
    assert cookie_of(late.visit(view), quick) == "none"
    assert browser.read() == {}
    assert count(quick) in (0, None)
    forced["logs out by a renewed id"] += 1


def test_who_logs_out_with_a_message_gets_it_with_a_new_id(site: Site) -> None:
    for has_loaded in (False, True):
        browser, late = (aged(site),) * 2 if has_loaded else renewed(site)
        late = late.twin()

        def view(has_loaded: bool = has_loaded, browser: Browser = browser) -> None:
            assert flask_session["user_id"] == "ada"
            if has_loaded:
                browser.read()
            del flask_session["user_id"]
            flask.flash("Good bye.")

        assert cookie_of(late.visit(view), site) == "set"
        assert browser.read() == {}
        assert [*late.read()] == ["_flashes"]


@pytest.mark.parametrize(
    "end",
    [
        lambda: flask_session.clear(),
        lambda: session.destroy(),
        lambda: session.atomic(lambda own: own.destroy()),
        lambda: session.regenerate(keep_data=False),
    ],
    ids=["clear", "destroy", "atomic", "restart"],
)
@pytest.mark.parametrize("looks", [False, True], ids=["", "looks"])
@pytest.mark.parametrize("has_loaded", [False, True])
def test_who_ends_it_and_begins_another_one_gets_that_with_a_new_id(
    site: Site, end: Action, looks: bool, has_loaded: bool
) -> None:
    browser, late = (aged(site),) * 2 if has_loaded else renewed(site)
    late = late.twin()

    def view() -> None:
        if looks or has_loaded:
            assert flask_session["user_id"] == "ada"
        if has_loaded:
            browser.read()
        end()
        flask_session["user_id"] = "grace"

    assert cookie_of(late.visit(view), site) == "set"
    assert browser.read() == {}
    assert late.read() == {"user_id": "grace"}


# Who had loaded before, and meets the tombstone later

MEETING: dict[str, tuple[Action, dict[str, t.Any], str]] = {
    "changes": (lambda: flask_session.update(n=2), {"n": 2}, "none"),
    "nests": (
        lambda: flask_session["nested"].update(x=1),
        {"nested": {"x": 1}},
        "none",
    ),
    "saves": (lambda: (flask_session.update(n=2), session.save()), {"n": 2}, "none"),
    "counts": (lambda: session.atomic(lambda own: own.update(n=2)), {"n": 2}, "none"),
    "reloads": (
        lambda: (session.reload(), flask_session.update(n=flask_session["m"])),
        {"n": 5},
        "none",
    ),
    "removes": (lambda: flask_session.pop("nested"), {"nested": None}, "none"),
    "reads": (lambda: flask_session["n"], {}, "none"),
    "logs in": (lambda: flask_session.update(user_id="bob"), {"user_id": "bob"}, "set"),
    "asks for an id": (lambda: session.regenerate(), {}, "set"),
    "proves it": (lambda: session.mark_authenticated(), {}, "set"),
}


@pytest.mark.parametrize("name", MEETING)
@pytest.mark.parametrize("policy", ["merge", "overwrite", "raise"])
@pytest.mark.parametrize("is_due", [True, False])
def test_who_had_loaded_before_goes_on_at_the_successor(
    make_site: Callable[..., Site], name: str, policy: str, is_due: bool
) -> None:
    site = make_site(SESSION_CONFLICT=policy)
    lost = losses(site)
    browser = aged(site, n=1, nested={})
    if not is_due:  # for the late one: its settings are others
        slow = Site(
            {"SESSION_BACKEND": site.backend.backend},
            site.clock,
            SESSION_CONFLICT=policy,
            SESSION_KEY_PREFIX=site.state.config.key_prefix,
        )
        late = slow.browser()
        late.cookie = browser.cookie
    else:
        late = browser.twin()
    action, changed, cookie = MEETING[name]
    # What a request that changes something may not meet where "raise" is asked for.
    others = {"m": 5} if policy == "merge" or name in ("counts", "reads") else {}
    if name == "reloads":
        others = {"m": 5}

    def view() -> None:
        assert flask_session["n"] == 1
        browser.set(**others) if others else browser.read()
        action()

    response = late.visit(view)
    assert response.status_code == 200
    assert cookie_of(response, site) == cookie
    holder = late if cookie == "set" else browser
    expected = {"user_id": "ada", "n": 1, "nested": {}, **others, **changed}
    assert holder.read() == {k: v for k, v in expected.items() if v is not None}
    assert lost == []
    assert count(site) in (1, None)
    forced["had loaded before a renewal"] += 1


@pytest.mark.parametrize("operation", ["load", "create", "replace"])
@pytest.mark.parametrize("ending", ["a new id", "a log-in", "ended"])
def test_what_has_ended_after_the_renewal_stays_ended(
    site: Site, operation: str, ending: str
) -> None:
    browser = aged(site, n=1)
    late = browser.twin()

    def end() -> None:
        del site.backend.before[operation]
        if ending == "ended":
            with site.app.app_context():
                site.extension.revoke(key_of(browser.id, ""))
        else:
            browser.visit(PRIVILEGED[ending])

    def view() -> None:
        assert flask_session["n"] == 1
        browser.read()
        flask_session["m"] = 2
        site.backend.before[operation] = end

    response = late.visit(view)
    site.backend.before.pop(operation, None)
    assert cookie_of(response, site) == "none"
    content = browser.read()
    assert "m" not in content or operation == "load" or ending != "ended"
    if ending == "ended":
        assert content == {}
    assert count(site) in (0, 1, None)
    forced["ends after a renewal"] += 1


def test_an_engine_that_fails_on_the_way_loses_nothing_silently() -> None:
    site = in_memory()
    _, late = renewed(site)
    failures: list[int] = []

    def fail() -> None:
        failures.append(1)
        if len(failures) == 2:
            raise BackendUnavailableError("It is away.", backend="memory")

    site.backend.before["load"] = fail
    assert late.visit(lambda: flask_session.get("n")).status_code == 503
    del site.backend.before["load"]
    assert late.read() == {"user_id": "ada"}


def test_a_stream_that_had_begun_goes_on_at_the_successor() -> None:
    site = in_memory()
    browser = aged(site, n=1)
    late = browser.twin()

    def view() -> flask.Response:
        real = t.cast(t.Any, flask_session)._get_current_object()
        assert flask_session["n"] == 1
        browser.read()

        def generate() -> Iterator[str]:
            yield "begun"
            real["n"] = 2
            real.save()

        return flask.Response(generate())

    assert late.visit(view).text == "begun"
    assert browser.read()["n"] == 2


def test_a_conflict_beside_the_renewal_is_one_still() -> None:
    site = in_memory(SESSION_CONFLICT="raise", PROPAGATE_EXCEPTIONS=False)
    browser = aged(site, n=1)
    late = browser.twin()

    def view() -> None:
        assert flask_session["n"] == 1
        browser.set(n=2)
        flask_session["n"] = 3

    assert late.visit(view).status_code == 500
    assert browser.read()["n"] == 2


def test_its_own_session_is_the_current_one() -> None:
    site = in_memory()
    browser, late = renewed(site)

    def view() -> str:
        assert session.user == "ada"
        (info,) = site.extension.sessions_of("ada")
        assert info.current
        assert info.handle == session.handle == key_of(browser.id, "")
        return str(site.extension.revoke_user("ada", except_current=True))

    assert late.visit(view).text == "0"


def test_who_can_write_to_the_store_cannot_lead_to_somebody_elses_session() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_RENEWAL_INTERVAL=1)
    victim, thief, helper = (site.browser() for _ in range(3))
    victim.set(_user_id="ada", secret="hers")
    thief.set(_user_id="mallory")
    helper.set(_user_id="bob")
    prefix = site.state.config.key_prefix
    before = key_of(helper.id, prefix)
    t.cast(FakeClock, site.clock).advance(2)
    helper.visit(lambda: flask_session.get("_user_id"))
    tombstone = site.backend.load(before)
    assert tombstone is not None
    assert tombstone.is_tombstone
    handle = key_of(victim.id, "")
    stolen = key_of(thief.id, prefix)
    for meta in (
        {**tombstone.meta, "successor": handle},
        {"successor": handle, "renewed": "yes"},
        {"successor": handle, "renewed": "\udce9"},
        {"successor": handle, "renewed": "", "same_user": "yes"},
    ):
        current = site.backend.load(stolen)
        assert current is not None
        planted = dataclasses.replace(tombstone, meta=meta, version=current.version + 1)
        planted = dataclasses.replace(planted, expires_at=site.clock() + 10)
        site.backend.replace(stolen, planted, current.version)
        assert thief.read() == {}
    assert victim.read()["secret"] == "hers"
