"""Stage 4: INC calibrates, OpenVINO runs: the fine-tuned model in INT8 on the CPU, beside itself in FP32."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2opt.decoding.prompt_lookup import PromptLookup
from gpt2opt.decoding.text import window_length
from gpt2opt.export.openvino import export_ir
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.quantize.gate import Sensitivity
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.quantize.recipes import RECIPES
from gpt2opt.run.record import Measurement
from gpt2opt.run.recorder import Run
from gpt2opt.runtime.audit import Int8Audit
from gpt2opt.runtime.compile import cpu_properties
from gpt2opt.runtime.generate import generate_from_ir
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import read_manifest

SMALL_MACHINE_BYTES = 4_000_000_000
"""Memory of the machine that stage 4 is for."""


def run_quantize(run: Run) -> Measurement:
    """Quantize the fine-tuned model, prove that it is INT8, and measure it.

    Controls: the same model in FP32 IR, same CPU and runtime; and INT8 without smoothing and gate, for what these are worth.
    """
    model = run.load("Fine-tuned")
    int8, naive, fp32 = (run.folder(name) for name in ("INT8", "INT8, naive", "FP32"))
    calibration = prepare_calibration_dataset(
        [document.text for document in run.texts.calibration], run.tokenizer, limit=run.settings.calibration_sequences
    )
    quantized = quantize_int8(model, run.tokenizer, calibration, int8)
    quantize_int8(model, run.tokenizer, calibration, naive, "w8a8-naive")
    export_ir(prepare_for_export(model), run.tokenizer, fp32)
    run.measure("FP32", fp32, optimum_generates_the_same=optimum_generates_the_same(run, fp32))
    measured = run.measure("INT8", int8, **int8_facts(run, int8, quantized.audit, quantized.sensitivity))
    run.measure("INT8, naive", naive)
    return measured


def int8_facts(run: Run, folder: Path, audit: Int8Audit, sensitivity: Sensitivity | None) -> dict[str, Any]:
    """Return what the record keeps of an INT8 model: the recipe, the audit, the sensitivities, and what its runtime can do."""
    return {
        "recipe": RECIPES["w8a8"],
        "audit": audit,
        "sensitivity": sensitivity,
        "int8_matmuls": len(audit.expected) - len(audit.failures),
        "expected_matmuls": len(audit.expected),
        "int8_share_of_bytes": audit.int8_share,
        "runtime_properties": cpu_properties(kv_cache=read_manifest(folder).kv_cache),
        "prompt_lookup": prompt_lookup_facts(run, folder),
        "runs_in_4_gb": generate_within(SMALL_MACHINE_BYTES, folder, run.workload.longest_prompt, run.settings.new_tokens),
    }


def prompt_lookup_facts(run: Run, folder: Path) -> dict[str, Any]:
    """Generate from the prompt of the run, plainly and by prompt lookup: the same tokens in fewer steps."""
    ids = np.array([run.workload.prompt])
    context = window_length(run.tokenizer)
    count = min(context // 4, context - ids.shape[1])
    model = load_ir(folder)
    plain = model.generate(ids, count)[0].tolist()
    lookup = PromptLookup(model.decoder(ids))
    return {"new_tokens": count, "same_tokens": lookup.generate(count) == plain, "accepted": lookup.accepted}


def generate_within(limit_bytes: int, folder: Path, ids: list[int], new_tokens: int) -> dict | None:
    """Generate from an IR in a process that may not map more than `limit_bytes`, and say whether that was enough.

    Returns:
        The limit, what was asked for, whether it was done or the error, and the peaks; None where there is no such limit (it is Linux's).
    """
    if sys.platform != "linux":
        return None
    facts = {"limit_bytes": limit_bytes, "prompt_tokens": len(ids), "new_tokens": new_tokens}
    try:
        child = in_fresh_process(generate_from_ir, str(folder), ids, new_tokens, address_space_bytes=limit_bytes)
    except RuntimeError as error:
        return {**facts, "done": False, "error": str(error).splitlines()[-1].strip()}
    peaks = {"peak_address_space_bytes": child.peak_address_space_bytes, "peak_rss_bytes": child.peak_rss_bytes}
    return {**facts, "done": True, "error": None, **peaks}


def optimum_generates_the_same(run: Run, folder: Path) -> bool:
    """Load a directory with optimum-intel's own class, as others will, and compare its greedy tokens with our runtime's.

    Only a float directory has to give the same: an INT8 one is computed by other kernels, and a quantizer makes a step of any difference.
    """
    from optimum.intel import OVModelForCausalLM

    ids = torch.tensor([run.workload.prompt])
    count = run.settings.new_tokens
    theirs = OVModelForCausalLM.from_pretrained(folder, ov_config=cpu_properties())
    theirs.generation_config.eos_token_id = None  # go on after end-of-text, as our runtime does
    generated = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=run.tokenizer.eos_token_id
    )
    return generated[0, ids.shape[1] :].tolist() == load_ir(folder).generate(ids.numpy(), count)[0].tolist()
