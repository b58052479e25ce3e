"""What each graph pass gains on this CPU: the runtime with all passes, and without each in turn, on an INT8 model.

Each variant loads the same files in a process of its own, and they take turns. One that is left out may make others idle: a pass that works
on convolutions finds none without `as_convolutions`. So a row tells what the runtime loses without this one pass, not a share of a sum.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import openvino
from matplotlib.axes import Axes
from tqdm import tqdm

from experiments.charts import name_rows
from experiments.contract import Experiment, now, say
from experiments.race.engines.base import Case, Timing, timed_turns
from experiments.race.engines.ours import OursWithout
from experiments.race.run import check_size, prepare_models, quantize
from gpt2opt import environment
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.measure.stats import PERCENT, Estimate, paired_ratio
from gpt2opt.measure.turns import Contestants, again, in_child
from gpt2opt.report.chart import OUR_ENGINE, SAME
from gpt2opt.report.table import MISSING, Table, megabytes, milliseconds, table
from gpt2opt.runtime.compile import PASSES, case_of
from gpt2opt.runtime.manifest import IR_NAME
from gpt2opt.settings import check_whole

ALL = "all passes"
ONE, SEVERAL = Case(256, 16), Case(64, 16, 4)


@dataclass(frozen=True)
class Variant:
    """The runtime without one pass; `name` is that of the pass, or `ALL`. rss_bytes: after all rounds; None without /proc.

    one, several: the timings of `ONE` and of `SEVERAL`, one per round.
    """

    name: str
    rss_bytes: int | None
    one: tuple[Timing, ...]
    several: tuple[Timing, ...]


@dataclass(frozen=True)
class PassGains:
    """All variants, the one with all passes first. case: of `PASSES`, which decides what passes there are."""

    created: str
    environment: dict[str, Any]
    model: str
    case: str
    variants: tuple[Variant, ...]
    schema: str = "gpt2opt.passes/1"


def measure_passes(size: str = "gpt2", rounds: int = 12) -> PassGains:
    """Quantize a model, of a size as in `run_race`, and time its variants; rounds < 2 or an unknown size is a ValueError."""
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    check_size(size)
    with tempfile.TemporaryDirectory() as scratch:
        say(f"model {size}, and its quantization")
        models, folder = prepare_models(size, Path(scratch)), Path(scratch, "int8")
        in_fresh_process(quantize, Path(scratch, "models", "full"), folder, "w8a8-naive")
        case, variants = time_passes(folder, models.vocab_size, rounds)
    return PassGains(now(), environment.describe(), f"{size}, weights: {models.weights}", case, variants)


def time_passes(folder: Path, vocab_size: int, rounds: int) -> tuple[str, tuple[Variant, ...]]:
    """Return of which case the IR in `folder` is on this CPU, and its variants, timed in turns."""
    case = case_of(openvino.Core().read_model(folder / IR_NAME))
    passes = [each.__name__ for each in PASSES[case]]
    starts = {name: in_child(OursWithout, () if name == ALL else (name,), folder) for name in (ALL, *passes)}
    with Contestants(starts) as contestants:
        *_, outcome = tqdm(timed_turns(contestants, (ONE, SEVERAL), rounds, vocab_size), "timing", rounds + 1)
        sizes = {name: contestants.call(name, "resident") for name in contestants.names}
    return case, tuple(
        Variant(name, sizes[name] and sizes[name].rss_bytes, tuple(taken[ONE]), tuple(taken[SEVERAL]))
        for name, taken in outcome.samples.items()
    )


COLUMNS = (f"TTFT, {ONE.prompt_tokens} tokens", "TPOT", f"TPOT, {SEVERAL.batch_size} sequences")


def seconds(variant: Variant) -> list[list[float]]:
    """Return, for each of `COLUMNS`, the seconds of every round."""
    means = ([statistics.mean(timing.later_s) for timing in timings] for timings in (variant.one, variant.several))
    return [[timing.first_s for timing in variant.one], *means]


def without(result: PassGains, variant: Variant) -> list[Estimate]:
    """Return, for each of `COLUMNS`, the time without the pass ÷ the time with all passes, paired by rounds."""
    return list(map(paired_ratio, seconds(variant), seconds(result.variants[0])))


def passes_table(result: PassGains) -> Table:
    """Show the times with all passes, and how many times as long it takes without each."""
    everything, *others = result.variants
    first = [f"{milliseconds(statistics.median(each))} ms" for each in seconds(everything)]
    rows = [(ALL, *first, megabytes(everything.rss_bytes) if everything.rss_bytes else MISSING)]
    for variant in others:
        more = f"{(variant.rss_bytes - everything.rss_bytes) / 1e6:+.0f}" if variant.rss_bytes and everything.rss_bytes else MISSING
        named = variant.name if variant.name == again(ALL) else f"without `{variant.name}`"
        rows.append((named, *(f"{ratio:.3f}" for ratio in without(result, variant)), more))
    return table(("graph passes", *(f"{name}: × as long [{PERCENT}]" for name in COLUMNS), "RSS, MB"), rows)


def plot_passes(result: PassGains) -> Axes:
    """Draw how many times as long each figure takes without a pass; whiskers are intervals over the rounds."""
    _, *others = result.variants
    figure, grid = plt.subplots(1, len(COLUMNS), figsize=(11, 1.5 + 0.4 * len(others)), sharey=True, squeeze=False, layout="constrained")
    for column, (axes, name) in enumerate(zip(grid[0], COLUMNS, strict=True)):
        axes.axvline(1, color=SAME, linewidth=1)
        for row, variant in enumerate(others):
            ratio = without(result, variant)[column]
            axes.errorbar(ratio.value, row, xerr=ratio.reach, fmt="o", capsize=3, color=OUR_ENGINE if ratio.measurable else SAME)
        axes.set(title=name, xlabel="time without the pass ÷ with all")
    name_rows(grid[0][:1], [variant.name for variant in others], room=0.05)
    figure.suptitle(
        f"What a graph pass gains on {environment.machine_label(result.environment)}; right of 1: it gains, grey: not measurable"
    )
    return grid[0][0]


def passes_caption(result: PassGains) -> str:
    rounds, machine = len(result.variants[0].one), environment.machine_label(result.environment)
    return (
        f"{result.model}; INT8, every input quantized; {result.case}. {machine}; each variant in its own "
        f"process, {rounds} rounds in turns. TTFT and TPOT of {ONE} tokens, and TPOT of {SEVERAL}. A pass that is not listed can't be "
        "left out, or does nothing for this IR on this CPU. RSS is what the process holds after all rounds, and the difference from that."
    )


EXPERIMENT = Experiment(
    PassGains,
    measure_passes,
    tables=lambda result: {"What each graph pass gains": passes_table(result)},
    charts=lambda result: {"passes": plot_passes(result).figure},
    caption=passes_caption,
)
