"""Classes of redis-py, adapted; this module alone uses private names of redis-py's.

Importing it imports redis-py, so it is imported only where a URL asks for a client.
:class:`LeanPool` and :class:`LeanClient` spend little time of their own on a command;
the others make sure that nobody waits twice, and that no command gets the answer to
another one.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import os
import threading
import time
import types
import typing as t
import weakref

from .server import TIMEOUT
from .server import is_exhausted

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

T = t.TypeVar("T")

# Untyped on purpose: annotations differ between the versions of redis-py.
redis: t.Any = importlib.import_module("redis")

# Commands whose answers are used as the server gives them.
_PLAIN = frozenset({"GET", "GETRANGE", "SET", "EVAL", "EVALSHA"})


class Turns:
    """Lets requests wait for a connection, in the order in which they came.

    Thread-safe: a deque's operations are atomic.
    """

    def __init__(self) -> None:
        self.waiting: collections.deque[threading.Event] = collections.deque()
        self._moved_at = 0.0

    def next(self) -> None:
        """Wake who waits longest: a connection has come back."""
        self._moved_at = time.monotonic()
        with contextlib.suppress(IndexError):
            self.waiting.popleft().set()

    def wait(self, take: t.Callable[[], T], timeout: float | None) -> T:
        """Return what ``take`` returns, as soon as that finds a connection.

        :param take: Raises redis-py's error if all connections are in use.
        :param timeout: Gives up when none has come back for so many seconds; ``None``
            for never. Who waits behind many others waits for longer, as long as the
            server answers them.
        """
        started = time.monotonic()
        join = self.waiting.append
        while True:
            turn, goes_on = threading.Event(), False
            join(turn)
            try:
                # Again: one may have come back before it was known that this waits.
                return take()
            except redis.ConnectionError as error:
                since = max(started, self._moved_at)
                is_over = timeout is not None and time.monotonic() - since >= timeout
                if is_over or not is_exhausted(error):
                    raise
                turn.wait(timeout)
                goes_on = True
            finally:
                try:
                    self.waiting.remove(turn)
                except ValueError:
                    if not goes_on:  # so it is another's turn
                        self.next()
            join = self.waiting.appendleft


class WaitingPool(redis.ConnectionPool):  # type: ignore[misc]
    """Lets a request wait for a connection when all are in use."""

    @property
    def _turns(self) -> Turns:
        # Not made in __init__(), which redis-py's Cluster calls of another class; and
        # not before a fork, when threads may wait that the child does not have.
        turns: dict[int, Turns] = self.__dict__.setdefault("_turns_by_process", {})
        return turns.get(os.getpid()) or turns.setdefault(os.getpid(), Turns())

    def get_connection(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        take: t.Callable[..., t.Any] = super().get_connection
        try:
            return take(*args, **kwargs)
        except redis.ConnectionError as error:
            if not is_exhausted(error):
                raise
        timeout = self.connection_kwargs.get("socket_timeout")
        return self._turns.wait(functools.partial(take, *args, **kwargs), timeout)

    def release(self, connection: t.Any) -> None:
        super().release(connection)
        if self._turns.waiting:
            self._turns.next()


class SentinelPool(WaitingPool, redis.sentinel.SentinelConnectionPool):  # type: ignore[misc]
    """The same, of connections to the primary that Sentinel names."""


class LeanPool(redis.ConnectionPool):  # type: ignore[misc]
    """Hands out connections without asking the system whether they are still open.

    The check costs more CPU than the rest of the command. If the server has closed a
    connection, the command notices, and is sent again on a new one. Thread-safe: a
    deque's operations are atomic.
    """

    def reset(self) -> None:
        # Not documented; the pool calls it when it is made, and after a fork.
        # The last connection used is the next one to be used.
        self._idle: collections.deque[t.Any] = collections.deque()
        self._made: weakref.WeakSet[t.Any] = weakref.WeakSet()
        self._turns = Turns()
        # Must come last: it ends by marking the pool as this process's, and from then
        # on other threads of a forked child take what is idle.
        super().reset()

    def make_connection(self) -> t.Any:
        # Not documented: how redis-py counts up to max_connections. A connection that
        # an interruption kept from coming back does not count any more.
        self._created_connections = len(self._made)
        connection = super().make_connection()
        self._made.add(connection)
        return connection

    def get_connection(self, *_: t.Any, **__: t.Any) -> t.Any:
        if self.pid != os.getpid():
            # Not documented: forgets the parent's connections, once for all threads.
            self._checkpid()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return self._take()
        except redis.ConnectionError as error:
            if not is_exhausted(error):
                raise
        return self._turns.wait(self._take, self.connection_kwargs["socket_timeout"])

    def _take(self) -> t.Any:
        try:
            return self._idle.pop()
        except IndexError:
            # Not documented: the lock that guards the counting.
            with self._lock:
                return self.make_connection()

    def release(self, connection: t.Any) -> None:
        if connection.pid == self.pid:
            self._idle.append(connection)
            if self._turns.waiting:
                self._turns.next()

    def disconnect(self, inuse_connections: bool = True) -> None:
        for connection in [*self._idle]:
            connection.disconnect()


class Client(redis.Redis):  # type: ignore[misc]
    """A client with a pool of its own, in which requests wait for a connection."""

    pool_class: t.Any = WaitingPool

    @classmethod
    def from_url(cls, url: str, **options: t.Any) -> Client:
        """Make a client for the server that a URL names."""
        client = cls(connection_pool=cls.pool_class.from_url(url, **options))
        client.auto_close_connection_pool = True  # nobody else has it
        return client


class LeanClient(Client):
    """Sends commands without redis-py's bookkeeping around them.

    But not without what others have wrapped around ``Redis.execute_command`` and
    ``Pipeline.execute``, such as OpenTelemetry, Sentry and Datadog.

    Its connections need a :class:`RetryOnce`. Don't use a pipeline of redis-py's: it
    may release a connection on which an answer is still to come, and relies on a pool
    that checks for it.
    """

    pool_class = LeanPool

    def _execute_command(self, *command: t.Any, **options: t.Any) -> t.Any:
        # Not documented: all that redis-py's own execute_command() calls.
        is_plain = command[0] in _PLAIN and not options

        def talk(connection: t.Any) -> t.Any:
            # As the connection's own retry would do it, which takes longer.
            started = time.monotonic()
            try:
                return ask(connection)
            except connection.retry.errors as error:
                connection.disconnect()
                if not connection.retry.is_worth_it(error, started):
                    raise
            try:
                return ask(connection)
            except connection.retry.errors:
                connection.disconnect()
                raise

        def ask(connection: t.Any) -> t.Any:
            connection.send_command(*command)
            if is_plain:
                return connection.read_response()
            return self.parse_response(connection, command[0], **options)

        return self._with_connection(talk)

    def execute_together(self, *commands: tuple[t.Any, ...]) -> list[t.Any]:
        """Send several plain commands in one round trip, without a second try.

        :return: The answers; for a command that was refused it is an exception.
        """

        if not _is_original(redis.client.Pipeline.execute):
            return TracedPipeline.run(self, commands)
        return self._with_connection(
            lambda connection: _talk_together(connection, commands)
        )

    def _with_connection(self, talk: t.Callable[[t.Any], T]) -> T:
        connection = self.connection_pool.get_connection()
        try:
            return talk(connection)
        except redis.ResponseError:
            raise
        except BaseException:
            # Even if it was merely interrupted: an answer that is still to come must
            # not be taken for the next command's.
            connection.disconnect()
            raise
        finally:
            self.connection_pool.release(connection)


class TracedPipeline(redis.client.Pipeline):  # type: ignore[misc]
    """What redis-py's ``Pipeline.execute`` is called on where somebody has wrapped it.

    Sends its commands once, and leaves no connection with an answer still to come.
    """

    #: What kept the commands from being answered.
    failure: BaseException | None

    @classmethod
    def run(
        cls, client: LeanClient, commands: t.Sequence[tuple[t.Any, ...]]
    ) -> list[t.Any]:
        """Send commands in one round trip; see :meth:`LeanClient.execute_together`."""
        pipeline: t.Any = client.pipeline(transaction=False)
        # What its constructor takes differs between the versions of redis-py.
        pipeline.__class__ = cls
        pipeline.failure = None
        for command in commands:
            pipeline.execute_command(*command)
        return t.cast("list[t.Any]", pipeline.execute(raise_on_error=False))

    def _execute_pipeline(
        self, connection: t.Any, commands: t.Any, raise_on_error: bool
    ) -> list[t.Any]:
        if self.failure is not None:
            raise self.failure  # redis-py would send them again
        try:
            return _talk_together(connection, [command for command, _ in commands])
        except BaseException as error:
            self.failure = error
            connection.disconnect()
            raise


def _talk_together(
    connection: t.Any, commands: t.Sequence[tuple[t.Any, ...]]
) -> list[t.Any]:
    answers: list[t.Any] = []
    connection.send_packed_command(connection.pack_commands(commands))
    for _ in commands:
        try:
            answers.append(connection.read_response())
        except redis.ResponseError as error:
            answers.append(error)
    return answers


def _is_original(function: t.Any) -> bool:
    """Whether a function is redis-py's own, and nobody has wrapped it."""
    # By its type too: wrappers pretend to have the globals of what they wrap.
    return type(function) is types.FunctionType and function.__globals__ is vars(
        redis.client
    )


class RetryOnce(redis.retry.Retry):  # type: ignore[misc]
    """Tries again at once, after an error that did not take long."""

    errors = (redis.ConnectionError, redis.TimeoutError, OSError)
    _final = (redis.TimeoutError, redis.AuthenticationError, OSError)

    def __init__(self) -> None:
        super().__init__(redis.backoff.NoBackoff(), 1, self.errors)

    def is_worth_it(self, error: Exception, started: float) -> bool:
        """Return whether to try again after an error.

        :param started: When the first try began, by :func:`time.monotonic`.
        """
        return not (
            isinstance(error, self._final) or time.monotonic() - started > TIMEOUT / 4
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
            # This disconnects. It has to, even after a time-out: an answer that comes
            # late must not be taken for the next command's.
            fail(error, *more)
            if not self.is_worth_it(error, started):
                raise error

        return super().call_with_retry(do, fail_or_give_up, *args, **kwargs)


class SentinelConnection(redis.sentinel.SentinelManagedConnection):  # type: ignore[misc]
    """A connection to the primary that is closed when reading is interrupted.

    By a gevent time-out for instance. redis-py leaves this kind of connection open
    then, unlike its others, and the answer, perhaps another visitor's record, would be
    taken for the next command's.
    """

    def read_response(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        kwargs.setdefault("disconnect_on_error", True)
        return super().read_response(*args, **kwargs)


class SentinelSSLConnection(
    SentinelConnection,
    redis.sentinel.SentinelManagedSSLConnection,  # type: ignore[misc]
):
    """The same with TLS."""


class Cluster(redis.RedisCluster):  # type: ignore[misc]
    """A client of a Cluster that does not try again after a time-out.

    When all connections to a node are in use, a request waits for one.
    """

    ERRORS_ALLOW_RETRY = tuple(
        error
        for error in redis.RedisCluster.ERRORS_ALLOW_RETRY
        if error is not redis.TimeoutError
    )

    def get_redis_connection(self, node: t.Any) -> t.Any:
        client = t.cast("t.Any", super().get_redis_connection(node))
        pool = client.connection_pool
        if pool.__class__ is redis.ConnectionPool:
            # It cannot be told which class to use, except when it is made from a URL.
            pool.__class__ = WaitingPool
        return client
