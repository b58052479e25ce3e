"""Every decoding method on every model: what it writes and what it costs; and the cost of our own generation loop."""

import datetime
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from experiments.contract import progress
from experiments.decoding.contrastive import model_of
from experiments.decoding.loop import LOOP_STEPS, time_loop
from experiments.decoding.methods import GREEDY, METHODS, choose, settings_of
from experiments.decoding.models import Candidate, find_candidates, tell_stand_ins
from experiments.decoding.results import ITSELF, Decoding, MethodTexts, MethodTimes, ModelResult, Output
from experiments.decoding.texts import find_prompts, judge, judge_again, write_texts
from experiments.race.turns import Case, make_prompts
from gpt2opt import environment
from gpt2opt.decoding.generation import generate
from gpt2opt.settings import check_whole
from gpt2opt.sources.models import save_model
from gpt2opt.sources.texts import find_texts

PROMPT_TOKENS, NEW_TOKENS = 32, 48
TIMED = Case(16, 6)
"""Of the timed generations: so short because the largest model has to fit into minutes too."""
LEAST_ROUNDS, MOST_ROUNDS, ROUNDS_S = 4, 15, 5.0
"""A fast model is timed in more rounds, until they took so many seconds: its times are the noisier ones."""
LEAST_PROMPTS, LEAST_SEEDS = 10, 3


def compare_decoding(
    models: str = "auto",
    text: str = "auto",
    methods: str = "",
    prompts: int = LEAST_PROMPTS,
    seeds: int = LEAST_SEEDS,
) -> Decoding:
    """Compare the methods on the models, and measure what the generation loop costs; progress goes to stderr.

    Args:
        models: see `find_candidates`.
        text: see `find_texts`; prompts are beginnings of its held-out documents.
        methods: names with commas between them, such as `top-p`; all where empty. Greedy always takes part: the others are held against it.
        prompts, seeds: how many of each, at least 10 and 3. Methods that draw nothing write one text behind each prompt.

    Raises:
        ValueError: a name is not known, there are too few prompts or seeds, or the text has too few documents.
        RuntimeError: a process died.
    """
    for name, found, least in (("prompts", prompts, LEAST_PROMPTS), ("seeds", seeds, LEAST_SEEDS)):
        check_whole(name, found, least, "intervals and ranges over fewer say little")
    chosen = tuple(name for name in METHODS if name in (*choose("method", methods, METHODS), GREEDY))
    candidates, texts = find_candidates(models), find_texts(text)
    tell_stand_ins(candidates, texts)
    torch.set_num_threads(environment.threads())
    steps = sum((prompts * len(chosen) if writes(each) else 0) + LEAST_ROUNDS * len(chosen) for each in candidates)
    steps += len(LOOP_STEPS)
    served = next((each for each in candidates if each.name == "gpt2"), candidates[0])
    measured, writers, shown = [], [], tuple[str, ...]()
    with progress(steps) as step, tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "models", "model")
        for candidate in candidates:
            tokenizer, model = candidate.load()
            texts_of = find_prompts(texts, tokenizer, prompts, PROMPT_TOKENS, NEW_TOKENS) if writes(candidate) else []
            shown = shown or tuple(tokenizer.decode(prompt) for prompt, _ in texts_of)
            measured.append(measure_model(candidate, tokenizer, model, chosen, texts_of, seeds, step))
            writers.append(Writer(candidate, tokenizer.get_vocab(), [prompt for prompt, _ in texts_of]))
            if candidate is served:
                save_model(source, tokenizer, model)
                prompt = make_prompts(TIMED, model.config.vocab_size, 0)[0].tolist()
            del model
            environment.give_back_memory()
        measured = judge_by_others(measured, writers)
        loop = time_loop(source, prompt, step)
    return Decoding(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        environment=environment.describe(),
        text=f"{texts} {texts.revision}",
        prompts=shown,
        draws=seeds,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        timed_prompt_tokens=TIMED.prompt_tokens,
        timed_new_tokens=TIMED.new_tokens,
        models=tuple(measured),
        loop_model=f"{served.name}: {served.weights}",
        loop=loop,
    )


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


def measure_model(
    candidate: Candidate,
    tokenizer,
    model: GPT2LMHeadModel,
    methods: Sequence[str],
    prompts: Sequence[tuple[list[int], list[int]]],
    draws: int,
    step: Callable[[str], None],
) -> ModelResult:
    """Let every method write behind the prompts, if there are any, and time it."""

    def told(what: str) -> None:
        step(f"{candidate.name}: {what}")

    return ModelResult(
        candidate.name,
        candidate.weights,
        candidate.stand_in,
        sum(parameter.numel() for parameter in model.parameters()),
        time_methods(model, methods, told),
        tuple(compare_texts(model, tokenizer, methods, prompts, draws, told)) if prompts else (),
    )


def writes(candidate: Candidate) -> bool:
    """Return whether a model's texts mean something: not those of random weights."""
    return candidate.path is not None


def compare_texts(
    model: GPT2LMHeadModel,
    tokenizer,
    methods: Sequence[str],
    prompts: Sequence[tuple[list[int], list[int]]],
    draws: int,
    step: Callable[[str], None],
) -> list[MethodTexts]:
    """Let every method continue every prompt, and judge that beside how the text itself goes on."""
    itself = [
        output for number, (prompt, following) in enumerate(prompts) for output in judge(model, tokenizer, number, prompt, [following])
    ]
    found = [MethodTexts(ITSELF, tuple(itself))]
    for method in methods:
        outputs: list[Output] = []
        for number, (prompt, following) in enumerate(prompts):
            step(f"{method} writes")
            written = write_texts(model, method, prompt, draws, len(following), seed=number)
            outputs += judge(model, tokenizer, number, prompt, written)
        found.append(MethodTexts(method, tuple(outputs)))
    return found


def time_methods(model: GPT2LMHeadModel, methods: Sequence[str], step: Callable[[str], None]) -> tuple[MethodTimes, ...]:
    """Time whole generations of one prompt by every method, in a new random order in each round, after one to warm up."""
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    draw = random.Random(0)

    def timed(method: str, number: int) -> float:
        prompt = make_prompts(TIMED, model.config.vocab_size, number).tolist()
        start = time.perf_counter()
        generate(model_of(method, model), prompt, settings_of(method, TIMED.new_tokens))
        return time.perf_counter() - start

    timed(GREEDY, 0)
    start, number = time.perf_counter(), 0
    while number < LEAST_ROUNDS or (number < MOST_ROUNDS and time.perf_counter() - start < ROUNDS_S):
        number += 1
        for method in draw.sample(methods, len(methods)):
            if number <= LEAST_ROUNDS:
                step(f"timing {method}")
            seconds[method].append(timed(method, number))
    return tuple(MethodTimes(method, tuple(taken)) for method, taken in seconds.items())
