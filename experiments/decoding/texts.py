"""Prompts, what a method writes behind them, and its score under the FP32 model that wrote it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import GPT2LMHeadModel

from experiments.decoding.contrastive import model_of
from experiments.decoding.methods import SAMPLING, settings_of
from experiments.decoding.results import Output
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.text import decoder_of, encode, end_of_text
from gpt2opt.measure.quality import token_nll
from gpt2opt.sources.texts import Texts
from gpt2opt.torch_model import logits_of


def find_prompts(texts: Texts, tokenizer, count: int, prompt_tokens: int, new_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Return prompts from the scored part, which no model was trained on here, and how the text itself goes on behind each.

    Each is the beginning of another document: (prompt_tokens ids, new_tokens ids).

    Raises:
        ValueError: too few documents are long enough.
    """
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
    return tuple(
        replace(
            output,
            judged=_nats(model, prompts[output.prompt], [output.tokens])[0],
            judged_alone=_nats(model, [tokenizer.eos_token_id], [output.tokens])[0],
        )
        for output in outputs
    )


def _nats(model: GPT2LMHeadModel, before: list[int], written: Sequence[list[int]]) -> list[float]:
    rows = torch.tensor([[*before, *ids] for ids in written])
    nll = token_nll(logits_of(model)(rows[:, :-1]), rows[:, 1:])
    return nll[:, len(before) - 1 :].double().sum(1).tolist()
