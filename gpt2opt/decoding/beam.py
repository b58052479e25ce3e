"""Beam search as transformers does it: the same beams, scores and stopping, over any `Decoder` that can copy its sequences."""

from collections.abc import Iterator, Sequence

import numpy as np

from gpt2opt.decoding.decoder import Decoder, Logits, as_numpy
from gpt2opt.decoding.processors import Process, log_softmax
from gpt2opt.decoding.settings import DecodingSettings

NEVER = -1e9


class _Beams:
    """The beams of one prompt. ids: the new tokens of the running beams. best: (score, new tokens) of the beams that have ended."""

    def __init__(self, prompt: Sequence[int], settings: DecodingSettings):
        self.prompt, self.settings = list(prompt), settings
        self.ids: list[list[int]] = [[]] * settings.num_beams
        self.scores = np.full(settings.num_beams, NEVER)
        self.scores[0] = 0  # all beams are the prompt at first: only one of them may go on
        self.best: list[tuple[float, list[int]]] = []

    def advance(self, log_probabilities: np.ndarray) -> list[int]:
        """Take the log-probabilities (beams, V) of the next tokens; return which beam each new beam goes on from."""
        settings, beams = self.settings, self.settings.num_beams
        total = (log_probabilities + self.scores[:, None]).reshape(-1)
        # Twice as many candidates as beams, so that enough are left to go on if the best ones end the text.
        order = np.argpartition(-total, 2 * beams - 1)[: 2 * beams]
        order = order[np.argsort(-total[order], kind="stable")]
        parents, tokens = np.divmod(order, log_probabilities.shape[-1])
        length = len(self.ids[0]) + 1
        ended = (tokens == settings.eos_token_id) | (length >= settings.max_new_tokens)
        candidates = [[*self.ids[parent], int(token)] for parent, token in zip(parents, tokens, strict=True)]
        new = [(total[order[i]] / length**settings.length_penalty, candidates[i]) for i in range(beams) if ended[i]]
        self.best = sorted(self.best + new, key=lambda each: -each[0])[:beams]
        going_on = np.flatnonzero(~ended)[:beams]
        self.finished = len(going_on) == 0
        if self.finished:
            return []
        self.scores = total[order[going_on]]
        self.ids = [candidates[i] for i in going_on]
        # The search ends if no running beam can become better than the worst that has ended; `early_stopping` says how exactly.
        full = len(self.best) == beams
        longest = settings.max_new_tokens if settings.early_stopping == "never" and settings.length_penalty > 0 else length
        worst = min(score for score, _ in self.best) if full else NEVER
        improvable = self.scores[0] / longest**settings.length_penalty > worst
        self.finished = not improvable or (full and settings.early_stopping is True)
        return parents[going_on].tolist()


def beam_search(
    decoder: Decoder, prompts: Sequence[Sequence[int]], settings: DecodingSettings, process: Process | None
) -> Iterator[list[tuple[int, int, Logits]]]:
    """Search, then yield (sequence, token, None) of the best beam of each prompt, one token after the other.

    A token's log-probability is not kept: its row of logits is gone when the best beam is known.
    """
    if settings.top_logprobs is not None or settings.stop_strings:
        raise ValueError("beam search gives no log-probabilities and knows no stop strings; leave top_logprobs and stop_strings out")
    searches = [_Beams(prompt, settings) for prompt in prompts]
    running, width = list(searches), settings.num_beams
    log_probabilities = np.repeat(log_softmax(as_numpy(decoder.prefill())), width, axis=0)
    rows = [row for row in range(len(prompts)) for _ in range(width)]
    while True:
        kept: list[int] = []
        for place, search in enumerate(running):
            own = log_probabilities[place * width : (place + 1) * width]
            if process:
                own = np.stack([process(search.prompt + ids, row) for ids, row in zip(search.ids, own, strict=True)])
            parents = search.advance(own)
            if not search.finished:
                kept += [rows[place * width + parent] for parent in parents]
        running = [search for search in running if not search.finished]
        if not running:
            break
        decoder.keep(kept)
        rows = list(range(len(kept)))
        log_probabilities = log_softmax(as_numpy(decoder.decode(np.array([ids[-1] for search in running for ids in search.ids])[:, None])))
    for sequence, search in enumerate(searches):
        for token in search.best[0][1]:
            yield [(sequence, token, None)]
