"""Measures how the cost of a request grows with what its session holds.

One small key of the session is read or changed, whatever else is in there.
"""

from __future__ import annotations

import typing as t
from collections.abc import Sequence
from contextlib import ExitStack

from .apps import LARGEST
from .apps import SIZES
from .apps import Browser
from .apps import make_app
from .apps import use_ours
from .engines import ENGINES
from .engines import Engine
from .engines import Places
from .measure import Subject
from .measure import measure

#: Where it is measured: without a server, in one of files, over a connection.
GROWING = ("memory", "sqlite", "redis")
SMALLEST = next(iter(SIZES))


def measure_growth(
    stack: ExitStack, engines: Sequence[str], *, blocks: int, calls: int
) -> list[dict[str, t.Any]]:
    """Measure sessions of each size in turns, on each engine where it is measured."""
    places = Places(stack)
    rows: list[dict[str, t.Any]] = []
    for name in GROWING:
        if name in engines:
            engine = stack.enter_context(ENGINES[name](places))
            for kind in ("read", "change"):
                row = _measure(engine, kind, blocks=blocks, calls=max(2, calls // 4))
                rows.append({"engine": name, "kind": kind, "sizes": row})
    return rows


def _measure(
    engine: Engine, kind: str, *, blocks: int, calls: int
) -> dict[str, dict[str, float]]:
    subjects: list[Subject] = []
    for size in (*SIZES, *LARGEST):
        browser = Browser(make_app(use_ours(engine.ours)))
        environs = browser.environs
        cookie = browser.log_in(size)
        subjects.append(
            Subject(
                size,
                lambda count, environs=environs, size=size, cookie=cookie: environs(
                    kind, size, count, cookie
                ),
                browser.call,
            )
        )
    results = measure(subjects, blocks=blocks, calls=calls)
    return {
        size: {"cpu_us": result.median(), "ratio": result.ratio(results[SMALLEST])}
        for size, result in results.items()
    }
