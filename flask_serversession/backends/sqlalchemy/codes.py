"""Where drivers keep the codes of databases' errors."""

from __future__ import annotations

import typing as t

# PostgreSQL's read_only_sql_transaction; MySQL's option --read-only, read-only
# transaction, and read-only mode.
_DEMOTED = frozenset({"25006", 1290, 1792, 1836})


def codes_of(error: object) -> dict[str | int, None]:
    """Return SQLSTATE and number of an error, if the driver has them.

    Each driver has a place of its own for them; some fill several.

    :param error: The driver's, or SQLAlchemy's with the driver's in it.
    """
    cause = getattr(error, "orig", error)
    arguments: t.Any = getattr(cause, "args", ())
    first = arguments[0] if arguments else None
    if isinstance(first, dict):
        first = t.cast("dict[str, t.Any]", first).get("C")  # pg8000
    elif not isinstance(first, int):
        first = None  # a text, which may hold values
    names = ("sqlstate", "pgcode", "errno", "sqlite_errorname")
    codes = [*(getattr(cause, name, None) for name in names), first]
    return dict.fromkeys(code for code in codes if isinstance(code, (str, int)))


def is_demoted(error: object) -> bool:
    """Return whether the server refused to write because it is read-only.

    Perhaps it was the primary until a moment ago, and a new connection finds its
    successor.
    """
    return not _DEMOTED.isdisjoint(codes_of(error))
