"""Runs beside each other: each figure of a later run over the first run's, or why that would say nothing."""

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt2opt.measure.stats import PERCENT, ratio_of_medians
from gpt2opt.report.tables import MISSING, Table, megabytes, milliseconds, table, with_interval
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


FIGURES: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "TTFT, ms": ("latency", "ttft_s", milliseconds),
    "TPOT, ms": ("latency", "tpot_s", milliseconds),
    "perplexity": ("quality", "perplexity", "{:.2f}".format),
    "file, MB": ("memory", "weight_bytes", megabytes),
    "peak RSS, MB": ("memory", "peak_rss_bytes", megabytes),
    "peak VRAM, MB": ("memory", "peak_vram_bytes", megabytes),
}
"""Each figure: the part of a measurement that has it, its name there, and how it is shown."""
SAMPLES = {"TTFT, ms": "ttft_samples_s", "TPOT, ms": "tpot_by_run_s"}
"""What intervals of times are over. TPOT by run: the tokens of one run are not independent."""


def compare_runs(records: Sequence[Record]) -> list[ComparedFigure]:
    """Compare every model that any run measured, stage by stage, with the first run.

    Raises:
        ValueError: fewer than two runs, or more than there are letters to name them.
    """
    if not 2 <= len(records) <= len(string.ascii_uppercase):
        raise ValueError(f"{len(records)} runs to compare, expected 2 to {len(string.ascii_uppercase)}")
    found = [{(record.role(name).stage, name): model for name, model in record.models.items()} for record in records]
    comparisons = []
    for key in sorted(dict.fromkeys(key for models in found for key in models), key=lambda key: key[0]):
        runs = [(record, models.get(key)) for record, models in zip(records, found, strict=True)]
        for name in FIGURES:
            values = tuple(_value(name, measurement) for _, measurement in runs)
            if any(value is not None for value in values):
                comparisons.append(ComparedFigure(*key, name, values, tuple(_ratio(name, runs[0], run) for run in runs[1:])))
    return comparisons


def comparison_tables(comparisons: Sequence[ComparedFigure]) -> dict[str, Table]:
    """Return one table a stage: every figure of every run, and its ratio to the first run's."""
    letters = string.ascii_uppercase[: len(comparisons[0].values)] if comparisons else ""
    header = ("model", "figure", *letters, *(f"{letter} ÷ A [{PERCENT}]" for letter in letters[1:]))
    rows: dict[str, list[tuple[str, ...]]] = {}
    for comparison in comparisons:
        *_, show = FIGURES[comparison.figure]
        values = (MISSING if value is None else show(value) for value in comparison.values)
        form = ".4f" if comparison.figure == "perplexity" else ".2f"
        ratios = (
            f"not comparable: {ratio.not_comparable}" if ratio.value is None else with_interval(ratio.value, ratio.interval, form)
            for ratio in comparison.ratios
        )
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


def _value(name: str, measurement: Measurement | None) -> float | None:
    part, attribute, _ = FIGURES[name]
    return getattr(getattr(measurement, part, None), attribute, None)


def _ratio(name: str, first: tuple[Record, Any], run: tuple[Record, Any]) -> RunRatio:
    value, base_value = _value(name, run[1]), _value(name, first[1])
    if value is None or base_value is None:
        return RunRatio(not_comparable="not measured in both")
    mine, theirs = _conditions(name, *run), _conditions(name, *first)
    different = [
        "protocol differs" if condition == "protocol" else f"{condition} {theirs[condition]} in A, {mine[condition]} here"
        for condition in mine
        if mine[condition] != theirs[condition]
    ]
    if different:
        return RunRatio(not_comparable="; ".join(different))
    return RunRatio(value / base_value, _interval(name, run[1], first[1]))


def _conditions(name: str, record: Record, measurement: Measurement) -> dict[str, Any]:
    """Return what has to be the same in two runs for the ratio of a figure to mean something."""
    if name == "file, MB":
        return {}
    if name == "perplexity":
        quality = measurement.scored
        return {"device": measurement.device, "protocol": (quality.protocol, quality.document_tokens)}
    work: Any = measurement.latency if name in SAMPLES else record.settings
    tokens = {"prompt tokens": work.prompt_tokens, "new tokens": work.new_tokens, "batch size": getattr(work, "batch_size", 1)}
    return {"device": measurement.device, "threads": record.environment["threads"], **tokens}


def _interval(name: str, measurement: Measurement, base: Measurement) -> tuple[float, float] | None:
    if name in SAMPLES:
        ratio = ratio_of_medians(*(getattr(each.latency, SAMPLES[name]) for each in (measurement, base)))
        return (ratio.low, ratio.high) if math.isfinite(ratio.high) else None
    return measurement.scored.ratio_interval(base.scored) if name == "perplexity" else None
