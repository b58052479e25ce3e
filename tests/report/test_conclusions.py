"""What a part concludes is what the record says, in words that change with it."""

import dataclasses

import pytest

from gpt2opt.measure.results import Latency, Quality
from gpt2opt.report.conclusions import conclude_finetune, conclude_profile, conclude_prune, conclude_quantize, conclude_run
from tests.report.conftest import change


def quality(nats: tuple[float, ...]) -> Quality:
    return Quality(nats, (1000,) * len(nats), 2500, 10000, "text | window 10")


@pytest.fixture
def scored(record):
    """A record in which pruning costs 0.1 nats per token, and fine-tuning gains 0.5 and, for the control, 0.45."""
    nats = {"base": (3000.0, 3100.0, 2900.0), "pruned": (3099.0, 3202.0, 2999.0), "tuned": (2600.0, 2701.0, 2499.0)}
    change(record, "Baseline", quality=quality(nats["base"]))
    change(record, "Pruned", quality=quality(nats["pruned"]), parameters=900)
    change(record, "Pruned, first heads", quality=quality((3300.0, 3420.0, 3180.0)))
    tuned = change(record, "Fine-tuned", quality=quality(nats["tuned"]))
    control = dataclasses.replace(tuned, name="Fine-tuned, unpruned", quality=quality((2550.0, 2650.0, 2450.0)))
    record.models["Fine-tuned, unpruned"] = control
    return record


def test_the_profile_says_where_the_time_goes(record):
    said = conclude_profile(with_facts(record, "Baseline", known_perplexities=None))
    assert "Reading a prompt of 8 tokens takes 110 ms, each further token 15 ms (p95 19.5)." in said
    assert "aten::mm takes 67% of the own time of all operators in the profile; no other takes as much." in said
    known = [{"expected": 29.94, "found": 31.2, "protocol": "standard", "off": "the stride: too short"}]
    assert "Published is 29.94, found 31.20 (standard): the stride: too short." in conclude_profile(
        with_facts(record, "Baseline", known_perplexities=known)
    )


def with_facts(record, name: str, **facts):
    change(record, name, facts={**record.models[name].facts, **facts})
    return record


def test_pruning_says_what_left_and_what_that_cost(scored):
    said = conclude_prune(scored)
    assert "1 of 3 heads were removed per layer: 33.3%, where 20% were asked for" in said
    assert "100 of 1,000 parameters, 10.0%" in said
    assert "The perplexity is 1.1052 [" in said
    assert "times 20.09: it rose" in said
    assert "TTFT over the baseline's: 1.000 [1.000, 1.000]: no measurable difference; TPOT" in said


def test_fine_tuning_is_told_apart_from_learning_the_text(scored):
    said = conclude_finetune(scored)
    assert "Fine-tuning gained 0.500 [" in said
    assert "nats per token; the unpruned control, on the same budget, gained 0.450 [" in said
    assert "no measurable" not in said
    assert "Both models learnt from the text" in said
    assert "Pruning cost 0.1000 nats per token before, 0.0500 when both are tuned: 50% of the cost came back." in said
    change(scored, "Fine-tuned", quality=quality((3200.0, 3300.0, 3100.0)))
    said = conclude_finetune(scored)
    assert "Fine-tuning lost 0.100 [" in said
    assert "learnt" not in said
    change(scored, "Fine-tuned", quality=quality((1000.0, 3900.0, 2800.0)))
    said = conclude_finetune(scored)
    assert "nats per token (no measurable difference); the unpruned" in said
    assert "not both of these show" in said
    assert "learnt" not in said  # a gain that is not measurable is no reason for anything
    change(scored, "Pruned", quality=quality((3000.0, 3101.0, 2899.0)))
    assert "Pruning cost nothing measurable" in conclude_finetune(scored)


def with_naive(record) -> None:
    """Add the control of INT8, and let FP32 take twice as long as INT8 in the same rounds."""
    slow = Latency((0.2, 0.24), (0.02, 0.04, 0.04, 0.06), 1, 1, 8, 3)
    record.models["INT8, naive"] = dataclasses.replace(record.models["INT8"], name="INT8, naive", latency=None, in_turns={})
    change(with_facts(record, "INT8", runs_in_4_gb=None), "INT8", in_turns={"FP32": slow})
    record.models["INT8"].facts["audit"]["float_inputs"] = ["h.1.attn.c_attn", "lm_head"]


def test_quantization_says_what_is_int8_and_what_that_is_worth(record):
    with_naive(record)
    said = conclude_quantize(record)
    assert "3 of 3 matmuls have INT8 weights, 90.0% of the file's bytes." in said
    assert "The gate left these float: h.1.attn.c_attn; by the recipe, the inputs of these stay float: lm_head." in said
    assert "TTFT over that in FP32: 0.500 [0.500, 0.500]; TPOT" in said
    assert "times 18.17: it rose" in said
    assert "Under a limit" not in said


def test_the_run_ends_with_what_it_gained_and_what_it_cost(record, gpu_record):
    with_naive(record)
    change(record, "INT8", memory=dataclasses.replace(record.models["INT8"].memory, weight_bytes=100_000_000))
    size, time, quality = conclude_run(record).splitlines()
    assert size == (
        "The weights take 100 MB instead of 250 MB, 2.50 times less, and generating takes 600 MB of RAM at its peak instead of "
        "600 MB of RAM."
    )
    assert time.startswith(
        "A token takes 15 ms in OpenVINO instead of 15 ms in torch; the time for a token over that in FP32, in OpenVINO on the same CPU: "
        "0.367 ["
    )
    assert quality.startswith("The perplexity is 0.9139 [")
    assert "it fell; the factors are pruning 1.2214 [" in quality
    with_naive(gpu_record)
    assert conclude_run(gpu_record).splitlines()[1].startswith("The time for a token over that in FP32"), (
        "times of two devices are not compared"
    )
