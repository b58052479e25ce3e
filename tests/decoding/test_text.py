"""Text and tokens with tokenizers of every kind: what is added to a prompt, and that pieces joined are the text."""

import itertools

import numpy as np
import pytest

from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.decoding.text import TextStream, decoder_of, encode, encode_prompt, end_of_text, token_text
from tests.conftest import make_tokenizer
from tests.decoding.conftest import TableModel
from tests.other_tokenizers import OTHERS

EVERY = {"byte-level": make_tokenizer, **OTHERS}
TEXTS = ["river stone, bright quiet engine.", "light 😀 small 👩‍👧 city", "今天天气 letter number", "  two  spaces "]


@pytest.fixture(scope="module", params=EVERY)
def any_tokenizer(request):
    return EVERY[request.param]()


def streamed(tokenizer, ids, stops=(), before=()) -> list[str]:
    stream, pieces = TextStream(decoder_of(tokenizer), stops, before), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text_of_all_tokens(any_tokenizer, text):
    ids = encode(any_tokenizer, text).input_ids
    pieces = streamed(any_tokenizer, ids)
    assert "".join(pieces) == any_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_text_behind_a_prompt_begins_with_its_space(any_tokenizer, cut):
    ids = encode(any_tokenizer, TEXTS[0]).input_ids
    decode = decoder_of(any_tokenizer)
    assert decode(ids[:cut]) + "".join(streamed(any_tokenizer, ids[cut:], before=ids[:cut])) == decode(ids)


def test_a_text_ends_before_a_stop_string_across_tokens(any_tokenizer):
    ids = encode(any_tokenizer, TEXTS[0]).input_ids
    assert "".join(streamed(any_tokenizer, ids, ["zzz", "bright qui"])) == decoder_of(any_tokenizer)(ids).split("bright qui")[0]


def test_a_token_costs_the_same_however_long_the_text_is():
    tokenizer, sizes = make_tokenizer(), []
    stream = TextStream(lambda ids: sizes.append(len(ids)) or decoder_of(tokenizer)(ids), (), range(100))
    for token in encode(tokenizer, "river stone " * 50).input_ids:
        stream.push(token)
    assert max(sizes[2:]) == 2


def test_generated_text_follows_its_prompt_with_a_space():
    tokenizer = OTHERS["SentencePiece"]()
    token = tokenizer.convert_tokens_to_ids("▁bright")
    prompt, always = [token], np.tile(np.eye(len(tokenizer), dtype=np.float32)[token], (len(tokenizer), 1))
    (found,) = generate(TableModel(always), [prompt], DecodingSettings(max_new_tokens=2), tokenizer)
    assert found.text == " bright bright"


def test_nothing_is_added_to_a_prompt(any_tokenizer):
    ids = encode_prompt(any_tokenizer, "river stone", 0)
    assert not set(ids) & set(any_tokenizer.all_special_ids)
    assert any_tokenizer.decode(ids) == "river stone"


def test_byte_level_tokens_are_what_they_were(tokenizer):
    text = "Node 1 of graph 2 has 3 edges. Grüße 😀"
    assert encode(tokenizer, text).input_ids == tokenizer(text).input_ids
    assert [token_text(tokenizer, token) for token in range(len(tokenizer))] == [tokenizer.decode([t]) for t in range(len(tokenizer))]


@pytest.mark.parametrize(("name", "text"), itertools.product(["SentencePiece", "byte fallback", "WordPiece"], TEXTS[:1]))
def test_a_token_by_itself_keeps_its_space(name, text):
    tokenizer = OTHERS[name]()
    ids = encode(tokenizer, text).input_ids
    assert "".join(token_text(tokenizer, token) for token in ids).strip() == decoder_of(tokenizer)(ids)


def test_a_tokenizer_without_end_of_text_is_told_what_to_do():
    with pytest.raises(ValueError, match=r"no end-of-text token; set tokenizer\.eos_token"):
        end_of_text(OTHERS["WordPiece"]())
