"""Statements on the driver's own cursor, with little of SQLAlchemy in between."""

from __future__ import annotations

import logging
import typing as t

import sqlalchemy as sa
from sqlalchemy import exc

# Drivers that take and give bytes, texts and numbers as SQLAlchemy does, which for
# others has to translate them.
_DRIVERS = frozenset({"pysqlite", "psycopg"})

# What PostgreSQL says of a prepared statement whose table was altered since.
STALE_PLAN = "0A000"


class Answer(t.NamedTuple):
    """What a statement has brought about."""

    #: What it selects; without any, ``changed`` counts.
    rows: t.Sequence[t.Any] = ()
    #: How many rows were changed.
    changed: int = 0


class DirectRunner:
    """Runs statements that SQLAlchemy has compiled, on connections of its pool.

    What SQLAlchemy does around each statement takes longer than the statement itself
    does on SQLite, and half as long on PostgreSQL. Of that, this does what is needed:
    it raises SQLAlchemy's exceptions, no connection goes back to the pool on which an
    answer may still arrive, and where one has died, none that is as old is used again.

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
        """Whether an engine's driver is one of those that need no translation."""
        return engine.dialect.driver in _DRIVERS

    def is_watched(self) -> bool:
        """Whether somebody wants to be told of statements, by an event or in a log.

        Those are what tracing and debugging go by, and only SQLAlchemy serves them.
        """
        engine: t.Any = self._engine
        events = engine.dialect.dispatch
        return (
            # Not documented. Were it gone, everything would go through SQLAlchemy.
            getattr(engine, "_has_events", True)
            or engine.logger.isEnabledFor(logging.INFO)
            or bool(events.do_execute)
            or bool(events.handle_error)
        )

    def run(self, statement: sa.Executable, parameters: dict[str, t.Any]) -> Answer:
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
            # Not before there was a connection: that is what tells SQLAlchemy of
            # the server's version.
            text, names, values = self._compiled.get(statement) or self._compile(
                statement
            )
            values = {**values, **parameters}
            cursor = pooled.cursor()
            cursor.execute(
                text, values if names is None else [values[name] for name in names]
            )
            if isinstance(statement, sa.Select):
                answer = Answer(rows=cursor.fetchall())
            else:
                answer = Answer(changed=cursor.rowcount)
            cursor.close()
        except BaseException as error:
            is_lost = isinstance(error, failure) and dialect.is_disconnect(
                t.cast("t.Any", error), pooled.dbapi_connection, cursor
            )
            if is_lost:
                # The others of the pool are hardly better.
                t.cast("t.Any", self._engine.pool)._invalidate(pooled, error)
            elif self._is_kept or (
                isinstance(error, failure)
                and getattr(error, "sqlstate", None) != STALE_PLAN
            ):
                pooled.close()
            else:
                # Interrupted, perhaps: somebody else could get the answer to this
                # statement. Or what it has prepared is for another table than there is.
                pooled.invalidate(error)
            if not isinstance(error, failure):
                raise
            raise self._wrapped(error, text, is_lost) from error
        pooled.close()
        return answer

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
