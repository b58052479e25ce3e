"""What each way of quantizing costs, on a model as it comes and on one made hard to quantize: `gpt2opt recipes`."""

import torch
from torch import nn
from transformers import GPT2LMHeadModel


@torch.no_grad()
def harden(linear: GPT2LMHeadModel, k: float = 64, share: float = 0.01, seed: int = 0) -> GPT2LMHeadModel:
    """Multiply some channels of every LayerNorm by k and divide the weights that read them: the same function, hard to quantize.

    Large GPT-2s have such channels by themselves; SmoothQuant (Xiao et al. 2022) was made for them.

    Args:
        linear: a linearized GPT-2; changed in place. Its head is no longer tied to its embedding.
        k: the factor.
        share: of the channels of a LayerNorm, at least one.
        seed: which.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = [(getattr(b, norm), layer) for b in linear.transformer.h for norm, layer in (("ln_1", b.attn.c_attn), ("ln_2", b.mlp.c_fc))]
    for norm, projection in [*pairs, (linear.transformer.ln_f, linear.lm_head)]:
        width = len(norm.weight)
        channels = torch.randperm(width, generator=generator)[: max(1, round(share * width))]
        factor = torch.ones(width)
        factor[channels] = k
        norm.weight, norm.bias = nn.Parameter(norm.weight * factor), nn.Parameter(norm.bias * factor)
        projection.weight = nn.Parameter(projection.weight / factor)
    return linear
