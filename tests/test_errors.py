"""Exceptions go where exceptions go: into other processes, copies and reports."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing as t
from collections.abc import Callable

import pytest

from flask_serversession import errors
from flask_serversession.errors import ServerSessionError
from flask_serversession.takeover.flask_session.content import PickledError

EXAMPLES: tuple[ServerSessionError, ...] = (
    errors.ServerSessionError("It failed."),
    errors.ConfigurationError("It is wrong.", "SESSION_BACKEND"),
    errors.BackendError("It failed.", backend="redis", operation="load"),
    errors.BackendUnavailableError(
        "It is down.", backend="redis", operation="load", retry_after=9
    ),
    errors.NotSupportedError("cachelib", "count"),
    errors.SerializationError("It cannot be written.", "session['cart'][2]"),
    errors.RecordError("It has a newer format.", "newer"),
    PickledError(),
    errors.SessionTooLargeError(5, 3),
    errors.ConflictError("It was changed."),
    errors.SessionLostError("It was ended."),
)


class OwnError(errors.BackendUnavailableError):
    """An application's own, whose arguments are others."""

    def __init__(self, shard: int, *, room: str) -> None:
        super().__init__(f"Shard {shard} is down.", backend="shards", operation="load")
        self.room = room


def through_pickle(error: ServerSessionError) -> t.Any:
    return pickle.loads(pickle.dumps(error))


def test_there_is_an_example_of_every_exception() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, ServerSessionError)
    }
    assert kinds == {type(error) for error in EXAMPLES} - {PickledError}


@pytest.mark.parametrize("way", [through_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize(
    "error", [*EXAMPLES, OwnError(7, room="cellar")], ids=lambda e: type(e).__name__
)
def test_an_exception_can_be_copied_and_pickled(
    error: ServerSessionError, way: Callable[[ServerSessionError], t.Any]
) -> None:
    found = way(error)
    assert type(found) is type(error)
    assert found is not error
    assert str(found) == str(error)
    assert repr(found) == repr(error)
    assert found.args == error.args
    assert vars(found) == vars(error)


def test_a_copy_of_a_503_answers_as_it_does() -> None:
    error = errors.BackendUnavailableError("It is down.", retry_after=9)
    for found in (through_pickle(error), copy.copy(error)):
        assert found.code == 503
        assert found.get_headers() == error.get_headers()
        assert found.get_body() == error.get_body()
