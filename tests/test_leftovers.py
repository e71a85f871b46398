"""Records that nobody can use are deleted, a few at a time."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest

from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import RecordError
from flask_serversession.leftovers import Leftovers


class Deleting:
    """A backend that deletes, and does something else first."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.first: Callable[[], object] = lambda: None

    def delete(self, key: str) -> bool:
        self.deleted.append(key)
        self.first()
        return True


@pytest.fixture
def backend() -> Deleting:
    return Deleting()


@pytest.fixture
def leftovers(backend: Deleting) -> Leftovers:
    return Leftovers(t.cast("t.Any", backend))


def fail(error: BaseException) -> t.NoReturn:
    raise error


def test_ten_are_deleted_at_once(backend: Deleting, leftovers: Leftovers) -> None:
    keys = [f"key {number}" for number in range(21)]
    for key in keys:
        leftovers.add(key)
    for deleted in (10, 20, 21):
        assert leftovers.keys
        leftovers.remove()
        assert backend.deleted == keys[:deleted]
    assert not leftovers.keys


def test_ten_thousand_are_remembered(backend: Deleting, leftovers: Leftovers) -> None:
    for number in range(10_005):
        leftovers.add(str(number))
    for _ in range(1_001):
        leftovers.remove()
    assert backend.deleted == [str(number) for number in range(10_000)]


def test_after_a_failure_the_rest_waits(
    backend: Deleting, leftovers: Leftovers
) -> None:
    leftovers.add("a")
    leftovers.add("b")
    error = BackendUnavailableError("down", backend="memory", operation="delete")
    backend.first = lambda: fail(error)
    leftovers.remove()
    assert backend.deleted == ["a"]
    backend.first = lambda: None
    leftovers.remove()
    assert backend.deleted == ["a", "b", "a"]
    assert not leftovers.keys


def test_what_cannot_be_read_is_not_tried_again(
    backend: Deleting, leftovers: Leftovers
) -> None:
    leftovers.add("a")
    leftovers.add("b")
    backend.first = lambda: fail(RecordError("newer", reason="newer"))
    leftovers.remove()
    assert backend.deleted == ["a", "b"]
    assert not leftovers.keys


def test_what_is_interrupted_is_tried_again(
    backend: Deleting, leftovers: Leftovers
) -> None:
    leftovers.add("a")
    backend.first = lambda: fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        leftovers.remove()
    backend.first = lambda: None
    leftovers.remove()
    assert backend.deleted == ["a", "a"]
    assert not leftovers.keys


def test_two_threads_do_not_delete_the_same(
    backend: Deleting, leftovers: Leftovers
) -> None:
    for key in "abc":
        leftovers.add(key)

    def delete_another() -> None:
        backend.first = lambda: None
        del leftovers.keys["b"]

    backend.first = delete_another
    leftovers.remove()
    assert backend.deleted == ["a", "c"]
    assert not leftovers.keys
