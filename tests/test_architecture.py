"""Holds the package against what docs and issues promise of its shape."""

from __future__ import annotations

import ast
import graphlib
import re
import typing as t
from pathlib import Path

import pytest

import flask_serversession

NAME = "flask_serversession"
ROOT = Path(flask_serversession.__file__).parent
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in FILES.items()}

MOST_LINES_OF_A_FILE = 560
MOST_LINES_OF_A_FUNCTION = 60
#: A backend's verbs, and who may call them on the application's backend.
VERBS = {
    *("load", "create", "replace", "delete", "touch"),
    *("load_many", "keys_of_user", "iterate", "count", "prune", "sweep"),
}
CALLERS = {
    *(
        "lifecycle.py",
        "activity.py",
        "loading.py",
        "conflicts.py",
        "atomic.py",
        "ending.py",
        "rotation.py",
        "unsettled.py",
    ),
    *("user_limit.py", "operator.py", "outside.py", "core.py"),
    "trial.py",  # whose record is its own
    *("takeover", "backends", "testing"),
    "leftovers.py",  # which deletes, and does nothing else
    "cleanup.py",  # which prunes, and does nothing else
}


def module_of(name: str) -> str:
    """Return the dotted name of a file's module."""
    parts = [NAME, *name.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(name): name for name in FILES}


class Imports(ast.NodeVisitor):
    """Collects what a file imports, also inside of functions, as dotted names.

    Leaves out what is imported for type checkers only.
    """

    def __init__(self, name: str) -> None:
        self.package = module_of(name)
        if not name.endswith("__init__.py"):
            self.package = self.package.rpartition(".")[0]
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("t.TYPE_CHECKING", "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = self.package.split(".")
            parts = parts[: len(parts) - node.level + 1]
            base = ".".join([*parts, base] if base else parts)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            self.found.add(inner if inner in MODULES else base)


def imports_of(name: str) -> set[str]:
    imports = Imports(name)
    imports.visit(TREES[name])
    return imports.found


def functions_of(tree: ast.AST) -> t.Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def is_of_the_backend(node: ast.Attribute) -> bool:
    """Whether a verb is looked up on something that is called a backend."""
    owner = node.value
    name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
    return node.attr in VERBS and name.lstrip("_") == "backend"


def test_no_modules_import_each_other() -> None:
    graph = {
        module: imports_of(name) & set(MODULES) - {module}
        for module, name in MODULES.items()
    }
    assert graph[f"{NAME}.extension"] > {f"{NAME}.cli", f"{NAME}.backends"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        pytest.fail(f"a circle of imports: {circle}")


def test_imports_go_down_the_floors_of_the_documented_picture() -> None:
    picture = (ROOT.parent / "docs" / "_static" / "architecture.svg").read_text("utf-8")
    floor_of: dict[str, int] = {}
    for floor, group in enumerate(picture.split("</g>")):
        for name in re.findall(r'class="module">([a-z_]+)/?<', group):
            floor_of[name] = floor
    tops = {name.partition("/")[0].removesuffix(".py") for name in FILES}
    assert {*floor_of} == tops - {"__init__", "testing"}
    for name in FILES:
        top = name.partition("/")[0].removesuffix(".py")
        if top not in floor_of:
            continue
        for module in imports_of(name) & set(MODULES):
            other = [*module.split("."), "__init__"][1]
            if other != top and other in floor_of:
                assert floor_of[other] >= floor_of[top], f"{name} imports {module}"


def test_no_file_is_too_long() -> None:
    long = {
        name
        for name, text in FILES.items()
        if len(text.splitlines()) > MOST_LINES_OF_A_FILE
    }
    assert long == {"testing/contract.py"}


def test_no_function_is_too_long() -> None:
    long = {
        f"{name}: {function.name}"
        for name, tree in TREES.items()
        for function in functions_of(tree)
        if (function.end_lineno or 0) - function.lineno >= MOST_LINES_OF_A_FUNCTION
    }
    assert long == set()


def test_no_backend_imports_flask() -> None:
    backends = [name for name in FILES if name.startswith("backends/")]
    assert len(backends) > 5
    for name in backends:
        tops = {imported.partition(".")[0] for imported in imports_of(name)}
        assert "flask" not in tops, name


def test_few_call_the_verbs_of_the_backend() -> None:
    callers = {
        name.partition("/")[0]
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_of_the_backend(node)
    }
    assert "lifecycle.py" in callers
    assert callers <= CALLERS
