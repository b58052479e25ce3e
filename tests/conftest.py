"""A GPT-2 small enough that every stage runs on it in seconds, and a text to go with it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gpt2opt.decoding.decoder import Greedy
from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.export.openvino import export_ir
from gpt2opt.prune import prune_attention_heads
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.quantize.linear import prepare_for_export
from gpt2opt.runtime import compile
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.sources.models import load_tokenizer

ROOT = Path(__file__).parent.parent
END_OF_TEXT = "<|endoftext|>"
SENTENCE = "Node {0} of graph {1} has {2} edges, and a path of length {2} leads from it to node {3}.\n"


CONTEXT = 256


def sample_text(blocks: int = 60, sentences: int = 24) -> str:
    """Return blocks of sentences apart by blank lines; no two are the same."""
    lines = [[SENTENCE.format(7 * b + s, b, s, 11 * b + s) for s in range(sentences)] for b in range(blocks)]
    return "\n".join("".join(block) for block in lines)


def make_tokenizer(context: int = CONTEXT) -> GPT2TokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [sample_text()], trainers.BpeTrainer(vocab_size=320, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    )
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return GPT2TokenizerFast(tokenizer_object=tokenizer, model_max_length=context, **special)


def make_model(tokenizer: GPT2TokenizerFast, heads: int = 12, **config) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    made = GPT2Config(
        n_layer=2, n_head=heads, n_embd=8 * heads, n_positions=tokenizer.model_max_length, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, initializer_range=0.2, **config,
    )  # fmt: skip
    model = GPT2LMHeadModel(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases of 0 and gains of 1 are folded away, and no trained model has them
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def pytest_collection_modifyitems(items) -> None:
    """Begin with the files that have slow tests, so that no worker is left alone with a long one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_runtest_setup(item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@pytest.fixture(scope="session")
def tokenizer() -> GPT2TokenizerFast:
    return make_tokenizer()


@pytest.fixture
def model(tokenizer) -> GPT2LMHeadModel:
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def model_dir(tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_model(tokenizer).half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def pruned(tokenizer) -> GPT2LMHeadModel:
    """Two heads less in each layer. Not for a test to change."""
    return prune_attention_heads(make_model(tokenizer), 0.2)


@pytest.fixture(scope="session")
def calibration(tokenizer) -> Dataset:
    return prepare_calibration_dataset(sample_text().split("\n\n"), tokenizer, length=32, limit=16)


@pytest.fixture(scope="session")
def quantized(pruned, tokenizer, calibration, tmp_path_factory):
    """The pruned model by the default recipe: its directory, and what `quantize_int8` returned."""
    folder = tmp_path_factory.mktemp("ir") / "int8"
    return folder, quantize_int8(pruned, tokenizer, calibration, folder)


@pytest.fixture(scope="session")
def float_dir(pruned, tokenizer, tmp_path_factory) -> Path:
    return export_ir(prepare_for_export(pruned), tokenizer, tmp_path_factory.mktemp("ir") / "fp32")


@pytest.fixture(params=[True, False], ids=["dot product", "no dot product"])
def either_cpu(request, monkeypatch) -> bool:
    """Take the graphs for a CPU with INT8 dot products, or those for one without; return whether they are the former."""
    monkeypatch.setattr("gpt2opt.runtime.compile.has_int8_dot_product", lambda: request.param)
    return request.param


@pytest.fixture
def ids(calibration) -> np.ndarray:
    return np.array(calibration["input_ids"][:2])


def greedy_tokens(model, prompts, new_tokens: int) -> np.ndarray:
    """Return the tokens (B, new_tokens) that a loaded model generates greedily."""
    return np.array(Greedy(model.decoder(prompts, new_tokens)).generate(new_tokens))


@torch.inference_mode()
def torch_logits(model, ids) -> np.ndarray:
    return model(torch.from_numpy(ids), use_cache=False).logits.numpy()


def change_pass(monkeypatch, name: str, change: Callable[[Callable], Callable]) -> None:
    """Let a graph pass be `change` of what it is."""
    (function,) = {each for passes in compile.PASSES.values() for each in passes if each.__name__ == name}
    changed = change(function)
    changed.__name__ = name
    changed_passes = {case: tuple(changed if each is function else each for each in passes) for case, passes in compile.PASSES.items()}
    monkeypatch.setattr(compile, "PASSES", changed_passes)


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture
def bars(monkeypatch) -> list[tuple[str, float, float]]:
    """Collect what every progress bar shows at its end: (what it counts, how many it counted, of how many)."""
    ended, close = [], tqdm.close

    def close_and_tell(bar):
        if not bar.disable:  # it is not closed yet
            ended.append((bar.desc.removesuffix(": "), bar.n, bar.total))
        close(bar)

    monkeypatch.setattr(tqdm, "close", close_and_tell)
    return ended


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(sample_text())
    return path


def continue_text(folder: Path, prompt: str, max_new_tokens: int, truncate: bool = False) -> str:
    """Return what an IR writes behind a prompt, greedily."""
    settings = DecodingSettings(max_new_tokens=max_new_tokens)
    (result,) = generate(load_ir(folder), [prompt], settings, load_tokenizer(folder), truncate=truncate)
    return result.text
