"""Small traces in Chrome's format, made by hand: what a tree, a table and a curve have to be is plain to see."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gpt2opt.measure.trace_file import TRACE_NAME

Event = dict[str, Any]


def event(name: str, start: float, duration: float, category: str = "cpu_op", thread: int = 1, **arguments) -> Event:
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": thread, "ts": start, "dur": duration, "args": arguments}


def allocation(at: float, size: int, device: int = 0) -> Event:
    arguments = {"Bytes": size, "Device Type": device, "Device Id": -1 if device == 0 else 0}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 1, "ts": at, "args": arguments}


def cpu_events(scale: float = 1.0, matmul: str = "aten::addmm") -> list[Event]:
    """A step of 100 µs in which two layers multiply and a token is decoded, with what must not be shown around it."""
    events = [
        event("runpy.py(1): run", 0, 500, "python_function"),
        event("aten::before", 10, 5),
        event("ProfilerStep#2", 100, 100, "user_annotation"),
        event("gpt2opt/torch_model.py(33): prefill", 101, 60, "python_function"),
        event("torch/nn/modules/module.py(1): _call_impl", 102, 58, "python_function"),
        event("nn.Module: Conv1D_0", 103, 20, "python_function"),
        event(matmul, 104, 18, **{"External id": 7}),
        event("aten::copy_", 105, 4),
        event("nn.Module: Conv1D_1", 130, 30, "python_function"),
        event(matmul, 131, 28),
        event("gpt2opt/torch_model.py(39): decode", 165, 30, "python_function"),
        event("aten::add", 170, 10),
        allocation(105, 1000), allocation(110, 500), allocation(150, -1500), allocation(172, 200),
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
    ]  # fmt: skip
    return [{**each, **{key: each[key] * scale for key in ("ts", "dur") if key in each}} for each in events]


def gpu_events() -> list[Event]:
    """The same, and what it started on a GPU, in part after the step; and a kernel that nobody is known to have started."""
    return [
        *cpu_events(),
        event("cudaLaunchKernel", 106, 2, "cuda_runtime", **{"External id": 7}),
        event("gemm_kernel", 120, 50, "kernel", 7, **{"External id": 7}),
        event("gemm_kernel", 190, 30, "kernel", 7, **{"External id": 7}),
        event("Memcpy HtoD", 180, 5, "gpu_memcpy", 7, **{"External id": 99}),
        allocation(106, 4096, device=1),
    ]


def write(folder: Path, events: list[Event], **content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TRACE_NAME
    path.write_bytes(gzip.compress(json.dumps({"schemaVersion": 1, "traceEvents": events, **content}).encode()))
    return path


@pytest.fixture(scope="session")
def traces(tmp_path_factory) -> Path:
    """The folder that a run leaves: three stages, one of them with a GPU, one in another runtime."""
    folder = tmp_path_factory.mktemp("traces")
    write(folder / "1-profile", gpu_events())
    write(folder / "2-prune", cpu_events(0.7))
    nodes = [event("FullyConnected", 1, 8, **{"exec type": "brgemm_I8"}), event("FullyConnected", 9, 4, **{"exec type": "jit_f32"})]
    spans = [event("ProfilerStep#1", 0, 20, "user_annotation"), event("decode", 0.5, 15, "user_annotation")]
    write(folder / "4-quantize", [*spans, *nodes], gpt2opt={"runtime": "OpenVINO 2026.4.1"})
    return folder
