"""Classes of redis-py, adapted; this module alone uses private names of redis-py's.

Importing it imports redis-py, so it is imported only where a URL asks for a client.
:class:`LeanPool` and :class:`LeanClient` spend little time of their own on a command;
the others make sure that nobody waits twice, and that no command gets the answer to
another one.
"""

from __future__ import annotations

import collections
import importlib
import os
import time
import typing as t
import weakref

from .server import TIMEOUT

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

T = t.TypeVar("T")

# Untyped on purpose: annotations differ between the versions of redis-py.
redis: t.Any = importlib.import_module("redis")

# Commands whose answers are used as the server gives them.
_PLAIN = frozenset({"GET", "GETRANGE", "SET", "EVAL", "EVALSHA"})


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
            # Not documented: the lock that guards the counting.
            with self._lock:
                return self.make_connection()

    def release(self, connection: t.Any) -> None:
        if connection.pid == self.pid:
            self._idle.append(connection)

    def disconnect(self, inuse_connections: bool = True) -> None:
        for connection in [*self._idle]:
            connection.disconnect()


class LeanClient(redis.Redis):  # type: ignore[misc]
    """Sends commands without redis-py's bookkeeping around them.

    Its connections need a :class:`RetryOnce`. Don't use a pipeline of redis-py's: it
    may release a connection on which an answer is still to come, and relies on a pool
    that checks for it.
    """

    @classmethod
    def from_url(cls, url: str, **options: t.Any) -> LeanClient:
        """Make a client with a pool of its own."""
        client = cls(connection_pool=LeanPool.from_url(url, **options))
        client.auto_close_connection_pool = True  # nobody else has it
        return client

    def execute_command(self, *command: t.Any, **options: t.Any) -> t.Any:
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

        def talk(connection: t.Any) -> list[t.Any]:
            answers: list[t.Any] = []
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except redis.ResponseError as error:
                    answers.append(error)
            return answers

        return self._with_connection(talk)

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


class RetryOnce(redis.retry.Retry):  # type: ignore[misc]
    """Tries again at once, after an error that did not take long."""

    # ReadOnlyError is from a primary that has become a replica: the next connection
    # may lead to the new primary.
    errors = (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.ReadOnlyError,
        OSError,
    )
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
    """A client of a Cluster that does not try again after a time-out."""

    ERRORS_ALLOW_RETRY = tuple(
        error
        for error in redis.RedisCluster.ERRORS_ALLOW_RETRY
        if error is not redis.TimeoutError
    )
