"""Execute a notebook in place, headless, with a line of progress for every section."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

from gpt2opt.storage import write_whole

CELL: dict[str, Any] = {"metadata": {}, "source": ""}
CODE_CELL = CELL | {"execution_count": None, "outputs": []}
"""What a cell must have, with the values that it gets where they are missing."""
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
    start = time.perf_counter()

    def elapsed() -> str:
        minutes, seconds = divmod(int(time.perf_counter() - start), 60)
        return f"{minutes}:{seconds:02d}"

    def show_heading(cell: Any, **_) -> None:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            print(f"{elapsed()}  {cell.source.splitlines()[0].lstrip('# ')}", file=sys.stderr, flush=True)

    client = NotebookClient(
        notebook,
        timeout=None,
        coalesce_streams=True,  # a text that is printed token by token is one output
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
        content, strange = json.loads(Path(path).read_bytes()), ""
        if content.get("nbformat") == 4:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                changed, content = nbformat.validator.normalize(content)  # cells get ids of their own
            strange = _first_problem(content) or ("a cell has no id of its own" if changed else "")
            cells = [(CODE_CELL if cell["cell_type"] == "code" else CELL) | cell for cell in content["cells"]]
            content = {"metadata": {}, "nbformat_minor": 0, **content, "cells": cells}
            bare = {**content, "metadata": {}, "cells": [cell | {"metadata": {}} for cell in cells]}
            if wrong := _first_problem(bare, relax_add_props=True):
                raise ValueError(wrong)
        notebook = nbformat.convert(nbformat.reader.reads(json.dumps(content)), 4)
    except OSError as error:
        reason = error.strerror or str(error)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = f"it is not JSON ({error})"
    except (ValueError, TypeError, AttributeError, KeyError, nbformat.ValidationError) as error:
        reason = f"its JSON is not that of a notebook ({type(error).__name__}: {error})"
    else:
        if strange:
            logger.warning("%s is not quite a notebook by its format (%s); it is read all the same, as Jupyter does", path, strange)
        return notebook
    raise ValueError(f"can't read the notebook {path}: {reason}; name an .ipynb file")


def notebook_text(notebook: Any) -> str:
    """Return a notebook as the text of its file."""
    from nbformat.v4 import writes  # unlike nbformat.writes, it does not log once more what is wrong by the format

    return writes(notebook) + "\n"


def _first_problem(content: dict[str, Any], **how: Any) -> str:
    """Return what the format does not allow in a notebook, see `nbformat.validate`; nothing if all is right."""
    import nbformat

    try:
        nbformat.validate(content, **how)
    except nbformat.ValidationError as problem:
        place, reason = list(problem.relative_path), textwrap.shorten(problem.message, 160, placeholder=" …")
        return f"cell {place[1] + 1}: {reason}" if place[:1] == ["cells"] else reason
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpt2opt.notebook", description="Execute a notebook in place, with progress.")
    parser.add_argument("path", type=Path, help="an .ipynb file; it is left as it was if a cell fails")
    parser.set_defaults(command=lambda options: execute_notebook(options.path))
    return parser


if __name__ == "__main__":
    from gpt2opt.errors import guarded

    sys.exit(guarded(_parser))
