"""Two models advance together over one prompt, token by token, and the distance between them is measured at each."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpt2opt.apps.ui.answer import token_event
from gpt2opt.apps.ui.library import Loaded
from gpt2opt.apps.ui.watched import WatchedDecoder, WatchedModel
from gpt2opt.decoding.generation import Token, stream
from gpt2opt.decoding.processors import log_softmax
from gpt2opt.decoding.settings import DecodingSettings


def lockstep(
    reference: Loaded, other: Loaded, ids: Sequence[int], settings: DecodingSettings, stopped: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Yield an event for each token of the reference model (side 0), then of the other one (side 1), until both texts have ended.

    Each writes a text of its own. Sampling draws by the same random numbers on both sides, so that the texts part only where the
    distributions differ. The event of a step's last token says which distance the step has: `kl_nats`, KL(reference ‖ other) of the next
    token, both having read the reference's text. The other model reads that text a second time, outside of its own speed, since texts that
    have parted can't be compared. Both models must have the same tokens, which `read_prompt` checks.

    Raises:
        ValueError: as `stream`.
    """
    sides = [WatchedModel(each.model) for each in (reference, other)]
    streams: list[Iterator[Token] | None] = [
        stream(side, [list(ids)], settings, each.tokenizer, stop=lambda _: stopped())
        for side, each in zip(sides, (reference, other), strict=True)
    ]
    follower = WatchedDecoder(other.model.decoder([ids], settings.max_new_tokens), len(ids))
    read: int | None = None
    while streams[0] or streams[1]:
        kl_nats = None
        for side in (0, 1):
            tokens = streams[side]
            token = next(tokens, None) if tokens else None
            if side == 0 and token:
                followed = follower.prefill() if read is None else follower.decode(np.array([[read]]))
                kl_nats, read = divergence(sides[0].decoder_now.logits[0], followed[0]), token.id
            if not token or token.finish:
                streams[side] = None
            if token:
                shown = token_event(token, other.tokenizer)
                yield {"event": "token", "side": side, **shown, "kl_nats": kl_nats, "speed": sides[side].decoder_now.speed()}


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """Return KL(reference ‖ other) in nats of two distributions, given as logits (V,).

    Example:
        >>> round(divergence(np.log([0.5, 0.5]), np.log([0.25, 0.75])), 4)
        0.1438
    """
    log_p, log_q = (log_softmax(logits.astype(np.float64)) for logits in (reference, other))
    return float((np.exp(log_p) * (log_p - log_q)).sum())
