"""What a GPT-2 in torch has to be: its heads, its numbers, its ids; and what transformers forgets of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from gpt2opt.storage import hash_weights, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CROSS_ATTENTION = "cross attention (add_cross_attention), as the decoder of an encoder-decoder has it; expected one that reads text alone"


def fit_width_to_heads(model) -> None:
    """Set the width of all heads together in each attention: older transformers forget it in pruning, and fused attention fails."""
    for block in model.transformer.h:
        block.attn.embed_dim = block.attn.split_size


def fold_attention_scale(model) -> None:
    """Fold a config's own scales of attention scores into the query weights, in place, so that scores are divided by √head_dim alone.

    This is needed because the fused attention (SDPA) of transformers and of the exporter ignores `scale_attn_weights` and
    `scale_attn_by_inverse_layer_idx`. Logits stay the same up to the rounding of the weights' dtype. `reorder_and_upcast_attn` sets the
    order in which eager attention multiplies in FP16; it is switched off without loss, because fused attention sums in FP32.
    """
    import torch

    attentions = [block.attn for block in model.transformer.h]
    for layer, attention in enumerate(attentions):
        scale = 1.0 if attention.scale_attn_weights else attention.head_dim**0.5
        scale /= layer + 1 if attention.scale_attn_by_inverse_layer_idx else 1
        if scale != 1:
            with torch.no_grad():
                attention.c_attn.weight[:, : attention.split_size] *= scale
                attention.c_attn.bias[: attention.split_size] *= scale
    for holder in (model.config, *attentions):
        holder.scale_attn_weights, holder.scale_attn_by_inverse_layer_idx, holder.reorder_and_upcast_attn = True, False, False


def heads_per_layer(model) -> int:
    """Return the number of heads that each layer kept; raise ValueError if it differs, since the exporter gives all KV caches one shape."""
    kept = {block.attn.num_heads for block in model.transformer.h}
    if len(kept) != 1:
        raise ValueError(f"layers kept {sorted(kept)} heads; the exporter needs the same number in each: prune one fraction everywhere")
    return kept.pop()


def check_finite(model) -> None:
    """Raise ValueError, with the names of the tensors, if any weight of a torch model is NaN or infinite."""
    import torch

    spoiled = [name for name, weight in model.named_parameters() if not torch.stack(weight.aminmax()).isfinite().all()]
    if spoiled:
        raise ValueError(
            f"{len(spoiled)} tensors of the model hold NaN or infinity ({', '.join(spoiled[:3])}); take weights from before they diverged"
            + ("; what is above 65504 is infinite in FP16" if model.dtype == torch.float16 else "")
        )


def check_ids(tokenizer, vocab_size: int | None) -> None:
    """Raise ValueError if a model with `vocab_size` embeddings has none for a token of the tokenizer, added tokens included."""
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if vocab_size is not None and highest >= vocab_size:
        raise ValueError(
            f"the tokenizer has {highest + 1} tokens and the model {vocab_size} embeddings, none for {token!r}: use the model's own "
            f"tokenizer or, if tokens were added, call model.resize_token_embeddings({highest + 1}), train them and save both"
        )


def source_weights(model: "PreTrainedModel") -> str | None:
    """Return the hash of the weights in the folder that a model, or the one it was copied from, was loaded from; None without one."""
    name = model.config.name_or_path  # a folder; a hub id, where transformers downloaded the model; or nothing
    return hash_weights(Path(name)) if name and Path(name).is_dir() and weight_files(Path(name)) else None
