"""SmoothQuant on the model itself: ranges of activations move into the weights, and the model's function stays the same."""

import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2LMHeadModel

from gpt2opt.quantize.input_ranges import observe_inputs


def take_over_smoothing(linear: GPT2LMHeadModel, state: dict) -> None:
    """Replace the LayerNorms of a model, in place, by the smoothed ones in INC's state; scale the weights behind them the other way.

    Raises:
        RuntimeError: no LayerNorm differs; INC skips SmoothQuant without an error.
    """
    smoothed = 0
    for block, layer in enumerate(linear.transformer.h):
        for norm, projection in (("ln_1", layer.attn.c_attn), ("ln_2", layer.mlp.c_fc)):
            module = getattr(layer, norm)
            weight, bias = (state[f"transformer.h.{block}.{norm}.{name}"].float() for name in ("weight", "bias"))
            old, new = torch.stack([module.weight, module.bias]), torch.stack([weight, bias])
            # If the gain is zero, the bias tells the scale; if both are zero, the input is zero and no scale matters.
            row = (new[0].abs() < new[1].abs()).long()[None]
            before, after = old.gather(0, row)[0], new.gather(0, row)[0]
            scale = torch.where(after != 0, before / after, 1.0)
            smoothed += not torch.allclose(scale, torch.ones_like(scale))
            module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
            projection.weight = nn.Parameter(projection.weight * scale)
    if not smoothed:
        raise RuntimeError("INC skipped SmoothQuant: none of the LayerNorms changed; is peft installed?")


def smooth_untied_head(linear: GPT2LMHeadModel, calibration: Dataset, alpha: float) -> None:
    """Smooth the last LayerNorm and the head behind it, in place, unless the embedding shares the head's weight. INC leaves them out.

    sⱼ = max|Xⱼ|^α / max|Wⱼ|^(1 − α), SmoothQuant's own formula (Xiao et al. 2022, equation 4).
    """
    head, norm = linear.lm_head, linear.transformer.ln_f
    if head.weight is linear.transformer.wte.weight:
        return
    seen = observe_inputs(linear, calibration, ["lm_head"])["lm_head"]
    largest_input = torch.maximum(seen.highest.abs(), seen.lowest.abs()).clamp(min=1e-5)
    largest_weight = head.weight.detach().abs().amax(0).clamp(min=1e-5)
    scale = largest_input**alpha / largest_weight ** (1 - alpha)
    norm.weight, norm.bias = nn.Parameter(norm.weight / scale), nn.Parameter(norm.bias / scale)
    head.weight = nn.Parameter(head.weight * scale)
