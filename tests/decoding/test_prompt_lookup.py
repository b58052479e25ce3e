from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2opt.decoding import prompt_lookup
from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.prompt_lookup import (
    FILE,
    LONGEST_GUESS,
    LONGEST_MATCH,
    PROMPT_TOKENS,
    DraftedText,
    Drafts,
    load_drafts,
    lookup_steps,
    write_drafts,
)
from tests.decoding.conftest import TableModel


class Reciter:
    """Stands for a decoder: it continues as a known text does. A step of n tokens takes 1 + n · `per_token` ms."""

    def __init__(self, text: list[int], prompt: int, per_token: float = 0.1):
        self.text, self.prompts, self.per_token = text, [text[:prompt]], per_token
        self.read: list[int] = []

    def prefill(self) -> np.ndarray:
        self.past = len(self.prompts[0])
        return np.eye(max(self.text) + 1)[[self.text[self.past]]]

    def verify(self, last: int, guessed: list[int]) -> list[int]:
        assert last == self.text[self.past]
        self.read.append(1 + len(guessed))
        right = 0
        while right < len(guessed) and guessed[right] == self.text[self.past + 1 + right]:
            right += 1
        chosen = self.text[self.past + 1 : self.past + 2 + right]
        self.past += right + 1
        return chosen

    def seconds(self) -> float:
        return sum(1 + self.per_token * count for count in self.read) / 1e3


@pytest.fixture
def steps(monkeypatch):
    """Return the steps of a decoder by a clock of its own."""

    def run(decoder: Reciter, count: int) -> list[list[int]]:
        monkeypatch.setattr(prompt_lookup, "time", SimpleNamespace(perf_counter=decoder.seconds))
        return list(lookup_steps(decoder, count))

    return run


def guess(tokens: list[int], count: int, drafts: Drafts | None = None) -> list[int]:
    return [token for token, _ in DraftedText(drafts or Drafts(), tokens).guess(count)]


def push(ngram: int, token: int) -> int:
    return ngram << 16 | token + 1


def table(*ngrams: list[int]) -> Drafts:
    """Return drafts with a table of n-grams, each with the token that follows it as its last one."""
    made = {}
    for *ngram, token in ngrams:
        key = 0
        for one in ngram:
            key = push(key, one)
        made[key] = token
    return Drafts(made)


def random_text(highest: int, length: int) -> list[int]:
    return np.random.default_rng(0).integers(0, highest, length).tolist()


def test_the_latest_longest_match_is_continued():
    assert guess([1, 2, 3, 4, 9, 1, 2, 3], 2) == [4, 9]
    assert guess([1, 2, 7, 1, 2, 8, 1, 2], 1) == [8]  # the later of two
    assert guess([1, 2, 3, 5, 9, 2, 3, 6, 1, 2, 3], 1) == [5]  # the longer of two
    assert guess([5, 1, 1, 1], 3) == [1, 1, 1]  # goes round
    assert guess([1, 2, 3], 2) == []
    assert guess([], 2) == guess([7], 2) == []


def test_the_table_is_asked_where_the_text_has_no_match_as_long():
    assert guess([1, 2], 3, table([2, 8], [2, 8, 9])) == [8, 9]
    assert guess([1, 2, 5, 1, 2], 1, table([1, 2, 8])) == [5]  # of the same length: the text itself
    assert guess([2, 5, 1, 2], 1, table([1, 2, 8])) == [8]  # a longer one
    assert guess([1, 2], 3, table([3, 8])) == []


def test_ids_of_any_size_are_guessed():
    assert guess([65534, 65535, 70000, 250000, 65534, 65535, 70000], 1) == [250000]


def test_repeated_text_takes_few_steps(steps):
    text = list(range(10)) * 30
    found = steps(Reciter(text, 20), 200)
    assert list(chain(*found)) == text[20:220]
    assert max(map(len, found)) == LONGEST_GUESS + 1
    assert len(found) < 30


@pytest.mark.parametrize(("per_token", "tokens_a_step"), [(0.01, (3, 8)), (100, (1, 1.5))])
def test_wrong_guesses_change_nothing_and_are_made_only_where_they_cost_little(steps, per_token, tokens_a_step):
    text = random_text(3, 600)
    decoder = Reciter(text, 40, per_token)
    assert list(chain(*steps(decoder, 500))) == text[40:540]
    assert tokens_a_step[0] <= np.mean(decoder.read[-100:]) <= tokens_a_step[1]


def learn(drafts: Drafts, *steps: tuple[int, float]) -> list[float]:
    """Take steps, (tokens, seconds); return what one token and eight are taken to need then."""
    for tokens, seconds in steps:
        drafts.learn([(0, 1)] * (tokens - 1), 0, seconds)
    return [drafts.one, drafts.one + 7 * drafts.more]


def test_the_time_of_a_step_follows_undisturbed_ones():
    drafts = Drafts()
    compiling, steps = [(tokens, 20.0) for tokens in (1, 8, 4, 2)], [(tokens, 0.9 + 0.1 * tokens) for tokens in (1, 8, 4, 2)]
    assert learn(drafts, *compiling, *steps * 39) == pytest.approx([1.0, 1.7], rel=0.02)
    assert learn(drafts, (8, 500.0), (1, 300.0), *steps, *steps) == pytest.approx([1.0, 1.7], rel=0.02)  # interruptions
    slow = [(tokens, 3 * seconds) for tokens, seconds in steps]
    assert learn(drafts, *slow * 16) == pytest.approx([3.0, 5.1], rel=0.02)  # the machine became slower


def test_a_length_that_was_not_seen_for_long_may_be_cheap_or_dear():
    assert learn(Drafts(), *[(1, 1.0)] * 64) == pytest.approx([1.0, 1 + 7 / 2])
    assert learn(Drafts(), *[(8, 1.0)] * 64) == pytest.approx([1 - 7 / 16, 1.0])
    assert learn(Drafts(), *[(1, 1.0)] * 15, (8, 20.0)) == pytest.approx([1.0, 1 + 7 / 2])  # seen once: it may have compiled


def test_a_kind_of_guess_that_failed_on_one_text_is_tried_on_the_next():
    drafts = Drafts()
    drafts.one, drafts.more = 1.0, 0.3
    text = DraftedText(drafts, [1, 2, 3, 4, 5] * 3)
    assert (expected := text.guess(1)) == [(1, 4)]
    for _ in range(100):
        for place in range(len(drafts.right)):
            drafts.right[[*drafts.right][place]] *= 0.9
    assert text.guess(1) == []
    assert DraftedText(drafts, [1, 2, 3, 4, 5] * 3).guess(1) == expected


def test_one_token_and_no_more(steps):
    assert steps(Reciter(list(range(5)) * 10, 10), 1) == [[0]]


class Counter(TableModel):
    """A model of 90 tokens that counts, but goes on from every tenth one with 0; it writes no more than its context."""

    vocab_size = 90

    def __init__(self):
        following = np.arange(1, 91) % 90
        following[9::10] = 0
        super().__init__(np.eye(90)[following])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text("the tokenizer")
    return tmp_path


ROWS = [[*range(start, start + 40)] for start in range(40)]


def test_a_table_is_found_again_and_guesses_what_the_model_writes(folder):
    model = Counter()
    count = write_drafts(folder, model, ROWS)
    drafts = load_drafts(folder, 90)
    assert len(drafts.table) == count > 0
    (tokens,) = Greedy(model.decoder([[5, 6, 7, 8]])).generate(9)
    assert guess([5, 6, 7, 8], 9, drafts) == tokens


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2, 3]]])
def test_without_text_there_is_an_empty_table(folder, rows, caplog):
    assert write_drafts(folder, Counter(), rows) == 0
    assert load_drafts(folder, 90).table == {}
    assert not caplog.records


def test_of_a_long_row_the_beginning_is_continued(folder):
    model = Counter()
    given = []
    model.decoder = lambda prompts, new: given.extend(prompts) or TableModel.decoder(model, prompts)
    write_drafts(folder, model, np.array([[*range(60)]]))
    assert {tuple(prompt) for prompt in given} == {tuple(range(PROMPT_TOKENS))}
    assert {type(token) for token in given[0]} == {int}


def test_a_table_has_a_largest_size_and_keeps_what_comes_most_often(folder, monkeypatch):
    whole = write_drafts(folder, Counter(), ROWS)
    full = load_drafts(folder, 90).table
    monkeypatch.setattr(prompt_lookup, "MOST_ENTRIES", 4 * LONGEST_MATCH)
    assert write_drafts(folder, Counter(), ROWS) == 4 * LONGEST_MATCH < whole
    few = load_drafts(folder, 90).table
    assert few.items() < full.items()
    assert few[push(0, 3)] == 4  # the cycle from 0 to 9 is what it writes most


def refused(folder, caplog, vocab_size: int = 90) -> str:
    """Return the one line about a table that is not used."""
    caplog.clear()
    assert load_drafts(folder, vocab_size).table == {}
    (record,) = caplog.records
    assert str(folder / FILE) in record.getMessage()
    return record.getMessage()


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole + b"\n", lambda whole: b"\xff" * 99])
def test_a_damaged_table_is_not_used(folder, caplog, damage):
    write_drafts(folder, Counter(), ROWS)
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(damage(whole))
    assert "damaged" in refused(folder, caplog)
    for place in range(0, len(whole), 7):
        (folder / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(folder, caplog)


def test_a_foreign_table_is_not_used(folder, caplog):
    write_drafts(folder, Counter(), ROWS)
    assert "of another tokenizer" in refused(folder, caplog, 91)
    (folder / "tokenizer.json").write_text("another tokenizer")
    assert "of another tokenizer" in refused(folder, caplog)
