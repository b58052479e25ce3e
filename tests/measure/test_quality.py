import math

import pytest
import torch
import torch.nn.functional as F

from gpt2opt.measure.quality import measure_agreement, measure_quality, windows
from gpt2opt.report.results import Quality

VOCAB = 50


def uniform(ids):
    return torch.zeros(*ids.shape, VOCAB)


def score(logits, ids, window=16, stride=16, **options):
    return measure_quality(logits, ids, num_bytes=100, label="test", window=window, stride=stride, **options)


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (100, 100), (7, 1)])
def test_uniform_logits_have_the_perplexity_of_the_vocabulary(window, stride):
    quality = score(uniform, list(range(40)), window, stride)
    assert quality.perplexity == pytest.approx(VOCAB, rel=1e-6)
    assert quality.num_tokens == 39


@pytest.mark.parametrize(("tokens", "window", "stride"), [(2, 8, 8), (9, 8, 8), (10, 8, 8), (100, 8, 3), (17, 8, 8)])
def test_windows_score_every_token_but_the_first_once(tokens, window, stride):
    plan = list(windows(tokens, window, stride))
    targets = [target for _, end, first in plan for target in range(first, end + 1)]
    assert targets == list(range(1, tokens))
    assert all(end - start <= window for start, end, _ in plan)


def test_perplexity_equals_a_direct_computation(model, tokenizer):
    ids = tokenizer("Node 1 of graph 2 has 3 edges, and a path leads from it. " * 4).input_ids
    window = 20

    @torch.inference_mode()
    def logits(rows):
        return model(rows).logits

    nats = 0.0
    for start in range(0, len(ids) - 1, window):
        row = torch.tensor([ids[start : start + window + 1]])
        with torch.inference_mode():
            nats += F.cross_entropy(model(row[:, :-1]).logits[0], row[0, 1:], reduction="sum").item()
    assert score(logits, ids, window, window).perplexity == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)


def test_batch_size_does_not_change_the_result(model, tokenizer):
    ids = tokenizer("Node 1 of graph 2 has 3 edges, and a path leads from it. " * 8).input_ids

    @torch.inference_mode()
    def logits(rows):
        return model(rows).logits

    one, five = (score(logits, ids, 20, 20, batch_size=size) for size in (1, 5))
    assert one.perplexity == pytest.approx(five.perplexity, rel=1e-6)
    assert one.num_tokens == five.num_tokens == len(ids) - 1


def test_a_prediction_that_is_right_costs_nothing_and_a_shift_would_show():
    ids = [1, 2, 3, 4] * 10

    def knows_the_next(rows):
        return 100.0 * F.one_hot(rows % 4 + 1, VOCAB).float()

    assert score(knows_the_next, ids).perplexity == pytest.approx(1.0, abs=1e-6)


def test_one_token_is_refused():
    with pytest.raises(ValueError, match=r"has 1 token\(s\), at least 2"):
        score(uniform, [3])


def test_nan_logits_give_an_error_and_no_number():
    with pytest.raises(ValueError, match="not finite"):
        score(lambda ids: uniform(ids) * math.nan, list(range(10)))


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="token id 99 is outside the model's 50 tokens"):
        score(uniform, [1, 99, 3])


def test_a_stride_that_would_leave_tokens_out_is_refused():
    with pytest.raises(ValueError, match="stride=17, window=16"):
        score(uniform, list(range(40)), 16, 17)


def test_qualities_of_different_protocols_are_not_divided():
    a, b = (score(uniform, list(range(40)), window, window) for window in (16, 8))
    with pytest.raises(ValueError, match="can't compare"):
        a.ratio_to(b)


def test_a_paired_interval_is_narrower_than_the_noise_both_share():
    nats = [float(100 + 40 * (i % 7)) for i in range(60)]
    base = Quality(tuple(nats), (50,) * 60, 1000, "p")
    worse = Quality(tuple(n + 0.5 for n in nats), (50,) * 60, 1000, "p")
    low, high = worse.ratio_interval(base)
    assert low <= math.exp(0.01) * 1.0001
    assert high >= math.exp(0.01) * 0.9999
    assert high - low < 1e-6
    wide = base.interval()
    assert wide[0] < base.perplexity < wide[1]
    assert wide[1] - wide[0] > 0.1


def agree(logits, parent, ids=tuple(range(40)), window=16, stride=16):
    return measure_agreement(logits, parent, list(ids), label="test", window=window, stride=stride)


def test_a_model_agrees_with_itself():
    found = agree(uniform, uniform)
    assert found.mean_kl == 0
    assert found.top1 == 1
    assert sum(found.window_tokens) == 39


@pytest.mark.parametrize("stride", [16, 5])
def test_agreement_is_the_kl_divergence_from_the_parent(stride):
    """Of a fair coin against one that shows heads nine times in ten: KL(fair ‖ biased) = ½ ln(0.5/0.9) + ½ ln(0.5/0.1)."""
    fair = torch.tensor([0.5, 0.5]).log()
    biased = torch.tensor([0.1, 0.9]).log()

    def coin(probabilities):
        return lambda ids: probabilities.expand(*ids.shape, 2)

    found = agree(coin(biased), coin(fair), [0, 1] * 20, stride=stride)
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert found.mean_kl == pytest.approx(expected, rel=1e-6)
    assert found.kl_p99 == pytest.approx(expected, rel=1e-6)
    assert found.mean_kl_interval() == pytest.approx((expected, expected), rel=1e-6)
    assert sum(found.window_tokens) == 39
    assert found.top1 == 0  # the fair coin's first is 0, the biased one's 1


def test_models_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="50 and 51 tokens; only models of one vocabulary"):
        agree(uniform, lambda ids: torch.zeros(*ids.shape, VOCAB + 1))
    with pytest.raises(ValueError, match="not finite"):
        agree(lambda ids: torch.full((*ids.shape, VOCAB), math.nan), uniform)
