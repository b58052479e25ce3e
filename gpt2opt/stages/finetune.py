"""Stage 3: fine-tune the pruned model, so that the heads that are left take over."""

import dataclasses
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, default_data_collator

from gpt2opt.environment import set_seed
from gpt2opt.report.results import Measurement, StageResult, hash_weights
from gpt2opt.report.tensorboard import drop_host_names, empty_log
from gpt2opt.sources.models import load_model
from gpt2opt.sources.texts import token_rows
from gpt2opt.stages import profile, prune
from gpt2opt.stages.run import Parent, Run, compared, device, fine_tune_texts, measure_torch, stopwatch, time_torch, torch_memory

NAME = "3-finetune"
IGNORED_LABEL = -100  # what torch's cross-entropy skips


def prepare_tokenizer_for_padding(tokenizer: PreTrainedTokenizerBase, model: GPT2LMHeadModel) -> None:
    """Let end-of-text serve as padding, in the tokenizer and in the model's config: GPT-2 was made without a padding token."""
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def tokenize_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int = 256) -> Dataset:
    """Tokenize a dataset for causal language modelling, with padding masked out of the loss.

    Long texts become several rows, empty ones none. The labels are the ids, -100 where a row is padded. They are made here and not by
    a collator that masks the padding *token*: padding is end-of-text, and a model must learn to predict the real one.

    Args:
        dataset: column `text`.
        tokenizer: with a padding token; see `prepare_tokenizer_for_padding`.
        length: tokens a row.

    Returns:
        A dataset with `input_ids`, `attention_mask` and `labels`, each (rows, length).

    Raises:
        ValueError: no padding token, no column `text`, or no text in it.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; call prepare_tokenizer_for_padding(tokenizer, model) first")
    if "text" not in dataset.column_names:
        raise ValueError(f"the dataset has columns {dataset.column_names}, expected 'text'")

    def pad(batch: dict) -> dict:
        rows = token_rows(batch["text"], tokenizer, length)
        gaps = [length - len(row) for row in rows]
        return {
            "input_ids": [row + [tokenizer.pad_token_id] * gap for row, gap in zip(rows, gaps, strict=True)],
            "attention_mask": [[1] * len(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)],
            "labels": [row + [IGNORED_LABEL] * gap for row, gap in zip(rows, gaps, strict=True)],
        }

    tokenized = dataset.map(pad, batched=True, remove_columns=dataset.column_names)
    if not len(tokenized):
        raise ValueError(f"none of the {len(dataset)} texts holds two tokens; give text with words in it")
    return tokenized


def create_training_arguments(
    output_dir: str | Path = "gpt2_finetuned",
    learning_rate: float = 5e-4,
    *,
    epochs: float = 1,
    log_dir: str | Path | None = None,
    seed: int = 0,
) -> TrainingArguments:
    """Build the arguments of a short fine-tuning: AdamW, 10% warm-up, linear decay to zero.

    Args:
        output_dir: where `Trainer` may write; no checkpoints are kept.
        learning_rate: peak.
        epochs: 1 to 5 is usual; a fraction is allowed.
        log_dir: TensorBoard logs of the loss go there; none without it.
        seed: of the order of the rows.
    """
    return TrainingArguments(
        output_dir=str(output_dir),
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        warmup_ratio=0.1,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        adam_beta2=0.95,
        logging_steps=5,
        logging_dir=None if log_dir is None else str(log_dir),
        report_to=[] if log_dir is None else ["tensorboard"],
        save_strategy="no",
        disable_tqdm=False,  # a progress bar even where the log level is quiet
        seed=seed,
    )


def run_fine_tuning(
    model: GPT2LMHeadModel, training_args: TrainingArguments, tokenized_train: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Trainer:
    """Train `model` in place and return the `Trainer`, its log in `trainer.state.log_history`.

    The model is trained in FP32 whatever it came in: small updates vanish in FP16 weights. Cast it back afterwards.
    """
    trainer = Trainer(
        model.float(), training_args, train_dataset=tokenized_train, data_collator=default_data_collator, processing_class=tokenizer
    )
    trainer.train()
    return trainer


def run_finetune(run: Run) -> StageResult:
    """Fine-tune the pruned model and measure it; control: the unpruned model, tuned on the same budget."""
    before, folder = run.folder(prune.NAME), run.folder(NAME)
    with stopwatch() as seconds:
        log, rows = _tune(run, before, folder, run.traces / NAME)
        control = _tuned_unpruned_control(run)
        facts = {
            "epochs": run.settings.epochs,
            "rows": rows,
            "row_tokens": run.settings.sequence_length,
            "loss": [{"step": entry["step"], "loss_nats": entry["loss"]} for entry in log if "loss" in entry],
            "tensorboard": f"{run.traces.name}/{NAME}",
        }
        first = Parent(profile.NAMED, run.folder(profile.NAME))
        latencies = time_torch(run, {"Fine-tuned": folder, first.name: first.folder})
        measurement = dataclasses.replace(
            measure_torch(run, "Fine-tuned", folder, first), latency=latencies["Fine-tuned"], memory=torch_memory(run, folder)
        )
        stage = StageResult(
            NAME, hash_weights(before), hash_weights(folder), measurement, seconds(), (control,), facts, (compared(latencies),)
        )
    run.finish(stage)
    return stage


def _tuned_unpruned_control(run: Run) -> Measurement:
    folder = run.out / "3-control-unpruned"
    _tune(run, run.folder(profile.NAME), folder, None)
    return measure_torch(run, "Fine-tuned, unpruned", folder)


def _tune(run: Run, before: Path, folder: Path, log_dir: Path | None) -> tuple[list[dict], int]:
    """Fine-tune the model in `before` into `folder`; return the training log and the number of rows."""
    settings = run.settings
    set_seed(settings.seed)
    tokenizer, model = load_model(before)
    prepare_tokenizer_for_padding(tokenizer, model)
    rows = tokenize_dataset(Dataset.from_dict({"text": fine_tune_texts(run)}), tokenizer, settings.sequence_length)
    if log_dir is not None:
        empty_log(log_dir)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = create_training_arguments(scratch, settings.learning_rate, epochs=settings.epochs, log_dir=log_dir, seed=settings.seed)
        trainer = run_fine_tuning(model.to(device()), arguments, rows, tokenizer)
    if log_dir is not None:
        drop_host_names(log_dir)
    profile.save_model(folder, tokenizer, model.cpu().half())
    return trainer.state.log_history, len(rows)
