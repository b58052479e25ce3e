"""A table, and the units in it: they are converted here and only here. It needs the standard library alone: `doctor` shows one too."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; a notebook shows it as Markdown, print() as aligned text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, tuple("-" * width for width in widths), *self.rows]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)

    def wrapped(self, width: int) -> str:
        """Return the aligned text no wider than `width` characters, its last column broken into lines as far as that takes."""
        others = [max(map(len, column)) + 2 for column in zip(self.header, *self.rows, strict=True)][:-1]
        rows: list[tuple[str, ...]] = []
        for *cells, last in self.rows:
            first, *further = textwrap.wrap(last, max(20, width - sum(others))) or [""]
            rows += [(*cells, first), *((*[""] * len(cells), line) for line in further)]
        return str(table(self.header, rows))

    def _repr_markdown_(self) -> str:
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)

    markdown = _repr_markdown_


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    return Table(tuple(header), tuple(tuple(row) for row in rows))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.3g}" if size < 1e9 else f"{size / 1e6:.0f}"


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
