"""What a race gave: frozen, with its raw samples; and the figures and ratios that are read from it."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.race.engines import OURS
from experiments.race.engines.base import Case, Fidelity, Timing
from experiments.race.engines.ours import OPENVINO, Ours
from experiments.race.quality import HeldOut
from gpt2opt.measure.limits import Limits
from gpt2opt.measure.results import percentile
from gpt2opt.measure.stats import Estimate, paired_ratio

MAIN = Case(512, 128)
SHORT = Case(32, 32)
MIDDLE = Case(128, 2)
BATCHED = (Case(32, 32, 4), Case(32, 32, 16))
REPEATING = Case(256, 64, text="repeating")
CASES = (SHORT, MIDDLE, MAIN, *BATCHED, REPEATING)


@dataclass(frozen=True)
class Shape:
    """Weights that a token is multiplied with: of the block matmuls, and of the head, which is the token embedding too."""

    block_weights: int
    head_weights: int


@dataclass(frozen=True)
class Models:
    """The two models of a race, on disk; ids run below `vocab_size`, sequences up to `context` tokens.

    weights: where they are from, in words. heads, kept_heads: of each layer, before and after pruning. distinct_tokens: from this id on,
    a stretched model repeats the tokens before; None where it does not.
    """

    weights: str
    heads: int
    kept_heads: int
    vocab_size: int
    context: int
    full: Shape
    pruned: Shape
    distinct_tokens: int | None = None

    @property
    def pruned_share(self) -> str:
        return f"{self.heads - self.kept_heads} of {self.heads} heads ({1 - self.kept_heads / self.heads:.1%})"


@dataclass(frozen=True)
class CaseTimings:
    """Timings of one case, one per round."""

    case: Case
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class EngineResult:
    """One engine. left_out: why it is not in the race. peak_rss_bytes: of loading and generating. prepare_peak_rss_bytes: of converting.

    fidelity: to torch FP32 of the same weights, those of `shape`. decode: what decodes, of an engine that has more than one way; None in
    results from before ours had a decode step of its own.
    """

    name: str
    package: str
    version: str | None
    note: str
    full_heads: bool
    shape: Shape
    block_bytes: float
    head_bytes: float
    disk_bytes: int | None = None
    peak_rss_bytes: int | None = None
    prepare_peak_rss_bytes: int | None = None
    left_out: str | None = None
    cases: tuple[CaseTimings, ...] = ()
    fidelity: Fidelity | None = None
    decode: str | None = None

    @property
    def read_bytes(self) -> float:
        """Return the bytes of weights that one decoded token needs."""
        return self.shape.block_weights * self.block_bytes + self.shape.head_weights * self.head_bytes

    def operations(self, tokens: int) -> int:
        """Return the multiplications and additions of the weights for a prompt of which the last position gets logits."""
        return 2 * (self.shape.block_weights * tokens + self.shape.head_weights)

    def timings(self, case: Case) -> tuple[Timing, ...]:
        return next((taken.timings for taken in self.cases if taken.case == case), ())


@dataclass(frozen=True)
class GrowthPoint:
    """One engine at one context and batch; the memory is that of a fresh process that did only this."""

    engine: str
    case: Case
    timings: tuple[Timing, ...]
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class RaceResult:
    """One race, with all its raw samples. rounds: that are done. limits: of the machine, one measurement a round.

    held_out: what quality was measured on; None in results from before it was.
    """

    created: str
    environment: dict[str, Any]
    size: str
    models: Models
    rounds: int
    limits: tuple[Limits, ...]
    engines: tuple[EngineResult, ...]
    growth: tuple[GrowthPoint, ...] = ()
    held_out: HeldOut | None = None
    schema: str = "gpt2opt.race/4"

    @property
    def raced(self) -> list[EngineResult]:
        return [engine for engine in self.engines if not engine.left_out]

    def engine(self, name: str) -> EngineResult:
        return next(engine for engine in self.engines if engine.name == name)

    @property
    def ours(self) -> EngineResult:
        return self.engine(Ours.name)

    @property
    def own_step(self) -> bool:
        """Return whether ours decoded by its own decode step: neither before there was one nor where it could not be used."""
        return self.ours.decode not in (None, OPENVINO)

    def limit(self, rate: str) -> float:
        """Return the best that one of the rates of `Limits` was in the whole race."""
        return max(getattr(limits, rate) for limits in self.limits)


def tpot(timing: Timing, case: Case) -> float:
    return statistics.median(timing.later_s)


def throughput(timing: Timing, case: Case) -> float:
    """Return new tokens per second of all sequences together; the time includes prefill."""
    return case.batch_size * case.new_tokens / timing.total_s


@dataclass(frozen=True)
class Figure:
    """One column of the result and what it takes from the timing of a round; `unit` is the one it is shown in."""

    name: str
    unit: str
    case: Case
    of: Callable[[Timing, Case], float]

    @property
    def more_is_better(self) -> bool:
        return self.unit == "tokens/s"

    def per_round(self, engine: EngineResult) -> list[float]:
        return [self.of(timing, self.case) for timing in engine.timings(self.case)]

    def median(self, engine: EngineResult) -> float:
        """Return the median of an engine that has this figure."""
        return statistics.median(self.per_round(engine))

    def ratio(self, engine: EngineResult, ours: EngineResult) -> Estimate | None:
        """Return engine ÷ ours; None where one of them was not measured."""
        values, base = self.per_round(engine), self.per_round(ours)
        return paired_ratio(values, base) if values and base else None


FIGURES = (
    *(Figure(f"TTFT {case.prompt_tokens}", "ms", case, lambda timing, _: timing.first_s) for case in (SHORT, MIDDLE, MAIN)),
    Figure("TPOT after 512", "ms", MAIN, tpot),
    Figure("p95 of TPOT", "ms", MAIN, lambda timing, _: percentile(timing.later_s, 0.95)),
    Figure("512 + 128 whole", "s", MAIN, lambda timing, _: timing.total_s),
    *(Figure(f"batch {case.batch_size}", "tokens/s", case, throughput) for case in BATCHED),
)
TTFT_512, TPOT, _, WHOLE = FIGURES[2:6]
EFFECTIVE_TPOT = Figure("TPOT on a repeating text", "ms", REPEATING, lambda timing, _: statistics.mean(timing.later_s))


@dataclass(frozen=True)
class Bound:
    """The time that a figure can't fall below if no engine is faster than the probe: its work ÷ the best rate of the whole race."""

    figure: Figure
    rate: str
    work: Callable[[EngineResult], float]

    def least(self, result: RaceResult, engine: EngineResult) -> float:
        return self.work(engine) / result.limit(self.rate)

    def ratio(self, result: RaceResult, engine: EngineResult) -> Estimate:
        """Return the figure of an engine that has it ÷ this."""
        values = self.figure.per_round(engine)
        return paired_ratio(values, [self.least(result, engine)] * len(values))

    def faster(self, result: RaceResult) -> list[EngineResult]:
        """Return the engines that were below it in some round: with one of these it is no limit."""
        return [engine for engine in result.raced if min(self.figure.per_round(engine), default=math.inf) < self.least(result, engine)]


READING = Bound(TPOT, "read_bytes_per_s", lambda engine: engine.read_bytes)
COMPUTING = Bound(TTFT_512, "int8_ops_per_s", lambda engine: engine.operations(TTFT_512.case.prompt_tokens))


def best_peer(result: RaceResult) -> EngineResult | None:
    """Return the peer that takes the least time for a whole call of 512 + 128 tokens."""
    return min(peers(result, WHOLE), key=WHOLE.median, default=None)


def peers(result: RaceResult, figure: Figure) -> list[EngineResult]:
    """Return the engines not of ours that have this figure."""
    return [engine for engine in result.raced if engine.name not in OURS and figure.per_round(engine)]
