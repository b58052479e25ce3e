"""Run Intel Neural Compressor's `INCQuantizer` on a GPT-2, and read its results back: its own INT8 modules can't be exported.

INC silently skips what it can't do, and its ranges depend on the CPU. The context managers here prevent both.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2opt.environment import at_least, give_back_memory
from gpt2opt.errors import chain_of, raise_cause, text_of


def run_inc(linear: PreTrainedModel, config, calibration: Dataset | None, task: str = "text-generation") -> dict:
    """Run `INCQuantizer` on a copy of a model and return the state dict that it saves.

    Args:
        linear: a GPT-2 from `linearize`, or another model whose matmuls are `nn.Linear`; only a GPT-2 can be smoothed.
        config: of `neural_compressor`.
        calibration: the columns that the model reads, such as `input_ids`; None where weights alone are quantized.
        task: what the model does, in optimum's words.
    """
    import copy

    from optimum.intel import INCQuantizer

    with tempfile.TemporaryDirectory() as scratch:
        with readable_by_inc(linear):
            quantizer = INCQuantizer.from_pretrained(copy.deepcopy(linear), task=task)
            # One row at a time: the logits of eight rows of 1024 tokens would take 1.6 GB.
            quantizer.quantize(quantization_config=config, save_directory=scratch, calibration_dataset=calibration, batch_size=1)
            del quantizer
        return load_inc(scratch)


def load_inc(folder: Path | str) -> dict:
    """Load the state dict that `INCQuantizer.quantize` saved into a folder."""
    return torch.load(Path(folder, "pytorch_model.bin"), weights_only=False)


@contextmanager
def readable_by_inc(linear: PreTrainedModel) -> Iterator["OperatorTable"]:
    """Let `INCQuantizer` smooth and calibrate a linearized model inside a `with` block, and hear which operators it quantizes.

    Inside, the model can be traced (see `_traceable`), the range of an input has 256 steps (see `_full_range`), what INC swallows is
    raised (see `_outspoken`) and what INC writes beside its result goes into a scratch folder. At the end what INC would keep alive is
    freed.

    Yields:
        The table that INC writes into its log; it prints once INC is done.

    Raises:
        KeyboardInterrupt, MemoryError: INC was interrupted, or had too little memory.
        RuntimeError: INC failed of something else; the message names it.
    """
    from neural_compressor.utils.utility import set_workspace
    from torch.ao.quantization.fx.utils import assert_and_get_unique_device

    table = OperatorTable()
    with tempfile.TemporaryDirectory() as scratch, _outspoken(table), _traceable(linear), _full_range(), table.listening():
        set_workspace(scratch)
        yield table
    if hasattr(assert_and_get_unique_device, "cache_clear"):  # newer torch caches its answer for each module, which keeps them alive
        assert_and_get_unique_device.cache_clear()
    give_back_memory()  # INC's copies of the model are in reference cycles


class OperatorTable(logging.Handler):
    """INC's own table of how many operators of each kind it quantized, as it stands in INC's log.

    errors: those that INC caught, and only wrote into its log.
    """

    def __init__(self):
        super().__init__(logging.INFO)
        self.errors: list[BaseException] = []
        self._lines: list[str] = []
        self._ours = False

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, Exception):
            self.errors.append(record.msg)
        line = record.getMessage()
        if "Statistics" in line:  # the head of a table
            self._ours = "Mixed Precision" in line
            self._lines = [] if self._ours else self._lines  # a tuning round before this one wrote one as well
        if self._ours and line.startswith(("|", "+")):
            self._lines.append(line)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear INC's log inside a `with` block; nothing of it is printed meanwhile."""
        logger = logging.getLogger("neural_compressor")
        level, handlers, propagate = logger.level, logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [self], False
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


@contextmanager
def _traceable(linear: PreTrainedModel) -> Iterator[None]:
    """Make the model traceable by `torch.jit.trace` inside a `with` block.

    INC finds the layers to smooth by tracing, and skips smoothing without an error if tracing fails. transformers builds the causal mask
    with `vmap`, which a trace can't hold; optimum's exporter has masks without it. The activations are hidden too, see `_SeenByNoTracer`.
    Nothing but a GPT-2 is smoothed, so that other models stay as they are.
    """
    if not isinstance(linear, GPT2LMHeadModel):
        yield
        return
    config = linear.config
    flags = {"return_dict": config.return_dict, "use_cache": config.use_cache}
    activations = [block.mlp.act for block in linear.transformer.h]
    try:
        for block, activation in zip(linear.transformer.h, activations, strict=True):
            block.mlp.act = _SeenByNoTracer(activation)
        config.return_dict, config.use_cache = False, False
        with _masks_without_vmap():
            yield
    finally:
        for block, activation in zip(linear.transformer.h, activations, strict=True):
            block.mlp.act = activation
        config.return_dict, config.use_cache = flags["return_dict"], flags["use_cache"]


@contextmanager
def _masks_without_vmap() -> Iterator[None]:
    if not at_least("transformers", "4.53"):  # until then masks were built without it
        yield
        return
    from optimum.exporters.onnx.model_patcher import eager_mask_without_vmap, sdpa_mask_without_vmap
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    masks = {"sdpa": sdpa_mask_without_vmap, "eager": eager_mask_without_vmap}
    kept = {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in masks}
    try:
        for name, mask in masks.items():
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
        yield
    finally:
        for name, mask in kept.items():
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)


class _SeenByNoTracer(nn.Module):
    """An activation that INC does not recognize.

    Through an activation that it knows, ReLU for example, INC would smooth the next Linear into the one before. Between two Linears it
    would keep the activation in INT8 and report no range for the next input. In the exported graph activations are float.
    """

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a tensor, got {type(x).__name__}")  # torch.fx passes a proxy
        return self.activation(x) + 0  # torch.jit.trace sees a sum, and INC smooths nothing through a sum


@contextmanager
def _outspoken(table: OperatorTable) -> Iterator[None]:
    """Raise at the end of a `with` block what INC caught inside it.

    Whatever its tuning raises, an interrupt included, INC goes on as if it had found no model, or not the best one.
    """
    from neural_compressor import quantization

    time_limit, caught = quantization.time_limit, []

    @contextmanager
    def heard(seconds):  # INC tunes inside this, and catches everything around it
        try:
            with time_limit(seconds):
                yield
        except (KeyboardInterrupt, Exception) as error:
            caught.append(error)

    quantization.time_limit = heard
    try:
        yield
    except Exception:
        if not caught:
            raise
    finally:
        quantization.time_limit = time_limit
    for error in (*caught, *table.errors):
        raise_cause(error)
    if caught:
        tries = ", after ".join(f"{type(error).__name__}: {text_of(error)}" for error in chain_of(caught[0]))
        raise RuntimeError(f"INC failed: {tries}") from caught[0]


@contextmanager
def _full_range() -> Iterator[None]:
    """Make INC divide the range of an input into 256 steps inside a `with` block.

    On a CPU without VNNI it takes 128, so that sums of two products stay within 16 bits; here `keep_sums_in_16_bits` adjusts the weights
    instead. INC has no setting for it, only a constant that it computes at import.
    """
    from neural_compressor.adaptor import pytorch

    kept, pytorch.REDUCE_RANGE = pytorch.REDUCE_RANGE, False
    try:
        yield
    finally:
        pytorch.REDUCE_RANGE = kept
