"""Prompt-lookup decoding: where the text repeats itself, guess what comes next and check several tokens in one step.

Greedy output stays what it is: a guess is kept only as far as the model would have chosen it. After "Prompt Lookup Decoding",
A. Saxena 2023, a case of speculative decoding (Leviathan et al. 2023) whose draft is the text so far.
"""

from collections.abc import Sequence

import numpy as np

LONGEST_MATCH, SHORTEST_MATCH = 4, 2
"""Tokens that have to repeat before what followed them is guessed; one alone is right too seldom."""
FIRST_GUESS, LONGEST_GUESS = 3, 15


def guess(tokens: Sequence[int], count: int) -> list[int]:
    """Return the `count` tokens that followed the latest earlier place where the text read as it does at its end, or none.

    Where the text ends before so many have followed, it is taken to go round: a place close to the end is one that repeats itself.

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


class PromptLookup:
    """Greedy generation from one prompt, several tokens a step where they can be guessed.

    accepted: for every step, how many tokens it gave, 1 and the guesses that were right.
    """

    def __init__(self, decoder):
        """Take an `IrDecoder` of one sequence."""
        self.decoder = decoder
        self.accepted: list[int] = []

    def generate(self, max_new_tokens: int) -> list[int]:
        """Return the same `max_new_tokens` tokens that plain greedy decoding gives."""
        prompt = self.decoder.prompt_ids[0].tolist()
        new = [int(self.decoder.prefill()[0].argmax())]
        self.accepted, count = [], FIRST_GUESS
        while len(new) < max_new_tokens:
            guessed = guess(prompt + new, min(count, max_new_tokens - len(new) - 1))
            chosen = self.decoder.verify(new[-1], guessed)
            new += chosen
            self.accepted.append(len(chosen))
            if guessed:
                count = min(2 * count, LONGEST_GUESS) if len(chosen) > len(guessed) else max(count // 2, 1)
        return new
