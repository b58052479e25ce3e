"""Write what is handed in as one zip file, the same bytes for the same files."""

import io
import zipfile
from pathlib import Path

from gpt2opt.apps.submission.evidence import Submission
from gpt2opt.storage import check_file, write_result

MARKER = b"gpt2opt.submission/1"
"""The comment of a zip file by which it shows that this project wrote it."""
TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold


def check_zip(path: Path) -> None:
    """Raise ValueError unless a zip file may be written to `path`: it is absent, or one of ours by its comment.

    That one of our files is in it does not make it ours: a user may have packed that with other things.
    """
    if path.is_file() and (not zipfile.is_zipfile(path) or zipfile.ZipFile(path).comment != MARKER):
        raise ValueError(f"{path} is there and is no zip file that gpt2opt wrote, so it is left alone; name another file")
    check_file(path)


def write_zip(submission: Submission, path: Path) -> dict[str, int]:
    """Write the notebook and its traces; return the size of each file in bytes, by its name and in its order in the zip file."""
    files = {submission.path.name: submission.path, **submission.files}
    contents = {name: files[name].read_bytes() for name in sorted(files)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = MARKER
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, TIME)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # Unix, a file that all may read
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    write_result(path, buffer.getvalue())
    return {name: len(content) for name, content in contents.items()}
