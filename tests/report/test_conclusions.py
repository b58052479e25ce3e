"""What a part concludes is what the record says, in words that change with it."""

import dataclasses

import pytest

from gpt2opt.measure.results import Latency, Quality
from gpt2opt.report.conclusions import conclude_finetune, conclude_profile, conclude_prune, conclude_quantize


def with_quality(measurement, nats: tuple[float, ...]):
    quality = Quality(nats, (1000,) * len(nats), 2500, 10000, "text | window 10")
    return dataclasses.replace(measurement, quality=quality)


@pytest.fixture
def scored(record):
    """A record in which pruning costs 0.1 nats per token, and fine-tuning gains 0.5 and, for the control, 0.45."""
    base, prune, tune, _ = record.stages
    nats = {"base": (3000.0, 3100.0, 2900.0), "pruned": (3099.0, 3202.0, 2999.0), "tuned": (2600.0, 2701.0, 2499.0)}
    control = with_quality(dataclasses.replace(tune.measurement, name="Fine-tuned, unpruned"), (2550.0, 2650.0, 2450.0))
    record.stages[0] = dataclasses.replace(base, measurement=with_quality(base.measurement, nats["base"]))
    record.stages[1] = dataclasses.replace(
        prune,
        measurement=dataclasses.replace(with_quality(prune.measurement, nats["pruned"]), parameters=900),
        controls=(with_quality(prune.controls[0], (3300.0, 3420.0, 3180.0)),),
    )
    record.stages[2] = dataclasses.replace(tune, measurement=with_quality(tune.measurement, nats["tuned"]), controls=(control,))
    return record


def test_the_profile_says_where_the_time_goes(record):
    said = conclude_profile(with_facts(record, 0, known_perplexities=None))
    assert "Reading a prompt of 8 tokens takes 110 ms, each further token 15 ms (p95 19.5)." in said
    assert "aten::mm takes 67% of the own time of all operators in the profile; no other takes as much." in said
    known = [{"expected": 29.94, "found": 31.2, "protocol": "standard", "off": "the stride: too short"}]
    assert "Published is 29.94, found 31.20 (standard): the stride: too short." in conclude_profile(
        with_facts(record, 0, known_perplexities=known)
    )


def with_facts(record, stage: int, **facts):
    measurement = record.stages[stage].measurement
    changed = dataclasses.replace(measurement, facts={**measurement.facts, **facts})
    record.stages[stage] = dataclasses.replace(record.stages[stage], measurement=changed)
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
    worse = dataclasses.replace(scored.stages[2], measurement=with_quality(scored.stages[2].measurement, (3200.0, 3300.0, 3100.0)))
    scored.stages[2] = worse
    said = conclude_finetune(scored)
    assert "Fine-tuning lost 0.100 [" in said
    assert "learnt" not in said
    uneven = with_quality(scored.stages[2].measurement, (1000.0, 3900.0, 2800.0))
    scored.stages[2] = dataclasses.replace(scored.stages[2], measurement=uneven)
    said = conclude_finetune(scored)
    assert "nats per token (no measurable difference); the unpruned" in said
    assert "not both of these show" in said
    assert "learnt" not in said  # a gain that is not measurable is no reason for anything
    same = with_quality(scored.stages[1].measurement, (3000.0, 3101.0, 2899.0))
    scored.stages[1] = dataclasses.replace(scored.stages[1], measurement=same)
    assert "Pruning cost nothing measurable" in conclude_finetune(scored)


def test_quantization_says_what_is_int8_and_what_that_is_worth(record):
    stage = record.stages[3]
    naive = dataclasses.replace(stage.measurement, name="INT8, naive")
    slow = dataclasses.replace(stage.comparisons[0], base_latency=Latency((0.2, 0.24), (0.02, 0.04, 0.04, 0.06), 1, 1, 8, 3))
    record.stages[3] = dataclasses.replace(stage, controls=(*stage.controls, naive), comparisons=(slow,))
    facts = {"int8_matmuls": 9, "expected_matmuls": 9, "int8_share_of_bytes": 0.9, "runs_in_4_gb": None}
    record = with_facts(record, 3, **facts)
    record.stages[3].measurement.facts["audit"]["float_inputs"] = ["h.1.attn.c_attn", "lm_head"]
    said = conclude_quantize(record)
    assert "9 of 9 matmuls have INT8 weights, 90.0% of the file's bytes." in said
    assert "The gate left these float: h.1.attn.c_attn; by the recipe, the inputs of these stay float: lm_head." in said
    assert "TTFT over that in FP32: 0.500 [0.500, 0.500]; TPOT" in said
    assert "times 18.17: it rose" in said
    assert "Under a limit" not in said
