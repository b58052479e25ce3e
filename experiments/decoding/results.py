"""What the experiment gave: frozen, with the texts and the raw times; and the figures that are read from it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy.special import expit

from experiments.decoding.methods import GREEDY
from gpt2opt.measure.stats import Estimate, Numbers, over_documents, paired_ratio
from gpt2opt.measure.turns import again

ITSELF = "the text itself"
"""The row of the held-out text's own continuation of the prompts, which all methods are compared with."""


@dataclass(frozen=True)
class Output:
    """One text behind a prompt.

    prompt, draw: their numbers. ids: the new tokens, with spaces between them, because a JSON list would give each a line. nats: their
    summed NLL behind the prompt, under the FP32 model that wrote them. nats_alone: the same behind an end-of-text in the prompt's place.
    judged, judged_alone: both under the model's `judge`, if it has one.
    """

    prompt: int
    draw: int
    ids: str
    text: str
    nats: float
    nats_alone: float
    judged: float | None = None
    judged_alone: float | None = None

    @property
    def tokens(self) -> list[int]:
        return [int(token) for token in self.ids.split()]


FIGURES: dict[str, Callable[[Any], float]] = {
    "rep2": lambda output: repetition(output.tokens, 2),
    "rep4": lambda output: repetition(output.tokens, 4),
    "nll": lambda output: output.nats / len(output.tokens),
    "explained": lambda output: (output.nats_alone - output.nats) / len(output.tokens),
    "explained_to_judge": lambda output: (output.judged_alone - output.judged) / len(output.tokens),
}
"""Of one text: repetition; NLL per token; by how many nats per token the prompt makes it more probable to the model that wrote it, which
is above 0 for all that a model draws, whatever its weights; and the same to a model that did not write it."""


def repetition(tokens: Sequence[int], n: int) -> float:
    """Return rep-n (Welleck et al. 2020): the share of n-grams that the text had before.

    >>> repetition([1, 2, 1, 2, 1], 2)
    0.5
    """
    grams = _grams(tokens, n)
    return 1 - len(set(grams)) / len(grams)


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Return distinct-n (Li et al. 2016): different n-grams of all texts together ÷ all their n-grams. More texts make it smaller.

    >>> distinct([[1, 2, 3], [1, 2, 4]], 2)
    0.75
    """
    grams = list(chain.from_iterable(_grams(text, n) for text in texts))
    return len(set(grams)) / len(grams)


def _grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


@dataclass(frozen=True)
class MethodTexts:
    """All texts of one method, or the text itself."""

    method: str
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class MethodTimes:
    """Seconds of whole generations of one prompt, prefill included, one for each round."""

    method: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One prompt that FP32 and dynamic INT8 continue by sampling, in turns and with the same seeds; seconds of whole generations.

    texts: what INT8 wrote; none of a model of random weights. more_nats: by how many nats per token the text itself costs INT8 more than
    FP32, behind each prompt.
    """

    fp32_s: tuple[float, ...]
    again_s: tuple[float, ...]
    int8_s: tuple[float, ...]
    texts: tuple[str, ...]
    more_nats: tuple[float, ...]


@dataclass(frozen=True)
class ModelResult:
    """One model. weights: where they are from. stand_in: they are not what was asked for. texts: none of a model of random weights.

    judge: another model of the experiment, which scored the texts too; None: there is none of this vocabulary. trial: not in older results.
    """

    name: str
    weights: str
    stand_in: bool
    parameters: int
    times: tuple[MethodTimes, ...]
    texts: tuple[MethodTexts, ...] = ()
    judge: str | None = None
    trial: Trial | None = None

    @property
    def methods(self) -> list[str]:
        return [taken.method for taken in self.times if taken.method != again(GREEDY)]

    def seconds(self, method: str) -> tuple[float, ...]:
        return next(taken.seconds for taken in self.times if taken.method == method)

    def outputs(self, method: str) -> tuple[Output, ...]:
        return next(texts.outputs for texts in self.texts if texts.method == method)

    def by_prompt(self, method: str, figure: str) -> np.ndarray:
        """Return the mean of one of `FIGURES` over the draws of each prompt, (prompts,)."""
        values: dict[int, list[float]] = {}
        for output in self.outputs(method):
            values.setdefault(output.prompt, []).append(FIGURES[figure](output))
        return np.array([statistics.mean(values[prompt]) for prompt in sorted(values)])

    def distinct(self, method: str, n: int) -> float:
        """Return distinct-n over the texts of one draw; the mean of the draws, since more texts at once would make it smaller."""
        draws = {output.draw for output in self.outputs(method)}
        return statistics.mean(distinct([o.tokens for o in self.outputs(method) if o.draw == draw], n) for draw in draws)


@dataclass(frozen=True)
class LoopTimes:
    """The time per output token (TPOT) of an INT8 IR, driven by the plain loop of the measurements and by the generation loop, in turns."""

    plain_s: tuple[float, ...]
    loop_s: tuple[float, ...]
    again_s: tuple[float, ...] = ()
    """The plain loop in another process; not in older results."""


@dataclass(frozen=True)
class Decoding:
    """The whole experiment.

    prompts: their text. draws: of each method that samples. prompt_tokens, new_tokens: of the texts. timed_prompt_tokens,
    timed_new_tokens: of every timed generation. loop_model: the model that both loops drive.
    """

    created: str
    environment: dict[str, Any]
    text: str
    prompts: tuple[str, ...]
    draws: int
    prompt_tokens: int
    new_tokens: int
    timed_prompt_tokens: int
    timed_new_tokens: int
    models: tuple[ModelResult, ...]
    loop_model: str
    loop: LoopTimes
    schema: str = "gpt2opt.decoding/1"

    @property
    def writers(self) -> list[ModelResult]:
        """Return the models whose texts mean something."""
        return [model for model in self.models if model.texts]

    @property
    def tried(self) -> list[tuple[ModelResult, Trial]]:
        """Return the models with their trials of the fixed prompt; older results have none."""
        return [(model, model.trial) for model in self.models if model.trial]

    def model(self, name: str) -> ModelResult | None:
        return next((model for model in self.models if model.name == name), None)


def mean(values: Numbers) -> Estimate:
    """Return the mean over prompts, and its interval over other prompts of this kind."""
    ones = np.ones(len(values))
    return over_documents(np.divide, values, ones, tokens=ones)


def share(values: Numbers) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of shares over prompts, and its interval, taken on the scale of log-odds so that it stays between 0 and 1.

    It is None for fewer than two prompts, and if all of the share, or all that is left of it, is one prompt's.
    """
    shares, ones = np.asarray(values, float), np.ones(len(values))
    left_out = shares.sum() - shares
    if len(shares) < 2 or not (left_out.min() > 0 and left_out.max() < len(shares) - 1):
        return float(shares.mean()), None
    found = over_documents(lambda total, count: np.log(total / (count - total)), shares, ones, tokens=ones)
    return float(shares.mean()), (float(expit(found.low)), float(expit(found.high)))


def exponential(estimate: Estimate) -> Estimate:
    """Return what nats are as a perplexity, or a difference of nats as a ratio of perplexities."""
    return Estimate(*np.exp([estimate.value, estimate.low, estimate.high]).tolist())


def slower_than_greedy(model: ModelResult, method: str) -> Estimate:
    return paired_ratio(model.seconds(method), model.seconds(GREEDY))
