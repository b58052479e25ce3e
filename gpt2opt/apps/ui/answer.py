"""One answer: a prompt continued by one model, as events that the page gets, one for each token."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpt2opt.apps.ui.choices import OTHERS
from gpt2opt.apps.ui.library import Loaded
from gpt2opt.apps.ui.watched import WatchedModel
from gpt2opt.decoding.generation import Token, stream
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import encode_prompt, token_text


def read_prompt(models: Sequence[Loaded], prompt: str, settings: DecodingSettings, truncate: bool) -> list[int]:
    """Return the token ids of a prompt that one model continues, or several over it.

    Raises:
        ValueError: the models have different tokens, or as `encode_prompt`.
    """
    first, *others = models
    if any(other.tokenizer.get_vocab() != first.tokenizer.get_vocab() for other in others):
        raise ValueError("the two models have different tokens; choose two precisions of one model")
    context = min(each.model.context for each in models)
    return encode_prompt(first.tokenizer, prompt, context - settings.max_new_tokens, truncate)


def answer(loaded: Loaded, ids: Sequence[int], settings: DecodingSettings, stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Yield an event for each token behind a prompt: the token as `token_event` shows it, and how fast the model has been so far.

    Raises:
        ValueError: as `stream`.
    """
    model = WatchedModel(loaded.model)
    for token in stream(model, [list(ids)], settings, loaded.tokenizer, stop=lambda _: stopped()):
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
