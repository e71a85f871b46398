"""Measures what a request pays for its session; see docs/performance.rst.

::

    python -m tests.benchmarks                      # CPU time of each kind of request
    python -m tests.benchmarks --engine redis --kind read
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import typing as t
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

from .apps import KINDS
from .apps import SIZES
from .chart import draw
from .device import measure_devices
from .device import print_devices
from .engines import ENGINES
from .holding import measure_growth
from .requests import count_requests
from .requests import measure_requests
from .tables import print_counts
from .tables import print_growth
from .tables import print_requests
from .tables import print_targets

_PACKAGES = (
    "flask",
    "werkzeug",
    "flask-session",
    "msgpack",
    "msgspec",
    "redis",
    "hiredis",
    "sqlalchemy",
    "flask-sqlalchemy",
    "psycopg",
    "cachelib",
    "gunicorn",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measures what a request pays for its session.",
    )
    parser.add_argument("--engine", action="append", choices=[*ENGINES])
    parser.add_argument("--kind", action="append", choices=[*KINDS])
    parser.add_argument("--size", action="append", choices=[*SIZES])
    parser.add_argument("--blocks", type=int, default=21, metavar="N")
    parser.add_argument("--calls", type=int, default=60, metavar="N")
    parser.add_argument(
        "--quick", action="store_true", help="few calls, 100 bytes: does it run?"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it all there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw an SVG there")
    given = parser.parse_args(arguments)
    engines = given.engine or [*ENGINES]
    kinds = given.kind or [*KINDS]
    sizes = given.size or (["100B"] if given.quick else [*SIZES])
    blocks, calls = (3, 4) if given.quick else (given.blocks, given.calls)

    report: dict[str, t.Any] = {"versions": get_versions(), "growth": []}
    with ExitStack() as stack:
        report["requests"] = measure_requests(
            stack, engines, kinds, sizes, blocks=blocks, calls=calls
        )
        if given.size is None:
            report["growth"] = measure_growth(
                stack, engines, blocks=blocks, calls=calls
            )
        # After all that is timed: counting slows the process down.
        report["counts"] = count_requests(stack, engines, kinds)
        report["devices"] = measure_devices(blocks=blocks, calls=calls)
        print_requests(report["requests"])
        print_devices(report["devices"])
        print_counts(report["counts"])
        print_targets(report["requests"])
        print_growth(report["growth"])
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    if given.chart is not None:
        given.chart.write_text(draw(report["requests"]))


def get_versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions}


if __name__ == "__main__":
    main(sys.argv[1:])
