import math

import pytest

from gpt2opt.report.results import Latency, Quality, hash_weights, percentile


def test_percentiles_interpolate():
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([1, 2, 3, 4, 5], 0.95) == pytest.approx(4.8)
    assert percentile([7], 0.95) == 7


def test_latency_gives_medians_and_rates():
    latency = Latency((0.3, 0.1, 0.2), (0.02, 0.04, 0.03), warmup_runs=1, batch_size=2, prompt_tokens=8, new_tokens=2)
    assert (latency.ttft_s, latency.tpot_s) == (0.2, 0.03)
    assert latency.ttft_s < latency.ttft_p95_s < 0.3


def test_perplexity_divides_sums_and_not_means():
    """A mean of the documents' perplexities would be (e + e**3) / 2; a mean of their losses e**2."""
    quality = Quality((10.0, 90.0), (10, 30), num_words=25, num_bytes=100, protocol="p")
    assert quality.perplexity == pytest.approx(math.exp(100 / 40))
    assert quality.word_perplexity == pytest.approx(math.exp(100 / 25))
    assert quality.bits_per_byte == pytest.approx(100 / math.log(2) / 100)


def test_the_hash_follows_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    before = hash_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"changed": true}')
    assert hash_weights(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert hash_weights(tmp_path) != before
