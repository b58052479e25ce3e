"""One run: what was found, what it is asked to do, and where it writes."""

import dataclasses
import datetime
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2opt import environment
from gpt2opt.measure.quality import JOIN, window_length
from gpt2opt.record import Record, Settings
from gpt2opt.report.tensorboard import write_tensorboard
from gpt2opt.sources.models import FoundModel, find_model, heads_per_layer, load_model
from gpt2opt.sources.texts import Texts, find_texts, take_bytes, token_rows
from gpt2opt.storage import check_file, check_folder, claim_folder, remove_folder, take_lock

RECORD = "run.json"
MIN_CALIBRATION_SEQUENCES = 8
MIN_CONTEXT = 16

logger = logging.getLogger(__name__)


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
        self.write()

    def write(self) -> None:
        """Write the record; beside the traces and into TensorBoard too: these are handed in with the notebook, the weights are not."""
        for folder in (self.out, self.traces):
            self.record.write(folder / RECORD)
        write_tensorboard(self.record, self.traces / "report")


def start_run(model: str = "auto", text: str = "auto", out: str | Path = "artifacts", traces: str | Path = "traces", **settings) -> Run:
    """Find the model and the text, check the versions, fix the seed, and begin an empty record.

    Args:
        model: see `find_model`.
        text: see `find_texts`.
        out: folder of the run: a new or empty one, or that of an earlier run, whose stages are removed. This process locks it.
        traces: folder of the profiler traces and TensorBoard logs.
        settings: fields of `Settings` to change. Lengths that a model with a small context can't have are cut to it.

    Raises:
        ImportError: a package's version is known not to work.
        ValueError: a source can't be found or used, `out` can't be written or is in use, or a launcher started several processes.
    """
    if (processes := environment.launched_processes()) > 1:
        raise ValueError(
            f"{processes} processes were launched, and the four stages run in one; start them without a launcher, "
            "and fine-tune in several with gpt2opt finetune"
        )
    environment.check_stack()
    check_folder(out)
    for folder in (out, traces):
        check_file(Path(folder) / RECORD)
    chosen = Settings(**settings)
    check_fraction(chosen.prune_fraction)
    check_epochs(chosen.epochs)
    found, texts = find_model(model), find_texts(text)
    tokenizer, loaded = load_model(found.path)
    heads_per_layer(loaded)
    chosen = fit_to_context(chosen, window_length(tokenizer))
    _check_lengths(texts, chosen, tokenizer)
    out, traces = claim_folder(out), Path(traces)
    take_lock(out)
    environment.set_seed(chosen.seed)
    torch.set_num_threads(environment.threads())
    sources = {
        "model": {"name": found.name, "origin": found.origin, "stand_in": found.stand_in},
        "text": {"name": texts.name, "origin": texts.origin, "stand_in": texts.stand_in, "revision": texts.revision},
    }
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    run = Run(out, traces, found, texts, Record(created, environment.describe(), sources, chosen))
    for earlier in out.glob("[1-4]-*"):
        remove_folder(earlier)
    run.write()
    return run


def fit_to_context(settings: Settings, context: int) -> Settings:
    """Cut rows, prompts and new tokens to what the model can read at once; a prompt and its new tokens share that, the prompt gets half.

    Raises:
        ValueError: the context is too small for anything to be measured.
    """
    if context < MIN_CONTEXT:
        raise ValueError(f"the model reads {context} tokens at once, at least {MIN_CONTEXT} are needed; name a model with a longer context")
    new_tokens = min(settings.new_tokens, context // 2)
    prompt_tokens, sequence_length = min(settings.prompt_tokens, context - new_tokens), min(settings.sequence_length, context)
    fitted = dataclasses.replace(settings, new_tokens=new_tokens, prompt_tokens=prompt_tokens, sequence_length=sequence_length)
    if fitted != settings:
        logger.warning(
            "the model reads %d tokens at once, so this run takes rows of %d tokens, and a prompt of %d with %d new tokens",
            context, sequence_length, prompt_tokens, new_tokens,
        )  # fmt: skip
    return fitted


def _check_lengths(texts: Texts, settings: Settings, tokenizer) -> None:
    """Raise ValueError if a part of the text is too short for what a later stage needs of it, before any stage has begun."""
    length, context = settings.sequence_length, window_length(tokenizer)
    counts = {
        "scored": len(tokenizer(scored_text(texts, settings), verbose=False).input_ids) // (settings.prompt_tokens + 1),
        "fine-tuning": whole_rows([d.text for d in take_bytes(texts.fine_tune, settings.fine_tune_bytes)], tokenizer, length),
        "calibration": whole_rows([d.text for d in texts.calibration], tokenizer, context) // MIN_CALIBRATION_SEQUENCES,
    }
    short = [part for part, count in counts.items() if not count]
    if short:
        raise ValueError(
            f"the {' and '.join(short)} part of {texts.name} is too short; expected a prompt of {settings.prompt_tokens} tokens in the "
            f"scored part, a row of {length} in the fine-tuning part and {MIN_CALIBRATION_SEQUENCES} of {context} in the calibration part: "
            "give a longer text"
        )


def whole_rows(texts: list[str], tokenizer, length: int) -> int:
    """Count the rows of a full `length` tokens that the texts give."""
    return sum(len(row) == length for row in token_rows(texts, tokenizer, length))


def check_fraction(prune_fraction: float) -> None:
    """Raise ValueError unless every layer would keep a head."""
    if not 0 <= prune_fraction < 1:
        raise ValueError(f"prune_fraction={prune_fraction} is outside [0, 1); at least one head a layer must stay")


def check_epochs(epochs: float) -> None:
    if not epochs > 0:
        raise ValueError(f"epochs={epochs}, expected more than 0; 1 to 5 is usual")


def scored_documents(texts: Texts, settings: Settings) -> list[str]:
    return [document.text for document in take_bytes(texts.score, settings.score_bytes)]


def scored_text(texts: Texts, settings: Settings) -> str:
    return JOIN.join(scored_documents(texts, settings))


def fine_tune_texts(run: Run) -> list[str]:
    """Return the texts that are trained on; the importance of heads is estimated on them as well."""
    return [document.text for document in take_bytes(run.texts.fine_tune, run.settings.fine_tune_bytes)]


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds since the block began."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start
