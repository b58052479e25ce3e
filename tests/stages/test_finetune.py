import pytest
import torch
from datasets import Dataset

from gpt2opt.stages.finetune import (
    create_training_arguments,
    prepare_tokenizer_for_padding,
    run_fine_tuning,
    tokenize_dataset,
)


@pytest.fixture
def padded(model, tokenizer):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    prepare_tokenizer_for_padding(tokenizer, model)
    return tokenizer


def test_padding_is_end_of_text_in_tokenizer_and_config(padded, model):
    assert padded.pad_token_id == padded.eos_token_id == model.config.pad_token_id


def test_padding_is_masked_out_of_the_loss_and_the_real_end_of_text_is_not(padded):
    rows = tokenize_dataset(Dataset.from_dict({"text": ["Node 1 of graph 2"]}), padded, length=32)
    ids, mask, labels = (torch.tensor(rows[0][name]) for name in ("input_ids", "attention_mask", "labels"))
    used = int(mask.sum())
    assert used < 32
    assert ids[used - 1] == padded.eos_token_id == labels[used - 1]
    assert (labels[used:] == -100).all()
    assert (ids[used:] == padded.pad_token_id).all()
    assert (labels[:used] == ids[:used]).all()


def test_long_texts_become_rows_and_lose_nothing(padded):
    text = "Node 1 of graph 2 has 3 edges. " * 30
    rows = tokenize_dataset(Dataset.from_dict({"text": [text, "", "   "]}), padded, length=16)
    kept = [i for row in rows for i, m in zip(row["input_ids"], row["attention_mask"], strict=True) if m]
    assert len(rows) > 5
    assert padded.decode(kept) == text + padded.eos_token


def test_a_tokenizer_without_padding_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no padding token"):
        tokenize_dataset(Dataset.from_dict({"text": ["a b"]}), tokenizer)


def test_texts_without_words_are_refused(padded):
    with pytest.raises(ValueError, match="none of the 2 texts"):
        tokenize_dataset(Dataset.from_dict({"text": ["", " \n"]}), padded)
    with pytest.raises(ValueError, match="expected 'text'"):
        tokenize_dataset(Dataset.from_dict({"words": ["a"]}), padded)


def test_training_lowers_the_loss_and_logs_it(padded, model, tmp_path):
    texts = [f"Node {n} of graph {n} has {n} edges." for n in range(64)]
    rows = tokenize_dataset(Dataset.from_dict({"text": texts}), padded, length=32)
    arguments = create_training_arguments(tmp_path / "out", 1e-3, epochs=3, log_dir=tmp_path / "logs")
    trainer = run_fine_tuning(model.half(), arguments, rows, padded)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert next(model.parameters()).dtype == torch.float32
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))
