"""The quality gate: inputs stay float, worst first, until the others and an INT8 KV cache keep the KL budget of the recipe.

INC's own tuning accepts models that miss its criterion, so the gate works on the fake-quantized graph, where one input can be switched at a
time. Every weight stays quantized.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel

from gpt2opt.measure.quality import kl_divergence
from gpt2opt.quantize.fake_quant import FakeQuantLinear, quantized_linears

EVERY = 4
"""Every fourth position is compared: neighbouring positions give nearly the same answer, and the head is a third of the arithmetic."""

KV_CACHE = "kv_cache"


@dataclass(frozen=True)
class Sensitivity:
    """What quantized inputs, and a quantized KV cache, cost: mean KL divergence from the FP32 model, in nats per token.

    The keys are names of matmuls, and `kv_cache`. only_this: the cost with only this input quantized. added_to_others: how much this input
    adds if every other input is quantized too. weights: the cost of integer weights with float inputs; every other cost here is counted on
    top of it. together: the cost of all quantized inputs. left: the cost of those that the gate kept. max_kl: the budget for `left`; None
    if nothing was to be switched off. float_inputs: the inputs that the gate left float.
    """

    only_this: dict[str, float]
    added_to_others: dict[str, float]
    weights: float
    together: float
    left: float
    max_kl: float | None
    float_inputs: tuple[str, ...]

    @property
    def kv_cache(self) -> str:
        """Return what keys and values are to be kept in, as `export_ir` takes it."""
        return "f16" if KV_CACHE in self.float_inputs else "u8"


def apply_gate(model: GPT2LMHeadModel, reference: GPT2LMHeadModel, rows: Sequence[Sequence[int]], max_kl: float | None) -> Sensitivity:
    """Measure the sensitivity of each quantized input; switch off the worst, in place, until the others together keep the budget.

    The sensitivity of an input is the mean KL divergence of the next-token distribution from that of the FP32 model, in nats per token,
    less that of the model with integer weights and float inputs. It is measured twice, with only this input quantized and with every
    other input quantized, and the greater counts: the first measurement finds effects that the others' noise would mask, the second
    finds effects that only accumulate. Whether the KV cache can be INT8 is measured like an input.

    Args:
        model, reference: the fake-quantized model, and the same one in FP32.
        rows: token rows that INC did not see.
        max_kl: nats per token that all quantized inputs and the cache may cost together; None: measure, and switch nothing off.
    """
    blocks: Any = model.transformer.h
    cache = CacheRounding(blocks[0].attn.head_dim)
    quantized = {name.removeprefix("transformer."): layer for name, layer in quantized_linears(model).items() if layer.quantize_input}
    layers: dict[str, Switched] = {**quantized, KV_CACHE: cache}
    with ExitStack() as hooks, torch.inference_mode():
        for block in blocks:
            hooks.enter_context(block.attn.c_attn.register_forward_hook(cache))
        return _gate(layers, _Divergence(model, layers, reference, rows), max_kl)


class CacheRounding:
    """A hook that rounds keys and values, while `quantize_input` is set, as a u8 cache does: each head of each token by itself."""

    def __init__(self, head_dim: int):
        self.head_dim, self.quantize_input = head_dim, True

    def __call__(self, _module, _inputs, projected: Tensor) -> Tensor | None:
        if not self.quantize_input:
            return None
        queries, keys, values = projected.chunk(3, -1)
        return torch.cat([queries, self._rounded(keys), self._rounded(values)], -1)

    def _rounded(self, cached: Tensor) -> Tensor:
        heads = cached.unflatten(-1, (-1, self.head_dim))
        low, high = heads.aminmax(dim=-1, keepdim=True)
        step = ((high - low) / 255).clamp(min=torch.finfo(heads.dtype).tiny)
        return (((heads - low) / step).round() * step + low).flatten(-2)


Switched = FakeQuantLinear | CacheRounding
"""What a gate switches: `quantize_input` says whether it rounds."""


def _gate(layers: Mapping[str, Switched], kl: Callable[[set[str]], float], max_kl: float | None) -> Sensitivity:
    every = set(layers)
    with tqdm(total=2 + 2 * len(layers), desc="sensitivity of each quantized input", leave=False) as progress:

        def measured(quantized: set[str]) -> float:
            cost = kl(quantized)
            progress.update()
            return cost

        weights = measured(set())
        together = measured(every) - weights
        only_this = {name: measured({name}) - weights for name in layers}
        added_to_others = {name: together - (measured(every - {name}) - weights) for name in layers}
        worst_first = iter(sorted(layers, key=lambda name: -max(only_this[name], added_to_others[name])))
        kept, left = every, together
        while max_kl is not None and left > max_kl and kept:
            kept = kept - {next(worst_first)}
            progress.total += 1  # how many of these it takes shows only now
            left = measured(kept) - weights
    _switch(layers, kept)
    return Sensitivity(only_this, added_to_others, weights, together, left, max_kl, tuple(name for name in layers if name not in kept))


def _switch(layers: Mapping[str, Switched], quantized: Collection[str]) -> None:
    for name, layer in layers.items():
        layer.quantize_input = name in quantized


class _Divergence:
    """The mean KL(reference model ‖ model) over some rows, in nats per token, with any choice of the model's inputs quantized.

    What a block reads depends only on the inputs quantized before it. So the hidden states before each block are kept for two
    configurations, none and all quantized, and any other one is computed from the first block in which it differs from one of these.
    """

    def __init__(self, model: GPT2LMHeadModel, layers: Mapping[str, Switched], reference: GPT2LMHeadModel, rows: Sequence[Sequence[int]]):
        self.model, self.layers = model, layers
        # The cache is read in every block; the head comes after the last one.
        self.block_of = {name: int(name.split(".")[1]) for name in layers if name.startswith("h.")} | {KV_CACHE: 0}
        self.expected = [_log_probabilities(reference, _states_before_blocks(reference, row), -1) for row in rows]
        self.kept = {}
        for quantized in (frozenset(), frozenset(layers)):
            _switch(layers, quantized)
            self.kept[quantized] = [_states_before_blocks(model, row) for row in rows]

    def __call__(self, quantized: set[str]) -> float:
        nearest = max(self.kept, key=lambda kept: self._first_block(kept ^ quantized))
        first = self._first_block(nearest ^ quantized)
        _switch(self.layers, quantized)
        found = (_log_probabilities(self.model, states, first) for states in self.kept[nearest])
        nats = [kl_divergence(base, other) for base, other in zip(self.expected, found, strict=True)]
        mean = torch.cat(nats).double().mean().item()
        if not math.isfinite(mean):  # no comparison with a budget means anything
            raise ValueError(f"the gate measured a KL divergence of {mean}: the model's numbers overflow on the calibration text")
        return mean

    def _first_block(self, switched: set[str] | frozenset[str]) -> int:
        last = len(self.model.transformer.h) - 1
        return min((self.block_of.get(name, last) for name in switched), default=last)


def _states_before_blocks(model: GPT2LMHeadModel, row: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the hidden states (1, T, width) that each block reads."""
    return model.transformer(torch.tensor([row]), use_cache=False, output_hidden_states=True).hidden_states[:-1]


def _log_probabilities(model: GPT2LMHeadModel, states: Sequence[Tensor], first: int) -> Tensor:
    """Run the model from a block on; return the log probabilities (T / EVERY, V) of the next tokens."""
    hidden = states[first]
    for block in model.transformer.h[first:]:
        hidden = block(hidden)[0]
    return torch.log_softmax(model.lm_head(model.transformer.ln_f(hidden)[0, EVERY - 1 :: EVERY]), -1)
