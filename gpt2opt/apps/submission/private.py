"""Find keys, tokens and home folders in every text of a submission. `check` and `--fix` use the same functions, so they find the same.

Own patterns, and not detect-secrets: that has no pattern for the tokens of Hugging Face, the one service that the assignment asks students
to log in to, and it reads a notebook as lines of a file, so that it does not distinguish a source, which is never changed, from an output.
"""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANY_BYTE = "surrogateescape"
"""How bytes that are no UTF-8 are decoded, so that they come back as they were."""


@dataclass(frozen=True)
class Pattern:
    """A kind of key, which is group 1 of the regular expression.

    hint: a text that is always in it, since that is found much faster. todo: what the owner of such a key must do.
    """

    what: str
    hint: str
    regex: str
    todo: str


NAME = r"\w(?:[\w.@+-]*\w)?"
HOME = Pattern(
    "home path",
    "",
    rf"""(?x)(?:(?<![\w.~-])|(?<=\dm))              # not within a longer path; behind `m` ends a colour of a terminal
    ((?:/mnt/[a-z])?/(?:home|Users)/{NAME}          # Linux, macOS, Windows seen from Linux
      |/root(?![\w-])
      |[A-Za-z]:[\\/]{{1,4}}Users[\\/]{{1,4}}(?:{NAME}(?:\ {NAME})*(?=[\\/])|{NAME}))""",
    "",
)
"""`/home/NAME`, `/Users/NAME`, `/root`, `C:\\Users\\NAME`."""
PRIVATE_KEY = r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))"
BY_NAME = r"""(?ix)(?:api_?key|access_?key|secret|secret_?key|token|passw(?:or)?d|\bkey)\\?["']?\s*\]?\s*[=:]\s*\\?["']?(?:Bearer\s+)?
    ((?=[\w.+/=-]*[0-9])(?=[\w.+/=-]*[a-z])[\w.=-]*[a-z0-9+/]{16,}[\w.+/=-]*)"""
"""Such as `WANDB_API_KEY = "..."`: 16 letters and digits in a row, so that `your_token` is none."""
PASSWORD = r"""(?i)passw(?:or)?d["']?\s*\]?\s*[=:]\s*["']([^"'{}<>\s]{6,})["']"""
PATTERNS = (
    Pattern("private key", "PRIVATE KEY", PRIVATE_KEY, "replace the key pair"),
    Pattern("Hugging Face token", "hf_", r"\b(hf_[A-Za-z0-9]{30,})", "revoke it at huggingface.co/settings/tokens"),
    Pattern("OpenAI key", "sk-", r"\b(sk-(?=[\w-]*\d)[\w-]{20,})", "revoke it at platform.openai.com/api-keys"),
    Pattern("AWS key", "IA", r"\b(A[KS]IA[A-Z0-9]{16})\b", "deactivate it in the IAM console"),
    Pattern("GitHub token", "_", r"\b((?:gh[pousr]|github_pat)_\w{36,})", "revoke it at github.com/settings/tokens"),
    Pattern("GitLab token", "glpat-", r"\b(glpat-[\w-]{20,})", "revoke it in GitLab's user settings"),
    Pattern("Google key", "AIza", r"\b(AIza[\w-]{35})", "delete it in the Google Cloud console"),
    Pattern("Slack token", "xox", r"\b(xox[abeprs]-[A-Za-z0-9-]{10,})", "revoke it in Slack's app settings"),
    Pattern("web token", "eyJ", r"\b(eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})", "revoke it"),
    Pattern("password in an address", "://", r"""://[^\s:/@"']+:([^\s:/@"'*]{6,})@""", "change it"),
    Pattern("key, by the name before it", "", BY_NAME, "revoke it"),
    Pattern("password", "", PASSWORD, "change it"),
    HOME,
)
"""What must not be handed in. Where two match the same text, the first knows better what it is. A false alarm names the place."""


@dataclass(frozen=True)
class Finding:
    """A part of a text, from `start` to `end`, that must not be handed in."""

    pattern: Pattern
    value: str
    start: int
    end: int

    def __str__(self) -> str:
        """Show enough of a key to find it again, and no more: what `check` prints may be copied anywhere."""
        shown = self.value if self.pattern is HOME else f"{self.value[:5]}… ({len(self.value)} characters)"
        return f"{self.pattern.what} {shown}"


def find_private(text: str) -> list[Finding]:
    """Return the keys, tokens and home folders in a text, in order."""
    found: list[Finding] = []
    for pattern in PATTERNS:
        if pattern.hint in text:
            new = [Finding(pattern, match[1], *match.span(1)) for match in re.finditer(pattern.regex, text)]
            found += [one for one in new if all(one.end <= other.start or other.end <= one.start for other in found)]
    return sorted(found, key=lambda finding: finding.start)


Visit = Callable[[str, str], str]
"""Takes the name of a place and a text that was found there, and returns what replaces the text."""


def named_cells(notebook: Any) -> list[tuple[str, Any]]:
    """Return the cells of a notebook, each with its name, such as `code cell 3`; code cells without code are not counted."""
    counted: Counter[str] = Counter()
    named = []
    for cell in notebook.cells:
        kind = "code" if cell.cell_type == "code" else "text"
        counted[kind] += kind == "text" or bool(cell.source.strip())
        named.append((f"{kind} cell {counted[kind]}", cell))
    return named


def visit_outputs(notebook: Any, visit: Visit) -> None:
    """Replace each text in the outputs and metadata of a notebook by what `visit` returns for it."""
    for name, cell in named_cells(notebook):
        cell.metadata = _changed(cell.metadata, f"metadata of {name}", visit)
        if cell.cell_type == "code":
            cell.outputs = _changed(cell.outputs, f"output of {name}", visit)
    notebook.metadata = _changed(notebook.metadata, "metadata of the notebook", visit)


def _changed(value: Any, place: str, visit: Visit) -> Any:
    """Return a value of JSON with each text in it, except pictures, replaced by what `visit` returns."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "image/svg+xml" or not key.startswith("image/"):
                value[key] = _changed(item, place, visit)
        return value
    if isinstance(value, list):
        return [_changed(item, place, visit) for item in value]
    return visit(place, value) if isinstance(value, str) else value


def visit_trace(path: Path, name: str, visit: Visit) -> bytes:
    """Return the bytes of a file of the traces, with its text replaced by what `visit` returns; raise OSError if it can't be read whole."""
    content = path.read_bytes()
    packed = path.suffix == ".gz"
    try:
        text = (gzip.decompress(content) if packed else content).decode("utf-8", ANY_BYTE)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{name} is cut short or damaged; export the trace again") from error
    changed = visit(name, text)
    if changed == text:
        return content
    data = changed.encode("utf-8", ANY_BYTE)
    return gzip.compress(data, mtime=0) if packed else data
