"""What a check found."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

OK, NOTE, FAILS = "ok", "note", "fails"
"""`NOTE`: the notebook runs on the bundled model, but the user may want to act. `FAILS`: it can't run before they do."""
MEASURED = Path(__file__).parent / "measured.json"
"""What the committed results say of a machine; `python -m experiments docs` writes it."""


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, what was found, and in one line what to do and why; nothing to do where all is well."""

    what: str
    found: str
    state: str = OK
    do: str = ""


@cache
def measured() -> dict[str, Any]:
    return json.loads(MEASURED.read_text(encoding="utf-8"))
