"""The race's engines on one model with two more columns: each with one thread and with all, and greedy and sampling.

The generation loop drives all of them, so sampling differs from greedy decoding in nothing but the choice of the token. BetterTransformer,
whose gain the project GPT2_Task measured too, has left optimum: what it did is the fused attention (SDPA) that transformers uses today,
and the row without it shows what it is worth.
"""

import copy
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from tqdm import tqdm

from experiments.charts import name_rows
from experiments.contract import CONFIRMED, REFUTED, Experiment, Finding, choose, decide, findings_table, not_measured, now, say
from experiments.decoding.methods import GREEDY, settings_of
from experiments.race.engines import OnnxFp32, OnnxInt8, TorchCompile, TorchEagerAttention, TorchFp32, TorchInt8, TorchInt8Compile
from experiments.race.engines.base import Case, Driven, Engine, loaded, make_prompts, started
from experiments.race.results import Models
from experiments.race.run import check_size, enter, folder_of, prepare_models
from gpt2opt import environment
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.environment import machine_label
from gpt2opt.measure.stats import PERCENT, median, paired_ratio
from gpt2opt.measure.turns import Contestants, Start, again, in_child
from gpt2opt.report.chart import OUR_ENGINE, PEER_ENGINE
from gpt2opt.report.table import MISSING, Table, milliseconds, table
from gpt2opt.settings import check_whole

ENGINES: tuple[type[Driven], ...] = (TorchFp32, TorchEagerAttention, TorchCompile, TorchInt8, TorchInt8Compile, OnnxFp32, OnnxInt8)
COMPILED = (TorchCompile, TorchInt8Compile)
"""Compiling takes most of a minute, so these run with all threads only."""
SAMPLING = "top-k"
"""What transformers' sampling does by default."""
CASE = Case(32, 12)
OUTPUTS = 10
"""As many as that project generates of one prompt."""
IN_TURN, AT_ONCE, BATCH = "one after another", "at once, a thread each", "as one batch"
LITTLE = 0.1
"""A gain of less than this share of the time is little."""


@dataclass(frozen=True)
class EngineTimes:
    """One engine with its threads. greedy_s, sampling_s: seconds of whole generations, one per round. left_out: why there are none."""

    name: str
    note: str
    package: str
    version: str | None
    threads: int
    greedy_s: tuple[float, ...] = ()
    sampling_s: tuple[float, ...] = ()
    left_out: str | None = None

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Optimisations:
    """All engines on one model. weights: where its weights are from, in words. case: prompt and new tokens of each generation.

    several: an engine and its way -> seconds of `OUTPUTS` outputs of one prompt by sampling, one per round; empty in older results.
    """

    created: str
    environment: dict[str, Any]
    size: str
    weights: str
    case: Case
    rounds: int
    rows: tuple[EngineTimes, ...]
    several: dict[str, tuple[float, ...]] = field(default_factory=dict)
    schema: str = "gpt2opt.optimisations/1"

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

    size, engines: as in `run_race`. Torch in FP32 always takes part. rounds < 2, an unknown size or engine are a ValueError.
    """
    check_whole("rounds", rounds, 2, "an interval is drawn over them")
    check_size(size)
    names = choose("engine", engines, [engine.name for engine in ENGINES], TorchFp32.name)
    with tempfile.TemporaryDirectory() as scratch:
        models = prepare_models(size, Path(scratch))
        say(f"{size}, weights: {models.weights}")
        rows = time_engines([engine for engine in ENGINES if engine.name in names], models, Path(scratch), CASE, rounds)
        timed = {row.name for row in rows if not row.left_out}
        several = time_several([each for each in (TorchFp32, TorchInt8) if each.name in timed], models, Path(scratch), CASE, rounds)
    return Optimisations(now(), environment.describe(), size, models.weights, CASE, rounds, tuple(rows), several)


def time_engines(engines: list[type[Driven]], models: Models, out: Path, case: Case, rounds: int) -> list[EngineTimes]:
    """Convert the unpruned model in `out` for each engine and time them in turns."""
    rows: dict[str, EngineTimes] = {}
    starts: dict[str, Start] = {}
    most = environment.threads()
    for engine in engines:
        entry = enter(engine, models, out, "full")
        for threads in range(most if engine in COMPILED else 1, most + 1):
            row = EngineTimes(engine.name, engine.note, engine.package, entry.version, threads, left_out=entry.left_out)
            rows[str(row)] = row
            if not entry.left_out:
                if not starts:
                    rows[again(str(row))] = replace(row, name=again(row.name), note="the same in another process")
                starts[str(row)] = started(engine, folder_of(engine, out), threads)
    with Contestants(starts, may_fail=True) as contestants:
        turns = contestants.take_turns(
            "seconds", (GREEDY, SAMPLING), rounds=rounds,
            arguments=lambda method, number: (make_prompts(case, models.vocab_size, number), settings_of(method, case.new_tokens)),
        )  # fmt: skip
        *_, outcome = tqdm(turns, "engines in turns", rounds + 1)
    samples = {name: given for name, given in outcome.samples.items() if given}
    return [
        replace(row, greedy_s=tuple(samples[key][GREEDY]), sampling_s=tuple(samples[key][SAMPLING]))
        if key in samples
        else replace(row, left_out=row.left_out or contestants.left.get(key, "no other engine was there to be compared with"))
        for key, row in rows.items()
    ]


class Several:
    """An engine that makes several outputs of one prompt in a way. At once, each core has a Python thread, with one thread of torch."""

    def __init__(self, engine: type[Driven], folder: Path, way: str, threads: int, writers: int):
        self.engine, self.way, self.writers = loaded(engine, folder, threads), way, writers

    def seconds(self, prompt: np.ndarray, settings: DecodingSettings) -> float:
        """Continue a prompt (1, T) `OUTPUTS` times by other draws; return the seconds of it all."""

        def write(seed: int) -> float:
            return copy.copy(self.engine).seconds(prompt, replace(settings, seed=seed))  # a copy has a KV cache of its own

        if self.way == BATCH:
            return self.engine.seconds(prompt.repeat(OUTPUTS, 0), settings)
        start = time.perf_counter()
        with ThreadPoolExecutor(self.writers) as pool:
            list(pool.map(write, range(OUTPUTS)))
        return time.perf_counter() - start


def time_several(engines: list[type[Driven]], models: Models, out: Path, case: Case, rounds: int) -> dict[str, tuple[float, ...]]:
    """Time in turns how engines that `time_engines` converted make several outputs of one prompt, in each way."""
    most = environment.threads()
    starts: dict[str, Start] = {
        f"{engine.name}, {way}": in_child(Several, engine, folder_of(engine, out), way, threads, most // threads, threads=threads)
        for engine in engines
        for way, threads in ((IN_TURN, most), (AT_ONCE, 1), (BATCH, most))
    }
    with Contestants(starts, may_fail=True) as contestants:
        turns = contestants.take_turns(
            "seconds", [SAMPLING], rounds=rounds,
            arguments=lambda way, number: (make_prompts(case, models.vocab_size, number), settings_of(way, case.new_tokens)),
        )  # fmt: skip
        *_, outcome = tqdm(turns, "several outputs in turns", rounds + 1)
    return {name: tuple(taken[SAMPLING]) for name, taken in outcome.samples.items() if taken}


def find_all(result: Optimisations) -> list[Finding]:
    """Judge what the project GPT2_Task says of these optimisations."""
    pairs = (("torch.compile", TorchCompile, TorchFp32), ("SDPA", TorchFp32, TorchEagerAttention))
    return [*dynamic_int8_gains(result), *(gains_little(result, *pair) for pair in pairs), choice_depends(result)]


def dynamic_int8_gains(result: Optimisations) -> list[Finding]:
    """Ask three things of dynamic INT8, each by its own ratio: is it faster than FP32, do several outputs at once help, is it fastest."""
    gains, helped = "dynamic INT8 is faster than FP32", "several outputs at once (multithreading) make dynamic INT8 faster still"
    fastest, most = "dynamic INT8 is the fastest", result.most_threads
    int8, fp32 = (result.row(engine, most) for engine in (TorchInt8, TorchFp32))
    if not int8 or not fp32:
        return not_measured(f"{TorchInt8.name} and {TorchFp32.name}", gains, helped, fastest)
    ratio = paired_ratio(int8.greedy_s, fp32.greedy_s)
    found = [Finding(gains, decide(ratio.high < 1, ratio.low > 1), f"its time ÷ FP32's, {most} threads: {ratio}")]
    taken = [result.several.get(f"{TorchInt8.name}, {way}", ()) for way in (AT_ONCE, IN_TURN, BATCH)]
    if all(taken):
        at_once, in_turn, batch = taken
        ratio = paired_ratio(at_once, in_turn)
        figure = f"time of {OUTPUTS} outputs {AT_ONCE} ÷ {IN_TURN}: {ratio}; {BATCH}: {paired_ratio(batch, in_turn)}"
        found.append(Finding(helped, decide(ratio.high < 1, ratio.low > 1), figure))
    else:
        found += not_measured("several outputs at once", helped)
    ratios = [(row, paired_ratio(row.greedy_s, int8.greedy_s)) for row in result.timed if row is not int8]
    row, closest = min(ratios, key=lambda pair: pair[1].low)
    verdict = decide(all(ratio.low > 1 for _, ratio in ratios), any(ratio.high < 1 for _, ratio in ratios))
    if verdict == REFUTED:
        row, closest = min((pair for pair in ratios if pair[1].high < 1), key=lambda pair: pair[1].value)
    return [*found, Finding(fastest, verdict, f"time of {str(row).replace(',', ' with')} ÷ its time: {closest}")]


def choice_depends(result: Optimisations) -> Finding:
    """Name the fastest choice for each need, and ask if what is soonest is measurably faster than what writes FP32's own text."""
    one = [(str(row), row.greedy_s) for row in result.timed]
    in_fp32 = [(name, taken) for name, taken in one if "INT8" not in name]
    needs = {"one text": one, "one text, exactly as FP32 writes it": in_fp32, f"{OUTPUTS} texts": [*result.several.items()]}
    best = {need: (*min(ways, key=lambda way: statistics.median(way[1])), *ways[0]) for need, ways in needs.items() if ways}
    engines = {name.partition(",")[0] for name, *_ in best.values()}
    figure = "; ".join(
        f"{need}: {name} ({paired_ratio(taken, reference_s)} × the time of {reference})"
        for need, (name, taken, reference, reference_s) in best.items()
    )
    soonest, own = best.get("one text"), best.get("one text, exactly as FP32 writes it")
    differ = soonest is not None and own is not None and paired_ratio(soonest[1], own[1]).high < 1
    return Finding("the choice depends on what is needed", decide(differ, len(engines) == 1), figure)


def gains_little(result: Optimisations, what: str, with_it: type[Engine], without: type[Engine]) -> Finding:
    """Ask if something that is to make torch faster gains less than `LITTLE` of the time."""
    claim = f"{what} gains little (less than {LITTLE:.0%})"
    row, base = (result.row(engine, result.most_threads) for engine in (with_it, without))
    if not row or not base:
        return not_measured(f"{with_it.name} and {without.name}", claim)[0]
    ratio = paired_ratio(row.greedy_s, base.greedy_s)
    if ratio.high < 1 - LITTLE:
        verdict = f"{REFUTED}: it gains more"
    elif ratio.low > 1:
        verdict = f"{REFUTED}: it loses"
    elif ratio.low < 1 - LITTLE:
        verdict = f"neither confirmed nor refuted: the interval reaches beyond {LITTLE:.0%}"
    else:
        verdict = CONFIRMED
    return Finding(claim, verdict, f"time with it ÷ without it: {ratio}")


def speed_table(result: Optimisations) -> Table:
    """Show every engine with each number of threads, greedy and sampling; and what was left out, and why."""
    base, rows = result.row(TorchFp32, 1), []
    for row in result.rows:
        package = f"{row.package} {row.version or ''}".strip()
        if row.left_out:
            rows.append((row.name, str(row.threads), *[MISSING] * 4, package, f"left out: {row.left_out}"))
            continue
        per_token = [milliseconds(statistics.median(taken) / result.case.new_tokens) for taken in (row.greedy_s, row.sampling_s)]
        ratio = str(paired_ratio(row.greedy_s, base.greedy_s)) if base else MISSING
        remark = row.note or MISSING
        rows.append((row.name, str(row.threads), *per_token, ratio, str(paired_ratio(row.sampling_s, row.greedy_s)), package, remark))
    ratios = (f"greedy ÷ {TorchFp32.name} with 1 thread [{PERCENT}]", f"sampling ÷ greedy [{PERCENT}]")
    return table(("engine", "threads", "greedy, ms per token", "sampling, ms per token", *ratios, "package", "remark"), rows)


def several_table(result: Optimisations) -> Table:
    """Show the seconds of several outputs, of each engine in each way."""
    first, base = next(iter(result.several.items()))
    rows = [(name, f"{statistics.median(taken):.3g}", str(paired_ratio(taken, base))) for name, taken in result.several.items()]
    return table((f"{OUTPUTS} outputs of one prompt, by sampling", "s", f"÷ {first} [{PERCENT}]"), rows)


def caption(result: Optimisations) -> str:
    return (
        f"{result.size}, weights: {result.weights}. Whole generations of one prompt of {result.case.prompt_tokens} tokens, "
        f"{result.case.new_tokens} new ones, prefill included; {result.rounds} rounds in turns, each engine in its own process. "
        f"Sampling is {SAMPLING} with k = 50. BetterTransformer has left optimum; SDPA is what it did. Measured on "
        f"{machine_label(result.environment)}."
    )


def plot_optimisations(result: Optimisations) -> Axes:
    """Draw the time per token of every engine and number of threads, greedy and sampling; whiskers are intervals over the rounds."""
    rows = sorted(result.timed, key=lambda row: statistics.median(row.greedy_s))
    _, axes = plt.subplots(figsize=(10, 1.6 + 0.55 * len(rows)), layout="constrained")
    for offset, of, own, label in ((-0.2, "greedy_s", OUR_ENGINE, "greedy"), (0.2, "sampling_s", PEER_ENGINE, f"sampling ({SAMPLING})")):
        found = [median(getattr(row, of)).scaled(1e3 / result.case.new_tokens) for row in rows]
        places = [place + offset for place in range(len(rows))]
        axes.barh(places, [each.value for each in found], height=0.38, color=own, label=label)
        for place, each in zip(places, found, strict=True):
            axes.errorbar(each.value, place, xerr=each.reach, fmt="none", color="black", capsize=2, linewidth=1)
    name_rows([axes], list(map(str, rows)), room=0.05)
    shape = "" if "stretched" not in result.weights else " (stand-in: the bundled model, stretched)"
    axes.set(title=f"{result.size}{shape} on {machine_label(result.environment)}", xlabel="ms per token, prefill included; less is better")
    axes.legend()
    return axes


EXPERIMENT = Experiment(
    Optimisations,
    compare_optimisations,
    tables=lambda result: (
        {
            "Claims of the project GPT2_Task on optimisations": findings_table(find_all(result)),
            "Engines, threads and sampling": speed_table(result),
        }
        | ({"Several outputs at once": several_table(result)} if result.several else {})
    ),
    charts=lambda result: {"optimisations": plot_optimisations(result).figure},
    caption=caption,
)
