"""Take out of a submission what can be taken out safely. What a user wrote, the sources of cells, is never changed, only named.

A path in a source may be needed to run the notebook, and a key taken out of one would still have to be revoked: only its owner can do that.
"""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from gpt2opt.apps.submission.evidence import RECORD, Submission
from gpt2opt.apps.submission.private import HOME, Finding, find_private, named_cells, visit_outputs, visit_trace
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

    The files as they were are copied into `before-fix` beside the notebook first; a copy of an earlier time stays. Raises ValueError or
    OSError if a file can't be read or written, or if `before-fix` is a folder of the user's own.
    """
    path, notebook = submission.path, submission.notebook
    changed: dict[str, None] = {}  # each entry once, in order
    todo: dict[str, None] = {}

    def revoke(finding: Finding) -> None:
        if finding.pattern is not HOME:
            todo[f"{finding}: {finding.pattern.todo}; whoever saw the file may have it"] = None

    def clean(place: str, text: str) -> str:
        for finding in reversed(find_private(text)):
            revoke(finding)
            done = "; the log of TensorBoard that holds it was deleted" if EVENTS in place else " was taken out"
            changed[f"{place}: {finding}{done}"] = None
            text = text[: finding.start] + ("~" if finding.pattern is HOME else f"[{finding.pattern.what} removed]") + text[finding.end :]
        return text

    for name, cell in named_cells(notebook):
        for finding in find_private(cell.source):
            todo[f"{name}: {finding} is in the source, which is yours and was not changed; take it out and run all again"] = None
            revoke(finding)
    visit_outputs(notebook, clean)
    dropped = [name for name in PERSONAL for holder in (notebook, *notebook.cells) if holder.metadata.pop(name, None) is not None]
    if dropped:
        changed[f"metadata: {', '.join(dict.fromkeys(dropped))}, which say when and by whom cells were run, were taken out"] = None
    files = {path.name: path, **submission.files}
    before = {name: file.read_bytes() for name, file in files.items()}
    after = {path.name: notebook_text(notebook).encode() if changed else before[path.name]}
    after |= {name: visit_trace(file, name, clean) for name, file in submission.files.items()}
    record = f"{submission.traces.name}/{RECORD}"
    for name in after if record in after else ():  # the record knows its traces by their hashes; others are not in it
        after[record] = after[record].replace(_hash(before[name]), _hash(after[name]))
    different = [name for name, content in after.items() if content != before[name]]
    copies = [_keep(before[name], path.parent / COPIES, name) for name in different]
    for name in different:
        files[name].unlink() if EVENTS in name else write_whole(files[name], after[name])
    if copies and any("whoever saw the file" in entry for entry in todo):
        todo[f"delete {path.parent / COPIES} when you need it no longer: it holds the keys"] = None
    return Fixed(list(changed), list(todo), copies)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _keep(content: bytes, folder: Path, name: str) -> Path:
    """Copy a file into a folder of ours, under a name that is free, unless it is there already."""
    claim_folder(folder)
    copies = (folder / (name if count == 1 else f"{name}.{count}") for count in itertools.count(1))
    copy = next(copy for copy in copies if not copy.exists() or copy.read_bytes() == content)
    write_whole(copy, content)
    return copy
