"""Weights in INT8 or INT4 with float inputs: INC rounds each weight to nearest, with a scale per channel or per group of inputs."""

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gpt2opt.quantize.fake_quant import QuantizedLinear
from gpt2opt.quantize.inc import run_inc
from gpt2opt.quantize.recipes import Recipe


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
