import dataclasses
import json

import pytest

from gpt2opt.measure.results import Latency
from gpt2opt.measure.turns import again
from gpt2opt.report.conclusions import machine_changes
from gpt2opt.report.tables import speed_table, stage_table, summary_table
from gpt2opt.run.record import ROLES, Role, folder_name, read_record, reference_folder
from tests.report.conftest import change


def test_a_record_survives_the_disk(record, tmp_path):
    record.write(tmp_path / "run.json")
    assert read_record(tmp_path / "run.json") == record


def test_running_a_stage_again_drops_it_and_what_came_after(record):
    record.add(dataclasses.replace(record.models["Pruned"], seconds=9.0))
    assert list(record.models) == ["Baseline", "Pruned", "Pruned, first heads"]
    assert record.stages == ["1-profile", "2-prune"]
    assert record.stage("2-prune").seconds == 9.0


def test_a_control_leaves_what_came_after_it(record):
    before = list(record.models)
    record.add(dataclasses.replace(record.models["Pruned, first heads"], seconds=9.0))
    assert list(record.models) == before


def test_a_model_of_another_name_is_a_control_of_the_stage_in_which_it_was_measured(record):
    assert record.role("Halved") == Role("4-quantize", control=True, speed=False)
    record.models = dict(list(record.models.items())[:2])
    record.add(dataclasses.replace(record.models["Pruned"], name="Halved"))
    record.add(record.models["Pruned"])
    assert record.role("Halved").stage == "2-prune"


def test_a_stage_that_was_not_run_is_named(record):
    with pytest.raises(ValueError, match="stage '5-fly' is not in this record, which has"):
        record.stage("5-fly")


def test_a_record_of_the_edition_before_is_read(record, tmp_path):
    """It nested models in stages, with the pairs that took turns beside them."""
    pruned, base = (dataclasses.asdict(record.models[name]) for name in ("Pruned", "Baseline"))
    first_heads = dataclasses.asdict(record.models["Pruned, first heads"])
    for model in (pruned, base, first_heads):
        for name in ("in_turns", "weights_in", "weights", "seconds"):
            del model[name]
    pair = {"name": "Pruned", "base": "Baseline", "latency": pruned["latency"], "base_latency": base["latency"]}
    stages = [
        {"name": "1-profile", "weights_in": "a", "weights_out": "b", "measurement": base, "seconds": 9.0, "controls": []},
        {"name": "2-prune", "weights_in": "b", "weights_out": "c", "measurement": pruned, "seconds": 9.0, "controls": [first_heads],
         "comparisons": [pair]},
    ]  # fmt: skip
    content = {**dataclasses.asdict(record), "schema": "gpt2opt.run/3", "stages": stages}
    del content["models"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    found = read_record(tmp_path / "run.json")
    assert list(found.models) == ["Baseline", "Pruned", "Pruned, first heads"]
    assert found.models["Pruned"] == dataclasses.replace(record.models["Pruned"], seconds=None)
    assert found.comparisons() == record.comparisons()[:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema None"),
        (json.dumps({"schema": "other/9"}), "has schema 'other/9', expected 'gpt2opt.run/4'"),
        (json.dumps({"schema": "gpt2opt.run/2"}), "has schema 'gpt2opt.run/2', expected 'gpt2opt.run/4'; `gpt2opt run` writes it"),
        (json.dumps({"schema": "gpt2opt.run/4"}), r"is not a whole record \(KeyError: 'models'\)"),
        (json.dumps({"schema": "gpt2opt.run/4", "models": {"a": {}}, "settings": {}}), r"is not a whole record \(TypeError: "),
        (json.dumps({"schema": "gpt2opt.run/3"}), r"is not a whole record \(KeyError: 'stages'\)"),
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


def later_rounds(record, seconds: float) -> Latency:
    """Put rounds into stage 3 in which all three models of torch took turns, and took `seconds` for a token."""
    latency = Latency((10 * seconds,) * 2, (seconds,) * 4, 1, 1, 8, 3)
    change(record, "Fine-tuned", latency=latency, in_turns={"Baseline": latency, again("Baseline"): latency, "Pruned": latency})
    return latency


def test_models_are_shown_with_the_times_of_the_last_rounds_and_a_stage_with_those_of_its_own(record):
    latency = later_rounds(record, 0.5)
    assert {name: record.measured(name).latency == latency for name in ("Baseline", "Pruned", "Fine-tuned", "INT8")} == {
        "Baseline": True, "Pruned": True, "Fine-tuned": True, "INT8": False,
    }  # fmt: skip
    assert {row[5] for row in summary_table(record).rows[:4]} == {"500 (500)", "–"}
    assert {row[5] for row in stage_table(record, "2-prune").rows} == {"15 (19.5)", "–"}
    assert {row[:2] for row in speed_table(record).rows} == {
        ("Pruned / Baseline", "5000 / 5000"), ("Fine-tuned / Baseline", "5000 / 5000"), ("INT8 / FP32", "110 / 110"),
        ("Baseline again / Baseline", "5000 / 5000"),
    }  # fmt: skip


def test_times_that_stand_beside_a_ratio_are_of_the_rounds_of_the_ratio(record):
    later_rounds(record, 0.5)
    shown = {measurement.name: measurement.latency for measurement in record.measurements()}
    for pair in record.comparisons():
        assert {name: shown[name.removesuffix(" again")] for name in pair.latencies} == pair.latencies


def test_a_machine_that_changed_between_early_and_late_runs_is_named(record):
    assert machine_changes(record) == "Early and late runs of each model differ by less than a fifth."
    later_rounds(record, 0.0185)  # 23% more than before
    said = machine_changes(record)
    assert "TPOT of Pruned lay between 15 and 18.5 ms" in said
    assert "INT8" not in said
    within = dataclasses.replace(record.measured("INT8").latency, ttft_samples_s=(0.1, 0.1, 0.13, 0.13), tpot_samples_s=(0.01,) * 8)
    change(record, "INT8", latency=within, in_turns={})
    assert "TTFT of INT8 lay between 100 and 130 ms" in machine_changes(record)


@pytest.mark.parametrize(("name", "folder"), [("Pruned", "2-control-baseline"), ("INT8", folder_name("FP32", ROLES["FP32"]))])
def test_what_is_recorded_of_a_reference_has_a_folder_of_its_stage(name, folder):
    assert reference_folder(ROLES[name]) == folder
