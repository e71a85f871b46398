"""Measures requests per second and their p99 through gunicorn, over HTTP.

For each subject a server of its own, driven by a process of its own, on loopback::

    python -m tests.benchmarks.http
    python -m tests.benchmarks.http --engine redis --kind read --seconds 2

The subjects are those of ``python -m tests.benchmarks`` without the bare engine; on
Redis also an Express application, where Node and npm are on the machine.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import statistics
import sys
import typing as t
from collections.abc import Callable
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from flask import Flask

from ..servers import Gunicorn
from ..servers import Server
from ..servers import ServerError
from .apps import KINDS
from .apps import Browser
from .apps import make_app
from .apps import use_cookie
from .apps import use_ours
from .engines import ENGINES
from .engines import Engine
from .engines import Places
from .express import Express
from .generator import Block
from .generator import Figures
from .generator import WrongAnswerError
from .generator import generator

WORKERS = 2
THREADS = 4
#: How many connections each worker has.
CONNECTIONS = 4
SIZE = "100B"
SUBJECTS = ("none", "cookie", "peer", "ours")
#: Not with memory, which the workers do not share.
SHARED = [name for name in ENGINES if name != "memory"]

_VARIABLE = "BENCHMARK"


class _GivenPlaces(Places):
    """Places that somebody else has prepared and will remove."""

    def __init__(self, stack: ExitStack, given: Mapping[str, str]) -> None:
        super().__init__(stack)
        self._given = given

    def folder(self) -> str:
        return self._given["folder"]

    def url(self, kind: str) -> str:
        return self._given["url"]


def _get_setup(subject: str, engine: Engine) -> Callable[[Flask], object] | None:
    return {
        "none": None,
        "cookie": use_cookie,
        "peer": engine.peer,
        "ours": use_ours(engine.ours),
    }[subject]


def create_app() -> Flask:
    """Make the application of a worker, as the environment says."""
    given = json.loads(os.environ[_VARIABLE])
    stack = ExitStack()
    # Not before the process ends. The garbage collector would close what nobody holds
    # on to, and with it clients that are in use.
    atexit.register(stack.close)
    engine = stack.enter_context(ENGINES[given["engine"]](_GivenPlaces(stack, given)))
    app = make_app(_get_setup(given["subject"], engine))
    app.add_url_rule("/worker", "worker", lambda: str(os.getpid()))
    return app


def _start_servers(
    stack: ExitStack, name: str, versions: dict[str, str]
) -> dict[str, Server]:
    """Start a server for each subject."""
    places = Places(stack)
    has_server = name in ("redis", "postgresql")
    url = places.url(name) if has_server else ""
    given = {"engine": name, "folder": places.folder(), "url": url}
    # Before the workers, which would all want to create the same tables.
    with ExitStack() as own:
        engine = own.enter_context(ENGINES[name](_GivenPlaces(own, given)))
        for subject in ("peer", "ours"):
            Browser(make_app(_get_setup(subject, engine))).log_in(SIZE)
    servers: dict[str, Server] = {}
    for subject in SUBJECTS:
        environ = {_VARIABLE: json.dumps({**given, "subject": subject})}
        options = ["--worker-class", "gthread", "--workers", str(WORKERS)]
        options += ["--threads", str(THREADS), "--keep-alive", "600"]
        app = "tests.benchmarks.http:create_app()"
        server = Gunicorn(app, *options, environ=environ, preload=False)
        servers[subject] = stack.enter_context(server)
    if name == "redis":
        if not Express.is_available():
            _print("express: left out, for node and npm are not on the path")
            return servers
        express = Express(url, WORKERS)
        try:
            servers["express"] = stack.enter_context(express)
        except ServerError as e:
            _print(f"express: left out, for it could not be started: {e}")
        else:
            versions.update(express.get_versions())
    return servers


def measure(
    names: list[str],
    kinds: list[str],
    *,
    blocks: int,
    seconds: float,
    versions: dict[str, str],
) -> list[dict[str, t.Any]]:
    """Measure each kind of request on each engine; the subjects take turns.

    :param versions: Gets those of what is not a Python package.
    """
    rows: list[dict[str, t.Any]] = []
    with generator() as drive:
        for name in names:
            with ExitStack() as stack:
                servers = _start_servers(stack, name, versions)
                for kind in kinds:
                    results = _measure(drive, name, servers, kind, blocks, seconds)
                    row = {"engine": name, "kind": kind, "subjects": results}
                    rows.append(row)
                    _print_row(row)
    return rows


def _measure(
    drive: Callable[[Block], Figures],
    name: str,
    servers: dict[str, Server],
    kind: str,
    blocks: int,
    seconds: float,
) -> dict[str, dict[str, t.Any]]:
    login = f"/login/{SIZE}"
    figures: dict[str, list[Figures]] = {subject: [] for subject in servers}
    order = list(servers)
    for number in range(blocks + 1):
        random.shuffle(order)
        for subject in order:
            server = servers[subject]
            block = Block(
                server.host,
                server.port,
                login,
                login if kind == "login" else f"/{kind}",
                has_session=kind != "login",
                ends_session=kind == "destroy",
                # The first is to get warm.
                seconds=seconds if number else min(seconds, 0.5),
                connections=CONNECTIONS,
                workers=WORKERS,
            )
            try:
                figure = drive(block)
            except WrongAnswerError as e:
                log = server.log.read_text(errors="replace")[-4_000:]
                raise WrongAnswerError(f"{name}, {subject}: {e}\n{log}") from None
            if number:
                figures[subject].append(figure)
    return {
        subject: {
            "requests": sum(figure.requests for figure in each),
            "per_second": statistics.median(figure.rate for figure in each),
            "p99_ms": statistics.median(figure.p99 for figure in each),
            "blocks": [[figure.rate, figure.p99] for figure in each],
        }
        for subject, each in figures.items()
    }


def _print_head(blocks: int, seconds: float) -> None:
    _print(
        f"Requests per second, and p99 in milliseconds: medians of {blocks} blocks of"
        f" {seconds:g} s; {WORKERS} workers,",
        f"{THREADS} threads and {CONNECTIONS} connections each; sessions of {SIZE};"
        f" {os.cpu_count()} CPUs",
        "",
        f"{'':20}"
        + "".join(f"{name:>16}" for name in (*SUBJECTS, "express"))
        + "   ours/cookie  ours/peer",
    )


def _print_row(row: dict[str, t.Any]) -> None:
    subjects = row["subjects"]
    cells = "".join(
        f"{subjects[name]['per_second']:8.0f} {subjects[name]['p99_ms']:7.1f}"
        if name in subjects
        else f"{'-':>16}"
        for name in (*SUBJECTS, "express")
    )
    ours = subjects["ours"]["per_second"]
    ratios = [ours / subjects[name]["per_second"] for name in ("cookie", "peer")]
    _print(
        f"{row['engine']:12}{row['kind']:8}{cells}{ratios[0]:14.2f}{ratios[1]:11.2f}"
    )


def _print(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> None:
    from .__main__ import get_versions

    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.http",
        description="Measures requests per second and their p99 through gunicorn.",
    )
    parser.add_argument("--engine", action="append", choices=SHARED)
    parser.add_argument("--kind", action="append", choices=[*KINDS])
    parser.add_argument("--blocks", type=int, default=7, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="N")
    parser.add_argument(
        "--quick", action="store_true", help="one short block: does it run?"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it all there")
    given = parser.parse_args(arguments)
    if given.blocks < 1 or given.seconds <= 0:
        parser.error("--blocks and --seconds must be more than 0")
    blocks, seconds = (1, 0.1) if given.quick else (given.blocks, given.seconds)
    versions = get_versions()
    _print_head(blocks, seconds)
    rows = measure(
        given.engine or SHARED,
        given.kind or [*KINDS],
        blocks=blocks,
        seconds=seconds,
        versions=versions,
    )
    if given.json is not None:
        report = {
            "versions": versions,
            "blocks": blocks,
            "seconds": seconds,
            "workers": WORKERS,
            "threads": THREADS,
            "connections": CONNECTIONS,
            "http": rows,
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
