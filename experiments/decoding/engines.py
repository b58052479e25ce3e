"""The optimisations of the seed, alone and combined: the race's engines on one model, with one thread and with all, greedy and sampling.

Each has a process of its own, as in the race, and they take turns. The generation loop drives all of them, so sampling differs from greedy
decoding in nothing but the choice of the token. BetterTransformer, which the seed also tried, has left optimum: what it did is the fused
attention (SDPA) that transformers takes today, and the row without it shows what it is worth.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.decoding.methods import GREEDY, choose, settings_of
from experiments.decoding.results import EngineTimes, LoopTimes
from experiments.race.engines import OnnxFp32, OnnxInt8, TorchCompile, TorchEagerAttention, TorchFp32, TorchInt8, TorchInt8Compile
from experiments.race.engines.base import Engine, Stepwise, StepwiseDecoder
from experiments.race.run import convert
from experiments.race.turns import SETTLE_S, Case, loaded, make_prompts, one_line, thread_settings
from gpt2opt import environment
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.generation import stream
from gpt2opt.measure.child import Child
from gpt2opt.measure.memory import in_fresh_process

ENGINES: tuple[type[Stepwise], ...] = (TorchFp32, TorchEagerAttention, TorchCompile, TorchInt8, TorchInt8Compile, OnnxFp32, OnnxInt8)
COMPILED = (TorchCompile, TorchInt8Compile)
"""Compiling takes most of a minute, so these run with all threads only."""
SAMPLING = "top-k"
"""What transformers' sampling does unless told otherwise."""
LOOP_RUNS, LOOP_TOKENS = 21, 32


def choose_engines(names: str) -> list[type[Stepwise]]:
    """Return the engines of these names, all where there are none; the FP32 one, which the others are held against, always takes part.

    Raises:
        ValueError: one is unknown.
    """
    known = {engine.name: engine for engine in ENGINES}
    chosen = choose("engine", names, known)
    return [engine for name, engine in known.items() if name in chosen or engine is TorchFp32]


def rows_of(engines: Sequence[type[Stepwise]]) -> list[tuple[type[Stepwise], int]]:
    """Return each engine with every number of threads that it is timed with: from one to all; the compiled ones with all."""
    most = environment.threads()
    return [(engine, threads) for engine in engines for threads in range(1, most + 1) if threads == most or engine not in COMPILED]


class Contestant:
    """An engine in a process of its own, driven by the generation loop."""

    def __init__(self, engine: type[Stepwise], folder: Path, threads: int):
        self.engine = loaded(engine, folder, threads)

    def seconds(self, prompts: np.ndarray, method: str, new_tokens: int) -> float:
        """Continue (B, T) prompts and return the seconds that took, prefill included."""
        self.engine.open(len(prompts), prompts.shape[1] + new_tokens)
        decoder, settings = StepwiseDecoder(self.engine, prompts), settings_of(method, new_tokens)
        start = time.perf_counter()
        for _ in stream(decoder, prompts.tolist(), settings):
            pass
        return time.perf_counter() - start


def time_engines(
    engines: Sequence[type[Stepwise]], source: Path, vocab_size: int, case: Case, rounds: int, step: Callable[[str], None]
) -> list[EngineTimes]:
    """Convert the model in `source` for each engine and time them in turns, in a new random order in each round.

    Args:
        step: called with what is done next; engines with fewer steps than `count_steps` says have failed.
    """
    folders: dict[type[Engine], Path | str] = {}
    for engine in engines:
        step(f"converting for {engine.name}")
        folders[engine] = _converted(engine, source)
    rows = {(engine, threads): _entry(engine, threads, folders[engine]) for engine, threads in rows_of(engines)}
    step("starting the engines")
    workers = _started(rows, folders)
    taken: dict[tuple, dict[str, list[float]]] = {key: {GREEDY: [], SAMPLING: []} for key in rows}
    draw = random.Random(0)
    try:
        for number in range(rounds + 1):
            step(f"engines, round {number} of {rounds}" if number else "engines, warm-up")
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
                if number:
                    taken[key][method].append(seconds)
    finally:
        for worker in workers.values():
            worker.close()
    return [
        entry if entry.left_out else replace(entry, greedy_s=tuple(taken[key][GREEDY]), sampling_s=tuple(taken[key][SAMPLING]))
        for key, entry in rows.items()
    ]


def count_steps(engines: Sequence[type[Stepwise]], rounds: int) -> int:
    """Return how often `time_engines` calls its `step`."""
    return len(engines) + 1 + rounds + 1


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
    return EngineTimes(engine.name, engine.note, environment.installed(engine.package), threads, left_out=left_out)


def _started(rows: dict[tuple, EngineTimes], folders: Mapping[type[Engine], Path | str]) -> dict[tuple, Child]:
    """Start a process for every row that has a folder, several at a time: most of a start is importing. Note in `rows` what fails."""

    def start(key: tuple) -> Child | str:
        engine, threads = key
        try:
            return Child(Contestant, engine, folders[engine], threads, environment=thread_settings(threads))
        except RuntimeError as error:
            return one_line(str(error))

    wanted = [key for key, entry in rows.items() if not entry.left_out]
    with ThreadPoolExecutor(environment.threads()) as pool:
        started = dict(zip(wanted, pool.map(start, wanted), strict=True))
    for key, worker in started.items():
        if isinstance(worker, str):
            rows[key] = replace(rows[key], left_out=worker)
    return {key: worker for key, worker in started.items() if isinstance(worker, Child)}


class LoopContestant:
    """An INT8 IR that is driven by the plain loop of the measurements and by the generation loop."""

    def __init__(self, folder: Path, prompt: list[int]):
        from gpt2opt.runtime.ir_model import load_ir

        self.model, self.prompt = load_ir(folder), prompt

    def plain(self, new_tokens: int) -> float:
        """Return the TPOT of `Greedy`, in seconds."""
        greedy = Greedy(self.model.decoder([self.prompt], new_tokens))
        greedy.start()
        start = time.perf_counter()
        for _ in range(new_tokens - 1):
            greedy.step()
        return (time.perf_counter() - start) / (new_tokens - 1)

    def loop(self, new_tokens: int) -> float:
        """Return the TPOT of `stream`, in seconds."""
        prompts = [self.prompt]
        tokens = stream(self.model.decoder(prompts, new_tokens), prompts, settings_of(GREEDY, new_tokens))
        next(tokens)
        start = time.perf_counter()
        for _ in tokens:
            pass
        return (time.perf_counter() - start) / (new_tokens - 1)


def time_loop(source: Path, prompt: list[int], step: Callable[[str], None], runs: int = LOOP_RUNS) -> LoopTimes:
    """Export a model as an INT8 IR (weights alone) and time both loops on it, in turns: the second one first in every second run."""
    step("exporting the IR")
    folder = source.parent / "ir"
    in_fresh_process(export_int8, source, folder)
    step("the cost of the generation loop")
    seconds: dict[str, list[float]] = {"plain": [], "loop": []}
    with Child(LoopContestant, folder, prompt, environment=thread_settings(environment.threads())) as worker:
        for number in range(runs + 1):
            for way in ("plain", "loop") if number % 2 else ("loop", "plain"):
                taken = worker.call(way, LOOP_TOKENS)
                if number:
                    seconds[way].append(taken)
    return LoopTimes(tuple(seconds["plain"]), tuple(seconds["loop"]))


def export_int8(source: Path, folder: Path) -> None:
    """Write the model in `source` as an IR with INT8 weights; nothing is calibrated, so any rows of tokens do."""
    from datasets import Dataset

    from gpt2opt.sources.models import load_model
    from gpt2opt.stages.quantize import quantize_int8
    from gpt2opt.stages.run import MIN_CALIBRATION_SEQUENCES

    environment.quiet()
    tokenizer, model = load_model(source)
    rows = Dataset.from_dict({"input_ids": [list(range(16))] * MIN_CALIBRATION_SEQUENCES})
    quantize_int8(model, tokenizer, rows, folder, "w8")
