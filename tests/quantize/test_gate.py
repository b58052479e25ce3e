import json

import numpy as np
import pytest
import torch

from gpt2opt.export.openvino import export_ir
from gpt2opt.quantize import gate
from gpt2opt.quantize.fake_quant import fake_quantize, quantized_linears
from gpt2opt.quantize.gate import CacheRounding, apply_gate
from gpt2opt.quantize.inc import calibrate
from gpt2opt.quantize.int8 import quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.quantize.recipes import Recipe
from gpt2opt.runtime.ir_model import load_ir
from tests.conftest import relative_error, torch_logits

BAD = "transformer.h.1.mlp.c_fc"


@pytest.fixture
def spoiled(pruned, calibration):
    """A fake-quantized model one of whose inputs has far too coarse a grid."""
    linear = prepare_for_export(pruned)
    model = fake_quantize(linear, calibrate(linear, calibration, Recipe(smooth_alpha=None)))
    quantized_linears(model)[BAD].input_scale *= 12
    return model


@pytest.fixture
def rows(calibration):
    return calibration["input_ids"][-4:]


def test_the_input_that_costs_most_is_found_and_left_float(spoiled, pruned, rows):
    measured = apply_gate(spoiled, prepare_for_export(pruned), rows, max_kl=None)
    assert measured.float_inputs == ()
    assert measured.left == measured.together
    for costs in (measured.only_this, measured.added_to_others):
        assert max(costs, key=costs.get) == "h.1.mlp.c_fc"
    budget = measured.together / 2
    gated = apply_gate(spoiled, prepare_for_export(pruned), rows, max_kl=budget)
    assert gated.float_inputs == ("h.1.mlp.c_fc",)
    assert gated.left <= budget < gated.together
    assert {name for name, layer in quantized_linears(spoiled).items() if not layer.quantize_input} == {BAD, "lm_head"}


@pytest.mark.parametrize(("max_kl", "further"), [(None, 0), (1e9, 0), (-1.0, 9)])
def test_the_bar_is_full_at_the_end_however_many_inputs_are_left_float(max_kl, further, spoiled, pruned, rows, bars):
    apply_gate(spoiled, prepare_for_export(pruned), rows, max_kl=max_kl)
    count = 2 + 2 * 9 + further
    assert bars == [("sensitivity of each quantized input", count, count)]


def test_a_budget_of_nothing_leaves_every_input_float_and_no_weight(spoiled, pruned, rows):
    weights = {name: layer.quantized_weight().clone() for name, layer in quantized_linears(spoiled).items()}
    gated = apply_gate(spoiled, prepare_for_export(pruned), rows, max_kl=-1.0)
    assert len(gated.float_inputs) == 8 + 1  # the KV cache
    assert gated.left == 0
    assert all(torch.equal(layer.quantized_weight(), weights[name]) for name, layer in quantized_linears(spoiled).items())


class WholePasses:
    """What `gate._Divergence` is, without reuse: every measurement is a forward pass of the whole model."""

    def __init__(self, model, layers, reference, rows):
        self.model, self.layers, self.rows = model, layers, rows
        self.expected = [self.log_probabilities(reference, row) for row in rows]

    def __call__(self, quantized):
        for name, layer in self.layers.items():
            layer.quantize_input = name in quantized
        found = [self.log_probabilities(self.model, row) for row in self.rows]
        return torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(self.expected, found, strict=True)]).double().mean().item()

    @staticmethod
    def log_probabilities(model, row):
        hidden = model.transformer(torch.tensor([row]), use_cache=False).last_hidden_state[0, gate.EVERY - 1 :: gate.EVERY]
        return torch.log_softmax(model.lm_head(hidden), -1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_starting_at_the_switched_block_changes_no_bit_and_saves_passes(attention, spoiled, pruned, rows, monkeypatch):
    spoiled.set_attn_implementation(attention)
    blocks = []
    for block in spoiled.transformer.h:
        block.register_forward_hook(lambda *_: blocks.append(1))

    def measured():
        for layer in quantized_linears(spoiled).values():
            layer.quantize_input = layer.input_scale is not None
        blocks.clear()
        return apply_gate(spoiled, prepare_for_export(pruned), rows, max_kl=1e-4), len(blocks)

    reused, fewer = measured()
    monkeypatch.setattr(gate, "_Divergence", WholePasses)
    whole, more = measured()
    assert reused == whole
    assert len(whole.float_inputs) > 1
    assert fewer < 0.9 * more  # with 2 blocks a pass runs 1.5 on average, with 12 it runs 6.5


def test_answers_that_overflow_are_refused_and_not_passed(spoiled, pruned, rows):
    spoiled.transformer.h[1].mlp.c_fc.weight.data *= 1e38
    with pytest.raises(ValueError, match="KL divergence of nan"):
        apply_gate(spoiled, prepare_for_export(pruned), rows, max_kl=1e-4)


def test_sensitivity_is_the_kl_divergence_from_the_reference_model(spoiled, pruned, rows):
    reference = prepare_for_export(pruned)
    measured = apply_gate(spoiled, reference, rows, max_kl=None)
    with torch.inference_mode():
        ids = torch.tensor(rows)
        p, q = (torch.log_softmax(model(ids).logits[:, 3::4], -1) for model in (reference, spoiled))
    without_cache = measured.together - measured.added_to_others["kv_cache"]
    assert measured.weights + without_cache == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)


def test_the_gate_rounds_keys_and_values_as_the_runtime_does(spoiled, tokenizer, ids, tmp_path):
    for layer in quantized_linears(spoiled).values():
        layer.quantize_input = False
    export_ir(spoiled, tokenizer, tmp_path, kv_cache="u8")
    rounded, float_cache = load_ir(tmp_path).logits(ids), torch_logits(spoiled, ids)
    for block in spoiled.transformer.h:
        block.attn.c_attn.register_forward_hook(CacheRounding(block.attn.head_dim))
    assert relative_error(rounded, torch_logits(spoiled, ids)) < 0.6 * relative_error(rounded, float_cache)


@pytest.mark.parametrize(("k", "kept_in"), [(1, "u8"), (64, "f16")])
def test_a_cache_that_int8_would_spoil_stays_float(k, kept_in, pruned, tokenizer, calibration, ids, tmp_path):
    """A key channel × k and the query's ÷ k is the same function, and takes the steps of the head's other channels."""
    model = prepare_for_export(pruned)
    for block in model.transformer.h:
        queries, keys, _ = np.split(np.arange(block.attn.c_attn.weight.shape[0]), 3)
        for parameter in block.attn.c_attn.parameters():
            parameter.data[keys[:: block.attn.head_dim]] *= k
            parameter.data[queries[:: block.attn.head_dim]] /= k
    assert relative_error(torch_logits(model, ids), torch_logits(pruned, ids)) < 1e-4
    done = quantize_int8(model, tokenizer, calibration, tmp_path / "int8")
    assert ("kv_cache" in done.sensitivity.float_inputs) == (kept_in == "f16")
    assert json.loads((tmp_path / "int8/gpt2opt.json").read_text())["kv_cache"] == kept_in
    request = load_ir(tmp_path / "int8").request
    assert request.get_tensor("key_cache.0").element_type.get_type_name() == kept_in
    assert relative_error(load_ir(tmp_path / "int8").logits(ids), torch_logits(pruned, ids)) < 0.1
