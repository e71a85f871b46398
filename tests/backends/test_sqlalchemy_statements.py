"""The table and the statements as each database gets them; without any server."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.schema import CreateTable

from flask_serversession.backends.sqlalchemy.statements import Statements
from flask_serversession.backends.sqlalchemy.table import define_table

PREFIX = "session:"
SQLITE: t.Any = sqlite.dialect()  # type: ignore[no-untyped-call]
POSTGRESQL: t.Any = psycopg.dialect()  # type: ignore[no-untyped-call]
MYSQL: t.Any = mysql.dialect()  # type: ignore[no-untyped-call]
MARIADB: t.Any = mysql.dialect()  # type: ignore[no-untyped-call]
MARIADB.name = "mariadb"


def make_table(metadata: sa.MetaData | None = None) -> sa.Table:
    return define_table(metadata or sa.MetaData(), "s", None)


def text_of(statement: t.Any, dialect: t.Any) -> str:
    return " ".join(str(statement.compile(dialect=dialect)).split())


def test_the_table_is_made_of_types_that_hold_enough_and_compare_bytes() -> None:
    def columns(text: str, number: str, data: str, meta: str, quotes: str) -> str:
        key = f"{quotes[0]}key{quotes[0]}"
        user = f"{quotes[1:]}user{quotes[1:]}"
        return (
            f"CREATE TABLE s ( {key} {text} NOT NULL, data {data} NOT NULL, version"
            f" BIGINT NOT NULL, created_at {number} NOT NULL, touched_at {number} NOT"
            f" NULL, expires_at {number} NOT NULL, {user} {text}, meta {meta} NOT NULL,"
            f" PRIMARY KEY ({key}) )"
        )

    table = make_table()
    assert text_of(CreateTable(table), SQLITE) == columns(
        "VARCHAR(255)", "DOUBLE", "BLOB", "TEXT", '"'
    )
    assert text_of(CreateTable(table), MYSQL) == (
        columns(
            "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            *("DOUBLE", "LONGBLOB", "MEDIUMTEXT", "`"),
        )
        + "ENGINE=InnoDB ROW_FORMAT=DYNAMIC"
    )
    made = text_of(CreateTable(table), POSTGRESQL)
    assert made.startswith('CREATE TABLE s ( key VARCHAR(255) COLLATE "C" NOT NULL')
    assert '"user" VARCHAR(255) COLLATE "C", ' in made
    assert "expires_at DOUBLE PRECISION NOT NULL" in made
    options = table.dialect_options["mariadb"]
    assert (options["engine"], options["row_format"]) == ("InnoDB", "DYNAMIC")
    assert {tuple(index.columns.keys()) for index in table.indexes} == {
        ("user",),
        ("expires_at",),
    }


def test_a_metadata_has_one_table() -> None:
    metadata = sa.MetaData(schema="of_metadata")
    table = define_table(metadata, "s", None)
    assert table.fullname == "of_metadata.s"
    assert define_table(metadata, "s", None) is table
    assert define_table(metadata, "s", "other").fullname == "other.s"
    sa.Table("t", metadata, sa.Column("id", sa.Integer))
    with pytest.raises(ValueError, match="another table") as info:
        define_table(metadata, "t", None)
    assert str(info.value) == (
        "The metadata has another table 'of_metadata.t'. Choose another name for that"
        " of the sessions."
    )


def test_a_reflected_table_is_defined_beside_its_metadata() -> None:
    metadata = sa.MetaData(schema="of_metadata")
    columns = [sa.Column(column.name, sa.Text) for column in make_table().c]
    reflected = sa.Table("s", metadata, *columns)
    table = define_table(metadata, "s", None)
    assert table is not reflected
    assert table.fullname == "of_metadata.s"
    assert isinstance(table.c["version"].type, sa.BigInteger)


PRUNE = {
    SQLITE: 'DELETE FROM s WHERE s."key" IN (SELECT s."key" FROM s WHERE s.expires_at'
    " <= ? ORDER BY s.expires_at LIMIT ? OFFSET ?)",
    POSTGRESQL: "WITH expired AS (SELECT s.key AS key FROM s WHERE s.expires_at <="
    " %(now)s ORDER BY s.expires_at LIMIT %(limit)s::INTEGER FOR UPDATE SKIP LOCKED)"
    " DELETE FROM s WHERE s.key IN (SELECT expired.key FROM expired)",
    MYSQL: "DELETE FROM s WHERE expires_at <= %s ORDER BY expires_at LIMIT %s",
    MARIADB: "DELETE FROM s WHERE expires_at <= %s ORDER BY expires_at LIMIT %s",
}


@pytest.mark.parametrize("dialect", PRUNE, ids=["sqlite", "postgres", "mysql", "maria"])
def test_each_database_prunes_in_its_own_way(dialect: t.Any) -> None:
    statements = Statements(make_table(), dialect, PREFIX)
    assert text_of(statements.prune, dialect) == PRUNE[dialect]


@pytest.mark.parametrize(
    ("dialect", "function"),
    [
        (SQLITE, "length"),
        (POSTGRESQL, "length"),
        (MYSQL, "char_length"),
        (MARIADB, "char_length"),
    ],
    ids=["sqlite", "postgres", "mysql", "maria"],
)
@pytest.mark.parametrize("name", ["keys_of_user", "page", "count"])
def test_the_length_of_a_key_is_in_characters(
    dialect: t.Any, function: str, name: str
) -> None:
    statement = getattr(Statements(make_table(), dialect, PREFIX), name)
    compiled = statement.compile(dialect=dialect)
    assert f" AND {function}(s." in str(compiled)
    assert {1, len(PREFIX), PREFIX, len(PREFIX) + 64} <= {*compiled.params.values()}
    everyones = getattr(Statements(make_table(), dialect, None), name)
    assert "substr(s.key" not in text_of(everyones, dialect).replace('"', "")


def test_a_replace_leaves_the_key_alone() -> None:
    statements = Statements(make_table(), SQLITE, PREFIX)
    assert text_of(statements.replace, SQLITE).startswith(
        "UPDATE s SET data=?, version=?, created_at=?, touched_at=?, expires_at=?,"
        ' user=?, meta=? WHERE s."key" = ? AND s.version = ? AND s.expires_at > ?'
    )


LIVE = 's."key" = ? AND s.expires_at > ?'


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("load", f"SELECT {{columns}} FROM s WHERE {LIVE}"),
        (
            "newer",
            "SELECT coalesce(substr(s.data, ?, ?), ?) AS head FROM s WHERE"
            f" {LIVE} AND coalesce(substr(s.data, ?, ?), ?) BETWEEN ? AND ?",
        ),
        ("delete", f"DELETE FROM s WHERE {LIVE} AND NOT (length(s.data) = ? AND"),
        (
            "touch",
            "UPDATE s SET touched_at=?, expires_at=CASE WHEN (? > ? AND s.expires_at >"
            f" ?) THEN s.expires_at ELSE ? END WHERE {LIVE} AND coalesce(",
        ),
        ("delete_expired", 'DELETE FROM s WHERE s."key" = ? AND s.expires_at <= ?'),
    ],
)
def test_a_statement_is_about_one_record(name: str, start: str) -> None:
    columns = (
        "s.data AS data, s.version, s.created_at, s.touched_at, s.expires_at, s.user,"
        " s.meta"
    )
    statement: t.Any = getattr(Statements(make_table(), SQLITE, PREFIX), name)
    assert text_of(statement, SQLITE).startswith(start.format(columns=columns))
    now = statement.compile(dialect=SQLITE).binds["now"]
    assert isinstance(now.type, sa.Double)


def test_what_requests_need_goes_to_the_driver_directly() -> None:
    statements = Statements(make_table(), SQLITE, PREFIX)
    assert statements.frequent == {
        statements.load,
        statements.insert,
        statements.replace,
        statements.delete,
    }
