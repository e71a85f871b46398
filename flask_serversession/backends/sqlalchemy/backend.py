"""The operations of the SQLAlchemy backend."""

from __future__ import annotations

import logging
import time
import typing as t
import weakref

import sqlalchemy as sa
from sqlalchemy import exc

from ...errors import RecordError
from ...hiding import forget_frames
from ...hiding import hide
from ...record import Record
from ...record import check_format
from ...serializers.wording import described
from ..base import Backend
from ..base import Capability
from ..base import Conflict
from ..base import Gone
from ..base import Replaced
from . import engines
from .rows import to_bytes
from .rows import to_columns
from .rows import to_record
from .rows import to_user_column
from .runner import Runner
from .statements import PAGE
from .statements import TOMBSTONE
from .statements import Statements
from .table import NAME_LENGTH
from .table import define_table

_logger = logging.getLogger(__package__)

# A key is the prefix and 64 hexadecimal digits.
_PREFIX_LENGTH = NAME_LENGTH - 64
# How many records load_many() reads at once. SQLite takes 999 parameters before version
# 3.32, and MariaDB makes a temporary table of a list of 1,000 values.
_KEYS_AT_ONCE = 500
_SHOWN_NAMES = {
    "mariadb": "MariaDB",
    "mysql": "MySQL",
    "postgresql": "PostgreSQL",
    "sqlite": "SQLite",
}


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

    An engine of the application only lends its address, its credentials, its connect
    arguments, and what listens on it. The connections are the backend's own, in a
    pool of their own: at most 15 in each process, of which 5 are kept. So a view that
    holds a connection of the application's never waits for a second one of the same
    pool. With a ``NullPool``, none is kept. After a fork, the child makes new ones.

    For SQLite and psycopg, what almost all requests consist of (:meth:`load`,
    :meth:`create`, :meth:`replace` and :meth:`delete`) is compiled by SQLAlchemy and
    executed by the driver, which takes a third less time. Where listeners or a log ask
    for statements, SQLAlchemy executes these too.

    SQLite has one writer at a time: a view that saves its session while its own
    uncommitted changes hold the lock on the same file waits in vain. It should
    commit before, or keep sessions in a file of their own. An engine of SQLite with
    a pool of one connection for everything, as for databases in memory, lends its URL
    only; so sessions are kept in an in-memory database of their own then.

    Damage inside the data shows in :meth:`load`. The other operations read no more
    of it than the two bytes that name the format, and :meth:`replace` overwrites
    it, if the version is the expected one.

    :param engine: The engine to borrow from. It stays open in :meth:`close`.
    :param table_name: The table's name.
    :param schema: The table's schema; ``None`` for the metadata's or the
        connection's default.
    :param metadata: Where to define the table, so that Alembic sees it. Backends
        with the same metadata, schema and table name share one definition.
    :param create_table: Whether to create the table when it turns out to be missing.
    :param prefix: The prefix of the application's keys. Only its records are listed
        and counted. ``None`` for all records.
    :param clock: Returns the current time in seconds since the epoch.
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
        table_name: str = "server_sessions",
        schema: str | None = None,
        metadata: sa.MetaData | None = None,
        create_table: bool = True,
        prefix: str | None = None,
        clock: t.Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(t.cast("object", engine), sa.Engine):
            raise TypeError(
                "expected a sqlalchemy.Engine or a Flask-SQLAlchemy object, not"
                f" {described(engine)}.{_hint(engine)}"
            )
        if prefix is not None and len(prefix) > _PREFIX_LENGTH:
            raise ValueError(
                f"The prefix of the keys has {len(prefix)} characters; the 'sqlalchemy'"
                f" backend takes at most {_PREFIX_LENGTH}."
            )
        if engine not in engines.own_engines:
            if engines.is_memory(engine.url):
                _logger.info(
                    "The engine's in-memory SQLite database has only one connection;"
                    " the sessions are kept in an in-memory database of their own."
                )
            engine = engines.borrow_from(engine)
        self.key_prefix = prefix
        self._clock = clock
        self._is_mysql = engine.dialect.name in ("mysql", "mariadb")
        #: The table, as defined in the metadata.
        self.table = define_table(
            sa.MetaData() if metadata is None else metadata, table_name, schema
        )
        self._statements = Statements(self.table, engine.dialect, prefix)
        self._runner = Runner(
            engine,
            self.table,
            frequent=self._statements.frequent,
            create_table=create_table,
        )
        self._run = self._runner.run
        self._engine = self._runner.engine
        #: What an operator has to know at the start; ``None`` if nothing.
        self.warning = engines.driver_warning(self._engine)
        weakref.finalize(self, engine.dispose)

    @classmethod
    def from_url(
        cls,
        url: str | sa.URL,
        *,
        table_name: str = "server_sessions",
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
        url = hide(url)
        return cls(
            engines.make_engine(url),
            table_name=table_name,
            schema=schema,
            metadata=metadata,
            create_table=create_table,
            prefix=prefix,
            clock=clock,
        )

    def load(self, key: str) -> Record | None:
        """Return the record, or ``None`` if it is unknown or has expired."""
        live = {"key_": self._to_column(key), "now": self._clock()}
        reply = self._run("load", self._statements.load, live)
        return to_record(reply.rows[0]) if reply.rows else None

    def create(self, key: str, record: Record) -> bool:
        """Store a new record, unless the key is taken by a live one."""
        column = self._to_column(key)
        values = {"key_": column, "version_": record.version, **to_columns(record)}
        if self._insert(values):
            return True
        expired = {"key_": column, "now": self._clock()}
        removed = self._run("create", self._statements.delete_expired, expired)
        return removed.changed > 0 and self._insert(values)

    def replace(
        self, key: str, record: Record, expected: int
    ) -> Replaced | Conflict | Gone:
        """Swap the record if its stored version is the expected one."""
        column = self._to_column(key)
        version = expected + 1
        values = {"key_": column, "version_": version, **to_columns(record)}
        given = {**values, "expected": expected, "now": self._clock()}
        reply = self._run("replace", self._statements.replace, given)
        if reply.changed or (reply.is_retried and self._is_stored("replace", values)):
            return Replaced(version)
        live = {"key_": column, "now": self._clock()}
        reply = self._run("replace", self._statements.load, live)
        return Conflict(to_record(reply.rows[0])) if reply.rows else Gone()

    def delete(self, key: str) -> bool:
        """Remove the record; a tombstone stays, and counts as none."""
        parameters = {"key_": self._to_column(key), "now": self._clock()}
        if self._run("delete", self._statements.delete, parameters).changed:
            return True
        for row in self._run("delete", self._statements.newer, parameters).rows:
            check_format(to_bytes(row.head))
        return False

    def touch(self, key: str, touched_at: float, expires_at: float) -> bool:
        """Move the times of the record, and nothing else.

        With SQLite it hardly waits for another writer, and is then unavailable.
        """
        given = {
            "key_": self._to_column(key),
            "touched_at_": touched_at,
            "expires_at_": expires_at,
            "now": self._clock(),
        }
        touch = self._statements.touch
        return self._run("touch", touch, given, is_urgent=True).changed > 0

    def load_many(self, keys: t.Sequence[str]) -> dict[str, Record]:
        """Load several records, up to 500 in one statement."""
        columns = list(dict.fromkeys(map(self._to_column, keys)))
        found: dict[str, Record] = {}
        for start in range(0, len(columns), _KEYS_AT_ONCE):
            given = {"keys": columns[start : start + _KEYS_AT_ONCE]}
            rows = self._run("load_many", self._statements.load_many, given).rows
            found.update(self._read_listable(rows))
        return found

    def keys_of_user(self, user: str) -> list[str]:
        """Return the keys of all live records of a user, tombstones left out."""
        column = to_user_column(user)
        given = {"user_": column}
        rows = self._run("keys_of_user", self._statements.keys_of_user, given).rows
        now = self._clock()
        return [
            self._from_column(row.key)
            for row in rows
            # In a table that was made without ours, the collation may find other
            # users equal: those whose case differs, for one.
            if row.user == column
            # A moment that makes no sense has perhaps not passed; so it is listed.
            and not (isinstance(row.expires_at, float) and row.expires_at <= now)
        ]

    def iterate(self) -> t.Iterator[tuple[str, Record]]:
        """Iterate over all live records, tombstones left out, in no special order.

        No connection is held meanwhile. Records that cannot be read are skipped.
        """
        return (item for item in self.iterate_all() if not item[1].is_tombstone)

    def iterate_all(self) -> t.Iterator[tuple[str, Record]]:
        """Iterate over all live records and tombstones likewise, by their keys."""
        after = ""
        while True:
            rows = self._run("iterate", self._statements.page, {"after": after}).rows
            yield from self._read_live(rows)
            if len(rows) < PAGE:
                return
            after = rows[-1].key

    def count(self) -> int:
        """Return the number of live records, tombstones left out. Scans them all."""
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
        self._runner.create_tables()

    def server_version(self) -> str:
        """Return the name and the version of the database, for people."""
        try:
            with self._runner.connect() as connection:
                dialect: t.Any = connection.dialect
        except exc.SQLAlchemyError as error:
            raise self._runner.explain(error, "server_version") from forget_frames(
                error
            )
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        # What follows is a package's revision, which SQLAlchemy 2.0 adds for MariaDB.
        version = [str(part) for part in (dialect.server_version_info or ())[:3]]
        return " ".join([_SHOWN_NAMES.get(name, name), ".".join(version)]).rstrip()

    def close(self) -> None:
        """Close the backend's own connections. The application's engine stays open.

        An in-memory database is kept: there would be nothing to come back to.
        """
        if not engines.is_memory(self._engine.url):
            self._engine.dispose()

    def _read_listable(
        self, rows: t.Iterable[sa.Row[t.Any]]
    ) -> t.Iterator[tuple[str, Record]]:
        """Return the live records, without tombstones and what cannot be read."""
        return (item for item in self._read_live(rows) if not item[1].is_tombstone)

    def _read_live(
        self, rows: t.Iterable[sa.Row[t.Any]]
    ) -> t.Iterator[tuple[str, Record]]:
        """Return the live records and tombstones, without what cannot be read."""
        now = self._clock()
        for row in rows:
            try:
                record = to_record(row)
            except RecordError as error:
                _logger.debug("A record is skipped: %s", error)
                continue
            if record.expires_at > now:
                yield self._from_column(row.key), record

    def _insert(self, values: dict[str, t.Any]) -> bool:
        reply = self._run("create", self._statements.insert, values)
        if reply.is_duplicate:
            return reply.is_retried and self._is_stored("create", values)
        return True

    def _is_stored(self, operation: str, values: dict[str, t.Any]) -> bool:
        """Return whether a statement that was tried twice succeeded the first time."""
        this = {"key_": values["key_"]}
        rows = self._run(operation, self._statements.find, this).rows
        if not rows or rows[0].version != values["version_"]:
            return False
        # A touch may have moved the times since, but not those of a tombstone; and all
        # tombstones have the same data.
        columns = ["data"]
        if values["data_"] == TOMBSTONE:
            columns = ["created_at", "expires_at", "user"]
        return all(getattr(rows[0], name) == values[f"{name}_"] for name in columns)

    # MySQL ignores spaces at the end of a text when it compares. A key that ends with
    # one, which no key of the library's does, is stored with a DEL after it.

    def _to_column(self, key: str) -> str:
        if self._is_mysql and key.rstrip("\x7f").endswith(" "):
            return f"{key}\x7f"
        return key

    def _from_column(self, column: str) -> str:
        if self._is_mysql and column.rstrip("\x7f").endswith(" "):
            return column[:-1]
        return column


def _hint(value: object) -> str:
    """Return what to pass instead of something that is no engine; it may be empty."""
    kind = type(value)
    if isinstance(value, type):
        return " Make an instance of it."
    if isinstance(value, (str, sa.URL)):
        return " A URL belongs into 'SESSION_SQLALCHEMY_URL'."
    if kind.__module__.startswith("sqlalchemy.ext.asyncio"):
        return " Make one without asyncio."
    if kind.__module__.startswith("sqlalchemy."):  # a Session, a Connection
        return " Pass the engine that it works with."
    return ""
