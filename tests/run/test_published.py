import math
from unittest.mock import MagicMock

import pytest
import torch

from gpt2opt.measure.quality import STANDARD
from gpt2opt.measure.results import Quality
from gpt2opt.run import published
from gpt2opt.run.published import KNOWN, STOCK_PARAMETERS, compare_with_published, what_is_off
from gpt2opt.sources.documentation import Document
from gpt2opt.sources.texts import Texts

STOCK = next(known for known in KNOWN if known.protocol == STANDARD)
TEXTS = Texts("WikiText-2 raw", "hub", (), (), (Document("test#0", "Node 1 of graph 2 has 3 edges."),), ("Node 4 of graph 5.",))


def found(perplexity: float, tokens: int = STOCK.tokens) -> Quality:
    return Quality((math.log(perplexity) * (tokens - 1),), (tokens - 1,), 1, 1, "p")


@pytest.mark.parametrize(
    ("quality", "off"),
    [
        (found(29.94), None), (found(30.0), None), (found(29.94, 283_287), "the text: 283,287 tokens and not 287,644"),
        (found(25.17), "the stride"), (found(31.0), "the weights, their dtype, or the window"),
    ],
)  # fmt: skip
def test_a_miss_names_the_setting_that_is_off(quality, off):
    answer = what_is_off(STOCK, quality)
    assert answer is None if off is None else answer.startswith(off)


def test_only_stock_gpt2_on_wikitext_is_compared_with_the_published_numbers(tokenizer, caplog, monkeypatch):
    model = MagicMock()
    monkeypatch.setattr(published, "logits_of", lambda model: lambda ids: torch.zeros(*ids.shape, len(tokenizer)))

    def compared(name: str, parameters: int = STOCK_PARAMETERS):
        model.num_parameters.return_value = parameters
        return compare_with_published(name, model, TEXTS, tokenizer)

    monkeypatch.setattr(published, "device", lambda: "cpu")
    assert compared("bundled") is None
    assert compared("gpt2", 1000) is None
    (course,) = compared("openai-community/gpt2")
    assert course["expected"] == 40.03
    assert course["found"] == pytest.approx(len(tokenizer), rel=1e-5)
    assert "the weights" in course["off"]
    assert "known is 40.03" in caplog.text
    model.half.assert_called_once_with()
    monkeypatch.setattr(published, "device", lambda: "cuda")
    assert len(compared("gpt2")) == len(KNOWN)
