"""How commands write: lines, tables, JSON, and how far they are."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import itertools
import json
import shutil
import sys
import textwrap
import typing as t
import unicodedata

import click

from ..operator import SessionInfo

#: How many digits of a handle are shown in a table.
SHOWN_DIGITS = 12
# The widest that columns get unless everything is asked for.
_WIDEST_USER = 32
_WIDEST_META = 48
# The columns that a narrow terminal does without, in this order, and the width that a
# user agent should keep.
_LEFT_OUT_FIRST = ("LOGGED IN (UTC)", "EXPIRES (UTC)")
_LEAST_AGENT = 24

META_TITLES = {"remote_addr": "Address", "user_agent": "User agent"}


def own_meta(info: SessionInfo) -> list[tuple[str, str]]:
    """Return what the application itself tells of a session, safe to print."""
    return [
        (escape(name), escape(info.meta[name]))
        for name in sorted(info.meta.keys() - META_TITLES.keys())
    ]


def document_of(info: SessionInfo) -> dict[str, t.Any]:
    """Return what is known of a session, for JSON."""
    return {
        "handle": info.handle,
        "user": info.user,
        "created_at": info.created_at.isoformat(timespec="seconds"),
        "authenticated_at": (
            None
            if info.authenticated_at is None
            else info.authenticated_at.isoformat(timespec="seconds")
        ),
        "last_seen_at": info.last_seen_at.isoformat(timespec="seconds"),
        "expires_at": info.expires_at.isoformat(timespec="seconds"),
        "is_device_bound": info.is_device_bound,
        "meta": dict(info.meta),
    }


def write_line(text: str) -> None:
    """Write a line."""
    # Escapes what the terminal's encoding lacks, instead of failing.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def write_json(document: t.Any) -> None:
    """Write a JSON document."""
    # DEL is the only control character that json.dumps() leaves unescaped.
    click.echo(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def terminal_width() -> int | None:
    """Return the width of the terminal; ``None`` if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_wrapped(text: str, indent: str) -> None:
    """Write a line; on a terminal, wrap it between words."""
    width = terminal_width()
    if width is not None:
        text = textwrap.fill(
            text,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    write_line(text)


def _widths(rows: cabc.Sequence[cabc.Sequence[str]]) -> list[int]:
    return [max(map(_width, column)) for column in zip(*rows, strict=True)]


def write_table(rows: cabc.Sequence[cabc.Sequence[str]]) -> None:
    """Write rows in columns."""
    widths = _widths(rows)
    for row in rows:
        cells = [
            cell + " " * (width - _width(cell))
            for cell, width in zip(row, widths, strict=True)
        ]
        write_line("  ".join(cells).rstrip())


def escape(text: str) -> str:
    """Escape what would move the cursor, change colours, hide text or end the line.

    User names and user agents come from visitors, and terminals obey escape sequences.
    """
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shorten(text: str, width: int) -> str:
    """Cut off what is wider."""
    if _width(text) <= width:
        return text
    while _width(text) > width - 3:
        text = text[:-1]
    return f"{text}..."


def _width(text: str) -> int:
    """Return the number of terminal cells that a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextlib.contextmanager
def progress_bar(
    label: str,
) -> cabc.Generator[cabc.Callable[[int], None], None, None]:
    """Show on stderr how many are done, if that is a terminal.

    The total is not shown: counting would take as long.
    """
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    with click.progressbar(
        itertools.count(), label=label, show_pos=True, show_eta=False, file=sys.stderr
    ) as bar:
        yield bar.update


def write_sessions(listed: cabc.Sequence[SessionInfo], is_full: bool) -> None:
    """Write a table of sessions."""
    told = {name for info in listed for name in info.meta}
    names = [name for name in META_TITLES if name in told]
    has_own = not told <= META_TITLES.keys()
    header = ["HANDLE", "USER", "LAST SEEN (UTC)", "LOGGED IN (UTC)", "EXPIRES (UTC)"]
    has_device = any(info.is_device_bound for info in listed)
    if has_device:
        header.append("DEVICE")
    if has_own:
        header.append("META")
    rows = [[*header, *(META_TITLES[name].upper() for name in names)]]
    for info in listed:
        handle = info.handle if is_full else info.handle[:SHOWN_DIGITS]
        user = "-" if info.user is None else escape(info.user)
        meta = [escape(info.meta.get(name, "-")) for name in names]
        if has_own:
            own = [f"{name}={value}" for name, value in own_meta(info)]
            meta.insert(0, ", ".join(own) or "-")
        if has_device:
            meta.insert(0, "bound" if info.is_device_bound else "-")
        if not is_full:
            user = shorten(user, _WIDEST_USER)
            # Nearly all user agents begin with it.
            meta = [value.removeprefix("Mozilla/5.0 ") for value in meta]
            meta = [shorten(value, _WIDEST_META) for value in meta]
        moments = (info.last_seen_at, info.authenticated_at, info.expires_at)
        times = ["-" if time is None else f"{time:%Y-%m-%d %H:%M}" for time in moments]
        rows.append([handle, user, *times, *meta])
    if not is_full and (width := terminal_width()) is not None:
        rows = _fitted(rows, width)
    write_table(rows)


def _fitted(rows: list[list[str]], width: int) -> list[list[str]]:
    """Leave out and shorten what would make lines wrap."""
    has_agent = rows[0][-1] == META_TITLES["user_agent"].upper()
    for title in _LEFT_OUT_FIRST:
        widths = _widths(rows)
        if has_agent:
            widths[-1] = min(widths[-1], _LEAST_AGENT)
        if sum(widths) + 2 * (len(widths) - 1) > width:
            column = rows[0].index(title)
            rows = [row[:column] + row[column + 1 :] for row in rows]
    if has_agent:
        widths = _widths(rows)
        room = width - sum(widths[:-1]) - 2 * (len(widths) - 1)
        room = max(room, len(rows[0][-1]))
        rows = [[*row[:-1], shorten(row[-1], room)] for row in rows]
    return rows
