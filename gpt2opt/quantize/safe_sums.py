"""Weights that a CPU without VNNI or AMX can multiply without saturating: its INT8 products are added in 16 bits first."""

import dataclasses

import torch
from torch import Tensor

from gpt2opt.quantize.fake_quant import QuantizedLinear
from gpt2opt.quantize.input_ranges import InputRange


def keep_sums_in_16_bits(found: QuantizedLinear, weight: Tensor, seen: InputRange) -> QuantizedLinear:
    """Widen the steps of a weight until the CPU's 16-bit sums don't saturate.

    A CPU without VNNI or AMX first adds two u8 × i8 products in 16 bits. It saturates if a₀w₀ + a₁w₁ leaves [−32768, 32767], for the
    neighbouring inputs 2j and 2j + 1. Halving all weights would rule this out and cost one bit of every weight. Few inputs come near 255,
    though: the step of an output channel only has to grow until the largest inputs that calibration saw don't saturate in it, and most
    channels keep their 8 bits. `experiments/recipes.py` measures what this costs on a CPU that does not saturate.

    Args:
        found: the layer with an 8-bit weight and a quantized input.
        weight: (O, I) the float weight that it was made from, so that the result is rounded once and not twice.
        seen: the range of each input channel.
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
