import dataclasses
import math

import pytest

from gpt2opt.measure.results import Latency, Memory, Quality, percentile
from gpt2opt.run.record import Measurement, dominated_by
from gpt2opt.storage import hash_weights


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


def test_the_course_weights_the_mean_loss_of_a_document_by_all_its_tokens():
    quality = Quality((10.0, 90.0), (10, 30), num_words=25, num_bytes=100, protocol="p")
    assert quality.course_perplexity == pytest.approx(math.exp((1 * 11 + 3 * 31) / (11 + 31)))


def test_the_hash_follows_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    before = hash_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"changed": true}')
    assert hash_weights(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert hash_weights(tmp_path) != before


def point(name: str, perplexity: float, tpot_s: float, size: int, device: str = "CPU", protocol: str = "p", prompt: int = 8) -> Measurement:
    quality = Quality((math.log(perplexity) * 10,), (10,), 25, 100, protocol)
    return Measurement(name, device, "int8", "openvino", None, Latency((1.0,), (tpot_s,), 1, 1, prompt, 2), Memory(size), quality)


def test_the_pareto_front_is_what_nothing_else_beats():
    small, good, fast = point("small", 30, 0.03, 10), point("good", 10, 0.03, 30), point("fast", 30, 0.01, 30)
    worse = point("worse", 30, 0.03, 30)  # as slow, as large and as bad as one of the others each
    twin = point("twin", 30, 0.01, 30)  # as fast: neither beats the other
    every = [small, good, fast, worse, twin]
    beaten = {one.name: [other.name for other in dominated_by(one, every)] for one in every}
    assert beaten == {"small": [], "good": [], "fast": [], "twin": [], "worse": ["small", "good", "fast", "twin"]}


@pytest.mark.parametrize("change", [{"device": "GPU"}, {"protocol": "q"}, {"prompt": 9}])
def test_only_like_is_held_against_like(change):
    base = point("base", 20, 0.02, 20)
    assert dominated_by(base, [base, point("best", 10, 0.01, 10)])
    assert dominated_by(base, [base, point("best", 10, 0.01, 10, **change)]) == []


def test_what_was_not_measured_neither_beats_nor_is_beaten():
    whole, part = point("whole", 20, 0.02, 20), Measurement("part", "CPU", "int8", "openvino")
    assert dominated_by(whole, [part]) == dominated_by(part, [whole, part]) == []


def test_a_perplexity_that_is_lower_by_less_than_its_interval_keeps_nothing_on_the_front():
    def scored(found: Measurement, nats: tuple[float, ...]) -> Measurement:
        return dataclasses.replace(found, quality=dataclasses.replace(found.quality, document_nats=nats, document_tokens=(10,) * 4))

    small = scored(point("small", 30, 0.01, 10), (30.0, 31.0, 30.0, 31.0))
    large = point("large", 30, 0.03, 30)
    assert dominated_by(scored(large, (30.1, 30.7, 30.1, 30.9)), [small]) == [small]  # lower on average, but not measurably
    assert dominated_by(scored(large, (28.0, 29.0, 28.0, 29.1)), [small]) == []
