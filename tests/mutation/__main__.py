"""Change a module in many small ways, and see whether its tests notice each.

``make mutate`` runs all modules of :mod:`.modules`, ``make mutate MODULES="cookie
merge"`` some. Nothing is written into the sources: the process that runs the tests, and
those that they start, have the changed module in place of the file. Most are forked
from one that has collected the tests already: see :mod:`.quick`.

What survives is either a test that is missing, or it is in ``survivors.txt``, with the
reason why it may live: because nobody can notice it (*equivalent*), or because nobody
relies on it (*tolerated*). Only equivalent ones are left out of the share.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import importlib
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

from .finder import ROOT
from .finder import mutate
from .modules import MODULES
from .modules import Module
from .mutants import Mutant
from .mutants import make_mutants
from .quick import Quick

PACKAGE = "flask_serversession"
REASONS = Path(__file__).with_name("survivors.txt")
#: Where the survivors of the last run are kept.
RESULTS = ROOT / ".mutation"
#: The share of the mutants that must be noticed.
ENOUGH = 0.9
_MEMORY = 4 * 1024**3
# What tests and package import from others, and nothing that is to be changed.
_SLOW_IMPORTS = (
    "asyncio",
    "cachelib",
    "cryptography.hazmat.primitives.ciphers.aead",
    "flask.testing",
    "flask_login",
    "freezegun",
    "hypothesis",
    "itsdangerous",
    "msgpack",
    "psutil",
    "pytest",
    "redis",
    "requests",
    "sqlalchemy.dialects.sqlite",
)


def main() -> int:
    """Run the modules that were named, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("modules", nargs="*", metavar="MODULE", default=list(MODULES))
    parser.add_argument("--sample", type=int, metavar="N", help="only N, at random")
    parser.add_argument("--seed", type=int, default=1, help="of the random choice")
    parser.add_argument(
        "--survivors", action="store_true", help="only what survived the last time"
    )
    args = parser.parse_args()
    if unknown := set(args.modules) - set(MODULES):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    for name in _SLOW_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    is_enough = True
    for name in args.modules:
        is_enough &= try_module(name, args.sample, args.seed, args.survivors)
    return 0 if is_enough else 1


def try_module(name: str, sample: int | None, seed: int, again: bool) -> bool:
    """Try the mutants of a module; say whether enough of them were noticed."""
    module = MODULES[name]
    sample = sample or module.sample
    results = RESULTS / f"{name.replace('/', '.')}.txt"
    mutants = [*find_mutants(name)]
    if again:
        last = set(results.read_text("utf-8").split("\n\n"))
        mutants = [mutant for mutant in mutants if mutant.change in last]
    elif sample is not None and sample < len(mutants):
        mutants = random.Random(seed).sample(mutants, sample)
    reasons = read_reasons()
    began = time.monotonic()
    survivors: list[str] = []
    counts = collections.Counter[str]()
    for mutant, is_noticed in try_mutants(module, mutants):
        reason = reasons.get(mutant.change)
        if is_noticed:
            counts["killed"] += 1
            if reason:
                say(f"A test notices what {REASONS.name} has:\n{mutant.change}\n")
            continue
        survivors.append(mutant.change)
        counts[reason or "unexplained"] += 1
        if reason is None:
            place = f"{mutant.module.replace('.', '/')}.py:{mutant.line}"
            say(f"{place}: {mutant.change}\n")
    RESULTS.mkdir(exist_ok=True)
    results.write_text("\n\n".join(survivors), "utf-8")
    share = counts["killed"] / max(1, len(mutants) - counts["equivalent"])
    say(
        f"{name}: {len(mutants)} mutants, {counts['killed']} killed,"
        f" {counts['equivalent']} equivalent, {counts['tolerated']} tolerated,"
        f" {counts['unexplained']} unexplained: {share:.1%} killed,"
        f" in {time.monotonic() - began:.0f} s"
    )
    return share >= ENOUGH


def find_mutants(name: str) -> Iterator[Mutant]:
    """Give those of a module, or of all modules in a folder."""
    path = ROOT / PACKAGE / name
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        yield from make_mutants(module, file.read_text("utf-8"))


def try_mutants(module: Module, mutants: list[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    """Give each mutant, and whether a test noticed it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="q") as folder:
        result = Path(folder, "survivors")

        def run_quickly(_: str) -> bool:
            return run_pytest(module, folder, Quick(mutants, result, fork))

        if not fork(run_quickly, math.inf, is_quiet=False):
            raise SystemExit(f"Without any change fails one of: {module.tests}")
        survived, others = json.loads(result.read_text())
    limit = 60 + time.monotonic() - began
    for number, mutant in enumerate(mutants):
        if number not in others:
            yield mutant, number not in survived
            continue

        def run(folder: str, mutant: Mutant = mutant) -> bool:
            mutate(mutant.module, mutant.source, folder)
            return run_pytest(module, folder)

        yield mutant, not fork(run, min(limit, 300))


def read_reasons() -> dict[str, str]:
    """Give which changes may survive, and whether that is "equivalent" or "tolerated".

    A paragraph each: the place, the lines removed and added, and the reason.
    """
    reasons: dict[str, str] = {}
    for paragraph in filter(None, REASONS.read_text("utf-8").split("\n\n")):
        change, _, reason = paragraph.strip().rpartition("\n")
        kind, _, why = reason.partition(": ")
        if not change or not why or kind not in ("equivalent", "tolerated"):
            raise SystemExit(f"No reason why this may survive:\n{paragraph}")
        reasons[change] = kind
    return reasons


def say(text: str) -> None:
    """Print at once, also into a pipe, and before the next fork."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fork(run: Callable[[str], object], limit: float, *, is_quiet: bool = True) -> bool:
    """Run a function in a process of its own; say whether it gave true in time.

    :param run: Gets a folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="m", ignore_cleanup_errors=True) as folder:
        # PostgreSQL and others do not run as root, but as somebody else.
        os.chmod(folder, 0o755)
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.setpgid(0, 0)
                resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.environ["TMPDIR"] = tempfile.tempdir = folder
                if is_quiet:
                    sink = os.open(os.devnull, os.O_RDWR)
                    for stream in range(3):
                        os.dup2(sink, stream)
                code = 0 if run(folder) else 1
            finally:
                os._exit(code)
        end = time.monotonic() + limit
        pid = 0
        status = 1
        while not pid and time.monotonic() < end:
            time.sleep(0.005)
            pid, status = os.waitpid(child, os.WNOHANG)
        # The tests' own processes, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not pid:
            os.waitpid(child, 0)
            return False
        return os.waitstatus_to_exitcode(status) == 0


def run_pytest(module: Module, folder: str, *plugins: object) -> bool:
    """Run the tests of a module, here; say whether they passed."""
    import pytest

    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = [f"--basetemp={folder}/t", "-x", "-q", "-s", "-m", "not slow"]
    options += ["-k", module.only] if module.only else []
    for plugin in ("no:cacheprovider", "pytest_timeout", "_hypothesis_pytestplugin"):
        options += ["-p", plugin]
    tests = [str(ROOT / "tests" / test) for test in module.tests]
    return pytest.main([*options, *tests], plugins=[*plugins]) == 0


if __name__ == "__main__":
    sys.exit(main())
