"""Train the bundled model from scratch: `python -m experiments.bundled_model --out DIR`.

One pass over the documentation of the pinned packages, at a constant learning rate that falls to zero over the last third
(warm-up, stable, decay: Hu et al. 2024, MiniCPM). Takes one to two hours on two cores; a killed run goes on from its last
checkpoint. On virtual machines, large tensors that are freed and mapped again every step cost much of the time in the kernel:
set MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 for this process.
"""

import argparse
import json
import lzma
import math
import time
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gpt2opt.measure.quality import JOIN, Protocol, perplexity, prepare_text
from gpt2opt.measure.results import Quality
from gpt2opt.sources.documentation import HELD_OUT, Document, unique_documents, unique_package_documents
from gpt2opt.sources.models import load_model
from gpt2opt.sources.texts import find_texts, take_bytes
from gpt2opt.torch_model import logits_of

END_OF_TEXT = "<|endoftext|>"
TRAINING = (
    "transformers", "torch", "scipy", "sympy", "sklearn", "pandas", "numpy", "huggingface_hub", "nncf", "datasets",
    "peft", "IPython", "fontTools", "narwhals", "setuptools", "mpmath", "pydantic", "tornado", "accelerate",
    "prompt_toolkit", "openvino", "werkzeug", "absl", "jinja2", "joblib", "fsspec",
)  # fmt: skip
"""The packages whose documentation the model is trained on, beside the reference of the language."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights, besides the text."""

    vocab_size: int = 8192
    context: int = 512
    layers: int = 6
    heads: int = 12
    width: int = 288
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay_share: float = 0.35
    validation_share: float = 0.005
    seed: int = 0


def training_documents() -> list[Document]:
    """Return the training documents; none shares a long paragraph with another or with a held-out one."""
    from pydoc_data.topics import topics  # the language reference, which CPython brings along for `help()`

    seen: set[bytes] = set()
    unique_package_documents(HELD_OUT, seen)
    chapters = (Document(f"pydoc_data.topics/{name}", text.strip()) for name, text in sorted(topics.items()))
    return [*unique_documents(chapters, seen), *unique_package_documents(TRAINING, seen)]


def train_tokenizer(documents: list[Document], recipe: Recipe) -> GPT2TokenizerFast:
    """Train a byte-level BPE in GPT-2's own form (Radford et al. 2019), smaller."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=recipe.vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return GPT2TokenizerFast(tokenizer_object=tokenizer, model_max_length=recipe.context, **special)


def pack_rows(documents: list[Document], tokenizer: GPT2TokenizerFast, recipe: Recipe) -> np.ndarray:
    """Join the shuffled documents with end-of-text and cut them into rows of context + 1 ids, shuffled: (rows, T + 1) uint16."""
    order = np.random.default_rng(recipe.seed).permutation(len(documents))
    encoded = tokenizer._tokenizer.encode_batch_fast([documents[i].text for i in order])
    end = tokenizer.eos_token_id
    ids = np.concatenate([np.asarray([*encoding.ids, end], dtype=np.uint16) for encoding in encoded])
    starts = np.arange(0, len(ids) - recipe.context, recipe.context)
    np.random.default_rng(recipe.seed + 1).shuffle(starts)
    return np.stack([ids[start : start + recipe.context + 1] for start in starts])


def learning_rate_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, constant, linear decay to zero."""
    warm = (step + 1) / recipe.warmup_steps
    decay = (steps - step) / (recipe.decay_share * steps)
    return min(1.0, warm, decay)


def new_model(recipe: Recipe, tokenizer: GPT2TokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        n_layer=recipe.layers, n_head=recipe.heads, n_embd=recipe.width, n_positions=recipe.context,
        vocab_size=len(tokenizer), bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # gelu_new in one fused kernel: the same function, faster steps
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def batch_loss(model: GPT2LMHeadModel, rows: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(rows.astype(np.int64))
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: GPT2LMHeadModel, rows: np.ndarray) -> float:
    return float(np.mean([batch_loss(model, rows[i : i + 8]).item() for i in range(0, len(rows), 8)]))


def train(recipe: Recipe, out: Path) -> None:
    """Train, and write the model, its tokenizer and `training.json` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    documents = training_documents()
    num_bytes = sum(len(document.text.encode()) for document in documents)
    print(f"corpus: {len(documents)} documents, {num_bytes / 1e6:.1f} MB", flush=True)
    tokenizer = train_tokenizer(documents, recipe)
    rows = pack_rows(documents, tokenizer, recipe)
    held = max(8, int(len(rows) * recipe.validation_share))
    rows, validation = rows[held:], rows[:held]
    steps = len(rows) // recipe.batch_size
    print(f"tokens: {rows.size / 1e6:.2f} M, {num_bytes / rows.size:.2f} bytes per token, {steps} steps", flush=True)

    model = new_model(recipe, tokenizer)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    curve: list[dict] = []
    first, spent_s, checkpoint = 0, 0.0, out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent_s, curve = state["step"], state["spent_s"], state["curve"]

    clock = time.perf_counter() - spent_s
    progress = tqdm(range(first, steps), initial=first, total=steps, mininterval=30)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_factor(step, steps, recipe)
        loss = batch_loss(model, rows[step * recipe.batch_size : (step + 1) * recipe.batch_size])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            curve.append({"step": step, "loss_nats": loss.item()})
            progress.set_postfix(loss=f"{curve[-1]['loss_nats']:.3f}")
        if step % 200 == 199 or step == steps - 1:
            curve[-1]["validation_nats"] = validation_loss(model, validation)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "curve": curve}
            torch.save(state | {"spent_s": time.perf_counter() - clock}, checkpoint)

    model.config.activation_function = "gelu_new"
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    distributions = packages_distributions()
    record = {
        "recipe": asdict(recipe),
        "packages": {name: version(distributions[name][0]) for name in TRAINING},
        "documents": len(documents),
        "bytes": num_bytes,
        "tokens_seen": steps * recipe.batch_size * recipe.context,
        "seconds": round(time.perf_counter() - clock),
        "curve": curve,
        "bytes_per_token": num_bytes / rows.size,
        "validation_bits_per_byte": curve[-1]["validation_nats"] / math.log(2) / (num_bytes / rows.size),
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink()


HELD_OUT_BYTES = 200_000


def score_held_out(folder: Path, scored_bytes: int = HELD_OUT_BYTES) -> tuple[Quality, float]:
    """Code text of packages that the model never saw with the model, `scored_bytes` of it, and all of it with xz.

    Returns the model's `Quality`, and the bits per byte of `xz -9e`. xz looks back over all of the text, the model over its context only,
    of which at least half is always filled.
    """
    held_out = take_bytes(find_texts("docs").score, HELD_OUT_BYTES)
    documents = [document.text for document in take_bytes(held_out, scored_bytes)]
    data = JOIN.join(document.text for document in held_out).encode()
    tokenizer, model = load_model(folder)
    protocol = Protocol("half filled", stride=model.config.n_positions // 2)
    quality = perplexity(logits_of(model), prepare_text(tokenizer, documents, "held-out packages", protocol))
    return quality, 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


@torch.inference_mode()
def sample(folder: Path, prompt: str, new_tokens: int = 80) -> str:
    """Continue a prompt at temperature 0.8 among the 40 likeliest tokens, seed 0."""
    tokenizer, model = load_model(folder)
    torch.manual_seed(0)
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=new_tokens, do_sample=True, temperature=0.8, top_k=40, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0])


def write_card(folder: Path) -> None:
    """Measure the trained model on held-out text and write its model card, every number from a measurement."""
    training = json.loads((folder / "training.json").read_text())
    quality, xz = score_held_out(folder)
    recipe = training["recipe"]
    tokens_a_step = recipe["batch_size"] * recipe["context"]
    curve = [(point["step"] + 1, point["validation_nats"]) for point in training["curve"] if "validation_nats" in point]
    rows = "\n".join(f"| {step * tokens_a_step / 1e6:.2f} | {nats:.3f} |" for step, nats in curve)
    _, model = load_model(folder)
    card = f"""# The bundled GPT-2

A small GPT-2 (`GPT2LMHeadModel`) that is used instead of `gpt2` where that can't be had. It has learnt to write like the documentation of
Python packages, nothing else. Don't use it for anything but trying out this project.

| what | value |
| --- | --- |
| shape | {recipe["layers"]} layers, {recipe["heads"]} heads, width {recipe["width"]}, context {recipe["context"]} |
| parameters | {model.num_parameters():,} |
| tokenizer | byte-level BPE of {recipe["vocab_size"]:,} tokens, trained on the same text |
| weights | FP16, safetensors |
| text | {training["bytes"] / 1e6:.1f} MB of docstrings in {training["documents"]:,} modules, and CPython's language reference |
| packages | {", ".join(f"{name} {version}" for name, version in training["packages"].items())} |
| never seen | {", ".join(HELD_OUT)}: the notebook fine-tunes, calibrates and scores on these |
| training | {training["tokens_seen"]:,} tokens in {training["seconds"] / 60:.0f} minutes on two CPU cores, seed {recipe["seed"]} |
| bits per byte, validation | {training["validation_bits_per_byte"]:.3f}, on rows of the training packages that were set aside |
| bits per byte, held-out packages | {quality.bits_per_byte:.3f}; `xz -9e` needs {xz:.3f} on the same {quality.num_bytes:,} bytes |

Long paragraphs occur once in all of the text, and none of them in both the training and the held-out packages. The recipe is
`experiments/bundled_model.py`; `training.json` holds the whole loss curve.

| million tokens seen | validation loss, nats a token |
| --- | --- |
{rows}

A sample, at temperature 0.8:

```text
{sample(folder, "Return the ").strip()}
```
"""
    (folder / "README.md").write_text(card)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the model is written")
    folder = parser.parse_args().out
    train(Recipe(), folder)
    write_card(folder)
