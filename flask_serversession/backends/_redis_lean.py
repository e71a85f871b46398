"""A client of redis-py that spends little time of its own on a command."""

from __future__ import annotations

import collections
import functools
import os
import time
import typing as t
import weakref

T = t.TypeVar("T")

# Commands whose answers are used as the server gives them.
_PLAIN = frozenset({"GET", "GETRANGE", "SET", "EVAL", "EVALSHA"})


@functools.cache
def get_lean_client(redis: t.Any) -> t.Any:
    """Give the class of the client, for a version of redis-py.

    Its connections need a ``retry`` with ``errors`` and ``is_worth_it``.

    :param redis: The module.
    """
    pool: t.Any = redis.ConnectionPool
    client: t.Any = redis.Redis

    class LeanPool(pool):  # type: ignore[misc]
        """Gives connections away without asking the system whether they are still open.

        That takes longer than all else that a command costs this process. A connection
        that the server has closed meanwhile is found out by the command, which is then
        sent on a new one. Thread-safe: a deque's operations are atomic.
        """

        def reset(self) -> None:
            # The last one used is the next one to be used.
            self._idle: collections.deque[t.Any] = collections.deque()
            self._made: weakref.WeakSet[t.Any] = weakref.WeakSet()
            # This ends by saying that the pool is that of this process, upon which
            # other threads of a forked child take what is idle.
            pool.reset(self)

        def make_connection(self) -> t.Any:
            # One that an interruption kept from coming back does not count any more.
            self._created_connections = len(self._made)
            connection = pool.make_connection(self)
            self._made.add(connection)
            return connection

        def get_connection(self, *_: t.Any, **__: t.Any) -> t.Any:
            if self.pid != os.getpid():
                self._checkpid()  # forked: the connections are those of the parent
            try:
                return self._idle.pop()
            except IndexError:
                with self._lock:
                    return self.make_connection()

        def release(self, connection: t.Any) -> None:
            if connection.pid == self.pid:
                self._idle.append(connection)

        def disconnect(self, inuse_connections: bool = True) -> None:
            for connection in [*self._idle]:
                connection.disconnect()

    class LeanClient(client):  # type: ignore[misc]
        """Sends commands without redis-py's bookkeeping around them.

        A pipeline of redis-py's should not be used: it gives back a connection on which
        an answer may be to come, and relies on a pool that looks for it.
        """

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

            :return: The answers; that to a command that was refused is an exception.
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
                # Also where it was interrupted between a command and its answer, which
                # must not be taken for that of the next command.
                connection.disconnect()
                raise
            finally:
                self.connection_pool.release(connection)

    def make(url: str, **options: t.Any) -> t.Any:
        made = LeanClient(connection_pool=LeanPool.from_url(url, **options))
        made.auto_close_connection_pool = True  # nobody else has it
        return made

    return make
