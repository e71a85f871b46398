"""How commands write: lines, tables, JSON, and how far they are."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import json
import shutil
import sys
import textwrap
import typing as t
import unicodedata

import click

from ..operator import SessionInfo
from .browsers import browser_name

#: How many digits of a handle are shown in a table.
SHOWN_DIGITS = 12
# The widest that columns get unless everything is asked for.
_WIDEST_USER = 32
_WIDEST_META = 48
# The columns that a narrow terminal does without, in this order, and those that are
# then cut off, down to this width.
_LEFT_OUT_FIRST = ("LOGGED IN (UTC)", "EXPIRES (UTC)")
_CUT_OFF = ("USER", "META", "ADDRESS", "BROWSER")
_LEAST = 8
_BAR = 20

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
    """Show on stderr how many are done, if that is a terminal, and wipe it out then.

    The total is not shown: counting would take as long. So the bar has no end, and
    something moves in it.
    """
    if not sys.stderr.isatty():
        yield lambda number: None
        return
    done = steps = widest = 0

    def draw(number: int) -> None:
        nonlocal done, steps, widest
        done += number
        place = steps % (2 * _BAR - 2)
        place = min(place, 2 * _BAR - 2 - place)  # there and back again
        bar = "-" * place + "#" + "-" * (_BAR - 1 - place)
        line = f"{label}  [{bar}]  {done}"
        widest = max(widest, len(line))
        steps += 1
        click.echo(f"\r{line}", nl=False, err=True)

    draw(0)
    try:
        yield draw
    finally:
        click.echo("\r" + " " * widest + "\r", nl=False, err=True)


def write_sessions(listed: cabc.Sequence[SessionInfo], is_full: bool) -> None:
    """Write a table of sessions."""
    header = ["HANDLE", "USER", "LAST SEEN (UTC)", "LOGGED IN (UTC)", "EXPIRES (UTC)"]
    more = _columns_of(listed, is_full)
    rows = [[*header, *(title for title, _ in more)]]
    for info in listed:
        handle = info.handle if is_full else info.handle[:SHOWN_DIGITS]
        user = "-" if info.user is None else escape(info.user)
        cells = [value(info) for _, value in more]
        if not is_full:
            user = shorten(user, _WIDEST_USER)
            cells = [shorten(cell, _WIDEST_META) for cell in cells]
        moments = (info.last_seen_at, info.authenticated_at, info.expires_at)
        times = ["-" if time is None else f"{time:%Y-%m-%d %H:%M}" for time in moments]
        rows.append([handle, user, *times, *cells])
    if not is_full and (width := terminal_width()) is not None:
        rows = _fitted(rows, width)
    write_table(rows)


def _columns_of(
    listed: cabc.Sequence[SessionInfo], is_full: bool
) -> list[tuple[str, cabc.Callable[[SessionInfo], str]]]:
    """Return the columns that any of the sessions has something for."""
    told = {name for info in listed for name in info.meta}
    columns: list[tuple[str, cabc.Callable[[SessionInfo], str]]] = []
    if any(info.is_device_bound for info in listed):
        columns.append(("DEVICE", lambda i: "bound" if i.is_device_bound else "-"))
    if not told <= META_TITLES.keys():
        columns.append(("META", _shown_meta))
    if "remote_addr" in told:
        columns.append(("ADDRESS", lambda i: escape(i.meta.get("remote_addr", "-"))))
    if "user_agent" in told and is_full:
        columns.append(("USER AGENT", lambda i: escape(i.meta.get("user_agent", "-"))))
    elif "user_agent" in told:
        columns.append(("BROWSER", _shown_browser))
    return columns


def _shown_meta(info: SessionInfo) -> str:
    return ", ".join(f"{name}={value}" for name, value in own_meta(info)) or "-"


def _shown_browser(info: SessionInfo) -> str:
    agent = info.meta.get("user_agent", "-")
    # Nearly all user agents begin with it.
    return browser_name(agent) or escape(agent.removeprefix("Mozilla/5.0 "))


def _fitted(rows: list[list[str]], width: int) -> list[list[str]]:
    """Leave out and shorten what would make lines wrap."""

    def excess() -> int:
        widths = _widths(rows)
        return sum(widths) + 2 * (len(widths) - 1) - width

    for title in _LEFT_OUT_FIRST:
        if excess() > 0:
            column = rows[0].index(title)
            rows = [row[:column] + row[column + 1 :] for row in rows]
    if excess() > 0 and rows[0][-1] == "BROWSER":
        rows = [[*row[:-1], row[-1].partition(" on ")[0]] for row in rows]
    widths = dict(zip(rows[0], _widths(rows), strict=True))
    room = {title: widths[title] for title in _CUT_OFF if title in widths}
    for _ in range(excess()):
        widest = max(room, key=lambda title: room[title])
        room[widest] = max(room[widest] - 1, _LEAST)
    # Of the sessions of one network only the ends of the addresses differ.
    ways = {"ADDRESS": _shorten_in_the_middle}
    return [
        [
            ways.get(title, shorten)(cell, room.get(title, widths[title]))
            for title, cell in zip(rows[0], row, strict=True)
        ]
        for row in rows
    ]


def _shorten_in_the_middle(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    start = (width - 3) // 2
    return f"{text[:start]}...{text[start + 3 - width :]}"
