"""Perplexity: summed nats over summed tokens, every token scored once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2opt.report.results import Agreement, Quality

Logits = Callable[[Tensor], Any]
"""ids (B, T) int64 -> logits (B, T, V), a tensor or an array, any float dtype."""


def sum_token_nll(logits: Tensor, targets: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the NLL of the scored targets of each row.

    Targets are already shifted: `targets[:, t]` is the token that `logits[:, t]` predicts.

    Args:
        logits: (B, T, V), any float dtype; upcast to FP32 before the log-softmax.
        targets: (B, T) int64.
        scored: (B, T) bool, True where a target counts.

    Returns:
        `(nll_nats, num_tokens)`, each (B,). Add both over all rows and divide once: a mean of per-line means is not perplexity.

    Raises:
        ValueError: the vocabulary is too small for the targets, or a scored token's NLL is not a finite number.

    Example:
        Uniform logits over V = 4 cost ln 4 nats a target, so perplexity is 4:

        >>> import math
        >>> nats, tokens = sum_token_nll(torch.zeros(1, 2, 4), torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
        >>> tokens.item(), round(math.exp(nats.item() / tokens.item()), 4)
        (2, 4.0)
    """
    if int(targets.max()) >= logits.shape[-1]:
        raise ValueError(f"token id {int(targets.max())} is outside the model's {logits.shape[-1]} tokens; use the model's own tokenizer")
    nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    nll = torch.where(scored, nll, 0.0)
    if not torch.isfinite(nll).all():
        raise ValueError("the model gave logits that are not finite; its weights are damaged or overflow in this dtype")
    return nll.double().sum(1), scored.sum(1)


def windows(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield `(start, end, first_scored)`: read tokens start … end − 1, predict start + 1 … end, count those from first_scored on.

    So every token but the first is a target exactly once, whatever the stride. With stride < window a window reads
    window − stride tokens again as context.

    Example:
        >>> list(windows(10, window=4, stride=2))
        [(0, 4, 1), (2, 6, 5), (4, 8, 7), (6, 9, 9)]
    """
    if not 0 < stride <= window:
        raise ValueError(f"stride={stride}, window={window}: expected 0 < stride <= window, or tokens would be left out")
    start, end = 0, 0
    while end < num_tokens - 1:
        first_scored = end + 1
        end = min(start + window, num_tokens - 1)
        yield start, end, first_scored
        start += stride


def score_text(logits: Logits, tokenizer, text: str, label: str, stride: int | None = None) -> Quality:
    """Tokenize a text in one go and score all of it, in windows of the model's context, at most 1024 tokens.

    Args:
        logits: the model under test.
        tokenizer: its own; `model_max_length` is the model's context.
        text: what is scored.
        label: what the text is.
        stride: how far the window moves; a whole window unless told.

    Raises:
        ValueError: as `measure_quality`.
    """
    window = window_length(tokenizer)
    ids = tokenizer(text, verbose=False).input_ids
    return measure_quality(logits, ids, num_bytes=len(text.encode()), label=label, window=window, stride=stride or window)


def window_length(tokenizer) -> int:
    """Return how many tokens are read at once: the model's context, at most 1024."""
    return min(1024, tokenizer.model_max_length)


def measure_quality(
    logits: Logits, token_ids: Sequence[int], *, num_bytes: int, label: str, window: int, stride: int, batch_size: int = 2
) -> Quality:
    """Score a text.

    Args:
        logits: the model under test.
        token_ids: the whole text, tokenized in one go.
        num_bytes: UTF-8 bytes of the scored text, for bits per byte.
        label: what the text is; window, stride and token count are added to it.
        window: tokens a model reads at once, at most its context.
        stride: how far the window moves, at most `window`.
        batch_size: windows at once. It changes memory and speed, not the result.

    Raises:
        ValueError: fewer than two tokens, ids outside the vocabulary, logits that are not finite.
    """
    nats: list[float] = []
    tokens: list[int] = []
    for rows, targets, scored in _batches(token_ids, window, stride, batch_size):
        out = torch.as_tensor(logits(rows))
        row_nats, row_tokens = sum_token_nll(out, targets.to(out.device), scored.to(out.device))
        nats += row_nats.tolist()
        tokens += row_tokens.tolist()
    return Quality(tuple(nats), tuple(tokens), num_bytes, _protocol(label, window, stride, sum(tokens)))


def measure_agreement(
    logits: Logits, parent: Logits, token_ids: Sequence[int], *, label: str, window: int, stride: int, batch_size: int = 1
) -> Agreement:
    """Compare what two models of one vocabulary expect next, position by position, over the windows that perplexity is taken on.

    Args:
        logits: the model under test.
        parent: what it was made from; KL is KL(parent ‖ model).
        token_ids: the whole text, tokenized in one go.
        label: what the text is.
        window, stride, batch_size: as in `measure_quality`.

    Raises:
        ValueError: as `measure_quality`, and where the two models' vocabularies differ.
    """
    kl_nats, same, tokens, every = [], [], [], []
    for rows, _, scored in _batches(token_ids, window, stride, batch_size):
        ours, theirs = (torch.as_tensor(model(rows)).float().cpu() for model in (logits, parent))
        if ours.shape != theirs.shape:
            raise ValueError(f"{ours.shape[-1]} and {theirs.shape[-1]} tokens; only models of one vocabulary can be compared")
        log_p, log_q = torch.log_softmax(theirs, -1), torch.log_softmax(ours, -1)
        kl = torch.where(scored, (log_p.exp() * (log_p - log_q)).sum(-1), 0.0).double()
        if not torch.isfinite(kl).all():
            raise ValueError("a model gave logits that are not finite; its weights are damaged or overflow in this dtype")
        kl_nats += kl.sum(1).tolist()
        same += ((ours.argmax(-1) == theirs.argmax(-1)) & scored).sum(1).tolist()
        tokens += scored.sum(1).tolist()
        every.append(kl[scored])
    p99 = torch.cat(every).quantile(0.99).item()
    return Agreement(tuple(kl_nats), tuple(same), tuple(tokens), p99, _protocol(label, window, stride, sum(tokens)))


def _batches(token_ids: Sequence[int], window: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows (B, T), their targets (B, T) and which of them are scored (B, T), until every token but the first was one."""
    if len(token_ids) < 2:
        raise ValueError(f"the text has {len(token_ids)} token(s), at least 2 are needed to predict one from another; give a longer text")
    ids = torch.tensor(token_ids, dtype=torch.int64)
    for batch in _same_length(windows(len(ids), window, stride), batch_size):
        rows = torch.stack([ids[start:end] for start, end, _ in batch])
        targets = torch.stack([ids[start + 1 : end + 1] for start, end, _ in batch])
        scored = torch.stack([torch.arange(start + 1, end + 1) >= first for start, end, first in batch])
        yield rows, targets, scored


def _protocol(label: str, window: int, stride: int, tokens: int) -> str:
    return f"{label} | window {window}, stride {stride} | {tokens} tokens"


def _same_length(plan: Iterable[tuple[int, int, int]], batch_size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Group neighbouring windows of one length, so that no row is padded."""
    batch: list[tuple[int, int, int]] = []
    for item in plan:
        if batch and (len(batch) == batch_size or item[1] - item[0] != batch[0][1] - batch[0][0]):
            yield batch
            batch = []
        batch.append(item)
    yield batch
