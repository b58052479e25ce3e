"""Tables of a race."""

import statistics

from gpt2opt.lab.bench_results import EFFECTIVE_TPOT, FIGURES, TPOT, TTFT_512, BenchResult, EngineResult, Figure
from gpt2opt.report.tables import MISSING, Table, megabytes, milliseconds, table
from gpt2opt.stats import PERCENT

SHOW = {"ms": milliseconds, "s": "{:.2f}".format, "tokens/s": "{:.0f}".format}


def speed_table(result: BenchResult) -> Table:
    """Show the median of every figure over the rounds."""
    rows = [[_label(engine), *(_shown(figure, figure.median(engine)) for figure in FIGURES)] for engine in _timed(result)]
    return table(("engine", *(f"{figure.name}, {figure.unit}" for figure in FIGURES)), rows)


def ratio_table(result: BenchResult) -> Table:
    """Show every figure ÷ ours, with its interval over the rounds; for tokens/s more is better, for all else less."""
    rows = [[_label(engine), *(str(figure.ratio(engine, result.ours) or MISSING) for figure in FIGURES)] for engine in _timed(result)]
    return table((f"engine ÷ ours [{PERCENT}]", *(figure.name for figure in FIGURES)), rows)


def limits_table(result: BenchResult) -> Table:
    """Show how far each engine is from the machine: TPOT from its weights ÷ read bandwidth, TTFT from operations ÷ INT8 rate.

    Ratios are taken round by round, as those of the engines are; limits in ms are the medians of the rounds.

    The last column is the time that the second token takes beyond a usual one, as a share of reading the prompt: what it costs to go
    over from reading to decoding.
    """
    rows = []
    for engine in _timed(result):
        least_tpot = [engine.read_bytes / limits.read_bytes_per_s for limits in result.limits]
        least_first = [engine.operations(TTFT_512.case.prompt_tokens) / limits.int8_ops_per_s for limits in result.limits]
        tpot, first = TPOT.ratio_to(least_tpot, engine), TTFT_512.ratio_to(least_first, engine)
        if not tpot:
            continue
        rows.append(
            [
                _label(engine), megabytes(engine.read_bytes), milliseconds(statistics.median(least_tpot)), str(tpot),
                milliseconds(statistics.median(least_first)), str(first), f"{handover_share(engine):.1%}",
            ]
        )  # fmt: skip
    shares = ("TPOT limit, ms", f"TPOT ÷ limit [{PERCENT}]", "TTFT 512 limit, ms", f"TTFT 512 ÷ limit [{PERCENT}]")
    return table(("engine", "MB read a token", *shares, "hand-over"), rows)


def handover_share(engine: EngineResult) -> float:
    """Return the median over the rounds of (second token − median TPOT) ÷ TTFT, after 512 tokens."""
    calls = engine.timings(TPOT.case)
    return statistics.median((call.later_s[0] - statistics.median(call.later_s)) / call.first_s for call in calls)


def memory_table(result: BenchResult) -> Table:
    """Show bytes on disk and the peak RSS of a fresh process that loads and generates 512 + 128 tokens, each also ÷ ours."""
    rows = []
    for engine in result.raced:
        row = [_label(engine)]
        for value, ours in ((engine.disk_bytes, result.ours.disk_bytes), (engine.peak_rss_bytes, result.ours.peak_rss_bytes)):
            row += [megabytes(value) if value else MISSING, f"{value / ours:.2f}" if value and ours else MISSING]
        rows.append([*row, megabytes(engine.prepare_peak_rss_bytes) if engine.prepare_peak_rss_bytes else MISSING])
    return table(("engine", "on disk, MB", "÷ ours", "peak RSS, MB", "÷ ours", "peak RSS of converting, MB"), rows)


def repeating_table(result: BenchResult) -> Table:
    """Show what prompt lookup gives on a text that repeats itself: time per token over the whole of the new text."""
    engines = [engine for engine in result.raced if EFFECTIVE_TPOT.per_round(engine)]
    rows = [
        (engine.name, _shown(EFFECTIVE_TPOT, EFFECTIVE_TPOT.median(engine)), str(EFFECTIVE_TPOT.ratio(engine, result.ours) or MISSING))
        for engine in engines
    ]
    return table(("engine", f"{EFFECTIVE_TPOT.name}, {EFFECTIVE_TPOT.unit}", f"÷ ours [{PERCENT}]"), rows)


def engines_table(result: BenchResult) -> Table:
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


def caption(result: BenchResult) -> str:
    """Say what the tables were taken on."""
    facts, fastest = result.environment, max(limits.read_bytes_per_s for limits in result.limits)
    return (
        f"{result.size}, weights: {result.models.weights}; {result.models.prune_fraction:.0%} of each layer's heads pruned, but none where "
        f"marked *. {facts['cpu']} ({', '.join(facts['cpu_flags'])}), {facts['threads']} threads, {result.rounds} rounds. The machine "
        f"reads {result.limit('read_bytes_per_s') / 1e9:.1f} GB/s in the median round, {fastest / 1e9:.1f} in the best, and computes "
        f"{result.limit('int8_ops_per_s') / 1e9:.0f} GOPS in INT8, {result.limit('fp32_ops_per_s') / 1e9:.0f} in FP32."
    )


def _timed(result: BenchResult) -> list[EngineResult]:
    return [engine for engine in result.raced if any(figure.per_round(engine) for figure in FIGURES)]


def _label(engine: EngineResult) -> str:
    return engine.name + (" *" if engine.full_heads else "")


def _shown(figure: Figure, value: float | None) -> str:
    return MISSING if value is None else SHOW[figure.unit](value)
