"""Execute a notebook in place, headless, with a line of progress for every section."""

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from gpt2opt.storage import write_whole

WIDGET = "application/vnd.jupyter.widget-view+json"


def execute_notebook(path: Path) -> int:
    """Run a notebook top to bottom in a fresh kernel and write it back with its outputs.

    Returns:
        0, or 1 if a cell failed: then the file is left as it was, and the cell and its error are shown.

    Raises:
        ValueError: the file is missing, is no notebook, or has no code cell.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    path = Path(path)
    notebook = read_notebook(path)
    if not any(cell.cell_type == "code" for cell in notebook.cells):
        raise ValueError(f"the notebook {path} has no cell to run; name one with code cells")
    progress = _Progress(notebook)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_notebook_start=_interrupt_as_usual,
        on_cell_start=progress.on_cell_start,
        # Since ipykernel 7.4 the kernel warns that its messages are not encrypted. They stay on this machine, and are signed.
        extra_arguments=["--log-level=ERROR"],
    )
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        client.execute()
    except KeyboardInterrupt:
        client.shutdown_kernel = "immediate"  # it ends with this process; asked to, it would complain of what it was doing
        raise
    except CellExecutionError as error:
        print(f"\ngpt2opt: a cell failed after {progress.elapsed()}; {path.name} is left as it was\n{error}", file=sys.stderr)
        return 1
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps, which differ on every run
    _drop_progress_bars(notebook)
    write_whole(path, nbformat.writes(notebook) + "\n")
    print(f"{progress.elapsed()}  done: {path.name} holds {_count_charts(notebook)} charts", file=sys.stderr)
    return 0


def _interrupt_as_usual(**_) -> None:
    """Let an interrupt raise KeyboardInterrupt: nbclient would end the kernel alone, and report that as a failure of its own."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def read_notebook(path: Path):
    """Read a notebook and check that it is one.

    Raises:
        ValueError: the file is missing or is no notebook.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        nbformat.ValidationError,
    ) as error:  # all that it raises for JSON of other kinds
        raise ValueError(f"can't read the notebook {path} ({type(error).__name__}); name an .ipynb file") from error
    return notebook


def _drop_progress_bars(notebook) -> None:
    """Remove the widgets of progress bars: in a file nothing moves them, and a reader would see them where they stood at first."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def _count_charts(notebook) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


class _Progress:
    """Prints each heading when the first code cell below it starts."""

    def __init__(self, notebook):
        self.start = time.perf_counter()
        self.headings: dict[int, str] = {}
        heading = None
        for index, cell in enumerate(notebook.cells):
            lines = cell.source.splitlines()
            if cell.cell_type == "markdown" and lines and lines[0].startswith("#"):
                heading = lines[0].lstrip("# ")
            elif cell.cell_type == "code" and heading:
                self.headings[index], heading = heading, None

    def elapsed(self) -> str:
        minutes, seconds = divmod(int(time.perf_counter() - self.start), 60)
        return f"{minutes}:{seconds:02d}"

    def on_cell_start(self, cell, cell_index: int, **_) -> None:
        if cell_index in self.headings:
            print(f"{self.elapsed()}  {self.headings[cell_index]}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpt2opt.notebook", description="Execute a notebook in place, with progress.")
    parser.add_argument("path", type=Path, help="an .ipynb file; it is left as it was if a cell fails")
    parser.set_defaults(command=lambda options: execute_notebook(options.path))
    return parser


if __name__ == "__main__":
    from gpt2opt.cli import guarded

    sys.exit(guarded(_parser))
