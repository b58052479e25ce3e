"""Stage 3: fine-tune the pruned model, so that the heads that are left take over; by itself also in several processes."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.environment import is_main_process, set_seed
from gpt2opt.finetune import (
    BATCH_ROWS,
    create_training_arguments,
    loss_curves,
    prepare_tokenizer_for_padding,
    run_fine_tuning,
    tokenize_dataset,
)
from gpt2opt.record import FINETUNE, Measurement, Settings
from gpt2opt.report.tensorboard import drop_host_names, empty_log
from gpt2opt.sources.models import find_model, load_model, save_model
from gpt2opt.sources.texts import find_texts
from gpt2opt.stages.run import Run
from gpt2opt.storage import check_folder


def tokenize_training(run: Run, model: GPT2LMHeadModel) -> tuple[Dataset, Dataset | None]:
    """Return the rows that a model is trained on, and those that its loss is followed by; None where the text has none left.

    Nothing in them is scored or calibrated with; see `Texts`.
    """
    prepare_tokenizer_for_padding(run.tokenizer, model)
    length = min(run.settings.sequence_length, model.config.n_positions)
    train, validation = (
        tokenize_dataset(Dataset.from_dict({"text": texts}), run.tokenizer, length) if texts else None for texts in run.training_texts()
    )
    return train, validation


def run_finetune(run: Run) -> Measurement:
    """Fine-tune the pruned model and measure it, and as a control the unpruned model, tuned on the same budget."""
    for name, source, log_dir in (("Fine-tuned", "Pruned", run.traces / FINETUNE), ("Fine-tuned, unpruned", "Baseline", None)):
        set_seed(run.settings.seed)
        model = run.load(source)
        train, validation = tokenize_training(run, model)
        curves = train_model(model, run.tokenizer, train, run.settings, validation, log_dir)
        run.measure(name, model.cpu().half(), **curves)
    return run.record.measured("Fine-tuned")


def finetune_model(
    model: str = "auto", text: str = "auto", out: str | Path = "artifacts/finetuned", epochs: float = Settings.epochs
) -> dict[str, Any]:
    """Fine-tune a model by itself, outside a run: what `gpt2opt finetune` does, in one process or in each that a launcher started.

    Args:
        model: pruned or not; see `find_model`.
        text: see `find_texts`; all of its part for fine-tuning is trained on.
        out: folder that the main process writes, in FP16: a new or empty one, or one that was written here before.
        epochs: 1 to 5 is usual; a fraction is allowed.

    Returns:
        What was trained on what, and the loss; the same in every process.

    Raises:
        ValueError: a source can't be found, `out` can't be written, the processes can't share a batch evenly, or the training ended in
            weights that are no numbers in FP16: then nothing is written.
    """
    settings = Settings(epochs=epochs)
    found, texts = find_model(model), find_texts(text)
    if is_main_process():
        check_folder(out)
    out = Path(out)
    begun = time.perf_counter()
    set_seed(settings.seed)
    tokenizer, loaded = load_model(found.path)
    prepare_tokenizer_for_padding(tokenizer, loaded)
    length = min(settings.sequence_length, loaded.config.n_positions)
    rows = tokenize_dataset(Dataset.from_dict({"text": [document.text for document in texts.fine_tune]}), tokenizer, length)
    tuned = train_model(loaded, tokenizer, rows, settings)
    if is_main_process():
        save_model(out, tokenizer, loaded.cpu().half())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    seconds = time.perf_counter() - begun
    return {"model": str(found), "text": f"{texts} {texts.revision}", "out": str(out), "seconds": seconds, "row_tokens": length, **tuned}


def train_model(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    settings: Settings,
    validation: Dataset | None = None,
    log_dir: Path | None = None,
) -> dict[str, Any]:
    """Train a model in place with the settings of a run; return what it was trained on, and its `loss_curves`.

    Args:
        rows, validation: from `tokenize_dataset`.
        log_dir: TensorBoard logs of the loss go there, in place of those of an earlier training; none without it.
    """
    if log_dir is not None:
        empty_log(log_dir)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = create_training_arguments(
            scratch, settings.learning_rate, epochs=settings.epochs, log_dir=log_dir, seed=settings.seed, validate=validation is not None
        )
        trainer = run_fine_tuning(model, arguments, rows, tokenizer, validation)
    if log_dir is not None:
        drop_host_names(log_dir)
    return {
        "epochs": settings.epochs,
        "rows": len(rows),
        "batch_rows": BATCH_ROWS,
        "processes": arguments.world_size,
        "steps": trainer.state.global_step,
        **loss_curves(trainer),
    }
