"""Find a text and divide it: one part to fine-tune on, one to calibrate with, one to score. No part shares a document with another."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2opt.sources.docs_corpus import HELD_OUT, held_out_documents
from gpt2opt.sources.docstrings import Document
from gpt2opt.sources.hub import cached_snapshot, download_snapshot

VARIABLE = "GPT2OPT_TEXT"
WIKITEXT = "Salesforce/wikitext"
WIKITEXT_FOLDER = "wikitext-2-raw-v1"
WIKITEXT_SPLITS = {"fine_tune": "train", "calibration": "validation", "score": "test"}
WIKITEXT_TITLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)
FILE_BLOCK = 2000
SHARES = {"fine_tune": 0.75, "calibration": 0.1, "score": 0.15}


@dataclass(frozen=True)
class Texts:
    """A text in three parts, and how it came to be chosen."""

    name: str
    origin: str
    fine_tune: tuple[Document, ...]
    calibration: tuple[Document, ...]
    score: tuple[Document, ...]
    stand_in: bool = False

    @property
    def revision(self) -> str:
        """Return a short hash of every document: the same text gives the same."""
        digest = hashlib.sha256()
        for document in (*self.fine_tune, *self.calibration, *self.score):
            digest.update(document.text.encode())
        return digest.hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.name} (from the {self.origin})"


def find_texts(text: str = "auto") -> Texts:
    """Find the text of a run.

    Args:
        text: a UTF-8 file, `wikitext-2`, `docs` (the documentation of installed packages that the bundled model never saw), or
            `auto`: the environment variable GPT2OPT_TEXT, else WikiText-2, else docs, which then is named as a stand-in.

    Raises:
        ValueError: the text that was asked for can't be found, is empty or too short to divide.
    """
    asked, origin = (text, "argument") if text != "auto" else (os.environ.get(VARIABLE), f"variable {VARIABLE}")
    if asked == "docs":
        return _docs(origin, stand_in=False)
    if asked and asked != "wikitext-2":
        return _from_file(Path(asked), origin)
    for origin, fetch in (("local cache", cached_snapshot), ("hub", download_snapshot)):
        path = fetch(WIKITEXT, [f"{WIKITEXT_FOLDER}/*"], repo_type="dataset")
        if path and (path / WIKITEXT_FOLDER).is_dir():
            return _wikitext(path / WIKITEXT_FOLDER, origin)
    if asked:
        raise ValueError("wikitext-2 is not in the local cache and the hub did not give it; connect once, or use text='docs'")
    return _docs("installed packages, as a stand-in for WikiText-2, which neither the local cache nor the hub gave", stand_in=True)


def divide(name: str, origin: str, documents: Iterable[Document], stand_in: bool = False) -> Texts:
    """Divide documents by the hash of their names, so that a document keeps its part whatever else is there.

    Raises:
        ValueError: a part would be empty.
    """
    parts: dict[str, list[Document]] = {part: [] for part in SHARES}
    for document in documents:
        draw = int.from_bytes(hashlib.sha256(document.name.encode()).digest()[:4], "big") / 2**32
        part = "fine_tune" if draw < SHARES["fine_tune"] else "score" if draw < 1 - SHARES["calibration"] else "calibration"
        parts[part].append(document)
    for documents_of_part in parts.values():
        documents_of_part.sort(key=lambda document: hashlib.sha256(document.name.encode()[::-1]).digest())
    if not all(parts.values()):
        counts = ", ".join(f"{len(documents)} to {part.replace('_', '-')}" for part, documents in parts.items())
        raise ValueError(f"{name} divides into too few documents ({counts}); give a longer text, its documents apart by blank lines")
    return Texts(name, origin, *(tuple(parts[part]) for part in SHARES), stand_in=stand_in)


def take_bytes(documents: Iterable[Document], limit: int) -> list[Document]:
    """Return the first documents, as many as fit into `limit` bytes; the first that does not fit is cut, and the last."""
    taken = []
    for document in documents:
        text = document.text.encode()[:limit].decode(errors="ignore")
        limit -= len(text.encode())
        if text:
            taken.append(Document(document.name, text))
        if limit <= 0:
            break
    return taken


def token_rows(texts: Sequence[str], tokenizer, length: int) -> list[list[int]]:
    """Cut each text into rows of at most `length` token ids, closed by end-of-text; no row holds two texts, none is a single token."""
    texts = [text + tokenizer.eos_token for text in texts if text.strip()]
    encoded = tokenizer(texts, verbose=False).input_ids if texts else []
    rows = [ids[start : start + length] for ids in encoded for start in range(0, len(ids), length)]
    return [row for row in rows if len(row) > 1]


def _docs(origin: str, stand_in: bool) -> Texts:
    return divide(f"documentation of {' and '.join(HELD_OUT)}", origin, held_out_documents(), stand_in)


def _from_file(path: Path, origin: str) -> Texts:
    return divide(path.name, origin, [Document(f"{path.name}#{i}", text) for i, text in enumerate(_blocks(read_text(path)))])


def _blocks(text: str) -> Iterator[str]:
    """Cut a text at blank lines, into blocks of at least FILE_BLOCK characters."""
    block = ""
    for paragraph in re.split(r"\n\s*\n", text):
        block = f"{block}\n\n{paragraph}" if block else paragraph
        if len(block) >= FILE_BLOCK:
            yield block
            block = ""
    if block.strip():
        yield block


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        ValueError: it is missing, is not UTF-8 or holds no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"can't read the text {str(path)!r} ({error.strerror}); name a UTF-8 file, wikitext-2, docs or auto") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from error
    if not text.strip():
        raise ValueError(f"{path} holds no text; name a file with words in it")
    return text


def _wikitext(folder: Path, origin: str) -> Texts:
    return Texts("WikiText-2 raw", origin, **{part: _wikitext_split(folder, split) for part, split in WIKITEXT_SPLITS.items()})


def _wikitext_split(folder: Path, split: str) -> tuple[Document, ...]:
    """Return one document an article. The rows are joined as they stand: each ends in its own newline."""
    import pyarrow.parquet

    rows = [row for path in sorted(folder.glob(f"{split}-*.parquet")) for row in pyarrow.parquet.read_table(path)["text"].to_pylist()]
    if not rows:
        raise ValueError(f"no rows of the split {split!r} in {folder}; remove the folder, so that it is downloaded anew")
    text = "".join(rows)
    starts = [match.start() for match in WIKITEXT_TITLE.finditer(text)] or [0]
    ends = [*starts[1:], len(text)]
    return tuple(Document(f"{split}#{i}", text[start:end]) for i, (start, end) in enumerate(zip(starts, ends, strict=True)))
