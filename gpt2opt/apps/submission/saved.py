"""What must hold of the files as they were saved: the notebook was run, shows what it should, and gives nothing of its author away."""

import ast
import base64
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2opt.apps.submission.code import called
from gpt2opt.apps.submission.evidence import NoRecordError, NotMetError, Submission, number
from gpt2opt.apps.submission.secrets import find_homes, find_secrets, mask
from gpt2opt.apps.submission.texts import Place, visit_notebook, visit_trace
from gpt2opt.measure.trace_file import ON_GPU, is_trace, parse_trace
from gpt2opt.report.profile.page import hash_traces

SHOWS = re.compile(r"print|pprint|display|show|plot\w*")
SHOWS_AT_THE_END = re.compile(rf"{SHOWS.pattern}|head|describe|train|\w*_table")
"""Calls that leave an output where they stand alone in a line of a cell, and those that do so in its last line."""
CHARTS = {"latency": r"latency|ttft|tpot", "perplexity": r"perplexity|ppl", "memory": r"memory|vram|\bram\b|rss"}
PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of such a file."""
PICTURES = ("image/", "application/vnd.plotly", "application/vnd.vega")


def run_in_order(s: Submission) -> str:
    again = "restart the kernel and run all cells"
    counts = [cell.execution_count for cell in s.cells]
    if missing := [place for place, count in enumerate(counts) if count is None]:
        raise NotMetError(f"{number(missing)} not run; {again}")
    for place, count in enumerate(counts):
        if count != place + 1:
            raise NotMetError(f"{number([place])} has execution count {count}, expected {place + 1}; {again}")
    return f"{len(counts)} code cells, counted 1 to {len(counts)}"


def no_error(s: Submission) -> str:
    failed = [place for place, cell in enumerate(s.cells) if any(output.output_type == "error" for output in cell.outputs)]
    if failed:
        error = next(output for output in s.cells[failed[0]].outputs if output.output_type == "error")
        raise NotMetError(f"{number(failed)} ended in an error: {error.ename}; mend it and run all cells again")
    return "no cell ended in an error"


def outputs_present(s: Submission) -> str:
    shown = [place for place, cell in enumerate(s.cells) if cell.outputs]
    if not shown:
        raise NotMetError("no cell has an output; run all cells and save the notebook")
    lacking = [place for place, cell in enumerate(s.cells) if not cell.outputs and should_show(s.code.cells[place], cell.source)]
    if lacking:
        raise NotMetError(f"{number(lacking)} should show something and has no output; run all cells and save the notebook")
    if damaged := [place for place in shown if not all(map(is_whole_png, pngs(s.cells[place])))]:
        raise NotMetError(f"{number(damaged)} holds a picture that is damaged; run all cells and save the notebook")
    return f"{len(shown)} of {len(s.cells)} code cells show something, and the others need not"


def pngs(cell: Any) -> list[str]:
    """Return the PNG pictures among the outputs of a cell, in base64."""
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


def is_whole_png(packed: str) -> bool:
    """Say whether a PNG in base64 is as it was written: each of its chunks up to the last has the checksum that stands behind it."""
    packed = "".join(packed.split())
    try:
        data = base64.b64decode(packed, validate=True)
        place, kind = len(PNG), b""
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, place)
            checked = data[place + 4 : place + 8 + length]
            if struct.unpack_from(">I", data, place + 8 + length)[0] != zlib.crc32(checked):
                return False
            place += 12 + length
    except (ValueError, struct.error):
        return False
    return data.startswith(PNG) and base64.b64encode(data).decode() == packed


def should_show(tree: ast.Module, source: str) -> bool:
    """Say whether a cell shows something whenever it is run: it prints, plots, or ends in a value. What can't be told need not show."""
    if not tree.body or source.lstrip().startswith("%%capture"):
        return False
    calls = [line.value for line in tree.body if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)]
    if any(SHOWS.fullmatch(called(call)) for call in calls):
        return True
    last = tree.body[-1]
    if not isinstance(last, ast.Expr) or isinstance(last.value, ast.Await) or source.rstrip().endswith(";"):
        return False
    return not isinstance(last.value, ast.Call) or bool(SHOWS_AT_THE_END.fullmatch(called(last.value)))


def no_todo(s: Submission) -> str:
    if s.code.stubs:
        names = ", ".join(list(s.code.stubs)[:5])
        raise NotMetError(f"still empty: {names}; write what each of their TODOs asks for")
    left = [place for place, cell in enumerate(s.cells) if "TODO" in cell.source]
    if idle := [place for place in left if not s.code.cells[place].body]:
        raise NotMetError(f"{number(idle)} holds a TODO and no code")
    return f"no function is empty; {number(left)} still says TODO" if left else "no function is empty, and no TODO is left"


def chart_of(kind: str) -> Callable[[Submission], str]:
    def check(s: Submission) -> str:
        cells = [place for place, cell in enumerate(s.cells) if has_picture(cell)]
        found = [place for place in cells if re.search(CHARTS[kind], s.code.words(place), re.IGNORECASE)]
        if not found:
            raise NotMetError(f"no code cell that names {kind} has a picture among its outputs; plot it in a cell of its own")
        return number(found)

    return check


def has_picture(cell: Any) -> bool:
    return any(kind.startswith(PICTURES) for output in cell.outputs for kind in output.get("data", {}))


def traces_present(s: Submission) -> str:
    if not s.files:
        raise NotMetError(f"no file in {s.traces}; export the profile with gpt2opt.trace_handler, or name the folder with --traces")
    traces = list(filter(is_trace, s.files))
    if not traces:
        raise NotMetError(
            f"no profiler trace (*trace.json, *trace.json.gz) among the {len(s.files)} files of {s.traces}; export the profile"
        )
    return ", ".join(f"{path.relative_to(s.traces).as_posix()}: {_operators(path)} operators" for path in traces)


def _operators(path: Path) -> int:
    try:
        events = parse_trace(path)["traceEvents"]
    except (OSError, ValueError) as error:
        raise NotMetError(str(error)) from error
    operators = sum(event.get("cat") in ("cpu_op", *ON_GPU) for event in events)
    if not operators:
        raise NotMetError(f"{path.name} holds {len(events)} events and no operator among them; profile at least one whole step")
    return operators


def traces_of_the_record(s: Submission) -> str:
    """Say how many files are those that the run wrote: each trace, and each page that the record knows."""
    if s.record is None:
        raise NoRecordError(f"no record: {s.no_record}")
    if (known := s.record.traces) is None:
        raise NoRecordError("the record has no hashes of its traces, since an earlier version of gpt2opt wrote it; run the notebook again")
    found = hash_traces(s.traces)
    wrong = {name: "is missing" for name in known if name not in found}
    wrong |= {name: "is not the one that the run wrote" for name in known if found.get(name, known[name]) != known[name]}
    wrong |= {name: "is not in the record" for name in found if name not in known and is_trace(Path(name))}
    if wrong:
        raise NotMetError(f"{'; '.join(f'{name} {what}' for name, what in wrong.items())}; run the notebook again, top to bottom")
    return f"{len(known)} files, each by its SHA-256"


def no_secrets(s: Submission) -> str:
    def find(place: Place, text: str) -> list[str]:
        return [f"{finding.what} {mask(text[finding.start : finding.end])}" for finding in find_secrets(text, place.written)]

    return _nothing(s, find, "no key, token or password")


def no_home_paths(s: Submission) -> str:
    def find(place: Place, text: str) -> list[str]:
        return [finding.what for finding in find_homes(text)]

    return _nothing(s, find, "no home path")


def _nothing(s: Submission, find: Callable[[Place, str], list[str]], nothing: str) -> str:
    found: dict[str, bool] = {}  # each once, in order; whether it stands in a source

    def look(place: Place, text: str) -> str:
        found.update({f"{place.name}: {what}": place.source for what in find(place, text)})
        return text

    visit_notebook(s.notebook, look)
    try:
        for path in s.files:
            visit_trace(path, path.relative_to(s.traces.parent).as_posix(), look)
    except OSError as error:
        raise NotMetError(str(error)) from error
    if found:
        places = list(found)
        more = f" and {len(places) - 4} more places" if len(places) > 4 else ""
        todo = "take it out of the source" if all(found.values()) else "`gpt2opt check --fix` takes it out of outputs and traces"
        raise NotMetError(f"{'; '.join(places[:4])}{more}; {todo}")
    return f"{nothing} in sources, outputs and {len(s.files)} files of traces"
