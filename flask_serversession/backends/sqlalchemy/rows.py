"""Records as rows of the table."""

from __future__ import annotations

import hashlib
import json
import typing as t

import sqlalchemy as sa

from ...errors import RecordError
from ...hiding import HiddenBytes
from ...hiding import hide
from ...record import NO_META
from ...record import Record
from ...record import are_sensible
from ...record import check_meta
from ...record import frame
from ...record import parse_meta
from ...record import unframe
from .table import NAME_LENGTH

# How the user column begins where it holds a hash of the user.
_USER_HASH = "sha256:"


def to_columns(record: Record) -> dict[str, t.Any]:
    """Return the values of the statements' parameters that a record stands for."""
    user = record.user if record.user is None else to_user_column(record.user)
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


def to_user_column(user: str) -> str:
    """Return what stands for the user in the column that is searched.

    That is the user, unless it is too long, or has characters that a database may
    not store (NUL; what its encoding does not have) or not tell apart (a space at the
    end, on MySQL). Then it is a hash, and the user itself is kept with the meta.
    """
    # Only ASCII: which other characters are printable depends on the version of Python,
    # and processes with different versions must find each other's sessions.
    if (
        len(user) <= NAME_LENGTH
        and user.isascii()
        and user.isprintable()
        and not user.endswith(" ")
        and not user.startswith(_USER_HASH)
    ):
        return user
    digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
    return _USER_HASH + digest


def to_record(row: sa.Row[t.Any]) -> Record:
    """Return the record in a row that begins with the columns of a record.

    :raises RecordError: if it cannot be read.
    """
    # Unpacked, because a row takes long to find a column by its name.
    data, version, created_at, touched_at, expires_at, user, text, *_ = t.cast(
        "t.Any", row
    )
    del row  # its repr shows the data
    data = HiddenBytes(to_bytes(data))
    meta: t.Any = NO_META
    if text and text != "{}":
        try:
            meta = parse_meta(text)
            if isinstance(meta, list):
                user, meta = t.cast("tuple[str, dict[str, str]]", meta)
            meta = check_meta(meta)
        except (ValueError, TypeError) as error:
            raise RecordError("The record's meta is damaged.", "damaged") from error
    # No checksum covers these columns. SQLite takes a text for a number, PostgreSQL has
    # NaN, and every database has versions after which there is no next one.
    is_user = user is None or isinstance(user, str)
    if not is_user or not are_sensible(version, created_at, touched_at, expires_at):
        raise damaged_columns()
    return Record(
        data=unframe(data),
        version=version,
        created_at=created_at,
        touched_at=touched_at,
        expires_at=expires_at,
        user=user,
        meta=t.cast("dict[str, str]", meta),
    )


def to_bytes(value: t.Any) -> bytes:
    """Return data as bytes, whatever the driver makes of it."""
    if isinstance(value, bytes):
        return value
    value = hide(value)
    try:
        return memoryview(value).tobytes()  # psycopg2 returns a memoryview
    except TypeError as error:
        raise RecordError("The record's data is not bytes.", "damaged") from error


def damaged_columns() -> RecordError:
    """Return the error about columns that were damaged."""
    return RecordError("The record's columns make no sense.", "damaged")
