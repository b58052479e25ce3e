"""The checklist: every point by its name, with the function that looks for it; and the points about the saved files."""

import ast
import base64
import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpt2opt.apps.submission import assignment
from gpt2opt.apps.submission.assignment import PERPLEXITY, VRAM, calls, recorded
from gpt2opt.apps.submission.code import last_value, own_name
from gpt2opt.apps.submission.evidence import NotMetError, Submission, number
from gpt2opt.apps.submission.figures import AGAIN, figures_of_the_record
from gpt2opt.apps.submission.private import HOME, find_private, named_cells, visit_outputs, visit_trace
from gpt2opt.measure.trace_file import ON_GPU, is_trace, parse_trace
from gpt2opt.report.profile.page import hash_traces

SHOWS = re.compile(r"print|pprint|display|show|plot\w*")
SHOWS_AT_THE_END = re.compile(r"head|describe|train|\w*_table")
"""Calls that leave an output where they stand alone in a line of a cell, and those that do so in its last line."""
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
PICTURES = r"image/|application/vnd\.(plotly|vega)"


def run_in_order(s: Submission) -> str:
    counts = [cell.execution_count for cell in s.cells]
    for place, count in enumerate(counts):
        if count != place + 1:
            found = "was not run" if count is None else f"has execution count {count}, expected {place + 1}"
            raise NotMetError(f"{number([place])} {found}; restart the kernel and run all cells")
    return f"{len(counts)} code cells, counted 1 to {len(counts)}"


def no_error(s: Submission) -> str:
    errors = {place: output.ename for place, cell in enumerate(s.cells) for output in cell.outputs if output.output_type == "error"}
    if errors:
        raise NotMetError(f"{number([*errors])} ended in an error: {next(iter(errors.values()))}; mend it and run all cells again")
    return "no cell ended in an error"


def outputs_present(s: Submission) -> str:
    shown = [place for place, cell in enumerate(s.cells) if cell.outputs]
    lacking = [place for place, cell in enumerate(s.cells) if not cell.outputs and should_show(s.code.cells[place], cell.source)]
    if lacking:
        raise NotMetError(f"{number(lacking)} should show something and has no output; run all cells and save the notebook")
    if damaged := [place for place in shown if not all(map(_is_whole, s.cells[place].outputs))]:
        raise NotMetError(f"{number(damaged)} holds a picture that is damaged; run all cells and save the notebook")
    return f"{len(shown)} of {len(s.cells)} code cells show something, and the others need not"


def _is_whole(output: Any) -> bool:
    """Say whether an output has no PNG, or a whole one by its checksums and its last bytes."""
    from PIL import Image

    if not (packed := output.get("data", {}).get("image/png")):
        return True
    try:
        data = base64.b64decode("".join(packed.split()), validate=True)
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()
    except (ValueError, SyntaxError, OSError, struct.error):  # what Pillow raises for a damaged file
        return False
    return data.endswith(PNG_END)


def should_show(tree: ast.Module, source: str) -> bool:
    """Say whether a cell shows something whenever it is run: it prints, plots, or ends in a value. If in doubt, it need not."""
    if source.lstrip().startswith("%%capture"):
        return False
    lines, last = [line.value for line in tree.body if isinstance(line, ast.Expr)], last_value(tree, source)
    if any(SHOWS.fullmatch(own_name(line.func)) for line in lines if isinstance(line, ast.Call)):
        return True
    return bool(SHOWS_AT_THE_END.fullmatch(own_name(last.func))) if isinstance(last, ast.Call) else not isinstance(last, ast.Await | None)


def no_todo(s: Submission) -> str:
    if s.code.stubs:
        raise NotMetError(f"still empty: {', '.join(s.code.stubs[:5])}; write what each of their TODOs asks for")
    return "no function is empty"


def chart(s: Submission, kind: str, names: str) -> str:
    """Find a picture among the outputs of a cell whose code names what it shows."""
    kinds = [" ".join(kind for output in cell.outputs for kind in output.get("data", {})) for cell in s.cells]
    drawn = [place for place, shown in enumerate(kinds) if re.search(PICTURES, shown)]
    found = [place for place in drawn if re.search(names, s.code.words(place), re.IGNORECASE)]
    if not found:
        raise NotMetError(f"no code cell that names {kind} has a picture among its outputs; plot it in a cell of its own")
    return number(found)


def traces_present(s: Submission) -> str:
    traces = {name: path for name, path in s.files.items() if is_trace(path)}
    if not traces:
        missing = f"no profiler trace (.json or .json.gz, of any name) among the {len(s.files)} files of {s.traces}"
        raise NotMetError(f"{missing}; export the profile with gpt2opt.trace_handler, or name the folder with --traces")
    return ", ".join(f"{name}: {_operators(path)} operators" for name, path in traces.items())


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
    assert s.record
    known, found = s.record.traces or {}, hash_traces(s.traces)
    wrong = {name: "is missing" for name in known if name not in found}
    wrong |= {name: "is not the one that the run wrote" for name in known if found.get(name, known[name]) != known[name]}
    wrong |= {name: "is not in the record" for name in found if name not in known and not name.endswith(".html")}
    if wrong:
        raise NotMetError(f"{'; '.join(f'{name} {what}' for name, what in wrong.items())}; {AGAIN}")
    return f"{len(known)} files, each by its SHA-256"


def nothing_private(s: Submission, homes: bool, nothing: str) -> str:
    """Look for home paths in every text, or for keys."""
    found: dict[str, None] = {}  # each once, in order

    def look(place: str, text: str) -> str:
        found.update({f"{place}: {finding}": None for finding in find_private(text) if (finding.pattern is HOME) is homes})
        return text

    for name, cell in named_cells(s.notebook):
        look(name, cell.source)
    in_sources = len(found)
    visit_outputs(s.notebook, look)
    try:
        for name, path in s.files.items():
            visit_trace(path, name, look)
    except OSError as error:
        raise NotMetError(str(error)) from error
    if found:
        more = f" and {len(found) - 4} more places" if len(found) > 4 else ""
        todo = "take it out of the source" if len(found) == in_sources else "`gpt2opt check --fix` takes it out of outputs and traces"
        raise NotMetError(f"{'; '.join(list(found)[:4])}{more}; {todo}")
    return f"{nothing} in sources, outputs and {len(s.files)} files of traces"


PROFILER = "no call of torch.profiler.profile; profile a few tokens, with an on_trace_ready that writes the trace"
NO_PERPLEXITY = "no call of a function with `perplexity` or `ppl` in its name that does anything"
NO_VRAM = "no call of torch.cuda.max_memory_allocated or gpt2opt.peak_vram; without a GPU, peak_vram says so"
MEASURED = ("latency", "quality", "memory")
POINTS: tuple[tuple[str, str, Callable[[Submission], str]], ...] = (
    ("notebook", "run top to bottom, in order", run_in_order),
    ("notebook", "no cell failed", no_error),
    ("notebook", "saved with outputs", outputs_present),
    ("notebook", "all TODOs done", no_todo),
    ("1 profile", "model loaded in FP16", recorded(assignment.fp16_model, "Baseline", dtype="float16")),
    ("1 profile", "profiled with torch.profiler", calls("profile|record_trace", PROFILER)),
    ("1 profile", "perplexity measured", recorded(calls(PERPLEXITY, NO_PERPLEXITY), "Baseline", "quality")),
    ("1 profile", "VRAM measured", recorded(calls(VRAM, NO_VRAM), "Baseline", "memory")),
    ("2 prune", "prune_attention_heads, 20% per layer", assignment.prune_heads),
    ("2 prune", "recast to FP16", recorded(assignment.recast_to_fp16, "Pruned", dtype="float16")),
    ("2 prune", "measured again", recorded(assignment.measured_again, "Pruned", *MEASURED)),
    ("3 fine-tune", "tokenizer padding", assignment.padding),
    ("3 fine-tune", "tokenize_dataset", calls("tokenize_dataset", "tokenize_dataset is not called, or is still empty")),
    ("3 fine-tune", "TrainingArguments and Trainer", assignment.training),
    ("3 fine-tune", "1 to 5 epochs", assignment.epochs),
    ("4 quantize", "INCQuantizer", assignment.inc_quantizer),
    ("4 quantize", "calibration set filtered and tokenized", assignment.calibration),
    ("4 quantize", "exported as OpenVINO IR", assignment.openvino_ir),
    ("4 quantize", "latency, RAM, perplexity on the CPU", recorded(assignment.on_the_cpu, "INT8", *MEASURED)),
    ("charts", "chart of latency", partial(chart, kind="latency", names=r"latency|ttft|tpot")),
    ("charts", "chart of perplexity", partial(chart, kind="perplexity", names=r"perplexity|ppl")),
    ("charts", "chart of memory", partial(chart, kind="memory", names=r"memory|vram|\bram\b|rss")),
    ("traces", "traces present and not empty", traces_present),
    ("traces", "traces are those of the record", traces_of_the_record),
    ("private", "no key or token", partial(nothing_private, homes=False, nothing="no key, token or password")),
    ("private", "no home path", partial(nothing_private, homes=True, nothing="no home path")),
    ("figures", "figures are those of the record", figures_of_the_record),
)
"""Part of the assignment, point, and what looks for it: it returns what was found, or raises NotMetError."""
OF_THE_RECORD = (traces_of_the_record, figures_of_the_record)
"""Those that can't be decided without a record."""


@dataclass(frozen=True)
class Answer:
    """passed: None where there is no record to decide it."""

    part: str
    point: str
    passed: bool | None
    found: str


def check_points(submission: Submission) -> list[Answer]:
    """Look for every point, in the order of the assignment."""
    return [Answer(part, point, *_look(submission, find)) for part, point, find in POINTS]


def _look(submission: Submission, find: Callable[[Submission], str]) -> tuple[bool | None, str]:
    if find in OF_THE_RECORD and not submission.record:
        return None, f"no record: {submission.no_record}"
    try:
        return True, find(submission)
    except NotMetError as reason:
        return False, str(reason)
