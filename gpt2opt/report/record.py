"""`run.json`: the record that every table and chart is drawn from."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2opt.report.results import Measurement, StageResult, from_json
from gpt2opt.storage import write_result

SCHEMA = "gpt2opt.run/2"


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. The defaults fit a 2-core machine; the same values hold at every stage."""

    prune_fraction: float = 0.2
    epochs: float = 1
    learning_rate: float = 5e-4
    fine_tune_bytes: int = 300_000
    score_bytes: int = 100_000
    calibration_sequences: int = 32
    sequence_length: int = 256
    prompt_tokens: int = 64
    new_tokens: int = 24
    seed: int = 0


@dataclass
class Record:
    """One run: where it ran, what it ran on, and the stages so far."""

    created: str
    environment: dict[str, Any]
    sources: dict[str, Any]
    settings: Settings
    stages: list[StageResult] = field(default_factory=list)
    schema: str = SCHEMA

    def stage(self, name: str) -> StageResult:
        """Return the stage of that name.

        Raises:
            ValueError: it has not been run.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"stage {name!r} is not in this record, which has {[s.name for s in self.stages]}; run it first")

    def measurements(self) -> list[tuple[Measurement, bool]]:
        """Return every measurement in order, each with whether it is a control."""
        rows: list[tuple[Measurement, bool]] = []
        for stage in self.stages:
            rows += [(stage.measurement, False), *((control, True) for control in stage.controls)]
        return rows

    def add(self, stage: StageResult) -> None:
        """Put a stage in; one of the same name, and all that came after it, no longer hold."""
        names = [other.name for other in self.stages]
        if stage.name in names:
            del self.stages[names.index(stage.name) :]
        self.stages.append(stage)

    def write(self, path: Path) -> None:
        write_result(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


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


def read_json(path: Path, schema: str, command: str) -> dict[str, Any]:
    """Read a JSON object of a schema.

    Args:
        path: the file.
        schema: what it must name as its own.
        command: what writes it; told in the error.

    Raises:
        ValueError: the file is missing, is not JSON or has another schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}; `{command}` writes it") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); `{command}` writes it anew") from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        raise ValueError(f"{path} has schema {found!r}, expected {schema!r}; `{command}` writes it anew")
    return content
