"""Where drivers keep the codes and the words of databases' errors."""

from __future__ import annotations

import typing as t

from sqlalchemy import exc

# PostgreSQL's read_only_sql_transaction; MySQL's option --read-only, read-only
# transaction, and read-only mode.
_DEMOTED = frozenset({"25006", 1290, 1792, 1836})
# MySQL's.
_WRONG_SYNTAX = 1064
_PACKET_TOO_LARGE = 1153
_LONGEST_WORDS = 300


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


def words_of(error: exc.DBAPIError) -> str:
    """Return what the database says, in its own words, without values.

    Empty where a value may be the very thing that it complains of.
    """
    if isinstance(error, (exc.DataError, exc.IntegrityError)):
        return ""
    cause: t.Any = error.orig
    arguments: tuple[t.Any, ...] = getattr(cause, "args", ())
    first = arguments[0] if arguments else ""
    if isinstance(first, dict):
        text = t.cast("dict[str, t.Any]", first).get("M", "")  # pg8000
    elif isinstance(first, int) and len(arguments) > 1:
        if first == _WRONG_SYNTAX:
            return ""  # PyMySQL writes values into the statement, which is quoted
        text = arguments[1]
    else:
        diagnostics = getattr(cause, "diag", None)
        text = getattr(diagnostics, "message_primary", None) or cause
    words = " ".join(str(text).split())[:_LONGEST_WORDS].rstrip(".")
    parameters: t.Any = error.params or ()
    values: t.Iterable[t.Any] = parameters
    if isinstance(parameters, dict):
        values = t.cast("dict[str, t.Any]", parameters).values()
    texts = (value for value in values if isinstance(value, str) and value)
    return "" if any(text in words for text in texts) else words


def is_demoted(error: object) -> bool:
    """Return whether the server refused to write because it is read-only.

    Perhaps it was the primary until a moment ago, and a new connection finds its
    successor.
    """
    return not _DEMOTED.isdisjoint(codes_of(error))


def was_too_large(error: object) -> bool:
    """Return whether MySQL was sent more than it takes at once."""
    return _PACKET_TOO_LARGE in codes_of(error)
