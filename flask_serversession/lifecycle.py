"""Carries out what :mod:`.plan` decides. The only caller of the backend's verbs.

A session is settled in a loop: ask the table, do what its row says, and ask again if
the step did not come off because another request was in the way. So loading first,
merging, ``atomic()`` and a rotation after a conflict are one loop.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging
import typing as t

from . import conflicts
from . import signals
from .activity import look_again
from .activity import time_left
from .activity import touch_stored
from .activity import touch_unseen
from .activity import track
from .atomic import run
from .attempts import Attempts
from .attempts import Outcome
from .attempts import Resolve
from .backends.base import Conflict
from .backends.base import Replaced
from .core import Core
from .ending import Ending
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import ConflictError
from .errors import RecordError
from .errors import ServerSessionError
from .errors import SessionLostError
from .loading import Loader
from .logouts import LogOuts
from .logouts import changes_user
from .logouts import drop_rest
from .logouts import ends_anyway
from .logouts import refuse_newer
from .moment import Moment
from .plan import Plan
from .plan import Step
from .plan import plan
from .record import NO_META
from .record import Record
from .rotation import Rotation
from .rotation import create
from .rotation import find_reason
from .rotation import is_somebody_left
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

logger = logging.getLogger("flask_serversession")


_UNCHANGED: tuple[str, bytes | None] = ("", None)
# Looked up once: see :class:`.Known`.
_STORED, _SAVE = Known.STORED, Wish.SAVE
_NOTHING, _VERIFY, _LOAD = Step.NOTHING, Step.VERIFY, Step.LOAD
_DONE, _LOST = Outcome.DONE, Outcome.LOST


class Lifecycle:
    """What sessions ask for, and what becomes of them. Thread-safe.

    :param takeover: Takes over the sessions of other kinds; ``None`` if none are.
    :param unsaved: Warns of changes that are not saved.
    :param log_outs: Hears of log-outs that change nothing in a session.
    """

    def __init__(
        self,
        core: Core,
        takeover: Takeover | None,
        unsaved: UnsavedChanges,
        log_outs: LogOuts,
    ) -> None:
        self.core = core
        self._log_outs = log_outs
        self.loader = Loader(core, takeover, log_outs)
        self.ending = Ending(core, self.loader)
        self.unsaved = unsaved
        self._act: dict[
            Step, cabc.Callable[[Unit, Plan, Moment, Attempts], Outcome]
        ] = {
            Step.NOTHING: self._do_nothing,
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
            if unit.known is _STORED and not moment.is_error_unsaved:
                change = self._find_change(unit, moment, None)
            row = plan(unit, moment)
            step = row.step
            if step is _NOTHING:
                return row.cookie
            if step is _VERIFY:
                self.loader.verify(unit)
            elif step is _LOAD:
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
        attempts = Attempts(resolve)
        try:
            while True:
                attempts.reason, attempts.encoded = change
                try:
                    outcome = self._act[row.step](unit, row, moment, attempts)
                except BackendUnavailableError as error:
                    if not (error.full and ends_anyway(self.core, unit)):
                        raise
                    drop_rest(self.core, unit)
                    attempts.take_back()
                    outcome = Outcome.AGAIN
                if outcome is _DONE:
                    return row.cookie
                if outcome is _LOST:
                    return Cookie.NONE
                change = _UNCHANGED
                if unit.known is _STORED:
                    change = self._find_change(unit, moment, attempts)
                row = plan(unit, moment)
        except BackendUnavailableError:
            # The write may have succeeded unacknowledged. Don't query again: the
            # request has already waited for one time-out.
            if attempts.rotation is not None:
                attempts.rotation.give_up()
            raise
        finally:
            if attempts.rotation is not None:
                attempts.rotation.take_back()

    def _find_change(
        self, unit: Unit, moment: Moment, attempts: Attempts | None
    ) -> tuple[str, bytes | None]:
        """Find out once why a stored session has to be written, and get a new id.

        :return: As :meth:`.Unit.find_change`.
        """
        core, stored = self.core, unit.stored
        assert stored is not None  # noqa: S101 - for type checkers
        change = _UNCHANGED
        if (
            unit.wish >= _SAVE
            or unit.is_exposed
            or unit.lifetime != stored.envelope.lifetime
        ):
            change = unit.find_change(core.serializer)
            if change[0] and unit.wish < _SAVE:
                unit.wish = _SAVE
        if unit.is_atomic:
            change = ("atomic() was called", change[1])
        moment.rotation = find_reason(core, unit, is_changed=bool(change[0]))
        if not moment.rotation and attempts is not None:
            moment.rotation = "it was begun" if attempts.is_rotation_pending else ""
        return change

    # The steps

    def _do_nothing(self, *_: t.Any) -> Outcome:
        return Outcome.DONE  # after a conflict, nothing may be left to do

    def _touch(self, unit: Unit, row: Plan, *_: t.Any) -> Outcome:
        if row.step is Step.TRACK:
            is_alive = track(self.core, self.loader, unit)
        elif unit.known is Known.UNSEEN:
            is_alive = touch_unseen(self.core, self.loader, unit)
        else:
            is_alive = touch_stored(self.core, unit, row.renews)
        return Outcome.DONE if is_alive else Outcome.LOST

    def _create(self, unit: Unit, row: Plan, moment: Moment, *_: t.Any) -> Outcome:
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
        try:
            made = create(core, unit, unit.identity, payload, now, now)
        except BackendUnavailableError:
            raise
        except BaseException:
            unit.identity = None  # which may be taken now, if it is tried again
            raise
        unit.identity, stored = made
        unit.owed = Cookie.SET
        core.keep(unit, stored)
        core.log_saved(unit, "new")
        tell_stored(core, unit, signals.session_created, None)
        # Others may have logged in at the same moment, and be the last ones.
        return _LOST if moment.is_ended_here(unit) else _DONE

    def _replace(
        self, unit: Unit, row: Plan, moment: Moment, attempts: Attempts
    ) -> Outcome:
        if not row.renews and (found := look_again(self.core, unit)) is not True:
            if found is None:
                return self._give_up(unit, attempts)
            return self._conflict(unit, found, attempts)
        core, before, identity = self.core, unit.stored, unit.identity
        assert before is not None and identity is not None  # noqa: PT018, S101 - for type checkers
        stored, key = before.record, identity.key
        payload, now = core.dumps(unit, attempts.encoded), core.clock()
        made = core.make(
            unit,
            identity,
            payload,
            now,
            stored.created_at,
            before.envelope.issued_at,
            stored.version + 1,
            row.renews,
        )
        if row.step is Step.EXPIRE:
            made = made.changed(expires_at=now)
        record = made.record
        try:
            result = core.ask(
                unit, "replace", core.backend.replace, key, record, stored.version
            )
        except RecordError as error:
            return self._give_up(unit, attempts, error)
        except BaseException:
            unit.unacknowledged = made
            raise
        if isinstance(result, Conflict) and result.current.data == record.data:
            # No two writes are alike: an acknowledgement was lost, and a driver that
            # asked again met what it had already written.
            result = Replaced(result.current.version)
        if isinstance(result, Replaced):
            if record.expires_at <= now:
                self.ending.end(unit)
                return Outcome.DONE
            if result.version != record.version:
                made = made.changed(version=result.version)
            core.keep(unit, made)
            core.log_saved(unit, attempts.reason or "resave")
            tell_stored(core, unit, signals.session_saved, stored.user)
            # Another request of this process may have ended it in the same moment.
            return _LOST if moment.is_ended_here(unit) else _DONE
        if isinstance(result, Conflict):
            if not result.current.is_tombstone and not attempts.reason:
                # SESSION_RESAVE writes again what was only read, and another request
                # has just done that.
                return Outcome.DONE
            return self._conflict(unit, result.current, attempts)
        return self._give_up(unit, attempts)

    def _rotate(
        self, unit: Unit, row: Plan, moment: Moment, attempts: Attempts
    ) -> Outcome:
        user, key = unit.stored_user, unit.key
        reason = moment.rotation
        if unit.wish is Wish.END:
            # Emptying a session ends it, so what is written afterwards begins another
            # one, which a request that still runs for the former has no part in.
            reason = "it was emptied and written again"
        elif unit.wish >= Wish.NEW_ID:
            reason = "regenerate() was called"
            if unit.confirmed_at is not None:
                reason = "mark_authenticated() was called"
        is_restarted = unit.is_restarted
        if attempts.rotation is None:
            attempts.rotation = Rotation(self.core, unit)
        try:
            result = attempts.rotation.attempt(reason, row.renews, attempts.encoded)
        except RecordError as error:
            return self._give_up(unit, attempts, error)
        if isinstance(result, Record):
            return self._conflict(unit, result, attempts)
        if not result:
            return self._give_up(unit, attempts)
        previous = self.core.handle_of(key)
        try:
            tell_stored(
                self.core, unit, signals.session_regenerated, user, previous=previous
            )
        finally:
            if is_restarted:
                self.core.send_destroyed(key, user, "replaced")
        return Outcome.LOST if moment.is_ended_here(unit) else Outcome.DONE

    def _delete(self, unit: Unit, *_: t.Any) -> Outcome:
        is_deleted = self.ending.delete_current(unit)
        # What was ended under a renewed id is not what the browser has.
        return _DONE if is_deleted and unit.owed is Cookie.DELETE else _LOST

    def _report(self, unit: Unit, *_: t.Any) -> Outcome:
        is_ending = unit.wish is Wish.END
        try:
            return self._lose(unit, True)
        finally:
            # A log-out is one whatever else is dropped, such as a message.
            if is_ending:
                self.ending.delete_current(unit)

    def _fail(self, unit: Unit, *_: t.Any) -> Outcome:
        raise unit.failure or refuse_newer(self.core, unit)

    # Conflicts

    def _conflict(self, unit: Unit, current: Record, attempts: Attempts) -> Outcome:
        """Bring in what another request has stored.

        :param current: What was in the way.
        """
        attempts.conflicts += 1
        try:
            found = conflicts.wait(self.core, unit, current, attempts.conflicts)
            if found is not None and found.is_tombstone:
                found = self._follow(unit, found, attempts)
            if found is None or conflicts.has_timed_out(self.core, unit, found):
                return self._give_up(unit, attempts)
            if attempts.resolve is None:
                conflicts.resolve(self.core, unit, found)
            else:
                attempts.resolve(found)
        except RecordError as error:
            return self._give_up(unit, attempts, error)
        except (BackendError, ConflictError) as error:
            if attempts.reason or isinstance(error, BackendUnavailableError):
                raise
            return Outcome.LOST  # it was only read, and its id can be renewed later
        if unit.known is not Known.STORED:  # atomic()'s function ended it
            return Outcome.LOST
        return Outcome.AGAIN

    def _follow(
        self, unit: Unit, tombstone: Record, attempts: Attempts
    ) -> Record | None:
        """Go on under the id that another request has given the session.

        :return: What is stored there; ``None`` if this request has no part in it.
        """
        core = self.core
        attempts.take_back()
        found = None
        with contextlib.suppress(RecordError):
            found = self.loader.follow(unit, tombstone)
        if found is None:
            log_out_successor(core, unit, tombstone)
        return found

    def _give_up(
        self, unit: Unit, attempts: Attempts, error: RecordError | None = None
    ) -> Outcome:
        """Drop what could not be written, since the session is gone.

        :param error: Why what is stored now cannot be read.
        """
        # First: whoever is told of the loss must not find a successor in the store.
        if attempts.rotation is not None:
            attempts.rotation.take_back()
        is_newer = error is not None and error.reason == "newer"
        if is_newer and changes_user(self.core, unit):
            raise refuse_newer(self.core, unit) from error
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

    # What a session asks for

    def regenerate(
        self, unit: Unit, keep_data: bool, name: str = "regenerate()"
    ) -> None:
        """Prepare a new id.

        :param name: What the application has called.
        """
        refuse_if_closed(
            unit,
            f"{name} came after the response was sent; the browser cannot learn the"
            " new id any more. Call it before the response begins.",
        )
        if not keep_data:
            unit.data.clear()
            unit.lifetime = None
            unit.own_meta = NO_META
            unit.is_new = True
        if unit.known is Known.STORED:
            unit.want(Wish.NEW_ID if keep_data else Wish.RESTART)
            return
        if not keep_data and (
            unit.known is Known.BROKEN
            or (unit.known is Known.GONE and is_somebody_left(self.core, unit))
        ):
            unit.want(Wish.END)  # whoever starts over is logged out
            return
        unit.want(Wish.SAVE)
        if unit.known is Known.NEW:
            unit.identity = None

    def mark_authenticated(self, unit: Unit) -> None:
        """Note that the user has just proved who they are, and prepare a new id."""
        if self.core.user_of(unit.data) is None:
            raise ServerSessionError(
                "mark_authenticated() was called while nobody is logged in. Put the"
                " user's id into the session first, where 'SESSION_USER_KEY' finds it."
            )
        self.regenerate(unit, True, "mark_authenticated()")
        unit.confirmed_at = self.core.clock()
        if not self.core.is_proven(unit):
            self._log_outs.confirm(unit)

    def reload(self, unit: Unit) -> None:
        """Forget local changes and load again."""
        unit.forget_wishes()
        unit.is_exposed = False
        core = self.core
        if unit.known is Known.STORED:
            # As this request last left it, also when it has rotated the id already.
            with contextlib.suppress(RecordError):
                record = core.ask(unit, "load", core.backend.load, unit.key)
                if record is not None and record.is_tombstone:
                    record = self.loader.follow(unit, record)
                if record is not None and not (
                    core.is_too_old(record) or core.is_unproven(unit, record)
                ):
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
        elif (failure := unit.failure) is not None and unit.known is Known.BROKEN:
            # Said here, and not again at the end of a request that changed nothing.
            raise failure
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

    def time_left(self, unit: Unit) -> float:
        """Return for how many seconds the session lives if it is not used again."""
        return time_left(self.core, self.loader, unit)

    def touch(self, unit: Unit) -> None:
        """Count as activity: at the end of the request, or now if that has passed."""
        unit.be_active(True)
        unit.want(Wish.TOUCH)
        if unit.is_closed and unit.known in (Known.UNSEEN, Known.STORED):
            moment = Moment(self.core, is_end=True)
            self.loader.verify(unit)
            if moment.is_touch_due(unit):
                self._touch(unit, Plan(Step.TOUCH))

    def atomic(self, unit: Unit, function: cabc.Callable[[], T]) -> T:
        """Run the function on the freshest copy and save it."""
        return run(self.loader, unit, function, self.write)
