"""What a process remembers of the sessions that it has ended."""

from __future__ import annotations

import typing as t

import pytest

from flask_serversession.config import SessionConfig
from flask_serversession.ended import EndedSessions
from flask_serversession.testing import FakeClock

#: For so long it is remembered why, in seconds.
DAY = 86_400


class Settings(t.NamedTuple):
    rotation_grace: float = 10
    touch_interval: float = 20


def remember(clock: FakeClock, **settings: float) -> EndedSessions:
    config = t.cast(SessionConfig, Settings(**settings))
    return EndedSessions(config, clock)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [({}, 60), ({"rotation_grace": 90}, 90), ({"touch_interval": 120}, 120)],
)
def test_what_has_ended_is_remembered_as_long_as_a_cookie_can_look_fresh(
    settings: dict[str, float], seconds: float
) -> None:
    clock = FakeClock()
    ended = remember(clock, **settings)
    assert not ended.has("a")
    ended.add("a", "revoked")
    assert ended.has("a") is True
    assert not ended.has("b")
    clock.advance(seconds - 1)
    assert ended.has("a")
    clock.advance(1)
    assert ended.has("a") is False


def test_what_had_ended_before_a_moment_has_not_ended_since() -> None:
    clock = FakeClock()
    ended = remember(clock)
    clock.advance(1)
    before, at = clock() - 1, clock()
    ended.add("a", "revoked")
    assert ended.has("a", since=before)
    assert not ended.has("a", since=at)


def test_a_key_that_is_in_use_again_is_forgotten() -> None:
    ended = remember(FakeClock())
    ended.add("a", "revoked")
    ended.discard("a")
    ended.discard("b")
    assert not ended.has("a")


def test_what_ends_again_is_remembered_from_then_on() -> None:
    clock = FakeClock()
    ended = remember(clock)
    ended.add("a", "revoked")
    ended.add("b", "revoked")
    ended.add("d", "revoked")
    clock.advance(DAY - 1)
    ended.add("a", "revoked")
    clock.advance(1)
    ended.add("c", "revoked")
    # It was the oldest, and is not any more.
    assert [*ended._ends] == ["a", "c"]
    assert ended.has("a")


def test_two_that_are_old_are_forgotten_with_each_new_one() -> None:
    clock = FakeClock()
    ended = remember(clock)
    for key in "abcde":
        ended.add(key, "revoked")
    clock.advance(DAY)
    ended.add("f", "revoked")
    assert [*ended._ends] == ["c", "d", "e", "f"]
    ended.add("g", "revoked")
    assert [*ended._ends] == ["e", "f", "g"]


def test_no_more_than_ten_thousand_are_remembered() -> None:
    ended = remember(FakeClock())
    for number in range(10_000):
        ended.add(str(number), "limit")
    assert len(ended._ends) == 10_000
    ended.add("one more", "revoked")
    assert len(ended._ends) == 10_000
    assert not ended.has("0")
    assert ended.has("1")
    assert ended.has("one more")


def test_threads_do_not_trip_over_each_other() -> None:
    """The oldest are looked for while nobody else adds any."""
    ended = remember(FakeClock())

    class Watched(dict[str, t.Any]):
        def items(self) -> t.Any:
            looks.append(ended._lock.locked())
            return super().items()

    looks: list[bool] = []
    ended._ends = Watched()
    ended.add("a", "revoked")
    assert looks == [True]
