import pytest
import torch

from gpt2opt.deploy.gate import apply_gate
from gpt2opt.deploy.inc import Recipe, calibrate
from gpt2opt.deploy.ir import fake_quantize, linearize, quantized_linears

BAD = "transformer.h.1.mlp.c_fc"


@pytest.fixture
def spoiled(pruned, calibration):
    """A fake-quantized model one of whose inputs has far too coarse a grid."""
    linear = linearize(pruned)
    model = fake_quantize(linear, calibrate(linear, calibration, Recipe(smooth_alpha=None)))
    quantized_linears(model)[BAD].input_scale *= 12
    return model


@pytest.fixture
def rows(calibration):
    return calibration["input_ids"][-4:]


def test_the_input_that_hurts_is_found_and_left_float(spoiled, pruned, rows):
    harm = apply_gate(spoiled, linearize(pruned), rows, max_kl=None)
    assert harm.float_inputs == ()
    assert harm.left == harm.together
    assert max(harm.alone, key=harm.alone.get) == max(harm.among, key=harm.among.get) == "h.1.mlp.c_fc"
    budget = harm.together / 2
    harm = apply_gate(spoiled, linearize(pruned), rows, max_kl=budget)
    assert harm.float_inputs == ("h.1.mlp.c_fc",)
    assert harm.left <= budget < harm.together
    assert {name for name, layer in quantized_linears(spoiled).items() if not layer.quantize_input} == {BAD, "lm_head"}


def test_a_budget_of_nothing_leaves_every_input_float_and_no_weight(spoiled, pruned, rows):
    weights = {name: layer.quantized_weight().clone() for name, layer in quantized_linears(spoiled).items()}
    harm = apply_gate(spoiled, linearize(pruned), rows, max_kl=-1.0)
    assert len(harm.float_inputs) == 8
    assert harm.left == 0
    assert all(torch.equal(layer.quantized_weight(), weights[name]) for name, layer in quantized_linears(spoiled).items())


def test_harm_is_the_kl_divergence_from_the_parent(spoiled, pruned, rows):
    parent = linearize(pruned)
    harm = apply_gate(spoiled, parent, rows, max_kl=None)
    with torch.inference_mode():
        ids = torch.tensor(rows)
        p, q = (torch.log_softmax(model(ids).logits[:, 3::4], -1) for model in (parent, spoiled))
    assert harm.weights + harm.together == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
