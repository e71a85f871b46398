"""What each kind of request costs, called without a server in between."""

from __future__ import annotations

import sys
import typing as t
import urllib.parse
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import closing

import msgpack  # type: ignore[import-untyped]
from flask import Flask

from .apps import SIZES
from .apps import Browser
from .apps import make_app
from .apps import make_data
from .apps import use_cookie
from .apps import use_ours
from .counting import CountingProxy
from .counting import Counts
from .counting import counted_files
from .counting import counted_sqlite
from .engines import ENGINES
from .engines import Engine
from .engines import Places
from .engines import make_bare_calls
from .measure import Result
from .measure import Subject
from .measure import measure

#: What is measured for each cell: the name, and what it is.
SUBJECTS = {
    "none": "the application without sessions",
    "cookie": "Flask's own session, in a cookie",
    "peer": "Flask-Session on the same engine",
    "bare": "the engine alone, through the same driver",
    "ours": "this library",
    "twin": "the same once more: how much identical work differs",
}

_COUNTED = 20


def measure_requests(
    stack: ExitStack,
    engines: Sequence[str],
    kinds: Sequence[str],
    sizes: Sequence[str],
    *,
    blocks: int,
    calls: int,
) -> list[dict[str, t.Any]]:
    """Measure each kind of request on each engine, with sessions of each size."""
    places = Places(stack)
    rows: list[dict[str, t.Any]] = []
    for name in engines:
        engine = stack.enter_context(ENGINES[name](places))
        browsers = _make_browsers(engine)
        for size in sizes:
            # One block of 50 KB takes as long as ten of 100 bytes.
            count = max(2, calls // 4) if size == "50KB" else calls
            for kind in kinds:
                subjects = _make_subjects(engine, browsers, kind, size)
                with warnings.catch_warnings():
                    # A cookie of 50 KB, which no browser takes.
                    warnings.simplefilter("ignore")
                    results = measure(subjects, blocks=blocks, calls=count)
                row = {"engine": name, "kind": kind, "size": size}
                rows.append({**row, **_figures(results)})
                print(".", end="", flush=True, file=sys.stderr)  # noqa: T201
    print(file=sys.stderr)  # noqa: T201
    return rows


def _figures(results: dict[str, Result]) -> dict[str, t.Any]:
    ours = results["ours"]
    figures: dict[str, t.Any] = {}
    for subject, result in results.items():
        figures[subject] = {
            "cpu_us": result.median(),
            "wall_us": result.median("wall"),
        }
        if subject not in ("ours", "bare"):
            figures[subject]["ratio"] = ours.ratio(result)
            figures[subject]["wall_ratio"] = ours.ratio(result, "wall")
    floor = results["none"].median()
    if "bare" in results:
        floor += results["bare"].median()
    figures["floor"] = {"cpu_us": floor, "ratio": ours.median() / floor}
    return figures


def _make_browsers(engine: Engine) -> dict[str, Browser]:
    setups: dict[str, Callable[[Flask], object] | None] = {
        "none": None,
        "cookie": use_cookie,
        "peer": engine.peer,
        "ours": use_ours(engine.ours),
    }
    return {name: Browser(make_app(setup)) for name, setup in setups.items()}


def _make_subjects(
    engine: Engine, browsers: dict[str, Browser], kind: str, size: str
) -> list[Subject]:
    subjects = [
        _make_subject(browser, kind, size, name) for name, browser in browsers.items()
    ]
    subjects.append(_make_subject(browsers["ours"], kind, size, "twin"))
    if engine.bare is not None:
        data = msgpack.packb(make_data(SIZES[size]))
        calls = make_bare_calls(engine.bare, kind, data)
        if calls is not None:
            subjects.append(Subject("bare", *calls))
    return subjects


def _make_subject(browser: Browser, kind: str, size: str, name: str = "") -> Subject:
    cookie = browser.log_in(size)
    return Subject(
        name,
        lambda count: browser.environs(kind, size, count, cookie),
        browser.call,
    )


def count_requests(
    stack: ExitStack, engines: Sequence[str], kinds: Sequence[str]
) -> list[dict[str, t.Any]]:
    """Count what each kind of request asks of each engine, with 100 bytes."""
    counts = Counts()

    def through(kind: str, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        proxy = CountingProxy(parts.hostname, parts.port, kind, counts)
        stack.enter_context(closing(proxy))
        start, _, _ = parts.netloc.rpartition(":")
        return parts._replace(netloc=f"{start}:{proxy.port}").geturl()

    places = Places(stack, through)
    rows: list[dict[str, t.Any]] = []
    for name in engines:
        with ExitStack() as counting:
            if name == "sqlite":
                counting.enter_context(counted_sqlite(counts))
            elif name == "files":
                counting.enter_context(counted_files(counts))
            engine = stack.enter_context(ENGINES[name](places))
            browsers = _make_browsers(engine)
            for kind in kinds:
                for subject in ("peer", "ours"):
                    one = _make_subject(browsers[subject], kind, "100B")
                    for environ in one.prepare(10):  # also for prepared statements
                        one.call(environ)
                    environs = one.prepare(_COUNTED)
                    counts.reset()
                    for environ in environs:
                        one.call(environ)
                    row = {"engine": name, "kind": kind, "subject": subject}
                    rows.append({**row, **counts.per(_COUNTED)})
    return rows
