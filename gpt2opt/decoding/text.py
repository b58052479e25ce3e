"""From text to tokens and back, with any tokenizer of transformers or a `FastTokenizer`, and the text of a sequence while it grows.

While it grows, characters of several tokens and beginnings of a stop string are held back until they are sure.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

DecodeText = Callable[[list[int]], str]
"""A tokenizer's way from tokens to text. It may treat the first token of a list in a way of its own: SentencePiece drops its space."""

logger = logging.getLogger(__name__)

MAX_WINDOW = 1024
"""The scoring window, in tokens; it is cut to the context of a model that reads fewer."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer returns for bytes that are no character yet."""


def encode(tokenizer: Any, text: Any, **options: Any) -> Any:
    """Tokenize a text, or several, and add nothing that it does not hold, such as the `</s>` or `[SEP]` of some tokenizers."""
    return tokenizer(text, add_special_tokens=False, verbose=False, **options)


def check_text(prompt: Any) -> None:
    """Raise ValueError, in one line, unless a prompt is Unicode text and not empty."""
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt of type {type(prompt).__name__}, expected text")
    if not prompt:
        raise ValueError("the prompt is empty: write at least a word")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of the prompt is not text but {prompt[error.start]!r}; give it in UTF-8") from None


def encode_prompt(tokenizer: Any, prompt: str, room: int, truncate: bool = False) -> list[int]:
    """Return a prompt's token ids; the errors are those of `check_text`. The model refuses a prompt that is too long.

    truncate: keep only the last `room` tokens, those that the context holds beside the new ones, with a warning.
    """
    check_text(prompt)
    ids = encode(tokenizer, prompt).input_ids
    if truncate and 0 < room < len(ids):
        logger.warning("the prompt has %d tokens; its last %d are kept, and new ones fill the rest of the context", len(ids), room)
        return ids[-room:]
    return ids


def window_length(tokenizer) -> int:
    """Return the scoring window for a model: its context, at most `MAX_WINDOW` tokens."""
    return min(MAX_WINDOW, tokenizer.model_max_length)


def end_of_text(tokenizer: Any) -> int:
    """Return the token that ends a text; raise ValueError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token; set tokenizer.eos_token to one of its tokens and save it with the model")
    return tokenizer.eos_token_id


def token_rows(texts: Sequence[str], tokenizer, length: int) -> list[list[int]]:
    """Cut each text, and end-of-text behind it, into rows of at most `length` token ids. A row has one text and at least two tokens."""
    texts = [text for text in texts if text.strip()]
    if tokenizer.eos_token_id is None:
        warn_of_no_end(tokenizer.name_or_path)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = [ids + end for ids in encode(tokenizer, texts).input_ids] if texts else []
    rows = [ids[start : start + length] for ids in encoded for start in range(0, len(ids), length)]
    return [row for row in rows if len(row) > 1]


@cache
def warn_of_no_end(tokenizer: str) -> None:
    """Warn, once for each tokenizer."""
    logger.warning("the tokenizer %s has no end-of-text token, so nothing marks where a document ends", tokenizer)


def decoder_of(tokenizer: Any) -> DecodeText:
    """Return a tokenizer's way from tokens to text, which leaves spaces before punctuation as they were generated."""
    return lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def token_text(tokenizer: Any, token: int) -> str:
    """Return what a token adds to a text behind other tokens; bytes that are no character by themselves are U+FFFD."""
    decode, before = decoder_of(tokenizer), encode(tokenizer, "a").input_ids
    return decode([*before, token])[len(decode(before)) :]


class TextStream:
    """Text that is given out piece by piece; the pieces joined are what the tokenizer makes of all tokens, less the tokens before them.

    before: tokens that the text follows, such as its prompt. stopped: a stop string came, and nothing follows the text before it.
    """

    def __init__(self, decode_text: DecodeText, stop_strings: Sequence[str] = (), before: Sequence[int] = ()):
        self.decode_text, self.stop_strings = decode_text, stop_strings
        self.stopped = False
        self._ids = [int(token) for token in before]
        self._shown = len(self._ids)  # tokens that have been given out; they are decoded again for what follows them
        self._held = ""

    def push(self, token: int) -> str:
        """Take one more token; return the text that is sure now."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(BROKEN):
            return ""
        del self._ids[: self._shown]
        self._shown = len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """Return what is still held back: no token follows."""
        text = self._release(self._new_text() if len(self._ids) > self._shown else "") + self._held
        self._held = ""
        return text

    def _new_text(self) -> str:
        before = self.decode_text(self._ids[: self._shown]) if self._shown else ""
        return self.decode_text(self._ids)[len(before) :]

    def _release(self, text: str) -> str:
        if not self.stop_strings:
            return text
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self.stop_strings) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        begun = max((size for stop in self.stop_strings for size in range(len(stop)) if text.endswith(stop[:size])), default=0)
        sure = len(text) - begun
        self._held = text[sure:]
        return text[:sure]
