"""Settings that no generation can follow are refused in one line."""

import re

import numpy as np
import pytest
from transformers import GenerationConfig

from gpt2opt.decoding.settings import DecodingSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_p": 0}, "top_p=0, expected a number above 0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"temperature": 0}, "temperature=0, expected a number above 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"temperature": 1e-320}, "temperature=1e-320, expected a number above 0"),
        ({"length_penalty": 1e308}, "length_penalty=1e+308, expected a number from -20 to 20"),
        ({"length_penalty": float("-inf")}, "length_penalty=-inf"),
        ({"repetition_penalty": 1e308}, "repetition_penalty=1e+308"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"num_beams": 10**12}, "num_beams=1000000000000"),
        ({"min_p": float("nan")}, "min_p=nan"),
        ({"top_k": -1}, "top_k=-1"),
        ({"min_p": 2}, "min_p=2"),
        ({"typical_p": 0}, "typical_p=0"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"early_stopping": "soon"}, "early_stopping='soon'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"max_new_tokens": 2.0}, "max_new_tokens=2.0, expected a whole number of at least 1"),
        ({"max_new_tokens": None}, "max_new_tokens=None"),
        ({"seed": -1}, "seed=-1"),
        ({"stop_strings": ("",)}, "stop_strings=('',)"),
        ({"stop_strings": "end"}, "stop_strings='end'"),
        ({"do_sample": True, "num_beams": 2}, "two methods"),
    ],
)
def test_a_wrong_setting_is_named(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        DecodingSettings(**wrong)
    assert "\n" not in str(refused.value)


def test_an_integer_of_numpy_is_taken():
    assert DecodingSettings(max_new_tokens=np.int64(3)).max_new_tokens == 3


def test_defaults_are_those_of_transformers():
    theirs = GenerationConfig()
    shared = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
    shared += ("num_beams", "length_penalty", "early_stopping")
    ours = DecodingSettings()
    assert {name: getattr(ours, name) for name in shared} == {name: getattr(theirs, name, None) for name in shared}
    assert ours.max_new_tokens == theirs.max_length


def test_the_method_has_a_name():
    assert [DecodingSettings(**case).method for case in ({}, {"do_sample": True}, {"num_beams": 2})] == [
        "greedy",
        "sampling",
        "beam search",
    ]
