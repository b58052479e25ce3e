"""The optimisations of the seed, alone and combined: the race's engines on one model, with one thread and with all, greedy and sampling.

Each has a process of its own, as in the race, and they take turns. The generation loop drives all of them, so sampling differs from greedy
decoding in nothing but the choice of the token. BetterTransformer, which the seed also tried, has left optimum: what it did is the fused
attention (SDPA) that transformers takes today, and the row without it shows what it is worth.
"""

import datetime
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.contract import progress
from experiments.decoding.methods import GREEDY, choose, settings_of
from experiments.race.engines import OnnxFp32, OnnxInt8, TorchCompile, TorchEagerAttention, TorchFp32, TorchInt8, TorchInt8Compile
from experiments.race.engines.base import Driven, Engine
from experiments.race.run import check_size, convert, prepare_models
from experiments.race.turns import SETTLE_S, Case, loaded, make_prompts, one_line, thread_settings
from gpt2opt import environment
from gpt2opt.decoding.generation import stream
from gpt2opt.measure.child import Child
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.settings import check_whole

SCHEMA = "gpt2opt.optimisations/1"
ENGINES: tuple[type[Driven], ...] = (TorchFp32, TorchEagerAttention, TorchCompile, TorchInt8, TorchInt8Compile, OnnxFp32, OnnxInt8)
COMPILED = (TorchCompile, TorchInt8Compile)
"""Compiling takes most of a minute, so these run with all threads only."""
SAMPLING = "top-k"
"""What transformers' sampling does unless told otherwise."""
CASE = Case(32, 12)


@dataclass(frozen=True)
class EngineTimes:
    """One engine with so many threads. greedy_s, sampling_s: seconds of whole generations, one per round. left_out: why there are none."""

    name: str
    note: str
    package: str
    version: str | None
    threads: int
    greedy_s: tuple[float, ...] = ()
    sampling_s: tuple[float, ...] = ()
    left_out: str | None = None


@dataclass(frozen=True)
class Optimisations:
    """All engines on one model. weights: where its weights are from, in words. case: prompt and new tokens of each generation."""

    created: str
    environment: dict[str, Any]
    size: str
    weights: str
    case: Case
    rounds: int
    rows: tuple[EngineTimes, ...]
    schema: str = SCHEMA

    @property
    def timed(self) -> list[EngineTimes]:
        return [row for row in self.rows if not row.left_out]

    @property
    def most_threads(self) -> int:
        return max(row.threads for row in self.rows)

    def row(self, engine: type[Engine], threads: int) -> EngineTimes | None:
        """Return a row that was timed, None where there is none."""
        return next((row for row in self.timed if (row.name, row.threads) == (engine.name, threads)), None)


def compare_optimisations(size: str = "gpt2", engines: str = "", rounds: int = 6) -> Optimisations:
    """Time the engines in turns, each greedy and sampling, with one thread and with all; progress goes to stderr.

    Args:
        size: as in `run_race`: a size, the bundled model stretched to it where there are no real weights, or a directory with a GPT-2.
        engines: names with commas between them, such as `torch-dynamic-int8`; all where empty. Torch in FP32 always takes part.
        rounds: timed rounds, at least 2.

    Raises:
        ValueError: rounds < 2, or an unknown size or engine.
        RuntimeError: the model can't be made.
    """
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    check_size(size)
    chosen = choose_engines(engines)
    # The model, a conversion for each engine, the start, and the rounds.
    with progress(1 + len(chosen) + 1 + rounds) as step, tempfile.TemporaryDirectory() as scratch:
        step(f"model {size}")
        models = prepare_models(size, Path(scratch))
        tqdm.write(f"{size}, weights: {models.weights}", file=sys.stderr)
        rows = time_engines(chosen, Path(scratch, "models", "full"), models.vocab_size, CASE, rounds, step)
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Optimisations(created, environment.describe(), size, models.weights, CASE, rounds, tuple(rows))


def choose_engines(names: str) -> list[type[Driven]]:
    """Return the engines of these names, all where there are none; the FP32 one, which the others are held against, always takes part.

    Raises:
        ValueError: one is unknown.
    """
    known = {engine.name: engine for engine in ENGINES}
    chosen = choose("engine", names, known)
    return [engine for name, engine in known.items() if name in chosen or engine is TorchFp32]


def rows_of(engines: Sequence[type[Driven]]) -> list[tuple[type[Driven], int]]:
    """Return each engine with every number of threads that it is timed with: from one to all; the compiled ones with all."""
    most = environment.threads()
    return [(engine, threads) for engine in engines for threads in range(1, most + 1) if threads == most or engine not in COMPILED]


class Contestant:
    """An engine in a process of its own, driven by the generation loop."""

    def __init__(self, engine: type[Driven], folder: Path, threads: int):
        self.engine = loaded(engine, folder, threads)

    def seconds(self, prompts: np.ndarray, method: str, new_tokens: int) -> float:
        """Continue (B, T) prompts and return the seconds that took, prefill included."""
        tokens = stream(self.engine, prompts, settings_of(method, new_tokens))
        start = time.perf_counter()
        for _ in tokens:
            pass
        return time.perf_counter() - start


def time_engines(
    engines: Sequence[type[Driven]], source: Path, vocab_size: int, case: Case, rounds: int, step: Callable[[str], None]
) -> list[EngineTimes]:
    """Convert the model in `source` for each engine and time them in turns, in a new random order in each round.

    Args:
        step: called with what is done next.
    """
    folders: dict[type[Engine], Path | str] = {}
    for engine in engines:
        step(f"converting for {engine.name}")
        folders[engine] = _converted(engine, source)
    rows = {(engine, threads): _entry(engine, threads, folders[engine]) for engine, threads in rows_of(engines)}
    step("starting the engines, and a warm-up of each")
    workers = _started(rows, folders, make_prompts(case, vocab_size, 0), case.new_tokens)
    taken: dict[tuple, dict[str, list[float]]] = {key: {GREEDY: [], SAMPLING: []} for key in rows}
    draw = random.Random(0)
    try:
        for number in range(1, rounds + 1):
            step(f"engines, round {number} of {rounds}")
            turns = [(key, method) for key in rows for method in (GREEDY, SAMPLING)]
            for key, method in draw.sample(turns, len(turns)):
                if rows[key].left_out:
                    continue
                time.sleep(SETTLE_S)
                prompts = make_prompts(case, vocab_size, number)
                try:
                    seconds = workers[key].call("seconds", prompts, method, case.new_tokens)
                except RuntimeError as error:
                    rows[key] = replace(rows[key], left_out=one_line(str(error)))
                    continue
                taken[key][method].append(seconds)
    finally:
        for worker in workers.values():
            worker.close()
    return [
        entry if entry.left_out else replace(entry, greedy_s=tuple(taken[key][GREEDY]), sampling_s=tuple(taken[key][SAMPLING]))
        for key, entry in rows.items()
    ]


def _converted(engine: type[Engine], source: Path) -> Path | str:
    """Return the folder of an engine beside `source`, made now unless an engine with the same files has it already; or what went wrong."""
    if environment.installed(engine.package) is None:
        return f"{engine.package} is not installed"
    folder = source.parent / engine.prepare.__qualname__
    if folder.exists():
        return folder
    if engine.made_from:
        begun = _converted(engine.made_from, source)
        if isinstance(begun, str):
            return begun
        source = begun
    try:
        in_fresh_process(convert, engine, source, folder)
    except RuntimeError as error:
        return one_line(str(error))
    return folder


def _entry(engine: type[Engine], threads: int, folder: Path | str) -> EngineTimes:
    left_out = folder if isinstance(folder, str) else None
    return EngineTimes(engine.name, engine.note, engine.package, environment.installed(engine.package), threads, left_out=left_out)


def _started(
    rows: dict[tuple, EngineTimes], folders: Mapping[type[Engine], Path | str], prompts: np.ndarray, new_tokens: int
) -> dict[tuple, Child]:
    """Start a process for every row that has a folder, and let it generate once in each way; note in `rows` what fails.

    Several start at a time: nothing is timed yet, and most of a start is importing and compiling.
    """

    def start(key: tuple) -> Child | str:
        engine, threads = key
        try:
            worker = Child(Contestant, engine, folders[engine], threads, environment=thread_settings(threads))
        except RuntimeError as error:
            return one_line(str(error))
        try:
            for method in (GREEDY, SAMPLING):
                worker.call("seconds", prompts, method, new_tokens)
        except RuntimeError as error:
            worker.close()
            return one_line(str(error))
        return worker

    wanted = [key for key, entry in rows.items() if not entry.left_out]
    with ThreadPoolExecutor(environment.threads()) as pool:
        started = dict(zip(wanted, pool.map(start, wanted), strict=True))
    for key, worker in started.items():
        if isinstance(worker, str):
            rows[key] = replace(rows[key], left_out=worker)
    return {key: worker for key, worker in started.items() if isinstance(worker, Child)}
