"""Hold what a notebook shows against the record of its run: rows of tables wherever they stand, and what the code of a cell makes of it.

Everything is made anew from the record by the functions of the report, so that nothing here knows a header or a sentence of theirs.
"""

import ast
import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any

import gpt2opt
from gpt2opt.apps.submission.code import called
from gpt2opt.apps.submission.evidence import NoRecordError, NotMetError, Submission, number, shown_text
from gpt2opt.environment import commit
from gpt2opt.report.table import Table
from gpt2opt.report.tables import record_tables, stage_table, summary_table
from gpt2opt.run.record import Record

REPORTS = ("report.tables", "report.conclusions")
"""The modules whose public functions make a table or a text of a record."""
AGAIN = "run the notebook again, top to bottom"
UNMADE = (LookupError, AttributeError, TypeError, ValueError, StopIteration)
"""What a function of the report raises if the record lacks what it needs: a stage, a control, a fact."""
ALMOST = 0.8
"""Share of the characters that two lines have in common, by which the one is the other with a mistake in it."""
OBJECT = "<IPython.core.display.Markdown object>"
"""What stands in plain text for a text that is shown as Markdown."""

Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """A call in a cell that makes something of the record.

    rest, named: its arguments behind the record. shown: its result is what the cell shows. printed: the cell shows something of it.
    """

    cell: int
    name: str
    rest: tuple[Any, ...]
    named: dict[str, Any]
    shown: bool
    printed: bool

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(gpt2opt, self.name)

    def made_of(self, records: list[Record]) -> list[Any]:
        """Return what the call makes of each record; nothing of one that lacks what it needs."""
        made = []
        for record in records:
            with suppress(*UNMADE):
                made.append(self.function(record, *self.rest, **self.named))
        return made


@dataclasses.dataclass(frozen=True)
class Known:
    """What the report's functions make of a record as it is, and as it was before each measurement."""

    record: Record
    reports: tuple[Report, ...]

    @cached_property
    def tables(self) -> list[Table]:
        return self._tables([self.record])

    @cached_property
    def earlier(self) -> list[Table]:
        return self._tables(self.versions[1:])

    @cached_property
    def versions(self) -> list[Record]:
        """Return the record, and what it was when a cell further up was run, the latest first."""
        versions = []
        for count in range(len(self.record.stages), -1, -1):
            before, last = self.record.stages[: max(0, count - 1)], self.record.stages[max(0, count - 1) : count]
            kept = range(len(last[0].controls), -1, -1) if last else [0]
            stages = [[*before, *(dataclasses.replace(stage, controls=stage.controls[:some]) for stage in last)] for some in kept]
            versions += [dataclasses.replace(self.record, stages=some) for some in stages]
        return versions

    def _tables(self, records: list[Record]) -> list[Table]:
        tables: list[Table] = []
        for record in records:
            with suppress(*UNMADE):
                tables += [*record_tables(record).values(), *(stage_table(record, stage.name) for stage in record.stages)]
        return tables + [made for report in self.reports for made in report.made_of(records) if isinstance(made, Table)]


def figures_of_the_record(s: Submission) -> str:
    """Say how many rows and lines are those of the record; at least the summary must be shown."""
    if s.record is None:
        raise NoRecordError(f"no record: {s.no_record}")
    known = Known(s.record, tuple(_reports(s)))
    try:
        rows = _compare_rows(s, known)
        lines = sum(_compare_whole(s, known, report) for report in known.reports)
    except NotMetError as error:
        raise NotMetError(f"{error}{_other_version(s.record)}") from error
    return f"{rows} rows of tables and {lines} lines of tables and texts in whole are those of the record"


def _other_version(record: Record) -> str:
    made_by, ours = record.environment.get("commit"), commit()
    if None in (made_by, ours) or made_by == ours:
        return ""
    return f" (commit {made_by} of gpt2opt wrote the record, and this is {ours}, which may word or count it otherwise)"


def _reports(s: Submission) -> Iterator[Report]:
    """Yield the calls that make a table or a text of a record, if their other arguments stand there as constants."""
    for cell, tree in enumerate(s.code.cells):
        shown = list(_shown(tree, s.cells[cell].source))
        printed = [node for line in tree.body if isinstance(line, ast.Expr) for node in ast.walk(line)]
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = (s.code.library.get(call) or ("",))[0]
            if not _is_report(name) or not call.args:
                continue
            given = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
            if all(isinstance(node, ast.Constant) for node in given) and all(keyword.arg for keyword in call.keywords):
                rest = tuple(ast.literal_eval(node) for node in call.args[1:])
                named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
                yield Report(cell, name, rest, named, call in shown, call in printed)


def _is_report(name: str) -> bool:
    if gpt2opt._HOMES.get(name) not in REPORTS:
        return False
    return next(iter(inspect.signature(getattr(gpt2opt, name)).parameters)) == "record"


def _shown(tree: ast.Module, source: str) -> Iterator[ast.expr]:
    """Yield what a cell shows by itself: what it prints or displays alone, and its last value; `.markdown()` of it and the like, too."""
    calls = [line.value for line in tree.body if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)]
    shown = [call.args[0] for call in calls if called(call) in ("print", "display") and len(call.args) == 1 and not call.keywords]
    if tree.body and isinstance(last := tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        shown.append(last.value)
    for value in shown:
        while isinstance(value, ast.Call) and called(value) in ("str", "Markdown", "markdown"):
            value = value.args[0] if value.args else getattr(value.func, "value", value.func)
        yield value


def _compare_rows(s: Submission, known: Known) -> int:
    """Compare each row of each table that is known by its header, in whatever cell it stands; return how many there are."""
    summary, shown = summary_table(known.record), set()
    for cell, content in enumerate(s.cells):
        for header, rows, behind in _shown_tables(shown_text(content), {_cells(table.header) for table in known.tables}):
            wrong = _wrong_row(header, rows, behind, known.tables)
            if wrong and _wrong_row(header, rows, behind, known.tables + known.earlier):
                raise NotMetError(f"{number([cell])} shows {wrong}; {AGAIN}")
            shown |= {(header, row) for row in rows}
    unseen = [row[0] for row in summary.rows if (_cells(summary.header), _cells(row)) not in shown]
    if unseen:
        raise NotMetError(f"no output shows the figures of {', '.join(unseen)}; show `gpt2opt.summary_table(run.record)` in a cell")
    return len(shown)


def _shown_tables(text: str, headers: set[Row]) -> Iterator[tuple[Row, list[Row], Row]]:
    """Yield each table in a text whose header is known: the header, its rows, and the line behind them, which has other cells."""
    split = [*map(_split, text.split("\n")), ()]
    for place, header in enumerate(split):
        if header in headers:
            end = next(at for at in range(place + 1, len(split)) if len(split[at]) != len(header) or split[at] in headers)
            rows = [row for row in split[place + 1 : end] if not all(re.fullmatch("-+", cell) for cell in row)]
            yield header, rows, () if split[end] in headers else split[end]


def _wrong_row(header: Row, rows: list[Row], behind: Row, tables: list[Table]) -> str:
    """Say which row is in none of the tables, or what stands behind them and is almost a row of one; nothing if all is well."""
    every = {_cells(row) for table in tables if _cells(table.header) == header for row in table.rows}
    for row in rows:
        if row not in every:
            return _difference(header, row, every)
    almost = difflib.get_close_matches(" ".join(behind), map(" ".join, every), 1, ALMOST)
    return f"{' '.join(behind)!r}, and the record has {almost[0]!r}" if almost else ""


def _split(line: str) -> Row:
    """Return the cells of a line of a table, of Markdown or of aligned text."""
    inner = line.strip()
    parts = inner.strip("|").split("|") if inner.startswith("|") else re.split(r"\s{2,}", inner)
    return _cells(tuple(parts))


def _cells(row: Row) -> Row:
    """Return cells as they compare: Markdown knows no vertical bar in a cell, and no spaces around it."""
    return tuple(" ".join(cell.replace("|", "/").split()) for cell in row)


def _difference(header: Row, row: Row, rows: set[Row]) -> str:
    same = next((other for other in rows if other[0] == row[0]), None)
    if same is None:
        return f"{row[0]!r}, which is not in the record"
    name, shown, recorded = next(cells for cells in zip(header, row, same, strict=True) if cells[1] != cells[2])
    return f"{name} = {shown} for {row[0]}, and the record has {recorded}"


def _compare_whole(s: Submission, known: Known, report: Report) -> int:
    """Compare what a cell shows with what its call makes of the record, character by character; return how many lines that is.

    A text must stand among what its cell prints, a table must be what its cell shows; otherwise there is nothing to compare.
    """
    made = report.made_of([known.record]) or report.made_of(known.versions)
    if not made:
        raise NotMetError(f"{number([report.cell])} calls {report.name}, for which the record lacks something; {AGAIN}")
    if not (report.shown if isinstance(made[0], Table) else report.printed):
        return 0
    cell = s.cells[report.cell]
    forms, shown = [form.split("\n") for form in _forms(made[0])], shown_text(cell).split("\n")
    if _stands_in(cell.outputs, made[0], report.shown) or any(
        _was_shown(cell, made[0], content, report.shown) for content in report.made_of(known.versions[1:])
    ):
        return len(forms[0])
    lines = next((form for form in forms if form[0] in shown), forms[0])
    other = next((line for line in lines if line not in shown), lines[0])
    raise NotMetError(f"{number([report.cell])} does not say what follows from the record: {other!r}; {AGAIN}")


def _was_shown(cell: Any, now: Any, before: Any, alone: bool) -> bool:
    """Say whether a cell shows what the record gave before it had all, and nothing that is almost a line which it gives now."""
    if not _stands_in(cell.outputs, before, alone):
        return False
    known, came = ({line for form in _forms(content) for line in form.split("\n")} for content in (before, now))
    rest = [line for line in shown_text(cell).split("\n") if line not in known]
    return not any(difflib.get_close_matches(line, rest, 1, ALMOST) for line in came - known)


def _forms(content: Any) -> tuple[str, ...]:
    """Return a table or a text in each form in which a cell can show it."""
    return (str(content), content.markdown(), repr(content)) if isinstance(content, Table) else (content, repr(content))


def _stands_in(outputs: list[Any], content: Any, alone: bool) -> bool:
    """Say whether a table or a text was printed, in lines of its own if it was `alone`, or is what an output shows in each of its forms."""
    forms = _forms(content)
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    if any(f"\n{form}\n" in f"\n{printed}\n" if alone else form in printed for form in forms):
        return True
    rich = [
        [output.data[kind] for kind in ("text/markdown", "text/plain") if kind in output.data] for output in outputs if "data" in output
    ]
    return any(texts and all(text in (*forms, OBJECT) for text in texts) for texts in rich)
