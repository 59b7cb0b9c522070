"""Small faults put into a file's syntax tree, one at a time: what a test suite that means something has to notice."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

_OPPOSITE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
_NOT_RUN = {"annotation", "returns", "decorator_list", "type_params"}
"""Parts of the tree that say nothing about what the program does, or whose change no program would load."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: at `holder.field` or `holder[field]` stands `fault` instead of what belongs there."""

    path: Path
    line: int
    scope: str
    """The function or class it is in."""
    tree: ast.Module
    holder: Any
    field: Any
    fault: ast.AST
    number: int
    """Which it is of those in its scope that would be told in the same words."""

    @property
    def name(self) -> str:
        """What it is, without a line number, so that the name survives changes elsewhere in the file."""
        told = f"{self.path}:{self.scope}: {_short(self._here())} -> {_short(self.fault)}"
        return told if self.number == 1 else f"{told} (number {self.number})"

    def code(self) -> CodeType:
        """The file with this fault."""
        right = self._here()
        self._put(self.fault)
        try:
            return compile(ast.fix_missing_locations(self.tree), str(self.path), "exec")
        finally:
            self._put(right)

    def _here(self) -> Any:
        return self.holder[self.field] if isinstance(self.holder, list) else getattr(self.holder, self.field)

    def _put(self, node: ast.AST) -> None:
        if isinstance(self.holder, list):
            self.holder[self.field] = node
        else:
            setattr(self.holder, self.field, node)


def mutants(path: Path, source: str) -> list[Mutant]:
    """Every fault we know for a file, in its order."""
    tree, told, found = ast.parse(source), Counter[tuple[str, str, str]](), []
    for scope, holder, field, node in _places(tree, ""):
        for fault in _faults(node):
            words = (scope, _short(node), _short(fault))
            told[words] += 1
            line = getattr(node, "lineno", 0)
            found.append(Mutant(path, line, scope or "module", tree, holder, field, fault, told[words]))
    return found


def _places(parent: ast.AST, scope: str) -> Iterator[tuple[str, Any, Any, ast.AST]]:
    """Every node that is run, with where it hangs."""
    if isinstance(parent, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{parent.name}".lstrip(".")
    for name, value in ast.iter_fields(parent):
        if name in _NOT_RUN:
            continue
        hung = (
            [(value, i, each) for i, each in enumerate(value)] if isinstance(value, list) else [(parent, name, value)]
        )
        for holder, field, node in hung:
            if isinstance(node, ast.AST):
                yield scope, holder, field, node
                yield from _places(node, scope)


def _faults(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                for other in _OPPOSITE[type(operator)]:
                    yield _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for i in range(len(node.values)):
                left = [*node.values[:i], *node.values[i + 1 :]]
                yield left[0] if len(left) == 1 else _with(node, values=left)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            yield _with(node, op=_ARITHMETIC[type(node.op)]())
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
            yield ast.Constant(node.value - 1)
        case ast.If() | ast.While() | ast.IfExp():
            yield _with(node, test=ast.Constant(False))
            if not isinstance(node, ast.While):
                yield _with(node, test=ast.Constant(True))
        case ast.Expr(value=ast.Call(func=ast.Name(id="assert_never"))):
            return  # what the type checker has proved never to run
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Continue() | ast.Break() | ast.AugAssign() | ast.Delete():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def _with(node: Any, **changes: Any) -> Any:
    made = copy.copy(node)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def _short(node: ast.AST) -> str:
    """The first line of a node as source."""
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).partition("\n")[0]
