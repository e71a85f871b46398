"""Flask-Session's sessions in a table: their key, what they held, and their expiry."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import exc

from ...backends.base import Backend
from ...backends.sqlalchemy import SQLAlchemyBackend
from ...backends.sqlalchemy.problems import is_column_missing
from ...backends.sqlalchemy.problems import is_table_missing
from ...backends.sqlalchemy.runner import Runner
from ...errors import BackendUnavailableError
from ...errors import RecordError
from ...hiding import forget_frames
from .content import decode


class FlaskSessionTable:
    """An :class:`.OldStore` in a database, by connections of a backend.

    :param source: Whose engine it uses.
    :param table_name: Flask-Session's ``SESSION_SQLALCHEMY_TABLE``.
    :param schema: Flask-Session's ``SESSION_SQLALCHEMY_SCHEMA``.
    :param prefix: What the keys begin with.
    """

    def __init__(
        self,
        source: SQLAlchemyBackend,
        table_name: str,
        schema: str | None,
        prefix: str,
    ) -> None:
        self._clock = source._clock  # pyright: ignore[reportPrivateUsage]
        self._prefix = prefix
        self.table = sa.Table(
            table_name,
            sa.MetaData(schema=schema),
            sa.Column("session_id", sa.String(255)),
            sa.Column("data", sa.LargeBinary),
            sa.Column("expiry", sa.DateTime),
        )
        engine = source._engine  # pyright: ignore[reportPrivateUsage]
        self._runner = Runner(engine, self.table)

    def is_that_of(self, backend: Backend) -> bool:
        """Return whether a backend has its records in this table."""
        return (
            isinstance(backend, SQLAlchemyBackend)
            and backend._engine.url  # pyright: ignore[reportPrivateUsage]
            == self._runner.engine.url
            and backend.table.fullname == self.table.fullname
        )

    def read(self, key: str) -> dict[str, t.Any] | None:
        """Return what the session held. One ``SELECT``."""
        columns = self.table.c
        statement = sa.select(columns.data, columns.expiry).where(
            columns.session_id == sa.bindparam("key_")
        )
        rows = self._ask("load", statement, {"key_": key})
        if not rows or not self._is_live(rows[0].expiry):
            return None
        return decode(bytes(rows[0].data or b""))

    def remove(self, key: str) -> None:
        """Remove the session. One ``DELETE``."""
        statement = self.table.delete().where(
            self.table.c.session_id == sa.bindparam("key_")
        )
        self._ask("delete", statement, {"key_": key})

    def sample(
        self, limit: int
    ) -> cabc.Iterator[dict[str, t.Any] | RecordError | None]:
        """Return what some of the sessions held. One ``SELECT``."""
        columns = self.table.c
        statement = (
            sa.select(columns.data, columns.expiry)
            .where(columns.session_id.startswith(self._prefix, autoescape=True))
            .limit(limit)
        )
        for row in self._ask("iterate", statement, {}):
            try:
                is_live = self._is_live(row.expiry)
                yield decode(bytes(row.data or b"")) if is_live else None
            except RecordError as error:
                yield error

    def _is_live(self, expiry: dt.datetime | None) -> bool:
        # In UTC, although the column does not say so.
        return (
            expiry is not None
            and expiry.replace(tzinfo=dt.timezone.utc).timestamp() > self._clock()
        )

    def _ask(
        self, operation: str, statement: sa.Executable, parameters: dict[str, t.Any]
    ) -> t.Sequence[t.Any]:
        try:
            return self._runner.run(operation, statement, parameters).rows
        except BackendUnavailableError as error:
            cause = error.__cause__
            if not isinstance(cause, exc.SQLAlchemyError) or not (
                is_table_missing(cause) or is_column_missing(cause)
            ):
                raise
            raise BackendUnavailableError(
                f"Flask-Session's table {self.table.fullname!r} is not there, or has"
                " other columns. 'SESSION_MIGRATE_TABLE' names it, and"
                " 'SESSION_SQLALCHEMY_SCHEMA' and 'SESSION_SQLALCHEMY_BIND_KEY' say"
                " where it is.",
                backend="sqlalchemy",
                operation=operation,
                refused=True,
            ) from forget_frames(error)
