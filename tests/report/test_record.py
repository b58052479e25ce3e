import dataclasses
import json

import pytest

from gpt2opt.record import ROLES, folder_name, read_record, reference_folder


def test_a_record_survives_the_disk(record, tmp_path):
    record.write(tmp_path / "run.json")
    assert read_record(tmp_path / "run.json") == record


def test_running_a_stage_again_drops_it_and_what_came_after(record):
    again = dataclasses.replace(record.stages[1], seconds=9.0)
    record.add(again)
    assert [stage.name for stage in record.stages] == ["1-profile", "2-prune"]
    assert record.stages[1].seconds == 9.0


def test_a_stage_that_was_not_run_is_named(record):
    with pytest.raises(ValueError, match="stage '5-fly' is not in this record, which has"):
        record.stage("5-fly")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema None"),
        (json.dumps({"schema": "other/9"}), "has schema 'other/9', expected 'gpt2opt.run/3'"),
        (json.dumps({"schema": "gpt2opt.run/3"}), r"is not a whole record \(KeyError: 'stages'\)"),
        (json.dumps({"schema": "gpt2opt.run/3", "stages": [{}], "settings": {}}), r"is not a whole record \(TypeError: "),
    ],
)
def test_a_record_that_cannot_be_read_gives_no_numbers(tmp_path, content, message):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path / "run.json")


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't read"):
        read_record(tmp_path / "run.json")


def test_an_unwritable_place_is_refused(record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't write"):
        record.write(tmp_path / "file" / "run.json")


@pytest.mark.parametrize(("name", "folder"), [("Pruned", "2-control-baseline"), ("INT8", folder_name("FP32", ROLES["FP32"]))])
def test_what_is_recorded_of_a_reference_has_a_folder_of_its_stage(name, folder):
    assert reference_folder(ROLES[name]) == folder
