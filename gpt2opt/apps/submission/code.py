"""The Python in the cells of a notebook, read without running it. What stands in comments and docstrings is no evidence of anything."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpt2opt.apps.submission.library import Function, library_calls

AROUND_PYTHON = re.compile(r"\A\s*%%(?:time|timeit|capture|prun)\b.*\n?")
"""Cell magics below which stands Python."""


@dataclass(frozen=True)
class Code:
    """cells: the syntax tree of each code cell; an empty one where a cell is not Python. A cell is known by its place from 0."""

    cells: tuple[ast.Module, ...]

    @cached_property
    def functions(self) -> dict[str, tuple[int, Function]]:
        """Return the functions that the notebook defines, the last of each name, each with its cell."""
        found = ((cell, node) for cell, tree in enumerate(self.cells) for node in ast.walk(tree))
        return {node.name: (cell, node) for cell, node in found if isinstance(node, Function)}

    @cached_property
    def stubs(self) -> dict[str, int]:
        """Return the functions whose body does nothing yet, by name, with their cells."""
        return {name: cell for name, (cell, node) in self.functions.items() if all(map(_does_nothing, node.body))}

    @cached_property
    def library(self) -> dict[ast.Call, tuple[str, ...]]:
        """Return the calls of this library; see `library_calls`."""
        return library_calls(self.cells)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Return the names that are set to a constant somewhere, with the last one."""
        assigned = (node for tree in self.cells for node in ast.walk(tree) if isinstance(node, ast.Assign))
        return {
            target.id: node.value.value
            for node in assigned
            if isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def calls(self, names: str, cells: range | None = None) -> list[tuple[int, ast.Call]]:
        """Return the calls of functions whose own name (`c` in `a.b.c()`) matches a pattern, each with its cell.

        A call of this library matches by what its function does, too. One of a function that the notebook leaves empty matches nothing.

        Args:
            names: a regular expression for the whole name.
            cells: those that count; all unless told.
        """
        pattern, found = re.compile(names), []
        for cell in range(len(self.cells)) if cells is None else cells:
            calls = (node for node in ast.walk(self.cells[cell]) if isinstance(node, ast.Call))
            found += [(cell, call) for call in calls if any(map(pattern.fullmatch, self._does(call)))]
        return found

    def _does(self, call: ast.Call) -> tuple[str, ...]:
        return self.library.get(call) or (() if called(call) in self.stubs else (called(call),))

    def value(self, node: ast.expr | None) -> Any:
        """Return the constant that an expression is, or that the name in it was set to; None if it is neither."""
        if isinstance(node, ast.Constant):
            return node.value
        return self.constants.get(node.id) if isinstance(node, ast.Name) else None

    def settings(self, name: str) -> list[ast.expr]:
        """Return what is given by a name: as keyword of a call, key of a dictionary or default of a parameter."""
        return [value for tree in self.cells for node in ast.walk(tree) for key, value in _given(node) if key == name]

    def words(self, cell: int) -> str:
        """Return the names and strings in a cell and in the functions of the notebook that it calls, and what the library's do."""
        tree = self.cells[cell]
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        bodies = [self.functions[called(call)][1] for call in calls if called(call) in self.functions and call not in self.library]
        done = [word for call in calls for word in self.library.get(call, ())]
        return " ".join([*done, *(word for part in (tree, *bodies) for node in ast.walk(part) for word in _words(node))])

    def assigns(self, names: str) -> bool:
        """Say whether a name or an attribute that matches is assigned to."""
        targets = (target for tree in self.cells for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets)
        return any(re.fullmatch(names, _own_name(target)) for target in targets)


def read_code(sources: list[str]) -> Code:
    return Code(tuple(map(_parse, sources)))


def _parse(source: str) -> ast.Module:
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        tree = ast.parse(TransformerManager().transform_cell(AROUND_PYTHON.sub("", source)))
    except (SyntaxError, ValueError):  # ValueError: a null character
        return ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_constant(line)]  # type: ignore[attr-defined]
    return tree


def called(call: ast.Call) -> str:
    """Return the own name of what is called: `c` in `a.b.c()`."""
    return _own_name(call.func)


def _own_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        return "NotImplementedError" in ast.unparse(statement)
    return isinstance(statement, ast.Pass)


def _is_constant(statement: ast.stmt) -> bool:
    """Say whether a statement is a constant alone: a docstring, or three dots in place of code."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _given(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value
    elif isinstance(node, Function):
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        yield from zip(names[::-1], node.args.defaults[::-1], strict=False)


def _words(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    yield _own_name(node)
