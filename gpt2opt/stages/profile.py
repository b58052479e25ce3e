"""Stage 1: load GPT-2 in FP16, trace it, and measure what every later stage is compared with."""

import dataclasses

import torch

from gpt2opt.decoding import Greedy
from gpt2opt.measure.trace import record_trace
from gpt2opt.record import StageResult
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.stages.measurements import TorchDecoder, device, logits_of, measure_torch, prompt_ids, time_torch, torch_memory
from gpt2opt.stages.run import Run, stopwatch
from gpt2opt.stages.self_check import check_against_known
from gpt2opt.storage import hash_weights, save_model

NAME, NAMED = "1-profile", "Baseline"


def load_fp16_model(model_id: str = "auto"):
    """Load a GPT-2 with FP16 parameters, on the GPU if there is one.

    Args:
        model_id: a directory, a hub id, `bundled` or `auto`; see `find_model`.

    Returns:
        `(tokenizer, model)`.

    Raises:
        ValueError: the model can't be found, is damaged or is not a GPT-2.
    """
    tokenizer, model = load_model(find_model(model_id).path, "float16")
    return tokenizer, model.to(device())


def run_profile(run: Run) -> StageResult:
    """Write the FP16 model into the run, profile a short generation, and measure."""
    folder = run.folder(NAME)
    with stopwatch() as seconds:
        tokenizer, model = load_model(run.model.path, "float16")
        save_model(folder, tokenizer, model)
        trace = trace_generation(run, tokenizer, model.to(device()))
        facts = {
            "trace": f"{run.traces.name}/{NAME}/{trace.path.name}",
            "trace_bytes": trace.size_bytes,
            "operator_seconds": trace.operators,
            "fp16_arithmetic": compare_arithmetic(run, tokenizer, model),
            "known_perplexities": check_against_known(
                run.model.name, model.num_parameters(), run.texts, tokenizer, logits_of(model.float()), device() == "cuda"
            ),
        }
        measurement = dataclasses.replace(
            measure_torch(run, NAMED, folder), latency=time_torch(run, {NAMED: folder})[NAMED], memory=torch_memory(run, folder)
        )
        stage = StageResult(NAME, hash_weights(run.model.path), hash_weights(folder), measurement, seconds(), facts=facts)
    run.finish(stage)
    return stage


def trace_generation(run: Run, tokenizer, model):
    """Profile a prompt and three further tokens into `traces/`."""
    decoder = TorchDecoder(model, torch.tensor([prompt_ids(run, tokenizer)], device=device()))
    return record_trace(lambda: Greedy(decoder).generate(4), run.traces / NAME)


@torch.inference_mode()
def compare_arithmetic(run: Run, tokenizer, model) -> dict[str, float] | None:
    """Score the prompt's tokens in FP16 and in FP32 arithmetic on the same FP16 weights, on a CPU, where quality is scored in FP32.

    Returns:
        Mean NLL in nats of each, or None on a GPU, where FP16 arithmetic itself is scored.
    """
    if device() == "cuda":
        return None
    ids = torch.tensor([prompt_ids(run, tokenizer)])
    losses = {dtype: float(model.to(getattr(torch, dtype))(ids, labels=ids).loss) for dtype in ("float32", "float16")}
    return {f"{dtype}_nats": loss for dtype, loss in losses.items()}
