"""The checklist: every point by its name, and the function that looks for it."""

from collections.abc import Callable
from dataclasses import dataclass

from gpt2opt.apps.submission import assignment, saved
from gpt2opt.apps.submission.evidence import NoRecordError, NotMetError, Submission
from gpt2opt.apps.submission.figures import figures_of_the_record


@dataclass(frozen=True)
class Point:
    """find: returns what was found, or raises NotMetError or NoRecordError."""

    part: str
    name: str
    find: Callable[[Submission], str]


@dataclass(frozen=True)
class Answer:
    """passed: None where the record does not decide it, or there is none."""

    part: str
    point: str
    passed: bool | None
    found: str


POINTS = (
    Point("notebook", "run top to bottom, in order", saved.run_in_order),
    Point("notebook", "no cell failed", saved.no_error),
    Point("notebook", "saved with outputs", saved.outputs_present),
    Point("notebook", "all TODOs done", saved.no_todo),
    Point("1 profile", "model loaded in FP16", assignment.fp16_model),
    Point("1 profile", "profiled with torch.profiler", assignment.torch_profiler),
    Point("1 profile", "perplexity measured", assignment.baseline_perplexity),
    Point("1 profile", "VRAM measured", assignment.baseline_vram),
    Point("2 prune", "prune_attention_heads, 20% per layer", assignment.prune_heads),
    Point("2 prune", "recast to FP16", assignment.recast_to_fp16),
    Point("2 prune", "measured again", assignment.measured_again),
    Point("3 fine-tune", "tokenizer padding", assignment.padding),
    Point("3 fine-tune", "tokenize_dataset", assignment.tokenizing),
    Point("3 fine-tune", "TrainingArguments and Trainer", assignment.training),
    Point("3 fine-tune", "1 to 5 epochs", assignment.epochs),
    Point("4 quantize", "INCQuantizer", assignment.inc_quantizer),
    Point("4 quantize", "calibration set filtered and tokenized", assignment.calibration),
    Point("4 quantize", "exported as OpenVINO IR", assignment.openvino_ir),
    Point("4 quantize", "latency, RAM, perplexity on the CPU", assignment.on_the_cpu),
    Point("charts", "chart of latency", saved.chart_of("latency")),
    Point("charts", "chart of perplexity", saved.chart_of("perplexity")),
    Point("charts", "chart of memory", saved.chart_of("memory")),
    Point("traces", "traces present and not empty", saved.traces_present),
    Point("traces", "traces are those of the record", saved.traces_of_the_record),
    Point("private", "no key or token", saved.no_secrets),
    Point("private", "no home path", saved.no_home_paths),
    Point("figures", "figures are those of the record", figures_of_the_record),
)


def check_points(submission: Submission) -> list[Answer]:
    """Look for every point, in the order of the assignment."""
    return [_answer(point, submission) for point in POINTS]


def _answer(point: Point, submission: Submission) -> Answer:
    passed: bool | None = True
    try:
        found = point.find(submission)
    except NotMetError as missing:
        passed, found = False, str(missing)
    except NoRecordError as none:
        passed, found = None, str(none)
    return Answer(point.part, point.name, passed, found)
