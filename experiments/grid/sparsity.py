"""What is pruned by magnitude, and how zeros are kept: in a torch model while it is trained, and in the integers of a quantized IR."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from experiments.grid.results import Linears
from gpt2opt.export.openvino import export_ir
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.runtime.audit import MATMUL_NAME
from gpt2opt.runtime.graph import matmuls, stored_weight, weight_scales
from gpt2opt.runtime.ir_weights import PARTS
from gpt2opt.runtime.manifest import IR_NAME, read_manifest, write_manifest


def keep_largest(magnitudes: Tensor, share: float) -> Tensor:
    """Return which weights (O, I) of a matrix stay: all but the given share, the smallest ones (Han et al. 2015)."""
    keep = torch.ones(magnitudes.numel(), dtype=torch.bool)
    keep[magnitudes.flatten().argsort(stable=True)[: round(share * magnitudes.numel())]] = False
    return keep.view(magnitudes.shape)


def keep_two_of_four(magnitudes: Tensor) -> Tensor:
    """Return which weights (O, I) stay: the two largest of every four neighbouring inputs of an output.

    It is the one pattern that the sparse tensor cores of GPUs compute faster (Mishra et al. 2021).
    """
    fours = magnitudes.unflatten(1, (-1, 4))
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, fours.topk(2).indices, True).flatten(1)


LINEARS_SHARE = 0.5
LINEARS = f"nn.Linear {LINEARS_SHARE:.0%}"
"""What the project quantization-pruning calls pruning; see `prune_linears`."""
Rule = Callable[[Tensor], Tensor]
RULES: dict[str, Rule] = {
    "magnitude 30%": partial(keep_largest, share=0.3),
    "magnitude 50%": partial(keep_largest, share=0.5),
    "2:4": keep_two_of_four,
}
"""Name -> which weights of a matrix (O, I) stay, by their magnitudes. Pruned are the four matrices of every block, each by itself; the
token embedding, which is also the head, stays whole."""


def matrices(model: GPT2LMHeadModel) -> dict[str, Any]:
    """Return the four projections of every block by the names that the audit gives them."""
    names = [f"h.{layer}.{part}" for layer in range(len(model.transformer.h)) for part in PARTS]
    return {name: model.transformer.get_submodule(name) for name in names}


def masks_of(model: GPT2LMHeadModel, rule: Rule) -> dict[str, Tensor]:
    """Return which weights (O, I) of every matrix of a model with `Conv1D` projections stay."""
    return {name: rule(module.weight.detach().T.abs()) for name, module in matrices(model).items()}


@contextmanager
def held_at_zero(model: GPT2LMHeadModel, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Set the weights that do not stay to zero, in place, and keep them there inside a `with` block, whatever an optimizer does."""
    modules = matrices(model)
    for name, keep in masks.items():
        prune.custom_from_mask(modules[name], "weight", keep.T)
    try:
        yield
    finally:
        for name in masks:
            prune.remove(modules[name], "weight")


def prune_linears(model: GPT2LMHeadModel, share: float = LINEARS_SHARE) -> Linears:
    """Prune as quantization-pruning does, in place: in every `nn.Linear`, the smallest weights by magnitude; return what that reached."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for module in found.values():
        prune.l1_unstructured(module, "weight", share)
        prune.remove(module, "weight")
    return Linears(
        tuple(found),
        matrices=sum(isinstance(module, nn.Linear | Conv1D) for module in model.modules()),
        weights=sum(module.weight.numel() for module in found.values()),
        zeros=sum(int((module.weight == 0).sum()) for module in found.values()),
        embedding_zeros=int((model.transformer.wte.weight == 0).sum()),
        parameters=model.num_parameters(),
    )


def export_fp32(model: GPT2LMHeadModel, tokenizer, folder: Path) -> None:
    """Write a model as FP32 IR with the weights that it has.

    `prepare_for_export` centers the projections into the residual stream, and with that every zero of theirs would get a small value; so
    they are put back.
    """
    linear = prepare_for_export(model)
    for name, module in matrices(model).items():
        projection = linear.transformer.get_submodule(name)
        projection.weight = nn.Parameter(module.weight.detach().T.contiguous())
        projection.bias = nn.Parameter(module.bias.detach().clone())
    export_ir(linear, tokenizer, folder)


def prune_integers(source: Path, target: Path, keep: Callable[[str, Tensor], Tensor]) -> None:
    """Write a copy of an INT8 IR in which integers of the blocks' weights are zero.

    keep: the name of a matrix and the magnitudes (O, I) of its integers × scales -> which of them stay.
    """
    from openvino import save_model
    from openvino.op import Constant

    graph = _read(source)
    for name, matmul in _block_matmuls(graph).items():
        constant = stored_weight(matmul)
        assert constant
        integers = constant.data.copy()
        magnitudes = torch.from_numpy(np.abs(integers * weight_scales(matmul)))
        integers[~keep(name, magnitudes).numpy()] = 0
        constant.output(0).replace(Constant(integers).output(0))
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("openvino_model.*", ".gpt2opt*"))
    save_model(graph, target / IR_NAME, compress_to_fp16=False)
    made = read_manifest(source)
    write_manifest(target, made.weights, made.kv_cache, made.made_from)


def count_zeros(folder: Path) -> tuple[int, int]:
    """Return how many weights the blocks' matrices have in the file of an IR, and how many of them are zero."""
    stored = [constant.data for matmul in _block_matmuls(_read(folder)).values() if (constant := stored_weight(matmul))]
    return sum(weight.size for weight in stored), sum(weight.size - np.count_nonzero(weight) for weight in stored)


def _read(folder: Path):
    from openvino import Core

    return Core().read_model(folder / IR_NAME)


def _block_matmuls(graph) -> dict:
    """Return the matmuls of the blocks by the names that the audit gives them."""
    found = {match[1]: node for node in matmuls(graph) if (match := MATMUL_NAME.search(node.get_friendly_name()))}
    return {name: node for name, node in found.items() if name != "lm_head"}
