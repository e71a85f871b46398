"""The tests that every backend must pass."""

# The name of a test is its sentence; a docstring would say it twice.
# ruff: noqa: D102

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import functools
import secrets
import threading
import typing as t

from ..backends.base import Backend
from ..backends.base import Capability
from ..backends.base import Conflict
from ..backends.base import Gone
from ..backends.base import Replaced
from ..errors import BackendUnavailableError
from ..errors import NotSupportedError
from ..errors import RecordError
from ..record import TOMBSTONE_DATA
from ..record import Record
from ..record import key_of
from .clocks import Clock
from .clocks import FakeClock

try:
    import pytest
except ImportError as exc:
    raise ImportError(
        "'flask_serversession.testing' needs the pytest package. Install it with:"
        " pip install pytest"
    ) from exc

_T = t.TypeVar("_T")


_OPTIONAL: dict[str, tuple[Capability, cabc.Callable[[Backend], object]]] = {
    "keys_of_user": (
        Capability.USER_INDEX,
        lambda backend: backend.keys_of_user("nobody"),
    ),
    "iterate": (Capability.ITERATE, lambda backend: list(backend.iterate())),
    "count": (Capability.COUNT, lambda backend: backend.count()),
    "prune": (Capability.PRUNE, lambda backend: backend.prune(1)),
}


class Spoil(t.Protocol):
    """Overwrites a stored record, bypassing its backend."""

    def __call__(self, key: str, reason: t.Literal["damaged", "newer"]) -> None:
        """Make the stored record unreadable.

        :param key: Where it is stored.
        :param reason: The reason of the :exc:`.RecordError` from then on.
        """
        ...


class BackendContract:
    """Tests a backend against the docstrings of :class:`.Backend`, races included.

    Subclass it in a test module and say how the backend is made::

        class TestMyBackend(BackendContract):
            @pytest.fixture
            def backend(self, clock: FakeClock) -> Backend:
                return MyBackend(clock)

    A backend whose engine has a clock of its own overrides the :meth:`clock`
    fixture with a :class:`RealClock`; the tests then wait for about a second
    wherever something has to expire.

    What a capability promises is tested where the backend declares it; without it,
    the operation must raise :exc:`.NotSupportedError`. Three more fixtures are
    ``None`` by default, which skips their tests: :meth:`second_backend`,
    :meth:`dead_backend` and :meth:`spoil`.

    The tests use keys of their own under :attr:`prefix`, and leave them behind. Only
    those of ``count`` and ``prune`` need a store without other users.
    """

    #: The prefix of every key, so that a shared server can be cleaned.
    prefix: t.ClassVar[str] = "contract:"
    #: The size of the largest data that is stored, in bytes.
    large: t.ClassVar[int] = 1024 * 1024
    #: How many threads run against each other.
    threads: t.ClassVar[int] = 8
    #: How often each of them counts up, and how often other races are run.
    rounds: t.ClassVar[int] = 10
    #: How long a record lives that a test waits for, in seconds.
    short: t.ClassVar[float] = 1.0

    # -- what a subclass overrides

    @pytest.fixture
    def clock(self) -> Clock:
        """Return the clock that the backend is made with."""
        return FakeClock()

    @pytest.fixture
    def backend(self, clock: t.Any) -> Backend:
        """Return the backend to test. Every subclass overrides it."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a fixture 'backend' that returns the backend"
            " to test."
        )

    @pytest.fixture
    def second_backend(self, backend: t.Any) -> Backend | None:
        """Return another instance that works on the store of ``backend``."""
        return None

    @pytest.fixture
    def dead_backend(self) -> Backend | None:
        """Return a backend whose engine does not answer."""
        return None

    @pytest.fixture
    def spoil(self, backend: t.Any) -> Spoil | None:
        """Return a function that makes a record stored by ``backend`` unreadable."""
        return None

    @pytest.fixture(autouse=True)
    def _skip_what_lacks_a_fixture(self, request: pytest.FixtureRequest) -> None:
        if request.function.__module__ != __name__:
            return  # a test of the subclass, which may do something else about it
        for name in ("spoil", "second_backend", "dead_backend"):
            if name in request.fixturenames and request.getfixturevalue(name) is None:
                pytest.skip(f"no {name!r} fixture")

    # -- for the tests, including those of a subclass

    def key(self, name: str = "key") -> str:
        """Return a key like the library's that no other test uses."""
        return key_of(f"{self._token}:{name}", self.prefix)

    def record(
        self,
        clock: Clock,
        data: bytes = b"data",
        *,
        lives: float = 600,
        **fields: t.Any,
    ) -> Record:
        """Return a record that begins now.

        :param lives: How long it lives, in seconds.
        :param fields: Other fields of the record.
        """
        now = clock()
        fields.setdefault("version", 1)
        fields.setdefault("created_at", now)
        fields.setdefault("touched_at", now)
        fields.setdefault("expires_at", now + lives)
        return Record(data=data, **fields)

    def tombstone(self, clock: Clock, *, lives: float = 600, **fields: t.Any) -> Record:
        """Return a record as left behind by rotating an id."""
        return self.record(clock, TOMBSTONE_DATA, lives=lives, **fields)

    # -- load

    def test_load_gives_none_for_an_unknown_key(self, backend: Backend) -> None:
        assert backend.load(self.key()) is None

    @pytest.mark.parametrize(
        "data",
        [b"", b"\0", b"\n", bytes(range(256)), b"\r\n" * 20, "☃".encode("utf-16")],
        ids=["empty", "one", "newline", "every", "lines", "text"],
    )
    def test_load_gives_the_bytes_back_exactly(
        self, backend: Backend, clock: Clock, data: bytes
    ) -> None:
        assert backend.create(self.key(), self.record(clock, data))
        assert _loaded(backend, self.key()).data == data
        replaced = self.record(clock, data[::-1] + data)
        assert backend.replace(self.key(), replaced, 1) == Replaced(2)
        assert _loaded(backend, self.key()).data == data[::-1] + data

    def test_load_gives_large_data_back_exactly(
        self, backend: Backend, clock: Clock
    ) -> None:
        data = (bytes(range(256)) * (self.large // 256 + 1))[: self.large]
        assert backend.create(self.key(), self.record(clock, data))
        # Compared outside of the assertion, which would print a megabyte.
        is_equal = _loaded(backend, self.key()).data == data
        assert is_equal
        replaced = self.record(clock, data[::-1])
        assert backend.replace(self.key(), replaced, 1) == Replaced(2)
        is_equal = _loaded(backend, self.key()).data == data[::-1]
        assert is_equal

    @pytest.mark.parametrize(
        ("user", "meta"),
        [
            (None, {}),
            ("", {"address": ""}),
            ("42", {"user_agent": "Mozilla/5.0 (X11)", "address": "2001:db8::1"}),
            ("zoë ☃ 🍪 \"'\\%_*\n", {"ключ": "значение 🔑", 'a"b': "\t\\\x7f'"}),
            ("u" * 200, {"user_agent": "a" * 2000}),
        ],
        ids=["nobody", "empty", "plain", "unicode", "long"],
    )
    def test_load_gives_every_field_back_exactly(
        self, backend: Backend, clock: Clock, user: str | None, meta: dict[str, str]
    ) -> None:
        now = clock()
        record = Record(
            data=b"data",
            version=7,
            created_at=now - 100_000.1234567,
            touched_at=now - 1 / 3,
            expires_at=now + 600.7654321,
            user=user,
            meta=meta,
        )
        assert backend.create(self.key(), record)
        assert backend.load(self.key()) == record
        changed = dataclasses.replace(
            record,
            data=b"other",
            created_at=now - 1 / 7,
            touched_at=now - 0.1,
            expires_at=now + 500 + 1 / 7,
            user=None if user else "someone",
            meta={} if meta else {"address": "192.0.2.1"},
        )
        assert backend.replace(self.key(), changed, 7) == Replaced(8)
        assert backend.load(self.key()) == dataclasses.replace(changed, version=8)

    def test_a_stored_record_is_nobody_elses(
        self, backend: Backend, clock: Clock
    ) -> None:
        meta = {"address": "192.0.2.1"}
        assert backend.create(self.key(), self.record(clock, meta=meta))
        meta["address"] = "changed"
        loaded = _loaded(backend, self.key())
        assert loaded.meta == {"address": "192.0.2.1"}
        if isinstance(loaded.meta, dict):
            loaded.meta["address"] = "changed"
        assert _loaded(backend, self.key()).meta == {"address": "192.0.2.1"}

    # -- create

    def test_create_refuses_a_taken_key_and_leaves_it_alone(
        self, backend: Backend, clock: Clock
    ) -> None:
        record = self.record(clock, b"first", user="one")
        assert backend.create(self.key(), record) is True
        other = self.record(clock, b"second", user="two", version=5, lives=900)
        assert backend.create(self.key(), other) is False
        assert backend.load(self.key()) == record

    def test_create_refuses_a_key_that_was_replaced_or_touched(
        self, backend: Backend, clock: Clock
    ) -> None:
        record = self.record(clock)
        backend.create(self.key(), record)
        backend.replace(self.key(), record, 1)
        backend.touch(self.key(), clock(), clock() + 700)
        assert backend.create(self.key(), self.record(clock, b"new")) is False
        assert _loaded(backend, self.key()).data == b"data"

    def test_create_works_again_after_a_delete(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock, b"first"))
        backend.delete(self.key())
        record = self.record(clock, b"second")
        assert backend.create(self.key(), record) is True
        assert backend.load(self.key()) == record

    def test_create_works_again_after_the_old_record_expired(
        self, backend: Backend, clock: Clock
    ) -> None:
        old = self.record(clock, b"old", lives=self.short, user="one", meta={"a": "b"})
        backend.create(self.key(), old)
        clock.advance(self.short)
        record = self.record(clock, b"new", version=3)
        assert backend.create(self.key(), record) is True
        assert backend.load(self.key()) == record

    def test_a_record_created_after_its_expiry_is_absent(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock, lives=-10))
        assert backend.load(self.key()) is None
        assert backend.create(self.key(), self.record(clock)) is True
        assert backend.load(self.key()) is not None

    # -- replace

    @pytest.mark.parametrize("version", [0, 1, 2, 99])
    def test_replace_counts_from_the_expected_version_on(
        self, backend: Backend, clock: Clock, version: int
    ) -> None:
        backend.create(self.key(), self.record(clock, b"one"))
        record = self.record(clock, b"two", version=version)
        assert backend.replace(self.key(), record, 1) == Replaced(2)
        assert backend.load(self.key()) == dataclasses.replace(record, version=2)
        assert backend.replace(self.key(), record, 2) == Replaced(3)
        assert _loaded(backend, self.key()).version == 3

    @pytest.mark.parametrize("expected", [0, 1, 3, 2**40])
    def test_replace_hands_back_the_current_record_on_a_conflict(
        self, backend: Backend, clock: Clock, expected: int
    ) -> None:
        current = self.record(clock, b"theirs", version=2, user="one", meta={"a": "b"})
        backend.create(self.key(), current)
        mine = self.record(clock, b"mine", version=2, user="two", lives=900)
        assert backend.replace(self.key(), mine, expected) == Conflict(current)
        assert backend.load(self.key()) == current

    def test_replace_creates_nothing(self, backend: Backend, clock: Clock) -> None:
        for expected in (0, 1):
            result = backend.replace(self.key(), self.record(clock), expected)
            assert result == Gone()
            assert backend.load(self.key()) is None
        assert backend.create(self.key(), self.record(clock)) is True

    def test_replace_refuses_to_revive_a_deleted_record(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock))
        backend.delete(self.key())
        assert backend.replace(self.key(), self.record(clock), 1) == Gone()
        assert backend.load(self.key()) is None

    def test_replace_refuses_to_revive_an_expired_record(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock, lives=self.short))
        clock.advance(self.short)
        assert backend.replace(self.key(), self.record(clock), 1) == Gone()
        assert backend.replace(self.key(), self.record(clock), 0) == Gone()
        assert backend.load(self.key()) is None

    def test_replace_moves_the_expiry(self, backend: Backend, clock: Clock) -> None:
        short = self.record(clock, lives=self.short)
        long = self.record(clock)
        backend.create(self.key("longer"), short)
        backend.create(self.key("shorter"), long)
        assert backend.replace(self.key("longer"), long, 1) == Replaced(2)
        assert backend.replace(self.key("shorter"), short, 1) == Replaced(2)
        clock.advance(self.short)
        assert _loaded(backend, self.key("longer")).expires_at == long.expires_at
        assert backend.load(self.key("shorter")) is None

    def test_replace_by_an_expired_record_removes_it(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock))
        expired = self.record(clock, lives=-10)
        assert backend.replace(self.key(), expired, 1) == Replaced(2)
        assert backend.load(self.key()) is None
        assert backend.replace(self.key(), self.record(clock), 2) == Gone()
        assert backend.delete(self.key()) is False
        assert backend.create(self.key(), self.record(clock)) is True

    def test_replace_by_an_expired_record_needs_the_right_version_too(
        self, backend: Backend, clock: Clock
    ) -> None:
        current = self.record(clock, version=2)
        backend.create(self.key(), current)
        expired = self.record(clock, lives=-10, version=2)
        assert backend.replace(self.key(), expired, 1) == Conflict(current)
        assert backend.load(self.key()) == current
        assert backend.replace(self.key("other"), expired, 1) == Gone()

    # -- delete

    def test_delete_says_whether_there_was_a_record(
        self, backend: Backend, clock: Clock
    ) -> None:
        assert backend.delete(self.key()) is False
        backend.create(self.key(), self.record(clock))
        assert backend.delete(self.key()) is True
        assert backend.load(self.key()) is None
        assert backend.delete(self.key()) is False

    def test_delete_takes_an_expired_record_for_absent(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock, lives=self.short))
        clock.advance(self.short)
        assert backend.delete(self.key()) is False

    # -- touch

    def test_touch_moves_the_times_and_nothing_else(
        self, backend: Backend, clock: Clock
    ) -> None:
        now = clock()
        record = self.record(
            clock,
            bytes(range(256)),
            version=4,
            created_at=now - 5000.1,
            user="zoë",
            meta={"address": "192.0.2.1"},
        )
        backend.create(self.key(), record)
        touched_at, expires_at = now + 1 / 3, now + 900.1234567
        assert backend.touch(self.key(), touched_at, expires_at) is True
        assert backend.load(self.key()) == dataclasses.replace(
            record, touched_at=touched_at, expires_at=expires_at
        )

    def test_touch_creates_nothing(self, backend: Backend, clock: Clock) -> None:
        now = clock()
        assert backend.touch(self.key(), now, now + 600) is False
        assert backend.load(self.key()) is None
        backend.create(self.key(), self.record(clock))
        backend.delete(self.key())
        assert backend.touch(self.key(), now, now + 600) is False
        assert backend.load(self.key()) is None
        assert backend.create(self.key(), self.record(clock)) is True

    def test_touch_refuses_to_revive_an_expired_record(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock, lives=self.short))
        clock.advance(self.short)
        now = clock()
        assert backend.touch(self.key(), now, now + 600) is False
        assert backend.load(self.key()) is None
        assert backend.create(self.key(), self.record(clock)) is True

    def test_touch_never_conflicts_with_a_replace(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock))
        assert backend.touch(self.key(), clock(), clock() + 700) is True
        record = self.record(clock, b"new")
        assert backend.replace(self.key(), record, 1) == Replaced(2)
        assert backend.touch(self.key(), clock(), clock() + 700) is True
        assert _loaded(backend, self.key()).data == b"new"
        assert backend.replace(self.key(), record, 2) == Replaced(3)

    def test_touch_moves_the_expiry(self, backend: Backend, clock: Clock) -> None:
        now = clock()
        backend.create(self.key(), self.record(clock, lives=self.short))
        assert backend.touch(self.key(), now, now + 600) is True
        clock.advance(self.short)
        assert _loaded(backend, self.key()).expires_at == now + 600

    @pytest.mark.parametrize("user", [None, "ada"])
    def test_touch_does_not_undo_a_longer_life_that_another_request_gave(
        self, backend: Backend, clock: Clock, user: str | None
    ) -> None:
        backend.load(self.key())  # connects, which may take longer than it lives
        now = clock()
        record = self.record(clock, lives=self.short, user=user)
        backend.create(self.key(), record)
        longer = self.record(clock, lives=10_000, user=user)
        assert backend.replace(self.key(), longer, 1) == Replaced(2)
        assert backend.touch(self.key(), now + 1, now + self.short) is True
        touched = _loaded(backend, self.key())
        assert touched.expires_at == longer.expires_at
        assert touched.touched_at == now + 1
        clock.advance(self.short)
        assert backend.load(self.key()) is not None

    def test_touch_to_a_moment_that_has_passed_ends_the_record(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock))
        backend.touch(self.key(), clock() - 20, clock() - 10)
        assert backend.load(self.key()) is None
        assert backend.replace(self.key(), self.record(clock), 1) == Gone()

    # -- expiry

    def test_a_record_is_there_until_it_expires(
        self, backend: Backend, clock: Clock
    ) -> None:
        # A slow server may need half a second for the operations.
        record = self.record(clock, lives=self.short + 0.5)
        backend.create(self.key(), record)
        clock.advance(self.short)
        assert backend.load(self.key()) == record
        clock.advance(max(0.0, record.expires_at - clock()))
        assert backend.load(self.key()) is None

    def test_a_record_expires_at_its_very_moment(
        self, backend: Backend, clock: Clock
    ) -> None:
        if not isinstance(clock, FakeClock):
            pytest.skip("only a fake clock can be stopped at one moment")
        for name in ("load", "replace", "delete", "touch", "create"):
            backend.create(self.key(name), self.record(clock, lives=2))
        clock.advance(1.9990234375)
        assert _loaded(backend, self.key("load")).expires_at > clock()
        clock.advance(2 - 1.9990234375)
        now = clock()
        assert backend.load(self.key("load")) is None
        assert backend.replace(self.key("replace"), self.record(clock), 1) == Gone()
        assert backend.delete(self.key("delete")) is False
        assert backend.touch(self.key("touch"), now, now + 600) is False
        assert backend.create(self.key("create"), self.record(clock)) is True

    # -- tombstones

    def test_a_tombstone_is_loaded_like_any_record(
        self, backend: Backend, clock: Clock
    ) -> None:
        created = self.tombstone(clock)
        assert backend.create(self.key("created"), created) is True
        assert backend.load(self.key("created")) == created
        backend.create(self.key("rotated"), self.record(clock, user="one"))
        rotated = self.tombstone(clock)
        assert backend.replace(self.key("rotated"), rotated, 1) == Replaced(2)
        loaded = _loaded(backend, self.key("rotated"))
        assert loaded == dataclasses.replace(rotated, version=2)
        assert loaded.is_tombstone

    def test_a_tombstone_is_compared_and_replaced_like_any_record(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock))
        tombstone = self.tombstone(clock, version=2)
        assert backend.replace(self.key(), tombstone, 1) == Replaced(2)
        late = self.record(clock, b"late")
        assert backend.replace(self.key(), late, 1) == Conflict(tombstone)
        assert backend.load(self.key()) == tombstone
        assert backend.replace(self.key(), late, 2) == Replaced(3)
        assert _loaded(backend, self.key()).data == b"late"

    def test_a_tombstone_is_neither_touched_nor_deleted(
        self, backend: Backend, clock: Clock
    ) -> None:
        tombstone = self.tombstone(clock, user="one")
        backend.create(self.key(), tombstone)
        assert backend.touch(self.key(), clock(), clock() + 900) is False
        assert backend.delete(self.key()) is False
        assert backend.load(self.key()) == tombstone

    def test_data_that_is_empty_is_no_tombstone(
        self, backend: Backend, clock: Clock
    ) -> None:
        backend.create(self.key(), self.record(clock, b""))
        assert not _loaded(backend, self.key()).is_tombstone
        assert backend.touch(self.key(), clock(), clock() + 900) is True
        assert backend.delete(self.key()) is True
        assert backend.load(self.key()) is None

    def test_a_tombstone_refuses_a_create(self, backend: Backend, clock: Clock) -> None:
        tombstone = self.tombstone(clock)
        backend.create(self.key(), tombstone)
        assert backend.create(self.key(), self.record(clock)) is False
        assert backend.load(self.key()) == tombstone

    def test_a_tombstone_expires(self, backend: Backend, clock: Clock) -> None:
        backend.create(self.key(), self.record(clock))
        tombstone = self.tombstone(clock, lives=self.short)
        backend.replace(self.key(), tombstone, 1)
        clock.advance(self.short)
        assert backend.load(self.key()) is None
        assert backend.replace(self.key(), self.record(clock), 2) == Gone()
        assert backend.create(self.key(), self.record(clock)) is True

    # -- keys

    @pytest.mark.parametrize(
        "end",
        [
            "../../../etc/passwd",
            "/absolute",
            "..",
            ".",
            "trailing.",
            "back\\slash",
            "C:\\con",
            "a space ",
            "'; DROP TABLE x; --",
            '"`',
            "%_*?[a-z]",
            "{tag}",
            "${HOME} $(id) #",
            "ключ/🔑",
            "l" * 80,
        ],
    )
    def test_any_prefix_works(self, backend: Backend, clock: Clock, end: str) -> None:
        key = self._key_under(end)
        assert backend.load(key) is None
        record = self.record(clock, end.encode())
        assert backend.create(key, record) is True
        assert backend.load(key) == record
        assert backend.replace(key, record, 1) == Replaced(2)
        assert backend.touch(key, clock(), clock() + 700) is True
        assert backend.delete(key) is True
        assert backend.load(key) is None

    def test_prefixes_that_resemble_each_other_are_different(
        self, backend: Backend, clock: Clock
    ) -> None:
        ends = [
            *("a", "A", "aa", "a ", " a", "a/", "a/b", "a:b", "a_b", "axb", "a%b"),
            *(
                "a*",
                "a?",
                "ab",
                "a.",
                "./a",
                "a\\b",
                "%",
                "*",
                "\xe4",
                "a\u0308",
            ),
            *("\u212b", "\xc5", "stra\xdfe", "strasse", "l" * 80, "l" * 79 + "L"),
        ]
        for end in ends:
            record = self.record(clock, end.encode())
            assert backend.create(self._key_under(end), record) is True, end
        for end in ends:
            assert _loaded(backend, self._key_under(end)).data == end.encode()
        gone, kept = ends[::2], ends[1::2]
        for end in gone:
            assert backend.delete(self._key_under(end)) is True, end
        for end in gone:
            assert backend.load(self._key_under(end)) is None, end
        for end in kept:
            assert _loaded(backend, self._key_under(end)).data == end.encode()

    # -- unreadable records

    @pytest.mark.parametrize("reason", ["damaged", "newer"])
    def test_an_unreadable_record_is_an_error_and_not_absent(
        self,
        backend: Backend,
        clock: Clock,
        spoil: Spoil,
        reason: t.Literal["damaged", "newer"],
    ) -> None:
        for name in ("load", "replace"):
            backend.create(self.key(name), self.record(clock))
            spoil(self.key(name), reason)
        with pytest.raises(RecordError) as info:
            backend.load(self.key("load"))
        assert info.value.reason == reason
        with pytest.raises(RecordError) as info:
            backend.replace(self.key("replace"), self.record(clock), 1)
        assert info.value.reason == reason

    @pytest.mark.parametrize("reason", ["damaged", "newer"])
    def test_create_refuses_the_key_of_an_unreadable_record(
        self,
        backend: Backend,
        clock: Clock,
        spoil: Spoil,
        reason: t.Literal["damaged", "newer"],
    ) -> None:
        backend.create(self.key(), self.record(clock))
        spoil(self.key(), reason)
        assert backend.create(self.key(), self.record(clock)) is False
        with pytest.raises(RecordError):
            backend.load(self.key())

    def test_nothing_changes_a_record_of_a_newer_format(
        self, backend: Backend, clock: Clock, spoil: Spoil
    ) -> None:
        backend.create(self.key(), self.record(clock))
        spoil(self.key(), "newer")
        for _ in range(2):
            with pytest.raises(RecordError) as info:
                backend.load(self.key())
            assert info.value.reason == "newer"
            with pytest.raises(RecordError) as info:
                backend.replace(self.key(), self.record(clock), 1)
            assert info.value.reason == "newer"
            with pytest.raises(RecordError) as info:
                backend.delete(self.key())
            assert info.value.reason == "newer"

    def test_delete_removes_a_damaged_record(
        self, backend: Backend, clock: Clock, spoil: Spoil
    ) -> None:
        backend.create(self.key(), self.record(clock))
        spoil(self.key(), "damaged")
        backend.delete(self.key())
        assert backend.load(self.key()) is None
        assert backend.create(self.key(), self.record(clock)) is True

    # -- races

    def test_one_of_many_creates_wins(self, backend: Backend, clock: Clock) -> None:
        _need(backend, Capability.COMPARE_AND_SWAP)
        for turn in range(self.rounds):
            key = self.key(str(turn))
            records = [self.record(clock, b"%d" % n) for n in range(self.threads)]
            results = _race([_call(backend.create, key, record) for record in records])
            assert results.count(True) == 1
            assert backend.load(key) == records[results.index(True)]

    def test_one_of_many_replaces_of_a_version_wins(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.COMPARE_AND_SWAP)
        for turn in range(self.rounds):
            key = self.key(str(turn))
            backend.create(key, self.record(clock, b"first"))
            records = [
                self.record(clock, b"%d" % n, version=2) for n in range(self.threads)
            ]
            results = _race(
                [_call(backend.replace, key, record, 1) for record in records]
            )
            assert results.count(Replaced(2)) == 1
            winner = records[results.index(Replaced(2))]
            assert backend.load(key) == winner
            assert results.count(Conflict(winner)) == self.threads - 1

    def test_concurrent_changes_add_up(self, backend: Backend, clock: Clock) -> None:
        _need(backend, Capability.COMPARE_AND_SWAP)
        self._count_up([backend] * self.threads, clock)

    def test_a_delete_that_races_with_replaces_is_final(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.COMPARE_AND_SWAP)
        for turn in range(self.rounds):
            key = self.key(str(turn))
            backend.create(key, self.record(clock))
            replace = _call(backend.replace, key, self.record(clock), 1)
            deleted, *results = _race(
                [_call(backend.delete, key), *[replace] * (self.threads - 1)]
            )
            assert deleted is True
            assert results.count(Replaced(2)) <= 1
            assert backend.load(key) is None

    def test_a_delete_that_races_with_touches_is_final(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.COMPARE_AND_SWAP)
        for turn in range(self.rounds):
            key = self.key(str(turn))
            backend.create(key, self.record(clock))
            touch = _call(backend.touch, key, clock(), clock() + 700)
            deleted, *_ = _race(
                [_call(backend.delete, key), *[touch] * (self.threads - 1)]
            )
            assert deleted is True
            assert backend.load(key) is None

    def test_touches_that_race_with_a_replace_do_not_undo_it(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.COMPARE_AND_SWAP)
        for turn in range(self.rounds):
            key = self.key(str(turn))
            backend.create(key, self.record(clock, b"old"))
            touch = _call(backend.touch, key, clock(), clock() + 700)
            replace = _call(backend.replace, key, self.record(clock, b"new"), 1)
            replaced, *touched = _race([replace, *[touch] * (self.threads - 1)])
            assert replaced == Replaced(2)
            assert all(touched)
            loaded = _loaded(backend, key)
            assert (loaded.data, loaded.version) == (b"new", 2)

    # -- several instances

    def test_instances_on_one_store_see_each_others_records(
        self, backend: Backend, second_backend: Backend, clock: Clock
    ) -> None:
        record = self.record(clock, user="one")
        assert backend.create(self.key(), record) is True
        assert second_backend.load(self.key()) == record
        assert second_backend.create(self.key(), record) is False
        assert second_backend.replace(self.key(), record, 1) == Replaced(2)
        current = dataclasses.replace(record, version=2)
        assert backend.replace(self.key(), record, 1) == Conflict(current)
        assert backend.touch(self.key(), clock(), clock() + 700) is True
        assert _loaded(second_backend, self.key()).expires_at > record.expires_at
        assert second_backend.delete(self.key()) is True
        assert backend.load(self.key()) is None
        assert backend.replace(self.key(), record, 2) == Gone()

    def test_concurrent_changes_of_two_instances_add_up(
        self, backend: Backend, second_backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.COMPARE_AND_SWAP)
        both = [backend, second_backend] * (self.threads // 2)
        self._count_up(both, clock)

    def test_close_lets_the_backend_be_used_again(
        self, backend: Backend, clock: Clock
    ) -> None:
        record = self.record(clock)
        assert backend.create(self.key(), record) is True
        for _ in range(2):
            backend.close()
            backend.close()
            assert backend.load(self.key()) == record

    # -- an engine that fails

    @pytest.mark.parametrize(
        "operation", ["load", "create", "replace", "delete", "touch"]
    )
    def test_a_dead_engine_is_unavailable_and_not_empty(
        self, dead_backend: Backend, clock: Clock, operation: str
    ) -> None:
        key, now = self.key(), clock()
        calls: dict[str, cabc.Callable[[], object]] = {
            "load": _call(dead_backend.load, key),
            "create": _call(dead_backend.create, key, self.record(clock)),
            "replace": _call(dead_backend.replace, key, self.record(clock), 1),
            "delete": _call(dead_backend.delete, key),
            "touch": _call(dead_backend.touch, key, now, now + 600),
        }
        with pytest.raises(BackendUnavailableError) as info:
            calls[operation]()
        assert info.value.backend == dead_backend.name
        assert info.value.operation == operation
        assert key not in str(info.value)

    def test_a_dead_engine_is_unavailable_to_load_many_too(
        self, dead_backend: Backend
    ) -> None:
        with pytest.raises(BackendUnavailableError):
            dead_backend.load_many([self.key()])

    @pytest.mark.parametrize("operation", _OPTIONAL)
    def test_a_dead_engine_is_unavailable_to_the_operator_too(
        self, dead_backend: Backend, operation: str
    ) -> None:
        capability, use = _OPTIONAL[operation]
        _need(dead_backend, capability)
        with pytest.raises(BackendUnavailableError) as info:
            use(dead_backend)
        assert info.value.backend == dead_backend.name
        assert info.value.operation == operation

    # -- capabilities

    def test_the_backend_has_a_name(self, backend: Backend) -> None:
        assert backend.name
        assert isinstance(backend.capabilities, Capability)

    @pytest.mark.parametrize("operation", _OPTIONAL)
    def test_an_optional_operation_works_or_says_that_it_does_not(
        self, backend: Backend, operation: str
    ) -> None:
        capability, use = _OPTIONAL[operation]
        if capability in backend.capabilities:
            use(backend)
            return
        with pytest.raises(NotSupportedError) as info:
            use(backend)
        assert info.value.backend == backend.name
        assert info.value.operation == operation

    def test_keys_of_user_follows_what_happens_to_records(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        user, other = f"{self._token}-zoë ☃", f"{self._token}-zoë"
        one, two, three = self.key("one"), self.key("two"), self.key("three")
        assert backend.keys_of_user(user) == []
        backend.create(one, self.record(clock, user=user))
        backend.create(two, self.record(clock, user=user))
        backend.create(three, self.record(clock))
        assert sorted(backend.keys_of_user(user)) == sorted([one, two])
        assert backend.keys_of_user(other) == []
        # Somebody logs in, somebody else logs in over it, somebody logs out.
        backend.replace(three, self.record(clock, user=user), 1)
        backend.replace(two, self.record(clock, user=other), 1)
        assert sorted(backend.keys_of_user(user)) == sorted([one, three])
        assert backend.keys_of_user(other) == [two]
        backend.replace(one, self.record(clock), 1)
        assert backend.keys_of_user(user) == [three]
        # Neither a change that keeps the user nor a touch matters.
        backend.replace(three, self.record(clock, b"new", user=user), 2)
        backend.touch(three, clock(), clock() + 700)
        assert backend.keys_of_user(user) == [three]
        # Refused writes are not listed.
        backend.create(two, self.record(clock, user=user))
        backend.replace(two, self.record(clock, user=user), 1)
        backend.replace(self.key("absent"), self.record(clock, user=user), 1)
        assert backend.keys_of_user(user) == [three]
        backend.delete(three)
        assert backend.keys_of_user(user) == []
        backend.replace(two, self.record(clock, user=other, lives=-10), 2)
        assert backend.keys_of_user(other) == []

    def test_keys_of_user_follows_a_rotated_id(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        user = f"{self._token}-user"
        backend.create(self.key("old"), self.record(clock, user=user))
        backend.create(self.key("new"), self.record(clock, user=user))
        backend.replace(self.key("old"), self.tombstone(clock), 1)
        assert backend.keys_of_user(user) == [self.key("new")]

    def test_keys_of_user_leaves_tombstones_out(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        user = f"{self._token}-user"
        backend.create(self.key("created"), self.tombstone(clock, user=user))
        backend.create(self.key("rotated"), self.record(clock, user=user))
        backend.replace(self.key("rotated"), self.tombstone(clock, user=user), 1)
        assert backend.keys_of_user(user) == []
        for name, version in (("created", 1), ("rotated", 2)):
            backend.replace(self.key(name), self.record(clock, user=user), version)
        expected = sorted([self.key("created"), self.key("rotated")])
        assert sorted(backend.keys_of_user(user)) == expected

    def test_keys_of_user_follows_a_user_who_changes_and_comes_back(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        one, other = f"{self._token}-one", f"{self._token}-other"
        backend.create(self.key(), self.record(clock, user=one))
        for version, user in enumerate([other, one, None, one, one, other, other], 1):
            record = self.record(clock, user=user)
            assert isinstance(backend.replace(self.key(), record, version), Replaced)
            for each in (one, other):
                expected = [self.key()] if each == user else []
                assert backend.keys_of_user(each) == expected

    def test_keys_of_user_lists_a_record_for_as_long_as_it_is_used(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        user = f"{self._token}-user"
        short = self.record(clock, lives=self.short * 1.5, user=user)
        backend.create(self.key("touched"), short)
        backend.create(self.key("replaced"), short)
        backend.create(self.key("neither"), short)
        version = 1
        for _ in range(4):
            clock.advance(self.short / 2)
            now = clock()
            backend.touch(self.key("touched"), now, now + self.short * 1.5)
            record = self.record(clock, lives=self.short * 1.5, user=user)
            backend.replace(self.key("replaced"), record, version)
            version += 1
        expected = sorted([self.key("touched"), self.key("replaced")])
        assert sorted(backend.keys_of_user(user)) == expected
        clock.advance(self.short * 1.5)
        assert backend.keys_of_user(user) == []

    def test_keys_of_user_lists_what_cannot_be_read(
        self, backend: Backend, clock: Clock, spoil: Spoil
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        user = f"{self._token}-user"
        for reason in ("damaged", "newer"):
            backend.create(self.key(reason), self.record(clock, user=user))
            spoil(self.key(reason), reason)
        expected = sorted([self.key("damaged"), self.key("newer")])
        assert sorted(backend.keys_of_user(user)) == expected
        assert backend.load_many(expected) == {}

    def test_keys_of_user_lists_everyone_who_logs_in_at_the_same_moment(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        user = f"{self._token}-user"
        record = self.record(clock, user=user)
        kept: set[str] = set()

        def log_in(thread: int) -> None:
            for turn in range(self.rounds):
                key = self.key(f"{thread}-{turn}")
                assert backend.create(key, record) is True
                if turn % 2:
                    assert backend.delete(key) is True
                else:
                    kept.add(key)
                assert (key in backend.keys_of_user(user)) is not bool(turn % 2)

        _race([_call(log_in, thread) for thread in range(self.threads)])
        keys = backend.keys_of_user(user)
        assert set(keys) == kept
        assert len(keys) == len(kept)

    def test_keys_of_user_follows_expiry(self, backend: Backend, clock: Clock) -> None:
        _need(backend, Capability.USER_INDEX)
        user, other = f"{self._token}-user", f"{self._token}-other"
        short = self.record(clock, lives=self.short, user=user)
        for name in ("expired", "reused", "touched"):
            backend.create(self.key(name), short)
        backend.create(self.key("shortened"), self.record(clock, user=user))
        backend.touch(self.key("touched"), clock(), clock() + 600)
        assert backend.replace(self.key("shortened"), short, 1) == Replaced(2)
        clock.advance(self.short)
        assert backend.keys_of_user(user) == [self.key("touched")]
        backend.create(self.key("reused"), self.record(clock, user=other))
        assert backend.keys_of_user(user) == [self.key("touched")]
        assert backend.keys_of_user(other) == [self.key("reused")]

    def test_keys_of_user_tells_similar_users_apart(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.USER_INDEX)
        users = ["a", "A", "a ", "aa", "a%", "a_", "a*", "a:", "a/b", "\xe4", "a\u0308"]
        users += [
            "a/../a",
            "a\\",
            "a.",
            "a'; --",
            "{a}",
            "[a]",
            "a\n",
            "a%20",
            "\U0001f36a",
        ]
        users = [f"{self._token}-{user}" for user in users] + [self._token + "u" * 150]
        for number, user in enumerate(users):
            backend.create(self.key(str(number)), self.record(clock, user=user))
        for number, user in enumerate(users):
            assert backend.keys_of_user(user) == [self.key(str(number))]
        backend.create(self.key("nobody's"), self.record(clock))
        backend.create(self.key("empty"), self.record(clock, user=""))
        keys = backend.keys_of_user("")
        assert self.key("empty") in keys
        assert self.key("nobody's") not in keys

    def test_load_many_gives_what_is_live(self, backend: Backend, clock: Clock) -> None:
        records = {
            self.key(f"{number}"): self.record(clock, b"%d" % number, user="one")
            for number in range(250)
        }
        for key, record in records.items():
            backend.create(key, record)
        absent = [self.key(name) for name in ("absent", "expired", "tombstone")]
        backend.create(self.key("expired"), self.record(clock, lives=-10))
        backend.create(self.key("tombstone"), self.tombstone(clock))
        assert backend.load_many([*absent, *records, *list(records)[:2]]) == records
        assert backend.load_many(absent) == {}
        assert backend.load_many([]) == {}

    def test_load_many_leaves_out_what_cannot_be_read(
        self, backend: Backend, clock: Clock, spoil: Spoil
    ) -> None:
        record = self.record(clock)
        for name in ("good", "damaged", "newer"):
            backend.create(self.key(name), record)
        spoil(self.key("damaged"), "damaged")
        spoil(self.key("newer"), "newer")
        keys = [self.key(name) for name in ("damaged", "good", "newer")]
        assert backend.load_many(keys) == {self.key("good"): record}

    def test_iterate_gives_all_live_records(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.ITERATE)
        records = {
            self.key(f"{number}"): self.record(
                clock, b"%d" % number, user=str(number), meta={"number": str(number)}
            )
            for number in range(25)
        }
        for key, record in records.items():
            backend.create(key, record)
        others = [self.key(name) for name in ("tombstone", "deleted", "expired")]
        backend.create(others[0], self.tombstone(clock))
        backend.create(others[1], self.record(clock))
        backend.delete(others[1])
        backend.create(others[2], self.record(clock, lives=self.short))
        clock.advance(self.short)
        keys = {*records, *others}
        found = [item for item in backend.iterate() if item[0] in keys]
        assert dict(found) == records
        assert len(found) == len(records)

    def test_iterate_survives_changes_on_the_way(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.ITERATE)
        keys = {self.key(str(number)) for number in range(10)}
        for key in keys:
            backend.create(key, self.record(clock))
        found: set[str] = set()
        for key, _ in backend.iterate():
            if key in keys:
                found.add(key)
                assert backend.delete(key) is True
                backend.create(self.key(f"instead of {key}"), self.record(clock))
        assert found == keys

    def test_count_follows_what_happens_to_records(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.COUNT)
        before = backend.count()
        for number in range(3):
            backend.create(self.key(str(number)), self.record(clock))
        backend.create(self.key("tombstone"), self.tombstone(clock))
        assert backend.count() == before + 3
        backend.replace(self.key("0"), self.record(clock), 1)
        backend.touch(self.key("1"), clock(), clock() + 700)
        assert backend.count() == before + 3
        backend.delete(self.key("0"))
        backend.replace(self.key("1"), self.tombstone(clock), 1)
        assert backend.count() == before + 1

    def test_count_leaves_expired_records_out(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.COUNT)
        before = backend.count()
        backend.create(self.key("live"), self.record(clock))
        backend.create(self.key("expired"), self.record(clock, lives=self.short))
        clock.advance(self.short)
        assert backend.count() == before + 1

    def test_iterate_and_count_keep_to_the_key_prefix(
        self, backend: Backend, clock: Clock
    ) -> None:
        prefix = backend.key_prefix
        if prefix is None:
            pytest.skip("the backend gives the records of all applications")
        _need(backend, Capability.ITERATE | Capability.COUNT)
        before = backend.count()
        own = key_of(self._token, prefix)
        # A prefix may begin with another one.
        others = [key_of(self._token, f"{prefix}{more}") for more in ("x", "x:", "0")]
        for key in (own, *others):
            assert backend.create(key, self.record(clock)) is True
        assert backend.count() == before + 1
        listed = {key for key, _ in backend.iterate()}
        assert listed.intersection([own, *others]) == {own}

    def test_prune_deletes_expired_records_up_to_the_limit(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.PRUNE)
        while backend.prune(100) == 100:
            pass
        now = clock()
        short = self.record(clock, lives=self.short)
        for number in range(5):
            backend.create(self.key(str(number)), short)
        backend.create(self.key("tombstone"), self.tombstone(clock, lives=self.short))
        backend.create(self.key("shortened"), self.record(clock))
        assert backend.replace(self.key("shortened"), short, 1) == Replaced(2)
        kept = {
            self.key("live"): self.record(clock),
            self.key("kept tombstone"): self.tombstone(clock),
            self.key("touched"): dataclasses.replace(short, expires_at=now + 600),
        }
        backend.create(self.key("live"), kept[self.key("live")])
        backend.create(self.key("kept tombstone"), kept[self.key("kept tombstone")])
        backend.create(self.key("touched"), short)
        backend.touch(self.key("touched"), short.touched_at, now + 600)
        assert backend.prune(100) == 0
        clock.advance(self.short)
        batches = [backend.prune(3)]
        while batches[-1] == 3:
            batches.append(backend.prune(3))
        # An engine that expires records by itself may have been faster.
        if Capability.EXPIRES not in backend.capabilities:
            assert batches == [3, 3, 1]
        assert all(0 <= batch <= 3 for batch in batches)
        assert sum(batches) <= 7
        assert backend.prune(3) == 0
        for key, record in kept.items():
            assert backend.load(key) == record
        for number in range(5):
            assert backend.create(self.key(str(number)), self.record(clock)) is True

    def test_sweep_deletes_expired_records_up_to_the_limit(
        self, backend: Backend, clock: Clock
    ) -> None:
        _need(backend, Capability.PRUNE)
        while backend.prune(100) == 100:
            pass
        short = self.record(clock, lives=self.short)
        for number in range(5):
            backend.create(self.key(str(number)), short)
        backend.create(self.key("live"), self.record(clock))
        clock.advance(self.short)
        batches = [backend.sweep(2) for _ in range(10)]
        assert all(0 <= batch <= 2 for batch in batches)
        if Capability.EXPIRES not in backend.capabilities:
            assert sum(batches) + backend.prune(100) == 5
        assert backend.sweep(2) == 0
        assert backend.load(self.key("live")) is not None

    # -- private helpers

    def _key_under(self, end: str) -> str:
        """Return a key that no other test uses, with a prefix that ends so."""
        return key_of(self._token, f"{self.prefix}{end}")

    @functools.cached_property
    def _token(self) -> str:
        # pytest makes an instance of the class for every test.
        return secrets.token_hex(4)

    def _count_up(self, backends: list[Backend], clock: Clock) -> None:
        key = self.key()
        backends[0].create(key, self.record(clock, b"0"))

        def count_up(backend: Backend) -> None:
            for _ in range(self.rounds):
                current = _loaded(backend, key)
                while True:
                    record = self.record(clock, b"%d" % (int(current.data) + 1))
                    result = backend.replace(key, record, current.version)
                    if isinstance(result, Replaced):
                        assert result.version == current.version + 1
                        break
                    assert isinstance(result, Conflict)
                    assert result.current.version != current.version
                    current = result.current

        _race([_call(count_up, backend) for backend in backends])
        total = len(backends) * self.rounds
        loaded = _loaded(backends[0], key)
        assert (int(loaded.data), loaded.version) == (total, total + 1)


def _need(backend: Backend, capability: Capability) -> None:
    if capability in backend.capabilities:
        return
    lack = f"does not have {capability}"
    if capability is Capability.COMPARE_AND_SWAP:
        lack = "cannot compare and swap, so it promises nothing about races"
    pytest.skip(f"the {backend.name!r} backend {lack}")


def _loaded(backend: Backend, key: str) -> Record:
    record = backend.load(key)
    assert record is not None, "the record is absent"
    return record


def _call(function: cabc.Callable[..., _T], *args: t.Any) -> cabc.Callable[[], _T]:
    # functools.partial, typed as it is used.
    return lambda: function(*args)


def _race(functions: cabc.Sequence[cabc.Callable[[], t.Any]]) -> list[t.Any]:
    """Call all functions at once, each in a thread, and return their results."""
    barrier = threading.Barrier(len(functions))
    results: list[t.Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            barrier.wait(timeout=30)
            results[index] = functions[index]()
        except BaseException as exc:  # noqa: BLE001 - raised again in the test's thread
            errors.append(exc)

    threads = [
        threading.Thread(target=run, args=(index,), daemon=True)
        for index in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread does not end"
    return results
