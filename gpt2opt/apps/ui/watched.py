"""A model whose decoder is watched: the time of each call, and the logits that it returned last."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt2opt.decoding.decoder import Decoder, Model, as_numpy


class WatchedModel:
    """A `Model` whose decoders are watched. decoder_now: the one that was made last."""

    def __init__(self, model: Model):
        self.model, self.context = model, model.context

    def decoder(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 0) -> "WatchedDecoder":
        self.decoder_now = WatchedDecoder(self.model.decoder(prompts, max_new_tokens), sum(map(len, prompts)))
        return self.decoder_now


class WatchedDecoder:
    """A `Decoder` that keeps what the page shows of another one.

    prompt_tokens: tokens that `prefill` reads, in prefill_s seconds (None before). decode_s: seconds that `decode` took in all its
    calls, `decoded` of them. Both are the model's own time: not that of choosing tokens, nor that of other streams. logits: (B, V), those
    of the last call, to keep.
    """

    def __init__(self, decoder: Decoder, prompt_tokens: int):
        self.decoder, self.prompt_tokens = decoder, prompt_tokens
        self.prefill_s: float | None = None
        self.decode_s, self.decoded = 0.0, 0

    def prefill(self) -> np.ndarray:
        self.prefill_s = self._call(self.decoder.prefill)
        return self.logits

    def decode(self, ids: Any) -> np.ndarray:
        self.decode_s += self._call(self.decoder.decode, ids)
        self.decoded += 1
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        self.decoder.keep(rows)

    def speed(self) -> dict[str, Any]:
        """Return the figures as the page gets them."""
        return {name: getattr(self, name) for name in ("prompt_tokens", "prefill_s", "decode_s", "decoded")}

    def _call(self, function: Callable[..., Any], *arguments: Any) -> float:
        start = time.perf_counter()
        logits = function(*arguments)
        seconds = time.perf_counter() - start
        self.logits = as_numpy(logits).copy()  # the model overwrites them, perhaps for another stream
        return seconds
