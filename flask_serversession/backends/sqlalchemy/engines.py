"""Engines of our own, and what connections need before they are used.

The only module, with runner.py, that uses private names of SQLAlchemy's and psycopg's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import time
import typing as t
import weakref

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc

from ...hiding import hide
from ..owners import give_away
from .codes import is_demoted
from .codes import was_too_large

# How long SQLite waits for another writer, in seconds.
_LOCK_TIMEOUT = 5.0
# How long a touch waits, in milliseconds: enough for the single statements of other
# workers (one takes about a tenth of a millisecond), too short to be noticed where
# an application holds the lock with a transaction.
_TOUCH_LOCK_TIMEOUT = 100
# For connections to a server, in seconds.
_CONNECT_TIMEOUT = 5
_ANSWER_TIMEOUT = 10
# At most 15 connections for each process, of which 5 are kept. A statement holds one
# for about a millisecond.
_POOL: dict[str, t.Any] = {
    "poolclass": sa.QueuePool,
    "pool_size": 5,
    "max_overflow": 10,
    "pool_timeout": _ANSWER_TIMEOUT,
    "pool_use_lifo": True,
}
# Modules of the listeners that SQLAlchemy itself adds to a pool.
_SQLALCHEMYS_OWN = ("sqlalchemy.engine", "sqlalchemy.dialects", "sqlalchemy.util")
_MYSQL_ARGS = {
    "connect_timeout": _CONNECT_TIMEOUT,
    "read_timeout": _ANSWER_TIMEOUT,
    "write_timeout": _ANSWER_TIMEOUT,
}
# What engines of our own pass to each driver, unless the URL says otherwise.
_CONNECT_ARGS: dict[str, dict[str, t.Any]] = {
    "pysqlite": {"timeout": _LOCK_TIMEOUT},
    "psycopg": {"connect_timeout": _CONNECT_TIMEOUT},
    # libpq has no time-out for an answer; this one detects a dead peer.
    "psycopg2": {
        "connect_timeout": _CONNECT_TIMEOUT,
        "tcp_user_timeout": 1000 * _ANSWER_TIMEOUT,
    },
    "pg8000": {"timeout": _CONNECT_TIMEOUT},
    "pymysql": _MYSQL_ARGS,
    "mysqldb": _MYSQL_ARGS,
    "mysqlconnector": {"connection_timeout": _CONNECT_TIMEOUT},
    "mariadbconnector": {"connect_timeout": _CONNECT_TIMEOUT},
}


# Drivers that wait for an answer without any limit; psycopg only before 3.2.11.
_UNLIMITED = frozenset(
    {"mariadbconnector", "mysqlconnector", "psycopg", "psycopg2", "psycopg2cffi"}
)


class AutocommitConnection(sa.Connection):
    """A connection in AUTOCOMMIT that begins nothing.

    SQLAlchemy calls listeners to ``begin`` in AUTOCOMMIT too, and many of an
    application's are for all engines: they send a ``BEGIN``, as the recipe for SQLite
    in SQLAlchemy's documentation does, after which nothing would be committed.
    """

    def _autobegin(self) -> None:
        # Not documented. If SQLAlchemy renames it, applications with such listeners
        # are affected, and nobody else.
        pass


class _BorrowingEngine(sa.Engine):
    """An engine of our own that tells the application's listeners, too.

    As the engines do that ``Engine.execution_options()`` returns, which would share
    the pool. What listens on the class is told by the application's engine.
    """

    # Not documented: these names, and _join() below.
    _sa_propagate_class_events = False
    _lender: sa.Engine

    @property
    def _has_events(self) -> bool:
        return t.cast(bool, t.cast("t.Any", self._lender)._has_events)

    @_has_events.setter
    def _has_events(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, value: bool
    ) -> None:
        pass


#: The engines made here, which are ours to dispose of.
own_engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
# Pools that a forked child inherited. They are kept, because collecting their
# connections could tell the server to close those of the parent.
_inherited: list[sa.Pool] = []

# The process that made the engines' connections.
_pid = os.getpid()
_fork_lock = threading.Lock()


def forget_connections_of_parent() -> None:
    """Begin with new pools after a fork. uWSGI calls no hook: ask at each use, too."""
    global _pid
    if os.getpid() == _pid:
        return
    with _fork_lock:
        if os.getpid() != _pid:
            for engine in list(own_engines):
                _inherited.append(engine.pool)
                engine.dispose(close=False)
            _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=forget_connections_of_parent)


def make_engine(url: str | sa.URL) -> sa.Engine:
    """Return an engine of our own, in AUTOCOMMIT and with time-outs.

    :raises ValueError: if the URL is not one of a database that SQLAlchemy knows.
    :raises ImportError: if the driver is not installed.
    """
    try:
        # Nothing shows a password here: SQLAlchemy's URL does not either.
        url = sa.make_url(hide(url))
        # The name that hosting providers use, and SQLAlchemy once did.
        name, plus, driver = url.drivername.partition("+")
        if name == "postgres":
            url = url.set(drivername=f"postgresql{plus}{driver}")
        dialect = url.get_dialect()
        if dialect.is_async:
            raise ValueError(
                f"The URL names the asynchronous driver {dialect.driver!r}; expected a"
                " synchronous one."
            )
        arguments = {
            name: value
            for name, value in _CONNECT_ARGS.get(dialect.driver, {}).items()
            if name not in url.query
        }
        options = _POOL
        if is_memory(url):
            # All threads take turns with one connection.
            options = {**_POOL, "pool_size": 1, "max_overflow": 0}
            arguments["check_same_thread"] = False
        engine = _create_engine(url, connect_args=arguments, **options)
    except exc.ArgumentError:
        # It is not passed on: its text may hold the URL.
        raise ValueError(
            "This is not the URL of a database that SQLAlchemy knows; expected"
            " something like 'sqlite:///sessions.db' or"
            " 'postgresql+psycopg://user@host/database'."
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "do_connect", _create_private_file)
        event.listen(engine, "connect", _use_wal)
    return engine


def borrow_from(lender: sa.Engine) -> sa.Engine:
    """Return an engine of our own that connects as the application's does.

    It has a pool of its own: a request that holds a connection of the application's
    would otherwise wait for a second one, which other requests hold that wait for
    the same. It connects with the same address, credentials and arguments; what
    listens for connections of the application's engine prepares these too.

    The only connection of a database in memory, or to a file of SQLite, is left
    alone; an engine for the same URL takes its place.
    """
    if is_memory(lender.url) or has_one_connection(lender):
        return make_engine(lender.url)
    pool = t.cast("t.Any", lender.pool)
    options = {**_POOL, "pool_recycle": pool._recycle}
    if isinstance(lender.pool, sa.NullPool):
        # Somebody else keeps the connections, a pooler for instance.
        options = {"poolclass": sa.NullPool}
    engine = _create_engine(
        lender.url,
        # Not documented: the function that knows the arguments, and asks listeners
        # to "do_connect".
        creator=pool._creator,
        module=lender.dialect.dbapi,
        echo=lender.echo,
        execution_options={
            name: value
            for name, value in lender.get_execution_options().items()
            if name != "isolation_level"
        },
        **options,
    )

    def prepare(dbapi_connection: t.Any, record: t.Any) -> None:
        # What listens on classes has been called already.
        listeners: t.Any = t.cast("t.Any", lender.pool).dispatch.connect.listeners
        for listener in listeners:
            if not str(listener.__module__).startswith(_SQLALCHEMYS_OWN):
                listener(dbapi_connection, record)

    event.listen(engine, "connect", prepare, insert=True)
    engine.__class__ = _BorrowingEngine
    borrowing: t.Any = engine
    borrowing._lender = lender
    borrowing.dispatch = borrowing.dispatch._join(t.cast("t.Any", lender).dispatch)
    return engine


def _create_engine(url: str | sa.URL, **options: t.Any) -> sa.Engine:
    """Create an engine in AUTOCOMMIT, prepare its connections, and remember it."""
    engine = sa.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_reset_on_return=None,
        **options,
    )
    # Not meant to be replaced. In AUTOCOMMIT there is nothing to roll back, and yet
    # MySQL drivers would send it. (The option skip_autocommit_rollback came with
    # SQLAlchemy 2.0.43.)
    engine.dialect.do_rollback = _do_nothing  # type: ignore[method-assign]
    # Nor this. A server that was sent too much closes the connection. And all that lead
    # to a primary that was demoted have to go: who reads from it may miss what its
    # successor has been told.
    dialect = t.cast("t.Any", engine.dialect)
    is_disconnect = dialect.is_disconnect

    def is_lost(error: t.Any, connection: t.Any, cursor: t.Any) -> bool:
        if is_demoted(error) or was_too_large(error):
            return True
        return bool(is_disconnect(error, connection, cursor))

    dialect.is_disconnect = is_lost
    if engine.dialect.name not in ("mysql", "mariadb"):
        event.listen(engine, "connect", _end_transaction, insert=True)
    else:
        event.listen(engine, "connect", _prepare_mysql)
    event.listen(engine, "connect", _prepare_rows, insert=True)
    if engine.dialect.driver == "psycopg":
        event.listen(engine, "connect", _prepare_psycopg)
    own_engines.add(engine)
    return engine


def driver_warning(engine: sa.Engine) -> str | None:
    """Return what to warn of if a server that hangs would be waited for for ever."""
    driver = engine.dialect.driver
    version: tuple[int, ...] = getattr(engine.dialect, "psycopg_version", ())
    if (
        driver not in _UNLIMITED
        or (driver == "psycopg" and version >= (3, 2, 11))
        or "read_timeout" in engine.url.query
    ):
        return None
    return (
        f"The database driver {driver!r} waits for an answer without any limit: a"
        " server that hangs would hold every worker that asks it for a session. Use"
        " psycopg 3.2.11 or later ('postgresql+psycopg://') or PyMySQL"
        " ('mysql+pymysql://') instead."
    )


def _end_transaction(dbapi_connection: t.Any, _: t.Any) -> None:
    """Commit what a listener to all engines has begun: AUTOCOMMIT would be refused."""
    dbapi_connection.commit()


def _prepare_rows(dbapi_connection: t.Any, _: t.Any) -> None:
    """Have rows as tuples of texts, whatever connect arguments or listeners ask for."""
    module = type(dbapi_connection).__module__.partition(".")[0]
    if module == "psycopg":
        from psycopg.rows import tuple_row

        dbapi_connection.row_factory = tuple_row
        if dbapi_connection.info.encoding == "ascii":
            # From a database in SQL_ASCII, psycopg returns bytes for texts.
            dbapi_connection.execute("SET client_encoding TO 'UTF8'")
    elif module == "sqlite3":
        dbapi_connection.row_factory = None
        # A damaged text must not make the engine look broken.
        dbapi_connection.text_factory = functools.partial(
            str, encoding="utf-8", errors="replace"
        )
    elif module == "psycopg2":
        dbapi_connection.cursor_factory = None
    elif module == "pymysql":
        cursors: t.Any = importlib.import_module("pymysql.cursors")
        dbapi_connection.cursorclass = cursors.Cursor
    elif module == "MySQLdb":
        dbapi_connection.cursorclass = dbapi_connection.default_cursor


def _prepare_mysql(dbapi_connection: t.Any, _: t.Any) -> None:
    """Read nothing that is not committed yet, whatever the server's default is."""
    cursor = dbapi_connection.cursor()
    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    cursor.close()


def _do_nothing(dbapi_connection: t.Any) -> None:
    pass


def _create_private_file(
    dialect: t.Any, record: t.Any, arguments: list[t.Any], options: dict[str, t.Any]
) -> None:
    """Create a missing database for its owner alone; SQLite would let others read it.

    Its WAL and shared-memory files get the same mode and owner.
    """
    path = arguments[0]
    if options.get("uri") or path == ":memory:":
        return
    # An existing file keeps its mode; SQLite reports whatever else is wrong.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            give_away(descriptor, path)
        finally:
            os.close(descriptor)


def _use_wal(dbapi_connection: t.Any, _: t.Any) -> None:
    cursor = dbapi_connection.cursor()
    try:
        # Some file systems cannot; and of several workers one is enough.
        with contextlib.suppress(Exception):
            cursor.execute("PRAGMA journal_mode=WAL")
        # In WAL mode, a crash of the machine can cost the last writes, never more.
        cursor.execute("PRAGMA synchronous=NORMAL")
    finally:
        cursor.close()


def _prepare_psycopg(dbapi_connection: t.Any, _: t.Any) -> None:
    """Set a time-out for answers, which neither libpq nor psycopg has.

    And prepare no statements behind a pooler. In transaction mode the next one may
    go to another connection to the server, where the same name can stand for what
    another client has prepared. A pooler is recognized by the process id it reports,
    which is not that of the server's process.
    """
    from psycopg import OperationalError

    wait = dbapi_connection.wait

    def wait_no_longer(generator: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        return wait(with_deadline(generator), *args, **kwargs)

    def with_deadline(generator: t.Any) -> t.Generator[t.Any, t.Any, t.Any]:
        # psycopg's protocol: yield what to wait for, and receive what is ready, which
        # is nothing every tenth of a second.
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        try:
            waiting_for = next(generator)
            while True:
                ready = yield waiting_for
                if not ready and time.monotonic() > deadline:
                    # A late answer must not be taken for another statement's.
                    dbapi_connection.pgconn.finish()
                    raise OperationalError("waiting for the answer timed out")
                waiting_for = generator.send(ready)
        except StopIteration as stop:
            return stop.value

    # Not meant to be replaced: the only place through which all waiting goes.
    dbapi_connection.wait = wait_no_longer
    with dbapi_connection.cursor() as cursor:
        row = cursor.execute("SELECT pg_backend_pid()").fetchone()
    if row[0] != dbapi_connection.info.backend_pid:
        dbapi_connection.prepare_threshold = None


@contextlib.contextmanager
def hardly_waiting(connection: sa.Connection) -> t.Generator[None]:
    """Let SQLite give up quickly where somebody else holds the lock."""
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA busy_timeout")
    before = int(t.cast("tuple[int]", cursor.fetchone())[0])
    try:
        cursor.execute(f"PRAGMA busy_timeout={min(before, _TOUCH_LOCK_TIMEOUT)}")
        yield
    finally:
        # SQLAlchemy closes it when the program is interrupted.
        if not connection.invalidated:
            cursor.execute(f"PRAGMA busy_timeout={before}")
            cursor.close()


def is_memory(url: sa.URL) -> bool:
    """Return whether a URL is that of a SQLite database in memory."""
    if url.get_backend_name() != "sqlite":
        return False
    database = url.database or ""
    return (
        database in ("", ":memory:")
        or database.startswith("file::memory:")
        or "mode=memory" in database
        or url.query.get("mode") == "memory"
    )


def has_lock(engine: sa.Engine) -> bool:
    """Return whether another connection may hold the lock on the whole database."""
    return engine.dialect.name == "sqlite" and not is_memory(engine.url)


def has_one_connection(engine: sa.Engine) -> bool:
    """Return whether an application's engine has one connection for everything."""
    return (
        engine.dialect.name == "sqlite"
        and engine not in own_engines
        and isinstance(engine.pool, (sa.StaticPool, sa.SingletonThreadPool))
    )
