"""Texts with the class of each: the validation part of SST-2 where it can be had, else passages of documentation.

SST-2 (Socher et al. 2013) says of sentences from film reviews whether they are positive. The stand-in asks which package a passage of
documentation is from; the words that would give it away are blanked.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpt2opt.sources.documentation import Document, package_documents, unique_documents
from gpt2opt.sources.files import decode
from gpt2opt.sources.hub import find_snapshot
from gpt2opt.sources.texts import PARAGRAPHS_APART, divide

SST2 = "stanfordnlp/sst2"
SST2_CLASSES = ("negative", "positive")
SPLITS = {
    "train": ("data/train-*.parquet", "train*.parquet", "train.tsv"),
    "score": ("data/validation-*.parquet", "validation*.parquet", "dev.tsv"),
}
"""Part -> where it is in a folder: as the hub keeps it, or as GLUE's own archive does."""
PACKAGES = ("matplotlib", "networkx", "numpy", "pandas")
GIVE_AWAY = re.compile(
    r"\b(?:matplotlib|mpl|pyplot|plt|networkx|nx|numpy|np|ndarray\w*|pandas|pd|dataframe\w*|\w*graph\w*)\b", re.IGNORECASE
)
MIN_PASSAGE = 100
"""Characters; shorter paragraphs ("Parameters", "Returns") say nothing of their package."""
CALIBRATION_TEXTS, SCORED_TEXTS = 64, 1500
"""The most texts that calibrate and that are scored; SST-2's validation part has 872."""


@dataclass(frozen=True)
class Labelled:
    """Texts, and the number of the class of each."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Texts for training, calibration and scoring; no two parts share a text.

    stand_in: these are not the texts that published classifiers were trained for, so that a model has to be trained here.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    train: Labelled
    calibration: Labelled
    score: Labelled
    stand_in: bool = False

    def __str__(self) -> str:
        return f"{self.name} (from the {self.origin}), texts scored: {len(self.score.texts):,}"


def find_task(data: str = "auto") -> Task:
    """Find texts with classes, or raise ValueError.

    Args:
        data: a folder with SST-2's two parts (parquet files, or GLUE's train.tsv and dev.tsv), `sst2`, `docstrings`, or `auto`: SST-2
            from the local cache or the hub, else docstrings, which are then named as a stand-in.
    """
    if data == "docstrings":
        return _docstrings("argument")
    if Path(data).is_dir():
        return _sst2(Path(data), "argument", Path(data).resolve().name)
    if data not in ("auto", "sst2"):
        raise ValueError(f"no folder {data!r}; name one that holds train.tsv and dev.tsv or parquet files, sst2, docstrings or auto")
    on_the_hub = [patterns[0] for patterns in SPLITS.values()]
    if found := find_snapshot(SST2, on_the_hub, lambda folder: all(any(folder.glob(pattern)) for pattern in on_the_hub), "dataset"):
        return _sst2(*found, "SST-2")
    if data == "sst2":
        raise ValueError("SST-2 is not in the local cache and the hub did not give it; connect once, name a folder, or data=docstrings")
    return _docstrings("installed packages, as a stand-in for SST-2, which neither the local cache nor the hub gave")


def _sst2(folder: Path, origin: str, name: str) -> Task:
    rows = {part: _read_part(folder, part) for part in SPLITS}
    scored = {text for text, _ in rows["score"]}
    train = [row for row in rows["train"] if row[0] not in scored]
    calibration, rest, score = map(_labelled, (train[:CALIBRATION_TEXTS], train[CALIBRATION_TEXTS:], rows["score"]))
    return Task(f"{name}, validation part", origin, SST2_CLASSES, rest, calibration, score)


def _labelled(rows: list[tuple[str, int]]) -> Labelled:
    return Labelled(tuple(text for text, _ in rows), tuple(label for _, label in rows))


def _read_part(folder: Path, part: str) -> list[tuple[str, int]]:
    paths = next((found for pattern in SPLITS[part] if (found := sorted(folder.glob(pattern)))), [])
    if not paths:
        raise ValueError(f"no {' or '.join(SPLITS[part])} in {folder}; name a folder with both parts of SST-2, or data=docstrings")
    rows = [(text.strip(), label) for path in paths for text, label in _rows(path)]
    labels = {label for _, label in rows}
    if not rows or labels - {0, 1}:
        raise ValueError(f"{paths[0]} has {len(rows)} rows with the labels {sorted(labels)}; expected 0 (negative) and 1 (positive)")
    return rows


def _rows(path: Path) -> list[tuple[str, int]]:
    import pyarrow
    from pyarrow import csv, parquet

    columns = {"sentence": pyarrow.string(), "label": pyarrow.int64()}
    try:
        if path.suffix == ".parquet":
            found = parquet.read_table(path, columns=[*columns])
        else:
            kinds = csv.ConvertOptions(column_types=columns, include_columns=[*columns])
            text = io.BytesIO(decode(path.read_bytes(), path).encode())  # Windows saves UTF-16
            found = csv.read_csv(text, parse_options=csv.ParseOptions(delimiter="\t", quote_char=False), convert_options=kinds)
        return list(zip(found["sentence"].to_pylist(), found["label"].to_pylist(), strict=True))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors derive from these
        what = "parquet or UTF-8 text with the columns sentence and label, in text apart by tabs"
        raise ValueError(f"can't read {path} ({str(error).strip()[:120]!r}); expected {what}") from error


def _docstrings(origin: str) -> Task:
    seen: set[bytes] = set()
    documents = [document for package in PACKAGES for document in unique_documents(package_documents(package), seen)]
    parts = divide(f"docstrings of {', '.join(PACKAGES)}", origin, documents)
    return Task(
        f"which of {', '.join(PACKAGES)} a docstring is from", origin, PACKAGES, _passages(parts.fine_tune),
        _passages(parts.calibration, CALIBRATION_TEXTS), _passages(parts.score, SCORED_TEXTS), stand_in=True,
    )  # fmt: skip


def _passages(documents: Iterable[Document], most: int | None = None) -> Labelled:
    """Cut documentation into passages, without the words that give its package away."""
    rows = [
        (" ".join(GIVE_AWAY.sub("_", passage).split()), PACKAGES.index(document.name.split("/")[0]))
        for document in documents
        for passage in PARAGRAPHS_APART.split(document.text)
        if len(passage) >= MIN_PASSAGE
    ]
    return _labelled(rows[:most])
