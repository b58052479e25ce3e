"""What an experiment is, which there are, and how their results are written.

An experiment runs and returns a frozen result. From the result alone, as it is read back from JSON, come its tables, charts and caption.
"""

import dataclasses
import datetime
import hashlib
import importlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from gpt2opt.report.chart import describe
from gpt2opt.report.table import Table, table
from gpt2opt.storage import check_file, check_folder, from_json, read_json, write_result


@dataclass(frozen=True)
class Experiment:
    """One experiment. A module that defines one binds it to the name EXPERIMENT.

    result: the frozen dataclass that it returns; it names its `schema` and the `environment` it was measured in. run: takes the options of
    its `Entry`. tables: by title. charts: figures of matplotlib, by the name of the file. caption: in Markdown. in_documents: titles of
    the tables that documents show, by default all.
    """

    result: Any
    run: Callable[..., Any]
    tables: Callable[[Any], Mapping[str, Table]]
    charts: Callable[[Any], Mapping[str, Any]]
    caption: Callable[[Any], str]
    in_documents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """One option of the command line; its name is that of an argument of `Experiment.run`, its type that of the default.

    least: the smallest number that makes sense, and why. Less is refused before the experiment's libraries are imported.
    """

    name: str
    default: Any
    help: str
    least: tuple[int, str] | None = None


@dataclass(frozen=True)
class Entry:
    """What is known of an experiment before its libraries are imported. module: where EXPERIMENT is defined. charts: names of its files.

    takes_folder: `run` gets the folder of the result as `out`, since it keeps more there.
    """

    module: str
    help: str
    options: tuple[Option, ...]
    charts: tuple[str, ...] = ()
    takes_folder: bool = False

    def load(self) -> Experiment:
        return importlib.import_module(self.module).EXPERIMENT


OVER_FEWER = "intervals and ranges over fewer say little"
MODEL = Option("model", "auto", "directory, hub id, bundled or auto")
TEXT = Option("text", "auto", "text file or table, wikitext-2, docs or auto")
SIZE = Option("size", "gpt2", "gpt2, gpt2-medium, gpt2-large, or a directory with a GPT-2")

EXPERIMENTS = {
    "race": Entry(
        "experiments.race.report",
        "race the engines that run GPT-2 on a CPU, each in its own process, in interleaved rounds",
        (
            SIZE,
            Option("rounds", 5, "timed rounds"),
            Option("engines", "", "names with commas between them, such as openvino-int8; all where empty, and ours always races"),
        ),
        ("race", "growth"),
        takes_folder=True,
    ),
    "recipes": Entry(
        "experiments.recipes", "compare the ways of quantizing, on a model as it comes and with injected activation outliers", (MODEL, TEXT)
    ),
    "attribution": Entry(
        "experiments.attribution",
        "measure what each step from torch FP32 to INT8 is worth in time, size and perplexity",
        (MODEL, TEXT, Option("rounds", 30, "timed rounds")),
        ("attribution",),
    ),
    "pruning": Entry(
        "experiments.pruning",
        "prune heads by importance and by its controls, and measure what fine-tuning recovers",
        (
            MODEL,
            TEXT,
            Option("seeds", 5, "random choices of heads"),
            Option("score_bytes", 50_000, "bytes of the text's scored part"),
            Option("epochs", 1.0, "of fine-tuning"),
        ),
        ("pruning",),
    ),
    "passes": Entry(
        "experiments.passes",
        "leave out each graph pass in turn, and measure what the runtime loses",
        (SIZE, Option("rounds", 12, "timed rounds")),
        ("passes",),
    ),
    "token": Entry(
        "experiments.token_cost",
        "measure what a decoded token costs, part by part, beside the bytes that each part reads",
        (SIZE, Option("rounds", 8, "timed rounds")),
    ),
    "grid": Entry(
        "experiments.grid.report",
        "prune, fine-tune and quantize GPT-2 on movie reviews in every combination: loss, size, time and memory of each",
        (
            MODEL,
            Option("text", "auto", "imdb, a CSV with a column review or text, a UTF-8 file, docs or auto"),
            Option("rounds", 3, "timed rounds"),
            Option("epochs", 1.0, "of fine-tuning, the same for all models"),
            Option("train_bytes", 40_000, "bytes of text that they are fine-tuned on"),
            Option("score_bytes", 16_000, "bytes of the text's scored part"),
            Option("keep", "", "folder in which all models stay, for `gpt2opt generate` and `gpt2opt perplexity`; by default none does"),
        ),
        ("grid",),
    ),
    "classifier": Entry(
        "experiments.classifier.report",
        "take DistilBERT, or any sequence classifier, through FP16 and INT8 in three runtimes: size, latency, INT8 layers and answers",
        (
            Option(
                "model",
                "auto",
                "directory, hub id, small (trained, and there already), random (DistilBERT's architecture) or auto",
            ),
            Option("data", "auto", "folder with SST-2, sst2, docstrings or auto"),
            Option("runs", 100, "timed runs of each variant"),
            Option("tokens", 16, "tokens of a timed text"),
            Option("variants", "", "names with commas between them, such as openvino-int8-static; all where empty"),
        ),
        ("classifier",),
    ),
    "deployed": Entry(
        "experiments.deployed",
        "compile for each back-end, and measure latency statistics and the scaling over cores",
        (MODEL, Option("runs", 12, "timed runs")),
        ("deployed", "deployed-full-size"),
    ),
    "decoding": Entry(
        "experiments.decoding.report",
        "compare the decoding methods on models of several sizes: repetition, perplexity and time",
        (
            Option("models", "auto", "names with commas between them: directories, hub ids or bundled; or auto, for the sizes of GPT-2"),
            TEXT,
            Option("methods", "", "names with commas between them, such as top-p; all where empty, and greedy always takes part"),
            Option("prompts", 10, "prompts from the held-out text", (10, OVER_FEWER)),
            Option("seeds", 3, "draws of each method that samples", (3, OVER_FEWER)),
        ),
        ("decoding",),
    ),
    "drafts": Entry(
        "experiments.drafts",
        "measure what guessing several tokens at once gains, by the source of the guesses",
        (Option("run", "artifacts", "folder of a run, whose INT8 model writes"), TEXT, Option("rounds", 24, "timed rounds")),
    ),
    "waiting": Entry(
        "experiments.waiting",
        "compare how torch's threads wait for each other, alone and beside a process that keeps every core busy",
        (MODEL, Option("rounds", 5, "timed rounds")),
    ),
    "optimisations": Entry(
        "experiments.optimisations",
        "time torch and ONNX Runtime with one thread and all, greedy and sampling, each in its own process, in turns",
        (
            SIZE,
            Option("engines", "", "names with commas between them, such as torch-dynamic-int8; all where empty, and torch FP32 always"),
            Option("rounds", 6, "timed rounds"),
        ),
        ("optimisations",),
    ),
}


def check_outputs(name: str, folder: Path) -> None:
    """Raise ValueError, before the work, unless a folder is new, empty or ours, and the result and the charts can be written into it."""
    check_folder(folder)
    for path in (json_path(name, folder), *(folder / f"{chart}.png" for chart in EXPERIMENTS[name].charts)):
        check_file(path)


def json_path(name: str, folder: Path) -> Path:
    return folder / f"{name}.json"


def write_json(path: Path, result: Any) -> None:
    write_result(path, json.dumps(dataclasses.asdict(result), indent=1) + "\n")


def read_result_of(name: str, folder: Path) -> Any:
    """Read the result of an experiment back, or raise ValueError for a file that is missing, is not JSON or has another schema."""
    kind, path = EXPERIMENTS[name].load().result, json_path(name, folder)
    content = read_json(path, kind.schema, f"python -m experiments {name}")
    try:
        return from_json(kind, content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole result ({type(error).__name__}: {error}); the same command writes it again") from error


def write_charts(charts: Mapping[str, Any], folder: Path, source: Path) -> None:
    """Write charts as PNG; each holds the hash of the JSON file that it was drawn from."""
    import matplotlib.pyplot as plt

    for name, figure in charts.items():
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=110, metadata={"Software": "gpt2opt", "Source": hash_of(source), "Description": describe(figure)}
        )
        write_result(folder / f"{name}.png", buffer.getvalue())
        plt.close(figure)


def hash_of(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def columns(items: Iterable[Any], shown: Mapping[str, Callable[[Any], str]]) -> Table:
    """Return a table with a row for each item; `shown` has the header of each column and what it shows of an item."""
    return table(tuple(shown), [[cell(item) for cell in shown.values()] for item in items])


CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "no difference was measurable"


@dataclass(frozen=True)
class Finding:
    """A claim that was checked. claim: nearly in the words of who made it. verdict: what the result says of it. figure: the numbers."""

    claim: str
    verdict: str
    figure: str


def decide(confirmed: bool, refuted: bool) -> str:
    """Return the verdict of a claim, of which at most one of the two is certain."""
    return CONFIRMED if confirmed else REFUTED if refuted else OPEN


def not_measured(needs: str, *claims: str) -> list[Finding]:
    """Return claims that this result says nothing of, because something was not measured."""
    return [Finding(claim, f"not measured here: needs {needs}", "") for claim in claims]


def findings_table(findings: Iterable[Finding]) -> Table:
    return columns(findings, {name: attrgetter(name) for name in ("claim", "verdict", "figure")})


def say(text: str) -> None:
    """Tell on stderr what is done now."""
    print(text, file=sys.stderr, flush=True)


def now() -> str:
    """Return the time, as results keep it in `created`."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def slug(name: str) -> str:
    """Return a name as it is typed: `torch-dynamic-int8`."""
    return name.lower().replace(",", "").replace(" ", "-")


def choose(what: str, names: str, known: Iterable[str], *always: str) -> tuple[str, ...]:
    """Return those of the known names that are asked for, with commas between them, as `slug` writes them; all if none is.

    `always` take part in any case, because the others are compared with them. ValueError says that a name of a `what` is not known.
    """
    typed = {slug(name): name for name in known}
    asked = [slug(name.strip()) for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in typed]
    if unknown:
        raise ValueError(f"{what} {unknown[0]!r} is not known; expected some of {', '.join(typed)}")
    return tuple(name for short, name in typed.items() if short in asked or name in always or not asked)
