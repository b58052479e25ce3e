import errno
import gzip
import json
import re
import socket

import pytest
import torch
from torch.profiler import profile, record_function, schedule

from gpt2opt.measure import trace as trace_module
from gpt2opt.measure.trace import check_trace, operator_seconds, read_trace, record_in_turns, record_trace, trace_handler
from gpt2opt.measure.trace_file import read_trace_file
from gpt2opt.report.profile.summary import summarize
from tests.report.profile.conftest import event

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="it profiles the CPU alone")


def work() -> None:
    ones = torch.ones(32, 32, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.functional.gelu(ones @ ones) + 1


def test_a_trace_holds_operators_and_is_small(tmp_path):
    trace = record_trace(work, tmp_path / "profile")
    assert "aten::mm" in trace.operators
    assert 0 < trace.path.stat().st_size < 5_000_000


def test_a_second_trace_takes_the_place_of_the_first(tmp_path):
    record_trace(work, tmp_path / "profile")
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
    events = [
        event("aten::mm", 0, 50, **{"External id": 1}), event("aten::copy_", 60, 9, **{"External id": 2}),
        event("aten::linear", 70, 90), event("aten::mm", 80, 70, **{"External id": 3}),
        event("cudaLaunchKernel", 1, 9, "cuda_runtime", **{"External id": 1}),
        event("gemm", 20, 10, "kernel", 7, **{"External id": 1}), event("split_k", 30, 5, "kernel", 7, **{"External id": 1}),
        event("HtoD", 70, 2, "gpu_memcpy", 7, **{"External id": 2}), event("gemm", 90, 20, "kernel", 7, **{"External id": 3}),
        event("of nobody", 110, 7, "kernel", 7), {"ph": "M"},
    ]  # fmt: skip
    assert operator_seconds(events, on_gpu=True) == pytest.approx({"aten::mm": 35e-6, "aten::copy_": 2e-6})


def test_a_profiler_that_recorded_nothing_leaves_no_earlier_trace_behind(tmp_path):
    record_trace(work, tmp_path)
    trace_handler(tmp_path)  # and no step after it
    with pytest.raises(RuntimeError, match="wrote no trace"):
        read_trace(tmp_path)


@pytest.mark.parametrize("label", ['prompt "Hello"', '"', 'ends in a "', 'say "a", "b": 1', '{"step": {"number": 1}, "of": [2]}', "N/A"])
def test_a_label_may_hold_anything_that_torch_does_not_escape(tmp_path, label):
    def labelled() -> None:
        with record_function(label):
            work()

    trace = record_trace(labelled, tmp_path)
    assert "aten::mm" in trace.operators
    assert label in {event.get("name") for event in read_trace_file(trace.path)["traceEvents"]}


def profile_into(log_dir, steps: int = 2) -> None:
    """As in the notebook, but at the end of each recording torch prepares the next one: there it crashed if the handler raised."""
    with profile(schedule=schedule(wait=0, warmup=1, active=1), on_trace_ready=trace_handler(log_dir)) as profiler:
        for _ in range(steps):
            work()
            profiler.step()


ERRORS = [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "No space left on device"), ValueError("can't write"), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_goes_wrong_while_a_trace_is_written_is_raised_behind_the_profiler(tmp_path, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(trace_module, "write_trace", fail)
    profile_into(tmp_path)
    assert f"no trace was written into {tmp_path.name} ({type(error).__name__}: {error})" in caplog.text
    with pytest.raises(type(error)) as raised:
        read_trace(tmp_path)
    assert raised.value is error
    with pytest.raises(RuntimeError, match="wrote no trace"):  # it is told once
        read_trace(tmp_path)
    with pytest.raises(type(error)):
        record_trace(work, tmp_path)
    profile_into(tmp_path)
    monkeypatch.undo()
    profile_into(tmp_path)
    assert read_trace(tmp_path).operators


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_is_told_of_in_one_line(tmp_path, limit):
    resource = pytest.importorskip("resource")
    profile_into(tmp_path / "kept")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        with pytest.raises((OSError, ValueError)) as recorded:
            record_trace(work, tmp_path / "kept")
        profile_into(tmp_path / "profile")
        with pytest.raises((OSError, ValueError)) as handled:
            read_trace(tmp_path / "profile")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    for told in (str(recorded.value), str(handled.value)):
        assert "see that there is room on the disk" in told
        assert "\n" not in told
    assert read_trace(tmp_path / "kept").operators, "the earlier trace stays until there is a new one"


def test_of_several_recordings_in_turns_the_fastest_is_kept(tmp_path, monkeypatch):
    seen: list[str] = []
    seconds = iter([2.0, 1.0, 1.0, 2.0])  # of a, b, a, b
    record = trace_module._record
    monkeypatch.setattr(trace_module, "_record", lambda *arguments: (record(*arguments), next(seconds))[1])

    def labelled(name: str):
        def call() -> None:
            seen.append(name)
            with record_function(f"{name} {seen.count(name)}"):
                work()

        return call

    traces = record_in_turns({tmp_path / name: labelled(name) for name in "ab"}, rounds=2)
    assert "".join(seen) == "ab" + "aabb" * 2  # one call warms up; of each recording, one call is made while the profiler warms up
    names = [{event.get("name") for event in read_trace_file(trace.path)["traceEvents"]} for trace in traces]
    assert [sorted(each & {"a 3", "a 5", "b 3", "b 5"}) for each in names] == [["a 5"], ["b 3"]]


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
