"""Find keys, tokens and home folders in a text.

Own patterns, and not detect-secrets: that has no pattern for the tokens of Hugging Face, the one service that the assignment asks students
to log in to; it takes a notebook for lines of a file, so that the picture in an output is a string of high entropy to it; and it tells no
source, in which nothing may be changed, from an output.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HOME = "~"


@dataclass(frozen=True)
class Finding:
    """What stands at text[start:end] and must not be handed in. todo: what its owner has to do besides taking it out."""

    what: str
    start: int
    end: int
    todo: str = ""


def looks_drawn(value: str) -> bool:
    """Say whether a value has as many different characters as a key has, and a placeholder such as `hf_xxxxxxxx` has not."""
    return len(set(value)) >= 10


def _mixed(value: str) -> bool:
    return looks_drawn(value) and bool(re.search(r"\d", value)) and bool(re.search(r"[A-Za-z]", value))


@dataclass(frozen=True)
class Pattern:
    """A kind of key. hint: a text without which there is none, since that is found much faster. The key is group 1."""

    what: str
    hint: str
    regex: str
    todo: str
    accepts: Callable[[str], bool] = looks_drawn

    def find(self, text: str) -> Iterator[Finding]:
        if self.hint in text:
            for match in re.finditer(self.regex, text, re.DOTALL):
                if self.accepts(match[1]):
                    yield Finding(self.what, match.start(1), match.end(1), self.todo)


PATTERNS = (
    Pattern(
        "private key",
        "PRIVATE KEY",
        r"(-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))",
        "replace the key pair",
    ),
    Pattern("Hugging Face token", "hf_", r"(?<![A-Za-z0-9_])(hf_[A-Za-z0-9]{30,})", "revoke it at huggingface.co/settings/tokens"),
    Pattern("OpenAI key", "sk-", r"(?<![A-Za-z0-9_-])(sk-[A-Za-z0-9_-]{20,})", "revoke it at platform.openai.com/api-keys", _mixed),
    Pattern("AWS key", "IA", r"(?<![A-Za-z0-9])((?:AKIA|ASIA)[A-Z0-9]{16})(?![A-Za-z0-9])", "deactivate it in the IAM console", _mixed),
    Pattern("GitHub token", "gh", r"(?<![A-Za-z0-9_])(gh[pousr]_[A-Za-z0-9]{36,})", "revoke it at github.com/settings/tokens"),
    Pattern("GitHub token", "github_pat_", r"(github_pat_[A-Za-z0-9_]{36,})", "revoke it at github.com/settings/tokens"),
    Pattern("GitLab token", "glpat-", r"(?<![A-Za-z0-9_])(glpat-[A-Za-z0-9_-]{20,})", "revoke it in GitLab's user settings"),
    Pattern("Google key", "AIza", r"(?<![A-Za-z0-9_])(AIza[A-Za-z0-9_-]{35})", "delete it in the Google Cloud console"),
    Pattern("Slack token", "xox", r"(?<![A-Za-z0-9])(xox[abeprs]-[A-Za-z0-9-]{10,})", "revoke it in Slack's app settings"),
    Pattern(
        "Kaggle key",
        "username",
        r"""\\?["']username\\?["']\s*:\s*\\?["'][^"'\\]+\\?["']\s*,\s*\\?["']key\\?["']\s*:\s*\\?["']([0-9a-f]{32})""",
        "expire it at kaggle.com/settings",
    ),
    Pattern("web token", "eyJ", r"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})", "revoke it"),
    Pattern("password in an address", "://", r"://[^\s:/@\"']+:([^\s:/@\"']{6,})@", "change it", lambda value: len(set(value)) > 3),
)
NAMED = re.compile(
    r"""(?<![A-Za-z])(?:\w*(?:api_?key|access_?key|secret|secret_?key|token|passw(?:or)?d)|key)
    \\?["']?\s*\]?\s*[=:]\s*\\?["']?(?:Bearer\s+)?([A-Za-z0-9_+/.=-]{16,})""",
    re.IGNORECASE | re.VERBOSE,
)
"""A value after a name that says what it is, such as `WANDB_API_KEY = "..."`, `"aws_secret_access_key": "..."`."""
PASSWORD = re.compile(r"""passw(?:or)?d["']?\s*\]?\s*[=:]\s*["']([^"'{}<>\s]{6,})["']""", re.IGNORECASE)
PLACEHOLDER = re.compile(r"your|example|placeholder|change.?me|\*{3}|x{4}|\.{3}", re.IGNORECASE)
NO_KEY = re.compile(r"https?://\S+|sha(?:1|224|256|384|512)[-:=]\S+")
"""Addresses hold ids of documents, and hashes are public."""


def find_secrets(text: str, written: bool) -> list[Finding]:
    """Return the keys and tokens in a text, in order.

    Args:
        text: a source, an output or the content of a trace.
        written: a person wrote it or printed it, so that a long string of random characters is a key. In markup, metadata and traces there
            are many such strings that are none.
    """
    found = [finding for pattern in PATTERNS for finding in pattern.find(text)]
    found += [
        Finding("key, by the name before it", *match.span(1), "revoke it") for match in NAMED.finditer(text) if _is_drawn_run(match[1], 16)
    ]
    if written:
        found += [Finding("password", *m.span(1), "change it") for m in PASSWORD.finditer(text) if not PLACEHOLDER.search(m[1])]
        hidden = NO_KEY.sub(lambda match: " " * len(match[0]), text)
        found += [
            Finding("string of high entropy", *match.span(), "revoke it if it is a key")
            for match in re.finditer(r"[A-Za-z0-9]{24,}", hidden)
            if has_high_entropy(match[0])
        ]
    return _apart(found)


def _is_drawn_run(value: str, length: int) -> bool:
    """Say whether letters and digits follow each other, mixed, for so long that the value is no name of a model or a variable."""
    runs = re.findall(rf"[A-Za-z0-9+/]{{{length},}}", value)
    return any(_mixed(run) for run in runs) and not PLACEHOLDER.search(value)


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


def _apart(found: list[Finding]) -> list[Finding]:
    """Drop each finding that overlaps one of an earlier pattern, which knows better what it is."""
    kept: list[Finding] = []
    for finding in found:
        if all(finding.end <= other.start or other.end <= finding.start for other in kept):
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


NAME = r"\w(?:[\w.@+-]*\w)?"
HOMES = re.compile(
    rf"""(?:(?<![\w.~-])|(?<=[\d\[]m))                     # not within a longer path; behind `m` ends a colour of a terminal
    (?:(?:/mnt/[a-z])?/(?:home|Users)/{NAME}               # Linux, macOS, Windows seen from Linux
      |/root(?=[/\s"'\\:,;)\]]|\Z)
      |[A-Za-z]:[\\/]{{1,4}}Users[\\/]{{1,4}}(?:{NAME}(?:\ {NAME})*(?=[\\/])|{NAME}))""",
    re.VERBOSE,
)


def find_homes(text: str) -> list[Finding]:
    """Return the home folders in a text: `/home/NAME`, `/Users/NAME`, `/root`, `C:\\Users\\NAME`."""
    if not any(hint in text for hint in ("/home/", "/root", "Users")):
        return []
    return [Finding(f"home path {match[0]}", *match.span()) for match in HOMES.finditer(text)]


def mask(value: str) -> str:
    """Show enough of a key to find it again, and no more: what `check` prints may be copied anywhere."""
    return f"{value[:5]}… ({len(value)} characters)"
