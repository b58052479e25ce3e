"""The race as an experiment: its tables, charts and caption."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from experiments.contract import Experiment, columns
from experiments.race.charts import plot_growth, plot_race
from experiments.race.engines.openvino import OpenVinoInt8
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
from experiments.race.verdicts import EVEN, FASTER, SLOWER, verdicts
from gpt2opt.environment import kind_label, machine_label
from gpt2opt.measure.stats import PERCENT, positive_mean_interval
from gpt2opt.measure.turns import again
from gpt2opt.report.table import MISSING, Table, megabytes, milliseconds, table

SHOW = {"ms": milliseconds, "s": "{:.2f}".format, "tokens/s": "{:.0f}".format}
VERDICTS, ENGINES = "Ours beside the other engines", "Time and memory of every engine"
ABSENT = "Engines that are not in the tables"


def verdict_table(result: RaceResult) -> Table:
    """Show, figure by figure, which engines are faster than ours, how many are even with it or slower, see `verdicts`, and the best one."""
    found, rows = verdicts(result), []
    for figure in FIGURES:
        ratios = {engine: ratio for engine in peers(result, figure) if (ratio := figure.ratio(engine, result.ours))}
        if not ratios:
            continue
        best, *_ = best_first = sorted(ratios, key=lambda engine: ratios[engine].value, reverse=figure.more_is_better)
        said = {word: [engine for engine in best_first if found[figure, engine.name] == word] for word in (FASTER, EVEN, SLOWER)}
        counts = (", ".join(map(_label, said[FASTER])) or "none", str(len(said[EVEN])), str(len(said[SLOWER])))
        twice = next((figure.ratio(engine, result.ours) for engine in result.raced if engine.name == again(Ours.name)), None)
        ours = f"{_shown(figure, result.ours)} {figure.unit}"
        rows.append((figure.name, ours, str(twice or MISSING), _label(best), str(ratios[best]), *counts))
    header = ("figure", "ours", f"{again(Ours.name)} ÷ ours [{PERCENT}]", "best other", "best other ÷ ours", FASTER, EVEN, SLOWER)
    return table(header, rows)


def engines_table(result: RaceResult) -> Table:
    """Show times as medians of the rounds, how near each engine is to torch FP32, bytes on disk, and the peak RSS of a fresh process."""
    times = {f"{figure.name}, {figure.unit}": partial(_shown, figure) for figure in (TTFT_512, TPOT, WHOLE)}
    quality = {f"KL, nats per token [{PERCENT}]": _kl, "same top token": _same_top}
    sizes = {"on disk, MB": lambda engine: _size(engine.disk_bytes), "peak RSS, MB": lambda engine: _size(engine.peak_rss_bytes)}
    return columns(_timed(result, TTFT_512, TPOT, WHOLE), {"engine": _label} | times | quality | sizes)


def absent_table(result: RaceResult) -> Table:
    """Show which engines did not race to the end, and what they died of or what they said."""
    left = [engine for engine in result.engines if engine.left_out]
    return columns(left, {"engine": _label, "package": _package, "why it is not in the tables": lambda each: _plain(each.left_out or "")})


def optimum_table(results: Mapping[str, RaceResult]) -> Table:
    """Show optimum-intel's own INT8 beside ours on each kind of CPU; a kind that was measured before the decode step says so."""
    pairs = [(result.engine(OpenVinoInt8.name), result.ours, result) for result in results.values()]
    rows = [(f"{figure.name}, ÷ ours", *(str(figure.ratio(*pair[:2]) or MISSING) for pair in pairs)) for figure in (TTFT_512, TPOT)]
    facts: dict[str, Callable[[EngineResult], str]] = {
        "KL from FP32, nats per token": _kl,
        "same top token as FP32": _same_top,
        "peak memory, MB": lambda engine: _size(engine.peak_rss_bytes),
    }
    for name, fact in facts.items():
        both = ((fact(theirs), fact(ours)) for theirs, ours, _ in pairs)
        rows.append((name, *(MISSING if set(each) == {MISSING} else "; ours ".join(each) for each in both)))
    labels = [
        kind_label(result.environment["cpu_flags"]) + ("" if result.own_step else " (before the decode step)") for *_, result in pairs
    ]
    size = ", ".join(dict.fromkeys(result.size for *_, result in pairs))
    return table((f"optimum-intel's INT8, {size} [{PERCENT}]", *labels), rows)


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
            "package": _package,
            "peak RSS of converting, MB": lambda each: _size(each.prepare_peak_rss_bytes),
            "remark": lambda each: f"left out: {_plain(each.left_out)}" if each.left_out else each.note,
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
        + f" {_decoding(result)} {_quality(result)} Versions: {', '.join(dict.fromkeys(map(_package, result.raced)))}."
        + (f" On a text that repeats itself, prompt lookup takes {lookup} times as long per token as ours without it." if lookup else "")
    )


def _rate(result: RaceResult, bound: Bound, does: str, unit: str) -> str:
    rate = f"At its best, the probe {does} {result.limit(bound.rate) / 1e9:{'.1f' if unit == 'GB/s' else '.0f'}} {unit}"
    faster = ", ".join(engine.name for engine in bound.faster(result))
    return rate + (
        f", which is not the limit of the machine, since some engines were faster: {faster}." if faster else "; no engine was faster."
    )


def _decoding(result: RaceResult) -> str:
    if result.own_step:
        return f"Ours decoded by: {result.ours.decode}."
    return "Taken before the decode step: ours decoded by OpenVINO."


def _quality(result: RaceResult) -> str:
    held_out = result.held_out
    if not held_out:
        return "Quality was not measured in this race."
    if not held_out.says_something:
        nats = f"{held_out.nll_nats:.2f} nats per token, where chance gives {held_out.chance_nats:.2f}"
        return f"The columns of quality are empty, since these weights do not predict text ({nats})."
    return (
        "KL and top token are measured against torch FP32 of the same weights, pruned or (*) unpruned, on "
        f"{held_out.rows * held_out.tokens} tokens of {held_out.rows} documents of {held_out.text}; the unpruned model takes "
        f"{held_out.nll_nats:.2f} nats per token."
    )


def _kl(engine: EngineResult) -> str:
    found = engine.fidelity
    if not found or found.kl_nats is None:
        return MISSING
    tokens = [found.tokens] * len(found.kl_nats)
    interval = positive_mean_interval(found.kl_nats, tokens)
    return f"{sum(found.kl_nats) / sum(tokens):.5f}" + (f" [{interval[0]:.5f}, {interval[1]:.5f}]" if interval else "")


def _same_top(engine: EngineResult) -> str:
    found = engine.fidelity
    return f"{sum(found.same_top) / (len(found.same_top) * found.tokens):.1%}" if found else MISSING


def _package(engine: EngineResult) -> str:
    return f"{engine.package} {engine.version or ''}".strip()


def _plain(said: str) -> str:
    """Return what an engine said so that it fits into a cell."""
    return said.replace("|", "/").replace("<", "‹").replace(">", "›")


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
        **({ABSENT: absent_table(result)} if any(engine.left_out for engine in result.engines) else {}),
        "Each engine ÷ ours, paired by round; for tokens/s more is better, for all other columns less": ratio_table(result),
        "Distance from the limits of the machine": limits_table(result),
        "Who took part": remarks_table(result),
    }


def charts(result: RaceResult) -> dict[str, Any]:
    growth = {"growth": plot_growth(result)[0].figure} if result.growth else {}
    return {"race": plot_race(result)[0].figure, **growth}


EXPERIMENT = Experiment(RaceResult, run_race, all_tables, charts, caption, in_documents=(VERDICTS, ENGINES, ABSENT))
