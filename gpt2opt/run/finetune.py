"""Stage 3: fine-tune the pruned model, so that the heads that are left take over; by itself also in several processes."""

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.environment import set_seed
from gpt2opt.finetune import (
    BATCH_ROWS,
    create_training_arguments,
    loss_curves,
    prepare_tokenizer_for_padding,
    run_fine_tuning,
    tokenize_dataset,
)
from gpt2opt.report.tensorboard import drop_host_names, empty_log
from gpt2opt.run.record import FINETUNE, Measurement, Settings
from gpt2opt.run.recorder import Run


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
