"""What `run.measure` measures of one model, and what every model is given: its answers, its speed, its memory, where its time goes.

A model is read from the folder that it was saved to, so that what is measured is what was written. OpenVINO is imported only where an IR is
measured: pruning and fine-tuning work without it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from gpt2opt import environment
from gpt2opt.decoding.decoder import Decoder, Greedy
from gpt2opt.decoding.text import token_text, window_length
from gpt2opt.environment import device
from gpt2opt.measure.latency import compare_latency, cuda_time, decoder_in_child, wall_time
from gpt2opt.measure.memory import device_vram, in_fresh_process
from gpt2opt.measure.quality import JOIN, ScoredText, measure_agreement, perplexity, prepare_text
from gpt2opt.measure.results import Latency, Memory
from gpt2opt.measure.trace import record_in_turns
from gpt2opt.measure.trace_file import remove_trace, write_trace
from gpt2opt.run.record import Measurement, Settings
from gpt2opt.runtime.manifest import is_ir, read_manifest
from gpt2opt.sources.models import load_model
from gpt2opt.sources.texts import Texts, take_bytes
from gpt2opt.storage import weight_files
from gpt2opt.torch_model import decoder_from_torch, generate_from_torch, generate_tokens, logits_of

TRACED_TOKENS = 4
"""Tokens that are generated while a model is traced, the first of them by reading the prompt."""
RECORDINGS = 3
"""Of each torch model, from which the fastest is kept. A recording of the bundled model takes about half a second."""
BUSY = 0.1
"""Share of the cores taken by others from which on a warning says that the machine is busy."""

SAMPLE_PROMPTS, SAMPLE_PROMPT_TOKENS = 20, 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workload:
    """Made once and of one text, so that all figures of a run compare.

    scored: the held-out part of the text, tokenized. prompt: what every latency and memory measurement reads, the first tokens of that
    text. longest_prompt: as much of it as leaves room for the new tokens; memory grows with the context. samples: prompts of one length,
    evenly spaced over that text, which every model continues.
    """

    scored: ScoredText
    prompt: list[int]
    longest_prompt: list[int]
    samples: list[list[int]]


def make_workload(tokenizer, texts: Texts, settings: Settings) -> Workload:
    """Tokenize the scored part of a text, and cut the prompts out of it.

    Raises:
        ValueError: it holds fewer than two tokens.
    """
    documents = [document.text for document in take_bytes(texts.score, settings.score_bytes)]
    size = len(JOIN.join(documents).encode())
    label = f"{texts.name} {texts.revision}, first {size:,} bytes of the scored part"
    scored = prepare_text(tokenizer, documents, label)
    ids = scored.sequences[0][0].tolist()
    length = min(SAMPLE_PROMPT_TOKENS, settings.prompt_tokens)
    starts = range(0, len(ids) - length, max(1, (len(ids) - length) // SAMPLE_PROMPTS))
    samples = [ids[start : start + length] for start in starts][:SAMPLE_PROMPTS]
    return Workload(scored, ids[: settings.prompt_tokens], ids[: window_length(tokenizer) - settings.new_tokens], samples)


def load_measured(folder: Path) -> Any:
    """Load the model in a folder to measure it: an IR that counts the time of its nodes, or a torch model in FP16, on the GPU if any."""
    if is_ir(folder):
        from gpt2opt.runtime.ir_model import load_ir

        return load_ir(folder, count_time=True)
    return load_model(folder, "float16")[1].to(device())


def measure_answers(name: str, folder: Path, models: Mapping[str, Any], tokenizer: Any, workload: Workload, new_tokens: int) -> Measurement:
    """Measure what a model answers: the perplexity of the scored text, the distance from a reference model, the samples.

    On a CPU the FP16 weights of a torch model are scored in FP32 arithmetic, since most CPUs emulate FP16 arithmetic, many times
    slower. They are FP16 again afterwards: nothing was rounded on the way.

    Args:
        name, folder: of the model that is measured.
        models: it, and the reference model that it is compared with, position by position, if there is one; see `load_measured`.
        tokenizer: the model's own.
        workload: what is scored and continued.
        new_tokens: to continue each sample prompt by.
    """
    model = models[name]
    in_torch = [each for each in models.values() if isinstance(each, GPT2LMHeadModel)]
    for each in in_torch:
        each.half() if device() == "cuda" else each.float()
    agreement = None
    if reference := next((other for other in models if other != name), None):
        quality, agreement = measure_agreement(logits_of(model), logits_of(models[reference]), workload.scored, reference_name=reference)
    else:
        quality = perplexity(logits_of(model), workload.scored)
    if model in in_torch:
        rows = generate_tokens(model, workload.samples, new_tokens)
        place, parameters = environment.describe()["gpu"] or environment.describe()["cpu"], model.num_parameters()
        described: dict[str, Any] = {"device": place, "runtime": "torch", "dtype": "float16", "parameters": parameters}
        described["quality_dtype"] = str(model.dtype).removeprefix("torch.")
    else:
        rows = [Greedy(model.decoder([prompt], new_tokens)).generate(new_tokens)[0] for prompt in workload.samples]
        dtype = {"f32": "float32", "i8": "int8", "i4": "int4"}[read_manifest(folder).weights]
        described = {"device": environment.describe()["cpu"], "runtime": "openvino", "dtype": dtype, "quality_dtype": dtype}
    for each in in_torch:
        each.half()
    continuations = tuple(tuple(token_text(tokenizer, token) for token in row) for row in rows)
    return Measurement(name, quality=quality, agreement=agreement, continuations=continuations, **described)


def time_in_turns(folders: Mapping[str, Path], workload: Workload, settings: Settings) -> dict[str, Latency]:
    """Time models of one runtime in turns, each in a process of its own, with the same prompt, tokens and threads.

    Returns:
        The latency of each by name, and of the first one a second time, see `turns.again`, if there are others.
    """
    timer = cuda_time if device() == "cuda" and not any(map(is_ir, folders.values())) else wall_time
    decoders = {name: decoder_in_child(_decoder_of(folder), str(folder), workload.prompt, timer=timer) for name, folder in folders.items()}
    found = compare_latency(decoders, prompt_tokens=len(workload.prompt), new_tokens=settings.new_tokens)
    busy = next(iter(found.values())).others_cpu_share or 0
    if busy > BUSY:
        logger.warning(
            "the machine is busy: others took %.0f%% of its cores during the timing of %s; close them and run again, or go by the ratios",
            100 * busy, " and ".join(folders),
        )  # fmt: skip
    for name, latency in found.items():
        if not latency.steady:
            logger.warning("%s got faster until the end of its %d warm-up runs: its latency is too high", name, latency.warmup_runs)
    return found


def _decoder_of(folder: Path) -> Callable[[str, list[int]], Decoder]:
    """Return what makes a decoder of the model in a folder: of an IR in a process that loads no torch."""
    if is_ir(folder):
        from gpt2opt.runtime.ir_model import decoder_from_ir

        return decoder_from_ir
    return decoder_from_torch


def measure_memory(folder: Path, workload: Workload, new_tokens: int) -> Memory:
    """Measure what a fresh process takes that loads the model in `folder` and generates: RAM, and VRAM where there is a GPU."""
    function: Callable[..., Any] = generate_from_torch
    library = "transformers.models.gpt2.modeling_gpt2"
    if is_ir(folder):
        from gpt2opt.runtime.ir_model import generate_from_ir

        function, library = generate_from_ir, "openvino"
    before = device_vram()  # this process has models on the GPU too
    child = in_fresh_process(function, str(folder), workload.prompt, new_tokens, libraries=(library,))
    vram = None if is_ir(folder) else child.value
    return Memory(
        sum(path.stat().st_size for path in weight_files(folder)),
        child.peak_rss_bytes,
        child.start_rss_bytes,
        *((vram.allocated_bytes, vram.reserved_bytes, vram.device_bytes - before) if vram else (None, None, None)),
        *(child.steps[step] for step in ("start", "loaded", "steady")),
    )


def trace_in_turns(models: Mapping[Path, Any], prompt: list[int]) -> None:
    """Trace a short generation of models of one runtime, by torch.profiler or by OpenVINO's own counters.

    They are recorded in turns, several times each, and the fastest recording is kept: what differs between two of them is then less the
    machine's.

    Args:
        models: folder of the trace -> model; see `load_measured`.
        prompt: that is read.

    Raises:
        ValueError, RuntimeError: as `record_trace`.
    """
    if all(isinstance(model, GPT2LMHeadModel) for model in models.values()):
        record_in_turns(
            {place: partial(generate_tokens, model, [prompt], TRACED_TOKENS) for place, model in models.items()}, rounds=RECORDINGS
        )
        return
    from gpt2opt.measure.ir_trace import count_nodes

    for log_dir, content in zip(models, count_nodes([*models.values()], prompt, TRACED_TOKENS), strict=True):
        remove_trace(log_dir)
        write_trace(content, log_dir)
