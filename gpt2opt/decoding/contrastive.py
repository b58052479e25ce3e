"""Contrastive search (Su et al. 2022): a probable token whose hidden state is unlike those of the text before it.

Of the k most probable tokens the one with the largest (1 − α) · p − α · s is chosen; p is its probability, s the largest cosine between
its hidden state and those of all tokens before it. It takes a decoder that shows its hidden states.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from gpt2opt.decoding.decoder import Decoder, Logits, as_numpy
from gpt2opt.decoding.processors import Process, log_softmax
from gpt2opt.decoding.settings import DecodingSettings


class ShowsHiddenStates(Decoder, Protocol):
    """A decoder that also has `hidden_states`."""

    def hidden_states(self) -> list[np.ndarray]:
        """Return, for each sequence, the last hidden states (tokens, D) of the tokens that the last call read."""
        ...


def contrastive_search(
    decoder: Decoder, prompts: Sequence[Sequence[int]], settings: DecodingSettings, process: Process | None, ended: set[int]
) -> Iterator[list[tuple[int, int, Logits]]]:
    """Yield, for each step, (sequence, token, logits (V,)) of all sequences that have not ended.

    Raises:
        ValueError: the decoder does not show its hidden states.
    """
    if not hasattr(decoder, "hidden_states"):
        raise ValueError(
            "contrastive search needs hidden states, which this engine does not give; choose torch, or leave penalty_alpha out"
        )
    alpha, k = float(settings.penalty_alpha or 0), settings.top_k
    texts, sequences = [list(prompt) for prompt in prompts], list(range(len(prompts)))
    logits = as_numpy(decoder.prefill())
    directions = [_directions(hidden) for hidden in decoder.hidden_states()]
    while True:
        probabilities = [np.exp(log_softmax(process(texts[s], row) if process else row)) for s, row in zip(sequences, logits, strict=True)]
        candidates = np.stack([np.argsort(-row, kind="stable")[:k] for row in probabilities])
        decoder.keep([row for row in range(len(sequences)) for _ in range(k)])
        next_logits = as_numpy(decoder.decode(candidates.reshape(-1, 1)))
        hidden = np.stack([_directions(each)[0] for each in decoder.hidden_states()]).reshape(*candidates.shape, -1)
        best = []
        for row, sequence in enumerate(sequences):
            likeness = (hidden[row] @ directions[sequence].T).max(-1)
            best.append(int(((1 - alpha) * probabilities[row][candidates[row]] - alpha * likeness).argmax()))
            directions[sequence] = np.concatenate([directions[sequence], hidden[row, best[row]][None]])
            texts[sequence].append(int(candidates[row, best[row]]))
        yield [(sequence, texts[sequence][-1], logits[row]) for row, sequence in enumerate(sequences)]
        going_on = [row for row, sequence in enumerate(sequences) if sequence not in ended]
        if not going_on:
            return
        chosen = [row * k + best[row] for row in going_on]
        decoder.keep(chosen)
        logits, sequences = next_logits[chosen], [sequences[row] for row in going_on]


def _directions(hidden: np.ndarray) -> np.ndarray:
    return hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
