"""Tables of a race."""

import statistics

from experiments.race.engines.ours import OursAgain
from experiments.race.results import COMPUTING, EFFECTIVE_TPOT, FIGURES, READING, TPOT, Bound, EngineResult, Figure, RaceResult, peers
from gpt2opt.environment import machine_label
from gpt2opt.measure.stats import PERCENT
from gpt2opt.report.tables import MISSING, Table, megabytes, milliseconds, table

SHOW = {"ms": milliseconds, "s": "{:.2f}".format, "tokens/s": "{:.0f}".format}


def speed_table(result: RaceResult) -> Table:
    """Show the median of every figure over the rounds."""
    rows = [[_label(engine), *(_shown(figure, figure.median(engine)) for figure in FIGURES)] for engine in _timed(result)]
    return table(("engine", *(f"{figure.name}, {figure.unit}" for figure in FIGURES)), rows)


def ratio_table(result: RaceResult) -> Table:
    """Show every figure ÷ ours, with its interval over the rounds; for tokens/s more is better, for all other columns less."""
    rows = [[_label(engine), *(str(figure.ratio(engine, result.ours) or MISSING) for figure in FIGURES)] for engine in _timed(result)]
    return table((f"engine ÷ ours [{PERCENT}]", *(figure.name for figure in FIGURES)), rows)


def limits_table(result: RaceResult) -> Table:
    """Show how far each engine is from the machine: TPOT from its weights ÷ read bandwidth, TTFT from operations ÷ INT8 rate.

    The rates are the best of the whole race. Where an engine was faster than that, the column is named after the probe: it is no limit.

    The last column is the time that the second token takes beyond the median TPOT, as a share of TTFT: what it costs to switch from
    prefill to decoding.
    """
    rows = []
    for engine in _timed(result):
        if TPOT.per_round(engine):
            bounds = [(milliseconds(b.least(result, engine)), str(b.ratio(result, engine))) for b in (READING, COMPUTING)]
            rows.append([_label(engine), megabytes(engine.read_bytes), *bounds[0], *bounds[1], f"{first_step_share(engine):.1%}"])
    words = [(bound.figure.name, "probe" if bound.faster(result) else "limit") for bound in (READING, COMPUTING)]
    columns = [column for name, word in words for column in (f"{name}: {word}, ms", f"÷ {word} [{PERCENT}]")]
    return table(("engine", "MB read per token", *columns, "first decode step"), rows)


def first_step_share(engine: EngineResult) -> float:
    """Return the median over the rounds of (second token − median TPOT) ÷ TTFT, after 512 tokens."""
    calls = engine.timings(TPOT.case)
    return statistics.median((call.later_s[0] - statistics.median(call.later_s)) / call.first_s for call in calls)


def memory_table(result: RaceResult) -> Table:
    """Show bytes on disk and the peak RSS of a fresh process that loads and generates 512 + 128 tokens, each also ÷ ours."""
    rows = []
    for engine in result.raced:
        row = [_label(engine)]
        for value, ours in ((engine.disk_bytes, result.ours.disk_bytes), (engine.peak_rss_bytes, result.ours.peak_rss_bytes)):
            row += [megabytes(value) if value else MISSING, f"{value / ours:.2f}" if value and ours else MISSING]
        rows.append([*row, megabytes(engine.prepare_peak_rss_bytes) if engine.prepare_peak_rss_bytes else MISSING])
    return table(("engine", "on disk, MB", "÷ ours", "peak RSS, MB", "÷ ours", "peak RSS of converting, MB"), rows)


def repeating_table(result: RaceResult) -> Table:
    """Show what prompt lookup gives on a text that repeats itself: time per token over the whole of the new text."""
    engines = [engine for engine in result.raced if EFFECTIVE_TPOT.per_round(engine)]
    rows = [
        (engine.name, _shown(EFFECTIVE_TPOT, EFFECTIVE_TPOT.median(engine)), str(EFFECTIVE_TPOT.ratio(engine, result.ours) or MISSING))
        for engine in engines
    ]
    return table(("engine", f"{EFFECTIVE_TPOT.name}, {EFFECTIVE_TPOT.unit}", f"÷ ours [{PERCENT}]"), rows)


def engines_table(result: RaceResult) -> Table:
    """Show what took part, in which version and how; and what did not, and why."""
    rows = [
        (
            engine.name,
            f"{engine.package} {engine.version or ''}".strip(),
            f"left out: {engine.left_out}" if engine.left_out else engine.note,
        )
        for engine in result.engines
    ]
    return table(("engine", "package", "remark"), rows)


def caption(result: RaceResult) -> str:
    """Say who is faster than whom, how small a difference the race can measure, and what the tables were measured on."""
    models = result.models
    taken_on = (
        f"{result.size}, weights: {models.weights}. {models.pruned_share} of each layer pruned, but none where marked *. "
        f"Ours: {result.ours.note}. "
        f"{machine_label(result.environment)}, {result.rounds} rounds. {_rate(result, READING, 'reads', 'GB/s')} "
        f"{_rate(result, COMPUTING, 'computes', 'GOPS in INT8')} In FP32 it is {result.limit('fp32_ops_per_s') / 1e9:.0f} GOPS. "
        "Engines marked * compute all heads."
    )
    return "\n\n".join((verdict(result), resolution(result), taken_on))


def _rate(result: RaceResult, bound: Bound, does: str, unit: str) -> str:
    rate = f"At its best in the whole race, the probe {does} {result.limit(bound.rate) / 1e9:{'.1f' if unit == 'GB/s' else '.0f'}} {unit}"
    faster = ", ".join(engine.name for engine in bound.faster(result))
    return (
        f"{rate}, which is not the limit of the machine, since some engines were faster: {faster}."
        if faster
        else f"{rate}; no engine was faster."
    )


def resolution(result: RaceResult) -> str:
    """Say how small a difference the race can measure: how far ours is from itself, in another process over the same files."""
    again = next((engine for engine in _timed(result) if engine.name == OursAgain.name), None)
    if not again:
        return "Ours did not race against itself, so how small a difference this race can measure is not known."
    ratios = {figure.name: ratio for figure in FIGURES if (ratio := figure.ratio(again, result.ours))}
    widest = max(ratios, key=lambda name: ratios[name].high / ratios[name].low)
    apart = [name for name, ratio in ratios.items() if ratio.measurable]
    return (
        f"The row `{OursAgain.name}` is ours in another process, over the same files: its true ratio is 1 in every column. The widest of "
        f"its {len(ratios)} intervals, {widest}, is {ratios[widest]}: a smaller difference could not be seen there. Intervals that "
        f"exclude 1 although nothing differs: {', '.join(apart) or 'none'}."
    )


def verdict(result: RaceResult) -> str:
    """Say in markdown, figure by figure, which peers are faster than ours, even with it (the interval contains 1), or slower."""
    lines = [f"On {machine_label(result.environment)}, {result.size}, ours is", ""]
    for figure in FIGURES:
        if peers(result, figure):
            unit = "tokens/s" if figure.more_is_better else "time"
            lines.append(f"- {figure.name}, {unit} ÷ ours: {_standing(result, figure)}")
    return "\n".join(lines)


def _standing(result: RaceResult, figure: Figure) -> str:
    """Return the peers, from the best on, with their ratios; of those that ours is ahead of, the best."""
    ratios = {_label(engine): ratio for engine in peers(result, figure) if (ratio := figure.ratio(engine, result.ours))}
    best_first = sorted(ratios, key=lambda name: ratios[name].value, reverse=figure.more_is_better)
    even = [name for name in best_first if not ratios[name].measurable]
    behind = [name for name in best_first if name not in even and (ratios[name].value > 1) == figure.more_is_better]
    ahead = [name for name in best_first if name not in (*even, *behind)]
    told = {word: ", ".join(f"{name} {ratios[name]}" for name in names) for word, names in (("behind", behind), ("even with", even))}
    parts = [f"**{word}** {names}" for word, names in told.items() if names]
    if ahead:
        parts.append(f"**ahead** of {len(ahead)} of {len(ratios)}, the best of them {ahead[0]} {ratios[ahead[0]]}")
    return "; ".join(parts)


def all_tables(result: RaceResult) -> dict[str, Table]:
    """Return every table of a race, by title."""
    tables = {
        "Who took part": engines_table(result),
        "Medians of the rounds": speed_table(result),
        "Each engine ÷ ours, paired by round; for tokens/s more is better, for all other columns less": ratio_table(result),
        "Distance from the limits of the machine": limits_table(result),
        "Memory": memory_table(result),
    }
    repeating = repeating_table(result)
    return tables | ({"Prompt lookup": repeating} if len(repeating.rows) > 1 else {})


def _timed(result: RaceResult) -> list[EngineResult]:
    return [engine for engine in result.raced if any(figure.per_round(engine) for figure in FIGURES)]


def _label(engine: EngineResult) -> str:
    return engine.name + (" *" if engine.full_heads else "")


def _shown(figure: Figure, value: float | None) -> str:
    return MISSING if value is None else SHOW[figure.unit](value)
