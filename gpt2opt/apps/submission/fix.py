"""Take out of a submission what can be taken out safely. What a user wrote, the sources of cells, is never changed, only named.

A path in a source may be needed to run the notebook, and a key taken out of one would still have to be revoked: only its owner can do that.
"""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2opt.apps.submission.evidence import RECORD, Submission
from gpt2opt.apps.submission.secrets import HOME, find_homes, find_secrets, mask
from gpt2opt.apps.submission.texts import PERSONAL, Place, visit_notebook, visit_trace
from gpt2opt.notebook import notebook_text
from gpt2opt.storage import claim_folder, write_whole

COPIES = "before-fix"


@dataclass(frozen=True)
class Fixed:
    """changed: what was taken out, and where. todo: what is left to the user. copies: where the files are as they were before."""

    changed: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)


def fix_submission(submission: Submission) -> Fixed:
    """Take home paths, keys and time stamps out of outputs, metadata and traces.

    The files as they were are copied into `before-fix` beside the notebook first; a copy of an earlier time stays.

    Raises:
        ValueError, OSError: a file can't be read or written, or `before-fix` is a folder of the user's own.
    """
    path, cleaner = submission.path, _Cleaner()
    before = path.read_bytes()
    visit_notebook(submission.notebook, cleaner.clean)
    _drop_time_stamps(submission.notebook, cleaner)
    after = {path: before if not cleaner.changed else notebook_text(submission.notebook).encode()}
    for trace in submission.files:
        after[trace] = visit_trace(trace, trace.relative_to(submission.traces.parent).as_posix(), cleaner.clean)
    _renew_hashes(after, submission.traces / RECORD)
    changed = {file: content for file, content in after.items() if content != file.read_bytes()}
    names = {path: path.name} | {file: file.relative_to(submission.traces.parent).as_posix() for file in submission.files}
    copies = [_keep(file, path.parent / COPIES, names[file]) for file in changed]
    for file, content in changed.items():
        write_whole(file, content)
    if copies and cleaner.keys:
        cleaner.todo[f"delete {path.parent / COPIES} when you need it no longer: it holds the keys"] = None
    return Fixed(list(cleaner.changed), list(cleaner.todo), copies)


def _renew_hashes(after: dict[Path, bytes], record: Path) -> None:
    """Give the record the hashes of the traces as they will be, in place of those as they are; a trace that it does not know stays so."""
    if record not in after:
        return
    for file, content in after.items():
        old, new = (hashlib.sha256(version).hexdigest().encode() for version in (file.read_bytes(), content))
        after[record] = after[record].replace(old, new)


@dataclass
class _Cleaner:
    """Replaces what is found and keeps account of it, each entry once and in order."""

    changed: dict[str, None] = field(default_factory=dict)
    todo: dict[str, None] = field(default_factory=dict)
    keys: bool = False

    def clean(self, place: Place, text: str) -> str:
        secrets = find_secrets(text, place.written)
        self.keys = self.keys or bool(secrets)
        for finding in secrets:
            what = f"{finding.what} {mask(text[finding.start : finding.end])}"
            self.todo[f"{what}: {finding.todo}; whoever saw the file may have it"] = None
            self._note(place, what)
        for finding in find_homes(text):
            self._note(place, finding.what)
        if place.source:
            return text
        text = _replaced(text, [(finding.start, finding.end, f"[{finding.what} removed]") for finding in secrets])
        return _replaced(text, [(finding.start, finding.end, HOME) for finding in find_homes(text)])

    def _note(self, place: Place, what: str) -> None:
        if place.source:
            self.todo[f"{place.name}: {what} stands in the source, which is yours and was not changed; take it out and run all again"] = (
                None
            )
        else:
            self.changed[f"{place.name}: {what} was taken out"] = None


def _replaced(text: str, pieces: list[tuple[int, int, str]]) -> str:
    for start, end, instead in reversed(pieces):
        text = text[:start] + instead + text[end:]
    return text


def _drop_time_stamps(notebook: Any, cleaner: _Cleaner) -> None:
    holders = [("notebook", notebook), *((f"{cell.cell_type} cell", cell) for cell in notebook.cells)]
    dropped = [name for name in PERSONAL for _, holder in holders if holder.metadata.pop(name, None) is not None]
    if dropped:
        cleaner.changed[f"metadata: {', '.join(dict.fromkeys(dropped))}, which say when and by whom cells were run, were taken out"] = None


def _keep(file: Path, folder: Path, name: str) -> Path:
    """Copy a file into a folder of ours, under a name that is free, unless it is there already."""
    claim_folder(folder)
    content = file.read_bytes()
    for number in itertools.count(1):
        copy = folder / (name if number == 1 else f"{name}.{number}")
        if not copy.exists():
            write_whole(copy, content)
            return copy
        if copy.read_bytes() == content:
            return copy
    raise AssertionError("there is always a free name")
