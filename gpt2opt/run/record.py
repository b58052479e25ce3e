"""`run.json`: the record that every table and chart is drawn from."""

import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2opt.measure.results import Agreement, Comparison, Latency, Memory, Quality
from gpt2opt.settings import FINETUNE, PROFILE, PRUNE, QUANTIZE, Settings
from gpt2opt.storage import from_json, read_json, write_result

SCHEMA = "gpt2opt.run/3"


@dataclass(frozen=True)
class Role:
    """What a model is in a run.

    stage: where it belongs. made_from: the model whose weights it was made from; None for the source. reference: the model that its
    answers are compared with, position by position, and its times too, if both run in the same runtime; None for none.
    control: it is there to tell causes apart, and no later stage builds on it. speed: whether its latency and memory are measured.
    """

    stage: str
    made_from: str | None = None
    reference: str | None = None
    control: bool = False
    speed: bool = True


ROLES = {
    "Baseline": Role(PROFILE),
    "Pruned": Role(PRUNE, "Baseline", "Baseline"),
    "Pruned, first heads": Role(PRUNE, "Baseline", control=True, speed=False),
    "Fine-tuned": Role(FINETUNE, "Pruned", "Baseline"),
    "Fine-tuned, unpruned": Role(FINETUNE, "Baseline", control=True, speed=False),
    "FP32": Role(QUANTIZE, "Fine-tuned", "Fine-tuned", control=True),
    "INT8": Role(QUANTIZE, "Fine-tuned", "FP32"),
    "INT8, naive": Role(QUANTIZE, "Fine-tuned", "FP32", control=True, speed=False),
}
"""The models of the four stages by the names that tables and charts give them."""


def folder_name(name: str, role: Role) -> str:
    """Return what the folder of a model is called: `2-prune` for "Pruned", `2-control-first-heads` for "Pruned, first heads"."""
    if not role.control:
        return role.stage
    return f"{role.stage[0]}-control-{name.split(', ')[-1].lower().replace(' ', '-')}"


def reference_folder(role: Role) -> str:
    """Return what the folder of the trace of a reference model is called that was recorded in turns with a model of a role.

    Of "Pruned" it is `2-control-baseline`, and of "INT8" `4-control-fp32`, the folder of FP32 itself.
    """
    return folder_name(role.reference or "", Role(role.stage, control=True))


@dataclass(frozen=True)
class Measurement:
    """One model and what was measured of it, on one device.

    dtype is that of the weights and of the timed arithmetic; quality_dtype that of the arithmetic that scored the text.
    continuations: what it generated from each of the run's sample prompts, token by token. facts: what else is to be told of it, such as
    the importance of its heads or the loss while it was trained.
    """

    name: str
    device: str
    dtype: str
    runtime: str
    parameters: int | None = None
    latency: Latency | None = None
    memory: Memory | None = None
    quality: Quality | None = None
    quality_dtype: str | None = None
    agreement: Agreement | None = None
    continuations: tuple[tuple[str, ...], ...] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def dominated_by(measurement: Measurement, others: typing.Iterable[Measurement]) -> list[Measurement]:
    """Return those of `others` that are no worse in perplexity, TPOT and bytes on disk, and better in one of them.

    Measurements that no other dominates are the Pareto front. Only those of the same device, scored text and timed prompt are held
    against each other, and only if all three were measured. Perplexities count as different if their paired interval shows it; of TPOT
    and bytes the figures alone count.
    """
    own = _figures(measurement)
    return [other for other in others if own and (theirs := _figures(other)) and _beats(theirs, own)]


def _figures(measurement: Measurement) -> tuple[tuple, Quality, tuple[float, int]] | None:
    """Return how a measurement was taken and what it found: quality, TPOT and bytes; None if one of them was not measured."""
    latency, memory, quality = measurement.latency, measurement.memory, measurement.quality
    if not (latency and memory and quality):
        return None
    setting = (measurement.device, quality.protocol, quality.document_tokens, latency.prompt_tokens, latency.new_tokens, latency.batch_size)
    return setting, quality, (latency.tpot_s, memory.weight_bytes)


def _beats(one: tuple[tuple, Quality, tuple[float, int]], other: tuple[tuple, Quality, tuple[float, int]]) -> bool:
    (setting, quality, costs), (others_setting, others_quality, others_costs) = one, other
    if setting != others_setting or any(a > b for a, b in zip(costs, others_costs, strict=True)):
        return False
    ratio = quality.ratio_to(others_quality)
    low, high = quality.ratio_interval(others_quality) or (ratio, ratio)
    return low <= 1 and (high < 1 or costs != others_costs)


@dataclass(frozen=True)
class StageResult:
    """What one stage read, wrote and measured.

    weights_in, weights_out: SHA-256 of the weight files that its model was loaded from before it was changed, None if that is not known,
    and of those that were written. seconds: of wall time that the stage took. controls: other models measured the same way, to tell
    causes apart. comparisons: the models that were timed in turns in this stage, each with its reference model; that of the stage first.
    """

    name: str
    weights_in: str | None
    weights_out: str
    measurement: Measurement
    seconds: float
    controls: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        return self.measurement.facts

    def control(self, name: str) -> Measurement:
        return next(control for control in self.controls if control.name == name)


@dataclass
class Record:
    """One run: where it ran, what it ran on, and the stages so far.

    prompts: those that every model continues, as text. traces: see `hash_traces`, of the files that were there when the record was written;
    None in records of earlier versions.
    """

    created: str
    environment: dict[str, Any]
    sources: dict[str, Any]
    settings: Settings
    prompts: list[str] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    schema: str = SCHEMA
    traces: dict[str, str] | None = None

    def stage(self, name: str) -> StageResult:
        """Return the stage of that name.

        Raises:
            ValueError: it has not been run.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"stage {name!r} is not in this record, which has {[s.name for s in self.stages]}; run it first")

    def measurements(self, last: str | None = None) -> list[tuple[Measurement, bool]]:
        """Return every measurement in order, each with whether it is a control, up to the stage `last` or all.

        A model that was timed in turns with others has the latency of the last rounds that it took part in: times that are shown beside
        each other then come from the same rounds, and so do their ratios.
        """
        stages = self.stages if last is None else self.stages[: self.stages.index(self.stage(last)) + 1]
        in_turns = {name: latency for pair in _pairs(stages) for name, latency in pair.latencies.items()}
        rows: list[tuple[Measurement, bool]] = []
        for stage in stages:
            rows += [(stage.measurement, False), *((control, True) for control in stage.controls)]
        return [(dataclasses.replace(found, latency=in_turns.get(found.name, found.latency)), control) for found, control in rows]

    def comparisons(self) -> list[Comparison]:
        """Return the models that took turns with their reference model, as in the last rounds that both took part in."""
        return list({(pair.name, pair.base): pair for pair in _pairs(self.stages)}.values())

    def timings(self, name: str) -> list[Latency]:
        """Return what was measured each time that a model was timed, in order: alone or with the models before it, then with later ones."""
        own = [m.latency for stage in self.stages for m in (stage.measurement, *stage.controls) if m.name == name and m.latency]
        later = [pair.latencies[name] for pair in _pairs(self.stages) if name in pair.latencies]
        return list(dict.fromkeys((*own, *later)))

    def measured(self, name: str) -> Measurement:
        """Return the measurement of the model of that name.

        Raises:
            ValueError: it has not been measured.
        """
        names = [measurement.name for measurement, _ in self.measurements()]
        for measurement, _ in self.measurements():
            if measurement.name == name:
                return measurement
        raise ValueError(f"{name!r} is not in this record, which has {names}; measure it first")

    def add(self, stage: StageResult) -> None:
        """Put a stage in; one of the same name, and all that came after it, no longer hold."""
        names = [other.name for other in self.stages]
        if stage.name in names:
            del self.stages[names.index(stage.name) :]
        self.stages.append(stage)

    def replace(self, stage: StageResult) -> None:
        """Put a stage in the place of the one of the same name; what came after it stays."""
        self.stages = [stage if other.name == stage.name else other for other in self.stages]

    def write(self, path: Path) -> None:
        write_result(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def _pairs(stages: Sequence[StageResult]) -> Iterator[Comparison]:
    return (pair for stage in stages for pair in stage.comparisons)


def read_record(path: Path) -> Record:
    """Read a record back.

    Raises:
        ValueError: the file is missing, is not JSON, has another schema or does not hold what the schema says.
    """
    content = read_json(path, SCHEMA, "gpt2opt run")
    try:
        stages = [from_json(StageResult, stage) for stage in content.pop("stages")]
        settings = from_json(Settings, content.pop("settings"))
        return Record(**content, settings=settings, stages=stages)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole record ({type(error).__name__}: {error}); `gpt2opt run` writes it anew") from error
