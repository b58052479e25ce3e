"""A GPT-2 with fake quantization: it computes in float with the integers and scales that INC found, and OpenVINO reads it as INT8.

INC's own INT8 modules can't be traced, and INC writes no IR. This float model rounds weights and inputs alike, and can be exported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class QuantizedLinear:
    """The quantized form of one Linear layer with O outputs and I inputs.

    integers: (O, I) int8, of 4 bits too. weight_scale: (O, G) float32, symmetric, for each of G groups of inputs; G = 1 is per channel.
    input_scale, input_zero_point: the u8 grid of the whole input; an input_scale of None leaves it float.
    """

    integers: Tensor
    weight_scale: Tensor
    bits: int = 8
    input_scale: float | None = None
    input_zero_point: int = 0

    @property
    def weight(self) -> Tensor:
        """Return the weight (O, I) float32, rounded to its grid. It is computed each time: a whole model of these takes 4 times as much."""
        integers, scale = self.integers, self.weight_scale
        if has_groups := scale.shape[1] > 1:
            integers, scale = integers.unflatten(1, (scale.shape[1], -1)), scale[..., None]
        # In place takes half the memory; OpenVINO would find no integers behind it.
        weight = integers * scale if torch.jit.is_tracing() else integers.float().mul_(scale)
        return weight.flatten(1) if has_groups else weight


class FakeQuantLinear(nn.Module):
    """A Linear with an integer weight and, while `quantize_input` is set, an input rounded to u8; it computes in float.

    The exported graph computes the weight in the same way, so OpenVINO finds the integers there.
    """

    integers: Tensor

    def __init__(self, quantized: QuantizedLinear, bias: Tensor | None):
        super().__init__()
        self.register_buffer("integers", quantized.integers)
        self.weight_scale = nn.Parameter(quantized.weight_scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.bits, self.input_scale, self.input_zero_point = quantized.bits, quantized.input_scale, quantized.input_zero_point
        self.quantize_input = quantized.input_scale is not None

    @property
    def weight(self) -> Tensor:
        return QuantizedLinear(self.integers, self.weight_scale).weight

    def forward(self, x: Tensor) -> Tensor:
        if self.quantize_input and self.input_scale is not None:
            x = torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero_point, quant_min=0, quant_max=255)
        return F.linear(x, self.weight, self.bias)


def quantized_linears(model: GPT2LMHeadModel) -> dict[str, FakeQuantLinear]:
    """Return the quantized layers of a fake-quantized model by name; the head once, though the embedding refers to it too."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, FakeQuantLinear) and ".wte." not in name}


class TiedEmbedding(nn.Module):
    """Token embedding that looks up in the head's INT8 weight, so that one tensor serves both."""

    def __init__(self, head: FakeQuantLinear):
        super().__init__()
        self.head = head

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.head.weight)


def fake_quantize(model: GPT2LMHeadModel, quantized: Mapping[str, QuantizedLinear]) -> GPT2LMHeadModel:
    """Replace these Linears of a model from `prepare_for_export`, in place; tie the embedding to the head if it was tied before."""
    tied = model.lm_head.weight is model.transformer.wte.weight
    for name, found in quantized.items():
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, FakeQuantLinear(found, linear.bias))
    if tied and isinstance(model.lm_head, FakeQuantLinear):
        model.set_submodule("transformer.wte", TiedEmbedding(model.lm_head))
    return model
