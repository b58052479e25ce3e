"""Every decoding method on every model: what it writes and what it costs; and the cost of our own generation loop."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from experiments.contract import choose, now, say
from experiments.decoding.methods import GREEDY, METHODS, SAMPLING, model_of, settings_of
from experiments.decoding.models import Candidate, find_candidates, name_stand_ins
from experiments.decoding.results import ITSELF, Decoding, LoopTimes, MethodTexts, MethodTimes, ModelResult, Output
from experiments.decoding.trial import MOST_ROUNDS, in_time, try_prompt
from experiments.race.engines.base import Case, make_prompts
from experiments.race.run import quantize
from gpt2opt import environment
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.generation import generate, stream
from gpt2opt.decoding.text import decoder_of, encode, end_of_text
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.measure.quality import token_nll
from gpt2opt.measure.turns import Contestants, Here, in_child
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.sources.models import save_model
from gpt2opt.sources.texts import Texts, find_texts
from gpt2opt.torch_model import logits_of

PROMPT_TOKENS, NEW_TOKENS = 32, 48
TIMED = Case(16, 6)
"""Of the timed generations: this short because the largest model has to fit into minutes too."""
LOOP_RUNS, LOOP_TOKENS = 15, 32


def compare_decoding(models: str = "auto", text: str = "auto", methods: str = "", prompts: int = 10, seeds: int = 3) -> Decoding:
    """Compare the methods on the models, and measure what the generation loop costs; progress goes to stderr.

    Args:
        models: see `find_candidates`.
        text: see `find_texts`; prompts are beginnings of its held-out documents.
        methods: names with commas between them, such as `top-p`; all where empty. Greedy, the reference, always takes part.
        prompts, seeds: how many of each; the command refuses fewer than these. Methods that draw nothing write one text behind each prompt.

    Raises:
        ValueError: a name is not known, or the text has too few documents.
    """
    chosen = choose("method", methods, METHODS, GREEDY)
    candidates, texts = find_candidates(models), find_texts(text)
    name_stand_ins(candidates, texts)
    torch.set_num_threads(environment.threads())
    served = next((each for each in candidates if each.name == "gpt2"), candidates[0])
    measured, writers, shown = [], [], tuple[str, ...]()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "models", "model")
        for candidate in candidates:
            tokenizer, model = candidate.load()
            texts_of = find_prompts(texts, tokenizer, prompts, PROMPT_TOKENS, NEW_TOKENS) if writes(candidate) else []
            shown = shown or tuple(tokenizer.decode(prompt) for prompt, _ in texts_of)
            say(candidate.name)
            written = tuple(compare_texts(model, tokenizer, chosen, texts_of, seeds)) if texts_of else ()
            parameters, times = sum(parameter.numel() for parameter in model.parameters()), time_methods(model, chosen)
            trial = try_prompt(model, tokenizer, texts_of)
            measured.append(ModelResult(candidate.name, candidate.weights, candidate.stand_in, parameters, times, written, trial=trial))
            writers.append(Writer(candidate, tokenizer.get_vocab(), [prompt for prompt, _ in texts_of]))
            if candidate is served:
                save_model(source, tokenizer, model)
                prompt = make_prompts(TIMED, model.config.vocab_size, 0)[0].tolist()
            del model
            environment.give_back_memory()
        measured = judge_by_others(measured, writers)
        loop = time_loop(source, prompt)
    return Decoding(
        now(), environment.describe(), f"{texts} {texts.revision}", shown, seeds, PROMPT_TOKENS, NEW_TOKENS,
        TIMED.prompt_tokens, TIMED.new_tokens, tuple(measured), f"{served.name}: {served.weights}", loop,
    )  # fmt: skip


@dataclass(frozen=True)
class Writer:
    """A model that wrote, and the prompts, in its vocabulary; none of a model whose texts mean nothing."""

    candidate: Candidate
    vocabulary: dict[str, int]
    prompts: list[list[int]]


def judge_by_others(measured: Sequence[ModelResult], writers: Sequence[Writer]) -> list[ModelResult]:
    """Let the largest other model of the same vocabulary that writes score the texts of each, where there is one."""
    found = []
    for own, result in zip(writers, measured, strict=True):
        others = [
            (other.parameters, number)
            for number, (each, other) in enumerate(zip(writers, measured, strict=True))
            if each is not own and each.prompts and own.prompts and each.vocabulary == own.vocabulary
        ]
        if others:
            judging = writers[max(others)[1]].candidate
            tokenizer, model = judging.load()
            texts = tuple(replace(each, outputs=judge_again(model, tokenizer, own.prompts, each.outputs)) for each in result.texts)
            result = replace(result, texts=texts, judge=judging.name)
        found.append(result)
    return found


def writes(candidate: Candidate) -> bool:
    """Return whether a model's texts mean something: not those of random weights."""
    return candidate.path is not None


def compare_texts(
    model: GPT2LMHeadModel, tokenizer, methods: Sequence[str], prompts: Sequence[tuple[list[int], list[int]]], draws: int
) -> Iterator[MethodTexts]:
    """Let every method continue every prompt, and judge that beside how the text itself goes on."""
    for method in tqdm((ITSELF, *methods), "writing texts"):
        outputs: list[Output] = []
        for number, (prompt, following) in enumerate(prompts):
            written = [following] if method == ITSELF else write_texts(model, method, prompt, draws, len(following), seed=number)
            outputs += judge(model, tokenizer, number, prompt, written)
        yield MethodTexts(method, tuple(outputs))


class TimedMethod:
    """One method on a model. All share the model of this process: a copy for each of ten would not fit into memory."""

    def __init__(self, model: GPT2LMHeadModel, method: str):
        self.method, self.model = method, model_of(method, model)

    def seconds(self, prompt: list[list[int]]) -> float:
        """Return the seconds of a whole generation, prefill included."""
        start = time.perf_counter()
        generate(self.model, prompt, settings_of(self.method, TIMED.new_tokens))
        return time.perf_counter() - start


def time_methods(model: GPT2LMHeadModel, methods: Sequence[str]) -> tuple[MethodTimes, ...]:
    """Time whole generations of one prompt by every method, in turns."""
    vocab_size = model.config.vocab_size
    with Contestants({method: Here(TimedMethod(model, method)) for method in methods}) as contestants:
        turns = contestants.take_turns(
            "seconds", [TIMED], rounds=MOST_ROUNDS, arguments=lambda case, number: (make_prompts(case, vocab_size, number).tolist(),)
        )
        outcome = in_time(turns, "timing in turns")
    return tuple(MethodTimes(method, tuple(taken[TIMED])) for method, taken in outcome.samples.items())


class Loop:
    """An INT8 IR that is driven by the plain loop of the measurements, or by the generation loop."""

    def __init__(self, folder: Path, prompt: list[int], way: str):
        self.model, self.prompts, self.way = load_ir(folder), [prompt], way

    def tpot(self, new_tokens: int) -> float:
        """Return the seconds per output token."""
        greedy = Greedy(self.model.decoder(self.prompts, new_tokens))
        tokens = stream(self.model, self.prompts, settings_of(GREEDY, new_tokens))
        begin, step = (greedy.start, greedy.step) if self.way == "plain" else (partial(next, tokens), partial(next, tokens, None))
        begin()
        start = time.perf_counter()
        for _ in range(new_tokens - 1):
            step()
        return (time.perf_counter() - start) / (new_tokens - 1)


def time_loop(source: Path, prompt: list[int]) -> LoopTimes:
    """Export a model as an INT8 IR (weights alone) and time both loops on it, in turns."""
    say("the cost of the generation loop")
    folder = source.parent / "ir"
    in_fresh_process(quantize, source, folder, "w8")
    with Contestants({way: in_child(Loop, folder, prompt, way) for way in ("plain", "loop")}) as contestants:
        *_, outcome = contestants.take_turns("tpot", [LOOP_TOKENS], rounds=LOOP_RUNS)
    plain, twice, loop = (tuple(samples[LOOP_TOKENS]) for samples in outcome.samples.values())
    return LoopTimes(plain, loop, twice)


def find_prompts(texts: Texts, tokenizer, count: int, prompt_tokens: int, new_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Return prompts, each the beginning of another document of the scored part, and how the text itself goes on behind each."""
    length, found = prompt_tokens + new_tokens, []
    for document in texts.score:
        ids = encode(tokenizer, document.text).input_ids[:length]
        if len(ids) == length:
            found.append((ids[:prompt_tokens], ids[prompt_tokens:]))
        if len(found) == count:
            return found
    raise ValueError(
        f"{texts.name} has {len(found)} held-out documents of {length} tokens, {count} prompts are asked for; give a longer text"
    )


def write_texts(model: GPT2LMHeadModel, method: str, prompt: list[int], draws: int, new_tokens: int, seed: int) -> list[list[int]]:
    """Continue a prompt by a method, with several draws if it draws at all; return the new tokens of each.

    Copies of one prompt in one batch draw different numbers, and another seed for each prompt keeps the prompts independent.
    """
    prompts = [prompt] * (draws if method in SAMPLING else 1)
    return [list(found.ids) for found in generate(model_of(method, model), prompts, settings_of(method, new_tokens, seed))]


def judge(model: GPT2LMHeadModel, tokenizer, number: int, prompt: list[int], written: Sequence[list[int]]) -> list[Output]:
    """Score texts behind a prompt, each with the same number of tokens."""
    nats = _nats(model, prompt, written)
    alone = _nats(model, [end_of_text(tokenizer)], written)
    return [
        Output(number, draw, " ".join(map(str, ids)), decoder_of(tokenizer)(ids), nats[draw], alone[draw])
        for draw, ids in enumerate(written)
    ]


def judge_again(model: GPT2LMHeadModel, tokenizer, prompts: Sequence[list[int]], outputs: Sequence[Output]) -> tuple[Output, ...]:
    """Score texts under a model of the same vocabulary that did not write them. prompts: by number."""
    found = []
    for output in outputs:
        judged, alone = (_nats(model, before, [output.tokens])[0] for before in (prompts[output.prompt], [tokenizer.eos_token_id]))
        found.append(replace(output, judged=judged, judged_alone=alone))
    return tuple(found)


def _nats(model: GPT2LMHeadModel, before: list[int], written: Sequence[list[int]]) -> list[float]:
    rows = torch.tensor([[*before, *ids] for ids in written])
    nll = token_nll(logits_of(model)(rows[:, :-1]), rows[:, 1:])
    return nll[:, len(before) - 1 :].double().sum(1).tolist()
