"""Runs beside each other: each figure of a later run over the first run's, or why that would say nothing."""

import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt2opt.measure.results import Latency
from gpt2opt.measure.stats import PERCENT, ratio_of_medians
from gpt2opt.report.tables import MISSING, Table, megabytes, milliseconds, table
from gpt2opt.run.record import Measurement, Record

CAPTION = (
    f"Ratios are to run A, with {PERCENT} intervals. Of TTFT and TPOT they are ratios of medians, and the intervals are over the timed "
    "generations of each run, not paired; of perplexity over documents, paired. The runs were not interleaved: a machine that was busier "
    "during one of them moves all of its times, and no interval shows that. Sizes and memory are single readings."
)


@dataclass(frozen=True)
class RunRatio:
    """A run's figure over the first run's. interval: None without samples. not_comparable: why there is no value."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    not_comparable: str | None = None


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of one model in every run, in SI units; None where a run did not measure it. ratios: of every run after the first."""

    stage: str
    model: str
    figure: str
    values: tuple[float | None, ...]
    ratios: tuple[RunRatio, ...]


@dataclass(frozen=True)
class _Figure:
    """A figure of one part of a measurement. conditions: what has to be the same for a ratio to mean something."""

    part: str
    of: Callable[[Any], float | None]
    show: Callable[[float], str]
    conditions: Callable[[Record, Measurement], dict[str, Any]]
    interval: Callable[[Any, Any], tuple[float, float] | None] = lambda one, base: None
    digits: int = 2


def compare_runs(records: Sequence[Record]) -> list[ComparedFigure]:
    """Compare every model that any run measured, stage by stage, with the first run.

    Raises:
        ValueError: fewer than two runs, or more than there are letters to name them.
    """
    if not 2 <= len(records) <= len(string.ascii_uppercase):
        raise ValueError(f"{len(records)} runs to compare, expected 2 to {len(string.ascii_uppercase)}")
    found = [_models(record) for record in records]
    comparisons = []
    for key in sorted(dict.fromkeys(key for models in found for key in models), key=lambda key: key[0]):
        measured = [models.get(key) for models in found]
        for name, figure in FIGURES.items():
            values = tuple(_value(figure, measurement) for measurement in measured)
            if any(value is not None for value in values):
                pairs = zip(records[1:], measured[1:], strict=True)
                ratios = tuple(_ratio(figure, records[0], measured[0], record, measurement) for record, measurement in pairs)
                comparisons.append(ComparedFigure(*key, name, values, ratios))
    return comparisons


def comparison_tables(comparisons: Sequence[ComparedFigure]) -> dict[str, Table]:
    """Return one table a stage: every figure of every run, and its ratio to the first run's."""
    letters = string.ascii_uppercase[: len(comparisons[0].values)] if comparisons else ""
    header = ("model", "figure", *letters, *(f"{letter} ÷ A [{PERCENT}]" for letter in letters[1:]))
    rows: dict[str, list[tuple[str, ...]]] = {}
    for comparison in comparisons:
        figure = FIGURES[comparison.figure]
        values = (MISSING if value is None else figure.show(value) for value in comparison.values)
        ratios = (_show_ratio(ratio, figure.digits) for ratio in comparison.ratios)
        rows.setdefault(comparison.stage, []).append((comparison.model, comparison.figure, *values, *ratios))
    return {stage: table(header, lines) for stage, lines in rows.items()}


def differences_table(records: Sequence[Record]) -> Table:
    """Show the settings, facts of the environment, sources and scoring protocols that are not the same in all runs."""
    facts = [_facts(record) for record in records]
    names = dict.fromkeys(name for run in facts for name in run)
    rows = [(name, *(str(run.get(name, MISSING)) for run in facts)) for name in names if len({str(run.get(name)) for run in facts}) > 1]
    return table(("what", *string.ascii_uppercase[: len(records)]), rows)


def _facts(record: Record) -> dict[str, Any]:
    protocols = [m.quality.protocol for m in record.measurements() if m.quality]
    parts = {"setting": asdict(record.settings), "environment": record.environment, "source": record.sources}
    return {"created": record.created, **_flat(parts), "scored": "; ".join(dict.fromkeys(protocols)) or MISSING}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


def _models(record: Record) -> dict[tuple[str, str], Measurement]:
    return {(record.role(name).stage, name): model for name, model in record.models.items()}


def _value(figure: _Figure, measurement: Measurement | None) -> float | None:
    part = measurement and getattr(measurement, figure.part)
    return figure.of(part) if part else None


def _ratio(figure: _Figure, first: Record, base: Measurement | None, record: Record, measurement: Measurement | None) -> RunRatio:
    value, base_value = _value(figure, measurement), _value(figure, base)
    if value is None or base_value is None:
        return RunRatio(not_comparable="not measured in both")
    mine, theirs = figure.conditions(record, measurement), figure.conditions(first, base)
    different = [_difference(name, theirs[name], mine[name]) for name in mine if mine[name] != theirs[name]]
    if different:
        return RunRatio(not_comparable="; ".join(different))
    interval = figure.interval(getattr(measurement, figure.part), getattr(base, figure.part))
    return RunRatio(value / base_value, interval)


def _difference(name: str, theirs: Any, mine: Any) -> str:
    return f"{name} differs" if name == "protocol" else f"{name} {theirs} in A, {mine} here"


def _show_ratio(ratio: RunRatio, digits: int) -> str:
    if ratio.value is None:
        return f"not comparable: {ratio.not_comparable}"
    shown = f"{ratio.value:.{digits}f}"
    return shown if ratio.interval is None else f"{shown} [{ratio.interval[0]:.{digits}f}, {ratio.interval[1]:.{digits}f}]"


def _timing(record: Record, measurement: Measurement) -> dict[str, Any]:
    latency = measurement.latency
    timed = {"prompt tokens": latency.prompt_tokens, "new tokens": latency.new_tokens, "batch size": latency.batch_size}
    return {"device": measurement.device, "threads": record.environment["threads"], **timed}


def _generating(record: Record, measurement: Measurement) -> dict[str, Any]:
    settings = record.settings
    work = {"prompt tokens": settings.prompt_tokens, "new tokens": settings.new_tokens}
    return {"device": measurement.device, "threads": record.environment["threads"], **work}


def _scoring(record: Record, measurement: Measurement) -> dict[str, Any]:
    quality = measurement.quality
    return {"device": measurement.device, "protocol": (quality.protocol, quality.document_tokens)}


def _nothing(record: Record, measurement: Measurement) -> dict[str, Any]:
    return {}


def _ttft_interval(one: Latency, base: Latency) -> tuple[float, float] | None:
    return _ratio_interval(one.ttft_samples_s, base.ttft_samples_s)


def _tpot_interval(one: Latency, base: Latency) -> tuple[float, float] | None:
    """Return the interval over runs: the tokens of one run are not independent of each other."""
    return _ratio_interval(one.tpot_by_run_s, base.tpot_by_run_s)


def _ratio_interval(one: Sequence[float], base: Sequence[float]) -> tuple[float, float] | None:
    ratio = ratio_of_medians(one, base)
    return (ratio.low, ratio.high) if min(len(one), len(base)) > 1 else None


FIGURES = {
    "TTFT, ms": _Figure("latency", lambda latency: latency.ttft_s, milliseconds, _timing, _ttft_interval),
    "TPOT, ms": _Figure("latency", lambda latency: latency.tpot_s, milliseconds, _timing, _tpot_interval),
    "perplexity": _Figure(
        "quality", lambda quality: quality.perplexity, "{:.2f}".format, _scoring, lambda one, base: one.ratio_interval(base), 4
    ),
    "file, MB": _Figure("memory", lambda memory: memory.weight_bytes, megabytes, _nothing),
    "peak RSS, MB": _Figure("memory", lambda memory: memory.peak_rss_bytes, megabytes, _generating),
    "peak VRAM, MB": _Figure("memory", lambda memory: memory.peak_vram_bytes, megabytes, _generating),
}
