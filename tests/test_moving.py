"""Taking over our own sessions from where a former configuration kept them."""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
import typing as t
from pathlib import Path

import pytest
from flask import Flask
from flask import session

from flask_serversession import ConfigurationError
from flask_serversession import ServerSession
from flask_serversession.backends.base import Backend
from flask_serversession.backends.base import Conflict
from flask_serversession.backends.base import Gone
from flask_serversession.backends.filesystem import FilesystemBackend
from flask_serversession.backends.memory import MemoryBackend
from flask_serversession.backends.redis import RedisBackend
from flask_serversession.backends.sqlalchemy import SQLAlchemyBackend
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.payload import is_encrypted
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.record import key_of
from flask_serversession.takeover.moving import MovingBackend
from flask_serversession.takeover.moving import Place
from flask_serversession.takeover.moving import Sealers
from flask_serversession.testing import BackendContract
from flask_serversession.testing import CountingBackend
from flask_serversession.testing import FakeClock

NEW, OLD = "new:", "old:"
KEY, OLD_KEY = key_of("an id", NEW), key_of("an id", OLD)
SECRET, OTHER = secrets.token_bytes(32), secrets.token_bytes(32)
FOREVER = 1e12


def make_moving(
    now: Backend,
    former: Backend,
    clock: t.Any,
    prefix: str = NEW,
    former_prefix: str = OLD,
    **options: t.Any,
) -> MovingBackend:
    return MovingBackend(
        Place(now, prefix),
        Place(former, former_prefix),
        Sealers((), ()),
        FOREVER,
        clock,
        **options,
    )


class TestWithNothingThere(BackendContract):
    @pytest.fixture
    def backend(self, clock: t.Any) -> Backend:
        stores = MemoryBackend(clock=clock), MemoryBackend(clock=clock)
        return make_moving(*stores, clock, self.prefix, "former:")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make_record(clock: FakeClock, data: bytes = b"data", **fields: t.Any) -> Record:
    now = clock()
    fields = {"user": "ada", "expires_at": now + 900, **fields}
    return Record(data=data, version=1, created_at=now, touched_at=now, **fields)


class Setup(t.NamedTuple):
    now: CountingBackend
    former: CountingBackend
    backend: MovingBackend


@pytest.fixture
def setup(clock: FakeClock) -> Setup:
    now, former = (CountingBackend(MemoryBackend(clock=clock)) for _ in range(2))
    former.create(OLD_KEY, make_record(clock))
    backend = make_moving(now, former, clock, patience=0.05)
    now.calls.clear()
    former.calls.clear()
    return Setup(now, former, backend)


def test_a_record_moves_at_its_first_use(setup: Setup) -> None:
    record = setup.backend.load(KEY)
    assert record is not None
    assert (record.data, record.user, record.meta) == (b"data", "ada", {})
    assert setup.former.load(OLD_KEY) is None
    assert setup.former.keys_of_user("ada") == []
    # From then on it costs what it always does.
    with setup.now.counting() as now, setup.former.counting() as former:
        assert setup.backend.load(KEY) == record
    assert (now, former) == ({"load": 1}, {})


@pytest.mark.parametrize("operation", ["touch", "replace", "delete"])
def test_whatever_comes_first_finds_it(
    setup: Setup, clock: FakeClock, operation: str
) -> None:
    if operation == "touch":
        assert setup.backend.touch(KEY, clock(), clock() + 9_000)
        record = setup.backend.load(KEY)
        assert record is not None
        assert record.expires_at == clock() + 9_000
    elif operation == "replace":
        result = setup.backend.replace(KEY, make_record(clock, b"new"), 1)
        assert isinstance(result, Conflict)
        assert result.current.data == b"data"
    else:
        assert setup.backend.delete(KEY) is True
        assert setup.backend.load(KEY) is None
    assert setup.former.load(OLD_KEY) is None


def test_it_is_listed_before_it_moves_and_then_once(setup: Setup) -> None:
    for _ in range(2):
        assert setup.backend.keys_of_user("ada") == [KEY]
        assert [key for key, _ in setup.backend.iterate()] == [KEY]
        assert setup.backend.count() == 1
        assert [*setup.backend.load_many([KEY])] == [KEY]
        setup.backend.load(KEY)


@pytest.mark.parametrize("step", [*range(1, 5)])
@pytest.mark.parametrize("what", ["ended", "changed", "rotated"])
def test_what_happens_there_during_a_move_is_not_undone(
    setup: Setup, clock: FakeClock, step: int, what: str
) -> None:
    """Another process, which knows the former place alone, is in between."""
    steps = [
        (setup.former, "load"),
        (setup.former, "replace"),
        (setup.now, "create"),
        (setup.former, "replace"),
    ]
    where, operation = steps[step - 1]
    seen: list[None] = []

    def interfere() -> None:
        seen.append(None)
        if len(seen) < [None, *steps[:step]].count((where, operation)):
            return
        where.before.pop(operation, None)
        current = setup.former.backend.load(OLD_KEY)
        assert current is not None
        if what == "ended":
            assert setup.former.backend.delete(OLD_KEY)
        else:
            data = b"new" if what == "changed" else TOMBSTONE_DATA
            later = dataclasses.replace(current, data=data, meta={})
            setup.former.backend.replace(OLD_KEY, later, current.version)

    where.before[operation] = interfere
    found = setup.backend.load(KEY)
    assert operation not in where.before
    if what == "ended":
        assert found is None
        assert setup.now.load(KEY) is None
    else:
        assert found is not None
        assert found.is_tombstone is (what == "rotated")
        assert found.data == (b"new" if what == "changed" else TOMBSTONE_DATA)


@pytest.mark.parametrize("then", ["load", "delete", "back", "end there"])
@pytest.mark.parametrize(
    ("where", "operation", "number"),
    [
        ("now", "create", 1),
        ("former", "replace", 1),
        ("former", "replace", 2),
        ("now", "replace", 1),
    ],
)
@pytest.mark.parametrize("is_done", [False, True])
def test_a_process_that_dies_within_a_move_loses_and_revives_nothing(
    setup: Setup,
    clock: FakeClock,
    where: str,
    operation: str,
    number: int,
    is_done: bool,
    then: str,
) -> None:
    store: CountingBackend = getattr(setup, where)
    calls: list[None] = []

    def die() -> None:
        calls.append(None)
        if len(calls) == number:
            raise BackendUnavailableError("dead", backend="memory", operation="x")

    hooks = store.after if is_done else store.before
    hooks[operation] = die
    with pytest.raises(BackendUnavailableError):
        setup.backend.load(KEY)
    del hooks[operation]
    other = make_moving(setup.former, setup.now, clock, OLD, NEW, patience=0.05)
    if then == "load":
        found = setup.backend.load(KEY)
        assert found is not None
        assert (found.data, found.meta) == (b"data", {})
        assert setup.former.load(OLD_KEY) is None
    elif then == "delete":
        assert setup.backend.delete(KEY) is True
        assert setup.backend.load(KEY) is None
        assert other.load(OLD_KEY) is None
    elif then == "back":
        found = other.load(OLD_KEY)
        assert found is not None
        assert (found.data, found.meta) == (b"data", {})
        assert setup.now.load(KEY) is None
    else:
        assert other.delete(OLD_KEY) is True
        assert setup.backend.load(KEY) is None
        assert other.load(OLD_KEY) is None


def test_many_first_uses_at_once_move_it_once(setup: Setup) -> None:
    barrier = threading.Barrier(8)
    found: list[Record | None] = []

    def use() -> None:
        barrier.wait()
        found.append(setup.backend.load(KEY))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record and record.data for record in found} == {b"data"}
    assert {record and record.version for record in found} == {found[0].version}  # type: ignore[union-attr]
    assert setup.now.calls["create"] == 1


@pytest.mark.parametrize("moves", [1, 2, 3, 4])
@pytest.mark.parametrize("operation", ["load", "touch", "delete"])
def test_a_session_that_moves_between_the_looks_for_it_is_found(
    setup: Setup, clock: FakeClock, operation: str, moves: int
) -> None:
    """Processes of both kinds use it at the same moment."""
    now, former = setup.now.backend, setup.former.backend
    here, back = (
        make_moving(now, former, clock),
        make_moving(former, now, clock, OLD, NEW),
    )
    moved: list[str] = []

    def move(there: MovingBackend, key: str) -> None:
        if len(moved) < moves:
            moved.append(key)
            assert there.load(key) is not None

    setup.now.after["load"] = lambda: move(here, KEY)
    setup.former.after["load"] = lambda: move(back, OLD_KEY)
    if operation == "load":
        assert setup.backend.load(KEY) is not None
    elif operation == "touch":
        assert setup.backend.touch(KEY, clock(), clock() + 900) is True
    else:
        assert setup.backend.delete(KEY) is True
        assert here.load(KEY) is None
    assert len(moved) == moves


def test_a_session_that_moves_back_while_sessions_are_listed_is_listed(
    setup: Setup, clock: FakeClock
) -> None:
    now, former = setup.now.backend, setup.former.backend
    back = make_moving(former, now, clock, OLD, NEW)
    for store, operation in (
        (setup.former, "keys_of_user"),
        (setup.former, "load_many"),
    ):
        assert setup.backend.load(KEY) is not None
        store.after[operation] = lambda: back.load(OLD_KEY)
        if operation == "load_many":
            assert [*setup.backend.load_many([KEY])] == [KEY]
        else:
            assert setup.backend.keys_of_user("ada") == [KEY]
        assert now.load(KEY) is None
        del store.after[operation]


class Kind(t.NamedTuple):
    """What a kind of process in a rolling deploy has."""

    backend: Backend
    key: str


@pytest.fixture(params=["memory", "filesystem", "redis and sql"])
def kinds(
    request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path
) -> t.Iterator[tuple[Kind, Kind]]:
    """Give two kinds that take a session from each other; the second one has it."""
    one: Backend
    two: Backend
    if request.param == "memory":
        one, two = MemoryBackend(clock=clock), MemoryBackend(clock=clock)
    elif request.param == "filesystem":
        one = FilesystemBackend(tmp_path / "one", clock=clock)
        two = FilesystemBackend(tmp_path / "two", clock=clock)
    else:
        url = request.getfixturevalue("valkey_server").url
        one = RedisBackend.from_url(url, clock=clock)
        url = request.getfixturevalue("postgres_server").url
        two = SQLAlchemyBackend.from_url(url, table_name="moving", clock=clock)
    id = secrets.token_hex()
    keys = key_of(id, NEW), key_of(id, OLD)
    two.create(keys[1], make_record(clock, b"0"))
    yield (
        Kind(make_moving(one, two, clock), keys[0]),
        Kind(make_moving(two, one, clock, OLD, NEW), keys[1]),
    )
    one.close()
    two.close()


class Race:
    """Runs a function in several threads, half of them for either kind."""

    def __init__(
        self, function: t.Callable[[Kind], None], kinds: tuple[Kind, Kind]
    ) -> None:
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(function, kind))
            for kind in kinds * 2
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, function: t.Callable[[Kind], None], kind: Kind) -> None:
        try:
            function(kind)
        except BaseException as error:
            self._errors.append(error)
            raise

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        assert self._errors == []


ROUNDS = 25


def count_up(kind: Kind) -> None:
    for _ in range(ROUNDS):
        record = kind.backend.load(kind.key)
        while record is not None:
            data = b"%d" % (int(record.data) + 1)
            later = dataclasses.replace(record, data=data)
            result = kind.backend.replace(kind.key, later, record.version)
            if not isinstance(result, Conflict):
                assert not isinstance(result, Gone)
                break
            record = result.current
        assert record is not None


def test_both_kinds_of_processes_of_a_deploy_lose_nothing(
    kinds: tuple[Kind, Kind],
) -> None:
    Race(count_up, kinds).join()
    for kind in kinds:
        record = kind.backend.load(kind.key)
        assert record is not None
        assert record.data == b"%d" % (4 * ROUNDS)


def test_what_either_kind_ends_does_not_come_back(kinds: tuple[Kind, Kind]) -> None:
    ended = threading.Event()

    def look(kind: Kind) -> None:
        for _ in range(ROUNDS):
            is_ended = ended.is_set()
            record = kind.backend.load(kind.key)
            assert not (is_ended and record is not None)

    race = Race(look, kinds)
    assert kinds[1].backend.delete(kinds[1].key) is True
    ended.set()
    race.join()
    assert [kind.backend.load(kind.key) for kind in kinds] == [None, None]


def test_it_is_over_at_its_end(setup: Setup, clock: FakeClock) -> None:
    backend = MovingBackend(
        Place(setup.now, NEW),
        Place(setup.former, OLD),
        Sealers((), ()),
        clock() + 10,
        clock,
    )
    clock.advance(10)
    with setup.former.counting() as calls:
        assert backend.load(KEY) is None
        assert backend.touch(KEY, clock(), clock() + 9) is False
        assert backend.delete(KEY) is False
        assert isinstance(backend.replace(KEY, make_record(clock), 1), Gone)
        assert backend.keys_of_user("ada") == []
        assert backend.count() == 0
    assert calls == {}


# -- applications


def visit_as(app: Flask, client: t.Any, **values: t.Any) -> dict[str, t.Any]:
    """Store values in the session of a browser, and return what it holds then."""
    found: dict[str, t.Any] = {}

    def view() -> str:
        session.update(values)
        found.update(session)
        return ""

    app.view_functions["index"] = view
    assert client.get("/").status_code == 200
    return found


def make_app(clock: FakeClock, **config: t.Any) -> Flask:
    app = Flask("shop")
    app.config.update(SECRET_KEY="a secret that is long enough", **config)
    app.add_url_rule("/", "index", lambda: "")
    ServerSession(app, clock=clock)
    return app


MOVES: dict[str, tuple[dict[str, t.Any], dict[str, t.Any]]] = {
    "another folder": (
        {"SESSION_FILESYSTEM_PATH": "one"},
        {"SESSION_FILESYSTEM_PATH": "two"},
    ),
    "another prefix": (
        {"SESSION_FILESYSTEM_PATH": "one", "SESSION_KEY_PREFIX": "old:"},
        {"SESSION_FILESYSTEM_PATH": "one", "SESSION_KEY_PREFIX": "new:"},
    ),
    "files to a database": (
        {"SESSION_BACKEND": "filesystem", "SESSION_FILESYSTEM_PATH": "one"},
        {"SESSION_BACKEND": "sqlalchemy", "SESSION_SQLALCHEMY_URL": "sqlite:///two.db"},
    ),
    "another table": (
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": "sqlite:///one.db",
            "SESSION_SQLALCHEMY_TABLE": "old",
        },
        {
            "SESSION_BACKEND": "sqlalchemy",
            "SESSION_SQLALCHEMY_URL": "sqlite:///one.db",
            "SESSION_SQLALCHEMY_TABLE": "new",
        },
    ),
    "encryption": (
        {"SESSION_FILESYSTEM_PATH": "one", "SESSION_ENCRYPTION_KEY": None},
        {"SESSION_FILESYSTEM_PATH": "one", "SESSION_ENCRYPTION_KEY": SECRET},
    ),
    "no encryption": (
        {"SESSION_FILESYSTEM_PATH": "one", "SESSION_ENCRYPTION_KEY": SECRET},
        {"SESSION_FILESYSTEM_PATH": "one", "SESSION_ENCRYPTION_KEY": None},
    ),
    "another encrypted place": (
        {
            "SESSION_FILESYSTEM_PATH": "one",
            "SESSION_KEY_PREFIX": "old:",
            "SESSION_ENCRYPTION_KEY": SECRET,
        },
        {
            "SESSION_FILESYSTEM_PATH": "two",
            "SESSION_KEY_PREFIX": "new:",
            "SESSION_ENCRYPTION_KEY": [OTHER, SECRET],
        },
    ),
}


def differing(one: dict[str, t.Any], other: dict[str, t.Any]) -> dict[str, t.Any]:
    return {key: value for key, value in one.items() if value != other.get(key, ...)}


class Deploy(t.NamedTuple):
    """The same application before the move, in both ways during it, and after it."""

    before: Flask
    early: Flask
    late: Flask
    clock: FakeClock


@pytest.fixture(params=MOVES)
def deploy(
    request: pytest.FixtureRequest,
    clock: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> t.Iterator[Deploy]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instance").mkdir()
    old, new = MOVES[request.param]
    until = {"SESSION_MIGRATE_UNTIL": "2150-01-01"}
    apps = [
        make_app(clock, **old),
        make_app(clock, **old, **until, SESSION_MIGRATE_FROM=differing(new, old)),
        make_app(clock, **new, **until, SESSION_MIGRATE_FROM=differing(old, new)),
    ]
    yield Deploy(*apps, clock)
    for app in apps:
        app.extensions["serversession"].backend.close()


def test_nobody_is_logged_out_by_a_move(deploy: Deploy) -> None:
    client = deploy.before.test_client()
    visit_as(deploy.before, client, _user_id="ada")
    cookie = client.get_cookie("session").value
    seen = {"_user_id": "ada"}
    # One after the other, as a rolling deploy has it, and back again.
    for number, app in enumerate([deploy.early, *[deploy.late, deploy.early] * 2]):
        other = app.test_client()
        other.set_cookie("session", cookie)
        seen |= {f"n{number}": number}
        assert visit_as(app, other, **{f"n{number}": number}) == seen
    # Nothing is left of it elsewhere: a log-out ends it.
    with deploy.late.app_context():
        extension = ServerSession()
        (info,) = extension.sessions_of("ada")
        assert extension.count() == len([*extension.sessions()]) == 1
        assert extension.revoke(info.handle[:12])
    for app in (deploy.early, deploy.late, deploy.before):
        other = app.test_client()
        other.set_cookie("session", cookie)
        assert visit_as(app, other) == {}


def test_a_user_is_ended_in_both_places(deploy: Deploy) -> None:
    clients = [app.test_client() for app in (deploy.early, deploy.late)]
    for app, client in zip((deploy.early, deploy.late), clients, strict=True):
        visit_as(app, client, _user_id="ada")
    with deploy.late.app_context():
        assert ServerSession().revoke_user("ada") == 2
    for client in clients:
        for app in (deploy.early, deploy.late):
            other = app.test_client()
            other.set_cookie("session", client.get_cookie("session").value)
            assert visit_as(app, other) == {}


def test_after_its_end_nothing_is_taken_over(deploy: Deploy) -> None:
    client = deploy.before.test_client()
    deploy.clock.advance(300 * 365 * 86_400)
    visit_as(deploy.before, client, _user_id="ada")
    other = deploy.late.test_client()
    other.set_cookie("session", client.get_cookie("session").value)
    assert visit_as(deploy.late, other) == {}


def test_what_was_clear_is_encrypted_at_its_first_use(
    clock: FakeClock, tmp_path: Path
) -> None:
    config: dict[str, t.Any] = {"SESSION_FILESYSTEM_PATH": tmp_path / "sessions"}
    before = make_app(clock, **config)
    client = before.test_client()
    visit_as(before, client, _user_id="ada")
    after = make_app(
        clock,
        **config,
        SESSION_ENCRYPTION_KEY=SECRET,
        SESSION_MIGRATE_FROM={"SESSION_ENCRYPTION_KEY": None},
        SESSION_MIGRATE_UNTIL="2150-01-01",
    )
    backend = FilesystemBackend(tmp_path / "sessions", clock=clock)
    ((_, record),) = backend.iterate()
    assert not is_encrypted(record.data)
    other = after.test_client()
    other.set_cookie("session", client.get_cookie("session").value)
    # Only read.
    assert visit_as(after, other) == {"_user_id": "ada"}
    ((_, record),) = backend.iterate()
    assert is_encrypted(record.data)
    assert record.user == "ada"


@pytest.mark.parametrize(
    ("former", "message"),
    [
        ({}, "at least one key that has changed"),
        (
            {"SESSION_BAKEND": "redis"},
            "the keys that say where sessions were kept, and 'SESSION_BAKEND' is not"
            " one of them. Did you mean 'SESSION_BACKEND'?",
        ),
        ({"SESSION_PERMANENT": True}, "'SESSION_PERMANENT' is not one of them."),
        ({"SESSION_SQLALCHEMY_TABLE": 5}, "as its 'SESSION_SQLALCHEMY_TABLE' a"),
        ({"SESSION_KEY_PREFIX": 5}, "as its 'SESSION_KEY_PREFIX' a str of at most"),
        ({"SESSION_BACKEND": "nowhere"}, "'SESSION_BACKEND' is 'nowhere'; expected"),
        ({"SESSION_BACKEND": "memory"}, "of which nothing is left when its process"),
        ({"SESSION_BACKEND": "redis"}, "which needs exactly one of"),
        ({"SESSION_KEY_PREFIX": "p:"}, "needs 'SESSION_MIGRATE_UNTIL'"),
        ({"SESSION_ENCRYPTION_KEY": "secret"}, "32 bytes or their URL-safe base64"),
    ],
)
def test_a_former_configuration_that_makes_no_sense_is_refused(
    clock: FakeClock, former: dict[str, t.Any], message: str
) -> None:
    until: dict[str, t.Any] = {"SESSION_MIGRATE_UNTIL": "2150-01-01"}
    if "SESSION_MIGRATE_UNTIL" in message:
        until = {}
    with pytest.raises(ConfigurationError) as info:
        make_app(clock, **until, SESSION_MIGRATE_FROM=former)
    assert info.value.option is not None
    assert info.value.option.startswith("SESSION_MIGRATE_")
    assert message in str(info.value)
    assert "secret" not in str(info.value)


@pytest.mark.parametrize("is_encryption", [False, True])
def test_what_is_still_to_come_can_be_counted(
    clock: FakeClock, tmp_path: Path, is_encryption: bool
) -> None:
    before = make_app(clock, SESSION_FILESYSTEM_PATH=tmp_path / "one")
    clients = [before.test_client() for _ in range(3)]
    for client in clients:
        visit_as(before, client, n=1)
    former: dict[str, t.Any] = {"SESSION_FILESYSTEM_PATH": tmp_path / "one"}
    config: dict[str, t.Any] = {"SESSION_FILESYSTEM_PATH": tmp_path / "two"}
    if is_encryption:
        config = {**former, "SESSION_ENCRYPTION_KEY": SECRET}
        former = {"SESSION_ENCRYPTION_KEY": None}
    after = make_app(
        clock,
        **config,
        SESSION_MIGRATE_FROM=former,
        SESSION_MIGRATE_UNTIL="2150-01-01",
    )

    def counted() -> t.Any:
        runner = after.test_cli_runner()
        result = runner.invoke(args=["sessions", "migrate", "--check", "--json"])
        assert result.exit_code == 0
        return json.loads(result.stdout)

    found = counted()
    assert found["on"] is True
    assert found["from"] == [*former]
    assert found["store"]["read"] == found["store"]["good"] == 3
    other = after.test_client()
    other.set_cookie("session", clients[0].get_cookie("session").value)
    assert visit_as(after, other) == {"n": 1}
    assert counted()["store"]["read"] == 2
    text = after.test_cli_runner().invoke(args=["sessions", "migrate", "--check"])
    assert next(iter(former)) in text.stdout
    info = after.test_cli_runner().invoke(args=["sessions", "info"])
    assert info.exit_code == 0, info.output
    assert SECRET.hex() not in info.stdout
    assert "FormerSettings" in info.stdout


def test_a_record_that_cannot_be_read_stays_where_it_is(
    clock: FakeClock, tmp_path: Path
) -> None:
    before = make_app(
        clock, SESSION_FILESYSTEM_PATH=tmp_path / "one", SESSION_ENCRYPTION_KEY=OTHER
    )
    client = before.test_client()
    visit_as(before, client, n=1)
    after = make_app(
        clock,
        SESSION_FILESYSTEM_PATH=tmp_path / "two",
        SESSION_MIGRATE_FROM={
            "SESSION_FILESYSTEM_PATH": tmp_path / "one",
            "SESSION_ENCRYPTION_KEY": SECRET,
        },
        SESSION_MIGRATE_UNTIL="2150-01-01",
    )
    result = after.test_cli_runner().invoke(args=["sessions", "migrate", "--check"])
    assert result.exit_code == 1
    other = after.test_client()
    other.set_cookie("session", client.get_cookie("session").value)
    assert visit_as(after, other) == {}
    assert visit_as(before, client) == {"n": 1}
