"""What the errors of databases mean: codes, and the sentences that are raised."""

from __future__ import annotations

import re
import typing as t

import sqlalchemy as sa
from sqlalchemy import exc

from ...errors import BackendUnavailableError
from .codes import codes_of
from .codes import is_demoted
from .codes import words_of
from .engines import has_lock

# serialization_failure and deadlock_detected; MySQL's deadlock, and MariaDB's
# "record has changed since last read". The engine has undone the statement.
_UNDONE = frozenset({"40001", "40P01", 1213, 1020})
# PostgreSQL's invalid_sql_statement_name and duplicate_prepared_statement.
_UNPREPARED = frozenset({"26000", "42P05"})
# PostgreSQL's feature_not_supported, here: "cached plan must not change result type".
STALE_PLAN = "0A000"
_TABLE_MISSING = frozenset({"42P01", 1146})
# PostgreSQL's duplicate_table, duplicate_object and unique_violation; MySQL's
# existing table and duplicate index.
_THERE_ALREADY = frozenset({"42P07", "42710", "23505", 1050, 1061})
# PostgreSQL's undefined_column, and MySQL's unknown columns. SQLite has no code for it.
_COLUMN_MISSING = frozenset({"42703", 1054, 1072})
# PostgreSQL's insufficient_privilege; those of MySQL on a table and a column.
_NOT_PERMITTED = frozenset({"42501", 1142, 1143})
# What drivers of MySQL call operational.
_REFUSED = _COLUMN_MISSING | _NOT_PERMITTED
# MySQL's "packet bigger than max_allowed_packet", and what clients make of it: the
# server closes the connection.
_TOO_LARGE = frozenset({1153, 2006, 2013, 2055})
# PostgreSQL's disk_full; MySQL's full disk and full table. SQLite says it in words.
_FULL = frozenset({"53100", 1021, 1114})
_SQLITE_FULL = "database or disk is full"
# PostgreSQL's invalid_password, invalid_authorization_specification and
# invalid_catalog_name; MySQL's denied access, and its unknown database.
_NO_LOG_IN = frozenset({"28P01", "28000", "3D000", 1044, 1045, 1698, 1049})
# libpq has no code for them.
_NO_LOG_IN_IN_WORDS = re.compile(
    r"authentication failed|(role|database) .* does not exist|no pg_hba\.conf entry"
)
# How SQLite, which has no class of its own for them, describes wrong statements.
_SQLITE_REFUSED = ("no such", "near ", "table ", "unknown database")

# What SQLite says of a file that may not be read or written.
_SQLITE_NOT_PERMITTED = ("unable to open database", "attempt to write a readonly")


def explain(
    error: exc.SQLAlchemyError, operation: str, engine: sa.Engine, table: sa.Table
) -> BackendUnavailableError:
    """Return our exception for one of SQLAlchemy's, whose own text may hold values."""
    return BackendUnavailableError(
        _describe(error, operation, engine, table),
        backend="sqlalchemy",
        operation=operation,
        refused=_is_refusal(error, engine),
        full=_is_full(error),
    )


def _describe(
    error: exc.SQLAlchemyError, operation: str, engine: sa.Engine, table: sa.Table
) -> str:
    where = locate(engine)
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    what = " ".join([type(cause).__name__, *map(str, codes_of(error))])
    if isinstance(error, exc.DBAPIError) and (words := words_of(error)):
        what += f": {words}"
    if isinstance(error, exc.TimeoutError):
        return (
            f"The 'sqlalchemy' backend got no connection to {where} for"
            f" {operation!r}: all of the pool of sessions are in use"
            f" ({t.cast('t.Any', engine.pool).status()})."
        )
    if has_lock(engine) and _is_locked(error):
        return (
            f"The 'sqlalchemy' backend could not {operation!r}: another writer"
            f" held the lock on {where}. If that is a transaction of this"
            " application, end it before the session is saved, or keep the"
            " sessions in a database of their own."
        )
    if _has_code(error, _UNPREPARED):
        return (
            f"The 'sqlalchemy' backend could not {operation!r}: {where} lost a"
            f" prepared statement ({what}), as poolers in transaction mode do."
            " Make the engine with connect_args={'prepare_threshold': None}."
        )
    if _is_overdue(error):
        return (
            f"The 'sqlalchemy' backend could not {operation!r}: {where} did not answer"
            f" in time ({what})."
        )
    if _is_unavailable(error):
        return (
            f"The 'sqlalchemy' backend could not {operation!r}: {where} cannot be"
            f" reached or refused to work ({what}).{_remedy_of(error)}"
        )
    if _has_code(error, _NOT_PERMITTED):
        remedy = (
            'Run "flask sessions init" as a user who may create tables.'
            if operation == "create_tables"
            else "Grant SELECT, INSERT, UPDATE and DELETE on the table"
            f" {table.fullname!r} to the user of the URL."
        )
        return (
            f"The 'sqlalchemy' backend could not {operation!r}: {where} does not permit"
            f" it ({what}). {remedy}"
        )
    return (
        f"The 'sqlalchemy' backend could not {operation!r}: {where} does not accept"
        f" the statement ({what}). Does the table"
        f" {table.fullname!r} have the expected types of columns?"
    )


def _remedy_of(error: exc.SQLAlchemyError) -> str:
    """Return what to do about a file of SQLite's that may not be used."""
    text = str(error.orig) if isinstance(error, exc.DBAPIError) else ""
    if not text.startswith(_SQLITE_NOT_PERMITTED):
        return ""
    return " Let the user who runs this write to that file and to its folder."


def _is_refusal(error: exc.SQLAlchemyError, engine: sa.Engine) -> bool:
    """Return whether the engine has answered, and refused to carry a statement out."""
    if engine.dialect.name == "sqlite":
        return True  # nobody waits for another machine
    if not isinstance(error, exc.DBAPIError):
        return False
    if not error.statement:  # there was no connection
        is_told = _NO_LOG_IN_IN_WORDS.search(str(error.orig)) is not None
        return is_told or _has_code(error, _NO_LOG_IN)
    is_lost = error.connection_invalidated and not is_demoted(error)
    return not is_lost and not _is_overdue(error)


def _is_full(error: exc.SQLAlchemyError) -> bool:
    return isinstance(error, exc.DBAPIError) and (
        _has_code(error, _FULL) or str(error.orig).startswith(_SQLITE_FULL)
    )


def locate(engine: sa.Engine) -> str:
    """Return which database an engine is for, and where; without a password."""
    url = engine.url
    where = f"the {engine.dialect.name} database {url.database or ''!r}"
    if url.host:
        where += f" at {url.host}" + (f":{url.port}" if url.port else "")
    return where


def other_table(
    operation: str, engine: sa.Engine, table: sa.Table, columns: t.Iterable[str]
) -> BackendUnavailableError:
    """Return the error about a table of our name that somebody else has made.

    :param columns: Those that it has.
    """
    return BackendUnavailableError(
        f"The table {table.fullname!r} in {locate(engine)} is not one of this"
        f" library's: it has the columns {', '.join(map(repr, columns))}. Choose"
        " another name in 'SESSION_SQLALCHEMY_TABLE', or rename that table.",
        backend="sqlalchemy",
        operation=operation,
        refused=True,
    )


def missing_table(table: sa.Table, operation: str) -> BackendUnavailableError:
    """Return the error about a table that is not ours to create."""
    return BackendUnavailableError(
        f"The table {table.fullname!r} does not exist; run"
        ' "flask sessions init" or add it by a migration.',
        backend="sqlalchemy",
        operation=operation,
        refused=True,
    )


def _has_code(error: exc.SQLAlchemyError, codes: frozenset[object]) -> bool:
    return not codes.isdisjoint(codes_of(error))


def is_plan_stale(error: exc.SQLAlchemyError) -> bool:
    """Return whether what the connection has prepared is for an older table."""
    return STALE_PLAN in codes_of(error)


def is_worth_a_retry(error: exc.SQLAlchemyError) -> bool:
    """Return whether the same statement may succeed now, on another connection."""
    if not isinstance(error, exc.DBAPIError):
        return False
    if error.connection_invalidated:
        # After a time-out, don't wait a second time.
        return not _is_overdue(error)
    return _has_code(error, _UNDONE) or is_plan_stale(error)


def _is_overdue(error: exc.SQLAlchemyError) -> bool:
    # The words of PyMySQL, psycopg and libpq, and of engines.py.
    text = str(error.orig) if isinstance(error, exc.OperationalError) else ""
    return "timed out" in text or "timeout expired" in text


def _is_unavailable(error: exc.SQLAlchemyError) -> bool:
    if not isinstance(error, exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if _has_code(error, _REFUSED) or str(error.orig).startswith(_SQLITE_REFUSED):
        return False
    # The rest is operational: refused, too many, full, read-only, corrupt.
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


def is_undecodable(error: exc.SQLAlchemyError) -> bool:
    """Return whether Python's module for SQLite could not decode a damaged text."""
    return isinstance(error, exc.OperationalError) and str(error.orig).startswith(
        "Could not decode to UTF-8"
    )


def is_table_missing(error: exc.SQLAlchemyError) -> bool:
    """Return whether a statement failed because there is no such table."""
    return isinstance(error, exc.DBAPIError) and (
        _has_code(error, _TABLE_MISSING) or str(error.orig).startswith("no such table")
    )


def is_column_missing(error: exc.SQLAlchemyError) -> bool:
    """Return whether a statement failed because the table has no such column."""
    if not isinstance(error, exc.DBAPIError):
        return False
    return _has_code(error, _COLUMN_MISSING) or bool(
        re.search("no such column|has no column named", str(error.orig))
    )


def size_if_too_large(error: exc.SQLAlchemyError) -> int:
    """Return the size of the data that the server has perhaps refused; 0 if none."""
    if not isinstance(error, exc.DBAPIError) or not _has_code(error, _TOO_LARGE):
        return 0
    parameters = t.cast("dict[str, t.Any]", error.params)
    data = parameters.get("data_") if isinstance(error.params, dict) else None
    return len(data) if isinstance(data, (bytes, bytearray)) else 0


def is_there_already(error: exc.SQLAlchemyError) -> bool:
    """Return whether a table or an index could not be created because it exists."""
    return isinstance(error, exc.DBAPIError) and (
        _has_code(error, _THERE_ALREADY) or "already exists" in str(error.orig)
    )
