"""What quantizing takes of RAM: one copy of the FP32 model, and the rest layer by layer."""

from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2opt.measure.memory import in_fresh_process
from gpt2opt.quantize.int8 import quantize_int8
from gpt2opt.sources.models import load_tokenizer
from tests.conftest import make_model


def quantize_small_and_large(tokenizer_folder: str, folder: str) -> Iterator[str]:
    """Quantize a tiny model, so that all libraries are loaded, and then one whose weights take 200 MB; return their bytes."""
    tokenizer = load_tokenizer(tokenizer_folder)
    rows = Dataset.from_dict({"input_ids": torch.randint(0, len(tokenizer), (8, 16)).tolist()})
    quantize_int8(make_model(tokenizer), tokenizer, rows, Path(folder, "tiny"))
    config = GPT2Config(n_layer=4, n_head=16, n_embd=1024, n_positions=tokenizer.model_max_length, vocab_size=len(tokenizer))
    model = GPT2LMHeadModel(config).eval()
    before = {name: parameter.sum().item() for name, parameter in model.named_parameters()}
    yield "made"
    quantize_int8(model, tokenizer, rows, Path(folder, "large"))
    assert before == {name: parameter.sum().item() for name, parameter in model.named_parameters()}
    return 4 * model.num_parameters()


def test_quantizing_takes_one_copy_of_the_fp32_model_and_the_integers(model_dir, tmp_path):
    """With INC's own copies, float weights kept beside the integers, or freed blocks that stay in the heap, it takes more."""
    run = in_fresh_process(quantize_small_and_large, str(model_dir), str(tmp_path))
    assert run.peak_rss_bytes - run.steps["made"].rss_bytes < 2.6 * run.value
