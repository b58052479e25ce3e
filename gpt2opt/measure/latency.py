"""Latency of generation: time to first token and time per output token, apart."""

import time
from collections.abc import Callable
from typing import Protocol

from gpt2opt.report.results import Latency


class Decoder(Protocol):
    """Greedy generation, one call a token."""

    def start(self) -> None:
        """Read the prompt into an empty KV cache and choose the first new token."""

    def step(self) -> None:
        """Read the last token and choose the next."""


def measure_latency(
    decoder: Decoder,
    *,
    prompt_tokens: int,
    new_tokens: int,
    runs: int = 5,
    warmup_runs: int = 2,
    batch_size: int = 1,
    synchronize: Callable[[], None] = lambda: None,
) -> Latency:
    """Time every token of several generations by itself.

    Args:
        decoder: the model at work on its prompt.
        prompt_tokens: length of that prompt; recorded with the result.
        new_tokens: tokens a run generates, the first included; at least 2.
        runs: timed runs. Each gives one TTFT sample and new_tokens − 1 TPOT samples.
        warmup_runs: runs before these, not timed: they fill caches and compile kernels.
        batch_size: sequences the decoder works on at once; recorded with the result.
        synchronize: called before every reading of the clock; a GPU needs it, since its calls return before their work is done.

    Raises:
        ValueError: new_tokens < 2 or runs < 1.
    """
    if new_tokens < 2 or runs < 1:
        raise ValueError(f"new_tokens={new_tokens}, runs={runs}: expected at least 2 tokens (TTFT and one TPOT) and 1 run")
    first: list[float] = []
    later: list[float] = []
    for run in range(warmup_runs + runs):
        samples = [_timed(decoder.start, synchronize), *(_timed(decoder.step, synchronize) for _ in range(new_tokens - 1))]
        if run >= warmup_runs:
            first.append(samples[0])
            later += samples[1:]
    return Latency(tuple(first), tuple(later), warmup_runs, batch_size, prompt_tokens, new_tokens)


def _timed(act: Callable[[], None], synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    act()
    synchronize()
    return time.perf_counter() - start
