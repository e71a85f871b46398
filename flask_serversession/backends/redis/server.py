"""The server behind the Redis backend: its client, and what its errors mean."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import importlib
import re
import sys
import typing as t

from ...errors import BackendUnavailableError
from ...errors import ConfigurationError
from ...forks import ThreadLocks
from ...hiding import forget_frames
from .scripts import digest_of

#: Seconds for connecting and for each answer, unless the URL says otherwise.
TIMEOUT = 2.0
#: Connections for each process, unless the URL says otherwise.
MAX_CONNECTIONS = 50

_PIPELINE_SIZE = 100
_SCAN_COUNT = 1_000


@dataclasses.dataclass(frozen=True)
class Origin:
    """How to make a client, and what is known of it before."""

    make: t.Callable[[], t.Any]
    where: str
    timeout: float | None


class Server:
    """A server or a Cluster, as the backend talks to it. Thread-safe.

    :param client: A client that the application made, or the :class:`Origin` of one
        that is made when it is needed.
    :raises TypeError: if it is neither.
    :raises ConfigurationError: if it cannot be used.
    """

    def __init__(self, client: t.Any) -> None:
        #: How to make a client; ``None`` for one that is not ours to close.
        self._origin: Origin | None = None
        #: ``None`` until it is needed, if it has to be made.
        self._client: t.Any = None
        #: The base classes of everything that the client raises.
        self.errors: tuple[type[Exception], ...]
        if isinstance(client, Origin):
            self._origin = client
            self.errors = _get_errors("redis")
        else:
            check_client(client)
            self._client = client
            self.errors = _get_errors(_get_driver(client))
        self._locks = ThreadLocks()

    def connect(self) -> t.Any:
        """Return the client."""
        client = self._client
        if client is None:
            assert self._origin is not None  # noqa: S101 - for type checkers
            with self._locks.get():
                client = self._client
                if client is None:
                    client = self._client = self._origin.make()
        return client

    def close(self) -> None:
        """Close the client, unless the application made it. It may be used again."""
        if self._origin is None:
            return
        with self._locks.get():
            client, self._client = self._client, None
        if client is not None:
            client.close()
            pool = getattr(client, "connection_pool", None)
            sentinel = getattr(pool, "sentinel_manager", None)
            for watcher in getattr(sentinel, "sentinels", ()):
                watcher.close()

    def ask_together(
        self, *commands: tuple[t.Any, ...], node: t.Any = None
    ) -> list[t.Any]:
        """Send several commands in one round trip; to a Cluster only with its node.

        :return: The answers; for a command that was refused it is an exception.
        """
        client = self.connect() if node is None else node
        if hasattr(client, "execute_together"):  # pool.py's client
            return t.cast("list[t.Any]", client.execute_together(*commands))
        # A transaction would be two commands more, for nothing.
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return t.cast("list[t.Any]", pipeline.execute(raise_on_error=False))

    def run(self, operation: str, script: str, name: bytes, *args: t.Any) -> t.Any:
        """Run a script on a key.

        :raises BackendUnavailableError: if it fails.
        """
        try:
            return self.evaluate(script, name, *args)
        except self.errors as error:
            raise self.failure(operation, error) from forget_frames(error)

    def evaluate(self, script: str, name: bytes, *args: t.Any) -> t.Any:
        """Run a script on a key; raises what the driver does."""
        try:
            return self.write("EVALSHA", digest_of(script), 1, name, *args)
        except self.errors as error:
            if "NoScriptError" not in names_of(error):
                raise
            # The server is new or was restarted, or its scripts were flushed.
            return self.write("EVAL", script, 1, name, *args)

    def write(self, *command: t.Any) -> t.Any:
        """Send a command that writes; raises what the driver does.

        A second time, on a new connection, if the server is no primary any more.
        """
        client = self.connect()
        try:
            return client.execute_command(*command)
        except self.errors as error:
            if not is_demoted(error):
                raise
        self.leave_primary()
        return client.execute_command(*command)

    def leave_primary(self) -> None:
        """Close the connections that nobody is using: they lead to the old primary.

        The next ones lead to the new one, wherever the address or a Sentinel says that
        it is. A Cluster's client finds it by itself.
        """
        pool = getattr(self.connect(), "connection_pool", None)
        queue = getattr(getattr(pool, "pool", None), "queue", None)
        if queue is not None:
            # Of a pool that blocks. Older ones close what others are using, too.
            for connection in filter(None, [*queue]):
                connection.disconnect()
        elif pool is not None:
            pool.disconnect(inuse_connections=False)

    # -- many keys at once -----------------------------------------------------

    def get_nodes(self) -> list[t.Any]:
        """Return a client for each server that holds keys."""
        client = self.connect()
        if not is_cluster(client):
            return [client]
        return [_get_node_client(client, node) for node in client.get_primaries()]

    def ask_many(
        self, names: cabc.Sequence[bytes], *command: t.Any
    ) -> cabc.Iterator[tuple[bytes, t.Any]]:
        """Ask the same of each key, in a pipeline or, on a Cluster, one for each node.

        :param command: The command, without the key, which comes first.
        :return: Each key, in no special order, with the answer.
        """
        client = self.connect()
        if not is_cluster(client):
            yield from self.ask_node(client, names, *command)
            return
        shares: dict[str, list[bytes]] = {}
        nodes: dict[str, t.Any] = {}
        for name in names:
            node = client.get_node_from_key(name)
            nodes[node.name] = node
            shares.setdefault(node.name, []).append(name)
        for where, share in shares.items():
            node_client = _get_node_client(client, nodes[where])
            yield from self.ask_node(node_client, share, *command)

    def ask_node(
        self, node: t.Any, names: cabc.Sequence[bytes], *command: t.Any
    ) -> cabc.Iterator[tuple[bytes, t.Any]]:
        """Ask one node the same of each key; see :meth:`ask_many`.

        The answer is ``None`` for a key that holds something other than a string.
        """
        client = self.connect()
        operation, *args = command
        for start in range(0, len(names), _PIPELINE_SIZE):
            batch = names[start : start + _PIPELINE_SIZE]
            commands = [(operation, name, *args) for name in batch]
            try:
                values = self.ask_together(*commands, node=node)
            except self.errors as error:
                if not was_cut_off(error):
                    raise
                values = [client.execute_command(*command) for command in commands]
            for name, value in zip(batch, values, strict=True):
                if {"MovedError", "AskError"} & names_of(value):
                    # Its slot has moved to another node in the meantime.
                    value = client.execute_command(operation, name, *args)
                if isinstance(value, Exception):
                    if not has_code(value, "WRONGTYPE"):
                        raise value
                    value = None
                yield name, value

    def scan(
        self, operation: str, pattern: bytes, *command: t.Any
    ) -> cabc.Iterator[tuple[bytes, t.Any]]:
        """Return all keys that match a pattern, each with the answer to a command."""
        # SCAN may return a key twice, and so may two nodes while a slot moves. Hashes
        # of the keys take less memory than the keys.
        seen: set[int] = set()
        with self.explaining(operation):
            for node in self.get_nodes():
                cursor: t.Any = None
                while cursor != 0:
                    cursor, found = node.scan(
                        cursor or 0, match=pattern, count=_SCAN_COUNT, _type="string"
                    )
                    names: list[bytes] = []
                    for name in found:
                        if hash(name) not in seen:
                            seen.add(hash(name))
                            names.append(name)
                    yield from self.ask_node(node, names, *command)

    # -- errors ----------------------------------------------------------------

    @contextlib.contextmanager
    def explaining(self, operation: str) -> cabc.Generator[None]:
        """Raise our own exceptions in place of the driver's."""
        try:
            yield
        except self.errors as error:
            raise self.failure(operation, error) from forget_frames(error)

    @property
    def where(self) -> str:
        """Where the server is; without a password."""
        if self._origin is not None:
            return self._origin.where
        return locate(self._client)

    @property
    def _timeout(self) -> float | None:
        if self._origin is not None:
            return self._origin.timeout
        nodes = getattr(self._client, "nodes_manager", None)
        pool = getattr(self._client, "connection_pool", nodes)
        options: dict[str, t.Any] = getattr(pool, "connection_kwargs", {})
        return options.get("socket_timeout")

    @property
    def _limit_of_pool(self) -> str:
        """The limit of the pool, for people."""
        client = self._client
        pool = getattr(client, "connection_pool", None)
        kwargs = getattr(
            getattr(client, "nodes_manager", None), "connection_kwargs", {}
        )
        number = getattr(pool, "max_connections", kwargs.get("max_connections"))
        whose = "client" if self._origin is None else "URL"
        return f"which allows {number} ('max_connections' of the {whose})"

    def failure(self, operation: str, error: Exception) -> BackendUnavailableError:
        """Return our exception for one of the driver's, without its text.

        That text can hold arguments of the command, and so a session's values.
        """
        start = f"The Redis backend at {self.where!r}"
        # The drivers turn a failed handshake into an OSError, then a ConnectionError.
        names = names_of(error) | (names_of(error.__context__) & {_UNTRUSTED})
        if is_exhausted(error):
            names.add("MaxConnectionsError")
        name, code, text = next(
            reason
            for reason in (*_REASONS, _REFUSED)
            if reason[0] in names or (reason[1] and has_code(error, reason[1]))
        )
        if name == "TimeoutError" and self._timeout:
            text += f" within {self._timeout:g} seconds"
        if name == "MaxConnectionsError":
            text += f", {self._limit_of_pool}"
        return BackendUnavailableError(
            f"{start} {text.format(repr(operation))}{_words_of(error)}."
            f"{_remedy_of(error)}",
            backend="redis",
            operation=operation,
            refused=bool(code),
            full=code == "OOM",
        )


# The words of a server; what may follow are arguments of a command.
_WORDS = re.compile(
    r"user \S+ has no permissions to (run the '[^']*' command|access [\w ]+)"
    r"|no permissions to access [\w ]+"
    r"|the user executing the script can't run this command or subcommand"
    r"|unknown (redis )?command( '[\w|]+')?|syntax error(?= |$)"
    r"|DB index is out of range|This instance has cluster support disabled"
    # About a log-in: with a wrong password, without one, and with a needless one.
    r"|invalid username-password pair or user is disabled|Authentication required"
    r"|AUTH <password> called without any password configured for the default user",
    re.IGNORECASE,
)
# What redis-py says of a Sentinel that it could not ask.
_WORDS_ABOUT_SENTINEL = re.compile(
    r"(?<= connecting to )[\w.:-]+\. [\w ,]+|(?<= - )\w+:\w+Error"
)


def _words_of(error: BaseException | None) -> str:
    """Return the end of a sentence: what was said of the cause, without values.

    By the server, or by the system where no connection came off.
    """
    while error is not None:
        names = names_of(error)
        match = None
        if {"ResponseError", "AuthenticationError"} & names:
            match = _WORDS.search(str(error)[:400])
        elif "MasterNotFoundError" in names:
            match = _WORDS_ABOUT_SENTINEL.search(str(error))
        if match is not None:
            return f": {match[0]}"
        if isinstance(error, OSError) and error.strerror:
            return f": {error.strerror}"
        error = error.__cause__ or error.__context__
    return ""


def _remedy_of(error: Exception) -> str:
    """Return what to do about a command or a key that the server does not permit."""
    # Inside of a script the answer has another code, and the words alone tell.
    words = _words_of(error)
    if not has_code(error, "NOPERM") and not re.search("permissions|can't run", words):
        return ""
    return (
        " Let its ACL allow the keys of the application, and the commands that the"
        " documentation of the 'redis' backend lists."
    )


# What pools say that do not wait for a connection, and pools that have waited too long.
_EXHAUSTED = ("Too many connections", "No connection available.")
_UNTRUSTED = "SSLCertVerificationError"

# What the drivers' exceptions mean: the name of a class, the code that the server's
# answer begins with, and the end of the sentence. The first match counts, so classes
# stand before their bases. Names, because redis-py and valkey-py each have classes of
# their own, and either may be missing.
_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        _UNTRUSTED,
        "",
        "has a certificate that is not trusted or not for this host, and was not asked"
        " for {}",
    ),
    ("TimeoutError", "", "did not answer {}"),
    ("AuthenticationError", "WRONGPASS", "refused the log-in at {}"),
    ("AuthenticationError", "NOAUTH", "refused the log-in at {}"),
    ("AuthorizationError", "NOPERM", "does not permit {} to this user"),
    ("NoPermissionError", "NOPERM", "does not permit {} to this user"),
    ("BusyLoadingError", "LOADING", "is still loading its data and refused {}"),
    ("MaxConnectionsError", "", "has no free connection for {} in its pool"),
    ("MasterNotFoundError", "", "has no primary for {}, says Sentinel"),
    ("OutOfMemoryError", "OOM", "is full and refused {}"),
    ("ReadOnlyError", "READONLY", "is read-only and refused {}"),
    ("", "MISCONF", "cannot write to its disk and refused {}"),
    ("", "NOREPLICAS", "has too few replicas and refused {}"),
    ("", "BUSY", "is busy with a script and refused {}"),
    ("MasterDownError", "MASTERDOWN", "has lost its primary and refused {}"),
    ("ClusterError", "CLUSTERDOWN", "is a Cluster that is down and refused {}"),
    ("TryAgainError", "TRYAGAIN", "is moving the slot and refused {}"),
    ("AskError", "", "is moving the slot and refused {}"),
    ("RedisClusterException", "", "is a Cluster that cannot be reached for {}"),
    ("ValkeyClusterException", "", "is a Cluster that cannot be reached for {}"),
    ("ConnectionError", "", "cannot be reached for {}"),
    ("OSError", "", "cannot be reached for {}"),
    ("InvalidResponse", "", "gave an answer that makes no sense to {}"),
    ("", "WRONGTYPE", "has something else where {} needs the sessions of a user"),
)
# What else it may answer.
_REFUSED = ("Exception", "ERR", "refused {}")


def names_of(error: object) -> set[str]:
    """Return the names of the classes of an exception, or of anything else."""
    return {cls.__name__ for cls in type(error).__mro__}


def is_demoted(error: object) -> bool:
    """Return whether a server refused to write because it is a replica."""
    if not isinstance(error, Exception):
        return False
    return "ReadOnlyError" in names_of(error) or has_code(error, "READONLY")


def is_exhausted(error: Exception) -> bool:
    """Return whether all of a pool's connections are in use.

    Only newer versions of redis-py have a class of its own for it.
    """
    return "MaxConnectionsError" in names_of(error) or str(error) in _EXHAUSTED


def was_cut_off(error: Exception) -> bool:
    """Return whether a pipeline lost its connection and may be sent again.

    Command by command: every driver retries these on a new connection, on a Cluster at
    the node that has taken over, but not every driver retries a pipeline. After a
    time-out nothing is asked again.
    """
    names = names_of(error)
    if "AuthenticationError" in names or is_exhausted(error):
        return False
    return "ConnectionError" in names


def has_code(error: Exception, code: str) -> bool:
    """Return whether the server's answer has this code."""
    if "ResponseError" not in names_of(error):
        return False
    text = str(error)
    # Redis 6.2 puts an error inside of a script behind its place in the script:
    # "ERR Error running script (call to f_…): @user_script:1: -OOM command not…"
    return text.startswith(code + " ") or f": -{code} " in text[:400]


# -- clients -------------------------------------------------------------------


def check_client(client: t.Any) -> None:
    """See :meth:`.RedisBackend.check_client`."""
    hint = _find_objection(client)
    if hint is not None:
        raise TypeError(
            "Expected a client of redis-py (redis.Redis, redis.RedisCluster or"
            " what Sentinel.master_for() gives) or of valkey-py (valkey.Valkey,"
            f" valkey.ValkeyCluster), not {_name_type(client)}.{hint}"
        )
    if client.get_encoder().decode_responses:
        raise ConfigurationError(
            "The client decodes what it reads ('decode_responses'), which records"
            " do not survive. Make one without it for the sessions.",
            "SESSION_REDIS",
        )
    places = (
        getattr(client, "connection_pool", None),
        getattr(client, "nodes_manager", None),
    )
    if any(getattr(p, n, None) for p in places for n in ("cache", "_cache")):
        raise ConfigurationError(
            "The client has a client-side cache ('cache_config'), which can return a"
            " session that was changed or ended a moment ago. Make one without it for"
            " the sessions.",
            "SESSION_REDIS",
        )


def is_cluster(client: t.Any) -> bool:
    """Return whether a client is one of a Cluster."""
    return hasattr(client, "get_primaries")


def _get_classes() -> tuple[type, ...]:
    """Return the client classes of the drivers that are imported already.

    Imports none: whoever has a client has imported its driver.
    """
    names = (("redis", "Redis"), ("valkey", "Valkey"))
    return tuple(
        getattr(sys.modules[module], name + suffix)
        for module, name in names
        for suffix in ("", "Cluster")
        if sys.modules.get(module)
    )


def _find_objection(client: t.Any) -> str | None:
    """Return ``None`` for a client, otherwise a hint, which may be empty."""
    names = names_of(client)
    if isinstance(client, (str, bytes)):
        return " A URL belongs into 'SESSION_REDIS_URL'."
    if isinstance(client, type):
        return " Make an instance of it."
    if any(".asyncio" in cls.__module__ for cls in type(client).__mro__):
        return " Its methods are coroutines; make a client without asyncio."
    if {"Pipeline", "ClusterPipeline"} & names:
        return " Pass the client that it was made from."
    if isinstance(client, _get_classes()):
        return None
    if "Sentinel" in names:
        return " Pass what its 'master_for()' gives."
    if "ConnectionPool" in names:
        return " Pass redis.Redis(connection_pool=…)."
    return ""


def _name_type(client: object) -> str:
    if client is None:
        return "None"
    cls = client if isinstance(client, type) else type(client)
    name = cls.__qualname__
    if cls.__module__ != "builtins":
        name = f"{cls.__module__}.{name}"
    return f"the class {name}" if cls is client else f"an object of type {name}"


def _get_driver(client: object) -> str:
    for cls in type(client).__mro__:
        driver = cls.__module__.partition(".")[0]
        if driver in ("redis", "valkey"):
            return driver
    raise AssertionError("It was checked that it is a client.")


def _get_errors(driver: str) -> tuple[type[Exception], ...]:
    """Return the base classes of everything that a driver raises."""
    errors = importlib.import_module(f"{driver}.exceptions")
    title = driver.title()
    return (
        getattr(errors, f"{title}Error"),
        getattr(errors, f"{title}ClusterException"),
        OSError,
    )


def _get_node_client(client: t.Any, node: t.Any) -> t.Any:
    return getattr(client, f"get_{_get_driver(client)}_connection")(node)


def locate(client: t.Any) -> str:
    """Return where a client's server is."""
    nodes = getattr(client, "nodes_manager", None)
    if nodes is not None:
        return ",".join(nodes.startup_nodes)
    pool = client.connection_pool
    service = getattr(pool, "service_name", None)
    if service is not None:
        return str(service)
    options: dict[str, t.Any] = pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
