"""Find and load a GPT-2: from an argument, an environment variable, the local cache, the hub, or the bundled model, in this order."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt.environment import at_least
from gpt2opt.errors import raise_cause
from gpt2opt.settings import FINETUNE, PROFILE, PRUNE
from gpt2opt.sources.gpt2 import CROSS_ATTENTION, check_finite, check_ids, fit_width_to_heads, fold_attention_scale
from gpt2opt.sources.hub import find_snapshot, names_of
from gpt2opt.sources.tokenizer import fast_tokenizer
from gpt2opt.storage import WEIGHTS, WEIGHTS_INDEX, new_folder, torch_weights

VARIABLE = "GPT2OPT_MODEL"
DEFAULT = "gpt2"
BUNDLED = Path(__file__).parent / "bundled"
PATTERNS = [
    "config.json", "generation_config.json", WEIGHTS, WEIGHTS_INDEX, "model-*-of-*.safetensors",
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "*.model",
]  # fmt: skip
TOKENIZERS = ("tokenizer.json", "merges.txt", "vocab.txt", "*.model")
"""The file that a tokenizer can be made from: of any kind, byte-level, WordPiece or SentencePiece."""
PICKLE = "a pickle, which can run code when it is read; where you trust it, load it with transformers and save it with save_pretrained()"
DEPLOYED = "deployed.json"
"""What `GPT2Deployed.export` writes beside the exports of a model."""
EXPORT = "an export; name the torch model that it was made from"
INSTEAD = {
    "adapter_config.json": "an adapter (LoRA), which is no model; merge it with merge_and_unload() of peft and save the result",
    "pytorch_model*.bin*": PICKLE,
    "*.pt": PICKLE,
    "*.pth": PICKLE,
    "*.ckpt": PICKLE,
    "openvino_model.xml": "an IR, which generate, perplexity, audit and export take as it is; for the rest name the torch model",
    DEPLOYED: "an export that GPT2Deployed.from_pretrained takes back; for the rest name a folder in it or the torch model",
    "*.onnx": EXPORT,
    "*.gguf": EXPORT,
    "*.h5": "weights of TensorFlow; load them with from_pretrained(..., from_tf=True) and save them with save_pretrained()",
    "*.msgpack": "weights of Flax; load them with from_pretrained(..., from_flax=True) and save them with save_pretrained()",
}
"""What a folder may hold in place of a model, and what it is."""
LFS_POINTER = b"version https://git-lfs.github.com/"


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

    model_id: a directory, or the folder of a run, of which the last torch model is taken; a hub id (`gpt2`, `gpt2-medium`, …); `bundled`;
    or `auto`: the environment variable GPT2OPT_MODEL, else `gpt2`, else the bundled model, which then is named as a stand-in.

    Raises:
        ValueError: the model that was asked for can't be found, or is not a GPT-2.
    """
    asked, origin = (model_id, "argument") if model_id != "auto" else (os.environ.get(VARIABLE), f"variable {VARIABLE}")
    if not model_id:
        raise ValueError("the model has no name: an empty one came; expected a directory, a hub id such as gpt2, bundled or auto")
    if asked == "bundled":
        return FoundModel("bundled", origin, BUNDLED)
    if asked and Path(asked).is_dir():
        directory = _torch_of_run(Path(asked))
        check_gpt2(directory)
        return FoundModel(directory.resolve().name, origin, directory)
    if asked and ((os.sep in asked and asked.count("/") != 1) or asked.startswith((".", "~"))):
        raise ValueError(f"no directory {asked!r}; name one that holds config.json and model.safetensors, or a hub id such as gpt2")
    if found := find_snapshot(asked or DEFAULT, PATTERNS, is_complete):
        path, origin = found
        check_gpt2(path)
        return FoundModel(asked or DEFAULT, origin, path)
    if asked:
        raise ValueError(
            f"model {asked!r} is no directory, is not in the local cache and the hub did not give it; "
            "check the name and the connection, or use model='bundled'"
        )
    return STAND_IN


def _torch_of_run(directory: Path) -> Path:
    """Return the folder of the last torch model of a run, given that of the run; any other directory as it is."""
    stages = (Path(directory, stage) for stage in (FINETUNE, PRUNE, PROFILE))
    return next((stage for stage in stages if torch_weights(stage) and not torch_weights(directory)), directory)


def is_complete(path: Path) -> bool:
    """Return whether the folder of a repository has weights and a tokenizer; some are missing after a download that was killed."""
    weights = torch_weights(path)
    return bool(weights) and all(file.exists() for file in weights) and any(any(path.glob(name)) for name in TOKENIZERS)


def find_model_or_stand_in(model_id: str) -> FoundModel:
    """Find a GPT-2 as `find_model` does; where `gpt2` is asked for by name and can't be had, return the bundled model."""
    try:
        return find_model(model_id)
    except ValueError:
        if model_id not in names_of(DEFAULT) or Path(model_id).exists():
            raise
        return STAND_IN


def load_model(path: Path, dtype: str = "float32"):
    """Load `(tokenizer, model)` from a directory onto the CPU, pruned as it was saved and in eval mode; see `fold_attention_scale`.

    Raises:
        ValueError: the directory is missing, damaged or not a GPT-2, a weight is NaN or infinite, or an id has no embedding.
    """
    import torch
    from transformers import GPT2LMHeadModel

    path = Path(path)
    check_gpt2(path)
    name = "dtype" if at_least("transformers", "4.56") else "torch_dtype"  # renamed
    try:
        options = {name: getattr(torch, dtype), "local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        model, found = GPT2LMHeadModel.from_pretrained(path, **options)
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


def save_model(folder: Path | str, tokenizer, model) -> None:
    """Write a model and its tokenizer; see `new_folder`. A model of which a weight is NaN or infinite is refused."""
    check_finite(model)
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def load_tokenizer(path: Path | str, serving: bool = False):
    """Load the tokenizer in a directory; raise ValueError if it is damaged, or the model beside it has no embedding for one of its ids.

    serving: without transformers, which loads torch, where that is possible: what is returned then can do no more than `FastTokenizer`.
    """
    tokenizer: Any = fast_tokenizer(Path(path)) if serving else None
    if tokenizer is None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # as above
            raise ValueError(f"can't load the tokenizer in {path} ({error!r:.200}); save it there with save_pretrained()") from error
    if Path(path, "config.json").exists():
        check_ids(tokenizer, _read_config(Path(path)).get("vocab_size"))
    return tokenizer


def check_gpt2(path: Path) -> None:
    """Raise ValueError unless `path` holds a GPT-2 that reads text alone: its config, and all its weights."""
    config = _read_config(path)
    if "model_type" not in config:
        raise ValueError(f"the config.json in {path} has no model_type, expected 'gpt2'; add it there if the model is a GPT-2")
    if config["model_type"] != "gpt2":
        raise ValueError(f"the model in {path} is {config['model_type']!r}, expected 'gpt2'; name a GPT-2 of any size")
    if config.get("add_cross_attention"):
        raise ValueError(f"the model in {path} has {CROSS_ATTENTION}")
    check_weights(path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no config.json in {path}{_instead(path)}; name a directory that a GPT-2 was saved to") from error
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} is not JSON; the directory is damaged: write or download it again") from error
    return config if isinstance(config, dict) else {}


def check_weights(path: Path) -> None:
    """Raise ValueError unless a directory holds all weights of a model as safetensors, not pointers to them or a part of them."""
    files = torch_weights(path)
    if not files:
        raise ValueError(f"no {WEIGHTS} in {path}{_instead(path) or '; save the model there with save_pretrained()'}")
    if missing := [file.name for file in files if not file.exists()]:
        raise ValueError(f"{path} lacks {len(missing)} of {len(files)} shards of its weights ({missing[0]}, …); copy or download it again")
    for file in files:
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{file} is a pointer of Git LFS to the weights and not the weights; `git lfs pull` fetches them")


def _instead(path: Path) -> str:
    return next((f", but {file.name}, {what}" for pattern, what in INSTEAD.items() for file in sorted(path.glob(pattern))), "")
