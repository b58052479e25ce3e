"""The fixed-prompt trial of GPT2_Task: dynamic INT8 with sampling continues one prompt again and again, beside FP32 with the same seeds."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from experiments.decoding.methods import settings_of
from experiments.decoding.results import Trial
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.text import decoder_of, encode
from gpt2opt.measure.quality import token_nll
from gpt2opt.measure.turns import Contestants, Here, Outcome, again
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.torch_model import TorchModel

LEAST_ROUNDS, MOST_ROUNDS, ROUNDS_S = 4, 15, 5.0
"""A fast model is timed in more rounds, until they took this many seconds: its times are the noisier ones."""
PROMPT, NEW_TOKENS = "Returns the shortest path", 25
"""As many new tokens as that project's page writes."""
METHOD = "top-k"
"""What transformers' sampling does by default."""


def in_time(turns: Iterable[Outcome], doing: str) -> Outcome:
    """Take turns until they took `ROUNDS_S`, but at least `LEAST_ROUNDS` of them after the warm-up; return what came out."""
    begun = math.inf
    for number, outcome in enumerate(tqdm(turns, doing)):  # noqa: B007
        begun = begun if number else time.perf_counter()
        if number >= LEAST_ROUNDS and time.perf_counter() - begun >= ROUNDS_S:
            break
    return outcome


class Sampling:
    """A torch model that continues a prompt by sampling."""

    def __init__(self, model: GPT2LMHeadModel):
        self.model = TorchModel(model)

    def write(self, prompt: list[int], seed: int) -> tuple[float, tuple[int, ...]]:
        """Return the seconds of the whole generation, prefill included, and the new tokens."""
        start = time.perf_counter()
        (found,) = generate(self.model, [prompt], settings_of(METHOD, NEW_TOKENS, seed))
        return time.perf_counter() - start, found.ids


def try_prompt(model: GPT2LMHeadModel, tokenizer, held_out: Sequence[tuple[list[int], list[int]]]) -> Trial:
    """Quantize a copy of a model dynamically and let both continue `PROMPT` in turns, with another seed in every round.

    held_out: prompts and how the text itself goes on behind each, which both models score; none for a model of random weights.
    """
    int8 = torch.ao.quantization.quantize_dynamic(prepare_for_export(model), {torch.nn.Linear}, torch.qint8, inplace=True)
    prompt = encode(tokenizer, PROMPT).input_ids
    with Contestants({"FP32": Here(Sampling(model)), "INT8": Here(Sampling(int8))}) as contestants:
        turns = contestants.take_turns(
            "write", [PROMPT], rounds=MOST_ROUNDS, seconds=itemgetter(0), arguments=lambda _, number: (prompt, number)
        )
        samples = in_time(turns, "dynamic INT8 and FP32 behind one prompt").samples
    fp32_s, again_s, int8_s = (tuple(seconds for seconds, _ in samples[name][PROMPT]) for name in ("FP32", again("FP32"), "INT8"))
    texts = [decoder_of(tokenizer)(list(ids)) for _, ids in samples["INT8"][PROMPT]] if held_out else []
    more = (costs - reference for costs, reference in zip(_costs(int8, held_out), _costs(model, held_out), strict=True))
    return Trial(fp32_s, again_s, int8_s, tuple(texts), tuple(more))


@torch.inference_mode()
def _costs(model: GPT2LMHeadModel, held_out: Sequence[tuple[list[int], list[int]]]) -> Iterator[float]:
    """Yield the NLL per token, in nats, of each text behind its prompt. `logits_of` reads the head's weight, which INT8 has packed away."""
    for prompt, following in held_out:
        ids = torch.tensor([[*prompt, *following]])
        yield float(token_nll(model(ids[:, :-1]).logits, ids[:, 1:])[0, len(prompt) - 1 :].double().mean())
