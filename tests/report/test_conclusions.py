"""What a part concludes is what the record says, in words that change with it."""

import dataclasses

import pytest

from gpt2opt.measure.results import Latency, Quality
from gpt2opt.report.conclusions import (
    conclude_deployment,
    conclude_finetune,
    conclude_profile,
    conclude_prune,
    conclude_quantize,
    conclude_run,
    explain_cpu_and_gpu,
)
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
    assert "Reading a prompt of 8 tokens takes 110 ms, each further token 15 ms (p95 19.5): 67 tokens/s." in said
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


def test_the_fastest_of_the_best_is_deployed_and_each_other_one_gets_its_reason(record):
    with_naive(record)
    fast, slow = record.models["INT8"].latency, Latency((0.2, 0.24), (0.02, 0.04, 0.04, 0.06), 1, 1, 8, 3)
    small = dataclasses.replace(record.models["INT8"].memory, weight_bytes=100_000_000)
    change(record, "INT8", memory=small, quality=record.models["FP32"].quality)
    chosen, *others = conclude_deployment(record).splitlines()
    assert chosen.startswith(
        "On a small CPU one would deploy INT8. Of 5 models on Some CPU, 3 have a perplexity of at most 1.02 times the lowest"
    )
    assert "takes the least time: 15 ms per token in OpenVINO, 67 tokens/s. It takes 100 MB on disk and 600 MB of RAM" in chosen
    assert others[1] == (
        "Not Pruned: its perplexity is 1.35 times the lowest; a token in torch takes 1.00 times as long, the file is 2.50 times as large."
    )
    assert others[3] == "Not FP32: a token in OpenVINO takes 2.67 times as long, the file is 2.50 times as large."
    change(record, "INT8", quality=quality((3400.0, 3500.0, 3300.0)))
    for name in ("Baseline", "Pruned", "Fine-tuned", "FP32"):
        change(record, name, quality=quality((2900.0, 3000.0, 2800.0)))
    change(record, "INT8", in_turns={}, latency=fast)
    change(record, "FP32", latency=dataclasses.replace(slow, tpot_samples_s=(0.001,) * 4))
    assert conclude_deployment(record).startswith("On a small CPU one would deploy FP32.")


def test_the_file_decides_between_two_that_take_the_same_time(record):
    latency = record.models["INT8"].latency
    small = dataclasses.replace(record.models["INT8"].memory, weight_bytes=100_000_000)
    fp32 = dataclasses.replace(latency, tpot_samples_s=(0.012, 0.012, 0.0149))  # faster, but not in both runs
    change(record, "INT8", memory=small, in_turns={"FP32": fp32}, quality=record.models["FP32"].quality)
    for name in ("Baseline", "Pruned", "Fine-tuned"):
        change(record, name, memory=None, in_turns={})
    said = conclude_deployment(record)
    assert said.startswith("On a small CPU one would deploy INT8.")
    assert "and of these it is the smallest that shows no difference in time from FP32: 15 ms per token" in said


def test_models_on_a_gpu_are_not_deployed_on_a_cpu(gpu_record):
    assert "Of 2 models on Some CPU" in conclude_deployment(gpu_record)


def test_each_of_the_six_reasons_has_what_the_run_measured(record, gpu_record):
    said = [found for _, found in explain_cpu_and_gpu(record).rows]
    assert len(said) == 6
    assert said[0] == (
        "a token takes 15 ms in FP16 on Some CPU, 15 ms in INT8 on Some CPU with 2 threads: one device, so this run says nothing of a GPU"
    )
    assert said[1] == "Some CPU multiplied 1 of 3 matmuls of a prompt in INT8: TTFT 110 ms, in FP32 110 ms"
    assert said[2] == "2 of 3 matmuls of a prompt and 3 of a token have float inputs; 10.0% of the file is not INT8"
    assert said[3].startswith("batch 1: 73 tokens/s while a prompt is read at once, 67 one by one, each of which reads 250 MB of weights")
    assert said[4].startswith("avx2: TTFT over that in FP32 1.000")
    assert said[5].startswith("33% of the own time of torch's operators is not in aten::mm; the p95 of a token is 1.30 times its median")
    assert "Some GPU, 15 ms in INT8 on Some CPU with 2 threads: two devices" in explain_cpu_and_gpu(gpu_record).rows[0][1]
