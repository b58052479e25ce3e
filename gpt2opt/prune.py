"""Take the attention heads that matter least out of every layer of a GPT-2."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from gpt2opt.decoding.text import token_rows
from gpt2opt.settings import Settings, check_fraction, check_whole
from gpt2opt.sources.gpt2 import fit_width_to_heads, heads_per_layer

IMPORTANCE_BATCHES, IMPORTANCE_BATCH_SIZE = 8, 4


def head_importance(model: GPT2LMHeadModel, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """Estimate how much the loss changes when a head is removed, to first order (Michel et al. 2019): (layers, heads), in nats per token.

    A gate of 1 on each head's output would carry the gradient sum(output × d loss / d output); its size, averaged over the
    sequences, is the importance. The model is not changed, and has to be in FP32 on a CPU.

    Args:
        batches: token ids, each (B, T) int64. Padding is not masked: pass whole rows.

    Raises:
        ValueError: there are no batches, or the layers have different numbers of heads.
    """
    blocks: Any = model.transformer.h
    outputs: list[Any] = []  # of the heads, layer by layer

    def keep(_module, inputs):
        inputs[0].retain_grad()
        outputs.append(inputs[0])

    total, sequences = np.zeros((len(blocks), heads_per_layer(model))), 0
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.attn.c_proj.register_forward_pre_hook(keep))
        for ids in batches:
            ids = ids.to(model.device)
            model(ids, labels=ids, use_cache=False).loss.backward()
            for layer, output in enumerate(outputs):
                per_head = (output.detach() * output.grad).unflatten(-1, (total.shape[1], -1))
                total[layer] += per_head.double().sum((1, 3)).abs().sum(0).cpu().numpy() * len(ids)
            outputs.clear()
            sequences += len(ids)
            model.zero_grad(set_to_none=True)
    if not sequences:
        raise ValueError("head_importance got no batches; pass at least one (B, T) tensor of token ids")
    return total / sequences


def prune_attention_heads(
    model: GPT2LMHeadModel, prune_fraction: float = Settings.prune_fraction, importance: np.ndarray | None = None
) -> GPT2LMHeadModel:
    """Remove `floor(heads × prune_fraction)` heads from every layer, in place, and return the model; dtype and device stay.

    The achieved fraction is a multiple of 1 / heads: 20% of 12 heads is 2 heads, 16.7%. The heads with the least importance (layers,
    heads) leave, see `head_importance`; without it the first ones leave.

    Raises:
        ValueError: not a GPT-2, layers with different numbers of heads, a fraction outside [0, 1), or importance of another shape
            or with values that are NaN or infinite.
    """
    if getattr(model.config, "model_type", None) != "gpt2":
        raise ValueError(f"got a {getattr(model.config, 'model_type', type(model).__name__)!r} model, expected a GPT-2")
    blocks = model.transformer.h
    heads = heads_per_layer(model)
    count = heads_to_prune(heads, prune_fraction)
    importance = np.tile(np.arange(heads), (len(blocks), 1)) if importance is None else importance
    if np.shape(importance) != (len(blocks), heads):
        raise ValueError(f"importance has shape {np.shape(importance)}, expected {(len(blocks), heads)}: (layers, heads) of this model")
    if not np.isfinite(importance).all():
        strange = np.count_nonzero(~np.isfinite(importance))
        raise ValueError(f"importance holds {strange} values that are NaN or infinite: heads can't be ordered by it; compute it in FP32")
    if count:
        dtype, leaving = model.dtype, np.argsort(importance, kind="stable")[:, :count]
        model.prune_heads({layer: _original_numbers(blocks[layer], least) for layer, least in enumerate(leaving)})
        model.to(dtype)  # type: ignore[arg-type] # the cut layers come back in FP32
        fit_width_to_heads(model)
    return model


def _original_numbers(block, heads: np.ndarray) -> list[int]:
    """Translate positions among the heads that are left into the numbers that they had at first, which transformers asks for."""
    total = block.attn.num_heads + len(block.attn.pruned_heads)
    left = [head for head in range(total) if head not in block.attn.pruned_heads]
    return [left[head] for head in heads]


def heads_to_prune(heads: int, prune_fraction: float) -> int:
    """Return floor(heads × fraction), checked to leave at least one head."""
    check_fraction(prune_fraction)
    # 0.7 × 10 is 6.999…: without the tolerance floor() would take one head too few.
    return min(heads - 1, int(heads * prune_fraction + 1e-9))


def pruned_heads(model: GPT2LMHeadModel) -> dict[int, list[int]]:
    """Return layer -> the heads that were removed from it, by the numbers that they had at first."""
    return {layer: sorted(heads) for layer, heads in model.config.pruned_heads.items()}


def importance_batches(texts: Sequence[str], tokenizer, length: int) -> tuple[torch.Tensor, ...]:
    """Return the first whole rows of the texts in batches (B, length)."""
    check_whole("length", length, 2)
    whole = [row for row in token_rows(texts, tokenizer, length) if len(row) == length]
    if not whole:
        raise ValueError(f"none of the {len(texts)} texts has {length} tokens; importance needs whole rows, give longer texts")
    return torch.tensor(whole[: IMPORTANCE_BATCHES * IMPORTANCE_BATCH_SIZE]).split(IMPORTANCE_BATCH_SIZE)
