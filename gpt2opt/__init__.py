"""GPT-2 through four stages: profiled in FP16, pruned, fine-tuned, and run in INT8 on a small CPU. Each stage is measured.

The names below load on first use: `import gpt2opt` alone loads neither torch nor openvino.
"""

import importlib
from typing import Any

from gpt2opt.environment import check_python, leave_home_alone

check_python()
leave_home_alone()

_HOMES = {
    "audit_int8": "runtime.audit",
    "Recipe": "quantize.recipes",
    "export_ir": "quantize.export",
    "continue_text": "runtime.generate",
    "load_ir": "runtime.ir_model",
    "compare_latency": "measure.latency",
    "measure_latency": "measure.latency",
    "in_fresh_process": "measure.memory",
    "peak_ram": "measure.memory",
    "peak_vram": "measure.memory",
    "measure_agreement": "measure.quality",
    "perplexity": "measure.quality",
    "prepare_text": "measure.quality",
    "read_trace": "measure.trace",
    "record_trace": "measure.trace",
    "trace_handler": "measure.trace",
    "plot_sensitivity": "report.charts",
    "plot_importance": "report.charts",
    "plot_latency": "report.charts",
    "plot_loss": "report.charts",
    "plot_memory": "report.charts",
    "plot_operators": "report.charts",
    "plot_perplexity": "report.charts",
    "plot_tradeoff": "report.charts",
    "write_report": "report.page",
    "read_record": "record",
    "quiet": "environment",
    "audit_table": "report.tables",
    "environment_table": "report.tables",
    "memory_table": "report.tables",
    "quality_table": "report.tables",
    "samples_table": "report.tables",
    "speed_table": "report.tables",
    "perplexity_ratio": "report.tables",
    "stand_in_notice": "report.tables",
    "stage_table": "report.tables",
    "summary_table": "report.tables",
    "write_tensorboard": "report.tensorboard",
    "find_model": "sources.models",
    "load_model": "sources.models",
    "find_texts": "sources.texts",
    "score_model": "stages.score",
    "finetune_model": "stages.finetune",
    "run_finetune": "stages.finetune",
    "tokenize_dataset": "stages.finetune",
    "load_fp16_model": "stages.profile",
    "run_profile": "stages.profile",
    "head_importance": "stages.prune",
    "prune_attention_heads": "stages.prune",
    "run_prune": "stages.prune",
    "prepare_calibration_dataset": "stages.quantize",
    "quantize_int8": "stages.quantize",
    "run_quantize": "stages.quantize",
    "start_run": "stages.run",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2opt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gpt2opt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
