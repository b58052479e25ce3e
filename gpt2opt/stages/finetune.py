"""Stage 3: fine-tune the pruned model, so that the heads that are left take over; by itself also in several processes."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, default_data_collator

from gpt2opt.environment import is_main_process, launched, set_seed
from gpt2opt.record import Measurement, Settings, StageResult
from gpt2opt.report.tensorboard import drop_host_names, empty_log
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.sources.texts import find_texts, token_rows
from gpt2opt.stages import profile, prune
from gpt2opt.stages.measurements import Reference, compared, device, measure_torch, time_torch, torch_memory
from gpt2opt.stages.run import Run, check_epochs, fine_tune_texts, stopwatch
from gpt2opt.storage import check_folder, hash_weights, save_model

NAME = "3-finetune"
BATCH_ROWS = 8  # of all processes together
IGNORED_LABEL = -100  # what torch's cross-entropy skips


def prepare_tokenizer_for_padding(tokenizer: PreTrainedTokenizerBase, model: GPT2LMHeadModel) -> None:
    """Let end-of-text serve as padding, in the tokenizer and in the model's config: GPT-2 was made without a padding token."""
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def tokenize_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int = 256) -> Dataset:
    """Tokenize a dataset for causal language modelling, with padding masked out of the loss.

    Long texts become several rows, empty ones none. The labels are the ids, -100 where a row is padded. They are made here and not by
    a collator that masks the padding *token*: padding is end-of-text, and a model must learn to predict the real one. The first label is
    -100 as well: no token predicts it, and `Trainer` divides the summed loss by the number of labels that it finds.

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
            "labels": [[IGNORED_LABEL, *row[1:], *[IGNORED_LABEL] * gap] for row, gap in zip(rows, gaps, strict=True)],
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

    Under `torchrun` or `accelerate launch` this joins the processes, which share a batch of 8 rows: by NCCL on GPUs, by gloo on CPUs.

    Args:
        output_dir: where `Trainer` may write; no checkpoints are kept.
        learning_rate: peak.
        epochs: 1 to 5 is usual; a fraction is allowed.
        log_dir: TensorBoard logs of the loss go there; none without it.
        seed: of the order of the rows.

    Raises:
        ValueError: the processes can't share a batch evenly.
    """
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        learning_rate=learning_rate,
        num_train_epochs=epochs,
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
        log_level_replica="error",
        use_cpu=launched() and device() == "cpu",  # accelerate joins processes without a GPU only if told so
        ddp_find_unused_parameters=False,  # there are none, pruned or not
        ddp_broadcast_buffers=False,  # GPT-2's are causal masks, megabytes a step
    )
    processes = arguments.world_size
    if BATCH_ROWS % processes:
        raise ValueError(f"{processes} processes can't share a batch of {BATCH_ROWS} rows evenly; start 1, 2, 4 or 8 in all")
    arguments.per_device_train_batch_size = BATCH_ROWS // processes
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process takes one GPU; else Trainer gives this many rows to each that it sees
    return arguments


class _SharedBatchTrainer(Trainer):
    """Every process draws the batches that one process would draw, and trains on its share of their rows.

    accelerate's own shards would repeat rows where the last batch of an epoch is short; here rows that no loss counts fill the shares.
    """

    def get_train_dataloader(self) -> DataLoader:
        arguments = self.args
        batch = self._train_batch_size * arguments.world_size
        whole = DataLoader(self.train_dataset, batch, shuffle=True, collate_fn=self._collate_share)
        return prepare_data_loader(
            whole, arguments.device, num_processes=1, process_index=0, put_on_device=True, use_seedable_sampler=True,
            data_seed=arguments.seed,
        )  # fmt: skip

    def _collate_share(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        index, processes = self.args.process_index, self.args.world_size
        blank = {**rows[0], "labels": [IGNORED_LABEL] * len(rows[0]["labels"])}
        return default_data_collator((rows + [blank] * (-len(rows) % processes))[index::processes])


def run_fine_tuning(
    model: GPT2LMHeadModel, training_args: TrainingArguments, tokenized_train: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Trainer:
    """Train `model` in place and return the `Trainer`, its log in `trainer.state.log_history`.

    The model is trained in FP32 whatever it came in: small updates vanish in FP16 weights. Cast it back afterwards. Each of several
    processes ends with the same model and the same log; only dropout tells their loss from that of one process.
    """
    trainer = _SharedBatchTrainer(model.float(), training_args, train_dataset=tokenized_train, processing_class=tokenizer)
    if training_args.process_index:  # Trainer seeds all processes alike, and each would drop the same units
        torch.manual_seed(training_args.seed + training_args.process_index)
    trainer.train()
    return trainer


def run_finetune(run: Run) -> StageResult:
    """Fine-tune the pruned model and measure it; control: the unpruned model, tuned on the same budget."""
    before, folder = run.folder(prune.NAME), run.folder(NAME)
    with stopwatch() as seconds:
        tuned = _tune(before, folder, fine_tune_texts(run), run.settings, run.traces / NAME)
        control = _tuned_unpruned_control(run)
        facts = {**tuned, "tensorboard": f"{run.traces.name}/{NAME}"}
        first = Reference(profile.NAMED, run.folder(profile.NAME))
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
    _tune(run.folder(profile.NAME), folder, fine_tune_texts(run), run.settings)
    return measure_torch(run, "Fine-tuned, unpruned", folder)


def finetune_model(model: str = "auto", text: str = "auto", out: str | Path = "artifacts/finetuned", epochs: float = 1) -> dict[str, Any]:
    """Fine-tune a model by itself, outside a run: what `gpt2opt finetune` does, in one process or in each that a launcher started.

    Args:
        model: pruned or not; see `find_model`.
        text: see `find_texts`; all of its part for fine-tuning is trained on.
        out: folder that the main process writes, in FP16: a new or empty one, or one that was written here before.
        epochs: 1 to 5 is usual; a fraction is allowed.

    Returns:
        What was trained on what, and the loss; the same in every process.

    Raises:
        ValueError: a source can't be found, `out` can't be written, or the processes can't share a batch evenly.
    """
    out = Path(out)
    check_epochs(epochs)
    found, texts = find_model(model), find_texts(text)
    if is_main_process():
        check_folder(out)
    with stopwatch() as seconds:
        tuned = _tune(found.path, out, [document.text for document in texts.fine_tune], Settings(epochs=epochs))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return {"model": str(found), "text": f"{texts} {texts.revision}", "out": str(out), "seconds": seconds(), **tuned}


def _tune(before: Path, folder: Path, texts: list[str], settings: Settings, log_dir: Path | None = None) -> dict[str, Any]:
    """Fine-tune the model in `before` into `folder`; return what was trained on, and the loss."""
    set_seed(settings.seed)
    tokenizer, model = load_model(before)
    prepare_tokenizer_for_padding(tokenizer, model)
    length = min(settings.sequence_length, model.config.n_positions)
    rows = tokenize_dataset(Dataset.from_dict({"text": texts}), tokenizer, length)
    if log_dir is not None:
        empty_log(log_dir)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = create_training_arguments(scratch, settings.learning_rate, epochs=settings.epochs, log_dir=log_dir, seed=settings.seed)
        trainer = run_fine_tuning(model, arguments, rows, tokenizer)
    if log_dir is not None:
        drop_host_names(log_dir)
    if is_main_process():
        save_model(folder, tokenizer, model.cpu().half())
    return {
        "epochs": settings.epochs,
        "rows": len(rows),
        "row_tokens": length,
        "batch_rows": BATCH_ROWS,
        "processes": arguments.world_size,
        "steps": trainer.state.global_step,
        "loss": [{"step": entry["step"], "loss_nats": entry["loss"]} for entry in trainer.state.log_history if "loss" in entry],
    }
