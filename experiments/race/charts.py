"""Charts of a race. Each function draws new axes and returns them."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.charts import bar, name_rows
from experiments.race.engines import OURS
from experiments.race.engines.ours import Ours
from experiments.race.results import COMPUTING, READING, TPOT, TTFT_512, WHOLE, EngineResult, Figure, RaceResult, tpot
from gpt2opt.environment import machine_label
from gpt2opt.measure.results import percentile
from gpt2opt.report.chart import OUR_ENGINE, OUR_ENGINE_PALE, PEER_ENGINE, PEER_ENGINE_PALE
from gpt2opt.report.table import MISSING, megabytes


def plot_race(result: RaceResult) -> list[Axes]:
    """Draw TTFT, TPOT, a whole call, and memory of every engine; whiskers span the rounds, dotted lines are the probe's best rates."""
    engines = sorted((e for e in result.raced if WHOLE.per_round(e)), key=WHOLE.median)
    figure, grid = plt.subplots(2, 2, figsize=(12, 2 + 0.62 * len(engines)), layout="constrained")
    first, later, whole, memory = grid.flat
    compute, reading = (bound.least(result, result.ours) * 1e3 for bound in (COMPUTING, READING))
    for axes, column, scale in ((first, TTFT_512, 1e3), (later, TPOT, 1e3), (whole, WHOLE, 1)):
        _bars(axes, engines, column, scale)
    _memory(memory, engines)
    for panels in grid:
        name_rows(panels, [engine.name for engine in engines], room=0.34)
    for axes, limit in ((first, compute), (later, reading)):
        axes.axvline(limit, color="black", linestyle=":")
    first.set(title="Time to first token, 512-token prompt", xlabel=f"ms; dotted: our operations at the INT8 rate, {compute:.3g} ms")
    later.set(title="Time per output token after it", xlabel=f"ms; dotted: reading our weights once, {reading:.3g} ms")
    whole.set(title="A whole call: 512-token prompt, 128 new tokens", xlabel="s")
    memory.set(title="Peak RSS of a fresh process that makes that call", xlabel="MB; hatched: on disk")
    figure.suptitle(f"{result.size} on {machine_label(result.environment)} (median, whiskers: p5 to p95)")
    figure.supxlabel("less is better; pale: computes all heads", fontsize=9)
    return list(grid.flat)


def plot_growth(result: RaceResult) -> list[Axes]:
    """Draw TTFT, TPOT and peak memory of ours and the best peer, over the context (above) and over the batch (below)."""
    figure, grid = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    names = list(dict.fromkeys(point.engine for point in result.growth))
    for name in names:
        points = [point for point in result.growth if point.engine == name]
        style = {"color": OUR_ENGINE if name == Ours.name else PEER_ENGINE, "marker": "o", "label": name}
        shortest = min(point.case.prompt_tokens for point in points)
        over_context = [point for point in points if point.case.batch_size == 1]
        over_batch = [point for point in points if point.case.prompt_tokens == shortest]
        for row, group, sizes in (
            (grid[0], over_context, [point.case.prompt_tokens for point in over_context]),
            (grid[1], over_batch, [point.case.batch_size for point in over_batch]),
        ):
            row[0].plot(sizes, [statistics.median(taken.first_s for taken in point.timings) * 1e3 for point in group], **style)
            row[1].plot(sizes, [statistics.median(tpot(taken, point.case) for taken in point.timings) * 1e3 for point in group], **style)
            row[2].plot(sizes, [point.peak_rss_bytes / 1e6 if point.peak_rss_bytes else float("nan") for point in group], **style)
    for row, label in zip(grid, ("prompt tokens, one sequence", f"sequences of {shortest} tokens"), strict=True):
        for axes, title in zip(row, ("TTFT, ms", "time per step, ms", "peak RSS, MB"), strict=True):
            axes.set(title=title, xlabel=label)
            axes.set_xscale("log", base=2)
            ticks = sorted({round(x) for line in axes.lines for x in line.get_xdata()})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
    grid[0][0].legend()
    figure.suptitle(f"Growth with context and batch: {' and '.join(names)} on {machine_label(result.environment)}")
    return list(grid.flat)


def _bars(axes: Axes, engines: list[EngineResult], figure: Figure, scale: float) -> None:
    for row, engine in enumerate(engines):
        samples = [sample * scale for sample in figure.per_round(engine)]
        value, low, high = statistics.median(samples), percentile(samples, 0.05), percentile(samples, 0.95)
        bar(axes, row, value, _color(engine), f"{value:.3g}" if value < 1000 else f"{value:.0f}", end=high)
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="none", color="black", capsize=2, linewidth=1)


def _memory(axes: Axes, engines: list[EngineResult]) -> None:
    for row, engine in enumerate(engines):
        peak, disk = engine.peak_rss_bytes, engine.disk_bytes
        shown = [megabytes(size) if size else MISSING for size in (peak, disk)]
        bar(axes, row, (peak or 0) / 1e6, _color(engine), f"{shown[0]}, {shown[1]} on disk")
        axes.barh(row, (disk or 0) / 1e6, height=0.3, color="white", alpha=0.6, hatch="//", edgecolor="grey")


def _color(engine: EngineResult) -> str:
    if engine.name in OURS:
        return OUR_ENGINE_PALE if engine.full_heads else OUR_ENGINE
    return PEER_ENGINE_PALE if engine.full_heads else PEER_ENGINE
