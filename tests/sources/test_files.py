"""The files that people give as text: encodings, line ends, and tables, which are not read as prose."""

import codecs
import gzip
import json
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from experiments.classifier.tasks import find_task
from experiments.grid.reviews import find_reviews
from gpt2opt.apps.commands import score_model
from gpt2opt.sources.texts import find_texts, read_documents
from tests.conftest import sample_text

TEXT = sample_text(blocks=40)
TEXTS = [f"Review {number} of café {number % 7}, a film; fine." for number in range(60)]

ENCODINGS = {
    "UTF-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "UTF-16 LE with a mark": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16 BE with a mark": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-16 LE": TEXT.encode("utf-16-le"),
    "UTF-16 BE": TEXT.encode("utf-16-be"),
    "UTF-32 with a mark": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "CRLF": TEXT.replace("\n", "\r\n").encode(),
    "CR": TEXT.replace("\n", "\r").encode(),
    "two files in one, each with a mark": codecs.BOM_UTF8 + TEXT[:5000].encode() + codecs.BOM_UTF8 + TEXT[5000:].encode(),
    "a mark, UTF-16 and CRLF": codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_encoding_and_line_ends_change_no_text(case, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    expected, divided = read_documents(path), find_texts(str(path)).revision
    path.write_bytes(ENCODINGS[case])
    assert read_documents(path) == expected
    assert find_texts(str(path)).revision == divided


def test_a_byte_order_mark_changes_no_score(model_dir, tmp_path):
    path = tmp_path / "text.txt"
    qualities = []
    for content in (TEXT[:3000].encode(), codecs.BOM_UTF8 + TEXT[:3000].encode()):
        path.write_bytes(content)
        qualities.append(score_model(str(model_dir), str(path))[1])
    assert qualities[0] == qualities[1]


def jsonl(column="text") -> str:
    return "\n".join(json.dumps({"id": number, column: text}, ensure_ascii=False) for number, text in enumerate(TEXTS))


def table(delimiter: str, column="text") -> str:
    quote = '"' if delimiter == "," else ""
    return "\n".join([delimiter.join(["id", column]), *(f"{n}{delimiter}{quote}{text}{quote}" for n, text in enumerate(TEXTS))])


TABLES = {
    "CSV": ("reviews.csv", table(",")),
    "CSV by its content": ("reviews.txt", table(",")),
    "CSV with semicolons": ("reviews.csv", table(";").replace("; fine", " - fine")),
    "CSV with a mark and another case": ("reviews.csv", "\ufeff" + table(",", "Text")),
    "TSV": ("reviews.tsv", table("\t")),
    "TSV by its content": ("reviews.txt", table("\t", "sentence")),
    "JSON lines": ("reviews.jsonl", jsonl()),
    "JSON lines by their content": ("reviews.txt", jsonl("review")),
    "a JSON array": ("reviews.json", json.dumps([{"text": text} for text in TEXTS], indent=1)),
    "a JSON array of texts": ("reviews", json.dumps(TEXTS)),
}


@pytest.mark.parametrize("case", TABLES)
def test_each_row_of_a_table_is_a_document(case, tmp_path):
    name, content = TABLES[case]
    (tmp_path / name).write_text(content, encoding="utf-8")
    documents, how = read_documents(tmp_path / name)
    assert [document.text.replace(" - fine", "; fine") for document in documents] == TEXTS
    assert how == "each row a document"
    assert str(find_texts(str(tmp_path / name))) == f"{name} (from the argument, each row a document)"
    assert [d.text for d in find_reviews(str(tmp_path / name)).score] == [d.text for d in find_texts(str(tmp_path / name)).score]


def test_parquet_is_read_whatever_its_name(tmp_path):
    for name in ("reviews.parquet", "reviews.txt"):
        pyarrow.parquet.write_table(pyarrow.table({"label": [0] * 60, "text": TEXTS}), tmp_path / name)
        assert [document.text for document in read_documents(tmp_path / name)[0]] == TEXTS


def test_a_long_text_in_a_row_is_read(tmp_path):
    (tmp_path / "books.csv").write_text(f"text\n{'word ' * 60_000}\n")
    assert len(read_documents(tmp_path / "books.csv")[0][0].text) == 300_000


PROSE = {
    "a bracket": "[Music] A song begins.\n\nIt ends.",
    "a brace": "{Aside} He said, she said.\nThen they left.",
    "commas in every line": "Hello there, world\nAnother day, another line",
    "names of columns and no table": "alpha,beta\nand that was all, it seems, there was to it\nthe end",
    "a quote": '"Stop", he said,\nand "went, on',
}


@pytest.mark.parametrize("case", PROSE)
def test_prose_is_not_taken_for_a_table(case, tmp_path):
    (tmp_path / "text.txt").write_text(PROSE[case])
    (document,), _ = read_documents(tmp_path / "text.txt")
    assert document.text == PROSE[case]


def packed(path) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("text.txt", TEXT)
    return path.read_bytes()


WRONG = {
    "gzip": ("text.txt", gzip.compress(TEXT.encode()), "is compressed by gzip; unpack it first"),
    "PDF": ("text.txt", b"%PDF-1.7\n...", "is a PDF; save its text"),
    "HTML": ("page.html", b"\n<!DOCTYPE html><html><p>A text.", "is HTML or XML, whose tags"),
    "Latin-1": ("text.txt", "caf\xe9 number".encode("latin-1"), "is not UTF-8 text .* at byte 3.*; convert it first, as with `iconv"),
    "half a character of UTF-16": ("text.txt", b"\xff\xfea\0b", "is not UTF-8 text .utf-16.*: truncated data"),
    "binary": ("text.txt", b"text \0 and more text", "holds zero bytes.*`iconv -f UTF-16LE"),
    "other columns": ("t.jsonl", b'{"title": "a", "body": "b"}', r"t\.jsonl has columns title, body; expected a column 'review', 'text'"),
    "other columns of prose's name": ("t.txt", b"title,body\na,b\n", r"t\.txt has columns title, body; expected a column"),
    "a broken line": ("t.txt", b'{"text": "a"}\n{"text": \n', r"line 2 of .*t\.txt is not JSON"),
    "JSON in name alone": ("t.jsonl", b"just words", r"line 1 of .*t\.jsonl is not JSON .*; expected an object a line"),
    "numbers": ("t.json", b"[1, 2]", "is JSON without texts"),
    "a column of numbers": ("t.jsonl", b'{"text": 1}', "column 'text' of .* holds values of type int, expected texts"),
    "an empty column": ("t.csv", b"id,text\n1,\n", "column 'text' of .* holds no texts"),
    "half a parquet": ("t.parquet", b"PAR1 and no more", r"can.t read .*t\.parquet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_text_is_refused_with_what_to_do(case, tmp_path):
    name, content, message = WRONG[case]
    (tmp_path / name).write_bytes(content)
    for read in (read_documents, lambda path: find_texts(str(path))):
        with pytest.raises(ValueError, match=message) as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_zip_archive_is_refused(tmp_path):
    packed(tmp_path / "text.txt")
    with pytest.raises(ValueError, match="is a zip archive or an Office document"):
        read_documents(tmp_path / "text.txt")


def test_a_file_of_one_sentence_a_line_is_divided_and_says_how(model_dir, tmp_path):
    path = tmp_path / "lines.txt"
    lines = [line for line in TEXT.splitlines() if line]
    path.write_text("\n".join(lines))
    found = find_texts(str(path))
    assert found.origin == "argument, each line a paragraph, since it has no blank lines"
    kept = [line for part in (found.fine_tune, found.calibration, found.score) for d in part for line in d.text.split("\n\n")]
    assert sorted(kept) == sorted(lines)
    _, quality = score_model(str(model_dir), str(path))
    assert quality.protocol.startswith("lines.txt, one document, since it has no blank lines, documents joined")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_tables_of_glue_are_read_as_windows_saves_them(encoding, tmp_path):
    for name, start in (("train", 0), ("dev", 100)):
        rows = [f'a "film {number}\t{number % 2}' for number in range(start, start + 80)]
        (tmp_path / f"{name}.tsv").write_bytes("\r\n".join(["sentence\tlabel", *rows]).encode(encoding))
    task = find_task(str(tmp_path))
    assert task.score.texts[:2] == ('a "film 100', 'a "film 101')
    assert len(task.train.texts) + len(task.calibration.texts) == 80
