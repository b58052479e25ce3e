"""What `run.measure` measures of one model, by the metrics of `measure`: its answers, its speed, its memory, and what it spends time on.

A model is read from the folder that it was saved to, so that what is measured is what was written. OpenVINO is imported only where an IR is
measured: pruning and fine-tuning work without it.
"""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2opt import environment
from gpt2opt.decoding.decoder import Decoder
from gpt2opt.decoding.text import token_text
from gpt2opt.environment import device
from gpt2opt.measure.latency import compare_latency, cuda_time, wall_time
from gpt2opt.measure.memory import ChildRun, device_vram, in_fresh_process
from gpt2opt.measure.quality import measure_agreement, perplexity
from gpt2opt.measure.results import Latency, Memory
from gpt2opt.measure.trace import record_in_turns
from gpt2opt.measure.trace_file import remove_trace, write_trace
from gpt2opt.run.record import Measurement, Settings
from gpt2opt.run.workload import Workload
from gpt2opt.runtime.manifest import is_ir, read_manifest
from gpt2opt.sources.models import load_model
from gpt2opt.storage import weight_files
from gpt2opt.torch_model import TorchDecoder, device_name, generate_from_torch, generate_tokens, logits_of

TRACED_TOKENS = 4
"""What is traced: a prompt is read and so many tokens are generated, the first of them by reading the prompt."""
RECORDINGS = 3
"""Of each torch model, from which the fastest is kept. A recording of the bundled model takes about half a second."""
BUSY = 0.1
"""Share of the cores taken by others from which on a user is told that the machine is busy."""

logger = logging.getLogger(__name__)


def measure_answers(
    name: str, folder: Path, tokenizer, workload: Workload, new_tokens: int, reference: tuple[str, Path] | None
) -> Measurement:
    """Measure what the model in `folder` answers: the perplexity of the scored text, the distance from a reference model, the samples.

    On a CPU the FP16 weights of a torch model are scored in FP32 arithmetic, since most CPUs emulate FP16 arithmetic, many times
    slower.

    Args:
        name: of the model, in the result.
        folder: a torch model in FP16, or an IR.
        tokenizer: the model's own.
        workload: what is scored and continued.
        new_tokens: to continue each sample prompt by.
        reference: the name and the folder of the model that it is compared with, position by position; None for none.
    """
    model = load_scored(folder)
    logits = logits_of(model)
    if reference is None:
        quality, agreement = perplexity(logits, workload.scored), None
    else:
        other, other_folder = reference
        quality, agreement = measure_agreement(logits, logits_of(load_scored(other_folder)), workload.scored, reference_name=other)
    if is_ir(folder):
        rows = [model.generate(np.array([prompt]), new_tokens)[0].tolist() for prompt in workload.samples]
        described: dict[str, Any] = {"device": environment.describe()["cpu"], "runtime": "openvino", "dtype": _ir_dtype(folder)}
        described["quality_dtype"] = described["dtype"]
    else:
        rows = generate_tokens(model, workload.samples, new_tokens)
        described = {"device": device_name(), "runtime": "torch", "dtype": "float16", "parameters": model.num_parameters()}
        described["quality_dtype"] = str(model.dtype).removeprefix("torch.")
    continuations = tuple(tuple(token_text(tokenizer, token) for token in row) for row in rows)
    return Measurement(name, quality=quality, agreement=agreement, continuations=continuations, **described)


def load_scored(folder: Path):
    """Load the model in a folder in the arithmetic that its answers are scored in: an IR, or a torch model with FP16 weights."""
    if is_ir(folder):
        from gpt2opt.runtime.ir_model import load_ir

        return load_ir(folder)
    _, model = load_model(folder, "float16")
    return model.to(device()) if device() == "cuda" else model.float()


def _ir_dtype(folder: Path) -> str:
    return {"f32": "float32", "i8": "int8", "i4": "int4"}[read_manifest(folder).weights]


def time_in_turns(folders: Mapping[str, Path], workload: Workload, settings: Settings) -> dict[str, Latency]:
    """Time models of one runtime, all in turns, with the same prompt, tokens and threads."""
    decoders = {name: _decoder(folder, workload.prompt) for name, folder in folders.items()}
    on_gpu = device() == "cuda" and not any(map(is_ir, folders.values()))
    timer = cuda_time if on_gpu else wall_time
    found = compare_latency(decoders, prompt_tokens=len(workload.prompt), new_tokens=settings.new_tokens, timer=timer)
    latency = next(iter(found.values()))
    if (latency.others_cpu_share or 0) > BUSY:
        logger.warning(
            "the machine is busy: others took %.0f%% of its cores during the timing of %s; close them and run again, or go by the ratios",
            100 * latency.others_cpu_share, " and ".join(decoders),
        )  # fmt: skip
    for name, latency in found.items():
        if not latency.steady:
            logger.warning("%s got faster until the end of its %d warm-up runs: its latency is too high", name, latency.warmup_runs)
    return found


def _decoder(folder: Path, prompt: list[int]) -> Decoder:
    if is_ir(folder):
        from gpt2opt.runtime.ir_model import load_ir

        return load_ir(folder).decoder(np.array([prompt]))
    return TorchDecoder(load_model(folder, "float16")[1].to(device()), torch.tensor([prompt]))


def measure_memory(folder: Path, workload: Workload, new_tokens: int) -> Memory:
    """Measure what a fresh process takes that loads the model in `folder` and generates: RAM, and VRAM where there is a GPU."""
    function, library = generate_from_torch, "transformers.models.gpt2.modeling_gpt2"
    if is_ir(folder):
        from gpt2opt.runtime.generate import generate_from_ir

        function, library = generate_from_ir, "openvino"
    before = device_vram()  # this process has models on the GPU too
    child = in_fresh_process(function, str(folder), workload.prompt, new_tokens, libraries=(library,))
    memory, vram = _memory(folder, child), None if is_ir(folder) else child.value
    if vram is None:
        return memory
    return dataclasses.replace(
        memory,
        peak_vram_bytes=vram.allocated_bytes,
        peak_vram_reserved_bytes=vram.reserved_bytes,
        driver_vram_bytes=vram.device_bytes - before,
    )


def trace_in_turns(folders: Mapping[Path, Path], prompt: list[int]) -> None:
    """Trace a short generation of models of one runtime, by torch.profiler or by OpenVINO's own counters.

    They are recorded in turns, several times each, and the fastest recording is kept: what differs between two of them is then less the
    machine's.

    Args:
        folders: of the traces -> of the models.
        prompt: that is read.

    Raises:
        ValueError, RuntimeError: as `record_trace`.
    """
    if all(map(is_ir, folders.values())):
        from gpt2opt.runtime.counters import count_nodes

        for log_dir, content in zip(folders, count_nodes([*folders.values()], prompt, TRACED_TOKENS), strict=True):
            remove_trace(log_dir)
            write_trace(content, log_dir)
    else:
        models = {log_dir: load_model(folder, "float16")[1].to(device()) for log_dir, folder in folders.items()}
        works = {log_dir: partial(generate_tokens, model, [prompt], TRACED_TOKENS) for log_dir, model in models.items()}
        record_in_turns(works, rounds=RECORDINGS)


def _memory(folder: Path, child: ChildRun) -> Memory:
    steps = {step: child.steps[step] for step in ("start", "loaded", "steady")}
    return Memory(sum(path.stat().st_size for path in weight_files(folder)), child.peak_rss_bytes, child.start_rss_bytes, **steps)
