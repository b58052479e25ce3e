import pyarrow
import pyarrow.parquet
import pytest

from experiments.bundled_model import TRAINING
from gpt2opt.sources import hub, texts
from gpt2opt.sources.documentation import HELD_OUT, Document, package_documents, unique_documents
from gpt2opt.sources.texts import find_texts, take_bytes

PARTS = ("fine_tune", "calibration", "score")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(texts.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def docs():
    return find_texts("docs")


def paragraphs(documents) -> set[str]:
    return {p for d in documents for p in d.text.split("\n\n") if len(p) >= 100}


def test_no_part_shares_a_document_or_a_long_paragraph_with_another(docs):
    for one, other in (("fine_tune", "calibration"), ("fine_tune", "score"), ("calibration", "score")):
        a, b = getattr(docs, one), getattr(docs, other)
        assert not {d.name for d in a} & {d.name for d in b}
        assert not paragraphs(a) & paragraphs(b)


def test_the_text_is_real_and_long_enough(docs):
    assert sum(len(d.text) for d in docs.score) > 200_000
    assert "graph" in docs.score[0].text + docs.fine_tune[0].text + docs.calibration[0].text or "axes" in docs.score[0].text


def test_held_out_packages_train_nothing():
    assert not set(HELD_OUT) & set(TRAINING)


def test_the_same_text_gives_the_same_revision(docs):
    assert find_texts("docs").revision == docs.revision


def test_docstrings_are_read_without_importing_the_package():
    import sys

    before = set(sys.modules)
    documents = list(package_documents("tensorboard"))
    assert any("TensorBoard" in document.text for document in documents)
    assert not {name for name in set(sys.modules) - before if name.startswith("tensorboard")}


def test_a_long_paragraph_appears_once():
    long = "the same words again and again " * 20
    documents = [Document("a", long + "\n\n" + "x" * 500), Document("b", long + "\n\n" + "y" * 500), Document("c", long)]
    unique = list(unique_documents(documents, set()))
    assert [d.name for d in unique] == ["a", "b"]
    assert sum(long.strip() in d.text for d in unique) == 1


def test_a_file_is_divided(text_file):
    found = find_texts(str(text_file))
    assert found.origin == "argument"
    assert all(getattr(found, part) for part in PARTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no text"), (b" \n\n ", "holds no text"), (b"one", "too few documents"), (b"\xff\xfe\x00", "not UTF-8")],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_texts(str(path))


def test_rows_of_a_text_of_ones_own_are_its_paragraphs_each_on_one_line(text_file):
    found = find_texts(str(text_file))
    paragraphs = [" ".join(paragraph.split()) for document in found.calibration for paragraph in document.text.split("\n\n")]
    assert found.take("validation")["text"][:] == [paragraph for paragraph in paragraphs if paragraph]
    with pytest.raises(ValueError, match=r"^split 'valid' can't be read"):
        found.take("valid")


def test_a_missing_text_is_refused():
    with pytest.raises(ValueError, match=r"can't read the text 'missing\.txt'"):
        find_texts("missing.txt")


def test_wikitext_comes_before_the_stand_in(tmp_path, monkeypatch):
    folder = tmp_path / texts.WIKITEXT_FOLDER
    folder.mkdir()
    rows = ["", " = First = \n", "", " Some words . \n", " = = Part = = \n", " = Second = \n", " Other words . \n"]
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(hub, "cached_snapshot", lambda *_, **__: tmp_path)
    found = find_texts()
    assert (found.name, found.origin, found.stand_in) == ("WikiText-2 raw", "local cache", False)
    assert "\n\n".join(d.text for d in found.score) == "\n\n".join(rows)  # as papers join them
    assert [d.text.split(" = ")[1] for d in found.score] == ["First", "Second"]
    assert found.course_lines == tuple(rows)
    assert found.take("train[1:4]")["text"][:] == rows[1:4]  # as they are published, what the splits share included


def test_what_a_text_repeats_is_left_to_the_part_that_is_scored(tmp_path, caplog):
    notice = "a paragraph of some length that says the same thing wherever it stands, " * 2
    blocks = [f"{number} " * 500 for number in range(60)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(blocks))
    alone = find_texts(str(path))
    assert caplog.text == ""
    path.write_text("\n\n".join(f"{block}\n\n{notice}" for block in blocks))
    found = find_texts(str(path))
    with_notice = {part: sum(notice.strip() in document.text for document in getattr(found, part)) for part in texts.SHARES}
    assert with_notice["score"] > 0
    assert with_notice["calibration"] == with_notice["fine_tune"] == 0
    dropped = len(blocks) - sum(document.text.count(notice.strip()) for document in found.score)
    assert f"text.txt repeats itself: {dropped} paragraphs are left out of one part" in caplog.text
    assert {part: len(getattr(found, part)) for part in texts.SHARES} == {part: len(getattr(alone, part)) for part in texts.SHARES}


@pytest.mark.parametrize("hub_answers", [True, False])
def test_a_download_that_was_killed_half_way_is_taken_up_again_or_passed_over(hub_answers, tmp_path, monkeypatch):
    rows = [" = Title = \n", " A line . \n"]
    for name, splits in (("cut", ("train",)), ("whole", ("train", "validation", "test"))):
        folder = tmp_path / name / texts.WIKITEXT_FOLDER
        folder.mkdir(parents=True)
        for split in splits:
            pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(hub, "cached_snapshot", lambda *_, **__: tmp_path / "cut")
    monkeypatch.setattr(hub, "download_snapshot", lambda *_, **__: tmp_path / "whole" if hub_answers else None)
    found = find_texts("auto")
    assert (found.origin == "hub") == hub_answers
    assert found.stand_in != hub_answers
    if not hub_answers:
        with pytest.raises(ValueError, match="connect once"):
            find_texts("wikitext-2")


def test_what_wikitext_repeats_is_left_to_the_split_that_is_scored(tmp_path, monkeypatch):
    folder = tmp_path / texts.WIKITEXT_FOLDER
    folder.mkdir()
    long = " A long line that stands in every split , of which there are three . " * 3 + "\n"
    for split in ("train", "validation", "test"):
        rows = [" = Title = \n", long, f" Of {split} alone . \n"]
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(hub, "cached_snapshot", lambda *_, **__: tmp_path)
    found = find_texts()
    assert long in found.score[0].text
    assert long not in found.fine_tune[0].text + found.calibration[0].text


def test_take_bytes_takes_no_more():
    documents = [Document("a", "é" * 10), Document("b", "x" * 10), Document("c", "y" * 10)]
    taken = take_bytes(documents, 25)
    assert [d.text for d in taken] == ["é" * 10, "x" * 5]
