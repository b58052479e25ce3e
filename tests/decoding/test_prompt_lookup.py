from itertools import chain

import numpy as np

from gpt2opt.decoding.prompt_lookup import LONGEST_GUESS, guess, lookup_steps


class Reciter:
    """Stands for a decoder: it always continues as a known text does, whatever is guessed."""

    def __init__(self, text: list[int], prompt: int):
        self.text, self.prompts = text, [text[:prompt]]

    def prefill(self) -> np.ndarray:
        self.past = len(self.prompts[0])
        return np.eye(max(self.text) + 1)[[self.text[self.past]]]

    def verify(self, last: int, guessed: list[int]) -> list[int]:
        assert last == self.text[self.past]
        right = 0
        while right < len(guessed) and guessed[right] == self.text[self.past + 1 + right]:
            right += 1
        chosen = self.text[self.past + 1 : self.past + 2 + right]
        self.past += right + 1
        return chosen


def test_the_latest_longest_match_is_continued():
    assert guess([1, 2, 3, 4, 9, 1, 2, 3], 2) == [4, 9]
    assert guess([1, 2, 7, 1, 2, 8, 1, 2], 1) == [8]  # the later of two
    assert guess([1, 2, 3, 5, 9, 2, 3, 6, 1, 2, 3], 1) == [5]  # the longer of two
    assert guess([5, 1, 1, 1], 3) == [1, 1, 1]  # goes round
    assert guess([1, 2, 3], 2) == []
    assert guess([3, 1, 3], 2) == []  # one token alone is no match


def test_repeated_text_takes_few_steps():
    text = list(range(10)) * 30
    steps = list(lookup_steps(Reciter(text, 20), 200))
    assert list(chain(*steps)) == text[20:220]
    assert max(map(len, steps)) == LONGEST_GUESS + 1  # longer than the ten tokens since the latest repetition: the guess goes round
    assert len(steps) < 20


def test_wrong_guesses_change_nothing_and_are_made_shorter():
    text = [int(x) for x in np.random.default_rng(0).integers(0, 3, 300)]
    assert list(chain(*lookup_steps(Reciter(text, 40), 200))) == text[40:240]


def test_one_token_and_no_more():
    assert list(lookup_steps(Reciter(list(range(5)) * 10, 10), 1)) == [[0]]
