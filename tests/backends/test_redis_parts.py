"""The parts of the Redis backend, one by one; without any server."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
import types
import typing as t

import pytest
import redis
import valkey

from flask_serversession.backends.base import Replaced
from flask_serversession.backends.redis import RedisBackend
from flask_serversession.backends.redis import pool
from flask_serversession.backends.redis import scripts
from flask_serversession.backends.redis import server
from flask_serversession.backends.redis import user_index
from flask_serversession.backends.redis import values
from flask_serversession.backends.redis.backend import _listed_until
from flask_serversession.backends.redis.urls import find_origin
from flask_serversession.errors import BackendUnavailableError
from flask_serversession.errors import ConfigurationError
from flask_serversession.errors import RecordError
from flask_serversession.record import HEADER_SIZE
from flask_serversession.record import TOMBSTONE_DATA
from flask_serversession.record import Record
from flask_serversession.record import encode_record

RECORD = Record(b"data", 1, 100.0, 200.0, 1_000.0, "ada", {})
REMEDY = (
    " Let its ACL allow the keys of the application, and the commands that the"
    " documentation of the 'redis' backend lists."
)

# -- what the errors mean


def failure(error: Exception, client: t.Any = None) -> t.Any:
    client = client or redis.Redis(socket_timeout=None, max_connections=3)
    return server.Server(client).failure("load", error)


class SSLCertVerificationError(OSError):
    """As the one of the module ``ssl``."""


class NewerError(redis.ConnectionError):
    """How newer versions of redis-py say that a pool is used up."""


NewerError.__name__ = "MaxConnectionsError"


@pytest.mark.parametrize(
    ("error", "is_refusal", "sentence"),
    [
        (
            SSLCertVerificationError(),
            False,
            "has a certificate that is not trusted or not for this host, and was not"
            " asked for 'load'.",
        ),
        (redis.TimeoutError("SECRET"), False, "did not answer 'load'."),
        (
            redis.AuthenticationError("SECRET"),
            True,
            "refused the log-in at 'load'.",
        ),
        (
            redis.ResponseError("WRONGPASS SECRET"),
            True,
            "refused the log-in at 'load'.",
        ),
        (
            redis.ResponseError("NOAUTH SECRET"),
            True,
            "refused the log-in at 'load'.",
        ),
        (
            redis.exceptions.AuthorizationError("SECRET"),
            True,
            "does not permit 'load' to this user.",
        ),
        (
            redis.exceptions.NoPermissionError(
                "NOPERM User app has no permissions to run the 'get' command"
            ),
            True,
            "does not permit 'load' to this user: User app has no permissions to run"
            f" the 'get' command.{REMEDY}",
        ),
        (
            redis.BusyLoadingError("LOADING"),
            True,
            "is still loading its data and refused 'load'.",
        ),
        (
            redis.ConnectionError("Too many connections"),
            False,
            "has no free connection for 'load' in its pool, which allows 3"
            " ('max_connections' of the client).",
        ),
        (
            NewerError(),
            False,
            "has no free connection for 'load' in its pool, which allows 3"
            " ('max_connections' of the client).",
        ),
        (
            redis.sentinel.MasterNotFoundError(),
            False,
            "has no primary for 'load', says Sentinel.",
        ),
        (redis.OutOfMemoryError("OOM SECRET"), True, "is full and refused 'load'."),
        (redis.ReadOnlyError("SECRET"), True, "is read-only and refused 'load'."),
        (
            redis.ResponseError("MISCONF SECRET"),
            True,
            "cannot write to its disk and refused 'load'.",
        ),
        (
            redis.ResponseError("NOREPLICAS SECRET"),
            True,
            "has too few replicas and refused 'load'.",
        ),
        (
            redis.ResponseError("BUSY SECRET"),
            True,
            "is busy with a script and refused 'load'.",
        ),
        (
            redis.exceptions.MasterDownError("SECRET"),
            True,
            "has lost its primary and refused 'load'.",
        ),
        (
            redis.exceptions.ClusterError("SECRET"),
            True,
            "is a Cluster that is down and refused 'load'.",
        ),
        (
            redis.exceptions.TryAgainError("SECRET"),
            True,
            "is moving the slot and refused 'load'.",
        ),
        (
            redis.exceptions.RedisClusterException("SECRET"),
            False,
            "is a Cluster that cannot be reached for 'load'.",
        ),
        (
            valkey.exceptions.ValkeyClusterException("SECRET"),
            False,
            "is a Cluster that cannot be reached for 'load'.",
        ),
        (redis.ConnectionError("SECRET"), False, "cannot be reached for 'load'."),
        (OSError("SECRET"), False, "cannot be reached for 'load'."),
        (
            redis.InvalidResponse("SECRET"),
            False,
            "gave an answer that makes no sense to 'load'.",
        ),
        (redis.ResponseError("ERR SECRET"), True, "refused 'load'."),
        (
            redis.ResponseError("ERR DB index is out of range"),
            True,
            "refused 'load': DB index is out of range.",
        ),
        (
            redis.AuthenticationError(
                "AUTH <password> called without any password configured for the default"
                " user. Are you sure your configuration is correct?"
            ),
            True,
            "refused the log-in at 'load': AUTH <password> called without any password"
            " configured for the default user.",
        ),
        (
            redis.AuthenticationError("Authentication required."),
            True,
            "refused the log-in at 'load': Authentication required.",
        ),
        (
            ConnectionRefusedError(111, "Connection refused"),
            False,
            "cannot be reached for 'load': Connection refused.",
        ),
        (
            redis.sentinel.MasterNotFoundError("No master found for 'm'"),
            False,
            "has no primary for 'load', says Sentinel.",
        ),
        (
            redis.sentinel.MasterNotFoundError(
                "No master found for 'm' : <Redis(SECRET)> - ConnectionError('Error -2"
                " connecting to nohost:26379. Name or service not known.')"
            ),
            False,
            "has no primary for 'load', says Sentinel: nohost:26379. Name or service"
            " not known.",
        ),
        (
            redis.sentinel.MasterNotFoundError(
                "No master found for 'm' : <Redis(SECRET)> - network:ConnectionError"
            ),
            False,
            "has no primary for 'load', says Sentinel: network:ConnectionError.",
        ),
        (
            redis.ResponseError("ERR SECRET connecting to SECRET:1. SECRET - a:bError"),
            True,
            "refused 'load'.",
        ),
        (
            redis.ResponseError("ERR unknown command 'GET', with args: SECRET"),
            True,
            "refused 'load': unknown command 'GET'.",
        ),
        (
            redis.ResponseError("ERR syntax error"),
            True,
            "refused 'load': syntax error.",
        ),
        (
            redis.ResponseError(
                "ERR the user executing the script can't run this command or subcommand"
            ),
            True,
            "refused 'load': the user executing the script can't run this command or"
            f" subcommand.{REMEDY}",
        ),
        (
            redis.ResponseError("NOPERM SECRET"),
            True,
            f"does not permit 'load' to this user.{REMEDY}",
        ),
        (
            redis.ResponseError("WRONGTYPE SECRET"),
            True,
            "has something else where 'load' needs the sessions of a user.",
        ),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_each_failure_has_its_sentence(
    error: Exception, is_refusal: bool, sentence: str
) -> None:
    found = failure(error)
    assert str(found) == f"The Redis backend at 'localhost:6379' {sentence}"
    assert (found.backend, found.operation) == ("redis", "load")
    assert isinstance(found, BackendUnavailableError)
    assert found.refused is is_refusal
    assert found.full is ("is full" in sentence)


def test_what_the_settings_say_is_in_the_sentence() -> None:
    late = redis.TimeoutError("late")
    client = redis.Redis(socket_timeout=0.25, max_connections=7)
    assert str(failure(late, client)).endswith(
        "did not answer 'load' within 0.25 seconds."
    )
    used_up = redis.ConnectionError("No connection available.")
    assert str(failure(used_up, client)).endswith(
        "in its pool, which allows 7 ('max_connections' of the client)."
    )
    ours = find_origin("redis://example.com?socket_timeout=3&max_connections=9", {})
    assert str(failure(late, ours)) == (
        "The Redis backend at 'example.com:6379' did not answer 'load' within 3"
        " seconds."
    )
    ours = dataclasses.replace(ours, timeout=None)
    assert str(failure(late, ours)).endswith("did not answer 'load'.")
    backend = server.Server(ours)
    backend.connect()
    assert str(backend.failure("load", used_up)).endswith(
        "which allows 9 ('max_connections' of the URL)."
    )


def test_what_the_system_said_shows_in_what_it_led_to() -> None:
    error = redis.exceptions.RedisClusterException("SECRET")
    error.__cause__ = redis.ConnectionError("SECRET")
    error.__cause__.__context__ = OSError(-2, "Name or service not known")
    assert str(failure(error)).endswith("for 'load': Name or service not known.")


def test_a_handshake_that_failed_shows_in_what_it_led_to() -> None:
    error = redis.ConnectionError("SECRET")
    error.__context__ = SSLCertVerificationError()
    assert "has a certificate that is not trusted" in str(failure(error))


@pytest.mark.parametrize(
    ("error", "is_demoted", "was_cut_off"),
    [
        (redis.ReadOnlyError("words"), True, False),
        (redis.ResponseError("READONLY words"), True, False),
        (redis.ResponseError("ERR script: -READONLY words"), True, False),
        (redis.ResponseError("READONLYwords"), False, False),
        (redis.ConnectionError("READONLY words"), False, True),
        (valkey.ConnectionError("words"), False, True),
        (redis.ConnectionError("Too many connections"), False, False),
        (redis.AuthenticationError("words"), False, False),
        (redis.TimeoutError("words"), False, False),
    ],
    ids=repr,
)
def test_what_is_worth_another_try(
    error: Exception, is_demoted: bool, was_cut_off: bool
) -> None:
    assert server.is_demoted(error) is is_demoted
    assert server.was_cut_off(error) is was_cut_off


def test_an_answer_is_no_refusal_to_write() -> None:
    assert server.is_demoted(b"READONLY words") is False
    # Only where Redis itself puts a code: what follows may be a visitor's.
    far = redis.ResponseError("ERR " + "x" * 400 + ": -READONLY words")
    assert server.is_demoted(far) is False


def test_a_client_with_a_cache_is_refused() -> None:
    client = redis.Redis()
    t.cast("t.Any", client.connection_pool).cache = object()
    with pytest.raises(
        ConfigurationError, match=r"^The client has a client-side cache"
    ):
        server.check_client(client)


# -- URLs


def options_of(url: str, **options: t.Any) -> dict[str, t.Any]:
    origin = find_origin(url, options)
    connections = origin.make().connection_pool
    return t.cast("dict[str, t.Any]", connections.connection_kwargs)


def test_connections_have_limits_and_are_tried_once_more() -> None:
    options = options_of("redis://host")
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 2.0
    assert options["protocol"] == 2
    assert isinstance(options["retry"], pool.RetryOnce)
    client = find_origin("redis://host", {}).make()
    assert isinstance(client, pool.LeanClient)
    assert client.connection_pool.max_connections == 50
    for url in ("redis://host?retry_on_timeout=1", "redis://host?retry_on_error=1"):
        client = find_origin(url, {}).make()
        assert type(client) is pool.Client
        assert not isinstance(options_of(url).get("retry"), pool.RetryOnce)
    mine = redis.retry.Retry(redis.backoff.NoBackoff(), 3)
    assert options_of("redis://host", retry=mine)["retry"] is mine
    assert "socket_connect_timeout" not in options_of("unix:///run/redis.sock")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("rediss://host", {"ssl_check_hostname": True}),
        ("valkeys://host", {"ssl_check_hostname": True}),
        ("rediss+sentinel://host/m", {"ssl_check_hostname": True}),
    ],
)
def test_a_certificate_is_for_its_host(url: str, options: dict[str, t.Any]) -> None:
    assert options.items() <= options_of(url).items()
    loose = f"{url}?ssl_cert_reqs=none"
    assert "ssl_check_hostname" not in options_of(loose)
    assert "ssl_check_hostname" not in options_of("redis://host")


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis+sentinel://a/m", None),
        ("redis+sentinel://a/m/", None),
        ("redis+sentinel://a/m/3", 3),
        ("redis+sentinel://a/m/3/", 3),
        ("redis+sentinel://a/m/3?db=5", 5),
        ("valkey+sentinel://a/m/3", 3),
    ],
)
def test_sentinels_name_a_primary_and_the_url_its_database(
    url: str, database: int | None
) -> None:
    assert options_of(url).get("db") == database


def test_sentinels_share_the_time_of_one_connection() -> None:
    def times_of(url: str) -> set[tuple[float, float]]:
        manager = find_origin(url, {}).make().connection_pool.sentinel_manager
        all_options = [s.connection_pool.connection_kwargs for s in manager.sentinels]
        return {(o["socket_timeout"], o["socket_connect_timeout"]) for o in all_options}

    assert times_of("redis+sentinel://a,b/m") == {(1.0, 1.0)}
    assert times_of("redis+sentinel://a,b/m?socket_timeout=8") == {(4.0, 4.0)}
    assert times_of("redis+sentinel://a,b/m?sentinel_socket_timeout=3") == {(3.0, 1.0)}
    pool_ = (
        find_origin("redis+sentinel://u:p@a/my%2Fservice", {}).make().connection_pool
    )
    assert pool_.service_name == "my/service"
    assert isinstance(pool_, pool.SentinelPool)
    assert pool_.connection_class is pool.SentinelConnection
    tls = find_origin("rediss+sentinel://a/m", {}).make().connection_pool
    assert tls.connection_class is pool.SentinelSSLConnection


@pytest.mark.parametrize(
    ("url", "where", "timeout"),
    [
        ("redis+cluster://a:7000,b", "a:7000,b", 2.0),
        ("rediss+cluster://u:p@a/0?socket_timeout=5", "a", 5.0),
        ("valkey+cluster://[::1]:3/", "[::1]:3", 2.0),
        ("redis+cluster://a/0/", "a", 2.0),
    ],
)
def test_a_cluster_is_known_before_it_is_connected(
    url: str, where: str, timeout: float
) -> None:
    origin = find_origin(url, {})
    assert (origin.where, origin.timeout) == (where, timeout)


def test_what_a_cluster_is_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, t.Any]] = []
    monkeypatch.setattr(pool, "Cluster", lambda **options: made.append(options))
    find_origin("redis+cluster://u:p@a:7000,b?socket_timeout=5", {}).make()
    find_origin("rediss+cluster://a", {"client_name": "me"}).make()
    plain, tls = made
    nodes = [(node.host, node.port) for node in plain.pop("startup_nodes")]
    assert nodes == [("a", 7000), ("b", 6379)]
    assert (plain["username"], plain["password"]) == ("u", "p")
    assert (plain["socket_timeout"], plain["socket_connect_timeout"]) == (5.0, 2.0)
    assert plain["protocol"] == 2
    assert plain["max_connections"] == 50
    assert "retry_on_error" not in plain
    assert "ssl" not in plain
    assert tls["ssl"] is True
    assert tls["client_name"] == "me"
    assert tls["ssl_check_hostname"] is True
    if redis.__version__ >= "6":
        assert t.cast("t.Any", plain["retry"])._retries == 1
    else:
        assert plain["cluster_error_retry_attempts"] == 1


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (
            "http://SECRET",
            "begins with none of 'redis://', 'rediss://', 'unix://',"
            " 'redis+sentinel://', 'rediss+sentinel://', 'redis+cluster://',"
            " 'rediss+cluster://'",
        ),
        (
            "redis://host/SECRET",
            "has something else than a database's number after the host",
        ),
        (
            "redis+sentinel://host",
            "has no '/service-name' or '/service-name/0' after the hosts",
        ),
        ("redis+sentinel://a:1:2/m", "does not list hosts as 'host:port,host:port'"),
        ("redis+cluster://a:123456", "does not list hosts as 'host:port,host:port'"),
        ("redis+cluster://a/1", "names a database, which a Cluster does not have"),
        (
            "redis+cluster://a?decode_responses=1",
            "has 'decode_responses', which records do not survive",
        ),
        (
            "redis://host:SECRET",
            "cannot be used: look at its port and its parameters",
        ),
        (
            "redis://host?socket_timout=1",
            "has a parameter 'socket_timout', which redis-py does not know",
        ),
        (
            "redis+cluster://host?socket_timout=1",
            "has a parameter 'socket_timout', which redis-py does not know",
        ),
        ("redis://host?socket_timeout=x", "has a wrong value for 'socket_timeout'"),
        (
            "redis+cluster://host?socket_timeout=x",
            "has a wrong value for 'socket_timeout'",
        ),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as info:
        find_origin(url, {})
    assert str(info.value) == f"The URL of the Redis server {text}."
    assert info.value.option == "SESSION_REDIS_URL"


# -- keys, values, and the index of a user


def test_keys_are_any_texts() -> None:
    for key in ("session:ab", "zo\xeb", "\udc80"):
        assert values.decode_key(values.encode_key(key)) == key
    assert values.glob_of("a*b[c]?d\\e") == rb"a\*b\[c\]\?d\\e"


def test_a_value_is_the_record_and_what_follows() -> None:
    value = values.encode_value(RECORD, 7.0, b"12345678")
    assert value[:-16] == encode_record(RECORD)
    assert value[-8:] == b"12345678"
    assert values.LISTED.unpack(value[-16:-8]) == (7.0,)
    assert values.decode_value(value) == RECORD
    assert repr(value) == "<hidden>"


def test_what_is_live() -> None:
    value = encode_record(RECORD)
    header = value[:HEADER_SIZE]
    assert values.is_live(header, 999.0) is True
    assert values.is_live(value, 999.0) is True
    assert values.is_live(header, 1_000.0) is False
    assert values.is_live(b"", 0) is False
    assert values.is_live(None, 0) is None
    assert values.is_live(b"something else", 0) is None
    tombstone = dataclasses.replace(RECORD, data=TOMBSTONE_DATA, user=None)
    assert values.is_live(encode_record(tombstone), 0) is False


@pytest.mark.parametrize(
    ("moment", "milliseconds"),
    [
        (100.0, 0),
        (99.0, 0),
        (100.001, 2),
        (101.0, 1_001),
        (100.0005, 2),
        (float("inf"), 2**53 - 1),
    ],
)
def test_how_long_a_key_lives(moment: float, milliseconds: int) -> None:
    # The last digits of a difference of floats are not exact.
    found = values.milliseconds_until(moment, 100.0)
    assert (
        found - milliseconds in (0, 1)
        if 0 < moment - 100 < 1
        else found == milliseconds
    )


def test_an_index_lists_for_half_a_lifetime_longer() -> None:
    assert user_index.listed_until(200.0, 1_000.0) == 1_400.0
    assert user_index.listed_until(2_000.0, 1_000.0) == 1_000.0
    assert user_index.least_listed(1_400.0) == 1_350.0
    assert _listed_until(RECORD, 1) == 1_400.0
    assert _listed_until(RECORD, 0) == 0.0
    assert _listed_until(dataclasses.replace(RECORD, user=None), 1) == 0.0
    tombstone = dataclasses.replace(RECORD, data=TOMBSTONE_DATA)
    assert _listed_until(tombstone, 1) == 0.0


def test_whose_a_value_is() -> None:
    start = encode_record(RECORD)[: HEADER_SIZE + 3]
    assert user_index._may_be_of(b"ada", start, 999.0) is True
    assert user_index._may_be_of(b"ada", start, 1_000.0) is False
    assert user_index._may_be_of(b"bob", start, 999.0) is False
    assert user_index._may_be_of(b"ad", start[:-1], 999.0) is False
    assert user_index._may_be_of(b"ada", None, 999.0) is True
    assert user_index._may_be_of(b"ada", b"", 999.0) is False
    assert user_index._may_be_of(b"ada", b"something else", 999.0) is True


@pytest.mark.parametrize(
    ("score", "new_score"),
    [
        (939.0, b""),
        (940.0, "-1000.0"),
        (2_000.0, "-1000.0"),
        (0.0, b""),
        (-939.0, b""),
        (-940.0, b""),
        (-941.0, None),
    ],
)
def test_what_is_gone_is_marked_and_then_removed(
    score: float, new_score: str | bytes | None
) -> None:
    assert user_index._new_score(score, 1_000.0) == new_score


def make_index(prefix: str = "s:") -> t.Any:
    nowhere = server.Server(redis.Redis())
    return user_index.UserIndex(nowhere, prefix, lambda: 1_000.0)


def test_members_are_short() -> None:
    index = make_index()
    digest = b"0" * 64
    for name, member in (
        (b"s:" + digest, digest),
        (b"x:" + digest, b"=x:" + digest),
        (b"s:" + digest + b"0", b"=s:" + digest + b"0"),
        (b"s:other", b"=s:other"),
    ):
        assert index._member_of(name) == member
        assert index._name_of(member) == name
    assert index._index_of(b"a-d_a@x.y+1") == b"s:user:a-d_a@x.y+1:sessions"
    assert index._index_of(b"a:b%\xff") == b"s:user:a%3ab%25%ff:sessions"


def test_what_scripts_are_told_of_an_index() -> None:
    index = make_index()
    digest = b"0" * 64
    assert index._args(b"s:" + digest, 1_010.0) == (
        "1000.0",
        "1010.0",
        10_001 + 1_000,
        digest,
    )
    longest = index._args(b"s:" + digest, float("inf"))[2]
    assert longest == values.LONGEST_LIFE
    assert index.args_of("touch", b"s:" + digest, 1_010.0) == (
        b"s:",
        digest,
        "1010.0",
        11_001,
    )


@pytest.mark.parametrize(
    ("number", "is_searched"),
    [(32, False), (63, False), (64, True), (65, False), (96, False), (128, True)],
)
def test_an_index_is_searched_at_powers_of_two(
    monkeypatch: pytest.MonkeyPatch, number: int, is_searched: bool
) -> None:
    index = make_index()
    searched: list[bytes] = []
    monkeypatch.setattr(index, "find", searched.append)
    index._limit(b"ada", number)
    assert searched == [b"ada"] * is_searched


def test_a_newer_record_is_not_damage() -> None:
    with pytest.raises(RecordError) as info:
        values.decode_value(b"x" * 100)
    assert info.value.reason == "damaged"


# -- redis-py, adapted


def test_only_what_failed_at_once_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    retry = pool.RetryOnce()
    assert retry.is_worth_it(redis.ConnectionError(), 100.0)
    assert retry.is_worth_it(redis.ConnectionError(), 99.5)
    assert not retry.is_worth_it(redis.ConnectionError(), 99.4)
    for error in (redis.TimeoutError(), redis.AuthenticationError(), OSError()):
        assert not retry.is_worth_it(error, 100.0)
    tries: list[int] = []
    failed: list[Exception] = []

    def do() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise redis.ConnectionError("died")
        return "answer"

    assert retry.call_with_retry(do, failed.append) == "answer"
    assert len(failed) == 1

    def do_late() -> t.NoReturn:
        raise redis.TimeoutError("late")

    with pytest.raises(redis.TimeoutError):
        retry.call_with_retry(do_late, failed.append)
    assert len(failed) == 2


def test_what_is_wrapped_is_noticed() -> None:
    execute = redis.client.Pipeline.execute
    assert pool._is_original(execute)

    @functools.wraps(execute)
    def wrapped(*args: t.Any) -> t.Any:
        return execute(*args)

    assert not pool._is_original(wrapped)
    pretending = types.SimpleNamespace(__globals__=vars(redis.client))
    assert not pool._is_original(pretending)


def test_only_for_a_wrapper_a_pipeline_of_redis_pys_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = find_origin("redis://host", {}).make()
    commands = [("GET", b"a"), ("GET", b"b")]
    monkeypatch.setattr(client, "_with_connection", lambda talk: "directly")
    traced = lambda client, commands: f"{len(commands)} by a pipeline"  # noqa: E731
    monkeypatch.setattr(pool.TracedPipeline, "run", traced)
    assert client.execute_together(*commands) == "directly"
    monkeypatch.setattr(redis.client.Pipeline, "execute", lambda *_: None)
    assert client.execute_together(*commands) == "2 by a pipeline"


def test_the_pipeline_that_is_made_sends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = find_origin("redis://host", {}).make()
    made: list[t.Any] = []

    def execute(self: t.Any, raise_on_error: bool) -> list[t.Any]:
        made.append(self)
        return [raise_on_error]

    monkeypatch.setattr(redis.client.Pipeline, "execute", execute)
    commands = [("GET", b"a"), ("GET", b"b")]
    assert pool.TracedPipeline.run(client, commands) == [False]
    (pipeline,) = made
    assert isinstance(pipeline, pool.TracedPipeline)
    assert pipeline.failure is None
    assert [command for command, _ in pipeline.command_stack] == commands


def test_a_sentinels_connection_is_closed_when_reading_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, t.Any]] = []
    base = redis.sentinel.SentinelManagedConnection
    monkeypatch.setattr(base, "read_response", lambda self, **given: seen.append(given))
    connection = object.__new__(pool.SentinelConnection)
    connection.read_response()
    connection.read_response(disconnect_on_error=False)
    assert [given["disconnect_on_error"] for given in seen] == [True, False]


# -- waiting for a connection


USED_UP = redis.ConnectionError("Too many connections")


class Taking:
    """Takes a connection, as soon as there is one."""

    def __init__(self, *answers: Exception | str) -> None:
        self.answers = [*answers]

    def __call__(self) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_who_waits_takes_the_connection_that_comes_back() -> None:
    turns = pool.Turns()
    turns.next()  # nobody waits
    assert turns.wait(Taking("a connection"), 0) == "a connection"
    assert not turns.waiting
    take = Taking(USED_UP, USED_UP, "a connection")

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout)
            turns.next()
            return True

    waited: list[float | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.threading, "Event", Event)
        assert turns.wait(take, 5) == "a connection"
    assert waited == [5, 5]
    assert not turns.waiting


def test_nobody_waits_for_ever_or_for_another_failure() -> None:
    turns = pool.Turns()
    with pytest.raises(redis.ConnectionError, match="Too many connections"):
        turns.wait(Taking(USED_UP), 0)
    with pytest.raises(redis.ConnectionError, match="down"):
        turns.wait(Taking(redis.ConnectionError("down")), 5)
    assert not turns.waiting


# -- the server, by what a client of it is asked


class Client:
    """As much of a client as the server uses."""

    def __init__(self, *answers: t.Any, **attributes: t.Any) -> None:
        self.answers = [*answers]
        self.asked: list[t.Any] = []
        vars(self).update(attributes)

    def _answer(self, asked: t.Any) -> t.Any:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, list):
            return answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def execute_together(self, *commands: tuple[t.Any, ...]) -> list[t.Any]:
        return t.cast("list[t.Any]", self._answer([*commands]))

    def execute_command(self, *command: t.Any) -> t.Any:
        return self._answer(command)

    def info(self, section: str) -> t.Any:
        return self._answer(("INFO", section))

    def close(self) -> None:
        self.asked.append("close")


def origin_of(client: Client | None) -> server.Origin:
    def make() -> t.Any:
        if client is None:
            raise redis.ConnectionError("down")
        return client

    return server.Origin(make, "here", None)


def test_the_connections_to_a_former_primary_are_closed() -> None:
    closed: list[object] = []

    def disconnect(**options: t.Any) -> None:
        closed.append(options)

    idle = types.SimpleNamespace(disconnect=disconnect)
    simple = types.SimpleNamespace(disconnect=disconnect)
    server.Server(origin_of(Client(connection_pool=simple))).leave_primary()
    assert closed == [{"inuse_connections": False}]
    closed.clear()
    waiting = types.SimpleNamespace(queue=[None, idle, idle])
    blocking = types.SimpleNamespace(disconnect=closed.append, pool=waiting)
    server.Server(origin_of(Client(connection_pool=blocking))).leave_primary()
    assert closed == [{}, {}]
    server.Server(origin_of(Client())).leave_primary()


def test_the_sentinels_are_closed_too() -> None:
    watcher = Client()
    manager = types.SimpleNamespace(sentinels=[watcher])
    client = Client(connection_pool=types.SimpleNamespace(sentinel_manager=manager))
    ours = server.Server(origin_of(client))
    ours.close()
    assert client.asked == []
    assert ours.connect() is client
    ours.close()
    assert client.asked == watcher.asked == ["close"]


def test_each_key_gets_the_answer_to_its_command() -> None:
    foreign = redis.ResponseError("WRONGTYPE words")
    moved = redis.exceptions.MovedError("1 host:7000")
    client = Client([b"x", foreign, moved], b"y")
    names = [b"a", b"b", b"c"]
    answers = server.Server(origin_of(client)).ask_node(client, names, "GETRANGE", 0, 1)
    assert [*answers] == [(b"a", b"x"), (b"b", None), (b"c", b"y")]
    assert client.asked == [
        [("GETRANGE", name, 0, 1) for name in names],
        ("GETRANGE", b"c", 0, 1),
    ]
    wrong = redis.ResponseError("ERR words")
    client = Client([wrong])
    with pytest.raises(redis.ResponseError, match="ERR words"):
        [*server.Server(origin_of(client)).ask_node(client, [b"a"], "GET")]


def test_a_pipeline_that_was_cut_off_is_sent_command_by_command() -> None:
    client = Client(redis.ConnectionError("died"), b"x", b"y")
    answers = server.Server(origin_of(client)).ask_node(client, [b"a", b"b"], "GET")
    assert [*answers] == [(b"a", b"x"), (b"b", b"y")]
    client = Client(redis.TimeoutError("late"))
    with pytest.raises(redis.TimeoutError):
        [*server.Server(origin_of(client)).ask_node(client, [b"a"], "GET")]


def test_the_version_of_the_server_is_shown() -> None:
    for info, shown in (
        ({"server_name": "valkey", "valkey_version": "8.1"}, "Valkey 8.1"),
        ({"redis_version": "7.2"}, "Redis 7.2"),
    ):
        client = Client(info)
        assert RedisBackend(origin_of(client)).server_version() == shown
        assert client.asked == [("INFO", "server")]


def test_a_server_that_is_down_is_named_with_the_operation() -> None:
    index = user_index.UserIndex(server.Server(origin_of(None)), "s:", lambda: 1_000.0)
    with pytest.raises(BackendUnavailableError) as info:
        index.args_of("touch", b"s:1", 1_010.0)
    assert info.value.operation == "touch"
    assert str(info.value).endswith(" cannot be reached for 'touch'.")


def told_index(monkeypatch: pytest.MonkeyPatch, *answers: t.Any) -> t.Any:
    client = Client(*answers)
    ours = server.Server(origin_of(client))
    index: t.Any = user_index.UserIndex(ours, "s:", lambda: 1_000.0)
    index.left = []
    index.searched = []
    monkeypatch.setattr(ours, "leave_primary", lambda: index.left.append(1))
    monkeypatch.setattr(index, "find", index.searched.append)
    index.client = client
    return index


def test_a_record_is_created_and_listed_in_one_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("SET", b"s:1", b"value")
    index = told_index(monkeypatch, [64, b"OK"])
    assert index.create(b"s:1", "ada", 1_010.0, command) is True
    assert index.searched == [b"ada"]
    ((listing, created),) = index.client.asked
    assert listing[:4] == ("EVAL", scripts.INDEX, 1, b"s:user:ada:sessions")
    assert created == command
    assert index.left == []
    index = told_index(monkeypatch, [1, None])
    assert index.create(b"s:1", "ada", 1_010.0, command) is False


def test_a_primary_that_was_demoted_is_left_before_the_second_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demoted = redis.ReadOnlyError("words")
    index = told_index(monkeypatch, [demoted, demoted], 1, b"OK")
    assert index.create(b"s:1", "ada", 1_010.0, ("SET", b"s:1")) is True
    assert index.left == [1]
    cut_off = redis.ConnectionError("died")
    index = told_index(monkeypatch, cut_off, 1, b"OK")
    assert index.create(b"s:1", "ada", 1_010.0, ("SET", b"s:1")) is True
    assert index.left == []


def test_who_cannot_be_listed_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    full = redis.OutOfMemoryError("OOM words")
    index = told_index(monkeypatch, [full, b"OK"], 1)
    with pytest.raises(BackendUnavailableError, match="is full and refused 'create'"):
        index.create(b"s:1", "ada", 1_010.0, ("SET", b"s:1"))
    assert index.client.asked[1:] == [("UNLINK", b"s:1")]
    index = told_index(monkeypatch, [1, full])
    with pytest.raises(redis.OutOfMemoryError):
        index.create(b"s:1", "ada", 1_010.0, ("SET", b"s:1"))


def test_an_index_that_has_grown_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    index = told_index(monkeypatch, 64, 65)
    for _ in range(2):
        index.add("touch", b"s:1", b"ada", 1_010.0)
    assert index.searched == [b"ada"]


def test_a_user_who_is_not_listed_is_listed_before_the_replace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend: t.Any = RedisBackend(origin_of(Client()), clock=lambda: 500.0)
    answers = [scripts.NOT_LISTED, 1]
    run: list[t.Any] = []
    added: list[t.Any] = []

    def answer(*args: t.Any) -> t.Any:
        run.append(args)
        return answers.pop(0)

    monkeypatch.setattr(backend._server, "run", answer)
    monkeypatch.setattr(backend._index, "args_of", lambda *_: ())
    monkeypatch.setattr(backend._index, "add", lambda *args: added.append(args))
    assert backend.replace("s:1", RECORD, 1) == Replaced(2)
    assert added == [("replace", b"s:1", b"ada", 1_400.0)]
    assert [args[:3] for args in run] == [("replace", scripts.REPLACE, b"s:1")] * 2
    assert [args[7:] for args in run] == [("1350.0",), (b"",)]
