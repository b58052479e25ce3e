"""Execute a notebook in place, headless, with a line of progress for every section."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from gpt2opt.storage import write_whole

CELL: dict[str, Any] = {"metadata": {}, "source": ""}
REQUIRED: dict[str, dict[str, Any]] = {
    "code": {**CELL, "execution_count": None, "outputs": []},
    "markdown": CELL,
    "raw": CELL,
    "stream": {"name": "stdout", "text": ""},
    "display_data": {"data": {}, "metadata": {}},
    "execute_result": {"data": {}, "metadata": {}, "execution_count": None},
    "error": {"ename": "", "evalue": "", "traceback": []},
}
"""Kind of a cell or of an output -> the keys that it must have, with the values that they get where they are missing."""
LONGEST_REASON = 160
WIDGET = "application/vnd.jupyter.widget-view+json"

logger = logging.getLogger(__name__)


def execute_notebook(path: Path) -> int:
    """Run a notebook top to bottom in a fresh kernel and write it back with its outputs.

    Returns:
        0, or 1 if a cell failed: then the file is left as it was, and the cell and its error are shown.

    Raises:
        ValueError: the file is missing, is no notebook, or has no code cell.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    path = Path(path)
    notebook = read_notebook(path)
    if not any(cell.cell_type == "code" for cell in notebook.cells):
        raise ValueError(f"the notebook {path} has no cell to run; name one with code cells")
    headings, start = _headings(notebook), time.perf_counter()

    def elapsed() -> str:
        minutes, seconds = divmod(int(time.perf_counter() - start), 60)
        return f"{minutes}:{seconds:02d}"

    def show_heading(cell_index: int, **_) -> None:
        if cell_index in headings:
            print(f"{elapsed()}  {headings[cell_index]}", file=sys.stderr, flush=True)

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_notebook_start=_interrupt_as_usual,
        on_cell_start=show_heading,
        # Since ipykernel 7.4 the kernel warns that its messages are not encrypted. They stay on this machine, and are signed.
        extra_arguments=["--log-level=ERROR"],
    )
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        client.execute()
    except KeyboardInterrupt:
        client.shutdown_kernel = "immediate"  # a kernel that is asked to end would first report the error of its cell
        raise
    except CellExecutionError as error:
        print(f"\ngpt2opt: a cell failed after {elapsed()}; {path.name} is left as it was\n{error}", file=sys.stderr)
        return 1
    _drop_transient(notebook)
    write_whole(path, notebook_text(notebook))
    charts = sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))
    print(f"{elapsed()}  done: {path.name} holds {charts} charts", file=sys.stderr)
    return 0


def _headings(notebook: Any) -> dict[int, str]:
    """Return each heading by the index of the first code cell below it."""
    headings, heading = {}, ""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            heading = cell.source.splitlines()[0].lstrip("# ")
        elif cell.cell_type == "code" and heading:
            headings[index], heading = heading, ""
    return headings


def _drop_transient(notebook: Any) -> None:
    """Remove time stamps, which differ on every run, and progress bars, which a file would show as they were at first."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def _interrupt_as_usual(**_) -> None:
    """Let an interrupt raise KeyboardInterrupt: nbclient would only end the kernel, and report that as a failure of its own."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def read_notebook(path: Path) -> Any:
    """Read a notebook as Jupyter does: missing keys are added, and one warning says what its format does not allow.

    Returns:
        The notebook in format 4. Every cell has metadata and a source, every code cell outputs and an execution count, and no id occurs
        twice.

    Raises:
        ValueError: the file is missing, is no notebook, or a cell can't be read; the message says why.
    """
    import nbformat

    try:
        content = json.loads(Path(path).read_bytes())
        strange = _first_problem(content)
        notebook = nbformat.convert(nbformat.reader.reads(json.dumps(_completed(content))), 4)
    except OSError as error:
        reason = error.strerror or str(error)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = f"it is not JSON ({error})"
    except (ValueError, TypeError, AttributeError, KeyError, nbformat.ValidationError) as error:  # what nbformat raises for other JSON
        reason = _first_line(error)
    else:
        if strange:
            logger.warning("%s is not quite a notebook by its format (%s); it is read all the same, as Jupyter does", path, strange)
        return notebook
    raise ValueError(f"can't read the notebook {path}: {reason}; name an .ipynb file")


def notebook_text(notebook: Any) -> str:
    """Return a notebook as the text of its file."""
    from nbformat.v4 import writes  # unlike nbformat.writes, it does not log once more what is wrong by the format

    return writes(notebook) + "\n"


def _first_problem(content: Any) -> str:
    """Return what the format does not allow in a notebook; nothing if it can't be read at all. Cells get ids of their own."""
    import nbformat
    from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for kind in (DuplicateCellId, MissingIDFieldWarning):
            warnings.simplefilter("always", kind)
        try:
            nbformat.validate(content)
        except nbformat.ValidationError as problem:
            return _first_line(problem)
        except (AttributeError, KeyError, TypeError):
            pass
    return str(caught[0].message).splitlines()[0] if caught else ""


def _completed(content: Any) -> dict[str, Any]:
    """Return parsed JSON with what a notebook of format 4 must have, as empty values where it is missing."""
    import nbformat

    _check_object(content, "it")
    if content.get("nbformat") != 4:
        return content
    if not isinstance(content.get("cells"), list):
        raise ValueError("it has no list of cells")
    for number, cell in enumerate(content["cells"], 1):
        _check_object(cell, f"cell {number}")
        if (kind := cell.get("cell_type")) not in ("code", "markdown", "raw"):
            raise ValueError(f"cell {number} is of type {kind!r}, expected code, markdown or raw")
        cell |= REQUIRED[kind] | cell
        _check_object(cell["metadata"], f"the metadata of cell {number}")
        for output in cell["outputs"] if kind == "code" and isinstance(cell["outputs"], list) else ():
            _check_object(output, f"an output of cell {number}")
            output |= REQUIRED.get(output.get("output_type", ""), {}) | output
        try:
            nbformat.validate(
                cell | {"metadata": {}}, ref=f"{kind}_cell", version=4, version_minor=4, relax_add_props=True
            )  # other keys may be there
        except nbformat.ValidationError as error:
            raise ValueError(f"cell {number}: {_first_line(error)}") from error
    content = {"metadata": {}, "nbformat_minor": 0, **content}
    _check_object(content["metadata"], "its metadata")
    return content


def _check_object(content: Any, name: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a JSON {type(content).__name__}, expected an object")


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "message", error)).splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= LONGEST_REASON else f"{lines[0][:LONGEST_REASON]}…"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpt2opt.notebook", description="Execute a notebook in place, with progress.")
    parser.add_argument("path", type=Path, help="an .ipynb file; it is left as it was if a cell fails")
    parser.set_defaults(command=lambda options: execute_notebook(options.path))
    return parser


if __name__ == "__main__":
    from gpt2opt.errors import guarded

    sys.exit(guarded(_parser))
