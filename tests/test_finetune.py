import copy
import json
import os
import socket
import subprocess
import sys
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.utils import parameters_to_vector
from transformers import TrainingArguments

from gpt2opt import finetune
from gpt2opt.apps.commands import finetune_model
from gpt2opt.decoding.text import token_rows, warn_of_no_end
from gpt2opt.finetune import create_training_arguments, fused_gelu, prepare_tokenizer_for_padding, run_fine_tuning, tokenize_dataset
from gpt2opt.sources.models import load_model
from tests.conftest import make_model, make_tokenizer, relative_error, torch_logits
from tests.other_tokenizers import sentence_piece, word_piece


@pytest.fixture
def padded(model, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    prepare_tokenizer_for_padding(tokenizer, model)
    return tokenizer


def test_padding_is_end_of_text_in_tokenizer_and_config(padded, model):
    assert padded.pad_token_id == padded.eos_token_id == model.config.pad_token_id


@pytest.mark.parametrize("make", [sentence_piece, word_piece])
def test_a_padding_token_that_is_there_stays(make):
    tokenizer, model = make(), SimpleNamespace(config=SimpleNamespace(vocab_size=400))
    prepare_tokenizer_for_padding(tokenizer, model)
    assert tokenizer.pad_token == make().pad_token
    assert model.config.pad_token_id == tokenizer.pad_token_id == make().pad_token_id is not None
    rows = tokenize_dataset(Dataset.from_dict({"text": ["river stone"]}), tokenizer, length=32)
    assert rows[0]["input_ids"][-1] == tokenizer.pad_token_id
    assert rows[0]["labels"][-1] == -100


def test_a_padding_token_without_an_embedding_gives_way(tokenizer, model):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    prepare_tokenizer_for_padding(tokenizer, model)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id


def test_a_tokenizer_with_nothing_to_pad_by_is_refused_and_left_as_it_was(model):
    tokenizer = word_piece()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"no end-of-text token; set tokenizer\.eos_token"):
        prepare_tokenizer_for_padding(tokenizer, model)
    assert model.config.pad_token_id is None


def test_rows_end_with_end_of_text_alone(caplog):
    assert token_rows(["river stone"], sentence_piece(), 32)[0][-1] == sentence_piece().eos_token_id
    assert token_rows(["river stone"], sentence_piece(), 32)[0].count(sentence_piece().eos_token_id) == 1
    assert caplog.text == ""
    tokenizer = word_piece()
    warn_of_no_end.cache_clear()
    assert token_rows(["river stone", " "], tokenizer, 32) == [tokenizer("river stone", add_special_tokens=False).input_ids]
    token_rows(["river stone", " "], tokenizer, 32)
    assert caplog.text.count("no end-of-text token, so nothing marks where a document ends") == 1


def test_padding_is_masked_out_of_the_loss_and_the_real_end_of_text_is_not(padded):
    rows = tokenize_dataset(Dataset.from_dict({"text": ["Node 1 of graph 2"]}), padded, length=32)
    ids, mask, labels = (torch.tensor(rows[0][name]) for name in ("input_ids", "attention_mask", "labels"))
    used = int(mask.sum())
    assert used < 32
    assert ids[used - 1] == padded.eos_token_id == labels[used - 1]
    assert (labels[used:] == -100).all()
    assert (ids[used:] == padded.pad_token_id).all()
    assert (labels[1:used] == ids[1:used]).all()
    assert labels[0] == -100  # nothing predicts it


def test_the_logged_loss_is_the_mean_over_the_targets_that_are_predicted(padded, model, tmp_path):
    texts = ["Node 1 of graph 2 has 3 edges.", "A path of length 2 leads from it to node 3. " * 2, *["Node 4 of graph 5. " * 3] * 6]
    rows = tokenize_dataset(Dataset.from_dict({"text": texts}), padded, length=32)
    model.eval()
    with torch.inference_mode():
        ids, mask = torch.tensor(rows["input_ids"]), torch.tensor(rows["attention_mask"])[:, 1:].bool()
        nats = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    arguments = create_training_arguments(tmp_path, 1e-9, epochs=1)
    arguments.logging_steps = 1
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    trainer = run_fine_tuning(model, arguments, rows, padded)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(nats[mask].mean().item(), abs=2e-4)  # it is logged in four decimals


def test_long_texts_become_rows_and_lose_nothing(padded):
    text = "Node 1 of graph 2 has 3 edges. " * 30
    rows = tokenize_dataset(Dataset.from_dict({"text": [text, "", "   "]}), padded, length=16)
    kept = [i for row in rows for i, m in zip(row["input_ids"], row["attention_mask"], strict=True) if m]
    assert len(rows) > 5
    assert padded.decode(kept) == text + padded.eos_token


def test_a_tokenizer_without_padding_is_refused():
    with pytest.raises(ValueError, match="no padding token"):
        tokenize_dataset(Dataset.from_dict({"text": ["a b"]}), make_tokenizer())


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


def test_a_small_gpu_takes_a_batch_two_by_two_and_learns_the_same(padded, tmp_path, monkeypatch):
    texts = [f"Node {n} of graph {n} has {n} edges." + " It is joined." * (n % 5) for n in range(20)]  # 8, 8 and 4 rows
    rows = tokenize_dataset(Dataset.from_dict({"text": texts}), padded, length=32)
    model = make_model(padded, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)  # what is dropped differs
    models = [copy.deepcopy(model), copy.deepcopy(model)]
    taken = []
    for each, sizes in zip(
        models, (finetune.batch_sizes(), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}), strict=True
    ):
        monkeypatch.setattr(finetune, "batch_sizes", lambda rows, sizes=sizes: sizes)
        arguments = create_training_arguments(tmp_path, 1e-3)
        run_fine_tuning(each, arguments, rows, padded)
        taken.append((arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps))
    assert taken == [(8, 1), (2, 4)]
    whole, two_by_two, before = (parameters_to_vector(each.parameters()).detach().numpy() for each in (*models, model))
    assert relative_error(two_by_two, whole) < 1e-2 * relative_error(whole, before)


@pytest.mark.parametrize(("memory", "expected"), [(4e9, (2, 4)), (16e9, (8, 1))])
def test_how_a_batch_is_taken_depends_on_the_memory_of_the_gpu(memory, expected, monkeypatch):
    monkeypatch.setattr(finetune, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
    assert tuple(finetune.batch_sizes().values()) == expected


@pytest.fixture
def pruned_dir(pruned, tokenizer, tmp_path):
    """A pruned model without dropout, which is all that tells several processes from one."""
    model = copy.deepcopy(pruned)
    model.config.resid_pdrop = model.config.embd_pdrop = model.config.attn_pdrop = 0
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_two_processes_joined_by_torchrun_and_accelerate_launch_train_as_one_does(pruned_dir, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # as the two, which don't see a GPU: it rounds otherwise
    command = ["finetune", str(pruned_dir), "--text", str(text_file), "--out"]
    first, second = tune_on_two_machines([*command, str(tmp_path / "two")])
    one, two = finetune_model(str(pruned_dir), str(text_file), tmp_path / "one"), json.loads(first.splitlines()[-1])

    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["rows"] % 2, "an odd row should be left in the last batch, which two processes can't halve"
    losses = [[point["loss_nats"] for point in tuned["loss"]] for tuned in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)  # the log has four decimals
    assert losses[0][-1] < losses[0][0] - 0.5
    weights = [parameters_to_vector(load_model(tmp_path / name)[1].parameters()).detach().numpy() for name in ("one", "two")]
    assert relative_error(weights[1], weights[0]) < 1e-4  # training moves them by some 1e-2
    assert second == "", "only the main process prints"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "one", "two"]


def on_the_cpu() -> dict[str, str]:
    """Return an environment in which a GPU, which rounds otherwise, is not seen."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def tune_on_two_machines(command: list[str]) -> list[str]:
    """Start one process by each launcher, as on two machines, with gloo on the CPU; return what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = ["torch.distributed.run", "--nnodes", "2", "--node_rank", "0", "--rdzv_endpoint", f"127.0.0.1:{port}"]
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--machine_rank", "1", "--num_processes", "2"]
    accelerate += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *launcher, "-m", "gpt2opt", *command], env=on_the_cpu(), text=True, stdout=PIPE, stderr=PIPE
        )
        for launcher in (torchrun, accelerate)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    return [stdout for stdout, _ in ended]


def test_shares_of_a_batch_make_up_the_batch_of_one_process(padded, model, tmp_path, monkeypatch):
    rows = tokenize_dataset(Dataset.from_dict({"text": [f"Node {n}" for n in range(13)]}), padded, length=8)

    def batches(index: int, processes: int) -> list[dict]:
        monkeypatch.setattr(TrainingArguments, "world_size", processes)
        monkeypatch.setattr(TrainingArguments, "process_index", index)
        trainer = run_fine_tuning(model, create_training_arguments(tmp_path, epochs=0.1), rows, padded)
        seeds.append(torch.initial_seed())
        return list(trainer.get_train_dataloader())

    seeds: list[int] = []
    whole, *shares = batches(0, 1), batches(0, 2), batches(1, 2)
    assert [len(batch["labels"]) for batch in whole] == [8, 5]
    assert [[len(batch["labels"]) for batch in share] for share in shares] == [[4, 3], [4, 3]]
    for batch, *parts in zip(whole, *shares, strict=True):
        together = torch.stack([part["labels"] for part in parts], dim=1).flatten(0, 1)
        rows_of_batch = len(batch["labels"])
        assert torch.equal(together[:rows_of_batch], batch["labels"])
        assert (together[rows_of_batch:] == -100).all()
    assert seeds[0] == seeds[1] != seeds[2], "each process has a dropout of its own"


def test_processes_that_cannot_share_a_batch_evenly_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "world_size", 3)
    with pytest.raises(ValueError, match=r"3 processes can't share a batch of 8 rows evenly; start 1, 2, 4 or 8 in all"):
        create_training_arguments(tmp_path)


def test_what_is_no_model_is_not_replaced(model_dir, text_file, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and was not written by gpt2opt"):
        finetune_model(str(model_dir), str(text_file), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_one_operator_computes_gelu_inside_the_block_and_the_model_is_as_before_behind_it(model):
    ids, before = np.arange(12)[None], [block.mlp.act for block in model.transformer.h]
    expected = torch_logits(model, ids)
    with torch.profiler.profile() as profiler, fused_gelu(model):
        found = torch_logits(model, ids)
    names = {event.key for event in profiler.key_averages()}
    assert "aten::gelu" in names
    assert "aten::tanh" not in names
    assert relative_error(found, expected) < 1e-5
    assert [block.mlp.act for block in model.transformer.h] == before
