"""Rows of a text in slices such as `train[:100]`: WikiText-2 as it is published, or rows of what stands in for it."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2opt.sources.texts import PARAGRAPHS_APART, VARIABLE, WIKITEXT_SPLITS, find_texts, find_wikitext, wikitext_rows

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """The rows of a text by split, and how it was found.

    splits: `train`, `validation` and `test`. A row of WikiText-2 is a paragraph, a heading or empty; a row of another text is a paragraph
    on one line. No two splits of another text share a long paragraph, see `Texts`.
    """

    name: str
    origin: str
    splits: dict[str, list[str]]
    stand_in: bool

    def take(self, spec: str) -> "Dataset":
        """Return the rows of a slice as a dataset with the column `text`.

        Args:
            spec: a split, or a part of it, in the words of `datasets`: `train`, `train[:100]`, `validation[50:100]`, `test[:10%]`. Rows
                beyond the last one are left out.

        Raises:
            ValueError: it is no such slice, there is no such split, or no row is in it.
        """
        from datasets import Dataset, ReadInstruction

        try:
            parts = ReadInstruction.from_spec(spec).to_absolute({split: len(rows) for split, rows in self.splits.items()})
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"split {spec!r} can't be read ({error}); expected one such as 'train[:100]' or 'validation[:200]'") from None
        rows = [row for part in parts for row in self.splits[part.splitname][part.from_ : part.to]]
        if not rows:
            raise ValueError(f"split {spec!r} of {self.name} has no row; ask for at least one")
        return Dataset.from_dict({"text": rows})

    def __str__(self) -> str:
        return f"{self.name} (from the {self.origin})"


def find_rows() -> Rows:
    """Find WikiText-2, or the text that the environment variable GPT2OPT_TEXT names, or else the stand-in; see `find_texts`.

    Raises:
        ValueError: the text that was asked for can't be found, is empty or is too short to divide.
    """
    if os.environ.get(VARIABLE, "wikitext-2") == "wikitext-2" and (found := find_wikitext()):
        folder, origin = found
        return Rows("WikiText-2 raw", origin, {split: wikitext_rows(folder, split) for split in WIKITEXT_SPLITS.values()}, False)
    texts = find_texts()
    splits = {
        split: [" ".join(row.split()) for document in getattr(texts, part) for row in PARAGRAPHS_APART.split(document.text) if row.strip()]
        for part, split in WIKITEXT_SPLITS.items()
    }
    return Rows(texts.name, texts.origin, splits, texts.stand_in)
