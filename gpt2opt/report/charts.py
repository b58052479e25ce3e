"""Charts of a record. Each function draws new axes and returns them; GPU and CPU measurements never share one, nor do runtimes."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gpt2opt.measure.stats import PERCENT, Estimate
from gpt2opt.report.chart import FIRST, SECOND, Chart, color
from gpt2opt.report.tables import CHAIN, megabytes, show_perplexity
from gpt2opt.run.record import FINETUNE, PROFILE, PRUNE, QUANTIZE, Measurement, Record, dominated_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUNTIMES = {"torch": "torch", "openvino": "OpenVINO"}
DTYPES = {"float16": "FP16", "float32": "FP32", "int8": "INT8"}


def plot_latency(record: Record) -> Chart:
    """Draw TTFT and TPOT of every timed model in ms, one row of axes for each device and runtime: the bar is the median, the whisker p95.

    Below the time of a model stands its ratio to that of its reference model, if the two bars are of the same rounds, run in turns.
    """
    measured = [m for m in record.measurements() if m.latency]
    shown = {m.name: m.latency for m in measured}
    pairs = [pair for pair in record.comparisons() if all(shown.get(name) == latency for name, latency in pair.latencies.items())]
    groups = _grouped(measured, lambda m: (m.device, RUNTIMES[m.runtime]))
    heights = [1.1 + 0.55 * len(group) for group in groups.values()]
    figure, grid = _panels(len(groups), 2, figsize=(12, 0.4 + sum(heights)), height_ratios=heights)
    for ((device, runtime), group), (first, later) in zip(groups.items(), grid, strict=True):
        for axes, of in ((first, "ttft"), (later, "tpot")):
            medians, p95 = ([1e3 * getattr(m.timed, f"{of}{which}_s") for m in group] for which in ("", "_p95"))
            ratios = {pair.name: f"{getattr(pair, of):.3f} × {pair.base}" for pair in pairs}
            _bars(axes, group, medians, "ms", p95, [ratios.get(m.name, "") for m in group])
            axes.set_xlabel(f"ms in {runtime} on {device}; less is better")
        first.set_title(f"Time to first token, prompt of {group[0].timed.prompt_tokens} tokens")
        later.set(title=f"Time per output token, {group[0].timed.new_tokens} tokens", yticklabels=[])
    figure.suptitle("Latency (bar: median, whisker: p95). A ratio whose interval contains 1 shows no difference; runtimes are not compared")
    return Chart(grid.flat)


def plot_perplexity(record: Record) -> Chart:
    """Draw the perplexity per stage, and of each model over that of the model it is compared with, with paired intervals.

    One axes for each reference, with a scale of its own; controls are hollow. Two models that were scored on the same documents differ by
    far less than each of them would on other documents, so that their own intervals overlap where the paired one shows a difference.
    """
    groups = _ratios(record)
    stages = [m for m in record.measurements() if m.quality and m.name in CHAIN]
    heights = [0.9 + 0.5 * rows for rows in (len(stages), *map(len, groups.values()))]
    figure, grid = _panels(len(heights), figsize=(9.5, 0.6 + sum(heights)), height_ratios=heights)
    _stage_bars(grid[0, 0], stages)
    for (base, rows), axes in zip(groups.items(), grid[1:, 0], strict=True):
        for row, (measurement, control, ratio) in enumerate(rows):
            own = color(measurement.name)
            fill = "white" if control else own
            axes.errorbar(ratio.value, row, xerr=ratio.reach, fmt="o", color=own, capsize=4, markersize=8, mfc=fill)
            axes.annotate(f"{ratio.value:.4f}", (ratio.value, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9)
        labels = [f"{m.name}{' (control)' if control else ''}: {m.scored.perplexity:.2f}" for m, control, _ in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.8)
        axes.axvline(1, color="black", linewidth=0.8)
        reference = record.measured(base).scored.perplexity
        axes.set_xlabel(f"perplexity ÷ that of {base}, {reference:.2f}; less is better; left of the line it fell")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"Perplexity on held-out text ({PERCENT} intervals over documents); below, over the reference model's, paired")
    return Chart(grid[:, 0])


def _stage_bars(axes: "Axes", stages: list[Measurement]) -> None:
    """Draw a bar for the perplexity of each stage, and a line through all at that of Baseline and of FP32, the references."""
    perplexities = [m.scored.perplexity for m in stages]
    bars = axes.barh([_label(m) for m in stages], perplexities, height=0.6, color=[color(m.name) for m in stages])
    axes.bar_label(bars, [show_perplexity(m.scored) for m in stages], padding=8, fontsize=9, backgroundcolor="white")
    for m in (m for m in stages if m.name in ("Baseline", "FP32")):
        axes.axvline(m.scored.perplexity, color=color(m.name), linestyle="--", label=f"{m.name}: {m.scored.perplexity:.2f}")
    axes.set(title="Perplexity per stage", xlabel="perplexity; less is better", xlim=(0, 1.7 * max(perplexities)))
    axes.invert_yaxis()
    axes.legend(loc="center right", fontsize=9)


def _ratios(record: Record) -> dict[str, list[tuple[Measurement, bool, Estimate]]]:
    """Return reference -> the models that are compared with it and scored by the same runtime, controls marked, and their ratios."""
    scored = {m.name: (m, record.role(m.name).control) for m in record.measurements() if m.quality}
    groups: dict[str, list[tuple[Measurement, bool, Estimate]]] = {}
    for name, (measurement, control) in scored.items():
        base = measurement.agreement.reference if measurement.agreement else record.role(name).made_from
        if base in scored and scored[base][0].runtime == measurement.runtime:
            quality, other = measurement.scored, scored[base][0].scored
            value = quality.ratio_to(other)
            ratio = Estimate(value, *(quality.ratio_interval(other) or (value, value)))
            groups.setdefault(base, []).append((measurement, control, ratio))
    return groups


def plot_memory(record: Record) -> Chart:
    """Draw weights on disk, and the peak memory of generation: VRAM on a GPU, RSS of a fresh process on a CPU, its libraries apart."""
    groups = _grouped([m for m in record.measurements() if m.memory], lambda m: m.device)
    height = 0.9 + 0.5 * max(len(group) for group in groups.values())
    figure, grid = _panels(len(groups), 2, figsize=(11, height * len(groups)))
    for (device, group), (disk, peak) in zip(groups.items(), grid, strict=True):
        _bars(disk, group, [m.sized.weight_bytes / 1e6 for m in group], "MB")
        disk.set(title="Weights on disk", xlabel="MB, less is better")
        on_gpu = group[0].sized.peak_vram_bytes is not None
        peaks = [m.sized.peak_vram_bytes if on_gpu else m.sized.peak_rss_bytes for m in group]
        _bars(peak, group, [None if value is None else value / 1e6 for value in peaks], "MB")
        if not on_gpu:
            started = {row: m.sized.start_rss_bytes / 1e6 for row, m in enumerate(group) if m.sized.start_rss_bytes is not None}
            style = {"height": 0.6, "color": "white", "alpha": 0.55, "hatch": "//", "edgecolor": "grey"}
            peak.barh(list(started), list(started.values()), label="libraries, no model yet", **style)
            peak.legend(loc="lower right", fontsize=8)
        title = "Peak VRAM of generation" if on_gpu else "Peak RSS of a fresh process that generates"
        peak.set(title=title, xlabel=f"MB on {device}, less is better", yticklabels=[])
    figure.suptitle("Memory per stage")
    return Chart(grid.flat)


def plot_tradeoff(record: Record) -> Chart:
    """Draw quality against speed, one axes a device; the area of a point is its size on disk, dominated points are hollow (Pareto)."""
    groups = _grouped([m for m in record.measurements() if m.latency and m.quality and m.memory], lambda m: m.device)
    largest = max(m.sized.weight_bytes for group in groups.values() for m in group)
    figure, grid = _panels(1, len(groups), figsize=(9.5 * len(groups), 4.5))
    for (device, group), axes in zip(groups.items(), grid[0], strict=True):
        for measurement in group:
            x, y, size = measurement.timed.tpot_s * 1e3, measurement.scored.perplexity, measurement.sized.weight_bytes
            label, own = f"{_label(measurement)}, {megabytes(size)} MB", color(measurement.name)
            style: dict[str, Any] = {"color": own, "edgecolor": "black", "alpha": 0.75}
            if dominated_by(measurement, group):
                label, style = f"{label}, dominated", {"facecolor": "none", "edgecolor": own, "linewidth": 2}
            axes.scatter(x, y, s=1000 * size / largest, label=label, zorder=3, **style)
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9, frameon=False)
        for handle in legend.legend_handles:
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([60])
        axes.margins(0.25)
        axes.set(title="Quality, speed and size", xlabel=f"time per output token, ms on {device}", ylabel="perplexity")
        axes.grid(alpha=0.3)
    figure.supxlabel(
        "left and low is better; the area of a point is the size on disk; filled: on the Pareto front of time, perplexity and size;\n"
        "hollow: dominated, another model is no worse in all three and better in one (perplexity: beyond its paired interval)",
        fontsize=9,
    )
    return Chart(grid[0])


def plot_importance(record: Record) -> Chart:
    """Draw the importance of every head as a heat map, the pruned ones crossed out."""
    facts = record.stage(PRUNE).facts
    importance = facts["importance_nats"]
    figure, ((axes,),) = _panels(figsize=(9, 1.2 + 0.4 * len(importance)))
    image = axes.imshow(importance, cmap="viridis", aspect="auto")
    for layer, heads in facts["pruned_heads"].items():
        axes.scatter(heads, [int(layer)] * len(heads), marker="x", color="red", s=70, linewidths=2)
    axes.set(title="Head importance; the crossed heads leave", xlabel="head", ylabel="layer")
    axes.set_xticks(range(len(importance[0])))
    axes.set_yticks(range(len(importance)))
    figure.colorbar(image, label="expected change of loss, nats per token")
    return Chart([axes])


def plot_loss(record: Record) -> Chart:
    """Draw the loss of stage 3 over its steps: of the pruned model and of the unpruned control, in training and on validation rows."""
    _, ((axes,),) = _panels(figsize=(9, 3.6))
    for measurement in (m for m in record.measurements() if record.role(m.name).stage == FINETUNE):
        for kind, curve, width, marker in (("training", "loss", 1, ""), ("validation", "validation_loss", 2, "o")):
            if points := measurement.facts.get(curve):
                steps, nats = [point["step"] for point in points], [point["loss_nats"] for point in points]
                style = {"color": color(measurement.name), "label": f"{measurement.name}: {kind}", "marker": marker}
                axes.plot(steps, nats, linewidth=width, **style)
    axes.set_title("Fine-tuning, on text that is neither scored nor calibrated with")
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token")
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
    return Chart([axes])


def plot_operators(record: Record) -> Chart:
    """Draw the operators that the profile of stage 1 spends its time in, their own time without the operators they call."""
    measured = record.stage(PROFILE)
    spent = list(measured.facts["operator_seconds"].items())[:10]
    _, ((axes,),) = _panels(figsize=(9, 0.8 + 0.32 * len(spent)))
    bars = axes.barh([name for name, _ in spent], [seconds * 1e3 for _, seconds in spent], color=color("Baseline"))
    axes.bar_label(bars, fmt="%.3g ms", padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title="Where the time goes: a prompt and three more tokens", xlabel=f"own time on {measured.device}, ms")
    return Chart([axes])


def plot_sensitivity(record: Record) -> Chart:
    """Draw the sensitivity of each quantized input, measured twice; the hollow ones stay float."""
    from matplotlib.patches import Patch

    sensitivity = record.stage(QUANTIZE).facts["sensitivity"]
    names = list(sensitivity["only_this"])
    figure, ((axes,),) = _panels(figsize=(11, 4.2))
    handles = []
    for key, offset, own, label in (
        ("only_this", -0.2, FIRST, "only this input is quantized"),
        ("added_to_others", 0.2, SECOND, "all inputs are quantized: what this one adds to the others"),
    ):
        heights = [sensitivity[key][name] for name in names]
        fills = ["white" if name in sensitivity["float_inputs"] else own for name in names]
        axes.bar([position + offset for position in range(len(names))], heights, width=0.38, color=fills, edgecolor=own)
        handles.append(Patch(color=own, label=label))
    handles.append(Patch(facecolor="white", edgecolor="black", label="hollow: the gate leaves this input float"))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8 if len(names) < 30 else 6)
    axes.set(title="Sensitivity: what quantizing one input of a matmul, or the KV cache, costs", ylabel="mean KL from FP32, nats per token")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(handles=handles, fontsize=9)
    figure.supxlabel(
        f"on the gate's own rows, beyond what the INT8 weights cost: all inputs together {sensitivity['together']:.5f}, after the gate "
        f"{sensitivity['left']:.5f}, budget {sensitivity['max_kl']} nats per token.\n"
        "The KL divergence in the tables is that of weights, inputs and kernels together, on the scored text",
        fontsize=9,
    )
    return Chart([axes])


def draw_charts(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Draw every chart that the stages of a record allow, by name; each figure is closed when the next is asked for."""
    import matplotlib.pyplot as plt

    measured = record.measurements()
    facts = {name for stage in record.stages for name, value in record.stage(stage).facts.items() if value}
    charts = (
        (plot_latency, any(m.latency for m in measured)),
        (plot_perplexity, _ratios(record)),
        (plot_memory, any(m.memory for m in measured)),
        (plot_operators, "operator_seconds" in facts),
        (plot_importance, "importance_nats" in facts),
        (plot_loss, "loss" in facts),
        (plot_sensitivity, "sensitivity" in facts),
        (plot_tradeoff, any(m.latency and m.quality and m.memory for m in measured)),
    )
    for plot, possible in charts:
        if possible:
            figure = plot(record).figure
            yield plot.__name__.removeprefix("plot_"), figure
            plt.close(figure)


def _panels(rows: int = 1, columns: int = 1, **style: Any) -> tuple["Figure", Any]:
    """Return a new figure and its axes, row by row. The first one imports matplotlib."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, squeeze=False, layout="constrained", **style)


def _grouped(measurements: list[Measurement], key: Callable[[Measurement], Any]) -> dict[Any, list[Measurement]]:
    groups: dict[Any, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(key(measurement), []).append(measurement)
    return groups


def _bars(
    axes: "Axes",
    group: list[Measurement],
    values: Sequence[float | None],
    unit: str,
    p95: Sequence[float] = (),
    remarks: Sequence[str] = (),
) -> None:
    """Draw a bar for each measurement, with its value and a remark behind it; where nothing was measured there is a word instead."""
    known = [0.0 if value is None else value for value in values]
    whiskers = [[0.0] * len(known), [max(0.0, end - value) for end, value in zip(p95, known, strict=True)]] if p95 else None
    numbers = [f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}" for value in known]
    texts = ["not measured" if value is None else number for value, number in zip(values, numbers, strict=True)]
    if any(remarks):
        texts = [f"{text}\n{remark}".rstrip() for text, remark in zip(texts, remarks, strict=True)]
    bars = axes.barh(range(len(group)), known, xerr=whiskers, height=0.6, color=[color(m.name) for m in group], capsize=3)
    axes.bar_label(bars, texts, padding=6, fontsize=9)
    axes.set_yticks(range(len(group)), [_label(m) for m in group])
    axes.set_ylim(len(group) - 0.5, -0.5)
    room = 1.9 if any(remarks) else 1.3  # for what stands behind the bars
    axes.set_xlim(0, room * max([1e-9, *(p95 or known)]))


def _label(measurement: Measurement) -> str:
    """Return the name that tables give a model, its type unless it has that name, and its runtime."""
    dtype, runtime = DTYPES[measurement.dtype], RUNTIMES[measurement.runtime]
    return f"{measurement.name}, {runtime}" if measurement.name == dtype else f"{measurement.name}, {dtype} {runtime}"
