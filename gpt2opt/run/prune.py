"""Stage 2: take the attention heads that matter least out of every layer."""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from gpt2opt.environment import device
from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.prune import head_importance, importance_batches, prune_attention_heads, pruned_heads
from gpt2opt.run.record import Measurement
from gpt2opt.run.recorder import Run
from gpt2opt.torch_model import logits_from_torch


def run_prune(run: Run) -> Measurement:
    """Prune the model of stage 1 and measure it, and as a control the same number of heads taken by their index."""
    fraction = run.settings.prune_fraction
    model = run.load("Baseline").to(device())
    texts, _ = run.training_texts()  # never scored
    importance = head_importance(model, importance_batches(texts, run.tokenizer, run.settings.sequence_length))
    prune_attention_heads(model, fraction, importance).half()
    measured = run.measure("Pruned", model, importance_nats=importance, pruned_heads=pruned_heads(model))
    run.note("Pruned", reload_max_abs_difference=reload_difference(run.folder("Pruned"), model, run.workload.prompt))
    run.measure("Pruned, first heads", prune_attention_heads(run.load("Baseline", "float16"), fraction))
    return measured


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
    model.to(place, dtype)
    there = in_fresh_process(logits_from_torch, str(folder), [ids]).value
    return float(np.abs(here - there).max())
