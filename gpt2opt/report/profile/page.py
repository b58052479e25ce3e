"""Traces as one HTML file that holds its style, its script and its data, and asks nothing of a network."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from gpt2opt.measure.trace_file import TRACE_NAME, is_trace
from gpt2opt.report.chart import BETTER, SAME, WORSE
from gpt2opt.report.profile.summary import summarize
from gpt2opt.storage import SIGNATURES, write_result

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("show.js", "icicle.js", "operators.js", "memory.js", "page.js")
"""Each uses only those before it."""
ONE_NAME, ALL_NAME = "profile.html", "profiles.html"


def page(profiles: Sequence[dict[str, Any]]) -> str:
    """Return a page of profiles, from `summarize`; with two or more, one can be compared with another.

    Of a trace that could not be read it takes `{"name": …, "error": …}`.
    """
    content = {"colors": {"better": BETTER, "worse": WORSE, "same": SAME}, "profiles": list(profiles)}
    data = json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")  # no tag ends the script early
    template = Template((PARTS / "page.html").read_text(encoding="utf-8"), autoescape=True, keep_trailing_newline=True)
    return template.render(
        title="Profiles" if len(profiles) != 1 else f"Profile {profiles[0]['name']}",
        policy=f"sha256-{script_hash()}",
        style=Markup((PARTS / "page.css").read_text(encoding="utf-8")),
        profiles=Markup(data),
        summaries=profiles,
        script=Markup(script()),
    )


def script() -> str:
    """Return the modules of the page as one script: in a file that is opened from a disk, a module may not import another one."""
    modules = (re.sub(r"^import .*\n|^export ", "", (PARTS / name).read_text(encoding="utf-8"), flags=re.MULTILINE) for name in SCRIPTS)
    return '"use strict";\n(() => {\n' + "".join(modules) + "})();\n"


def script_hash() -> str:
    """Return the SHA-256 of the script in base64, by which a policy lets it run and nothing else."""
    return base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()


def write_pages(traces: Path | str) -> list[Path]:
    """Write `profile.html` beside each trace in a folder of `traces`, and `traces/profiles.html`, which compares them.

    Returns:
        The pages, the comparing one last; none if there is no trace.

    Raises:
        ValueError: a trace can't be read, or there is a page that we did not write.
    """
    traces = Path(traces)
    profiles = {path.with_name(ONE_NAME): summarize(path, path.parent.name) for path in sorted(traces.glob(f"*/{TRACE_NAME}"))}
    pages = {path: page([profile]) for path, profile in profiles.items()}
    if profiles:
        pages[traces / ALL_NAME] = page(list(profiles.values()))
    for path, content in pages.items():
        write_result(path, content)
    return list(pages)


def hash_traces(traces: Path | str) -> dict[str, str]:
    """Return the SHA-256 of each trace in a folder and of each page made of them, by its path from there; hidden files are left out."""
    files = {path.relative_to(traces): path for path in sorted(Path(traces).rglob("*")) if path.is_file()}
    return {
        name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if (is_trace(path) or path.name in (ONE_NAME, ALL_NAME)) and not any(part.startswith(".") for part in name.parts)
    }


def remove_page(path: Path) -> None:
    """Remove a page that was written here, if it is there."""
    if path.is_file() and any(signature in path.read_bytes() for signature in SIGNATURES):
        path.unlink()
