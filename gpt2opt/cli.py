"""The command line: a table for people, JSON as the last line of stdout, progress on stderr.

Exit codes: 0 done, 1 the answer is "no" (a matmul is not INT8, a point of the assignment is not met), 2 the input is wrong or memory ran
out, 130 interrupted, 141 nobody reads stdout any more.
"""

import argparse
import contextlib
import dataclasses
import json
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2opt import environment
from gpt2opt.errors import guarded, place
from gpt2opt.storage import check_file, check_folder


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return guarded(_parser, arguments)


def doctor(options: argparse.Namespace) -> int:
    from gpt2opt.apps.doctor.diagnosis import examine, findings_table, needs_table

    diagnosis = examine(options.short)
    if options.short:
        print(diagnosis.short())
    else:
        print(f"{findings_table(diagnosis)}\n\n{needs_table()}\n\n{diagnosis.short()}")
        _print_json(diagnosis.as_json())
    return 0 if diagnosis.can_run else 1


def run(options: argparse.Namespace) -> int:
    from gpt2opt.report.conclusions import machine_changes
    from gpt2opt.report.tables import environment_table, stage_table, stand_in_notice, summary_table
    from gpt2opt.run.pipeline import RUN_STAGE
    from gpt2opt.run.recorder import start_run

    current = start_run(
        options.model, options.text, options.out, options.out / "traces", prune_fraction=options.prune_fraction, epochs=options.epochs
    )
    record = current.record
    print(f"{stand_in_notice(record)}\n\n{environment_table(record)}\n", file=sys.stderr)
    for name, step in RUN_STAGE.items():
        begun = time.perf_counter()
        print(f"stage {name} …", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(sys.stderr):  # Trainer's progress bar writes to stdout
            step(current)
        print(f"stage {name} took {time.perf_counter() - begun:.0f} s\n{stage_table(record, name)}\n", file=sys.stderr, flush=True)
        if _short(name) == options.until:
            break
    current.draw()
    print(f"{summary_table(record)}\n{machine_changes(record)}")
    _print_json(
        {"record": str(options.out / "run.json"), "sources": record.sources, "stages": [_stage_json(stage) for stage in record.stages]}
    )
    return 0


def _short(stage: str) -> str:
    """Return what a stage is called on the command line: `prune` for `2-prune`."""
    return stage.partition("-")[2]


def finetune(options: argparse.Namespace) -> int:
    from gpt2opt.apps.commands import finetune_model
    from gpt2opt.report.tables import table

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
    _print_json(tuned)
    return 0


def audit(options: argparse.Namespace) -> int:
    from gpt2opt.report.tables import explain_products, table
    from gpt2opt.runtime.audit import audit_int8

    found = audit_int8(options.directory, must_pass=False)
    graphs = (found.prefill, found.decode)
    rows = [
        (name, found.in_file.get(name, "not found"), *(" × ".join(graph.get(name, ["not found"])) for graph in graphs))
        for name in found.expected
    ]
    print(table(("matmul", "stored as", "prompts: input × weight", "further tokens: input × weight"), rows))
    print(explain_products(*graphs))
    print("\n".join(found.failures) or "every weight is an integer, in the file and in both graphs")
    print(
        f"{len(found.float_inputs)} of {len(found.expected)} inputs stay float; {found.int8_share:.1%} of the constant bytes are integers"
    )
    _print_json(
        {
            "passed": found.passed,
            "failures": found.failures,
            "float_inputs": found.float_inputs,
            "int8_share": found.int8_share,
            "bytes_by_type": found.bytes_by_type,
        }
    )
    return 0 if found.passed else 1


def perplexity(options: argparse.Namespace) -> int:
    from gpt2opt.apps.commands import score_model
    from gpt2opt.measure.quality import PROTOCOLS
    from gpt2opt.report.tables import show_perplexity

    protocol = PROTOCOLS[options.protocol]
    changed = {name: value for name in ("window", "stride") if (value := getattr(options, name)) is not None}
    name, quality = score_model(options.model, options.text, dataclasses.replace(protocol, **changed))
    words = "none" if quality.word_perplexity is None else f"{quality.word_perplexity:.2f}"
    print(f"{name}\nperplexity {show_perplexity(quality)}, {words} per word, {quality.bits_per_byte:.4f} bits per byte\n{quality.protocol}")
    _print_json({"model": name, **_quality_json(quality)})
    return 0


def generate(options: argparse.Namespace) -> int:
    from gpt2opt.decoding.generation import collect
    from gpt2opt.decoding.settings import DecodingSettings
    from gpt2opt.runtime.generate import stream_from_ir

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(DecodingSettings) if hasattr(options, field.name)}
    settings = DecodingSettings(**given | {"stop_strings": tuple(options.stop)})
    tokens = []
    for token in stream_from_ir(options.directory, options.prompt, settings, truncate=options.truncate):
        tokens.append(token)
        if len(options.prompt) == 1:
            print(token.text, end="", flush=True)
    results = collect(len(options.prompt), iter(tokens))
    if len(options.prompt) == 1:
        print()
    for prompt, result in zip(options.prompt, results, strict=True):
        if len(options.prompt) > 1:
            print(f"{prompt} -> {result.text}")
        _print_json({"prompt": prompt, "text": result.text, "tokens": len(result.ids), "finish": result.finish, "method": settings.method})
    return 0


def export(options: argparse.Namespace) -> int:
    from gpt2opt.export.model_server import export_for_server
    from gpt2opt.report.table import table

    with contextlib.redirect_stdout(sys.stderr):
        served = export_for_server(options.model, options.openvino_server)
    start = f"ovms --model_path {served.folder} --model_name gpt2 --rest_port 8000"
    rows = [
        ("model", served.model),
        ("weights, KV cache", f"{served.weights}, {served.kv_cache}"),
        ("written to", served.folder),
        ("to start", start),
    ]
    print(table(("what", "value"), rows))
    _print_json(dataclasses.asdict(served) | {"command": start})
    return 0


def report(options: argparse.Namespace) -> int:
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
        for letter, path in zip(string.ascii_uppercase, paths, strict=False):
            print(f"{letter}: {path}")
        tables = compare.comparison_tables(comparisons) | {"what is not the same": compare.differences_table(records)}
        print(f"\n{compare.CAPTION}", end="\n\n")
    else:
        tables = record_tables(records[0])
        print(stand_in_notice(records[0]), end="\n\n")
    for title, shown in tables.items():
        print(f"{title}\n\n{shown}", end="\n\n")
    _print_json({"report": str(out), "runs": [str(path) for path in paths], "comparison": [dataclasses.asdict(c) for c in comparisons]})
    return 0


def ui(options: argparse.Namespace) -> int:
    from gpt2opt.apps.ui.choices import SIZES, Choice, default_model
    from gpt2opt.environment import installed

    if not installed("tornado"):
        raise ImportError("the page needs tornado, which is not installed; `pip install 'gpt2opt[ui]'` brings it")
    models = options.models or [default_model()]
    first, *_ = [Choice(model, options.precision) for model in models]
    from gpt2opt.apps.ui.server import serve

    def begun(address: str) -> None:
        print(f"open {address} in a browser; Ctrl+C closes the page", file=sys.stderr)
        _print_json({"url": address})

    check_folder(options.out)
    serve(options.out, options.port, [model for model in models if model not in SIZES], first, begun)
    return 0


def check(options: argparse.Namespace) -> int:
    from gpt2opt.apps.submission.evidence import read_submission
    from gpt2opt.apps.submission.fix import Fixed, fix_submission
    from gpt2opt.apps.submission.points import check_points

    submission = read_submission(options.notebook, options.traces)
    fixed = Fixed()
    if options.fix:
        fixed = fix_submission(submission)
        submission = read_submission(options.notebook, options.traces)
        print("\n".join(fixed.changed) or "nothing to take out of outputs and traces")
        print("".join(f"as it was before: {copy}\n" for copy in fixed.copies))
    answers = check_points(submission)
    _print_points(answers)
    for todo in fixed.todo:
        print(f"to do: {todo}")
    left = {"changed": fixed.changed, "to_do": fixed.todo, "copies": [str(copy) for copy in fixed.copies]} if options.fix else {}
    _print_json(_points_json(answers) | left)
    return 1 if any(answer.passed is False for answer in answers) else 0


def pack(options: argparse.Namespace) -> int:
    from gpt2opt.apps.submission.evidence import read_submission
    from gpt2opt.apps.submission.pack import check_zip, write_zip
    from gpt2opt.apps.submission.points import check_points
    from gpt2opt.report.tables import table

    submission = read_submission(options.notebook, options.traces)
    out = options.out or options.notebook.with_name("submission.zip")
    check_zip(out)
    answers = check_points(submission)
    if failed := [answer for answer in answers if answer.passed is False]:
        _print_points(failed)
        print(f"nothing was written: {len(failed)} of {len(answers)} points failed")
        _print_json(_points_json(answers) | {"zip": None})
        return 1
    sizes = write_zip(submission, out)
    total = out.stat().st_size
    print(table(("in the zip file", "kB"), [(name, f"{size / 1e3:.1f}") for name, size in sizes.items()]))
    print(f"{out}: {total / 1e3:.1f} kB")
    _print_json(_points_json(answers) | {"zip": str(out), "bytes": total, "files": sizes})
    return 0


def _print_points(answers: list[Any]) -> None:
    from gpt2opt.report.tables import table

    words = {True: "pass", False: "FAIL", None: "can't tell"}
    print(table(("part", "point", "", "found"), [(answer.part, answer.point, words[answer.passed], answer.found) for answer in answers]))


def _points_json(answers: list[Any]) -> dict[str, Any]:
    return {"passed": all(answer.passed is not False for answer in answers), "points": [dataclasses.asdict(answer) for answer in answers]}


def _stage_json(stage: Any) -> dict[str, Any]:
    measurement = stage.measurement
    latency, memory = measurement.latency, measurement.memory
    return {
        "name": stage.name,
        "dtype": measurement.dtype,
        "runtime": measurement.runtime,
        "device": measurement.device,
        "ttft_s": latency and latency.ttft_s,
        "tpot_s": latency and latency.tpot_s,
        "memory": memory and dataclasses.asdict(memory),
        "quality": measurement.quality and _quality_json(measurement.quality),
    }


def _quality_json(quality: Any) -> dict[str, Any]:
    return {
        "perplexity": quality.perplexity,
        "interval": quality.interval(),
        "word_perplexity": quality.word_perplexity,
        "bits_per_byte": quality.bits_per_byte,
        "tokens": quality.num_tokens,
        "protocol": quality.protocol,
    }


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _parser() -> argparse.ArgumentParser:
    from gpt2opt.settings import STAGES, Settings

    parser = argparse.ArgumentParser(prog="gpt2opt", description="GPT-2 through four stages, each measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    sub = command("doctor", doctor, "say whether this machine can run the notebook, and what to do if not; exit 1 if it can't")
    sub.add_argument("--short", action="store_true", help="one line if all is well, else only what is to be done; no JSON, no network")

    sub = command("run", run, "take a model through the four stages")
    sub.add_argument("--model", default="auto", help="directory, hub id, bundled or auto (default)")
    sub.add_argument("--text", default="auto", help="text file or table, wikitext-2, docs or auto (default)")
    sub.add_argument(
        "--prune-fraction", type=float, default=Settings.prune_fraction, help="share of each layer's heads (default %(default)s)"
    )
    sub.add_argument("--epochs", type=float, default=Settings.epochs, help="of fine-tuning (default %(default)s)")
    sub.add_argument("--out", type=place, default=Path("artifacts"), help="folder of the run (default artifacts)")
    sub.add_argument(
        "--until", choices=[_short(stage) for stage in STAGES], default=_short(STAGES[-1]), help="last stage to run (default all)"
    )

    sub = command("finetune", finetune, "fine-tune a model, in one process or under torchrun or accelerate launch in 2, 4 or 8")
    sub.add_argument("model", help="directory, hub id, bundled or auto; pruned or not")
    sub.add_argument("--text", default="auto", help="text file or table, wikitext-2, docs or auto (default): their part for fine-tuning")
    sub.add_argument("--epochs", type=float, default=Settings.epochs, help="default %(default)s")
    sub.add_argument("--out", type=place, default=Path("artifacts/finetuned"), help="directory of the model (default artifacts/finetuned)")

    sub = command("audit", audit, "show what is INT8 in an IR directory; exit 1 if a matmul is not")
    sub.add_argument("directory", type=place)

    sub = command("perplexity", perplexity, "score a text with a torch or IR directory, or a hub id")
    sub.add_argument("model")
    sub.add_argument(
        "--text", default="auto", help="text file or table, scored whole, or wikitext-2, docs or auto (default): their scored part"
    )
    sub.add_argument("--protocol", choices=("standard", "course"), default="standard", help="how the text is read (default standard)")
    sub.add_argument("--window", type=int, help="tokens read at once (default the model's context, at most 1024)")
    sub.add_argument("--stride", type=int, help="how far the window moves (default a whole window)")

    sub = command("generate", generate, "continue prompts with an IR directory, and show the text as it is generated")
    sub.add_argument("directory", type=place)
    sub.add_argument("--prompt", required=True, action="append", help="may be given several times")
    sub.add_argument("--truncate", action="store_true", help="keep the end of a prompt that is too long, instead of refusing it")
    sub.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    _add_decoding(sub)

    sub = command("export", export, "write a directory that OpenVINO Model Server takes as it is")
    sub.add_argument("model", help="folder of a run (its INT8 model), IR directory, or torch directory, hub id, bundled or auto (in FP32)")
    sub.add_argument("--openvino-server", type=place, required=True, metavar="DIR", help="folder of the result")

    sub = command("ui", ui, "open a page in the browser in which a model, quantized or not, writes text")
    sub.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="gpt2, gpt2-medium, gpt2-large, bundled, or a folder of a run, of a torch model or of an IR; the first is chosen at the start "
        "(default gpt2 if it is in the local cache, else bundled)",
    )
    sub.add_argument("--precision", default="fp32", help="chosen at the start: fp32 (default), w8a8, w8a8-naive, w8 or w4")
    sub.add_argument("--port", type=int, default=7860, help="on 127.0.0.1; 0: any that is free (default %(default)s)")
    sub.add_argument(
        "--out", type=place, default=Path("artifacts/ui"), help="folder of the models made on first use (default artifacts/ui)"
    )

    sub = command("report", report, "show a run, or hold others against the first, and write that as one HTML file")
    sub.add_argument("runs", type=place, nargs="+", metavar="RUN", help="run.json, or the folder that holds it")
    sub.add_argument("--out", type=place, help="HTML file (default report.html beside the first run.json)")

    sub = command("check", check, "check a notebook against the assignment's points before it is handed in; exit 1 if one fails")
    _add_submission(sub)
    sub.add_argument("--fix", action="store_true", help="first take home paths, keys and time stamps out of outputs and traces")

    sub = command("pack", pack, "write the notebook and its traces into one zip file, if every point is met; exit 1 if one is not")
    _add_submission(sub)
    sub.add_argument("--out", type=place, help="zip file (default submission.zip beside the notebook)")
    return parser


def _add_submission(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", type=place, help="the .ipynb file")
    parser.add_argument("--traces", type=place, metavar="FOLDER", help="folder of the traces (default traces beside the notebook)")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the settings of decoding, by the names that transformers' `GenerationConfig` has for them."""
    from gpt2opt.decoding.settings import DecodingSettings

    parser.add_argument("--do-sample", action="store_true", help="draw tokens instead of taking the most probable one")
    for name, kind, help in (
        ("max_new_tokens", int, "most tokens that are generated"),
        ("temperature", float, "of the distribution that is drawn from"),
        ("top_k", int, "draw among this many most probable tokens; 0: among all"),
        ("top_p", float, "draw among the fewest tokens that have this probability together"),
        ("min_p", float, "draw among tokens of this share of the highest probability"),
        ("typical_p", float, "draw among the most typical tokens that have this probability together"),
        ("repetition_penalty", float, "divide the scores of tokens that the text has already"),
        ("num_beams", int, "above 1: beam search"),
        ("length_penalty", float, "beam search divides scores by length ** this"),
        ("seed", int, "of the draws"),
    ):
        default = getattr(DecodingSettings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, metavar="N", help=f"{help} (default {default})")
