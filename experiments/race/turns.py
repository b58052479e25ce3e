"""A race in interleaved rounds: each engine alone in its own process, taking turns, so that all meet the same state of the machine."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from experiments.race.engines.base import Timing
from gpt2opt.measure.child import Child, thread_settings

SETTLE_S = 0.05
"""Between two turns: the threads of the one before spin for some milliseconds before they sleep."""
TOO_SLOW = 12
"""An engine that takes so many times as long as the first contestant on its first case would take most of the race: it leaves."""


@dataclass(frozen=True)
class Case:
    """What one call is asked: B prompts of T tokens, continued by `new_tokens` each.

    text: `random`, every token drawn by itself, or `repeating`, a pattern of 16 tokens over and over.
    """

    prompt_tokens: int
    new_tokens: int
    batch_size: int = 1
    text: str = "random"

    def __str__(self) -> str:
        return f"{self.batch_size}×({self.prompt_tokens}+{self.new_tokens}){'' if self.text == 'random' else ' ' + self.text}"


class Contestant(Protocol):
    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        """Continue (B, T) prompts greedily and time every token."""


class RemoteEngine:
    """A contestant in a process of its own."""

    def __init__(self, engine: type, folder, threads: int):
        self._child = Child(loaded, engine, folder, threads, environment=thread_settings(threads))
        self.close = self._child.close

    def generate(self, prompts: np.ndarray, new_tokens: int) -> Timing:
        return self._child.call("generate", prompts, new_tokens)


def loaded(engine: type, folder, threads: int):
    """Return an engine, ready to generate."""
    contestant = engine()
    contestant.load(folder, threads)
    return contestant


def one_line(text: str, limit: int = 160) -> str:
    """Return the last line of a complaint that says something, cut to `limit` characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else ""


def make_prompts(case: Case, vocab_size: int, *seed: int) -> np.ndarray:
    """Return (B, T) int64 ids, the same for the same seed."""
    draw = np.random.default_rng((*seed, case.prompt_tokens, case.batch_size))
    length = case.prompt_tokens if case.text == "random" else 16
    ids = draw.integers(vocab_size, size=(case.batch_size, length))
    return np.ascontiguousarray(np.tile(ids, (1, -(-case.prompt_tokens // length)))[:, : case.prompt_tokens])


@dataclass
class Outcome:
    """What a race gave: timings of each contestant on each of its cases, one per round; and why some left it."""

    timings: dict[str, dict[Case, list[Timing]]]
    left: dict[str, str]


def race(
    contestants: Mapping[str, Contestant],
    cases: Mapping[str, Sequence[Case]],
    *,
    rounds: int,
    vocab_size: int,
) -> Iterator[Outcome]:
    """Let contestants take turns on every case, in a new random order for each, all on the same prompts.

    Args:
        contestants: by name; the first is the one that "too slow" is measured by.
        cases: of each contestant, from small to large; prompts differ from call to call.
        rounds: timed ones, after a warm-up.
        vocab_size: prompts hold ids below it.

    Yields:
        The same outcome, after the warm-up and after each round, with what there is by then; who left it has no timings.
    """
    outcome = Outcome({name: {case: [] for case in cases[name]} for name in contestants}, {})
    every_case = list(dict.fromkeys(case for name in contestants for case in cases[name]))
    _warm_up(contestants, cases, vocab_size, outcome)
    yield outcome
    draw = np.random.default_rng(0)
    for number in range(1, rounds + 1):
        for case in every_case:
            prompts = make_prompts(case, vocab_size, number)
            racing = [name for name in contestants if case in cases[name] and name not in outcome.left]
            for name in draw.permutation(racing).tolist():
                timing = _turn(contestants[name], name, case, prompts, outcome)
                if timing:
                    outcome.timings[name][case].append(timing)
        for name in outcome.left:
            outcome.timings[name] = {}
        yield outcome


def _warm_up(contestants, cases, vocab_size: int, outcome: Outcome) -> None:
    """Let every contestant do each case once, and its first case once more: only that second call tells if it is slow or compiled."""
    reference: float | None = None
    for name, contestant in contestants.items():
        for call, case in enumerate((*cases[name][:1], *cases[name])):
            timing = _turn(contestant, name, case, make_prompts(case, vocab_size, 0, call), outcome)
            if timing and call == 1:
                reference = reference or timing.total_s
                if timing.total_s > TOO_SLOW * reference:
                    outcome.left[name] = f"too slow: {timing.total_s / reference:.0f} × the first engine's time for {case} tokens"


def _turn(contestant: Contestant, name: str, case: Case, prompts: np.ndarray, outcome: Outcome) -> Timing | None:
    if name in outcome.left:
        return None
    time.sleep(SETTLE_S)
    try:
        timing = contestant.generate(prompts, case.new_tokens)
    except Exception as error:
        outcome.left[name] = f"failed on {case} tokens: {one_line(str(error))}"
        return None
    if len(timing.later_s) != case.new_tokens - 1:
        outcome.left[name] = f"made {len(timing.later_s) + 1} tokens where {case.new_tokens} were asked for"
        return None
    return timing
