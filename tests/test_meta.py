"""``session.meta``: what an application tells of a session, and what becomes of it."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Callable

import pytest
from flask import session

from flask_serversession import BackendUnavailableError
from flask_serversession import SessionInfo
from flask_serversession import SessionLostError
from flask_serversession import rotation
from flask_serversession import session as typed_session
from flask_serversession.meta import INTERNAL
from flask_serversession.meta import LEFT_AT
from flask_serversession.meta import MAX_SIZE
from flask_serversession.meta import MOVING
from flask_serversession.meta import PREDECESSOR
from flask_serversession.meta import TRACKED
from flask_serversession.meta import Meta
from flask_serversession.meta import internal_part
from flask_serversession.meta import moved_part
from flask_serversession.meta import own_part
from flask_serversession.meta import shown_part
from flask_serversession.meta import size_of
from flask_serversession.meta import tracked_part
from flask_serversession.unit import PERMANENT_KEY

from .backend_configs import Config
from .site import Browser
from .site import Site

MakeSite = Callable[..., Site]
AGENT = {"User-Agent": "Desktop/1"}


@pytest.fixture
def make_site(backend_config: Config) -> MakeSite:
    def make(**settings: t.Any) -> Site:
        return Site(backend_config, **settings)

    return make


@pytest.fixture
def site() -> Site:
    return Site({"SESSION_BACKEND": "memory"})


def log_in(site: Site, **meta: str) -> Browser:
    browser = site.browser()
    browser.set(_user_id="ada", n=1)
    if meta:
        browser.visit(lambda: typed_session.meta.update(meta))
    return browser


def info_of(browser: Browser) -> SessionInfo:
    handles: list[str] = []
    browser.visit(lambda: handles.append(typed_session.handle))
    with browser.site.app.app_context():
        info = browser.site.extension.find(handles[0])
    assert info is not None
    return info


def meta_of(browser: Browser) -> dict[str, str]:
    found: dict[str, str] = {}
    browser.visit(lambda: found.update(typed_session.meta))
    assert info_of(browser).meta == found
    return found


def test_what_is_told_of_a_session_is_kept_and_shown(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site)
    odd = {
        "name": "Ada's \N{SLICE OF PIZZA}",
        "": "",
        "a\0b": "c\n\x1b[1m",
        "é" * 9: "\ud800",
    }
    browser.visit(lambda: typed_session.meta.update(odd))
    assert meta_of(browser) == odd
    browser.set(n=2)
    browser.visit(lambda: typed_session.meta.pop("name"))
    del odd["name"]
    assert meta_of(browser) == odd
    assert browser.read() == {"_user_id": "ada", "n": 2}


def test_it_is_kept_beside_what_is_tracked(make_site: MakeSite) -> None:
    site = make_site(SESSION_TRACK=("user_agent",))
    browser = log_in(site)
    browser.visit(
        lambda: typed_session.meta.update(name="laptop"), headers={"User-Agent": "one"}
    )
    browser.visit(lambda: session.update(n=2), headers={"User-Agent": "two"})
    assert dict(info_of(browser).meta) == {"name": "laptop", "user_agent": "two"}
    browser.visit(lambda: typed_session.meta.clear(), headers={"User-Agent": "three"})
    assert dict(info_of(browser).meta) == {"user_agent": "three"}


def test_it_survives_a_new_id_and_no_new_session(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site, name="laptop")
    browser.set(_user_id="bob")
    assert meta_of(browser) == {"name": "laptop"}
    browser.visit(lambda: session.pop("_user_id"))
    assert meta_of(browser) == {"name": "laptop"}
    browser.visit(lambda: typed_session.regenerate())
    assert meta_of(browser) == {"name": "laptop"}

    def restart() -> None:
        typed_session.regenerate(keep_data=False)
        assert dict(typed_session.meta) == {}
        session["n"] = 3

    browser.visit(restart)
    assert meta_of(browser) == {}


@pytest.mark.parametrize("way", ["clear", "destroy"])
@pytest.mark.parametrize("is_seen", [False, True])
def test_it_ends_with_the_session(site: Site, way: str, is_seen: bool) -> None:
    browser = log_in(site, name="laptop")

    def end_and_begin() -> None:
        if is_seen:
            assert typed_session.meta["name"] == "laptop"
        getattr(typed_session, way)()
        assert dict(typed_session.meta) == {}
        session["n"] = 2

    browser.visit(end_and_begin)
    assert meta_of(browser) == {}


def test_it_is_kept_when_a_session_is_touched(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site, name="laptop")
    t.cast("t.Any", site.clock).advance(120)
    calls, _ = browser.costs(lambda: session["n"])
    assert calls == {"load": 1, "touch": 1}
    assert meta_of(browser) == {"name": "laptop"}


def test_it_is_in_clear_whatever_is_encrypted(make_site: MakeSite) -> None:
    site = make_site(SESSION_ENCRYPTION_KEY=bytes(32))
    browser = log_in(site, name="laptop")
    assert meta_of(browser) == {"name": "laptop"}


# What it costs, and what is said of it


def test_only_a_change_of_it_writes(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    browser = log_in(site, name="laptop")
    same = browser.costs(lambda: typed_session.meta.update(name="laptop"))
    assert same == ({"load": 1}, "none")
    assert browser.costs(lambda: len(typed_session.meta)) == ({"load": 1}, "none")
    with caplog.at_level(logging.DEBUG, "flask_serversession"):
        other = browser.costs(lambda: typed_session.meta.update(name="phone"))
    assert other == ({"load": 1, "replace": 1}, "set")
    (line,) = [text for text in caplog.messages if "saved" in text]
    assert line.endswith(": meta changed")
    assert "phone" not in caplog.text


def test_a_session_of_which_nothing_else_is_known_is_not_stored(site: Site) -> None:
    browser = site.browser()
    costs = browser.costs(lambda: typed_session.meta.update(name="laptop"))
    assert costs == ({}, "none")

    def write() -> None:
        typed_session.meta["name"] = "laptop"
        session["n"] = 1

    browser.visit(write)
    assert meta_of(browser) == {"name": "laptop"}


def test_what_is_not_modified_is_not_saved(site: Site) -> None:
    browser = log_in(site, name="laptop")

    def view() -> None:
        typed_session.meta["name"] = "phone"
        session.modified = False
        assert typed_session.meta["name"] == "laptop"

    assert browser.costs(view) == ({"load": 1}, "none")

    def reload() -> None:
        typed_session.meta["name"] = "phone"
        typed_session.reload()
        assert typed_session.meta["name"] == "laptop"

    browser.visit(reload)
    assert meta_of(browser) == {"name": "laptop"}


def test_it_can_be_saved_early(site: Site) -> None:
    browser = log_in(site)

    def view() -> None:
        typed_session.meta["name"] = "phone"
        typed_session.save()
        assert typed_session.meta["name"] == "phone"
        typed_session.meta["more"] = "x"

    browser.visit(view)
    assert meta_of(browser) == {"name": "phone", "more": "x"}


def test_its_repr_shows_no_value(site: Site) -> None:
    browser = log_in(site, name="a secret")
    shown = browser.visit(lambda: repr(typed_session.meta)).text
    assert shown == "<Meta names=['name']>"


# What is refused


@pytest.mark.parametrize("name", [*sorted(INTERNAL), "user_agent", "remote_addr"])
def test_names_that_the_library_uses_are_refused(site: Site, name: str) -> None:
    def view() -> None:
        with pytest.raises(ValueError, match=f"{name!r}.* such as 'my_{name}'"):
            typed_session.meta[name] = "x"
        with pytest.raises(KeyError):
            del typed_session.meta[name]

    log_in(site).visit(view, headers=AGENT)


def test_every_name_of_a_rotation_is_reserved() -> None:
    names = {
        value
        for name, value in vars(rotation).items()
        if name.isupper() and isinstance(value, str) and value.isidentifier()
    }
    assert {"predecessor", "successor", "same_user"} <= names
    assert names - {PERMANENT_KEY} <= INTERNAL


@pytest.mark.parametrize("pair", [("n", 1), ("n", None), ("n", b"x"), (1, "x")])
def test_what_is_no_text_is_refused(site: Site, pair: tuple[t.Any, t.Any]) -> None:
    def view() -> None:
        with pytest.raises(TypeError, match=r"session\.meta takes text only.*str\("):
            typed_session.meta[pair[0]] = pair[1]

    assert log_in(site).costs(view) == ({"load": 1}, "none")


def test_too_much_is_refused(make_site: MakeSite) -> None:
    site = make_site()
    browser = log_in(site, name="\x01" * (MAX_SIZE - 4))

    def view() -> None:
        with pytest.raises(ValueError, match=r"would take 4097 bytes with 'm'"):
            typed_session.meta["m"] = ""
        with pytest.raises(ValueError, match=r"may take 4096"):
            typed_session.meta["name"] = "é" * (MAX_SIZE // 2)
        typed_session.meta["name"] = "é" * (MAX_SIZE // 2 - 2)

    browser.visit(view)
    assert len(meta_of(browser)["name"]) == MAX_SIZE // 2 - 2


def test_of_too_much_of_two_requests_together_what_is_stored_stays(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()
    if "cachelib" in site.backend.name:
        pytest.skip("cannot compare and swap")
    browser = log_in(site)
    other = browser.twin()

    def view() -> None:
        typed_session["page"] = "cart"
        typed_session.meta["mine"] = "x" * 3000
        other.visit(lambda: typed_session.meta.update(theirs="y" * 3000))

    assert browser.visit(view).status_code == 200
    assert [*meta_of(browser)] == ["theirs"]
    assert browser.read()["page"] == "cart"
    (record,) = [r for r in caplog.records if "session.meta" in r.getMessage()]
    assert record.getMessage() == (
        "session.meta would take 6010 bytes with what another request has put there,"
        " and may take 4096. What this request has put there is dropped: keep what is"
        " long in the session itself."
    )
    # The next one has the room that is left.
    browser.visit(lambda: typed_session.meta.update(mine="x" * 1000))
    assert [*meta_of(browser)] == ["theirs", "mine"]


# Overlapping requests


def test_each_name_is_merged_by_itself(make_site: MakeSite) -> None:
    site = make_site()
    if "cachelib" in site.backend.name:
        pytest.skip("cannot compare and swap")
    browser = log_in(site, kept="k", mine="0", theirs="0", both="0", gone="0")
    other = browser.twin()

    def there() -> None:
        typed_session.meta.update(theirs="2", both="2", gone="2", new="2")

    def view() -> None:
        typed_session.meta.update(mine="1", both="1")
        del typed_session.meta["gone"]
        other.visit(there)

    browser.visit(view)
    expected = {"kept": "k", "mine": "1", "theirs": "2", "both": "1", "new": "2"}
    assert meta_of(browser) == expected


def test_a_change_of_the_content_keeps_what_another_request_tells(site: Site) -> None:
    browser = log_in(site, name="laptop")
    other = browser.twin()

    def view() -> None:
        session["n"] = 2
        other.visit(lambda: typed_session.meta.update(name="phone"))

    browser.visit(view)
    assert meta_of(browser) == {"name": "phone"}

    def view_of_the_other() -> None:
        typed_session.meta["name"] = "tablet"
        other.set(n=3)

    browser.visit(view_of_the_other)
    assert meta_of(browser) == {"name": "tablet"}
    assert browser.read()["n"] == 3


def test_whoever_overwrites_overwrites_it_too() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_CONFLICT="overwrite")
    browser = log_in(site, name="laptop")
    other = browser.twin()

    def view() -> None:
        session["n"] = 2
        other.visit(lambda: typed_session.meta.update(name="phone", more="x"))

    browser.visit(view)
    assert meta_of(browser) == {"name": "laptop"}


def test_it_is_changed_atomically(site: Site) -> None:
    browser = log_in(site, n="0")
    other = browser.twin()
    runs: list[str] = []

    def count(session: t.Any) -> None:
        if not runs:
            other.visit(lambda: typed_session.meta.update(n="5", there="x"))
        runs.append(session.meta["n"])
        session.meta["n"] = str(int(session.meta["n"]) + 1)

    def view() -> None:
        typed_session.meta["before"] = "b"
        typed_session.atomic(count)

    browser.visit(view)
    assert runs == ["0", "5"]
    assert meta_of(browser) == {"n": "6", "there": "x", "before": "b"}


def test_an_atomic_change_that_fails_takes_back_its_own_only(site: Site) -> None:
    browser = log_in(site, n="0")

    def fail(session: t.Any) -> None:
        session.meta["n"] = "1"
        raise KeyError("no")

    def view() -> None:
        typed_session.meta["before"] = "b"
        with pytest.raises(KeyError):
            typed_session.atomic(fail)

    browser.visit(view)
    assert meta_of(browser) == {"n": "0", "before": "b"}


def test_a_change_of_it_is_lost_as_any_other() -> None:
    site = Site({"SESSION_BACKEND": "memory"}, SESSION_ON_LOST="raise")
    browser = log_in(site)
    other = browser.twin()

    def view() -> None:
        typed_session.meta["name"] = "phone"
        other.visit(lambda: typed_session.destroy())
        with pytest.raises(SessionLostError):
            typed_session.save()

    browser.visit(view)


def test_a_change_that_cannot_be_stored_is_not_passed_over(site: Site) -> None:
    browser = log_in(site)

    def view() -> None:
        with site.backend.failing("load"), pytest.raises(BackendUnavailableError):
            typed_session.meta["name"] = "phone"

    browser.visit(view)


# The parts of what is stored


def test_what_is_stored_has_three_parts() -> None:
    own = {"device": "phone"}
    tracked = dict.fromkeys(TRACKED, "tracked")
    internal = dict.fromkeys(INTERNAL, "internal")
    meta = {**own, **tracked, **internal}
    assert own_part(meta) == own
    assert tracked_part(meta) == tracked
    assert internal_part(meta) == internal
    assert shown_part(meta) == {**own, **tracked}
    assert own_part({}) == {}
    assert moved_part(meta, {"device": "tablet", "mark": "new"}) == {
        **tracked,
        "device": "tablet",
        "mark": "new",
    }
    assert MOVING == "moving"
    # These are in stores, and have to stay what they are.
    assert {"user_agent", "remote_addr"} == TRACKED
    assert (PREDECESSOR, LEFT_AT) == ("predecessor", "left_at")
    others = {"moving", "renewed", "same_user", "successor"}
    assert {PREDECESSOR, LEFT_AT, *others} == INTERNAL


def test_the_size_is_that_in_utf_8() -> None:
    assert size_of({"a": "bc", "\xe9": "\udc80"}) == 1 + 2 + 2 + 3


class Told:
    """As much of a unit as has a meta."""

    def __init__(self) -> None:
        self.current_meta: t.Any = {"a": "b"}
        self.changes: list[dict[str, str]] = []

    def change_meta(self, meta: t.Any) -> None:
        self.changes.append(meta)
        self.current_meta = meta


def test_only_what_is_new_is_told() -> None:
    unit = Told()
    meta = Meta(lambda: t.cast("t.Any", unit))
    meta["a"] = "b"
    assert unit.changes == []
    meta["a"] = "c"
    meta["d"] = "e"
    del meta["a"]
    assert unit.changes == [{"a": "c"}, {"a": "c", "d": "e"}, {"d": "e"}]
    assert (len(meta), [*meta], meta["d"]) == (1, ["d"], "e")


def test_what_is_refused_is_refused_with_the_remedy() -> None:
    meta: t.Any = Meta(lambda: t.cast("t.Any", Told()))
    with pytest.raises(TypeError, match="text only") as wrong_name:
        meta[1] = "x"
    assert str(wrong_name.value) == (
        "session.meta takes text only, but the name for 1 is of the type 'int'. Give"
        " str(...) of it, or keep it in the session itself."
    )
    with pytest.raises(TypeError, match="text only") as wrong_value:
        meta["n"] = None
    assert str(wrong_value.value) == (
        "session.meta takes text only, but the value for 'n' is of the type 'NoneType'."
        " Give str(...) of it, or keep it in the session itself."
    )
    with pytest.raises(ValueError, match="uses itself") as reserved:
        meta["moving"] = "x"
    assert str(reserved.value) == (
        "session.meta['moving'] is a name that the library uses itself. Choose another"
        " one, such as 'my_moving'."
    )
    with pytest.raises(ValueError, match="would take") as too_much:
        meta["n"] = "x" * MAX_SIZE
    assert str(too_much.value) == (
        "session.meta would take 4099 bytes with 'n', and may take 4096. Keep what is"
        " long in the session itself."
    )
