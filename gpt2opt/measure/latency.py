"""Latency of generation: time to first token (TTFT) and time per output token (TPOT), of one model or of several that take turns."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from gpt2opt.decoding.decoder import Decoder, Greedy
from gpt2opt.environment import CpuWatch
from gpt2opt.measure.results import Latency
from gpt2opt.settings import is_whole

TIMED_RUNS = 12
"""Timed runs of each model, unless a caller asks for another number."""
MAX_WARMUP_RUNS = 10
"""Most untimed runs before them. There are at least two, since one run alone does not show whether runs still get faster."""
STEADY = 0.95
"""The warm-up ends with the first run that takes more than this share of the fastest run before it."""

Timer = Callable[[Callable[[], None]], float]
"""Does some work and returns the seconds it took."""


def wall_time(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cuda_time(work: Callable[[], None]) -> float:
    """Time work on a GPU by CUDA events. It waits for the GPU, because calls return before their work is done."""
    import torch

    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def measure_latency(
    decoder: Decoder, *, prompt_tokens: int, new_tokens: int, runs: int = TIMED_RUNS, batch_size: int = 1, timer: Timer = wall_time
) -> Latency:
    """Time each token of several greedy generations, after a warm-up that lasts until runs stop getting faster.

    Args:
        decoder: the model with its prompt.
        prompt_tokens: number of prompt tokens; stored with the result.
        new_tokens: tokens that a run generates, the first included; at least 2.
        runs: number of timed runs. Each gives one TTFT sample and new_tokens − 1 TPOT samples.
        batch_size: number of sequences that the decoder reads at once; stored with the result.
        timer: `wall_time`, or `cuda_time` for a model on a GPU.

    Raises:
        ValueError: new_tokens < 2 or runs < 1.
    """
    return compare_latency(
        {"": decoder}, prompt_tokens=prompt_tokens, new_tokens=new_tokens, runs=runs, batch_size=batch_size, timer=timer
    )[""]


def compare_latency(
    decoders: Mapping[str, Decoder],
    *,
    prompt_tokens: int,
    new_tokens: int,
    runs: int = TIMED_RUNS,
    batch_size: int = 1,
    timer: Timer = wall_time,
) -> dict[str, Latency]:
    """Time several models in turns. In each round every model does one run; rounds come in pairs of a random order and its reverse.

    A slow minute of the machine then affects all models, and their samples can be paired run by run; see `stats.paired_ratio`.

    Args:
        decoders: name -> a model with its prompt, the same prompt for all.
        prompt_tokens, new_tokens, runs, batch_size, timer: as in `measure_latency`.

    Raises:
        ValueError: as `measure_latency`.
    """
    if not is_whole(new_tokens, 2) or not is_whole(runs, 1):
        raise ValueError(f"new_tokens={new_tokens}, runs={runs}: expected at least 2 tokens (TTFT and one TPOT) and 1 run")

    def run(decoder: Decoder) -> list[float]:
        greedy = Greedy(decoder)
        return [timer(greedy.start), *(timer(greedy.step) for _ in range(new_tokens - 1))]

    warmups = {name: warm_up(partial(run, decoder)) for name, decoder in decoders.items()}
    samples: dict[str, list[list[float]]] = {name: [] for name in decoders}
    watch = CpuWatch()
    for order in turn_orders(list(decoders), runs):
        for name in order:
            samples[name].append(run(decoders[name]))
    others = watch.others_share()
    return {
        name: Latency(
            tuple(times[0] for times in taken),
            tuple(step for times in taken for step in times[1:]),
            warmups[name][0], batch_size, prompt_tokens, new_tokens, warmups[name][1], others,
        )
        for name, taken in samples.items()
    }  # fmt: skip


def turn_orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yield the order of turns of each round: pairs of a random order and its reverse.

    Every second round reverses the order of the one before it, so that a steady drift of the machine favours nobody.
    """
    draw, order = random.Random(0), list(names)
    for number in range(rounds):
        order = order[::-1] if number % 2 else draw.sample(order, len(order))
        yield order


def warm_up(run: Callable[[], list[float]]) -> tuple[int, bool]:
    """Run until runs stop getting faster; return the number of runs, and whether they stopped within `MAX_WARMUP_RUNS`."""
    best = sum(run())
    for done in range(2, MAX_WARMUP_RUNS + 1):
        seconds = sum(run())
        if seconds > STEADY * best:
            return done, True
        best = min(best, seconds)
    return MAX_WARMUP_RUNS, False
