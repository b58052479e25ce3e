"""Score a text with a model by itself, outside a run: what `gpt2opt perplexity` does."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from gpt2opt.deploy.runtime import load_ir
from gpt2opt.measure.quality import measure_quality
from gpt2opt.report.results import Quality
from gpt2opt.sources.models import find_model, load_model
from gpt2opt.sources.texts import find_texts, read_text
from gpt2opt.stages.run import device


def score_model(model: str, text: str = "auto", stride: int | None = None) -> Quality:
    """Score a text.

    Args:
        model: an IR directory, or whatever `find_model` takes.
        text: a UTF-8 file, scored whole; or `wikitext-2`, `docs` or `auto`: the part of it that is kept for scoring.
        stride: how far the window moves; the model's context, up to 1024, unless told.

    Raises:
        ValueError: the model or the text can't be found or read, or the text is shorter than two tokens.
    """
    tokenizer, logits = _scorer(model)
    if text in ("auto", "docs", "wikitext-2"):
        texts = find_texts(text)
        label, content = f"{texts.name} {texts.revision}", "\n\n".join(document.text for document in texts.score)
    else:
        label, content = Path(text).name, read_text(Path(text))
    window = min(1024, tokenizer.model_max_length)
    ids = tokenizer(content, verbose=False).input_ids
    return measure_quality(logits, ids, num_bytes=len(content.encode()), label=label, window=window, stride=stride or window)


def _scorer(model: str):
    if Path(model, "openvino_model.xml").exists():
        ir = load_ir(model)
        return AutoTokenizer.from_pretrained(model, local_files_only=True), lambda ids: ir.logits(ids.numpy())
    tokenizer, loaded = load_model(find_model(model).path)
    loaded.to(device())

    @torch.inference_mode()
    def logits(ids):
        return loaded(ids.to(device()), use_cache=False).logits

    return tokenizer, logits
