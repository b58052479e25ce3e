"""Which values go into each Linear on the calibration text, and the quantization ranges that are taken from them."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2opt.quantize.fake_quant import QuantizedLinear


@dataclass(frozen=True)
class InputRange:
    """The lowest and the highest value (I,) that calibration saw of each input of a Linear."""

    lowest: Tensor
    highest: Tensor


def observe_inputs(linear: PreTrainedModel, calibration: Dataset, names: Iterable[str]) -> dict[str, InputRange]:
    """Run the calibration rows; return the lowest and the highest value of each input channel of these Linears."""
    seen: dict[str, InputRange] = {}

    def watch(name: str, channels: Tensor) -> None:
        found = InputRange(channels.amin(0), channels.amax(0))
        before = seen.get(name, found)
        seen[name] = InputRange(torch.minimum(before.lowest, found.lowest), torch.maximum(before.highest, found.highest))

    _watch_inputs(linear, calibration, names, watch)
    return seen


def _watch_inputs(linear: PreTrainedModel, calibration: Dataset, names: Iterable[str], watch: Callable[[str, Tensor], None]) -> None:
    """Call `watch` with the name and the input (tokens, I) of each Linear, for every calibration row."""
    hooks = [
        linear.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0].flatten(0, -2)))
        for name in names
    ]
    no_cache = {"use_cache": False} if isinstance(linear, GPT2LMHeadModel) else {}  # classifiers have none to leave out
    try:
        with torch.inference_mode():
            for row in calibration["input_ids"]:
                linear(torch.tensor([row]), **no_cache)
    finally:
        for hook in hooks:
            hook.remove()


def clip_to_percentiles(
    linear: GPT2LMHeadModel, calibration: Dataset, found: dict[str, QuantizedLinear], share: float = 1e-4
) -> dict[str, QuantizedLinear]:
    """Narrow each u8 range so that it leaves out this share of a row's values at either end, averaged over the rows.

    Values outside the range are clipped, values inside get finer steps.
    """
    ends: dict[str, list[Tensor]] = {name: [] for name in found}

    def watch(name: str, channels: Tensor) -> None:
        values = channels.flatten()
        count = max(1, round(len(values) * share))
        ends[name].append(torch.stack([values.kthvalue(count).values, values.kthvalue(len(values) + 1 - count).values]))

    _watch_inputs(linear, calibration, found, watch)
    clipped = {}
    for name, layer in found.items():
        low, high = torch.stack(ends[name]).mean(0).tolist()
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255
        clipped[name] = dataclasses.replace(layer, input_scale=scale, input_zero_point=round(-low / scale))
    return clipped
