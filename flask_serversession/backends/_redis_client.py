"""The server behind the Redis backend: its client, and what its errors mean."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import importlib
import re
import sys
import time
import typing as t
from urllib.parse import unquote

from ..errors import BackendError
from ..errors import BackendUnavailableError
from ..errors import ConfigurationError
from ._locks import ThreadLocks
from ._redis_lean import get_lean_client

#: Seconds for connecting and for each answer, unless the URL says otherwise.
TIMEOUT = 2.0

_PIPELINE_SIZE = 100


class Server:
    """A server or a Cluster, as the backend talks to it. Thread-safe.

    :param client: A client that the application made, or what :func:`find_origin`
        says about one that is to be made when it is needed.
    :raises TypeError: if it is none.
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
        """Give the client."""
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

    def ask_together(self, *commands: tuple[t.Any, ...]) -> list[t.Any]:
        """Send several commands in one round trip; not to a Cluster.

        :return: The answers; that to a command that was refused is an exception.
        """
        return _ask_together(self.connect(), commands)

    # -- many keys at once -----------------------------------------------------

    def get_nodes(self) -> list[t.Any]:
        """Give a client for each server that holds keys."""
        client = self.connect()
        if not is_cluster(client):
            return [client]
        return [_get_node_client(client, node) for node in client.get_primaries()]

    def ask_many(
        self, names: cabc.Sequence[bytes], *command: t.Any
    ) -> cabc.Iterator[tuple[bytes, t.Any]]:
        """Ask for each key the same, by a pipeline or, on a Cluster, one for each node.

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
        """Ask one node for each key the same; see :meth:`ask_many`.

        The answer is ``None`` for a key that has something else than a string.
        """
        client = self.connect()
        operation, *args = command
        for start in range(0, len(names), _PIPELINE_SIZE):
            batch = names[start : start + _PIPELINE_SIZE]
            commands = [(operation, name, *args) for name in batch]
            try:
                values = _ask_together(node, commands)
            except self.errors as error:
                if not was_cut_off(error):
                    raise
                values = [client.execute_command(*command) for command in commands]
            for name, value in zip(batch, values, strict=True):
                if {"MovedError", "AskError"} & names_of(value):
                    # Its slot has moved to another node since.
                    value = client.execute_command(operation, name, *args)
                if isinstance(value, Exception):
                    if not has_code(value, "WRONGTYPE"):
                        raise value
                    value = None
                yield name, value

    # -- errors ----------------------------------------------------------------

    @property
    def where(self) -> str:
        """Where the server is; without a password."""
        if self._origin is not None:
            return self._origin.where
        return _locate(self._client)

    @property
    def _timeout(self) -> float | None:
        if self._origin is not None:
            return self._origin.timeout
        nodes = getattr(self._client, "nodes_manager", None)
        pool = getattr(self._client, "connection_pool", nodes)
        options: dict[str, t.Any] = getattr(pool, "connection_kwargs", {})
        return options.get("socket_timeout")

    def failure(self, operation: str, error: Exception) -> BackendError:
        """Say what an exception of the driver means, without its text.

        Its text can hold arguments of the command, and so a session's values.
        """
        start = f"The Redis backend at {self.where!r}"
        # A failed handshake is an OSError to the drivers, and then a ConnectionError.
        names = names_of(error) | (names_of(error.__context__) & {_UNTRUSTED})
        if str(error) == "Too many connections":
            # A class of its own only with newer versions of redis-py.
            names.add("MaxConnectionsError")
        for name, code, text in _REASONS:
            if name in names or (code and has_code(error, code)):
                if name == "TimeoutError" and self._timeout:
                    text += f" within {self._timeout:g} seconds"
                return BackendUnavailableError(
                    f"{start} {text.format(repr(operation))}.",
                    backend="redis",
                    operation=operation,
                )
        problem = "does not understand {}; it has to be Redis 6.0 or newer, or Valkey"
        if has_code(error, "WRONGTYPE"):
            problem = "has something else where {} needs the sessions of a user"
        return BackendError(
            f"{start} {problem.format(repr(operation))}.",
            backend="redis",
            operation=operation,
        )


_UNTRUSTED = "SSLCertVerificationError"

# What the drivers' exceptions mean: the name of a class, the code that the server's
# answer begins with, and the end of the sentence. The first match counts, so classes
# stand before what they are derived from. Names, because redis-py and valkey-py each
# have their own classes, and either may be missing.
_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        _UNTRUSTED,
        "",
        "has a certificate that is not trusted or not for this host, and was not asked"
        " for {}",
    ),
    ("TimeoutError", "", "did not answer {}"),
    ("AuthenticationError", "WRONGPASS", "refused user name or password at {}"),
    ("AuthenticationError", "NOAUTH", "refused user name or password at {}"),
    ("AuthorizationError", "NOPERM", "does not permit {} to this user"),
    ("NoPermissionError", "NOPERM", "does not permit {} to this user"),
    ("BusyLoadingError", "LOADING", "is still loading its data and refused {}"),
    ("MaxConnectionsError", "", "has no free connection in its pool for {}"),
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
)


def names_of(error: object) -> set[str]:
    """Give the names of the classes of an exception, or of anything else."""
    return {cls.__name__ for cls in type(error).__mro__}


def _ask_together(client: t.Any, commands: cabc.Iterable[t.Any]) -> list[t.Any]:
    """Send several commands in one round trip. A refusal is among the answers."""
    if hasattr(client, "execute_together"):
        return t.cast("list[t.Any]", client.execute_together(*commands))
    # No transaction: that would be two commands more, for nothing.
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return t.cast("list[t.Any]", pipeline.execute(raise_on_error=False))


def was_cut_off(error: Exception) -> bool:
    """Say whether a pipeline failed for want of a connection, and may be tried again.

    Command by command: drivers try these once more, on a new connection, and on a
    Cluster at the node that has taken over; a pipeline not all of them do. What was
    waited for is not asked again.
    """
    names = names_of(error)
    return "ConnectionError" in names and "AuthenticationError" not in names


def has_code(error: Exception, code: str) -> bool:
    """Say whether the server's answer has this code."""
    if "ResponseError" not in names_of(error):
        return False
    text = str(error)
    # Redis 6.2 puts what went wrong inside of a script behind where it did:
    # "ERR Error running script (call to f_…): @user_script:1: -OOM command not…"
    return text.startswith(code + " ") or f": -{code} " in text[:400]


# -- clients that the application made -----------------------------------------


def check_client(client: t.Any) -> None:
    """Check that an object is a client that the backend can use.

    :raises TypeError: if it is something else.
    :raises ConfigurationError: if it decodes what it reads.
    """
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


def is_cluster(client: t.Any) -> bool:
    """Say whether a client is one of a Cluster."""
    return hasattr(client, "get_primaries")


def _get_classes() -> tuple[type, ...]:
    """Give the classes of the drivers that are imported; import none.

    Whoever has a client has imported its driver.
    """
    names = (("redis", "Redis"), ("valkey", "Valkey"))
    return tuple(
        getattr(sys.modules[module], name + suffix)
        for module, name in names
        for suffix in ("", "Cluster")
        if sys.modules.get(module)
    )


def _find_objection(client: t.Any) -> str | None:
    """Give ``None`` for a client, or what to do about it if it is none, or ``""``."""
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
    """Give the base classes of everything that a driver raises."""
    errors = importlib.import_module(f"{driver}.exceptions")
    title = driver.title()
    return (
        getattr(errors, f"{title}Error"),
        getattr(errors, f"{title}ClusterException"),
        OSError,
    )


def _get_node_client(client: t.Any, node: t.Any) -> t.Any:
    return getattr(client, f"get_{_get_driver(client)}_connection")(node)


def _locate(client: t.Any) -> str:
    """Say where a client's server is."""
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


# -- clients that a URL describes ----------------------------------------------


@dataclasses.dataclass(frozen=True)
class Origin:
    """How to make a client."""

    make: t.Callable[[], t.Any]
    where: str
    timeout: float | None


def find_origin(url: str, options: dict[str, t.Any]) -> Origin:
    """Say how to make the client that a URL describes, with redis-py.

    :raises ConfigurationError: if the URL is wrong; its text has no password.
    :raises ImportError: if redis-py is not installed.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _ORIGINS:
        known = ", ".join(f"'{name}://'" for name in _ORIGINS)
        raise _wrong_url(f"begins with none of {known}")
    return _ORIGINS[scheme](url, options)


def _import_redis() -> t.Any:
    # Untyped on purpose: annotations differ between the versions of redis-py.
    for name in ("cluster", "sentinel"):
        importlib.import_module(f"redis.{name}")
    return importlib.import_module("redis")


def _make_single_origin(url: str, options: dict[str, t.Any]) -> Origin:
    redis = _import_redis()
    address = _Address.parse(url)
    if address.scheme != "unix" and not re.fullmatch(r"\d*/?", address.path):
        raise _wrong_url("has something else than a database's number after the host")
    defaults = _get_defaults(redis, url, options)
    if address.scheme == "unix":
        # redis-py before 6 has no such argument for these.
        del defaults["socket_connect_timeout"]
    arguments = {**defaults, **options}
    make_client = redis.Redis.from_url
    if "retry" in defaults:  # it tells what to do about a connection that was closed
        make_client = get_lean_client(redis)

    def make() -> t.Any:
        return make_client(url, **arguments)

    return _try(redis, make)


def _make_sentinel_origin(url: str, options: dict[str, t.Any]) -> Origin:
    redis = _import_redis()
    address = _Address.parse(url)
    service, _, database = address.path.partition("/")
    if not service or not re.fullmatch(r"\d*/?", database):
        raise _wrong_url("has no '/service-name' or '/service-name/0' after the hosts")
    hosts = address.parse_hosts(26379)
    own, theirs = address.split_query("sentinel_")
    is_tls = address.scheme == "rediss+sentinel"
    defaults = {**_get_defaults(redis, url, options), **options}
    arguments: dict[str, t.Any] = {
        **defaults,
        **address.credentials,
        **_parse_query(redis, own),
    }
    if database.strip("/"):
        arguments.setdefault("db", int(database.strip("/")))
    # They are asked one after the other, within the time of one connection.
    share = (arguments["socket_timeout"] or TIMEOUT) / len(hosts)
    sentinel_arguments: dict[str, t.Any] = {
        **defaults,
        **{name: arguments[name] for name in arguments if name.startswith("ssl_")},
        **({"ssl": True} if is_tls else {}),
        "socket_timeout": share,
        "socket_connect_timeout": share,
        **_parse_query(redis, theirs),
    }
    connection_class = _get_sentinel_connection(redis, is_tls)

    def make() -> t.Any:
        sentinel = redis.Sentinel(hosts, sentinel_kwargs=sentinel_arguments)
        return sentinel.master_for(
            unquote(service), connection_class=connection_class, **arguments
        )

    return _try(redis, make)


def _make_cluster_origin(url: str, options: dict[str, t.Any]) -> Origin:
    redis = _import_redis()
    address = _Address.parse(url)
    if address.path.strip("/") not in ("", "0"):
        raise _wrong_url("names a database, which a Cluster does not have")
    hosts = address.parse_hosts(6379)
    is_tls = address.scheme == "rediss+cluster"
    defaults = _without(_get_defaults(redis, url, options), "retry", "retry_on_error")
    query = _parse_query(redis, address.query)
    arguments: dict[str, t.Any] = {
        **defaults,
        **options,
        **address.credentials,
        **query,
    }
    connection_class = redis.SSLConnection if is_tls else redis.Connection
    try:
        # A Cluster client drops what it does not know, without a word.
        connection_class(**_without(arguments, "max_connections"))
    except (TypeError, ValueError, redis.RedisError) as error:
        raise _wrong_option(error) from None
    if arguments.get("decode_responses"):
        raise _wrong_url("has 'decode_responses', which records do not survive")
    if is_tls:
        arguments["ssl"] = True
    if redis.VERSION < (6,):
        # There, a retry is for each connection, and the number stands for itself.
        arguments["cluster_error_retry_attempts"] = 1
    else:
        no_backoff = redis.backoff.NoBackoff()
        arguments.setdefault("retry", redis.retry.Retry(no_backoff, 1))

    base: t.Any = redis.RedisCluster

    class Cluster(base):  # type: ignore[misc]
        # A timeout is not tried again, so that nobody waits twice.
        ERRORS_ALLOW_RETRY = tuple(
            error
            for error in base.ERRORS_ALLOW_RETRY
            if error is not redis.TimeoutError
        )

    def make() -> t.Any:
        # Connects to the first node that answers, so not before it is needed.
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in hosts]
        return Cluster(startup_nodes=nodes, **arguments)

    return Origin(make, address.hosts, arguments["socket_timeout"])


def _try(redis: t.Any, make: t.Callable[[], t.Any]) -> Origin:
    """Make a client, which does not connect it, to see whether it can be made."""
    try:
        client = make()
        pool = client.connection_pool
        # What is misspelt would otherwise come out at the first request.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, redis.RedisError) as error:
        raise _wrong_option(error) from None
    check_client(client)
    return Origin(make, _locate(client), pool.connection_kwargs["socket_timeout"])


_ORIGINS: dict[str, t.Callable[[str, dict[str, t.Any]], Origin]] = {
    "redis": _make_single_origin,
    "rediss": _make_single_origin,
    "unix": _make_single_origin,
    "redis+sentinel": _make_sentinel_origin,
    "rediss+sentinel": _make_sentinel_origin,
    "redis+cluster": _make_cluster_origin,
    "rediss+cluster": _make_cluster_origin,
}


@dataclasses.dataclass(frozen=True)
class _Address:
    """The parts of a URL, which may have several hosts; urllib knows one only."""

    scheme: str
    credentials: dict[str, str]
    hosts: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> _Address:
        scheme, _, rest = url.partition("://")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        user_info, _, hosts = authority.rpartition("@")
        username, _, password = user_info.partition(":")
        credentials = {"username": unquote(username), "password": unquote(password)}
        credentials = {name: value for name, value in credentials.items() if value}
        return cls(scheme, credentials, hosts, path, query)

    def parse_hosts(self, default_port: int) -> list[tuple[str, int]]:
        hosts: list[tuple[str, int]] = []
        for part in self.hosts.split(","):
            match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", part)
            if match is None:
                raise _wrong_url("does not list hosts as 'host:port,host:port'")
            port = int(match[3]) if match[3] else default_port
            hosts.append((match[1] or match[2], port))
        return hosts

    def split_query(self, prefix: str) -> tuple[str, str]:
        """Give the parameters without the prefix, and those with it, freed from it."""
        parts = [part for part in self.query.split("&") if part]
        own = [part for part in parts if not part.startswith(prefix)]
        theirs = [part[len(prefix) :] for part in parts if part.startswith(prefix)]
        return "&".join(own), "&".join(theirs)


def _parse_query(redis: t.Any, query: str) -> dict[str, t.Any]:
    """Read parameters as redis-py does, which knows their types."""
    try:
        parsed = redis.connection.parse_url(f"redis://host/?{query}")
    except ValueError as error:
        raise _wrong_option(error) from None
    return _without(parsed, "host")


def _without(options: cabc.Mapping[str, t.Any], *names: str) -> dict[str, t.Any]:
    return {name: value for name, value in options.items() if name not in names}


def _get_defaults(
    redis: t.Any, url: str, options: cabc.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    defaults: dict[str, t.Any] = {
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        # The third version of the protocol has nothing that is needed here, and
        # redis-py sends two more commands with it on each new connection.
        "protocol": 2,
    }
    retrying = {"retry", "retry_on_timeout", "retry_on_error"}
    if retrying.isdisjoint(options) and not any(f"{name}=" in url for name in retrying):
        defaults["retry"] = _make_retry(redis)
        # redis-py before 6 retries a command for these only, whatever the above says.
        defaults["retry_on_error"] = [redis.ConnectionError, redis.ReadOnlyError]
    if url.startswith("rediss") and "ssl_cert_reqs=" not in url:
        # redis-py before 6 takes a certificate for any host, unless told not to.
        defaults["ssl_check_hostname"] = True
    return defaults


def _make_retry(redis: t.Any) -> t.Any:
    base: t.Any = redis.retry.Retry

    class RetryOnce(base):  # type: ignore[misc]
        """Tries again at once, after what did not take long."""

        # A primary that has become a replica: the next connection may lead to its heir.
        errors = (
            redis.ConnectionError,
            redis.TimeoutError,
            redis.ReadOnlyError,
            OSError,
        )

        def is_worth_it(self, error: Exception, started: float) -> bool:
            """Whether to try again after an error.

            :param started: When the first try began, by :func:`time.monotonic`.
            """
            return not (
                isinstance(error, final) or time.monotonic() - started > TIMEOUT / 4
            )

        def call_with_retry(
            self,
            do: t.Callable[[], t.Any],
            fail: t.Callable[..., t.Any],
            *args: t.Any,
            **kwargs: t.Any,
        ) -> t.Any:
            started = time.monotonic()

            def fail_or_give_up(error: Exception, *more: t.Any) -> None:
                # This disconnects. It has to, after a timeout too: the answer that
                # comes late must not be taken for that of the next command.
                fail(error, *more)
                if not self.is_worth_it(error, started):
                    raise error

            return base.call_with_retry(self, do, fail_or_give_up, *args, **kwargs)

    final = (redis.TimeoutError, redis.AuthenticationError, OSError)
    return RetryOnce(redis.backoff.NoBackoff(), 1, RetryOnce.errors)


def _get_sentinel_connection(redis: t.Any, is_tls: bool) -> t.Any:
    name = "SentinelManagedSSLConnection" if is_tls else "SentinelManagedConnection"

    base: t.Any = getattr(redis.sentinel, name)

    class SentinelConnection(base):  # type: ignore[misc]
        # redis-py leaves these connections open when reading is interrupted, by a
        # gevent timeout for instance, and the answer, which may be another
        # visitor's record, would be taken for that of the next command. Its other
        # connections are closed then.
        def read_response(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            kwargs.setdefault("disconnect_on_error", True)
            return base.read_response(self, *args, **kwargs)

    return SentinelConnection


def _wrong_url(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"The URL of the Redis server {text}.", "SESSION_REDIS_URL"
    )


def _wrong_option(error: Exception) -> ConfigurationError:
    """Say which parameter was refused; never the text of others, nor any value."""
    text = str(error)
    match = re.search(
        r"unexpected keyword argument '(\w+)'|Invalid value for '(\w+)'", text
    )
    if match is None:
        return _wrong_url("cannot be used: look at its port and its parameters")
    if match[1]:
        return _wrong_url(f"has a parameter {match[1]!r}, which redis-py does not know")
    return _wrong_url(f"has a wrong value for {match[2]!r}")
