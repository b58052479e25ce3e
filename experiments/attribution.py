"""What each step from torch FP32 to INT8 is worth, one thing changed at a time."""

import dataclasses
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tqdm import tqdm

from experiments.charts import bar, name_rows
from experiments.contract import Experiment, say
from experiments.race.engines.base import Case, Engine, Timing, started, timed_turns
from experiments.race.engines.ours import Ours, OursBf16
from experiments.race.engines.pytorch import TorchFp32
from gpt2opt import environment
from gpt2opt.environment import machine_label
from gpt2opt.export.openvino import export_ir
from gpt2opt.measure.quality import ScoredText, perplexity
from gpt2opt.measure.results import Quality
from gpt2opt.measure.stats import PERCENT, Estimate, paired_ratio
from gpt2opt.measure.turns import Contestants, again
from gpt2opt.prune import head_importance, importance_batches, prune_attention_heads
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.report.chart import BETTER, SAME, WHOLE, WORSE
from gpt2opt.report.table import MISSING, Table, table
from gpt2opt.report.tables import megabytes, milliseconds
from gpt2opt.run.measurements import make_workload
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import read_manifest
from gpt2opt.settings import Settings, check_whole
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.sources.texts import Texts, find_texts, take_bytes
from gpt2opt.torch_model import logits_of

CASE = Case(256, 64)
AGAIN = "nothing: the same in another process"
NO_BF16 = "this CPU has no bf16 instructions (AVX512-BF16 or AMX)"


@dataclass(frozen=True)
class Step:
    """One model; it differs from the one that it is compared with in one thing, see `Attribution.pairs`.

    change: that thing. weight_bytes: on disk, the graph of an IR included. timings: of the case, one per round. left_out: why it is not
    measured, None if it is. branch: it is shown beside the chain, and no later step builds on it.
    """

    name: str
    change: str
    weight_bytes: int | None = None
    quality: Quality | None = None
    timings: tuple[Timing, ...] = ()
    left_out: str | None = None
    branch: bool = False


@dataclass(frozen=True)
class Attribution:
    """The steps in their order, all timed in the same rounds with the same threads."""

    environment: dict[str, Any]
    model: str
    case: Case
    rounds: int
    steps: tuple[Step, ...]
    schema: str = "gpt2opt.attribution/1"

    @property
    def measured(self) -> list[Step]:
        return [step for step in self.steps if not step.left_out]

    @property
    def chain(self) -> list[Step]:
        """Return the measured steps without the branches: each builds on the one before it."""
        return [step for step in self.measured if not step.branch]

    @property
    def pairs(self) -> list[tuple[Step, Step]]:
        """Return each measured step but the first, with the one that it is compared with: the last of the chain before it."""
        pairs, before = [], None
        for step in self.measured:
            if before:
                pairs.append((step, before))
            if not step.branch:
                before = step
        return pairs


@dataclass(frozen=True)
class Column:
    """What every step is measured in: its value, how that is shown, and the ratio of a step to the one that it is compared with.

    digits: of a ratio. exact: it is counted, not measured, so that it has no interval.
    """

    name: str
    unit: str
    value: Callable[[Any], float]
    show: Callable[[float], str]
    ratio: Callable[[Any, Any], Estimate]
    digits: int = 2
    exact: bool = False

    def factor(self, step: Step, before: Step) -> str:
        """Return the ratio with its interval, and say so where it can't be distinguished from 1."""
        ratio = self.ratio(step, before)
        if self.exact:
            return f"{ratio.value:.{self.digits}f}"
        return f"{ratio:.{self.digits}f}" + ("" if self.measurable(step, before) else ", no measurable difference")

    def measurable(self, step: Step, before: Step) -> bool:
        """Return whether the interval, at the digits that are shown, leaves 1 out."""
        ratio = self.ratio(step, before)
        return not round(ratio.low, self.digits) <= 1 <= round(ratio.high, self.digits)


def _timed(name: str, of: Callable[[Timing], float]) -> Column:
    def ratio(step: Step, before: Step) -> Estimate:
        return paired_ratio([*map(of, step.timings)], [*map(of, before.timings)])

    return Column(name, "ms", lambda step: statistics.median(map(of, step.timings)), milliseconds, ratio)


def _size_ratio(step: Any, before: Any) -> Estimate:
    return Estimate(*[step.weight_bytes / before.weight_bytes] * 3)


def _perplexity_ratio(step: Any, before: Any) -> Estimate:
    interval = step.quality.ratio_interval(before.quality) or (0.0, math.inf)  # one document says nothing of another
    return Estimate(step.quality.ratio_to(before.quality), *interval)


TTFT = _timed("TTFT", lambda timing: timing.first_s)
TPOT = _timed("TPOT", lambda timing: statistics.median(timing.later_s))
SIZE = Column("on disk", "MB", lambda step: step.weight_bytes, lambda size: megabytes(int(size)), _size_ratio, exact=True)
PERPLEXITY = Column("perplexity", "", lambda step: step.quality.perplexity, "{:.2f}".format, _perplexity_ratio, digits=4)
COLUMNS = (TTFT, TPOT, SIZE, PERPLEXITY)


@dataclass(frozen=True)
class Candidate:
    """A step before it is measured: which engine runs it, and from which folder."""

    name: str
    change: str
    engine: type[Engine]
    folder: Path
    branch: bool = False


def attribute(
    model: str = "auto",
    text: str = "auto",
    rounds: int = 30,
    *,
    case: Case = CASE,
    score_bytes: int = 100_000,
    calibration_rows: int = 32,
) -> Attribution:
    """Make the models of the chain, score each on held-out text, and time all of them in interleaved rounds.

    bf16 is a branch of OpenVINO FP32: the pruned model computes in FP32 everywhere, as what is left float in the INT8 one does. It is
    not fine-tuned, since that would be a second change.

    Raises:
        ValueError: a source can't be found or is too short, rounds < 1, or the case doesn't fit into the model's context.
    """
    check_whole("rounds", rounds, 1)
    found, texts = find_model(model), find_texts(text)
    tokenizer, reference = load_model(found.path)
    if case.prompt_tokens + case.new_tokens > reference.config.n_positions:
        raise ValueError(f"{case} tokens don't fit into the context of {reference.config.n_positions}; name a smaller case")
    scored = make_workload(tokenizer, texts, Settings(score_bytes=score_bytes)).scored
    with tempfile.TemporaryDirectory() as scratch:
        candidates = _make_models(found.path, texts, Path(scratch), calibration_rows)
        steps = [_score(candidate, reference, scored) for candidate in candidates]
        steps = _race(candidates, steps, case, rounds, reference.config.vocab_size)
    return Attribution(environment.describe(), str(found), case, rounds, tuple(steps))


def _make_models(source: Path, texts: Texts, folder: Path, calibration_rows: int) -> list[Candidate]:
    """Write the models of the chain into `folder`; the bf16 step reads the same files as the FP32 one."""
    settings = Settings()
    fp32, pruned_fp32, int8 = (folder / name for name in ("fp32", "pruned", "int8"))
    (folder / "torch").mkdir()
    TorchFp32().prepare(source, folder / "torch")
    tokenizer, model = load_model(source)
    say("exporting FP32")
    export_ir(prepare_for_export(model), tokenizer, fp32)
    say(f"pruning {settings.prune_fraction:.0%} of the heads")
    chosen_on = [document.text for document in take_bytes(texts.fine_tune, settings.fine_tune_bytes)]
    importance = head_importance(model, importance_batches(chosen_on, tokenizer, settings.sequence_length))
    heads = model.transformer.h[0].attn.num_heads
    export_ir(prepare_for_export(prune_attention_heads(model, settings.prune_fraction, importance)), tokenizer, pruned_fp32)
    say("quantizing")
    calibration = prepare_calibration_dataset([d.text for d in texts.calibration], tokenizer, limit=calibration_rows)
    quantize_int8(model, tokenizer, calibration, int8)
    cache = {"u8": "INT8", "f16": "FP16"}[read_manifest(int8).kv_cache]
    left = model.transformer.h[0].attn.num_heads
    return [
        Candidate("torch FP32", "where it starts: eager mode", TorchFp32, folder / "torch"),
        Candidate("OpenVINO FP32", "runtime", Ours, fp32),
        Candidate("OpenVINO bf16", "arithmetic", OursBf16, fp32, branch=True),
        Candidate("pruned", f"{heads - left} of {heads} heads removed per layer, still FP32, not fine-tuned", Ours, pruned_fp32),
        Candidate("INT8", f"INT8 weights and inputs of matmuls by the default recipe; {cache} KV cache", Ours, int8),
    ]


def _score(candidate: Candidate, reference, text: ScoredText) -> Step:
    """Take a step's size and perplexity; its torch model is the reference model itself. Without bf16 instructions bf16 is left out."""
    step = Step(candidate.name, candidate.change, branch=candidate.branch)
    if candidate.engine is OursBf16 and not environment.has_bf16():
        return dataclasses.replace(step, left_out=NO_BF16 if environment.has_bf16() is False else environment.NO_FLAGS)
    say(f"scoring {candidate.name}")
    engine = candidate.engine
    model = load_ir(candidate.folder, precision=engine.precision) if issubclass(engine, Ours) else reference
    quality = perplexity(logits_of(model), text)
    return dataclasses.replace(step, weight_bytes=candidate.engine.disk_bytes(candidate.folder), quality=quality)


def _race(candidates: list[Candidate], steps: list[Step], case: Case, rounds: int, vocab_size: int) -> list[Step]:
    """Time the steps of the chain, each in a process of its own; one that fails is left out, with the reason."""
    taking_part = [candidate for candidate, step in zip(candidates, steps, strict=True) if not step.left_out]
    starts = {candidate.name: started(candidate.engine, candidate.folder) for candidate in taking_part}
    with Contestants(starts, may_fail=True) as contestants:
        *_, outcome = tqdm(timed_turns(contestants, [case], rounds, vocab_size), f"{case} tokens in turns", rounds + 1)
        samples, left = outcome.samples, contestants.left
    first, *others = steps
    twice = dataclasses.replace(first, name=again(first.name), change=AGAIN, branch=True)
    return [
        dataclasses.replace(step, timings=tuple(samples.get(step.name, {}).get(case, ())), left_out=step.left_out or left.get(step.name))
        for step in (first, twice, *others)
    ]


def attribution_table(attribution: Attribution) -> Table:
    """Show every step, and its factor over what it is compared with; the last row compares the last step with the first."""
    before = {step.name: previous for step, previous in attribution.pairs}
    rows = []
    for step in attribution.steps:
        base = before.get(step.name)
        cells = [MISSING] * len(COLUMNS)
        if not step.left_out:
            cells = [column.show(column.value(step)) + (f"; {column.factor(step, base)}" if base else "") for column in COLUMNS]
        rows.append((step.name, f"left out: {step.left_out}" if step.left_out else step.change, base.name if base else "", *cells))
    first, last = attribution.chain[0], attribution.chain[-1]
    rows.append(("all steps together", "", first.name, *(column.factor(last, first) for column in COLUMNS)))
    header = [f"{column.name}, {column.unit}".rstrip(", ") + f"; ÷ that [{PERCENT}]" for column in COLUMNS]
    return table(("step", "what changes", "compared with", *header), rows)


def attribution_caption(attribution: Attribution) -> str:
    """Say what the table was taken on."""
    case, quality = attribution.case, attribution.chain[0].quality
    assert quality
    return (
        f"Model: {attribution.model}. {machine_label(attribution.environment)}; prompt {case.prompt_tokens} tokens, "
        f"{case.new_tokens} new, {attribution.rounds} rounds in which all steps take turns. "
        "Times are medians, factors medians of the ratios within a round. Perplexity, paired document by document: "
        f"{quality.protocol}."
    )


def plot_attribution(attribution: Attribution) -> list[Axes]:
    """Draw a waterfall for each column: green where a step lowers it, red where it raises it, grey without a measurable difference."""
    figure, grid = plt.subplots(2, 2, figsize=(13, 2 + 1.1 * len(attribution.measured)), layout="constrained")
    for axes, column in zip(grid.flat, COLUMNS, strict=True):
        _waterfall(axes, attribution, column)
    for panels in grid:
        name_rows(panels, [step.name for step in attribution.measured])
    facts, case = attribution.environment, attribution.case
    figure.suptitle(f"From torch FP32 to INT8, step by step, on {facts['cpu']}, {facts['threads']} threads, {case} tokens")
    notes = [f"each factor is over the step above it, with its {PERCENT} interval; less is better"]
    notes += [
        f"{step.name} is a branch: it and the step below it are over {before.name}" for step, before in attribution.pairs if step.branch
    ]
    notes += [f"{step.name} is left out: {step.left_out}" for step in attribution.steps if step.left_out]
    figure.supxlabel("\n".join(notes), fontsize=9)
    return list(grid.flat)


def _waterfall(axes: Axes, attribution: Attribution, column: Column) -> None:
    chain, steps = attribution.chain, attribution.measured
    scale = {"ms": 1e3, "MB": 1e-6}.get(column.unit, 1)
    values = [column.value(step) * scale for step in steps]
    # Perplexities differ by some percent; from zero on no step could be seen.
    start = min(values) - (max(values) - min(values)) if column is PERPLEXITY else 0
    bar(axes, 0, values[0] - start, WHOLE, f"{column.show(column.value(chain[0]))} {column.unit}", left=start)
    for step, before in attribution.pairs:
        row, base = steps.index(step), steps.index(before)
        was, now = values[base], values[row]
        changed = SAME if not column.measurable(step, before) else WORSE if now > was else BETTER
        factor = column.factor(step, before).replace(", no", "\nno")
        axes.barh(row, min(was, now) - start, left=start, height=0.6, color=WHOLE)
        bar(axes, row, now - was, changed, f"{column.show(column.value(step))} {column.unit}\n× {factor}", left=was)
        axes.plot([was, was], [base + 0.3, row - 0.3], color="grey", linewidth=0.8)
    axes.set_xlim(start, start + 1.5 * (max(values) - start))
    whole = column.factor(chain[-1], chain[0])
    axes.set(title=f"{column.name}, all steps together: × {whole}", xlabel=column.unit + ("the axis does not start at 0" if start else ""))


EXPERIMENT = Experiment(
    Attribution,
    attribute,
    tables=lambda found: {"Each step, over the step that it is compared with": attribution_table(found)},
    charts=lambda found: {"attribution": plot_attribution(found)[0].figure},
    caption=attribution_caption,
)
