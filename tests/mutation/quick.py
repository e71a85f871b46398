"""Tries the mutants of functions without importing and collecting anything again.

The tests are collected once. Each mutant gets a fork of that process, where the code of
one function is replaced, and only the tests that call that function are run. What is
not in the body of a function, or in one that is called while the module is imported,
has to be tried by a process that imports it anew.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import threading
import time
import types
import typing as t
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from .finder import mutate
from .mutants import Mutant

# Tests that take less, in seconds, come before all others.
_QUICK = 0.1

#: Runs a function in a fork, for so long at most; says whether it gave true.
Fork = Callable[[Callable[[str], object], float], bool]


class Quick:
    """A plugin that runs the tests as often as there are mutants.

    :param mutants: Of one or several modules.
    :param survivors: A file for what was found: the numbers of the mutants that
        survived, and of those that have to be tried otherwise.
    """

    def __init__(self, mutants: list[Mutant], survivors: Path, fork: Fork) -> None:
        self._mutants = mutants
        self._result = survivors
        self._fork = fork
        self._ends = tuple(
            f"/{name.replace('.', '/')}.py" for name in {m.module for m in mutants}
        )
        self._called: set[str] = set()
        sys.settrace(self._trace)

    def _trace(self, frame: types.FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if code.co_filename.endswith(self._ends):
            self._called.add(_spot(code))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests once, and then those of each mutant."""
        sys.settrace(None)
        at_import = set(self._called)
        originals = {
            (name, *place): code
            for name in {mutant.module for mutant in self._mutants}
            for place, code in _codes_of(compile_as(name))
        }
        table = Path(f"{self._result}.tests")
        failed = Path(f"{self._result}.failed")
        if not self._fork(lambda _: self._run_all(session, table, failed), 600):
            raise RuntimeError(f"Without a change: {failed.read_text()}")
        tests: dict[str, tuple[float, list[str]]] = json.loads(table.read_text())
        survived: list[int] = []
        others: list[int] = []
        # Those that noticed something, the last one first: it may notice more.
        noticed: dict[str, int] = {}
        for number, mutant in enumerate(self._mutants):
            place = mutant.function and (mutant.module, *mutant.function)
            original = originals.get(place) if place else None
            if original is None or (spot := _spot(original)) in at_import:
                others.append(number)
                continue
            # What calls nothing here may do so in a process of its own.
            names = [name for name, (_, spots) in tests.items() if spot in spots]
            names += [name for name, (_, spots) in tests.items() if not spots]
            names.sort(
                key=lambda name: (-noticed.get(name, -1), tests[name][0] > _QUICK)
            )
            # The machine may have more to do than when the tests were timed.
            limit = 15 + 5 * sum(tests[name][0] for name in names)

            def run(
                folder: str,
                mutant: Mutant = mutant,
                original: types.CodeType = original,
                names: list[str] = names,
            ) -> bool:
                _replace(mutant, original)
                mutate(mutant.module, mutant.source, folder)
                return self._run(session, names, failed)

            if not names or self._fork(run, limit):
                survived.append(number)
                continue
            name = failed.read_text()
            # Else one that needs others before it would kill every mutant.
            if name not in noticed and not self._fork(
                lambda _, name=name: self._run(session, [name], failed), limit
            ):
                raise RuntimeError(f"Without a change: {name}")
            noticed[name] = number
        self._result.write_text(json.dumps([survived, others]))
        return True

    def _run_all(self, session: pytest.Session, table: Path, failed: Path) -> bool:
        tests: dict[str, tuple[float, list[str]]] = {}
        for number, item in enumerate(session.items):
            self._called.clear()
            threading.settrace(self._trace)
            sys.settrace(self._trace)
            began = time.monotonic()
            failed.write_text(item.nodeid)
            following = session.items[number + 1 : number + 2]
            item.config.hook.pytest_runtest_protocol(
                item=item, nextitem=following[0] if following else None
            )
            sys.settrace(None)
            tests[item.nodeid] = time.monotonic() - began, sorted(self._called)
            if session.testsfailed:
                return False
        table.write_text(json.dumps(tests))
        return True

    def _run(self, session: pytest.Session, names: list[str], failed: Path) -> bool:
        items = {item.nodeid: item for item in session.items}
        for name, following in itertools.pairwise([*names, None]):
            item = items[t.cast("str", name)]
            failed.write_text(item.nodeid)
            item.config.hook.pytest_runtest_protocol(
                item=item, nextitem=items[following] if following else None
            )
            if session.testsfailed:
                return False
        return True


def compile_as(name: str, source: str | None = None) -> types.CodeType:
    """Compile another source in place of a module's own, or that one."""
    file = t.cast("str", sys.modules[name].__file__)
    if source is None:
        source = Path(file).read_text("utf-8")
    return compile(source, file, "exec", dont_inherit=True)


def _spot(code: types.CodeType) -> str:
    return f"{code.co_filename}:{code.co_firstlineno}"


def _replace(mutant: Mutant, original: types.CodeType) -> None:
    codes = dict(_codes_of(compile_as(mutant.module, mutant.source)))
    changed = codes[t.cast("tuple[str, int]", mutant.function)]
    for function in gc.get_objects():
        if (
            isinstance(function, types.FunctionType)
            and _spot(function.__code__) == _spot(original)
            and function.__code__.co_name == changed.co_name
        ):
            function.__code__ = changed


def _codes_of(
    code: types.CodeType, prefix: str = ""
) -> Iterator[tuple[tuple[str, int], types.CodeType]]:
    """Give the functions of a module by their names, and which of that name it is."""
    seen: dict[str, int] = {}
    for constant in code.co_consts:
        if not isinstance(constant, types.CodeType):
            continue
        name = f"{prefix}{constant.co_name}"
        if constant.co_flags & 1:  # CO_OPTIMIZED: no class
            number = seen.get(name, 0)
            seen[name] = number + 1
            yield (name, number), constant
        else:
            yield from _codes_of(constant, f"{name}.")
