"""Find keys, tokens and home folders in every text of a submission. `check` and `--fix` use the same functions, so they find the same.

Own patterns, and not detect-secrets: that has no pattern for the tokens of Hugging Face, the one service that the assignment asks students
to log in to; it takes a notebook for lines of a file, so that the picture in an output is a string of high entropy to it; and it does not
distinguish a source, in which nothing may be changed, from an output.
"""

import gzip
import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PLACEHOLDER = re.compile(r"your|example|placeholder|change.?me|\*{3}|x{4}|\.{3}", re.IGNORECASE)
EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")
"""A file within a text, such as a picture in HTML. Nothing is looked for in it."""
PLAIN = ("text/plain", "text/markdown")
ANY_BYTE = "surrogateescape"
"""How bytes that are no UTF-8 are decoded, so that they come back as they were."""


def looks_drawn(value: str) -> bool:
    """Say whether a value has as many different characters as a key has, and a placeholder such as `hf_xxxxxxxx` has not."""
    return len(set(value)) >= 10


def _mixed(value: str) -> bool:
    return looks_drawn(value) and bool(re.search(r"\d", value)) and bool(re.search(r"[A-Za-z]", value))


def _has_mixed_run(value: str) -> bool:
    """Say whether letters and digits follow each other, mixed, for so long that the value is no name of a model or a variable."""
    return any(map(_mixed, re.findall(r"[A-Za-z0-9+/]{16,}", value))) and not PLACEHOLDER.search(value)


def has_high_entropy(value: str) -> bool:
    """Say whether letters of both cases and digits follow each other without order.

    Entropy by how often each character occurs does not tell a key from a long name in camel case. How often the kind of character changes
    from one to the next does: in 62% of places if they are drawn from the 62, seldom in names. Digits of a hash, in hexadecimal, are none.
    """
    if re.fullmatch("[0-9a-fA-F]+", value) or not all(re.search(kind, value) for kind in ("[a-z]", "[A-Z]", "[0-9].*[0-9].*[0-9]")):
        return False
    kinds = re.sub("[0-9]", "0", re.sub("[A-Z]", "A", re.sub("[a-z]", "a", value)))
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())
    return changes >= 0.45 * (len(value) - 1) and entropy > 3.5


@dataclass(frozen=True)
class Pattern:
    """A kind of key, which is group 1 of the regular expression.

    hints: texts of which one must be there, since they are found much faster. todo: what the owner of such a key must do. accepts: says
    whether it is one. written: only looked for in what a person wrote or printed: markup, metadata and traces hold many that are none.
    """

    what: str
    hints: tuple[str, ...]
    regex: str
    todo: str
    accepts: Callable[[str], bool] = looks_drawn
    written: bool = False


NAME = r"\w(?:[\w.@+-]*\w)?"
HOME = Pattern(
    "home path",
    ("/home/", "/root", "Users"),
    rf"""(?x)(?:(?<![\w.~-])|(?<=[\d\[]m))                 # not within a longer path; behind `m` ends a colour of a terminal
    ((?:/mnt/[a-z])?/(?:home|Users)/{NAME}                 # Linux, macOS, Windows seen from Linux
      |/root(?=[/\s"'\\:,;)\]]|\Z)
      |[A-Za-z]:[\\/]{{1,4}}Users[\\/]{{1,4}}(?:{NAME}(?:\ {NAME})*(?=[\\/])|{NAME}))""",
    "",
    bool,
)
"""`/home/NAME`, `/Users/NAME`, `/root`, `C:\\Users\\NAME`."""
PATTERNS = (
    Pattern(
        "private key",
        ("PRIVATE KEY",),
        r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))",
        "replace the key pair",
    ),
    Pattern("Hugging Face token", ("hf_",), r"(?<![A-Za-z0-9_])(hf_[A-Za-z0-9]{30,})", "revoke it at huggingface.co/settings/tokens"),
    Pattern("OpenAI key", ("sk-",), r"(?<![A-Za-z0-9_-])(sk-[A-Za-z0-9_-]{20,})", "revoke it at platform.openai.com/api-keys", _mixed),
    Pattern("AWS key", ("IA",), r"(?<![A-Za-z0-9])(A[KS]IA[A-Z0-9]{16})(?![A-Za-z0-9])", "deactivate it in the IAM console", _mixed),
    Pattern(
        "GitHub token",
        ("gh", "github_pat_"),
        r"((?<![A-Za-z0-9_])gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{36,})",
        "revoke it at github.com/settings/tokens",
    ),
    Pattern("GitLab token", ("glpat-",), r"(?<![A-Za-z0-9_])(glpat-[A-Za-z0-9_-]{20,})", "revoke it in GitLab's user settings"),
    Pattern("Google key", ("AIza",), r"(?<![A-Za-z0-9_])(AIza[A-Za-z0-9_-]{35})", "delete it in the Google Cloud console"),
    Pattern("Slack token", ("xox",), r"(?<![A-Za-z0-9])(xox[abeprs]-[A-Za-z0-9-]{10,})", "revoke it in Slack's app settings"),
    Pattern(
        "Kaggle key",
        ("username",),
        r"""\\?["']username\\?["']\s*:\s*\\?["'][^"'\\]+\\?["']\s*,\s*\\?["']key\\?["']\s*:\s*\\?["']([0-9a-f]{32})""",
        "expire it at kaggle.com/settings",
    ),
    Pattern("web token", ("eyJ",), r"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})", "revoke it"),
    Pattern("password in an address", ("://",), r"://[^\s:/@\"']+:([^\s:/@\"']{6,})@", "change it", lambda value: len(set(value)) > 3),
    Pattern(  # such as `WANDB_API_KEY = "..."`, `"aws_secret_access_key": "..."`
        "key, by the name before it",
        ("",),
        r"""(?ix)(?<![A-Za-z])(?:\w*(?:api_?key|access_?key|secret|secret_?key|token|passw(?:or)?d)|key)
        \\?["']?\s*\]?\s*[=:]\s*\\?["']?(?:Bearer\s+)?([A-Za-z0-9_+/.=-]{16,})""",
        "revoke it",
        _has_mixed_run,
    ),
    Pattern(
        "password",
        ("",),
        r"""(?i)passw(?:or)?d["']?\s*\]?\s*[=:]\s*["']([^"'{}<>\s]{6,})["']""",
        "change it",
        lambda value: not PLACEHOLDER.search(value),
        written=True,
    ),
    Pattern(  # addresses hold ids of documents, and hashes are public: they match first, without a group
        "string of high entropy",
        ("",),
        r"https?://\S+|sha(?:1|224|256|384|512)[-:=]\S+|([A-Za-z0-9]{24,})",
        "revoke it if it is a key",
        has_high_entropy,
        written=True,
    ),
    HOME,
)
"""What must not be handed in. Where two match the same text, the first knows better what it is."""


@dataclass(frozen=True)
class Finding:
    """A part of a text, from `start` on, that must not be handed in."""

    pattern: Pattern
    value: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.value)

    @property
    def replacement(self) -> str:
        return "~" if self.pattern is HOME else f"[{self.pattern.what} removed]"

    def __str__(self) -> str:
        """Show enough of a key to find it again, and no more: what `check` prints may be copied anywhere."""
        shown = self.value if self.pattern is HOME else f"{self.value[:5]}… ({len(self.value)} characters)"
        return f"{self.pattern.what} {shown}"


def find_private(text: str, written: bool) -> list[Finding]:
    """Return the keys, tokens and home folders in a text, in order; written: see `Pattern`."""
    text = EMBEDDED.sub(lambda match: " " * len(match[0]), text)
    found: list[Finding] = []
    for pattern in PATTERNS:
        if written >= pattern.written and any(hint in text for hint in pattern.hints):
            matches = [match for match in re.finditer(pattern.regex, text) if match[1] and pattern.accepts(match[1])]
            new = [Finding(pattern, match[1], match.start(1)) for match in matches]
            found += [one for one in new if all(one.end <= other.start or other.end <= one.start for other in found)]
    return sorted(found, key=lambda finding: finding.start)


@dataclass(frozen=True)
class Place:
    """Where a text was found. source: in a cell's source, which is the user's own work. written: see `Pattern`."""

    name: str
    source: bool = False
    written: bool = False


Visit = Callable[[Place, str], str]
"""Takes a text and returns what replaces it."""


def visit_notebook(notebook: Any, visit: Visit) -> None:
    """Replace each text of a notebook by what `visit` returns for it. Pictures and the ids of cells are no text."""
    counted: Counter[str] = Counter()
    for cell in notebook.cells:
        kind = "code" if cell.cell_type == "code" else "text"
        counted[kind] += kind == "text" or bool(cell.source.strip())
        name = f"{kind} cell {counted[kind]}"
        cell.source = visit(Place(name, source=True, written=True), cell.source)
        cell.metadata = _changed(cell.metadata, Place(f"metadata of {name}"), visit)
        if kind == "code":
            cell.outputs = _changed(cell.outputs, Place(f"output of {name}", written=True), visit)
    notebook.metadata = _changed(notebook.metadata, Place("metadata of the notebook"), visit)


def _changed(value: Any, place: Place, visit: Visit) -> Any:
    """Return a value of JSON with each text in it, except pictures, replaced by what `visit` returns."""
    if isinstance(value, dict):
        for key, item in value.items():
            written = place.written and key != "metadata" and ("/" not in key or key in PLAIN)  # "/": a kind of data in an output
            if key == "image/svg+xml" or not key.startswith("image/"):
                value[key] = _changed(item, replace(place, written=written), visit)
        return value
    if isinstance(value, list):
        return [_changed(item, place, visit) for item in value]
    return visit(place, value) if isinstance(value, str) else value


def visit_trace(path: Path, name: str, visit: Visit) -> bytes:
    """Return the bytes of a file of the traces, with its text replaced by what `visit` returns for it.

    Raises:
        OSError: the file can't be read, or is no whole gzip file although its name says so.
    """
    content = path.read_bytes()
    packed = path.suffix == ".gz"
    try:
        text = (gzip.decompress(content) if packed else content).decode("utf-8", ANY_BYTE)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{name} is cut short or damaged; export the trace again") from error
    changed = visit(Place(name), text)
    if changed == text:
        return content
    data = changed.encode("utf-8", ANY_BYTE)
    return gzip.compress(data, mtime=0) if packed else data
