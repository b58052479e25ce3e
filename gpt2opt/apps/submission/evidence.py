"""What is handed in: the notebook, the Python in its cells, the trace files, and the record if there is one."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.apps.submission.code import Code, read_code
from gpt2opt.notebook import read_notebook
from gpt2opt.run.record import Measurement, Record, read_record

TRACES, ARTIFACTS, RECORD = "traces", "artifacts", "run.json"
WRITES_RECORD = "`gpt2opt.start_run` and `run.measure` in the cells, or `gpt2opt run`,"


class NotMetError(Exception):
    """A point is not met. The message says what was found instead, and what to do."""


class NoRecordError(Exception):
    """A point can't be decided, because there is no record of a run to compare with, or none that knows of it."""


@dataclass(frozen=True)
class Submission:
    """A notebook and the files that belong to it.

    notebook: as nbformat reads it. cells: its code cells that hold any code. traces: the folder, which may be absent. files: the files in
    it, hidden ones left out. no_record: why there is no record.
    """

    path: Path
    notebook: Any
    cells: tuple[Any, ...]
    code: Code
    traces: Path
    files: tuple[Path, ...]
    record: Record | None
    no_record: str

    @property
    def known(self) -> Record:
        """Return the record, for a point that can't be decided without one."""
        if self.record is None:
            raise NoRecordError(f"no record: {self.no_record}")
        return self.record

    @property
    def text(self) -> str:
        """Return what the cells show as text: their streams, and the richest text of each result."""
        shown = [(output.get("text"), output.get("data", {})) for cell in self.cells for output in cell.outputs]
        return "\n".join(text or data.get("text/markdown") or data.get("text/plain") or "" for text, data in shown)


def read_submission(path: Path, traces: Path | None = None) -> Submission:
    """Read a notebook and the files that belong to it.

    Args:
        path: the notebook.
        traces: folder of the traces; by default `traces` beside the notebook, or `artifacts/traces`, which `gpt2opt run` writes.

    Raises:
        ValueError: the file is missing or is no notebook, or the folder that `traces` names does not exist.
    """
    path = Path(path)
    notebook = read_notebook(path)
    if traces is not None and not Path(traces).is_dir():
        raise ValueError(f"there is no folder {traces}; name the folder that holds the traces")
    if traces is not None and Path(traces).resolve() in (path.resolve(), *path.resolve().parents):
        raise ValueError(f"{traces} is the folder of the notebook or above it, expected one that holds the traces alone")
    places = (path.parent / TRACES, path.parent / ARTIFACTS / TRACES)
    folder = Path(traces) if traces else next(filter(Path.is_dir, places), places[0])
    inside = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    files = tuple(file for file in inside if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    cells = tuple(cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
    record, why = None, f"there is no run.json in traces or artifacts; {WRITES_RECORD} write it"
    if found := next(filter(Path.exists, (folder / RECORD, path.parent / ARTIFACTS / RECORD)), None):
        try:
            record = read_record(found)
        except ValueError as error:
            why = str(error)
    return Submission(path, notebook, cells, read_code([cell.source for cell in cells]), folder, files, record, why)


def measured(record: Record, stage: str) -> Measurement:
    """Return what was measured of the model of a stage."""
    if stage not in record.stages:
        raise NotMetError(f"the record has no stage {stage}; run the notebook to its end")
    return record.stage(stage)


def versions(record: Record) -> list[Record]:
    """Return the record as it is, and as it was before each measurement but the first, the latest first."""
    models = list(record.models.items())
    return [record, *(dataclasses.replace(record, models=dict(models[:count])) for count in range(len(models) - 1, 0, -1))]


def number(cells: list[int]) -> str:
    """Name code cells, given by their index from 0, as a reader counts them: `code cells 2, 5`."""
    shown = ", ".join(str(cell + 1) for cell in cells[:5]) + (f" and {len(cells) - 5} more" if len(cells) > 5 else "")
    return f"code cell{'s' if len(cells) > 1 else ''} {shown}"
