import dataclasses

import pytest

from gpt2opt.measure.results import Agreement, Latency, Memory, Quality, Resident
from gpt2opt.run.record import Measurement, Record, Settings

ENVIRONMENT = {
    "python": "3.11.0", "platform": "Linux x86_64", "cpu": "Some CPU", "cpu_flags": ["avx2"], "threads": 2, "memory_bytes": 4_000_000_000,
    "gpu": None, "versions": {"torch": "2.13.0"}, "commit": None,
}  # fmt: skip
SOURCES = {
    "model": {"name": "gpt2", "origin": "hub", "stand_in": False},
    "text": {"name": "WikiText-2 raw", "origin": "hub", "stand_in": False, "revision": "abc"},
}


def measurement(
    name: str, dtype: str, runtime: str, device: str = "Some CPU", nats: float = 3.0, timed: bool = True, **facts
) -> Measurement:
    latency = Latency((0.1, 0.12), (0.01, 0.02, 0.015), 1, 1, 8, 3) if timed else None
    memory = make_memory(on_gpu=device != "Some CPU") if timed else None
    quality = Quality((nats * 10, nats * 11, nats * 9), (10, 10, 10), 25, 100, "text | window 10")
    continuations = ((" the", " same"), (" then", f" {name}"))
    return Measurement(name, device, dtype, runtime, 1000, latency, memory, quality, "float32", continuations=continuations, facts=facts)


def agreed(found: Measurement, reference: str) -> Measurement:
    agreement = Agreement((0.01, 0.02, 0.03), (10, 9, 10), (10, 10, 10), 0.01, (0.005, 0.02), "text | window 10", reference)
    return dataclasses.replace(found, agreement=agreement)


def make_memory(on_gpu: bool) -> Memory:
    if on_gpu:
        return Memory(250_000_000, peak_vram_bytes=500_000_000, peak_vram_reserved_bytes=600_000_000, driver_vram_bytes=900_000_000)
    start, loaded, steady = (
        Resident(rss, rss - 10_000_000, rss - 30_000_000, 150_000_000) for rss in (200_000_000, 450_000_000, 500_000_000)
    )
    return Memory(250_000_000, 600_000_000, start.rss_bytes, start=start, loaded=loaded, steady=steady)


def make_record(gpu: str | None = None) -> Record:
    device = gpu or "Some CPU"
    timed = [
        measurement(name, "float16", "torch", device, nats) for name, nats in (("Baseline", 3.0), ("Pruned", 3.2), ("Fine-tuned", 2.9))
    ]
    first_heads = measurement("Pruned, first heads", "float16", "torch", device, 3.4, timed=False)
    int8, fp32 = measurement("INT8", "int8", "openvino", nats=2.91), measurement("FP32", "float32", "openvino", nats=2.9)
    timed[1:] = [agreed(found, "Baseline") for found in timed[1:]]
    int8, fp32 = agreed(int8, "FP32"), agreed(fp32, "Fine-tuned")
    operators = {"operator_seconds": {"aten::mm": 0.2, "aten::add": 0.1}}
    heads = {"importance_nats": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], "pruned_heads": {"0": [0], "1": [2]}}
    loss = {
        "loss": [{"step": 1, "loss_nats": 3.0}, {"step": 2, "loss_nats": 2.5}],
        "validation_loss": [{"step": 0, "loss_nats": 3.5}, {"step": 2, "loss_nats": 2.75}],
    }
    names = ("h.0.attn.c_attn", "h.1.attn.c_attn", "lm_head")
    audit = {
        "in_file": dict.fromkeys(names, "i8"),
        "bytes_by_type": {"i8": 90, "f32": 10},
        "prefill": dict(zip(names, [["u8", "i8"], ["f32", "i8"], ["f32", "i8"]], strict=True)),
        "decode": {name: ["f32", "i8"] for name in names},
    }
    only_this, added = {"h.0.attn.c_attn": 0.001, "h.1.attn.c_attn": 0.004}, {"h.0.attn.c_attn": 0.002, "h.1.attn.c_attn": 0.003}
    sensitivity = {
        "only_this": only_this, "added_to_others": added, "together": 0.005, "left": 0.002, "max_kl": 0.0025,
        "float_inputs": ["h.1.attn.c_attn"],
    }  # fmt: skip
    base, pruned, tuned = (dataclasses.replace(found, facts=facts) for found, facts in zip(timed, (operators, heads, loss), strict=True))
    int8 = dataclasses.replace(int8, facts={"audit": audit, "sensitivity": sensitivity}, in_turns={"FP32": fp32.latency})
    pruned = dataclasses.replace(pruned, in_turns={"Baseline": base.latency})
    chain = [
        dataclasses.replace(found, weights_in=before, weights=own, seconds=1.0)
        for found, before, own in ((base, "a", "b"), (pruned, "b", "c"), (tuned, "c", "d"), (int8, "d", "e"))
    ]
    models = {found.name: found for found in (*chain[:2], first_heads, chain[2], fp32, chain[3])}
    return Record("2026-01-01T00:00:00+00:00", {**ENVIRONMENT, "gpu": gpu}, SOURCES, Settings(), ["Once upon", "In the"], models)


def change(record: Record, name: str, **parts) -> Measurement:
    """Replace parts of what was measured of a model; return it as it is then."""
    record.models[name] = dataclasses.replace(record.models[name], **parts)
    return record.models[name]


def keep(record: Record, *names: str) -> None:
    """Leave these models in a record."""
    record.models = {name: model for name, model in record.models.items() if name in names}


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def gpu_record() -> Record:
    return make_record("Some GPU")
