"""The versions that this project works with, and why: requirements.txt is the one list of them, and its comments are the reasons.

The `requirements.txt` beside this file is a link to that list, so that an installed package has it as well. Only the standard library is
imported here: this has to work where a package is missing, or is one that nothing can be imported from.
"""

from __future__ import annotations  # see environment.py, which imports this

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

LIST = Path(__file__).parent / "requirements.txt"
# A line with a `;` belongs to an extra, in the package's metadata, and is none of these.
LINE = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[\w,-]+\])?\s*(?P<bounds>[^#;]*?)\s*(#\s*(?P<reason>.*))?")
BOUND = re.compile(r"(?P<operator>>=|<|==|!=)(?P<version>\d+(\.\d+)*)(\.\*)?")


@dataclass(frozen=True)
class Requirement:
    """A line of requirements.txt. bounds: `>=4.57,<5`, `==1.27.*` or nothing. reason: its comment."""

    name: str
    extras: str
    bounds: str
    reason: str

    @property
    def line(self) -> str:
        """Return what pip is to be given."""
        return f"{self.name}{self.extras}{self.bounds}"

    def problem(self, found: str | None) -> str | None:
        """Return what is wrong with an installed version, None for no version, with the reason; None if nothing is."""
        if found is not None and all(_holds(bound, found) for bound in self._bounds()):
            return None
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.name} {found or 'not installed'}, expected {self.bounds or 'any version'}{reason}"

    def is_untested(self, found: str | None) -> bool:
        """Return whether a version is older than what the project was measured with and of the same major version: it may well work."""
        if found is None or self.problem(found) is None:
            return False
        return all(_holds(bound, found) or _is_older_minor(bound, found) for bound in self._bounds())

    def _bounds(self) -> list[re.Match]:
        return [bound for part in self.bounds.split(",") if (bound := BOUND.fullmatch(part))]


@cache
def requirements() -> dict[str, Requirement]:
    """Return what has to be installed, by name. Where the list did not come along, the package's metadata has all but the reasons."""
    lines = [found.groupdict("") for line in _lines() if (found := LINE.fullmatch(line))]
    return {line["name"]: Requirement(**line) for line in lines}


def _lines() -> list[str]:
    if LIST.exists():
        return LIST.read_text(encoding="utf-8").splitlines()
    try:
        return requires("gpt2opt") or []
    except PackageNotFoundError:
        return []


def _holds(bound: re.Match, found: str) -> bool:
    """Return whether a version keeps a bound, judged by its numbers alone: `2.13.0+cpu` is 2.13.0, and `5.0rc1` is 5.0."""
    wanted, numbers = _numbers(bound["version"]), _numbers(found)
    if bound["operator"] in ("==", "!="):
        return (numbers[: len(wanted)] == wanted) == (bound["operator"] == "==")
    return numbers >= wanted if bound["operator"] == ">=" else numbers < wanted


def _is_older_minor(bound: re.Match, found: str) -> bool:
    wanted, numbers = _numbers(bound["version"]), _numbers(found)
    return bound["operator"] != "<" and numbers < wanted and numbers[:1] == wanted[:1]


def _numbers(version: str) -> list[int]:
    leading = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in leading[0].split(".")] if leading else []
