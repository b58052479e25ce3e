"""What becomes of each Linear of a GPT-2: a weight on its integer grid and the range of its input, by a recipe."""

import dataclasses
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gpt2opt.quantize.fake_quant import QuantizedLinear
from gpt2opt.quantize.inc import load_inc, run_inc
from gpt2opt.quantize.ranges import clip_to_percentiles, keep_sums_in_16_bits, observe_inputs, smooth_untied_head, take_over_smoothing
from gpt2opt.quantize.recipes import Recipe


def calibrate(linear: GPT2LMHeadModel, calibration: Dataset, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Quantize every Linear of a linearized model, and smooth its LayerNorms in place if the recipe says so.

    The result is the same on every CPU and runs on every CPU, whichever it is made on; see `keep_sums_in_16_bits`.

    Args:
        linear: from `linearize`. With smoothing its LayerNorms and the weights behind them change; its function does not.
        calibration: column `input_ids`, rows of one length.
        recipe: how to quantize.

    Returns:
        Name of a Linear -> its quantized form.

    Raises:
        RuntimeError: INC did not apply the smoothing that was asked for, or quantized nothing.
    """
    if not recipe.activations:
        return round_weights(linear, recipe)
    return _safe_for_every_cpu(linear, calibration, calibrate_static(linear, calibration, recipe))


def calibrate_static(linear: GPT2LMHeadModel, calibration: Dataset, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Do what `calibrate` does for weights and activations, but keep the weights as INC rounds them: they need sums of 32 bits."""
    if recipe.smooth_alpha is not None:
        smooth_untied_head(linear, calibration, recipe.smooth_alpha)
    return _from_state(linear, run_inc(linear, int8_config(recipe), calibration), calibration, recipe)


def int8_config(recipe: Recipe):
    """Return what INC is asked for: INT8 weights per channel and u8 inputs per tensor of every Linear, smoothed as the recipe says."""
    from neural_compressor.config import PostTrainingQuantConfig

    smooth = {"smooth_quant": True, "smooth_quant_args": {"alpha": recipe.smooth_alpha, "folding": True}}
    algorithm = "kl" if recipe.activation_range == "kl" else "minmax"
    return PostTrainingQuantConfig(
        approach="static",
        excluded_precisions=["bf16"],  # otherwise a CPU with bf16 arithmetic could get other weights than one without
        recipes=smooth if recipe.smooth_alpha is not None else {},
        op_type_dict={
            "Linear": {"activation": {"algorithm": [algorithm]}},
            # The token embedding shares the head's INT8 tensor in the exported graph; positions stay as they are.
            "Embedding": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}},
        },
    )


def carry_over(linear: GPT2LMHeadModel, inc_folder: Path | str, calibration: Dataset, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Read what INC saved, smooth the LayerNorms of the model in place as INC did, and make the weights safe for sums of 16 bits.

    Args:
        linear: from `linearize`, as it was given to INC.
        inc_folder: `save_directory` of `INCQuantizer.quantize`.
        calibration: the rows that INC saw.
        recipe: that INC was configured by.

    Returns, raises:
        As `calibrate`.
    """
    return _safe_for_every_cpu(linear, calibration, _from_state(linear, load_inc(inc_folder), calibration, recipe))


def _safe_for_every_cpu(linear: GPT2LMHeadModel, calibration: Dataset, found: dict[str, QuantizedLinear]) -> dict[str, QuantizedLinear]:
    inputs = [name for name, layer in found.items() if layer.input_scale is not None]
    seen = observe_inputs(linear, calibration, inputs)
    return found | {name: keep_sums_in_16_bits(found[name], linear.get_submodule(name).weight, seen[name]) for name in inputs}


def _from_state(linear: GPT2LMHeadModel, state: dict, calibration: Dataset, recipe: Recipe) -> dict[str, QuantizedLinear]:
    if recipe.smooth_alpha is not None:
        take_over_smoothing(linear, state)
    found = read_static(state)
    if recipe.activation_range == "percentile":
        found = clip_to_percentiles(linear, calibration, found)
    if not recipe.head_input:
        found["lm_head"] = dataclasses.replace(found["lm_head"], input_scale=None)
    return found


def read_static(state: dict) -> dict[str, QuantizedLinear]:
    """Read INC's state dict, which stores the scale and the zero point of an input beside each Linear's packed weight."""
    suffix = "._packed_params._packed_params"
    found = {}
    for key in [key for key in state if key.endswith(suffix)]:
        module = key.removesuffix(suffix)
        packed, _ = state.pop(key)
        found[module.removesuffix(".module")] = QuantizedLinear(
            packed.dequantize(),
            packed.q_per_channel_scales().float()[:, None],
            8,
            state[f"{module}_input_scale_0"].item(),
            int(state[f"{module}_input_zero_point_0"].item()),
        )
    if not found:
        raise RuntimeError("INC quantized no Linear; is this a linearized model?")
    return found


def round_weights(linear: GPT2LMHeadModel, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Let INC round the weights to nearest, with a symmetric scale for each group of inputs; the head gets INT8 per channel."""
    from neural_compressor.config import PostTrainingQuantConfig

    layers = {name: module.weight.detach() for name, module in linear.named_modules() if isinstance(module, nn.Linear)}
    bits = {name: 8 if name == "lm_head" else recipe.weight_bits for name in layers}
    groups = {name: _group_size(weight.shape[1], None if name == "lm_head" else recipe.group_size) for name, weight in layers.items()}
    choices = {name: {"bits": bits[name], "group_size": groups[name] or -1, "scheme": "sym", "algorithm": "RTN"} for name in layers}
    config = PostTrainingQuantConfig(approach="weight_only", op_name_dict={name: {"weight": choice} for name, choice in choices.items()})
    state = run_inc(linear, config, None)
    return {name: _read_rounded(name, weight, state[f"{name}.weight"], bits[name], groups[name]) for name, weight in layers.items()}


def _group_size(inputs: int, asked: int | None) -> int | None:
    """Return the largest group, up to the size asked for, that divides the inputs and that INC knows; for others INC silently takes 32."""
    return max((size for size in (16, 32, 64, 128) if size <= (asked or 0) and inputs % size == 0), default=None)


def _read_rounded(name: str, weight: Tensor, rounded: Tensor, bits: int, group: int | None) -> QuantizedLinear:
    """Find the scales of a weight that INC has rounded and multiplied out again: the largest value of a group lies on the last step.

    Raises:
        RuntimeError: the weight does not lie on such a grid, or it was not rounded at all.
    """
    grouped = rounded.reshape(len(rounded), -1, group or rounded.shape[1])
    largest = grouped.abs().amax(-1)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    steps = grouped / scale[..., None]
    if torch.equal(rounded, weight) or (steps - steps.round()).abs().max() > 1e-2:
        raise RuntimeError(f"INC did not round {name} to {bits} bits in groups of {group or rounded.shape[1]}")
    return QuantizedLinear(rounded, scale, bits)
