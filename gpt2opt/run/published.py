"""Compare perplexities with published numbers, where the model and the text that they were taken on are there: is the metric right?"""

import logging
from dataclasses import dataclass

from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from gpt2opt.environment import device
from gpt2opt.measure.quality import COURSE, STANDARD, Protocol, perplexity, prepare_text
from gpt2opt.measure.results import Quality
from gpt2opt.sources.texts import Texts
from gpt2opt.torch_model import logits_of

STOCK_PARAMETERS = 124_439_808

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownNumber:
    """A perplexity of stock GPT-2 on WikiText-2 raw that others have measured. tokens: how many its text has, where they tell."""

    protocol: Protocol
    perplexity: float
    tolerance: float
    tokens: int | None = None

    def of(self, quality: Quality) -> float:
        """Return the perplexity of a measurement in the weighting that the number was published in."""
        return quality.course_perplexity if self.protocol.by_line else quality.perplexity


KNOWN = (
    KnownNumber(STANDARD, 29.94, 0.1, tokens=287_644),  # the test split; Hugging Face's page on perplexity
    KnownNumber(COURSE, 40.03, 0.5),  # 200 validation rows; the course's notebook
)
HALF_STRIDE = KnownNumber(Protocol("standard", stride=512), 25.2, 0.3)


def compare_with_published(model_name: str, model: GPT2LMHeadModel, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> list[dict] | None:
    """Score stock GPT-2 by each protocol whose number is known, and say which setting is off where it misses.

    Without a GPU the whole test split would take minutes, and the course's protocol alone is checked.

    Args:
        model_name: a hub id, or the name of a folder.
        model: in FP16. It is scored in FP32 arithmetic, and is in FP16 again afterwards: nothing is rounded on the way.

    Returns:
        For each protocol what was expected and found, and what is off; None where the model or the text is another one.
    """
    if model_name.split("/")[-1] != "gpt2" or model.num_parameters() != STOCK_PARAMETERS or not texts.name.startswith("WikiText-2"):
        return None
    found, gpu, logits = [], device() == "cuda", logits_of(model.float())
    for known in KNOWN if gpu else [known for known in KNOWN if known.protocol.by_line]:
        documents = texts.course_lines if known.protocol.by_line else [document.text for document in texts.score]
        quality = perplexity(logits, prepare_text(tokenizer, documents, texts.name, known.protocol))
        measured, off = known.of(quality), what_is_off(known, quality)
        if off:
            logger.warning("perplexity by protocol %s is %.2f, known is %.2f: %s", known.protocol.name, measured, known.perplexity, off)
        found.append(
            {"protocol": quality.protocol, "expected": known.perplexity, "tolerance": known.tolerance, "found": measured, "off": off}
        )
    model.half()
    return found


def what_is_off(known: KnownNumber, quality: Quality) -> str | None:
    """Return which setting a missed number points to; None where it was hit."""
    if known.tokens and quality.num_tokens != known.tokens - 1:
        return (
            f"the text: {quality.num_tokens + 1:,} tokens and not {known.tokens:,}; it must be the raw test split, all rows joined by "
            "blank lines, and the model's own tokenizer"
        )
    if abs(known.of(quality) - known.perplexity) <= known.tolerance:
        return None
    if known.protocol == STANDARD and abs(quality.perplexity - HALF_STRIDE.perplexity) <= HALF_STRIDE.tolerance:
        return "the stride: this is what windows of 1024 tokens give that move by 512"
    return "the weights, their dtype, or the window: text and tokens are right"
