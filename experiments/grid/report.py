"""The table of the project quantization-pruning, filled; what each cell costs and gains; what the order changes; Pareto fronts."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from experiments.contract import Experiment, columns
from experiments.grid.results import AFTER, BEFORE, DENSE, FP32, INT8, Cell, Grid, front, loss, loss_difference, time_ratio
from experiments.grid.run import run_grid
from experiments.grid.sparsity import LINEARS, RULES
from gpt2opt.environment import machine_label
from gpt2opt.measure.stats import PERCENT
from gpt2opt.measure.turns import again
from gpt2opt.report.chart import color
from gpt2opt.report.table import MISSING, Table, megabytes, table

PROJECT, PROJECT_MIB = "quantization-pruning", 486.7002410888672
PUBLISHED = (f"Baseline, as the project {PROJECT} gives it", "3.1347", f"{PROJECT_MIB:.1f} (MiB in memory)", "244.6")
"""The one row that the project gives; the other rows of its table are empty."""
FIGURES: dict[str, Callable[[Cell], float]] = {
    "saved": lambda cell: cell.file_bytes / 1e6,
    "compressed": lambda cell: cell.compressed_bytes / 1e6,
    "time": lambda cell: cell.text_seconds,
}
SAME = 0.99
"""From this share of the dense model's bytes on, nothing is said to be smaller."""
AXES = {"saved": "weights as saved, MB", "compressed": "the same, compressed, MB", "time": "seconds over the validation text"}
"""The axes are logarithmic, since the precisions are far apart and the sparsities near each other."""
MARKERS = ("o", "s", "P", "^", "v", "D", "X")


def project_table(grid: Grid) -> Table:
    """Fill the table of the project, in its words; its own baseline stands above ours."""
    rows = [PUBLISHED]
    base = grid.base
    for cell in sorted(grid.cells, key=_group):
        size, time = megabytes(cell.file_bytes), f"{cell.text_seconds:.3g}"
        if cell is not base:
            size = f"{size} ({_changed(cell.file_bytes / base.file_bytes, 'reduced', 'grown')})"
            ratio = time_ratio([cell], base)
            time = f"{time} ({_changed(ratio.value, 'improved', 'worsened') if ratio.measurable else 'no measurable difference'})"
        kind = ("Baseline", "Quantization", "Pruning", "Combined")[_group(cell)]
        rows.append((f"{kind}: {cell.name}", f"{loss(cell.quality):.4f}", size, time))
    return table(("model", "validation loss", "model size, MB", "inference time, s"), rows)


def _group(cell: Cell) -> int:
    """Return the place of a cell in the order of the project: baseline, quantization, pruning, both."""
    return (cell.sparsity != DENSE) * 2 + (cell.precision == INT8)


def _changed(ratio: float, less: str, more: str) -> str:
    if abs(ratio - 1) < 0.005:
        return "unchanged"
    return f"{less} by {1 - ratio:.0%}" if ratio <= 1 else f"{more} by {ratio - 1:.0%}"


def cells_table(grid: Grid) -> Table:
    """Show every cell: loss and time with their paired intervals, zeros, bytes, memory, and the fronts that it is on."""
    fronts = {name: front(grid.cells, figure) for name, figure in FIGURES.items()}
    found = columns(
        grid.cells,
        {
            "model": lambda cell: cell.name,
            f"loss above dense FP32 [{PERCENT}]": lambda cell: f"{loss_difference(cell.quality, grid.base.quality):+.4f}",
            "block weights left": lambda cell: f"{cell.weights / grid.base.weights:.0%}, {cell.zeros / cell.weights:.1%} zero",
            "compressed MB": lambda cell: megabytes(cell.compressed_bytes),
            f"time ÷ dense FP32 [{PERCENT}]": lambda cell: _ratio(cell, grid.base),
            f"÷ dense of the same precision [{PERCENT}]": lambda cell: _ratio(cell, grid.cell(DENSE, cell.precision)),
            "peak RSS MB": lambda cell: megabytes(cell.peak_rss_bytes) if cell.peak_rss_bytes else MISSING,
            "on the front of loss and": lambda cell: ", ".join(name for name in fronts if cell in fronts[name]) or MISSING,
        },
    )
    if not grid.again_s:
        return found
    ratio = str(time_ratio([dataclasses.replace(grid.base, seconds=grid.again_s)], grid.base))
    return table(found.header, (found.rows[0], (again(grid.base.name), *[MISSING] * 3, ratio, *[MISSING] * 3), *found.rows[1:]))


def _ratio(cell: Cell, base: Cell) -> str:
    return MISSING if cell is base else str(time_ratio([cell], base))


def order_table(grid: Grid) -> Table:
    """Show what the order changes, beside controls that tell apart what else differs: the tuning, and which weights are the smallest."""
    rows = []
    for control in grid.controls:
        before, after = (grid.cell(control.sparsity, INT8, order).quality for order in (BEFORE, AFTER))
        losses = [f"{loss(quality):.4f}" for quality in (before, after, control.own_choice, control.choice_of_int8)]
        differences = [f"{loss_difference(after, other):+.4f}" for other in (before, control.own_choice, control.choice_of_int8)]
        rows.append((control.sparsity, *losses, *differences))
    header = (
        "sparsity", "A: prune, tune, quantize", "B: tune, quantize, prune", "C: tune, prune, FP32", "D: as C, without the weights of B",
        *(f"B − {other} [{PERCENT}]" for other in "ACD"),
    )  # fmt: skip
    return table(header, rows)


def caption(grid: Grid) -> str:
    """Say where sparsity brings size and where speed, and what all tables were measured on."""
    base, tuning = grid.base, grid.tuning
    return "\n\n".join((
        *(_size_and_speed(grid, precision) for precision in (FP32, INT8)),
        "**Order.** Integers can't be tuned after they were pruned, nor can heads be removed from them: the graph, its KV cache and the "
        "ranges of its inputs are made for all heads, so a head could only be set to zero, which removes no byte and no product.",
        *_linears(grid),
        f"Model: {grid.model}; text: {grid.text}. {machine_label(grid.environment)}. Validation loss is in nats per token: "
        f"{base.quality.protocol}. All were tuned alike on {tuning.rows} rows of up to {tuning.row_tokens} tokens, epochs: "
        f"{tuning.epochs:g}; before that, the dense model has a loss of {loss(grid.untuned):.4f}, after it {loss(base.quality):.4f}. "
        f"Seconds are medians of {len(base.seconds)} rounds, forward passes alone, all models in turns. Intervals are "
        f"{PERCENT} and paired: of losses over {len(base.quality.document_nats)} documents, of times over {sum(map(len, base.seconds))} "
        "windows; the variance between training runs is not in them. A front goes by the figures alone.",
    ))  # fmt: skip


def _size_and_speed(grid: Grid, precision: str) -> str:
    """Say of one precision what zeros and missing heads do to the bytes and to the time."""
    dense = grid.cell(DENSE, precision)
    pruned = [cell for cell in grid.cells if cell.precision == precision and cell.sparsity not in (DENSE, LINEARS)]
    zeros, heads = ([cell for cell in pruned if (cell.sparsity in RULES) == sparse] for sparse in (True, False))
    saved, packed = ([figure(cell) / figure(dense) for cell in zeros] for figure in (FIGURES["saved"], FIGURES["compressed"]))
    time = time_ratio(zeros, dense)
    if time.measurable and time.value < 1:
        speed, why = "speed", "a measurable gain"
    else:
        speed, why = "no speed", "no measurable gain: a dense kernel multiplies by zero as by any other number"
    size = "no size" if min(packed) > SAME else "size only in a compressed file" if min(saved) > SAME else "size"
    fewer = "; ".join(
        f"{cell.sparsity}: {cell.file_bytes / dense.file_bytes:.2f} × the bytes, {time_ratio([cell], dense)} × the time" for cell in heads
    )
    return (
        f"**{precision}: zeros bring {size} and {speed}.** The models with zeros take {_range(saved)} × the bytes of the dense model as "
        f"saved, {_range(packed)} × compressed, and on average {time} × the time ({why}). Heads that are removed are neither stored nor "
        f"multiplied ({fewer})."
    )


def _linears(grid: Grid) -> Iterator[str]:
    """Say what the pruning of every `nn.Linear` reaches and costs, if it was measured."""
    if not (found := grid.linears):
        return
    pruned = grid.cell(LINEARS, FP32)
    yield (
        f"**The project's own pruning** sets half of every `nn.Linear` to zero. In this GPT-2 that is {len(found.names)} of "
        f"{found.matrices} matrices ({', '.join(found.names)}), {found.weights / found.parameters:.0%} of the parameters: the others are "
        f"`Conv1D`, and {pruned.zeros / pruned.weights:.1%} of their weights are zero. Of the token embedding, which is the same tensor as "
        f"a tied head, {found.embedding_zeros / found.weights:.0%} became zero. In FP32 this costs "
        f"{loss_difference(pruned.quality, grid.base.quality):+.4f} nats per token, and takes "
        f"{pruned.file_bytes / grid.base.file_bytes:.2f} × the bytes and {time_ratio([pruned], grid.base)} × the time of the dense model."
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def plot_grid(grid: Grid) -> list[Axes]:
    """Draw the loss of every cell over its saved bytes, its compressed bytes and its time, with the Pareto front of each pair."""
    figure, panels = plt.subplots(1, 3, figsize=(15, 5.4), sharey=True, layout="constrained")
    for axes, (name, value) in zip(panels, FIGURES.items(), strict=True):
        _panel(axes, grid, value)
        axes.set(xlabel=AXES[name])
    panels[0].set_ylabel(f"loss above dense FP32, nats per token [{PERCENT}]")
    _legend(figure, grid)
    replaced = ", ".join((grid.model.split(" (")[0] + " model", grid.text.split(" (")[0]))
    figure.suptitle(f"Compression grid on the {replaced}" + (" (stand-ins)" if grid.stand_ins else "") + ": less is better on every axis")
    return list(panels)


def _panel(axes: Axes, grid: Grid, figure: Callable[[Cell], float]) -> None:
    markers = _markers(grid)
    for cell in grid.cells:
        found = loss_difference(cell.quality, grid.base.quality)
        axes.errorbar(
            figure(cell), found.value, yerr=found.reach,
            marker=markers[cell.sparsity], markersize=8, color=color(cell.precision), ecolor="#cccccc", elinewidth=1.2,
            markerfacecolor="white" if cell.order == AFTER else color(cell.precision), linestyle="none", zorder=3,
        )  # fmt: skip
    best = front(grid.cells, figure)
    axes.step(
        [figure(cell) for cell in best], [loss_difference(cell.quality, grid.base.quality).value for cell in best],
        where="post", color="black", linewidth=1, zorder=4,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _markers(grid: Grid) -> dict[str, str]:
    return dict(zip(dict.fromkeys(cell.sparsity for cell in grid.cells), MARKERS, strict=False))


def _legend(figure, grid: Grid) -> None:
    def shown(label: str, **style) -> Line2D:
        return Line2D([], [], **{"linestyle": "none", "marker": "o", "color": "black", "label": label, **style})

    entries = [shown(sparsity, marker=marker) for sparsity, marker in _markers(grid).items()]
    entries += [shown(precision, color=color(precision)) for precision in (FP32, INT8)]
    entries += [shown("pruned after quantizing", markerfacecolor="white"), shown("Pareto front", marker="", linestyle="-")]
    figure.legend(handles=entries, loc="outside lower center", ncols=5, frameon=False)


EXPERIMENT = Experiment(
    Grid,
    run_grid,
    tables=lambda grid: {
        f"The table of the project {PROJECT}, filled": project_table(grid),
        "Every cell beside the dense model": cells_table(grid),
        "Pruning before or after quantizing: validation loss": order_table(grid),
    },
    charts=lambda grid: {"grid": plot_grid(grid)[0].figure},
    caption=caption,
)
