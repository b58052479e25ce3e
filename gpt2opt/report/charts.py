"""Charts of a record. Each function draws new axes and returns them; GPU and CPU measurements never share one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpt2opt.record import Measurement, Record, dominated_by
from gpt2opt.report.tables import megabytes
from gpt2opt.stats import PERCENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"Baseline": "#4c72b0", "Pruned": "#dd8452", "Fine-tuned": "#55a868", "INT8": "#c44e52", "FP32": "#8c8c8c"}
CONTROL_COLOR = "#bdbdbd"


def plot_latency(record: Record) -> list["Axes"]:
    """Draw TTFT and TPOT of every timed model, one row of axes a device: median as the bar, p95 as the whisker, in ms."""
    import matplotlib.pyplot as plt

    groups = _by_device([m for m, _ in record.measurements() if m.latency])
    height = 0.9 + 0.5 * max(len(group) for group in groups.values())
    figure, grid = plt.subplots(len(groups), 2, figsize=(11, height * len(groups)), squeeze=False, layout="constrained")
    for (device, group), (first, later) in zip(groups.items(), grid, strict=True):
        latencies = [m.latency for m in group]
        prompt, new = latencies[0].prompt_tokens, latencies[0].new_tokens
        _bars(first, group, [x.ttft_s * 1e3 for x in latencies], [x.ttft_p95_s * 1e3 for x in latencies], "ms")
        _bars(later, group, [x.tpot_s * 1e3 for x in latencies], [x.tpot_p95_s * 1e3 for x in latencies], "ms")
        first.set(title=f"Time to first token, {prompt}-token prompt", xlabel=f"ms on {device}, less is better")
        later.set(title=f"Time per output token, {new} tokens", xlabel=f"ms on {device}, less is better", yticklabels=[])
    figure.suptitle("Latency per stage (bar: median, whisker: p95)")
    return list(grid.flat)


def plot_perplexity(record: Record) -> list["Axes"]:
    """Draw the perplexity of every scored model with its interval, one axes a device; controls are hollow."""
    import matplotlib.pyplot as plt

    controls = [m for m, control in record.measurements() if control]
    groups = _by_device([m for m, _ in record.measurements() if m.quality])
    heights = [0.8 + 0.5 * len(group) for group in groups.values()]
    figure, grid = plt.subplots(
        len(groups), 1, figsize=(9, 0.5 + sum(heights)), height_ratios=heights, squeeze=False, sharex=True, layout="constrained"
    )
    for (device, group), axes in zip(groups.items(), grid[:, 0], strict=True):
        for row, measurement in enumerate(group):
            value = measurement.quality.perplexity
            low, high = measurement.quality.interval() or (value, value)
            color = _color(measurement)
            fill = "white" if measurement in controls else color
            axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=4, markersize=8, mfc=fill)
            axes.annotate(f"{value:.2f}", (value, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9)
        axes.set_yticks(range(len(group)), [_label(m) + (" (control)" if m in controls else "") for m in group])
        axes.set_ylim(len(group) - 0.5, -0.7)
        axes.set(xlabel=f"perplexity, computed on {device}; less is better")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"Perplexity on held-out text ({PERCENT} interval over documents)")
    return list(grid[:, 0])


def plot_memory(record: Record) -> list["Axes"]:
    """Draw weights on disk, and the peak memory of generation: VRAM on a GPU, RSS of a fresh process on a CPU, its libraries apart."""
    import matplotlib.pyplot as plt

    groups = _by_device([m for m, _ in record.measurements() if m.memory])
    height = 0.9 + 0.5 * max(len(group) for group in groups.values())
    figure, grid = plt.subplots(len(groups), 2, figsize=(11, height * len(groups)), squeeze=False, layout="constrained")
    for (device, group), (disk, peak) in zip(groups.items(), grid, strict=True):
        _bars(disk, group, [m.memory.weight_bytes / 1e6 for m in group], None, "MB")
        disk.set(title="Weights on disk", xlabel="MB, less is better")
        on_gpu = group[0].memory.peak_vram_bytes is not None
        peaks = [m.memory.peak_vram_bytes if on_gpu else m.memory.peak_rss_bytes for m in group]
        _bars(peak, group, [None if value is None else value / 1e6 for value in peaks], None, "MB")
        if not on_gpu:
            started = {row: m.memory.start_rss_bytes / 1e6 for row, m in enumerate(group) if m.memory.start_rss_bytes is not None}
            style = {"height": 0.6, "color": "white", "alpha": 0.55, "hatch": "//", "edgecolor": "grey"}
            peak.barh(list(started), list(started.values()), label="libraries, no model yet", **style)
            peak.legend(loc="lower right", fontsize=8)
        title = "Peak VRAM of generation" if on_gpu else "Peak RSS of a fresh process that generates"
        peak.set(title=title, xlabel=f"MB on {device}, less is better", yticklabels=[])
    figure.suptitle("Memory per stage")
    return list(grid.flat)


def plot_tradeoff(record: Record) -> list["Axes"]:
    """Draw quality against speed, one axes a device; the area of a point is its size on disk, dominated points are pale (Pareto)."""
    import matplotlib.pyplot as plt

    groups = _by_device([m for m, _ in record.measurements() if m.latency and m.quality and m.memory])
    largest = max(m.memory.weight_bytes for group in groups.values() for m in group)
    figure, grid = plt.subplots(1, len(groups), figsize=(9.5 * len(groups), 4.5), squeeze=False, layout="constrained")
    for (device, group), axes in zip(groups.items(), grid[0], strict=True):
        front = []
        for measurement in group:
            x, y, size = measurement.latency.tpot_s * 1e3, measurement.quality.perplexity, measurement.memory.weight_bytes
            dominated = bool(dominated_by(measurement, group))
            front += [] if dominated else [(x, y)]
            style = {"alpha": 0.25, "linestyle": "--"} if dominated else {"alpha": 0.75}
            label = f"{_label(measurement)}, {megabytes(size)} MB{', dominated' if dominated else ''}"
            axes.scatter(x, y, s=1000 * size / largest, color=_color(measurement), edgecolor="black", label=label, zorder=3, **style)
        _stairs(axes, front)
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9, frameon=False)
        for handle in legend.legend_handles:
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([60])
        axes.margins(0.25)
        axes.set(title="Quality, speed and size", xlabel=f"time per output token, ms on {device}", ylabel="perplexity")
        axes.grid(alpha=0.3)
    figure.supxlabel(
        "left and low is better; the area of a point is the size on disk; dominated: another is no worse in all three and better in one",
        fontsize=9,
    )
    return list(grid[0])


def _stairs(axes: "Axes", front: list[tuple[float, float]]) -> None:
    """Draw the lowest perplexity that the front has up to each time; a point of the front above it is there for its size."""
    times, lowest = [], []
    for x, y in sorted(front):
        if not lowest or y < lowest[-1]:
            times.append(x)
            lowest.append(y)
    axes.step(times, lowest, where="post", color="black", linestyle=":", linewidth=1.2, label="Pareto front", zorder=2)


def plot_importance(record: Record) -> list["Axes"]:
    """Draw the importance of every head as a heat map, the pruned ones crossed out."""
    import matplotlib.pyplot as plt

    facts = record.stage("2-prune").facts
    importance = facts["importance_nats"]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.4 * len(importance)), layout="constrained")
    image = axes.imshow(importance, cmap="viridis", aspect="auto")
    for layer, heads in facts["pruned_heads"].items():
        axes.scatter(heads, [int(layer)] * len(heads), marker="x", color="red", s=70, linewidths=2)
    axes.set(title="Head importance; the crossed heads leave", xlabel="head", ylabel="layer")
    axes.set_xticks(range(len(importance[0])))
    axes.set_yticks(range(len(importance)))
    figure.colorbar(image, label="expected change of loss, nats per token")
    return [axes]


def plot_loss(record: Record) -> list["Axes"]:
    """Draw the training loss of stage 3 over its steps."""
    import matplotlib.pyplot as plt

    curve = record.stage("3-finetune").facts["loss"]
    _figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    axes.plot([point["step"] for point in curve], [point["loss_nats"] for point in curve], color=COLORS["Fine-tuned"], marker=".")
    axes.set(title="Fine-tuning", xlabel="optimizer step", ylabel="training loss, nats per token")
    axes.grid(alpha=0.3)
    return [axes]


def plot_operators(record: Record, most: int = 10) -> list["Axes"]:
    """Draw the operators that the profile of stage 1 spends its time in, their own time without the operators they call."""
    import matplotlib.pyplot as plt

    spent = list(record.stage("1-profile").facts["operator_seconds"].items())[:most]
    _figure, axes = plt.subplots(figsize=(9, 0.8 + 0.32 * len(spent)), layout="constrained")
    bars = axes.barh([name for name, _ in spent], [seconds * 1e3 for _, seconds in spent], color=COLORS["Baseline"])
    axes.bar_label(bars, fmt="%.3g ms", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(
        title="Where the time goes: a prompt and three more tokens",
        xlabel=f"own time on {record.stage('1-profile').measurement.device}, ms",
    )
    return [axes]


def plot_sensitivity(record: Record) -> list["Axes"]:
    """Draw the sensitivity of each quantized input, alone and added to all others; hollow bars are inputs that stay float."""
    import matplotlib.pyplot as plt

    sensitivity = record.stage("4-quantize").facts["sensitivity"]
    names = list(sensitivity["only_this"])
    figure, axes = plt.subplots(figsize=(11, 4.2), layout="constrained")
    kinds = {
        "only_this": (-0.2, "#4c72b0", "only this input quantized"),
        "added_to_others": (0.2, "#dd8452", "what this input adds to all others"),
    }
    for key, (offset, color, _) in kinds.items():
        for position, name in enumerate(names):
            left_out = name in sensitivity["float_inputs"]
            axes.bar(position + offset, sensitivity[key][name], width=0.38, color="white" if left_out else color, edgecolor=color)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8 if len(names) < 30 else 6)
    axes.set(title="What quantizing an input, or the KV cache, costs (hollow: left float)", ylabel="mean KL from FP32, nats per token")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3)
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=color) for _, color, _ in kinds.values()], [label for *_, label in kinds.values()])
    figure.supxlabel(
        f"all {sensitivity['together']:.5f}, after the gate {sensitivity['left']:.5f}, budget {sensitivity['max_kl']} nats per token",
        fontsize=9,
    )
    return [axes]


def draw_charts(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Draw every chart that the stages of a record allow, by name; each figure is closed when the next is asked for."""
    import matplotlib.pyplot as plt

    facts = {stage.name: stage.facts for stage in record.stages}
    measured = [measurement for measurement, _ in record.measurements()]
    charts = (
        (plot_latency, any(m.latency for m in measured)),
        (plot_perplexity, any(m.quality for m in measured)),
        (plot_memory, any(m.memory for m in measured)),
        (plot_operators, facts.get("1-profile", {}).get("operator_seconds")),
        (plot_importance, facts.get("2-prune", {}).get("importance_nats")),
        (plot_loss, facts.get("3-finetune", {}).get("loss")),
        (plot_sensitivity, facts.get("4-quantize", {}).get("sensitivity")),
        (plot_tradeoff, any(m.latency and m.quality and m.memory for m in measured)),
    )
    for plot, possible in charts:
        if possible:
            figure = plot(record)[0].figure
            yield plot.__name__.removeprefix("plot_"), figure
            plt.close(figure)


def _by_device(measurements: list[Measurement]) -> dict[str, list[Measurement]]:
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.device, []).append(measurement)
    return groups


def _bars(axes: "Axes", group: list[Measurement], values: list[float | None], p95: list[float] | None, unit: str) -> None:
    """Draw one bar a measurement, with its value behind it; where nothing was measured there is a word instead of a bar."""
    for row, (measurement, value) in enumerate(zip(group, values, strict=True)):
        end = 0.0
        if value is not None:
            axes.barh(row, value, height=0.6, color=_color(measurement))
            end = max(value, p95[row]) if p95 else value
            if p95:
                axes.errorbar(value, row, xerr=[[0], [end - value]], fmt="none", color="black", capsize=3)
        text = "not measured" if value is None else f"{value:.3g} {unit}"
        axes.annotate(text, (end, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(group)), [_label(m) for m in group])
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.margins(x=0.2)


def _label(measurement: Measurement) -> str:
    dtype = {"float16": "FP16", "float32": "FP32", "int8": "INT8"}[measurement.dtype]
    name = measurement.name if measurement.name != dtype else "Fine-tuned"
    runtime = {"torch": "torch", "openvino": "OpenVINO"}[measurement.runtime]
    return f"{name}, {dtype} {runtime}"


def _color(measurement: Measurement) -> str:
    return COLORS.get(measurement.name, CONTROL_COLOR)
