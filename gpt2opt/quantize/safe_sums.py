"""Weights that a CPU without VNNI or AMX can multiply without saturating: its INT8 products are added in 16 bits first."""

import dataclasses

import torch
from torch import Tensor

from gpt2opt.quantize.fake_quant import QuantizedLinear
from gpt2opt.quantize.input_ranges import InputRange


def keep_sums_in_16_bits(found: QuantizedLinear, weight: Tensor, seen: InputRange) -> QuantizedLinear:
    """Widen the steps of a weight as far as a CPU needs that adds two u8 × i8 products in 16 bits before anything else.

    Such a CPU, without VNNI or AMX, saturates where a₀w₀ + a₁w₁ leaves [−32768, 32767], for neighbouring inputs 2j and 2j + 1.
    `gpt2opt recipes` measures what this costs on one that does not saturate.
    Halving all weights rules that out and costs a bit of every weight. Few inputs come near 255, though, so a channel's step
    only has to grow until the largest inputs that calibration saw don't saturate in it; most channels keep their 8 bits.

    Args:
        found: the layer in 8 bits.
        weight: (O, I) the float weight it was made from, so that it is rounded once and not twice.
        seen: its inputs.
    """
    largest = (torch.round(seen.highest / found.input_scale) + found.input_zero_point).clamp(0, 255)
    products = weight.detach() * largest
    if products.shape[1] % 2:
        products = torch.nn.functional.pad(products, (0, 1))
    pairs = torch.maximum(_pair_sums(products.clamp(min=0)), _pair_sums(-products.clamp(max=0)))
    limit = 32767 - 255  # rounding adds half a step to each of the two weights
    scale = torch.maximum(found.weight_scale, pairs.amax(1, keepdim=True) / limit)
    steps = torch.round(weight.detach() / scale).clamp(-128, 127)
    return dataclasses.replace(found, weight=steps * scale, weight_scale=scale)


def _pair_sums(products: Tensor) -> Tensor:
    return products.unflatten(1, (-1, 2)).sum(-1)
