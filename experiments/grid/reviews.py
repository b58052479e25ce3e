"""Find movie reviews: IMDB from the hub, a CSV of them by its path, or, offline, the documentation that the library has."""

import dataclasses
import os
from pathlib import Path

import pyarrow.parquet

from gpt2opt.sources.documentation import Document
from gpt2opt.sources.files import parse_file
from gpt2opt.sources.hub import find_snapshot
from gpt2opt.sources.texts import VARIABLE, Texts, divide, find_texts, named_documents

IMDB = "stanfordnlp/imdb"
SPLITS = ("train", "test")
CHOICES = "imdb, docs, wikitext-2, auto, a CSV with a column 'review' or 'text', or a UTF-8 file"


def find_reviews(text: str = "auto") -> Texts:
    """Find the text of the grid, divided into parts for fine-tuning, for calibration and for validation, or raise ValueError.

    Args:
        text: `imdb`, from the local cache or the hub; the path of a CSV, see `read_csv`; whatever `find_texts` takes by name or path; or
            `auto`: the environment variable GPT2OPT_TEXT, else IMDB, else `docs`, which is then named as a stand-in.
    """
    asked, origin = (text, "argument") if text != "auto" else (os.environ.get(VARIABLE), f"variable {VARIABLE}")
    if asked and asked.lower().endswith(".csv"):
        return divide(Path(asked).name, origin, read_csv(Path(asked)))
    if asked and asked != "imdb":
        if asked not in ("docs", "wikitext-2") and not Path(asked).is_file():
            raise ValueError(f"text {asked!r} is neither a file nor a name that is known; expected {CHOICES}")
        return find_texts(text)
    patterns = [f"plain_text/{split}-*.parquet" for split in SPLITS]
    if found := find_snapshot(IMDB, patterns, lambda folder: all(any(folder.glob(pattern)) for pattern in patterns), "dataset"):
        files = [path for pattern in patterns for path in sorted(found[0].glob(pattern))]
        rows = (review for path in files for review in pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist())
        return divide("IMDB reviews", found[1], [Document(f"imdb#{number}", review) for number, review in enumerate(rows)])
    if asked:
        raise ValueError(f"imdb is not in the local cache and the hub did not give it; connect once, or choose of: {CHOICES}")
    origin = "installed packages, as a stand-in for IMDB reviews, which neither the local cache nor the hub gave"
    return dataclasses.replace(find_texts("docs"), origin=origin, stand_in=True)


def read_csv(path: Path) -> list[Document]:
    """Read the reviews of a CSV, one document each: its column `review` or `text`, as Kaggle and quantization-pruning name it.

    Kaggle has the reviews in UTF-8 and, as `imdb_master.csv`, in ISO-8859-1; what is not Unicode is read as that.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"can't read {str(path)!r} ({error.strerror}); expected {CHOICES}") from error
    return named_documents(path, parse_file(content, path, fallback="iso-8859-1"))
