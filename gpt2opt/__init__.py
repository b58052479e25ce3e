"""GPT-2 through four stages: profiled in FP16, pruned, fine-tuned, and run in INT8 on a small CPU. Each stage is measured.

The names below load on first use: `import gpt2opt` alone loads neither torch nor openvino.
"""

import importlib
from typing import Any

from gpt2opt.environment import check_python, leave_home_alone, let_waiting_threads_sleep

check_python()
leave_home_alone()
let_waiting_threads_sleep()

_NAMES = {
    "decoding.generation": "generate stream",
    "decoding.settings": "DecodingSettings",
    "apps.deployed.model": "GPT2Deployed",
    "apps.doctor.checks": "check_machine",
    "environment": "device give_back_memory quiet set_seed",
    "finetune": "TRAINING VALIDATION batch_sizes create_training_arguments fused_gelu loss_curves prepare_tokenizer_for_padding "
    "run_fine_tuning tokenize_dataset",
    "measure.latency": "compare_latency measure_latency",
    "measure.memory": "in_fresh_process peak_ram peak_vram",
    "measure.quality": "measure_agreement perplexity prepare_text",
    "measure.trace": "read_trace record_trace trace_handler",
    "report.profile.flame": "flame_graph",
    "report.profile.page": "write_pages",
    "prune": "head_importance importance_batches prune_attention_heads pruned_heads",
    "export.openvino": "export_ir",
    "quantize.fake_quant": "fake_quantize",
    "quantize.gate": "apply_gate",
    "quantize.inc": "patched_for_inc read_inc_result",
    "quantize.int8": "prepare_calibration_dataset quantize_int8 split_calibration",
    "quantize.linear": "prepare_for_export",
    "quantize.recipes": "RECIPES Recipe int8_config",
    "quantize.ranges": "smooth_untied_head",
    "run.record": "read_record",
    "report.charts": "plot_importance plot_latency plot_loss plot_memory plot_operators plot_perplexity plot_sensitivity plot_tradeoff",
    "report.conclusions": "conclude_finetune conclude_profile conclude_prune conclude_quantize conclude_run machine_changes",
    "report.page": "write_report",
    "report.tables": "audit_table environment_table explain_products memory_table perplexity_ratio quality_table samples_table "
    "speed_table stage_table stand_in_notice summary_table",
    "apps.deployed.report": "plot_scaling scaling_table statistics_table",
    "report.tensorboard": "write_tensorboard",
    "runtime.audit": "audit_int8",
    "runtime.generate": "continue_text",
    "runtime.ir_model": "load_ir",
    "sources.models": "find_model load_model",
    "sources.texts": "find_texts",
    "apps.commands": "finetune_model score_model",
    "run.pipeline": "generate_within load_fp16_model optimum_generates_the_same prompt_lookup reload_difference",
    "run.published": "compare_with_published",
    "run.recorder": "start_run",
    "torch_model": "TorchModel generate_from_torch generate_tokens logits_of",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2opt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gpt2opt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
