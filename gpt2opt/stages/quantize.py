"""Stage 4: INC calibrates, OpenVINO runs: the fine-tuned model in INT8 on the CPU, beside itself in FP32."""

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.decoding.prompt_lookup import PromptLookup
from gpt2opt.environment import give_back_memory, has_int8_dot_product
from gpt2opt.errors import text_of
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.measure.quality import window_length
from gpt2opt.quantize.calibration import calibrate
from gpt2opt.quantize.export import export_ir, write_ir
from gpt2opt.quantize.fake_quant import fake_quantize, linearize
from gpt2opt.quantize.recipes import RECIPES, Recipe
from gpt2opt.quantize.sensitivity import Sensitivity, apply_gate
from gpt2opt.record import Measurement
from gpt2opt.runtime.audit import Int8Audit, audit_int8
from gpt2opt.runtime.compile import cpu_properties
from gpt2opt.runtime.generate import generate_from_ir
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import read_manifest
from gpt2opt.settings import check_whole, is_whole
from gpt2opt.sources.models import check_finite, check_ids
from gpt2opt.sources.texts import token_rows
from gpt2opt.stages.run import MIN_CALIBRATION_SEQUENCES, Run
from gpt2opt.storage import check_folder, new_folder

GATE_TOKENS = 2048
"""Tokens on which the gate compares, twice for each input: enough to tell sensitivity from noise, few enough to wait for."""
NO_DOT_PRODUCT = (
    "this CPU has neither VNNI nor AMX, so an INT8 product takes several instructions; `gpt2opt doctor` shows what INT8 gained on each "
    "kind of CPU"
)
UNKNOWN_DOT_PRODUCT = (
    "the system does not tell this CPU's instructions, so whether it has VNNI or AMX is not known: INT8 runs as on a CPU without them"
)

SMALL_MACHINE_BYTES = 4_000_000_000
"""Memory of the machine that stage 4 is for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantized:
    """What `quantize_int8` did. sensitivity is None where no input was to be quantized or no gate was asked for."""

    audit: Int8Audit
    sensitivity: Sensitivity | None


def prepare_calibration_dataset(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int | None = None, limit: int = 64
) -> Dataset:
    """Filter out empty texts and tokenize the rest into whole rows, without padding: padding would widen the measured ranges.

    Args:
        texts: text that is neither trained on nor scored.
        tokenizer: the model's own.
        length: tokens a row; the model's context unless told, since later positions reach values that earlier ones don't.
        limit: rows at the most.

    Returns:
        A dataset with `input_ids` (rows, length).

    Raises:
        ValueError: fewer than 8 whole rows.
    """
    length = window_length(tokenizer) if length is None else length
    check_whole("length", length, 2)
    check_whole("limit", limit, MIN_CALIBRATION_SEQUENCES)
    rows = [row for row in token_rows(texts, tokenizer, length) if len(row) == length][:limit]
    if len(rows) < MIN_CALIBRATION_SEQUENCES:
        raise ValueError(
            f"the calibration text gives {len(rows)} rows of {length} tokens, at least {MIN_CALIBRATION_SEQUENCES} are needed; "
            "give more text"
        )
    return Dataset.from_dict({"input_ids": rows})


def quantize_int8(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, calibration: Dataset, out_dir: Path | str, recipe: str | Recipe = "w8a8"
) -> Quantized:
    """Quantize weights and activations to INT8 and write a stateful OpenVINO IR.

    `INCQuantizer` smooths and calibrates: weights symmetric per output channel, activations asymmetric per tensor. Then the gate
    measures what each quantized input and an INT8 KV cache cost, and leaves those float that cost too much; see `apply_gate`. Some
    weights get wider steps, so that a CPU without VNNI or AMX can run what any CPU quantized; see `keep_sums_in_16_bits`.

    Args:
        model: a GPT-2 of any dtype, heads pruned or not. It is not changed.
        tokenizer: saved beside the IR.
        calibration: column `input_ids`, rows of one length; see `prepare_calibration_dataset`. The last quarter is the gate's.
        out_dir: a new or empty folder, or one that was written here before; it appears whole or not at all.
        recipe: `w8a8` (the default), `w8a8-naive` (neither smoothing nor gate, for comparison), `w8` (weights alone, INT8 per
            channel), `w4` (weights alone, INT4 in groups), or a `Recipe` of your own.

    Returns:
        The audit of what was written, which has passed, and the sensitivity of each quantized input.

    Raises:
        ValueError: an unknown recipe, a weight that is NaN or infinite, ids outside the vocabulary, in the rows or the tokenizer, too few
            rows, or `out_dir` can't be written.
        RuntimeError: SmoothQuant was asked for and not applied, or a matmul came out in another type than it should. In the latter case
            what was written is kept in a folder beside `out_dir`, `NAME-failed-audit`, which the next such failure replaces.
    """
    check_folder(out_dir)
    recipe = _recipe(recipe)
    check_finite(model)
    check_ids(tokenizer, model.config.vocab_size)
    _check_calibration(calibration, model.config.vocab_size)
    gated = recipe.activations and recipe.max_kl is not None
    if gated and not has_int8_dot_product():
        logger.warning(UNKNOWN_DOT_PRODUCT if has_int8_dot_product() is None else NO_DOT_PRODUCT)
    linear = linearize(model)
    seen, kept_back = split_calibration(calibration)
    fake = fake_quantize(linear, calibrate(linear, seen, recipe))
    sensitivity = apply_gate(fake, linearize(model), kept_back, recipe.max_kl) if gated else None
    give_back_memory()
    with new_folder(out_dir) as partial:
        write_ir(fake, tokenizer, partial, sensitivity.kv_cache if sensitivity else "u8" if recipe.activations else "f16")
        audit = _passed_audit(partial, Path(out_dir).resolve())
    return Quantized(audit, sensitivity)


def _passed_audit(written: Path, folder: Path) -> Int8Audit:
    """Audit what was written. What fails does not get the name of the folder, but it took minutes and is kept under another one."""
    try:
        return audit_int8(written)
    except (MemoryError, RuntimeError, ValueError) as error:
        kept = folder.with_name(f"{folder.name}-failed-audit")
        try:
            with new_folder(kept) as partial:
                shutil.copytree(written, partial, dirs_exist_ok=True)
        except (OSError, ValueError) as lost:
            raise type(error)(f"{text_of(error)}; what was written could not be kept: {lost}") from error
        raise type(error)(f"{text_of(error)}; what was written is kept in {kept}: `gpt2opt audit` shows what is INT8 there") from error


def _recipe(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is not known; expected one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def split_calibration(calibration: Dataset) -> tuple[Dataset, list[list[int]]]:
    """Return the rows that INC sees, and those for the gate, up to `GATE_TOKENS` of them."""
    gate_rows = calibration["input_ids"][-(len(calibration) // 4) :]
    return calibration.select(range(len(calibration) - len(gate_rows))), gate_rows[: max(1, GATE_TOKENS // len(gate_rows[0]))]


def _check_calibration(calibration: Dataset, vocab_size: int) -> None:
    if "input_ids" not in calibration.column_names:
        raise ValueError(f"the calibration data have columns {calibration.column_names}, expected 'input_ids'")
    if len(calibration) < MIN_CALIBRATION_SEQUENCES:
        raise ValueError(f"{len(calibration)} calibration rows, at least {MIN_CALIBRATION_SEQUENCES} are needed; give more text")
    rows = calibration["input_ids"]
    strange = next((each for row in rows for each in (row if isinstance(row, list) else [row]) if not is_whole(each, 0)), None)
    if strange is not None or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"the calibration rows hold {strange!r}, expected lists of token ids, whole numbers of at least 0")
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1 or lengths[0] < 2:
        raise ValueError(
            f"calibration rows of {lengths[0]} to {lengths[-1]} tokens, expected one length of at least 2; "
            "prepare_calibration_dataset makes such rows"
        )
    beyond = sum(token >= vocab_size for row in rows for token in row)
    if beyond:
        raise ValueError(f"{beyond} calibration ids lie outside the model's {vocab_size} tokens; use the model's own tokenizer")


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
    export_ir(linearize(model), run.tokenizer, fp32)
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
