"""Run Intel Neural Compressor's `INCQuantizer` on a GPT-2, and read its result back: its own INT8 modules can't be exported.

INC silently skips what it can't do, and its ranges depend on the CPU. The context managers here prevent both.
"""

import copy
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2opt.environment import at_least, give_back_memory
from gpt2opt.errors import chain_of, raise_cause, text_of
from gpt2opt.quantize.fake_quant import QuantizedLinear
from gpt2opt.quantize.ranges import clip_to_percentiles, keep_sums_in_16_bits, smooth_untied_head, take_over_smoothing
from gpt2opt.quantize.recipes import Recipe, int8_config


def calibrate(
    linear: PreTrainedModel, calibration: Dataset, recipe: Recipe, *, safe_sums: bool = True, task: str = "text-generation"
) -> dict[str, QuantizedLinear]:
    """Quantize every Linear of a model by INC, by name, and smooth its LayerNorms in place if the recipe says so.

    The result is the same on every CPU and runs on every CPU, whichever it is made on; see `keep_sums_in_16_bits`.

    Args:
        linear: from `prepare_for_export`, or another model whose matmuls are `nn.Linear`, with a recipe without smoothing.
        calibration: the columns that the model reads, such as `input_ids`; rows of one length.
        task: what the model does, in optimum's words.

    Raises:
        RuntimeError: INC failed, did not apply the smoothing that was asked for, or quantized nothing.
    """
    if not recipe.activations:
        return _round_weights(linear, recipe)
    with tempfile.TemporaryDirectory() as folder:
        smooth_untied_head(linear, calibration, recipe.smooth_alpha)
        run_inc(linear, int8_config(recipe), folder, calibration, task)
        return read_inc_result(linear, folder, calibration, recipe, safe_sums)


def run_inc(linear: PreTrainedModel, config: Any, folder: Path | str, calibration: Dataset, task: str) -> None:
    """Run `INCQuantizer` on a copy of a model, by a config of `neural_compressor`; INC saves its result into the folder."""
    from optimum.intel import INCQuantizer

    with patched_for_inc(linear):
        quantizer = INCQuantizer.from_pretrained(copy.deepcopy(linear), task=task)
        # One row at a time: the logits of eight rows of 1024 tokens would take 1.6 GB.
        quantizer.quantize(quantization_config=config, save_directory=folder, calibration_dataset=calibration, batch_size=1)
        del quantizer


def read_inc_result(
    linear: PreTrainedModel, folder: Path | str, calibration: Dataset, recipe: Recipe, safe_sums: bool = True
) -> dict[str, QuantizedLinear]:
    """Read the integers, scales and ranges that INC saved of each Linear; smooth the LayerNorms of the model in place as INC did.

    Args:
        linear, calibration, recipe: as they were given to INC.
        folder: `save_directory` of `INCQuantizer.quantize`.
        safe_sums: widen the steps of weights as `keep_sums_in_16_bits` says; without it a CPU without VNNI or AMX may saturate.
    """
    state = torch.load(Path(folder, "pytorch_model.bin"), weights_only=False)
    if recipe.smooth_alpha is not None:
        take_over_smoothing(linear, state)
    layers = _read_int8_layers(state)
    if recipe.activation_range == "percentile":
        layers = clip_to_percentiles(linear, calibration, layers)
    if not recipe.head_input:
        layers["lm_head"] = dataclasses.replace(layers["lm_head"], input_scale=None)
    return keep_sums_in_16_bits(linear, calibration, layers) if safe_sums else layers


def _read_int8_layers(state: dict[str, Any]) -> dict[str, QuantizedLinear]:
    """Read INC's state dict, which holds the scale and the zero point of an input beside each Linear's packed weight."""
    suffix, layers = "._packed_params._packed_params", {}
    for module in [key.removesuffix(suffix) for key in state if key.endswith(suffix)]:
        weight, _ = state[module + suffix]
        scale, zero_point = (state[f"{module}_input_{name}_0"].item() for name in ("scale", "zero_point"))
        layers[module.removesuffix(".module")] = QuantizedLinear(
            weight.dequantize(), weight.q_per_channel_scales().float()[:, None], 8, scale, int(zero_point)
        )
    if not layers:
        raise RuntimeError("INC quantized no Linear; does the model come from prepare_for_export?")
    return layers


def _round_weights(linear: PreTrainedModel, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Round weights to nearest by INC's own function, with a symmetric scale for each group of inputs; the head gets INT8 per channel.

    A group is the largest one, up to the size in the recipe, that divides the inputs.
    """
    from neural_compressor.adaptor.torch_utils.weight_only import quant_weight

    layers = {}
    for name, module in linear.named_modules():
        if isinstance(module, nn.Linear):
            bits, largest = (8, 0) if name == "lm_head" else (recipe.weight_bits, recipe.group_size or 0)
            sizes = [size for size in (16, 32, 64, 128) if size <= largest and module.in_features % size == 0]
            group = max(sizes, default=module.in_features)
            integers, scale, _ = quant_weight(module.weight.detach().clone(), bits, group, "sym", return_int=True)
            weight = integers.unflatten(1, (-1, group)) * scale[..., None]
            layers[name] = QuantizedLinear(weight.flatten(1), scale, bits)
    return layers


@contextmanager
def patched_for_inc(linear: PreTrainedModel) -> Iterator["OperatorTable"]:
    """Let `INCQuantizer` smooth and calibrate a prepared model inside a `with` block; yield the table of operators in INC's log.

    Inside, the model can be traced (see `_traceable`), the range of an input has 256 steps, and what INC writes beside its result goes
    into a scratch folder. At the end what INC would keep alive is freed, and an error that it caught is raised: an interrupt, a lack of
    memory, or a RuntimeError that names the reason.
    """
    from neural_compressor.adaptor import pytorch
    from neural_compressor.utils.utility import set_workspace
    from torch.ao.quantization.fx.utils import assert_and_get_unique_device

    table = OperatorTable()
    with tempfile.TemporaryDirectory() as scratch, _raise_what_inc_catches(table), _traceable(linear), table.listening():
        set_workspace(scratch)
        # On a CPU without VNNI INC divides the range of an input into 128 steps, so that sums of two products stay within 16 bits; here
        # `keep_sums_in_16_bits` adjusts the weights instead. INC has no setting for it, only a constant that it computes at import.
        with _changed(pytorch, REDUCE_RANGE=False):
            yield table
    if hasattr(assert_and_get_unique_device, "cache_clear"):  # newer torch caches its answer for each module, which keeps them alive
        assert_and_get_unique_device.cache_clear()
    give_back_memory()  # INC's copies of the model are in reference cycles


@contextmanager
def _changed(target: Any, **attributes: Any) -> Iterator[None]:
    """Give an object other attributes inside a `with` block."""
    kept = {name: getattr(target, name) for name in attributes}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(target, name, value)


class OperatorTable(logging.Handler):
    """The table in INC's log of how many operators of each kind it quantized. errors: those that INC caught, and only logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.errors: list[BaseException] = []
        self._lines: list[str] = []
        self._is_ours = False

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, Exception):
            self.errors.append(record.msg)
        line = record.getMessage()
        if "Statistics" in line:  # the head of a table
            self._is_ours = "Mixed Precision" in line
            self._lines = [] if self._is_ours else self._lines  # a tuning round before this one wrote one as well
        if self._is_ours and line.startswith(("|", "+")):
            self._lines.append(line)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Read INC's log inside a `with` block; nothing of it is printed meanwhile."""
        logger = logging.getLogger("neural_compressor")
        level = logger.level
        logger.setLevel(logging.INFO)
        with _changed(logger, handlers=[self], propagate=False):
            try:
                yield
            finally:
                logger.setLevel(level)


@contextmanager
def _traceable(linear: PreTrainedModel) -> Iterator[None]:
    """Make the model traceable by `torch.jit.trace` inside a `with` block, with its activations hidden.

    INC finds the layers to smooth by tracing, and skips smoothing without an error if tracing fails. Only GPT-2 models are smoothed, so
    other models stay as they are.
    """
    with ExitStack() as changes:
        if isinstance(linear, GPT2LMHeadModel):
            blocks: Any = linear.transformer.h
            for block in blocks:
                changes.enter_context(_changed(block.mlp, act=_HiddenActivation(block.mlp.act)))
            changes.enter_context(_changed(linear.config, return_dict=False, use_cache=False))
            if at_least("transformers", "4.53"):  # since then masks are built by `vmap`, which a trace can't hold; optimum's are not
                from optimum.exporters.onnx.model_patcher import eager_mask_without_vmap, sdpa_mask_without_vmap
                from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

                for name, without_vmap in (("sdpa", sdpa_mask_without_vmap), ("eager", eager_mask_without_vmap)):
                    changes.callback(MASKS.register, name, MASKS[name])
                    MASKS.register(name, without_vmap)
        yield


class _HiddenActivation(nn.Module):
    """An activation that INC does not recognize: it would smooth through a ReLU, for example, into the Linear before.

    And it would keep an activation between two Linears in INT8 and report no range for the next input. In the exported graph it is float.
    """

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a tensor, got {type(x).__name__}")  # torch.fx passes a proxy
        return self.activation(x) + 0  # torch.jit.trace sees a sum, and INC smooths nothing through a sum


@contextmanager
def _raise_what_inc_catches(table: OperatorTable) -> Iterator[None]:
    """Raise at the end of a `with` block what INC caught inside it: INC goes on after any error, an interrupt included."""
    from neural_compressor import quantization

    time_limit, caught = quantization.time_limit, []

    @contextmanager
    def watched(seconds: float) -> Iterator[None]:  # INC tunes inside this, and catches everything around it
        try:
            with time_limit(seconds):
                yield
        except (KeyboardInterrupt, Exception) as error:
            caught.append(error)

    try:
        with _changed(quantization, time_limit=watched):
            yield
    except Exception:
        if not caught:
            raise
    for error in (*caught, *table.errors):
        raise_cause(error)
    if caught:
        tries = ", after ".join(f"{type(error).__name__}: {text_of(error)}" for error in chain_of(caught[0]))
        raise RuntimeError(f"INC failed: {tries}") from caught[0]
