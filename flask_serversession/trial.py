"""Tries a backend out, so that what it lacks is found before visitors find it."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import secrets
import typing as t

from .backends.base import Capability
from .backends.base import Conflict
from .backends.base import Replaced
from .errors import BackendError
from .errors import BackendUnavailableError
from .errors import RecordError
from .ids import generate_id
from .ids import key_of
from .operator import AppState
from .payload import Envelope
from .payload import Sealer
from .record import Record

#: Whose the record is. Always the same, so that no index is left for each trial.
USER = "flask sessions check"
# For how many seconds the record lives, should deleting it fail; and after its touch,
# which is beyond what an index of users lists at first.
_LIFE = 60.0
_LONGER_LIFE = 120.0


class Step(t.NamedTuple):
    """One operation that was tried."""

    #: The backend's name for it, such as ``"touch"``.
    operation: str
    #: What went wrong; ``None`` if it worked.
    error: BackendError | RecordError | None


def try_out(state: AppState) -> list[Step]:
    """Write, list, change, touch and delete a record of its own.

    Goes on after a failure, so that all that is lacking is found at once; but not
    without a record, and not after the backend has failed to answer.

    :return: What was tried, in this order.
    """
    steps: list[Step] = []
    failed: set[str] = set()
    for operation, attempt, needed in _Trial(state).attempts():
        if needed & failed:
            continue
        error: BackendError | RecordError | None = None
        try:
            if complaint := attempt():
                error = BackendError(
                    f"The {state.backend.name!r} backend {complaint}.",
                    backend=state.backend.name,
                    operation=operation,
                )
        except (BackendError, RecordError) as failure:
            error = failure
        steps.append(Step(operation, error))
        if error is not None:
            failed.add(operation)
        if _is_silent(error):
            break
    return steps


def did_answer(steps: cabc.Sequence[Step]) -> bool:
    """Return whether the backend has answered all the time, if only to refuse."""
    return not any(_is_silent(step.error) for step in steps)


def _is_silent(error: Exception | None) -> bool:
    """Whether there was no answer, so that the next one would be waited for too."""
    return isinstance(error, BackendUnavailableError) and not error.refused


class _Trial:
    """A record, and what is done to it. Each attempt returns a complaint or nothing.

    Asks the backend itself, not through the circuit breaker: a command has to see what
    is, and what it does must not stop requests.
    """

    def __init__(self, state: AppState) -> None:
        self._backend = state.backend
        self._key = key_of(generate_id(), state.config.key_prefix)
        self._now = now = state.interface.core.clock()
        sealer = Sealer(state.config.encryption_key)

        def sealed() -> bytes:
            # As a session is: what moves sessions looks inside.
            envelope = Envelope(secrets.token_bytes(16), b"m", None, now)
            return sealer.seal(envelope, self._key, created_at=now, user=USER)

        self._record = Record(
            data=sealed(),
            version=1,
            created_at=now,
            touched_at=now,
            expires_at=now + _LIFE,
            user=USER,
        )
        self._changed = dataclasses.replace(self._record, data=sealed(), version=2)

    def attempts(
        self,
    ) -> cabc.Iterator[tuple[str, cabc.Callable[[], str], frozenset[str]]]:
        """Return the operations in their order, with what tries each.

        Last comes which others must not have failed, for it to tell anything new.
        """
        has_index = Capability.USER_INDEX in self._backend.capabilities
        created = frozenset({"create"})
        changed = created | {"replace"}
        deleted = created | {"delete"}
        yield "create", self._create, frozenset()
        yield "load", self._load, created
        if has_index:
            yield "keys_of_user", self._list, created
        yield "replace", self._replace, created
        yield "replace", self._replace_too_late, changed
        yield "touch", self._touch, created
        yield "load", self._load_changed, changed | {"touch", "load"}
        yield "delete", self._delete, created
        yield "load", self._load_deleted, deleted | {"load"}
        if has_index:
            yield "keys_of_user", self._list_deleted, deleted | {"keys_of_user"}

    def _create(self) -> str:
        if self._backend.create(self._key, self._record):
            return ""
        return "says that there is a record under a key that is new"

    def _load(self) -> str:
        stored = self._backend.load(self._key)
        if stored is not None and stored.data == self._record.data:
            return ""
        return "took a record, but does not give it back"

    def _list(self) -> str:
        if self._key in self._backend.keys_of_user(USER):
            return ""
        return "does not list a record among those of its user"

    def _replace(self) -> str:
        result = self._backend.replace(self._key, self._changed, 1)
        if result == Replaced(2):
            return ""
        return "did not change a record that nobody else has changed"

    def _replace_too_late(self) -> str:
        late = self._record
        if isinstance(self._backend.replace(self._key, late, 1), Conflict):
            return ""
        return "did not notice that another request has changed a record"

    def _touch(self) -> str:
        if self._backend.touch(self._key, self._now, self._now + _LONGER_LIFE):
            return ""
        return "did not touch a record that is there"

    def _load_changed(self) -> str:
        stored = self._backend.load(self._key)
        if stored is None or stored.data != self._changed.data:
            return "does not give back what a record was changed to"
        if stored.expires_at < self._now + _LONGER_LIFE - 1:
            return "did not prolong the record that it touched"
        return ""

    def _delete(self) -> str:
        if self._backend.delete(self._key):
            return ""
        return "did not delete a record that is there"

    def _load_deleted(self) -> str:
        if self._backend.load(self._key) is None:
            return ""
        return "gives back a record that was deleted"

    def _list_deleted(self) -> str:
        if self._key not in self._backend.keys_of_user(USER):
            return ""
        return "lists a record that was deleted"
