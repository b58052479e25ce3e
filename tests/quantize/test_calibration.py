"""What calibration makes of each Linear: ranges, rounded weights, smoothing; and INC's own trap, shown on the model as it comes."""

import dataclasses
import gc

import pytest
import torch
from neural_compressor.adaptor import pytorch as inc_pytorch
from neural_compressor.utils.utility import CpuInfo

from experiments.recipes import inject_outliers
from gpt2opt import environment
from gpt2opt.export.openvino import export_ir
from gpt2opt.quantize.fake_quant import QuantizedLinear, fake_quantize
from gpt2opt.quantize.inc import calibrate, run_inc
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.quantize.ranges import InputRange, observe_inputs, widen_steps
from gpt2opt.quantize.recipes import RECIPES, Recipe, int8_config
from tests.conftest import make_model, relative_error, torch_logits

NAMES = {f"transformer.h.{n}.{part}" for n in range(2) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")} | {"lm_head"}
PLAIN = Recipe(smooth_alpha=None, head_input=True)


@pytest.fixture(scope="module")
def found(pruned, calibration):
    return calibrate(prepare_for_export(pruned), calibration, PLAIN)


def test_inc_calibrates_every_block_matmul_and_the_head(found):
    assert set(found) == NAMES
    for layer in found.values():
        assert layer.weight_scale.shape == (layer.weight.shape[0], 1)
        assert layer.input_scale > 0
        assert 0 <= layer.input_zero_point <= 255


def test_inc_alone_skips_the_conv1d_layers_of_gpt2(tokenizer, calibration):
    """The trap that `prepare_for_export` is for: on the model as it comes, INC reports success with the head alone in INT8."""
    assert set(calibrate(make_model(tokenizer), calibration, PLAIN)) == {"lm_head"}


def test_a_weight_lies_within_half_a_step_of_the_models(pruned, found):
    linear = prepare_for_export(pruned)
    for name, layer in found.items():
        assert ((linear.get_submodule(name).weight - layer.weight).abs() <= 0.5001 * layer.weight_scale).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu", "silu", "gelu"])
def test_every_activation_is_left_to_itself(activation, tokenizer, calibration):
    """INC keeps ReLU and tanh in INT8 and then has no range for the next input, and it smooths weights through ReLU without a word."""
    linear = prepare_for_export(make_model(tokenizer, activation_function=activation))
    found = calibrate(linear, calibration, Recipe(head_input=True))
    assert all(layer.input_scale > 0 for layer in found.values())
    for name, layer in found.items():
        assert ((linear.get_submodule(name).weight - layer.weight).abs() <= 0.5001 * layer.weight_scale).all(), name
    assert type(linear.transformer.h[0].mlp.act) is type(make_model(tokenizer, activation_function=activation).transformer.h[0].mlp.act)


def largest_pair_sum(layer: QuantizedLinear, seen: InputRange) -> float:
    """Return the largest |a₀w₀ + a₁w₁| of neighbouring inputs, in steps of both grids, that the inputs that were seen can reach."""
    largest = (seen.highest / layer.input_scale).round() + layer.input_zero_point
    products = (layer.weight / layer.weight_scale) * largest.clamp(0, 255)
    ups, downs = (part.unflatten(1, (-1, 2)).sum(-1).amax() for part in (products.clamp(min=0), -products.clamp(max=0)))
    return max(ups, downs).item()


def test_weights_are_widened_only_as_far_as_sums_of_16_bits_need():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 40, generator=draw)
    weight[:3, 4:6] = 5  # two large neighbours, on inputs that come near 255
    scale = weight.abs().amax(1, keepdim=True) / 127
    eight = QuantizedLinear(torch.round(weight / scale) * scale, scale, 8, 0.1, 128)
    highest = torch.full((40,), 4.0)
    highest[4:6] = 12.0
    seen = InputRange(-highest, highest)
    kept = widen_steps(eight, weight, seen)
    assert largest_pair_sum(kept, seen) <= 32767 < largest_pair_sum(eight, seen)
    widened = (kept.weight_scale > scale * 1.0001).flatten()
    assert widened[:3].all()
    assert widened.float().mean() < 0.5
    assert torch.equal(kept.weight[~widened], eight.weight[~widened])
    assert ((kept.weight - weight).abs() <= 0.5001 * kept.weight_scale).all()
    assert (kept.input_scale, kept.input_zero_point) == (eight.input_scale, eight.input_zero_point)


@pytest.mark.parametrize("recipe", [RECIPES["w8a8"], dataclasses.replace(PLAIN, activation_range="kl"), RECIPES["w4"]], ids=str)
def test_the_same_bytes_are_written_whatever_cpu_quantizes(recipe, pruned, tokenizer, calibration, tmp_path, monkeypatch):
    """What INC and this project know of the CPU is set by hand: without VNNI, and with VNNI and bf16 arithmetic."""
    written = []
    for name, flags in (("avx2", {"avx2"}), ("avx512", {"avx2", "avx512f", "avx512_vnni", "avx512_bf16"})):
        monkeypatch.setattr(environment, "cpu_flags", lambda flags=flags: flags)
        cpu, has_vnni = CpuInfo(), "avx512_vnni" in flags
        monkeypatch.setattr(cpu, "_vnni", has_vnni)
        monkeypatch.setattr(cpu, "_bf16", has_vnni)
        monkeypatch.setattr(inc_pytorch, "REDUCE_RANGE", not has_vnni)  # as it would have been read from `CpuInfo` at import
        linear = prepare_for_export(pruned)
        export_ir(fake_quantize(linear, calibrate(linear, calibration, recipe)), tokenizer, tmp_path / name)
        written.append((tmp_path / name / "openvino_model.bin").read_bytes())
    assert written[0] == written[1]


def test_no_channel_of_a_calibrated_model_needs_more_than_16_bits(pruned, calibration):
    linear = prepare_for_export(pruned)
    layers = calibrate(linear, calibration, PLAIN)
    seen = observe_inputs(linear, calibration, layers)
    worst = {name: largest_pair_sum(layer, seen[name]) for name, layer in layers.items()}
    assert max(worst.values()) <= 32767
    linear = prepare_for_export(pruned)
    wider = calibrate(linear, calibration, PLAIN, safe_sums=False)
    assert max(largest_pair_sum(layer, seen[name]) for name, layer in wider.items()) > 32767


def test_blocks_add_no_mean_to_the_residual_stream_and_answer_the_same(pruned, ids):
    linear = prepare_for_export(pruned)
    added = []
    for block in linear.transformer.h:
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            projection.register_forward_hook(
                lambda _module, _inputs, output: added.append((output.mean(-1).abs().max() / output.std()).item())
            )
    assert relative_error(torch_logits(linear, ids), torch_logits(pruned, ids)) < 1e-5
    assert len(added) == 4
    assert max(added) < 1e-5


def test_smoothing_is_applied_and_leaves_the_function_alone(pruned, calibration, ids):
    smoothed = prepare_for_export(pruned)
    calibrate(smoothed, calibration, RECIPES["w8a8"])
    assert not torch.allclose(smoothed.transformer.h[0].ln_1.weight, pruned.transformer.h[0].ln_1.weight)
    assert relative_error(torch_logits(smoothed, ids), torch_logits(pruned, ids)) < 1e-5


def test_incs_copies_of_the_model_are_freed(pruned, calibration):
    def graph_modules():
        gc.collect()
        return sum(isinstance(item, torch.fx.GraphModule) for item in gc.get_objects())

    before = graph_modules()
    calibrate(prepare_for_export(pruned), calibration, RECIPES["w8a8"])
    assert graph_modules() <= before


def test_smoothing_that_inc_skipped_is_an_error(pruned, calibration, monkeypatch):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    monkeypatch.setattr(ALL_MASK_ATTENTION_FUNCTIONS, "register", lambda *_: None)  # so the trace fails, as it does without masks
    with pytest.raises(RuntimeError, match="INC skipped SmoothQuant"):
        calibrate(prepare_for_export(pruned), calibration, RECIPES["w8a8"])


def test_smoothing_brings_a_model_with_injected_outliers_near_the_original(pruned, calibration, ids):
    outliers, expected = inject_outliers(prepare_for_export(pruned), k=64, share=0.05), torch_logits(pruned, ids)
    assert relative_error(torch_logits(outliers, ids), expected) < 1e-4  # harder to quantize, and the same function

    def error(recipe: Recipe) -> float:
        copy = prepare_for_export(outliers)
        return relative_error(torch_logits(fake_quantize(copy, calibrate(copy, calibration, recipe)), ids), expected)

    assert error(Recipe()) < 0.3 * error(PLAIN)


def test_percentile_ranges_lie_inside_those_of_minmax(pruned, calibration, found):
    inside = calibrate(prepare_for_export(pruned), calibration, dataclasses.replace(PLAIN, activation_range="percentile"))
    assert all(inside[name].input_scale < found[name].input_scale * 1.01 for name in NAMES)
    assert any(inside[name].input_scale < found[name].input_scale * 0.95 for name in NAMES)


@pytest.mark.parametrize(("recipe", "bits"), [("w8", 8), ("w4", 4)])
def test_weight_only_recipes_round_weights_and_nothing_else(recipe, bits, pruned, calibration):
    linear = prepare_for_export(pruned)
    layers = calibrate(linear, calibration, RECIPES[recipe])
    assert set(layers) == NAMES
    for name, layer in layers.items():
        outputs, inputs = layer.weight.shape
        assert layer.bits == (8 if name == "lm_head" else bits)
        assert layer.input_scale is None
        groups = layer.weight_scale.shape[1]
        assert groups == 1 if layer.bits == 8 else inputs // groups <= 64
        steps = layer.weight.view(outputs, groups, -1) / layer.weight_scale[..., None]
        assert (steps - steps.round()).abs().max() < 1e-3
        error = (layer.weight - linear.get_submodule(name).weight).view(outputs, groups, -1).abs()
        assert (error <= 0.5001 * layer.weight_scale[..., None]).all()


@pytest.mark.parametrize("recipe", [PLAIN, Recipe(head_input=True)], ids=["plain", "smoothed"])
@pytest.mark.parametrize(
    ("raised", "told", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (MemoryError(), MemoryError, ""),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            MemoryError,
            "tried to allocate 9 bytes",
        ),
        (KeyError("a key"), RuntimeError, "INC failed: .*KeyError: 'a key'"),
    ],
)
def test_what_inc_catches_is_told_as_what_it_is(raised, told, message, recipe, pruned, calibration, tmp_path):
    linear, calls = prepare_for_export(pruned), []

    def fail(*_):
        calls.append(1)
        raise raised

    linear.transformer.h[1].mlp.register_forward_pre_hook(fail)
    if recipe.smooth_alpha and told is RuntimeError:
        pytest.skip("where a trace fails INC smooths nothing, and then a check of ours fails")
    with pytest.raises(told, match=message):
        run_inc(linear, int8_config(recipe), tmp_path, calibration, "text-generation")
    assert calls
