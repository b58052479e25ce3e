"""The race as an experiment: its tables, charts and caption."""

import statistics
from functools import partial
from typing import Any

from experiments.contract import Experiment, columns
from experiments.race.charts import plot_growth, plot_race
from experiments.race.engines.ours import Ours, OursPromptLookup
from experiments.race.results import (
    COMPUTING,
    EFFECTIVE_TPOT,
    FIGURES,
    READING,
    TPOT,
    TTFT_512,
    WHOLE,
    Bound,
    EngineResult,
    Figure,
    RaceResult,
    peers,
)
from experiments.race.run import run_race
from gpt2opt.environment import machine_label
from gpt2opt.measure.stats import PERCENT
from gpt2opt.measure.turns import again
from gpt2opt.report.table import MISSING, Table, megabytes, milliseconds, table

SHOW = {"ms": milliseconds, "s": "{:.2f}".format, "tokens/s": "{:.0f}".format}
VERDICTS, ENGINES = "Ours beside the other engines", "Time and memory of every engine"


def verdict_table(result: RaceResult) -> Table:
    """Show, figure by figure, which engines are faster than ours, how many are even with it (the interval contains 1), and the best one."""
    rows = []
    for figure in FIGURES:
        ratios = {engine: ratio for engine in peers(result, figure) if (ratio := figure.ratio(engine, result.ours))}
        if not ratios:
            continue
        best, *_ = best_first = sorted(ratios, key=lambda engine: ratios[engine].value, reverse=figure.more_is_better)
        even = [engine for engine in best_first if not ratios[engine].measurable]
        faster = [engine for engine in best_first if engine not in even and (ratios[engine].value > 1) == figure.more_is_better]
        counts = (", ".join(map(_label, faster)) or "none", str(len(even)), str(len(ratios) - len(even) - len(faster)))
        twice = next((figure.ratio(engine, result.ours) for engine in result.raced if engine.name == again(Ours.name)), None)
        ours = f"{_shown(figure, result.ours)} {figure.unit}"
        rows.append((figure.name, ours, str(twice or MISSING), _label(best), str(ratios[best]), *counts))
    header = ("figure", "ours", f"{again(Ours.name)} ÷ ours [{PERCENT}]", "best other", "best other ÷ ours", "faster", "even", "slower")
    return table(header, rows)


def engines_table(result: RaceResult) -> Table:
    """Show times as medians of the rounds, bytes on disk, and the peak RSS of a fresh process that generates 512 + 128 tokens."""
    times = {f"{figure.name}, {figure.unit}": partial(_shown, figure) for figure in (TTFT_512, TPOT, WHOLE)}
    sizes = {"on disk, MB": lambda engine: _size(engine.disk_bytes), "peak RSS, MB": lambda engine: _size(engine.peak_rss_bytes)}
    return columns(_timed(result, TTFT_512, TPOT, WHOLE), {"engine": _label} | times | sizes)


def ratio_table(result: RaceResult) -> Table:
    """Show every figure ÷ ours, with its interval over the rounds; for tokens/s more is better, for all other columns less."""
    rows = [(_label(each), *(str(figure.ratio(each, result.ours) or MISSING) for figure in FIGURES)) for each in _timed(result, *FIGURES)]
    return table((f"engine ÷ ours [{PERCENT}]", *(figure.name for figure in FIGURES)), rows)


def limits_table(result: RaceResult) -> Table:
    """Show how far each engine is from the machine: TPOT from its weights ÷ read bandwidth, TTFT from operations ÷ INT8 rate.

    The rates are the best of the whole race. Where an engine was faster than that, the column is named after the probe: it is no limit.

    The last column is the time that the second token takes beyond the median TPOT, as a share of TTFT: what it costs to switch from
    prefill to decoding.
    """
    bounds, header, rows = (READING, COMPUTING), list[str](), []
    for bound in bounds:
        word = "probe" if bound.faster(result) else "limit"
        header += [f"{bound.figure.name}: {word}, ms", f"÷ {word} [{PERCENT}]"]
    for engine in _timed(result, TPOT):
        cells = [cell for bound in bounds for cell in (milliseconds(bound.least(result, engine)), str(bound.ratio(result, engine)))]
        rows.append((_label(engine), megabytes(int(engine.read_bytes)), *cells, f"{first_step_share(engine):.1%}"))
    return table(("engine", "MB read per token", *header, "first decode step"), rows)


def first_step_share(engine: EngineResult) -> float:
    """Return the median over the rounds of (second token − median TPOT) ÷ TTFT, after 512 tokens."""
    calls = engine.timings(TPOT.case)
    return statistics.median((call.later_s[0] - statistics.median(call.later_s)) / call.first_s for call in calls)


def remarks_table(result: RaceResult) -> Table:
    """Show what took part, in which version and how, and the memory of converting; and what did not take part, and why."""
    return columns(
        result.engines,
        {
            "engine": lambda each: each.name,
            "package": lambda each: f"{each.package} {each.version or ''}".strip(),
            "peak RSS of converting, MB": lambda each: _size(each.prepare_peak_rss_bytes),
            "remark": lambda each: f"left out: {each.left_out}" if each.left_out else each.note,
        },
    )


def caption(result: RaceResult) -> str:
    """Say what the tables were measured on, how fast the machine is at its best, and what prompt lookup gains."""
    models = result.models
    lookup = next((EFFECTIVE_TPOT.ratio(each, result.ours) for each in result.raced if each.name == OursPromptLookup.name), None)
    return (
        f"{machine_label(result.environment)}, {result.rounds} rounds. {result.size}, weights: {models.weights}. {models.pruned_share} of "
        f"each layer pruned; engines marked * compute all heads. Ours: {result.ours.note}. {_rate(result, READING, 'reads', 'GB/s')} "
        f"{_rate(result, COMPUTING, 'computes', 'GOPS in INT8')} In FP32 it is {result.limit('fp32_ops_per_s') / 1e9:.0f} GOPS."
        + (f" On a text that repeats itself, prompt lookup takes {lookup} times as long per token as ours without it." if lookup else "")
    )


def _rate(result: RaceResult, bound: Bound, does: str, unit: str) -> str:
    rate = f"At its best, the probe {does} {result.limit(bound.rate) / 1e9:{'.1f' if unit == 'GB/s' else '.0f'}} {unit}"
    faster = ", ".join(engine.name for engine in bound.faster(result))
    return rate + (
        f", which is not the limit of the machine, since some engines were faster: {faster}." if faster else "; no engine was faster."
    )


def _timed(result: RaceResult, *figures: Figure) -> list[EngineResult]:
    """Return the engines that have one of these figures."""
    return [engine for engine in result.raced if any(figure.per_round(engine) for figure in figures)]


def _size(size: int | None) -> str:
    return megabytes(size) if size else MISSING


def _label(engine: EngineResult) -> str:
    return engine.name + (" *" if engine.full_heads else "")


def _shown(figure: Figure, engine: EngineResult) -> str:
    return SHOW[figure.unit](figure.median(engine)) if figure.per_round(engine) else MISSING


def all_tables(result: RaceResult) -> dict[str, Table]:
    return {
        VERDICTS: verdict_table(result),
        ENGINES: engines_table(result),
        "Each engine ÷ ours, paired by round; for tokens/s more is better, for all other columns less": ratio_table(result),
        "Distance from the limits of the machine": limits_table(result),
        "Who took part": remarks_table(result),
    }


def charts(result: RaceResult) -> dict[str, Any]:
    growth = {"growth": plot_growth(result)[0].figure} if result.growth else {}
    return {"race": plot_race(result)[0].figure, **growth}


EXPERIMENT = Experiment(RaceResult, run_race, all_tables, charts, caption, in_documents=(VERDICTS, ENGINES))
