"""Hold the figures that a notebook shows against the record of its run: tables row by row, conclusions line by line."""

import re
from collections.abc import Iterator

from gpt2opt.record import Record
from gpt2opt.report import conclusions
from gpt2opt.report.tables import record_tables, summary_table
from gpt2opt.settings import STAGES
from gpt2opt.submission.evidence import NoRecordError, NotMetError, Submission, number, shown_text

CONCLUSIONS = dict(
    zip(
        ("conclude_profile", "conclude_prune", "conclude_finetune", "conclude_quantize"),
        zip(STAGES, (getattr(conclusions, f"conclude_{stage.partition('-')[2]}") for stage in STAGES), strict=True),
        strict=True,
    )
)
Row = tuple[str, ...]


def figures_of_the_record(s: Submission) -> str:
    """Say how many rows and lines are those of the record; at least the summary must be shown."""
    if s.record is None:
        raise NoRecordError(f"no record: {s.no_record}")
    rows = _compare_tables(s, s.record)
    lines = _compare_conclusions(s, s.record)
    return f"{rows} rows of tables and {lines} lines of conclusions are those of the record"


def _compare_tables(s: Submission, record: Record) -> int:
    known = [*record_tables(record).values()]
    headers = {_cells(table.header): {_cells(row) for row in table.rows} for table in known}
    summary, shown = summary_table(record), set()
    for cell, content in enumerate(s.cells):
        for header, row in _shown_rows(shown_text(content), headers):
            if row not in headers[header]:
                raise NotMetError(
                    f"{number([cell])} shows {_difference(header, row, headers[header])}; run the notebook again, top to bottom"
                )
            shown.add((header, row))
    unseen = [row[0] for row in summary.rows if (_cells(summary.header), _cells(row)) not in shown]
    if unseen:
        raise NotMetError(f"no output shows the figures of {', '.join(unseen)}; show `gpt2opt.summary_table(run.record)` in a cell")
    return len(shown)


def _shown_rows(text: str, headers: dict[Row, set[Row]]) -> Iterator[tuple[Row, Row]]:
    """Yield each row of each known table in a text, with the header of that table."""
    header: Row | None = None
    for line in text.splitlines():
        cells = _split(line)
        if cells in headers:
            header = cells
        elif header is None or len(cells) != len(header):
            header = None
        elif not all(re.fullmatch("-+", cell) for cell in cells):
            yield header, cells


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


def _compare_conclusions(s: Submission, record: Record) -> int:
    lines = 0
    for name, (stage, conclude) in CONCLUSIONS.items():
        for cell, _ in s.code.calls(name):
            if stage not in [other.name for other in record.stages]:
                raise NotMetError(f"{number([cell])} concludes from the stage {stage}, which is not in the record; run the notebook again")
            expected = conclude(record).splitlines()
            shown = shown_text(s.cells[cell]).splitlines()
            if other := [line for line in expected if line not in shown]:
                raise NotMetError(f"{number([cell])} does not say what follows from the record: {other[0]!r}; run the notebook again")
            lines += len(expected)
    return lines
