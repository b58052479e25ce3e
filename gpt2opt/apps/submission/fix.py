"""Take out of a submission what can be taken out safely. What a user wrote, the sources of cells, is never changed, only named.

A path in a source may be needed to run the notebook, and a key taken out of one would still have to be revoked: only its owner can do that.
"""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from gpt2opt.apps.submission.evidence import RECORD, Submission
from gpt2opt.apps.submission.private import HOME, Place, find_private, visit_notebook, visit_trace
from gpt2opt.notebook import notebook_text
from gpt2opt.storage import claim_folder, write_whole

COPIES = "before-fix"
PERSONAL = ("execution", "ExecuteTime", "executionInfo", "papermill")
"""Metadata that tools add when a cell runs: time stamps, and in Colab the user's name and number."""
EVENTS = ".tfevents."
"""What the name of a log of TensorBoard holds. A text in it can't simply be replaced: the file holds its length and a checksum."""


@dataclass(frozen=True)
class Fixed:
    """changed: what was taken out, and where. todo: what is left to the user. copies: where the files are as they were before."""

    changed: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)


def fix_submission(submission: Submission) -> Fixed:
    """Take home paths, keys and time stamps out of outputs, metadata and traces, and delete logs of TensorBoard that hold such.

    The files as they were are copied into `before-fix` beside the notebook first; a copy of an earlier time stays.

    Raises:
        ValueError, OSError: a file can't be read or written, or `before-fix` is a folder of the user's own.
    """
    path, notebook = submission.path, submission.notebook
    changed: dict[str, None] = {}  # each entry once, in order
    todo: dict[str, None] = {}

    def clean(place: Place, text: str) -> str:
        cleaned = text
        for finding in reversed(find_private(text, place.written)):
            if finding.pattern is not HOME:
                todo[f"{finding}: {finding.pattern.todo}; whoever saw the file may have it"] = None
            if place.source:
                left = "stands in the source, which is yours and was not changed; take it out and run all again"
                todo[f"{place.name}: {finding} {left}"] = None
            else:
                done = "; the log of TensorBoard that holds it was deleted" if EVENTS in place.name else " was taken out"
                changed[f"{place.name}: {finding}{done}"] = None
                cleaned = cleaned[: finding.start] + finding.replacement + cleaned[finding.end :]
        return cleaned

    visit_notebook(notebook, clean)
    dropped = [name for name in PERSONAL for holder in (notebook, *notebook.cells) if holder.metadata.pop(name, None) is not None]
    if dropped:
        changed[f"metadata: {', '.join(dict.fromkeys(dropped))}, which say when and by whom cells were run, were taken out"] = None
    before = {file: file.read_bytes() for file in (path, *submission.files)}
    after = {path: notebook_text(notebook).encode() if changed else before[path]}
    names = {path: path.name} | {file: file.relative_to(submission.traces.parent).as_posix() for file in submission.files}
    for file in submission.files:
        after[file] = visit_trace(file, names[file], clean)
    record, hashes = submission.traces / RECORD, {_hash(before[file]): _hash(content) for file, content in after.items()}
    for old, new in hashes.items() if record in after else ():  # the record knows its traces by their hashes; others are not in it
        after[record] = after[record].replace(old, new)
    files = [file for file, content in after.items() if content != before[file]]
    copies = [_keep(before[file], path.parent / COPIES, names[file]) for file in files]
    for file in files:
        file.unlink() if EVENTS in file.name else write_whole(file, after[file])
    if copies and any("whoever saw the file" in entry for entry in todo):
        todo[f"delete {path.parent / COPIES} when you need it no longer: it holds the keys"] = None
    return Fixed(list(changed), list(todo), copies)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _keep(content: bytes, folder: Path, name: str) -> Path:
    """Copy a file into a folder of ours, under a name that is free, unless it is there already."""
    claim_folder(folder)
    for number in itertools.count(1):
        copy = folder / (name if number == 1 else f"{name}.{number}")
        if not copy.exists():
            write_whole(copy, content)
            return copy
        if copy.read_bytes() == content:
            return copy
    raise AssertionError("there is always a free name")
