"""How statements are run: by SQLAlchemy, or with little of it by the driver.

The only module, with engines.py, that uses private names of SQLAlchemy's.
"""

from __future__ import annotations

import contextlib
import logging
import typing as t

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.schema import CreateIndex
from sqlalchemy.schema import CreateTable

from ...errors import BackendUnavailableError
from ...errors import SessionTooLargeError
from ...hiding import forget_frames
from . import engines
from . import problems
from .rows import damaged_columns

# Drivers that take and return bytes, texts and numbers as SQLAlchemy does, which has to
# translate them for others.
_DRIVERS = frozenset({"pysqlite", "psycopg"})

# Bytes of a statement without its data, and what escaping may add to that.
_ROOM = 100_000

# What can be done about an error.
_RETRY, _CREATE_TABLE, _REFUSE = "retry", "create", "refuse"


class Reply(t.NamedTuple):
    """What a statement has brought about."""

    #: What it selects; without any, ``changed`` counts.
    rows: t.Sequence[t.Any] = ()
    #: How many rows were changed.
    changed: int = 0
    is_duplicate: bool = False
    #: Whether the statement may have been carried out twice.
    is_retried: bool = False

    def __repr__(self) -> str:
        return f"<Reply of {len(self.rows)} rows>"  # without the content of sessions


class Runner:
    """Runs each statement by itself in AUTOCOMMIT, and a second time where that helps.

    Thread-safe.

    :param engine: One of our own, from engines.py.
    :param frequent: The statements that are worth going to the driver directly.
    :param create_table: Whether to create the table when it turns out to be missing.
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: sa.Table,
        *,
        frequent: frozenset[sa.Executable] = frozenset(),
        create_table: bool = False,
    ) -> None:
        self.engine = engine
        self._table = table
        self._frequent = frequent
        self._create_table = create_table
        self._is_mysql = engine.dialect.name in ("mysql", "mariadb")
        self._has_lock = engines.has_lock(engine)
        self._direct: DirectRunner | None = None
        if DirectRunner.takes(engine):
            self._direct = DirectRunner(engine, is_kept=engines.is_memory(engine.url))

    def run(
        self,
        operation: str,
        statement: sa.Executable,
        parameters: dict[str, t.Any],
        *,
        is_urgent: bool = False,
    ) -> Reply:
        """Run a statement, again if an error calls for it.

        :param is_urgent: Whether to give up quickly if SQLite is locked.
        :raises BackendUnavailableError: if it failed.
        :raises RecordError: if what is stored cannot be read.
        """
        tried: set[str] = set()
        while True:
            try:
                reply = self._attempt(statement, parameters, is_urgent=is_urgent)
                return reply._replace(is_retried=True) if _RETRY in tried else reply
            except (exc.DBAPIError, exc.TimeoutError) as error:
                remedy = self._find_remedy(error, operation, tried)
            # Outside of the handler: an error in here must not have it as its context.
            if remedy == _REFUSE:
                return Reply(is_duplicate=True, is_retried=_RETRY in tried)
            if remedy == _CREATE_TABLE:
                self.create_tables()
            tried.add(remedy)

    def _attempt(
        self, statement: sa.Executable, parameters: dict[str, t.Any], *, is_urgent: bool
    ) -> Reply:
        direct = self._direct if statement in self._frequent else None
        if direct is not None and not direct.is_watched():
            engines.forget_connections_of_parent()
            return direct.run(statement, parameters)
        with self.connect() as connection:
            if is_urgent and self._has_lock:
                with engines.hardly_waiting(connection):
                    result = connection.execute(statement, parameters)
            else:
                result = connection.execute(statement, parameters)
            if result.returns_rows:
                return Reply(rows=result.all())
            return Reply(changed=result.rowcount)

    def _find_remedy(
        self, error: exc.SQLAlchemyError, operation: str, tried: set[str]
    ) -> str:
        """Return what to do about an error, or raise what it means."""
        if _RETRY not in tried and problems.is_worth_a_retry(error):
            return _RETRY
        if problems.is_undecodable(error):
            raise damaged_columns() from forget_frames(error)
        if operation == "create" and isinstance(error, exc.IntegrityError):
            return _REFUSE
        if _CREATE_TABLE in tried or not problems.is_table_missing(error):
            raise self.explain(error, operation) from forget_frames(error)
        if not self._create_table:
            missing = problems.missing_table(self._table, operation)
            raise missing from forget_frames(error)
        return _CREATE_TABLE

    def create_tables(self) -> None:
        """See :meth:`.SQLAlchemyBackend.create_tables`."""
        # MySQL alone has no IF NOT EXISTS for an index.
        statements: list[sa.Executable] = [CreateTable(self._table, if_not_exists=True)]
        statements += [
            CreateIndex(index, if_not_exists=not self._is_mysql)
            for index in sorted(self._table.indexes, key=lambda index: str(index.name))
        ]
        for statement in statements:
            try:
                with self.connect() as connection:
                    connection.execute(statement)
            except (exc.DBAPIError, exc.TimeoutError) as error:
                # PostgreSQL notices late that another worker was quicker, and reports
                # it in three ways, one of them an IntegrityError.
                if not (problems.is_there_already(error) or self._is_there(statement)):
                    raise self.explain(error, "create_tables") from forget_frames(error)

    def explain(
        self, error: exc.SQLAlchemyError, operation: str
    ) -> BackendUnavailableError | SessionTooLargeError:
        """Return our exception for one of SQLAlchemy's."""
        if self._is_mysql and (size := problems.size_if_too_large(error)):
            limit = self._read_limit()
            if 0 < limit < size + _ROOM:
                return SessionTooLargeError(size, limit, "'max_allowed_packet'")
        if problems.is_column_missing(error) and (columns := self._read_columns()):
            return problems.other_table(operation, self.engine, self._table, columns)
        return problems.explain(error, operation, self.engine, self._table)

    def _is_there(self, statement: sa.Executable) -> bool:
        """Return whether what a role may not create has been created already."""
        name, schema = self._table.name, self._table.schema
        try:
            with self.connect() as connection:
                inspector = sa.inspect(connection)
                if not inspector.has_table(name, schema):
                    return False
                found = inspector.get_indexes(name, schema)
        except exc.SQLAlchemyError:
            return False
        element: t.Any = getattr(statement, "element", None)
        names = {index["name"] for index in found}
        return element is self._table or element.name in names

    def _read_limit(self) -> int:
        """Return how large a statement MySQL takes, in bytes; 0 if it does not say."""
        try:
            with self.connect() as connection:
                found = connection.exec_driver_sql("SELECT @@max_allowed_packet")
                return int(found.scalar_one())
        except exc.SQLAlchemyError:
            return 0

    def _read_columns(self) -> list[str]:
        """Return the names of the columns that the table really has, if it can."""
        name, schema = self._table.name, self._table.schema
        try:
            with self.connect() as connection:
                found = sa.inspect(connection).get_columns(name, schema)
        except exc.SQLAlchemyError:
            return []
        return [column["name"] for column in found]

    @contextlib.contextmanager
    def connect(self) -> t.Generator[sa.Connection]:
        """Return a connection; one that may not be as it was is closed afterwards."""
        engines.forget_connections_of_parent()
        with engines.AutocommitConnection(self.engine) as connection:
            try:
                yield connection
            except exc.SQLAlchemyError as error:
                if problems.is_plan_stale(error):
                    connection.invalidate(error)
                raise
            except BaseException as error:
                # Interrupted, perhaps by a signal's handler: an answer may still come.
                if not (connection.invalidated or engines.is_memory(self.engine.url)):
                    connection.invalidate(error)
                raise


class DirectRunner:
    """Runs statements that SQLAlchemy has compiled, on connections of its pool.

    What SQLAlchemy does around each statement takes longer than the statement itself
    on SQLite, and half as long on PostgreSQL. This does only the necessary parts: it
    raises SQLAlchemy's exceptions, no connection on which an answer may still arrive
    goes back to the pool, and when one is lost, the pool's other connections of that
    age are discarded too.

    Thread-safe, as the pool is.

    :param engine: In AUTOCOMMIT. Its driver is one of those that :meth:`takes` names.
    :param is_kept: Whether the engine's connection is the database itself, in memory,
        so that it must not be closed. SQLite leaves no answer behind.
    """

    def __init__(self, engine: sa.Engine, *, is_kept: bool) -> None:
        self._engine = engine
        self._is_kept = is_kept
        self._compiled: dict[sa.Executable, tuple[str, list[str] | None, t.Any]] = {}

    @staticmethod
    def takes(engine: sa.Engine) -> bool:
        """Return whether an engine's driver and its statements need no translation."""
        is_translated = "schema_translate_map" in engine.get_execution_options()
        return engine.dialect.driver in _DRIVERS and not is_translated

    def is_watched(self) -> bool:
        """Return whether statements are listened to or logged.

        Tracing and debugging do so, and only SQLAlchemy can serve them.
        """
        engine: t.Any = self._engine
        events = engine.dialect.dispatch
        return (
            # Not documented. Without it, everything goes through SQLAlchemy.
            getattr(engine, "_has_events", True)
            or engine.logger.isEnabledFor(logging.INFO)
            or bool(events.do_execute)
            or bool(events.handle_error)
        )

    def run(self, statement: sa.Executable, parameters: dict[str, t.Any]) -> Reply:
        """Run a statement: a SELECT, or one that changes rows and returns none.

        :raises sqlalchemy.exc.DBAPIError: as SQLAlchemy does. If the connection has
            died, its ``connection_invalidated`` is set.
        """
        dialect = self._engine.dialect
        failure = dialect.loaded_dbapi.Error
        try:
            pooled = self._engine.raw_connection()
        except failure as error:
            raise self._wrapped(error) from error
        cursor: t.Any = None
        text = ""
        try:
            # Only after the first connection SQLAlchemy knows the server's version.
            text, names, values = self._compiled.get(statement) or self._compile(
                statement
            )
            values = {**values, **parameters}
            cursor = pooled.cursor()
            cursor.execute(
                text, values if names is None else [values[name] for name in names]
            )
            if isinstance(statement, sa.Select):
                reply = Reply(rows=cursor.fetchall())
            else:
                reply = Reply(changed=cursor.rowcount)
            cursor.close()
        except BaseException as error:
            is_lost = isinstance(error, failure) and dialect.is_disconnect(
                t.cast("t.Any", error), pooled.dbapi_connection, cursor
            )
            if is_lost:
                # Not documented: discards the pool's connections of this age as well.
                t.cast("t.Any", self._engine.pool)._invalidate(pooled, error)
            elif self._is_kept or (
                isinstance(error, failure)
                and getattr(error, "sqlstate", None) != problems.STALE_PLAN
            ):
                pooled.close()
            else:
                # Perhaps interrupted: another statement could get the answer to this
                # one. Or what the connection has prepared is for an older table.
                pooled.invalidate(error)
            if not isinstance(error, failure):
                raise
            raise self._wrapped(error, text, is_lost) from error
        pooled.close()
        return reply

    def _compile(
        self, statement: sa.Executable
    ) -> tuple[str, list[str] | None, dict[str, t.Any]]:
        compiled: t.Any = t.cast("sa.ClauseElement", statement).compile(
            dialect=self._engine.dialect
        )
        # The text, the names of its parameters if they go by their order, and the
        # values of those that are part of the statement.
        result = compiled.string, compiled.positiontup, dict(compiled.params)
        self._compiled[statement] = result
        return result

    def _wrapped(
        self, error: Exception, text: str = "", is_lost: bool = False
    ) -> Exception:
        return exc.DBAPIError.instance(
            text,
            None,
            error,
            self._engine.dialect.loaded_dbapi.Error,
            hide_parameters=True,
            connection_invalidated=is_lost,
            dialect=self._engine.dialect,
        )
