"""Fine-tune a model, or score a text with one, outside a run: what `gpt2opt finetune` and `gpt2opt perplexity` do."""

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import set_seed

from gpt2opt.environment import device, is_main_process
from gpt2opt.finetune import prepare_tokenizer_for_padding, tokenize_dataset
from gpt2opt.measure.quality import JOIN, STANDARD, Protocol, perplexity, prepare_text
from gpt2opt.measure.results import Quality
from gpt2opt.run.pipeline import train_model
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.runtime.manifest import is_ir
from gpt2opt.settings import Settings
from gpt2opt.sources.models import find_model, load_model, load_tokenizer, save_model
from gpt2opt.sources.texts import find_texts, read_documents
from gpt2opt.storage import check_folder
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


def score_model(model: str, text: str = "auto", protocol: Protocol = STANDARD) -> tuple[str, Quality]:
    """Score a text with an IR directory or what `find_model` takes; return the model's name and where it came from, and `Quality`.

    text: a file, scored whole, see `read_documents`; or `wikitext-2`, `docs` or `auto`: the whole part of it that is kept for scoring.
    """
    if is_ir(model):
        name, tokenizer, scored = f"{Path(model).name} (OpenVINO IR)", load_tokenizer(model), load_ir(model)
    else:
        found = find_model(model)
        tokenizer, scored = load_model(found.path)
        name = f"{found} (torch, FP32)"
        scored.to(device())
    if text in ("", "auto", "docs", "wikitext-2"):
        texts = find_texts(text)
        documents = texts.course_lines if protocol.by_line else [document.text for document in texts.score]
        label = f"{texts} {texts.revision}"
        if not protocol.by_line and (size := len(JOIN.join(documents).encode())) > Settings.score_bytes:
            label += f", all {size:,} bytes of the scored part, of which a run scores the first {Settings.score_bytes:,}"
    else:
        read, how = read_documents(Path(text))
        label, documents = f"{Path(text).name}, {how}", [document.text for document in read]
    return name, perplexity(logits_of(scored), prepare_text(tokenizer, documents, label, protocol))
