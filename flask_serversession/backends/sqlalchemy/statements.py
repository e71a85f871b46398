"""The statements, each made once for a table."""

from __future__ import annotations

import sqlalchemy as sa

from ...record import FORMAT
from ...record import MAGIC
from ...record import TOMBSTONE_DATA
from ...record import frame

#: How many records one page has.
PAGE = 100
#: The data of a tombstone, as it is stored.
TOMBSTONE = frame(TOMBSTONE_DATA)

# The first two bytes of framed data: magic byte and format.
_HEAD_OLDEST = bytes([MAGIC, 1])
_HEAD_KNOWN = bytes([MAGIC, FORMAT])
_HEAD_NEWER = bytes([MAGIC, FORMAT + 1])
_HEAD_NEWEST = bytes([MAGIC, 255])

# The columns of a record without its key and its data, in the order that rows.py reads.
_RECORD_COLUMNS = ("version", "created_at", "touched_at", "expires_at", "user", "meta")


class _Terms:
    """What the statements consist of.

    A parameter is called like its column, with a ``_`` after it.
    """

    def __init__(
        self, table: sa.Table, dialect: sa.Dialect, prefix: str | None
    ) -> None:
        columns = table.c
        self.key, self.user = columns["key"], columns["user"]
        self.expires_at, data = columns["expires_at"], columns["data"]
        self.now = sa.bindparam("now", type_=sa.Double[float]())
        self.values = {
            column.name: sa.bindparam(f"{column.name}_", type_=column.type)
            for column in columns
        }
        self.is_this = self.key == self.values["key"]
        self.is_live = self.expires_at > self.now
        # Of no data, SQLite's is NULL, which is neither known nor unknown.
        head = sa.func.coalesce(
            sa.func.substr(data, 1, 2), _bytes(b""), type_=sa.LargeBinary()
        )
        self.is_known = head.between(_bytes(_HEAD_OLDEST), _bytes(_HEAD_KNOWN))
        self.is_newer = head.between(_bytes(_HEAD_NEWER), _bytes(_HEAD_NEWEST))
        # The length first: SQLite and PostgreSQL know it without reading the data.
        self.is_no_tombstone = sa.not_(
            sa.and_(sa.func.length(data) == len(TOMBSTONE), data == _bytes(TOMBSTONE))
        )
        self.is_ours = (
            sa.true() if prefix is None else _is_own(self.key, prefix, dialect)
        )
        # As the driver returns them: SQLite may hold a text where somebody damaged it.
        self.head = sa.type_coerce(head, sa.types.NullType()).label("head")
        raw_data = sa.type_coerce(data, sa.types.NullType()).label("data")
        self.record = [raw_data, *(columns[name] for name in _RECORD_COLUMNS)]


class Statements:
    """All statements, made once, so that SQLAlchemy compiles each of them once.

    :param prefix: That of the application whose records are listed and counted.
    """

    def __init__(
        self, table: sa.Table, dialect: sa.Dialect, prefix: str | None
    ) -> None:
        terms = _Terms(table, dialect, prefix)
        values, is_this, is_live = terms.values, terms.is_this, terms.is_live
        self.find = sa.select(*terms.record).where(is_this)
        self.load = self.find.where(is_live)
        self.newer = sa.select(terms.head).where(is_this, is_live, terms.is_newer)
        self.insert = sa.insert(table).values(values)
        expected = sa.bindparam("expected", type_=sa.BigInteger())
        self.replace = (
            sa.update(table)
            .where(is_this, table.c["version"] == expected, is_live, terms.is_known)
            .values({name: value for name, value in values.items() if name != "key"})
        )
        until = values["expires_at"]
        lives_longer = sa.and_(until > terms.now, terms.expires_at > until)
        self.touch = (
            sa.update(table)
            .where(is_this, is_live, terms.is_known, terms.is_no_tombstone)
            .values(
                touched_at=values["touched_at"],
                expires_at=sa.case((lives_longer, terms.expires_at), else_=until),
            )
        )
        self.delete = sa.delete(table).where(
            is_this, is_live, terms.is_no_tombstone, sa.not_(terms.is_newer)
        )
        self.delete_expired = sa.delete(table).where(
            is_this, terms.expires_at <= terms.now
        )
        self.prune = _prune(table, dialect, terms.now)
        self._add_lists(table, terms)
        #: What almost all requests consist of.
        self.frequent = frozenset({self.load, self.insert, self.replace, self.delete})

    def _add_lists(self, table: sa.Table, terms: _Terms) -> None:
        # The first three do not ask for what is live: after an ANALYZE, SQLite prefers
        # the index on expires_at to the one on the user or the key, reads the whole
        # table by it, and sorts it for each page.
        key = terms.key
        self.load_many = sa.select(*terms.record, key).where(
            key.in_(sa.bindparam("keys", type_=key.type, expanding=True))
        )
        self.keys_of_user = sa.select(key, terms.expires_at, terms.user).where(
            terms.user == terms.values["user"], terms.is_no_tombstone, terms.is_ours
        )
        self.page = (
            sa.select(*terms.record, key)
            .where(key > sa.bindparam("after", type_=key.type), terms.is_ours)
            .order_by(key)
            .limit(PAGE)
        )
        self.count = (
            sa.select(sa.func.count())
            .select_from(table)
            .where(terms.is_live, terms.is_no_tombstone, terms.is_ours)
        )


def _is_own(
    key: sa.ColumnElement[str], prefix: str, dialect: sa.Dialect
) -> sa.ColumnElement[bool]:
    """Return the condition for the keys of an application with this prefix.

    The length excludes those of another one whose prefix begins with this one. What the
    last 64 characters are is not checked.
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
        # No LIMIT in a subquery, and SQLAlchemy 2.0 has none in a DELETE. The order
        # makes it safe to replicate by statement.
        text = sa.text("expires_at <= :now ORDER BY expires_at LIMIT :limit")
        return sa.delete(table).where(text.bindparams(now, limit))
    expired = sa.select(key).where(expires_at <= now).order_by(expires_at).limit(limit)
    if dialect.name == "postgresql":
        # A CTE that locks is run once. A subquery could be run again for each row, with
        # other rows each time.
        locked = expired.with_for_update(skip_locked=True).cte("expired")
        return sa.delete(table).where(key.in_(sa.select(locked.c["key"])))
    return sa.delete(table).where(key.in_(expired))


def _bytes(value: bytes) -> sa.BindParameter[bytes]:
    return sa.literal(value, sa.LargeBinary())
