"""What the grid measures of each of its models, and how two of them are compared."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2opt.measure.results import Quality
from gpt2opt.measure.stats import Estimate, over_documents, paired_ratio

DENSE = "dense"
FP32, INT8 = "FP32", "INT8"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Cell:
    """One model of the grid, measured from the IR that it was saved as.

    order: whether it was pruned before or after quantizing; None where there is no such choice. quality: on the validation text. seconds:
    of the forward passes over that text, by round and by window. file_bytes, compressed_bytes: of the weight files, and of the same files
    compressed by zlib at its default level. peak_rss_bytes: of a fresh process that reads a whole window and continues it. weights,
    zeros: of the blocks' matrices in the file.
    """

    sparsity: str
    precision: str
    order: str | None
    quality: Quality
    seconds: tuple[tuple[float, ...], ...]
    file_bytes: int
    compressed_bytes: int
    peak_rss_bytes: int | None
    weights: int
    zeros: int

    @property
    def text_seconds(self) -> float:
        """Return the seconds over the whole validation text, the median of the rounds."""
        return statistics.median(map(sum, self.seconds))

    @property
    def name(self) -> str:
        return f"{self.precision}, then {self.sparsity}" if self.order == AFTER else f"{self.sparsity}, {self.precision}"


@dataclass(frozen=True)
class Control:
    """The dense model, fine-tuned, then pruned and not tuned again, in FP32.

    own_choice: without the weights that are smallest in it. choice_of_int8: without those that are smallest in its INT8 model.
    """

    sparsity: str
    own_choice: Quality
    choice_of_int8: Quality


@dataclass(frozen=True)
class Tuning:
    """The fine-tuning that every sparsity got."""

    epochs: float
    rows: int
    row_tokens: int


@dataclass(frozen=True)
class Linears:
    """What pruning every `nn.Linear` of a GPT-2 reaches.

    names: of these modules. matrices: modules with a matrix, `Conv1D` included. weights, zeros: of these `nn.Linear`, after it.
    embedding_zeros: of the token embedding, which may be the same tensor as the head. parameters: of the whole model.
    """

    names: tuple[str, ...]
    matrices: int
    weights: int
    zeros: int
    embedding_zeros: int
    parameters: int


@dataclass(frozen=True)
class Grid:
    """All cells, and what they are compared with.

    stand_ins: a sentence for each source that replaces another one. memory_bytes: parameters and buffers of the dense model in FP32,
    which the project calls its size. untuned: the dense model as it came. Not in older results: again_s, the dense FP32 model's seconds
    once more (A/A); linears.
    """

    created: str
    environment: dict[str, Any]
    model: str
    text: str
    stand_ins: tuple[str, ...]
    tuning: Tuning
    memory_bytes: int
    untuned: Quality
    controls: tuple[Control, ...]
    cells: tuple[Cell, ...]
    again_s: tuple[tuple[float, ...], ...] = ()
    linears: Linears | None = None
    schema: str = "gpt2opt.grid/1"

    def cell(self, sparsity: str, precision: str, order: str | None = None) -> Cell:
        return next(cell for cell in self.cells if (cell.sparsity, cell.precision, cell.order) == (sparsity, precision, order))

    @property
    def base(self) -> Cell:
        return self.cell(DENSE, FP32)


def loss(quality: Quality) -> float:
    """Return the loss in nats per token."""
    return quality.nll_nats / quality.num_tokens


def loss_difference(quality: Quality, base: Quality) -> Estimate:
    """Return by how many nats per token a loss is greater than another model's; the interval is over documents, which are paired."""
    tokens = quality.document_tokens
    return over_documents(
        lambda ours, theirs, scored: (ours - theirs) / scored, quality.document_nats, base.document_nats, tokens, tokens=tokens
    )


def time_ratio(cells: Sequence[Cell], base: Cell) -> Estimate:
    """Return the mean time of cells ÷ another one's, window by window.

    Several cells that are to have one cause get one interval: of one each, some would leave 1 out by chance.
    """
    times = np.mean([list(itertools.chain(*cell.seconds)) for cell in cells], axis=0)
    return paired_ratio(times, list(itertools.chain(*base.seconds)))


def front(cells: Sequence[Cell], figure: Callable[[Cell], float]) -> list[Cell]:
    """Return the Pareto front of loss and a figure, both better if less: the cells that no other beats in both, by the figure."""
    kept: list[Cell] = []
    for cell in sorted(cells, key=lambda cell: (figure(cell), loss(cell.quality))):
        if not kept or loss(cell.quality) < loss(kept[-1].quality):
            kept.append(cell)
    return kept
