"""Take a sequence classifier through FP16 and INT8 in three runtimes: size, latency in turns, and the answers on the same texts.

Where the real DistilBERT can't be had, its architecture with random weights gives size and speed, which do not depend on the weights, and
a small DistilBERT that lies here gives the answers.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from experiments.classifier.tasks import CALIBRATION_TEXTS, Task, find_task
from experiments.classifier.training import SMALL, random_full_size, train_small
from experiments.classifier.variants import TRAINED_ROWS, VARIANTS, Int8Layers, Subject, TorchFp32, Variant
from experiments.contract import choose, slug
from experiments.race.engines.base import Case, make_prompts, started
from gpt2opt import environment
from gpt2opt.errors import raise_cause
from gpt2opt.measure.turns import Contestants, LeftError, again, one_line
from gpt2opt.settings import is_whole
from gpt2opt.sources.gpt2 import check_finite
from gpt2opt.sources.hub import find_snapshot
from gpt2opt.sources.models import FoundModel, check_weights, load_tokenizer
from gpt2opt.storage import WEIGHTS, torch_weights

DISTILBERT = "distilbert-base-uncased-finetuned-sst-2-english"
PATTERNS = ["*.json", "model*.safetensors", "vocab.txt", "merges.txt"]
CHOICES = f"a directory with a sequence classifier, a hub id such as {DISTILBERT}, small, random or auto"
BATCHES, BATCH_SHARE = (8, 32), 10
"""Texts that are read at once, beside one text; a batch gets one run where one text gets ten."""
FULL_SIZE_BYTES = 4 * 66_955_010
MAKING_COPIES, LIBRARY_BYTES = 4, 1e9
"""While variants are made there are this many copies of the weights at once, beside what the libraries take."""
RESERVE_BYTES = 3e8
"""Memory that stays free beside the loaded variants: for what they need while they work."""


@dataclass(frozen=True)
class VariantResult:
    """One form of the classifier. left_out: why it was not measured, None if it was. fp32: the form that computes the same in FP32.

    size_bytes: as saved. int8: of the timed model's Linear layers. samples_s: seconds of each timed run, paired with those of the others.
    answers: the class given to each scored text. Not in older results: device, of torch; batches: number of texts that are read at once ->
    seconds of each run; peak_rss_bytes: of the process that runs it, after the runs of one text.
    """

    name: str
    package: str
    version: str | None
    note: str
    bits: int
    fp32: str
    left_out: str | None = None
    size_bytes: int | None = None
    int8: Int8Layers | None = None
    warmup_runs: int | None = None
    samples_s: tuple[float, ...] = ()
    answers: tuple[int, ...] = ()
    device: str = "cpu"
    batches: dict[str, tuple[float, ...]] = field(default_factory=dict)
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class ClassifierResult:
    """All forms. timed: the model of size and speed; scored: that of the answers. linears: nn.Linear layers of the timed one.

    data: the texts. truth: their classes, as numbers of `classes`. again_s, again_batches: samples of the first form in another process;
    not in older results.
    """

    environment: dict[str, Any]
    timed: str
    scored: str
    linears: int
    tokens: int
    runs: int
    data: str
    classes: tuple[str, ...]
    truth: tuple[int, ...]
    variants: tuple[VariantResult, ...]
    again_s: tuple[float, ...] = ()
    again_batches: dict[str, tuple[float, ...]] = field(default_factory=dict)
    schema: str = "gpt2opt.classifier/1"

    @property
    def measured(self) -> list[VariantResult]:
        return [variant for variant in self.variants if not variant.left_out]

    @property
    def base(self) -> VariantResult:
        """Return the form that all others are compared with."""
        return self.variants[0]

    def fp32_of(self, variant: VariantResult) -> VariantResult | None:
        """Return the FP32 form in the same runtime; None if it was left out."""
        return next((each for each in self.measured if each.name == variant.fp32), None)


Facts = dict[str, dict[str, Any]]
"""Name of a variant -> what was found out about it, by the fields of `VariantResult`."""


def compare_variants(model: str = "auto", data: str = "auto", runs: int = 100, tokens: int = 16, variants: str = "") -> ClassifierResult:
    """Make every variant of a classifier, time all of them in turns, and let each answer the same texts; progress goes to stderr.

    Args:
        model: a directory, a hub id, `small` (a trained DistilBERT that lies here, with the texts it was made for), `random` (DistilBERT's
            architecture with random weights), or `auto`: the DistilBERT of the demo from the local cache or the hub, else random weights,
            which are then named as a stand-in.
        data: see `find_task`.
        runs, tokens: timed runs of each variant, at least 2, and tokens of a timed text, the two special ones included.
        variants: names as `slug` writes them, with commas between them; all where empty. What they are compared with joins.

    Raises:
        ValueError: a model, texts or a variant that can't be had, a number out of its range, or too little memory.
    """
    if not is_whole(runs, 2) or not is_whole(tokens, 2):
        raise ValueError(f"runs={runs}, tokens={tokens}; expected at least 2 runs, for an interval, and 2 tokens")
    chosen, found = choose_variants(variants), find_classifier(model)
    check_memory(sum(file.stat().st_size for file in torch_weights(found.path)) if found else FULL_SIZE_BYTES)
    task = find_task("docstrings" if (model, data) == ("small", "auto") else data)
    timed, scored = _subjects(found, model, task, tokens)
    facts: Facts = {variant.name: {"left_out": reason} if (reason := variant().unavailable()) else {} for variant in chosen}
    twice = facts[again(TorchFp32.name)] = {}
    with tempfile.TemporaryDirectory() as scratch:
        with _started(chosen, timed, Path(scratch, "timed"), facts) as contestants:
            _time(contestants, timed.model.config.vocab_size, runs, tokens, facts)
            if scored is timed:
                _score(contestants, scored, task, facts)
        if scored is not timed:
            with _started(chosen, scored, Path(scratch, "scored"), facts) as contestants:
                _score(contestants, scored, task, facts)
    if failed := facts[TorchFp32.name].get("left_out"):
        raise RuntimeError(f"{TorchFp32.name}, which all others are compared with, {failed}")
    linears = sum(isinstance(module, torch.nn.Linear) for module in timed.model.modules())
    return ClassifierResult(
        environment.describe(), timed.name, scored.name, linears, tokens, runs, str(task), task.classes,
        task.score.labels, tuple(_result(variant, facts[variant.name]) for variant in chosen),
        twice.get("samples_s", ()), twice.get("batches", {}),
    )  # fmt: skip


def choose_variants(names: str) -> tuple[type[Variant], ...]:
    """Return the variants of these names, each with what it is compared with; all of them for an empty string.

    A name that is unknown, or of a variant that can't be made here, is a ValueError.
    """
    known = {variant.name: variant for variant in VARIANTS}
    wanted = choose("variant", names, known)
    for name in wanted if names else ():
        if reason := known[name]().unavailable():
            others = ", ".join(slug(each) for each in known if each != name)
            raise ValueError(f"variant {slug(name)}: {reason}; or choose among {others}")
    joining = {one for name in wanted for one in (TorchFp32, known[name].fp32, known[name])}
    return tuple(variant for variant in VARIANTS if variant in joining)


def find_classifier(model: str) -> FoundModel | None:
    """Find a sequence classifier on this disk or on the hub; None means DistilBERT's architecture with random weights."""
    if model == "random":
        return None
    if model == "small":
        return FoundModel("a small DistilBERT, trained on other texts of this kind", "repository", SMALL)
    if Path(model).is_dir():
        if not torch_weights(Path(model)):
            raise ValueError(f"no {WEIGHTS} in {model}; name {CHOICES}")
        check_weights(Path(model))
        return FoundModel(Path(model).resolve().name, "argument", Path(model))
    repo_id = DISTILBERT if model == "auto" else model
    if found := find_snapshot(repo_id, PATTERNS, lambda path: bool(torch_weights(path))):
        return FoundModel(repo_id, found[1], found[0])
    if model == "auto":
        return None
    raise ValueError(f"model {model!r} is no directory, is not in the local cache and the hub did not give it; name {CHOICES}")


def load_classifier(path: Path):
    """Load a sequence classifier in FP32 and its tokenizer from a directory; return `(tokenizer, model)`, the model in eval mode.

    A directory that is damaged, holds another model or a weight that is NaN or infinite is a ValueError.
    """
    try:
        model, read = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # each file format raises its own errors for a file that is cut short
        raise_cause(error)
        raise ValueError(f"can't load the classifier in {path} ({error!r:.160}); name {CHOICES}") from error
    if read["missing_keys"]:  # transformers would fill these with random numbers
        lost = ", ".join(sorted(read["missing_keys"])[:3])
        raise ValueError(f"the model in {path} lacks {lost}: it is no trained sequence classifier; name {CHOICES}")
    check_finite(model)
    return load_tokenizer(path), model.eval()


def class_numbers(name: str, config: Any, classes: Sequence[str]) -> tuple[int, ...]:
    """Return, for each number that a model answers with, the number of the class that it means, by the names in the model's own config.

    Upper and lower case are the same. A model whose names are transformers' own, LABEL_0 and so on, means the classes in their order.
    Other names than those of the classes are a ValueError.
    """
    names = [str(config.id2label[number]) for number in range(config.num_labels)]
    for known in (classes, [f"LABEL_{number}" for number in range(len(classes))]):
        numbers = {label.casefold(): number for number, label in enumerate(known)}
        found = [numbers.get(label.strip().casefold()) for label in names]
        if set(found) == set(numbers.values()):
            return tuple(number for number in found if number is not None)
    raise ValueError(f"{name} calls its classes {', '.join(names)}, expected {', '.join(classes)}; name them so in id2label of its config")


def check_memory(weight_bytes: int) -> None:
    """Raise ValueError unless there is memory to make the variants of a model whose FP32 weights take this many bytes."""
    needed, free = MAKING_COPIES * weight_bytes + LIBRARY_BYTES, psutil.virtual_memory().available
    if free < needed:
        raise ValueError(
            f"{free / 1e9:.1f} GB of memory are available, expected {needed / 1e9:.1f} GB for a model of {weight_bytes / 1e6:.0f} MB in "
            "FP32; end other programs, or name a smaller model"
        )


def _subjects(found: FoundModel | None, asked: str, task: Task, tokens: int) -> tuple[Subject, Subject]:
    """Return the model that is timed and the one that answers; they are one if a real classifier meets the texts it was made for."""
    if found:
        tokenizer, model = load_classifier(found.path)
        name = str(found)
    else:
        why = "as asked for" if asked == "random" else f"as a stand-in for {DISTILBERT}, which neither the local cache nor the hub gave"
        tokenizer, model, name = None, random_full_size(), f"the architecture of DistilBERT with random weights ({why})"
    timed = Subject(name, model, tokenizer)
    if tokens > timed.room:
        raise ValueError(f"tokens={tokens}, expected at most {timed.room}: the model reads no longer texts")
    if found and (not task.stand_in or found.path == SMALL):
        if model.config.num_labels != len(task.classes):
            raise ValueError(
                f"{found.name} tells {model.config.num_labels} classes apart, {task.name} has {len(task.classes)}; give it its own"
            )
        timed = replace(timed, classes=class_numbers(found.name, model.config, task.classes))
        timed = _with_texts(timed, task)
        return timed, timed
    # Without texts of its own, the timed model is calibrated with random ids: no answer of it is read, and its speed stays the same.
    rows = [make_prompts(Case(tokens, 1), model.config.vocab_size, 1, number)[0].tolist() for number in range(CALIBRATION_TEXTS)]
    tokenizer, small = load_classifier(SMALL) if task.stand_in else train_small(task)
    trained = f"a DistilBERT of {small.num_parameters():,} parameters, trained on {len(task.train.texts):,} other texts of this kind"
    return timed.with_rows(rows, rows), _with_texts(Subject(trained, small, tokenizer), task)


def _with_texts(subject: Subject, task: Task) -> Subject:
    return subject.with_rows(subject.rows(task.calibration.texts), subject.rows(task.train.texts[:TRAINED_ROWS]))


def _result(variant: type[Variant], facts: dict[str, Any]) -> VariantResult:
    if facts.get("left_out"):  # half of its measurements would mislead
        facts = {"left_out": facts["left_out"]}
    version = environment.installed(variant.package)
    return VariantResult(
        variant.name, variant.package, version, variant.note, variant.bits, variant.fp32.name, device=variant.device, **facts
    )


@contextmanager
def _started(chosen: Sequence[type[Variant]], subject: Subject, folder: Path, facts: Facts) -> Iterator[Contestants]:
    """Make the variants of one subject and start each in a process of its own; of one that fails, `facts` says why."""
    starts = {}
    for variant in tqdm(chosen, desc="making the variants", file=sys.stderr):
        found, place = facts[variant.name], folder / slug(variant.name)
        if found.get("left_out"):
            continue
        try:
            if facts[variant.fp32.name].get("left_out"):
                raise RuntimeError(f"{variant.fp32.name}, which it is compared with, was left out")
            place.mkdir(parents=True)
            variant().prepare(subject, place)
        except Exception as error:  # each library raises its own errors for an architecture that it can't convert
            found["left_out"] = f"failed: {one_line(error)}"
            continue
        environment.give_back_memory()
        found.setdefault("size_bytes", variant.disk_bytes(place))  # of the timed model, which comes first
        starts[variant.name] = started(variant, place)
    if TorchFp32.name not in starts:
        raise RuntimeError(f"{TorchFp32.name}, which all others are compared with, {facts[TorchFp32.name]['left_out']}")
    with Contestants(starts, may_fail=True, reserve_bytes=RESERVE_BYTES) as contestants:
        yield contestants
        for name in starts.keys() & contestants.left.keys():
            facts[name]["left_out"] = contestants.left[name]


def _time(contestants: Contestants, vocab_size: int, runs: int, tokens: int, facts: Facts) -> None:
    """Time all variants in turns, on new texts in each round, one at a time and then in batches; the first one has two processes."""

    def in_turns(sizes: Sequence[int], rounds: int) -> Iterator[tuple[str, dict[str, tuple[float, ...]], dict]]:
        cases = [Case(tokens, 1, size) for size in sizes]
        turns = contestants.take_turns(
            "seconds", cases, rounds=rounds, arguments=lambda case, number: (make_prompts(case, vocab_size, 0, number),)
        )
        *_, outcome = tqdm(turns, total=rounds + 1, desc=f"timing {' and '.join(map(str, sizes))} in turns", file=sys.stderr)
        for name in contestants.names:
            yield name, {str(case.batch_size): tuple(outcome.samples[name][case]) for case in cases}, outcome.warmups[name]

    for name, samples, warmups in in_turns([1], runs):
        with suppress(LeftError):
            found = {"int8": contestants.call(name, "int8_layers"), "peak_rss_bytes": contestants.call(name, "peak_rss")}
            facts[name].update(found, samples_s=samples["1"], warmup_runs=next(iter(warmups.values()))[0])
    for name, samples, _ in in_turns(BATCHES, max(2, runs // BATCH_SHARE)):
        facts[name]["batches"] = samples


def _score(contestants: Contestants, subject: Subject, task: Task, facts: Facts) -> None:
    """Let every variant answer every text."""
    rows = subject.rows(task.score.texts)
    for name in tqdm(
        [name for name in contestants.names if name != again(TorchFp32.name)], desc=f"answering {len(rows):,} texts", file=sys.stderr
    ):
        with suppress(LeftError):
            given = contestants.call(name, "answers", rows)
            facts[name]["answers"] = tuple(subject.classes[number] for number in given) if subject.classes else tuple(given)
