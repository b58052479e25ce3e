"""From a choice to an IR on disk: a run's own, or one that is made on first use, with what the precision costs measured beside it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2opt import environment
from gpt2opt.apps.ui.choices import FP32, SIZES, Choice
from gpt2opt.measure.child import Child
from gpt2opt.measure.results import Agreement, Memory
from gpt2opt.run.record import read_record
from gpt2opt.runtime.manifest import read_manifest
from gpt2opt.sources.models import find_model
from gpt2opt.storage import from_json, hash_weights, read_json, write_result

SCHEMA = "gpt2opt.ui/1"
IR = "openvino_model.xml"
OF_A_RUN = {FP32: ("FP32", "4-control-fp32"), "w8a8": ("INT8", "4-quantize"), "w8a8-naive": ("INT8, naive", "4-control-naive")}
"""Precision -> the model's name in the record of a run, and its folder."""
TORCH_OF_A_RUN = "3-finetune"
STORED = {"f32": (FP32,), "i8": ("w8a8", "w8", "w8a8-naive"), "i4": ("w4",)}
"""Type of an IR's weights -> the precisions that it may be."""
SCORED_BYTES = 24_000
"""Text on which the cost of a precision is measured: enough for an interval, and seconds of work on gpt2."""
MEMORY_PROMPT, MEMORY_NEW_TOKENS = 64, 24

Tell = Callable[[int, int, str], None]
"""Is told of progress: the step that begins, of how many, and what it does."""


@dataclass(frozen=True)
class Cost:
    """What a precision costs against FP32 of the same weights, and what serving it takes. None: not measured.

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
    """An IR on disk. name: the model, and where it comes from. made: it was made here, not taken as it was."""

    name: str
    folder: Path
    cost: Cost
    made: bool


def cost_of(agreement: Agreement | None, memory: Memory | None, cpu: str) -> Cost:
    """Gather a cost from measurements."""
    found: dict[str, Any] = {"cpu": cpu}
    if agreement:
        found |= {"kl_nats": agreement.mean_kl, "kl_interval": agreement.mean_kl_interval(), "same_top": agreement.top1}
        found |= {"same_top_interval": agreement.top1_interval(), "tokens": sum(agreement.document_tokens), "text": agreement.protocol}
    if memory:
        found |= {"weight_bytes": memory.weight_bytes, "peak_rss_bytes": memory.peak_rss_bytes}
    return Cost(**found)


def known_cost(choice: Choice, out: Path) -> Cost | None:
    """Return what has been measured of a choice already, without making anything; None if nothing has."""
    if prepared := taken_as_it_is(choice):
        return prepared.cost
    return _read_cost(_cost_file(cache_folder(choice, out)))


def prepare(choice: Choice, out: Path, tell: Tell) -> Prepared:
    """Return the IR of a choice. What there is none of yet is made under `out`, in a process of its own, which takes its memory with it.

    Raises:
        ValueError: the model can't be found or read, a folder holds another precision than the chosen one, or `out` can't be written.
    """
    if prepared := taken_as_it_is(choice):
        return prepared
    folder = cache_folder(choice, out)
    name, cost = folder.parent.name, _read_cost(_cost_file(folder))
    if not (folder / IR).exists() or cost is None:
        cost = _make(choice, folder, tell)
    return Prepared(name, folder, cost, made=True)


def taken_as_it_is(choice: Choice) -> Prepared | None:
    """Return the IR that a folder of a run, or of an IR, has in a precision; None if there is none and it has to be made."""
    if choice.model in SIZES:
        return None
    folder = Path(choice.model).resolve()
    if (folder / IR).exists():
        weights = read_manifest(folder).weights
        stored = STORED[weights]
        if choice.precision not in stored:
            raise ValueError(f"{choice.model} holds an IR in {' or '.join(stored)}, not in {choice.precision}; choose that precision")
        # One type may be that of several precisions, and the manifest does not tell which: so the name says what is known.
        return Prepared(f"{folder.name}, an IR of {weights} weights as it is", folder, Cost(), made=False)
    if choice.precision not in OF_A_RUN:
        return None
    name, inside = OF_A_RUN[choice.precision]
    if not (folder / "run.json").exists() or not (folder / inside / IR).exists():
        return None
    record = read_record(folder / "run.json")
    measured = record.models.get(name)
    agreement = measured.agreement if measured and choice.precision != FP32 else None
    cost = cost_of(agreement, measured.memory if measured else None, environment.machine_label(record.environment))
    return Prepared(f"{folder.name}, {inside}", folder / inside, cost, made=False)


def torch_folder(model: str) -> Path:
    """Return the torch model in a chosen folder: the folder itself, or the fine-tuned model of a run."""
    inside = Path(model, TORCH_OF_A_RUN)
    return (inside if inside.is_dir() else Path(model)).resolve()


def cache_folder(choice: Choice, out: Path) -> Path:
    """Return where the IR of a choice is made. A folder's weights are part of its name: weights that change give another IR."""
    if choice.model in SIZES:
        return out / choice.model / choice.precision
    folder = torch_folder(choice.model)
    return out / f"{Path(choice.model).resolve().name}-{hash_weights(folder)[:8]}" / choice.precision


def _cost_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _read_cost(path: Path) -> Cost | None:
    if not path.exists():
        return None
    content = read_json(path, SCHEMA, "gpt2opt ui")
    return from_json(Cost, content["cost"])


def _make(choice: Choice, folder: Path, tell: Tell) -> Cost:
    steps = [
        ("find", f"finding {choice.model}"),
        ("make", f"writing {choice.precision}" if choice.precision == FP32 else f"quantizing to {choice.precision}"),
        ("measure", f"measuring what {choice.precision} takes and costs"),
    ]
    try:
        tell(1, len(steps) + 1, steps[0][1])
        with Child(Maker, choice.model, choice.precision, str(folder)) as child:
            for number, (method, text) in enumerate(steps, 1):
                tell(number, len(steps) + 1, text)
                value = child.call(method)
    except RuntimeError as error:  # what the child raised, as a traceback; its last line says it
        raise ValueError(str(error).strip().splitlines()[-1].partition(": ")[2] or str(error)) from error
    cost = Cost(**value)
    content = {"schema": SCHEMA, "cost": dataclasses.asdict(cost)}
    write_result(_cost_file(folder), json.dumps(content, indent=1) + "\n")
    return cost


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
        from gpt2opt.quantize.fake_quant import linearize
        from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8

        if (self.folder / IR).exists():
            return
        if self.precision == FP32:
            export_ir(linearize(self.model), self.tokenizer, self.folder)
            return
        rows = prepare_calibration_dataset([document.text for document in self.texts.calibration], self.tokenizer)
        quantize_int8(self.model, self.tokenizer, rows, self.folder, self.precision)

    def measure(self) -> dict[str, Any]:
        from gpt2opt.decoding.text import encode
        from gpt2opt.measure.memory import in_fresh_process
        from gpt2opt.measure.quality import measure_agreement, prepare_text
        from gpt2opt.runtime.generate import generate_from_ir
        from gpt2opt.runtime.ir_model import load_ir
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
        return dataclasses.asdict(cost_of(agreement, memory, environment.machine_label(environment.describe())))
