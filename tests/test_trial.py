"""A backend is tried out with a record of its own: ``flask sessions check``."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from flask import Flask

from flask_serversession import ServerSession
from flask_serversession.backends.base import Capability
from flask_serversession.backends.base import Gone
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.errors import BackendError
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import RecordError
from flask_serversession.ids import is_key
from flask_serversession.operator import AppState
from flask_serversession.payload import Sealer
from flask_serversession.record import Record
from flask_serversession.testing import FakeClock
from flask_serversession.trial import USER
from flask_serversession.trial import Step
from flask_serversession.trial import did_answer
from flask_serversession.trial import try_out

OPERATIONS = [
    *("create", "load", "keys_of_user", "replace", "replace", "touch", "load"),
    *("delete", "load", "keys_of_user"),
]


class Told(MemoryBackend):
    """A backend that remembers what it was asked, and may answer something else."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.asked: list[tuple[t.Any, ...]] = []
        self.answers: dict[str, list[t.Any]] = {}

    def _answer(self, name: str, *args: t.Any) -> t.Any:
        self.asked.append((name, *args))
        result = getattr(MemoryBackend, name)(self, *args)
        answers = self.answers.get(name)
        instead = answers.pop(0) if answers else None
        if isinstance(instead, Exception):
            raise instead
        return result if instead is None else instead(result)

    def create(self, key: str, record: Record) -> bool:
        return t.cast("bool", self._answer("create", key, record))

    def load(self, key: str) -> Record | None:
        return t.cast("Record | None", self._answer("load", key))

    def replace(self, key: str, record: Record, expected: int) -> t.Any:
        return self._answer("replace", key, record, expected)

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        return t.cast("bool", self._answer("touch", key, touched_at, expires_at))

    def delete(self, key: str) -> bool:
        return t.cast("bool", self._answer("delete", key))

    def keys_of_user(self, user: str) -> list[str]:
        return t.cast("list[str]", self._answer("keys_of_user", user))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> Told:
    return Told(clock)


def state_of(backend: Told, clock: FakeClock, **settings: t.Any) -> AppState:
    app = Flask("shop")
    app.config.update(SECRET_KEY="a secret", TESTING=True, SESSION_BACKEND=backend)
    app.config.update(settings)
    ServerSession(app, clock=clock)
    return t.cast("AppState", app.extensions["serversession"])


@pytest.fixture
def state(backend: Told, clock: FakeClock) -> AppState:
    return state_of(backend, clock)


def test_what_is_asked_is_what_requests_ask(
    state: AppState, backend: Told, clock: FakeClock
) -> None:
    steps = try_out(state)
    assert steps == [Step(operation, None) for operation in OPERATIONS]
    assert did_answer(steps)
    assert [name for name, *_ in backend.asked] == OPERATIONS
    key, record = backend.asked[0][1:]
    assert is_key(key, "session:")
    now = clock()
    assert (record.version, record.user, dict(record.meta)) == (1, USER, {})
    assert record.created_at == record.touched_at == now
    assert record.expires_at == now + 60
    changed = backend.asked[3][2]
    assert backend.asked[3:6] == [
        ("replace", key, changed, 1),
        ("replace", key, record, 1),
        ("touch", key, now, now + 120),
    ]
    assert changed.version == 2
    assert changed.data != record.data
    for each in (record, changed):
        envelope = Sealer().open(each.data, key, created_at=now, user=USER)
        assert (len(envelope.payload), envelope.serializer) == (16, b"m")
        assert (envelope.lifetime, envelope.issued_at) == (None, now)
    assert backend.asked[2] == backend.asked[9] == ("keys_of_user", USER)
    assert USER == "flask sessions check"


def test_an_encrypted_record_is_tried_where_sessions_are_encrypted(
    backend: Told, clock: FakeClock
) -> None:
    state = state_of(backend, clock, SESSION_ENCRYPTION_KEY=b"k" * 32)
    assert did_answer(try_out(state))
    key, record = backend.asked[0][1:]
    with pytest.raises(RecordError, match="is encrypted"):
        Sealer().open(record.data, key, created_at=clock(), user=USER)
    sealer = Sealer(state.config.encryption_key)
    assert sealer.open(record.data, key, created_at=clock(), user=USER)


def test_without_an_index_nobody_is_listed(state: AppState, backend: Told) -> None:
    backend.capabilities = Capability.COMPARE_AND_SWAP
    steps = try_out(state)
    assert [step.operation for step in steps] == [
        name for name in OPERATIONS if name != "keys_of_user"
    ]


def failing(backend: Told, name: str, *answers: t.Any) -> None:
    backend.answers[name] = [*answers]


REFUSAL = BackendError("refused")


@pytest.mark.parametrize(
    ("operation", "tried"),
    [
        ("create", ["create"]),
        ("load", ["load", "keys_of_user", "replace", "replace", "touch", "delete"]),
        (
            "keys_of_user",
            ["load", "keys_of_user", "replace", "replace", "touch", "load", "delete"],
        ),
        ("replace", ["load", "keys_of_user", "replace", "touch", "delete"]),
        ("touch", ["load", "keys_of_user", "replace", "replace", "touch", "delete"]),
        (
            "delete",
            ["load", "keys_of_user", "replace", "replace", "touch", "load", "delete"],
        ),
    ],
)
def test_what_would_tell_nothing_new_is_left_out(
    state: AppState, backend: Told, operation: str, tried: list[str]
) -> None:
    failing(backend, operation, REFUSAL)
    steps = try_out(state)
    found = [step.operation for step in steps]
    expected = [*(["create"] if operation != "create" else []), *tried]
    # What others have deleted is still looked for.
    last = ["load", "keys_of_user"]
    if operation in ("keys_of_user", "replace", "touch"):
        expected += last[: 1 if operation == "keys_of_user" else 2]
    elif operation == "load":
        expected += ["keys_of_user"]
    assert found == expected
    assert [step.error for step in steps if step.error] == [REFUSAL]
    assert did_answer(steps)


@pytest.mark.parametrize(
    ("error", "is_silent"),
    [
        (BackendUnavailableError("silent"), True),
        (BackendUnavailableError("refused", refused=True), False),
        (RecordError("damaged", "damaged"), False),
    ],
)
def test_nobody_waits_twice(
    state: AppState, backend: Told, error: Exception, is_silent: bool
) -> None:
    failing(backend, "touch", error)
    steps = try_out(state)
    assert did_answer(steps) is not is_silent
    assert (steps[-1].operation == "touch") is is_silent
    assert error in [step.error for step in steps]


@pytest.mark.parametrize(
    ("operation", "number", "answer", "text"),
    [
        (
            "create",
            0,
            lambda _: False,
            "says that there is a record under a key that is new",
        ),
        ("load", 0, lambda _: None, "took a record, but does not give it back"),
        (
            "load",
            0,
            lambda record: _with(record, data=b"x"),
            "took a record, but does not give it back",
        ),
        (
            "keys_of_user",
            0,
            lambda _: [],
            "does not list a record among those of its user",
        ),
        (
            "replace",
            0,
            lambda _: Gone(),
            "did not change a record that nobody else has changed",
        ),
        (
            "replace",
            1,
            lambda _: Gone(),
            "did not notice that another request has changed a record",
        ),
        ("touch", 0, lambda _: False, "did not touch a record that is there"),
        (
            "load",
            1,
            lambda _: None,
            "does not give back what a record was changed to",
        ),
        (
            "load",
            1,
            lambda record: _with(record, data=b"x"),
            "does not give back what a record was changed to",
        ),
        (
            "load",
            1,
            lambda record: _with(record, expires_at=record.expires_at - 1.5),
            "did not prolong the record that it touched",
        ),
        ("delete", 0, lambda _: False, "did not delete a record that is there"),
        ("load", 2, lambda _: "a record", "gives back a record that was deleted"),
        (
            "keys_of_user",
            1,
            lambda _: EVERY_KEY,
            "lists a record that was deleted",
        ),
    ],
)
def test_a_wrong_answer_is_named(
    state: AppState,
    backend: Told,
    operation: str,
    number: int,
    answer: t.Any,
    text: str,
) -> None:
    failing(backend, operation, *[lambda result: result] * number, answer)
    errors = [step.error for step in try_out(state) if step.error]
    assert [str(error) for error in errors] == [f"The 'memory' backend {text}."]
    error = t.cast("BackendError", errors[0])
    assert (error.backend, error.operation) == ("memory", operation)


def test_a_second_more_or_less_is_no_matter(state: AppState, backend: Told) -> None:
    failing(
        backend,
        "load",
        lambda record: record,
        lambda record: _with(record, expires_at=record.expires_at - 1),
    )
    assert not any(step.error for step in try_out(state))


def _with(record: Record, **changes: t.Any) -> Record:
    return dataclasses.replace(record, **changes)


class _Everything:
    def __contains__(self, key: object) -> bool:
        return True


EVERY_KEY: t.Any = _Everything()
