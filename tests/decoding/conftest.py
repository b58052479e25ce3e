"""Decoders that need no model."""

from collections.abc import Sequence

import numpy as np
import pytest


class TableDecoder:
    """A language model that is a table: the logits behind a token depend on it alone, `table` (V, V)."""

    def __init__(self, table: np.ndarray, prompts: Sequence[Sequence[int]]):
        self.table, self.prompts = table, prompts
        self.batches: list[int] = []

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
