"""Decoders that need no model, and the logits processors of transformers, which ours are compared with."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2opt.decoding.processors import Process
from gpt2opt.decoding.settings import DecodingSettings


class TableModel:
    """A language model that is a table, and its own decoder: the logits behind a token depend on it alone, `table` (V, V)."""

    context = 100

    def __init__(self, table: np.ndarray):
        self.table = table
        self.batches: list[int] = []

    def decoder(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 0) -> "TableModel":
        self.prompts = prompts
        return self

    def prefill(self) -> np.ndarray:
        self.last = np.array([prompt[-1] for prompt in self.prompts])
        self.batches.append(len(self.last))
        return self.table[self.last]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        assert len(ids) == len(self.last), "a token for each sequence that was kept"
        self.last = np.asarray(ids)[:, 0]
        self.batches.append(len(self.last))
        return self.table[self.last]

    def keep(self, rows: Sequence[int]) -> None:
        self.last = self.last[list(rows)]


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (12, 12)).astype(np.float32)


def transformers_process(settings: DecodingSettings) -> Process:
    """Return transformers' own logits processors for these settings, as the generation loop takes them."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.do_sample:
        for wanted, processor in (
            (settings.temperature != 1, lambda: TemperatureLogitsWarper(float(settings.temperature))),
            (settings.top_k, lambda: TopKLogitsWarper(settings.top_k)),
            (settings.top_p < 1, lambda: TopPLogitsWarper(settings.top_p)),
            (settings.min_p, lambda: MinPLogitsWarper(settings.min_p)),
            (settings.typical_p < 1, lambda: TypicalLogitsWarper(settings.typical_p)),
        ):
            if wanted:
                processors.append(processor())

    def process(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
        return processors(torch.tensor([ids]), torch.from_numpy(scores)[None])[0].numpy()

    return process
