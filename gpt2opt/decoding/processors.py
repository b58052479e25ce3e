"""Logits processors in numpy, for a serving process without torch: they change the scores of the next token before it is chosen.

Each gives what the class of transformers gives that is named in its docstring; the tests compare the two. Scores are arrays (V,) float,
and a token that is ruled out gets -inf.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt2opt.decoding.settings import DecodingSettings

Process = Callable[[Sequence[int], np.ndarray], np.ndarray]
"""From the tokens of one sequence so far, the prompt's included, and the scores (V,) of its next token, to changed scores (V,)."""


def make_process(settings: DecodingSettings) -> Process | None:
    """Return the processors that these settings ask for as one function, in transformers' order; None if they ask for none."""
    table: list[tuple[Any, Callable[[np.ndarray, Any], np.ndarray], Any]] = [
        (settings.temperature != 1, np.divide, settings.temperature),
        (settings.top_k, keep_top_k, settings.top_k),
        (settings.top_p < 1, keep_top_p, settings.top_p),
        (settings.min_p, keep_min_p, settings.min_p),
        (settings.typical_p < 1, keep_typical, settings.typical_p),
    ]
    changes = [(change, value) for wanted, change, value in table if settings.do_sample and wanted]
    penalty = settings.repetition_penalty
    if penalty == 1 and not changes:
        return None

    def process(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
        scores = scores if penalty == 1 else penalize_repetition(ids, scores, penalty)
        for change, value in changes:
            scores = change(scores, value)
        return scores

    return process


def penalize_repetition(ids: Sequence[int], scores: np.ndarray, penalty: float) -> np.ndarray:
    """Divide positive scores of tokens in the text by `penalty`, multiply negative ones (CTRL). As `RepetitionPenaltyLogitsProcessor`."""
    seen = np.unique(np.asarray(ids))
    changed = scores.copy()
    changed[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return changed


def keep_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Keep the k tokens of the highest scores, and those equal to the last of them (Fan et al. 2018). As `TopKLogitsWarper`."""
    if k >= len(scores):
        return scores
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def keep_top_p(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Keep the fewest tokens that have `top_p` of the probability together (Holtzman et al. 2020). As `TopPLogitsWarper`."""
    probabilities = np.exp(log_softmax(scores))
    # All tokens below this have less than 1 - top_p together, so they leave in any case, and only the rest needs to be sorted.
    (candidates,) = np.nonzero(probabilities * len(scores) > 1 - top_p)
    order = candidates[np.argsort(probabilities[candidates], kind="stable")]
    left_over = 1 - probabilities[candidates].sum()
    kept = order[np.cumsum(probabilities[order]) + left_over > 1 - top_p]
    kept = kept if len(kept) else order[-1:]
    changed = np.full_like(scores, -np.inf)
    changed[kept] = scores[kept]
    return changed


def keep_min_p(scores: np.ndarray, min_p: float) -> np.ndarray:
    """Keep tokens of at least `min_p` times the highest probability (Nguyen et al. 2024). As `MinPLogitsWarper`."""
    return np.where(scores < scores.max() + np.log(min_p), -np.inf, scores)


def keep_typical(scores: np.ndarray, mass: float) -> np.ndarray:
    """Keep the tokens whose information is nearest to the entropy, up to `mass` (Meister et al. 2023). As `TypicalLogitsWarper`."""
    log_probabilities = log_softmax(scores)
    probabilities = np.exp(log_probabilities)
    (candidates,) = np.nonzero(probabilities)
    entropy = -(probabilities[candidates] * log_probabilities[candidates]).sum()
    order = candidates[np.argsort(np.abs(-log_probabilities[candidates] - entropy), kind="stable")]
    needed = int((np.cumsum(probabilities[order]) < mass).sum()) + 1
    last = np.abs(-log_probabilities[order[min(needed, len(order)) - 1]] - entropy)
    return np.where(np.abs(-log_probabilities - entropy) > last, -np.inf, scores)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return log-probabilities (..., V) in float64: a sum over 50,257 tokens in float32 would be off in the sixth digit."""
    scores = np.asarray(scores, np.float64)
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
