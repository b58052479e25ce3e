"""Latency statistics of serving, as the user of a deployed model sees them, each beside the least that the machine allows.

A step reads all weights once and, for each sequence, the keys and values of the tokens before it; and it multiplies. So it can't take
less than its bytes ÷ read bandwidth, nor than its operations ÷ FP32 rate (Williams et al. 2009, "Roofline"). Attention's own
multiplications are left out, so that the least time is a little too low for long texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2opt.decoding.generation import Token
from gpt2opt.measure.limits import Limits
from gpt2opt.measure.results import Latency, percentile
from gpt2opt.measure.stats import Estimate, paired_ratio

BYTES_PER_WEIGHT = 4


@dataclass(frozen=True)
class Work:
    """What a GPT-2 in FP32 has to read and multiply: the weights of the blocks' matmuls and of the head, keys and values of one token."""

    block_weights: int
    head_weights: int
    kv_bytes: int

    def least_s(self, limits: Limits, sequences: int, tokens: int, cached: int) -> float:
        """Return the least seconds of a step that reads tokens, with others in the KV cache, both of all sequences together."""
        read = (self.block_weights + self.head_weights) * BYTES_PER_WEIGHT + self.kv_bytes * cached
        operations = 2 * (self.block_weights * tokens + self.head_weights * sequences)
        return max(read / limits.read_bytes_per_s, operations / limits.fp32_ops_per_s)


@dataclass(frozen=True)
class TimedRun:
    """One generation, step by step: seconds, new tokens of all sequences, and the least seconds. The first step reads the prompts."""

    seconds: tuple[float, ...]
    tokens: tuple[int, ...]
    least_s: tuple[float, ...]


@dataclass(frozen=True)
class Statistic:
    """One figure: samples in seconds (unit `ms`) or in tokens/s; distance: measured time ÷ least time, over the runs."""

    name: str
    unit: str
    samples: tuple[float, ...]
    distance: Estimate

    @property
    def p50(self) -> float:
        return percentile(self.samples, 0.5)

    @property
    def p95(self) -> float:
        """Return what 95% of the samples reach: times are at most this, rates at least."""
        return percentile(self.samples, 0.95 if self.unit == "ms" else 0.05)


@dataclass(frozen=True)
class ServingStatistics:
    """The timed generations of some prompts. prompt_tokens: of each prompt. work: of the model. limits: of the machine, as it was then."""

    model: str
    backend: str
    num_cores: int
    prompt_tokens: tuple[int, ...]
    work: Work
    limits: Limits
    runs: tuple[TimedRun, ...]

    @property
    def figures(self) -> tuple[Statistic, ...]:
        """Return TTFT, decode tokens/s, total tokens/s and end to end; decoding is left out if every text ended with its first token."""
        runs, later = self.runs, [run for run in self.runs if len(run.seconds) > 1]
        first_s, whole_s = [run.seconds[0] for run in runs], [sum(run.seconds) for run in runs]
        to_whole = paired_ratio(whole_s, [sum(run.least_s) for run in runs])
        first = Statistic("time to first token", "ms", tuple(first_s), paired_ratio(first_s, [run.least_s[0] for run in runs]))
        total = Statistic("total", "tokens/s", tuple(sum(run.tokens) / s for run, s in zip(runs, whole_s, strict=True)), to_whole)
        whole = Statistic("end to end", "ms", tuple(whole_s), to_whole)
        if not later:
            return first, total, whole
        rates = tuple(tokens / s for run in later for tokens, s in zip(run.tokens[1:], run.seconds[1:], strict=True))
        to_decode = paired_ratio([sum(run.seconds[1:]) for run in later], [sum(run.least_s[1:]) for run in later])
        return first, Statistic("decode", "tokens/s", rates, to_decode), total, whole


def timed_run(
    steps: Sequence[Sequence[Token]], seconds: Sequence[float], prompt_tokens: Sequence[int], work: Work, limits: Limits
) -> TimedRun:
    """Return a run with the least seconds of its steps. steps: the tokens of each; prompt_tokens: of each sequence."""
    least = [work.least_s(limits, len(prompt_tokens), sum(prompt_tokens), 0)]
    for number, tokens in enumerate(steps[1:]):
        cached = sum(prompt_tokens[token.sequence] + number for token in tokens)
        least.append(work.least_s(limits, len(tokens), len(tokens), cached))
    return TimedRun(tuple(seconds), tuple(map(len, steps)), tuple(least))


@dataclass(frozen=True)
class CorePoint:
    """One number of cores: the latency with it, and what the machine allows that number of cores."""

    num_cores: int
    latency: Latency
    limits: Limits


@dataclass(frozen=True)
class Scaling:
    """A model with 1 to all cores, timed in turns on one prompt; the points go from 1 core up."""

    model: str
    backend: str
    work: Work
    points: tuple[CorePoint, ...]

    def least_tpot_s(self, point: CorePoint) -> float:
        """Return the least time per output token with the cores of a point, in the middle of the generation."""
        latency = point.latency
        cached = latency.batch_size * (latency.prompt_tokens + latency.new_tokens // 2)
        return self.work.least_s(point.limits, latency.batch_size, latency.batch_size, cached)

    def least_ttft_s(self, point: CorePoint) -> float:
        latency = point.latency
        return self.work.least_s(point.limits, latency.batch_size, latency.batch_size * latency.prompt_tokens, 0)


def core_counts(most: int) -> list[int]:
    """Return the numbers of cores of a scaling curve: each twice the one before, and the last is all, as in [1, 2, 4, 8, 12]."""
    return sorted({2**power for power in range(most.bit_length())} | {most})
