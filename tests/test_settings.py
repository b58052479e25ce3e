"""Numbers that a caller gives: each is refused in one line, before any work."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from gpt2opt.finetune import create_training_arguments, tokenize_dataset
from gpt2opt.measure.latency import compare_latency
from gpt2opt.measure.quality import Protocol, perplexity, prepare_text
from gpt2opt.prune import importance_batches, prune_attention_heads
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.recipes import Recipe
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.settings import Settings, check_whole
from gpt2opt.storage import check_folder
from gpt2opt.torch_model import logits_of
from tests.conftest import make_model

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": INF}, "epochs=inf"),
        ({"epochs": "1"}, "epochs=1, expected more than 0"),
        ({"epochs": 10**400}, "epochs=1000"),
        ({"prune_fraction": NAN}, "prune_fraction=nan"),
        ({"learning_rate": NAN}, "learning_rate=nan"),
        ({"learning_rate": -1e-4}, "learning_rate=-0.0001"),
        ({"new_tokens": 1}, "new_tokens=1, expected at least 2"),
        ({"sequence_length": 2.5}, "sequence_length=2.5, expected a whole number of at least 2"),
        ({"score_bytes": True}, "score_bytes=True"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296, expected at least 0 and at most 4294967295"),
    ],
)
def test_a_setting_that_no_run_can_follow_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_numbers_of_numpy_count():
    check_whole("rounds", np.int64(2), 2)
    assert Settings(epochs=np.float32(0.5)).epochs == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"smooth_alpha": NAN}, {"smooth_alpha": 2}, {"weight_bits": 3}, {"group_size": 0}, {"max_kl": NAN}, {"max_kl": -1},
        {"activation_range": "wide"},
    ],
)  # fmt: skip
def test_a_recipe_that_no_model_can_follow_is_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}, expected"):
        Recipe(**wrong)


CALLS = {
    "training arguments": (lambda **_: create_training_arguments(epochs=INF), "epochs=inf"),
    "learning rate": (lambda **_: create_training_arguments(learning_rate=NAN), "learning_rate=nan"),
    "seed of training": (lambda **_: create_training_arguments(seed=2**64), "seed=18446744073709551616"),
    "rows without length": (lambda tokenizer, **_: tokenize_dataset(Dataset.from_dict({"text": ["a"]}), tokenizer, 0), "length=0"),
    "calibration rows": (lambda tokenizer, **_: prepare_calibration_dataset(["a"], tokenizer, length=0), "length=0"),
    "calibration limit": (lambda tokenizer, **_: prepare_calibration_dataset(["a"], tokenizer, limit=-1), "limit=-1"),
    "importance rows": (lambda tokenizer, **_: importance_batches(["a"], tokenizer, 0), "length=0"),
    "window": (lambda **_: Protocol("own", window=NAN), "window=nan"),
    "threads": (lambda folder, **_: load_ir(folder, num_threads=0), "num_threads=0"),
    "runs": (lambda **_: compare_latency({"": None}, prompt_tokens=1, new_tokens=2, runs=NAN), "runs=nan"),
    "folder": (lambda **_: check_folder(""), "the folder has no name"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_function_refuses_it_too(case, tokenizer, quantized):
    call, message = CALLS[case]
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match=message):
        call(tokenizer=tokenizer, folder=quantized[0])


def test_batches_of_no_window_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="batch_size=0, expected at least 1"):
        perplexity(logits_of(model), prepare_text(tokenizer, ["Node 1 of graph 2"], "text"), batch_size=0)


@pytest.mark.parametrize("value", [NAN, INF])
def test_importance_that_orders_nothing_is_refused(value, tokenizer):
    importance = np.ones((2, 12))
    importance[1, 3] = value
    model = make_model(tokenizer)
    with pytest.raises(ValueError, match="importance holds 1 values that are NaN or infinite"):
        prune_attention_heads(model, 0.2, importance)
    assert not model.config.pruned_heads


ROWS = {
    "unequal": ([[1, 2]] * 8 + [[1, 2, 3]], "rows of 2 to 3 tokens, expected one length"),
    "one token": ([[1]] * 8, "rows of 1 to 1 tokens"),
    "negative": ([[1, -2]] * 8, "hold -2, expected lists of token ids"),
    "no integers": ([[1.0, 2.5]] * 8, "hold 1.0, expected lists of token ids"),
    "no rows": ([1] * 8, "hold '1', expected lists of token ids"),
    "words": ([["a", "b"]] * 8, "hold 'a', expected lists of token ids"),
}


@pytest.mark.parametrize("case", ROWS)
def test_calibration_rows_that_are_none_are_refused(case, model, tokenizer, tmp_path, monkeypatch):
    rows, message = ROWS[case]
    monkeypatch.setattr("gpt2opt.quantize.int8.prepare_for_export", None)  # nothing is begun
    with pytest.raises(ValueError, match=message):
        quantize_int8(model, tokenizer, Dataset.from_dict({"input_ids": rows}), tmp_path / "out")
    with pytest.raises(ValueError, match=r"columns \['ids'\], expected 'input_ids'"):
        quantize_int8(model, tokenizer, Dataset.from_dict({"ids": [[1, 2]] * 8}), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_beyond_fp16_are_not_saved(model, tokenizer, tmp_path):
    from gpt2opt.sources.models import save_model

    model.transformer.wte.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight.*above 65504 is infinite in FP16"):
        save_model(tmp_path / "out", tokenizer, model.to(torch.float16))
    assert not list(tmp_path.iterdir())
