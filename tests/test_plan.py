"""The table of decisions: every combination of facts, and the laws that hold for all.

:func:`explore` asks the table with facts that are decided when they are asked for. Each
answer that a fact could have is tried in turn, so every path through the table is
taken, and what a row does not ask for cannot matter to it.
"""

from __future__ import annotations

import functools
import itertools
import re
import typing as t
from pathlib import Path

import pytest

from flask_serversession.plan import Plan
from flask_serversession.plan import Step
from flask_serversession.plan import plan
from flask_serversession.unit import Cookie
from flask_serversession.unit import Known
from flask_serversession.unit import Wish

BOOLEANS = (False, True)
#: What is not a yes or no, with all that it can be.
CHOICES: dict[str, tuple[t.Any, ...]] = {
    "owed": tuple(Cookie),
    "is_wanted": (None, False, True),
    "rotation": ("", "the user changed"),
    "failure": (None, RuntimeError("the backend failed")),
    # Any cookie, or several of them.
    "values": ((), ("a",), ("a", "b")),
    "cookie": (None, "a cookie"),
    "claim": (None, "a claim"),
}
#: What the moment is asked about a unit.
ABOUT_THE_UNIT = {
    *("is_permanent", "is_touch_due", "is_doubtful", "is_ended_here", "is_elsewhere")
}
#: A step that records that a session is in use.
TOUCHES = {Step.TOUCH, Step.TRACK}
#: A step that writes what the session holds now.
WRITES = {Step.CREATE, Step.REPLACE, Step.ROTATE}
#: A step after which the stored session is gone.
ENDS = {Step.EXPIRE, Step.DELETE}
#: A step that only looks, after which the table is asked again.
LOOKS = {Step.VERIFY, Step.LOAD}


class Facts:
    """What is true on one path: chosen in advance, or the first possibility."""

    def __init__(self, chosen: tuple[tuple[str, t.Any], ...]) -> None:
        self.chosen = dict(chosen)

    def get(self, name: str) -> t.Any:
        if name not in self.chosen:
            if (implied := self._implied(name)) is not None:
                self.chosen[name] = implied[0]
            else:
                self.chosen[name] = CHOICES.get(name, BOOLEANS)[0]
                self.undecided.append(name)
        return self.chosen[name]

    undecided: list[str]

    def _implied(self, name: str) -> tuple[t.Any] | None:
        """What follows from the facts that are known already."""
        chosen = self.chosen
        if name in ("is_verified", "cookie", "claim", "claims_permanent") and (
            self.get("values") == ()
        ):
            return (
                (name == "is_verified" or None,)
                if name != "claims_permanent"
                else (False,)
            )
        if name in ("cookie", "claim") and not self.get("is_verified"):
            return (None,)
        if name == "claim" and self.get("cookie") is not None:
            return (None,)
        if name == "claims_permanent" and self.get("is_verified"):
            return (False,) if self.get("cookie") is None else None
        if name == "data" and not self.get("is_empty"):
            return (True,)
        if name == "is_closed" and chosen.get("is_outside"):
            return (True,)
        if name == "owed" and chosen["known"] is Known.UNSEEN:
            return (Cookie.NONE,)
        if name == "is_renewed" and self.get("owed") is Cookie.SET:
            return (False,)  # the new id is its own
        return None


class Part:
    """Stands for the unit, for its cookies, or for the moment."""

    def __init__(self, facts: Facts, **parts: t.Any) -> None:
        self._facts, self._parts = facts, parts

    def __getattr__(self, name: str) -> t.Any:
        if name in self._parts:
            return self._parts[name]
        if name in ABOUT_THE_UNIT:
            return lambda unit: self._about(unit, name)
        if name == "differs_from_cookie":
            return self._differs
        return self._facts.get(name)

    def _differs(self, unit: object, is_permanent: object) -> t.Any:
        assert is_permanent is self._facts.get("is_permanent")
        return self._about(unit, "differs_from_cookie")

    def _about(self, unit: object, name: str) -> t.Any:
        assert isinstance(unit, Part), "The table asks about nothing."
        return self._facts.get(name)


class Path_(t.NamedTuple):
    facts: dict[str, t.Any]
    row: Plan

    def __getattr__(self, name: str) -> t.Any:
        return self.facts.get(name)


def ask_with(facts: dict[str, t.Any]) -> tuple[Plan, Facts]:
    """Ask the table, and decide what it asks for besides."""
    found = Facts(tuple(facts.items()))
    found.undecided = []
    presented = Part(found)
    unit: t.Any = Part(found, presented=presented)
    moment: t.Any = Part(found)
    return plan(unit, moment), found


def explore() -> t.Iterator[Path_]:
    """Go through every path of the table, with the facts that it asked for."""
    for known, wish in itertools.product(Known, Wish):
        pending: list[tuple[tuple[str, t.Any], ...]] = [
            (("known", known), ("wish", wish))
        ]
        while pending:
            row, facts = ask_with(dict(pending.pop()))
            names = list(facts.chosen)
            for name in facts.undecided:
                before = tuple(
                    (other, facts.chosen[other]) for other in names[: names.index(name)]
                )
                pending += [
                    (*before, (name, choice))
                    for choice in CHOICES.get(name, BOOLEANS)[1:]
                ]
            yield Path_(facts.chosen, row)


@functools.cache
def every_path() -> list[Path_]:
    return [*explore()]


def paths(**wanted: t.Any) -> list[Path_]:
    """Return the paths on which these facts were asked for and answered so."""
    found = [
        path
        for path in every_path()
        if all(path.facts.get(name) == value for name, value in wanted.items())
    ]
    assert found, wanted
    return found


def test_every_path_is_taken_once() -> None:
    keys = [frozenset(path.facts.items()) for path in every_path()]
    assert len(keys) == len({*keys}) > 1000
    # The answers, as kinds of what is known, done and sent.
    assert (
        len({(path.known, path.row.step, path.row.cookie) for path in every_path()})
        >= 25
    )
    assert {path.row.step for path in every_path()} == {*Step}


@pytest.mark.parametrize("known", [Known.GONE, Known.BROKEN])
def test_a_browser_whose_session_is_gone_or_unknown_is_sent_nothing(
    known: Known,
) -> None:
    for path in paths(known=known):
        assert path.row.cookie in (Cookie.NONE, path.owed)
        assert path.owed is None or path.is_error_unsaved
        assert path.row.step not in WRITES


def test_nothing_that_was_only_read_is_written() -> None:
    for path in every_path():
        if path.row.step in WRITES | {Step.EXPIRE} and path.wish < Wish.SAVE:
            # But for what the application's settings ask for.
            assert path.resave or path.rotation or path.save_uninitialized


def test_nothing_is_written_when_an_error_page_must_not_save() -> None:
    for path in paths(is_error_unsaved=True):
        assert path.row == Plan(Step.NOTHING, path.facts["owed"])


def test_a_log_out_is_never_kept() -> None:
    for path in every_path():
        if path.wish is not Wish.END or path.is_error_unsaved:
            continue
        if path.known is Known.STORED and path.is_empty:
            assert path.row.step is Step.DELETE
        elif path.known is Known.STORED and not path.is_closed:
            # What is written afterwards is another session.
            assert path.row.step is Step.ROTATE
        elif path.known is Known.UNSEEN and path.cookie is not None:
            # What is left under the id before goes with it.
            step = Step.LOAD if path.facts.get("is_unsettled") else Step.DELETE
            assert path.row.step is step
        elif path.known is Known.GONE:
            assert path.row.step in (Step.DELETE, Step.REPORT)
        elif path.known is Known.BROKEN:
            assert path.row.step is Step.FAIL


def test_nothing_is_deleted_in_a_browser_that_sent_nothing() -> None:
    for path in every_path():
        if path.row.cookie is Cookie.DELETE and path.owed is not Cookie.DELETE:
            assert path.cookie is not None


def test_a_session_that_nobody_looked_at_is_never_loaded_unless_it_is_wanted() -> None:
    for path in paths(known=Known.UNSEEN):
        if path.row.step is Step.LOAD:
            assert path.wish >= Wish.SAVE or path.save_uninitialized
        assert path.row.step not in WRITES | {Step.EXPIRE, Step.REPORT, Step.FAIL}


def test_a_new_id_always_reaches_the_browser() -> None:
    for path in every_path():
        if path.row.step in (Step.CREATE, Step.ROTATE):
            assert path.row.cookie is Cookie.SET
        if path.known is Known.STORED and path.owed is Cookie.SET:
            gone = path.row.step in ENDS or path.is_ended_here
            assert path.row.cookie is Cookie.SET or gone


def test_the_cookie_goes_out_whenever_flask_says_so() -> None:
    for path in paths(known=Known.STORED, is_wanted=None, is_error_unsaved=False):
        if path.row.step in ENDS or path.is_ended_here or path.failure is not None:
            continue
        if path.is_public or path.is_passive or path.is_renewed:
            continue
        if path.is_modified or (path.is_permanent and path.is_refreshed):
            assert path.row.cookie is Cookie.SET


def test_a_browser_whose_id_was_renewed_is_sent_nothing_but_another_new_id() -> None:
    asked = paths(is_renewed=True)
    assert {path.row.step for path in asked} >= {Step.REPLACE, Step.TOUCH, *ENDS}
    for path in asked:
        assert path.row.cookie is Cookie.NONE or path.row.step is Step.ROTATE
        # Nothing else depends on it: what such a request changes is saved as ever.
        row, _ = ask_with({**path.facts, "is_renewed": False})
        assert (row.step, row.renews) == (path.row.step, path.row.renews)


def test_an_application_that_refuses_the_cookie_is_heard() -> None:
    for path in paths(is_wanted=False):
        assert path.row.step is not Step.CREATE
        if path.row.cookie is Cookie.SET:
            assert path.owed is Cookie.SET or path.row.step is Step.ROTATE


def test_a_cookie_is_not_sent_again_where_any_cache_may_keep_it() -> None:
    for path in paths(is_public=True):
        if path.row.cookie is Cookie.SET:
            assert path.row.step is Step.ROTATE
        if path.known is Known.UNSEEN:
            assert path.row.step is Step.NOTHING or path.wish is Wish.TOUCH


def test_a_session_that_was_ended_here_is_not_named_to_the_browser() -> None:
    for path in paths(is_ended_here=True):
        assert path.row.step is Step.NOTHING
        assert path.row.cookie is Cookie.NONE


def test_only_a_look_is_followed_by_another_look() -> None:
    """The loop ends: each look makes known what the same row cannot ask for again."""
    for path in every_path():
        if path.row.step is Step.VERIFY:
            assert path.is_verified is False
        if path.row.step is Step.LOAD:
            assert path.known is Known.UNSEEN


def test_a_failed_backend_is_not_passed_over_in_silence() -> None:
    for path in paths(known=Known.BROKEN):
        if path.failure is not None and path.wish >= Wish.SAVE and path.raises:
            assert path.row.step is Step.FAIL


def test_what_counts_as_activity_is_what_the_documentation_says() -> None:
    for path in paths(known=Known.STORED):
        if not path.row.renews and not path.is_passive and not path.is_outside:
            assert path.wish is Wish.NOTHING
            assert not path.is_refreshed
            assert path.is_permanent


def test_a_passive_request_renews_nothing() -> None:
    for path in paths(is_passive=True):
        if path.known is Known.UNSEEN:
            assert path.row == Plan(Step.NOTHING)
        elif path.row.step is Step.TOUCH:
            # It only asks whether the session is there whose cookie has to be sent.
            assert not path.row.renews
            assert path.differs_from_cookie
        elif path.row.step is Step.REPLACE:
            assert not path.row.renews


def test_a_passive_request_sends_its_cookie_only_if_it_would_be_lost() -> None:
    for path in paths(known=Known.STORED, is_passive=True):
        if path.row.cookie is Cookie.SET and path.owed is not Cookie.SET:
            is_told = path.is_saved or path.wish >= Wish.SAVE
            is_changed = is_told and path.differs_from_cookie
            assert path.cookie is None or path.row.step is Step.ROTATE or is_changed


def test_what_a_passive_request_changes_is_saved_as_always() -> None:
    for path in paths(known=Known.STORED, is_passive=True, is_error_unsaved=False):
        if path.wish >= Wish.SAVE:
            assert path.row.step in WRITES | ENDS


def test_a_new_id_renews_the_session_whoever_asked_for_it() -> None:
    for path in paths(is_passive=True):
        if path.row.step is Step.ROTATE:
            assert path.row.renews


def test_a_log_out_that_nobody_looked_at_names_what_it_ends() -> None:
    """The cookie is verified first, and what is taken over has to leave a marker."""
    for path in paths(known=Known.UNSEEN, wish=Wish.END, is_error_unsaved=False):
        if not path.is_verified:
            assert path.row.step is Step.VERIFY
        elif path.claim is not None:
            assert path.row.step is Step.LOAD


@pytest.mark.parametrize("doubt", ["is_doubtful", "is_touch_due"])
def test_a_cookie_is_sent_again_only_if_its_session_is_there(doubt: str) -> None:
    for path in paths(known=Known.UNSEEN, **{doubt: True}):
        assert path.row.step in TOUCHES
    for path in paths(known=Known.STORED, is_doubtful=True):
        assert path.row.step in TOUCHES


def test_of_several_cookies_that_in_use_is_found_before_one_is_sent_again() -> None:
    for path in paths(known=Known.UNSEEN, values=("a", "b")):
        if path.row.cookie is Cookie.SET:
            assert path.row.step in TOUCHES


def test_whether_a_session_was_ended_here_is_asked_before_its_cookie_is_sent() -> None:
    for path in every_path():
        if path.row == Plan(Step.NOTHING, Cookie.SET) and not path.is_error_unsaved:
            assert path.is_ended_here is False


def test_nothing_is_stored_for_who_has_logged_out_and_written_nothing() -> None:
    for path in paths(known=Known.NEW, wish=Wish.END, is_empty=True):
        assert path.row.step is Step.NOTHING


def test_a_cookie_that_says_something_else_is_replaced() -> None:
    for path in paths(known=Known.STORED, differs_from_cookie=True, failure=None):
        if path.row.step in {Step.NOTHING, Step.REPLACE, *TOUCHES}:
            is_kept_back = path.is_ended_here or path.is_public or path.is_renewed
            assert path.row.cookie is Cookie.SET or is_kept_back


def test_a_browser_without_a_cookie_is_told_what_was_stored() -> None:
    for path in paths(known=Known.STORED, cookie=None, is_wanted=None, failure=None):
        if path.row.step not in ENDS and not path.is_error_unsaved:
            is_kept_back = path.is_ended_here or path.is_public or path.is_renewed
            assert path.row.cookie is Cookie.SET or is_kept_back


def test_resaving_writes_what_was_only_read() -> None:
    for path in paths(known=Known.STORED, resave=True, is_error_unsaved=False):
        assert path.row.step in WRITES | ENDS or path.is_saved


def test_what_save_has_written_is_not_resaved() -> None:
    for path in paths(known=Known.STORED, is_saved=True, rotation=""):
        if path.wish < Wish.SAVE:
            assert path.row.step not in WRITES | ENDS


def test_a_restart_is_stored_where_every_visitor_gets_a_session() -> None:
    for path in paths(
        known=Known.STORED,
        wish=Wish.RESTART,
        save_uninitialized=True,
        is_error_unsaved=False,
    ):
        assert path.row.step is Step.ROTATE


def test_to_ask_whether_a_session_is_there_does_not_prolong_it() -> None:
    for path in paths(known=Known.STORED, is_doubtful=True):
        is_unused = path.is_permanent and not path.is_refreshed and not path.wish
        assert path.row.renews is not (is_unused or path.is_passive)


def test_a_session_that_was_stored_meanwhile_counts_as_used() -> None:
    for path in paths(
        known=Known.STORED, is_saved=True, is_permanent=True, is_passive=False
    ):
        if path.is_wanted is None and path.failure is None and not path.is_ended_here:
            is_kept_back = path.row.step in ENDS or path.is_public or path.is_renewed
            assert path.row.cookie is Cookie.SET or is_kept_back


@pytest.mark.parametrize("wish", [Wish.NEW_ID, Wish.RESTART])
def test_a_new_id_that_was_asked_for_is_given(wish: Wish) -> None:
    for path in paths(known=Known.STORED, wish=wish, is_error_unsaved=False):
        assert path.row.step in {Step.ROTATE, *ENDS}


def test_a_change_of_a_session_that_is_gone_is_told_of() -> None:
    for path in paths(known=Known.GONE, is_error_unsaved=False):
        if path.wish >= Wish.SAVE and path.wish is not Wish.END:
            is_unused = path.is_empty and path.data
            assert path.row.step is (Step.NOTHING if is_unused else Step.REPORT)


def test_where_failures_are_ignored_only_reading_is_no_failure() -> None:
    for path in paths(known=Known.BROKEN, raises=False):
        assert path.wish >= Wish.SAVE
        is_harmless = path.is_empty or path.failure is None
        assert path.row.step is (Step.NOTHING if is_harmless else Step.FAIL)


def test_an_id_that_this_request_has_issued_is_not_in_doubt() -> None:
    for doubt in (False, True):
        for path in paths(known=Known.STORED, is_doubtful=doubt):
            assert path.owed in (Cookie.NONE, Cookie.DELETE)


def test_to_read_a_permanent_session_that_is_not_refreshed_sends_no_cookie() -> None:
    for path in paths(
        known=Known.STORED,
        wish=Wish.NOTHING,
        is_permanent=True,
        is_refreshed=False,
        is_saved=False,
        is_modified=False,
        differs_from_cookie=False,
        owed=Cookie.NONE,
    ):
        if path.row.step in {Step.NOTHING, Step.REPLACE, *TOUCHES}:
            assert path.row.cookie is Cookie.NONE


def test_the_end_of_a_session_is_told_to_the_browser_that_named_it() -> None:
    for path in paths(known=Known.NEW, owed=Cookie.DELETE, is_empty=True):
        assert path.is_error_unsaved or path.row == Plan(Step.NOTHING, Cookie.DELETE)
    chosen = {"wish": Wish.END, "cookie": "a cookie", "is_unsettled": False}
    for path in paths(known=Known.UNSEEN, **chosen):
        assert path.is_error_unsaved or path.row == Plan(Step.DELETE, Cookie.DELETE)


def test_what_is_wanted_of_an_unseen_session_is_looked_for_first() -> None:
    for path in paths(known=Known.UNSEEN, is_error_unsaved=False):
        if Wish.SAVE <= path.wish < Wish.END:
            assert path.row.step is Step.LOAD
        if path.save_uninitialized and path.values == ():
            assert path.row.step is Step.LOAD


def test_one_cookie_is_not_asked_about_unless_a_touch_is_due() -> None:
    for path in paths(known=Known.UNSEEN, values=("a",)):
        if path.row.step in TOUCHES:
            assert path.is_touch_due or path.is_doubtful


def test_where_a_session_is_seen_is_recorded_when_a_touch_is_due_and_only_then() -> (
    None
):
    for path in every_path():
        if path.row.step is Step.TRACK:
            assert path.is_touch_due is True
            assert path.row.renews
            assert path.is_tracked is True or path.is_elsewhere is True
        if path.is_tracked or path.is_elsewhere:
            assert path.row.step is Step.TRACK


def test_an_application_that_wants_the_cookie_is_heard() -> None:
    for path in paths(
        known=Known.STORED, is_wanted=True, failure=None, is_passive=False
    ):
        if path.row.step in {Step.NOTHING, Step.REPLACE, *TOUCHES}:
            is_kept_back = path.is_ended_here or path.is_public or path.is_renewed
            assert path.row.cookie is Cookie.SET or is_kept_back
    for path in paths(known=Known.UNSEEN, is_wanted=True, cookie="a cookie"):
        is_kept_back = path.is_ended_here or path.is_public or path.wish is Wish.END
        assert path.row.cookie is Cookie.SET or is_kept_back


def test_what_was_changed_counts_as_used_whatever_the_settings_say() -> None:
    for path in paths(
        known=Known.STORED, wish=Wish.SAVE, is_error_unsaved=False, is_passive=False
    ):
        assert path.row.renews or path.is_outside


def test_what_is_changed_from_outside_is_no_activity() -> None:
    for path in paths(known=Known.STORED, is_outside=True):
        # A new id is refused to who is outside.
        if path.row.step not in (Step.DELETE, Step.ROTATE):
            assert not path.row.renews
    # It is asked wherever something is written.
    for path in paths(known=Known.STORED):
        if path.row.step in WRITES | {Step.EXPIRE}:
            assert path.is_outside is not None


#: The rows of the documentation's table, as facts, with the step and the cookie.
ROWS: dict[str, tuple[dict[str, t.Any], Step, Cookie]] = {
    "has no cookie, and writes nothing": (
        {
            **{"known": Known.UNSEEN, "wish": Wish.NOTHING, "values": ()},
            "save_uninitialized": False,
        },
        Step.NOTHING,
        Cookie.NONE,
    ),
    "has a cookie, and does not look at the session": (
        {"known": Known.UNSEEN, "wish": Wish.NOTHING, "claims_permanent": False},
        Step.NOTHING,
        Cookie.NONE,
    ),
    "the same, but the session is permanent and": (
        {
            **{"known": Known.UNSEEN, "wish": Wish.NOTHING, "is_refreshed": True},
            **{"claims_permanent": True, "is_touch_due": True, "is_public": False},
            "is_tracked": False,
        },
        Step.TOUCH,
        Cookie.SET,
    ),
    "the same, with :data:`SESSION_TRACK`": (
        {
            **{"known": Known.UNSEEN, "wish": Wish.NOTHING, "is_refreshed": True},
            **{"claims_permanent": True, "is_touch_due": True, "is_public": False},
            "is_tracked": True,
        },
        Step.TRACK,
        Cookie.SET,
    ),
    "only reads": (
        {
            **{"known": Known.STORED, "wish": Wish.NOTHING, "is_touch_due": True},
            **{"is_permanent": True, "is_refreshed": True, "failure": None},
            **{"is_public": False, "is_elsewhere": False},
        },
        Step.TOUCH,
        Cookie.SET,
    ),
    "only reads, with another address or browser": (
        {
            **{"known": Known.STORED, "wish": Wish.NOTHING, "is_touch_due": True},
            **{"is_permanent": True, "is_refreshed": True, "failure": None},
            **{"is_public": False, "is_elsewhere": True},
        },
        Step.TRACK,
        Cookie.SET,
    ),
    "changes something": (
        {
            **{"known": Known.STORED, "wish": Wish.SAVE, "is_empty": False},
            **{"is_modified": True, "rotation": "", "failure": None},
            "is_public": False,
        },
        Step.REPLACE,
        Cookie.SET,
    ),
    "writes the first value": (
        {"known": Known.NEW, "wish": Wish.SAVE, "is_empty": False},
        Step.CREATE,
        Cookie.SET,
    ),
    "clears or destroys the session": (
        {
            **{"known": Known.STORED, "wish": Wish.END, "is_empty": True},
            "cookie": "a cookie",
        },
        Step.DELETE,
        Cookie.DELETE,
    ),
    "clears the session and then writes to it": (
        {
            **{"known": Known.STORED, "wish": Wish.END, "is_empty": False},
            "is_closed": False,
        },
        Step.ROTATE,
        Cookie.SET,
    ),
    "removes the last key": (
        {
            **{"known": Known.STORED, "wish": Wish.SAVE, "is_empty": True},
            **{"was_empty": False, "cookie": "a cookie"},
        },
        Step.EXPIRE,
        Cookie.DELETE,
    ),
    "came with an id that was renewed, and": (
        {
            **{"known": Known.STORED, "wish": Wish.SAVE, "is_empty": False},
            **{"is_modified": True, "rotation": "", "failure": None},
            **{"is_public": False, "is_renewed": True},
        },
        Step.REPLACE,
        Cookie.NONE,
    ),
    "changes the user, or calls": (
        {"known": Known.STORED, "wish": Wish.NEW_ID, "is_empty": False},
        Step.ROTATE,
        Cookie.SET,
    ),
    "saves a session that another request has ended": (
        {"known": Known.GONE, "wish": Wish.SAVE, "is_empty": False},
        Step.REPORT,
        Cookie.NONE,
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_is_that_of_the_documentation(row: str) -> None:
    facts, step, cookie = ROWS[row]
    page = Path(__file__).parents[1] / "docs" / "session.rst"
    cells = re.findall(r'^    "?(.*)$', page.read_text("utf-8"), re.MULTILINE)
    assert any(cell.startswith(row) for cell in cells), row
    found = [
        path
        for path in every_path()
        if not path.is_error_unsaved
        and path.is_wanted is None
        and bool(path.is_renewed) is facts.get("is_renewed", False)
        and all(path.facts.get(name, value) == value for name, value in facts.items())
        and {*facts} - {"cookie", "values"} <= {*path.facts} | {"is_modified"}
    ]
    assert found
    assert {path.row.step for path in found} == {step}
    assert {path.row.cookie for path in found} == {cookie}


def test_no_two_steps_are_the_same() -> None:
    assert len(Step) == len(Step.__members__) == 12


def test_an_application_is_asked_before_an_unseen_cookie_is_sent_again() -> None:
    for path in paths(known=Known.UNSEEN, is_error_unsaved=False):
        if path.row.cookie is Cookie.SET:
            assert "is_wanted" in path.facts
    for path in paths(known=Known.UNSEEN, is_wanted=False):
        assert path.row.step is Step.NOTHING or path.wish is Wish.TOUCH


def test_what_was_changed_is_written() -> None:
    for path in paths(known=Known.STORED, is_error_unsaved=False):
        if path.wish >= Wish.SAVE:
            assert path.row.step in WRITES | ENDS
    for path in paths(known=Known.NEW, wish=Wish.SAVE, is_empty=False):
        refused = path.is_wanted is False or path.is_error_unsaved
        assert path.row.step is (Step.NOTHING if refused else Step.CREATE)


def test_a_stored_session_is_asked_for_again_only_to_send_its_cookie() -> None:
    for path in paths(known=Known.STORED, is_error_unsaved=False):
        if path.row.step is Step.TOUCH and not path.is_touch_due:
            assert path.row.cookie is Cookie.SET
            assert path.is_doubtful
            assert path.cookie is not None


def test_what_is_written_without_having_been_used_is_not_prolonged() -> None:
    for path in paths(
        known=Known.STORED,
        wish=Wish.NOTHING,
        is_permanent=True,
        is_refreshed=False,
        is_saved=False,
    ):
        if path.row.step in WRITES | {Step.EXPIRE}:
            assert not path.row.renews


def test_nothing_is_written_only_if_nothing_asks_for_it() -> None:
    for path in paths(known=Known.STORED, is_error_unsaved=False):
        if path.row.step in (Step.NOTHING, Step.TOUCH):
            assert path.rotation == ""
            assert path.resave is False or path.is_saved is True


def test_a_change_that_cannot_be_stored_fails_where_failures_are_raised() -> None:
    for path in paths(known=Known.BROKEN, is_error_unsaved=False):
        if path.wish < Wish.SAVE:
            assert path.row.step is Step.NOTHING
        elif path.wish is not Wish.END:
            is_unsaved = path.facts["raises"] or not path.facts["is_empty"]
            fails = is_unsaved and path.failure is not None
            assert path.row.step is (Step.FAIL if fails else Step.NOTHING)
