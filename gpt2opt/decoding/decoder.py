"""One protocol of decoding, for the metrics, the races and `generate`: read the prompts, then read one token per sequence and step.

A decoder returns logits, and its caller chooses the tokens. Logits are arrays of numpy or tensors of torch; only what both have in common
is used here, so that nothing of torch is loaded when an IR is served.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Logits = Any
"""(B, V) float, a numpy array or a torch tensor; they hold until the next call of the decoder."""


class Decoder(Protocol):
    """A model at work on B prompts, with a KV cache of its own. What drives a decoder without `keep` leaves its sequences as they are."""

    def prefill(self) -> Logits:
        """Read the prompts into an empty KV cache; return the logits (B, V) of their last tokens."""

    def decode(self, ids: Any) -> Logits:
        """Read one further token of each sequence, ids (B, 1); return the logits (B, V) behind them."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order: one that is not named leaves the batch, one that is named twice is copied."""


class Model(Protocol):
    """A loaded model, whatever runs it. context: the largest number of tokens of a prompt and what is generated from it."""

    context: int

    def decoder(self, prompts: Any, max_new_tokens: int = 0) -> Decoder:
        """Return a decoder of B prompts, token ids of any lengths, each with room for `max_new_tokens`, or raise ValueError."""


class Greedy:
    """Greedy decoding of a fixed number of tokens, for measurements: every run does the same work. next_ids: (B, 1), chosen last."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def start(self) -> None:
        """Read the prompts and choose the first new tokens."""
        self.next_ids = self.decoder.prefill().argmax(-1)[:, None]

    def step(self) -> None:
        """Read the tokens that were chosen last and choose the next ones."""
        self.next_ids = self.decoder.decode(self.next_ids).argmax(-1)[:, None]

    def generate(self, new_tokens: int) -> list[list[int]]:
        """Read the prompts and generate; return the new tokens of each, B lists of `new_tokens`."""
        self.start()
        columns = [self.next_ids]
        for _ in range(new_tokens - 1):
            self.step()
            columns.append(self.next_ids)
        return [[int(column[row, 0]) for column in columns] for row in range(len(columns[0]))]


def as_numpy(logits: Logits) -> np.ndarray:
    """Return logits, an array or a tensor on any device, as an array."""
    return logits if isinstance(logits, np.ndarray) else logits.float().cpu().numpy()


def check_prompts(prompts: Sequence[Any] | np.ndarray, new_tokens: int, context: int, vocab_size: int) -> list[np.ndarray]:
    """Return prompts, (B, T) or a list of token ids for each, as int64 arrays.

    Raises:
        ValueError: there is no prompt, they are no token ids of this vocabulary, or one is empty or leaves no room for `new_tokens`.
    """
    texts = [np.asarray(prompt) for prompt in prompts]
    if not texts or any(ids.ndim != 1 for ids in texts):
        raise ValueError(f"ids of shape {np.shape(prompts)}, expected (prompts, tokens) with at least one prompt")
    for ids in texts:
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"ids of type {ids.dtype}, expected integers")
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise ValueError(
                f"token ids from {ids.min()} to {ids.max()}, expected from 0 to {vocab_size - 1}; use the model's own tokenizer"
            )
        check_fits(len(ids), new_tokens, context)
    return [ids.astype(np.int64) for ids in texts]


def check_fits(length: int, new_tokens: int, context: int) -> None:
    """Raise ValueError if a prompt of this many tokens and the new ones don't fit into the context."""
    if new_tokens >= context:
        raise ValueError(f"{new_tokens} new tokens don't fit into the context of {context}; ask for at most {context - 1}")
    if not 0 < length <= context - new_tokens:
        advice = "shorten it, or keep its end with truncate" if length else "write at least a word"
        raise ValueError(
            f"the prompt has {length} tokens; with {new_tokens} new ones, from 1 to {context - new_tokens} fit into the context "
            f"of {context}: {advice}"
        )
