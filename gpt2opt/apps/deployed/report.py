"""Tables and the chart of a deployed model: its latency statistics, and how it scales over cores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2opt.apps.deployed.statistics import Scaling, ServingStatistics
from gpt2opt.measure.stats import PERCENT, Estimate, median, paired_ratio
from gpt2opt.report.chart import OUR_ENGINE, PEER_ENGINE, Chart
from gpt2opt.report.tables import Table, milliseconds, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"openvino": OUR_ENGINE, "onnxruntime": PEER_ENGINE}


def statistics_table(statistics: ServingStatistics) -> Table:
    """Show p50 and p95 of each statistic, and how many times the least time of the machine it takes."""
    rows = []
    for figure in statistics.figures:
        p50, p95 = (milliseconds(value) if figure.unit == "ms" else _rate(value) for value in (figure.p50, figure.p95))
        rows.append((f"{figure.name}, {figure.unit}", p50, p95, str(len(figure.samples)), str(figure.distance)))
    return table(("statistic", "p50", "p95", "samples", f"time ÷ least time [{PERCENT}]"), rows)


def statistics_caption(statistics: ServingStatistics) -> str:
    """Say what was timed, and by which limits the distance is measured."""
    prompts = statistics.prompt_tokens
    length = str(prompts[0]) if len(set(prompts)) == 1 else f"{min(prompts)} to {max(prompts)}"
    limits = statistics.limits
    counts = _count(len(prompts), "prompt"), _count(len(statistics.runs), "run")
    said = (
        f"{statistics.model} in {statistics.backend}, FP32, {_count(statistics.num_cores, 'core')}; {counts[0]} of {length} tokens, "
        f"{sum(statistics.runs[0].tokens)} new ones, {counts[1]}. The least time is that of reading the weights and the KV cache at "
        f"{limits.read_bytes_per_s / 1e9:.1f} GB/s, or of multiplying at {limits.fp32_ops_per_s / 1e9:.0f} GFLOPS, whichever is longer; "
        "both were measured with the same cores."
    )
    if any(figure.distance.value < 1 for figure in statistics.figures):
        said += " A ratio below 1: the weights stay, in part, in the CPU's caches, which are faster than memory."
    return said


def scaling_table(scaling: Scaling) -> Table:
    """Show, for each number of cores, TTFT and decoding, their speed-up over one core, and their distance from the machine's limits."""
    speedup, distance = f"speed-up [{PERCENT}]", "time ÷ least"
    header = ("cores", "TTFT, ms (p95)", speedup, distance, "decode, tokens/s (p95)", speedup, distance, "memory, GB/s")
    rows, one = [], scaling.points[0].latency
    for point in scaling.points:
        latency = point.latency
        faster_ttft = paired_ratio(one.ttft_samples_s, latency.ttft_samples_s)
        faster_tpot = paired_ratio(one.tpot_by_run_s, latency.tpot_by_run_s)
        ttft, tpot = latency.ttft_s / scaling.least_ttft_s(point), latency.tpot_s / scaling.least_tpot_s(point)
        first = f"{milliseconds(latency.ttft_s)} ({milliseconds(latency.ttft_p95_s)})", str(faster_ttft), f"{ttft:.2f}"
        later = f"{_rate(1 / latency.tpot_s)} ({_rate(1 / latency.tpot_p95_s)})", str(faster_tpot), f"{tpot:.2f}"
        rows.append((str(point.num_cores), *first, *later, f"{point.limits.read_bytes_per_s / 1e9:.1f}"))
    return table(header, rows)


def plot_scaling(scalings: Sequence[Scaling]) -> Chart:
    """Draw TTFT and decoding over the number of cores, a line for each scaling of one model; the dotted line is the machine's limit."""
    import matplotlib.pyplot as plt

    figure, (first, later) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for scaling in scalings:
        _line(first, scaling, [median([s * 1e3 for s in point.latency.ttft_samples_s]) for point in scaling.points])
        _line(later, scaling, [median([1 / s for s in point.latency.tpot_by_run_s]) for point in scaling.points])
    reference = scalings[0]
    cores = [point.num_cores for point in reference.points]
    later.plot(cores, [1 / reference.least_tpot_s(point) for point in reference.points], "k:", label="limit of the memory")
    first.plot(cores, [reference.least_ttft_s(point) * 1e3 for point in reference.points], "k:", label="limit of the machine")
    latency = reference.points[0].latency
    first.set(title=f"Time to first token, prompt of {latency.prompt_tokens} tokens", ylabel="ms; less is better")
    later.set(title=f"Decoding {latency.new_tokens} tokens", ylabel="tokens/s; more is better")
    for axes in (first, later):
        axes.set(xlabel="cores")
        axes.set_xticks(cores)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{reference.model.partition(' (from')[0]} over cores (median, whiskers: {PERCENT} intervals)")
    return Chart([first, later])


def _line(axes: "Axes", scaling: Scaling, found: Sequence[Estimate]) -> None:
    cores, values = [point.num_cores for point in scaling.points], [each.value for each in found]
    reach = [[each.value - each.low for each in found], [each.high - each.value for each in found]]
    axes.errorbar(cores, values, yerr=reach, marker="o", capsize=4, color=COLORS.get(scaling.backend, PEER_ENGINE), label=scaling.backend)


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
