"""Find a text and divide it into three parts: for fine-tuning, for calibration and for scoring. No two parts share a paragraph."""

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2opt.sources.documentation import HELD_OUT, LONG_PARAGRAPH, PARAGRAPHS_APART, Document, unique_package_documents
from gpt2opt.sources.files import parse_file
from gpt2opt.sources.hub import find_snapshot

if TYPE_CHECKING:
    from datasets import Dataset

VARIABLE = "GPT2OPT_TEXT"
WIKITEXT = "Salesforce/wikitext"
WIKITEXT_FOLDER = "wikitext-2-raw-v1"
WIKITEXT_PATTERNS = [f"{WIKITEXT_FOLDER}/*"]
WIKITEXT_SPLITS = {"fine_tune": "train", "calibration": "validation", "score": "test"}
WIKITEXT_TITLE = re.compile(r" = [^=].* = \n")
COURSE_LINES = 200
FILE_BLOCK = 2000
BLANK_LINES, ONE_DOCUMENT = "cut at blank lines", "one document, since it has no blank lines"
SHARES = {"fine_tune": 0.75, "calibration": 0.1, "score": 0.15}
KEEPS_FIRST = ("score", "calibration", "fine_tune")
"""Which part keeps a paragraph that several have: the scored part comes first, so that it stays whole."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts:
    """A text in three parts that share no long paragraph, and how it was found.

    course_lines: the rows that the course's protocol scores, only for comparison. published: the rows of each split as they are
    published, if the text is published in splits; a row of WikiText-2 is a paragraph, a heading or empty.
    """

    name: str
    origin: str
    fine_tune: tuple[Document, ...]
    calibration: tuple[Document, ...]
    score: tuple[Document, ...]
    course_lines: tuple[str, ...] = ()
    stand_in: bool = False
    published: dict[str, list[str]] = field(default_factory=dict)

    def take(self, spec: str) -> "Dataset":
        """Return the rows of a slice as a dataset with the column `text`; rows beyond the last one are left out.

        spec: a split or a part of it, in the words of `datasets`: `train[:100]`, `validation[50:100]`, `test[:10%]`. The splits of a text
        that is not published in splits are the three parts, and a row is a paragraph on one line.

        Raises:
            ValueError: it is no such slice, there is no such split, or no row is in it.
        """
        from datasets import Dataset, ReadInstruction

        splits = self.published or {split: _paragraphs(getattr(self, part)) for part, split in WIKITEXT_SPLITS.items()}
        try:
            parts = ReadInstruction.from_spec(spec).to_absolute({split: len(rows) for split, rows in splits.items()})
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"split {spec!r} can't be read ({error}); expected one such as 'train[:100]' or 'validation[:200]'") from None
        rows = [row for part in parts for row in splits[part.splitname][part.from_ : part.to]]
        if not rows:
            raise ValueError(f"split {spec!r} of {self.name} has no row; ask for at least one")
        return Dataset.from_dict({"text": rows})

    @property
    def revision(self) -> str:
        """Return a short hash of all documents; equal texts have equal hashes."""
        text = "".join(document.text for document in (*self.fine_tune, *self.calibration, *self.score))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.name} (from the {self.origin})"


def find_texts(text: str = "auto") -> Texts:
    """Find the text of a run.

    text: a file, see `read_documents`; `wikitext-2`; `docs`, the documentation of installed packages that the bundled model never saw; or
    `auto`: the environment variable GPT2OPT_TEXT, else WikiText-2, else docs, which is then named as a stand-in.

    Raises:
        ValueError: the text can't be found, is empty or is too short to divide.
    """
    asked, origin = (text, "argument") if text != "auto" else (os.environ.get(VARIABLE), f"variable {VARIABLE}")
    if not text:
        raise ValueError("the text has no name: an empty one came; expected a UTF-8 file, wikitext-2, docs or auto")
    if asked == "docs":
        return _docs(origin, stand_in=False)
    if asked and asked != "wikitext-2":
        return _from_file(Path(asked), origin)
    if found := find_snapshot(WIKITEXT, WIKITEXT_PATTERNS, lambda path: is_complete(path / WIKITEXT_FOLDER), repo_type="dataset"):
        return _wikitext(found[0] / WIKITEXT_FOLDER, found[1])
    if asked:
        raise ValueError("wikitext-2 is not in the local cache and the hub did not give it; connect once, or use text='docs'")
    return _docs("installed packages, as a stand-in for WikiText-2, which neither the local cache nor the hub gave", stand_in=True)


def is_complete(folder: Path) -> bool:
    """Return whether every split of WikiText-2 is there; some are missing after a download that was killed."""
    return all(any(folder.glob(f"{split}-*.parquet")) for split in WIKITEXT_SPLITS.values())


def divide(name: str, origin: str, documents: Iterable[Document], stand_in: bool = False) -> Texts:
    """Divide documents by the hash of their names, so that the part of a document does not depend on the other documents.

    A long paragraph that several parts have, such as a licence notice, stays only in the first of them by `KEEPS_FIRST`.

    Raises:
        ValueError: a part would be empty.
    """
    parts: dict[str, list[Document]] = {part: [] for part in SHARES}
    for document in sorted(documents, key=lambda document: hashlib.sha256(document.name.encode()[::-1]).digest()):
        draw = int.from_bytes(hashlib.sha256(document.name.encode()).digest()[:4], "big") / 2**32
        part = "fine_tune" if draw < SHARES["fine_tune"] else "score" if draw < 1 - SHARES["calibration"] else "calibration"
        parts[part].append(document)
    dropped = 0
    apart = {part: [PARAGRAPHS_APART.split(document.text) for document in parts[part]] for part in parts}
    for part, kept in _keep_in_one_part(apart).items():
        dropped += sum(map(len, apart[part])) - sum(map(len, kept))
        together = zip(parts[part], apart[part], kept, strict=True)
        found = [each if own == whole else Document(each.name, "\n\n".join(own)) for each, whole, own in together]
        parts[part] = [document for document in found if document.text.strip()]
    if dropped:
        logger.warning("%s repeats itself: %d paragraphs are left out of one part, since another part has them", name, dropped)
    if not all(parts.values()):
        counts = ", ".join(f"{len(documents)} to {part.replace('_', '-')}" for part, documents in parts.items())
        raise ValueError(f"{name} divides into too few documents ({counts}); give a longer text, its documents apart by blank lines")
    lines = [line for document in parts["score"] for line in document.text.splitlines()]
    fine_tune, calibration, score = (tuple(parts[part]) for part in SHARES)
    return Texts(name, origin, fine_tune, calibration, score, tuple(lines[:COURSE_LINES]), stand_in)


def _keep_in_one_part(parts: dict[str, list[list[str]]]) -> dict[str, list[list[str]]]:
    """Drop every long paragraph from all parts but one. A part holds documents, and a document paragraphs."""
    seen: set[str] = set()
    kept = {}
    for part in KEEPS_FIRST:
        kept[part] = [[paragraph for paragraph in document if _plain(paragraph) not in seen] for document in parts[part]]
        seen.update(plain for document in kept[part] for plain in map(_plain, document) if len(plain) >= LONG_PARAGRAPH)
    return kept


def _paragraphs(documents: Iterable[Document]) -> list[str]:
    """Return the paragraphs of documents that are not empty, each on one line."""
    return [plain for document in documents for paragraph in PARAGRAPHS_APART.split(document.text) if (plain := _plain(paragraph))]


def _plain(paragraph: str) -> str:
    return " ".join(paragraph.split())


def take_bytes(documents: Iterable[Document], limit: int) -> list[Document]:
    """Return the first documents that fit into `limit` bytes; the first one that does not fit is cut and ends the list."""
    taken = []
    for document in documents:
        text = document.text.encode()[:limit].decode(errors="ignore")
        limit -= len(text.encode())
        if text:
            taken.append(Document(document.name, text))
    return taken


def _docs(origin: str, stand_in: bool) -> Texts:
    return divide(f"documentation of {' and '.join(HELD_OUT)}", origin, unique_package_documents(HELD_OUT, set()), stand_in)


def _from_file(path: Path, origin: str) -> Texts:
    documents, how = read_documents(path)
    if how == ONE_DOCUMENT and "\n" in documents[0].text:
        lines = "\n\n".join(documents[0].text.split("\n"))
        documents, how = named_documents(path, blocks(lines)), "each line a paragraph, since it has no blank lines"
    return divide(path.name, origin if how == BLANK_LINES else f"{origin}, {how}", documents)


def read_documents(path: Path) -> tuple[list[Document], str]:
    """Read the documents of a file; return them and how the file was cut into them.

    Prose is cut at blank lines, see `blocks`; of a table (CSV, TSV, JSON, parquet) each row is a document; see `parse_file`.
    """
    try:
        content = parse_file(Path(path).read_bytes(), path)
    except OSError as error:
        raise ValueError(f"can't read the text {str(path)!r} ({error.strerror}); name a text file, wikitext-2, docs or auto") from error
    if isinstance(content, list):
        documents, how = named_documents(path, content), "each row a document"
    else:
        documents, how = named_documents(path, blocks(content)), BLANK_LINES if PARAGRAPHS_APART.search(content.strip()) else ONE_DOCUMENT
    if not documents:
        raise ValueError(f"{path} holds no text; name a file with words in it")
    return documents, how


def named_documents(path: Path, texts: Iterable[str]) -> list[Document]:
    """Return the texts of a file that hold words, each under the file's name and its own number."""
    return [Document(f"{path.name}#{number}", text) for number, text in enumerate(texts) if text.strip()]


def blocks(text: str) -> list[str]:
    """Cut a text at blank lines, into blocks of at least FILE_BLOCK characters."""
    found, block = [], ""
    for paragraph in PARAGRAPHS_APART.split(text):
        block = f"{block}\n\n{paragraph}" if block else paragraph
        if len(block) >= FILE_BLOCK:
            found.append(block)
            block = ""
    return [*found, block] if block.strip() else found


def _wikitext(folder: Path, origin: str) -> Texts:
    import pyarrow.parquet

    files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in WIKITEXT_SPLITS.values()}
    rows = {split: [row for path in files[split] for row in pyarrow.parquet.read_table(path)["text"].to_pylist()] for split in files}
    kept = _keep_in_one_part({part: [rows[split]] for part, split in WIKITEXT_SPLITS.items()})
    fine_tune, calibration, score = (tuple(_articles(split, kept[part][0])) for part, split in WIKITEXT_SPLITS.items())
    return Texts("WikiText-2 raw", origin, fine_tune, calibration, score, tuple(rows["validation"][:COURSE_LINES]), published=rows)


def _articles(split: str, rows: Sequence[str]) -> Iterator[Document]:
    """Yield one document per article, its rows joined by blank lines; joined likewise, articles are the text that papers score."""
    starts = [index for index, row in enumerate(rows) if index and WIKITEXT_TITLE.fullmatch(row)]
    if starts and not "".join(rows[: starts[0]]).strip():
        del starts[0]  # nothing but empty rows stands before the first title
    for number, (start, end) in enumerate(itertools.pairwise([0, *starts, len(rows)])):
        yield Document(f"{split}#{number}", "\n\n".join(rows[start:end]))
