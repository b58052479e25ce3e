"""The models of the page: an IR for each choice, a run's own or one that is made on first use, loaded once for everybody."""

import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2opt import environment
from gpt2opt.apps.ui.choices import FP32, SIZES, Choice
from gpt2opt.decoding.decoder import Model
from gpt2opt.decoding.text import encode
from gpt2opt.measure.child import Child
from gpt2opt.measure.results import Agreement, Memory
from gpt2opt.run.record import read_record
from gpt2opt.runtime.manifest import is_ir, read_manifest
from gpt2opt.sources.hub import cached_snapshot
from gpt2opt.sources.models import BUNDLED, PATTERNS, find_model, load_tokenizer
from gpt2opt.storage import from_json, hash_weights, read_json, write_result

SCHEMA = "gpt2opt.ui/1"
OF_A_RUN = {FP32: ("FP32", "4-control-fp32"), "w8a8": ("INT8", "4-quantize"), "w8a8-naive": ("INT8, naive", "4-control-naive")}
"""Precision -> the model's name in the record of a run, and its folder."""
TORCH_OF_A_RUN = "3-finetune"
STORED = {"f32": (FP32,), "i8": ("w8a8", "w8", "w8a8-naive"), "i4": ("w4",)}
"""Type of an IR's weights -> the precisions that it may be."""
SCORED_BYTES = 24_000
"""Text on which the cost of a precision is measured: enough for an interval, and seconds of work on gpt2."""
MEMORY_PROMPT, MEMORY_NEW_TOKENS = 64, 24
KEPT = 4
"""How many models stay loaded: two people can compare two precisions each. With one more, the one that was asked for longest ago goes."""

Progress = Callable[[int, int, str], None]
"""Called with the step that begins, the number of steps, and what the step does."""


@dataclass
class Cost:
    """What a precision costs compared with FP32 of the same weights, and what serving it takes. None: not measured.

    kl_nats: mean KL(FP32 ‖ this) per token. same_top: the share of tokens at which both have the same most likely token. The intervals are
    over documents, at `stats.CONFIDENCE`. peak_rss_bytes: of a fresh process that loads the model and generates.
    """

    kl_nats: float | None = None
    kl_interval: tuple[float, ...] | None = None
    same_top: float | None = None
    same_top_interval: tuple[float, ...] | None = None
    tokens: int | None = None
    text: str | None = None
    weight_bytes: int | None = None
    peak_rss_bytes: int | None = None
    cpu: str | None = None


@dataclass(frozen=True)
class Prepared:
    """An IR on disk. name: the model, and where it comes from."""

    name: str
    folder: Path
    cost: Cost


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with its tokenizer."""

    prepared: Prepared
    model: Model
    tokenizer: Any


@dataclass
class _Entry:
    """A model that is loaded or will be. listeners: of its progress. last: what they heard last."""

    future: "Future[Loaded]" = field(default_factory=Future)
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    last: dict[str, Any] | None = None


class Library:
    """Loads models, one after the other on a thread of its own, each once for all who ask for it."""

    def __init__(self, out: Path):
        """Take the folder that models are made in."""
        self.out = out
        self._lock = threading.RLock()
        self._entries: OrderedDict[Choice, _Entry] = OrderedDict()
        self._worker = ThreadPoolExecutor(1, "library")
        self._tokenizers: dict[str, Any] = {}
        self._tokenizing = threading.Lock()

    def ask(self, choice: Choice, listener: Callable[[dict[str, Any]], None]) -> "Future[Loaded]":
        """Return a future of a model, which raises ValueError if the model can't be found, made or loaded.

        The listener is called with the progress, as events for the page, on another thread.
        """
        with self._lock:
            if choice not in self._entries:
                busy = any(not other.future.done() for other in self._entries.values())
                entry = self._entries[choice] = _Entry()
                if busy:
                    self._report(entry, 0, 1, "waiting until another model is loaded")
                entry.future = self._worker.submit(self._load, choice, entry)
            entry = self._entries[choice]
            self._entries.move_to_end(choice)
            if not entry.future.done():
                entry.listeners.append(listener)
                if entry.last:
                    listener(entry.last)
            return entry.future

    def count(self, choice: Choice, text: str) -> int | None:
        """Return how many tokens a text has; None as long as the model, loaded or not, has no tokenizer on this disk."""
        with self._tokenizing:  # all who type share a tokenizer
            if choice.model not in self._tokenizers and (folder := tokenizer_folder(choice, self.out)):
                self._tokenizers[choice.model] = load_tokenizer(folder, serving=True)
            found = self._tokenizers.get(choice.model)
            return None if found is None else len(encode(found, text).input_ids)

    def names(self) -> list[str]:
        """Return what is loaded, the model that was asked for last at the end."""
        with self._lock:
            loaded = {choice: entry.future.result() for choice, entry in self._entries.items() if entry.future.done()}
        return [f"{each.prepared.name} {choice.precision}" for choice, each in loaded.items()]

    def _report(self, entry: _Entry, step: int, steps: int, text: str) -> None:
        with self._lock:  # one who asks meanwhile hears this once
            entry.last = {"event": "progress", "step": step, "steps": steps, "text": text}
            for listener in entry.listeners:
                listener(entry.last)

    def _load(self, choice: Choice, entry: _Entry) -> Loaded:
        from gpt2opt.runtime.ir_model import load_ir

        def progress(step: int, steps: int, text: str) -> None:
            self._report(entry, step, steps, text)

        try:
            prepared = prepare(choice, self.out, progress)
            progress(1, 1, "loading it")
            with self._tokenizing:  # two threads that import transformers at once fail
                tokenizer = load_tokenizer(prepared.folder, serving=True)
            # The first call undoes padding and truncation that were saved with it, and must not do that while another thread tokenizes.
            encode(tokenizer, "a")
            loaded = Loaded(prepared, load_ir(prepared.folder), tokenizer)
        except Exception:
            with self._lock:
                del self._entries[choice]
            raise
        with self._lock:
            others = [other for other, each in self._entries.items() if each.future.done()]
            for other in others[: len(others) + 1 - KEPT]:
                del self._entries[other]  # streams that still use it keep it until they end
        return loaded


def cost_of(agreement: Agreement | None, memory: Memory | None, cpu: str) -> Cost:
    """Gather a cost from measurements."""
    cost = Cost(cpu=cpu)
    if agreement:
        cost.kl_nats, cost.kl_interval = agreement.mean_kl, agreement.mean_kl_interval()
        cost.same_top, cost.same_top_interval = agreement.top1, agreement.top1_interval()
        cost.tokens, cost.text = sum(agreement.document_tokens), agreement.protocol
    if memory:
        cost.weight_bytes, cost.peak_rss_bytes = memory.weight_bytes, memory.peak_rss_bytes
    return cost


def known(choice: Choice, out: Path) -> Prepared | None:
    """Return the IR of a choice that is there already, with what has been measured of it; None if it has to be made.

    Raises:
        ValueError: a folder holds another precision than the chosen one, or what it holds can't be read.
    """
    if prepared := taken_as_it_is(choice):
        return prepared
    folder = cache_folder(choice, out)
    measured = folder.with_suffix(".json")
    if not measured.exists() or not is_ir(folder):
        return None
    return Prepared(folder.parent.name, folder, from_json(Cost, read_json(measured, SCHEMA, "gpt2opt ui")["cost"]))


def taken_as_it_is(choice: Choice) -> Prepared | None:
    """Return the IR that a folder of a run, or of an IR, has in a precision; None if there is none and it has to be made."""
    if choice.model in SIZES:
        return None
    folder = Path(choice.model).resolve()
    if is_ir(folder):
        weights = read_manifest(folder).weights
        stored = STORED[weights]
        if choice.precision not in stored:
            raise ValueError(f"{choice.model} holds an IR in {' or '.join(stored)}, not in {choice.precision}; choose that precision")
        # One type may be that of several precisions, and the manifest does not say which: so the name says what is known.
        return Prepared(f"{folder.name}, an IR of {weights} weights as it is", folder, Cost())
    name, inside = OF_A_RUN.get(choice.precision, ("", ""))
    if not name or not (folder / "run.json").exists() or not is_ir(folder / inside):
        return None
    record = read_record(folder / "run.json")
    measured = record.models.get(name)
    agreement = measured.agreement if measured and choice.precision != FP32 else None
    cost = cost_of(agreement, measured.memory if measured else None, environment.machine_label(record.environment))
    return Prepared(f"{folder.name}, {inside}", folder / inside, cost)


def torch_folder(model: str) -> Path:
    """Return the torch model in a chosen folder: the folder itself, or the fine-tuned model of a run."""
    inside = Path(model, TORCH_OF_A_RUN)
    return (inside if inside.is_dir() else Path(model)).resolve()


def tokenizer_folder(choice: Choice, out: Path) -> Path | None:
    """Return a folder that has the tokenizer of a choice already; None if its model has to be downloaded first."""
    if prepared := known(choice, out):
        return prepared.folder
    if choice.model in SIZES:
        return BUNDLED if choice.model == "bundled" else cached_snapshot(choice.model, PATTERNS)
    return torch_folder(choice.model)


def cache_folder(choice: Choice, out: Path) -> Path:
    """Return where the IR of a choice is made. A folder's weights are part of its name: weights that change give another IR."""
    name = choice.model
    if name not in SIZES:
        name = f"{Path(name).resolve().name}-{hash_weights(torch_folder(name))[:8]}"
    return out / name / choice.precision


def prepare(choice: Choice, out: Path, progress: Progress) -> Prepared:
    """Return the IR of a choice. If there is none yet, it is made under `out`, in a process of its own, which takes its memory with it.

    Raises:
        ValueError: the model can't be found or made, or as `known`.
    """
    if prepared := known(choice, out):
        return prepared
    folder = cache_folder(choice, out)
    steps = {
        "find": f"finding {choice.model}",
        "make": f"writing {choice.precision}" if choice.precision == FP32 else f"quantizing to {choice.precision}",
        "measure": f"measuring what {choice.precision} takes and costs",
    }
    try:
        with Child(Maker, choice.model, choice.precision, str(folder)) as child:
            for number, (method, text) in enumerate(steps.items(), 1):
                progress(number, len(steps), text)
                cost = child.call(method)
    except RuntimeError as error:  # what the child raised, as a traceback; its last line says it
        raise ValueError(str(error).strip().splitlines()[-1].partition(": ")[2] or str(error)) from error
    write_result(folder.with_suffix(".json"), json.dumps({"schema": SCHEMA, "cost": dataclasses.asdict(cost)}, indent=1) + "\n")
    return Prepared(folder.parent.name, folder, cost)


class Maker:
    """Makes an IR from a torch model, and measures it, step by step; it works in a fresh process."""

    def __init__(self, model: str, precision: str, folder: str):
        self.model_id, self.precision, self.folder = model, precision, Path(folder)

    def find(self) -> None:
        from gpt2opt.sources.models import load_model
        from gpt2opt.sources.texts import find_texts

        found = find_model(self.model_id if self.model_id in SIZES else str(torch_folder(self.model_id)))
        self.tokenizer, self.model = load_model(found.path)
        self.texts = find_texts()

    def make(self) -> None:
        from gpt2opt.export.openvino import export_ir
        from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
        from gpt2opt.quantize.linear import prepare_for_export

        if is_ir(self.folder):
            return
        if self.precision == FP32:
            export_ir(prepare_for_export(self.model), self.tokenizer, self.folder)
            return
        rows = prepare_calibration_dataset([document.text for document in self.texts.calibration], self.tokenizer)
        quantize_int8(self.model, self.tokenizer, rows, self.folder, self.precision)

    def measure(self) -> Cost:
        from gpt2opt.measure.memory import in_fresh_process
        from gpt2opt.measure.quality import measure_agreement, prepare_text
        from gpt2opt.runtime.ir_model import generate_from_ir, load_ir
        from gpt2opt.sources.texts import take_bytes
        from gpt2opt.storage import weight_files
        from gpt2opt.torch_model import logits_of

        documents = [document.text for document in take_bytes(self.texts.score, SCORED_BYTES)]
        agreement = None
        if self.precision != FP32:
            text = prepare_text(self.tokenizer, documents, f"{self.texts} {self.texts.revision}")
            _, agreement = measure_agreement(logits_of(load_ir(self.folder)), logits_of(self.model), text, reference_name="FP32 in torch")
        ids = encode(self.tokenizer, documents[0]).input_ids[:MEMORY_PROMPT]
        ran = in_fresh_process(generate_from_ir, str(self.folder), ids, MEMORY_NEW_TOKENS, libraries=("openvino",))
        memory = Memory(sum(path.stat().st_size for path in weight_files(self.folder)), ran.peak_rss_bytes)
        return cost_of(agreement, memory, environment.machine_label(environment.describe()))
