"""Stage 1: load GPT-2 in FP16, trace it, and measure what every later stage is compared with."""

from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from gpt2opt.environment import device
from gpt2opt.measure.trace import Trace, record_trace
from gpt2opt.run.measurements import TRACED_TOKENS
from gpt2opt.run.published import check_against_known
from gpt2opt.run.record import PROFILE, Measurement
from gpt2opt.run.recorder import Run
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.storage import hash_weights
from gpt2opt.torch_model import generate_tokens, logits_of


def load_fp16_model(model_id: str | Path = "auto"):
    """Load a GPT-2 with FP16 parameters, on the GPU if there is one.

    Args:
        model_id: a directory, a hub id, `bundled` or `auto`; see `find_model`.

    Returns:
        `(tokenizer, model)`.

    Raises:
        ValueError: the model can't be found, is damaged or is not a GPT-2.
    """
    path = find_model(str(model_id)).path
    tokenizer, model = load_model(path, "float16")
    model.made_from = hash_weights(path)  # see `Run.load`
    return tokenizer, model.to(device())


def run_profile(run: Run) -> Measurement:
    """Profile a short generation of the FP16 model, and measure it."""
    _, model = load_fp16_model(run.model.path)
    trace = record_trace(lambda: generate_tokens(model, [run.workload.prompt], TRACED_TOKENS), run.traces / PROFILE)
    return run.measure("Baseline", model, **profile_facts(run, model, trace))


def profile_facts(run: Run, model: GPT2LMHeadModel, trace: Trace) -> dict[str, Any]:
    """Return what the record keeps of stage 1: the trace, and perplexities that others have published."""
    facts = {
        "trace": f"{run.traces.name}/{PROFILE}/{trace.path.name}",
        "trace_bytes": trace.size_bytes,
        "operator_seconds": trace.operators,
        "known_perplexities": check_against_known(
            run.model.name, model.num_parameters(), run.texts, run.tokenizer, logits_of(model.float()), device() == "cuda"
        ),
    }
    model.half()  # back from the FP32 arithmetic; nothing was rounded on the way
    return facts
