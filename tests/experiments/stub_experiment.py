"""An experiment that measures nothing; in a module of its own, as the registry names modules."""

from dataclasses import dataclass
from typing import Any

from experiments.contract import Experiment
from gpt2opt.report.tables import table


@dataclass(frozen=True)
class StubResult:
    rounds: int
    environment: dict[str, Any]
    schema: str = "gpt2opt.stub/1"


def run(rounds: int) -> StubResult:
    print("a library says hello")
    return StubResult(rounds, {"cpu_flags": ["avx2"]})


def charts(result: StubResult):
    from matplotlib.figure import Figure

    return {"stub": Figure()}


EXPERIMENT = Experiment(
    StubResult,
    run,
    tables=lambda result: {"Rounds": table(("rounds",), [(str(result.rounds),)])},
    charts=charts,
    caption=lambda result: f"A stub of {result.rounds} rounds.",
)
