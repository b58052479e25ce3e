"""From text to text with an IR directory, and the generation that the memory of serving is measured on."""

import logging
from collections.abc import Generator
from pathlib import Path

import numpy as np

from gpt2opt.runtime.ir_model import load_ir

logger = logging.getLogger(__name__)


def continue_text(directory: Path | str, prompt: str, new_tokens: int = 50, truncate: bool = False) -> str:
    """Continue a prompt greedily with the IR and the tokenizer in `directory`; return the new text.

    Args:
        directory: what `quantize_int8` or `export_ir` wrote.
        prompt: any text.
        new_tokens: how many tokens to generate.
        truncate: shorten a prompt that is too long to its end, with a warning, instead of refusing it.

    Raises:
        ValueError: no IR, an empty prompt, a prompt that is not Unicode text, or more tokens than the model's context holds.
    """
    from gpt2opt.sources.models import load_tokenizer

    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of the prompt is not text but {prompt[error.start]!r}; give it in UTF-8") from None
    model = load_ir(directory)
    tokenizer = load_tokenizer(directory)
    ids = tokenizer(prompt, verbose=False).input_ids
    room = model.context - new_tokens
    if truncate and 0 < room < len(ids):
        logger.warning("the prompt has %d tokens; its last %d are kept, %d new ones fill the context", len(ids), room, new_tokens)
        ids = ids[-room:]
    return tokenizer.decode(model.generate(np.array([ids]), new_tokens, prompt_lookup=True)[0])


def generate_from_ir(directory: str, ids: list[int], new_tokens: int) -> Generator[str, None, list[int]]:
    """Load an IR and generate greedily, in a fresh process whose memory is measured; yield the name of each step that is done."""
    model = load_ir(directory)
    yield "loaded"
    tokens = model.generate(np.array([ids]), new_tokens)[0].tolist()
    yield "steady"
    return tokens
