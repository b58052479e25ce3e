"""What quality is measured on: rows of held-out text, and torch FP32's logits of what comes next in them. It counts with every speed."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2opt import environment
from gpt2opt.storage import new_folder

ROWS, PROMPT_TOKENS, SCORED_TOKENS = 12, 32, 32
"""One sequence at a time, as TPOT is measured: that many rows × scored tokens decode steps take some seconds."""
LEARNED_NATS = 0.5
"""A model that has learned anything predicts a token by at least that much better than chance does."""


@dataclass(frozen=True)
class HeldOut:
    """The text that quality is measured on. rows: beginnings of that many documents. tokens: scored ones of each row.

    nll_nats: of torch FP32, unpruned, per token. chance_nats: what each token costs if all are equally probable.
    """

    text: str
    rows: int
    tokens: int
    nll_nats: float
    chance_nats: float

    @property
    def says_something(self) -> bool:
        """Return whether the model predicts text: what random weights answer means nothing, and neither does how near one comes to it."""
        return self.nll_nats < self.chance_nats - LEARNED_NATS


def reference_file(models: Path, part: str) -> Path:
    """Return where the rows and torch FP32's logits are, for the model `full` or `pruned`."""
    return models / "reference" / f"{part}.npz"


def write_reference(models: Path, distinct_tokens: int | None = None) -> HeldOut:
    """Write, for both models in a folder, the rows (R, T) and the logits (R, S, V) that predict the last S tokens of each.

    distinct_tokens: see `results.Models`. Only noise decides which of a token's copies is the most probable, so
    they count as one token.
    """
    environment.quiet()
    import torch

    from gpt2opt.decoding.text import encode
    from gpt2opt.sources.models import load_model
    from gpt2opt.sources.texts import find_texts

    texts, nll_nats = find_texts(), {}
    with new_folder(models / "reference") as folder:
        for part in ("full", "pruned"):
            tokenizer, model = load_model(models / part, "float32")
            length = min(PROMPT_TOKENS + SCORED_TOKENS, model.config.n_positions)
            scored = length // 2
            encoded = (encode(tokenizer, document.text).input_ids for document in texts.score)
            rows = torch.tensor([ids[:length] for ids in encoded if len(ids) >= length][:ROWS])
            if not len(rows):
                raise ValueError(f"no document of the scored part of {texts.name} has {length} tokens, which quality is measured on")
            with torch.inference_mode():
                logits = model(rows).logits[:, -1 - scored : -1].float()
            distinct = distinct_tokens or logits.shape[-1]
            np.savez(folder / f"{part}.npz", rows=rows.numpy(), logits=logits.numpy(), distinct_tokens=distinct)
            nll_nats[part] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, -scored:].flatten()).item()
    return HeldOut(f"{texts.name} {texts.revision}", len(rows), scored, nll_nats["full"], math.log(model.config.vocab_size))
