"""The answers of a stream: a prompt continued by one model, or by two in lock-step, as events that the page gets, one for each token."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpt2opt.apps.ui.choices import OTHERS
from gpt2opt.apps.ui.models import Loaded
from gpt2opt.decoding.decoder import Model, as_numpy
from gpt2opt.decoding.generation import Token, stream
from gpt2opt.decoding.processors import log_softmax
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import encode_prompt, token_text


def read_prompt(models: Sequence[Loaded], prompt: str, settings: DecodingSettings, truncate: bool) -> list[int]:
    """Return the token ids of a prompt that one model continues, or two in lock-step, which must have the same tokens."""
    first, *others = models
    if any(other.tokenizer.get_vocab() != first.tokenizer.get_vocab() for other in others):
        raise ValueError("the two models have different tokens; choose two precisions of one model")
    context = min(each.model.context for each in models)
    return encode_prompt(first.tokenizer, prompt, context - settings.max_new_tokens, truncate)


def answers(models: Sequence[Loaded], ids: list[int], settings: DecodingSettings, stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Yield an event for each token of the first model (side 0), then of the other one (side 1) if there is one, until all texts end.

    Each writes a text of its own. Sampling draws by the same random numbers on both sides, so that the texts part only where the
    distributions differ. The event of a step's last token says which distance the step has: `kl_nats`, KL(first ‖ other) of the next
    token, both having read the first one's text. The other model reads that text a second time, outside of its own speed, since texts that
    have parted can't be compared. Both models must have the same tokens, which `read_prompt` checks.
    """
    sides = [Watched(each.model) for each in models]
    running = {
        side: stream(watched, [ids], settings, models[side].tokenizer, stop=lambda _: stopped()) for side, watched in enumerate(sides)
    }
    follower, read = models[1].model.decoder([ids], settings.max_new_tokens) if len(models) > 1 else None, None
    while running:
        distance: dict[str, float | None] = {"kl_nats": None} if follower else {}
        for side, tokens in list(running.items()):
            token = next(tokens)
            if follower and side == 0:
                followed = follower.prefill() if read is None else follower.decode(np.array([[read]]))
                distance, read = {"kl_nats": divergence(sides[0].logits[0], followed[0])}, token.id
            if token.finish:
                del running[side]
            speed = {name: getattr(sides[side], name) for name in ("prompt_tokens", "prefill_s", "decode_s", "decoded")}
            yield {"event": "token", "side": side, **token_event(token, models[side].tokenizer), **distance, "speed": speed}


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """Return KL(reference ‖ other) in nats of two distributions, given as logits (V,).

    Example:
        >>> round(divergence(np.log([0.5, 0.5]), np.log([0.25, 0.75])), 4)
        0.1438
    """
    log_p, log_q = (log_softmax(logits) for logits in (reference, other))
    return float((np.exp(log_p) * (log_p - log_q)).sum())


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


class Watched:
    """A `Model` and its `Decoder` in one, which keeps what the page shows of another model.

    prompt_tokens: tokens that `prefill` reads, in prefill_s seconds (None before). decode_s: seconds that `decode` took in all its
    calls, `decoded` of them. Both are the model's own time: not that of choosing tokens, nor that of other streams. logits: (B, V), those
    of the last call, to keep.
    """

    def __init__(self, model: Model):
        self.model, self.context = model, model.context
        self.prefill_s: float | None = None
        self.decode_s, self.decoded = 0.0, 0

    def decoder(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 0) -> "Watched":
        self._decoder, self.prompt_tokens = self.model.decoder(prompts, max_new_tokens), sum(map(len, prompts))
        return self

    def prefill(self) -> np.ndarray:
        self.prefill_s = self._call(self._decoder.prefill)
        return self.logits

    def decode(self, ids: Any) -> np.ndarray:
        self.decode_s += self._call(self._decoder.decode, ids)
        self.decoded += 1
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        self._decoder.keep(rows)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> float:
        start = time.perf_counter()
        logits = function(*arguments)
        seconds = time.perf_counter() - start
        self.logits = as_numpy(logits).copy()  # the model overwrites them, perhaps for another stream
        return seconds
