"""One run: what was found, where it writes, and the rulers that every stage uses in the same way."""

import datetime
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpt2opt import environment
from gpt2opt.deploy.runtime import generate_from_ir, load_ir
from gpt2opt.measure.latency import measure_latency
from gpt2opt.measure.memory import in_fresh_process, peak_vram
from gpt2opt.measure.quality import measure_quality
from gpt2opt.report.record import Record, Settings
from gpt2opt.report.results import Latency, Measurement, Memory, Quality, weight_files
from gpt2opt.sources.models import FoundModel, find_model, load_model
from gpt2opt.sources.texts import Texts, find_texts, take_bytes


@dataclass
class Run:
    """What the stages share. Each reads the folder that the stage before it wrote, and writes its own."""

    out: Path
    traces: Path
    model: FoundModel
    texts: Texts
    record: Record

    @property
    def settings(self) -> Settings:
        return self.record.settings

    def folder(self, stage: str) -> Path:
        return self.out / stage

    def finish(self, stage) -> None:
        """Put a stage's result into the record, and the record on disk."""
        self.record.add(stage)
        self.record.write(self.out / "run.json")


def start_run(model: str = "auto", text: str = "auto", out: str | Path = "artifacts", traces: str | Path = "traces", **settings) -> Run:
    """Find the model and the text, check the versions, fix the seed, and begin an empty record.

    Args:
        model: see `find_model`.
        text: see `find_texts`.
        out: folder of the run; an earlier run's stages in it are removed.
        traces: folder of the profiler traces and TensorBoard logs.
        settings: fields of `Settings` to change.

    Raises:
        ImportError: a package's version is known not to work.
        ValueError: a source can't be found, or `out` can't be written.
    """
    environment.check_stack()
    chosen = Settings(**settings)
    check_fraction(chosen.prune_fraction)
    if not chosen.epochs > 0:
        raise ValueError(f"epochs={chosen.epochs}, expected more than 0; 1 to 5 is usual")
    found, texts = find_model(model), find_texts(text)
    out = Path(out)
    try:
        if (out / "run.json").exists():
            for old in out.glob("[1-4]-*"):
                shutil.rmtree(old)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"can't write {out}: {error.strerror}; name a writable output directory") from error
    environment.set_seed(chosen.seed)
    torch.set_num_threads(environment.threads())
    sources = {
        "model": {"name": found.name, "origin": found.origin, "stand_in": found.stand_in},
        "text": {"name": texts.name, "origin": texts.origin, "stand_in": texts.stand_in, "revision": texts.revision},
    }
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    run = Run(out, Path(traces), found, texts, Record(created, environment.describe(), sources, chosen))
    run.record.write(out / "run.json")
    return run


def check_fraction(prune_fraction: float) -> None:
    """Raise ValueError unless every layer would keep a head."""
    if not 0 <= prune_fraction < 1:
        raise ValueError(f"prune_fraction={prune_fraction} is outside [0, 1); at least one head a layer must stay")


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    return environment.describe()["gpu"] or environment.describe()["cpu"]


class TorchDecoder:
    """Greedy decoding with a KV cache, one token a call."""

    def __init__(self, model, prompt_ids: torch.Tensor):
        self.model, self.prompt_ids = model, prompt_ids

    @torch.inference_mode()
    def start(self) -> None:
        self._read(self.prompt_ids, None)

    @torch.inference_mode()
    def step(self) -> None:
        self._read(self.next_ids, self.past)

    def _read(self, ids, past) -> None:
        out = self.model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        self.past, self.next_ids = out.past_key_values, out.logits[:, -1:].argmax(-1)


def measure_torch(run: Run, name: str, folder: Path, *, quality_only: bool = False) -> Measurement:
    """Measure the FP16 model in `folder`: latency, memory and quality.

    Quality: on a CPU, the FP16 weights are scored with FP32 arithmetic, since FP16 arithmetic is emulated there and many times slower.
    """
    tokenizer, model = load_model(folder, "float16")
    model.to(device())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    latency = memory = None
    if not quality_only:
        prompt = prompt_ids(run, tokenizer)
        decoder = TorchDecoder(model, torch.tensor([prompt], device=device()))
        latency = _latency(run, decoder, torch.cuda.synchronize if device() == "cuda" else lambda: None)
        memory = _torch_memory(run, prompt, folder)
    scorer = model if device() == "cuda" else model.float()
    with torch.inference_mode():
        quality = score_texts(run, tokenizer, lambda ids: scorer(ids.to(device()), use_cache=False).logits)
    quality_dtype = str(scorer.dtype).removeprefix("torch.")
    return Measurement(name, device_name(), "float16", "torch", parameters, latency, memory, quality, quality_dtype)


def measure_ir(run: Run, name: str, folder: Path, dtype: str, tokenizer) -> Measurement:
    """Measure the IR in `folder` on the CPU with the same prompt, tokens and threads as the torch models."""
    model = load_ir(folder)
    latency = _latency(run, model.decoder(np.array([prompt_ids(run, tokenizer)])), lambda: None)
    child = in_fresh_process(generate_from_ir, str(folder), prompt_ids(run, tokenizer), run.settings.new_tokens)
    memory = Memory(_weight_bytes(folder), child.peak_rss_bytes, child.start_rss_bytes)
    quality = score_texts(run, tokenizer, lambda ids: model.logits(ids.numpy()))
    cpu = environment.describe()["cpu"]
    return Measurement(name, cpu, dtype, "openvino", None, latency, memory, quality, dtype)


def _latency(run: Run, decoder, synchronize: Callable[[], None]) -> Latency:
    settings = run.settings
    return measure_latency(decoder, prompt_tokens=settings.prompt_tokens, new_tokens=settings.new_tokens, synchronize=synchronize)


def _torch_memory(run: Run, prompt: list[int], folder: Path) -> Memory:
    child = in_fresh_process(generate_from_torch, str(folder), prompt, run.settings.new_tokens)
    if child.value is not None:
        return Memory(_weight_bytes(folder), peak_vram_bytes=child.value)
    return Memory(_weight_bytes(folder), child.peak_rss_bytes, child.start_rss_bytes)


def generate_from_torch(folder: str, prompt: list[int], new_tokens: int) -> int | None:
    """Load an FP16 model, generate greedily and return the peak VRAM, None without a GPU; runs in a fresh process."""
    torch.set_num_threads(environment.threads())

    def generate() -> None:
        _, model = load_model(Path(folder), "float16")
        decoder = TorchDecoder(model.to(device()), torch.tensor([prompt], device=device()))
        decoder.start()
        for _ in range(new_tokens - 1):
            decoder.step()

    return peak_vram(generate)


def logits_from_torch(folder: str, ids: list[list[int]]) -> np.ndarray:
    """Load a model in FP32 and return its logits; runs in a fresh process."""
    torch.set_num_threads(environment.threads())
    _, model = load_model(Path(folder), "float32")
    with torch.inference_mode():
        return model(torch.tensor(ids), use_cache=False).logits.numpy()


def score_texts(run: Run, tokenizer, logits) -> Quality:
    """Score the held-out part of the run's text, the same bytes at every stage."""
    documents = take_bytes(run.texts.score, run.settings.score_bytes)
    text = "\n\n".join(document.text for document in documents)
    window = min(1024, tokenizer.model_max_length)
    ids = tokenizer(text, verbose=False).input_ids
    label = f"{run.texts.name} {run.texts.revision}, {len(documents)} documents joined by blank lines"
    return measure_quality(logits, ids, num_bytes=len(text.encode()), label=label, window=window, stride=window)


def prompt_ids(run: Run, tokenizer) -> list[int]:
    """Return the prompt of every latency measurement: the first tokens of the scored text."""
    ids = tokenizer(run.texts.score[0].text, verbose=False).input_ids
    wanted = run.settings.prompt_tokens
    if len(ids) < wanted:
        raise ValueError(f"the first scored document has {len(ids)} tokens, the prompt needs {wanted}; lower prompt_tokens")
    return ids[:wanted]


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds since the block began."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start
