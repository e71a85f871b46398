"""What the errors of databases mean, by what each driver raises; without any server."""

from __future__ import annotations

import sqlite3
import types
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from flask_serversession.backends.sqlalchemy import problems
from flask_serversession.backends.sqlalchemy.codes import codes_of
from flask_serversession.backends.sqlalchemy.codes import is_demoted
from flask_serversession.backends.sqlalchemy.codes import was_too_large
from flask_serversession.backends.sqlalchemy.codes import words_of
from flask_serversession.backends.sqlalchemy.table import define_table
from flask_serversession.errors import BackendUnavailableError

TABLE = define_table(sa.MetaData(), "server_sessions", None)


POSTGRESQL = sa.create_engine("postgresql+psycopg://user:SECRET@host:5433/shop")
SQLITE = sa.create_engine("sqlite:///shop.db")


class DriverError(Exception):
    """A driver's error, with whatever attributes that driver gives it."""

    def __init__(self, *args: object, **attributes: object) -> None:
        super().__init__(*args)
        vars(self).update(attributes)


def wrapped(
    error: Exception,
    kind: type[exc.DBAPIError] = exc.OperationalError,
    *,
    statement: str | None = "SELECT",
    parameters: t.Any = None,
    is_lost: bool = False,
) -> exc.DBAPIError:
    return kind(statement, parameters, error, connection_invalidated=is_lost)


def psycopg(code: str, words: str = "") -> DriverError:
    diagnostics = types.SimpleNamespace(message_primary=words or None)
    return DriverError(f"{words}\nDETAIL: SECRET", sqlstate=code, diag=diagnostics)


# Codes and words


@pytest.mark.parametrize(
    ("error", "codes"),
    [
        (DriverError("SECRET", sqlstate="25006"), ["25006"]),
        (DriverError("SECRET", pgcode="40001", sqlstate=None), ["40001"]),
        (DriverError(1213, "deadlock"), [1213]),
        (DriverError(1290, "read-only", errno=1290, sqlstate="HY000"), ["HY000", 1290]),
        (DriverError({"C": "42P01", "M": "no table"}), ["42P01"]),
        (DriverError({"M": "no table"}), []),
        (DriverError("locked", sqlite_errorname="SQLITE_BUSY"), ["SQLITE_BUSY"]),
        (DriverError("SECRET", sqlstate=("SECRET",)), []),
        (DriverError(), []),
        (object(), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_driver_has_a_place_for_codes(error: t.Any, codes: list[object]) -> None:
    assert [*codes_of(error)] == codes
    if isinstance(error, Exception):
        assert [*codes_of(wrapped(error))] == codes


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DriverError("too  many\n clients."), "too many clients"),
        (psycopg("42P01", "no such relation"), "no such relation"),
        (psycopg("42P01"), "DETAIL: SECRET"),
        (DriverError({"C": "42P01", "M": "no table"}), "no table"),
        (DriverError({"C": "42P01"}), ""),
        (DriverError(1146, "no table"), "no table"),
        (DriverError(1064, "near 'SECRET'"), ""),
        (DriverError(1146), "1146"),
        (DriverError(), ""),
        (DriverError("x" * 301), "x" * 300),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_words_are_the_databases(error: Exception, words: str) -> None:
    assert words_of(wrapped(error)) == words


def test_the_words_have_no_values() -> None:
    error = DriverError("key (SECRET) is wrong")
    assert words_of(wrapped(error, exc.DataError)) == ""
    assert words_of(wrapped(error, exc.IntegrityError)) == ""
    assert words_of(wrapped(error, parameters=("a", 5, "SECRET"))) == ""
    assert words_of(wrapped(error, parameters={"user_": "SECRET"})) == ""
    assert words_of(wrapped(error, parameters={"user_": "", "n": 5})) == str(error)
    assert words_of(wrapped(error, parameters=("other", 5))) == str(error)


@pytest.mark.parametrize("code", ["25006", 1290, 1792, 1836])
def test_a_server_that_is_read_only_was_demoted(code: str | int) -> None:
    assert is_demoted(DriverError("read-only", errno=code))
    assert not is_demoted(DriverError("read-only", errno=1146))


def test_mysql_says_that_it_was_sent_too_much() -> None:
    assert was_too_large(DriverError(1153, "packet"))
    assert not was_too_large(DriverError(1154, "packet"))


# What they mean


@pytest.mark.parametrize(
    ("code", "ask"),
    [
        ("40001", problems.is_worth_a_retry),
        ("40P01", problems.is_worth_a_retry),
        (1213, problems.is_worth_a_retry),
        (1020, problems.is_worth_a_retry),
        ("0A000", problems.is_worth_a_retry),
        ("0A000", problems.is_plan_stale),
        ("42P01", problems.is_table_missing),
        (1146, problems.is_table_missing),
        ("42703", problems.is_column_missing),
        (1054, problems.is_column_missing),
        (1072, problems.is_column_missing),
        ("42P07", problems.is_there_already),
        ("42710", problems.is_there_already),
        ("23505", problems.is_there_already),
        (1050, problems.is_there_already),
        (1061, problems.is_there_already),
    ],
)
def test_a_code_says_what_it_is(code: str | int, ask: t.Any) -> None:
    assert ask(wrapped(DriverError("words", errno=code)))
    assert not ask(wrapped(DriverError("words", errno=9999)))
    assert not ask(exc.TimeoutError("words"))


@pytest.mark.parametrize(
    ("words", "ask"),
    [
        ("no such table: s", problems.is_table_missing),
        ("no such column: user", problems.is_column_missing),
        ("table s has no column named user", problems.is_column_missing),
        ("index s already exists", problems.is_there_already),
        ("Could not decode to UTF-8 column", problems.is_undecodable),
    ],
)
def test_sqlite_says_it_in_words(words: str, ask: t.Any) -> None:
    assert ask(wrapped(sqlite3.OperationalError(words)))
    assert not ask(wrapped(sqlite3.OperationalError("something else")))
    assert not ask(exc.TimeoutError(words))


def test_a_lost_connection_is_worth_a_retry_unless_it_was_waited_for() -> None:
    lost = wrapped(DriverError("server closed the connection"), is_lost=True)
    assert problems.is_worth_a_retry(lost)
    for words in ("it timed out", "timeout expired"):
        overdue = wrapped(DriverError(words), is_lost=True)
        assert not problems.is_worth_a_retry(overdue)
    assert not problems.is_worth_a_retry(exc.TimeoutError("pool"))


@pytest.mark.parametrize("code", [1153, 2006, 2013, 2055])
def test_the_size_of_what_was_perhaps_too_large(code: int) -> None:
    error = DriverError(code, "words")
    size = problems.size_if_too_large
    assert size(wrapped(error, parameters={"data_": b"12345"})) == 5
    assert size(wrapped(error, parameters={"data_": bytearray(6)})) == 6
    assert size(wrapped(error, parameters={"data_": "12345"})) == 0
    assert size(wrapped(error, parameters={"key_": b"12345"})) == 0
    assert size(wrapped(error, parameters=(b"12345",))) == 0
    assert size(wrapped(DriverError(1), parameters={"data_": b"12345"})) == 0
    assert size(exc.TimeoutError("pool")) == 0


# What is said of them


START = "The 'sqlalchemy' backend could not 'load': "
WHERE = "the postgresql database 'shop' at host:5433"
DOWN = f"{START}{WHERE} cannot be reached or refused to work (DriverError"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            wrapped(DriverError("gone.", sqlstate="57P01")),
            f"{DOWN} 57P01: gone).",
        ),
        (
            wrapped(DriverError("gone"), exc.ProgrammingError, is_lost=True),
            f"{DOWN}: gone).",
        ),
        (wrapped(DriverError(), exc.InterfaceError), f"{DOWN})."),
        (
            wrapped(psycopg("26000", "lost")),
            f"{START}{WHERE} lost a prepared statement (DriverError 26000: lost), as"
            " poolers in transaction mode do. Make the engine with"
            " connect_args={'prepare_threshold': None}.",
        ),
        (
            wrapped(psycopg("42P05", "lost")),
            f"{START}{WHERE} lost a prepared statement (DriverError 42P05: lost), as"
            " poolers in transaction mode do. Make the engine with"
            " connect_args={'prepare_threshold': None}.",
        ),
        (
            wrapped(DriverError("waiting for the answer timed out"), is_lost=True),
            f"{START}{WHERE} did not answer in time (DriverError: waiting for the"
            " answer timed out).",
        ),
        *(
            (
                wrapped(DriverError("denied", errno=code)),
                f"{START}{WHERE} does not permit it (DriverError {code}: denied). Grant"
                " SELECT, INSERT, UPDATE and DELETE on the table 'server_sessions' to"
                " the user of the URL.",
            )
            for code in ("42501", 1142, 1143)
        ),
        *(
            (
                wrapped(DriverError("words"), kind),
                f"{START}{WHERE} does not accept the statement (DriverError{words})."
                " Does the table 'server_sessions' have the expected types of columns?",
            )
            for kind, words in (
                (exc.ProgrammingError, ": words"),
                (exc.NotSupportedError, ": words"),
                (exc.DataError, ""),
                (exc.IntegrityError, ""),
            )
        ),
        *(
            (
                wrapped(sqlite3.OperationalError(f"{words}x")),
                f"{START}{WHERE} does not accept the statement (OperationalError:"
                f" {words}x). Does the table 'server_sessions' have the expected types"
                " of columns?",
            )
            for words in ("no such ", "near ", "table ", "unknown database")
        ),
        (
            exc.NoSuchModuleError("words"),
            f"{START}{WHERE} does not accept the statement (NoSuchModuleError). Does"
            " the table 'server_sessions' have the expected types of columns?",
        ),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_each_cause_has_its_sentence(error: exc.SQLAlchemyError, text: str) -> None:
    failure = problems.explain(error, "load", POSTGRESQL, TABLE)
    assert str(failure) == text
    assert isinstance(failure, BackendUnavailableError)
    assert (failure.backend, failure.operation) == ("sqlalchemy", "load")


def test_who_may_not_create_the_table_is_told_who_may() -> None:
    error = wrapped(DriverError("denied", sqlstate="42501"))
    text = str(problems.explain(error, "create_tables", POSTGRESQL, TABLE))
    assert text.endswith(
        '(DriverError 42501: denied). Run "flask sessions init" as a user who may'
        " create tables."
    )


def test_a_pool_that_is_used_up_is_named() -> None:
    error = exc.TimeoutError("QueuePool limit")
    text = str(problems.explain(error, "load", POSTGRESQL, TABLE))
    assert text == (
        f"The 'sqlalchemy' backend got no connection to {WHERE} for 'load': all of the"
        f" pool of sessions are in use ({POSTGRESQL.pool.status()})."
    )


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (wrapped(psycopg("53100", "disk full")), True),
        (wrapped(DriverError(1021, "Disk full")), True),
        (wrapped(DriverError(1114, "The table is full")), True),
        (wrapped(sqlite3.OperationalError("database or disk is full")), True),
        (wrapped(sqlite3.OperationalError("database is locked")), False),
        (wrapped(psycopg("25006", "read-only")), False),
        (exc.TimeoutError("pool"), False),
    ],
    ids=str,
)
def test_a_database_that_is_full_is_told(
    error: exc.SQLAlchemyError, is_full: bool
) -> None:
    assert problems.explain(error, "create", SQLITE, TABLE).full is is_full


def test_a_lock_of_sqlite_is_named() -> None:
    error = wrapped(sqlite3.OperationalError("database is locked"))
    failure = problems.explain(error, "replace", SQLITE, TABLE)
    assert isinstance(failure, BackendUnavailableError)
    assert str(failure) == (
        "The 'sqlalchemy' backend could not 'replace': another writer held the lock on"
        " the sqlite database 'shop.db'. If that is a transaction of this application,"
        " end it before the session is saved, or keep the sessions in a database of"
        " their own."
    )
    # Where there is no such lock, these words mean something else.
    assert "reached" in str(problems.explain(error, "load", POSTGRESQL, TABLE))
    other = wrapped(sqlite3.DatabaseError("is locked"), exc.DatabaseError)
    assert "reached" in str(problems.explain(other, "load", SQLITE, TABLE))


@pytest.mark.parametrize(
    "words", ["unable to open database file", "attempt to write a readonly database"]
)
def test_a_file_that_may_not_be_used_has_a_remedy(words: str) -> None:
    error = wrapped(sqlite3.OperationalError(words))
    assert str(problems.explain(error, "load", SQLITE, TABLE)).endswith(
        f": {words}). Let the user who runs this write to that file and to its folder."
    )


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (wrapped(DriverError("full")), True),
        (wrapped(DriverError("down"), statement=None), False),
        (wrapped(DriverError(1045, "Access denied"), statement=None), True),
        (wrapped(DriverError(1049, "Unknown database"), statement=None), True),
        (wrapped(DriverError({"C": "28P01"}), statement=None), True),
        *(
            (wrapped(DriverError(f"failed: FATAL:  {words}"), statement=None), told)
            for words, told in (
                ('password authentication failed for user "me"', True),
                ('role "me" does not exist', True),
                ('database "shop" does not exist', True),
                ('no pg_hba.conf entry for host "here"', True),
                ("the database system is starting up", False),
                ("sorry, too many clients already", False),
            )
        ),
        (wrapped(DriverError("lost"), is_lost=True), False),
        (wrapped(DriverError("demoted", sqlstate="25006"), is_lost=True), True),
        (wrapped(DriverError("it timed out")), False),
        (exc.TimeoutError("pool"), False),
    ],
    ids=str,
)
def test_what_a_server_refuses_is_an_answer(
    error: exc.SQLAlchemyError, is_refusal: bool
) -> None:
    failure = problems.explain(error, "load", POSTGRESQL, TABLE)
    assert t.cast("t.Any", failure).refused is is_refusal
    # Nobody waits for SQLite, which is on the same machine.
    of_sqlite = problems.explain(error, "load", SQLITE, TABLE)
    assert t.cast("t.Any", of_sqlite).refused is True


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("sqlite://", "the sqlite database ''"),
        ("sqlite:///a/b.db", "the sqlite database 'a/b.db'"),
        (
            "postgresql+psycopg://u:p@host/db",
            "the postgresql database 'db' at host",
        ),
    ],
)
def test_where_a_database_is(url: str, where: str) -> None:
    assert problems.locate(sa.create_engine(url)) == where


def test_a_table_that_is_not_ours_is_named() -> None:
    error = problems.other_table("load", SQLITE, TABLE, ["id", "name"])
    assert str(error) == (
        "The table 'server_sessions' in the sqlite database 'shop.db' is not one of"
        " this library's: it has the columns 'id', 'name'. Choose another name in"
        " 'SESSION_SQLALCHEMY_TABLE', or rename that table."
    )
    assert (error.backend, error.operation) == ("sqlalchemy", "load")
    missing = problems.missing_table(TABLE, "load")
    assert str(missing) == (
        "The table 'server_sessions' does not exist; run \"flask sessions init\" or add"
        " it by a migration."
    )
    assert (missing.backend, missing.operation) == ("sqlalchemy", "load")
