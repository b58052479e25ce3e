"""The loop: what ends a sequence, what leaves the batch, what is streamed, and that a batch changes no token."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt2opt.decoding.generation import draw, generate, stream
from gpt2opt.decoding.processors import log_softmax
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import TextStream
from tests.decoding.conftest import TableModel

COUNT = 30 * np.eye(12, k=1, dtype=np.float32)
"""A table by which each token is followed by the next number."""


def letters(ids: list[int], **_) -> str:
    return "".join("abcdefghijkl"[i] for i in ids)


LETTERS = SimpleNamespace(decode=letters, eos_token_id=None)
"""A tokenizer whose tokens are letters."""


def test_the_most_probable_token_follows():
    (found,) = generate(TableModel(COUNT), [[0]], DecodingSettings(max_new_tokens=4), LETTERS)
    assert (found.ids, found.text, found.finish) == ((1, 2, 3, 4), "bcde", "length")
    assert found.logprobs is None


def test_a_sequence_ends_at_end_of_text_and_leaves_the_batch():
    decoder = TableModel(COUNT)
    found = generate(decoder, [[0], [4], [2]], DecodingSettings(max_new_tokens=6, eos_token_id=6), LETTERS)
    assert [g.ids for g in found] == [(1, 2, 3, 4, 5, 6), (5, 6), (3, 4, 5, 6)]
    assert [g.finish for g in found] == ["end of text"] * 3
    assert [g.text for g in found] == ["bcdef", "f", "def"]
    assert decoder.batches == [3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("stop", ["d", "de", "cde"])
def test_text_ends_before_a_stop_string(stop):
    settings = DecodingSettings(max_new_tokens=8, stop_strings=("zz", stop))
    tokens = list(stream(TableModel(COUNT), [[0]], settings, LETTERS))
    text = "".join(token.text for token in tokens)
    assert text + stop == "bcdefghi"[: len(text + stop)]
    assert tokens[-1].finish == "stop string"
    assert letters([token.id for token in tokens]) == text + stop


def test_a_beginning_of_a_stop_string_that_does_not_end_is_shown():
    settings = DecodingSettings(max_new_tokens=3, stop_strings=("dx",))
    tokens = list(stream(TableModel(COUNT), [[0]], settings, LETTERS))
    assert [token.text for token in tokens] == ["b", "c", "d"]
    settings = DecodingSettings(max_new_tokens=4, stop_strings=("dx",))
    tokens = list(stream(TableModel(COUNT), [[0]], settings, LETTERS))
    assert [token.text for token in tokens] == ["b", "c", "", "de"]


def test_stop_strings_want_a_tokenizer():
    with pytest.raises(ValueError, match="without a tokenizer"):
        list(stream(TableModel(COUNT), [[0]], DecodingSettings(stop_strings=("d",))))


def test_a_character_of_two_tokens_is_shown_whole():
    text = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    assert [text.push(byte) for byte in "aé".encode()] == ["a", "", "é"]
    assert text.push("é".encode()[0]) == ""
    assert text.finish() == "\N{REPLACEMENT CHARACTER}"


def test_the_caller_stops_one_sequence_and_no_other():
    found = generate(TableModel(COUNT), [[0], [5]], DecodingSettings(max_new_tokens=5), stop=lambda token: token.sequence == 0)
    assert [(g.ids, g.finish) for g in found] == [((1,), "stopped"), ((6, 7, 8, 9, 10), "length")]


def test_tokens_come_one_by_one():
    decoder = TableModel(COUNT)
    tokens = stream(decoder, [[0]], DecodingSettings(max_new_tokens=5))
    assert next(tokens).id == 1
    assert decoder.batches == [1]
    next(tokens)
    tokens.close()
    assert decoder.batches == [1, 1]


def test_log_probabilities_are_the_models_own(table):
    settings = DecodingSettings(max_new_tokens=3, do_sample=True, temperature=0.5, top_k=3, top_logprobs=5)
    for token, before in zip(stream(TableModel(table), [[2]], settings), [2, None, None], strict=True):
        if before is not None:
            expected = log_softmax(table[before])
            assert token.logprob == pytest.approx(expected[token.id])
            assert [i for i, _ in token.top] == np.argsort(-expected)[:5].tolist()
            np.testing.assert_allclose([p for _, p in token.top], np.sort(expected)[::-1][:5])
    (found,) = generate(TableModel(table), [[2]], settings)
    assert len(found.logprobs) == len(found.top) == 3


@pytest.mark.parametrize("sampled", [False, True])
def test_a_batch_changes_no_token(table, sampled):
    settings = DecodingSettings(max_new_tokens=15, do_sample=sampled, top_k=0, eos_token_id=0, seed=7)
    prompts = [[2], [5, 3], [1, 1, 4], [5, 3]]
    together = [g.ids for g in generate(TableModel(table), prompts, settings)]
    alone = [generate(TableModel(table), [prompt], settings)[0].ids for prompt in prompts]
    assert together[:3] == alone[:3]
    assert (together[3] == together[1]) == (not sampled)  # a prompt that comes twice is continued in two ways


def test_the_seed_decides(table):
    def sampled(seed):
        return generate(TableModel(table), [[2]], DecodingSettings(do_sample=True, seed=seed))[0].ids

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_a_token_that_is_ruled_out_is_never_drawn():
    lowest = SimpleNamespace(random=lambda: 0.0)
    assert draw(np.array([-np.inf, 1.0, 2.0]), lowest) == 1
