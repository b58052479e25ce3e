"""The package versions that this project works with, and why: requirements.txt is the one list of them, and its comments are the reasons.

The `requirements.txt` beside this file is a link to that list, so that an installed package has it too.
"""

from __future__ import annotations  # see environment.py, which imports this

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LIST = Path(__file__).parent / "requirements.txt"
LINE = re.compile(r"(?P<line>(?P<name>[\w.-]+)(\[[\w,-]+\])?(?P<bounds>[^#;\s]*))\s*(#\s*(?P<reason>.*))?")


@dataclass(frozen=True)
class Requirement:
    """A line of requirements.txt. line: what pip takes. bounds: `>=4.57,<5`, `==1.27.*` or nothing. reason: its comment."""

    line: str
    name: str
    bounds: str
    reason: str

    def problem(self, found: str | None) -> str | None:
        """Return what is wrong with an installed version, None for no version, with the reason; None if nothing is wrong."""
        if found and (not self.bounds or _holds(self.bounds, found)):
            return None
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.name} {found or 'not installed'}, expected {self.bounds or 'any version'}{reason}"

    def is_untested(self, found: str | None) -> bool:
        """Return whether a version is older than all those that were measured with, but of their major version: it may well work."""
        oldest = re.match(r"[>=]=((\d+)(\.\d+)*)", self.bounds)
        return bool(found and oldest and _holds(f">={oldest[2]},<{oldest[1]}", found))


@cache
def requirements() -> dict[str, Requirement]:
    """Return what has to be installed, by name."""
    found = [LINE.fullmatch(line) for line in LIST.read_text(encoding="utf-8").splitlines()]
    return {line["name"]: Requirement(**line.groupdict("")) for line in found if line}


def _holds(bounds: str, found: str) -> bool:
    """Return whether a version is within bounds, judged by its numbers alone: `2.13.0+cpu` is 2.13.0, and `5.0rc1` is 5.0."""
    try:  # imported here, since the doctor has to work where packages are missing
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version
    except ImportError:
        raise ImportError("packaging is not installed, which compares versions; `pip install packaging` brings it") from None
    return SpecifierSet(bounds).contains(Version(found).base_version)
