"""`run.json`: the record that every table and chart is drawn from. It is flat: the name of a model -> what was measured of it.

What a model is in a run (its stage, its reference model, whether it is a control) is not stored but looked up in `ROLES`.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpt2opt.measure.results import Agreement, Comparison, Latency, Memory, Quality
from gpt2opt.measure.turns import again
from gpt2opt.settings import FINETUNE, PROFILE, PRUNE, QUANTIZE, STAGES, Settings
from gpt2opt.storage import from_json, read_json, write_result

SCHEMA = "gpt2opt.run/4"
BY_STAGE = "gpt2opt.run/3"
"""The schema of the edition before, which nested models in stages; `read_record` reads it too."""


Part = TypeVar("Part")


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
    in_turns: the latency of the other models that were timed in turns with this one, by name, the first of them twice; see `turns.again`.
    continuations: what it generated from each of the run's sample prompts, token by token. weights_in, weights: SHA-256 of the weight
    files that it was made from, None if they are not known, and of its own. seconds: of wall time that measuring it took.
    facts: what else is kept of it, such as the importance of its heads or the loss while it was trained.
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
    in_turns: dict[str, Latency] = field(default_factory=dict)
    weights_in: str | None = None
    weights: str | None = None
    seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def timed(self) -> Latency:
        """Return the latency; where it was not measured, raise ValueError, as the three below do of theirs."""
        return self._measured(self.latency, "timed")

    @property
    def sized(self) -> Memory:
        return self._measured(self.memory, "run in a process of its own")

    @property
    def scored(self) -> Quality:
        return self._measured(self.quality, "scored")

    @property
    def compared(self) -> Agreement:
        return self._measured(self.agreement, "compared with a reference model")

    def _measured(self, part: Part | None, how: str) -> Part:
        if part is None:
            raise ValueError(f"{self.name!r} was not {how} in this run")
        return part

    def comparisons(self) -> list[Comparison]:
        """Return each model that took turns with its reference model, or with itself, in the rounds in which this one was timed."""
        rounds = {self.name: self.latency, **self.in_turns} if self.latency else {}
        return [
            Comparison(name, base, latency, rounds[base]) for name, latency in rounds.items() if (base := _compared_with(name)) in rounds
        ]


def _compared_with(name: str) -> str | None:
    """Return the model that the times of a model are compared with: its reference model, or itself where it was timed a second time."""
    if name in ROLES:
        return ROLES[name].reference
    return next((base for base in ROLES if again(base) == name), None)


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


@dataclass
class Record:
    """One run: where it ran, what it ran on, and the models so far, in the order in which they were measured first.

    prompts: those that every model continues, as text. traces: see `hash_traces`, of the files that were there when the record was written;
    None in records of earlier versions.
    """

    created: str
    environment: dict[str, Any]
    sources: dict[str, Any]
    settings: Settings
    prompts: list[str] = field(default_factory=list)
    models: dict[str, Measurement] = field(default_factory=dict)
    schema: str = SCHEMA
    traces: dict[str, str] | None = None

    def role(self, name: str) -> Role:
        """Return what a model is in the run. One of a name that the four stages don't know is a control of the stage before it.

        Raises:
            ValueError: there is no stage yet for such a model.
        """
        if name in ROLES:
            return ROLES[name]
        models = list(self.models)
        before = [other for other in models[: models.index(name) if name in models else None] if other in ROLES]
        if not before:
            raise ValueError(f"{name!r} would be a control of the last stage so far, and there is none; measure 'Baseline' first")
        return Role(ROLES[before[-1]].stage, control=True, speed=False)

    @property
    def stages(self) -> list[str]:
        """Return the stages that were run: those whose own model was measured."""
        return [self.role(name).stage for name in self.models if not self.role(name).control]

    def stage(self, stage: str) -> Measurement:
        """Return the model of a stage.

        Raises:
            ValueError: the stage has not been run.
        """
        for name, measurement in self.models.items():
            role = self.role(name)
            if role.stage == stage and not role.control:
                return measurement
        raise ValueError(f"stage {stage!r} is not in this record, which has {self.stages}; run it first")

    def measured(self, name: str) -> Measurement:
        """Return the measurement of the model of that name, with the latency of the last rounds in turns that it took part in.

        Raises:
            ValueError: it has not been measured.
        """
        for measurement in self.measurements():
            if measurement.name == name:
                return measurement
        raise ValueError(f"{name!r} is not in this record, which has {list(self.models)}; measure it first")

    def measurements(self, last: str | None = None) -> list[Measurement]:
        """Return every measurement in order, up to the stage `last` or all.

        A model that was timed in turns with others has the latency of the last rounds that it took part in: times that are shown beside
        each other then come from the same rounds, and so do their ratios.
        """
        latest = STAGES.index(last or STAGES[-1])
        models = [model for name, model in self.models.items() if STAGES.index(self.role(name).stage) <= latest]
        timed = {name: latency for model in models for name, latency in (*model.in_turns.items(), (model.name, model.latency))}
        return [dataclasses.replace(model, latency=timed[model.name]) for model in models]

    def comparisons(self) -> list[Comparison]:
        """Return the models that took turns with their reference model, as in the last rounds that both took part in."""
        return list({(pair.name, pair.base): pair for model in self.models.values() for pair in model.comparisons()}.values())

    def timings(self, name: str) -> list[Latency]:
        """Return what was measured each time that a model was timed, in order: with the models before it, then with later ones."""
        found = (model.latency if model.name == name else model.in_turns.get(name) for model in self.models.values())
        return [latency for latency in found if latency]

    def add(self, measurement: Measurement) -> None:
        """Put a model in, in the place of an earlier one of its name. Unless it is a control, later stages no longer hold."""
        self.models[measurement.name] = measurement
        role = self.role(measurement.name)
        if not role.control:
            kept = {name for name in self.models if STAGES.index(self.role(name).stage) <= STAGES.index(role.stage)}
            self.models = {name: model for name, model in self.models.items() if name in kept}

    def write(self, path: Path) -> None:
        write_result(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read_record(path: Path) -> Record:
    """Read a record back.

    Raises:
        ValueError: the file is missing, is not JSON, has another schema or does not hold what the schema says.
    """
    content = read_json(path, SCHEMA, "gpt2opt run", older=(BY_STAGE,))
    try:
        if content["schema"] == BY_STAGE:
            content |= {"schema": SCHEMA, "models": _flattened(content.pop("stages"))}
        models = {name: from_json(Measurement, model) for name, model in content.pop("models").items()}
        settings = from_json(Settings, content.pop("settings"))
        return Record(**content, settings=settings, models=models)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole record ({type(error).__name__}: {error}); `gpt2opt run` writes it again") from error


def _flattened(stages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the models of a record that nested them in stages."""
    models: dict[str, dict[str, Any]] = {}
    for stage in stages:
        own = stage["measurement"]
        own |= {"weights_in": stage["weights_in"], "weights": stage["weights_out"], "in_turns": {}}
        for pair in stage.get("comparisons", ()):
            own["in_turns"] |= {pair["name"]: pair["latency"], pair["base"]: pair["base_latency"]}
        own["in_turns"].pop(own["name"], None)
        known = [*ROLES]
        in_order = sorted((own, *stage["controls"]), key=lambda model: known.index(model["name"]) if model["name"] in known else len(known))
        models |= {model["name"]: model for model in in_order}
    return models
