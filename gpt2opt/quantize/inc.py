"""What Intel Neural Compressor finds for a GPT-2: weights on their integer grid, ranges of the inputs, smoothing of the LayerNorms.

`INCQuantizer` does the work. Its own INT8 modules can't be exported, so its results are read back and carried into a graph that can.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gpt2opt import environment
from gpt2opt.quantize.fake_quant import QuantizedLinear


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized; the choices in one place.

    weight_bits: 8 or 4, of the block matmuls. The head, which is the token embedding too, is always in INT8.
    group_size: inputs that share a weight scale; None: one scale for an output channel.
    activations: whether the inputs of matmuls are quantized, u8 per tensor, as far as the gate lets them be.
    smooth_alpha: how far SmoothQuant moves the range of an activation into the weights, from 0 to 1 (Xiao et al. 2022); None: not at all.
    activation_range: `minmax`, `kl` (both INC's) or `percentile`, see `clip_to_percentiles`.
    head_input: whether the head's input is quantized too. It reads one row of a sequence, so that gains nothing, and it costs the most.
    max_kl: nats a token that quantized activations may cost in all; None: no gate. See `quantize.sensitivity`.

    The defaults were chosen on the bundled model, so that it expects the same token as its reference model on at least 97% of positions, as
    it comes and made hard. `gpt2opt recipes` compares them with others.
    """

    weight_bits: int = 8
    group_size: int | None = None
    activations: bool = True
    smooth_alpha: float | None = 0.8
    activation_range: str = "minmax"
    head_input: bool = False
    max_kl: float | None = 0.0008


@dataclass(frozen=True)
class InputRange:
    """The lowest and the highest value (I,) that calibration saw of each input of a Linear."""

    lowest: Tensor
    highest: Tensor


RECIPES = {
    "w8a8": Recipe(),
    "w8a8-naive": Recipe(smooth_alpha=None, head_input=True, max_kl=None),
    "w8": Recipe(activations=False),
    "w4": Recipe(weight_bits=4, group_size=64, activations=False),
}


def calibrate(linear: GPT2LMHeadModel, calibration: Dataset, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Quantize every Linear of a linearized model, and smooth its LayerNorms in place if the recipe says so.

    What comes out is for every CPU: one with VNNI or AMX may quantize what one without them runs, see `keep_sums_in_16_bits`.

    Args:
        linear: from `linearize`. With smoothing its LayerNorms and the weights behind them change; its function does not.
        calibration: column `input_ids`, rows of one length.
        recipe: what to do.

    Returns:
        Name of a Linear -> what it becomes.

    Raises:
        RuntimeError: INC did not smooth what it was asked to, or quantized nothing.
    """
    if not recipe.activations:
        return _weight_only(linear, recipe)
    found = calibrate_static(linear, calibration, recipe)
    inputs = [name for name, layer in found.items() if layer.input_scale is not None]
    for name, seen in observe_inputs(linear, calibration, inputs).items():
        found[name] = keep_sums_in_16_bits(found[name], linear.get_submodule(name).weight, seen)
    return found


def calibrate_static(linear: GPT2LMHeadModel, calibration: Dataset, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Do what `calibrate` does for weights and activations, but leave the weights as INC rounds them, for sums of 32 bits."""
    if recipe.smooth_alpha is not None:
        _smooth_untied_head(linear, calibration, recipe.smooth_alpha)
    state = _static(linear, calibration, recipe)
    if recipe.smooth_alpha is not None:
        _take_over_smoothing(linear, state)
    found = _read_static(state)
    del state  # it holds the embedding
    if recipe.activation_range == "percentile":
        found = clip_to_percentiles(linear, calibration, found)
    if not recipe.head_input:
        found["lm_head"] = dataclasses.replace(found["lm_head"], input_scale=None)
    return found


def _static(linear: GPT2LMHeadModel, calibration: Dataset, recipe: Recipe) -> dict:
    from neural_compressor.config import PostTrainingQuantConfig

    smooth = {"smooth_quant": True, "smooth_quant_args": {"alpha": recipe.smooth_alpha, "folding": True}}
    algorithm = "kl" if recipe.activation_range == "kl" else "minmax"
    config = PostTrainingQuantConfig(
        approach="static",
        excluded_precisions=["bf16"],  # else a CPU with bf16 arithmetic may get other weights than one without
        recipes=smooth if recipe.smooth_alpha is not None else {},
        op_type_dict={
            "Linear": {"activation": {"algorithm": [algorithm]}},
            # The token embedding shares the head's INT8 tensor in the exported graph; positions stay as they are.
            "Embedding": {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}},
        },
    )
    with _traceable(linear), _full_range():
        return _fit(linear, config, calibration)


def _fit(linear: GPT2LMHeadModel, config, calibration: Dataset | None) -> dict:
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
def _traceable(linear: GPT2LMHeadModel) -> Iterator[None]:
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
def _full_range() -> Iterator[None]:
    """Let INC lay the range of an input over 256 steps meanwhile. On a CPU without VNNI it takes 128, against sums that leave 16 bits; here
    the weights make room instead. INC has no setting for it, only a constant that it works out when it is imported."""
    from neural_compressor.adaptor import pytorch

    kept, pytorch.REDUCE_RANGE = pytorch.REDUCE_RANGE, False
    try:
        yield
    finally:
        pytorch.REDUCE_RANGE = kept


def _take_over_smoothing(linear: GPT2LMHeadModel, state: dict) -> None:
    """Change the LayerNorms of a model to the smoothed ones in INC's state, and the weights behind them by as much the other way.

    Raises:
        RuntimeError: no LayerNorm differs; INC skips SmoothQuant without an error.
    """
    smoothed = 0
    for block, layer in enumerate(linear.transformer.h):
        for norm, projection in (("ln_1", layer.attn.c_attn), ("ln_2", layer.mlp.c_fc)):
            module = getattr(layer, norm)
            weight, bias = (state[f"transformer.h.{block}.{norm}.{name}"].float() for name in ("weight", "bias"))
            old, new = torch.stack([module.weight, module.bias]), torch.stack([weight, bias])
            # Where the gain is zero the bias tells the scale; where both are, the input is zero and no scale matters.
            row = (new[0].abs() < new[1].abs()).long()[None]
            before, after = old.gather(0, row)[0], new.gather(0, row)[0]
            scale = torch.where(after != 0, before / after, 1.0)
            smoothed += not torch.allclose(scale, torch.ones_like(scale))
            module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
            projection.weight = nn.Parameter(projection.weight * scale)
    if not smoothed:
        raise RuntimeError("INC skipped SmoothQuant: none of the LayerNorms changed; is peft installed?")


def _smooth_untied_head(linear: GPT2LMHeadModel, calibration: Dataset, alpha: float) -> None:
    """Smooth the last LayerNorm and the head behind it, in place, where no embedding shares the head's weight. INC leaves them out.

    sⱼ = max|Xⱼ|^α / max|Wⱼ|^(1 − α), SmoothQuant's own formula (Xiao et al. 2022, equation 4).
    """
    head, norm = linear.lm_head, linear.transformer.ln_f
    if head.weight is linear.transformer.wte.weight:
        return
    seen = observe_inputs(linear, calibration, ["lm_head"])["lm_head"]
    largest_input = torch.maximum(seen.highest.abs(), seen.lowest.abs()).clamp(min=1e-5)
    largest_weight = head.weight.detach().abs().amax(0).clamp(min=1e-5)
    scale = largest_input**alpha / largest_weight ** (1 - alpha)
    norm.weight, norm.bias = nn.Parameter(norm.weight / scale), nn.Parameter(norm.bias / scale)
    head.weight = nn.Parameter(head.weight * scale)


def _read_static(state: dict) -> dict[str, QuantizedLinear]:
    """Read INC's state dict: beside each Linear's packed weight lie the scale and the zero point of its input."""
    suffix = "._packed_params._packed_params"
    found = {}
    for key in [key for key in state if key.endswith(suffix)]:
        module = key.removesuffix(suffix)
        packed, _ = state.pop(key)
        found[module.removesuffix(".module")] = QuantizedLinear(
            packed.dequantize(),
            packed.q_per_channel_scales().float()[:, None],
            8,
            state[f"{module}_input_scale_0"].item(),
            int(state[f"{module}_input_zero_point_0"].item()),
        )
    if not found:
        raise RuntimeError("INC quantized no Linear; is this a linearized model?")
    return found


def observe_inputs(linear: GPT2LMHeadModel, calibration: Dataset, names: Iterable[str]) -> dict[str, InputRange]:
    """Run the calibration rows and return the lowest and the highest value of each input of these Linears."""
    seen: dict[str, InputRange] = {}

    def watch(name: str, channels: Tensor) -> None:
        found = InputRange(channels.amin(0), channels.amax(0))
        before = seen.get(name, found)
        seen[name] = InputRange(torch.minimum(before.lowest, found.lowest), torch.maximum(before.highest, found.highest))

    _watch_inputs(linear, calibration, names, watch)
    return seen


def _watch_inputs(linear: GPT2LMHeadModel, calibration: Dataset, names: Iterable[str], watch: Callable[[str, Tensor], None]) -> None:
    """Call `watch` with what goes into each Linear (tokens, I) for every calibration row."""
    hooks = [
        linear.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0].flatten(0, -2)))
        for name in names
    ]
    try:
        with torch.inference_mode():
            for row in calibration["input_ids"]:
                linear(torch.tensor([row]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def clip_to_percentiles(
    linear: GPT2LMHeadModel, calibration: Dataset, found: dict[str, QuantizedLinear], share: float = 1e-4
) -> dict[str, QuantizedLinear]:
    """Lay each u8 grid over the range that leaves out that share of a row's values at either end, averaged over the rows.

    What lies outside is clipped, and what lies inside gets finer steps.
    """
    ends: dict[str, list[Tensor]] = {name: [] for name in found}

    def watch(name: str, channels: Tensor) -> None:
        values = channels.flatten()
        count = max(1, round(len(values) * share))
        ends[name].append(torch.stack([values.kthvalue(count).values, values.kthvalue(len(values) + 1 - count).values]))

    _watch_inputs(linear, calibration, found, watch)
    clipped = {}
    for name, layer in found.items():
        low, high = torch.stack(ends[name]).mean(0).tolist()
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255
        clipped[name] = dataclasses.replace(layer, input_scale=scale, input_zero_point=round(-low / scale))
    return clipped


def keep_sums_in_16_bits(found: QuantizedLinear, weight: Tensor, seen: InputRange) -> QuantizedLinear:
    """Widen the steps of a weight as far as a CPU needs that adds two u8 × i8 products in 16 bits before anything else.

    Such a CPU, without VNNI or AMX, saturates where a₀w₀ + a₁w₁ leaves [−32768, 32767], for neighbouring inputs 2j and 2j + 1.
    `gpt2opt recipes` measures what this costs on one that does not saturate.
    Halving all weights rules that out and costs a bit of every weight. Few inputs come near 255, though, so a channel's step
    only has to grow until the largest inputs that calibration saw don't saturate in it; most channels keep their 8 bits.

    Args:
        found: the layer in 8 bits.
        weight: (O, I) the float weight it was made from, so that it is rounded once and not twice.
        seen: its inputs.
    """
    largest = (torch.round(seen.highest / found.input_scale) + found.input_zero_point).clamp(0, 255)
    products = weight.detach() * largest
    if products.shape[1] % 2:
        products = torch.nn.functional.pad(products, (0, 1))
    pairs = torch.maximum(_pair_sums(products.clamp(min=0)), _pair_sums(-products.clamp(max=0)))
    limit = 32767 - 255  # rounding adds half a step to each of the two weights
    scale = torch.maximum(found.weight_scale, pairs.amax(1, keepdim=True) / limit)
    steps = torch.round(weight.detach() / scale).clamp(-128, 127)
    return dataclasses.replace(found, weight=steps * scale, weight_scale=scale)


def _pair_sums(products: Tensor) -> Tensor:
    return products.unflatten(1, (-1, 2)).sum(-1)


def _weight_only(linear: GPT2LMHeadModel, recipe: Recipe) -> dict[str, QuantizedLinear]:
    """Let INC round the weights to nearest, each group of inputs with a symmetric scale of its own; the head per channel in INT8."""
    from neural_compressor.config import PostTrainingQuantConfig

    layers = {name: module.weight.detach() for name, module in linear.named_modules() if isinstance(module, nn.Linear)}
    bits = {name: 8 if name == "lm_head" else recipe.weight_bits for name in layers}
    groups = {name: _group_size(weight.shape[1], None if name == "lm_head" else recipe.group_size) for name, weight in layers.items()}
    choices = {name: {"bits": bits[name], "group_size": groups[name] or -1, "scheme": "sym", "algorithm": "RTN"} for name in layers}
    config = PostTrainingQuantConfig(approach="weight_only", op_name_dict={name: {"weight": choice} for name, choice in choices.items()})
    state = _fit(linear, config, None)
    return {name: _read_rounded(name, weight, state[f"{name}.weight"], bits[name], groups[name]) for name, weight in layers.items()}


def _group_size(inputs: int, asked: int | None) -> int | None:
    """Return the largest group up to the asked size that divides the inputs evenly and that INC knows: of others it takes 32 in silence."""
    return max((size for size in (16, 32, 64, 128) if size <= (asked or 0) and inputs % size == 0), default=None)


def _read_rounded(name: str, weight: Tensor, rounded: Tensor, bits: int, group: int | None) -> QuantizedLinear:
    """Find the scales of a weight that INC has rounded and multiplied out again: a group's largest value lies on the last step.

    Raises:
        RuntimeError: the weight does not lie on such a grid, or it was not rounded at all.
    """
    grouped = rounded.reshape(len(rounded), -1, group or rounded.shape[1])
    largest = grouped.abs().amax(-1)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    steps = grouped / scale[..., None]
    if torch.equal(rounded, weight) or (steps - steps.round()).abs().max() > 1e-2:
        raise RuntimeError(f"INC did not round {name} to {bits} bits in groups of {group or rounded.shape[1]}")
    return QuantizedLinear(rounded, scale, bits)
