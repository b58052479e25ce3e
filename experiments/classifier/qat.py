"""Quantization-aware training (Jacob et al. 2018): one epoch in which every Linear computes with the rounding that INT8 will do.

The model learns to give FP32's own answers, not the labels: an epoch on labels would also teach it what FP32 was never shown, and the
difference between the two would no longer be that of the precision.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from gpt2opt.quantize.fake_quant import QuantizedLinear

BATCH_ROWS, LEARNING_RATE = 32, 2e-5


class RoundedLinear(nn.Module):
    """A Linear whose weight and input are rounded as in INT8, while gradients pass straight through the rounding (Bengio et al. 2013)."""

    def __init__(self, linear: nn.Linear, layer: QuantizedLinear):
        super().__init__()
        self.weight, self.bias, self.layer = linear.weight, linear.bias, layer

    def forward(self, x: Tensor) -> Tensor:
        scale, layer = self.layer.weight_scale.flatten(), self.layer
        weight = torch.fake_quantize_per_channel_affine(self.weight, scale, torch.zeros(len(scale), dtype=torch.int32), 0, -128, 127)
        if layer.input_scale is not None:
            x = torch.fake_quantize_per_tensor_affine(x, layer.input_scale, layer.input_zero_point, 0, 255)
        return F.linear(x, weight, self.bias)


def train_rounded(model: Any, layers: Mapping[str, QuantizedLinear], rows: Sequence[Sequence[int]]) -> Any:
    """Return a copy of a classifier whose Linear layers were trained for one epoch, each as a `RoundedLinear`.

    Args:
        layers: by the name of the Linear: the steps of its weight and of its input, which stay as they are.
        rows: token ids of the texts, of any lengths.
    """
    student = copy.deepcopy(model).requires_grad_(False)
    for name, layer in layers.items():
        student.set_submodule(name, RoundedLinear(student.get_submodule(name).requires_grad_(True), layer))
    optimizer = torch.optim.AdamW([weight for weight in student.parameters() if weight.requires_grad], LEARNING_RATE)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    for numbers in tqdm(order.split(BATCH_ROWS), "quantization-aware training", file=sys.stderr):
        batch = padded([rows[number] for number in numbers])
        with torch.no_grad():
            expected = model(**batch).logits.log_softmax(-1)
        F.kl_div(student(**batch).logits.log_softmax(-1), expected, log_target=True, reduction="batchmean").backward()
        optimizer.step()
        optimizer.zero_grad()
    return student.requires_grad_(False)


def padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return rows of token ids as one batch (B, T); what fills the short ones up is masked."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}
