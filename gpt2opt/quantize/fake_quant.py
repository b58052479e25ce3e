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

    weight: (O, I) float32, already rounded to its integer grid. weight_scale: (O, G) float32, symmetric, for each of G groups of inputs;
    G = 1 is per channel. input_scale, input_zero_point: the u8 grid of the whole input; an input_scale of None leaves it float.
    """

    weight: Tensor
    weight_scale: Tensor
    bits: int = 8
    input_scale: float | None = None
    input_zero_point: int = 0


class FakeQuantLinear(nn.Module):
    """A Linear with an integer weight and, while `quantize_input` is set, an input rounded to u8; it computes in float."""

    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, quantized: QuantizedLinear, bias: Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(quantized.weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.register_buffer("weight_scale", quantized.weight_scale.flatten())
        self.register_buffer("weight_zero_point", torch.zeros(self.weight_scale.numel(), dtype=torch.int32))
        # Plain numbers: if tracing read them from the weight, they would become part of the graph.
        (outputs, inputs), groups = quantized.weight.shape, quantized.weight_scale.shape[1]
        self.shape, self.grouped_shape = (outputs, inputs), (outputs * groups, inputs // groups)
        self.highest = 2 ** (quantized.bits - 1) - 1
        self.input_scale, self.input_zero_point = quantized.input_scale, quantized.input_zero_point
        self.quantize_input = quantized.input_scale is not None

    def quantized_weight(self) -> Tensor:
        """Round the weight to its grid. It is on the grid already, so nothing changes; only the exported graph has to contain the grid."""
        grouped = torch.fake_quantize_per_channel_affine(
            self.weight.view(self.grouped_shape), self.weight_scale, self.weight_zero_point,
            axis=0, quant_min=-self.highest - 1, quant_max=self.highest,
        )  # fmt: skip
        return grouped.view(self.shape)

    def used_weight(self) -> Tensor:
        return self.quantized_weight() if torch.jit.is_tracing() else self.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.quantize_input and self.input_scale is not None:
            x = torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero_point, quant_min=0, quant_max=255)
        return F.linear(x, self.used_weight(), self.bias)


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
        return F.embedding(input_ids, self.head.used_weight())


def fake_quantize(model: GPT2LMHeadModel, quantized: Mapping[str, QuantizedLinear]) -> GPT2LMHeadModel:
    """Replace these Linears of a model from `prepare_for_export`, in place; tie the embedding to the head if it was tied before."""
    tied = model.lm_head.weight is model.transformer.wte.weight
    for name, found in quantized.items():
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, FakeQuantLinear(found, linear.bias))
    if tied and isinstance(model.lm_head, FakeQuantLinear):
        model.set_submodule("transformer.wte", TiedEmbedding(model.lm_head))
    return model
