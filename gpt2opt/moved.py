"""Old names and where they are now: an import of one ends in one line that says so."""

from importlib.abc import MetaPathFinder

NAMES = {
    "apps.commands": "finetune_model score_model",
    "apps.deployed.report": "plot_scaling scaling_table statistics_table",
    "decoding.generation": "stream",
    "environment": "give_back_memory",
    "finetune": "TRAINING VALIDATION create_training_arguments run_fine_tuning",
    "measure.latency": "compare_latency",
    "measure.memory": "in_fresh_process",
    "measure.quality": "measure_agreement",
    "quantize.recipes": "Recipe",
    "report.charts": "plot_importance plot_latency plot_loss plot_memory plot_operators plot_perplexity plot_sensitivity plot_tradeoff",
    "report.conclusions": "conclude_finetune conclude_profile conclude_prune conclude_quantize machine_changes",
    "report.page": "write_report",
    "report.profile.page": "write_pages",
    "report.tables": "audit_table environment_table explain_products memory_table perplexity_ratio quality_table samples_table "
    "speed_table stage_table stand_in_notice summary_table",
    "report.tensorboard": "write_tensorboard",
    "run.pipeline": "optimum_generates_the_same reload_difference run_finetune run_profile run_prune run_quantize",
    "sources.models": "find_model load_model",
    "sources.texts": "find_texts",
    "torch_model": "TorchModel",
}
"""Module -> names that were importable from `gpt2opt` itself and still have their name there."""
RENAMED = {
    "continue_text": "gpt2opt.generate",
    "carry_over": "gpt2opt.read_inc_result",
    "generate_text": "gpt2opt.generate",
    "int8_facts": "gpt2opt.run.pipeline: prompt_lookup, generate_within",
    "linearize": "gpt2opt.prepare_for_export",
    "measure_latency": "gpt2opt.measure.latency.compare_latency",
    "profile_facts": "gpt2opt.compare_with_published",
    "readable_by_inc": "gpt2opt.patched_for_inc",
    "set_seed": "transformers.set_seed",
    "stream_text": "gpt2opt.decoding.generation.stream",
}
MODULES = {
    "cgroup": "environment",
    "decoding.text_generation": "decoding.generation",
    "model_server": "export.model_server",
    "profile": "report.profile",
    "quantize.calibration": "quantize.inc",
    "quantize.export": "export.openvino",
    "quantize.sensitivity": "quantize.gate",
    "record": "run.record",
    "runtime.qaic": "export.qaic",
    "sources.docstrings": "sources.documentation",
    "stages": "run",
    "stats": "measure.stats",
    "runtime.generate": "runtime.ir_model",
    "runtime.counters": "measure.ir_trace",
    "runtime.passes": "runtime.compile",
    "window": "versions",
}
"""Modules by their old and their new names, both in `gpt2opt`."""
RENAMED |= {name: f"gpt2opt.{module}.{name}" for module, names in NAMES.items() for name in names.split()}
RENAMED |= {old: f"gpt2opt.{new}" for old, new in MODULES.items()}


class MovedNames(MetaPathFinder):
    """Asked last, when nothing of a name was found."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raise ImportError, with the new name, for what was moved."""
        package, _, name = fullname.partition(".")
        if package == "gpt2opt" and (now := RENAMED.get(name)):
            raise ImportError(f"{fullname} is now {now}")
