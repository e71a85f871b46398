"""A log-out is one, or is not answered with a success, however it is spelled."""

from __future__ import annotations

import contextlib
import typing as t

import flask
import flask_login
import pytest
from flask import session as flask_session

from flask_serversession import BackendUnavailableError
from flask_serversession import RecordError
from flask_serversession import session
from flask_serversession import signals
from flask_serversession.backends.base import Backend
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.core import Core
from flask_serversession.logouts import LogOuts
from flask_serversession.logouts import changes_user
from flask_serversession.logouts import logs_out
from flask_serversession.logouts import refuse_newer
from flask_serversession.record import Record
from flask_serversession.testing import FakeClock
from flask_serversession.unit import Known
from flask_serversession.unit import Unit
from flask_serversession.unit import Wish

from .site import Action
from .site import Browser
from .site import Site
from .site import cookie_of


def pop_in_atomic() -> None:
    session.atomic(lambda own: own.pop("_user_id", None))


def pop_and_count() -> None:
    flask_session.pop("_user_id", None)
    session.atomic(lambda own: own.update(n=1))


def delete() -> None:
    with contextlib.suppress(KeyError):
        del flask_session["_user_id"]


def pop_all() -> None:
    with contextlib.suppress(KeyError):
        while True:
            flask_session.popitem()


def restart() -> None:
    session.regenerate(keep_data=False)


def remember_nobody() -> None:
    flask_session["_user_id"] = None


#: How applications log out.
LOG_OUTS: dict[str, Action] = {
    "clear": lambda: flask_session.clear(),
    "destroy": lambda: session.destroy(),
    "clear and destroy": lambda: (flask_session.clear(), session.destroy()),
    "clear and flash": lambda: (flask_session.clear(), flask.flash("Good bye.")),
    "pop": lambda: flask_session.pop("_user_id", None),
    "del": delete,
    "popitem": pop_all,
    "none": remember_nobody,
    "update": lambda: flask_session.update(_user_id=None),
    "start over": restart,
    "logout_user": lambda: flask_login.logout_user(),
    "atomic, clear": lambda: session.atomic(lambda own: own.clear()),
    "atomic, destroy": lambda: session.atomic(lambda own: own.destroy()),
    "atomic, pop": pop_in_atomic,
    "pop, atomic": pop_and_count,
}
log_outs = pytest.mark.parametrize("log_out", LOG_OUTS.values(), ids=[*LOG_OUTS])
is_looked_at = pytest.mark.parametrize("looks", [False, True], ids=["", "looked at"])


class NewerBackend(MemoryBackend):
    """Holds what a newer version has written, under the keys that it is told."""

    newer: t.Collection[str] = ()

    def _check(self, key: str) -> None:
        if key in self.newer:
            raise RecordError("The record has format 2; this version knows 1.", "newer")

    def load(self, key: str) -> Record | None:
        self._check(key)
        return super().load(key)

    def replace(self, key: str, record: Record, expected: int) -> t.Any:
        self._check(key)
        return super().replace(key, record, expected)

    def delete(self, key: str) -> bool:
        self._check(key)
        return super().delete(key)


def make_site(backend: Backend | None = None, **settings: t.Any) -> Site:
    clock = FakeClock()
    site = Site({"SESSION_BACKEND": backend or MemoryBackend(clock)}, clock, **settings)
    manager = flask_login.LoginManager(site.app)
    manager.user_loader(lambda id: flask_login.UserMixin())
    return site


def start(site: Site) -> Browser:
    browser = site.browser()
    browser.set(_user_id="ada", n=0)
    return browser


def then(log_out: Action, looks: bool, meanwhile: Action = lambda: None) -> Action:
    def act() -> str:
        if looks:
            assert flask_session.get("n") in (0, None)
        meanwhile()
        log_out()
        return "You are logged out."

    return act


@log_outs
@is_looked_at
@pytest.mark.parametrize("when", ["before", "in between"])
def test_a_log_out_at_a_newer_record_is_no_success(
    log_out: Action, looks: bool, when: str
) -> None:
    backend = NewerBackend(FakeClock())
    site = make_site(backend)
    browser = start(site)

    def appear() -> None:
        backend.newer = [key for key, _ in backend.iterate()]

    if when == "before":
        appear()
    response = browser.visit(then(log_out, looks, appear))
    assert (response.status_code, cookie_of(response, site)) == (503, "none")
    assert "Retry-After" in response.headers
    backend.newer = ()
    assert browser.read() == {"_user_id": "ada", "n": 0}
    assert backend.count() == 1


def test_a_view_that_hides_it_does_not_answer_success_either() -> None:
    backend = NewerBackend(FakeClock())
    site = make_site(backend)
    browser = start(site)
    backend.newer = [key for key, _ in backend.iterate()]

    def destroy() -> str:
        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match="newer version"):
                session.destroy()
        return "You are logged out."

    assert browser.visit(destroy).status_code == 503


@log_outs
@is_looked_at
def test_a_log_out_by_an_old_id_ends_the_session_under_its_new_one(
    log_out: Action, looks: bool
) -> None:
    site = make_site()
    browser = start(site)
    late = browser.twin()
    browser.visit(lambda: session.regenerate())
    response = late.visit(then(log_out, looks))
    assert (response.status_code, cookie_of(response, site)) == (200, "none")
    assert browser.read() == {}
    assert site.backend.count() == 0


@log_outs
@is_looked_at
def test_a_log_out_while_the_id_changes_ends_the_session_under_its_new_one(
    log_out: Action, looks: bool
) -> None:
    site = make_site()
    browser = start(site)
    late = browser.twin()

    def regenerate() -> None:
        browser.visit(lambda: session.regenerate())

    response = late.visit(then(log_out, looks, regenerate))
    assert response.status_code == 200
    assert browser.read() == {}
    assert site.backend.count() == 0


@log_outs
def test_a_log_out_that_met_many_changes_and_then_a_new_id_is_one(
    log_out: Action,
) -> None:
    site = make_site()
    browser = start(site)
    late = browser.twin()
    turns = iter(range(10))

    def come_in() -> None:
        if next(turns) < 3:
            browser.visit(
                lambda: session.atomic(lambda own: own.update(n=own["n"] + 1))
            )
        else:
            del site.backend.before["replace"]
            browser.visit(lambda: session.regenerate())

    site.backend.before["replace"] = come_in
    late.visit(then(log_out, True))
    site.backend.before.clear()
    assert browser.read() == {}
    assert site.backend.count() == 0


@log_outs
def test_the_old_id_has_no_say_in_the_session_of_another_user(log_out: Action) -> None:
    site = make_site()
    browser = start(site)
    late = browser.twin()
    browser.set(_user_id="grace")
    late.visit(then(log_out, True))
    assert browser.read() == {"_user_id": "grace", "n": 0}


@log_outs
@pytest.mark.parametrize("policy", ["raise", "ignore"])
@is_looked_at
def test_a_log_out_while_the_backend_is_down_is_no_success(
    log_out: Action, policy: str, looks: bool
) -> None:
    # Flask-Login looks at the session after each request, and fails there.
    site = make_site(SESSION_ON_BACKEND_ERROR=policy, PROPAGATE_EXCEPTIONS=False)
    browser = start(site)
    with site.backend.failing():
        response = browser.visit(then(log_out, looks))
    assert (response.status_code, cookie_of(response, site)) == (503, "none")
    assert browser.read() == {"_user_id": "ada", "n": 0}


@log_outs
def test_a_log_out_after_a_loss_ends_the_session_under_its_new_id(
    log_out: Action,
) -> None:
    site = make_site()
    browser = start(site)
    late = browser.twin()

    def lose() -> None:
        flask_session["m"] = 1
        browser.visit(lambda: session.regenerate())
        session.save()

    late.visit(then(log_out, True, lose))
    assert browser.read() == {}
    assert site.backend.count() == 0


@pytest.mark.parametrize("lose", ["save", "reload", "atomic"])
def test_what_is_written_after_a_loss_is_no_log_out(lose: str) -> None:
    site = make_site()
    browser = start(site)
    late = browser.twin()

    def act() -> None:
        flask_session["m"] = 1
        browser.visit(lambda: session.regenerate())
        if lose == "atomic":
            session.atomic(lambda own: own.update(k=1))
        else:
            getattr(session, lose)()
        flask_session["m"] = 2

    late.visit(act)
    assert browser.read() == {"_user_id": "ada", "n": 0}


def test_taking_out_what_is_not_there_is_no_log_out() -> None:
    site = make_site()
    browser = start(site)
    late = browser.twin()
    browser.visit(lambda: session.regenerate())
    late.visit(lambda: flask_session.pop("next", None))
    assert browser.read() == {"_user_id": "ada", "n": 0}
    for name in ("pop", "__delitem__"):
        with pytest.raises(KeyError):
            late.visit(lambda name=name: getattr(flask_session, name)("next"))
    assert site.browser().visit(lambda: flask_session.pop("_user_id", 1)).text == "1"
    assert browser.visit(lambda: flask_session.pop("n")).text == "0"


# -- step by step


class Loaded:
    """A session of a user, or of nobody, that was loaded."""

    def __init__(self, user: str | None) -> None:
        self.site = make_site()
        self.core: Core = self.site.state.interface.core
        browser = self.site.browser()
        browser.set(n=0, **({} if user is None else {"_user_id": user}))
        signer = self.site.state.interface.get_signer(self.site.app)
        assert signer is not None
        self.unit = Unit(signer)
        self.unit.identity = self.core.identify(browser.id)
        record = self.site.backend.load(self.unit.key)
        assert record is not None
        self.core.adopt(self.unit, record)


@pytest.mark.parametrize(
    ("before", "after", "wish", "is_log_out", "is_change"),
    [
        ("ada", "ada", Wish.SAVE, False, False),
        ("ada", "grace", Wish.SAVE, False, True),
        ("ada", None, Wish.SAVE, True, True),
        ("ada", "ada", Wish.RESTART, True, True),
        (None, None, Wish.SAVE, False, False),
        (None, "ada", Wish.SAVE, False, False),
        (None, None, Wish.END, True, True),
        (None, None, Wish.RESTART, False, False),
    ],
)
def test_what_is_a_log_out(
    before: str | None, after: str | None, wish: Wish, is_log_out: bool, is_change: bool
) -> None:
    loaded = Loaded(before)
    loaded.unit.data["_user_id"] = after
    loaded.unit.want(wish)
    assert logs_out(loaded.core, loaded.unit) is is_log_out
    assert changes_user(loaded.core, loaded.unit) is is_change


def test_a_log_out_that_is_refused_says_why_and_is_wanted_still() -> None:
    loaded = Loaded("ada")
    error = refuse_newer(loaded.core, loaded.unit)
    assert str(error) == (
        "The session was written by a newer version of the library, and this one cannot"
        " end it. Try again: a worker that was updated can."
    )
    assert (error.backend, error.operation) == ("memory", "delete")
    assert loaded.unit.wish is Wish.END
    assert loaded.unit.known is Known.BROKEN
    assert loaded.unit.failure is error


def test_a_log_out_is_heard_once_and_of_the_application_only() -> None:
    loaded = Loaded("ada")
    heard: list[int] = []
    log_outs = LogOuts(loaded.core, lambda: heard.append(1))
    for _ in range(3):
        log_outs.watch()
    signal = flask_login.user_logged_out
    signal.send(loaded.core.app)
    assert heard == [1]
    signal.send(flask.Flask("another"))
    assert heard == [1]
    signal.disconnect(log_outs._end, loaded.core.app)
    log_outs.watch()  # it does not look again
    signal.send(loaded.core.app)
    assert heard == [1]


@pytest.mark.parametrize(
    ("known", "wish"),
    [
        (Known.STORED, Wish.NOTHING),
        (Known.GONE, Wish.END),
        (Known.BROKEN, Wish.END),
    ],
)
def test_only_a_log_out_that_leaves_no_trace_is_noted(known: Known, wish: Wish) -> None:
    loaded = Loaded("ada")
    loaded.unit.known = known
    log_outs = LogOuts(loaded.core, lambda: loaded.unit)
    log_outs.watch()
    flask_login.user_logged_out.send(loaded.core.app)
    assert loaded.unit.wish is wish


def by_claims(data: t.Mapping[str, t.Any]) -> t.Any:
    return data["claims"]["sub"]


def by_either(data: t.Mapping[str, t.Any]) -> t.Any:
    return data.get("staff") or data.get("claims", {}).get("sub")


@pytest.mark.parametrize("function", [by_claims, by_either])
@pytest.mark.parametrize(
    "log_out",
    [
        lambda: flask_session.pop("claims", None),
        lambda: flask_session.update(claims=None),
        lambda: flask_session.update(claims={}),
        lambda: flask_session.setdefault("claims", {}).pop("sub", None),
    ],
)
def test_a_log_out_by_an_old_id_is_one_where_a_function_finds_the_user(
    function: t.Any, log_out: Action
) -> None:
    site = make_site(SESSION_USER_KEY=function)
    browser = site.browser()
    browser.set(claims={"sub": "ada"}, n=0)
    late = browser.twin()
    browser.visit(lambda: session.regenerate())
    late.visit(lambda: flask_session.pop("n", None))
    assert browser.read() != {}
    late.visit(log_out)
    assert browser.read() == {}


# A backend that is full


def is_full() -> t.NoReturn:
    raise BackendUnavailableError("It is full.", refused=True, full=True)


def flash() -> None:
    flask.flash("bye")


LEAVING_SOMETHING: dict[str, Action] = {
    "pop": lambda: flask_session.pop("_user_id"),
    "nobody": remember_nobody,
    "atomic": pop_in_atomic,
    "clear": lambda: (flask_session.clear(), flash()),
    "destroy": lambda: (session.destroy(), flash()),
    "restart": lambda: (restart(), flash()),
    "save": lambda: (flask_session.pop("_user_id"), session.save()),
}


def full_site(**settings: t.Any) -> tuple[Site, Browser]:
    site = Site({"SESSION_BACKEND": "memory"}, **settings)
    browser = site.browser()
    browser.set(_user_id="ada", cart=[1])
    return site, browser


@pytest.mark.parametrize("name", list(LEAVING_SOMETHING))
@pytest.mark.parametrize("operation", ["create", "replace"])
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_a_log_out_of_a_full_backend_wins_over_what_is_kept(
    name: str, operation: str, rotates: bool, policy: str
) -> None:
    site, browser = full_site(
        SESSION_REGENERATE_ON_LOGIN=rotates, SESSION_ON_BACKEND_ERROR=policy
    )
    twin = browser.twin()
    lost: list[str | None] = []
    ended: list[str] = []
    with (
        signals.session_lost.connected_to(
            lambda app, user, **_: lost.append(user), site.app
        ),
        signals.session_destroyed.connected_to(
            lambda app, reason, **_: ended.append(reason), site.app
        ),
    ):
        site.backend.before[operation] = is_full
        response = browser.visit(LEAVING_SOMETHING[name])
        site.backend.before.clear()
    assert response.status_code == 200
    assert twin.read().get("_user_id") is None
    if not lost:  # it was not full for what this one needs
        return
    assert lost in (["ada"], [None])  # what comes after destroy() is nobody's
    assert ended == ["logged out"]
    assert cookie_of(response, site) == "deleted"
    assert site.backend.count() == 0


def test_a_full_backend_drops_nothing_but_what_a_log_out_leaves() -> None:
    site, browser = full_site()
    site.backend.before.update(create=is_full, replace=is_full)
    actions: list[Action] = [
        lambda: flask_session.update(n=1),
        lambda: flask_session.update(_user_id="grace"),
        lambda: (flask_session.clear(), flask_session.update(_user_id="grace")),
        lambda: session.regenerate(),
        lambda: session.mark_authenticated(),
    ]
    for action in actions:
        response = browser.visit(action)
        assert response.status_code == 503
        assert cookie_of(response, site) == "none"
    site.backend.before.clear()
    assert browser.read() == {"_user_id": "ada", "cart": [1]}
    # Somebody else would not have logged in.
    site.backend.before["create"] = is_full
    response = browser.visit(
        lambda: (session.destroy(), flask_session.update(_user_id="grace"))
    )
    assert response.status_code == 503


def test_a_log_out_that_cannot_even_be_deleted_is_no_success() -> None:
    site, browser = full_site()
    for operation in ("create", "replace", "delete"):
        site.backend.before[operation] = is_full
    response = browser.visit(LEAVING_SOMETHING["pop"])
    assert response.status_code == 503
    assert cookie_of(response, site) == "none"
    site.backend.before.clear()
    assert browser.read() == {"_user_id": "ada", "cart": [1]}


def test_from_outside_nothing_is_dropped_from_a_full_backend() -> None:
    site, browser = full_site()
    handle = browser.visit(lambda: session.handle).text
    site.backend.before["replace"] = is_full
    with (
        site.app.app_context(),
        pytest.raises(BackendUnavailableError),
        site.extension.open(handle) as data,
    ):
        data["cart"] = []
    site.backend.before.clear()
    assert browser.read() == {"_user_id": "ada", "cart": [1]}
