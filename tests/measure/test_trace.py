import gzip
import json
import re
import socket

import pytest
import torch

from gpt2opt.measure.trace import check_trace, own_gpu_time, read_trace, record_trace, trace_handler
from gpt2opt.profile.summary import summarize

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="it profiles the CPU alone")


def work() -> None:
    ones = torch.ones(32, 32, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.functional.gelu(ones @ ones) + 1


def test_a_trace_holds_operators_and_is_small(tmp_path):
    trace = record_trace(work, tmp_path / "profile")
    assert "aten::mm" in trace.operators
    assert 0 < trace.size_bytes < 5_000_000


def test_a_second_trace_takes_the_place_of_the_first_and_of_one_with_a_time_stamp(tmp_path):
    record_trace(work, tmp_path / "profile")
    (tmp_path / "profile" / "gpt2opt.1795547788757497726.pt.trace.json.gz").write_bytes(b"of an earlier edition")
    second = record_trace(work, tmp_path / "profile")
    assert list((tmp_path / "profile").iterdir()) == [second.path]


def test_a_trace_names_no_machine_no_user_and_no_path_outside_of_a_package(tmp_path):
    content = gzip.decompress(record_trace(work, tmp_path).path.read_bytes()).decode()
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", content)
    assert not re.search(r'"[^"]*/(home|root|tmp|usr|Users|work)/[^"]*"|site-packages| at 0x', content)
    assert json.loads(content).keys() == {"schemaVersion", "deviceProperties", "displayTimeUnit", "traceEvents"}


def test_a_trace_makes_a_profile_with_operators_and_memory(tmp_path):
    profile = summarize(record_trace(work, tmp_path).path, "1-profile")
    assert {"aten::mm", "aten::gelu"} <= {row["name"] for row in profile["operators"]}
    assert max(size for _, size in profile["memory"]["CPU"]) >= 32 * 32 * 4 or torch.cuda.is_available()


@without_gpu
def test_the_time_of_each_operator_is_the_one_that_the_profiler_tells(tmp_path):
    from torch.profiler import profile, schedule

    write, told = trace_handler(tmp_path), {}

    def on_trace_ready(profiler) -> None:
        told.update({event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages() if event.key.startswith("aten::")})
        write(profiler)

    with profile(schedule=schedule(wait=0, warmup=1, active=2), on_trace_ready=on_trace_ready) as profiler:
        for _ in range(3):
            work()
            profiler.step()
    operators = read_trace(tmp_path).operators
    assert operators == pytest.approx(told, abs=1e-8)
    assert list(operators.values()) == sorted(operators.values(), reverse=True)


def test_gpu_work_counts_for_the_operator_that_started_it():
    def event(category: str, name: str, dur: float, external_id: int) -> dict:
        return {"cat": category, "name": name, "dur": dur, "args": {"External id": external_id}}

    events = [
        event("cpu_op", "aten::mm", 50, 1), event("cpu_op", "aten::copy_", 9, 2), event("cpu_op", "aten::mm", 70, 3),
        event("kernel", "gemm", 10, 1), event("kernel", "split_k", 5, 1), event("gpu_memcpy", "HtoD", 2, 2), event("kernel", "gemm", 20, 3),
        event("cuda_runtime", "cudaLaunchKernel", 99, 1), {"cat": "kernel", "name": "of nobody", "dur": 7}, {"ph": "M"},
    ]  # fmt: skip
    assert own_gpu_time(events) == pytest.approx({"aten::mm": 35e-6, "aten::copy_": 2e-6})


def test_a_profiler_that_recorded_nothing_leaves_no_earlier_trace_behind(tmp_path):
    record_trace(work, tmp_path)
    trace_handler(tmp_path)  # and no step after it
    with pytest.raises(RuntimeError, match="wrote no trace"):
        read_trace(tmp_path)


def test_an_empty_trace_is_refused(tmp_path):
    path = tmp_path / "empty.pt.trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [{"cat": "Trace"}]}).encode()))
    with pytest.raises(RuntimeError, match="no event of kind 'cpu_op'"):
        check_trace(path)


def test_a_trace_without_kernels_is_refused_where_there_should_be_some(tmp_path):
    path = tmp_path / "no kernels.pt.trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [{"cat": "cpu_op"}]}).encode()))
    assert len(check_trace(path)) == 1
    with pytest.raises(RuntimeError, match="no event of kind 'kernel'"):
        check_trace(path, kernels=True)


def test_an_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't write"):
        trace_handler(tmp_path / "file" / "profile")
