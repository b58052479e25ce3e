"""Controls for head pruning: other ways to choose the heads, and what share of the loss fine-tuning recovers."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel

from experiments.contract import say
from gpt2opt import environment
from gpt2opt.finetune import create_training_arguments, prepare_tokenizer_for_padding, run_fine_tuning, tokenize_dataset
from gpt2opt.measure.quality import perplexity, prepare_text
from gpt2opt.measure.results import Quality
from gpt2opt.measure.stats import Estimate, over_documents
from gpt2opt.prune import head_importance, heads_to_prune, importance_batches, prune_attention_heads
from gpt2opt.run.record import Settings
from gpt2opt.settings import check_whole
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.sources.texts import find_texts, take_bytes
from gpt2opt.torch_model import logits_of

SCHEMA = "gpt2opt.pruning/1"
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
IMPORTANCE, RANDOM = "importance", "random"


@torch.no_grad()
def head_magnitude(model: GPT2LMHeadModel) -> np.ndarray:
    """Return the L2 norm of all weights that leave with a head: of its query, key and value, and of its rows of the output projection.

    That is the group norm of structured pruning (Fang et al. 2023, DepGraph), which began with norms of filters (Li et al. 2017).

    Returns:
        float64 array (layers, heads).
    """
    norms = []
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
    """Heads pruned by importance, then fine-tuned; and the control, the unpruned model fine-tuned on the same rows in the same order."""

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
    schema: str = SCHEMA

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys(score.rule for score in self.scores))

    @property
    def counts(self) -> list[int]:
        return sorted({score.pruned_heads for score in self.scores})

    def of(self, rule: str, count: int) -> list[Quality]:
        """Return the scores of a rule with so many heads of every layer pruned, one per seed."""
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
            "cost": lambda base, pruned, tuned, control, tokens: (pruned - base) / tokens,
            "cost left": lambda base, pruned, tuned, control, tokens: (tuned - control) / tokens,
            "gain of pruned": lambda base, pruned, tuned, control, tokens: (pruned - tuned) / tokens,
            "gain of unpruned": lambda base, pruned, tuned, control, tokens: (base - control) / tokens,
            "without control": lambda base, pruned, tuned, control, tokens: (pruned - tuned) / (pruned - base),
            "recovered": lambda base, pruned, tuned, control, tokens: 1 - (tuned - control) / (pruned - base),
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

    Args:
        model, text: see `find_model` and `find_texts`.
        fractions: shares of each layer's heads, in [0, 1); those that come to the same number of heads are one.
        seeds: how many random choices, at least 5: the range of fewer says little.
        score_bytes: how much of the text's scored part.
        epochs: of fine-tuning.

    Raises:
        ValueError: a source can't be found or is too short, a fraction is outside [0, 1), fewer than 5 seeds, or no epochs.
    """
    check_whole("seeds", seeds, 5, "the range of fewer random choices says little")
    check_whole("score_bytes", score_bytes, 1)
    settings = Settings(epochs=epochs)
    found, texts = find_model(model), find_texts(text)
    tokenizer, reference = load_model(found.path)
    heads = reference.transformer.h[0].attn.num_heads
    by_count = {heads_to_prune(heads, fraction): fraction for fraction in (*fractions, settings.prune_fraction)}
    by_count.pop(0, None)
    count = heads_to_prune(heads, settings.prune_fraction)
    if not count:
        raise ValueError(f"{settings.prune_fraction:.0%} of {heads} heads is no whole head; name a model with more heads")
    tuning = [document.text for document in take_bytes(texts.fine_tune, settings.fine_tune_bytes)]
    label = f"{texts.name} {texts.revision}, first {score_bytes:,} bytes of the scored part"
    scored = prepare_text(tokenizer, [document.text for document in take_bytes(texts.score, score_bytes)], label)

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
    tuned = []
    for what, candidate in {
        "pruned": prune_attention_heads(copy.deepcopy(reference), settings.prune_fraction, choices[0][2]),
        "unpruned": reference,
    }.items():
        say(f"fine-tuning the {what} model")
        tuned.append(score(fine_tuned(candidate, tokenizer, rows, settings)))
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
    environment.set_seed(settings.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = create_training_arguments(scratch, settings.learning_rate, epochs=settings.epochs, seed=settings.seed)
        run_fine_tuning(model, arguments, rows, tokenizer)
    return model.cpu().eval()
