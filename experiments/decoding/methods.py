"""The decoding methods that are compared, with the settings that their papers or transformers' documentation use."""

from collections.abc import Mapping
from typing import Any

from gpt2opt.decoding.settings import DecodingSettings

GREEDY, CONTRASTIVE = "greedy", "contrastive search"
METHODS: Mapping[str, Mapping[str, Any]] = {
    GREEDY: {},
    "temperature": {"do_sample": True, "temperature": 0.7, "top_k": 0},
    "top-k": {"do_sample": True, "top_k": 50},
    "top-p": {"do_sample": True, "top_p": 0.95, "top_k": 0},
    "typical": {"do_sample": True, "typical_p": 0.95, "top_k": 0},
    "min-p": {"do_sample": True, "min_p": 0.1, "top_k": 0},
    "repetition penalty": {"repetition_penalty": 1.2},
    "beam search": {"num_beams": 4},
    CONTRASTIVE: {"penalty_alpha": 0.6, "top_k": 4},
}
"""Name -> what its `DecodingSettings` change. Every method changes one thing, so that a difference has one cause."""
SAMPLING = tuple(name for name, changed in METHODS.items() if "do_sample" in changed)
"""The methods whose texts depend on the seed."""


def settings_of(method: str, new_tokens: int, seed: int = 0) -> DecodingSettings:
    """Return a method's settings. End-of-text does not end a text, so that all methods do the same amount of work."""
    changed = {} if method == CONTRASTIVE else METHODS[method]  # contrastive search is a model of its own, see `model_of`
    return DecodingSettings(max_new_tokens=new_tokens, seed=seed, **changed)
