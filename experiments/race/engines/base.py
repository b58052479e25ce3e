"""What an engine of the race is: how to convert GPT-2 for it, load it, and time every token that it makes.

All decode greedily, keep a KV cache, go on after end-of-text, and want logits of the last position only where their API offers that.
Nothing heavy is imported before an engine is asked to work: a process that races one engine holds that engine's libraries alone.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2opt.decoding.decoder import Decoder, Greedy, Logits


@dataclass(frozen=True)
class Timing:
    """One generate call on (B, T) prompts: seconds to the first token, and to each later one from the one before it."""

    first_s: float
    later_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        return self.first_s + sum(self.later_s)


def timing(marks: Sequence[float]) -> Timing:
    """Return the timing of a call from its clock readings: its start, then one when each token was there."""
    steps = [after - before for before, after in itertools.pairwise(marks)]
    return Timing(steps[0], tuple(steps[1:]))


class Engine:
    """One way to run GPT-2 on a CPU. The race calls `prepare` once, in a process of its own, then `load` and `generate` in another.

    name: in tables. package: the distribution it needs beyond ours; where that is not installed the engine is left out. made_from: the
    engine whose folder `prepare` starts from; None for the model directory itself. full_heads: it can't run pruned heads and gets the
    unpruned model. files: what of its folder counts as its size on disk. block_bytes, head_bytes: stored bytes per weight, scales
    included, of the block matmuls and of the output head; decoding reads each of them once per token. texts: the kinds of prompt that
    it races on.
    """

    name: str
    package: str
    made_from: "type[Engine] | None" = None
    full_heads = False
    files = ("*",)
    block_bytes: float = 4
    head_bytes: float = 4
    texts: tuple[str, ...] = ("random",)
    note = ""

    def prepare(self, source: Path, folder: Path) -> str | None:
        """Convert what lies in `source` into `folder`, which exists and is empty; return a remark on the result, or None."""
        raise NotImplementedError

    def load(self, folder: Path, threads: int) -> None:
        """Get ready to generate with that many threads."""
        raise NotImplementedError

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        """Continue (B, T) int64 prompts greedily by `new_tokens` each, at least 2, and time every token."""
        raise NotImplementedError


class Driven(Engine):
    """An engine that gives a `Decoder`, so that its caller runs the loop."""

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        return time_greedy(self.decoder(prompts, new_tokens), new_tokens)

    def decoder(self, prompts: np.ndarray, new_tokens: int) -> Decoder:
        """Return a decoder of (B, T) prompts, with room for so many new tokens; not timed."""
        raise NotImplementedError


class Stepwise(Driven):
    """An engine that is called step by step: a call reads the tokens that follow those in the KV cache and returns logits."""

    def decoder(self, prompts: np.ndarray, new_tokens: int) -> Decoder:
        batch, length = prompts.shape
        self.open(batch, length + new_tokens)
        return StepwiseDecoder(self, prompts)

    def open(self, batch: int, context: int) -> None:
        """Make an empty KV cache, where the engine wants one of a known size; not timed."""

    def read(self, ids: Any, past: int) -> Logits:
        """Read (B, T) ids that follow `past` cached ones, 0 for an empty cache; return the logits (B, V) of the last position."""
        raise NotImplementedError


class StepwiseDecoder:
    """A `Decoder` over an engine that is read step by step."""

    def __init__(self, engine: Stepwise, prompts: np.ndarray):
        self.engine, self.prompts = engine, prompts

    def prefill(self) -> Logits:
        self.past = self.prompts.shape[1]
        return self.engine.read(self.prompts, 0)

    def decode(self, ids: Any) -> Logits:
        self.past += 1
        return self.engine.read(ids, self.past - 1)


def time_greedy(decoder: Decoder, new_tokens: int) -> Timing:
    """Decode greedily and time every token."""
    greedy = Greedy(decoder)
    marks = [time.perf_counter()]
    for act in (greedy.start, *[greedy.step] * (new_tokens - 1)):
        act()
        marks.append(time.perf_counter())
    return timing(marks)
