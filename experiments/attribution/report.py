"""The table and the waterfall chart of an attribution."""

from typing import TYPE_CHECKING

from experiments.attribution.run import COLUMNS, PERPLEXITY, Attribution, Column, attribute
from experiments.contract import Experiment
from gpt2opt.environment import machine_label
from gpt2opt.measure.stats import PERCENT
from gpt2opt.report.style import BETTER, SAME, WHOLE, WORSE
from gpt2opt.report.table import MISSING, Table, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def attribution_table(attribution: Attribution) -> Table:
    """Show every step, and its factor over what it is compared with; the last row compares the last step with the first."""
    case, before = attribution.case, {step.name: previous for step, previous in attribution.pairs}
    rows = []
    for step in attribution.steps:
        if step.left_out:
            rows.append((step.name, f"left out: {step.left_out}", "", *[MISSING] * len(COLUMNS)))
            continue
        base = before.get(step.name)
        cells = [column.show(column.value(step, case)) + (f"; {column.factor(step, base, case)}" if base else "") for column in COLUMNS]
        rows.append((step.name, step.change, base.name if base else "", *cells))
    first, last = attribution.chain[0], attribution.chain[-1]
    rows.append(("all steps together", "", first.name, *(column.factor(last, first, case) for column in COLUMNS)))
    header = [f"{column.name}, {column.unit}".rstrip(", ") + f"; ÷ that [{PERCENT}]" for column in COLUMNS]
    return table(("step", "what changes", "compared with", *header), rows)


def attribution_caption(attribution: Attribution) -> str:
    """Say what the table was taken on."""
    case = attribution.case
    return (
        f"Model: {attribution.model}. {machine_label(attribution.environment)}; prompt {case.prompt_tokens} tokens, "
        f"{case.new_tokens} new, {attribution.rounds} rounds in which all steps take turns. "
        "Times are medians, factors medians of the ratios within a round. Perplexity, paired document by document: "
        f"{attribution.chain[0].quality.protocol}."
    )


def plot_attribution(attribution: Attribution) -> list["Axes"]:
    """Draw a waterfall for each column: green where a step lowers it, red where it raises it, grey without a measurable difference."""
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 2, figsize=(13, 2 + 1.1 * len(attribution.measured)), layout="constrained")
    for axes, column in zip(grid.flat, COLUMNS, strict=True):
        _waterfall(axes, attribution, column)
    for axes in grid[:, 1]:
        axes.set_yticklabels([])
    facts, case = attribution.environment, attribution.case
    figure.suptitle(f"From torch FP32 to INT8, step by step, on {facts['cpu']}, {facts['threads']} threads, {case} tokens")
    notes = [f"each factor is over the step above it, with its {PERCENT} interval; less is better"]
    notes += [
        f"{step.name} is a branch: it and the step below it are over {before.name}" for step, before in attribution.pairs if step.branch
    ]
    notes += [f"{step.name} is left out: {step.left_out}" for step in attribution.steps if step.left_out]
    figure.supxlabel("\n".join(notes), fontsize=9)
    return list(grid.flat)


def _waterfall(axes: "Axes", attribution: Attribution, column: Column) -> None:
    case, chain, steps = attribution.case, attribution.chain, attribution.measured
    scale = {"ms": 1e3, "MB": 1e-6}.get(column.unit, 1)
    values = [column.value(step, case) * scale for step in steps]
    # Perplexities differ by some percent; from zero on no step could be seen.
    start = min(values) - (max(values) - min(values)) if column is PERPLEXITY else 0
    _bar(axes, 0, values[0] - start, start, WHOLE, f"{column.show(column.value(chain[0], case))} {column.unit}")
    for step, before in attribution.pairs:
        row, base = steps.index(step), steps.index(before)
        was, now = values[base], values[row]
        changed = SAME if not column.measurable(step, before, case) else WORSE if now > was else BETTER
        factor = column.factor(step, before, case).replace(", no", "\nno")
        axes.barh(row, min(was, now) - start, left=start, height=0.6, color=WHOLE)
        _bar(axes, row, now - was, was, changed, f"{column.show(column.value(step, case))} {column.unit}\n× {factor}")
        axes.plot([was, was], [base + 0.3, row - 0.3], color="grey", linewidth=0.8)
    axes.set_yticks(range(len(steps)), [step.name for step in steps])
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.set_xlim(start, start + 1.5 * (max(values) - start))
    whole = column.factor(chain[-1], chain[0], case)
    axes.set(title=f"{column.name}, all steps together: × {whole}", xlabel=column.unit + ("the axis does not start at 0" if start else ""))


def _bar(axes: "Axes", row: int, width: float, left: float, color: str, text: str) -> None:
    axes.barh(row, width, left=left, height=0.6, color=color)
    axes.annotate(text, (left + max(width, 0), row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)


EXPERIMENT = Experiment(
    Attribution,
    attribute,
    tables=lambda found: {"Each step, over the step that it is compared with": attribution_table(found)},
    charts=lambda found: {"attribution": plot_attribution(found)[0].figure},
    caption=attribution_caption,
)
