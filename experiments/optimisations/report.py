"""The table, the chart and the findings of the seed's optimisations."""

import statistics
from typing import TYPE_CHECKING

from experiments.contract import Experiment
from experiments.decoding.findings import CONFIRMED, REFUTED, Finding, decide, findings_table
from experiments.decoding.report import reach, scaled
from experiments.optimisations.run import SAMPLING, Optimisations, compare_optimisations
from experiments.race.engines import TorchCompile, TorchEagerAttention, TorchFp32, TorchInt8
from experiments.race.engines.base import Engine
from gpt2opt.environment import machine_label
from gpt2opt.measure.stats import PERCENT, median, paired_ratio
from gpt2opt.report.style import OUR_ENGINE, PEER_ENGINE
from gpt2opt.report.tables import MISSING, Table, milliseconds, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LITTLE = 0.1
"""A gain of less than this share of the time is little."""


def find_all(result: Optimisations) -> list[Finding]:
    pairs = (("torch.compile", TorchCompile, TorchFp32), ("SDPA", TorchFp32, TorchEagerAttention))
    return [*dynamic_int8_gains(result), *(gains_little(result, *pair) for pair in pairs)]


def dynamic_int8_gains(result: Optimisations) -> list[Finding]:
    """Ask three things of dynamic INT8, each by its own ratio: is it faster than FP32, do threads help it, and is nothing else as fast."""
    gains, helped, fastest = (
        "dynamic INT8 is faster than FP32",
        "threads make dynamic INT8 faster",
        "dynamic INT8 with threads is the fastest",
    )
    most = result.most_threads
    int8, fp32 = (result.row(engine, most) for engine in (TorchInt8, TorchFp32))
    if not int8 or not fp32:
        return [Finding(claim, f"not measured here: needs {TorchInt8.name} and {TorchFp32.name}", "") for claim in (gains, helped, fastest)]
    ratio = paired_ratio(int8.greedy_s, fp32.greedy_s)
    found = [Finding(gains, decide(ratio.high < 1, ratio.low > 1), f"its time ÷ FP32's, {most} threads: {ratio}")]
    one = [result.row(engine, 1) for engine in (TorchInt8, TorchFp32)]
    if most > 1 and all(one):
        own, others = (paired_ratio(many.greedy_s, single.greedy_s) for many, single in zip((int8, fp32), one, strict=True))
        figure = f"time with {most} threads ÷ with one: INT8 {own}, FP32 {others}"
        found.append(Finding(helped, decide(own.high < 1, own.low > 1), figure))
    else:
        found.append(Finding(helped, "not measured here: needs both with one thread and with several", ""))
    ratios = [(row, paired_ratio(row.greedy_s, int8.greedy_s)) for row in result.timed if row is not int8]
    row, closest = min(ratios, key=lambda pair: pair[1].low)
    verdict = decide(all(ratio.low > 1 for _, ratio in ratios), any(ratio.high < 1 for _, ratio in ratios))
    if verdict == REFUTED:
        row, closest = min((pair for pair in ratios if pair[1].high < 1), key=lambda pair: pair[1].value)
    return [
        *found,
        Finding(fastest, verdict, f"time of {row.name} with {row.threads} thread{'s' * (row.threads > 1)} ÷ its time: {closest}"),
    ]


def gains_little(result: Optimisations, what: str, with_it: type[Engine], without: type[Engine]) -> Finding:
    """Ask if something that is to make torch faster gains less than `LITTLE` of the time."""
    claim = f"{what} gains little (less than {LITTLE:.0%})"
    rows = [result.row(engine, result.most_threads) for engine in (with_it, without)]
    if not all(rows):
        return Finding(claim, f"not measured here: needs {with_it.name} and {without.name}", "")
    ratio = paired_ratio(rows[0].greedy_s, rows[1].greedy_s)
    if ratio.high < 1 - LITTLE:
        verdict = f"{REFUTED}: it gains more"
    elif ratio.low > 1:
        verdict = f"{REFUTED}: it loses"
    elif ratio.low < 1 - LITTLE:
        verdict = f"neither confirmed nor refuted: the interval reaches beyond {LITTLE:.0%}"
    else:
        verdict = CONFIRMED
    return Finding(claim, verdict, f"time with it ÷ without it: {ratio}")


def speed_table(result: Optimisations) -> Table:
    """Show every engine with each number of threads, greedy and sampling."""
    base, rows = result.row(TorchFp32, 1), []
    for row in result.rows:
        if row.left_out:
            rows.append((row.name, str(row.threads), *[MISSING] * 4))
            continue
        per_token = [milliseconds(statistics.median(taken) / result.case.new_tokens) for taken in (row.greedy_s, row.sampling_s)]
        ratio = str(paired_ratio(row.greedy_s, base.greedy_s)) if base else MISSING
        rows.append((row.name, str(row.threads), *per_token, ratio, str(paired_ratio(row.sampling_s, row.greedy_s))))
    return table(
        (
            "engine",
            "threads",
            "greedy, ms per token",
            "sampling, ms per token",
            f"greedy ÷ {TorchFp32.name} with 1 thread [{PERCENT}]",
            f"sampling ÷ greedy [{PERCENT}]",
        ),
        rows,
    )


def engines_table(result: Optimisations) -> Table:
    """Show what took part, in which version and how; and what did not, and why."""
    rows = {row.name: row for row in result.rows}.values()
    return table(
        ("engine", "package", "remark"),
        [
            (row.name, f"{row.package} {row.version or ''}".strip(), f"left out: {row.left_out}" if row.left_out else row.note or MISSING)
            for row in rows
        ],
    )


def caption(result: Optimisations) -> str:
    return (
        f"{result.size}, weights: {result.weights}. Whole generations of one prompt of {result.case.prompt_tokens} tokens, "
        f"{result.case.new_tokens} new ones, prefill included; {result.rounds} rounds in turns, each engine in its own process. "
        f"Sampling is {SAMPLING} with k = 50. BetterTransformer has left optimum; SDPA is what it did. Measured on "
        f"{machine_label(result.environment)}."
    )


def plot_optimisations(result: Optimisations) -> "Axes":
    """Draw the time per token of every engine and number of threads, greedy and sampling; whiskers are intervals over the rounds."""
    import matplotlib.pyplot as plt

    rows = sorted(result.timed, key=lambda row: statistics.median(row.greedy_s))
    _, axes = plt.subplots(figsize=(10, 1.6 + 0.55 * len(rows)), layout="constrained")
    for offset, of, own, label in ((-0.2, "greedy_s", OUR_ENGINE, "greedy"), (0.2, "sampling_s", PEER_ENGINE, f"sampling ({SAMPLING})")):
        found = [scaled(median(getattr(row, of)), 1e3 / result.case.new_tokens) for row in rows]
        places = [place + offset for place in range(len(rows))]
        axes.barh(places, [each.value for each in found], height=0.38, color=own, label=label)
        for place, each in zip(places, found, strict=True):
            axes.errorbar(each.value, place, xerr=reach(each), fmt="none", color="black", capsize=2, linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row.name}, {row.threads} thread{'s' if row.threads > 1 else ''}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    shape = "" if "stretched" not in result.weights else " (stand-in: the bundled model, stretched)"
    axes.set(title=f"{result.size}{shape} on {machine_label(result.environment)}", xlabel="ms per token, prefill included; less is better")
    axes.legend()
    return axes


EXPERIMENT = Experiment(
    Optimisations,
    compare_optimisations,
    tables=lambda result: {
        "What the seed found of its optimisations": findings_table(find_all(result)),
        "Engines, threads and sampling": speed_table(result),
        "What took part in that": engines_table(result),
    },
    charts=lambda result: {"optimisations": plot_optimisations(result).figure},
    caption=caption,
)
