"""Latency of generation: time to first token (TTFT) and time per output token (TPOT), of models that take turns."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from gpt2opt.decoding.decoder import Decoder, Greedy
from gpt2opt.environment import CpuWatch
from gpt2opt.measure.child import Child
from gpt2opt.measure.results import Latency
from gpt2opt.measure.turns import Contestants, Here, Start, in_child
from gpt2opt.settings import is_whole

TIMED_RUNS = 12
Timer = Callable[[Callable[[], None]], float]  # does some work and returns the seconds it took


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


def compare_latency(
    decoders: Mapping[str, Decoder | Callable[[], Child]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    runs: int = TIMED_RUNS,
    timer: Timer = wall_time,
) -> dict[str, Latency]:
    """Time each token of greedy generations of one or several models, one run of each in every round, after a warm-up; see `turns`.

    A slow minute of the machine then affects all models, and their samples can be paired run by run; see `stats.paired_ratio`.

    Args:
        decoders: name -> `decoder_in_child(…)`, or a decoder in this process; the same prompt for all.
        prompt_tokens: of that prompt; stored with the result.
        new_tokens: tokens that a run generates, the first included; at least 2.
        runs: number of timed runs. Each gives one TTFT sample and new_tokens − 1 TPOT samples.
        timer: of the decoders in this process: `wall_time`, or `cuda_time` for models on a GPU.

    Returns:
        The latency of each by name; that of the first one twice, the second time as "… again", unless it is the only one.
    """
    if not is_whole(new_tokens, 2) or not is_whole(runs, 1):
        raise ValueError(f"new_tokens={new_tokens}, runs={runs}: expected at least 2 tokens (TTFT and one TPOT) and 1 run")
    starts: dict[str, Start] = {name: each if callable(each) else Here(TimedDecoder(each, timer)) for name, each in decoders.items()}
    with Contestants(starts) as contestants:
        turns = contestants.take_turns("run", [new_tokens], rounds=runs, seconds=sum)
        next(turns)
        watch = CpuWatch()
        *_, outcome = turns
        others = watch.others_share()
    return {
        name: Latency(
            tuple(times[0] for times in samples[new_tokens]),
            tuple(step for times in samples[new_tokens] for step in times[1:]),
            outcome.warmups[name][new_tokens][0], 1, prompt_tokens, new_tokens, outcome.warmups[name][new_tokens][1], others,
        )
        for name, samples in outcome.samples.items()
    }  # fmt: skip


class TimedDecoder:
    """A model with its prompt, whose generations are timed token by token."""

    def __init__(self, decoder: Decoder, timer: Timer):
        self.decoder, self.timer = decoder, timer

    def run(self, new_tokens: int) -> list[float]:
        """Generate greedily and return the seconds of each token; those of the first include reading the prompt."""
        greedy = Greedy(self.decoder)
        return [self.timer(greedy.start), *(self.timer(greedy.step) for _ in range(new_tokens - 1))]


def decoder_in_child(make: Callable[..., Decoder], *arguments: Any, timer: Timer = wall_time) -> Callable[[], Child]:
    """Return what starts a process that makes a decoder, `make(*arguments)`, and times it. `make` is a function of a module."""
    return in_child(_timed_decoder, make, arguments, timer)


def _timed_decoder(make: Callable[..., Decoder], arguments: tuple, timer: Timer) -> TimedDecoder:
    return TimedDecoder(make(*arguments), timer)
