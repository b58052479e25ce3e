"""The tables and the chart of the controls for head pruning."""

import math
from typing import TYPE_CHECKING

from experiments.contract import Experiment
from experiments.pruning.run import IMPORTANCE, RANDOM, PruningControls, compare_pruning
from gpt2opt.measure.stats import PERCENT, Estimate
from gpt2opt.report.style import CONTROL, SAME, color
from gpt2opt.report.tables import Table, perplexity_ratio, show_perplexity, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    IMPORTANCE: {"color": color("Pruned"), "marker": "o"},
    "magnitude": {"color": SAME, "marker": "s", "linestyle": "--"},
    "first heads": {"color": SAME, "marker": "^", "linestyle": ":"},
    RANDOM: {"color": CONTROL, "marker": "v"},
}
"""Every rule but importance is a control, and grey; the lines tell them apart."""


def curve_table(controls: PruningControls) -> Table:
    """Show the perplexity of every rule over the heads pruned, untuned; of random choices the mean and the range over the seeds."""
    rows = [("0", *[f"{controls.unpruned.perplexity:.2f}"] * len(controls.rules))]
    for count in controls.counts:
        cells = [_curve_cell(controls, rule, count) for rule in controls.rules]
        rows.append((f"{count} of {controls.heads} ({count / controls.heads:.0%})", *cells))
    return table(("heads removed per layer", *controls.rules), rows)


def _curve_cell(controls: PruningControls, rule: str, count: int) -> str:
    each = [quality.perplexity for quality in controls.of(rule, count)]
    value = f"{controls.mean(rule, count).perplexity:.2f}"
    return f"{value} ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else value


def ratio_table(controls: PruningControls) -> Table:
    """Show the perplexity by importance ÷ that of every other rule, with its paired interval; below 1, importance chose better.

    Against random choices it is their mean: the interval is that of the text, the range of the seeds is in `curve_table`.
    """
    others = [rule for rule in controls.rules if rule != IMPORTANCE]
    rows = []
    for count in controls.counts:
        ours = controls.mean(IMPORTANCE, count)
        rows.append((f"{count} of {controls.heads}", *(perplexity_ratio(ours, controls.mean(rule, count)) for rule in others)))
    return table(("heads removed per layer", *(f"importance ÷ {rule} [{PERCENT}]" for rule in others)), rows)


def recovery_table(controls: PruningControls) -> Table:
    """Show the four models between which the recovered share is taken."""
    recovery = controls.recovery
    models = {
        "unpruned": controls.unpruned,
        f"{recovery.pruned_heads} of {controls.heads} heads pruned": controls.pruned,
        "pruned, fine-tuned": recovery.tuned_pruned,
        "unpruned, fine-tuned (control)": recovery.tuned_unpruned,
    }
    rows = [(name, show_perplexity(quality), perplexity_ratio(quality, controls.unpruned)) for name, quality in models.items()]
    return table(("model", f"perplexity [{PERCENT}]", f"÷ unpruned [{PERCENT}]"), rows)


def recovery_caption(controls: PruningControls) -> str:
    """Say what share of the cost fine-tuning recovers, compared with the control, and what all tables were measured on."""
    found = controls.estimates

    def nats(name: str) -> str:
        return f"{found[name].value:.4f} [{found[name].low:.4f}, {found[name].high:.4f}] nats per token"

    cost = f"Pruning costs {nats('cost')}"
    if found["cost"].low <= 0:
        verdict = f"{cost}, which is not measurably different from 0, so there is no share of it to recover."
    else:
        verdict = (
            f"{cost}. Fine-tuning then gains the pruned model {nats('gain of pruned')}, but the unpruned one on the same budget "
            f"{nats('gain of unpruned')}: that part is learning the text, not recovery. Compared with the fine-tuned control, "
            f"{nats('cost left')} of the cost remain, so {_share(found['recovered'])} is recovered; without the control it would seem "
            "to be "
            f"{_share(found['without control'])}."
        )
    recovery = controls.recovery
    return (
        f"{verdict} Model: {controls.model}; {controls.unpruned.protocol}; tuned on {recovery.rows} rows, epochs: {recovery.epochs:g}. "
        f"Intervals are {PERCENT}, over documents and paired; the variance between training runs is not in them."
    )


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"


def plot_pruning(controls: PruningControls) -> list["Axes"]:
    """Draw the curves, the band of the random choices from the lowest to the highest seed, and the four models of the recovery."""
    import matplotlib.pyplot as plt

    figure, (curves, recovery) = plt.subplots(1, 2, figsize=(13, 5), width_ratios=(3, 2), layout="constrained")
    _curves(curves, controls)
    _recovery(recovery, controls)
    figure.suptitle(f"Controls for head pruning on the {controls.model.split()[0]} model")
    return [curves, recovery]


def _curves(axes: "Axes", controls: PruningControls) -> None:
    from matplotlib.ticker import LogLocator

    base, counts = controls.unpruned.perplexity, controls.counts
    x = [0, *(count / controls.heads for count in counts)]
    for rule in controls.rules:
        each = [[quality.perplexity for quality in controls.of(rule, count)] for count in counts]
        if len(each[0]) > 1:
            low, high = [base, *map(min, each)], [base, *map(max, each)]
            axes.fill_between(
                x, low, high, color=STYLES[rule]["color"], alpha=0.25, linewidth=0, label=f"{rule}, {len(each[0])} seeds: range"
            )
        means = [base, *(controls.mean(rule, count).perplexity for count in counts)]
        label = f"{rule}: mean" if len(each[0]) > 1 else rule
        axes.plot(x, means, markersize=4, label=label, **STYLES[rule])
    axes.set(title="Heads pruned, not tuned", xlabel="share of each layer's heads pruned", ylabel="perplexity, logarithmic; less is better")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def _recovery(axes: "Axes", controls: PruningControls) -> None:
    recovery = controls.recovery
    bars = {
        "pruned": (controls.pruned, color("Pruned")),
        "pruned,\ntuned": (recovery.tuned_pruned, color("Fine-tuned")),
        "unpruned,\ntuned (control)": (recovery.tuned_unpruned, CONTROL),
    }
    for row, (quality, own) in enumerate(bars.values()):
        value = math.log(quality.ratio_to(controls.unpruned))
        low, high = (math.log(bound) for bound in quality.ratio_interval(controls.unpruned) or [quality.ratio_to(controls.unpruned)] * 2)
        axes.barh(row, value, height=0.55, color=own)
        axes.errorbar(
            value,
            row,
            xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],  # an interval of no width may miss by rounding
            fmt="none",
            color="black",
            capsize=3,
        )
        axes.annotate(f"{value:+.4f}", (max(high, 0), row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.margins(x=0.22)
    found = controls.estimates
    recovered = "no measurable cost" if found["cost"].low <= 0 else f"{_share(found['recovered'])} recovered"
    axes.set(title=f"{recovery.pruned_heads} of {controls.heads} heads: {recovered}", xlabel="nats per token against the unpruned model")


EXPERIMENT = Experiment(
    PruningControls,
    compare_pruning,
    tables=lambda controls: {
        "Perplexity; of random choices the mean over the seeds, taken in nats, and the range": curve_table(controls),
        "Importance over the other rules": ratio_table(controls),
        "What fine-tuning recovers": recovery_table(controls),
    },
    charts=lambda controls: {"pruning": plot_pruning(controls)[0].figure},
    caption=recovery_caption,
)
