"""What a stage measures is what the model answers, and what a fresh process reports."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from gpt2opt.measure.child import Child
from gpt2opt.measure.memory import ChildRun, Vram
from gpt2opt.measure.results import Resident
from gpt2opt.run import measurements
from gpt2opt.settings import Settings
from gpt2opt.torch_model import TorchDecoder, logits_of


def test_vram_is_the_childs_own_and_its_ram_stands_beside_it(model_dir, monkeypatch):
    steps = {step: Resident(size, size, size, 10) for step, size in (("start", 100), ("loaded", 200), ("steady", 300))}
    child = ChildRun(Vram(allocated_bytes=50, reserved_bytes=60, device_bytes=1090), steps, 400, 5000)
    monkeypatch.setattr(measurements, "in_fresh_process", lambda *_, **__: child)
    monkeypatch.setattr(measurements, "device_vram", lambda: 1000)  # this process has a model on the GPU as well
    memory = measurements.measure_memory(model_dir, SimpleNamespace(prompt=[1, 2]), new_tokens=2)
    assert (memory.peak_vram_bytes, memory.peak_vram_reserved_bytes, memory.driver_vram_bytes) == (50, 60, 90)
    assert (memory.start, memory.loaded, memory.steady) == tuple(steps.values())
    assert (memory.start_rss_bytes, memory.peak_rss_bytes) == (100, 400)
    assert memory.weight_bytes == (model_dir / "model.safetensors").stat().st_size


@pytest.mark.filterwarnings("error")
def test_logits_of_a_torch_model_are_its_own_for_windows_of_any_length(model, ids):
    logits = logits_of(model)
    for window in (ids, ids[:1, :7], ids):
        with torch.inference_mode():
            expected = model(torch.as_tensor(window)).logits
        torch.testing.assert_close(logits(torch.as_tensor(window)), expected, rtol=1e-4, atol=1e-4)


def test_generation_takes_the_same_steps_whether_or_not_a_padding_token_is_named(model, ids):
    """A fine-tuned model names one, and is timed beside models that don't."""

    def answers(padding: int | None):
        model.config.pad_token_id = padding
        decoder = TorchDecoder(model, torch.as_tensor(ids))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            logits = [decoder.prefill(), decoder.decode(torch.as_tensor(ids[:, :1]))]
        return logits, Counter(event.name for event in profiler.events())

    (plain, operators), (padded, operators_with_padding) = answers(None), answers(int(ids[0, -1]))
    assert operators == operators_with_padding
    assert "aten::item" not in operators, "a step waits for the device"
    for one, other in zip(plain, padded, strict=True):
        assert torch.equal(one, other)


def test_a_decoder_answers_as_the_model_does(model, ids):
    ids = torch.as_tensor(ids)
    decoder = TorchDecoder(model, ids[:, :-1])
    with torch.inference_mode():
        expected = model(ids).logits
    torch.testing.assert_close(decoder.prefill(), expected[:, -2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder.decode(ids[:, -1:]), expected[:, -1], rtol=1e-4, atol=1e-4)


def test_models_take_turns_each_in_a_process_of_its_own(model_dir, monkeypatch):
    """The first one does so twice: its ratio to itself shows what noise looks like."""
    started, start = [], Child.__init__
    monkeypatch.setattr(Child, "__init__", lambda *arguments, **options: started.append(arguments) or start(*arguments, **options))
    workload = SimpleNamespace(prompt=[1, 2, 3])
    found = measurements.time_in_turns({"Baseline": model_dir, "Pruned": model_dir}, workload, Settings(new_tokens=2))
    assert list(found) == ["Baseline", "Baseline again", "Pruned"]
    assert len(started) == 3
    assert {(latency.prompt_tokens, latency.new_tokens, len(latency.ttft_samples_s)) for latency in found.values()} == {(3, 2, 12)}
