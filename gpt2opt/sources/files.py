"""The text in a file that somebody gives: in which encoding it is, and whether it is prose, a table with a column of texts, or neither."""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("review", "text", "sentence", "content")
"""What a column of texts may be called; the first of these that a table has is read."""
A_COLUMN = f"a column {', '.join(map(repr, COLUMNS[:-1]))} or {COLUMNS[-1]!r}"
DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}
RECORDS = (".json", ".jsonl", ".ndjson")
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NO_TEXT = {
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by Zstandard; unpack it first",
    b"PK\x03\x04": "is a zip archive or an Office document; unpack it, or save its text as a file of its own",
    b"%PDF": "is a PDF; save its text as a file of its own",
    b"{\\rtf": "is RTF; save its text as a file of its own",
}
MARKUP = re.compile(r"\s*<(!doctype html|html|\?xml)\b", re.IGNORECASE)
COLUMN_NAME = re.compile(r"[A-Za-z_][\w.-]*")
LOOKED_AT = 20
"""Rows that are read to recognize a table whose file name does not say that it is one."""


def parse_file(content: bytes, path: Path, fallback: str | None = None) -> str | list[str]:
    """Return the prose of a file, or the texts of a table (CSV, TSV, JSON, parquet), one for each row; "" for a row without one.

    A table is known by its content or by its name. fallback: the encoding of what is not Unicode; None refuses that.

    Raises:
        ValueError: it is neither, its encoding is not known, or no column is called by one of `COLUMNS` and holds texts.
    """
    if reason := next((reason for magic, reason in NO_TEXT.items() if content.startswith(magic)), None):
        raise ValueError(f"{path} {reason}")
    if content.startswith(b"PAR1"):
        return _parquet_texts(path)
    text = decode(content, path, fallback)
    if MARKUP.match(text):
        raise ValueError(f"{path} is HTML or XML, whose tags would be read as text; save its text as a file of its own")
    records = _json_records(text, path)
    if records is not None:
        tables = [record for record in records if isinstance(record, dict)]
        return _texts([*dict.fromkeys(name for record in tables for name in record)], tables, path) if tables else list(map(str, records))
    delimiter = _delimiter(text, path)
    if delimiter is None:
        return text
    header, *rows = [*_rows(text, delimiter)] or [[]]
    return _texts(header, [dict(zip(header, row, strict=False)) for row in rows], path)


def decode(content: bytes, path: Path, fallback: str | None = None) -> str:
    """Return the text of a file without byte order marks and with line feeds: UTF-8, or UTF-16 or UTF-32 by its mark or its zero bytes."""
    marked = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(marked or _utf_16(content) or "utf-8")
    except UnicodeDecodeError as error:
        if marked or not fallback:
            raise ValueError(
                f"{path} is not UTF-8 text ({error.encoding}: {error.reason} at byte {error.start}); convert it first, as with "
                "`iconv -f WINDOWS-1252 -t UTF-8`"
            ) from error
        text = content.decode(fallback)
    if "\0" in text:
        raise ValueError(f"{path} holds zero bytes, as no text does; if it is UTF-16, convert it first with `iconv -f UTF-16LE -t UTF-8`")
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


def _utf_16(content: bytes) -> str | None:
    """Return which UTF-16 it is by the zero bytes: every second one of ASCII; None if it is none."""
    head = content[:4096]
    first, second = (head[start::2].count(0) / max(1, len(head) // 2) for start in (0, 1))
    return "utf-16-le" if second > 0.3 > 10 * first else "utf-16-be" if first > 0.3 > 10 * second else None


def _parquet_texts(path: Path) -> list[str]:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        records = file.read([name for name in names if name.strip().lower() in COLUMNS]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise ValueError(f"can't read {path} ({str(error).strip()[:120]!r}); it is cut short or damaged") from error
    return _texts(names, records, path)


def _json_records(text: str, path: Path) -> list[dict | str] | None:
    """Return the records of JSON, an array or an object a line; None if it is prose."""
    named = path.suffix.lower() in RECORDS
    if text.lstrip()[:1] not in ("{", "[") and not named:
        return None
    try:
        whole = json.loads(text)
        records = whole if isinstance(whole, list) else [whole]
    except ValueError:
        records = []
        for number, line in enumerate(text.split("\n"), 1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                if not records and not named:
                    return None  # prose may begin with a bracket
                raise ValueError(f"line {number} of {path} is not JSON ({error}); expected an object a line") from error
    if not all(isinstance(record, dict | str) for record in records):
        raise ValueError(f"{path} is JSON without texts; expected an object a line with {A_COLUMN}")
    return records


def _delimiter(text: str, path: Path) -> str | None:
    """Return what separates the columns of a table; None if it is prose.

    Without a table's file name, it is one if its first line is names of columns and each of the next lines has as many fields.
    """
    if named := DELIMITERS.get(path.suffix.lower()):
        return max(named, key=text.split("\n", 1)[0].count)
    for delimiter in ",\t;":
        rows = [*itertools.islice(_rows(text, delimiter), LOOKED_AT)]
        names = [name.strip() for name in rows[0]] if len(rows) > 1 else []
        if len(names) > 1 and all(map(COLUMN_NAME.fullmatch, names)) and {len(row) for row in rows} == {len(names)}:
            return delimiter
    return None


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the 128 KiB that Python begins with
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)


def _texts(names: Sequence[str], records: Sequence[dict[str, Any]], path: Path) -> list[str]:
    """Return the texts of a table with these columns, one for each record."""
    known = {name.strip().lower(): name for name in names}
    column = next((known[name] for name in COLUMNS if name in known), None)
    if column is None:
        has = f"columns {', '.join(name or '(no name)' for name in names)}" if names else "no header"
        raise ValueError(f"{path.name} has {has}; expected {A_COLUMN}: rename the one that holds the texts")
    values = [record.get(column) for record in records]
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        raise ValueError(f"column {column!r} of {path.name} holds values of type {type(wrong).__name__}, expected texts")
    if not any(value and value.strip() for value in values):
        raise ValueError(f"column {column!r} of {path.name} holds no {column.strip().lower()}s; expected one per row")
    return [value or "" for value in values]
