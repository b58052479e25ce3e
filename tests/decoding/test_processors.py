"""The processors in numpy against those of transformers, and the distribution that is drawn from."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2LMHeadModel

from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.processors import log_softmax, make_process
from gpt2opt.decoding.settings import DecodingSettings
from tests.decoding.conftest import TableModel, transformers_process

SAMPLING = [
    {"top_k": 0},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 0, "top_p": 0.8},
    {"top_k": 0, "top_p": 0.05},
    {"top_k": 0, "top_p": 1e-20},
    {"top_k": 0, "min_p": 0.1},
    {"top_k": 0, "typical_p": 0.5},
    {"repetition_penalty": 1.3},
    {"temperature": 1.4, "top_k": 8, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("vocab", [12, 5000])
@pytest.mark.parametrize("changed", SAMPLING, ids=str)
def test_scores_are_those_of_transformers(changed, vocab):
    settings = DecodingSettings(do_sample=True, **changed)
    random = np.random.default_rng(1)
    for _ in range(20):
        scores = random.normal(0, 3, vocab).astype(np.float32)
        ids = random.integers(0, vocab, 6).tolist()
        ours = make_process(settings)
        found = ours(ids, scores) if ours else scores
        expected = transformers_process(settings)(ids, scores)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_sampling_only_the_repetition_penalty_counts():
    assert make_process(DecodingSettings(temperature=0.5, top_k=1, top_p=0.1)) is None
    np.testing.assert_allclose(
        make_process(DecodingSettings(temperature=0.5, repetition_penalty=2.0))([0, 1], np.array([2.0, -2.0, 2.0])), [1, -4, 2]
    )


@pytest.mark.parametrize(
    "changed", [{}, {"top_k": 4}, {"top_k": 0, "top_p": 0.7}, {"top_k": 0, "temperature": 1.5, "min_p": 0.05}], ids=str
)
def test_draws_follow_the_distribution_of_transformers(changed, table):
    """10,000 draws of one token, and as many by transformers' `generate` on the same logits, against the same expectation."""
    settings, draws = DecodingSettings(do_sample=True, max_new_tokens=1, seed=3, **changed), 10_000
    drawn = Counter(g.ids[0] for g in generate(TableModel(table), [[2]] * draws, settings))
    expected = np.exp(log_softmax(transformers_process(settings)([2], table[2])))
    possible = np.flatnonzero(expected * draws >= 5)
    assert set(drawn) <= set(np.flatnonzero(expected))
    assert chi_squared(drawn, expected, possible, draws) > 1e-4
    torch.manual_seed(0)
    model = tiny_model(table)
    theirs = model.generate(
        torch.full((draws, 1), 2), attention_mask=torch.ones(draws, 1, dtype=torch.long), do_sample=True, max_new_tokens=1, pad_token_id=0,
        **{"top_k": 50, **changed},
    )  # fmt: skip
    assert chi_squared(Counter(theirs[:, -1].tolist()), expected, possible, draws) > 1e-4


def chi_squared(drawn: Counter, expected: np.ndarray, possible: np.ndarray, draws: int) -> float:
    rest = 1 - expected[possible].sum()
    counts, shares = [drawn[i] for i in possible], list(expected[possible])
    if rest * draws >= 5:
        counts, shares = [*counts, draws - sum(counts)], [*shares, rest]
    return float(chisquare(counts, np.array(shares) / sum(shares) * sum(counts)).pvalue)


def tiny_model(table: np.ndarray) -> GPT2LMHeadModel:
    """Return a GPT-2 whose logits are a table's, whatever its weights are."""
    from transformers import GPT2Config

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=8, vocab_size=len(table), eos_token_id=None)).eval()
    model.generation_config.eos_token_id = None
    rows = torch.from_numpy(table)
    model.lm_head.register_forward_pre_hook(lambda head, inputs: None)
    forward = model.forward

    def from_table(input_ids=None, **rest):
        out = forward(input_ids=input_ids, **rest)
        out.logits = rows[input_ids][:, -1:]
        return out

    model.forward = from_table
    return model
