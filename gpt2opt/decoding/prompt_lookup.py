"""Prompt-lookup decoding: if the text repeats itself, guess the next tokens and check several of them in one step.

The output is that of greedy decoding: a guessed token is kept only if the model would have chosen it. The method is "Prompt Lookup
Decoding", A. Saxena 2023, a case of speculative decoding (Leviathan et al. 2023) whose draft is the text so far.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from gpt2opt.decoding.decoder import Decoder

LONGEST_MATCH, SHORTEST_MATCH = 4, 2
"""How many tokens have to repeat before the tokens after them are guessed; guesses after a single token are right too seldom."""
FIRST_GUESS, LONGEST_GUESS = 3, 15


def guess(tokens: Sequence[int], count: int) -> list[int]:
    """Find the latest earlier occurrence of the last tokens of a text; return the `count` tokens that followed it, or none.

    If fewer tokens followed, they are repeated: an occurrence so close to the end is that of a text that repeats itself.

    Example:
        >>> guess([1, 2, 3, 4, 9, 1, 2, 3], 2)
        [4, 9]
        >>> guess([1, 2, 1, 2], 3)
        [1, 2, 1]
        >>> guess([1, 2, 3], 2)
        []
    """
    text = np.asarray(tokens)
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        if len(text) <= length:
            continue
        places = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
        (found,) = np.nonzero((places == text[-length:]).all(1))
        if len(found):
            followed = text[int(found[-1]) + length :]
            return np.resize(followed, count).tolist()
    return []


class CanVerify(Decoder, Protocol):
    """A decoder of one sequence that also reads several tokens in one step."""

    @property
    def prompts(self) -> Sequence[Any]:
        """Return a list with the prompt's token ids as its only entry."""
        ...

    def verify(self, last: int, guessed: list[int]) -> list[int]:
        """Read the last token and guesses of what follows; return the guesses that are right and one token more."""
        ...


class PromptLookup:
    """Greedy generation from one prompt, with several tokens per step if they can be guessed.

    accepted: the number of tokens that each step gave: 1 and the guesses that were right.
    """

    def __init__(self, decoder: CanVerify, longest_guess: int = LONGEST_GUESS):
        self.decoder, self.longest_guess = decoder, longest_guess
        self.accepted: list[int] = []

    def generate(self, max_new_tokens: int) -> list[int]:
        """Return `max_new_tokens` tokens, the same as plain greedy decoding returns."""
        return [token for step in self.steps(max_new_tokens) for token in step]

    def steps(self, max_new_tokens: int) -> Iterator[list[int]]:
        """Yield the tokens that each step gives, `max_new_tokens` in all."""
        text = [int(token) for token in self.decoder.prompts[0]]
        end = len(text) + max_new_tokens
        chosen = [int(self.decoder.prefill()[0].argmax())]
        self.accepted, count = [], min(FIRST_GUESS, self.longest_guess)
        while True:
            text += chosen
            yield chosen
            if len(text) == end:
                return
            guessed = guess(text, min(count, end - len(text) - 1))
            chosen = self.decoder.verify(text[-1], guessed)
            self.accepted.append(len(chosen))
            if guessed:
                count = min(2 * count, self.longest_guess) if len(chosen) > len(guessed) else max(count // 2, 1)
