"""The file of a trace in Chrome's format: small, written whole or not at all, and without a word about the machine that wrote it."""

import gzip
import json
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt2opt.storage import write_whole

TRACE_NAME = "gpt2opt.pt.trace.json.gz"
HEAD_BYTES = 1 << 16
"""Before its events a trace has only what is known of the devices."""
MAX_BYTES = 10_000_000
KEPT = ("schemaVersion", "deviceProperties", "displayTimeUnit", "gpt2opt")
"""What is kept beside the events. The rest gives away the name of the host, a path and the time of day."""
LEFT_OUT = ("Ev Idx", "Addr", "Record function id", "finished")  # arguments of events: addresses and counters
SHORT_US = 5.0
"""Shorter calls of Python's functions are left out, except modules and this package: they make a third of a file, and can't be seen."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the events that took place on a GPU
Event = dict[str, Any]  # of a trace in Chrome's format; `ts` and `dur` are in µs

UNESCAPED = (
    "torch writes the names of events as they are, and here one can't be distinguished from what is around it; give your labels of "
    "record_function no quotes, line breaks or backslashes, and record it with these"
)
DAMAGED = "it is cut short or damaged; see that there is room on the disk, and record it again"
"""What to do about a file that can't be read: one that torch wrote to its end, and any other."""
_NAME = r'"name"\s*:\s*"(?P<name>(?:(?!"ph"\s*:).)*?)"(?=\s*(?:,\s*"(?:ph|cat|pid|tid|ts|dur|args|id|s)"\s*:|\}\s*\}\s*(?:,\s*\{|\])))'
"""The name of an event, whatever is in it: it ends where the next field of the event begins, or the arguments end."""
_TEXT = r'"(?P<text>(?:[^"\\]|\\.|"(?!\s*[,:}\]]))*)"(?=\s*[,:}\]])'
"""Any other text: a quote ends it if what may follow a text does follow."""
_VALUE = r"(?P<value>N/A|-?\b(?:nan|inf)\b)"
_PARTS = re.compile(f"{_NAME}|{_TEXT}|{_VALUE}", re.DOTALL)
_NO_ESCAPE = re.compile(r'(?<!\\)(?:\\\\)*\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_INSTALLED = re.compile(r"^/.*/(?:(?:site|dist)-packages/|lib/python3\.\d+/|(?=gpt2opt/))")


def write_trace(content: dict[str, Any], log_dir: Path) -> Path:
    """Write a trace as `log_dir/gpt2opt.pt.trace.json.gz`, see `without_machine`; raise RuntimeError if it would take more than 10 MB."""
    text = json.dumps(without_machine(content), separators=(",", ":"))
    data = gzip.compress(text.encode(), mtime=0)
    if len(data) > MAX_BYTES:
        raise RuntimeError(
            f"the trace takes {len(data) / 1e6:.1f} MB, expected at most {MAX_BYTES / 1e6:.0f} MB; record fewer steps or fewer new tokens"
        )
    write_whole(log_dir / TRACE_NAME, data)
    return log_dir / TRACE_NAME


def remove_trace(log_dir: Path) -> None:
    """Remove the trace that an earlier profile left in `log_dir`, if there is one."""
    (log_dir / TRACE_NAME).unlink(missing_ok=True)


def read_trace_file(path: Path) -> dict[str, Any]:
    """Return the content of a trace as `parse_trace` does; raise ValueError if it is larger than 10 MB or is no trace."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(
            f"{path.name} has {size / 1e6:.1f} MB, expected at most {MAX_BYTES / 1e6:.0f} MB; open it in Perfetto, or record less"
        )
    return parse_trace(path)


def is_trace(path: Path) -> bool:
    """Say whether a file is a trace of torch.profiler: JSON, packed or not, by its name (`*trace.json`) or by what it begins with."""
    if ".json" not in path.suffixes or "trace" in path.name:
        return ".json" in path.suffixes
    with suppress(OSError, EOFError, zlib.error), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return b'"traceEvents"' in file.read(HEAD_BYTES)
    return False


def parse_trace(path: Path) -> dict[str, Any]:
    """Return the content of a trace of any size, its events under `traceEvents`, without nulls; raise ValueError if it is no trace.

    Chrome's format allows a list of events alone, too. See `read_json` for what is repaired.
    """
    data, todo = path.read_bytes(), DAMAGED
    try:
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        todo = UNESCAPED if data.strip()[-1:] in (b"}", b"]") else DAMAGED
        content = read_json(data)
        content = {"traceEvents": content} if isinstance(content, list) else content
        if not isinstance(content["traceEvents"], list):
            raise TypeError("its traceEvents are no list")
        events = [event for event in content["traceEvents"] if event is not None]
        if strange := [event for event in events if not isinstance(event, dict)]:
            raise TypeError(f"one of its events is of type {type(strange[0]).__name__}")
    except (ValueError, KeyError, TypeError, EOFError, OSError, zlib.error, RecursionError) as error:
        todo = todo if isinstance(error, json.JSONDecodeError) else DAMAGED
        raise ValueError(f"{path.name} is no trace in Chrome's format ({type(error).__name__}: {error}); {todo}") from error
    return {**content, "traceEvents": events}


def read_json(data: bytes) -> Any:
    """Return what JSON holds, repaired if it has to be; raise ValueError if it is no JSON even so.

    torch writes quotes, line breaks and backslashes in texts without escaping them, N/A, nan and inf for a number (they become None), and
    bytes that are no UTF-8. In Chrome's format a list of events may lack its last bracket.
    """
    try:
        return json.loads(data)
    except ValueError:
        text = data.decode("utf-8", "replace").strip()
        if text.startswith("[") and not text.endswith("]"):
            text = text.rstrip(",") + "]"
        plain = bool(_NO_ESCAPE.search(text))  # then all its backslashes are meant as they are: in torch\nn too
        with suppress(ValueError):
            return json.loads(_PARTS.sub(lambda part: _escaped(part, plain), text), strict=False)
        raise


def _escaped(part: re.Match[str], plain: bool) -> str:
    if part["value"]:
        return "null"
    kind = "name" if part["name"] is not None else "text"
    text = part[kind].replace("\\", "\\\\") if plain else part[kind]
    text = re.sub(r'\\.|["\\]', lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}", text, flags=re.DOTALL)
    return f'"name": "{text}"' if kind == "name" else f'"{text}"'


def without_machine(content: dict[str, Any]) -> dict[str, Any]:
    """Return a trace without host name, absolute paths, addresses and time of day, and without the shortest calls; see `SHORT_US`."""
    events = [event for event in content["traceEvents"] if not _is_short(event)]
    first = min((event["ts"] for event in events if "ts" in event), default=0)
    return {**{key: content[key] for key in KEPT if key in content}, "traceEvents": [_cut(event, first) for event in events]}


def _is_short(event: Event) -> bool:
    named = package_name(event.get("name", "")).startswith(("nn.Module", "gpt2opt/"))
    return event.get("cat") == "python_function" and event["dur"] < SHORT_US and not named


def _cut(event: Event, first: float) -> Event:
    cut = {**event, "name": package_name(event["name"])} if "name" in event else dict(event)
    if "ts" in cut:
        cut["ts"] = round(cut["ts"] - first, 3)
    if "args" in cut:
        cut["args"] = {name: value for name, value in cut["args"].items() if name not in LEFT_OUT}
    return cut


def package_name(name: str) -> str:
    """Return the name of an event with its path from the package on: `/home/me/env/lib/python3.11/site-packages/torch/a.py(1): f`
    becomes `torch/a.py(1): f`. Of a file in no package its own name is left."""
    name = _INSTALLED.sub("", _ADDRESS.sub("", name))
    return name.rsplit("/", 1)[1] if name.startswith("/") else name
