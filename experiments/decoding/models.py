"""The models whose decoding is compared: real ones where they can be had, and random weights of the same size where they can't."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_utils import no_init_weights

from experiments.contract import say
from experiments.race.run import SIZES
from experiments.race.stretch import stretch_tokenizer
from gpt2opt.sources.models import BUNDLED, FoundModel, find_model, load_model, load_tokenizer
from gpt2opt.sources.texts import Texts

SPREAD = 0.02
"""The standard deviation of GPT-2's weights before training."""
LOGIT_SPREAD = 3.7
"""The standard deviation of the logits of random weights. With 50,257 tokens it gives a next-token distribution an entropy of about 4 nats,
as a trained model has. The time of top-p and typical sampling depends on it, because they sort the tokens that may be kept."""


@dataclass(frozen=True)
class Candidate:
    """A model to measure. weights: where they are from, in words. path: None for random weights of the size that `name` says."""

    name: str
    weights: str
    path: Path | None = None
    stand_in: bool = False

    def load(self):
        """Return `(tokenizer, model)`, the model in FP32 on the CPU."""
        if self.path:
            return load_model(self.path)
        model = random_model(*SIZES[self.name])
        return stretch_tokenizer(load_tokenizer(BUNDLED), model.config.vocab_size, model.config.n_positions), model


def find_candidates(models: str) -> list[Candidate]:
    """Find directories, hub ids or `bundled`, with commas between them; or for `auto` what `find_model` finds by itself, and the sizes of
    GPT-2, with random weights for those that can't be had.

    Raises:
        ValueError: a model that is named can't be found.
    """
    names = [name.strip() for name in models.split(",") if name.strip()] or ["auto"]
    if names == ["auto"]:
        first = _real(find_model("auto"))
        return [first, *(_size(name) for name in SIZES if name != first.name)]
    try:
        return [_real(find_model(name)) for name in names]
    except ValueError as error:
        raise ValueError(f"{error}. Expected some of auto, bundled, {', '.join(SIZES)}, another hub id or a directory") from None


def _real(found: FoundModel) -> Candidate:
    return Candidate(found.name, str(found), found.path, found.stand_in)


def _size(name: str) -> Candidate:
    try:
        return _real(find_model(name))
    except ValueError:
        layers, _, width = SIZES[name]
        weights = f"random weights of {name}'s shape ({layers} × {width}), a stand-in for speed alone: {name} itself could not be had"
        return Candidate(name, weights, stand_in=True)


def random_model(layers: int, heads: int, width: int, vocab_size: int = 50257, positions: int = 1024) -> GPT2LMHeadModel:
    """Return a GPT-2 with random weights: it costs what a trained one of its shape costs, and what it writes means nothing."""
    config = GPT2Config(n_layer=layers, n_head=heads, n_embd=width, vocab_size=vocab_size, n_positions=positions)
    with no_init_weights():  # every parameter is filled below, and GPT-2's own way takes three times as long
        model = GPT2LMHeadModel(config).eval()
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, SPREAD, generator=generator)
            else:
                parameter.fill_("ln_" in name and name.endswith("weight"))
        model.transformer.ln_f.weight.fill_(LOGIT_SPREAD / (SPREAD * width**0.5))
    return model


def name_stand_ins(candidates: list[Candidate], texts: Texts) -> None:
    """Print on stderr what was replaced by what, and how to get the real ones."""
    lines = [f"{candidate.name}: {candidate.weights}" for candidate in candidates if candidate.stand_in]
    lines += [str(texts)] if texts.stand_in else []
    if lines:
        say("\n".join([*lines, "Connect and run again for the real ones, or name what holds them with --models and --text."]))
