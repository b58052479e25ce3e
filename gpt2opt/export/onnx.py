"""Write a torch GPT-2 as ONNX with a retained KV cache, for `runtime.onnx_model`."""

from pathlib import Path
from typing import Any

from gpt2opt.export.openvino import kept_heads_config
from gpt2opt.sources.gpt2 import check_finite
from gpt2opt.storage import new_folder


def export_onnx(model: Any, tokenizer: Any, out_dir: Path | str) -> Path:
    """Write an FP32 GPT-2 as ONNX with its KV cache, config and tokenizer; return the folder. It appears whole or not at all.

    Inputs are `input_ids` and `position_ids` (B, T), `attention_mask` (B, past + T) and `past_key_values.LAYER.key` and `.value`
    (B, H, past, D). Outputs are the logits (B, 1, V) of the last position and `present.LAYER.key` and `.value` (B, H, past + T, D).
    """
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.onnx.model_configs import GPT2OnnxConfig

    check_finite(model)
    configs = {"model": kept_heads_config(model, GPT2OnnxConfig)}
    # Only the last position's logits, as `logits_to_keep=1` gives them in torch.
    with model.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0][:, -1:],)), new_folder(out_dir) as partial:
        onnx_export_from_model(model, partial, task="text-generation-with-past", custom_onnx_configs=configs, do_validation=False)
        tokenizer.save_pretrained(partial)
    return Path(out_dir)
