"""One protocol of decoding, for the metrics, the races and `generate`: read the prompts, then read one token per sequence and step.

A decoder returns logits, and whoever drives it chooses the tokens. Logits are arrays of numpy or tensors of torch; only what both have in
common is used here, so that nothing of torch is loaded where an IR is served.
"""

from typing import Any, Protocol

Logits = Any
"""(B, V) float, a numpy array or a torch tensor; they hold until the next call of the decoder."""


class Decoder(Protocol):
    """A model at work on B prompts of one length, with a KV cache of its own."""

    def prefill(self) -> Logits:
        """Read the prompts into an empty KV cache; return the logits (B, V) of their last tokens."""
        ...

    def decode(self, ids: Any) -> Logits:
        """Read one further token of each sequence, ids (B, 1); return the logits (B, V) behind them."""
        ...


class Greedy:
    """Greedy decoding, one call per token. next_ids: the tokens (B, 1) that were chosen last."""

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
