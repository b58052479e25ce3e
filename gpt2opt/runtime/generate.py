"""From text to text with an IR directory, and the generation that the memory of serving is measured on."""

from collections.abc import Generator
from pathlib import Path

from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.prompt_lookup import LONGEST_GUESS
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import load_ir


def continue_text(directory: Path | str, prompt: str, max_new_tokens: int = 50, truncate: bool = False) -> str:
    """Continue a prompt greedily with the IR and the tokenizer in `directory`; return the new text.

    Args:
        directory: what `quantize_int8` or `export_ir` wrote.
        prompt: any text.
        max_new_tokens: most tokens to generate; an end-of-text token ends the text earlier.
        truncate: shorten a prompt that is too long to its end, with a warning, instead of refusing it.

    Raises:
        ValueError: no IR, an empty prompt, a prompt that is not Unicode text, or more tokens than the model's context holds.
    """
    from gpt2opt.sources.models import load_tokenizer

    settings = DecodingSettings(max_new_tokens=max_new_tokens, prompt_lookup_num_tokens=LONGEST_GUESS)
    return generate(load_ir(directory), [prompt], settings, load_tokenizer(directory), truncate=truncate)[0].text


def generate_from_ir(directory: str, ids: list[int], new_tokens: int) -> Generator[str, None, list[int]]:
    """Load an IR and generate greedily, in a fresh process whose memory is measured; yield the name of each step that is done."""
    model = load_ir(directory)
    yield "loaded"
    (tokens,) = Greedy(model.decoder([ids], new_tokens)).generate(new_tokens)
    yield "steady"
    return tokens
