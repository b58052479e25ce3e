"""Perplexity, and agreement with a reference model: nats and tokens are summed per document, and every token is scored once."""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gpt2opt.decoding.text import MAX_WINDOW, encode, window_length
from gpt2opt.measure.results import Agreement, Quality
from gpt2opt.measure.stats import percentile_99
from gpt2opt.settings import check_whole

Logits = Callable[[Tensor], Any]
"""ids (B, T) int64 -> logits (B, T, V), a tensor or an array of any float dtype; they are used before the next call."""

JOIN = "\n\n"
ROWS = 64  # positions whose logits are processed at once: few enough to stay in the CPU's cache, and their memory is reused

SHOWN_AFTER_S = 2.0
"""A text that is scored sooner has no progress bar."""


@dataclass(frozen=True)
class Protocol:
    """How a text is scored. Two perplexities can be compared only under the same protocol.

    window: tokens that are read at once, at most the model's context. stride: how far the window moves; None means a whole window.
    by_line: each line is scored alone and cut at the end of the window. Otherwise the documents are joined by blank lines and scored as
    one text. Nothing predicts the first token of either.
    """

    name: str
    window: int = MAX_WINDOW
    stride: int | None = None
    by_line: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError, in one line, for a window or a stride that no text can be read by."""
        check_whole("window", self.window, 1)
        if self.stride is not None:
            check_whole("stride", self.stride, 1, "the window would not move on")


STANDARD = Protocol("standard")
"""The protocol of papers. On the raw test split of WikiText-2, stock GPT-2 gets a perplexity of 29.94."""
COURSE = Protocol("course", window=512, by_line=True)
"""That of the course's notebook. On 200 validation rows of raw WikiText-2, stock GPT-2 in FP16 gets a `course_perplexity` of 40.03."""
PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD, COURSE)}


@dataclass(frozen=True)
class ScoredText:
    """A text as token ids, ready for every model that uses the same tokenizer.

    sequences: pairs of ids (T,) that are read together and, for each id, the index of its document (T,). num_words, num_bytes: of the
    scored part. label: the text and the protocol.
    """

    sequences: tuple[tuple[Tensor, Tensor], ...]
    num_words: int
    num_bytes: int
    window: int
    stride: int
    label: str


def prepare_text(tokenizer, documents: Sequence[str], label: str, protocol: Protocol = STANDARD) -> ScoredText:
    """Tokenize documents for scoring.

    Args:
        tokenizer: the model's own; `model_max_length` is its context, and the protocol's window is cut to it.
        documents: intervals are taken over them. If the protocol scores by line, each line is a document.
        label: the name of the text; the protocol is appended to it.
    """
    if not getattr(tokenizer, "is_fast", True):
        raise ValueError(f"{type(tokenizer).__name__} does not say where its tokens are in a text; take the fast one, by AutoTokenizer")
    window = min(protocol.window, window_length(tokenizer))
    stride = protocol.stride or window
    if stride > window:
        raise ValueError(f"stride={stride}, window={window}: expected 0 < stride <= window, or tokens would be left out")
    if protocol.by_line:
        documents = [line for document in documents for line in document.splitlines(keepends=True) if line.strip()]
        texts, kept, how = documents, slice(window), f"each line alone, cut at {window} tokens"
    else:
        texts, kept, how = [JOIN.join(documents)], slice(None), "documents joined by blank lines"
    ends = list(itertools.accumulate(len(document) + len(JOIN) for document in documents))
    sequences, scored = [], []
    for number, text in enumerate(texts):
        encoded = encode(tokenizer, text, return_offsets_mapping=True)
        ids, offsets = torch.tensor(encoded.input_ids[kept], dtype=torch.int64), encoded.offset_mapping[kept]
        if len(ids) > 1:
            owners = [number if protocol.by_line else min(bisect.bisect_right(ends, start), len(documents) - 1) for start, _ in offsets]
            sequences.append((ids, torch.tensor(owners)))
            scored.append(text[offsets[0][1] : offsets[-1][1]])  # from behind the first token, which nothing predicts
    if not sequences:
        raise ValueError(f"{label} has no two tokens in a row, which is what it takes to predict one from another; give a longer text")
    total = sum(len(ids) for ids, _ in sequences)
    num_words, num_bytes = sum(len(part.split()) for part in scored), sum(len(part.encode()) for part in scored)
    if not num_bytes:
        raise ValueError(f"{label} has no character behind the first, which nothing predicts; give a longer text")
    how = f"{how} | {protocol.name}: window {window}, stride {stride} | {total - len(sequences)} of {total} tokens scored"
    return ScoredText(tuple(sequences), num_words, num_bytes, window, stride, f"{label}, {how}")


def perplexity(logits: Logits, text: ScoredText, *, batch_size: int = 2) -> Quality:
    """Score a text: the perplexity per token, with all that an interval and other units (per word, bits per byte) need.

    text: from `prepare_text`, with the model's own tokenizer. batch_size changes memory and speed, not the result.

    Example:
        A model that expects each of 4 tokens equally has a perplexity of 4:

        >>> ids = torch.tensor([0, 1, 2])
        >>> text = ScoredText(((ids, torch.zeros_like(ids)),), num_words=1, num_bytes=2, window=8, stride=8, label="ids")
        >>> round(perplexity(lambda ids: torch.zeros(*ids.shape, 4), text).perplexity, 4)
        4.0
    """
    owners, nats = _of_each_token(text, batch_size, lambda ids, targets: [token_nll(torch.as_tensor(logits(ids)), targets)])
    return _quality(text, owners, nats)


def measure_agreement(logits: Logits, reference: Logits, text: ScoredText, *, reference_name: str) -> tuple[Quality, Agreement]:
    """Score a text as `perplexity` does and, in the same pass, compare the model's next-token distributions with its reference model's.

    reference: the model that it was made from, with the same vocabulary; KL is KL(reference ‖ model).
    """

    def compared(ids: Tensor, targets: Tensor) -> list[Tensor]:
        ours, theirs = (torch.as_tensor(model(ids)) for model in (logits, reference))
        if ours.shape != theirs.shape:
            raise ValueError(f"{ours.shape[-1]} and {theirs.shape[-1]} tokens; only models of one vocabulary can be compared")
        nll = token_nll(ours, targets)
        kl, is_same = (values.view_as(nll) for values in _compare(ours, theirs))
        if not torch.isfinite(kl).all():
            raise ValueError("the reference model gave logits that are not finite; its weights are damaged or overflow in this dtype")
        return [nll, kl, is_same]

    owners, nats, kls, is_same = _of_each_token(text, 1, compared)
    kl, same, tokens = _by_document(owners, kls), _by_document(owners, is_same), _by_document(owners)
    return _quality(text, owners, nats), Agreement(
        kl, tuple(map(int, same)), tokens, *percentile_99(kls, owners), text.label, reference_name
    )


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target in nats, (B, T) float32.

    Args:
        logits: (B, T, V), any float dtype; upcast to FP32 before the log-softmax.
        targets: (B, T) int64, already shifted: `targets[:, t]` is the token that `logits[:, t]` predicts.
    """
    if int(targets.max()) >= logits.shape[-1]:
        raise ValueError(f"token id {int(targets.max())} is outside the model's {logits.shape[-1]} tokens; use the model's own tokenizer")
    # F.cross_entropy would write the log-softmax of all V tokens to memory and then read one of them.
    log_sums = torch.cat([torch.logsumexp(rows, -1) for rows in _rows(logits)]).view(targets.shape)
    chosen = logits.gather(-1, targets.to(logits.device)[..., None])[..., 0].float()
    nll = (log_sums - chosen).cpu()
    if not torch.isfinite(nll).all():
        raise ValueError("the model gave logits that are not finite; its weights are damaged or overflow in this dtype")
    return nll


def _compare(logits: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(reference ‖ model) in nats and whether both models' most likely token is the same, (B · T,) each, from (B, T, V)."""
    kls, sames = [], []
    for ours, theirs in zip(_rows(logits), _rows(reference), strict=True):
        theirs = theirs.to(ours.device)
        kls.append(kl_divergence(torch.log_softmax(theirs, -1), torch.log_softmax(ours, -1)))
        sames.append(ours.argmax(-1) == theirs.argmax(-1))
    return torch.cat(kls).cpu(), torch.cat(sames).cpu()


def kl_divergence(reference: Tensor, model: Tensor) -> Tensor:
    """Return KL(reference ‖ model) in nats, (...), from the log probabilities (..., V) of both."""
    return (reference.exp() * (reference - model)).sum(-1)


def _rows(logits: Tensor) -> Iterator[Tensor]:
    """Yield logits (B, T, V) as (rows, V) in FP32, a few rows at a time."""
    return (rows.float() for rows in logits.flatten(0, 1).split(ROWS))


def windows(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield `(start, end, first_scored)`: read tokens start … end − 1, predict start + 1 … end, count those from first_scored on.

    Every token except the first is a target exactly once. With stride < window, window − stride tokens are read again as context.

    Example:
        >>> list(windows(10, window=4, stride=2))
        [(0, 4, 1), (2, 6, 5), (4, 8, 7), (6, 9, 9)]
    """
    start, end = 0, 0
    while end < num_tokens - 1:
        first_scored = end + 1
        end = min(start + window, num_tokens - 1)
        yield start, end, first_scored
        start += stride


def _of_each_token(text: ScoredText, batch_size: int, values: Callable[[Tensor, Tensor], list[Tensor]]) -> list[np.ndarray]:
    """Return the document of each scored token, and what `values` gives for it, (N,) each.

    values: ids and targets (B, T), of at most `batch_size` windows of one length, so that no row is padded -> (B, T) each.
    """
    check_whole("batch_size", batch_size, 1)
    rows = [
        (ids[start:end], ids[start + 1 : end + 1], owners[start + 1 : end + 1], torch.arange(start + 1, end + 1) >= first)
        for ids, owners in text.sequences
        for start, end, first in windows(len(ids), text.window, text.stride)
    ]
    rows.sort(key=lambda row: -len(row[0]))
    groups = [list(same_length) for _, same_length in itertools.groupby(rows, key=lambda row: len(row[0]))]
    batches = [group[place : place + batch_size] for group in groups for place in range(0, len(group), batch_size)]
    found = []
    for batch in tqdm(batches, "scoring", leave=False, delay=SHOWN_AFTER_S):
        ids, targets, owners, scored = map(torch.stack, zip(*batch, strict=True))
        found.append([each[scored] for each in (owners, *values(ids, targets))])
    return [torch.cat(each).numpy() for each in zip(*found, strict=True)]


def _by_document(owners: np.ndarray, values: np.ndarray | None = None) -> tuple:
    """Return the sum of the values of each document that has scored tokens, by default their number."""
    return tuple(np.bincount(owners, values)[np.bincount(owners) > 0].tolist())


def _quality(text: ScoredText, owners: np.ndarray, nats: np.ndarray) -> Quality:
    return Quality(_by_document(owners, nats), _by_document(owners), text.num_words, text.num_bytes, text.label)
