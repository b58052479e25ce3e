"""Everything that is timed against something else takes turns here: interleaved rounds, in an order that changes from round to round.

Each contestant has a process of its own, so that none meets the caches, threads and memory that another one left. The first contestant is
started twice, the second time as "… again" (an A/A comparison): the ratio of these two shows what a difference of nothing looks like.
Samples of one round are a pair; `stats.paired_ratio` gives their ratio and its interval.
"""

import math
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from gpt2opt import environment
from gpt2opt.measure.child import Child, thread_settings

MAX_WARMUP_RUNS = 10  # at least two are needed, since one run alone does not show whether runs still get faster
STEADY = 0.95  # the warm-up ends with the first run that takes more than this share of the fastest run before it
SETTLE_S = 0.05  # pause before another process's turn: the threads of the one before spin for some milliseconds before they sleep
STARTED_AT_ONCE = 4  # processes, while nothing is timed yet: most of a start is importing libraries, on one core each


class Here:
    """An object of this process, called as a `Child` is: for contestants that can't have a process of their own."""

    def __init__(self, served: Any):
        self._served = served

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._served, method)(*arguments)

    def close(self) -> None:
        """Do nothing: the object belongs to its maker."""


Start = Callable[[], Child] | Here


def in_child(factory: Callable, *arguments: Any, threads: int | None = None, python: Path | None = None) -> Callable[[], Child]:
    """Return what starts a contestant in a process of its own, with a number of threads, by default all; see `Child`."""
    return partial(Child, factory, *arguments, environment=thread_settings(threads or environment.threads()), python=python)


def again(name: str) -> str:
    """Return the name of a contestant's second instance."""
    return f"{name} again"


@dataclass
class Outcome:
    """samples: name -> task -> one value per round; no tasks if the contestant left. warmups: number of runs, and if they got steady."""

    samples: dict[str, dict[Any, list]]
    warmups: dict[str, dict[Any, tuple[int, bool]]]


class LeftError(Exception):
    """A contestant has left; `Contestants.left` has the reason."""


class Contestants(AbstractContextManager["Contestants"]):
    """Started contestants, for a `with` block. left: who failed or was too slow -> the reason."""

    def __init__(self, starts: Mapping[str, Start], *, may_fail: bool = False, reserve_bytes: float = 0):
        """Start all contestants, and the first one twice, unless it is the only one.

        Args:
            starts: name -> what starts it, `in_child(…)`, or `Here(…)`, which then takes part twice if it is the first.
            may_fail: one that fails leaves, and the others go on. By default its error is raised.
            reserve_bytes: memory that must stay free beside those that have started.
        """
        self.left: dict[str, str] = {}
        self._may_fail, self._reserve_bytes = may_fail, reserve_bytes
        self._first = next(iter(starts), "")
        twice = {again(self._first): starts[self._first]} if len(starts) > 1 else {}
        self._starts = {**dict(list(starts.items())[:1]), **twice, **starts}
        self._workers: dict[str, Child | Here] = {}
        try:
            with ThreadPoolExecutor(STARTED_AT_ONCE) as pool:
                list(pool.map(self._start, self._starts))
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """Return who is still there: the first one, its second instance, and the others in their order."""
        return [name for name in self._starts if name not in self.left]

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def call(self, name: str, method: str, *arguments: Any, task: Hashable = None) -> Any:
        """Call a method of one contestant and return its value; raise LeftError if it fails now, or has left before.

        Its own error is raised instead unless contestants may fail.
        """
        if name in self.left:
            raise LeftError
        try:
            return self._workers[name].call(method, *arguments)
        except Exception as error:
            self._leave(name, f"failed{'' if task is None else f' on {task}'}: {one_line(error)}", error)
            raise LeftError from error

    def take_turns(
        self,
        method: str,
        tasks: Sequence | Mapping[str, Sequence],
        *,
        rounds: int,
        seconds: Callable[[Any], float] = float,
        arguments: Callable[[Any, int], tuple] = lambda task, number: (task,),
        too_slow: float = math.inf,
    ) -> Iterator[Outcome]:
        """Let all contestants call a method on every task in every timed round; yield the outcome so far after the warm-up and each round.

        Args:
            method: of the contestants' objects.
            tasks: what they do, from small to large, each hashable; or those of each name, if not all do the same.
            seconds: value of a call -> the seconds that it took, for the warm-up.
            arguments: (task, round) -> the arguments of the call, the same for all contestants; round 0 is the warm-up.
            too_slow: one that takes this many times as long as the first contestant on its first task leaves.
        """
        by_name = {**tasks} if isinstance(tasks, Mapping) else dict.fromkeys(self._starts, tasks)
        by_name.setdefault(again(self._first), by_name.get(self._first, ()))
        names = [name for name in self.names if by_name.get(name)]
        outcome = Outcome({name: {task: [] for task in by_name[name]} for name in names}, {name: {} for name in names})
        reference: tuple[float, str] | None = None
        for name in names:
            for task in by_name[name]:
                given = arguments(task, 0)
                with suppress(LeftError):
                    runs, steady, best = warm_up(lambda: seconds(self._turn(name, method, task, given)))  # noqa: B023
                    outcome.warmups[name][task] = runs, steady
                    if task == by_name[name][0]:
                        reference = reference or (best, name)
                        if best > too_slow * reference[0]:
                            self._leave(name, f"too slow: {best / reference[0]:.0f} × the time of {reference[1]} for {task}")
        yield outcome
        for number, order in enumerate(turn_orders(names, rounds), 1):
            for task in dict.fromkeys(chain(*by_name.values())):
                given = arguments(task, number)
                for name in order:
                    if task in outcome.samples[name]:
                        with suppress(LeftError):
                            outcome.samples[name][task].append(self._turn(name, method, task, given))
            outcome.samples |= {name: {} for name in self.left if name in outcome.samples}
            yield outcome

    def _turn(self, name: str, method: str, task: Hashable, arguments: tuple) -> Any:
        if isinstance(self._workers.get(name), Child):
            time.sleep(SETTLE_S)
        return self.call(name, method, *arguments, task=task)

    def _start(self, name: str) -> None:
        try:
            start = self._starts[name]
            self._workers[name] = start if isinstance(start, Here) else start()
            if self._reserve_bytes and psutil.virtual_memory().available < self._reserve_bytes:
                raise MemoryError("no memory is left beside those before it; name fewer")
        except Exception as error:
            self._leave(name, f"failed: {one_line(error)}", error)

    def _leave(self, name: str, reason: str, error: Exception | None = None) -> None:
        if error and not self._may_fail:
            raise error
        self.left[name] = reason
        if name in self._workers:
            self._workers[name].close()


def warm_up(run: Callable[[], float]) -> tuple[int, bool, float]:
    """Call until runs stop getting faster; return the number of runs, if they stopped in time, and the seconds of the fastest."""
    best = run()
    for done in range(2, MAX_WARMUP_RUNS + 1):
        seconds = run()
        if seconds > STEADY * best:
            return done, True, min(best, seconds)
        best = seconds
    return MAX_WARMUP_RUNS, False, best


def turn_orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yield the order of each round: pairs of a random order and its reverse, so that a steady drift of the machine favours nobody."""
    draw, order = random.Random(0), list(names)
    for number in range(rounds):
        order = order[::-1] if number % 2 else draw.sample(order, len(order))
        yield order


def one_line(error: BaseException | str) -> str:
    """Return the last line of a complaint that says something, cut to 360 characters; the kind of an error that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:360] if lines else type(error).__name__
