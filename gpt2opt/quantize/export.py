"""Write a torch GPT-2 as a stateful OpenVINO IR directory, with pruned heads and, where quantized, with integer weights."""

import shutil
import tempfile
from pathlib import Path

from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.quantize.fake_quant import quantized_linears
from gpt2opt.runtime import passes
from gpt2opt.runtime.manifest import write_manifest
from gpt2opt.sources.models import check_finite, heads_per_layer
from gpt2opt.storage import new_folder

IR_NAME = "openvino_model.xml"


def export_ir(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, out_dir: Path, kv_cache: str = "f16") -> Path:
    """Write `model` as stateful IR with its KV cache, config, tokenizer and manifest; return `out_dir`.

    Weights behind a fake-quantizer are stored as integers. The directory appears whole or not at all.

    Args:
        model: FP32 GPT-2, fake-quantized or not; heads may be pruned, the same number in every layer.
        out_dir: a new or empty folder, or one that was written here before.
        kv_cache: what `load_ir` is to keep keys and values in, `f16` or `u8`; of a float model it is `f32`.

    Raises:
        ValueError: a weight is NaN or infinite, layers kept different numbers of heads, or `out_dir` can't be written.
    """
    check_finite(model)
    out_dir = Path(out_dir)
    with new_folder(out_dir) as partial:
        write_ir(model, tokenizer, partial, kv_cache)
    return out_dir


def write_ir(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, folder: Path, kv_cache: str) -> None:
    """Write what `export_ir` does into an empty folder."""
    from openvino import Core, save_model
    from openvino._offline_transformations import compress_quantize_weights_transformation
    from optimum.exporters.openvino import export_from_model
    from optimum.exporters.openvino.model_configs import GPT2OpenVINOConfig

    linears = quantized_linears(model)
    with tempfile.TemporaryDirectory(dir=folder) as exported:
        export_from_model(
            model, exported, task="text-generation-with-past", stateful=True, preprocessors=[tokenizer],
            custom_export_configs={"model": kept_heads_config(model, GPT2OpenVINOConfig)},
        )  # fmt: skip
        graph = Core().read_model(Path(exported, IR_NAME))
        if linears:
            compress_quantize_weights_transformation(graph)
            passes.group_scales(graph)
            passes.halve_positions(graph)
        shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("openvino_model.*"), dirs_exist_ok=True)
        save_model(graph, folder / IR_NAME, compress_to_fp16=False)
        bits = {8 if linear.highest == 127 else 4 for name, linear in linears.items() if name != "lm_head"}
        write_manifest(folder, *((f"i{min(bits)}", kv_cache) if bits else ("f32", "f32")))


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
