"""Write a torch GPT-2 as a stateful OpenVINO IR directory, with pruned heads and, if it is fake-quantized, with integer weights."""

import importlib
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from gpt2opt.environment import at_least
from gpt2opt.export.passes import group_scales, halve_positions
from gpt2opt.quantize.fake_quant import FakeQuantLinear, quantized_linears
from gpt2opt.runtime.manifest import write_manifest
from gpt2opt.sources.gpt2 import check_finite, check_ids, heads_per_layer
from gpt2opt.sources.models import source_weights
from gpt2opt.storage import new_folder

IR_NAME = "openvino_model.xml"


def export_ir(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path, kv_cache: str = "f16") -> Path:
    """Write `model` as stateful IR with its KV cache, config, tokenizer and manifest; return `out_dir`.

    Weights behind a fake-quantizer are stored as integers. The directory appears whole or not at all.

    Args:
        model: FP32 GPT-2, fake-quantized or not; heads may be pruned, the same number in every layer.
        out_dir: a new or empty folder, or one that was written here before.
        kv_cache: the type that `load_ir` is to keep keys and values in, `f16` or `u8`; a float model always gets `f32`.

    Raises:
        ValueError: a weight is NaN or infinite, the tokenizer has ids without an embedding, layers kept different numbers of heads, or
            `out_dir` can't be written.
    """
    check_finite(model)
    check_ids(tokenizer, model.config.vocab_size)
    out_dir = Path(out_dir)
    with new_folder(out_dir) as partial:
        write_ir(model, tokenizer, partial, kv_cache)
    return out_dir


def write_ir(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, folder: Path, kv_cache: str) -> None:
    """Write what `export_ir` writes, into an empty folder that is there already."""
    from openvino import Core, save_model
    from openvino._offline_transformations import compress_quantize_weights_transformation

    _keep_dropped_names()
    from optimum.exporters.openvino import export_from_model

    try:
        from optimum.exporters.openvino.model_configs import GPT2OpenVINOConfig as OwnConfig
    except ImportError:  # older optimum-intel exports GPT-2 by the config of ONNX
        from optimum.exporters.onnx.model_configs import GPT2OnnxConfig as OwnConfig

    linears = quantized_linears(model)
    with tempfile.TemporaryDirectory(dir=folder) as exported:
        export_from_model(
            model, exported, task="text-generation-with-past", stateful=True, preprocessors=[tokenizer],
            custom_export_configs={"model": kept_heads_config(model, OwnConfig)},
        )  # fmt: skip
        graph = Core().read_model(Path(exported, IR_NAME))
        if linears:
            compress_quantize_weights_transformation(graph)
            group_scales(graph)
            halve_positions(graph)
        shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("openvino_model.*"), dirs_exist_ok=True)
        save_model(graph, folder / IR_NAME, compress_to_fp16=False)
        bits = {8 if linear.highest == 127 else 4 for name, linear in linears.items() if name != "lm_head"}
        weights, kept_in = (f"i{min(bits)}", kv_cache) if bits else ("f32", "f32")
        write_manifest(folder, weights, kept_in, has_centered_residual(model), source_weights(model))


def _keep_dropped_names() -> None:
    """Let `openvino.runtime` lead to `openvino`: OpenVINO 2026 dropped the name, under which older optimum-intel imports it."""
    if not at_least("optimum-intel", "1.27"):
        for name in ("", ".exceptions", ".passes", ".utils", ".utils.types"):
            sys.modules.setdefault(f"openvino.runtime{name}", importlib.import_module(f"openvino{name}"))


@torch.inference_mode()
def has_centered_residual(model: GPT2LMHeadModel) -> bool:
    """Return whether what the blocks add to the residual stream has no mean over the channels, judged by the weights.

    `linearize` centers the projections. Rounding to the integer grid then leaves errors of at most half a step in each of O rows, whose
    mean is about step ÷ √(12 · O); up to step ÷ √O counts as rounding here. The mean of a weight that was not centered is at least about
    its standard deviation ÷ √O, and a standard deviation is many steps of an 8-bit grid.
    """
    projections = [projection for block in model.transformer.h for projection in (block.attn.c_proj, block.mlp.c_proj)]
    return all(_is_centered(projection) for projection in projections)


def _is_centered(projection: nn.Module) -> bool:
    weight = projection.weight.T if isinstance(projection, Conv1D) else projection.weight
    float_error = 1e-6 * _rms(weight)
    rounding = _rms(projection.weight_scale) / len(weight) ** 0.5 if isinstance(projection, FakeQuantLinear) else 0.0
    bias_error = 1e-5 * (_rms(projection.bias) + _rms(weight))
    return _rms(weight.mean(0)) <= rounding + float_error and abs(projection.bias.mean().item()) <= bias_error


def _rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def kept_heads_config(model: GPT2LMHeadModel, base: type):
    """Build an export config of a kind whose KV shapes follow the heads that are left; `config.n_head` still counts the pruned ones.

    Args:
        model: the GPT-2 that is exported.
        base: optimum's config of GPT-2 for an exporter, `GPT2OpenVINOConfig` or `GPT2OnnxConfig`.
    """
    from optimum.utils import NormalizedTextConfig

    heads, head_dim = heads_per_layer(model), model.transformer.h[0].attn.head_dim

    class KeptHeads(NormalizedTextConfig):
        NUM_LAYERS = "n_layer"
        num_attention_heads = heads
        hidden_size = heads * head_dim

    class KeptHeadsConfig(base):
        NORMALIZED_CONFIG_CLASS = KeptHeads

    return KeptHeadsConfig(model.config, task="text-generation", use_past=True, use_past_in_inputs=True)
