"""What one command does to a model outside a run: `gpt2opt prune`, `finetune`, `quantize`, `perplexity` and `compare`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import set_seed

from gpt2opt.decoding.text import encode
from gpt2opt.environment import cpu_flags, device, is_main_process, threads
from gpt2opt.finetune import prepare_tokenizer_for_padding, tokenize_dataset
from gpt2opt.measure.quality import JOIN, STANDARD, Logits, Protocol, measure_agreement, perplexity, prepare_text
from gpt2opt.measure.results import Agreement, Quality
from gpt2opt.prune import head_importance, importance_batches, prune_attention_heads, pruned_heads
from gpt2opt.quantize.int8 import prepare_calibration_dataset, quantize_int8
from gpt2opt.report.tables import PERCENT, Table, perplexity_ratio, show_perplexity, table, with_interval
from gpt2opt.run.pipeline import train_model
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import ir_of_run, is_ir, read_manifest
from gpt2opt.runtime.onnx_model import ONNX_NAME, load_onnx
from gpt2opt.settings import Settings, check_fraction, check_whole
from gpt2opt.sources.gpt2 import heads_per_layer
from gpt2opt.sources.models import TOKENIZERS, find_model, load_model, load_tokenizer, save_model
from gpt2opt.sources.texts import Texts, find_texts, read_documents, take_bytes
from gpt2opt.storage import check_folder, weight_files
from gpt2opt.torch_model import logits_of


def finetune_model(model: str, text: str, out: str | Path, epochs: float = Settings.epochs) -> dict[str, Any]:
    """Fine-tune a model on the part of a text for it, in one process or in each of a launcher; return what was done, and the loss.

    The main process writes the model in FP16 into `out`, which is new or empty, or was written here before.

    Raises:
        ValueError: a source can't be found, `out` can't be written, the processes can't share a batch evenly, or the training ended in
            weights that are no numbers in FP16: then nothing is written.
    """
    settings, out = Settings(epochs=epochs), Path(out)
    found, texts = find_model(model), find_texts(text)
    if is_main_process():
        check_folder(out)
    begun = time.perf_counter()
    set_seed(settings.seed)
    tokenizer, loaded = load_model(found.path)
    prepare_tokenizer_for_padding(tokenizer, loaded)
    length = min(settings.sequence_length, loaded.config.n_positions)
    rows = tokenize_dataset(Dataset.from_dict({"text": [document.text for document in texts.fine_tune]}), tokenizer, length)
    tuned = train_model(loaded, tokenizer, rows, settings)
    if is_main_process():
        save_model(out, tokenizer, loaded.cpu().half())
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    seconds = time.perf_counter() - begun
    return {"model": str(found), "text": f"{texts} {texts.revision}", "out": str(out), "seconds": seconds, "row_tokens": length, **tuned}


def prune_model(
    model: str, text: str, out: str | Path, prune_fraction: float = Settings.prune_fraction, heads: int | None = None, first: bool = False
) -> dict[str, Any]:
    """Remove heads from every layer of a model and write it in FP16, as stage 2 does; return what was done.

    Args:
        text: see `find_texts`; how much a head matters is estimated on its part for fine-tuning, as in a run.
        heads: how many leave each layer, in place of the fraction.
        first: the first ones leave, as a control, and no text is read.

    Raises:
        ValueError: a source can't be found, no head would stay, or `out` can't be written: then nothing is written.
    """
    check_fraction(prune_fraction)
    check_folder(out)
    found, texts, importance = find_model(model), None if first else find_texts(text), None
    tokenizer, loaded = load_model(found.path)
    total = heads_per_layer(loaded)
    if heads is not None:
        check_whole("heads", heads, 0, f"each layer has {total}, and one must stay", most=total - 1)
        prune_fraction = heads / total
    if texts:
        loaded.to(device())
        documents = [document.text for document in take_bytes(texts.fine_tune, Settings.fine_tune_bytes)]
        batches = importance_batches(documents, tokenizer, min(Settings.sequence_length, loaded.config.n_positions))
        importance = head_importance(loaded, tqdm(batches, "importance of each head", leave=False))
    prune_attention_heads(loaded, prune_fraction, importance)
    save_model(out, tokenizer, loaded.cpu().half())
    return {
        "model": str(found),
        "text": texts and f"{texts} {texts.revision}",
        "out": str(out),
        "heads": f"{heads_per_layer(loaded)} of {total} are left in each layer",
        "pruned_heads": pruned_heads(loaded),
        "parameters": loaded.num_parameters(),
    }


def quantize_model(model: str, text: str, out: str | Path, recipe: str) -> dict[str, Any]:
    """Quantize a model into an IR that has passed its audit, see `quantize_int8`, whose errors these are; return what was done.

    text: a file, of which the first whole rows calibrate; or `wikitext-2`, `docs` or `auto`: the part of it for calibration.
    """
    check_folder(out)
    found, (label, documents) = find_model(model), _read_text(text, lambda texts: texts.calibration)
    tokenizer, loaded = load_model(found.path)
    rows = prepare_calibration_dataset(documents, tokenizer, limit=Settings.calibration_sequences)
    done = quantize_int8(loaded, tokenizer, rows, out, recipe)
    return {
        "model": str(found),
        "text": f"{label}: {len(rows)} rows of {len(rows['input_ids'][0])} tokens",
        "recipe": recipe,
        "out": str(out),
        "bytes": sum(path.stat().st_size for path in weight_files(Path(out))),
        "kl_nats": done.sensitivity and done.sensitivity.left,
        "kv_cache": read_manifest(out).kv_cache,
        "inputs": len(done.audit.expected),
        "float_inputs": done.audit.float_inputs,
    }


def score_model(model: str, text: str = "auto", protocol: Protocol = STANDARD) -> tuple[str, Quality]:
    """Score a text with a model, see `load_scored`; return the model's name and where it came from, and `Quality`.

    text: a file, scored whole, see `read_documents`; or `wikitext-2`, `docs` or `auto`: the whole part of it that is kept for scoring.
    """
    scored = load_scored(model)
    label, documents = _read_text(text, lambda texts: texts.course_lines if protocol.by_line else texts.score)
    if text in FOUND and not protocol.by_line and (size := len(JOIN.join(documents).encode())) > Settings.score_bytes:
        label += f", all {size:,} bytes of the scored part, of which a run scores the first {Settings.score_bytes:,}"
    return scored.name, perplexity(scored.logits, prepare_text(_tokenizer_of(scored), documents, label, protocol))


@dataclass(frozen=True)
class Compared:
    """Two models by name on one text. base, quality: of the first and of the second. agreement: of the second with the first."""

    first: str
    second: str
    base: Quality
    quality: Quality
    agreement: Agreement

    def table(self) -> Table:
        agreement = self.agreement
        rows = {
            "perplexity of A": show_perplexity(self.base),
            "perplexity of B": show_perplexity(self.quality),
            "perplexity of B ÷ that of A": perplexity_ratio(self.quality, self.base),
            "mean KL(A ‖ B), nats per token": with_interval(agreement.mean_kl, agreement.mean_kl_interval(), ".5f"),
            "99th percentile of KL": with_interval(agreement.kl_p99, agreement.kl_p99_interval, ".4f"),
            "same top token": with_interval(agreement.top1, agreement.top1_interval(), ".2%"),
        }
        return table(("figure", f"value [{PERCENT} over documents]"), rows.items())

    def as_json(self) -> dict[str, Any]:
        ratio = self.quality.ratio_to(self.base), self.quality.ratio_interval(self.base)
        kl, same_top = (self.agreement.mean_kl, self.agreement.mean_kl_interval()), (self.agreement.top1, self.agreement.top1_interval())
        figures = {
            "perplexity_a": (self.base.perplexity, self.base.interval()),
            "perplexity_b": (self.quality.perplexity, self.quality.interval()),
            "perplexity_ratio": ratio,
            "kl_nats": kl,
            "same_top": same_top,
        }
        facts = {"a": self.first, "b": self.second, "tokens": self.base.num_tokens, "protocol": self.base.protocol}
        return facts | {name: {"value": value, "interval": interval} for name, (value, interval) in figures.items()}


def compare_models(first: str, second: str, text: str = "auto") -> Compared:
    """Score a text with two models of one vocabulary, see `load_scored`, and compare the second with the first, token by token.

    text: a file, scored whole; or `wikitext-2`, `docs` or `auto`: what a run scores of it.

    Raises:
        ValueError: a model or the text can't be found, or the models cut the text into different tokens.
    """
    one, other = load_scored(first), load_scored(second)
    label, documents = _read_text(text, lambda texts: take_bytes(texts.score, Settings.score_bytes))
    tokenizer = _tokenizer_of(one, other)
    for each in filter(None, (one.tokenizer, other.tokenizer)):
        tokenizer.model_max_length = min(tokenizer.model_max_length, each.model_max_length)
        if encode(each, documents).input_ids != encode(tokenizer, documents).input_ids:
            both = f"{one.name} and {other.name}"
            raise ValueError(f"{both} cut the text into different tokens; only models of one vocabulary can be compared")
    scored = prepare_text(tokenizer, documents, label)
    quality, agreement = measure_agreement(other.logits, one.logits, scored, reference_name=one.name)
    return Compared(one.name, other.name, perplexity(one.logits, scored, batch_size=1), quality, agreement)


@dataclass(frozen=True)
class Scored:
    """A model to score a text with. tokenizer: None of a GGUF file that has none beside it."""

    name: str
    tokenizer: Any
    logits: Logits


def load_scored(model: str) -> Scored:
    """Load a model of any kind to score a text with.

    model: an IR directory, or the folder of a run (its INT8 model); an ONNX file with a KV cache, or its directory; a GGUF file; else what
    `find_model` takes, in FP32.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        tokenizer = next((load_tokenizer(path.parent) for name in TOKENIZERS if any(path.parent.glob(name))), None)
        return Scored(f"{path.name} (llama.cpp)", tokenizer, _logits_of_gguf(path))
    loaded: Any
    if is_ir(directory := ir_of_run(path)):
        loaded, name = load_ir(directory), f"{directory.name} (OpenVINO IR)"
    elif path.suffix == ".onnx" or Path(path, ONNX_NAME).is_file():
        loaded, name, directory = load_onnx(path), f"{path.name} (ONNX Runtime)", path if path.is_dir() else path.parent
    else:
        found = find_model(model)
        tokenizer, torch_model = load_model(found.path)
        return Scored(f"{found} (torch, FP32)", tokenizer, logits_of(torch_model.to(device())))
    tokenizer = load_tokenizer(directory)
    tokenizer.model_max_length = min(tokenizer.model_max_length, loaded.context)
    return Scored(name, tokenizer, logits_of(loaded))


def _logits_of_gguf(path: Path) -> Logits:
    """Return what llama.cpp answers, with the model in a GGUF file."""
    if not path.is_file():
        raise ValueError(f"no file {path}; name a GGUF file of a GPT-2")
    if "amx_int8" in (cpu_flags() or ()):
        raise ValueError("llama.cpp is known to crash on CPUs with AMX (ggml-org/llama.cpp#20824); read the GGUF file on another machine")
    try:
        from llama_cpp import Llama
    except ImportError:
        raise ImportError("a GGUF file needs llama-cpp-python, which is not installed; `pip install 'gpt2opt[llama]'` brings it") from None
    model = Llama(str(path), n_ctx=0, logits_all=True, n_threads=threads(), n_threads_batch=threads(), verbose=False)

    def logits(ids: torch.Tensor) -> np.ndarray:
        rows = []
        for row in ids.tolist():
            model.reset()
            model.eval(row)
            rows.append(model.scores[: len(row)].copy())
        return np.stack(rows)

    return logits


def _tokenizer_of(*models: Scored) -> Any:
    """Return the tokenizer of the first model that has one."""
    found = next((model.tokenizer for model in models if model.tokenizer), None)
    if not found:
        raise ValueError(f"there is no tokenizer beside {models[0].name}; save the model's there with save_pretrained()")
    return found


FOUND = ("", "auto", "docs", "wikitext-2")
"""The texts that `find_texts` finds; any other name is that of a file."""


def _read_text(text: str, part: Callable[[Texts], Sequence[Any]]) -> tuple[str, list[str]]:
    """Return what a text is called, and its documents: all of a file, a part of a text that `find_texts` finds."""
    if text in FOUND:
        texts = find_texts(text)
        return f"{texts} {texts.revision}", [getattr(document, "text", document) for document in part(texts)]
    read, how = read_documents(Path(text))
    return f"{Path(text).name}, {how}", [document.text for document in read]
