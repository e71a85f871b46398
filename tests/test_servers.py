"""The servers themselves: they start, stop, freeze and leave nothing behind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import memcache
import psutil
import psycopg
import pymysql
import pytest
import redis
from redis.sentinel import MasterNotFoundError
from redis.sentinel import Sentinel

from .backend_configs import BACKEND_CONFIGS
from .backend_configs import Place
from .conftest import _run
from .servers import MariaDBServer
from .servers import MemcachedServer
from .servers import PostgresServer
from .servers import RedisServer
from .servers import Server
from .servers import ServerError
from .servers import ValkeyCluster
from .servers import ValkeySentinel
from .servers import ValkeyServer
from .servers import _end_with_parent
from .servers import is_port_free


class PersistentValkeyServer(ValkeyServer):
    def __init__(self) -> None:
        super().__init__(persistent=True)


class PersistentRedisServer(RedisServer):
    def __init__(self) -> None:
        super().__init__(persistent=True)


class LoggingPostgresServer(PostgresServer):
    def __init__(self) -> None:
        super().__init__(log_statement="all")


class LoggingMariaDBServer(MariaDBServer):
    def __init__(self) -> None:
        super().__init__(general_log=True)


DATABASES = [LoggingPostgresServer, LoggingMariaDBServer]
PERSISTENT = [PersistentValkeyServer, PersistentRedisServer, *DATABASES]
ALL = [*PERSISTENT, MemcachedServer]


@pytest.fixture(scope="module", params=ALL)
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with _run(request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    if not shared_server.is_running:
        shared_server.start()

    return shared_server


def write(server: Server) -> None:
    if isinstance(server, ValkeyServer):
        with redis.Redis.from_url(server.url) as client:
            client.set("fruit", "pear")
    elif isinstance(server, MemcachedServer):
        client = memcache.Client([server.address])
        assert client.set("fruit", "pear")
        client.disconnect_all()
    else:
        execute(server, "DROP TABLE IF EXISTS fruit")
        execute(server, "CREATE TABLE fruit (name VARCHAR(10))")
        execute(server, "INSERT INTO fruit VALUES ('pear')")


def read(server: Server) -> str | None:
    if isinstance(server, ValkeyServer):
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            return t.cast("str | None", client.get("fruit"))

    if isinstance(server, MemcachedServer):
        client = memcache.Client([server.address])

        try:
            return t.cast("str | None", client.get("fruit"))
        finally:
            client.disconnect_all()

    return execute(server, "SELECT name FROM fruit")


def execute(server: Server, statement: str) -> str | None:
    connection: t.Any

    if isinstance(server, PostgresServer):
        connection = psycopg.connect(
            host=server.host, port=server.port, user="postgres", autocommit=True
        )
    else:
        connection = pymysql.connect(
            host=server.host,
            port=server.port,
            user="root",
            database="test",
            autocommit=True,
        )

    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def connect_raw(server: Server) -> socket.socket:
    connection = socket.create_connection((server.host, server.port), timeout=0.3)

    if isinstance(server, PostgresServer):
        connection.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")  # SSLRequest
    elif isinstance(server, ValkeyServer):
        connection.sendall(b"PING\r\n")
    elif isinstance(server, MemcachedServer):
        connection.sendall(b"version\r\n")

    return connection  # MariaDB speaks first


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20

    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_dead(process: psutil.Process) -> bool:
    # A zombie has ended; when it goes is up to the machine's init.
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_server_keeps_what_it_is_given(server: Server) -> None:
    write(server)
    assert read(server) == "pear"


def test_paused_server_is_silent_until_resumed(server: Server) -> None:
    with server.paused():
        with connect_raw(server) as connection, pytest.raises(TimeoutError):
            connection.recv(1)

        assert server.is_running

    with connect_raw(server) as connection:
        connection.settimeout(10)
        assert connection.recv(1)


def test_paused_server_can_be_stopped(server: Server) -> None:
    server.pause()
    server.stop()
    assert not server.is_running


def test_paused_server_can_be_killed_and_started_again(server: Server) -> None:
    server.pause()
    server.kill()
    server.start()
    write(server)
    assert read(server) == "pear"


@pytest.mark.parametrize("shared_server", [LoggingPostgresServer], indirect=True)
def test_pause_stops_connections_that_exist(server: Server) -> None:
    # PostgreSQL serves each by a process of its own.
    connection = psycopg.connect(
        host=server.host, port=server.port, user="postgres", autocommit=True
    )

    with connection:
        backend = psutil.Process(connection.info.backend_pid)

        with server.paused():
            wait_until(lambda: backend.status() == psutil.STATUS_STOPPED)

        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_ended_server_refuses_connections(
    server: Server, end: Callable[[Server], None]
) -> None:
    pid = server.pid
    end(server)
    assert not psutil.pid_exists(pid)  # reaped: it is a child of ours
    assert not server.is_running

    with pytest.raises(ConnectionRefusedError):
        connect_raw(server)

    end(server)  # once more does nothing


@pytest.mark.parametrize("shared_server", PERSISTENT, indirect=True)
@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_next_start_finds_port_and_data(
    server: Server, end: Callable[[Server], None]
) -> None:
    write(server)
    port, pid = server.port, server.pid
    end(server)
    server.start()
    assert server.port == port
    assert server.pid != pid
    assert read(server) == "pear"


def test_restart_keeps_port(server: Server) -> None:
    port, pid = server.port, server.pid
    server.restart()
    assert server.port == port
    assert server.pid != pid


@pytest.mark.parametrize("kind", [ValkeyServer, RedisServer, MemcachedServer])
def test_cache_starts_empty(kind: type[Server]) -> None:
    with _run(kind) as server:
        write(server)
        server.restart()
        assert read(server) is None


@pytest.mark.parametrize("kind", [ValkeyServer, PostgresServer, MariaDBServer])
def test_close_leaves_nothing(kind: type[Server]) -> None:
    with _run(kind) as server:
        process = psutil.Process(server.pid)
        family = [process, *process.children(recursive=True)]
        server.close()
        assert all(is_dead(process) for process in family)
        assert not server.directory.exists()
        assert is_port_free(server.port)


def test_start_tells_why_it_failed() -> None:
    server = ValkeyServer("--no-such-option", "1")

    with pytest.raises(ServerError, match="no-such-option"):
        server.start()

    server.close()


def test_start_moves_when_somebody_else_has_the_port() -> None:
    with ValkeyServer() as first:
        second = ValkeyServer()
        second.port = first.port

        with second:
            assert second.port != first.port
            assert first.is_running
            assert second.is_running


def test_use_of_a_stopped_server_is_reported() -> None:
    with ValkeyServer() as server:
        server.stop()

        with pytest.raises(ServerError, match="is not running"):
            server.pause()


def test_options_reach_the_server() -> None:
    with ValkeyServer("--maxmemory", "3mb", "--requirepass", "x") as server:
        with redis.Redis.from_url(server.url, password="x") as client:
            assert client.config_get("maxmemory") == {"maxmemory": "3145728"}

        client = redis.Redis.from_url(server.url)

        with client, pytest.raises(redis.AuthenticationError):
            client.get("fruit")


@pytest.mark.parametrize("shared_server", DATABASES, indirect=True)
def test_statements_are_logged(server: Server) -> None:
    log = server.general_log if isinstance(server, MariaDBServer) else server.log
    assert log is not None

    def is_logged() -> bool:
        execute(server, "SELECT 'a pear'")
        return "SELECT 'a pear'" in log.read_text()

    wait_until(is_logged)


def test_sentinel_follows_a_failover() -> None:
    with ValkeyServer() as primary:
        options = ("--replicaof", f"{primary.host} {primary.port}")

        with ValkeyServer(*options) as replica, ValkeySentinel(primary) as sentinel:
            client = Sentinel([(sentinel.host, sentinel.port)], socket_timeout=2)

            def primary_port() -> int | None:
                try:
                    return t.cast(int, client.discover_master(sentinel.name)[1])
                except MasterNotFoundError:
                    return None

            wait_until(lambda: primary_port() == primary.port)
            wait_until(lambda: bool(client.discover_slaves(sentinel.name)))
            primary.kill()
            wait_until(lambda: primary_port() == replica.port)
            client.sentinels[0].close()


def test_cluster_serves_every_slot() -> None:
    with ValkeyCluster(3) as cluster:
        node = cluster.nodes[0]

        with redis.RedisCluster(host=node.host, port=node.port) as client:
            for i in range(100):
                client.set(f"fruit-{i}", i)

            assert client.get("fruit-99") == b"99"
            assert all(client.dbsize(target_nodes=n) for n in client.get_primaries())


@pytest.mark.parametrize("how", ["exit", "terminate", "kill"])
def test_servers_end_with_the_process_that_started_them(how: str) -> None:
    if how != "exit" and not _end_with_parent():
        pytest.skip("The program setpriv is not on this machine.")

    code = (
        "import sys, tests.servers as s\n"
        "servers = [s.ValkeyServer(), s.PostgresServer()]\n"
        "for server in servers: server.start()\n"
        "print(*(server.pid for server in servers))\n"
        "print(*(server.directory for server in servers), sep='\\n', flush=True)\n"
        "sys.stdin.read()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    with starter:
        assert starter.stdout is not None
        pids = starter.stdout.readline().split()
        directories = [Path(starter.stdout.readline().strip()) for _ in pids]
        processes = [psutil.Process(int(pid)) for pid in pids]
        assert len(processes) == 2
        processes += processes[-1].children(recursive=True)

        if how == "terminate":
            starter.terminate()
        elif how == "kill":
            starter.kill()
        else:
            assert starter.stdin is not None
            starter.stdin.close()

        for process in processes:
            wait_until(lambda process=process: is_dead(process))

    if how == "exit":
        assert not any(directory.exists() for directory in directories)

    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def test_backend_config_leaves_no_keys(
    valkey_server: ValkeyServer, request: pytest.FixtureRequest
) -> None:
    get_server: t.Any = request.getfixturevalue("get_server")
    place = Place("pear1", Path(), get_server)

    with (
        BACKEND_CONFIGS["valkey"](place) as config,
        redis.Redis.from_url(valkey_server.url) as client,
    ):
        assert config["SESSION_REDIS_URL"] == valkey_server.url
        prefix = config["SESSION_KEY_PREFIX"]
        client.mset({f"{prefix}1": "", f"{{slot}}{prefix}2": "", "other": ""})

    with redis.Redis.from_url(valkey_server.url) as client:
        assert client.keys("*pear1*") == []
        assert client.delete("other") == 1


def test_backend_config_leaves_no_tables(
    postgres_server: PostgresServer, request: pytest.FixtureRequest
) -> None:
    get_server: t.Any = request.getfixturevalue("get_server")
    place = Place("pear2", Path(), get_server)

    with BACKEND_CONFIGS["postgresql"](place) as config:
        table = config["SESSION_SQLALCHEMY_TABLE"]
        execute(postgres_server, f"CREATE TABLE {table} (name VARCHAR(10))")
        execute(postgres_server, f"CREATE TABLE {table}_user (name VARCHAR(10))")

    with pytest.raises(psycopg.errors.UndefinedTable):
        execute(postgres_server, f"SELECT * FROM {table}_user")


def test_backend_config_leaves_no_cache(
    backend_config: dict[str, t.Any],
) -> None:
    if cache := backend_config.get("SESSION_CACHELIB"):
        key = backend_config.get("SESSION_KEY_PREFIX", "") + "fruit"
        assert cache.get(key) is None
        cache.set(key, b"pear")
        assert cache.get(key) == b"pear"


def test_backend_configs_are_fresh(
    make_backend_config: Callable[[str], dict[str, t.Any]],
) -> None:
    first = make_backend_config("sqlite")
    second = make_backend_config("sqlite")
    assert first["SESSION_SQLALCHEMY_URL"] != second["SESSION_SQLALCHEMY_URL"]
