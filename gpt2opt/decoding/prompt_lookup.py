"""Prompt-lookup decoding: if the text repeats itself, guess the next tokens and check several of them in one step.

The output is that of greedy decoding: a guessed token is kept only if the model would have chosen it. The method is "Prompt Lookup
Decoding", A. Saxena 2023, a case of speculative decoding (Leviathan et al. 2023) whose draft is the text so far.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

LONGEST_MATCH, SHORTEST_MATCH = 4, 2
"""How many tokens have to repeat before the tokens after them are guessed; guesses after a single token are right too seldom."""
FIRST_GUESS, LONGEST_GUESS = 3, 15


def guess(tokens: Sequence[int], count: int) -> list[int]:
    """Find the latest earlier occurrence of the last tokens of a text; return the `count` tokens that followed it, or none.

    If fewer tokens followed, they are repeated: an occurrence so close to the end is that of a text that repeats itself.

    >>> guess([1, 2, 3, 4, 9, 1, 2, 3], 2)
    [4, 9]
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


def lookup_steps(decoder: Any, max_new_tokens: int, longest_guess: int = LONGEST_GUESS) -> Iterator[list[int]]:
    """Generate greedily from one prompt; yield the tokens that each step gives, `max_new_tokens` in all.

    decoder: of one sequence; its `verify(last, guessed)` reads the last token and guesses of what follows, and returns the guesses that are
    right and one token more.
    """
    text = [int(token) for token in decoder.prompts[0]]
    end, count = len(text) + max_new_tokens, min(FIRST_GUESS, longest_guess)
    chosen = [int(decoder.prefill()[0].argmax())]
    while True:
        text += chosen
        yield chosen
        if len(text) == end:
            return
        guessed = guess(text, min(count, end - len(text) - 1))
        chosen = decoder.verify(text[-1], guessed)
        if guessed:
            count = min(2 * count, longest_guess) if len(chosen) > len(guessed) else max(count // 2, 1)
