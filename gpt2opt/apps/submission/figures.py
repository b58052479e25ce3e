"""Compare the numbers that a notebook shows with those of the record of its run; words are not compared.

The tables and texts that a cell shows are made of the record again, and their numbers are looked for in the outputs of that cell.
"""

import ast
import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from gpt2opt.apps.submission.code import last_value, own_name
from gpt2opt.apps.submission.evidence import NotMetError, Submission, number
from gpt2opt.report import conclusions, tables
from gpt2opt.run.record import Record

AGAIN = "run the notebook again, top to bottom"
NUMBER = re.compile(r"[-−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
PRINTS, WRAPS = ("print", "display"), ("str", "Markdown", "markdown")
"""Calls that show their arguments, and those that make another form of a table or a text."""
OBJECT = "<IPython.core.display.Markdown object>"
"""The plain text of a result that is shown as Markdown."""

Numbers = Counter[str]


def figures_of_the_record(s: Submission) -> str:
    """Say how many tables and texts have the numbers of the record; at least those of the summary must be shown."""
    record, reports = s.record, list(_reports(s))
    assert record
    shown = sum((_numbers(text) for cell in s.cells for texts in _texts(cell.outputs) for text in texts), Numbers())
    if unseen := [row[0] for row in tables.summary_table(record).rows if _numbers(" ".join(row)) - shown]:
        raise NotMetError(f"no output shows the figures of {', '.join(unseen)}; show `tables.summary_table(run.record)` in a cell")
    for cell, function, rest, named in reports:
        name, made = function.__name__, []
        for version in _versions(record):
            with suppress(LookupError, AttributeError, TypeError, ValueError, StopIteration):  # that version lacks what it is made of
                made.append(_numbers(str(function(version, *rest, **named))))
        if not made:
            raise NotMetError(f"{number([cell])} calls {name}, for which the record lacks something; {AGAIN}")
        if lacking := min((_lacking(made, texts) for texts in _texts(s.cells[cell].outputs)), key=Numbers.total):
            what = f"{number([cell])} does not show what {name} gives for this record: it lacks {', '.join(list(lacking)[:5])}"
            raise NotMetError(f"{what}; {AGAIN}")
    return f"the numbers of {len(reports)} tables and texts, and those of the summary, are those of the record"


def _versions(record: Record) -> list[Record]:
    """Return the record as it is, and as it was before each measurement but the first, the latest first."""
    models = list(record.models.items())
    return [dataclasses.replace(record, models=dict(models[:count])) for count in range(len(models), 0, -1)]


def _reports(s: Submission) -> Iterator[tuple[int, Callable[..., Any], list[Any], dict[str, Any]]]:
    """Yield what cells show of a record: the cell, the function, and its arguments after the record, if they are constants."""
    for cell, tree in enumerate(s.code.cells):
        lines, last = [line.value for line in tree.body if isinstance(line, ast.Expr)], last_value(tree, s.cells[cell].source)
        shown = [line for line in lines if line is last or own_name(getattr(line, "func", line)) in PRINTS]
        for call in (call for line in shown for call in _shown(line)):
            name = own_name(call.func)
            function = getattr(tables, name, None) or getattr(conclusions, name, None)
            if not (call.args and function) or next(iter(inspect.signature(function).parameters), "") != "record":
                continue
            with suppress(ValueError):  # an argument is no constant
                rest = [ast.literal_eval(argument) for argument in call.args[1:]]
                named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
                yield cell, function, rest, named


def _shown(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls whose result is seen where an expression is shown: by itself, printed, or within a text."""
    if isinstance(node, ast.Call) and own_name(node.func) not in (*PRINTS, *WRAPS):
        yield node
    elif isinstance(node, ast.Call | ast.BinOp | ast.JoinedStr | ast.FormattedValue) or own_name(node) == "markdown":
        for part in ast.iter_child_nodes(node):
            yield from _shown(part)


def _texts(outputs: list[Any]) -> list[list[str]]:
    """Return the text that a cell printed and, of each result that it shows, the plain text and the Markdown, where they are there."""
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    results = [output.data for output in outputs if "data" in output]
    forms = [[data[kind] for kind in ("text/plain", "text/markdown") if data.get(kind, OBJECT) != OBJECT] for data in results]
    return [[printed], *filter(None, forms)]


def _lacking(made: list[Numbers], texts: list[str]) -> Numbers:
    """Return the numbers that the texts lack, of that version of the record with which they agree best."""
    shown = [_numbers(text) for text in texts]
    best = max(made, key=lambda numbers: sum((numbers & found).total() - (numbers - found).total() for found in shown))
    return sum((best - found for found in shown), Numbers())


def _numbers(text: str) -> Numbers:
    return Numbers(NUMBER.findall(text))
