"""Fine-tune a GPT-2 with `Trainer`, pruned or not, in one process or in several that share a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, default_data_collator
from transformers.activations import NewGELUActivation

from gpt2opt.decoding.text import end_of_text, token_rows
from gpt2opt.environment import at_least, device, launched
from gpt2opt.settings import MOST_SEED, Settings, check_epochs, check_learning_rate, check_whole

BATCH_ROWS = 8  # of all processes together
SMALL_GPU_BYTES = 8e9
"""GPUs with less take the rows of a batch two by two: the logits of a row and the activations of GPT-2 are most of what training takes."""
IGNORED = -100  # the label that torch's cross-entropy skips
TRAINING: dict[str, Any] = {
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.01,
    "adam_beta2": 0.95,
    "logging_steps": 5,
    "save_strategy": "no",
    "disable_tqdm": False,  # progress even where the log level is quiet
}
"""What every training here has in common: AdamW, 10% warm-up, linear decay to zero, and no checkpoints."""
VALIDATION: dict[str, Any] = {
    "eval_strategy": "steps", "eval_steps": 0.25, "eval_on_start": True, "per_device_eval_batch_size": BATCH_ROWS,
}  # fmt: skip
"""How the loss on text that is not trained on is followed: before the first step, and four times on the way."""


def prepare_tokenizer_for_padding(tokenizer: PreTrainedTokenizerBase, model: GPT2LMHeadModel) -> None:
    """Let end-of-text serve as padding, in the tokenizer and in the model's config: GPT-2 was made without a padding token.

    A padding token that is there stays, if the model has an embedding for it. ValueError: there is no end-of-text token either.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= model.config.vocab_size:
        end_of_text(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def tokenize_dataset(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int = Settings.sequence_length, truncate: bool = False
) -> Dataset:
    """Tokenize the column `text` of a dataset: `input_ids`, `attention_mask` and `labels`, each (rows, length), padded.

    Long texts become several rows, or with `truncate` their first one alone; empty ones become none. The labels are the ids, -100 where a
    row is padded. They are made here and not by a collator that masks the padding *token*: padding is end-of-text, and a model must learn
    to predict the real one. The first label is -100 as well: no token predicts it, and `Trainer` divides the summed loss by the number of
    labels that it finds.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; call prepare_tokenizer_for_padding(tokenizer, model) first")
    check_whole("length", length, 2)
    if "text" not in dataset.column_names:
        raise ValueError(f"the dataset has columns {dataset.column_names}, expected 'text'")

    def pad(batch: dict) -> dict:
        parts = [[text] for text in batch["text"]] if truncate else [batch["text"]]
        rows = [row for part in parts for row in token_rows(part, tokenizer, length)[: 1 if truncate else None]]
        gaps = [length - len(row) for row in rows]
        return {
            "input_ids": [row + [tokenizer.pad_token_id] * gap for row, gap in zip(rows, gaps, strict=True)],
            "attention_mask": [[1] * len(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)],
            "labels": [[IGNORED, *row[1:], *[IGNORED] * gap] for row, gap in zip(rows, gaps, strict=True)],
        }

    tokenized = dataset.map(pad, batched=True, remove_columns=dataset.column_names)
    if not len(tokenized):
        raise ValueError(f"none of the {len(dataset)} texts holds two tokens; give text with words in it")
    return tokenized


def create_training_arguments(
    output_dir: str | Path = "gpt2_finetuned",
    learning_rate: float = Settings.learning_rate,
    *,
    epochs: float = Settings.epochs,
    log_dir: str | Path | None = None,
    seed: int = 0,
    validate: bool = False,
) -> TrainingArguments:
    """Build the arguments of a short fine-tuning; see `TRAINING`.

    Under `torchrun` or `accelerate launch` this joins the processes, which share a batch of 8 rows: by NCCL on GPUs, by gloo on CPUs.
    learning_rate: the highest one, after the warm-up. log_dir: for TensorBoard logs of the loss. seed: of the order of the rows. validate:
    follow the loss on an evaluation dataset as well, see `VALIDATION`.

    Raises:
        ValueError: the processes can't share a batch evenly, or a number is out of its range.
    """
    check_epochs(epochs)
    check_learning_rate(learning_rate)
    check_whole("seed", seed, 0, most=MOST_SEED)
    arguments = TrainingArguments(
        output_dir=str(output_dir), learning_rate=learning_rate, num_train_epochs=epochs, **TRAINING, **(VALIDATION if validate else {}),
        logging_dir=None if log_dir is None else str(log_dir),
        report_to=[] if log_dir is None else ["tensorboard"],
        seed=seed,
        log_level_replica="error",
        use_cpu=launched() and device() == "cpu",  # accelerate joins processes without a GPU only if asked to
        ddp_find_unused_parameters=False,  # there are none, pruned or not
        ddp_broadcast_buffers=False,  # GPT-2's are causal masks, megabytes a step
    )  # fmt: skip
    processes = arguments.world_size
    if BATCH_ROWS % processes:
        raise ValueError(f"{processes} processes can't share a batch of {BATCH_ROWS} rows evenly; start 1, 2, 4 or 8 in all")
    sizes = batch_sizes(BATCH_ROWS // processes)
    arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = sizes.values()
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process takes one GPU; else Trainer gives this many rows to each that it sees
    return arguments


def batch_sizes(rows: int = BATCH_ROWS) -> dict[str, int]:
    """Return, for `TrainingArguments`, how the rows of a batch are taken: at once, or two by two on a small GPU, with the same gradient."""
    small = device() == "cuda" and torch.cuda.get_device_properties(0).total_memory < SMALL_GPU_BYTES
    at_once = min(rows, 2) if small else rows
    return {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": rows // at_once}


class _SharedBatchTrainer(Trainer):
    """Every process draws the batches that one process would draw, and trains on its share of their rows.

    accelerate's own shards would repeat rows where the last batch of an epoch is short; here rows that no loss counts fill the shares.
    """

    def get_train_dataloader(self) -> DataLoader:
        rows: Any = self.train_dataset
        whole = DataLoader(rows, self._train_batch_size * self.args.world_size, shuffle=True, collate_fn=self._collate_share)
        return prepare_data_loader(
            whole, self.args.device, num_processes=1, process_index=0, put_on_device=True, use_seedable_sampler=True,
            data_seed=self.args.seed,
        )  # fmt: skip

    def _collate_share(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        index, processes = self.args.process_index, self.args.world_size
        blank = {**rows[0], "labels": [IGNORED] * len(rows[0]["labels"])}
        return default_data_collator((rows + [blank] * (-len(rows) % processes))[index::processes])


def run_fine_tuning(
    model: GPT2LMHeadModel,
    training_args: TrainingArguments,
    tokenized_train: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    validation: Dataset | None = None,
) -> Trainer:
    """Train `model` in place and return the `Trainer`, its log in `trainer.state.log_history`; see `loss_curves`.

    The model is trained in FP32 whatever it came in: small updates vanish in FP16 weights. Cast it back afterwards. Each of several
    processes ends with the same model and the same log; only dropout makes their loss differ from that of one process.
    """
    trainer_type = Trainer if training_args.world_size == 1 else _SharedBatchTrainer
    renamed: dict[str, Any] = {"processing_class" if at_least("transformers", "4.46") else "tokenizer": tokenizer}
    trainer = trainer_type(model.float(), training_args, train_dataset=tokenized_train, eval_dataset=validation, **renamed)
    if training_args.process_index:  # Trainer seeds all processes alike, and each would drop the same units
        torch.manual_seed(training_args.seed + training_args.process_index)
    with fused_gelu(model):
        trainer.train()
    return trainer


@contextmanager
def fused_gelu(model: GPT2LMHeadModel) -> Iterator[None]:
    """Let one operator of torch compute GPT-2's GELU inside a `with` block, instead of the eight of transformers' `gelu_new`.

    It is the same function, the tanh approximation, and leaves fewer tensors to read and to keep: a training step takes less time.
    """
    mlps: list[Any] = [block.mlp for block in model.transformer.h]
    replaced = [(mlp, mlp.act) for mlp in mlps if isinstance(mlp.act, NewGELUActivation)]
    for mlp, _ in replaced:
        mlp.act = nn.GELU(approximate="tanh")
    try:
        yield
    finally:
        for mlp, activation in replaced:
            mlp.act = activation


def loss_curves(trainer: Trainer) -> dict[str, list[dict[str, float]]]:
    """Return the loss in nats per token over the optimizer steps, of training and, where it was followed, of validation."""

    def curve(key: str) -> list[dict[str, float]]:
        return [{"step": entry["step"], "loss_nats": entry[key]} for entry in trainer.state.log_history if key in entry]

    return {"loss": curve("loss"), "validation_loss": curve("eval_loss")}
