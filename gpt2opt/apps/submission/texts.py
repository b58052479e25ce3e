"""Every text of a submission in which a key or a home folder can stand. `check` and `--fix` go the same way, so that they see the same."""

import gzip
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2opt.apps.submission.events import change_events

PERSONAL = ("execution", "ExecuteTime", "executionInfo", "papermill")
"""Metadata that tools add when a cell runs: time stamps, and in Colab the user's name and number."""
PLAIN = ("text/plain", "text/markdown")
ANY_BYTE = "surrogateescape"
"""How bytes that are no UTF-8 are decoded, so that they come back as they were."""
EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")


@dataclass(frozen=True)
class Place:
    """Where a text stands. source: in a cell's source, which is the user's own work. written: see `find_secrets`."""

    name: str
    source: bool = False
    written: bool = False


Visit = Callable[[Place, str], str]
"""Takes a text and returns what is to stand in its place."""


def visit_notebook(notebook: Any, visit: Visit) -> None:
    """Show each text of a notebook to `visit`, and put what it returns in its place. Pictures and the ids of cells are no text."""
    counted = {"code": 0, "markdown": 0, "raw": 0}
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.strip():
            continue
        counted[cell.cell_type] += 1
        name = f"{'code' if cell.cell_type == 'code' else 'text'} cell {counted[cell.cell_type]}"
        cell.source = visit(Place(name, source=True, written=True), cell.source)
        cell.metadata = _changed(cell.metadata, Place(f"metadata of {name}"), visit)
        if cell.cell_type == "code":
            cell.outputs = [_visit_output(output, Place(f"output of {name}", written=True), visit) for output in cell.outputs]
    notebook.metadata = _changed(notebook.metadata, Place("metadata of the notebook"), visit)


def _visit_output(output: Any, place: Place, visit: Visit) -> Any:
    for name in ("text", "ename", "evalue", "traceback"):
        if name in output:
            output[name] = _changed(output[name], place, visit)
    for kind, content in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            output["data"][kind] = _changed(content, replace(place, written=kind in PLAIN), visit)
    if "metadata" in output:
        output["metadata"] = _changed(output["metadata"], replace(place, written=False), visit)
    return output


def _changed(value: Any, place: Place, visit: Visit) -> Any:
    """Return a value of JSON with each text in it, but for embedded pictures, replaced by what `visit` returns."""
    if isinstance(value, dict):
        for name, item in value.items():
            value[name] = _changed(item, place, visit)
        return value
    if isinstance(value, list):
        return [_changed(item, place, visit) for item in value]
    if not isinstance(value, str):
        return value
    parts, pictures = EMBEDDED.split(value), EMBEDDED.findall(value)
    return "".join(visit(place, part) + picture for part, picture in zip(parts, [*pictures, ""], strict=True))


def visit_trace(path: Path, name: str, visit: Visit) -> bytes:
    """Show the text of a file of the traces to `visit`, and return the file's bytes with what it returned.

    Raises:
        OSError: the file can't be read, or is no whole gzip file although its name says so.
    """
    content = path.read_bytes()
    try:
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", ANY_BYTE)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{name} is cut short or damaged; export the trace again") from error
    changed = visit(Place(name), text)
    if changed == text:
        return content
    if ".tfevents." in path.name:
        return change_events(content, lambda text: visit(Place(name), text))
    packed = changed.encode("utf-8", ANY_BYTE)
    return gzip.compress(packed, mtime=0) if path.suffix == ".gz" else packed
