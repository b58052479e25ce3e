import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt2opt.environment import CpuWatch
from gpt2opt.measure.child import Child
from gpt2opt.measure.latency import compare_latency, decoder_in_child
from gpt2opt.measure.results import Comparison

LOGITS = np.zeros((1, 2))


class SleepingDecoder:
    """Takes 50 ms to read the prompt and 20 ms per token by default, and counts its calls."""

    def __init__(self, seconds=0.020):
        self.starts = self.steps = 0
        self.seconds = seconds

    def spin(self, seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def prefill(self):
        self.starts += 1
        time.sleep(0.050)
        return LOGITS

    def decode(self, ids):
        self.steps += 1
        time.sleep(self.seconds)
        return LOGITS


class NoisyDecoder:
    """Takes a known time and noise: some of it is shared by all decoders of a moment, as on a machine that others use."""

    def __init__(self, seconds, seed, weather):
        self.seconds, self.draw, self.weather = seconds, random.Random(seed), weather

    def prefill(self):
        self.took = 10 * self.seconds * self.noise()
        return LOGITS

    def decode(self, ids):
        self.took = self.seconds * self.noise()
        return LOGITS

    def noise(self):
        self.weather[0] = 0.998 * self.weather[0] + 0.002 * self.draw.lognormvariate(0, 1)
        return self.weather[0] * self.draw.lognormvariate(0, 0.03) * (1.5 if self.draw.random() < 0.02 else 1)


def simulated(work, decoders):
    work()
    return work.__self__.decoder.took


def compare_simulated(seconds, base_seconds, seed):
    weather = [1.0]
    decoders = {"a": NoisyDecoder(seconds, seed, weather), "b": NoisyDecoder(base_seconds, seed + 1000, weather)}
    found = compare_latency(decoders, prompt_tokens=8, new_tokens=24, timer=lambda work: simulated(work, decoders))
    return Comparison("a", "b", found["a"], found["b"])


def latency_of(decoder, **settings):
    return compare_latency({"": decoder}, **settings)[""]


def test_known_sleeps_are_read_as_what_they_are():
    latency = latency_of(SleepingDecoder(), prompt_tokens=8, new_tokens=4, runs=3)
    # A sleep never ends early; how late it ends is the machine's business, so the least of the samples is compared.
    assert 0.050 <= min(latency.ttft_samples_s) < 0.065
    assert 0.020 <= min(latency.tpot_samples_s) < 0.030


def test_warm_up_is_run_and_not_recorded():
    decoder = SleepingDecoder()
    latency = latency_of(decoder, prompt_tokens=8, new_tokens=3, runs=2)
    assert decoder.starts == 2 + latency.warmup_runs
    assert decoder.steps == 2 * decoder.starts
    assert len(latency.ttft_samples_s) == 2
    assert len(latency.tpot_samples_s) == 4


@pytest.mark.parametrize(
    ("speed_up", "runs", "steady"), [([1, 1], 2, True), ([4, 2, 1, 1], 4, True), ([2 ** (20 - i) for i in range(20)], 10, False)]
)
def test_warming_up_lasts_until_runs_get_no_faster(speed_up, runs, steady):
    class GetsFaster:
        calls = 0

        def prefill(self):
            self.took = speed_up[min(self.calls, len(speed_up) - 1)]
            self.calls += 1
            return LOGITS

        def decode(self, ids):
            self.took = 0
            return LOGITS

    latency = latency_of(GetsFaster(), prompt_tokens=1, new_tokens=2, runs=1, timer=lambda work: simulated(work, None))
    assert (latency.warmup_runs, latency.steady) == (runs, steady)


def test_models_take_turns_in_changing_order():
    calls = []

    class Named:
        def __init__(self, name):
            self.name = name

        def prefill(self):
            calls.append(self.name)
            return LOGITS

        def decode(self, ids):
            return LOGITS

    found = compare_latency({name: Named(name) for name in "ab"}, prompt_tokens=1, new_tokens=2, runs=20)
    assert list(found) == ["a", "a again", "b"]
    rounds = ["".join(calls[-60:][i : i + 3]) for i in range(0, 60, 3)]
    assert set(rounds) == {"aab", "aba", "baa"}


def make_sleeping(seconds):
    return SleepingDecoder(seconds)


def test_a_decoder_can_be_made_in_a_process_of_its_own():
    decoders = {f"{seconds}": decoder_in_child(make_sleeping, seconds) for seconds in (0.01, 0.02)}
    found = compare_latency(decoders, prompt_tokens=1, new_tokens=3, runs=3)
    assert Comparison("", "", found["0.02"], found["0.01"]).tpot.value == pytest.approx(2, abs=0.5)
    assert Comparison("", "", found["0.01 again"], found["0.01"]).tpot.value == pytest.approx(1, abs=0.3)
    with pytest.raises(RuntimeError, match="TypeError"):
        compare_latency({"broken": decoder_in_child(make_sleeping)}, prompt_tokens=1, new_tokens=3)


def test_the_time_of_children_is_not_counted_as_that_of_others():
    watch = CpuWatch()
    with Child(SleepingDecoder) as child:
        own = watch._read()[2]
        child.call("spin", 0.5)
        assert watch._read()[2] - own > 0.4


def test_a_known_difference_of_5_percent_is_found():
    found = [compare_simulated(1.05, 1.0, seed) for seed in range(20)]
    assert all(pair.tpot.measurable for pair in found)
    assert sum(pair.tpot.low < 1.05 < pair.tpot.high for pair in found) >= 18
    assert sum(pair.tpot.value for pair in found) / 20 == pytest.approx(1.05, abs=0.01)


def test_a_difference_of_0_percent_is_not_found():
    found = [compare_simulated(1.0, 1.0, seed) for seed in range(20)]
    assert sum(pair.tpot.measurable for pair in found) <= 3  # an interval of 95% misses one in twenty
    assert sum(pair.ttft.measurable for pair in found) <= 3


def test_a_busy_machine_is_noticed():
    """The busy process is started by one that ends at once: a child of this process would count as its own."""
    watch = CpuWatch()
    started = subprocess.run(
        ["sh", "-c", f"{sys.executable} -c 'while True: pass' > /dev/null 2>&1 & echo $!"], capture_output=True, text=True
    )
    try:
        time.sleep(1)
        share = watch.others_share()
    finally:
        os.kill(int(started.stdout), signal.SIGKILL)
    assert share > 0.1


def test_what_a_process_does_itself_is_not_counted(monkeypatch):
    read = iter([(0.0, 100.0, 50.0), (10.0, 112.0, 58.0)])  # seconds, busy seconds of the cores, those of this process
    monkeypatch.setattr(CpuWatch, "_read", staticmethod(lambda: next(read)))
    monkeypatch.setattr("gpt2opt.environment.cores", lambda: 2)
    assert CpuWatch().others_share() == pytest.approx((12 - 8) / (10 * 2))


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="new_tokens=1"):
        latency_of(SleepingDecoder(), prompt_tokens=1, new_tokens=1)
