"""The cachelib backend: the contract on three caches, and what caches get wrong."""

from __future__ import annotations

import functools
import marshal
import pathlib
import pickle
import shutil
import socket
import ssl
import sys
import types
import typing as t
from collections.abc import Iterator

import cachelib
import memcache
import pytest
from cachelib import BaseCache
from cachelib import FileSystemCache
from cachelib import MemcachedCache
from cachelib import NullCache
from cachelib import SimpleCache
from flask import Flask

from flask_serversession import ServerSession
from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Capability
from flask_serversession.backends.base import Replaced
from flask_serversession.backends.cachelib import CachelibBackend
from flask_serversession.backends.cachelib import eviction_warning
from flask_serversession.backends.cachelib import unpickling_warning
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import ConfigurationError
from flask_serversession.errors import RecordError
from flask_serversession.record import FORMAT
from flask_serversession.record import MAGIC
from flask_serversession.record import Record
from flask_serversession.record import decode_record
from flask_serversession.record import encode_record
from flask_serversession.record import key_of
from flask_serversession.testing import BackendContract
from flask_serversession.testing import Clock
from flask_serversession.testing import FakeClock
from flask_serversession.testing import RealClock
from flask_serversession.testing import Spoil

if t.TYPE_CHECKING:
    from ..servers import MemcachedServer


class BrokenCache(SimpleCache):
    """Fails in every operation, as a client library does whose server is gone."""

    error: Exception = ConnectionRefusedError(111, "Connection refused")

    def get(self, key: str) -> t.Any:
        raise self.error

    def set(self, *args: t.Any, **kwargs: t.Any) -> bool:
        raise self.error

    def add(self, *args: t.Any, **kwargs: t.Any) -> bool:
        raise self.error

    def delete(self, key: str) -> bool:
        raise self.error


class OneProcessBackend(CachelibBackend):
    """Claims what holds within one process, so that the contract checks it."""

    capabilities = CachelibBackend.capabilities | Capability.COMPARE_AND_SWAP


def spoil_in(cache: BaseCache) -> Spoil:
    def spoil(key: str, reason: t.Literal["damaged", "newer"]) -> None:
        value = cache.get(key)
        assert isinstance(value, bytes)
        if reason == "newer":
            value = bytes([MAGIC, FORMAT + 1]) + value[2:]
        else:
            value = value[:-1] + bytes([value[-1] ^ 1])
        cache.set(key, value, 600)

    return spoil


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> BaseCache:
    """A SimpleCache that lives in the same time as the backend."""
    monkeypatch.setattr("cachelib.simple.time", clock)
    return SimpleCache(threshold=sys.maxsize)


@pytest.fixture
def cached(cache: BaseCache, clock: FakeClock) -> CachelibBackend:
    return CachelibBackend(cache, clock)


@pytest.fixture
def file_cache(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> BaseCache:
    monkeypatch.setattr("cachelib.file.time", clock)
    return FileSystemCache(str(tmp_path / "cache"), threshold=0)


def make_record(clock: Clock, data: bytes = b"data", lives: float = 600) -> Record:
    now = clock()
    return Record(data, 1, now, now, now + lives)


class TestSimpleCache(BackendContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return FakeClock()

    @pytest.fixture
    def backend(self, cache: BaseCache, clock: Clock) -> Backend:
        return CachelibBackend(cache, clock)

    @pytest.fixture
    def second_backend(
        self, backend: Backend, cache: BaseCache, clock: Clock
    ) -> Backend:
        return CachelibBackend(cache, clock)

    @pytest.fixture
    def dead_backend(self) -> Backend:
        return CachelibBackend(BrokenCache())

    @pytest.fixture
    def spoil(self, backend: Backend, cache: BaseCache) -> Spoil:
        return spoil_in(cache)


class TestSimpleCacheInOneProcess(TestSimpleCache):
    @pytest.fixture
    def backend(self, cache: BaseCache, clock: Clock) -> Backend:
        return OneProcessBackend(cache, clock)


class TestFileSystemCache(BackendContract):
    @pytest.fixture
    def backend(self, file_cache: BaseCache, clock: Clock) -> Backend:
        return CachelibBackend(file_cache, clock)

    @pytest.fixture
    def second_backend(
        self, backend: Backend, file_cache: BaseCache, clock: Clock
    ) -> Backend:
        return CachelibBackend(file_cache, clock)

    @pytest.fixture
    def dead_backend(self, tmp_path: pathlib.Path) -> Backend:
        path = tmp_path / "dead"
        cache = FileSystemCache(str(path), threshold=0)
        shutil.rmtree(path)
        return CachelibBackend(cache)

    @pytest.fixture
    def spoil(self, backend: Backend, file_cache: BaseCache) -> Spoil:
        return spoil_in(file_cache)


class TestFileSystemCacheInOneProcess(TestFileSystemCache):
    @pytest.fixture
    def backend(self, file_cache: BaseCache, clock: Clock) -> Backend:
        return OneProcessBackend(file_cache, clock)


# python-memcached leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestMemcached(BackendContract):
    # A little below memcached's largest item, which is 1 MiB with its own header.
    large = 1_000_000

    @pytest.fixture
    def clock(self) -> Clock:
        return RealClock()

    @pytest.fixture
    def memcached(self, memcached_server: MemcachedServer) -> Iterator[BaseCache]:
        client = memcache.Client([memcached_server.address])
        yield MemcachedCache(client, key_prefix="tests/")
        client.disconnect_all()

    @pytest.fixture
    def backend(self, memcached: BaseCache) -> Backend:
        return CachelibBackend(memcached)

    @pytest.fixture
    def second_backend(
        self, backend: Backend, memcached_server: MemcachedServer
    ) -> Iterator[Backend]:
        client = memcache.Client([memcached_server.address])
        yield CachelibBackend(MemcachedCache(client, key_prefix="tests/"))
        client.disconnect_all()

    @pytest.fixture
    def dead_backend(self) -> Iterator[Backend]:
        # Bound but not listening: nobody else can take the port meanwhile.
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            client = memcache.Client([f"127.0.0.1:{port}"], socket_timeout=1)
            yield CachelibBackend(MemcachedCache(client))
            client.disconnect_all()

    @pytest.fixture
    def spoil(self, backend: Backend, memcached: BaseCache) -> Spoil:
        return spoil_in(memcached)


def test_it_claims_no_more_than_a_cache_can_do() -> None:
    assert CachelibBackend.name == "cachelib"
    assert CachelibBackend.capabilities == Capability.EXPIRES


def test_the_cache_gets_bytes_under_the_key_itself(
    cached: CachelibBackend, cache: BaseCache, clock: FakeClock
) -> None:
    key = "session:" + "0123456789abcdef" * 4
    record = make_record(clock)
    cached.create(key, record)
    assert cache.get(key) == encode_record(record)


@pytest.mark.parametrize("prefix", ["a b", "ü", "x" * 200, "a#b", "🔑" * 100])
def test_a_key_is_hashed_whose_prefix_memcached_refuses(
    cached: CachelibBackend, cache: SimpleCache, clock: FakeClock, prefix: str
) -> None:
    key = key_of("an id", prefix)
    assert cached.create(key, make_record(clock)) is True
    (name,) = cache._cache
    assert len(name) == 65
    assert name.isascii()
    assert name.startswith("#")
    assert cached.load(name) is None
    assert cached.load(key) is not None


@pytest.mark.parametrize(
    ("lives", "timeout"),
    [(600, 601), (0.25, 2), (1.0, 2), (1.5, 3), (10**12, 158112001)],
)
def test_the_timeout_is_in_whole_seconds_and_never_early(
    cached: CachelibBackend,
    cache: BaseCache,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    lives: float,
    timeout: int,
) -> None:
    timeouts: list[int] = []

    def add(key: str, value: object, seconds: int) -> bool:
        timeouts.append(seconds)
        return True

    monkeypatch.setattr(cache, "add", add)
    monkeypatch.setattr(cache, "set", add)
    cached.create("key", make_record(clock, lives=lives))
    assert timeouts == [timeout]
    assert type(timeouts[0]) is int


def test_the_timeout_of_an_expired_record_does_not_mean_never(
    cached: CachelibBackend, cache: SimpleCache, clock: FakeClock
) -> None:
    assert cached.create("key", make_record(clock, lives=-100)) is True
    expires_at, _ = cache._cache["key"]
    assert expires_at == clock() + 1
    assert cached.load("key") is None


@pytest.mark.parametrize("kept_by", ["cache", "file_cache"])
def test_create_takes_the_key_of_a_record_that_expired_in_the_cache_too(
    request: pytest.FixtureRequest, clock: FakeClock, kept_by: str
) -> None:
    cache: BaseCache = request.getfixturevalue(kept_by)
    backend = CachelibBackend(cache, clock)
    backend.create("key", make_record(clock, b"old", lives=5))
    clock.advance(100)
    assert cache.get("key") is None
    assert backend.create("key", make_record(clock, b"new")) is True
    loaded = backend.load("key")
    assert loaded is not None
    assert loaded.data == b"new"


def test_create_refuses_a_key_that_the_cache_cannot_read(
    file_cache: BaseCache, clock: FakeClock, tmp_path: pathlib.Path
) -> None:
    backend = CachelibBackend(file_cache, clock)
    backend.create("key", make_record(clock))
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:20])
    assert backend.create("key", make_record(clock)) is False
    assert path.read_bytes() == content[:20]


def test_create_copes_with_a_cache_that_has_no_has(clock: FakeClock) -> None:
    class Plain(BaseCache):
        value: object = None

        def get(self, key: str) -> t.Any:
            return self.value

        def set(self, key: str, value: t.Any, timeout: t.Any = None) -> bool:
            self.value = value
            return True

        def add(self, key: str, value: t.Any, timeout: t.Any = None) -> bool:
            return False

    cache = Plain()
    assert CachelibBackend(cache, clock).create("key", make_record(clock)) is True
    assert isinstance(cache.value, bytes)


@pytest.mark.parametrize("value", ["text", 42, {"a": 1}, ("x",), b"", b"bytes"])
def test_foreign_values_are_damaged_records(
    cached: CachelibBackend, cache: BaseCache, clock: FakeClock, value: object
) -> None:
    cache.set("key", value, 600)
    with pytest.raises(RecordError) as info:
        cached.load("key")
    assert info.value.reason == "damaged"
    assert cached.create("key", make_record(clock)) is False
    assert cached.touch("key", clock(), clock() + 600) is False
    assert cache.get("key") == value
    assert cached.delete("key") is True
    assert cached.load("key") is None


def test_a_value_that_the_cache_cannot_unpickle_is_damaged_or_absent(
    cached: CachelibBackend, cache: SimpleCache, clock: FakeClock
) -> None:
    cached.create("key", make_record(clock))
    expires, pickled = cache._cache["key"]
    for index in range(len(pickled)):
        for bit in range(8):
            damaged = bytearray(pickled)
            damaged[index] ^= 1 << bit
            cache._cache["key"] = (expires, bytes(damaged))
            try:
                loaded = cached.load("key")
            except RecordError:
                continue
            # Bits that pickle ignores make no difference.
            assert loaded is None or loaded.data == b"data"


def test_a_touch_leaves_a_newer_record_alone(
    cached: CachelibBackend, cache: BaseCache, clock: FakeClock
) -> None:
    newer = bytes([MAGIC, FORMAT + 1]) + b"something"
    cache.set("key", newer, 600)
    assert cached.touch("key", clock(), clock() + 600) is False
    with pytest.raises(RecordError):
        cached.delete("key")
    assert cache.get("key") == newer


@pytest.mark.parametrize(
    "error",
    [
        OSError("broken"),
        TimeoutError("timed out"),
        ssl.SSLCertVerificationError("not trusted"),
        RuntimeError("pool is exhausted"),
        type("PyMongoError", (Exception,), {})("no primary"),
    ],
)
def test_what_a_client_library_raises_means_unavailable(
    clock: FakeClock, error: Exception
) -> None:
    cache = BrokenCache()
    cache.error = error
    backend = CachelibBackend(cache, clock)
    with pytest.raises(BackendUnavailableError) as info:
        backend.load("secret-key")
    assert info.value.__cause__ is error
    assert str(info.value) == (
        "The BrokenCache of the 'cachelib' backend failed to carry out 'load': it"
        " cannot be reached, or it refuses the record, perhaps because of its size."
    )


@pytest.mark.parametrize("error", [TypeError, AttributeError, NameError, ImportError])
def test_programming_errors_are_seen_as_what_they_are(
    clock: FakeClock, error: type[Exception]
) -> None:
    cache = BrokenCache()
    cache.error = error("a mistake")
    backend = CachelibBackend(cache, clock)
    with pytest.raises(error, match="a mistake"):
        backend.load("key")
    with pytest.raises(error, match="a mistake"):
        backend.create("key", make_record(clock))


@pytest.mark.parametrize("answer", [False, None, 0])
def test_a_refused_write_means_unavailable(
    cached: CachelibBackend,
    cache: BaseCache,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    answer: object,
) -> None:
    cached.create("key", make_record(clock))
    monkeypatch.setattr(cache, "set", lambda *args: answer)
    with pytest.raises(BackendUnavailableError) as info:
        cached.replace("key", make_record(clock), 1)
    assert (info.value.backend, info.value.operation) == ("cachelib", "replace")
    with pytest.raises(BackendUnavailableError) as info:
        cached.touch("key", clock(), clock() + 700)
    assert info.value.operation == "touch"


def test_a_refused_create_on_a_free_key_means_unavailable(
    cached: CachelibBackend,
    cache: BaseCache,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "add", lambda *args: False)
    monkeypatch.setattr(cache, "set", lambda *args: False)
    with pytest.raises(BackendUnavailableError) as info:
        cached.create("key", make_record(clock))
    assert info.value.operation == "create"


def test_a_refused_delete_means_unavailable(
    cached: CachelibBackend,
    cache: BaseCache,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached.create("key", make_record(clock))
    monkeypatch.setattr(cache, "delete", lambda key: False)
    with pytest.raises(BackendUnavailableError) as info:
        cached.delete("key")
    assert info.value.operation == "delete"


def test_delete_says_so_when_another_process_was_faster(
    cached: CachelibBackend,
    cache: SimpleCache,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached.create("key", make_record(clock))

    def delete(key: str) -> bool:
        del cache._cache[key]
        return False

    monkeypatch.setattr(cache, "delete", delete)
    assert cached.delete("key") is False


def test_a_touch_writes_the_same_record_with_other_times(
    cached: CachelibBackend, cache: BaseCache, clock: FakeClock
) -> None:
    cached.create("key", make_record(clock))
    cached.touch("key", clock() + 1, clock() + 900)
    record = decode_record(cache.get("key"))
    assert record.version == 1
    assert record.expires_at == clock() + 900


def test_a_live_record_costs_one_round_trip(
    cached: CachelibBackend,
    cache: BaseCache,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached.create("key", make_record(clock))

    def fail(*args: object) -> None:
        raise AssertionError(args)

    monkeypatch.setattr(cache, "set", fail)
    monkeypatch.setattr(cache, "has", fail)
    assert cached.load("key") is not None


def test_closing_leaves_the_cache_alone(
    cached: CachelibBackend, cache: BaseCache, clock: FakeClock
) -> None:
    cached.create("key", make_record(clock))
    cached.close()
    assert cached.replace("key", make_record(clock), 1) == Replaced(2)


@pytest.mark.parametrize(("given", "meant"), [(0, 500), (500, 500), (20_000, 20_000)])
def test_a_simple_cache_gets_an_eviction_warning(given: int, meant: int) -> None:
    assert eviction_warning(SimpleCache(threshold=given)) == (
        f"'SESSION_CACHELIB' is a SimpleCache with a threshold of {meant}: beyond"
        f" {meant} sessions it throws live ones away (a threshold of 0 means 500"
        " there). Use the 'memory' backend instead, or give the cache"
        " threshold=sys.maxsize, with which it never removes an expired one."
    )


def test_a_file_system_cache_gets_an_eviction_warning(tmp_path: pathlib.Path) -> None:
    assert eviction_warning(FileSystemCache(str(tmp_path))) == (
        "'SESSION_CACHELIB' is a FileSystemCache with a threshold of 500: beyond 500"
        " sessions it throws live ones away. Use the 'filesystem' backend instead, or"
        " give the cache threshold=0, with which it never removes an expired one."
    )


class NullCacheOfFlaskCaching(BaseCache):
    """As that of Flask-Caching, which is not cachelib's."""


NullCacheOfFlaskCaching.__name__ = "NullCache"


@pytest.mark.parametrize("cache", [NullCache(), NullCacheOfFlaskCaching()])
def test_a_cache_that_keeps_nothing_is_refused_at_the_start(cache: BaseCache) -> None:
    app = Flask("shop")
    app.config.update(
        SECRET_KEY="k", SESSION_BACKEND="cachelib", SESSION_CACHELIB=cache
    )
    with pytest.raises(ConfigurationError) as caught:
        ServerSession(app)
    assert str(caught.value) == (
        "'SESSION_CACHELIB' is a NullCache, which keeps nothing: every session is lost"
        " at the end of its request. Use another cache, or the 'memory' backend for"
        " tests."
    )


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_cache_with_a_threshold_throws_live_sessions_away(
    kind: str, tmp_path: pathlib.Path
) -> None:
    cache: BaseCache = (
        SimpleCache(threshold=20)
        if kind == "memory"
        else FileSystemCache(str(tmp_path), threshold=20)
    )
    backend = CachelibBackend(cache)
    keys = [f"key-{number}" for number in range(60)]
    for key in keys:
        assert backend.create(key, make_record(RealClock())) is True
    assert len(backend.load_many(keys)) < 60


def test_other_caches_get_no_eviction_warning(tmp_path: pathlib.Path) -> None:
    assert eviction_warning(SimpleCache(threshold=sys.maxsize)) is None
    assert eviction_warning(FileSystemCache(str(tmp_path), threshold=0)) is None
    assert eviction_warning(MemcachedCache(memcache.Client([]))) is None
    assert eviction_warning(BaseCache()) is None


# What a cache runs that reads pickles


class Bomb:
    exploded: t.ClassVar[list[str]] = []

    def __reduce__(self) -> t.Any:
        return Bomb.explode, ()

    @staticmethod
    def explode() -> None:
        Bomb.exploded.append("a pickle was run")


class WithoutPickle:
    """Keeps the bytes of a record as they are, behind those of a probe."""

    def dump(self, value: t.Any, file: t.BinaryIO, *protocol: int) -> None:
        file.write(self.dumps(value))

    def load(self, file: t.BinaryIO) -> t.Any:
        return self.loads(file.read())

    def dumps(self, value: t.Any, *protocol: int) -> bytes:
        # FileSystemCache counts its files in one of them.
        return b"#%d" % value if isinstance(value, int) else bytes(value)

    def loads(self, value: bytes) -> t.Any:
        return int(value[1:]) if value[:1] == b"#" else value


def start(backend: CachelibBackend, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Start an application, and give what it logs until its first session is read."""
    app = Flask("site")
    app.config.update(SECRET_KEY="a secret", SESSION_BACKEND=backend)
    ServerSession(app)
    client = app.test_client()
    for _ in range(2):
        with client.session_transaction() as session:
            session["n"] = session.get("n", 0) + 1
    assert session["n"] == 2
    return [f"{record.levelname}: {record.message}" for record in caplog.records]


@pytest.fixture
def files(tmp_path: pathlib.Path) -> FileSystemCache:
    return FileSystemCache(str(tmp_path / "cache"), threshold=0)


def test_a_cache_that_runs_what_is_planted_is_warned_of_once(
    files: FileSystemCache, caplog: pytest.LogCaptureFixture
) -> None:
    backend = CachelibBackend(files)
    assert start(backend, caplog) == [
        "WARNING: The FileSystemCache of the 'cachelib' backend unpickles what it"
        " reads: whoever can write to the cache can run code in the application. Let"
        " nobody else write to it, or choose another 'SESSION_BACKEND'."
    ]
    # And that is true.
    assert backend.create("key", make_record(RealClock())) is True
    path = pathlib.Path(files._get_filename("key"))
    path.write_bytes(path.read_bytes()[:4] + pickle.dumps(Bomb()))
    Bomb.exploded.clear()
    assert backend.load("key") is None
    assert Bomb.exploded == ["a pickle was run"]


def test_memcached_is_warned_of_because_its_clients_unpickle(
    memcached_server: MemcachedServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = memcache.Client([memcached_server.address])
    backend = CachelibBackend(MemcachedCache(client, key_prefix="tests/"))
    (line,) = start(backend, caplog)
    assert "The MemcachedCache of the 'cachelib' backend unpickles" in line
    client.set("tests/key", Bomb())
    Bomb.exploded.clear()
    assert backend.load("key") is None
    assert Bomb.exploded == ["a pickle was run"]
    client.disconnect_all()


@pytest.mark.parametrize(
    "name", ["RedisCache", "ValkeyCache", "MongoDbCache", "DynamoDbCache", "UWSGICache"]
)
def test_every_cache_is_warned_of_whose_serializer_pickles(name: str) -> None:
    kind = getattr(cachelib, name, None)
    if kind is None:
        pytest.skip("This version of cachelib does not have it.")
    # Without its server, which makes no difference to how it reads.
    cache = kind.__new__(kind)
    text = unpickling_warning(CachelibBackend(cache))
    assert text is not None
    assert text.startswith(f"The {name} of the 'cachelib' backend unpickles")
    cache.serializer = WithoutPickle()
    assert unpickling_warning(CachelibBackend(cache)) is None


@pytest.mark.parametrize("attribute", ["loads", "load"])
def test_a_serializer_of_ones_own_that_pickles_is_noticed(
    files: FileSystemCache, attribute: str
) -> None:
    cache: t.Any = files
    if attribute == "loads":  # as all others but files read
        cache = cachelib.RedisCache.__new__(cachelib.RedisCache)
    for function in (getattr(pickle, attribute), getattr(marshal, attribute)):
        for serializer in (
            types.SimpleNamespace(**{attribute: function}),
            types.SimpleNamespace(**{attribute: functools.partial(function)}),
        ):
            cache.serializer = serializer
            assert unpickling_warning(CachelibBackend(cache)) is not None


def test_a_cache_that_reads_without_pickle_is_not_warned_of(
    files: FileSystemCache, caplog: pytest.LogCaptureFixture
) -> None:
    t.cast("t.Any", files).serializer = WithoutPickle()
    assert start(CachelibBackend(files), caplog) == []


def test_the_memory_of_the_process_is_not_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = SimpleCache(threshold=sys.maxsize)
    assert start(CachelibBackend(cache), caplog) == []
    assert unpickling_warning(CachelibBackend(NullCache())) is None
    assert unpickling_warning(CachelibBackend(BaseCache())) is None


def test_other_backends_are_not_warned_of() -> None:
    assert unpickling_warning(MemoryBackend()) is None
