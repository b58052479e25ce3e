"""Run Intel Neural Compressor's `INCQuantizer` on a GPT-2, and read its results back: its own INT8 modules can't be exported.

INC skips what it can't do without an error, and its ranges depend on the CPU. The context managers here prevent both.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gpt2opt import environment


def run_inc(linear: GPT2LMHeadModel, config, calibration: Dataset | None) -> dict:
    """Run `INCQuantizer` on a copy of a model and return the state dict that it saves."""
    import copy

    from neural_compressor.utils.utility import set_workspace
    from optimum.intel import INCQuantizer
    from torch.ao.quantization.fx.utils import assert_and_get_unique_device

    with tempfile.TemporaryDirectory() as scratch:
        set_workspace(scratch)
        quantizer = INCQuantizer.from_pretrained(copy.deepcopy(linear), task="text-generation")
        # One row at a time: the logits of eight rows of 1024 tokens would take 1.6 GB.
        quantizer.quantize(quantization_config=config, save_directory=scratch, calibration_dataset=calibration, batch_size=1)
        state = torch.load(Path(scratch, "pytorch_model.bin"), weights_only=False)
    del quantizer
    assert_and_get_unique_device.cache_clear()  # torch's cache of the answer for each module keeps every float module alive
    environment.give_back_memory()  # INC's copies of the model refer to each other in circles
    return state


@contextmanager
def traceable(linear: GPT2LMHeadModel) -> Iterator[None]:
    """Let `torch.jit.trace` follow the model meanwhile: INC finds the layers to smooth by tracing, and skips smoothing in silence if
    it can't. transformers builds the causal mask with `vmap`, which a trace can't hold; optimum's exporter has masks without. The
    activations are hidden meanwhile, see `_SeenByNoTracer`."""
    from optimum.exporters.onnx.model_patcher import eager_mask_without_vmap, sdpa_mask_without_vmap
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    masks = {"sdpa": sdpa_mask_without_vmap, "eager": eager_mask_without_vmap}
    kept = {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in masks}
    config = linear.config
    flags = {"return_dict": config.return_dict, "use_cache": config.use_cache}
    activations = [block.mlp.act for block in linear.transformer.h]
    try:
        for block, activation in zip(linear.transformer.h, activations, strict=True):
            block.mlp.act = _SeenByNoTracer(activation)
        for name, mask in masks.items():
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
        config.return_dict, config.use_cache = False, False
        yield
    finally:
        for block, activation in zip(linear.transformer.h, activations, strict=True):
            block.mlp.act = activation
        for name, mask in kept.items():
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
        config.return_dict, config.use_cache = flags["return_dict"], flags["use_cache"]


class _SeenByNoTracer(nn.Module):
    """An activation that INC takes for an unknown one.

    Through those that it knows, ReLU say, it would smooth the Linear behind into the one before, and between Linears it would keep them in
    INT8 and tell no range. In the graph that is exported they are float.
    """

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a tensor, got {type(x).__name__}")  # torch.fx asks
        return self.activation(x) + 0  # torch.jit.trace sees a sum, which nothing is smoothed through


@contextmanager
def full_range() -> Iterator[None]:
    """Let INC lay the range of an input over 256 steps meanwhile. On a CPU without VNNI it takes 128, against sums that leave 16 bits; here
    the weights make room instead. INC has no setting for it, only a constant that it works out when it is imported."""
    from neural_compressor.adaptor import pytorch

    kept, pytorch.REDUCE_RANGE = pytorch.REDUCE_RANGE, False
    try:
        yield
    finally:
        pytorch.REDUCE_RANGE = kept
