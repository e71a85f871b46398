"""The table that holds the records."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

# In characters. MySQL's indexes hold 3072 bytes, four for each character.
NAME_LENGTH = 255

_COLUMNS = (
    *("key", "data", "version", "created_at", "touched_at", "expires_at", "user"),
    "meta",
)
# Where Table.info says that a table is one of ours.
_MARK = "flask_serversession"


def define_table(metadata: sa.MetaData, name: str, schema: str | None) -> sa.Table:
    """Return the table for the sessions, defined in the metadata once.

    :raises ValueError: if the metadata has another table of that name.
    """
    full_schema = metadata.schema if schema is None else schema
    full_name = f"{full_schema}.{name}" if full_schema else name
    table = metadata.tables.get(full_name)
    if table is not None:
        if _MARK in table.info:
            return table
        if table.c.keys() == list(_COLUMNS):
            # Reflected from the database. The metadata may keep it; but its types are
            # the driver's guess, so the statements are made with another one.
            return define_table(sa.MetaData(schema=metadata.schema), name, schema)
        raise ValueError(
            f"The metadata has another table {full_name!r}. Choose another name for"
            " that of the sessions."
        )
    # Only types of SQLAlchemy's own, so that migrations need not import this module.
    # "C" orders by bytes and, unlike locales, never changes with the system.
    text = (
        sa.String(NAME_LENGTH)
        .with_variant(sa.String(NAME_LENGTH, collation="C"), "postgresql")
        .with_variant(
            mysql.VARCHAR(NAME_LENGTH, charset="utf8mb4", collation="utf8mb4_bin"),
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
        # The only format whose indexes hold the key, whatever the server's default is.
        mysql_row_format="DYNAMIC",
        mariadb_row_format="DYNAMIC",
    )
