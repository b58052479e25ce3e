"""What is handed in: the notebook, the Python in its cells, the trace files, and the record if there is one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.apps.submission.code import Code, read_code
from gpt2opt.notebook import read_notebook
from gpt2opt.run.record import Record, read_record

RECORD = "run.json"


class NotMetError(Exception):
    """A point is not met. The message says what was found instead, and what to do."""


@dataclass(frozen=True)
class Submission:
    """A notebook and the files that belong to it.

    notebook: as nbformat reads it. cells: its code cells that hold any code. traces: the folder, which may be absent. files: the files in
    it, hidden ones left out, by their names in the zip file. no_record: why there is no record.
    """

    path: Path
    notebook: Any
    cells: tuple[Any, ...]
    code: Code
    traces: Path
    files: dict[str, Path]
    record: Record | None
    no_record: str


def read_submission(path: Path, traces: Path | None = None) -> Submission:
    """Read a notebook and the files that belong to it; raise ValueError if it is no notebook, or if `traces` is no folder of traces.

    The traces are by default in `traces` beside the notebook, or in `artifacts/traces`, which `gpt2opt run` writes.
    """
    notebook = read_notebook(path)
    if traces and not traces.is_dir():
        raise ValueError(f"there is no folder {traces}; name the folder that holds the traces")
    if traces and traces.resolve() in path.resolve().parents:
        raise ValueError(f"{traces} is the folder of the notebook or above it, expected one that holds the traces alone")
    places = (path.parent / "traces", path.parent / "artifacts" / "traces")
    folder = traces or next(filter(Path.is_dir, places), places[0])
    inside = {file.relative_to(folder.parent): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files = {name.as_posix(): file for name, file in inside.items() if not any(part.startswith(".") for part in name.parts[1:])}
    cells = tuple(cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())
    record, why = None, "there is no run.json in traces or artifacts; `gpt2opt.start_run` and `run.measure`, or `gpt2opt run`, write it"
    if found := next(filter(Path.exists, (folder / RECORD, path.parent / "artifacts" / RECORD)), None):
        try:
            record = read_record(found)
        except ValueError as error:
            why = str(error)
    return Submission(path, notebook, cells, read_code([cell.source for cell in cells]), folder, files, record, why)


def number(cells: list[int]) -> str:
    """Name code cells, given by their index from 0, as a reader counts them: `code cells 2, 5`."""
    shown = ", ".join(str(cell + 1) for cell in cells[:5]) + (f" and {len(cells) - 5} more" if len(cells) > 5 else "")
    return f"code cell{'s' if len(cells) > 1 else ''} {shown}"
