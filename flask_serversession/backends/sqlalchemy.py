"""Records in one table of an SQL database, by SQLAlchemy Core."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import threading
import time
import typing as t
import weakref

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex
from sqlalchemy.schema import CreateTable

from ..errors import BackendError
from ..errors import BackendUnavailableError
from ..errors import RecordError
from ..record import FORMAT
from ..record import MAGIC
from ..record import NO_META
from ..record import TOMBSTONE_DATA
from ..record import Record
from ..record import check_format
from ..record import frame
from ..record import unframe
from ._sql_direct import STALE_PLAN
from ._sql_direct import DirectRunner
from .base import Backend
from .base import Capability
from .base import Conflict
from .base import Gone
from .base import Replaced

_logger = logging.getLogger(__name__)

# How long SQLite waits for another writer, in seconds.
_LOCK_TIMEOUT = 5.0
# How long a touch does, in milliseconds: enough for the single statements of other
# workers (one takes about a tenth of a millisecond), too short to be noticed where
# an application holds the lock with a transaction.
_TOUCH_LOCK_TIMEOUT = 100
# For connections to a server, in seconds.
_CONNECT_TIMEOUT = 5
_ANSWER_TIMEOUT = 10
# What engines of our own are given for each driver, unless the URL says otherwise.
_CONNECT_ARGS: dict[str, dict[str, t.Any]] = {
    "pysqlite": {"timeout": _LOCK_TIMEOUT},
    "psycopg": {"connect_timeout": _CONNECT_TIMEOUT},
    # libpq has no time-out for an answer; this one notices a peer that is gone.
    "psycopg2": {
        "connect_timeout": _CONNECT_TIMEOUT,
        "tcp_user_timeout": 1000 * _ANSWER_TIMEOUT,
    },
    "pg8000": {"timeout": _CONNECT_TIMEOUT},
    "pymysql": {
        "connect_timeout": _CONNECT_TIMEOUT,
        "read_timeout": _ANSWER_TIMEOUT,
        "write_timeout": _ANSWER_TIMEOUT,
    },
    "mysqldb": {
        "connect_timeout": _CONNECT_TIMEOUT,
        "read_timeout": _ANSWER_TIMEOUT,
        "write_timeout": _ANSWER_TIMEOUT,
    },
    "mysqlconnector": {"connection_timeout": _CONNECT_TIMEOUT},
    "mariadbconnector": {"connect_timeout": _CONNECT_TIMEOUT},
}

# What a datetime can express, in seconds since the epoch, and what a column can.
_EARLIEST = -62_135_596_800
_LATEST = 253_402_300_800
_LAST_VERSION = 2**63 - 1

# In characters. MySQL's indexes hold 3072 bytes, four for each character.
_NAME_LENGTH = 255
# A key is the prefix and 64 hexadecimal digits.
_PREFIX_LENGTH = _NAME_LENGTH - 64
# What the user column begins with where it holds a hash of the user.
_USER_HASH = "sha256:"
_SHOWN_NAMES = {
    "mariadb": "MariaDB",
    "mysql": "MySQL",
    "postgresql": "PostgreSQL",
    "sqlite": "SQLite",
}
# How many records iterate() reads at once.
_PAGE = 100
# Of a record, without its key and its data, in the order that they are read in.
_RECORD_COLUMNS = ("version", "created_at", "touched_at", "expires_at", "user", "meta")
# How many load_many() does. SQLite takes 999 parameters before version 3.32, and
# MariaDB makes a temporary table of a list of 1,000 values.
_KEYS_AT_ONCE = 500

# Where Table.info says that a table is one of ours.
_MARK = "flask_serversession"

# The first two bytes of framed data: magic byte and format.
_HEAD_OLDEST = bytes([MAGIC, 1])
_HEAD_KNOWN = bytes([MAGIC, FORMAT])
_HEAD_NEWER = bytes([MAGIC, FORMAT + 1])
_HEAD_NEWEST = bytes([MAGIC, 255])

# What is in the column of data of a tombstone.
_TOMBSTONE = frame(TOMBSTONE_DATA)

# serialization_failure and deadlock_detected; MySQL's deadlock, and MariaDB's
# "record has changed since last read". The engine has undone the statement.
_UNDONE = frozenset({"40001", "40P01", 1213, 1020})
# PostgreSQL's invalid_sql_statement_name and duplicate_prepared_statement.
_UNPREPARED = frozenset({"26000", "42P05"})
# PostgreSQL's feature_not_supported, here: "cached plan must not change result type".
_STALE_PLAN = frozenset({STALE_PLAN})
_TABLE_MISSING = frozenset({"42P01", 1146})
# PostgreSQL's duplicate_table, duplicate_object and unique_violation; MySQL's
# existing table and duplicate index.
_THERE_ALREADY = frozenset({"42P07", "42710", "23505", 1050, 1061})
# MySQL's unknown column and missing privileges, which drivers call operational.
_REFUSED = frozenset({1054, 1142, 1143})
# What SQLite, which has no class of its own for them, says about wrong statements.
_SQLITE_REFUSED = ("no such", "near ", "table ", "unknown database")

_Row: t.TypeAlias = "sa.Row[t.Any]"


class SQLAlchemyBackend(Backend):
    """Keeps records in a table of SQLite, PostgreSQL, MySQL or MariaDB.

    Every operation is one statement in AUTOCOMMIT on a connection of the backend's
    own, never the application's ORM session: what a view rolls back does not undo
    the session, and a saved session commits nothing of the view's. Only a
    :meth:`replace` or :meth:`delete` that found nothing to do asks a second time
    why, and a :meth:`create` that meets an expired record removes it first. What
    listens on the class ``Engine`` is told of the statements, but of no ``begin``.

    A connection that has died is replaced and its statement tried once more. If the
    first try of a replace or create was carried out and only its answer was lost,
    the second one recognizes the data as its own; so data should never be the same
    twice.

    With an engine of the application's, its pool is shared. It must have room for
    one connection more than views hold at the same time, and after a fork it is the
    application that has to dispose of it. Where its connections are not in
    AUTOCOMMIT, they are switched for each statement, which costs nothing with
    psycopg, psycopg2 and SQLite. MySQL drivers would need five more round trips for
    that; so there the statement is a transaction of its own, which listeners are told
    of, for one more round trip when it reads and two when it writes. :meth:`from_url`
    needs none of them.

    On an engine of the backend's own for SQLite or psycopg, what almost all requests
    consist of (:meth:`load`, :meth:`create`, :meth:`replace` and :meth:`delete`) is
    compiled by SQLAlchemy and executed by the driver, which takes a third less time.
    Where listeners or a log ask for statements, SQLAlchemy executes these too.

    SQLite has one writer at a time: a view that saves its session while its own
    uncommitted changes hold the lock on the same file waits in vain. It should
    commit before, or keep sessions in a file of their own. An engine of SQLite with
    a pool of one connection for everything, as for databases in memory, is not
    used: statements of the backend's would commit and roll back the application's
    work. An engine of the backend's own for the same URL takes its place, so
    sessions are kept in an in-memory database of their own then.

    Damage inside the data shows in :meth:`load`. The other operations read no more
    of it than the two bytes that name the format, and :meth:`replace` overwrites
    it, if the version is the expected one.

    :param engine: The engine to use. It stays open in :meth:`close`.
    :param table_name: The table's name.
    :param schema: The table's schema; ``None`` for the metadata's or the
        connection's default.
    :param metadata: Where to define the table, so that Alembic sees it. Backends
        with the same metadata, schema and table name share one definition.
    :param create_table: Whether to create the table when it turns out to be missing.
    :param prefix: That of the application whose records are listed and counted:
        their keys are this and 64 hexadecimal digits. ``None`` for all.
    :param clock: Gives the current time in seconds since the epoch.
    :raises ValueError: if the prefix is too long, or the metadata has another table
        of that name.
    """

    name = "sqlalchemy"
    capabilities = (
        Capability.COMPARE_AND_SWAP
        | Capability.USER_INDEX
        | Capability.ITERATE
        | Capability.COUNT
        | Capability.PRUNE
    )

    def __init__(
        self,
        engine: sa.Engine,
        *,
        table_name: str = "sessions",
        schema: str | None = None,
        metadata: sa.MetaData | None = None,
        create_table: bool = True,
        prefix: str | None = None,
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(t.cast("object", engine), sa.Engine):
            raise TypeError(
                f"expected a sqlalchemy.Engine or a Flask-SQLAlchemy object, not a"
                f" {type(engine).__name__}; use 'SESSION_SQLALCHEMY_URL'."
            )
        if prefix is not None and len(prefix) > _PREFIX_LENGTH:
            raise ValueError(
                f"The prefix of the keys has {len(prefix)} characters; the 'sqlalchemy'"
                f" backend takes at most {_PREFIX_LENGTH}."
            )
        if _has_one_connection(engine):
            if _is_memory(engine.url):
                _logger.info(
                    "The engine's in-memory SQLite database has only one connection;"
                    " the sessions are kept in an in-memory database of their own."
                )
            engine = _make_engine(engine.url)
        self.key_prefix = prefix
        self._clock = clock
        self._create_table = create_table
        self._is_mysql = engine.dialect.name in ("mysql", "mariadb")
        self._is_owner = engine in _engines
        self._engine = engine
        self._has_transactions = self._is_mysql and not self._is_owner
        if not self._is_owner:
            self._engine = engine.execution_options()
            # Only of this view of the engine, not of the application's.
            self._engine.hide_parameters = True
        else:
            weakref.finalize(self, engine.dispose)
        # Somebody else may hold SQLite's lock; not in a database of one connection.
        self._has_lock = engine.dialect.name == "sqlite" and not _is_memory(engine.url)
        #: The table, as defined in the metadata.
        self.table = _define_table(
            sa.MetaData() if metadata is None else metadata, table_name, schema
        )
        self._statements = _Statements(self.table, engine.dialect, prefix)
        self._direct: DirectRunner | None = None
        if self._is_owner and DirectRunner.takes(engine):
            self._direct = DirectRunner(engine, is_kept=_is_memory(engine.url))

    @classmethod
    def from_url(
        cls,
        url: str | sa.URL,
        *,
        table_name: str = "sessions",
        schema: str | None = None,
        metadata: sa.MetaData | None = None,
        create_table: bool = True,
        prefix: str | None = None,
        clock: t.Callable[[], float] = time.time,
    ) -> SQLAlchemyBackend:
        """Make a backend with an engine of its own.

        The engine survives a fork: the child makes connections of its own. SQLite
        is set to WAL mode; an in-memory database is shared by all threads.

        :param url: The database. Its parameters win over the time-outs that are
            set otherwise: 5 seconds to connect and, where the driver can, 10
            seconds for an answer; 5 seconds for SQLite's lock.
        :raises ValueError: if the URL is not one of a database that SQLAlchemy knows.
        :raises ImportError: if the driver is not installed.
        """
        return cls(
            _make_engine(url),
            table_name=table_name,
            schema=schema,
            metadata=metadata,
            create_table=create_table,
            prefix=prefix,
            clock=clock,
        )

    def load(self, key: str) -> Record | None:
        """Give the record, or ``None`` if it is unknown or has expired."""
        reply = self._run(
            "load",
            self._statements.load,
            {"key_": self._to_column(key), "now": self._clock()},
        )
        return _to_record(reply.rows[0]) if reply.rows else None

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless the key is taken by a live one."""
        column = self._to_column(key)
        values = {"key_": column, "version_": record.version, **_to_columns(record)}
        reply = self._run("create", self._statements.insert, values)
        if not reply.is_duplicate:
            return True
        if reply.is_retried and self._is_stored("create", values):
            return True
        removed = self._run(
            "create",
            self._statements.delete_expired,
            {"key_": column, "now": self._clock()},
        )
        if not removed.changed:
            return False
        reply = self._run("create", self._statements.insert, values)
        if not reply.is_duplicate:
            return True
        return reply.is_retried and self._is_stored("create", values)

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if its stored version is the expected one."""
        column = self._to_column(key)
        version = expected + 1
        values = {"key_": column, "version_": version, **_to_columns(record)}
        reply = self._run(
            "replace",
            self._statements.replace,
            {**values, "expected": expected, "now": self._clock()},
        )
        if reply.changed:
            return Replaced(version)
        if reply.is_retried and self._is_stored("replace", values):
            return Replaced(version)
        reply = self._run(
            "replace", self._statements.load, {"key_": column, "now": self._clock()}
        )
        return Conflict(_to_record(reply.rows[0])) if reply.rows else Gone()

    def delete(self, key: str) -> bool:
        """Remove the record; a tombstone stays, and counts as none."""
        parameters = {"key_": self._to_column(key), "now": self._clock()}
        if self._run("delete", self._statements.delete, parameters).changed:
            return True
        for row in self._run("delete", self._statements.newer, parameters).rows:
            check_format(_to_bytes(row.head))
        return False

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Move the times of the record, and nothing else.

        With SQLite it hardly waits for another writer, and is then unavailable.
        """
        reply = self._run(
            "touch",
            self._statements.touch,
            {
                "key_": self._to_column(key),
                "touched_at_": touched_at,
                "expires_at_": expires_at,
                "now": self._clock(),
            },
            is_urgent=True,
        )
        return reply.changed > 0

    def load_many(self, keys: t.Sequence[str]) -> dict[str, Record]:
        """Load several records, up to 500 in one statement."""
        columns = list(dict.fromkeys(map(self._to_column, keys)))
        found: dict[str, Record] = {}
        for start in range(0, len(columns), _KEYS_AT_ONCE):
            rows = self._run(
                "load_many",
                self._statements.load_many,
                {"keys": columns[start : start + _KEYS_AT_ONCE]},
            ).rows
            for key, record in self._read_listable(rows):
                found[key] = record
        return found

    def keys_of_user(self, user: str) -> list[str]:
        """Give the keys of all live records of a user, tombstones left out."""
        rows = self._run(
            "keys_of_user",
            self._statements.keys_of_user,
            {"user_": _to_user_column(user)},
        ).rows
        now = self._clock()
        return [
            self._from_column(row.key)
            for row in rows
            # What makes no sense has not expired for sure, so it is listed.
            if not (isinstance(row.expires_at, float) and row.expires_at <= now)
        ]

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Go through all live records, tombstones left out, in no special order.

        No connection is held meanwhile. Records that cannot be read are skipped.
        """
        after = ""
        while True:
            rows = self._run("iterate", self._statements.page, {"after": after}).rows
            yield from self._read_listable(rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1].key

    def count(self) -> int:
        """Give the number of live records, tombstones left out. Scans them all."""
        reply = self._run("count", self._statements.count, {"now": self._clock()})
        return int(reply.rows[0][0])

    def prune(self, limit: int) -> int:
        """Delete at most ``limit`` expired records, whatever their keys begin with.

        Workers of PostgreSQL that prune at the same time do not wait for each other.
        """
        parameters = {"now": self._clock(), "limit": limit}
        return self._run("prune", self._statements.prune, parameters).changed

    def create_tables(self) -> None:
        """Create the table and its indexes, if they are missing.

        Several workers may do so at the same time.

        :raises BackendUnavailableError: if the engine did not answer in time.
        """
        # MySQL alone has no IF NOT EXISTS for an index.
        statements: list[sa.Executable] = [CreateTable(self.table, if_not_exists=True)]
        statements += [
            CreateIndex(index, if_not_exists=not self._is_mysql)
            for index in sorted(self.table.indexes, key=lambda index: str(index.name))
        ]
        for statement in statements:
            try:
                with self._connect() as connection:
                    connection.execute(statement)
                    if self._has_transactions:
                        connection.commit()
            except (exc.DBAPIError, exc.TimeoutError) as error:
                # PostgreSQL finds out late that somebody else was quicker, and says
                # so in three ways, one of them an IntegrityError.
                if not _is_there_already(error):
                    raise self._explain(error, "create_tables") from error

    def server_version(self) -> str:
        """Give the name and the version of the database, for people."""
        try:
            with self._connect() as connection:
                dialect: t.Any = connection.dialect
        except exc.SQLAlchemyError as error:
            raise self._explain(error, "server_version") from error
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        # What follows is a package's revision, which SQLAlchemy 2.0 gives of MariaDB.
        version = [str(part) for part in (dialect.server_version_info or ())[:3]]
        return " ".join([_SHOWN_NAMES.get(name, name), ".".join(version)]).rstrip()

    def close(self) -> None:
        """Close the connections of an engine that the backend itself made.

        An in-memory database is kept: there would be nothing to come back to.
        """
        if self._is_owner and not _is_memory(self._engine.url):
            self._engine.dispose()

    def _read_listable(self, rows: t.Iterable[_Row]) -> t.Iterator[tuple[str, Record]]:
        """Give the live records; tombstones and what cannot be read are left out."""
        now = self._clock()
        for row in rows:
            try:
                record = _to_record(row)
            except RecordError as error:
                _logger.debug("A record is skipped: %s", error)
                continue
            if record.expires_at > now and not record.is_tombstone:
                yield self._from_column(row.key), record

    @contextlib.contextmanager
    def _connect(self) -> t.Generator[sa.Connection]:
        """Give a connection; one that may not be what it was is closed."""
        _forget_connections_of_parent()
        with self._open() as connection:
            try:
                yield connection
            except exc.SQLAlchemyError as error:
                if not _STALE_PLAN.isdisjoint(_codes_of(error)):
                    connection.invalidate(error)
                raise
            except BaseException as error:
                # Interrupted, by a signal's handler for instance: an answer may arrive.
                if not (connection.invalidated or _is_memory(self._engine.url)):
                    connection.invalidate(error)
                raise

    def _open(self) -> sa.Connection:
        if self._has_transactions:
            return self._engine.connect()
        connection: sa.Connection = _AutocommitConnection(self._engine)
        if not self._is_owner:
            # Listeners may have left the driver in a transaction. Nothing is sent
            # where they have not.
            connection.connection.commit()
            driver: t.Any = connection.connection.dbapi_connection
            is_sqlite = self._engine.dialect.name == "sqlite"
            # SQLAlchemy would not give it back to the application as it was.
            if not (is_sqlite and driver.isolation_level is None):
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        return connection

    def _run(
        self,
        operation: str,
        statement: sa.Executable,
        parameters: dict[str, t.Any],
        *,
        is_urgent: bool = False,
    ) -> _Reply:
        is_retried = has_created = False
        direct = self._direct if statement in self._statements.frequent else None
        while True:
            try:
                if direct is not None and not direct.is_watched():
                    _forget_connections_of_parent()
                    answer = direct.run(statement, parameters)
                    return _Reply(answer.rows, answer.changed, is_retried=is_retried)
                with self._connect() as connection:
                    if is_urgent and self._has_lock:
                        with _hardly_waiting(connection):
                            result = connection.execute(statement, parameters)
                    else:
                        result = connection.execute(statement, parameters)
                    if result.returns_rows:
                        return _Reply(rows=result.all(), is_retried=is_retried)
                    changed = result.rowcount
                    if self._has_transactions:
                        connection.commit()
                    return _Reply(changed=changed, is_retried=is_retried)
            except (exc.DBAPIError, exc.TimeoutError) as error:
                if not is_retried and _is_worth_a_retry(error):
                    is_retried = True
                    continue
                if _is_undecodable(error):
                    raise RecordError(
                        "The record's columns make no sense.", "damaged"
                    ) from error
                if operation == "create" and isinstance(error, exc.IntegrityError):
                    return _Reply(is_duplicate=True, is_retried=is_retried)
                if has_created or not _is_table_missing(error):
                    raise self._explain(error, operation) from error
                if not self._create_table:
                    raise BackendError(
                        f"The table {self.table.fullname!r} does not exist; run"
                        ' "flask sessions init" or add it by a migration.',
                        backend=self.name,
                        operation=operation,
                    ) from error
            # Outside of the handler, so that an error in here has no strange context.
            self.create_tables()
            has_created = True

    def _is_stored(self, operation: str, values: dict[str, t.Any]) -> bool:
        """Say whether a statement that was tried twice succeeded the first time."""
        rows = self._run(
            operation, self._statements.find, {"key_": values["key_"]}
        ).rows
        if not rows or rows[0].version != values["version_"]:
            return False
        # A touch may have moved the times meanwhile, but not those of a tombstone,
        # whose data is everybody's.
        columns = ["data"]
        if values["data_"] == _TOMBSTONE:
            columns = ["created_at", "expires_at", "user"]
        return all(getattr(rows[0], name) == values[f"{name}_"] for name in columns)

    def _explain(self, error: exc.SQLAlchemyError, operation: str) -> BackendError:
        """Make our exception of SQLAlchemy's, whose own text may hold values."""
        url = self._engine.url
        where = f"the {self._engine.dialect.name} database {url.database or ''!r}"
        if url.host:
            where += f" at {url.host}" + (f":{url.port}" if url.port else "")
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        what = " ".join([type(cause).__name__, *map(str, _codes_of(error))])
        error_class: type[BackendError] = BackendUnavailableError
        if isinstance(error, exc.TimeoutError):
            message = (
                f"The 'sqlalchemy' backend got no connection to {where} for"
                f" {operation!r}: all of the pool's are in use."
            )
        elif self._has_lock and _is_locked(error):
            message = (
                f"The 'sqlalchemy' backend could not {operation!r}: another writer"
                f" held the lock on {where}. If that is a transaction of this"
                " application, end it before the session is saved, or keep the"
                " sessions in a database of their own."
            )
        elif not _UNPREPARED.isdisjoint(_codes_of(error)):
            error_class = BackendError
            message = (
                f"The 'sqlalchemy' backend could not {operation!r}: {where} lost a"
                f" prepared statement ({what}), as poolers in transaction mode do."
                " Make the engine with connect_args={'prepare_threshold': None}."
            )
        elif _is_overdue(error):
            message = (
                f"The 'sqlalchemy' backend could not {operation!r}: {where} did not"
                f" answer in time ({what})."
            )
        elif _is_unavailable(error):
            message = (
                f"The 'sqlalchemy' backend could not {operation!r}: {where} cannot be"
                f" reached or refused to work ({what})."
            )
        else:
            error_class = BackendError
            message = (
                f"The 'sqlalchemy' backend could not {operation!r}: {where} does not"
                f" accept the statement ({what}). Does the table"
                f" {self.table.fullname!r} have the expected columns?"
            )
        return error_class(message, backend=self.name, operation=operation)

    # MySQL ignores spaces at the end of a text when it compares. A key that ends
    # with one (nobody's but a test's) is kept with a DEL after it.

    def _to_column(self, key: str) -> str:
        if self._is_mysql and key.rstrip("\x7f").endswith(" "):
            return f"{key}\x7f"
        return key

    def _from_column(self, column: str) -> str:
        if self._is_mysql and column.rstrip("\x7f").endswith(" "):
            return column[:-1]
        return column


class _Reply(t.NamedTuple):
    rows: t.Sequence[_Row] = ()
    #: How many rows were changed.
    changed: int = 0
    is_duplicate: bool = False
    #: Whether the statement may have been carried out twice.
    is_retried: bool = False


class _Statements:
    """All statements, made once, so that SQLAlchemy compiles each of them once."""

    def __init__(
        self, table: sa.Table, dialect: sa.Dialect, prefix: str | None
    ) -> None:
        columns = table.c
        key, data, expires_at = columns["key"], columns["data"], columns["expires_at"]
        now = sa.bindparam("now", type_=sa.Double[float]())
        is_this = key == sa.bindparam("key_", type_=key.type)
        is_live = expires_at > now
        # Of no data, SQLite's is NULL, which is neither known nor unknown.
        head = sa.func.coalesce(
            sa.func.substr(data, 1, 2), _bytes(b""), type_=sa.LargeBinary()
        )
        is_known = head.between(_bytes(_HEAD_OLDEST), _bytes(_HEAD_KNOWN))
        is_newer = head.between(_bytes(_HEAD_NEWER), _bytes(_HEAD_NEWEST))
        # The length first: SQLite and PostgreSQL know it without reading the data.
        is_tombstone = sa.and_(
            sa.func.length(data) == len(_TOMBSTONE), data == _bytes(_TOMBSTONE)
        )
        is_ours = sa.true() if prefix is None else _is_own(key, prefix, dialect)
        values = {
            column.name: sa.bindparam(f"{column.name}_", type_=column.type)
            for column in columns
        }
        # As the driver gives it: SQLite may hold a text where somebody damaged it.
        raw_data = sa.type_coerce(data, sa.types.NullType()).label("data")
        record = [raw_data, *(columns[name] for name in _RECORD_COLUMNS)]

        self.find = sa.select(*record).where(is_this)
        self.load = self.find.where(is_live)
        self.newer = sa.select(
            sa.type_coerce(head, sa.types.NullType()).label("head")
        ).where(is_this, is_live, is_newer)
        self.insert = sa.insert(table).values(values)
        self.replace = (
            sa.update(table)
            .where(
                is_this,
                columns["version"] == sa.bindparam("expected", type_=sa.BigInteger()),
                is_live,
                is_known,
            )
            .values({name: value for name, value in values.items() if name != "key"})
        )
        lives_longer = sa.and_(
            values["expires_at"] > now, expires_at > values["expires_at"]
        )
        self.touch = (
            sa.update(table)
            .where(is_this, is_live, is_known, sa.not_(is_tombstone))
            .values(
                touched_at=values["touched_at"],
                expires_at=sa.case(
                    (lives_longer, expires_at), else_=values["expires_at"]
                ),
            )
        )
        self.delete = sa.delete(table).where(
            is_this, is_live, sa.not_(is_tombstone), sa.not_(is_newer)
        )
        self.delete_expired = sa.delete(table).where(is_this, expires_at <= now)
        # These three do not ask for what is live: after an ANALYZE, SQLite takes the
        # index on expires_at for better than that on the user or on the key, reads
        # the whole table by it, and sorts it for each page.
        self.load_many = sa.select(*record, key).where(
            key.in_(sa.bindparam("keys", type_=key.type, expanding=True))
        )
        self.keys_of_user = sa.select(key, expires_at).where(
            columns["user"] == sa.bindparam("user_", type_=columns["user"].type),
            sa.not_(is_tombstone),
            is_ours,
        )
        self.page = (
            sa.select(*record, key)
            .where(key > sa.bindparam("after", type_=key.type), is_ours)
            .order_by(key)
            .limit(_PAGE)
        )
        self.count = (
            sa.select(sa.func.count())
            .select_from(table)
            .where(is_live, sa.not_(is_tombstone), is_ours)
        )
        self.prune = _prune(table, dialect, now)
        #: What almost all requests consist of.
        self.frequent = frozenset({self.load, self.insert, self.replace, self.delete})


def _is_own(
    key: sa.ColumnElement[str], prefix: str, dialect: sa.Dialect
) -> sa.ColumnElement[bool]:
    """Tell an application's keys from those of another one, whatever its prefix is.

    The length is enough where the other prefix begins with this one. What the last 64
    characters are is not looked at; somebody would have to write such rows by hand.
    """
    # MySQL's LENGTH counts bytes, and SQLite has no CHAR_LENGTH.
    is_mysql = dialect.name in ("mysql", "mariadb")
    length = sa.func.char_length(key) if is_mysql else sa.func.length(key)
    return sa.and_(
        sa.func.substr(key, 1, len(prefix)) == prefix, length == len(prefix) + 64
    )


def _prune(
    table: sa.Table, dialect: sa.Dialect, now: sa.BindParameter[float]
) -> sa.Executable:
    key, expires_at = table.c["key"], table.c["expires_at"]
    limit = sa.bindparam("limit", type_=sa.Integer())
    if dialect.name in ("mysql", "mariadb"):
        # No LIMIT in a subquery, and SQLAlchemy 2.0.36 has none in a DELETE. The
        # order makes it safe to replicate by statement.
        text = sa.text("expires_at <= :now ORDER BY expires_at LIMIT :limit")
        return sa.delete(table).where(text.bindparams(now, limit))
    expired = sa.select(key).where(expires_at <= now).order_by(expires_at).limit(limit)
    if dialect.name == "postgresql":
        # A CTE that locks is run once. A subquery could be run again for each row,
        # giving other rows each time.
        locked = expired.with_for_update(skip_locked=True).cte("expired")
        return sa.delete(table).where(key.in_(sa.select(locked.c["key"])))
    return sa.delete(table).where(key.in_(expired))


def _bytes(value: bytes) -> sa.BindParameter[bytes]:
    return sa.literal(value, sa.LargeBinary())


def _define_table(metadata: sa.MetaData, name: str, schema: str | None) -> sa.Table:
    full_schema = metadata.schema if schema is None else schema
    full_name = f"{full_schema}.{name}" if full_schema else name
    table = metadata.tables.get(full_name)
    if table is not None:
        if _MARK in table.info:
            return table
        raise ValueError(
            f"The metadata has another table {full_name!r}. Choose another name for"
            " that of the sessions."
        )
    # Only types of SQLAlchemy's own: migrations must not have to import this module.
    # "C" orders by bytes and, unlike locales, never changes with the system.
    text = (
        sa.String(_NAME_LENGTH)
        .with_variant(sa.String(_NAME_LENGTH, collation="C"), "postgresql")
        .with_variant(
            mysql.VARCHAR(_NAME_LENGTH, charset="utf8mb4", collation="utf8mb4_bin"),
            "mysql",
            "mariadb",
        )
    )
    return sa.Table(
        name,
        metadata,
        sa.Column("key", text, primary_key=True),
        # MySQL's BLOB and TEXT end at 64 KiB.
        sa.Column(
            "data",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"),
            nullable=False,
        ),
        sa.Column("version", sa.BigInteger(), nullable=False),
        # Double precision: the times come back exactly.
        sa.Column("created_at", sa.Double[float](), nullable=False),
        sa.Column("touched_at", sa.Double[float](), nullable=False),
        sa.Column("expires_at", sa.Double[float](), nullable=False, index=True),
        sa.Column("user", text, nullable=True, index=True),
        sa.Column(
            "meta",
            sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"),
            nullable=False,
        ),
        schema=schema,
        info={_MARK: True},
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )


# -- records and rows


def _to_columns(record: Record) -> dict[str, t.Any]:
    user = record.user if record.user is None else _to_user_column(record.user)
    meta: t.Any = dict(record.meta)
    if user != record.user:
        meta = [record.user, meta]
    return {
        "data_": frame(record.data),
        "created_at_": record.created_at,
        "touched_at_": record.touched_at,
        "expires_at_": record.expires_at,
        "user_": user,
        # ASCII only, whatever the database's character set.
        "meta_": json.dumps(meta) if meta else "",
    }


def _to_user_column(user: str) -> str:
    """Give what stands for the user in the column that is searched.

    That is the user, unless it is too long, or has characters that a database may
    not store (NUL; what its encoding does not have) or not tell apart (a space at the
    end, on MySQL). Then it is a hash, and the user itself goes with the meta.
    """
    # ASCII alone: what else is printable depends on the version of Python, and who
    # looks for somebody's sessions may have another one than who stored them.
    if (
        len(user) <= _NAME_LENGTH
        and user.isascii()
        and user.isprintable()
        and not user.endswith(" ")
        and not user.startswith(_USER_HASH)
    ):
        return user
    digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
    return _USER_HASH + digest


def _to_record(row: _Row) -> Record:
    # Unpacked, since a row takes long to look for a column by its name.
    data, version, created_at, touched_at, expires_at, user, text, *_ = t.cast(
        "t.Any", row
    )
    meta: t.Any = NO_META
    if text and text != "{}":
        try:
            meta = json.loads(text)
            if isinstance(meta, list):
                user, meta = t.cast("tuple[str, dict[str, str]]", meta)
        except (ValueError, RecursionError) as error:
            raise RecordError("The record's meta is damaged.", "damaged") from error
    # No checksum covers these columns. SQLite takes a text for a number, PostgreSQL
    # has numbers that are none, and all have some that nobody can count on from.
    if (
        not isinstance(version, int)
        or not 0 <= version < _LAST_VERSION
        or not all(
            isinstance(moment, (int, float)) and _EARLIEST <= moment < _LATEST
            for moment in (created_at, touched_at, expires_at)
        )
        or not (user is None or isinstance(user, str))
        or not (meta is NO_META or _is_meta(meta))
    ):
        raise RecordError("The record's columns make no sense.", "damaged")
    return Record(
        data=unframe(_to_bytes(data)),
        version=version,
        created_at=created_at,
        touched_at=touched_at,
        expires_at=expires_at,
        user=user,
        meta=t.cast("dict[str, str]", meta),
    )


def _is_meta(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) for text in t.cast("dict[str, object]", value).values()
    )


def _to_bytes(value: t.Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return memoryview(value).tobytes()  # psycopg2 gives a memoryview
    except TypeError as error:
        raise RecordError("The record's data is not bytes.", "damaged") from error


# -- errors


def _codes_of(error: exc.SQLAlchemyError) -> dict[str | int, None]:
    """Give SQLSTATE and number of the engine's error, where the driver tells them.

    Each driver has a place of its own for them; some fill several.
    """
    cause: t.Any = getattr(error, "orig", None)
    arguments: t.Any = getattr(cause, "args", ())
    first = arguments[0] if arguments else None
    if isinstance(first, dict):
        first = t.cast("dict[str, t.Any]", first).get("C")  # pg8000
    elif not isinstance(first, int):
        first = None  # a text, which may hold values
    names = ("sqlstate", "pgcode", "errno", "sqlite_errorname")
    codes = [*(getattr(cause, name, None) for name in names), first]
    return dict.fromkeys(code for code in codes if isinstance(code, (str, int)))


def _is_worth_a_retry(error: exc.SQLAlchemyError) -> bool:
    if not isinstance(error, exc.DBAPIError):
        return False
    if error.connection_invalidated:
        # Who waited for an answer in vain would only wait a second time.
        return not _is_overdue(error)
    return not (_UNDONE | _STALE_PLAN).isdisjoint(_codes_of(error))


def _is_overdue(error: exc.SQLAlchemyError) -> bool:
    # What PyMySQL, psycopg and libpq say, and _prepare_psycopg.
    text = str(error.orig) if isinstance(error, exc.OperationalError) else ""
    return "timed out" in text or "timeout expired" in text


def _is_unavailable(error: exc.SQLAlchemyError) -> bool:
    if not isinstance(error, exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if not _REFUSED.isdisjoint(_codes_of(error)) or str(error.orig).startswith(
        _SQLITE_REFUSED
    ):
        return False
    # What remains is operational: refused, too many, full, read-only, corrupt.
    return not isinstance(
        error,
        (
            exc.DataError,
            exc.IntegrityError,
            exc.NotSupportedError,
            exc.ProgrammingError,
        ),
    )


def _is_locked(error: exc.SQLAlchemyError) -> bool:
    return isinstance(error, exc.OperationalError) and "is locked" in str(error.orig)


def _is_undecodable(error: exc.SQLAlchemyError) -> bool:
    """Whether it is SQLite's module about a damaged text, with another's engine."""
    return isinstance(error, exc.OperationalError) and str(error.orig).startswith(
        "Could not decode to UTF-8"
    )


def _is_table_missing(error: exc.SQLAlchemyError) -> bool:
    return isinstance(error, exc.DBAPIError) and (
        not _TABLE_MISSING.isdisjoint(_codes_of(error))
        or str(error.orig).startswith("no such table")
    )


def _is_there_already(error: exc.SQLAlchemyError) -> bool:
    return isinstance(error, exc.DBAPIError) and (
        not _THERE_ALREADY.isdisjoint(_codes_of(error))
        or "already exists" in str(error.orig)
    )


# -- engines


class _AutocommitConnection(sa.Connection):
    """A connection in AUTOCOMMIT that begins nothing.

    SQLAlchemy calls listeners to ``begin`` in AUTOCOMMIT too, and many of an
    application's are for all engines: they send a ``BEGIN``, as the recipe for SQLite
    in SQLAlchemy's documentation does, after which nothing would be committed.
    """

    def _autobegin(self) -> None:
        # Not documented. Under another name it would do no harm, and no good.
        pass


#: Those made here, which are ours to dispose of.
_engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()
# Pools that a forked child inherited. They are kept: collecting their connections
# could tell the server to close those of the parent.
_inherited: list[sa.Pool] = []


#: The process that the engines' connections are of.
_pid = os.getpid()
_fork_lock = threading.Lock()


def _forget_connections_of_parent() -> None:
    """Begin with new pools after a fork. uWSGI calls no hook: ask at each use, too."""
    global _pid
    if os.getpid() == _pid:
        return
    with _fork_lock:
        if os.getpid() != _pid:
            for engine in list(_engines):
                _inherited.append(engine.pool)
                engine.dispose(close=False)
            _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_connections_of_parent)


def _make_engine(url: str | sa.URL) -> sa.Engine:
    try:
        url = sa.make_url(url)
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
        options: dict[str, t.Any] = {"pool_use_lifo": True}
        if _is_memory(url):
            # One connection for all threads, one after the other.
            options = {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0}
            arguments["check_same_thread"] = False
        engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            connect_args=arguments,
            pool_reset_on_return=None,
            pool_timeout=_CONNECT_TIMEOUT,
            **options,
        )
    except exc.ArgumentError as error:
        # Its text is not passed on: it may hold the URL.
        raise ValueError(
            "This is not the URL of a database that SQLAlchemy knows; expected"
            " something like 'sqlite:///sessions.db' or"
            " 'postgresql+psycopg://user@host/database'."
        ) from error
    # In AUTOCOMMIT there is nothing to roll back, and yet MySQL drivers would send
    # it. (The option skip_autocommit_rollback came with SQLAlchemy 2.0.43.)
    engine.dialect.do_rollback = _do_nothing  # type: ignore[method-assign]
    if engine.dialect.name not in ("mysql", "mariadb"):
        event.listen(engine, "connect", _end_transaction, insert=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "do_connect", _create_private_file)
        event.listen(engine, "connect", _prepare_sqlite)
    if engine.dialect.driver == "psycopg":
        event.listen(engine, "connect", _prepare_psycopg)
    _engines.add(engine)
    return engine


def _end_transaction(dbapi_connection: t.Any, _: t.Any) -> None:
    """Commit what a listener to all engines has begun: AUTOCOMMIT would be refused."""
    dbapi_connection.commit()


def _do_nothing(dbapi_connection: t.Any) -> None:
    pass


def _create_private_file(
    dialect: t.Any, record: t.Any, arguments: list[t.Any], options: dict[str, t.Any]
) -> None:
    """Create a missing database for its owner alone; SQLite would let others read it.

    Its WAL and shared-memory files get the same mode.
    """
    path = arguments[0]
    if options.get("uri") or path in ("", ":memory:"):
        return
    # Where it exists, it is somebody's decision; what else is wrong SQLite will say.
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _prepare_sqlite(dbapi_connection: t.Any, _: t.Any) -> None:
    # A text that is damaged must not make the engine look broken.
    dbapi_connection.text_factory = functools.partial(
        str, encoding="utf-8", errors="replace"
    )
    cursor = dbapi_connection.cursor()
    try:
        # Some file systems cannot; and who comes second need not wait for the first.
        with contextlib.suppress(Exception):
            cursor.execute("PRAGMA journal_mode=WAL")
        # In WAL mode, a crash of the machine can cost the last writes, never more.
        cursor.execute("PRAGMA synchronous=NORMAL")
    finally:
        cursor.close()


def _prepare_psycopg(dbapi_connection: t.Any, _: t.Any) -> None:
    """Set a time-out for answers, which neither libpq nor psycopg has.

    And prepare no statements behind a pooler. In transaction mode the next one may
    go to another connection of the server's, where the same name can stand for what
    another client has prepared. A pooler tells of no process of the server's, since
    it has a different one each time.
    """
    from psycopg import OperationalError

    wait = dbapi_connection.wait

    def wait_no_longer(generator: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        return wait(with_deadline(generator), *args, **kwargs)

    def with_deadline(generator: t.Any) -> t.Generator[t.Any, t.Any, t.Any]:
        # psycopg's protocol: yield what to wait for, get what is ready, which is
        # nothing every tenth of a second.
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        try:
            waiting_for = next(generator)
            while True:
                ready = yield waiting_for
                if not ready and time.monotonic() > deadline:
                    # Its answer must not be taken for that of another statement.
                    dbapi_connection.pgconn.finish()
                    raise OperationalError("waiting for the answer timed out")
                waiting_for = generator.send(ready)
        except StopIteration as stop:
            return stop.value

    dbapi_connection.wait = wait_no_longer
    with dbapi_connection.cursor() as cursor:
        row = cursor.execute("SELECT pg_backend_pid()").fetchone()
    if row[0] != dbapi_connection.info.backend_pid:
        dbapi_connection.prepare_threshold = None


@contextlib.contextmanager
def _hardly_waiting(connection: sa.Connection) -> t.Generator[None]:
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


def _is_memory(url: sa.URL) -> bool:
    """Say whether a URL is that of a SQLite database in memory."""
    if url.get_backend_name() != "sqlite":
        return False
    database = url.database or ""
    return (
        database in ("", ":memory:")
        or database.startswith("file::memory:")
        or "mode=memory" in database
        or url.query.get("mode") == "memory"
    )


def _has_one_connection(engine: sa.Engine) -> bool:
    return (
        engine.dialect.name == "sqlite"
        and engine not in _engines
        and isinstance(engine.pool, (sa.StaticPool, sa.SingletonThreadPool))
    )
