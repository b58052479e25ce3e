import shutil

import pytest

from experiments import drafts
from experiments.contract import write_json
from experiments.drafts import DOMAIN, EXPERIMENT, PLAIN, WAYS, count_ngrams, measure_drafts
from gpt2opt.run.record import QUANTIZE
from gpt2opt.sources.texts import find_texts
from tests.report.conftest import make_record


@pytest.fixture
def run(quantized, text_file, tmp_path):
    """Return the folder of a run whose INT8 model is the tiny one."""
    shutil.copytree(quantized[0], tmp_path / "run" / QUANTIZE)
    record = make_record()
    record.sources = {**record.sources, "text": {"name": "a text", "revision": find_texts(str(text_file)).revision}}
    record.write(tmp_path / "run" / "run.json")
    return tmp_path / "run"


def test_every_token_is_counted_with_what_follows_it():
    table = count_ngrams([[1, 2, 3], [1, 2], [2, 4, 3]], [[2, 3], [2, 3], [4, 3]])
    assert table[2] == 2  # the n-gram of the token 1
    assert table[2 << 16 | 3] == table[3] == 3  # those of 1 2, and of 2 alone


@pytest.mark.slow
def test_all_ways_write_the_same_tokens_in_turns(run, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "OTHER", ("json",))
    result = measure_drafts(str(run), str(text_file), rounds=2)
    first, *others = WAYS
    assert [each.way for each in result.written if each.kind == DOMAIN] == [first, f"{first} again", *others]
    assert {each.different for each in result.written} == {0}
    assert all(len(each.seconds) == len(each.steps) == 2 for each in result.written)
    assert all(each.steps == (127, 127) for each in result.written if each.way.startswith(PLAIN))
    assert result.table_entries > 0
    (table,) = EXPERIMENT.tables(result).values()
    assert table.rows[0][-3:] == ("", "1.00", "0")
    assert "2 rounds in turns" in EXPERIMENT.caption(result)
    write_json(tmp_path / "drafts.json", result)
    assert not (run / QUANTIZE / drafts.FILE).exists()


def test_a_run_of_another_text_and_one_round_are_refused(run):
    with pytest.raises(ValueError, match="was fine-tuned on a text, not on documentation"):
        measure_drafts(str(run), "docs")
    with pytest.raises(ValueError, match="rounds=1, expected at least 2"):
        measure_drafts(str(run), rounds=1)
