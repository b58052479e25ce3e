"""The command line: a table for people, JSON as the last line of stdout, progress on stderr.

Exit codes: 0 done, 1 the answer is "no" (a matmul is not INT8, a point of the assignment is not met), 2 the input is wrong or memory ran
out, 130 interrupted, 141 nobody reads stdout any more.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import shutil
import string
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2opt import environment
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.errors import guarded, place
from gpt2opt.quantize.recipes import RECIPES
from gpt2opt.report.table import MISSING, Table, table
from gpt2opt.runtime.manifest import ir_of_run
from gpt2opt.settings import STAGES, Settings
from gpt2opt.storage import check_file, check_folder

Command = Callable[[argparse.Namespace], int]
COMMANDS: dict[Command, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
"""Each command, which is a function of that name and whose docstring is its help, and its arguments for argparse."""


def option(name: str, help: str, default: Any = None, **how: Any) -> Callable[[Command], Command]:
    """Give a command an argument, positional or with a flag, in the words of argparse. Its help names the default."""

    def add(function: Command) -> Command:
        shown = {"help": help} if default is None else {"help": f"{help} (default {default})", "default": default}
        COMMANDS[function].insert(0, (name, shown | how))  # decorators are applied from the last to the first
        return function

    return add


def folder(name: str, help: str, default: str | None = None, **how: Any) -> Callable[[Command], Command]:
    """Give a command an argument that names a file or a folder."""
    return option(name, help, default and Path(default), type=place, **how)


def number(name: str, help: str, owner: type = DecodingSettings) -> Callable[[Command], Command]:
    """Give a command the option for a number among the fields of a settings class, with its name, type and default there."""
    kind = int if owner.__annotations__[name] is int else float
    return option(f"--{name.replace('_', '-')}", help, getattr(owner, name), type=kind, metavar="N")


ANY_MODEL = "torch, IR or ONNX directory, folder of a run (its INT8 model), .onnx or .gguf file, hub id, bundled or auto"
on_torch = option("model", "directory, folder of a run (its last torch model), hub id, bundled or auto; pruned or not")
on_ir = option("directory", "IR directory, or the folder of a run: its INT8 model", type=lambda text: ir_of_run(place(text)))
scored_text = option("--text", "text file or table, scored whole, or wikitext-2, docs or auto: their scored part", "auto")
on_notebook = folder("notebook", "the .ipynb file")
with_traces = folder("--traces", "folder of the traces (default traces beside the notebook)", metavar="FOLDER")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    logging.getLogger("gpt2opt").setLevel(logging.INFO)  # long work says what it does now
    if logging.lastResort:
        logging.lastResort.setLevel(logging.INFO)
    return guarded(_parser, arguments)


@option("--short", "one line if all is well, else only what is to be done; no JSON, no network", action="store_true")
def doctor(options: argparse.Namespace) -> int:
    """Say whether this machine can run the notebook, and what to do if not; exit 1 if it can't."""
    from gpt2opt.apps.doctor.checks import examine
    from gpt2opt.apps.doctor.needs import needs_table

    diagnosis = examine(options.short)
    if options.short:
        print(diagnosis.short())
        return 0 if diagnosis.can_run else 1
    print(f"{_fitted(diagnosis.table())}\n\n{needs_table()}\n\n{diagnosis.short()}")
    return _end(diagnosis.as_json(), diagnosis.can_run)


@option("--model", "directory, hub id, bundled or auto", "auto")
@option("--text", "text file or table, wikitext-2, docs or auto", "auto")
@number("prune_fraction", "share of each layer's heads", Settings)
@number("epochs", "of fine-tuning", Settings)
@folder("--out", "folder of the run", "artifacts")
@option("--until", "last stage to run", STAGES[-1][2:], choices=[stage[2:] for stage in STAGES])
def run(options: argparse.Namespace) -> int:
    """Take a model through the four stages."""
    _say("looking for the model and the text …")
    from gpt2opt.report.conclusions import machine_changes
    from gpt2opt.report.tables import environment_table, stage_table, stand_in_notice, summary_table
    from gpt2opt.run.pipeline import RUN_STAGE
    from gpt2opt.run.recorder import start_run

    current = start_run(
        options.model, options.text, options.out, options.out / "traces", prune_fraction=options.prune_fraction, epochs=options.epochs
    )
    record = current.record
    _say(f"{stand_in_notice(record)}\n\n{environment_table(record)}\n")
    for name, step in RUN_STAGE.items():
        begun = time.perf_counter()
        _say(f"stage {name} …")
        with contextlib.redirect_stdout(sys.stderr):  # Trainer's progress bar writes to stdout
            step(current)
        _say(f"stage {name} took {time.perf_counter() - begun:.0f} s\n{stage_table(record, name)}\n")
        if name[2:] == options.until:
            break
    current.draw()
    print(f"{summary_table(record)}\n{machine_changes(record)}")
    stages = [_stage_json(name, record.stage(name)) for name in record.stages]
    return _end({"record": str(options.out / "run.json"), "sources": record.sources, "stages": stages})


@on_torch
@option("--text", "text file or table, wikitext-2, docs or auto: their part for fine-tuning tells what a head matters", "auto")
@number("prune_fraction", "share of each layer's heads", Settings)
@option("--heads", "as many of each layer, in place of the share", type=int, metavar="N")
@option("--first-heads", "the first ones instead of those that matter least, as a control", action="store_true")
@folder("--out", "directory of the model", required=True, metavar="DIR")
def prune(options: argparse.Namespace) -> int:
    """Remove the attention heads that matter least, as many from every layer, and write the model."""
    _say("looking for the model and the text …")
    from gpt2opt.apps.commands import prune_model

    return _tell(prune_model(options.model, options.text, options.out, options.prune_fraction, options.heads, options.first_heads))


@on_torch
@option("--text", "text file or table, wikitext-2, docs or auto: their part for fine-tuning", "auto")
@number("epochs", "of fine-tuning", Settings)
@folder("--out", "directory of the model", "artifacts/finetuned")
def finetune(options: argparse.Namespace) -> int:
    """Fine-tune a model, in one process or under torchrun or accelerate launch in 2, 4 or 8."""
    _say("looking for the model and the text …")
    from gpt2opt.apps.commands import finetune_model

    with contextlib.redirect_stdout(sys.stderr):  # as in run
        tuned = finetune_model(options.model, options.text, options.out, options.epochs)
    if not environment.is_main_process():
        return 0
    curve = [f"{point['loss_nats']:.3f} nats at step {point['step']}" for point in tuned["loss"]]
    rows = [
        ("model", tuned["model"]),
        ("text", tuned["text"]),
        ("rows", f"{tuned['rows']:,} of up to {tuned['row_tokens']} tokens"),
        ("batch", f"{tuned['batch_rows']} rows, processes that share it: {tuned['processes']}"),
        ("steps", f"{tuned['steps']:,} in {tuned['seconds']:.0f} s"),
        ("loss", ", ".join(dict.fromkeys((curve[0], curve[-1]))) if curve else "too few steps to log it"),
        ("written to", tuned["out"]),
    ]
    print(table(("what", "value"), rows))
    return _end(tuned)


@on_torch
@option("--text", "text file or table to calibrate on, or wikitext-2, docs or auto: their part for that", "auto")
@option("--recipe", "w8a8-naive: without smoothing and gate; w8, w4: weights alone", "w8a8", choices=tuple(RECIPES))
@folder("--out", "directory of the IR", required=True, metavar="DIR")
def quantize(options: argparse.Namespace) -> int:
    """Quantize a model into an OpenVINO IR for a CPU, and audit it."""
    _say("looking for the model and the text …")
    from gpt2opt.apps.commands import quantize_model

    with contextlib.redirect_stdout(sys.stderr):  # INC's log
        made = quantize_model(options.model, options.text, options.out, options.recipe)
    return _tell(made)


@on_ir
def audit(options: argparse.Namespace) -> int:
    """Show what is INT8 in an IR directory; exit 1 if a matmul is not."""
    from gpt2opt.report.tables import explain_products
    from gpt2opt.runtime.audit import audit_int8

    found = audit_int8(options.directory, must_pass=False)
    graphs = (found.prefill, found.decode)
    rows = [
        (name, found.in_file.get(name, "not found"), *(" × ".join(graph.get(name, ["not found"])) for graph in graphs))
        for name in found.expected
    ]
    print(table(("matmul", "stored as", "prompts: input × weight", "further tokens: input × weight"), rows))
    print(explain_products(*graphs))
    print("\n".join(found.failures) or "every weight is an integer, in the file, in the prefill graph and in the decode step")
    floats, share = len(found.float_inputs), found.int8_share
    print(f"{floats} of {len(found.expected)} inputs stay float; {share:.1%} of the constant bytes are integers")
    shown = ("passed", "failures", "float_inputs", "int8_share", "bytes_by_type")
    return _end({name: getattr(found, name) for name in shown}, found.passed)


@option("model", ANY_MODEL)
@scored_text
@option("--protocol", "how the text is read", "standard", choices=("standard", "course"))
@option("--window", "tokens read at once (default the model's context, at most 1024)", type=int)
@option("--stride", "how far the window moves (default a whole window)", type=int)
def perplexity(options: argparse.Namespace) -> int:
    """Score a text with a model."""
    _say("loading the model and the text …")
    from gpt2opt.apps.commands import score_model
    from gpt2opt.measure.quality import PROTOCOLS
    from gpt2opt.report.tables import show_perplexity

    changed = {name: value for name in ("window", "stride") if (value := getattr(options, name)) is not None}
    name, quality = score_model(options.model, options.text, dataclasses.replace(PROTOCOLS[options.protocol], **changed))
    words = "none" if quality.word_perplexity is None else f"{quality.word_perplexity:.2f}"
    print(f"{name}\nperplexity {show_perplexity(quality)}, {words} per word, {quality.bits_per_byte:.4f} bits per byte\n{quality.protocol}")
    return _end({"model": name, **_quality_json(quality)})


@option("a", f"the reference model: {ANY_MODEL}", metavar="A")
@option("b", "the model that is compared with it, of the same vocabulary", metavar="B")
@scored_text
def compare(options: argparse.Namespace) -> int:
    """Compare the answers of two models on a text: KL divergence, most likely tokens, perplexity."""
    _say("loading the models and the text …")
    from gpt2opt.apps.commands import compare_models

    found = compare_models(options.a, options.b, options.text)
    print(f"A: {found.first}\nB: {found.second}\n\n{found.table()}\n\n{found.base.protocol}")
    return _end(found.as_json())


@on_ir
@option("--prompt", "may be given several times", required=True, action="append")
@option("--truncate", "keep the end of a prompt that is too long, instead of refusing it", action="store_true")
@option("--stop", "end before this text; may be given several times", action="append", metavar="TEXT")
@option("--do-sample", "draw tokens instead of taking the most probable one", action="store_true")
@number("max_new_tokens", "most tokens that are generated")
@number("temperature", "of the distribution that is drawn from")
@number("top_k", "draw among this many most probable tokens; 0: among all")
@number("top_p", "draw among the fewest tokens that have this probability together")
@number("min_p", "draw among tokens of this share of the highest probability")
@number("typical_p", "draw among the most typical tokens that have this probability together")
@number("repetition_penalty", "divide the scores of tokens that the text has already")
@number("num_beams", "above 1: beam search")
@number("length_penalty", "beam search divides scores by length ** this")
@number("seed", "of the draws")
def generate(options: argparse.Namespace) -> int:
    """Continue prompts with an IR directory, and show the text as it is generated."""
    from gpt2opt.decoding.generation import collect, stream
    from gpt2opt.runtime.ir_model import load_ir
    from gpt2opt.sources.models import load_tokenizer

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(DecodingSettings) if hasattr(options, field.name)}
    settings = DecodingSettings(**given, stop_strings=tuple(options.stop or ()))
    model, tokenizer = load_ir(options.directory), load_tokenizer(options.directory, serving=True)
    tokens, alone = [], len(options.prompt) == 1
    for token in stream(model, options.prompt, settings, tokenizer, truncate=options.truncate):
        tokens.append(token)
        if alone:
            print(token.text, end="", flush=True)
    for prompt, result in zip(options.prompt, collect(len(options.prompt), iter(tokens)), strict=True):
        print("" if alone else f"{prompt} -> {result.text}")
        _end({"prompt": prompt, "text": result.text, "tokens": len(result.ids), "finish": result.finish, "method": settings.method})
    return 0


@option("model", "folder of a run (its INT8 model), IR directory, or torch directory, hub id, bundled or auto (in FP32)")
@folder("--openvino-server", "folder of the result", required=True, metavar="DIR")
def export(options: argparse.Namespace) -> int:
    """Write a directory that OpenVINO Model Server takes as it is."""
    _say("loading the model …")
    from gpt2opt.export.model_server import export_for_server

    with contextlib.redirect_stdout(sys.stderr):
        served = export_for_server(options.model, options.openvino_server)
    start = f"ovms --model_path {served.folder} --model_name gpt2 --rest_port 8000"
    weights = ("weights, KV cache", f"{served.weights}, {served.kv_cache}")
    print(table(("what", "value"), (("model", served.model), weights, ("written to", served.folder), ("to start", start))))
    return _end(dataclasses.asdict(served) | {"command": start})


@option(
    "models",
    "gpt2, gpt2-medium, gpt2-large, bundled, or a folder of a run, of a torch model or of an IR; the first is chosen at the start "
    "(default gpt2 if it is in the local cache, else bundled)",
    nargs="*",
    metavar="MODEL",
)
@option("--precision", "chosen at the start: fp32, w8a8, w8a8-naive, w8 or w4", "fp32")
@option("--port", "on 127.0.0.1; 0: any that is free", 7860, type=int)
@option(
    "--host", "name of a reverse proxy that shows the page, as of JupyterHub or Codespaces; may be given several times", action="append"
)
@folder("--out", "folder of the models made on first use", "artifacts/ui")
def ui(options: argparse.Namespace) -> int:
    """Open a page in the browser in which a model, quantized or not, writes text."""
    from gpt2opt.apps.ui.choices import SIZES, Choice, default_model, proxy_name

    if not environment.installed("tornado"):
        raise ImportError("the page needs tornado, which is not installed; `pip install 'gpt2opt[ui]'` brings it")
    models = options.models or [default_model()]
    first, *_ = [Choice(model, options.precision) for model in models]
    hosts = [proxy_name(host) for host in options.host or ()]
    from gpt2opt.apps.ui.server import serve

    def begun(address: str) -> None:
        print(f"open {address} in a browser; Ctrl+C closes the page", file=sys.stderr)
        _end({"url": address})

    check_folder(options.out)
    serve(options.out, options.port, [model for model in models if model not in SIZES], first, hosts, begun)
    return 0


@folder("runs", "run.json, or the folder that holds it", nargs="+", metavar="RUN")
@folder("--out", "HTML file (default report.html beside the first run.json)")
def report(options: argparse.Namespace) -> int:
    """Show a run, or compare others with the first, and write that as one HTML file."""
    from gpt2opt.report import compare
    from gpt2opt.report.page import write_report
    from gpt2opt.report.tables import record_tables, stand_in_notice
    from gpt2opt.run.record import read_record

    paths = [path / "run.json" if path.is_dir() else path for path in options.runs]
    records = [read_record(path) for path in paths]
    out = options.out or paths[0].with_name("report.html")
    check_file(out)
    comparisons = compare.compare_runs(records) if len(records) > 1 else []
    write_report(records, out)
    if comparisons:
        print("".join(f"{letter}: {path}\n" for letter, path in zip(string.ascii_uppercase, paths, strict=False)))
        tables = compare.comparison_tables(comparisons) | {"what is not the same": compare.differences_table(records)}
    else:
        tables = record_tables(records[0])
    print(compare.CAPTION if comparisons else stand_in_notice(records[0]), end="\n\n")
    for title, shown in tables.items():
        print(f"{title}\n\n{shown}", end="\n\n")
    return _end({"report": str(out), "runs": [str(path) for path in paths], "comparison": [dataclasses.asdict(c) for c in comparisons]})


@on_notebook
@with_traces
@option("--fix", "first take home paths, keys and time stamps out of outputs and traces", action="store_true")
@option("--json", "end with a line of JSON on a terminal too", action="store_true")
def check(options: argparse.Namespace) -> int:
    """Check a notebook against the assignment's points before it is handed in; exit 1 if one fails."""
    from gpt2opt.apps.submission.evidence import read_submission
    from gpt2opt.apps.submission.fix import Fixed, fix_submission
    from gpt2opt.apps.submission.points import check_points

    submission, fixed = read_submission(options.notebook, options.traces), Fixed()
    if options.fix:
        fixed = fix_submission(submission)
        submission = read_submission(options.notebook, options.traces)
        print("\n".join(fixed.changed) or "nothing to take out of outputs and traces")
        print("".join(f"as it was before: {copy}\n" for copy in fixed.copies))
    answers = check_points(submission)
    _print_points(answers)
    print("".join(f"to do: {todo}\n" for todo in fixed.todo), end="")
    met, open_ = (sum(answer.passed is wanted for answer in answers) for wanted in (True, None))
    print(f"{met} of {len(answers)} points met" + (f", {open_} can't be told" if open_ else ""))
    left = {"changed": fixed.changed, "to_do": fixed.todo, "copies": [str(copy) for copy in fixed.copies]} if options.fix else {}
    found = _points_json(answers)
    if sys.stdout.isatty() and not options.json:
        return 0 if found["passed"] else 1
    return _end(found | left, found["passed"])


@on_notebook
@with_traces
@folder("--out", "zip file (default submission.zip beside the notebook)")
def pack(options: argparse.Namespace) -> int:
    """Write the notebook and its traces into one zip file, if every point is met; exit 1 if one is not."""
    from gpt2opt.apps.submission.evidence import read_submission
    from gpt2opt.apps.submission.pack import check_zip, write_zip
    from gpt2opt.apps.submission.points import check_points

    submission = read_submission(options.notebook, options.traces)
    out = options.out or options.notebook.with_name("submission.zip")
    check_zip(out)
    answers = check_points(submission)
    found = _points_json(answers)
    if failed := [answer for answer in answers if answer.passed is False]:
        _print_points(failed)
        print(f"nothing was written: {len(failed)} of {len(answers)} points failed")
        return _end(found | {"zip": None}, passed=False)
    sizes = write_zip(submission, out)
    total = out.stat().st_size
    print(table(("in the zip file", "kB"), [(name, f"{size / 1e3:.1f}") for name, size in sizes.items()]))
    print(f"{out}: {total / 1e3:.1f} kB")
    return _end(found | {"zip": str(out), "bytes": total, "files": sizes})


@option("number", "1: perplexity, 2: importance of heads, 3: cutting a head, 4: INT8", type=int, choices=(1, 2, 3, 4))
@folder("--file", "what you wrote (default exercise_N.py in the present folder)")
def exercise(options: argparse.Namespace) -> int:
    """Check what you wrote for a task, or begin the file to write it in; exit 1 while it is not solved."""
    from gpt2opt.apps.exercises.check import solves, write_starter

    path = options.file or Path(f"exercise_{options.number}.py")
    if begun := not path.exists():
        write_starter(options.number, path)
    passed = not begun and solves(options.number, path)
    answer = "solved" if passed else "not solved yet: the line with `no` says what came and what was expected"
    print(f"{path} was written: it says what to do; do it there, then run the same command again" if begun else answer)
    return _end({"exercise": options.number, "file": str(path), "begun": begun, "passed": passed}, passed)


def _print_points(answers: list[Any]) -> None:
    words = {True: "pass", False: "FAIL", None: "can't tell"}
    rows = [(answer.part, answer.point, words[answer.passed], answer.found) for answer in answers]
    print(_fitted(table(("part", "point", "", "found"), rows)))


def _fitted(shown: Table) -> str:
    """Return a table as text, on a terminal no wider than that."""
    return shown.wrapped(shutil.get_terminal_size().columns) if sys.stdout.isatty() else str(shown)


def _say(text: str) -> None:
    """Tell on stderr what is done now."""
    print(text, file=sys.stderr, flush=True)


def _points_json(answers: list[Any]) -> dict[str, Any]:
    return {"passed": all(answer.passed is not False for answer in answers), "points": [dataclasses.asdict(answer) for answer in answers]}


def _stage_json(name: str, measurement: Any) -> dict[str, Any]:
    latency, memory = measurement.latency, measurement.memory
    return {
        "name": name,
        **{fact: getattr(measurement, fact) for fact in ("dtype", "runtime", "device")},
        "ttft_s": latency and latency.ttft_s,
        "tpot_s": latency and latency.tpot_s,
        "memory": memory and dataclasses.asdict(memory),
        "quality": measurement.quality and _quality_json(measurement.quality),
    }


def _quality_json(quality: Any) -> dict[str, Any]:
    shown = {name: getattr(quality, name) for name in ("perplexity", "word_perplexity", "bits_per_byte", "protocol")}
    return shown | {"interval": quality.interval(), "tokens": quality.num_tokens}


def _tell(done: dict[str, Any]) -> int:
    """Print what was done, a fact a line, and end."""

    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return ", ".join(value) or "none"
        return MISSING if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    print(table(("what", "value"), [(name.replace("_", " "), shown(value)) for name, value in done.items()]))
    return _end(done)


def _end(answer: dict[str, Any], passed: bool = True) -> int:
    """Print the line of JSON that ends a command's output, and return the exit code."""
    print(json.dumps(answer), flush=True)
    return 0 if passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpt2opt", description="GPT-2 through four stages, each measured.")
    parser.add_argument("--version", action="version", version=f"gpt2opt {environment.installed('gpt2opt') or 'that is not installed'}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function, options in COMMANDS.items():
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(command=function)
        for name, how in options:
            sub.add_argument(name, **how)
    return parser
