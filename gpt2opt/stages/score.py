"""Score a text with a model by itself, outside a run: what `gpt2opt perplexity` does."""

from pathlib import Path

from gpt2opt.environment import device
from gpt2opt.measure.quality import JOIN, STANDARD, Protocol, perplexity, prepare_text
from gpt2opt.measure.results import Quality
from gpt2opt.runtime.ir_model import load_ir
from gpt2opt.settings import Settings
from gpt2opt.sources.models import find_model, load_model, load_tokenizer
from gpt2opt.sources.texts import find_texts, read_documents
from gpt2opt.stages.torch_model import logits_of


def score_model(model: str, text: str = "auto", protocol: Protocol = STANDARD) -> tuple[str, Quality]:
    """Score a text.

    Args:
        model: an IR directory, or whatever `find_model` takes.
        text: a file, scored whole, see `read_documents`; or `wikitext-2`, `docs` or `auto`: the whole part of it that is kept for scoring.
        protocol: how the text is read.

    Returns:
        What the model is and where it came from, and its `Quality`.

    Raises:
        ValueError: the model or the text can't be found or read, or the text is shorter than two tokens.
    """
    if not text:
        find_texts(text)  # which refuses it
    name, tokenizer, logits = _scorer(model)
    if text in ("auto", "docs", "wikitext-2"):
        texts = find_texts(text)
        documents = texts.course_lines if protocol.by_line else [document.text for document in texts.score]
        label = f"{texts} {texts.revision}"
        if not protocol.by_line and (size := len(JOIN.join(documents).encode())) > Settings.score_bytes:
            label += f", all {size:,} bytes of the scored part, of which a run scores the first {Settings.score_bytes:,}"
    else:
        found, how = read_documents(Path(text))
        label, documents = f"{Path(text).name}, {how}", [document.text for document in found]
    return name, perplexity(logits, prepare_text(tokenizer, documents, label, protocol))


def _scorer(model: str):
    if Path(model, "openvino_model.xml").exists():
        return f"{Path(model).name} (OpenVINO IR)", load_tokenizer(model), logits_of(load_ir(model))
    found = find_model(model)
    tokenizer, loaded = load_model(found.path)
    loaded.to(device())
    return f"{found} (torch, FP32)", tokenizer, logits_of(loaded)
