import gzip
import json

import pytest
import torch

from gpt2opt.measure.trace import check_trace, record_trace


def work() -> None:
    ones = torch.ones(32, 32, device="cuda" if torch.cuda.is_available() else "cpu")
    ones @ ones


def test_a_trace_holds_operators_and_is_small(tmp_path):
    trace = record_trace(work, tmp_path / "profile")
    assert check_trace(trace.path) >= 1
    assert "aten::mm" in trace.operators
    assert 0 < trace.size_bytes < 5_000_000
    assert trace.path.name.endswith(".pt.trace.json.gz")


def test_a_second_trace_takes_the_place_of_the_first(tmp_path):
    record_trace(work, tmp_path / "profile")
    second = record_trace(work, tmp_path / "profile")
    assert list((tmp_path / "profile").iterdir()) == [second.path]


def test_an_empty_trace_is_refused(tmp_path):
    path = tmp_path / "empty.pt.trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [{"cat": "Trace"}]}).encode()))
    with pytest.raises(RuntimeError, match="no event of kind 'cpu_op'"):
        check_trace(path)


def test_a_trace_without_kernels_is_refused_where_there_should_be_some(tmp_path):
    path = tmp_path / "no kernels.pt.trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [{"cat": "cpu_op"}]}).encode()))
    assert check_trace(path) == 1
    with pytest.raises(RuntimeError, match="no event of kind 'kernel'"):
        check_trace(path, kernels=True)


def test_an_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't write"):
        record_trace(work, tmp_path / "file" / "profile")
