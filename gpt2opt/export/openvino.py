"""Write a torch GPT-2 as a stateful OpenVINO IR directory, with pruned heads and, if it is fake-quantized, with integer weights."""

import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from openvino import Core, Model, save_model
from openvino import opset13 as ops
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.environment import at_least
from gpt2opt.quantize.fake_quant import quantized_linears
from gpt2opt.runtime.graph import matmuls, over_same_memory, stored_weight
from gpt2opt.runtime.manifest import IR_NAME, write_manifest
from gpt2opt.sources.gpt2 import check_finite, check_ids, heads_per_layer, source_weights
from gpt2opt.storage import new_folder


def export_ir(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path | str, kv_cache: str = "f16") -> Path:
    """Write an FP32 GPT-2, fake-quantized or not, as stateful IR with its KV cache, config, tokenizer and manifest; return `out_dir`.

    Weights behind a fake-quantizer are stored as integers. The directory appears whole or not at all.

    Args:
        out_dir: a new or empty folder, or one that was written here before.
        kv_cache: the type that `load_ir` is to keep keys and values in, `f16` or `u8`; a float model always gets `f32`.

    Raises:
        ValueError: a weight is NaN or infinite, the tokenizer has ids without an embedding, or layers kept different numbers of heads.
    """
    from openvino._offline_transformations import compress_quantize_weights_transformation

    check_finite(model)
    check_ids(tokenizer, model.config.vocab_size)
    _keep_dropped_names()
    from optimum.exporters.openvino import export_from_model

    try:
        from optimum.exporters.openvino.model_configs import GPT2OpenVINOConfig as OwnConfig
    except ImportError:  # older optimum-intel exports GPT-2 by the config of ONNX
        from optimum.exporters.onnx.model_configs import GPT2OnnxConfig as OwnConfig

    linears = quantized_linears(model)
    with new_folder(out_dir) as folder, tempfile.TemporaryDirectory(dir=folder) as exported:
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
        write_manifest(folder, weights, kept_in, source_weights(model))
    return Path(out_dir)


def _keep_dropped_names() -> None:
    """Let `openvino.runtime` lead to `openvino`: older optimum-intel imports it by that name, which OpenVINO 2026 dropped."""
    if not at_least("optimum-intel", "1.27"):
        for name in ("", ".exceptions", ".passes", ".utils", ".utils.types"):
            sys.modules.setdefault(f"openvino.runtime{name}", importlib.import_module(f"openvino{name}"))


def kept_heads_config(model: Any, base: type):
    """Build an export config whose KV shapes follow the heads that are left; `config.n_head` still counts the pruned ones.

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


def group_scales(graph: Model) -> None:
    """Store weights with several scales per row as (O, groups, inputs of a group), the shape in which the CPU plugin decompresses them."""
    for node in matmuls(graph):
        reshape = node.input_value(1).get_node()
        if reshape.get_type_name() != "Reshape":
            continue
        outputs, inputs = (size.get_length() for size in node.get_input_partial_shape(1))
        multiply = reshape.input_value(0).get_node()
        scale = multiply.input_value(1).get_node().get_data().reshape(outputs, -1, 1)
        integers = over_same_memory(stored_weight(node), [outputs, scale.shape[1], inputs // scale.shape[1]])
        decompressed = ops.multiply(ops.convert(integers, "f32"), ops.constant(scale))
        node.input(1).replace_source_output(ops.reshape(decompressed, np.array([outputs, inputs]), False).output(0))
    graph.validate_nodes_and_infer_types()


def halve_positions(graph: Model) -> None:
    """Store the position embeddings, the largest table left in FP32, as FP16."""
    for node in graph.get_ordered_ops():
        table = node.input_value(0).get_node() if node.get_type_name() == "Gather" else None
        if table and table.get_type_name() == "Constant" and len(table.get_output_shape(0)) == 2 and "wpe" in node.get_friendly_name():
            half = ops.convert(ops.constant(table.get_data().astype(np.float16)), "f32")
            node.input(0).replace_source_output(half.output(0))
    graph.validate_nodes_and_infer_types()
