"""The experiment on a tiny model; its result survives JSON and gives tables, charts and a caption."""

import dataclasses
import json

import pytest

from experiments import deployed as experiment
from experiments.deployed import DeployedResult, measure_deployed
from gpt2opt.apps.deployed import model as deployed
from gpt2opt.apps.deployed.statistics import core_counts
from gpt2opt.environment import threads
from gpt2opt.measure.limits import Limits
from gpt2opt.storage import from_json


@pytest.mark.slow
def test_every_back_end_is_measured_and_the_result_survives_json(model_dir, monkeypatch):
    monkeypatch.setattr(deployed, "measure_limits", lambda num_cores: Limits(1e9, 1e12, 1e10))
    monkeypatch.setattr(deployed.GPT2Deployed.scaling, "__defaults__", (8, 4, 2))
    found = measure_deployed(str(model_dir), runs=2)
    (model,) = found.models
    assert [each.statistics.backend for each in model.deployments] == ["openvino", "onnxruntime"]
    assert all(len(each.statistics.runs) == 2 for each in model.deployments)
    again = from_json(DeployedResult, json.loads(json.dumps(dataclasses.asdict(found))))
    assert again == found
    tables = experiment.deployed_tables(again)
    assert [len(table.rows) for table in tables.values()] == [2 * 4, 2 * len(core_counts(threads()))]
    assert list(experiment.deployed_charts(again)) == ["deployed"]
    caption = experiment.deployed_caption(again)
    assert f"{model.source}: memory read at 1.0 GB/s and FP32 multiplied at 10 GFLOPS" in caption
    assert "After “Hi there!!” it says: `" in caption


def test_one_run_is_refused(model_dir):
    with pytest.raises(ValueError, match="runs=1, expected at least 2"):
        measure_deployed(str(model_dir), runs=1)
