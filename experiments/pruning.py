"""Controls for head pruning: other ways to choose the heads, and what share of the loss fine-tuning recovers."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from transformers import GPT2LMHeadModel, set_seed

from experiments.charts import bar, name_rows
from experiments.contract import Experiment, say
from gpt2opt import environment
from gpt2opt.finetune import create_training_arguments, prepare_tokenizer_for_padding, run_fine_tuning, tokenize_dataset
from gpt2opt.measure.quality import perplexity
from gpt2opt.measure.results import Quality
from gpt2opt.measure.stats import PERCENT, Estimate, over_documents
from gpt2opt.prune import head_importance, heads_to_prune, importance_batches, prune_attention_heads
from gpt2opt.report.chart import CONTROL, SAME, color
from gpt2opt.report.tables import Table, perplexity_ratio, show_perplexity, table
from gpt2opt.run.measurements import make_workload
from gpt2opt.settings import Settings, check_whole
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.sources.texts import find_texts, take_bytes
from gpt2opt.torch_model import logits_of

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
IMPORTANCE, RANDOM = "importance", "random"


@torch.no_grad()
def head_magnitude(model: GPT2LMHeadModel) -> np.ndarray:
    """Return the L2 norm of all weights that leave with a head: of its query, key and value, and of its rows of the output projection.

    That is the group norm of structured pruning (Fang et al. 2023, DepGraph), which began with norms of filters (Li et al. 2017), as a
    float64 array (layers, heads).
    """
    norms = []
    block: Any
    for block in model.transformer.h:
        heads = block.attn.num_heads
        made = block.attn.c_attn.weight.double().square().sum(0)  # (3 × H × head_dim,): Conv1D keeps its weight (in, out)
        read = block.attn.c_proj.weight.double().square().sum(1)  # (H × head_dim,)
        norms.append((made.view(3, heads, -1).sum((0, 2)) + read.view(heads, -1).sum(1)).sqrt())
    return torch.stack(norms).numpy()


@dataclass(frozen=True)
class Score:
    """A pruned model, not tuned. rule: how its heads were chosen. seed: of the random choice. pruned_heads: of every layer."""

    rule: str
    seed: int | None
    pruned_heads: int
    quality: Quality


@dataclass(frozen=True)
class Recovery:
    """Heads pruned by importance, then fine-tuned; and the control, the unpruned model fine-tuned on the same rows."""

    pruned_heads: int
    epochs: float
    rows: int
    tuned_pruned: Quality
    tuned_unpruned: Quality


@dataclass(frozen=True)
class PruningControls:
    """The unpruned model, the curves, and what fine-tuning recovers. heads: of a layer, before pruning."""

    environment: dict[str, Any]
    model: str
    heads: int
    unpruned: Quality
    scores: tuple[Score, ...]
    recovery: Recovery
    schema: str = "gpt2opt.pruning/1"

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys(score.rule for score in self.scores))

    @property
    def counts(self) -> list[int]:
        return sorted({score.pruned_heads for score in self.scores})

    def of(self, rule: str, count: int) -> list[Quality]:
        """Return the scores of a rule with this many heads of every layer pruned, one per seed."""
        return [score.quality for score in self.scores if (score.rule, score.pruned_heads) == (rule, count)]

    def mean(self, rule: str, count: int) -> Quality:
        """Return the mean of a rule over its seeds, taken in nats, so that its perplexity is the geometric mean."""
        qualities = self.of(rule, count)
        nats = np.mean([quality.document_nats for quality in qualities], axis=0)
        return dataclasses.replace(qualities[0], document_nats=tuple(nats.tolist()))

    @property
    def pruned(self) -> Quality:
        """Return the model that was fine-tuned, before it was."""
        return self.mean(IMPORTANCE, self.recovery.pruned_heads)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Return, in nats per token, the cost of pruning, the part of it that remains beside the control, and the gain of fine-tuning for
        both models; and the recovered shares of the cost, `without control` from the pruned model alone."""
        nats = [model.document_nats for model in (self.unpruned, self.pruned, self.recovery.tuned_pruned, self.recovery.tuned_unpruned)]
        tokens = self.unpruned.document_tokens
        statistics: dict[str, Callable[..., np.ndarray]] = {
            "cost": lambda base, pruned, tuned, control, n: (pruned - base) / n,
            "cost left": lambda base, pruned, tuned, control, n: (tuned - control) / n,
            "gain of pruned": lambda base, pruned, tuned, control, n: (pruned - tuned) / n,
            "gain of unpruned": lambda base, pruned, tuned, control, n: (base - control) / n,
            "without control": lambda base, pruned, tuned, control, n: (pruned - tuned) / (pruned - base),
            "recovered": lambda base, pruned, tuned, control, n: 1 - (tuned - control) / (pruned - base),
        }
        return {name: over_documents(statistic, *nats, tokens, tokens=tokens) for name, statistic in statistics.items()}


def compare_pruning(
    model: str = "auto",
    text: str = "auto",
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = 5,
    score_bytes: int = 50_000,
    epochs: float = Settings.epochs,
) -> PruningControls:
    """Prune by importance and by its controls, score each model untuned, then fine-tune the one that a run makes, and its control.

    Heads are chosen and models are tuned on the fine-tuning part of the text, with the settings of a run; the scored part is another.

    fractions: shares of each layer's heads, in [0, 1); those that come to the same number of heads are one. seeds: how many random
    choices, at least 5. A source that can't be found or is too short, or a setting outside its range, is a ValueError.
    """
    check_whole("seeds", seeds, 5, "the range of fewer random choices says little")
    settings = Settings(epochs=epochs, score_bytes=score_bytes)
    found, texts = find_model(model), find_texts(text)
    tokenizer, reference = load_model(found.path)
    heads = reference.transformer.h[0].attn.num_heads
    by_count = {heads_to_prune(heads, fraction): fraction for fraction in (*fractions, settings.prune_fraction)}
    by_count.pop(0, None)
    count = heads_to_prune(heads, settings.prune_fraction)
    if not count:
        raise ValueError(f"{settings.prune_fraction:.0%} of {heads} heads is no whole head; name a model with more heads")
    tuning = [document.text for document in take_bytes(texts.fine_tune, settings.fine_tune_bytes)]
    scored = make_workload(tokenizer, texts, settings).scored

    def score(candidate: GPT2LMHeadModel) -> Quality:
        return perplexity(logits_of(candidate), scored)

    unpruned = score(reference)
    choices = head_choices(reference, importance_batches(tuning, tokenizer, settings.sequence_length), seeds)
    scores = []
    for rule, seed, order in choices:
        say(f"pruning by {rule}" + ("" if seed is None else f", seed {seed}"))
        for pruned_heads, fraction in sorted(by_count.items()):
            pruned = prune_attention_heads(copy.deepcopy(reference), fraction, order)
            scores.append(Score(rule, seed, pruned_heads, score(pruned)))
    prepare_tokenizer_for_padding(tokenizer, reference)
    rows = tokenize_dataset(Dataset.from_dict({"text": tuning}), tokenizer, settings.sequence_length)
    say("fine-tuning the pruned model, then the unpruned one")
    both = (prune_attention_heads(copy.deepcopy(reference), settings.prune_fraction, choices[0][2]), reference)
    tuned = [score(fine_tuned(candidate, tokenizer, rows, settings)) for candidate in both]
    recovery = Recovery(count, epochs, len(rows), *tuned)
    return PruningControls(environment.describe(), str(found), heads, unpruned, tuple(scores), recovery)


def head_choices(model: GPT2LMHeadModel, batches, seeds: int) -> list[tuple[str, int | None, np.ndarray]]:
    """Return (rule, seed, (layers, heads) array) of every choice, importance first; the lowest heads of an array leave first."""
    importance = head_importance(model, batches)
    first = np.tile(np.arange(importance.shape[1], dtype=float), (len(importance), 1))
    draws = [(RANDOM, seed, np.random.default_rng(seed).random(importance.shape)) for seed in range(seeds)]
    return [(IMPORTANCE, None, importance), ("magnitude", None, head_magnitude(model)), ("first heads", None, first), *draws]


def fine_tuned(model: GPT2LMHeadModel, tokenizer, rows: Dataset, settings: Settings) -> GPT2LMHeadModel:
    """Fine-tune a model in place as stage 3 does, and return it on the CPU, ready to be scored."""
    set_seed(settings.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = create_training_arguments(scratch, settings.learning_rate, epochs=settings.epochs, seed=settings.seed)
        run_fine_tuning(model, arguments, rows, tokenizer)
    return model.cpu().eval()


STYLES: dict[str, dict[str, Any]] = {
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
        cells = []
        for rule in controls.rules:
            each = [quality.perplexity for quality in controls.of(rule, count)]
            seeds = f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""
            cells.append(f"{controls.mean(rule, count).perplexity:.2f}{seeds}")
        rows.append((f"{count} of {controls.heads} ({count / controls.heads:.0%})", *cells))
    return table(("heads removed per layer", *controls.rules), rows)


def ratio_table(controls: PruningControls) -> Table:
    """Show the perplexity by importance ÷ that of every other rule (of random choices their mean); below 1, importance chose better."""
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
    cost = f"Pruning costs {found['cost']:.4f} nats per token"
    if found["cost"].low <= 0:
        verdict = f"{cost}, which is not measurably different from 0, so there is no share of it to recover."
    else:
        verdict = (
            f"{cost}. Fine-tuning then gains the pruned model {found['gain of pruned']:.4f} nats per token, but the unpruned one on the "
            f"same budget {found['gain of unpruned']:.4f}: that part is learning the text, not recovery. Compared with the fine-tuned "
            f"control, {found['cost left']:.4f} nats per token of the cost remain, so {found['recovered']:.0%} is recovered; without the "
            f"control it would seem to be {found['without control']:.0%}."
        )
    recovery = controls.recovery
    return (
        f"{verdict} Model: {controls.model}; {controls.unpruned.protocol}; tuned on {recovery.rows} rows, epochs: {recovery.epochs:g}. "
        f"Intervals are {PERCENT}, over documents and paired; the variance between training runs is not in them."
    )


def plot_pruning(controls: PruningControls) -> list[Axes]:
    """Draw the curves, the band of the random choices from the lowest to the highest seed, and the four models of the recovery."""
    figure, (curves, recovery) = plt.subplots(1, 2, figsize=(13, 5), width_ratios=(3, 2), layout="constrained")
    _curves(curves, controls)
    _recovery(recovery, controls)
    figure.suptitle(f"Controls for head pruning on the {controls.model.split()[0]} model")
    return [curves, recovery]


def _curves(axes: Axes, controls: PruningControls) -> None:
    base, counts = controls.unpruned.perplexity, controls.counts
    x = [0, *(count / controls.heads for count in counts)]
    for rule in controls.rules:
        each = [[quality.perplexity for quality in controls.of(rule, count)] for count in counts]
        label = rule
        if len(each[0]) > 1:
            low, high, label = [base, *map(min, each)], [base, *map(max, each)], f"{rule}: mean, and range of {len(each[0])} seeds"
            axes.fill_between(x, low, high, color=STYLES[rule]["color"], alpha=0.25, linewidth=0)
        means = [base, *(controls.mean(rule, count).perplexity for count in counts)]
        axes.plot(x, means, markersize=4, label=label, **STYLES[rule])
    axes.set(title="Heads pruned, not tuned", xlabel="share of each layer's heads pruned", ylabel="perplexity, logarithmic; less is better")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def _recovery(axes: Axes, controls: PruningControls) -> None:
    recovery = controls.recovery
    bars = {
        "pruned": (controls.pruned, color("Pruned")),
        "pruned,\ntuned": (recovery.tuned_pruned, color("Fine-tuned")),
        "unpruned,\ntuned (control)": (recovery.tuned_unpruned, CONTROL),
    }
    for row, (quality, own) in enumerate(bars.values()):
        ratio = quality.ratio_to(controls.unpruned)
        cost = Estimate(*np.log([ratio, *(quality.ratio_interval(controls.unpruned) or [ratio] * 2)]).tolist())
        bar(axes, row, cost.value, own, f"{cost.value:+.4f}", end=max(cost.high, 0))
        axes.errorbar(cost.value, row, xerr=cost.reach, fmt="none", color="black", capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    name_rows([axes], list(bars))
    found = controls.estimates
    recovered = "no measurable cost" if found["cost"].low <= 0 else f"{found['recovered']:.0%} recovered"
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
