"""Compare the numbers that a notebook shows with those of the record of its run; words are not compared.

The tables and texts that a cell shows are made of the record again, and their numbers are looked for in the outputs of that cell.
"""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from gpt2opt.apps.submission.code import own_name
from gpt2opt.apps.submission.evidence import NotMetError, Submission, number, versions
from gpt2opt.apps.submission.private import PLAIN
from gpt2opt.environment import commit
from gpt2opt.report import conclusions, tables
from gpt2opt.report.table import Table

AGAIN = "run the notebook again, top to bottom"
NUMBER = re.compile(r"[-−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
PRINTS, WRAPS = ("print", "display"), ("str", "Markdown", "markdown")
"""Calls that show their arguments, and those that make another form of a table or a text."""
OBJECT = "<IPython.core.display.Markdown object>"
"""The plain text of a result that is shown as Markdown."""

Numbers = Counter[str]


def figures_of_the_record(s: Submission) -> str:
    """Say how many numbers are those of the record; at least those of the summary must be shown."""
    record, shown, reports = s.known, _numbers(s.text), list(_reports(s))
    by, ours = record.environment.get("commit"), commit()
    hint = f" (commit {by} of gpt2opt wrote the record, and this is {ours}, which may count it otherwise)"
    hint = "" if None in (by, ours) or by == ours else hint
    if unseen := [row[0] for row in tables.summary_table(record).rows if _numbers(" ".join(row)) - shown]:
        raise NotMetError(f"no output shows the figures of {', '.join(unseen)}; show `gpt2opt.summary_table(run.record)` in a cell{hint}")
    for cell, function, rest, named in reports:
        name, made = function.__name__, []
        for version in versions(record):
            with suppress(LookupError, AttributeError, TypeError, ValueError, StopIteration):  # that version lacks what it is made of
                made.append(function(version, *rest, **named))
        if not made:
            raise NotMetError(f"{number([cell])} calls {name}, for which the record lacks something; {AGAIN}{hint}")
        lacking, added = _difference(made, s.cells[cell].outputs)
        if wrong := [f"{verb} {', '.join(list(found)[:5])}" for verb, found in (("lacks", lacking), ("has", added)) if found]:
            what = f"{number([cell])} does not show what {name} gives for this record: it {' and '.join(wrong)}"
            raise NotMetError(f"{what}; {AGAIN}{hint}")
    return f"the numbers of {len(reports)} tables and texts, and those of the summary, are those of the record"


def _reports(s: Submission) -> Iterator[tuple[int, Callable[..., Any], list[Any], dict[str, Any]]]:
    """Yield what cells show of a record: the cell, the function, and its arguments after the record, if they are constants."""
    for cell, tree in enumerate(s.code.cells):
        lines = [line.value for line in tree.body if isinstance(line, ast.Expr)]
        ends_in_value = tree.body and isinstance(tree.body[-1], ast.Expr) and not s.cells[cell].source.rstrip().endswith(";")
        shown = [line for line in lines if own_name(getattr(line, "func", line)) in PRINTS or (ends_in_value and line is lines[-1])]
        for call in (call for line in shown for call in _shown(line)):
            name = s.code.library.get(call, ("",))[0]
            function = getattr(tables, name, None) or getattr(conclusions, name, None)
            if not (call.args and function) or next(iter(inspect.signature(function).parameters), "") != "record":
                continue
            with suppress(ValueError):  # an argument is no constant
                rest = [ast.literal_eval(argument) for argument in call.args[1:]]
                named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
                yield cell, function, rest, named


def _shown(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls whose result is seen where an expression is shown: by itself, printed, or within a text."""
    parts: list[ast.AST] = []
    if isinstance(node, ast.BinOp | ast.JoinedStr | ast.FormattedValue):
        parts += ast.iter_child_nodes(node)
    elif isinstance(node, ast.Call) and own_name(node.func) in (*PRINTS, *WRAPS):
        parts += [*node.args, getattr(node.func, "value", node.func)]
    elif isinstance(node, ast.Call):
        yield node
    for part in parts:
        yield from _shown(part)


def _difference(made: list[Any], outputs: list[Any]) -> tuple[Numbers, Numbers]:
    """Compare what one call makes of each version of the record with the outputs of its cell.

    Returns:
        The numbers that are not there and, in a table that is shown by itself, those that are there besides: of the version and the output
        that agree best.
    """
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    forms = [[output.data[kind] for kind in PLAIN if output.data.get(kind, OBJECT) != OBJECT] for output in outputs if "data" in output]
    best = (float("-inf"), Numbers(), Numbers())
    for content in made:
        numbers = _numbers(str(content))
        for texts in ([printed], *filter(None, forms)):
            shown = [_numbers(text) for text in texts]
            lacking = sum((numbers - found for found in shown), Numbers())
            added = sum((found - numbers for found in shown if isinstance(content, Table) and texts[0] is not printed), Numbers())
            score = numbers.total() - 2 * lacking.total() / len(shown) - added.total()  # those that agree, less those that do not
            best = max(best, (score, lacking, added), key=lambda one: (one[0], -one[1].total()))
    return best[1:]


def _numbers(text: str) -> Numbers:
    return Numbers(NUMBER.findall(text))
