"""The four stages as functions, in the words of the notebook: each makes a model and hands it, with its controls, to `run.measure`."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed

from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.prompt_lookup import PROMPT_TOKENS, lookup_steps, write_drafts
from gpt2opt.decoding.text import token_rows, window_length
from gpt2opt.environment import device
from gpt2opt.export.openvino import export_ir
from gpt2opt.finetune import (
    BATCH_ROWS,
    create_training_arguments,
    loss_curves,
    prepare_tokenizer_for_padding,
    run_fine_tuning,
    tokenize_dataset,
)
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.measure.trace import record_trace
from gpt2opt.prune import head_importance, importance_batches, prune_attention_heads, pruned_heads
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.report.tensorboard import drop_host_names, empty_log
from gpt2opt.run.measurements import TRACED_TOKENS
from gpt2opt.run.published import compare_with_published
from gpt2opt.run.recorder import Run
from gpt2opt.runtime.compile import cpu_properties
from gpt2opt.runtime.ir_model import generate_from_ir, load_ir
from gpt2opt.settings import FINETUNE, PROFILE, PRUNE, QUANTIZE, Settings
from gpt2opt.torch_model import generate_tokens, load_fp16_model, logits_from_torch

SMALL_MACHINE_BYTES = 4_000_000_000
"""Memory of the machine that stage 4 is for."""


def run_profile(run: Run) -> None:
    """Profile a short generation of the FP16 model, and measure it."""
    _, model = load_fp16_model(run.model.path)
    trace = record_trace(lambda: generate_tokens(model, [run.workload.prompt], TRACED_TOKENS), run.traces / PROFILE)
    published = compare_with_published(run.model.name, model, run.texts, run.tokenizer)
    run.measure("Baseline", model, operator_seconds=trace.operators, known_perplexities=published)


def run_prune(run: Run) -> None:
    """Prune the model of stage 1 and measure it, and as a control the same number of heads taken by their index."""
    fraction = run.settings.prune_fraction
    model = run.load("Baseline")
    model.to(device())  # type: ignore[arg-type]
    texts, _ = run.training_texts()  # never scored
    importance = head_importance(model, importance_batches(texts, run.tokenizer, run.settings.sequence_length))
    prune_attention_heads(model, fraction, importance).half()
    run.measure("Pruned", model, importance_nats=importance, pruned_heads=pruned_heads(model))
    run.measure("Pruned, first heads", prune_attention_heads(run.load("Baseline", "float16"), fraction))


def run_finetune(run: Run) -> None:
    """Fine-tune the pruned model and measure it, and as a control the unpruned model, tuned on the same budget."""
    for name, source, log_dir in (("Fine-tuned", "Pruned", run.traces / FINETUNE), ("Fine-tuned, unpruned", "Baseline", None)):
        set_seed(run.settings.seed)
        model = run.load(source)
        train, validation = tokenize_training(run, model)
        curves = train_model(model, run.tokenizer, train, run.settings, validation, log_dir)
        run.measure(name, model.cpu().half(), **curves)


def run_quantize(run: Run) -> None:
    """Quantize the fine-tuned model, prove that it is INT8, and measure it.

    Controls: the same model in FP32 IR, same CPU and runtime; and INT8 without smoothing and gate, for what these are worth.
    """
    model = run.load("Fine-tuned")
    int8, naive, fp32 = (run.folder(name) for name in ("INT8", "INT8, naive", "FP32"))
    documents = [document.text for document in run.texts.calibration]
    calibration = prepare_calibration_dataset(documents, run.tokenizer, limit=run.settings.calibration_sequences)
    quantized = quantize_int8(model, run.tokenizer, calibration, int8)
    quantize_int8(model, run.tokenizer, calibration, naive, "w8a8-naive")
    export_ir(prepare_for_export(model), run.tokenizer, fp32)
    run.measure("FP32", fp32, optimum_generates_the_same=optimum_generates_the_same(run, fp32))
    limited = generate_within(SMALL_MACHINE_BYTES, int8, run.workload.longest_prompt, run.settings.new_tokens)
    found: dict[str, Any] = {"audit": quantized.audit, "sensitivity": quantized.sensitivity, "prompt_lookup": prompt_lookup(run, int8)}
    run.measure("INT8", int8, **found, runs_in_4_gb=limited)
    run.measure("INT8, naive", naive)


RUN_STAGE: dict[str, Callable[[Run], None]] = {PROFILE: run_profile, PRUNE: run_prune, FINETUNE: run_finetune, QUANTIZE: run_quantize}


def tokenize_training(run: Run, model: GPT2LMHeadModel) -> tuple[Dataset, Dataset | None]:
    """Return the rows that a model is trained on, and those that its loss is followed by; None where the text has none left.

    Nothing in them is scored or calibrated with; see `Texts`.
    """
    prepare_tokenizer_for_padding(run.tokenizer, model)
    length = min(run.settings.sequence_length, model.config.n_positions)
    train, validation = run.training_texts()
    rows = tokenize_dataset(Dataset.from_dict({"text": train}), run.tokenizer, length)
    return rows, tokenize_dataset(Dataset.from_dict({"text": validation}), run.tokenizer, length) if validation else None


def train_model(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    settings: Settings,
    validation: Dataset | None = None,
    log_dir: Path | None = None,
) -> dict[str, Any]:
    """Train a model in place with the settings of a run; return what it was trained on, and its `loss_curves`.

    Args:
        rows, validation: from `tokenize_dataset`.
        log_dir: TensorBoard logs of the loss go there, in place of those of an earlier training; none without it.
    """
    if log_dir is not None:
        empty_log(log_dir)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = create_training_arguments(
            scratch, settings.learning_rate, epochs=settings.epochs, log_dir=log_dir, seed=settings.seed, validate=validation is not None
        )
        trainer = run_fine_tuning(model, arguments, rows, tokenizer, validation)
    if log_dir is not None:
        drop_host_names(log_dir)
    return {
        "epochs": settings.epochs,
        "rows": len(rows),
        "batch_rows": BATCH_ROWS,
        "processes": arguments.world_size,
        "steps": trainer.state.global_step,
        **loss_curves(trainer),
    }


def reload_difference(folder: Path, model: GPT2LMHeadModel, ids: list[int]) -> float:
    """Load the model in a folder in a fresh process; return by how much its logits differ at most from those of the model in hand.

    Args:
        folder: where the model was saved.
        model: the one in hand; its own dtype and device are kept.
        ids: tokens (T,) that both read, in FP32 arithmetic.
    """
    dtype, place = model.dtype, model.device
    with torch.inference_mode():
        here = model.float().cpu()(torch.tensor([ids]), use_cache=False).logits.numpy()
    model.to(place, dtype)  # type: ignore[arg-type]
    there = in_fresh_process(logits_from_torch, str(folder), [ids]).value
    return float(np.abs(here - there).max())


def prompt_lookup(run: Run, folder: Path) -> dict[str, Any]:
    """Write the table that guesses are made from, then generate plainly and with guesses: the same tokens in fewer steps."""
    write_drafts(folder, load_ir(folder), token_rows(run.training_texts()[0], run.tokenizer, PROMPT_TOKENS))
    ids = np.array([run.workload.prompt])
    context = window_length(run.tokenizer)
    count = min(context // 4, context - ids.shape[1])
    model = load_ir(folder)
    plain = Greedy(model.decoder(ids, count)).generate(count)[0]
    steps = list(lookup_steps(model.decoder(ids), count))
    same = [token for step in steps for token in step] == plain
    return {"new_tokens": count, "same_tokens": same, "accepted": [len(step) for step in steps[1:]]}


def generate_within(limit_bytes: int, folder: Path, ids: list[int], new_tokens: int) -> dict[str, Any] | None:
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
        return {**facts, "done": False, "error": str(error).strip().splitlines()[-1]}
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
    return generated[0, ids.shape[1] :].tolist() == Greedy(load_ir(folder).decoder(ids.numpy(), count)).generate(count)[0]
