"""Carries out what :mod:`.plan` decides. The only caller of the backend's verbs.

A session is settled in a loop: ask the table, do what its row says, and ask again if
the step did not come off because another request was in the way. So loading first,
merging, ``atomic()`` and a rotation after a conflict are one loop.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import enum
import logging
import typing as t

from . import conflicts
from . import signals
from .activity import touch_stored
from .activity import touch_unseen
from .activity import track
from .atomic import run_atomically
from .backends.base import Conflict
from .backends.base import Replaced
from .core import Core
from .errors import BackendUnavailableError
from .errors import RecordError
from .errors import SessionLostError
from .loading import Loader
from .moment import Moment
from .plan import Plan
from .plan import Step
from .plan import plan
from .record import NO_META
from .record import Record
from .rotation import Rotation
from .rotation import create
from .rotation import delete_successor
from .rotation import go_along
from .rotation import log_out_successor
from .rotation import refuse_if_closed
from .unit import PERMANENT_KEY
from .unit import Cookie
from .unit import Known
from .unit import Unit
from .unit import Wish
from .unsaved import UnsavedChanges
from .user_limit import tell_stored

if t.TYPE_CHECKING:
    from .takeover import Takeover

T = t.TypeVar("T")
Resolve = cabc.Callable[[Record], None]

logger = logging.getLogger("flask_serversession")


_UNCHANGED: tuple[str, bytes | None] = ("", None)


class Outcome(enum.IntEnum):
    """What became of a step."""

    #: It was done.
    DONE = 0
    #: Something was learnt, or another request was in the way: plan again.
    AGAIN = 1
    #: The session is gone, or nobody can tell: the browser is told nothing.
    LOST = 2


class _Attempts:
    """What one call of settle() carries from one attempt to the next.

    :param resolve: Brings in what another request has stored; ``None`` for a merge.
    """

    #: The change of the id, once one was begun.
    rotation: Rotation | None = None
    conflicts: int = 0
    #: Why the session is written, for the log.
    reason: str = ""
    #: The content as the look for changes has serialized it.
    encoded: bytes | None = None

    def __init__(self, resolve: Resolve | None) -> None:
        self.resolve = resolve

    @property
    def is_rotation_pending(self) -> bool:
        """Whether the session is stored under a new id that nobody was told yet."""
        return self.rotation is not None and self.rotation.pending is not None


class Lifecycle:
    """What sessions ask for, and what becomes of them. Thread-safe.

    :param takeover: Takes over the sessions of other kinds; ``None`` if none are.
    :param unsaved: Warns of changes that are not saved.
    """

    def __init__(
        self, core: Core, takeover: Takeover | None, unsaved: UnsavedChanges
    ) -> None:
        self.core = core
        self.loader = Loader(core, takeover)
        self.unsaved = unsaved
        self._act: dict[
            Step, cabc.Callable[[Unit, Plan, Moment, _Attempts], Outcome]
        ] = {
            Step.TOUCH: self._touch,
            Step.TRACK: self._touch,
            Step.CREATE: self._create,
            Step.REPLACE: self._replace,
            Step.EXPIRE: self._replace,
            Step.ROTATE: self._rotate,
            Step.DELETE: self._delete,
            Step.REPORT: self._report,
            Step.FAIL: self._fail,
        }

    # Settling

    def settle(
        self, unit: Unit, moment: Moment, resolve: Resolve | None = None
    ) -> Cookie:
        """Plan and act until nothing is in the way; return what the browser gets.

        :param resolve: Brings in what another request has stored: a merge unless
            given.
        :raises ConflictError: after a hundred conflicts in a row.
        """
        while True:
            change = _UNCHANGED
            # What changed is looked for first, if anything is saved.
            if unit.known is Known.STORED and not moment.is_error_unsaved:
                change = self._find_change(unit, moment, None)
            row = plan(unit, moment)
            step = row.step
            if step is Step.NOTHING:
                return row.cookie
            if step is Step.VERIFY:
                self.loader.verify(unit)
            elif step is Step.LOAD:
                self.loader.load(unit)
            else:
                return self._carry_out(unit, moment, row, change, resolve)

    def _carry_out(
        self,
        unit: Unit,
        moment: Moment,
        row: Plan,
        change: tuple[str, bytes | None],
        resolve: Resolve | None,
    ) -> Cookie:
        """Do what the table says, and ask it again after each conflict."""
        attempts = _Attempts(resolve)
        try:
            while True:
                attempts.reason, attempts.encoded = change
                outcome = self._act[row.step](unit, row, moment, attempts)
                if outcome is Outcome.DONE:
                    return row.cookie
                if outcome is Outcome.LOST:
                    return Cookie.NONE
                change = self._find_change(unit, moment, attempts)
                row = plan(unit, moment)
        except BackendUnavailableError:
            # The write may have succeeded unacknowledged. Don't query again: the
            # request has already waited for one time-out.
            attempts.rotation = None
            raise
        finally:
            if attempts.rotation is not None:
                attempts.rotation.take_back()

    def _find_change(
        self, unit: Unit, moment: Moment, attempts: _Attempts | None
    ) -> tuple[str, bytes | None]:
        """Find out once why a stored session has to be written, and get a new id.

        :return: As :meth:`.Unit.find_change`.
        """
        core, stored = self.core, unit.stored
        assert stored is not None  # noqa: S101 - for type checkers
        change = _UNCHANGED
        if (
            unit.wish >= Wish.SAVE
            or unit.is_exposed
            or unit.lifetime != stored.lifetime
        ):
            change = unit.find_change(core.serializer)
            if change[0] and unit.wish < Wish.SAVE:
                unit.wish = Wish.SAVE
        if unit.is_atomic:
            change = ("atomic() was called", change[1])
        config, rotation = core.config, ""
        if config.regenerate_on_login and core.user_of(unit.data) != stored.record.user:
            rotation = "the user changed"
        elif (
            config.renewal_interval is not None
            # The browser cannot be told any more; the next request will do.
            and not unit.phase
            and core.clock() - stored.issued_at >= config.renewal_interval
        ):
            rotation = "it is as old as 'SESSION_RENEWAL_INTERVAL'"
        elif attempts is not None and attempts.is_rotation_pending:
            rotation = "it was begun"
        moment.rotation = rotation
        return change

    # The steps

    def _touch(self, unit: Unit, row: Plan, *_: t.Any) -> Outcome:
        if row.step is Step.TRACK:
            is_alive = track(self.core, self.loader, unit)
        elif unit.known is Known.UNSEEN:
            is_alive = touch_unseen(self.core, self.loader, unit)
        else:
            is_alive = touch_stored(self.core, unit, row.renews)
        return Outcome.DONE if is_alive else Outcome.LOST

    def _create(self, unit: Unit, *_: t.Any) -> Outcome:
        refuse_if_closed(
            unit,
            "The session is new and the response was already sent, so the browser"
            " cannot learn its id. Write to the session before the response begins.",
        )
        core = self.core
        if core.config.permanent:
            unit.data.setdefault(PERMANENT_KEY, True)
        payload = core.dumps(unit)
        unit.identity, now = unit.identity or core.issue(), core.clock()
        unit.identity, record = create(core, unit, unit.identity, payload, now, now)
        unit.owed = Cookie.SET
        core.keep(unit, record, payload, now)
        logger.debug("Session %s saved: new", core.handle_of(unit.key))
        tell_stored(core, unit, signals.session_created, None)
        return Outcome.DONE

    def _replace(
        self, unit: Unit, row: Plan, moment: Moment, attempts: _Attempts
    ) -> Outcome:
        core, before = self.core, unit.stored
        assert before is not None  # noqa: S101 - for type checkers
        stored, issued_at = before.record, before.issued_at
        payload = core.dumps(unit, attempts.encoded)
        version = stored.version + 1
        now = core.clock()
        identity = unit.identity
        assert identity is not None  # noqa: S101 - for type checkers
        record = core.make_record(
            unit,
            identity,
            payload,
            now,
            stored.created_at,
            issued_at,
            version,
            row.renews,
        )
        if row.step is Step.EXPIRE:
            record = dataclasses.replace(record, expires_at=now)
        try:
            result = core.ask(
                unit, "replace", core.backend.replace, unit.key, record, stored.version
            )
        except RecordError:
            return self._give_up(unit, attempts)
        if isinstance(result, Conflict) and result.current.data == record.data:
            # No two writes are alike: an acknowledgement was lost, and a driver that
            # asked again met what it had already written.
            result = Replaced(result.current.version)
        if isinstance(result, Replaced):
            if record.expires_at <= now:
                self._end(unit)
                return Outcome.DONE
            if result.version != version:
                record = dataclasses.replace(record, version=result.version)
            core.keep(unit, record, payload, issued_at)
            reason = attempts.reason or "resave"
            logger.debug("Session %s saved: %s", core.handle_of(unit.key), reason)
            tell_stored(core, unit, signals.session_saved, stored.user)
            # Another request of this process may have ended it in the same moment.
            return Outcome.LOST if moment.is_ended_here(unit) else Outcome.DONE
        if isinstance(result, Conflict):
            current: Record | None = result.current
            if result.current.is_tombstone and unit.is_outside:
                current = go_along(core, unit, result.current)
            elif result.current.is_tombstone:
                log_out_successor(core, unit, result.current)
                current = None
            if current is not None:
                return self._conflict(unit, current, attempts)
        return self._give_up(unit, attempts)

    def _rotate(
        self, unit: Unit, row: Plan, moment: Moment, attempts: _Attempts
    ) -> Outcome:
        user, key = unit.stored_user, unit.key
        reason = moment.rotation
        if unit.wish is Wish.END:
            # Emptying a session ends it, so what is written afterwards begins another
            # one, which a request that still runs for the former has no part in.
            reason = "it was emptied and written again"
        elif unit.wish >= Wish.NEW_ID:
            reason = "regenerate() was called"
        if attempts.rotation is None:
            attempts.rotation = Rotation(self.core, unit)
        result = attempts.rotation.attempt(reason, row.renews, attempts.encoded)
        if isinstance(result, Record):
            return self._conflict(unit, result, attempts)
        if not result:
            return self._give_up(unit, attempts)
        previous = self.core.handle_of(key)
        tell_stored(
            self.core, unit, signals.session_regenerated, user, previous=previous
        )
        return Outcome.LOST if moment.is_ended_here(unit) else Outcome.DONE

    def _delete(self, unit: Unit, *_: t.Any) -> Outcome:
        return Outcome.DONE if self._delete_current(unit) else Outcome.LOST

    def _report(self, unit: Unit, *_: t.Any) -> Outcome:
        is_ending = unit.wish is Wish.END
        try:
            return self._lose(unit, True)
        finally:
            # A log-out is one whatever else is dropped, such as a message.
            if is_ending:
                self._delete_current(unit)

    def _fail(self, unit: Unit, *_: t.Any) -> Outcome:
        assert unit.failure is not None  # noqa: S101 - for type checkers
        raise unit.failure

    # Conflicts

    def _conflict(self, unit: Unit, current: Record, attempts: _Attempts) -> Outcome:
        """Bring in what another request has stored.

        :param current: What was in the way.
        """
        attempts.conflicts += 1
        found = conflicts.wait(self.core, unit, current, attempts.conflicts)
        if found is None:
            return self._give_up(unit, attempts)
        if attempts.resolve is None:
            conflicts.resolve(self.core, unit, found)
        else:
            attempts.resolve(found)
        if unit.known is not Known.STORED:  # atomic()'s function ended it
            return Outcome.LOST
        return Outcome.AGAIN

    def _give_up(self, unit: Unit, attempts: _Attempts) -> Outcome:
        """Drop what could not be written, since the session is gone."""
        # First: whoever is told of the loss must not find a successor in the store.
        if attempts.rotation is not None:
            attempts.rotation.take_back()
        return self._lose(unit, bool(attempts.reason))

    # Telling

    def _lose(self, unit: Unit, has_changes: bool) -> Outcome:
        """Drop the changes of a session that another request has ended."""
        if unit.known not in (Known.STORED, Known.GONE):
            return Outcome.LOST
        unit.lose()
        if has_changes:
            if not unit.is_loss_told:
                unit.is_loss_told = True
                logger.info(
                    "Session %s was ended or rotated by another request; the changes"
                    " of this one are dropped.",
                    self.core.handle_of(unit.key),
                )
                self.core.send(signals.session_lost, unit.key, unit.stored_user)
            if self.core.config.on_lost == "raise" or unit.is_outside:
                raise SessionLostError(
                    "Another request ended the session, or gave it a new id, while"
                    " this one ran; its changes are dropped."
                )
        return Outcome.LOST

    # Ending

    def _delete_current(self, unit: Unit) -> bool:
        """Delete the session; if it was not loaded yet, the first that is there."""
        is_unseen = unit.known is Known.UNSEEN
        is_deleted = self._delete_record(unit)
        while is_unseen and not is_deleted and self.loader.verify_next(unit):
            is_deleted = self._delete_record(unit)
        return is_deleted

    def _delete_record(self, unit: Unit) -> bool:
        core = self.core
        try:
            if core.ask(unit, "delete", core.backend.delete, unit.key):
                self._end(unit)
                return True
            record = core.ask(unit, "load", core.backend.load, unit.key)
        except RecordError as error:
            if unit.is_outside:
                raise
            self.loader.take_unreadable(unit, error)
            return False
        if record is not None:
            delete_successor(core, unit, record)
        elif not unit.is_outside:
            self.loader.begin_instead(unit, "unknown")
            return False
        unit.lose()
        return False

    def _end(self, unit: Unit) -> None:
        key, user = unit.key, unit.stored_user
        logger.debug("Session %s ended", self.core.handle_of(key))
        unit.begin()
        unit.owed = Cookie.NONE if unit.cookie is None else Cookie.DELETE
        unit.wish = unit.least_wish
        unit.is_exposed = False
        self.core.send_destroyed(key, user)

    # What a session asks for

    def regenerate(self, unit: Unit, keep_data: bool) -> None:
        """Prepare a new id."""
        refuse_if_closed(
            unit,
            "regenerate() came after the response was sent; the browser cannot learn"
            " the new id any more. Call it before the response begins.",
        )
        if not keep_data:
            unit.data.clear()
            unit.lifetime = None
            unit.own_meta = NO_META
            unit.is_new = True
        if unit.known is Known.STORED:
            unit.want(Wish.NEW_ID if keep_data else Wish.RESTART)
            return
        unit.want(Wish.SAVE)
        if unit.known is Known.NEW:
            unit.identity = None

    def destroy(self, unit: Unit) -> None:
        """Delete the record now and start over."""
        self.loader.verify(unit)
        if unit.presented.claim is not None and unit.known is Known.UNSEEN:
            # What is ended has to leave a marker, and that is what taking over does.
            unit.want(Wish.END)
            self.loader.load(unit)
        if unit.failure is not None:
            # Not known to be ended, so nobody may be told that it is: the response
            # neither, should the view go on.
            unit.want(Wish.END)
            raise unit.failure
        unit.data.clear()
        unit.forget_wishes()
        unit.is_exposed = False
        if unit.key and unit.known in (Known.UNSEEN, Known.STORED, Known.GONE):
            try:
                self._delete_current(unit)
            except BackendUnavailableError:
                unit.want(Wish.END)
                raise
        elif unit.known in (Known.UNSEEN, Known.NEW):
            unit.begin()

    def reload(self, unit: Unit) -> None:
        """Forget local changes and load again."""
        unit.forget_wishes()
        unit.is_exposed = False
        core = self.core
        if unit.known is Known.STORED:
            # As this request last left it, also when it has rotated the id already.
            with contextlib.suppress(RecordError):
                record = core.ask(unit, "load", core.backend.load, unit.key)
                if record and not record.is_tombstone and not core.is_too_old(record):
                    core.adopt(unit, record)
                    return
            unit.data = {}
            unit.lose()
        elif unit.known is Known.UNSEEN:
            self.loader.load(unit)
        elif unit.known is Known.NEW:
            unit.begin()
        else:
            unit.data = {}

    def save(self, unit: Unit) -> None:
        """Write now, or together with the rest of what atomic() does."""
        if not unit.is_atomic:
            self.write(unit, None)

    def write(self, unit: Unit, resolve: Resolve | None) -> None:
        """Write what has changed.

        :param resolve: As in :meth:`settle`.
        """
        if unit.known is Known.UNSEEN and unit.wish < Wish.SAVE:
            return
        moment = Moment(self.core)
        if unit.known is Known.NEW and not unit.is_empty:
            unit.want(Wish.SAVE)
        elif unit.failure is not None and unit.known is Known.BROKEN and moment.raises:
            # Said here, and not again at the end of a request that changed nothing.
            raise unit.failure
        self.settle(unit, moment, resolve)

    def save_event(self, unit: Unit) -> None:
        """Save what a handler of Flask-SocketIO has changed.

        No cookie can be sent, so a session that would need one stays as it is stored,
        which is warned of afterwards. ``session.save()`` raises instead.
        """
        if unit.known is Known.UNSEEN:
            self.loader.load(unit)
        if unit.known is Known.NEW:
            return
        moment = Moment(self.core)
        if unit.known is Known.STORED:
            self._find_change(unit, moment, None)
        if plan(unit, moment).step is not Step.ROTATE:
            self.settle(unit, moment)

    def touch(self, unit: Unit) -> None:
        """Count as activity: at the end of the request, or now if that has passed."""
        unit.want(Wish.TOUCH)
        if unit.is_closed and unit.known in (Known.UNSEEN, Known.STORED):
            moment = Moment(self.core, is_end=True)
            self.loader.verify(unit)
            if moment.is_touch_due(unit):
                self._touch(unit, Plan(Step.TOUCH))

    def atomic(self, unit: Unit, function: cabc.Callable[[], T]) -> T:
        """Run the function on the freshest copy and save it."""
        if unit.is_atomic:  # a part of what the outer one saves, and repeats
            return function()
        unit.is_atomic = True
        try:
            if unit.known is Known.STORED:
                return run_atomically(self.core, unit, function, self.write)
            result = function()
            self.write(unit, None)
            return result
        finally:
            unit.is_atomic = False
