"""What a deployed model does on this machine: latency statistics and scaling over cores, of `GPT2Deployed` on each back-end.

The bundled model is small enough for its weights to stay in a CPU's caches. So where it replaces `gpt2`, a GPT-2 of that size is
measured too. Its weights are random: they take the time of trained ones, and its text is not shown.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.contract import Experiment, now, say
from gpt2opt import environment
from gpt2opt.apps.deployed.model import BACKENDS, HERE, GPT2Deployed
from gpt2opt.apps.deployed.report import plot_scaling, scaling_table, statistics_table
from gpt2opt.apps.deployed.statistics import Scaling, ServingStatistics
from gpt2opt.report.tables import Table, table
from gpt2opt.settings import check_whole
from gpt2opt.sources.models import save_model

PROMPT = "Hi there!!"


@dataclass(frozen=True)
class Deployment:
    """One model on one back-end. version: of the back-end's package."""

    version: str | None
    statistics: ServingStatistics
    scaling: Scaling


@dataclass(frozen=True)
class DeployedModel:
    """One model on all back-ends of this machine. source: what it is and where it was found. text: what it says after the prompt; None if
    its weights are random."""

    source: str
    text: str | None
    deployments: tuple[Deployment, ...]

    @property
    def name(self) -> str:
        """Return the source without where it was found."""
        return self.source.partition(" (from")[0]


@dataclass(frozen=True)
class DeployedResult:
    """All models, with all samples."""

    created: str
    environment: dict[str, Any]
    prompt: str
    models: tuple[DeployedModel, ...]
    schema: str = "gpt2opt.deployed/1"


def measure_deployed(model: str = "auto", runs: int = 12) -> DeployedResult:
    """Deploy a model on every back-end that runs here, and measure it in `runs` timed runs; progress goes to stdout.

    Raises:
        ValueError: runs < 2, or there is no such model.
    """
    check_whole("runs", runs, 2, "an interval is drawn over them")
    for backend in HERE:
        BACKENDS[backend].require()
    first = GPT2Deployed.from_pretrained(model)
    models = [_deployed(first, runs, trained=True)]
    if first.source.stand_in:
        with tempfile.TemporaryDirectory() as scratch:
            models.append(_deployed(_full_size(first, Path(scratch, "gpt2")), runs, trained=False))
    return DeployedResult(now(), environment.describe(), PROMPT, tuple(models))


def _full_size(small: GPT2Deployed, folder: Path) -> GPT2Deployed:
    """Write a GPT-2 of 124 million random weights, with the tokenizer of the small model, and return it."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(0)
    save_model(folder, small.tokenizer, GPT2LMHeadModel(GPT2Config()))
    model = GPT2Deployed.from_pretrained(folder)
    model.source = dataclasses.replace(model.source, name="GPT-2 124M with random weights", origin="config of gpt2")
    return model


def _deployed(model: GPT2Deployed, runs: int, trained: bool) -> DeployedModel:
    deployments, text = [], None
    for backend in HERE:
        say(f"{model.source} in {backend}")
        model.compile(backend=backend)
        generation = model.generate(PROMPT, runs=runs)
        text = generation.texts[0] if trained else None
        assert generation.statistics
        deployments.append(Deployment(environment.installed(backend), generation.statistics, model.scaling(runs=runs)))
    return DeployedModel(str(model.source), text, tuple(deployments))


def deployed_tables(result: DeployedResult) -> dict[str, Table]:
    """Return, for each model, the statistics that `generate` prints and the scaling, the back-ends below each other."""
    tables = {}
    for model in result.models:
        tables[f"Latency statistics: {model.name}"] = _by_backend(model, [statistics_table(d.statistics) for d in model.deployments])
        tables[f"Scaling over cores: {model.name}"] = _by_backend(model, [scaling_table(d.scaling) for d in model.deployments])
    return tables


def _by_backend(model: DeployedModel, tables: list[Table]) -> Table:
    names = [f"{each.statistics.backend} {each.version}" for each in model.deployments]
    rows = [(f"{name}: {row[0]}", *row[1:]) for name, shown in zip(names, tables, strict=True) for row in shown.rows]
    first, *others = tables[0].header
    return table((f"back-end: {first}", *others), rows)


def deployed_charts(result: DeployedResult) -> dict[str, Any]:
    """Draw the scaling of each model."""
    drawn = [plot_scaling([each.scaling for each in model.deployments])[0].figure for model in result.models]
    return dict(zip(("deployed", "deployed-full-size"), drawn, strict=False))


def deployed_caption(result: DeployedResult) -> str:
    """Say what was measured where, what the models are and say, and what the machine allows."""
    timed = result.models[0].deployments[0].statistics
    counts = f"{len(timed.runs)} runs of {sum(timed.runs[0].tokens)} new tokens after a prompt of {timed.prompt_tokens[0]}"
    said = [
        f"{environment.machine_label(result.environment)}. Statistics: {counts}; a rate's p95 is what 95% of the samples reach. "
        "The back-ends were timed one after the other, the numbers of cores in turns."
    ]
    for model in result.models:
        limits = model.deployments[0].statistics.limits
        read, multiplied = f"{limits.read_bytes_per_s / 1e9:.1f} GB/s", f"{limits.fp32_ops_per_s / 1e9:.0f} GFLOPS"
        text = "" if model.text is None else f" After “{result.prompt}” it says: `{' '.join(model.text.split())}`"
        said.append(f"{model.source}: memory read at {read} and FP32 multiplied at {multiplied} with all cores.{text}")
    return "\n\n".join(said)


EXPERIMENT = Experiment(DeployedResult, measure_deployed, deployed_tables, deployed_charts, deployed_caption)
