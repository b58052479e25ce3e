"""What the seed found of methods and sizes: every finding by name, confirmed, refuted or not measured, with its figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.decoding.methods import GREEDY, SAMPLING
from experiments.decoding.results import ITSELF, Decoding, ModelResult, explained_to_judge, mean, nats, rep4
from gpt2opt.measure.stats import Estimate, median, over_documents, ratio_of_medians
from gpt2opt.report.tables import Table, table

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "no difference was measurable"
SMALL, MEDIUM, LARGE = "gpt2", "gpt2-medium", "gpt2-large"


@dataclass(frozen=True)
class Finding:
    """A finding of the seed. claim: in its words, nearly. verdict: what the result says of it. figure: the numbers behind that."""

    claim: str
    verdict: str
    figure: str


def findings_table(findings: Sequence[Finding]) -> Table:
    return table(("the seed found that", "verdict", "figure"), [(found.claim, found.verdict, found.figure) for found in findings])


def find_all(result: Decoding) -> list[Finding]:
    writers = result.writers
    return [
        *(finding for model in writers for finding in sampling_is_coherent(model)),
        medium_is_balanced(result),
        *larger_is_slower(result),
    ]


def sampling_is_coherent(model: ModelResult) -> list[Finding]:
    """Hold the mean of all methods that sample against greedy decoding, prompt by prompt: repetition, and what the prompt explains.

    What it explains is asked of the judge alone. To the model that wrote a text its prompt explains it in any case; see `explained`.
    """
    methods = [method for method in model.methods if method in SAMPLING]
    repeats, coherent = f"sampling repeats itself less ({model.name})", f"sampling is more coherent ({model.name})"
    if not methods:
        return [Finding(claim, "not measured here: no method that samples was asked for", "") for claim in (repeats, coherent)]

    def gain(of) -> Estimate:
        sampled = np.mean([model.by_prompt(method, of) for method in methods], axis=0)
        return mean(sampled - model.by_prompt(GREEDY, of))

    less, nll = gain(rep4), gain(nats)
    cost = f"the texts cost {_signed(nll)} nats per token more under the model that wrote them"
    verdict, figure = "not judged here: needs a second model that writes, with the same vocabulary", cost
    if model.judge:
        more, itself = gain(explained_to_judge), mean(model.by_prompt(ITSELF, explained_to_judge)).value
        verdict = decide(more.low > 0, more.high < 0)
        figure = (
            f"to {model.judge} the prompt explains {_signed(more)} nats per token more than with greedy (of the text itself it explains "
            f"{itself:.2f}); {cost}"
        )
    return [
        Finding(repeats, decide(less.high < 0, less.low > 0), f"rep-4 of {len(methods)} sampling methods − greedy: {_points(less)} points"),
        Finding(coherent, verdict, figure),
    ]


def medium_is_balanced(result: Decoding) -> Finding:
    """Ask if the step to gpt2-medium gains more nats per doubling of the time than the next step does, on the text itself."""
    claim = "gpt2-medium is the best balance of speed and quality"
    sizes = [result.model(name) for name in (SMALL, MEDIUM, LARGE)]
    real = [model for model in sizes if model and model.texts]
    if len(real) < 3:
        return Finding(claim, _needs([MEDIUM, LARGE]), _speeds([model for model in sizes if model]))
    (small, medium, large), costs = real, [model.by_prompt(ITSELF, nats) for model in real]
    first, second = (math.log2(_slower(*pair).value) for pair in ((medium, small), (large, medium)))
    ones = np.ones(len(costs[0]))
    better = over_documents(
        lambda one, two, three, count: ((one - two) / first - (two - three) / second) / count, *costs, ones, tokens=ones
    )
    figure = f"nats per token gained for each doubling of the time, to {MEDIUM} − to {LARGE}: {_signed(better)}"
    return Finding(claim, decide(better.low > 0, better.high < 0), f"{figure}; {_speeds(real)}")


def larger_is_slower(result: Decoding) -> list[Finding]:
    slower, no_better = "larger models are slower", "larger models are not much better"
    sizes = [model for name in (SMALL, MEDIUM, LARGE) if (model := result.model(name))]
    if len(sizes) < 2:
        return [Finding(claim, _needs([MEDIUM, LARGE]), "") for claim in (slower, no_better)]
    ratio = _slower(sizes[-1], sizes[0])
    found = Finding(slower, decide(ratio.low > 1, ratio.high < 1), _speeds(sizes))
    real = [model for model in sizes if model.texts]
    if len(real) < 2:
        return [found, Finding(no_better, _needs([MEDIUM, LARGE]), "")]
    gain = mean(real[0].by_prompt(ITSELF, nats) - real[-1].by_prompt(ITSELF, nats))
    figure = f"the text itself costs {real[-1].name} {_signed(gain)} nats per token less than {real[0].name}"
    return [found, Finding(no_better, decide(gain.low <= 0, gain.low > 0), figure)]


def _slower(model: ModelResult, base: ModelResult) -> Estimate:
    """Return the ratio of the times of greedy decoding; the models were timed one after the other, so the samples are not paired."""
    return ratio_of_medians(model.seconds(GREEDY), base.seconds(GREEDY))


def _speeds(models: Sequence[ModelResult]) -> str:
    if len(models) < 2:
        return ""
    stand_ins = [model.name for model in models if model.stand_in]
    named = f" (random weights stand in for {', '.join(stand_ins)})" if stand_ins else ""
    ratios = ", ".join(f"{model.name} {_slower(model, models[0])}" for model in models[1:])
    return f"time ÷ that of {models[0].name}, {median(models[0].seconds(GREEDY)).value:.2f} s: {ratios}{named}"


def _needs(names: Sequence[str]) -> str:
    return f"not measured here: needs the real {' and '.join(names)}"


def decide(confirmed: bool, refuted: bool) -> str:
    """Return the verdict of a claim of which at most one of the two is sure."""
    return CONFIRMED if confirmed else REFUTED if refuted else OPEN


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _points(estimate: Estimate) -> str:
    return f"{estimate.value * 100:+.1f} [{estimate.low * 100:+.1f}, {estimate.high * 100:+.1f}]"
