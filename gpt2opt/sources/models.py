"""Find and load a GPT-2: from an argument, an environment variable, the local cache, the hub, or the bundled model, in this order."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gpt2opt.environment import at_least
from gpt2opt.errors import raise_cause
from gpt2opt.sources.hub import cached_snapshot, download_snapshot

VARIABLE = "GPT2OPT_MODEL"
DEFAULT = "gpt2"
BUNDLED = Path(__file__).parent / "bundled"
PATTERNS = ["config.json", "generation_config.json", "model.safetensors", "tokenizer*.json", "vocab.json", "merges.txt"]


@dataclass(frozen=True)
class FoundModel:
    """A model on this disk, and how it came to be chosen."""

    name: str
    origin: str
    path: Path
    stand_in: bool = False

    def __str__(self) -> str:
        return f"{self.name} (from the {self.origin})"


STAND_IN = FoundModel("bundled", "package, as a stand-in for gpt2, which neither the local cache nor the hub gave", BUNDLED, True)


def find_model(model_id: str = "auto") -> FoundModel:
    """Find a GPT-2 on this disk or on the hub.

    Args:
        model_id: a directory, a hub id (`gpt2`, `gpt2-medium`, …), `bundled`, or `auto`: the environment variable GPT2OPT_MODEL,
            else `gpt2`, else the bundled model, which then is named as a stand-in.

    Raises:
        ValueError: the model that was asked for can't be found, or is not a GPT-2.
    """
    asked, origin = (model_id, "argument") if model_id != "auto" else (os.environ.get(VARIABLE), f"variable {VARIABLE}")
    if not model_id:
        raise ValueError("the model has no name: an empty one came; expected a directory, a hub id such as gpt2, bundled or auto")
    if asked == "bundled":
        return FoundModel("bundled", origin, BUNDLED)
    if asked and Path(asked).is_dir():
        return _checked(FoundModel(Path(asked).resolve().name, origin, Path(asked)))
    if asked and ((os.sep in asked and asked.count("/") != 1) or asked.startswith((".", "~"))):
        raise ValueError(f"no directory {asked!r}; name one that holds config.json and model.safetensors, or a hub id such as gpt2")
    repo_id = asked or DEFAULT
    for origin, fetch in (("local cache", cached_snapshot), ("hub", download_snapshot)):
        path = fetch(repo_id, PATTERNS)
        if path and is_complete(path):
            return _checked(FoundModel(repo_id, origin, path))
    if asked:
        raise ValueError(
            f"model {asked!r} is no directory, is not in the local cache and the hub did not give it; "
            "check the name and the connection, or use model='bundled'"
        )
    return STAND_IN


def is_complete(path: Path) -> bool:
    """Return whether the folder of a repository has weights and a tokenizer; some are missing after a download that was killed."""
    return (path / "model.safetensors").exists() and ((path / "tokenizer.json").exists() or (path / "merges.txt").exists())


def find_model_or_stand_in(model_id: str) -> FoundModel:
    """Find a GPT-2 as `find_model` does; the bundled model stands in for `gpt2` by name too, where that can't be had.

    Raises:
        ValueError: another model that was asked for can't be found, or is not a GPT-2.
    """
    try:
        return find_model(model_id)
    except ValueError:
        if model_id != DEFAULT or Path(model_id).exists():
            raise
        return STAND_IN


def load_model(path: Path, dtype: str = "float32"):
    """Load a GPT-2 and its tokenizer from a directory onto the CPU, pruned as it was saved; `fold_attention_scale` is applied.

    Args:
        path: a directory with config.json, model.safetensors and a tokenizer.
        dtype: the parameters' dtype, by its name in torch.

    Returns:
        `(tokenizer, model)`, the model in eval mode.

    Raises:
        ValueError: the directory is missing, damaged or not a GPT-2, or a weight is NaN or infinite.
    """
    import torch
    from transformers import GPT2LMHeadModel

    path = Path(path)
    check_gpt2(path)
    argument = {"dtype" if at_least("transformers", "4.56") else "torch_dtype": getattr(torch, dtype)}  # renamed
    try:
        model, found = GPT2LMHeadModel.from_pretrained(path, **argument, local_files_only=True, output_loading_info=True)
    except Exception as error:  # each file format raises its own errors for a file that is cut short
        raise_cause(error)
        raise ValueError(
            f"can't load the model in {path} ({error!r:.200}); the directory is damaged: write or download it again"
        ) from error
    if found["missing_keys"]:  # transformers would fill these with random numbers
        lost = ", ".join(sorted(found["missing_keys"])[:3])
        raise ValueError(f"the model in {path} lacks {len(found['missing_keys'])} tensors ({lost}, …); write or download it again")
    check_finite(model)
    tokenizer = load_tokenizer(path)
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.n_positions)  # some tokenizers are saved without a length
    fit_width_to_heads(model)
    fold_attention_scale(model)
    return tokenizer, model.eval()


def check_finite(model) -> None:
    """Raise ValueError, with the names of the tensors, if any weight of a torch model is NaN or infinite."""
    import torch

    spoiled = [name for name, weight in model.named_parameters() if not torch.stack(weight.aminmax()).isfinite().all()]
    if spoiled:
        raise ValueError(
            f"{len(spoiled)} tensors of the model hold NaN or infinity ({', '.join(spoiled[:3])}); take weights from before they diverged"
            + ("; what is above 65504 is infinite in FP16" if model.dtype == torch.float16 else "")
        )


def fit_width_to_heads(model) -> None:
    """Tell each attention how wide its heads are together: older transformers forget it in pruning, and then fused attention fails."""
    for block in model.transformer.h:
        block.attn.embed_dim = block.attn.split_size


def fold_attention_scale(model) -> None:
    """Fold a config's own scales of attention scores into the query weights, in place, so that scores are divided by √head_dim alone.

    This is needed because the fused attention (SDPA) of transformers and of the exporter ignores `scale_attn_weights` and
    `scale_attn_by_inverse_layer_idx`. Logits stay the same up to the rounding of the weights' dtype. `reorder_and_upcast_attn` sets the
    order in which eager attention multiplies in FP16; it is switched off without loss, because fused attention sums in FP32.

    Args:
        model: a GPT-2 with `Conv1D` projections, heads pruned or not.
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


def load_tokenizer(path: Path | str):
    """Load the tokenizer in a directory; raise ValueError if there is none or it is damaged."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # as above
        raise ValueError(f"can't load the tokenizer in {path} ({error!r:.200}); save it there with save_pretrained()") from error


def check_gpt2(path: Path) -> None:
    """Raise ValueError unless `path` holds the config of a GPT-2."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no config.json in {path}; name a directory that a GPT-2 was saved to") from error
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} is not JSON; the directory is damaged: write or download it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "gpt2":
        raise ValueError(f"the model in {path} is {model_type!r}, expected 'gpt2'; name a GPT-2 of any size")


def _checked(found: FoundModel) -> FoundModel:
    check_gpt2(found.path)
    if not (found.path / "model.safetensors").exists():
        raise ValueError(f"no model.safetensors in {found.path}; save the model there with save_pretrained()")
    return found


def heads_per_layer(model) -> int:
    """Return the number of heads that each layer kept.

    Raises:
        ValueError: layers kept different numbers, while the exporter gives all KV caches one shape.
    """
    kept = {block.attn.num_heads for block in model.transformer.h}
    if len(kept) != 1:
        raise ValueError(f"layers kept {sorted(kept)} heads; the exporter needs the same number in each: prune one fraction everywhere")
    return kept.pop()
