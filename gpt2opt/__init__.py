"""GPT-2 through four stages: profiled in FP16, pruned, fine-tuned, and run in INT8 on a small CPU. Each stage is measured.

The names below load on first use: `import gpt2opt` alone loads neither torch nor openvino.
"""

import importlib
import sys
from typing import Any

from gpt2opt.environment import check_python, leave_home_alone, let_waiting_threads_sleep
from gpt2opt.moved import RENAMED, MovedNames

check_python()
leave_home_alone()
let_waiting_threads_sleep()
sys.meta_path.append(MovedNames())

_NAMES = {
    "apps.deployed.model": "GPT2Deployed",
    "apps.doctor.checks": "check_machine",
    "decoding.generation": "generate",
    "decoding.settings": "DecodingSettings",
    "environment": "device quiet",
    "export.openvino": "export_ir",
    "finetune": "batch_sizes fused_gelu loss_curves prepare_tokenizer_for_padding tokenize_dataset",
    "measure.memory": "peak_ram peak_vram",
    "measure.quality": "perplexity prepare_text",
    "measure.trace": "read_trace record_trace trace_handler",
    "prune": "head_importance importance_batches prune_attention_heads pruned_heads",
    "quantize.fake_quant": "fake_quantize",
    "quantize.gate": "apply_gate",
    "quantize.inc": "patched_for_inc read_inc_result",
    "quantize.int8": "prepare_calibration_dataset quantize_int8 split_calibration",
    "quantize.linear": "prepare_for_export",
    "quantize.ranges": "smooth_untied_head",
    "quantize.recipes": "RECIPES int8_config",
    "report.profile.flame": "flame_graph",
    "run.published": "compare_with_published",
    "run.record": "read_record",
    "run.recorder": "start_run",
    "runtime.audit": "audit_int8",
    "runtime.ir_model": "load_ir",
    "torch_model": "generate_from_torch generate_tokens load_fp16_model logits_of",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        raise AttributeError(f"gpt2opt.{name} is now {RENAMED[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2opt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gpt2opt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
