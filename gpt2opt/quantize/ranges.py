"""Ranges of inputs: those that calibration sees, and what moves into the weights for their sake.

SmoothQuant scales the weights behind a LayerNorm, so that its outputs span less. Some weights get wider steps, so that a CPU without VNNI
or AMX can multiply them without saturating: its INT8 products are added in 16 bits first.
"""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2opt.quantize.fake_quant import QuantizedLinear


@dataclass(frozen=True)
class InputRange:
    """The lowest and the highest value (I,) that calibration saw of each input of a Linear."""

    lowest: Tensor
    highest: Tensor


def observe_inputs(linear: PreTrainedModel, calibration: Dataset, names: Iterable[str]) -> dict[str, InputRange]:
    """Run the calibration rows; return the lowest and the highest value of each input channel of these Linears."""
    ends = _of_each_row(linear, calibration, names, lambda channels: torch.stack(channels.aminmax(dim=0)))
    return {name: InputRange(rows[:, 0].amin(0), rows[:, 1].amax(0)) for name, rows in ends.items()}


def _of_each_row(
    linear: PreTrainedModel, calibration: Dataset, names: Iterable[str], statistic: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return for each Linear a statistic of its input (tokens, I), stacked over the calibration rows."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(rows: list[Tensor], _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(statistic(inputs[0].flatten(0, -2)))

    no_cache = {"use_cache": False} if isinstance(linear, GPT2LMHeadModel) else {}  # classifiers have none to leave out
    with ExitStack() as hooks, torch.inference_mode():
        for name, rows in found.items():
            hooks.enter_context(linear.get_submodule(name).register_forward_pre_hook(partial(note, rows)))
        for row in calibration["input_ids"]:
            linear(torch.tensor([row]), **no_cache)
    return {name: torch.stack(rows) for name, rows in found.items()}


def clip_to_percentiles(
    linear: PreTrainedModel, calibration: Dataset, layers: dict[str, QuantizedLinear], share: float = 1e-4
) -> dict[str, QuantizedLinear]:
    """Narrow each u8 range so that it leaves out, and clips, this share of a row's values at either end, averaged over the rows."""

    def ends(channels: Tensor) -> Tensor:
        values = channels.flatten()
        count = max(1, round(len(values) * share))
        return torch.stack([values.kthvalue(count).values, values.kthvalue(len(values) + 1 - count).values])

    clipped = {}
    for name, rows in _of_each_row(linear, calibration, layers, ends).items():
        low, high = rows.mean(0).tolist()
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255
        clipped[name] = dataclasses.replace(layers[name], input_scale=scale, input_zero_point=round(-low / scale))
    return clipped


def take_over_smoothing(linear: Any, state: dict[str, Any]) -> None:
    """Replace the LayerNorms of a model, in place, by the smoothed ones in INC's state; scale the weights behind them the other way."""
    smoothed = 0
    for block, layer in enumerate(linear.transformer.h):
        for norm, projection in (("ln_1", layer.attn.c_attn), ("ln_2", layer.mlp.c_fc)):
            module = getattr(layer, norm)
            weight, bias = (state[f"transformer.h.{block}.{norm}.{name}"].float() for name in ("weight", "bias"))
            # If the gain is zero, the bias gives the scale; if both are zero, the input is zero and no scale matters.
            by_gain = weight.abs() >= bias.abs()
            before, after = torch.where(by_gain, module.weight, module.bias), torch.where(by_gain, weight, bias)
            scale = torch.where(after != 0, before / after, 1.0)
            smoothed += not torch.allclose(scale, torch.ones_like(scale))
            module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
            projection.weight = nn.Parameter(projection.weight * scale)
    if not smoothed:
        raise RuntimeError("INC skipped SmoothQuant: none of the LayerNorms changed; is peft installed?")  # INC itself raises nothing


def smooth_untied_head(linear: Any, calibration: Dataset, alpha: float | None) -> None:
    """Smooth the last LayerNorm and the head after it, in place, unless the embedding shares the head's weight. INC leaves them out.

    sⱼ = max|Xⱼ|^α / max|Wⱼ|^(1 − α), SmoothQuant's own formula (Xiao et al. 2022, equation 4). With an alpha of None nothing is smoothed.
    """
    if alpha is None or linear.lm_head.weight is linear.transformer.wte.weight:
        return
    head, norm = linear.lm_head, linear.transformer.ln_f
    seen = observe_inputs(linear, calibration, ["lm_head"])["lm_head"]
    largest_input = torch.maximum(seen.highest.abs(), seen.lowest.abs()).clamp(min=1e-5)
    largest_weight = head.weight.detach().abs().amax(0).clamp(min=1e-5)
    scale = largest_input**alpha / largest_weight ** (1 - alpha)
    norm.weight, norm.bias = nn.Parameter(norm.weight / scale), nn.Parameter(norm.bias / scale)
    head.weight = nn.Parameter(head.weight * scale)


def keep_sums_in_16_bits(linear: Any, calibration: Dataset, layers: dict[str, QuantizedLinear]) -> dict[str, QuantizedLinear]:
    """Widen the steps of the weights behind quantized inputs until the CPU's 16-bit sums don't saturate; return all layers.

    A CPU without VNNI or AMX first adds two u8 × i8 products in 16 bits. It saturates if a₀w₀ + a₁w₁ leaves [−32768, 32767], for the
    neighbouring inputs 2j and 2j + 1. Halving all weights would rule this out and cost one bit of every weight. Few inputs come near 255,
    though: the step of an output channel only has to grow until the largest inputs that calibration saw don't saturate in it, and most
    channels keep their 8 bits. `experiments/recipes.py` measures what this costs on a CPU that does not saturate.
    """
    inputs = [name for name, layer in layers.items() if layer.input_scale is not None]
    seen = observe_inputs(linear, calibration, inputs)
    return layers | {name: widen_steps(layers[name], linear.get_submodule(name).weight, seen[name]) for name in inputs}


def widen_steps(found: QuantizedLinear, weight: Tensor, seen: InputRange) -> QuantizedLinear:
    """Round the float weight (O, I) of one layer again, by steps with which the inputs that were seen don't saturate; see above."""
    assert found.input_scale is not None
    largest = (torch.round(seen.highest / found.input_scale) + found.input_zero_point).clamp(0, 255)
    products = nn.functional.pad(weight.detach() * largest, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    pairs = torch.maximum(products.clamp(min=0).sum(-1), -products.clamp(max=0).sum(-1))
    limit = 32767 - 255  # rounding adds half a step to each of the two weights
    scale = torch.maximum(found.weight_scale, pairs.amax(1, keepdim=True) / limit)
    steps = torch.round(weight.detach() / scale).clamp(-128, 127)
    return dataclasses.replace(found, weight=steps * scale, weight_scale=scale)
