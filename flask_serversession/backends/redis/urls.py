"""Clients of redis-py, from the URL that describes them."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import re
import typing as t
from urllib.parse import unquote

from ...errors import ConfigurationError
from ...hiding import HiddenText
from ...hiding import hide_texts
from . import pool
from .pool import redis
from .server import MAX_CONNECTIONS
from .server import TIMEOUT
from .server import Origin
from .server import check_client
from .server import locate


def find_origin(url: str, options: dict[str, t.Any]) -> Origin:
    """Return how to make the client that a URL describes.

    :raises ConfigurationError: if the URL is wrong; its text has no password.
    """
    # Valkey's own names for the same protocol: "valkeys" has TLS, as "rediss" has.
    url = re.sub("^valkey", "redis", url)
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _ORIGINS:
        known = ", ".join(f"'{name}://'" for name in _ORIGINS)
        raise _wrong_url(f"begins with none of {known}")
    return _ORIGINS[scheme](url, options)


def _make_single_origin(url: str, options: dict[str, t.Any]) -> Origin:
    address = _Address.parse(url)
    if address.scheme != "unix" and not re.fullmatch(r"\d*/?", address.path):
        raise _wrong_url("has something else than a database's number after the host")
    defaults = _get_defaults(url, options)
    if address.scheme == "unix":
        # redis-py before 6 has no such argument for these.
        del defaults["socket_connect_timeout"]
    arguments = {**defaults, **options}
    client_class = pool.LeanClient if "retry" in defaults else pool.Client

    def make() -> t.Any:
        return client_class.from_url(url, **arguments)

    return _try(make)


def _make_sentinel_origin(url: str, options: dict[str, t.Any]) -> Origin:
    address = _Address.parse(url)
    service, _, database = address.path.partition("/")
    if not service or not re.fullmatch(r"\d*/?", database):
        raise _wrong_url("has no '/service-name' or '/service-name/0' after the hosts")
    hosts = address.parse_hosts(26379)
    own, theirs = address.split_query("sentinel_")
    is_tls = address.scheme == "rediss+sentinel"
    defaults = {**_get_defaults(url, options), **options}
    arguments: dict[str, t.Any] = {
        **defaults,
        **address.credentials,
        **_parse_query(own),
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
        **_parse_query(theirs),
    }
    connection_class = pool.SentinelSSLConnection if is_tls else pool.SentinelConnection

    def make() -> t.Any:
        sentinel = redis.Sentinel(hosts, sentinel_kwargs=sentinel_arguments)
        return sentinel.master_for(
            unquote(service),
            connection_pool_class=pool.SentinelPool,
            connection_class=connection_class,
            **arguments,
        )

    return _try(make)


def _make_cluster_origin(url: str, options: dict[str, t.Any]) -> Origin:
    address = _Address.parse(url)
    if address.path.strip("/") not in ("", "0"):
        raise _wrong_url("names a database, which a Cluster does not have")
    hosts = address.parse_hosts(6379)
    is_tls = address.scheme == "rediss+cluster"
    defaults = _without(_get_defaults(url, options), "retry", "retry_on_error")
    query = _parse_query(address.query)
    arguments: dict[str, t.Any] = {
        **defaults,
        **options,
        **address.credentials,
        **query,
    }
    connection_class = redis.SSLConnection if is_tls else redis.Connection
    try:
        # A pool.Cluster client ignores parameters that it does not know.
        connection_class(**_without(arguments, "max_connections"))
    except (TypeError, ValueError, redis.RedisError) as error:
        raise _wrong_option(error) from None
    if arguments.get("decode_responses"):
        raise _wrong_url("has 'decode_responses', which records do not survive")
    if is_tls:
        arguments["ssl"] = True
    if redis.VERSION < (6,):
        # There, a Retry is for each connection, and this number is used as it is.
        arguments["cluster_error_retry_attempts"] = 1
    else:
        no_backoff = redis.backoff.NoBackoff()
        arguments.setdefault("retry", redis.retry.Retry(no_backoff, 1))

    def make() -> t.Any:
        # Connects to the first node that answers; so only when it is needed.
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in hosts]
        return pool.Cluster(startup_nodes=nodes, **arguments)

    return Origin(make, address.hosts, arguments["socket_timeout"])


def _try(make: t.Callable[[], t.Any]) -> Origin:
    """Make a client to see whether it can be made; that does not connect it."""
    try:
        client = make()
        connections = client.connection_pool
        # A misspelt parameter would otherwise show only at the first request.
        connections.connection_class(**connections.connection_kwargs)
    except (TypeError, ValueError, redis.RedisError) as error:
        raise _wrong_option(error) from None
    check_client(client)
    return Origin(make, locate(client), connections.connection_kwargs["socket_timeout"])


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
    """The parts of a URL, which may have several hosts; urllib supports only one."""

    scheme: str
    credentials: dict[str, str] = dataclasses.field(repr=False)
    hosts: str
    path: str
    query: str = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, url: str) -> _Address:
        scheme, _, rest = url.partition("://")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        user_info, _, hosts = authority.rpartition("@")
        username, _, password = user_info.partition(":")
        credentials = {"username": unquote(username), "password": unquote(password)}
        credentials = {name: value for name, value in credentials.items() if value}
        return cls(scheme, hide_texts(credentials), hosts, path, HiddenText(query))

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
        """Return the parameters without the prefix, and those with it, stripped."""
        parts = [part for part in self.query.split("&") if part]
        own = [part for part in parts if not part.startswith(prefix)]
        theirs = [part[len(prefix) :] for part in parts if part.startswith(prefix)]
        return HiddenText("&".join(own)), HiddenText("&".join(theirs))


def _parse_query(query: str) -> dict[str, t.Any]:
    """Read parameters as redis-py does, which knows their types."""
    try:
        parsed = redis.connection.parse_url(f"redis://host/?{query}")
    except ValueError as error:
        raise _wrong_option(error) from None
    return hide_texts(_without(parsed, "host"))


def _without(options: cabc.Mapping[str, t.Any], *names: str) -> dict[str, t.Any]:
    return {name: value for name, value in options.items() if name not in names}


def _get_defaults(url: str, options: cabc.Mapping[str, t.Any]) -> dict[str, t.Any]:
    defaults: dict[str, t.Any] = {
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        # Version 3 of the protocol has nothing that is needed here, and with it
        # redis-py sends two more commands on each new connection.
        "protocol": 2,
        "max_connections": MAX_CONNECTIONS,
    }
    retrying = {"retry", "retry_on_timeout", "retry_on_error"}
    if retrying.isdisjoint(options) and not any(f"{name}=" in url for name in retrying):
        defaults["retry"] = pool.RetryOnce()
        # redis-py before 6 retries only for this, whatever the above says.
        defaults["retry_on_error"] = [redis.ConnectionError]
    if url.startswith("rediss") and "ssl_cert_reqs=" not in url:
        # redis-py before 6 accepts a certificate for any host, unless told not to.
        defaults["ssl_check_hostname"] = True
    return defaults


def _wrong_url(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"The URL of the Redis server {text}.", "SESSION_REDIS_URL"
    )


def _wrong_option(error: Exception) -> ConfigurationError:
    """Return an error with the refused parameter; never another text, nor a value."""
    text = str(error)
    match = re.search(
        r"unexpected keyword argument '(\w+)'|Invalid value for '(\w+)'", text
    )
    if match is None:
        return _wrong_url("cannot be used: look at its port and its parameters")
    if match[1]:
        return _wrong_url(f"has a parameter {match[1]!r}, which redis-py does not know")
    return _wrong_url(f"has a wrong value for {match[2]!r}")
