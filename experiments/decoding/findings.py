"""What the seed found, held against the result: every finding by name, confirmed, refuted or not measured, with its figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.decoding.methods import GREEDY, SAMPLING
from experiments.decoding.results import ITSELF, Decoding, EngineTimes, ModelResult, explained, mean, nats, rep4
from experiments.race.engines import TorchCompile, TorchEagerAttention, TorchFp32, TorchInt8
from gpt2opt.stats import Estimate, median, over_documents, paired_ratio, ratio_of_medians

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "no difference was measurable"
SMALL, MEDIUM, LARGE = "gpt2", "gpt2-medium", "gpt2-large"
LITTLE = 0.1
"""A gain of less than this share of the time is little."""


@dataclass(frozen=True)
class Finding:
    """A finding of the seed. claim: in its words, nearly. verdict: what the result says of it. figure: the numbers behind that."""

    claim: str
    verdict: str
    figure: str


def find_all(result: Decoding) -> list[Finding]:
    writers = result.writers
    return [
        *(finding for model in writers for finding in sampling_is_coherent(model)),
        medium_is_balanced(result),
        *larger_is_slower(result),
        int8_with_threads_is_fastest(result),
        *(gains_little(result, *pair) for pair in (("torch.compile", TorchCompile, TorchFp32), ("SDPA", TorchFp32, TorchEagerAttention))),
    ]


def sampling_is_coherent(model: ModelResult) -> list[Finding]:
    """Hold the mean of all methods that sample against greedy decoding, prompt by prompt: repetition, and what the prompt explains."""
    methods = [method for method in model.methods if method in SAMPLING]
    repeats, coherent = f"sampling repeats itself less ({model.name})", f"sampling is more coherent ({model.name})"
    if not methods:
        return [Finding(claim, "not measured here: no method that samples was asked for", "") for claim in (repeats, coherent)]

    def gain(of) -> Estimate:
        sampled = np.mean([model.by_prompt(method, of) for method in methods], axis=0)
        return mean(sampled - model.by_prompt(GREEDY, of))

    less, more, nll = gain(rep4), gain(explained), gain(nats)
    itself = mean(model.by_prompt(ITSELF, explained)).value
    return [
        Finding(
            repeats, _verdict(less.high < 0, less.low > 0), f"rep-4 of {len(methods)} sampling methods − greedy: {_points(less)} points"
        ),
        Finding(
            coherent,
            _verdict(more.low > 0, more.high < 0),
            f"the prompt explains {_signed(more)} nats per token more than with greedy (of the text itself it explains {itself:.2f}); "
            f"the texts cost {_signed(nll)} nats per token more under the model",
        ),
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
    return Finding(claim, _verdict(better.low > 0, better.high < 0), f"{figure}; {_speeds(real)}")


def larger_is_slower(result: Decoding) -> list[Finding]:
    slower, no_better = "larger models are slower", "larger models are not much better"
    sizes = [model for name in (SMALL, MEDIUM, LARGE) if (model := result.model(name))]
    if len(sizes) < 2:
        return [Finding(claim, _needs([MEDIUM, LARGE]), "") for claim in (slower, no_better)]
    ratio = _slower(sizes[-1], sizes[0])
    found = Finding(slower, _verdict(ratio.low > 1, ratio.high < 1), _speeds(sizes))
    real = [model for model in sizes if model.texts]
    if len(real) < 2:
        return [found, Finding(no_better, _needs([MEDIUM, LARGE]), "")]
    gain = mean(real[0].by_prompt(ITSELF, nats) - real[-1].by_prompt(ITSELF, nats))
    figure = f"the text itself costs {real[-1].name} {_signed(gain)} nats per token less than {real[0].name}"
    return [found, Finding(no_better, _verdict(gain.low <= 0, gain.low > 0), figure)]


def int8_with_threads_is_fastest(result: Decoding) -> Finding:
    """Ask if dynamic INT8 with all threads is the fastest row, and if threads help it more than they help FP32."""
    claim, most = "dynamic INT8 with threads is the fastest", max(row.threads for row in result.engines)
    int8, fp32 = (_row(result, engine.name, most) for engine in (TorchInt8, TorchFp32))
    if not int8 or not fp32:
        return Finding(claim, f"not measured here: needs {TorchInt8.name}", "")
    others = {row: paired_ratio(row.greedy_s, int8.greedy_s) for row in result.engines if row.greedy_s and row is not int8}
    faster = [row for row, ratio in others.items() if ratio.high < 1]
    gains = [f"its time ÷ FP32's with {most} threads: {paired_ratio(int8.greedy_s, fp32.greedy_s)}"]
    one = [_row(result, engine.name, 1) for engine in (TorchInt8, TorchFp32)]
    if most > 1 and all(one):
        shares = [paired_ratio(many.greedy_s, single.greedy_s) for many, single in zip((int8, fp32), one, strict=True)]
        gains.append(f"{most} threads ÷ one: INT8 {shares[0]}, FP32 {shares[1]}")
    if faster:
        best = min(faster, key=lambda row: others[row].value)
        gains.insert(0, f"{best.name} with {best.threads} threads takes {others[best]} times as long")
    return Finding(claim, _verdict(all(ratio.low > 1 for ratio in others.values()), bool(faster)), "; ".join(gains))


def gains_little(result: Decoding, what: str, with_it, without) -> Finding:
    """Ask if something that is to make torch faster gains less than `LITTLE` of the time."""
    most = max(row.threads for row in result.engines)
    rows = [_row(result, engine.name, most) for engine in (with_it, without)]
    if not all(rows):
        return Finding(f"{what} gains little", "not measured here: needs " + " and ".join(e.name for e in (with_it, without)), "")
    ratio = paired_ratio(rows[0].greedy_s, rows[1].greedy_s)
    gained = ratio.high < 1 - LITTLE
    verdict = REFUTED + (": it gains more" if gained else ": it loses") if gained or ratio.low > 1 else CONFIRMED
    if verdict == CONFIRMED and ratio.low < 1 - LITTLE:
        verdict = f"neither confirmed nor refuted: the interval reaches beyond {LITTLE:.0%}"
    return Finding(f"{what} gains little (less than {LITTLE:.0%})", verdict, f"time with it ÷ without it: {ratio}")


def _row(result: Decoding, name: str, threads: int) -> EngineTimes | None:
    return next((row for row in result.engines if row.name == name and row.threads == threads and row.greedy_s), None)


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


def _verdict(confirmed: bool, refuted: bool) -> str:
    return CONFIRMED if confirmed else REFUTED if refuted else OPEN


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _points(estimate: Estimate) -> str:
    return f"{estimate.value * 100:+.1f} [{estimate.low * 100:+.1f}, {estimate.high * 100:+.1f}]"
