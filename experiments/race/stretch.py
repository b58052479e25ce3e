"""A trained GPT-2 stretched to the shape of a larger one, for measurements where the larger one's weights can't be had.

Random weights would do for timing alone, but a quality gate has nothing to decide on them: their answers mean nothing. A stretched model
predicts text, has the activation outliers of the trained one, and costs what any model of its shape costs.
"""

import json

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

NOISE = 0.01


def stretch_model(
    model: GPT2LMHeadModel, layers: int, heads: int, width: int, vocab_size: int = 50257, positions: int = 1024, noise: float = NOISE
) -> GPT2LMHeadModel:
    """Return a larger GPT-2 that says nearly what this one says.

    Width, heads and MLP: channels and units are copied in such a way that the function stays the same (Net2Net, Chen et al. 2016). Depth:
    blocks are repeated, each adding its share, which is an approximation. Positions beyond the model's own repeat its later half, since
    those between would move neighbours apart. Token ids beyond the model's own repeat its rows. Every weight then gets a little noise, so
    that no two are equal.

    The model has all heads and its head tied to its embedding, and the larger shape is nowhere smaller; its width is at least twice the
    model's, since a single copy of a channel can't have mean 0. noise: standard deviation of the factors that all parameters get, around 1.
    """
    small = model.config
    config = GPT2Config(
        n_layer=layers, n_head=heads, n_embd=width, vocab_size=vocab_size, n_positions=positions,
        layer_norm_epsilon=small.layer_norm_epsilon * small.n_embd / width,  # as the variance is, over more channels
        bos_token_id=small.bos_token_id, eos_token_id=small.eos_token_id,
    )  # fmt: skip
    large = GPT2LMHeadModel(config).eval()
    large.load_state_dict(_stretched(model.float().state_dict(), small, config), strict=False)
    large.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
    return large


def _stretched(weights: dict[str, Tensor], small: GPT2Config, large: GPT2Config) -> dict[str, Tensor]:
    channels = Channels(small.n_embd, large.n_embd)
    rows = {"wte": _repeated(large.vocab_size, 0, small.vocab_size)}
    rows["wpe"] = _repeated(large.n_positions, small.n_positions // 2, small.n_positions)
    found = {f"transformer.{name}.weight": channels.written(weights[f"transformer.{name}.weight"][row]) for name, row in rows.items()}
    sources = torch.arange(large.n_layer) * small.n_layer // large.n_layer
    repeats = torch.bincount(sources)
    for layer, source in enumerate(sources.tolist()):
        prefix = f"transformer.h.{source}."
        block = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        wider = _wider_block(block, channels, small, large, int(repeats[source]))
        found |= {f"transformer.h.{layer}.{name}": value for name, value in wider.items()}
    return found | channels.last_norm(*(weights[f"transformer.ln_f.{kind}"] for kind in ("weight", "bias")))


def _repeated(count: int, first: int, known: int) -> Tensor:
    """Return 0 to `known` − 1, and then from `first` on again and again, `count` in all."""
    numbers = torch.arange(count)
    return torch.where(numbers < known, numbers, first + (numbers - known) % (known - first))


class Channels:
    """How d channels of the residual stream become D.

    Channel i has m copies, i times the i-th column of `copy` (D, d): weights a with sum 0 and sum of squares 1. So a LayerNorm over the
    copies divides by what it divided by before, up to √(d / D). What LayerNorm takes out, the mean of the channels, goes into all D, and
    is taken out there again.
    """

    def __init__(self, small: int, large: int):
        self.source = torch.arange(large) % small
        copies = torch.bincount(self.source)[self.source].float()
        is_last = torch.arange(large) >= large - small
        self.weight = torch.where(is_last, 1 - copies, 1.0) / (copies * (copies - 1)).sqrt()
        self.copy = torch.zeros(large, small)
        self.copy[torch.arange(large), self.source] = self.weight
        self.copies, self.shrink = copies, (small / large) ** 0.5

    def written(self, value: Tensor) -> Tensor:
        """Return what is added to the stream, (..., d), as (..., D)."""
        mean = value.mean(-1, keepdim=True)
        return (value - mean) @ self.copy.T + mean

    def read(self, weight: Tensor) -> Tensor:
        """Return a weight (d, outputs) that reads a normalized stream as (D, outputs)."""
        return self.shrink * self.copy @ weight

    def norm(self, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and bias of a LayerNorm that `read` weights read."""
        return gain[self.source], bias[self.source] * self.weight / self.shrink

    def last_norm(self, gain: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Return the last LayerNorm, which is read by the embedding: by a row's copies, and by its mean in all D.

        With outputs h of the copies of a channel, Σ a·h and Σ h both have to be what the channel was.
        """
        cubes = torch.zeros(len(gain)).index_add(0, self.source, self.weight**3)[self.source]
        return {
            "transformer.ln_f.weight": self.shrink * gain[self.source] * (1 - cubes + self.weight),
            "transformer.ln_f.bias": bias[self.source] * (1 / self.copies + self.weight),
        }


def _wider_block(block: dict[str, Tensor], channels: Channels, small: GPT2Config, large: GPT2Config, repeats: int) -> dict[str, Tensor]:
    found = {}
    for norm in ("ln_1", "ln_2"):
        found[f"{norm}.weight"], found[f"{norm}.bias"] = channels.norm(block[f"{norm}.weight"], block[f"{norm}.bias"])
    head_dim, larger_dim = small.n_embd // small.n_head, large.n_embd // large.n_head
    dims, heads = torch.arange(larger_dim) % head_dim, torch.arange(large.n_head) % small.n_head
    units = (heads[:, None] * head_dim + dims).flatten()
    hidden = torch.arange(4 * large.n_embd) % (4 * small.n_embd)
    # q · k ÷ √(head size) stays what it was: a dimension's copies share its product.
    share = ((larger_dim / head_dim) ** 0.5 / torch.bincount(dims)[dims]).sqrt().repeat(large.n_head)
    queries, keys, values = (torch.as_tensor(number * small.n_embd) + units for number in range(3))
    scale = torch.cat([share, share, torch.ones(large.n_embd)])
    for name, columns, factor in (("attn.c_attn", torch.cat([queries, keys, values]), scale), ("mlp.c_fc", hidden, 1)):
        found[f"{name}.weight"] = channels.read(block[f"{name}.weight"])[:, columns] * factor
        found[f"{name}.bias"] = block[f"{name}.bias"][columns] * factor
    for name, rows in (("attn.c_proj", units), ("mlp.c_proj", hidden)):
        weight = block[f"{name}.weight"][rows] / torch.bincount(rows)[rows, None]
        found[f"{name}.weight"] = channels.written(weight / repeats)
        found[f"{name}.bias"] = channels.written(block[f"{name}.bias"] / repeats)
    return found


def stretch_tokenizer(tokenizer: GPT2TokenizerFast, vocab_size: int, positions: int) -> GPT2TokenizerFast:
    """Return the tokenizer with words that no text holds, up to a vocabulary; texts give the ids that they gave."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] |= {f"<unused {number}>": number for number in range(len(tokenizer), vocab_size)}
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), tokenizer.eos_token)
    return GPT2TokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), model_max_length=positions, **special)
