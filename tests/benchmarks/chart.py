"""Draws the chart of the documentation: an SVG of horizontal bars."""

from __future__ import annotations

import typing as t
from html import escape

_NAMES = {
    "memory": "memory",
    "files": "files",
    "sqlite": "SQLite",
    "redis": "Redis",
    "postgresql": "PostgreSQL",
}
_KINDS = {
    "unseen": "not looked at",
    "read": "read",
    "change": "change",
    "login": "log-in",
}
# Each colour is legible on white and on black, and to the colour-blind.
_SUBJECTS = (
    ("none", "application without sessions", "#9a9a9a"),
    ("cookie", "Flask's session in a cookie", "#56b4e9"),
    ("peer", "Flask-Session 0.8", "#e69f00"),
    ("ours", "Flask-ServerSession", "#009e73"),
)

_WIDTH = 760
_LEFT = 170
_RIGHT = 70
_BAR = 9
_GROUP = len(_SUBJECTS) * _BAR + 8
_TITLE = 26


def draw(rows: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """Draw the CPU time of each kind of request with 100 bytes, an engine a panel.

    Each panel has a scale of its own; bars that would not fit are cut, with their
    number at the end.
    """
    parts: list[str] = []
    top = 30
    for index, (_, label, colour) in enumerate(_SUBJECTS):
        x = 10 + index * 190
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 15, 17, label))
    for engine, title in _NAMES.items():
        panel = {
            row["kind"]: row
            for row in rows
            if row["engine"] == engine
            and row["size"] == "100B"
            and row["kind"] in _KINDS
        }
        if panel:
            parts.append(_text(10, top + 18, title, weight="bold"))
            top = _draw_panel(parts, panel, top + _TITLE)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + 10}"'
        ' font-family="sans-serif" font-size="11" role="img"'
        ' aria-label="CPU time of each kind of request, in microseconds">\n'
        f'<rect width="{_WIDTH}" height="{top + 10}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _draw_panel(
    parts: list[str], panel: t.Mapping[str, t.Mapping[str, t.Any]], top: int
) -> int:
    # Wide enough for all but Flask-Session's.
    longest = 1.6 * max(
        row[name]["cpu_us"] for row in panel.values() for name in ("cookie", "ours")
    )
    room = _WIDTH - _LEFT - _RIGHT
    for kind, label in _KINDS.items():
        if kind not in panel:
            continue
        parts.append(_text(30, top + _GROUP / 2, label))
        for name, _, colour in _SUBJECTS:
            time = panel[kind][name]["cpu_us"]
            width = room * min(1.0, time / longest)
            parts.append(
                f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR - 1}"'
                f' fill="{colour}"/>'
            )
            more = " →" if time > longest else ""
            parts.append(_text(_LEFT + width + 4, top + 8, f"{time:.0f} µs{more}", 9))
            top += _BAR
        top += _GROUP - len(_SUBJECTS) * _BAR
    return top + 6


def _text(x: float, y: float, text: str, size: int = 11, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}"'
        f' fill="#222222">{escape(text)}</text>'
    )
