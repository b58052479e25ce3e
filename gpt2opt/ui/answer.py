"""One answer: a prompt continued by one model, as events that the page gets, one for each token."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from gpt2opt.decoding.generation import Token
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import token_text
from gpt2opt.decoding.text_generation import stream_text
from gpt2opt.ui.choices import OTHERS
from gpt2opt.ui.library import Loaded
from gpt2opt.ui.watched import WatchedModel


def answer(
    loaded: Loaded, prompt: str, settings: DecodingSettings, truncate: bool, stopped: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Yield an event for each token: the token as `token_event` shows it, and how fast the model has been so far.

    Raises:
        ValueError: as `stream_text`.
    """
    model = WatchedModel(loaded.model)
    for token in stream_text(model, loaded.tokenizer, [prompt], settings, truncate=truncate, stop=lambda _: stopped()):
        yield {"event": "token", "side": 0, **token_event(token, loaded.tokenizer), "speed": model.decoder_now.speed()}


def token_event(token: Token, tokenizer: Any) -> dict[str, Any]:
    """Return a token as the page shows it.

    text: what can be shown of the text now; it may lag behind the tokens. piece: the token by itself. probability: in the model's own
    distribution. rank: its place in it, 1 for the most probable one; None below the tokens that are known. others: the most probable
    other tokens, each with its probability.
    """
    assert token.logprob is not None
    assert token.top is not None
    ids = [other for other, _ in token.top]
    others = [(token_text(tokenizer, other), math.exp(logprob)) for other, logprob in token.top if other != token.id]
    return {
        "id": token.id,
        "text": token.text,
        "piece": token_text(tokenizer, token.id),
        "probability": math.exp(token.logprob),
        "rank": ids.index(token.id) + 1 if token.id in ids else None,
        "others": others[:OTHERS],
        "finish": token.finish,
    }
