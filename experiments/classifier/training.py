"""The stand-ins where no classifier can be had: random weights of the real size, and a small DistilBERT, which lies in `small/`.

`python -m experiments.classifier.training` trains the small one anew, in one to two minutes on two cores.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizerFast

from experiments.classifier.tasks import Labelled, Task, find_task

SMALL = Path(__file__).with_name("small")
"""A DistilBERT in FP16 that tells which package a docstring is from: trained by `Recipe` on the training part of that task."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the small model's weights, besides the texts. row_tokens: how many of a text are read."""

    vocab_size: int = 2560
    layers: int = 2
    heads: int = 4
    width: int = 96
    row_tokens: int = 32
    batch_size: int = 32
    steps: int = 800
    learning_rate: float = 1e-3
    seed: int = 0


def random_full_size() -> DistilBertForSequenceClassification:
    """Return DistilBERT's architecture (Sanh et al. 2019; 66,955,010 parameters with two classes) with random weights, always the same."""
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(DistilBertConfig(num_labels=2)).eval()


def train_tokenizer(texts: tuple[str, ...], recipe: Recipe) -> DistilBertTokenizerFast:
    """Train a WordPiece vocabulary of BERT's form (Devlin et al. 2019), lower case."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=recipe.vocab_size, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return DistilBertTokenizerFast(tokenizer_object=tokenizer, model_max_length=recipe.row_tokens)


def train_small(task: Task, recipe: Recipe | None = None) -> tuple[DistilBertTokenizerFast, DistilBertForSequenceClassification]:
    """Train a small DistilBERT from scratch on the task's training part; return its tokenizer and it."""
    recipe = recipe or Recipe()
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(task.train.texts, recipe)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=len(tokenizer), max_position_embeddings=recipe.row_tokens, n_layers=recipe.layers, n_heads=recipe.heads,
            dim=recipe.width, hidden_dim=4 * recipe.width, num_labels=len(task.classes), pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(task.classes)), label2id={name: number for number, name in enumerate(task.classes)},
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    draw = np.random.default_rng(recipe.seed)
    model.train()
    bar = tqdm(range(recipe.steps), desc=f"training a small DistilBERT on {len(task.train.texts):,} texts", file=sys.stderr)
    for _ in bar:
        loss = model(**_batch(tokenizer, task.train, draw.integers(len(task.train.texts), size=recipe.batch_size))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return tokenizer, model.eval()


def _batch(tokenizer: DistilBertTokenizerFast, data: Labelled, rows: np.ndarray) -> dict[str, torch.Tensor]:
    encoded = tokenizer([data.texts[row] for row in rows], truncation=True, padding=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([data.labels[row] for row in rows])}


if __name__ == "__main__":
    tokenizer, model = train_small(find_task("docstrings"))
    for part in (tokenizer, model.half()):
        part.save_pretrained(SMALL)
