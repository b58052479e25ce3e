import time

import pytest

from gpt2opt.measure.latency import measure_latency


class SleepingDecoder:
    """Takes 50 ms to read the prompt and 20 ms a token, and counts its calls."""

    def __init__(self):
        self.starts = self.steps = 0

    def start(self):
        self.starts += 1
        time.sleep(0.050)

    def step(self):
        self.steps += 1
        time.sleep(0.020)


def test_known_sleeps_are_read_as_what_they_are():
    latency = measure_latency(SleepingDecoder(), prompt_tokens=8, new_tokens=4, runs=3, warmup_runs=1)
    # A sleep never ends early; how late it ends is the machine's business, so the least of the samples is compared.
    assert 0.050 <= min(latency.ttft_samples_s) < 0.065
    assert 0.020 <= min(latency.tpot_samples_s) < 0.030


def test_warm_up_is_run_and_not_recorded():
    decoder = SleepingDecoder()
    latency = measure_latency(decoder, prompt_tokens=8, new_tokens=3, runs=2, warmup_runs=3)
    assert decoder.starts == 5
    assert decoder.steps == 10
    assert len(latency.ttft_samples_s) == 2
    assert len(latency.tpot_samples_s) == 4
    assert latency.warmup_runs == 3


def test_the_clock_is_read_only_after_synchronizing():
    """Work that a GPU would still be doing when its call returns belongs to the token that asked for it."""
    pending = []

    class Asynchronous:
        def start(self):
            pending.append(0.05)

        def step(self):
            pending.append(0.01)

    def synchronize():
        while pending:
            time.sleep(pending.pop())

    latency = measure_latency(Asynchronous(), prompt_tokens=1, new_tokens=2, runs=1, warmup_runs=0, synchronize=synchronize)
    assert latency.ttft_s >= 0.05
    assert latency.tpot_s >= 0.01


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="new_tokens=1"):
        measure_latency(SleepingDecoder(), prompt_tokens=1, new_tokens=1)
