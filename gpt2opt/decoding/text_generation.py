"""From text to text: prompts are checked and tokenized, and any loaded model continues them."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpt2opt.decoding.decoder import Model
from gpt2opt.decoding.generation import Generated, Token, collect, stream
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import decoder_of, encode

logger = logging.getLogger(__name__)


def stream_text(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[str],
    settings: DecodingSettings,
    *,
    truncate: bool = False,
    stop: Callable[[Token], bool] | None = None,
) -> Iterator[Token]:
    """Continue prompts, and yield each token as soon as it is chosen. The prompts are checked before the first one.

    A text ends at the tokenizer's end-of-text token, unless the settings name another.

    Args:
        model: a loaded model.
        tokenizer: its tokenizer, of transformers.
        prompts: B texts.
        settings: the method and its limits.
        truncate: shorten a prompt that is too long to its end, with a warning, instead of refusing it.
        stop: called with each token; where it returns True, the token's sequence ends.

    Raises:
        ValueError: a prompt is empty, no text, or too long, or the model's engine can't do what the settings ask for.
        MemoryError: there is no memory for so many sequences.
    """
    ids = [encode_prompt(tokenizer, prompt, model.context - settings.max_new_tokens, truncate) for prompt in prompts]
    return stream_ids(model, tokenizer, ids, settings, stop=stop)


def stream_ids(
    model: Model,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    settings: DecodingSettings,
    *,
    stop: Callable[[Token], bool] | None = None,
) -> Iterator[Token]:
    """Continue prompts that are tokenized already, each a list of token ids; the rest is as in `stream_text`."""
    if settings.eos_token_id is None:
        settings = dataclasses.replace(settings, eos_token_id=tokenizer.eos_token_id)
    decoder = model.decoder(ids, settings.max_new_tokens)
    return stream(decoder, ids, settings, decode_text=decoder_of(tokenizer), stop=stop)


def generate_text(model: Model, tokenizer: Any, prompts: Sequence[str], settings: DecodingSettings, **options: Any) -> list[Generated]:
    """Continue prompts and return what came of each. Arguments and errors are those of `stream_text`."""
    return collect(len(prompts), stream_text(model, tokenizer, prompts, settings, **options))


def encode_prompt(tokenizer: Any, prompt: str, room: int, truncate: bool = False) -> list[int]:
    """Return a prompt's token ids.

    Args:
        room: how many tokens the context holds beside the new ones.
        truncate: keep the last `room` tokens of a prompt that is longer, with a warning. One that stays too long is the model's to refuse.

    Raises:
        ValueError: it is no string, empty, or not Unicode text.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt of type {type(prompt).__name__}, expected text")
    if not prompt:
        raise ValueError("the prompt is empty: write at least a word")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of the prompt is not text but {prompt[error.start]!r}; give it in UTF-8") from None
    ids = encode(tokenizer, prompt).input_ids
    if truncate and 0 < room < len(ids):
        logger.warning("the prompt has %d tokens; its last %d are kept, and new ones fill the rest of the context", len(ids), room)
        return ids[-room:]
    return ids
