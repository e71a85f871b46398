"""Every small change of a module that one of its tests should notice.

The changes are those of mutmut, found here instead of by its command: that one copies
the project, leaves out what is not in a plain function (constants, patterns, the fields
of dataclasses, properties), and cannot choose at random. Two kinds that it lacks are
added: a statement that does not run, and a condition that is turned round.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import typing as t
from collections.abc import Iterator

import libcst as cst
from libcst import matchers as m
from libcst.metadata import CodeRange
from libcst.metadata import MetadataWrapper
from libcst.metadata import PositionProvider
from libcst.metadata import WhitespaceInclusivePositionProvider
from mutmut.mutation.mutators import mutation_operators

# What has no part in what a module does: types, imports, descriptions.
_LEFT_OUT = (
    m.Annotation()
    | m.Import()
    | m.ImportFrom()
    | m.Expr(m.SimpleString() | m.ConcatenatedString() | m.Ellipsis())
    | m.If(test=m.Attribute(attr=m.Name("TYPE_CHECKING")))
    | m.ClassDef(bases=[m.Arg(m.Attribute(attr=m.Name("Protocol")))])
    | m.Assign(
        value=m.Call(func=m.Attribute(attr=m.Name("TypeVar") | m.Name("ParamSpec")))
    )
)
# Becomes True as well; None is as false.
_FALSE = m.Assign(value=m.Name("False")) | m.AnnAssign(value=m.Name("False"))
_CAST = m.Call(func=m.Attribute(value=m.Name("t"), attr=m.Name("cast")))
# Without their arguments these only raise.
_PLAIN = m.Call(func=m.Name("len") | m.Name("isinstance"))


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module with one change.

    :param module: Its name, as it is imported.
    :param place: The class and function, as ``Class.function``.
    :param line: Where the change begins in the module.
    :param change: Place, lines removed and lines added: what it is known by, also after
        the function was moved.
    :param source: The whole module.
    :param function: In whose body the change is, with how many of the same name come
        before it; ``None`` if it is not in the body of a function.
    """

    module: str
    place: str
    line: int
    change: str
    source: str
    function: tuple[str, int] | None


def make_mutants(module: str, source: str) -> list[Mutant]:
    """Give all that differ from the module and from each other, in their order."""
    visitor = _Visitor()
    wrapper = MetadataWrapper(cst.parse_module(source))
    wrapper.visit(visitor)
    starts = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
    mutants: dict[str, Mutant] = {}
    for place, function, where, changed in visitor.changes:
        start = starts[where.start.line - 1] + where.start.column
        end = starts[where.end.line - 1] + where.end.column
        code = wrapper.module.code_for_node(changed)
        mutated = source[:start] + code + source[end:]
        if mutated == source or mutated in mutants or not _compiles(mutated):
            continue
        line, change = _difference(source.splitlines(), mutated.splitlines())
        text = "\n".join([place or "(module)", *change])
        mutants[mutated] = Mutant(module, place, line, text, mutated, function)
    return list(mutants.values())


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, WhitespaceInclusivePositionProvider)

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[
            tuple[str, tuple[str, int] | None, CodeRange, cst.CSTNode]
        ] = []
        self._names: list[str] = []
        self._seen = collections.Counter[str]()
        self._body: cst.CSTNode | None = None
        self._function: tuple[str, int] | None = None

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.ClassDef, cst.FunctionDef)):
            self._names.append(node.name.value)
        if isinstance(node, cst.FunctionDef) and self._body is None:
            self._body = node.body
        elif node is self._body:
            place = ".".join(self._names)
            self._function = place, self._seen[place]
        if m.matches(node, _LEFT_OUT):
            return False
        if m.matches(node, _CAST):
            t.cast("cst.Call", node).args[1].visit(self)
            return False
        for old, new in _changes_of(node):
            where = self.get_metadata(WhitespaceInclusivePositionProvider, old)
            place = ".".join(self._names)
            self.changes.append((place, self._function, where, new))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if original_node is self._body:
            self._seen[".".join(self._names)] += 1
            self._body = self._function = None
        if isinstance(original_node, (cst.ClassDef, cst.FunctionDef)):
            self._names.pop()


def _changes_of(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    for kind, operator in mutation_operators:
        if not isinstance(node, kind) or m.matches(node, _PLAIN | _FALSE):
            continue
        changes = operator(node)
        if isinstance(node, cst.BaseString):
            # The others are the same text in capitals and in small letters.
            changes = itertools.islice(changes, 1)
        for changed in changes:
            yield node, changed
    if isinstance(node, (cst.If, cst.While)):
        brackets = {"lpar": [cst.LeftParen()], "rpar": [cst.RightParen()]}
        condition = node.test.with_changes(**brackets)
        yield node.test, cst.UnaryOperation(cst.Not(), condition, **brackets)
    if isinstance(node, (cst.Expr, cst.Raise, cst.Del)):
        yield node, cst.Pass()


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def _difference(old: list[str], new: list[str]) -> tuple[int, list[str]]:
    shorter = min(len(old), len(new))
    start = end = 0
    while start < shorter and old[start] == new[start]:
        start += 1
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    removed = [f"- {line.strip()}" for line in old[start : len(old) - end]]
    added = [f"+ {line.strip()}" for line in new[start : len(new) - end]]
    return start + 1, removed + added
