"""Imports one module from another file than its own."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
import typing as t
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NAME = "MUTATED_MODULE"
_SOURCE = "MUTATED_SOURCE"


def mutate(name: str, source: str, folder: str) -> None:
    """Make this process, and all Pythons that it starts, import a changed module."""
    os.environ[_NAME] = name
    os.environ[_SOURCE] = f"{folder}/mutant.py"
    Path(folder, "mutant.py").write_text(source, "utf-8")
    Path(folder, "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\n"
        f"from {__name__} import install\ninstall()\n",
        "utf-8",
    )
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, path]))
    install()


def install() -> None:
    """Import what the environment names."""
    source = Path(os.environ[_SOURCE]).read_text("utf-8")
    sys.meta_path.insert(0, _Finder(os.environ[_NAME], source))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, source: str) -> None:
        self._name = name
        self._source = source

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        # As if it had been read from there, in tracebacks too.
        file = f"{ROOT}/{fullname.replace('.', '/')}.py"
        loader = _Loader(fullname, file)
        loader.source = self._source
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    source: str

    def get_code(self, fullname: str) -> t.Any:
        # Neither read from a compiled file nor written to one.
        return compile(self.source, self.path, "exec", dont_inherit=True)
