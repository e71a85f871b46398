"""What becomes of a session, and of its cookie: the table, and nothing else.

Theory of operation
===================

A session lives in two places, the browser and the store, and each request may meet a
third: another request of the same browser, which runs at the same moment. Everything
that has to be decided about them is decided here, by one pure function. It asks no
backend and changes nothing. :mod:`.lifecycle` carries out what it says.

**What is known.** A request begins with a cookie that nobody has verified
(:attr:`.Known.UNSEEN`), which costs nothing. The first look at the content loads the
record, and from then on there is none (``NEW``), there is one (``STORED``), another
request has just ended it or given it another id (``GONE``), or nobody can tell
(``BROKEN``). Each of the five has a function below, and its rows are in the order in
which they apply.

**What is wanted.** Everything that a view can want of its session is one ordered
:class:`.Wish`: nothing, to count as activity, to be saved, to get a new id, to start
over, to end. A stronger wish includes the weaker ones.

**What counts as activity.** A request that looks at its session renews it, unless it
is passive: it called ``passive()``, or asked for nothing but the time that is left
(:attr:`.Unit.is_passive`). What a passive request changes is saved, but nothing is
renewed, and no cookie is sent again. That holds against every wish up to ``TOUCH``,
since ``touch()`` makes the request active again.

**What is owed.** Some steps are done before the response is made, by ``save()`` or
``destroy()`` for example. What they owe the browser is kept in :attr:`.Unit.owed`, and
the last debt counts: the browser always learns of a new id, and of the end of the
session that it named.

**When the table is asked.** At the end of a request, by ``save()``, by an event of
Flask-SocketIO, by ``atomic()``, and again after every step that did not come off: once
the record is loaded, once a cookie is verified, once another request's changes are
merged in. So a conflict is no case of its own: what is decided after it is decided by
the same rows.

**What is never done.** Nothing is written that was only read. Nothing is sent to a
browser whose session is gone, since either cookie could undo what another request did,
nor to one whose id another request has renewed, unless this one gives it another.
Nothing is deleted in a browser that sent nothing. A log-out is never kept: where a
session ends, it ends in the store first.
"""

from __future__ import annotations

import enum
import typing as t

from .unit import Cookie
from .unit import Unit
from .unit import Wish

if t.TYPE_CHECKING:
    from .moment import Moment


class Step(enum.IntEnum):
    """What is asked of the backend."""

    NOTHING = 0
    #: Verify the cookie, which asks no backend, and plan again.
    VERIFY = 1
    #: Load the record, and plan again.
    LOAD = 2
    TOUCH = 3
    CREATE = 4
    REPLACE = 5
    #: Delete the record by a replace, which compares the version: a key that another
    #: request adds at this moment is not lost.
    EXPIRE = 6
    #: Create the record under a new id, and put a tombstone in place of the old one.
    ROTATE = 7
    DELETE = 8
    #: Changes are lost: say so.
    REPORT = 9
    #: Raise what the backend raised.
    FAIL = 10
    #: Touch, and record where the session was seen, which takes a replace. It may fail
    #: as a touch may.
    TRACK = 11


class Plan(t.NamedTuple):
    """A row of the table: what to ask of the backend, and what the browser gets."""

    step: Step
    #: If the step succeeds; otherwise nothing is sent.
    cookie: Cookie = Cookie.NONE
    #: Whether the session counts as used, which prolongs it.
    renews: bool = True


NOTHING = Plan(Step.NOTHING)
SEND = Plan(Step.NOTHING, Cookie.SET)
REMOVE = Plan(Step.NOTHING, Cookie.DELETE)
VERIFY = Plan(Step.VERIFY)
LOAD = Plan(Step.LOAD)
CREATE = Plan(Step.CREATE, Cookie.SET)
REPORT = Plan(Step.REPORT)
FAIL = Plan(Step.FAIL)
DELETE = Plan(Step.DELETE)
DELETE_BOTH = Plan(Step.DELETE, Cookie.DELETE)
TOUCH = Plan(Step.TOUCH)
TOUCH_AND_SEND = Plan(Step.TOUCH, Cookie.SET)
TRACK = Plan(Step.TRACK)
TRACK_AND_SEND = Plan(Step.TRACK, Cookie.SET)

# Looked up once: see Known.
_SAVE, _NEW_ID, _RESTART, _END = Wish.SAVE, Wish.NEW_ID, Wish.RESTART, Wish.END
_NONE, _SET, _DELETE = Cookie.NONE, Cookie.SET, Cookie.DELETE


def plan(unit: Unit, moment: Moment) -> Plan:
    """Return the row of the table that applies."""
    if moment.is_error_unsaved:
        return Plan(Step.NOTHING, unit.owed)
    return _ROWS[unit.known](unit, moment)


def _unseen(unit: Unit, moment: Moment) -> Plan:
    presented, wish = unit.presented, unit.wish
    if wish is _END:
        if not presented.is_verified:
            return VERIFY
        if presented.claim is not None or unit.is_unsettled:
            return LOAD
        return DELETE_BOTH if presented.cookie is not None else NOTHING
    if wish >= _SAVE:
        return LOAD
    if moment.save_uninitialized and not presented.values:
        return LOAD
    if unit.is_passive:
        return NOTHING
    is_sent = moment.is_wanted
    if is_sent is None:
        is_sent = presented.claims_permanent and moment.is_refreshed
    if not (is_sent or wish) or not presented.values:
        return NOTHING
    if not presented.is_verified:
        return VERIFY
    if presented.cookie is None:
        return NOTHING
    # Where the cookie cannot be sent, it would not learn of a touch either, and the
    # next request would have to touch again.
    is_public = moment.is_public
    if is_public and wish is not Wish.TOUCH:
        return NOTHING
    is_touched = moment.is_touch_due(unit)
    if (
        is_touched
        or moment.is_doubtful(unit)
        or len(presented.values) > 1  # which of them is in use?
    ):
        # A browser session's cookie is told, or every touch() would be carried out.
        is_silent = is_public or moment.is_wanted is False
        if is_touched and moment.is_tracked:
            return TRACK if is_silent else TRACK_AND_SEND
        return TOUCH if is_silent else TOUCH_AND_SEND
    if moment.is_ended_here(unit) or is_public or not is_sent:
        return NOTHING
    return SEND


def _new(unit: Unit, moment: Moment) -> Plan:
    is_empty = unit.is_empty
    if unit.owed is _DELETE and is_empty:
        return REMOVE
    is_used = unit.wish >= _SAVE and not is_empty
    if not is_used and not (moment.save_uninitialized and unit.wish is not _END):
        return NOTHING
    if moment.is_wanted is False:
        return NOTHING  # nobody could ever find what would be stored
    return CREATE


def _stored(unit: Unit, moment: Moment) -> Plan:
    wish, has_cookie = unit.wish, unit.presented.cookie is not None
    is_due = moment.is_wanted
    is_changed = wish >= _SAVE or unit.is_saved
    is_wished = bool(wish)
    is_permanent = moment.is_permanent(unit)
    is_passive = unit.is_passive
    is_used = not is_passive and (is_wished or not is_permanent or moment.is_refreshed)
    renews = is_used or (is_changed and not is_passive)
    if is_passive:
        # Only where the browser would not find what this request has stored.
        is_due = is_due is not False and (
            not has_cookie
            or (is_changed and moment.differs_from_cookie(unit, is_permanent))
        )
    elif is_due is None:
        is_due = (
            not has_cookie
            # As Flask's should_set_cookie() has it.
            or unit.is_modified
            or (is_permanent and renews)
            or moment.differs_from_cookie(unit, is_permanent)
        )
    is_owed = unit.owed is _SET
    if is_due:
        is_due = (
            unit.failure is None
            # The browser has it already, and whoever shares the cache must not get it.
            and (is_owed or not moment.is_public)
            # It has the newer id, or is about to get it.
            and not unit.is_renewed
        )
    cookie = _SET if is_due or is_owed else _NONE
    if wish >= _SAVE or moment.rotation or (moment.resave and not unit.is_saved):
        # A change from outside is not made by the user, so it renews nothing.
        return _written(unit, moment, cookie, not unit.is_outside and renews)
    if moment.is_ended_here(unit):
        return NOTHING
    if is_used and moment.is_touch_due(unit):
        return Plan(Step.TRACK if moment.is_elsewhere(unit) else Step.TOUCH, cookie)
    if is_due and has_cookie and not is_owed and moment.is_doubtful(unit):
        return Plan(Step.TOUCH, cookie, is_used)
    return SEND if cookie is _SET else NOTHING


def _written(unit: Unit, moment: Moment, cookie: Cookie, renews: bool) -> Plan:
    """Return the row of a stored session that has to be written."""
    removed = _DELETE if unit.presented.cookie is not None else _NONE
    if unit.is_renewed:
        removed = _NONE
    wish = unit.wish
    if unit.is_empty:
        if wish is _END:
            return Plan(Step.DELETE, removed)
        is_begun = wish is _RESTART and moment.save_uninitialized
        if not is_begun and not unit.was_empty:
            return Plan(Step.EXPIRE, removed, renews)
    if (
        moment.rotation
        or wish in (_NEW_ID, _RESTART)
        # After the response it keeps its id, since the browser cannot learn another.
        or (wish is _END and not unit.is_closed)
    ):
        # A log-in and a new id count as activity, even in a passive request.
        return Plan(Step.ROTATE, _SET, renews or unit.is_passive)
    return Plan(Step.REPLACE, cookie, renews)


def _gone(unit: Unit, moment: Moment) -> Plan:
    if unit.wish is _END and unit.is_empty:
        return DELETE
    if unit.wish >= _SAVE and not (unit.is_empty and unit.data):
        return REPORT
    return NOTHING


def _broken(unit: Unit, moment: Moment) -> Plan:
    # Logging out must not look as if it had worked, ...
    if unit.wish is _END:
        return FAIL
    # ... nor must what is stored, unless it is a newer version's: its visitors have an
    # empty session that is not saved, until all workers have that version.
    is_unsaved = unit.wish >= _SAVE and (moment.raises or not unit.is_empty)
    return FAIL if unit.failure is not None and is_unsaved else NOTHING


_ROWS: tuple[t.Callable[[Unit, Moment], Plan], ...] = (
    _unseen,
    _new,
    _stored,
    _gone,
    _broken,
)
