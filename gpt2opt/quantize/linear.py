"""From any GPT-2 to the form that INC and OpenVINO's exporter take: an FP32 copy with `nn.Linear` layers."""

import copy
from typing import Any

from torch import nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from gpt2opt.sources.gpt2 import CROSS_ATTENTION, fold_attention_scale


def prepare_for_export(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Return an FP32 copy that INC can quantize and OpenVINO can read; it gives the same logits.

    Its projections are `nn.Linear` layers, the only kind that INC quantizes, instead of `Conv1D`. Its attention is PyTorch's fused one
    (SDPA), which becomes one operation in OpenVINO. What its blocks add to the residual stream has a mean of 0 over the channels. It
    shares the embeddings of an FP32 model; replace them, don't write into them.

    Raises:
        ValueError: the model has cross attention, or eager attention that this version of transformers can't change.
    """
    if model.config.add_cross_attention:
        raise ValueError(f"the model has {CROSS_ATTENTION}")
    transformer: Any = model.transformer
    shared = {id(weight): nn.Parameter(weight.detach().float().cpu()) for weight in (transformer.wte.weight, transformer.wpe.weight)}
    prepared = copy.deepcopy(model, shared).float().cpu().eval()
    fold_attention_scale(prepared)
    _use_fused_attention(prepared)
    _replace_conv1d(prepared)
    _center_projections(prepared)
    return prepared


def _use_fused_attention(model: Any) -> None:
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("sdpa")
    elif model.config._attn_implementation != "sdpa":
        raise ValueError(
            "the model has eager attention, which this version of transformers can't change: load it with attn_implementation='sdpa'"
        )


def _replace_conv1d(model: nn.Module) -> None:
    """Replace every `Conv1D`, whose weight is (I, O), by the equal `nn.Linear`, whose weight is (O, I)."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                inputs, outputs = child.weight.shape
                linear = nn.Linear(inputs, outputs, device="meta")
                linear.weight = nn.Parameter(child.weight.detach().T.contiguous())
                linear.bias = nn.Parameter(child.bias.detach())
                setattr(module, name, linear)


def _center_projections(model: Any) -> None:
    """Subtract the mean over the outputs from the projections into the residual stream, as every LayerNorm does anyway.

    So the logits stay the same (SliceGPT, Ashkboos et al. 2024, section 3.2).
    """
    for block in model.transformer.h:
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            projection.weight = nn.Parameter(projection.weight - projection.weight.mean(0))
            projection.bias = nn.Parameter(projection.bias - projection.bias.mean())
