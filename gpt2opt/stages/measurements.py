"""What every stage measures, on the same tokens: the rulers of `measure` laid on the models of a run."""

import dataclasses
import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpt2opt import environment
from gpt2opt.decoding import Decoder, Greedy
from gpt2opt.measure.latency import compare_latency, cuda_time, wall_time
from gpt2opt.measure.memory import ChildRun, Vram, device_vram, in_fresh_process, read_peak_vram, reset_peak_vram
from gpt2opt.measure.quality import Logits, ScoredText, measure_agreement, measure_quality, prepare_text
from gpt2opt.measure.results import Comparison, Latency, Memory
from gpt2opt.record import Measurement
from gpt2opt.runtime.generate import generate_from_ir
from gpt2opt.runtime.ir_model import IrModel, load_ir
from gpt2opt.sources.models import load_model
from gpt2opt.stages.run import Run, scored_documents, scored_text
from gpt2opt.storage import weight_files

SAMPLE_PROMPTS, SAMPLE_PROMPT_TOKENS = 20, 32
BUSY = 0.1
"""Share of the cores taken by others from which on a user is told that the machine is busy."""

logger = logging.getLogger(__name__)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    return environment.describe()["gpu"] or environment.describe()["cpu"]


class TorchDecoder:
    """A `Decoder` of a torch model."""

    def __init__(self, model, prompt_ids: torch.Tensor):
        self.model, self.prompt_ids = model, prompt_ids

    def prefill(self) -> torch.Tensor:
        return self._read(self.prompt_ids, None)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return self._read(ids, self.past)

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor, past) -> torch.Tensor:
        out = self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return out.logits[:, -1]


@dataclass(frozen=True)
class Reference:
    """The model that another is compared with: its name, and its folder."""

    name: str
    folder: Path


def measure_torch(run: Run, name: str, folder: Path, reference: Reference | None = None) -> Measurement:
    """Measure the FP16 model in `folder` by itself: its quality and what it generates; see `time_torch` and `torch_memory`.

    Quality: on a CPU, the FP16 weights are scored with FP32 arithmetic, since FP16 arithmetic is emulated there and many times slower.
    """
    tokenizer, model = _scored_torch(folder)
    text = scored_tokens(run, tokenizer)
    if reference is None:
        quality, agreement = measure_quality(logits_of(model), text), None
    else:
        _, base = _scored_torch(reference.folder)
        quality, agreement = measure_agreement(logits_of(model), logits_of(base), text, reference_name=reference.name)
    continuations = Greedy(TorchDecoder(model, torch.tensor(sample_prompts(run, tokenizer), device=device()))).generate(
        run.settings.new_tokens
    )
    return Measurement(
        name, device_name(), "float16", "torch", sum(parameter.numel() for parameter in model.parameters()), None, None, quality,
        str(model.dtype).removeprefix("torch."), agreement, _tokens_as_text(tokenizer, continuations),
    )  # fmt: skip


def measure_ir(run: Run, name: str, folder: Path, dtype: str, tokenizer, reference: Reference) -> Measurement:
    """Measure the IR in `folder` on the CPU as the torch models are measured, beside `reference`, an IR or a torch model."""
    model, text = load_ir(folder), scored_tokens(run, tokenizer)
    quality, agreement = measure_agreement(logits_of(model), logits_of(_load_scored(reference.folder)), text, reference_name=reference.name)
    continuations = [model.generate(np.array([prompt]), run.settings.new_tokens)[0].tolist() for prompt in sample_prompts(run, tokenizer)]
    cpu = environment.describe()["cpu"]
    return Measurement(name, cpu, dtype, "openvino", None, None, None, quality, dtype, agreement, _tokens_as_text(tokenizer, continuations))


def _scored_torch(folder: Path):
    """Return `(tokenizer, model)` with FP16 weights, in the arithmetic that quality is scored in."""
    tokenizer, model = load_model(folder, "float16")
    return tokenizer, model.to(device()) if device() == "cuda" else model.float()


def _load_scored(folder: Path):
    return load_ir(folder) if (folder / "openvino_model.xml").exists() else _scored_torch(folder)[1]


def logits_of(model) -> Logits:
    """Return what a torch model or an IR answers, as the rulers take it: a torch model's logits hold until its next call."""
    if isinstance(model, IrModel):
        return lambda ids: model.logits(ids.numpy())
    head, kept = model.lm_head.weight, torch.empty(0)

    @torch.inference_mode()
    def logits(ids):
        nonlocal kept
        ids = ids.to(head.device)
        # transformers knows that a mask of ones is causal. Of its own accord it builds a mask, and attention computes the upper half too.
        hidden = model.transformer(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state.flatten(0, 1)
        # The head as V × tokens, into memory that is used again: a CPU multiplies faster that way round, and faults no new pages in.
        if kept.shape != (len(head), len(hidden)):
            kept = head.new_empty(len(head), len(hidden))
        return torch.mm(head, hidden.T, out=kept).T.view(*ids.shape, -1)

    return logits


def time_torch(run: Run, folders: dict[str, Path]) -> dict[str, Latency]:
    """Time FP16 models, all in turns, on the run's prompt."""
    tokenizer, _ = load_model(next(iter(folders.values())))
    prompt = torch.tensor([prompt_ids(run, tokenizer)], device=device())
    decoders = {name: TorchDecoder(load_model(folder, "float16")[1].to(device()), prompt) for name, folder in folders.items()}
    return _time(run, decoders, cuda_time if device() == "cuda" else wall_time)


def time_ir(run: Run, folders: dict[str, Path], tokenizer) -> dict[str, Latency]:
    """Time IRs on the CPU, all in turns, with the same prompt, tokens and threads as the torch models."""
    prompt = np.array([prompt_ids(run, tokenizer)])
    return _time(run, {name: load_ir(folder).decoder(prompt) for name, folder in folders.items()}, wall_time)


def _time(run: Run, decoders: dict[str, Decoder], timer) -> dict[str, Latency]:
    settings = run.settings
    found = compare_latency(decoders, prompt_tokens=settings.prompt_tokens, new_tokens=settings.new_tokens, timer=timer)
    latency = next(iter(found.values()))
    if (latency.others_cpu_share or 0) > BUSY:
        logger.warning(
            "the machine is busy: others took %.0f%% of its cores while %s were timed; close them and run again, or go by the ratios",
            100 * latency.others_cpu_share, " and ".join(decoders),
        )  # fmt: skip
    for name, latency in found.items():
        if not latency.steady:
            logger.warning("%s got faster until the end of its %d warm-up runs: its latency is too high", name, latency.warmup_runs)
    return found


def compared(latencies: dict[str, Latency]) -> Comparison:
    """Return the comparison of two models that were timed in turns, the first with the second."""
    (name, latency), (base, base_latency) = latencies.items()
    return Comparison(name, base, latency, base_latency)


def ir_memory(run: Run, folder: Path, tokenizer) -> Memory:
    child = in_fresh_process(generate_from_ir, str(folder), prompt_ids(run, tokenizer), run.settings.new_tokens, libraries=("openvino",))
    return _memory(folder, child)


def torch_memory(run: Run, folder: Path) -> Memory:
    prompt = prompt_ids(run, load_model(folder)[0])
    libraries = ("transformers.models.gpt2.modeling_gpt2",)
    before = device_vram()  # this process has the model on the GPU too
    child = in_fresh_process(generate_from_torch, str(folder), prompt, run.settings.new_tokens, libraries=libraries)
    memory, vram = _memory(folder, child), child.value
    if vram is None:
        return memory
    return dataclasses.replace(
        memory,
        peak_vram_bytes=vram.allocated_bytes,
        peak_vram_reserved_bytes=vram.reserved_bytes,
        driver_vram_bytes=vram.device_bytes - before,
    )


def generate_from_torch(folder: str, prompt: list[int], new_tokens: int) -> Generator[str, None, Vram | None]:
    """Load an FP16 model, generate greedily and return the VRAM that took; runs in a fresh process, and names its steps."""
    torch.set_num_threads(environment.threads())
    reset_peak_vram()
    _, model = load_model(Path(folder), "float16")
    decoder = TorchDecoder(model.to(device()), torch.tensor([prompt], device=device()))
    yield "loaded"
    Greedy(decoder).generate(new_tokens)
    yield "steady"
    return read_peak_vram()


def _memory(folder: Path, child: ChildRun) -> Memory:
    steps = {step: child.steps[step] for step in ("start", "loaded", "steady")}
    return Memory(_weight_bytes(folder), child.peak_rss_bytes, child.start_rss_bytes, **steps)


def logits_from_torch(folder: str, ids: list[list[int]]) -> np.ndarray:
    """Load a model in FP32 and return its logits; runs in a fresh process."""
    torch.set_num_threads(environment.threads())
    _, model = load_model(Path(folder), "float32")
    with torch.inference_mode():
        return model(torch.tensor(ids), use_cache=False).logits.numpy()


def scored_tokens(run: Run, tokenizer) -> ScoredText:
    """Return the held-out part of the run's text, tokenized: the same bytes at every stage."""
    return prepare_text(tokenizer, scored_documents(run.texts, run.settings), _scored_label(run))


def sample_prompts(run: Run, tokenizer) -> list[list[int]]:
    """Return prompts of one length, evenly spaced over the scored text: what every stage continues, side by side."""
    ids = tokenizer(scored_text(run.texts, run.settings), verbose=False).input_ids
    length = min(SAMPLE_PROMPT_TOKENS, run.settings.prompt_tokens)
    return [ids[start : start + length] for start in range(0, len(ids) - length, max(1, (len(ids) - length) // SAMPLE_PROMPTS))][
        :SAMPLE_PROMPTS
    ]


def _tokens_as_text(tokenizer, rows: list[list[int]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(tokenizer.decode([token]) for token in row) for row in rows)


def _scored_label(run: Run) -> str:
    size = len(scored_text(run.texts, run.settings).encode())
    return f"{run.texts.name} {run.texts.revision}, first {size:,} bytes of the scored part"


def prompt_ids(run: Run, tokenizer) -> list[int]:
    """Return the prompt of every latency measurement: the first tokens of the scored text."""
    return tokenizer(scored_text(run.texts, run.settings), verbose=False).input_ids[: run.settings.prompt_tokens]


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))
